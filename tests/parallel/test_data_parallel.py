"""Units and their sums: when they start, what they send, and awkward batches and parameters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from minillm import autograd, ops, random
from minillm.errors import DtypeError, InputError
from minillm.models.gpt2 import GPT2
from minillm.optim import SGD, AdamW, decay_groups
from minillm.parallel.communicator import Alone, Trace
from minillm.parallel.data_parallel import DataParallel, boundary, model_blocks
from minillm.parallel.mesh import Mesh, ParallelModel
from minillm.parallel.objective import next_token_batch
from minillm.parallel.zero import ZeRO
from minillm.training.whole_model import accumulate_gradients
from tests.parallel.training import GPT, Case, build, on_mesh, one_process


def test_a_boundary_is_the_identity_and_speaks_when_its_gradient_is_complete():
    heard = []
    x = autograd.Tensor(np.array([1.0, 2.0, 3.0]), requires_grad=True)
    y = boundary(x * 2, lambda: heard.append("passed"))
    loss = (y * y + y * 3).sum()  # the gradient of y comes from two places
    assert heard == []
    np.testing.assert_array_equal(y.data, [2, 4, 6])
    loss.backward()
    np.testing.assert_array_equal(x.grad, 2 * (2 * np.array([2, 4, 6]) + 3))
    assert heard == ["passed"]


def test_blocks_are_the_modules_in_lists():
    assert list(model_blocks(GPT2(GPT))) == ["h.0", "h.1", "h.2", "h.3"]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_alone_it_is_the_model_itself(stage):
    """One rank: every stage lays the parameters out, sends nothing, and trains as ever."""
    case = Case(steps=3, dropout=0.1)
    expected = one_process(case)
    found = on_mesh(Alone(), case._replace(zero=stage))
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-13)
    assert max(np.abs(found.weights[k] - expected.weights[k]).max() for k in expected.weights) < 1e-13


def sums_by_backward_position(communicator, stage):
    """For each sum of a block's gradients, how many blocks' backwards had begun when it was started."""
    model = build(Case())
    groups = decay_groups(model.parameters(), 0.1)
    parallel = ZeRO(model, communicator, groups, stage) if stage else DataParallel(model, communicator, groups)
    begun: list[str] = []
    started: dict[str, int] = {}
    before, start = parallel.before_backward, parallel.start_sum
    parallel.before_backward = lambda unit: (begun.append(unit.name), before(unit))
    parallel.start_sum = lambda unit: (started.update({unit.name: len(begun)}), start(unit))
    parallel.begin()
    ids = np.arange(24).reshape(2, 12)
    model.loss(ids, ids).backward()
    in_backward = dict(started)
    parallel.finish()
    return in_backward, started


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_sums_start_while_the_backward_goes_on(ranks, stage):
    for in_backward, started in ranks(2).run(sums_by_backward_position, stage):
        assert in_backward == {"h.3": 1, "h.2": 2, "h.1": 3, "h.0": 4}  # before the next block begins
        assert started.keys() == {*in_backward, ""}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("batch", [1, 3, 5])
def test_fewer_rows_than_ranks_and_uneven_ones(ranks, stage, batch):
    case = Case(dp=4, zero=stage, batch=batch + 3 if batch > 1 else 4, dropout=0.1, steps=4)
    one = one_process(case.alone())  # every third batch has three rows less
    for outcome in ranks(4).run(on_mesh, case):
        np.testing.assert_allclose(outcome.losses, one.losses, rtol=1e-12)
        np.testing.assert_allclose(outcome.norms, one.norms, rtol=1e-12)
        assert outcome.counter == one.counter


def gathered_ahead(communicator):
    """The blocks whose parameters were being gathered, or present, when each block's forward and backward began."""
    model = build(Case())
    parallel = ZeRO(model, communicator, decay_groups(model.parameters(), 0.1), 3)
    seen = []
    for name in ("before_forward", "before_backward"):
        hook = getattr(parallel, name)

        def watched(unit, hook=hook, name=name):
            hook(unit)
            there = {user.name for user in parallel.data_rows.users if user is not None}
            seen.append((name, unit.name, sorted(there)))

        setattr(parallel, name, watched)
    parallel.begin()
    ids = np.arange(24).reshape(2, 12)
    model.loss(ids, ids).backward()
    parallel.finish()
    return seen


def test_stage_3_gathers_a_block_ahead(ranks):
    for seen in ranks(2).run(gathered_ahead):
        assert seen == [
            ("before_forward", "h.0", ["h.0", "h.1"]),
            ("before_forward", "h.1", ["h.1", "h.2"]),
            ("before_forward", "h.2", ["h.2", "h.3"]),
            ("before_forward", "h.3", ["h.2", "h.3"]),
            ("before_backward", "h.3", ["h.2", "h.3"]),
            ("before_backward", "h.2", ["h.1", "h.2"]),
            ("before_backward", "h.1", ["h.0", "h.1"]),
            ("before_backward", "h.0", ["h.0", "h.1"]),
        ]


def bytes_of(communicator, case):
    outcome = on_mesh(communicator, case)
    return sum(m.bytes for m in outcome.messages if m.what == "gradients") / case.steps


def test_micro_batches_send_nothing_more(ranks):
    sent = [ranks(2).run(bytes_of, Case(dp=2, steps=2, micro_batches=m)) for m in (1, 4)]
    assert sent[0] == sent[1]
    assert min(sent[0]) > 0


def frozen(communicator, stage):
    """A training with the embeddings and a whole block frozen; what changed, and the gradients of what is frozen."""
    model = build(Case())
    still = {"wte.weight", "wpe.weight", *(f"h.1.{name}" for name, _ in model.h[1].named_parameters())}
    for parameter in model.parameters():
        parameter.requires_grad = parameter.name not in still
    before = {name: array.copy() for name, array in model.state_dict().items()}
    mesh = Mesh(communicator)
    parallel = ParallelModel(model, mesh, 0.1, stage)
    optimizer = AdamW(parallel.groups, 1e-2)
    parallel.attach(optimizer)
    ids = np.arange(24).reshape(2, 12)
    for micro_batches in (1, 2):
        parallel.forward_backward(next_token_batch(ids, ids), micro_batches)
        optimizer.clip_grad_norm(0.5)
        optimizer.step()
        parallel.sync_parameters()
    after = parallel.state_dict() or {}
    return {name for name in after if (after[name] != before[name]).any()}, after


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_frozen_parameters_stay_and_the_others_move(ranks, stage):
    model = build(Case())
    still = {"wte.weight", "wpe.weight", *(f"h.1.{name}" for name, _ in model.h[1].named_parameters())}
    for parameter in model.parameters():
        parameter.requires_grad = parameter.name not in still
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = AdamW(decay_groups(trained, 0.1), 1e-2)
    ids = np.arange(24).reshape(2, 12)
    for micro_batches in (1, 2):
        optimizer.zero_grad()
        accumulate_gradients(model, next_token_batch(ids, ids), micro_batches)
        optimizer.clip_grad_norm(0.5)
        optimizer.step()
    changed, after = ranks(2).run(frozen, stage)[0]
    assert changed == {parameter.name for parameter in trained}
    for parameter in trained:
        np.testing.assert_allclose(after[parameter.name], parameter.data, rtol=0, atol=1e-12, err_msg=parameter.name)


def gathers(communicator, stage):
    """Number of gathers of each block in two steps, and the bytes of the working rows."""
    communicator.trace = Trace()
    outcome = on_mesh(communicator, Case(dp=2, zero=stage, steps=2))
    return [m for m in outcome.messages if m.operation == "all_gather" and m.what == "parameters"], outcome.memory


def test_zero_keeps_parts(ranks):
    """The table in zero.py: a half each of two ranks, beside the rows that blocks use in turn."""
    whole = ranks(2).run(gathers, 0)[0][1]
    for stage, parts in {
        1: ("moments",),
        2: ("moments", "gradients"),
        3: ("moments", "gradients", "parameters"),
    }.items():
        for _, memory in ranks(2).run(gathers, stage):
            for name in ("parameters", "gradients", "moments"):
                expected = whole[name] / 2 if name in parts else whole[name]
                assert memory[name] == pytest.approx(expected, rel=0.01), (stage, name)  # padding


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_parameter_that_a_step_does_not_use_has_gradient_zero(stage):
    """Its memory still holds the gradient of the step before."""
    model = build(Case())
    groups = decay_groups(model.parameters(), 0.0)
    parallel = ZeRO(model, Alone(), groups, stage) if stage else DataParallel(model, Alone(), groups)
    optimizer = SGD(parallel.groups, 0.1)
    ids, seen = np.arange(12)[None], []
    for uses_blocks in (True, False):
        parallel.zero_grad()
        parallel.begin()
        x = model.embed(ids)
        ops.linear(model.ln_f(model.blocks(x) if uses_blocks else x), model.output_weight).sum().backward()
        parallel.finish()
        optimizer.step()
        parallel.sync_parameters()
        rows = [parallel.whole_row(unit, unit.kept_data) for unit in parallel.blocks]
        seen.append([row.copy() for row in rows])
    for before, after in zip(*seen, strict=True):
        np.testing.assert_array_equal(after, before)


def test_what_cannot_be_divided_is_refused():
    model = build(Case())
    model.h[0].ln_1.weight.data = model.h[0].ln_1.weight.data.astype(np.float32)
    with pytest.raises(DtypeError, match=r"the parameters of h\.0 have several dtypes"):
        DataParallel(model, Alone(), decay_groups(model.parameters(), 0.1))
    with pytest.raises(InputError, match="stage is 4; choose 1, 2 or 3"):
        ZeRO(model, Alone(), [], 4)


def test_a_backward_after_a_step_is_noticed():
    """The optimiser moves rows, and the parameters in them know."""
    random.manual_seed(0)
    model = GPT2(replace(GPT, layers=2))
    parallel = DataParallel(model, Alone(), decay_groups(model.parameters(), 0.1))
    optimizer = AdamW(parallel.groups)
    ids = np.arange(12)[None]
    old = model.loss(ids, ids)
    model.loss(ids, ids).backward()
    parallel.finish()
    optimizer.step()
    parallel.sync_parameters()
    with pytest.raises(autograd.GraphError, match="updated by the optimiser"):
        old.backward()
