"""kernels/rope.cu, emulated, against the formula of minillm/ops/rope.py: both layouts, there and back."""

from __future__ import annotations

import numpy as np
import pytest

from minillm import cuda, ops
from minillm.cuda import Kernel, get_kernel
from minillm.engine import engine
from minillm.ops.rope import Saved, rope_backward, rope_forward
from minillm.ops.rope_table import rope_table
from minillm.study.gradcheck import run_cases

pytestmark = pytest.mark.usefixtures("_compiler")
SHAPES = [(1, 1, 2), (2, 3, 17, 6), (3, 5, 34), (2, 2, 31, 64), (1, 9, 128), (7, 4, 8)]


@pytest.fixture(params=["half", "interleaved"])
def layout(request) -> str:
    return request.param


def tables(x: np.ndarray, start: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin, in float for bfloat16."""
    dtype = np.float64 if x.dtype == np.float64 else np.float32
    cos, sin = rope_table(x.shape[-2], x.shape[-1], start=start)
    return cos.astype(dtype), sin.astype(dtype)


def launch(x, cos, sin, layout, direction=1, blocks=2, block=(4, 8), y=None, kernel: Kernel | None = None):
    y = np.full_like(x, np.nan) if y is None else y
    length, pairs = cos.shape
    kernel = kernel or get_kernel("rope.cu", "rope", x.dtype, layout.upper())
    sizes = (np.int64(x.size // (2 * pairs)), np.int32(length), np.int32(pairs), cos.dtype.type(direction))
    kernel(blocks, block, (x, cos, sin, y, *sizes))
    return y


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_there_and_back(check, warp_order, rng, dtype, layout, shape):
    x = rng.standard_normal(shape).astype(dtype)
    cos, sin = tables(x)
    forward = launch(x, cos, sin, layout)
    check(forward, lambda x, cos, sin: rope_forward(x, cos=cos, sin=sin, layout=layout)[0], (x, cos, sin), factor=2)
    backward = launch(x, cos, sin, layout, direction=-1)
    check(backward, lambda x, cos, sin: rope_backward(x, Saved(cos, sin, layout))[0], (x, cos, sin), factor=3)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_inverse_in_place(rng, layout, shape):
    x = rng.standard_normal(shape)
    cos, sin = tables(x)
    y = x.copy()
    launch(y, cos, sin, layout, y=y)
    assert not np.allclose(x, y)
    launch(y, cos, sin, layout, direction=-1, y=y)
    np.testing.assert_allclose(y, x, atol=1e-14)


def test_any_grid_and_block_gives_the_same(warp_order, rng, dtype, layout):
    x = rng.standard_normal((5, 13, 48)).astype(dtype)
    expected = launch(x, *tables(x), layout, blocks=65, block=(6, 1))
    for blocks, block in ((1, (1, 1)), (2, (32, 3)), (40, (2, 16)), (7, (5, 7))):
        np.testing.assert_array_equal(launch(x, *tables(x), layout, blocks=blocks, block=block), expected)


def test_arrays_that_do_not_start_at_16_bytes(rng, dtype, layout):
    def shifted(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array.reshape(-1)[:1], array.reshape(-1)])[1:].reshape(array.shape)

    x = rng.standard_normal((3, 5, 64)).astype(dtype)
    cos, sin = tables(x)
    expected = launch(x, cos, sin, layout)
    np.testing.assert_array_equal(launch(shifted(x), cos, sin, layout), expected)
    np.testing.assert_array_equal(launch(x, shifted(cos), sin, layout), expected)
    np.testing.assert_array_equal(launch(x, cos, shifted(sin), layout), expected)
    np.testing.assert_array_equal(launch(x, cos, sin, layout, y=shifted(np.full_like(x, np.nan))), expected)


def test_position_0_turns_nothing(rng, dtype, layout):
    x = rng.standard_normal((4, 1, 20)).astype(dtype)
    np.testing.assert_array_equal(launch(x, *tables(x, start=0), layout), x)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_operation_by_kernel_and_by_formula(agree, rng, layout, shape):
    table = rope_table(shape[-2], shape[-1])
    agree(lambda x: ops.rope(x, *table, layout), rng.standard_normal(shape), ran="rope")


def test_every_case_of_the_gradient_check_by_kernels():
    ran = "rope<double, HALF>"
    before = cuda.launch_counts()[ran]
    with engine("emulate"):
        results = run_cases(["rope"])
    assert results
    assert [result.report for result in results if result.report] == []
    assert cuda.launch_counts()[ran] > before


FAULTS = {
    "the sign of a sine": ("A(x1) * cos - A(x2) * sin, y2", "A(x1) * cos + A(x2) * sin, y2"),
    "x1 overwritten too early": (", y2 = A(x1) * sin", ";\n    x1 = T(y1);\n    const A y2 = A(x1) * sin"),
    "the position not wound back": (
        "if (position >= length) position -= length;",
        "if (position > length) position -= length;",
    ),
    "direction on one of two sines": ("turn(v1[k], v2[k], c[k], direction * s[k])", "turn(v1[k], v2[k], c[k], s[k])"),
    "the other layout": ("const int i1 = LAYOUT == HALF", "const int i1 = LAYOUT != HALF"),
    "rows beyond the last": ("row < rows; row += step", "row <= rows; row += step"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(mutated, rng, fault):
    faulty = mutated(f"rope {fault}", "rope.cu", *FAULTS[fault], "rope.cu", "rope<float, HALF>")
    padded = rng.standard_normal((46, 16)).astype(np.float32)
    x, y = padded[:45].reshape(5, 9, 16), np.zeros_like(padded)
    cos, sin = (table.astype(np.float32)[:9] for table in rope_table(10, 16, start=1))
    right = rope_backward(x, Saved(cos, sin, "half"))[0]
    launch(x, cos, sin, "half", -1, y=y, kernel=faulty)
    assert not np.allclose(y, np.concatenate([right.reshape(45, 16), np.zeros((1, 16))]), atol=1e-4)
