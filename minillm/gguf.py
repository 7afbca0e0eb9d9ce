"""Load Llamas and their tokenizers from a .gguf file, the format of llama.cpp, with the package `gguf`.

The package comes with `pip install ".[gguf]"`. Such a file holds the configuration, the tokenizer and the weights, most
of them quantised: blocks of 32 numbers share a scale. They are read from the memory-mapped file and dequantised to
floats, some rows at a time.

llama.cpp keeps the rows of a Llama's queries and keys in the order of layout "interleaved" (see ops/rope.py); here
they are put back into Hugging Face's order.

Rotary angles may be stretched to a longer context (`RopeScaling`). For "linear" and "yarn" the file has the settings,
as fields. For "llama3", which Llama 3.1 and its successors use, it has only the result, a tensor of the divisors of the
frequencies. The settings are recovered from it, or else the file is refused. A field that is not supported
is refused by name, for a model whose angles are a little wrong still speaks, only worse.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from minillm.dtypes import as_dtype
from minillm.errors import CheckpointError, InputError
from minillm.models.llama import Llama, LlamaConfig, rows_in_hugging_face
from minillm.nn import uninitialized
from minillm.ops.rope_table import RopeScaling, interleaved_to_half
from minillm.pretrained import SavedWith, keep
from minillm.stored import check_weights_are_numbers
from minillm.tokenizers import BPETokenizer, SentencePieceBPE
from minillm.weights import build_model, check_weights, pieces

# For each parameter, with {i} for the block's number, its names in the file; the rows of several are joined in ours.
NAMES: dict[str, tuple[str, ...]] = {
    "wte.weight": ("token_embd.weight",),
    "h.{i}.ln_1.weight": ("blk.{i}.attn_norm.weight",),
    "h.{i}.attn.qkv.weight": ("blk.{i}.attn_q.weight", "blk.{i}.attn_k.weight", "blk.{i}.attn_v.weight"),
    "h.{i}.attn.qkv.bias": ("blk.{i}.attn_q.bias", "blk.{i}.attn_k.bias", "blk.{i}.attn_v.bias"),
    "h.{i}.attn.q_norm.weight": ("blk.{i}.attn_q_norm.weight",),
    "h.{i}.attn.k_norm.weight": ("blk.{i}.attn_k_norm.weight",),
    "h.{i}.attn.proj.weight": ("blk.{i}.attn_output.weight",),
    "h.{i}.attn.proj.bias": ("blk.{i}.attn_output.bias",),
    "h.{i}.ln_2.weight": ("blk.{i}.ffn_norm.weight",),
    "h.{i}.mlp.gate.weight": ("blk.{i}.ffn_gate.weight",),
    "h.{i}.mlp.up.weight": ("blk.{i}.ffn_up.weight",),
    "h.{i}.mlp.down.weight": ("blk.{i}.ffn_down.weight",),
    "ln_f.weight": ("output_norm.weight",),
    "lm_head.weight": ("output.weight",),
}
ARCHITECTURES = ("llama", "qwen2", "qwen3")  # the first has queries and keys in the other layout
PIECE = 1 << 20  # numbers dequantised at a time
DIVISORS = "rope_freqs.weight"  # of the frequencies of rotary angles, (D/2,)
YARN = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow", "yarn_attn_factor": "attention_factor"}
# Fields that have no effect if they have these values.
WITHOUT_EFFECT = {"attn_factor": 1.0, "yarn_ext_factor": 1.0, "yarn_log_multiplier": 0.0}


def load_gguf(path: str | Path, dtype: Any = "float32") -> Llama:
    """Load the model in a .gguf file, in evaluation mode, with its weights converted to `dtype`.

    Memory: the weights, and a few megabytes. Quantised types: those that the package `gguf` can dequantise.
    Raises: InputError without that package, or for another architecture; CheckpointError for a file that is missing,
    cut short or not a .gguf file, and one that lists every missing, unexpected and misshapen weight.
    """
    tensors, fields = _contents(Path(path))
    config = _config(fields, tensors)
    with uninitialized():
        model = build_model(path, Llama, config)
    parts = pieces(model, NAMES, rows_in_hugging_face)
    found = {name: tuple(map(int, tensor.shape[::-1])) for name, tensor in tensors.items() if name != DIVISORS}
    check_weights(path, "fields", {part.name: part.shape for part in parts}, found)
    interleaved = fields["general.architecture"] == "llama"
    for part in parts:
        _read(tensors[part.name], part.rows, part.name)
        check_weights_are_numbers(f"load: {path}", part.name, part.rows)
        if interleaved and part.name.partition(".attn_")[2][:1] in ("q", "k"):
            part.rows[...] = interleaved_to_half(part.rows, config.size_of_head)
    if as_dtype(dtype) != np.float32:
        model.to(dtype)
    ids = _token_ids(fields)
    keep(model, SavedWith(ids, {key: i for key, i in ids.items() if i is not None}))
    return model.eval()


def read_config(path: str | Path) -> LlamaConfig:
    """Read the configuration of the model in a .gguf file, but no weights.

    Raises: InputError without the package `gguf`, for another architecture, or for rotary angles that are not
    supported; CheckpointError for a damaged file.
    """
    tensors, fields = _contents(Path(path))
    return _config(fields, tensors)


def read_field(path: str | Path, name: str) -> Any:
    """The value of a field of a .gguf file, or None if it has no such field."""
    field = _opened(Path(path)).fields.get(name)
    return None if field is None else field.contents()


def load_gguf_tokenizer(path: str | Path) -> BPETokenizer | SentencePieceBPE:
    """Load the tokenizer in a .gguf file: a byte-level BPE, or SentencePiece's.

    Raises: InputError without the package `gguf`, or for another kind of tokenizer; CheckpointError for a damaged file.
    """
    reader = _opened(Path(path))
    try:
        fields = {key: field.contents() for key, field in reader.fields.items() if key.startswith("tokenizer.ggml.")}
    except Exception as error:
        raise CheckpointError(f"load: {path} is cut short or not a .gguf file ({error}); get it again") from None
    kind = SentencePieceBPE if fields.get("tokenizer.ggml.model") == "llama" else BPETokenizer
    return kind.from_gguf_fields(fields)


def _opened(path: Path) -> Any:
    """Open the file with the package `gguf`."""
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
        raise CheckpointError(f"load: {path} is cut short or not a .gguf file ({error}); get it again") from None


def _contents(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors and the fields of a file by name, without the tokenizer's lists."""
    reader = _opened(path)
    try:
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        fields = {
            key: field.contents()
            for key, field in reader.fields.items()
            if len(field.data) == 1 or not key.startswith("tokenizer.")  # whose lists are long
        }
    except Exception as error:
        raise CheckpointError(f"load: {path} is cut short or not a .gguf file ({error}); get it again") from None
    return tensors, fields


def _config(fields: dict[str, Any], tensors: dict[str, Any]) -> LlamaConfig:
    kind = fields.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise InputError(
            f"load: there is no {kind} here; what can be loaded of .gguf files: {', '.join(ARCHITECTURES)}"
        )

    def field(name: str, default: Any = None) -> Any:
        value = fields.get(f"{kind}.{name}", default)
        if isinstance(value, list) and value and all(one == value[0] for one in value):  # a list with a value per block
            value = value[0]
        if isinstance(value, list):
            raise InputError(
                f"load: the file has {kind}.{name}={value}, not the same in all blocks, which is not supported"
            )
        if value is None:
            raise CheckpointError(f"load: the file has no field {kind}.{name}; get it again")
        return value

    def count(name: str, default: Any = None) -> int:
        value = field(name, default)
        if not isinstance(value, int) or value < 1:
            raise CheckpointError(f"load: the file has {kind}.{name}={value!r}, expected a whole number, 1 or more")
        return value

    heads, channels = count("attention.head_count"), count("embedding_length")
    head_size = count("attention.key_length", channels // heads)
    if field("attention.value_length", head_size) != head_size or field("rope.dimension_count", head_size) != head_size:
        raise InputError("load: keys, values and rotary angles of different sizes are not supported")
    table, context, base = tensors.get("token_embd.weight"), count("context_length"), field("rope.freq_base", 10000.0)
    return LlamaConfig(
        vocab_size=count("vocab_size") if table is None else int(table.shape[1]),
        context=context,
        layers=count("block_count"),
        heads=heads,
        kv_heads=count("attention.head_count_kv", heads),
        channels=channels,
        hidden=count("feed_forward_length"),
        head_size=None if head_size * heads == channels else head_size,
        rope_base=_as_written(base),
        rope_scaling=_scaling(kind, fields, tensors, context, _as_written(base), head_size),
        norm_eps=_as_written(field("attention.layer_norm_rms_epsilon")),
        qkv_bias="blk.0.attn_q.bias" in tensors,
        tied="output.weight" not in tensors,
        proj_bias="blk.0.attn_output.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
    )


def _token_ids(fields: dict[str, Any]) -> dict[str, Any]:
    """The ids that begin, end and pad a text, by their names in a config.json; a turn may end with another id."""
    found = {
        f"{theirs}_token_id": fields.get(f"tokenizer.ggml.{ours}_token_id")
        for theirs, ours in {"bos": "bos", "eos": "eos", "pad": "padding", "eot": "eot"}.items()
    }
    ends = list(dict.fromkeys(one for one in (found["eos_token_id"], found.pop("eot_token_id")) if one is not None))
    found["eos_token_id"] = ends if len(ends) > 1 else ends[0] if ends else None
    return found


def _as_written(value: float) -> float:
    """The shortest decimal number with this float32 value: 1e-5 for 9.99999974738e-06."""
    return float(str(np.float32(value)))


def _scaling(
    kind: str, fields: dict[str, Any], tensors: dict[str, Any], context: int, base: float, head_size: int
) -> RopeScaling | None:
    """The scaling of the angles, by the fields rope.scaling.* or the tensor of divisors; None if there is none.

    cos and sin of "yarn" are multiplied by yarn_attn_factor, Hugging Face's attention_factor, or where that is missing
    by 0.1 log(factor) + 1; and by attn_factor. (llama.cpp writes yarn_attn_factor, but ignores it in these models.)
    Source: llama.cpp (set_gguf_parameters and generate_extra_tensors of its converter, load_hparams, rope_yarn).
    """
    prefix = f"{kind}.rope.scaling."
    given = {key.removeprefix(prefix): value for key, value in fields.items() if key.startswith(prefix)}
    way = given.pop("type", "linear")
    factor = given.pop("factor", fields.get(f"{kind}.rope.scale_linear")) or 1.0  # an old name; 0 means no factor
    factor = _as_written(factor) if way != "none" else 1.0
    original = given.pop("original_context_length", context)
    given.pop("finetuned", None)  # only says how the model was trained
    refused = [] if way in ("none", "linear", "yarn") else [f"{prefix}type {way}"]
    settings: dict[str, Any] = {}
    if way == "yarn":
        settings = {ours: _as_written(given.pop(theirs)) for theirs, ours in YARN.items() if theirs in given}
        more = _as_written(given.pop("attn_factor", 1.0))
        if more != 1:
            settings["attention_factor"] = more * settings.get("attention_factor", 0.1 * float(np.log(factor)) + 1)
    refused += [prefix + key for key, value in given.items() if value != WITHOUT_EFFECT.get(key)]
    refused += [name for name in tensors if name.startswith("rope_f") and name != DIVISORS]
    stretched = factor != 1 or settings.get("attention_factor", 1.0) != 1
    if stretched and DIVISORS in tensors:
        refused.append(f"{prefix}factor together with {DIVISORS}")
    if refused:
        raise InputError(f"load: the file stretches its rotary angles ({', '.join(refused)}), which is not supported")
    if DIVISORS in tensors:
        return _scaling_of(_divisors(tensors[DIVISORS], head_size // 2), base)
    return RopeScaling(way, factor, original, **settings) if stretched else None


def _divisors(tensor: Any, pairs: int) -> np.ndarray:
    divisors = np.empty((int(np.prod(tensor.shape)), 1))
    if len(divisors) != pairs:
        raise CheckpointError(
            f"load: {DIVISORS} has {len(divisors)} numbers, but a head has {pairs} pairs; get the file again"
        )
    _read(tensor, divisors, DIVISORS)
    return divisors[:, 0]


def _scaling_of(divisors: np.ndarray, base: float) -> RopeScaling | None:
    """The "llama3" scaling that divides frequencies by these divisors; None if all are 1.

    The factor is the largest divisor. A divisor d below it gives the original context, given the bounds 1 and 4 that
    all published models have: in that context its pair turns 1 + 3 (1/d - 1/factor) / (1 - 1/factor) times. All
    divisors are computed from these again, and must match those of the file, up to the rounding of its frequencies,
    which have 32 bits, and whose errors may be amplified `factor` times.
    """
    if (divisors == 1).all():
        return None
    pairs = len(divisors)
    frequency, factor = base ** (-np.arange(pairs) / pairs), _as_written(divisors.max())
    original = 8192  # Llama 3's, if no divisor gives it
    if divisors.min() > 0 and 1 < factor < np.inf:
        keep = (1 / divisors - 1 / factor) / (1 - 1 / factor)
        middle = int(np.abs(keep - 0.5).argmin())
        if 0.01 < keep[middle] < 0.99:
            original = round(2 * np.pi * (1 + 3 * keep[middle]) / frequency[middle])
        scaling = RopeScaling("llama3", factor, original, low_frequency_factor=1.0, high_frequency_factor=4.0)
        error = np.abs(divisors * scaling.applied(frequency, base)[0] / frequency - 1).max()
        if error < 4 * np.finfo(np.float32).eps * factor:
            return scaling
    raise InputError(
        f"load: {DIVISORS} cannot be reproduced by the scaling of Llama 3, so the angles would be wrong; load the "
        "model from Hugging Face's files, whose config.json has the settings"
    )


def _read(tensor: Any, target: np.ndarray, name: str) -> None:
    """Dequantise a tensor to floats, some rows at a time."""
    import gguf

    data = tensor.data.reshape(len(target), -1)  # floats, or the bytes of each row's blocks
    step = max(1, PIECE // max(1, target[:1].size))
    for start in range(0, len(target), step):
        rows = slice(start, start + step)
        try:
            values = gguf.dequantize(data[rows], tensor.tensor_type)
        except NotImplementedError:
            raise InputError(
                f"load: {name} has the type {tensor.tensor_type.name}, which the package gguf cannot dequantise"
            ) from None
        target[rows] = values.reshape(target[rows].shape)
