"""Tests for the models of all families: names, sizes and configurations, here and in transformers."""

from __future__ import annotations

import re
from dataclasses import replace
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

import minillm
from minillm.errors import InputError
from minillm.models import bart, bert, distilbert, gemma, gpt2, llama, roberta, xlnet
from minillm.models.config import Config
from minillm.nn import Module, uninitialized
from minillm.pretrained import BART_HEADS, HEADS, XLNET_HEADS, joined_names, pieces_in_hugging_face


class Family(NamedTuple):
    """A model file, its whole model, and a small one's configuration."""

    file: ModuleType
    model: type[Module]
    small: Any
    other: Any  # with settings that the small one lacks
    others: tuple[str, ...] = ()  # more classes, with heads of their own


NO_DROPOUT = dict(dropout=0.0, attention_dropout=0.0)
BERT = dict(vocab_size=19, context=12, layers=2, heads=2, channels=16, hidden=24, **NO_DROPOUT)
FAMILIES = {
    "gpt2": Family(
        gpt2,
        gpt2.GPT2,
        gpt2.GPT2Config(11, 8, 2, 2, 12),
        gpt2.GPT2Config(11, 8, 1, 1, 4, hidden=7, activation="relu", tied=False),
        ("GPT2ForSequenceClassification",),
    ),
    "llama": Family(
        llama,
        llama.Llama,
        llama.LlamaConfig(19, 16, 2, 4, 2, 16, 24, tied=True),
        llama.LlamaConfig(19, 16, 2, 4, 2, 16, 24, qkv_bias=True, proj_bias=True, mlp_bias=True, qk_norm=True),
        ("LlamaForSequenceClassification",),
    ),
    "gemma": Family(
        gemma,
        gemma.Gemma,
        gemma.GemmaConfig(19, 16, 2, 4, 2, 16, 24, 4, window=3, full_blocks=(1,), attention_cap=5.0),
        gemma.GemmaConfig(19, 16, 2, 4, 2, 16, 24, 4, qk_norm=True, tied=False, qkv_bias=True, proj_bias=True),
    ),
    "bert": Family(
        bert,
        bert.BertForPreTraining,
        bert.BertConfig(**BERT),
        bert.BertConfig(**(BERT | dict(token_types=1))),
        tuple(f"Bert{head}" for head in HEADS),
    ),
    "distilbert": Family(
        distilbert,
        distilbert.DistilBertForMaskedLM,
        distilbert.DistilBertConfig(**BERT, classifier_dropout=0.0),
        distilbert.DistilBertConfig(**(BERT | dict(padding_id=3))),
        tuple(f"DistilBert{head}" for head in HEADS),
    ),
    "roberta": Family(
        roberta,
        roberta.RobertaForMaskedLM,
        roberta.RobertaConfig(**BERT),
        roberta.RobertaConfig(**(BERT | dict(padding_id=0)), kind="xlm-roberta"),
        tuple(f"Roberta{head}" for head in HEADS),
    ),
    "bart": Family(
        bart,
        bart.Bart,
        bart.BartConfig(19, 12, 2, 3, 2, 4, 16, 24, 20, dropout=0.0),
        bart.BartConfig(19, 12, 1, 1, 2, 4, 16, 24, 20, activation="relu"),
        tuple(f"Bart{head}" for head in BART_HEADS),
    ),
    "xlnet": Family(
        xlnet,
        xlnet.XLNetLMHeadModel,
        xlnet.XLNetConfig(19, layers=2, heads=2, channels=16, hidden=24, dropout=0.0),
        xlnet.XLNetConfig(19, layers=1, heads=2, channels=16, hidden=24, mem_len=4),
        tuple(f"XLNet{head}" for head in XLNET_HEADS),
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
        ("nano", {"vocab_size": 9}, distilbert.DistilBertConfig(9, 32, 2, 2, 32, 128, **distilbert.NO_DROPOUT)),
        ("gemma-3-1b", {"layers": 1}, replace(gemma.PRESETS["gemma-3-1b"], layers=1)),
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
        (distilbert.DistilBertConfig, "distilbert-base-uncase", "distilbert-base-uncased"),
        (gemma.GemmaConfig, "gemma-3-1", "gemma-3-1b"),
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
    models = [family.model(config) for config in (family.small, family.other)]
    models += [getattr(family.file, name)(family.small) for name in family.others]
    found = {name for model in models for name in model.state_dict()}
    assert {re.sub(r"\.\d+\.", ".{i}.", name) for name in found} == set(family.file.HUGGING_FACE)


# Hugging Face's configurations


NAMED = [(name, preset) for name, family in FAMILIES.items() for preset in family.file.PRESETS]


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "preset"), NAMED)
def test_transformers_builds_the_same_shapes_from_our_config(name: str, preset: str) -> None:
    """Our parameters have exactly the names and the number of weights of transformers' files."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    file, model, *_ = FAMILIES[name]
    config = file.PRESETS[preset]
    values = file.config_to_hugging_face(config)
    architecture = getattr(transformers, "BertForPreTraining" if name == "bert" else values["architectures"][0])
    with torch.device("meta"):
        theirs = architecture(architecture.config_class(**values))
    assert file.config_from_hugging_face(theirs.config.to_dict()) == config
    with uninitialized():
        ours = model(config)  # memory that is never touched
    trained = [parameter.numel() for parameter in ours.parameters() if parameter.requires_grad]
    assert sum(p.numel() for p in theirs.parameters()) == sum(trained)
    names = {piece.name for piece in pieces_in_hugging_face(ours)}
    for whole, parts in joined_names(file, config).items():
        names = names - {*parts} | {whole}
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
    "distilbert": [{"model_type": "bert"}, {"activation": "relu"}, {"tie_word_embeddings": False}],
    "gpt2": [
        {"model_type": "bert"},
        {"activation_function": "mish"},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"add_cross_attention": True},
    ],
    "llama": [
        {"model_type": "bert"},
        {"hidden_act": "gelu"},
        {"attention_dropout": 0.1},
        {"use_bidirectional_attention": True},
    ],
    "gemma": [
        {"model_type": "gemma"},
        {"hidden_activation": "silu"},
        {"attention_dropout": 0.1},
        {"use_bidirectional_attention": True},
    ],
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
    file, _, small, *_ = FAMILIES[name]
    [(key, value)] = change.items()
    values = file.config_to_hugging_face(small)
    assert file.config_from_hugging_face(values) == small
    with pytest.raises(InputError) as raised:
        file.config_from_hugging_face(values | change)
    assert str(raised.value).startswith(f"load: config.json has {key}={value!r}; here it can only be ")


# Values of the wrong type, missing and null

DAMAGES = [None, "absent", "7", -3, 0, 1.5, float("nan"), float("inf"), [1], {"a": 1}, True, 10**9, "x"]


def refusal(family: Family, values: dict) -> str | None:
    """The error for such a config.json; None if it is accepted."""
    try:
        family.file.config_from_hugging_face(values)
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("damage", DAMAGES, ids=repr)
def test_any_damaged_value_is_taken_or_named(family: Family, damage: Any) -> None:
    """Every bad value gives a configuration or our own error that names the key, and nothing else."""
    written = family.file.config_to_hugging_face(family.small)
    for key in written:
        values = {name: value for name, value in written.items() if name != key}
        if damage != "absent":
            values[key] = damage
        said = refusal(family, values)
        assert said is None or (said.startswith("load: config.json has ") and key in said), said


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("vocab_size", "50257", "vocab_size='50257': .*Config: vocab_size is '50257'; give a whole number"),
        ("vocab_size", -1, "vocab_size=-1: .*Config: vocab_size is -1; give 1 or more"),
        ("vocab_size", [1], r"vocab_size=\[1\]: .*Config: vocab_size is \[1\]; give a whole number"),
    ],
)
def test_what_is_said_of_a_damaged_value(family: Family, key: str, value: Any, says: str) -> None:
    values = family.file.config_to_hugging_face(family.small)
    assert re.match(f"load: config.json has {says}", refusal(family, values | {key: value}) or "")


def test_heads_that_do_not_divide_channels_are_said_by_their_keys() -> None:
    values = gpt2.config_to_hugging_face(FAMILIES["gpt2"].small)
    said = "load: config.json has n_head=5 and n_embd=12: GPT2Config: channels=12 is not a multiple of heads=5"
    assert refusal(FAMILIES["gpt2"], values | {"n_head": 5}) == said
    del values["n_embd"]
    said = "load: config.json has n_head=5 and n_embd=768 by default: GPT2Config: channels=768 is not a multiple of"
    assert (refusal(FAMILIES["gpt2"], values | {"n_head": 5}) or "").startswith(said)


# Keys whose null means None.
NULLS = ("head_dim", "sliding_window", "num_key_value_heads", "attn_logit_softcapping", "mem_len")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_null_is_what_transformers_takes_where_a_key_is_missing(name: str) -> None:
    """A null gives the default of the family, for every key that may not be None."""
    family = FAMILIES[name]
    values = family.file.config_to_hugging_face(family.small)
    for key, value in values.items():
        if value is None or key in NULLS:
            continue
        missing = {name: value for name, value in values.items() if name != key}
        try:
            expected = family.file.config_from_hugging_face(missing)
        except InputError:  # with that default, it does not fit
            continue
        assert family.file.config_from_hugging_face(missing | {key: None}) == expected, key


DEFAULTS = ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "gpt2", "bert", "roberta"]
DEFAULTS += ["xlm-roberta", "distilbert", "bart", "xlnet"]


@pytest.mark.oracle
@pytest.mark.parametrize("kind", DEFAULTS)
def test_what_a_config_leaves_out_is_the_familys_default_in_transformers(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.for_model(kind).to_dict()
    file, _ = minillm.hub.family({"model_type": kind})
    ours = file.config_from_hugging_face({"model_type": kind})
    assert ours == file.config_from_hugging_face(theirs)
    values = file.config_to_hugging_face(ours)
    assert values["model_type"] == kind
    for key, value in values.items():
        if key in theirs and not (key == "layer_types" or key.endswith("token_id") or key == "architectures"):
            assert value == theirs[key] or (key, kind) == ("mem_len", "xlnet"), key
