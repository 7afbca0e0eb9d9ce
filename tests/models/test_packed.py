"""Several texts in one sequence: a decoder computes each as if it stood alone, and none touches another."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import minillm
from minillm.data.instructions import targets_of
from minillm.data.packing import best_fit_decreasing, rows_of
from minillm.engine import engine
from minillm.errors import InputError, ShapeError
from minillm.models.gemma import PRESETS as GEMMAS
from minillm.models.gemma import Gemma
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.models.llama import PRESETS as LLAMAS
from minillm.models.llama import Llama
from minillm.ops.rope_table import RopeScaling

small = dict(vocab_size=61, context=96, tied=False)
MODELS = {
    "gpt2": (GPT2, GPT2Config(**small, layers=2, heads=2, channels=16)),
    "llama, grouped heads": (Llama, dataclasses.replace(LLAMAS["nano"], **small)),
    "llama, window": (Llama, dataclasses.replace(LLAMAS["nano"], **small, window=5)),
    "qwen3": (Llama, dataclasses.replace(LLAMAS["nano"], **small, qk_norm=True, head_size=8)),
    "gemma 3, windows": (Gemma, dataclasses.replace(GEMMAS["nano"], **small)),
    "gemma 2, caps": (
        Gemma,
        dataclasses.replace(
            GEMMAS["nano"], **small, qk_norm=False, window_rope_base=None, attention_cap=3.0, logit_cap=5.0
        ),
    ),
}
LENGTHS = (7, 30, 1, 20, 12)  # of five texts, with the id that follows each text


def built(name: str, dtype: str = "float64"):
    minillm.manual_seed(3)
    kind, config = MODELS[name]
    model = kind(config).to(dtype)
    for parameter in model.parameters():  # far from uniform attention
        parameter.data *= 3 if parameter.ndim == 2 else 1
    return model


def examples(rng: np.random.Generator) -> list:
    """Texts, of which each has ids of its own, so that the rows of its gradients are its own."""
    return [
        targets_of(rng.integers(12 * number, 12 * number + 12, length + 1), np.arange(length + 1) >= min(3, length))
        for number, length in enumerate(LENGTHS)
    ]


@pytest.mark.parametrize("run", ["plain", "fast"])
@pytest.mark.parametrize("name", MODELS)
def test_packed_is_separate(name, run, rng):
    """Logits, and the sum of the losses with its gradients, are those of each text alone, added up."""
    model, texts = built(name), examples(rng)
    packs = best_fit_decreasing(LENGTHS, 50)
    assert sorted(map(len, packs)) == [2, 3]
    batch = rows_of([[texts[number] for number in pack] for pack in packs])
    with engine(run):
        logits = model(batch["ids"], batch["starts"]).data
        for row, pack in enumerate(packs):
            start = 0
            for number in pack:
                alone = model(texts[number].ids[None]).data[0]
                np.testing.assert_allclose(logits[row, start : start + len(alone)], alone, rtol=0, atol=1e-11)
                start += len(alone)
        loss = model.loss(batch["ids"], batch["targets"], "sum", batch["starts"])
        loss.backward()
        gradients = {name: p.grad.copy() for name, p in model.named_parameters()}
        model.zero_grad()
        total = 0.0
        for text in texts:
            one = model.loss(text.ids[None], text.targets[None], "sum")
            one.backward()
            total += one.item()
        np.testing.assert_allclose(loss.item(), total, rtol=1e-12)
        for path, parameter in model.named_parameters():
            np.testing.assert_allclose(gradients[path], parameter.grad, rtol=1e-9, atol=1e-11, err_msg=path)


@pytest.mark.parametrize("run", ["plain", "fast"])
@pytest.mark.parametrize("name", MODELS)
def test_an_id_of_one_text_changes_no_bit_of_another(name, run, rng):
    model, texts = built(name, "float32"), examples(rng)
    chosen = [0, 1, 3]
    batch = rows_of([[texts[number] for number in chosen]])
    middle = slice(7, 37)
    others = np.r_[0:7, 37:57]
    own = np.r_[0:12, 36:48]  # ids of the first and the third text alone

    def computed(ids: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
        model.zero_grad()
        with engine(run):
            logits = model(ids, batch["starts"]).data
            targets = batch["targets"].copy()
            targets[:, middle] = -100
            contribution = model.loss(ids, targets, "sum", batch["starts"]).item()
            model.loss(ids, batch["targets"], "sum", batch["starts"]).backward()
        return logits[0, others], contribution, model.wte.weight.grad[own].copy()

    before = computed(batch["ids"])
    for place in (7, 20, 36):
        ids = batch["ids"].copy()
        ids[0, place] = 12 + (ids[0, place] - 12 + 5) % 12
        after = computed(ids)
        np.testing.assert_array_equal(after[0], before[0])
        assert after[1] == before[1]
        np.testing.assert_array_equal(after[2], before[2])
        assert np.abs(after[2]).max() > 0


def test_without_starts_texts_do_touch_each_other(rng):
    """The planted fault: what `starts` is for."""
    model = built("llama, grouped heads")
    batch = rows_of([examples(rng)])
    apart = model.loss(batch["ids"], batch["targets"], "sum", batch["starts"]).item()
    assert abs(model.loss(batch["ids"], batch["targets"], "sum").item() - apart) > 0.01
    padding_as_one_text = np.zeros_like(batch["starts"])
    assert abs(model.loss(batch["ids"], batch["targets"], "sum", padding_as_one_text).item() - apart) > 0.01


def test_starts_that_do_not_fit(rng):
    model = built("gpt2")
    ids = np.zeros((2, 6), int)
    with pytest.raises(ShapeError, match=r"GPT2: starts have shape \(6,\), but ids \(2, 6\)"):
        model(ids, np.zeros(6, int))
    with pytest.raises(InputError, match="GPT2: starts are for texts without a cache"), minillm.no_grad():
        model.features(ids, model.new_cache(2), np.zeros_like(ids))
    scaling = RopeScaling("dynamic", original_context=8, factor=2.0)
    stretched = Llama(dataclasses.replace(LLAMAS["nano"], **small, rope_scaling=scaling))
    stretched(ids, np.zeros_like(ids))
    with pytest.raises(InputError, match="texts of different lengths have different angles beyond 8 tokens"):
        stretched(np.zeros((1, 9), int), np.zeros((1, 9), int))
