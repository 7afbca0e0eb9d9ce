"""Gradient checks: does a backward return the derivative of its forward?

Let y = f(x), and let u (the cotangent) be the gradient that arrives from above. A backward claims that g = J^T u, with
J the derivative of f. Moving the input a little measures J without any backward:

    J v = (f(x + h v) - f(x - h v)) / 2h + O(h^2)

and two comparisons follow. **Per element**: v is one element at a time, and <u, J v> must be that element of g; this
finds and names every wrong number, at two evaluations of f per element. **By projection**: v is random, and <u, J v>
must be <g, v>; two evaluations cover an array of any size.

The cotangent is random, always. With u = 1, that is with `loss = y.sum()`, whole families of errors are invisible:
the outputs of a softmax sum to 1 and those of a layer norm to the sum of its bias, so their true gradient is zero and
a flipped sign, a doubled gradient and no gradient at all pass.

All is computed in float64. What is compared with what:

- Step: the error of a central difference is about h^2 from the curve and e/h from rounding (e = 2.2e-16), smallest at
  h = e^(1/3) = 6e-6, where it is about 1e-10. Where |x| > 1 its own rounding, e|x|, takes the place of e.
- Error: |expected - received| over the largest gradient of the argument. An error relative to each element would
  blow up where the gradient happens to be nearly zero; an absolute one would mean nothing at another scale.
- What rounding alone could do is never counted as an error: to a difference, from the size of f; and to a gradient
  whose terms cancel, which makes one of about 1e-15 as good as zero.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Node, Op, Tensor, no_grad
from minillm.backend import Array
from minillm.errors import DtypeError, MinillmError, ShapeError

EPSILON = float(np.finfo(np.float64).eps)
ROUNDING = 32 * EPSILON  # of one output, relative: some tens of operations made it
ELEMENTS = 2_000  # inputs, up to which every element is checked
DIFFERENCES = 4_000_000  # numbers in the measured J that are held at once
SAMPLE = 200  # elements that are measured to explain a failure in a large array


class GradientError(MinillmError, AssertionError):
    """A backward that is not the derivative of its forward, or breaks a rule of the engine; the text is a report."""


class Check(NamedTuple):
    """What a check that passed has looked at."""

    elements: int  # of all gradients
    error: float  # the worst, relative to the largest gradient of its argument


def check_gradients(fn: Callable, *arrays: Any, tolerance: float = 1e-6, seed: int = 0) -> Check:
    """Compare the gradients that `fn` returns with differences of its values, for a random cotangent in float64.

    `fn` takes one Tensor for each floating array (in float64, with the array's strides) and every other argument as
    it is, and returns a Tensor or a tuple of Tensors. It must give the same values whenever it is called: one that
    draws dropout masks calls `minillm.manual_seed` first. Keep inputs away from kinks, such as relu at 0.

    Also checked, for every operation that `fn` runs: shape and dtype of each gradient, no missing or non-finite
    gradient, no backward that writes into `dout` or into what the forward saved, no memory shared against the rules
    of `Op`, and no input changed.

    Raises: GradientError with the function, the argument, the index of the worst element, what was expected and
    received, and the likely cause.
    """
    check = _Subject(fn, arrays, seed)
    gradients = check.gradients()
    small = sum(x.size for x in check.floats) <= ELEMENTS
    worst = 0.0
    for position, gradient in gradients.items():
        x = check.values[position]
        received = np.zeros(x.shape) if gradient is None else gradient
        if small and x.size * check.cotangent.size <= DIFFERENCES:
            worst = max(worst, _compare_elements(check, position, gradient, np.arange(x.size), tolerance))
        for _ in range(2):
            error = _projection_error(check, position, received, _weights(check.rng, x.shape), tolerance)
            if not error <= tolerance:
                elements = _elements_to_explain(check, position, received, tolerance)
                _compare_elements(check, position, gradient, elements, tolerance)
                raise GradientError(
                    f"check_gradients: the gradient of {check.describe(position)} is wrong by {error:.1e} of its size "
                    "along a random direction, but no element was found to be; is the function smooth here?"
                )
            worst = max(worst, error)
    return Check(sum(x.size for x in check.floats), worst)


def numeric_gradient(fn: Callable, arrays: Sequence[Any], cotangent: Any) -> list[Array | None]:
    """J^T u by central differences, one evaluation of `fn` on each side of every element: slow, and hard to get wrong.

    `cotangent` has the shape of what `fn` returns (a tuple of arrays for a tuple). None stands for an argument that
    is no floating array.
    """
    subject = _Subject(fn, arrays, seed=0)
    parts = cotangent if isinstance(cotangent, tuple) else (cotangent,)
    u = _flat([np.asarray(part, np.float64) for part in parts])
    if u.shape != subject.cotangent.shape:
        raise ShapeError(
            f"numeric_gradient: cotangent has {u.size} elements, but fn returns {subject.cotangent.size}; "
            "give one array of the shape of each output"
        )
    return [
        np.array([u @ row for row in subject.differences(i, np.arange(x.size))]).reshape(x.shape)
        if _is_float(x)
        else None
        for i, x in enumerate(subject.values)
    ]


def hvp(fn: Callable, arrays: Sequence[Any], vectors: Sequence[Any]) -> list[Array | None]:
    """H v, the Hessian of a scalar function times a vector, by a central difference of gradients in float64.

    H v = (g(x + h v) - g(x - h v)) / 2h, accurate to about 1e-9: the engine's gradients are of first order by design.
    `vectors` holds one array for each of `arrays`, of its shape (anything for arguments that are no floating arrays,
    whose result is None).

    Raises: ShapeError where fn returns no single number, or a vector has another shape than its array.
    """
    values = [_as_float64(x) for x in arrays]
    moved = [i for i, x in enumerate(values) if _is_float(x)]
    directions = {i: np.asarray(vectors[i], np.float64) for i in moved}
    for i, v in directions.items():
        if v.shape != values[i].shape:
            raise ShapeError(f"hvp: vector {i} has shape {v.shape}, but its array has shape {values[i].shape}")
    largest = max((float(abs(v).max(initial=0)) for v in directions.values()), default=0.0)
    step = _step(*(values[i] for i in moved)) / (largest or 1.0)

    def gradients(sign: int) -> dict[int, Array]:
        leaves = {i: Tensor(values[i] + sign * step * directions[i], requires_grad=True) for i in moved}
        out = fn(*[leaves.get(i, x) for i, x in enumerate(values)])
        if not isinstance(out, Tensor) or out.numel() != 1:
            raise ShapeError(f"hvp: fn returned {out!r}; a Hessian needs a function that returns one number")
        out.backward()
        return {i: np.zeros(leaf.shape) if leaf.grad is None else leaf.grad for i, leaf in leaves.items()}

    above, below = gradients(+1), gradients(-1)
    return [(above[i] - below[i]) / (2 * step) if i in directions else None for i in range(len(values))]


# --- the function under test ---------------------------------------------------------------------------------------


class _Subject:
    """A function, its arguments, and a random cotangent; all outputs are handled as one flat vector."""

    def __init__(self, fn: Callable, arrays: Sequence[Any], seed: int):
        self.fn = fn
        self.rng = np.random.default_rng(seed)
        self.values = [_as_float64(x) for x in arrays]
        self.floats = [x for x in self.values if _is_float(x)]
        if not self.floats:
            raise DtypeError("check_gradients: none of the arguments is an array of floats; give at least one")
        self.name = getattr(fn, "__name__", "fn").replace("<lambda>", "fn")
        before = {i: x.copy() for i, x in enumerate(self.values) if isinstance(x, np.ndarray)}
        out = self.value()
        for position, kept in before.items():
            if not np.array_equal(self.values[position], kept):
                raise GradientError(f"check_gradients: {self.describe(position)} was changed by the forward")
        if not np.isfinite(out).all():
            raise GradientError(
                f"check_gradients: {self.name} returned {out[~np.isfinite(out)][0]}; choose other inputs"
            )
        if not _nearly_equal(out, self.value(), 0):
            raise GradientError(
                f"check_gradients: {self.name} gave other values when called again with the same arguments; "
                "if it draws random numbers, call minillm.manual_seed inside it"
            )
        self.cotangent = _weights(self.rng, out.shape)
        self.size = float(np.linalg.norm(self.cotangent * out))

    def rounding(self, step: float) -> float:
        """What rounding alone may do: to a difference of <u, f> over a step, and to a gradient that sums to nothing."""
        return ROUNDING * self.size / step + 4 * EPSILON * float(np.linalg.norm(self.cotangent))

    def describe(self, position: int) -> str:
        """`argument 1 (weight) of layer_norm`."""
        try:
            kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            names = [p.name for p in inspect.signature(self.fn).parameters.values() if p.kind in kinds]
        except (TypeError, ValueError):  # some callables have no signature
            names = []
        name = f" ({names[position]})" if position < len(names) else ""
        return f"argument {position}{name} of {self.name}"

    def call(self, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
        """The outputs as a tuple of float64 Tensors."""
        outs = self.fn(*arguments)
        outs = outs if isinstance(outs, tuple) else (outs,)
        for out in outs:
            if not isinstance(out, Tensor):
                raise DtypeError(
                    f"check_gradients: {self.name} returned a {type(out).__name__}; return a Tensor or a tuple of them"
                )
            if out.dtype != np.float64:
                raise GradientError(f"check_gradients: {self.name} turned float64 inputs into a {out.dtype} output")
        return outs

    def value(self) -> Array:
        """All outputs, flat; a copy, because an output may be a view of an input that is about to move."""
        with no_grad():
            return _flat([y.data for y in self.call([Tensor(x) if _is_float(x) else x for x in self.values])])

    def differences(self, position: int, elements: Array) -> Iterator[Array]:
        """Rows of J^T: how all outputs change with each of the elements (flat indices) of one argument."""
        x = self.values[position]
        direction = np.zeros(x.shape)
        for index in zip(*np.unravel_index(elements, x.shape), strict=True) if x.ndim else [()]:
            direction[index] = 1
            yield self.difference(position, direction)[0]
            direction[index] = 0

    def difference(self, position: int, direction: Array) -> tuple[Array, float]:
        """J v for a direction in one argument, and the step that measured it."""
        x = self.values[position]
        kept = x.copy()
        step = _step(x[direction != 0])
        x[...] = kept + step * direction
        above = self.value()
        x[...] = kept - step * direction
        below = self.value()
        x[...] = kept
        return (above - below) / (2 * step), step

    def gradients(self) -> dict[int, Array | None]:
        """What the backward returns for each floating argument, by position; every node on the way is audited."""
        leaves = {i: Tensor(x, requires_grad=True) for i, x in enumerate(self.values) if _is_float(x)}
        outs = self.call([leaves.get(i, x) for i, x in enumerate(self.values)])
        if self.name == "fn" and outs[0].node is not None:
            self.name = f"fn (ending in {outs[0].node.op.name})"
        loss = PROJECT(*outs, cotangent=self.cotangent)
        if not loss.requires_grad:
            return dict.fromkeys(leaves)
        _audit(loss.node)
        before = [np.array(x) for x in self.values]
        loss.backward(keep_graph=True)
        first = {i: leaf.grad for i, leaf in leaves.items()}
        for leaf in leaves.values():
            leaf.grad = None
        loss.backward()
        for i, leaf in leaves.items():
            again, x = leaf.grad, self.values[i]
            if not np.array_equal(x, before[i]):
                raise GradientError(f"check_gradients: {self.describe(i)} was changed by the backward")
            if again is None:
                continue
            if not _nearly_equal(again, first[i], self.rounding(step=1)):
                raise GradientError(
                    f"check_gradients: a second backward through the same graph gave {self.describe(i)} another "
                    "gradient; a backward writes into what its forward saved"
                )
            for other, array in [(i, x), *((j, one.grad) for j, one in leaves.items() if j != i)]:
                if array is not None and np.shares_memory(again, array):
                    raise GradientError(
                        f"check_gradients: the gradient of {self.describe(i)} shares memory with "
                        + ("the argument itself" if other == i else f"the gradient of {self.describe(other)}")
                    )
        return first


def _project_forward(*outs, cotangent):
    parts = np.split(cotangent, np.cumsum([y.size for y in outs])[:-1])
    parts = [u.reshape(y.shape) for u, y in zip(parts, outs, strict=True)]
    return np.sum([np.vdot(u, y) for u, y in zip(parts, outs, strict=True)]), parts


def _project_backward(dout, saved):
    return tuple(dout * u for u in saved)


PROJECT = Op("project", _project_forward, _project_backward)  # <u, y> over all outputs: one number to go back from


def _is_float(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def _as_float64(x: Any) -> Any:
    """A floating array (or Tensor) as a private float64 array with the same strides; anything else as it is.

    What lies between the elements of a strided array is NaN, so that an operation that reads it is found out.
    """
    if isinstance(x, (Tensor, np.floating)):
        x = np.asarray(x)
    if not _is_float(x):
        return x
    strides = [stride // x.itemsize for stride in x.strides]
    if _repeats(x):
        return np.array(x, np.float64)  # elements that share memory cannot be moved one by one
    if x.size == 0:
        return np.zeros(x.shape)
    ends = [stride * (n - 1) for stride, n in zip(strides, x.shape, strict=True)]
    first, last = sum(min(end, 0) for end in ends), sum(max(end, 0) for end in ends)
    memory = np.full(last - first + 1, np.nan)
    copy: Array = np.ndarray(x.shape, np.float64, memory, offset=-first * 8, strides=[8 * stride for stride in strides])
    copy[...] = x
    return copy


def _step(*arrays: Array) -> float:
    """How far to move these elements to measure a slope; see the top of the file."""
    return float(EPSILON * max([1.0, *(abs(x).max(initial=0) for x in arrays)])) ** (1 / 3)


def _nearly_equal(a: Array, b: Array, noise: float) -> bool:
    """Equal but for the last digits, which the same sum may round otherwise the next time."""
    return bool(abs(a - b).max(initial=0) <= 1e-9 * abs(a).max(initial=0) + noise)


def _flat(arrays: Sequence[Array]) -> Array:
    return np.concatenate([np.ravel(x) for x in arrays])


def _repeats(x: Array) -> bool:
    """Whether elements share memory, as those of a broadcast array do."""
    return any(stride == 0 and n > 1 for stride, n in zip(x.strides, x.shape, strict=True))


def _weights(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Random numbers of either sign and of size 0.5 to 1.5: none so near to zero that it hides an element."""
    return rng.uniform(0.5, 1.5, shape) * rng.choice([-1.0, 1.0], shape)


# --- the audit of each backward ------------------------------------------------------------------------------------


def _audit(root: Node) -> None:
    """Wrap the backward of every node below the root, so that it is watched when it runs."""
    seen, stack = {root}, [root]
    while stack:
        for edge in stack.pop().edges or ():
            if edge is not None and isinstance(edge[0], Node) and edge[0] not in seen:
                node = edge[0]
                wanted = [edge is not None for edge in node.edges or ()]
                node.backward = functools.partial(_audited, node.op, wanted, node.input_shapes, node.backward)
                seen.add(node)
                stack.append(node)


def _audited(op: Op, wanted: list[bool], shapes: tuple, backward: Callable, dout: Any, saved: Any, *into: Any) -> tuple:
    """Run a backward with a read-only dout, and look at what it returns."""
    several = isinstance(dout, tuple)
    douts = [None if one is None else np.asarray(one).view() for one in (dout if several else (dout,))]
    for one in douts:
        if one is not None:
            one.flags.writeable = False
    try:
        gradients = backward(tuple(douts) if several else douts[0], saved, *into)
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        raise GradientError(
            f"backward of {op.name}: writes into dout, which other operations may still need; use a new array"
        ) from error
    if len(gradients) != len(wanted):
        return gradients  # the engine says what is wrong
    asked = {i: gradient for i, gradient in enumerate(gradients) if wanted[i]}
    for i, gradient in asked.items():
        what = f"backward of {op.name}: the gradient of input {i}"
        if gradient is None:
            raise GradientError(f"{what} is None, but the input needs one")
        if gradient.shape != shapes[i]:
            raise GradientError(
                f"{what} has shape {gradient.shape}, but the input has shape {shapes[i]}"
                + (
                    "; the likely cause is a missing sum over the broadcast axes"
                    if _stretches(shapes[i], gradient)
                    else ""
                )
            )
        if gradient.dtype != np.float64:
            raise GradientError(f"{what} is {gradient.dtype}, but the input is float64")
        if not np.isfinite(gradient).all() and all(one is None or np.isfinite(one).all() for one in douts):
            index = tuple(np.argwhere(~np.isfinite(gradient))[0].tolist())
            raise GradientError(f"{what} is {gradient[index]} at index {index}, from a finite dout")
        if op.aliases:
            continue
        if gradient.size and _repeats(gradient):
            raise GradientError(f"{what} repeats elements in memory; copy it, or declare the Op with aliases=True")
        others = [("dout", one) for one in douts if one is not None]
        others += [("what the forward saved", array) for array in _arrays_in(saved)]
        others += [(f"the gradient of input {j}", other) for j, other in asked.items() if j != i]
        for name, other in others:
            if np.shares_memory(gradient, other):
                raise GradientError(f"{what} shares memory with {name}; copy it, or declare the Op with aliases=True")
    return gradients


def _arrays_in(saved: Any) -> list[Array]:
    """The arrays in nested tuples and lists."""
    if isinstance(saved, np.ndarray):
        return [saved]
    return [array for item in saved for array in _arrays_in(item)] if isinstance(saved, (tuple, list)) else []


def _stretches(shape: tuple[int, ...], gradient: Array) -> bool:
    try:
        return np.broadcast_shapes(shape, gradient.shape) == gradient.shape
    except ValueError:
        return False


# --- comparisons ---------------------------------------------------------------------------------------------------


def _relative(difference: float, size: float, noise: float, tolerance: float) -> float:
    """An error over the size of what is compared; one that rounding explains comes out below the tolerance."""
    return difference / max(size, noise / tolerance, 1e-300)


def _projection_error(check: _Subject, position: int, gradient: Array, direction: Array, tolerance: float) -> float:
    """How far <u, J v> is from <g, v>, relative to the length of the part of g that v looks at."""
    change, step = check.difference(position, direction)
    expected, received = float(check.cotangent @ change), float(np.vdot(gradient, direction))
    size = max(abs(expected), float(np.linalg.norm(gradient[direction != 0])))
    return _relative(abs(expected - received), size, check.rounding(step), tolerance)


def _elements_to_explain(check: _Subject, position: int, gradient: Array, tolerance: float) -> Array:
    """Flat indices of elements to measure after a projection failed: one that is wrong, and a sample.

    The wrong one is found by halving: of two halves of the elements, at least one disagrees with its projection.
    """
    suspects = np.arange(gradient.size)
    while len(suspects) > 1:
        half = suspects[: len(suspects) // 2]
        direction = np.zeros(gradient.size)
        direction[half] = _weights(check.rng, half.shape)
        error = _projection_error(check, position, gradient, direction.reshape(gradient.shape), tolerance)
        suspects = half if not error <= tolerance else suspects[len(half) :]
    count = min(gradient.size, SAMPLE, max(1, DIFFERENCES // check.cotangent.size))
    return np.union1d(suspects, check.rng.choice(gradient.size, count, replace=False))


def _compare_elements(
    check: _Subject, position: int, gradient: Array | None, elements: Array, tolerance: float
) -> float:
    """The worst error among some elements of one gradient; raises GradientError if it is above the tolerance."""
    if not elements.size:
        return 0.0
    jacobian = np.array(list(check.differences(position, elements)))  # (elements, outputs)
    expected = jacobian @ check.cotangent
    received = np.zeros(len(elements)) if gradient is None else gradient.reshape(-1)[elements]
    distance = abs(expected - received)
    size = float(max(abs(expected).max(), abs(received).max()))
    error = _relative(float(distance.max()), size, check.rounding(_step()), tolerance)
    if error <= tolerance:
        return error
    worst = int(np.argmax(distance))
    shape = check.values[position].shape
    index = tuple(int(i) for i in np.unravel_index(elements[worst], shape)) if shape else ()
    wrong = int(np.count_nonzero(distance > tolerance * size))
    raise GradientError(
        f"check_gradients: the gradient of {check.describe(position)} is wrong\n"
        f"  worst at index {index} of shape {shape}\n"
        f"  expected  {expected[worst]: .10g}  (central differences)\n"
        f"  received  {received[worst]: .10g}  (backward)\n"
        f"  {wrong} of {elements.size} elements are off by up to {error:.1e} of the largest (allowed {tolerance:.0e})\n"
        f"  likely cause: {_likely_cause(check, gradient, elements, expected, jacobian)}"
    )


def _likely_cause(check: _Subject, gradient: Array | None, elements: Array, expected: Array, jacobian: Array) -> str:
    """Try simple explanations in turn: what would the right gradient have to suffer to become the one received?"""
    if gradient is None:
        return "no gradient reached the argument (None): is it detached, or used under no_grad?"
    received = gradient.reshape(-1)[elements]

    def alike(a: Array, b: Array) -> bool:
        return bool(abs(a - b).max() <= 1e-5 * max(abs(a).max(), abs(b).max()))

    if not received.any():
        return "the backward returns zeros"
    if alike(received, expected):
        return "right to five digits: some of it is computed in float32, or the function bends too sharply to measure"
    if not expected.any() or abs(expected).max() < 1e-9 * abs(received).max():
        return "the function does not depend on the argument, yet gets a gradient"
    if alike(received, -expected):
        return "the sign is flipped"
    for i, j in itertools.combinations(range(gradient.ndim), 2):
        swapped = np.swapaxes(gradient, i, j).reshape(-1)[elements]
        if alike(swapped, expected):
            return f"axes {i} and {j} are transposed"
    missing = _missing_sum(check, received, jacobian, alike)
    if missing:
        return missing
    factor = float(received @ expected / (expected @ expected))
    ratio = Fraction(factor).limit_denominator(1000)
    simple = math.isclose(ratio, factor, rel_tol=1e-6) and ratio != 0
    if alike(received, factor * expected) and (simple or len(elements) > 1):
        shown = f" = {ratio}" if simple and ratio.denominator > 1 else ""
        return f"off by the constant factor {factor:.6g}{shown}"
    offset = received - expected
    if len(elements) > 1 and alike(offset, np.full_like(offset, offset.mean())):
        return f"the constant {offset.mean():.6g} is added to every element"
    right = abs(offset) <= 1e-5 * abs(expected).max()
    if right.any() and not received[~right].any():
        return "elements are left at zero: a term is dropped, or nothing was written there"
    if len(elements) == gradient.size and alike(np.sort(received), np.sort(expected)):
        return "the right values in the wrong order"
    return "no simple cause"


def _missing_sum(check: _Subject, received: Array, jacobian: Array, alike: Callable) -> str | None:
    """Does the gradient count only the first or last slice of the outputs along some axes?"""
    start = 0
    with no_grad():
        shapes = [y.shape for y in check.call([Tensor(x) if _is_float(x) else x for x in check.values])]
    for shape in shapes:
        stop = start + math.prod(shape)
        axes = [axis for axis, n in enumerate(shape) if n > 1]
        chosen = (some for count in range(1, len(axes) + 1) for some in itertools.combinations(axes, count))
        for some, which in itertools.product(chosen, (0, -1)):
            slices = tuple(which if axis in some else slice(None) for axis in range(len(shape)))
            kept = np.zeros(shape)
            kept[slices] = 1
            cotangent = check.cotangent.copy()
            cotangent[start:stop] *= kept.reshape(-1)
            if alike(received, jacobian @ cotangent):
                axis = f"axis {some[0]}" if len(some) == 1 else f"axes {some}"
                end = "first" if which == 0 else "last"
                return f"a missing sum over {axis} of the output (broadcast): only the {end} slice is counted"
        start = stop
    return None
