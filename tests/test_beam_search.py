"""Beam search: against all texts there are, and against transformers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import minillm
from minillm.beam_search import Hypothesis, beam_search
from minillm.errors import InputError
from minillm.generate import generate
from minillm.models.gpt2 import GPT2, GPT2Config


def model(seed: int = 3, vocab_size: int = 5) -> GPT2:
    minillm.manual_seed(seed)
    model = GPT2(GPT2Config(vocab_size, context=12, layers=2, heads=2, channels=12))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 20
    return model


def log_probability(model: GPT2, prompt: list[int], new: list[int]) -> float:
    """Sum of the log probabilities of the new tokens, each given all before it; without a cache."""
    logits = model.eval()(np.array([prompt + new])).data[0].astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return sum(logs[len(prompt) + place - 1, token] for place, token in enumerate(new))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_with_enough_beams_the_best_of_all_texts_is_found(length_penalty: float) -> None:
    """5 tokens, one of which ends a text, up to 4 of them: all 341 texts are compared."""
    for seed in range(4):
        one = model(seed)
        texts = [
            list(new)
            for length in range(1, 5)
            for new in itertools.product(range(5), repeat=length)
            if 0 not in new[:-1] and (new[-1] == 0 or length == 4)
        ]
        scores = [log_probability(one, [1, 2], new) / len(new) ** length_penalty for new in texts]
        [found] = beam_search(one, [[1, 2]], 4, beams=len(texts), length_penalty=length_penalty, stop=[0])
        order = np.argsort(scores)[::-1]
        assert [hypothesis.ids for hypothesis in found[:20]] == [texts[i] for i in order[:20]]
        np.testing.assert_allclose([hypothesis.score for hypothesis in found[:20]], np.array(scores)[order[:20]], 1e-4)


def test_one_beam_takes_the_likeliest_token_each_time() -> None:
    one = model()
    for prompt in ([1], [4, 3, 2]):
        [[found]] = beam_search(one, [prompt], 8, beams=1, length_penalty=0.0)
        assert found.ids == list(generate(one, prompt, 8, temperature=0))
        assert found.score == pytest.approx(log_probability(one, prompt, found.ids), rel=1e-4)


def test_more_beams_find_likelier_texts() -> None:
    """Not for every prompt, but on the whole; else the search would not search."""
    prompts = [[i, j] for i in range(5) for j in range(5)]
    best = [
        sum(found[0].score for found in beam_search(model(), prompts, 6, beams=beams, length_penalty=0.0))
        for beams in (1, 2, 8)
    ]
    assert best[0] < best[1] < best[2]


def test_a_batch_is_as_its_prompts_alone() -> None:
    """Prompts of different lengths, beyond the context of 12."""
    one, prompts = model().to("float64"), [[1], [2, 3, 4, 1, 2], [4, 4], [3] * 10, [2] * 14]
    together = beam_search(one, prompts, 6, beams=3, stop=[0])
    alone = [beam_search(one, [prompt], 6, beams=3, stop=[0])[0] for prompt in prompts]
    assert [[found.ids for found in each] for each in together] == [[found.ids for found in each] for each in alone]
    for ours, theirs in zip(itertools.chain(*together), itertools.chain(*alone), strict=True):
        assert ours.score == pytest.approx(theirs.score, rel=1e-12)
    assert beam_search(one, [], 6) == []


def test_results_are_sorted_end_in_a_stop_token_or_at_the_limit_and_are_all_different() -> None:
    one = model()
    for found in beam_search(one, [[1], [2], [3]], 5, beams=4, stop=[0, 2]):
        assert len(found) == 4
        assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
        assert len({tuple(each.ids) for each in found}) == 4
        for each in found:
            assert each.ids[-1] in (0, 2) or len(each.ids) == 5
            assert not {0, 2} & set(each.ids[:-1])
    assert one.training


def test_arguments_that_cannot_be_used() -> None:
    for settings, message in (
        ({"beams": 0}, "beam_search: beams is 0; give 1 or more"),
        ({"max_tokens": 0}, "beam_search: max_tokens is 0; give 1 or more"),
        ({"prompts": [[1], []]}, "the prompt has no tokens"),
    ):
        with pytest.raises(InputError, match=message):
            beam_search(model(), **{"prompts": [[1]], "max_tokens": 3, **settings})


@pytest.mark.oracle
@pytest.mark.parametrize("beams", [1, 2, 5])
@pytest.mark.parametrize("length_penalty", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("stop", [[], [0], [0, 7]])
def test_as_in_transformers(beams: int, length_penalty: float, stop: list[int], tmp_path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    one = model(vocab_size=11)
    one.save_pretrained(tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    for prompt in ([1], [2, 3, 4], [5, 6]):
        expected = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=int),
            max_new_tokens=7,
            do_sample=False,
            num_beams=beams,
            num_return_sequences=beams,
            length_penalty=length_penalty,
            eos_token_id=stop or None,
            pad_token_id=10,
            return_dict_in_generate=True,
            output_scores=True,
        )
        [found] = beam_search(one, [prompt], 7, beams=beams, length_penalty=length_penalty, stop=stop)
        if beams == 1:  # they search greedily then, and give no score
            assert found == [Hypothesis(found[0].ids, found[0].score)]
            sequences = expected.sequences.tolist()
        else:
            sequences = expected.sequences.tolist()
            np.testing.assert_allclose([each.score for each in found], expected.sequences_scores.numpy(), rtol=1e-4)
        for ours, sequence in zip(found, sequences, strict=True):
            assert ours.ids == sequence[len(prompt) :][: len(ours.ids)]
            assert set(sequence[len(prompt) + len(ours.ids) :]) <= {10}
        assert math.isfinite(found[0].score)
