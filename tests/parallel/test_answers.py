"""Preference, reward and GRPO on two ranks: the run that one process would have made."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillm.checkpoint import load_checkpoint
from minillm.data.arithmetic import make_problems, write_problems
from minillm.models.gpt2 import GPT2Config
from minillm.tokenizers import BPETokenizer
from minillm.training.config import TrainConfig
from minillm.training.run import Run
from minillm.training.tasks.grpo import GRPOOptions
from minillm.training.tasks.preference import PreferenceOptions
from minillm.training.tasks.reward import RewardOptions
from minillm.training.trainer import train

TASKS: dict[str, tuple[str, Any]] = {
    "dpo": ("preference", PreferenceOptions()),
    "ipo": ("preference", PreferenceOptions(loss="ipo")),
    "orpo": ("preference", PreferenceOptions(loss="orpo")),
    "kto": ("preference", PreferenceOptions(loss="kto")),
    "reward": ("reward", RewardOptions(centering=0.01)),
    "grpo": ("grpo", GRPOOptions(group_size=3, answer_length=4, reward="number", beta=0.05)),
}
DIVIDED = {"dp2": dict(dp=2, micro_batches=2), "zero3": dict(dp=2, zero=3)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pairs of answers, sums, and a tokenizer."""
    here, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    words = ["the", "model", "reads", "text", "and", "then"]
    answers = [" ".join(rng.choice(words, rng.integers(1, 6))) for _ in range(30)]
    pairs = [{"prompt": f"{i}:", "chosen": one.upper(), "rejected": one} for i, one in enumerate(answers)]
    (here / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    write_problems(here / "sums.jsonl", make_problems(40, 1))
    BPETokenizer.train("0123456789+=", 257, ("<|endoftext|>",)).save(here / "tokenizer")
    return here


def config_of(name: str, folder: Path, out: Path, **changes: Any) -> TrainConfig:
    objective, options = TASKS[name]
    config = TrainConfig(
        data=str(folder / ("sums.jsonl" if name == "grpo" else "pairs.jsonl")),
        out=out,
        tokenizer=str(folder / "tokenizer"),
        objective=objective,
        task=options,
        model=GPT2Config(vocab_size=256, context=48, layers=2, heads=2, channels=16),
        steps=4,
        batch_size=6,
        warmup=1,
        eval_every=2,
        eval_batches=2,
        sample_every=0,
    )
    return dataclasses.replace(config, **changes)


def run_on(communicator: Any, config: TrainConfig) -> Path:
    return train(config, None, communicator).folder


@pytest.mark.parametrize("division", DIVIDED)
@pytest.mark.parametrize("name", TASKS)
def test_the_run_of_one_process(ranks, folder, tmp_path, name, division) -> None:
    alone = train(config_of(name, folder, tmp_path / "alone"))
    config = config_of(name, folder, tmp_path / "run", **DIVIDED[division])
    run = Run.open(ranks(2).run(run_on, config)[0])
    for one, other in zip(run.metrics(), alone.metrics(), strict=True):
        for key in ("loss", "val_loss", "grad_norm"):
            wanted = other.get(key)  # before the first step there is a validation alone
            assert one.get(key) == (None if wanted is None else pytest.approx(wanted, rel=1e-4, abs=1e-6)), key
    found, expected = (load_checkpoint(each.checkpoint("last")).model for each in (run, alone))
    for key, array in expected.items():
        np.testing.assert_allclose(found[key], array, rtol=0, atol=1e-4, err_msg=key)


@pytest.mark.parametrize("name", ["dpo", "grpo"])
def test_tensor_parallel_is_refused(ranks, folder, tmp_path, name) -> None:
    with pytest.raises(Exception, match="--tp 2 --pp 1 divide a model that predicts next tokens alone"):
        ranks(2).run(run_on, config_of(name, folder, tmp_path / "run", tp=2))
