"""Text from a language model: one token at a time, each drawn from the model's distribution of the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from minillm.autograd import no_grad
from minillm.backend import Array
from minillm.device import to_host
from minillm.errors import InputError
from minillm.nn import Decoder


def next_token_probabilities(
    logits: Array,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seen: Sequence[int] = (),
) -> Array:
    """The distribution to draw from: softmax(logits / temperature), cut to the likeliest tokens and rescaled to 1.

    temperature 0 puts all weight on the largest logit. `top_k` keeps the k likeliest tokens. `top_p` keeps the fewest
    that together reach probability p (Holtzman et al. 2019, arXiv:1904.09751). `min_p` keeps those that have min_p
    times the probability of the likeliest (Nguyen et al. 2024, arXiv:2407.01082). All may be given: in this order.
    Before all, the logits of tokens in `seen` are divided by `repetition_penalty` where they are positive, and
    multiplied by it where they are negative (Keskar et al. 2019, arXiv:1909.05858, section 4.1).
    Shapes: logits (V,); result (V,) in float64.
    """
    if not temperature >= 0:
        raise InputError(f"generate: temperature is {temperature}; give 0 (the likeliest token) or more")
    if top_k is not None and top_k < 1:
        raise InputError(f"generate: top_k is {top_k}; give the number of tokens to choose from, 1 or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"generate: top_p is {top_p}; give a probability above 0, at most 1")
    if min_p is not None and not 0 <= min_p <= 1:
        raise InputError(f"generate: min_p is {min_p}; give a share of the likeliest token's probability, from 0 to 1")
    if not repetition_penalty > 0:
        raise InputError(f"generate: repetition_penalty is {repetition_penalty}; give more than 0 (1 changes nothing)")
    logits = np.array(logits, np.float64)
    if repetition_penalty != 1 and len(seen):
        again = np.unique(np.asarray(seen))
        logits[again] *= np.where(logits[again] > 0, 1 / repetition_penalty, repetition_penalty)
    order = np.argsort(-logits, kind="stable")  # likeliest first; equal ones by id
    probabilities = np.zeros(len(logits))
    if temperature == 0:
        probabilities[order[0]] = 1
        return probabilities
    if top_k is not None:
        order = order[:top_k]
    with np.errstate(over="ignore"):  # a tiny temperature makes it -inf, whose exp is 0
        weights = np.exp((logits[order] - logits[order[0]]) / temperature)
    weights /= weights.sum()
    if top_p is not None:
        fewest = int(np.searchsorted(np.cumsum(weights), top_p * (1 - 1e-12))) + 1
        order, weights = order[:fewest], weights[:fewest] / weights[:fewest].sum()
    if min_p is not None:
        order, weights = order[weights >= min_p * weights[0]], weights[weights >= min_p * weights[0]]
        weights /= weights.sum()
    probabilities[order] = weights
    return probabilities


def generate(
    model: Decoder,
    ids: Sequence[int] | Array,
    max_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop: Sequence[int] = (),
) -> Iterator[int]:
    """Yield up to `max_tokens` new token ids that continue `ids`, ending early after an id in `stop`.

    The model sees as much of the text so far as its context holds. The same seed gives the same tokens. As keys and
    values are cached, a token costs one position; beyond the context positions shift, and it costs the whole window.
    """
    text = [int(i) for i in ids]
    if not text:
        raise InputError("generate: the prompt has no tokens; give at least one character of text")
    if max_tokens < 0:
        raise InputError(f"generate: max_tokens is {max_tokens}; give 0 or more")
    if not 0 <= seed < 1 << 64:
        raise InputError(f"generate: seed is {seed}; give 0 or more, below 2**64")
    rng = np.random.Generator(np.random.Philox(key=seed))
    was_training = model.training
    model.eval()
    context, cache = model.config.context, model.new_cache()
    try:
        for _ in range(max_tokens):
            if len(text) > context:
                cache = model.new_cache()
            with no_grad():
                logits = model.next_logits(np.array([text[-context:][cache[0].length :]]), cache)
            probabilities = next_token_probabilities(
                to_host(logits.data[0]), temperature, top_k, top_p, min_p, repetition_penalty, text
            )
            token = int(rng.choice(len(probabilities), p=probabilities))
            text.append(token)
            yield token
            if token in stop:
                return
    finally:
        model.train(was_training)
