"""The character tokenizer: one token per character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.errors import InputError
from minillm.tokenizers import CharacterTokenizer


def test_ids_are_the_sorted_characters_then_the_special_tokens():
    tokenizer = CharacterTokenizer.train("hello wörld 猫", ("<|endoftext|>", "<|pad|>"))
    assert list(tokenizer.vocab) == [" ", "d", "e", "h", "l", "o", "r", "w", "ö", "猫"]
    assert list(tokenizer.vocab.values()) == list(range(10))
    assert tokenizer.special_tokens == {"<|endoftext|>": 10, "<|pad|>": 11}
    assert tokenizer.vocab_size == 12
    assert tokenizer.encode("owl<|pad|>", "all") == [5, 7, 4, 11]


@given(text=st.text(min_size=1))
def test_decode_undoes_encode(text):
    tokenizer = CharacterTokenizer.train(text)
    assert len(tokenizer.encode(text)) == len(text)
    assert list(tokenizer.encode_iterable(text)) == tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert sorted(set(text)) == [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]


def test_shakespeare_has_65_characters(shared_data):
    tokenizer = CharacterTokenizer.train(shared_data / "tinyshakespeare.txt")
    assert tokenizer.vocab_size == 65
    assert tokenizer.encode("hii there") == [46, 47, 47, 1, 58, 46, 43, 56, 43]  # as nanoGPT's meta.pkl has it


def test_special_tokens_are_no_characters():
    tokenizer = CharacterTokenizer.train("ab<|endoftext|>ba", ("<|endoftext|>",))
    assert list(tokenizer.vocab) == ["a", "b"]
    assert tokenizer.encode("a<|endoftext|>b", {"<|endoftext|>"}) == [0, 2, 1]


def test_an_unknown_character_is_named():
    tokenizer = CharacterTokenizer.train("abc")
    message = r"CharacterTokenizer.encode: character 'é' \(U\+00E9\) is not among the 3 characters of this tokenizer"
    with pytest.raises(InputError, match=message):
        tokenizer.encode("abé")
    with pytest.raises(InputError, match=r"character '<' \(U\+003C\)"):
        tokenizer.encode("ab<|endoftext|>")
    with pytest.raises(InputError, match=r"character '\\n' \(U\+000A\)"):
        list(tokenizer.encode_iterable(["ab", "\n"]))


def test_an_unknown_character_is_the_unknown_token():
    tokenizer = CharacterTokenizer.train("abc", ("<|unk|>",))
    assert tokenizer.encode("abéc猫") == [0, 1, 3, 2, 3]
    assert tokenizer.unk_id == 3
    assert tokenizer.decode([0, 3]) == "a<|unk|>"


def test_surrogates_are_joined_or_replaced():
    tokenizer = CharacterTokenizer.train(["\ud83d", "\ude42", "\ud83d\ude42"])
    assert list(tokenizer.vocab) == ["\ufffd", "🙂"]
    assert list(tokenizer.encode_iterable(["\ud83d", "\ude42\ude42"])) == [1, 0]


def test_refuses():
    with pytest.raises(InputError, match=r"CharacterTokenizer.train: there is no text to learn from"):
        CharacterTokenizer.train("")
    with pytest.raises(
        InputError, match=r"CharacterTokenizer.train: special_tokens is \('a', 'a'\); give each token once"
    ):
        CharacterTokenizer.train("abc", ("a", "a"))
    with pytest.raises(InputError, match="CharacterTokenizer: vocab has 'ab'; give single characters"):
        CharacterTokenizer({"ab": 0})
