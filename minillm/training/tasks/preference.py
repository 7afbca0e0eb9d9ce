"""Preference: a model learns to find better answers likelier than worse ones, by DPO and its family (losses/).

The reference model's log-probability of an answer never changes. So it is computed once, before the first step, when
policy and reference are the same weights (with LoRA: those of the model whose adapters change nothing yet), and kept in
the run: `kept.safetensors` belongs to the data and the weights that this run began with, and no second model is in
memory. Dropout is off: the policy must differ from its reference by its weights alone. So DPO begins at ln 2, with all
margins 0 and a gradient that is not.

The logged measures have TRL's names: rewards/chosen, rewards/rejected (beta times the log-ratio), rewards/margins,
rewards/accuracies (the share of pairs whose chosen answer has the higher reward, where equal ones count as wrong),
logps/chosen, logps/rejected, logits/chosen, logits/rejected. That logps/chosen falls while the margin grows is usual:
only the difference is in the loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from minillm.autograd import Tensor
from minillm.backend import Array
from minillm.data.instructions import Example, targets_of
from minillm.data.pairs import IGNORED
from minillm.errors import InputError
from minillm.losses import (
    WITHOUT_REFERENCE,
    Pairs,
    PreferenceSettings,
    answer_lengths,
    kto_loss,
    kto_reference_point,
    preference_loss,
)
from minillm.parallel.objective import Batch, add_measures
from minillm.tokenizers import Tokenizer
from minillm.training.tasks.answer_pairs import AnswerPairs, AnswerPairsOptions
from minillm.training.tasks.scoring import frozen_log_probs, scored
from minillm.training.tasks.sft import answered


@dataclass(frozen=True)
class PreferenceOptions(AnswerPairsOptions):
    """Settings of a preference training."""

    loss: Literal[
        "sigmoid", "conservative", "robust", "hinge", "ipo", "sigmoid_norm", "reference_free", "simpo", "orpo", "kto",
        "exo_pair", "nca_pair", "sppo_hard", "apo_zero", "apo_down", "discopop", "bco_pair",
    ] = "sigmoid"  # fmt: skip
    """Loss, under TRL's names: sigmoid is DPO; see minillm/losses/preference.py for each."""
    beta: float = 0.1
    """Weight of the difference from the reference; a larger one keeps the model nearer to it."""
    label_smoothing: float = 0.0
    """Share of pairs that are the wrong way round, for conservative, robust and exo_pair."""
    gamma: float = 0.5
    """Margin by which a chosen answer should win, for simpo."""
    desirable_weight: float = 1.0
    """Weight of chosen answers, for kto."""
    undesirable_weight: float = 1.0
    """Weight of rejected answers, for kto."""

    def __post_init__(self):
        super().__post_init__()
        PreferenceSettings(self.beta, self.label_smoothing, self.gamma)  # raises for impossible ones
        if self.loss == "robust" and not self.label_smoothing < 0.5:
            raise InputError(f"train: robust has label_smoothing={self.label_smoothing}; give a share below 0.5")
        if self.loss == "exo_pair" and not 0 < self.label_smoothing < 1:
            raise InputError("train: exo_pair needs a label_smoothing above 0; give --label-smoothing 1e-3")


class PreferenceTask(AnswerPairs):
    """Pairs of answers; beside the arrays of AnswerPairs, a batch has the reference's log-probabilities (B, 2)."""

    name = "preference"
    Options = PreferenceOptions
    measured_first = True

    def __init__(self, config: Any, tokenizer: Tokenizer | None = None):
        super().__init__(config, tokenizer)
        self.reference = np.zeros((len(self.pairs), 2), np.float32)  # until `begin`
        self.reference_elsewhere = np.zeros((len(self.pairs), 2), np.float32)
        self.logged: dict[str, tuple[Any, float]] = {}  # of the step at hand
        self.first: Mapping[str, Any] = {}  # the first validation that was shown, and the last
        self.last: Mapping[str, Any] = {}
        self.is_kto = self.options.loss == "kto"
        self.samples = self.is_kto  # type: ignore[misc]  # its reference point depends on the policy

    @classmethod
    def needs(cls, options: Any) -> dict[str, tuple[bool, str]]:
        """Options of one loss do nothing for the others."""
        smoothed, kto = ("conservative", "robust", "exo_pair"), (options.loss == "kto", "--loss kto")
        return {
            "label_smoothing": (options.loss in smoothed, f"--loss {' or '.join(smoothed)}"),
            "gamma": (options.loss == "simpo", "--loss simpo"),
            "desirable_weight": kto,
            "undesirable_weight": kto,
        }

    def begin(self, model: Any, kept: Mapping[str, Array]) -> Mapping[str, Array]:
        """Compute what the reference says of every answer, or take it from the run."""
        self.logged = {}
        if self.options.loss in WITHOUT_REFERENCE:
            return {}
        if not kept:
            kept = self._references(model)
        self.reference = kept["reference"]
        self.reference_elsewhere = kept.get("reference_elsewhere", self.reference_elsewhere)
        return kept

    def _references(self, reference: Any) -> dict[str, np.ndarray]:
        size = 2 * self.config.batch_size
        examples = [example for pair in self.pairs for example in pair]
        found = {"reference": frozen_log_probs(reference, examples, size).reshape(-1, 2)}
        if self.is_kto:
            elsewhere = [example for number in range(len(self.pairs)) for example in self.elsewhere(number)]
            found["reference_elsewhere"] = frozen_log_probs(reference, elsewhere, size).reshape(-1, 2)
        return found

    def elsewhere(self, number: int) -> list[Example]:
        """The prompt of a pair with the answers of the next one, which KTO's reference point is measured with."""
        asked = self.pairs[number].chosen
        prompt = asked.ids[: int(np.argmax(asked.targets != IGNORED)) + 1]
        found = []
        for example in self.pairs[(number + 1) % len(self.pairs)]:
            answer = example.targets[example.targets != IGNORED]
            ids = np.concatenate([prompt, answer])[: self.max_length]
            found.append(targets_of(ids, np.arange(len(ids)) >= len(prompt)))
        return found

    def batch(self, step: int, model: Any = None) -> Batch:
        """Pairs in a shuffled order of each epoch; for KTO with the reference point by the policy at this step."""
        batch = super().batch(step)
        if self.is_kto and model is not None:
            numbers = batch["number"].tolist()
            examples = [example for number in numbers for example in self.elsewhere(number)]
            mismatched = frozen_log_probs(model, examples, len(examples)).reshape(-1, 2)
            batch["point"][:] = kto_reference_point(mismatched - self.reference_elsewhere[numbers])
        return batch

    def made(self, numbers: Sequence[int] | np.ndarray) -> Batch:
        """The batch of the pairs with these numbers. text (B, T): every next token of the chosen, for ORPO."""
        batch = super().made(numbers) | {"number": np.asarray(numbers), "reference": self.reference[numbers]}
        if self.is_kto:
            batch["point"] = np.zeros(len(numbers), np.float32)
        if self.options.loss == "orpo":
            batch["text"] = next_tokens(*(batch[name][:, 0] for name in ("ids", "targets", "lengths")))
        return batch

    def counts(self, batch: Batch) -> dict[str, float]:
        """The number of pairs; for KTO of answers; for ORPO also of the tokens of chosen texts."""
        pairs = float(len(batch["ids"]))
        if self.options.loss == "orpo":
            return {"odds": pairs, "nll": float((batch["text"] != IGNORED).sum())}
        return {"loss": 2 * pairs if self.is_kto else pairs}

    def sums(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """The sums of the losses of these pairs."""
        terms, measured = self._computed(model, batch)
        add_measures(self.logged, measured.items())
        return terms

    def measures(self, model: Any, batch: Batch) -> dict[str, tuple[float, float]]:
        """The terms of the loss, and what TRL logs."""
        terms, measured = self._computed(model, batch)
        counts = self.counts(batch)
        losses = {name: (total.item(), counts[name]) for name, total in terms.items()}
        return losses | {name: (float(total), count) for name, (total, count) in measured.items()}

    def notes(self) -> dict[str, float]:
        """The measures that TRL logs, as means over the pairs of this rank."""
        noted = {name: float(total) / count for name, (total, count) in self.logged.items()}
        self.logged = {}
        return noted

    def remark(self, record: Mapping[str, Any]) -> str:
        """The margin between the rewards of held-out answers, and how often the chosen one has the higher."""
        self.first, self.last = self.first or record, record
        return (
            f"margin {record['val_rewards/margins']:.3f}, accuracy {record['val_rewards/accuracies']:.0%}, "
            f"log p of chosen answers {record['val_logps/chosen']:.1f}"
        )

    def _computed(self, model: Any, batch: Batch) -> tuple[dict[str, Tensor], dict[str, tuple[Any, float]]]:
        """The terms of the loss, and (sum, count) of what is logged."""
        model.eval()  # no dropout, in adapters neither: policy and reference differ by their weights alone
        B, _, T = batch["ids"].shape
        found = scored(model, batch["ids"].reshape(2 * B, T), batch["targets"].reshape(2 * B, T))
        log_probs, lengths = found.answers.reshape(B, 2), answer_lengths(batch["targets"])  # (B, 2) each
        pairs = Pairs(
            *(log_probs[:, 0], log_probs[:, 1]),
            *(batch["reference"][:, 0], batch["reference"][:, 1]),
            *(lengths[:, 0], lengths[:, 1]),
        )
        total = self._losses(pairs, batch).sum()
        terms = {"loss": total}
        if self.options.loss == "orpo":
            terms = {"odds": total, "nll": model.loss(batch["ids"][:, 0], batch["text"], reduction="sum")}
        return terms, logged(pairs, self.options.beta, found.mean_logits.reshape(B, 2, T).sum(-1))

    def _losses(self, pairs: Pairs, batch: Batch) -> Tensor:
        options = self.options
        if not self.is_kto:
            settings = dict(beta=options.beta, label_smoothing=options.label_smoothing, gamma=options.gamma)
            return preference_loss(pairs, options.loss, **settings)
        weights = dict(desirable_weight=options.desirable_weight, undesirable_weight=options.undesirable_weight)
        good, bad = np.ones_like(batch["point"]), np.zeros_like(batch["point"])  # (B,)
        chosen = kto_loss(pairs.r_w, good, batch["point"], options.beta, **weights)
        return chosen + kto_loss(pairs.r_l, bad, batch["point"], options.beta, **weights)

    def preview(self, model: Any, step: int) -> Iterator[tuple[str, str]]:
        """Held-out prompts, and how the model answers them, with the likeliest tokens."""
        return answered(model, self.tokenizer, self.template, self.shown, self.config.sample_tokens)

    def next_steps(self, folder: str) -> list[str]:
        """The command that talks to the model; and that a falling log-probability is no fault."""
        lines = ["to talk to it:", f"  minillm chat {folder}"]
        if not self.first:
            return lines
        [likely, margin] = [
            (round(self.first[name], digits), round(self.last[name], digits))  # the numbers as they were shown
            for name, digits in (("val_logps/chosen", 1), ("val_rewards/margins", 3))
        ]
        if likely[1] < likely[0] and margin[1] > margin[0]:
            lines.insert(
                0,
                f"chosen answers became less likely (log p {likely[0]:.1f} to {likely[1]:.1f}) while the margin grew, "
                "as is usual: the loss compares them only",
            )
        return lines


def next_tokens(ids: np.ndarray, targets: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The next token of every token of texts (B, T), and -100 at padding; targets have it where an answer is."""
    following = np.concatenate([ids[:, 1:], ids[:, :1]], axis=1)  # (B, T)
    real = np.arange(ids.shape[1]) < lengths[:, None]  # (B, T)
    return np.where(real, np.where(targets != IGNORED, targets, following), IGNORED)


def logged(pairs: Pairs, beta: float, summed_logits: Array) -> dict[str, tuple[Any, float]]:
    """The (sum, count) of what TRL logs, under its names; summed_logits (B, 2): over the tokens of each answer."""
    chosen, rejected = beta * pairs.r_w.data, beta * pairs.r_l.data  # (B,)
    B = float(len(chosen))
    return {
        "rewards/chosen": (chosen.sum(), B),
        "rewards/rejected": (rejected.sum(), B),
        "rewards/margins": ((chosen - rejected).sum(), B),
        "rewards/accuracies": ((chosen > rejected).sum(), B),
        "logps/chosen": (pairs.chosen.data.sum(), B),
        "logps/rejected": (pairs.rejected.data.sum(), B),
        "logits/chosen": (summed_logits[:, 0].sum(), float(pairs.chosen_lengths.sum())),
        "logits/rejected": (summed_logits[:, 1].sum(), float(pairs.rejected_lengths.sum())),
    }
