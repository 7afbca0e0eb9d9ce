"""Training adapters in the loop: what is saved, resumed bit for bit, and opened afterwards."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minillm
from minillm.checkpoint import load_checkpoint
from minillm.checksums import KEY
from minillm.cli import main
from minillm.errors import CheckpointError, InputError
from minillm.lora import LoraConfig, add_lora, is_lora, load_lora, lora_state_dict, save_lora
from minillm.models.gpt2 import GPT2Config
from minillm.models.llama import LlamaConfig
from minillm.training.config import TrainConfig
from minillm.training.trainer import train

TEXT = "the quick brown fox jumps over the lazy dog. " * 60
CONFIG = TrainConfig(
    tokenizer="char",
    model=GPT2Config.preset("nano", context=16, dropout=0.1),
    steps=6,
    batch_size=4,
    eval_every=3,
    eval_batches=2,
    sample_every=0,
    lr=0.05,
    lora=LoraConfig(rank=3, dropout=0.2, targets=("c_attn", "c_fc")),
    threads=1,
)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    (tmp_path / "text.txt").write_text(TEXT)
    return dataclasses.replace(CONFIG, data=str(tmp_path / "text.txt"), out=tmp_path / "run")


def checkpoint_of(folder: Path) -> Any:
    return load_checkpoint(folder / "checkpoints" / "last.safetensors")


def test_a_run_trains_and_saves_adapters_alone(config: TrainConfig) -> None:
    run = train(config, progress=False)
    found = checkpoint_of(run.folder)
    assert len(found.model) == 8
    assert all(".lora." in name for name in found.model)
    assert {name.partition(".")[2] for name in found.optimizer if "." in name} == set(found.model)
    assert all(array.any() for array in found.model.values())  # every B has moved
    assert run.folder.joinpath("checkpoints/last.safetensors").stat().st_size < 50_000
    losses = [record["val_loss"] for record in run.metrics() if record["val_loss"] is not None]
    assert losses[1] < losses[0]


def test_a_resumed_run_ends_bit_for_bit(config: TrainConfig, tmp_path: Path) -> None:
    """A constant rate, so that a run of half the steps is the first half of the other."""
    config = dataclasses.replace(config, min_lr=config.lr, warmup=0)
    whole = checkpoint_of(train(config, progress=False).folder)
    part = train(dataclasses.replace(config, steps=3, out=tmp_path / "part"), progress=False)
    assert checkpoint_of(part.folder).state["step"] == 3
    config = dataclasses.replace(config, out=part.folder)
    again = checkpoint_of(train(config, resume=part.folder, progress=False).folder)
    for ours, theirs in ((again.model, whole.model), (again.optimizer, whole.optimizer)):
        assert ours.keys() == theirs.keys()
        for name, array in theirs.items():
            np.testing.assert_array_equal(ours[name], array)


def test_adapters_belong_to_their_base(config: TrainConfig) -> None:
    """A run does not go on when the frozen weights are others: here, of another seed."""
    run = train(dataclasses.replace(config, steps=3), progress=False)
    other = dataclasses.replace(config, seed=5, out=run.folder)
    with pytest.raises(CheckpointError, match="train: the weights under the adapters are not those"):
        train(other, resume=run.folder, progress=False)


def test_a_run_is_opened_with_its_adapters_merged(config: TrainConfig, tmp_path: Path) -> None:
    run = train(config, progress=False)
    model = minillm.load(run.folder)
    assert not is_lora(model)
    ids = np.arange(16)[None] % 20
    model.save_pretrained(tmp_path / "merged")
    with minillm.no_grad():
        np.testing.assert_array_equal(minillm.load(tmp_path / "merged")(ids).data, model(ids).data)
    values = json.loads((run.folder / "config.json").read_text())
    del values[KEY]  # the settings are changed by hand
    (run.folder / "config.json").write_text(json.dumps(values | {"seed": 1}))
    with pytest.raises(CheckpointError, match=r"the weights under the adapters of .* are not those"):
        minillm.load(run.folder)


def test_an_adapter_folder_is_opened_on_its_base(tmp_path: Path) -> None:
    from minillm.models.llama import Llama

    base = Llama(LlamaConfig.preset("nano"))
    base.save_pretrained(tmp_path / "plain")
    model = add_lora(minillm.load(tmp_path / "plain"), LoraConfig(rank=2))
    rng = np.random.default_rng(0)
    for array in lora_state_dict(model).values():
        array[...] = rng.normal(0, 0.3, array.shape)
    save_lora(model, tmp_path / "adapter", base="../plain")
    ids = np.arange(16)[None]
    with minillm.no_grad():
        expected, opened = model(ids).data, minillm.load(tmp_path / "adapter")
        np.testing.assert_allclose(opened(ids).data, expected, rtol=1e-4, atol=1e-4)
    assert not is_lora(opened)
    assert is_lora(load_lora(minillm.load(tmp_path / "plain"), tmp_path / "adapter"))


@pytest.mark.parametrize("division", [{"tp": 2}, {"pp": 2}])
def test_layers_under_adapters_are_not_divided(division: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"train: --lora 3 trains adapters of whole layers.*--dp and --zero work"):
        dataclasses.replace(CONFIG, **division)


def test_settings_come_back_from_json() -> None:
    lora = LoraConfig(rank=4, targets="q_proj,v_proj", rank_pattern={"q_proj": 2}, layers_to_transform=(1, 2))
    config = dataclasses.replace(CONFIG, lora=lora)
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


# --- from the command line -----------------------------------------------------------------------------------------


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a text and a run that was trained on it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    small = ["--layers", "2", "--heads", "2", "--channels", "32", "--context", "16", "--threads", "1"]
    main(["train", "--data", "text.txt", "--vocab-size", "300", "--steps", "4", "--out", "base", *small])
    return tmp_path


def test_adapters_on_a_trained_model(start: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """train --init, resumed, converted, sampled: the frozen weights are those of the first run."""
    few = ["--steps", "4", "--min-lr", "0.01", "--lr", "0.01", "--warmup", "0", "--threads", "1"]
    lora = ["--lora", "4", "--lora-alpha", "8", "--lora-targets", "c_attn,c_fc", "--lora-dropout", "0.1"]
    main(["train", "--init", "base", "--data", "text.txt", *few, *lora, "--out", "tuned"])
    saved = checkpoint_of(start / "tuned").model
    assert len(saved) == 8
    main(["train", "--resume", "tuned", "--steps", "6"])
    main(["convert", "tuned", "merged"])
    main(["sample", "tuned", "--prompt", "the ", "--max-tokens", "5"])
    base, tuned = minillm.load("base").state_dict(), minillm.load("merged").state_dict()
    assert base.keys() == tuned.keys()
    for name, array in base.items():
        assert np.array_equal(array, tuned[name]) == (not name.endswith(("qkv.weight", "fc.weight"))), name
    (start / "base" / "checkpoints" / "best.safetensors").unlink()
    (start / "base" / "checkpoints" / "last.safetensors").rename(start / "elsewhere")
    with pytest.raises(SystemExit):
        main(["train", "--resume", "tuned", "--steps", "8"])


def test_an_option_of_adapters_needs_them(start: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--data", "text.txt", "--lora-alpha", "8"])
    assert "train: --lora-alpha does nothing here; leave it out, or give --lora RANK" in capsys.readouterr().err


def test_finetuning_with_adapters(start: Path) -> None:
    records = [{"prompt": f"the {word} ", "completion": "fox jumps"} for word in TEXT.replace(".", "").split()[:40]]
    (start / "records.jsonl").write_text("\n".join(map(json.dumps, records)))
    main(["finetune", "sft", "base", "--data", "records.jsonl", "--lora", "2", "--steps", "3", "--threads", "1",
          "--out", "sft", "--eval-every", "3"])  # fmt: skip
    config = json.loads((start / "sft" / "config.json").read_text())
    assert config["lora"]["rank"] == 2
    assert config["lr"] == pytest.approx(2e-4)
    assert all(".lora." in name for name in checkpoint_of(start / "sft").model)
    assert not is_lora(minillm.load("sft"))


def test_a_run_s_adapters_are_written_for_peft(start: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--steps", "3", "--threads", "1", "--lr", "0.05", "--eval-every", "3"]
    main(["train", "--init", "base", "--data", "text.txt", *few, "--lora", "2", "--out", "tuned"])
    assert "weights (512 of them, the adapters, are trained), " in capsys.readouterr().out
    main(["convert", "tuned", "adapter", "--adapter"])
    main(["convert", "tuned", "merged"])
    main(["convert", "adapter", "from-adapter"])
    values = json.loads((start / "adapter" / "adapter_config.json").read_text())
    assert values["base_model_name_or_path"] == str(start / "base")
    assert values["target_modules"] == ["c_attn"]
    ids = np.arange(16)[None]
    with minillm.no_grad():
        expected = minillm.load("tuned")(ids).data
        for other in ("merged", "from-adapter", "adapter"):
            np.testing.assert_array_equal(minillm.load(other)(ids).data, expected)
    with pytest.raises(SystemExit):
        main(["convert", "base", "nothing", "--adapter"])
    assert "convert: base has no adapters, which --adapter would write; leave --adapter out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["convert", "tuned", "merged", "--adapter"])
    assert "convert: merged has config.json, model.safetensors of another model" in capsys.readouterr().err


def test_a_run_whose_base_is_gone_says_where_it_was(start: Path, capsys, monkeypatch) -> None:
    few = ["--steps", "2", "--threads", "1", "--eval-every", "2"]
    main(["train", "--init", "base", "--data", str(start / "text.txt"), *few, "--lora", "2", "--out", "tuned"])
    (start / "base").rename(start / "moved")
    for command in (["sample", "tuned"], ["train", "--resume", "tuned", "--steps", "4"], ["convert", "tuned", "x"]):
        with pytest.raises(SystemExit):
            main(command)
        error = capsys.readouterr().err
        assert error.startswith(
            f"{command[0]}: base, whose weights are under the adapters of tuned, is not there, seen"
        )
        assert f"seen from {start}; put it back, or put its path in `init` of tuned/config.json and take" in error
    content = json.loads((start / "tuned" / "config.json").read_text())
    del content[KEY]  # the settings are changed by hand
    (start / "tuned" / "config.json").write_text(json.dumps(content | {"init": str(start / "moved")}))
    main(["sample", "tuned", "--max-tokens", "1"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_adapter_on_another_base_of_equal_shapes_is_refused(tmp_path: Path, dtype: str) -> None:
    """One number of one frozen weight is another; where PEFT wrote the adapter, nothing can be told."""
    from safetensors.numpy import load_file, save_file

    from minillm.models.llama import Llama

    Llama(LlamaConfig.preset("nano")).save_pretrained(tmp_path / "plain")
    base = minillm.load(tmp_path / "plain")
    base.wte.weight.data[3, 2] += 1e-3
    base.save_pretrained(tmp_path / "other")
    model = add_lora(minillm.load(tmp_path / "plain"), LoraConfig(rank=2))
    for array in lora_state_dict(model).values():
        array[...] = 0.1
    save_lora(model, tmp_path / "adapter", base="../plain")
    load_lora(minillm.load(tmp_path / "plain", dtype), tmp_path / "adapter")
    with pytest.raises(
        CheckpointError, match=r"adapter were trained on other weights than those of this Llama.*'../plain'"
    ):
        load_lora(minillm.load(tmp_path / "other", dtype), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt"})
    load_lora(minillm.load(tmp_path / "other", dtype), tmp_path / "adapter")


def test_a_rank_above_the_width_of_a_layer_is_said(start: Path, capsys) -> None:
    few = ["--steps", "1", "--threads", "1", "--lora-targets", "c_attn,c_fc"]
    for rank, said in (("32", False), ("33", True)):
        main(["train", "--init", "base", "--data", "text.txt", *few, "--lora", rank, "--out", f"rank-{rank}"])
        shown = capsys.readouterr().out
        assert ("4 of 4 adapters have a rank above the width of their layer, such as" in shown) == said
        assert ("rank 32 can express every change of a layer of 96 x 32, and 33 costs more" in shown) == said
