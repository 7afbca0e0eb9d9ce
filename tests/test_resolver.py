"""A model is found in every form that it may have, with its weights, its tokenizer and the ids that end a text."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import minillm
from minillm.beside import load_tokenizer
from minillm.checkpoint import load_checkpoint, save_checkpoint
from minillm.cli import main
from minillm.errors import CheckpointError, InputError, MinillmError
from minillm.lora import LoraConfig, add_lora, save_lora
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.models.llama import Llama, LlamaConfig
from minillm.pretrained import SavedWith, keep
from minillm.resolver import described, find, open_model, presets
from minillm.tokenizers import BPETokenizer, WordPieceTokenizer
from minillm.training.run import Run

TEXT = "the model reads a text, and then it writes what it has read; " * 40
SIZE = "--context 8 --layers 1 --heads 2 --channels 16 --steps 4 --eval-every 2 --batch-size 4 --eval-batches 2"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    """A run, and a folder of Hugging Face's form with a tokenizer."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "text.txt").write_text(TEXT)
    where = f"--data {folder}/text.txt --out {folder}/run --vocab-size 260 --sample-every 0"
    main(["train", *where.split(), *SIZE.split()])
    model = Llama(LlamaConfig.preset("nano", vocab_size=270))
    keep(model, SavedWith({"eos_token_id": 5}, {"eos_token_id": [6, 7]}))
    model.save_pretrained(folder / "llama")
    BPETokenizer.train(TEXT, 270).save(folder / "llama")
    return SimpleNamespace(folder=folder, run=folder / "run", llama=folder / "llama")


def same(a, b) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# What is found


def test_a_run_directory(made) -> None:
    opened = open_model(made.run)
    run = Run.open(made.run)
    best = load_checkpoint(run.checkpoint("best")).model
    assert opened.place.kind == "run"
    assert opened.model.state_dict().keys() == best.keys()
    for name, array in opened.model.state_dict().items():
        np.testing.assert_array_equal(array, best[name])
    assert not opened.model.training
    assert opened.tokenizer.fingerprint() == run.tokenizer.fingerprint()
    assert opened.run.config == run.config
    assert opened.model.eos_ids == (run.tokenizer.eot_id,)
    assert opened.saved_with.generation["eos_token_id"] == run.tokenizer.eot_id
    assert same(minillm.load(made.run), opened.model)
    assert minillm.load_tokenizer(made.run).fingerprint() == run.tokenizer.fingerprint()


def test_a_checkpoint_of_a_run(made, tmp_path) -> None:
    shutil.copytree(made.run, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.safetensors"
    (last.with_name("best.safetensors")).unlink()
    expected = load_checkpoint(last).model
    for path in (tmp_path / "run", last):  # without a best checkpoint, the last one counts
        opened = open_model(path)
        assert all(np.array_equal(array, expected[name]) for name, array in opened.model.state_dict().items())
        assert opened.tokenizer.vocab_size == 260
    other = load_checkpoint(made.run / "checkpoints" / "last.safetensors")
    changed = {name: array + 1 for name, array in other.model.items()}
    save_checkpoint(last.with_name("best.safetensors"), changed, other.optimizer, other.state)
    assert same(open_model(last).model, open_model(made.run / "checkpoints" / "last.safetensors").model)
    assert not same(open_model(last).model, open_model(tmp_path / "run").model)


def test_a_folder_and_its_safetensors(made) -> None:
    for path in (made.llama, made.llama / "model.safetensors", made.llama / "config.json", str(made.llama)):
        opened = open_model(path)
        assert type(opened.model) is Llama
        assert opened.model.eos_ids == (6, 7)  # those of generation_config.json
        assert opened.tokenizer.vocab_size == 270
        assert opened.run is None
        assert opened.template is None
    half = open_model(made.llama, "float16").model
    assert {parameter.dtype.name for parameter in half.parameters()} == {"float16"}


def test_a_preset_is_opened_only_where_random_weights_make_sense() -> None:
    name = next(name for name, (_, config) in presets().items() if isinstance(config, GPT2Config) and "nano" in name)
    opened = open_model(name, random=True)
    assert type(opened.model) is GPT2
    assert opened.tokenizer is None
    with pytest.raises(InputError, match=r"sample: .*-nano has no tokenizer to use: it is a preset, whose weights are"):
        opened.needed_tokenizer("sample")
    for function in (minillm.load, open_model):
        with pytest.raises(InputError, match=f"load: {name} is a preset, which has a configuration and random weights"):
            function(name)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma", "bert", "roberta", "distilbert", "xlnet", "bart"])
def test_models_of_every_family_are_compared_by_name(family, tmp_path, capsys) -> None:
    """A preset has the same random weights whenever it is named; a changed weight is found."""
    name = f"{family}-nano"
    model = open_model(name, random=True).model
    main(["diff", name, name])
    assert re.fullmatch(r"all \d+ layers agree; the largest difference is 0\.0e\+00\n", capsys.readouterr().out)
    weights = {name: weight.data for name, weight in model.named_parameters() if "h." in name and weight.data.any()}
    changed = max(weights, key=lambda name: weights[name].size)
    weights[changed][...] *= 1.5
    model.save_pretrained(tmp_path / "changed")
    with pytest.raises(SystemExit) as caught:
        main(["diff", name, str(tmp_path / "changed")])
    assert caught.value.code == 1
    assert capsys.readouterr().out.startswith(f"{changed.rpartition('.')[0]}: differs by ")


def test_a_folder_comes_before_a_preset_of_its_name(made, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("gpt2").kind == "preset"
    (tmp_path / "gpt2").mkdir()
    assert find("gpt2").kind == "preset"  # there is no model in it
    shutil.copy(made.llama / "config.json", tmp_path / "gpt2")
    assert find("gpt2").kind == "folder"


def test_configurations_are_read_without_weights(made, tmp_path) -> None:
    assert described(made.run).config.vocab_size == 260
    assert described(made.run).run.config.batch_size == 4
    shutil.copy(made.llama / "config.json", tmp_path)
    assert (
        described(tmp_path).config == described(made.llama).config == described(made.llama / "model.safetensors").config
    )
    assert described("gpt2").config == GPT2Config.preset("gpt2")


def test_a_tokenizer_that_cannot_be_used_is_no_reason_to_refuse_the_weights(made, tmp_path) -> None:
    shutil.copytree(made.llama, tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").write_text("{")
    opened = open_model(tmp_path / "a")
    assert opened.tokenizer is None
    with pytest.raises(InputError, match=r"^chat: .*a has no tokenizer to use: .*tokenizer.json is not JSON"):
        opened.needed_tokenizer("chat")
    (tmp_path / "a" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"^chat: .*a has no tokenizer to use: .*cannot read .*tokenizer.json"):
        open_model(tmp_path / "a").needed_tokenizer("chat")
    assert load_tokenizer(made.llama / "tokenizer.json").vocab_size == 270


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["bert", "cased", "gpt2", "roberta"])
def test_folders_with_older_tokenizer_files(tmp_path, kind) -> None:
    """Without a tokenizer.json, transformers makes one of vocab.txt, or of vocab.json and merges.txt."""
    transformers = pytest.importorskip("transformers")
    if kind in ("bert", "cased"):
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        WordPieceTokenizer.train(TEXT + " Über Ünten", 90).save_vocab_txt(tmp_path / "vocab.txt")
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": kind == "bert"}))
        theirs = transformers.BertTokenizer.from_pretrained(tmp_path, do_lower_case=kind == "bert")
    else:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        specials = ("<s>", "<pad>", "</s>", "<unk>", "<mask>") if kind == "roberta" else ("<|endoftext|>",)
        BPETokenizer.train(TEXT, 290, specials).save_gpt2_files(tmp_path)
        theirs = getattr(transformers, {"gpt2": "GPT2Tokenizer", "roberta": "RobertaTokenizer"}[kind]).from_pretrained(
            tmp_path
        )
    ours = minillm.load_tokenizer(tmp_path)
    for text in ("the model reads a text", "  It Über writes\n what, then?", "é😀"):
        assert ours.build_inputs_with_special_tokens(ours.encode(text)) == theirs(text)["input_ids"]


# What is not


def test_each_wrong_input_gives_a_sentence_with_all_forms_and_what_was_found(made, tmp_path) -> None:
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model.gguf").write_bytes(b"GGUF")
    for path, found in (
        (tmp_path / "missing", r"missing is no preset, and no folder or file of this name is there"),
        ("gpt3", r"gpt3 is no preset, .* is there; give .*; did you mean 'gpt2'\?$"),
        (tmp_path / "text.txt", r"text.txt is a file of another kind; give"),
        (tmp_path / "empty", r"empty/config.json is not there; give .*; the folder is empty$"),
        (tmp_path, r"config.json is not there; give .*; the folder has empty, gguf, text.txt$"),
        (tmp_path / "gguf", r"the folder has model.gguf; to open that file, give .*gguf/model.gguf$"),
    ):
        for function in (find, described, open_model, minillm.load):
            with pytest.raises((InputError, CheckpointError), match=found) as caught:
                function(path)
            for form in ("config.json and model.safetensors", ".gguf", "run directory", "LoRA adapter", "preset"):
                assert form in str(caught.value)
            assert not re.search(r"[.!?] [A-Z]", str(caught.value))
    with pytest.raises(CheckpointError, match=r"model.safetensors is not there|config.json is not there"):
        open_model(tmp_path / "model.safetensors")


def test_a_run_without_a_checkpoint_or_with_another_model_is_refused(made, tmp_path) -> None:
    shutil.copytree(made.run, tmp_path / "run")
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        checkpoint.unlink()
    with pytest.raises(CheckpointError, match=r"best.safetensors is not there; give a run directory that has saved"):
        open_model(tmp_path / "run")
    shutil.copytree(made.run, tmp_path / "wide")
    config = json.loads((tmp_path / "wide" / "config.json").read_text())
    config["model"]["channels"] = 32
    del config["crc32"]
    (tmp_path / "wide" / "config.json").write_text(json.dumps(config))
    with pytest.raises(MinillmError, match="the weights do not fit GPT2"):
        open_model(tmp_path / "wide")


def test_an_adapter_without_its_base_is_refused(tmp_path) -> None:
    for base in (None, "owner/model", str(tmp_path / "gone")):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
            assert find(path).kind == "adapter"
            with pytest.raises(
                CheckpointError, match=f"belongs to the base model {re.escape(repr(base))}, which is no"
            ):
                open_model(path)


def test_an_adapter_is_opened_with_its_base_merged(made, tmp_path, monkeypatch) -> None:
    """The base is a path, from here or from the adapter's folder; tokenizer and ends are those of the base."""
    base = minillm.load(made.llama)
    tuned = add_lora(minillm.load(made.llama), LoraConfig(rank=2, targets=("q_proj", "down_proj")))
    rng = np.random.default_rng(3)
    for name, parameter in tuned.named_parameters():
        if name.endswith(".B"):
            parameter.data[...] = rng.normal(size=parameter.shape)
    ids = np.array([[1, 2, 3, 4]])
    expected = tuned.eval()(ids).numpy()
    assert np.abs(expected - base(ids).numpy()).max() > 0.1
    for named in (made.llama, "../llama", "llama"):
        save_lora(tuned, tmp_path / "adapter", named)
        shutil.copytree(made.llama, tmp_path / "llama", dirs_exist_ok=True)
        monkeypatch.chdir(tmp_path)
        for path in (tmp_path / "adapter", "adapter/adapter_model.safetensors"):
            opened = open_model(path)
            np.testing.assert_allclose(opened.model(ids).numpy(), expected, atol=1e-5)
            assert opened.place.kind == "adapter"
            assert opened.tokenizer.vocab_size == 270
            assert opened.model.eos_ids == (6, 7)
            assert opened.model.state_dict().keys() == base.state_dict().keys()
            assert all(parameter.requires_grad for parameter in opened.model.parameters())
            assert described(path).config == base.config
    main(["convert", "adapter", "merged"])
    np.testing.assert_allclose(minillm.load("merged")(ids).numpy(), expected, atol=1e-5)
    assert open_model("merged").tokenizer.vocab_size == 270


def test_commands_about_tokenizers_take_models_too(made, capsys) -> None:
    for path, tokenizer in ((made.run, Run.open(made.run).tokenizer), (made.llama, load_tokenizer(made.llama))):
        main(["tokenizer", "encode", str(path), "the model"])
        ids = capsys.readouterr().out.split()
        assert list(map(int, ids)) == tokenizer.encode("the model")
        main(["tokenizer", "decode", str(path), *ids])
        assert capsys.readouterr().out == "the model\n"


def test_paths_may_be_texts_and_relative(made, monkeypatch) -> None:
    monkeypatch.chdir(made.folder)
    assert same(minillm.load("run"), minillm.load(Path("run/")))
