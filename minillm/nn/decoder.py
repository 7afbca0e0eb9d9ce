"""Decoder: the base of models that predict the next token, for generation and parallel training."""

from __future__ import annotations

from typing import Any

from minillm import backend
from minillm.autograd import Tensor
from minillm.backend import Array
from minillm.device import like
from minillm.errors import InputError, ShapeError
from minillm.nn.attention import KVCache
from minillm.nn.module import Module


class Decoder(Module):
    """A model of the next token. What `generate`, beam search and a pipeline call is written out in each model's file:

    - `forward(ids, starts)`: logits (B, T, V); `loss(ids, targets, reduction, starts)`: their cross-entropy;
    - `features(ids, cache, starts)`: what the output layer reads, (B, T, C); `logits(features)`: the output layer;
    - `new_cache(batch, padding)`: an empty KVCache for each block, with room for the whole context;
    - for a pipeline, `features` in parts: `embed(ids, cache)`, `blocks(x, cache)` and the last norm `ln_f`; the list of
      blocks `h`, and `output_weight` (V, C).

    starts: (B, T), given where several texts share a sequence (data/packing.py): for each position, where its text
    begins. Each text is then computed as if it stood alone.
    eos_ids: the tokens that end a text, as far as the model's files name them; give them to `generate` as `stop`.
    """

    config: Any
    eos_ids: tuple[int, ...] = ()

    def next_logits(self, ids: Any, cache: list[KVCache]) -> Tensor:
        """Logits (B, V) of the token after ids (B, T). The ids follow the tokens in the cache, and are added to it."""
        return self.logits(self.features(ids, cache)[:, -1])

    def keeps_cache(self, start: int, stop: int) -> bool:
        """True if keys and values that were cached with `start` tokens stay valid with `stop`; else start again."""
        return True

    def checked_positions(self, ids: Any, cache: list[KVCache] | None) -> tuple[Array, int, int]:
        """The ids as an array (B, T), the position of their first token, and the position after their last.

        Raises: ShapeError if ids are not 2-dimensional, or more tokens than the context.
        """
        ids = ids.data if isinstance(ids, Tensor) else backend.as_array(ids)
        if ids.ndim != 2:
            raise ShapeError(
                f"{type(self).__name__}: ids have shape {ids.shape}; give (B, T), such as ids[None] for one sequence"
            )
        start = cache[0].length if cache else 0
        stop = start + ids.shape[1]
        if self.config.context < stop:
            raise ShapeError(
                f"{type(self).__name__}: ids have T={stop}{' with the cache' if start else ''}, but the context is "
                f"{self.config.context}; give at most {self.config.context}"
            )
        return ids, start, stop

    def checked_starts(self, starts: Any, ids: Array, cache: list[KVCache] | None) -> Array | None:
        """The starts as an array (B, T) where the ids are, or None.

        Raises: ShapeError for another shape; InputError if there is a cache, whose padding says such things.
        """
        if starts is None:
            return None
        starts = starts.data if isinstance(starts, Tensor) else backend.as_array(starts)
        if starts.shape != ids.shape:
            raise ShapeError(f"{type(self).__name__}: starts have shape {starts.shape}, but ids {ids.shape}")
        if cache:
            raise InputError(f"{type(self).__name__}: starts are for texts without a cache; leave out one of the two")
        return like(starts, ids)
