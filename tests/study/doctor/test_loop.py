"""The doctor on loops of one's own: no alarm on right ones, and each planted fault in its own sentence."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import minillm
from minillm import ops, optim
from minillm.errors import InputError
from minillm.lora import LoraConfig, add_lora
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.models.llama import Llama, LlamaConfig
from minillm.nn import Linear
from minillm.study.doctor import Finding, examine_loop
from minillm.study.doctor.case import terms_of
from tests.study.doctor.made import alarms, prepared

V, T = 60, 12
SMALL = GPT2Config(vocab_size=V, context=16, layers=2, heads=2, channels=16, dropout=0.1)


def batch(number: int, rows: int = 4) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(number).integers(V, size=(rows, T + 1))
    return ids[:, :-1], ids[:, 1:]


class Own:
    """A right loop, of which a fault replaces a line."""

    def __init__(self, model: Any = None):
        minillm.manual_seed(0)
        self.model = GPT2(SMALL) if model is None else model
        self.optimizer = optim.AdamW(optim.decay_groups(self.model.parameters(), 0.1), lr=1e-3)
        self.numbers = itertools.count()
        self.zero: Callable[[], Any] = self.optimizer.zero_grad
        self.update: Callable[[], Any] = self.optimizer.step
        self.loss: Callable[[np.ndarray, np.ndarray], Any] = lambda ids, targets: self.model.loss(ids, targets)
        self.evaluate: Callable[[], Any] = self.validate

    def step(self) -> None:
        self.model.train()
        self.zero()
        self.loss(*batch(next(self.numbers))).backward()
        self.update()

    def validate(self) -> None:
        self.model.eval()
        with minillm.no_grad():
            self.model.loss(*batch(100))

    def found(self, **settings: Any) -> dict[str, Finding]:
        findings = examine_loop(self.step, self.model, self.optimizer, self.evaluate, **settings)
        return {one.name: one for one in findings}


@pytest.mark.parametrize(
    "model",
    [
        lambda: GPT2(SMALL),
        lambda: Llama(LlamaConfig.preset("nano", vocab_size=V)),
        lambda: add_lora(GPT2(SMALL), LoraConfig(rank=2)),
    ],
)
def test_a_right_loop_has_no_alarm(model) -> None:
    assert alarms(Own(model()).found().values()) == []


def test_other_right_loops_have_no_alarm() -> None:
    """Gradients that are cleared behind the step; batches in parts; logits in rows; SGD."""
    own = Own()
    own.zero = lambda: None
    step = own.optimizer.step

    def then_clear() -> None:
        step()
        own.optimizer.zero_grad()

    own.update = then_clear
    assert alarms(own.found().values()) == []

    parts = Own()

    def in_parts(ids: np.ndarray, targets: np.ndarray) -> Any:
        for rows in (slice(0, 1), slice(1, 2)):
            (parts.model.loss(ids[rows], targets[rows], reduction="sum") / targets.size).backward()
        return parts.model.loss(ids[2:], targets[2:], reduction="sum") / targets.size

    parts.loss = in_parts
    assert alarms(parts.found().values()) == []

    rows = Own()
    rows.loss = lambda ids, targets: ops.cross_entropy(rows.model(ids).reshape(-1, V), targets.reshape(-1))
    rows.optimizer = optim.SGD(rows.model.parameters(), lr=0.1)
    rows.zero, rows.update = rows.optimizer.zero_grad, rows.optimizer.step
    assert alarms(rows.found().values()) == []


@pytest.mark.parametrize(
    "name", ["llama", "bert", "roberta", "xlnet", "bart", "pairs", "lora", "sft", "reward", "classify"]
)
def test_loops_of_every_family_have_no_alarm(name, folder) -> None:
    task, model, _ = prepared(name, folder)
    task.begin(model, {})
    optimizer = optim.AdamW(optim.decay_groups(model.parameters(), 0.1), lr=1e-3)
    numbers = itertools.count()

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        terms = terms_of(task, model, task.batch(next(numbers), model))
        functools.reduce(operator.add, terms.values()).backward()
        optimizer.step()

    def validate() -> None:
        model.eval()
        with minillm.no_grad():
            terms_of(task, model, task.batch(50, model))

    assert alarms(examine_loop(step, model, optimizer, validate)) == []


def nothing() -> None:
    pass


def not_zeroed(own: Own) -> None:
    own.zero = nothing


def zeroed_before_the_step(own: Own) -> None:
    step = own.update
    own.update = lambda: (own.optimizer.zero_grad(), step())


def never_stepped(own: Own) -> None:
    own.update = nothing


def no_backward(own: Own) -> None:
    own.loss = lambda ids, targets: minillm.tensor(1.0, requires_grad=True)


def rate_of_zero(own: Own) -> None:
    own.optimizer.lr = 0.0


def rate_far_too_high(own: Own) -> None:
    own.optimizer.lr = 1.0


def not_shifted(own: Own) -> None:
    own.loss = lambda ids, targets: own.model.loss(ids, ids)


def shifted_twice(own: Own) -> None:
    own.loss = lambda ids, targets: ops.cross_entropy(own.model(ids)[:, :-1], targets[:, 1:], dim=-1)


def shifted_twice_in_rows(own: Own) -> None:
    own.loss = lambda ids, targets: ops.cross_entropy(own.model(ids)[:, :-1].reshape(-1, V), targets[:, 1:].reshape(-1))


def summed(own: Own) -> None:
    own.loss = lambda ids, targets: own.model.loss(ids, targets, reduction="sum")


def always_evaluating(own: Own) -> None:
    own.model.train = lambda mode=True: own.model


def dropout_in_validation(own: Own) -> None:
    def validate() -> None:
        with minillm.no_grad():
            own.model.loss(*batch(100))

    own.evaluate = validate


def recorded(own: Own) -> None:
    own.evaluate = lambda: own.model.eval().loss(*batch(100))


def validation_trains(own: Own) -> None:
    own.evaluate = own.step


def decay_of_all(own: Own) -> None:
    another_optimizer(own, own.model.parameters())


def another_optimizer(own: Own, parameters: Any) -> None:
    own.optimizer = optim.AdamW(parameters, lr=1e-3, weight_decay=0.1)
    own.zero, own.update = own.optimizer.zero_grad, own.optimizer.step


def layer_made_later(own: Own) -> None:
    own.model.h[1].mlp.fc = Linear(16, 64)
    own.model.assign_names()


def copy_is_optimised(own: Own) -> None:
    another_optimizer(own, optim.decay_groups(GPT2(SMALL).parameters(), 0.1))


def frozen_layer(own: Own) -> None:
    own.model.h[0].requires_grad_(False)
    another_optimizer(own, optim.decay_groups(own.model.parameters(), 0.1))


def weight_is_nan(own: Own) -> None:
    own.model.h[0].mlp.fc.weight.data[0, 0] = np.nan


def cut_graph(own: Own) -> None:
    """The result of the first block goes through NumPy."""
    block = own.model.h[0]
    forward = block.forward
    block.forward = lambda *inputs, **settings: minillm.tensor(forward(*inputs, **settings).detach().numpy())


PLANTED: list[tuple[Callable[[Own], None], str, str]] = [
    (not_zeroed, "gradients-left-over", "each step moves along the sum of all gradients so far"),
    (zeroed_before_the_step, "no-update", "the optimiser has stepped 3 times, and no weight of the model has changed"),
    (never_stepped, "no-update", "in 3 steps this optimiser has not stepped once"),
    (no_backward, "no-backward", "no operation ran backwards in 3 of 3 steps"),
    (rate_of_zero, "learning-rate", "the learning rate is 0"),
    (rate_far_too_high, "learning-rate", "where 0.1% is usual: the training will diverge"),
    (not_shifted, "label-shift", "the targets are the inputs themselves: 100% of them"),
    (shifted_twice, "label-shift", "the targets are 2 tokens ahead: 100% of them"),
    (shifted_twice_in_rows, "label-shift", "the targets are 2 tokens ahead: 100% of them"),
    (summed, "loss-scale", "the loss is a sum over targets, so the gradient is 48 times that of the mean"),
    (always_evaluating, "evaluation-mode", "in evaluation mode while it is trained"),
    (dropout_in_validation, "random-evaluation", "the validation draws a dropout in "),
    (recorded, "recorded-validation", "records a graph that no backward walks through"),
    (validation_trains, "validation-trains", "the validation lets the optimiser step 1 time"),
    (decay_of_all, "decay-of-vectors", "weight decay pulls "),
    (
        layer_made_later,
        "not-optimised",
        "2 of 28 parameters are not the optimiser's, the first of them h.1.mlp.fc.weight",
    ),
    (copy_is_optimised, "another-model", "28 of the optimiser's 28 parameters are not this model's"),
    (frozen_layer, "frozen-parameters", "12 of 28 parameters are frozen, the first of them h.0.ln_1.weight"),
    (weight_is_nan, "not-finite", "after 3 steps"),
    (cut_graph, "unused-parameters", "have not changed in 3 steps, the first of them wpe.weight"),
]


@pytest.mark.parametrize(("fault", "name", "sentence"), PLANTED)
def test_a_fault_of_a_loop_is_found(fault, name, sentence) -> None:
    own = Own()
    if fault is always_evaluating:
        own.model.eval()
    fault(own)
    findings = own.found()
    assert name in findings, alarms(findings.values())
    assert sentence in findings[name].cause
    assert findings[name].is_alarm
    assert len(findings[name].remedy) > 20


@pytest.mark.parametrize("fault", [fault for fault, *_ in PLANTED if fault is not always_evaluating])
def test_one_fault_is_one_finding(fault) -> None:
    own = Own()
    fault(own)
    assert len(alarms(own.found().values())) == 1


def test_the_loop_is_left_as_it_was() -> None:
    own = Own()
    own.step()
    model = {name: array.copy() for name, array in own.model.state_dict().items()}
    moments = {name: array.copy() for name, array in own.optimizer.state_dict().items()}
    own.found()
    assert own.optimizer.steps == 1
    for name, array in own.model.state_dict().items():
        np.testing.assert_array_equal(array, model[name])
    for name, array in own.optimizer.state_dict().items():
        np.testing.assert_array_equal(array, moments[name])


def test_a_trained_model_may_begin_with_a_low_loss() -> None:
    own = Own()
    own.model.wte.weight.data *= 30
    not_shifted(own)
    assert "label-shift" in own.found(trained=True)


def test_one_step_is_refused() -> None:
    own = Own()
    with pytest.raises(InputError, match="examine_loop: steps is 1; give 2 or more"):
        own.found(steps=1)
