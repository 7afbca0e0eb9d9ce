"""`autograd.observe`: forwards, backwards and modules are seen in order, with their arrays, and nothing is changed."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import minillm
from minillm import nn, ops
from minillm.autograd import Tensor, no_grad, observe
from minillm.models.gpt2 import GPT2, GPT2Config

IDS = np.arange(8).reshape(2, 4)


def small_model() -> GPT2:
    minillm.manual_seed(0)
    return GPT2(GPT2Config(vocab_size=11, context=4, layers=2, heads=2, channels=8))


def gradients(model: GPT2) -> list:
    model.zero_grad()
    loss = model.loss(IDS, IDS)
    loss.backward()
    return [loss.data, *(parameter.grad.copy() for parameter in model.parameters())]


def test_a_step_is_seen_whole_and_is_the_same_step():
    model = small_model()
    unseen = gradients(model)
    forwards, backwards, modules = [], [], []
    with observe(forwards.append, backwards.append, lambda module, inputs, output: modules.append(module)):
        seen = gradients(model)
    for one, other in zip(unseen, seen, strict=True):
        np.testing.assert_array_equal(one, other)
    recorded = [call.node for call in forwards if call.node is not None]
    assert {id(node) for node in recorded} == {id(call.node) for call in backwards}
    assert backwards[0].node is recorded[-1], "the loss comes last, and its backward first"
    assert modules.index(model.h[0]) < modules.index(model.h[1])
    assert {"h.0", "h.1"} <= {module.name for module in modules}
    assert {"h.1.ln_2"} <= {call.scope for call in forwards} & {call.scope for call in backwards}
    assert all(call.seconds > 0 for call in (*forwards, *backwards))


def test_a_call_has_its_arrays():
    x, weight = Tensor(np.ones((2, 3)), requires_grad=True), Tensor(np.full((4, 3), 2.0), requires_grad=True)
    forwards, backwards = [], []

    def look(call):
        backwards.append((call.op, [*call.douts], call.dinputs, call.node.saved))

    with observe(on_forward=forwards.append, on_backward=look):
        y = ops.linear(x, weight)
        y.backward(np.full((2, 4), 5.0))
    [call] = forwards
    assert call.op is ops.LINEAR
    assert call.inputs[0] is x.data
    assert call.inputs[1] is weight.data
    assert call.inputs[2] is None
    assert call.settings == {}
    assert call.outputs == (y.data,)
    assert call.saved.x is x.data
    [(op, [dy], (dx, dweight, dbias), saved)] = backwards
    assert op is ops.LINEAR
    np.testing.assert_array_equal(dy, np.full((2, 4), 5.0))
    np.testing.assert_array_equal(dx, np.full((2, 3), 40.0))
    np.testing.assert_array_equal(dweight, np.full((4, 3), 10.0))
    assert dbias is None
    assert saved.weight is weight.data, "what was saved is released after the observers have seen it"


@pytest.mark.parametrize("mode", ["plain", "fast"])
def test_a_second_gradient_of_a_weight_is_seen_alone(mode):
    """The fast pair of linear adds to the gradient that is there; observed, it returns its own."""
    weight, seen = Tensor(np.ones((1, 2)), requires_grad=True), []
    with minillm.engine(mode), observe(on_backward=lambda call: seen.append(call.dinputs[1].copy())):
        for _ in range(2):
            ops.linear(Tensor(np.ones((1, 2))), weight).backward(np.ones((1, 1)))
    np.testing.assert_array_equal(seen, np.ones((2, 1, 2)))
    np.testing.assert_array_equal(weight.grad, np.full((1, 2), 2.0))


def test_without_a_graph_forwards_are_seen_and_have_no_node():
    calls = []
    with no_grad(), observe(on_forward=calls.append):
        ops.exp(Tensor(np.ones(2), requires_grad=True))
    assert [call.op.name for call in calls] == ["exp"]
    assert calls[0].node is None


def test_observers_nest_and_end():
    outer, inner = [], []
    x = Tensor(np.ones(2))
    with observe(on_forward=outer.append):
        ops.exp(x)
        with observe(on_forward=inner.append):
            ops.tanh(x)
        ops.sin(x)
    ops.cos(x)
    assert [call.op.name for call in outer] == ["exp", "tanh", "sin"]
    assert [call.op.name for call in inner] == ["tanh"]


def test_an_observer_that_raises_ends_the_step_and_is_taken_away():
    def refuse(call):
        raise RuntimeError(f"seen {call.op.name}")

    x = Tensor(np.ones(2), requires_grad=True)
    with pytest.raises(RuntimeError, match="seen exp"), observe(on_backward=refuse):
        ops.exp(x).backward(np.ones(2))
    ops.exp(x).backward(np.ones(2))
    np.testing.assert_allclose(x.grad, np.e)


def test_other_threads_are_not_watched():
    calls = []
    thread = threading.Thread(target=lambda: ops.exp(Tensor(np.ones(2))))
    with observe(on_forward=calls.append):
        thread.start()
        thread.join()
    assert calls == []


def test_a_module_is_seen_with_what_it_was_given_and_what_it_returned():
    layer = nn.Linear(3, 2)
    seen = []
    x = Tensor(np.ones((1, 3), np.float32))
    with observe(on_module=lambda *call: seen.append(call)):
        y = layer(x)
        layer(x=x)
    [(module, inputs, output), (_, by_name, _)] = seen
    assert module is layer
    assert inputs[0] is x
    assert by_name[0] is x
    assert output is y


def test_what_is_about_to_run_is_announced_with_what_it_gets():
    x, events = Tensor(np.array([1.0, 2.0]), requires_grad=True), []
    with observe(
        on_forward=lambda call: events.append(("after", call.op.name)),
        on_backward=lambda call: events.append(("after backward", call.op.name)),
        before_forward=lambda op, inputs, settings: events.append(("before", op.name, inputs[0] is x.data, settings)),
        before_backward=lambda node, douts: events.append(("before backward", node.op.name, douts[0].tolist())),
    ):
        ops.sum(x).backward()
    assert events == [
        ("before", "sum", True, {"axis": None, "keepdims": False}),
        ("after", "sum"),
        ("before backward", "sum", 1.0),
        ("after backward", "sum"),
    ]
