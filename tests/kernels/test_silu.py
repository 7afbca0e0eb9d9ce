"""kernels/silu.cu, emulated, against the formulas of minillm/ops/silu.py and swiglu.py."""

from __future__ import annotations

import numpy as np
import pytest

from minillm import cuda, ops
from minillm.cuda import Kernel, get_kernel
from minillm.engine import engine
from minillm.ops.silu import silu_backward, silu_forward
from minillm.ops.swiglu import swiglu_backward, swiglu_forward
from minillm.study.gradcheck import run_cases

pytestmark = pytest.mark.usefixtures("_compiler")
COUNTS = [1, 17, 1023, 4096, 4099]


def launch(name: str, *arrays: np.ndarray, outputs: int = 1, blocks: int = 2, kernel: Kernel | None = None) -> tuple:
    """Run an elementwise kernel of silu.cu; returns what it has written."""
    x = arrays[0]
    written = tuple(np.full_like(x, np.nan) for _ in range(outputs))
    template = (x.dtype, "Silu") if name.startswith("activation") else (x.dtype,)
    kernel = kernel or get_kernel("silu.cu", name, *template)
    kernel(blocks, 96, (*arrays, *written, np.int64(x.size)))
    return written


def silu_backward_formula(dy, x):
    return silu_backward(dy, silu_forward(x)[1])


def swiglu_forward_formula(gate, up):
    return swiglu_forward(gate, up)[0]


def swiglu_backward_formula(dy, gate, up):
    return swiglu_backward(dy, swiglu_forward(gate, up)[1])


@pytest.mark.parametrize("count", COUNTS)
def test_silu(check, warp_order, rng, dtype, count):
    x, dy = (3 * rng.standard_normal((2, count))).astype(dtype)
    check(launch("activation_forward", x), lambda x: (silu_forward(x)[0],), (x,), factor=2)
    check(launch("activation_backward", dy, x), silu_backward_formula, (dy, x), factor=3)


@pytest.mark.parametrize("count", COUNTS)
def test_swiglu(check, warp_order, rng, dtype, count):
    gate, up, dy = (2 * rng.standard_normal((3, count))).astype(dtype)
    (y,) = launch("swiglu_forward", gate, up)
    check(y, swiglu_forward_formula, (gate, up), factor=2)
    received = launch("swiglu_backward", dy, gate, up, outputs=2)
    check(received, swiglu_backward_formula, (dy, gate, up), factor=3)


def test_large_inputs(dtype):
    x = np.array([-1e4, -800, -100, -0.0, 0, 100, 800, 1e4]).astype(dtype)
    one, wide = np.ones_like(x), x.astype(np.float64)
    (y,), (dx,) = launch("activation_forward", x), launch("activation_backward", one, x)
    np.testing.assert_allclose(y.astype(np.float64), np.maximum(wide, 0), rtol=0, atol=1e-40)
    np.testing.assert_allclose(dx.astype(np.float64), np.where(wide == 0, 0.5, wide > 0), rtol=0, atol=1e-40)
    np.testing.assert_array_equal(launch("swiglu_forward", x, one)[0], y)
    np.testing.assert_array_equal(launch("swiglu_backward", one, x, one, outputs=2), [dx, y])


def test_arrays_that_do_not_start_at_16_bytes(rng, dtype):
    arrays = rng.standard_normal((3, 200)).astype(dtype)
    for name, inputs, outputs in (("activation_forward", 1, 1), ("activation_backward", 2, 1),
                                  ("swiglu_forward", 2, 1), ("swiglu_backward", 3, 2)):  # fmt: skip
        expected = launch(name, *arrays[:inputs], outputs=outputs)
        for i in range(inputs):
            moved = [np.concatenate([a[:1], a])[1:] if i == j else a for j, a in enumerate(arrays[:inputs])]
            np.testing.assert_array_equal(launch(name, *moved, outputs=outputs), expected)


def test_double_backwards_are_the_derivatives_of_the_forwards(rng):
    gate, up, u, v, w = rng.standard_normal((5, 300))
    h = 6e-6
    there, back = (launch("swiglu_forward", gate + s * v, up + s * w)[0] for s in (h, -h))
    dgate, dup = launch("swiglu_backward", u, gate, up, outputs=2)
    assert abs(((there - back) * u).sum() / (2 * h) - (dgate * v).sum() - (dup * w).sum()) < 1e-8
    there, back = (launch("activation_forward", gate + s * v)[0] for s in (h, -h))
    assert abs(((there - back) * u).sum() / (2 * h) - (launch("activation_backward", u, gate)[0] * v).sum()) < 1e-8


@pytest.mark.parametrize("shape", [(), (1,), (5, 17), (40, 1023)], ids=str)
def test_the_operations_by_kernel_and_by_formula(agree, rng, shape):
    x, up = 2 * rng.standard_normal((2, *shape))
    agree(ops.silu, x, ran="activation_backward")
    agree(ops.swiglu, x, up, ran="swiglu_backward")


def test_every_case_of_the_gradient_check_by_kernels():
    ran = "swiglu_backward<double>"
    before = cuda.launch_counts()[ran]
    with engine("emulate"):
        results = run_cases(["silu", "swiglu"])
    assert results
    assert [result.report for result in results if result.report] == []
    assert cuda.launch_counts()[ran] > before


FAULTS = {
    "the gradients of gate and up swapped": (
        "store(dgate + i, dgate_i);\n        store(dup + i, dup_i)",
        "store(dup + i, dgate_i), store(dgate + i, dup_i)",
    ),
    "up for the gate": ("A dy_k = A(dy_i[k]), x = A(gate_i[k])", "A dy_k = A(dy_i[k]), x = A(up_i[k])"),
    "the slope's sign": ("s * (1 + x * (1 - s))", "s * (1 - x * (1 - s))"),
    "the last numbers forgotten": ("swiglu_backward_from<1>(dy, gate, up, dgate, dup, in_vectors, count);", ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(mutated, rng, fault):
    faulty = mutated(f"silu {fault}", "silu.cu", *FAULTS[fault], "silu.cu", "swiglu_backward<float>")
    arrays = rng.standard_normal((3, 403)).astype(np.float32)
    right = launch("swiglu_backward", *arrays, outputs=2)
    assert not np.allclose(right, launch("swiglu_backward", *arrays, outputs=2, kernel=faulty), atol=1e-4)
