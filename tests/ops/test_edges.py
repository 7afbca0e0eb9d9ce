"""Every operation at the edges: 0, -0, subnormal, tiny, huge, the largest, infinity and NaN, and pairs of these.

`ROWS` is the table, a row for each way to call an operation: values and gradients are PyTorch's, in both precisions, by
formula and by emulated kernel, and no warning comes with them. Where they differ on purpose, the row says where, and
why. A new operation needs a row here. `PRINCIPAL` has the values that matter most, for where PyTorch is absent.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import minillm
from minillm import ops, tensor
from minillm.kernels import use_kernels

INF, NAN = math.inf, math.nan
KERNELS = "emulate"


def edges(dtype: type) -> np.ndarray:
    """The numbers, of both signs."""
    info = np.finfo(dtype)
    positive = [0.0, float(info.smallest_subnormal) * 12345, 1e-30, 1e-12, 0.5, 1, 2, 3, 7.5, 20, 100, 1e10, 1e30]
    positive += [float(info.max), INF]
    return np.array([*positive, *(-x for x in positive), NAN], dtype)


def each(dtype):
    return (edges(dtype),)


def pairs(dtype):
    x, y = np.meshgrid(edges(dtype), edges(dtype), indexing="ij")
    return x.reshape(-1), y.reshape(-1)


def with_bias(dtype):
    return np.repeat(edges(dtype)[:, None], 3, axis=1), np.array([0, 0.25, -1], dtype)


def rows(dtype):
    """Rows of four with one edge, with two, and with nothing else."""
    e = edges(dtype)
    return (
        np.array([[x, 1, -0.5, 2] for x in e] + [[x] * 4 for x in e] + [[x, y, 1, 0] for x in e for y in e], dtype),
    )


def rows_and_parameters(dtype):
    return (*rows(dtype), np.array([1.5, -0.5, 2, 0.25], dtype), np.array([0.25, 2, -0.5, 1.5], dtype))


def heads(place: str):
    """Queries, keys and values (N, 1, 2 or 3, 2) with one edge in each item."""

    def make(dtype):
        e = edges(dtype)
        q = np.full((len(e), 1, 2, 2), 0.5, dtype)
        k = np.repeat(np.array([[[[1, 0.5], [-1, 2], [0.25, -0.25]]]], dtype), len(e), axis=0)
        v = k[..., ::-1].copy()
        {"q": q, "k": k, "v": v}[place][:, 0, 1, 1] = e
        return q, k, v

    return make


# ---- on purpose -----------------------------------------------------------------------------------------------------


class Differs(NamedTuple):
    """Where a result is not PyTorch's, and why: `where` marks elements, or rows, of what the operation is given."""

    reason: str
    where: Callable[..., np.ndarray]
    mode: str = ""  # of the kernels alone, or (empty) of both
    only: str = ""  # "y" for values, "d" for gradients; empty for all
    cotangent: str = ""  # of one cotangent alone, or (empty) of all


def infinite(x, *_):
    return np.isinf(x)


def huge(x, *_):
    """Beyond which the cube of a number overflows, or its product with something."""
    return np.abs(x) > 1e25


def any_of_row(mark: Callable) -> Callable:
    return lambda x, *_: mark(x).any(axis=-1)


def alike(x, *_):
    return (x == x[:, :1]).all(axis=-1) & (np.abs(x[:, 0]) >= 1e10)


ACTIVATION = Differs("the limits, which PyTorch computes as infinity times 0 or misses by an overflow", huge)
GATE = Differs(
    "the limits of silu; and PyTorch multiplies dy up first, where that may overflow", lambda x, y: huge(x) | huge(y)
)
ROOT = Differs(
    "pow(-0, 1/2) and pow(-inf, 1/2) are those of C's pow; PyTorch takes the square root",
    lambda x: (x == 0) | (x == -INF),
)
RECIPROCAL = Differs("PyTorch multiplies with 1/x, which overflows", lambda x: (np.abs(x) < 1e-29) & (x != 0))
CONSTANT_ROW = Differs(
    "a constant row has mean x and variance 0; PyTorch's running variance overflows or cancels", alike
)
OVERFLOW = Differs("an infinite variance gives NaN; PyTorch's depends on the order: NaN, or the bias", any_of_row(huge))
RMS_OVERFLOW = Differs(
    "a row whose mean square overflows gives 0, as in PyTorch, and so the gradient is 0, not NaN",
    any_of_row(huge),
    only="d",
)
IGNORED = Differs(
    "a row that is ignored has no gradient, whatever is in it; PyTorch multiplies 0 with NaN",
    lambda x: ~np.isfinite(x).all(axis=-1) & (np.arange(len(x)) % 5 == 0),
)
NO_PART = Differs(
    "a row whose loss has no gradient passes none on, as kernels do not read it; PyTorch multiplies 0 with NaN",
    lambda x: ~np.isfinite(x).all(axis=-1),
    cotangent="zero",
)
MEAN_OF_LOGITS = Differs("the mean of the logits overflows in PyTorch, and not here", any_of_row(huge), KERNELS, "y")
NAN_QUERY = Differs(
    "NaN shows; PyTorch gives 0, as to a query that may see nothing", lambda q, k, v: ~np.isfinite(q).all((1, 2, 3))
)
HUGE_QUERY = Differs("scores beyond 2.3e38 overflow in the kernel", lambda q, k, v: huge(q).any((1, 2, 3)), KERNELS)
HIDDEN_VALUE = Differs(
    "the kernel never reads what no query of a block sees; PyTorch multiplies it with 0",
    lambda q, k, v: (~np.isfinite(v) | huge(v) | ~np.isfinite(k) | huge(k)).any((1, 2, 3)),
    KERNELS,
)


# ---- the table ------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One way to call an operation, and PyTorch's, which is made of `torch` and its `functional`."""

    op: str
    what: str
    ours: Callable
    theirs: Callable[..., Callable]
    arguments: Callable = each
    differs: tuple[Differs, ...] = ()
    close: bool = False  # results near 0 come from others that are not: compare with an absolute tolerance too

    @property
    def name(self) -> str:
        return f"{self.op} {self.what}".strip()


def same_name(*names: str, arguments: Callable = each, close: bool = False) -> list[Row]:
    """Operations that have one name here and there."""
    return [
        Row(name, "", getattr(ops, name), lambda t, F, n=name: getattr(t, n), arguments, (), close) for name in names
    ]


def powers() -> list[Row]:
    numbers = [
        Row("pow", f"x^{p}", lambda x, p=p: x**p, lambda t, F, p=p: lambda x: x**p)
        for p in (0, 0.0, 1, 2, 3, -1, -2, 2.5)
    ]
    roots = [
        Row("pow", f"x^{p}", lambda x, p=p: x**p, lambda t, F, p=p: lambda x: x**p, each, (ROOT,)) for p in (0.5, -0.5)
    ]
    bases = [
        Row("pow", f"{b}^x", lambda x, b=b: b**x, lambda t, F, b=b: lambda x: b**x)
        for b in (0.0, 1.0, 2.0, -2.0, 0.5, INF)
    ]
    return [*numbers, *roots, *bases]


def losses() -> list[Row]:
    """Every fifth target is ignored."""
    for reduction in ("mean", "sum", "none"):
        for smoothing, target in ((0.0, 0), (0.0, 1), (0.0, 3), (0.1, 0), (0.1, 3)):
            settings = {"label_smoothing": smoothing, "reduction": reduction}

            def targets(x, target=target):
                return np.where(np.arange(x.shape[0]) % 5 == 0, -100, target)

            yield Row(
                "cross_entropy",
                f"{reduction}, smoothing {smoothing}, target {target}",
                lambda x, s=settings, t=targets: ops.cross_entropy(x, t(x), **s),
                lambda t, F, s=settings, of=targets: lambda x: F.cross_entropy(x, t.tensor(of(x)), **s),
                rows,
                (IGNORED, NO_PART, *([MEAN_OF_LOGITS] if smoothing else [])),
                close=True,
            )


def attentions() -> list[Row]:
    for place in ("q", "k", "v"):
        for causal in (False, True):

            def keys(x, causal=causal):
                return x[:, :, :2] if causal else x

            yield Row(
                "attention",
                f"{'causal, ' if causal else ''}edges in {place}",
                lambda q, k, v, c=causal, cut=keys: ops.attention(q, cut(k), cut(v), causal=c),
                lambda t, F, c=causal, cut=keys: (
                    lambda q, k, v: F.scaled_dot_product_attention(q, cut(k), cut(v), is_causal=c)
                ),
                heads(place),
                (NAN_QUERY, HUGE_QUERY, HIDDEN_VALUE),
                close=True,
            )


def dropped(x):
    minillm.manual_seed(3)
    return ops.dropout(x, 0.5)


def as_dropped(t, F):
    def theirs(x):
        return x * t.tensor(dropped(tensor(np.ones(x.shape))).data, dtype=x.dtype)

    return theirs


IDS, CHOICE = np.array([0, 2, 2, 5]), np.arange(31 * 31) % 3 == 0
COS, SIN = ops.rope_table(31, 2)


def turned(t, F):
    def theirs(x):
        c, s = (t.tensor(table[:, 0], dtype=x.dtype) for table in (COS, SIN))
        return t.stack([x[:, 0] * c - x[:, 1] * s, x[:, 0] * s + x[:, 1] * c], -1)

    return theirs


ROWS: list[Row] = [
    *same_name("neg", "exp", "log", "sqrt", "relu"),
    *same_name("tanh", "sigmoid", close=True),
    *same_name("add", "sub", "mul", "div", "pow", arguments=pairs),
    *powers(),
    Row("div", "x/2", lambda x: x / 2, lambda t, F: lambda x: x / 2),
    Row("div", "x/1e-30", lambda x: x / 1e-30, lambda t, F: lambda x: x / 1e-30),
    Row("div", "2/x", lambda x: 2 / x, lambda t, F: lambda x: 2 / x),
    Row("div", "0/x", lambda x: 0 / x, lambda t, F: lambda x: 0 / x, each, (RECIPROCAL,)),
    Row(
        "where",
        "",
        lambda x, y: ops.where(CHOICE, x, y),
        lambda t, F: lambda x, y: t.where(t.tensor(CHOICE), x, y),
        pairs,
    ),
    Row("clip", "", lambda x: ops.clip(x, -1, 2), lambda t, F: lambda x: t.clip(x, -1, 2)),
    Row("clip", "to infinity", lambda x: ops.clip(x, -INF, 2), lambda t, F: lambda x: t.clip(x, -INF, 2)),
    Row("sum", "", lambda x: ops.sum(x, -1), lambda t, F: lambda x: x.sum(-1), rows),
    Row("sum", "of all", ops.sum, lambda t, F: t.sum),
    Row("mean", "", lambda x: ops.mean(x, -1), lambda t, F: lambda x: x.mean(-1), rows),
    Row("amax", "", lambda x: ops.amax(x, -1), lambda t, F: lambda x: x.amax(-1), rows),
    Row("amax", "of all", ops.amax, lambda t, F: t.amax, lambda d: (np.array([1, INF, 3, INF], d),)),
    Row("reshape", "", lambda x: x.reshape(2, 2, -1), lambda t, F: lambda x: x.reshape(2, 2, -1), rows),
    Row("transpose", "", lambda x: x.transpose(0, 1), lambda t, F: lambda x: x.transpose(0, 1), rows),
    Row("getitem", "a slice", lambda x: x[1:], lambda t, F: lambda x: x[1:]),
    Row("getitem", "an index", lambda x: x[IDS], lambda t, F: lambda x: x[t.tensor(IDS)], rows),
    Row("index_select", "", lambda x: ops.index_select(x, 0, IDS), lambda t, F: lambda x: x[t.tensor(IDS)], rows),
    Row("concat", "", lambda x, y: ops.concat([x, y]), lambda t, F: lambda x, y: t.cat([x, y]), pairs),
    Row("stack", "", lambda x, y: ops.stack([x, y]), lambda t, F: lambda x, y: t.stack([x, y]), pairs),
    Row("split", "", lambda x: x.split(20)[1], lambda t, F: lambda x: x.split(20)[1]),
    Row("broadcast", "", lambda x: x.broadcast_to(3, 31), lambda t, F: lambda x: x.broadcast_to(3, 31)),
    Row("silu", "", ops.silu, lambda t, F: F.silu, each, (ACTIVATION,), close=True),
    Row("silu", "bias", ops.silu, lambda t, F: lambda x, b: F.silu(x + b), with_bias, (ACTIVATION,), close=True),
    Row("gelu", "", ops.gelu, lambda t, F: F.gelu, each, (ACTIVATION,), close=True),
    Row(
        "gelu",
        "bias",
        lambda x, b: ops.gelu(x, bias=b),
        lambda t, F: lambda x, b: F.gelu(x + b),
        with_bias,
        (ACTIVATION,),
        True,
    ),
    Row(
        "gelu",
        "tanh form",
        lambda x: ops.gelu(x, "tanh"),
        lambda t, F: lambda x: F.gelu(x, approximate="tanh"),
        each,
        (ACTIVATION,),
        close=True,
    ),
    Row(
        "gelu",
        "tanh form, bias",
        lambda x, b: ops.gelu(x, "tanh", b),
        lambda t, F: lambda x, b: F.gelu(x + b, approximate="tanh"),
        with_bias,
        (ACTIVATION,),
        close=True,
    ),
    Row("swiglu", "", ops.swiglu, lambda t, F: lambda gate, up: F.silu(gate) * up, pairs, (GATE,), close=True),
    Row("rope", "", lambda x: ops.rope(x, COS, SIN), turned, lambda d: (np.stack([edges(d), edges(d)[::-1]], -1),)),
    Row("linear", "", ops.linear, lambda t, F: F.linear, lambda d: (rows(d)[0][:62], rows(d)[0][1:4], np.ones(3, d))),
    Row(
        "matmul", "", ops.matmul, lambda t, F: t.matmul, lambda d: (rows(d)[0][:62], np.array([[1], [0], [-1], [2]], d))
    ),
    Row("embedding", "", lambda w: ops.embedding(IDS, w), lambda t, F: lambda w: F.embedding(t.tensor(IDS), w), rows),
    Row("softmax", "", ops.softmax, lambda t, F: lambda x: t.softmax(x, -1), rows, close=True),
    Row("log_softmax", "", ops.log_softmax, lambda t, F: lambda x: t.log_softmax(x, -1), rows, close=True),
    Row(
        "layernorm",
        "",
        ops.layer_norm,
        lambda t, F: lambda x, w, b: F.layer_norm(x, (4,), w, b),
        rows_and_parameters,
        (CONSTANT_ROW, OVERFLOW),
        close=True,
    ),
    Row(
        "add_layernorm",
        "",
        lambda x, w, b: ops.add_layer_norm(x, x * 0.5, w, b)[1],
        lambda t, F: lambda x, w, b: F.layer_norm(x * 1.5, (4,), w, b),
        rows_and_parameters,
        (CONSTANT_ROW, OVERFLOW),
        close=True,
    ),
    Row(
        "rmsnorm",
        "",
        lambda x, w, b: ops.rms_norm(x, w),
        lambda t, F: lambda x, w, b: F.rms_norm(x, (4,), w, 1e-6),
        rows_and_parameters,
        (RMS_OVERFLOW,),
        close=True,
    ),
    Row("dropout", "", dropped, as_dropped, lambda d: (np.repeat(edges(d), 4),)),
    *attentions(),
    *losses(),
]


def test_every_operation_has_a_row():
    missing = {op.name for op in ops.OPS} - {row.op for row in ROWS}
    assert not missing, f"add a row to ROWS in tests/ops/test_edges.py for each of: {', '.join(sorted(missing))}"


# ---- the comparison -------------------------------------------------------------------------------------------------

COTANGENTS = {
    "random": lambda rng, shape: rng.uniform(0.5, 2, shape) * rng.choice([-1, 1], shape),
    "zero": lambda rng, shape: np.zeros(shape),
}


def kernel_op(row: Row) -> bool:
    return next(op.cuda is not None for op in ops.OPS if op.name == row.op)


def ours_of(row: Row, mode: str, arrays: tuple, cotangent: Callable) -> tuple[dict[str, np.ndarray], np.ndarray]:
    with use_kernels(mode):
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
@pytest.mark.parametrize("mode", ["off", KERNELS])
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
        assert not places, f"{key} at {places}: {own[wrong][:5]}, PyTorch's is {right[wrong][:5]}"


# ---- the principal values, without PyTorch --------------------------------------------------------------------------

MAX = float(np.finfo(np.float32).max)
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
    "silu with a bias": (lambda x: ops.silu(x, tensor(np.ones(6, x.dtype))), FAR, *LIMITS),
    "gelu with a bias": (lambda x: ops.gelu(x, "none", tensor(np.ones(6, x.dtype))), FAR, *LIMITS),
    "gelu, tanh form, with a bias": (lambda x: ops.gelu(x, "tanh", tensor(np.ones(6, x.dtype))), FAR, *LIMITS),
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
}


@pytest.mark.parametrize("mode", ["off", KERNELS])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", PRINCIPAL)
def test_principal_values(name, dtype, mode):
    if mode == KERNELS and shutil.which("g++") is None:
        pytest.skip("no g++ to emulate kernels")
    function, x, values, gradients = PRINCIPAL[name]
    with np.errstate(over="ignore"):  # some numbers are infinite in float32
        x = tensor(np.array(x, dtype), requires_grad=True)
    with use_kernels(mode):
        y = function(x)
        y.backward(np.ones(y.shape, dtype))
    assert y.dtype == x.grad.dtype == dtype
    near = {"rtol": 1e-6, "atol": 1e-30 if dtype == np.float32 else 1e-300}
    np.testing.assert_allclose(np.ravel(y.data), values, **near)
    np.testing.assert_allclose(x.grad, gradients, **near)


@pytest.mark.parametrize("mode", ["off", KERNELS])
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
        with use_kernels(mode):
            loss = ops.cross_entropy(x, np.array([4, -100, 0]), reduction=reduction)
            loss.backward(np.asarray(u, np.float32))
        results.append((loss.data, x.grad))
    (loss, gradient), (same_loss, same_gradient) = results
    np.testing.assert_array_equal(loss, same_loss)
    np.testing.assert_array_equal(gradient, same_gradient)
    assert np.isfinite(gradient).all()
    assert not gradient[1].any()
    assert gradient[0].any()


@pytest.mark.parametrize("mode", ["off", KERNELS])
@pytest.mark.parametrize("shift", [0, 1e4, 1e10, 1e30])
def test_cross_entropy_of_large_logits(shift, mode):
    """m + log s has no digits left for s: the gradient of equal logits is 1/4 all the same."""
    if mode == KERNELS and shutil.which("g++") is None:
        pytest.skip("no g++ to emulate kernels")
    x = tensor(np.full((1, 4), shift, np.float32), requires_grad=True)
    with use_kernels(mode):
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
