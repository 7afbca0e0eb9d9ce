"""The files of a tokenizer: our own `tokenizer.json`, and Hugging Face's.

Both have the same name. Ours is marked (`"format": "minillm-tokenizer"`) and holds the kind and the result of its
`_to_json`. A Hugging Face file is read by the first kind that can follow it exactly; the general kind comes last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from minillm.errors import InputError
from minillm.tokenizers.components import Component
from minillm.tokenizers.decoders import Decoder
from minillm.tokenizers.files import NAMED_BESIDE, names_beside, read_json, readable, write_text

FILE, FORMAT, VERSION = "tokenizer.json", "minillm-tokenizer", 1
NAMES_MAP, CONFIG = NAMED_BESIDE


class Parts(NamedTuple):
    """The result of reading another program's file.

    It holds a tokenizer's arguments, the special tokens around a text, the names of special tokens, and the decoder
    where it is not the tokenizer's own: a sequence of one item, a component or None.
    """

    arguments: dict[str, Any]
    around: tuple[Sequence[str], Sequence[str]] = ((), ())
    names: dict[str, str] = {}  # noqa: RUF012, never changed
    decoder: Sequence[Component | None] = ()


class TokenizerFiles:
    """The part of every tokenizer that reads and writes files; the base of `Tokenizer`."""

    kind: ClassVar[str]
    general: ClassVar[bool] = False  # True for the kind that reads every file, and so is tried last
    special_tokens: dict[str, int]
    names: dict[str, str]
    around: tuple[Sequence[str], Sequence[str]]
    decoder: Decoder | None

    def name_special_tokens(self, **names: str) -> None:
        """See `Tokenizer`."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A short hash of the vocabulary (16 hexadecimal digits): equal where two tokenizers give the same ids.

        Token shards and checkpoints record it, so that ids are never read with another tokenizer.
        """
        content = json.dumps({"kind": self.kind, **self._to_json()}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` into `folder`, which is made if it is not there; a reader never sees half a file."""
        write_text(f"{type(self).__name__}.save", Path(folder) / FILE, json.dumps(self.to_json(), indent=0))

    def to_json(self) -> dict[str, Any]:
        """The JSON object that `save` writes."""
        content = {"format": FORMAT, "version": VERSION, "kind": self.kind, **self._to_json()}
        content |= {"names": self.names} if self.names else {}
        content |= {"around": self.around} if any(self.around) else {}
        return content | ({} if self.decoder is None else {"decoder": self.decoder.component})

    def to_hugging_face(self) -> dict[str, Any]:
        """The content of a Hugging Face `tokenizer.json` whose ids are those of this tokenizer.

        Its added tokens are the special tokens, so `encode(text, "all")` gives the ids of their
        `encode(text, add_special_tokens=False)`; what belongs around a text is put there by its post-processor.

        Raises: InputError for an option that such a file cannot express.
        """
        raise InputError(f"{type(self).__name__}.to_hugging_face: this kind of tokenizer has no such form; use save")

    def save_hugging_face(self, folder: str | Path, **settings: Any) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` as Hugging Face's libraries do.

        settings: other keys of tokenizer_config.json, such as model_max_length.
        Raises: as `to_hugging_face`.
        """
        where, folder = f"{type(self).__name__}.save_hugging_face", Path(folder)
        content, names = self.to_hugging_face(), self.roles()
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        for file, values in ((FILE, content), (CONFIG, config | settings | names), (NAMES_MAP, names)):
            write_text(where, folder / file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")

    def roles(self) -> dict[str, str]:
        """The special token of each role that this tokenizer has: `{"eos_token": "</s>"}`."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """The inverse of to_json."""
        return cls._from_content(f"{cls.__name__}.from_json", Path(FILE), content)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote; `Tokenizer.load` reads every kind, a subclass only its own.

        Raises: InputError for a file that is missing, damaged, made by another program, or of another kind.
        """
        where, path = f"{cls.__name__}.load", Path(folder) / FILE
        return cls._from_content(where, path, read_json(where, path))

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a `tokenizer.json`, ours or Hugging Face's; `path` is the file, or a folder that holds it.

        `Tokenizer.from_file` reads every kind, a subclass only its own. `encode(text, "all")` then gives the ids of
        Hugging Face's `encode(text, add_special_tokens=False)`. The roles of special tokens are read from
        `tokenizer_config.json` and `special_tokens_map.json` if they lie beside the file.

        Raises: InputError for a file that is missing or damaged, or that has a part which is not supported.
        """
        where, path = f"{cls.__name__}.from_file", Path(path)
        path = path / FILE if path.is_dir() else path
        content = read_json(where, path)
        if isinstance(content, dict) and content.get("format") == FORMAT:
            return cls._from_content(where, path, content)
        if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
            raise InputError(f"{where}: {path} is not a tokenizer.json (it has no 'model'); give one, or its folder")
        with readable(where, f"{path} is not a complete tokenizer.json", "get it again"):
            tokenizer = cls._of_its_kind(where, path, content)
        named = names_beside(where, path.parent)
        known = {role: token for role, token in named.items() if token in tokenizer.special_tokens}
        tokenizer.name_special_tokens(**known)
        return tokenizer

    @classmethod
    def _of_its_kind(cls, where: str, path: Path, content: Mapping[str, Any]) -> Self:
        """The tokenizer of the first kind that can follow a tokenizer.json; the general kind comes last."""
        kinds = [kind for kind in (cls, *cls.__subclasses__()) if kind._reads_hugging_face(content)]
        for kind in sorted(kinds, key=lambda kind: kind.general):
            try:
                return kind.from_hugging_face(content)
            except InputError:
                if kind.general or len(kinds) == 1:
                    raise
        raise InputError(
            f"{where}: {path} has a model of type {content['model'].get('type')!r} that {cls.__name__} does not read; "
            "use Tokenizer.from_file"
        )

    @classmethod
    def _reads_hugging_face(cls, content: Mapping[str, Any]) -> bool:
        """True if the content of a Hugging Face tokenizer.json is for this class."""
        return False

    @classmethod
    def from_hugging_face(cls, content: Mapping[str, Any]) -> Self:
        """Read the content of a Hugging Face `tokenizer.json`, as `json.load` gives it.

        Raises: InputError that names a component that is not supported.
        """
        raise NotImplementedError

    @classmethod
    def _from_content(cls, where: str, path: Path, content: Any) -> Self:
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(
                f'{where}: {path} is not a minillm tokenizer (it lacks "format": "{FORMAT}"); '
                "give a folder that Tokenizer.save wrote"
            )
        if content.get("version") != VERSION:
            raise InputError(
                f"{where}: {path} has version {content.get('version')!r}, this minillm reads version {VERSION}; "
                "read it with the minillm that wrote it"
            )
        kinds = {kind.kind: kind for kind in (cls, *cls.__subclasses__()) if hasattr(kind, "kind")}
        if not isinstance(name := content.get("kind"), str) or name not in kinds:
            raise InputError(
                f"{where}: {path} holds a tokenizer of kind {name!r}, expected {' or '.join(map(repr, kinds))}; "
                "load it with Tokenizer.load from the minillm that wrote it"
            )
        with readable(where, f"{path} is damaged", "save the tokenizer again", None):
            tokenizer = kinds[name]._from_json(content)
            tokenizer.name_special_tokens(**content.get("names", {}))
            before, after = content.get("around", ((), ()))
            tokenizer.around = before, after
            if any(token not in tokenizer.special_tokens for token in (*before, *after)):
                raise ValueError(f"around is {before}, {after}, which are not special tokens")
            if "decoder" in content:
                tokenizer.decoder = Decoder(where, content["decoder"])
        return tokenizer

    @classmethod
    def _from_parts(cls, parts: Parts) -> Self:
        tokenizer = cls(**parts.arguments)
        tokenizer.around = parts.around
        for component in parts.decoder:
            tokenizer.decoder = Decoder(cls.__name__, component)
        tokenizer.name_special_tokens(**parts.names)
        return tokenizer

    def _to_json(self) -> dict[str, Any]:
        """The complete definition of this tokenizer, for `_from_json`."""
        raise NotImplementedError

    @classmethod
    def _from_json(cls, content: dict[str, Any]) -> Self:
        raise NotImplementedError
