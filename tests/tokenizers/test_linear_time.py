"""Time grows as the text does, whatever the text repeats, for every kind of tokenizer, with special tokens and without.

A text that is 16 times as long may take 40 times as long, and what is quick anyway counts as quick.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from functools import partial

import pytest

from minillm.tokenizers import (
    BPETokenizer,
    ChainTokenizer,
    CharacterTokenizer,
    SentencePieceBPE,
    Tokenizer,
    UnigramTokenizer,
    WordPieceTokenizer,
)
from minillm.tokenizers.normalizer import BYTE_PIECES

UNITS = [" ", "a", "\n", "<", "\r\n", " \n", "é", "中", "'", "1", "\u0301\u0316", "<s", "<s>", " <m> ", "\0"]
TEXT = "the cat sat on the mat <s> 1234 aa aaaa naïve 中文 < \n\n\t  x" * 3
SPECIALS = {"<s>": "both", "<m>": "left", "<<<<x": "right"}
SHORT, TIMES, FLOOR, TRIES = 500, 16, 0.06, 8


def bpe(**options) -> BPETokenizer:
    trained = BPETokenizer.train(TEXT, 330, ())
    specials = {token: i for i, token in enumerate(SPECIALS, 330)}
    specials = {token: i - 330 + trained.vocab_size for token, i in specials.items()}
    return BPETokenizer(trained.vocab, trained.merges, specials, strips=SPECIALS, **options)


def sentencepiece() -> SentencePieceBPE:
    pieces = [*BYTE_PIECES, "▁", "a", "aa", "aaaa", "▁▁", "▁a", "<", "s", "<s"]
    merges = [("a", "a"), ("aa", "aa"), ("▁", "▁"), ("▁", "a"), ("<", "s")]
    specials = {token: i for i, token in enumerate(SPECIALS, len(pieces))}
    return SentencePieceBPE({piece: i for i, piece in enumerate(pieces)}, merges, specials, strips=SPECIALS)


def unigram() -> UnigramTokenizer:
    steps = [{"type": "NFKC"}, {"type": "Strip"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]
    trained = UnigramTokenizer.train(TEXT, 60)
    specials = {"<unk>": 0} | {token: i for i, token in enumerate(SPECIALS, len(trained.pieces))}
    return UnigramTokenizer(trained.pieces, 0, specials, normalizer=steps, strips=SPECIALS)


def chain(pre_tokenizer, normalizer=None, **model) -> ChainTokenizer:
    flags = {"left": {"lstrip": True}, "right": {"rstrip": True}, "both": {"lstrip": True, "rstrip": True}}
    added = [
        {"content": token, "id": 0, **flags[side], "normalized": side == "left", "single_word": side == "right"}
        for token, side in SPECIALS.items()
    ]
    tokens = ["<unk>", "a", "aa", " ", "  ", "▁", "Ġ", "ĠĠ", "<"]
    merges = ["a a", ["Ġ", "Ġ"]]
    plain = {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges, "unk_token": "<unk>"}
    parts = {"pre_tokenizer": pre_tokenizer, "normalizer": normalizer, "added_tokens": added}
    return ChainTokenizer.from_hugging_face({"model": {**plain, **model}, **parts})


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
SPLITS = [
    {"type": "Split", "pattern": {"Regex": r"\s?[a-z]+|\s+(?!\S)"}, "behavior": "MergedWithNext"},
    {"type": "Punctuation", "behavior": "Contiguous"},
    {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True},
]
BERT = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": bpe,
    "llama3": lambda: bpe(pattern="llama3", ignore_merges=True),
    "qwen2": lambda: bpe(pattern="qwen2", normalizer="NFC"),
    "roberta": lambda: bpe(prefix_space=True),
    "smollm": lambda: bpe(pattern="smollm"),
    "sentencepiece": sentencepiece,
    "unigram": unigram,
    "wordpiece": lambda: WordPieceTokenizer.train(TEXT, 150, ("[UNK]", *SPECIALS), min_frequency=1),
    "character": lambda: CharacterTokenizer.train(TEXT + "".join(UNITS), ("<|unk|>", *SPECIALS)),
    "chain, words": lambda: chain({"type": "Whitespace"}, BERT | {"lowercase": True}),
    "chain, spaces": lambda: chain(METASPACE, {"type": "NFKC"}, fuse_unk=True),
    "chain, bytes": lambda: chain({"type": "Sequence", "pretokenizers": SPLITS}),
}


def seconds(do: Callable[[], object]) -> float:
    """CPU time without garbage collection, whose time grows with all that other tests have left in memory."""
    gc.disable()
    try:
        started = time.process_time()
        do()
        return time.process_time() - started
    finally:
        gc.enable()


def grows_as_the_text(quick: Callable[[], object], slow: Callable[[], object]) -> bool:
    """True if `slow`, on a text that is 16 times as long, takes little more than 16 times as long as `quick`.

    Other processes share the caches and the cores, and only ever add to a time. So the two run in turn, and the
    smallest time of each counts, until they agree or `TRIES` runs have shown that they do not.
    """
    shortest, longest = math.inf, math.inf
    for _ in range(TRIES):
        shortest, longest = min(shortest, seconds(quick)), min(longest, seconds(slow))
        if longest < 40 * shortest + FLOOR:
            return True
    return False


def test_work_that_grows_as_the_square_of_the_text_is_seen():
    def steps(n: int) -> int:
        return sum(1 for _ in range(n) for _ in range(n))

    assert grows_as_the_text(partial(steps, 100), partial(steps, 400))  # 16 times the work
    assert not grows_as_the_text(partial(steps, 120), partial(steps, 120 * TIMES))


@pytest.mark.parametrize("name", MAKERS)
def test_encoding_and_decoding_take_time_as_the_text_is_long(name):
    tokenizer = MAKERS[name]()
    for unit in UNITS:
        short, long = (f"x{unit * n}y" for n in (SHORT, SHORT * TIMES))
        for allowed in ("none", "all"):
            encode = partial(tokenizer.encode, allowed_special=allowed)
            assert grows_as_the_text(partial(encode, short), partial(encode, long)), (unit, allowed)
            few, many = encode(short), encode(long)
            assert grows_as_the_text(partial(tokenizer.decode, few), partial(tokenizer.decode, many)), (unit, allowed)


@pytest.mark.parametrize("unit", [" ", "a", "<", "\n"])
def test_training_takes_time_as_the_text_is_long(unit):
    def train(n: int) -> None:
        text = f"the cat {unit * n} sat"
        BPETokenizer.train(text, 262, ("<s>",))
        CharacterTokenizer.train(text, ("<s>",))
        UnigramTokenizer.train(text, 30, ("<s>",))
        WordPieceTokenizer.train(text, 60, min_frequency=1)

    assert grows_as_the_text(partial(train, SHORT), partial(train, SHORT * TIMES))


def test_two_hundred_thousand_of_one_letter_are_one_pretoken():
    tokenizer = BPETokenizer(
        {**{bytes([byte]): byte for byte in range(256)}, b"aa": 256, b"aaaa": 257}, [(b"a", b"a"), (b"aa", b"aa")]
    )
    assert tokenizer.encode("a" * 200_003) == [257] * 50_000 + [256, 97]
