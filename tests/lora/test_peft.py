"""Adapters in PEFT's own hands: what PEFT writes is read here, what is written here PEFT reads, with equal logits."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minillm
from minillm.lora import LoraConfig, adapters_off, add_lora, load_lora, merge, save_lora, unmerge
from minillm.models import bart, bert, distilbert, gemma, gpt2, llama, roberta, xlnet

pytestmark = pytest.mark.oracle

SIZES: dict[str, Any] = dict(vocab_size=23, context=16, layers=3, heads=2, channels=8, hidden=12)
NO_DROPOUT: dict[str, Any] = dict(dropout=0.0, attention_dropout=0.0)
LLAMA = llama.LlamaConfig.preset("nano", vocab_size=23, context=16, layers=3, heads=4, kv_heads=2, channels=16)
HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


def llama_of(kind: str, **changes: Any) -> llama.LlamaConfig:
    """A Llama whose files have this model type."""
    values = llama.config_to_hugging_face(LLAMA) | {"model_type": kind, "architectures": None} | changes
    return llama.config_from_hugging_face(values)


MODELS: dict[str, Any] = {
    "gpt2": lambda: gpt2.GPT2(gpt2.GPT2Config(**SIZES, tied=False)),
    "gpt2, tied": lambda: gpt2.GPT2(gpt2.GPT2Config(**SIZES)),
    "llama": lambda: llama.Llama(llama_of("llama")),
    "llama, tied": lambda: llama.Llama(llama_of("llama", tie_word_embeddings=True)),
    "mistral": lambda: llama.Llama(llama_of("mistral", sliding_window=4)),
    "qwen2": lambda: llama.Llama(llama_of("qwen2", attention_bias=True)),
    "phi3": lambda: llama.Llama(llama_of("phi3")),
    "gemma3_text": lambda: gemma.Gemma(gemma.GemmaConfig.preset("nano", vocab_size=23, context=16)),
    "bert": lambda: bert.BertForMaskedLM(bert.BertConfig(**SIZES, **NO_DROPOUT)),
    "bert body": lambda: bert.BertModel(bert.BertConfig(**SIZES, **NO_DROPOUT)),
    "roberta": lambda: roberta.RobertaForMaskedLM(roberta.RobertaConfig(**SIZES, **NO_DROPOUT)),
    "distilbert": lambda: distilbert.DistilBertForMaskedLM(
        distilbert.DistilBertConfig(**SIZES, **distilbert.NO_DROPOUT)
    ),
    "bart": lambda: bart.Bart(bart.BartConfig.preset("nano", vocab_size=23, context=16)),
    "xlnet": lambda: xlnet.XLNetLMHeadModel(xlnet.XLNetConfig.preset("nano", vocab_size=23)),
    **{
        f"{name} {head}": lambda file=file, kind=prefix + head, config=config: vars(file)[kind](config)
        for name, file, prefix, config in (
            ("bert", bert, "Bert", bert.BertConfig(**SIZES, **NO_DROPOUT)),
            ("roberta", roberta, "Roberta", roberta.RobertaConfig(**SIZES, **NO_DROPOUT)),
            ("distilbert", distilbert, "DistilBert", distilbert.DistilBertConfig(**SIZES, **distilbert.NO_DROPOUT)),
        )
        for head in HEADS
    },
}
TASKS = {HEADS[0]: "SEQ_CLS", HEADS[1]: "TOKEN_CLS", HEADS[2]: "QUESTION_ANS"}


def written(name: str, folder: Path) -> Any:
    """A model with weights so large that every part matters, as files."""
    rng = np.random.default_rng(0)
    model = MODELS[name]()
    for parameter_name, parameter in model.named_parameters():
        is_norm = parameter_name.endswith("weight") and parameter.ndim == 1
        parameter.data[...] = rng.normal(0, 0.3, parameter.shape) + is_norm
    if name == "bart":
        model.final_logits_bias.data[...] = 0
    model.save_pretrained(folder)
    return minillm.load(folder)


def theirs(folder: Path) -> Any:
    """The same model in transformers."""
    transformers = pytest.importorskip("transformers")
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, architecture).from_pretrained(folder, attn_implementation="eager").eval()


IDS = np.random.default_rng(3).integers(4, 23, (2, 9))


def our_output(model: Any) -> np.ndarray:
    with minillm.no_grad():
        out = model(IDS, IDS[:, :5]) if isinstance(model, bart.Bart) else model(IDS)
    return np.stack([one.data for one in out]) if isinstance(out, tuple) else out.data


def their_output(model: Any) -> np.ndarray:
    torch = pytest.importorskip("torch")
    ids = torch.tensor(IDS)
    with torch.no_grad():
        out = model(ids, decoder_input_ids=ids[:, :5]) if "Bart" in str(type(model.get_base_model())) else model(ids)
    if "start_logits" in out:
        return np.stack([out.start_logits.numpy(), out.end_logits.numpy()])
    return (out.logits if "logits" in out else out.last_hidden_state).numpy()


def assert_close(ours: np.ndarray, other: np.ndarray) -> None:
    assert ours.shape == other.shape
    np.testing.assert_allclose(ours, other, atol=1e-5 * max(1, np.abs(other).max()))


def randomised(model: Any, seed: int = 5) -> Any:
    """Their model, with every trained number drawn at random."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


# PEFT's settings. Its "all-linear" fails on heads unless they are excluded.
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "rank 3, alpha 7, rslora": {"r": 3, "lora_alpha": 7, "use_rslora": True},
    "all-linear": {"target_modules": "all-linear", "exclude_modules": ["classifier", "pre_classifier", "qa_outputs"]},
}
DEFAULTS = {"distilbert": ["q_lin", "v_lin"], "xlnet": ["layer_1", "layer_2"], "phi3": ["qkv_proj"]}


def peft_model(name: str, base: Any, **settings: Any) -> Any:
    peft = pytest.importorskip("peft")
    task = next((task for head, task in TASKS.items() if name.endswith(head)), None)
    if "target_modules" not in settings and name.split()[0] in DEFAULTS:
        settings["target_modules"] = DEFAULTS[name.split()[0]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(base, peft.LoraConfig(task_type=task, **settings))


def read_by_peft(base: Any, folder: Path) -> Any:
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(base, folder).eval()


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", MODELS)
def test_what_peft_writes_is_read(name: str, settings: str, tmp_path: Path) -> None:
    model = written(name, tmp_path / "base")
    plain = our_output(model)
    peft = randomised(peft_model(name, theirs(tmp_path / "base"), **SETTINGS[settings])).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.save_pretrained(tmp_path / "adapter")
    if name == "phi3" and settings == "all-linear":
        with pytest.raises(minillm.errors.InputError, match="gate_up_proj, which is several layers here"):
            load_lora(model, tmp_path / "adapter")
        return
    load_lora(model, tmp_path / "adapter").eval()
    expected = their_output(peft)
    assert np.abs(expected - plain).max() > 0.01
    assert_close(our_output(model), expected)
    with adapters_off(model):
        np.testing.assert_array_equal(our_output(model), plain)
    merge(model)
    assert_close(our_output(model), expected)
    model.save_pretrained(tmp_path / "merged")
    assert_close(our_output(minillm.load(tmp_path / "merged")), expected)
    unmerge(model)
    save_lora(model, tmp_path / "again")
    assert_close(their_output(read_by_peft(theirs(tmp_path / "base"), tmp_path / "again")), expected)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_peft_reads(name: str, tmp_path: Path) -> None:
    model = written(name, tmp_path / "base")
    add_lora(model, LoraConfig(rank=2, alpha=5.0))
    rng = np.random.default_rng(9)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data[...] = rng.normal(0, 0.3, parameter.shape)
    expected = our_output(model)
    save_lora(model, tmp_path / "adapter", base=tmp_path / "base")
    peft = read_by_peft(theirs(tmp_path / "base"), tmp_path / "adapter")
    assert_close(their_output(peft), expected)
    assert_close(their_output_of_merged(peft), expected)


def their_output_of_merged(peft: Any) -> np.ndarray:
    merged = peft.merge_and_unload()
    merged.get_base_model = lambda: merged
    return their_output(merged)


# --- targets, patterns, and tables ---------------------------------------------------------------------------------

CHOICES: dict[str, tuple[str, dict[str, Any]]] = {
    "one projection": ("llama", {"target_modules": ["q_proj"]}),
    "the smallest of three": ("llama", {"target_modules": ["k_proj", "o_proj", "down_proj"]}),
    "an expression": ("llama", {"target_modules": r".*layers\.[02]\..*(q|up)_proj"}),
    "blocks": ("llama", {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0, 2]}),
    "one block": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "layers_to_transform": 1, "layers_pattern": "h"}),
    "excluded": ("bert", {"target_modules": ["query", "dense"], "exclude_modules": r".*(layer\.1\.|cls).*"}),
    "excluded by name": ("bart", {"target_modules": ["q_proj", "fc1"], "exclude_modules": ["encoder_attn.q_proj"]}),
    "ranks": (
        "bart",
        {
            "target_modules": ["q_proj", "k_proj", "v_proj", "fc2"],
            "rank_pattern": {"encoder_attn.q_proj": 2, r"layers\.0\.fc2": 3, "^model.decoder.layers.1.fc2": 5},
            "alpha_pattern": {"self_attn.v_proj": 3, r".*encoder_attn.*": 11},  # PEFT's file has them by name
        },
    ),
    "a whole module too": ("llama", {"target_modules": ["v_proj"], "modules_to_save": ["layers.1.mlp", "norm"]}),
    "Conv1D as a whole": ("gpt2", {"target_modules": ["c_attn"], "modules_to_save": ["mlp.c_fc"]}),
    "attention as a whole": ("xlnet", {"target_modules": ["layer_1"], "modules_to_save": ["layer.0.rel_attn"]}),
    "BERT's attention as a whole": ("bert", {"target_modules": ["query"], "modules_to_save": ["1.attention"]}),
    "Phi-3's attention as a whole": ("phi3", {"target_modules": ["o_proj"], "modules_to_save": ["1.self_attn"]}),
    "position table": ("gpt2", {"target_modules": ["wpe", "c_proj"]}),
    "tables": ("bert ForSequenceClassification", {"target_modules": ["word_embeddings", "token_type_embeddings"]}),
    "token table": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "output layer": ("llama", {"target_modules": ["lm_head"]}),
    "both": ("llama", {"target_modules": ["embed_tokens", "lm_head"]}),
    "tied, token table": ("llama, tied", {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied, output layer": ("llama, tied", {"target_modules": ["lm_head", "q_proj"]}),
    "tied, both": ("llama, tied", {"target_modules": ["embed_tokens", "lm_head"]}),
    "tied, output as a whole": ("llama, tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "tied, table as a whole": ("llama, tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "tied, one of each": ("llama, tied", {"target_modules": ["embed_tokens"], "modules_to_save": ["lm_head"]}),
    "GPT-2, tied, token table": ("gpt2, tied", {"target_modules": ["wte"]}),
    "GPT-2, tied, output layer": ("gpt2, tied", {"target_modules": ["lm_head", "c_attn"]}),
    "Gemma, tied, both": ("gemma3_text", {"target_modules": ["embed_tokens", "lm_head", "gate_proj"]}),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_choices_of_layers_are_peft_s(choice: str, tmp_path: Path) -> None:
    """PEFT's adapter is read, computes the same, also merged, saved and loaded; and comes back to PEFT."""
    name, settings = CHOICES[choice]
    model = written(name, tmp_path / "base")
    peft = randomised(peft_model(name, theirs(tmp_path / "base"), r=4, **settings)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.save_pretrained(tmp_path / "adapter")
    expected = their_output(peft)
    load_lora(model, tmp_path / "adapter")
    assert_close(our_output(model), expected)
    save_lora(model, tmp_path / "again")
    assert_close(their_output(read_by_peft(theirs(tmp_path / "base"), tmp_path / "again")), expected)
    merge(model).save_pretrained(tmp_path / "merged")
    assert_close(our_output(model), expected)
    assert_close(our_output(minillm.load(tmp_path / "merged")), expected)
    merged = theirs(tmp_path / "merged")
    merged.get_base_model = lambda: merged
    assert_close(their_output(merged), expected)


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "bert", "bart"])
def test_gradients_are_those_of_peft(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = written(name, tmp_path / "base")
    settings = {"target_modules": {"gpt2": ["c_attn", "c_fc"], "bert": ["query", "dense"]}.get(name, ["q_proj"])}
    peft = randomised(peft_model(name, theirs(tmp_path / "base"), **settings))
    peft.save_pretrained(tmp_path / "adapter")
    load_lora(model, tmp_path / "adapter")
    ids = torch.tensor(IDS)
    out = peft(ids, decoder_input_ids=ids[:, :5]) if name == "bart" else peft(ids)
    u = np.random.default_rng(4).normal(size=tuple(out.logits.shape)).astype(np.float32)
    out.logits.backward(torch.tensor(u))
    ours = model(IDS, IDS[:, :5]) if name == "bart" else model(IDS)
    ours.backward(u)
    expected = {
        key.replace(".default", ""): parameter.grad.numpy()
        for key, parameter in peft.named_parameters()
        if parameter.requires_grad
    }
    record = vars(model)["lora"]
    assert len(expected) == 2 * len(record.adapters) > 0
    for adapter in record.adapters:
        for kind, parameter in (("A", adapter.A), ("B", adapter.B)):
            right = expected[f"base_model.model.{adapter.place.name}.lora_{kind}.weight"]
            assert parameter.grad is not None
            np.testing.assert_allclose(parameter.grad, right, rtol=1e-3, atol=1e-4 * np.abs(right).max())
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)
