"""Byte-pair encoding on characters, as SentencePiece does it: the tokenizers of Llama 2 and Mistral 7B.

Three things differ from the byte-level BPE of bpe.py. Tokens are made of characters, and a space is one of them,
written "▁" (U+2581); a character that is not a piece is written as its UTF-8 bytes, by pieces such as `<0x0A>`. A "▁"
is put in front of a text. And no pattern cuts words apart: pieces are joined in the text as a whole.

    "a bee\\n"   ->   ▁ a ▁ b e e \\n   ->   ▁a ▁b ee \\n   ->   ▁a ▁bee <0x0A>

There are two ways to give the order of joining. Hugging Face's tokenizer.json lists *merges*, pairs of pieces in order,
as for bpe.py. SentencePiece's own models, and .gguf files, have a *score* for each piece instead: of all neighbours
that together are a piece, those whose piece scores highest are joined, the leftmost of equals. Both become one table
here, from two ids to a rank and the joined id; equal scores get equal ranks.

**Words after all.** Two neighbouring characters that are side by side in no piece are never joined, whatever the order.
A Llama's pieces have "▁" only at the beginning, so text can be cut before each "▁" that follows another sign, and the
short pieces of text get the ids that they have within the whole. Where pieces do reach over the end of a word, the text
is cut only where none does. Ids of words are remembered; a long stretch without any cut (Chinese, say) takes n log n
steps, since pairs wait in a heap (`bpe.merge_pairs`).

Sources: Kudo and Richardson, "SentencePiece" (2018, arXiv:1808.06226); Touvron et al., "Llama 2" (2023), section 2.2;
the code of SentencePiece (`bpe_model.cc`), llama.cpp (`llm_tokenizer_spm`) and Hugging Face's `tokenizers`, whose ids
and text these are.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, groupby, pairwise
from typing import Any, Literal, Self, get_args

import regex

from minillm.errors import InputError, did_you_mean
from minillm.tokenizers.aligned import Aligned, Span, outer
from minillm.tokenizers.base import Specials, Tokenizer, check_strips
from minillm.tokenizers.bpe import CACHED_PRETOKENS, LONG_WORD, Pair, merge_pairs
from minillm.tokenizers.components import model_type
from minillm.tokenizers.decoders import BYTE_PIECE
from minillm.tokenizers.files import readable
from minillm.tokenizers.gguf_fields import read_gguf_sentencepiece
from minillm.tokenizers.hugging_face import read_sentencepiece, writes_spaces
from minillm.tokenizers.normalizer import BYTE_PIECES, SPACE
from minillm.tokenizers.special import SpecialTokens
from minillm.tokenizers.write_hugging_face import write_sentencepiece

PrependScheme = Literal["stretch", "always", "first", "never"]


class SentencePieceBPE(Tokenizer):
    """SentencePiece's BPE; made by `from_file`, `from_hugging_face`, `from_gguf_fields` or `load`.

    The base's table from ids to bytes holds the *decoded* bytes of each id, as in `UnigramTokenizer`.

    Args:
        vocab: every ordinary piece, with its id.
        merges: the pairs of pieces to join, in order; or a table with the score of every piece that joining may make:
            the piece with the highest score is made first.
        special_tokens: the text of every special token, with its id. They are never found in ordinary text.
        unk_token: the token, special or not, for a character that is not a piece; used if `byte_fallback` is false.
        byte_fallback: write such characters as pieces `<0x00>` ... `<0xFF>`, which all must be there.
        fuse_unk: unknown neighbours become one unknown token.
        prepend_scheme: where a "▁" is put in front: "stretch", of every stretch between special tokens; "always", of
            those that do not begin with a space; "first", of the very first one, if it does not; or "never".
        split: no piece reaches over the beginning of a word: cut before every "▁".
        strip_space: `decode` drops one space in front of the text.
        normalized: special tokens that are looked for in text where "▁" stands for spaces and has been put in front.
            They are changed in the same way: with the scheme "stretch", `<s>` is found in " <s>", not in "a<s>".
        strips: special tokens that absorb the white space beside them: "left", "right" or "both".

    Raises: InputError for a merge or a score without a piece, or an invalid option.
    """

    kind = "sentencepiece-bpe"

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[tuple[str, str]] | Mapping[str, float],
        special_tokens: Mapping[str, int] | None = None,
        *,
        unk_token: str | None = "<unk>",
        byte_fallback: bool = True,
        fuse_unk: bool = True,
        prepend_scheme: PrependScheme = "stretch",
        split: bool = False,
        strip_space: bool = True,
        normalized: Sequence[str] = (),
        strips: Mapping[str, str] | None = None,
    ):
        specials = dict(special_tokens or {})
        super().__init__({piece.encode(): i for piece, i in vocab.items()}, specials)
        self.vocab = dict(vocab)
        self.merges = dict(merges) if isinstance(merges, Mapping) else [(left, right) for left, right in merges]
        self.unk_token, self.byte_fallback, self.fuse_unk = unk_token, byte_fallback, fuse_unk
        self.prepend_scheme, self.split, self.strip_space = prepend_scheme, split, strip_space
        self.normalized, self.strips = tuple(normalized), dict(strips or {})
        self._check_options()
        self._unk_id = {**self.vocab, **specials}.get(unk_token or "")
        self._byte_ids = [self.vocab[piece] for piece in BYTE_PIECES] if byte_fallback else []
        self._ranks, self._made = (
            joins_by_score(self.vocab, self.merges)
            if isinstance(self.merges, dict)
            else joins_by_order(self.vocab, self.merges)
        )
        self._cuts = Cuts(self.vocab, split)
        self._set_token_bytes()
        self._ids_of_word: dict[str, list[int]] = {}
        # State of a reader, see _encode_blocks: how far it has come, and the tokens that it finds and allows.
        self._begun = self._within = False
        self._token_of_form = {self._normalise(token): token for token in self.normalized}
        self._late = SpecialTokens(())
        self._allowed: Collection[str] = ()

    def _check_options(self) -> None:
        if self.prepend_scheme not in (schemes := get_args(PrependScheme)):
            hint = did_you_mean(str(self.prepend_scheme), schemes)
            raise InputError(f"SentencePieceBPE: prepend_scheme is {self.prepend_scheme!r}{hint}")
        if self.byte_fallback and (missing := [piece for piece in BYTE_PIECES if piece not in self.vocab]):
            raise InputError(
                f"SentencePieceBPE: byte_fallback needs all 256 bytes, but {missing[0]!r} is not a piece; "
                "give it, or set byte_fallback to False"
            )
        if not self.byte_fallback and self.unk_token not in {**self.vocab, **self.special_tokens}:
            raise InputError(
                f"SentencePieceBPE: unk_token {self.unk_token!r} is not a token, so unknown characters could not be "
                "written; give one, or all bytes and byte_fallback"
            )
        check_strips("SentencePieceBPE", self.strips, self.special_tokens)
        if unknown := next((token for token in self.normalized if token not in self.special_tokens), None):
            raise InputError(f"SentencePieceBPE: normalized has {unknown!r}; give special tokens")
        if both := self.strips.keys() & {*self.normalized}:
            raise InputError(f"SentencePieceBPE: {both} cannot be both in strips and in normalized; leave one out")

    def _set_token_bytes(self) -> None:
        for token, i in {**self.vocab, **self.special_tokens}.items():
            seen = self._normalise(token) if token in self.normalized else token
            self._token_bytes[i] = seen.replace(SPACE, " ").encode()
        self._byte_of_id: dict[int, int] = {}
        for token, i in self.vocab.items():
            if match := BYTE_PIECE.fullmatch(token):
                self._byte_of_id[i] = int(match.group(1), 16)
                self._token_bytes[i] = bytes([self._byte_of_id[i]])

    @property
    def unk_id(self) -> int | None:
        """The id of the token for unknown text, or None; any piece may be it, not just a special token."""
        return self._unk_id

    # Text to ids

    def _encode_blocks(
        self, chunks: Iterable[str], allowed_special: Specials, disallowed_special: Specials
    ) -> Iterator[list[int]]:
        """Encode with a copy of this tokenizer that remembers its place in the text, and the tokens it finds late."""
        allowed = self._choose("allowed_special", allowed_special)
        refused = self._choose("disallowed_special", disallowed_special)
        every = self.special_tokens
        late = self._find_late(every if allowed is every or refused is every else {*allowed, *refused})
        reader = copy.copy(self)
        reader._begun = reader._within = False
        reader._late, reader._allowed = late, allowed
        return super(SentencePieceBPE, reader)._encode_blocks(chunks, allowed_special, disallowed_special)

    def _make_finder(self, tokens: Collection[str]) -> SpecialTokens:
        return SpecialTokens([token for token in tokens if token not in self.normalized], self.strips)

    def _find_late(self, tokens: Collection[str]) -> SpecialTokens:
        """The finder of those of these tokens that are in `normalized`, for text that has been changed as they have."""
        if tokens is self.special_tokens and "late" in self._finders:
            return self._finders["late"]
        late = SpecialTokens([form for form, token in self._token_of_form.items() if token in tokens])
        if tokens is self.special_tokens:
            self._finders["late"] = late
        return late

    def _encode_settled(self, text: str, more: bool) -> tuple[list[int], int]:
        end = self._settled(text) if more else len(text)
        stretch = text[:end].replace(" ", SPACE)
        if stretch and not self._within and self._prepends(stretch):
            stretch = SPACE + stretch
        self._within = more and (self._within or end > 0)
        self._begun |= not more
        ids: list[int] = []
        start = 0
        for begin, stop, form in self._late.find(stretch):
            ids += self._ids_of(stretch[start:begin])
            ids += self._special_ids(self._token_of_form[form], self._allowed)
            start = stop
        return ids + self._ids_of(stretch[start:]), end

    def _settled(self, text: str) -> int:
        """The position of the last cut that no following text can change."""
        fuses = self.fuse_unk and not self.byte_fallback
        return 0 if fuses or self._late.spaced else self._cuts.last(text)

    def _prepends(self, stretch: str) -> bool:
        if self.prepend_scheme == "stretch":
            return True
        wanted = self.prepend_scheme == "always" or (self.prepend_scheme == "first" and not self._begun)
        return wanted and not stretch.startswith(SPACE)

    def encode_continuation(self, text: str) -> list[int]:
        without = copy.copy(self)
        without.prepend_scheme = "never"
        return without.encode(text)

    def _normalise(self, token: str) -> str:
        """The form of a special token of `normalized` in text whose spaces are written "▁"."""
        return (SPACE if self.prepend_scheme == "stretch" else "") + token.replace(" ", SPACE)

    def _ids_of(self, stretch: str) -> list[int]:
        ids: list[int] = []
        for word in self._cuts.words(stretch):
            known = self._ids_of_word.get(word)
            if known is None:
                known = self._encode_word(word)
                if len(self._ids_of_word) >= CACHED_PRETOKENS:
                    self._ids_of_word.clear()
                if len(word) <= LONG_WORD:
                    self._ids_of_word[word] = known
            ids += known
        if self.fuse_unk and not self.byte_fallback:
            ids = [i for i, same in groupby(ids) for i in (same if i != self._unk_id else [i])]
        return ids

    def _encode_word(self, word: str) -> list[int]:
        return [i for symbol in self._symbols(word) for i in self._ids_of_symbol(symbol)]

    def _symbols(self, word: str) -> list[int]:
        """The ids of the pieces of a word, and the numbers of its unknown characters."""
        return merge_pairs(
            [self.vocab.get(character, unknown(character)) for character in word], self._ranks, self._made
        )

    def _ids_of_symbol(self, symbol: int) -> list[int]:
        if symbol >= 0:
            return [symbol]
        if self.byte_fallback:
            return [self._byte_ids[byte] for byte in character_of(symbol).encode()]
        assert self._unk_id is not None
        return [self._unk_id]

    @cached_property
    def _length_of_id(self) -> dict[int, int]:
        return {i: len(piece) for piece, i in self.vocab.items()}

    def _encode_aligned(self, text: Aligned) -> Iterator[tuple[int, Span]]:
        text = Aligned(text.text.replace(" ", SPACE), text.spans)
        if text.text and self._prepends(text.text):
            text = text.after(SPACE)
        found: list[tuple[int, Span]] = []
        start = 0
        for symbol in chain.from_iterable(map(self._symbols, self._cuts.words(text.text))):
            end = start + self._length_of_id.get(symbol, 1)
            found += [(i, text.part(start, end).span) for i in self._ids_of_symbol(symbol)]
            start = end
        fuses = self.fuse_unk and not self.byte_fallback
        for i, same in groupby(found, lambda one: one[0]):
            spans = [span for _, span in same]
            yield from [(i, outer(spans))] if fuses and i == self._unk_id else ((i, span) for span in spans)

    # Ids to text

    def _text(self, ids: list[int], errors: str, more: bool = False) -> str:
        """The text of ids, without the space that was put in front.

        With "replace", each byte of a run that is not UTF-8 becomes U+FFFD, as in Hugging Face's `tokenizers`: one
        invalid byte spoils its whole run. Other `errors` are those of `bytes.decode`. With `more`, a run of bytes that
        may continue is left out.
        """
        end = len(ids)
        while more and end and ids[end - 1] in self._byte_of_id:
            end -= 1
        runs = groupby(ids[:end], self._byte_of_id.__contains__)
        parts = [(b"".join([self._token_bytes[i] for i in run]), are_bytes) for are_bytes, run in runs]
        if errors == "replace":
            text = "".join([whole_or_nothing(part) if are_bytes else part.decode() for part, are_bytes in parts])
        else:
            text = b"".join([part for part, _ in parts]).decode("utf-8", errors)
        return text.removeprefix(" ") if self.strip_space else text

    # Files

    def _to_json(self) -> dict[str, Any]:
        return {
            "special_tokens": self.special_tokens,
            "vocab": self.vocab,
            "merges": self.merges,
            **{option: getattr(self, option) for option in OPTIONS},
        }

    def to_hugging_face(self) -> dict[str, Any]:
        return write_sentencepiece(f"{type(self).__name__}.to_hugging_face", self)

    @classmethod
    def _from_json(cls, content: dict[str, Any]) -> Self:
        options = {option: content[option] for option in OPTIONS}
        return cls(content["vocab"], content["merges"], dict(content["special_tokens"]), **options)

    @classmethod
    def _reads_hugging_face(cls, content: Mapping[str, Any]) -> bool:
        return model_type(content) == "BPE" and writes_spaces(content)

    @classmethod
    def from_hugging_face(cls, content: Mapping[str, Any]) -> Self:
        """Read the content of a Hugging Face `tokenizer.json` with SentencePiece's BPE, as `json.load` gives it.

        Its added tokens become special tokens: `encode(text, "all")` gives the ids of Hugging Face's
        `encode(text, add_special_tokens=False)`, and `build_inputs_with_special_tokens` adds what its post-processor
        would. "▁" may come from the normalizers Prepend and Replace, or from the pre-tokenizer Metaspace.

        Raises: InputError that names a component, or an option of one, that is not supported.
        """
        where = f"{cls.__name__}.from_hugging_face"
        with readable(where, "this is not the content of a tokenizer.json with a BPE model", "give json.load's"):
            return cls._from_parts(read_sentencepiece(where, content))

    @classmethod
    def from_gguf_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Read the fields `tokenizer.ggml.*` of a .gguf file with a SentencePiece model (`model` is "llama").

        Tokens of type 2 (unknown), 3 (control) and 4 (user-defined) become special tokens; all others but bytes are
        joined by their scores. The defaults are llama.cpp's: `bos_token_id` 1, `eos_token_id` 2, `unknown_token_id` 0,
        `add_bos_token` and `add_space_prefix` true, `add_eos_token` false.

        Raises: InputError for another kind of tokenizer, or a field that is missing.
        """
        where = f"{cls.__name__}.from_gguf_fields"
        with readable(where, "the fields are not a complete tokenizer", "get the file again"):
            return cls._from_parts(read_gguf_sentencepiece(where, fields))


OPTIONS = (
    "unk_token",
    "byte_fallback",
    "fuse_unk",
    "prepend_scheme",
    "split",
    "strip_space",
    "normalized",
    "strips",
)


def whole_or_nothing(run: bytes) -> str:
    """The text of some bytes, or U+FFFD for each where they are not UTF-8."""
    try:
        return run.decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(run)


# Tables of joins


def unknown(character: str) -> int:
    """A number for a character that is not a piece, to use among ids: below -1, which `merge_pairs` uses."""
    return -2 - ord(character)


def character_of(number: int) -> str:
    """The character of a number that `unknown` returned."""
    return chr(-2 - number)


Joins = tuple[dict[Pair, int], dict[Pair, int]]  # the rank of each pair of ids, and the joined id


def joins_by_order(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> Joins:
    """Merge ranks, for files that list merges in order."""
    for left, right in merges:
        for token in (left, right, left + right):
            if token not in vocab:
                raise InputError(
                    f"SentencePieceBPE: the merge of {left!r} and {right!r} needs the piece {token!r}, "
                    "which is not in vocab; give vocab and merges of one tokenizer"
                )
        if byte := next((part for part in (left, right) if BYTE_PIECE.fullmatch(part)), None):
            raise InputError(f"SentencePieceBPE: a merge joins the byte {byte!r}, which is not supported; leave it out")
    pairs = [(vocab[left], vocab[right]) for left, right in merges]
    made = {pair: vocab[left + right] for pair, (left, right) in zip(pairs, merges, strict=True)}
    return {pair: rank for rank, pair in enumerate(pairs)}, made


def joins_by_score(vocab: Mapping[str, int], scores: Mapping[str, float]) -> Joins:
    """Merge ranks, for files with scores: every way to make a piece of two pieces or characters has its rank."""
    for piece, score in scores.items():
        if piece not in vocab or not math.isfinite(score):
            raise InputError(f"SentencePieceBPE: {piece!r} has score {score}; give a piece of vocab a finite number")
    rank_of_score = {score: rank for rank, score in enumerate(sorted({*scores.values()}, reverse=True))}
    symbols = {character: vocab.get(character, unknown(character)) for piece in scores for character in piece}
    symbols |= {piece: vocab[piece] for piece in scores}
    ranks: dict[Pair, int] = {}
    made: dict[Pair, int] = {}
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = symbols.get(piece[:cut]), symbols.get(piece[cut:])
            if left is not None and right is not None:
                ranks[left, right], made[left, right] = rank_of_score[score], vocab[piece]
    return ranks, made


class Cuts:
    """The places where text can be cut, because no piece has the two characters there side by side.

    Candidates are the places before a space, and on both sides of a line end. With `split`, text is cut before every
    space.
    """

    def __init__(self, pieces: Iterable[str], split: bool):
        beside = {pair for piece in pieces for pair in pairwise(piece)}
        glued = "".join(sorted({left for left, right in beside if right == SPACE and not split}))
        lines = "" if any("\n" in pair for pair in beside) else r"|(?<=\n)|(?=\n)"
        behind = f"(?<![{re.escape(glued)}])" if glued else ""
        self.cut = re.compile(f"{behind}(?={SPACE}){lines}")
        behind_too = behind.replace(SPACE, f"{SPACE} ")  # for text whose spaces are not written "▁" yet
        self.last_cut = regex.compile(f"(?r){behind_too}(?=[{SPACE} ]){lines}")

    def words(self, stretch: str) -> list[str]:
        """Cut text, spaces written "▁", into pieces whose ids are the same as within the whole."""
        return [word for word in self.cut.split(stretch) if word]

    def last(self, text: str) -> int:
        """The position of the last cut in text as it was given; 0 without a cut."""
        match = self.last_cut.search(text)
        return match.start() if match else 0
