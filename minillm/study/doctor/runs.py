"""The findings in a run's metrics.jsonl: each check compares stretches of the run (history.py), and names the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from minillm.study.doctor import answers, reference, watched
from minillm.study.doctor.finding import Finding, sorted_findings
from minillm.study.doctor.history import History, history_of
from minillm.training.overfitting import parted

SURE = 4.0  # standard errors
ROSE = 0.05  # share of the loss by which it must rise again to be called diverging
SPIKE = 8.0  # standard deviations, measured by the median of the distances from the running median
WINDOW = 21  # steps of the running median
SLOWER = 0.7  # share of the speed at the beginning
MOMENT = 20.0  # seconds of the last quarter, in less of which any other program slows a run down
ENOUGH = 50  # steps before anything is said of how fast a run learns
STILL = 0.002  # share of the loss; a stretch that gains less has not moved
FALLS = 0.005  # share of the validation loss by which it still falls
ALWAYS = 0.9  # share of the steps
OF_NEAR = 5  # losses before the first validation
# Findings that say once more, or wrongly, what diverging says.
OF_DIVERGING = ("not-learning", "learning-rate-too-low", "learning-rate-too-high", "plateau", "always-clipped")
ASTRAY = ("diverging", "not-finite", "stopped")  # findings about a run whose weights are lost
TEXT = ("causal", "masked", "permutation", "denoising")  # objectives whose data is one long text


def examine_run(folder: str | Path | History) -> list[Finding]:
    """The findings in the metrics of a run, the worst first.

    Raises: CheckpointError for a folder that is no run.
    """
    history = folder if isinstance(folder, History) else history_of(folder)
    if not history.learned:
        return [
            Finding(
                "error",
                "no-steps",
                "metrics.jsonl has no step with a loss: the run ended before its first one was written",
                "start it again, and read the error that it prints",
                "metrics.jsonl",
            )
        ]
    found = list(not_finite(history)) or [one for check in CHECKS for one in check(history)]
    if any(one.name == "diverging" for one in found):
        found = [one for one in found if one.name not in OF_DIVERGING]
    return sorted_findings(found)


def not_finite(history: History) -> Iterator[Finding]:
    """Find the first step with a number that is none."""
    for name in ("loss", "grad_norm", "val_loss"):
        for one in history.records:
            value = one.get(name)
            if value is not None and not math.isfinite(value):
                yield Finding(
                    "error",
                    "not-finite",
                    f"{name} is {value} at step {one['step']}, and nothing was learned from there on",
                    "train again with a lower --lr or a longer --warmup; MINILLM_CHECK=finite names the operation",
                    f"metrics.jsonl, step {one['step']}",
                )
                return


def unfinished(history: History) -> Iterator[Finding]:
    """Tell of a run that ended early; the trainer ends one itself whose loss is no number."""
    last, wanted = int(history.steps[-1]), int(history.settings.get("steps") or 0)
    if last >= wanted or history.settings.get("patience") is not None:
        return
    norms = history.column("grad_norm")
    before, end = float(np.median(norms)), float(norms[-3:].max())
    if len(norms) >= 10 and end > 10 * before:
        yield Finding(
            "error",
            "stopped",
            f"the run stopped at step {last} of {wanted}, where the norm of the gradient was {end:.3g} after "
            f"{before:.3g} in the middle of the run: it ran away",
            "train again with a lower --lr or a longer --warmup",
            "the last lines of metrics.jsonl",
        )
    else:
        yield Finding(
            "note",
            "unfinished",
            f"the run has done {last} of {wanted} steps",
            f"go on with `minillm train --resume {history.folder or 'RUN'}`",
        )


def diverging(history: History) -> Iterator[Finding]:
    """Find a loss that ends well above the lowest that it had."""
    parts = history.stretches
    if not history.loss_tells or len(parts) < 3:
        return
    best, last = min(parts, key=lambda one: one.loss), parts[-1]
    rise, error = last.loss - best.loss, math.hypot(best.error, last.error)
    if rise > SURE * error and rise > ROSE * abs(best.loss):
        ends_worse = last.loss >= parts[0].loss
        yield Finding(
            "error",
            "diverging",
            f"the training loss was {best.loss:.3f} at step {best.step} and has risen to {last.loss:.3f} at step "
            f"{last.step}" + (f", above the {parts[0].loss:.3f} that it began with" if ends_worse else ""),
            f"train again with a lower --lr (now {history.settings.get('lr')}), a longer --warmup, or --clip 1",
            "loss.png",
        )


def not_learning(history: History) -> Iterator[Finding]:
    """Find a loss that does not move, or falls in a straight line and little: the rate is too low."""
    parts = history.stretches
    if not history.loss_tells or len(history.losses) < ENOUGH:
        return
    first, last = parts[0], parts[-1]
    lowest = min(one.loss for one in parts)
    fall, error = first.loss - lowest, math.hypot(first.error, last.error)
    lr = history.settings.get("lr")
    if fall < max(2 * error, 0.01 * abs(first.loss)):
        yield Finding(
            "warning" if history.settings.get("init") else "error",
            "not-learning",
            f"the training loss was {first.loss:.3f} in the first {first.step} steps and {last.loss:.3f} in the last: "
            f"in {history.steps[-1]} steps it has fallen by {fall / abs(first.loss):.1%}",
            f"give a higher --lr (now {lr}); if that does not help, `minillm doctor RUN` looks at its model and its "
            "data",
            "loss.png",
        )
        return
    (earlier, _), (later, error) = falls(history)
    if fall < 0.1 * abs(first.loss) and later > 0.7 * earlier and later > SURE * error and len(parts) >= 6:
        yield Finding(
            "warning",
            "learning-rate-too-low",
            f"the training loss falls in a straight line from {first.loss:.3f} to {last.loss:.3f}, by "
            f"{fall / abs(first.loss):.1%} in all: each step is too small",
            f"give a higher --lr (now {lr}): ten times as much, or what `minillm doctor --lr-range` finds",
            "loss.png",
        )


def falls(history: History) -> list[tuple[float, float]]:
    """By how much the loss falls in each half of the way, with the standard error, by a straight line through it.

    The way is the sum of the learning rates, so that a loss with one slope falls alike in both, whatever the schedule.
    """
    rates, losses = history.column("lr"), history.losses
    way = np.cumsum(rates if len(rates) == len(losses) and rates.any() else np.ones(len(losses)))
    found = []
    for part in (way <= way[-1] / 2, way > way[-1] / 2):
        x, y = way[part], losses[part]
        if len(x) < OF_NEAR:
            return [(0.0, math.inf)] * 2
        width, noise = x[-1] - x[0], float(np.sqrt(np.mean(np.diff(y) ** 2) / 2))
        slope = float(np.cov(x, y, ddof=0)[0, 1] / x.var())
        found.append((-slope * width, noise * width / (x.std() * math.sqrt(len(x)))))
    return found


def plateau(history: History) -> Iterator[Finding]:
    """Find the step from which on the loss no longer falls.

    From there on, the means of both halves are equal up to 0.2 % or one standard error, which is small beside what was
    learned before; and the validation loss falls by no more than 0.5 %.
    """
    parts, losses = history.stretches, history.losses
    if not history.loss_tells or len(parts) < 8 or len(losses) < 2 * ENOUGH:
        return
    learned = parts[0].loss - parts[-1].loss
    for number, one in enumerate(parts[:-3]):
        some = losses[history.steps > one.step]
        halves = some[: len(some) // 2], some[len(some) // 2 :]
        error = float(np.sqrt(np.mean(np.diff(some) ** 2) / 2 * (1 / len(halves[0]) + 1 / len(halves[1]))))
        if error > 0.02 * learned or abs(halves[0].mean() - halves[1].mean()) > max(STILL * abs(one.loss), error):
            continue
        held_out = [row["val_loss"] for row in history.validated if row["step"] > one.step]
        if len(held_out) > 1 and held_out[-1] < held_out[0] * (1 - FALLS):
            continue
        share = 1 - (number + 1) / len(parts)
        if share >= 0.4:
            yield Finding(
                "warning" if share >= 0.6 else "note",
                "plateau",
                f"since step {one.step} of {parts[-1].step} the training loss stays at {some.mean():.3f} "
                f"({parts[0].loss:.3f} at first)",
                "stop there, or give more: a lower rate at the end (--schedule, --min-lr), a larger model, more data",
                "loss.png",
            )
        return


def overfitting(history: History) -> Iterator[Finding]:
    """Find the step from which on the validation loss rises while the training loss falls (training/overfitting.py)."""
    found = parted(history.records) if history.loss_tells else None
    if found is not None:
        yield Finding(
            "warning",
            "overfitting",
            f"since step {found.step} the training loss has fallen from {found.train[0]:.3f} to {found.train[1]:.3f}, "
            f"while the validation loss has risen from {found.validation[0]:.3f} to {found.validation[1]:.3f}",
            f"take the checkpoint of step {found.step}, which is kept as the best; more data, --dropout, a smaller "
            "model or --patience help",
            "loss.png",
        )


def validation_gap(history: History) -> Iterator[Finding]:
    """Find validation data of another kind: its loss is far above that of training from the first validation on."""
    if history.settings.get("objective") not in TEXT:
        return
    first = next((one for one in history.validated if one["step"] > 0), None)
    if first is None:
        return
    near = [one["loss"] for one in history.learned if first["step"] - WINDOW < one["step"] <= first["step"]]
    if len(near) < OF_NEAR:
        return
    train, error = float(np.mean(near)), float(np.std(near) / math.sqrt(len(near)))
    gap = first["val_loss"] - train
    if gap > max(0.25 * abs(train), SURE * error):
        yield Finding(
            "warning",
            "validation-gap",
            f"at the first validation, step {first['step']}, the validation loss is {first['val_loss']:.3f}, but the "
            f"training loss {train:.3f}: the validation data are of another kind",
            "shuffle the documents before the last part of the text is held out",
            "loss.png: the two curves never meet",
        )


def spikes(history: History) -> Iterator[Finding]:
    """Find single steps whose loss jumps up.

    A loss is compared with the running median; the scale is 1.48 times the median distance, which for normal noise is
    the standard deviation. At eight of them chance gives none in a million million steps.
    """
    losses = history.losses
    if not history.loss_tells or len(losses) < 2 * WINDOW:
        return
    padded = np.pad(losses, WINDOW // 2, mode="edge")
    middle = np.median(np.lib.stride_tricks.sliding_window_view(padded, WINDOW), axis=1)  # (n,)
    apart = losses - middle
    scale = 1.4826 * float(np.median(np.abs(apart)))
    found = np.flatnonzero((apart > SPIKE * scale) & (apart > 0.1 * np.abs(middle)))
    if len(found):
        worst = int(found[apart[found].argmax()])
        yield Finding(
            "warning",
            "spikes",
            f"the training loss jumps in {len(found)} step{'s' * (len(found) > 1)}, most at step "
            f"{history.steps[worst]}: {losses[worst]:.3f} where {middle[worst]:.3f} is usual",
            "give a lower --lr, a smaller --beta2 (0.95) or --clip 1, and look at the data of that step",
            f"python: task.batch({history.steps[worst] - 1})",
        )


def too_high(history: History) -> Iterator[Finding]:
    """Find a loss that rises again while the rate is near its peak, in the first half, before it falls further."""
    parts = history.stretches
    early = parts[: max(2, len(parts) // 2)]
    if not history.loss_tells or len(parts) < 6:
        return
    best = early[0]
    for one in early[1:]:
        rise, error = one.loss - best.loss, math.hypot(one.error, best.error)
        if rise > SURE * error and rise > ROSE * abs(best.loss) and parts[-1].loss < one.loss:
            yield Finding(
                "warning",
                "learning-rate-too-high",
                f"the training loss rose from {best.loss:.3f} at step {best.step} to {one.loss:.3f} at step {one.step} "
                "while the learning rate was near its peak, and fell only when the rate did",
                f"give a lower --lr (now {history.settings.get('lr')}) or a longer --warmup (now "
                f"{history.settings.get('warmup')})",
                "loss.png",
            )
            return
        best = min(best, one, key=lambda part: part.loss)


def clipping(history: History) -> Iterator[Finding]:
    """Tell of a gradient that is clipped at all steps, and warn where it is far above the limit.

    AdamW divides by the size of the gradients, so clipping each of them alike changes little; but where the limit is a
    tenth of the usual norm, all batches weigh alike, and --clip no longer tells bad ones from good ones.
    """
    norms, clip = history.column("grad_norm"), history.settings.get("clip")
    warmup = int(history.settings.get("warmup") or 0)
    norms = norms[warmup:] if len(norms) > 2 * warmup else norms
    if not clip or len(norms) < ENOUGH:
        return
    share, middle = float((norms > clip).mean()), float(np.median(norms))
    if share > ALWAYS:
        yield Finding(
            "warning" if middle > 10 * clip else "note",
            "always-clipped",
            f"the gradient is clipped in {share:.0%} of the steps: its norm is {middle:.3g} in the middle, the limit "
            f"{clip:g}",
            f"give --clip {2 * middle:.2g}, so that only unusual gradients are clipped",
            "grad_norm in metrics.jsonl",
        )


def vanished(history: History) -> Iterator[Finding]:
    """Find gradients that are nothing."""
    norms = history.column("grad_norm")
    middle = float(np.median(norms[len(norms) // 2 :])) if len(norms) else 1.0
    if middle < 1e-6:
        yield Finding(
            "error",
            "vanishing-gradients",
            f"the norm of the gradient is {middle:.1e} in the second half of the run: nothing is learned",
            "look for dead units and layers that are multiplied by 0: `minillm doctor` with the settings of the run",
            "grad_norm in metrics.jsonl",
        )


def slowing(history: History) -> Iterator[Finding]:
    """Compare the speed of the last quarter of the run with that of the first, by their medians."""
    speeds = history.column("tokens_per_s")
    if len(speeds) < ENOUGH:
        return
    quarter, times = len(speeds) // 4, history.column("seconds")
    first, last = float(np.median(speeds[2:quarter])), float(np.median(speeds[-quarter:]))
    short = len(times) > quarter and times[-1] - times[-quarter] < MOMENT
    if last < SLOWER * first and not short:
        yield Finding(
            "warning",
            "slowing-down",
            f"the run does {last:,.0f} tokens/s in its last quarter, after {first:,.0f} in its first: "
            f"{last / first:.0%}",
            "look what else runs on the machine, if it is hot, and if memory is full and swapped out",
            "tokens_per_s in metrics.jsonl, and `top`",
        )


CHECKS: tuple[Callable[[History], Iterator[Finding]], ...] = (
    *(unfinished, diverging, not_learning, plateau, overfitting, validation_gap, spikes, too_high, clipping, vanished),
    *(slowing, answers.preference, answers.grpo, answers.classes, watched.layers, reference.compared),
)
