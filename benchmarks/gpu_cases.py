"""The cases with which the GPU report checks each operation that has kernels: awkward sizes, and every setting.

`OPERATIONS` names each operation's cases; `small` leaves out those sizes that are there to fill a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

import minillm
from minillm import ops, random
from minillm.autograd import Tensor
from minillm.backend import Array
from minillm.device import like
from minillm.dtypes import as_dtype


class Case(NamedTuple):
    """An operation on tensors, and how to draw its arguments."""

    name: str
    fn: Callable
    draw: Callable[[np.random.Generator], list[Array]]
    leaves: int = 1  # the arguments, from the first, that are tensors and get a gradient
    unfused: Callable | None = None  # of arrays and dout: what a program that keeps bfloat16 between its steps computes


def normal(*shapes: tuple[int, ...]) -> Callable[[np.random.Generator], list[Array]]:
    """An array of standard normal numbers."""
    return lambda rng: [rng.standard_normal(shape) for shape in shapes]


def rows(small: bool, wide: bool = False) -> list[tuple[int, ...]]:
    """Shapes that are multiples of nothing; on a GPU also one that fills it, and rows as wide as a vocabulary."""
    shapes = [(1, 1), (17, 3), (5, 17), (3, 1023), (2, 3, 64), (150, 129)]
    return shapes if small else [*shapes, (2100, 768), *([(33, 50257)] if wide else [])]


def softmax_cases(small: bool, fn: Callable = ops.softmax) -> Iterator[Case]:
    for shape in rows(small, wide=True):
        yield Case(str(shape), fn, normal(shape))
    yield Case("large logits", fn, lambda rng: [1e3 + rng.standard_normal((5, 130))])


def log_softmax_cases(small: bool) -> Iterator[Case]:
    yield from list(softmax_cases(small, ops.log_softmax))[1:]  # of one class all is 0


def layernorm_cases(small: bool) -> Iterator[Case]:
    for shape in rows(small)[1:]:
        yield Case(str(shape), ops.layer_norm, normal(shape, shape[-1:], shape[-1:]), 3)
    yield Case("no bias", ops.layer_norm, normal((7, 33), (33,)), 2)


def rmsnorm_cases(small: bool) -> Iterator[Case]:
    for shape in rows(small):
        yield Case(str(shape), ops.rms_norm, normal(shape, shape[-1:]), 2)


def add_layernorm_cases(small: bool) -> Iterator[Case]:
    for shape in rows(small)[1:]:
        yield Case(str(shape), ops.add_layer_norm, normal(shape, shape, shape[-1:], shape[-1:]), 4)


def gelu_cases(small: bool) -> Iterator[Case]:
    for form in ("none", "tanh"):
        for shape in rows(small):
            yield Case(f"{form} {shape}", lambda x, form=form: ops.gelu(x, form), normal(shape))


def bias_gelu_cases(small: bool) -> Iterator[Case]:
    for form in ("none", "tanh"):
        for shape in rows(small):
            function = lambda x, bias, form=form: ops.bias_gelu(x, bias, form)  # noqa: E731
            yield Case(f"{form} {shape}", function, normal(shape, shape[-1:]), 2)


def silu_cases(small: bool) -> Iterator[Case]:
    for shape in rows(small):
        yield Case(str(shape), ops.silu, normal(shape))


def swiglu_cases(small: bool) -> Iterator[Case]:
    for shape in rows(small):
        yield Case(str(shape), ops.swiglu, normal(shape, shape), 2)


def rope_cases(small: bool) -> Iterator[Case]:
    for layout in ("half", "interleaved"):
        for shape in [(1, 2), (17, 6), (2, 3, 33, 64), *([] if small else [(4, 12, 1023, 128)])]:

            def draw(rng, shape=shape):
                return [rng.standard_normal(shape), *ops.rope_table(*shape[-2:])]

            yield Case(f"{layout} {shape}", lambda *a, layout=layout: ops.rope(*a, layout=layout), draw)


def dropout_cases(small: bool) -> Iterator[Case]:
    def drop(x: Tensor) -> Tensor:
        minillm.manual_seed(1)
        return ops.dropout(x, 0.3)

    for shape in rows(small):
        yield Case(str(shape), drop, normal(shape))


def linear_cases(small: bool) -> Iterator[Case]:
    for shape, outputs in [((1, 1), 1), ((17, 3), 5), ((2, 20, 40), 64), ((150, 129), 17)]:
        yield Case(f"{shape} to {outputs}", ops.linear, normal(shape, (outputs, shape[-1]), (outputs,)), 3)


def frozen_linear_cases(small: bool) -> Iterator[Case]:
    for shape, outputs in [((1, 1), 1), ((17, 3), 5), ((2, 20, 40), 64), ((150, 129), 17)]:
        rng = np.random.default_rng(outputs)
        weight, bias = rng.normal(size=(outputs, shape[-1])), rng.normal(size=outputs)

        def frozen(x: Any, weight: Any = weight, bias: Any = bias) -> Any:
            return ops.linear(x, *(Tensor(like(one.astype(x.dtype), x.data)) for one in (weight, bias)))

        yield Case(f"{shape} to {outputs}", frozen, normal(shape), 1)


def embedding_cases(small: bool) -> Iterator[Case]:
    for count, columns in [(1, 1), (33, 17), (101, 64), (40, 1023), *([] if small else [(16384, 768)])]:

        def draw(rng, count=count, columns=columns):
            common_and_rare = np.where(rng.random(count) < 0.5, 3, rng.integers(0, 17, count))
            return [rng.standard_normal((23, columns)), common_and_rare]

        yield Case(f"{count} ids, {columns} columns", lambda weight, ids: ops.embedding(ids, weight), draw)


def cross_entropy_cases(small: bool) -> Iterator[Case]:
    for shape in rows(small, wide=True)[1:]:  # of one class the gradient is 0, and its error nothing but NumPy's
        for smoothing, reduction in ((0.0, "mean"), (0.1, "none")):

            def draw(rng, shape=shape):
                targets = rng.integers(0, shape[-1], shape[:-1])
                targets.reshape(-1)[4::5] = -100
                return [3 * rng.standard_normal(shape), targets]

            def loss(logits, targets, smoothing=smoothing, reduction=reduction):
                return ops.cross_entropy(logits, targets, label_smoothing=smoothing, reduction=reduction)

            yield Case(f"{shape}, smoothing {smoothing}, {reduction}", loss, draw)


def attention_cases(small: bool) -> Iterator[Case]:
    # batch, query heads, key heads, queries, keys, head size, causal, and how many keys of each item are there
    sizes: list[tuple[Any, ...]] = [(1, 2, 1, 33, 33, d, True, None) for d in (32, 64, 96, 128, 5, 40, 80, 127)]
    sizes += [(2, 4, 2, 65, 70, 64, False, [70, 41]), (2, 8, 2, 1, 129, 64, True, None)]
    sizes += [(1, 1, 1, 130, 40, 32, True, None)]
    if not small:
        sizes += [(2, 4, 2, 300, 300, d, True, [300, 123]) for d in (32, 64, 96, 128)]
        sizes += [(1, 3, 3, 1023, 1023, 64, True, None), (1, 2, 2, 1024, 1024, 128, False, None)]
    for batch, heads, key_heads, queries, keys, d, causal, lengths in sizes:
        for p in (0.0, 0.1) if (queries, keys) == (33, 33) else (0.0,):
            shapes = (batch, heads, queries, d), (batch, key_heads, keys, d), (batch, key_heads, keys, d)
            fn = Attention(causal, p, None if lengths is None else np.array(lengths, np.int32))
            name = f"{heads} on {key_heads} heads, {queries} on {keys} tokens, D {d}, {fn}"
            yield Case(name, fn, normal(*shapes), 3, fn.unfused)


class Attention(NamedTuple):
    """Cases of attention with these settings, fused and unfused."""

    causal: bool
    p: float
    lengths: Array | None

    def __str__(self) -> str:
        return f"{'causal' if self.causal else 'full'}, dropout {self.p}, lengths {self.lengths}"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        minillm.manual_seed(1)
        return ops.attention(q, k, v, self.causal, lengths=self.lengths, dropout_p=self.p)

    def unfused(self, q: Array, k: Array, v: Array, dout: Array) -> list[Array]:
        """Attention without a fused kernel: in bfloat16, every array that such a program keeps is rounded."""

        def keep(x: Array) -> Array:
            return x.astype(as_dtype("bfloat16")).astype(np.float32)

        (batch, heads, queries, d), (key_heads, keys) = q.shape, k.shape[1:3]
        scale, largest_float = np.float32(d**-0.5), np.finfo(np.float32).max
        k_all, v_all = (np.repeat(x, heads // key_heads, axis=1) for x in (k, v))
        s = keep(q @ k_all.swapaxes(-1, -2) * scale)
        if self.causal:
            s[..., np.arange(keys) > np.arange(queries)[:, None] + keys - queries] = -np.inf
        if self.lengths is not None:
            s += np.where(np.arange(keys) < self.lengths[:, None], 0, -np.inf).astype(np.float32)[:, None, None]
        p = np.exp(s - np.maximum(s.max(axis=-1, keepdims=True), -largest_float))  # a query that sees nothing: all 0
        p = keep(p / np.maximum(p.sum(axis=-1, keepdims=True), 1 / largest_float))
        kept = self.kept((batch, heads, queries, keys))
        out = keep(keep(p * kept) @ v_all)
        dp = keep(dout @ v_all.swapaxes(-1, -2) * kept)
        ds = keep(p * (dp - (dout * out).sum(axis=-1, keepdims=True)))
        of_heads = ds.swapaxes(-1, -2) @ q * scale, keep(p * kept).swapaxes(-1, -2) @ dout
        dk, dv = (x.reshape(batch, key_heads, -1, keys, d).sum(axis=2) for x in of_heads)
        return [out, ds @ k_all * scale, dk, dv]

    def kept(self, shape: tuple[int, ...]) -> Array:
        """The dropout mask and its scale; each row begins a block of the random stream."""
        *rows, keys = shape
        columns = -(-keys // random.BLOCK) * random.BLOCK
        mask = random.keep_scale(1, 0, (int(np.prod(rows)), columns), self.p, np.dtype(np.float32))
        return mask[:, :keys].reshape(shape)


OPERATIONS: dict[str, Callable[[bool], Iterator[Case]]] = {
    "softmax": softmax_cases,
    "log_softmax": log_softmax_cases,
    "layernorm": layernorm_cases,
    "add_layernorm": add_layernorm_cases,
    "rmsnorm": rmsnorm_cases,
    "gelu": gelu_cases,
    "bias_gelu": bias_gelu_cases,
    "silu": silu_cases,
    "swiglu": swiglu_cases,
    "rope": rope_cases,
    "frozen_linear": frozen_linear_cases,
    "linear": linear_cases,
    "dropout": dropout_cases,
    "embedding": embedding_cases,
    "cross_entropy": cross_entropy_cases,
    "attention": attention_cases,
}
