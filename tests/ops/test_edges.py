"""Every operation at the edges: 0, -0, subnormal, tiny, huge, the largest, infinity and NaN, and pairs of these.

`ROWS` in edge_rows.py is the table, a row for each way to call an operation: values and gradients are PyTorch's, in
both precisions, by formula and by emulated kernel, and no warning comes with them. Where they differ on purpose, the
row says where, and why. A new operation needs a row there. `PRINCIPAL` has the values that matter most, for where
PyTorch is absent.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minillm import ops, tensor
from minillm.engine import engine
from tests.ops.edge_rows import INF, KERNELS, NAN, ROWS, Row


@pytest.fixture
def pair():
    """The tests of this file choose the engine themselves."""


def test_every_operation_has_a_row():
    missing = {op.name for op in ops.OPS} - {row.op for row in ROWS}
    assert not missing, f"add a row to ROWS in tests/ops/edge_rows.py for each of: {', '.join(sorted(missing))}"


# ---- the comparison -------------------------------------------------------------------------------------------------

COTANGENTS = {
    "random": lambda rng, shape: rng.uniform(0.5, 2, shape) * rng.choice([-1, 1], shape),
    "zero": lambda rng, shape: np.zeros(shape),
}


def kernel_op(row: Row) -> bool:
    return next(op.pair("cuda") is not None for op in ops.OPS if op.name == row.op)


def ours_of(row: Row, mode: str, arrays: tuple, cotangent: Callable) -> tuple[dict[str, np.ndarray], np.ndarray]:
    with engine(mode):
        leaves = [tensor(x.copy(), requires_grad=True) for x in arrays]
        y = row.ours(*leaves)
        u = np.asarray(cotangent(np.random.default_rng(1), y.shape), y.dtype)
        y.backward(u)
    gradients = {f"d{i}": leaf.grad for i, leaf in enumerate(leaves) if leaf.grad is not None}
    return {"y": np.asarray(y.data), **gradients}, u


def theirs_of(row: Row, arrays: tuple, u: np.ndarray) -> dict[str, np.ndarray]:
    torch = pytest.importorskip("torch")
    leaves = [torch.tensor(x, requires_grad=True) for x in arrays]
    y = row.theirs(torch, torch.nn.functional)(*leaves)
    y.backward(torch.tensor(u).reshape(y.shape))
    gradients = {f"d{i}": leaf.grad.numpy() for i, leaf in enumerate(leaves) if leaf.grad is not None}
    return {"y": y.detach().numpy(), **gradients}


def unlike(received: np.ndarray, expected: np.ndarray, close: bool) -> np.ndarray:
    """Where two results differ: NaN for NaN, infinity for infinity of that sign, numbers up to rounding."""
    info, a, b = np.finfo(received.dtype), received.astype(np.float64), expected.astype(np.float64)
    allowed = 200 * info.eps * np.abs(b) + 4 * float(info.tiny) + (400 * info.eps if close else 0)
    with np.errstate(invalid="ignore"):
        near = np.isfinite(a) & np.isfinite(b) & (np.abs(a - b) <= allowed)
    return ~(near | (a == b) | (np.isnan(a) & np.isnan(b)))


def excused(row: Row, mode: str, cotangent: str, key: str, arrays: tuple, wrong: np.ndarray) -> np.ndarray:
    """Which of these results may differ: those made of what a reason of the row marks."""
    excuse = np.zeros(wrong.shape, bool)
    for differs in row.differs:
        applies = differs.mode in ("", mode) and differs.cotangent in ("", cotangent) and key.startswith(differs.only)
        if not applies:
            continue
        with np.errstate(all="ignore"):
            marked = differs.where(*arrays)
        if wrong.shape[: marked.ndim] == marked.shape:
            excuse |= marked.reshape(marked.shape + (1,) * (wrong.ndim - marked.ndim))
        else:  # a sum over what is marked
            excuse |= marked.any()
    return excuse


@pytest.mark.oracle
@pytest.mark.parametrize("cotangent", COTANGENTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("mode", ["plain", "fast", KERNELS])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_edges_as_in_torch(row, mode, dtype, cotangent):
    if mode == KERNELS and (not kernel_op(row) or shutil.which("g++") is None):
        pytest.skip("no kernel, or no g++ to emulate it")
    arrays = row.arguments(dtype)
    received, u = ours_of(row, mode, arrays, COTANGENTS[cotangent])
    expected = theirs_of(row, arrays, u)
    for key, right in expected.items():
        own = received.get(key, np.zeros_like(right))
        assert (own.shape, own.dtype) == (right.shape, right.dtype)
        wrong = unlike(own, right, row.close)
        wrong &= ~excused(row, mode, cotangent, key, arrays, wrong)
        places = np.argwhere(np.atleast_1d(wrong))[:5].tolist()
        at = [x[place[0]] for x in arrays[:1] for place in places if x.ndim == 1 and place[0] < len(x)]
        assert not places, (
            f"{key} at {places}, where the first argument is {at}: {own[wrong][:5]}, PyTorch's is {right[wrong][:5]}; "
            "make them equal, or give the Row in tests/ops/edge_rows.py a Differs with the reason"
        )


# ---- the principal values, without PyTorch --------------------------------------------------------------------------

MAX = float(np.finfo(np.float32).max)
BIG = 3e38  # float32 has no number twice as large
FAR = [INF, -INF, 1e30, -1e30, MAX, -MAX]
LIMITS = ([INF, 0, 1e30, 0, MAX, 0], [1, 0, 1, 0, 1, 0])

# The operation, the number x, y = f(x), and the gradient of x where that of y is 1.
PRINCIPAL: dict[str, tuple[Callable[..., Any], list, list, list]] = {
    "x/y, of y": (
        lambda y: tensor(np.array([1e-30, 1e20, 1, 0, 0], y.dtype)) / y,
        *([1e-30, 1e20, 0, 1e-30, INF], [1, 1, INF, 0, 0], [-1e30, -1e-20, -INF, 0, 0]),
    ),
    "1/x": (lambda x: 1 / x, [1e30, INF, 2], [1e-30, 0, 0.5], [-1e-60, 0, -0.25]),
    "x^0": (lambda x: x**0, [0, INF, -INF, NAN, -2], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]),
    "x^1": (lambda x: x**1, [0, INF, -INF, NAN], [0, INF, -INF, NAN], [1, 1, 1, 1]),
    "x^2": (lambda x: x**2, [0, INF, -INF, NAN, -3], [0, INF, INF, NAN, 9], [0, INF, -INF, NAN, -6]),
    "x^-1": (lambda x: x**-1, [0, INF, -INF], [INF, 0, -0.0], [-INF, -0.0, -0.0]),
    "2^x": (lambda x: 2.0**x, [-INF, INF, 0], [0, INF, 1], [0, INF, math.log(2)]),
    "0^x": (lambda x: 0.0**x, [0, 1, -1, INF], [1, 0, INF, 0], [0, 0, -INF, 0]),
    "relu": (ops.relu, [NAN, INF, -INF, 0, -0.0, 1e-40], [NAN, INF, 0, 0, 0, 1e-40], [1, 1, 0, 0, 0, 1]),
    "clip": (lambda x: ops.clip(x, -1, 1), [NAN, INF, -INF, 1], [NAN, 1, -1, 1], [0, 0, 0, 1]),
    "where": (lambda x: ops.where([True, False], x, 0.0), [NAN, NAN], [NAN, 0], [1, 0]),
    "exp": (ops.exp, [INF, -INF, 1000, -1000, NAN], [INF, 0, INF, 0, NAN], [INF, 0, INF, 0, NAN]),
    "log": (ops.log, [0, INF, -1, NAN], [-INF, INF, NAN, NAN], [INF, 0, -1, NAN]),
    "sqrt": (ops.sqrt, [0, INF, -1], [0, INF, NAN], [INF, 0, NAN]),
    "tanh": (ops.tanh, [INF, -INF, 1e30, NAN], [1, -1, 1, NAN], [0, 0, 0, NAN]),
    "sigmoid": (ops.sigmoid, [INF, -INF, 1e30, -1e30, NAN], [1, 0, 1, 0, NAN], [0, 0, 0, 0, NAN]),
    "silu": (ops.silu, FAR, *LIMITS),
    "gelu": (ops.gelu, FAR, *LIMITS),
    "gelu, tanh form": (lambda x: ops.gelu(x, "tanh"), FAR, *LIMITS),
    "bias_gelu": (lambda x: ops.bias_gelu(x, tensor(np.ones(6, x.dtype))), FAR, *LIMITS),
    "bias_gelu, tanh form": (lambda x: ops.bias_gelu(x, tensor(np.ones(6, x.dtype)), "tanh"), FAR, *LIMITS),
    "activations at NaN": (lambda x: ops.gelu(x) + ops.gelu(x, "tanh") + ops.silu(x), [NAN, 0], [NAN, 0], [NAN, 1.5]),
    "swiglu": (lambda x: ops.swiglu(x, tensor(np.full(6, 1, x.dtype))), FAR, *LIMITS),
    "softmax": (ops.softmax, [-INF, 0, -INF], [0, 1, 0], [0, 0, 0]),
    "softmax of nothing": (ops.softmax, [-INF, -INF], [NAN, NAN], [NAN, NAN]),
    "softmax far out": (ops.softmax, [1e30, 1e30], [0.5, 0.5], [0, 0]),
    "log_softmax": (lambda x: ops.log_softmax(x)[1:], [-INF, 0], [0], [0, 0]),
    "layer norm of a variance that overflows": (
        lambda x: ops.layer_norm(x, *(tensor(np.ones(2, x.dtype)) for _ in range(2))),
        *([float("1e200"), -1e200], [NAN, NAN], [NAN, NAN]),
    ),
    "layer norm of a constant row": (
        lambda x: ops.layer_norm(x, *(tensor(np.ones(2, x.dtype)) for _ in range(2))),
        *([1e30, 1e30], [1, 1], [0, 0]),
    ),
    "sum": (ops.sum, [INF, -INF], [NAN], [1, 1]),
    "prod of the largest and two zeros": (lambda x: 3 * ops.prod(x), [BIG, 0, 1, 0], [0], [0, 0, 0, 0]),
    "std of what has no square": (lambda x: ops.std(x, correction=0), [2e30, 0], [1e30], [0.5, -0.5]),
    "std of the same": (lambda x: ops.std(x), [BIG, BIG], [0], [0, 0]),
    "var of the same": (lambda x: ops.var(x), [-BIG, -BIG], [0], [0, 0]),
    "norm 1/2": (lambda x: ops.norm(x, 0.5), [0, 1e-36, 1e10], [1e10], [0, 1e23, 1]),
    "norm 1/2 at NaN": (lambda x: ops.norm(x, 0.5), [0, NAN], [NAN], [NAN, NAN]),
    "norm 3/2 at NaN": (lambda x: ops.norm(x, 1.5), [0, NAN], [NAN], [NAN, NAN]),
    "norm inf": (lambda x: ops.norm(x, INF), [3, -3, 0, -INF, INF], [INF], [0, 0, 0, -0.5, 0.5]),
    "norm inf at NaN": (lambda x: ops.norm(x, INF), [3, NAN], [NAN], [0, 0]),
    "norm -inf": (lambda x: ops.norm(x, -INF), [3, -3], [3], [0.5, -0.5]),
}


@pytest.mark.parametrize("mode", ["plain", "fast", KERNELS])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", PRINCIPAL)
def test_principal_values(name, dtype, mode):
    if mode == KERNELS and shutil.which("g++") is None:
        pytest.skip("no g++ to emulate kernels")
    function, x, values, gradients = PRINCIPAL[name]
    with np.errstate(over="ignore"):  # some numbers are infinite in float32
        x = tensor(np.array(x, dtype), requires_grad=True)
    with engine(mode):
        y = function(x)
        y.backward(np.ones(y.shape, dtype))
    assert y.dtype == x.grad.dtype == dtype
    near = {"rtol": 1e-6, "atol": 1e-30 if dtype == np.float32 else 1e-300}
    np.testing.assert_allclose(np.ravel(y.data), values, **near)
    np.testing.assert_allclose(x.grad, gradients, **near)


@pytest.mark.parametrize("mode", ["plain", "fast", KERNELS])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_an_ignored_row_changes_nothing(bad, reduction, mode, rng):
    if mode == KERNELS and shutil.which("g++") is None:
        pytest.skip("no g++ to emulate kernels")
    logits = rng.normal(size=(3, 5)).astype(np.float32)
    u = 2.5 if reduction != "none" else np.array([1.0, 2.0, 3.0])
    results = []
    for fill in (0, bad):
        logits[1] = fill
        x = tensor(logits.copy(), requires_grad=True)
        with engine(mode):
            loss = ops.cross_entropy(x, np.array([4, -100, 0]), reduction=reduction)
            loss.backward(np.asarray(u, np.float32))
        results.append((loss.data, x.grad))
    (loss, gradient), (same_loss, same_gradient) = results
    np.testing.assert_array_equal(loss, same_loss)
    np.testing.assert_array_equal(gradient, same_gradient)
    assert np.isfinite(gradient).all()
    assert not gradient[1].any()
    assert gradient[0].any()


@pytest.mark.parametrize("mode", ["plain", "fast", KERNELS])
@pytest.mark.parametrize("shift", [0, 1e4, 1e10, 1e30])
def test_cross_entropy_of_large_logits(shift, mode):
    """m + log s has no digits left for s: the gradient of equal logits is 1/4 all the same."""
    if mode == KERNELS and shutil.which("g++") is None:
        pytest.skip("no g++ to emulate kernels")
    x = tensor(np.full((1, 4), shift, np.float32), requires_grad=True)
    with engine(mode):
        loss = ops.cross_entropy(x, np.array([2]))
        loss.backward()
    assert loss.item() == pytest.approx(math.log(4), rel=1e-6)
    np.testing.assert_allclose(x.grad, [[0.25, 0.25, -0.75, 0.25]], rtol=1e-6)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_future_key_that_is_no_number_is_not_seen(bad, rng):
    q, k, v = (rng.normal(size=(1, 1, 3, 4)).astype(np.float32) for _ in range(3))
    right = ops.attention(tensor(q), tensor(k), tensor(v), causal=True).data
    k[0, 0, 2] = bad
    y = ops.attention(tensor(q), tensor(k), tensor(v), causal=True).data
    np.testing.assert_array_equal(y[:, :, :2], right[:, :, :2])
    assert np.isnan(y[:, :, 2]).all()


def test_a_query_that_sees_nothing_has_no_gradient(rng):
    q, k, v = (tensor(rng.normal(size=(2, 1, 3, 4)), requires_grad=True) for _ in range(3))
    y = ops.attention(q, k, v, lengths=np.array([0, 2]))
    y.backward(np.ones(y.shape))
    for array in (y.data, q.grad, k.grad, v.grad):
        assert not array[0].any()
        assert array[1].any()
        assert np.isfinite(array).all()
