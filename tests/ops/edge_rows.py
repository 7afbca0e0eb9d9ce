"""The table of test_edges.py: what each operation is given, PyTorch's way to call it, and where and why they differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import minillm
from minillm import ops, tensor

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
    mode: str = ""  # the one engine that differs, such as the kernels; empty for all
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
MEAN_OF_LOGITS = tuple(
    Differs("the mean of the logits overflows in PyTorch, and not here", any_of_row(huge), mode, "y")
    for mode in ("plain", KERNELS)
)
EXPM1 = Differs("PyTorch adds 1 to the value, which has lost e^x where that is small", lambda x: x < -5, only="d")
QUOTIENT = Differs(
    "x % y is exact, and PyTorch's is NaN where x / y overflows",
    lambda x, *y: np.isfinite(x) & np.isinf(x / y[0] if y else -3 / x),
    only="y",
)
QUOTIENT_OF_ALL = Differs("PyTorch divides the product by the factor, infinity by infinity", infinite, only="d")
PRODUCTS = Differs(
    "PyTorch divides by the factor, and what overflows or underflows on the way is lost",
    any_of_row(lambda x: ~np.isfinite(x) | (np.abs(x) > 1e9) | ((np.abs(x) < 1e-9) & (x != 0))),
    only="d",
)
LARGEST = Differs(
    "the sum, or a distance from the mean, overflows float64: infinity here, and NaN in PyTorch",
    any_of_row(lambda x: np.abs(x) >= np.finfo(x.dtype).max),
)
POWER_OVERFLOWS = Differs(
    "the gradient is made of x / norm; PyTorch's of their powers, infinity by infinity or times 0",
    any_of_row(lambda x: huge(x) | ((np.abs(x) < 1e-25) & (x != 0))),
    only="d",
)
NAN_QUERY = Differs(
    "NaN shows; PyTorch gives 0, as to a query that may see nothing", lambda q, k, v: ~np.isfinite(q).all((1, 2, 3))
)
HUGE_QUERY = Differs("scores beyond 2.3e38 overflow in the kernel", lambda q, k, v: huge(q).any((1, 2, 3)), KERNELS)
HIDDEN_VALUE = Differs(
    "the kernel never reads what no query of a block sees; PyTorch multiplies it with 0",
    lambda q, k, v: (~np.isfinite(v) | huge(v) | ~np.isfinite(k) | huge(k)).any((1, 2, 3)),
    KERNELS,
)
HUGE_VALUE = Differs(
    "dP overflows, and with it delta, the sum of P dP; PyTorch's delta is dY . Y",
    lambda q, k, v: huge(v).any((1, 2, 3)),
    "plain",
    "d",
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
                (IGNORED, NO_PART, *(MEAN_OF_LOGITS if smoothing else ())),
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
                (NAN_QUERY, HUGE_QUERY, HIDDEN_VALUE, HUGE_VALUE),
                close=True,
            )


def dropped(x):
    minillm.manual_seed(3)
    return ops.dropout(x, 0.5)


def as_dropped(t, F):
    def theirs(x):
        return x * t.tensor(dropped(tensor(np.ones(x.shape))).data, dtype=x.dtype)

    return theirs


def minus_3_modulo(t, F):
    return lambda x: t.remainder(t.full_like(x, -3), x)  # of a number PyTorch has no gradient


def spreads() -> list[Row]:
    return [
        Row(
            name,
            f"correction {c}",
            lambda x, n=name, c=c: getattr(ops, n)(x, -1, correction=c),
            lambda t, F, n=name, c=c: lambda x: getattr(x, n)(-1, correction=c),
            rows,
            (CONSTANT_ROW, LARGEST),
            close=True,
        )
        for name in ("var", "std")
        for c in (0, 1, 3)
    ]


def norms() -> list[Row]:
    return [
        Row(
            "norm",
            f"p={p}",
            lambda x, p=p: ops.norm(x, p, -1),
            lambda t, F, p=p: lambda x: x.norm(p, -1),
            rows,
            (POWER_OVERFLOWS,) if p in (3, -1) else (),
        )
        for p in (2, 1, 0, 3, 1.5, 0.5, -1, INF, -INF)
    ]


def by_letters(equation: str) -> Callable:
    return lambda x, y: ops.einsum(equation, x, y)


def letters(equation: str) -> Callable:
    return lambda t, F: lambda x, y: t.einsum(equation, x, y)


def written(name: str) -> tuple[Callable, Callable]:
    """scatter and scatter_add, ours and PyTorch's."""

    def ours(x, source):
        return getattr(ops, name)(x, 1, PLACES[:, :2], source)

    return ours, lambda t, F: lambda x, source: getattr(x, name)(1, t.tensor(PLACES[:, :2]), source)


def rows_by_rows(dtype):
    (x,) = rows(dtype)
    return x[:62], x[1:4]


def low_rank(dtype):
    (x,) = rows(dtype)
    a, b = np.array([[1, 0.5, -1, 2], [0.25, -2, 1, 1]], dtype), np.array([[1, -1], [0.5, 2], [-0.25, 1]], dtype)
    return np.ones((62, 3), dtype), x[:62], a, b


FROZEN = np.array([[1, 0.5, -1, 2], [0.25, -2, 1, 1], [2, 1, 1, 0.5]]), np.array([0.5, -1, 2])


def rows_and_source(dtype):
    (x,) = rows(dtype)
    return x, x[::-1, :2].copy()


IDS, CHOICE = np.array([0, 2, 2, 5]), np.arange(31 * 31) % 3 == 0
COS, SIN = ops.rope_table(31, 2)
PLACES = np.stack([np.arange(31 * 33) % 4, (np.arange(31 * 33) + 1) % 4, np.full(31 * 33, 3)], 1)  # of a row of four


def gelu_of_sum(**form):
    return lambda t, F: lambda x, b: F.gelu(x + b, **form)


def chosen(t, F):
    return lambda x, y: t.where(t.tensor(CHOICE), x, y)


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
    Row("where", "", lambda x, y: ops.where(CHOICE, x, y), chosen, pairs),
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
    Row("gelu", "", ops.gelu, lambda t, F: F.gelu, each, (ACTIVATION,), close=True),
    Row("bias_gelu", "", ops.bias_gelu, gelu_of_sum(), with_bias, (ACTIVATION,), True),
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
        "bias_gelu",
        "tanh form",
        lambda x, b: ops.bias_gelu(x, b, "tanh"),
        gelu_of_sum(approximate="tanh"),
        with_bias,
        (ACTIVATION,),
        True,
    ),
    Row("swiglu", "", ops.swiglu, lambda t, F: lambda gate, up: F.silu(gate) * up, pairs, (GATE,), close=True),
    Row("rope", "", lambda x: ops.rope(x, COS, SIN), turned, lambda d: (np.stack([edges(d), edges(d)[::-1]], -1),)),
    Row("linear", "", ops.linear, lambda t, F: F.linear, lambda d: (rows(d)[0][:62], rows(d)[0][1:4], np.ones(3, d))),
    Row(
        "frozen_linear",
        "",
        lambda x: ops.linear(x, *[one.astype(x.dtype) for one in FROZEN]),
        lambda t, F: lambda x: F.linear(x, *[t.tensor(one, dtype=x.dtype) for one in FROZEN]),
        lambda d: (rows(d)[0][:62],),
    ),
    Row("add_low_rank", "", ops.add_low_rank, lambda t, F: lambda y, x, a, b: y + x @ a.T @ b.T, low_rank),
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
    *same_name("abs", "sign", "floor", "ceil", "round", "trunc", "log2", "log10", "log1p", "clone"),
    Row("expm1", "", ops.expm1, lambda t, F: t.expm1, each, (EXPM1,)),
    *same_name("sin", "cos", "erf", close=True),
    *same_name("maximum", "minimum", arguments=pairs),
    Row("remainder", "", ops.remainder, lambda t, F: t.remainder, pairs, (QUOTIENT,)),
    Row("remainder", "x % 2", lambda x: x % 2, lambda t, F: lambda x: x % 2),
    Row("remainder", "-3 % x", lambda x: -3 % x, minus_3_modulo, each, (QUOTIENT,)),
    Row("softplus", "", ops.softplus, lambda t, F: F.softplus, close=True),
    Row("softplus", "beta 2", lambda x: ops.softplus(x, 2, 5), lambda t, F: lambda x: F.softplus(x, 2, 5), close=True),
    Row("amin", "", lambda x: ops.amin(x, -1), lambda t, F: lambda x: x.amin(-1), rows),
    Row("amin", "of all", ops.amin, lambda t, F: t.amin, lambda d: (np.array([1, -INF, 3, -INF], d),)),
    Row("prod", "", lambda x: ops.prod(x, -1), lambda t, F: lambda x: x.prod(-1), rows),
    Row(
        "prod", "of all", ops.prod, lambda t, F: t.prod, lambda d: (np.array([0.5, INF, 3, -2], d),), (QUOTIENT_OF_ALL,)
    ),
    Row("cumsum", "", lambda x: ops.cumsum(x, -1), lambda t, F: lambda x: x.cumsum(-1), rows),
    Row("cumprod", "", lambda x: ops.cumprod(x, -1), lambda t, F: lambda x: x.cumprod(-1), rows, (PRODUCTS,), True),
    *spreads(),
    *norms(),
    Row("logsumexp", "", lambda x: ops.logsumexp(x, -1), lambda t, F: lambda x: x.logsumexp(-1), rows),
    Row("logsumexp", "of all", ops.logsumexp, lambda t, F: lambda x: x.logsumexp((0, 1)), lambda d: (rows(d)[0][:7],)),
    Row("einsum", "a product", by_letters("i,i->i"), letters("i,i->i"), pairs),
    Row("einsum", "rows by rows", by_letters("ij,kj->ik"), letters("ij,kj->ik"), rows_by_rows),
    Row("gather", "", lambda x: ops.gather(x, 1, PLACES), lambda t, F: lambda x: x.gather(1, t.tensor(PLACES)), rows),
    Row("scatter", "", *written("scatter"), rows_and_source),
    Row("scatter_add", "", *written("scatter_add"), rows_and_source),
    Row("roll", "", lambda x: x.roll(3, 0), lambda t, F: lambda x: x.roll(3, 0), rows),
    Row("pad", "", lambda x: ops.pad(x, (2, -1)), lambda t, F: lambda x: F.pad(x, (2, -1)), rows),
    Row("pad", "with NaN", lambda x: ops.pad(x, (1, 2), value=NAN), lambda t, F: lambda x: F.pad(x, (1, 2), value=NAN)),
    Row("tril", "", lambda x: x.tril(-1), lambda t, F: lambda x: x.tril(-1), rows),
    Row("triu", "", lambda x: x.triu(1), lambda t, F: lambda x: x.triu(1), rows),
    *attentions(),
    *losses(),
]
