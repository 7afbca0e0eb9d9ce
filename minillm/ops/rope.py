"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864, equation 15).

The channels of a head are D/2 pairs; at position t, pair i is a point in the plane that is turned by the angle
t base^(-2i/D). Turned queries and keys meet in a dot product that depends only on the distance of their positions.

    y1 = x1 cos - x2 sin        dx1 =  dy1 cos + dy2 sin
    y2 = x1 sin + x2 cos        dx2 = -dy1 sin + dy2 cos

The backward turns back: a rotation's transpose is its inverse. Which channels form a pair is a matter of layout:

- "half": channel i with channel i + D/2 (Hugging Face's Llama);
- "interleaved": channel 2i with channel 2i + 1 (the paper, and Meta's Llama).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array, contiguous, row_blocks
from minillm.cuda import get_kernel
from minillm.cuda.launch import BLOCKS, THREADS
from minillm.device import like
from minillm.errors import InputError, ShapeError, check_floating, check_shapes


class Saved(NamedTuple):
    """The turn at each position."""

    cos: Array
    sin: Array
    layout: str


def rope_forward(x, *, cos, sin, layout):
    return _rotate(x, cos, sin, layout), Saved(cos, sin, layout)


def rope_backward(dout, saved):
    return (_rotate(dout, saved.cos, -saved.sin, saved.layout),)


def _rotate(x: Array, cos: Array, sin: Array, layout: str) -> Array:
    half = x.shape[-1] // 2
    first, second = (np.s_[..., :half], np.s_[..., half:]) if layout == "half" else (np.s_[..., 0::2], np.s_[..., 1::2])
    y = np.empty_like(x)

    def formula(items):
        (x1, x2), (y1, y2) = ((array[items][first], array[items][second]) for array in (x, y))
        np.subtract(x1 * cos, x2 * sin, out=y1)
        np.add(x1 * sin, x2 * cos, out=y2)

    if x.ndim > 2:
        row_blocks(formula, y)
    else:  # the first axis is that of the tables
        formula(slice(None))
    return y


def rope_forward_cuda(x, *, cos, sin, layout):
    if x.size == 0:
        return NotImplemented
    return _rotate_cuda(x, cos, sin, layout, direction=1), Saved(cos, sin, layout)


def rope_backward_cuda(dout, saved):
    return (_rotate_cuda(dout, saved.cos, saved.sin, saved.layout, direction=-1),)


def _rotate_cuda(x: Array, cos: Array, sin: Array, layout: str, direction: int) -> Array:
    x, cos, sin = contiguous(x), contiguous(cos), contiguous(sin)
    y = np.empty_like(x)
    length, pairs = cos.shape
    rows = x.size // (2 * pairs)
    threads = min(64, -(-pairs * cos.itemsize // 16))  # for a row; each takes 16 bytes of the tables at a time
    block = (threads, THREADS // threads)
    sizes = (np.int64(rows), np.int32(length), np.int32(pairs), cos.dtype.type(direction))
    kernel = get_kernel("rope.cu", "rope", x.dtype, layout.upper())
    kernel(min(BLOCKS, -(-rows // block[1])), block, (x, cos, sin, y, *sizes))
    return y


ROPE = Op("rope", rope_forward, rope_backward, cuda=(rope_forward_cuda, rope_backward_cuda))


def rope(x: Tensor, cos: Array, sin: Array, layout: str = "half") -> Tensor:
    """Turn each pair of channels by the angle of its position.

    Shapes: x (..., T, D) with D even, cos and sin (T, D/2), from `rope_table`.
    Saves: references to the tables.
    Raises: ShapeError for an odd D or tables that do not fit; InputError for an unknown layout.
    """
    if layout not in ("half", "interleaved"):
        raise InputError(f"rope: layout is {layout!r}; choose 'half' (Hugging Face) or 'interleaved' (Meta)")
    check_shapes("rope", x=("... T D", x))
    check_floating("rope", x=x)
    if x.shape[-1] % 2:
        raise ShapeError(f"rope: x has D={x.shape[-1]} channels per head; pairs need an even number")
    wanted = (x.shape[-2], x.shape[-1] // 2)
    for name, table in (("cos", cos), ("sin", sin)):
        if table.shape != wanted:
            raise ShapeError(
                f"rope: {name} has shape {table.shape}, but x of shape {x.shape} needs (T, D/2) = {wanted}"
            )
    precision = np.promote_types(x.dtype, np.float32)  # the tables of bfloat16 stay in float32
    cos, sin = (like(table.astype(precision, copy=False), x.data) for table in (cos, sin))
    return ROPE(x, cos=cos, sin=sin, layout=layout)


SCALINGS = ("linear", "dynamic", "llama3", "yarn", "longrope")


class RopeScaling(NamedTuple):
    """How the angles of a model trained on `original_context` positions are stretched to `factor` times as many.

    - "linear": all frequencies divided by the factor (Chen et al. 2023, arXiv:2306.15595).
    - "dynamic": nothing up to the original context; for a longer text of T tokens the base is multiplied by
      (factor T / original - (factor - 1))^(D / (D - 2)), so that the slowest pair turns as far as it did before.
    - "llama3": frequencies that turn less than `low_frequency_factor` times in the original context are divided by the
      factor, those that turn more than `high_frequency_factor` times stay, and between the two are mixed linearly.
    - "yarn": the same idea with the bounds `beta_slow` and `beta_fast`, mixed linearly by the number of the pair, and
      cos and sin are multiplied by `attention_factor`, 0.1 log(factor) + 1 where it is None (Peng et al. 2023,
      arXiv:2309.00071, section 3).
    - "longrope": each frequency is divided by its own number, one of `short` up to the original context and one of
      `long` for a longer text, and cos and sin are multiplied by `attention_factor`,
      sqrt(1 + log(factor) / log(original)) where it is None (Ding et al. 2024, arXiv:2402.13753).
    """

    kind: str
    factor: float
    original_context: int
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()

    @property
    def by_length(self) -> bool:
        """Whether the angles of all positions change when a text grows beyond the original context."""
        return self.kind in ("dynamic", "longrope")

    def applied(self, frequency: Array, base: float, length: int = 0) -> tuple[Array, float]:
        """The stretched frequencies (D/2,), in radians a position, and the factor of cos and sin.

        length: of the whole text, in tokens.
        """
        if self.kind not in SCALINGS:
            raise InputError(f"rope_table: the scaling is {self.kind!r}; choose one of {', '.join(SCALINGS)}")
        stretched = frequency / self.factor
        if self.kind == "linear":
            return stretched, 1.0
        if self.kind == "dynamic":
            # Pair i turns by base^(-2i/D) a position: a factor of the base is a power of it for each.
            longer = max(1.0, self.factor * length / self.original_context - (self.factor - 1))
            return frequency * longer ** (-np.arange(len(frequency)) / (len(frequency) - 1)), 1.0
        if self.kind == "longrope":
            factor = self.attention_factor
            if factor is None:
                factor = float(np.sqrt(1 + np.log(max(1.0, self.factor)) / np.log(self.original_context)))
            return frequency / (self.long if length > self.original_context else self.short), factor
        turns = self.original_context * frequency / (2 * np.pi)  # in the original context
        if self.kind == "llama3":
            low, high = self.low_frequency_factor, self.high_frequency_factor
            keep = np.clip((turns - low) / (high - low), 0, 1)
            return keep * frequency + (1 - keep) * stretched, 1.0
        # The (fractional) number of the pair that turns a given number of times: turns = context base^(-2i/D) / 2 pi.
        pairs = len(frequency)

        def pair(turns: float) -> float:
            return pairs * np.log(self.original_context / (turns * 2 * np.pi)) / np.log(base)

        first = max(np.floor(pair(self.beta_fast)), 0)
        last = min(np.ceil(pair(self.beta_slow)), 2 * pairs - 1)
        last += 0.001 * (first == last)
        keep = 1 - np.clip((np.arange(pairs) - first) / (last - first), 0, 1)
        factor = self.attention_factor
        if factor is None:
            factor = 0.1 * float(np.log(self.factor)) + 1 if self.factor > 1 else 1.0
        return keep * frequency + (1 - keep) * stretched, factor


def rope_table(
    length: int, head_size: int, base: float = 10000.0, start: int = 0, scaling: RopeScaling | None = None
) -> tuple[Array, Array]:
    """cos and sin (length, head_size / 2) of the angles t base^(-2i/D), for positions from `start` on, in float64."""
    frequency, factor = base ** (-np.arange(0, head_size, 2) / head_size), 1.0
    if scaling is not None:
        frequency, factor = scaling.applied(frequency, base, start + length)
    angle = np.outer(np.arange(start, start + length), frequency)
    return factor * np.cos(angle), factor * np.sin(angle)


def interleaved_to_half(weight: Array, head_size: int) -> Array:
    """The rows of a query or key projection for layout "interleaved", reordered for layout "half".

    In each head, rows 0, 2, 4, ... come first, then 1, 3, 5, ...: the same pairs, and so the same model. This is how
    Meta's checkpoints become Hugging Face's. Shapes: weight (H D, ...), also a bias (H D,).
    """
    by_pair = weight.reshape(-1, head_size // 2, 2, *weight.shape[1:])
    return np.ascontiguousarray(by_pair.swapaxes(1, 2)).reshape(weight.shape)


def half_to_interleaved(weight: Array, head_size: int) -> Array:
    """The way back from `interleaved_to_half`."""
    by_half = weight.reshape(-1, 2, head_size // 2, *weight.shape[1:])
    return np.ascontiguousarray(by_half.swapaxes(1, 2)).reshape(weight.shape)
