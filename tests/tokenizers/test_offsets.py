"""The places of tokens in the original text: for every kind of tokenizer, hard texts, and those of `tokenizers`."""

from __future__ import annotations

import json
import unicodedata
from functools import cache

import pytest

from minillm.errors import DtypeError, InputError
from minillm.tokenizers import (
    BPETokenizer,
    ChainTokenizer,
    CharacterTokenizer,
    Tokenizer,
    UnigramTokenizer,
    WordPieceTokenizer,
)
from minillm.tokenizers.aligned import aligned, changed, replaced
from minillm.tokenizers.special import WHITE
from tests.tokenizers.public_kinds import CORPUS, drawn_texts, makers

NFKC_LOWER = [{"type": "NFKC"}, {"type": "Lowercase"}, {"type": "Strip"}]
REPLACES = [
    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
    {"type": "Prepend", "prepend": "> "},
    {"type": "NFD"},
    {"type": "StripAccents"},
]


@cache
def trained() -> dict[str, Tokenizer]:
    bpe = BPETokenizer.train(CORPUS, 330)
    return {
        "character": CharacterTokenizer.train("".join(CORPUS), special_tokens=("<|unk|>",)),
        "bpe": bpe,
        "bpe, NFC": BPETokenizer(bpe.vocab, bpe.merges, normalizer="NFC", prefix_space=True),
        "wordpiece": WordPieceTokenizer.train(CORPUS, 500, limit_alphabet=120),
        "wordpiece, cased": WordPieceTokenizer.train(CORPUS, 500, lowercase=False, handle_chinese_chars=False),
        "unigram": UnigramTokenizer.train(CORPUS, 300, normalizer="NFKC"),
        "unigram, bytes": UnigramTokenizer.train(CORPUS, 500, byte_fallback=True, normalizer=NFKC_LOWER),
        "unigram, replaced": UnigramTokenizer.train(CORPUS, 300, normalizer=REPLACES, prepend_scheme="never"),
    }


@pytest.mark.parametrize("name", trained())
def test_the_ids_are_those_of_encode_and_the_places_are_in_order(name) -> None:
    tokenizer = trained()[name]
    for text in [*drawn_texts(3, 150), "a\ud83d\ude00b \ud800 c", ""]:
        ids, places = tokenizer.encode_with_offsets(text)
        assert ids == tokenizer.encode(text), text
        assert len(places) == len(ids)
        assert all(0 <= start <= end <= len(text) for start, end in places)
        assert [start for start, _ in places] == sorted(start for start, _ in places)
        assert [end for _, end in places] == sorted(end for _, end in places)


@pytest.mark.parametrize("name", ["bpe", "character"])
def test_tokens_of_a_text_that_is_not_changed_cover_all_of_it(name) -> None:
    for text in [*drawn_texts(5, 60), *CORPUS]:
        _, places = trained()[name].encode_with_offsets(text)
        covered = {place for start, end in places for place in range(start, end)}
        assert covered == {*range(len(text))}


def test_what_a_token_says_stands_at_its_place() -> None:
    text = "  Ça\u0300  va\tTRÈS\xa0bien, 東京 ❤\ufe0f ﬁn E\u0301TE\u0301!"
    tokenizer = WordPieceTokenizer.train("ca va tres bien , 東 京 ❤ fin ete ! ﬁn", 120, min_frequency=1)
    _, places = tokenizer.encode_with_offsets(text)
    found = {text[start:end] for start, end in places}
    assert found >= {"TRÈS", "bien", ",", "東", "京", "❤\ufe0f", "!"}
    assert text[places[-2][0] : places[-2][1]].endswith("E\u0301")  # a mark that is dropped belongs to its letter
    unigram = trained()["unigram"]
    _, places = unigram.encode_with_offsets("x ﬁ y")
    assert {(2, 3)} <= {*places} or (1, 3) in places  # a ligature that becomes two letters has one place


def test_changes_are_traced_as_finely_as_they_allow() -> None:
    text = aligned("aÄ\u0301 e\u0301.")
    composed = changed(text, lambda part: unicodedata.normalize("NFC", part))
    assert composed.text == "aÄ\u0301 é."
    assert composed.spans == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 6), (6, 7)]
    apart = changed(composed, lambda part: unicodedata.normalize("NFD", part))
    assert apart.spans == [(0, 1), (1, 2), (1, 2), (2, 3), (3, 4), (4, 6), (4, 6), (6, 7)]
    dropped = changed(apart, lambda part: "".join(c for c in part if not unicodedata.category(c).startswith("M")))
    assert (dropped.text, dropped.spans) == ("aA e.", [(0, 1), (1, 3), (3, 4), (4, 6), (6, 7)])
    by_word = changed(aligned("ab cd"), lambda part: part[::-1] if part.isalpha() else "dc ba"[: len(part)])
    assert by_word.text in ("dc ba", "ba dc")
    assert by_word.spans[0][1] >= 2  # a change that looks at neighbours has the place of all of them
    once = replaced(aligned("a--b-c"), [(1, 3), (4, 5)], "+")
    assert (once.text, once.spans) == ("a+b+c", [(0, 1), (1, 3), (3, 4), (4, 5), (5, 6)])


def test_what_has_no_places_is_refused() -> None:
    chain = ChainTokenizer({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}})
    with pytest.raises(InputError, match=r"ChainTokenizer.encode_with_offsets: this kind of tokenizer does not keep"):
        chain.encode_with_offsets("a")
    with pytest.raises(DtypeError, match=r"BPETokenizer.encode_with_offsets: got bytes, expected str"):
        trained()["bpe"].encode_with_offsets(b"a")


# Against Hugging Face


def trimmed(text: str, place: tuple[int, int]) -> tuple[int, int]:
    """A place without white space at its start, and with the marks that follow it, which `tokenizers` may leave out."""
    start, end = place
    while start < end and text[start] in WHITE:
        start += 1
    while end < len(text) and end > start and unicodedata.category(text[end]).startswith("M"):
        end += 1
    return start, end


OURS = ("gpt2", "roberta", "llama3", "qwen2", "deepseek", "starcoder", "bloom", "llama2", "llama2 legacy")
OURS = (*OURS, "t5", "albert", "xlm-r", "bert", "bert cased")


@pytest.mark.oracle
@pytest.mark.parametrize("name", OURS)
def test_places_equal_those_of_tokenizers(name, tmp_path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    content = json.loads(makers()[name]().to_str())
    content |= {"post_processor": None, "truncation": None, "padding": None}  # some post-processors move places
    theirs = tokenizers.Tokenizer.from_str(json.dumps(content))
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    ours, compared, equal = Tokenizer.from_file(tmp_path), 0, 0
    for text in drawn_texts(11, 120):
        if any(token in text for token in ours.special_tokens):
            continue  # ordinary text here
        expected = theirs.encode(text, add_special_tokens=False)
        ids, places = ours.encode_with_offsets(text)
        assert ids == expected.ids
        pairs = list(zip(places, expected.offsets, strict=True))
        assert all(trimmed(text, one) == trimmed(text, other) for one, other in pairs), text
        compared += len(pairs)
        equal += sum(one == other for one, other in pairs)
    assert equal > 0.95 * compared > 500
