"""What every tokenizer does, whatever its rule for cutting text: special tokens, streams, padding, files.

A tokenizer is a table between token ids and byte strings. Decoding is the same for all of them: look up the bytes of
each id, join them, read the result as UTF-8. Encoding differs, but only for *ordinary* text; special tokens such as
`<|endoftext|>` are found first and cut the text into ordinary stretches:

    "one<|endoftext|>two"   ->   encode("one") + [50256] + encode("two")

Text of any length passes through `stream` in blocks, so that memory does not grow with the text. The difficulty is
the end of a block: after "I don" we cannot know whether the word ends there or goes on with "ate". So a block is
encoded only as far as it is *settled*, as far as nothing that may follow can change the result; the rest waits for
the next block. The ids are exactly those of the whole text, wherever the blocks happen to end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from minillm.errors import DtypeError, InputError, did_you_mean

END_OF_TEXT, PADDING, UNKNOWN = "<|endoftext|>", "<|pad|>", "<|unk|>"
BLOCK = 1 << 20  # characters that are looked at in one go
FILE, FORMAT, VERSION = "tokenizer.json", "minillm-tokenizer", 1

Item = TypeVar("Item")
Specials = Literal["none", "all"] | Collection[str]


class Tokenizer:
    """Text to token ids and back; the base of every kind of tokenizer.

    A kind of tokenizer gives `kind`, `_encode_settled`, `_to_json` and `_from_json`; all else is here.

    Args:
        vocab: the bytes of every ordinary token, with its id.
        special_tokens: the text of every special token, with its id. All ids together are 0, 1, ... vocab_size - 1.

    Raises: InputError for ids with gaps or repeats, or a special token that is empty or cannot be written as UTF-8.
    """

    kind: ClassVar[str]
    special_tokens: dict[str, int]
    vocab_size: int

    def __init__(self, vocab: Mapping[bytes, int], special_tokens: Mapping[str, int]):
        name = type(self).__name__
        check_special_tokens(name, special_tokens)
        by_id = sorted(
            (i, token) for token, i in [*vocab.items(), *((t.encode(), i) for t, i in special_tokens.items())]
        )
        for expected, (i, token) in enumerate(by_id):
            if i != expected:
                raise InputError(
                    f"{name}: token {token!r} has id {i} where {expected} is next; "
                    f"give the {len(by_id)} tokens the ids 0 to {len(by_id) - 1}, each once"
                )
        self.special_tokens = dict(special_tokens)
        self.vocab_size = len(by_id)
        self._token_bytes = [token for _, token in by_id]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, special_tokens={self.special_tokens})"

    @property
    def eot_id(self) -> int | None:
        """The id of `<|endoftext|>`, or None."""
        return self.special_tokens.get(END_OF_TEXT)

    @property
    def pad_id(self) -> int | None:
        """The id of `<|pad|>`, or None."""
        return self.special_tokens.get(PADDING)

    @property
    def unk_id(self) -> int | None:
        """The id of `<|unk|>`, or None."""
        return self.special_tokens.get(UNKNOWN)

    # Text to ids

    def encode(self, text: str, allowed_special: Specials = "none", disallowed_special: Specials = "none") -> list[int]:
        """The token ids of `text`.

        Where the text of a special token occurs in `text`, there are three choices for it:
        - by default it is ordinary text, and is encoded as such. This is the safe choice for text from strangers;
        - with `allowed_special` it becomes the special token's id;
        - with `disallowed_special` it is refused with an InputError.

        Both take "none", "all" or a collection of special tokens; what is allowed is never refused, so
        `encode(text, allowed_special={"<|endoftext|>"}, disallowed_special="all")` allows that one and no other.
        Where several special tokens fit at one place, the longest is meant. Surrogates, which UTF-8 cannot write, are
        joined where two make a pair, and become U+FFFD where one stands alone, as in tiktoken.

        Raises: InputError for a refused special token, or a name that is no special token of this tokenizer.
        """
        ids: list[int] = []
        for block in self._encode_blocks([text], allowed_special, disallowed_special):
            ids += block
        return ids

    def encode_iterable(
        self, chunks: Iterable[str], allowed_special: Specials = "none", disallowed_special: Specials = "none"
    ) -> Iterator[int]:
        """The ids of the text that `chunks` make when joined, one by one, in constant memory.

        The ids are those of `encode("".join(chunks))`, wherever the chunks are cut: `encode_iterable(open(path))` is
        right. At any time only a block of text is held, or the longest stretch that cannot be cut (one pretoken).

        Raises: as `encode`; a refused special token only when it is reached.
        """
        return chain.from_iterable(self._encode_blocks(chunks, allowed_special, disallowed_special))

    def _encode_blocks(
        self, chunks: Iterable[str], allowed_special: Specials, disallowed_special: Specials
    ) -> Iterator[list[int]]:
        allowed = self._choose("allowed_special", allowed_special)
        refused = self._choose("disallowed_special", disallowed_special) - allowed

        def special(token: str) -> list[int]:
            if token in refused:
                raise InputError(
                    f"{type(self).__name__}.encode: the text holds the special token {token!r}, which is refused; "
                    f"name it in allowed_special, or not in disallowed_special to encode it as ordinary text"
                )
            return [self.special_tokens[token]]

        return stream(f"{type(self).__name__}.encode", chunks, self._encode_settled, allowed | refused, special)

    def _encode_settled(self, text: str, more: bool) -> tuple[list[int], int]:
        """The ids of the start of `text` that nothing can change that may follow it, and where that start ends.

        Where `more` is false, nothing follows, and it is all of `text`.
        """
        raise NotImplementedError

    def _choose(self, argument: str, value: Specials) -> set[str]:
        """The special tokens that an argument of `encode` stands for."""
        if value == "none":
            return set()
        if value == "all":
            return set(self.special_tokens)
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
                    f"which is no special token of this tokenizer{hint}"
                )
        return set(value)

    # Ids to text

    def decode(self, ids: Iterable[int] | NDArray[np.integer], errors: str = "replace") -> str:
        """The text of a sequence of token ids.

        A token may be part of a character, so any ids at all can make bytes that are no UTF-8. `errors` says what
        happens then, as in `bytes.decode`: "replace" writes U+FFFD, "strict" raises UnicodeDecodeError.

        Raises: InputError for an id out of range; DtypeError for anything that is not an integer.
        """
        return b"".join([self._token_bytes[i] for i in self._checked("decode", ids)]).decode("utf-8", errors)

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
        """Sequences of different lengths as one array, filled up on the right with the padding token.

        Shapes: returns ids (B, T) and mask (B, T), true where a token is real; T is `length`, or that of the longest.
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

    # Files

    def fingerprint(self) -> str:
        """A short hash of the vocabulary (16 hexadecimal digits): equal where two tokenizers give the same ids.

        Token shards and checkpoints record it, so that ids are never read with another tokenizer.
        """
        content = json.dumps({"kind": self.kind, **self._to_json()}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` into `folder`, which is made if it is not there; a reader never sees half a file."""
        content = {"format": FORMAT, "version": VERSION, "kind": self.kind, **self._to_json()}
        write_text(f"{type(self).__name__}.save", Path(folder) / FILE, json.dumps(content, indent=0))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote; `Tokenizer.load` reads every kind, a subclass only its own.

        Raises: InputError for a file that is missing, damaged, made by another program, or of another kind.
        """
        where, path = f"{cls.__name__}.load", Path(folder) / FILE
        content = read_json(where, path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(
                f'{where}: {path} is no minillm tokenizer (it lacks "format": "{FORMAT}"); '
                "give a folder that Tokenizer.save wrote"
            )
        if content.get("version") != VERSION:
            raise InputError(
                f"{where}: {path} has version {content.get('version')!r}, this minillm reads version {VERSION}; "
                "read it with the minillm that wrote it"
            )
        kinds = {kind.kind: kind for kind in (cls, *cls.__subclasses__()) if hasattr(kind, "kind")}
        if (name := content.get("kind")) not in kinds:
            raise InputError(
                f"{where}: {path} holds a tokenizer of kind {name!r}, expected {' or '.join(map(repr, kinds))}; "
                "load it with Tokenizer.load from the minillm that wrote it"
            )
        try:
            return kinds[name]._from_json(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(f"{where}: {path} is damaged ({reason}); save the tokenizer again") from error

    def _to_json(self) -> dict[str, Any]:
        """All that makes this tokenizer what it is, for `_from_json`."""
        raise NotImplementedError

    @classmethod
    def _from_json(cls, content: dict[str, Any]) -> Self:
        raise NotImplementedError


# Text in, block by block


def stream(
    where: str,
    chunks: Iterable[str],
    ordinary: Callable[[str, bool], tuple[list[Item], int]],
    special_tokens: Collection[str],
    special: Callable[[str], list[Item]],
) -> Iterator[list[Item]]:
    """Pass the text that `chunks` make when joined through `ordinary` and `special`, a block at a time.

    `ordinary(text, more)` is given a stretch without special tokens and returns its items as far as they are settled,
    and where that is (see `Tokenizer._encode_settled`). `special(token)` returns the items of a special token.
    """

    def cut() -> Iterator[str]:
        for chunk in chunks:
            if not isinstance(chunk, str):
                raise DtypeError(f"{where}: got {type(chunk).__name__}, expected str; decode bytes to text first")
            for i in range(0, len(chunk), BLOCK):
                yield chunk[i : i + BLOCK]

    pattern = special_pattern(special_tokens)
    longest = max(map(len, special_tokens), default=1)
    pieces = cut()
    pending, more = "", True  # pending: text whose items may still depend on what follows
    while more:
        # Read at least as much as is pending, so that one endless word is not looked at again for every block of it.
        fresh, size = [pending], 0
        while size < max(BLOCK, len(pending)) and (more := (piece := next(pieces, "")) != ""):
            fresh.append(piece)
            size += len(piece)
        text = "".join(fresh)
        half = text[-1:] if more and "\ud800" <= text[-1:] <= "\udbff" else ""  # its other half may follow
        text = join_surrogates(text.removesuffix(half))

        items: list[Item] = []
        start = 0
        # A special token that starts before this point is here in full, and so is any longer one that it begins.
        decided = max(0, len(text) - longest + 1) if more else len(text)
        for match in pattern.finditer(text) if pattern else ():
            if match.start() >= decided:
                break
            items += ordinary(text[start : match.start()], False)[0]
            items += special(match.group())
            start = match.end()
        settled, end = ordinary(text[start:decided], more)
        yield items + settled
        pending = text[start + end :] + half


def special_pattern(special_tokens: Collection[str]) -> re.Pattern[str] | None:
    """A pattern that finds special tokens, the longest where several fit; None where there are none to find."""
    return (
        re.compile("|".join(map(re.escape, sorted(special_tokens, key=len, reverse=True)))) if special_tokens else None
    )


def join_surrogates(text: str) -> str:
    """`text` with every pair of surrogates joined to one character, and every lone one as U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def read_texts(where: str, text_or_files: str | Path | Iterable[str | Path]) -> Iterator[Iterable[str]]:
    """Each text to train on, as chunks: a str is a text, a Path a file with one, an iterable holds any number."""
    if isinstance(text_or_files, str):
        yield [text_or_files]
    elif isinstance(text_or_files, Path):
        yield read_chunks(where, text_or_files)
    elif isinstance(text_or_files, Iterable):
        for item in text_or_files:
            yield from read_texts(where, item)
    else:
        raise DtypeError(
            f"{where}: got {text_or_files!r} ({type(text_or_files).__name__}), expected text; "
            "give a str, a pathlib.Path, or an iterable of them"
        )


def read_chunks(where: str, path: Path) -> Iterator[str]:
    """The text of a UTF-8 file, a block at a time, its line ends as they are."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            while chunk := file.read(BLOCK):
                yield chunk
    except OSError as error:
        raise InputError(f"{where}: cannot read {path} ({error.strerror}); give the path of a text file") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: {path} is no UTF-8 text ({error.reason} 0x{error.object[error.start]:02x}); "
            "give a text file, saved as UTF-8"
        ) from error


def check_special_tokens(where: str, special_tokens: Collection[str]) -> None:
    """Refuse special tokens that could never be found in a text, or that are no collection of different strings."""
    if isinstance(special_tokens, str):
        raise InputError(
            f"{where}: special_tokens is {special_tokens!r}, expected a collection; write ({special_tokens!r},)"
        )
    for token in special_tokens:
        if not isinstance(token, str) or not token or join_surrogates(token) != token:
            raise InputError(f"{where}: {token!r} cannot be a special token; give text that is not empty")
    if len(set(special_tokens)) < len(special_tokens):
        raise InputError(f"{where}: special_tokens is {tuple(special_tokens)}; give each token once")


# Whole files


def read_json(where: str, path: Path) -> Any:
    """The value in a JSON file; an InputError that begins with `where` if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{where}: cannot read {path} ({error.strerror}); give the place where it was saved"
        ) from error
    except ValueError as error:  # no UTF-8, or no JSON
        raise InputError(f"{where}: {path} is no JSON ({error}); it is damaged, or another file") from error


def write_text(where: str, path: Path, text: str) -> None:
    """Write a file in one step: to another name first, then renamed, so that it is there in full or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".tmp")
        unfinished.write_text(text, encoding="utf-8", newline="\n")
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(
            f"{where}: cannot write {path} ({error.strerror}); choose a folder that can be written"
        ) from error
