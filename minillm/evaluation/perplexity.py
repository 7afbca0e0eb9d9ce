"""Perplexity and bits per byte: how well a model predicts texts, by numbers that can be compared.

With the log-likelihood of all documents, sum log p in nats, each document scored apart and each id once:

    bits per byte      -sum log p / (bytes ln 2)     bytes of the text in UTF-8
    byte perplexity    exp(-sum log p / bytes)
    word perplexity    exp(-sum log p / words)       words: len(re.split(r"\\s+", text)), as in lm-evaluation-harness
    token perplexity   exp(-sum log p / ids)

Bits per byte and the perplexities of bytes and words have a denominator that belongs to the text, so models with
different tokenizers can be compared; token perplexity can be compared between models of one tokenizer alone. A model
that gives every id the probability 1 / V has log2(V) ids / bytes bits per byte, for any window.

Two things would spoil the comparison, so they are counted: ids of the unknown token, which give no probability of the
text itself, and documents that the tokenizer does not restore (one that lower-cases, say, predicts a simpler text).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minillm.errors import InputError
from minillm.evaluation.intervals import Measure, bootstrap
from minillm.evaluation.likelihood import BATCH_TOKENS, Progress, document_likelihoods
from minillm.evaluation.masked import pseudo_likelihoods
from minillm.tokenizers import Tokenizer

FEW = 20  # documents; with fewer, an interval is drawn from blocks of ids instead
BLOCK = 128  # ids of a block, or fewer, so that there are FEW blocks


@dataclass(frozen=True)
class Perplexity:
    """The measures of a model on some documents, and what they were computed from."""

    measures: dict[
        str, Measure
    ]  # bits_per_byte, byte_perplexity, word_perplexity, token_perplexity; or pseudo_perplexity
    nats: float  # -sum log p
    documents: int
    ids: int
    words: int
    bytes: int
    unknown_ids: int
    changed_documents: int  # that the ids do not restore
    each: list[tuple[float, int]]  # of each document, -log p in nats and the number of its ids


def perplexity(
    model: Any,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    originals: Sequence[str] | None = None,
    window: int | None = None,
    stride: int | None = None,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> Perplexity:
    """Perplexities and bits per byte of a model of the next token, each with its interval.

    Args:
        originals: texts whose words and bytes are counted instead of those of `documents`, where these are a cleaned
            form of them, as for WikiText.
        window, stride: see `document_likelihoods`.
        seed: of the bootstrap over documents; with fewer than 20 documents, over blocks of 128 ids, whose bytes and
            words are a share of the document's (Carlstein 1986).

    Units: bits per byte; perplexities have none.
    Raises: InputError for no documents, a document without ids, or `originals` of another number.
    Source: `word_perplexity`, `byte_perplexity` and `bits_per_byte` of lm-evaluation-harness.
    """
    documents = list(documents)
    originals = documents if originals is None else list(originals)
    if not documents or len(originals) != len(documents):
        raise InputError(
            f"perplexity: there are {len(documents)} documents and {len(originals)} originals; give at least one "
            "document, and an original for each"
        )
    found = document_likelihoods(model, tokenizer, documents, window, stride, batch_tokens, progress)
    return _measured(tokenizer, documents, originals, found, KINDS, seed)


def pseudo_perplexity(
    model: Any,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> Perplexity:
    """Pseudo-perplexity of a model of hidden tokens, exp(-PLL / ids), with its interval; see masked.py.

    Raises: InputError for no documents, a document without ids, or a tokenizer without a mask token.
    """
    documents = list(documents)
    if not documents:
        raise InputError("pseudo_perplexity: there are no documents; give at least one")
    found = pseudo_likelihoods(model, tokenizer, documents, batch_tokens, progress)
    return _measured(tokenizer, documents, documents, found, {"pseudo_perplexity": ("ids", np.exp)}, seed)


def _measured(
    tokenizer: Tokenizer,
    documents: Sequence[str],
    originals: Sequence[str],
    found: Sequence[np.ndarray],
    kinds: Mapping[str, tuple[str, Callable[[Any], Any]]],
    seed: int,
) -> Perplexity:
    """The measures of documents whose log-likelihoods are known: for each its unit, and its function of nats a unit."""
    nats = np.array([-one.sum() for one in found])
    counts = {
        "bytes": np.array([count_bytes(text) for text in originals]),
        "words": np.array([count_words(text) for text in originals]),
        "ids": np.array([len(one) for one in found]),
    }
    measures = {
        name: _measure(found, nats, counts[unit], unit, of_rate, seed) for name, (unit, of_rate) in kinds.items()
    }
    unknown, changed = _spoiled(tokenizer, documents)
    totals = {unit: int(count.sum()) for unit, count in counts.items()}
    return Perplexity(
        measures,
        math.fsum(nats),
        len(documents),
        totals["ids"],
        totals["words"],
        totals["bytes"],
        unknown,
        changed,
        [(float(one), len(ids)) for one, ids in zip(nats, found, strict=True)],
    )


def bits(nats: Any) -> Any:
    """Nats in bits."""
    return nats / math.log(2)


KINDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "bits_per_byte": ("bytes", bits),
    "byte_perplexity": ("bytes", np.exp),
    "word_perplexity": ("words", np.exp),
    "token_perplexity": ("ids", np.exp),
}


def count_bytes(text: str) -> int:
    """The bytes of a text in UTF-8."""
    return len(text.encode("utf-8"))


def count_words(text: str) -> int:
    """The words of a text as lm-evaluation-harness counts them: white space at an end adds an empty word."""
    return len(re.split(r"\s+", text))


def _measure(
    found: Sequence[np.ndarray],
    nats: np.ndarray,
    counts: np.ndarray,
    unit: str,
    of_rate: Callable[[Any], Any],
    seed: int,
) -> Measure:
    """A function of nats per byte, word or id, with its interval."""
    total = float(counts.sum())
    rows, item = np.column_stack([nats, counts]), "document"  # (n, 2)
    if len(found) < FEW:
        size = max(1, min(BLOCK, sum(map(len, found)) // FEW))
        blocks = [
            (-ids[start : start + size].sum(), count * len(ids[start : start + size]) / len(ids))
            for ids, count in zip(found, counts, strict=True)
            for start in range(0, len(ids), size)
        ]
        rows, item = np.array(blocks), "block"

    def statistic(sums: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # the perplexity of a word may be beyond float64
            return of_rate(sums[..., 0] / sums[..., 1])

    return bootstrap(rows, statistic, denominator=total, unit=unit, item=item, seed=seed)


def _spoiled(tokenizer: Tokenizer, documents: Sequence[str]) -> tuple[int, int]:
    """The number of ids of the unknown token, and the number of documents that the ids do not restore."""
    unknown = changed = 0
    for document in documents:
        ids = tokenizer.encode(document)
        unknown += 0 if tokenizer.unk_id is None else ids.count(tokenizer.unk_id)
        changed += tokenizer.decode(ids) != document
    return unknown, changed
