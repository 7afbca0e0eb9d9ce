"""The smallest tokenizer: one token per character, so that a model can be studied without wondering about tokens.

The vocabulary is the set of characters in the training text, in sorted order: 65 of them for Shakespeare. A character
that the training text lacks has no id: encoding it is an error, or gives `<|unk|>` in a tokenizer that has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from minillm.errors import InputError
from minillm.tokenizers.aligned import Aligned, Span
from minillm.tokenizers.base import UNKNOWN, Tokenizer, check_special_tokens, stream
from minillm.tokenizers.files import read_texts
from minillm.tokenizers.write_hugging_face import write_character


class CharacterTokenizer(Tokenizer):
    """A tokenizer with one token a character; made by `train` or `load`.

    Args:
        vocab: every character, with its id.
        special_tokens: the text of every special token, with its id.

    Raises: InputError where a key of `vocab` is not one character.
    """

    kind = "character"

    def __init__(self, vocab: Mapping[str, int], special_tokens: Mapping[str, int] | None = None):
        for character in vocab:
            if len(character) != 1:
                raise InputError(f"CharacterTokenizer: vocab has {character!r}; give single characters")
        super().__init__({character.encode(): i for character, i in vocab.items()}, special_tokens or {})
        self.vocab = dict(vocab)

    @classmethod
    def train(cls, text_or_files: str | Path | Iterable[str | Path], special_tokens: Sequence[str] = ()) -> Self:
        """Give each different character of the text an id, in order of code points; then come the special tokens.

        Args:
            text_or_files: text (str), a UTF-8 file (pathlib.Path), or an iterable of either.

        Raises: InputError for text that is empty, or a file that cannot be read.
        """
        where = f"{cls.__name__}.train"
        check_special_tokens(where, special_tokens)
        characters: set[str] = set()
        for chunks in read_texts(where, text_or_files):
            for some in stream(where, chunks, lambda text, more: (list(text), len(text)), special_tokens, lambda _: []):
                characters.update(some)
        if not characters:
            raise InputError(
                f"{where}: there is no text to learn from (empty, or special tokens alone); give some text"
            )
        return cls(
            {character: i for i, character in enumerate(sorted(characters))},
            {token: i for i, token in enumerate(special_tokens, start=len(characters))},
        )

    def _encode_settled(self, text: str, more: bool) -> tuple[list[int], int]:
        try:
            return list(map(self.vocab.__getitem__, text)), len(text)
        except KeyError as error:
            if self.unk_id is not None:
                return [self.vocab.get(character, self.unk_id) for character in text], len(text)
            raise InputError(
                f"CharacterTokenizer.encode: character {error} (U+{ord(error.args[0]):04X}) is not among the "
                f"{len(self.vocab)} characters of this tokenizer; leave it out of the text, or train the tokenizer on "
                f"text that has it, or with {UNKNOWN!r} in special_tokens"
            ) from None

    def _encode_aligned(self, text: Aligned) -> Iterator[tuple[int, Span]]:
        yield from zip(self._encode_settled(text.text, False)[0], text.spans, strict=True)

    def _to_json(self) -> dict[str, Any]:
        return {"special_tokens": self.special_tokens, "vocab": self.vocab}

    def to_hugging_face(self) -> dict[str, Any]:
        return write_character(f"{type(self).__name__}.to_hugging_face", self)

    @classmethod
    def _from_json(cls, content: dict[str, Any]) -> Self:
        return cls(content["vocab"], dict(content["special_tokens"]))
