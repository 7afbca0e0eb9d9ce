"""The norm of all gradients together, and the factor that clips it, by kernels/global_norm.cu.

Both stay on the GPU as arrays of one number, so that the host does not wait for them before the optimiser's launch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minillm.backend import Array
from minillm.cuda.kernel import get_kernel

THREADS = 512
BLOCKS = 1024  # for one gradient, at most
PER_BLOCK = 4096  # numbers of a block, at least


def norm_and_clip_factor(
    gradients: list[Array], max_norm: float, masters: Array, add_over_ranks: Callable[[Array], None] | None = None
) -> tuple[Array, Array]:
    """The norm and the factor, in the dtype of `masters` and on its device.

    The number of blocks depends on the sizes alone, so that the sum has the same order, and the same bits, every time.
    """
    blocks = [min(BLOCKS, -(-gradient.size // PER_BLOCK)) for gradient in gradients]
    partials = np.empty_like(masters, shape=sum(blocks), dtype=np.float64)
    norm, factor = np.empty_like(masters, shape=(2, 1))
    first = 0
    for gradient, count in zip(gradients, blocks, strict=True):
        sum_of_squares = get_kernel("global_norm.cu", "sum_of_squares", gradient.dtype)
        sum_of_squares(count, THREADS, (gradient, partials[first : first + count], np.int64(gradient.size)))
        first += count
    if add_over_ranks is not None:
        partials = partials.sum(keepdims=True)
        add_over_ranks(partials)
    clip_factor = get_kernel("global_norm.cu", "clip_factor", norm.dtype)
    clip_factor(1, THREADS, (partials, np.int32(partials.size), norm.dtype.type(max_norm), norm, factor))
    return norm, factor
