"""A run that was killed before it saved begins again, and one without a last checkpoint goes on from its best."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minillm.checkpoint import load_checkpoint
from minillm.cli import main
from minillm.training import Run

WORDS = ["the", "model", "reads", "text", "and", "then", "it", "writes"]
SIZE = "--context 8 --layers 1 --heads 2 --channels 16 --dropout 0.2 --batch-size 4 --eval-batches 2".split()
OPTIONS = "--tokenizer char --steps 6 --warmup 2 --eval-every 4 --sample-every 0 --threads 1".split()
KILLED = """
import os, signal, sys
from minillm.training import run

add_metrics = run.Run.add_metrics

def killed(self, record):
    add_metrics(self, record)
    if record["step"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)

run.Run.add_metrics = killed
from minillm.cli import main
main(sys.argv[1:])
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "text.txt").write_text(" ".join(rng.choice(WORDS, 400)))
    pairs = [f'{{"prompt": "{i}:", "chosen": "{WORDS[i % 8]}", "rejected": "{i}"}}\n' for i in range(24)]
    (tmp_path / "pairs.jsonl").write_text("".join(pairs))
    return tmp_path


def killed(*arguments: str) -> None:
    """Run a command that is killed after its third step."""
    command = [sys.executable, "-c", KILLED, *arguments]
    assert subprocess.run(command, capture_output=True, timeout=300).returncode < 0


def weights(run: str) -> dict[str, np.ndarray]:
    return load_checkpoint(Path(run) / "checkpoints" / "last.safetensors").model


def assert_same(one: str, other: str) -> None:
    expected = weights(other)
    for name, array in weights(one).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    steps = [record["step"] for record in Run.open(Path(one)).metrics()]
    assert steps == [record["step"] for record in Run.open(Path(other)).metrics()]


def test_a_run_that_was_killed_before_it_saved_begins_again(here: Path, capsys) -> None:
    command = ["train", "--data", "text.txt", *SIZE, *OPTIONS]
    main([*command, "--out", "whole"])
    killed(*command, "--out", "run")
    assert len(Run.open(Path("run")).metrics()) == 3
    Path("run/checkpoints/best.safetensors.1.tmp").write_text("half")
    capsys.readouterr()
    main(["train", "--resume", "run"])
    assert "run was stopped before it saved for the first time; it begins again from step 0" in capsys.readouterr().out
    assert_same("run", "whole")
    assert not list(Path("run").rglob("*.tmp"))


@pytest.mark.parametrize("adapters", [[], ["--lora", "2"]])
def test_a_tuning_that_was_killed_before_it_saved_begins_again_from_its_model(here: Path, adapters) -> None:
    """The reference of DPO, kept in the run, is that of the model that training starts from."""
    size = [word.replace("8", "48") if word == "8" else word for word in SIZE]
    main(["train", "--data", "text.txt", *size, *OPTIONS[2:], "--vocab-size", "270", "--out", "a"])
    command = ["finetune", "dpo", "a", "--data", "pairs.jsonl", *OPTIONS[2:], "--batch-size", "4", "--lr", "1e-3"]
    main([*command, *adapters, "--out", "whole"])
    killed(*command, *adapters, "--out", "run")
    main(["train", "--resume", "run"])
    assert_same("run", "whole")
    start = weights("a")
    assert adapters or any(not np.array_equal(array, start[name]) for name, array in weights("run").items())


def test_a_run_without_a_last_checkpoint_goes_on_from_the_best(here: Path, capsys) -> None:
    command = ["train", "--data", "text.txt", *SIZE, *OPTIONS]
    main([*command, "--out", "whole"])
    main([*command, "--out", "run"])
    run = Run.open(Path("run"))
    run.checkpoint("last").unlink()
    best = load_checkpoint(run.checkpoint("best")).state["step"]
    capsys.readouterr()
    main(["train", "--resume", "run"])
    shown = capsys.readouterr().out
    assert "run has no last checkpoint; it goes on from the best one" in shown
    assert f"from step {best}" in shown
    if best < 6:
        assert_same("run", "whole")
    else:
        assert not run.checkpoint("last").exists()


def test_the_threads_of_today_are_used(here: Path, capsys, monkeypatch) -> None:
    main(["train", "--data", "text.txt", *SIZE, *OPTIONS[:-2], "--threads", "2", "--out", "run"])
    monkeypatch.setenv("MINILLM_THREADS", "1")
    monkeypatch.setattr("minillm.backend.cutting", __import__("minillm").backend.Cutting(1))
    capsys.readouterr()
    main(["train", "--resume", "run", "--steps", "8"])
    assert "work is cut over 1 own threads now, and was over 2 own threads: the last bits" in capsys.readouterr().out
    state = load_checkpoint(Path("run/checkpoints/last.safetensors")).state
    assert state["choice"]["cutting"]["threads"] == 1
    main(["train", "--resume", "run", "--steps", "9", "--threads", "2"])
    assert load_checkpoint(Path("run/checkpoints/last.safetensors")).state["choice"]["cutting"]["threads"] == 2
