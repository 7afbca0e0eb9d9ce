"""Sampling: the distribution from which the next token is drawn.

The logits of a model, which may be large, become probabilities in this order:

1. The logits are divided by the temperature. A temperature of 0 gives the likeliest token the probability 1.
2. top_k, if it is not None: only the k likeliest tokens stay.
3. The softmax of what stays.
4. top_p, if it is not None: only the likeliest tokens stay, the fewest whose probabilities sum to top_p or more.
   At least one stays. The probabilities are brought to the sum 1 again.
"""

from __future__ import annotations

import numpy as np

from minillm.exercises.exercise import Exercise
from minillm.generate import Sampling


def probabilities(logits, temperature, top_k, top_p):
    """Return p (V,): the probability of each token, 0 for those that are left out; logits are (V,)."""
    raise NotImplementedError("replace this line")


def right(logits, temperature, top_k, top_p):
    return Sampling(temperature=temperature, top_k=top_k, top_p=top_p).probabilities(logits)


def cases(rng):
    logits = np.log([0.1, 0.4, 0.05, 0.25, 0.2])
    yield dict(logits=logits, temperature=1.0, top_k=None, top_p=None)
    yield dict(logits=logits + 900, temperature=0.5, top_k=None, top_p=None)
    yield dict(logits=logits, temperature=1.0, top_k=2, top_p=None)
    yield dict(logits=logits, temperature=1.0, top_k=None, top_p=0.6)
    yield dict(logits=logits, temperature=1.0, top_k=None, top_p=0.3)
    yield dict(logits=rng.normal(size=12), temperature=0.6, top_k=7, top_p=0.75)
    yield dict(logits=rng.normal(size=12), temperature=2.5, top_k=9, top_p=0.9)
    yield dict(logits=logits, temperature=0.0, top_k=3, top_p=0.9)
    yield dict(logits=logits, temperature=1.0, top_k=50, top_p=1.0)


EXERCISE = Exercise(
    starter=probabilities,
    returns="p",
    right=right,
    cases=cases,
    hints=(
        "Sort once: the order of the tokens, likeliest first. It serves top_k and top_p.",
        "Set the logits of what top_k leaves out to -inf, so that the softmax gives them 0 and divides by the rest.",
        "For top_p take the running sum over the sorted probabilities. A token stays if the sum before it is lower.",
        "So the token that crosses top_p stays too. Divide by the sum of those that stay.",
    ),
    read="minillm/generate.py",
)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def scaled(logits, temperature):
    return np.where(logits == logits.max(), 0.0, -np.inf) if temperature == 0 else logits / temperature


def best(logits, top_k):
    """The logits, -inf outside the k largest."""
    if top_k is None:
        return logits
    kept = np.full_like(logits, -np.inf)
    index = np.argsort(-logits)[:top_k]
    kept[index] = logits[index]
    return kept


def nucleus(p, top_p, stays=lambda before, p, top_p: before < top_p, normalise=True, sign=-1):
    if top_p is None:
        return p
    order = np.argsort(sign * p)
    before = np.cumsum(p[order]) - p[order]
    kept = order[stays(before + 1e-12, p[order], top_p)]
    result = np.zeros_like(p)
    result[kept] = p[kept]
    return result / result.sum() if normalise else result


@EXERCISE.mistake("The token that crosses top_p is left out; those that stay must sum to top_p or more.")
def crossing_token_left_out(logits, temperature, top_k, top_p):
    p = softmax(best(scaled(logits, temperature), top_k))
    return nucleus(p, top_p, lambda before, p, top_p: before + p <= top_p + 1e-9)


@EXERCISE.mistake("The probabilities that stay after top_p no longer sum to 1.")
def not_normalised(logits, temperature, top_k, top_p):
    return nucleus(softmax(best(scaled(logits, temperature), top_k)), top_p, normalise=False)


@EXERCISE.mistake("The logits are multiplied by the temperature; a low temperature should sharpen the distribution.")
def multiplied_by_the_temperature(logits, temperature, top_k, top_p):
    return nucleus(softmax(best(logits * temperature, top_k)), top_p)


@EXERCISE.mistake("The temperature is applied to the probabilities; divide the logits by it, before the softmax.")
def probabilities_scaled(logits, temperature, top_k, top_p):
    return nucleus(softmax(best(softmax(logits) / temperature, top_k)), top_p)


@EXERCISE.mistake("The exponential overflows for large logits; subtract the largest one first.")
def overflows(logits, temperature, top_k, top_p):
    e = np.exp(best(scaled(logits, temperature), top_k))
    return nucleus(e / e.sum(), top_p)


@EXERCISE.mistake("The temperature is missing.")
def temperature_ignored(logits, temperature, top_k, top_p):
    return right(logits, 1.0, top_k, top_p)


@EXERCISE.mistake("What top_k leaves out is set to 0, but the rest is not brought to the sum 1 before top_p.")
def top_k_not_normalised(logits, temperature, top_k, top_p):
    x = scaled(logits, temperature)
    return nucleus(np.where(np.isfinite(best(x, top_k)), softmax(x), 0), top_p)


@EXERCISE.mistake("What top_k leaves out has the logit 0, whose exponential is 1; it should have the probability 0.")
def left_out_logits_zero(logits, temperature, top_k, top_p):
    x = best(scaled(logits, temperature), top_k)
    return nucleus(softmax(np.where(np.isfinite(x), x, 0)), top_p)


@EXERCISE.mistake("top_p keeps the unlikeliest tokens: sort so that the largest probability comes first.")
def unlikeliest_kept(logits, temperature, top_k, top_p):
    return nucleus(softmax(best(scaled(logits, temperature), top_k)), top_p, sign=1)


@EXERCISE.mistake("top_p keeps each token whose own probability is at least top_p; it is about their running sum.")
def single_probabilities_compared(logits, temperature, top_k, top_p):
    p = softmax(best(scaled(logits, temperature), top_k))
    return nucleus(p, top_p, lambda before, p, top_p: p >= min(top_p, p.max()))


@EXERCISE.mistake("top_p chooses before the temperature has acted; it is the last step.")
def top_p_before_the_temperature(logits, temperature, top_k, top_p):
    kept = nucleus(softmax(best(logits, top_k)), top_p) > 0
    return softmax(np.where(kept, scaled(logits, temperature), -np.inf))


@EXERCISE.mistake("top_k may be larger than the number of tokens; then all of them stay.")
def more_than_all_tokens(logits, temperature, top_k, top_p):
    if top_k is not None and temperature:
        np.partition(logits, -top_k)  # raises where there are fewer
    return right(logits, temperature, top_k, top_p)


@EXERCISE.mistake("A temperature of 0 divides by 0; it stands for the likeliest token.")
def temperature_zero(logits, temperature, top_k, top_p):
    return nucleus(softmax(best(logits / np.float64(temperature), top_k)), top_p)
