"""However a training is divided, it is the training of one process: losses, norms, weights, moments."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from tests.parallel.training import Case, Outcome, on_mesh, one_process

MESHES = {
    "dp2": Case(dp=2),
    "dp4": Case(dp=4),
    **{f"zero{stage}-{n}": Case(dp=n, zero=stage) for stage in (1, 2, 3) for n in (2, 4)},
    "tp2": Case(tp=2),
    "tp4": Case(tp=4),
    **{f"pp{n}-{kind}": Case(pp=n, schedule=kind, micro_batches=3) for n in (2, 4) for kind in ("gpipe", "1f1b")},
    "dp2-tp2": Case(dp=2, tp=2),
    "dp2-tp2-zero1": Case(dp=2, tp=2, zero=1),
    "dp2-tp2-zero3": Case(dp=2, tp=2, zero=3),
    "dp2-pp2": Case(dp=2, pp=2, micro_batches=2),
    "dp2-pp2-zero1": Case(dp=2, pp=2, micro_batches=2, zero=1),
    "tp2-pp2": Case(tp=2, pp=2, micro_batches=2),
    "dp2-tp2-pp2": Case(dp=2, tp=2, pp=2, micro_batches=2),
    "dp2-tp2-pp2-zero1": Case(dp=2, tp=2, pp=2, micro_batches=2, zero=1),
}


@functools.cache
def expected(case: Case) -> Outcome:
    return one_process(case)


def largest(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> tuple[float, str]:
    """The largest difference, against the largest number of the array, and where it is."""
    assert a.keys() == b.keys()
    return max((float(np.abs(a[k] - b[k]).max() / max(1.0, np.abs(b[k]).max())), k) for k in a)


def check(outcomes: list[Outcome], case: Case, bound: float) -> None:
    one = expected(case.alone())
    for outcome in outcomes:  # every rank knows the losses
        np.testing.assert_allclose(outcome.losses, one.losses, rtol=bound, atol=0)
        np.testing.assert_allclose(outcome.norms, one.norms, rtol=bound, atol=0)
        np.testing.assert_allclose(outcome.evaluation, one.evaluation, rtol=bound, atol=0)
        assert outcome.counter == one.counter
    assert largest(outcomes[0].weights, one.weights) < (bound, "")
    assert largest(outcomes[0].state, one.state) < (bound, "")


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("name", MESHES)
def test_float64_gpt2(ranks, name, dropout):
    case = MESHES[name]._replace(dropout=dropout)
    check(ranks(case.ranks).run(on_mesh, case), case, 1e-12 if case.tp * case.pp == 1 else 1e-10)


@pytest.mark.parametrize("name", MESHES)
def test_float64_llama(ranks, name):
    case = MESHES[name]._replace(model="llama")
    check(ranks(case.ranks).run(on_mesh, case), case, 1e-12 if case.tp * case.pp == 1 else 1e-10)


@pytest.mark.parametrize("model", ["gpt2", "llama"])
@pytest.mark.parametrize("name", MESHES)
def test_float32(ranks, name, model):
    case = MESHES[name]._replace(dtype="float32", model=model, dropout=0.2 if model == "gpt2" else 0.0)
    check(ranks(case.ranks).run(on_mesh, case), case, 1e-5)
