"""Proof that the gradient checks cannot be fooled: break every backward in every simple way, and see each one caught.

Two kinds of wrong backwards. The first changes the gradient of one input after the right one was computed: its sign,
its scale, its order, an element, a missing sum. The second edits the source of the backward: each term of each sum,
each factor of each product is dropped in turn, each sign flipped. A mutant counts as caught when any case of its
operation in `minillm.study.cases` fails.
"""

from __future__ import annotations

import ast
import copy
import functools
import importlib
import inspect
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import minillm
from minillm import ops, random
from minillm.autograd import Op
from minillm.fast import gelu as fast_gelu
from minillm.fast import silu as fast_silu
from minillm.fast import slopes
from minillm.study.cases import CASES
from minillm.study.gradcheck import without_a_row
from minillm.testing import check_gradients


@functools.cache
def cases_of(op: str) -> list[tuple[Callable, tuple]]:
    cases = [(case.fn, case.make_arrays(np.random.default_rng(0))) for case in CASES if case.op == op]
    assert cases, without_a_row(next(one for one in ops.OPS if one.name == op)).report
    return cases


def is_caught(op: str, engine: str, variants: tuple[bool, ...] = (False, True)) -> bool:
    with warnings.catch_warnings(), np.errstate(all="ignore"), minillm.engine(engine):
        warnings.simplefilter("ignore")  # a warning is no proof
        for with_variants in variants:  # most are caught without variants of the arguments, which take long
            for fn, arrays in cases_of(op):
                try:
                    check_gradients(fn, *arrays, variants=with_variants)
                except Exception:
                    return True
    return False


class Broken:
    """One backward of an operation, that of its plain or of its fast pair, to be replaced and put back."""

    def __init__(self, op: Op, engine: str):
        self.op, self.engine, self.right = op, engine, self.backward(op, engine)

    @staticmethod
    def backward(op: Op, engine: str) -> Callable:
        return op.backward if engine == "plain" else op.pair("fast").backward

    def is_caught(self, wrong: Callable, **given: Any) -> bool:
        """True if a check of the operation fails with this backward in the place of the right one."""
        self.put(wrong)
        try:
            return is_caught(self.op.name, self.engine, **given)
        finally:
            self.put(self.right)

    def put(self, backward: Callable) -> None:
        if self.engine == "plain":
            self.op.backward = backward
        else:
            self.op.pairs["fast"] = self.op.pair("fast")._replace(backward=backward)


def all_pairs(engine: str) -> list[Broken]:
    """The pairs of an engine; where a fast pair has the backward of the plain one, that is broken once."""
    if engine == "plain":
        return [Broken(op, engine) for op in ops.OPS]
    fast = [op for op in ops.OPS if op.pair("fast")]
    return [Broken(op, engine) for op in fast if op.pair("fast").backward is not op.backward]


ENGINES = pytest.mark.parametrize("engine", ["plain", "fast"])


@pytest.fixture(autouse=True)
def stream():
    """The dropout cases restart the default stream; leave it as it was."""
    place = random.default.state()
    yield
    random.default.set_state(place)


# --- wrong gradients -----------------------------------------------------------------------------------------------


def transposed(gradient):
    if gradient.ndim < 2:
        return gradient[::-1].copy() if gradient.ndim else gradient
    return np.swapaxes(gradient, -1, -2).reshape(gradient.shape)


def without_largest(gradient):
    if gradient.size:
        gradient.reshape(-1)[np.argmax(abs(gradient))] = 0
    return gradient


def without_first(gradient):
    gradient.reshape(-1)[:1] = 0
    return gradient


WRONG = {
    "sign flipped": lambda gradient: -gradient,
    "doubled": lambda gradient: 2 * gradient,
    "zeros": lambda gradient: 0 * gradient,
    "scaled by 1.01": lambda gradient: 1.01 * gradient,
    "scaled by 1.00001": lambda gradient: 1.00001 * gradient,
    "0.001 added": lambda gradient: gradient + 0.001,
    "transposed": transposed,
    "largest element dropped": without_largest,
    "first element dropped": without_first,
    "last digits lost": lambda gradient: gradient.astype(np.float16).astype(gradient.dtype),
    "None": lambda gradient: None,
    "float32": lambda gradient: gradient.astype(np.float32),
    "one axis too many": lambda gradient: gradient[None],
}


class Wrong:
    """A backward whose gradient of one input is broken; remembers whether that ever made a difference."""

    def __init__(self, backward: Callable, position: int, change: Callable):
        self.backward, self.position, self.change, self.differs = backward, position, change, False

    def __call__(self, dout, saved, *into):
        gradients = list(self.backward(dout, saved, *into))
        right = gradients[self.position]
        if right is not None:
            wrong = self.broken(np.array(right), dout, saved)
            same = wrong is not None and wrong.dtype == right.dtype and np.array_equal(wrong, right, equal_nan=True)
            self.differs |= not same
            gradients[self.position] = wrong
        return tuple(gradients)

    def broken(self, gradient, dout, saved):
        return self.change(gradient)


class FirstSlice(Wrong):
    """The gradient of one input counts only the first slice of an axis of dout: a missing sum over a broadcast axis."""

    def broken(self, gradient, dout, saved):
        axis = self.change
        if isinstance(dout, tuple) or np.ndim(dout) <= axis or gradient.ndim >= np.ndim(dout):
            return gradient
        part = np.array(dout)
        np.moveaxis(part, axis, 0)[1:] = 0
        return np.asarray(self.backward(part, saved)[self.position])


def differentiable_inputs(broken: Broken) -> set[int]:
    """The positions of the inputs that get a gradient in some case."""
    found = set()

    def watching(dout, saved, *into):
        gradients = broken.right(dout, saved, *into)
        found.update(i for i, gradient in enumerate(gradients) if gradient is not None)
        return gradients

    assert not broken.is_caught(watching, variants=(False,))
    return found


@ENGINES
def test_every_wrong_gradient_is_caught(engine, capsys):
    caught, missed = 0, []
    for broken in all_pairs(engine):
        for position in sorted(differentiable_inputs(broken)):
            wrongs = {name: Wrong(broken.right, position, change) for name, change in WRONG.items()}
            wrongs |= {f"first slice of axis {axis}": FirstSlice(broken.right, position, axis) for axis in (0, 1)}
            for name, wrong in wrongs.items():
                if broken.is_caught(wrong):
                    caught += 1
                elif wrong.differs:
                    missed.append(f"{broken.op.name}, input {position}: {name}")
    with capsys.disabled():
        print(f"\n{caught} of {caught + len(missed)} wrong gradients of {engine} pairs caught")
    assert not missed
    assert caught > 10 * len(all_pairs(engine))


STRETCH = sys.modules["minillm.ops.broadcast"]


@pytest.mark.parametrize(
    ("op", "side"),
    [
        *((op, None) for op in ("add", "sub", "mul", "div", "remainder", "pow", "where", "broadcast")),
        ("matmul", 0),
        ("matmul", 1),
    ],
)
def test_unbroadcast_that_does_not_sum_is_caught(op, side, monkeypatch):
    """`side`: of which input of matmul, which sums itself; the others stretch their inputs by `broadcast` before."""
    calls = 0

    def first_slice(gradient, shape):
        nonlocal calls
        calls += 1
        if gradient.shape == shape or (side is not None and (calls - 1) % 2 != side) or 0 in gradient.shape:
            return right(gradient, shape)
        leading = gradient.ndim - len(shape)
        kept = gradient[(0,) * leading]
        return kept[tuple(slice(0, 1) if n == 1 else slice(None) for n in shape)].reshape(shape)

    right = STRETCH.unbroadcast
    module = STRETCH if side is None else sys.modules["minillm.ops.matmul"]
    monkeypatch.setattr(module, "unbroadcast", first_slice)
    assert is_caught(op, "plain")
    assert calls


# --- wrong sources -------------------------------------------------------------------------------------------------


def is_numpy(node: ast.AST, *names: str) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in names
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "np"
    )


def edits(node: ast.AST) -> Iterator[ast.AST]:
    """What one node of a syntax tree may be replaced with: a term or factor fewer, or another sign."""
    flipped = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
    if isinstance(node, ast.BinOp) and type(node.op) in flipped:
        yield node.left
        if not isinstance(node.op, ast.Div):
            yield ast.UnaryOp(ast.USub(), node.right) if isinstance(node.op, ast.Sub) else node.right
        yield ast.BinOp(node.left, flipped[type(node.op)](), node.right)
    elif isinstance(node, ast.AugAssign) and type(node.op) in flipped:
        yield ast.Pass()
        yield ast.AugAssign(node.target, flipped[type(node.op)](), node.value)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        yield node.operand
    elif is_numpy(node, "add", "subtract", "multiply", "divide"):
        nothing = ast.Constant(0 if node.func.attr in ("add", "subtract") else 1)
        yield ast.Call(node.func, [node.args[0], nothing], node.keywords)
        yield ast.Call(node.func, [nothing, node.args[1]], node.keywords)
    elif is_numpy(node, "vecdot", "einsum"):
        for i, argument in enumerate(node.args):
            if not isinstance(argument, ast.Constant):
                ones = ast.parse(f"np.ones_like({ast.unparse(argument)})", mode="eval").body
                yield ast.Call(node.func, [*node.args[:i], ones, *node.args[i + 1 :]], node.keywords)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("sum", "mean"):
        other = {"sum": "max", "mean": "sum"}[node.func.attr]
        yield ast.Call(ast.Attribute(node.func.value, other, ast.Load()), node.args, node.keywords)


class Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST):
        self.old, self.new = old, new

    def visit(self, node):
        return self.new if node is self.old else self.generic_visit(node)


def source_mutants(function: Callable) -> Iterator[tuple[str, Callable]]:
    """The function with one place edited, compiled among the names of its module."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for number, node in enumerate(ast.walk(tree)):
        for choice in range(len(list(edits(node)))):
            mutant = copy.deepcopy(tree)
            target = next(one for i, one in enumerate(ast.walk(mutant)) if i == number)
            new = list(edits(target))[choice]
            description = f"{function.__name__}: {ast.unparse(node)} -> {ast.unparse(new)}"
            mutant = ast.fix_missing_locations(Replace(target, new).visit(mutant))
            namespace = dict(vars(sys.modules[function.__module__]))
            exec(compile(mutant, f"<{description}>", "exec"), namespace)
            yield description, namespace[function.__name__]


@ENGINES
def test_every_wrong_source_is_caught(engine, capsys):
    caught, missed = 0, []
    for right in dict.fromkeys(broken.right for broken in all_pairs(engine)):
        users = [broken for broken in all_pairs(engine) if broken.right is right]
        for description, mutant in source_mutants(right):
            if any(broken.is_caught(mutant) for broken in users):
                caught += 1
            else:
                missed.append(description)
    with capsys.disabled():
        print(f"\n{caught} of {caught + len(missed)} wrong sources of {engine} pairs caught")
    assert not missed
    assert caught > 2 * len(all_pairs(engine))


HELPERS = [
    (STRETCH.unbroadcast, ["add", "sub", "mul", "div", "pow", "where", "matmul", "broadcast"]),
    (sys.modules["minillm.ops.reduce"].restore_axes, ["sum", "mean", "amax", "var", "std", "norm", "logsumexp"]),
    (sys.modules["minillm.ops.rounding"].signs, ["abs", "norm"]),
    (sys.modules["minillm.ops.choice"].split_between, ["maximum", "minimum"]),
    (sys.modules["minillm.ops.cumulative"].running_sums, ["cumsum"]),
    (sys.modules["minillm.ops.einsum"].multiply, ["einsum"]),
    (fast_gelu.write_slope_of_tanh_form, ["gelu", "bias_gelu"]),
    (fast_gelu.write_slope_of_erf_form, ["gelu", "bias_gelu"]),
    (slopes.backward, ["gelu", "silu"]),
    (slopes.backward_with_bias, ["bias_gelu"]),
    (fast_silu.write_slope, ["silu", "swiglu"]),
    (sys.modules["minillm.ops.power"].slope_of_base, ["pow"]),
    (sys.modules["minillm.ops.power"].slope_of_exponent, ["pow"]),
    (sys.modules["minillm.ops.norm"].to_all, ["norm"]),
    (sys.modules["minillm.ops.norm"].to_the_extremes, ["norm"]),
    (importlib.import_module("minillm.fast.tanh").gradient, ["tanh"]),
    (importlib.import_module("minillm.fast.sigmoid").gradient, ["sigmoid"]),
    (importlib.import_module("minillm.fast.where").masked, ["where", "relu", "clip"]),
    (importlib.import_module("minillm.fast.broadcast").unbroadcast, ["add", "mul", "matmul", "broadcast"]),
]


def test_every_wrong_helper_is_caught(capsys):
    """Functions that only gradients need are broken too, for all their callers at once."""
    caught, missed = 0, []
    for right, users in HELPERS:
        for description, mutant in source_mutants(right):
            with pytest.MonkeyPatch.context() as patch:
                for module in list(sys.modules.values()):
                    if (
                        getattr(module, "__name__", "").startswith(("minillm.ops", "minillm.fast"))
                        and getattr(module, right.__name__, None) is right
                    ):
                        patch.setattr(module, right.__name__, mutant)
                engine = "plain" if right.__module__.startswith("minillm.ops") else "fast"
                if any(is_caught(user, engine) for user in users):
                    caught += 1
                else:
                    missed.append(description)
    with capsys.disabled():
        print(f"\n{caught} of {caught + len(missed)} wrong helpers caught")
    assert not missed
