"""What the tests of all operations share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import minillm
from minillm import random
from minillm.autograd import Tensor


@pytest.fixture(autouse=True)
def stream():
    """Leave the default random stream as it was."""
    place = random.default.state()
    yield
    random.default.set_state(place)


@pytest.fixture(autouse=True, params=["fast", "plain"])
def pair(request: pytest.FixtureRequest):
    """Run every test with the fast pairs and with the plain ones; a file that chooses the engine overrides this."""
    with minillm.engine(request.param):
        yield request.param


@pytest.fixture
def same_as_torch() -> Callable:
    """Compare outputs and the gradients of every floating argument with PyTorch's, in float64 and in float32."""
    torch = pytest.importorskip("torch")

    def compare(ours: Callable, theirs: Callable, *arrays: np.ndarray) -> None:
        for dtype, tolerance in ((np.float64, 1e-10), (np.float32, 3e-5)):
            values = [x.astype(dtype) if x.dtype.kind == "f" else x for x in arrays]
            leaves = [Tensor(x, requires_grad=True) if x.dtype.kind == "f" else x for x in values]
            twins = [torch.tensor(x, requires_grad=x.dtype.kind == "f") for x in values]
            outs, wanted = ours(*leaves), theirs(*twins)
            outs = outs if isinstance(outs, tuple) else (outs,)
            wanted = wanted if isinstance(wanted, tuple) else (wanted,)
            assert len(outs) == len(wanted)
            cotangents = [np.random.default_rng(1).normal(size=y.shape).astype(dtype) for y in outs]
            for y, t, u in zip(outs, wanted, cotangents, strict=True):
                assert y.dtype == dtype
                near(y.data, t.detach().numpy(), tolerance)
                y.backward(u, keep_graph=True)
            torch.autograd.backward(wanted, [torch.tensor(u) for u in cotangents])
            for leaf, twin in zip(leaves, twins, strict=True):
                if isinstance(leaf, Tensor) and twin.grad is not None:
                    near(leaf.grad, twin.grad.numpy(), tolerance)

    def near(a: np.ndarray, b: np.ndarray, tolerance: float) -> None:
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1, abs(b).max(initial=0)))

    return compare
