"""Two traces beside each other: a planted fault is found at its line, and equal steps are equal."""

from __future__ import annotations

import functools
import json
import shutil

import numpy as np
import pytest

from minillm.errors import InputError
from minillm.ops.layernorm import layernorm_backward as right_backward
from minillm.study.step.compare import compare_traces, traces_of
from minillm.training.config import preset
from tests.study.step.models import cached, small_batch, small_model, traced

BASE = """
import numpy as np


def layernorm_backward(dy, saved):
    norm, rstd, weight, has_bias = saved
    C = norm.shape[-1]
    row_axes = tuple(range(dy.ndim - 1))
    dbias = dy.sum(axis=row_axes) if has_bias else None
    dweight = (dy * norm).sum(axis=row_axes)
    dnorm = dy * weight
    through_mean = dnorm.sum(axis=-1, keepdims=True) / C
    through_rstd = norm * (dnorm * norm).sum(axis=-1, keepdims=True) / C
    dx = rstd * (dnorm - through_mean - through_rstd)
    return dx, dweight, dbias
"""
FAULTS = {  # a line, and what takes its place
    "dweight": ("dweight = (dy * norm).sum(axis=row_axes)", "dweight = -(dy * norm).sum(axis=row_axes)"),
    "dnorm": ("dnorm = dy * weight", "dnorm = dy * weight * 1.01"),
    "through_rstd": ("(dnorm * norm).sum(axis=-1, keepdims=True) / C", "(dnorm * norm).sum(axis=-1, keepdims=True)"),
    "dx": ("dx = rstd * (dnorm - through_mean - through_rstd)", "dx = rstd * (dnorm - through_rstd)"),
}


@functools.cache
def plain():
    """The trace of the preset nano, as it is."""
    return traces_of(["plain", "plain"], lambda model: preset("nano"), "some text")[0]


@pytest.fixture
def mutated(tmp_path, monkeypatch):
    """The module:function of a layer norm's backward with a fault."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str) -> str:
        before, after = FAULTS[name]
        assert before in BASE
        (tmp_path / f"fault_{name}.py").write_text(BASE.replace(before, after), "utf-8")
        return f"layernorm=fault_{name}:layernorm_backward"

    return write


@pytest.mark.parametrize("name", FAULTS)
def test_a_mutated_backward_is_found_at_its_line(name, mutated):
    a, (b, _) = plain(), traces_of([mutated(name), "plain"], lambda model: preset("nano"), "some text")
    found = compare_traces(a, b)
    first = found.first
    assert first.name == name
    assert a.stops[first.stops[0]].title == "layernorm backward in ln_f"
    assert [line.text.partition(" =")[0] for line in first.lines] == [name, name]
    numbers = a.stops[first.stops[0]], b.stops[first.stops[1]]
    made = [next(line.made[name] for line in stop.lines if name in line.made) for stop in numbers]
    assert first.numbers == (made[0][first.place], made[1][first.place])
    assert first.error == pytest.approx(
        np.abs(made[0] - made[1]).max() / max(np.abs(made[0]).max(), np.abs(made[1]).max()), rel=1e-3
    )
    report = "\n".join(found.report())
    assert f"fault_{name}.py:" in report
    assert "layernorm.py:" in report
    shown = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert shown["first"]["name"] == name
    before = [i for i, (in_a, _) in enumerate(found.pairs) if in_a is not None and in_a < first.stops[0]]
    assert not any(shown["errors"][i] for i in before), "nothing differs before the fault"
    assert right_backward(np.ones((2, 3)), (np.ones((2, 3)), np.ones((2, 1)), np.ones(3), True))


def test_equal_steps_are_equal_bit_for_bit():
    found = compare_traces(traced("llama"), traced("llama"))
    assert found.first is None
    assert set(found.errors) == {0.0}
    assert found.report()[-1] == "no stop differs"
    assert found.to_json()["first"] is None


@pytest.mark.parametrize(
    "engine", ["fast", pytest.param("emulate", marks=pytest.mark.skipif(not shutil.which("g++"), reason="needs g++"))]
)
def test_engines_agree_but_for_rounding(engine):
    found = compare_traces(cached("gpt2"), traced("gpt2", engine=engine))
    assert found.first is None, found.report()
    assert max(found.errors) > 0, "two engines round differently"
    assert [pair for pair in found.pairs if None in pair] == []


def test_two_models_differ_first_where_they_do():
    from minillm.study.describe.abstract_step import loss_of
    from minillm.study.step.trace import trace_step

    traces = []
    for change in (0.0, 0.5):
        model = small_model("gpt2")
        batch = small_batch(model)
        model.h[1].mlp.fc.weight.data[3, 2] += change
        traces.append(trace_step(model.eval(), lambda one, batch=batch: loss_of(one)(**batch), batch=batch))
    found = compare_traces(*traces)
    assert traces[0].stops[found.first.stops[0]].title == "linear forward in h.1.mlp.fc"
    assert (found.first.name, found.first.place) == ("weight", (3, 2))


def test_steps_of_other_operations_have_no_partner():
    found = compare_traces(cached("gpt2"), cached("llama"))
    assert any(pair[0] is None for pair in found.pairs)
    assert found.first is not None
    assert np.inf in found.errors
    json.dumps(found.to_json(), allow_nan=False)


def test_what_compare_cannot_name():
    for words, reason in [
        (["a", "b", "c"], "names 3 steps"),
        (["gelu=nothing:f"], "No module"),
        (["gelu=f"], "is no mutation"),
    ]:
        with pytest.raises(InputError, match=reason):
            traces_of(words, lambda model: preset("nano"), "some text")
    with pytest.raises(InputError, match="no preset, and no folder"):
        traces_of(["plain", "nowhere"], lambda model: preset("nano"), "some text")
