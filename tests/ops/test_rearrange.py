"""Everyday shapes by PyTorch's names: values are NumPy's, gradients come back in place."""

from __future__ import annotations

import numpy as np
import pytest

import minillm
from minillm import ops
from minillm.autograd import Tensor
from minillm.errors import DtypeError, InputError, MinillmError, ShapeError

X = np.arange(24.0).reshape(2, 3, 4)


def leaf(x=X) -> Tensor:
    return Tensor(np.array(x), requires_grad=True)


ROWS = {
    "view": (lambda x: x.view(6, -1), lambda x: x.reshape(6, -1)),
    "view_as": (lambda x: x.view_as(minillm.zeros(8, 3)), lambda x: x.reshape(8, 3)),
    "reshape_as": (lambda x: x.reshape_as(minillm.zeros(8, 3)), lambda x: x.reshape(8, 3)),
    "flatten": (lambda x: x.flatten(), lambda x: x.reshape(-1)),
    "flatten the last two": (lambda x: x.flatten(1), lambda x: x.reshape(2, 12)),
    "ravel": (lambda x: x.ravel(), lambda x: x.reshape(-1)),
    "unflatten": (lambda x: x.unflatten(-1, (2, -1)), lambda x: x.reshape(2, 3, 2, 2)),
    "unsqueeze": (lambda x: x.unsqueeze(-2), lambda x: x[:, :, None]),
    "squeeze": (lambda x: x[:, :1].squeeze(1), lambda x: x[:, 0]),
    "squeeze all": (lambda x: x[:1, :1].squeeze(), lambda x: x[0, 0]),
    "squeeze none": (lambda x: x.squeeze((0, 1)), lambda x: x),
    "movedim": (lambda x: x.movedim((0, 1), (1, -1)), lambda x: np.moveaxis(x, (0, 1), (1, -1))),
    "swapaxes": (lambda x: x.swapaxes(0, -1), lambda x: np.swapaxes(x, 0, -1)),
    "t": (lambda x: x[0].t(), lambda x: x[0].T),
    "clone": (lambda x: x.clone(), lambda x: x),
    "contiguous": (lambda x: x.transpose(0, 2).contiguous(), lambda x: x.T),
    "expand": (lambda x: x[:, :1].expand(5, -1, 3, 4), lambda x: np.broadcast_to(x[:, :1], (5, 2, 3, 4))),
    "expand_as": (lambda x: x[:1].expand_as(x), lambda x: np.broadcast_to(x[:1], X.shape)),
    "repeat": (lambda x: x.repeat(2, 1, 3, 2), lambda x: np.tile(x, (2, 1, 3, 2))),
    "repeat 0 times": (lambda x: x.repeat(1, 0, 2), lambda x: np.tile(x, (1, 0, 2))),
    "tile": (lambda x: x.tile(3, 2), lambda x: np.tile(x, (3, 2))),
    "repeat_interleave": (lambda x: x.repeat_interleave(2), lambda x: np.repeat(x, 2)),
    "repeat_interleave counts": (lambda x: x.repeat_interleave([2, 0, 1], 1), lambda x: np.repeat(x, [2, 0, 1], 1)),
    "flip": (lambda x: x.flip(0, -1), lambda x: np.flip(x, (0, -1))),
    "roll": (lambda x: x.roll((1, -6), (0, 2)), lambda x: np.roll(x, (1, -6), (0, 2))),
    "roll all": (lambda x: x.roll(5), lambda x: np.roll(x, 5)),
    "pad": (
        lambda x: ops.pad(x, (1, 2, 0, 3), value=9),
        lambda x: np.pad(x, ((0, 0), (0, 3), (1, 2)), constant_values=9),
    ),
    "pad and cut": (lambda x: ops.pad(x, (-1, 1)), lambda x: np.pad(x[..., 1:], ((0, 0), (0, 0), (0, 1)))),
    "tril": (lambda x: x.tril(-1), lambda x: np.tril(x, -1)),
    "triu": (lambda x: ops.triu(x, 1), lambda x: np.triu(x, 1)),
    "diagonal": (lambda x: x.diagonal(1, 0, 2), lambda x: np.diagonal(x, 1, 0, 2)),
    "diagonal below": (lambda x: x.diagonal(-1, -1, 1), lambda x: np.diagonal(x, -1, -1, 1)),
    "diag of a matrix": (lambda x: x[0].diag(-1), lambda x: np.diag(x[0], -1)),
    "diag of a vector": (lambda x: x[0, 0].diag(1), lambda x: np.diag(x[0, 0], 1)),
    "diag of a vector, below": (lambda x: x[0, 0].diag(-2), lambda x: np.diag(x[0, 0], -2)),
    "trace": (lambda x: x[1].trace(), lambda x: np.trace(x[1])),
    "hstack": (lambda x: ops.hstack([x, x[:, :1]]), lambda x: np.hstack([x, x[:, :1]])),
    "vstack": (lambda x: ops.vstack([x[0], x[0, 0]]), lambda x: np.vstack([x[0], x[0, 0]])),
    "hstack of numbers": (lambda x: ops.hstack([x[0, 0, 0], x[0, 1]]), lambda x: np.hstack([x[0, 0, 0], x[0, 1]])),
}


@pytest.mark.parametrize("name", ROWS)
def test_values_and_gradients(name, rng):
    """The gradient of a rearrangement counts, at each place of x, what went where that place's number is now."""
    ours, numpys = ROWS[name]
    x = leaf(X + 1)
    y, expected = ours(x), numpys(X + 1)
    assert y.shape == expected.shape
    np.testing.assert_array_equal(y.data, expected)
    u = rng.normal(size=expected.shape)
    y.backward(u)
    expected = np.diagonal(X[1] + 1) if name == "trace" else expected
    u = np.broadcast_to(u, expected.shape)
    wanted = np.bincount(np.ravel(expected).astype(int), np.ravel(u), 25)[1:]
    padded = 8 if name == "pad" else None  # the value 9 around x is also an element of it
    received = x.grad.reshape(-1)
    kept = [i for i in range(24) if i != padded]
    np.testing.assert_allclose(received[kept], wanted[kept], atol=1e-14)


def test_pieces():
    for ours, theirs in [
        (leaf().chunk(3, 2), np.array_split(X, [2, 4], 2)[:2]),
        (leaf().unbind(1), [X[:, i] for i in range(3)]),
        (ops.chunk(leaf(np.zeros((0, 2))), 2), [np.zeros((0, 2))] * 2),
    ]:
        assert len(ours) == len(theirs)
        for piece, expected in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(piece.data, expected)
    x = leaf()
    first, _, last = x.unbind(1)
    (first * 2 + last).sum().backward()
    np.testing.assert_array_equal(x.grad[0, :, 0], [2, 0, 1])


def test_what_is_a_view_and_what_a_copy():
    x = leaf()
    for y in (x.flatten(), x.unsqueeze(0), x.expand(3, -1, -1, -1), x.movedim(0, 1)):
        assert np.shares_memory(y.data, x.data)
    assert x.contiguous() is x
    for y in (x.clone(), x.transpose(0, 1).contiguous(), x.tile(2), x.tile(1), x.tril(), x.roll(1), x.flip(0)):
        assert not np.shares_memory(y.data, x.data)
        assert y.data.flags.c_contiguous


def test_clone_is_left_alone_by_what_happens_to_x():
    x = leaf()
    y = x.clone()
    x.data[...] = 0
    np.testing.assert_array_equal(y.data, X)


def test_a_number_has_shapes_too():
    x = leaf(3.0)
    assert x.flatten().shape == x.view(1).shape == x.unsqueeze(0).shape == x.repeat(1).shape == (1,)
    assert x.squeeze().shape == x.squeeze(-1).shape == x.t().shape == x.flip(0).shape == ()
    assert x.expand(2, 3).shape == (2, 3)


def test_padding_of_whole_numbers_and_with_infinities():
    assert ops.pad(minillm.tensor([1, 2]), (1, 1), value=7).data.tolist() == [7, 1, 2, 7]
    y = ops.pad(minillm.tensor([1.0]), (0, 1), value=-np.inf)
    assert y.dtype == np.float32
    assert y.data.tolist() == [1, -np.inf]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: x.view(5), "reshape: 24 elements of shape (2, 3, 4) do not fit the shape (5,)"),
        (lambda x: x.flatten(2, 0), "flatten: start_dim=2 comes after end_dim=0 in shape (2, 3, 4)"),
        (lambda x: x.unflatten(2, (3, -1)), "unflatten: axis 2 has size 4, which is not the product of (3, -1)"),
        (lambda x: x.unsqueeze(4), "unsqueeze: axis 4 is out of range for a tensor with 4 dimensions"),
        (lambda x: x.squeeze(3), "squeeze: axis 3 is out of range for a tensor with 3 dimensions"),
        (lambda x: x.t(), "t: the tensor has shape (2, 3, 4); write x.transpose(-1, -2) for the matrices in it"),
        (lambda x: x.movedim((0, 1), 0), "movedim: source (0, 1) names 2 axes, but destination 0 1"),
        (lambda x: x.expand(4, 4), "expand: shape (2, 3, 4) cannot be stretched to (4, 4)"),
        (lambda x: x.expand(2, 3, 5), "broadcast_to: shape (2, 3, 4) cannot be stretched to (2, 3, 5)"),
        (lambda x: x.repeat(2), "repeat: (2,) has fewer numbers than shape (2, 3, 4) has axes; give one for each axis"),
        (lambda x: x.tile(-1), "tile: the numbers of repeats are (-1,); give 0 or more"),
        (
            lambda x: x.repeat_interleave([1, 2], 1),
            "repeat_interleave: repeats have shape (2,), but axis 1 has 3",
        ),
        (lambda x: x.flip(0, -3), "flip: axis (0, -3) names an axis twice"),
        (lambda x: x.roll((1, 2), 0), "roll: there are 2 shifts, but 1 axes; give one shift for each axis"),
        (
            lambda x: ops.pad(x, (1, 2, 3)),
            "pad: (1, 2, 3) are no pairs (before, after) for up to 3 axes, the last axis first",
        ),
        (lambda x: ops.pad(x, (-3, -2)), "pad: (-3, -2) cuts off more than there is of shape (2, 3, 4)"),
        (lambda x: x[0, 0].tril(), "tril: the tensor has shape (4,); a triangle needs two axes"),
        (lambda x: x.diagonal(0, 1, -2), "diagonal: dim1=1 and dim2=-2 are the same axis of shape (2, 3, 4)"),
        (lambda x: x.diag(), "diag: the tensor has shape (2, 3, 4); give a vector or a matrix"),
        (lambda x: x.trace(), "trace: the tensor has shape (2, 3, 4); give a matrix"),
        (lambda x: x.chunk(0), "chunk: chunks is 0; give 1 or more"),
    ],
)
def test_shapes_that_do_not_fit(call, message):
    with pytest.raises(ShapeError) as caught:
        call(leaf())
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: x.view(2.0, 12), "reshape: a size is 2.0; give a whole number"),
        (lambda x: x.view(None), "view: None is not a shape"),
        (lambda x: x.view("float32"), "view: 'float32' is not a shape; to convert elements write x.to('float32')"),
        (lambda x: x.reshape(True, 24), "reshape: a size is True; give a whole number"),
        (lambda x: x.permute(0, 1, 2.0), "permute: an axis is 2.0; give a whole number"),
        (lambda x: x.unsqueeze(None), "unsqueeze"),
        (lambda x: x.expand(2, 3, 4.0), "expand: a size is 4.0; give a whole number"),
        (lambda x: x.repeat(1, 1, "2"), "repeat: a number of repeats is '2'; give a whole number"),
        (lambda x: x.repeat_interleave(1.5), "repeat_interleave: repeats are 1.5; give whole numbers, 0 or more"),
        (lambda x: x.roll(0.5, 0), "roll: a shift is 0.5; give a whole number"),
        (lambda x: x.chunk(2.0), "chunk: chunks is 2.0; give a whole number"),
        (lambda x: x.tril(0.5), "tril: diagonal is 0.5; give a whole number"),
        (lambda x: x.sum(np.True_), "sum: axis is np.True_; give a whole number"),
    ],
)
def test_arguments_of_the_wrong_kind(call, message):
    with pytest.raises((DtypeError, ShapeError)) as caught:
        call(leaf())
    assert str(caught.value).startswith(message)


def test_whole_numbers_of_every_kind():
    x = leaf()
    for six in (6, np.int64(6), np.array(6), minillm.tensor(6)):
        assert x.reshape(six, 4).shape == x.view(six, -1).shape == (6, 4)
    assert x.sum(minillm.tensor(1)).shape == (2, 4)


def test_other_modes_of_padding():
    with pytest.raises(InputError, match="pad: mode is 'reflect'; only 'constant' is there"):
        ops.pad(leaf(), (1, 1), mode="reflect")


# --- what joins takes more than a list of Tensors ------------------------------------------------------------------


@pytest.mark.parametrize("join", [ops.concat, ops.stack, ops.hstack, ops.vstack])
def test_joining_of_all_that_is_given(join):
    x = minillm.tensor([1.0, 2.0], requires_grad=True)
    for given in ([x, np.array([3.0, 4.0], np.float32)], (y for y in (x, [3.0, 4.0])), (x, minillm.tensor([3, 4]))):
        y = join(given)
        assert y.dtype == np.float32
        assert sorted(y.data.ravel().tolist()) == [1, 2, 3, 4]
        x.grad = None
        y.backward(np.full(y.shape, 5.0))
        np.testing.assert_array_equal(x.grad, [5, 5])
        assert x.grad.dtype == np.float32


def test_joining_takes_the_wider_of_two_floating_dtypes():
    x = minillm.tensor([1.0], requires_grad=True)
    y = minillm.cat([x, minillm.tensor([2.0], dtype=np.float64)])
    assert y.dtype == np.float64
    y.backward(np.array([3.0, 4.0]))
    assert x.grad.dtype == np.float32
    assert minillm.cat([minillm.tensor([True]), minillm.tensor([2])]).dtype == np.int64


def test_a_tensor_of_shape_0_joins_anything():
    x = leaf()
    np.testing.assert_array_equal(minillm.cat([minillm.zeros(0), x], 1).data, X)
    assert minillm.cat([minillm.zeros(0), minillm.zeros(0)]).shape == (0,)


@pytest.mark.parametrize("name", ["concat", "stack", "hstack", "vstack"])
def test_what_cannot_be_joined(name):
    join = getattr(ops, name)
    for given, message in [
        (leaf(), f"{name}: tensors is a Tensor; give a list of tensors"),
        (X, f"{name}: tensors is a ndarray; give a list of tensors"),
        (None, f"{name}: tensors is a NoneType; give a list of tensors"),
        (3.0, f"{name}: tensors is a float; give a list of tensors"),
        ([], f"{name}: no tensors were given; give at least one"),
        (iter([]), f"{name}: no tensors were given; give at least one"),
    ]:
        with pytest.raises(MinillmError) as caught:
            join(given)
        assert str(caught.value) == message
    with pytest.raises(DtypeError):
        join([leaf(), None])


@pytest.mark.parametrize("axis", [0.0, True, "0", (0,), [0]])
def test_axes_of_the_wrong_kind(axis):
    for call in (
        lambda: ops.concat([leaf()], axis),
        lambda: ops.stack([leaf()], dim=axis),
        lambda: ops.split(leaf(), 1, axis),
    ):
        with pytest.raises((DtypeError, ShapeError)):
            call()


@pytest.mark.parametrize("size", [2.0, True, None, "2", minillm.tensor([1.5]), [1.0, 1.0], [True, 1]])
def test_pieces_of_the_wrong_kind(size):
    with pytest.raises(DtypeError, match=r"split: the size of a piece is .*; give a whole number"):
        leaf().split(size)


def test_pieces_of_every_right_kind():
    for size in (2, np.int32(2), minillm.tensor(2), [2, 1], (2, 1), np.array([2, 1]), (n for n in (2, 1))):
        assert [piece.shape for piece in leaf().split(size, -2)] == [(2, 2, 4), (2, 1, 4)]


def test_every_method_is_declared_and_every_declared_one_is_there():
    from minillm.methods import Methods

    declared = set(Methods.__annotations__)
    assert all(callable(getattr(Tensor, name)) for name in declared)
    attached = {name for name in vars(Tensor) if name in ops.__all__ and not name.startswith("_")}
    assert attached <= declared, "a method that no type checker knows: declare it in minillm/methods.py"
    assert all(getattr(minillm, name) is getattr(ops, name) for name in ops.__all__)
