"""What holds for the models of every family alike: their names, sizes and configurations, here and in transformers."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

import minillm
from minillm.errors import InputError
from minillm.models import bart, bert, gpt2, llama, roberta, xlnet
from minillm.models.config import Config
from minillm.nn import Module, uninitialized


class Family(NamedTuple):
    """A model file, its whole model, and a small one's configuration."""

    file: ModuleType
    model: type[Module]
    small: Any
    other: Any  # with what the small one does not have


NO_DROPOUT = dict(dropout=0.0, attention_dropout=0.0)
BERT = dict(vocab_size=19, context=12, layers=2, heads=2, channels=16, hidden=24, **NO_DROPOUT)
FAMILIES = {
    "gpt2": Family(
        gpt2,
        gpt2.GPT2,
        gpt2.GPT2Config(11, 8, 2, 2, 12),
        gpt2.GPT2Config(11, 8, 1, 1, 4),
    ),
    "llama": Family(
        llama,
        llama.Llama,
        llama.LlamaConfig(19, 16, 2, 4, 2, 16, 24, tied=True),
        llama.LlamaConfig(19, 16, 2, 4, 2, 16, 24, qkv_bias=True),
    ),
    "bert": Family(
        bert, bert.BertForPreTraining, bert.BertConfig(**BERT), bert.BertConfig(**(BERT | dict(token_types=1)))
    ),
    "roberta": Family(
        roberta,
        roberta.RobertaForMaskedLM,
        roberta.RobertaConfig(**BERT),
        roberta.RobertaConfig(**(BERT | dict(padding_id=0))),
    ),
    "bart": Family(
        bart,
        bart.Bart,
        bart.BartConfig(19, 12, 2, 3, 2, 4, 16, 24, 20, dropout=0.0),
        bart.BartConfig(19, 12, 1, 1, 2, 4, 16, 24, 20, activation="relu"),
    ),
    "xlnet": Family(
        xlnet,
        xlnet.XLNetLMHeadModel,
        xlnet.XLNetConfig(19, layers=2, heads=2, channels=16, hidden=24, dropout=0.0),
        xlnet.XLNetConfig(19, layers=1, heads=2, channels=16, hidden=24, mem_len=4),
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


# Named sizes


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("tiny", {"vocab_size": 99}, gpt2.GPT2Config(99, 64, 4, 4, 128)),
        ("nano", {"layers": 3}, llama.LlamaConfig(256, 32, 3, 4, 2, 32, 88, tied=True)),
        ("bert-tiny", {"vocab_size": 99}, bert.BertConfig(99, 512, 2, 2, 128, 512)),
        (
            "roberta-base",
            {"vocab_size": 99, "layers": 2},
            roberta.RobertaConfig(99, 512, 2, 12, 768, 3072, 1, 0.1, 0.1, 1e-5, 1),
        ),
        (
            "bart-large",
            {"dropout": 0.3},
            bart.BartConfig(dropout=0.3, attention_dropout=0.1, activation_dropout=0.1),
        ),
        ("nano", {"vocab_size": 9}, xlnet.XLNetConfig(9, 2, 2, 32, 128, 0.0)),
    ],
)
def test_a_preset_can_be_changed(name: str, changes: dict, expected: Any) -> None:
    made = type(expected).preset(name, **changes)
    assert made == expected
    assert type(made) is type(expected)


@pytest.mark.parametrize(
    ("config", "wrong", "right"),
    [
        (gpt2.GPT2Config, "gpt2-medum", "gpt2-medium"),
        (llama.LlamaConfig, "nanno", "nano"),
        (bert.BertConfig, "bert-base-uncase", "bert-base-uncased"),
        (roberta.RobertaConfig, "roberta-bas", "roberta-base"),
        (bart.BartConfig, "bart-bas", "bart-base"),
        (xlnet.XLNetConfig, "xlnet-base", "xlnet-base-cased"),
    ],
)
def test_a_wrong_name_suggests_one(config: type[Config], wrong: str, right: str) -> None:
    with pytest.raises(
        InputError, match=rf"^{config.__name__}: no preset is called '{wrong}'; did you mean '{right}'\?"
    ):
        config.preset(wrong)


def test_presets_are_those_of_the_file_and_also_of_a_subclass_elsewhere(family: Family) -> None:
    kind = type(family.small)
    for name, config in family.file.PRESETS.items():
        assert kind.preset(name) == config
        assert type("Mine", (kind,), {"__module__": __name__}).preset(name) == config
    with pytest.raises(TypeError, match="unexpected keyword argument 'chanels'"):
        kind.preset("nano", chanels=3)


# Parameters


def test_the_seed_decides_the_weights_and_loading_draws_none(family: Family) -> None:
    def weights(seed: int) -> dict[str, np.ndarray]:
        minillm.manual_seed(seed)
        return family.model(family.small).state_dict()

    one, again, other = weights(1), weights(1), weights(2)
    for name, array in one.items():
        np.testing.assert_array_equal(array, again[name])
        assert array.ndim == 1 or name == "final_logits_bias" or (array != other[name]).any()
    before = minillm.random.default.state()
    with uninitialized():
        family.model(family.small)
    assert minillm.random.default.state() == before
    family.model(family.small)
    assert minillm.random.default.state() != before


def test_every_parameter_has_a_name_in_hugging_faces_files(family: Family) -> None:
    found = {name for config in (family.small, family.other) for name in family.model(config).state_dict()}
    assert {re.sub(r"\.\d+\.", ".{i}.", name) for name in found} == set(family.file.HUGGING_FACE)


# Hugging Face's configurations


NAMED = [(name, preset) for name, family in FAMILIES.items() for preset in family.file.PRESETS]


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "preset"), NAMED)
def test_transformers_builds_the_same_shapes_from_our_config(name: str, preset: str) -> None:
    """Its number of weights, and its names: those of the files, and no other."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    file, model, *_ = FAMILIES[name]
    config = file.PRESETS[preset]
    values = file.config_to_hugging_face(config)
    architecture = getattr(transformers, "BertForPreTraining" if name == "bert" else values["architectures"][0])
    with torch.device("meta"):
        theirs = architecture(architecture.config_class(**values))
    assert file.config_from_hugging_face(theirs.config.to_dict()) == config
    with uninitialized():
        ours = model(config)  # memory that nobody touches
    trained = [parameter.numel() for parameter in ours.parameters() if parameter.requires_grad]
    assert sum(p.numel() for p in theirs.parameters()) == sum(trained)
    names = {
        one
        for key, parameter in ours.named_parameters()
        for one, _ in minillm.hub._names(file, config, key, len(parameter.data))
    }
    assert {one for one in theirs.state_dict() if one in names or not one.endswith(file.IGNORED)} == names


REFUSED = {
    "bert": [
        {"model_type": "roberta"},
        {"hidden_act": "gelu_new"},
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
        {"add_cross_attention": True},
        {"tie_word_embeddings": False},
    ],
    "roberta": [{"model_type": "bert"}, {"hidden_act": "relu"}, {"tie_word_embeddings": False}],
    "bart": [
        {"model_type": "mbart"},
        {"activation_function": "gelu_new"},
        {"encoder_layerdrop": 0.1},
        {"is_encoder_decoder": False},
        {"tie_word_embeddings": False},
        {"normalize_before": True},
        {"static_position_embeddings": True},
        {"eos_token_id": [1, 2]},
    ],
    "xlnet": [
        {"model_type": "bert"},
        {"attn_type": "uni"},
        {"ff_activation": "relu"},
        {"same_length": True},
        {"untie_r": False},
        {"tie_word_embeddings": False},
        {"d_head": 4},
    ],
}


@pytest.mark.parametrize(("name", "change"), [(name, change) for name in REFUSED for change in REFUSED[name]])
def test_a_config_of_another_model_is_refused_by_name(name: str, change: dict) -> None:
    file, _, small, _ = FAMILIES[name]
    [(key, value)] = change.items()
    values = file.config_to_hugging_face(small)
    assert file.config_from_hugging_face(values) == small
    with pytest.raises(InputError) as raised:
        file.config_from_hugging_face(values | change)
    assert str(raised.value).startswith(f"load: config.json has {key}={value!r}; here it can only be ")
