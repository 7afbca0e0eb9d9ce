"""When a model begins to learn its training data by heart: the validation loss rises while the training loss falls."""

from __future__ import annotations

from typing import Any, NamedTuple

COMPARED = "validation loss"  # what a validation measures, where that is the loss that is trained
AFTER = 2  # validations after the best one that there must be
WORSE = 0.01  # share by which the last one must be worse than the best


class Parted(NamedTuple):
    """The step at which the two losses part, with both losses there and at the end."""

    step: int
    train: tuple[float, float]
    validation: tuple[float, float]

    def __str__(self) -> str:
        return (
            f"overfitting: since step {self.step} the training loss has fallen from {self.train[0]:.3f} to "
            f"{self.train[1]:.3f}, while the validation loss has risen from {self.validation[0]:.3f} to "
            f"{self.validation[1]:.3f}; the checkpoint of step {self.step} is kept as the best; what helps is more "
            "data, --dropout, --weight-decay, a smaller model, or to stop by --patience"
        )


def parted(records: list[dict[str, Any]]) -> Parted | None:
    """The point where training and validation loss part, by the lines of metrics.jsonl; None if they do not.

    The training loss of a step is that of its batch alone, so means are compared: over the steps of one interval
    between validations, before the best validation and before the last one.
    """
    validated = [record for record in records if record.get("val_loss") is not None]
    if len(validated) <= AFTER:
        return None
    best, last = min(validated, key=lambda record: record["val_loss"]), validated[-1]
    after = sum(record["step"] > best["step"] for record in validated)
    if after < AFTER or last["val_loss"] < (1 + WORSE) * best["val_loss"]:
        return None
    interval = validated[-1]["step"] - validated[-2]["step"]
    before, now = (_mean_before(records, record["step"], interval) for record in (best, last))
    if before is None or now is None or now >= before:
        return None
    return Parted(best["step"], (before, now), (best["val_loss"], last["val_loss"]))


def _mean_before(records: list[dict[str, Any]], step: int, interval: int) -> float | None:
    losses = [r["loss"] for r in records if r["loss"] is not None and step - interval < r["step"] <= step]
    return sum(losses) / len(losses) if losses else None
