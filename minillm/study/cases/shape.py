"""Gradient-check rows of operations that move, pick, join and cut elements."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from minillm import ops
from minillm.autograd import tensor
from minillm.study.cases.recipes import Case, apart, in_views, normal

TRIANGLES = ("tril", "triu")


def _rearrange() -> Iterator[Case]:
    yield Case("reshape", "matrix", lambda x: x.reshape(2, -1), normal((3, 4)))
    yield Case("reshape", "tuple", lambda x: x.reshape((4, 1, 3)), normal((3, 4)))
    yield Case("reshape", "to no axes", lambda x: x.reshape(()), normal((1, 1)))
    yield Case("reshape", "empty", lambda x: x.reshape(3, 0), normal((0, 2)))
    yield from in_views("reshape", lambda x: x.reshape(12), normal((3, 4)))
    yield Case("transpose", "two axes", lambda x: x.transpose(0, 1), normal((3, 4)))
    yield Case("transpose", "negative axes", lambda x: x.transpose(-1, -3), normal((2, 3, 4)))
    yield Case("transpose", "permute", lambda x: x.permute(2, 0, 1), normal((2, 3, 4)))
    yield Case("transpose", "permute, negative", lambda x: x.permute((-1, 0, -2, 1)), normal((2, 3, 1, 4)))
    yield Case("transpose", "empty", lambda x: x.transpose(0, 1), normal((0, 2)))
    yield Case("transpose", "no axes", lambda x: x.permute(()), normal(()))
    yield from in_views("transpose", lambda x: x.permute(1, 2, 0), normal((2, 3, 4)))
    yield Case("broadcast", "new axes", lambda x: x.broadcast_to(2, 3, 4), normal((4,)))
    yield Case("broadcast", "size-1 axes", lambda x: x.broadcast_to((2, 3, 4)), normal((2, 1, 4)))
    yield Case("broadcast", "new and size-1 axes", lambda x: x.broadcast_to((2, 3, 4)), normal((3, 1)))
    yield Case("broadcast", "same shape", lambda x: x.broadcast_to(2, 3), normal((2, 3)))
    yield Case("broadcast", "no axes", lambda x: x.broadcast_to(2, 3), normal(()))
    yield Case("broadcast", "to nothing", lambda x: x.broadcast_to(0, 3), normal((1, 3)))
    yield Case("broadcast", "used twice", lambda x: x.broadcast_to(2, 3) * x, normal((1, 3)))
    yield from in_views("broadcast", lambda x: x.broadcast_to(2, 3, 4), normal((3, 4)))


def _index() -> Iterator[Case]:
    repeats = np.array([2, 0, 2, 2])
    mask = np.array([True, False, True])
    for name, key in {
        "integer": 1,
        "negative integer": -1,
        "all integers": (1, 2),
        "slice": slice(1, 3),
        "slice with a step": (slice(None), slice(None, None, 2)),
        "slice backwards": (slice(None, None, -1), slice(3, 0, -2)),
        "new axis": (None, slice(None), None, 2),
        "ellipsis": (..., 1),
        "empty slice": slice(3, 3),
        "index array": repeats,
        "list": [0, 0, 1],
        "empty list": [],
        "tuple within": ((0, 0, 2), slice(None)),
        "two index arrays": (repeats, np.array([[1], [1]])),
        "index array and slice": (slice(None, 2), repeats),
        "boolean array": mask,
        "boolean array, no row": ~mask & mask,
        "boolean and index array": (mask, np.array([1, 1])),
        "whole": ...,
    }.items():
        yield Case("getitem", name, lambda x, key=key: x[key], normal((3, 4)))
    yield Case("getitem", "indices as Tensor", lambda x: x[tensor(repeats)], normal((3, 4)))
    yield from in_views("getitem", lambda x: x[1:, repeats], normal((3, 4)))
    for name, index, axis in [
        ("repeats", repeats, 0),
        ("last axis", repeats, -1),
        ("middle axis", repeats, 1),
        ("matrix of indices", np.array([[0, 1, 1], [2, 2, 0]]), 1),
        ("one index", np.array(2), 1),
        ("no index", np.array([], int), 0),
        ("list", [1, 1], 0),
    ]:
        yield Case("index_select", name, lambda x, i=index, a=axis: x.index_select(a, i), normal((3, 3, 4)))
    yield Case("index_select", "dim", lambda x: ops.index_select(x, dim=1, index=repeats), normal((2, 3)))
    yield from in_views("index_select", lambda x: x.index_select(1, repeats), normal((2, 3)))


def _pick_and_write() -> Iterator[Case]:
    ids = np.array([[1, 0, 1], [2, 2, 0]])
    for name, x, dim, index in [
        ("rows", (3, 3), 0, ids),
        ("columns", (2, 3), 1, ids),
        ("last of three", (2, 3, 4), -1, np.array([[[3, 3], [0, 1], [1, 1]], [[0, 0], [2, 2], [3, 2]]])),
        ("smaller than x", (3, 4), 1, ids[:1]),
        ("nothing", (3, 4), 1, ids[:, :0]),
        ("no axes", (), 0, np.array(0)),
    ]:
        yield Case("gather", name, lambda x, d=dim, i=index: x.gather(d, i), normal(x))
        yield Case("scatter_add", name, lambda x, y, d=dim, i=index: x.scatter_add(d, i, y), normal(x, index.shape))
    distinct = np.array([[1, 0], [2, 1], [0, 2]])
    for name, fn, shapes in [
        ("columns", lambda x, y: x.scatter(1, distinct, y), ((3, 4), (3, 2))),
        ("rows", lambda x, y: x.scatter(0, distinct[:, :1], y), ((3, 3), (3, 1))),
        ("larger source", lambda x, y: x.scatter(-1, distinct[:2], y), ((3, 3), (3, 4))),
        ("nothing", lambda x, y: x.scatter(1, distinct[:, :0], y), ((3, 4), (3, 0))),
        ("no axes", lambda x, y: x.scatter(0, 0, y), ((), ())),
    ]:
        yield Case("scatter", name, fn, normal(*shapes))
    yield Case("scatter", "a number", lambda x: x.scatter(1, distinct, 0.5), normal((3, 4)))
    yield Case("scatter_add", "a number for all", lambda x, y: x.scatter_add(1, ids, y), normal((2, 3), ()))
    yield Case("scatter_add", "index_add", lambda x, y: x.index_add(0, [1, 1], y), normal((3, 4), (2, 4)))
    yield Case("gather", "take_along_dim", lambda x: x.take_along_dim(np.array([[-1], [0]]), 1), normal((1, 4)))
    yield Case("gather", "sort", lambda x: x.sort(0).values, apart((4, 3)))
    yield Case("gather", "topk", lambda x: x.topk(2, 0)[0], apart((4, 3)))
    yield Case("gather", "max", lambda x: x.max(1).values, apart((4, 3)))
    yield from in_views("gather", lambda x: x.gather(1, ids), normal((2, 3)))
    yield from in_views("scatter", lambda x, y: x.scatter(1, distinct, y), normal((3, 4), (3, 2)))
    yield from in_views("scatter_add", lambda x, y: x.scatter_add(1, ids, y), normal((2, 3), (2, 3)))
    yield Case("getitem", "take", lambda x: x.take([[-1, 0], [0, 3]]), normal((2, 3)))
    yield Case("getitem", "masked_select", lambda x: x.masked_select(np.array([True, False, True])), normal((2, 3)))
    yield Case("getitem", "diagonal", lambda x: x.diagonal(1, 0, -1), normal((3, 2, 4)))
    yield Case("getitem", "flip", lambda x: x.flip(0, -1), normal((2, 3)))
    yield Case("where", "masked_fill", lambda x, v: x.masked_fill(np.array([True, False]), v), normal((3, 2), ()))


def _move_and_repeat() -> Iterator[Case]:
    for op, name, fn, shape in [
        ("roll", "one axis", lambda x: x.roll(1, 0), (3, 4)),
        ("roll", "two axes", lambda x: x.roll((1, -2), (0, 1)), (3, 4)),
        ("roll", "further than there is", lambda x: x.roll(-7, -1), (2, 3)),
        ("roll", "one axis twice", lambda x: x.roll((1, 1), (0, 0)), (4, 2)),
        ("roll", "flattened", lambda x: x.roll(2), (2, 3)),
        ("roll", "empty", lambda x: x.roll(1, 0), (0, 3)),
        ("pad", "last axis", lambda x: ops.pad(x, (1, 2)), (2, 3)),
        ("pad", "two axes", lambda x: ops.pad(x, (1, 0, 0, 2), value=3.5), (2, 3)),
        ("pad", "cut", lambda x: ops.pad(x, (-1, 1, 1, -2)), (3, 3)),
        ("pad", "cut to nothing", lambda x: ops.pad(x, (-1, -2)), (2, 3)),
        ("pad", "first of three", lambda x: ops.pad(x, (0, 0, 0, 0, 1, 1)), (2, 3, 1)),
        ("pad", "nothing", lambda x: ops.pad(x, (1, 1)), (2, 0)),
        ("pad", "no axes", lambda x: ops.pad(x, ()), ()),
        *(
            (op, f"diagonal {k}", lambda x, op=op, k=k: getattr(x, op)(k), (3, 4))
            for op in TRIANGLES
            for k in (0, 1, -2)
        ),
        *((op, "stack", lambda x, op=op: getattr(x, op)(), (2, 3, 2)) for op in TRIANGLES),
        *((op, "empty", lambda x, op=op: getattr(x, op)(), (2, 0)) for op in TRIANGLES),
        ("clone", "matrix", lambda x: x.clone(), (2, 3)),
        ("clone", "no axes", lambda x: x.clone(), ()),
        ("clone", "empty", lambda x: x.clone(), (0, 2)),
        ("clone", "contiguous", lambda x: x.transpose(0, 1).contiguous(), (2, 3)),
        ("reshape", "flatten, unflatten", lambda x: x.flatten(0, 1).unflatten(0, (-1, 3)), (2, 3, 4)),
        ("reshape", "squeeze, unsqueeze", lambda x: x.squeeze(1).unsqueeze(-1), (2, 1, 3)),
        ("transpose", "movedim", lambda x: x.movedim((0, 1), (-1, 0)), (2, 3, 4)),
        ("broadcast", "expand", lambda x: x.expand(2, -1, 4), (3, 1)),
        ("broadcast", "repeat", lambda x: x.repeat(2, 1, 3), (3, 2)),
        ("broadcast", "tile", lambda x: x.tile(2), (3, 2)),
        ("index_select", "repeat_interleave", lambda x: x.repeat_interleave([2, 0, 1], 1), (2, 3)),
        ("split", "chunk", lambda x: x.chunk(2, -1), (2, 5)),
        ("split", "unbind", lambda x: x.unbind(1), (2, 3, 2)),
    ]:
        yield Case(op, name, fn, normal(shape))
    for op, fn in [
        ("roll", lambda x: x.roll(1, 0)),
        ("pad", lambda x: ops.pad(x, (1, -1))),
        ("tril", lambda x: x.tril(1)),
        ("triu", lambda x: x.triu(1)),
        ("clone", lambda x: x.clone()),
    ]:
        yield from in_views(op, fn, normal((3, 4)))


def _join_and_cut() -> Iterator[Case]:
    for op, fn in [("concat", ops.concat), ("stack", ops.stack)]:
        yield Case(op, "two", lambda x, y, fn=fn: fn([x, y]), normal((2, 3), (2, 3)))
        yield Case(op, "three", lambda x, y, z, fn=fn: fn((x, y, z), axis=1), normal((2, 3), (2, 3), (2, 3)))
        yield Case(op, "last axis", lambda x, y, fn=fn: fn([x, y], axis=-1), normal((2, 3), (2, 3)))
        yield Case(op, "dim", lambda x, y, fn=fn: fn([x, y], dim=1), normal((2, 3), (2, 3)))
        yield Case(op, "one", lambda x, fn=fn: fn([x]), normal((2, 3)))
        yield Case(op, "one tensor twice", lambda x, fn=fn: fn([x, x], axis=1), normal((2, 3)))
        yield Case(op, "with a constant", lambda x, fn=fn: fn([0 * x.detach(), x]), normal((2, 3)))
        yield Case(op, "empty", lambda x, y, fn=fn: fn([x, y]), normal((0, 3), (0, 3)))
        yield from in_views(op, lambda x, y, fn=fn: fn([x, y], axis=1), normal((2, 3), (2, 3)))
    yield Case("concat", "unequal sizes", lambda x, y: ops.concat([x, y], axis=1), normal((2, 3), (2, 1)))
    yield Case("concat", "with nothing", lambda x, y: ops.concat([x, y]), normal((0, 3), (2, 3)))
    yield Case("stack", "no axes", lambda x, y: ops.stack([x, y]), normal((), ()))
    yield Case("split", "equal pieces", lambda x: x.split(2), normal((4, 3)))
    yield Case("split", "smaller last piece", lambda x: x.split(2, axis=1), normal((2, 5)))
    yield Case("split", "sections", lambda x: x.split([1, 3, 0], axis=-1), normal((2, 4)))
    yield Case("split", "dim", lambda x: ops.split(x, 2, dim=1), normal((2, 5)))
    yield Case("split", "first unused", lambda x: x.split(2)[1], normal((5, 2)))
    yield Case("split", "last unused", lambda x: x.split([2, 1, 2])[:2], normal((5, 2)))
    yield Case("split", "pieces meet again", lambda x: x.split(2)[0] * x.split(2)[1], normal((4, 3)))
    yield Case("split", "empty", lambda x: x.split(2), normal((0, 3)))
    yield from in_views("split", lambda x: x.split(2, axis=1), normal((3, 4)))


CASES: tuple[Case, ...] = (
    *_rearrange(),
    *_index(),
    *_pick_and_write(),
    *_move_and_repeat(),
    *_join_and_cut(),
)
