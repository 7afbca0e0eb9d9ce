"""Log-softmax by kernels/softmax.cu, for rows along any axis."""

from __future__ import annotations

from minillm.cuda.softmax import launch_along
from minillm.ops.log_softmax import Saved

KERNEL = "softmax"


def forward(x, *, axis):
    """log p = x - log sum of e^x along the axis, in the shape of x."""
    if x.size == 0:
        return NotImplemented
    log_p = launch_along("log_softmax_forward", axis, x)
    return log_p, Saved(log_p, axis)


def backward(dlog_p, saved):
    """dx = dlog_p - p (sum of dlog_p) along the axis."""
    return (launch_along("log_softmax_backward", saved.axis, dlog_p, saved.log_p),)
