"""Generation refuses logits that are NaN or inf, in every way of choosing, and ids and settings of the wrong kind."""

from __future__ import annotations

import math

import numpy as np
import pytest

import minillm
from minillm import backend
from minillm.beam_search import beam_search
from minillm.chat import Conversation, chat_template
from minillm.errors import DtypeError, InputError, MinillmError
from minillm.generate import Sampling, fill_mask, generate, generate_batch, generate_text
from minillm.models.bart import Bart, BartConfig
from minillm.models.bert import BertConfig, BertForMaskedLM
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.models.llama import Llama, LlamaConfig
from minillm.models.roberta import RobertaConfig, RobertaForMaskedLM
from minillm.tokenizers import BPETokenizer
from minillm.training.corpus import Corpus
from minillm.training.tasks.causal import sample

V = 11


class Fixed(GPT2):
    """A GPT2 whose logits are given: those of step i are rows[i], the last of them from there on."""

    def __init__(self, *rows) -> None:
        super().__init__(GPT2Config(V, context=8, layers=1, heads=1, channels=4))
        self.rows = [np.asarray(row, np.float32) for row in rows]

    def next_logits(self, ids, cache=None):
        step = min(cache[0].length, len(self.rows) - 1)  # the prompts below have one token
        cache[0].length += np.asarray(ids).shape[1]
        return minillm.tensor(np.tile(self.rows[step], (len(ids), 1)))


FINITE = np.arange(V, dtype=np.float32)[::-1].copy()


def logits(**changes: float) -> np.ndarray:
    changed = FINITE.copy()
    for name, value in changes.items():
        changed[int(name[1:])] = value
    return changed


class Letters:
    """A tokenizer of one letter an id."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, ids) -> str:
        return "".join(chr(ord("a") + i) for i in ids)


WAYS = {
    "drawn": lambda model: list(generate(model, [1], 4, seed=1)),
    "greedy": lambda model: list(generate(model, [1], 4, temperature=0)),
    "cut": lambda model: list(generate(model, [1], 4, top_k=3, top_p=0.5, min_p=0.1, repetition_penalty=1.3)),
    "batch": lambda model: generate_batch(model, [[1], [2]], 4),
    "text": lambda model: list(generate_text(model, Letters(), "b", 4, temperature=0)),
    "beams": lambda model: beam_search(model, [[1], [2]], 4, beams=2),
    "one beam": lambda model: beam_search(model, [[1]], 4, beams=1, stop=[3]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_logit_that_is_no_finite_number_is_refused_with_its_step_and_token(way: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"^[a-z_]+: 1 of the 11 logits of new token 2 of prompt 0 .* 7, is {value};"):
        WAYS[way](Fixed(FINITE, FINITE, logits(_7=value)))
    with pytest.raises(InputError, match=r": 2 of the 11 logits of new token 0 .* token id 0, is"):
        WAYS[way](Fixed(logits(_0=value, _10=-value)) if value != math.inf else Fixed(logits(_0=value, _10=math.nan)))


@pytest.mark.parametrize("way", WAYS)
def test_a_row_of_minus_inf_is_refused(way: str) -> None:
    with pytest.raises(InputError, match=r"all 11 logits of new token 1 of prompt 0 are -inf, so no token is left"):
        WAYS[way](Fixed(FINITE, np.full(V, -np.inf)))


@pytest.mark.parametrize("way", WAYS)
def test_masked_tokens_never_come_and_the_others_as_they_would_without_them(way: str) -> None:
    masked = logits(**{f"_{i}": -math.inf for i in (0, 2, 3, 10)})
    told = str(WAYS[way](Fixed(masked)))
    very_unlikely = str(WAYS[way](Fixed(np.where(np.isfinite(masked), masked, np.float32(-1e30)))))
    if "beam" not in way:  # whose scores differ in the last digit
        assert told == very_unlikely
    only = WAYS[way](Fixed(np.where(np.arange(V) == 5, FINITE, -np.inf)))
    if "beam" in way:  # one text is left, however many beams were asked for
        assert [[found.ids for found in each] for each in only] == [[[5] * 4]] * len(only)
        assert [found.score for each in only for found in each] == [0.0] * len(only)
    else:
        assert only in ([5] * 4, [[5] * 4] * 2, ["f"] * 4)


@pytest.mark.parametrize("temperature", [0, 1e-310, 1.0, 1e30, math.inf])
def test_the_distribution_with_masked_tokens(temperature: float) -> None:
    result = Sampling(temperature).probabilities(np.array([-np.inf, 1.0, 1.0, -np.inf]))
    np.testing.assert_array_equal(result, [0, 1, 0, 0] if temperature == 0 else [0, 0.5, 0.5, 0])
    few = Sampling(temperature, top_k=3, top_p=1.0, min_p=0.0).probabilities(np.array([-np.inf, 1.0, 1.0, -np.inf]))
    np.testing.assert_array_equal(few, result)


@pytest.mark.parametrize("penalty", [1e-320, 1e-300, 1e300])
def test_an_extreme_penalty_leaves_a_distribution(penalty: float) -> None:
    given = np.array([3e38, -3e38, 0.0, -np.inf, 1.0], np.float32)
    result = Sampling(repetition_penalty=penalty).probabilities(given, seen=[0, 1, 2, 3])
    assert np.isfinite(result).all()
    assert result.sum() == pytest.approx(1)
    assert result[3] == 0


def test_nan_weights_of_real_models_are_refused_without_warnings() -> None:
    """NumPy's warnings are errors in these tests, also those of the other threads."""
    llama = Llama(LlamaConfig(V, 8, layers=1, heads=2, kv_heads=1, channels=8, hidden=8))
    bart = Bart(BartConfig.preset("nano"))
    for value in (np.nan, np.inf):
        for model in (GPT2(GPT2Config(V, 8, 1, 2, 8)), llama):
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.data[:2] = value
            for way in ("drawn", "greedy", "beams"):
                with pytest.raises(InputError, match=r"logits of new token 0 of prompt 0 are not finite numbers"):
                    WAYS[way](model)
            assert model.training
        bart.final_logits_bias.data[0, 3] = value
        conditioned = bart.conditioned(np.array([[5, 6, 7]]))
        for way in ("drawn", "greedy", "beams") if value != value else ("one beam",):
            with pytest.raises(InputError, match=r"1 of the 256 logits of new token 0 of prompt 0"):
                WAYS[way](conditioned) if way != "beams" else beam_search(conditioned, [[2]], 3)


def test_other_threads_are_as_quiet_as_the_caller() -> None:
    def divide(start: int, stop: int) -> None:
        np.ones(stop - start) / np.zeros(stop - start)

    with np.errstate(divide="ignore"):
        backend.parallel(divide, 64)
    if backend.cutting.threads > 1:
        with pytest.raises(RuntimeWarning, match="divide by zero"), np.errstate(divide="warn"):
            backend.parallel(divide, 64)


@pytest.mark.parametrize("config", [BertConfig, RobertaConfig])
def test_fill_mask_refuses_nan_and_odd_arguments(config) -> None:
    kind = {BertConfig: BertForMaskedLM, RobertaConfig: RobertaForMaskedLM}[config]
    model = kind(config(13, context=12, layers=1, heads=2, channels=16, hidden=24))
    ids = [3, 9, 5, 9]
    assert len(fill_mask(model, ids, 9, top_k=99)[0]) == 13
    for given, message in (
        ({"ids": [3, 9.5]}, r"fill_mask: ids is \[3, 9.5\]; give a sequence of whole numbers"),
        ({"ids": "a [MASK]"}, r"fill_mask: ids is 'a \[MASK\]'; give"),
        ({"ids": [3, 9, 13]}, r"fill_mask: token id 13 is out of range; expected 0 to 12"),
        ({"top_k": 0}, r"fill_mask: top_k is 0; give 1 or more"),
        ({"top_k": 1.5}, r"fill_mask: top_k is 1.5; give a whole number"),
        ({"ids": []}, r"none of the ids is the mask token"),
    ):
        with pytest.raises(MinillmError, match=message):
            fill_mask(model, **{"ids": ids, "mask_id": 9, **given})
    model.wte.weight.data[4] = np.nan  # which no token of the text has
    with pytest.raises(InputError, match=r"^fill_mask: 1 of the 13 logits at position 1 .* token id 4, is nan"):
        fill_mask(model, ids, 9)


def test_a_conversation_and_the_samples_of_a_training_refuse_nan() -> None:
    tokenizer = BPETokenizer.train("some words " * 30, 270, special_tokens=("<|im_start|>", "<|im_end|>"))
    model = GPT2(GPT2Config(tokenizer.vocab_size, context=64, layers=1, heads=2, channels=8))
    model.wte.weight.data[ord("Z")] = np.nan
    talk = Conversation(model, tokenizer, chat_template("chatml"))
    with pytest.raises(InputError, match=r"new token 0 of prompt 0 are not finite numbers"):
        list(talk.say("some"))
    assert talk.messages == []
    ids = np.array(tokenizer.encode("some words " * 5))
    from minillm.training.config import preset

    with pytest.raises(InputError, match=r"new token 0 of prompt 0 are not finite numbers"):
        sample(model, Corpus(tokenizer, ids, ids), preset("nano"), 3)


@pytest.fixture
def model() -> GPT2:
    return GPT2(GPT2Config(V, context=8, layers=1, heads=2, channels=8))


@pytest.mark.parametrize(
    ("ids", "given"),
    [
        ([1.5], r"\[1.5\]"),
        ([1.0, 2.0], r"\[1.0, 2.0\]"),
        (np.array([1.0]), "array"),
        (np.array([[1, 2]]), "array"),
        ([[1, 2]], r"\[\[1, 2\]\]"),
        ("abc", "'abc'"),
        (["1"], r"\['1'\]"),
        ([None], r"\[None\]"),
        (5, "5"),
        (None, "None"),
        (minillm.tensor([1.5]), "Tensor|tensor"),
    ],
)
def test_ids_that_are_no_whole_numbers_are_refused(model: GPT2, ids, given: str) -> None:
    with pytest.raises(DtypeError, match=rf"^generate: the prompt is .*({given}).*; give a sequence of whole numbers"):
        generate(model, ids, 3)
    with pytest.raises(DtypeError, match=r"^generate_batch: the prompt is .*; give a sequence"):
        generate_batch(model, [[1], ids], 3)
    with pytest.raises(DtypeError, match=r"^beam_search: the prompt is .*; give a sequence"):
        beam_search(model, [[1], ids], 3)
    if not isinstance(ids, str):
        with pytest.raises(DtypeError, match=r"^generate_text: the prompt is .*; give a sequence"):
            generate_text(model, Letters(), ids, 3)


def test_whole_numbers_of_every_kind_are_ids(model: GPT2) -> None:
    expected = list(generate(model, [1, 2], 3))
    for ids in ((1, 2), np.array([1, 2], np.uint8), [np.int64(1), np.uint64(2)], minillm.tensor([1, 2]), iter([1, 2])):
        assert list(generate(model, ids, 3)) == expected


@pytest.mark.parametrize("way", [generate, generate_batch, beam_search])
def test_ids_and_counts_that_are_out_of_range(model: GPT2, way) -> None:
    prompt = (lambda ids: ids) if way is generate else (lambda ids: [ids])
    for ids in ([V], [-1], [1, 10**30]):
        with pytest.raises(InputError, match=rf"^{way.__name__}: token id {ids[-1]} is out of range; expected 0 to 10"):
            way(model, prompt(ids), 3)
    with pytest.raises(InputError, match=rf"^{way.__name__}: max_tokens is -1; give"):
        way(model, prompt([1]), -1)
    for count in (2.0, "3", None):
        with pytest.raises(DtypeError, match=rf"^{way.__name__}: max_tokens is .*; give a whole number"):
            way(model, prompt([1]), count)
    with pytest.raises(InputError, match=rf"^{way.__name__}: the prompt has no tokens"):
        way(model, prompt([]), 3)


@pytest.mark.parametrize("way", [generate, generate_batch, generate_text, beam_search])
def test_stop_is_a_list_of_ids(model: GPT2, way) -> None:
    arguments = {
        generate: ([1], 3),
        generate_batch: ([[1]], 3),
        generate_text: (Letters(), "b", 3),
        beam_search: ([[1]], 3),
    }[way]
    for stop, fix in ((5, r"such as \[5\]"), ("", "stop strings"), ("END", "stop strings"), (1.5, "")):
        with pytest.raises(InputError, match=rf"^{way.__name__}: stop is {stop!r}; give a list of token ids.*{fix}"):
            way(model, *arguments, stop=stop)
    with pytest.raises(DtypeError, match=rf"^{way.__name__}: stop is \['END'\]"):
        way(model, *arguments, stop=["END"])
    known = list(way(model, *arguments))
    for none in ([], (), {99}, np.array([99, -1])):  # ids that no token has end nothing
        assert list(way(model, *arguments, stop=none)) == known


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": "hot"}, "temperature is 'hot'; give a number"),
        ({"temperature": None}, "temperature is None; give a number"),
        ({"top_k": 2.5}, "top_k is 2.5; give the number of tokens"),
        ({"top_k": "3"}, "top_k is '3'; give a number"),
        ({"top_p": math.nan}, "top_p is nan; give"),
        ({"top_p": [0.5]}, r"top_p is \[0.5\]; give a number"),
        ({"min_p": math.nan}, "min_p is nan; give"),
        ({"repetition_penalty": math.inf}, "repetition_penalty is inf; give"),
        ({"repetition_penalty": math.nan}, "repetition_penalty is nan; give"),
        ({"seed": 1.5}, "seed is 1.5; give a whole number"),
        ({"seed": None}, "seed is None; give a whole number"),
        ({"seed": "1"}, "seed is '1'; give a whole number"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused_at_the_call(model: GPT2, settings, message: str) -> None:
    for call in (
        lambda: generate(model, [1], 3, **settings),
        lambda: generate_text(model, Letters(), "b", 3, **settings),
        lambda: generate_batch(model, [[1]], 3, **settings),
    ):
        with pytest.raises(MinillmError, match=f"^generate(_batch)?: {message}"):
            call()
    for settings in ({"length_penalty": math.nan}, {"length_penalty": "1"}, {"beams": 2.5}, {"beams": 0}):
        with pytest.raises(MinillmError, match=f"^beam_search: {next(iter(settings))} is "):
            beam_search(model, [[1]], 3, **settings)


@pytest.mark.parametrize("stop_strings", ["END", [5], [None]])
def test_stop_strings_are_a_list_of_texts(model: GPT2, stop_strings) -> None:
    with pytest.raises(InputError, match=r"^generate_text: stop_strings is .*; give a list of texts"):
        generate_text(model, Letters(), "b", 3, stop_strings=stop_strings)


def test_a_cache_that_holds_all_of_the_prompt():
    from minillm.models.llama import Llama, LlamaConfig

    model = Llama(LlamaConfig.preset("nano"))
    cache = model.new_cache()
    list(generate(model, [1, 2, 3], 2, temperature=0, cache=cache))
    with pytest.raises(InputError, match="the prompt has 2 tokens, but the cache holds 4 already"):
        generate(model, [1, 2], 2, temperature=0, cache=cache)
