"""Groups of ranks, and state that goes from one mesh to another."""

from __future__ import annotations

import numpy as np
import pytest

import minillm
from minillm.errors import CheckpointError, InputError
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.optim import SGD, AdamW
from minillm.parallel.communicator import Alone
from minillm.parallel.mesh import Mesh, ParallelModel
from minillm.parallel.objective import next_token_batch
from tests.parallel.training import Case, batch, build, on_mesh, one_process


def groups(communicator, dp, tp, pp):
    mesh = Mesh(communicator, dp, tp, pp)
    found = [mesh.dp.ranks, mesh.tp.ranks, mesh.pp.ranks]
    mesh.close()
    return found


def test_neighbours_share_matrices_then_batches_then_stages(ranks):
    found = ranks(8).run(groups, 2, 2, 2)
    assert found[0] == [(0, 2), (0, 1), (0, 4)]
    assert found[7] == [(5, 7), (6, 7), (3, 7)]
    for kind in range(3):  # each kind of group divides the ranks
        members = {tuple(of[kind]) for of in found}
        assert sorted(rank for group in members for rank in group) == list(range(8))


@pytest.mark.parametrize("sizes", [(2, 1, 1), (1, 2, 1), (None, 1, 2), (0, 1, 1)])
def test_a_mesh_of_another_size_is_refused(sizes):
    with pytest.raises(InputError, match=r"mesh: --dp \d --tp \d --pp \d are \d ranks, but there are 1"):
        Mesh(Alone(), *sizes)


def test_zero_2_with_a_pipeline_is_refused(ranks):
    errors = ranks(2).outcomes(refused)
    assert all("choose 0 or 1, or without a pipeline 2 or 3" in str(error) for error in errors)


def refused(communicator):
    ParallelModel(build(Case()), Mesh(communicator, 1, 1, 2), zero=2)


MESHES = [
    Case(dp=2, zero=3),
    Case(tp=2),
    Case(pp=2),
    Case(dp=2, tp=2, pp=2, zero=1),
    Case(dp=4, zero=2),
]


@pytest.mark.parametrize("first", MESHES)
@pytest.mark.parametrize("second", MESHES)
@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_a_training_goes_on_under_another_mesh(ranks, first, second, model):
    """Ten steps on one mesh, then ten on another, from what rank 0 of the first had: twenty steps of one process."""
    first, second = (case._replace(model=model, steps=3, micro_batches=2) for case in (first, second))
    middle = ranks(first.ranks).run(on_mesh, first)[0]
    end = ranks(second.ranks).run(on_mesh, second, (middle.weights, middle.state))[0]
    start = one_process(first.alone())
    assert middle.state["steps"] == 3
    for name, array in start.weights.items():
        np.testing.assert_allclose(middle.weights[name], array, rtol=0, atol=1e-10, err_msg=name)
    expected = one_process(first.alone(), (start.weights, start.state)).weights
    assert end.weights.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(end.weights[name], array, rtol=0, atol=1e-10, err_msg=name)


def test_state_that_does_not_fit_is_listed_and_changes_nothing():
    parallel = ParallelModel(build(Case()), Mesh(Alone()))
    optimizer = AdamW(parallel.groups)
    weights, state = parallel.state_dict(), parallel.optimizer_state_dict(optimizer)
    before = {name: array.copy() for name, array in weights.items()}
    broken = {name: array + 1 for name, array in weights.items() if name != "h.1.ln_2.bias"}
    broken["wpe.weight"] = np.zeros((3, 32))
    with pytest.raises(CheckpointError) as error:
        parallel.load_state_dict(broken)
    assert "missing h.1.ln_2.bias" in str(error.value)
    assert "wpe.weight has shape (3, 32), expected (16, 32)" in str(error.value)
    for name, array in parallel.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    with pytest.raises(CheckpointError, match="has no steps"):
        parallel.load_optimizer_state_dict(optimizer, {})
    del state["exp_avg.wte.weight"]
    with pytest.raises(CheckpointError, match=r"missing exp_avg\.wte\.weight"):
        parallel.load_optimizer_state_dict(optimizer, state)


def trained_by_sgd(communicator, case):
    parallel = ParallelModel(build(case), Mesh(communicator, case.dp, case.tp, case.pp), zero=case.zero)
    optimizer = SGD(parallel.groups, 0.1, momentum=0.9)
    parallel.attach(optimizer)
    for step in range(case.steps):
        parallel.forward_backward(next_token_batch(*batch(case, step)), case.micro_batches)
        optimizer.clip_grad_norm(0.5)
        optimizer.step()
        parallel.sync_parameters()
    return parallel.state_dict(), parallel.optimizer_state_dict(optimizer)


def test_another_optimiser(ranks):
    case = Case(dp=2, tp=2, zero=1, steps=4)
    weights, state = ranks(4).run(trained_by_sgd, case)[0]
    expected, expected_state = trained_by_sgd(Alone(), case.alone()._replace(steps=4))
    for found, wanted in ((weights, expected), (state, expected_state)):
        assert found.keys() == wanted.keys()
        for name, array in wanted.items():
            np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-10, err_msg=name)


def trained_in_part(communicator):
    minillm.manual_seed(1)
    model = GPT2(GPT2Config(61, context=16, layers=1, heads=1, channels=16))
    for parameter in model.parameters():
        parameter.requires_grad = parameter.name in ("h.0.ln_1.bias", "wpe.weight")
    parallel = ParallelModel(model, Mesh(communicator), zero=1)
    optimizer = AdamW(parallel.groups, 1e-2)
    parallel.attach(optimizer)
    parallel.forward_backward(next_token_batch(*batch(Case(), 0)))
    optimizer.step()
    parallel.sync_parameters()
    state = parallel.optimizer_state_dict(optimizer)
    return state and {name: array.copy() for name, array in state.items()}


def test_a_rank_that_keeps_nothing_but_padding(ranks):
    """A block with 16 elements to train is padded to 32, so the second of two ranks keeps padding alone."""
    (alone,) = ranks(1).run(trained_in_part)
    found, nothing = ranks(2).run(trained_in_part)
    assert nothing is None
    assert found["exp_avg.h.0.ln_1.bias"].any()
    for name, array in alone.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-9)
