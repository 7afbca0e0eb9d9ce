"""`minillm train --watch`: the numbers are those of the step, nothing is changed, and a resumed run goes on."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

import minillm
from minillm import nn, ops, study
from minillm.autograd import Tensor
from minillm.errors import InputError
from minillm.models.gpt2 import GPT2Config
from minillm.optim import SGD
from minillm.options import filled, scan
from minillm.training.config import PRESETS, TrainConfig
from minillm.training.prepare import build
from minillm.training.run import Run
from minillm.training.trainer import train
from minillm.training.watch import Watch, plot, remarks

SMALL = dataclasses.replace(
    PRESETS["nano"],
    model=GPT2Config(103, context=8, layers=2, heads=2, channels=8, dropout=0.1),
    steps=8,
    batch_size=4,
    eval_every=4,
    eval_batches=1,
    sample_every=0,
    warmup=1,
    threads=1,
)


class Small(nn.Module):
    def __init__(self):
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.assign_names()

    def forward(self, x):
        return self.second(ops.relu(self.first(x)))


def rms(array) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))


def small_step(every: int = 1):
    minillm.manual_seed(0)
    model, watch = Small(), Watch(Small(), every)
    watch.model = model
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    target = np.random.default_rng(1).normal(size=(5, 2)).astype(np.float32)
    optimizer = SGD(model.parameters(), lr=0.3)

    def step(number: int) -> SimpleNamespace:
        optimizer.zero_grad()
        before = {name: p.data.copy() for name, p in model.named_parameters()}
        with watch.step(number):
            hidden = model.first(Tensor(x)).retain_grad()
            y = model.second(ops.relu(hidden)).retain_grad()
            loss = (y * Tensor(target)).sum()
            loss.backward()
            optimizer.step()
        after = {name: p.data for name, p in model.named_parameters()}
        return SimpleNamespace(before=before, after=after, hidden=hidden, y=y, model=model)

    return watch, step


def test_the_numbers_are_those_of_the_step():
    watch, step = small_step()
    was = step(1)
    [record] = watch.records
    assert record["step"] == 1
    assert record["seconds"] > 0
    first = record["layers"]["first"]
    assert first["activation"] == pytest.approx(rms(was.hidden.data), rel=1e-5)
    assert first["largest"] == pytest.approx(float(abs(was.hidden.data).max()))
    assert first["gradient"] == pytest.approx(rms(was.hidden.grad), rel=1e-5)
    assert record["layers"]["second"]["gradient"] == pytest.approx(rms(was.y.grad), rel=1e-5)
    both = [np.concatenate([one[f"first.{n}"].ravel() for n in ("weight", "bias")]) for one in (was.before, was.after)]
    assert first["weight"] == pytest.approx(rms(both[0]), rel=1e-5)
    assert first["update"] == pytest.approx(rms(both[1] - both[0]), rel=1e-4)
    assert first["ratio"] == pytest.approx(rms(both[1] - both[0]) / rms(both[0]), rel=1e-4)
    assert first["weight_gradient"] == pytest.approx(first["update"] / 0.3, rel=1e-4)


def test_micro_batches_count_together():
    watch, _ = small_step()
    rows = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    model = watch.model
    with watch.step(1):
        for part in (rows[:2], rows[2:]):
            (model(Tensor(part)) * 2).sum().backward()
    with watch.step(2):
        (model(Tensor(rows)) * 2).sum().backward()
    one, two = (record["layers"]["first"] for record in watch.records)
    for name in ("activation", "gradient", "largest", "zeros"):
        assert one[name] == pytest.approx(two[name], rel=1e-5), name


def test_zeros_are_counted_and_what_is_no_number_is_none():
    class Relu(nn.Module):
        def __init__(self):
            self.relu = nn.ReLU()
            self.assign_names()

    model = Relu()
    watch = Watch(model)
    with watch.step(1):
        model.relu(Tensor(np.array([-1.0, 2.0, -3.0, np.inf])))
    [record] = watch.records
    assert record["layers"]["relu"]["zeros"] == 0.5
    assert record["layers"]["relu"]["activation"] is None
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_only_some_steps_are_watched():
    watch, step = small_step(every=3)
    for number in range(1, 8):
        step(number)
    assert [record["step"] for record in watch.records] == [1, 3, 6]
    nothing = Watch(watch.model, None)
    with nothing.step(1):
        pass
    assert nothing.records == []
    assert study.Watch is Watch


def run(tmp_path, name: str, **settings) -> Run:
    return train(dataclasses.replace(SMALL, out=tmp_path / name, **settings), progress=False)


def test_a_watched_run_ends_with_the_same_weights_and_leaves_its_files(tmp_path, capsys):
    plain, watched = run(tmp_path, "plain"), run(tmp_path, "watched", watch=2)
    assert plain.checkpoint("last").read_bytes() != b""
    from minillm.checkpoint import load_checkpoint

    one, two = (load_checkpoint(one.checkpoint("last")).model for one in (plain, watched))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    assert not (plain.folder / "watch.jsonl").exists()
    records = watched.watched()
    assert [record["step"] for record in records] == [1, 2, 4, 6, 8]
    model, _ = build(watched.config, watched.tokenizer)
    assert {name for name, _ in model.named_modules() if name.startswith("h.1")} - {"h.1.attn"} <= {
        layer for layer in records[0]["layers"] if layer.startswith("h.1")
    }
    assert (watched.folder / "watch.png").read_bytes()[:4] == b"\x89PNG"
    shown = capsys.readouterr().out
    assert "watch.png, of 5 watched steps; this took" in shown


def test_a_resumed_run_goes_on_and_drops_what_it_takes_again(tmp_path):
    whole = run(tmp_path, "whole", watch=3)
    first = run(tmp_path, "first", watch=3, steps=8)
    first.add_watched({"step": 99, "seconds": 0.0, "layers": {}})
    config = dataclasses.replace(first.config, steps=12)
    resumed = train(config, resume=first.folder, progress=False)
    assert [record["step"] for record in resumed.watched()] == [1, 3, 6, 9, 12]
    for one, two in zip(whole.watched(), resumed.watched(), strict=False):
        assert one["layers"] == two["layers"]


def test_ranks_are_refused_before_anything_is_written(tmp_path):
    class Two:
        rank, size = 0, 2

    with pytest.raises(InputError, match=r"--watch 5 looks at whole weights .* 2 ranks .*--watch None"):
        train(dataclasses.replace(SMALL, out=tmp_path / "run", watch=5), communicator=Two())
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="watch is 0; give 1 or more"):
        dataclasses.replace(SMALL, watch=0)


@pytest.mark.parametrize(
    ("words", "every"),
    [
        (["--watch"], 20),
        (["--watch", "--steps", "9"], 20),
        (["--watch", "7", "--steps", "9"], 7),
        (["--watch=7"], 7),
        (["--watch", "None"], None),
        ([], None),
    ],
    ids=["alone", "before another", "with", "equals", "off", "without"],
)
def test_the_number_may_be_left_out(words, every):
    config = filled(TrainConfig, "train", scan(TrainConfig, "train", words, TrainConfig()), TrainConfig())
    assert config.watch == every


# --- in words ------------------------------------------------------------------------------------------------------


def records_of(**layers: dict[str, float]) -> list:
    return [
        {"step": step, "seconds": 0.0, "layers": {k.replace("_", "."): v for k, v in layers.items()}} for step in (1, 2)
    ]


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ({"h_0": {"ratio": 0.5}, "h_1": {"ratio": 0.001}}, "h.0: a step moves the weights by 50% of their size"),
        ({"h_0": {"ratio": 1e-9}}, "h.0: a step moves the weights by 1e-09 of their size"),
        ({"h_0": {"gradient": 1e-9}, "h_1": {"gradient": 1e-2}}, "h.0: the gradient of the output is 1e-09, less than"),
        ({"h_1": {"activation": 3e6}}, "h.1: the output has a size of 3.0e+06"),
        ({"mlp": {"zeros": 0.99}}, "mlp: 99% of the outputs are 0"),
    ],
    ids=["fast", "slow", "vanishing", "huge", "dead"],
)
def test_what_is_unusual_is_said(layers, told):
    [remark] = remarks(records_of(**layers))
    assert remark.startswith(told)


def test_what_is_usual_is_not_said(tmp_path):
    assert remarks([]) == []
    usual = {"activation": 1.0, "gradient": 1e-3, "ratio": 1e-3, "zeros": 0.5}
    assert remarks(records_of(h_0=usual, h_1=usual | {"gradient": 1e-4})) == []
    assert remarks(run(tmp_path, "healthy", watch=1).watched()) == []


def test_a_picture_of_anything(tmp_path):
    plot(records_of(h_0={"activation": 0.0, "gradient": None}), tmp_path / "a.png")
    plot(records_of(**{f"h_{i}": {"activation": 1.0, "ratio": 1e-3} for i in range(40)}), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == (tmp_path / "b.png").read_bytes()[:4] == b"\x89PNG"
