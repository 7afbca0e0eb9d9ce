"""The step of optim/sgd.py in place: the weights and moments given are overwritten."""

from __future__ import annotations

import numpy as np


def sgd_update(w, g, b, *, t, lr, momentum, weight_decay):
    """Overwrite w and b with w_t and b_t."""
    momentum_b = np.multiply(b, momentum, out=b)
    with_g = np.add(momentum_b, g, out=b)
    b_t = np.add(with_g, weight_decay * w, out=b) if weight_decay else with_g
    w -= lr * b_t
