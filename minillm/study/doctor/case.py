"""Case: a training before its first step, with everything that the checks read of it, each computed once.

The first batch is made, and its first rows run forwards and backwards in evaluation mode, so that dropout hides
nothing. `autograd.observe` shows what happens meanwhile: the logits and targets of every cross-entropy, the inputs of
every activation function, and the output of every layer.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Forward, Tensor, observe
from minillm.backend import Array
from minillm.device import to_host
from minillm.nn import Module
from minillm.parallel.objective import Batch, number_of_rows, rows_of
from minillm.training.tasks.preference import PreferenceTask
from minillm.training.tasks.scoring import frozen_log_probs
from minillm.training.tasks.task import Task

TOKENS = 2048  # of the rows that are run, about: enough for every statistic here
LONG = 128  # tokens of a row whose logits are compared: all of them would need gigabytes in large models
HIDDEN = -1e4  # a logit below this stands for a class that is ruled out, such as padding for an answer's place
CHUNK = 256  # rows of logits that are looked at together, so that large vocabularies need little memory
# Where the slope of an activation function is above 1e-3, in its input: outside, nothing is learned.
ALIVE = {
    "relu": (0.0, np.inf),
    "gelu": (-3.9, np.inf),
    "bias_gelu": (-3.9, np.inf),
    "silu": (-9.2, np.inf),
    "swiglu": (-9.2, np.inf),
    "tanh": (-4.1, 4.1),
    "sigmoid": (-6.9, 6.9),
}


class Entropy(NamedTuple):
    """A cross-entropy that the loss computed, by its targets that count; `number` is how many.

    loss: their mean. random: the mean over all classes, which is the loss of targets that have nothing to do with the
    logits. uniform: that of equal logits, ln of the number of classes. spread: the standard deviation of a row's
    logits. concentration, entropy: sum of p^2 and of -p ln p with the shares p of the classes among the targets.
    """

    targets: Array  # as they were given
    number: int
    loss: float
    random: float
    uniform: float
    spread: float
    concentration: float
    entropy: float


class Step(NamedTuple):
    """The first rows of the first batch, forwards and backwards.

    terms: each term of the loss, a mean. broken: the first layer whose output was not finite, or None. constant: layers
    whose output is one vector for all tokens. alive: for each activation function, by layer: for each unit, if it is
    alive for a token. dropped: layers that drew a dropout, though the model is in evaluation mode.
    """

    terms: dict[str, float]
    entropies: list[Entropy]
    broken: str | None
    constant: list[str]
    alive: dict[str, Array]
    dropped: list[str]
    has_graph: bool

    @property
    def loss(self) -> float:
        """The loss of these rows."""
        return sum(self.terms.values())


class Case:
    """A training that has not begun: its task, its model, and whether its weights come from a trained one.

    The gradients of `step` stay in the parameters.
    """

    def __init__(self, task: Task, model: Any, trained: bool = False):
        self.task, self.model, self.trained = task, model.eval(), trained
        self.config = task.config

    @cached_property
    def batch(self) -> Batch:
        """The first batch."""
        if isinstance(self.task, PreferenceTask):
            ask_reference(self.task, self.model)
        else:
            self.task.begin(self.model, {})
        return self.task.batch(0, self.model)

    @cached_property
    def rows(self) -> Batch:
        """The first rows of the first batch, of about TOKENS tokens; of sampled answers all, which form groups."""
        if self.task.samples:
            return self.batch
        size = sum(array.size for name, array in self.batch.items() if name in ("ids", "source", "target"))
        rows = number_of_rows(self.batch)
        return rows_of(self.batch, 0, min(rows, max(2, TOKENS * rows // max(1, size))))

    @cached_property
    def step(self) -> Step:
        """The record of a step of these rows."""
        return run_step(self.task, self.model, self.rows)

    def several(self, number: int) -> Iterator[Batch]:
        """The first batches; of a task that samples, the first alone."""
        yield self.batch
        for step in range(1, 1 if self.task.samples else number):
            yield self.task.batch(step)

    def loss(self, rows: Batch | None = None) -> float:
        """The loss of these rows, or of changed ones, by the weights as they are now."""
        rows = self.rows if rows is None else rows
        return sum(terms_of(self.task, self.model, rows)[name].item() for name in self.task.counts(rows))

    def trained_parameters(self) -> dict[str, Any]:
        """The parameters that need a gradient, by name."""
        return {name: one for name, one in self.model.named_parameters() if one.requires_grad}

    def sequences(self) -> Array | None:
        """Ids that a model of the next token reads, at most (2, LONG); None for other objectives."""
        ids = self.rows.get("ids")
        if ids is None or not hasattr(self.model, "next_logits"):
            return None
        return ids.reshape(-1, ids.shape[-1])[:2, :LONG]


def terms_of(task: Task, model: Any, rows: Batch) -> dict[str, Tensor]:
    """Each term of the loss of some rows, as a mean over its targets there."""
    counts = task.counts(rows)
    return {name: total / max(counts[name], 1.0) for name, total in task.sums(model, rows).items()}


def run_step(task: Task, model: Any, rows: Batch) -> Step:
    """Run some rows forwards and backwards, and keep what was seen."""
    entropies: list[Entropy] = []
    alive: dict[str, Array] = {}
    broken: list[str] = []
    constant: list[str] = []
    dropped: list[str] = []

    def on_forward(call: Forward) -> None:
        name = call.op.name
        if name == "cross_entropy":
            entropies.append(entropy_of(to_host(call.inputs[0]), to_host(call.inputs[1]), call.settings))
        elif draws_dropout(call):
            dropped.append(call.scope)
        elif name in ALIVE:
            x = to_host(call.inputs[0])
            x = x + to_host(call.inputs[1]) if name == "bias_gelu" else x
            low, high = ALIVE[name]
            seen = ((x > low) & (x < high)).reshape(-1, x.shape[-1]).any(0)
            alive[call.scope] = seen | alive[call.scope] if call.scope in alive else seen

    def on_module(module: Module, inputs: tuple, output: Any) -> None:
        if not isinstance(output, Tensor):
            return
        y = to_host(output.data)
        if not np.isfinite(y).all():
            broken.append(module.name or type(module).__name__)
        elif y.ndim == 3 and y[..., 0].size > 1 and any(True for _ in module.children()):
            apart = np.ptp(y.reshape(-1, y.shape[-1]), axis=0).max(initial=0.0)
            if apart <= 1e-6 * np.abs(y).max(initial=0.0):
                constant.append(module.name or type(module).__name__)

    model.zero_grad()
    with observe(on_forward, on_module=on_module):
        terms = terms_of(task, model, rows)
    loss = functools.reduce(operator.add, terms.values())
    if loss.requires_grad:
        loss.backward()
    values = {name: term.item() for name, term in terms.items()}
    first = broken[0] if broken else None
    return Step(values, entropies, first, constant, alive, dropped, bool(loss.requires_grad))


def draws_dropout(call: Forward) -> bool:
    """True for a forward that sets numbers to 0 at random."""
    return call.op.name == "dropout" or call.settings.get("dropout") is not None


def entropy_of(logits: Array, targets: Array, settings: dict[str, Any]) -> Entropy:
    """The cross-entropy of logits (..., V) against targets (...), and what it would be of others."""
    rows, flat = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    (counted,) = np.nonzero(flat != settings.get("ignore_index", -100))
    sums = np.zeros(4)
    for start in range(0, len(counted), CHUNK):
        some = counted[start : start + CHUNK]
        z = rows[some].astype(np.float64)  # (n, V)
        possible = z > HIDDEN
        number = np.maximum(possible.sum(-1), 1)  # (n,)
        mean = np.where(possible, z, 0).sum(-1) / number
        spread = np.sqrt(np.where(possible, (z - mean[:, None]) ** 2, 0).sum(-1) / number)
        largest = z.max(-1)
        total = largest + np.log(np.exp(z - largest[:, None]).sum(-1))
        right = z[np.arange(len(some)), flat[some]]
        sums += [(total - right).sum(), (total - mean).sum(), np.log(number).sum(), spread.sum()]
    loss, random, uniform, spread = (float(one) / max(len(counted), 1) for one in sums)
    return Entropy(targets.copy(), len(counted), loss, random, uniform, spread, *shares_of(flat[counted]))


def shares_of(targets: Array) -> tuple[float, float]:
    """The sum of p^2, and of -p ln p, with the shares p of the classes among some targets."""
    shares = np.unique(targets, return_counts=True)[1] / max(len(targets), 1)
    return float((shares**2).sum()), float(-(shares * np.log(shares)).sum())


def ask_reference(task: PreferenceTask, model: Any) -> None:
    """Let the task know what its reference, these weights, says of the pairs of the first batch, and of no others."""
    numbers = task.batch(0)["number"]
    pairs = {"reference": [one for number in numbers for one in task.pairs[number]]}
    if task.is_kto:
        pairs["reference_elsewhere"] = [one for number in numbers for one in task.elsewhere(number)]
    for name, examples in pairs.items():
        getattr(task, name)[numbers] = frozen_log_probs(model, examples, len(examples)).reshape(-1, 2)


def blocks_of(names: Iterator[str] | list[str]) -> dict[str, list[str]]:
    """The names of parameters by the block that they are in, such as `h.3`, in the order of the model."""
    found: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        place = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        if place is not None:
            found.setdefault(".".join(parts[: place + 1]), []).append(name)
    return found
