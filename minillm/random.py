"""Counter-based random bits: the n-th number of a stream is a function of (seed, n), so none is ever stored.

Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") turns a key and a counter into 256 random
bits by ten rounds of multiplication. Any part of a stream can be made at any time, in any order, on any device: a
dropout mask is made again in the backward instead of being kept, and resuming a run needs two integers.

The stream of a seed is that of `np.random.Philox(key=seed)`: block b (from 0) holds four 64-bit words, the cipher of
counter b + 1; each word gives two 32-bit numbers, the low half first.

If a batch or the heads of attention are split over processes, each makes only its part of a mask, which `part` names.
All of them advance by the whole mask, so their streams stay equal, and the masks are those of a single process.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np

from minillm import backend
from minillm.backend import Array
from minillm.errors import InputError

BLOCK = 8  # 32-bit numbers per counter value


class Generator:
    """A position in a stream of random numbers: `seed`, and `counter`, the number of blocks used so far."""

    def __init__(self, seed: int = 0):
        self.seed = seed
        self.counter = 0
        self.rows: tuple[int, int] | None = None  # this process's first row, and the total number of rows
        self.heads: tuple[int, int] | None = None  # this process's first head, and the total number of heads

    def copy(self) -> Generator:
        """A generator at the same position, for the same part."""
        other = Generator(self.seed)
        vars(other).update(vars(self))
        return other

    def reserve(self, count: int) -> tuple[int, int]:
        """Reserve `count` 32-bit numbers: returns (seed, counter) of the first, and advances."""
        start = self.counter
        self.counter += -(-count // BLOCK)
        return self.seed, start

    def rows_of(self, function: str, shape: tuple[int, ...]) -> tuple[int, int]:
        """This process's first row, and the total number of rows, for its part of this shape; 0, 1 without axis 0.

        Raises: InputError if the part does not lie within the whole.
        """
        return _checked(function, "rows", shape[0], self.rows) if shape else (0, 1)

    def heads_of(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """This process's first head, and the total number of heads, for queries (B, H, T, D)."""
        return _checked("attention", "heads", shape[1], self.heads)

    def numpy(self) -> np.random.Generator:
        """A NumPy generator for initial weights and sampling, on a stream of its own."""
        seed, counter = self.reserve(1)
        key = np.array(
            [seed & 0xFFFFFFFFFFFFFFFF, counter + 1], np.uint64
        )  # NumPy would convert a list by way of float64
        return np.random.Generator(np.random.Philox(key=key))

    def state(self) -> dict[str, int]:
        """The state for a checkpoint."""
        return {"seed": self.seed, "counter": self.counter}

    def set_state(self, state: dict[str, int]) -> None:
        """Continue from the position of a `state()`."""
        self.seed, self.counter = state["seed"], state["counter"]


default = Generator()  # the stream of dropout and of initial weights


def _checked(function: str, name: str, count: int, place: tuple[int, int] | None) -> tuple[int, int]:
    first, total = place or (0, count)
    if not 0 <= first <= first + count <= total:
        raise InputError(
            f"{function}: {count} {name} from {first} on are not a part of {total}; random.part({name}=...) takes "
            "the first, and the total number"
        )
    return first, total


@contextlib.contextmanager
def using(generator: Generator) -> Iterator[None]:
    """Make `generator` the default stream within this context."""
    global default
    before, default = default, generator
    try:
        yield
    finally:
        default = before


@contextlib.contextmanager
def part(rows: tuple[int, int] | None = None, heads: tuple[int, int] | None = None) -> Iterator[None]:
    """Make dropout and attention take their part of the mask of a larger tensor, until the block ends.

    rows: (first, total) of axis 0; heads: (first, total) of attention's axis 1. None changes nothing.
    The block should contain the forward; a backward remembers its part of the mask.
    """
    generator, before = default, (default.rows, default.heads)
    generator.rows, generator.heads = rows or before[0], heads or before[1]
    try:
        yield
    finally:
        generator.rows, generator.heads = before


def manual_seed(seed: int) -> Generator:
    """Start the default stream again from `seed`; returns it."""
    if not 0 <= seed < 1 << 64:
        raise InputError(f"manual_seed: seed is {seed}; give a whole number from 0 to 2^64 - 1")
    default.set_state({"seed": int(seed), "counter": 0})
    return default


def bits(seed: int, counter: int, count: int) -> Array:
    """Return `count` random uint32 of the stream of `seed`, from block `counter` on."""
    words = np.random.Philox(key=seed, counter=counter).random_raw(-(-count // 2))
    return words.astype("<u8", copy=False).view("<u4")[:count]


def keep_scale(seed: int, counter: int, shape: tuple[int, ...], p: float, dtype: np.dtype, skip: int = 0) -> Array:
    """Make a dropout mask with its scale: 0 with probability p, else 1/(1-p), in `shape`.

    Element i is dropped if the i-th number of the stream, not counting the first `skip`, is below p 2^32.
    """
    counter, skip = counter + skip // BLOCK, skip % BLOCK
    size = skip + math.prod(shape)
    threshold = np.uint32(min(round(p * 2**32), 2**32 - 1))
    kept = dtype.type(1 / (1 - p))
    chunk = min(8192, -(-max(1, size) // BLOCK) * BLOCK)  # so that every row of `scale` starts a block of the stream
    scale = np.empty((-(-size // chunk), chunk), dtype)  # (rows, chunk), at least `size` elements

    def fill(rows: slice) -> None:
        numbers = bits(seed, counter + rows.start * chunk // BLOCK, (rows.stop - rows.start) * chunk)  # (n chunk,)
        np.multiply(numbers.reshape(-1, chunk) >= threshold, kept, out=scale[rows])

    backend.row_blocks(fill, scale)
    return scale.reshape(-1)[skip:size].reshape(shape)
