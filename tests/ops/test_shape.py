"""Moving elements: reshape, transpose, index, join, cut, repeat; values are NumPy's, gradients come back in place."""

from __future__ import annotations

import numpy as np
import pytest

import minillm
from minillm import ops
from minillm.autograd import Tensor
from minillm.errors import DtypeError, InputError, ShapeError

X = np.arange(24.0).reshape(2, 3, 4)


def leaf(x=X) -> Tensor:
    return Tensor(np.array(x), requires_grad=True)


def same(tensor: Tensor, expected: np.ndarray) -> None:
    assert tensor.shape == expected.shape
    np.testing.assert_array_equal(tensor.data, expected)


# --- reshape, transpose, broadcast ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(24,), (4, 6), (2, -1), (-1,), (1, 24, 1), (3, 2, 2, 2)])
def test_reshape(shape):
    same(leaf().reshape(*shape), X.reshape(shape))
    same(ops.reshape(leaf(), shape), X.reshape(shape))
    same(leaf().reshape(list(shape)), X.reshape(shape))


def test_reshape_of_little():
    same(leaf(3.0).reshape(1, 1), np.array([[3.0]]))
    same(leaf([[3.0]]).reshape(()), np.array(3.0))
    same(leaf(np.zeros((0, 3))).reshape(3, 0), np.zeros((3, 0)))
    same(leaf(np.zeros((0, 3))).reshape(-1, 3), np.zeros((0, 3)))


@pytest.mark.parametrize("shape", [(5,), (-1, -1), (5, -1), (4, 5), ()])
def test_reshape_that_does_not_fit(shape):
    with pytest.raises(ShapeError, match=r"reshape: 24 elements of shape \(2, 3, 4\) do not fit the shape"):
        leaf().reshape(shape)


def test_reshape_of_nothing_to_an_unknown_number_of_nothings():
    with pytest.raises(ShapeError, match="reshape: 0 elements"):
        leaf(np.zeros((0, 3))).reshape(0, -1)


@pytest.mark.parametrize("axes", [(0, 1), (0, 2), (-1, -2), (1, 1), (-3, 2)])
def test_transpose_swaps_two_axes_as_torch_does(axes):
    same(leaf().transpose(*axes), np.swapaxes(X, *axes))


@pytest.mark.parametrize("axes", [(0, 3), (-4, 0)])
def test_transpose_out_of_range(axes):
    with pytest.raises(ShapeError, match=r"transpose: axis -?\d is out of range for a tensor with 3 dimensions"):
        leaf().transpose(*axes)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (-1, 0, 1), (1, -1, 0)])
def test_permute(axes):
    same(leaf().permute(*axes), X.transpose(axes))
    same(ops.permute(leaf(), axes), X.transpose(axes))


@pytest.mark.parametrize("axes", [(0, 1), (0, 0, 1), (0, 1, 3), (0, 1, 2, 2), (-4, 1, 2)])
def test_permute_needs_a_permutation(axes):
    with pytest.raises(ShapeError, match=r"permute: .* is not a permutation of the 3 axes of shape \(2, 3, 4\)"):
        leaf().permute(*axes)


@pytest.mark.parametrize("shape", [(2, 3, 4), (5, 2, 3, 4)])
def test_broadcast_to(shape):
    same(leaf().broadcast_to(shape), np.broadcast_to(X, shape))
    same(ops.broadcast_to(leaf(), *shape), np.broadcast_to(X, shape))


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5), (2, 1, 4), (0, 3, 4), ()])
def test_broadcast_that_does_not_fit(shape):
    with pytest.raises(ShapeError, match=r"broadcast_to: shape \(2, 3, 4\) cannot be stretched to"):
        leaf().broadcast_to(shape)


def test_views_take_no_memory():
    x = leaf()
    for y in (x.reshape(24), x.transpose(0, 1), x.broadcast_to(9, 2, 3, 4), x[1], x.split(2, axis=2)[0]):
        assert np.shares_memory(y.data, x.data)


# --- index ---------------------------------------------------------------------------------------------------------

ROWS = np.array([1, 0, 1, 1])


@pytest.mark.parametrize(
    "key",
    [
        1,
        -1,
        (0, 1),
        (0, 1, 2),
        slice(None, None, -1),
        (slice(None), slice(2, 0, -1), slice(None, None, 3)),
        (..., 2),
        (None, 0, None),
        ROWS,
        (slice(None), ROWS),
        (ROWS, ROWS),
        (ROWS[:, None], np.array([0, 2])),
        (ROWS, slice(None), 1),
        X[:, :, 0] > 5,
        np.array([True, False]),
        np.int64(1),
        [0, 0],
        ([0, 1], [2, 2]),
        ((0, 0, 1),),
        (range(2), 0),
        [],
        [True, False],
        ...,
    ],
    ids=repr,
)
def test_getitem_and_its_gradient(key):
    """The gradient counts how often each element was picked, which np.add.at can tell for every kind of key."""
    x = leaf()
    y = x[key]
    numpys = np.asarray(key, int) if isinstance(key, list) and not key else key
    same(y, X[numpys])
    u = np.random.default_rng(0).normal(size=y.shape)
    y.backward(u)
    expected = np.zeros(X.shape)
    np.add.at(expected, numpys, u)
    np.testing.assert_allclose(x.grad, expected, atol=1e-15)


def test_getitem_takes_tensors():
    same(leaf()[minillm.tensor([1, 0])], X[[1, 0]])
    same(leaf()[minillm.tensor([1, 0]), minillm.tensor(2)], X[[1, 0], 2])
    mask = leaf() > 3
    same(leaf()[mask], X[X > 3])


def test_getitem_out_of_range():
    with pytest.raises(IndexError, match="out of bounds"):
        leaf()[2]
    with pytest.raises(IndexError, match="too many indices"):
        leaf()[0, 0, 0, 0]


def test_iteration_ends():
    assert [row.shape for row in leaf()] == [(3, 4), (3, 4)]


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
@pytest.mark.parametrize("index", [[1, 0, 1], [[0, 1], [1, 1]], 1, []], ids=str)
def test_index_select_and_its_gradient(axis, index):
    x, index = leaf(), np.array(index, int)
    y = x.index_select(axis, index)
    same(y, np.take(X, index, axis))
    same(ops.index_select(x, dim=axis, index=minillm.tensor(index)), np.take(X, index, axis))
    u = np.random.default_rng(0).normal(size=y.shape)
    y.backward(u)
    wanted = np.zeros(X.shape)
    for place in np.ndindex(u.shape):
        first = axis % 3
        picked = index[place[first : first + index.ndim]]
        wanted[(*place[:first], picked, *place[first + index.ndim :])] += u[place]
    np.testing.assert_allclose(x.grad, wanted, atol=1e-15)


def test_index_select_of_what_is_not_there():
    with pytest.raises(InputError, match="index_select: index 3 is out of range; expected 0 to 2"):
        leaf().index_select(1, [0, 3])
    with pytest.raises(InputError, match="index_select: index -1 is out of range"):
        leaf().index_select(0, [-1])
    with pytest.raises(DtypeError, match="index_select: index must be integers, but the array has dtype float64"):
        leaf().index_select(0, [0.5])


# --- join, cut -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(axis):
    same(ops.concat([leaf(), Tensor(X + 1), leaf()], axis), np.concatenate([X, X + 1, X], axis))
    same(ops.concat((leaf(),), dim=axis), X)


def test_concat_by_default_along_the_first_axis():
    same(ops.concat([leaf(), leaf(X[:1])]), np.concatenate([X, X[:1]]))


def test_concat_that_does_not_fit():
    with pytest.raises(ShapeError, match="concat: no tensors were given; give at least one"):
        ops.concat([])
    with pytest.raises(ShapeError) as caught:
        ops.concat([leaf(), leaf(X[:, :2])], axis=0)
    assert str(caught.value) == "concat: tensor 1 has shape (2, 2, 4), which does not fit (2, 3, 4) along axis 0"
    with pytest.raises(ShapeError, match=r"concat: tensor 2 has shape \(3, 4\)"):
        ops.concat([leaf(), leaf(), leaf(X[0])])
    with pytest.raises(ShapeError, match="concat: axis 3 is out of range"):
        ops.concat([leaf()], 3)


@pytest.mark.parametrize("axis", [0, 1, 3, -1, -4])
def test_stack(axis):
    same(ops.stack([leaf(), Tensor(X + 1)], axis), np.stack([X, X + 1], axis))
    same(ops.stack([leaf(), Tensor(X + 1)], dim=axis), np.stack([X, X + 1], axis))


def test_stack_that_does_not_fit():
    with pytest.raises(ShapeError, match="stack: no tensors were given; give at least one"):
        ops.stack([])
    with pytest.raises(ShapeError, match=r"stack: the tensors have shapes \[\(2, 3, 4\), \(3, 4\)\]"):
        ops.stack([leaf(), leaf(X[0])])
    with pytest.raises(ShapeError, match="stack: axis 4 is out of range for a tensor with 4 dimensions"):
        ops.stack([leaf()], 4)


@pytest.mark.parametrize(("size", "axis"), [(1, 0), (2, 1), (3, -1), (4, 2), (9, 0)])
def test_split_by_size_as_torch_does(size, axis):
    pieces = leaf().split(size, axis)
    expected = np.split(X, range(size, X.shape[axis], size), axis)
    assert len(pieces) == len(expected)
    for piece, wanted in zip(pieces, expected, strict=True):
        same(piece, wanted)


def test_split_by_sections():
    for piece, wanted in zip(ops.split(leaf(), [1, 0, 3], dim=2), np.split(X, [1, 1], 2), strict=True):
        same(piece, wanted)
    (nothing,) = leaf(np.zeros((0, 2))).split(3)
    same(nothing, np.zeros((0, 2)))


def test_split_and_concat_undo_each_other():
    x = leaf()
    y = ops.concat(x.split([1, 3], axis=-1), axis=-1)
    same(y, X)
    u = np.random.default_rng(0).normal(size=X.shape)
    y.backward(u)
    np.testing.assert_array_equal(x.grad, u)


def test_split_that_does_not_fit():
    with pytest.raises(ShapeError, match="split: the size of a piece is 0; give 1 or more"):
        leaf().split(0)
    with pytest.raises(ShapeError, match=r"split: the sections \[1, 1\] sum to 2, but axis 1 has size 3"):
        leaf().split([1, 1], axis=1)
    with pytest.raises(ShapeError, match=r"split: the sections \[4, -1\] sum to 3, but axis 1 has size 3"):
        leaf().split([4, -1], axis=1)
    with pytest.raises(ShapeError, match="split: axis 3 is out of range"):
        leaf().split(1, 3)


@pytest.mark.parametrize("call", [lambda x: x.index_select(0, 0), lambda x: ops.concat([x]), lambda x: x.split(1)])
def test_a_number_has_no_axis_to_work_on(call):
    with pytest.raises(ShapeError, match="axis 0 is out of range for a tensor with 0 dimensions"):
        call(leaf(3.0))


def test_axis_and_dim_together():
    for call in (
        lambda: ops.concat([leaf()], 0, dim=0),
        lambda: ops.stack([leaf()], 0, dim=0),
        lambda: ops.split(leaf(), 1, 0, dim=0),
    ):
        with pytest.raises(ShapeError, match="both axis=0 and dim=0 were given"):
            call()


# --- oracle --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle
def test_as_in_torch(same_as_torch, rng):
    torch = pytest.importorskip("torch")
    x, y = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    same_as_torch(lambda x: x.reshape(4, -1), lambda x: x.reshape(4, -1), x)
    same_as_torch(lambda x: x.transpose(0, 2), lambda x: x.transpose(0, 2), x)
    same_as_torch(lambda x: x.permute(1, -1, 0), lambda x: x.permute(1, -1, 0), x)
    same_as_torch(lambda x: x.broadcast_to(5, 2, 3, 4), lambda x: x.broadcast_to(5, 2, 3, 4), x)
    same_as_torch(lambda x: x[:, [0, 0, 2], 1:3], lambda x: x[:, [0, 0, 2], 1:3], x)
    rows = [1, 1, 0]
    same_as_torch(lambda x: x.index_select(1, rows), lambda x: torch.index_select(x, 1, torch.tensor(rows)), x)
    same_as_torch(lambda x, y: ops.concat([x, y], dim=1), lambda x, y: torch.cat([x, y], dim=1), x, y)
    same_as_torch(lambda x, y: ops.stack([x, y], dim=-1), lambda x, y: torch.stack([x, y], dim=-1), x, y)
    same_as_torch(lambda x: x.split(3, 2), lambda x: x.split(3, 2), x)
    same_as_torch(lambda x: x.split([1, 2], 1), lambda x: x.split([1, 2], 1), x)


def test_to_converts_and_converts_the_gradient_back(rng):
    x = minillm.tensor(rng.normal(size=(2, 3)), requires_grad=True)
    y = x.to(np.float32)
    np.testing.assert_array_equal(y.data, x.data.astype(np.float32))
    dout = rng.normal(size=(2, 3)).astype(np.float32)
    (3 * y).backward(dout)
    assert x.grad.dtype == np.float64
    np.testing.assert_array_equal(x.grad, (3 * dout).astype(np.float64))
    assert x.to("cpu", "float64") is x
    with pytest.raises(DtypeError, match="to: 'gpu' is neither a device nor a dtype; give 'cpu', 'cuda' or 'cuda:1'"):
        x.to("gpu")
