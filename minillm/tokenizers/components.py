"""Helpers to read the components of a Hugging Face `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from minillm.errors import InputError
from minillm.tokenizers.special import SpecialTokens

Component = Mapping[str, Any]


class NotThisKind(InputError):
    """A tokenizer.json has a part that one kind of tokenizer does not support; `ChainTokenizer` may."""


def model_type(content: Mapping[str, Any]) -> str | None:
    """The type of the model in a tokenizer.json; in early files, which do not name it, guessed from its keys."""
    model = content.get("model")
    if not isinstance(model, dict):
        return None
    guess = "Unigram" if isinstance(model.get("vocab"), list) else "BPE" if "merges" in model else "WordPiece"
    return model.get("type") or guess


def flatten(component: Component | None, key: str) -> list[Component]:
    """The steps of a component of a tokenizer.json; a Sequence holds others under `key`."""
    if component is None:
        return []
    if component["type"] != "Sequence":
        return [component]
    return [step for part in component[key] for step in flatten(part, key)]


def text_option(where: str, component: Component, name: str, default: str | None = None) -> str:
    """An option of a component that is a text; `default` where it is absent or null.

    Raises: InputError for another value, or for an absent one without a default.
    """
    value = component.get(name)
    value = default if value is None else value
    if not isinstance(value, str):
        raise InputError(f"{where}: {component.get('type', 'model')} has {name} {value!r}, expected a text; correct it")
    return value


def number_option(where: str, component: Component, name: str) -> int:
    """An option of a component that is a number, 0 or more.

    Raises: InputError for another value.
    """
    value = component.get(name)
    if type(value) is not int or value < 0:
        kind = component.get("type", "model")
        raise InputError(f"{where}: {kind} has {name} {value!r}, expected a number from 0 on; correct it")
    return value


def expect_defaults(where: str, name: str, component: Component, defaults: Mapping[str, Any]) -> None:
    """Refuse a component whose options differ from `defaults`; an empty text counts as not set."""
    for option, value in defaults.items():
        if (found := component.get(option, value)) != value and found != "":
            raise NotThisKind(f"{where}: {name} has {option} {found!r}, expected {value!r}; only that is supported")


def expect_all_ids(where: str, *tables: Mapping[Any, int]) -> None:
    """Refuse tokens whose ids have gaps."""
    ids = sorted({i for table in tables for i in table.values()})
    if missing := next((i for i, found in enumerate(ids) if i != found), None):
        raise NotThisKind(f"{where}: no token has the id {missing}; give the {len(ids)} tokens the ids from 0 on")


def added_ids(vocab: Mapping[str, int], tokens: Iterable[str]) -> dict[str, int]:
    """The ids of added tokens as Hugging Face's `tokenizers` gives them, whatever the file says.

    A token that the model has keeps the model's id. Each other token gets the next id, after those of the model or
    after the greatest id of an added token.
    """
    ids: dict[str, int] = {}
    greatest = -1
    for token in tokens:
        ids[token] = vocab[token] if token in vocab else max(greatest + 1, len(vocab))
        greatest = max(greatest, ids[token])
    return ids


def read_added_tokens(
    where: str, content: Mapping[str, Any], normalizes: bool, late_is_known: bool = False
) -> tuple[dict[str, int], dict[str, str]]:
    """The text of every added token with its id, and on which sides some take white space with them.

    `normalizes`: a normalizer changes the text, so a token that is `normalized` is looked for in the changed text. Such
    a token is refused unless `late_is_known`. Without a normalizer there is still a difference: tokens that are not
    `normalized` are found first, so where two overlap, the one that begins first need not win. A pair of both sorts
    that can overlap is refused.
    """
    specials: dict[str, int] = {}
    strips: dict[str, str] = {}
    tokens = content.get("added_tokens") or []
    for token in tokens:
        text = token["content"]
        if token.get("single_word"):
            raise NotThisKind(f"{where}: added token {text!r} has single_word, which is not supported; unset it")
        if token.get("normalized") and normalizes and not late_is_known:
            raise NotThisKind(
                f"{where}: added token {text!r} is looked for in normalised text, which is not supported; "
                "set its 'normalized' to false"
            )
        specials[text] = token["id"]
        if side := stripped_side(token):
            strips[text] = side
    expect_ids(where, content["model"], specials)
    late = [token["content"] for token in tokens if token.get("normalized")]
    if late and not (normalizes and late_is_known) and (pair := overlap(late, specials.keys() - late)):
        raise NotThisKind(
            f"{where}: of the added tokens {pair[0]!r} and {pair[1]!r}, which can overlap, one is looked for in "
            "normalised text, which is not supported; set its 'normalized' to false"
        )
    return specials, strips


def expect_ids(where: str, model: Component, specials: Mapping[str, int]) -> None:
    """Refuse added tokens with other ids than `added_ids` gives them."""
    vocab = model["vocab"]
    ids = added_ids({piece: i for i, (piece, _) in enumerate(vocab)} if isinstance(vocab, list) else vocab, specials)
    if token := next((token for token, i in specials.items() if ids[token] != i), None):
        raise NotThisKind(
            f"{where}: added token {token!r} has id {specials[token]}, expected {ids[token]}; give it that id"
        )


def stripped_side(token: Component) -> str:
    """The side on which an added token absorbs white space, or an empty text."""
    left, right = token.get("lstrip"), token.get("rstrip")
    return "both" if left and right else "left" if left else "right" if right else ""


def overlap(late: Collection[str], early: Collection[str]) -> tuple[str, str] | None:
    """A pair of a late token and an early one that lies or begins within it, found by the trie of the early ones."""
    trie = SpecialTokens(early).trie
    for one in late:
        for start in range(len(one)):
            node, end = trie, start
            while end < len(one) and (following := node.get(one[end])) is not None and "" not in node:
                node, end = following, end + 1
            if "" in node or (end == len(one) and start > 0):
                while "" not in node:
                    node = next(iter(node.values()))
                return one, node[""]
    return None


def refuse_made(where: str, added: Collection[str], made: Callable[[str], bool]) -> None:
    """Refuse added tokens that the model also makes of ordinary text: such an id would have two meanings."""
    if token := next(filter(made, added), None):
        raise NotThisKind(
            f"{where}: the added token {token!r} is a token that the model makes of ordinary text, which is not known "
            "here; read it by Tokenizer.from_file"
        )


def read_around(
    where: str, processor: Component | None, special_tokens: Mapping[str, int]
) -> tuple[list[str], list[str]]:
    """The special tokens that a post-processor puts before and after a single text."""
    steps = [step for step in flatten(processor, "processors") if step["type"] != "ByteLevel"]  # moves offsets
    if len(steps) > 1:
        raise NotThisKind(f"{where}: post_processor has {len(steps)} steps that put tokens; only one is supported")
    if not steps:
        return [], []
    [step] = steps
    if step["type"] in ("RobertaProcessing", "BertProcessing"):
        before, after = [tuple(step["cls"])], [tuple(step["sep"])]
    elif step["type"] == "TemplateProcessing":
        names = [(kind, part["id"]) for piece in step["single"] for kind, part in piece.items()]
        if [kind for kind, _ in names].count("Sequence") != 1 or ("Sequence", "A") not in names:
            raise NotThisKind(f"{where}: post_processor has no place for one text in 'single'; give it one $A")
        place = names.index(("Sequence", "A"))
        before, after = (
            [
                pair
                for _, name in side
                for pair in zip(
                    step["special_tokens"][name]["tokens"], step["special_tokens"][name]["ids"], strict=True
                )
            ]
            for side in (names[:place], names[place + 1 :])
        )
    else:
        raise NotThisKind(
            f"{where}: post_processor is {step['type']!r}, which is not supported; there are TemplateProcessing, "
            "RobertaProcessing, BertProcessing and ByteLevel"
        )
    for token, i in (*before, *after):
        if token not in special_tokens:
            raise NotThisKind(f"{where}: post_processor puts {token!r}, which is not an added token; add it to them")
        if special_tokens[token] != i:
            raise NotThisKind(
                f"{where}: post_processor puts {token!r} with the id {i}, but it has {special_tokens[token]}; give one"
            )
    return [token for token, _ in before], [token for token, _ in after]
