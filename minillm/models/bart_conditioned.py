"""A BART that writes a target token by token, for sources that it has encoded once.

`Conditioned` is a model of the next token, as `minillm.generate` wants it. Keys and values of the sources for each
block's attention to the memory are computed when it is made, and never again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minillm import ops
from minillm.autograd import Tensor, no_grad
from minillm.backend import Array, as_array
from minillm.device import like
from minillm.errors import ShapeError
from minillm.nn import Decoder, KVCache

KeysAndValues = tuple[Tensor, Tensor]


class SourceCache(KVCache):
    """A KVCache that also holds, for each row, the keys and values of the source that the row belongs to.

    memory: keys and values (S, H, length, D) of all sources; source_lengths: (S,) or None; sources: (B,), the index of
    each row's source.
    """

    def __init__(
        self, memory: KeysAndValues, source_lengths: Array | None, sources: Array, context: int, padding: Array | None
    ):
        _, heads, _, head_size = memory[0].shape
        super().__init__(len(sources), heads, context, head_size, memory[0].data, padding)
        self.memory, self.lengths_of_sources, self.sources = memory, source_lengths, sources
        self._follow()

    def select(self, rows: Array) -> None:
        """Keep the rows with these numbers, in this order; a number may be missing, or come twice."""
        super().select(rows)
        before, self.sources = self.sources, self.sources[rows]
        if not np.array_equal(before, self.sources):  # they stay equal if beams of one source change places
            self._follow()

    def _follow(self) -> None:
        self.keys_and_values, self.source_lengths = at_rows(self.memory, self.lengths_of_sources, self.sources)


def at_rows(memory: KeysAndValues, lengths: Array | None, sources: Array) -> tuple[KeysAndValues, Array | None]:
    """Keys and values, and the length, of each row's source."""
    keys, values = memory
    if np.array_equal(sources, np.arange(len(keys.data))):
        return memory, lengths
    rows = like(sources, keys.data)
    return (Tensor(keys.data[rows]), Tensor(values.data[rows])), None if lengths is None else lengths[rows]


class Conditioned(Decoder):
    """A model of the next token that has encoded S sources; `Bart.conditioned` makes it.

    Each source has the same number of rows in ids, one source after the other: with S = 2 and B = 6, rows 0, 1 and 2
    belong to the first. The weights and the mode (training or evaluation) are those of the Bart; keys and values of the
    sources are never computed again.
    """

    def __init__(self, model: Any, source: Any, source_lengths: Any = None):
        self.model, self.config = model, model.config
        was_training = model.training
        model.eval()
        try:
            with no_grad():
                memory = model.encode(source, source_lengths)
                self.memory = model.keys_and_values(memory)
        finally:
            model.train(was_training)
        self.source_lengths: Array | None = None
        if source_lengths is not None:
            lengths = source_lengths.data if isinstance(source_lengths, Tensor) else as_array(source_lengths)
            self.source_lengths = like(lengths, memory.data)

    @property
    def training(self) -> bool:  # type: ignore[override]
        """The mode of the Bart: True if dropout acts."""
        return self.model.training

    @training.setter
    def training(self, mode: bool) -> None:
        self.model.training = mode

    @property
    def output_weight(self) -> Tensor:
        """Output-projection weight, (V, C): the token table."""
        return self.model.wte.weight

    @property
    def eos_ids(self) -> tuple[int, ...]:  # type: ignore[override]
        """The tokens that end a text, as the Bart has them."""
        return self.model.eos_ids

    def new_cache(self, batch: int = 1, padding: Array | None = None) -> list[KVCache]:
        """An empty cache for each block, with room for the whole context.

        batch: S k rows, k for each source; padding: as in KVCache.
        """
        sources = self._sources(batch)
        return [
            SourceCache(memory, self.source_lengths, sources, self.config.context, padding) for memory in self.memory
        ]

    def features(self, ids: Any, cache: list[Any] | None = None) -> Tensor:
        """Input of the output layer, (B, T, C). With a cache, the ids follow the tokens in it, and are added to it."""
        ids, start, stop = self.checked_positions(ids, cache)
        positions, visible = np.arange(start, stop, like=ids), None
        if not cache:
            found = [at_rows(memory, self.source_lengths, self._sources(len(ids))) for memory in self.memory]
            return self.model.decode(ids, positions, [one for one, _ in found], found[0][1])
        if cache[0].padding is not None:
            positions = np.maximum(positions - cache[0].padding[:, None], 0)  # (B, T)
            visible = cache[0].visible(stop)
        keys_and_values = [entry.keys_and_values for entry in cache]
        return self.model.decode(ids, positions, keys_and_values, cache[0].source_lengths, cache, visible)

    def forward(self, ids: Any) -> Tensor:
        return self.logits(self.features(ids))  # (B, T, V)

    def loss(self, ids: Any, targets: Any, reduction: str = "mean") -> Tensor:
        """Cross-entropy of the logits against targets (B, T), in nats per token; a target of -100 does not count."""
        return ops.cross_entropy(self(ids), targets, reduction=reduction, overwrite=True, dim=-1)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (..., V) of features (..., C)."""
        return self.model.logits(x)

    def _sources(self, batch: int) -> Array:
        """The source index of each batch row."""
        count = len(self.memory[0][0].data)
        if batch % count:
            raise ShapeError(
                f"Bart: there are {count} sources for {batch} rows; give each source the same number of rows"
            )
        return np.repeat(np.arange(count), batch // count)
