"""The loss of DPO: prefer one answer to another, relative to a reference.

For each of B pairs there are four log-probabilities: of the chosen and the rejected answer, by the model in training
and by a frozen reference. With the sigmoid s,

    d    = (chosen - reference_chosen) - (rejected - reference_rejected)
    loss = mean over the pairs of -log s(beta d)

Write the loss and its gradients with respect to chosen and rejected. beta d may be as far from 0 as 1000, and nothing
must overflow.
"""

from __future__ import annotations

import numpy as np

from minillm.autograd import Tensor
from minillm.exercises.exercise import Exercise
from minillm.losses.preference import Pairs, PreferenceSettings, sigmoid


def dpo(chosen, rejected, reference_chosen, reference_rejected, beta):
    """Return loss, a float, dchosen (B,) and drejected (B,); the four log-probabilities are (B,), beta is a number."""
    raise NotImplementedError("replace this line")


def right(chosen, rejected, reference_chosen, reference_rejected, beta):
    better, worse = (Tensor(x.copy(), requires_grad=True) for x in (chosen, rejected))
    loss = sigmoid(Pairs(better, worse, reference_chosen, reference_rejected), PreferenceSettings(beta=beta)).mean()
    loss.backward()
    return loss.item(), better.grad, worse.grad


def cases(rng):
    for B, beta, size in ((1, 0.1, 5), (4, 0.3, 5), (3, 2.0, 2)):
        four = dict(zip(NAMES, rng.normal(-10, size, size=(4, B)), strict=True))
        yield dict(**four, beta=beta)
    far = np.array([[-900.0, -20.0, -30.0], [-10.0, -880.0, -31.0]])
    yield dict(zip(NAMES, [*far, *(0.01 * far)], strict=True), beta=1.5)


NAMES = ("chosen", "rejected", "reference_chosen", "reference_rejected")
EXERCISE = Exercise(
    starter=dpo,
    returns="loss dchosen drejected",
    right=right,
    cases=cases,
    hints=(
        "Let z = beta d. -log s(z) is log(1 + e^-z); np.logaddexp computes it without an overflow.",
        "The slope of -log s(z) by z is s(z) - 1, which is -s(-z). Then come the slopes of z by the two answers.",
        "An answer and its rejected partner act on d with opposite signs. The mean gives each pair a share.",
        "The exponential of a large number overflows, but that of a very negative one is 0: choose by the sign of z.",
    ),
    read="minillm/losses/preference.py",
)


def parts(d, beta, dz=None):
    """The results for the differences d, with another slope dz where one is given."""
    z = beta * d
    share = (-1 / (1 + np.exp(z)) if dz is None else dz(z)) * beta / len(d)
    return float(np.logaddexp(0, -z).mean()), share, -share


def difference(chosen, rejected, reference_chosen, reference_rejected):
    return (chosen - reference_chosen) - (rejected - reference_rejected)


@EXERCISE.mistake("The reference is missing: d compares how much more likely each answer has become.")
def without_the_reference(chosen, rejected, reference_chosen, reference_rejected, beta):
    return parts(chosen - rejected, beta)


@EXERCISE.mistake("The reference is added where it should be subtracted.")
def reference_added(chosen, rejected, reference_chosen, reference_rejected, beta):
    return parts(chosen + reference_chosen - rejected - reference_rejected, beta)


@EXERCISE.mistake("The signs inside d are wrong: the reference's part of the rejected answer comes with a plus.")
def reference_of_the_rejected_subtracted(chosen, rejected, reference_chosen, reference_rejected, beta):
    return parts(chosen - reference_chosen - rejected - reference_rejected, beta)


@EXERCISE.mistake("The answers are exchanged: the loss falls when the rejected answer becomes likelier.")
def answers_exchanged(chosen, rejected, reference_chosen, reference_rejected, beta):
    loss, dchosen, drejected = parts(-difference(chosen, rejected, reference_chosen, reference_rejected), beta)
    return loss, drejected, dchosen


@EXERCISE.mistake("beta stands before the loss; it belongs inside the sigmoid.")
def beta_outside(chosen, rejected, reference_chosen, reference_rejected, beta):
    loss, dchosen, drejected = parts(difference(chosen, rejected, reference_chosen, reference_rejected), 1.0)
    return beta * loss, beta * dchosen, beta * drejected


@EXERCISE.mistake("beta is missing.")
def beta_forgotten(chosen, rejected, reference_chosen, reference_rejected, beta):
    return parts(difference(chosen, rejected, reference_chosen, reference_rejected), 1.0)


@EXERCISE.mistake("The loss is summed over the pairs; their mean is asked for.")
def sum_over_pairs(chosen, rejected, reference_chosen, reference_rejected, beta):
    found = parts(difference(chosen, rejected, reference_chosen, reference_rejected), beta)
    return tuple(len(chosen) * one for one in found)


@EXERCISE.mistake("The gradients lack the factor beta, the slope of beta d by d.")
def gradient_without_beta(chosen, rejected, reference_chosen, reference_rejected, beta):
    d = difference(chosen, rejected, reference_chosen, reference_rejected)
    return parts(d, beta, lambda z: -1 / (1 + np.exp(z)) / beta)


@EXERCISE.mistake("The gradients are those of the sum; each pair has a share of 1/B in the mean.")
def gradient_not_divided(chosen, rejected, reference_chosen, reference_rejected, beta):
    d = difference(chosen, rejected, reference_chosen, reference_rejected)
    return parts(d, beta, lambda z: -len(z) / (1 + np.exp(z)))


@EXERCISE.mistake(
    "The gradients are largest where the answers are ordered well already: the slope is s(z) - 1, not -s(z)."
)
def slope_at_the_other_side(chosen, rejected, reference_chosen, reference_rejected, beta):
    d = difference(chosen, rejected, reference_chosen, reference_rejected)
    return parts(d, beta, lambda z: -1 / (1 + np.exp(-z)))


@EXERCISE.mistake("drejected has the sign of dchosen; the rejected answer enters d with a minus.")
def signs_equal(chosen, rejected, reference_chosen, reference_rejected, beta):
    loss, dchosen, _ = right(chosen, rejected, reference_chosen, reference_rejected, beta)
    return loss, dchosen, dchosen


@EXERCISE.mistake("The sigmoid is rounded to 0 for a large negative number, and its logarithm is -inf.")
def logarithm_of_zero(chosen, rejected, reference_chosen, reference_rejected, beta):
    d = difference(chosen, rejected, reference_chosen, reference_rejected)
    return -float(np.log(1 / (1 + np.exp(-beta * d))).mean()), *parts(d, beta)[1:]
