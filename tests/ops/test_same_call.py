"""The same call on minillm and on PyTorch: values, gradients, dtypes and shapes, in several layouts of memory.

Every row is one function of a library `m` and its arrays, and runs as it stands with `m` either of the two. What
differs on purpose is in no row: it is in the tests of the file it concerns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import minillm
from minillm.autograd import Tensor
from minillm.study.cases.recipes import VIEWS

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.oracle

inf, nan = float("inf"), float("nan")
EDGES = np.array([0.0, -0.0, 1e-30, -1e-30, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 1e30, -1e30, inf, -inf, nan])


class Torch:
    """PyTorch with its functional part, and arrays of indices as its tensors."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name) if hasattr(torch, name) else getattr(torch.nn.functional, name)

    def ids(self, *values: Any) -> Any:
        return torch.tensor(*values)


class Ours:
    def __getattr__(self, name: str) -> Any:
        return getattr(minillm, name)

    def ids(self, *values: Any) -> Any:
        return minillm.tensor(*values)


def row(name: str, fn: Any, *inputs: Any) -> Any:
    return pytest.param(fn, inputs, id=name)


def methods(names: str, *inputs: Any) -> list:
    return [row(f"{name} {inputs}", lambda m, x, name=name: getattr(x, name)(), *inputs) for name in names.split()]


IDS = [[1, 0, 1], [2, 2, 0]]
TABLE = [
    # shapes
    row("view", lambda m, x: x.clone().view(2, -1), (3, 4)),
    row("view, a tuple", lambda m, x: x.contiguous().view((4, 3)), (3, 4)),
    row("view_as", lambda m, x, y: x.contiguous().view_as(y), (3, 4), (2, 6)),
    row("reshape_as", lambda m, x, y: x.reshape_as(y), (3, 4), (2, 6)),
    row("reshape", lambda m, x: m.reshape(x, (2, -1)), (3, 4)),
    row("flatten", lambda m, x: x.flatten(), (2, 3, 4)),
    row("flatten from 1", lambda m, x: x.flatten(1), (2, 3, 4)),
    row("flatten to -2", lambda m, x: m.flatten(x, 0, -2), (2, 3, 4)),
    row("flatten, end_dim", lambda m, x: m.flatten(x, start_dim=-2, end_dim=-1), (2, 3, 4)),
    row("flatten a number", lambda m, x: x.flatten(), ()),
    row("flatten nothing", lambda m, x: x.flatten(), (0, 3)),
    row("ravel", lambda m, x: x.ravel(), (2, 3)),
    row("unflatten", lambda m, x: x.unflatten(-1, (2, -1)), (2, 6)),
    row("squeeze", lambda m, x: x.squeeze(), (1, 3, 1)),
    row("squeeze 0", lambda m, x: x.squeeze(0), (1, 3, 1)),
    row("squeeze of another size", lambda m, x: x.squeeze(1), (1, 3, 1)),
    row("squeeze two", lambda m, x: x.squeeze((0, -1)), (1, 3, 1)),
    row("squeeze a number", lambda m, x: x.squeeze(0), ()),
    row("unsqueeze", lambda m, x: x.unsqueeze(0), (2, 3)),
    row("unsqueeze last", lambda m, x: m.unsqueeze(x, dim=-1), (2, 3)),
    row("unsqueeze a number", lambda m, x: x.unsqueeze(-1), ()),
    row("transpose", lambda m, x: x.transpose(0, -1), (2, 3, 4)),
    row("transpose by name", lambda m, x: x.transpose(dim0=0, dim1=1), (2, 3, 4)),
    row("swapaxes", lambda m, x: m.swapaxes(x, 0, 1), (2, 3, 4)),
    row("movedim", lambda m, x: x.movedim(0, -1), (2, 3, 4)),
    row("movedim of two", lambda m, x: m.movedim(x, (0, 1), (2, 0)), (2, 3, 4)),
    row("permute", lambda m, x: x.permute(-1, 0, 1), (2, 3, 4)),
    row("t", lambda m, x: x.t(), (2, 3)),
    row("t of a vector", lambda m, x: x.t(), (3,)),
    row("clone", lambda m, x: x.clone(), (2, 3)),
    row("contiguous", lambda m, x: x.transpose(0, 1).contiguous(), (2, 3)),
    # repeats
    row("expand", lambda m, x: x.expand(2, -1, 4), (3, 1)),
    row("expand to nothing", lambda m, x: x.expand(0), (1,)),
    row("expand a number", lambda m, x: x.expand(2, 3), ()),
    row("expand_as", lambda m, x, y: x.expand_as(y), (3, 1), (2, 3, 4)),
    row("broadcast_to", lambda m, x: m.broadcast_to(x, (2, 3)), (3,)),
    row("repeat", lambda m, x: x.repeat(2, 3), (3, 2)),
    row("repeat with new axes", lambda m, x: x.repeat(2, 1, 3), (3, 2)),
    row("repeat 0 times", lambda m, x: x.repeat(0, 2), (3, 2)),
    row("tile", lambda m, x: x.tile(2), (3, 2)),
    row("tile, more numbers", lambda m, x: m.tile(x, (2, 1, 2)), (3, 2)),
    row("repeat_interleave", lambda m, x: x.repeat_interleave(2), (2, 3)),
    row("repeat_interleave along", lambda m, x: x.repeat_interleave(3, dim=-1), (2, 3)),
    row("repeat_interleave, counts", lambda m, x: m.repeat_interleave(x, m.ids([2, 0]), dim=0), (2, 3)),
    # order
    row("flip", lambda m, x: x.flip(0), (3, 2)),
    row("flip two", lambda m, x: x.flip(0, -1), (3, 2)),
    row("flip a tuple", lambda m, x: m.flip(x, (1,)), (3, 2)),
    row("flip a number", lambda m, x: x.flip(0), ()),
    row("roll", lambda m, x: x.roll(1, 0), (3, 2)),
    row("roll flattened", lambda m, x: x.roll(-2), (3, 2)),
    row("roll two", lambda m, x: m.roll(x, (4, -1), (0, 1)), (3, 2)),
    # around and within
    row("pad", lambda m, x: m.pad(x, (1, 2)), (2, 3)),
    row("pad two axes", lambda m, x: m.pad(x, (1, 2, 3, 0), value=2.5), (2, 3)),
    row("pad with -inf", lambda m, x: m.pad(x, (0, 1), "constant", -inf), (2, 3)),
    row("pad cuts", lambda m, x: m.pad(x, (-1, 1, 1, -2)), (3, 3)),
    row("pad all of one axis away", lambda m, x: m.pad(x, (-2, -1)), (2, 3)),
    row("tril", lambda m, x: x.tril(), (3, 4)),
    row("tril -1", lambda m, x: m.tril(x, -1), (3, 4)),
    row("triu 1", lambda m, x: m.triu(x, diagonal=1), (2, 3, 3)),
    row("triu far", lambda m, x: x.triu(7), (3, 4)),
    row("tril of NaN", lambda m, x: x.tril(), np.full((2, 2), nan)),
    row("diagonal", lambda m, x: x.diagonal(), (3, 4)),
    row("diagonal -1", lambda m, x: m.diagonal(x, -1), (3, 4)),
    row("diagonal of other axes", lambda m, x: x.diagonal(1, -1, 0), (3, 2, 4)),
    row("diagonal too far", lambda m, x: x.diagonal(9), (3, 4)),
    row("diag of a vector", lambda m, x: m.diag(x, -2), (3,)),
    row("diag of a matrix", lambda m, x: x.diag(1), (3, 4)),
    row("trace", lambda m, x: x.trace(), (3, 4)),
    # pieces
    row("cat", lambda m, x, y: m.cat([x, y], dim=1), (2, 3), (2, 1)),
    row("cat along -2", lambda m, x, y: m.concat((x, y), -2), (2, 3), (1, 3)),
    row("cat with nothing", lambda m, x: m.cat([m.zeros(0, dtype=x.dtype), x]), (2, 3)),
    row("cat of nothing", lambda m, x: m.cat([x, x]), (0,)),
    row("cat of integers too", lambda m, x: m.cat([x, m.ids([1, 2])]), (3,)),
    row("stack", lambda m, x, y: m.stack([x, y], -1), (2, 3), (2, 3)),
    row("stack of integers too", lambda m, x: m.stack([x, m.ids([1, 2])]), (2,)),
    row("hstack", lambda m, x, y: m.hstack([x, y]), (2, 3), (2, 1)),
    row("hstack of vectors", lambda m, x, y: m.hstack([x, y]), (2,), (3,)),
    row("vstack", lambda m, x, y: m.vstack([x, y]), (3,), (2, 3)),
    row("chunk", lambda m, x: x.chunk(2), (5, 2)),
    row("chunk, fewer than asked", lambda m, x: m.chunk(x, 4, dim=-1), (2, 5)),
    row("chunk nothing", lambda m, x: x.chunk(3), (0, 2)),
    row("split", lambda m, x: x.split(2, dim=1), (2, 5)),
    row("split of sections", lambda m, x: x.split([1, 4], -1), (2, 5)),
    row("unbind", lambda m, x: x.unbind(), (3, 2)),
    row("unbind 1", lambda m, x: m.unbind(x, dim=-1), (3, 2)),
    # picking
    row("index_select", lambda m, x: x.index_select(1, m.ids([2, 0, 2])), (2, 3)),
    row("index_select by name", lambda m, x: m.index_select(x, dim=-2, index=m.ids([1])), (2, 3)),
    row("gather 0", lambda m, x: x.gather(0, m.ids(IDS)), (3, 3)),
    row("gather -1", lambda m, x: m.gather(x, dim=-1, index=m.ids(IDS)), (2, 3)),
    row("gather less", lambda m, x: x.gather(1, m.ids(IDS[:1])), (2, 3)),
    row("gather of a number", lambda m, x: x.gather(0, m.ids(0)), ()),
    row("scatter", lambda m, x, y: x.scatter(1, m.ids([[1, 0], [2, 1]]), y), (2, 3), (2, 2)),
    row("scatter a number", lambda m, x: x.scatter(1, m.ids([[1, 0], [2, 1]]), 0.25), (2, 3)),
    row("scatter_add", lambda m, x, y: x.scatter_add(1, m.ids(IDS), y), (2, 3), (2, 3)),
    row("index_add", lambda m, x, y: x.index_add(1, m.ids([0, 0]), y), (3, 2), (3, 2)),
    row("take", lambda m, x: x.take(m.ids([[0, -1], [3, 3]])), (2, 3)),
    row("take_along_dim", lambda m, x: m.take_along_dim(x, m.ids([[-1], [0]]), 1), (2, 3)),
    row("take_along_dim, stretched", lambda m, x: m.take_along_dim(x, m.ids([[1, 1, 2]]), dim=1), (2, 3)),
    row("take_along_dim of all", lambda m, x: m.take_along_dim(x, m.ids([5, 0])), (2, 3)),
    row("select", lambda m, x: x.select(1, -1), (2, 3)),
    row("narrow", lambda m, x: x.narrow(1, 1, 2), (2, 3)),
    row("narrow from the end", lambda m, x: m.narrow(x, 0, -1, 1), (2, 3)),
    row("masked_fill", lambda m, x: x.masked_fill(m.ids([True, False, True]), -inf), (2, 3)),
    row("masked_fill by a tensor", lambda m, x, v: x.masked_fill(m.ids([[True], [False]]), v), (2, 3), ()),
    row("masked_fill stretched", lambda m, x: x.masked_fill(m.ids([[True, False]] * 3), 9), (2,)),
    row("masked_select", lambda m, x: x.masked_select(m.ids([[True], [False]])), (2, 3)),
    row("nonzero", lambda m, x: (x * m.ids([0, 1, 0])).nonzero(), (2, 3)),
    # elementwise
    *methods("abs sign square exp2 expm1 sin cos erf floor ceil round trunc", (3, 4)),
    *methods("abs sign square log1p log2 log10 rsqrt reciprocal", np.array([[0.5, 2, 1e-3], [3, 7.25, 1e6]])),
    *methods("abs sign floor ceil round trunc square", EDGES),
    *methods("abs sign square exp2 expm1 sin cos erf", (0, 3)),
    *methods("abs sign square exp2 expm1 sin cos erf", ()),
    row("log1p at the edges", lambda m, x: x.log1p(), np.array([0.0, -0.0, 1e-30, 1e30, inf, nan])),
    row("rsqrt at the edges", lambda m, x: x.rsqrt(), np.array([1e-20, 1e20, inf, nan])),
    row("erf at the edges", lambda m, x: m.erf(x), EDGES),
    row("expm1 at the edges", lambda m, x: x.expm1(), np.array([0.0, -0.0, 1e-30, -1e30, -inf, nan, 1e-9])),
    row("round to decimals", lambda m, x: m.round(x, decimals=2), (3, 4)),
    row("softplus", lambda m, x: m.softplus(x), np.array([-40, -1.5, 0, 1, 19.9, 20.1, 300, -300, inf, -inf, nan])),
    row("softplus with beta", lambda m, x: m.softplus(x, 2.0, threshold=5), (3, 4)),
    row("logsigmoid", lambda m, x: m.logsigmoid(x), np.array([-800, -1.5, 0, 1, 20, 800, -inf, nan])),
    row("leaky_relu", lambda m, x: m.leaky_relu(x, 0.2), np.array([-1.5, 0, 2, nan])),
    row("lerp", lambda m, x, y: m.lerp(x, y, 0.3), (2, 3), (2, 3)),
    row("lerp by a tensor", lambda m, x, y, w: x.lerp(y, w), (2, 3), (2, 3), (3,)),
    row("logit", lambda m, x: m.logit(x), np.array([0.1, 0.5, 0.9])),
    row("logaddexp", lambda m, x, y: m.logaddexp(x, y), (2, 3), (3,)),
    row("maximum", lambda m, x, y: m.maximum(x, y), (2, 3), (3,)),
    row("minimum", lambda m, x, y: x.minimum(y), (2, 1), (2, 3)),
    *(
        row(f"{name} at the edges", lambda m, x, y, f=name: getattr(m, f)(x, y), EDGES, other)
        for name in ("maximum", "minimum")
        for other in (EDGES, EDGES[::-1].copy(), np.array(nan), np.array(1.0))
    ),
    row("clamp", lambda m, x: x.clamp(-0.5, 0.5), (3, 4)),
    row("clamp at the limits", lambda m, x: x.clamp(min=-1, max=1), EDGES),
    row("clamp to a NaN", lambda m, x: x.clamp(min=nan), EDGES),
    row("clamp, limits crossed", lambda m, x: m.clamp(x, 3, 2), np.array([1.0, 2, 2.5, 3, 4, nan])),
    row("clamp by tensors", lambda m, x, a, b: x.clamp(a, b), (3, 4), (4,), (3, 1)),
    row("clamp by one tensor", lambda m, x, a: m.clip(x, max=a), (3, 4), ()),
    row(
        "clamp by tensors at the edges",
        lambda m, x, a, b: x.clamp(a, b),
        np.array([1, 2, 3, nan, 2, 5, 0, 2, 2]),
        np.array([2, 2, 2, 2, nan, 4, 4, 2, 4.0]),
        np.array([3, 3, 3, 3, 3, 2, 2, 2, 2.0]),
    ),
    # reductions
    *(
        row(f"{name} {axis} {keep}", lambda m, x, n=name, a=axis, k=keep: getattr(x, n)(dim=a, keepdim=k), (2, 3, 4))
        for name in ("amax", "amin", "var", "std", "norm", "logsumexp", "sum", "mean")
        for axis in (0, -1, (0, 2), (-1, 0, 1))
        for keep in (False, True)
        if name != "norm" or axis != (-1, 0, 1)  # for which PyTorch wants to be told p=2
    ),
    *(
        row(f"{name} {axis} {keep}", lambda m, x, n=name, a=axis, k=keep: getattr(x, n)(a, k), (2, 3, 4))
        for name in ("max", "min", "prod", "argmax", "argmin", "median")
        for axis in (0, -1)
        for keep in (False, True)
    ),
    *methods("max min amax amin prod var std norm argmax argmin median sum mean", (2, 3)),
    *methods("max min amax amin prod norm argmax argmin median sum mean", ()),
    *methods("max min amax amin prod norm argmax median sum mean", (1, 1)),
    *methods("prod norm sum", (0, 3)),
    *(row(f"{name} of a number", lambda m, x, n=name: getattr(x, n)(0), ()) for name in ("max", "min", "prod", "sum")),
    *(
        row(f"{name} leaves nothing", lambda m, x, n=name: getattr(x, n)(dim=1), (0, 3))
        for name in ("amax", "amin", "var", "std", "norm", "logsumexp", "sum", "mean", "prod", "argmax", "max")
    ),
    row("logsumexp of nothing", lambda m, x: x.logsumexp(1), (3, 0)),
    row("max of two", lambda m, x, y: m.max(x, y), (2, 3), (2, 3)),
    *(
        row(f"{name} of ties", lambda m, x, n=name: getattr(m, n)(x), np.array([[2.0, 5, 5], [5, 1, 5]]))
        for name in ("max", "amax", "min", "amin")
    ),
    row("max of ties along", lambda m, x: x.max(1), np.array([[2.0, 5, 5], [7, 7, 7]])),
    row("amax of infinities", lambda m, x: x.amax(0), np.array([inf, inf, 1])),
    row("amax of NaN", lambda m, x: x.amax(1), np.array([[nan, 1], [2, 1]])),
    row("max of NaN", lambda m, x: x.max(1), np.array([[1, nan, 3], [2, 1, 0]])),
    *(
        row(f"prod of {factors}", lambda m, x: x.prod(), np.array(factors))
        for factors in ([2.0, 0, 3], [0.0, 0, 3], [-0.0, 2], [])
    ),
    row("prod with zeros along", lambda m, x: x.prod(1), np.array([[2.0, 0, 3], [0, 0, 1], [1, 2, 3]])),
    row("cumsum", lambda m, x: x.cumsum(1), (2, 3)),
    row("cumsum by name", lambda m, x: m.cumsum(x, dim=-2), (2, 3)),
    row("cumsum of a number", lambda m, x: x.cumsum(0), ()),
    row("cumprod", lambda m, x: x.cumprod(-1), (2, 3)),
    row("cumprod with zeros", lambda m, x: m.cumprod(x, dim=1), np.array([[2.0, 0, 3, 0, 4], [0, 1, 2, 3, 1]])),
    row("clamp_min, clamp_max", lambda m, x: m.clamp_max(x.clamp_min(-0.5), 0.5), (3, 4)),
    row("tan", lambda m, x: x.tan(), (3, 4)),
    row("cumsum of nothing", lambda m, x: x.cumsum(0), (0, 3)),
    row("sum in float64", lambda m, x: x.sum(dtype=m.tensor(0.0).double().dtype), (2, 3)),
    *(
        row(f"{name} with correction {c}", lambda m, x, n=name, c=c: getattr(m, n)(x, 1, correction=c), (2, 4))
        for name in ("var", "std")
        for c in (0, 1, 2, 4)
        if name == "var" or c < 4
    ),
    row("var unbiased=False", lambda m, x: x.var(0, unbiased=False), (2, 4)),
    row("var(dim, False)", lambda m, x: x.var(0, False), (2, 4)),
    row("var(False)", lambda m, x: x.var(False), (2, 4)),
    row("std(dim, True, True)", lambda m, x: x.std(0, True, True), (2, 4)),
    *methods("var std", np.array([3.0])),
    *methods("var std", np.array([3.0, 3, 3])),
    *(row(f"{n} of one, correction 0", lambda m, x, n=n: getattr(x, n)(correction=0), (1,)) for n in ("var", "std")),
    *(
        row(f"norm {p} of {values}", lambda m, x, p=p: x.norm(p), np.array(values))
        for p in (2, 1, inf, -inf, 0, 3, 1.5, 0.5, "fro")
        for values in ([0.0, 0], [3.0, 0, -4], [2.0, -2], [[1.0, -2], [3, 0.5]])
    ),
    row("norm(2, dim)", lambda m, x: x.norm(2, -1), (2, 3)),
    row("norm by name", lambda m, x: m.norm(x, p=3, dim=(0, 1), keepdim=True), (2, 3, 2)),
    *(
        row(f"logsumexp of {values}", lambda m, x: x.logsumexp(0), np.array(values))
        for values in ([-inf, 1.0], [-inf, -inf], [1000.0, 1000], [nan, 1], [3.0], [inf, 1.0])
    ),
    row("count_nonzero", lambda m, x: (m.count_nonzero(x * m.ids([0, 1, 0])), m.count_nonzero(x, dim=0)), (2, 3)),
    # order
    row("sort", lambda m, x: x.sort(), (3, 4)),
    row("sort down along 0", lambda m, x: m.sort(x, dim=0, descending=True), (3, 4)),
    row("sort NaN", lambda m, x: x.sort(stable=True), np.array([2.0, nan, inf, -inf, 2, 0])),
    row("sort NaN down", lambda m, x: x.sort(stable=True, descending=True), np.array([2.0, nan, inf, -inf, 2, 0])),
    row("sort of a number", lambda m, x: x.sort(), ()),
    row("argsort", lambda m, x: (x.argsort(), x.argsort(0, descending=True)), (3, 4)),
    row("topk", lambda m, x: x.topk(2), (3, 4)),
    row("topk along 0", lambda m, x: m.topk(x, 2, dim=0), (3, 4)),
    row("topk smallest", lambda m, x: x.topk(3, largest=False), (3, 4)),
    row("topk of none", lambda m, x: x.topk(0).values, (3, 4)),
    row("topk of a number", lambda m, x: x.topk(1), ()),
    # products
    row("dot", lambda m, x, y: m.dot(x, y), (4,), (4,)),
    row("mv", lambda m, x, y: x.mv(y), (3, 4), (4,)),
    row("mm", lambda m, x, y: m.mm(x, y), (3, 4), (4, 2)),
    row("bmm", lambda m, x, y: x.bmm(y), (2, 3, 4), (2, 4, 2)),
    row("outer", lambda m, x, y: m.outer(x, y), (3,), (4,)),
    row("outer with nothing", lambda m, x, y: m.outer(x, y), (0,), (4,)),
    row("addmm", lambda m, c, x, y: m.addmm(c, x, y, beta=0.5, alpha=2), (2,), (3, 4), (4, 2)),
    row("baddbmm", lambda m, c, x, y: m.baddbmm(c, x, y), (2, 3, 2), (2, 3, 4), (2, 4, 2)),
    row("matmul: a vector with a stack", lambda m, x, y: m.matmul(x, y), (4,), (2, 4, 3)),
    row("matmul: a stack with a vector", lambda m, x, y: x.matmul(y), (2, 3, 4), (4,)),
    *(
        row(f"einsum {equation}", lambda m, *xs, e=equation: m.einsum(e, *xs), *shapes)
        for equation, shapes in [
            ("ij,jk->ik", [(2, 3), (3, 4)]),
            ("ij, jk -> ki", [(2, 3), (3, 4)]),
            ("bhqd,bhkd->bhqk", [(2, 2, 3, 4), (2, 2, 5, 4)]),
            ("bhqk,bkhd->bqhd", [(2, 2, 3, 5), (2, 5, 2, 4)]),
            ("bA,ba", [(2, 3), (2, 4)]),
            ("ij,ij->", [(2, 3), (2, 3)]),
            ("ij,j,ki->k", [(2, 3), (3,), (4, 2)]),
            ("ii->i", [(3, 3)]),
            ("ii", [(3, 3)]),
            ("i...i->...", [(3, 2, 3)]),
            ("...ij,...jk->...ik", [(2, 1, 2, 3), (5, 3, 2)]),
            ("...i->i", [(2, 3)]),
            ("i...,i...", [(2, 3, 1), (2, 4)]),
            ("i,i->", [(1,), (3,)]),
            ("ij,jk->ik", [(2, 0), (0, 3)]),
            ("i,->i", [(3,), ()]),
            ("ij->ji", [(2, 3)]),
            ("iij,jk->ik", [(2, 2, 3), (3, 2)]),
        ]
    ),
]


def plain(x: Any) -> Any:
    return x.detach().numpy() if hasattr(x, "detach") else x


def layouts(array: np.ndarray) -> list[np.ndarray]:
    return [array, *(view(array) for view in VIEWS.values() if array.ndim)]


@pytest.mark.parametrize(("fn", "inputs"), TABLE)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of overflow and NaN at the edges
@pytest.mark.filterwarnings("ignore:.*degrees of freedom:UserWarning")  # PyTorch's
def test_same_call(fn, inputs):
    rng = np.random.default_rng(7)
    arrays = [rng.normal(size=x) if isinstance(x, tuple) else x for x in inputs]
    for dtype, tolerance in ((np.float64, 1e-11), (np.float32, 3e-6)):
        typed = [x.astype(dtype) for x in arrays]
        twins = [torch.tensor(x, requires_grad=True) for x in typed]
        wanted = fn(Torch(), *twins)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        cotangents = [np.random.default_rng(1).normal(size=y.shape) for y in wanted]
        sloped = [i for i, y in enumerate(wanted) if y.requires_grad]
        if sloped:
            torch.autograd.backward(
                [wanted[i] for i in sloped], [torch.tensor(cotangents[i]).to(wanted[i].dtype) for i in sloped]
            )
        for number in range(4):
            leaves = [Tensor(layouts(x)[number if x.ndim else 0], requires_grad=True) for x in typed]
            outs = fn(Ours(), *leaves)
            outs = outs if isinstance(outs, tuple) else (outs,)
            assert len(outs) == len(wanted)
            for i, (y, t) in enumerate(zip(outs, wanted, strict=True)):
                assert str(y.dtype) == str(t.dtype).removeprefix("torch.")
                assert y.shape == tuple(t.shape)
                np.testing.assert_allclose(y.data, plain(t), rtol=tolerance, atol=tolerance)
                if i in sloped:
                    y.backward(cotangents[i], keep_graph=True)
            for leaf, twin in zip(leaves, twins, strict=True):
                expected = np.zeros(leaf.shape) if twin.grad is None else plain(twin.grad)
                received = np.zeros(leaf.shape) if leaf.grad is None else leaf.grad
                assert received.dtype == dtype or leaf.grad is None
                np.testing.assert_allclose(received, expected, rtol=tolerance * 10, atol=tolerance * 10)


# --- integers and booleans -----------------------------------------------------------------------------------------

WHOLE = [
    lambda m, x: x.sum(),
    lambda m, x: x.sum(0),
    lambda m, x: x.prod(1),
    lambda m, x: x.cumsum(1),
    lambda m, x: x.amax(0),
    lambda m, x: x.amin(),
    lambda m, x: x.max(1),
    lambda m, x: x.flip(0),
    lambda m, x: x.sort(),
    lambda m, x: x.mean(dtype=m.zeros(1).dtype),
    lambda m, x: x.sum(dtype=m.zeros(1).dtype),
    lambda m, x: m.cat([x, m.ids([[2.5, 1.5, 1]])]),
    lambda m, x: m.pad(x, (1, 1), value=1),
    lambda m, x: x.repeat_interleave(2, 0),
    lambda m, x: m.count_nonzero(x),
    lambda m, x: x.nonzero(),
    lambda m, x: x.tril(),
    lambda m, x: m.where(x > 1, x, -x) if str(x.dtype)[-4:] != "bool" else x,
    lambda m, x: x.sin(),
    lambda m, x: x.rsqrt(),
    lambda m, x: x.log1p(),
    lambda m, x: x.clone(),
    lambda m, x: x.float(),
    lambda m, x: x.bool(),
    lambda m, x: x.long(),
    lambda m, x: x.double(),
    lambda m, x: x.int(),
]
NO_BOOLEANS = [
    lambda m, x: x.abs(),
    lambda m, x: x.sign(),
    lambda m, x: x.square(),
    lambda m, x: x.floor(),
    lambda m, x: x.clamp(min=2),
    lambda m, x: x.clamp(min=1.5),
    lambda m, x: x.clamp(min=m.ids([2, 3, 1])),
    lambda m, x: m.maximum(x, m.ids([2.5, 0, 0])),
    lambda m, x: x.masked_fill(x > 1, 7),
    lambda m, x: m.einsum("ij,kj->ik", x, x),
    lambda m, x: m.one_hot(x.long(), 9),
    lambda m, x: x.argmax(1),
    lambda m, x: x.topk(2),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "bool"])
@pytest.mark.parametrize("number", range(len(WHOLE) + len(NO_BOOLEANS)))
def test_same_call_on_whole_numbers(number, dtype):
    fn = (WHOLE + NO_BOOLEANS)[number]
    if dtype == "bool" and fn in NO_BOOLEANS:
        pytest.skip("PyTorch has no such operation of booleans")
    values = np.array([[3, 1, 2], [0, 5, 1]]).astype(dtype)
    outs, wanted = fn(Ours(), minillm.tensor(values)), fn(Torch(), torch.tensor(values))
    outs, wanted = (y if isinstance(y, tuple) else (y,) for y in (outs, wanted))
    for y, t in zip(outs, wanted, strict=True):
        assert str(y.dtype) == str(t.dtype).removeprefix("torch.")
        assert y.shape == tuple(t.shape)
        np.testing.assert_allclose(y.data, t.numpy(), rtol=1e-6)


# --- new tensors ---------------------------------------------------------------------------------------------------

NEW = [
    lambda m: m.zeros(2, 3),
    lambda m: m.zeros((2, 3)),
    lambda m: m.zeros(()),
    lambda m: m.ones(3, dtype=m.zeros(1).double().dtype),
    lambda m: m.full((2, 2), 3),
    lambda m: m.full((2,), 2.5),
    lambda m: m.full((2,), True),
    lambda m: m.eye(3),
    lambda m: m.eye(2, 4),
    lambda m: m.arange(5),
    lambda m: m.arange(5.0),
    lambda m: m.arange(2, 9, 3),
    lambda m: m.arange(5, 0, -2),
    lambda m: m.arange(0, 1, 0.1),
    lambda m: m.arange(3, dtype=m.zeros(1).dtype),
    lambda m: m.arange(0),
    lambda m: m.arange(1, 2.5, 0.5),
    lambda m: m.linspace(0, 1, 5),
    lambda m: m.linspace(-1, 1, 1),
    lambda m: m.linspace(3, 1, 4),
    lambda m: m.zeros_like(m.ids([1, 2])),
    lambda m: m.ones_like(m.ids([1.5, 2])),
    lambda m: m.full_like(m.ids([1.5, 2]), 7),
    lambda m: m.full_like(m.ids([1, 2]), 7.0),
    lambda m: m.zeros_like(m.ids([1, 2]), dtype=m.zeros(1).dtype),
    lambda m: m.tril(m.ones(3, 3)),
    lambda m: m.one_hot(m.ids([[0, 2], [1, 1]])),
    lambda m: m.one_hot(m.ids([0, 2]), num_classes=4),
    lambda m: m.one_hot(m.ids(1), 2),
    lambda m: m.tril_indices(3, 4, -1),
    lambda m: m.triu_indices(3, 4, offset=1),
]


@pytest.mark.parametrize("number", range(len(NEW)))
def test_new_tensors(number):
    y, t = NEW[number](Ours()), NEW[number](Torch())
    assert str(y.dtype) == str(t.dtype).removeprefix("torch.")
    assert y.shape == tuple(t.shape)
    np.testing.assert_allclose(y.data, t.numpy(), rtol=1e-6, atol=1e-7)


# --- what PyTorch refuses, minillm refuses with a sentence ---------------------------------------------------------

REFUSED = [
    lambda m, x: x.sum(1.0),
    lambda m, x: x.sum(True),
    lambda m, x: x.sum((0, 0)),
    lambda m, x: x.sum((0, -2)),
    lambda m, x: x.amax("0"),
    lambda m, x: x.amax(2),
    lambda m, x: x.reshape(2.0, 3),
    lambda m, x: x.reshape(None),
    lambda m, x: x.reshape(True, 6),
    lambda m, x: x.view(-1, -1),
    lambda m, x: x.flatten(1, 0),
    lambda m, x: x.unflatten(1, (2, 2)),
    lambda m, x: x.unsqueeze(3),
    lambda m, x: x.unsqueeze(0.5),
    lambda m, x: x.squeeze(2),
    lambda m, x: x.transpose(0, 2),
    lambda m, x: x.movedim((0, 1), (0,)),
    lambda m, x: x.movedim((0, 0), (0, 1)),
    lambda m, x: x.permute(0),
    lambda m, x: x.unsqueeze(0).t(),
    lambda m, x: x.expand(3),
    lambda m, x: x.expand(-1, 2, 3),
    lambda m, x: x.expand(4, 3),
    lambda m, x: x.repeat(2),
    lambda m, x: x.repeat(2.0, 1),
    lambda m, x: x.repeat_interleave(-1),
    lambda m, x: x.repeat_interleave(m.ids([1, 2, 3]), 0),
    lambda m, x: x.flip(0, 0),
    lambda m, x: x.flip(2),
    lambda m, x: x.roll((1, 2), 0),
    lambda m, x: x.roll(1.5, 0),
    lambda m, x: m.pad(x, (1,)),
    lambda m, x: m.pad(x, (1,) * 6),
    lambda m, x: m.pad(x, (-2, -2)),
    lambda m, x: x[0].tril(),
    lambda m, x: x.diagonal(0, 1, 1),
    lambda m, x: m.cat([]),
    lambda m, x: m.cat(x),
    lambda m, x: m.cat([x, x[0]]),
    lambda m, x: m.cat([x.sum()]),
    lambda m, x: m.cat([x], dim=1.0),
    lambda m, x: m.cat([x], dim=True),
    lambda m, x: m.cat([x, None]),
    lambda m, x: m.stack([]),
    lambda m, x: m.stack([x, x[0]]),
    lambda m, x: m.stack([x], dim=4),
    lambda m, x: m.stack([x], dim=0.0),
    lambda m, x: x.split(0),
    lambda m, x: x.split(2.0),
    lambda m, x: x.split(True),
    lambda m, x: x.split(None),
    lambda m, x: x.split([1, 2]),
    lambda m, x: x.split([1.0, 1.0]),
    lambda m, x: x.split(1, dim=0.0),
    lambda m, x: x.split("1"),
    lambda m, x: x.chunk(0),
    lambda m, x: x.chunk(1.5),
    lambda m, x: x.sum().unbind(),
    lambda m, x: x.index_select(0, m.ids([0.5])),
    lambda m, x: x.index_select(0, m.ids([2])),
    lambda m, x: x.gather(1, m.ids([0])),
    lambda m, x: x.gather(1, m.ids([[3]])),
    lambda m, x: x.gather(1, m.ids([[-1]])),
    lambda m, x: x.gather(1, m.ids([[0], [0], [0]])),
    lambda m, x: x.gather(1, m.ids([[0.0]])),
    lambda m, x: x.scatter(1, m.ids([[0, 1]]), x[:, :1]),
    lambda m, x: x.take(m.ids([6])),
    lambda m, x: x.narrow(0, 1, 2),
    lambda m, x: x.narrow(0, 0, -1),
    lambda m, x: x.select(0, 2),
    lambda m, x: x.masked_fill(m.ids([1, 0, 1]), 0),
    lambda m, x: x.masked_fill(m.ids([True, False]), 0),
    lambda m, x: x.masked_fill(m.ids([True, False, True]), x[0]),
    lambda m, x: x.topk(4),
    lambda m, x: x.topk(1, dim=2),
    lambda m, x: x.long().mean(),
    lambda m, x: x.long().std(),
    lambda m, x: x.long().norm(),
    lambda m, x: m.zeros(0).argmax(),
    lambda m, x: m.zeros(0).max(),
    lambda m, x: m.zeros(0, 2).amax(0),
    lambda m, x: m.dot(x, x),
    lambda m, x: m.mm(x, x),
    lambda m, x: m.bmm(x, x),
    lambda m, x: m.outer(x, x),
    lambda m, x: m.einsum("ij,jk->iq", x, x.t()),
    lambda m, x: m.einsum("ij,jk->ik", x, x),
    lambda m, x: m.einsum("ij->ii", x),
    lambda m, x: m.einsum("i->i", x),
    lambda m, x: m.einsum("ij,ij", x),
    lambda m, x: m.einsum("i1->i", x),
    lambda m, x: m.einsum("ii->i", x),
    lambda m, x: m.arange(1, 5, -1),
    lambda m, x: m.arange(1, 5, 0),
    lambda m, x: m.zeros(-1),
    lambda m, x: m.zeros(2.0),
    lambda m, x: m.randint(3, 3, (2,)),
    lambda m, x: m.multinomial(m.ids([0.0, 0.0]), 1),
    lambda m, x: m.multinomial(m.ids([-1.0, 2.0]), 1),
    lambda m, x: m.multinomial(m.ids([nan, 2.0]), 1),
    lambda m, x: m.multinomial(m.ids([1, 2]), 1),
    lambda m, x: m.multinomial(m.ids([1.0, 2.0]), 3),
    lambda m, x: m.multinomial(m.ids([1.0, 2.0]), 0),
    lambda m, x: m.one_hot(m.ids([0, 2]), 2),
    lambda m, x: m.one_hot(m.ids([-1]), 2),
    lambda m, x: m.one_hot(m.ids([0.5])),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refused_with_a_sentence(number):
    from minillm.errors import MinillmError

    values = np.arange(6.0).reshape(2, 3)
    with pytest.raises((RuntimeError, TypeError, IndexError, ValueError)):
        REFUSED[number](Torch(), torch.tensor(values))
    with pytest.raises(MinillmError) as caught:
        REFUSED[number](Ours(), minillm.tensor(values))
    function, _, sentence = str(caught.value).partition(": ")
    assert function.isidentifier()
    assert len(sentence) > 15
