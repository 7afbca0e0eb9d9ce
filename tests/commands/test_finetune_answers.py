"""`minillm finetune dpo`, `reward` and `grpo`, from a trained run on, and how they are continued."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import minillm
from minillm.cli import main
from minillm.models.gpt2 import GPT2Config
from minillm.tokenizers import BPETokenizer
from minillm.training import Run, TrainConfig, train

WORDS = ["the", "model", "reads", "text", "and", "then", "it", "writes"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model that was trained a little, and pairs of answers."""
    here, rng = tmp_path_factory.mktemp("finetune"), np.random.default_rng(0)
    answers = [" ".join(rng.choice(WORDS, rng.integers(1, 4))) for _ in range(30)]
    pairs = [{"prompt": f"{i}:", "chosen": one.upper(), "rejected": one} for i, one in enumerate(answers)]
    (here / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (here / "text.txt").write_text(" ".join(rng.choice(WORDS, 400)))
    BPETokenizer.train(" ".join(WORDS), 270, ("<|endoftext|>",)).save(here / "tokenizer")
    model = GPT2Config(vocab_size=256, context=48, layers=2, heads=2, channels=16)
    common = dict(warmup=1, sample_every=0, eval_batches=1, tokenizer=str(here / "tokenizer"))
    train(TrainConfig(data=str(here / "text.txt"), out=here / "start", model=model, steps=3, batch_size=2, **common))
    return here


OPTIONS = (
    "--steps 4 --eval-every 2 --eval-batches 1 --batch-size 4 --warmup 1 --sample-every 4 --sample-tokens 4".split()
)
COMMANDS = {
    "dpo": ["--loss", "ipo", "--beta", "0.2"],
    "reward": ["--centering", "0.01"],
    "grpo": ["--group-size", "2", "--answer-length", "4", "--temperature", "0.7"],
}


@pytest.mark.parametrize("task", COMMANDS)
def test_a_trained_model_is_tuned_and_goes_on(task, folder, tmp_path, capsys) -> None:
    data = "builtin" if task == "grpo" else str(folder / "pairs.jsonl")
    words = ["finetune", task, str(folder / "start"), "--data", data, "--out", str(tmp_path / "run")]
    main([*words, *COMMANDS[task], *OPTIONS])
    run = Run.open(tmp_path / "run")
    records = [record for record in run.metrics() if record.get("loss") is not None]
    assert len(records) == 4
    if task == "dpo":
        assert records[0]["loss"] == pytest.approx(1 / (4 * 0.2**2), rel=1e-4)
    assert "held out" in capsys.readouterr().out
    main(["train", "--resume", str(tmp_path / "run"), "--steps", "5", "--eval-every", "5"])
    assert Run.open(tmp_path / "run").metrics()[-1]["step"] == 5
    model = minillm.load(tmp_path / "run")
    start = minillm.load(folder / "start")
    assert model.wte.weight.data.shape == start.wte.weight.data.shape
    if task == "reward":
        assert model(np.array([[1, 2, 3]])).shape == (1, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["finetune", "dpo"], "finetune dpo: MODEL is missing"),
        (["finetune", "dpo", "START"], "finetune dpo: --data is missing"),
        (["finetune", "dpo", "START", "--data", "PAIRS", "--loss", "sigmoids"], "sigmoids"),
        (
            ["finetune", "dpo", "START", "--data", "PAIRS", "--max-length", "999"],
            "max_length=999 is more than",
        ),
        (
            ["finetune", "grpo", "START", "--data", "builtin", "--batch-size", "9"],
            "batch_size=9 answers",
        ),
        (
            ["finetune", "dpo", "START", "--data", "PAIRS", "--gamma", "3"],
            "--gamma does nothing here; leave it out, or give --loss simpo",
        ),
        (
            ["finetune", "dpo", "START", "--data", "PAIRS", "--label-smoothing", "0.1"],
            "--label-smoothing does nothing here; leave it out, or give --loss conservative or robust or exo_pair",
        ),
        (
            ["finetune", "dpo", "START", "--data", "PAIRS", "--lora", "4", "--lora-alpha", "nan"],
            "finetune dpo: --lora-alpha is nan; give a number above 0",
        ),
        (["finetune", "reward", "gpt2", "--data", "PAIRS"], "gpt2 is a preset, whose weights are random"),
    ],
)
def test_what_cannot_be_done_is_said(words, message, folder, capsys) -> None:
    names = {"START": str(folder / "start"), "PAIRS": str(folder / "pairs.jsonl")}
    with pytest.raises(SystemExit):
        main([names.get(word, word) for word in words])
    assert message in capsys.readouterr().err
