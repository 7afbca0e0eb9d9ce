"""Models from .gguf files, which llama.cpp's package writes here; a real one is in test_real.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import minillm
from minillm.errors import CheckpointError, InputError
from minillm.gguf import NAMES
from minillm.models.llama import Llama, LlamaConfig
from minillm.ops import half_to_interleaved

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

CONFIGS = {
    "llama": LlamaConfig(19, 16, 2, 4, 2, 64, 96, rope_base=1e3),
    "tied": LlamaConfig(19, 16, 2, 4, 1, 64, 32, head_size=32, tied=True),
    "qwen2": LlamaConfig(19, 16, 2, 2, 2, 64, 96, qkv_bias=True, norm_eps=1e-6),
}


def random_model(config: LlamaConfig) -> Llama:
    model, rng = Llama(config), np.random.default_rng(0)
    for parameter in model.parameters():
        parameter.data[...] = rng.normal(0, 0.4, parameter.shape)
    return model


def write(path: Path, model: Llama, kind: str = "F32", change=lambda tensors: None, **fields) -> None:
    """The file that llama.cpp's converter would write, matrices in the given type."""
    config = model.config
    architecture = "qwen2" if config.qkv_bias else "llama"
    writer = gguf.GGUFWriter(path, fields.get("architecture", architecture))
    writer.add_context_length(config.context)
    writer.add_block_count(config.layers)
    writer.add_embedding_length(config.channels)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.key_heads)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    if config.head_size is not None:
        writer.add_key_length(config.head_size)
        writer.add_value_length(config.head_size)
    if "scaling" in fields:
        writer.add_rope_scaling_type(fields["scaling"])
    tensors: dict[str, np.ndarray] = {}
    for name, parameter in model.named_parameters():
        number = next((part for part in name.split(".") if part.isdigit()), "")
        theirs = NAMES[".".join("{i}" if part.isdigit() else part for part in name.split("."))]
        D = config.size_of_head
        cuts = np.cumsum([config.heads * D, config.key_heads * D]) if len(theirs) == 3 else []
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


@pytest.mark.parametrize(("kind", "error"), [("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 2e-2), ("Q4_1", 0.2)])
def test_quantised_types(kind, error, tmp_path) -> None:
    """As near as the type is, and not the numbers themselves."""
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


def test_what_is_not_done_here(tmp_path) -> None:
    model = random_model(CONFIGS["llama"])
    write(tmp_path / "other.gguf", model, architecture="gemma")
    with pytest.raises(InputError, match=r"there is no gemma here; what can be loaded of .gguf files: llama, qwen2"):
        minillm.load(tmp_path / "other.gguf")
    write(tmp_path / "stretched.gguf", model, scaling=gguf.RopeScalingType.YARN)
    with pytest.raises(InputError, match=r"stretches its rotary angles \(llama.rope.scaling.type\)"):
        minillm.load(tmp_path / "stretched.gguf")


def test_damaged_and_missing_files(tmp_path) -> None:
    path = tmp_path / "model.gguf"
    with pytest.raises(CheckpointError, match=r"model.gguf is not there; give a .gguf file"):
        minillm.load(path)
    write(path, random_model(CONFIGS["tied"]))
    data = path.read_bytes()
    for part in (0, 0.0001, 0.01, 0.3, 0.999):
        path.write_bytes(data[: int(part * len(data))])
        with pytest.raises(CheckpointError, match=r"is cut short or no .gguf file \(.*\); get it again"):
            minillm.load(path)
