"""The engine: nine rules, each with its own tests, and every error message."""

from __future__ import annotations

import ast
import contextlib
import gc
import inspect
import threading
import tracemalloc
import weakref

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minillm
from minillm import autograd, ops
from minillm.autograd import Into, Op, Parameter, Tensor, enter_scope, is_grad_enabled, no_grad, tensor
from minillm.errors import DeviceError, DtypeError, GraphError, InputError, ShapeError
from minillm.testing import check_gradients


def leaf(*shape, seed=0, dtype=np.float64) -> Tensor:
    return Tensor(np.random.default_rng(seed).normal(size=shape).astype(dtype), requires_grad=True)


def an_op(backward, forward=lambda *xs: (sum(xs), None), **flags):
    """A public function around an Op, one frame above it, as in minillm.ops."""
    op = Op("planted", forward, backward, **flags)

    def planted(*inputs):
        return op(*inputs)

    return planted


@contextlib.contextmanager
def scope(name):
    before = enter_scope(name)
    yield
    enter_scope(before)


@pytest.fixture
def no_gc():
    """Whatever is freed in this test is freed by reference counts alone."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# --- rule 1: edges point at nodes ----------------------------------------------------------------------------------


def test_edges_lead_to_nodes_and_only_leaf_edges_hold_a_tensor():
    x, constant = leaf(3), Tensor(np.ones(3))
    y = x * constant
    z = y + 2.0
    assert y.node.edges == ((x, 0), None)
    assert z.node.edges == ((y.node, 0), None)
    assert (y.node.op.name, z.node.op.name) == ("mul", "add")
    assert z.node.input_shapes == ((3,), None)
    assert z.node.output_shapes == ((3,),)


def test_an_intermediate_that_no_backward_needs_is_freed_at_once(no_gc):
    x = leaf(1000)
    y = x + 1.0
    array, made = weakref.ref(y.data), weakref.ref(y)
    z = y + 2.0
    del y
    assert made() is None
    assert array() is None
    z.backward(np.ones(1000))
    np.testing.assert_array_equal(x.grad, 1)


def test_an_intermediate_that_a_backward_needs_is_kept_until_it_ran(no_gc):
    x = leaf(1000)
    y = x.exp()
    array = weakref.ref(y.data)
    z = y + 2.0
    del y
    assert array() is not None
    z.backward(np.ones(1000))
    assert array() is None
    assert z.node is not None


def test_nothing_makes_a_reference_cycle(no_gc):
    w, b = leaf(4, 4), leaf(4, seed=1)
    x = np.ones((3, 4))

    def step():
        y = ops.layer_norm(ops.gelu(ops.linear(Tensor(x), w, b)), b, b)
        a, c = (y * y + y).split(2, axis=1)
        loss = (a * c).sum() + ops.attention(*[y.reshape(1, 1, 3, 4)] * 3).mean() + y.max()
        loss.retain_grad()
        loss.backward()
        w.grad = b.grad = None
        return loss.item()

    for _ in range(3):
        step()
    assert gc.collect() == 0
    y = ops.linear(Tensor(x), w, b).tanh()  # a graph that is never run backwards
    del y
    assert gc.collect() == 0


def test_live_tensors_and_memory_stay_flat(no_gc):
    w = leaf(16, 16)
    x = np.ones((8, 16))

    def step():
        h = Tensor(x)
        for _ in range(3):
            h = h + ops.gelu(ops.linear(h, w))
        loss = ops.cross_entropy(h, np.arange(8))
        loss.backward()
        w.grad = None

    def alive() -> int:
        return sum(type(o) in (Tensor, autograd.Node) for o in gc.get_objects())

    def array_bytes() -> int:
        only_arrays = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
        snapshot = tracemalloc.take_snapshot().filter_traces([only_arrays])
        return sum(trace.size for trace in snapshot.traces)

    for _ in range(5):
        step()
    before = alive()
    tracemalloc.start()
    try:
        step()
        memory = array_bytes()
        for _ in range(50):
            step()
        assert array_bytes() <= memory
        keeps_one = np.ones(100)
        assert array_bytes() >= memory + keeps_one.nbytes  # or nothing was measured
    finally:
        tracemalloc.stop()
    assert alive() == before


# --- rule 2: depth is limited by memory alone ----------------------------------------------------------------------


def test_a_chain_of_20000_nodes():
    x = leaf(2)
    y = x
    for _ in range(20_000):
        y = y + 1.0
    y.backward(np.array([1.0, 2.0]))
    np.testing.assert_array_equal(x.grad, [1, 2])


def test_a_long_chain_is_dropped_without_recursion():
    y = leaf(1)
    for _ in range(100_000):
        y = y * 1.0
    del y


def test_a_ladder_of_shared_nodes_takes_each_node_once():
    """y = y + y, 60 times: 2^60 paths, 60 nodes."""
    calls = []

    def backward(dout, saved):
        calls.append(1)
        return dout, dout

    double = an_op(backward, aliases=True)
    x = leaf(3)
    y = x
    for _ in range(60):
        y = double(y, y)
    y.backward(np.ones(3))
    assert len(calls) == 60
    np.testing.assert_array_equal(x.grad, 2.0**60)


def test_a_tensor_used_at_two_depths_waits_for_both():
    def fn(x):
        y = x * 2
        deep = (y.exp() + 1).log().tanh()
        return y * deep + y

    check_gradients(fn, np.random.default_rng(0).normal(size=(2, 3)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99), st.sampled_from("+-*t")), min_size=1, max_size=12))
def test_random_graphs(plan):
    def fn(x, y):
        made = [x, y]
        for i, j, kind in plan:
            a, b = made[i % len(made)], made[j % len(made)]
            made.append({"+": a + b, "-": a - b, "*": a * b, "t": a.tanh()}[kind] * 0.5)
        return made[-1] + made[len(made) // 2]

    rng = np.random.default_rng(0)
    check_gradients(fn, rng.normal(size=(2,)), rng.normal(size=(3, 1)))


# --- rule 3: the graph is released ---------------------------------------------------------------------------------


def test_backward_releases_what_it_used():
    x = leaf(3)
    y = x.exp()
    loss = (y * 2).sum()
    nodes = [loss.node, loss.node.edges[0][0], y.node]
    loss.backward()
    assert all(node.saved is None and node.edges is None for node in nodes)


def test_a_second_backward_says_what_to_do():
    x = leaf(3)
    loss = (x * x).sum()
    loss.backward()
    first = x.grad.copy()
    with pytest.raises(GraphError) as caught:
        loss.backward()
    assert str(caught.value).startswith("backward: the graph of sum -> () at test_autograd.py:")
    assert "run the forward again, or call the first backward with keep_graph=True" in str(caught.value)
    np.testing.assert_array_equal(x.grad, first)


def test_a_graph_that_was_released_in_part_raises_before_any_gradient_is_added():
    x = leaf(3)
    shared = x * x
    one, other = shared.sum(), (shared * 3 + x).sum()
    one.backward()
    first = x.grad.copy()
    with pytest.raises(GraphError, match=r"the graph of mul -> \(3,\)"):
        other.backward()
    np.testing.assert_array_equal(x.grad, first)


def test_keep_graph_keeps_it():
    x = leaf(3)
    loss = (x * x).sum()
    loss.backward(keep_graph=True)
    loss.backward(keep_graph=True)
    loss.backward()
    np.testing.assert_allclose(x.grad, 3 * 2 * x.data)
    with pytest.raises(GraphError):
        loss.backward()


def test_arrays_are_freed_while_the_backward_goes_down(no_gc):
    """When the backward of the first node runs, nothing of the last is alive."""
    saved_arrays, gradients, alive = [], [], []

    def forward(x):
        kept = np.array(x)
        saved_arrays.append(weakref.ref(kept))
        return x * 1.0, (kept,)

    def backward(dout, saved):
        alive.append(tuple(sum(one() is not None for one in arrays) for arrays in (saved_arrays, gradients)))
        dx = dout * 1.0
        gradients.append(weakref.ref(dx))
        return (dx,)

    op = an_op(backward, forward)
    y = leaf(10)
    for _ in range(5):
        y = op(y)
    y.backward(np.ones(10))
    assert alive == [(5, 0), (4, 1), (3, 1), (2, 1), (1, 1)]  # the one gradient is the dout of the node that runs


# --- rule 4: who owns a gradient -----------------------------------------------------------------------------------


def test_x_plus_x():
    x = leaf(3)
    (x + x).backward(np.array([1.0, 2, 3]))
    np.testing.assert_array_equal(x.grad, [2, 4, 6])


def test_a_residual_used_twice_is_not_corrupted():
    def fn(x):
        h = x * 1.5
        for _ in range(3):
            h = h + h.tanh() + h
        a = h + 1.0
        return a + h, a - h

    check_gradients(fn, np.random.default_rng(0).normal(size=(2, 3)))


def test_gradients_that_arrive_aliased_are_not_written_to():
    """The same array reaches y and z; y then gets a second gradient, which must not show in z."""
    x, w = leaf(3), leaf(3, seed=1)
    y, z = x * 1.0, w * 1.0
    total = y + z  # hands one array to both
    (total + y).backward(np.ones(3))
    np.testing.assert_array_equal(x.grad, 2)
    np.testing.assert_array_equal(w.grad, 1)


def test_later_gradients_are_added_in_place():
    """First arrival kept, second allocates (or uses the engine's own), third and later add into that."""
    seen = []

    def backward(dout, saved):
        seen.append(dout)
        return (dout * 1.0,)

    node = an_op(backward, lambda x: (x * 1.0, None))
    x = leaf(4)
    y = node(x)
    (y + y + y + y).backward(np.ones(4))
    np.testing.assert_array_equal(seen[0], 4)
    np.testing.assert_array_equal(x.grad, 4)


def test_the_users_cotangent_is_neither_kept_nor_changed():
    x, u = leaf(3), np.array([1.0, 2, 3])
    for y in (x + x + x, x + 0.0, x.reshape(3), x):
        x.grad = None
        y.backward(u)
        np.testing.assert_array_equal(u, [1, 2, 3])
        assert not np.shares_memory(x.grad, u)


def test_leaf_gradients_share_no_memory():
    x, y, z = leaf(3), leaf(3, seed=1), leaf(3, seed=2)
    (x + y + z).backward(np.ones(3))
    arrays = [x.grad, y.grad, z.grad, x.data, y.data, z.data]
    for i, a in enumerate(arrays):
        for b in arrays[:i]:
            assert not np.shares_memory(a, b)
    x.grad += 5
    np.testing.assert_array_equal(y.grad, 1)


def test_leaf_gradients_of_views_own_their_memory():
    x = leaf(2, 3)
    x.sum().backward()
    x.grad[0, 0] = 7  # a broadcast view would be read-only, or change everywhere
    assert x.grad.sum() == 12


def test_gradients_accumulate_over_backwards():
    x = leaf(3)
    (x * 2).sum().backward()
    first = x.grad
    (x * 3).sum().backward()
    np.testing.assert_array_equal(x.grad, 5)
    assert x.grad is first


def test_tensors_without_axes_accumulate_too():
    """NumPy returns scalars for 0-d results, which cannot be written to in place."""
    x = leaf(3)
    s = x.sum()
    (s * s * s + s).backward()
    np.testing.assert_allclose(x.grad, 3 * s.item() ** 2 + 1)
    w = leaf()
    for _ in range(2):
        (w * w + w).backward()
    assert type(w.grad) is np.ndarray
    np.testing.assert_allclose(w.grad, 2 * (2 * w.data + 1))


# --- rule 5: where -------------------------------------------------------------------------------------------------


def line() -> int:
    return inspect.currentframe().f_back.f_lineno


def test_location_is_the_line_that_called_the_operation():
    x = leaf(3)
    made = {}
    made[line()] = x * 2
    made[line()] = ops.exp(x)
    made[line()] = x.sum(axis=0)
    made[line()] = 2.0 - x
    made[line()] = 2.0**x
    made[line()] = np.ones((2, 3)) @ x
    made[line()] = ops.softmax(x)
    made[line()] = x[1:]
    for number, y in made.items():
        assert y.node.location() == f"test_autograd.py:{number}", y.node.op
    here = line() + 2
    y = (
        x * 2  # the line of the operator, whichever way the interpreter counts it
    )
    assert y.node.location() in {f"test_autograd.py:{here + i}" for i in (-1, 0, 1)}


def test_location_survives_in_a_loop_and_deep_in_a_long_function():
    x = leaf(3)
    lines = []
    for _ in range(3):
        lines.append(x.exp().node.location())
        lines.append(x.exp().node.location())
    assert len(set(lines)) == 2
    first, second = (int(one.split(":")[1]) for one in lines[:2])
    assert second == first + 1


def test_no_frame_is_kept_alive(no_gc):
    class Local:
        pass

    def make():
        local = Local()
        y = leaf(3) * 2
        return y, weakref.ref(local)

    y, local = make()
    assert local() is None
    assert y.node.location().startswith("test_autograd.py:")


def test_describe_and_repr():
    x = leaf(2, 3)
    with scope("h.3.attn"):
        y = x.sum(axis=1)
    assert y.node.describe() == f"sum -> (2,) at {y.node.location()} in h.3.attn"
    assert repr(y.node) == f"Node({y.node.describe()})"
    a, b = x.split(2, axis=1)
    assert b.node.describe() == f"split -> (2, 2), (2, 1) at {b.node.location()}"
    assert a.node is b.node
    assert repr(y.node.op) == "Op(sum)"


# --- rule 6: errors in a backward ----------------------------------------------------------------------------------


def test_an_error_in_a_backward_says_where_the_forward_was():
    planted = an_op(lambda dout, saved: 1 / 0, lambda x: (x * 2, None))
    x = leaf(2, 3)
    with scope("h.3.mlp"):
        here = line() + 1
        y = planted(x)
    with pytest.raises(ZeroDivisionError) as caught:
        (y * 2).sum().backward()
    assert caught.value.__notes__ == [f"in the backward of planted -> (2, 3) at test_autograd.py:{here} in h.3.mlp"]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda dout: dout, "returned .* for 2 inputs; return a tuple with one gradient"),
        (lambda dout: [dout, dout], "for 2 inputs; return a tuple"),
        (lambda dout: (dout,), "returned 1 for 2 inputs"),
        (lambda dout: (dout, dout, dout), "returned 3 for 2 inputs"),
        (lambda dout: None, "returned None for 2 inputs"),
    ],
)
def test_a_backward_must_return_one_gradient_for_each_input(result, message):
    planted = an_op(lambda dout, saved: result(dout))
    with pytest.raises(GraphError, match=message) as caught:
        planted(leaf(3), leaf(3, seed=1)).backward(np.ones(3))
    assert "backward of planted" in str(caught.value)
    assert caught.value.__notes__


def test_a_gradient_must_have_the_shape_of_its_input():
    planted = an_op(lambda dout, saved: (dout, dout))
    with pytest.raises(ShapeError) as caught:
        planted(leaf(2, 3), leaf(3, seed=1)).backward(np.ones((2, 3)))
    assert str(caught.value) == (
        "backward of planted: the gradient of input 1 has shape (2, 3), but the input has shape (3,); "
        "sum over the broadcast axes"
    )


def test_scopes_nest_and_end():
    x = leaf(1)
    with scope("a"):
        with scope("a.b"):
            inner = x * 1
        outer = x * 1
    after = x * 1
    assert (inner.node.scope, outer.node.scope, after.node.scope) == ("a.b", "a", "")
    assert enter_scope("") == ""


# --- rule 7: parameters that moved ---------------------------------------------------------------------------------


def test_backward_through_a_parameter_that_moved_raises():
    w = Parameter(np.ones((2, 3)), name="h.0.weight")
    y = ops.linear(Tensor(np.ones((1, 3))), w)
    w.version += 1
    with pytest.raises(GraphError) as caught:
        y.sum().backward()
    assert "h.0.weight" in str(caught.value)
    assert "was updated by the optimiser after linear -> (1, 2) at test_autograd.py:" in str(caught.value)
    assert "call backward before step, or run the forward again" in str(caught.value)
    assert w.grad is None


def test_each_use_remembers_its_own_version():
    w = Parameter(np.ones(3))
    early = (w * 2).sum()
    w.version += 1
    late = (w * 3).sum()
    late.backward()
    np.testing.assert_array_equal(w.grad, 3)
    with pytest.raises(GraphError):
        early.backward()


def test_a_kept_graph_ends_when_a_parameter_moves():
    w = Parameter(np.ones(3))
    loss = (w * w).sum()
    loss.backward(keep_graph=True)
    w.version += 1
    with pytest.raises(GraphError, match="updated"):
        loss.backward()


# --- rule 8: first order -------------------------------------------------------------------------------------------


def test_gradients_are_arrays_not_tensors():
    x = leaf(3)
    (x * x).sum().backward()
    assert type(x.grad) is np.ndarray


# --- rule 9: the engine knows no operation -------------------------------------------------------------------------


def imports_of(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_autograd_imports_no_operation():
    assert not {name for name in imports_of(inspect.getsource(autograd)) if "ops" in name}
    assert {name for name in imports_of("from minillm import ops") if "ops" in name}


def test_no_op_imports_the_table():
    for module in vars(ops).values():
        if getattr(module, "__name__", "").startswith("minillm.ops."):
            assert "minillm.ops" not in imports_of(inspect.getsource(module))


# --- memory that an op may write into ------------------------------------------------------------------------------


def parameter(array, buffer=True) -> Parameter:
    w = Parameter(np.array(array))
    if buffer:
        w.grad_buffer = np.full(w.shape, np.nan)  # its contents mean nothing
    return w


@pytest.mark.parametrize("op", ["linear", "embedding", "mul"])
def test_a_gradient_goes_into_the_buffer_and_then_adds_there(op):
    fns = {
        "linear": lambda w: ops.linear(Tensor(np.arange(6.0).reshape(2, 3)), w),
        "embedding": lambda w: ops.embedding(np.array([0, 1, 1]), w),
        "mul": lambda w: w * 3.0,  # does not write there itself: the engine does
    }
    plain, w = parameter(np.ones((2, 3)), buffer=False), parameter(np.ones((2, 3)))
    for times in (1, 2, 3):
        for one in (plain, w):
            fns[op](one).sum().backward()
        assert w.grad is w.grad_buffer
        np.testing.assert_allclose(w.grad, plain.grad, err_msg=f"after {times}")
    w.grad = None
    fns[op](w).sum().backward()
    np.testing.assert_allclose(w.grad, plain.grad / 3)


@pytest.mark.parametrize("buffer", [True, False])
def test_a_table_tied_to_the_output_layer(buffer):
    ids = np.array([[0, 2, 2], [1, 0, 3]])
    value = np.random.default_rng(0).normal(size=(4, 3))
    u = np.random.default_rng(1).normal(size=(2, 3, 4))

    def forward(table, weight):
        return ops.linear(ops.embedding(ids, table), weight)

    table, weight = Tensor(value, requires_grad=True), Tensor(value, requires_grad=True)
    forward(table, weight).backward(u)
    tied = parameter(value, buffer)
    for times in (1, 2):
        forward(tied, tied).backward(u)
        np.testing.assert_allclose(tied.grad, times * (table.grad + weight.grad))
    assert (tied.grad is tied.grad_buffer) == buffer


@pytest.mark.parametrize("buffer", [True, False])
def test_one_parameter_as_two_inputs_of_one_op(buffer):
    value = np.random.default_rng(0).normal(size=(3, 3))
    a, b, c = (Tensor(v, requires_grad=True) for v in (value, value, value[0]))
    ops.linear(a, b).sum().backward()
    w = parameter(value, buffer)
    ops.linear(w, w).sum().backward()
    np.testing.assert_allclose(w.grad, a.grad + b.grad)
    assert c.grad is None


def test_an_op_is_told_where_to_write():
    told = []

    def backward(dout, saved, into):
        told.append(into)
        return dout * 1.0, dout * 2.0, None

    planted = an_op(backward, lambda x, w, k: (x + w, None))
    x, w = leaf(3), parameter(np.ones(3))
    planted(x, w, 5).backward(np.ones(3))
    assert told[0][0] is None
    assert told[0][1] == Into(w.grad_buffer, add=False)
    assert told[0][2] is None
    planted(x, w, 5).backward(np.ones(3))
    assert told[1][0] == Into(x.grad, add=True)
    assert told[1][1] == Into(w.grad, add=True)
    np.testing.assert_array_equal(w.grad, 4)
    planted(x * 1.0, w, 5).backward(np.ones(3))
    assert told[2][0] is None  # no leaf
    planted(w, w, 5).backward(np.ones(3))
    assert told[3][:2] == (None, None)  # one buffer cannot serve two gradients
    np.testing.assert_array_equal(w.grad, 4 + 2 + 3)


def test_empty_parameters_may_be_written_into():
    w = parameter(np.ones((0, 3)))
    ops.embedding(np.zeros((0,), int), w).sum().backward()
    assert w.grad is w.grad_buffer


# --- what needs a gradient -----------------------------------------------------------------------------------------


def test_inputs_that_need_no_gradient_get_no_edge_and_no_node():
    x, y = leaf(3), Tensor(np.ones(3))
    assert (x * y).node.edges[1] is None
    z = y * 2 + 1
    assert z.node is None
    assert not z.requires_grad
    assert (x * z).node.edges[1] is None
    (x * y).sum().backward()
    assert y.grad is None


def test_no_grad_as_context():
    x = leaf(3)
    with no_grad():
        assert not is_grad_enabled()
        with no_grad():
            y = x * 2
        assert not is_grad_enabled()
        z = x.split(1)
    assert is_grad_enabled()
    for one in (y, *z):
        assert one.node is None
        assert not one.requires_grad


def test_no_grad_ends_with_an_exception():
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert is_grad_enabled()


def test_no_grad_as_decorator():
    @no_grad()
    def evaluate(x):
        """Its own docstring."""
        assert not is_grad_enabled()
        return x * 2

    x = leaf(3)
    for _ in range(2):
        assert not evaluate(x).requires_grad
    assert is_grad_enabled()
    assert evaluate.__doc__ == "Its own docstring."


def test_no_grad_and_scope_belong_to_their_thread():
    x = leaf(3)
    inside, outcome = threading.Event(), {}
    leave = threading.Event()

    def other():
        with no_grad(), scope("elsewhere"):
            inside.set()
            leave.wait(10)
            outcome["other"] = (x * 2).requires_grad

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    y = x * 2
    leave.set()
    thread.join()
    assert y.requires_grad
    assert y.node.scope == ""
    assert outcome == {"other": False}


def test_backward_may_run_on_another_thread():
    x = leaf(3)
    loss = (x * x).sum()
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    np.testing.assert_allclose(x.grad, 2 * x.data)


def test_detach_cuts_the_history():
    x = leaf(3)
    y = (x * x).detach()
    assert y.node is None
    assert not y.requires_grad
    (x * y).sum().backward()
    np.testing.assert_allclose(x.grad, x.data**2)
    assert np.shares_memory(x.detach().data, x.data)


def test_retain_grad_keeps_the_gradient_of_an_intermediate():
    x = leaf(3)
    y = (x * 2).retain_grad()
    z = y + y * 3
    z.retain_grad()
    z.backward(np.array([1.0, 2, 3]), keep_graph=True)
    np.testing.assert_array_equal(y.grad, [4, 8, 12])
    np.testing.assert_array_equal(z.grad, [1, 2, 3])
    np.testing.assert_array_equal(x.grad, [8, 16, 24])
    z.backward(np.array([1.0, 2, 3]))
    np.testing.assert_array_equal(y.grad, [8, 16, 24])
    y.grad[0] = -1
    np.testing.assert_array_equal(z.grad, [2, 4, 6])


def test_retained_gradients_share_no_memory():
    x, u = leaf(3), np.ones(3)
    y = (x + 1.0).retain_grad()
    z = (y + 1.0).retain_grad()  # the same gradient passes through all of them
    z.backward(u)
    arrays = [u, x.grad, y.grad, z.grad]
    for i, a in enumerate(arrays):
        assert not any(np.shares_memory(a, b) for b in arrays[:i])


def test_without_retain_grad_an_intermediate_has_none():
    x = leaf(3)
    y = x * 2
    y.sum().backward()
    with pytest.warns(UserWarning, match="retain_grad"):
        assert y.grad is None


def test_retain_grad_does_not_keep_a_tensor_alive(no_gc):
    x = leaf(3)
    y = (x * 2).retain_grad()
    reference = weakref.ref(y)
    z = y.sum()
    del y
    assert reference() is None
    z.backward()
    np.testing.assert_array_equal(x.grad, 2)


def test_retain_grad_of_a_leaf_changes_nothing():
    x = leaf(2)
    assert x.retain_grad() is x
    x.sum().backward()
    np.testing.assert_array_equal(x.grad, 1)


def test_a_leaf_is_its_own_root():
    x = leaf(3)
    x.backward(np.array([1.0, 2, 3]))
    x.backward(tensor([1.0, 1, 1]))
    np.testing.assert_array_equal(x.grad, [2, 3, 4])


# --- several outputs -----------------------------------------------------------------------------------------------


def test_several_outputs_meet_in_one_backward():
    x = leaf(5)
    a, b, c = x.split([2, 1, 2])
    (a.sum() * 2 + (c * c).sum()).backward()
    np.testing.assert_allclose(x.grad, [2, 2, 0, *(2 * x.data[3:])])
    with pytest.warns(UserWarning, match="split made this tensor"):
        assert b.grad is None


def test_the_backward_of_several_outputs_gets_none_for_those_unused():
    seen = []

    def backward(douts, saved):
        seen.append(douts)
        return (np.concatenate([np.zeros(2) if dout is None else dout for dout in douts]),)

    planted = an_op(backward, lambda x: ((x[:2] * 1, x[2:] * 1), None))
    x = leaf(4)
    a, b = planted(x)
    assert (a.index, b.index) == (0, 1)
    (b * 3).sum().backward(keep_graph=True)
    assert seen[0][0] is None
    np.testing.assert_array_equal(seen[0][1], 3)
    a.retain_grad()
    (a.sum() + b.sum()).backward()
    np.testing.assert_array_equal(x.grad, [1, 1, 4, 4])
    np.testing.assert_array_equal(a.grad, 1)


def test_a_node_that_nothing_reached_lets_its_parents_run():
    """One output of the split is used by an op that returns None for it: the chain below must still run."""
    blocked = an_op(lambda dout, saved: (dout * 1.0, None), lambda x, y: (x + y, None))
    x = leaf(4)
    y = x * 2.0
    z = blocked(y, y.exp())
    z.backward(np.ones(4))
    np.testing.assert_array_equal(x.grad, 2)


# --- making and reading tensors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1.5, np.float32),
        ([1.0, 2.0], np.float32),
        ([1, 2], np.int64),
        (True, np.bool_),
        (np.float64(1.5), np.float64),
        (np.array([1.0]), np.float64),
        (np.array([1.0], np.float32), np.float32),
        (np.array([1], np.uint16), np.uint16),
    ],
)
def test_dtypes_as_in_pytorch(data, dtype):
    assert tensor(data).dtype == dtype
    assert tensor(tensor(data)).dtype == dtype


def test_tensor_copies_and_takes_a_dtype():
    array = np.zeros(2)
    x = tensor(array)
    array[0] = 1
    assert x.data[0] == 0
    assert tensor([1, 2], dtype=np.float64).dtype == np.float64
    assert tensor([1.5], dtype=np.int64).dtype == np.int64
    assert not np.shares_memory(tensor(x).data, x.data)


def test_reading():
    x = tensor([[1.0, 2.0, 3.0]])
    assert (x.shape, x.ndim, x.dtype, x.numel(), len(x)) == ((1, 3), 2, np.float32, 3, 1)
    assert x.numpy() is x.data
    assert tensor(2.5).item() == 2.5
    assert type(tensor([[2]]).item()) is int
    np.testing.assert_array_equal(np.asarray(x), x.data)
    assert np.asarray(x, dtype=np.float64).dtype == np.float64
    assert [row.shape for row in x] == [(3,)]


def test_repr():
    assert repr(tensor([1.0, 2.0])) == "tensor([1. 2.], shape=(2,), float32)"
    assert repr(tensor([1.0], requires_grad=True)) == "tensor([1.], shape=(1,), float32, requires_grad=True)"
    y = tensor([1.0], requires_grad=True) * 2
    assert repr(y) == f"tensor([2.], shape=(1,), float32, mul -> (1,) at {y.node.location()})"
    assert "..." in repr(tensor(np.zeros(1000)))
    assert repr(Parameter(np.zeros((2, 3)), "h.0.weight")) == "Parameter(h.0.weight, shape=(2, 3), float64)"
    assert repr(Parameter(np.zeros(2, np.float32))) == "Parameter(unnamed, shape=(2,), float32)"


def test_requires_grad_can_be_changed_on_a_leaf():
    x = tensor([1.0])
    assert x.requires_grad_() is x
    assert x.requires_grad
    x.requires_grad_(False)
    assert (x * 2).node is None
    ints = tensor([1])
    assert not ints.requires_grad_(False).requires_grad


# --- arithmetic between kinds --------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(hnp.mutually_broadcastable_shapes(num_shapes=2, min_side=0, max_side=3), st.sampled_from("+-*/"))
def test_broadcasting_aligns_from_the_right_as_numpy_does(shapes, sign):
    a, b = (np.random.default_rng(i).uniform(1, 2, shape) for i, shape in enumerate(shapes.input_shapes))
    function = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide}[sign]
    x, y = Tensor(a, requires_grad=True), Tensor(b, requires_grad=True)
    for out in (eval(f"x {sign} y"), eval(f"a {sign} y"), eval(f"x {sign} b")):
        assert type(out) is Tensor
        assert out.shape == shapes.result_shape
        np.testing.assert_array_equal(out.data, function(a, b))
    eval(f"x {sign} y").backward(np.ones(shapes.result_shape))
    assert (x.grad.shape, y.grad.shape) == (a.shape, b.shape)


def test_an_array_on_the_left_gives_one_tensor():
    x = leaf(3)
    array = np.arange(3.0)
    for y in (array * x, array + x, array - x, array / (x + 9), array ** (x * 0 + 2), array @ x, np.eye(3) @ x):
        assert type(y) is Tensor
        assert y.requires_grad
    assert type(array > x) is Tensor


SCALARS = [2, 2.0, np.float64(2), np.float32(2), np.int64(2), np.array(2.0), True]


@pytest.mark.parametrize("scalar", SCALARS, ids=repr)
def test_a_number_of_any_kind_leaves_float32_alone(scalar):
    x = leaf(3, dtype=np.float32)
    x.data = abs(x.data) + 0.5
    for fn in (
        lambda: x * scalar,
        lambda: scalar * x,
        lambda: x + scalar,
        lambda: scalar - x,
        lambda: x / scalar,
        lambda: scalar / x,
        lambda: x**scalar,
        lambda: scalar**x,
        lambda: ops.where(x > 1, x, scalar),
        lambda: x.clip(0, scalar),
    ):
        x.grad = None
        y = fn()
        assert y.dtype == np.float32
        y.sum().backward()
        assert x.grad.dtype == np.float32


def test_a_leaf_gets_its_gradient_in_its_own_dtype():
    x, y = leaf(3, dtype=np.float32), leaf(3)
    for _ in range(2):
        (x * y).sum().backward()
        assert (x.grad.dtype, y.grad.dtype) == (np.float32, np.float64)
    w = Parameter(np.ones(3, np.float32))
    w.grad_buffer = np.zeros(3, np.float32)
    (w * y).sum().backward()
    assert w.grad is w.grad_buffer
    np.testing.assert_allclose(w.grad, y.data, rtol=1e-6)


# --- every error message -------------------------------------------------------------------------------------------


def test_integers_have_no_gradient():
    for make in (lambda: tensor([1, 2], requires_grad=True), lambda: Tensor(np.arange(2), requires_grad=True)):
        with pytest.raises(
            DtypeError, match="tensor: dtype int64 cannot have a gradient; convert to float32 or float64"
        ):
            make()
    with pytest.raises(DtypeError, match="requires_grad_: dtype int64 cannot have a gradient"):
        tensor([1, 2]).requires_grad_()
    with pytest.raises(DtypeError, match="dtype bool"):
        Parameter(np.array([True]))


def test_only_numbers_make_a_tensor():
    with pytest.raises(DtypeError, match="tensor: data has dtype <U1; give numbers or booleans of one shape"):
        tensor(["a", "b"])
    with pytest.raises(DtypeError, match="tensor: data has dtype object"):
        tensor([None])
    with pytest.raises(DtypeError, match="tensor: data has dtype complex128"):
        tensor(1j)


def test_unknown_devices_are_refused():
    assert tensor([1.0], device="cpu").dtype == np.float32
    with pytest.raises(DeviceError, match="device: 'gpu' names no device; choose 'cpu', 'cuda' or 'cuda:0'"):
        tensor([1.0], device="gpu")


def test_backward_without_anything_to_differentiate():
    for y in (tensor([1.0]).sum(), tensor([1.0])):
        with pytest.raises(GraphError, match="backward: this tensor depends on nothing with requires_grad=True"):
            y.backward()
    with no_grad():
        y = leaf(1).sum()
    with pytest.raises(GraphError, match="or was made under no_grad"):
        y.backward()


def test_backward_of_many_elements_needs_a_gradient():
    with pytest.raises(ShapeError) as caught:
        (leaf(2, 3) * 2).backward()
    assert str(caught.value) == ("backward: the tensor has shape (2, 3); reduce it to one value, or give gradient=")
    x = leaf(1, 1)
    (x * 2).backward()
    np.testing.assert_array_equal(x.grad, [[2]])


@pytest.mark.parametrize("gradient", [np.ones(3), np.ones((3, 2)), 1.0, np.ones((1, 2, 3))])
def test_the_gradient_given_must_fit(gradient):
    with pytest.raises(ShapeError, match=r"backward: gradient has shape .*, but the tensor has shape \(2, 3\)"):
        (leaf(2, 3) * 2).backward(gradient)


def test_the_gradient_given_takes_the_tensors_dtype():
    x = leaf(2, dtype=np.float32)
    (x * 2).backward(np.ones(2))
    assert x.grad.dtype == np.float32
    x.grad = None
    (x * 2).backward([1, 2])
    assert x.grad.dtype == np.float32


def test_item_of_many():
    with pytest.raises(ShapeError, match=r"item: the tensor has shape \(2,\), and only a tensor with one element"):
        tensor([1.0, 2.0]).item()


def test_elements_cannot_be_assigned():
    x = leaf(3)
    with pytest.raises(GraphError, match=r"Tensor: elements cannot be assigned.*minillm.ops.where"):
        x[0] = 1.0


def test_requires_grad_of_a_result_cannot_be_changed():
    with pytest.raises(GraphError, match="requires_grad_: an operation made this tensor; only a leaf can be changed"):
        (leaf(3) * 2).requires_grad_(False)


def test_the_package_offers_what_it_says():
    for name in minillm.__all__:
        assert hasattr(minillm, name)
    assert minillm.no_grad is no_grad


def test_a_single_element_is_a_number_and_a_truth():
    assert float(tensor([2.5])) == 2.5
    assert tensor(0.0) < 1
    assert not tensor([0.0])
    with pytest.raises(ShapeError, match="only a tensor with one element"):
        bool(tensor([1.0, 2.0]))


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "gelu", "silu", "dropout"])
def test_whole_numbers_are_refused_where_only_floats_make_sense(name):
    with pytest.raises(DtypeError, match=rf"^{name}: x has dtype int64; convert it to float32"):
        getattr(ops, name)(tensor([[1, 2], [3, 4]]))


def test_layers_refuse_whole_numbers_by_name():
    x, ones = tensor(np.ones((2, 4))), tensor(np.ones(4, int))
    with pytest.raises(DtypeError, match=r"^layer_norm: weight has dtype int64"):
        ops.layer_norm(x, ones)
    with pytest.raises(DtypeError, match=r"^linear: weight has dtype int64"):
        ops.linear(x, tensor(np.ones((3, 4), int)))


def test_a_seed_out_of_range_is_refused():
    with pytest.raises(InputError, match=r"^manual_seed: seed is -1"):
        minillm.manual_seed(-1)
