"""Hugging Face's `tokenizer.json`, read for each kind of tokenizer: components, added tokens, what goes around a text.

Such a file describes a chain: a normalizer changes text, a pre-tokenizer cuts it, a model (BPE, WordPiece, Unigram)
gives ids, a post-processor puts special tokens around them, a decoder goes back. Added tokens are found in the text
before all. Each reader here takes the chains that its tokenizer can follow exactly, and refuses others by name. It
returns the arguments of the tokenizer, and what goes around a text.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

import regex

from minillm.errors import InputError
from minillm.tokenizers.base import Parts
from minillm.tokenizers.basic import BERT_TOKENS, CLS, SEP, UNK, BasicTokenizer
from minillm.tokenizers.normalizer import SPACE
from minillm.tokenizers.patterns import DIGIT, GPT2, check_foreign
from minillm.tokenizers.vocab_files import read_merge, unspell
from minillm.tokenizers.wordpiece_train import PREFIX

Component = Mapping[str, Any]


# What all kinds share


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
    where: str, content: Mapping[str, Any], normalizes: bool, late_is_known: bool = False
) -> tuple[dict[str, int], dict[str, str]]:
    """The text of every added token with its id, and on which sides some take white space with them.

    `normalizes`: text is changed by a normalizer, so that a token that is `normalized` would be found in other text;
    it is refused, but where that `late_is_known`. Without one there is a difference still: tokens that are not
    `normalized` are found first, so that where two overlap it is not the one that begins first that counts. Two of
    both sorts that can overlap are refused.
    """
    specials: dict[str, int] = {}
    strips: dict[str, str] = {}
    tokens = content.get("added_tokens") or []
    for token in tokens:
        text = token["content"]
        if token.get("single_word"):
            raise InputError(f"{where}: added token {text!r} has single_word, which is not known here; unset it")
        if token.get("normalized") and normalizes and not late_is_known:
            raise InputError(
                f"{where}: added token {text!r} is looked for in normalised text, which is not known here; "
                "set its 'normalized' to false"
            )
        specials[text] = token["id"]
        sides = [side for side in ("left", "right") if token.get(f"{side[0]}strip")]
        if sides:
            strips[text] = sides[0] if len(sides) == 1 else "both"
    late = [token["content"] for token in tokens if token.get("normalized")]
    for one in late if not (normalizes and late_is_known) else ():
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


# Byte-level BPE


def is_byte_level(content: Mapping[str, Any]) -> bool:
    """Whether the pre-tokenizer spells bytes as GPT-2 does."""
    return any(step["type"] == "ByteLevel" for step in flatten(content.get("pre_tokenizer"), "pretokenizers"))


PLAIN_BPE = {"dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}


def read_bpe(where: str, content: Mapping[str, Any]) -> Parts:
    """See `BPETokenizer.from_hugging_face`."""
    model = content["model"]
    if model_type(content) != "BPE":
        raise InputError(f"{where}: model is of type {model_type(content)!r}, expected 'BPE'; use from_file")
    refuse_settings(where, content)
    expect_defaults(where, "model", model, {**PLAIN_BPE, "byte_fallback": False})
    normalizers = [step["type"] for step in flatten(content.get("normalizer"), "normalizers")]
    if normalizers not in ([], ["NFC"]):
        raise InputError(f"{where}: normalizer is {' + '.join(normalizers)}; NFC or none is known here")
    special_tokens, strips = read_added_tokens(where, content, bool(normalizers))
    patterns, prefix_space = read_pre_tokenizer(where, content.get("pre_tokenizer"))
    vocab = {unspell(token): i for token, i in ordinary_vocab(model["vocab"], special_tokens).items()}
    drop_bytes = any(bytes([byte]) not in vocab for byte in range(256))
    if drop_bytes:  # these would be unknown
        expect_defaults(where, "model, whose vocab lacks bytes,", model, {"unk_token": None})
    return Parts(
        {
            "vocab": vocab,
            "merges": [read_merge(merge if isinstance(merge, str) else " ".join(merge)) for merge in model["merges"]],
            "special_tokens": special_tokens,
            "pattern": patterns,
            "normalizer": normalizers[0] if normalizers else None,
            "prefix_space": prefix_space,
            "ignore_merges": model.get("ignore_merges", False),
            "drop_bytes": drop_bytes,
            "strips": strips,
        },
        read_around(where, content.get("post_processor"), special_tokens),
    )


def read_pre_tokenizer(where: str, component: Mapping[str, Any] | None) -> tuple[list[str], bool]:
    """The patterns of a pre-tokenizer that ends with ByteLevel, and whether it puts a space in front."""
    *splits, last = flatten(component, "pretokenizers")
    patterns = []
    for step in splits:
        if step["type"] == "Digits":
            patterns.append(DIGIT if step["individual_digits"] else rf"{DIGIT}+")
        elif step["type"] == "Split" and step["behavior"] == "Isolated":
            found = step["pattern"]
            patterns.append(check_foreign(where, found["Regex"]) if "Regex" in found else regex.escape(found["String"]))
        else:
            raise InputError(
                f"{where}: pre_tokenizer has {step['type']} {step.get('behavior', '')}before its end; Digits and "
                "Split with behavior Isolated are known there"
            )
    if last["type"] != "ByteLevel":
        raise InputError(
            f"{where}: pre_tokenizer ends with {last['type']}, expected ByteLevel; only that is known here"
        )
    if last.get("add_prefix_space", True) and splits:
        raise InputError(f"{where}: ByteLevel with other steps has add_prefix_space, which is known only of it alone")
    if last.get("use_regex", True):
        patterns.append(GPT2)
    return patterns, last.get("add_prefix_space", True)


# SentencePiece's BPE

SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
DECODING = ({**SPACES, "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"})
STRIPPING = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def writes_spaces(content: Mapping[str, Any]) -> bool:
    """Whether the normalizer or the pre-tokenizer writes spaces as "▁"."""
    steps = flatten(content.get("normalizer"), "normalizers") + flatten(content.get("pre_tokenizer"), "pretokenizers")
    return any(step == SPACES or step["type"] == "Metaspace" for step in steps)


def read_sentencepiece(where: str, content: Mapping[str, Any]) -> Parts:
    """See `SentencePieceBPE.from_hugging_face`."""
    model = content["model"]
    if model_type(content) != "BPE":
        raise InputError(f"{where}: model is of type {model_type(content)!r}, expected 'BPE'; use from_file")
    refuse_settings(where, content)
    expect_defaults(where, "model", model, {**PLAIN_BPE, "ignore_merges": False})
    normalizes, prepend_scheme, split = read_spaces(where, content)
    special_tokens, strips = read_added_tokens(where, content, normalizes, late_is_known=True)
    late = [token["content"] for token in content.get("added_tokens") or [] if token.get("normalized") and normalizes]
    decoder = [dict(step) for step in flatten(content.get("decoder"), "decoders")]
    if decoder[:3] != [*DECODING] or decoder[3:] not in ([], [STRIPPING]):
        raise InputError(
            f"{where}: decoder is {' + '.join(step['type'] for step in decoder) or None}, expected Replace (of ▁ by a "
            "space), ByteFallback, Fuse and perhaps Strip (of one space in front); only these are known here"
        )
    vocab = ordinary_vocab(model["vocab"], special_tokens)
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    # A merge that would make a special token of ordinary text is left out: nobody is to write one unasked.
    merges = [(left, right) for left, right in pairs if not {left, right, left + right} & special_tokens.keys()]
    return Parts(
        {
            "vocab": vocab,
            "merges": merges,
            "special_tokens": special_tokens,
            "unk_token": model.get("unk_token"),
            "byte_fallback": model.get("byte_fallback", False),
            "fuse_unk": model.get("fuse_unk", False),
            "prepend_scheme": prepend_scheme,
            "split": split,
            "strip_space": len(decoder) == 4,
            "normalized": late,
            "strips": strips,
        },
        read_around(where, content.get("post_processor"), special_tokens),
    )


def read_spaces(where: str, content: Mapping[str, Any]) -> tuple[bool, str, bool]:
    """Whether a normalizer writes the spaces, in front of what one is put, and whether text is cut before each."""
    steps = flatten(content.get("normalizer"), "normalizers")
    splitting = flatten(content.get("pre_tokenizer"), "pretokenizers")
    if not splitting and steps == [SPACES]:
        return True, "never", False
    if not splitting and steps == [{"type": "Prepend", "prepend": SPACE}, SPACES]:
        return True, "stretch", False
    if not steps and len(splitting) == 1 and splitting[0]["type"] == "Metaspace":
        return False, *read_metaspace(where, splitting[0])
    raise InputError(
        f"{where}: normalizer is {' + '.join(step['type'] for step in steps) or None} and pre_tokenizer "
        f"{' + '.join(step['type'] for step in splitting) or None}; known here are the normalizers Prepend (of ▁) and "
        "Replace (of a space by ▁), or Replace alone, or the pre-tokenizer Metaspace"
    )


def read_metaspace(where: str, metaspace: Component) -> tuple[str, bool]:
    """The scheme of a Metaspace, and whether it splits."""
    if metaspace.get("replacement", SPACE) != SPACE:
        raise InputError(f"{where}: Metaspace has replacement {metaspace['replacement']!r}, expected {SPACE!r}")
    old = "always" if metaspace.get("add_prefix_space", True) else "never"  # before there were schemes
    return metaspace.get("prepend_scheme", old), metaspace.get("split", True)


# Unigram


def read_unigram(where: str, content: Mapping[str, Any]) -> Parts:
    """See `UnigramTokenizer.from_hugging_face`."""
    model = content["model"]
    if model.get("type", "Unigram") != "Unigram":
        raise InputError(f"{where}: model is of type {model['type']!r}, expected 'Unigram'; read it by its own class")
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
    prepend_scheme, split = read_metaspace(where, splitting[-1])
    return Parts(
        {
            "pieces": [(piece, score) for piece, score in model["vocab"]],
            "unk_id": model.get("unk_id"),
            "special_tokens": specials,
            "byte_fallback": model.get("byte_fallback", False),
            "normalizer": normalizer,
            "prepend_scheme": prepend_scheme,
            "split": split,
            "whitespace_split": len(names) == 2,
            "strips": strips,
        },
        read_around(where, content.get("post_processor"), specials),
    )


# WordPiece


def read_wordpiece(where: str, content: Mapping[str, Any]) -> Parts:
    """See `WordPieceTokenizer.from_hugging_face`."""
    model = expect(where, "model", content["model"], type="WordPiece")
    expect(where, "model", model, continuing_subword_prefix=PREFIX, unk_token=UNK)
    expect(where, "pre_tokenizer", content.get("pre_tokenizer"), type="BertPreTokenizer")
    basic = dict.fromkeys(asdict(BasicTokenizer()), False)  # no normalizer changes nothing
    if (normalizer := content.get("normalizer")) is not None:
        expect(where, "normalizer", normalizer, type="BertNormalizer")
        basic = {option: normalizer[option] for option in basic}
    if (decoder := content.get("decoder")) is not None:
        expect(where, "decoder", decoder, type="WordPiece", prefix=PREFIX)
    check_post_processor(where, content.get("post_processor"))
    vocab = dict(model["vocab"])
    special_tokens = {token: vocab[token] for token in BERT_TOKENS if token in vocab}
    for added in content.get("added_tokens") or []:
        expect(where, f"added token {added['content']!r}", added, special=True, single_word=False)
        expect(where, f"added token {added['content']!r}", added, lstrip=False, rstrip=False, normalized=False)
        special_tokens[added["content"]] = added["id"]
    ordinary = {token: i for token, i in vocab.items() if token not in special_tokens}
    longest = model["max_input_chars_per_word"]
    return Parts(
        {"vocab": ordinary, "special_tokens": special_tokens, "max_input_chars_per_word": longest, **basic}, ((), ())
    )


def expect(where: str, name: str, component: Any, **expected: Any) -> dict[str, Any]:
    """Refuse a component of a tokenizer.json that has other settings than `expected`."""
    found = component if isinstance(component, dict) else {"type": component}
    for key, value in expected.items():
        if found.get(key) != value:
            raise InputError(
                f"{where}: {name} has {key} {found.get(key)!r}, expected {value!r}; "
                "WordPieceTokenizer knows BERT's components alone"
            )
    return found


def check_post_processor(where: str, processor: Any) -> None:
    """Refuse a post-processor that does not build `[CLS] a [SEP]` and `[CLS] a [SEP] b [SEP]`; None builds nothing."""
    if processor is None:
        return
    if isinstance(processor, dict) and processor.get("type") == "BertProcessing":
        expect(where, "post_processor", {"cls": processor["cls"][0], "sep": processor["sep"][0]}, cls=CLS, sep=SEP)
        return
    expect(where, "post_processor", processor, type="TemplateProcessing")
    single = [template(CLS, 0), template("A", 0), template(SEP, 0)]
    expect(where, "post_processor", processor, single=single, pair=[*single, template("B", 1), template(SEP, 1)])


def template(name: str, type_id: int) -> dict[str, Any]:
    """One piece of Hugging Face's TemplateProcessing: a text, A or B, or a special token."""
    return {"Sequence" if name in "AB" else "SpecialToken": {"id": name, "type_id": type_id}}
