"""The unigram language model cuts a text into known pieces in the most probable way.

A piece x has a probability p(x), and a segmentation (x1 ... xm) of a text the product of those of its pieces:

    log P(x1 ... xm) = score(x1) + ... + score(xm),   score(x) = log p(x)

The segmentations of a text are the paths of a graph, its *lattice*: the nodes are the places 0 ... T between
characters, and every piece that the text has from place i to place j is an edge from i to j.

    0 --h-- 1 --u-- 2 --g-- 3       edges "h", "u", "g" and, where they are pieces,
    0 ------hu----- 2               "hu" from 0 to 2,
            1 ------ug----- 3       "ug" from 1 to 3

Four questions about paths have one answer, a sum over the edges that end at a node:

- *Which is best?* (`encode`; Viterbi 1967.)  best[j] = max over edges (i, j) of best[i] + score. Of equals, the edge
  that starts first wins, which is the longest. Going back from T along the edges that won gives the path.
- *How probable is the text?*  With a log of a sum of exponentials in the place of the maximum, alpha[j] is the log
  of the summed probability of all paths to j, and alpha[T] = log Z is that of the text.
- *Draw one* (`sample`): the last edge of a path drawn with probability P(path)^a / sum of P^a is (i, T) with
  probability share = exp(alpha[i] + a score - alpha[T]); then the same from i ("forward filtering, backward sampling").
- *How often is each piece used?* (`train`) An edge lies on a path with probability d log Z / d score, so the expected
  counts are the gradient of log Z. The backward of the log of the sum hands each node's gradient on to its edges by
  their shares:  d edge = share * reach[j],  reach[i] += d edge,  from reach[T] = 1 down to reach[0] = 1.

Training (unigram_train.py) is expectation maximisation: count, make the counts probabilities, drop the worst pieces.

Text is normalised first; then, as in SentencePiece, a space becomes "▁" (U+2581), one is put in front, and the text is
cut before each (normalizer.py). A character that is not a piece is unknown, and scores 10 below the lowest score;
neighbouring unknown characters become one unknown token, or bytes if there are pieces such as `<0x41>` for them.

Sources: Kudo, "Subword Regularization" (2018, arXiv:1804.10959); Kudo and Richardson, "SentencePiece" (2018,
arXiv:1808.06226); the tie rule and the treatment of unknown characters are those of Hugging Face's `tokenizers`.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import numpy as np

from minillm.errors import InputError
from minillm.tokenizers.aligned import Aligned, Span
from minillm.tokenizers.base import Specials, Tokenizer, check_special_tokens, check_strips
from minillm.tokenizers.components import model_type
from minillm.tokenizers.files import readable
from minillm.tokenizers.hugging_face import read_unigram
from minillm.tokenizers.normalizer import BYTE_PIECES, SPACE, Metaspace, PrependScheme, Step
from minillm.tokenizers.progress import progress_bar
from minillm.tokenizers.unigram_pieces import check_pieces
from minillm.tokenizers.unigram_train import (
    check_training_options,
    count_pretokens,
    learn_pieces,
    room_for_pieces,
)
from minillm.tokenizers.write_hugging_face import write_unigram

UNKNOWN_PENALTY = 10.0  # an unknown character scores this much less than the worst piece

CACHED_PRETOKENS = 1 << 17  # a tokenizer that remembers the ids of more pretokens begins again
LONG_WORD = 128  # characters: a longer pretoken is hardly met twice

Segmentation = list[tuple[int, int, int]]  # start, end and id of each piece


class UnigramTokenizer(Tokenizer):
    """A unigram language model over pieces; made by `train`, `load` or `from_hugging_face`.

    The base's table from ids to bytes holds the *decoded* bytes of each id: " the" for "▁the", the byte 0x41 for
    `<0x41>`. Two pieces may decode to the same bytes, so the spelling of each piece is kept in `pieces`. A space that
    was put in front cannot be told from one of the text: `decode` drops one leading space unless `prepend_scheme` is
    "never". Changes that the normaliser made are not undone.

    Args:
        pieces: every piece with its score (log probability); its place is its id. Special tokens may be among them.
        unk_id: the id of the piece for unknown text; with None, unknown text is an error.
        special_tokens: the text of every special token, with its id. They are never found in ordinary text.
        byte_fallback: write unknown text as pieces `<0x00>` ... `<0xFF>` if `pieces` has all the needed ones.
        normalizer: a name or steps, as in `normalise_with`.
        prepend_scheme: put a "▁" in front of text that has none: "always" (after each special token too), "first" (at
            the very start only) or "never".
        split: cut before each "▁", so that no piece reaches over it.
        whitespace_split: drop white space and treat each word as a text of its own, before all that.
        strips: special tokens that absorb the white space beside them: "left", "right" or "both".

    Raises: InputError for pieces that are empty or there twice, a score that is no number, ids that do not fit, or a
    normalisation step that is not known.
    """

    kind = "unigram"

    def __init__(
        self,
        pieces: Sequence[tuple[str, float]],
        unk_id: int | None = 0,
        special_tokens: Mapping[str, int] | None = None,
        *,
        byte_fallback: bool = False,
        normalizer: str | Sequence[Step] = (),
        prepend_scheme: PrependScheme = "always",
        split: bool = True,
        whitespace_split: bool = False,
        strips: Mapping[str, str] | None = None,
    ):
        specials = dict(special_tokens or {})
        self.pieces = [(str(piece), float(score)) for piece, score in pieces]
        ids = {piece: i for i, (piece, _) in enumerate(self.pieces)}
        check_pieces(self.pieces, ids, unk_id, specials)
        super().__init__({piece.encode(): i for piece, i in ids.items() if piece not in specials}, specials)
        self.byte_fallback = byte_fallback
        self.text_steps = Metaspace(normalizer, prepend_scheme, split, whitespace_split)
        self.strips = dict(strips or {})
        check_strips("UnigramTokenizer", self.strips, specials)
        self._unk_id = unk_id
        self._unk_score = min((score for _, score in self.pieces), default=0.0) - UNKNOWN_PENALTY
        self._use_pieces({piece: i for piece, i in ids.items() if piece not in specials})
        for piece, i in self._vocab.items():
            self._token_bytes[i] = piece.replace(SPACE, " ").encode()
        for byte, byte_id in enumerate(self._byte_ids):
            if byte_id is not None:
                self._token_bytes[byte_id] = bytes([byte])
        self._begun = False  # state of a reader, see _encode_blocks
        self._draw: Callable[[str], Segmentation] | None = None  # set in a reader that samples
        self._with_specials: UnigramTokenizer | None = None

    def _use_pieces(self, vocab: dict[str, int]) -> None:
        """Cut text into these pieces."""
        self._vocab = vocab
        self._byte_ids = [self._vocab.get(piece) for piece in BYTE_PIECES] if self.byte_fallback else [None] * 256
        # Every piece with its id and score, and every beginning of one: a search for longer pieces ends where it fails.
        self._trie: dict[str, tuple[int, float] | None] = {}
        for piece, i in self._vocab.items():
            for end in range(1, len(piece)):
                self._trie.setdefault(piece[:end], None)
            self._trie[piece] = (i, self.pieces[i][1])
        self._ids_of_pretoken: dict[str, list[int]] = {}

    def _among_all_pieces(self) -> UnigramTokenizer:
        """A copy of this tokenizer that also finds the pieces that are special tokens in ordinary text.

        It is used where all special tokens are allowed: a text such as "＜/s＞", which NFKC turns into "</s>", is then
        that piece, as in Hugging Face's `tokenizers`.
        """
        if self._with_specials is None:
            self._with_specials = copy.copy(self)
            self._with_specials._use_pieces({piece: i for i, (piece, _) in enumerate(self.pieces)})
        return self._with_specials

    @property
    def unk_id(self) -> int | None:
        """The id of the token for unknown text, or None; any piece may be it, not just a special token."""
        return self._unk_id

    # Text to ids

    def encode_continuation(self, text: str) -> list[int]:
        without = copy.copy(self)
        without.text_steps, without._with_specials = copy.copy(self.text_steps), None
        without.text_steps.prepend_scheme = "never"
        return without.encode(text)

    def _encode_blocks(
        self, chunks: Iterable[str], allowed_special: Specials, disallowed_special: Specials
    ) -> Iterator[list[int]]:
        """Encode with a copy of this tokenizer that remembers if the text has begun."""
        allowed = self._choose("allowed_special", allowed_special)
        every = allowed is self.special_tokens and any(piece in allowed for piece, _ in self.pieces)
        reader = copy.copy(self._among_all_pieces() if every else self)
        reader._begun, reader._draw = False, self._draw
        return super(UnigramTokenizer, reader)._encode_blocks(chunks, allowed_special, disallowed_special)

    def _encode_settled(self, text: str, more: bool) -> tuple[list[int], int]:
        # The rest after a cut begins with a space, and so gets no "▁" in front under any scheme.
        end = self.text_steps.settled(text) if more else len(text)
        pretokens = self.text_steps.pretokens(text[:end], first=not self._begun)
        self._begun |= end > 0 or not more
        ids: list[int] = []
        for pretoken in pretokens:
            ids += self.ids_of(pretoken)
        return ids, end

    def ids_of(self, pretoken: str) -> list[int]:
        """The ids of a pretoken, which is normalised."""
        if self._draw is not None:
            return self._name(pretoken, self._draw(pretoken))
        ids = self._ids_of_pretoken.get(pretoken)
        if ids is None:
            ids = self._name(pretoken, self._viterbi(pretoken))
            if len(self._ids_of_pretoken) >= CACHED_PRETOKENS:
                self._ids_of_pretoken.clear()
            if len(pretoken) <= LONG_WORD:
                self._ids_of_pretoken[pretoken] = ids
        return ids

    def _edges(self, text: str, start: int) -> list[tuple[int, int, float]]:
        """End, id and score of every edge of the lattice that begins at `start`, the shortest first."""
        edges: list[tuple[int, int, float]] = []
        for end in range(start + 1, len(text) + 1):
            found = self._trie.get(text[start:end], ())
            if found is None:  # the beginning of a longer piece
                continue
            if not found:
                break
            edges.append((end, *found))
        if not edges or edges[0][0] > start + 1:  # no piece is this one character
            edges.append((start + 1, -1 if self._unk_id is None else self._unk_id, self._unk_score))
        return edges

    def _viterbi(self, text: str) -> Segmentation:
        best = [0.0] * (len(text) + 1)
        came_by: list[tuple[int, int] | None] = [None] * (len(text) + 1)  # start and id of the best edge to a node
        for start in range(len(text)):
            here = best[start]
            for end, i, score in self._edges(text, start):
                if came_by[end] is None or here + score > best[end]:
                    best[end], came_by[end] = here + score, (start, i)
        path, end = [], len(text)
        while end > 0:
            start, i = came_by[end] or (0, -1)
            path.append((start, end, i))
            end = start
        return path[::-1]

    def _encode_aligned(self, text: Aligned) -> Iterator[tuple[int, Span]]:
        for pretoken in self.text_steps.aligned(text):
            for start, end, i in self._pieces_with_ids(pretoken.text, self._viterbi(pretoken.text)):
                yield i, pretoken.part(start, end).span

    def _name(self, text: str, path: Segmentation) -> list[int]:
        """The ids of a segmentation."""
        return [i for _, _, i in self._pieces_with_ids(text, path)]

    def _pieces_with_ids(self, text: str, path: Segmentation) -> Iterator[tuple[int, int, int]]:
        """Start, end and id of each token; neighbouring unknown characters become one piece, bytes, or unknown."""
        unknown_from = None
        for start, end, i in [*path, (len(text), len(text), None)]:
            if i == -1:
                raise InputError(
                    f"UnigramTokenizer.encode: character {text[start]!r} (U+{ord(text[start]):04X}) is not a piece, "
                    "and there is no piece for unknown text; give unk_id, or train on text that has the character"
                )
            if i is not None and i == self._unk_id:
                unknown_from = start if unknown_from is None else unknown_from
                continue
            if unknown_from is not None:
                for unknown in self._name_unknown(text[unknown_from:start]):
                    yield unknown_from, start, unknown
                unknown_from = None
            if i is not None:
                yield start, end, i

    def _name_unknown(self, text: str) -> list[int]:
        if (i := self._vocab.get(text)) is not None:
            return [i]
        byte_ids = [self._byte_ids[byte] for byte in text.encode()]
        known = [i for i in byte_ids if i is not None]
        assert self._unk_id is not None
        return known if len(known) == len(byte_ids) else [self._unk_id]

    def sample(
        self,
        text: str,
        alpha: float = 0.1,
        seed: int | np.random.Generator = 0,
        allowed_special: Specials = "none",
        disallowed_special: Specials = "none",
    ) -> list[int]:
        """The ids of a segmentation of `text` drawn with a probability proportional to P(segmentation)^alpha.

        Training on a new draw in every epoch makes a model robust against how words are cut (subword regularisation).
        With `alpha` 0 all segmentations are equally probable; the larger it is, the nearer to `encode`. An
        integer `seed` always gives the same ids; a NumPy generator is advanced.

        Raises: InputError for an `alpha` below 0 or infinite; else as `encode`.
        Source: Kudo (2018), section 3.2, where all segmentations may be drawn (l is infinite).
        """
        if not 0 <= alpha < math.inf:
            raise InputError(f"UnigramTokenizer.sample: alpha is {alpha}; give a number of 0 or more, such as 0.1")
        rng = np.random.default_rng(seed)
        reader = copy.copy(self)
        reader._draw = partial(self._draw_path, alpha=alpha, rng=rng)
        return reader.encode(text, allowed_special, disallowed_special)

    def _draw_path(self, text: str, alpha: float, rng: np.random.Generator) -> Segmentation:
        into: list[list[tuple[int, int, float]]] = [[] for _ in range(len(text) + 1)]  # start, id, log weight
        total = [0.0] + [-math.inf] * len(text)  # log of the summed weights of all paths to a node
        for start in range(len(text)):
            total[start] = log_sum_exp([weight for _, _, weight in into[start]]) if start else 0.0
            for end, i, score in self._edges(text, start):
                into[end].append((start, i, total[start] + alpha * score))
        path, end = [], len(text)
        while end > 0:
            weights = [weight for _, _, weight in into[end]]
            most = max(weights)
            sums = list(accumulate(math.exp(weight - most) for weight in weights))
            start, i, _ = into[end][min(bisect_right(sums, rng.random() * sums[-1]), len(sums) - 1)]
            path.append((start, end, i))
            end = start
        return path[::-1]

    # Ids to text

    def _text(self, ids: list[int], errors: str, more: bool = False) -> str:
        """Decode, without the space that was put in front."""
        text = super()._text(ids, errors, more)
        begins = ids[:1] and ids[0] < len(self.pieces) and self.pieces[ids[0]][0] in self._vocab
        drops = begins and self.text_steps.prepend_scheme != "never" and self.decoder is None
        return text.removeprefix(" ") if drops else text

    def _spelling(self, i: int) -> str:
        return self.pieces[i][0] if i < len(self.pieces) else super()._spelling(i)

    # Training

    @classmethod
    def train(
        cls,
        text_or_files: str | Path | Iterable[str | Path],
        vocab_size: int,
        special_tokens: Sequence[str] = (),
        *,
        unk_token: str = "<unk>",
        byte_fallback: bool = False,
        normalizer: str | Sequence[Step] = (),
        prepend_scheme: PrependScheme = "always",
        max_piece_length: int = 16,
        seed_size: int = 1_000_000,
        shrinking_factor: float = 0.75,
        sub_iterations: int = 2,
        like_hugging_face: bool = False,
        progress: bool = False,
    ) -> Self:
        """Learn a vocabulary of `vocab_size` tokens from text.

        Every character of the text is a piece. Ids: `unk_token` is 0, then come the 256 bytes where `byte_fallback` is
        set, the pieces from the most to the least probable, and the special tokens. Special tokens that occur in the
        text cut it. Where the text has too few repeated substrings, there are fewer tokens.

        Args:
            text_or_files: text (str), a UTF-8 file (pathlib.Path), or an iterable of either, each a text of its own.
            max_piece_length: the maximum number of characters in a piece.
            seed_size: the maximum number of pieces to begin with.
            shrinking_factor: the share of pieces that stay in each pruning.
            sub_iterations: EM steps before each pruning.
            like_hugging_face: begin without the substrings that always end a word, and when the last pieces are
                dropped keep those with the greatest loss, not the highest score. Nearly all pieces (97% and more)
                then are those of Hugging Face's `UnigramTrainer`; otherwise about 87%.
            progress: show a progress bar.

        Raises: InputError for a `vocab_size` with no room for the characters and special tokens, an option out of
        range, text that is empty, or a file that cannot be read.
        """
        where = f"{cls.__name__}.train"
        fixed = [unk_token, *(BYTE_PIECES if byte_fallback else ())]
        specials = [unk_token, *special_tokens]
        check_special_tokens(where, special_tokens if isinstance(special_tokens, str) else specials)
        check_training_options(where, shrinking_factor, max_piece_length, sub_iterations)
        counts = count_pretokens(where, text_or_files, Metaspace(normalizer, prepend_scheme, True, False), specials)
        room = room_for_pieces(where, vocab_size, [*fixed, *special_tokens], counts)
        with progress_bar("learning pieces", progress) as report:
            options = max_piece_length, seed_size, shrinking_factor, sub_iterations, like_hugging_face
            learnt = learn_pieces(counts, room, *options, {*fixed}, report)
        pieces = [*((piece, 0.0) for piece in fixed), *learnt]
        ids = {token: i for i, token in enumerate(special_tokens, start=len(pieces))}
        return cls(
            pieces,
            0,
            {unk_token: 0, **ids},
            byte_fallback=byte_fallback,
            normalizer=normalizer,
            prepend_scheme=prepend_scheme,
        )

    # Files

    def _to_json(self) -> dict[str, Any]:
        return {
            "special_tokens": self.special_tokens,
            "pieces": self.pieces,
            "unk_id": self._unk_id,
            "byte_fallback": self.byte_fallback,
            "normalizer": list(self.text_steps.normalise.steps),
            "prepend_scheme": self.text_steps.prepend_scheme,
            "split": self.text_steps.split,
            "whitespace_split": self.text_steps.whitespace_split,
            "strips": self.strips,
        }

    def to_hugging_face(self) -> dict[str, Any]:
        return write_unigram(f"{type(self).__name__}.to_hugging_face", self)

    @classmethod
    def _from_json(cls, content: dict[str, Any]) -> Self:
        return cls(
            [(piece, score) for piece, score in content["pieces"]],
            content["unk_id"],
            dict(content["special_tokens"]),
            byte_fallback=content["byte_fallback"],
            normalizer=content["normalizer"],
            prepend_scheme=content["prepend_scheme"],
            split=content["split"],
            whitespace_split=content["whitespace_split"],
            strips=content["strips"],
        )

    @classmethod
    def _reads_hugging_face(cls, content: Mapping[str, Any]) -> bool:
        return model_type(content) == "Unigram"

    @classmethod
    def from_hugging_face(cls, content: Mapping[str, Any]) -> Self:
        """Read the content of a Hugging Face `tokenizer.json` with a Unigram model, as `json.load` gives it.

        Its added tokens become special tokens: `encode(text, "all")` gives the ids of Hugging Face's
        `encode(text, add_special_tokens=False)`. What its post-processor would put around a text (such as `</s>`) is
        what `build_inputs_with_special_tokens` puts, and `decode` gives the text that its decoder would.

        Raises: InputError that names a component, or an option of one, that is not supported.
        """
        where = f"{cls.__name__}.from_hugging_face"
        with readable(where, "this is not the content of a tokenizer.json with a Unigram model", "give json.load's"):
            return cls._from_parts(read_unigram(where, content))


def log_sum_exp(values: Sequence[float]) -> float:
    """log sum e^x; the largest x is subtracted first, so that nothing overflows."""
    most = max(values)
    return most + math.log(math.fsum([math.exp(value - most) for value in values]))
