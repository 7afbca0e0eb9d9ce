"""The numbers of runs on answers beside their loss: rewards, margins, groups, lengths; and accuracies of classes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from minillm.study.doctor.finding import Finding
from minillm.study.doctor.history import History

DULL = 0.9  # share of groups with equal rewards
CUT = 0.9  # share of answers that did not end
APART = 0.01  # mean distance of the ratios from 1, right after sampling
DRIFT = 10.0  # nats of KL per token: the model writes something else
SURE = 3.0  # standard errors
ENOUGH = 20  # steps


def halves(values: np.ndarray) -> tuple[float, float, float]:
    """The means of the first and of the last third, and the standard error of their difference."""
    third = max(1, len(values) // 3)
    first, last = values[:third], values[-third:]
    return float(first.mean()), float(last.mean()), float(np.sqrt(first.var() / third + last.var() / third))


def preference(history: History) -> Iterator[Finding]:
    """Explain a falling log-probability of chosen answers; find margins that do not grow."""
    if history.settings.get("objective") != "preference":
        return
    margins, chosen = history.column("rewards/margins"), history.column("logps/chosen")
    if len(margins) < 3:
        return
    first, last, error = halves(margins)
    before, after, _ = halves(chosen)
    if after < before and last > first:
        yield Finding(
            "note",
            "chosen-falls",
            f"chosen answers became less likely (log p {before:.1f} to {after:.1f}) while the margin grew from "
            f"{first:.3f} to {last:.3f}, which is usual: the loss compares the two answers only",
            "nothing; nca_pair or a higher --beta keep the chosen answers likelier",
            "logps/chosen and rewards/margins in metrics.jsonl",
        )
    if len(margins) >= ENOUGH and last < min(0.0, first) - SURE * error:
        yield Finding(
            "error",
            "margin-falls",
            f"the margin between chosen and rejected answers has fallen from {first:.3f} to {last:.3f}: the model "
            "learns the worse answers",
            "check which field holds the better answer: chosen and rejected are the wrong way round",
            "rewards/margins in metrics.jsonl",
        )
    shares = [one["val_rewards/accuracies"] for one in history.validated if "val_rewards/accuracies" in one]
    if len(shares) >= 3 and len(margins) >= 2 * ENOUGH and last > first + SURE * error and shares[-1] < 0.5:
        yield Finding(
            "warning",
            "pairs-by-heart",
            f"the margin of the training pairs grows to {last:.2f}, but of the held-out pairs only {shares[-1]:.0%} "
            "are ordered rightly: the pairs are learned by heart",
            "give more pairs, fewer steps, or a higher --beta",
            "val_rewards/accuracies in metrics.jsonl",
        )


def grpo(history: History) -> Iterator[Finding]:
    """Find groups with nothing to learn, answers that never end, wrong ratios, rewards that fall."""
    if history.settings.get("objective") != "grpo":
        return
    columns = {
        name: history.column(name)
        for name in ("frac_reward_zero_std", "completions/clipped_ratio", "ratio_error", "reward", "kl")
    }
    late = {name: float(values[len(values) // 2 :].mean()) for name, values in columns.items() if len(values)}
    rewards = columns["reward"]
    first, last, error = halves(rewards) if len(rewards) else (0.0, 0.0, 0.0)
    held_out = [one["val_reward"] for one in history.validated if "val_reward" in one]
    learns = last > first + SURE * error or (len(held_out) > 1 and held_out[-1] > held_out[0] + 0.05)
    if late.get("ratio_error", 0.0) > APART:
        yield Finding(
            "error",
            "wrong-ratio",
            f"right after sampling, the ratios of probabilities are {late['ratio_error']:.3f} away from 1 on average: "
            "answers are scored by other probabilities than they were drawn from",
            "sample and score with one temperature, one dtype and no dropout",
            "ratio_error in metrics.jsonl",
        )
    if late.get("frac_reward_zero_std", 0.0) >= DULL and len(rewards) >= ENOUGH and last < 0.9 and not learns:
        yield Finding(
            "warning",
            "equal-rewards",
            f"in the second half of the run {late['frac_reward_zero_std']:.0%} of the groups had equal rewards (mean "
            f"{last:.2f}), from which nothing is learned",
            "take easier or harder prompts, a higher --temperature, or a larger --group-size",
            "frac_reward_zero_std in metrics.jsonl",
        )
    if late.get("completions/clipped_ratio", 0.0) >= CUT and len(rewards) >= ENOUGH and last < 0.9 and not learns:
        yield Finding(
            "warning",
            "answers-never-end",
            f"{late['completions/clipped_ratio']:.0%} of the answers do not end within answer_length tokens",
            "give a larger --answer-length, or a model that has learned to stop (`minillm finetune sft`)",
            "completions/clipped_ratio in metrics.jsonl",
        )
    if len(rewards) >= ENOUGH and last < first - SURE * error and error > 0:
        yield Finding(
            "warning",
            "reward-falls",
            f"the mean reward has fallen from {first:.3f} to {last:.3f}",
            "give a lower --lr, a --beta above 0, or a larger --group-size",
            "reward in metrics.jsonl",
        )
    if late.get("kl", 0.0) > DRIFT:
        yield Finding(
            "warning",
            "far-from-start",
            f"the model is {late['kl']:.1f} nats a token away from where it began: it has forgotten what it could",
            "give a lower --lr or a higher --beta",
            "kl in metrics.jsonl",
        )


def classes(history: History) -> Iterator[Finding]:
    """Find a classifier that has learned its texts by heart: right in training, no better than at first on others."""
    if history.settings.get("objective") != "classify" or len(history.validated) < 3:
        return
    shares = [one["val_accuracy"] for one in history.validated if "val_accuracy" in one]
    losses = history.stretches
    if shares and losses and losses[-1].loss < 0.1 and max(shares[1:]) <= shares[0] + 0.02 and shares[-1] < 0.9:
        yield Finding(
            "warning",
            "texts-by-heart",
            f"the training loss is {losses[-1].loss:.3f}, but {shares[-1]:.0%} of the held-out texts are right, after "
            f"{shares[0]:.0%} at the first validation: the texts are learned by heart",
            "begin with a pretrained encoder, give more texts, or more --dropout",
            "val_accuracy in metrics.jsonl",
        )
