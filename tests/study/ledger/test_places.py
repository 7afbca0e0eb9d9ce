"""The ledger on models wherever they are: a run, an adapter, a .gguf, and what it says of them."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from minillm.cli import main
from minillm.lora import LoraConfig, add_lora, save_lora
from minillm.models.llama import Llama, LlamaConfig
from minillm.resolver import load
from minillm.study.ledger import check, open_subject

SIZE = "--context 16 --layers 2 --heads 2 --channels 16 --steps 2 --batch-size 4 --eval-batches 1 --sample-every 0"


def run_of(text, out, *more: str):
    with contextlib.redirect_stdout(io.StringIO()):
        main(["train", "--data", str(text), "--out", str(out), *SIZE.split(), *more])
    return out


def verdicts(subject, *names: str) -> dict[str, str]:
    found = [verdict for name in names for verdict in check(subject, name)]
    for one in found:
        assert one.verdict != "fails", one
    return {one.claim: one.verdict for one in found}


def test_a_run_is_checked_with_its_tokenizer_and_its_text(text, tmp_path):
    run = run_of(text, tmp_path / "run", "--vocab-size", "300")
    with open_subject(str(run), "", None) as subject:
        assert subject.command == f"minillm check {run}"
        for row in subject.batch["ids"]:
            assert subject.tokenizer.decode(row.tolist()) in text.read_text()
        assert subject.batch["ids"].max() > 255  # pieces of the run's own tokenizer
        trained = load(run).state_dict()
        for name, array in subject.model("float32").state_dict().items():
            np.testing.assert_array_equal(array, trained[name])
        found = verdicts(subject, "gradient", "kv-cache", "resumed", "hugging-face", "dropout")
        assert set(found.values()) == {"holds"}


def test_a_run_whose_text_is_gone(text, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(text.read_text())
    run = run_of(other, tmp_path / "run", "--tokenizer", "char")
    other.unlink()
    with pytest.raises(Exception, match=r"other\.txt"), open_subject(str(run), "", None):
        pass
    with open_subject(str(run), "", str(text)) as subject:
        assert verdicts(subject, "fast") == {"fast": "holds"}


def test_ranks_get_the_tokenizer_of_a_folder(text, tmp_path):
    run = run_of(text, tmp_path / "run", "--tokenizer", "char")
    main(["convert", str(run), str(tmp_path / "folder")])
    with open_subject(str(tmp_path / "folder"), "", str(text)) as subject:
        assert subject.tokenizer.kind == "chain"
        assert verdicts(subject, "dp") == {"dp": "holds"}


def test_an_adapter_is_checked_as_what_it_makes_of_its_base(folders, text, tmp_path):
    model = load(folders / "llama")
    add_lora(model, LoraConfig(rank=2))
    for name, parameter in model.named_parameters():
        if name.endswith(".B"):
            parameter.data[...] = 0.1
    save_lora(model, tmp_path / "adapter", base=folders / "llama")
    with open_subject(str(tmp_path / "adapter"), "", str(text)) as subject:
        base = load(folders / "llama").state_dict()
        changed = [name for name, array in subject.model("float32").state_dict().items() if (array != base[name]).any()]
        assert changed
        assert set(verdicts(subject, "fast", "lora", "resumed", "hugging-face").values()) == {"holds"}


def test_a_gguf(text, tmp_path):
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    from tests.test_gguf import write

    config = LlamaConfig(128, 16, 2, 4, 2, 64, 96, rope_base=1e3)
    write(tmp_path / "model.gguf", Llama(config))
    with open_subject(str(tmp_path / "model.gguf"), "", str(text)) as subject:
        assert set(verdicts(subject, "fast", "kv-cache", "resumed", "hugging-face").values()) == {"holds"}


def test_a_model_without_a_form_in_hugging_faces_files(text, tmp_path):
    run = run_of(text, tmp_path / "run", "--tokenizer", "char", "--no-bias")
    with open_subject(str(run), "", str(text)) as subject:
        [verdict] = check(subject, "hugging-face")
    assert verdict.verdict == "does not apply"
    assert "a GPT2 with bias=False cannot be saved" in verdict.remark


def test_weights_that_are_not_those_of_the_file(folders, text, monkeypatch):
    """The array of a file is read and written wrong in the same way: only the file itself can tell."""
    from minillm.models import gpt2

    names = dict(gpt2.HUGGING_FACE)
    with open_subject(str(folders / "gpt2"), "", str(text)) as subject:
        [before] = check(subject, "hugging-face")
        one, two = "h.{i}.ln_1.bias", "h.{i}.ln_2.bias"
        monkeypatch.setattr(gpt2, "HUGGING_FACE", names | {one: names[two], two: names[one]})
        [after] = check(subject, "hugging-face")
    assert before.verdict == "holds"
    assert before.remark.startswith("28 of 28 arrays of its own files are written as they were")
    assert after.verdict == "fails"
    assert "is not the array of the file that it came from" in after.remark


def test_a_size_that_has_fewer_ids_than_the_text_has_characters(text):
    """A size of minillm/models without settings for training: its weights are random."""
    from minillm.resolver import presets

    assert "tiny" in presets()
    with open_subject(None, "tiny", str(text)) as subject:
        assert subject.start.config == presets()["tiny"][1]  # though the text has more characters than it has ids
        assert subject.tokenizer.vocab_size == 65
        assert verdicts(subject, "fast") == {"fast": "holds"}
