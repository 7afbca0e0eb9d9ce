"""XLNet's attention: of two streams, with relative positions and segments; its derivation stands atop xlnet.py."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minillm import ops
from minillm.autograd import Parameter, Tensor
from minillm.backend import Array
from minillm.models.xlnet_config import XLNetConfig
from minillm.nn import Dropout, Linear, Module, join_heads, split_heads


class AttentionInputs(NamedTuple):
    """The inputs of attention that are equal in every block: distances, segments and masks."""

    distances: Tensor  # (1, T + Tk, C), the sinusoids of Tk, ..., -(T - 1); (2, ...) with those of their negatives
    directions: Array | None  # (B,), 0 or 1, which of the two each text uses; None if there is one
    differs: Array | None  # (B, 1, T, Tk), True for two tokens of different segments; None without segments
    content_mask: Array | None  # (B, 1, T, Tk), True for keys that the content of a position sees; None: all keys
    query_mask: Array | None  # (B, 1, T, Tk), True for keys that the query of a position sees, its own not among them
    target_mapping: Tensor | None  # (B, 1, P, T), a 1 at the position of each token to predict


def sinusoids(distances: Array, channels: int) -> Array:
    """sin(d w_i) for all i, then cos(d w_i), with w_i = 10000^(-2i/C): (..., C) for distances d (...), in float64.

    Source: Vaswani et al. 2017, section 3.5, where the two alternate.
    """
    angle = distances[..., None] * 10000 ** (-np.arange(0, channels, 2) / channels)
    return np.concatenate([np.sin(angle), np.cos(angle)], -1)


def relative_shift(x: Tensor) -> Tensor:
    """Scores with a column for each key, from scores with a column for each distance: out[t, s] = x[t, T - t + s].

    With R columns, this is element t R + T - t + s = T + t (R - 1) + s in memory. So skip the first T elements, cut the
    rest into rows of R - 1, and keep Tk of each. (Column 0 is never read; it makes this work for one query, too.)

    Shapes: x (B, H, T, T + Tk), whose column i belongs to distance Tk - i; result (B, H, T, Tk).
    Source: Dai et al. 2019, appendix B.
    """
    B, H, T, R = x.shape
    return x.reshape(B, H, T * R)[..., T:].reshape(B, H, T, R - 1)[..., : R - T]


class RelativeAttention(Module):
    """Multi-head attention with distances and segments, of one stream or of two.

    Its linear layers have no biases; three learned vectors are added to the queries instead.
    """

    def __init__(self, config: XLNetConfig):
        C = config.channels
        self.q = Linear(C, C, bias=False)
        self.kv = Linear(C, 2 * C, bias=False)
        self.r = Linear(C, C, bias=False)  # keys of distances
        self.proj = Linear(C, C, bias=False)
        self.r_w_bias, self.r_r_bias, self.r_s_bias = (Parameter(np.zeros(C, np.float32)) for _ in range(3))
        self.seg_embed = Parameter(np.zeros((2, C), np.float32))  # keys of the same and of the other segment
        self.dropout = Dropout(config.dropout)
        self.heads = config.heads

    def forward(
        self, h: Tensor, g: Tensor | None, memory: Tensor | None, inputs: AttentionInputs
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of h (B, T, C), and of g (B, P, C) if there is one, to h and the memory (B, M, C)."""
        H = self.heads
        seen = h if memory is None else ops.concat([memory, h], 1)  # (B, Tk, C)
        k, v = (split_heads(part, H) for part in self.kv(seen).split(h.shape[-1], dim=-1))  # (B, H, Tk, D)
        r = split_heads(self.r(inputs.distances), H)  # (1 or 2, H, T + Tk, D)
        if inputs.directions is not None:
            r = r.index_select(0, inputs.directions)  # (B, H, T + Tk, D)
        q = split_heads(self.q(h), H)  # (B, H, T, D)
        y = self.dropout(self.proj(join_heads(self.attend(q, k, v, r, inputs.differs, inputs.content_mask))))
        if g is None or inputs.target_mapping is None:
            return y, None
        q = inputs.target_mapping.transpose(-1, -2) @ split_heads(self.q(g), H)  # (B, H, T, D), each at its position
        found = inputs.target_mapping @ self.attend(q, k, v, r, inputs.differs, inputs.query_mask)  # (B, H, P, D)
        return y, self.dropout(self.proj(join_heads(found)))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, r: Tensor, differs: Array | None, visible: Array | None
    ) -> Tensor:
        """softmax(scores) V, (B, H, T, D), with the scores at the top of xlnet.py."""
        H, D = self.heads, q.shape[-1]

        def biased(bias: Tensor) -> Tensor:
            return (q + bias.reshape(H, 1, D)) * D**-0.5

        scores = biased(self.r_w_bias) @ k.transpose(-1, -2)  # (B, H, T, Tk)
        scores = scores + relative_shift(biased(self.r_r_bias) @ r.transpose(-1, -2))
        if differs is not None:
            segments = biased(self.r_s_bias) @ self.seg_embed.reshape(2, H, D).permute(1, 2, 0)  # (B, H, T, 2)
            scores = scores + ops.where(differs, segments[..., 1:], segments[..., :1])
        if visible is None:
            return self.dropout(scores.softmax()) @ v
        sees_any = visible.any(-1, keepdims=True)  # a softmax over nothing would be NaN
        scores = ops.where(visible | ~sees_any, scores, -np.inf)
        return ops.where(sees_any, self.dropout(scores.softmax()) @ v, 0.0)

    def extra_repr(self) -> str:
        return f"heads={self.heads}"
