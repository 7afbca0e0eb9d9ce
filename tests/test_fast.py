"""Every fast pair computes what its plain pair computes.

In float64 both agree to 1e-12. In float32 the fast pair is off from the float64 result by at most twice what the plain
pair is off. That holds for arrays below every threshold of backend.Cutting and above it (several MB), for views, for
arrays without elements, on one thread and on two, whether matrix products are cut here or by the BLAS.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import pytest

import minillm
from minillm import backend, ops
from minillm.autograd import observe

SIZES = {"small": (3, 5), "one row": (1, 67), "no rows": (0, 4), "several MB": (4099, 131)}
CUTTINGS = {
    "one thread": backend.Cutting(1),
    "two threads": backend.Cutting(2, 1),
    "two threads, products by the BLAS": backend.Cutting(2),
    "two threads, everything cut": backend.Cutting(2, 1, parallel_bytes=1, parallel_flops=1),
}


def normal(*shapes):
    return lambda rng: [rng.normal(size=shape) for shape in shapes]


def positive(*shapes):
    return lambda rng: [rng.uniform(0.3, 2.0, shape) for shape in shapes]


def with_ids(*shapes, below, ids):
    """Arrays, and after them integers of shape `ids`, many of them equal."""
    return lambda rng: [*(rng.normal(size=shape) for shape in shapes), rng.integers(0, below, ids)]


def seeded(fn: Callable) -> Callable:
    """The function with the default stream of random numbers begun anew, so that two runs draw the same."""

    def run(*inputs):
        minillm.manual_seed(7)
        return fn(*inputs)

    return run


def frozen(x) -> list[np.ndarray]:
    """A weight and a bias of a linear layer on x, without gradients."""
    return [array.astype(x.dtype) for array in normal((9, x.shape[-1]), (9,))(np.random.default_rng(5))]


UNARY = ("abs", "cos", "exp", "expm1", "relu", "sigmoid", "silu", "sin", "tanh")
OF_POSITIVE = ("log", "log10", "log1p", "log2", "sqrt")
BINARY = ("add", "div", "maximum", "minimum", "mul", "sub")


def rows_of(op: str, n: int, c: int) -> list[tuple[Callable, Callable]]:
    """For an op the functions to compare, each with what makes its arrays, of about n rows and c columns."""
    x, row = (n, c), (c,)
    if op in UNARY:
        return [(getattr(ops, op), normal(x))]
    if op in OF_POSITIVE:
        return [(getattr(ops, op), positive(x))]
    if op in BINARY:
        fn = getattr(ops, op)
        return [
            (fn, positive(x, x)),
            (fn, positive(x, row)),
            (fn, positive(row, x)),
            (lambda a: fn(a, 1.5), positive(x)),
        ]
    heads = 2 if n < 100 else 4
    t, s, d = min(n, 301), min(n, 301), 8 if n < 100 else 64
    q, kv = (2, heads, t, d), (2, heads // 2, s, d)
    table = ops.rope_table(5, 2 * c)
    return {
        "add_layernorm": [(ops.add_layer_norm, normal(x, x, row, row)), (ops.add_layer_norm, normal(x, x))],
        "attention": [
            (lambda q, k, v: ops.attention(q, k, v, causal=True), normal(q, kv, kv)),
            (lambda q, k, v: ops.attention(q, k, v), normal(q, kv, kv)),
            (seeded(lambda q, k, v: ops.attention(q, k, v, causal=True, dropout_p=0.3)), normal(q, q, q)),
        ],
        "add_low_rank": [
            (ops.add_low_rank, normal((n, 4), x, (9, c), (4, 9))),
            (lambda y, *rest: ops.add_low_rank(y, *rest, 0.3, 2), normal((2, n, 9), (2, n, c), (9, c), (4, 9))),
            (lambda y, *rest: ops.add_low_rank(y * 2, *rest, overwrite=True), normal((n, 4), x, (9, c), (4, 9))),
        ],
        "bias_gelu": [(lambda x, b, a=a: ops.bias_gelu(x, b, a), normal(x, row)) for a in ("none", "tanh")],
        "broadcast": [(lambda x: ops.broadcast_to(x, (n, c)), normal(row)), (lambda x: x.expand(n, c), normal((n, 1)))],
        "clip": [(lambda x: ops.clip(x, -0.5, 0.7), normal(x))],
        "cross_entropy": [
            (ops.cross_entropy, with_ids(x, below=c, ids=n)),
            (lambda x, t: ops.cross_entropy(x, t, label_smoothing=0.1, reduction="sum"), with_ids(x, below=c, ids=n)),
            (lambda x, t: ops.cross_entropy(x, t, reduction="none"), with_ids(x, below=c, ids=n)),
        ],
        "dropout": [(seeded(lambda x: ops.dropout(x, 0.3)), normal(x))],
        "embedding": [
            (lambda w, ids: ops.embedding(ids, w), with_ids((7, c), below=7, ids=(n, 2))),
            (lambda w, ids: ops.embedding(ids, w, padding_idx=2), with_ids((max(n, 4), c), below=4, ids=(n,))),
        ],
        "frozen_linear": [(lambda x: ops.linear(x, *frozen(x)), normal(shape)) for shape in (x, (2, n, c))],
        "gelu": [(lambda x, a=a: ops.gelu(x, a), normal(x)) for a in ("none", "tanh")],
        "getitem": [(lambda x, ids: x[ids], with_ids((max(n, 1), c), below=max(n, 1), ids=n))],
        "index_select": [(lambda x, ids: x.index_select(1, ids), with_ids(x, below=c, ids=2 * c))],
        "layernorm": [(ops.layer_norm, normal(x, row, row)), (ops.layer_norm, normal(x, row))],
        "linear": [(ops.linear, normal((n, c), (9, c), (9,))), (ops.linear, normal((2, n, c), (9, c)))],
        "log_softmax": [
            (lambda x: ops.log_softmax(x, -1), normal(x)),
            (lambda x: ops.log_softmax(x, 0), normal((c, n))),
        ],
        "matmul": [(ops.matmul, normal(x, (c, 9))), (ops.matmul, normal((2, n, c), (2, c, 9)))],
        "mean": [(lambda x, a=a: x.mean(a), normal(x)) for a in (0, 1, None)]
        if n
        else [(lambda x: x.mean(1), normal(x))],
        "rmsnorm": [(ops.rms_norm, normal(x, row))],
        "rope": [(lambda x: ops.rope(x, *table), normal((n, 5, 2 * c)))],
        "softmax": [(lambda x: ops.softmax(x, -1), normal(x)), (lambda x: ops.softmax(x, 0), normal((c, n)))],
        "sum": [(lambda x, a=a: x.sum(a), normal(x)) for a in (0, 1, None)],
        "swiglu": [(ops.swiglu, normal(x, x))],
        "where": [(lambda a, b, i: ops.where(i > 0, a, b), with_ids(x, x, below=2, ids=x))],
    }.get(op, [])


def view(x: np.ndarray) -> np.ndarray:
    """The same numbers with a step between them in memory."""
    return np.repeat(x, 2, axis=-1)[..., ::2] if x.ndim else x


def run(engine: str, fn: Callable, arrays: list, ran: list) -> list[np.ndarray]:
    """The outputs, and the gradients of the arrays for a cotangent that is drawn at random."""
    inputs = [minillm.Tensor(x, requires_grad=True) if x.dtype.kind == "f" else x for x in arrays]
    with minillm.engine(engine), observe(on_forward=ran.append):
        outs = fn(*inputs)
        outs = outs if isinstance(outs, tuple) else (outs,)
        rng = np.random.default_rng(1)
        loss = sum((out * rng.normal(size=out.shape).astype(out.dtype)).sum() for out in outs)
        values = [out.data.copy() for out in outs]
        loss.backward()
    return values + [x.grad for x in inputs if isinstance(x, minillm.Tensor)]


def largest(x: np.ndarray) -> float:
    return float(abs(x).max(initial=0))


def scale(x: np.ndarray, others: list[np.ndarray]) -> float:
    """The largest element; where all are 0 because their terms cancel, that of the other outputs and gradients."""
    return largest(x) or max(largest(other) for other in others)


FAST = [op for op in ops.OPS if op.pair("fast")]


@pytest.mark.parametrize("layout", ["contiguous", "views"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("op", FAST, ids=lambda op: op.name)
def test_fast_is_plain(op, size, layout):
    rows = rows_of(op.name, *SIZES[size])
    assert rows, f"tests/test_fast.py: write a row for {op.name} in rows_of, with the function and its arrays"
    compared = 0
    for fn, make in rows:
        exact_arrays = make(np.random.default_rng(0))
        if layout == "views":
            exact_arrays = [view(x) for x in exact_arrays]
        single_arrays = [
            view(x.astype(np.float32)) if layout == "views" else x.astype(np.float32) for x in exact_arrays
        ]
        single_arrays = [s if x.dtype.kind == "f" else x for s, x in zip(single_arrays, exact_arrays, strict=True)]
        rounded = [x.astype(np.float64) if x.dtype.kind == "f" else x for x in single_arrays]
        exact = run("plain", fn, exact_arrays, [])
        exact_of_rounded = run("plain", fn, rounded, [])
        plain = run("plain", fn, single_arrays, [])
        for cutting in CUTTINGS.values():
            calls: list = []
            with contextlib.ExitStack() as stack:
                stack.enter_context(backend.cut_by(cutting))
                fast = run("fast", fn, exact_arrays, calls)
                fast_single = run("fast", fn, single_arrays, [])
            assert any(call.op is op and call.node.backward is op.pair("fast").backward for call in calls)
            for right, received in zip(exact, fast, strict=True):
                np.testing.assert_allclose(received, right, rtol=1e-12, atol=1e-12 * scale(right, exact), strict=True)
            for right, one, other in zip(exact_of_rounded, plain, fast_single, strict=True):
                assert other.dtype == np.float32
                allowed = 2 * largest(one - right) + 2.0**-22 * scale(right, exact)
                assert largest(other - right) <= allowed, (cutting, largest(other - right), allowed)
            compared += 1
    assert compared == len(rows) * len(CUTTINGS)


def test_a_wrong_fast_pair_is_found(monkeypatch):
    """The comparison itself: a fast softmax whose gradient is off by one part in 10^9 does not pass."""
    right = ops.SOFTMAX.pair("fast")
    wrong = right._replace(backward=lambda dy, saved: tuple(g * (1 + 1e-9) for g in right.backward(dy, saved)))
    monkeypatch.setitem(ops.SOFTMAX.pairs, "fast", wrong)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        test_fast_is_plain(ops.SOFTMAX, "small", "contiguous")
