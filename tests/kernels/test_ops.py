"""Operations that run kernels instead of their formulas: the same results, and proof that the kernels ran."""

from __future__ import annotations

import numpy as np
import pytest

import minillm
from minillm import cuda, ops, tensor
from minillm.cuda import KernelError, launch
from minillm.data import Batches
from minillm.engine import engine
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.ops import LINEAR
from minillm.ops.linear import Saved
from minillm.optim import AdamW, decay_groups
from minillm.study.gradcheck import run_cases
from minillm.testing import check_gradients

pytestmark = pytest.mark.usefixtures("_compiler")


def test_softmax_by_kernel_is_softmax_by_formula(rng):
    x, dout = rng.normal(size=(2, 3, 5, 37)).astype(np.float32)
    by_formula = tensor(x, requires_grad=True)
    expected = ops.softmax(by_formula)
    expected.backward(dout)
    before = cuda.launch_counts()
    with engine("require"):
        by_kernel = tensor(x, requires_grad=True)
        received = ops.softmax(by_kernel)
        received.backward(dout.swapaxes(0, 1).copy().swapaxes(0, 1))  # not contiguous: kernels need a copy
    ran = cuda.launch_counts() - before
    assert ran == {"softmax_forward<float>": 1, "softmax_backward<float>": 1}
    np.testing.assert_allclose(received.data, expected.data, rtol=1e-6)
    np.testing.assert_allclose(by_kernel.grad, by_formula.grad, rtol=1e-5, atol=1e-7)


def test_the_gradients_of_the_double_kernels_are_right(rng):
    with engine("require"):
        check_gradients(ops.softmax, rng.normal(size=(3, 4, 17)))


def test_a_backward_stays_with_its_forward(rng):
    """A graph never mixes the two: what a kernel saved, its own backward reads, whatever the policy by then."""
    x = tensor(rng.normal(size=(3, 17)), requires_grad=True)
    with engine("emulate"):
        y = ops.softmax(x)
    before = cuda.launch_counts()
    y.sum().backward()
    assert cuda.launch_counts() - before == {"softmax_backward<double>": 1}


def test_what_no_kernel_does_is_computed_by_the_formula_or_refused(rng):
    q, k, v = (tensor(x) for x in rng.normal(size=(3, 1, 2, 5, 16)).astype(np.float32))
    mask = np.tri(5, dtype=bool)
    by_formula = ops.attention(q, k, v, mask=mask)
    before = cuda.launch_counts()
    with engine("emulate"):
        np.testing.assert_array_equal(ops.attention(q, k, v, mask=mask).data, by_formula.data)
    assert cuda.launch_counts() == before
    with engine("require"), pytest.raises(KernelError, match=r"^attention: no kernel for these shapes"):
        ops.attention(q, k, v, mask=mask)


def test_by_default_a_cpu_computes_by_formula(rng):
    before = cuda.launch_counts()
    ops.softmax(tensor(rng.normal(size=(3, 17))))
    assert cuda.launch_counts() == before


def test_a_gpt_trained_by_kernels_follows_the_one_trained_by_formulas():
    """20 steps with dropout; "require" would raise if any operation with cuda fell back to its formula."""

    def losses(mode):
        minillm.manual_seed(0)
        model = GPT2(GPT2Config(vocab_size=33, context=12, layers=2, heads=2, channels=32, dropout=0.1))
        optimizer = AdamW(decay_groups(model.parameters(), 0.1), lr=1e-2)
        batches = Batches(np.random.default_rng(0).integers(0, 33, 500), batch_size=2, context=12, seed=0)
        with engine(mode):
            for step in range(20):
                optimizer.zero_grad()
                loss = model.loss(*batches.batch(step))
                loss.backward()
                optimizer.clip_grad_norm(1.0)
                optimizer.step()
                yield loss.item()

    before = cuda.launch_counts()
    by_kernel = list(losses("require"))
    ran = " ".join(cuda.launch_counts() - before)
    for kernel in ("layernorm", "attention", "activation", "column_sums", "embedding", "cross_entropy", "dropout"):
        assert f" {kernel}_" in f" {ran}" or f" {kernel}<" in f" {ran}"
    np.testing.assert_allclose(by_kernel, list(losses("plain")), atol=1e-4)


# ---- the linear layer, whose bias gradient is summed by column_sums.cu -----------------------------------------------


@pytest.mark.parametrize("lead", [(), (1,), (7,), (2, 3), (300,)], ids=str)
def test_linear_by_kernel_and_by_formula(agree, rng, lead):
    """The rows of one block, and of several whose sums are added up again."""
    x, weight, bias = (rng.standard_normal(shape) for shape in ((*lead, 4), (37, 4), (37,)))
    agree(ops.linear, x, weight, bias, ran="column_sums")


def test_a_bias_gradient_in_every_dtype(check, rng, dtype):
    dy, x, weight = (rng.standard_normal(shape).astype(dtype) for shape in ((300, 65), (300, 4), (65, 4)))
    _, _, dbias = LINEAR.pair("cuda").backward(dy, Saved(x, weight, True))
    assert dbias.dtype == dtype
    check(dbias, lambda dy: dy.sum(axis=0), (dy,), factor=2)


@pytest.mark.parametrize("rows", [1, 64, 65, 128, 129, 4096, 8193])
@pytest.mark.parametrize("result", ["its own", "float32"])
def test_sums_over_rows_in_stages(check, rng, dtype, rows, result):
    to = dtype if result == "its own" or dtype == np.float64 else np.dtype(np.float32)
    x = rng.standard_normal((rows, 5)).astype(dtype)
    total = launch.sum_rows(x, to)
    assert total.dtype == to
    check(total, lambda x: x.sum(axis=0), (x,), factor=3)


def test_a_grid_is_never_higher_than_cuda_allows():
    for rows in (1, 64, 64 * 65535, 64 * 65535 + 1, 10**9, 2**40):
        chunk = launch.chunk_of(rows)
        assert chunk >= launch.CHUNK
        assert -(-rows // chunk) <= 65535


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4), (3, 0)], ids=str)
def test_linear_of_nothing_by_kernels(rng, shape):
    """No rows leave a gradient of zeros for the bias; no inputs leave its sum."""
    x, weight, bias = (tensor(rng.normal(size=s), requires_grad=True) for s in (shape, (5, shape[-1]), (5,)))
    with engine("require"):
        y = ops.linear(x, weight, bias)
        y.backward(np.ones(y.shape))
    np.testing.assert_array_equal(bias.grad, np.full(5, y.numel() / 5))
    assert (x.grad.shape, weight.grad.shape) == (x.shape, weight.shape)


@pytest.mark.parametrize("lead", [(6,), (2, 3)], ids=str)
def test_a_gradient_that_is_not_contiguous(rng, lead):
    x, weight, bias = (tensor(rng.normal(size=s), requires_grad=True) for s in ((*lead, 4), (5, 4), (5,)))
    dout = rng.normal(size=(5, *lead)).transpose(*range(1, 1 + len(lead)), 0)
    assert not dout.flags.c_contiguous
    with engine("require"):
        ops.linear(x, weight, bias).backward(dout)
    np.testing.assert_allclose(bias.grad, dout.reshape(-1, 5).sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(x.grad, dout @ weight.data, rtol=1e-12)


def test_linear_without_a_bias_launches_nothing(rng):
    x, weight = (tensor(rng.normal(size=s), requires_grad=True) for s in ((6, 4), (5, 4)))
    before = cuda.launch_counts()
    with engine("require"):
        ops.linear(x, weight).sum().backward()
    assert not any("column_sums" in name for name in cuda.launch_counts() - before)


def test_linear_in_half_precision_is_a_formula(rng):
    arrays = [rng.normal(size=shape).astype(np.float16) for shape in ((6, 4), (5, 4), (5,))]
    x, weight, bias = (tensor(a, requires_grad=True) for a in arrays)
    with engine("require"), pytest.raises(KernelError, match=r"column_sums: no kernel for float16"):
        ops.linear(x, weight, bias)
    before = cuda.launch_counts()
    with engine("emulate"):
        ops.linear(x, weight, bias).backward(np.ones((6, 5)))
    assert cuda.launch_counts() == before
    assert bias.grad.tolist() == [6] * 5


def test_linear_of_two_dtypes(rng):
    """The gradient is in the wider one, and so is its sum; a parameter's gradient has the parameter's."""
    x, weight = tensor(rng.normal(size=(6, 4)).astype(np.float32)), tensor(rng.normal(size=(5, 4)), requires_grad=True)
    bias = tensor(rng.normal(size=5).astype(np.float32), requires_grad=True)
    with engine("require"):
        y = ops.linear(x, weight, bias)
        y.backward(np.ones((6, 5)))
    assert (y.dtype, weight.grad.dtype, bias.grad.dtype) == (np.float64, np.float64, np.float32)
    assert bias.grad.tolist() == [6] * 5


def test_every_linear_case_of_the_gradient_check_by_kernels():
    before = cuda.launch_counts()["column_sums<double, double>"]
    with engine("emulate"):
        results = run_cases(["linear"])
    assert [result.report for result in results if result.report] == []
    assert cuda.launch_counts()["column_sums<double, double>"] > before
