"""The trainings of test_equality through nccl.py and the real cupy.cuda.nccl, on a stand-in for libnccl."""

from __future__ import annotations

import pytest

from tests.parallel.nccl_ranks import over_nccl
from tests.parallel.test_equality import MESHES, check
from tests.parallel.training import Case, on_mesh


@pytest.fixture(scope="module")
def nccl_ranks(ranks):
    return over_nccl(ranks)


@pytest.mark.parametrize("model", ["gpt2", "llama"])
@pytest.mark.parametrize("name", MESHES)
def test_float64(nccl_ranks, name, model):
    case = MESHES[name]._replace(model=model, dropout=0.2 if model == "gpt2" else 0.0)
    check(nccl_ranks(case.ranks).run(on_mesh, case), case, 1e-12 if case.tp * case.pp == 1 else 1e-10)


@pytest.mark.parametrize("name", ["dp2", "zero2-2", "zero3-2", "tp2", "pp2-1f1b"])
def test_float32(nccl_ranks, name):
    case = MESHES[name]._replace(dtype="float32", dropout=0.2)
    check(nccl_ranks(case.ranks).run(on_mesh, case), case, 1e-5)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_one_rank(nccl_ranks, zero):
    """With one rank, as on a machine with one GPU, every collective is called on a group of one."""
    case = Case(zero=zero, dropout=0.2, steps=5)
    check(nccl_ranks(1).run(on_mesh, case), case, 1e-12)
