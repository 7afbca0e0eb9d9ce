"""Shapes at the edge: each family trains two steps, samples, saves and loads again, or says in one sentence why not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minillm
from minillm.data.shards import Tokens, open_tokens, write_shards
from minillm.errors import MinillmError
from minillm.generate import generate
from minillm.training import train
from tests.training.task_runs import RUNS, run_of, write_data

FAMILIES = sorted(RUNS)

# What is changed, in the model and in the other settings, and a part of the sentence that refuses it; the families
# that refuse it, where the others train.
EDGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "batch of 1": ({}, dict(batch_size=1)),
    "batch larger than the data": ({}, dict(batch_size=3000, eval_batches=1)),
    "micro-batches = batch": ({}, dict(micro_batches=5)),
    "more micro-batches than batch": ({}, dict(micro_batches=6)),
    "one head": (dict(heads=1), {}),
    "one layer": (dict(layers=1), {}),
    "one channel a head": (dict(channels=2, heads=2), {}),
    "one channel": (dict(channels=1, heads=1), {}),
    "dropout 0.999": (dict(dropout=0.999), {}),
    "context of 1": (dict(context=1), {}),
    "context of 2": (dict(context=2), {}),
    "one step": ({}, dict(steps=1, warmup=0)),
}


def changed(model: Any, changes: dict[str, Any]) -> Any:
    """The configuration with these changes, under the names that its family has."""
    names = {field.name for field in dataclasses.fields(model)}
    given = {}
    for name, value in changes.items():
        if name in names:
            given[name] = value
        for side in ("encoder_", "decoder_"):
            if side + name in names:
                given[side + name] = value
    if "kv_heads" in names and "heads" in given:
        given["kv_heads"] = given["heads"]
    return dataclasses.replace(model, **given)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("edges")
    write_data(path)
    return path


def outcome(name: str, folder: Path, out: Path, model: dict[str, Any], settings: dict[str, Any]) -> str:
    """Train, sample, save and load; returns "" or the sentence that refused it. Anything else is an exception."""
    config = run_of(name, folder, steps=2, warmup=1, eval_every=2, eval_batches=1)
    try:
        config = dataclasses.replace(config, out=out, model=changed(config.model, model))
        run = train(dataclasses.replace(config, **settings), progress=False)
    except MinillmError as error:
        assert "\n" not in str(error)
        return str(error)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = settings.get("steps", 2)
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert all(np.isfinite(line["loss"]) for line in lines)
    loaded = minillm.load(run.folder)
    again = out.parent / f"{out.name}-saved"
    minillm.save_pretrained(loaded, again)
    weights = minillm.load(again).state_dict()
    assert weights.keys() == loaded.state_dict().keys()
    for key, array in loaded.state_dict().items():
        assert np.array_equal(array, weights[key]), key
    if name in ("gpt2", "llama"):
        context = loaded.config.context
        assert len(list(generate(loaded, [1], 3, stop=()))) == 3  # also beyond a context of 1
        assert len(list(generate(loaded, [1] * context, 2, stop=()))) == 2
        with pytest.raises(MinillmError, match="prompt"):
            list(generate(loaded, [], 3, stop=()))
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", FAMILIES)
def test_edges(name: str, edge: str, folder: Path, tmp_path: Path) -> None:
    model, settings = EDGES[edge]
    told = outcome(name, folder, tmp_path / "run", model, settings)
    print(f"EDGE {name} | {edge} | {told}")
    if told:
        assert ": " in told
