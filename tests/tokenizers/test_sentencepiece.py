"""SentencePiece's BPE against slow versions of itself, Hugging Face's `tokenizers`, and .gguf files (oracle)."""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.errors import DtypeError, InputError
from minillm.text_stream import TextStream
from minillm.tokenizers import ChainTokenizer, SentencePieceBPE, Tokenizer, base, sentencepiece
from minillm.tokenizers.normalizer import BYTE_PIECES

SPECIALS = {"<unk>": 0, "<s>": 1, "</s>": 2}
SCHEMES = ("stretch", "always", "first", "never")


def vocab_of(pieces: list[str], first: int = 3, with_bytes: bool = True) -> dict[str, int]:
    listed = [*(BYTE_PIECES if with_bytes else ()), *pieces]
    return {piece: i for i, piece in enumerate(dict.fromkeys(listed), start=first)}


def made_of(merges: list[tuple[str, str]] | dict[str, float], characters: str = "", **options) -> SentencePieceBPE:
    """A tokenizer with all bytes, some characters, and what the merges or scores are about."""
    parts = merges if isinstance(merges, dict) else [p for left, right in merges for p in (left, right, left + right)]
    special_tokens = options.pop("special_tokens", SPECIALS)
    vocab = vocab_of([*characters, *parts], len(special_tokens), options.get("byte_fallback", True))
    return SentencePieceBPE(vocab, merges, special_tokens, **options)


def names(tokenizer: SentencePieceBPE, ids: list[int]) -> list[str]:
    spelled = {i: token for token, i in {**tokenizer.vocab, **tokenizer.special_tokens}.items()}
    return [spelled[i] for i in ids]


BEE = [("e", "e"), ("▁", "a"), ("b", "ee"), ("▁", "bee")]


# Encoding


def test_the_example_in_the_module_docstring():
    tokenizer = made_of(BEE)
    ids = tokenizer.encode("a bee\n")
    assert names(tokenizer, ids) == ["▁a", "▁bee", "<0x0A>"]
    assert tokenizer.decode(ids) == "a bee\n"


def test_the_highest_score_is_joined_first_and_of_equals_the_leftmost():
    def tokens(scores: dict[str, float], text: str) -> str:
        tokenizer = made_of(scores, "abc", prepend_scheme="never")
        return " ".join(names(tokenizer, tokenizer.encode(text)))

    scores = {"ab": -1.0, "bc": -1.0, "abc": -5.0}
    assert tokens(scores, "abc") == "abc"
    assert tokens(scores, "bcab") == "bc ab"
    del scores["abc"]
    assert tokens(scores, "abcbc") == "ab c bc"
    assert tokens({**scores, "bc": -0.5}, "abc") == "a bc"
    assert tokens({"xy": 0.0}, "xyx") == "xy <0x78>"  # a character that is not a piece may be part of one


def test_schemes():
    def tokens(text: str, scheme: str) -> str:
        tokenizer = made_of(BEE, "abe<>/s", prepend_scheme=scheme)
        return "".join(names(tokenizer, tokenizer.encode(text, "all")))

    assert [tokens("a", scheme) for scheme in SCHEMES] == ["▁a", "▁a", "▁a", "a"]
    assert [tokens(" a", scheme) for scheme in SCHEMES] == ["▁▁a", "▁a", "▁a", "▁a"]
    assert [tokens("a<s>b", scheme) for scheme in SCHEMES] == ["▁a<s>▁b", "▁a<s>▁b", "▁a<s>b", "a<s>b"]
    assert [tokens("<s>b", scheme) for scheme in SCHEMES] == ["<s>▁b", "<s>▁b", "<s>b", "<s>b"]
    assert [tokens("", scheme) for scheme in SCHEMES] == [""] * 4


def test_normalized_special_tokens_are_found_in_changed_text():
    tokenizer = made_of(BEE, "abe<>/s", normalized=["<s>"])
    for text, tokens in {  # as Hugging Face has it
        "a<s>b": "▁a < s > b",
        "a <s>b": "▁a <s> b",
        "<s>b": "<s> b",
        "a</s>b": "▁a </s> ▁ b",
        "a</s><s>": "▁a </s> <s>",
        "<s><s>": "<s> < s >",
        "a  <s> <s>": "▁a ▁ <s> <s>",
    }.items():
        assert " ".join(names(tokenizer, tokenizer.encode(text, "all"))) == tokens, text
    assert tokenizer.decode(tokenizer.encode("a <s>b", "all")) == "a <s>b"
    assert 1 not in tokenizer.encode("a <s>b")
    with pytest.raises(InputError, match="holds the special token '<s>', which is refused"):
        tokenizer.encode("a <s>b", disallowed_special="all")
    tokenizer.encode("a<s>b", disallowed_special={"<s>"})  # where it is not found


def test_unknown_text_without_bytes():
    options: dict[str, Any] = {"byte_fallback": False, "prepend_scheme": "never"}
    tokenizer = made_of(BEE, "ab", **options)
    assert names(tokenizer, tokenizer.encode("axxb x")) == ["a", "<unk>", "b", "▁", "<unk>"]
    tokenizer = made_of(BEE, "ab", **options, fuse_unk=False)
    assert names(tokenizer, tokenizer.encode("axxb x")) == ["a", "<unk>", "<unk>", "b", "▁", "<unk>"]
    assert tokenizer.unk_id == 0
    unknown_space = made_of([], "ab", **options)  # unknown neighbours are one, also where a space is cut
    assert names(unknown_space, unknown_space.encode("ax xb\nx")) == ["a", "<unk>", "b", "<unk>"]


def test_ordinary_text_never_becomes_a_special_token():
    merges = [("<", "s"), ("<s", ">")]
    content = hugging_face_content(merges, "▁<>/s")
    with pytest.raises(InputError, match="the added token '<s>' is a token that the model makes of ordinary text"):
        SentencePieceBPE.from_hugging_face(content)
    tokenizer = ChainTokenizer.from_hugging_face(content)  # to which from_file turns
    vocab = content["model"]["vocab"]
    assert tokenizer.encode("<s>") == [vocab["▁"], vocab["<s"], vocab[">"]]
    assert tokenizer.encode("<s>", "all") == [vocab["▁"], vocab["<s>"]] or tokenizer.encode("<s>", "all") == [
        vocab["<s>"]
    ]


ALPHABET = "abéx▁ \n"


@st.composite
def any_merges(draw) -> list[tuple[str, str]]:
    parts = sorted(set("ab▁é"))
    merges = []
    for _ in range(draw(st.integers(0, 12))):
        pair = draw(st.tuples(st.sampled_from(parts), st.sampled_from(parts)))
        if pair not in merges and len("".join(pair)) < 9:
            merges.append(pair)
            parts.append("".join(pair))
    return merges


def joined_slowly(symbols: list[str], rank_of) -> list[str]:
    """Join the neighbours with the lowest rank, the leftmost of equals, again and again."""
    while True:
        ranked = [
            (rank, i) for i, pair in enumerate(itertools.pairwise(symbols)) if (rank := rank_of(*pair)) is not None
        ]
        if not ranked:
            return symbols
        _, i = min(ranked)
        symbols = [*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :]]


def encode_slowly(tokenizer: SentencePieceBPE, text: str) -> list[str]:
    """The tokens of ordinary text, all of it at once, by looking for the next pair over and over."""
    text = text.replace(" ", "▁")
    text = f"▁{text}" if text and tokenizer._prepends(text) else text
    merges = tokenizer.merges
    if isinstance(merges, dict):
        symbols = joined_slowly(
            [*text], lambda left, right: None if left + right not in merges else -merges[left + right]
        )
    else:
        order = {pair: rank for rank, pair in enumerate(merges)}
        symbols = joined_slowly([*text], lambda *pair: order.get(pair))
    tokens: list[str] = []
    for symbol in symbols:
        if symbol in tokenizer.vocab:
            tokens.append(symbol)
        elif tokenizer.byte_fallback:
            tokens += [f"<0x{byte:02X}>" for byte in symbol.encode()]
        elif not tokenizer.fuse_unk or tokens[-1:] != ["<unk>"]:
            tokens.append("<unk>")
    return tokens


texts = st.text(ALPHABET, max_size=30)


@settings(max_examples=300, deadline=None)
@given(merges=any_merges(), text=texts, scheme=st.sampled_from(SCHEMES), fallback=st.booleans(), fuse=st.booleans())
def test_encode_equals_joining_slowly_by_order(merges, text, scheme, fallback, fuse):
    options: dict[str, Any] = {"byte_fallback": fallback, "fuse_unk": fuse, "prepend_scheme": scheme}
    tokenizer = made_of(merges, "ab", **options)
    assert names(tokenizer, tokenizer.encode(text)) == encode_slowly(tokenizer, text)


def test_a_pair_that_was_changed_waits_for_its_own_turn():
    merges = [("y", "z"), ("x", "y"), ("w", "x"), ("x", "yz")]  # x is beside y first, then beside yz
    tokenizer = made_of(merges, prepend_scheme="never")
    assert names(tokenizer, tokenizer.encode("wxyz")) == ["wx", "yz"]


@settings(max_examples=300, deadline=None)
@given(
    scores=st.dictionaries(st.text("abé▁x", min_size=2, max_size=5), st.integers(-4, 0).map(float), max_size=14),
    text=texts,
    fallback=st.booleans(),
)
def test_encode_equals_joining_slowly_by_score(scores, text, fallback):
    tokenizer = made_of(scores, "ab", byte_fallback=fallback)
    assert names(tokenizer, tokenizer.encode(text)) == encode_slowly(tokenizer, text)


class CountingDict(dict):
    looked_up = 0

    def get(self, *arguments):
        self.looked_up += 1
        return super().get(*arguments)


def test_long_text_without_a_cut_is_not_quadratic():
    doubling = [("ab" * 2**n, "ab" * 2**n) for n in range(12)]
    tokenizer = made_of([("a", "b"), *doubling, ("c", "▁")], prepend_scheme="never")
    for text in ("ab" * 50_000, "ababc " * 16_000, "".join(random.Random(0).choices("abc ", k=100_000))):
        ranks = tokenizer._ranks = CountingDict(tokenizer._ranks)
        assert tokenizer.decode(tokenizer.encode(text)) == text.removeprefix(" ")
        assert ranks.looked_up < 6 * len(text)


def test_text_is_cut_where_no_piece_reaches_over():
    cuts = made_of([("▁", "a"), ("▁", "▁")])._cuts
    assert cuts.words("▁a▁▁a\n▁ab") == ["▁a", "▁▁a", "\n", "▁ab"]
    assert made_of([("▁", "a"), ("a", "▁")])._cuts.words("▁a▁▁a\n▁ab▁") == ["▁a▁", "▁a", "\n", "▁ab", "▁"]
    assert made_of([("▁", "▁"), ("a", "\n")])._cuts.words("▁a▁▁a\n▁ab▁") == ["▁a", "▁▁a\n", "▁ab", "▁"]
    assert made_of([("▁", "▁"), ("a", "▁")], split=True)._cuts.words("▁a▁▁a") == ["▁a", "▁", "▁a"]
    assert (cuts.last("a b  c"), cuts.last("a b\nc"), cuts.last("ab"), cuts.last("a b ")) == (3, 4, 0, 3)


# Streams


PIECES = [
    "a",
    "b",
    " ",
    "  ",
    "\n",
    "ab",
    "bee",
    "a bee",
    "é",
    "🙂",
    "<s>",
    " <s>",
    "</s>",
    "</",
    "s>",
    "▁",
    "x" * 9,
    " b",
    " a",
]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalized": ["<s>"]},
        {"normalized": ["b a", "<s>"], "special_tokens": {**SPECIALS, "b a": 3}},
        {"byte_fallback": False},
        {"strips": {"</s>": "both"}},
    ],
)
def test_the_ids_do_not_depend_on_where_a_stream_is_cut(monkeypatch, scheme, options):
    draw = random.Random(0)
    merges = [*BEE, ("▁", "▁"), *([("a", "▁"), ("b", "\n")] if "strips" in options else [])]
    tokenizer = made_of(merges, "abe<>/s", prepend_scheme=scheme, **options)
    for _ in range(150):
        chunks = draw.choices(PIECES, k=draw.randint(0, 14))
        text = "".join(chunks)
        allowed = draw.choice(["all", "none", {"</s>"}])
        monkeypatch.setattr(base, "BLOCK", 1 << 20)
        whole = tokenizer.encode(text, allowed)
        if allowed == "none":
            assert names(tokenizer, whole) == encode_slowly(tokenizer, text)
        monkeypatch.setattr(base, "BLOCK", draw.randint(1, 6))
        assert list(tokenizer.encode_iterable(chunks, allowed)) == whole, (text, base.BLOCK)
        assert tokenizer.encode(text, allowed) == whole


def test_a_stream_is_encoded_as_it_comes():
    tokenizer = made_of(BEE)
    read = 0

    def chunks():
        nonlocal read
        for _ in range(5):
            read += 1
            yield "a bee " * (base.BLOCK // 6)

    assert next(tokenizer.encode_iterable(chunks())) == tokenizer.vocab["▁a"]
    assert read < 4


def test_the_cache_is_bounded(monkeypatch):
    tokenizer = made_of(BEE)
    monkeypatch.setattr(sentencepiece, "CACHED_PRETOKENS", 10)
    for i in range(50):
        assert tokenizer.decode(tokenizer.encode(f"bee{i} a{'b' * 200}")) == f"bee{i} a{'b' * 200}"
        assert len(tokenizer._ids_of_word) <= 10
    assert all(len(word) <= 128 for word in tokenizer._ids_of_word)


# Ids to text


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30) | st.text(" ab▁\n", max_size=6), scheme=st.sampled_from(SCHEMES))
def test_decode_undoes_encode(text, scheme):
    tokenizer = made_of(BEE, prepend_scheme=scheme, strip_space=scheme != "never")
    expected = base.join_surrogates(text).replace("▁", " ")
    if scheme in ("always", "first"):  # where one space is dropped, whether it was put there or not
        expected = expected.removeprefix(" ")
    assert tokenizer.decode(tokenizer.encode(text)) == expected


def test_decode_of_bytes():
    tokenizer = made_of(BEE)
    of = {byte: tokenizer.vocab[f"<0x{byte:02X}>"] for byte in range(256)}
    assert tokenizer.decode([of[0xE2], of[0x9C], of[0x93]]) == "✓"
    assert tokenizer.decode([of[0x41], of[0xFF]]) == "\ufffd\ufffd"  # one wrong byte takes its run with it
    assert tokenizer.decode([of[0x41], tokenizer.vocab["a"], of[0xFF]]) == "Aa\ufffd"
    assert tokenizer.decode([of[0x41], of[0xFF]], errors="ignore") == "A"
    assert tokenizer.decode([of[0x20], of[0x20]]) == " "
    with pytest.raises(UnicodeDecodeError):
        tokenizer.decode([of[0xFF]], errors="strict")
    with pytest.raises(InputError, match="out of range"):
        tokenizer.decode([tokenizer.vocab_size])
    with pytest.raises(DtypeError, match="expected an integer"):
        tokenizer.decode(["a"])


@settings(deadline=None)
@given(prompt=st.text("ab é\n", max_size=5), text=st.text("ab é🙂✓\n", max_size=20))
def test_text_that_streams_out_is_that_of_decode(prompt, text):
    tokenizer = made_of(BEE)
    begun = tokenizer.encode(prompt)
    ids = tokenizer.encode(prompt + text)[len(begun) :]
    stream = TextStream(tokenizer, begun)
    pieces = [stream.add(i) for i in ids]
    assert not any("\ufffd" in piece for piece in pieces)  # half a character waits
    assert "".join([*pieces, stream.rest()]) == tokenizer.decode([*begun, *ids])[len(tokenizer.decode(begun)) :]


# Files


@pytest.mark.parametrize("merges", [BEE, {"▁a": -1.0, "bee": -2.0, "éa": -2.5}])
def test_save_and_load(tmp_path, merges):
    options: dict[str, Any] = {"prepend_scheme": "first", "normalized": ["<s>"], "strips": {"</s>": "left"}}
    for changed in ({}, options, {"byte_fallback": False, "fuse_unk": False, "split": True, "strip_space": False}):
        tokenizer = made_of(merges, "abe", **changed)
        tokenizer.name_special_tokens(bos_token="<s>", eos_token="</s>")
        tokenizer.around = ["<s>"], []
        tokenizer.save(tmp_path)
        for kind in (Tokenizer, SentencePieceBPE):
            again = kind.load(tmp_path)
            assert type(again) is SentencePieceBPE
            assert again.fingerprint() == tokenizer.fingerprint()
            assert (again.bos_id, again.eos_id, again.unk_id) == (1, 2, 0)
            assert again.build_inputs_with_special_tokens([5]) == [1, 5]
            for text in ("a bee </s>b <s>", "éab\nx"):
                ids = tokenizer.encode(text, "all")
                assert again.encode(text, "all") == ids
                assert again.decode(ids) == tokenizer.decode(ids)
    fingerprints = {made_of(merges, "abe", prepend_scheme=scheme).fingerprint() for scheme in SCHEMES}
    assert len(fingerprints) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"merges": [("a", "q")]}, "the merge of 'a' and 'q' needs the piece 'q', which is not in vocab"),
        ({"merges": [("<0x41>", "a")]}, "needs the piece '<0x41>a'|joins the byte '<0x41>'"),
        ({"merges": {"q": 1.0}}, "'q' has score 1.0; give a piece of vocab a finite number"),
        ({"merges": {"ab": float("nan")}}, "'ab' has score nan"),
        ({"vocab": {"a": 3}}, "byte_fallback needs all 256 bytes, but '<0x00>' is not a piece"),
        ({"vocab": {"a": 3}, "byte_fallback": False, "unk_token": None}, "unk_token None is not a token"),
        ({"prepend_scheme": "alway"}, "prepend_scheme is 'alway'; did you mean 'always'"),
        ({"strips": {"<s>": "up"}}, "strips has '<s>': 'up'"),
        ({"normalized": ["<x>"]}, "normalized has '<x>'"),
        ({"normalized": ["<s>"], "strips": {"<s>": "left"}}, "cannot be both in strips and in normalized"),
    ],
)
def test_the_constructor_refuses(arguments, message):
    given = {
        "vocab": vocab_of(["a", "b", "ab", "<0x41>a"]),
        "merges": [("a", "b")],
        "special_tokens": SPECIALS,
        **arguments,
    }
    with pytest.raises(InputError, match=f"^SentencePieceBPE: .*({message})"):
        SentencePieceBPE(**given)


PREPEND = {"type": "Prepend", "prepend": "▁"}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
LEGACY = {"type": "Sequence", "normalizers": [PREPEND, REPLACE]}
DECODERS = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]
DECODER = {"type": "Sequence", "decoders": DECODERS}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
}


def metaspace(scheme: str, split: bool = False) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


def added(content: str, i: int, normalized: bool = False, **flags) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "special": True}
    return {"id": i, "content": content, "normalized": normalized, **plain, **flags}


def hugging_face_content(merges: list[tuple[str, str]], characters: str = "", **changed) -> dict[str, Any]:
    """A tokenizer.json as Llama 2 has it."""
    parts = [part for left, right in merges for part in (left, right, left + right)]
    vocab = SPECIALS | vocab_of([part for part in (*characters, *parts) if part not in SPECIALS])
    model = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(token, i) for token, i in SPECIALS.items()],
        "normalizer": LEGACY,
        "pre_tokenizer": None,
        "post_processor": TEMPLATE,
        "decoder": DECODER,
        "model": {**model, "vocab": vocab, "merges": [list(pair) for pair in merges], **changed.pop("model", {})},
        **changed,
    }


CHAINS: dict[str, dict[str, Any]] = {
    "llama2": {},
    "normalized": {"added_tokens": [added(token, i, normalized=token != "</s>") for token, i in SPECIALS.items()]},
    "gemma": {"normalizer": REPLACE, "decoder": {"type": "Sequence", "decoders": DECODERS[:3]}},
    **{
        f"{scheme}{'-split' * split}": {"normalizer": None, "pre_tokenizer": metaspace(scheme, split)}
        for scheme in SCHEMES[1:]
        for split in (False, True)
    },
    "strips": {
        "added_tokens": [added(token, i, rstrip=i > 0, lstrip=i > 1) for token, i in SPECIALS.items()],
    },
    "no-bytes": {"model": {"byte_fallback": False}},
    "no-fuse": {"model": {"byte_fallback": False, "fuse_unk": False}},
}


def test_reading_without_hugging_face(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(hugging_face_content(BEE)), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}), "utf-8")
    for kind in (Tokenizer, SentencePieceBPE):
        tokenizer = kind.from_file(tmp_path)
        assert type(tokenizer) is SentencePieceBPE
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (1, 2, 0)
        ids = tokenizer.encode("a bee</s>", "all")
        assert names(tokenizer, ids) == ["▁a", "▁bee", "</s>"]
        assert tokenizer.build_inputs_with_special_tokens(ids) == [1, *ids]
    spelled = hugging_face_content(BEE)
    spelled["model"]["merges"] = [" ".join(pair) for pair in BEE]
    assert SentencePieceBPE.from_hugging_face(spelled).fingerprint() == tokenizer.fingerprint()
    for chain, options in {
        "gemma": ("never", False, False, ()),
        "first": ("first", False, True, ()),
        "always-split": ("always", True, True, ()),
        "normalized": ("stretch", False, True, ("<unk>", "<s>")),
    }.items():
        other = SentencePieceBPE.from_hugging_face(with_chain(spelled, chain))
        assert (other.prepend_scheme, other.split, other.strip_space, other.normalized) == options


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"normalizer": {"type": "NFKC"}}, "normalizer is NFKC and pre_tokenizer None; supported are"),
        ({"normalizer": {**LEGACY, "normalizers": [REPLACE, PREPEND]}}, r"normalizer is Replace \+ Prepend"),
        ({"pre_tokenizer": metaspace("always")}, "and pre_tokenizer Metaspace; supported are"),
        (
            {"normalizer": None, "pre_tokenizer": {**metaspace("first"), "replacement": "_"}},
            "Metaspace has replacement '_'",
        ),
        ({"decoder": {"type": "Metaspace"}}, "decoder is Metaspace, expected Replace"),
        ({"decoder": None}, "decoder is None, expected Replace"),
        (
            {"decoder": {"type": "Sequence", "decoders": [*DECODERS[:3], {**DECODERS[3], "start": 2}]}},
            "decoder is Repl",
        ),
        ({"model": {"dropout": 0.1}}, "model has dropout 0.1"),
        ({"model": {"ignore_merges": True}}, "model has ignore_merges True"),
        ({"model": {"type": "Unigram"}}, "model is of type 'Unigram', expected 'BPE'"),
        ({"model": {"merges": None}}, "not the content of a tokenizer.json with a BPE model"),
        ({"model": {"merges": ["a b c"]}}, "not the content of a tokenizer.json with a BPE model"),
        ({"added_tokens": [added("<s>", 1, single_word=True)]}, "added token '<s>' has single_word"),
    ],
)
def test_from_hugging_face_refuses(changed, message):
    with pytest.raises(InputError, match=f"^SentencePieceBPE.from_hugging_face: .*{message}"):
        SentencePieceBPE.from_hugging_face(hugging_face_content(BEE, **changed))


def gguf_fields(**changed: Any) -> dict[str, Any]:
    pieces = ["▁", "a", "b", "e", "ee", "▁a", "bee", "<tool>"]
    fields = {
        "model": "llama",
        "tokens": [*SPECIALS, *BYTE_PIECES, *pieces],
        "scores": [0.0] * 259 + [-9.0, -9.0, -9.0, -9.0, -1.0, -2.0, -3.0, 0.0],
        "token_type": [2, 3, 3, *[6] * 256, *[1] * 7, 4],
        **changed,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in fields.items() if value is not None}


def test_gguf_fields_make_a_tokenizer():
    tokenizer = SentencePieceBPE.from_gguf_fields(gguf_fields())
    assert tokenizer.special_tokens == {**SPECIALS, "<tool>": 266}
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.pad_id) == (1, 2, 0, None)
    assert tokenizer.build_inputs_with_special_tokens([7]) == [1, 7]
    ids = tokenizer.encode(" a bee\n<tool>é", "all")
    assert names(tokenizer, ids) == ["▁", "▁a", "▁", "bee", "<0x0A>", "<tool>", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(ids) == " a bee\n<tool> é"
    assert "</s>" not in names(tokenizer, tokenizer.encode("</s>"))
    other = gguf_fields(
        add_space_prefix=False, add_bos_token=False, add_eos_token=True, eos_token_id=266, padding_token_id=2
    )
    tokenizer = SentencePieceBPE.from_gguf_fields(other)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 266, 2)
    assert tokenizer.build_inputs_with_special_tokens([7]) == [7, 266]
    assert names(tokenizer, ids := tokenizer.encode("a")) == ["a"]
    assert tokenizer.decode([*ids, *tokenizer.encode(" a")]) == "a a"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "gpt2"}, "tokenizer.ggml.model is 'gpt2', expected 'llama'"),
        ({"scores": None}, "the fields are not a complete tokenizer .no 'scores'"),
        ({"token_type": [1]}, "the fields are not a complete tokenizer"),
        ({"scores": [0.0] * 9}, "the fields are not a complete tokenizer"),
    ],
)
def test_gguf_fields_are_refused(changed, message):
    with pytest.raises(InputError, match=f"^SentencePieceBPE.from_gguf_fields: .*{message}"):
        SentencePieceBPE.from_gguf_fields(gguf_fields(**changed))


def write_gguf(path: Path, fields: dict[str, Any], architecture: str = "llama") -> None:
    """A .gguf file with a tokenizer and nothing else."""
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in fields.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        else:
            (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_with_either_kind_is_read(tmp_path):
    from minillm.gguf import load_gguf_tokenizer
    from minillm.tokenizers import BPETokenizer

    write_gguf(tmp_path / "llama.gguf", gguf_fields(bos_token_id=1, add_eos_token=True))
    tokenizer = load_gguf_tokenizer(tmp_path / "llama.gguf")
    assert tokenizer.fingerprint() == SentencePieceBPE.from_gguf_fields(gguf_fields()).fingerprint()
    assert tokenizer.build_inputs_with_special_tokens([7]) == [1, 7, 2]
    made = BPETokenizer.train("the the the", 259, ("<s>",))
    saved = made._to_json()
    fields = {"model": "gpt2", "tokens": [*saved["vocab"], "<s>"], "token_type": [1] * 258 + [3]}
    fields |= {"merges": saved["merges"]}
    write_gguf(tmp_path / "gpt2.gguf", {f"tokenizer.ggml.{key}": value for key, value in fields.items()})
    tokenizer = load_gguf_tokenizer(tmp_path / "gpt2.gguf")
    assert type(tokenizer) is BPETokenizer
    assert tokenizer.fingerprint() == made.fingerprint()
    write_gguf(tmp_path / "bert.gguf", {"tokenizer.ggml.model": "bert"})
    with pytest.raises(InputError, match="'bert'"):
        load_gguf_tokenizer(tmp_path / "bert.gguf")


# Hugging Face (oracle)


@pytest.fixture(scope="session")
def huggingface():
    return pytest.importorskip("tokenizers", reason="tokenizers is not installed")


def read(path: Path) -> str:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return content.decode("utf-8", "replace")


SCRIPTS = (
    "The ship shipped the shipping; a ship's shops ship the shopping.\n\tdef f(x):\n    return x  # 1234\n"
    "Straße, naïve café. "
    " Привет, мир! שלום עולם 東京都に住んでいます。今天天气很好。 नमस्ते 🙂👍🏽 \u00a0\u3000 a\u0301 ﬁ ①\n"
)


@functools.cache
def trained(texts: tuple[str, ...], size: int) -> dict[str, Any]:
    """Llama 2's chain around a BPE that `tokenizers` trained, which lacks some characters of any text."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    special = [*SPECIALS, *BYTE_PIECES]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, show_progress=False, limit_alphabet=80
    )
    tokenizer.train_from_iterator([line for text in texts for line in text.split("\n")], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    content = hugging_face_content([])
    content["model"] |= {"vocab": model["vocab"], "merges": model["merges"]}
    return content


def with_chain(content: dict[str, Any], chain: str) -> dict[str, Any]:
    changed = CHAINS[chain]
    return {**content, **changed, "model": {**content["model"], **changed.get("model", {})}}


def both(huggingface, content: dict[str, Any]):
    return SentencePieceBPE.from_hugging_face(content), huggingface.Tokenizer.from_str(json.dumps(content))


def check_same(ours: SentencePieceBPE, theirs, text: str) -> None:
    expected = theirs.encode(text, add_special_tokens=False).ids
    ids = ours.encode(text, "all")
    assert ids == expected, text
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    assert ours.build_inputs_with_special_tokens(ids) == theirs.encode(text).ids


known = st.characters(exclude_categories=["Cn", "Cs"]).filter(lambda c: unicodedata.category(c) != "Cn")
drawn = st.text(known, max_size=30) | st.lists(
    st.sampled_from([*PIECES, "<unk>", " </s> ", "the ", "ship", "\n\n", "東京", "\t", "\u3000", "<0x0A>", "s"]),
    max_size=14,
).map("".join)


@pytest.mark.oracle
@pytest.mark.parametrize("chain", CHAINS)
def test_files_have_the_ids_of_hugging_face(huggingface, shared_data, chain):
    read_by_name = {path.name: read(path)[:100_000] for path in sorted(shared_data.iterdir()) if path.is_file()}
    shakespeare = read_by_name["tinyshakespeare.txt"]
    content = trained((shakespeare, SCRIPTS * 20), 1500)
    ours, theirs = both(huggingface, with_chain(content, chain))
    for text in read_by_name.values():
        check_same(ours, theirs, text[:30_000])
    long = shakespeare.replace(" ", "").replace("\n", "")
    check_same(ours, theirs, long)
    check_same(ours, theirs, " ".join(shakespeare[:5000]))


@pytest.mark.oracle
@pytest.mark.parametrize("chain", CHAINS)
def test_any_text_has_the_ids_and_text_of_hugging_face(huggingface, chain):
    ours, theirs = both(huggingface, with_chain(trained((SCRIPTS * 20,), 500), chain))

    @settings(max_examples=200, deadline=None)
    @given(text=drawn)
    def check(text):
        check_same(ours, theirs, text)

    check()


@pytest.mark.oracle
@pytest.mark.parametrize("chain", ["llama2", "normalized", "gemma", "first"])
def test_any_ids_have_the_text_of_hugging_face(huggingface, chain):
    content = with_chain(trained((SCRIPTS * 20,), 500), chain)
    ours, theirs = both(huggingface, content)
    near_bytes = st.sampled_from([3 + byte for byte in b" A\xe2\x9c\x93\xff\xf0\x9f\x99\x82"])
    ids_of_all = st.integers(0, ours.vocab_size - 1)

    @settings(max_examples=300, deadline=None)
    @given(ids=st.lists(near_bytes | ids_of_all, max_size=12))
    def check(ids):
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)

    check()


@pytest.mark.oracle
@settings(deadline=None)
@given(merges=any_merges(), text=texts | drawn, chain=st.sampled_from([*CHAINS]))
def test_any_merges_have_the_ids_of_hugging_face(huggingface, merges, text, chain):
    ours, theirs = both(huggingface, with_chain(hugging_face_content(merges, "ab▁"), chain))
    check_same(ours, theirs, text)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ["phi3", "llama"])
def test_a_gguf_file_has_the_ids_of_transformers(huggingface, shared_data, tmp_path, architecture):
    """transformers makes merges of the scores; where no two scores are equal, their order is that of the scores.

    Of a "phi3" file it puts a space in front of every text, as llama.cpp does; of a "llama", where there is none.
    """
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from minillm.gguf import load_gguf_tokenizer

    shakespeare = (shared_data / "tinyshakespeare.txt").read_text("utf-8")[:100_000]
    content = trained((shakespeare, SCRIPTS * 20), 1500)
    tokens = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    ranks = {"".join(pair): rank for rank, pair in reversed([*enumerate(content["model"]["merges"])])}
    fields = {
        "model": "llama",
        "tokens": tokens,
        "scores": [-float(ranks.get(token, 100_000 + i)) for i, token in enumerate(tokens)],
        "token_type": [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)],
        **{"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "add_bos_token": True},
    }
    fields = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
    write_gguf(tmp_path / "model.gguf", fields, architecture)
    ours = load_gguf_tokenizer(tmp_path / "model.gguf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)

    def check(text: str) -> None:
        ids = ours.encode(text, "all")
        assert ids == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids)
        if text:
            assert ours.build_inputs_with_special_tokens(ids) == theirs(text)["input_ids"]

    for path in sorted(path for path in shared_data.iterdir() if path.is_file()):
        check(read(path)[:20_000].lstrip(" ▁"))
    check(SCRIPTS)
    if architecture == "phi3":
        for text in ("  two spaces", "one</s>two", "</s> three", "<s>"):
            check(text)
