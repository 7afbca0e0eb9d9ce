"""Views: each index, reshape and transpose equals NumPy's, and its gradient is the scatter of the cotangent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import minillm

shapes = arrays.array_shapes(min_dims=1, max_dims=4, max_side=5)


def expect_scatter(view, shape: tuple[int, ...], numpy_view=None) -> None:
    """Compare a view of numbered elements with NumPy's, and its gradient with a loop that scatters."""
    numbers = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    expected = (numpy_view or view)(numbers)
    x = minillm.tensor(numbers, requires_grad=True)
    y = view(x)
    np.testing.assert_array_equal(y.numpy() if hasattr(y, "numpy") else y.data, expected)
    cotangent = np.random.default_rng(0).normal(size=np.shape(expected))
    (y * cotangent).sum().backward()
    scattered = np.zeros(numbers.size)
    for number, value in zip(np.ravel(expected), np.ravel(cotangent), strict=True):
        scattered[int(number)] += value
    np.testing.assert_allclose(x.grad, scattered.reshape(shape), rtol=1e-12, atol=1e-12)


@given(data=st.data(), shape=shapes)
def test_basic_index(data: st.DataObject, shape: tuple[int, ...]) -> None:
    index = data.draw(arrays.basic_indices(shape, allow_newaxis=True))
    expect_scatter(lambda x: x[index], shape)


@given(data=st.data(), shape=shapes)
def test_index_by_arrays_that_repeat(data: st.DataObject, shape: tuple[int, ...]) -> None:
    result = arrays.array_shapes(max_dims=2, max_side=4)
    index = data.draw(arrays.integer_array_indices(shape, result_shape=result))
    expect_scatter(lambda x: x[index], shape)


@given(data=st.data(), shape=shapes)
def test_reshape(data: st.DataObject, shape: tuple[int, ...]) -> None:
    left = int(np.prod(shape))
    target = []
    while left > 1:
        part = data.draw(st.sampled_from([d for d in range(1, left + 1) if left % d == 0]))
        target.append(part)
        left //= part
        if len(target) == 4:
            target.append(left)
            break
    if target:
        target[data.draw(st.integers(0, len(target) - 1))] = -1  # one size may be left to the function
    new = tuple(target) or (1,)
    expect_scatter(lambda x: x.reshape(new), shape)


@given(data=st.data(), shape=shapes)
def test_permuted_axes(data: st.DataObject, shape: tuple[int, ...]) -> None:
    axes = tuple(data.draw(st.permutations(range(len(shape)))))
    expect_scatter(lambda x: x.permute(axes), shape, lambda x: x.transpose(axes))


@given(data=st.data(), shape=shapes)
def test_two_axes_change_places(data: st.DataObject, shape: tuple[int, ...]) -> None:
    one, other = (data.draw(st.integers(-len(shape), len(shape) - 1)) for _ in range(2))
    expect_scatter(lambda x: x.transpose(one, other), shape, lambda x: x.swapaxes(one, other))


def test_a_wrong_scatter_is_seen() -> None:
    with pytest.raises(AssertionError):
        expect_scatter(lambda x: x[[0, 0, 1]], (3,), lambda x: x[[0, 1, 1]])
