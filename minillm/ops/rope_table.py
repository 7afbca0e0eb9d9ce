"""Angles of rotary position embedding: the tables that `rope` takes, and how they are stretched for longer texts.

Pair i of D/2 turns by t base^(-2i/D) at position t, so the first pair turns fastest, a radian a position, and the last
one hardly at all. A model that was trained on short texts meets unknown angles in long ones; `RopeScaling` holds the
ways in which published models avoid that.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm.backend import Array
from minillm.errors import InputError

SCALINGS = ("linear", "dynamic", "llama3", "yarn", "longrope")


class RopeScaling(NamedTuple):
    """A way to stretch the angles of a model trained on `original_context` positions to `factor` times as many.

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
        """True if the angles of all positions change when a text grows beyond the original context."""
        return self.kind in ("dynamic", "longrope")

    def applied(self, frequency: Array, base: float, length: int = 0) -> tuple[Array, float]:
        """The stretched frequencies (D/2,), in radians a position, and the amplitude of cos and sin.

        length: the length of the whole text, in tokens.
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
            amplitude = self.attention_factor
            if amplitude is None:
                amplitude = float(np.sqrt(1 + np.log(max(1.0, self.factor)) / np.log(self.original_context)))
            return frequency / (self.long if length > self.original_context else self.short), amplitude
        if self.kind == "llama3":
            turns = self.original_context * frequency / (2 * np.pi)  # in the original context
            low, high = self.low_frequency_factor, self.high_frequency_factor
            keep = np.clip((turns - low) / (high - low), 0, 1)
            return keep * frequency + (1 - keep) * stretched, 1.0
        keep = self._kept_by_yarn(len(frequency), base)
        amplitude = self.attention_factor
        if amplitude is None:
            amplitude = 0.1 * float(np.log(self.factor)) + 1 if self.factor > 1 else 1.0
        return keep * frequency + (1 - keep) * stretched, amplitude

    def _kept_by_yarn(self, pairs: int, base: float) -> Array:
        """The share of each pair's frequency that stays as it is: 1 for fast pairs, 0 for slow ones, a line between."""

        def pair(turns: float) -> float:
            """The (fractional) number of the pair that turns so many times: turns = context base^(-2i/D) / 2 pi."""
            return pairs * np.log(self.original_context / (turns * 2 * np.pi)) / np.log(base)

        first = max(np.floor(pair(self.beta_fast)), 0)
        last = min(np.ceil(pair(self.beta_slow)), 2 * pairs - 1)
        width = last - first if first != last else 0.001
        return 1 - np.clip((np.arange(pairs) - first) / width, 0, 1)


def rope_table(
    length: int, head_size: int, base: float = 10000.0, start: int = 0, scaling: RopeScaling | None = None
) -> tuple[Array, Array]:
    """cos and sin (length, head_size / 2) of the angles t base^(-2i/D), for positions from `start` on, in float64."""
    frequency, amplitude = base ** (-np.arange(0, head_size, 2) / head_size), 1.0  # (D/2,)
    if scaling is not None:
        frequency, amplitude = scaling.applied(frequency, base, start + length)  # (D/2,)
    angle = np.outer(np.arange(start, start + length), frequency)  # (T, D/2)
    return amplitude * np.cos(angle), amplitude * np.sin(angle)


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
