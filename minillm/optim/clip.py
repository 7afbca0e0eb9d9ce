"""The norm of all gradients together, and the factor that limits it.

    norm = sqrt(sum of g^2 over all gradients)          g = g min(1, max_norm / norm)

Source: Pascanu, Mikolov, Bengio 2013, arXiv:1211.5063, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from minillm.backend import Array
from minillm.engine import rooms_for
from minillm.errors import InputError
from minillm.fast import global_norm
from minillm.tensor import Parameter


def sum_of_squares(vectors: list[Array]) -> float:
    """The sum of g^2 over vectors (n,), in float64: in float32 the square of 1e20 is infinite, that of 1e-25 is 0."""
    if vectors and "fast" in rooms_for(vectors[0]):
        return global_norm.sum_of_squares(vectors)
    return math.fsum(float(np.sum(np.square(g.astype(np.float64)))) for g in vectors)


def factor_for(norm: float, max_norm: float) -> float:
    """min(1, max_norm / norm), or NaN for a norm that is NaN."""
    return 1.0 if norm <= max_norm else max_norm / norm


def clip_grad_norm_(parameters: Iterable[Parameter], max_norm: float, *, error_if_nonfinite: bool = False) -> float:
    """Scale all gradients in place so that their global norm is at most max_norm; returns the norm before.

    `Optimizer.clip_grad_norm` leaves the scaling to its step, and so saves a pass over the gradients. As in PyTorch, a
    NaN among the gradients makes all of them NaN, and an infinite element becomes NaN and the others 0.

    Raises: InputError for a norm that is infinite or NaN, with `error_if_nonfinite`.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = math.sqrt(sum_of_squares([gradient.reshape(-1) for gradient in gradients]))
    if error_if_nonfinite and not math.isfinite(norm):
        raise InputError(
            f"clip_grad_norm_: the norm of the gradients is {norm}; look for the operation that made it so"
        )
    factor = factor_for(norm, max_norm)
    if factor != 1:
        with np.errstate(invalid="ignore"):  # infinity times 0
            for gradient in gradients:
                gradient *= factor
    return norm
