"""Gradient-check rows of arithmetic, activations and `where`: each element is computed from elements."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from minillm import ops
from minillm.backend import Array
from minillm.study.cases.recipes import (
    SHAPES_OF_ONE,
    SHAPES_OF_TWO,
    Case,
    Make,
    apart,
    apart_from_each_other,
    in_views,
    normal,
    positive,
)

STEPS = ("sign", "floor", "ceil", "round", "trunc")


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
        yield from in_views(op, fn, make((3, 4), (3, 4)))
        yield Case(op, "number on the left", lambda x, fn=fn: fn(1.5, x), make((2, 3)))
        yield Case(op, "number on the right", lambda x, fn=fn: fn(x, 3), make((2, 3)))
        yield Case(op, "array on the left", lambda x, fn=fn: fn(np.full((4, 1, 1), 1.5, x.dtype), x), make((2, 3)))
        yield Case(op, "array on the right", lambda x, fn=fn: fn(x, np.full((4, 1, 3), 1.5, x.dtype)), make((2, 3)))
        yield Case(op, "one tensor twice", lambda x, fn=fn: fn(x, x), make((2, 3)))
    yield from _remainder()
    for op, fn in [("maximum", ops.maximum), ("minimum", ops.minimum)]:
        for name, shapes in SHAPES_OF_TWO.items():
            yield Case(op, name, fn, apart_from_each_other(*shapes))
        yield from in_views(op, fn, apart_from_each_other((3, 4), (3, 4)))
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
    yield from in_views("clip", lambda x, a: x.clip(max=a), apart_from_each_other((3, 4), (3, 4)), "tensor limit, ")
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
    yield from in_views("remainder", lambda x, y: x % y, make((3, 4), (3, 4)))
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
        yield from in_views(op, fn, make((3, 4)))
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
    yield from in_views("gelu", lambda x: ops.gelu(x, "tanh"), normal((3, 4)), "tanh form, ")
    for op, what, biased in [
        ("bias_gelu", "exact form", ops.bias_gelu),
        ("bias_gelu", "tanh form", lambda x, bias: ops.bias_gelu(x, bias, "tanh")),
    ]:
        for name, shape in {"matrix": (3, 4), "vector": (4,), "size 1": (1, 1), "three axes": (2, 3, 4)}.items():
            yield Case(op, f"{what}, {name}", biased, normal(shape, shape[-1:]))
        yield Case(op, f"{what}, no rows", biased, normal((0, 4), (4,)))
        yield Case(op, f"{what}, no columns", biased, normal((3, 0), (0,)))
        yield Case(op, f"{what}, one tensor twice", lambda x, fn=biased: fn(x, x), normal((4,)))
        yield from in_views(op, biased, normal((3, 4), (4,)), f"{what}, ")
    yield Case("abs", "at 0", lambda x: x.abs(), lambda rng: (np.array([0.0, 0, -1]),))
    yield Case("softplus", "beta", lambda x: ops.softplus(x, 2.5), normal((3, 4)))
    yield Case("softplus", "logsigmoid", lambda x: ops.logsigmoid(x), normal((3, 4)))
    yield Case("round", "decimals", lambda x: ops.round(x, 1), lambda rng: (rng.permutation(9) / 10 + 0.02,))
    yield Case("clip", "below only", lambda x: x.clip(min=0.1), apart((5,)))
    yield Case("clip", "above only", lambda x: x.clip(max=0.1), apart((5,)))
    yield Case("clip", "no limits", lambda x: x.clip(), apart((5,)))
    for name, shape in SHAPES_OF_ONE.items():
        yield Case("swiglu", name, lambda gate, up: ops.swiglu(gate, up), normal(shape, shape))
    yield from in_views("swiglu", lambda gate, up: ops.swiglu(gate, up), normal((3, 4), (3, 4)))
    yield Case("swiglu", "one tensor twice", lambda x: ops.swiglu(x, x), normal((2, 3)))


def _where() -> Iterator[Case]:
    def mask(*shape: int) -> Make:
        return lambda rng: (rng.permutation(int(np.prod(shape))).reshape(shape) % 2 == 0,)

    def both(first: Make, second: Make) -> Make:
        return lambda rng: (*first(rng), *second(rng))

    def where(condition, x, y):
        return ops.where(condition, x, y)

    yield Case("where", "one shape", where, both(mask(3, 4), normal((3, 4), (3, 4))))
    yield Case("where", "condition stretched", where, both(mask(3, 1), normal((3, 4), (3, 4))))
    yield Case("where", "x stretched", where, both(mask(3, 4), normal((4,), (3, 4))))
    yield Case("where", "y stretched", where, both(mask(3, 4), normal((3, 4), (3, 1))))
    yield Case("where", "condition stretches both", where, both(mask(2, 3, 4), normal((), (3, 1))))
    yield Case("where", "new and size-1 axes", where, both(mask(2, 3, 4), normal((3, 1), (2, 1, 4))))
    yield Case("where", "empty", where, both(mask(0, 4), normal((4,), (0, 4))))
    yield Case("where", "number for x", lambda c, y: ops.where(c, 0.5, y), both(mask(3, 4), normal((4,))))
    yield Case("where", "number for y", lambda c, x: ops.where(c, x, 0.5), both(mask(3, 4), normal((4,))))
    yield Case("where", "one tensor twice", lambda c, x: ops.where(c, x, x), both(mask(3, 4), normal((3, 1))))
    yield Case("where", "condition is a comparison", lambda x, y: ops.where(x > y + 0.03, x, y), apart((3, 4), (3, 4)))
    yield from in_views("where", where, both(mask(3, 4), normal((3, 4), (3, 4))))


CASES: tuple[Case, ...] = (
    *_two_operands(),
    *_one_operand(),
    *_where(),
)
