"""Operations that run kernels instead of their formulas: the same results, and proof that the kernels ran."""

from __future__ import annotations

import numpy as np
import pytest

import minillm
from minillm import kernels, ops, tensor
from minillm.data import Batches
from minillm.kernels import KernelError, use_kernels
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.optim import AdamW, decay_groups
from minillm.testing import check_gradients

pytestmark = pytest.mark.usefixtures("_compiler")


def test_softmax_by_kernel_is_softmax_by_formula(rng):
    x, dout = rng.normal(size=(2, 3, 5, 37)).astype(np.float32)
    by_formula = tensor(x, requires_grad=True)
    expected = ops.softmax(by_formula)
    expected.backward(dout)
    before = kernels.launch_counts()
    with use_kernels("require"):
        by_kernel = tensor(x, requires_grad=True)
        received = ops.softmax(by_kernel)
        received.backward(dout.swapaxes(0, 1).copy().swapaxes(0, 1))  # not contiguous: kernels need a copy
    ran = kernels.launch_counts() - before
    assert ran == {"softmax_forward<float>": 1, "softmax_backward<float>": 1}
    np.testing.assert_allclose(received.data, expected.data, rtol=1e-6)
    np.testing.assert_allclose(by_kernel.grad, by_formula.grad, rtol=1e-5, atol=1e-7)


def test_the_gradients_of_the_double_kernels_are_right(rng):
    with use_kernels("require"):
        check_gradients(ops.softmax, rng.normal(size=(3, 4, 17)))


def test_a_backward_stays_with_its_forward(rng):
    """A graph never mixes the two: what a kernel saved, its own backward reads, whatever the policy by then."""
    x = tensor(rng.normal(size=(3, 17)), requires_grad=True)
    with use_kernels("emulate"):
        y = ops.softmax(x)
    before = kernels.launch_counts()
    y.sum().backward()
    assert kernels.launch_counts() - before == {"softmax_backward<double>": 1}


def test_what_no_kernel_does_is_computed_by_the_formula_or_refused(rng):
    x = tensor(rng.normal(size=(3, 17)).astype(np.float32))
    before = kernels.launch_counts()
    with use_kernels("emulate"):
        np.testing.assert_array_equal(ops.softmax(x, axis=0).data, ops.softmax(x, axis=0).data)
    assert kernels.launch_counts() == before
    with use_kernels("require"), pytest.raises(KernelError, match=r"^softmax: no kernel for these shapes or settings"):
        ops.softmax(x, axis=0)


def test_by_default_a_cpu_computes_by_formula(rng):
    before = kernels.launch_counts()
    ops.softmax(tensor(rng.normal(size=(3, 17))))
    assert kernels.launch_counts() == before


def test_a_gpt_trained_by_kernels_follows_the_one_trained_by_formulas():
    """20 steps with dropout; "require" would raise if any operation with kernels fell back to its formula."""

    def losses(mode):
        minillm.manual_seed(0)
        model = GPT2(GPT2Config(vocab_size=33, context=12, layers=2, heads=2, channels=32, dropout=0.0))
        model.drop.p = 0.1  # attention has no kernel with dropout
        optimizer = AdamW(decay_groups(model.parameters(), 0.1), lr=1e-2)
        batches = Batches(np.random.default_rng(0).integers(0, 33, 500), batch_size=2, context=12, seed=0)
        with use_kernels(mode):
            for step in range(20):
                optimizer.zero_grad()
                loss = model.loss(*batches.batch(step))
                loss.backward()
                optimizer.clip_grad_norm(1.0)
                optimizer.step()
                yield loss.item()

    before = kernels.launch_counts()
    by_kernel = list(losses("require"))
    ran = " ".join(kernels.launch_counts() - before)
    for kernel in ("layernorm", "attention", "activation", "embedding", "cross_entropy", "dropout"):
        assert kernel in ran
    np.testing.assert_allclose(by_kernel, list(losses("off")), atol=1e-4)
