"""The guide's loop of one's own is the training that it says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from minillm.checkpoint import load_checkpoint
from minillm.guide import chapter
from minillm.training import train
from minillm.training.config import preset
from minillm.tuning import own_choice, tuned_process
from tests.documents import blocks_of

CHAPTER = chapter("training")


def test_the_loop_is_the_training_of_the_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [loop] = [block.text for block in blocks_of(CHAPTER.text) if "for step in range(20)" in block.text]
    assert len([line for line in loop.splitlines() if line and not re.match("import |from ", line)]) <= 15
    found: dict = {"__name__": "guide"}
    with tuned_process(own_choice(1).cutting):  # one thread, as below: sums are then made in one order
        exec(compile(loop, CHAPTER.path.name, "exec"), found)
    nano = preset("nano")
    config = dataclasses.replace(nano, steps=20, warmup=2, sample_every=0, out=tmp_path / "run", threads=1)
    assert (config.batch_size, config.model.context, config.lr, config.min_lr) == (8, 32, 1e-3, 1e-4)
    run = train(config)
    assert run.metrics()[-1]["loss"] == found["loss"].item()
    trained = load_checkpoint(run.checkpoint("last")).model
    assert trained.keys() == found["model"].state_dict().keys()
    for name, array in found["model"].state_dict().items():
        np.testing.assert_array_equal(trained[name], array, err_msg=name)
