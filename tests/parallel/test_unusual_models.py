"""Models whose parameters are shared, used several times, or not used at all in some steps: as in one process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from minillm import nn, ops, random
from minillm.autograd import GraphError, Parameter
from minillm.errors import InputError, ParallelError
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.optim import SGD, AdamW, decay_groups
from minillm.parallel.communicator import Alone
from minillm.parallel.data_parallel import DataParallel, parameter_owners
from minillm.parallel.mesh import Mesh, ParallelModel
from minillm.parallel.objective import next_token_batch
from minillm.parallel.zero import ZeRO
from minillm.training.whole_model import accumulate_gradients

CONFIG = GPT2Config(vocab_size=61, context=16, layers=4, heads=2, channels=16, dropout=0.1)
STEPS = 8


class Unusual(GPT2):
    """A GPT2 of which `kinds` says what is unusual.

    shared: blocks 0 and 2 have one matrix, and blocks 1 and 3 one norm. twice: block 1 is computed before block 3 too.
    late: a vector gets its first gradient at step 3, and then at every other one. rows: block 2 is computed for rows
    that begin with an id below 20 alone, and skipped where there are none.
    """

    def __init__(self, config: GPT2Config, kinds: tuple[str, ...]):
        super().__init__(config)
        self.kinds, self.step = kinds, 0
        self.late = Parameter(np.full((config.channels, 2), 0.1, np.float32))
        if "shared" in kinds:
            self.h[2].mlp.fc.weight = self.h[0].mlp.fc.weight
            self.h[3].ln_2 = self.h[1].ln_2
        self.assign_names()

    def embed(self, ids: Any, cache: Any = None, starts: Any = None) -> Any:
        self.first = np.asarray(ids)[:, 0]
        x = super().embed(ids, starts=starts)
        if "late" in self.kinds and self.step >= 3 and self.step % 2:
            x = x + self.late[:, 0] * self.late[:, 1]
        return x

    def blocks(self, x: Any, cache: Any = None, starts: Any = None) -> Any:
        for number, block in enumerate(self.h):
            rows = self.first < (20 if number == 2 and "rows" in self.kinds else 61)
            if rows.any():
                x = x + (block(x) - x) * rows.astype(x.dtype)[:, None, None]
            if number == 2 and "twice" in self.kinds:
                x = self.h[1](x)
        return x


def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Four rows; at steps 2 and 5 none begins with an id below 20, at 3 one alone does, so one rank's."""
    ids = np.random.default_rng(step).integers(20, 61, (4, 13))
    if step not in (2, 5):
        ids[3 if step == 3 else slice(None, None, 2), 0] = step
    return ids[:, :-1], ids[:, 1:]


def build(kinds: tuple[str, ...]) -> Unusual:
    random.manual_seed(3)  # a rank that skips a block would draw other masks after it than those that do not
    return Unusual(replace(CONFIG, dropout=0.0) if "rows" in kinds else CONFIG, kinds).to("float64")


def optimizer_of(name: str, groups: Any) -> Any:
    return AdamW(groups, 1e-2) if name == "adamw" else SGD(groups, 0.1, momentum=0.9)


def one_process(kinds, micro_batches, name, steps=range(STEPS), start=None):
    model = build(kinds)
    optimizer = optimizer_of(name, decay_groups(model.parameters(), 0.1))
    if start:
        model.load_state_dict(start[0])
        optimizer.load_state_dict(start[1])
    losses = []
    for step in steps:
        model.step = step
        optimizer.zero_grad()
        losses.append(float(accumulate_gradients(model, next_token_batch(*batch(step)), micro_batches)))
        optimizer.clip_grad_norm(0.5)
        optimizer.step()
    return losses, model.state_dict(), optimizer.state_dict()


def on_mesh(communicator, kinds, micro_batches, name, mesh, zero, layers=(), steps=range(STEPS), start=None):
    model = build(kinds)
    parallel = ParallelModel(model, Mesh(communicator, *mesh), 0.1, zero, layers=layers)
    optimizer = optimizer_of(name, parallel.groups)
    parallel.attach(optimizer)
    if start:
        parallel.load_state_dict(start[0])
        parallel.load_optimizer_state_dict(optimizer, start[1])
    losses = []
    for step in steps:
        model.step = step
        losses.append(float(parallel.forward_backward(next_token_batch(*batch(step)), micro_batches)))
        optimizer.clip_grad_norm(0.5)
        optimizer.step()
        parallel.sync_parameters()
    found = losses, parallel.state_dict(), parallel.optimizer_state_dict(optimizer)
    parallel.mesh.close()
    return found


def assert_same(found, expected, tolerance=1e-12):
    np.testing.assert_allclose(found[0], expected[0], rtol=tolerance)
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert ours.keys() == theirs.keys()
        for name, array in theirs.items():
            np.testing.assert_allclose(ours[name], array, rtol=0, atol=tolerance, err_msg=name)


KINDS = [("shared",), ("twice",), ("late",), ("rows",), ("shared", "twice", "late", "rows")]


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize(
    ("kinds", "stage"),
    [(kinds, stage) for kinds in KINDS for stage in range(4) if stage < 3 or "rows" not in kinds],  # see zero.py
    ids=str,
)
def test_data_parallel(ranks, kinds, stage, micro_batches):
    expected = one_process(kinds, micro_batches, "adamw")
    found = ranks(2).run(on_mesh, kinds, micro_batches, "adamw", (2,), stage)
    assert_same(found[0], expected)
    late = {name: int(array) for name, array in expected[2].items() if name.startswith("step.")}
    assert late.get("step.late", 0) == (3 if "late" in kinds else 0)
    assert late.get("step.h.2.ln_1.weight", STEPS) == (STEPS - 2 if "rows" in kinds else STEPS)


@pytest.mark.parametrize("stage", [0, 2])
def test_data_parallel_with_momentum_on_four_ranks_and_blocks_computed_again(ranks, stage):
    kinds = ("shared", "twice", "late", "rows")
    expected = one_process(kinds, 1, "sgd")
    found = ranks(4).run(on_mesh, kinds, 1, "sgd", (4,), stage, (1, 2))
    assert_same(found[0], expected)


@pytest.mark.parametrize(
    ("mesh", "zero", "kinds"),
    [
        ((1, 2), 0, ("shared", "twice", "late", "rows")),
        ((2, 2), 1, ("shared", "twice", "late", "rows")),
        ((2, 2), 3, ("shared", "twice", "late")),
    ],
)
def test_tensor_parallel(ranks, mesh, zero, kinds):
    found = ranks(mesh[0] * mesh[1]).run(on_mesh, kinds, 1, "adamw", mesh, zero)
    assert_same(found[0], one_process(kinds, 1, "adamw"), 1e-10)


class Late(GPT2):
    """A GPT2 whose blocks of odd number have a vector that is used from step 3 on, at every other step."""

    def __init__(self):
        super().__init__(CONFIG)
        for block in self.h[1::2]:
            block.late = Parameter(np.full(CONFIG.channels, 0.1, np.float32))
        self.step = 0
        self.assign_names()

    def blocks(self, x: Any, cache: Any = None, starts: Any = None) -> Any:
        for block in self.h:
            x = block(x)
            if hasattr(block, "late") and self.step >= 3 and self.step % 2:
                x = x * block.late
        return x


def late_stages(communicator):
    random.manual_seed(3)
    model = Late().to("float64")
    parallel = ParallelModel(model, Mesh(communicator, communicator.size // 2 or 1, 1, min(2, communicator.size)))
    optimizer = AdamW(parallel.groups, 1e-2)
    parallel.attach(optimizer)
    losses = []
    for step in range(STEPS):
        model.step = step
        losses.append(float(parallel.forward_backward(next_token_batch(*batch(step)), 2)))
        optimizer.step()
        parallel.sync_parameters()
    return losses, parallel.state_dict(), parallel.optimizer_state_dict(optimizer)


@pytest.mark.parametrize("count", [2, 4])
def test_a_pipeline_counts_the_steps_of_every_stage(ranks, count):
    expected = late_stages(Alone())
    assert {name: int(n) for name, n in expected[2].items() if name.startswith("step.")} == {
        "step.h.1.late": 3,
        "step.h.3.late": 3,
    }
    assert_same(ranks(count).run(late_stages)[0], expected, 1e-10)


@pytest.mark.parametrize("stages", [(0, 3), (2, 1)])
def test_a_training_goes_on_with_the_counts_of_its_parameters(ranks, stages):
    kinds = ("shared", "twice", "late")
    first = ranks(2).run(on_mesh, kinds, 1, "adamw", (2,), stages[0], (), range(5))[0]
    assert int(first[2]["step.late"]) == 1
    second = ranks(2).run(on_mesh, kinds, 1, "adamw", (2,), stages[1], (), range(5, STEPS), first[1:])[0]
    start = one_process(kinds, 1, "adamw", range(5))
    assert_same(second, one_process(kinds, 1, "adamw", range(5, STEPS), start[1:]))


def test_old_state_has_one_count_for_all():
    _, _, state = one_process(("late",), 1, "adamw", range(5))
    old = {name: array for name, array in state.items() if not name.startswith("step.")}
    parallel = ParallelModel(build(("late",)), Mesh(Alone()))
    optimizer = AdamW(parallel.groups, 1e-2)
    parallel.load_optimizer_state_dict(optimizer, state)
    assert parallel.optimizer_state_dict(optimizer)["step.late"] == 1
    parallel.load_optimizer_state_dict(optimizer, old)
    assert {steps for group in optimizer.groups for steps in group.steps} == {5}


def test_what_is_shared_belongs_to_the_root():
    model = build(("shared",))
    owners = parameter_owners(model, {f"h.{i}": block for i, block in enumerate(model.h)})
    assert owners[id(model.h[0].mlp.fc.weight)] == {"h.0", "h.2"}
    assert owners[id(model.wte.weight)] == {""}
    parallel = DataParallel(model, Alone(), decay_groups(model.parameters(), 0.1))
    names = {path: {p.name for p in unit.parameters} for path, unit in parallel.units.items()}
    assert names[""] >= {"h.0.mlp.fc.weight", "h.1.ln_2.weight", "h.1.ln_2.bias", "wte.weight", "late"}
    assert not any(name in names[""] for name in ("h.0.mlp.fc.bias", "h.3.ln_1.weight"))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_gaps_between_gradients_are_no_part_of_the_norm(monkeypatch, stage):
    """Rows of gradients begin with anything in them; vectors of 5 and matrices of 5 x 15 leave gaps."""

    def empty_like(array, **settings):
        return np.full_like(array, np.nan, **settings)

    random.manual_seed(1)
    config = GPT2Config(vocab_size=61, context=16, layers=3, heads=1, channels=5)
    model, alone = GPT2(config), GPT2(config)
    alone.load_state_dict(model.state_dict())
    parallel = ParallelModel(model, Mesh(Alone()), zero=stage)
    optimizer = AdamW(parallel.groups)
    parallel.attach(optimizer)
    rows = parallel.data.grad_rows.rows if stage > 1 else [unit.grad for unit in parallel.data.units.values()]
    for row in rows:
        row[...] = np.nan
    monkeypatch.setattr(np, "empty_like", empty_like)
    parallel.forward_backward(next_token_batch(*batch(0)))
    accumulate_gradients(alone, next_token_batch(*batch(0)))
    expected = AdamW(alone.parameters()).clip_grad_norm(1.0)
    assert optimizer.clip_grad_norm(1.0) == pytest.approx(expected, rel=1e-6)
    optimizer.step()
    assert all(np.isfinite(unit.kept_data).all() for unit in parallel.data.units.values())


# What cannot be right is refused


def told(pool, kind, expected, *call):
    """Every rank ends, the first with this error, and the others with it, or as they have heard of the first."""
    errors = [outcome.error for outcome in pool.outcomes(*call)]
    assert any(isinstance(error, kind) and expected in str(error) for error in errors)
    assert all(expected in str(error) or " failed" in str(error) for error in errors)


class Borrowing(GPT2):
    """The output has a product with a matrix of block 1 in it, or what block 0 gets has."""

    def __init__(self, where: str):
        super().__init__(CONFIG)
        self.where = where

    def blocks(self, x: Any, cache: Any = None, starts: Any = None) -> Any:
        matrix = self.h[1].attn.proj.weight
        x = ops.linear(x, matrix) if self.where == "before" else x
        x = super().blocks(x)
        return ops.linear(x, matrix) if self.where == "after" else x


@pytest.mark.parametrize(("where", "stages"), [("before", (0, 1, 2, 3)), ("after", (2, 3))])
def test_a_matrix_that_is_used_outside_of_its_block(where, stages):
    for stage in stages:
        random.manual_seed(1)
        model = Borrowing(where)
        groups = decay_groups(model.parameters(), 0.1)
        parallel = ZeRO(model, Alone(), groups, stage) if stage else DataParallel(model, Alone(), groups)
        parallel.begin()
        with pytest.raises(GraphError, match=r"h\.1\.attn\.proj\.weight got a gradient outside of the backward of h"):
            gradients(model, parallel)


def gradients(model, parallel):
    model.loss(*batch(0)).backward()
    parallel.finish()


def test_two_backwards_with_sums_are_refused():
    model = build(())
    parallel = DataParallel(model, Alone(), decay_groups(model.parameters(), 0.1))
    for _ in range(2):
        model.loss(*batch(0)).backward()
    with pytest.raises(GraphError, match="call backward once for each forward"):
        parallel.finish()
    parallel.zero_grad()  # and the next step is right again
    model.loss(*batch(0)).backward()
    parallel.finish()
    assert all(p.grad is not None for p in model.parameters() if p.name != "late")
    assert model.late.grad is None


def shared_by_stages(communicator):
    model = build(("shared",))
    ParallelModel(model, Mesh(communicator, 1, 1, 2))


def test_stages_that_share_a_parameter_are_refused(ranks):
    told(ranks(2), InputError, "stages 0 and 1 share h.0.mlp.fc.weight, and each would move it", shared_by_stages)


def other_weights(communicator, mesh, zero):
    model = build(())
    if communicator.rank == 1:
        model.h[2].mlp.proj.bias.data[3] = np.nextafter(0.0, 1.0)
        model.ln_f.weight.data[0] = 2
    ParallelModel(model, Mesh(communicator, *mesh), zero=zero)


@pytest.mark.parametrize(("mesh", "zero"), [((2,), 0), ((2,), 3), ((1, 2), 0), ((1, 1, 2), 0)])
def test_ranks_that_begin_with_other_weights_are_told(ranks, mesh, zero):
    expected = "h.2.mlp.proj.bias on rank 1 is not that of rank 0; give all ranks the same seed"
    told(ranks(2), ParallelError, expected, other_weights, mesh, zero)


def other_model(communicator):
    model = nn.Linear(3, 2 + communicator.rank)
    DataParallel(model, communicator, decay_groups(model.parameters(), 0.1))


def test_ranks_with_another_model_are_told(ranks):
    told(
        ranks(2), ParallelError, "rank 1: not the same model as rank 0; build the same model on all ranks", other_model
    )
