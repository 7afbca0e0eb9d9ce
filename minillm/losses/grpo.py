"""GRPO: reinforcement learning that compares several answers to one prompt with each other.

For each prompt, G answers are sampled and scored. An answer's advantage says by how many standard deviations its
reward is above the mean of its group, and every token of the answer has it:

    A = (R - mean of the group) / (std of the group + eps)

Where all rewards of a group are equal, nothing can be learned from it: A is exactly 0. A reward of NaN says that an
answer could not be scored; it counts in no mean, and its A is 0.

With the ratio rho_t = p(token)/p_old(token), by the policy and by the policy that sampled the answer:

    loss_t = -min(rho_t A, clip(rho_t, 1 - eps_low, 1 + eps_high) A) + beta (e^(q_t) - q_t - 1)

where q_t = log p_ref(token) - log p(token), by a frozen reference model.

The clip takes away the gradient of tokens that have already become likelier (A > 0) or less likely (A < 0) than the
limit allows. The second term estimates the distance KL(policy || reference), is never negative, and is added token by
token.

Right after sampling rho = 1 everywhere, and the loss is -mean of A, which is near 0 although its gradient is not: the
derivative of loss_t by log p_t is then -A.

How the losses of the tokens become that of a batch ("averages", with the weight of a token in the sum, and by what the
sum is divided):

    grpo      mean over answers of the mean over their tokens: 1/(tokens of its answer); answers. A token of a long
              answer counts less.
    bnpo      mean over the tokens that are given: 1; their number
    dapo      mean over the tokens of the whole batch, of all micro-batches and ranks: 1; their number
    dr_grpo   1; answers times the longest length that is allowed, so that no length is favoured

Sources: Shao et al. 2024 (arXiv:2402.03300), equations 3 and 4; DAPO, Yu et al. 2025 (arXiv:2503.14476);
Dr. GRPO, Liu et al. 2025 (arXiv:2503.20783); the estimator of KL: Schulman 2020, "Approximating KL divergence", k3.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minillm import ops
from minillm.autograd import Tensor
from minillm.backend import Array
from minillm.errors import InputError, ShapeError, check_shapes, did_you_mean
from minillm.losses.log_probs import constant_beside

GRPO_AVERAGES = ("grpo", "bnpo", "dapo", "dr_grpo")
SCALES = ("group", "batch", "none")
STDS = ("sample", "population")


def group_advantages(rewards: Any, scale: str = "group", std: str = "sample", eps: float = 1e-4) -> Array:
    """The advantage of each answer of each group.

    scale: divide by the standard deviation of the "group", or of the whole "batch", or not at all, "none" (Dr. GRPO).
    std: "sample" divides the squares by n - 1 (as TRL and torch.std do), "population" by n (as numpy.std does). For
        the rewards 1, 0, 0, 0 these are 0.5 and 0.4330.
    Shapes: rewards (N, G), of N prompts with G answers each; result (N, G), float64.
    Raises: ShapeError; InputError for groups of one answer, which has nothing to be compared with.
    """
    rewards = np.asarray(rewards, np.float64)
    for name, value, known in (("scale", scale, SCALES), ("std", std, STDS)):
        if value not in known:
            raise InputError(f"group_advantages: {name} is {value!r}{did_you_mean(value, known)}")
    if rewards.ndim != 2:
        raise ShapeError(f"group_advantages: rewards have shape {rewards.shape}; give (N, G), a row for each prompt")
    if rewards.shape[1] < 2:
        raise InputError(
            f"group_advantages: groups have {rewards.shape[1]} answer; give 2 or more for each prompt, because an "
            "answer is compared with the others"
        )
    if np.isinf(rewards).any():
        raise InputError("group_advantages: a reward is infinite; give numbers, and NaN for what could not be scored")
    scored = ~np.isnan(rewards)  # (N, G)
    learnable = scored & ~equal_rewards(rewards)[:, None]  # (N, G)
    above = np.where(learnable, rewards - mean_of_scored(rewards), 0)  # (N, G), exactly 0 where all are equal
    if scale == "none":
        return above
    return above / (std_of_scored(rewards if scale == "group" else rewards.reshape(1, -1), std) + eps)


def mean_of_scored(rewards: Array) -> Array:
    """The mean of each row without its NaNs: (N, G) to (N, 1)."""
    scored = ~np.isnan(rewards)  # (N, G)
    return np.where(scored, rewards, 0).sum(1, keepdims=True) / np.maximum(scored.sum(1, keepdims=True), 1)


def std_of_scored(rewards: Array, std: str) -> Array:
    """The standard deviation of each row without its NaNs: (N, G) to (N, 1); 0 for fewer than two numbers."""
    scored = ~np.isnan(rewards)  # (N, G)
    squares = np.where(scored, rewards - mean_of_scored(rewards), 0) ** 2  # (N, G)
    divisor = scored.sum(1, keepdims=True) - (std == "sample")  # (N, 1)
    return np.sqrt(squares.sum(1, keepdims=True) / np.maximum(divisor, 1))


def equal_rewards(rewards: Array) -> Array:
    """True for groups from which nothing can be learned: (N, G) to (N,); all scored rewards are equal, or none is."""
    scored = ~np.isnan(rewards)  # (N, G)
    highest, lowest = np.where(scored, rewards, -np.inf).max(1), np.where(scored, rewards, np.inf).min(1)
    return highest <= lowest


def clipped_surrogate(
    log_probs: Tensor, old_log_probs: Any, advantages: Any, eps_low: float = 0.2, eps_high: float = 0.2
) -> Tensor:
    """-min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A) of each token.

    Shapes: log_probs and old_log_probs (B, T); advantages (B,); result (B, T). DAPO's eps_high is 0.28.
    Raises: ShapeError; InputError for limits that are not 0 or more, or an eps_low above 1.
    """
    if not (0 <= eps_low <= 1 and eps_high >= 0):
        raise InputError(f"clipped_surrogate: the limits are {eps_low} and {eps_high}; give 0.2 and 0.2, for example")
    check_shapes(
        "clipped_surrogate",
        log_probs=("B T", log_probs),
        old_log_probs=("B T", old_log_probs),
        advantages=("B", advantages),
    )
    ratio = ops.exp(log_probs - constant_beside(old_log_probs, log_probs))  # (B, T)
    A = constant_beside(advantages, log_probs)[:, None]  # (B, 1)
    return -ops.minimum(ratio * A, ops.clip(ratio, 1 - eps_low, 1 + eps_high) * A)


def k3_divergence(log_probs: Tensor, reference_log_probs: Any) -> Tensor:
    """e^q - q - 1 of each token with q = log p_ref - log p, an estimate of KL(policy || reference).

    Shapes: both, and the result (B, T). It is 0 where both are equal, and its derivative by log p is 1 - e^q.
    """
    check_shapes("k3_divergence", log_probs=("B T", log_probs), reference_log_probs=("B T", reference_log_probs))
    q = -(log_probs - constant_beside(reference_log_probs, log_probs))  # (B, T)
    return ops.expm1(q) - q


def grpo_weights(counted: Array, average: str = "dapo") -> Array:
    """The weight of each token's loss in the sum; see `grpo_count` for the divisor.

    Shapes: counted (B, T), truth values: the tokens of answers, their end token included; result (B, T), float64.
    """
    check_average(average)
    weights = counted.astype(np.float64)
    return weights / np.maximum(weights.sum(1, keepdims=True), 1) if average == "grpo" else weights


def grpo_count(counted: Array, average: str = "dapo", max_length: int | None = None) -> float:
    """By what the sum of the weighted losses is divided: the number of answers, or tokens, or places for tokens.

    Shapes: counted (B, T), for the whole batch. max_length: the most tokens that an answer may have, for dr_grpo.
    """
    check_average(average)
    if average == "grpo":
        return float(len(counted))
    if average == "dr_grpo":
        if max_length is None:
            raise InputError("grpo_count: dr_grpo divides by the longest length; give max_length")
        return float(len(counted) * max_length)
    return max(float(counted.sum()), 1.0)


def check_average(average: str) -> None:
    """Raise InputError for a name that is not in GRPO_AVERAGES."""
    if average not in GRPO_AVERAGES:
        raise InputError(f"grpo_loss: average is {average!r}{did_you_mean(average, GRPO_AVERAGES)}")


def grpo_loss(
    log_probs: Tensor,
    old_log_probs: Any,
    advantages: Any,
    counted: Array,
    *,
    average: str = "dapo",
    max_length: int | None = None,
    eps_low: float = 0.2,
    eps_high: float = 0.2,
    beta: float = 0.0,
    reference_log_probs: Any = None,
) -> Tensor:
    """The loss of a batch of answers; see the top of the file.

    Shapes: log_probs, old_log_probs, reference_log_probs and counted (B, T); advantages (B,); result (). The gradient
        goes to log_probs alone.
    Raises: ShapeError, InputError.
    """
    loss = clipped_surrogate(log_probs, old_log_probs, advantages, eps_low, eps_high)  # (B, T)
    if beta:
        if reference_log_probs is None:
            raise InputError(f"grpo_loss: beta is {beta}, but there are no reference_log_probs; give them, or beta=0")
        loss = loss + beta * k3_divergence(log_probs, reference_log_probs)
    weights = constant_beside(grpo_weights(counted, average), log_probs)  # (B, T)
    return (loss * weights).sum() / grpo_count(counted, average, max_length)
