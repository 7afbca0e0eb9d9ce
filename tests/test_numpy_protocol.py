"""NumPy's functions on tensors: they are our operations, or NumPy's answer, or an error that says what to write."""

from __future__ import annotations

import numpy as np
import pytest

from minillm import ops
from minillm.autograd import Parameter, Tensor, no_grad, tensor
from minillm.errors import GraphError, MinillmError

A = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], np.float32)

# What people write, as a function of two matrices of one shape.
FUNCTIONS = {
    "concatenate": lambda x, y: np.concatenate([x, y]),
    "concatenate, one of two": lambda x, y: np.concatenate([A, y], axis=1),
    "stack": lambda x, y: np.stack([x, y]),
    "vstack": lambda x, y: np.vstack((x, y)),
    "hstack": lambda x, y: np.hstack((x, y)),
    "where": lambda x, y: np.where(A > 2, x, y),
    "einsum": lambda x, y: np.einsum("ij,ij->i", x, y),
    "tril": lambda x, y: np.tril(x),
    "clip": lambda x, y: np.clip(x, 2, 4),
    "transpose": lambda x, y: np.transpose(x),
    "reshape": lambda x, y: np.reshape(x, (3, 2)),
    "dot": lambda x, y: np.dot(x, y.T),
    "outer": lambda x, y: np.outer(x, y),
    "r_": lambda x, y: np.r_[x, y],
    "c_": lambda x, y: np.c_[x, y],
    "sum": lambda x, y: np.sum(x),
    "sum of an axis": lambda x, y: np.sum(x, axis=0, keepdims=True),
    "mean": lambda x, y: np.mean(x, axis=1),
    "max": lambda x, y: np.max(x),
    "var": lambda x, y: np.var(x),
    "cumsum": lambda x, y: np.cumsum(x),
    "norm": lambda x, y: np.linalg.norm(x),
    "roll": lambda x, y: np.roll(x, 1),
    "pad": lambda x, y: np.pad(x, 1),
    "tile": lambda x, y: np.tile(x, 2),
    "split": lambda x, y: np.split(x, 3, axis=1)[0],
    "squeeze": lambda x, y: np.squeeze(x),
    "expand_dims": lambda x, y: np.expand_dims(x, 0),
    "broadcast_to": lambda x, y: np.broadcast_to(x, (2, 2, 3)),
    "take": lambda x, y: np.take(x, [0, 1]),
    "asarray": lambda x, y: np.asarray(x),
    "array": lambda x, y: np.array([x, y]),
    "array of rows": lambda x, y: np.array(list(x)),
    "float64": lambda x, y: np.float64(x),
    "add.reduce": lambda x, y: np.add.reduce(x),
    "multiply.outer": lambda x, y: np.multiply.outer(x, y),
    "arctan": lambda x, y: np.arctan(x),
    "add to an array": lambda x, y: np.add(A, y, out=np.zeros_like(A)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_gradient_is_never_cut_silently(name):
    function = FUNCTIONS[name]
    x, y = tensor(A, requires_grad=True), tensor(A + 1, requires_grad=True)
    for one, other in ((x, y), (x * 1, y * 1), (Parameter(A.copy()), Parameter(A + 1))):
        with pytest.raises(GraphError, match=r"would lose it.*(write|give) x?") as caught:
            function(one, other)
        assert str(caught.value).startswith("np.")
        assert "detach()" in str(caught.value)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_without_a_gradient_it_is_numpys_answer(name):
    function = FUNCTIONS[name]
    expected = function(A, A + 1)
    found = function(tensor(A), tensor(A + 1))
    assert not isinstance(found, Tensor)
    np.testing.assert_array_equal(found, expected)
    with no_grad():  # where no tensor could get a gradient
        np.testing.assert_array_equal(function(tensor(A, requires_grad=True), Parameter(A + 1)), expected)


def test_errors_name_what_to_write():
    x = tensor(A, requires_grad=True)
    for function, text in [
        (lambda: np.concatenate([x, x]), r"np.concatenate: .*write minillm.ops.concat\(tensors\)"),
        (lambda: np.stack([x, x]), r"np.stack: .*write minillm.ops.stack\(tensors\)"),
        (lambda: np.dot(x, x), "np.dot: .*write x @ y"),
        (lambda: np.sum(x), r"np.sum: .*write x.sum\(...\)"),
        (lambda: np.reshape(x, 6), r"np.reshape: .*write x.reshape\(...\)"),
        (lambda: np.linalg.norm(x), r"np.linalg.norm: .*write x.norm\(\)"),
        (lambda: np.asarray(x), r"np.asarray: .*x.detach\(\) or x.numpy\(\)"),
        (lambda: tensor([x, x]), r"np.asarray: .*minillm.ops.stack\(tensors\)"),
        (lambda: tensor(x), r"tensor: data needs a gradient.*data.detach\(\)"),
        (lambda: Tensor([x, x]), "np.asarray: a tensor that needs a gradient"),
        (lambda: ops.add(x, [x[0], x[1]]), "np.asarray: a tensor that needs a gradient"),
    ]:
        with pytest.raises(GraphError, match=text):
            function()


UNARY = {"exp": np.exp, "log": np.log, "sqrt": np.sqrt, "tanh": np.tanh, "negative": np.negative}
BINARY = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide, "power": np.power}
BINARY |= {"remainder": np.remainder}


@pytest.mark.parametrize("name", [*UNARY, *BINARY])
def test_ufuncs_that_are_operations_here_have_gradients(name):
    x, y = tensor(A.astype(float), requires_grad=True), tensor(A + 0.25, requires_grad=True)
    u = np.random.default_rng(1).normal(size=A.shape)
    if name in UNARY:
        out, expected = UNARY[name](x), UNARY[name](x.data)
        out.backward(u)
        step = 1e-6
        slope = (UNARY[name](x.data + step) - UNARY[name](x.data - step)) / (2 * step)
        np.testing.assert_allclose(x.grad, u * slope, rtol=1e-6)
    else:
        function = BINARY[name]
        expected = function(A, y.data)
        for left, right in ((A, y), (x, y)):
            out = function(left, right)
            y.grad = None
            out.backward(u)
            step = 1e-3
            slope = (function(A, y.data + step) - function(A, y.data - step)) / (2 * step)
            np.testing.assert_allclose(y.grad, u * slope, rtol=1e-2, atol=1e-2)
    assert type(out) is Tensor
    np.testing.assert_allclose(out.data, expected, rtol=1e-6)


def test_an_array_and_a_tensor_make_a_tensor():
    x = tensor(A, requires_grad=True)
    for result in (
        A * x,
        A + x,
        A - x,
        A / x,
        A @ x.T,
        A**x,
        A % x,
        A // x,
        np.equal(A, x),
        np.less(A, x),
        np.float64(2) * x,
    ):
        assert type(result) is Tensor
    assert np.equal(A, x).data.all()
    assert type(np.less(A, x)) is Tensor
    (A * x).sum().backward()
    np.testing.assert_array_equal(x.grad, A)
    assert (np.float64(2) * x).dtype == np.float32


def test_writing_into_arrays():
    total = np.zeros_like(A)
    total += tensor(A)
    total += A
    np.testing.assert_array_equal(total, 2 * A)
    x = tensor(A, requires_grad=True)
    with pytest.raises(GraphError, match=r"np.add: .*write a = a \+ x for a \+= x"):
        total += x
    with pytest.raises(GraphError, match=r"np.asarray"):
        total[0] = x[0]
    np.testing.assert_array_equal(total, 2 * A)
    with pytest.raises(GraphError, match="out= is a tensor"):
        np.exp(A, out=tensor(A))
    with pytest.raises(GraphError, match=r"np.copyto: the array to write into is a tensor"):
        np.copyto(tensor(A), A)


def test_what_has_no_gradient_is_answered():
    x = tensor(A, requires_grad=True) * 1
    assert np.shape(x) == (2, 3)
    assert (np.ndim(x), np.size(x)) == (2, 6)
    assert np.zeros_like(x).shape == (2, 3)
    assert np.argmax(x) == 5
    assert np.isnan(x).data.sum() == 0
    np.testing.assert_array_equal(np.floor(x), A)
    assert np.allclose(x, A)
    assert np.array_equal(x, A)


def test_numpys_own_checks_read_tensors_without_a_gradient():
    np.testing.assert_allclose(tensor(A), A)
    np.testing.assert_array_equal(tensor(A, requires_grad=True).detach(), A)
    assert np.asarray(tensor(A), dtype=np.float64).dtype == np.float64


@pytest.mark.parametrize("join", [ops.stack, ops.concat])
def test_what_the_errors_say_has_the_gradient(join):
    x, y = tensor(A, requires_grad=True), tensor(A, requires_grad=True)
    joined = join([x, y * 2])
    u = np.random.default_rng(2).normal(size=joined.shape).astype(np.float32)
    joined.backward(u)
    np.testing.assert_array_equal(x.grad, u.reshape(2, 2, 3)[0])
    np.testing.assert_array_equal(y.grad, 2 * u.reshape(2, 2, 3)[1])


def test_every_refusal_is_a_sentence():
    x = tensor(A, requires_grad=True)
    for function in (np.fft.fft, np.linalg.inv, np.median, np.sort, np.interp, np.kron, np.histogram2d):
        with pytest.raises(MinillmError, match=r"np\..*would lose it in NumPy"):
            function(x, *([x, x] if function is np.interp else [x] if function in (np.kron, np.histogram2d) else []))
