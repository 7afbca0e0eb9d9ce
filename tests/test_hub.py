"""Hugging Face's files: what is written is read again byte for byte, what does not fit is said at once."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import minillm
from minillm import hub, stored
from minillm.beam_search import beam_search
from minillm.errors import CheckpointError, InputError
from minillm.generate import generate, generate_batch
from minillm.models import bert
from minillm.models.bart import Bart, BartConfig, BartModel
from minillm.models.bert import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel
from minillm.models.distilbert import DistilBertConfig, DistilBertForMaskedLM
from minillm.models.gemma import Gemma, GemmaConfig
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.models.llama import Llama, LlamaConfig
from minillm.models.roberta import RobertaConfig, RobertaForMaskedLM, RobertaModel
from minillm.models.xlnet import XLNetConfig, XLNetLMHeadModel, XLNetModel
from minillm.nn import Linear, Module
from minillm.study.describe import describe
from minillm.weights import names_in_file

GPT2_SMALL = GPT2Config(19, 16, 2, 2, 12)
LLAMA_SMALL = LlamaConfig(19, 16, 2, 4, 2, 16, 24, qkv_bias=True)


def randomized(model, seed=0):
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():
        parameter.data[...] = rng.normal(0, 0.5, parameter.shape)
    return model


BART_SMALL = BartConfig(19, 16, 2, 3, 2, 3, 12, 24, 20)
BERT_SMALL = BertConfig(vocab_size=19, context=16, layers=2, heads=2, channels=12, hidden=24)
ROBERTA_SMALL = RobertaConfig(vocab_size=19, context=16, layers=2, heads=2, channels=12, hidden=24)
NAMES = ["gpt2", "llama", "bart", "bart body", "bert", "bert tokens", "bert body", "roberta", "roberta body"]
NAMES += ["phi3", "gemma", "distilbert"]
GEMMA_SMALL = GemmaConfig(19, 16, 2, 4, 2, 16, 24, 6, window=5, full_blocks=(1,), attention_cap=3.0, logit_cap=4.0)
DISTILLED = {"token_types": 0, "classifier_dropout": 0.1}
XLNET_SMALL = XLNetConfig(vocab_size=19, layers=2, heads=2, channels=12, hidden=24, mem_len=5)
NAMES += ["xlnet", "xlnet body"]


def models():
    return {
        "gpt2": randomized(GPT2(GPT2_SMALL)),
        "llama": randomized(Llama(LLAMA_SMALL)),
        "bart": randomized(Bart(BART_SMALL)),
        "bart body": randomized(BartModel(BART_SMALL)),
        "bert": randomized(BertForPreTraining(BERT_SMALL)),
        "bert tokens": randomized(BertForMaskedLM(BERT_SMALL)),
        "bert body": randomized(BertModel(BERT_SMALL)),
        "phi3": randomized(Llama(LlamaConfig(19, 16, 2, 4, 2, 16, 24, window=5, kind="phi3"))),
        "gemma": randomized(Gemma(GEMMA_SMALL)),
        "distilbert": randomized(DistilBertForMaskedLM(DistilBertConfig(**dataclasses.asdict(BERT_SMALL) | DISTILLED))),
        "roberta": randomized(RobertaForMaskedLM(ROBERTA_SMALL)),
        "roberta body": randomized(RobertaModel(ROBERTA_SMALL)),
        "xlnet": randomized(XLNetLMHeadModel(XLNET_SMALL)),
        "xlnet body": randomized(XLNetModel(XLNET_SMALL)),
    }


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("max_shard_bytes", [10**9, 3000, 1])
def test_a_round_trip_is_byte_identical(name, max_shard_bytes, tmp_path) -> None:
    model = models()[name]
    model.save_pretrained(tmp_path / "a", max_shard_bytes=max_shard_bytes)
    loaded = minillm.load(tmp_path / "a")
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert not loaded.training
    for (key, ours), (other, theirs) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert key == other
        assert ours.dtype == theirs.dtype
        assert ours.tobytes() == theirs.tobytes(), key
    loaded.save_pretrained(tmp_path / "b", max_shard_bytes=max_shard_bytes)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    shards = list((tmp_path / "a").glob("*.safetensors"))
    assert (len(shards) > 1) == (max_shard_bytes < 10**9) == (tmp_path / "a" / "model.safetensors.index.json").exists()


def test_saving_again_leaves_nothing_of_before(tmp_path) -> None:
    first, second = models()["gpt2"], randomized(GPT2(GPT2_SMALL), seed=1)
    first.save_pretrained(tmp_path, max_shard_bytes=3000)
    second.save_pretrained(tmp_path)
    np.testing.assert_array_equal(minillm.load(tmp_path).wte.weight.data, second.wte.weight.data)
    first.save_pretrained(tmp_path, max_shard_bytes=3000)
    np.testing.assert_array_equal(minillm.load(tmp_path).wte.weight.data, first.wte.weight.data)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_dtypes(dtype, tmp_path) -> None:
    pytest.importorskip("ml_dtypes")
    model = models()["llama"].to(dtype)
    model.save_pretrained(tmp_path)
    same, converted = minillm.load(tmp_path, dtype), minillm.load(tmp_path)
    for ours, theirs, narrow in zip(model.parameters(), same.parameters(), converted.parameters(), strict=True):
        assert theirs.dtype.name == dtype
        assert ours.data.tobytes() == theirs.data.tobytes()
        assert narrow.dtype == np.float32
        np.testing.assert_array_equal(narrow.data, ours.data.astype(np.float32))


def test_a_file_may_be_given_and_names_may_lack_their_prefix(tmp_path) -> None:
    from safetensors.numpy import load_file, save_file

    model = models()["gpt2"]
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    arrays = {name.removeprefix("transformer."): array for name, array in load_file(path).items()}
    arrays["h.0.attn.bias"] = np.ones((1, 1, 16, 16), np.float32)  # a mask, as in the files of openai-community/gpt2
    arrays["h.1.attn.masked_bias"] = np.ones((), np.float32)
    save_file(arrays, path)
    for given in (path, str(tmp_path)):
        for ours, theirs in zip(model.parameters(), minillm.load(given).parameters(), strict=True):
            np.testing.assert_array_equal(ours.data, theirs.data)


def test_one_error_lists_all_that_does_not_fit(tmp_path) -> None:
    from safetensors.numpy import load_file, save_file

    models()["llama"].save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    arrays = load_file(path)
    del arrays["model.layers.0.self_attn.k_proj.weight"], arrays["lm_head.weight"]
    arrays["model.norm.weight"] = np.zeros(7, np.float32)
    arrays["model.layers.2.mlp.up_proj.weight"] = np.zeros((24, 16), np.float32)
    save_file(arrays, path)
    with pytest.raises(CheckpointError) as caught:
        minillm.load(tmp_path)
    for part in (
        "missing model.layers.0.self_attn.k_proj.weight",
        "missing lm_head.weight",
        "model.norm.weight has shape (7,), expected (16,)",
        "unexpected model.layers.2.mlp.up_proj.weight",
    ):
        assert part in str(caught.value)
    assert f"{tmp_path} do not fit its config.json: missing" in str(caught.value)
    assert str(caught.value).endswith("; get the files again, or those of one model")


def test_a_configuration_alone(tmp_path) -> None:
    models()["bert tokens"].save_pretrained(tmp_path)
    values = hub.read_config(tmp_path)
    assert (
        values == hub.read_config(str(tmp_path / "config.json")) == json.loads((tmp_path / "config.json").read_text())
    )
    assert hub.family(values) == (bert, "BertForMaskedLM")
    assert hub.family({"model_type": "bert"}) == (bert, "BertForPreTraining")
    with pytest.raises(InputError, match="there is no BertForX here"):
        hub.family(values | {"architectures": ["BertForX"]})
    with pytest.raises(CheckpointError, match=r"missing is not there; give a folder with config.json"):
        hub.read_config(tmp_path / "missing")


def test_names_in_a_file() -> None:
    names = {"x": "one", "h.{i}.y": ("a.{i}", "b.{i}"), "z": ("only",)}
    assert names_in_file(names, "x", 7) == [("one", 7)]
    assert names_in_file(names, "z", 7, [3, 4]) == [("only", 7)]
    assert names_in_file(names, "h.12.y", 6) == [("a.12", 3), ("b.12", 3)]
    assert names_in_file(names, "h.0.y", 6, [2, 4]) == [("a.0", 2), ("b.0", 4)]


def test_an_architecture_that_is_not_here(tmp_path) -> None:
    models()["gpt2"].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"architectures": ["GPT2ForX"]}, {"architectures": ["T5Model"], "model_type": "t5"}):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=rf"there is no {change['architectures'][0]} here.*GPT2LMHeadModel.*Llama"):
            minillm.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"activation_function": "mish"}))
    with pytest.raises(InputError, match=r"config.json has activation_function='mish'; here it can only be"):
        minillm.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 8}}))
    with pytest.raises(InputError, match=r"config.json has a quantization_config; get the weights as floats"):
        minillm.load(tmp_path)
    with pytest.raises(InputError, match="Only has no form in Hugging Face's format"):
        type("Only", (Module,), {"__init__": lambda self: setattr(self, "x", Linear(2, 2))})().save_pretrained(tmp_path)


# Configurations that are damaged


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_embd": "12"}, r"has n_embd='12': GPT2Config: channels is '12'; give a whole number"),
        ({"n_head": 5}, r"has n_head=5 and n_embd=12: GPT2Config: channels=12 is not a multiple of heads=5"),
        ({"n_layer": -1}, r"has n_layer=-1: GPT2Config: layers is -1; give 1 or more"),
        ({"resid_pdrop": float("nan")}, r"has resid_pdrop=nan: GPT2Config: dropout is nan; give a finite number"),
        ({"layer_norm_epsilon": 0}, r"has layer_norm_epsilon=0: GPT2Config: norm_eps is 0; give a number above 0"),
        ({"architectures": "GPT2LMHeadModel"}, r"has architectures='GPT2LMHeadModel'; give a list of names"),
        ({"architectures": [1]}, r"has architectures=\[1\]; give a list of names"),
        ({"model_type": ["gpt2"]}, r"has model_type=\['gpt2'\]; give a name, such as 'llama'"),
    ],
)
def test_an_error_names_file_key_and_value(change, message, tmp_path) -> None:
    """In load and in describe alike."""
    models()["gpt2"].save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for function in (minillm.load, describe, hub.described):
        with pytest.raises(InputError, match=f"^load: {re.escape(str(path))} {message}"):
            function(tmp_path)


def test_sizes_that_no_memory_holds(tmp_path) -> None:
    models()["gpt2"].save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    for change in ({"vocab_size": 10**15}, {"n_positions": 10**18}, {"n_inner": 10**14}):
        path.write_text(json.dumps(values | change))
        for function in (minillm.load, describe):
            with pytest.raises(
                InputError, match=r"load: the model that the configuration of .* describes does not fit into mem"
            ):
                function(tmp_path)
    path.write_text(json.dumps(values | {"n_positions": 10**30}))
    with pytest.raises(InputError, match=r"n_positions=10+: .*give a whole number"):
        minillm.load(tmp_path)
    path.write_text(json.dumps(values | {"n_layer": 10**9}))
    with pytest.raises(CheckpointError, match=r"has layers=1000000000, but there are 28 arrays; get the files again"):
        minillm.load(tmp_path)
    assert describe(tmp_path).config.layers == 10**9


def test_a_byte_order_mark_and_what_is_no_object(tmp_path) -> None:
    model = models()["llama"]
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert minillm.load(tmp_path).config == model.config
    for text, name in (("[1, 2]", "list"), ('"gpt2"', "str"), ("7", "int")):
        path.write_text(text)
        for function in (minillm.load, describe):
            with pytest.raises(CheckpointError, match=f"config.json holds a {name}, expected an object"):
                function(tmp_path)


# What files say beside the model


def test_ids_and_settings_of_generation_are_kept(tmp_path) -> None:
    model = models()["llama"]
    model.save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a" / "generation_config.json").exists()
    assert minillm.load(tmp_path / "a").eos_ids == ()
    path = tmp_path / "a" / "config.json"
    said = {"bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": 0, "forced_bos_token_id": 3, "mine": {"a": [1]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | said | {"torch_dtype": "float16"}))
    loaded = minillm.load(tmp_path / "a")
    assert loaded.eos_ids == (2, 7)
    loaded.save_pretrained(tmp_path / "b")
    values = json.loads((tmp_path / "b" / "config.json").read_text())
    assert {key: values[key] for key in said} == said
    assert "torch_dtype" not in values
    assert values["dtype"] == "float32"
    generation = {"eos_token_id": [5], "temperature": 0.6, "do_sample": True}
    (tmp_path / "a" / "generation_config.json").write_text(json.dumps(generation))
    again = minillm.load(tmp_path / "a")
    assert again.eos_ids == (5,)
    again.save_pretrained(tmp_path / "b")
    assert json.loads((tmp_path / "b" / "generation_config.json").read_text()) == generation
    loaded.save_pretrained(tmp_path / "b")  # which has no such file
    assert not (tmp_path / "b" / "generation_config.json").exists()
    (tmp_path / "a" / "generation_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"generation_config.json holds a list, expected an object"):
        minillm.load(tmp_path / "a")


def test_generation_ends_where_the_files_say(tmp_path) -> None:
    model = models()["llama"].eval()
    tokens = list(generate(model, [1, 2], 10, temperature=0))
    end = next(token for token in tokens[1:] if token != tokens[0])
    expected = tokens[: tokens.index(end) + 1]
    assert len(expected) < 10
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, 18]}))
    loaded = minillm.load(tmp_path)
    assert list(generate(loaded, [1, 2], 10, temperature=0)) == expected
    assert generate_batch(loaded, [[1, 2]], 10, temperature=0) == [expected]
    assert list(generate(loaded, [1, 2], 10, temperature=0, stop=())) == tokens
    assert list(generate(loaded, [1, 2], 10, temperature=0, stop=[tokens[0]])) == tokens[:1]
    [[best, *_]] = beam_search(loaded, [[1, 2]], 10, beams=1)
    assert best.ids == expected


def test_bart_keeps_what_it_is_forced_to_say(tmp_path) -> None:
    model = models()["bart"]
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    for forced in (None, 5, [5, 6]):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"forced_eos_token_id": forced, "num_beams": 4}))
        loaded = minillm.load(tmp_path)
        assert loaded.eos_ids == loaded.conditioned(np.array([[1, 2]])).eos_ids == (2,)
        loaded.save_pretrained(tmp_path)
        values = json.loads(path.read_text())
        assert values["forced_eos_token_id"] == forced
        assert (values["num_beams"], values["decoder_start_token_id"]) == (4, 2)


# Two copies of one matrix

COPIES = [
    ("gpt2", "lm_head.weight", "transformer.wte.weight"),
    ("llama", "lm_head.weight", "model.embed_tokens.weight"),
    ("gemma", "lm_head.weight", "model.embed_tokens.weight"),
    ("bert", "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    ("bert", "cls.predictions.decoder.bias", "cls.predictions.bias"),
    ("roberta", "lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
    ("distilbert", "vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),
    ("bart", "lm_head.weight", "model.shared.weight"),
    ("bart", "model.decoder.embed_tokens.weight", "model.shared.weight"),
    ("xlnet", "lm_loss.weight", "transformer.word_embedding.weight"),
]


@pytest.mark.parametrize(("name", "copy", "original"), COPIES)
def test_a_tied_copy_is_that_or_is_taken_or_refused(name, copy, original, tmp_path, rng, monkeypatch) -> None:
    from safetensors.numpy import load_file, save_file

    monkeypatch.setattr(stored, "PIECE", 100)  # so that several pieces are compared
    model = models()[name].eval()
    if name in ("llama", "gemma"):
        model = randomized(type(model)(dataclasses.replace(model.config, tied=True))).eval()
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    arrays = load_file(path)
    ids = rng.integers(0, 19, (2, 6))

    def logits(of):
        found = of(ids, ids) if name == "bart" else of(ids)
        return (found[0] if isinstance(found, tuple) else found).numpy()

    save_file(arrays | {copy: arrays[original]}, path)
    np.testing.assert_array_equal(logits(minillm.load(tmp_path)), logits(model))
    save_file({copy if key == original else key: array for key, array in arrays.items()}, path)
    np.testing.assert_array_equal(logits(minillm.load(tmp_path)), logits(model))
    other = arrays[original].copy()
    other[-1] += 1
    save_file(arrays | {copy: other}, path)
    if name not in ("gpt2", "llama", "gemma"):
        with pytest.raises(CheckpointError, match=rf"has different values in {copy} and {original}, which its config"):
            minillm.load(tmp_path)
        return
    untied = minillm.load(tmp_path)
    assert not untied.config.tied
    np.testing.assert_array_equal(untied.lm_head.weight.data, other)
    np.testing.assert_array_equal(logits(untied)[..., :-1], logits(model)[..., :-1])
    assert (logits(untied)[..., -1] != logits(model)[..., -1]).all()
    untied.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma"])
def test_a_copy_that_differs_is_taken_as_transformers_takes_it(name, tmp_path, rng) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from safetensors.numpy import load_file, save_file

    model = models()[name]
    model = randomized(type(model)(dataclasses.replace(model.config, tied=True)))
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(
        load_file(path) | {"lm_head.weight": rng.normal(size=(19, 16 if name != "gpt2" else 12)).astype("f4")}, path
    )
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    ids = rng.integers(0, 19, (2, 9))
    with torch.no_grad():
        expected = reference(torch.tensor(ids)).logits.numpy()
    received = minillm.load(tmp_path)(ids).numpy()
    assert np.abs(received - expected).max() / np.abs(expected).max() < 1e-5


@pytest.mark.oracle
def test_transformers_reads_the_settings_of_generation_that_are_kept(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    models()["llama"].save_pretrained(tmp_path / "a")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    theirs.config.pad_token_id, theirs.config.bos_token_id = 3, 1
    settings = {"eos_token_id": [2, 7], "bos_token_id": 1, "pad_token_id": 3, "do_sample": True, "top_k": 7}
    theirs.generation_config = transformers.GenerationConfig(**settings)
    theirs.save_pretrained(tmp_path / "b")
    minillm.load(tmp_path / "b").save_pretrained(tmp_path / "c")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "c")
    assert back.generation_config == theirs.generation_config
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(back.config, key) == getattr(theirs.config, key)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 3000])
def test_files_cut_short(part, max_shard_bytes, tmp_path) -> None:
    models()["gpt2"].save_pretrained(tmp_path, max_shard_bytes=max_shard_bytes)
    path = sorted(tmp_path.glob("*.safetensors"))[-1]
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(CheckpointError, match=r"is damaged, cut short or not a safetensors file \(.*\); get it again"):
        minillm.load(tmp_path)


def test_damaged_files(tmp_path, rng) -> None:
    """Bytes of the header changed at random give an error of ours, or a model that is whole; nothing else."""
    models()["llama"].save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        for place in rng.integers(0, header, rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            minillm.load(tmp_path)
        except CheckpointError:
            refused += 1
    assert refused > 100
    path.write_bytes(data)
    for text in ("", "{", "[]", "\x00"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            minillm.load(tmp_path)


def test_missing_files(tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json is not there; give a folder with config.json and model"):
        minillm.load(tmp_path)
    models()["gpt2"].save_pretrained(tmp_path, max_shard_bytes=3000)
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-.*safetensors is not there"):
        minillm.load(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"names '../outside.safetensors', which is not in its folder"):
        minillm.load(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is of Linux")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_takes_the_memory_of_the_weights(dtype, tmp_path) -> None:
    pytest.importorskip("ml_dtypes")
    config = LlamaConfig(20000, 16, 4, 8, 8, 512, 2048, tied=True)
    model = Llama(config)
    weights = 4 * model.num_parameters()
    model.to(dtype).save_pretrained(tmp_path)
    del model
    # What importing left free is handed back first, or loading would fill it unseen.
    script = """
        import ctypes, gc, sys, minillm, minillm.models.llama, safetensors
        def memory(name):
            [found] = [line.split()[1] for line in open("/proc/self/status") if line.startswith(name + ":")]
            return int(found) * 1024
        gc.collect()
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
        before = memory("VmRSS")
        model = minillm.load(sys.argv[1])
        print(memory("VmHWM") - before)
    """
    taken = int(subprocess.check_output([sys.executable, "-c", textwrap.dedent(script), tmp_path], text=True))
    assert weights < taken <= 1.1 * weights


@pytest.mark.oracle
@pytest.mark.parametrize("max_shard_bytes", [10**9, 3000])
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_same_in_transformers_and_back(name, max_shard_bytes, tmp_path, rng) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, ids = models()[name].eval(), rng.integers(0, 19, (2, 16))
    model.save_pretrained(tmp_path / "ours", max_shard_bytes=max_shard_bytes)
    [architecture] = json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"]
    theirs, report = getattr(transformers, architecture).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert {one for one in report["missing_keys"] if "pooler" not in one} == set()
    assert not report["unexpected_keys"]
    given = {"decoder_input_ids": torch.tensor(ids[:, ::-1].copy())} if "bart" in name else {}
    with torch.no_grad():
        expected = theirs(torch.tensor(ids), **given)[0].numpy()
    received = model(ids, ids[:, ::-1]) if "bart" in name else model(ids)
    received = (received[0] if isinstance(received, tuple) else received).data
    assert np.abs(received - expected).max() / np.abs(expected).max() < 1e-5
    if name == "roberta body":
        return  # its pooler, which ours has not, would be unexpected
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="1GB" if max_shard_bytes > 10**6 else "3KB")
    back = minillm.load(tmp_path / "theirs")
    assert back.config == model.config
    for ours, again in zip(model.parameters(), back.parameters(), strict=True):
        assert ours.data.tobytes() == again.data.tobytes()


def test_the_end_of_a_text_where_the_files_leave_it_to_the_default(tmp_path) -> None:
    Llama(LlamaConfig.preset("nano")).save_pretrained(tmp_path / "a")
    values = json.loads((tmp_path / "a" / "config.json").read_text())
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        values.pop(key, None)
    (tmp_path / "a" / "config.json").write_text(json.dumps(values))
    model = minillm.load(tmp_path / "a")
    assert model.eos_ids == (2,)
    model.save_pretrained(tmp_path / "b")
    assert "eos_token_id" not in json.loads((tmp_path / "b" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps(values | {"eos_token_id": None}))
    assert minillm.load(tmp_path / "a").eos_ids == ()
