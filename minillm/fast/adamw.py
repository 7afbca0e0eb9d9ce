"""The steps of optim/adamw.py in place: the weights and moments given are overwritten, with one array of memory beside.

The plain formula makes an array for every term, and takes twice as long. All arrays have the shape of w: (n,) for a
chunk of a flat buffer (optim/flat.py).
"""

from __future__ import annotations

import math

import numpy as np


def adamw_update(w, g, m, v, *, t, lr, betas, eps, weight_decay):
    """Overwrite w, m and v with w_t, m_t and v_t of AdamW; all have the shape of w."""
    step = _move_moments(g, m, v, t, lr, betas, eps)
    if weight_decay:
        w *= 1 - lr * weight_decay
    w -= step


def adam_update(w, g, m, v, *, t, lr, betas, eps, weight_decay):
    """Overwrite w, m and v with w_t, m_t and v_t of Adam."""
    decayed_g = g + weight_decay * w if weight_decay else g
    w -= _move_moments(decayed_g, m, v, t, lr, betas, eps)


def _move_moments(g, m, v, t, lr, betas, eps):
    """Overwrite m and v with m_t and v_t; returns lr m_hat / (sqrt(v_hat) + eps)."""
    beta1, beta2 = betas
    memory = np.empty_like(m)  # every name below is this array, at the time when it holds what the name says
    _move(m, g, beta1, memory)
    g_squared = np.multiply(g, g, out=memory)
    _move(v, g_squared, beta2, memory)
    sqrt_v = np.sqrt(v, out=memory)
    sqrt_v_hat = np.multiply(sqrt_v, 1 / math.sqrt(1 - beta2**t), out=memory)
    denominator = np.add(sqrt_v_hat, eps, out=memory)
    m_over_denominator = np.divide(m, denominator, out=memory)
    return np.multiply(m_over_denominator, lr / (1 - beta1**t), out=memory)


def _move(mean, value, beta, memory):
    """Overwrite a running mean with beta mean + (1 - beta) value, and with the value itself where beta is 0.

    The sum begins with the larger part, so that rounding leaves nothing of a mean that counts little. All names of the
    first branch are the memory of the mean, at the time when it holds what they say.
    """
    if beta < 0.5:
        above_value = np.subtract(mean, value, out=mean)
        share_of_that = np.multiply(above_value, beta, out=above_value)
        np.add(share_of_that, value, out=mean)
    else:
        change = np.subtract(value, mean, out=memory)
        mean += np.multiply(change, 1 - beta, out=memory)
