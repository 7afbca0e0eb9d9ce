"""The shape of an XLNet, and how a config.json of Hugging Face's describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minillm.errors import InputError
from minillm.models.config import Config, check_fixed, config_from
from minillm.models.labels import check_labels, labels_from, labels_to


@dataclass(frozen=True)
class XLNetConfig(Config):
    """The shape of an XLNet."""

    vocab_size: int = 32000  # V, number of token ids
    layers: int = 24  # L, number of blocks
    heads: int = 16  # H, attention heads per block; must divide channels
    channels: int = 1024  # C, width of the residual stream, even
    hidden: int = 4096  # width of the MLP
    dropout: float = 0.1  # probability, at all places with dropout
    norm_eps: float = 1e-12  # added to the variance
    mem_len: int | None = None  # number of latest tokens in the memory; None: all
    reuse_len: int | None = None  # number of first tokens of each text that enter the memory; None: all
    clamp_len: int = -1  # largest distance: longer ones count as this one; 0 or less: no limit
    bi_data: bool = False  # the second half of each batch is written backwards
    labels: int = 2  # number of classes of a text, or of each token, for the heads that classify them
    label_names: tuple[str, ...] = ()  # their names; none: LABEL_0, LABEL_1, ...
    classifier_dropout: float = 0.1  # probability before the last layer of a head for texts
    problem_type: str | None = None  # what a head for texts learns (see heads.py); None: the labels decide

    def __post_init__(self):
        super().__post_init__()
        self.check_least(1, "vocab_size", "layers", "heads", "channels", "hidden")
        self.check_divides("heads", "channels")
        if self.channels % 2:
            raise InputError(f"XLNetConfig: channels={self.channels} is odd; sines and cosines need an even number")
        self.check_probabilities("dropout", "classifier_dropout")
        self.check_above_zero("norm_eps")
        for field in ("mem_len", "reuse_len"):
            if getattr(self, field) is not None and getattr(self, field) < 1:
                raise InputError(f"XLNetConfig: {field} is {getattr(self, field)}; give 1 or more, or None for all")
        check_labels(self)


PRESETS = {
    # for tests: 36 thousand weights
    "nano": XLNetConfig(256, layers=2, heads=2, channels=32, hidden=128, dropout=0.0),
    # the sizes of the paper: 117 and 360 million weights
    "xlnet-base-cased": XLNetConfig(layers=12, heads=12, channels=768, hidden=3072),
    "xlnet-large-cased": XLNetConfig(),
}


# --- in a config.json ------------------------------------------------------------------------------------------------

# For each field of the configuration: its key in a config.json, and its value if the key is missing.
KEYS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 32000),
    "layers": ("n_layer", 24),
    "heads": ("n_head", 16),
    "channels": ("d_model", 1024),
    "hidden": ("d_inner", 4096),
    "dropout": ("dropout", 0.1),
    "norm_eps": ("layer_norm_eps", 1e-12),
    "mem_len": ("mem_len", 512),
    "reuse_len": ("reuse_len", None),
    "clamp_len": ("clamp_len", -1),
    "bi_data": ("bi_data", False),
    "classifier_dropout": ("summary_last_dropout", 0.1),
    "problem_type": ("problem_type", None),
}
FIXED = {
    "model_type": "xlnet",
    "attn_type": "bi",  # "uni" is Transformer-XL
    "ff_activation": "gelu",
    "same_length": False,
    "untie_r": True,
    "tie_word_embeddings": True,
}
# The head for texts: a linear layer and tanh on the vector of the last token.
FIXED_HEAD = {"summary_type": "last", "summary_use_proj": True, "summary_activation": "tanh"}


def config_from_hugging_face(values: Mapping[str, Any]) -> XLNetConfig:
    """The configuration in the values of a config.json of model type xlnet.

    Raises: InputError that names a key which this model cannot honour, or whose value has the wrong type.
    """
    has_head = "XLNetForSequenceClassification" in str(values.get("architectures"))
    check_fixed(values, {key: (only,) for key, only in (FIXED | (FIXED_HEAD if has_head else {})).items()})
    no_limit = {
        field: None for field in ("mem_len", "reuse_len") if values.get(KEYS[field][0]) == 0
    }  # the file has 0 for that
    config = config_from(XLNetConfig, KEYS, values, nulls=("mem_len", "reuse_len"), **no_limit, **labels_from(values))
    head_size = config.channels // config.heads
    if values.get("d_head") not in (None, head_size):
        raise InputError(
            f"load: config.json has d_head={values['d_head']!r}; here it can only be {head_size}, which is "
            f"d_model={config.channels} divided by n_head={config.heads}"
        )
    return config


def config_to_hugging_face(config: XLNetConfig) -> dict[str, Any]:
    """The values of a config.json."""
    return {
        "architectures": ["XLNetLMHeadModel"],
        **{key: getattr(config, field) for field, (key, _) in KEYS.items()},
        "d_head": config.channels // config.heads,
        **FIXED,
        **FIXED_HEAD,
        **labels_to(config),
    }
