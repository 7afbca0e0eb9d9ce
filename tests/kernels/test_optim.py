"""The optimiser's kernels, emulated, behind AdamW's own methods: the same steps as by the formula."""

from __future__ import annotations

import numpy as np
import pytest

from minillm.autograd import Parameter
from minillm.cuda import KernelError, launch_counts
from minillm.engine import engine
from minillm.optim import SGD, AdamW, decay_groups

pytestmark = pytest.mark.usefixtures("_compiler")
SHAPES = ((7, 11), (300,), (1,), (40, 60))


@pytest.fixture(params=["float32", "float64", "bfloat16"])
def dtype(request) -> np.dtype:
    return request.getfixturevalue("bfloat16") if request.param == "bfloat16" else np.dtype(request.param)


def train(policy: str, dtype: np.dtype, steps: int = 4, without: int | None = None, kind: type = AdamW):
    """The parameters, the norms, and the optimiser after some steps with the same gradients every time."""
    rng = np.random.default_rng(0)
    members = [Parameter(rng.standard_normal(shape).astype(dtype)) for shape in SHAPES]
    for number, parameter in enumerate(members):
        parameter.name = f"p{number}"
    optimizer, norms = kind(decay_groups(members, 0.1), lr=1e-2), []
    with engine(policy):
        for _ in range(steps):
            for number, parameter in enumerate(members):
                gradient = rng.standard_normal(parameter.shape).astype(dtype)
                parameter.grad = None if number == without else gradient
            norms.append(float(optimizer.clip_grad_norm(1.0)))
            optimizer.step()
    return members, norms, optimizer


@pytest.mark.parametrize("without", [None, 0, 3])
def test_the_steps_of_the_formula(dtype, without):
    before = launch_counts()
    by_kernel = train("require", dtype, without=without)
    launched = launch_counts() - before
    by_formula = train("plain", dtype, without=without)
    assert launch_counts() - before == launched
    assert {name.partition("<")[0] for name in launched} == {"adamw", "sum_of_squares", "clip_factor"}
    np.testing.assert_allclose(by_kernel[1], by_formula[1], rtol=1e-6)
    for ours, theirs in zip(by_kernel[0], by_formula[0], strict=True):
        assert ours.data.dtype == dtype
        np.testing.assert_allclose(
            ours.data.astype(float), theirs.data.astype(float), rtol=2**-8 if dtype.itemsize == 2 else 1e-5, atol=1e-8
        )
    ours, theirs = (run[2].state_dict() for run in (by_kernel, by_formula))
    assert ours.keys() == theirs.keys()
    assert ("master.p0" in ours) == (dtype.itemsize == 2)
    for name, state in ours.items():
        np.testing.assert_allclose(state, theirs[name], rtol=1e-5, atol=1e-7)


def test_parameters_whose_gradients_come_and_go(dtype):
    """Those of equal counts that lie side by side are one launch."""
    launched = []
    for policy in ("plain", "require"):
        rng = np.random.default_rng(0)
        members = [Parameter(rng.standard_normal(shape).astype(dtype)) for shape in SHAPES]
        optimizer = AdamW(members, lr=1e-2)
        with engine(policy):
            for missing in ({1}, set(), {0, 1}, set()):
                before = launch_counts()
                for number, parameter in enumerate(members):
                    gradient = rng.standard_normal(parameter.shape).astype(dtype)
                    parameter.grad = None if number in missing else gradient
                optimizer.step()
                launched.append(sum((launch_counts() - before).values()))
        launched.append([parameter.data.astype(float) for parameter in members])
        assert optimizer.groups[0].steps == [3, 2, 4, 4]
    assert launched[:4] == [0] * 4
    assert launched[5:9] == [2, 3, 1, 3]
    for ours, theirs in zip(launched[4], launched[9], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2**-8 if dtype.itemsize == 2 else 1e-5, atol=1e-7)


def test_without_clipping(dtype):
    moved = []
    for policy in ("plain", "require"):
        parameter = Parameter(np.ones(100, dtype))
        optimizer = AdamW([parameter], lr=0.1)
        parameter.grad = np.random.default_rng(1).standard_normal(100).astype(dtype)
        with engine(policy):
            optimizer.step()
        moved.append(parameter.data.astype(float))
    np.testing.assert_allclose(*moved, rtol=2**-8 if dtype.itemsize == 2 else 1e-6)


def test_no_gradients_have_norm_zero():
    optimizer = AdamW([Parameter(np.ones(5, np.float32))], lr=0.1)
    with engine("require"):
        assert float(optimizer.clip_grad_norm(1.0)) == 0
        optimizer.step()
    assert (optimizer.groups[0].data[:5] == 1).all()


def test_an_optimiser_without_a_kernel_uses_the_factor_that_one_made():
    by_kernel, by_formula = (train(policy, np.dtype(np.float32), kind=SGD) for policy in ("emulate", "plain"))
    for ours, theirs in zip(by_kernel[0], by_formula[0], strict=True):
        np.testing.assert_allclose(ours.data, theirs.data, rtol=1e-5)


def test_a_bfloat16_parameter_that_was_written_to_is_taken_over(bfloat16):
    for policy in ("plain", "require"):
        members, _, optimizer = train(policy, bfloat16)
        members[0].data[...] = 3
        for parameter in members:
            parameter.grad = np.zeros(parameter.shape, bfloat16)
        with engine(policy):
            optimizer.step()
        np.testing.assert_allclose(members[0].data.astype(float), 3, atol=0.05)


def test_a_dtype_without_a_kernel_is_refused_where_kernels_are_required():
    parameter = Parameter(np.ones(5, np.float16))
    optimizer = AdamW([parameter])
    parameter.grad = np.ones(5, np.float16)
    with engine("require"), pytest.raises(KernelError, match="adamw: no kernel for float16"):
        optimizer.step()
