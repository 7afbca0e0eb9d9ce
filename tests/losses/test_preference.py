"""The preference losses: where each begins, with which derivatives, what length does to it, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minillm import Tensor
from minillm.errors import InputError, ShapeError
from minillm.losses import PREFERENCE_LOSSES, Pairs, kto_loss, kto_reference_point, preference_loss
from minillm.losses.preference import WITHOUT_REFERENCE
from minillm.testing import check_gradients

LN2 = math.log(2)
BETA, E, TAU = 0.1, 0.2, 0.05
LENGTHS = np.array([4, 7]), np.array([3, 9])  # tokens of the chosen and rejected answers of two pairs
# Loss and derivatives by log p of both answers where policy and reference are equal, worked out by hand.
AT_START = {
    "sigmoid": (LN2, -BETA / 2, BETA / 2),
    "conservative": (LN2, -BETA * (1 - 2 * E) / 2, BETA * (1 - 2 * E) / 2),
    "robust": (LN2, -BETA / 2 / (1 - 2 * E), BETA / 2 / (1 - 2 * E)),
    "hinge": (1.0, -BETA, BETA),
    "ipo": (25.0, -1 / BETA / LENGTHS[0], 1 / BETA / LENGTHS[1]),
    "sigmoid_norm": (LN2, -BETA / 2 / LENGTHS[0], BETA / 2 / LENGTHS[1]),
    "exo_pair": (-LN2 - math.log(E * (1 - E)) / 2, -BETA / 4 * math.log(4), BETA / 4 * math.log(4)),
    "nca_pair": (2 * LN2, -BETA / 4, BETA / 4),
    "sppo_hard": (50.0, -1 / BETA, 1 / BETA),
    "apo_zero": (1.0, -BETA / 4, BETA / 4),
    "apo_down": (1.0, 0.0, BETA / 4),
    "discopop": (
        (1 + LN2) / 2,
        BETA * ((1 - LN2) / (4 * TAU) - 0.75),
        -BETA * ((1 - LN2) / (4 * TAU) - 0.75),
    ),
    "bco_pair": (2 * LN2, -BETA / 2, BETA / 2),
}


def test_every_loss_with_a_reference_has_a_hand_computed_start() -> None:
    assert {*AT_START, *WITHOUT_REFERENCE} == {*PREFERENCE_LOSSES}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("loss", AT_START)
def test_a_run_starts_at_the_stated_loss_and_derivatives(loss: str, dtype: type, rng) -> None:
    log_probs = [(-30 * rng.random(2)).astype(dtype) for _ in range(2)]
    chosen, rejected = (Tensor(x, requires_grad=True) for x in log_probs)
    losses = preference_loss(Pairs(chosen, rejected, *log_probs, *LENGTHS), loss, beta=BETA, label_smoothing=E, tau=TAU)
    losses.sum().backward()
    value, by_chosen, by_rejected = AT_START[loss]
    assert losses.dtype == dtype
    tolerance = 1e-6 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(losses.data, np.full(2, value), rtol=tolerance)
    np.testing.assert_allclose(chosen.grad, np.broadcast_to(by_chosen, 2), rtol=10 * tolerance, atol=1e-12)
    np.testing.assert_allclose(rejected.grad, np.broadcast_to(by_rejected, 2), rtol=10 * tolerance, atol=1e-12)


def drawn(rng: np.random.Generator, count: int = 5) -> Pairs:
    chosen, rejected, *reference = (-20 * rng.random(count) for _ in range(4))
    return Pairs(Tensor(chosen), Tensor(rejected), *reference, rng.integers(1, 9, count), rng.integers(1, 9, count))


@pytest.mark.parametrize("loss", PREFERENCE_LOSSES)
def test_gradients_are_differences_of_the_loss(loss: str, rng) -> None:
    pairs = drawn(rng)
    check_gradients(
        lambda chosen, rejected: preference_loss(
            Pairs(chosen, rejected, *pairs[2:]), loss, beta=0.3, label_smoothing=E
        ),
        pairs.chosen.data,
        pairs.rejected.data,
    )


@pytest.mark.parametrize("loss", PREFERENCE_LOSSES)
def test_only_losses_of_means_forget_the_length(loss: str, rng) -> None:
    """Every answer doubled, its tokens with equal log-probabilities again: means stay, sums double."""
    once = drawn(rng)
    twice = Pairs(*(2 * field for field in once))
    losses, doubled = (preference_loss(pairs, loss, label_smoothing=E).data for pairs in (once, twice))
    by_mean = loss in ("ipo", "sigmoid_norm", "simpo", "orpo")
    assert np.allclose(losses, doubled) == by_mean
    if loss == "sigmoid":  # the argument of the sigmoid doubles
        np.testing.assert_allclose(np.log(np.expm1(doubled)), 2 * np.log(np.expm1(losses)), rtol=1e-9)


@pytest.mark.parametrize("loss", {*PREFERENCE_LOSSES} - {"exo_pair"})
def test_no_loss_overflows(loss: str) -> None:
    """Answers of thousands of tokens, far from the reference, in float32."""
    far = np.array([-3e4, -1.0], np.float32)
    chosen, rejected = (Tensor(x, requires_grad=True) for x in (far, far[::-1].copy()))
    pairs = Pairs(chosen, rejected, far[::-1], far, np.array([50, 50]), np.array([50, 50]))
    if loss == "discopop":
        pytest.skip("its e^-x has no bound")
    losses = preference_loss(pairs, loss)
    losses.sum().backward()
    assert np.isfinite([losses.data, pairs.chosen.grad, pairs.rejected.grad]).all()


def test_certain_answers_have_finite_odds() -> None:
    certain = Tensor(np.zeros(1, np.float32), requires_grad=True)
    pairs = Pairs(
        certain, Tensor(np.full(1, -3, np.float32)), chosen_lengths=np.array([2]), rejected_lengths=np.array([2])
    )
    losses = preference_loss(pairs, "orpo")
    losses.sum().backward()
    assert np.isfinite([losses.data, certain.grad]).all()


def test_kto_by_hand(rng) -> None:
    r = np.array([0.0, 2.0, -1.0])
    good = np.array([True, True, False])
    losses = kto_loss(Tensor(r), good, 0.5, 0.1, 1.0, 2.0).data
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    expected = [1 - sigmoid(-0.05), 1 - sigmoid(0.15), 2 * (1 - sigmoid(0.15))]
    np.testing.assert_allclose(losses, expected, rtol=1e-12)
    check_gradients(lambda x: kto_loss(x, good, 0.5, 0.1, 1.0, 2.0), r)
    start = Tensor(np.zeros(2), requires_grad=True)
    at_start = kto_loss(start, np.array([True, False]), 0.0, 0.1, 3.0, 1.0)
    at_start.sum().backward()
    np.testing.assert_allclose(at_start.data, [1.5, 0.5])
    np.testing.assert_allclose(start.grad, [-3 * 0.1 / 4, 0.1 / 4])


def test_the_reference_point_is_a_mean_and_never_negative() -> None:
    assert kto_reference_point(np.array([1.0, 2.0])) == 1.5
    assert kto_reference_point(Tensor(np.array([-1.0, -2.0]))) == 0


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        ("sigmoids", {}, "preference_loss: there is no loss 'sigmoids'.*sigmoid"),
        ("sigmoid", {"beta": 0.0}, "preference_loss: beta is 0.0; give a number above 0"),
        ("robust", {"label_smoothing": 0.5}, "preference_loss: robust has label_smoothing 0.5; give a share below 0.5"),
        ("exo_pair", {}, "preference_loss: exo_pair has label_smoothing 0.0; give a share above 0"),
        ("sigmoid", {"label_smoothing": 1.5}, "preference_loss: label_smoothing is 1.5; give a share from 0 to 1"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(loss: str, settings: dict, message: str, rng) -> None:
    with pytest.raises(InputError, match=message):
        preference_loss(drawn(rng), loss, **settings)


def test_arrays_of_other_sizes_are_refused(rng) -> None:
    with pytest.raises(ShapeError, match="preference_loss: reference_rejected has B=2, but chosen has B=5"):
        preference_loss(drawn(rng)._replace(reference_rejected=np.zeros(2)))
    with pytest.raises(ShapeError, match="kto_loss: desirable has B=2, but log_ratios has B=3"):
        kto_loss(Tensor(np.zeros(3)), np.ones(2, bool), 0.0)
    with pytest.raises(InputError, match="kto_loss: beta is -1; give a number above 0"):
        kto_loss(Tensor(np.zeros(3)), np.ones(3, bool), 0.0, beta=-1)
