"""Adam and AdamW: steps along a running mean of the gradient, divided by the root of a running mean of its square.

With the t-th gradient g of a parameter, t = 1, 2, ..., and b1, b2 = betas:

    m_t = b1 m + (1 - b1) g              running mean of the gradient, exp_avg
    v_t = b2 v + (1 - b2) g^2            running mean of its square, exp_avg_sq

Both start at 0, so after t steps the coefficients of the gradients in m_t add up to 1 - b1^t, not to 1 (likewise v_t
with b2). Dividing by that takes the bias away:

    m_hat = m_t / (1 - b1^t)             v_hat = v_t / (1 - b2^t)

Each weight changes by about lr, however large its gradient is:

    w_t = w - lr m_hat / (sqrt(v_hat) + eps)

Weight decay is added to the gradient in Adam: g + weight_decay w takes the place of g. So a weight decays less the
larger its gradients are. AdamW decays the weight itself ("decoupled"): (1 - lr weight_decay) w takes the place of w.

Memory: two numbers for each parameter, beside its gradient. All arrays have the shape of the parameter.
Sources: Kingma, Ba 2014, arXiv:1412.6980, algorithm 1; Loshchilov, Hutter 2017, arXiv:1711.05101, algorithm 2, with the
decay scaled by lr as in PyTorch.
"""

from __future__ import annotations

import numpy as np

from minillm.cuda.adamw import update as cuda_update
from minillm.errors import InputError
from minillm.fast import adamw as fast
from minillm.optim.optimizer import Optimizer


def adamw_update(w, g, m, v, *, t, lr, betas, eps, weight_decay):
    """w_t, m_t and v_t of AdamW, in the shape of w; t counts from 1."""
    beta1, beta2 = betas
    m_t = beta1 * m + (1 - beta1) * g
    v_t = beta2 * v + (1 - beta2) * g * g
    m_hat = m_t / (1 - beta1**t)
    v_hat = v_t / (1 - beta2**t)
    w_t = (1 - lr * weight_decay) * w - lr * m_hat / (np.sqrt(v_hat) + eps)
    return w_t, m_t, v_t


def adam_update(w, g, m, v, *, t, lr, betas, eps, weight_decay):
    """w_t, m_t and v_t of Adam, in the shape of w; t counts from 1."""
    decayed_g = g + weight_decay * w
    return adamw_update(w, decayed_g, m, v, t=t, lr=lr, betas=betas, eps=eps, weight_decay=0.0)


class AdamW(Optimizer):
    """Adam with decoupled weight decay; the formula is at the top of this file.

    `parameters` is a list of parameters, or of groups {"params": [...], "weight_decay": ...} as in PyTorch.
    """

    moment_names = ("exp_avg", "exp_avg_sq")
    kernel = "adamw"
    update = staticmethod(adamw_update)
    fast_update = staticmethod(fast.adamw_update)
    cuda_update = staticmethod(cuda_update)

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        super().__init__(parameters, lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def check_options(self, options):
        """Raise InputError for an option out of range, eps and betas among them."""
        super().check_options(options)
        self._check_least(options, "eps", "0 or more")
        betas = options["betas"]
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise InputError(f"{type(self).__name__}: betas are {betas}; give two numbers of at least 0 and below 1")


class Adam(AdamW):
    """Adam, with weight decay as a part of the gradient; the formula is at the top of this file."""

    kernel = ""
    update = staticmethod(adam_update)
    fast_update = staticmethod(fast.adam_update)

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(parameters, lr, betas, eps, weight_decay)
