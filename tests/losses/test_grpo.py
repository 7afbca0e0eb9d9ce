"""GRPO: advantages by hand in both conventions, the clipped loss, and how tokens become a batch."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minillm import Tensor
from minillm.errors import InputError, ShapeError
from minillm.losses import GRPO_AVERAGES, clipped_surrogate, group_advantages, grpo_loss, k3_divergence
from minillm.testing import check_gradients

NAN = math.nan


def test_advantages_by_hand_in_both_conventions() -> None:
    sample = group_advantages([[1, 0, 0, 0]])
    np.testing.assert_allclose(sample, [[0.75 / 0.5001, *[-0.25 / 0.5001] * 3]], rtol=1e-12)
    population = group_advantages([[1, 0, 0, 0]], std="population", eps=1e-8)
    std = math.sqrt(3) / 4  # 0.4330
    np.testing.assert_allclose(population, [[0.75 / (std + 1e-8), *[-0.25 / (std + 1e-8)] * 3]], rtol=1e-12)
    np.testing.assert_array_equal(group_advantages([[1, 0, 0, 0]], "none"), [[0.75, -0.25, -0.25, -0.25]])
    over_all = group_advantages([[1, 0], [5, 4]], "batch", eps=0)
    np.testing.assert_allclose(over_all, np.array([[0.5, -0.5]] * 2) / np.std([1, 0, 5, 4], ddof=1), rtol=1e-12)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("std", ["sample", "population"])
def test_equal_rewards_give_exactly_zero(scale: str, std: str) -> None:
    """Also where their mean is not one of them in floating point, and where some could not be scored."""
    rewards = [[1, 1, 1], [0.1, 0.1, 0.1], [NAN, NAN, 1], [0.7, NAN, 0.7], [NAN] * 3, [1e-3, 0, 0]]
    advantages = group_advantages(rewards, scale, std)
    assert not advantages[:5].any()
    assert np.isfinite(advantages).all()
    assert advantages[5, 0] > 0


def test_what_could_not_be_scored_changes_nothing_for_the_others() -> None:
    with_gap = group_advantages([[1, NAN, 0, 3]])
    np.testing.assert_array_equal(with_gap[0, [0, 2, 3]], group_advantages([[1, 0, 3]])[0])
    assert with_gap[0, 1] == 0


def test_groups_are_not_mixed() -> None:
    advantages = group_advantages([[0, 1], [10, 11]])
    np.testing.assert_array_equal(advantages[0], advantages[1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(rewards=[[1.0]]), InputError, "groups have 1 answer; give 2 or more"),
        (dict(rewards=[1.0, 2.0]), ShapeError, r"rewards have shape \(2,\); give \(N, G\)"),
        (dict(rewards=[[1.0, math.inf]]), InputError, "a reward is infinite"),
        (dict(rewards=[[1.0, 2.0]], scale="groups"), InputError, "scale is 'groups'.*group"),
        (dict(rewards=[[1.0, 2.0]], std="popular"), InputError, "std is 'popular'.*population"),
    ],
)
def test_rewards_that_cannot_be_used_are_refused(arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=f"group_advantages: {message}"):
        group_advantages(**arguments)


def drawn(rng: np.random.Generator) -> dict:
    """Four answers of up to 6 tokens, some of whose ratios are outside of the limits."""
    log_probs = -3 * rng.random((4, 6))
    return dict(
        log_probs=log_probs,
        old_log_probs=log_probs + 0.4 * rng.normal(size=(4, 6)),
        advantages=np.array([1.5, -0.5, -0.5, 2.0]),
        counted=np.arange(6) < np.array([[6], [1], [3], [0]]),
        reference_log_probs=log_probs + 0.4 * rng.normal(size=(4, 6)),
    )


@pytest.mark.parametrize("average", GRPO_AVERAGES)
def test_the_loss_token_by_token(average: str, rng) -> None:
    given = drawn(rng)
    loss = grpo_loss(Tensor(given.pop("log_probs")), **given, average=average, max_length=7, eps_high=0.28, beta=0.04)
    log_probs = drawn(np.random.default_rng(1234))["log_probs"]
    total, answers = 0.0, []
    for b in range(4):
        losses = []
        for t in np.flatnonzero(given["counted"][b]):
            A, ratio = given["advantages"][b], math.exp(log_probs[b, t] - given["old_log_probs"][b, t])
            q = given["reference_log_probs"][b, t] - log_probs[b, t]
            losses.append(-min(ratio * A, min(max(ratio, 0.8), 1.28) * A) + 0.04 * (math.exp(q) - q - 1))
        total += sum(losses)
        answers.append(np.mean(losses) if losses else 0)
    expected = {"grpo": np.mean(answers), "bnpo": total / 10, "dapo": total / 10, "dr_grpo": total / 28}[average]
    assert loss.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("average", GRPO_AVERAGES)
def test_gradients(average: str, rng) -> None:
    given = drawn(rng)
    log_probs = given.pop("log_probs")
    check_gradients(lambda x: grpo_loss(x, **given, average=average, max_length=7, beta=0.04), log_probs)


def test_right_after_sampling_the_loss_is_near_zero_and_its_gradient_is_not() -> None:
    """The answers are equally long, so that their advantages, whose mean is 0, weigh the same."""
    log_probs = Tensor(np.full((4, 3), -1.0), requires_grad=True)
    advantages = group_advantages([[1, 0, 0, 0]])[0]
    loss = grpo_loss(log_probs, log_probs.data, advantages, np.ones((4, 3), bool))
    loss.backward()
    assert abs(loss.item()) < 1e-12
    np.testing.assert_allclose(log_probs.grad, np.repeat(-advantages[:, None] / 12, 3, 1), rtol=1e-9)


def test_a_token_beyond_the_limit_has_no_gradient() -> None:
    """Likelier although it was good, and less likely although it was bad; the other two ways keep their gradient."""
    log_probs = Tensor(np.log([[1.3, 0.7], [1.3, 0.7]]), requires_grad=True)
    clipped_surrogate(log_probs, np.zeros((2, 2)), np.array([1.0, -1.0])).sum().backward()
    np.testing.assert_allclose(log_probs.grad, [[0, -0.7], [1.3, 0]], atol=1e-12)


def test_the_divergence_is_zero_between_equals_and_never_negative(rng) -> None:
    log_probs = Tensor(rng.normal(size=(2, 3)), requires_grad=True)
    assert not k3_divergence(log_probs, log_probs.data).data.any()
    reference = rng.normal(size=(2, 3))
    divergence = k3_divergence(log_probs, reference)
    assert (divergence.data > 0).all()
    divergence.sum().backward()
    np.testing.assert_allclose(log_probs.grad, 1 - np.exp(reference - log_probs.data), rtol=1e-12)


def test_settings_that_cannot_be_used_are_refused(rng) -> None:
    given = drawn(rng)
    given["log_probs"] = Tensor(given["log_probs"])
    with pytest.raises(InputError, match=r"grpo_loss: average is 'dpo'.*dapo"):
        grpo_loss(**given, average="dpo")
    with pytest.raises(InputError, match="grpo_count: dr_grpo divides by the longest length; give max_length"):
        grpo_loss(**given, average="dr_grpo")
    with pytest.raises(InputError, match=r"clipped_surrogate: the limits are 0\.2 and -1"):
        grpo_loss(**given, eps_high=-1)
    with pytest.raises(InputError, match=r"grpo_loss: beta is 0\.1, but there are no reference_log_probs"):
        grpo_loss(**{**given, "reference_log_probs": None}, beta=0.1)
    with pytest.raises(ShapeError, match="clipped_surrogate: advantages has B=3, but log_probs has B=4"):
        grpo_loss(**{**given, "advantages": np.zeros(3)})
