"""Training of the unigram language model: expectation maximisation on the lattices of all words together.

Read unigram.py first: it explains lattices, and why the expected counts of pieces are a gradient. Training begins with
every repeated substring. It computes expected counts of pieces under the current probabilities (E), turns these counts
into probabilities (M), and now and then drops the pieces whose loss lowers the likelihood least. The M step is
exp(digamma(count)) / exp(digamma(sum)), a sparse prior that takes about half a count from each.

Sources: Kudo, "Subword Regularization" (2018, arXiv:1804.10959), section 3.2; Liang and Klein, "Structured Bayesian
Nonparametric Models with Variational Inference" (2007), for the digamma; Manber and Myers, "Suffix Arrays" (1990).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from minillm.errors import InputError
from minillm.tokenizers.base import stream
from minillm.tokenizers.files import read_texts
from minillm.tokenizers.normalizer import Metaspace
from minillm.tokenizers.progress import Report

LONGEST_TRAINED = 512  # characters: a longer pretoken is cut into stretches of this length for training


def count_pretokens(
    where: str, text_or_files: str | Path | Iterable[str | Path], steps: Metaspace, special_tokens: Sequence[str]
) -> Counter[str]:
    """Count the pretokens of training text; long ones are cut."""
    counts: Counter[str] = Counter()
    begun = False

    def count(text: str, more: bool) -> tuple[list[str], int]:
        nonlocal begun
        end = steps.settled(text) if more else len(text)
        for word in steps.pretokens(text[:end], first=not begun):
            counts.update([word[i : i + LONGEST_TRAINED] for i in range(0, len(word), LONGEST_TRAINED)])
        begun |= end > 0 or not more
        return [], end

    for chunks in read_texts(where, text_or_files):
        begun = False
        for _ in stream(where, chunks, count, special_tokens, lambda token: []):
            pass
    if not counts:
        raise InputError(f"{where}: there is no text to learn from (empty, or special tokens alone); give some text")
    return counts


def check_training_options(where: str, shrinking_factor: float, max_piece_length: int, sub_iterations: int) -> None:
    """Refuse options of `UnigramTokenizer.train` that are out of range."""
    if not 0 < shrinking_factor < 1 or max_piece_length < 1 or sub_iterations < 1:
        raise InputError(
            f"{where}: shrinking_factor is {shrinking_factor}, max_piece_length {max_piece_length}, sub_iterations "
            f"{sub_iterations}; give a factor between 0 and 1, and 1 or more for the others"
        )


def room_for_pieces(where: str, vocab_size: int, taken: Sequence[str], counts: Mapping[str, int]) -> int:
    """The number of pieces to learn: `vocab_size` without the tokens that are `taken`.

    Raises: InputError where the characters of the counted pretokens alone are more.
    """
    room = vocab_size - len(taken)
    characters = len(set().union(*counts))
    if room < characters:
        raise InputError(
            f"{where}: vocab_size is {vocab_size}, expected at least {len(taken) + characters} "
            f"({characters} characters and {len(taken)} tokens such as {taken[0]!r}); raise it"
        )
    return room


# All words together, in arrays


def learn_pieces(
    counts: Mapping[str, int],
    room: int,
    max_piece_length: int = 16,
    seed_size: int = 1_000_000,
    shrinking_factor: float = 0.75,
    sub_iterations: int = 2,
    like_hugging_face: bool = False,
    taken: Collection[str] = (),
    report: Report = lambda done, total: None,
) -> list[tuple[str, float]]:
    """Learn at most `room` pieces from different words with counts; returns pieces with scores, the highest first.

    `report` is called after each EM step with the number of pieces pruned so far, and the number to prune.
    """
    words = Words(list(counts), np.fromiter(counts.values(), np.float64))
    pieces, lattice = seed_pieces(words, max_piece_length, seed_size, like_hugging_face, taken)
    # The sizes count the unknown token too, as in Hugging Face's code. The last tenth is dropped by score.
    enough, most = (room + 1) * 11 // 10 - 1, 0
    while True:
        for _ in range(sub_iterations):
            _, expected = expected_counts(lattice, pieces.scores, words.counts)
            stays = (expected >= 0.5) | (pieces.length == 1)
            pieces, lattice = pieces.only(stays), lattice.only(stays)
            pieces = pieces._replace(scores=maximise(np.maximum(expected[stays], 0.5), digamma))
            most = max(most, len(pieces.scores))
            report(most - max(enough, len(pieces.scores)), most - enough)
        if len(pieces.scores) <= enough:
            break
        pieces = pieces._replace(loss=losses(lattice, pieces, words.counts))
        size = max(enough, int((len(pieces.scores) + 1) * shrinking_factor) - 1)
        stays = largest(pieces.loss, size)
        pieces, lattice = pieces.only(stays), lattice.only(stays)
    wanted = np.where(pieces.length == 1, np.inf, pieces.loss if like_hugging_face else pieces.scores)
    pieces = pieces.only(largest(wanted, room))
    texts = [words.text[i : i + n] for i, n in zip(pieces.first.tolist(), pieces.length.tolist(), strict=True)]
    return sorted(zip(texts, pieces.scores.tolist(), strict=True), key=lambda piece: (-piece[1], piece[0]))


def largest(values: NDArray, size: int) -> NDArray[np.bool_]:
    """A mask of the `size` largest values, without those that are -inf; of equals, the first are taken."""
    stays = np.zeros(len(values), np.bool_)
    stays[np.argsort(-values, kind="stable")[:size]] = True
    return stays & (values > -np.inf)


class Words:
    """Different words laid end to end, a gap after each. A place in `text` is a node of their lattices."""

    def __init__(self, words: Sequence[str], counts: NDArray[np.float64]):
        self.text = "\0".join(words) + "\0"
        self.counts = counts  # (W)
        self.length = np.fromiter(map(len, words), np.int64)  # (W)
        self.start = np.cumsum(self.length + 1) - self.length - 1  # (W)
        characters = np.frombuffer(self.text.encode("utf-32-le"), np.uint32)
        self.codes = np.unique(characters, return_inverse=True)[1] + 1  # (N): characters as 1, 2, ...
        self.codes[self.start + self.length] = 0  # gaps


class Pieces(NamedTuple):
    """Pieces in training, arrays of (P): a place in `Words.text`, number of characters, score, loss (see `losses`)."""

    first: NDArray[np.int64]
    length: NDArray[np.int64]
    scores: NDArray[np.float64]
    loss: NDArray[np.float64]

    def only(self, stays: NDArray[np.bool_]) -> Pieces:
        return Pieces(self.first[stays], self.length[stays], self.scores[stays], self.loss[stays])


def ranges(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Concatenate the ranges start, start + 1, ... start + size - 1."""
    return np.repeat(starts - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())


def sorted_suffixes(codes: NDArray[np.int64], remaining: NDArray[np.int64], reach: int) -> tuple[NDArray, NDArray]:
    """Sort all suffixes of words by their first `reach` characters, and count what each shares with the previous one.

    A gap counts as a character, so the shared text may reach over it.

    Prefix doubling (Manber and Myers 1990): the rank of 2h characters comes from the ranks of two halves of h. Equal
    ranks mean equal text, so the ranks also give, in steps of ..., 8, 4, 2, 1, how much two neighbours share.
    """
    ranks, h = [codes], 1
    while h < reach:
        rank = ranks[-1]
        second = np.concatenate([rank[h:], np.zeros(min(h, len(rank)), rank.dtype)])[: len(rank)]
        ranks.append(np.unique(rank * (rank.max() + 1) + second, return_inverse=True)[1])
        h *= 2
    order = np.argsort(ranks[-1], kind="stable")
    order = order[remaining[order] > 0]
    left, right = order[:-1].copy(), order[1:].copy()
    shared = np.zeros(len(left), np.int64)
    for power in range(len(ranks) - 1, -1, -1):
        padded = np.concatenate([ranks[power], np.zeros(1, ranks[power].dtype)])
        equal = padded[np.minimum(left + shared, len(codes))] == padded[np.minimum(right + shared, len(codes))]
        shared += equal << power
    return order, np.concatenate([np.zeros(1, np.int64), shared])


def seed_pieces(
    words: Words, max_length: int, seed_size: int, like_hugging_face: bool = False, taken: Collection[str] = ()
) -> tuple[Pieces, Lattice]:
    """Every character, and the substrings that repeat, with the lattice of all words that they make.

    A substring counts where it occurs in two words or twice in one, and is not always followed by the same
    character (then the longer one serves as well): these are the inner nodes of the suffix tree. In sorted order, the
    suffixes that begin with a substring stand together, so each substring of n characters is a run where neighbours
    share n or more, and some no more than n. The highest products of length and occurrences come first.

    For a substring that always ends a word, each end of a word counts as a different next character; with
    `like_hugging_face` they count as the same character, so such a substring is left out.
    """
    remaining = np.zeros(len(words.codes), np.int64)  # characters to the end of the word
    inside = ranges(words.start, words.length)
    remaining[inside] = np.repeat(words.start + words.length, words.length) - inside
    order, shared = sorted_suffixes(words.codes, remaining, max_length + 1)
    if not like_hugging_face:
        shared[1:] = np.minimum(shared[1:], np.minimum(remaining[order[:-1]], remaining[order[1:]]))
    weight = np.zeros(len(words.codes))
    weight[inside] = np.repeat(words.counts, words.length)
    weights_before = np.concatenate([[0.0], np.cumsum(weight[order])])
    runs = []  # (3, runs): the start of each in `order`, its size, and the number of characters its suffixes share
    for n in range(1, max_length + 1):
        starts = np.flatnonzero(shared < n)
        sizes = np.diff(starts, append=len(order))
        if n > 1:
            branching = np.unique(np.searchsorted(starts, np.flatnonzero(shared == n), side="right") - 1)
            starts, sizes = starts[branching], sizes[branching]
        runs.append(np.stack([starts, sizes, np.full_like(starts, n)]))
    table = np.concatenate(runs, axis=1)
    low, size, length = table = table[:, table[2] <= remaining[order[table[0]]]]  # without those that reach over a gap
    character = length == 1
    value = np.where(character, weights_before[low + size] - weights_before[low], size * length)
    best = np.lexsort([order[low], -value, ~character])[: max(seed_size, np.count_nonzero(character))]
    if taken:
        places = zip(order[low[best]].tolist(), length[best].tolist(), strict=True)
        best = best[[n == 1 or words.text[i : i + n] not in taken for i, n in places]]
    low, size, length = table[:, best]
    start = order[ranges(low, size)]
    piece = np.repeat(np.arange(len(best)), size)
    lattice = Lattice.sorted(start, start + length[piece], piece, words.start, words.length)
    scores = np.log(value[best] / value[best].sum())
    return Pieces(order[low], length, scores, np.zeros(len(best))), lattice


class Lattice:
    """The lattices of many words in one, with edges sorted by the depth of their end in its word, then by that end.

    All edges that end n characters into their words are one NumPy step, so that as many steps as the longest word has
    characters serve all words. No two edges of a step start at the same node.

    Args:
        start, end: the nodes of each edge, (E). Edges with the same end are neighbours, sorted by start.
        piece: the number of its piece, (E).
        word_start, word_length: the first node of each word, and how many edges of one character lead to its last.
    """

    def __init__(self, start: NDArray, end: NDArray, piece: NDArray, word_start: NDArray, word_length: NDArray):
        self.start, self.end, self.piece = start, end, piece
        self.word_start, self.word_end = word_start, word_start + word_length
        self.word_length = word_length
        self.nodes = int(self.word_end.max()) + 1
        new_end = np.flatnonzero(np.diff(end, prepend=-1))  # the first edge with each end
        depth = self.depth()[end[new_end]]
        bounds = np.searchsorted(depth, np.arange(1, depth[-1] + 2))
        edges = np.append(new_end, len(end))[bounds]
        self.steps = []  # edges; the first edge with each end, relative to the step; the number of each edge's end
        for a, b, e, f in zip(bounds[:-1], bounds[1:], edges[:-1], edges[1:], strict=True):
            firsts = new_end[a:b] - e
            self.steps.append((slice(e, f), firsts, np.repeat(np.arange(b - a), np.diff(firsts, append=f - e))))

    @classmethod
    def sorted(cls, start: NDArray, end: NDArray, piece: NDArray, word_start: NDArray, word_length: NDArray) -> Lattice:
        """Make a lattice from edges in any order."""
        lattice = cls.__new__(cls)
        lattice.word_start, lattice.word_length, lattice.nodes = word_start, word_length, int(end.max()) + 1
        order = np.lexsort([start, end, lattice.depth()[end]])
        return cls(start[order], end[order], piece[order], word_start, word_length)

    def depth(self) -> NDArray[np.int64]:
        """The number of characters before each node in its word."""
        depth = np.zeros(self.nodes, np.int64)
        size = self.word_length + 1
        depth[ranges(self.word_start, size)] = ranges(np.zeros_like(size), size)
        return depth

    def only(self, stays: NDArray[np.bool_]) -> Lattice:
        """Keep only the edges of the pieces that stay, which are renumbered."""
        kept = stays[self.piece]
        piece = (np.cumsum(stays) - 1)[self.piece[kept]]
        return Lattice(self.start[kept], self.end[kept], piece, self.word_start, self.word_length)

    def forward(self, scores: NDArray, best: bool = False) -> tuple[NDArray, NDArray]:
        """Compute alpha of every word's last node, (W), and each edge's share of the paths into its end, (E).

        With `best`, only the best path counts: the share is 1 for the best edge into a node and 0 for the others.
        """
        alpha, share = np.zeros(self.nodes), np.zeros(len(self.piece))
        for edges, firsts, number in self.steps:
            reached = alpha[self.start[edges]] + scores[self.piece[edges]]
            most = np.maximum.reduceat(reached, firsts)
            ends = self.end[edges][firsts]
            if best:
                alpha[ends] = most
                winners = np.flatnonzero(reached == most[number])
                share[edges.start + winners[np.diff(number[winners], prepend=-1) > 0]] = 1  # the first of equals
            else:
                weight = np.exp(reached - most[number])
                total = np.add.reduceat(weight, firsts)
                alpha[ends] = most + np.log(total)
                share[edges] = weight / total[number]
        return alpha[self.word_end], share

    def backward(self, share: NDArray, counts: NDArray) -> NDArray:
        """Expected uses of every edge, (E), by words that occur `counts` times, (W): the gradient of forward."""
        reach, used = np.zeros(self.nodes), np.empty(len(share))
        reach[self.word_end] = counts
        for edges, _, _ in reversed(self.steps):
            used[edges] = share[edges] * reach[self.end[edges]]
            reach[self.start[edges]] += used[edges]
        return used


def expected_counts(lattice: Lattice, scores: NDArray, counts: NDArray) -> tuple[float, NDArray]:
    """The E step: the log likelihood of all words, and the expected count of each piece, (P)."""
    log_z, share = lattice.forward(scores)
    used = lattice.backward(share, counts)
    return float(log_z @ counts), np.bincount(lattice.piece, used, len(scores))


def maximise(expected: NDArray, log: Callable[[NDArray], NDArray] = np.log) -> NDArray:
    """The M step: scores from expected counts. `log` is the logarithm for maximum likelihood, or `digamma`."""
    return log(expected) - log(expected.sum())


def digamma(x: NDArray) -> NDArray:
    """The derivative of log gamma(x), for x > 0: about log(x - 1/2), and far less for small x.

    Abramowitz and Stegun, 6.3.5 to bring x to 7 or more, and then the series of 6.3.18 around x - 1/2.
    """
    x = np.array(x, np.float64)
    result = np.zeros_like(x)
    for _ in range(7):
        small = x < 7
        result -= np.where(small, 1 / x, 0)
        x += small
    y = 1 / (x - 0.5) ** 2
    return result + np.log(x - 0.5) + y / 24 - 7 / 960 * y**2 + 31 / 8064 * y**3 - 127 / 30720 * y**4


def losses(lattice: Lattice, pieces: Pieces, counts: NDArray) -> NDArray:
    """The log likelihood that dropping each piece would cost, (P); infinite for characters.

    Without a piece that the best paths use f times, its best segmentation into m other pieces would take its place:
    the count of each of these rises by f, and the total by f (m - 1). A piece on no best path gets -inf.
    """
    _, share = lattice.forward(pieces.scores, best=True)
    count = np.bincount(lattice.piece, lattice.backward(share, counts), len(pieces.scores))
    used = count > 0
    owner, other = alternatives(lattice, pieces)
    owner, other = owner[used[owner]], other[used[owner]]
    how_many = np.bincount(owner, minlength=len(count))[used]
    log_others = np.bincount(owner, np.log(count[other] + count[owner]), len(count))[used]
    loss, f, total = np.full(len(count), -np.inf), count[used], count.sum()
    loss[used] = f * (np.log(f / total) - log_others + how_many * np.log(total + f * (how_many - 1)))
    return np.where(pieces.length == 1, np.inf, loss)


def alternatives(lattice: Lattice, pieces: Pieces) -> tuple[NDArray, NDArray]:
    """Pairs of a piece with two characters or more, and a piece of its best segmentation into others."""
    by_start = np.argsort(lattice.start, kind="stable")
    offsets = np.searchsorted(lattice.start[by_start], np.arange(lattice.nodes + 1))
    long = np.flatnonzero(pieces.length > 1)
    if not len(long):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    first, length = pieces.first[long], pieces.length[long]
    base = np.cumsum(length + 1) - length - 1  # the first node of each piece
    node, number = ranges(first, length), np.repeat(np.arange(len(long)), length)
    sizes = offsets[node + 1] - offsets[node]
    edges, number = by_start[ranges(offsets[node], sizes)], np.repeat(number, sizes)
    fits = (lattice.end[edges] <= (first + length)[number]) & (lattice.piece[edges] != long[number])
    edges, number = edges[fits], number[fits]
    shift = (base - first)[number]
    # The "piece" of an edge here is its place in `edges`, which identifies the edges of the best paths afterwards.
    inner = Lattice.sorted(
        lattice.start[edges] + shift, lattice.end[edges] + shift, np.arange(len(edges)), base, length
    )
    _, share = inner.forward(pieces.scores[lattice.piece[edges]], best=True)
    chosen = inner.piece[inner.backward(share, np.ones(len(long))) > 0]
    return long[number[chosen]], lattice.piece[edges[chosen]]
