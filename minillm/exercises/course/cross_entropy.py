"""Cross-entropy with ignored targets: the loss of a language model and its gradient.

Each row of logits (V,) belongs to a target, the id of the right token. The loss of a row is -log p[target], where p is
the softmax of the row. Rows whose target is -100 do not count. The loss is the mean over the rows that count, or 0 if
there are none. Logits may be as large as 1000, and the loss is a finite number all the same.
"""

from __future__ import annotations

import numpy as np

from minillm.exercises.exercise import Exercise
from minillm.ops.cross_entropy import cross_entropy_backward, cross_entropy_forward


def cross_entropy(logits, targets):
    """Return loss, a float, and dlogits (N, V), the gradient of the loss with respect to the logits.

    logits are (N, V); targets are (N,), integers from 0 to V - 1, or -100 where a row does not count.
    """
    raise NotImplementedError("replace this line")


def right(logits, targets):
    loss, saved = cross_entropy_forward(logits, targets, ignore_index=-100, label_smoothing=0.0, reduction="mean")
    return float(loss), cross_entropy_backward(1.0, saved)[0]


def cases(rng):
    yield dict(logits=rng.normal(size=(1, 3)), targets=np.array([2]))
    yield dict(logits=rng.normal(size=(4, 5)), targets=np.array([1, 0, 4, 4]))
    yield dict(logits=rng.normal(size=(4, 5)), targets=np.array([3, -100, 0, -100]))
    yield dict(logits=np.array([[1000.0, 990.0, -5.0], [-800.0, -810.0, -790.0]]), targets=np.array([2, 0]))
    yield dict(logits=rng.normal(size=(2, 4)), targets=np.array([-100, -100]))


EXERCISE = Exercise(
    starter=cross_entropy,
    returns="loss dlogits",
    right=right,
    cases=cases,
    hints=(
        "Subtract the largest logit of each row, and work with log p, not with the logarithm of p: p may be 0.",
        "The mask of the rows that count enters three times: in the sum, in the number it is divided by, in dlogits.",
        "For one row, the slope of -log p[t] by each logit is p, except at the target, where something is subtracted.",
        "An index of -100 is outside the row, and a negative index counts from the end: replace it before you index.",
    ),
    read="minillm/ops/cross_entropy.py",
)


def parts(logits, targets):
    """log p, the one-hot targets, and the mask (N, 1) of the rows that count."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return log_p, targets[:, None] == np.arange(logits.shape[-1]), (targets != -100)[:, None]


@EXERCISE.mistake("e^logit overflows for large logits; subtract the largest logit of the row first.")
def overflows(logits, targets):
    _, hot, counts = parts(logits, targets)
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    n = max(1, counts.sum())
    return -(np.where(hot, np.log(p), 0)).sum() / n, counts * (p - hot) / n


@EXERCISE.mistake("The logarithm of a probability that was rounded to 0 is -inf; compute log p without making p first.")
def logarithm_of_zero(logits, targets):
    log_p, hot, counts = parts(logits, targets)
    p = np.exp(log_p)
    n = max(1, counts.sum())
    return -np.where(hot, np.log(p), 0).sum() / n, counts * (p - hot) / n


@EXERCISE.mistake("The sum is divided by the number of all rows; divide by the number of those that count.")
def ignored_rows_counted(logits, targets):
    log_p, hot, counts = parts(logits, targets)
    n = len(targets)
    return -(log_p * hot).sum() / n, counts * (np.exp(log_p) - hot) / n


@EXERCISE.mistake("The loss is the sum over the rows; it should be their mean.")
def sum_in_place_of_mean(logits, targets):
    log_p, hot, counts = parts(logits, targets)
    return -(log_p * hot).sum(), counts * (np.exp(log_p) - hot)


@EXERCISE.mistake("An ignored row gets a gradient in dlogits. It does not move the loss, so its gradient is 0.")
def gradient_of_ignored_rows(logits, targets):
    log_p, hot, counts = parts(logits, targets)
    n = max(1, counts.sum())
    return -(log_p * hot).sum() / n, (np.exp(log_p) - hot) / n


@EXERCISE.mistake("dlogits is the gradient of the sum; the loss is a mean, so each row has a share of it.")
def gradient_not_divided(logits, targets):
    log_p, hot, counts = parts(logits, targets)
    return -(log_p * hot).sum() / max(1, counts.sum()), counts * (np.exp(log_p) - hot)


@EXERCISE.mistake("dlogits is made of p alone; the target's own logit acts on the loss in one more place.")
def target_not_subtracted(logits, targets):
    log_p, hot, counts = parts(logits, targets)
    n = max(1, counts.sum())
    return -(log_p * hot).sum() / n, counts * np.exp(log_p) / n


@EXERCISE.mistake("dlogits has the wrong sign: it points where the loss falls, but a gradient points where it rises.")
def wrong_sign(logits, targets):
    log_p, hot, counts = parts(logits, targets)
    n = max(1, counts.sum())
    return -(log_p * hot).sum() / n, counts * (hot - np.exp(log_p)) / n


@EXERCISE.mistake("The target -100 is used as an index; replace it before you index, and mask what comes out.")
def ignored_target_as_index(logits, targets):
    log_p, hot, counts = parts(logits, targets)
    chosen = log_p[np.arange(len(targets)), targets]
    return -(chosen * counts[:, 0]).mean(), counts * (np.exp(log_p) - hot) / len(targets)


@EXERCISE.mistake("If no row counts, 0 is divided by 0. Then the loss is 0, and so is its gradient.")
def none_counts(logits, targets):
    log_p, hot, counts = parts(logits, targets)
    n = counts.sum()
    return -(log_p * hot).sum() / n, counts * (np.exp(log_p) - hot) / n
