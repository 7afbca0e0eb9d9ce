"""The audit of every backward that a check runs: its results, and its treatment of memory that is not its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minillm.autograd import Forward, Node, Op
from minillm.backend import Array
from minillm.errors import MinillmError


class GradientError(MinillmError, AssertionError):
    """A backward that is not the derivative of its forward, or breaks a rule of the engine; the text is a report."""


class InfiniteSlope(Exception):
    """A derivative between two operations is infinite, like that of a root at 0, so the gradients mean nothing."""


class WrongShape(GradientError):
    """A gradient of the wrong shape, with the information needed to find the cause."""

    def __init__(self, text: str, edges: tuple, gradients: tuple, position: int):
        super().__init__(text)
        self.edges, self.gradients, self.position = edges, gradients, position
        self.subject: Any = None  # the place where it was found, if not where the check began


def audit(roots: Sequence[Node], strict: bool, double: bool) -> list[Node]:
    """Wrap the backward of these nodes and of all below them, so that each is watched when it runs; returns the nodes.

    Unless `strict`, gradients may be infinite or NaN, as the derivative itself may be (a root at 0). If all arguments
    are float64 (`double`), every gradient must be too.
    """
    seen = dict.fromkeys(roots)
    stack = list(seen)
    while stack:
        node = stack.pop()
        edges = node.edges or ()
        node.backward = functools.partial(_audited, node.op, edges, node.input_shapes, strict, double, node.backward)
        for edge in edges:
            if edge is not None and isinstance(edge[0], Node) and edge[0] not in seen:
                seen[edge[0]] = None
                stack.append(edge[0])
    return list(seen)


def _audited(
    op: Op,
    edges: tuple,
    shapes: tuple,
    strict: bool,
    double: bool,
    backward: Callable,
    dout: Any,
    saved: Any,
    *into: Any,
) -> tuple:
    """Run a backward with a read-only dout, and check its results."""
    several = isinstance(dout, tuple)
    douts = [None if one is None else np.asarray(one).view() for one in (dout if several else (dout,))]
    for one in douts:
        if one is not None:
            one.flags.writeable = False
    if not strict and any(one is not None and np.isinf(one).any() for one in douts):
        raise InfiniteSlope(f"a derivative on the way to {op.name} is infinite")
    try:
        gradients = backward(tuple(douts) if several else douts[0], saved, *into)
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        raise GradientError(
            f"backward of {op.name}: writes into dout, which other operations may still need; use a new array"
        ) from error
    if type(gradients) is not tuple or len(gradients) != len(edges):
        return gradients  # the engine raises the error
    asked = {i: gradient for i, gradient in enumerate(gradients) if edges[i] is not None}
    for i, gradient in asked.items():
        what = f"backward of {op.name}: the gradient of input {i}"
        if gradient is None:
            raise GradientError(f"{what} is None, but the input needs one")
        if gradient.shape != shapes[i]:
            text = f"{what} has shape {gradient.shape}, but the input has shape {shapes[i]}"
            raise WrongShape(text, edges, gradients, i)
        if double and gradient.dtype != np.float64:
            raise GradientError(f"{what} is {gradient.dtype}, but the input is float64")
        finite = all(one is None or np.isfinite(one).all() for one in douts)
        if strict and finite and not np.isfinite(gradient).all():
            index = tuple(np.argwhere(~np.isfinite(gradient))[0].tolist())
            raise GradientError(f"{what} is {gradient[index]} at index {index}, from a finite dout")
    if not op.aliases:
        _check_memory(op, douts, saved, asked)
    return gradients


def _check_memory(op: Op, douts: list, saved: Any, gradients: dict[int, Array]) -> None:
    """Check that no gradient shares memory with dout, with saved arrays, or with another gradient."""
    for i, gradient in gradients.items():
        what = f"backward of {op.name}: the gradient of input {i}"
        if gradient.size and repeats(gradient):
            raise GradientError(f"{what} repeats elements in memory; copy it, or declare the Op with aliases=True")
        others = [("dout", one) for one in douts if one is not None]
        others += [("what the forward saved", array) for array in arrays_in(saved)]
        others += [(f"the gradient of input {j}", other) for j, other in gradients.items() if j != i]
        for name, other in others:
            if np.shares_memory(gradient, other):
                raise GradientError(f"{what} shares memory with {name}; copy it, or declare the Op with aliases=True")


def arrays_in(saved: Any) -> list[Array]:
    """The arrays in nested tuples and lists."""
    if isinstance(saved, np.ndarray):
        return [saved]
    return [array for item in saved for array in arrays_in(item)] if isinstance(saved, (tuple, list)) else []


def repeats(x: Array) -> bool:
    """True if elements share memory, as those of a broadcast array do."""
    return any(stride == 0 and n > 1 for stride, n in zip(x.strides, x.shape, strict=True))


def float32_stays(call: Forward) -> None:
    """Raise an error, as an observer, if an operation turns float32 inputs into float64, forward or backward.

    Operations whose settings hold a dtype, an array or a function are left alone: they may ask for float64.
    """
    op, settings = call.op, call.settings
    dtypes = [x.dtype if isinstance(x, np.ndarray) and x.dtype.kind == "f" else None for x in call.inputs]
    unseen = "dtype" in settings or any(callable(one) or isinstance(one, np.ndarray) for one in settings.values())
    if unseen or {*dtypes} - {None} != {np.dtype(np.float32)}:
        return
    if any(out.dtype == np.float64 for out in call.outputs):
        raise GradientError(f"forward of {op.name}: the output is float64, but every input is float32")
    if call.node is not None:
        call.node.backward = functools.partial(_float32_backward, op, dtypes, call.node.backward)


def _float32_backward(op: Op, dtypes: list, backward: Callable, dout: Any, saved: Any, *into: Any) -> tuple:
    """Run a backward, and check that gradients of float32 inputs are float32 where dout is."""
    gradients = backward(dout, saved, *into)
    if type(gradients) is not tuple or len(gradients) != len(dtypes):
        return gradients
    given = [one for one in (dout if isinstance(dout, tuple) else (dout,)) if one is not None]
    for i, (gradient, dtype) in enumerate(zip(gradients, dtypes, strict=True)):
        wrong = gradient is not None and dtype is not None and gradient.dtype != dtype
        if wrong and all(one.dtype == np.float32 for one in given):
            raise GradientError(
                f"backward of {op.name}: the gradient of input {i} is {gradient.dtype}, but the input is float32"
            )
    return gradients
