"""The common part of all tokenizers, whatever their rule for cutting text: special tokens, streams, padding, files.

A tokenizer is a table of token ids and byte strings. Decoding is the same for nearly all of them: look up the bytes of
each id, join them, read the result as UTF-8. Encoding differs, but only for *ordinary* text; special tokens
such as `<|endoftext|>` are found first and cut the text into ordinary stretches:

    "one<|endoftext|>two"   ->   encode("one") + [50256] + encode("two")

Text of any length passes through `stream` in blocks, so that memory does not grow with the text. The difficulty is
the end of a block: after "I don" we cannot know if the word ends there or goes on with "ate". So a block is encoded
only as far as it is *settled*: up to where no following text can change the result. The rest waits for the next block.
The ids are exactly those of the whole text, wherever the blocks happen to end.

The role of a special token, such as ending a text, has a name, as in Hugging Face's files: "eos_token". A tokenizer
made here names its own; for one read from a file, the files beside it do.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from minillm.errors import DtypeError, InputError, did_you_mean
from minillm.tokenizers.aligned import Aligned, Span, aligned
from minillm.tokenizers.decoders import Decoder
from minillm.tokenizers.files import ROLES
from minillm.tokenizers.saved import TokenizerFiles
from minillm.tokenizers.special import SIDES, SpecialTokens

END_OF_TEXT, PADDING, UNKNOWN = "<|endoftext|>", "<|pad|>", "<|unk|>"
NO_SPECIAL_TOKENS = SpecialTokens(())
BLOCK = 1 << 20  # characters that are looked at in one go

Item = TypeVar("Item")
Specials = Literal["none", "all"] | Collection[str]


class Tokenizer(TokenizerFiles):
    """Text to token ids and back; the base of every kind of tokenizer.

    A subclass defines `kind`, `_encode_settled`, `_to_json` and `_from_json`; everything else is here.

    Args:
        vocab: the bytes of every ordinary token, with its id.
        special_tokens: the text of every special token, with its id. All ids together are 0, 1, ... vocab_size - 1.

    `names` maps roles to special tokens where they differ from `NAMES` (see `name_special_tokens`); `around` holds the
    special tokens that belong before and after a text; `strips` holds those that absorb the white space beside them, on
    the "left", the "right" or "both"; `decoder`, if there is one, turns tokens into text (decoders.py).

    Raises: InputError for ids with gaps or repeats, or a special token that is empty or cannot be written as UTF-8.
    """

    kind: ClassVar[str]
    NAMES: ClassVar[dict[str, str]] = {"eos_token": END_OF_TEXT, "pad_token": PADDING, "unk_token": UNKNOWN}
    special_tokens: dict[str, int]
    vocab_size: int

    def __init__(self, vocab: Mapping[bytes, int], special_tokens: Mapping[str, int]):
        name = type(self).__name__
        check_special_tokens(name, special_tokens)
        tokens = [*vocab.items(), *((token.encode(), i) for token, i in special_tokens.items())]
        for token, i in tokens:
            if not isinstance(i, (int, np.integer)) or isinstance(i, bool):
                raise InputError(f"{name}: token {token!r} has id {i!r}, expected a number; give each token its own")
        by_id = sorted((i, token) for token, i in tokens)
        for expected, (i, token) in enumerate(by_id):
            if i != expected:
                raise InputError(
                    f"{name}: token {token!r} has id {i} where {expected} is next; "
                    f"give the {len(by_id)} tokens the ids 0 to {len(by_id) - 1}, each once"
                )
        self._start(special_tokens, [token for _, token in by_id])

    def _start(self, special_tokens: Mapping[str, int], token_bytes: list[bytes]) -> None:
        """Set the state that all kinds have."""
        self.special_tokens = dict(special_tokens)
        self.vocab_size, self._token_bytes = len(token_bytes), token_bytes
        self.names: dict[str, str] = {}
        self.around: tuple[Sequence[str], Sequence[str]] = (), ()
        self.strips: dict[str, str] = {}
        self.decoder: Decoder | None = None
        self._finders: dict[str, SpecialTokens] = {}  # of all special tokens; copies of a tokenizer share it

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, special_tokens={self.special_tokens})"

    @property
    def eot_id(self) -> int | None:
        """The id of `<|endoftext|>`, or None."""
        return self.special_tokens.get(END_OF_TEXT)

    @property
    def bos_id(self) -> int | None:
        """The id of the token that begins a text, or None."""
        return self._named("bos_token")

    @property
    def eos_id(self) -> int | None:
        """The id of the token that ends a text, `<|endoftext|>` where no other is named, or None."""
        return self._named("eos_token")

    @property
    def pad_id(self) -> int | None:
        """The id of the padding token, `<|pad|>` where no other is named, or None."""
        return self._named("pad_token")

    @property
    def unk_id(self) -> int | None:
        """The id of the token for unknown text, `<|unk|>` where no other is named, or None."""
        return self._named("unk_token")

    def _named(self, role: str) -> int | None:
        return self.special_tokens.get(self.names.get(role) or self.NAMES.get(role, ""))

    def roles(self) -> dict[str, str]:
        found = ((role, self.names.get(role) or self.NAMES.get(role, "")) for role in ROLES)
        return {role: token for role, token in found if token in self.special_tokens}

    def name_special_tokens(self, **names: str) -> None:
        """Give special tokens their roles: `bos_token="<s>"`, `eos_token`, `pad_token`, `unk_token`, and BERT's.

        Ids stay as they are. `save` writes the names; the fingerprint does not depend on them.

        Raises: InputError for an unknown role, or a text that is not a special token of this tokenizer.
        """
        where = f"{type(self).__name__}.name_special_tokens"
        for role, token in names.items():
            if role not in ROLES:
                raise InputError(f"{where}: there is no role {role!r}{did_you_mean(role, ROLES)}")
            if token not in self.special_tokens:
                raise InputError(
                    f"{where}: {role} is {token!r}, which is not a special token of this tokenizer"
                    f"{did_you_mean(str(token), self.special_tokens) or '; it has none'}"
                )
        self.names |= names

    def before_text(self) -> list[int]:
        """The ids of the special tokens that belong in front of a text, such as that of `<s>`; often none."""
        around = self.build_inputs_with_special_tokens([-1])  # -1 stands for the text
        return around[: around.index(-1)]

    def build_inputs_with_special_tokens(self, token_ids_0: Sequence[int]) -> list[int]:
        """The ids of a text with the special tokens that belong around it: `<s> a </s>`, or `a` if there are none."""
        before, after = ([self.special_tokens[token] for token in side] for side in self.around)
        return [*before, *token_ids_0, *after]

    # Text to ids

    def encode(self, text: str, allowed_special: Specials = "none", disallowed_special: Specials = "none") -> list[int]:
        """The token ids of `text`.

        Where the text of a special token occurs in `text`, there are three choices for it:
        - by default it is ordinary text, and is encoded as such. This is the safe choice for text from strangers;
        - with `allowed_special` it becomes the special token's id;
        - with `disallowed_special` it is refused with an InputError.

        Both take "none", "all" or a collection of special tokens; an allowed token is never refused, so
        `encode(text, allowed_special={"<|endoftext|>"}, disallowed_special="all")` allows only that one.
        Where several special tokens match at one place, the longest wins. Surrogates, which UTF-8 cannot write, are
        joined where two make a pair, and become U+FFFD where one stands alone, as in tiktoken.

        Raises: InputError for a refused special token, or a name that is not a special token of this tokenizer.
        """
        ids: list[int] = []
        for block in self._encode_blocks([text], allowed_special, disallowed_special):
            ids += block
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """The token ids of `text`, those of `encode(text)`, and the place of each token: it is text[start:end].

        Places are those in the original text, whatever the tokenizer changes before it cuts (case, accents, normal
        forms, spaces), and equal those of Hugging Face's `tokenizers`, but for one rule: an accent or another mark that
        is dropped belongs to the letter before it, so that "cafe" with an accent behind it is one whole place. A token
        of some bytes of a character has the place of the character; a space that is put in front has that of the
        character behind it.

        Raises: as `encode`; InputError for a tokenizer that does not keep track of places.
        """
        if not isinstance(text, str):
            raise DtypeError(f"{type(self).__name__}.encode_with_offsets: got {type(text).__name__}, expected str")
        pairs = list(self._encode_aligned(aligned(text)))
        return [i for i, _ in pairs], [place for _, place in pairs]

    def _encode_aligned(self, text: Aligned) -> Iterator[tuple[int, Span]]:
        """Each id of an ordinary text, with the token's place."""
        raise InputError(
            f"{type(self).__name__}.encode_with_offsets: this kind of tokenizer does not keep track of places; use a "
            "byte-level BPE, a WordPiece, a Unigram or a SentencePiece tokenizer"
        )

    def encode_continuation(self, text: str) -> list[int]:
        """The token ids of a text that follows other text: without the space that some tokenizers put in front."""
        return self.encode(text)

    def encode_iterable(
        self, chunks: Iterable[str], allowed_special: Specials = "none", disallowed_special: Specials = "none"
    ) -> Iterator[int]:
        """Yield the ids of the text that the joined `chunks` make, one by one, in constant memory.

        The ids are those of `encode("".join(chunks))`, wherever the chunks are cut: `encode_iterable(open(path))` is
        correct. Only one block of text is held at a time, or the longest stretch that cannot be cut (one pretoken).

        Raises: as `encode`; a refused special token only when it is reached.
        """
        return chain.from_iterable(self._encode_blocks(chunks, allowed_special, disallowed_special))

    def _encode_blocks(
        self, chunks: Iterable[str], allowed_special: Specials, disallowed_special: Specials
    ) -> Iterator[list[int]]:
        allowed = self._choose("allowed_special", allowed_special)
        refused = self._choose("disallowed_special", disallowed_special)
        every = self.special_tokens
        finder = self._find(every if allowed is every or refused is every else {*allowed, *refused})
        special = partial(self._special_ids, allowed=allowed)
        return stream(f"{type(self).__name__}.encode", chunks, self._encode_settled, finder, special)

    def _find(self, tokens: Collection[str]) -> SpecialTokens:
        """The finder of these special tokens. That of all of them is made once, since there may be thousands."""
        if not tokens:
            return NO_SPECIAL_TOKENS
        if tokens is not self.special_tokens:
            return self._make_finder(tokens)
        if "early" not in self._finders:
            self._finders["early"] = self._make_finder(tokens)
        return self._finders["early"]

    def _make_finder(self, tokens: Collection[str]) -> SpecialTokens:
        return SpecialTokens(tokens, self.strips)

    def _special_ids(self, token: str, allowed: Collection[str]) -> list[int]:
        if token not in allowed:
            raise InputError(
                f"{type(self).__name__}.encode: the text holds the special token {token!r}, which is refused; "
                f"name it in allowed_special, or not in disallowed_special to encode it as ordinary text"
            )
        return [self.special_tokens[token]]

    def _encode_settled(self, text: str, more: bool) -> tuple[list[int], int]:
        """The ids of the settled start of `text`, which no following text can change, and where that start ends.

        If `more` is false, no text follows, and all of `text` is settled.
        """
        raise NotImplementedError

    def _choose(self, argument: str, value: Specials) -> Collection[str]:
        """The special tokens that an argument of `encode` stands for: `self.special_tokens` itself for "all"."""
        if value == "none":
            return ()
        if value == "all":
            return self.special_tokens
        if isinstance(value, str):
            raise InputError(
                f"{type(self).__name__}.encode: {argument} is {value!r}, expected 'none', 'all' or a collection; "
                f"for one token write {argument}={{{value!r}}}"
            )
        for token in value:
            if token not in self.special_tokens:
                hint = did_you_mean(token, self.special_tokens) or "; it has none"
                raise InputError(
                    f"{type(self).__name__}.encode: {argument} has {token!r}, "
                    f"which is not a special token of this tokenizer{hint}"
                )
        return set(value)

    # Ids to text

    def decode(self, ids: Iterable[int] | NDArray[np.integer], errors: str = "replace") -> str:
        """The text of a sequence of token ids.

        A token may be part of a character, so a sequence of ids may make bytes that are not UTF-8. `errors` says what
        happens then, as in `bytes.decode`: "replace" writes U+FFFD, "strict" raises UnicodeDecodeError.

        Raises: InputError for an id out of range; DtypeError for anything that is not an integer.
        """
        return self._text(self._checked("decode", ids), errors)

    def decode_settled(self, ids: Iterable[int] | NDArray[np.integer]) -> str:
        """The text of a sequence of token ids, up to where a following id could still change it.

        `decode` of a longer sequence begins with this text. The bytes of an incomplete character are left out, so that
        text can be shown as it is generated.

        Raises: as `decode`.
        """
        return self._text(self._checked("decode_settled", ids), "replace", more=True)

    def _text(self, ids: list[int], errors: str, more: bool = False) -> str:
        """The text of checked ids; with `more`, the settled text that `decode_settled` returns."""
        if self.decoder is not None:
            words = list(map(self._spelling, ids))
            return self.decoder.settled(words) if more else self.decoder(words)
        decoder = codecs.getincrementaldecoder("utf-8")(errors)
        return decoder.decode(b"".join([self._token_bytes[i] for i in ids]), not more)

    def _spelling(self, i: int) -> str:
        """The spelling of a token in its vocabulary, for `decoder`."""
        return self._token_bytes[i].decode()

    def _checked(self, method: str, ids: Iterable[int] | NDArray[np.integer]) -> list[int]:
        ids = ids.tolist() if isinstance(ids, np.ndarray) else ids
        where = f"{type(self).__name__}.{method}"
        if not isinstance(ids, Iterable):
            raise DtypeError(f"{where}: ids is {ids!r}, expected a sequence of token ids; write [{ids!r}] for one id")
        ids = list(ids)
        for position, i in enumerate(ids):
            if not isinstance(i, (int, np.integer)):
                raise DtypeError(
                    f"{where}: ids[{position}] is {i!r}, expected an integer; give one sequence of ids at a time"
                )
            if not 0 <= i < self.vocab_size:
                raise InputError(
                    f"{where}: ids[{position}] is {i}, out of range for a vocabulary of {self.vocab_size} tokens; "
                    "use the tokenizer that made these ids"
                )
        return ids

    def pad_batch(
        self, sequences: Iterable[Sequence[int] | NDArray[np.integer]], length: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Make one array of sequences of different lengths, padded on the right with the padding token.

        Shapes: returns ids (B, T) and mask (B, T), true where a token is real; T is `length`, or the greatest length.
        Raises: InputError where there is no padding token, an id is out of range, or a sequence is too long.
        """
        where = f"{type(self).__name__}.pad_batch"
        if self.pad_id is None:
            raise InputError(
                f"{where}: this tokenizer has no padding token; train it with {PADDING!r} in special_tokens"
            )
        rows = [self._checked("pad_batch", row) for row in sequences]
        longest = max(map(len, rows), default=0)
        if length is not None and longest > length:
            raise InputError(
                f"{where}: a sequence has {longest} tokens, but length is {length}; cut it or raise length"
            )
        ids = np.full((len(rows), longest if length is None else length), self.pad_id, np.int64)  # (B, T)
        mask = np.zeros(ids.shape, np.bool_)  # (B, T)
        for b, row in enumerate(rows):
            ids[b, : len(row)] = row
            mask[b, : len(row)] = True
        return ids, mask


# Text in, block by block


def stream(
    where: str,
    chunks: Iterable[str],
    ordinary: Callable[[str, bool], tuple[list[Item], int]],
    special_tokens: Collection[str] | SpecialTokens,
    special: Callable[[str], list[Item]],
) -> Iterator[list[Item]]:
    """Pass the text that the joined `chunks` make through `ordinary` and `special`, a block at a time.

    `ordinary(text, more)` gets a stretch without special tokens; it returns the items of the settled start of it, and
    where that start ends (see `Tokenizer._encode_settled`). `special(token)` returns the items of a special token.
    """

    def pieces_of_a_block() -> Iterator[str]:
        for chunk in chunks:
            if not isinstance(chunk, str):
                raise DtypeError(f"{where}: got {type(chunk).__name__}, expected str; decode bytes to text first")
            for i in range(0, len(chunk), BLOCK):
                yield chunk[i : i + BLOCK]

    finder = special_tokens if isinstance(special_tokens, SpecialTokens) else SpecialTokens(special_tokens)
    pieces = pieces_of_a_block()
    pending, more = "", True  # pending: text whose items may still depend on what follows
    before = ""  # the character before it
    while more:
        # Read at least as much as is pending, so that one endless word is not scanned again for each of its blocks.
        fresh, size = [pending], 0
        while size < max(BLOCK, len(pending)) and (more := (piece := next(pieces, "")) != ""):
            fresh.append(piece)
            size += len(piece)
        text = "".join(fresh)
        half = text[-1:] if more and "\ud800" <= text[-1:] <= "\udbff" else ""  # its other half may follow
        text = join_surrogates(text.removesuffix(half))

        items: list[Item] = []
        start = 0
        found, decided = finder.cut(text, before, more)
        for one in found:
            items += ordinary(text[start : one.start], False)[0]
            items += special(one.token)
            start = one.end
        settled, end = ordinary(text[start:decided], more)
        yield items + settled
        end += start
        before = text[end - 1 : end] or before
        pending = text[end:] + half


def join_surrogates(text: str) -> str:
    """Join every pair of surrogates to one character, and replace every lone one by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def check_special_tokens(where: str, special_tokens: Collection[str]) -> None:
    """Refuse special tokens that no text could contain, or that are not a collection of different strings."""
    if isinstance(special_tokens, str):
        raise InputError(
            f"{where}: special_tokens is {special_tokens!r}, expected a collection; write ({special_tokens!r},)"
        )
    for token in special_tokens:
        if not isinstance(token, str) or not token or join_surrogates(token) != token:
            raise InputError(f"{where}: {token!r} cannot be a special token; give text that is not empty")
    if len(set(special_tokens)) < len(special_tokens):
        raise InputError(f"{where}: special_tokens is {tuple(special_tokens)}; give each token once")


def check_strips(where: str, strips: Mapping[str, str], special_tokens: Collection[str]) -> None:
    """Refuse unknown sides, and tokens that are not special."""
    for token, side in strips.items():
        if token not in special_tokens or side not in SIDES:
            raise InputError(f"{where}: strips has {token!r}: {side!r}; give special tokens with left, right or both")
