"""Gradient-check rows of the operations that layers are made of, from softmax to cross-entropy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from minillm import ops, random
from minillm.autograd import Tensor
from minillm.backend import Array
from minillm.device import like
from minillm.study.cases.recipes import Case, Make, in_views, normal


def _softmax() -> Iterator[Case]:
    for op, fn in [("softmax", ops.softmax), ("log_softmax", ops.log_softmax)]:
        for axis in (None, 0, 1, -1, -2):
            yield Case(op, f"axis {axis}", lambda x, fn=fn, a=axis: fn(x, axis=a), normal((2, 3, 4)))
        yield Case(op, "dim", lambda x, fn=fn: fn(x, dim=0), normal((3, 2)))
        yield Case(op, "vector", fn, normal((5,)))
        yield Case(op, "one class", fn, normal((3, 1)))
        yield Case(op, "no rows", fn, normal((0, 3)))
        yield Case(op, "large logits", fn, lambda rng: (1e3 + rng.normal(size=(3, 4)),))
        yield from in_views(op, fn, normal((3, 4)))
        yield from in_views(op, lambda x, fn=fn: fn(x, axis=0), normal((3, 4)), "axis 0, ")


def _layer_norm() -> Iterator[Case]:
    def layer_norm(x, weight, bias, eps=1e-5):
        return ops.layer_norm(x, weight, bias, eps)

    yield Case("layernorm", "matrix", layer_norm, normal((3, 5), (5,), (5,)))
    yield Case("layernorm", "three axes", layer_norm, normal((2, 3, 4), (4,), (4,)))
    yield Case("layernorm", "vector", layer_norm, normal((4,), (4,), (4,)))
    yield Case("layernorm", "one row", layer_norm, normal((1, 4), (4,), (4,)))
    yield Case(
        "layernorm",
        "two channels",
        lambda x, weight, bias: layer_norm(x, weight, bias, 0.1),
        normal((3, 2), (2,), (2,)),
    )
    yield Case(
        "layernorm", "one channel", lambda x, weight, bias: layer_norm(x, weight, bias, 0.1), normal((3, 1), (1,), (1,))
    )
    yield Case("layernorm", "no rows", layer_norm, normal((0, 4), (4,), (4,)))
    yield Case("layernorm", "no bias", lambda x, weight: ops.layer_norm(x, weight), normal((3, 4), (4,)))
    yield Case("layernorm", "no weight", lambda x: ops.layer_norm(x), normal((3, 4)))
    yield Case("layernorm", "bias alone", lambda x, bias: ops.layer_norm(x, None, bias), normal((3, 4), (4,)))
    yield Case(
        "layernorm", "large eps", lambda x, weight, bias: layer_norm(x, weight, bias, 2.0), normal((3, 4), (4,), (4,))
    )
    yield Case(
        "layernorm",
        "constant rows",
        lambda x, weight, bias: ops.layer_norm(x, weight, bias, eps=0.5),
        lambda rng: (np.full((2, 4), 3.0), *normal((4,), (4,))(rng)),
    )
    yield from in_views("layernorm", layer_norm, normal((3, 4), (4,), (4,)))


def _residual_and_norm() -> Iterator[Case]:
    def add_layer_norm(x, residual, weight, bias, eps=1e-5):
        return ops.add_layer_norm(x, residual, weight, bias, eps)

    def add_row(name: str, shape: tuple[int, ...], fn: Callable = add_layer_norm) -> Case:
        return Case("add_layernorm", name, fn, normal(shape, shape, shape[-1:], shape[-1:]))

    yield add_row("matrix", (3, 5))
    yield add_row("three axes", (2, 3, 4))
    yield add_row("vector", (4,))
    yield add_row("one row", (1, 4))
    yield add_row("no rows", (0, 4))
    yield add_row("large eps", (3, 4), lambda x, residual, weight, bias: add_layer_norm(x, residual, weight, bias, 2.0))
    yield add_row("the sum alone is used", (3, 4), lambda *inputs: add_layer_norm(*inputs)[0])
    yield add_row("the norm alone is used", (3, 4), lambda *inputs: add_layer_norm(*inputs)[1])
    yield Case(
        "add_layernorm",
        "no bias",
        lambda x, residual, w: ops.add_layer_norm(x, residual, w),
        normal((3, 4), (3, 4), (4,)),
    )
    yield Case(
        "add_layernorm", "one tensor twice", lambda x, w, b: add_layer_norm(x, x, w, b), normal((3, 4), (4,), (4,))
    )
    yield from in_views("add_layernorm", add_layer_norm, normal((3, 4), (3, 4), (4,), (4,)))


def _rms_norm() -> Iterator[Case]:
    def rms_norm(x, weight, eps=1e-6):
        return ops.rms_norm(x, weight, eps)

    yield Case("rmsnorm", "matrix", rms_norm, normal((3, 5), (5,)))
    yield Case("rmsnorm", "three axes", rms_norm, normal((2, 3, 4), (4,)))
    yield Case("rmsnorm", "vector", rms_norm, normal((4,), (4,)))
    yield Case("rmsnorm", "one channel", lambda x, weight: rms_norm(x, weight, 0.5), normal((3, 1), (1,)))
    yield Case("rmsnorm", "no rows", rms_norm, normal((0, 4), (4,)))
    yield Case("rmsnorm", "no weight", lambda x: ops.rms_norm(x), normal((3, 4)))
    yield Case("rmsnorm", "large eps", lambda x, weight: rms_norm(x, weight, 2.0), normal((3, 4), (4,)))
    yield Case("rmsnorm", "zeros", lambda x, weight: rms_norm(x * 0, weight, 0.5), normal((3, 4), (4,)))
    yield from in_views("rmsnorm", rms_norm, normal((3, 4), (4,)))


def _linear_and_embedding() -> Iterator[Case]:
    def linear(x, weight, bias):
        return ops.linear(x, weight, bias)

    yield Case("linear", "matrix", linear, normal((3, 4), (2, 4), (2,)))
    yield Case("linear", "three axes", linear, normal((2, 3, 4), (5, 4), (5,)))
    yield Case("linear", "vector", linear, normal((4,), (3, 4), (3,)))
    yield Case("linear", "size 1", linear, normal((1, 1), (1, 1), (1,)))
    yield Case("linear", "no rows", linear, normal((0, 4), (3, 4), (3,)))
    yield Case("linear", "no inputs", linear, normal((2, 0), (3, 0), (3,)))
    yield Case("linear", "no bias", lambda x, weight: ops.linear(x, weight), normal((3, 4), (2, 4)))
    yield Case("linear", "input is the weight", lambda w: ops.linear(w, w), normal((3, 3)))
    yield Case("linear", "tied twice", lambda x, w: ops.linear(ops.linear(x, w), w), normal((2, 3), (3, 3)))
    yield from in_views("linear", linear, normal((3, 4), (2, 4), (2,)))

    def frozen_linear(x, outputs=3, bias=True):
        rng = np.random.default_rng(4)
        weight, b = (rng.normal(size=shape).astype(x.dtype) for shape in ((outputs, x.shape[-1]), outputs))
        return ops.linear(x, Tensor(like(weight, x.data)), Tensor(like(b, x.data)) if bias else None)

    yield Case("frozen_linear", "matrix", frozen_linear, normal((4, 5)))
    yield Case("frozen_linear", "three axes", frozen_linear, normal((2, 3, 4)))
    yield Case("frozen_linear", "vector", frozen_linear, normal((4,)))
    yield Case("frozen_linear", "no rows", frozen_linear, normal((0, 4)))
    yield Case("frozen_linear", "no inputs", frozen_linear, normal((2, 0)))
    yield Case("frozen_linear", "no bias", lambda x: frozen_linear(x, bias=False), normal((3, 4)))
    yield Case("frozen_linear", "twice", lambda x: frozen_linear(frozen_linear(x), 2), normal((3, 4)))
    yield from in_views("frozen_linear", frozen_linear, normal((3, 4)))

    def embedding(ids, weight):
        return ops.embedding(ids, weight)

    def table(ids: list, rows: int, channels: int) -> Make:
        return lambda rng: (np.array(ids, int), rng.normal(size=(rows, channels)))

    yield Case("embedding", "repeats, unused rows", embedding, table([4, 0, 4, 2, 4], 6, 3))
    yield Case("embedding", "matrix of ids", embedding, table([[1, 0, 1], [2, 2, 2]], 3, 2))
    yield Case("embedding", "one id", embedding, table(1, 3, 2))  # type: ignore[arg-type]
    yield Case("embedding", "no ids", embedding, table([], 3, 2))
    yield Case("embedding", "long rows", embedding, table([1, 0, 1, 1], 3, 512))
    yield Case("embedding", "no channels", embedding, table([1, 0], 3, 0))
    yield Case("embedding", "empty table", embedding, table([], 0, 3))
    yield Case(
        "embedding",
        "tied to the output",
        lambda ids, weight: ops.linear(ops.embedding(ids, weight), weight),
        table([1, 0, 1], 3, 4),
    )
    yield from in_views("embedding", embedding, table([[1, 0, 1], [2, 2, 2]], 3, 4))


def _low_rank() -> Iterator[Case]:
    def add_low_rank(y, x, a, b, scale=0.7, start=0):
        return ops.add_low_rank(y, x, a, b, scale, start)

    def taken(y, x, a, b):
        return ops.add_low_rank(ops.add_low_rank(y * 2, x, a, b, overwrite=True), x, a, b, -1.5, 1, overwrite=True)

    shapes = normal((3, 5), (3, 4), (2, 4), (5, 2))
    some_channels = normal((2, 3, 5), (2, 3, 4), (1, 4), (2, 1))
    yield Case("add_low_rank", "matrix", add_low_rank, shapes)
    yield Case("add_low_rank", "last channels", lambda y, x, a, b: add_low_rank(y, x, a, b, start=3), some_channels)
    yield Case(
        "add_low_rank", "channels in the middle", lambda y, x, a, b: add_low_rank(y, x, a, b, 2.0, 1), some_channels
    )
    yield Case("add_low_rank", "vector", add_low_rank, normal((3,), (4,), (2, 4), (3, 2)))
    yield Case("add_low_rank", "size 1", add_low_rank, normal((1, 1), (1, 1), (1, 1), (1, 1)))
    yield Case("add_low_rank", "no rows", add_low_rank, normal((0, 3), (0, 4), (2, 4), (3, 2)))
    yield Case("add_low_rank", "rank above the sizes", add_low_rank, normal((3, 2), (3, 2), (5, 2), (2, 5)))
    yield Case("add_low_rank", "y is x", lambda x, a, b: add_low_rank(x, x, a, b), normal((3, 4), (2, 4), (4, 2)))
    yield Case("add_low_rank", "twice, in the memory of y", taken, normal((3, 5), (3, 4), (2, 4), (4, 2)))
    yield from in_views("add_low_rank", add_low_rank, shapes)


def _dropout_and_rope() -> Iterator[Case]:
    def dropout(x, p=0.4):
        random.manual_seed(1)
        return ops.dropout(x, p)

    yield Case("dropout", "matrix", dropout, normal((4, 5)))
    yield Case("dropout", "rarely", lambda x: dropout(x, 0.01), normal((30,)))
    yield Case("dropout", "twice, two masks", lambda x: ops.dropout(dropout(x), 0.3), normal((4, 5)))
    yield Case("dropout", "no axes", dropout, normal(()))
    yield Case("dropout", "empty", dropout, normal((0, 2)))
    yield from in_views("dropout", dropout, normal((4, 5)))

    def rope(x, layout="half", start=0):
        return ops.rope(x, *ops.rope_table(x.shape[-2], x.shape[-1], base=100.0, start=start), layout=layout)

    for layout in ("half", "interleaved"):
        yield Case("rope", f"{layout}, heads", lambda x, layout=layout: rope(x, layout), normal((2, 2, 3, 4)))
        yield Case("rope", f"{layout}, matrix", lambda x, layout=layout: rope(x, layout, 5), normal((3, 6)))
        yield Case("rope", f"{layout}, one position", lambda x, layout=layout: rope(x, layout, 2), normal((1, 2)))
        yield Case("rope", f"{layout}, no positions", lambda x, layout=layout: rope(x, layout), normal((2, 0, 4)))
        yield from in_views("rope", lambda x, layout=layout: rope(x, layout, 1), normal((3, 4)), f"{layout}, ")


def qkv(b=2, h=2, tq=3, d=2, groups=None, tk=None) -> Make:
    """Queries, keys and values of attention; `groups` heads of keys, `tk` keys."""
    keys = (b, groups or h, tq if tk is None else tk, d)
    return normal((b, h, tq, d), keys, keys)


def _some_visible() -> Array:
    """A mask (2, 2, 3, 4) in which some queries see nothing."""
    some = np.random.default_rng(1).random((2, 2, 3, 4)) < 0.6
    some[0, 1, 2] = False
    some[1, 0] = False
    return some


def _attention() -> Iterator[Case]:
    def row(name: str, make: Make, **settings) -> Case:
        return Case("attention", name, lambda q, k, v: ops.attention(q, k, v, **settings), make)

    hidden = np.array([[True, True, True, False], [True, False, False, True]])[:, None, None]  # a padding mask
    some = _some_visible()
    bias = np.random.default_rng(2).normal(size=(2, 1, 3, 4))
    bias_hiding = np.where(some, bias, -np.inf)

    yield row("plain", qkv())
    yield row("causal", qkv(tq=4), causal=True)
    yield row("scale", qkv(), scale=0.3)
    yield row("one of everything", qkv(1, 1, 1, 1))
    yield row("fewer queries than keys", qkv(tk=5))
    yield row("fewer queries than keys, causal", qkv(tk=5), causal=True)
    yield row("more queries than keys", qkv(tq=5, tk=2))
    yield row("more queries than keys, causal", qkv(tq=5, tk=2), causal=True)
    yield row("one query, causal", qkv(tq=1, tk=4), causal=True)
    yield row("padding mask", qkv(tk=4), mask=hidden)
    yield row("padding mask, causal", qkv(tk=4), mask=hidden, causal=True)
    yield row("arbitrary mask, rows that see nothing", qkv(tk=4), mask=some)
    yield row("mask without heads", qkv(tk=4), mask=some[0, 0])
    yield row("lengths", qkv(tk=4), lengths=[4, 2])
    yield row("lengths, causal", qkv(3, tk=4), lengths=[3, 1, 0], causal=True)
    yield row("lengths, mask, 4 heads on 2", qkv(2, 4, 3, 2, 2, 4), lengths=[2, 4], mask=hidden, causal=True)
    yield row("lengths, two blocks of queries", qkv(2, 1, 66, 1), lengths=[65, 3], causal=True)
    yield row("starts", qkv(tk=4), starts=[[0, 1, 4], [2, 0, 0]])
    starts = [[0, 0, 0, 3, 3], [0, 1, 1, 1, 4]]
    yield row("starts, causal, 4 heads on 2", qkv(2, 4, 5, 2, 2), starts=starts, causal=True)
    texts = np.repeat([[0, 30, 70], [0, 66, 66]], [30, 40, 65], axis=1)  # three blocks of queries
    yield row("starts, causal, more queries", qkv(2, 1, 135, 1), starts=texts, causal=True)
    yield row("starts, mask, lengths", qkv(tk=4), starts=[[0, 1, 3], [2, 0, 0]], mask=some, lengths=[4, 2])
    yield row("all hidden", qkv(tk=4), mask=np.zeros((1, 1, 1, 1), bool))
    yield row("additive mask", qkv(tk=4), mask=bias)
    yield row("additive mask, causal", qkv(tk=4), mask=bias, causal=True)
    yield row("additive mask of -inf", qkv(tk=4), mask=bias_hiding)
    for groups in (1, 2, 4):
        yield row(f"4 heads on {groups}", qkv(1, 4, 3, 2, groups))
        yield row(f"4 heads on {groups}, causal, mask", qkv(2, 4, 3, 2, groups, 4), causal=True, mask=hidden)
    mask_by_head = np.random.default_rng(3).random((1, 4, 3, 3)) < 0.7
    yield row("4 heads on 2, a mask for each", qkv(1, 4, 3, 2, 2), mask=mask_by_head)
    yield row("two blocks of queries", qkv(1, 1, 66, 1, tk=3))
    yield row("two blocks of queries, causal", qkv(1, 1, 66, 1), causal=True)
    yield row("two blocks, causal, more keys", qkv(1, 2, 65, 1, 1, 68), causal=True)
    yield row("two blocks, causal, fewer keys", qkv(1, 2, 66, 1, 1, 2), causal=True)
    yield row("no queries", qkv(tq=0, tk=3))
    yield row("no keys", qkv(tk=0))
    yield row("empty batch", qkv(b=0))
    yield row("another value size", normal((2, 4, 3, 2), (2, 2, 5, 2), (2, 2, 5, 3)), causal=True)
    yield row("one item for all", normal((2, 2, 3, 2), (1, 2, 4, 2), (2, 2, 4, 2)), mask=hidden)
    yield row("one item of queries", normal((1, 4, 3, 2), (2, 2, 4, 2), (1, 2, 4, 2)), lengths=[4, 1])
    yield row("three axes", normal((2, 3, 2), (2, 4, 2), (2, 4, 1)), mask=some[:, 0])
    yield row("two axes", normal((3, 2), (4, 2), (4, 2)), causal=True)
    yield Case("attention", "one tensor for all", lambda x: ops.attention(x, x, x, causal=True), normal((1, 2, 3, 2)))


def _attention_dropout_and_views() -> Iterator[Case]:
    def dropped(name: str, make: Make, **settings) -> Case:
        def fn(q, k, v):
            random.manual_seed(3)
            return ops.attention(q, k, v, dropout_p=0.4, **settings)

        return Case("attention", name, fn, make)

    yield dropped("dropout", qkv(tk=5))
    yield dropped("dropout, causal, grouped", qkv(2, 4, 5, 2, 2), causal=True)
    yield dropped("dropout, mask", qkv(tk=4), mask=_some_visible())
    yield dropped("dropout, lengths", qkv(tk=9), lengths=[9, 2])
    yield dropped("dropout, starts", qkv(2, 4, 5, 2, 2), starts=[[0, 0, 0, 3, 3], [0, 1, 1, 1, 4]], causal=True)
    yield dropped("dropout, two blocks", qkv(1, 1, 66, 1), causal=True)
    yield from in_views("attention", lambda q, k, v: ops.attention(q, k, v), qkv(2, 4, 3, 2, 2))

    def swapped(q, k, v):
        return ops.attention(*[x.transpose(1, 2) for x in (q, k, v)]).transpose(1, 2)

    yield Case("attention", "(B, T, H, D) in memory", swapped, normal((2, 3, 4, 2), (2, 3, 2, 2), (2, 3, 2, 2)))


def _cross_entropy() -> Iterator[Case]:
    def targets(*shape: int, classes: int = 5, ignored: int = 0) -> Make:
        def make(rng: np.random.Generator) -> tuple[Array, ...]:
            ids = rng.integers(0, classes, shape)
            ids.reshape(-1)[:ignored] = -100
            return rng.normal(size=(*shape, classes)), ids

        return make

    def loss(reduction: str, smoothing: float = 0.0) -> Callable:
        return lambda logits, ids: ops.cross_entropy(logits, ids, reduction=reduction, label_smoothing=smoothing)

    for reduction in ("mean", "sum", "none"):
        for name, make in {
            "": targets(4),
            ", three axes": targets(2, 3),
            ", some ignored": targets(2, 3, ignored=2),
            ", all ignored": targets(3, ignored=3),
            ", no rows": targets(0),
            ", one class": targets(3, classes=1),
            ", no axes": targets(),
        }.items():
            yield Case("cross_entropy", reduction + name, loss(reduction), make)
            yield Case("cross_entropy", f"{reduction}, smoothed{name}", loss(reduction, 0.2), make)
    yield Case("cross_entropy", "all smoothed", loss("mean", 1.0), targets(4))
    yield Case("cross_entropy", "other ignore_index", lambda x, t: ops.cross_entropy(x, t, ignore_index=2), targets(8))
    factors = np.array([0.5, 2.0, 0.0, 1.5, 1.0])
    for reduction in ("mean", "sum", "none"):
        for smoothing in (0.0, 0.2):

            def weighted(x, t, reduction=reduction, smoothing=smoothing):
                return ops.cross_entropy(x, t, weight=factors, reduction=reduction, label_smoothing=smoothing)

            name = f"class weights, {reduction}" + ", smoothed" * bool(smoothing)
            yield Case("cross_entropy", name, weighted, targets(2, 4, ignored=2))

    def second_axis(*shape: int) -> Make:
        return lambda rng: (rng.normal(size=(shape[0], 5, *shape[1:])), rng.integers(0, 5, shape))

    yield Case("cross_entropy", "classes on axis 1", lambda x, t: ops.cross_entropy(x, t), second_axis(2, 3))
    yield Case("cross_entropy", "classes on axis 1 of 4", lambda x, t: ops.cross_entropy(x, t), second_axis(2, 3, 2))
    square = second_axis(2, 5)
    yield Case("cross_entropy", "dim 1", lambda x, t: ops.cross_entropy(x, t, dim=1), square)
    yield Case("cross_entropy", "dim -1", lambda x, t: ops.cross_entropy(x, t, dim=-1), square)
    yield from in_views("cross_entropy", lambda x, t: ops.cross_entropy(x, t), targets(2, 3))


CASES: tuple[Case, ...] = (
    *_softmax(),
    *_layer_norm(),
    *_residual_and_norm(),
    *_rms_norm(),
    *_linear_and_embedding(),
    *_low_rank(),
    *_dropout_and_rope(),
    *_attention(),
    *_attention_dropout_and_views(),
    *_cross_entropy(),
)
