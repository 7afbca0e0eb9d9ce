"""A cache of keys and values: generate without computing earlier tokens again.

When a model generates, each new token attends to all earlier ones, whose keys and values do not change. So they are
kept. The function is called for a prompt first, with several tokens, and then for each new token; `cache` is a
dictionary, empty at first, in which you keep what you like from call to call. Taken together, the calls must give what
one call with all tokens gives: token i sees the tokens up to i, also within a prompt.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from minillm.exercises.course import attention_forward
from minillm.exercises.exercise import Exercise
from minillm.ops.attention import softmax


def attend(q, k, v, cache):
    """Return y (H, T, D) for T new tokens, and keep their k and v in `cache` for the calls to come.

    q, k and v are (H, T, D), those of the new tokens alone. The scores are q k^T / sqrt(D).
    """
    raise NotImplementedError("replace this line")


class Cache(dict):
    """A cache that knows the one of the sequence before."""

    def __init__(self, earlier: Cache | None):
        super().__init__()
        self.earlier = earlier


def run(function, inputs):
    """Two sequences, each in several calls; between them the caches must not be mixed up."""
    results, cache = [], None
    for sequence in (0, 1):
        cache = Cache(cache)
        for start, end in itertools.pairwise(inputs["cuts"]):
            q, k, v = (x[:, start:end].copy() for x in np.roll(inputs["qkv"], sequence, axis=0))
            results.append(function(q, k, v, cache))
            for x in (q, k, v):
                x[...] = np.nan  # the arrays of a call belong to the model, which uses them again
    return results


def right(q, k, v, cache):
    for name, x in (("q", q), ("k", k), ("v", v)):
        cache[name] = np.concatenate([cache[name], x], axis=1) if name in cache else x.copy()
    return attention_forward.right(cache["q"], cache["k"], cache["v"])[:, -q.shape[1] :]


def cases(rng):
    for H, D, cuts in ((1, 3, (0, 1, 2, 3)), (2, 3, (0, 4, 5, 6)), (2, 2, (0, 2, 5, 6, 9))):
        yield dict(qkv=rng.normal(size=(3, H, cuts[-1], D)), cuts=cuts)


EXERCISE = Exercise(
    starter=attend,
    returns="y_of_call",
    right=right,
    cases=cases,
    run=run,
    hints=(
        "Put the new keys behind the cached ones along the axis of tokens, store both, and attend to all of them.",
        "A call with several tokens needs a mask: the last of them sees all keys, the one before it all but one.",
        "If there are n keys and T queries, query i is token i + n - T.",
        "Store copies (np.concatenate makes one): the caller uses its arrays again for the next token.",
    ),
    read="minillm/nn/attention.py",
)


def attended(q, k, v, visible=None):
    s = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    return softmax(s if visible is None else np.where(visible, s, -np.inf)) @ v


def grown(k, v, cache, axis=1):
    for name, x in (("k", k), ("v", v)):
        cache[name] = np.concatenate([cache[name], x], axis=axis) if name in cache else x.copy()
    return cache["k"], cache["v"]


def visible(q, k):
    return np.tril(np.ones((q.shape[1], k.shape[1]), bool), k.shape[1] - q.shape[1])


@EXERCISE.mistake("The cache holds the latest call alone: new keys and values are put behind the old ones.")
def cache_overwritten(q, k, v, cache):
    return attended(q, k, v, visible(q, k))


@EXERCISE.mistake("Within a prompt a token sees the later ones: a call with several tokens needs a causal mask.")
def prompt_without_a_mask(q, k, v, cache):
    return attended(q, *grown(k, v, cache))


@EXERCISE.mistake("The mask takes query 0 for token 0; with n keys in the cache it is a later one.")
def mask_without_the_offset(q, k, v, cache):
    keys, values = grown(k, v, cache)
    return attended(q, keys, values, np.tril(np.ones((q.shape[1], keys.shape[1]), bool)))


@EXERCISE.mistake("The new tokens are stored after attending, so they do not see themselves.")
def itself_hidden(q, k, v, cache):
    if "k" in cache:
        y = attended(q, cache["k"], cache["v"])
        grown(k, v, cache)
        return y
    keys, values = grown(k, v, cache)
    return attended(q, keys, values, visible(q, keys))


@EXERCISE.mistake("New keys and values are joined to the old ones along the axis of heads; tokens are the second axis.")
def joined_along_the_heads(q, k, v, cache):
    return attended(q, *grown(k, v, cache, axis=0))


@EXERCISE.mistake("A second sequence sees the tokens of the first: keep everything in the dictionary that is given.")
def shared_between_sequences(q, k, v, cache):
    if not cache and cache.earlier:
        cache.update(cache.earlier)
    return right(q, k, v, cache)


@EXERCISE.mistake("The cache keeps the caller's own array, which the caller then overwrites; store a copy.")
def no_copy(q, k, v, cache):
    old_k, old_v = cache.get("k"), cache.get("v")
    keys, values = (x if old is None else np.concatenate([old, x], axis=1) for old, x in ((old_k, k), (old_v, v)))
    cache["k"], cache["v"] = (keys, values) if old_k is not None else (k, v)
    return attended(q, keys, values, visible(q, keys))


@EXERCISE.mistake("The scores are not divided by the square root of D.")
def scale_forgotten(q, k, v, cache):
    return right(q * math.sqrt(q.shape[-1]), k, v, cache)
