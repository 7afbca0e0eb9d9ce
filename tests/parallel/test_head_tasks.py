"""Heads that are trained on several ranks: the run that one process would have made."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from minillm.checkpoint import load_checkpoint
from minillm.models import bart, bert, xlnet
from minillm.training import Run, TrainConfig, train
from minillm.training.tasks.classify import ClassifyOptions
from minillm.training.tasks.qa import QAOptions

FILES = {"bert": bert, "xlnet": xlnet, "bart": bart}
CASES = {
    "bert classify dp2": ("bert", "classify", dict(dp=2)),
    "bert classify zero3": ("bert", "classify", dict(dp=2, zero=3)),
    "xlnet classify dp2": ("xlnet", "classify", dict(dp=2)),
    "xlnet classify zero3": ("xlnet", "classify", dict(dp=2, zero=3)),
    "bart qa zero2": ("bart", "qa", dict(dp=2, zero=2)),
    "bart qa dp2": ("bart", "qa", dict(dp=2)),
    "bert qa zero1": ("bert", "qa", dict(dp=2, zero=1)),
}


def run_on(communicator, config: TrainConfig) -> Path:
    return train(config, None, communicator).folder


def settings(folder: Path, family: str, objective: str) -> TrainConfig:
    rng = np.random.default_rng(3)
    words = ["north", "south", "river", "hill", "tree", "road", "town", "lake"]
    texts = [" ".join(rng.choice(words, int(rng.integers(3, 9)))) for _ in range(40)]
    if objective == "classify":
        lines = [{"text": text, "label": str("river" in text)} for text in texts]
        (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
        labels, options = ("False", "True"), ClassifyOptions(vocab_size=300)
        name = "data.jsonl"
    else:
        qas = [
            {"id": "x", "question": "what first ?", "answers": [{"text": text.split()[0], "answer_start": 0}]}
            for text in texts
        ]
        paragraphs = [{"context": text, "qas": [asked]} for text, asked in zip(texts, qas, strict=True)]
        (folder / "data.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
        labels, options = (), QAOptions(vocab_size=300, length=31, stride=10, max_question=10)
        name = "data.json"
    model = dataclasses.replace(FILES[family].PRESETS["nano"], labels=2, label_names=labels)
    return TrainConfig(
        data=str(folder / name),
        architecture=family,
        objective=objective,
        task=options,
        model=dataclasses.replace(model, dropout=0.1),
        steps=4,
        batch_size=6,
        micro_batches=2,
        warmup=1,
        optimizer="sgd",  # AdamW makes the rounding errors of a gradient that is nearly zero as large as any other
        lr=0.1,
        eval_every=2,
        eval_batches=3,
        sample_every=4,
        validation_fraction=0.3,
        threads=1,
    )


@pytest.mark.parametrize("name", CASES)
def test_the_run_of_one_process(ranks, tmp_path, name):
    family, objective, division = CASES[name]
    config = settings(tmp_path, family, objective)
    alone = train(dataclasses.replace(config, out=tmp_path / "alone"))
    ranks(2).run(run_on, dataclasses.replace(config, out=tmp_path / "run", **division))
    run = Run.open(tmp_path / "run")
    for one, other in zip(run.metrics(), alone.metrics(), strict=True):
        for key in ("step", "loss", "val_loss", "val_accuracy", "val_both_right", "tokens"):
            expected = other.get(key)
            assert one.get(key) == (None if expected is None else pytest.approx(expected, rel=2e-5)), key
    expected = load_checkpoint(alone.checkpoint("last")).model
    for key, array in load_checkpoint(run.checkpoint("last")).model.items():
        np.testing.assert_allclose(array, expected[key], rtol=0, atol=1e-5, err_msg=key)
