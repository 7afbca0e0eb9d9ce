"""Models from .gguf files, which llama.cpp's package writes here; a real one is in test_real.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import minillm
from minillm import hub
from minillm.errors import CheckpointError, InputError
from minillm.gguf import DIVISORS, NAMES, _scaling_of, read_config
from minillm.models import llama
from minillm.models.llama import Llama, LlamaConfig
from minillm.ops import half_to_interleaved
from minillm.ops.rope_table import RopeScaling

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

CONFIGS = {
    "llama": LlamaConfig(19, 16, 2, 4, 2, 64, 96, rope_base=1e3),
    "tied": LlamaConfig(19, 16, 2, 4, 1, 64, 32, head_size=32, tied=True),
    "qwen2": LlamaConfig(19, 16, 2, 2, 2, 64, 96, qkv_bias=True, norm_eps=1e-6),
    "qwen3": LlamaConfig(19, 16, 2, 4, 2, 64, 96, 32, qk_norm=True, norm_eps=1e-6),
    "biases": LlamaConfig(19, 16, 2, 4, 2, 64, 96, qkv_bias=True, proj_bias=True),
    "odd numbers": LlamaConfig(19, 16, 1, 2, 2, 64, 96, rope_base=123456.7, norm_eps=3e-6),
}
STRETCHED = {
    "linear": RopeScaling("linear", 2.6, 96),  # not a number of float32
    "yarn": RopeScaling("yarn", 4.0, 24),
    "yarn, all settings": RopeScaling("yarn", 8.0, 24, beta_fast=8.0, beta_slow=0.7, attention_factor=1.3),
    "llama3": RopeScaling("llama3", 8.0, 24, 1.0, 4.0),
    "Llama 3.1": RopeScaling("llama3", 8.0, 8192, 1.0, 4.0),
    "Llama 3.2": RopeScaling("llama3", 32.0, 8192, 1.0, 4.0),
}


def stretched(name: str, **changes) -> LlamaConfig:
    """A small model with heads large enough that their slowest pairs are stretched in full."""
    values = dict(vocab_size=19, context=96, layers=2, heads=2, kv_heads=1, channels=128, hidden=64, rope_base=5e5)
    return LlamaConfig(**(values | changes), rope_scaling=STRETCHED[name])


def divisors(scaling: RopeScaling, base: float, size: int) -> np.ndarray:
    """Compute the divisors like llama.cpp's converter, in float32."""
    found = []
    for frequency in 1 / np.float32(base) ** (np.arange(0, size, 2, dtype=np.float32) / np.float32(size)):
        length = np.float32(2 * np.pi) / frequency
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        if length < scaling.original_context / high:
            found.append(1)
        elif length > scaling.original_context / low:
            found.append(scaling.factor)
        else:
            smooth = (scaling.original_context / length - low) / (high - low)
            found.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return np.array(found, np.float32)


def random_model(config: LlamaConfig) -> Llama:
    model, rng = Llama(config), np.random.default_rng(0)
    for parameter in model.parameters():
        parameter.data[...] = rng.normal(0, 0.4, parameter.shape)
    return model


def write(path: Path, model: Llama, kind: str = "F32", change=lambda tensors: None, **fields) -> None:
    """The file that llama.cpp's converter would write, matrices in the given type."""
    config = model.config
    architecture = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias and not config.proj_bias else "llama"
    writer = gguf.GGUFWriter(path, fields.get("architecture", architecture))
    writer.add_context_length(config.context)
    writer.add_block_count(config.layers)
    writer.add_embedding_length(config.channels)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(fields.pop("kv_heads", config.kv_heads))
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    if config.head_size is not None:
        writer.add_key_length(config.head_size)
        writer.add_value_length(config.head_size)
    tensors: dict[str, np.ndarray] = {}
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "llama3":
        tensors[DIVISORS] = divisors(scaling, config.rope_base, config.size_of_head)
    elif scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling.kind))
        writer.add_rope_scaling_factor(scaling.factor)
        if scaling.kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(scaling.original_context)
        if scaling.attention_factor is not None:
            writer.add_rope_scaling_yarn_attn_factor(scaling.attention_factor)
            writer.add_rope_scaling_yarn_beta_fast(scaling.beta_fast)
            writer.add_rope_scaling_yarn_beta_slow(scaling.beta_slow)
    for key, value in fields.pop("tokens", {}).items():
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", value)
    for key, value in fields.items():
        if key.startswith("rope."):
            add = writer.add_string if isinstance(value, str) else writer.add_float32
            add(f"{architecture}.{key}", value)
    for name, parameter in model.named_parameters():
        number = next((part for part in name.split(".") if part.isdigit()), "")
        theirs = NAMES[".".join("{i}" if part.isdigit() else part for part in name.split("."))]
        D = config.size_of_head
        cuts = np.cumsum([config.heads * D, config.kv_heads * D]) if len(theirs) == 3 else []
        for one, piece in zip(theirs, np.split(parameter.data, cuts), strict=True):
            if architecture == "llama" and (".attn_q." in one or ".attn_k." in one):
                piece = half_to_interleaved(piece, D)
            tensors[one.format(i=number)] = np.ascontiguousarray(piece)
    change(tensors)
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and kind != "F32":
            quantised = getattr(gguf.GGMLQuantizationType, kind)
            writer.add_tensor(name, gguf.quantize(tensor, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_comes_back(name, tmp_path) -> None:
    model = random_model(CONFIGS[name])
    write(tmp_path / "model.gguf", model)
    loaded = minillm.load(tmp_path / "model.gguf")
    assert loaded.config == model.config
    assert not loaded.training
    for (key, ours), theirs in zip(model.named_parameters(), loaded.parameters(), strict=True):
        np.testing.assert_array_equal(ours.data, theirs.data, err_msg=key)
    assert minillm.load(tmp_path / "model.gguf", "float64").wte.weight.dtype == np.float64


def test_numbers_of_each_block(tmp_path) -> None:
    """A field may have a number for each block: one that is the same in all, as here it must be."""
    model, path = random_model(CONFIGS["llama"]), tmp_path / "model.gguf"
    write(path, model, kv_heads=[2, 2])
    assert minillm.load(path).config == model.config == read_config(path)
    for wrong in ([2, 4], [2, 2, 1]):
        write(path, model, kv_heads=wrong)
        with pytest.raises(
            InputError, match=r"has llama.attention.head_count_kv=\[2, .*\], not the same in all blocks"
        ):
            minillm.load(path)
    for wrong in (0, [0, 0]):
        write(path, model, kv_heads=wrong)
        with pytest.raises(CheckpointError, match="head_count_kv=0, expected a whole number, 1 or more"):
            read_config(path)


@pytest.mark.parametrize(
    ("tokens", "config", "ends"),
    [
        ({"bos": 1, "eos": 2, "padding": 3}, {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}, (2,)),
        ({"eos": 2, "eot": 5}, {"eos_token_id": [2, 5]}, (2, 5)),
        ({"eos": 5, "eot": 5}, {"eos_token_id": 5}, (5,)),
        ({}, {}, ()),
    ],
)
def test_ids_that_begin_and_end_a_text_are_kept(tokens, config, ends, tmp_path) -> None:
    write(tmp_path / "model.gguf", random_model(CONFIGS["llama"]), tokens=tokens)
    model = minillm.load(tmp_path / "model.gguf")
    assert model.eos_ids == ends
    model.save_pretrained(tmp_path / "hf")
    values = hub.read_config(tmp_path / "hf")
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    assert {key: values[key] for key in keys} == dict.fromkeys(keys) | config
    assert minillm.load(tmp_path / "hf").eos_ids == ends


@pytest.mark.parametrize(("kind", "error"), [("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 2e-2), ("Q4_1", 0.2)])
def test_quantised_types(kind, error, tmp_path) -> None:
    """The weights are as near as the quantised type allows, but not equal."""
    model = random_model(CONFIGS["llama"])
    write(tmp_path / "model.gguf", model, kind)
    for ours, theirs in zip(model.parameters(), minillm.load(tmp_path / "model.gguf").parameters(), strict=True):
        difference = np.abs(ours.data - theirs.data).max() / np.abs(ours.data).max()
        assert difference < error
        assert (difference > 0) == (ours.ndim == 2)


def test_one_error_lists_all_that_does_not_fit(tmp_path) -> None:
    def change(tensors):
        del tensors["blk.1.attn_k.weight"]
        tensors["output_norm.weight"] = np.zeros(7, np.float32)
        tensors["blk.2.ffn_up.weight"] = np.zeros((96, 64), np.float32)

    write(tmp_path / "model.gguf", random_model(CONFIGS["llama"]), change=change)
    with pytest.raises(CheckpointError) as caught:
        minillm.load(tmp_path / "model.gguf")
    for part in (
        "missing blk.1.attn_k.weight",
        "output_norm.weight has shape (7,), expected (64,)",
        "unexpected blk.2.ffn_up.weight",
    ):
        assert part in str(caught.value)
    assert f"{tmp_path / 'model.gguf'} do not fit its fields: missing" in str(caught.value)
    assert str(caught.value).endswith("; get the files again, or those of one model")


def test_what_is_not_done_here(tmp_path) -> None:
    model = random_model(CONFIGS["llama"])
    write(tmp_path / "other.gguf", model, architecture="gemma")
    with pytest.raises(InputError, match=r"there is no gemma here; what can be loaded of .gguf files: llama, qwen2"):
        minillm.load(tmp_path / "other.gguf")


@pytest.mark.parametrize("name", STRETCHED)
@pytest.mark.parametrize("changes", [{}, {"qkv_bias": True, "rope_base": 1e6}], ids=["llama", "qwen2"])
def test_stretched_angles_are_those_of_hugging_faces_files(name, changes, tmp_path, rng) -> None:
    model = random_model(stretched(name, **changes))
    write(tmp_path / "model.gguf", model)
    model.save_pretrained(tmp_path / "hf")
    loaded, same = minillm.load(tmp_path / "model.gguf"), minillm.load(tmp_path / "hf")
    assert loaded.config == same.config == model.config == read_config(tmp_path / "model.gguf")
    ids = rng.integers(0, 19, (2, 96))
    np.testing.assert_array_equal(loaded(ids).data, same(ids).data)
    plain = Llama(dataclasses.replace(model.config, rope_scaling=None)).eval()
    plain.load_state_dict(model.state_dict())
    assert np.abs(plain(ids).data - same(ids).data).max() > 1e-4  # the angles matter


@pytest.mark.oracle
@pytest.mark.parametrize("name", STRETCHED)
def test_logits_with_stretched_angles_equal_those_of_transformers(name, tmp_path, rng) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = random_model(stretched(name))
    write(tmp_path / "model.gguf", model)
    model.save_pretrained(tmp_path / "hf")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    ids = rng.integers(0, 19, (2, 96))
    with torch.no_grad():
        expected = reference(torch.tensor(ids)).logits.numpy()
        tables = reference.model.rotary_emb(torch.zeros(1), torch.arange(96)[None])
    loaded = minillm.load(tmp_path / "model.gguf")
    received = loaded(ids).data
    assert np.abs(received - expected).max() / np.abs(expected).max() < 5e-5
    atol = 1.3 * 96 * 2 * 2.0**-24  # of 96 radians, whose frequency and product are rounded to float32 there
    ours_tables = llama.cos_sin_tables(loaded.config.size_of_head, *loaded.config.rope(False), 0, 96)
    for ours, theirs in zip(ours_tables, tables, strict=True):
        np.testing.assert_allclose(ours, theirs[0, :, : ours.shape[1]].numpy(), rtol=1e-6, atol=atol)


@given(
    factor=st.sampled_from([1.5, 2.0, 3.3, 8.0, 16.0, 32.0, 64.0]),
    original=st.just(8192) | st.integers(200, 200000),
    base=st.sampled_from([1e4, 3e5, 5e5, 1e6]),
    size=st.sampled_from([64, 80, 96, 128, 256]),
)
def test_the_settings_of_llama_3_are_recovered_from_the_divisors(factor, original, base, size) -> None:
    scaling = RopeScaling("llama3", factor, original, 1.0, 4.0)
    written = divisors(scaling, base, size)
    assume(written[-1] == np.float32(factor))
    found = _scaling_of(written.astype(float), base)
    assert found._replace(original_context=original) == scaling
    assert found.original_context == pytest.approx(original, rel=1e-6 * factor, abs=0.5)
    frequency = base ** (-np.arange(size // 2) / (size // 2))
    for one, other in zip(found.applied(frequency, base), scaling.applied(frequency, base), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6 * factor)
    if original <= 10000:
        assert found == scaling


@pytest.mark.parametrize("pair", range(32))
def test_divisors_that_cannot_be_reproduced(pair, tmp_path) -> None:
    """Each of them changed by a thousandth, and by other bounds altogether."""

    def change(tensors):
        tensors[DIVISORS][pair] *= 1.001

    write(tmp_path / "model.gguf", random_model(stretched("Llama 3.1", layers=1)), change=change)
    with pytest.raises(InputError, match=r"rope_freqs.weight cannot be reproduced by the scaling of Llama 3"):
        minillm.load(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    "wrong",
    [
        divisors(RopeScaling("llama3", 8.0, 8192, 1.0, 5.0), 5e5, 64),
        divisors(RopeScaling("llama3", 8.0, 8192, 2.0, 4.0), 5e5, 64),
        divisors(RopeScaling("llama3", 8.0, 8192, 1.0, 4.0), 1e6, 64),
        divisors(RopeScaling("llama3", 8.0, 8192, 1.0, 4.0), 5e5, 64)[::-1],
        np.full(32, 2.0),
        np.full(32, 0.5),
        np.zeros(32),
        -np.ones(32),
        np.full(32, np.nan),
        np.r_[np.ones(31), np.inf],
        np.r_[np.ones(31), 0],
    ],
)
def test_other_divisors(wrong) -> None:
    with pytest.raises(InputError, match=r"rope_freqs.weight cannot be reproduced.*; load the model from Hugging Face"):
        _scaling_of(np.array(wrong, float), 5e5)


def test_divisors_of_one_and_of_another_size(tmp_path) -> None:
    config = stretched("Llama 3.1", layers=1)
    for number, expected in ((32, None), (31, "has 31 numbers, but a head has 32 pairs; get the file again")):

        def change(tensors, number=number):
            tensors[DIVISORS] = np.ones(number, np.float32)

        write(tmp_path / "model.gguf", random_model(config), change=change)
        if expected is None:
            assert read_config(tmp_path / "model.gguf") == dataclasses.replace(config, rope_scaling=None)
        else:
            with pytest.raises(CheckpointError, match=expected):
                read_config(tmp_path / "model.gguf")


FIELDS = {  # fields, and the scaling that they are, or the part of an error
    "none": ({"type": "none", "factor": 4.0}, None),
    "factor 1": ({"type": "yarn", "factor": 1.0}, None),
    "factor 0": ({"type": "linear", "factor": 0.0}, None),
    "nothing": ({"attn_factor": 1.0, "yarn_ext_factor": 1.0, "yarn_log_multiplier": 0.0}, None),
    "without a type": ({"factor": 4.0}, RopeScaling("linear", 4.0, 16)),
    "without an original context": ({"type": "yarn", "factor": 4.0}, RopeScaling("yarn", 4.0, 16)),
    "attention": (
        {"type": "yarn", "factor": 4.0, "attn_factor": 2.0},
        RopeScaling("yarn", 4.0, 16, attention_factor=2 * (0.1 * np.log(4) + 1)),
    ),
    "attention, twice": (
        {"type": "yarn", "factor": 4.0, "attn_factor": 2.0, "yarn_attn_factor": 1.5},
        RopeScaling("yarn", 4.0, 16, attention_factor=3.0),
    ),
    "attention alone": (
        {"type": "yarn", "yarn_attn_factor": 1.5},
        RopeScaling("yarn", 1.0, 16, attention_factor=1.5),
    ),
    "another type": ({"type": "longrope", "factor": 4.0}, r"llama.rope.scaling.type longrope\)"),
    "attention of none": ({"type": "none", "attn_factor": 2.0}, "llama.rope.scaling.attn_factor"),
    "attention of linear": ({"factor": 4.0, "attn_factor": 2.0}, "llama.rope.scaling.attn_factor"),
    "betas of linear": ({"factor": 4.0, "yarn_beta_fast": 32.0}, "llama.rope.scaling.yarn_beta_fast"),
    "mixing": ({"type": "yarn", "factor": 4.0, "yarn_ext_factor": 0.5}, "llama.rope.scaling.yarn_ext_factor"),
    "DeepSeek's": ({"type": "yarn", "factor": 4.0, "yarn_log_multiplier": 0.1}, "yarn_log_multiplier"),
    "unknown": ({"new": 1.0}, "llama.rope.scaling.new"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_rotary_angles(name, tmp_path) -> None:
    given, expected = FIELDS[name]
    write(
        tmp_path / "model.gguf",
        random_model(CONFIGS["llama"]),
        **{f"rope.scaling.{key}": value for key, value in given.items()},
    )
    if not isinstance(expected, str):
        assert minillm.load(tmp_path / "model.gguf").config.rope_scaling == expected
        return
    with pytest.raises(InputError, match=rf"stretches its rotary angles \(.*{expected}.*which is not supported"):
        minillm.load(tmp_path / "model.gguf")


def test_fields_that_old_files_have_and_two_ways_at_once(tmp_path) -> None:
    path = tmp_path / "model.gguf"
    write(path, random_model(CONFIGS["llama"]), **{"rope.scale_linear": 4.0})
    assert read_config(path).rope_scaling == RopeScaling("linear", 4.0, 16)
    write(path, random_model(stretched("Llama 3.1", layers=1)), **{"rope.scaling.factor": 2.0})
    with pytest.raises(InputError, match=r"llama.rope.scaling.factor together with rope_freqs.weight"):
        minillm.load(path)

    def change(tensors):
        tensors["rope_factors_long.weight"] = np.ones(8, np.float32)

    write(path, random_model(CONFIGS["llama"]), change=change)
    with pytest.raises(InputError, match=r"stretches its rotary angles \(rope_factors_long.weight\)"):
        minillm.load(path)


def test_damaged_and_missing_files(tmp_path) -> None:
    path = tmp_path / "model.gguf"
    with pytest.raises(CheckpointError, match=r"model.gguf is not there; give a .gguf file"):
        minillm.load(path)
    write(path, random_model(CONFIGS["tied"]))
    data = path.read_bytes()
    for part in (0, 0.0001, 0.01, 0.3, 0.999):
        path.write_bytes(data[: int(part * len(data))])
        with pytest.raises(CheckpointError, match=r"is cut short or not a .gguf file \(.*\); get it again"):
            minillm.load(path)
