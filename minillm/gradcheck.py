"""The gradient-check table: for every operation, the inputs that have broken backwards before.

A case is a function, and a recipe for its arrays. Every operation in `minillm.ops.OPS` has at least one; most have
many: operands stretched on either side, Python numbers, views that are not contiguous, axes of size 1, empty arrays,
numbers without axes, one tensor used twice, negative axes, and every setting of the operation.

`run_cases()` checks them all with `minillm.testing.check_gradients`; `minillm gradcheck` prints the result.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from minillm import ops, random
from minillm.autograd import Op, tensor
from minillm.backend import Array
from minillm.errors import InputError, did_you_mean
from minillm.testing import check_gradients

WITH_VARIANTS = (
    3  # functions of each operation that `run_cases` checks at variants of their arguments too; tests do all
)

Make = Callable[[np.random.Generator], tuple[Array, ...]]


class Case(NamedTuple):
    """One row of the table: an operation by name, what is awkward here, the function, and how to draw its arrays."""

    op: str
    name: str
    fn: Callable
    make_arrays: Make


class Result(NamedTuple):
    """What came of a case; `report` says what is wrong, or is None."""

    op: str
    case: str
    elements: int
    error: float
    seconds: float
    report: str | None
    variants: int = 0  # other arguments that were tried, made from these
    skipped: int = 0  # of them, where the operation is not defined

    @property
    def passed(self) -> bool:
        return self.report is None


def run_cases(names: Iterable[str] | None = None) -> list[Result]:
    """Check the cases of the named operations, or of all.

    An operation without a row fails, and its report says what to write where.
    Raises: InputError for a name that no operation has.
    """
    rows, operations = {case.op for case in CASES}, {op.name: op for op in ops.OPS}
    known = rows | set(operations)
    chosen = known if names is None else set(names)
    for name in sorted(chosen - known):
        raise InputError(f"gradcheck: there is no operation {name!r}{did_you_mean(name, sorted(known))}")
    place = random.default.state()  # the dropout cases restart the stream
    first = {(case.op, case.fn): case for case in reversed(CASES)}  # of each function; the others are variants of it
    with_variants = [
        case
        for op in chosen
        for case in [case for case in CASES if case.op == op and first[op, case.fn] is case][:WITH_VARIANTS]
    ]
    try:
        results = [run_case(case, case in with_variants) for case in CASES if case.op in chosen]
    finally:
        random.default.set_state(place)
    return results + [without_a_row(operations[name]) for name in sorted(chosen - rows)]


def without_a_row(op: Op) -> Result:
    """The result of an operation that is in no row: what to write, and in which file."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [p.name for p in inspect.signature(op.forward).parameters.values() if p.kind in kinds]
    names, shapes = ", ".join(parameters) or "*xs", ", ".join(["(3, 4)"] * max(1, len(parameters)))
    report = (
        f"gradcheck: the table has no row for {op.name}; write one in minillm/gradcheck.py, in one of the functions "
        f"that CASES lists:\n"
        f'    yield Case("{op.name}", "matrix", lambda {names}: ops.{op.name}({names}), normal({shapes}))'
    )
    return Result(op.name, "no row", 0, float("inf"), 0.0, report)


def run_case(case: Case, variants: bool = True) -> Result:
    """Check one case, at variants of its arguments too if so wished; an exception becomes the report."""
    start = time.perf_counter()
    try:
        check = check_gradients(case.fn, *case.make_arrays(np.random.default_rng(0)), variants=variants)
    except Exception as error:
        report = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
        return Result(case.op, case.name, 0, float("inf"), time.perf_counter() - start, report)
    seconds = time.perf_counter() - start
    tried = len(check.variants) + len(check.skipped)
    return Result(case.op, case.name, check.elements, check.error, seconds, None, tried, len(check.skipped))


# --- recipes for arrays --------------------------------------------------------------------------------------------


def normal(*shapes: tuple[int, ...]) -> Make:
    """Standard normal numbers."""
    return lambda rng: tuple(rng.normal(size=shape) for shape in shapes)


def positive(*shapes: tuple[int, ...]) -> Make:
    """Numbers from 0.5 to 2, where logarithms, roots and quotients are smooth."""
    return lambda rng: tuple(rng.uniform(0.5, 2, shape) for shape in shapes)


def apart(*shapes: tuple[int, ...]) -> Make:
    """Odd multiples of 0.05 in random order, none twice: no ties, and no element near 0 or another kink."""

    def make(rng: np.random.Generator) -> tuple[Array, ...]:
        sizes = [int(np.prod(shape)) for shape in shapes]
        return tuple(
            (0.1 * (rng.permutation(n) - n // 2) + 0.05).reshape(shape) for n, shape in zip(sizes, shapes, strict=True)
        )

    return make


def apart_from_each_other(*shapes: tuple[int, ...]) -> Make:
    """Numbers of which no two, in whichever array, are equal or near."""

    def make(rng: np.random.Generator) -> tuple[Array, ...]:
        sizes = [int(np.prod(shape)) for shape in shapes]
        (numbers,) = apart((sum(sizes),))(rng)
        pieces = np.split(numbers, np.cumsum(sizes)[:-1])
        return tuple(piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True))

    return make


def _transposed(x: Array) -> Array:
    return np.ascontiguousarray(x.T).T


def _strided(x: Array) -> Array:
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def _reversed(x: Array) -> Array:
    return np.ascontiguousarray(x[..., ::-1])[..., ::-1]


VIEWS = {"transposed in memory": _transposed, "every other element": _strided, "reversed in memory": _reversed}


def _in_views(op: str, fn: Callable, make: Make, what: str = "") -> Iterator[Case]:
    """The same numbers in each kind of view: none of the arrays is contiguous."""
    for name, view in VIEWS.items():
        yield Case(op, what + name, fn, lambda rng, view=view: tuple(view(x) for x in make(rng)))  # type: ignore[misc]


# --- arithmetic ----------------------------------------------------------------------------------------------------

SHAPES_OF_TWO = {
    "one shape": ((3, 4), (3, 4)),
    "left stretched": ((4,), (3, 4)),
    "right stretched": ((3, 4), (3, 1)),
    "both stretched": ((3, 1), (1, 4)),
    "one of two size-1 axes": ((1, 1), (1, 4)),
    "new axis of size 1": ((1, 1), (1, 3, 4)),
    "new axes and stretched": ((3, 1), (2, 3, 4)),
    "stretched and new axes": ((2, 1, 3, 4), (2, 1, 4)),
    "left has no axes": ((), (3, 4)),
    "right has no axes": ((2, 1, 3), ()),
    "no axes": ((), ()),
    "size 1": ((1, 1), (1,)),
    "empty": ((0, 3), (3,)),
    "stretched to nothing": ((1, 3), (0, 3)),
}
TRIANGLES = ("tril", "triu")
STEPS = ("sign", "floor", "ceil", "round", "trunc")
SHAPES_OF_ONE = {"matrix": (3, 4), "no axes": (), "size 1": (1, 1), "empty": (2, 0), "four axes": (2, 1, 3, 2)}


def _two_operands() -> Iterator[Case]:
    for op, fn, make in [
        ("add", lambda x, y: x + y, normal),
        ("sub", lambda x, y: x - y, normal),
        ("mul", lambda x, y: x * y, normal),
        ("div", lambda x, y: x / y, positive),
        ("pow", lambda x, y: x**y, positive),
    ]:
        for name, shapes in SHAPES_OF_TWO.items():
            yield Case(op, name, fn, make(*shapes))
        yield from _in_views(op, fn, make((3, 4), (3, 4)))
        yield Case(op, "number on the left", lambda x, fn=fn: fn(1.5, x), make((2, 3)))
        yield Case(op, "number on the right", lambda x, fn=fn: fn(x, 3), make((2, 3)))
        yield Case(op, "array on the left", lambda x, fn=fn: fn(np.full((4, 1, 1), 1.5, x.dtype), x), make((2, 3)))
        yield Case(op, "array on the right", lambda x, fn=fn: fn(x, np.full((4, 1, 3), 1.5, x.dtype)), make((2, 3)))
        yield Case(op, "one tensor twice", lambda x, fn=fn: fn(x, x), make((2, 3)))
    yield from _remainder()
    for op, fn in [("maximum", ops.maximum), ("minimum", ops.minimum)]:
        for name, shapes in SHAPES_OF_TWO.items():
            yield Case(op, name, fn, apart_from_each_other(*shapes))
        yield from _in_views(op, fn, apart_from_each_other((3, 4), (3, 4)))
        yield Case(op, "number on the left", lambda x, fn=fn: fn(0.0, x), apart((2, 3)))
        yield Case(op, "number on the right", lambda x, fn=fn: fn(x, 0), apart((2, 3)))
        yield Case(op, "ties", fn, lambda rng: (np.array([1.0, 2, 3]), np.array([1.0, 2, 4])))
        yield Case(op, "one tensor twice", lambda x, fn=fn: fn(x, x), normal((2, 3)))
    limits: dict[str, tuple[tuple[int, ...], ...]] = {
        "one shape": ((3, 4), (3, 4), (3, 4)),
        "limits stretched": ((2, 3, 4), (4,), (3, 1)),
        "x stretched": ((4,), (3, 1), (3, 4)),
        "no axes": ((), (), ()),
        "empty": ((0, 3), (3,), ()),
    }
    for name, three in limits.items():
        yield Case("clip", f"tensor limits, {name}", lambda x, a, b: x.clip(a, b), apart_from_each_other(*three))
        crossed = apart_from_each_other(*three[:2])
        yield Case("clip", f"limits crossed, {name}", lambda x, a: x.clip(a, a - 0.33), crossed)
    yield from _in_views("clip", lambda x, a: x.clip(max=a), apart_from_each_other((3, 4), (3, 4)), "tensor limit, ")
    exponents = np.array([0, 1, 2, 3], np.int8)  # small enough for NumPy to leave float32 as it is
    for exponent in (0, 1, 2, 3, -1, 0.5):
        yield Case("pow", f"exponent {exponent}", lambda x, y=exponent: x**y, positive((3,)))
    yield Case("pow", "base 0, numbers", lambda x: x**0 + x**1 + x**2 + x**3, lambda rng: (np.array([0.0, 1, 2]),))
    yield Case("pow", "base 0, array of exponents", lambda x: x**exponents, lambda rng: (np.zeros((2, 4)),))
    yield Case("pow", "base 0, exponents move", lambda y: np.array([0, 2], np.int8) ** y, positive((3, 2)))
    yield Case("pow", "negative base", lambda x: x**exponents, lambda rng: (-rng.uniform(0.5, 2, (3, 4)),))


def _remainder() -> Iterator[Case]:
    """No quotient is near a whole number, where the remainder jumps."""

    def make(*shapes: tuple[int, ...]) -> Make:
        def arrays(rng: np.random.Generator) -> tuple[Array, ...]:
            x, y = shapes
            quotient = rng.integers(-4, 4, np.broadcast_shapes(x, y)) + rng.uniform(0.2, 0.8, np.broadcast_shapes(x, y))
            divisor = rng.uniform(0.5, 2, y) * rng.choice([-1, 1], y)
            if x == quotient.shape:
                return quotient * divisor, divisor
            return rng.uniform(4.2, 4.8, x), np.where(rng.random(y) < 0.5, 1.0, -1.0)  # any of them meets any

        return arrays

    for name, shapes in SHAPES_OF_TWO.items():
        yield Case("remainder", name, lambda x, y: x % y, make(*shapes))
    yield from _in_views("remainder", lambda x, y: x % y, make((3, 4), (3, 4)))
    yield Case("remainder", "number on the left", lambda y: 1.5 % y, lambda rng: (rng.uniform(0.8, 1.4, (2, 3)),))
    yield Case("remainder", "number on the right", lambda x: x % -0.7, lambda rng: (rng.uniform(0.8, 1.3, (2, 3)),))
    yield Case("remainder", "one tensor twice", lambda x: (x * 2.5) % x, positive((2, 3)))


def _one_operand() -> Iterator[Case]:
    for op, fn, make in [
        ("neg", lambda x: -x, normal),
        ("exp", lambda x: x.exp(), normal),
        ("log", lambda x: x.log(), positive),
        ("sqrt", lambda x: x.sqrt(), positive),
        ("tanh", lambda x: x.tanh(), normal),
        ("sigmoid", lambda x: x.sigmoid(), normal),
        ("relu", lambda x: x.relu(), apart),
        ("clip", lambda x: x.clip(-0.3, 0.2), apart),
        ("abs", lambda x: x.abs(), apart),
        ("sin", lambda x: x.sin(), normal),
        ("cos", lambda x: x.cos(), normal),
        ("log2", lambda x: x.log2(), positive),
        ("log10", lambda x: x.log10(), positive),
        ("log1p", lambda x: x.log1p(), positive),
        ("expm1", lambda x: x.expm1(), normal),
        ("erf", lambda x: x.erf(), normal),
        ("softplus", lambda x: ops.softplus(x), normal),
        ("gelu", lambda x: ops.gelu(x), normal),
        ("silu", lambda x: ops.silu(x), normal),
        *((name, lambda x, name=name: getattr(ops, name)(x), apart) for name in STEPS),
    ]:
        for name, shape in SHAPES_OF_ONE.items():
            yield Case(op, name, fn, make(shape))
        yield from _in_views(op, fn, make((3, 4)))
    for op, fn in [
        ("tanh", ops.tanh),
        ("sigmoid", ops.sigmoid),
        ("softplus", ops.softplus),
        ("gelu", ops.gelu),
        ("silu", ops.silu),
    ]:
        yield Case(op, "far from 0", fn, lambda rng: (np.array([-40.0, -8, -3, 3, 8, 40]),))
    yield Case("gelu", "tanh form", lambda x: ops.gelu(x, "tanh"), normal((3, 4)))
    yield Case("gelu", "tanh form, empty", lambda x: ops.gelu(x, "tanh"), normal((0, 4)))
    yield from _in_views("gelu", lambda x: ops.gelu(x, "tanh"), normal((3, 4)), "tanh form, ")
    for op, what, biased in [
        ("gelu", "bias", lambda x, bias: ops.gelu(x, bias=bias)),
        ("gelu", "tanh form, bias", lambda x, bias: ops.gelu(x, "tanh", bias)),
        ("silu", "bias", lambda x, bias: ops.silu(x, bias)),
    ]:
        for name, shape in {"matrix": (3, 4), "vector": (4,), "size 1": (1, 1), "three axes": (2, 3, 4)}.items():
            yield Case(op, f"{what}, {name}", biased, normal(shape, shape[-1:]))
        yield Case(op, f"{what}, no rows", biased, normal((0, 4), (4,)))
        yield Case(op, f"{what}, no columns", biased, normal((3, 0), (0,)))
        yield Case(op, f"{what}, one tensor twice", lambda x, fn=biased: fn(x, x), normal((4,)))
        yield from _in_views(op, biased, normal((3, 4), (4,)), f"{what}, ")
    yield Case("abs", "at 0", lambda x: x.abs(), lambda rng: (np.array([0.0, 0, -1]),))
    yield Case("softplus", "beta", lambda x: ops.softplus(x, 2.5), normal((3, 4)))
    yield Case("softplus", "logsigmoid", lambda x: ops.logsigmoid(x), normal((3, 4)))
    yield Case("round", "decimals", lambda x: ops.round(x, 1), lambda rng: (rng.permutation(9) / 10 + 0.02,))
    yield Case("clip", "below only", lambda x: x.clip(min=0.1), apart((5,)))
    yield Case("clip", "above only", lambda x: x.clip(max=0.1), apart((5,)))
    yield Case("clip", "no limits", lambda x: x.clip(), apart((5,)))
    for name, shape in SHAPES_OF_ONE.items():
        yield Case("swiglu", name, lambda gate, up: ops.swiglu(gate, up), normal(shape, shape))
    yield from _in_views("swiglu", lambda gate, up: ops.swiglu(gate, up), normal((3, 4), (3, 4)))
    yield Case("swiglu", "one tensor twice", lambda x: ops.swiglu(x, x), normal((2, 3)))


def _where() -> Iterator[Case]:
    def mask(*shape: int) -> Make:
        return lambda rng: (rng.permutation(int(np.prod(shape))).reshape(shape) % 2 == 0,)

    def both(first: Make, second: Make) -> Make:
        return lambda rng: (*first(rng), *second(rng))

    def choose(condition, x, y):
        return ops.where(condition, x, y)

    yield Case("where", "one shape", choose, both(mask(3, 4), normal((3, 4), (3, 4))))
    yield Case("where", "condition stretched", choose, both(mask(3, 1), normal((3, 4), (3, 4))))
    yield Case("where", "x stretched", choose, both(mask(3, 4), normal((4,), (3, 4))))
    yield Case("where", "y stretched", choose, both(mask(3, 4), normal((3, 4), (3, 1))))
    yield Case("where", "condition stretches both", choose, both(mask(2, 3, 4), normal((), (3, 1))))
    yield Case("where", "new and size-1 axes", choose, both(mask(2, 3, 4), normal((3, 1), (2, 1, 4))))
    yield Case("where", "empty", choose, both(mask(0, 4), normal((4,), (0, 4))))
    yield Case("where", "number for x", lambda c, y: ops.where(c, 0.5, y), both(mask(3, 4), normal((4,))))
    yield Case("where", "number for y", lambda c, x: ops.where(c, x, 0.5), both(mask(3, 4), normal((4,))))
    yield Case("where", "one tensor twice", lambda c, x: ops.where(c, x, x), both(mask(3, 4), normal((3, 1))))
    yield Case("where", "condition is a comparison", lambda x, y: ops.where(x > y + 0.03, x, y), apart((3, 4), (3, 4)))
    yield from _in_views("where", choose, both(mask(3, 4), normal((3, 4), (3, 4))))


# --- reductions and products ---------------------------------------------------------------------------------------


def _reductions() -> Iterator[Case]:
    for op, fn in [("sum", ops.sum), ("mean", ops.mean), ("amax", ops.amax), ("amin", ops.amin)]:
        for axis in (None, 0, 1, -1, (0, 2), (-1, 0), (0, 1, 2)):
            for keep in (False, True):
                name = f"axis {axis}" + (", kept" if keep else "")
                yield Case(op, name, lambda x, fn=fn, a=axis, k=keep: fn(x, axis=a, keepdims=k), apart((2, 3, 4)))
        yield Case(op, "dim and keepdim", lambda x, fn=fn: fn(x, dim=1, keepdim=True), apart((2, 3, 4)))
        yield Case(op, "no axes", fn, apart(()))
        yield Case(op, "size 1", lambda x, fn=fn: fn(x, axis=1), apart((3, 1, 2)))
        yield from _in_views(op, lambda x, fn=fn: fn(x, axis=0), apart((3, 4)))
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
        yield from _in_views(op, lambda x, fn=fn: fn(x, dim=0), normal((3, 4)))
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
    for p in (math.inf, -math.inf):
        for keep in (False, True):
            name = f"p {p}" + (", kept" if keep else "")
            yield Case("norm", name, lambda x, p=p, keep=keep: x.norm(p, 1, keep), normal((3, 4)))
        yield Case("norm", f"p {p}, all", lambda x, p=p: x.norm(p), normal((2, 3)))
        two_equal = np.array([[2.0, -2], [-7, 7], [5, 5], [-3, -3]])
        yield Case("norm", f"p {p}, two equal", lambda x, p=p: x.norm(p, 1), lambda rng, x=two_equal: (x,))
        yield from _in_views("norm", lambda x, p=p: x.norm(p, 0), normal((3, 4)), f"p {p}, ")
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
        yield from _in_views(op, fn, normal((3, 4)))
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
    yield from _in_views("einsum", lambda a, b: ops.einsum("ij,kj->ik", a, b), normal((3, 4), (2, 4)))


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
    yield from _in_views("matmul", product, normal((3, 4), (4, 2)))
    yield from _in_views("matmul", lambda a, b: ops.matmul(a, b), normal((2, 3, 4), (2, 4, 2)), "batched, ")


# --- shape ---------------------------------------------------------------------------------------------------------


def _rearrange() -> Iterator[Case]:
    yield Case("reshape", "matrix", lambda x: x.reshape(2, -1), normal((3, 4)))
    yield Case("reshape", "tuple", lambda x: x.reshape((4, 1, 3)), normal((3, 4)))
    yield Case("reshape", "to no axes", lambda x: x.reshape(()), normal((1, 1)))
    yield Case("reshape", "empty", lambda x: x.reshape(3, 0), normal((0, 2)))
    yield from _in_views("reshape", lambda x: x.reshape(12), normal((3, 4)))
    yield Case("transpose", "two axes", lambda x: x.transpose(0, 1), normal((3, 4)))
    yield Case("transpose", "negative axes", lambda x: x.transpose(-1, -3), normal((2, 3, 4)))
    yield Case("transpose", "permute", lambda x: x.permute(2, 0, 1), normal((2, 3, 4)))
    yield Case("transpose", "permute, negative", lambda x: x.permute((-1, 0, -2, 1)), normal((2, 3, 1, 4)))
    yield Case("transpose", "empty", lambda x: x.transpose(0, 1), normal((0, 2)))
    yield Case("transpose", "no axes", lambda x: x.permute(()), normal(()))
    yield from _in_views("transpose", lambda x: x.permute(1, 2, 0), normal((2, 3, 4)))
    yield Case("broadcast", "new axes", lambda x: x.broadcast_to(2, 3, 4), normal((4,)))
    yield Case("broadcast", "size-1 axes", lambda x: x.broadcast_to((2, 3, 4)), normal((2, 1, 4)))
    yield Case("broadcast", "new and size-1 axes", lambda x: x.broadcast_to((2, 3, 4)), normal((3, 1)))
    yield Case("broadcast", "same shape", lambda x: x.broadcast_to(2, 3), normal((2, 3)))
    yield Case("broadcast", "no axes", lambda x: x.broadcast_to(2, 3), normal(()))
    yield Case("broadcast", "to nothing", lambda x: x.broadcast_to(0, 3), normal((1, 3)))
    yield Case("broadcast", "used twice", lambda x: x.broadcast_to(2, 3) * x, normal((1, 3)))
    yield from _in_views("broadcast", lambda x: x.broadcast_to(2, 3, 4), normal((3, 4)))


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
    yield from _in_views("getitem", lambda x: x[1:, repeats], normal((3, 4)))
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
    yield from _in_views("index_select", lambda x: x.index_select(1, repeats), normal((2, 3)))


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
    yield from _in_views("gather", lambda x: x.gather(1, ids), normal((2, 3)))
    yield from _in_views("scatter", lambda x, y: x.scatter(1, distinct, y), normal((3, 4), (3, 2)))
    yield from _in_views("scatter_add", lambda x, y: x.scatter_add(1, ids, y), normal((2, 3), (2, 3)))
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
        yield from _in_views(op, fn, normal((3, 4)))


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
        yield from _in_views(op, lambda x, y, fn=fn: fn([x, y], axis=1), normal((2, 3), (2, 3)))
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
    yield from _in_views("split", lambda x: x.split(2, axis=1), normal((3, 4)))


# --- layers --------------------------------------------------------------------------------------------------------


def _softmax() -> Iterator[Case]:
    for op, fn in [("softmax", ops.softmax), ("log_softmax", ops.log_softmax)]:
        for axis in (None, 0, 1, -1, -2):
            yield Case(op, f"axis {axis}", lambda x, fn=fn, a=axis: fn(x, axis=a), normal((2, 3, 4)))
        yield Case(op, "dim", lambda x, fn=fn: fn(x, dim=0), normal((3, 2)))
        yield Case(op, "vector", fn, normal((5,)))
        yield Case(op, "one class", fn, normal((3, 1)))
        yield Case(op, "no rows", fn, normal((0, 3)))
        yield Case(op, "large logits", fn, lambda rng: (1e3 + rng.normal(size=(3, 4)),))
        yield from _in_views(op, fn, normal((3, 4)))
        yield from _in_views(op, lambda x, fn=fn: fn(x, axis=0), normal((3, 4)), "axis 0, ")


def _normalisation() -> Iterator[Case]:
    def norm(x, weight, bias, eps=1e-5):
        return ops.layer_norm(x, weight, bias, eps)

    yield Case("layernorm", "matrix", norm, normal((3, 5), (5,), (5,)))
    yield Case("layernorm", "three axes", norm, normal((2, 3, 4), (4,), (4,)))
    yield Case("layernorm", "vector", norm, normal((4,), (4,), (4,)))
    yield Case("layernorm", "one row", norm, normal((1, 4), (4,), (4,)))
    yield Case(
        "layernorm", "two channels", lambda x, weight, bias: norm(x, weight, bias, 0.1), normal((3, 2), (2,), (2,))
    )
    yield Case(
        "layernorm", "one channel", lambda x, weight, bias: norm(x, weight, bias, 0.1), normal((3, 1), (1,), (1,))
    )
    yield Case("layernorm", "no rows", norm, normal((0, 4), (4,), (4,)))
    yield Case("layernorm", "no bias", lambda x, weight: ops.layer_norm(x, weight), normal((3, 4), (4,)))
    yield Case("layernorm", "no weight", lambda x: ops.layer_norm(x), normal((3, 4)))
    yield Case("layernorm", "bias alone", lambda x, bias: ops.layer_norm(x, None, bias), normal((3, 4), (4,)))
    yield Case("layernorm", "large eps", lambda x, weight, bias: norm(x, weight, bias, 2.0), normal((3, 4), (4,), (4,)))
    yield Case(
        "layernorm",
        "constant rows",
        lambda x, weight, bias: ops.layer_norm(x, weight, bias, eps=0.5),
        lambda rng: (np.full((2, 4), 3.0), *normal((4,), (4,))(rng)),
    )
    yield from _in_views("layernorm", norm, normal((3, 4), (4,), (4,)))

    def add_norm(x, residual, weight, bias, eps=1e-5):
        return ops.add_layer_norm(x, residual, weight, bias, eps)

    def add_row(name: str, shape: tuple[int, ...], fn: Callable = add_norm) -> Case:
        return Case("add_layernorm", name, fn, normal(shape, shape, shape[-1:], shape[-1:]))

    yield add_row("matrix", (3, 5))
    yield add_row("three axes", (2, 3, 4))
    yield add_row("vector", (4,))
    yield add_row("one row", (1, 4))
    yield add_row("no rows", (0, 4))
    yield add_row("large eps", (3, 4), lambda x, residual, weight, bias: add_norm(x, residual, weight, bias, 2.0))
    yield add_row("the sum alone is used", (3, 4), lambda *inputs: add_norm(*inputs)[0])
    yield add_row("the norm alone is used", (3, 4), lambda *inputs: add_norm(*inputs)[1])
    yield Case(
        "add_layernorm",
        "no bias",
        lambda x, residual, w: ops.add_layer_norm(x, residual, w),
        normal((3, 4), (3, 4), (4,)),
    )
    yield Case("add_layernorm", "one tensor twice", lambda x, w, b: add_norm(x, x, w, b), normal((3, 4), (4,), (4,)))
    yield from _in_views("add_layernorm", add_norm, normal((3, 4), (3, 4), (4,), (4,)))

    def rms(x, weight, eps=1e-6):
        return ops.rms_norm(x, weight, eps)

    yield Case("rmsnorm", "matrix", rms, normal((3, 5), (5,)))
    yield Case("rmsnorm", "three axes", rms, normal((2, 3, 4), (4,)))
    yield Case("rmsnorm", "vector", rms, normal((4,), (4,)))
    yield Case("rmsnorm", "one channel", lambda x, weight: rms(x, weight, 0.5), normal((3, 1), (1,)))
    yield Case("rmsnorm", "no rows", rms, normal((0, 4), (4,)))
    yield Case("rmsnorm", "no weight", lambda x: ops.rms_norm(x), normal((3, 4)))
    yield Case("rmsnorm", "large eps", lambda x, weight: rms(x, weight, 2.0), normal((3, 4), (4,)))
    yield Case("rmsnorm", "zeros", lambda x, weight: rms(x * 0, weight, 0.5), normal((3, 4), (4,)))
    yield from _in_views("rmsnorm", rms, normal((3, 4), (4,)))


def _linear_and_embedding() -> Iterator[Case]:
    def layer(x, weight, bias):
        return ops.linear(x, weight, bias)

    yield Case("linear", "matrix", layer, normal((3, 4), (2, 4), (2,)))
    yield Case("linear", "three axes", layer, normal((2, 3, 4), (5, 4), (5,)))
    yield Case("linear", "vector", layer, normal((4,), (3, 4), (3,)))
    yield Case("linear", "size 1", layer, normal((1, 1), (1, 1), (1,)))
    yield Case("linear", "no rows", layer, normal((0, 4), (3, 4), (3,)))
    yield Case("linear", "no inputs", layer, normal((2, 0), (3, 0), (3,)))
    yield Case("linear", "no bias", lambda x, weight: ops.linear(x, weight), normal((3, 4), (2, 4)))
    yield Case("linear", "input is the weight", lambda w: ops.linear(w, w), normal((3, 3)))
    yield Case("linear", "tied twice", lambda x, w: ops.linear(ops.linear(x, w), w), normal((2, 3), (3, 3)))
    yield from _in_views("linear", layer, normal((3, 4), (2, 4), (2,)))

    def look_up(ids, weight):
        return ops.embedding(ids, weight)

    def table(ids: list, rows: int, channels: int) -> Make:
        return lambda rng: (np.array(ids, int), rng.normal(size=(rows, channels)))

    yield Case("embedding", "repeats, unused rows", look_up, table([4, 0, 4, 2, 4], 6, 3))
    yield Case("embedding", "matrix of ids", look_up, table([[1, 0, 1], [2, 2, 2]], 3, 2))
    yield Case("embedding", "one id", look_up, table(1, 3, 2))  # type: ignore[arg-type]
    yield Case("embedding", "no ids", look_up, table([], 3, 2))
    yield Case("embedding", "long rows", look_up, table([1, 0, 1, 1], 3, 512))
    yield Case("embedding", "no channels", look_up, table([1, 0], 3, 0))
    yield Case("embedding", "empty table", look_up, table([], 0, 3))
    yield Case(
        "embedding",
        "tied to the output",
        lambda ids, weight: ops.linear(ops.embedding(ids, weight), weight),
        table([1, 0, 1], 3, 4),
    )
    yield from _in_views("embedding", look_up, table([[1, 0, 1], [2, 2, 2]], 3, 4))


def _dropout_and_rope() -> Iterator[Case]:
    def drop(x, p=0.4):
        random.manual_seed(1)
        return ops.dropout(x, p)

    yield Case("dropout", "matrix", drop, normal((4, 5)))
    yield Case("dropout", "rarely", lambda x: drop(x, 0.01), normal((30,)))
    yield Case("dropout", "twice, two masks", lambda x: ops.dropout(drop(x), 0.3), normal((4, 5)))
    yield Case("dropout", "no axes", drop, normal(()))
    yield Case("dropout", "empty", drop, normal((0, 2)))
    yield from _in_views("dropout", drop, normal((4, 5)))

    def turn(x, layout="half", start=0):
        return ops.rope(x, *ops.rope_table(x.shape[-2], x.shape[-1], base=100.0, start=start), layout=layout)

    for layout in ("half", "interleaved"):
        yield Case("rope", f"{layout}, heads", lambda x, layout=layout: turn(x, layout), normal((2, 2, 3, 4)))
        yield Case("rope", f"{layout}, matrix", lambda x, layout=layout: turn(x, layout, 5), normal((3, 6)))
        yield Case("rope", f"{layout}, one position", lambda x, layout=layout: turn(x, layout, 2), normal((1, 2)))
        yield Case("rope", f"{layout}, no positions", lambda x, layout=layout: turn(x, layout), normal((2, 0, 4)))
        yield from _in_views("rope", lambda x, layout=layout: turn(x, layout, 1), normal((3, 4)), f"{layout}, ")


def _attention() -> Iterator[Case]:
    def qkv(b=2, h=2, tq=3, d=2, groups=None, tk=None) -> Make:
        keys = (b, groups or h, tq if tk is None else tk, d)
        return normal((b, h, tq, d), keys, keys)

    def row(name: str, make: Make, **settings) -> Case:
        return Case("attention", name, lambda q, k, v: ops.attention(q, k, v, **settings), make)

    hidden = np.array([[True, True, True, False], [True, False, False, True]])[:, None, None]  # a padding mask
    some = np.random.default_rng(1).random((2, 2, 3, 4)) < 0.6
    some[0, 1, 2] = False  # a query that sees nothing
    some[1, 0] = False
    bias = np.random.default_rng(2).normal(size=(2, 1, 3, 4))
    bias_hiding = np.where(some, bias, -np.inf)

    yield row("plain", qkv())
    yield row("causal", qkv(tq=4), causal=True)
    yield row("scale", qkv(), scale=0.3)
    yield row("one of everything", qkv(1, 1, 1, 1))
    yield row("fewer queries than keys", qkv(tk=5))
    yield row("fewer queries than keys, causal", qkv(tk=5), causal=True)
    yield row("more queries than keys", qkv(tq=5, tk=2))
    yield row("more queries than keys, causal", qkv(tq=5, tk=2), causal=True)
    yield row("one query, causal", qkv(tq=1, tk=4), causal=True)
    yield row("padding mask", qkv(tk=4), mask=hidden)
    yield row("padding mask, causal", qkv(tk=4), mask=hidden, causal=True)
    yield row("arbitrary mask, rows that see nothing", qkv(tk=4), mask=some)
    yield row("mask without heads", qkv(tk=4), mask=some[0, 0])
    yield row("lengths", qkv(tk=4), lengths=[4, 2])
    yield row("lengths, causal", qkv(3, tk=4), lengths=[3, 1, 0], causal=True)
    yield row("lengths, mask, 4 heads on 2", qkv(2, 4, 3, 2, 2, 4), lengths=[2, 4], mask=hidden, causal=True)
    yield row("lengths, two blocks of queries", qkv(2, 1, 66, 1), lengths=[65, 3], causal=True)
    yield row("all hidden", qkv(tk=4), mask=np.zeros((1, 1, 1, 1), bool))
    yield row("additive mask", qkv(tk=4), mask=bias)
    yield row("additive mask, causal", qkv(tk=4), mask=bias, causal=True)
    yield row("additive mask of -inf", qkv(tk=4), mask=bias_hiding)
    for groups in (1, 2, 4):
        yield row(f"4 heads on {groups}", qkv(1, 4, 3, 2, groups))
        yield row(f"4 heads on {groups}, causal, mask", qkv(2, 4, 3, 2, groups, 4), causal=True, mask=hidden)
    mask_by_head = np.random.default_rng(3).random((1, 4, 3, 3)) < 0.7
    yield row("4 heads on 2, a mask for each", qkv(1, 4, 3, 2, 2), mask=mask_by_head)
    yield row("two blocks of queries", qkv(1, 1, 66, 1, tk=3))
    yield row("two blocks of queries, causal", qkv(1, 1, 66, 1), causal=True)
    yield row("two blocks, causal, more keys", qkv(1, 2, 65, 1, 1, 68), causal=True)
    yield row("two blocks, causal, fewer keys", qkv(1, 2, 66, 1, 1, 2), causal=True)
    yield row("no queries", qkv(tq=0, tk=3))
    yield row("no keys", qkv(tk=0))
    yield row("empty batch", qkv(b=0))
    yield row("another value size", normal((2, 4, 3, 2), (2, 2, 5, 2), (2, 2, 5, 3)), causal=True)
    yield row("one item for all", normal((2, 2, 3, 2), (1, 2, 4, 2), (2, 2, 4, 2)), mask=hidden)
    yield row("one item of queries", normal((1, 4, 3, 2), (2, 2, 4, 2), (1, 2, 4, 2)), lengths=[4, 1])
    yield row("three axes", normal((2, 3, 2), (2, 4, 2), (2, 4, 1)), mask=some[:, 0])
    yield row("two axes", normal((3, 2), (4, 2), (4, 2)), causal=True)
    yield Case("attention", "one tensor for all", lambda x: ops.attention(x, x, x, causal=True), normal((1, 2, 3, 2)))

    def dropped(name: str, make: Make, **settings) -> Case:
        def fn(q, k, v):
            random.manual_seed(3)
            return ops.attention(q, k, v, dropout_p=0.4, **settings)

        return Case("attention", name, fn, make)

    yield dropped("dropout", qkv(tk=5))
    yield dropped("dropout, causal, grouped", qkv(2, 4, 5, 2, 2), causal=True)
    yield dropped("dropout, mask", qkv(tk=4), mask=some)
    yield dropped("dropout, lengths", qkv(tk=9), lengths=[9, 2])
    yield dropped("dropout, two blocks", qkv(1, 1, 66, 1), causal=True)
    yield from _in_views("attention", lambda q, k, v: ops.attention(q, k, v), qkv(2, 4, 3, 2, 2))

    def swapped(q, k, v):
        return ops.attention(*[x.transpose(1, 2) for x in (q, k, v)]).transpose(1, 2)

    yield Case("attention", "(B, T, H, D) in memory", swapped, normal((2, 3, 4, 2), (2, 3, 2, 2), (2, 3, 2, 2)))


def _cross_entropy() -> Iterator[Case]:
    def targets(*shape: int, classes: int = 5, ignored: int = 0) -> Make:
        def make(rng: np.random.Generator) -> tuple[Array, ...]:
            ids = rng.integers(0, classes, shape)
            ids.reshape(-1)[:ignored] = -100
            return rng.normal(size=(*shape, classes)), ids

        return make

    def loss(reduction: str, smoothing: float = 0.0) -> Callable:
        return lambda logits, ids: ops.cross_entropy(logits, ids, reduction=reduction, label_smoothing=smoothing)

    for reduction in ("mean", "sum", "none"):
        for name, make in {
            "": targets(4),
            ", three axes": targets(2, 3),
            ", some ignored": targets(2, 3, ignored=2),
            ", all ignored": targets(3, ignored=3),
            ", no rows": targets(0),
            ", one class": targets(3, classes=1),
            ", no axes": targets(),
        }.items():
            yield Case("cross_entropy", reduction + name, loss(reduction), make)
            yield Case("cross_entropy", f"{reduction}, smoothed{name}", loss(reduction, 0.2), make)
    yield Case("cross_entropy", "all smoothed", loss("mean", 1.0), targets(4))
    yield Case("cross_entropy", "other ignore_index", lambda x, t: ops.cross_entropy(x, t, ignore_index=2), targets(8))
    factors = np.array([0.5, 2.0, 0.0, 1.5, 1.0])
    for reduction in ("mean", "sum", "none"):
        for smoothing in (0.0, 0.2):

            def weighted(x, t, reduction=reduction, smoothing=smoothing):
                return ops.cross_entropy(x, t, weight=factors, reduction=reduction, label_smoothing=smoothing)

            name = f"class weights, {reduction}" + ", smoothed" * bool(smoothing)
            yield Case("cross_entropy", name, weighted, targets(2, 4, ignored=2))

    def second_axis(*shape: int) -> Make:
        return lambda rng: (rng.normal(size=(shape[0], 5, *shape[1:])), rng.integers(0, 5, shape))

    yield Case("cross_entropy", "classes on axis 1", lambda x, t: ops.cross_entropy(x, t), second_axis(2, 3))
    yield Case("cross_entropy", "classes on axis 1 of 4", lambda x, t: ops.cross_entropy(x, t), second_axis(2, 3, 2))
    square = second_axis(2, 5)
    yield Case("cross_entropy", "dim 1", lambda x, t: ops.cross_entropy(x, t, dim=1), square)
    yield Case("cross_entropy", "dim -1", lambda x, t: ops.cross_entropy(x, t, dim=-1), square)
    yield from _in_views("cross_entropy", lambda x, t: ops.cross_entropy(x, t), targets(2, 3))


CASES: tuple[Case, ...] = (
    *_two_operands(),
    *_one_operand(),
    *_where(),
    *_reductions(),
    *_cumulative(),
    *_einsum(),
    *_matmul(),
    *_rearrange(),
    *_index(),
    *_pick_and_write(),
    *_move_and_repeat(),
    *_join_and_cut(),
    *_softmax(),
    *_normalisation(),
    *_linear_and_embedding(),
    *_dropout_and_rope(),
    *_attention(),
    *_cross_entropy(),
)
