"""Llamas and their tokenizers from a .gguf file, the format of llama.cpp, through the package `gguf`.

The package comes with `pip install ".[gguf]"`. Such a file holds the configuration, the tokenizer and the weights, most
of them quantised: blocks of 32 numbers share a scale. They are read from the memory-mapped file and written out as
floats, some rows at a time.

llama.cpp keeps the rows of a Llama's queries and keys in the order of layout "interleaved" (see ops/rope.py); here
they are put back into that of Hugging Face.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from minillm.backend import as_dtype
from minillm.errors import CheckpointError, InputError
from minillm.models.llama import Llama, LlamaConfig, rows_in_hugging_face
from minillm.nn import uninitialized
from minillm.ops.rope import interleaved_to_half
from minillm.tokenizers import BPETokenizer

# Of each parameter, with {i} for the number of the block; several are rows below each other in one of ours.
NAMES: dict[str, tuple[str, ...]] = {
    "wte.weight": ("token_embd.weight",),
    "h.{i}.ln_1.weight": ("blk.{i}.attn_norm.weight",),
    "h.{i}.attn.qkv.weight": ("blk.{i}.attn_q.weight", "blk.{i}.attn_k.weight", "blk.{i}.attn_v.weight"),
    "h.{i}.attn.qkv.bias": ("blk.{i}.attn_q.bias", "blk.{i}.attn_k.bias", "blk.{i}.attn_v.bias"),
    "h.{i}.attn.proj.weight": ("blk.{i}.attn_output.weight",),
    "h.{i}.ln_2.weight": ("blk.{i}.ffn_norm.weight",),
    "h.{i}.mlp.gate.weight": ("blk.{i}.ffn_gate.weight",),
    "h.{i}.mlp.up.weight": ("blk.{i}.ffn_up.weight",),
    "h.{i}.mlp.down.weight": ("blk.{i}.ffn_down.weight",),
    "ln_f.weight": ("output_norm.weight",),
    "lm_head.weight": ("output.weight",),
}
ARCHITECTURES = ("llama", "qwen2")  # the first with queries and keys in the other layout
PIECE = 1 << 20  # numbers written out at a time


def load_gguf(path: str | Path, dtype: Any = "float32") -> Llama:
    """The model in a .gguf file, in evaluation mode, its weights converted to `dtype`.

    Memory: the weights, and a few megabytes. Quantised types: those that the package `gguf` can write out.
    Raises: InputError without that package, or for another architecture; CheckpointError for a file that is missing,
    cut short or none of these, and one that lists every missing, unexpected and misshapen weight.
    """
    reader = _opened(Path(path))
    tensors, fields = _contents(path, reader)
    config = _config(fields, tensors)
    with uninitialized():
        model = Llama(config)
    _check(model, tensors, path)
    interleaved = fields["general.architecture"] == "llama"
    for name, parameter in model.named_parameters():
        start = 0
        for theirs, rows in _sources(model, name, len(parameter.data)):
            target = parameter.data[start : start + rows]
            _read(tensors[theirs], target, theirs)
            if interleaved and theirs.partition(".attn_")[2][:1] in ("q", "k"):
                target[...] = interleaved_to_half(target, config.size_of_head)
            start += rows
    if as_dtype(dtype) != np.float32:
        model.to(dtype)
    return model.eval()


def load_gguf_tokenizer(path: str | Path) -> BPETokenizer:
    """The tokenizer in a .gguf file, a byte-level BPE.

    Raises: InputError without the package `gguf`, or for another kind of tokenizer; CheckpointError for a damaged file.
    """
    reader = _opened(Path(path))
    try:
        fields = {key: field.contents() for key, field in reader.fields.items() if key.startswith("tokenizer.ggml.")}
    except Exception as error:
        raise CheckpointError(f"load: {path} is cut short or no .gguf file ({error}); get it again") from None
    return BPETokenizer.from_gguf_fields(fields)


def _opened(path: Path) -> Any:
    """The file, as the package `gguf` reads it."""
    try:
        import gguf
    except ImportError:
        raise InputError(
            'load: a .gguf file is read by the package gguf, which is missing; pip install "gguf"'
        ) from None
    if not path.is_file():
        raise CheckpointError(f"load: {path} is not there; give a .gguf file")
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # the package raises whatever the damage led to
        raise CheckpointError(f"load: {path} is cut short or no .gguf file ({error}); get it again") from None


def _contents(path: str | Path, reader: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors and the short fields of a file, by name."""
    try:
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        fields = {key: field.contents() for key, field in reader.fields.items() if len(field.data) == 1}
    except Exception as error:
        raise CheckpointError(f"load: {path} is cut short or no .gguf file ({error}); get it again") from None
    return tensors, fields


def _config(fields: dict[str, Any], tensors: dict[str, Any]) -> LlamaConfig:
    kind = fields.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise InputError(
            f"load: there is no {kind} here; what can be loaded of .gguf files: {', '.join(ARCHITECTURES)}"
        )
    refused = [key for key in fields if key.startswith(f"{kind}.rope.scaling.") and fields[key] not in ("none", 1.0)]
    refused += [name for name in tensors if name.startswith("rope_f")]
    if refused:
        raise InputError(f"load: the file stretches its rotary angles ({', '.join(refused)}), which is not done here")

    def field(name: str, default: Any = None) -> Any:
        value = fields.get(f"{kind}.{name}", default)
        if value is None:
            raise CheckpointError(f"load: the file has no field {kind}.{name}; get it again")
        return value

    heads, channels = field("attention.head_count"), field("embedding_length")
    head_size = field("attention.key_length", channels // heads)
    if field("attention.value_length", head_size) != head_size or field("rope.dimension_count", head_size) != head_size:
        raise InputError("load: keys, values and rotary angles of different sizes are not done here")
    table = tensors.get("token_embd.weight")
    return LlamaConfig(
        vocab_size=field("vocab_size") if table is None else int(table.shape[1]),
        context=field("context_length"),
        layers=field("block_count"),
        heads=heads,
        key_heads=field("attention.head_count_kv", heads),
        channels=channels,
        hidden=field("feed_forward_length"),
        head_size=None if head_size * heads == channels else head_size,
        rope_base=field("rope.freq_base", 10000.0),
        norm_eps=float(f"{field('attention.layer_norm_rms_epsilon'):.6g}"),  # 1e-5, kept in float32
        qkv_bias="blk.0.attn_q.bias" in tensors,
        tied="output.weight" not in tensors,
    )


def _sources(model: Llama, name: str, count: int) -> list[tuple[str, int]]:
    """The names in the file of a parameter of `count` rows, each with how many of them it is."""
    number = next((part for part in name.split(".") if part.isdigit()), "")
    theirs = NAMES[".".join("{i}" if part.isdigit() else part for part in name.split("."))]
    rows = rows_in_hugging_face(model.config, name) if len(theirs) > 1 else [count]
    return [(one.format(i=number), count) for one, count in zip(theirs, rows, strict=True)]


def _check(model: Llama, tensors: dict[str, Any], path: str | Path) -> None:
    problems, expected = [], set()
    for name, parameter in model.named_parameters():
        for theirs, rows in _sources(model, name, len(parameter.data)):
            expected.add(theirs)
            shape = (rows, *parameter.shape[1:])
            if theirs not in tensors:
                problems.append(f"missing {theirs}")
            elif tuple(map(int, tensors[theirs].shape[::-1])) != shape:
                problems.append(f"{theirs} has shape {tuple(map(int, tensors[theirs].shape[::-1]))}, expected {shape}")
    problems += [f"unexpected {name}" for name in tensors if name not in expected]
    if problems:
        raise CheckpointError(f"load: the weights in {path} do not fit its fields: {'; '.join(problems)}; get it again")


def _read(tensor: Any, target: np.ndarray, name: str) -> None:
    """Write a tensor out as floats, some rows at a time."""
    import gguf

    data = tensor.data.reshape(len(target), -1)  # floats, or the bytes of each row's blocks
    step = max(1, PIECE // max(1, target[:1].size))
    for start in range(0, len(target), step):
        rows = slice(start, start + step)
        try:
            values = gguf.dequantize(data[rows], tensor.tensor_type)
        except NotImplementedError:
            raise InputError(
                f"load: {name} has the type {tensor.tensor_type.name}, which the package gguf cannot write out"
            ) from None
        target[rows] = values.reshape(target[rows].shape)
