"""A tokenizer that follows a tokenizer.json step by step, whatever its parts are.

The other tokenizers here each cut text in one way, written to be read, and fast. Many files combine the parts in
another way: CLIP's words end in "</w>", Gemma's bytes are pieces of a BPE without words, a whole word may have an id.
This tokenizer takes the parts as they are:

    text -> added tokens -> normalizer -> added tokens in normalised text -> pre-tokenizer -> model -> ids
    ids -> tokens -> decoder -> text

and so gives the ids and the text of Hugging Face's `tokenizers`. `Tokenizer.from_file` falls back on it.

The price is that a whole text is held in memory, since any step may look to its end, and that text with new words is
slower.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from minillm.errors import InputError
from minillm.tokenizers.base import Specials, Tokenizer, check_special_tokens
from minillm.tokenizers.components import Component, added_ids, flatten, model_type, stripped_side
from minillm.tokenizers.decoders import Decoder
from minillm.tokenizers.files import readable
from minillm.tokenizers.models import Model, read_model, read_vocab
from minillm.tokenizers.normalizer import Normaliser
from minillm.tokenizers.pre_tokenizers import PreTokenizer
from minillm.tokenizers.special import SpecialTokens

PARTS = "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model"
CACHED_PIECES = 1 << 17  # a tokenizer that remembers the ids of more pieces begins again
LONG_PIECE = 128  # characters: a longer piece is hardly met twice


class ChainTokenizer(Tokenizer):
    """Any tokenizer.json whose parts are supported; made by `from_file`, `from_hugging_face` or `load`.

    Its added tokens are its special tokens. Ordinary text never becomes a token that the file calls special, unless all
    are allowed: then the model may make one of a piece of text, as in Hugging Face's `tokenizers`.

    Args:
        content: the content of a tokenizer.json, as `json.load` gives it.

    Raises: InputError that names a part, or an option of one, that is not supported.
    """

    kind = "chain"
    general = True

    def __init__(self, content: Mapping[str, Any]):
        where = "ChainTokenizer"
        self.content = {part: content.get(part) for part in PARTS}
        json.dumps(self.content, ensure_ascii=False).encode()  # raises for a lone surrogate
        self.model_vocab = read_vocab(where, content["model"])
        added = [dict(token) for token in content.get("added_tokens") or []]
        specials = added_ids(self.model_vocab, [token["content"] for token in added])
        check_special_tokens(where, [token["content"] for token in added])
        self._start(specials, [])
        self._tokens = {i: token for token, i in self.model_vocab.items()} | {i: t for t, i in specials.items()}
        self.vocab_size = max(self._tokens, default=-1) + 1
        self.normalizer = Normaliser(flatten(content.get("normalizer"), "normalizers"))
        normalizes = any(step["type"] == "ByteLevel" for step in self.normalizer.steps)
        self.pre_tokenizer = PreTokenizer(where, content.get("pre_tokenizer"), normalizes)
        self.model = read_model(where, content)
        self.hidden = {token["content"] for token in added if token.get("special")} & self.model_vocab.keys()
        self.post_processor = flatten(content.get("post_processor"), "processors")
        self.decoder = Decoder(where, content.get("decoder"))
        self.strips = {token["content"]: side for token in added if (side := stripped_side(token))}
        self.whole_words = {token["content"] for token in added if token.get("single_word")}
        self.late: dict[str, str] = {}  # from the normal form of each token that is found in normalised text
        for token in added:
            if token.get("normalized"):
                form = self.normalizer(token["content"])
                if not form:
                    raise InputError(
                        f"{where}: the added token {token['content']!r} becomes empty when normalised; give another"
                    )
                if (other := self.late.setdefault(form, token["content"])) != token["content"]:
                    raise InputError(
                        f"{where}: the added tokens {other!r} and {token['content']!r} are both {form!r} when "
                        "normalised; give one"
                    )
                self._tokens[specials[token["content"]]] = form  # decoded in the form in which it is found
        self.build_inputs_with_special_tokens([])  # raises if the post-processor is not supported
        self._guarded: Model | None = None
        # State of a reader, see _encode_blocks.
        self._begun = False
        self._allowed: Collection[str] = ()
        self._find_late, self._run, self._ids_of_piece = SpecialTokens(()), self.model, dict[str, Sequence[int]]()
        self._caches: tuple[dict[str, Sequence[int]], dict[str, Sequence[int]]] = {}, {}

    @property
    def unk_id(self) -> int | None:
        """The id of the token for unknown text, or None; any token may be it, not just a special one."""
        model: Mapping[str, Any] = self.content["model"] or {}
        if model_type(self.content) == "Unigram":
            found = model.get("unk_id")
            return None if found is None else int(found)
        return self.model_vocab.get(model.get("unk_token") or "")

    # Text to ids

    def _encode_blocks(
        self, chunks: Iterable[str], allowed_special: Specials, disallowed_special: Specials
    ) -> Iterator[list[int]]:
        """Encode with a copy of this tokenizer that remembers if the text has begun, and which tokens it finds late."""
        allowed = self._choose("allowed_special", allowed_special)
        refused = self._choose("disallowed_special", disallowed_special)
        every = self.special_tokens
        reader = copy.copy(self)
        reader._begun, reader._allowed = False, allowed
        if allowed is every or refused is every:
            if "late" not in self._finders:
                self._finders["late"] = self._make_late_finder(every)
            reader._find_late = self._finders["late"]
        else:
            reader._find_late = self._make_late_finder({*allowed, *refused})
        if self.hidden and allowed is not every:
            if self._guarded is None:
                self._guarded = read_model("ChainTokenizer", self.content, self.hidden)
            reader._run, reader._ids_of_piece = self._guarded, self._caches[1]
        else:
            reader._run, reader._ids_of_piece = self.model, self._caches[0]
        return super(ChainTokenizer, reader)._encode_blocks(chunks, allowed_special, disallowed_special)

    def _make_finder(self, tokens: Collection[str]) -> SpecialTokens:
        late = {*self.late.values()}
        return SpecialTokens([token for token in tokens if token not in late], self.strips, self.whole_words)

    def _make_late_finder(self, tokens: Collection[str]) -> SpecialTokens:
        forms = {form: token for form, token in self.late.items() if token in tokens}
        return SpecialTokens(
            forms,
            {form: self.strips[token] for form, token in forms.items() if token in self.strips},
            {form for form, token in forms.items() if token in self.whole_words},
        )

    def _encode_settled(self, text: str, more: bool) -> tuple[list[int], int]:
        if more:
            return [], 0
        begun, self._begun = self._begun, True
        if not text:
            return [], 0
        lead = 0 if begun else self.normalizer.lead(text)
        text = self.normalizer(text)
        ids: list[int] = []
        start = 0
        for found in self._find_late.cut(text)[0]:
            ids += self._ids_of(text[start : found.start], lead - start)
            ids += self._special_ids(self.late[found.token], self._allowed)
            start = found.end
        return ids + self._ids_of(text[start:], lead - start), len(text)

    def _ids_of(self, stretch: str, lead: int) -> list[int]:
        """The ids of a stretch of normalised text without added tokens."""
        ids: list[int] = []
        cache = self._ids_of_piece
        for piece in self.pre_tokenizer(stretch, lead):
            known = cache.get(piece)
            if known is None:
                known = self._run(piece)
                if len(cache) >= CACHED_PIECES:
                    cache.clear()
                if len(piece) <= LONG_PIECE:
                    cache[piece] = known
            ids += known
        return ids

    def build_inputs_with_special_tokens(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """The ids of one text or two, with what the post-processor puts around them.

        Raises: InputError for a post-processor that has no template for so many texts.
        """
        texts = [list(token_ids_0)] if token_ids_1 is None else [list(token_ids_0), list(token_ids_1)]
        for step in self.post_processor:
            texts = put_around(step, texts)
        return [i for text in texts for i in text]

    # Ids to text

    def _text(self, ids: list[int], errors: str, more: bool = False) -> str:
        """Decode; an id without a token, where ids have gaps, is skipped."""
        return super()._text([i for i in ids if i in self._tokens], errors, more)

    def _spelling(self, i: int) -> str:
        return self._tokens[i]

    # Files

    def _to_json(self) -> dict[str, Any]:
        return {"content": self.content}

    def to_json(self) -> dict[str, Any]:
        """The JSON object that `save` writes."""
        return {key: value for key, value in super().to_json().items() if key != "decoder"}  # the content has it

    def to_hugging_face(self) -> dict[str, Any]:
        return {"version": "1.0", "truncation": None, "padding": None, **self.content}

    @classmethod
    def _from_json(cls, content: dict[str, Any]) -> Self:
        return cls(content["content"])

    @classmethod
    def _reads_hugging_face(cls, content: Mapping[str, Any]) -> bool:
        return True

    @classmethod
    def from_hugging_face(cls, content: Mapping[str, Any]) -> Self:
        """Read the content of a Hugging Face `tokenizer.json`, as `json.load` gives it.

        `encode(text, "all")` gives the ids of Hugging Face's `encode(text, add_special_tokens=False)`;
        `build_inputs_with_special_tokens` adds what its post-processor would, and `decode` gives the text of its
        decoder. Added tokens get the ids that `tokenizers` gives them, whatever the file says: the model's id if the
        model has the token, else the next free one.

        Raises: InputError that names a part, or an option of one, that is not supported.
        """
        where = f"{cls.__name__}.from_hugging_face"
        with readable(where, "this is not a complete tokenizer.json", "get the file again"):
            return cls(content)


def put_around(step: Component, texts: list[list[int]]) -> list[list[int]]:
    """Apply one step of a post-processor to one text or two, each a list of ids."""
    name = step["type"]
    if name == "ByteLevel":  # it only moves offsets
        return texts
    if name in ("RobertaProcessing", "BertProcessing"):
        cls, sep = int(step["cls"][1]), int(step["sep"][1])
        between = [sep] if name == "RobertaProcessing" else []
        return [[*(between if number else [cls]), *ids, sep] for number, ids in enumerate(texts)]
    if name != "TemplateProcessing":
        raise InputError(
            f"ChainTokenizer: post_processor is {name!r}, which is not supported; there are TemplateProcessing, "
            "RobertaProcessing, BertProcessing and ByteLevel"
        )
    if len(texts) > 2:
        raise InputError("ChainTokenizer: post_processor has a template for more than two texts; give one template")
    made: list[list[int]] = []
    for piece in step["single" if len(texts) == 1 else "pair"]:
        [(kind, part)] = piece.items()
        if kind == "SpecialToken":
            made.append([int(i) for i in step["special_tokens"][part["id"]]["ids"]])
        elif (place := "AB".index(part["id"])) < len(texts):
            made.append(texts[place])
        else:
            raise InputError("ChainTokenizer: post_processor has a second text in 'single'; correct its template")
    return made
