"""Limits: the backward masks its gradient by a product of bits (see fast/where.py)."""

from __future__ import annotations

from minillm.fast.where import masked
from minillm.ops.choice import clip_forward as forward
from minillm.ops.choice import sides
from minillm.ops.operands import is_number

__all__ = ["backward", "forward"]


def backward(dy, saved):
    """dy where an operand is the output, else 0, for each operand that is an array."""
    taken = zip(saved, sides(*saved), strict=True)  # each operand, and where it is the output
    return tuple(None if is_number(x) else masked(dy, side) for x, side in taken)
