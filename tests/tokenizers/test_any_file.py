"""Files of any make: ids and text of Hugging Face's `tokenizers`, and `ChainTokenizer`, which follows what is rare."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from typing import Any

import pytest

from minillm.errors import InputError
from minillm.tokenizers import BPETokenizer, ChainTokenizer, SentencePieceBPE, Tokenizer, WordPieceTokenizer
from minillm.tokenizers.components import NotThisKind, overlap
from minillm.tokenizers.vocab_files import CHARACTER_OF_BYTE
from tests.tokenizers.public_kinds import drawn_texts, makers

NAMES = (
    *("gpt2", "gpt2 with limits", "roberta", "llama3", "qwen2", "nfkc", "deepseek", "falcon", "starcoder", "bloom"),
    *("whitespace bpe", "missing bytes", "gaps", "many tokens", "many tokens, plain", "clip", "ctrl", "prefixed bpe"),
    *("llama2", "llama2 legacy", "gemma", "metaspace bpe", "t5", "albert", "xlm-r", "nmt unigram", "bert"),
    *("bert cased", "mpnet", "electra", "words", "words, removed", "words, first"),
)
OURS = {
    **dict.fromkeys(("gpt2", "gpt2 with limits", "roberta", "llama3", "qwen2", "deepseek", "bloom"), BPETokenizer),
    **{"llama2": SentencePieceBPE, "bert": WordPieceTokenizer, "gemma": ChainTokenizer, "clip": ChainTokenizer},
}


# Against Hugging Face


@pytest.mark.oracle
@pytest.mark.parametrize("name", NAMES)
def test_files_of_every_make_have_their_ids_and_text(name, tmp_path):
    pytest.importorskip("tokenizers")
    theirs = makers()[name]()
    (tmp_path / "tokenizer.json").write_text(theirs.to_str(), encoding="utf-8")
    ours = Tokenizer.from_file(tmp_path)
    assert type(ours) is OURS.get(name, type(ours))
    ours.save(tmp_path / "ours")
    again = Tokenizer.load(tmp_path / "ours")
    assert again.fingerprint() == ours.fingerprint()
    theirs.no_truncation()
    theirs.no_padding()
    known = 0
    for text in drawn_texts(11, 120):
        try:
            ids = theirs.encode(text, add_special_tokens=False).ids
        except Exception:  # what is unknown has no id
            with pytest.raises(InputError):
                ours.encode(text, "all")
            continue
        known += 1
        assert ours.encode(text, "all") == ids, text
        assert again.encode(text, "all") == ids
        assert ours.build_inputs_with_special_tokens(ids) == theirs.encode(text).ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    assert known > 100
    draw = random.Random(7)
    for _ in range(100):
        ids = [draw.randrange(ours.vocab_size) for _ in range(draw.randint(0, 10))]
        text = theirs.decode(ids, skip_special_tokens=False)
        assert ours.decode(ids) == again.decode(ids) == text
        settled = [ours.decode_settled(ids[:cut]) for cut in range(len(ids) + 1)]
        assert all(text.startswith(part) for part in settled)
        assert all(later.startswith(part) for part, later in pairwise(settled))


def test_every_make_is_compared():
    pytest.importorskip("tokenizers")
    assert {*makers()} == {*NAMES}


# Without


def added(content: str, i: int, **flags: Any) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": i, "content": content, **plain, **flags}


def chain(model: dict[str, Any], **parts: Any) -> ChainTokenizer:
    return ChainTokenizer.from_hugging_face({"model": model, **parts})


def word_level(*words: str, **parts: Any) -> ChainTokenizer:
    vocab = {word: i for i, word in enumerate(("[UNK]", *words))}
    parts = {"pre_tokenizer": {"type": "Whitespace"}} | parts
    return chain({"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}, **parts)


def test_word_level():
    tokenizer = word_level("the", "cat", ",")
    assert tokenizer.encode("the cat,dog the") == [1, 2, 3, 0, 1]
    assert (tokenizer.unk_id, tokenizer.vocab_size) == (0, 4)
    assert tokenizer.decode([1, 2, 3]) == "the cat ,"
    with pytest.raises(
        InputError, match="the text has something that is not a token, and unk_token None is not a token either"
    ):
        chain({"type": "WordLevel", "vocab": {"a": 0}}, pre_tokenizer={"type": "Whitespace"}).encode("b")


def test_ends_of_words_and_prefixes_of_later_pieces():
    vocab = {token: i for i, token in enumerate(("a", "b", "a</w>", "b</w>", "ab</w>", "<unk>"))}
    clip = {"type": "BPE", "vocab": vocab, "merges": ["a b</w>"], "end_of_word_suffix": "</w>", "unk_token": "<unk>"}
    tokenizer = chain(clip, pre_tokenizer={"type": "WhitespaceSplit"}, decoder={"type": "BPEDecoder", "suffix": "</w>"})
    assert tokenizer.encode("ab aab xb") == [4, 0, 4, 5, 3]
    assert tokenizer.decode([4, 0, 4]) == "ab aab"
    vocab = {token: i for i, token in enumerate(("a", "##b", "ab", "##ab", "##a"))}
    later = {"type": "BPE", "vocab": vocab, "merges": [["a", "##b"]], "continuing_subword_prefix": "##"}
    assert chain(later).encode("abab") == [2, 4, 1]


def test_bytes_that_are_missing_are_unknown():
    vocab = {token: i for i, token in enumerate(("<unk>", "<0x41>", "a"))}
    model = {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>", "byte_fallback": True}
    assert chain(model).encode("aAéEa") == [2, 1, 0, 0, 2]
    assert chain({**model, "fuse_unk": True}).encode("aAéEa") == [2, 1, 0, 2]


def test_added_tokens_that_are_the_models_too():
    spelled = {character: byte for byte, character in enumerate(CHARACTER_OF_BYTE)}
    content = {
        "model": {"type": "BPE", "vocab": {**spelled, "ab": 256, "abc": 257}, "merges": ["a b", "ab c"]},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "decoder": {"type": "ByteLevel"},
        "added_tokens": [added("é", 0xE9), added("ab", 256)],
    }
    with pytest.raises(NotThisKind, match="the added token 'é' is a token that the model makes of ordinary text"):
        BPETokenizer.from_hugging_face(content)
    tokenizer = ChainTokenizer.from_hugging_face(content)
    assert tokenizer.encode("長abcé", "all") == [*"長".encode(), 256, ord("c"), 0xE9]
    assert tokenizer.encode("長abcé") == [*"長".encode(), 257, *"é".encode()]
    assert tokenizer.decode(tokenizer.encode("長abc")) == "長abc"


def test_ordinary_text_becomes_no_special_token_unasked():
    special = {"added_tokens": [added("<s>", 1, special=True)], "normalizer": {"type": "NFKC"}}
    tokenizer = word_level("<s>", pre_tokenizer={"type": "WhitespaceSplit"}, **special)
    assert tokenizer.encode("<s> \uff1cs\uff1e") == [0, 0]
    assert tokenizer.encode("<s> \uff1cs\uff1e", "all") == [1, 1]  # as their normalizer makes it
    with pytest.raises(InputError, match="holds the special token '<s>', which is refused"):
        tokenizer.encode("<s>", disallowed_special="all")


def test_flags_of_added_tokens():
    tokens = [
        added("pad", 4, single_word=True),
        added("LOUD", 5, normalized=True),
        added("<m>", 6, lstrip=True),
        added("<m><m>", 7),
        added("<r>", 8, rstrip=True),
    ]
    tokenizer = word_level("a", "pads", "loud", normalizer={"type": "Lowercase"}, added_tokens=tokens)
    assert tokenizer.encode("pad pads a pad", "all") == [4, 2, 1, 4]
    assert tokenizer.encode("Loud loudA", "all") == [5, 5, 1]
    assert tokenizer.encode("a <m>a<m><m> <r>  a", "all") == [1, 6, 1, 7, 8, 1]
    assert tokenizer.decode([5]) == "loud"


def test_ids_with_gaps_are_passed_over_in_text():
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 7}, "unk_token": "a"}
    tokenizer = chain(model, added_tokens=[added("<x>", 90)], pre_tokenizer={"type": "WhitespaceSplit"})
    assert tokenizer.encode("a b", "all") == [0, 7]
    assert tokenizer.encode("<x>", "all") == [2]  # as tokenizers counts, whatever the file says
    assert tokenizer.vocab_size == 8
    assert tokenizer.decode([0, 5, 7]) == "a b"
    with pytest.raises(InputError, match="out of range for a vocabulary of 8 tokens"):
        tokenizer.decode([8])


def test_what_goes_around_texts():
    ends = [("<s>", [1]), ("</s>", [2, 2])]
    names = {name: {"id": name, "ids": ids, "tokens": [name] * len(ids)} for name, ids in ends}
    pieces = {name: {"SpecialToken": {"id": name, "type_id": 0}} for name, _ in ends}
    pieces |= {name: {"Sequence": {"id": name, "type_id": 0}} for name in "AB"}
    template = {
        "type": "TemplateProcessing",
        "special_tokens": names,
        "single": [pieces["<s>"], pieces["A"], pieces["</s>"]],
        "pair": [pieces["A"], pieces["</s>"], pieces["B"]],
    }
    tokenizer = word_level("a", post_processor=template)
    assert tokenizer.build_inputs_with_special_tokens([9]) == [1, 9, 2, 2]
    assert tokenizer.build_inputs_with_special_tokens([9], [8]) == [9, 2, 2, 8]
    roberta = {"type": "RobertaProcessing", "cls": ["<s>", 5], "sep": ["</s>", 6]}
    tokenizer = word_level("a", post_processor={"type": "Sequence", "processors": [roberta, {"type": "ByteLevel"}]})
    assert tokenizer.build_inputs_with_special_tokens([9], [8]) == [5, 9, 6, 6, 8, 6]
    with pytest.raises(InputError, match="a template for more than two texts"):
        word_level("a", post_processor={"type": "Sequence", "processors": [template, template]})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.1}},
            "dropout 0.1, so that ids are ran",
        ),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a a"]}}, "merge 0 needs the token 'aa'"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [3]}}, "merge 0 is 3, expected two tokens"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}, "gives 'a' and 'b' one id, 0"),
        ({"model": {"type": "BPE", "vocab": {"a": "0"}, "merges": []}}, "gives 'a' the id '0', expected a number"),
        ({"model": {"type": "WordLevel", "vocab": {}}}, "vocab has no tokens"),
        ({"model": {"type": "WordLevel", "vocab": 3}}, "vocab is a int, expected a table of tokens"),
        ({"model": {"type": "WordLevel"}}, "vocab is a NoneType, expected a table"),
        ({"model": {"type": "Unigram", "vocab": [["a"]]}}, "vocab is not a list of pieces with their scores"),
        ({"normalizer": {"type": "Strange"}}, "normalizer 'Strange' is not supported"),
        ({"pre_tokenizer": {"type": "UnicodeScripts"}}, "pre_tokenizer 'UnicodeScripts' is not supported"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a)\\1"}, "behavior": "Isolated"}}, "has '.1'"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"String": "a"}, "behavior": "Odd"}}, "has behavior 'Odd'"),
        ({"decoder": {"type": "Strange"}}, "decoder 'Strange' is not supported"),
        ({"decoder": {"type": "WordPiece", "prefix": 3, "cleanup": True}}, "WordPiece has prefix 3, expected a text"),
        ({"post_processor": {"type": "Strange"}}, "post_processor is 'Strange', which is not supported"),
        ({"added_tokens": [added("<x>", 1), added("<x>", 2)]}, "give each token once"),
        ({"added_tokens": [added("", 1)]}, "'' cannot be a special token"),
        ({"added_tokens": [{"id": 1}]}, "this is not a complete tokenizer.json .no 'content'"),
        (
            {"normalizer": {"type": "Lowercase"}, "added_tokens": [added(t, 1, normalized=True) for t in ("A", "a")]},
            "added tokens 'A' and 'a' are both 'a' when normalised",
        ),
        (
            {"normalizer": {"type": "Replace", "pattern": {"Regex": "x*"}, "content": ""}},
            "may match nothing; give a pattern that does not",
        ),
        (
            {"normalizer": {"type": "Strip"}, "added_tokens": [added(" ", 1, normalized=True)]},
            "becomes empty when normalised; give another",
        ),
    ],
)
def test_what_is_not_known_is_named(parts, message):
    content = {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}} | parts
    with pytest.raises(InputError, match=message):
        ChainTokenizer.from_hugging_face(content)


def test_what_is_first_in_a_text():
    """A "▁" in front of the first piece only depends on the replacement of the first character."""
    letters = {character: i for i, character in enumerate(("<unk>", "▁", "a", "b"))}
    first = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}

    def pieces(text: str, *normalizers: dict[str, Any]) -> str:
        content = {"type": "BPE", "vocab": letters, "merges": [], "unk_token": "<unk>"}
        parts = {"normalizer": {"type": "Sequence", "normalizers": [*normalizers]}, "pre_tokenizer": first}
        tokenizer = chain(content, **parts)
        return "".join(tokenizer._spelling(i) for i in tokenizer.encode(text))

    def replace(pattern: str, content: str) -> dict[str, Any]:
        return {"type": "Replace", "pattern": {"String": pattern}, "content": content}

    assert pieces("ab") == "▁ab"
    assert pieces(" b", {"type": "Strip"}) == "b"
    assert pieces("xb", replace("x", "")) == "b"
    assert pieces("xb", replace("x", "a")) == "▁ab"
    assert pieces("xxb", replace("xx", "a")) == "ab"
    assert pieces("\u0301b", {"type": "StripAccents"}) == "b"
    assert pieces("A", {"type": "Lowercase"}, {"type": "NFKC"}) == "▁a"
    behind = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, first]}
    with pytest.raises(InputError, match="Metaspace has prepend_scheme 'first' after steps that change text"):
        word_level("a", normalizer={"type": "ByteLevel"}, pre_tokenizer=behind)
    # U+00A8 becomes a space and U+0308 by NFKC, of which both are the first character of the text.
    tokenizer = word_level("▁\u0308a", "▁a", "a", normalizer={"type": "NFKC"}, pre_tokenizer=behind)
    assert tokenizer.encode("\u00a8a a") == [1, 3]
    assert word_level("▁a", "a", pre_tokenizer=behind).encode("a a") == [1, 2]
    assert word_level("▁a", "a", pre_tokenizer=behind).encode(" a") == [2]


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    whole = json.dumps(
        {"model": {"type": "WordLevel", "vocab": {"a": 0, "é": 1}, "unk_token": "a"}}, ensure_ascii=False
    )
    damaged = [whole[:30].encode(), whole.encode("latin-1"), b"", b"[" * 100_000, b"\xff\xfe{\0}\0"]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not JSON"):
            Tokenizer.from_file(path)
    path.write_bytes(b"\xef\xbb\xbf" + whole.encode())
    assert Tokenizer.from_file(path).encode("a") == [0]
    content = json.loads(whole)
    content["model"]["vocab"]["\ud800"] = 2
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match="surrogates not allowed"):
        Tokenizer.from_file(path)


def test_an_early_token_in_a_late_one_is_found():
    assert overlap(["<s>"], ["s>x"]) == ("<s>", "s>x")
    assert overlap(["<ab>"], ["ab"]) == ("<ab>", "ab")
    assert overlap(["<ab>"], ["<ab"]) == ("<ab>", "<ab")
    assert overlap(["<ab>"], ["<ab>>", "b<", "x"]) is None
    many = [f"<early {i}>" for i in range(10_000)]
    assert overlap([f"<late {i}>" for i in range(10_000)], many) is None


def test_unknown_characters_that_are_left_out_have_their_neighbours_meet():
    """A text is cut at line ends only where nothing goes on over what is unknown there."""
    vocab = {"a": 0, "t": 1, "at": 2, "u": 3, "ut": 4}
    model = {"type": "BPE", "vocab": vocab, "merges": [["a", "t"], ["u", "t"]]}
    assert chain(model).encode("a\n\nt") == [2]
    assert chain(model | {"unk_token": "u"}).encode("a\nt") == [0, 4]


def test_parts_that_a_decoder_empties_do_not_count():
    vocab = {"<pad>": 0, "a": 1, "##b": 2, "c": 3}
    ctc = {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": False}
    decoder = {"type": "Sequence", "decoders": [ctc, {"type": "WordPiece", "prefix": "##", "cleanup": False}]}
    tokenizer = chain({"type": "WordLevel", "vocab": vocab, "unk_token": "a"}, decoder=decoder)
    assert tokenizer.decode([0, 1, 2, 0, 3]) == "ab c"


def test_a_suffix_within_the_last_token_is_not_settled():
    vocab = {"e": 0, "lxz": 1, "n": 2}
    tokenizer = chain(
        {"type": "WordLevel", "vocab": vocab, "unk_token": "e"}, decoder={"type": "BPEDecoder", "suffix": "x"}
    )
    settled = [tokenizer.decode_settled([0, 1, 2][:cut]) for cut in range(4)]
    assert tokenizer.decode([0, 1, 2]) == "el zn"
    assert all("el zn".startswith(part) for part in settled), settled
