"""Text that comes token by token: whatever the tokenizer, its pieces are the text of the whole."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from minillm.text_stream import TextStream
from minillm.tokenizers import BPETokenizer, ChainTokenizer, CharacterTokenizer, Tokenizer, UnigramTokenizer

BYTES = BPETokenizer({bytes([byte]): byte for byte in range(256)}, [], {"<s>": 256})
TEXT = "a€ 長👩\u200d👧 \ufffd é"


def chain(decoder, **model) -> ChainTokenizer:
    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁a", "▁", "a</w>", "b", "<unk>"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    content = {"model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": True, **model}}
    return ChainTokenizer(content | {"decoder": decoder})


REPLACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
FALLBACK = {"type": "Sequence", "decoders": [REPLACE, {"type": "ByteFallback"}, {"type": "Fuse"}]}
TOKENIZERS: dict[str, Tokenizer] = {
    "bytes": BYTES,
    "characters": CharacterTokenizer.train(TEXT),
    "unigram": UnigramTokenizer(
        [("<unk>", 0.0), ("▁a", -1.0), ("b", -2.0), *((f"<0x{b:02X}>", -9.0) for b in range(256))],
        0,
        byte_fallback=True,
    ),
    "fallback": chain(FALLBACK),
    "end of words": chain({"type": "BPEDecoder", "suffix": "</w>"}),
    "no decoder": chain(None),
    "late replacement": chain(
        {"type": "Sequence", "decoders": [{"type": "Fuse"}, {**REPLACE, "pattern": {"String": "ab"}, "content": "c"}]}
    ),
}


def pieces_of(tokenizer: Tokenizer, prompt: list[int], ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer, prompt)
    return [*map(stream.add, ids), stream.rest()]


def test_a_character_that_the_prompt_has_begun_is_not_lost():
    for text in ("€", "長", "👩", "é"):
        ids = BYTES.encode(f"ab{text}c")
        for cut in range(1, len(ids) + 1):
            pieces = pieces_of(BYTES, ids[:cut], ids[cut:])
            begun = ids[:cut]
            while BYTES.decode(begun).endswith("\ufffd"):
                begun = begun[:-1]
            assert "".join(pieces) == f"ab{text}c"[len(BYTES.decode(begun)) :], (text, cut)
    euro = list("€".encode())
    assert pieces_of(BYTES, [97, *euro[:2]], [euro[2], 98]) == ["€", "b", ""]
    assert pieces_of(BYTES, [97, *euro[:1]], [98]) == ["\ufffdb", ""]  # it is begun and never completed
    assert pieces_of(BYTES, [97, *euro[:1]], []) == ["\ufffd"]
    assert pieces_of(BYTES, [97, *"\ufffd".encode()], [98]) == ["b", ""]  # here U+FFFD is what the prompt says
    assert pieces_of(BYTES, [97, 0xFF], [98]) == ["b", ""]  # no character begins so, and nothing is awaited


@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_are_the_text_at_every_cut(name):
    tokenizer, draw = TOKENIZERS[name], random.Random(3)
    for _ in range(200):
        ids = [draw.randrange(tokenizer.vocab_size) for _ in range(draw.randint(0, 9))]
        if draw.random() < 0.5 and tokenizer.vocab_size > 255:
            start = draw.randrange(len(TEXT))
            ids += [byte + (3 if name == "unigram" else 0) for byte in TEXT[start:].encode()][: draw.randint(0, 9)]
        text = tokenizer.decode(ids)
        assert "".join(pieces_of(tokenizer, [], ids)) == text
        settled = [tokenizer.decode_settled(ids[:cut]) for cut in range(len(ids) + 1)]
        assert all(text.startswith(part) for part in settled)
        assert all(later.startswith(part) for part, later in pairwise(settled))


def test_settled_text_is_given_as_soon_as_it_is_certain():
    assert [BYTES.decode_settled("a€b".encode()[:cut]) for cut in range(6)] == ["", "a", "a", "a", "a€", "a€b"]
    fallback = TOKENIZERS["fallback"]
    ids = [256, *"é".encode(), 259]
    assert [fallback.decode_settled(ids[:cut]) for cut in range(5)] == ["", " a", " a", " a", " aéb"]
    words = TOKENIZERS["end of words"]
    assert [words.decode_settled([258, 259, 258][:cut]) for cut in range(4)] == ["", "", "a ", "a b"]
    assert TOKENIZERS["late replacement"].decode_settled([259, 259]) == ""
