"""Byte-pair encoding against its naive form (bpe_naive.py), on texts that hypothesis draws."""

from __future__ import annotations

import doctest
import itertools
import random
import re
import tracemalloc
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minillm.errors import DtypeError, InputError
from minillm.tokenizers import BPETokenizer, base, bpe, bpe_naive, vocab_files

# As OpenAI published it; ours is a shorter spelling.
GPT2_PATTERN = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

# Alphabets with few characters, so that pairs repeat, tie and overlap; and any text at all.
few = st.text(alphabet="ab ", max_size=60)
awkward = st.text(alphabet="aé'lrest 1!\n\t\u3000\x1c🙂", max_size=60)
anything = st.one_of(few, awkward, st.text(max_size=40))

AWKWARD = [
    "",
    "\0",
    "a\0b\0\0",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🙂🙂🙂",
    "שלום עולם! مرحبا بالعالم",
    "你好世界。今天天气很好。",
    "e\u0301\u0301 \u0301 a\u0308\u0332",
    "  two   \n\n \t\r\n  x \u3000\u2003y\u00a0 ",
    "I'll we've don't 'tis ''s '\u0301 'LL",
    "\ufeffmark",
    "x²½٣Ⅷ 12,345.67",
    "\uffff\U0010ffff\U0001d7ff",
]


def words_of(text: str) -> list[bytes]:
    return [word.encode() for word in GPT2_PATTERN.findall(text)]


def train_slowly(text: str, how_many: int, ties: str) -> list[tuple[bytes, bytes]]:
    return list(itertools.islice(bpe_naive.learn_merges(Counter(words_of(text)), ties), how_many))


def encode_slowly(text: str, tokenizer: BPETokenizer, allowed: set[str] = frozenset()) -> list[int]:
    """Special tokens first, the longest of several; then every word by the naive form."""
    ids: list[int] = []
    longest_first = "|".join(map(re.escape, sorted(allowed, key=len, reverse=True)))
    pieces = re.split(f"({longest_first})", text) if allowed else [text]
    for piece in pieces:
        if piece in allowed:
            ids.append(tokenizer.special_tokens[piece])
            continue
        for word in words_of(piece):
            ids += [tokenizer.vocab[token] for token in bpe_naive.encode(word, tokenizer.merges)]
    return ids


@pytest.fixture(scope="module")
def small() -> BPETokenizer:
    """A tokenizer with some merges of every kind, and special tokens that begin alike."""
    text = "the cat's whiskers; we'll see the sea, the seal  \n\n  1234 1212 éé🙂🙂 'aaaa' <|a b|> aaaaaaa " * 3
    return BPETokenizer.train(text, 256 + 60 + 4, ("<|endoftext|>", "<|a|>", "<|a|>bc", "ll"))


# Training


def test_the_examples_of_the_naive_form():
    examples = doctest.testmod(bpe_naive)
    assert examples.attempted >= 7
    assert not examples.failed


def test_a_pair_of_the_naive_form_counts_as_often_as_its_word():
    assert list(bpe_naive.learn_merges({b"ab": 2, b"cd": 3, b"abc": 2})) == [(b"a", b"b"), (b"c", b"d"), (b"ab", b"c")]


@pytest.mark.parametrize("ties", ["greater", "first"])
@settings(deadline=None)
@given(text=anything.filter(bool), how_many=st.integers(0, 40))
@example(text="aaaa aaa aaaaa", how_many=9)
@example(text="abab baba abba", how_many=40)
@example(text="ab" * 20 + "ba" * 7, how_many=40)
def test_train_equals_the_naive_form(ties, text, how_many):
    got = BPETokenizer.train(text, 256 + how_many, special_tokens=(), ties=ties)
    assert got.merges == train_slowly(text, how_many, ties)
    assert got.vocab_size == 256 + len(got.merges)


@pytest.mark.parametrize("ties", ["greater", "first"])
def test_train_equals_the_naive_form_on_real_text(shared_data, ties):
    text = (shared_data / "tinyshakespeare.txt").read_text()[:12_000]
    assert BPETokenizer.train(text, 256 + 150, (), ties).merges == train_slowly(text, 150, ties)


@settings(deadline=None)
@given(text=few.filter(bool))
def test_no_token_is_learnt_twice(text):
    merges = BPETokenizer.train(text, 400, ()).merges
    assert len({left + right for left, right in merges}) == len(merges)


def test_ties():
    # (b, c) and (x, y) both occur twice; (b, c) comes first, (x, y) is greater. Then the other one.
    text = "bc xy bc xy"
    assert BPETokenizer.train(text, 257, (), "greater").merges[0] == (b"x", b"y")
    assert BPETokenizer.train(text, 257, (), "first").merges[0] == (b"b", b"c")
    # Compared byte by byte: 0xc3, the first of é, is greater than any ASCII, and "ab" than its own beginning "a".
    assert BPETokenizer.train("zz.é", 257, (), "greater").merges[0] == (b"\xc3", b"\xa9")
    assert BPETokenizer.train("ab.ab.abd.ae", 258, (), "greater").merges == [(b"a", b"b"), (b"ab", b"d")]


def test_the_example_in_the_module_docstring():
    assert BPETokenizer.train("low lower lowest", 258, ()).merges == [(b"o", b"w"), (b"l", b"ow")]


def test_ids_are_bytes_then_merges_then_special_tokens():
    tokenizer = BPETokenizer.train("aaab", 260, ("<|endoftext|>", "<|pad|>"))
    assert tokenizer.merges == [(b"a", b"a"), (b"aa", b"a")]
    assert [tokenizer.vocab[bytes([byte])] for byte in range(256)] == list(range(256))
    assert [tokenizer.vocab[left + right] for left, right in tokenizer.merges] == [256, 257]
    assert tokenizer.special_tokens == {"<|endoftext|>": 258, "<|pad|>": 259}
    assert (tokenizer.eot_id, tokenizer.pad_id, tokenizer.unk_id) == (258, 259, None)
    assert tokenizer.vocab_size == 260


def test_a_text_that_runs_out_of_pairs_gives_a_smaller_vocabulary():
    tokenizer = BPETokenizer.train("abc", 1000)
    assert tokenizer.vocab_size == 256 + 2 + 1
    assert tokenizer.encode("abc<|endoftext|>", "all") == [257, 258]


def test_train_cuts_at_special_tokens():
    tokenizer = BPETokenizer.train("ab<|x|>cd<|x|>ab<|x|>", 300, ("<|x|>",))
    assert {left + right for left, right in tokenizer.merges} == {b"ab", b"cd"}


def test_each_item_is_a_text_of_its_own(tmp_path):
    (tmp_path / "1").write_text("ab")
    (tmp_path / "2").write_text("cd")
    for texts in ([tmp_path / "1", tmp_path / "2"], ["ab", "cd"], iter(["ab", tmp_path / "2"])):
        assert {left + right for left, right in BPETokenizer.train(texts, 300).merges} == {b"ab", b"cd"}


def test_train_on_a_file_equals_train_on_its_text(tmp_path, small):
    text = "one two\r\nthree\r  <|endoftext|>four's\n\n éé🙂 don't " * 50
    path = tmp_path / "text"
    path.write_bytes(text.encode())
    expected = BPETokenizer.train(text, 330)
    for block in (1, 7, 64):  # where words, special tokens and characters straddle the blocks
        with patch.object(base, "BLOCK", block):
            assert BPETokenizer.train(path, 330).fingerprint() == expected.fingerprint()


def test_train_on_one_endless_word():
    merges = BPETokenizer.train("a" * 2**15, 256 + 15, ()).merges
    assert [len(left + right) for left, right in merges] == [2**i for i in range(1, 16)]


def test_train_shows_progress(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    assert BPETokenizer.train("abab", 257, (), progress=True).merges == [(b"a", b"b")]
    assert "learning merges" in capsys.readouterr().err
    BPETokenizer.train("abab", 257, ())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("text", 256), r"BPETokenizer.train: vocab_size is 256, expected at least 257 \(256 bytes and 1 special"),
        (("text", 257, ("a", "b")), "vocab_size is 257, expected at least 258"),
        (("text", 300, ("a", "b", "a")), r"special_tokens is \('a', 'b', 'a'\); give each token once"),
        (("text", 300, ("",)), "'' cannot be a special token; give text that is not empty"),
        (("text", 300, ("\ud800",)), r"'\\ud800' cannot be a special token"),
        (("text", 300, "<|x|>"), r"special_tokens is '<\|x\|>', expected a collection; write \('<\|x\|>',\)"),
        (("text", 300, (), "frist"), "ties is 'frist'; did you mean 'first'?"),
        (("", 300), "BPETokenizer.train: there is no text to learn from"),
        (([], 300), "there is no text to learn from"),
        (("<|endoftext|>", 300), "there is no text to learn from"),
        ((Path("no/such/file"), 300), "cannot read no/such/file .No such file or directory.; give the path of a text"),
        ((Path(), 300), "cannot read . .Is a directory."),
    ],
)
def test_train_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        BPETokenizer.train(*arguments)


@pytest.mark.parametrize("text", [b"bytes", 7, None, [["a"], 7]])
def test_train_refuses_what_is_no_text(text):
    with pytest.raises(DtypeError, match=r"BPETokenizer.train: got .*, expected text; give a str, a pathlib.Path"):
        BPETokenizer.train(text, 300)


def test_train_refuses_a_file_that_is_no_text(tmp_path):
    (tmp_path / "image").write_bytes(b"abc\xff\xd8")
    with pytest.raises(InputError, match=r"image is not UTF-8 text \(invalid start byte 0xff\); give a text file"):
        BPETokenizer.train(tmp_path / "image", 300)


# Pretokens


def settled_pretokens(text: str, more: bool) -> tuple[list[str], int]:
    stretches, end = bpe.settled_pretokens(text, more)
    return [*itertools.chain.from_iterable(stretches)], end


def test_the_two_patterns_agree_on_ascii():
    for character in map(chr, range(128)):
        for text in (
            character,
            f"a{character}b",
            f" {character} 1{character}{character}\n",
            f"'{character}{character}",
        ):
            assert bpe.PRETOKEN_ASCII.findall(text) == GPT2_PATTERN.findall(text)
    for characters in itertools.product("al'1! \n\x1c", repeat=5):
        text = "".join(characters)
        assert bpe.PRETOKEN_ASCII.findall(text) == bpe.PRETOKEN.findall(text) == GPT2_PATTERN.findall(text)


@settings(max_examples=400, deadline=None)
@given(
    text=st.lists(
        st.sampled_from(
            ["a", "é", "\u3000", " ", "\n", "\x1c", "\x85", "'", "l", "1", "²", "!", "…", "two words " * 4, "a" * 40]
        ),
        max_size=40,
    ).map("".join)
    | st.text(max_size=200)
)
@example(text="é")
@example(text="a" * 32 + "é" + "b" * 32 + "é")
@example(text=" \u3000 é  a\u3000  b")
@example(text="two  words'll\n\n\n " * 2500)  # more than one stretch of ASCII
def test_text_with_stretches_of_ascii_has_the_pretokens_of_the_pattern(text):
    assert settled_pretokens(text, more=False) == (GPT2_PATTERN.findall(text), len(text))


@settings(max_examples=300, deadline=None)
@given(text=awkward, rest=awkward)
def test_settled_pretokens_stay_whatever_follows(text, rest):
    pretokens, end = settled_pretokens(text, more=True)
    assert "".join(pretokens) == text[:end]
    assert pretokens == GPT2_PATTERN.findall(text + rest)[: len(pretokens)]
    assert end == len(text) or len(GPT2_PATTERN.findall(text)) - len(pretokens) <= 2  # and no more wait than must


@pytest.mark.parametrize(
    "text", ["x'lla", "x've", "x're", "x'rx", "'s 'll", "a  b", "a \n\n b", "a\u3000 1", "!'ll", " 'll"]
)
def test_a_pretoken_is_settled_only_when_nothing_can_change_it(text):
    for cut in range(len(text)):
        pretokens, end = settled_pretokens(text[:cut], more=True)
        assert pretokens + settled_pretokens(text[end:], more=False)[0] == GPT2_PATTERN.findall(text)


# Encoding


@settings(deadline=None)
@given(text=anything, training=anything.filter(bool))
def test_encode_equals_the_naive_form(text, training):
    tokenizer = BPETokenizer.train(training + text, 300, ())
    assert tokenizer.encode(text) == encode_slowly(text, tokenizer)


@st.composite
def any_merges(draw) -> list[tuple[bytes, bytes]]:
    """Merges that no training would give: in any order, with tokens made in several ways."""
    tokens = [b"a", b"b", b"c"]
    merges = []
    for _ in range(draw(st.integers(0, 12))):
        pair = draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))
        if pair not in merges:
            merges.append(pair)
            tokens.append(pair[0] + pair[1])
    return draw(st.permutations(merges))


@settings(max_examples=300, deadline=None)
@given(merges=any_merges(), words=st.lists(st.text(alphabet="abc", min_size=1, max_size=40), min_size=1, max_size=20))
def test_both_ways_to_merge_words_take_the_lowest_rank_first(merges, words):
    tokens = dict.fromkeys([*(bytes([byte]) for byte in range(256)), *(left + right for left, right in merges)])
    ids = bpe.PretokenIds({token: i for i, token in enumerate(tokens)}, merges)
    expected = []
    for text in words:
        word = [bytes([byte]) for byte in text.encode()]
        while ranks := [merges.index(pair) for pair in itertools.pairwise(word) if pair in merges]:
            pair = merges[min(ranks)]
            i = list(itertools.pairwise(word)).index(pair)
            word[i : i + 2] = [pair[0] + pair[1]]
        expected.append(tuple(list(tokens).index(token) for token in word))
    assert [ids.merge(word.encode()) for word in words] == expected
    by_length = sorted(zip(words, expected, strict=True), key=lambda item: len(item[0]))
    assert ids.table.merge([word.encode() for word, _ in by_length]) == [want for _, want in by_length]


@settings(deadline=None)
@given(pairs=st.sets(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=300), seed=st.integers(0, 99))
@example(pairs={(2**31 - 1, 2**31 - 1), (0, 2**31 - 1), (2**31 - 1, 0)}, seed=0)
def test_ranks_of_many_pairs_are_those_of_the_dict(pairs, seed):
    """Also of pairs that need one slot (some hundred of 300 do), and of those that were never merged."""
    rank_of = {pair: rank for rank, pair in enumerate(random.Random(seed).sample(sorted(pairs), len(pairs)))}
    table = bpe.MergeTable(range(256), rank_of, [0] * len(pairs))
    left, right = np.array([*itertools.product(range(41), repeat=2), *rank_of]).T
    expected = [rank_of.get(pair, len(pairs)) for pair in zip(left.tolist(), right.tolist(), strict=True)]
    assert table.ranks(left, right).tolist() == expected


@settings(deadline=None)
@given(texts=st.lists(st.text(max_size=300) | awkward, max_size=4), few=st.sampled_from([1, 3, 16]))
def test_pretokens_merged_together_have_the_ids_of_the_slow_way(small, texts, few):
    fresh = BPETokenizer(small.vocab, small.merges, small.special_tokens)
    with patch.object(bpe, "FEW", few):
        for text in texts:  # the later ones meet what the first ones left
            assert fresh.encode(text) == encode_slowly(text, small)


class CountingDict(dict):
    asked = 0

    def get(self, *arguments):
        self.asked += 1
        return super().get(*arguments)


def test_long_words_are_not_quadratic(monkeypatch):
    tokenizer = BPETokenizer.train("a" * 64 + " " + "abcabdacd" * 30, 256 + 40, ())
    assert (b"a" * 32, b"a" * 32) in tokenizer.merges
    merge_together = bpe.MergeTable.merge

    def merge_short_words_together(self, words):
        assert max(map(len, words)) <= bpe.LONG_WORD
        return merge_together(self, words)

    monkeypatch.setattr(bpe.MergeTable, "merge", merge_short_words_together)
    ranks = tokenizer._ids_of_pretoken.ranks = CountingDict(tokenizer._ids_of_pretoken.ranks)
    letters = "".join(random.Random(1).choices("abcd", k=100_000))
    for word in ("a" * 100_000, letters, "ab" * 50_000):
        ranks.asked = 0
        assert tokenizer.decode(tokenizer.encode(word)) == word
        assert 0 < ranks.asked < 6 * 100_000  # a pair is looked up when it comes to be, and when its turn comes
    assert tokenizer.encode("a" * 100_000) == [tokenizer.vocab[b"a" * 64]] * (100_000 // 64) + [
        tokenizer.vocab[b"a" * 32]
    ]
    assert tokenizer.encode(letters[:3000]) == encode_slowly(letters[:3000], tokenizer)
    assert list(tokenizer.encode_iterable(letters)) == tokenizer.encode(letters)  # a character at a time


def test_an_endless_word_is_not_scanned_for_every_block(small):
    """Twice as much is read before a word that did not end is looked at again."""
    seen = []

    def settled(text: str, more: bool) -> tuple[list[str], int]:
        seen.append(len(text))
        return settled_pretokens(text, more)

    chunks = ("a" for _ in range(50_000))
    with patch.object(base, "BLOCK", 16):
        pretokens = [*itertools.chain.from_iterable(base.stream("test", chunks, settled, (), lambda token: []))]
    assert pretokens == ["a" * 50_000]
    assert sum(seen) < 4 * 50_000


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_decode_undoes_encode(small, text):
    assert small.decode(small.encode(text)) == text
    assert small.decode(small.encode(text, "all")) == text


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_texts(small, text):
    assert small.encode(text) == encode_slowly(text, small)
    assert small.decode(small.encode(text), errors="strict") == text


@pytest.mark.parametrize(
    ("text", "as_if"),
    [
        ("\ud800", "\ufffd"),
        ("a\udc00b", "a\ufffdb"),
        ("\ud83d\ude42", "🙂"),
        ("\ude42\ud83d", "\ufffd\ufffd"),
        ("\ud83d\ud83d\ude42\ude42", "\ufffd🙂\ufffd"),
        ("\ufeff\ud800", "\ufeff\ufffd"),
        ("x\ud835\udc00y", "x\U0001d400y"),  # a letter, once joined
    ],
)
def test_surrogates(small, text, as_if):
    assert small.encode(text) == small.encode(as_if)
    assert list(small.encode_iterable(text)) == small.encode(as_if)
    assert BPETokenizer.train([text] * 3, 300).fingerprint() == BPETokenizer.train([as_if] * 3, 300).fingerprint()


stretches = st.lists(
    st.sampled_from(["<|a|>", "<|a|>b", "<|a|>bc", "<|endoftext|>", "<|a", "|>", "<", "\ud83d", "\ude42"])
    | st.sampled_from(["ll", "l", "'", "r", "e", " ", "  ", "\n", "a", "the", "1", "é", "🙂"]),
    max_size=25,
)


@settings(max_examples=400, deadline=None)
@given(
    pieces=stretches,
    cuts=st.lists(st.integers(0, 60), max_size=8),
    block=st.integers(1, 12),
    allowed=st.sets(st.sampled_from(["<|endoftext|>", "<|a|>", "<|a|>bc", "ll"])),
)
@example(pieces=["<|a|>", "b"], cuts=[5], block=5, allowed={"<|a|>", "<|a|>bc"})
@example(pieces=["\ud83d", "\ude42"], cuts=[1], block=1, allowed=set())
def test_chunks_may_be_cut_anywhere(small, pieces, cuts, block, allowed):
    text = "".join(pieces)
    ends = [0, *sorted(cuts), len(text)]
    chunks = [text[start:end] for start, end in itertools.pairwise(ends)]
    joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    expected = encode_slowly(joined, small, allowed)
    assert small.encode(text, allowed) == expected
    with patch.object(base, "BLOCK", block):
        assert list(small.encode_iterable(chunks, allowed)) == expected
        assert small.encode(text, allowed) == expected


def test_encode_iterable_needs_constant_memory(small):
    def peak(how_many: int) -> int:
        chunks = ("the sea, the seal <|endoftext|> don't é\n" * 100 for _ in range(how_many))
        tracemalloc.start()
        count = sum(1 for _ in small.encode_iterable(chunks, "all"))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert count > how_many * 1000
        return most

    with patch.object(base, "BLOCK", 1 << 16):
        peak(50)  # fills the cache
        few, many = peak(50), peak(250)  # 0.2 and 1 million characters
        assert many < 1.1 * few + 100_000
        assert many < 100 * base.BLOCK


def test_encode_iterable_reads_no_further_than_it_must(small):
    read = []

    def chunks():
        for i in range(100):
            read.append(i)
            yield "word " * base.BLOCK

    ids = small.encode_iterable(chunks())
    assert read == []
    next(ids)
    assert len(read) <= 2


def test_the_cache_is_bounded(small):
    fresh = BPETokenizer(small.vocab, small.merges, small.special_tokens)
    text = " ".join(f"word{i}x the {'a' * i}" for i in range(300))
    with patch.object(bpe, "CACHED_PRETOKENS", 16), patch.object(base, "BLOCK", 100):
        assert fresh.encode(text) == encode_slowly(text, small)
        assert 0 < len(fresh._ids_of_pretoken) <= 16 + 100  # what was held before a block, and what the block brought
    assert all(len(pretoken) <= bpe.LONG_WORD for pretoken in fresh._ids_of_pretoken)


def test_what_is_cached_is_not_merged_again(small):
    fresh = BPETokenizer(small.vocab, small.merges, small.special_tokens)
    text = " ".join(f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(200))
    ids = fresh.encode(text)
    with (
        patch.object(bpe.PretokenIds, "merge", side_effect=AssertionError),
        patch.object(bpe.MergeTable, "merge", side_effect=AssertionError),
    ):
        assert fresh.encode(text) == ids


# Special tokens


def test_special_tokens_allowed_and_not(small):
    text = "a<|endoftext|>b"
    as_text = small.encode(text)
    assert small.eot_id not in as_text
    assert small.encode(text, "none") == small.encode(text, ()) == small.encode(text, ["<|a|>"]) == as_text
    ids = [*small.encode("a"), small.eot_id, *small.encode("b")]
    assert small.encode(text, "all") == small.encode(text, {"<|endoftext|>"}) == ids
    assert small.decode(ids) == small.decode(as_text) == text


def test_of_several_special_tokens_the_longest_is_meant(small):
    assert small.encode("<|a|>bc<|a|>b", "all") == [
        small.special_tokens["<|a|>bc"],
        small.special_tokens["<|a|>"],
        *small.encode("b"),
    ]


def test_white_space_before_a_special_token_stays_together(small):
    # Before a word, the last space would go with the word; before a special token there is no word.
    assert small.encode("a  <|a|>", "all")[:-1] == small.encode("a  ")


def test_special_tokens_refused(small):
    message = (
        r"BPETokenizer.encode: the text holds the special token '<\|a\|>', which is refused; name it in allowed_special"
    )
    with pytest.raises(InputError, match=message):
        small.encode("x<|a|>", disallowed_special="all")
    with pytest.raises(InputError, match=message):
        small.encode("<|endoftext|><|a|>", allowed_special={"<|endoftext|>"}, disallowed_special="all")
    with pytest.raises(InputError, match=message):
        list(small.encode_iterable(["<|", "a|>"], disallowed_special=["<|a|>"]))
    assert small.encode("ll <|a", disallowed_special={"<|a|>"}) == small.encode("ll <|a")
    allowed = small.encode("<|a|>", allowed_special="all", disallowed_special="all")  # what is allowed is not refused
    assert allowed == [small.special_tokens["<|a|>"]]


def test_encode_iterable_yields_what_comes_before_a_refused_token(small):
    text = "the sea " * base.BLOCK
    ids = small.encode_iterable([text, "<|a|>"], disallowed_special="all")
    assert next(ids) == small.encode("the")[0]


def test_choices_that_are_none(small):
    with pytest.raises(
        InputError, match=r"allowed_special is '<\|a\|>', expected 'none', 'all' or a collection; for one"
    ):
        small.encode("x", "<|a|>")
    with pytest.raises(InputError, match=r"disallowed_special is 'All', expected 'none'"):
        small.encode_iterable(["x"], disallowed_special="All")  # at once, not at the first id
    with pytest.raises(
        InputError, match=r"has '<\|endotext\|>', which is not a special .*; did you mean '<\|endoftext\|>'\?"
    ):
        small.encode("x", {"<|endotext|>"})
    with pytest.raises(InputError, match="is not a special token of this tokenizer; it has none"):
        BPETokenizer.train("x", 256, ()).encode("x", {"<|endoftext|>"})


@pytest.mark.parametrize("text", [b"bytes", None, 3])
def test_encode_refuses_what_is_no_text(small, text):
    with pytest.raises(DtypeError, match=r"BPETokenizer.encode: got (bytes|NoneType|int), expected str; decode bytes"):
        small.encode(text)
    with pytest.raises(DtypeError, match=r"BPETokenizer.encode: got"):
        list(small.encode_iterable(["fine", text]))


# The table itself, and GPT-2's files


def test_the_constructor_refuses_half_a_table():
    byte_ids = {bytes([byte]): byte for byte in range(256)}
    with pytest.raises(
        InputError, match=r"BPETokenizer: the merge of b'a' and b'b' needs the token b'ab', which is not"
    ):
        BPETokenizer(byte_ids, [(b"a", b"b")])
    with pytest.raises(InputError, match="needs the token b'xy'"):
        BPETokenizer({**byte_ids, b"xyz": 256}, [(b"xy", b"z")])
    with pytest.raises(InputError, match="BPETokenizer: vocab has no token for byte 0xff; give all 256 bytes"):
        BPETokenizer({token: i for token, i in byte_ids.items() if i < 255}, [])
    with pytest.raises(
        InputError, match=r"token b'<\|x\|>' has id 300 where 256 is next; give the 257 tokens the ids 0 to"
    ):
        BPETokenizer(byte_ids, [], {"<|x|>": 300})
    with pytest.raises(InputError, match=r"token .* has id 0 where 1 is next"):
        BPETokenizer(byte_ids, [], {"<|x|>": 0})


@pytest.mark.parametrize("change", [lambda text: text, lambda text: text.removeprefix("#version: 0.2\n"), None])
def test_gpt2_files_round_trip(tmp_path, change):
    trained = BPETokenizer.train("### # ### ##\n## the  cat's\n éé🙂 " * 4, 320, ("<|endoftext|>", "<|pad|>", "ż żółw"))
    assert (b"#", b"#") in trained.merges  # a line that begins as the version line does
    trained.save_gpt2_files(tmp_path / "new")
    vocab, merges = tmp_path / "new" / "vocab.json", tmp_path / "new" / "merges.txt"
    assert merges.read_text(encoding="utf-8").startswith("#version: 0.2\n")
    if change:
        merges.write_text(change(merges.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
    else:
        merges.write_text(merges.read_text(encoding="utf-8"), encoding="utf-8", newline="\r\n")
    again = BPETokenizer.from_gpt2_files(vocab, merges)
    assert again.merges == trained.merges
    assert again.vocab == trained.vocab
    assert again.special_tokens == trained.special_tokens
    assert again.fingerprint() == trained.fingerprint()


def test_bytes_are_spelled_as_gpt2_does():
    assert vocab_files.spell(b" the\n\0~\x7f\xa0\xad\xff") == "ĠtheĊĀ~ġłŃÿ"
    assert vocab_files.unspell("ĠtheĊĀ~ġłŃÿ") == b" the\n\0~\x7f\xa0\xad\xff"
    assert len(set(vocab_files.CHARACTER_OF_BYTE)) == 256


def test_gpt2_files_refuse(tmp_path):
    BPETokenizer.train("abab", 258).save_gpt2_files(tmp_path)
    vocab, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"

    def refuses(message: str) -> None:
        with pytest.raises(InputError, match=message):
            BPETokenizer.from_gpt2_files(vocab, merges)

    merges.write_text("a b\na b c\n")
    refuses(r"BPETokenizer.from_gpt2_files: line 2 of .*merges.txt is not a merge \('a b c' is not two tokens with one")
    merges.write_text("a b\n\nab\n")
    refuses("line 3 of .*merges.txt is not a merge")
    merges.write_text("a 猫\n", encoding="utf-8")
    refuses("'猫' has '猫', which stands for no byte")
    merges.write_text("a c\n")
    refuses("the merge of b'a' and b'c' needs the token b'ac', which is not in vocab")
    merges.unlink()
    refuses("cannot read .*merges.txt")
    vocab.write_text("[1, 2]")
    refuses("vocab.json holds no table of tokens and ids")
    vocab.write_text("{")
    refuses("vocab.json is not JSON .*; it is damaged, or another file")
    vocab.write_bytes(b"\xff\xfe")
    refuses("vocab.json is not JSON")
    vocab.unlink()
    refuses(r"cannot read .*vocab.json \(No such file or directory\)")


def test_gpt2_files_cannot_hold_a_special_token_spelled_as_an_ordinary_one(tmp_path):
    tokenizer = BPETokenizer.train("aa bb", 258, ("Ġ",))  # a space is spelled so
    with pytest.raises(
        InputError, match=r"BPETokenizer.save_gpt2_files: special token 'Ġ' is spelled as an ordinary token"
    ):
        tokenizer.save_gpt2_files(tmp_path)
    assert list(tmp_path.iterdir()) == []
    tokenizer.save(tmp_path)
    assert BPETokenizer.load(tmp_path).special_tokens == {"Ġ": 257}
