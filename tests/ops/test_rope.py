"""Rotary position embedding: rotations, in two layouts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm import ops
from minillm.autograd import Tensor
from minillm.errors import InputError, ShapeError

LAYOUTS = ["half", "interleaved"]


def turn(x, layout="half", base=10000.0, start=0):
    return ops.rope(Tensor(x), *ops.rope_table(x.shape[-2], x.shape[-1], base, start), layout).data


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 5, 6), (0, 6), (1, 2)])
def test_each_pair_is_a_complex_number_that_turns(layout, shape, rng):
    x = rng.normal(size=shape)
    half = shape[-1] // 2
    first, second = (x[..., :half], x[..., half:]) if layout == "half" else (x[..., ::2], x[..., 1::2])
    angle = np.arange(3, 3 + shape[-2])[:, None] * 100.0 ** (-2 * np.arange(half) / shape[-1])
    turned = (first + 1j * second) * np.exp(1j * angle)
    y = turn(x, layout, base=100.0, start=3)
    a, b = (y[..., :half], y[..., half:]) if layout == "half" else (y[..., ::2], y[..., 1::2])
    np.testing.assert_allclose(a, turned.real, atol=1e-14)
    np.testing.assert_allclose(b, turned.imag, atol=1e-14)


def test_the_table():
    cos, sin = ops.rope_table(4, 6, base=100.0, start=2)
    assert cos.shape == sin.shape == (4, 3)
    assert cos.dtype == np.float64
    for t in range(4):
        for i in range(3):
            angle = (t + 2) * 100 ** (-2 * i / 6)
            assert cos[t, i] == pytest.approx(np.cos(angle))
            assert sin[t, i] == pytest.approx(np.sin(angle))
    whole = ops.rope_table(10, 6)
    for part, table in zip(ops.rope_table(4, 6, start=5), whole, strict=True):
        np.testing.assert_array_equal(part, table[5:9])


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 2**32 - 1))
def test_dot_products_depend_on_the_distance_alone(layout, a, b, shift, seed):
    q, k = np.random.default_rng(seed).normal(size=(2, 1, 8))

    def dot(at, of):
        return np.vdot(turn(q, layout, start=at), turn(k, layout, start=of))

    assert dot(a, b) == pytest.approx(dot(a + shift, b + shift), abs=1e-10)


def test_dot_products_do_depend_on_the_distance(rng):
    q, k = rng.normal(size=(2, 1, 8))
    assert abs(np.vdot(turn(q), turn(k)) - np.vdot(turn(q, start=1), turn(k))) > 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lengths_are_kept_and_position_0_is_left_alone(layout, rng):
    x = rng.normal(size=(2, 5, 6))
    y = turn(x, layout)
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1))
    np.testing.assert_array_equal(y[:, 0], x[:, 0])
    assert not np.allclose(y[:, 1], x[:, 1])


def test_the_layouts_are_one_permutation_apart(rng):
    x = rng.normal(size=(2, 5, 8))
    apart = [0, 2, 4, 6, 1, 3, 5, 7]
    np.testing.assert_allclose(turn(x, "interleaved")[..., apart], turn(x[..., apart], "half"), atol=1e-15)
    assert not np.allclose(turn(x, "interleaved"), turn(x, "half"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_turns_back(layout, rng):
    x = Tensor(rng.normal(size=(2, 5, 6)), requires_grad=True)
    y = ops.rope(x, *ops.rope_table(5, 6), layout)
    y.backward(y.data)
    np.testing.assert_allclose(x.grad, x.data, atol=1e-14)


def test_float32_stays_with_tables_of_float64(rng):
    x = Tensor(rng.normal(size=(5, 6)).astype(np.float32), requires_grad=True)
    y = ops.rope(x, *ops.rope_table(5, 6))
    y.backward(np.ones((5, 6)))
    assert y.dtype == x.grad.dtype == np.float32


def test_bad_input():
    cos, sin = ops.rope_table(5, 6)
    with pytest.raises(
        InputError, match=r"rope: layout is 'halves'; choose 'half' \(Hugging Face\) or 'interleaved' \(Meta\)"
    ):
        ops.rope(Tensor(np.ones((5, 6))), cos, sin, "halves")
    with pytest.raises(ShapeError, match="rope: x has D=5 channels per head; pairs need an even number"):
        ops.rope(Tensor(np.ones((5, 5))), cos, sin)
    with pytest.raises(ShapeError) as caught:
        ops.rope(Tensor(np.ones((4, 6))), cos, sin)
    assert str(caught.value) == "rope: cos has shape (5, 3), but x of shape (4, 6) needs (T, D/2) = (4, 3)"
    with pytest.raises(ShapeError, match=r"rope: sin has shape \(5, 2\)"):
        ops.rope(Tensor(np.ones((5, 6))), cos, sin[:, :2])
    for shape in ((), (6,)):
        with pytest.raises(ShapeError, match=r"rope: x has shape .*, expected \(..., T, D\)"):
            ops.rope(Tensor(np.ones(shape)), cos, sin)


@pytest.mark.oracle
def test_as_hugging_faces_llama(same_as_torch, rng):
    pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    cos, sin = ops.rope_table(7, 8)

    def theirs(q):
        tables = [torch.tensor(np.concatenate([table, table], -1)[None]).to(q.dtype) for table in (cos, sin)]
        return apply_rotary_pos_emb(q, q, *tables)[0]

    same_as_torch(lambda q: ops.rope(q, cos, sin), theirs, rng.normal(size=(2, 3, 7, 8)))
