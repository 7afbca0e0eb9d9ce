"""Fine-tuning on several ranks: the run that one process would have made."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from minillm.checkpoint import load_checkpoint
from minillm.errors import InputError
from minillm.models.gpt2 import GPT2Config
from minillm.training.config import TrainConfig
from minillm.training.run import Run
from minillm.training.tasks.sft import SFTOptions, SFTTask
from minillm.training.trainer import train

CONFIG = TrainConfig(
    objective="sft",
    model=GPT2Config(vocab_size=300, context=48, layers=2, heads=2, channels=32, dropout=0.1),
    steps=6,
    batch_size=6,
    micro_batches=2,
    warmup=1,
    eval_every=3,
    eval_batches=3,
    sample_every=6,
    sample_tokens=3,
    validation_fraction=0.2,
    threads=1,
)
DIVIDED = {
    "dp2": (True, dict(dp=2)),
    "zero3": (True, dict(dp=2, zero=3)),
    "tp2, without packing": (False, dict(tp=2)),
    "pp2, without packing": (False, dict(pp=2)),
}


def run_on(communicator, config: TrainConfig) -> Path:
    return train(config, None, communicator).folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[bool, Run]:
    """A model, and the tuning of it in one process, with and without packing."""
    folder = tmp_path_factory.mktemp("sft")
    lines = [{"prompt": f"{i} plus {i % 7} is", "completion": f" {i + i % 7}" * (1 + i % 5)} for i in range(70)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    start = dataclasses.replace(CONFIG, data=str(folder / "data.jsonl"))
    base = train(dataclasses.replace(start, out=folder / "base", steps=2))
    tuned = dataclasses.replace(start, init=str(base.folder), model=base.config.model, seed=5)
    tuned = dataclasses.replace(tuned, model=dataclasses.replace(tuned.model, vocab_size=base.tokenizer.vocab_size))
    return {
        packing: train(dataclasses.replace(tuned, out=folder / f"{packing}", task=SFTOptions(packing=packing)))
        for packing in (True, False)
    }


@pytest.mark.parametrize("name", DIVIDED)
def test_the_run_of_one_process(ranks, runs, tmp_path, name):
    packing, division = DIVIDED[name]
    alone = runs[packing]
    ranks(2).run(run_on, dataclasses.replace(alone.config, out=tmp_path / "run", **division))
    run = Run.open(tmp_path / "run")
    for one, other in zip(run.metrics(), alone.metrics(), strict=True):
        for key in ("step", "loss", "val_loss", "tokens"):
            expected = other.get(key)
            assert one.get(key) == (None if expected is None else pytest.approx(expected, rel=2e-5)), key
    expected = load_checkpoint(alone.checkpoint("last")).model
    for key, array in load_checkpoint(run.checkpoint("last")).model.items():
        np.testing.assert_allclose(array, expected[key], rtol=0, atol=1e-4, err_msg=key)


@pytest.mark.parametrize("division", [dict(tp=2), dict(pp=2)])
def test_packed_rows_are_not_divided_by_tensors_or_stages(division):
    with pytest.raises(InputError, match="give --no-packing too"):
        SFTTask(dataclasses.replace(CONFIG, task=SFTOptions(), **division))
