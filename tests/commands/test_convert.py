"""`minillm convert`: a model with its tokenizer and generation settings, in Hugging Face's form and back."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import minillm
from minillm.cli import main
from minillm.generate import generate
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.models.llama import Llama, LlamaConfig
from minillm.pretrained import SavedWith, keep
from minillm.resolver import open_model
from minillm.tokenizers import BPETokenizer, ChainTokenizer, CharacterTokenizer
from minillm.training.run import Run

TEXT = "the model reads a text, and then it writes what it has read; " * 40
SIZE = "--context 16 --layers 2 --heads 2 --channels 16 --steps 6 --batch-size 4 --eval-batches 2 --sample-every 0"
AWKWARD = ("the model reads", " then  it\n\nwrites é😀\ttext", "<|endoftext|>", "")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> SimpleNamespace:
    """A run of bytes and one of characters."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text(TEXT)
    for name, more in {"bpe": "--vocab-size 280", "char": "--tokenizer char"}.items():
        main(["train", "--data", f"{folder}/text.txt", "--out", f"{folder}/{name}", *more.split(), *SIZE.split()])
    return SimpleNamespace(bpe=folder / "bpe", char=folder / "char")


@pytest.fixture
def printed(capsys):
    """What a command that succeeds prints."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return run


def test_a_converted_run_is_the_run_with_its_tokenizer(runs, tmp_path, printed) -> None:
    for run in (runs.bpe, runs.char):
        out = tmp_path / run.name
        assert "tokenizer" not in printed("convert", run, out).replace(str(out), "")
        before, after = open_model(run), open_model(out)
        assert after.tokenizer.vocab_size == before.tokenizer.vocab_size
        for text in AWKWARD[:1] if run is runs.char else AWKWARD:
            assert after.tokenizer.encode(text) == before.tokenizer.encode(text)
        assert after.model.eos_ids == before.model.eos_ids == tuple(filter(None, [before.tokenizer.eos_id]))
        ids = before.tokenizer.encode("the model")
        assert list(generate(after.model, ids, 20, seed=3)) == list(generate(before.model, ids, 20, seed=3))
        sampled = [printed("sample", model, "--prompt", "the model ", "--max-tokens", 30) for model in (run, out)]
        assert sampled[0] == sampled[1]
        assert sampled[0].startswith("the model ")
    assert json.loads((tmp_path / "bpe" / "generation_config.json").read_text())["eos_token_id"] == 279


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_transformers_reads_ids_and_logits_of_a_converted_run(runs, tmp_path, printed) -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    for run in (runs.bpe, runs.char):
        out = tmp_path / run.name
        printed("convert", run, out)
        tokenizer = transformers.AutoTokenizer.from_pretrained(out)
        model = transformers.AutoModelForCausalLM.from_pretrained(out)
        opened = open_model(run)
        assert tokenizer.model_max_length == 16
        assert model.generation_config.eos_token_id == opened.tokenizer.eos_id
        inputs = tokenizer("the model reads", return_tensors="pt")
        assert inputs.keys() == {"input_ids", "attention_mask"}
        assert inputs["input_ids"][0].tolist() == opened.tokenizer.encode("the model reads")
        with torch.no_grad():
            theirs = model(**inputs).logits.numpy()
        ours = opened.model(inputs["input_ids"].numpy()).numpy()
        np.testing.assert_allclose(theirs, ours, atol=1e-5)
        short = tokenizer("the", return_tensors="pt")
        greedy = model.generate(**short, max_new_tokens=8, do_sample=False, pad_token_id=0)[0].tolist()
        ids = opened.tokenizer.encode("the")
        assert greedy == ids + list(generate(opened.model, ids, 8, temperature=0))


def test_the_files_of_another_model_are_not_written_over(tmp_path, capsys) -> None:
    """Neither those of another shape, nor those of equal shapes with other weights."""
    small, wide = (GPT2Config(20, 8, layers=1, heads=2, channels=channels) for channels in (16, 32))
    with minillm.random.using(minillm.random.Generator(1)):
        GPT2(small).save_pretrained(tmp_path / "a")
        GPT2(small).save_pretrained(tmp_path / "b")
        GPT2(wide).save_pretrained(tmp_path / "c")
        Llama(LlamaConfig.preset("nano")).save_pretrained(tmp_path / "d")
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "config.json").write_text("{}")
    for other in "bcde":
        before = {path: path.read_bytes() for path in (tmp_path / other).iterdir()}
        with pytest.raises(SystemExit):
            main(["convert", str(tmp_path / "a"), str(tmp_path / other)])
        assert f"convert: {tmp_path / other} has config.json" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in (tmp_path / other).iterdir()} == before
    for dtype in ("float16", "float32"):  # its own files may be written again
        main(["convert", str(tmp_path / "a"), str(tmp_path / "f"), "--dtype", dtype])
    assert "f" in capsys.readouterr().out


def test_published_tokenizers_are_copied_as_they_are(tmp_path, printed) -> None:
    Llama(LlamaConfig.preset("nano", vocab_size=3)).save_pretrained(tmp_path / "a")
    content = {
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 2}, "unk_token": "a"},
        "pre_tokenizer": {"type": "Whitespace"},
    }
    written = json.dumps(ChainTokenizer(content).to_hugging_face(), indent=7)
    (tmp_path / "a" / "tokenizer.json").write_text(written)
    (tmp_path / "a" / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    printed("convert", tmp_path / "a" / "model.safetensors", tmp_path / "b")
    assert (tmp_path / "b" / "tokenizer.json").read_text() == written
    assert (tmp_path / "b" / "tokenizer_config.json").read_text() == '{"chat_template": "x"}'
    assert not (tmp_path / "b" / "special_tokens_map.json").exists()
    printed("convert", tmp_path / "b", tmp_path / "b")  # onto itself
    assert (tmp_path / "b" / "tokenizer.json").read_text() == written


def test_a_folder_says_that_it_has_weights_without_a_tokenizer(tmp_path, printed) -> None:
    model = GPT2(GPT2Config(20, 8, layers=1, heads=2, channels=16))
    model.save_pretrained(tmp_path / "a")
    shown = printed("convert", tmp_path / "a", tmp_path / "b")
    assert "these are weights without a tokenizer: " in shown
    assert "tokenizer.json" in shown
    CharacterTokenizer.train("abc").save(tmp_path / "a")  # our own form is written anew
    assert "without a tokenizer" not in printed("convert", tmp_path / "a", tmp_path / "b")
    assert json.loads((tmp_path / "b" / "tokenizer.json").read_text())["model"]["type"] == "WordLevel"
    (tmp_path / "a" / "tokenizer.json").unlink()
    printed("convert", tmp_path / "a", tmp_path / "b")  # nothing stays of the tokenizer from before
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [
        *("checksums.json", "config.json", "model.safetensors")
    ]


def test_a_tokenizer_without_such_a_form_leaves_weights_and_a_reason(tmp_path, printed) -> None:
    made = BPETokenizer.train(TEXT, 280, pattern=r"\w+|\W+")
    GPT2(GPT2Config(280, 8, layers=1, heads=2, channels=16)).save_pretrained(tmp_path / "a")
    made.save(tmp_path / "a")
    shown = printed("convert", tmp_path / "a", tmp_path / "b")
    assert "these are weights without a tokenizer: BPETokenizer.to_hugging_face: pattern" in shown
    assert not (tmp_path / "b" / "tokenizer.json").exists()


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_models_stay_so(tmp_path, printed, tied) -> None:
    model = Llama(LlamaConfig.preset("nano", tied=tied))
    if not tied:  # equal numbers in both matrices do not tie them
        model.lm_head.weight.data[...] = model.wte.weight.data
    model.save_pretrained(tmp_path / "a")
    printed("convert", tmp_path / "a", tmp_path / "b")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["tie_word_embeddings"] is tied
    again = minillm.load(tmp_path / "b")
    assert again.config == model.config
    assert ("lm_head.weight" in again.state_dict()) is not tied
    ids = np.array([[1, 2, 3]])
    np.testing.assert_array_equal(again(ids).numpy(), model.eval()(ids).numpy())


def test_ids_that_begin_and_end_a_text_come_from_the_generation_settings(tmp_path, printed) -> None:
    made = BPETokenizer.train(TEXT, 280, ("<s>", "</s>", "<|turn|>"))
    made.around = ("<s>",), ()
    made.name_special_tokens(bos_token="<s>", eos_token="</s>")
    model = Llama(LlamaConfig.preset("nano", vocab_size=280))
    keep(model, SavedWith({"bos_token_id": 277, "eos_token_id": 278}, {"eos_token_id": [278, 279]}))
    model.save_pretrained(tmp_path / "a")
    made.save_hugging_face(tmp_path / "a")
    printed("convert", tmp_path / "a", tmp_path / "b")
    opened = open_model(tmp_path / "b")
    assert opened.model.eos_ids == (278, 279)
    assert opened.tokenizer.before_text() == [277]


def test_sample_feeds_exactly_one_token_that_begins_a_text(tmp_path, printed, monkeypatch) -> None:
    """As the tokenizer's file says, whatever the prompt spells: bug class 1."""
    made = BPETokenizer.train(TEXT, 280, ("<s>", "</s>"))
    Llama(LlamaConfig.preset("nano", vocab_size=280)).save_pretrained(tmp_path / "a")
    fed = []
    real = minillm.generate.generate_text

    def spy(model, tokenizer, prompt, *rest, **settings):
        fed.append(list(prompt))
        return real(model, tokenizer, prompt, *rest, **settings)

    monkeypatch.setattr("minillm.generate.generate_text", spy)
    for around, count in (((("<s>",), ("</s>",)), 1), (((), ()), 0)):
        made.around = around
        made.save_hugging_face(tmp_path / "a")
        for prompt in ("the model", "<s>the model", ""):
            if prompt or count:
                printed("sample", tmp_path / "a", f"--prompt={prompt}", "--max-tokens", 3)
                assert fed[-1] == [278] * count + made.encode(prompt)
                assert fed[-1].count(278) == count
                assert 279 not in fed[-1]


def test_a_run_is_not_written_over(runs, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["convert", str(runs.char), str(runs.bpe)])
    assert "is a run directory and is never written over" in capsys.readouterr().err
    assert Run.open(runs.bpe).tokenizer.vocab_size == 280
    assert isinstance(runs.bpe, Path)


def test_text_that_is_generated_from_text_begins_once(monkeypatch) -> None:
    """generate_text with a text puts in front what the tokenizer says; token ids are complete as they are."""
    made = BPETokenizer.train(TEXT, 280, ("<s>", "</s>"))
    model = Llama(LlamaConfig.preset("nano", vocab_size=280))
    fed = []
    real = minillm.generate.generate

    def spy(model, ids, *rest, **settings):
        fed.append(list(ids))
        return real(model, ids, *rest, **settings)

    monkeypatch.setattr("minillm.generate.generate", spy)
    for around, before in (((), ()), []), ((("<s>",), ("</s>",)), [278]):
        made.around = around
        list(minillm.generate.generate_text(model, made, "the <s>model", 2))
        assert fed[-1] == before + made.encode("the <s>model")
        list(minillm.generate.generate_text(model, made, [278, 5], 2))
        assert fed[-1] == [278, 5]
