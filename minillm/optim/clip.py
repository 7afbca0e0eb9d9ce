"""The norm of all gradients together, and the factor that limits it.

    norm = sqrt(sum of g^2 over all gradients),        g = g min(1, max_norm / norm)

Source: Pascanu, Mikolov, Bengio 2013, arXiv:1211.5063, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from minillm import backend
from minillm.autograd import Parameter
from minillm.backend import Array
from minillm.cuda import get_kernel
from minillm.errors import InputError
from minillm.sums import vecdot

SMALLEST_SUM = 1e-25  # of squares: beside it, those that float32 does not have are nothing


def clip_grad_norm_(parameters: Iterable[Parameter], max_norm: float, *, error_if_nonfinite: bool = False) -> float:
    """Scale all gradients in place so that their global norm is at most max_norm; returns the norm before.

    For use without an optimiser; `Optimizer.clip_grad_norm` does the same without a pass of its own. As in PyTorch, one
    gradient that is NaN makes all of them NaN, and an infinite one becomes NaN and the others 0.
    Raises: InputError for such a norm, with `error_if_nonfinite`.
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = math.sqrt(sum_of_squares_of([grad.reshape(-1) for grad in grads]))
    if error_if_nonfinite and not math.isfinite(norm):
        raise InputError(
            f"clip_grad_norm_: the norm of the gradients is {norm}; look for the operation that made it so"
        )
    factor = clip_factor_of(norm, max_norm)
    if factor != 1:
        with np.errstate(invalid="ignore"):  # infinity times 0
            for grad in grads:
                grad *= factor
    return norm


def clip_factor_of(norm: float, max_norm: float) -> float:
    """min(1, max_norm / norm), or NaN where the norm is."""
    return 1.0 if norm <= max_norm else max_norm / norm


def norm_and_factor_cuda(
    gradients: list[Array], max_norm: float, wide: Array, add_over_ranks: Callable[[Array], None] | None = None
) -> tuple[Array, Array]:
    """The norm of all gradients together and the factor that clips it, arrays of one number each, by kernels."""
    blocks = [min(1024, -(-gradient.size // 4096)) for gradient in gradients]  # of the size alone: the order of the sum
    partials = np.empty_like(wide, shape=sum(blocks), dtype=np.float64)
    norm, factor = np.empty_like(wide, shape=(2, 1))
    first = 0
    for gradient, count in zip(gradients, blocks, strict=True):
        sum_of_squares = get_kernel("global_norm.cu", "sum_of_squares", gradient.dtype)
        sum_of_squares(count, 512, (gradient, partials[first : first + count], np.int64(gradient.size)))
        first += count
    if add_over_ranks is not None:
        partials = partials.sum(keepdims=True)
        add_over_ranks(partials)
    clip_factor = get_kernel("global_norm.cu", "clip_factor", norm.dtype)
    clip_factor(1, 512, (partials, np.int32(partials.size), norm.dtype.type(max_norm), norm, factor))
    return norm, factor


def sum_of_squares_of(vectors: list[Array]) -> float:
    squares = [0.0] * len(vectors)  # summed in order afterwards, so that threads do not change the result

    def run(start, stop):
        with np.errstate(over="ignore", invalid="ignore"):
            for i in range(start, stop):
                squares[i] = _sum_of_squares_of_one(vectors[i])

    if sum(vector.nbytes for vector in vectors) < backend.PARALLEL_BYTES:
        run(0, len(vectors))
    else:
        backend.parallel(run, len(vectors))
    return math.fsum(squares)


def _sum_of_squares_of_one(vector: Array) -> float:
    """In float32 where the squares are numbers of float32: that of 1e20 is infinite there, and that of 1e-25 is 0."""
    wide = vector.astype(np.promote_types(vector.dtype, np.float32), copy=False)
    total = float(vecdot(wide, wide))
    if wide.dtype == np.float32 and wide.size and not SMALLEST_SUM < total < math.inf and (wide.max() or wide.min()):
        wide = wide.astype(np.float64)
        total = float(vecdot(wide, wide))
    return total
