"""The description of a model: its parameters, the memory of a training step, and its FLOPs, by part of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

DTYPES = {"float32": np.float32, "float64": np.float64, "bfloat16": np.float16}  # the last stands in, of the same size
TABLES = {"wte": "token table", "wpe": "position table", "wse": "sentence table"}
PARTS = {**TABLES, "attn": "attention", "cross": "attention", "mlp": "MLP", "lm_head": "output layer"}


class Amount(NamedTuple):
    """An amount per block and for the whole model."""

    block: float
    total: float


class Kept(NamedTuple):
    """Arrays that the backward needs: their part of the model, the layer and operation, and their names there."""

    part: str
    operation: str
    names: str


@dataclass(frozen=True)
class Description:
    """The size of a model, and the cost of a training step on `batch_size` sequences of `context` tokens."""

    name: str
    config: Any
    batch_size: int
    context: int
    dtype: str
    parameters: dict[str, Amount]  # elements, by part; tied ones once
    kept: dict[Kept, Amount]  # bytes
    peak: float  # bytes of activations and their gradients, where they are most
    forward: dict[str, Amount]  # FLOPs of the matrix products, by part
    backward: dict[str, Amount]
    cache_token: int  # bytes of keys and values for one token of one sequence; 0 where nothing is generated
    cache_source: int  # the same for one token of the source of one target; 0 for a model without sources
    trained: int  # elements that get gradients: with adapters, theirs alone

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return np.dtype(DTYPES[self.dtype]).itemsize

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch_size * self.context

    @property
    def num_parameters(self) -> int:
        """Number of weights, tied ones once."""
        return int(total(self.parameters))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        return self.num_parameters * self.itemsize

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the gradients of what is trained."""
        return self.trained * self.itemsize

    @property
    def moment_bytes(self) -> int:
        """Bytes of AdamW's two moments, which have 32 bits or more."""
        return self.trained * 2 * max(4, self.itemsize)

    @property
    def master_bytes(self) -> int:
        """Bytes of the float32 copies of weights of fewer bits."""
        return self.trained * 4 if self.itemsize < 4 else 0

    @property
    def activation_bytes(self) -> int:
        """Bytes that a forward leaves for its backward."""
        return int(total(self.kept))

    @property
    def step_bytes(self) -> int:
        """The most that a training step holds at once."""
        return self.weight_bytes + self.gradient_bytes + self.moment_bytes + self.master_bytes + int(self.peak)

    @property
    def flops_per_token(self) -> float:
        """FLOPs of the matrix products of a token, forward and backward."""
        return (total(self.forward) + total(self.backward)) / self.tokens

    @property
    def kaplan_parameters(self) -> int:
        """N of the 6N rule: without the tables, and without an output layer of its own."""
        left_out = {*TABLES.values(), PARTS["lm_head"]}
        return int(sum(amount.total for part, amount in self.parameters.items() if part not in left_out))


def total(amounts: Mapping[Any, Amount]) -> float:
    """The sum of all parts."""
    return sum(amount.total for amount in amounts.values())
