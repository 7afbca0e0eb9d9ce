"""Elementwise arithmetic: NumPy's values, limits where a formula has none, and the table of operators."""

from __future__ import annotations

import math
import operator

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm import ops
from minillm.autograd import Tensor
from minillm.fast.broadcast import unbroadcast as fast_unbroadcast
from minillm.ops.activations import logistic
from minillm.ops.broadcast import unbroadcast
from minillm.ops.operands import operand

X = np.array([[-2.0, -0.5, 0.0], [0.5, 1.0, 3.0]])
POSITIVE = np.array([[0.1, 0.5, 1.0], [2.0, 3.0, 10.0]])


@pytest.mark.parametrize(
    ("ours", "numpys", "x"),
    [
        (ops.neg, np.negative, X),
        (ops.exp, np.exp, X),
        (ops.log, np.log, POSITIVE),
        (ops.sqrt, np.sqrt, POSITIVE),
        (ops.tanh, np.tanh, X),
        (ops.sigmoid, lambda x: 1 / (1 + np.exp(-x)), X),
        (ops.relu, lambda x: x * (x > 0), X),
    ],
)
def test_functions_of_one_argument(ours, numpys, x):
    np.testing.assert_allclose(ours(Tensor(x)).data, numpys(x), rtol=1e-15, atol=0)
    np.testing.assert_allclose(ours(x[0]).data, numpys(x[0]), rtol=1e-15, atol=0)  # arrays are taken too
    assert ours(Tensor(x.astype(np.float32))).dtype == np.float32


@pytest.mark.parametrize("sign", [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow])
@pytest.mark.parametrize("other", [2.0, 3, POSITIVE[0], POSITIVE[:, :1]], ids=["float", "int", "row", "column"])
def test_operators_on_either_side(sign, other):
    x = Tensor(POSITIVE)
    np.testing.assert_array_equal(sign(x, other).data, sign(POSITIVE, other))
    np.testing.assert_array_equal(sign(other, x).data, sign(other, POSITIVE))
    np.testing.assert_array_equal(sign(x, Tensor(np.asarray(other))).data, sign(POSITIVE, other))


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "pow"])
def test_public_functions_take_numbers_arrays_and_lists(name):
    function = getattr(ops, name)
    numpys = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": np.power}[name]
    for x, y in [(2.0, 3.0), (POSITIVE, 2), ([1.0, 2.0], Tensor(np.array(4.0))), (np.float32(2), POSITIVE)]:
        expected = numpys(np.asarray(x), y.data if isinstance(y, Tensor) else np.asarray(y))
        np.testing.assert_allclose(function(x, y).data, expected)


def test_comparisons_give_boolean_tensors():
    x, y = Tensor(X), X[0]
    for sign in (operator.gt, operator.ge, operator.lt, operator.le):
        for a, b in [(x, Tensor(y)), (x, y), (x, 0.5), (y, x), (0.5, x)]:
            result = sign(a, b)
            assert result.dtype == bool
            assert not result.requires_grad
            raw = [one.data if isinstance(one, Tensor) else one for one in (a, b)]
            np.testing.assert_array_equal(result.data, sign(*raw))


def test_methods_are_the_functions():
    x = Tensor(POSITIVE)
    for name in ("exp", "log", "sqrt", "tanh", "sigmoid", "relu", "sum", "mean", "max", "softmax", "log_softmax"):
        np.testing.assert_array_equal(getattr(x, name)().data, getattr(ops, name)(x).data)
    np.testing.assert_array_equal(x.pow(2).data, POSITIVE**2)
    np.testing.assert_array_equal(x.clip(0.3, 2).data, np.clip(POSITIVE, 0.3, 2))
    np.testing.assert_array_equal(x.matmul(Tensor(X.T)).data, POSITIVE @ X.T)


def test_shapes_that_do_not_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"add: the shapes \(2, 3\) and \(2,\) do not broadcast"):
        Tensor(X) + np.ones(2)


# --- broadcasting in reverse ---------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(hnp.mutually_broadcastable_shapes(num_shapes=2, min_side=0, max_side=3), st.integers(0, 2**32 - 1))
def test_unbroadcast_is_the_transpose_of_broadcasting(shapes, seed):
    """<g, broadcast(x)> = <unbroadcast(g), x> for every x: what a backward must do."""
    rng = np.random.default_rng(seed)
    shape = shapes.input_shapes[0]
    gradient, x = rng.normal(size=shapes.result_shape), rng.normal(size=shape)
    for sums in (unbroadcast, fast_unbroadcast):
        back = sums(gradient, shape)
        assert back.shape == shape
        assert np.vdot(back, x) == pytest.approx(np.vdot(gradient, np.broadcast_to(x, shapes.result_shape)), abs=1e-12)


def test_unbroadcast_leaves_what_was_not_stretched():
    gradient = np.ones((2, 3))
    for sums in (unbroadcast, fast_unbroadcast):
        assert sums(gradient, (2, 3)) is gradient
        assert sums(np.float64(2), ()) == 2


def test_operands():
    x = Tensor(X)
    assert operand(x) is x
    assert operand(2.5) == 2.5
    assert operand(X) is X
    for number in (np.float64(2), np.float32(2), np.int64(2), np.array(2.0), np.array(2), True):
        assert type(operand(number)) in (float, int, bool)
    np.testing.assert_array_equal(operand([1, 2]), np.array([1, 2]))


# --- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_never_overflows_and_keeps_small_values(dtype):
    x = np.array([-np.inf, -1000, -80, 0, 80, 1000, np.inf], dtype)
    y = ops.sigmoid(Tensor(x)).data
    assert y.dtype == dtype
    np.testing.assert_allclose(y, [0, 0, math.exp(-80), 0.5, 1, 1, 1], rtol=1e-5 if dtype == np.float32 else 1e-14)
    assert np.isnan(logistic(np.array(np.nan)))


def test_powers_of_zero():
    x = Tensor(np.array([0.0, 0.0, 0.0, 2.0]), requires_grad=True)
    y = Tensor(np.array([0.0, 1.0, 2.0, 3.0]), requires_grad=True)
    z = x**y
    np.testing.assert_array_equal(z.data, [1, 0, 0, 8])
    z.backward(np.ones(4))
    np.testing.assert_array_equal(x.grad, [0, 1, 0, 12])
    np.testing.assert_allclose(y.grad, [0, 0, 0, 8 * math.log(2)])


@pytest.mark.parametrize("exponent", [0, 1, 2, 0.0, 3.0])
def test_powers_of_zero_with_a_number(exponent):
    x = Tensor(np.array([0.0, -2.0]), requires_grad=True)
    (x**exponent).backward(np.ones(2))
    np.testing.assert_allclose(x.grad, [float(exponent == 1), exponent * (-2.0) ** (exponent - 1)])


def test_a_negative_base_has_a_gradient_itself_and_its_exponent_has_none():
    """No warning either: the exponents are constants, and nobody looks at their gradient."""
    x = Tensor(np.array([-2.0, -3.0]), requires_grad=True)
    (x ** np.array([2.0, 3.0])).backward(np.ones(2))
    np.testing.assert_allclose(x.grad, [-4, 27])
    y = Tensor(np.array([2.0]), requires_grad=True)
    (np.array([-2.0]) ** y).backward(np.ones(1))
    assert np.isnan(y.grad).all()


@pytest.mark.parametrize("base", [np.array([2, 3], np.int8), np.array([2, 3], np.uint16), np.array([2, 3]), [2, 3]])
def test_integer_bases_keep_the_precision_of_the_exponent(base):
    y = Tensor(np.array([1.5, 2.5]), requires_grad=True)
    (np.asarray(base) ** y).backward(np.ones(2))
    np.testing.assert_allclose(y.grad, [2**1.5 * math.log(2), 3**2.5 * math.log(3)], rtol=1e-14)


def test_relu_and_clip_at_their_kinks():
    x = Tensor(np.array([-1.0, 0.0, 1.0, 2.0]), requires_grad=True)
    x.relu().backward(np.ones(4))
    np.testing.assert_array_equal(x.grad, [0, 0, 1, 1])
    x.grad = None
    x.clip(0, 1).backward(np.ones(4))
    np.testing.assert_array_equal(x.grad, [0, 1, 1, 0])


# --- choices -------------------------------------------------------------------------------------------------------


def test_where_takes_all_kinds():
    condition = X > 0
    for c in (condition, Tensor(condition), condition.tolist(), condition.astype(int)):
        np.testing.assert_array_equal(ops.where(c, Tensor(X), 9.0).data, np.where(condition, X, 9.0))
    np.testing.assert_array_equal(
        ops.where(condition, X[0], POSITIVE[:, :1]).data, np.where(condition, X[0], POSITIVE[:, :1])
    )
    assert ops.where(True, 1.0, Tensor(X)).shape == X.shape


def test_where_shuts_the_other_side_out_even_where_it_is_infinite():
    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    y = Tensor(np.array([np.inf, np.nan]), requires_grad=True)
    ops.where([True, True], x, y).backward(np.array([3.0, 4.0]))
    np.testing.assert_array_equal(x.grad, [3, 4])
    np.testing.assert_array_equal(y.grad, [0, 0])


@pytest.mark.parametrize("limits", [(-1, 1), (None, 0.6), (0.2, None), (None, None), (np.float64(-1), np.float32(2))])
def test_clip(limits):
    np.testing.assert_array_equal(Tensor(X).clip(*limits).data, np.clip(X, *limits))
    assert Tensor(X.astype(np.float32)).clip(*limits).dtype == np.float32
    np.testing.assert_array_equal(ops.clip(Tensor(X), min=limits[0], max=limits[1]).data, np.clip(X, *limits))


# --- oracle --------------------------------------------------------------------------------------------------------

PAIRS = [((3, 4), (3, 4)), ((4,), (3, 4)), ((3, 1), (1, 4)), ((), (2, 3)), ((2, 1, 3), (4, 1))]


@pytest.mark.oracle
@pytest.mark.parametrize("sign", [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow])
@pytest.mark.parametrize("shapes", PAIRS)
def test_two_operands_as_in_torch(sign, shapes, same_as_torch, rng):
    same_as_torch(sign, sign, *(rng.uniform(0.5, 2, shape) for shape in shapes))


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["neg", "exp", "log", "sqrt", "tanh", "sigmoid", "relu"])
def test_one_operand_as_in_torch(name, same_as_torch, rng):
    torch = pytest.importorskip("torch")
    same_as_torch(getattr(ops, name), getattr(torch, name), rng.uniform(0.5, 2, (3, 4)))


@pytest.mark.oracle
@pytest.mark.parametrize("exponent", [0, 1, 2, 0.5, -1, 3.0])
def test_powers_as_in_torch(exponent, same_as_torch, rng):
    same_as_torch(lambda x: x**exponent, lambda x: x**exponent, rng.uniform(0.5, 2, (3, 4)))
    same_as_torch(lambda x: 2.5**x, lambda x: 2.5**x, rng.normal(size=(3, 4)))


@pytest.mark.oracle
def test_choices_as_in_torch(same_as_torch, rng):
    torch = pytest.importorskip("torch")
    x, y, condition = rng.normal(size=(3, 4)), rng.normal(size=(4,)), rng.random((3, 1)) < 0.5
    same_as_torch(
        lambda x, y: ops.where(condition, x, y), lambda x, y: torch.where(torch.tensor(condition), x, y), x, y
    )
    same_as_torch(lambda x: x.clip(-0.5, 0.5), lambda x: x.clip(-0.5, 0.5), x)
