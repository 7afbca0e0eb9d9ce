"""Preference, reward and GRPO on a GPU: the stand-in for CuPy computes what the CPU does."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillm import cuda, device
from minillm.data.arithmetic import make_problems, write_problems
from minillm.models.gpt2 import GPT2Config
from minillm.tokenizers import BPETokenizer
from minillm.training import TrainConfig, train
from minillm.training.tasks.grpo import GRPOOptions
from minillm.training.tasks.preference import PreferenceOptions
from minillm.training.tasks.reward import RewardOptions

STANDIN = Path(__file__).parents[1] / "standin"
TASKS: dict[str, tuple[str, Any]] = {
    "dpo": ("preference", PreferenceOptions()),
    "orpo": ("preference", PreferenceOptions(loss="orpo")),
    "kto": ("preference", PreferenceOptions(loss="kto")),
    "reward": ("reward", RewardOptions(centering=0.01)),
    "grpo": ("grpo", GRPOOptions(group_size=3, answer_length=3, reward="number", beta=0.05)),
}


def forget() -> None:
    """Forget facts cached about one CuPy, before another is tried."""
    for function in (device._check_cuda, cuda.get_kernel, cuda.kernel._gpu_module):
        function.cache_clear()


@pytest.fixture
def cupy(monkeypatch):
    """The stand-in, imported as `cupy`."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "cupy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(STANDIN))
    forget()
    yield importlib.import_module("cupy")
    forget()
    for name in [name for name in sys.modules if name.partition(".")[0] == "cupy"]:
        del sys.modules[name]


@pytest.mark.parametrize("name", TASKS)
def test_the_run_of_the_cpu(name, cupy, tmp_path, rng) -> None:
    answers = ["".join(rng.choice(list("abcd"), rng.integers(1, 6))) for _ in range(20)]
    pairs = [{"prompt": f"{i}:", "chosen": one.upper(), "rejected": one} for i, one in enumerate(answers)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    write_problems(tmp_path / "sums.jsonl", make_problems(20, 1))
    BPETokenizer.train("0123456789+=", 257, ("<|endoftext|>",)).save(tmp_path / "tokenizer")
    objective, options = TASKS[name]
    config = TrainConfig(
        data=str(tmp_path / ("sums.jsonl" if name == "grpo" else "pairs.jsonl")),
        tokenizer=str(tmp_path / "tokenizer"),
        objective=objective,
        task=options,
        model=GPT2Config(vocab_size=256, context=48, layers=1, heads=2, channels=16),
        steps=3,
        batch_size=6,
        warmup=1,
        eval_every=3,
        eval_batches=1,
        sample_every=3,
        sample_tokens=3,
        threads=1,
    )
    runs = [train(dataclasses.replace(config, device=where, out=tmp_path / where)) for where in ("cpu", "cuda")]
    expected, received = (
        [[record.get(key) for key in ("loss", "val_loss", "grad_norm")] for record in run.metrics()] for run in runs
    )
    for one, other in zip(received, expected, strict=True):
        known = [(a, b) for a, b in zip(one, other, strict=True) if b is not None]
        np.testing.assert_allclose(*zip(*known, strict=True), rtol=1e-3, atol=1e-5)
