"""LoRA without PEFT: what an adapter computes, what is trained, merging, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minillm
from minillm import nn, ops
from minillm.errors import CheckpointError, InputError
from minillm.lora import (
    LoraConfig,
    adapters_off,
    add_lora,
    is_adapter,
    load_lora,
    lora_state_dict,
    merge,
    save_lora,
    unmerge,
)
from minillm.lora.peft import CONFIG, WEIGHTS
from minillm.models.bart import Bart, BartConfig
from minillm.models.bert import BertConfig, BertForMaskedLM, BertForSequenceClassification
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.models.llama import Llama, LlamaConfig
from minillm.models.xlnet import XLNetConfig, XLNetLMHeadModel
from minillm.optim import AdamW, decay_groups
from minillm.parallel.recompute import recompute
from minillm.testing import check_gradients

LLAMA = LlamaConfig.preset("nano", vocab_size=31, context=16, layers=3, heads=4, kv_heads=2, channels=16)


def drawn(model: Any, seed: int = 0) -> Any:
    """The model with every number drawn at random, so large that it matters."""
    rng = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        is_norm = name.endswith("weight") and parameter.ndim == 1
        parameter.data[...] = rng.normal(0, 0.3, parameter.shape) + is_norm
    return model


def adapted(config: LoraConfig | None = None, model: Any = None, seed: int = 1) -> Any:
    """A model with adapters that change its output."""
    model = add_lora(drawn(model or Llama(LLAMA)), config or LoraConfig(rank=3))
    rng = np.random.default_rng(seed)
    for array in lora_state_dict(model).values():
        array[...] = rng.normal(0, 0.3, array.shape)
    return model


@pytest.fixture
def ids(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 31, (2, 9))


def output(model: Any, ids: np.ndarray) -> np.ndarray:
    with minillm.no_grad():
        return model(ids).data


# --- what is computed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [("q_proj",), ("k_proj",), ("v_proj",), ("q_proj", "v_proj"), "all-linear"])
def test_an_adapter_acts_on_its_rows_alone(targets: Any, ids: np.ndarray) -> None:
    """A weight of queries, keys and values gets the change in the rows of the chosen ones, and nowhere else."""
    plain = drawn(Llama(LLAMA))
    model = adapted(LoraConfig(rank=3, alpha=5.0, targets=targets))
    rows = {"q_proj": slice(0, 16), "k_proj": slice(16, 24), "v_proj": slice(24, 32)}
    for path, module in model.named_modules():
        if not path.endswith("attn.qkv") or not hasattr(module, "lora"):
            continue
        weight = plain.state_dict()[f"{path}.weight"]
        chosen = rows if targets == "all-linear" else targets
        assert list(module.lora) == list(chosen)
        for name in chosen:
            weight[rows[name]] += 5 / 3 * module.lora[name].B.data @ module.lora[name].A.data
    if targets != "all-linear":
        np.testing.assert_allclose(output(model, ids), output(plain, ids), rtol=1e-4, atol=1e-4)
    before = output(model, ids)
    np.testing.assert_allclose(output(merge(model), ids), before, rtol=1e-4, atol=1e-4)


def test_a_new_adapter_changes_nothing_and_begins_as_in_peft(ids: np.ndarray) -> None:
    minillm.manual_seed(1)
    plain = drawn(Llama(LLAMA))
    model = add_lora(drawn(Llama(LLAMA)), LoraConfig(rank=4, targets=("gate_proj", "down_proj", "embed_tokens")))
    np.testing.assert_array_equal(output(model, ids), output(plain, ids))
    for adapter in vars(model)["lora"].adapters:
        if adapter.place.is_table:
            assert not adapter.A.data.any()
            assert 0.8 < adapter.B.data.std() < 1.2
        else:
            bound = 1 / math.sqrt(adapter.A.shape[1])
            assert not adapter.B.data.any()
            assert 0.9 * bound < np.abs(adapter.A.data).max() <= bound
        assert adapter.A.shape[0] == adapter.B.shape[1] == 4
        assert adapter.scale == 2


@pytest.mark.parametrize("engine", ["plain", "fast"])
@pytest.mark.parametrize("kind", ["rows of a layer", "two of a layer", "table", "with dropout"])
def test_gradients_of_adapters(kind: str, engine: str, rng: np.random.Generator) -> None:
    """By differences: of A and B, of the input, and of what is below."""
    config = LoraConfig(
        rank=2,
        targets={"rows of a layer": ("k_proj",), "table": ("embed_tokens", "v_proj")}.get(kind, ("q_proj", "v_proj")),
        dropout=0.4 if kind == "with dropout" else 0.0,
    )
    model = adapted(config, Llama(LLAMA).to("float64"))
    ids, names = rng.integers(0, 31, (2, 5)), list(lora_state_dict(model))
    chosen = {name: parameter for name, parameter in model.named_parameters() if name in names[:2] + names[-2:]}

    def loss(*arrays: Any) -> Any:
        minillm.manual_seed(3)
        for name, array in zip(chosen, arrays, strict=True):
            owner, _, kind = name.rpartition(".")
            vars(dict(model.named_modules())[owner])[kind] = array
        return ops.softmax(model(ids))

    with minillm.engine(engine):
        check_gradients(loss, *[parameter.data.copy() for parameter in chosen.values()])


def test_only_adapters_are_trained(ids: np.ndarray) -> None:
    """Frozen weights get no gradient and no moments, and the optimiser leaves them as they were, bit for bit."""
    model = adapted(LoraConfig(rank=2, dropout=0.1))
    before = {name: array.copy() for name, array in model.state_dict().items()}
    optimizer = AdamW(decay_groups(model.parameters(), 0.1), 0.01)
    trained = set(lora_state_dict(model))
    assert sum(group.data.size for group in optimizer.groups) < 20 * 16 * len(trained)
    assert {key.partition(".")[2] for key in optimizer.state_dict()} >= trained
    assert not [key for key in optimizer.state_dict() if key.partition(".")[2] in before.keys() - trained]
    for _ in range(3):
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
        assert {name for name, x in model.named_parameters() if x.grad is not None} == trained
        optimizer.step()
        optimizer.zero_grad()
    for name, array in model.state_dict().items():
        assert np.array_equal(array, before[name]) == (name not in trained), name


def test_blocks_below_the_first_adapter_keep_nothing(ids: np.ndarray) -> None:
    """No graph is recorded where no gradient goes."""
    model = adapted(LoraConfig(targets=("q_proj",), layers_to_transform=(2,)))
    calls: list = []
    with minillm.autograd.observe(on_forward=calls.append):
        model.loss(ids[:, :-1], ids[:, 1:])
    assert not [call for call in calls if call.node is not None and call.scope.startswith(("h.0", "h.1", "wte"))]
    assert [call for call in calls if call.node is not None and call.scope.startswith("h.2.attn.qkv")]


def test_a_recomputed_block_has_equal_gradients(ids: np.ndarray) -> None:
    gradients = []
    for again in (False, True):
        model = adapted(LoraConfig(rank=2, dropout=0.3))
        if again:
            recompute(model)
        minillm.manual_seed(4)
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
        gradients.append({name: x.grad for name, x in model.named_parameters() if x.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == lora_state_dict(model).keys()
    for name, gradient in gradients[0].items():
        np.testing.assert_array_equal(gradient, gradients[1][name])


def test_dropout_acts_in_training_alone(ids: np.ndarray) -> None:
    model = adapted(LoraConfig(dropout=0.5))
    training = [output(model.train(), ids) for _ in range(2)]
    assert np.abs(training[0] - training[1]).max() > 0.01
    evaluated = output(model.eval(), ids)
    np.testing.assert_array_equal(evaluated, output(model, ids))
    also = add_lora(drawn(Llama(LLAMA)).eval(), LoraConfig(dropout=0.5))  # of a model in evaluation mode
    for name, array in lora_state_dict(model).items():
        lora_state_dict(also)[name][...] = array
    np.testing.assert_array_equal(output(also, ids), evaluated)
    np.testing.assert_allclose(output(merge(model), ids), evaluated, rtol=1e-4, atol=1e-4)


# --- on and off, merged and not ------------------------------------------------------------------------------------


def test_adapters_can_be_switched_off(ids: np.ndarray) -> None:
    """The reference of DPO is the model as it was, with the head that it had; also within another such block."""
    model = drawn(BertForSequenceClassification(BertConfig.preset("nano")))
    plain = output(model, ids)
    adapted(model=model)
    trained = output(model, ids)
    with adapters_off(model):
        off = output(model, ids)
        with adapters_off(model):
            np.testing.assert_array_equal(output(model, ids), off)
        np.testing.assert_array_equal(output(model, ids), off)
    np.testing.assert_array_equal(off, plain)
    np.testing.assert_array_equal(output(model, ids), trained)
    assert np.abs(off - trained).max() > 0.01
    with pytest.raises(InputError, match="adapters_off: the adapters are merged"), adapters_off(merge(model)):
        pass
    with pytest.raises(InputError, match="adapters_off: the model has no adapters"), adapters_off(Llama(LLAMA)):
        pass


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), "all-linear", ("embed_tokens", "lm_head")])
def test_merging_twice_is_refused_and_unmerging_is_exact(targets: Any, ids: np.ndarray) -> None:
    model = adapted(LoraConfig(targets=targets))
    before, out = {name: array.copy() for name, array in model.state_dict().items()}, output(model, ids)
    for _ in range(3):
        merge(model)
        merged = output(model, ids)
        np.testing.assert_allclose(merged, out, rtol=1e-4, atol=1e-4)
        with pytest.raises(InputError, match="merge: the adapters are merged already"):
            merge(model)
        np.testing.assert_array_equal(output(model, ids), merged)
        assert not any("lora" in name for name, _ in model.named_parameters())
        unmerge(model)
        with pytest.raises(InputError, match="unmerge: the adapters are not merged"):
            unmerge(model)
        np.testing.assert_array_equal(output(model, ids), out)
    assert before.keys() == model.state_dict().keys()
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_bfloat16_is_merged_in_float32() -> None:
    """Each merged weight is the exact sum, rounded once: off by half a unit in the last of 8 bits at most."""
    pytest.importorskip("ml_dtypes")
    model = adapted(LoraConfig(rank=8, targets="all-linear"), Llama(LLAMA).to("bfloat16"))
    exact = {}
    for adapter in vars(model)["lora"].adapters:
        weight = exact.setdefault(adapter.place.path, dict(model.named_modules())[adapter.place.path].weight.data)
        exact[adapter.place.path] = weight = np.array(weight, np.float64)
        change = adapter.scale * adapter.B.data.astype(np.float64) @ adapter.A.data.astype(np.float64)
        weight[adapter.place.start : adapter.place.start + len(change)] += change
    merge(model)
    for path, weight in exact.items():
        received = dict(model.named_modules())[path].weight.data
        assert received.dtype.name == "bfloat16"
        assert (np.abs(received.astype(np.float64) - weight) <= 2.0**-8 * np.abs(weight) + 1e-6).all()


def test_a_merged_model_is_a_plain_one(ids: np.ndarray, tmp_path: Path) -> None:
    model = adapted(LoraConfig(targets=("q_proj", "embed_tokens")), Llama(minillm.models.llama.PRESETS["nano"]))
    with pytest.raises(InputError, match="save_pretrained: the model has adapters"):
        model.save_pretrained(tmp_path / "early")
    expected = output(model, ids)
    merge(model).save_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(output(minillm.load(tmp_path / "merged"), ids), expected, rtol=1e-4, atol=1e-4)


def test_a_merged_model_can_be_trained_as_before() -> None:
    """What needed a gradient before needs one again; taken out, adapters alone do. Weights need not be kept."""
    model = drawn(Bart(BartConfig.preset("nano")))
    needed = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    adapted(model=model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    merge(model)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == needed
    assert not needed["final_logits_bias"]
    unmerge(model)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained
    with pytest.raises(InputError, match="unmerge: the weights from before were not kept"):
        unmerge(merge(model, keep=False))


def test_adapters_can_be_added_to_a_merged_model(ids: np.ndarray) -> None:
    model = merge(adapted())
    before = output(model, ids)
    add_lora(model, LoraConfig(rank=2))
    np.testing.assert_array_equal(output(model, ids), before)
    with pytest.raises(InputError, match="add_lora: the model has adapters already"):
        add_lora(model)


def test_a_model_of_one_s_own_has_its_paths_as_names(rng: np.random.Generator, tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            self.first, self.more = nn.Linear(3, 4), [nn.Linear(4, 4), nn.Linear(4, 2)]
            self.assign_names()

        def forward(self, x: Any) -> Any:
            return self.more[1](ops.relu(self.more[0](self.first(x))))

    x = minillm.Tensor(rng.normal(size=(5, 3)).astype(np.float32))
    model = adapted(model=Own())
    assert [adapter.place.name for adapter in vars(model)["lora"].adapters] == ["first", "more.0", "more.1"]
    save_lora(model, tmp_path)
    np.testing.assert_array_equal(load_lora(drawn(Own()), tmp_path)(x).data, model(x).data)


# --- targets that fit nothing, and layers that cannot be adapted ---------------------------------------------------

REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (Llama(LLAMA), {"targets": ("q_prj",)}, r"no layer fits the target 'q_prj'; did you mean 'q_proj'\?"),
    (Llama(LLAMA), {"targets": ("q_proj", "c_attn")}, "no layer fits the target 'c_attn'.* end with .*q_proj, k_proj"),
    (Llama(LLAMA), {"targets": r".*\.q_prox"}, r"no layer fits the target '\.\*\\\\\.q_prox'"),
    (Llama(LLAMA), {"targets": ("self_attn",)}, "fits model.layers.0.self_attn, which is no linear layer and no table"),
    (Llama(LLAMA), {"targets": r".*norm"}, "fits model.*norm, which is no linear layer"),
    (Llama(LLAMA), {"targets": ("q_proj",), "layers_to_transform": (7,)}, "no layer is left of the targets q_proj"),
    (Llama(LLAMA), {"targets": ("q_proj",), "exclude": r".*q_proj"}, "no layer is left of the targets q_proj"),
    (Llama(LLAMA), {"modules_to_save": ("lm_heat",)}, r"no module that can be saved is called 'lm_heat'; did you mean"),
    (Llama(LLAMA), {"modules_to_save": ("q_proj",), "targets": ("v_proj",)}, "is only a part of .*k_proj.*; give all"),
    (
        XLNetLMHeadModel(XLNetConfig.preset("nano")),
        {"targets": ("q",)},
        r"layer.0.rel_attn.q is a parameter and no layer",
    ),
    (
        BertForMaskedLM(BertConfig.preset("nano")),
        {"targets": ("word_embeddings",)},
        "bert.embeddings.word_embeddings shares its weight with cls.predictions.decoder in every BertForMaskedLM",
    ),
    (Bart(BartConfig.preset("nano")), {"targets": ("shared",)}, "model.shared shares its weight with"),
    (BertForMaskedLM(BertConfig.preset("nano")), {"modules_to_save": ("cls.predictions",)}, "shares its weight with"),
    (GPT2(GPT2Config.preset("nano")), {"targets": ("q_proj",)}, "end with wte, wpe, c_attn, c_proj, c_fc, lm_head"),
]


@pytest.mark.parametrize(("model", "settings", "message"), REFUSED)
def test_what_cannot_be_adapted(model: Any, settings: dict[str, Any], message: str) -> None:
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(InputError, match=f"add_lora: .*{message}"):
        add_lora(model, LoraConfig(**settings))
    assert [name for name, _ in model.named_parameters()] == names
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if "final_logits" not in name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank is 0; give a whole number"),
        ({"rank": 2.0}, "rank is 2.0"),
        ({"rank_pattern": {"q_proj": -1}}, "q_proj is -1"),
        ({"alpha": 0}, "alpha is 0; give a number above 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"targets": ()}, "targets is empty"),
        ({"targets": "*q"}, "'\\*q' is no regular expression"),
        ({"targets": "all-linear", "layers_to_transform": (1,)}, "layers_to_transform does not narrow"),
        ({"layers_pattern": "h"}, "give that too"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"LoraConfig: .*{message}"):
        LoraConfig(**settings)


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of adapters with rank 3 on q_proj and v_proj of the Llama."""
    save_lora(adapted(), tmp_path / "adapter", base="some/model")
    return tmp_path / "adapter"


def rewritten(folder: Path, change: Any) -> None:
    """Rename arrays, or change them."""
    from safetensors.numpy import load_file, save_file

    save_file(dict(change(key, array) for key, array in load_file(folder / WEIGHTS).items()), folder / WEIGHTS)


def with_settings(folder: Path, **settings: Any) -> None:
    values = json.loads((folder / CONFIG).read_text()) | settings
    (folder / CONFIG).write_text(json.dumps(values))
    (folder / "checksums.json").unlink(missing_ok=True)


def test_a_folder_holds_what_peft_expects(folder: Path) -> None:
    from safetensors.numpy import load_file

    values, arrays = json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
    assert is_adapter(folder)
    assert list(values) == sorted(values)
    wanted = {"peft_type": "LORA", "r": 3, "lora_alpha": 6.0, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
    wanted |= {"task_type": "CAUSAL_LM", "fan_in_fan_out": False, "modules_to_save": None, "rank_pattern": {}}
    assert wanted.items() <= values.items()
    assert values["base_model_name_or_path"] == "some/model"
    shapes = {key.removeprefix("base_model.model.model.layers."): array.shape for key, array in arrays.items()}
    assert len(shapes) == 12
    assert shapes["0.self_attn.q_proj.lora_A.weight"] == (3, 16)
    assert shapes["2.self_attn.v_proj.lora_B.weight"] == (8, 3)


def test_adapters_come_back_bit_for_bit(folder: Path, ids: np.ndarray) -> None:
    model, expected = load_lora(drawn(Llama(LLAMA)), folder), adapted()
    for name, array in lora_state_dict(expected).items():
        np.testing.assert_array_equal(lora_state_dict(model)[name], array)
    np.testing.assert_array_equal(output(model, ids), output(expected, ids))


def test_a_key_without_a_place_is_listed_with_the_nearest(folder: Path) -> None:
    """Bug class 17: one missing prefix, and an adapter that would silently do nothing."""
    rewritten(folder, lambda key, array: (key.replace("model.model.model.", "model.model."), array))
    with pytest.raises(CheckpointError) as caught:
        load_lora(drawn(Llama(LLAMA)), folder)
    message = str(caught.value)
    assert "nothing here for base_model.model.layers.0.self_attn.q_proj.lora_A.weight" in message
    assert "(nearest here: base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight)" in message
    assert "no array for base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in message
    assert "and 8 more" in message


@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
def test_half_an_adapter_is_refused(half: str, folder: Path) -> None:
    rewritten(folder, lambda key, array: (f"{key}.other" if "layers.1.self_attn.q_proj." + half in key else key, array))
    model = drawn(Llama(LLAMA))
    with pytest.raises(CheckpointError, match=rf"no array for base_model.model.model.layers.1.self_attn.q_proj.{half}"):
        load_lora(model, folder)
    assert not lora_names(model)


def lora_names(model: Any) -> list[str]:
    return [name for name, _ in model.named_parameters() if "lora" in name]


def test_an_adapter_of_another_model_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="no layer fits the target 'q_proj'"):
        load_lora(GPT2(GPT2Config.preset("nano")), folder)
    larger = Llama(LlamaConfig.preset("nano", vocab_size=31, layers=3, heads=4, kv_heads=2, channels=32))
    with pytest.raises(CheckpointError, match=r"q_proj.lora_A.weight has shape \(3, 16\), expected \(3, 32\)"):
        load_lora(larger, folder)
    with_settings(folder, r=4)
    with pytest.raises(CheckpointError, match=r"has shape \(3, 16\), expected \(4, 16\)"):
        load_lora(drawn(Llama(LLAMA)), folder)


def test_an_adapter_that_changes_nothing_warns(tmp_path: Path) -> None:
    save_lora(add_lora(drawn(Llama(LLAMA))), tmp_path)
    with pytest.warns(UserWarning, match="change nothing: every B is zero"):
        load_lora(drawn(Llama(LLAMA)), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora=True, which is not supported"),
        ({"bias": "lora_only"}, "bias='lora_only', which is not supported; 'none' is"),
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"target_parameters": ["a"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"use_qalora": True}, "use_qalora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"kasa_config": {"beta": 1}}, "kasa_config"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', which also changes the model"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights='lora_ga'"),
        ({"r": "eight"}, "rank is 'eight'"),
    ],
)
def test_settings_of_peft_that_change_the_result(settings: dict[str, Any], message: str, folder: Path) -> None:
    with_settings(folder, **settings)
    with pytest.raises(InputError, match=f"load_lora: .*{CONFIG} .*{message}"):
        load_lora(drawn(Llama(LLAMA)), folder)


def test_unknown_settings_are_named_and_ignored(folder: Path) -> None:
    with_settings(folder, some_day=1)
    with pytest.warns(UserWarning, match="settings that are ignored: some_day"):
        load_lora(drawn(Llama(LLAMA)), folder)


def test_the_least_that_peft_needs_is_enough(folder: Path, ids: np.ndarray) -> None:
    expected = output(adapted(LoraConfig(rank=3, alpha=8.0)), ids)
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 3, "target_modules": ["q_proj", "v_proj"]}))
    (folder / "checksums.json").unlink()
    np.testing.assert_array_equal(output(load_lora(drawn(Llama(LLAMA)), folder), ids), expected)


def test_damaged_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is not there"):
        load_lora(Llama(LLAMA), tmp_path / "nowhere")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin, a pickle, which may run code"):
        load_lora(Llama(LLAMA), folder)
    (folder / WEIGHTS).write_bytes(b"1234")
    with pytest.raises(CheckpointError, match="cut short"):
        load_lora(Llama(LLAMA), folder)


def test_merged_adapters_can_be_saved(tmp_path: Path, ids: np.ndarray) -> None:
    model = adapted()
    expected = output(model, ids)
    save_lora(merge(model), tmp_path)
    np.testing.assert_array_equal(output(load_lora(drawn(Llama(LLAMA)), tmp_path), ids), expected)
