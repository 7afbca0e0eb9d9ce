"""Shapes at the edge: each family trains two steps, samples, saves and loads again, or says in one sentence why not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minillm
from minillm.data import Batches
from minillm.data.shards import Tokens
from minillm.errors import MinillmError
from minillm.generate import generate
from minillm.training import train
from tests.training.task_runs import RUNS, run_of, write_data

FAMILIES = sorted(RUNS)

# What is changed, in the model and in the other settings.
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


# Families that refuse an edge, with a part of the sentence; all others train.
TOO_SHORT = "is more than the model's context"
REFUSED: dict[str, dict[str, str]] = {
    "more micro-batches than batch": dict.fromkeys(FAMILIES, "6 parts of a batch of 5 sequences would be empty"),
    "one channel a head": {"llama": "rotary pairs need an even number"},
    "one channel": {"llama": "rotary pairs need an even number", "xlnet": "sines and cosines need an even number"},
    "context of 1": {
        **dict.fromkeys(("bart", "bert-alone", "llama"), TOO_SHORT),
        "bert": "give 5 or more",
        "roberta": "a length of 1 has no room for text",
        "pairs": "a model with a longer context than 1",
    },
    "context of 2": {
        **dict.fromkeys(("bart", "bert-alone", "llama"), TOO_SHORT),
        "bert": "give 5 or more",
        "roberta": "a length of 2 has no room for text",
    },
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
        return str(error)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = settings.get("steps", 2)
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert all(np.isfinite(line["loss"]) for line in lines)
    loaded = minillm.load(run.folder)
    again = out.parent / f"{out.name}-saved"
    loaded.save_pretrained(again)
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


# The default run tries every edge with one family; `-m slow` all of them.
@pytest.mark.parametrize(
    ("name", "edge"),
    [
        pytest.param(name, edge, marks=[] if name == "gpt2" else [pytest.mark.slow])
        for name in FAMILIES
        for edge in EDGES
    ],
)
def test_edges(name: str, edge: str, folder: Path, tmp_path: Path) -> None:
    model, settings = EDGES[edge]
    told = outcome(name, folder, tmp_path / "run", model, settings)
    expected = REFUSED.get(edge, {}).get(name, "")
    assert bool(told) == bool(expected), told
    assert expected in told
    assert "\n" not in told


@pytest.mark.parametrize(("text", "told"), [("abcd" * 8 + "ab", ""), ("abcd" * 8, "17"), ("a" * 34, "")])
def test_a_text_of_context_and_one_and_a_vocabulary_of_one(text: str, told: str, tmp_path: Path) -> None:
    """Half of each text is held out: in the first, each half has a batch; in the second, a token is missing."""
    file = tmp_path / "text.txt"
    file.write_text(text)
    config = run_of("gpt2", tmp_path, steps=2, warmup=1, eval_every=2, eval_batches=1, tokenizer="char")
    config = dataclasses.replace(
        config,
        data=str(file),
        model=dataclasses.replace(config.model, context=16),
        validation_fraction=0.5,
        batch_size=2,
    )
    if told:
        with pytest.raises(MinillmError, match=told) as caught:
            train(config, progress=False)
        assert "\n" not in str(caught.value)
    else:
        assert [line["step"] for line in train(config, progress=False).metrics()] == [1, 2]


def test_positions_beyond_32_bits() -> None:
    """Ids after 2^31 and 2^32 others, which take no memory here."""
    far = np.broadcast_to(np.uint16(7), 2**31 - 3)
    near = np.arange(100, dtype=np.uint16)
    tokens = Tokens([far, near, far, near], 100)
    assert len(tokens) == 2**32 + 194
    assert tokens[2**31 - 3] == 0
    assert tokens[2**31 + 7] == 10
    assert np.asarray(tokens[2**31 - 5 : 2**31]).tolist() == [7, 7, 0, 1, 2]
    assert tokens[-1] == 99
    assert np.asarray(tokens[2**32 + 92 : 2**32 + 97]).tolist() == [7, 7, 0, 1, 2]
    batches = Batches(tokens[2**31 - 3 : 2**31 + 97], 4, 8, seed=1)
    inputs, targets = batches.batch(0)[:2]
    assert np.array_equal(np.asarray(inputs)[:, 1:], np.asarray(targets)[:, :-1])
