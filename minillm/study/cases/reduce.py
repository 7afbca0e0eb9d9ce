"""Gradient-check rows of reductions, cumulative sums and products, einsum and matmul."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from minillm import ops
from minillm.study.cases.recipes import Case, apart, in_views, normal, positive


def _reductions() -> Iterator[Case]:
    for op, fn in [("sum", ops.sum), ("mean", ops.mean), ("amax", ops.amax), ("amin", ops.amin)]:
        for axis in (None, 0, 1, -1, (0, 2), (-1, 0), (0, 1, 2)):
            for keep in (False, True):
                name = f"axis {axis}" + (", kept" if keep else "")
                yield Case(op, name, lambda x, fn=fn, a=axis, k=keep: fn(x, axis=a, keepdims=k), apart((2, 3, 4)))
        yield Case(op, "dim and keepdim", lambda x, fn=fn: fn(x, dim=1, keepdim=True), apart((2, 3, 4)))
        yield Case(op, "no axes", fn, apart(()))
        yield Case(op, "size 1", lambda x, fn=fn: fn(x, axis=1), apart((3, 1, 2)))
        yield from in_views(op, lambda x, fn=fn: fn(x, axis=0), apart((3, 4)))
        yield Case(op, "two equal", lambda x, fn=fn: fn(x, axis=1), lambda rng: (np.array([[2.0, 2], [7, 7]]),))
    spreads: list[tuple[str, Callable]] = [
        ("var", ops.var),
        ("std", ops.std),
        ("norm", _norm),
        ("logsumexp", ops.logsumexp),
    ]
    for op, fn in spreads:
        for axis in (None, 0, -1, (0, 2), (-1, 0), (0, 1, 2)):
            for keep in (False, True):
                name = f"axis {axis}" + (", kept" if keep else "")
                yield Case(op, name, lambda x, fn=fn, a=axis, k=keep: fn(x, dim=a, keepdim=k), normal((2, 3, 4)))
        yield Case(op, "one row", lambda x, fn=fn: fn(x, dim=0), normal((5, 1)))
        yield Case(op, "nothing left", lambda x, fn=fn: fn(x, dim=1), normal((0, 3)))
        yield from in_views(op, lambda x, fn=fn: fn(x, dim=0), normal((3, 4)))
    for correction in (0, 1, 2.5):
        for op in ("var", "std"):
            yield Case(
                op,
                f"correction {correction}",
                lambda x, op=op, c=correction: getattr(x, op)(1, correction=c),
                normal((2, 4)),
            )
    for p in (2, 3, 1.5, 0.5, -1, -2):
        yield Case("norm", f"p {p}", lambda x, p=p: x.norm(p, 1), apart((3, 4)))
    two_equal = np.array([[2.0, -2], [-7, 7], [5, 5], [-3, -3]])
    for p in (math.inf, -math.inf):
        for keep in (False, True):
            name = f"p {p}" + (", kept" if keep else "")
            yield Case("norm", name, lambda x, p=p, keep=keep: x.norm(p, 1, keep), normal((3, 4)))
        yield Case("norm", f"p {p}, all", lambda x, p=p: x.norm(p), normal((2, 3)))
        yield Case("norm", f"p {p}, two equal", lambda x, p=p: x.norm(p, 1), lambda rng: (two_equal,))
        yield from in_views("norm", lambda x, p=p: x.norm(p, 0), normal((3, 4)), f"p {p}, ")
    for p in (2, 3, 1.5):
        yield Case("norm", f"p {p}, zero among others", lambda x, p=p: x.norm(p), lambda rng: (np.array([0.0, 3, -4]),))
    yield Case("norm", "no axes", lambda x: x.norm(), positive(()))
    yield Case("logsumexp", "no axes", lambda x: x.logsumexp(), normal(()))
    yield Case("logsumexp", "large", lambda x: x.logsumexp(-1), lambda rng: (1e3 + rng.normal(size=(3, 4)),))
    yield Case("sum", "empty", lambda x: x.sum(), normal((0, 3)))
    yield Case("sum", "empty axis", lambda x: x.sum(axis=0), normal((0, 3)))
    yield Case("sum", "over no axes", lambda x: x.sum(axis=()), normal((2, 3)))
    yield Case("mean", "used twice", lambda x: x * x.mean(axis=0), normal((3, 4)))
    yield Case("amax", "largest first", lambda x: x.amax(axis=1), lambda rng: (np.array([[3.0, 1, 2], [9, 8, 7]]),))


def _norm(x, dim=None, keepdim=False):
    return ops.norm(x, 2, dim, keepdim)


def _cumulative() -> Iterator[Case]:
    for axis in (None, 0, 1, -1, (0, 2), (0, 1, 2)):
        for keep in (False, True):
            name = f"axis {axis}" + (", kept" if keep else "")
            yield Case("prod", name, lambda x, a=axis, k=keep: x.prod(a, k), normal((2, 3, 2)))
    for op, fn in [
        ("prod", lambda x: ops.prod(x, 0)),
        ("cumsum", lambda x: ops.cumsum(x, 0)),
        ("cumprod", lambda x: ops.cumprod(x, 0)),
    ]:
        yield Case(op, "no axes", fn, normal(()))
        yield Case(op, "size 1", fn, normal((1, 1)))
        yield Case(op, "empty", fn, normal((0, 3)))
        yield Case(op, "nothing left", fn, normal((3, 0)))
        yield from in_views(op, fn, normal((3, 4)))
    yield Case("prod", "one zero", lambda x: x.prod(), lambda rng: (np.array([2.0, 0, 3]),))
    yield Case(
        "prod", "zeros in rows", lambda x: x.prod(1), lambda rng: (np.array([[2.0, 0, 3], [0, 0, 1], [1, 2, 3]]),)
    )
    for axis in (0, 1, -1):
        yield Case("cumsum", f"axis {axis}", lambda x, a=axis: x.cumsum(a), normal((2, 3, 4)))
        yield Case("cumprod", f"axis {axis}", lambda x, a=axis: x.cumprod(a), normal((2, 3, 4)))
    yield Case("cumprod", "zeros", lambda x: x.cumprod(1), lambda rng: (np.array([[2.0, 0, 3, 0], [0, 1, 2, 3]]),))


def _einsum() -> Iterator[Case]:
    equations: list[tuple[str, tuple[tuple[int, ...], ...]]] = [
        ("ij,jk->ik", ((2, 3), (3, 4))),
        ("ij,kj->ki", ((2, 3), (4, 3))),
        ("bhqd,bhkd->bhqk", ((2, 2, 3, 2), (2, 2, 4, 2))),
        ("bhqk,bkhd->bqhd", ((2, 2, 3, 4), (2, 4, 2, 2))),
        ("ij,ij->ij", ((2, 3), (2, 3))),
        ("ij,ij->", ((2, 3), (2, 3))),
        ("ij,ij->i", ((2, 3), (2, 3))),
        ("i,j->ji", ((2,), (3,))),
        ("ij,jk,kl->il", ((2, 3), (3, 2), (2, 4))),
        ("i,i,i->i", ((3,), (3,), (3,))),
        ("ij,ik,il->jkl", ((2, 2), (2, 3), (2, 1))),
        ("ijk->kij", ((2, 3, 4),)),
        ("ijk->j", ((2, 3, 4),)),
        ("ii->", ((3, 3),)),
        ("ii->i", ((3, 3),)),
        ("iji,j->i", ((2, 3, 2), (3,))),
        ("ij,jk", ((2, 3), (3, 4))),
        ("...ij,...jk->...ik", ((2, 1, 2, 3), (3, 3, 2))),
        ("...i->...", ((2, 3, 4),)),
        ("i...,i...->...", ((2, 3, 1), (2, 4))),
        ("ij,ik->jk", ((1, 2), (3, 2))),
        ("ij,k->ik", ((2, 3), (4,))),
        ("ij,jk->ik", ((0, 3), (3, 2))),
        ("ij,jk->ik", ((2, 0), (0, 2))),
        (",i->i", ((), (3,))),
    ]
    for equation, shapes in equations:
        name = f"{equation} {shapes}"
        yield Case("einsum", name, lambda *xs, e=equation: ops.einsum(e, *xs), normal(*shapes))
    yield Case("einsum", "one tensor twice", lambda x: ops.einsum("ij,kj->ik", x, x), normal((2, 3)))
    yield from in_views("einsum", lambda a, b: ops.einsum("ij,kj->ik", a, b), normal((3, 4), (2, 4)))


def _matmul() -> Iterator[Case]:
    def product(a, b):
        return a @ b

    for name, shapes in {
        "matrices": ((3, 4), (4, 2)),
        "square": ((3, 3), (3, 3)),
        "vectors": ((4,), (4,)),
        "vector, matrix": ((4,), (4, 3)),
        "matrix, vector": ((3, 4), (4,)),
        "batched": ((2, 3, 4), (2, 4, 5)),
        "left stretched": ((3, 4), (2, 4, 5)),
        "right stretched": ((2, 3, 4), (4, 5)),
        "size-1 batch stretched": ((1, 3, 4), (2, 4, 5)),
        "both stretched": ((2, 1, 3, 4), (3, 4, 2)),
        "new axes and stretched": ((1, 3, 4), (2, 5, 4, 2)),
        "vector, batch": ((4,), (2, 4, 3)),
        "batch, vector": ((2, 3, 4), (4,)),
        "size 1": ((1, 1), (1, 1)),
        "no rows": ((0, 3), (3, 2)),
        "nothing to sum": ((2, 0), (0, 3)),
        "empty batch": ((0, 2, 3), (3, 2)),
    }.items():
        yield Case("matmul", name, product, normal(*shapes))
    yield Case("matmul", "one tensor twice", lambda x: x @ x, normal((3, 3)))
    yield Case("matmul", "array on the left", lambda b: np.ones((2, 3), b.dtype) @ b, normal((3, 2)))
    yield from in_views("matmul", product, normal((3, 4), (4, 2)))
    yield from in_views("matmul", lambda a, b: ops.matmul(a, b), normal((2, 3, 4), (2, 4, 2)), "batched, ")


CASES: tuple[Case, ...] = (
    *_reductions(),
    *_cumulative(),
    *_einsum(),
    *_matmul(),
)
