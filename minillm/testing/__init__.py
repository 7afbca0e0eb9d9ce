"""Gradient checks test if a backward returns the derivative of its forward.

Let y = f(x), and let u (the cotangent) be the gradient that arrives from above. A backward claims that g = J^T u, with
J the derivative of f. Moving the input a little measures J without any backward:

    J v = (f(x + h v) - f(x - h v)) / 2h + O(h^2)

and two comparisons follow. **Per element**: v is one element at a time, and <u, J v> must be that element of g; this
finds and names every wrong element, at two evaluations of f per element. **By projection**: v is random, and <u, J v>
must be <g, v>; two evaluations cover an array of any size.

The cotangent is random, always. With u = 1, that is with `loss = y.sum()`, whole families of errors are invisible:
the outputs of a softmax sum to 1 and those of a layer norm to the sum of its bias, so their true gradient is zero and
a flipped sign, a doubled gradient and no gradient at all pass.

Everything is computed in float64. Errors are measured as follows:

- Step: the error of a central difference is about h^2 from the curve and e/h from rounding (e = 2.2e-16), smallest at
  h = e^(1/3) = 6e-6, where it is about 1e-10. Where |x| > 1, its rounding e|x| takes the place of e.
- Error: |expected - received| over the largest gradient of the argument. An error relative to each element would
  blow up where the gradient happens to be nearly zero; an absolute one would mean nothing at another scale.
- Rounding is never counted as an error: neither that of a difference, estimated from the size of f, nor that of a
  gradient whose terms cancel, where about 1e-15 is as good as zero.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Tensor
from minillm.backend import Array
from minillm.errors import ShapeError
from minillm.testing import precision, properties
from minillm.testing.audit import GradientError, WrongShape
from minillm.testing.calls import Base, Tried, check_adding, check_repeats, check_state
from minillm.testing.diagnosis import explain_shape
from minillm.testing.measure import DIFFERENCES, SAMPLE, balanced, elements_to_explain, projection_error
from minillm.testing.report import compare_elements
from minillm.testing.subject import Subject, as_float64, difference_step, flat, is_float, weights
from minillm.testing.variants import of_sizes, of_values

__all__ = ["Check", "GradientError", "check_gradients", "hvp", "numeric_gradient"]

ELEMENTS = 2_000  # up to this many inputs, every element is checked
LARGE = 100_000  # up to this many inputs, variants of them are tried


class Check(NamedTuple):
    """The scope of a check that passed."""

    elements: int  # number of elements of all gradients
    error: float  # the largest, relative to the largest gradient of its argument
    variants: tuple[str, ...] = ()  # variants of the arguments at which the gradient is right too
    skipped: tuple[str, ...] = ()  # variants where the function itself is not defined, each with the reason


def check_gradients(fn: Callable, *arrays: Any, tolerance: float = 1e-6, seed: int = 0, variants: bool = True) -> Check:
    """Compare the gradients of `fn` with differences of its values, for a random cotangent in float64.

    `fn` takes one Tensor for each floating array (in float64, with the array's strides) and every other argument as
    it is, and returns a Tensor or a tuple of Tensors. It must give the same values whenever it is called: one that
    draws dropout masks calls `minillm.manual_seed` first. Keep inputs away from kinks, such as relu at 0.

    Also checked, for every operation that `fn` runs: shape and dtype of each gradient, no missing or non-finite
    gradient, no backward that writes into `dout` or into what the forward saved, no memory shared against the rules
    of `Op`, and no input changed; further calls change nothing, and an existing gradient is added to.
    And, unless `variants` is False:

    - the gradient is linear in the cotangent: three times, tiny, huge, with zeros, one output alone
    - it does not depend on the layout of arguments and cotangent: transposed, strided, backwards, stretched (0 strides)
    - nor on the choice of arguments that need a gradient, or that are the same tensor
    - it is right at other values (negated, larger, smaller, whole, with zeros, reversed; ids repeated) and other sizes
      (1, 0, one less, beyond blocks of 64 and 256); a kink counts as right; where `fn` itself fails is skipped
    - it varies as smoothly as float64 allows; and in float32 it is equal, of dtype float32, without overflow

    Raises: GradientError with the function, the argument, the index of the worst element, what was expected and
    received, the variant that showed it, and the likely cause if one is certain.
    """
    subject = Subject.of(fn, arrays, seed)
    tried = Tried([], [])
    try:
        base = check_repeats(subject)
        worst = _check_given(subject, base, tolerance)
        check_adding(base)
        if variants and subject.cotangent.size and any(g is not None for g in base.gradients.values()):
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                _check_variants(base, tolerance, tried)
    except WrongShape as error:
        raise explain_shape(subject, error) from error
    return Check(sum(subject.values[i].size for i in subject.moved), worst, tuple(tried.checked), tuple(tried.skipped))


def _check_given(subject: Subject, base: Base, tolerance: float) -> float:
    """Check at the given arguments: every element if there are not too many, and random directions through all."""
    small = sum(subject.values[i].size for i in subject.moved) <= ELEMENTS
    worst = 0.0
    for position, gradient in base.gradients.items():
        x = subject.values[position]
        received = np.zeros(x.shape) if gradient is None else gradient
        if small and x.size * subject.cotangent.size <= DIFFERENCES:
            worst = max(worst, compare_elements(subject, position, gradient, np.arange(x.size), tolerance))
        for direction in (weights(subject.rng, x.shape), balanced(subject, {position: received}).get(position)):
            if direction is None:
                continue
            look = {position: received}, {position: direction}, tolerance
            error = projection_error(subject, *look)
            if not error <= tolerance:
                error = projection_error(subject, *look, careful=True)
            if not error <= tolerance:
                elements = elements_to_explain(subject, position, received, tolerance, SAMPLE)
                compare_elements(subject, position, gradient, elements, tolerance)
                raise GradientError(
                    f"check_gradients: the gradient of {subject.describe(position)} is wrong by {error:.1e} of its "
                    "size along a random direction, but no wrong element was found; check that fn is smooth here"
                )
            worst = max(worst, error)
    return worst


def _check_variants(base: Base, tolerance: float, tried: Tried) -> None:
    """Check the gradient again at other cotangents, layouts, values, sizes and dtypes."""
    precision.check_smoothness(base)
    properties.check_cotangents(base, tried)
    properties.check_layouts(base, tolerance, tried)
    properties.check_arguments(base)
    if sum(base.subject.values[i].size for i in base.subject.moved) <= LARGE:
        properties.check_variants(base, of_values(base.subject), tolerance, tried)
        properties.check_variants(base, of_sizes(base.subject), tolerance, tried)
    else:
        tried.skipped.append(f"other values and sizes: more than {LARGE} elements")
    precision.check_float32(base, tried)
    check_state(base)


def numeric_gradient(fn: Callable, arrays: Sequence[Any], cotangent: Any) -> list[Array | None]:
    """J^T u by central differences, one evaluation of `fn` on each side of every element: slow, and hard to get wrong.

    `cotangent` has the shape of what `fn` returns (a tuple of arrays for a tuple). None stands for an argument that
    is not a floating array.
    """
    subject = Subject.of(fn, arrays, seed=0)
    parts = cotangent if isinstance(cotangent, tuple) else (cotangent,)
    u = flat([np.asarray(part, np.float64) for part in parts])
    if u.shape != subject.cotangent.shape:
        raise ShapeError(
            f"numeric_gradient: cotangent has {u.size} elements, but fn returns {subject.cotangent.size}; "
            "give one array of the shape of each output"
        )
    return [
        np.array([u @ row for row, _ in subject.differences(i, np.arange(x.size))]).reshape(x.shape)
        if is_float(x)
        else None
        for i, x in enumerate(subject.values)
    ]


def hvp(fn: Callable, arrays: Sequence[Any], vectors: Sequence[Any]) -> list[Array | None]:
    """H v, the Hessian of a scalar function times a vector, by a central difference of gradients in float64.

    H v = (g(x + h v) - g(x - h v)) / 2h, accurate to about 1e-9: the engine's gradients are first-order by design.
    `vectors` holds one array for each of `arrays`, of its shape (anything for arguments that are not floating arrays,
    whose result is None).

    Raises: ShapeError if fn does not return a single number, or a vector has another shape than its array.
    """
    values = [as_float64(x) for x in arrays]
    moved = [i for i, x in enumerate(values) if is_float(x)]
    directions = {i: np.asarray(vectors[i], np.float64) for i in moved}
    for i, v in directions.items():
        if v.shape != values[i].shape:
            raise ShapeError(f"hvp: vector {i} has shape {v.shape}, but its array has shape {values[i].shape}")
    largest = max((float(abs(v).max(initial=0)) for v in directions.values()), default=0.0)
    step = difference_step(*(values[i] for i in moved)) / (largest or 1.0)

    def gradients(sign: int) -> dict[int, Array]:
        leaves = {i: Tensor(values[i] + sign * step * directions[i], requires_grad=True) for i in moved}
        out = fn(*[leaves.get(i, x) for i, x in enumerate(values)])
        if not isinstance(out, Tensor) or out.numel() != 1:
            raise ShapeError(f"hvp: fn returned {out!r}; a Hessian needs a function that returns one number")
        out.backward()
        return {i: np.zeros(leaf.shape) if leaf.grad is None else leaf.grad for i, leaf in leaves.items()}

    above, below = gradients(+1), gradients(-1)
    return [(above[i] - below[i]) / (2 * step) if i in directions else None for i in range(len(values))]
