"""The walk through the graph: hooks, gradients of chosen tensors, threads, arrays that change after their use."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

import minillm
from minillm import autograd, ops
from minillm.autograd import Op, Parameter, Tensor, is_grad_enabled, no_grad, tensor
from minillm.engine import engine
from minillm.errors import GraphError, ShapeError


def leaf(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return Tensor(np.random.default_rng(seed).normal(size=shape), requires_grad=True)


# --- retain_grad and hooks -----------------------------------------------------------------------------------------


def test_retain_grad_twice_is_once():
    x = tensor([1.0, 2.0], requires_grad=True)
    h = x * 3
    h.retain_grad().retain_grad()
    (h * h).sum().backward()
    np.testing.assert_array_equal(h.grad, 2 * h.data)


def test_retain_grad_needs_a_gradient():
    with pytest.raises(GraphError, match="retain_grad: this tensor depends on nothing with requires_grad"):
        tensor([1.0]).retain_grad()


def test_a_hook_sees_the_whole_gradient_and_may_replace_it():
    x, seen = leaf((3,)), []
    h = x * 2
    h.retain_grad()
    h.register_hook(lambda g: seen.append(g))
    h.register_hook(lambda g: Tensor(g * 10))
    (h.sum() + (h * h).sum()).backward()  # two gradients meet in h
    np.testing.assert_allclose(seen, [1 + 2 * h.data])
    np.testing.assert_allclose(h.grad, 10 * (1 + 2 * h.data))  # what hooks made of it, as in PyTorch
    np.testing.assert_allclose(x.grad, 20 * (1 + 2 * h.data))


@pytest.mark.parametrize("buffer", [False, True])
def test_a_hook_of_a_leaf_sees_all_its_uses_together(buffer):
    w, x, seen = Parameter(np.random.default_rng(1).normal(size=(2, 3))), leaf((4, 3)), []
    if buffer:
        w.grad_buffer = np.full(w.shape, np.nan)
    plain = Parameter(w.data.copy())
    for p in (plain, w):
        handle = p.register_hook(lambda g: seen.append(g) or g * 2) if p is w else None
        for _ in range(2):
            (ops.linear(x, p).sum() + (ops.linear(x, p) ** 2).sum() + p.sum()).backward()
    assert len(seen) == 2
    np.testing.assert_allclose(seen[0] * 2, plain.grad)
    np.testing.assert_allclose(w.grad, 2 * plain.grad)
    handle.remove()
    handle.remove()
    w.sum().backward()
    assert len(seen) == 2


def test_a_hook_gets_a_copy_and_returns_the_same_shape():
    x = leaf((2, 2))
    h = x * 1

    def spoils(g):
        g[...] = np.nan

    h.register_hook(spoils)
    (h + h).sum().backward()
    np.testing.assert_array_equal(x.grad, 2)
    y = x * 1
    y.register_hook(lambda g: g.sum())
    with pytest.raises(ShapeError, match=r"register_hook: the hook returned a gradient of shape \(\) for one of shape"):
        y.sum().backward()
    with pytest.raises(GraphError, match="register_hook: this tensor depends on nothing"):
        tensor([1.0]).register_hook(print)


# --- autograd.grad -------------------------------------------------------------------------------------------------


def test_grad_gives_gradients_and_leaves_the_tensors_alone():
    x, y = leaf((3, 4)), leaf((4,), 1)
    h = x * y
    out = (h * h * y).sum()
    dx, dh = autograd.grad(out, [x, h], retain_graph=True)
    assert x.grad is None
    assert y.grad is None
    np.testing.assert_allclose(dh, 2 * h.data * y.data)
    np.testing.assert_allclose(dx, dh * y.data)
    out.backward()
    np.testing.assert_allclose(x.grad, dx)
    (dx_again,) = autograd.grad((x * 2).sum(), x)
    np.testing.assert_array_equal(dx_again, 2)
    np.testing.assert_allclose(x.grad, dx)


def test_grad_stops_at_its_inputs():
    x = leaf((3,))
    h = x * 2
    (dh,) = autograd.grad((h * h).sum(), h)
    (dx,) = autograd.grad(h, x, dh)  # what lies below h was not released
    np.testing.assert_allclose(dx, 8 * x.data)
    with pytest.raises(GraphError, match="released by an earlier backward"):
        autograd.grad(h, x, dh)


def test_grad_of_several_outputs_and_of_leaves():
    x, y = leaf((3,)), leaf((3,), 1)
    u, v = np.array([1.0, 2, 3]), np.array([4.0, 5, 6])
    (dx,) = autograd.grad([x * y, x], [x], [u, v])
    np.testing.assert_allclose(dx, u * y.data + v)
    (dx,) = autograd.grad([(x * y).sum(), (x * x).sum()], x)
    np.testing.assert_allclose(dx, y.data + 2 * x.data)
    h = x * y
    dh, dx = autograd.grad([(h * 3).sum(), h.sum()], [h, x])  # an output that is an input, and lies between
    np.testing.assert_array_equal(dh, 4)
    np.testing.assert_allclose(dx, 4 * y.data)


def test_grad_of_one_of_several_outputs():
    x = leaf((2, 4))
    first, second = (x * 3).split(2, dim=1)
    d_first, dx = autograd.grad((first * 2).sum() + (second * 5).sum(), [first, x])
    np.testing.assert_array_equal(d_first, 2)
    np.testing.assert_array_equal(dx, [[6, 6, 15, 15]] * 2)


def test_grad_says_what_is_wrong():
    x, other = leaf((3,)), leaf((3,), 1)
    with pytest.raises(GraphError, match=r"grad: no output depends on input 1; .*allow_unused=True"):
        autograd.grad((x * 2).sum(), [x, other])
    assert autograd.grad((x * 2).sum(), [x, other], allow_unused=True)[1] is None
    with pytest.raises(GraphError, match=r"grad: create_graph=True asks for gradients of gradients.*hvp"):
        autograd.grad((x * 2).sum(), x, create_graph=True)
    with pytest.raises(GraphError, match="grad: this tensor depends on nothing"):
        autograd.grad((x * 2).sum(), tensor([1.0]))
    with pytest.raises(ShapeError, match=r"grad: the tensor has shape \(3,\); reduce it to one value"):
        autograd.grad(x * 2, x)
    with pytest.raises(ShapeError, match="grad: 1 grad_outputs are given for 2 outputs"):
        autograd.grad([x * 2, x], x, [np.ones(3)])


def test_grad_does_not_write_into_buffers():
    w = Parameter(np.ones((2, 3)))
    w.grad_buffer = np.full((2, 3), 7.0)
    (dw,) = autograd.grad(ops.linear(leaf((4, 3)), w).sum(), w)
    np.testing.assert_array_equal(w.grad_buffer, 7)
    assert w.grad is None
    assert dw.shape == (2, 3)
    assert not np.shares_memory(dw, w.grad_buffer)


@pytest.mark.oracle
def test_grad_and_hooks_are_pytorchs():
    torch = pytest.importorskip("torch")
    a, b = np.random.default_rng(3).normal(size=(2, 4, 3))

    def run(x, y, grad):
        h = x * y
        h.register_hook(lambda g: g * 2)
        x.register_hook(lambda g: g + 1)
        out = ((h + x) ** 2).sum()
        only_h = grad(out, h, retain_graph=True)  # with x beside it, PyTorch would leave its hook out
        return [*only_h, *grad(out, [x, y], retain_graph=True), *grad([h, x], [x], [h.detach(), y.detach()])]

    ours = run(Tensor(a, requires_grad=True), Tensor(b, requires_grad=True), autograd.grad)
    theirs = run(torch.tensor(a, requires_grad=True), torch.tensor(b, requires_grad=True), torch.autograd.grad)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-12)


def test_pytorchs_names_of_the_graph():
    x = leaf((2,))
    y = (x * x).sum()
    assert x.is_leaf
    assert x.grad_fn is None
    assert not y.is_leaf
    assert y.grad_fn is y.node
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_allclose(x.grad, 4 * x.data)
    with pytest.raises(GraphError, match="released"):
        y.backward()
    with pytest.raises(GraphError, match="backward: create_graph=True"):
        (x * x).sum().backward(create_graph=True)


# --- modes ---------------------------------------------------------------------------------------------------------


def test_modes_nest_and_repeat():
    off = no_grad()
    for _ in range(2):
        with off, off:
            assert not is_grad_enabled()
            with minillm.enable_grad():
                assert is_grad_enabled()
            with minillm.set_grad_enabled(True):
                assert is_grad_enabled()
            assert not is_grad_enabled()
        assert is_grad_enabled()
    with minillm.inference_mode():
        assert not is_grad_enabled()
    with minillm.inference_mode(False):
        assert is_grad_enabled()
    minillm.set_grad_enabled(False)
    try:
        assert not is_grad_enabled()
    finally:
        minillm.set_grad_enabled(True)
    assert is_grad_enabled()


def test_modes_as_decorators():
    for make in (lambda: no_grad, no_grad, minillm.inference_mode, lambda: minillm.inference_mode):
        mode = make()

        @mode
        def inside(a, b=1):
            return is_grad_enabled(), a + b

        assert is_grad_enabled()
        assert inside(1, b=2) == (False, 3)
        assert inside.__name__ == "inside"
        assert is_grad_enabled()

    @minillm.set_grad_enabled(False)
    def off():
        return is_grad_enabled()

    assert is_grad_enabled()
    assert not off()
    assert is_grad_enabled()


def test_a_decorated_generator_is_in_the_mode_only_while_it_works():
    closed = []

    @no_grad()
    def steps():
        try:
            got = yield is_grad_enabled()
            yield got, is_grad_enabled()
        finally:
            closed.append(is_grad_enabled())

    generator = steps()
    assert next(generator) is False
    assert is_grad_enabled()
    assert generator.send(5) == (5, False)
    generator.close()
    assert closed
    assert is_grad_enabled()


# --- threads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["linear", "embedding", "mul", "hooked"])
@pytest.mark.parametrize("buffer", [False, True])
def test_threads_that_add_to_one_leaf_lose_nothing(op, buffer):
    """Whole numbers, whose sum depends on no order: each of the threads adds the same gradient many times."""
    rng, threads, times = np.random.default_rng(0), 8, 40
    w = Parameter(rng.integers(-3, 4, (40, 30)).astype(float))
    if buffer:
        w.grad_buffer = np.full(w.shape, np.nan)
    if op == "hooked":
        w.register_hook(lambda g: g)
    x, ids = Tensor(rng.integers(-3, 4, (20, 30)).astype(float)), rng.integers(0, 40, 50)
    functions = {
        "linear": lambda p: ops.linear(x, p),
        "embedding": lambda p: ops.embedding(ids, p),
        "mul": lambda p: p * 3,
        "hooked": lambda p: ops.linear(x, p),
    }
    alone = Parameter(w.data.copy())
    functions[op](alone).sum().backward()
    errors = []

    def work():
        try:
            for _ in range(times):
                functions[op](w).sum().backward()
        except BaseException as error:
            errors.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        running = [threading.Thread(target=work) for _ in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join(120)
    finally:
        sys.setswitchinterval(before)
    assert not errors
    assert not any(thread.is_alive() for thread in running)
    np.testing.assert_array_equal(w.grad, threads * times * alone.grad)


def test_a_leaf_that_is_being_written_is_added_to_later():
    """An op that writes into a leaf's gradient is stopped in the middle, while another thread adds to it."""
    w, inside, go_on = Parameter(np.zeros(3)), threading.Event(), threading.Event()
    w.grad = np.zeros(3)

    def backward(dout, saved, into):
        if into[0] is None:
            return (dout.copy(),)
        total = into[0].array + dout  # reads before it waits, as a product that adds does
        inside.set()
        assert go_on.wait(60)
        into[0].array[...] = total
        return (into[0].array,)

    slow = Op("slow", lambda x: (x * 1, None), backward)
    first = threading.Thread(target=lambda: slow(w).sum().backward())
    first.start()
    assert inside.wait(60)
    second = threading.Thread(target=lambda: (w * 5).sum().backward())
    third = threading.Thread(target=lambda: slow(w).sum().backward())
    second.start()
    third.start()
    second.join(0.2)
    assert second.is_alive()  # waits, and loses nothing
    go_on.set()
    for thread in (first, second, third):
        thread.join(60)
    np.testing.assert_array_equal(w.grad, 7)


def test_an_error_in_a_backward_frees_the_leaf():
    w = Parameter(np.zeros(3))

    def fails(dout, saved, into):
        raise ArithmeticError("planted")

    with pytest.raises(ArithmeticError, match="planted"):
        Op("fails", lambda x: (x * 1, None), fails)(w).sum().backward()
    done = threading.Thread(target=lambda: (w * 2).sum().backward(), daemon=True)
    done.start()
    done.join(60)
    np.testing.assert_array_equal(w.grad, 2)


# --- arrays that change between forward and backward ---------------------------------------------------------------

IDS, MASK = np.array([0, 2, 2]), np.array([True, False, True])


def _arrays_that_change():
    """Name, function of x (3, 4) and an array that will be refilled, the array, what it is refilled with."""
    rng = np.random.default_rng(7)
    numbers, square = rng.uniform(0.5, 2, (3, 4)), rng.uniform(0.5, 2, (4, 3))
    heads = lambda x: x.reshape(1, 1, 3, 4)  # noqa: E731
    yield "embedding", lambda x, ids: ops.embedding(ids, x), IDS, 1
    yield "embedding, ids as a tensor", lambda x, ids: ops.embedding(Tensor(ids), x), IDS, 1
    yield "getitem, indices", lambda x, ids: x[ids], IDS, 1
    yield "getitem, two", lambda x, ids: x[ids, ids], IDS, 1
    yield "getitem, booleans", lambda x, mask: x[mask], MASK, False
    yield "getitem, tensor", lambda x, ids: x[Tensor(ids)], IDS, 1
    yield "getitem, in a tuple with slices", lambda x, ids: x[1:, None, ids], np.array([3, 0]), 1
    yield "getitem, no axes", lambda x, ids: x[ids], np.array(2), 1
    yield "where", lambda x, mask: ops.where(mask[:, None], x, 0.0), MASK, False
    yield "where, integers", lambda x, mask: ops.where(mask[:, None], x, x * 2), np.array([1, 0, 1]), 0
    yield "where, tensor", lambda x, mask: ops.where(Tensor(mask)[:, None], x, 0.0), MASK, False
    yield "x * array", lambda x, y: x * y, numbers, 9
    yield "array * x", lambda x, y: y * x, numbers[0], 9
    yield "stretched array * x", lambda x, y: np.broadcast_to(y, (3, 4)) * x, numbers[0], 9
    yield "x / array", lambda x, y: x / y, numbers, 9
    yield "array / x", lambda x, y: y / x, numbers, 9
    yield "x ** array", lambda x, y: (x * x + 1) ** y, numbers, 9
    yield "array % x", lambda x, y: y % (x * x + 1), numbers * 5, 1
    yield "x @ array", lambda x, y: x @ y, square, 9
    yield "array @ x", lambda x, y: y @ x, square, 9
    yield "layer_norm's input", lambda x, y: ops.layer_norm(y, x[0]), numbers, 9
    yield "linear's input", lambda x, y: ops.linear(y, x), numbers, 9
    yield "cross_entropy", lambda x, ids: ops.cross_entropy(x, ids), IDS, 1
    yield "attention, booleans", lambda x, m: ops.attention(heads(x), heads(x * 2), heads(x), mask=m), MASK, True
    yield "attention, bias", lambda x, m: ops.attention(heads(x), heads(x * 2), heads(x), mask=m), numbers[:, :3], 9
    yield (
        "attention, lengths",
        lambda x, n: ops.attention(heads(x), heads(x * 2), heads(x), lengths=n),
        np.array([2]),
        3,
    )
    int32 = np.array([2], np.int32)
    yield "attention, int32", lambda x, n: ops.attention(heads(x), heads(x * 2), heads(x), lengths=n), int32, 3


CHANGING = {name: rest for name, *rest in _arrays_that_change()}


@pytest.mark.parametrize("name", CHANGING)
def test_a_buffer_that_is_refilled_changes_no_gradient(name):
    function, array, new = CHANGING[name]
    x = leaf((3, 4), 2)
    y = function(x, array.copy())
    u = np.random.default_rng(3).normal(size=y.shape)
    y.backward(u)
    expected, x.grad = x.grad, None
    buffer = array.copy()
    y = function(x, buffer)
    buffer[...] = new
    y.backward(u)
    np.testing.assert_array_equal(x.grad, expected)
    x.grad = None
    refilled = function(x, np.full_like(array, new))
    if refilled.shape == y.shape:  # and the test would see it
        refilled.backward(u)
        assert not np.allclose(x.grad, expected)


@pytest.mark.parametrize("name", ["embedding", "cross_entropy"])
def test_kernels_keep_their_ids_too(name):
    function, array, new = CHANGING[name]
    x = Tensor(leaf((3, 4)).data.astype(np.float32), requires_grad=True)
    with engine("emulate"):
        function(x, array.copy()).sum().backward()
        expected, x.grad = x.grad, None
        buffer = array.copy()
        y = function(x, buffer)
        buffer[...] = new
        y.sum().backward()
    np.testing.assert_array_equal(x.grad, expected)


def test_a_stretched_array_stays_stretched_when_it_is_kept():
    copied = autograd.snapshot(np.broadcast_to(np.arange(3.0), (1000, 3)))
    assert copied.strides == (0, 8)
    assert copied.base.nbytes == 24
    np.testing.assert_array_equal(copied, [np.arange(3.0)] * 1000)
    assert autograd.snapshot(np.zeros((0, 3))).shape == (0, 3)
    assert autograd.snapshot(np.array(2.5)) == 2.5


def test_nothing_is_copied_where_nothing_is_recorded():
    seen = []
    probe = Op("probe", lambda x, y: (seen.append(y) or x * y, None), lambda dout, saved: (dout, None))
    array = np.ones(3)
    probe(tensor([1.0, 2, 3]), array)
    with no_grad():
        probe(leaf((3,)), array)
    assert all(y is array for y in seen)
    probe(leaf((3,)), array)
    assert seen[-1] is not array


def test_mixed_dtypes_reach_kernels_in_one():
    x = Tensor(np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32), requires_grad=True)
    w = Parameter(np.ones(8, np.float32))
    scale = np.random.default_rng(1).normal(size=(4, 8))
    with engine("emulate"):
        (ops.layer_norm(x, w) * scale).sum().backward()  # a gradient in float64 arrives at a float32 kernel
    emulated, x.grad = x.grad, None
    (ops.layer_norm(x, w) * scale).sum().backward()
    assert emulated.dtype == np.float32
    np.testing.assert_allclose(emulated, x.grad, rtol=1e-4, atol=1e-6)
