"""kernels/adamw.cu, emulated, against the formula of minillm/optim/adamw.py in extended precision.

Weights and moments may be as wrong as the formula in the dtype of the masters, twice over; a bfloat16 weight is its
master, rounded.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from minillm import cuda
from minillm.cuda import Kernel, get_kernel
from minillm.fast import adamw as fast
from minillm.optim.adamw import adamw_update

pytestmark = pytest.mark.usefixtures("_compiler")
SIZES = (1, 3, 17, 64, 1023, 5003)
OPTIONS = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
LR, CLIP = 1e-2, 0.37
ROUNDING = {"float32": 2**-24, "float64": 2**-53}


@pytest.fixture(params=["float32", "float64", "bfloat16"])
def dtype(request) -> np.dtype:
    return request.getfixturevalue("bfloat16") if request.param == "bfloat16" else np.dtype(request.param)


class Buffers:
    """Masters, gradient and moments of n parameters, and the weights that the model sees."""

    def __init__(self, rng: np.random.Generator, n: int, dtype: np.dtype):
        accumulator = np.promote_types(dtype, np.float32)
        self.masters = rng.standard_normal(n).astype(accumulator)
        self.weights = self.masters if dtype == accumulator else self.masters.astype(dtype)
        self.gradient = (10.0 ** rng.uniform(-6, 1, n) * rng.standard_normal(n)).astype(dtype)
        self.m = (0.1 * rng.standard_normal(n)).astype(accumulator)
        self.v = (0.1 * rng.standard_normal(n) ** 2).astype(accumulator)

    def in_place(self, steps: int, options: dict = OPTIONS) -> list[np.ndarray]:
        """Masters and moments after the step of fast/adamw.py, whose order of operations is the kernel's."""
        w, m, v = self.masters.copy(), self.m.copy(), self.v.copy()
        fast.adamw_update(w, w.dtype.type(CLIP) * self.gradient.astype(w.dtype), m, v, t=steps, lr=LR, **options)
        return [w, m, v]

    def by_formula(self, steps: int, dtype: type, options: dict = OPTIONS) -> list[np.ndarray]:
        """Masters and moments after the step, computed in `dtype`."""
        w, g, m, v = (a.astype(dtype) for a in (self.masters, self.gradient, self.m, self.v))
        return list(adamw_update(w, CLIP * g, m, v, t=steps, lr=LR, **options))

    def by_kernel(self, steps, options=OPTIONS, blocks=2, threads=64, kernel: Kernel | None = None) -> list[np.ndarray]:
        """The same in place, by the kernel; the scalars as adamw.cu asks for them."""
        number, n = self.masters.dtype.type, np.int64(self.masters.size)
        clip = np.array([CLIP], number)
        beta1, beta2 = options["betas"]
        shared = (
            *(number(1 - beta1), number(1 - beta2), number(1 / math.sqrt(1 - beta2**steps)), number(options["eps"])),
            *(number(LR / (1 - beta1**steps)), number(1 - LR * options["weight_decay"])),
        )
        kernel = kernel or get_kernel("adamw.cu", "adamw", self.weights.dtype)
        kernel(blocks, threads, (self.weights, self.gradient, self.masters, self.m, self.v, clip, n, *shared))
        return [self.masters, self.m, self.v]


def rms(x) -> float:
    return float(np.sqrt(np.square(x.astype(np.longdouble)).mean()))


def check(buffers: Buffers, steps: int, options: dict = OPTIONS, **launch) -> None:
    number, gradient = buffers.masters.dtype, buffers.gradient.copy()
    expected, by_numpy = buffers.by_formula(steps, np.longdouble, options), buffers.in_place(steps, options)
    before = buffers.masters.copy()
    received = buffers.by_kernel(steps, options, **launch)
    np.testing.assert_array_equal(buffers.gradient, gradient)
    np.testing.assert_array_equal(buffers.weights, buffers.masters.astype(buffers.weights.dtype))
    assert (received[0] != before).mean() > 0.9
    for one, right, allowed in zip(received, expected, by_numpy, strict=True):
        assert rms(one - right) <= 2 * max(rms(allowed - right), rms(right) * ROUNDING[number.name] / 2)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("steps", [1, 2, 1000])
def test_a_step(warp_order, rng, dtype, n, steps):
    check(Buffers(rng, n, dtype), steps)


@pytest.mark.parametrize(
    "launch", [{"blocks": 1, "threads": 32}, {"blocks": 7, "threads": 256}, {"threads": 1}], ids=str
)
def test_any_grid(rng, dtype, launch):
    check(Buffers(rng, 1000, dtype), 3, **launch)


def test_no_decay_and_other_betas(rng, dtype):
    check(Buffers(rng, 333, dtype), 5, {"betas": (0.0, 0.5), "eps": 1e-3, "weight_decay": 0.0})


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_without_memory_a_step_is_the_sign_of_the_gradient(rng, size):
    """With betas (0, 0), however large the moments were before."""
    buffers = Buffers(rng, 70, np.dtype(np.float32))
    buffers.gradient[:] = size * np.sign(rng.standard_normal(70))
    before = buffers.masters.copy()
    options = {"betas": (0.0, 0.0), "eps": 0.0, "weight_decay": 0.0}
    for masters in (buffers.in_place(3, options)[0], buffers.by_kernel(3, options)[0]):
        np.testing.assert_allclose(masters, before - LR * np.sign(buffers.gradient), atol=1e-6)


def test_many_steps_stay_with_the_formula(rng):
    buffers = Buffers(rng, 50, np.dtype(np.float64))
    w, m, v = (a.copy() for a in (buffers.masters, buffers.m, buffers.v))
    for steps in range(1, 40):
        w, m, v = adamw_update(w, CLIP * buffers.gradient, m, v, t=steps, lr=LR, **OPTIONS)
        buffers.by_kernel(steps)
        buffers.gradient = rng.standard_normal(50)
    np.testing.assert_allclose(buffers.masters, w, rtol=1e-13)


def test_padding_stays_zero(rng, dtype):
    buffers = Buffers(rng, 48, dtype)
    for array in (buffers.masters, buffers.weights, buffers.gradient, buffers.m, buffers.v):
        array[20:32] = 0
    buffers.by_kernel(1)
    for array in (buffers.masters, buffers.weights, buffers.m, buffers.v):
        assert (array[20:32] == 0).all()


def test_changes_below_half_a_unit_of_bfloat16_add_up_in_the_masters(rng, bfloat16):
    buffers = Buffers(rng, 64, bfloat16)
    buffers.masters[:], buffers.weights[:], buffers.gradient[:] = 1, 1, 0
    for step in range(1, 301):
        buffers.m[:], buffers.v[:] = 0.1, 1
        buffers.by_kernel(10**6, OPTIONS | {"weight_decay": 0.0})  # a change of 0.0009, where half a unit is 0.002
        assert step > 1 or (buffers.weights == 1).all()
    np.testing.assert_allclose(buffers.weights.astype(float), 1 - 300 * 0.0009, rtol=2**-8)


def test_a_weight_that_was_written_to_is_taken_over(rng, bfloat16):
    written, other = Buffers(rng, 100, bfloat16), Buffers(rng, 100, bfloat16)
    for name in ("gradient", "m", "v"):
        setattr(other, name, getattr(written, name).copy())
    other.weights[:], other.masters[:] = written.weights, written.masters
    written.weights[10:60] = rng.standard_normal(50).astype(bfloat16)
    other.weights[10:60] = other.masters[10:60] = written.weights[10:60]
    other.masters[:10] = 0  # new masters: the weights, rounded as they are
    written.masters[:10] = written.weights[:10]
    written.by_kernel(2)
    other.by_kernel(2)
    np.testing.assert_array_equal(written.masters, other.masters)
    np.testing.assert_array_equal(written.weights, other.weights)


@pytest.mark.parametrize("part", ["weights", "gradient", "masters", "m", "v"])
def test_buffers_that_do_not_start_at_16_bytes(rng, dtype, part):
    buffers = Buffers(rng, 203, dtype)
    array = getattr(buffers, part)
    moved = np.concatenate([array[:1], array])[1:]
    setattr(buffers, part, moved)
    if buffers.weights.dtype == buffers.masters.dtype and part in ("weights", "masters"):
        buffers.weights = buffers.masters = moved
    check(buffers, 2)


def test_order_changes_no_bit(dtype):
    def run() -> list[bytes]:
        return [a.tobytes() for a in Buffers(np.random.default_rng(0), 500, dtype).by_kernel(4)]

    expected = run()
    with cuda.emulation(order="random", seed=3):
        assert run() == expected


FAULTS = {
    "clip factor forgotten": ("step.clip * A(gradient[k])", "A(gradient[k])"),
    "m from the moved gradient": ("moved(mean[k], g, step.rest1)", "mean[k] + step.rest1 * g"),
    "v from m": ("g * g, step.rest2", "g * mean[k], step.rest2"),
    "betas exchanged": ("g, step.rest1", "g, step.rest2"),
    "eps inside the root": ("sqrt(square[k]) * step.unbias + step.eps", "sqrt(square[k] + step.eps) * step.unbias"),
    "v not unbiased": ("sqrt(square[k]) * step.unbias", "sqrt(square[k])"),
    "the weight not taken over": ("w[k] = A(weight[k]);", ";"),
    "decay forgotten": ("w[k] * step.keep", "w[k]"),
    "m not stored": ("store(m, mean);", ""),
    "v not stored": ("store(v, square);", "store(v, mean);"),
    "the end of the buffer forgotten": (
        "pieces * COUNT + thread.number; i < n",
        "pieces * COUNT + thread.number; i < 0",
    ),
    "pieces for one thread only": ("i += thread.count * COUNT", "i += n"),
    "alignment of one array": ("aligned(masters) && aligned(m) &&", "aligned(masters) &&"),
}


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_a_planted_fault_is_caught(mutated, rng, bfloat16, fault):
    def is_right(dtype: np.dtype, instance: str) -> bool:
        kernel = mutated(f"adamw {fault}", "adamw.cu", *FAULTS[fault], "adamw.cu", instance) if fault else None
        buffers = Buffers(rng, 1003, dtype)
        if fault == "alignment of one array":
            buffers.m = np.concatenate([buffers.m[:1], buffers.m])[1:]
        if dtype == bfloat16:
            buffers.masters[:] = buffers.weights
        expected = buffers.by_formula(3, np.float64)
        if dtype == bfloat16:
            buffers.masters += 1  # so that they must give way to the weights
        received = buffers.by_kernel(3, kernel=kernel)
        return all(np.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(received, expected, strict=True))

    instances = ((np.dtype(np.float32), "adamw<float>"), (bfloat16, "adamw<__nv_bfloat16>"))
    if fault == "alignment of one array":
        with pytest.raises(cuda.KernelError, match="not a multiple of 16"):
            is_right(*instances[0])
    else:
        assert all(is_right(*instance) for instance in instances) == (fault is None)
