"""The shape of a BART, and how a config.json of Hugging Face's describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from minillm.errors import InputError
from minillm.models.config import Config, check_fixed, config_from
from minillm.models.labels import check_labels, labels_from, labels_to


@dataclass(frozen=True)
class BartConfig(Config):
    """The shape of a BART."""

    vocab_size: int = 50265  # V, number of token ids
    context: int = 1024  # longest source, and longest target, in tokens
    encoder_layers: int = 12  # number of blocks
    decoder_layers: int = 12
    encoder_heads: int = 16  # attention heads per block; must divide channels
    decoder_heads: int = 16
    channels: int = 1024  # C, width of the residual stream
    encoder_hidden: int = 4096  # width of the MLP
    decoder_hidden: int = 4096
    dropout: float = 0.1  # probability: after the embedding and on each residual branch
    attention_dropout: float = 0.0  # probability for each attention weight
    activation_dropout: float = 0.0  # probability for each element within the MLP
    activation: str = "gelu"  # in the MLP: "gelu" (the exact one) or "relu"
    scale_embedding: bool = False  # token vectors are multiplied by sqrt(C)
    init_std: float = 0.02  # standard deviation of the first weights
    bos_id: int = 0  # token id that begins a text
    padding_id: int = 1  # token id that fills short sequences
    eos_id: int = 2  # token id that ends a text
    decoder_start_id: int = 2  # token id that the decoder sees first
    labels: int = 3  # number of classes of a text, for the head that classifies it
    label_names: tuple[str, ...] = ()  # their names; none: LABEL_0, LABEL_1, ...
    classifier_dropout: float = 0.0  # probability before both layers of that head
    problem_type: str | None = None  # what that head learns (see heads.py); None: the labels decide

    no_options: ClassVar = ("bos_id", "padding_id", "eos_id", "decoder_start_id")

    def __post_init__(self):
        super().__post_init__()
        sizes = [f"{side}_{size}" for side in ("encoder", "decoder") for size in ("layers", "heads", "hidden")]
        self.check_least(1, "vocab_size", "context", "channels", *sizes)
        self.check_divides("encoder_heads", "channels")
        self.check_divides("decoder_heads", "channels")
        self.check_probabilities("dropout", "attention_dropout", "activation_dropout", "classifier_dropout")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"BartConfig: activation is {self.activation!r}; give 'gelu' or 'relu'")
        if not self.init_std >= 0:
            raise InputError(f"BartConfig: init_std is {self.init_std}; give 0 or more")
        for field in ("bos_id", "padding_id", "eos_id", "decoder_start_id"):
            if not 0 <= getattr(self, field) < self.vocab_size:
                raise InputError(
                    f"BartConfig: {field} is {getattr(self, field)}; give a token id, 0 to {self.vocab_size - 1}"
                )
        check_labels(self)


ACTIVATIONS = ("gelu", "relu")


def both_sides(layers: int, heads: int, hidden: int) -> dict[str, Any]:
    """The fields of an encoder and a decoder that have the same size."""
    return {
        f"{side}_{size}": number
        for side in ("encoder", "decoder")
        for size, number in {"layers": layers, "heads": heads, "hidden": hidden}.items()
    }


PRESETS = {
    # for tests: 58 thousand weights
    "nano": BartConfig(256, 32, channels=32, **both_sides(2, 2, 64), dropout=0.0),
    # for tens of thousands of sentence pairs (Wu et al. 2021, arXiv:2105.14462): 2.3 million weights, 6,000 tokens
    "multi30k": BartConfig(
        *(6000, 128),
        channels=128,
        **both_sides(4, 4, 256),
        dropout=0.2,
        activation="relu",
        scale_embedding=True,
        init_std=128**-0.5,
    ),
    # the sizes of the paper: 139 and 406 million weights
    "bart-base": BartConfig(channels=768, **both_sides(6, 12, 3072), attention_dropout=0.1, activation_dropout=0.1),
    "bart-large": BartConfig(attention_dropout=0.1, activation_dropout=0.1),
}


# --- in a config.json ------------------------------------------------------------------------------------------------

# For each field of the configuration: its key in a config.json, and its value if the key is missing.
KEYS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 50265),
    "context": ("max_position_embeddings", 1024),
    "encoder_layers": ("encoder_layers", 12),
    "decoder_layers": ("decoder_layers", 12),
    "encoder_heads": ("encoder_attention_heads", 16),
    "decoder_heads": ("decoder_attention_heads", 16),
    "channels": ("d_model", 1024),
    "encoder_hidden": ("encoder_ffn_dim", 4096),
    "decoder_hidden": ("decoder_ffn_dim", 4096),
    "dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.0),
    "activation_dropout": ("activation_dropout", 0.0),
    "activation": ("activation_function", "gelu"),
    "scale_embedding": ("scale_embedding", False),
    "init_std": ("init_std", 0.02),
    "bos_id": ("bos_token_id", 0),
    "padding_id": ("pad_token_id", 1),
    "eos_id": ("eos_token_id", 2),
    "decoder_start_id": ("decoder_start_token_id", 2),
    "classifier_dropout": ("classifier_dropout", 0.0),
    "problem_type": ("problem_type", None),
}
FIXED = {
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "is_encoder_decoder": True,
    "is_decoder": False,
    "tie_word_embeddings": True,
}
OLD_FIXED = {  # settings of older files
    "normalize_before": False,
    "normalize_embedding": True,
    "add_final_layer_norm": False,
    "static_position_embeddings": False,
}


def config_from_hugging_face(values: Mapping[str, Any]) -> BartConfig:
    """The configuration in the values of a config.json of model type bart.

    Raises: InputError that names a key which this model cannot honour, or whose value has the wrong type.
    """
    check_fixed(values, {key: (only,) for key, only in {"model_type": "bart", **FIXED, **OLD_FIXED}.items()})
    check_fixed(values, {"activation_function": ACTIVATIONS})
    if isinstance(values.get("eos_token_id"), list):
        raise InputError(
            f"load: config.json has eos_token_id={values['eos_token_id']}; here it can only be one token id"
        )
    return config_from(BartConfig, KEYS, values, **labels_from(values, missing=3))


def config_to_hugging_face(config: BartConfig) -> dict[str, Any]:
    """The values of a config.json."""
    return {
        "architectures": ["BartForConditionalGeneration"],
        "model_type": "bart",
        **{key: getattr(config, field) for field, (key, _) in KEYS.items()},
        "forced_eos_token_id": config.eos_id,
        **FIXED,
        **labels_to(config, missing=3),
    }
