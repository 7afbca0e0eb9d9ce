"""Perplexity and bits per byte: denominators that belong to the text, each id once, and intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scored_models import TEXTS, small_gpt2, uniform_gpt2

from minillm.errors import InputError
from minillm.evaluation.likelihood import document_likelihoods
from minillm.evaluation.perplexity import count_words, perplexity
from minillm.tokenizers import BPETokenizer, CharacterTokenizer, UnigramTokenizer, WordPieceTokenizer

TOKENIZERS = {
    "bytes": BPETokenizer.train(TEXTS, 320),
    "characters": CharacterTokenizer.train(TEXTS),
    "sentencepiece": UnigramTokenizer.train(TEXTS, 90),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(("window", "stride"), [(24, None), (7, None), (7, 3), (1, None)])
def test_a_uniform_model_has_log2_v_bits_an_id(kind: str, window: int, stride: int | None) -> None:
    """Bits per byte are log2(V) ids / bytes for any window, since each id counts once, also without a prefix."""
    tokenizer = TOKENIZERS[kind]
    model = uniform_gpt2(tokenizer.vocab_size)
    found = perplexity(model, tokenizer, TEXTS, window=window, stride=stride)
    ids = sum(len(tokenizer.encode(text)) for text in TEXTS)
    in_bytes = sum(len(text.encode()) for text in TEXTS)
    assert (found.ids, found.bytes) == (ids, in_bytes)
    bits = found.measures["bits_per_byte"]
    assert bits.value == pytest.approx(math.log2(tokenizer.vocab_size) * ids / in_bytes, rel=1e-7)
    assert bits.denominator == in_bytes
    assert found.measures["token_perplexity"].value == pytest.approx(tokenizer.vocab_size, rel=1e-6)


def test_the_four_measures_are_functions_of_one_sum() -> None:
    """Characters, bytes, words and ids of TEXTS all differ, so a wrong denominator cannot pass."""
    tokenizer, model = TOKENIZERS["bytes"], small_gpt2(TOKENIZERS["bytes"].vocab_size)
    found = perplexity(model, tokenizer, TEXTS)
    nats = -sum(one.sum() for one in document_likelihoods(model, tokenizer, TEXTS))
    in_bytes, words = sum(len(text.encode()) for text in TEXTS), sum(len(text.split()) for text in TEXTS)
    assert len({in_bytes, words, found.ids, sum(map(len, TEXTS))}) == 4
    expected = {
        "bits_per_byte": nats / in_bytes / math.log(2),
        "byte_perplexity": math.exp(nats / in_bytes),
        "word_perplexity": math.exp(nats / words),
        "token_perplexity": math.exp(nats / found.ids),
    }
    assert {name: one.value for name, one in found.measures.items()} == pytest.approx(expected)
    units = [one.unit for one in found.measures.values()]
    assert units == ["bytes", "bytes", "words", "ids"]
    assert [one.denominator for one in found.measures.values()] == [in_bytes, in_bytes, words, found.ids]
    assert found.nats == pytest.approx(nats)


def test_words_are_those_of_lm_evaluation_harness() -> None:
    assert count_words("a  b\nc") == 3
    assert count_words(" a b ") == 4  # an empty word at each end


def test_originals_give_the_words_and_bytes() -> None:
    tokenizer, model = TOKENIZERS["bytes"], small_gpt2(TOKENIZERS["bytes"].vocab_size)
    originals = [text.replace(",", " ,") for text in TEXTS]
    plain, other = perplexity(model, tokenizer, TEXTS), perplexity(model, tokenizer, TEXTS, originals)
    assert other.nats == plain.nats
    assert other.bytes == sum(len(text.encode()) for text in originals) > plain.bytes
    assert other.measures["bits_per_byte"].value < plain.measures["bits_per_byte"].value
    with pytest.raises(InputError, match="4 documents and 1 originals"):
        perplexity(model, tokenizer, TEXTS, originals[:1])


def test_intervals_hold_the_value_and_are_drawn_from_documents_or_blocks() -> None:
    tokenizer, model = TOKENIZERS["bytes"], small_gpt2(TOKENIZERS["bytes"].vocab_size)
    few, many = perplexity(model, tokenizer, TEXTS), perplexity(model, tokenizer, [*TEXTS] * 8)
    for found, item in ((few, "block"), (many, "document")):
        for measure in found.measures.values():
            assert measure.low < measure.value < measure.high
            assert (measure.item, measure.method) == (item, "bootstrap")
    assert many.measures["bits_per_byte"].items == 32
    again = perplexity(model, tokenizer, TEXTS)
    assert again.measures == few.measures
    assert perplexity(model, tokenizer, TEXTS, seed=1).measures["bits_per_byte"].low != pytest.approx(
        few.measures["bits_per_byte"].low, rel=1e-9
    )
    one = perplexity(model, tokenizer, ["T"]).measures["bits_per_byte"]
    assert (one.low, one.high, one.stderr, one.method) == (None, None, None, "none")


def test_ids_of_unknown_text_and_documents_that_are_not_restored_are_counted() -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat", ".", ","]
    tokenizer = WordPieceTokenizer({word: number for number, word in enumerate(words)})
    model = uniform_gpt2(len(words))
    found = perplexity(model, tokenizer, ["the cat sat", "The cat", "the dog and the fox sat"])
    assert found.unknown_ids == 3
    assert found.changed_documents == 2


def test_no_documents_are_refused() -> None:
    tokenizer = TOKENIZERS["bytes"]
    with pytest.raises(InputError, match="there are 0 documents"):
        perplexity(small_gpt2(tokenizer.vocab_size), tokenizer, [])


def test_the_model_is_left_as_it_was() -> None:
    tokenizer, model = TOKENIZERS["bytes"], small_gpt2(TOKENIZERS["bytes"].vocab_size)
    before = {name: parameter.data.copy() for name, parameter in model.named_parameters()}
    perplexity(model, tokenizer, TEXTS)
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.data, before[name])
        assert parameter.grad is None
