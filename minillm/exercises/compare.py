"""Compare two results, and say in words where they differ."""

from __future__ import annotations

from typing import Any

import numpy as np

SMALL = 8  # arrays with up to so many elements are shown whole
FLOAT32 = 1e-5  # the tolerance of results in float32, at least


def as_numbers(value: Any) -> np.ndarray | None:
    """The value as an array if it is one, or a number; None for anything else, such as a list of pairs."""
    if isinstance(value, (np.ndarray, np.generic, int, float)) and not isinstance(value, bool):
        array = np.asarray(value)
        return array if array.dtype.kind in "biuf" else None
    return None


def same(a: Any, b: Any, tolerance: float) -> bool:
    """True if two results are equal: in shape, in the dtype of floats, and in numbers up to the tolerance."""
    x, y = as_numbers(a), as_numbers(b)
    if x is None or y is None:
        return x is None and y is None and same_objects(a, b, tolerance)
    if x.shape != y.shape or (x.dtype.kind == y.dtype.kind == "f" and x.dtype != y.dtype):
        return False
    return not wrong_elements(x, y, tolerance).any()


def same_objects(a: Any, b: Any, tolerance: float) -> bool:
    """True if two things that are no arrays are equal; lists, tuples and dictionaries may hold arrays."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key], tolerance) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and bool(a == b)


def wrong_elements(observed: np.ndarray, expected: np.ndarray, tolerance: float) -> np.ndarray:
    """A mask of the elements that differ; a NaN equals a NaN, and the tolerance is relative to the largest number."""
    if expected.dtype == np.float32 and tolerance:
        tolerance = max(tolerance, FLOAT32)
    a, b = (array.astype(np.float64) for array in (observed, expected))
    finite = np.isfinite(a) & np.isfinite(b)
    scale = np.abs(b[np.isfinite(b)]).max(initial=0)
    with np.errstate(invalid="ignore"):
        near = finite & (np.abs(a - b) <= tolerance * scale)
    return ~(near | (a == b) | (np.isnan(a) & np.isnan(b)))


def difference(name: str, observed: Any, expected: Any, tolerance: float) -> str:
    """Say how a result differs from the right one, with the index of the largest difference."""
    x, y = as_numbers(observed), as_numbers(expected)
    if y is None or x is None:
        return object_difference(name, observed, expected, tolerance)
    if x.shape != y.shape:
        return f"{name} has shape {x.shape}, but {y.shape} is right"
    wrong = wrong_elements(x, y, tolerance)
    if x.dtype != y.dtype and not wrong_elements(x, y, FLOAT32).any():
        return f"{name} is {x.dtype}, but {y.dtype} is right: the numbers that came in are {y.dtype}"
    with np.errstate(invalid="ignore"):
        size = np.where(wrong, np.nan_to_num(np.abs(x.astype(np.float64) - y), nan=np.inf), -1)
    index = tuple(int(i) for i in np.unravel_index(int(size.argmax()), x.shape))
    place = f"{name}[{', '.join(map(str, index))}]" if index else name
    count = f"; {wrong.sum()} of {wrong.size} elements are wrong" if wrong.size > 1 else ""
    one, other = (str(number) if number.dtype == bool else f"{number:.6g}" for number in (x[index], y[index]))
    if one == other:
        one, other = (f"{number:.17g}" for number in (x[index], y[index]))
    return f"{place} is {one}, but {other} is right{count}"


def object_difference(name: str, observed: Any, expected: Any, tolerance: float) -> str:
    """`difference` for results that are no arrays."""
    if isinstance(expected, (list, tuple)) and isinstance(observed, (list, tuple)):
        for i, (x, y) in enumerate(zip(observed, expected, strict=False)):
            if not same(x, y, tolerance):
                return difference(f"{name}[{i}]", x, y, tolerance)
        if len(observed) != len(expected):
            return f"{name} has {len(observed)} elements, but {len(expected)} are right"
    right = f"an array of shape {expected.shape}" if isinstance(expected, np.ndarray) else shown(expected)
    kind = f", a {type(observed).__name__}" if isinstance(expected, np.ndarray) and observed is not None else ""
    return f"{name} is {shown(observed)}{kind}, but {right} is right"


def described(inputs: dict[str, Any]) -> str:
    """The inputs of a case in a line: numbers and small arrays as they are, other arrays by their shape."""
    return ", ".join(f"{name} {shown(value)}" for name, value in inputs.items())


def shown(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, np.ndarray):
        if value.size > SMALL or value.ndim > 1:
            return f"{value.shape}" + f" {value.dtype}" * (value.dtype != np.float64)
        return np.array2string(value, precision=3, separator=", ", floatmode="maxprec")
    if isinstance(value, list) and any(isinstance(part, (np.ndarray, list)) for part in value):
        return f"[{', '.join(map(shown, value))}]"
    if callable(value):
        return getattr(value, "__name__", "a function")
    return repr(value) if len(repr(value)) <= 120 else f"of type {type(value).__name__}"
