"""Beam search: find the likeliest text under a model by following several texts at once.

The likeliest next token need not begin the likeliest text. Beam search follows `beams` texts at once. Each step extends
every text by every possible token, and keeps the likeliest of all these continuations, by the sum of log probabilities,

    log p(text) = sum_t log p(token_t | those before)

A text that ends leaves the beam. As every token makes a text less likely, texts of different lengths are compared by

    score = log p(text) / length^length_penalty        (length of the new tokens, including the end token)

The search is over when `beams` texts have ended and the best unfinished text, scored at its present length, is no
better than the worst of them. Source: Wu et al. 2016 (arXiv:1609.08144), section 7, with Hugging Face's rules: of the
2 beams likeliest continuations in a step, one that ends counts only if it is among the first `beams`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minillm.backend import Array
from minillm.errors import InputError
from minillm.generate import Sequences, evaluating, stop_ids, whole_number
from minillm.nn import Decoder


class Hypothesis(NamedTuple):
    """A found text: its new token ids, with the end token if it has one, and its score."""

    ids: list[int]
    score: float


class Continuation(NamedTuple):
    """A text, given by its row, and its next token."""

    row: int
    token: int
    log_probability: float  # of the whole text


def beam_search(
    model: Decoder,
    prompts: Sequence[Sequence[int] | Array],
    max_tokens: int,
    *,
    beams: int = 4,
    length_penalty: float = 1.0,
    stop: Sequence[int] | None = None,
) -> list[list[Hypothesis]]:
    """Find the best `beams` continuations of each prompt, best first.

    A continuation ends after a token in `stop`, or with `max_tokens` tokens. Prompts may differ in length. Tokens
    with a logit of -inf are never taken, so there may be fewer than `beams`.
    stop: by default the model's own end tokens, `model.eos_ids`; give () for none.
    Raises: InputError or DtypeError for arguments that cannot be used, and for logits that are NaN or inf.
    """
    beams = whole_number("beam_search", "beams", beams, 1)
    max_tokens = whole_number("beam_search", "max_tokens", max_tokens, 1)
    if not isinstance(length_penalty, numbers.Real) or not math.isfinite(length_penalty):
        raise InputError(f"beam_search: length_penalty is {length_penalty!r}; give a finite number, such as 1.0")
    ends = stop_ids("beam_search", stop, model)
    finished: list[list[Hypothesis]] = [[] for _ in prompts]
    if not len(prompts):
        return finished
    texts = Sequences("beam_search", model, prompts)
    starts = [len(prompt) for prompt in texts.ids]
    sums = {prompt: np.zeros(1) for prompt in range(len(prompts))}  # log probabilities of the unfinished texts
    with evaluating(model):
        for length in range(1, max_tokens + 1):
            logs = _log_softmax(texts.next_logits())
            going: dict[int, list[Continuation]] = {}
            first = 0  # row of the prompt's first text
            for prompt, before in sums.items():
                rows = slice(first, first + len(before))
                candidates = _likeliest(before[:, None] + logs[rows], max(2, 1 + len(ends)) * beams, first)
                running: list[Continuation] = []
                for rank, one in enumerate(candidates):
                    is_end = one.token in ends or length == max_tokens
                    if is_end and rank < beams:
                        ids = [*texts.ids[one.row][starts[prompt] :], one.token]
                        finished[prompt].append(Hypothesis(ids, one.log_probability / length**length_penalty))
                    elif not is_end and len(running) < beams:
                        running.append(one)
                finished[prompt] = sorted(finished[prompt], key=lambda found: -found.score)[:beams]
                is_full = len(finished[prompt]) == beams
                if running and not (
                    is_full and running[0].log_probability / length**length_penalty <= finished[prompt][-1].score
                ):
                    going[prompt] = running
                first = rows.stop
            if not going:
                break
            texts.select([one.row for running in going.values() for one in running])
            texts.append([one.token for running in going.values() for one in running])
            sums = {prompt: np.array([one.log_probability for one in running]) for prompt, running in going.items()}
    return finished


def _likeliest(totals: Array, count: int, first: int) -> list[Continuation]:
    """The largest elements of (texts, V) above -inf, in descending order, ties in order; rows count from `first`."""
    flat = totals.reshape(-1)
    count = min(count, int((flat > -np.inf).sum()))
    least = np.partition(flat, -count)[-count]
    chosen = np.flatnonzero(flat >= least)
    chosen = chosen[np.argsort(-flat[chosen], kind="stable")][:count]
    return [
        Continuation(first + int(place) // totals.shape[1], int(place) % totals.shape[1], float(flat[place]))
        for place in chosen
    ]


def _log_softmax(logits: Array) -> Array:
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
