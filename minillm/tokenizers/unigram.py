"""The unigram language model: of all ways to cut a text into known pieces, the most probable one.

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

Training is expectation maximisation (EM): begin with every substring that repeats, count pieces by the current
probabilities (E), make the counts probabilities (M), and now and then drop the pieces that the likelihood misses
least. The M step is exp(digamma(count)) / exp(digamma(sum)), a sparse prior that takes about half a count from each.

Text is normalised first; then, as in SentencePiece, a space becomes "▁" (U+2581), one is put in front, and the text is
cut before each, so that no piece reaches over the end of a word. What no piece fits is unknown, one character at a
time, at 10 below the lowest score; unknown neighbours become one unknown token, or bytes where there are pieces such
as `<0x41>` for them.

Sources: Kudo, "Subword Regularization" (2018, arXiv:1804.10959); Kudo and Richardson, "SentencePiece" (2018,
arXiv:1808.06226); Liang and Klein, "Structured Bayesian Nonparametric Models with Variational Inference" (2007), for
the digamma; the tie rule and the treatment of unknown characters are those of Hugging Face's `tokenizers`.
"""

from __future__ import annotations

import base64
import copy
import math
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import regex
from numpy.typing import NDArray

from minillm.errors import InputError, did_you_mean
from minillm.tokenizers.base import Specials, Tokenizer, check_special_tokens, read_texts, stream
from minillm.tokenizers.hugging_face import flatten, model_type, read_added_tokens, read_around, refuse_settings

SPACE = "\u2581"  # "▁": how a piece writes a space
UNKNOWN_PENALTY = 10.0  # an unknown character scores this much less than the worst piece
PrependScheme = Literal["always", "first", "never"]

CACHED_PRETOKENS = 1 << 17  # a tokenizer that remembers the ids of more pretokens begins again
LONG_WORD = 128  # characters: a longer pretoken is hardly met twice
LONGEST_TRAINED = 512  # characters: of a longer pretoken, training sees stretches of this length

PRETOKEN = regex.compile(f"{SPACE}[^{SPACE}]*|[^{SPACE}]+")
WHITE, GRAPHEME = regex.compile(r"\s+"), regex.compile(r"\X")
LEADING, TRAILING = regex.compile(r"\A\s+"), regex.compile(r"\s+\Z")

Step = Mapping[str, Any]
Segmentation = list[tuple[int, int, int]]  # start, end and id of each piece


class UnigramTokenizer(Tokenizer):
    """A unigram language model over pieces; made by `train`, `load` or `from_hugging_face`.

    The base's table from ids to bytes holds what each id *decodes* to: " the" for "▁the", the byte 0x41 for `<0x41>`.
    Two pieces may decode to the same bytes, so the names of the pieces are kept apart, in `pieces`. A space that was
    put in front cannot be told from one of the text: `decode` drops one leading space unless `prepend_scheme` is
    "never", and what the normaliser changed stays changed.

    Args:
        pieces: every piece with its score (log probability); its place is its id. Special tokens may be among them.
        unk_id: the id of unknown text, or None: then it is an error.
        special_tokens: the text of every special token, with its id. They are never found in ordinary text.
        byte_fallback: write unknown text as pieces `<0x00>` ... `<0xFF>` where all that it needs are there.
        normalizer: a name or steps, as in `normalise_with`.
        prepend_scheme: put a "▁" in front of text that has none: "always" (after each special token too), "first" (at
            the very start only) or "never".
        split: cut before each "▁", so that no piece reaches over it.
        whitespace_split: drop white space and treat each word as a text of its own, before all that.
        strips: special tokens that take the white space beside them with them: "left", "right" or "both".

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
        for token, side in self.strips.items():
            if token not in specials or side not in ("left", "right", "both"):
                raise InputError(
                    f"UnigramTokenizer: strips has {token!r}: {side!r}; give special tokens with left, right or both"
                )
        self._unk_id = unk_id
        self._unk_score = min((score for _, score in self.pieces), default=0.0) - UNKNOWN_PENALTY
        self._vocab = {piece: i for piece, i in ids.items() if piece not in specials}
        self._byte_ids = [self._vocab.get(f"<0x{byte:02X}>") for byte in range(256)] if byte_fallback else [None] * 256
        for piece, i in self._vocab.items():
            self._token_bytes[i] = piece.replace(SPACE, " ").encode()
        for byte, byte_id in enumerate(self._byte_ids):
            if byte_id is not None:
                self._token_bytes[byte_id] = bytes([byte])
        # Every piece with its id and score, and every beginning of one: a search for longer pieces ends where it fails.
        self._trie: dict[str, tuple[int, float] | None] = {}
        for piece, i in self._vocab.items():
            for end in range(1, len(piece)):
                self._trie.setdefault(piece[:end], None)
            self._trie[piece] = (i, self.pieces[i][1])
        self._ids_of_pretoken: dict[str, list[int]] = {}
        self._begun = False  # of a reader, see _encode_blocks
        self._draw: Callable[[str], Segmentation] | None = None  # of a reader that samples

    @property
    def unk_id(self) -> int | None:
        """The id of unknown text, or None. (The base's is a special token; here any piece may be it.)"""
        return self._unk_id

    # Text to ids

    def _encode_blocks(
        self, chunks: Iterable[str], allowed_special: Specials, disallowed_special: Specials
    ) -> Iterator[list[int]]:
        """As the base's, by a copy of this tokenizer that knows whether the text has begun."""
        reader = copy.copy(self)
        reader._begun = False
        return super(UnigramTokenizer, reader)._encode_blocks(chunks, allowed_special, disallowed_special)

    def _encode_settled(self, text: str, more: bool) -> tuple[list[int], int]:
        # What is left after a cut begins with a space, and so gets no "▁" in front, in whatever scheme.
        end = self.text_steps.settled(text) if more else len(text)
        pretokens = self.text_steps.pretokens(text[:end], first=not self._begun)
        self._begun |= end > 0 or not more
        ids: list[int] = []
        for pretoken in pretokens:
            ids += self._ids_of(pretoken)
        return ids, end

    def _ids_of(self, pretoken: str) -> list[int]:
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

    def _name(self, text: str, path: Segmentation) -> list[int]:
        """The ids of a segmentation: unknown neighbours become one, which is a piece, or bytes, or unknown."""
        ids: list[int] = []
        unknown_from = None
        for start, _, i in [*path, (len(text), len(text), None)]:
            if i == -1:
                raise InputError(
                    f"UnigramTokenizer.encode: character {text[start]!r} (U+{ord(text[start]):04X}) is no piece, and "
                    "there is no piece for unknown text; give unk_id, or train on text that has the character"
                )
            if i is not None and i == self._unk_id:
                unknown_from = start if unknown_from is None else unknown_from
                continue
            if unknown_from is not None:
                ids += self._name_unknown(text[unknown_from:start])
                unknown_from = None
            if i is not None:
                ids.append(i)
        return ids

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
        With `alpha` 0 all segmentations are equally probable; the larger it is, the nearer to `encode`. The same
        `seed` gives the same ids; a NumPy generator is drawn from, and goes on.

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
        total = [0.0] + [-math.inf] * len(text)  # of all paths to a node, as a log
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

    def decode(self, ids: Iterable[int] | NDArray[np.integer], errors: str = "replace") -> str:
        """The text of a sequence of token ids, as the base's; without the space that was put in front.

        Raises: InputError for an id out of range; DtypeError for anything that is not an integer.
        """
        known = self._checked("decode", ids)
        text = super().decode(known, errors)
        begins = known[:1] and known[0] < len(self.pieces) and self.pieces[known[0]][0] in self._vocab
        return text.removeprefix(" ") if begins and self.text_steps.prepend_scheme != "never" else text

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
            max_piece_length: characters.
            seed_size: how many pieces to begin with, at most.
            shrinking_factor: the share of pieces that stay each time some are dropped.
            sub_iterations: EM steps before each time.
            like_hugging_face: begin without the substrings that always end a word, and when the last pieces are
                dropped keep those with the greatest loss, not the highest score. Nearly all pieces (97% and more)
                then are those of Hugging Face's `UnigramTrainer`; otherwise about 87%.
            progress: show a progress bar.

        Raises: InputError for a `vocab_size` with no room for the characters and special tokens, an option out of
        range, text that is empty, or a file that cannot be read.
        """
        where = f"{cls.__name__}.train"
        fixed = [unk_token, *([f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else [])]
        specials = [unk_token, *special_tokens]
        check_special_tokens(where, special_tokens if isinstance(special_tokens, str) else specials)
        if not 0 < shrinking_factor < 1 or max_piece_length < 1 or sub_iterations < 1:
            raise InputError(
                f"{where}: shrinking_factor is {shrinking_factor}, max_piece_length {max_piece_length}, sub_iterations "
                f"{sub_iterations}; give a factor between 0 and 1, and 1 or more for the others"
            )
        counts = count_pretokens(where, text_or_files, Metaspace(normalizer, prepend_scheme, True, False), specials)
        room = vocab_size - len(fixed) - len(special_tokens)
        characters = len(set().union(*counts))
        if room < characters:
            raise InputError(
                f"{where}: vocab_size is {vocab_size}, expected at least {vocab_size - room + characters} "
                f"({characters} characters and {vocab_size - room} tokens such as {unk_token!r}); raise it"
            )
        with ProgressBar() if progress else nullcontext(lambda left, enough: None) as report:
            learnt = learn_pieces(
                counts,
                room,
                max_piece_length,
                seed_size,
                shrinking_factor,
                sub_iterations,
                like_hugging_face,
                {*fixed},
                report,
            )
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
            "normalizer": list(self.text_steps.steps),
            "prepend_scheme": self.text_steps.prepend_scheme,
            "split": self.text_steps.split,
            "whitespace_split": self.text_steps.whitespace_split,
            "strips": self.strips,
        }

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
        what `build_inputs_with_special_tokens` puts. `decode` is ours: its decoder is not read.

        Raises: InputError that names a component, or an option of one, that is not known here.
        """
        where = f"{cls.__name__}.from_hugging_face"
        try:
            return cls._read_hugging_face(where, content)
        except (KeyError, TypeError, AttributeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(
                f"{where}: this is no content of a tokenizer.json with a Unigram model ({reason}); give json.load's"
            ) from error

    @classmethod
    def _read_hugging_face(cls, where: str, content: Mapping[str, Any]) -> Self:
        model = content["model"]
        if model.get("type", "Unigram") != "Unigram":
            raise InputError(
                f"{where}: model is of type {model['type']!r}, expected 'Unigram'; read it by its own class"
            )
        refuse_settings(where, content)
        normalizer = flatten(content.get("normalizer"), "normalizers")
        specials, strips = read_added_tokens(where, content, bool(normalizer))
        splitting = flatten(content.get("pre_tokenizer"), "pretokenizers")
        names = [step["type"] for step in splitting]
        if names not in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]):
            raise InputError(
                f"{where}: pre_tokenizer is {' + '.join(names) or None}, expected Metaspace, or WhitespaceSplit and "
                "Metaspace; only these are known here"
            )
        metaspace = splitting[-1]
        if metaspace.get("replacement", SPACE) != SPACE:
            raise InputError(f"{where}: Metaspace has replacement {metaspace['replacement']!r}, expected {SPACE!r}")
        old = "always" if metaspace.get("add_prefix_space", True) else "never"  # before there were schemes
        tokenizer = cls(
            [(piece, score) for piece, score in model["vocab"]],
            model.get("unk_id"),
            specials,
            byte_fallback=model.get("byte_fallback", False),
            normalizer=normalizer,
            prepend_scheme=metaspace.get("prepend_scheme", old),
            split=metaspace.get("split", True),
            whitespace_split=len(names) == 2,
            strips=strips,
        )
        tokenizer.around = read_around(where, content.get("post_processor"), specials)
        return tokenizer


def check_pieces(
    pieces: Sequence[tuple[str, float]], ids: Mapping[str, int], unk_id: int | None, specials: Mapping[str, int]
) -> None:
    """Refuse pieces that cannot be a vocabulary."""
    for i, (piece, score) in enumerate(pieces):
        if not piece or ids[piece] != i:
            raise InputError(f"UnigramTokenizer: piece {piece!r} at {i} is empty or there again later; give each once")
        if not math.isfinite(score):
            raise InputError(f"UnigramTokenizer: piece {piece!r} has score {score}; give a log probability")
    if unk_id is not None and not 0 <= unk_id < len(pieces):
        raise InputError(f"UnigramTokenizer: unk_id is {unk_id}, expected one of the {len(pieces)} pieces, or None")
    for token, i in specials.items():
        if ids.get(token, i) != i:
            raise InputError(
                f"UnigramTokenizer: special token {token!r} has id {i}, but is the piece {ids[token]}; give it that id"
            )


def log_sum_exp(values: Sequence[float]) -> float:
    """log sum e^x, of which the largest is taken out so that nothing overflows."""
    most = max(values)
    return most + math.log(math.fsum([math.exp(value - most) for value in values]))


# Text to pretokens


def strip_accents(text: str) -> str:
    """The text without marks (categories M*); it should have been taken apart by NFD or NFKD before."""
    return "".join([c for c in text if not unicodedata.category(c).startswith("M")])


def strip_ends(text: str, left: bool, right: bool) -> str:
    """The text without white space at its start, its end, or both."""
    text = LEADING.sub("", text) if left else text
    return TRAILING.sub("", text) if right else text


NORMALISERS: dict[str, Callable[[str], str]] = {
    "NFC": partial(unicodedata.normalize, "NFC"),
    "NFD": partial(unicodedata.normalize, "NFD"),
    "NFKC": partial(unicodedata.normalize, "NFKC"),
    "NFKD": partial(unicodedata.normalize, "NFKD"),
    "Lowercase": lambda text: "".join([c.lower() for c in text]),  # by character: a final sigma is like any other
    "StripAccents": strip_accents,
}


def normalise_with(step: Step) -> Callable[[str], str]:
    """The function of a normalisation step, which is written as in Hugging Face's tokenizer.json.

    A step is `{"type": name}` with NFC, NFD, NFKC, NFKD, Lowercase or StripAccents (which drops combining marks);
    `{"type": "Strip", "strip_left": True, "strip_right": True}`, of white space; or
    `{"type": "Replace", "pattern": {"String": "``"}, "content": '"'}`, where "Regex" may stand for "String"; or
    `{"type": "Precompiled", "precompiled_charsmap": text}`, see `CharacterTable`.

    Raises: InputError for a step that is not known, or cannot be read.
    """
    name = step.get("type")
    if name in NORMALISERS:
        return NORMALISERS[name]
    if name == "Strip":
        return partial(strip_ends, left=step.get("strip_left", True), right=step.get("strip_right", True))
    if name == "Replace":
        pattern, content = step["pattern"], step["content"]
        try:
            found = regex.compile(pattern["Regex"] if "Regex" in pattern else regex.escape(pattern["String"]))
        except regex.error as error:
            raise InputError(f"UnigramTokenizer: Replace has the pattern {pattern} ({error}); mend it") from error
        return lambda text: found.sub(lambda _: content, text)
    if name == "Precompiled":
        return CharacterTable(step["precompiled_charsmap"])
    known = [*NORMALISERS, "Strip", "Replace", "Precompiled"]
    raise InputError(f"UnigramTokenizer: normalizer {name!r} is not known here{did_you_mean(str(name), known)}")


class CharacterTable:
    """SentencePiece's compiled table of normalisation: its "nmt_nfkc", or whatever a model was trained with.

    After base64 there are the size of a trie (4 bytes), the trie, and replacements that each end in a zero byte. The
    trie is a "double array" (Aoe 1989, in the layout of the library darts-clone) of 32-bit units: a child by byte b is
    at the place of its parent's children xor b, and carries b as its label. Where a key ends, the unit at xor 0 has the
    place of its replacement.

    As in Hugging Face's `tokenizers`, a grapheme of at most 5 bytes is looked up as a whole, then every character by
    itself; and the *shortest* key that it begins with counts.

    Raises: InputError for a table that is damaged.
    """

    LABEL, VALUE = 1 << 31 | 0xFF, (1 << 31) - 1

    def __init__(self, table: str):
        try:
            content = base64.b64decode(table, validate=True)
            size = int.from_bytes(content[:4], "little")
            self.units = np.frombuffer(content[4 : 4 + size], "<u4").tolist()
            if not self.units or len(self.units) * 4 != size:
                raise ValueError("it is too short")
        except ValueError as error:
            raise InputError(
                f"UnigramTokenizer: normalizer Precompiled cannot be read ({error}); take the tokenizer.json again"
            ) from error
        self.replacements = content[4 + size :]
        self.known: dict[str, str] = {}  # graphemes that were looked up

    def __call__(self, text: str) -> str:
        if len(self.known) >= CACHED_PRETOKENS:
            self.known.clear()
        graphemes = GRAPHEME.findall(text)
        for grapheme in {*graphemes} - self.known.keys():
            whole = self.find(grapheme) if len(grapheme.encode()) < 6 else None
            parts = (self.find(character) for character in grapheme)
            self.known[grapheme] = (
                whole
                if whole is not None
                else "".join(
                    [character if part is None else part for character, part in zip(grapheme, parts, strict=True)]
                )
            )
        return "".join(map(self.known.__getitem__, graphemes))

    def find(self, text: str) -> str | None:
        """The replacement of the shortest key that `text` begins with."""
        place = self.children(self.units[0])
        for byte in text.encode():
            place ^= byte
            if byte == 0 or place >= len(self.units) or self.units[place] & self.LABEL != byte:
                return None
            unit = self.units[place]
            place ^= self.children(unit)
            if unit >> 8 & 1:  # a key ends here
                start = self.units[place] & self.VALUE
                return self.replacements[start : self.replacements.index(b"\0", start)].decode()
        return None

    @staticmethod
    def children(unit: int) -> int:
        """How far, by xor, the children of a unit are from it: 21 bits, counted in 256s where bit 9 is set."""
        return unit >> 10 << ((unit & 1 << 9) >> 6)


class Metaspace:
    """Normalises text and cuts it into pretokens; the arguments are those of `UnigramTokenizer`."""

    def __init__(self, normalizer: str | Sequence[Step], prepend_scheme: PrependScheme, split: bool, by_white: bool):
        if prepend_scheme not in (schemes := get_args(PrependScheme)):
            hint = did_you_mean(str(prepend_scheme), schemes)
            raise InputError(f"UnigramTokenizer: prepend_scheme is {prepend_scheme!r}{hint}")
        self.steps = ({"type": normalizer},) if isinstance(normalizer, str) else tuple(normalizer)
        self.functions = [normalise_with(step) for step in self.steps]
        self.prepend_scheme, self.split, self.whitespace_split = prepend_scheme, split, by_white
        # A normal form joins and reorders nothing across a space; Strip, Replace and a table may look beyond it.
        self.local = (split or by_white) and all(step["type"] in NORMALISERS for step in self.steps)

    def settled(self, text: str) -> int:
        """Where the last cut is that nothing can change that may follow `text`: before a space; 0 where there is none.

        With a normaliser that may look over spaces, or without a split, a stretch is held until its end is known.
        """
        return max(0, text.rfind(" ")) if self.local else 0

    def pretokens(self, text: str, first: bool) -> list[str]:
        """The pretokens of `text`, a stretch without special tokens; `first`: it is the start of all text."""
        for function in self.functions:
            text = function(text)
        stretches = WHITE.split(text) if self.whitespace_split else [text]
        pretokens: list[str] = []
        for number, stretch in enumerate(stretches):
            if not stretch:
                continue
            stretch = stretch.replace(" ", SPACE)
            prepend = self.prepend_scheme == "always" or (self.prepend_scheme == "first" and first and number == 0)
            if prepend and not stretch.startswith(SPACE):
                stretch = SPACE + stretch
            pretokens += PRETOKEN.findall(stretch) if self.split else [stretch]
        return pretokens


def count_pretokens(
    where: str, text_or_files: str | Path | Iterable[str | Path], steps: Metaspace, special_tokens: Sequence[str]
) -> Counter[str]:
    """How often the text has each pretoken; long ones are cut."""
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


# Training: all words together, in arrays


def learn_pieces(
    counts: Mapping[str, int],
    room: int,
    max_piece_length: int = 16,
    seed_size: int = 1_000_000,
    shrinking_factor: float = 0.75,
    sub_iterations: int = 2,
    like_hugging_face: bool = False,
    taken: Collection[str] = (),
    progress: Callable[[int, int], Any] = lambda left, enough: None,
) -> list[tuple[str, float]]:
    """At most `room` pieces of different words with counts, and their scores, the highest first.

    `progress` is called after each EM step with the number of pieces that are left, and at which pruning ends.
    """
    words = Words(list(counts), np.fromiter(counts.values(), np.float64))
    pieces, lattice = seed_pieces(words, max_piece_length, seed_size, like_hugging_face, taken)
    # All numbers of pieces count the unknown token too, as elsewhere. The last tenth goes by score.
    enough = (room + 1) * 11 // 10 - 1
    while True:
        for _ in range(sub_iterations):
            _, expected = expected_counts(lattice, pieces.scores, words.counts)
            stays = (expected >= 0.5) | (pieces.length == 1)
            pieces, lattice = pieces.only(stays), lattice.only(stays)
            pieces = pieces._replace(scores=maximise(np.maximum(expected[stays], 0.5), digamma))
            progress(len(pieces.scores), enough)
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
    """Which are the `size` largest values, less those that are -inf; of equals, the first."""
    stays = np.zeros(len(values), np.bool_)
    stays[np.argsort(-values, kind="stable")[:size]] = True
    return stays & (values > -np.inf)


class ProgressBar:
    """Shows how far the number of pieces has come down."""

    def __enter__(self) -> Callable[[int, int], None]:
        from rich.progress import Progress

        self.bar = Progress()
        self.bar.start()
        self.task, self.most = self.bar.add_task("learning pieces"), 0
        return self.report

    def report(self, left: int, enough: int) -> None:
        self.most = max(self.most, left)
        self.bar.update(self.task, total=max(1, self.most - enough), completed=self.most - max(left, enough))

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


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
    """Pieces in training, (P) each: a place in `Words.text` where it is, characters, score, loss (see `losses`)."""

    first: NDArray[np.int64]
    length: NDArray[np.int64]
    scores: NDArray[np.float64]
    loss: NDArray[np.float64]

    def only(self, stays: NDArray[np.bool_]) -> Pieces:
        return Pieces(self.first[stays], self.length[stays], self.scores[stays], self.loss[stays])


def ranges(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """start, start + 1, ... start + size - 1, for each, one after the other."""
    return np.repeat(starts - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())


def sorted_suffixes(codes: NDArray[np.int64], remaining: NDArray[np.int64], reach: int) -> tuple[NDArray, NDArray]:
    """All suffixes of words in the order of their first `reach` characters, and how many each shares with the last.

    A gap counts as a character, so that what is shared may reach over it.

    By doubling (Manber and Myers 1990): the rank of 2h characters comes from the ranks of two halves of h. Equal ranks
    are equal text, so the same ranks tell, by steps of ..., 8, 4, 2, 1, how much two neighbours share.
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

    Of a substring that always ends a word, the end is what follows, and differs at each; with `like_hugging_face` it
    is one more character, so that such a substring is left out.
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
    runs = []  # (3, runs): where each begins in `order`, its size, and the characters that its suffixes share
    for n in range(1, max_length + 1):
        starts = np.flatnonzero(shared < n)
        sizes = np.diff(starts, append=len(order))
        if n > 1:
            branching = np.unique(np.searchsorted(starts, np.flatnonzero(shared == n), side="right") - 1)
            starts, sizes = starts[branching], sizes[branching]
        runs.append(np.stack([starts, sizes, np.full_like(starts, n)]))
    table = np.concatenate(runs, axis=1)
    low, size, length = table = table[:, table[2] <= remaining[order[table[0]]]]  # not those that reach over a gap
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
    """The lattices of many words in one: edges in the order of how deep in its word, and where, each ends.

    All edges that end n characters into their words are one NumPy step, so that as many steps as the longest word has
    characters serve all words. No two edges of a step start at the same node.

    Args:
        start, end: the nodes of each edge, (E). Edges with one end stand together, those that start first before.
        piece: the number of its piece, (E).
        word_start, word_length: the first node of each word, and how many edges of one character lead to its last.
    """

    def __init__(self, start: NDArray, end: NDArray, piece: NDArray, word_start: NDArray, word_length: NDArray):
        self.start, self.end, self.piece = start, end, piece
        self.word_start, self.word_end = word_start, word_start + word_length
        self.word_length = word_length
        self.nodes = int(self.word_end.max()) + 1
        new_end = np.flatnonzero(np.diff(end, prepend=-1))  # edges that are the first with their end
        depth = self.depth()[end[new_end]]
        bounds = np.searchsorted(depth, np.arange(1, depth[-1] + 2))
        edges = np.append(new_end, len(end))[bounds]
        self.steps = []  # edges; the first edge with each end, counted from the step's; the number of each edge's end
        for a, b, e, f in zip(bounds[:-1], bounds[1:], edges[:-1], edges[1:], strict=True):
            firsts = new_end[a:b] - e
            self.steps.append((slice(e, f), firsts, np.repeat(np.arange(b - a), np.diff(firsts, append=f - e))))

    @classmethod
    def sorted(cls, start: NDArray, end: NDArray, piece: NDArray, word_start: NDArray, word_length: NDArray) -> Lattice:
        """A lattice of edges in any order."""
        lattice = cls.__new__(cls)
        lattice.word_start, lattice.word_length, lattice.nodes = word_start, word_length, int(end.max()) + 1
        order = np.lexsort([start, end, lattice.depth()[end]])
        return cls(start[order], end[order], piece[order], word_start, word_length)

    def depth(self) -> NDArray[np.int64]:
        """How many characters into its word each node is."""
        depth = np.zeros(self.nodes, np.int64)
        size = self.word_length + 1
        depth[ranges(self.word_start, size)] = ranges(np.zeros_like(size), size)
        return depth

    def only(self, stays: NDArray[np.bool_]) -> Lattice:
        """Without the edges of some pieces; the pieces that stay are numbered anew."""
        kept = stays[self.piece]
        piece = (np.cumsum(stays) - 1)[self.piece[kept]]
        return Lattice(self.start[kept], self.end[kept], piece, self.word_start, self.word_length)

    def forward(self, scores: NDArray, best: bool = False) -> tuple[NDArray, NDArray]:
        """alpha of every word's last node, (W), and the share of every edge in those that have its end, (E).

        With `best`, of the best path instead: the share is 1 for the best edge into a node and 0 for the others.
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
        """How often every edge is used, (E), by words that come `counts` times, (W): the gradient of forward."""
        reach, used = np.zeros(self.nodes), np.empty(len(share))
        reach[self.word_end] = counts
        for edges, _, _ in reversed(self.steps):
            used[edges] = share[edges] * reach[self.end[edges]]
            reach[self.start[edges]] += used[edges]
        return used


def expected_counts(lattice: Lattice, scores: NDArray, counts: NDArray) -> tuple[float, NDArray]:
    """The E step: the log likelihood of all words, and how often each piece is used, on average over paths, (P)."""
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
    """How much log likelihood the words would lose with each piece, (P); characters are beyond price.

    Without a piece that the best paths use f times, its best segmentation by other pieces would stand in its place:
    their counts rise by f each, and that of all by f (m - 1) where there are m. A piece on no best path is -inf.
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
    """Pairs of a piece of two characters or more, and a piece of its best segmentation by others."""
    by_start = np.argsort(lattice.start, kind="stable")
    offsets = np.searchsorted(lattice.start[by_start], np.arange(lattice.nodes + 1))
    long = np.flatnonzero(pieces.length > 1)
    if not len(long):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    first, length = pieces.first[long], pieces.length[long]
    base = np.cumsum(length + 1) - length - 1  # where the nodes of each piece begin
    node, number = ranges(first, length), np.repeat(np.arange(len(long)), length)
    sizes = offsets[node + 1] - offsets[node]
    edges, number = by_start[ranges(offsets[node], sizes)], np.repeat(number, sizes)
    fits = (lattice.end[edges] <= (first + length)[number]) & (lattice.piece[edges] != long[number])
    edges, number = edges[fits], number[fits]
    shift = (base - first)[number]
    # The piece of an edge here is its place in `edges`, so that the edges of the best paths are known afterwards.
    inner = Lattice.sorted(
        lattice.start[edges] + shift, lattice.end[edges] + shift, np.arange(len(edges)), base, length
    )
    _, share = inner.forward(pieces.scores[lattice.piece[edges]], best=True)
    chosen = inner.piece[inner.backward(share, np.ones(len(long))) > 0]
    return long[number[chosen]], lattice.piece[edges[chosen]]
