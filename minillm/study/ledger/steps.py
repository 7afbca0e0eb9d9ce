"""The training steps that the ledger compares: one function takes them, in one process and on ranks alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from minillm import random
from minillm.autograd import Tensor
from minillm.device import to_device
from minillm.nn import uninitialized
from minillm.optim import AdamW, Optimizer
from minillm.parallel.objective import Batch, Objective, loss_of_rows
from minillm.study.ledger.rounding import Outcome, kept
from minillm.training.whole_model import WholeModel

WEIGHT_DECAY = 0.1
RATE = 1e-2  # learning rate: an update is about a hundredth, and so no digit of it is lost beside a weight
SEED = 7  # of the dropout masks
STEPS = 2  # on ranks: what they send after the first step counts in the second
PARTS = 2  # micro-batches of these, so that a pipeline has something to do at both of its stages


class Training(NamedTuple):
    """A model to build, and what its steps are made of; it can be sent to another process.

    weights: the file of its arrays. eps, clip: the settings of AdamW and of clipping, see `Subject.training`.
    """

    kind: Callable[[Any], Any]
    config: Any
    weights: str
    objective: Objective
    batch: Batch
    eps: float = 1.0
    clip: float = 1.0

    def model(self, dtype: str = "float64") -> Any:
        """The model, made anew, in training mode."""
        with uninitialized(), np.errstate(all="ignore"):  # memory that is not filled yet may hold anything
            model = self.kind(self.config).to(dtype)
        with np.load(self.weights) as stored:
            model.load_state_dict({name: stored[name] for name in stored.files})
        return model

    def loss(self, model: Any, batch: Batch | None = None, seed: int = SEED) -> Tensor:
        """The loss of the batch, or of another one; by default with the dropout masks of the first step."""
        batch = self.batch if batch is None else batch
        with random.using(random.Generator(seed)):
            return loss_of_rows(self.objective, model, batch, self.objective.counts(batch))

    def optimizer(self, model: Any) -> Optimizer:
        """An AdamW for a WholeModel or a ParallelModel."""
        optimizer = AdamW(model.groups, RATE, eps=self.eps)
        model.attach(optimizer)
        return optimizer


def trained(
    training: Training,
    model: Any,
    steps: int = 1,
    micro_batches: int = 1,
    layers: Iterable[int] = (),
    device: str = "cpu",
) -> Outcome:
    """Take training steps in one process. layers: numbers of the blocks that are computed again in the backward."""
    whole = WholeModel(model, WEIGHT_DECAY, layers)
    return take_steps(training, whole, training.optimizer(whole), steps, micro_batches, device)


def take_steps(
    training: Training, model: Any, optimizer: Optimizer, steps: int = 1, micro_batches: int = 1, device: str = "cpu"
) -> Outcome:
    """Train a WholeModel or a ParallelModel; returns losses, norms, weights and moments, on rank 0.

    In one process the gradient of the first step is there too.
    """
    objective, counts = training.objective, training.objective.counts(training.batch)
    batch = {name: to_device(array, device) for name, array in training.batch.items()}
    losses, norms, gradient = [], [], None
    for step in range(steps):
        with random.using(random.Generator(SEED + step)):
            losses.append(float(model.forward_backward(batch, micro_batches, objective, counts)))
        if gradient is None and isinstance(model, WholeModel):
            gradient = gradients_of(model.model)
        norms.append(float(optimizer.clip_grad_norm(training.clip)))
        optimizer.step()
        model.sync_parameters()
    weights, moments = model.state_dict(), model.optimizer_state_dict(optimizer)
    outcome: Outcome = {"loss": {"": np.array(losses)}, "norm of the gradient": {"": np.array(norms)}}
    if gradient is not None:
        outcome["gradient of"] = gradient
    return outcome | {"weight": kept(weights or {}), "moment": kept(moments or {})}


def gradients_of(model: Any) -> dict:
    """The gradient of every parameter that is trained; one without a gradient has an empty array."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return kept({name: np.zeros(0) if parameter.grad is None else parameter.grad for name, parameter in trained})
