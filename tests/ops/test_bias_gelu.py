"""GELU of x + bias as one operation: values and gradients are those of a sum before it."""

from __future__ import annotations

import numpy as np
import pytest

from minillm import ops
from minillm.autograd import Tensor
from minillm.engine import engine
from minillm.errors import DtypeError, InputError, ShapeError


@pytest.mark.parametrize("mode", ["plain", "fast"])
@pytest.mark.parametrize("form", ["none", "tanh"])
@pytest.mark.parametrize("shape", [(5,), (1, 1), (3, 5), (2, 3, 5), (0, 5), (3, 0), (700, 500)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-13)])
def test_a_bias_is_added_before(form, shape, dtype, tolerance, mode, rng):
    """The largest shape takes several row blocks, on several threads."""
    arrays = [rng.normal(size=size).astype(dtype) for size in (shape, shape[-1:])]
    u = rng.normal(size=shape).astype(dtype)
    (x, bias), (x_apart, bias_apart) = ([Tensor(a, requires_grad=True) for a in arrays] for _ in range(2))
    with engine(mode):
        y, apart = ops.bias_gelu(x, bias, form), ops.gelu(x_apart + bias_apart, form)
    y.backward(u)
    apart.backward(u)
    assert y.dtype == x.grad.dtype == bias.grad.dtype == dtype
    np.testing.assert_array_equal(y.data, apart.data)
    np.testing.assert_array_equal(x.grad, x_apart.grad)
    np.testing.assert_allclose(bias.grad, bias_apart.grad, rtol=tolerance, atol=20 * tolerance)


def test_a_bias_that_does_not_fit():
    with pytest.raises(ShapeError, match="bias_gelu: bias has C=3, but x has C=4"):
        ops.bias_gelu(Tensor(np.ones((2, 4))), Tensor(np.ones(3)))
    with pytest.raises(ShapeError, match=r"bias_gelu: x has shape \(\), expected \(..., C\)"):
        ops.bias_gelu(Tensor(np.ones(())), Tensor(np.ones(1)))
    with pytest.raises(DtypeError, match="bias_gelu: bias has dtype int64"):
        ops.bias_gelu(Tensor(np.ones((2, 4))), Tensor(np.ones(4, np.int64)))
    with pytest.raises(InputError, match=r"bias_gelu: approximate is 'erf'; choose 'none' \(erf\) or 'tanh'"):
        ops.bias_gelu(Tensor(np.ones((2, 4))), Tensor(np.ones(4)), "erf")


@pytest.mark.oracle
@pytest.mark.parametrize("form", ["none", "tanh"])
def test_as_in_torch(form, same_as_torch, rng):
    gelu = pytest.importorskip("torch").nn.functional.gelu
    x, bias = 3 * rng.normal(size=(40, 50)), rng.normal(size=50)
    same_as_torch(lambda x, b: ops.bias_gelu(x, b, form), lambda x, b: gelu(x + b, approximate=form), x, bias)
