"""AdamW's step by kernels/adamw.cu: one launch for a flat buffer, with a bfloat16 weight's float32 master beside it."""

from __future__ import annotations

import math

import numpy as np

from minillm.cuda.kernel import get_kernel

THREADS = 256  # of a block, each with 16 bytes or more
BLOCKS = 2048  # fill any GPU


def update(weights, g, masters, m, v, clip_factor, *, t, lr, betas, eps, weight_decay):
    """Overwrite masters, moments and the weights, which are the masters rounded (or the same array).

    `clip_factor` multiplies the gradient: a float, or the array of one number that clip_factor of cuda/global_norm.py
    made.
    """
    beta1, beta2 = betas
    factor = np.full_like(masters, clip_factor, shape=1) if isinstance(clip_factor, float) else clip_factor
    scalars = (
        *(1 - beta1, 1 - beta2, 1 / math.sqrt(1 - beta2**t), eps),
        *(lr / (1 - beta1**t), 1 - lr * weight_decay),
    )
    arguments = (weights, g, masters, m, v, factor, np.int64(weights.size), *map(masters.dtype.type, scalars))
    blocks = min(BLOCKS, -(-weights.size // (4 * THREADS)))
    get_kernel("adamw.cu", "adamw", weights.dtype)(blocks, THREADS, arguments)
