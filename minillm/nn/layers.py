"""A layer holds weights or settings and calls the operation of the same name. Losses are layers too."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minillm import ops
from minillm.autograd import Parameter, Tensor
from minillm.nn.initial import normal_, uniform_
from minillm.nn.module import Module


class Linear(Module):
    """y = x weight^T + bias, with weight (out, in) and bias (out,) from U(-1/sqrt(in), 1/sqrt(in)), as in PyTorch."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        bound = 1 / math.sqrt(in_features) if in_features else 0.0
        self.weight = Parameter(np.empty((out_features, in_features), np.float32))
        self.bias = Parameter(np.empty(out_features, np.float32)) if bias else None
        uniform_(bound, *(parameter.data for parameter in (self.weight, self.bias) if parameter is not None))

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias)  # (..., in) to (..., out)


class Embedding(Module):
    """A (V, C) table that gives each id its row, with values from N(0, 1) at first, as in PyTorch.

    padding_idx: an id whose row starts as zeros and gets no gradient.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None):
        self.weight = Parameter(np.empty((num_embeddings, embedding_dim), np.float32))
        self.padding_idx = padding_idx
        normal_(self.weight.data, 1.0)
        if padding_idx is not None:
            self.weight.data[padding_idx] = 0

    def forward(self, ids: Any) -> Tensor:
        return ops.embedding(ids, self.weight, self.padding_idx)  # (...) to (..., C)


class LayerNorm(Module):
    """Layer normalisation over the last axis; the weight starts as ones, the bias as zeros.

    elementwise_affine: False leaves out both weight and bias.
    """

    def __init__(self, channels: int, eps: float = 1e-5, bias: bool = True, elementwise_affine: bool = True):
        self.weight = Parameter(np.ones(channels, np.float32)) if elementwise_affine else None
        self.bias = Parameter(np.zeros(channels, np.float32)) if bias and elementwise_affine else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)  # (..., C), as x

    def extra_repr(self) -> str:
        return f"eps={self.eps:g}"


class RMSNorm(Module):
    """Root-mean-square normalisation over the last axis; the weight starts as ones."""

    def __init__(self, channels: int, eps: float = 1e-6):
        self.weight = Parameter(np.ones(channels, np.float32))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)  # (..., C), as x

    def extra_repr(self) -> str:
        return f"eps={self.eps:g}"


class Dropout(Module):
    """Dropout: while training, each element becomes 0 with probability p."""

    def __init__(self, p: float):
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.p, self.training)  # (...), as x

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


class ReLU(Module):
    """max(x, 0); see ops.relu."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.relu(x)


class GELU(Module):
    """x Phi(x), or with approximate="tanh" the form of GPT-2; see ops.gelu."""

    def __init__(self, approximate: str = "none"):
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return ops.gelu(x, self.approximate)


class SiLU(Module):
    """x sigmoid(x); see ops.silu."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.silu(x)


class Tanh(Module):
    """The hyperbolic tangent."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.tanh(x)


class Sigmoid(Module):
    """1 / (1 + e^-x)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.sigmoid(x)


class Softmax(Module):
    """Probabilities along one axis; see ops.softmax."""

    def __init__(self, dim: int = -1):
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return ops.softmax(x, dim=self.dim)


class Identity(Module):
    """A layer that returns its input."""

    def forward(self, x: Any) -> Any:
        return x


class CrossEntropyLoss(Module):
    """The mean of -log p(target) over the targets; ops.cross_entropy explains the layouts and the settings."""

    def __init__(
        self,
        weight: Any = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ):
        self.weight = weight
        self.ignore_index, self.reduction, self.label_smoothing = ignore_index, reduction, label_smoothing

    def forward(self, logits: Tensor, targets: Any) -> Tensor:
        return ops.cross_entropy(
            logits, targets, self.ignore_index, self.label_smoothing, self.reduction, weight=self.weight
        )


class MSELoss(Module):
    """The mean of (x - target)^2; see ops.mse_loss."""

    def __init__(self, reduction: str = "mean"):
        self.reduction = reduction

    def forward(self, x: Tensor, target: Any) -> Tensor:
        return ops.mse_loss(x, target, self.reduction)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": lambda x: ops.gelu(x, "tanh"),
    "gelu": ops.gelu,
    "relu": ops.relu,
    "silu": ops.silu,
}


class MLP(Module):
    """Two linear layers with an activation between them, from `channels` to `hidden` and back.

    activation: "gelu_tanh" (GPT-2), "gelu" (the exact one), "relu" or "silu".
    """

    def __init__(
        self, channels: int, hidden: int, dropout: float = 0.0, bias: bool = True, activation: str = "gelu_tanh"
    ):
        self.fc = Linear(channels, hidden, bias)
        self.proj = Linear(hidden, channels, bias)
        self.dropout = Dropout(dropout)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x and the result (..., channels)."""
        hidden = ACTIVATIONS[self.activation](self.fc(x))  # (..., hidden)
        return self.dropout(self.proj(hidden))  # (..., channels)

    def extra_repr(self) -> str:
        return self.activation
