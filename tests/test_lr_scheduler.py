"""Schedules as objects: what they set, what they save, and PyTorch's numbers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from minillm import Parameter
from minillm.errors import CheckpointError, InputError
from minillm.optim import SGD, AdamW, cosine_schedule, lr_scheduler, wsd_schedule
from minillm.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    StepLR,
    WarmupCosineLR,
    WarmupStableDecayLR,
)


def optimizer_with(*rates: float) -> SGD:
    return SGD([{"params": [Parameter(np.ones(3))], "lr": rate} for rate in rates], 0.7)


def rates_of(scheduler: LRScheduler, steps: int) -> list[list[float]]:
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in scheduler.optimizer.param_groups])
        assert scheduler.get_last_lr() == found[-1]
        scheduler.optimizer.step()
        scheduler.step()
    return found


def column(rows: list[list[float]], number: int) -> list[float]:
    return [row[number] for row in rows]


def test_the_rates_of_torchs_schedules() -> None:
    """By hand; the oracle below compares many more."""
    assert rates_of(StepLR(optimizer_with(1.0, 0.5), 2, 0.5), 5) == [
        [1, 0.5],
        [1, 0.5],
        [0.5, 0.25],
        [0.5, 0.25],
        [0.25, 0.125],
    ]
    linear = rates_of(LinearLR(optimizer_with(1.0), 0.5, 1.0, 4), 6)
    np.testing.assert_allclose(linear, [[0.5], [0.625], [0.75], [0.875], [1], [1]])
    cosine = column(rates_of(CosineAnnealingLR(optimizer_with(2.0), 4, 1.0), 9), 0)
    np.testing.assert_allclose(cosine[::2], [2, 1.5, 1, 1.5, 2])
    for given in (lambda step: 1 / (1 + step), [lambda step: 1 / (1 + step), lambda step: 2.0]):
        rows = rates_of(LambdaLR(optimizer_with(1.0, 3.0), given), 4)
        np.testing.assert_allclose(column(rows, 0), [1, 1 / 2, 1 / 3, 1 / 4])
        np.testing.assert_allclose(column(rows, 1), [6] * 4 if isinstance(given, list) else [3, 3 / 2, 1, 3 / 4])


def test_the_projects_own_schedules_are_their_functions() -> None:
    shape: dict[str, Any] = dict(floor=0.1, warmup=3, total=12)
    rows = rates_of(WarmupCosineLR(optimizer_with(1.0, 0.5), 3, 12, 0.1), 14)
    for number, peak in enumerate((1.0, 0.5)):
        assert column(rows, number) == [cosine_schedule(step, peak=peak, **shape) for step in range(14)]
    assert column(rows, 0)[2] == 1.0
    assert column(rows, 0)[11] == 0.1
    rows = rates_of(WarmupStableDecayLR(optimizer_with(1.0, 0.5), 3, 12, 4, 0.1), 14)
    for number, peak in enumerate((1.0, 0.5)):
        assert column(rows, number) == [wsd_schedule(step, peak=peak, **shape, decay=4) for step in range(14)]


def test_the_rate_moves_the_weights() -> None:
    optimizer = optimizer_with(1.0)
    [weight] = optimizer.parameters()
    scheduler = StepLR(optimizer, 1, 0.5)
    for expected in (0.0, -0.5, -0.75):
        weight.grad = np.ones(3)
        optimizer.step()
        scheduler.step()
        np.testing.assert_allclose(weight.data, expected)


MAKERS: dict[str, Any] = {
    "lambda": lambda module, opt: module.LambdaLR(opt, lambda step: 0.95**step),
    "lambdas": lambda module, opt: module.LambdaLR(opt, [lambda step: 1 / (1 + step), lambda step: step % 3]),
    "step": lambda module, opt: module.StepLR(opt, step_size=7, gamma=0.3),
    "linear": lambda module, opt: module.LinearLR(opt),
    "linear down": lambda module, opt: module.LinearLR(opt, start_factor=1.0, end_factor=0.1, total_iters=20),
    "cosine": lambda module, opt: module.CosineAnnealingLR(opt, T_max=13, eta_min=0.01),
    "cosine to 0": lambda module, opt: module.CosineAnnealingLR(opt, 50),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_saved_state_goes_on(name: str) -> None:
    whole = rates_of(MAKERS[name](lr_scheduler, optimizer_with(0.3, 0.05)), 20)
    first = MAKERS[name](lr_scheduler, optimizer_with(0.3, 0.05))
    rates_of(first, 8)
    state = json.loads(json.dumps(first.state_dict()))
    assert state == {"last_epoch": 8, "base_lrs": [0.3, 0.05]}
    second = MAKERS[name](lr_scheduler, optimizer_with(9.0, 9.0))
    second.load_state_dict(state)
    assert rates_of(second, 12) == whole[8:]
    for broken in ({}, {"last_epoch": 8}, {"last_epoch": 8, "base_lrs": [0.3]}, state | {"gamma": 1}):
        with pytest.raises(CheckpointError, match=r"give last_epoch, and base_lrs of 2 groups"):
            second.load_state_dict(broken)


def test_a_second_schedule_begins_with_the_rate_of_the_groups_and_not_of_the_first() -> None:
    optimizer = optimizer_with(1.0)
    rates_of(StepLR(optimizer, 1, 0.1), 3)
    assert rates_of(LinearLR(optimizer, 1.0, 1.0, 1), 1) == [[1.0]]


def test_what_makes_no_sense_is_refused() -> None:
    optimizer = optimizer_with(1.0, 0.5)
    for make, message in [
        (lambda: StepLR(optimizer, 0), "StepLR: step_size is 0; give 1 or more"),
        (lambda: LinearLR(optimizer, 0.0), "LinearLR: start_factor is 0.0 and end_factor 1.0; give numbers up to 1"),
        (lambda: LinearLR(optimizer, total_iters=0), "LinearLR: total_iters is 0"),
        (lambda: CosineAnnealingLR(optimizer, 0), "CosineAnnealingLR: T_max is 0"),
        (lambda: LambdaLR(optimizer, [abs]), "LambdaLR: there are 1 functions for 2 groups; give one each"),
        (lambda: WarmupCosineLR(optimizer, 3, 10, 0.7), "cosine_schedule: floor=0.7 is above peak=0.5"),
        (
            lambda: WarmupStableDecayLR(optimizer, 3, 10, 9),
            "wsd_schedule: warmup=3 and decay=9 do not fit",
        ),
        (lambda: StepLR([1.0], 3), "StepLR: optimizer is a list; give an optimiser such as AdamW"),
    ]:
        with pytest.raises(InputError, match=message):
            make()
    with pytest.raises(TypeError, match="an LRScheduler needs a rate method"):
        LRScheduler(optimizer)


@pytest.mark.oracle
@pytest.mark.parametrize("name", MAKERS)
def test_schedules_equal_torch(name: str) -> None:
    """60 steps of two groups, with the state taken over to new objects in the middle, and the weights at the end."""
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).normal(size=(2, 4))
    ours = [Parameter(value.copy()) for value in values]
    theirs = [torch.nn.Parameter(torch.tensor(value)) for value in values]

    def make(members: Any, kind: Any, module: Any) -> tuple[Any, Any]:
        optimizer = kind([{"params": [members[0]], "lr": 0.3}, {"params": [members[1]]}], lr=0.05)
        return optimizer, MAKERS[name](module, optimizer)

    optimizer, scheduler = make(ours, AdamW, lr_scheduler)
    reference, their_scheduler = make(theirs, torch.optim.AdamW, torch.optim.lr_scheduler)
    for step in range(60):
        if step == 31:
            saved = {key: array.copy() for key, array in optimizer.state_dict().items()}, scheduler.state_dict()
            optimizer, scheduler = make(ours, AdamW, lr_scheduler)
            optimizer.load_state_dict(saved[0])
            scheduler.load_state_dict(saved[1])
        np.testing.assert_allclose(scheduler.get_last_lr(), their_scheduler.get_last_lr(), rtol=1e-12, atol=1e-15)
        for parameter, their, gradient in zip(
            ours, theirs, np.random.default_rng(step).normal(size=(2, 4)), strict=True
        ):
            parameter.grad, their.grad = gradient.copy(), torch.tensor(gradient)
        for one in (optimizer, scheduler, reference, their_scheduler):
            one.step()
    for parameter, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(parameter.data, their.detach().numpy(), rtol=1e-11)
