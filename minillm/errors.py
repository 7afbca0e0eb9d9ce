"""Errors that tell a person what to do. Each is one sentence: the given value, the expected one, and the fix.

Every error that minillm raises on purpose is a `MinillmError`. The command line prints its sentence and exits with
status 2; a program can catch the base class, or the built-in that each one also is (`except ValueError`).
"""

from __future__ import annotations

import difflib
import functools
import operator
import re
from collections.abc import Callable, Iterable
from typing import Any


class MinillmError(Exception):
    """Base of every error raised on purpose; its text is one sentence for the person who called."""


class ShapeError(MinillmError, ValueError):
    """Array shapes that do not match the operation."""


class DtypeError(MinillmError, TypeError):
    """An array or argument of the wrong type."""


class DeviceError(MinillmError, RuntimeError):
    """A device that this machine lacks, or arrays on two devices in one operation."""


class GraphError(MinillmError, RuntimeError):
    """A backward that cannot give the right gradient: a graph used twice, moved weights, no gradient asked for."""


class InputError(MinillmError, ValueError):
    """A value that a person gave (a file, a text, an option, a token id) cannot be used."""


class ParallelError(MinillmError, RuntimeError):
    """A rank that failed or is missing, or ranks that disagree about the next step."""


class NoSuchNameError(MinillmError, AttributeError):
    """A name that a tensor or a module does not have; its text is made only when it is read."""

    def __init__(self, name: str, sentence: Callable[[], str]):
        super().__init__(name)
        self.name, self._sentence = name, sentence

    def __str__(self) -> str:
        return self._sentence()


class CheckpointError(MinillmError, ValueError):
    """Saved weights or a run directory that is missing, damaged, or has other shapes."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """The hint at the end of an error: `; did you mean 'batch_size'?`, or all choices if none is similar.

    A name that is a word of several choices, such as softmax of softmax-forward and softmax-backward, may mean each.
    """
    known = list(choices)
    alike = [one for one in known if name in re.split(r"[-_. ]", one)]
    if len(alike) > 1:
        return f"; did you mean one of: {', '.join(alike)}?"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; choose one of: {', '.join(known)}" if known else ""


@functools.cache
def _parse_shape(spec: str) -> tuple[bool, tuple[str, ...]]:
    names = spec.split()
    return (names[:1] == ["..."]), tuple(name for name in names if name != "...")


def check_shapes(function: str, **arrays: tuple[str, Any]) -> dict[str, int]:
    """Bind named dimensions over several arrays, or say which two disagree.

    `check_shapes("layer_norm", x=("... C", x), weight=("C", weight))` returns `{"C": 768}`. A leading `...` stands for
    any number of dimensions, a number for exactly that size. An array that is None is ignored.

    Raises: ShapeError, such as `layer_norm: weight has C=512, but x has C=768`.
    """
    shapes = []
    for name, (spec, array) in arrays.items():
        if array is not None:
            check_array(function, name, array)
            shapes.append((name, spec, array.shape))
    return _bound_shapes(function, tuple(shapes))


@functools.lru_cache(4096)  # a training step repeats the same checks
def _bound_shapes(function: str, shapes: tuple[tuple[str, str, tuple[int, ...]], ...]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    first_with: dict[str, str] = {}
    for argument, spec, shape in shapes:
        any_leading, names = _parse_shape(spec)
        if len(shape) < len(names) or (len(shape) > len(names) and not any_leading):
            raise ShapeError(f"{function}: {argument} has shape {shape}, expected ({', '.join(spec.split())})")
        for name, size in zip(names, shape[len(shape) - len(names) :], strict=True):
            expected = int(name) if name.isdigit() else sizes.setdefault(name, size)
            if size != expected:
                if name.isdigit():
                    raise ShapeError(f"{function}: {argument} has shape {shape}, expected ({', '.join(spec.split())})")
                raise ShapeError(
                    f"{function}: {argument} has {name}={size}, but {first_with[name]} has {name}={expected}"
                )
            first_with.setdefault(name, argument)
    return sizes


def check_floating(function: str, **tensors: Any) -> None:
    """Raise DtypeError for a tensor that does not hold floats; None is ignored."""
    for name, x in tensors.items():
        if x is None:
            continue
        check_array(function, name, x)
        if x.dtype.kind in "iub":
            raise DtypeError(f"{function}: {name} has dtype {x.dtype}; convert it to float32 or float64")


def check_array(function: str, name: str, x: Any) -> None:
    """Raise DtypeError for a value without a shape, such as a number, a list, or sizes given one by one."""
    if not hasattr(x, "shape"):
        raise DtypeError(f"{function}: {name} is {x!r:.60} of type {type(x).__name__}; give a tensor or an array")


def check_whole(function: str, name: str, value: Any) -> int:
    """Convert a size or an axis to a Python int, from an int, a NumPy integer, or a Tensor of one integer.

    Raises: DtypeError for anything else, such as `sum: axis is 1.0; give a whole number`.
    """
    number = value.item() if hasattr(value, "requires_grad") and value.numel() == 1 else value
    if not isinstance(number, bool):  # Python's bool is an int, NumPy's is not
        try:
            return operator.index(number)
        except TypeError:
            pass
    raise DtypeError(f"{function}: {name} is {value!r}; give a whole number")


def check_index(function: str, ids: Any, size: int, what: str) -> None:
    """Raise for an index array that does not hold integers, or has one outside `size` entries of `what`.

    The values of an array on a GPU are not checked, because this would wait for the GPU; the kernels return NaN for
    indices out of range.
    """
    if ids.dtype.kind not in "iu":
        raise DtypeError(f"{function}: {what} must be integers, but the array has dtype {ids.dtype}")
    if not hasattr(ids, "__cuda_array_interface__") and ids.size and (ids.min() < 0 or ids.max() >= size):
        bad = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise InputError(f"{function}: {what} {bad} is out of range; expected 0 to {size - 1}")
