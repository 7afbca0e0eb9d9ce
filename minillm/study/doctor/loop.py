"""The doctor of a loop of one's own: run some steps of it, watch them, and say which line is wrong.

    def step():  # one whole step, as the loop does it
        optimizer.zero_grad()
        loss = model.loss(*batches.batch(next(numbers)))
        loss.backward()
        optimizer.step()

    findings = examine_loop(step, model, optimizer, evaluate=validate)
    print(*lines_of(findings), sep="\\n")

`autograd.observe` shows the ids, the logits and the targets of each step, and the gradients that are there when its
backward begins, so that the loop needs no change. The weights and the moments are put back afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minillm.autograd import Forward, observe
from minillm.backend import Array
from minillm.counted import counted
from minillm.device import to_host
from minillm.errors import InputError
from minillm.grad_mode import quiet
from minillm.lora import is_lora
from minillm.nn import Dropout
from minillm.study.doctor.case import Entropy, draws_dropout, entropy_of
from minillm.study.doctor.finding import Finding, sorted_findings
from minillm.study.doctor.parameters import FIXED, OF_SEGMENTS
from minillm.study.doctor.start import judged, mean_of
from minillm.study.doctor.targets import shifted

STEP = 0.5  # of the size of a matrix, by which a step may move it
STEPS = 3  # that are run: gradients that are left over show in the second


class Seen:
    """The outcome of one step.

    ids: of each embedding. entropies: of each cross-entropy. factor: by how much the largest gradient of a summed loss
    is above that of its mean. left_over: the backward began on gradients that the optimiser had used already.
    backwards: how many operations ran backwards. updates: how often the optimiser stepped. training: the mode of the
    model. dropped: the layers that drew a dropout. recorded: a graph was recorded.
    """

    def __init__(self) -> None:
        self.ids: list[Array] = []
        self.entropies: list[Entropy] = []
        self.factor, self.left_over, self.backwards, self.updates = 1.0, False, 0, 0
        self.training, self.dropped, self.recorded = True, list[str](), False


class Loop:
    """Some steps of a loop: what each did, and the weights before and after all of them."""

    def __init__(self, model: Any, optimizer: Any, evaluate: Callable[[], Any] | None):
        self.model, self.optimizer, self.evaluate = model, optimizer, evaluate
        self.parameters = dict(model.named_parameters())
        self.before = {name: to_host(one.data).copy() for name, one in self.parameters.items()}
        self.after = self.before
        self.seen: list[Seen] = []
        self.validated: Seen | None = None

    def run(self, step: Callable[[], Any], steps: int) -> None:
        """Run the steps, then the validation, and put the weights and the moments back."""
        weights = {name: array.copy() for name, array in self.model.state_dict().items()}
        moments = {name: array.copy() for name, array in self.optimizer.state_dict().items()}
        training = self.model.training
        try:
            for _ in range(steps):
                self.seen.append(self.watch(step))
            self.after = {name: to_host(one.data).copy() for name, one in self.parameters.items()}
            if self.evaluate is not None:
                self.validated = self.watch(self.evaluate)
        finally:
            self.model.load_state_dict(weights)
            self.optimizer.load_state_dict(moments)
            self.model.zero_grad()
            self.model.train(training)

    def watch(self, function: Callable[[], Any]) -> Seen:
        """The doings of a function: a step, or a validation."""
        seen, before, summed = Seen(), self.optimizer.steps, dict[Any, int]()
        used = any(one.updates for one in self.seen)

        def on_forward(call: Forward) -> None:
            seen.training = seen.training and self.model.training
            seen.recorded = seen.recorded or call.node is not None
            if call.op.name == "embedding":
                seen.ids.append(to_host(call.inputs[1]).copy())
            elif call.op.name == "cross_entropy":
                entropy = entropy_of(to_host(call.inputs[0]), to_host(call.inputs[1]), call.settings)
                seen.entropies.append(entropy)
                if call.node is not None and call.settings.get("reduction") == "sum":
                    summed[call.node] = entropy.number
            elif draws_dropout(call):
                seen.dropped.append(call.scope)

        def before_backward(node: Any, douts: list) -> None:
            if not seen.backwards and used:
                own = [one for one in self.parameters.values() if id(one) in self.given]
                gradients = [one.grad for one in own if one.grad is not None]
                seen.left_over = any(bool(one.any()) for one in gradients)
            seen.backwards += 1
            if node in summed:
                seen.factor = max(seen.factor, abs(float(douts[0])) * summed[node])

        with observe(on_forward, before_backward=before_backward):
            function()
        seen.updates = self.optimizer.steps - before
        return seen

    @property
    def given(self) -> set[int]:
        """The identities of the optimiser's parameters."""
        return {id(one) for group in self.optimizer.param_groups for one in group["params"]}

    @property
    def strange(self) -> int:
        """The number of them that are not the model's."""
        return len(self.given - {id(one) for one in self.parameters.values()})

    @property
    def moved(self) -> dict[str, bool]:
        """For each trained parameter: has it changed?"""
        own = [name for name, one in self.parameters.items() if one.requires_grad]
        return {name: not np.array_equal(self.before[name], self.after[name], equal_nan=True) for name in own}


def examine_loop(
    step: Callable[[], Any],
    model: Any,
    optimizer: Any,
    evaluate: Callable[[], Any] | None = None,
    trained: bool = False,
    steps: int = STEPS,
) -> list[Finding]:
    """The findings about a training loop of one's own, the worst first.

    step: a function that does one whole step: takes a batch, clears the gradients, runs forward and backward, and lets
    the optimiser step. evaluate: a function that validates once. trained: the weights come from a trained model.
    Raises: InputError for less than two steps; an error of the loop goes through.
    """
    if steps < 2:
        raise InputError(f"examine_loop: steps is {steps}; give 2 or more, because gradients are left over in step 2")
    loop = Loop(model, optimizer, evaluate)
    with quiet():
        loop.run(step, steps)
        found = [one for check in CHECKS for one in check(loop, trained)]
    return sorted_findings(found)


def first_loss(loop: Loop, trained: bool) -> Iterator[Finding]:
    """Find shifted targets, and a first loss that is not what a new model must have."""
    first = loop.seen[0]
    entropies = [one for one in first.entropies if one.number]
    for ids in (one for one in first.ids if one.ndim):
        for one in entropies:
            rows = ids.reshape(-1, ids.shape[-1])
            if one.targets.size % len(rows) == 0:  # logits may be laid out as (B T, V)
                found = list(shifted(rows, one.targets.reshape(len(rows), -1)))
                yield from found
                if found:
                    return
    if entropies:
        yield from judged("cross_entropy", mean_of(entropies), trained)


def summed_loss(loop: Loop, trained: bool) -> Iterator[Finding]:
    """Find a loss that is a sum: its gradient grows with the batch."""
    factor = max(one.factor for one in loop.seen)
    if factor > 1.5:
        yield Finding(
            "error",
            "loss-scale",
            f"the loss is a sum over targets, so the gradient is {factor:,.0f} times that of the mean",
            "leave reduction='sum' out, or divide the loss by the number of targets that count before its backward",
            "python: loss.item() beside ln V",
        )


def order(loop: Loop, trained: bool) -> Iterator[Finding]:
    """Find lines of a step that are missing, or in the wrong order."""
    steps, updates = len(loop.seen), sum(one.updates for one in loop.seen)
    if not all(one.backwards for one in loop.seen):
        yield Finding(
            "error",
            "no-backward",
            f"no operation ran backwards in {sum(not one.backwards for one in loop.seen)} of {steps} steps",
            "call loss.backward() in each step, and leave no_grad, .numpy() and .item() out of the forward",
            "python: loss.requires_grad, which must be True",
        )
    elif not updates:
        yield Finding(
            "error",
            "no-update",
            f"in {steps} steps this optimiser has not stepped once",
            "call optimizer.step() behind loss.backward(), of the optimiser that is given here",
            "python: optimizer.steps",
        )
    elif not any(loop.moved.values()) and all(group["lr"] == 0 for group in loop.optimizer.param_groups):
        yield Finding(
            "error",
            "learning-rate",
            "the learning rate is 0, so no weight ever changes",
            "set optimizer.lr, such as 1e-3 for a small model; a schedule may begin at 0 in its first step alone",
            "python: optimizer.lr",
        )
    elif not any(loop.moved.values()) and loop.strange != len(loop.given):
        yield Finding(
            "error",
            "no-update",
            f"the optimiser has stepped {updates} times, and no weight of the model has changed",
            "call zero_grad, backward and step in this order: a gradient that is cleared before the step moves nothing",
            "python: a weight before and after optimizer.step()",
        )
    if any(one.left_over for one in loop.seen):
        yield Finding(
            "error",
            "gradients-left-over",
            "a backward begins while the gradients of the step before it are still there, so each step moves along "
            "the sum of all gradients so far",
            "call optimizer.zero_grad() in each step, before loss.backward()",
            "python: the norm of the gradients, which grows from step to step",
        )
    drops = any(isinstance(one, Dropout) and one.p > 0 for one in loop.model.modules())
    if drops and not all(one.training for one in loop.seen):
        yield Finding(
            "warning",
            "evaluation-mode",
            "the model is in evaluation mode while it is trained: no dropout is drawn",
            "call model.train() before the steps, and again after each validation",
            "python: model.training",
        )


def optimised(loop: Loop, trained: bool) -> Iterator[Finding]:
    """Find parameters that no step moves, and an optimiser of another model."""
    every, given = loop.parameters, loop.given
    missing = [name for name, one in every.items() if one.requires_grad and id(one) not in given]
    adapted = is_lora(loop.model)  # which freezes what it adapts
    frozen = [name for name, one in every.items() if not (one.requires_grad or adapted or name in FIXED)]
    still = [
        name
        for name, moved in loop.moved.items()
        if not moved and name not in missing and not any(part in name for part in OF_SEGMENTS)
    ]
    if loop.strange == len(given) or (loop.strange and not missing):
        yield Finding(
            "error" if loop.strange == len(given) else "warning",
            "another-model",
            f"{loop.strange} of the optimiser's {len(given)} parameters are not this model's",
            "make the optimiser of the model that is trained: a copy, or one that was loaded later, is another",
            "python: any(p is q for q in model.parameters()) for a parameter p of optimizer.parameters()",
        )
    elif missing:
        yield Finding(
            "error",
            "not-optimised",
            f"{len(missing)} of {len(every)} parameters are not the optimiser's, the first of them {missing[0]}: they "
            "get gradients and never move",
            "make the optimiser after the model is complete, of model.parameters(), or call add_param_group",
            "python: optimizer.param_groups",
        )
    if frozen:
        yield Finding(
            "warning",
            "frozen-parameters",
            f"{len(frozen)} of {len(every)} parameters are frozen, the first of them {frozen[0]}",
            "call model.requires_grad_(True), unless this is meant",
            "python: [name for name, p in model.named_parameters() if not p.requires_grad]",
        )
    if still and any(loop.moved.values()):
        vectors = all(every[name].ndim < 2 for name in still)  # such as a bias that both sides of a comparison have
        yield Finding(
            "note" if vectors else "warning",
            "unused-parameters",
            f"{len(still)} of {len(every)} parameters have not changed in {len(loop.seen)} steps, the first of them "
            f"{still[0]}: the loss does not depend on them, or their gradient is zero",
            "call the layer in forward, or leave it out of the model; `study.why(parameter, loss)` says which it is",
            f"python: dict(model.named_parameters())[{still[0]!r}].grad",
        )


def decay(loop: Loop, trained: bool) -> Iterator[Finding]:
    """Find weight decay of biases and normalisation weights, which should not be pulled to 0."""
    vectors = [
        one
        for group in loop.optimizer.param_groups
        if group.get("weight_decay")
        for one in group["params"]
        if one.ndim < 2
    ]
    if vectors:
        yield Finding(
            "warning",
            "decay-of-vectors",
            f"weight decay pulls {counted(len(vectors), 'vector')} of biases and normalisation weights to 0, the first "
            f"of them {vectors[0].name}; it is meant for matrices",
            "give the optimiser optim.decay_groups(model.parameters(), weight_decay)",
            "python: optimizer.param_groups",
        )


def sizes(loop: Loop, trained: bool) -> Iterator[Finding]:
    """Find weights that are no numbers, and steps that are as large as the weights."""
    bad = [name for name, array in loop.after.items() if not np.isfinite(array).all()]
    if bad:
        before = sum(not np.isfinite(array).all() for array in loop.before.values())
        yield Finding(
            "error",
            "not-finite",
            f"after {len(loop.seen)} steps {counted(len(bad), 'parameter')} held an infinity or a NaN, the first "
            f"of them {bad[0]}" + (f"; {before} had one before" if before else ""),
            "run the step with MINILLM_CHECK=finite, which names the operation and the line that makes the first",
            f"python: np.isfinite(dict(model.named_parameters())[{bad[0]!r}].data).mean()",
        )
        return
    shares = {
        name: float(np.linalg.norm(loop.after[name] - old) / np.linalg.norm(old)) / len(loop.seen)
        for name, old in loop.before.items()
        if old.ndim >= 2 and old.any()
    }
    share = float(np.median(list(shares.values()))) if shares else 0.0
    if share > STEP:
        yield Finding(
            "error",
            "learning-rate",
            f"each step moves the matrices by {share:.0%} of their size, where 0.1% is usual: the training will "
            "diverge",
            f"lower the learning rate, to a {share / 0.01:,.0f}th of what it is or so, and let it rise over a warmup",
            "python: np.linalg.norm(after - before) / np.linalg.norm(before) of a weight",
        )


def validation(loop: Loop, trained: bool) -> Iterator[Finding]:
    """Find a validation that draws dropouts, records graphs, or trains."""
    seen = loop.validated
    if seen is None:
        return
    if seen.updates:
        yield Finding(
            "error",
            "validation-trains",
            f"the validation lets the optimiser step {counted(seen.updates, 'time')}: the held-out text is learned",
            "leave backward and step out of the validation",
            "python: optimizer.steps before and after it",
        )
    elif seen.dropped:
        yield Finding(
            "error",
            "random-evaluation",
            f"the validation draws a dropout in {counted(len(seen.dropped), 'layer')}, the first of them "
            f"{seen.dropped[0] or 'the model'}: its loss is that of a model that is damaged at random",
            "call model.eval() before the validation and model.train() after it, and let each dropout follow the mode",
            "python: model.training within the validation",
        )
    if seen.recorded and not seen.backwards:
        yield Finding(
            "warning",
            "recorded-validation",
            "the validation records a graph that no backward walks through, which takes the memory of a training step",
            "put it under `with minillm.no_grad():`",
            "python: loss.requires_grad, which should be False",
        )


CHECKS = (first_loss, summed_loss, order, optimised, decay, sizes, validation)
