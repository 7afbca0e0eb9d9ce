"""The step of optim/sgd.py in place: the weights and moments given are overwritten."""

from __future__ import annotations


def sgd_update(w, g, b, *, t, lr, momentum, weight_decay):
    b *= momentum
    b += g
    if weight_decay:
        b += weight_decay * w
    w -= lr * b
