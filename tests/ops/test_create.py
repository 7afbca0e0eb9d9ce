"""New tensors: constants, ranges, random numbers."""

from __future__ import annotations

import numpy as np
import pytest

import minillm
from minillm.autograd import Tensor
from minillm.errors import DeviceError, DtypeError, InputError, ShapeError


def test_sizes_in_every_form():
    for y in (minillm.zeros(2, 3), minillm.zeros((2, 3)), minillm.zeros([2, np.int64(3)]), minillm.zeros(*(2, 3))):
        assert y.shape == (2, 3)
        assert y.dtype == np.float32
        assert not y.requires_grad
    assert minillm.zeros(()).shape == minillm.zeros().shape == ()
    for name in ("ones", "empty", "rand", "randn"):
        assert getattr(minillm, name)(4, 0).shape == (4, 0)


def test_dtype_device_and_gradient():
    x = minillm.ones(2, dtype="float64", requires_grad=True, device="cpu")
    assert x.dtype == np.float64
    (x * x).sum().backward()
    np.testing.assert_array_equal(x.grad, [2, 2])
    with pytest.raises(DtypeError, match="cannot have a gradient"):
        minillm.arange(3, requires_grad=True)
    with pytest.raises(DeviceError, match="device: 'gpu' names no device"):
        minillm.zeros(2, device="gpu")


def test_full_takes_the_kind_of_its_value():
    assert [minillm.full((2,), value).dtype for value in (3, 2.5, True)] == [np.int64, np.float32, bool]
    np.testing.assert_array_equal(minillm.full((2, 1), 7.5).data, [[7.5], [7.5]])
    assert minillm.full((1,), 2**53 + 1).item() == 2**53 + 1
    assert minillm.full(2, 1.5, dtype=np.int32).data.tolist() == [1, 1]


def test_arange():
    np.testing.assert_array_equal(minillm.arange(4).data, [0, 1, 2, 3])
    np.testing.assert_array_equal(minillm.arange(7, 1, -3).data, [7, 4])
    assert minillm.arange(4).dtype == np.int64
    assert minillm.arange(0, 1, 0.25).dtype == np.float32
    assert minillm.arange(0, 1, 0.1).shape == (10,)
    assert minillm.arange(3, 3).shape == (0,)
    assert minillm.arange(2**53, 2**53 + 2).data.tolist() == [2**53, 2**53 + 1]
    for start, end, step in [(1, 5, -1), (5, 1, 1), (0, 3, 0)]:
        with pytest.raises(InputError, match=f"arange: from {start} to {end} there is no way by steps of {step}"):
            minillm.arange(start, end, step)


def test_linspace_and_eye():
    np.testing.assert_allclose(minillm.linspace(1, 2, 5).data, [1, 1.25, 1.5, 1.75, 2])
    assert minillm.linspace(0, 1, 0).shape == (0,)
    np.testing.assert_array_equal(minillm.eye(2, 3).data, np.eye(2, 3))


def test_like_another():
    x = minillm.tensor([[1, 2, 3]])
    for name, expected in [("zeros_like", 0), ("ones_like", 1)]:
        y = getattr(minillm, name)(x)
        assert y.dtype == np.int64
        np.testing.assert_array_equal(y.data, [[expected] * 3])
    assert minillm.full_like(x, 2).data.tolist() == [[2, 2, 2]]
    floats = x.double()
    for name in ("zeros_like", "empty_like", "rand_like", "randn_like"):
        y = getattr(minillm, name)(floats, requires_grad=True)
        assert (y.shape, y.dtype, y.requires_grad) == ((1, 3), np.float64, True)
        assert getattr(minillm, name)(x, dtype=np.float32).dtype == np.float32


def test_dtypes_by_pytorchs_names():
    for name in ("float16", "half", "float32", "float", "float64", "double", "int32", "int", "int64", "long", "bool"):
        dtype = getattr(minillm, name)
        assert minillm.zeros(1, dtype=dtype).dtype == dtype
        assert minillm.tensor([1.0]).to(dtype).dtype == dtype
        if hasattr(Tensor, name):
            assert getattr(minillm.tensor([1.0]), name)().dtype == dtype
    assert minillm.long == np.int64
    assert minillm.float == np.float32


# --- random --------------------------------------------------------------------------------------------------------

DRAWS = {
    "rand": lambda: minillm.rand(50),
    "randn": lambda: minillm.randn(50),
    "randint": lambda: minillm.randint(1000, (50,)),
    "randperm": lambda: minillm.randperm(50),
    "rand_like": lambda: minillm.rand_like(minillm.zeros(50)),
    "randn_like": lambda: minillm.randn_like(minillm.zeros(50)),
    "bernoulli": lambda: minillm.bernoulli(minillm.full((50,), 0.5)),
    "multinomial": lambda: minillm.multinomial(minillm.ones(50), 20),
    "multinomial, replaced": lambda: minillm.multinomial(minillm.ones(50), 20, replacement=True),
}


@pytest.mark.parametrize("name", DRAWS)
def test_the_seed_decides_and_the_stream_goes_on(name):
    minillm.manual_seed(3)
    first, second = DRAWS[name]().data, DRAWS[name]().data
    assert not np.array_equal(first, second)
    minillm.manual_seed(3)
    np.testing.assert_array_equal(DRAWS[name]().data, first)
    minillm.manual_seed(4)
    assert not np.array_equal(DRAWS[name]().data, first)


def test_distributions():
    minillm.manual_seed(0)
    count = 100_000
    uniform, normal = minillm.rand(count).data, minillm.randn(count, dtype=np.float64).data
    assert 0 <= uniform.min() < 1e-4
    assert 1 - 1e-4 < uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 4 * (1 / 12 / count) ** 0.5
    assert abs(normal.mean()) < 4 / count**0.5
    assert abs(normal.var() - 1) < 4 * (2 / count) ** 0.5
    assert abs((normal < -1).mean() - 0.158655) < 4 * (0.1587 * 0.8413 / count) ** 0.5
    whole = minillm.randint(-2, 3, (count,)).data
    assert np.abs(np.bincount(whole + 2, minlength=5) / count - 0.2).max() < 4 * (0.16 / count) ** 0.5
    coin = minillm.bernoulli(minillm.full((count,), 0.3)).data
    assert abs(coin.mean() - 0.3) < 4 * (0.21 / count) ** 0.5


def test_randint_in_every_form():
    for y in (
        minillm.randint(5, (2, 3)),
        minillm.randint(4, 5, (2, 3)),
        minillm.randint(high=5, size=(2, 3)),
        minillm.randint(low=4, high=5, size=(2, 3)),
        minillm.randint(4, high=5, size=(2, 3)),
    ):
        assert y.shape == (2, 3)
        assert y.dtype == np.int64
        assert 0 <= y.data.min() <= y.data.max() < 5
    assert minillm.randint(0, 2, (3,), dtype=np.float32).dtype == np.float32
    with pytest.raises(InputError, match="randint: there is no whole number from 3 up to 3, which is left out"):
        minillm.randint(3, 3, (2,))
    with pytest.raises(InputError, match=r"randint: give randint\(high, size\) or randint\(low, high, size\)"):
        minillm.randint(1, 2, 3, (4,))


def test_randperm_is_a_permutation():
    assert sorted(minillm.randperm(100).data.tolist()) == list(range(100))
    assert minillm.randperm(0).shape == (0,)


@pytest.mark.parametrize("replacement", [False, True])
def test_multinomial_draws_by_weight(replacement):
    """The first of each draw has the weights' own distribution, with and without replacement."""
    minillm.manual_seed(0)
    weights = np.array([1.0, 0, 3, 4])
    rows = minillm.tensor(np.tile(weights, (40_000, 1)))
    index = minillm.multinomial(rows, 2, replacement).data
    assert index.shape == (40_000, 2)
    share = np.bincount(index[:, 0], minlength=4) / len(index)
    assert np.abs(share - weights / 8).max() < 4 * (0.25 / len(index)) ** 0.5
    assert (index[:, 0] != index[:, 1]).all() != replacement
    second = np.bincount(index[index[:, 0] == 3, 1], minlength=4) / (index[:, 0] == 3).sum()
    expected = weights / 8 if replacement else np.array([1, 0, 3, 0]) / 4
    assert np.abs(second - expected).max() < 0.02


@pytest.mark.parametrize(
    ("weights", "count", "error", "message"),
    [
        ([0.0, 0.0], 1, InputError, "multinomial: every weight must be finite and 0 or more, and one of each row"),
        ([-1.0, 2], 1, InputError, "multinomial: every weight must be finite"),
        ([np.nan, 2], 1, InputError, "multinomial: every weight must be finite"),
        ([np.inf, 2], 1, InputError, "multinomial: every weight must be finite"),
        ([1.0, 0], 2, InputError, "multinomial: 2 indices are asked for, and 1 have a weight above 0"),
        ([1.0, 1], 0, InputError, "multinomial: 0 indices are asked for"),
        ([1, 1], 1, DtypeError, "multinomial: weights are int64 of shape (2,); give floats of shape (N,) or (B, N)"),
        (1.0, 1, DtypeError, "multinomial: weights are float32 of shape (); give floats"),
    ],
)
def test_weights_that_mean_nothing(weights, count, error, message):
    with pytest.raises(error) as caught:
        minillm.multinomial(minillm.tensor(weights), count)
    assert str(caught.value).startswith(message)


# --- from data, and what is refused --------------------------------------------------------------------------------


def test_from_numpy_shares_and_as_tensor_does_not_copy():
    array = np.arange(3.0)
    x = minillm.from_numpy(array)
    array[0] = 7
    assert x.data[0] == 7
    assert minillm.as_tensor(x) is x
    assert minillm.as_tensor(array).data is array
    assert minillm.as_tensor([1.0]).dtype == np.float32
    assert minillm.as_tensor(array, dtype=np.float32).dtype == np.float32
    with pytest.raises(DtypeError, match=r"from_numpy: list is not a NumPy array; use minillm.tensor"):
        minillm.from_numpy([1.0])


@pytest.mark.parametrize("name", ["zeros", "ones", "empty", "rand", "randn"])
def test_sizes_that_are_none(name):
    with pytest.raises(DtypeError, match=f"{name}: a size is 2.5; give a whole number"):
        getattr(minillm, name)(2.5)
    with pytest.raises(DtypeError, match=f"{name}: a size is True; give a whole number"):
        getattr(minillm, name)(True)
    with pytest.raises(ShapeError, match=r"the sizes are \(2, -1\); give 0 or more"):
        getattr(minillm, name)(2, -1)
