"""The questions on a GPU's arrays: the stand-in of tests/standin for CuPy gets the answers of the CPU."""

from __future__ import annotations

import math

import numpy as np
import pytest

import minillm
from minillm import ops, study
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.optim import AdamW
from minillm.study.questions.nonfinite import NonFiniteError
from tests.test_device import cupy

__all__ = ["cupy"]
pytestmark = pytest.mark.usefixtures("cupy")
IDS = np.random.default_rng(0).integers(0, 13, (2, 6))


def watched(device: str, dtype: str) -> dict:
    minillm.manual_seed(0)
    model = GPT2(GPT2Config(vocab_size=13, context=6, layers=2, heads=2, channels=16)).to(device, dtype)
    optimizer = AdamW(model.parameters(), lr=1e-2)
    watch = study.Watch(model)
    ids = minillm.tensor(IDS, device=device)
    with watch.step(1):
        model.loss(ids, ids).backward()
        optimizer.step()
    [record] = watch.records
    return record["layers"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_watch_finds_what_it_finds_on_the_cpu(dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    expected, received = watched("cpu", "float32"), watched("cuda", dtype)
    assert expected.keys() == received.keys()
    for layer in expected:
        for name, value in expected[layer].items():
            close = math.isclose(
                value, received[layer][name], rel_tol=1e-3 if dtype == "float32" else 0.3, abs_tol=0.05
            )
            assert close, (layer, name)


def test_a_probe_and_a_reason():
    x = minillm.tensor([[1.0, -2.0]], requires_grad=True, device="cuda")
    y = study.probe(x * 2, "on the device")
    loss = (y * 0.0).sum()
    assert [cause.name for cause in study.why(x, loss).causes] == ["multiplied by zero"]
    [cause] = study.why(x, (y * minillm.tensor(np.zeros((1, 2), np.float32), device="cuda")).sum()).causes
    assert cause.name == "multiplied by zero"
    table = minillm.tensor(np.ones((4, 2), np.float32), requires_grad=True, device="cuda")
    logits = ops.embedding(minillm.tensor([0, 1, 1], device="cuda"), table)
    picked = ops.cross_entropy(logits, minillm.tensor([0, -100, 1], device="cuda"))
    assert [cause.name for cause in study.why(table, picked).causes] == ["ignored targets", "ids that do not occur"]
    assert study.memory(picked).total > 0
    assert len(study.table(picked).rows) == 2
    (y * y).sum().backward()
    assert study.probes["on the device"].value.largest == 2
    assert study.probes["on the device"].gradient.smallest == -8
    study.probes.clear()


@pytest.mark.parametrize("mode", ["plain", "auto"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_not_finite(dtype, mode):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    x = minillm.tensor([[1.0, 0.0]], requires_grad=True, device="cuda").to(dtype).detach().requires_grad_()
    told = pytest.raises(NonFiniteError, match="the forward of log made an infinity")
    with minillm.engine(mode), told, study.nonfinite():
        ops.log(x)
    told = pytest.raises(NonFiniteError, match="the backward of sqrt made an infinity")
    with minillm.engine(mode), told, study.nonfinite():
        ops.sqrt(x).sum().backward()
