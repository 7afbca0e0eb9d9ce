"""Gradient-check rows of the losses after pretraining (minillm/losses), which are made of several operations."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from minillm import losses
from minillm.study.cases.recipes import Case, Make, in_views, normal

LENGTHS = np.array([3, 1, 7]), np.array([2, 4, 1])  # tokens of the answers of three pairs


def log_probs(*shapes: tuple[int, ...]) -> Make:
    """Log-probabilities from -8 to -1."""
    return lambda rng: tuple(rng.uniform(-8, -1, shape) for shape in shapes)


def _sequence_log_probs() -> Iterator[Case]:
    targets = np.array([[-100, 2, 0, 4], [-100, -100, 1, -100], [-100] * 4])

    def answers(logits, temperature=1.0):
        return losses.sequence_log_probs(logits, targets, temperature)

    yield Case("sequence_log_probs", "three answers", answers, normal((3, 4, 5)))
    for temperature in (0.6, 1.3):
        at = lambda logits, t=temperature: answers(logits, t)  # noqa: E731
        yield Case("sequence_log_probs", f"temperature {temperature}", at, normal((3, 4, 5)))
    yield from in_views("sequence_log_probs", answers, normal((3, 4, 5)))


def _preference() -> Iterator[Case]:
    reference = np.array([-4.0, -2.5, -7.0]), np.array([-3.0, -6.5, -1.5])
    for loss in losses.PREFERENCE_LOSSES:
        smoothing = 0.2 if loss in ("conservative", "robust", "exo_pair") else 0.0

        def compute(chosen, rejected, loss=loss, smoothing=smoothing):
            pairs = losses.Pairs(chosen, rejected, *reference, *LENGTHS)
            return losses.preference_loss(pairs, loss, beta=0.3, label_smoothing=smoothing)

        yield Case("preference_loss", loss, compute, log_probs((3,), (3,)))
    answers = {"good and bad": (True, False, True), "all good": (True, True, True), "all bad": (False, False, False)}
    for name, desirable in answers.items():
        for z in (0.0, 0.4):

            def kto(r, desirable=desirable, z=z):
                return losses.kto_loss(r, np.array(desirable), z, 0.3, 1.5, 0.7)

            yield Case("kto_loss", f"{name}, z = {z}", kto, normal((3,)))


def _reward() -> Iterator[Case]:
    def compute(chosen, rejected):
        return losses.bradley_terry_loss(chosen, rejected, np.array([0.5, 0.0, 2.0]), centering=0.1)

    yield Case("bradley_terry_loss", "margin, centred", compute, normal((3,), (3,)))
    yield Case("bradley_terry_loss", "plain", lambda w, l: losses.bradley_terry_loss(w, l), normal((3,), (3,)))  # noqa: E741


def _grpo() -> Iterator[Case]:
    counted = np.arange(4) < np.array([[4], [1], [0]])
    advantages = np.array([1.5, -0.7, 0.3])
    (now,) = log_probs((3, 4))(np.random.default_rng(3))
    change = np.array([[0.5, -0.5, 0.1, -0.1], [0.5, -0.5, 0.1, -0.1], [0.0] * 4])  # ratios on both sides of the limits
    settings: dict = dict(max_length=5, beta=0.1, reference_log_probs=now + 0.3)

    for average in losses.GRPO_AVERAGES:

        def compute(x, average=average):
            log_probs = now.astype(x.dtype) + 0.01 * x
            return losses.grpo_loss(log_probs, now + change, advantages, counted, average=average, **settings)

        yield Case("grpo_loss", average, compute, normal((3, 4)))
    for name, far in {"near": 0.0, "likelier than the reference": 3.0, "less likely": -3.0}.items():
        yield Case("k3_divergence", name, lambda x, far=far: losses.k3_divergence(x, now - far), normal((3, 4)))
    yield from in_views("k3_divergence", lambda x: losses.k3_divergence(x, now), normal((3, 4)))


CASES: tuple[Case, ...] = (*_sequence_log_probs(), *_preference(), *_reward(), *_grpo())
