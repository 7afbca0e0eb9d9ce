"""The loss before the first step: is it what a model of this objective must begin with?

A model that knows nothing gives all V classes equal probabilities, and has the loss ln V. First weights are random, so
logits spread by some s around their mean, and targets that have nothing to do with them meet, on average,

    logsumexp(z) - mean(z)  =  ln V + s^2/2      (for normal z),

which is what `Entropy.random` measures on the logits themselves. The mean over N targets differs from it by chance: its
standard deviation is s sqrt(sum of p^2) with the shares p of the classes among the targets, because the logits of one
class are nearly the same at all positions of a new model. Four of these are allowed, and 2 % of ln V.

A loss below the entropy of the classes of the targets is suspicious; down to it, an output bias that begins at the
logarithms of their frequencies may bring it.

Losses on pairs of answers begin at a number of their own, since policy and reference are equal then; see
losses/preference.py, which has it with each loss. GRPO's is minus the mean of the weighted advantages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from minillm.autograd import Tensor
from minillm.losses import WITHOUT_REFERENCE, Pairs, PreferenceSettings, grpo_weights, kto_loss, preference_loss
from minillm.study.doctor.case import Case, Entropy
from minillm.study.doctor.finding import Finding
from minillm.training.tasks.grpo import GRPOTask, learned_from
from minillm.training.tasks.preference import PreferenceTask
from minillm.training.tasks.reward import RewardTask

WIDE = 2.0  # nats above ln V that the spread of the logits may cost: then s = 2
LATE = 0.5  # nats above a uniform guess from which on a trained model is worse than none


def initial_loss(case: Case) -> Iterator[Finding]:
    """Compare the loss of each term with what it must be before training."""
    if isinstance(case.task, PreferenceTask):
        yield from _preference(case, case.task)
    elif isinstance(case.task, RewardTask):
        yield from _reward(case)
    elif isinstance(case.task, GRPOTask):
        yield from _grpo(case, case.task)
    else:
        for name, entropies in _of_terms(case).items():
            yield from _of_classes(case, name, entropies)


def _of_terms(case: Case) -> dict[str, list[Entropy]]:
    """The cross-entropies of each term: one each, or all of a single term, such as an answer's start and end."""
    step = case.step
    entropies = [one for one in step.entropies if one.number]
    if len(step.terms) == len(entropies):
        return {name: [one] for name, one in zip(step.terms, entropies, strict=True)}
    return {next(iter(step.terms)): entropies} if len(step.terms) == 1 and entropies else {}


def _of_classes(case: Case, name: str, entropies: list[Entropy]) -> Iterator[Finding]:
    found, mean = case.step.terms[name], mean_of(entropies)
    smoothing = getattr(case.task, "smoothing", 0.0)
    own = (1 - smoothing) * mean.loss + smoothing * mean.random
    if abs(found - own) > 0.01 * max(abs(own), 1e-3):
        yield Finding(
            "error",
            "loss-scale",
            f"the term {name!r} of the loss is {found:.4g}, but the mean over its {mean.number:,} targets is "
            f"{own:.4g}, a factor of {found / own if own else math.inf:.4g}",
            "divide the sum of the losses by the number of targets that count, once",
            "python: task.counts(batch) beside the number of targets that are not -100",
        )
    else:
        yield from judged(name, mean, case.trained)


def mean_of(entropies: list[Entropy]) -> Entropy:
    """Several cross-entropies as one: the means of their numbers, and all targets together."""
    fields = ("loss", "random", "uniform", "spread", "concentration", "entropy")
    means = [float(np.mean([getattr(one, field) for one in entropies])) for field in fields]
    targets = np.concatenate([one.targets.reshape(-1) for one in entropies])
    return Entropy(targets, sum(one.number for one in entropies), *means)


def judged(name: str, mean: Entropy, trained: bool) -> Iterator[Finding]:
    """Compare the loss of a term with that of a model that knows nothing, or, of a trained one, of a uniform guess."""
    tolerance = 4 * mean.spread * math.sqrt(mean.concentration) + 0.02 * mean.uniform
    classes = math.exp(mean.uniform)
    see = "the loss of step 1 in metrics.jsonl, or `minillm train ... --steps 1`"
    if trained:
        if mean.loss > mean.uniform + LATE + tolerance:
            yield Finding(
                "error",
                "initial-loss",
                f"the trained model has the loss {mean.loss:.2f} in {name!r}, but a uniform guess over {classes:,.0f} "
                f"classes has {mean.uniform:.2f}",
                "give the tokenizer that the model was trained with, and the weights that belong to its configuration",
                see,
            )
    elif mean.loss < min(mean.random, mean.entropy) - tolerance:
        yield Finding(
            "error",
            "initial-loss",
            f"the loss begins at {mean.loss:.2f} in {name!r}, but a model that knows nothing has {mean.random:.2f} (ln "
            f"{classes:,.0f} = {mean.uniform:.2f}): it sees what it should predict",
            "check that the targets are shifted by one, and that the attention is masked",
            see,
        )
    elif mean.loss > mean.random + tolerance:
        yield Finding(
            "error",
            "initial-loss",
            f"the loss begins at {mean.loss:.2f} in {name!r}, but targets that have nothing to do with the logits give "
            f"{mean.random:.2f} (ln {classes:,.0f} = {mean.uniform:.2f}): the first weights favour wrong classes",
            "check that the output layer has the vocabulary of the tokenizer, and its bias begins at 0",
            see,
        )


def random_evaluation(case: Case) -> Iterator[Finding]:
    """Find a model that draws something at random in evaluation mode: every comparison of two losses would be wrong."""
    again = case.loss()
    if abs(again - case.step.loss) <= 1e-5 * max(1.0, abs(case.step.loss)):
        return
    where = f": a dropout of {case.step.dropped[0] or 'the model'} runs" if case.step.dropped else ""
    yield Finding(
        "error",
        "random-evaluation",
        f"in evaluation mode one batch has the loss {case.step.loss:.4f}, and then {again:.4f}{where}; validation "
        "losses and samples are those of a model that is damaged at random",
        "let each dropout follow the mode: ops.dropout(x, p, self.training), or a Dropout module",
        "python: model.eval(), then model.loss(...).item() twice",
    )


def logit_spread(case: Case) -> Iterator[Finding]:
    """Warn if the logits of a new model are so far apart that the first steps only bring them together."""
    if case.trained:
        return
    for one in case.step.entropies:
        excess = one.random - one.uniform
        if one.number and excess > WIDE:
            yield Finding(
                "warning",
                "logit-spread",
                f"the logits of the new model have a standard deviation of {one.spread:.1f} in each row, which costs "
                f"{excess:.2f} nats above ln {math.exp(one.uniform):,.0f} = {one.uniform:.2f}",
                "make the first weights of the output layer smaller: a standard deviation of 1/sqrt(C), or of 0.02",
                "the first steps of loss.png: they fall steeply and teach nothing but this",
            )
            return
        if one.number and one.spread == 0:
            yield Finding(
                "warning",
                "logit-spread",
                "all logits of a row are equal: the output layer is zero, so that no gradient reaches the layers below",
                "draw the first weights of the output layer, unless they are zero on purpose",
                "python: model.output_weight.data.std()",
            )
            return


# --- losses on answers ---------------------------------------------------------------------------------------------


def _preference(case: Case, task: PreferenceTask) -> Iterator[Finding]:
    options = task.options
    if options.loss in WITHOUT_REFERENCE:
        return
    wanted, found = start_of(case), case.step.loss
    if abs(found - wanted) > 1e-3 * max(1.0, abs(wanted)):
        name = "ln 2 = 0.6931" if options.loss == "sigmoid" else f"{wanted:.4f}"
        yield Finding(
            "error",
            "initial-loss",
            f"the loss of {options.loss} begins at {found:.4f} instead of {name}: policy and reference differ before "
            "the first step",
            "load both from one file in one dtype, without dropout, and compute the reference before training",
            "rewards/margins at step 1 in metrics.jsonl: all must be 0",
        )


def start_of(case: Case) -> float:
    """The loss of a preference task where policy and reference are equal, by its own formula."""
    options, lengths = case.task.options, (case.rows["targets"] != -100).sum(-1).astype(np.float64)  # (B, 2)
    zeros = np.zeros(len(lengths))
    if options.loss == "kto":
        weights = dict(desirable_weight=options.desirable_weight, undesirable_weight=options.undesirable_weight)
        each = [kto_loss(Tensor(zeros), np.full(len(zeros), good), 0.0, options.beta, **weights) for good in (1.0, 0.0)]
        return float(np.mean([one.data.mean() for one in each]))
    pairs = Pairs(Tensor(zeros), Tensor(zeros), zeros, zeros, lengths[:, 0], lengths[:, 1])
    settings = PreferenceSettings(options.beta, options.label_smoothing, options.gamma)
    given = dict(beta=settings.beta, label_smoothing=settings.label_smoothing, gamma=settings.gamma)
    return float(preference_loss(pairs, options.loss, **given).data.mean())


def _reward(case: Case) -> Iterator[Finding]:
    """The mean of -log sigmoid(d) is ln 2 + d^2/8 for small differences d of either sign: 1 is far from it."""
    found = case.step.loss
    if not case.trained and not 0.3 < found < 1.2:
        yield Finding(
            "error",
            "initial-loss",
            f"the loss begins at {found:.3f}, but a head that knows nothing has ln 2 = 0.693 for each pair",
            "check that chosen and rejected answers differ by nothing but their text, and that the head begins small",
            "python: the rewards of a batch, which should be near 0",
        )


def _grpo(case: Case, task: GRPOTask) -> Iterator[Finding]:
    """The loss, where every ratio is 1, is -sum(w A) / count, which is near 0 though its gradient is not."""
    rows: dict[str, Any] = case.rows
    weights = grpo_weights(learned_from(rows), task.options.average)  # (B, T)
    wanted = -float((weights * rows["advantages"][:, None]).sum()) / task.counts(rows)["loss"]
    found, largest = case.step.loss, float(np.abs(rows["advantages"]).max(initial=0.0))
    if abs(found - wanted) > 1e-3 * max(1.0, largest):
        yield Finding(
            "error",
            "initial-loss",
            f"the loss of answers sampled just now is {found:.4f} instead of {wanted:.4f}: they are scored by other "
            "probabilities than they were drawn from",
            "sample and score with one temperature, one dtype, no dropout, and no top-k or top-p",
            "ratio_error in metrics.jsonl, which is 0 up to rounding",
        )
    if largest == 0:
        yield Finding(
            "warning",
            "equal-rewards",
            f"all {len(rows['ids'])} answers of the first batch have the rewards of their groups, so nothing can be "
            "learned from it",
            "take prompts that the model answers now and then, a larger group, or a reward with more steps",
            "frac_reward_zero_std in metrics.jsonl",
        )
    else:
        yield Finding(
            "note",
            "loss-near-zero",
            f"the loss begins at {found:.4f}, which is right: advantages of a group add up to 0, and the gradient is "
            "not 0",
            "look at the reward instead of the loss",
            "reward and val_reward in metrics.jsonl",
        )
