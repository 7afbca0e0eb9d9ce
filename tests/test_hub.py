"""Hugging Face's files: what is written is read again byte for byte, what does not fit is said at once."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import minillm
from minillm import hub
from minillm.errors import CheckpointError, InputError
from minillm.models import bert
from minillm.models.bart import Bart, BartConfig, BartModel
from minillm.models.bert import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.models.llama import Llama, LlamaConfig
from minillm.models.roberta import RobertaConfig, RobertaForMaskedLM, RobertaModel
from minillm.models.xlnet import XLNetConfig, XLNetLMHeadModel, XLNetModel
from minillm.nn import Linear, Module

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
    assert hub.names_in_file(names, "x", 7) == [("one", 7)]
    assert hub.names_in_file(names, "z", 7, [3, 4]) == [("only", 7)]
    assert hub.names_in_file(names, "h.12.y", 6) == [("a.12", 3), ("b.12", 3)]
    assert hub.names_in_file(names, "h.0.y", 6, [2, 4]) == [("a.0", 2), ("b.0", 4)]


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
    with pytest.raises(InputError, match="Only has no form in Hugging Face's format"):
        type("Only", (Module,), {"__init__": lambda self: setattr(self, "x", Linear(2, 2))})().save_pretrained(tmp_path)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 3000])
def test_files_cut_short(part, max_shard_bytes, tmp_path) -> None:
    models()["gpt2"].save_pretrained(tmp_path, max_shard_bytes=max_shard_bytes)
    path = sorted(tmp_path.glob("*.safetensors"))[-1]
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(CheckpointError, match=r"is cut short or no safetensors file \(.*\); get it again"):
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
