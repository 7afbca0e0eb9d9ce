"""The steps of optim/adamw.py in place: the weights and moments given are overwritten, with one array of memory beside.

The plain formula makes an array for every term, and takes twice as long. All arrays have the shape of w: (n,) for a
chunk of a flat buffer (optim/flat.py).
"""

from __future__ import annotations

import math

import numpy as np


def adamw_update(w, g, m, v, *, t, lr, betas, eps, weight_decay):
    """Overwrite w, m and v with w_t, m_t and v_t of AdamW."""
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
    memory = np.empty_like(m)  # the names below are this array, m or v, at the time when it holds what the name says
    beta1_m = np.multiply(m, beta1, out=m)
    new_m = np.multiply(g, 1 - beta1, out=memory)
    m_t = np.add(beta1_m, new_m, out=m)
    beta2_v = np.multiply(v, beta2, out=v)
    g_squared = np.multiply(g, g, out=memory)
    new_v = np.multiply(g_squared, 1 - beta2, out=memory)
    v_t = np.add(beta2_v, new_v, out=v)
    sqrt_v = np.sqrt(v_t, out=memory)
    sqrt_v_hat = np.multiply(sqrt_v, 1 / math.sqrt(1 - beta2**t), out=memory)
    denominator = np.add(sqrt_v_hat, eps, out=memory)
    m_over_denominator = np.divide(m_t, denominator, out=memory)
    return np.multiply(m_over_denominator, lr / (1 - beta1**t), out=memory)
