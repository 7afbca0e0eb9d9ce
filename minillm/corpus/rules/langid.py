"""py3langid's model, applied to many texts at once.

The model is naive Bayes over n-grams of bytes (Lui and Baldwin 2012, "langid.py: An Off-the-shelf Language
Identification Tool", ACL). An automaton reads a text byte by byte, and where it comes into certain states, it has found
an n-gram. With c_g the number of times that it found n-gram g, and L the number of bytes,

    score of a language  =  log prior + sum over g of log(1 + c_g) log p(g | language)
    probabilities        =  softmax(scores / sqrt(L))

py3langid takes the steps of the automaton in a loop of Python, where each waits for memory: its table of transitions
has 39 MB. Here all texts take their first step together, then their second, so NumPy fetches many places at a time.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from minillm.errors import InputError

TOGETHER = 512  # texts


class Identifier:
    """The automaton and the probabilities."""

    def __init__(self) -> None:
        try:
            from py3langid.langid import MODEL_DIR, MODEL_FILE
            from py3langid.modelio import load_model
        except ImportError:
            raise InputError('clean: the rule language needs py3langid; pip install ".[data]"') from None
        weights, priors, names, moves, rows, ngrams = load_model(MODEL_DIR / MODEL_FILE)
        self.weights = np.asarray(weights, np.float32)  # (n-grams, columns): log p(g | language)
        self.priors = np.asarray(priors)
        self.names = list(dict.fromkeys(names))
        self.column_names = np.array([self.names.index(name) for name in names])  # languages in two scripts have two
        self.moves = np.asarray(moves)  # the next state, by row and byte
        self.rows = np.asarray(rows, np.int64) * 256  # where the row of a state begins; many states have the same
        self.ngrams = np.array(ngrams, np.int32)  # the n-gram that is found with a state, or -1

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """The probabilities of all languages, in the order of `names`, text by text: (texts, languages)."""
        found = np.zeros((len(texts), len(self.names)), np.float32)
        for start in range(0, len(texts), TOGETHER):
            encoded = list(map(_encoded, texts[start : start + TOGETHER]))
            scores = np.zeros((len(encoded), len(self.priors)), np.float32)
            for score, (ngrams, counts) in zip(scores, self._found(encoded), strict=True):
                if len(ngrams):
                    score[:] = np.log1p(counts) @ self.weights.take(ngrams, axis=0) + self.priors
            scores /= np.sqrt([[len(text) or 1] for text in encoded], dtype=np.float32)
            exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
            exponentials /= exponentials.sum(axis=1, keepdims=True)
            np.add.at(found[start : start + TOGETHER].T, self.column_names, exponentials.T)
        return found

    def _found(self, texts: Sequence[bytes]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each text the n-grams in it, and how often each: (different,) and (different,) float32."""
        lengths = np.array([len(text) for text in texts])
        steps = int(lengths.max())
        letters = np.frombuffer(b"".join(text.ljust(steps, b"\0") for text in texts), np.uint8)
        letters = np.ascontiguousarray(letters.reshape(len(texts), steps).T)  # (steps, texts)
        found = np.empty(letters.shape, np.int64)
        states = np.zeros(len(texts), np.int64)
        for step in range(steps):
            states = self.moves[self.rows[states] + letters[step]]
            found[step] = self.ngrams[states]
        inside = (found >= 0) & (np.arange(steps)[:, None] < lengths)
        found += np.arange(len(texts)) * len(self.weights)  # each text has n-grams with numbers of its own
        different, counts = np.unique(found[inside], return_counts=True)
        ends = np.searchsorted(different, np.arange(len(texts) + 1) * len(self.weights))
        for begin, end in pairwise(ends):
            yield different[begin:end] % len(self.weights), counts[begin:end].astype(np.float32)


def _encoded(text: str) -> bytes:
    """The text as py3langid reads it: composed letters, and small ones where all are capitals."""
    return unicodedata.normalize("NFC", text.lower() if text.isupper() else text).encode("utf-8", "surrogatepass")
