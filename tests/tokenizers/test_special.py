"""Special tokens in text: found as a slow search finds them, at any cut, and as quickly where there are thousands."""

from __future__ import annotations

import random
import time

import pytest

from minillm.errors import InputError
from minillm.tokenizers import BPETokenizer, CharacterTokenizer, SentencePieceBPE, UnigramTokenizer, WordPieceTokenizer
from minillm.tokenizers.special import WHITE, WORD, Found, SpecialTokens

TOKENS = ["<a>", "<a><a>", "<b", "<b>", "a", "ab", "  ", "\n", "<mask>", "wo rd"]
PARTS = ["<a>", "<", "a", "b>", " ", "  ", "\n", "\u2003", "<mask>", "b", "wo", " rd", "é", "\x1c", "<b"]
BYTES = {bytes([byte]): byte for byte in range(256)}


def found_slowly(text: str, strips: dict[str, str], whole: set[str]) -> list[Found]:
    """By the rules: at every place the longest token, then its flags; a search goes on behind the token itself."""
    found, place, taken = [], 0, 0
    while place < len(text):
        here = [token for token in TOKENS if text.startswith(token, place)]
        if not here:
            place += 1
            continue
        token = max(here, key=len)
        start, end = place, place + len(token)
        place = end
        beside = (text[start - 1 : start] if start else "", text[end : end + 1])
        if token in whole and any(character and WORD.match(character) for character in beside):
            continue
        if strips.get(token) in ("left", "both"):
            while start > taken and text[start - 1] in WHITE:
                start -= 1
        if strips.get(token) in ("right", "both"):
            while end < len(text) and text[end] in WHITE:
                end += 1
        if strips.get(token) in ("left", "both"):
            start = max(start, taken)
        if start < end:
            found.append(Found(start, end, token))
        taken = end
    return found


def test_tokens_are_found_as_a_slow_search_finds_them():
    draw = random.Random(1)
    for _ in range(3000):
        text = "".join(draw.choices(PARTS, k=draw.randint(0, 9)))
        strips = {token: draw.choice(["left", "right", "both"]) for token in draw.sample(TOKENS, 3)}
        whole = {*draw.sample(TOKENS, draw.randint(0, 3))}
        finder = SpecialTokens(TOKENS, strips, whole)
        expected = found_slowly(text, strips, whole)
        assert finder.cut(text) == (expected, len(text)), (text, strips, whole)
        # What is settled stays, whatever follows.
        cut = draw.randint(0, len(text))
        settled, end = finder.cut(text[:cut], more=True)
        assert settled == expected[: len(settled)], (text, cut, strips, whole)
        rest = expected[len(settled) :]
        later, _ = finder.cut(text[end:], text[end - 1 : end])
        assert [Found(start + end, stop + end, token) for start, stop, token in later] == rest, (
            text,
            cut,
            strips,
            whole,
        )


def test_no_tokens_and_tokens_of_one_character():
    assert SpecialTokens([]).cut("a b") == ([], 3)
    assert SpecialTokens(["a"]).cut("aba")[0] == [Found(0, 1, "a"), Found(2, 3, "a")]
    assert SpecialTokens(["]", "^x", "-\\"]).cut("]^x-\\")[0] == [
        Found(0, 1, "]"),
        Found(1, 3, "^x"),
        Found(3, 5, "-\\"),
    ]


@pytest.mark.parametrize("block", [1, 2, 7])
def test_white_space_is_taken_at_every_cut(monkeypatch, block):
    from minillm.tokenizers import base

    monkeypatch.setattr(base, "BLOCK", block)
    strips = {"<m>": "left", "<r>": "right", "<b>": "both"}
    tokenizer = BPETokenizer(BYTES, [], {"<m>": 256, "<r>": 257, "<b>": 258}, strips=strips)
    draw = random.Random(block)
    for _ in range(300):
        text = "".join(draw.choices(["<m>", "<r>", "<b>", " ", "\t", "x", "<", "m>"], k=draw.randint(0, 12)))
        monkeypatch.setattr(base, "BLOCK", 1 << 20)
        whole = tokenizer.encode(text, "all")
        monkeypatch.setattr(base, "BLOCK", block)
        assert list(tokenizer.encode_iterable(text, "all")) == whole
        assert tokenizer.encode(text, "all") == whole
    assert tokenizer.encode("x <m> y <r> z <b> ", "all") == [120, 256, *b" y ", 257, *b"z", 258]


def test_strips_that_are_none_are_refused():
    with pytest.raises(InputError, match="BPETokenizer: strips has '<m>': 'up'; give special tokens with left, right"):
        BPETokenizer(BYTES, [], {"<m>": 256}, strips={"<m>": "up"})
    with pytest.raises(InputError, match="strips has '<n>'"):
        BPETokenizer(BYTES, [], {"<m>": 256}, strips={"<n>": "left"})


def kinds(specials: list[str]) -> dict[str, object]:
    """A tokenizer of each kind with some special tokens."""
    from minillm.tokenizers import ChainTokenizer

    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]

    def ids(start: int) -> dict[str, int]:
        return {token: i for i, token in enumerate(specials, start)}

    words = {"[UNK]": 0, "a": 1}
    added = [{"content": token, "id": i, "special": True} for token, i in ids(2).items()]
    content = {"model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"}, "added_tokens": added}
    return {
        "bpe": BPETokenizer(BYTES, [], ids(256)),
        "character": CharacterTokenizer({"a": 0, "b": 1}, ids(2)),
        "sentencepiece": SentencePieceBPE({piece: i for i, piece in enumerate([*bytes_, "▁", "a"])}, [], ids(258)),
        "unigram": UnigramTokenizer([("<unk>", 0.0), ("▁", -1.0), ("a", -1.0)], 0, ids(3)),
        "wordpiece": WordPieceTokenizer({"a": 0}, ids(1)),
        "chain": ChainTokenizer.from_hugging_face({**content, "pre_tokenizer": {"type": "Whitespace"}}),
    }


def test_a_call_takes_no_longer_with_ten_thousand_special_tokens():
    few, many = kinds(["<1>"]), kinds([f"<{i}>" for i in range(10_000)])

    def seconds(tokenizer, specials) -> float:
        best = 1.0
        for _ in range(5):
            started = time.process_time()
            for _ in range(100):
                tokenizer.encode("a", specials)
            best = min(best, time.process_time() - started)
        return best

    for name, tokenizer in many.items():
        for specials in ("none", "all"):
            few[name].encode("a", specials), tokenizer.encode("a", specials)  # what is made once is made
            assert seconds(tokenizer, specials) < 5 * seconds(few[name], specials) + 0.01, (name, specials)
        ids = tokenizer.encode("a<77><9999>a", "all")
        assert tokenizer.special_tokens["<77>"] in ids
        assert tokenizer.special_tokens["<9999>"] in ids
