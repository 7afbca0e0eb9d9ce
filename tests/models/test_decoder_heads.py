"""Decoders with a head for texts, as reward models have it: the last token alone, and Hugging Face's files."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from model_checks import (
    check_parameters,
    check_slopes,
    llama_in_float64,
    optimizers,
    relative_error,
    with_large_weights,
)

import minillm
from minillm.errors import InputError, ShapeError
from minillm.losses import bradley_terry_loss
from minillm.models import gpt2, llama
from minillm.models.gpt2 import GPT2Config
from minillm.models.heads import with_head
from minillm.models.llama import LlamaConfig

SMALL = LlamaConfig(19, context=12, layers=2, heads=4, kv_heads=2, channels=16, hidden=24, tied=False)
MODELS: dict[str, tuple[Any, str, Any]] = {
    "gpt2": (gpt2, "GPT2", GPT2Config(19, context=12, layers=2, heads=2, channels=16)),
    "llama": (llama, "Llama", SMALL),
    "qwen2": (llama, "Qwen2", replace(SMALL, tied=True, qkv_bias=True)),
}
HEAD = "ForSequenceClassification"
PADDING = 3


def built(name: str, dtype: Any = np.float64, **changes: Any) -> Any:
    """A model with weights so large that every part of it matters."""
    file, prefix, config = MODELS[name]
    kind = getattr(file, f"{prefix}{HEAD}", None) or getattr(file, f"Llama{HEAD}")
    return with_large_weights(kind(replace(config, **({"labels": 3, "padding_id": PADDING} | changes))).to(dtype))


def texts(rng: np.random.Generator, lengths: list[int]) -> np.ndarray:
    ids = rng.integers(4, 19, (len(lengths), 12))
    return np.where(np.arange(12) < np.array(lengths)[:, None], ids, PADDING)


@pytest.mark.parametrize("name", MODELS)
def test_the_last_token_alone_is_read(name: str, rng) -> None:
    model, lengths = built(name), np.array([12, 5, 1])
    ids = texts(rng, list(lengths))
    features = model.features(ids).data[np.arange(3), lengths - 1]
    expected = features @ model.state_dict()["score.weight"].T
    np.testing.assert_allclose(model(ids, lengths=lengths).data, expected, rtol=1e-12)
    np.testing.assert_allclose(model(ids).data, expected, rtol=1e-12)  # padding_id tells where each text ends
    other = np.where(ids == PADDING, 7, ids)
    np.testing.assert_allclose(model(other, lengths=lengths).data, expected, rtol=1e-12)
    whole = built(name, padding_id=None)
    np.testing.assert_allclose(whole(ids[:, :5]).data[1], expected[1], rtol=1e-12)
    ids[0, 4] = PADDING  # an id within a text ends nothing
    np.testing.assert_array_equal(model(ids).data, model(ids, lengths=lengths).data)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_a_reward(name: str, rng) -> None:
    model, lengths = built(name, labels=1), np.array([12, 5, 8, 9])
    ids = texts(rng, list(lengths))

    def loss() -> Any:
        rewards = model(ids, lengths=lengths)[:, 0]
        return bradley_terry_loss(rewards[:2], rewards[2:], centering=0.1).sum()

    check_slopes(model, loss, rng)


@pytest.mark.parametrize("name", MODELS)
def test_a_language_model_gets_a_head(name: str, rng) -> None:
    file, _, config = MODELS[name]
    body = with_large_weights((file.GPT2 if name == "gpt2" else file.Llama)(config))
    model = with_head(body, HEAD, labels=1)
    assert model.config.labels == 1
    ids = rng.integers(0, 19, (2, 7))
    np.testing.assert_array_equal(model.features(ids).data, body.features(ids).data)
    assert model(ids).shape == (2, 1)
    assert "lm_head.weight" not in model.state_dict()


def test_refusals(rng) -> None:
    model, ids = built("gpt2"), texts(rng, [12, 5])
    with pytest.raises(InputError, match=r"lengths are .*; give 1 to 12, the tokens of each text"):
        model(ids, lengths=[12, 0])
    with pytest.raises(ShapeError, match="lengths has B=3, but ids has B=2"):
        model(ids, lengths=[12, 5, 1])
    with pytest.raises(InputError, match="a decoder has no token_types and no attention_mask; give lengths"):
        model(ids, attention_mask=ids != PADDING)
    with pytest.raises(InputError, match="labels"):
        GPT2Config(labels=0)


@pytest.mark.parametrize("name", MODELS)
def test_saved_and_loaded(name: str, rng, tmp_path) -> None:
    model = built(name, np.float32, labels=1)
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["architectures"] == [f"{MODELS[name][1]}{HEAD}"]
    assert (len(values["id2label"]), values["pad_token_id"]) == (1, PADDING)
    ids = texts(rng, [12, 5])
    again = minillm.load(tmp_path)
    assert type(again) is type(model)
    np.testing.assert_array_equal(again(ids).data, model.eval()(ids).data)
    language_model = gpt2.GPT2(MODELS["gpt2"][2])
    language_model.save_pretrained(tmp_path / "plain")
    assert not {"id2label", "pad_token_id"} & json.loads((tmp_path / "plain" / "config.json").read_text()).keys()


@pytest.mark.oracle
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_logits_gradients_and_a_step_equal_hugging_faces(name, labels, dtype, tolerance, rng, tmp_path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = built(name, dtype, labels=labels)
    model.save_pretrained(tmp_path)
    reference, report = getattr(transformers, f"{MODELS[name][1]}{HEAD}").from_pretrained(
        tmp_path, dtype=getattr(torch, np.dtype(dtype).name), attn_implementation="sdpa", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    lengths = np.array([12, 5, 9, 12])
    ids = texts(rng, list(lengths))
    targets = rng.normal(size=4).astype(dtype) if labels == 1 else rng.integers(0, 3, 4)
    real = torch.tensor((np.arange(12) < lengths[:, None]).astype(int))
    if dtype == np.float64 and name != "gpt2":
        llama_in_float64(reference, model)
    expected = reference(torch.tensor(ids), attention_mask=real, labels=torch.tensor(targets))
    # AdamW divides by sqrt(v) + 1e-3: beside gradients of 100, the rounding of one near 0 would be a whole step.
    (expected.loss * 0.01).backward()
    received = model(ids, lengths=lengths)
    assert relative_error(received.numpy(), expected.logits.detach().numpy()) < tolerance
    loss = model.loss(ids, targets, lengths=lengths)
    (loss * 0.01).backward()
    assert loss.item() == pytest.approx(expected.loss.item(), rel=tolerance)
    check_parameters("grad", model, reference, tolerance)
    optimizer, their_optimizer = optimizers(model, reference)
    optimizer.step()
    their_optimizer.step()
    check_parameters("data", model, reference, tolerance)


@pytest.mark.oracle
@pytest.mark.parametrize("name", MODELS)
def test_what_transformers_writes_is_read(name, rng, tmp_path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    built(name, np.float32).save_pretrained(tmp_path / "ours")
    reference = getattr(transformers, f"{MODELS[name][1]}{HEAD}").from_pretrained(tmp_path / "ours")
    reference.save_pretrained(tmp_path / "theirs")
    ids = texts(rng, [12, 5])
    with torch.no_grad():
        theirs = reference(torch.tensor(ids))[0]
    assert relative_error(minillm.load(tmp_path / "theirs")(ids).numpy(), theirs.numpy()) < 1e-5
