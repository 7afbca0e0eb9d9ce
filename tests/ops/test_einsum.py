"""Sums of products by letters."""

from __future__ import annotations

import numpy as np
import pytest

import minillm
from minillm import ops
from minillm.autograd import Tensor
from minillm.errors import InputError, ShapeError

EQUATIONS = [
    ("ij,jk->ik", (2, 3), (3, 4)),
    ("ij,jk", (2, 3), (3, 4)),
    (" i j , j k -> k i ", (2, 3), (3, 4)),
    ("bhqd,bhkd->bhqk", (2, 2, 3, 4), (2, 2, 5, 4)),
    ("bqhd,bkhd->bhqk", (2, 3, 2, 4), (2, 5, 2, 4)),
    ("bhqk,bkhd->bqhd", (2, 2, 3, 5), (2, 5, 2, 4)),
    ("ij,kl,jl->ik", (2, 3), (4, 5), (3, 5)),
    ("a,b,c->cab", (2,), (3,), (4,)),
    ("ij->", (2, 3)),
    ("ij->ji", (2, 3)),
    ("ii->i", (3, 3)),
    ("ii", (3, 3)),
    ("iji,j->i", (2, 3, 2), (3,)),
    ("...ij,...jk->...ik", (5, 1, 2, 3), (4, 3, 2)),
    ("...i->...", (2, 3, 4)),
    ("i...,i...->...", (2, 3, 1), (2, 4)),
    ("ba,bA", (2, 3), (2, 4)),
    ("i,->i", (3,), ()),
    ("ij,jk->ik", (0, 3), (3, 2)),
    ("ij,jk->ik", (2, 0), (0, 3)),
]


@pytest.mark.parametrize(("equation", "shapes"), [(first, rest) for first, *rest in EQUATIONS])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_values_and_gradients(equation, shapes, dtype, rng):
    """NumPy's values; and a gradient is the einsum of the others with one element of the operand moved."""
    arrays = [rng.normal(size=shape).astype(dtype) for shape in shapes]
    leaves = [Tensor(x, requires_grad=True) for x in arrays]
    y = ops.einsum(equation, *leaves)
    expected = np.einsum(equation, *arrays)
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    assert y.dtype == dtype
    assert y.shape == expected.shape
    np.testing.assert_allclose(y.data, expected, rtol=tolerance, atol=tolerance)
    u = rng.normal(size=y.shape).astype(dtype)
    y.backward(u)
    for i, leaf in enumerate(leaves):
        wanted = np.zeros(leaf.shape)
        for place in np.ndindex(leaf.shape):  # linear in each operand: the slope is the value at a unit vector
            unit = np.zeros(leaf.shape)
            unit[place] = 1
            wanted[place] = (u * np.einsum(equation, *arrays[:i], unit, *arrays[i + 1 :])).sum()
        assert leaf.grad.dtype == dtype
        np.testing.assert_allclose(leaf.grad, wanted, rtol=tolerance, atol=tolerance)


def test_axes_of_size_1_broadcast():
    y = ops.einsum("i,i->", minillm.tensor([2.0]), minillm.tensor([1.0, 2, 3]))
    assert y.item() == 12


def test_operands_in_a_list_arrays_and_whole_numbers():
    a = minillm.tensor([[1, 2], [3, 4]])
    y = minillm.einsum("ij,jk->ik", [a, a])
    assert y.dtype == np.int64
    np.testing.assert_array_equal(y.data, a.data @ a.data)
    y = minillm.einsum("ij,jk->ik", a, np.eye(2, dtype=np.float32))
    assert y.dtype == np.float32


def test_a_tensor_twice():
    x = Tensor(np.array([1.0, 2, 3]), requires_grad=True)
    ops.einsum("i,i->", x, x).backward()
    np.testing.assert_array_equal(x.grad, [2, 4, 6])


@pytest.mark.parametrize(
    ("equation", "error", "message"),
    [
        ("ij,jk->iq", InputError, "einsum: 'q' stands only in the result of 'ij,jk->iq'"),
        ("ij,jk->ii", InputError, "einsum: 'i' stands twice in the result of 'ij,jk->ii'"),
        ("ij->ij", InputError, "einsum: 'ij->ij' names 1 operands, but 2 were given"),
        ("i,jk->ik", ShapeError, "einsum: 'i' in 'i,jk->ik' does not name the 2 axes of operand 0"),
        ("ijk,jk->ik", ShapeError, "einsum: 'ijk' in 'ijk,jk->ik' does not name the 2 axes of operand 0"),
        ("ij,ik->jk", ShapeError, "einsum: i has size 3 in operand 1, but 2 before, in 'ij,ik->jk'"),
        ("ii,jk->jk", ShapeError, "einsum: i stands for two axes of sizes 2 and 3"),
        ("i1,1k->ik", InputError, "einsum: 'i1' in 'i1,1k->ik' is neither letters nor '...'"),
        ("......,jk", InputError, "einsum: '......' in '......,jk' is neither letters nor '...'"),
    ],
)
def test_what_is_refused(equation, error, message):
    with pytest.raises(error) as caught:
        ops.einsum(equation, minillm.ones(2, 3), minillm.ones(3, 4))
    assert str(caught.value) == message


def test_the_equation_comes_first():
    with pytest.raises(InputError, match="einsum: the equation is a Tensor; give a text such as 'ij,jk->ik' first"):
        ops.einsum(minillm.ones(2), "i->i")
