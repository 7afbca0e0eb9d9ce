"""The function under test: its values, its gradients, and its differences."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np

from minillm.autograd import Forward, Op, Parameter, Tensor, no_grad, observe
from minillm.backend import Array
from minillm.errors import DtypeError
from minillm.testing.audit import GradientError, arrays_in, audit, repeats

EPSILON = float(np.finfo(np.float64).eps)
ROUNDING = 32 * EPSILON  # relative, of one output that some tens of operations made
STEPS = (1.0, 0.8, 0.62, 0.5, 0.37)  # steps of a careful difference, in units of the first

Gradients = dict[int, Array | None]


class Skipped(Exception):
    """The function is not defined at a variant of its arguments, so that nothing can be checked there."""


class Subject:
    """A function, its arguments, and a random cotangent; all outputs are handled as one flat vector."""

    def __init__(self, fn: Callable, values: Sequence[Any], rng: np.random.Generator, name: str = ""):
        self.fn = fn
        self.rng = rng
        self.values = list(values)
        self.moved = [i for i, x in enumerate(self.values) if is_float(x)]
        self.dtype = np.result_type(*(self.values[i] for i in self.moved)) if self.moved else np.dtype(np.float64)
        self.name = name or getattr(fn, "__name__", "fn").replace("<lambda>", "fn")
        self.out = self.cotangent = np.zeros(0)
        self.reach = 1.0  # length of a step; less for small arguments, where curves may be sharp
        self.usual: dict[int, float] = {}  # the largest element of each gradient at the given arguments

    @classmethod
    def of(cls, fn: Callable, arrays: Sequence[Any], seed: int) -> Subject:
        """The function at the given arguments, in float64.

        Raises: GradientError where the forward changes an argument, is not finite, or differs from call to call.
        """
        subject = cls(fn, [as_float64(x) for x in arrays], np.random.default_rng(seed))
        if not subject.moved:
            raise DtypeError("check_gradients: none of the arguments is an array of floats; give at least one")
        before = [np.array(x) if isinstance(x, np.ndarray) else None for x in subject.values]
        out = subject.value()
        for position, kept in enumerate(before):
            if kept is not None and not np.array_equal(subject.values[position], kept):
                raise GradientError(f"check_gradients: {subject.describe(position)} was changed by the forward")
        if not np.isfinite(out).all():
            raise GradientError(
                f"check_gradients: {subject.name} returned {out[~np.isfinite(out)][0]}; choose other inputs"
            )
        if not nearly_equal(out, subject.value(), 0):
            raise GradientError(
                f"check_gradients: {subject.name} gave other values when called again with the same arguments; "
                "if it draws random numbers, call minillm.manual_seed inside it"
            )
        subject.out = out
        subject.cotangent = weights(subject.rng, out.shape)
        return subject

    def at(self, values: Sequence[Any]) -> tuple[Subject, Graph]:
        """This function at other arguments, and its graph there; raises Skipped if it is not defined there."""
        other = Subject(self.fn, values, self.rng, self.name)
        try:
            graph = Graph(other, strict=False)
        except GradientError:
            raise
        except Exception as error:
            raise Skipped(type(error).__name__) from error
        other.out = flat([y.data for y in graph.outs]).astype(np.float64)
        if not np.isfinite(other.out).all():
            raise Skipped("not finite")
        other.reach = math.sqrt(min(1.0, max([abs(values[i]).max(initial=0) for i in other.moved]) or 1.0))
        other.usual = self.usual
        same = other.out.shape == self.out.shape
        other.cotangent = self.cotangent if same else weights(self.rng, other.out.shape)
        return other, graph

    def with_cotangent(self, cotangent: Array) -> Subject:
        """This function at these arguments, under another cotangent."""
        other = Subject(self.fn, self.values, self.rng, self.name)
        other.out, other.cotangent, other.reach, other.usual = self.out, cotangent, self.reach, self.usual
        return other

    def rounding(self, step: float, changed: Array | slice = slice(None)) -> float:
        """The possible rounding of a difference of <u, f> over a step, and of a gradient whose terms cancel.

        Outputs that a step does not change add no rounding; `changed` marks the others.
        """
        moved = float(np.linalg.norm((self.cotangent * self.out)[changed]))
        return ROUNDING * moved / step + 4 * EPSILON * float(np.linalg.norm(self.cotangent[changed]))

    def least(self, position: int = -1) -> float:
        """The size below which an element may be mere rounding of larger terms that cancel in the backward."""
        return 64 * EPSILON * float(np.linalg.norm(self.cotangent)) + 1e-9 * self.usual.get(position, 0.0)

    def label(self, position: int) -> str:
        """`argument 1 (weight)`."""
        try:
            kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            names = [p.name for p in inspect.signature(self.fn).parameters.values() if p.kind in kinds]
        except (TypeError, ValueError):  # some callables have no signature
            names = []
        return f"argument {position}" + (f" ({names[position]})" if position < len(names) else "")

    def describe(self, position: int) -> str:
        """`argument 1 (weight) of layer_norm`."""
        return f"{self.label(position)} of {self.name}"

    def call(self, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
        """Call the function; returns the outputs as a tuple of Tensors, which must be float64 if the arguments are."""
        outs = self.fn(*arguments)
        outs = outs if isinstance(outs, tuple) else (outs,)
        if not outs:
            raise DtypeError(f"check_gradients: {self.name} returned nothing; return a Tensor or a tuple of them")
        for out in outs:
            if not isinstance(out, Tensor):
                raise DtypeError(
                    f"check_gradients: {self.name} returned a {type(out).__name__}; return a Tensor or a tuple of them"
                )
            if self.dtype == np.float64 and out.dtype != np.float64:
                raise GradientError(f"check_gradients: {self.name} turned float64 inputs into a {out.dtype} output")
        return outs

    def value(self) -> Array:
        """All outputs as one flat array; a copy, because an output may be a view of an input that is about to move."""
        with no_grad():
            return flat([y.data for y in self.call([Tensor(x) if is_float(x) else x for x in self.values])])

    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the outputs."""
        with no_grad():
            return [y.shape for y in self.call([Tensor(x) if is_float(x) else x for x in self.values])]

    def overflows(self) -> bool:
        """True if a value between two operations is infinite or NaN; then a correct gradient may be too."""
        found: list[Array] = []

        def look(call: Forward) -> None:
            found.extend(out for out in call.outputs if out.dtype.kind == "f" and not np.isfinite(out).all())

        with observe(on_forward=look):
            self.value()
        return bool(found)

    # --- differences -----------------------------------------------------------------------------------------------

    def moved_by(self, directions: dict[int, Array], distance: float) -> Array:
        """All outputs after moving each argument this far along its direction."""
        kept = {i: self.values[i].copy() for i in directions}
        for i, direction in directions.items():
            self.values[i][...] = kept[i] + distance * direction
        try:
            return self.value()
        finally:
            for i, x in kept.items():
                self.values[i][...] = x

    def step(self, directions: dict[int, Array]) -> float:
        """The step for measuring a slope; see testing/__init__.py."""
        return self.reach * difference_step(*(self.values[i][v != 0] for i, v in directions.items()))

    def difference(self, directions: dict[int, Array]) -> tuple[Array, float]:
        """J v by one central difference, and the possible rounding of <u, J v>."""
        step = self.step(directions)
        above, below = self.moved_by(directions, step), self.moved_by(directions, -step)
        return (above - below) / (2 * step), self.rounding(step, above != below)

    def careful_difference(self, directions: dict[int, Array]) -> tuple[Array, float]:
        """J v, and the possible error of <u, J v>: by rounding, by curvature, or by a kink.

        Five steps must agree; and (f(x + h v) - 2 f(x) + f(x - h v)) / h, which is h f'' where f is smooth, must
        vanish with h: at a kink it stays, as the difference of the slopes on both sides.
        """
        best: tuple[Array, float] = (np.zeros_like(self.out), math.inf)
        for step in (self.step(directions), self.step(directions) / 16):
            rows: list[Array] = []
            bends: list[Array] = []
            slopes, noise = [], 0.0
            for part in STEPS:
                h = part * step
                above, below = self.moved_by(directions, h), self.moved_by(directions, -h)
                rows.append((above - below) / (2 * h))
                slopes.append(float(self.cotangent @ rows[-1]))
                bends.append(((above - self.out) + (below - self.out)) / h)
                noise = self.rounding(h, above != below)
            half = STEPS.index(0.5)
            kink = float(abs(self.cotangent * (2 * bends[half] - bends[0])).sum())
            doubt = 4 * (max(slopes) - min(slopes)) + kink + noise
            if kink > 1e-3 * abs(slopes[half]) + 4 * ROUNDING * float(abs(self.cotangent * self.out).sum()) / (h or 1):
                doubt = math.inf
            if doubt < best[1]:
                best = (4 * rows[half] - rows[0]) / 3, doubt
            if best[1] <= 1e-7 * abs(slopes[half]):
                break
        return best

    def one_element(self, position: int, element: int) -> dict[int, Array]:
        """The direction that moves one element (a flat index) of one argument."""
        direction = np.zeros(self.values[position].shape)
        direction.reshape(-1)[element] = 1
        return {position: direction}

    def differences(self, position: int, elements: Array) -> Iterator[tuple[Array, float]]:
        """Rows of J^T, each with its rounding: changes of all outputs with elements (flat indices) of an argument."""
        for element in elements:
            yield self.difference(self.one_element(position, element))


class Graph:
    """A forward whose graph is kept for backwards under any cotangent; every node is audited."""

    def __init__(
        self,
        subject: Subject,
        wanted: Collection[int] | None = None,
        strict: bool = True,
        leaf: Callable = Tensor,
        shared: dict[int, int] | None = None,
    ):
        self.subject = subject
        wanted = subject.moved if wanted is None else wanted
        self.leaves = {i: leaf(subject.values[i]) for i in subject.moved}
        for i, one in self.leaves.items():
            one.requires_grad = i in wanted
        for i, j in (shared or {}).items():  # one tensor as two arguments
            self.leaves[j] = self.leaves[i]
        self.outs = subject.call([self.leaves.get(i, x) for i, x in enumerate(subject.values)])
        self.nodes = audit([y.node for y in self.outs if y.node is not None], strict, subject.dtype == np.float64)
        self.ops = {node.op for node in self.nodes}

    def saved(self) -> list[list[Array]]:
        """The arrays that each forward keeps for its backward."""
        return [arrays_in(node.saved) for node in self.nodes]

    def gradients(
        self,
        cotangent: Array,
        outputs: Collection[int] | None = None,
        arrange: Callable | None = None,
        add: bool = False,
    ) -> Gradients:
        """Run one backward; returns the gradient of each argument. Only the `outputs` (all by default) take part.

        `arrange` may give the cotangents another layout in memory; `add` keeps the existing gradients.
        """
        chosen = range(len(self.outs)) if outputs is None else outputs
        parts = np.split(cotangent, np.cumsum([y.data.size for y in self.outs])[:-1])
        shaped = [u.reshape(y.shape).astype(y.dtype, copy=False) for u, y in zip(parts, self.outs, strict=True)]
        shaped = [arrange(u) for u in shaped] if arrange else shaped
        loss = PROJECT(*(self.outs[k] for k in chosen), cotangents=[shaped[k] for k in chosen])
        for one in self.leaves.values():
            one.grad = one.grad if add else None
        if loss.requires_grad:
            loss.backward(keep_graph=True)
        return {i: one.grad for i, one in self.leaves.items() if one.requires_grad}


def _project_forward(*outs, cotangents):
    """A loss of 0, whose gradient with respect to each output is the cotangent of that output."""
    return np.zeros(()), cotangents  # the value of the loss is not needed


def _project_backward(dout, saved):
    """The cotangent of each output, in its shape."""
    return tuple(saved)


PROJECT = Op(
    "project", _project_forward, _project_backward, aliases=True
)  # <u, y>: a scalar from which to go back to all outputs


class Buffered(Parameter):
    """A leaf as the optimiser keeps it: with memory for its gradient, whose contents mean nothing."""

    __slots__ = ()

    def __init__(self, data: Array):
        super().__init__(data)
        self.grad_buffer = np.full_like(data, np.nan)


# --- small helpers -------------------------------------------------------------------------------------------------


def is_float(x: Any) -> bool:
    """True for an array of floating-point numbers."""
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def as_float64(x: Any) -> Any:
    """A floating array (or Tensor) as a private float64 array with the same strides; other arrays as copies.

    The gaps between the elements of a strided array are NaN, so that an operation that reads them is detected.
    """
    if isinstance(x, Tensor):
        x = x.numpy()
    if isinstance(x, np.floating):
        x = np.asarray(x)
    if not is_float(x):
        return x.copy(order="K") if isinstance(x, np.ndarray) else x
    strides = [stride // x.itemsize for stride in x.strides]
    if repeats(x):
        return np.array(x, np.float64)  # elements that share memory cannot be moved one by one
    if x.size == 0:
        return np.zeros(x.shape)
    ends = [stride * (n - 1) for stride, n in zip(strides, x.shape, strict=True)]
    first, last = sum(min(end, 0) for end in ends), sum(max(end, 0) for end in ends)
    memory = np.full(last - first + 1, np.nan)
    copy: Array = np.ndarray(x.shape, np.float64, memory, offset=-first * 8, strides=[8 * stride for stride in strides])
    copy[...] = x
    return copy


def difference_step(*arrays: Array) -> float:
    """The step of these elements for measuring a slope; see testing/__init__.py."""
    return float(EPSILON * max([1.0, *(abs(x).max(initial=0) for x in arrays)])) ** (1 / 3)


def nearly_equal(a: Array, b: Array, noise: float) -> bool:
    """True if equal up to the last digits, in which a repeated sum may differ."""
    return bool(abs(a - b).max(initial=0) <= 1e-9 * abs(a).max(initial=0) + noise)


def flat(arrays: Sequence[Array]) -> Array:
    """All elements of the arrays in one vector (n,), one array behind the other."""
    return np.concatenate([np.ravel(x) for x in arrays])


def weights(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Random numbers of either sign and of size 0.5 to 1.5: none is so near to zero that it hides an element."""
    return rng.uniform(0.5, 1.5, shape) * rng.choice([-1.0, 1.0], shape)
