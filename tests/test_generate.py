"""Generation: the distribution that is drawn from, against plain Python; and the loop around it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import minillm
from minillm import random
from minillm.errors import InputError
from minillm.generate import Sampling, fill_mask, generate, generate_batch, generate_text
from minillm.models.bert import BertConfig, BertForMaskedLM
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.models.llama import Llama, LlamaConfig
from minillm.models.roberta import RobertaConfig, RobertaForMaskedLM


@pytest.fixture
def model() -> GPT2:
    """A model whose next token depends on much of what came before."""
    minillm.manual_seed(3)
    model = GPT2(GPT2Config(vocab_size=11, context=8, layers=2, heads=2, channels=12))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 30
    return model


# The distribution


def next_token_probabilities(logits, *settings, seen=(), **named) -> np.ndarray:
    return Sampling(*settings, **named).probabilities(logits, seen)


def naive(logits: list[float], temperature: float, top_k: int | None, top_p: float | None) -> list[float]:
    """Compute one token at a time, literally as the docstring defines it."""
    weights = [math.exp((logit - max(logits)) / temperature) for logit in logits]
    order = sorted(range(len(logits)), key=lambda i: -logits[i])[:top_k]
    total = sum(weights[i] for i in order)
    kept, reached = [], 0.0
    for i in order:
        kept.append(i)
        reached += weights[i] / total
        if top_p is not None and reached >= top_p * (1 - 1e-12):
            break
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(logits))]


@given(
    st.lists(st.floats(-20, 20), min_size=1, max_size=12),
    st.floats(0.05, 5),
    st.none() | st.integers(1, 15),
    st.none() | st.floats(0.01, 1),
)
def test_probabilities_are_those_of_the_naive_formula(logits, temperature, top_k, top_p) -> None:
    result = next_token_probabilities(np.array(logits, np.float32).astype(np.float64), temperature, top_k, top_p)
    assert result.dtype == np.float64
    assert result.sum() == pytest.approx(1, rel=1e-12)
    expected = naive(np.array(logits, np.float32).tolist(), temperature, top_k, top_p)
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-12)


def test_probabilities_by_hand() -> None:
    logits = np.log([0.1, 0.5, 0.15, 0.25])
    cases = [
        ({}, [0.1, 0.5, 0.15, 0.25]),
        ({"temperature": 0}, [0, 1, 0, 0]),
        ({"temperature": 0.5}, np.array([0.01, 0.25, 0.0225, 0.0625]) / 0.345),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 2 / 3, 0, 1 / 3]),
        ({"top_k": 99}, [0.1, 0.5, 0.15, 0.25]),
        ({"top_p": 0.4}, [0, 1, 0, 0]),
        ({"top_p": 0.5}, [0, 1, 0, 0]),  # reached exactly
        ({"top_p": 0.51}, [0, 2 / 3, 0, 1 / 3]),
        ({"top_p": 0.75}, [0, 2 / 3, 0, 1 / 3]),
        ({"top_p": 1.0}, [0.1, 0.5, 0.15, 0.25]),
        ({"top_k": 2, "top_p": 0.6}, [0, 1, 0, 0]),  # k first: then 0.5 is 2/3 of what is left
        ({"min_p": 0.0}, [0.1, 0.5, 0.15, 0.25]),
        ({"min_p": 0.29}, [0, 0.5 / 0.9, 0.15 / 0.9, 0.25 / 0.9]),
        ({"min_p": 0.31}, [0, 2 / 3, 0, 1 / 3]),
        ({"min_p": 1.0}, [0, 1, 0, 0]),
        ({"min_p": 0.6, "temperature": 2.0}, [0, 0.5**0.5 / (0.5**0.5 + 0.5), 0, 0.5 / (0.5**0.5 + 0.5)]),
        # these logits are negative: times 2, a probability is squared
        ({"repetition_penalty": 2.0, "seen": [1, 1]}, np.array([0.1, 0.25, 0.15, 0.25]) / 0.75),
        ({"repetition_penalty": 3.0, "seen": [1], "temperature": 0}, [0, 0, 0, 1]),
        ({"repetition_penalty": 2.0}, [0.1, 0.5, 0.15, 0.25]),
    ]
    for settings, expected in cases:
        np.testing.assert_allclose(next_token_probabilities(logits, **settings), expected, rtol=1e-12, err_msg=settings)


def test_a_penalty_divides_positive_logits_and_multiplies_negative_ones() -> None:
    logits = np.array([2.0, -1.0, 0.0, 3.0])
    result = next_token_probabilities(logits, repetition_penalty=1.5, seen=[0, 1, 2, 0])
    np.testing.assert_allclose(result, next_token_probabilities(np.array([2 / 1.5, -1.5, 0.0, 3.0])), rtol=1e-12)
    np.testing.assert_array_equal(logits, [2, -1, 0, 3])


@pytest.mark.oracle
@given(
    st.lists(st.floats(-20, 20), min_size=2, max_size=12),
    st.floats(0.05, 5),
    st.none() | st.integers(1, 10),
    st.none() | st.floats(0.05, 0.95),
    st.none() | st.floats(0.01, 1),
    st.floats(0.5, 2),
    st.lists(st.integers(0, 1), max_size=3),
)
def test_as_in_transformers(logits, temperature, top_k, top_p, min_p, penalty, seen) -> None:
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers").generation.logits_process
    steps = [process.RepetitionPenaltyLogitsProcessor(penalty)] if seen else []
    steps += [process.TemperatureLogitsWarper(temperature)]
    steps += [process.TopKLogitsWarper(top_k)] if top_k else []
    steps += [process.TopPLogitsWarper(top_p)] if top_p else []
    steps += [process.MinPLogitsWarper(min_p)] if min_p else []
    scores = torch.tensor([logits], dtype=torch.float64)
    for step in steps:
        scores = step(torch.tensor([seen], dtype=torch.int64), scores)
    expected = scores.softmax(-1)[0].numpy()
    received = next_token_probabilities(np.array(logits), temperature, top_k, top_p, min_p, penalty, seen=seen)
    distinct = len(set(logits)) == len(logits)
    assume(distinct and len(set(np.round(np.cumsum(np.sort(expected)), 6))) == len(logits))  # ties go otherwise there
    np.testing.assert_allclose(received, expected, atol=1e-9)


def test_of_equal_tokens_the_first_is_kept() -> None:
    np.testing.assert_array_equal(next_token_probabilities(np.zeros(4), top_k=2), [0.5, 0.5, 0, 0])
    np.testing.assert_array_equal(next_token_probabilities(np.zeros(4), temperature=0), [1, 0, 0, 0])


@pytest.mark.parametrize("temperature", [1e-310, 1e-30, 1e30, math.inf])
def test_extreme_temperatures_and_logits(temperature: float) -> None:
    result = next_token_probabilities(np.array([-3e38, 2.0, 1.0, 3e38], np.float32), temperature)
    np.testing.assert_array_equal(result, [0.25] * 4 if temperature == math.inf else [0, 0, 0, 1])
    assert (np.diff(next_token_probabilities(np.array([1.0, 2.0, 3.0]), temperature)) >= 0).all()


# The loop


def test_greedy_generation_is_repeated_argmax(model: GPT2) -> None:
    text = [3, 1]
    for _ in range(12):  # past the context of 8, of which the model sees the last
        text.append(int(model(np.array([text[-8:]])).data[0, -1].argmax()))
    assert len(set(text)) > 2
    assert list(generate(model, [3, 1], 12, temperature=0)) == text[2:]
    assert list(generate(model, np.array([3, 1]), 12, temperature=0, seed=9)) == text[2:]


def test_a_prompt_longer_than_the_context(model: GPT2) -> None:
    prompt = [0, 5, 9, 9, 1, 2, 3, 4, 5, 6, 7]
    assert list(generate(model, prompt, 5, temperature=0)) == list(generate(model, prompt[-8:], 5, temperature=0))


def test_the_seed_decides_the_text(model: GPT2) -> None:
    texts = [tuple(generate(model, [1], 30, seed=seed)) for seed in (0, 0, 1, 2)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_tokens_come_as_often_as_the_model_says(model: GPT2) -> None:
    expected = next_token_probabilities(model(np.array([[4]])).data[0, -1], 1.5, top_k=5)
    counts = np.zeros(11)
    for seed in range(2000):
        [token] = generate(model, [4], 1, temperature=1.5, top_k=5, seed=seed)
        counts[token] += 1
    assert (counts[expected == 0] == 0).all()
    likely = expected > 0.01
    assert likely.sum() > 1
    spread = np.sqrt(expected * (1 - expected) / 2000)
    assert (np.abs(counts / 2000 - expected) <= 4.5 * spread + 1e-9).all()


def test_settings_reach_the_draw(model: GPT2) -> None:
    greedy = list(generate(model, [1], 20, temperature=0))
    assert list(generate(model, [1], 20, top_k=1, seed=5)) == greedy
    assert list(generate(model, [1], 20, top_p=1e-9, seed=5)) == greedy
    assert list(generate(model, [1], 20, temperature=1e-6, seed=5)) == greedy
    assert list(generate(model, [1], 20, min_p=1.0, seed=5)) == greedy
    assert len(set(generate(model, [1], 10, temperature=0, repetition_penalty=1e9))) > len(set(greedy[:10]))
    assert list(generate(model, [1], 20, seed=5)) != greedy


def test_it_stops_after_a_stop_token(model: GPT2) -> None:
    text = list(generate(model, [1], 30, seed=0))
    stop = text[5]
    assert list(generate(model, [1], 30, seed=0, stop=[stop])) == text[: text.index(stop) + 1]
    assert list(generate(model, [1], 30, seed=0, stop=[99])) == text
    assert list(generate(model, [1], 0)) == []


def test_it_leaves_the_model_and_the_random_stream_as_they_were(model: GPT2) -> None:
    model.drop.p = 0.5
    place = random.default.state()
    for mode in (True, False):
        model.train(mode)
        tokens = generate(model, [1], 30)
        next(tokens)
        assert not model.h[1].mlp.training  # while it runs, no dropout
        tokens.close()  # a reader that has seen enough
        assert all(module.training == mode for _, module in model.named_modules())
        list(generate(model, [1], 3))
        assert model.training == mode
    assert random.default.state() == place
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_that_raises_is_left_in_its_mode(model: GPT2) -> None:
    with pytest.raises(InputError, match="token id 11 is out of range"):
        list(generate(model, [11], 3))
    assert model.training


@pytest.mark.parametrize(
    ("ids", "settings", "message"),
    [
        ([], {}, "the prompt has no tokens"),
        ([1], {"max_tokens": -1}, "max_tokens is -1; give 0 or more"),
        ([1], {"temperature": -0.1}, "temperature is -0.1; give 0"),
        ([1], {"temperature": math.nan}, "temperature is nan"),
        ([1], {"top_k": 0}, "top_k is 0; give"),
        ([1], {"top_p": 0.0}, "top_p is 0.0; give"),
        ([1], {"top_p": 1.1}, "top_p is 1.1; give"),
        ([1], {"min_p": -0.1}, "min_p is -0.1; give"),
        ([1], {"min_p": 1.1}, "min_p is 1.1; give"),
        ([1], {"repetition_penalty": 0.0}, "repetition_penalty is 0.0; give more than 0"),
        ([1], {"seed": -1}, "seed is -1; give"),
        ([1], {"seed": 2**64}, "seed is 18446744073709551616; give"),
    ],
)
def test_settings_that_cannot_be_used(model: GPT2, ids, settings, message: str) -> None:
    with pytest.raises(InputError, match=f"^generate: {message}"):
        list(generate(model, ids, **{"max_tokens": 3, **settings}))
    with pytest.raises(InputError, match=f"^generate(_batch)?: {message}"):
        generate_batch(model, [[1], ids], **{"max_tokens": 3, **settings})


def test_a_setting_that_is_not_there(model: GPT2) -> None:
    with pytest.raises(TypeError, match="temprature"):
        list(generate(model, [1], 3, temprature=0))


# Several texts at once

DECODERS = {
    "gpt2": lambda: GPT2(GPT2Config(vocab_size=11, context=12, layers=2, heads=2, channels=12)),
    "llama": lambda: Llama(LlamaConfig(11, 12, layers=2, heads=4, kv_heads=2, channels=16, hidden=20)),
    "mistral": lambda: Llama(LlamaConfig(11, 12, layers=2, heads=4, kv_heads=2, channels=16, hidden=20, window=4)),
}


def made(name: str, dtype: str) -> GPT2 | Llama:
    minillm.manual_seed(4)
    model = DECODERS[name]().to(dtype)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 25
    return model.eval()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("name", DECODERS)
def test_a_padded_row_gets_the_logits_that_it_gets_alone(name: str, dtype: str, tolerance: float, rng) -> None:
    """Prompts of 1, 3 and 5 tokens, five more for each, one row dropped and one doubled on the way."""
    model = made(name, dtype)
    texts = [list(rng.integers(0, 11, size)) for size in (1, 5, 3)]
    padding = np.array([4, 0, 2])
    cache = model.new_cache(3, padding)
    new = np.array([[9] * pad + text for pad, text in zip(padding, texts, strict=True)])
    for step in range(6):
        with minillm.no_grad():
            together = model.next_logits(new, cache).data
            alone = np.concatenate([model.next_logits(np.array([text]), model.new_cache()).data for text in texts])
        assert np.abs(together - alone).max() <= tolerance * np.abs(alone).max()
        if step in (1, 3):
            rows = np.array([2, 0, 0] if step == 1 else [1, 0])
            texts = [list(texts[row]) for row in rows]
            for one in cache:
                one.select(rows)
        new = rng.integers(0, 11, (len(texts), 1))
        for text, [token] in zip(texts, new, strict=True):
            text.append(token)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    "settings", [{"temperature": 0}, {"temperature": 0.9, "top_k": 6}, {"repetition_penalty": 2.0}]
)
def test_a_batch_is_as_its_prompts_alone(name: str, settings) -> None:
    """Past the context too, and with texts that end at different times."""
    model = made(name, "float64")
    prompts = [[1], [2, 3, 4, 5, 6], [7, 8], list(range(10)), [0] * 15]
    [*_, last] = generate(model, prompts[-1], 6, seed=11, **settings)
    stop = [last, 3]
    alone = [list(generate(model, prompt, 14, seed=7 + i, stop=stop, **settings)) for i, prompt in enumerate(prompts)]
    assert len({len(text) for text in alone}) > 1
    assert generate_batch(model, prompts, 14, seed=7, stop=stop, **settings) == alone
    assert generate_batch(model, [], 14) == []
    assert generate_batch(model, prompts, 0) == [[]] * 5


def test_a_batch_leaves_the_model_as_it_was(model: GPT2) -> None:
    generate_batch(model, [[1], [2, 3]], 3)
    assert model.training
    with pytest.raises(InputError, match="token id 11 is out of range"):
        generate_batch(model, [[1], [11]], 3)
    assert model.training


@pytest.mark.parametrize("name", DECODERS)
def test_a_cache_goes_on_from_call_to_call(name: str) -> None:
    """A cache is kept as in a conversation, also beyond the context."""
    model = made(name, "float64")
    ids, cache = [1, 2, 3], model.new_cache()
    for more in ([], [4], [5, 6, 7], [8, 9], [1] * 3):
        ids += more
        expected = list(generate(model, ids, 2, temperature=0))
        seen, next_logits = [], model.next_logits
        model.next_logits = lambda new, *rest: seen.append(new.shape[1]) or next_logits(new, *rest)  # noqa: B023
        assert list(generate(model, ids, 2, temperature=0, cache=cache)) == expected
        del model.next_logits
        if len(ids) + 1 <= 12:  # what is new, and the last token before, which nothing had come after
            assert seen == [len(more) + 1 if len(ids) > 3 else 3, 1]
        ids += expected
    assert len(ids) > 12


# Text


class Words:
    """Each id stands for bytes that were given; as a byte-level tokenizer decodes."""

    def __init__(self, *words: bytes):
        self.words = words

    def encode(self, text: str) -> list[int]:
        return [self.words.index(text.encode())]

    def decode(self, ids) -> str:
        return b"".join(self.words[i] for i in ids).decode("utf-8", "replace")


class Says:
    """A model that goes on with given ids, whatever the prompt."""

    config = GPT2Config(vocab_size=10, context=50, channels=1, heads=1)
    training = False
    eos_ids = ()

    def __init__(self, *ids: int):
        self.ids = list(ids)

    def new_cache(self, batch: int):
        return [minillm.nn.KVCache(batch, 1, 50, 1, np.zeros(1))]

    def keeps_cache(self, start: int, stop: int) -> bool:
        return True

    def next_logits(self, ids, cache):
        cache[0].length += 1
        return minillm.tensor(np.eye(10)[[self.ids[cache[0].length - 1]]] * 100)

    def train(self, mode: bool = True) -> None: ...

    def eval(self) -> None: ...


COFFEE = Words(b"Go", b" on", "\u2615".encode()[:1], "\u2615".encode()[1:], b" ST", b"OP", b"S", b"END", b"\xff", b".")


@pytest.mark.parametrize(
    ("ids", "stop_strings", "pieces"),
    [
        ([1, 9], [], [" on", "."]),
        ([1, 2, 3, 9], [], [" on", "\u2615", "."]),  # a character of two tokens comes when it is whole
        ([1, 8, 9], [], [" on", "\ufffd."]),  # what turns out to be no character comes as U+FFFD
        ([1, 2], [], [" on", "\ufffd"]),
        ([1, 4, 5, 9], ["STOP"], [" on", " "]),
        ([1, 4, 6, 9], ["STOP"], [" on", " ", "ST", "S."]),  # it might have been
        ([1, 4, 5, 9], [" ON", "OP.", "P."], [" on", " ST"]),
        ([1, 4, 5, 9], ["O", "on STO"], [" "]),
        ([6, 4, 6, 4, 5, 9], ["S STOP"], ["S ST"]),  # the second S begins it
        ([9, 7, 9], [".END."], []),
        ([9, 7, 9], ["END"], ["."]),
        ([1, 9], [" on"], []),
    ],
)
def test_text_comes_in_pieces_and_ends_before_a_stop_string(ids, stop_strings, pieces) -> None:
    found = list(generate_text(Says(*ids), COFFEE, "Go", len(ids), stop_strings=stop_strings, temperature=0))
    assert found == pieces


def test_text_ends_before_a_stop_token() -> None:
    assert list(generate_text(Says(1, 9, 7, 9), COFFEE, [0], 4, stop=[7], temperature=0)) == [" on", "."]
    assert list(generate_text(Says(1, 2, 7, 9), COFFEE, [0], 4, stop=[7], temperature=0)) == [" on", "\ufffd"]
    with pytest.raises(InputError, match="a stop string is empty"):
        next(generate_text(Says(1), COFFEE, "Go", 1, stop_strings=["a", ""]))


@given(st.lists(st.integers(0, 9), max_size=12), st.lists(st.sampled_from(["STOP", "S", "END.", "on", "\u2615."])))
def test_pieces_are_the_text_up_to_the_first_stop_string(ids, stop_strings) -> None:
    pieces = list(generate_text(Says(*ids), COFFEE, "Go", len(ids), stop_strings=stop_strings, temperature=0))
    text = COFFEE.decode(ids)
    ends = [text.find(string) for string in stop_strings if string in text]
    assert "".join(pieces) == text[: min(ends, default=None)]
    assert all(pieces)


# Gaps

BERT = BertConfig(13, context=12, layers=2, heads=2, channels=16, hidden=24)
ROBERTA = RobertaConfig(13, context=12, layers=2, heads=2, channels=16, hidden=24)


@pytest.mark.parametrize("make", [lambda: BertForMaskedLM(BERT), lambda: RobertaForMaskedLM(ROBERTA)])
def test_gaps_are_filled_with_the_likeliest(make, rng) -> None:
    model = make()
    for parameter in model.parameters():
        parameter.data[...] = rng.normal(0, 0.3, parameter.shape)
    ids = np.array([3, 5, 9, 9, 2, 9, 4])
    logits = model.eval()(ids[None]).data[0].astype(np.float64)
    model.train()
    found = fill_mask(model, ids, mask_id=9, top_k=4)
    assert model.training
    assert len(found) == 3
    for guesses, row in zip(found, logits[[2, 3, 5]], strict=True):
        expected = np.exp(row) / np.exp(row).sum()
        assert [guess.id for guess in guesses] == np.argsort(-expected)[:4].tolist()
        np.testing.assert_allclose([guess.probability for guess in guesses], np.sort(expected)[:-5:-1], rtol=1e-5)
    kinds = np.array([[0, 0, 0, 1, 1, 1, 1]])
    if model.config.token_types > 1:
        assert fill_mask(model, ids, 9, token_types=kinds) != fill_mask(model, ids, 9)
    with pytest.raises(InputError, match="none of the ids is the mask token, 8"):
        fill_mask(model, ids, mask_id=8)
