"""Gradient descent with momentum, as in PyTorch:

    b_t = momentum b + g + weight_decay w           w_t = w - lr b_t

b begins at 0, so that the first gradient of a parameter is its first b. Memory: one number for each parameter, beside
its gradient.
"""

from __future__ import annotations

from minillm.fast.sgd import sgd_update as fast_update
from minillm.optim.optimizer import Optimizer


def sgd_update(w, g, b, *, t, lr, momentum, weight_decay):
    """w_t and b_t, in the shape of w."""
    b_t = momentum * b + g + weight_decay * w
    w_t = w - lr * b_t
    return w_t, b_t


class SGD(Optimizer):
    """Gradient descent with momentum; the formula is at the top of this file."""

    moment_names = ("momentum",)
    update = staticmethod(sgd_update)
    fast_update = staticmethod(fast_update)

    def __init__(self, parameters, lr=1e-3, momentum=0.0, weight_decay=0.0):
        super().__init__(parameters, lr, momentum=momentum, weight_decay=weight_decay)

    def check_options(self, options):
        """Raise InputError for an option out of range, momentum among them."""
        super().check_options(options)
        self._check_least(options, "momentum", "0 or more")
