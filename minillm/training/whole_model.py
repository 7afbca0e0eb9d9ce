"""A model that one process trains: the gradients of a batch, in parts, and what the loop asks of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from minillm.autograd import no_grad
from minillm.backend import Array
from minillm.lora import is_lora, load_lora_state_dict, lora_state_dict
from minillm.nn import Module
from minillm.optim import Optimizer, decay_groups
from minillm.parallel.objective import NEXT_TOKENS, Batch, Objective, add_measures, loss_of_rows, micro_batches_of
from minillm.parallel.recompute import recompute


def accumulate_gradients(
    model: Any,
    batch: Batch,
    micro_batches: int = 1,
    objective: Objective = NEXT_TOKENS,
    counts: dict[str, float] | None = None,
) -> Any:
    """Run the batch in parts, add the gradient of its loss to the parameters, and return the loss.

    Each part contributes the sums of its targets divided by the counts of the whole batch, so that every target counts
    alike, however they are spread over the parts. counts: of the whole batch, where they are known already.
    On a GPU the loss is an array without dimensions, and nobody waits for it before `float(loss)`.
    """
    counts = objective.counts(batch) if counts is None else counts
    total: Any = 0.0
    for part in micro_batches_of(batch, micro_batches):
        loss = loss_of_rows(objective, model, part, counts)  # ()
        loss.backward()
        total = total + loss.data.astype(np.float64)
    return total


class WholeModel:
    """A model that one process trains. `ParallelModel` has the same methods for a model that is divided over ranks.

    weight_decay: of the matrices; see `decay_groups`. layers: numbers of the blocks that are computed again in the
    backward (parallel/recompute.py).
    """

    def __init__(self, model: Module, weight_decay: float = 0.1, layers: Iterable[int] = ()):
        recompute(model, layers)
        self.model = model
        self.groups = decay_groups(model.parameters(), weight_decay)

    def num_parameters(self) -> int:
        """The number of weights of the model."""
        return self.model.num_parameters()

    def attach(self, optimizer: Optimizer) -> None:
        """Prepare the optimiser that was built from `groups`: in one process there is nothing to do."""

    def forward_backward(
        self,
        batch: Batch,
        micro_batches: int = 1,
        objective: Objective = NEXT_TOKENS,
        counts: dict[str, float] | None = None,
    ) -> Any:
        """Replace the gradients by those of the loss of a batch; returns the loss."""
        self.model.zero_grad()
        return accumulate_gradients(self.model, batch, micro_batches, objective, counts)

    def sync_parameters(self) -> None:
        """After the optimiser's step: in one process, nobody else has to hear of it."""

    def measures(self, batches: Iterable[Batch], objective: Objective = NEXT_TOKENS) -> dict[str, tuple[float, float]]:
        """The objective's measures, (sum, count) each, over all batches, without gradients or dropout."""
        total: dict[str, tuple[float, float]] = {}
        self.model.eval()
        with no_grad():
            for batch in batches:
                add_measures(total, objective.measures(self.model, batch).items())
        self.model.train()
        return total

    def gather(self) -> Any:
        """The whole model."""
        return self.model

    def state_dict(self) -> dict[str, Array] | None:
        """Every parameter by its name; of a model with adapters, what is trained alone."""
        return lora_state_dict(self.model) if is_lora(self.model) else self.model.state_dict()

    def optimizer_state_dict(self, optimizer: Optimizer) -> dict[str, Array] | None:
        """The optimiser's moments and counts of steps, by name."""
        return optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Take the parameters from what `state_dict` returned."""
        if is_lora(self.model):
            load_lora_state_dict(self.model, state)
        else:
            self.model.load_state_dict(state)

    def load_optimizer_state_dict(self, optimizer: Optimizer, state: Mapping[str, Array]) -> None:
        """Take the optimiser's state from what `optimizer_state_dict` returned."""
        optimizer.load_state_dict(state)
