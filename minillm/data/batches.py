"""Batches of (inputs, targets) from a long row of token ids, in an order that is computed, never saved.

Training reads the row in epochs. For each epoch the row is cut, from a random phase, into windows of T tokens that do
not overlap, and the windows are visited in a random order. A model predicts each next token, so a window takes T + 1
tokens: its inputs are the first T of them, its targets the last T. The last target of one window is thus the first
input of the next, and no target occurs twice in an epoch. The phase differs between epochs, so that a token is not
met forever at the same position with the same left context.

    phase   windows, T = 4, of the row 0 1 2 3 4 5 6 7 8 9 10 11 12
      0     0-4   4-8
      3                 3-7   7-11
      4                 4-8   8-12

All epochs have the same number of windows, one less than would fit, so that the phase has room to move. It is drawn
uniformly from 0 to T - 1; if the windows would still end within the row, a coin decides if T is added. So every token
is read in some epoch, including the first and the last.

Phase and order of an epoch come from a counter-based generator keyed by (seed, epoch). So batch number `index` is a
function of the seed and `index` alone: a run that stopped after k batches resumes with `batch(k)` and needs no saved
generator state. Nothing but the order of the current epoch is held, 8 bytes a window: 8 MB for a billion tokens at
T = 1024, 125 MB at T = 64.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import numpy as np

from minillm.data.shards import Tokens
from minillm.errors import DtypeError, InputError, ShapeError

OWN_KEYS = 1 << 63  # the second words of the keys start here; minillm.random, with the same seed, uses small ones


def shuffled(count: int, batch_size: int, seed: int, index: int) -> np.ndarray:
    """The numbers, below `count`, of the examples in batch number `index`, (batch_size,).

    In each epoch every example comes once, in an order drawn by (seed, epoch); a batch may take its last examples from
    the next epoch.
    Raises: InputError for a batch number below 0, or no examples.
    """
    first = operator.index(index) * batch_size
    if first < 0 or count < 1:
        raise InputError(f"shuffled: index is {index} and count {count}; give an index of 0 or more, and examples")
    epochs, places = np.divmod(np.arange(first, first + batch_size), count)  # (batch_size,) each
    orders = {epoch: epoch_generator(seed, epoch).permutation(count) for epoch in np.unique(epochs).tolist()}
    return np.array([orders[epoch][place] for epoch, place in zip(epochs.tolist(), places.tolist(), strict=True)])


def epoch_generator(seed: int, epoch: int) -> np.random.Generator:
    """The generator of the random numbers of an epoch."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, OWN_KEYS + epoch], np.uint64)))


class Batches:
    """Batches of `batch_size` windows of `context` tokens, each batch computed from its number.

    With N tokens, B = batch_size and T = context: where `shuffle` is true, each epoch draws a phase p and visits the
    windows that start at p, p + T, p + 2·T, ... in a random order. Every epoch has the same number of windows,
    `windows_per_epoch` = max(1, N // T − 1), which fit after any phase. p is below T, or, by a coin toss, T larger if
    there is room. So at most 2·T − 2 of the N − 1 targets, at the two ends of the row, are left out of an epoch, and
    no target is left out of all epochs. If `shuffle` is false, the windows start at 0, T, 2·T, ... and come in this
    order, (N − 1) // T of them, over and over. A batch may take its first windows from one epoch and the others from
    the next.

    `tokens` is a Tokens or a one-dimensional array of integers. `to_the_end` is false for runs that began before
    the coin toss existed: they continue without the last N mod T tokens.

    Raises: InputError where there are fewer than context + 1 tokens, or an argument is out of range; DtypeError and
    ShapeError where the array is not a row of integers.
    """

    def __init__(
        self,
        tokens: Tokens | np.ndarray,
        batch_size: int,
        context: int,
        seed: int,
        shuffle: bool = True,
        to_the_end: bool = True,
    ) -> None:
        if isinstance(tokens, np.ndarray) and not np.issubdtype(tokens.dtype, np.integer):
            raise DtypeError(f"Batches: tokens have dtype {tokens.dtype}, expected integers; encode the text first")
        if isinstance(tokens, np.ndarray) and tokens.ndim != 1:
            raise ShapeError(f"Batches: tokens have shape {tokens.shape}, expected one dimension; flatten them first")
        if batch_size < 1 or context < 1:
            raise InputError(f"Batches: batch_size={batch_size} and context={context}, expected 1 or more of each")
        if not 0 <= seed < 1 << 64:
            raise InputError(f"Batches: seed is {seed}, expected 0 <= seed < 2**64")
        if len(tokens) < context + 1:
            raise InputError(
                f"Batches: there are {len(tokens)} tokens, but context={context} needs {context + 1} or more; "
                "use a smaller context or more text"
            )
        self.tokens = tokens
        self.batch_size = batch_size
        self.context = context
        self.seed = seed
        self.shuffle = shuffle
        self.windows_per_epoch = max(1, len(tokens) // context - 1) if shuffle else (len(tokens) - 1) // context
        self.to_the_end = to_the_end
        self._drawn: tuple[int, int, np.ndarray] | None = None  # (epoch, phase, order) of the epoch last used

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches that cover every window once: windows_per_epoch / batch_size, rounded up."""
        return -(-self.windows_per_epoch // self.batch_size)

    def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return batch number `index`, which depends on nothing but the arguments of `Batches` and on `index`.

        Shapes: inputs (B, T) and targets (B, T), int64, where targets[b, t] is the token after inputs[b, t].
        """
        first = operator.index(index) * self.batch_size
        if first < 0:
            raise InputError(f"Batches.batch: index is {index}, expected 0 or more; batches count from the start")
        epochs, positions = np.divmod(np.arange(first, first + self.batch_size), self.windows_per_epoch)
        starts = [self._epoch_starts(epoch, positions[epochs == epoch]) for epoch in range(epochs[0], epochs[-1] + 1)]
        return self._gather(np.concatenate(starts))  # from starts (B,)

    def evaluation_batches(self, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield `count` batches whose windows lie evenly from the first token to the last, the same at every call.

        Window i of n = count · B starts at i · (N − T − 1) // (n − 1), whatever the seed and `shuffle`. If the windows
        do not all fit side by side, they overlap.

        Shapes: as `batch`.
        """
        if count < 1:
            raise InputError(f"Batches.evaluation_batches: count is {count}, expected 1 or more")
        windows = count * self.batch_size
        starts = np.arange(windows) * (len(self.tokens) - self.context - 1) // max(1, windows - 1)
        return (self._gather(batch) for batch in starts.reshape(count, self.batch_size))

    def _epoch_starts(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Start tokens of the windows at these positions of an epoch."""
        if not self.shuffle:
            return positions * self.context
        cached = self._drawn
        if cached is None or cached[0] != epoch:
            generator = epoch_generator(self.seed, epoch)
            room = len(self.tokens) - 1 - self.windows_per_epoch * self.context  # tokens that the windows leave over
            phase = int(generator.integers(min(room + 1, self.context)))
            order = generator.permutation(self.windows_per_epoch)
            if self.to_the_end and phase + self.context <= room:
                phase += self.context * int(generator.integers(2))
            cached = self._drawn = (epoch, phase, order)
        _, phase, order = cached
        return phase + order[positions] * self.context

    def _gather(self, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The inputs and targets, (B, T) each, of the windows that start at these tokens, (B,)."""
        windows = np.stack([self.tokens[start : start + self.context + 1] for start in starts.tolist()])  # (B, T + 1)
        return windows[:, :-1].astype(np.int64), windows[:, 1:].astype(np.int64)  # two copies, safe to write to
