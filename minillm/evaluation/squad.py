"""Answers to questions, measured as SQuAD's official script does, and found in what a model says of each window.

Two answers are compared after a normalisation: lower case, no punctuation, no "a", "an" and "the", one space between
words. `exact_match` asks whether they are equal, `f1` how many of their words they share. A question may have several
right answers, and the best of them counts; one without an answer has the empty one.

A long text is cut into windows that overlap (data/squad.py). A model gives each token of each window two numbers, that
an answer starts and that it ends there. `find_answer` looks for the start and the end with the greatest sum in all
windows together. Only a window in which the start has the most context on both sides may propose it, since every token
of an overlap is seen several times.

Source: Rajpurkar et al., "SQuAD" (2016, arXiv:1606.05250) and "Know What You Don't Know" (2018, arXiv:1806.03822), with
evaluate-v2.0.py; the search is that of Devlin et al.'s run_squad.py.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from minillm.data.squad import Window
from minillm.evaluation.intervals import Measure, mean, share

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
MAX_TOKENS, BEST = 30, 20


def normalized(answer: str) -> str:
    """The answer in lower case, without punctuation and articles, with one space between words."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def exact_match(prediction: str, right: str) -> float:
    """1 if the normalised answers are equal, else 0."""
    return float(normalized(prediction) == normalized(right))


def f1(prediction: str, right: str) -> float:
    """The harmonic mean of precision and recall over the normalised words, each as often as it occurs.

    If one of the answers has no words, it is 1 if neither has, else 0.
    """
    found, wanted = normalized(prediction).split(), normalized(right).split()
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((Counter(found) & Counter(wanted)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(found), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def best_of(measure: Callable[[str, str], float], prediction: str, rights: Sequence[str]) -> float:
    """The greatest `measure` over the right answers that have words; if none has, that of the empty answer."""
    return max(measure(prediction, right) for right in [right for right in rights if normalized(right)] or [""])


def squad_scores(predictions: Sequence[str], rights: Sequence[Sequence[str]], seed: int = 0) -> dict[str, Measure]:
    """Exact match and F1 of a prediction for each question, as shares (0 to 1), with their intervals."""
    pairs = list(zip(predictions, rights, strict=True))
    return {
        "exact_match": share([best_of(exact_match, *pair) == 1 for pair in pairs]),
        "f1": mean([best_of(f1, *pair) for pair in pairs], seed=seed),
    }


class Found(NamedTuple):
    """The answer that a model finds."""

    text: str  # "" if there is none in any window
    score: float  # the sum of the two logits
    null_score: float  # that of no answer: the least over the windows, at [CLS]


def find_answer(
    context: str,
    windows: Sequence[Window],
    starts: Sequence[np.ndarray],
    ends: Sequence[np.ndarray],
    max_tokens: int = MAX_TOKENS,
    n_best: int = BEST,
) -> Found:
    """The likeliest answer in the windows of one context, from their logits (T,) of starts and ends.

    Only the `n_best` likeliest starts and ends of each window are combined; an answer has at most `max_tokens` tokens.
    """
    best = Found("", -np.inf, min(float(s[w.cls] + e[w.cls]) for w, s, e in zip(windows, starts, ends, strict=True)))
    for window, start, end in zip(windows, starts, ends, strict=True):
        inside = np.array([place is not None for place in window.places])
        first = np.where(inside & window.is_whole, start[: len(inside)], -np.inf)
        last = np.where(inside, end[: len(inside)], -np.inf)
        firsts, lasts = (np.argsort(-one, kind="stable")[:n_best] for one in (first, last))
        sums = first[firsts][:, None] + last[lasts]  # (n, n)
        tokens = lasts - firsts[:, None] + 1
        sums = np.where((tokens >= 1) & (tokens <= max_tokens), sums, -np.inf)
        a, b = np.unravel_index(int(np.argmax(sums)), sums.shape)
        if sums[a, b] > best.score:
            text = window.text(context, int(firsts[a]), int(lasts[b]))
            best = best._replace(text=text, score=float(sums[a, b]))
    return best
