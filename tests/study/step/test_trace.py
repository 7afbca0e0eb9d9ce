"""The trace of a step: it is the step itself, every array is the engine's, and no trace function stays behind."""

from __future__ import annotations

import gc
import sys
import weakref

import numpy as np
import pytest

import minillm
from minillm import nn, ops, random
from minillm.autograd import Op, observe
from minillm.errors import InputError
from minillm.study.describe.abstract_step import loss_of
from minillm.study.step.trace import ParameterStop, trace_step
from tests.study.step.models import FAMILIES, cached, optimizer_of, small_batch, small_model, traced


def untraced(family: str):
    """The gradients, the weights after a step, and the backwards in the engine's order, without a tracer."""
    model = small_model(family)
    batch, optimizer, seen = small_batch(model), optimizer_of(model), []
    look = lambda call: seen.append((call.op.name, call.scope, [x if x is None else x.copy() for x in call.douts]))  # noqa: E731
    with minillm.engine("plain"), random.using(random.Generator(0)), observe(on_backward=look):
        loss = loss_of(model)(**batch)
        loss.backward(np.ones_like(loss.data))
        gradients = {name: x.grad.copy() for name, x in model.named_parameters() if x.grad is not None}
        optimizer.clip_grad_norm(0.5)
        optimizer.step()
    return (
        loss.item(),
        gradients,
        {name: x.data.copy() for name, x in model.named_parameters() if name in gradients},
        seen,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_traced_step_is_the_step(family):
    loss, gradients, weights, backwards = untraced(family)
    trace = traced(family)
    assert trace.loss == loss
    assert trace.parameters.keys() == weights.keys()
    for name, stop in trace.parameters.items():
        np.testing.assert_array_equal(stop.grad, gradients[name], strict=True)
        np.testing.assert_array_equal(stop.after, weights[name], strict=True)
    stops = trace.of_kind("backward")
    assert [(stop.op, stop.scope) for stop in stops] == [(op, scope) for op, scope, _ in backwards]
    for stop, (_, _, douts) in zip(stops, backwards, strict=True):
        for value, dout in zip(stop.inputs, douts, strict=True):
            assert (value.array is None) == (dout is None)
            if dout is not None:
                np.testing.assert_array_equal(value.array, dout, strict=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gradient_is_the_sum_of_what_was_waited_for(family):
    trace = cached(family)
    several = 0
    for stop in (*trace.of_kind("backward"), *trace.of_kind("update")):
        for sent, value in zip(stop.waited, stop.inputs, strict=True):
            if value.array is None:
                assert sent == []
                continue
            several += len(sent) > 1
            total = sent[0].array
            for one in sent[1:]:
                total = total + one.array
            np.testing.assert_array_equal(total, value.array)
            for one in sent:
                if one.stop is not None:
                    sender = trace.stops[one.stop]
                    assert sender.index < stop.index
                    assert sender.outputs[one.input].array is one.array
                    goes = sender.outputs[one.input]
                    assert goes.parameter == stop.scope if isinstance(stop, ParameterStop) else goes.stop == stop.index
    assert several > 2, "the residual stream has at least two consumers, and so has a tied table"


def test_tied_weights_the_parts_of_qkv_and_the_residual_stream_wait_for_all_their_consumers():
    trace = cached("gpt2")
    table = trace.parameters["wte.weight"].waited[0]
    assert [trace.stops[one.stop].op for one in table] == ["linear", "embedding"]
    split = next(stop for stop in trace.of_kind("backward") if stop.op == "split" and stop.scope == "h.0.attn")
    assert [trace.stops[sent[0].stop].op for sent in split.waited] == ["reshape"] * 3
    stream = trace.find("layernorm forward in h.1.ln_1").inputs[0].stop
    waited = trace.stops[trace.stops[stream].partner].waited[0]
    assert [(trace.stops[one.stop].op, trace.stops[one.stop].scope) for one in waited] == [
        ("add", "h.1"),
        ("layernorm", "h.1.ln_1"),
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_line_is_in_its_source_and_its_arrays_lead_to_the_result(family):
    trace = cached(family)
    for stop in trace.stops:
        assert stop.lines or stop.kind in ("tokens", "loss"), stop.title
        for line in stop.lines:
            source = trace.sources[line.function]
            text = source.lines[line.number - source.first].strip()
            assert line.text.startswith(text), (line.text, text)
            assert line.half == stop.kind
        made = {id(array) for line in stop.lines for array in line.made.values()}
        for value in stop.outputs if stop.lines else ():
            assert value.array is None or id(value.array) in made, (stop.title, value.name)


def test_the_edges_of_the_graph_are_there():
    trace = cached("gpt2")
    for stop in trace.of_kind("forward"):
        assert trace.stops[stop.partner].partner == stop.index
        for value in stop.inputs:
            if value.stop is not None:
                assert trace.stops[value.stop].outputs[value.output].array is value.array
            elif value.parameter:
                assert trace.parameters[value.parameter].before is value.array
    embedding = trace.find("embedding forward in wte")
    assert (embedding.inputs[0].parameter, embedding.inputs[1].data) == ("wte.weight", "ids")
    assert embedding.where.startswith("layers.py:")
    assert trace.modules[0].kind == "GPT2"
    assert "through_rstd" in trace.sources["minillm.ops.layernorm.layernorm_backward"].derivation


def scaled_forward(x):
    y = x * 2
    y[0] = 7
    y += 1
    np.multiply(y, 2, out=y)
    parts = (y, [y[:1]])
    for part in range(2):
        last = y * part
    return y, (*parts, last)


def scaled_backward(dy, saved):
    dx = dy * 4
    dx[0] = 0
    return (dx,)


SCALED = Op("scaled", scaled_forward, scaled_backward)


class Scaled(nn.Module):
    """A model around an operation of one's own, which writes in place."""

    def __init__(self):
        self.weight = minillm.autograd.Parameter(np.array([1.0, 2.0, 3.0]))
        self.assign_names()

    def loss(self):
        return ops.sum(SCALED(self.weight))


def test_writes_in_place_tuples_and_loops_are_seen():
    model = Scaled()
    trace = trace_step(model, lambda one: one.loss())
    lines = {line.text: line for line in trace.find("scaled forward").lines if line.text != "last = y * part"}
    np.testing.assert_array_equal(lines["y = x * 2"].made["y"], [2, 4, 6])
    np.testing.assert_array_equal(lines["y[0] = 7"].made["y"], [7, 4, 6])
    np.testing.assert_array_equal(lines["y += 1"].made["y"], [8, 5, 7])
    np.testing.assert_array_equal(lines["np.multiply(y, 2, out=y)"].made["y"], [16, 10, 14])
    assert set(lines["parts = (y, [y[:1]])"].made) == {"parts[0]", "parts[1][0]"}
    rounds = [line.made["last"] for line in trace.find("scaled forward").lines if line.text == "last = y * part"]
    np.testing.assert_array_equal(rounds, [[0, 0, 0], [16, 10, 14]])
    np.testing.assert_array_equal(trace.find("scaled backward").lines[-2].made["dx"], [0, 4, 4])
    np.testing.assert_array_equal(model.weight.grad, [0, 4, 4])


class Gated(nn.Module):
    """A model with an operation whose pair calls another's."""

    def __init__(self):
        self.weight = minillm.autograd.Parameter(np.array([[1.0, 2.0], [3.0, -1.0]]))
        self.assign_names()

    def loss(self):
        return ops.sum(ops.swiglu(ops.silu(self.weight), self.weight))


def test_a_pair_that_another_calls_is_below_it_although_it_is_an_operation_of_its_own():
    trace = trace_step(Gated(), lambda one: one.loss())
    alone, within = trace.find("silu forward"), trace.find("swiglu forward")
    assert {line.depth for line in alone.lines} == {0}
    assert {line.name for line in within.lines if line.depth == 0} == {"swiglu_forward"}
    assert "silu_forward" in {line.name for line in within.lines if line.depth == 1}


def test_no_array_lives_on_in_a_frame_that_has_ended():
    class Seen(np.ndarray):
        """An array that can be referred to weakly."""

    def watched_backward(dy, saved):
        dx = (dy * 4).view(Seen)
        alive.append(weakref.ref(dx))
        return (np.asarray(dx) * 1,)

    alive, enabled = [], gc.isenabled()
    gc.disable()
    try:
        trace_step(Scaled(), lambda one: one.loss(), mutations={"scaled": watched_backward})
        assert [reference() for reference in alive] == [None], "no cycle holds it until the next collection"
    finally:
        if enabled:
            gc.enable()


def test_an_error_that_a_function_catches_belongs_to_its_own_line():
    def careful_backward(dy, saved):
        try:
            dx = dy / saved.nothing
        except AttributeError:
            dx = dy * 4
        return (dx,)

    trace = trace_step(Scaled(), lambda one: one.loss(), mutations={"scaled": careful_backward})
    errors = {line.text: line.error.partition(":")[0] for line in trace.find("scaled backward").lines}
    assert errors["dx = dy / saved.nothing"] == "AttributeError"
    assert errors["dx = dy * 4"] == errors["return (dx,)"] == ""


def test_a_stop_is_found_by_its_number_its_title_and_a_part_of_it():
    trace = cached("gpt2")
    norm = trace.find("layernorm backward in h.1.ln_1")
    assert (norm.op, norm.scope, norm.kind) == ("layernorm", "h.1.ln_1", "backward")
    assert trace.find(str(norm.index)) is norm
    add = trace.find("add forward")
    assert add.scope == "", "the whole title comes before a part of one"
    assert trace.find("forward in h.1").scope.startswith("h.1")


def test_a_hook_that_changes_a_gradient_is_marked():
    def loss(model):
        doubled = SCALED(model.weight)
        doubled.register_hook(lambda gradient: gradient * 10)
        return ops.sum(doubled)

    stop = trace_step(Scaled(), loss).find("scaled backward")
    assert stop.hooked
    np.testing.assert_array_equal(stop.waited[0][0].array, [1, 1, 1])
    np.testing.assert_array_equal(stop.inputs[0].array, [10, 10, 10])
    assert not trace_step(Scaled(), lambda one: one.loss()).find("scaled backward").hooked


def test_nothing_is_left_behind_after_an_exception():
    def broken_backward(dy, saved):
        dx = dy * 4
        raise ValueError(f"no {dx.shape}")

    seen = []
    before = sys.gettrace(), minillm.engine, minillm.grad_mode.state.observers
    with pytest.raises(ValueError, match="no"):
        trace_step(
            Scaled(),
            lambda one: one.loss(),
            mutations={"scaled": broken_backward},
            on_line=lambda stop, line, frame: seen.append(line),
        )
    assert (sys.gettrace(), minillm.engine, minillm.grad_mode.state.observers) == before
    assert seen[-1].error == "ValueError: no (3,)"
    assert np.array_equal(traced().parameters["wpe.weight"].grad, traced().parameters["wpe.weight"].grad)


@pytest.mark.parametrize("takes_over", [False, True])
def test_a_debugger_that_traces_goes_on(takes_over):
    """Coverage's tracer puts itself back in place whenever it is called."""
    lines = []

    def debugger(frame, event, argument):
        if takes_over and event == "call":
            sys.settrace(debugger)
        if frame.f_code is ops.layernorm.layernorm_backward.__code__:
            lines.append((event, frame.f_lineno))
        return debugger

    before = sys.gettrace()
    sys.settrace(debugger)
    try:
        trace = traced()
        assert sys.gettrace() is debugger
    finally:
        sys.settrace(before)
    assert len(trace.find("layernorm backward").lines) > 8
    first = ops.layernorm.layernorm_backward.__code__.co_firstlineno
    assert lines[:2] == [("call", first), ("line", first + 1)]
    assert ("return", first + 10) in lines


def test_large_arrays_are_left_out_and_counted():
    trace = traced("gpt2", largest=100)
    assert trace.find("embedding forward in wte").inputs[0].array is None
    assert trace.find("embedding forward in wte").inputs[0].shape == (11, 12)
    assert trace.notes[0].startswith("left out: ")
    assert "arrays of more than" in trace.notes[0]
    line = trace.find("embedding forward in wte").lines[0]
    assert line.made["weight"] is None
    assert "left out" in line.values["weight"]


def test_an_update_shows_the_formula_line_by_line():
    trace = cached("gpt2")
    stop = trace.parameters["h.0.ln_1.weight"]
    assert stop.op == "AdamW"
    assert trace.clip_factor < 1
    lines = {line.text.partition(" =")[0]: line for line in stop.lines}
    np.testing.assert_array_equal(lines["m_t"].made["m_t"], stop.moments_after["exp_avg"])
    np.testing.assert_array_equal(lines["w_t"].made["w_t"], stop.after)
    np.testing.assert_array_equal(stop.lines[0].made["g"], stop.grad * trace.clip_factor)
    np.testing.assert_array_equal(stop.moments_before["exp_avg"], 0)
    np.testing.assert_array_equal(stop.update, stop.after - stop.before)


@pytest.mark.parametrize("engine", ["fast"])
def test_engines_without_lines_have_their_ops_and_gradients(engine):
    plain, other = traced("gpt2"), traced("gpt2", engine=engine)
    assert [stop.title for stop in other.stops if stop.kind != "update"] == [
        stop.title for stop in plain.stops if stop.kind != "update"
    ]
    assert not any(stop.lines for stop in other.stops)
    for name, stop in other.parameters.items():
        np.testing.assert_allclose(stop.grad, plain.parameters[name].grad, rtol=1e-3, atol=1e-5)


def test_what_is_no_loss_is_refused():
    with pytest.raises(InputError, match="the loss is"):
        trace_step(Scaled(), lambda one: SCALED(one.weight))
    with pytest.raises(InputError, match="no stop is called"):
        traced().find("layernrm backward")
