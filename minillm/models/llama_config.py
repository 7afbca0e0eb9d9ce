"""The shape of a Llama or one of its relatives, and how a config.json says it.

Llama, Mistral, Qwen2, Qwen3 and Phi-3 are one model (llama.py) with different settings. Their files leave some of these
out: Qwen2's say nothing of the biases that every Qwen2 has, and the meaning of a missing key depends on the family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from minillm.errors import InputError
from minillm.models.config import Config, Keys, check_fixed, config_from, table, whole_number
from minillm.models.labels import check_labels, classifier_from, classifier_to
from minillm.models.rotary import check_scaling, number, rope_to, scaling_from
from minillm.ops.rope_table import RopeScaling


@dataclass(frozen=True)
class LlamaConfig(Config):
    """The shape of a Llama."""

    former = {"key_heads": "kv_heads"}  # noqa: RUF012  # declared a ClassVar in Config

    vocab_size: int = 32000  # V, number of token ids
    context: int = 2048  # longest sequence, in tokens
    layers: int = 32  # L, number of blocks
    heads: int = 32  # H, attention heads per block
    kv_heads: int = 32  # G, heads of keys and of values; must divide heads
    channels: int = 4096  # C, width of the residual stream
    hidden: int = 11008  # width of the MLP
    head_size: int | None = None  # D, channels of a head, an even number; None: channels / heads
    rope_base: float = 10000.0  # base of the rotary angles
    rope_scaling: RopeScaling | None = None  # how the angles are stretched to a longer context; None: not at all
    window: int | None = None  # number of last positions that a token sees, including its own; None: all
    norm_eps: float = 1e-5  # added to the mean square
    qkv_bias: bool = False  # queries, keys and values have a bias
    tied: bool = False  # the output layer is the token table
    proj_bias: bool = False  # the linear layer after attention has a bias
    mlp_bias: bool = False  # the linear layers of the MLP have a bias
    qk_norm: bool = False  # queries and keys are normalised, head by head
    full_blocks: tuple[int, ...] = ()  # numbers of the blocks without a window, if the others have one
    rotary: int | None = None  # number of rotated channels of a head, the first ones, an even number; None: all
    kind: str | None = None  # the model type in Hugging Face's files; None: the first that fits (see `forms`)
    # of a head for texts (heads.py), which no option sets
    labels: int = field(default=2, metadata={"option": False})  # number of classes
    label_names: tuple[str, ...] = field(default=(), metadata={"option": False})  # their names; (): they have none
    problem_type: str | None = field(default=None, metadata={"option": False})  # what the head learns
    padding_id: int | None = field(default=None, metadata={"option": False})  # token after the end of a text

    def __post_init__(self):
        super().__post_init__()
        self.check_least(1, "vocab_size", "context", "layers", "heads", "kv_heads", "channels", "hidden")
        self.check_divides("kv_heads", "heads")
        if self.head_size is None:
            self.check_divides("heads", "channels")
        if self.size_of_head < 2 or self.size_of_head % 2:
            raise InputError(
                f"{type(self).__name__}: a head has {self.size_of_head} channels by head_size, channels and heads; "
                "rotary pairs need an even number, 2 or more"
            )
        if self.window is not None and self.window < 1:
            raise InputError(f"{type(self).__name__}: window is {self.window}; give 1 or more, or None for no window")
        self.check_above_zero("rope_base")
        self.check_least(0, "norm_eps")
        if self.rotary is not None and not (2 <= self.rotary <= self.size_of_head and self.rotary % 2 == 0):
            raise InputError(
                f"{type(self).__name__}: rotary is {self.rotary}; give an even number, 2 to {self.size_of_head}"
            )
        if self.rope_scaling is not None:
            check_scaling(self.rope_scaling, self.rotary_channels)
        check_labels(self)

    @property
    def size_of_head(self) -> int:
        """D, channels of a head."""
        return self.channels // self.heads if self.head_size is None else self.head_size

    @property
    def rotary_channels(self) -> int:
        """Number of rotated channels of a head."""
        return self.size_of_head if self.rotary is None else self.rotary

    def has_window(self, block: int) -> bool:
        """True if the block with this number sees a window only."""
        return self.window is not None and block not in self.full_blocks

    def rope(self, windowed: bool) -> tuple[float, RopeScaling | None]:
        """Base and scaling of the angles, in blocks with or without a window; a Llama uses one for all blocks."""
        return self.rope_base, self.rope_scaling


PRESETS = {
    # for tests: 33 thousand weights
    "nano": LlamaConfig(256, context=32, layers=2, heads=4, kv_heads=2, channels=32, hidden=88, tied=True),
    "smollm2-135m": LlamaConfig(49152, 8192, 30, 9, 3, 576, 1536, rope_base=1e5, tied=True),
    "qwen2-0.5b": LlamaConfig(
        151936, 32768, 24, 14, 2, 896, 4864, rope_base=1e6, norm_eps=1e-6, qkv_bias=True, tied=True
    ),
    "qwen3-0.6b": LlamaConfig(
        *(151936, 40960, 28, 16, 8, 1024, 3072, 128), rope_base=1e6, norm_eps=1e-6, tied=True, qk_norm=True
    ),
    "phi-3-mini-4k": LlamaConfig(32064, 4096, 32, 32, 32, 3072, 8192, window=2047, kind="phi3"),
    "llama-2-7b": LlamaConfig(32000, 4096),
    "mistral-7b": LlamaConfig(32000, 32768, kv_heads=8, hidden=14336, window=4096),
    "llama-3.2-1b": LlamaConfig(
        128256,
        131072,
        layers=16,
        kv_heads=8,
        channels=2048,
        hidden=8192,
        rope_base=5e5,
        rope_scaling=RopeScaling("llama3", 32.0, 8192, low_frequency_factor=1.0, high_frequency_factor=4.0),
        tied=True,
    ),
}


# --- in a config.json ------------------------------------------------------------------------------------------------

# The values of missing keys, by model type; the first three lines are common to all types.
COMMON: dict[str, Any] = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "rms_norm_eps": 1e-6}
COMMON |= {"head_dim": None, "num_key_value_heads": None, "rope_theta": 10000.0, "tie_word_embeddings": False}
COMMON |= {"sliding_window": 4096}
QWEN = {"vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768, "num_key_value_heads": 32}
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": COMMON | {"vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048},
    "mistral": COMMON
    | {"vocab_size": 32000, "intermediate_size": 14336, "max_position_embeddings": 131072, "num_key_value_heads": 8},
    "qwen2": COMMON | QWEN,
    "qwen3": COMMON | QWEN | {"head_dim": 128},
    "phi3": COMMON
    | {"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 4096}
    | {"rms_norm_eps": 1e-5, "sliding_window": None},
}
KEYS = {
    "vocab_size": "vocab_size",
    "context": "max_position_embeddings",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "channels": "hidden_size",
    "hidden": "intermediate_size",
    "head_size": "head_dim",
    "rope_base": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "tied": "tie_word_embeddings",
    "window": "sliding_window",
    "qkv_bias": "attention_bias",
    "mlp_bias": "mlp_bias",
    "rotary": "partial_rotary_factor",
    "rope_scaling": "rope_parameters",
    "full_blocks": "layer_types",
}
FIXED = {
    "hidden_act": ("silu", "swish"),
    "attention_dropout": (0,),
    "resid_pdrop": (0,),
    "embd_pdrop": (0,),
    "use_bidirectional_attention": (False,),
}
MOST_LAYERS = 100_000
SLIDING, FULL = "sliding_attention", "full_attention"  # a layer with a window, and one without
NO_IDS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # the model itself has no such ids


def forms(config: LlamaConfig) -> list[str]:
    """The Hugging Face model types that can express this configuration."""
    has_bias = config.qkv_bias or config.proj_bias or config.mlp_bias
    alike = config.qkv_bias == config.proj_bias
    plain = not config.qk_norm and config.rotary is None
    fits = {
        "llama": plain and alike and config.window is None,
        "mistral": plain and not has_bias and not config.full_blocks,
        "qwen2": plain and config.qkv_bias and not config.proj_bias and not config.mlp_bias,
        "qwen3": config.qk_norm and config.rotary is None and alike and not config.mlp_bias,
        "phi3": not config.qk_norm and not has_bias and not config.full_blocks,
    }
    return [kind for kind, fit in fits.items() if fit]


def config_from_hugging_face(values: Mapping[str, Any]) -> LlamaConfig:
    """The configuration in the values of a config.json of model type llama, mistral, qwen2, qwen3 or phi3.

    Raises: InputError that names a key which this model cannot honour, or whose value has the wrong type.
    """
    check_fixed(values, {"model_type": tuple(DEFAULTS)})
    kind = values.get("model_type") or "llama"
    missing = DEFAULTS[kind]
    keys: Keys = {field: (key, missing.get(key)) for field, key in KEYS.items()}
    check_fixed(values, FIXED)
    given_bias, mlp_bias = (values.get(key) or False for key in ("attention_bias", "mlp_bias"))
    if kind not in ("llama", "qwen3"):
        check_fixed(values, {"attention_bias": (True, False) if kind == "qwen2" else (False,)})
    qkv_bias = given_bias if kind in ("llama", "qwen3") else kind == "qwen2"
    if kind != "llama":
        check_fixed(values, {"mlp_bias": (False,)})
    context = whole_number(values, "max_position_embeddings", missing["max_position_embeddings"])
    heads = whole_number(values, "num_attention_heads", missing["num_attention_heads"])
    channels = whole_number(values, "hidden_size", missing["hidden_size"])
    head_size = whole_number(values, "head_dim", missing["head_dim"])
    given_kv_heads = whole_number(values, "num_key_value_heads", missing["num_key_value_heads"])
    says_none = "num_key_value_heads" in values and values["num_key_value_heads"] is None
    place = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    rope = dict(table(values, place))
    if any(isinstance(value, dict) for value in rope.values()):
        raise InputError(f"load: config.json has {place}={rope!r}, of several kinds of layers; Llama here has one")
    is_phi3 = kind == "phi3"
    rotary = _rotary_channels(rope, values, head_size or channels // heads) if is_phi3 else None
    original = whole_number(values, "original_max_position_embeddings", 4096) if is_phi3 else None
    if is_phi3 and rope.get("rope_type", rope.get("type")) in ("su", "yarn"):  # two older names of it
        rope["rope_type"] = "longrope"
    scaling = scaling_from(rope, place, values, context, original)
    window, full_blocks = windows_from(kind, values, missing)
    config = config_from(
        LlamaConfig,
        keys,
        values,
        context=stretched_context(context, scaling),
        kv_heads=heads if says_none else given_kv_heads or heads,
        head_size=None if head_size == channels / heads else head_size,
        rope_base=number(rope, place, "rope_theta", number(values, "rotary angles", "rope_theta", 10000.0)),
        rope_scaling=scaling,
        window=window,
        full_blocks=full_blocks,
        qkv_bias=qkv_bias,
        proj_bias=qkv_bias and kind != "qwen2",
        mlp_bias=mlp_bias,
        qk_norm=kind == "qwen3",
        rotary=rotary,
        **classifier_from(values),
    )
    return config if forms(config)[:1] == [kind] else replace(config, kind=kind)


def _rotary_channels(rope: dict[str, Any], values: Mapping[str, Any], head_size: int) -> int | None:
    """Number of rotated channels of a head, from the share of them in `rope`, where it is removed, or in `values`."""
    where, key = "rotary angles", "partial_rotary_factor"
    share = number({key: rope.pop(key, None)}, where, key, number(values, where, key, 1.0))
    return None if share == 1 else int(head_size * share)


def windows_from(
    kind: str, values: Mapping[str, Any], missing: Mapping[str, Any], full_at: Callable[[int], bool] | None = None
) -> tuple[int | None, tuple[int, ...]]:
    """The window, and the numbers of the blocks without it.

    full_at(block): True if this block has no window, for files without `layer_types`.
    """
    layers = whole_number(values, "num_hidden_layers", missing["num_hidden_layers"])
    is_used = kind != "llama" and (kind not in ("qwen2", "qwen3") or values.get("use_sliding_window"))
    given_window = {"sliding_window": missing["sliding_window"], **values} if is_used else {}
    window = whole_number(given_window, "sliding_window", None)
    if kind in ("qwen2", "qwen3"):
        first = whole_number(values, "max_window_layers", 28, least=0)
        full_at = lambda block: block < first  # noqa: E731
    if layers > MOST_LAYERS:
        raise InputError(f"load: config.json has num_hidden_layers={layers}; give {MOST_LAYERS} at most")
    types = values.get("layer_types")
    if types is None:
        types = [SLIDING if window is not None and not (full_at and full_at(i)) else FULL for i in range(layers)]
    if not isinstance(types, list) or len(types) != layers or not all(one in (SLIDING, FULL) for one in types):
        raise InputError(
            f"load: config.json has layer_types={types!r} and num_hidden_layers={layers}; give {FULL!r} or {SLIDING!r} "
            "for each layer"
        )
    if SLIDING in types and window is None:
        given = {key: values[key] for key in ("sliding_window", "use_sliding_window") if key in values}
        raise InputError(f"load: config.json has layer_types={types!r}, but no window for {SLIDING!r}: {given}")
    if FULL in types and window is not None and full_at is None:  # transformers looks at the window alone
        raise InputError(f"load: config.json has layer_types={types!r}, but a {kind} has its window in every layer")
    full_blocks = tuple(i for i, one in enumerate(types) if one == FULL)
    return (None, ()) if len(full_blocks) == layers else (window, full_blocks)


def kind_of(config: LlamaConfig) -> str:
    """The model type to save a model with this configuration as: its own `kind`, or the first that fits.

    Raises: InputError if no type fits.
    """
    kinds = forms(config)
    if not kinds:
        raise InputError(f"save_pretrained: {config} has no form in Hugging Face's format")
    return config.kind if config.kind in kinds else kinds[0]


def config_to_hugging_face(config: LlamaConfig) -> dict[str, Any]:
    """The values of a config.json. Raises: InputError if no Hugging Face model type fits."""
    kind = kind_of(config)
    values = sizes_to_hugging_face(config) | {
        "architectures": [f"{kind.title()}ForCausalLM"],
        "model_type": kind,
        "hidden_act": "silu",
        "rope_parameters": rope_to(config.rope_base, config.rope_scaling),
    }
    if kind in ("llama", "qwen3"):
        values |= {"attention_bias": config.qkv_bias}
    if kind == "llama":
        values |= {"mlp_bias": config.mlp_bias}
    if kind in ("mistral", "phi3"):
        values |= {"sliding_window": config.window}
    if kind == "phi3":
        scaling = config.rope_scaling
        values["rope_parameters"]["partial_rotary_factor"] = config.rotary_channels / config.size_of_head
        values["original_max_position_embeddings"] = scaling.original_context if scaling else config.context
    if kind in ("qwen2", "qwen3") and config.window is not None:
        values |= {"use_sliding_window": True, "sliding_window": config.window, "layer_types": layer_types(config)}
        if config.full_blocks == tuple(range(first := len(config.full_blocks))):
            values["max_window_layers"] = first  # for older versions of transformers
    return values | classifier_to(config)


def sizes_to_hugging_face(config: LlamaConfig) -> dict[str, Any]:
    """The values of the keys that all model types have."""
    context, scaling = config.context, config.rope_scaling
    if scaling is not None and scaling.kind == "dynamic":
        context = scaling.original_context
        if config.context != stretched_context(context, scaling):
            raise InputError(
                f"save_pretrained: context={config.context}, but Hugging Face's format takes it as original_context "
                f"times factor for dynamic scaling, here {stretched_context(context, scaling)}; give that"
            )
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": context,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "hidden_size": config.channels,
        "intermediate_size": config.hidden,
        "head_dim": config.size_of_head,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        **NO_IDS,
    }


def stretched_context(context: int, scaling: RopeScaling | None) -> int:
    """Our `context` for Hugging Face's, which for "dynamic" scaling is the context before it is stretched."""
    return round(context * scaling.factor) if scaling is not None and scaling.kind == "dynamic" else context


def layer_types(config: LlamaConfig) -> list[str]:
    """The name for each block's attention, with or without a window."""
    return [SLIDING if config.has_window(i) else FULL for i in range(config.layers)]
