"""Training of WordPiece: byte-pair encoding within words, on characters, of which only the pieces are kept.

Every character but the first of a word gets `##`; then the most frequent pair of neighbouring symbols becomes one
symbol, again and again. (Google never published the trainer of BERT's vocabulary; this is what Hugging Face's
`WordPieceTrainer` does.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import chain
from pathlib import Path
from typing import cast

from minillm.tokenizers.base import stream
from minillm.tokenizers.basic import BasicTokenizer, chunks_of, settled_end
from minillm.tokenizers.bpe_train import PairIndex
from minillm.tokenizers.files import read_texts

PREFIX = "##"  # begins every piece that continues a word


def count_words(
    where: str,
    text_or_files: str | Path | Iterable[str | Path],
    basic: BasicTokenizer,
    special_tokens: Sequence[str] = (),
) -> Counter[str]:
    """Count the words of training text. Chunks are counted first, so that each different one is cut into words once."""
    chunks: Counter[str] = Counter()

    def count_settled(text: str, more: bool) -> tuple[list[str], int]:
        end = settled_end(text) if more else len(text)
        chunks.update(chunks_of(text[:end]))
        return [], end

    for text in read_texts(where, text_or_files):
        for _ in stream(where, text, count_settled, special_tokens, lambda token: []):
            pass
    words: Counter[str] = Counter()
    for chunk, count in chunks.items():
        for word in basic.tokenize(chunk):
            words[word] += count
    return words


def first_symbols(words: Mapping[str, int], limit_alphabet: int | None = None) -> list[str]:
    """The symbols that pieces are made of: the characters, sorted, then those within words, with `##`, sorted."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    kept = set(sorted(counts, key=lambda character: (-counts[character], character))[:limit_alphabet])
    within = kept.intersection(chain.from_iterable(word[1:] for word in words))
    return [*sorted(kept), *(PREFIX + character for character in sorted(within))]


def learn_pieces(words: Mapping[str, int], symbols: Sequence[str], min_frequency: int = 0) -> Iterator[str]:
    """The pieces that `WordPieceTokenizer.train` learns from words and their counts, until no pair is left.

    The ids of tokens are their places in `symbols`, followed by the learnt pieces in order. An entry of the heap never
    ranks its pair too low, and a pair whose count has fallen goes back, as in `bpe_train.learn_merges`. Unlike there,
    pairs of equal count are ordered by their ids, and two pairs may make the same piece, or one that is a special
    token; it is learnt once.
    """
    tokens = list(symbols)
    ids = {token: i for i, token in enumerate(tokens)}
    spelled: Counter[tuple[int, ...]] = Counter()
    for word, count in words.items():
        parts = [word[:1], *(PREFIX + character for character in word[1:])]
        spelled[tuple([ids[part] for part in parts if part in ids])] += count
    index = PairIndex(cast("Mapping[bytes, int]", spelled))  # which takes ids of any size, bytes or not
    heap = [(-count, pair) for pair, count in index.counts.items()]
    heapify(heap)
    while heap:
        negated, pair = heappop(heap)
        count = index.counts[pair]
        if count != -negated:
            if count:
                heappush(heap, (-count, pair))
            continue
        if count < max(1, min_frequency):
            return
        left, right = (tokens[i] for i in pair)
        piece = left + right.removeprefix(PREFIX)
        if piece not in ids:
            yield piece
            ids[piece] = len(tokens)
            tokens.append(piece)
        for new_pair in index.merge(pair, ids[piece]):
            heappush(heap, (-index.counts[new_pair], new_pair))
