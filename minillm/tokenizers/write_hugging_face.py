"""Write each kind of tokenizer as Hugging Face's `tokenizer.json`; hugging_face.py reads it, and describes its parts.

Special tokens become added tokens. A program that reads the file gives the next free ids to added tokens that the
model's vocabulary lacks, so they stand in the vocabulary too, unless their ids are the last.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from minillm.errors import InputError
from minillm.tokenizers.basic import CLS, SEP, UNK
from minillm.tokenizers.hugging_face import DECODING, SPACES, STRIPPING, template
from minillm.tokenizers.normalizer import SPACE
from minillm.tokenizers.patterns import DIGIT, GPT2, check_foreign
from minillm.tokenizers.vocab_files import check_apart, spell
from minillm.tokenizers.wordpiece_train import PREFIX

Content = dict[str, Any]
ANY_CHARACTER = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
NO_AFFIXES = {"dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}


def file_of(tokenizer: Any, model: Content, unsought: Collection[str] = (), **parts: Any) -> Content:
    """The content of a tokenizer.json. The parts are those of its chain; the decoder is the tokenizer's own, if any."""
    late = getattr(tokenizer, "normalized", ())
    added = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": tokenizer.strips.get(token) in ("left", "both"),
            "rstrip": tokenizer.strips.get(token) in ("right", "both"),
            "normalized": token in late,
            "special": True,
        }
        for token, i in by_id(tokenizer.special_tokens)
        if token not in unsought
    ]
    chain = {"normalizer": None, "pre_tokenizer": None, "post_processor": template_around(tokenizer), **parts}
    if tokenizer.decoder is not None:
        chain["decoder"] = tokenizer.decoder.component
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **chain, "model": model}


def by_id(tokens: Mapping[str, int]) -> list[tuple[str, int]]:
    """Tokens with their ids, the lowest first."""
    return sorted(tokens.items(), key=lambda item: item[1])


def vocab_with(where: str, vocab: Mapping[str, int], specials: Mapping[str, int]) -> dict[str, int]:
    """The vocabulary, with the special tokens unless their ids are the last.

    Raises: InputError for a special token that is spelled as an ordinary one.
    """
    check_apart(where, vocab, specials)
    are_last = all(i >= len(vocab) for i in specials.values())
    return dict(by_id(vocab if are_last else {**vocab, **specials}))


def in_sequence(steps: Sequence[Any], key: str) -> Content | None:
    """The component of these steps; `key` is where a sequence holds them."""
    return {"type": "Sequence", key: list(steps)} if len(steps) > 1 else steps[0] if steps else None


def template_around(tokenizer: Any) -> Content | None:
    """The post-processor that puts the special tokens around a text, or around each of two."""
    before, after = tokenizer.around
    if not before and not after:
        return None
    single, second = (
        [*(special(token, i) for token in before), text, *(special(token, i) for token in after)]
        for i, text in enumerate((template("A", 0), template("B", 1)))
    )
    return processor(tokenizer, single, single + second, {*before, *after})


def special(token: str, type_id: int) -> Content:
    """A special token at its place in a template."""
    return {"SpecialToken": {"id": token, "type_id": type_id}}


def processor(tokenizer: Any, single: Sequence[Content], pair: Sequence[Content], tokens: Collection[str]) -> Content:
    """The templates that put special tokens around one text and around two."""
    ids = {token: tokenizer.special_tokens[token] for token in sorted(tokens)}
    named = {token: {"id": token, "ids": [i], "tokens": [token]} for token, i in ids.items()}
    return {"type": "TemplateProcessing", "single": list(single), "pair": list(pair), "special_tokens": named}


# The kinds


def write_bpe(where: str, tokenizer: Any) -> Content:
    """A byte-level BPE."""
    splitter = tokenizer.splitter
    is_last = splitter.patterns[-1:] == (GPT2,)  # ByteLevel itself cuts by this pattern
    cuts = [split_step(where, pattern, tokenizer.foreign) for pattern in splitter.patterns[: -1 if is_last else None]]
    if splitter.prefix_space and cuts:
        raise InputError(
            f"{where}: a tokenizer.json puts a space in front of the text with GPT-2's pattern alone; give that "
            "pattern, or prefix_space=False"
        )
    level = {"type": "ByteLevel", "add_prefix_space": splitter.prefix_space, "trim_offsets": True, "use_regex": is_last}
    model = {
        "type": "BPE",
        **NO_AFFIXES,
        "unk_token": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": tokenizer.ignore_merges,
        "vocab": vocab_with(where, {spell(token): i for token, i in tokenizer.vocab.items()}, tokenizer.special_tokens),
        "merges": [[spell(left), spell(right)] for left, right in tokenizer.merges],
    }
    return file_of(
        tokenizer,
        model,
        normalizer=None if splitter.normalizer is None else {"type": splitter.normalizer},
        pre_tokenizer=in_sequence([*cuts, level], "pretokenizers"),
        decoder=level,
    )


def split_step(where: str, pattern: str, foreign: Mapping[str, Content]) -> Content:
    """The step of a pre-tokenizer that cuts by a pattern.

    foreign: for each pattern that was translated from another tokenizer.json, the pattern there.
    Raises: InputError for a pattern that means something else there.
    """
    for digits, alone in ((DIGIT, True), (f"{DIGIT}+", False)):
        if pattern == digits:
            return {"type": "Digits", "individual_digits": alone}
    if pattern not in foreign and plain(check_foreign(where, pattern)) != plain(pattern):
        raise InputError(f"{where}: pattern {pattern!r} means something else in a tokenizer.json; write it in full")
    return {
        "type": "Split",
        "pattern": foreign.get(pattern, {"Regex": pattern}),
        "behavior": "Isolated",
        "invert": False,
    }


def plain(pattern: str) -> str:
    """A pattern without differences of spelling: brackets around one property, escaped line ends, capitals in names."""
    pattern = re.sub(r"\[(\\[pP]\{\w+\})\]", r"\1", re.sub(r"\\([\n\r\t ])", r"\1", pattern))
    return re.sub(r"\{\w+\}", lambda name: name.group().lower(), pattern)


def write_sentencepiece(where: str, tokenizer: Any) -> Content:
    """A BPE of SentencePiece. Scores become merges, those with the highest scores first."""
    if tokenizer.prepend_scheme == "stretch" and tokenizer.split:
        raise InputError(
            f"{where}: no tokenizer.json has the prepend_scheme 'stretch' together with split; give split=False, or "
            "the prepend_scheme 'always'"
        )
    check_apart(where, tokenizer.vocab, tokenizer.special_tokens)
    merges = tokenizer.merges if isinstance(tokenizer.merges, list) else merges_of(tokenizer.vocab, tokenizer.merges)
    model = {
        "type": "BPE",
        **NO_AFFIXES,
        "unk_token": tokenizer.unk_token,
        "fuse_unk": tokenizer.fuse_unk,
        "byte_fallback": tokenizer.byte_fallback,
        "ignore_merges": False,
        "vocab": dict(by_id({**tokenizer.vocab, **tokenizer.special_tokens})),
        "merges": [list(merge) for merge in merges],
    }
    parts: Content = {"pre_tokenizer": metaspace(tokenizer.prepend_scheme, tokenizer.split)}
    if tokenizer.prepend_scheme == "stretch" or (tokenizer.prepend_scheme == "never" and not tokenizer.split):
        first = [{"type": "Prepend", "prepend": SPACE}] if tokenizer.prepend_scheme == "stretch" else []
        parts = {"normalizer": in_sequence([*first, SPACES], "normalizers")}
    strips = [STRIPPING] if tokenizer.strip_space else []
    return file_of(tokenizer, model, **parts, decoder=in_sequence([*DECODING, *strips], "decoders"))


def merges_of(vocab: Mapping[str, int], scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others; of one piece, in the order of the cuts."""
    best_first = sorted(scores, key=lambda piece: -scores[piece])
    cuts = ((piece[:cut], piece[cut:]) for piece in best_first for cut in range(1, len(piece)))
    return [(left, right) for left, right in cuts if left in vocab and right in vocab]


def metaspace(prepend_scheme: str, split: bool) -> Content:
    """The step that writes a space as "▁"."""
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": prepend_scheme, "split": split}


def write_unigram(where: str, tokenizer: Any) -> Content:
    """A unigram language model."""
    steps = tokenizer.text_steps
    spaces = metaspace(steps.prepend_scheme, steps.split)
    words = [{"type": "WhitespaceSplit"}] if steps.whitespace_split else []
    model = {
        "type": "Unigram",
        "unk_id": tokenizer.unk_id,
        "vocab": [list(piece) for piece in tokenizer.pieces],
        "byte_fallback": tokenizer.byte_fallback,
    }
    joined = [*DECODING, *([] if steps.prepend_scheme == "never" else [STRIPPING])]
    return file_of(
        tokenizer,
        model,
        normalizer=in_sequence([whole_step(step) for step in steps.normalise.steps], "normalizers"),
        pre_tokenizer=in_sequence([*words, spaces], "pretokenizers"),
        decoder=in_sequence(joined, "decoders") if tokenizer.byte_fallback else spaces,
    )


def whole_step(step: Mapping[str, Any]) -> Content:
    """A step of a normalizer with all its options."""
    return {"strip_left": True, "strip_right": True, **step} if step["type"] == "Strip" else dict(step)


def write_wordpiece(where: str, tokenizer: Any) -> Content:
    """BERT's WordPiece."""
    check_apart(where, tokenizer.vocab, tokenizer.special_tokens)
    model = {
        "type": "WordPiece",
        "unk_token": tokenizer.names.get("unk_token", UNK),
        "continuing_subword_prefix": PREFIX,
        "max_input_chars_per_word": tokenizer.max_input_chars_per_word,
        "vocab": dict(by_id({**tokenizer.vocab, **tokenizer.special_tokens})),
    }
    wrapped = None
    if tokenizer.wraps and {CLS, SEP} <= tokenizer.special_tokens.keys():
        single = [template(CLS, 0), template("A", 0), template(SEP, 0)]
        wrapped = processor(tokenizer, single, [*single, template("B", 1), template(SEP, 1)], {CLS, SEP})
    return file_of(
        tokenizer,
        model,
        tokenizer.unsought,
        normalizer={"type": "BertNormalizer", **asdict(tokenizer.basic)},
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=wrapped,
        decoder={"type": "WordPiece", "prefix": PREFIX, "cleanup": True},
    )


def write_character(where: str, tokenizer: Any) -> Content:
    """A file with a word for each character. A character without a token is an error there too, or unknown."""
    unk = next((token for token, i in tokenizer.special_tokens.items() if i == tokenizer.unk_id), None)
    vocab = vocab_with(where, tokenizer.vocab, tokenizer.special_tokens)
    model = {
        "type": "WordLevel",
        "vocab": vocab if unk is None else dict(by_id({**vocab, **tokenizer.special_tokens})),
        "unk_token": UNK if unk is None else unk,
    }
    return file_of(tokenizer, model, pre_tokenizer=ANY_CHARACTER, decoder={"type": "Fuse"})
