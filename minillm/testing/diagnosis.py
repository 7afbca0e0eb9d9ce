"""Find simple causes of a wrong gradient, and report one only if it is certain.

A cause is a change that turns the right gradient into the received one. It counts if it leaves no more than a hundredth
of the error unexplained, and if it holds again in two further draws: under another cotangent, and with all arguments
moved a little. A coincidence in one draw (a factor that is the size of the cotangent, values that happen to be those of
another order) does not hold in three.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from minillm.backend import Array
from minillm.testing.audit import GradientError, WrongShape
from minillm.testing.measure import Measured, measure
from minillm.testing.subject import Graph, Skipped, Subject, weights
from minillm.testing.where import where_wrong

MOVED = 32  # number of elements that are measured again after the arguments moved
NO_CAUSE = "no simple cause"


class Draw(NamedTuple):
    """A gradient at one place under one cotangent, with differences for some of its elements."""

    subject: Subject
    position: int
    gradient: Array  # the whole gradient
    gradients: dict  # the gradient of every argument
    elements: Array  # flat indices of the measured elements
    jacobian: Array
    expected: Array
    received: Array

    def explained_by(self, guess: Array) -> bool:
        """True if the received numbers equal these, up to a hundredth of their error."""
        return self.same(self.received, guess)

    def same(self, a: Array, b: Array) -> bool:
        """True if these differ by no more than a hundredth of the error."""
        error = abs(self.received - self.expected).max()
        size = max(abs(self.expected).max(), abs(self.received).max())
        rest = abs(a - b).max()
        return bool(rest <= min(0.01 * error, 1e-5 * size) + self.subject.rounding(1e-5) * 1e-2)

    def wrong(self) -> Array:
        """A mask of the wrong elements."""
        own = np.maximum(abs(self.received), abs(self.expected))
        noise = self.subject.rounding(1e-5) + 1e-9 * own.max()
        return abs(self.received - self.expected) > 1e-4 * own + noise

    def expected_of(self, other: int) -> Array:
        """The expected values of the same elements of another argument's gradient."""
        return measure(self.subject, other, None, self.elements).expected


def diagnose(subject: Subject, position: int, gradient: Array | None, measured: Measured) -> str:
    """The cause, in a sentence, or "no simple cause" with an observation."""
    if gradient is None:
        return "no gradient reached the argument (None): is it detached, or used under no_grad?"
    if not np.isfinite(gradient).all():
        return f"{NO_CAUSE}; the gradient is not finite where the derivative is"
    draws = list(_draws(subject, position, gradient, measured))
    for explanation in EXPLANATIONS:
        text = explanation(draws)
        if text:
            return text
    return NO_CAUSE + _ratios(draws[0])


def _draws(subject: Subject, position: int, gradient: Array, measured: Measured) -> Iterator[Draw]:
    """The gradient as it was found, under another cotangent, and with all arguments moved a little."""
    first = measured.elements, measured.jacobian, measured.expected, measured.received
    yield Draw(subject, position, gradient, {position: gradient}, *first)
    rng = np.random.default_rng(1)
    try:
        other = subject.with_cotangent(weights(rng, subject.cotangent.shape))
        gradients = Graph(other, strict=False).gradients(other.cotangent)
        elements, jacobian = measured.elements, measured.jacobian
        received = gradients[position].reshape(-1)[elements]  # type: ignore[union-attr]
        yield Draw(
            other, position, gradients[position], gradients, elements, jacobian, jacobian @ other.cotangent, received
        )
        moved = [
            np.asarray(x * (1 + 0.02 * weights(rng, x.shape))) if i in subject.moved else x
            for i, x in enumerate(subject.values)
        ]
        there, graph = subject.at(moved)
        gradients = graph.gradients(there.cotangent)
        if len(elements) > MOVED:  # half of them wrong ones, if there are enough
            wrong = Draw(subject, position, gradient, gradients, *first).wrong()
            elements = np.sort(np.concatenate([elements[wrong][: MOVED // 2], elements[~wrong][: MOVED // 2]]))
        again = measure(there, position, gradients[position], elements)
        numbers = again.elements, again.jacobian, again.expected, again.received
        if np.isfinite(again.expected).all() and np.isfinite(again.received).all():
            yield Draw(there, position, gradients[position], gradients, *numbers)
    except (Skipped, GradientError, AttributeError):
        return


def _ratios(draw: Draw) -> str:
    """An observation: the range of received over expected, where the expected number is not near 0."""
    clear = abs(draw.expected) > 1e-6 * abs(draw.expected).max(initial=0)
    if not clear.any():
        return ""
    ratios = draw.received[clear] / draw.expected[clear]
    return f"; received / expected is between {ratios.min():.6g} and {ratios.max():.6g}"


# --- explanations --------------------------------------------------------------------------------------------------


def _zeros(draws: list[Draw]) -> str:
    """The cause "zeros": nothing else was received."""
    return "the backward returns zeros" if not any(draw.received.any() for draw in draws) else ""


def _unused(draws: list[Draw]) -> str:
    """The cause "unused": the function does not depend on the argument."""
    for draw in draws:
        if abs(draw.expected).max() > 1e-9 * abs(draw.received).max():
            return ""
    return "the function does not depend on the argument, yet gets a gradient"


def _exchanged(draws: list[Draw]) -> str:
    """The cause "exchanged": the received gradient is that of another argument."""
    subject, position = draws[0].subject, draws[0].position
    for other in subject.moved:
        if other == position or subject.values[other].shape != subject.values[position].shape:
            continue
        if all(draw.explained_by(draw.expected_of(other)) for draw in draws):
            theirs = [draw.gradients.get(other) for draw in draws[1:]]
            back = theirs and all(
                one is not None and np.allclose(one.reshape(-1)[d.elements], d.expected, rtol=1e-5, atol=1e-9)
                for one, d in zip(theirs, draws[1:], strict=True)
            )
            both = f"the gradients of arguments {position} and {other} are exchanged"
            return both if back else f"it is the gradient of {subject.label(other)} instead"
    return ""


def _sign(draws: list[Draw]) -> str:
    """The cause "sign": every element has the opposite sign."""
    return "the sign is flipped" if all(draw.explained_by(-draw.expected) for draw in draws) else ""


def _transposed(draws: list[Draw]) -> str:
    """The cause "transposed": two axes are exchanged."""
    shape = draws[0].gradient.shape
    for i, j in itertools.combinations(range(len(shape)), 2):
        there = list(shape)
        there[i], there[j] = shape[j], shape[i]
        back = [draw.gradient.reshape(there).swapaxes(i, j).reshape(-1)[draw.elements] for draw in draws]
        if all(draw.same(one, draw.expected) for one, draw in zip(back, draws, strict=True)):
            return f"axes {i} and {j} are transposed"
    return ""


def _missing_sum(draws: list[Draw]) -> str:
    """The cause "missing sum": only the first or last slice of the outputs along some axes counts."""
    start = 0
    if any(isinstance(x, np.ndarray) and x.dtype.kind in "iu" for x in draws[0].subject.values):
        found = _overwritten(draws)  # with ids both may hold, and this is the true cause
        if found:
            return found
    for shape in draws[0].subject.shapes():
        stop = start + math.prod(shape)
        axes = [axis for axis, n in enumerate(shape) if n > 1]
        chosen = (some for count in range(1, len(axes) + 1) for some in itertools.combinations(axes, count))
        for some, which in itertools.product(chosen, (0, -1)):
            kept = np.zeros(shape)
            kept[tuple(which if axis in some else slice(None) for axis in range(len(shape)))] = 1
            mask = np.ones(draws[0].jacobian.shape[1])
            mask[start:stop] = kept.reshape(-1)
            if all(draw.explained_by(draw.jacobian @ (draw.subject.cotangent * mask)) for draw in draws):
                axis = f"axis {some[0]}" if len(some) == 1 else f"axes {some}"
                end = "first" if which == 0 else "last"
                return f"a missing sum over {axis} of the output (broadcast): only the {end} slice is counted"
        start = stop
    return ""


def _overwritten(draws: list[Draw]) -> str:
    """The cause "overwritten": an element used several times gets the gradient of one use alone."""
    ends = np.cumsum([math.prod(shape) for shape in draws[0].subject.shapes()])[:-1]
    for end, pick in (("last", -1), ("first", 0)):
        guesses, several = [], False
        for draw in draws:
            guess = np.zeros(len(draw.elements))
            for shares in np.split(draw.jacobian * draw.subject.cotangent, ends, axis=1):
                used = abs(shares) > 1e-7 * abs(shares).max(initial=0)
                several |= bool((used.sum(axis=1) > 1).any())
                guess += [s[u][pick] if u.any() else 0.0 for s, u in zip(shares, used, strict=True)]
            guesses.append(guess)
        if several and all(draw.explained_by(guess) for draw, guess in zip(draws, guesses, strict=True)):
            return f"an element that is used several times gets its {end} use alone: overwritten, not added"
    return ""


def _output_ignored(draws: list[Draw]) -> str:
    """The cause "output ignored": one of several outputs does not count."""
    sizes = [math.prod(shape) for shape in draws[0].subject.shapes()]
    for k in range(len(sizes) if len(sizes) > 1 else 0):
        counted = np.repeat([float(j != k) for j in range(len(sizes))], sizes)
        if all(draw.explained_by(draw.jacobian @ (draw.subject.cotangent * counted)) for draw in draws):
            return f"the cotangent of output {k} is left out"
    return ""


def _factor(draws: list[Draw]) -> str:
    """The cause "factor": every element is off by one constant factor."""
    factors = [_best_factor(draw.expected, draw.received) for draw in draws]
    if not all(draw.explained_by(k * draw.expected) for draw, k in zip(draws, factors, strict=True)):
        return ""
    factor = factors[0]
    if max(abs(k - factor) for k in factors) > 1e-2 * abs(factor - 1) or math.isclose(factor, 1, rel_tol=1e-9):
        return ""
    ratio = Fraction(factor).limit_denominator(1000)
    simple = math.isclose(ratio, factor, rel_tol=1e-6) and ratio.denominator > 1 and abs(ratio - 1) > Fraction(1, 1001)
    digits = f"{factor:.9g}" if abs(factor - 1) < 1e-4 else f"{factor:.6g}"
    return f"off by the constant factor {digits}" + (f" = {ratio}" if simple else "")


def _added(draws: list[Draw]) -> str:
    """The cause "added": one constant is added to every element."""
    if len(draws[0].elements) < 2:
        return ""
    offset = (draws[0].received - draws[0].expected).mean()
    if all(draw.explained_by(draw.expected + offset) for draw in draws):
        return f"the constant {offset:.6g} is added to every element"
    return ""


def _not_linear(draws: list[Draw]) -> str:
    """The cause "not linear": u and -3 u through one graph disagree, which needs no difference."""
    first, u = draws[0], draws[0].subject.cotangent
    try:
        graph = Graph(first.subject, strict=False)
        once, thrice = graph.gradients(u)[first.position], graph.gradients(-3 * u)[first.position]
    except GradientError:
        return ""
    if once is None or thrice is None or _alike(thrice, -3 * once):
        return ""
    worst = np.unravel_index(np.argmax(abs(thrice + 3 * once)), once.shape)
    times = f"{thrice[worst] / once[worst]:.6g}" if once[worst] else f"{thrice[worst]:.6g} where it was 0"
    return f"the backward is not linear in the cotangent: -3 times the cotangent gives {times} times the gradient"


def _precision(draws: list[Draw]) -> str:
    """The cause "precision": rounded numbers have few digits, or jump where the argument barely moves."""
    for dtype, digits in ((np.float16, 2e-3), (np.float32, 1e-6)):
        close = all(
            abs(d.received - d.expected).max() <= digits * abs(d.expected).max() + d.subject.rounding(1e-5)
            for d in draws
        )
        numbers = np.concatenate([draw.received for draw in draws])
        with np.errstate(over="ignore"):
            if close and numbers.any() and np.array_equal(numbers, numbers.astype(dtype)):
                return f"every element is a {np.dtype(dtype).name} number: it is rounded on its way"
    return ""


def _partly(draws: list[Draw]) -> str:
    """A cause that holds for some elements only: which ones, and how they are wrong."""
    if any(draw.wrong().all() or not draw.wrong().any() for draw in draws):
        return ""
    there = where_wrong([(draw.subject, draw.position, draw.elements, draw.wrong()) for draw in draws])
    parts = [(draw.expected[draw.wrong()], draw.received[draw.wrong()]) for draw in draws]
    factors = [_best_factor(expected, received) for expected, received in parts]
    alike = all(_alike(k * expected, received) for k, (expected, received) in zip(factors, parts, strict=True))
    one = max(abs(k - factors[0]) for k in factors) <= 1e-4 and (alike or not any(r.any() for _, r in parts))
    if not any(received.any() for _, received in parts):
        how = "left at zero"
    elif one and min(len(expected) for expected, _ in parts) > 1:
        how = "of flipped sign" if math.isclose(factors[0], -1, rel_tol=1e-4) else f"off by the factor {factors[0]:.6g}"
    else:
        how = ""
    if there:
        return f"wrong exactly {there}" + (f": there the elements are {how}" if how else "")
    return f"some elements are {how}, the others are right" if how else ""


def _wrong_order(draws: list[Draw]) -> str:
    """The cause "wrong order": the right numbers stand at other places."""
    first = draws[0]
    n = first.gradient.size
    draws = draws[:2]  # the third draw measured only some elements
    if len(draws) < 2 or len(first.elements) != n or n < 3:
        return ""
    shape = first.gradient.shape
    for axis, by in itertools.product(range(len(shape)), (0, 1, -1)):
        right = [draw.expected.reshape(shape) for draw in draws]
        moved = [np.roll(g, by, axis) if by else np.flip(g, axis) for g in right]
        if all(draw.explained_by(g.reshape(-1)) for draw, g in zip(draws, moved, strict=True)):
            how = f"moved by {by}" if by else "reversed"
            return f"the right values in the wrong order: {how} along axis {axis}"
    order = np.empty(n, int)
    order[np.argsort(first.received)] = np.argsort(first.expected)
    if all(draw.explained_by(draw.expected[order]) for draw in draws):
        return "the right values in the wrong order"
    return ""


EXPLANATIONS: tuple[Callable[[list[Draw]], str], ...] = (
    _zeros,
    _unused,
    _sign,
    _exchanged,
    _transposed,
    _missing_sum,
    _precision,
    _factor,
    _added,
    _not_linear,
    _overwritten,
    _output_ignored,
    _wrong_order,
    _partly,
)


def _alike(a: Array, b: Array) -> bool:
    """True if two arrays differ by less than a hundred-thousandth of their largest number."""
    return bool(abs(a - b).max(initial=0) <= 1e-5 * max(abs(a).max(initial=0), abs(b).max(initial=0)))


def _best_factor(expected: Array, received: Array) -> float:
    """The factor k for which k times the expected numbers are nearest to the received ones."""
    square = float(expected @ expected)
    return float(received @ expected) / square if square else 0.0


# --- shapes --------------------------------------------------------------------------------------------------------


def explain_shape(subject: Subject, error: WrongShape) -> GradientError:
    """Add a cause to the error if differences confirm it: exchanged, transposed, or not summed."""
    explained = GradientError(str(error) + _cause_of_shape(error.subject or subject, error))
    for note in getattr(error, "__notes__", []):
        explained.add_note(note)
    return explained


def _cause_of_shape(subject: Subject, error: WrongShape) -> str:
    """The cause of a wrong shape as the end of a sentence, if differences confirm it; else an empty text."""
    gradient = error.gradients[error.position]
    position = _argument(subject, error.edges[error.position])
    if position is None or gradient.size > 2_000:
        return ""
    if gradient.size == subject.values[position].size and _is_gradient(subject, position, gradient):
        return "; the values are right: reshape it"
    found = ""
    for other in subject.moved:
        if (
            other != position
            and subject.values[other].shape == gradient.shape
            and _is_gradient(subject, other, gradient)
        ):
            found = f"it is the gradient of {subject.label(other)}: they are exchanged"
    shape = subject.values[position].shape
    if not found and gradient.T.shape == shape and _is_gradient(subject, position, gradient.T):
        found = "it is transposed"
    if not found and _stretches(shape, gradient):
        lead = gradient.ndim - len(shape)
        axes = tuple(range(lead)) + tuple(lead + i for i, n in enumerate(shape) if n == 1)
        if _is_gradient(subject, position, gradient.sum(axis=axes).reshape(shape)):
            found = "a missing sum over the broadcast axes"
    return f"; the likely cause: {found}" if found else ""


def _argument(subject: Subject, edge: tuple) -> int | None:
    """The argument that an edge leads to, found by the memory of its leaf."""
    data = getattr(edge[0], "data", None)
    return next((i for i in subject.moved if subject.values[i] is data), None)


def _is_gradient(subject: Subject, position: int, gradient: Array) -> bool:
    """True if these numbers are the gradient of an argument, by differences."""
    return _alike(measure(subject, position, None, np.arange(gradient.size)).expected, gradient.reshape(-1))


def _stretches(shape: tuple[int, ...], gradient: Array) -> bool:
    """True if a shape can be broadcast to that of the gradient."""
    try:
        return np.broadcast_shapes(shape, gradient.shape) == gradient.shape
    except ValueError:
        return False
