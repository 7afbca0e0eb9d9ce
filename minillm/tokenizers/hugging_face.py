"""What Hugging Face's `tokenizer.json` says beside the model: components, added tokens, what goes around a text.

Such a file describes a chain: a normalizer changes text, a pre-tokenizer cuts it, a model (BPE, WordPiece, Unigram)
gives ids, a post-processor puts special tokens around them, a decoder goes back. Added tokens are found in the text
before all. Each class reads the chains that it can follow exactly, and refuses others by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from minillm.errors import InputError

Component = Mapping[str, Any]


def model_type(content: Mapping[str, Any]) -> str | None:
    """The type of the model in the content of a tokenizer.json; early files leave it to be guessed."""
    model = content.get("model")
    if not isinstance(model, dict):
        return None
    guess = "Unigram" if isinstance(model.get("vocab"), list) else "BPE" if "merges" in model else "WordPiece"
    return model.get("type") or guess


def flatten(component: Component | None, key: str) -> list[Component]:
    """The steps of a component of a tokenizer.json: a Sequence holds others, in `key`."""
    if component is None:
        return []
    if component["type"] != "Sequence":
        return [component]
    return [step for part in component[key] for step in flatten(part, key)]


def refuse_settings(where: str, content: Mapping[str, Any]) -> None:
    """Refuse truncation and padding, which would change the ids of every call."""
    for option in ("truncation", "padding"):
        if content.get(option):
            raise InputError(f"{where}: {option} is set, which is not known here; set content[{option!r}] to None")


def expect_defaults(where: str, name: str, component: Component, defaults: Mapping[str, Any]) -> None:
    """Refuse a component with options that are set, other than to `defaults`; an empty text is not set."""
    for option, value in defaults.items():
        if (found := component.get(option, value)) != value and found != "":
            raise InputError(f"{where}: {name} has {option} {found!r}, expected {value!r}; only that is known here")


def ordinary_vocab(vocab: Mapping[str, int], special_tokens: Mapping[str, int]) -> dict[str, int]:
    """The tokens of a model's vocabulary that are not added tokens too."""
    return {token: i for token, i in vocab.items() if special_tokens.get(token) != i}


def read_added_tokens(
    where: str, content: Mapping[str, Any], normalizes: bool
) -> tuple[dict[str, int], dict[str, str]]:
    """The text of every added token with its id, and on which sides some take white space with them.

    `normalizes`: text is changed by a normalizer, so that a token that is `normalized` would be found in other text.
    Without one there is a difference still: tokens that are not `normalized` are found first, so that where two
    overlap it is not the one that begins first that counts. Two of both sorts that can overlap are refused.
    """
    specials: dict[str, int] = {}
    strips: dict[str, str] = {}
    tokens = content.get("added_tokens") or []
    for token in tokens:
        text = token["content"]
        if token.get("single_word"):
            raise InputError(f"{where}: added token {text!r} has single_word, which is not known here; unset it")
        if token.get("normalized") and normalizes:
            raise InputError(
                f"{where}: added token {text!r} is looked for in normalised text, which is not known here; "
                "set its 'normalized' to false"
            )
        specials[text] = token["id"]
        sides = [side for side in ("left", "right") if token.get(f"{side[0]}strip")]
        if sides:
            strips[text] = sides[0] if len(sides) == 1 else "both"
    late = [token["content"] for token in tokens if token.get("normalized")]
    for one in late:
        for other in specials.keys() - late:
            if overlap(one, other) or overlap(other, one):
                raise InputError(
                    f"{where}: of the added tokens {one!r} and {other!r}, which can overlap, one is looked for in "
                    "normalised text, which is not known here; set its 'normalized' to false"
                )
    return specials, strips


def overlap(one: str, other: str) -> bool:
    """Whether `other` can begin within `one`."""
    return other in one or any(other.startswith(one[i:]) for i in range(1, len(one)))


def read_around(
    where: str, processor: Component | None, special_tokens: Collection[str]
) -> tuple[list[str], list[str]]:
    """The special tokens that a post-processor puts before and after a single text."""
    before: list[str] = []
    after: list[str] = []
    for step in flatten(processor, "processors"):
        if step["type"] in ("RobertaProcessing", "BertProcessing"):
            before, after = [*before, step["cls"][0]], [*after, step["sep"][0]]
        elif step["type"] == "TemplateProcessing":
            names = [(kind, part["id"]) for piece in step["single"] for kind, part in piece.items()]
            place = names.index(("Sequence", "A"))
            before = [token for _, name in names[:place] for token in step["special_tokens"][name]["tokens"]] + before
            after += [token for _, name in names[place + 1 :] for token in step["special_tokens"][name]["tokens"]]
        elif step["type"] != "ByteLevel":  # which moves offsets
            raise InputError(
                f"{where}: post_processor is {step['type']!r}, which is not known here; there are TemplateProcessing, "
                "RobertaProcessing, BertProcessing and ByteLevel"
            )
    for token in (*before, *after):
        if token not in special_tokens:
            raise InputError(f"{where}: post_processor puts {token!r}, which is no added token; add it to them")
    return before, after
