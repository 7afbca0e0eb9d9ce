"""Read Hugging Face's `tokenizer.json` for each kind of tokenizer.

Such a file describes a chain: a normalizer changes text, a pre-tokenizer cuts it, a model (BPE, WordPiece, Unigram)
gives ids, a post-processor puts special tokens around them, a decoder turns ids back into text. Added tokens are found
in the text before all this. Each reader here accepts the chains that its tokenizer can follow exactly, and refuses
others by name, with `NotThisKind`; `Tokenizer.from_file` then reads the file with `ChainTokenizer`. A reader returns
the arguments of the tokenizer, the special tokens around a text, and the decoder where it is not the tokenizer's own.

Truncation and padding, which a file may set, are settings of a call, and ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from minillm.errors import InputError
from minillm.tokenizers.basic import BERT_TOKENS, CLS, SEP, UNK, BasicTokenizer, is_punctuation
from minillm.tokenizers.components import (
    Component,
    NotThisKind,
    expect_all_ids,
    expect_defaults,
    expect_ids,
    flatten,
    model_type,
    read_added_tokens,
    read_around,
    refuse_made,
)
from minillm.tokenizers.normalizer import BYTE_PIECES, SPACE
from minillm.tokenizers.patterns import DIGIT, GPT2, ForeignPattern, Splitter
from minillm.tokenizers.saved import Parts
from minillm.tokenizers.vocab_files import BYTE_OF_CHARACTER, read_merge, unspell
from minillm.tokenizers.wordpiece_train import PREFIX

# Byte-level BPE


def is_byte_level(content: Mapping[str, Any]) -> bool:
    """True if the pre-tokenizer spells bytes as GPT-2 does."""
    return any(step["type"] == "ByteLevel" for step in flatten(content.get("pre_tokenizer"), "pretokenizers"))


PLAIN_BPE = {"dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}


def read_bpe(where: str, content: Mapping[str, Any]) -> Parts:
    """See `BPETokenizer.from_hugging_face`."""
    model = content["model"]
    if model_type(content) != "BPE":
        raise InputError(f"{where}: model is of type {model_type(content)!r}, expected 'BPE'; use from_file")
    expect_defaults(where, "model", model, {**PLAIN_BPE, "byte_fallback": False})
    normalizers = [step["type"] for step in flatten(content.get("normalizer"), "normalizers")]
    if normalizers not in ([], ["NFC"]):
        raise NotThisKind(f"{where}: normalizer is {' + '.join(normalizers)}; only NFC or none is supported")
    special_tokens, strips = read_added_tokens(where, content, bool(normalizers))
    patterns, prefix_space = read_pre_tokenizer(where, content.get("pre_tokenizer"))
    spelled = {token: i for token, i in model["vocab"].items() if special_tokens.get(token) != i}
    merges = [read_merge(merge if isinstance(merge, str) else " ".join(merge)) for merge in model["merges"]]
    made = {left + right for left, right in merges}
    in_bytes = {token: unspell(token) for token in special_tokens if BYTE_OF_CHARACTER.keys() >= {*token}}
    # With ignore_merges, a pretoken that is itself a token stays whole; but known patterns cut some tokens.
    splitter = Splitter(patterns, prefix_space=False)
    whole = {
        token
        for token in in_bytes
        if model.get("ignore_merges") and not (splitter.known and len(splitter.pretokens(token)) > 1)
    }
    refuse_made(where, in_bytes, lambda token: len(token) == 1 or in_bytes[token] in made or token in whole)
    if token := next((token for token, content in in_bytes.items() if token.encode() != content), None):
        raise NotThisKind(
            f"{where}: the added token {token!r} is decoded as {in_bytes[token]!r}; only ASCII is supported"
        )
    vocab = {unspell(token): i for token, i in spelled.items()}
    expect_all_ids(where, vocab, special_tokens)
    drop_bytes = any(bytes([byte]) not in vocab for byte in range(256))
    if drop_bytes:  # these bytes would be unknown
        expect_defaults(where, "model, whose vocab lacks bytes,", model, {"unk_token": None})
    return Parts(
        {
            "vocab": vocab,
            "merges": merges,
            "special_tokens": special_tokens,
            "pattern": patterns,
            "normalizer": normalizers[0] if normalizers else None,
            "prefix_space": prefix_space,
            "ignore_merges": model.get("ignore_merges", False),
            "drop_bytes": drop_bytes,
            "strips": strips,
        },
        read_around(where, content.get("post_processor"), special_tokens),
        decoder=() if is_decoded_by(content, "ByteLevel") else [content.get("decoder")],
    )


def foreign_patterns(where: str, component: Component | None) -> dict[str, Component]:
    """The patterns of a pre-tokenizer's Splits by what they are here, for a file that is written again."""
    patterns = [step["pattern"] for step in flatten(component, "pretokenizers") if step["type"] == "Split"]
    return {ForeignPattern(where, pattern).pattern: dict(pattern) for pattern in patterns}


def is_decoded_by(content: Mapping[str, Any], name: str) -> bool:
    """True if the decoder is one step of this name."""
    return [step["type"] for step in flatten(content.get("decoder"), "decoders")] == [name]


def read_pre_tokenizer(where: str, component: Mapping[str, Any] | None) -> tuple[list[str], bool]:
    """The patterns of a pre-tokenizer that ends with ByteLevel, and whether it puts a space in front."""
    *splits, last = flatten(component, "pretokenizers")
    patterns = []
    for step in splits:
        if step["type"] == "Digits":
            patterns.append(DIGIT if step["individual_digits"] else rf"{DIGIT}+")
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step.get("invert"):
            found = ForeignPattern(where, step["pattern"])
            if found.may_be_empty:
                raise NotThisKind(f"{where}: the pattern {step['pattern']} may match nothing; give one that does not")
            patterns.append(found.pattern)
        else:
            name = " ".join(filter(None, (step["type"], step.get("behavior"))))
            raise NotThisKind(
                f"{where}: pre_tokenizer has {name} before its last step; only Digits and Split with behavior Isolated "
                "are supported there"
            )
    if last["type"] != "ByteLevel":
        raise NotThisKind(
            f"{where}: pre_tokenizer ends with {last['type']}, expected ByteLevel; only that is supported"
        )
    if last.get("add_prefix_space", True) and splits:
        raise NotThisKind(f"{where}: ByteLevel has add_prefix_space, which is supported only where it is the one step")
    if last.get("use_regex", True):
        patterns.append(GPT2)
    return patterns, last.get("add_prefix_space", True)


# SentencePiece's BPE

SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
DECODING = ({**SPACES, "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"})
STRIPPING = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def writes_spaces(content: Mapping[str, Any]) -> bool:
    """True if the normalizer or the pre-tokenizer writes spaces as "▁"."""
    steps = flatten(content.get("normalizer"), "normalizers") + flatten(content.get("pre_tokenizer"), "pretokenizers")
    return any(step == SPACES or step["type"] == "Metaspace" for step in steps)


def read_sentencepiece(where: str, content: Mapping[str, Any]) -> Parts:
    """See `SentencePieceBPE.from_hugging_face`."""
    model = content["model"]
    if model_type(content) != "BPE":
        raise InputError(f"{where}: model is of type {model_type(content)!r}, expected 'BPE'; use from_file")
    expect_defaults(where, "model", model, {**PLAIN_BPE, "ignore_merges": False})
    normalizes, prepend_scheme, split = read_spaces(where, content)
    special_tokens, strips = read_added_tokens(where, content, normalizes, late_is_known=True)
    late = [token["content"] for token in content.get("added_tokens") or [] if token.get("normalized") and normalizes]
    decoder = [dict(step) for step in flatten(content.get("decoder"), "decoders")]
    if decoder[:3] != [*DECODING] or decoder[3:] not in ([], [STRIPPING]):
        raise NotThisKind(
            f"{where}: decoder is {' + '.join(step['type'] for step in decoder) or None}, expected Replace (of ▁ by a "
            "space), ByteFallback, Fuse and perhaps Strip (of one space in front); only these are supported"
        )
    vocab = {token: i for token, i in model["vocab"].items() if special_tokens.get(token) != i}
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    made = {left + right for left, right in merges}
    refuse_made(where, special_tokens, lambda token: token in made or (len(token) == 1 and token in model["vocab"]))
    expect_all_ids(where, vocab, special_tokens)
    known = BYTE_PIECES if model.get("byte_fallback") else [model.get("unk_token")]
    if missing := [piece for piece in known if piece not in model["vocab"]]:
        raise NotThisKind(
            f"{where}: {missing[0]!r}, which stands for unknown characters, is not a token; add it to vocab"
        )
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
    """Read how text gets its "▁": if by a normalizer, by which prepend scheme, and if it is cut before each."""
    steps = flatten(content.get("normalizer"), "normalizers")
    splitting = flatten(content.get("pre_tokenizer"), "pretokenizers")
    if not splitting and steps == [SPACES]:
        return True, "never", False
    if not splitting and steps == [{"type": "Prepend", "prepend": SPACE}, SPACES]:
        return True, "stretch", False
    if not steps and len(splitting) == 1 and splitting[0]["type"] == "Metaspace":
        return False, *read_metaspace(where, splitting[0])
    raise NotThisKind(
        f"{where}: normalizer is {' + '.join(step['type'] for step in steps) or None} and pre_tokenizer "
        f"{' + '.join(step['type'] for step in splitting) or None}; supported are the normalizers Prepend (of ▁) and "
        "Replace (of a space by ▁), or Replace alone, or the pre-tokenizer Metaspace"
    )


def read_metaspace(where: str, metaspace: Component) -> tuple[str, bool]:
    """The prepend scheme of a Metaspace, and True if it splits."""
    if metaspace.get("replacement", SPACE) != SPACE:
        raise NotThisKind(f"{where}: Metaspace has replacement {metaspace['replacement']!r}, expected {SPACE!r}")
    old = "always" if metaspace.get("add_prefix_space", True) else "never"  # of files older than the schemes
    return metaspace.get("prepend_scheme", old), metaspace.get("split", True)


# Unigram


def read_unigram(where: str, content: Mapping[str, Any]) -> Parts:
    """See `UnigramTokenizer.from_hugging_face`."""
    model = content["model"]
    if model.get("type", "Unigram") != "Unigram":
        raise InputError(f"{where}: model is of type {model['type']!r}, expected 'Unigram'; read it by its own class")
    normalizer = flatten(content.get("normalizer"), "normalizers")
    specials, strips = read_added_tokens(where, content, bool(normalizer))
    splitting = flatten(content.get("pre_tokenizer"), "pretokenizers")
    names = [step["type"] for step in splitting]
    if names not in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]):
        raise NotThisKind(
            f"{where}: pre_tokenizer is {' + '.join(names) or None}, expected Metaspace, or WhitespaceSplit and "
            "Metaspace; only these are supported"
        )
    prepend_scheme, split = read_metaspace(where, splitting[-1])
    expect_all_ids(where, {piece: i for i, (piece, _) in enumerate(model["vocab"])}, specials)
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
        decoder=[content.get("decoder")],
    )


# WordPiece


def read_wordpiece(where: str, content: Mapping[str, Any]) -> Parts:
    """See `WordPieceTokenizer.from_hugging_face`."""
    model = expect(where, "model", content["model"], type="WordPiece")
    expect(where, "model", model, continuing_subword_prefix=PREFIX, unk_token=UNK)
    expect(where, "pre_tokenizer", content.get("pre_tokenizer"), type="BertPreTokenizer")
    basic: dict[str, Any] = dict.fromkeys(asdict(BasicTokenizer()), False)  # without a normalizer nothing is changed
    if (normalizer := content.get("normalizer")) is not None:
        expect(where, "normalizer", normalizer, type="BertNormalizer")
        basic = {option: normalizer[option] for option in basic}
    check_post_processor(where, content.get("post_processor"), model["vocab"])
    special_tokens: dict[str, int] = {}
    for added in content.get("added_tokens") or []:
        expect(where, f"added token {added['content']!r}", added, special=True, single_word=False)
        expect(where, f"added token {added['content']!r}", added, lstrip=False, rstrip=False, normalized=False)
        special_tokens[added["content"]] = added["id"]
    vocab = dict(model["vocab"])
    expect_ids(where, model, special_tokens)
    # The model makes no token that contains punctuation or a space, since words end there.
    apart = {token for token in special_tokens if len(token) > 1 and any(map(ends_a_word, token))}
    refuse_made(where, special_tokens, lambda token: token in vocab and token not in apart)
    unsought = [token for token in BERT_TOKENS if token in vocab and token not in special_tokens]
    special_tokens |= {token: vocab[token] for token in unsought}
    ordinary = {token: i for token, i in vocab.items() if token not in special_tokens}
    expect_all_ids(where, ordinary, special_tokens)
    own = {"type": "WordPiece", "prefix": PREFIX, "cleanup": True}
    return Parts(
        {
            "vocab": ordinary,
            "special_tokens": special_tokens,
            "max_input_chars_per_word": model["max_input_chars_per_word"],
            "wraps": content.get("post_processor") is not None,
            "unsought": unsought,
            **basic,
        },
        decoder=() if content.get("decoder") == own else [content.get("decoder")],
    )


def ends_a_word(character: str) -> bool:
    """True for punctuation and whitespace."""
    return is_punctuation(character) or character.isspace()


def expect(where: str, name: str, component: Any, **expected: Any) -> dict[str, Any]:
    """Refuse a component of a tokenizer.json that has other settings than `expected`."""
    found = component if isinstance(component, dict) else {"type": component}
    for key, value in expected.items():
        if found.get(key) != value:
            raise NotThisKind(
                f"{where}: {name} has {key} {found.get(key)!r}, expected {value!r}; "
                "WordPieceTokenizer supports BERT's components only"
            )
    return found


def check_post_processor(where: str, processor: Any, ids: Mapping[str, int]) -> None:
    """Refuse a post-processor that does not build `[CLS] a [SEP]` and `[CLS] a [SEP] b [SEP]`; None builds nothing."""
    if processor is None:
        return
    if isinstance(processor, dict) and processor.get("type") == "BertProcessing":
        given = {"cls": processor["cls"][0], "sep": processor["sep"][0]}
        expect(where, "post_processor", given, cls=CLS, sep=SEP)
        given = {"id of cls": processor["cls"][1], "id of sep": processor["sep"][1]}
        expect(where, "post_processor", given, **{"id of cls": ids.get(CLS), "id of sep": ids.get(SEP)})
        return
    expect(where, "post_processor", processor, type="TemplateProcessing")
    single = [template(CLS, 0), template("A", 0), template(SEP, 0)]
    expect(where, "post_processor", processor, single=single, pair=[*single, template("B", 1), template(SEP, 1)])
    for token in (CLS, SEP):
        given = (processor.get("special_tokens") or {}).get(token, {"ids": [ids.get(token)]})
        expect(where, f"post_processor's {token}", given, ids=[ids.get(token)])


def template(name: str, type_id: int) -> dict[str, Any]:
    """A piece of Hugging Face's TemplateProcessing: a text, A or B, or a special token."""
    return {"Sequence" if name in "AB" else "SpecialToken": {"id": name, "type_id": type_id}}
