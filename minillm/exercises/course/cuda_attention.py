"""A CUDA kernel for attention that goes through the keys by tiles.

y = softmax(scale q k^T) v for every head, with q, k, v and y (heads, tokens, 16), C-contiguous, and every query
sees every key. A block of 32 threads has 32 queries of one head: blockIdx.x says which 32, blockIdx.y which head,
and thread i has query blockIdx.x * 32 + i, if there is one. The kernel never has the whole row of scores: it loads
32 keys and values into __shared__ memory, where all 32 queries use them, goes through these, and loads the next
tile.

So each thread keeps, for the keys so far, the largest score m, the sum of e^(score - m), and the sum of e^(score -
m) v, 16 numbers. When a larger score comes, m changes, and what was summed against the old one must follow. It runs
in the emulator; the check runs the threads in three orders. Shared memory holds NaN when a block begins; declare
each of its arrays in a line of its own.
"""

from __future__ import annotations

import math

import numpy as np

from minillm.exercises.kernel_exercise import BarrierError, KernelExercise
from minillm.ops.attention import attention_forward

D, TILE = 16, 32


def launch(run, code, q, k, v, scale):
    """Launch the kernel on arrays (heads, tokens, 16)."""
    heads, tokens, _ = q.shape
    numbers = np.int32(tokens), np.float32(scale)
    return "__shared__" in code, *run((-(-tokens // TILE), heads), TILE, (q, k, v), numbers)


def right(q, k, v, scale):
    options = dict(lengths=None, causal=False, scale=np.float32(scale), dropout=None)
    return True, True, True, attention_forward(q[None], k[None], v[None], None, **options)[0][0]


def cases(rng):
    for heads, tokens in ((1, 32), (1, 64), (2, 32), (2, 41)):
        q, k, v = rng.normal(size=(3, heads, tokens, D)).astype(np.float32)
        yield dict(q=q, k=k, v=v, scale=0.3)
    for sign in (1, -1):  # scores of about 145 and -145: e^145 overflows in float32, and e^-145 is 0
        yield dict(q=sign * (3 + 0.2 * q), k=3 + 0.2 * k, v=v, scale=1.0)


EXERCISE = KernelExercise(
    starter=launch,
    returns="uses_shared_memory same_in_every_order writes_inside y",
    right=right,
    cases=cases,
    kernel="attention",
    tolerance=3e-4,
    declaration="""
constexpr int D = 16, TILE = 32;

__global__ void __launch_bounds__(32)
    attention(const float* q, const float* k, const float* v, float* y, int tokens, float scale) {
    // replace this line
}
""",
    hints=(
        "Three loops: over tiles; in it, one that loads the tile, and one over the keys of the tile.",
        "Each thread loads one key and one value, 16 numbers each. A barrier before the tile is used, and one after.",
        "All sums were made with e^(score - m_old). Which factor turns that into e^(score - m_new)?",
        "A thread without a query must still load and reach every barrier; it only writes nothing at the end.",
        "The last tile may be shorter: its loop ends at the last key.",
    ),
    read="kernels/levels/attention_2_online.cu, then attention_3_tiles.cu",
)


def online(q, k, v, scale, *, factor_of_sum=True, factor_of_output=True, first=-math.inf, keys=None):
    """The kernel's way, with places for mistakes: tokens one after another, every query at once."""
    k, v = (k, v) if keys is None else keys(k, v)
    s = np.float32(scale) * q @ k.swapaxes(1, 2)
    largest = np.full((*q.shape[:2], 1), first, np.float32)
    total, out = np.zeros_like(largest), np.zeros_like(q)
    for j in range(k.shape[1]):
        now = np.maximum(largest, s[..., j : j + 1])
        factor, p = np.exp(largest - now), np.exp(s[..., j : j + 1] - now)
        total = total * (factor if factor_of_sum else 1) + p
        out = out * (factor if factor_of_output else 1) + p * v[:, j : j + 1]
        largest = now
    return out, total


def answer(out, total=1.0):
    return True, True, True, (out / total).astype(np.float32)


@EXERCISE.mistake(
    "No __shared__ memory is used: every thread loads every key itself. Load a tile once for all of them."
)
def no_tiles(q, k, v, scale):
    return False, *right(q, k, v, scale)[1:]


@EXERCISE.mistake(
    "The result depends on the order in which the threads run: a tile is used before all threads have loaded it, or "
    "the next one is loaded while some thread still uses it. Two barriers a tile are needed."
)
def barrier_missing(q, k, v, scale):
    return True, False, True, q


@EXERCISE.mistake(
    "Some threads wait at a barrier that others never reach. A thread without a query, or with fewer keys, must not "
    "return early: it still helps to load the tiles."
)
def returned_early(q, k, v, scale):
    if q.shape[1] % TILE:
        raise BarrierError("some threads have returned before __syncthreads")
    return right(q, k, v, scale)


@EXERCISE.mistake("The kernel writes outside y: in the last block there are threads that have no query.")
def written_outside(q, k, v, scale):
    return True, True, q.shape[1] % TILE == 0, right(q, k, v, scale)[3]


@EXERCISE.mistake("When a larger score comes, neither the sum nor the output is brought to the new maximum.")
def never_rescaled(q, k, v, scale):
    return answer(*online(q, k, v, scale, factor_of_sum=False, factor_of_output=False))


@EXERCISE.mistake("When a larger score comes, the sum follows the new maximum, but the output does not.")
def output_not_rescaled(q, k, v, scale):
    return answer(*online(q, k, v, scale, factor_of_output=False))


@EXERCISE.mistake("When a larger score comes, the output follows the new maximum, but the sum does not.")
def sum_not_rescaled(q, k, v, scale):
    return answer(*online(q, k, v, scale, factor_of_sum=False))


@EXERCISE.mistake("Only the first tile of keys is used.")
def first_tile_alone(q, k, v, scale):
    return answer(*online(q, k, v, scale, keys=lambda k, v: (k[:, :TILE], v[:, :TILE])))


@EXERCISE.mistake("In the last tile, keys that do not exist count as zeros, whose score is 0: e^0 is in the sum.")
def missing_keys_counted(q, k, v, scale):
    pad = -q.shape[1] % TILE
    return answer(*online(q, k, v, scale, keys=lambda k, v: [np.pad(x, ((0, 0), (0, pad), (0, 0))) for x in (k, v)]))


@EXERCISE.mistake("The scores are not multiplied by the scale.")
def scale_forgotten(q, k, v, scale):
    return answer(*online(q, k, v, 1.0))


@EXERCISE.mistake("The output is not divided by the sum at the end.")
def not_divided(q, k, v, scale):
    return answer(online(q, k, v, scale)[0])


@EXERCISE.mistake("The maximum begins at 0; where all scores are far below, every exponential is 0. Begin with lowest.")
def maximum_from_zero(q, k, v, scale):
    return answer(*online(q, k, v, scale, first=0.0))


@EXERCISE.mistake("The exponential overflows for large scores: nothing is subtracted from them.")
def overflows(q, k, v, scale):
    e = np.exp((np.float32(scale) * q @ k.swapaxes(1, 2)).astype(np.float32))
    return answer(e @ v, e.sum(axis=-1, keepdims=True))


@EXERCISE.mistake("All blocks compute the first head; blockIdx.y says which head a block has.")
def first_head_alone(q, k, v, scale):
    y = np.full_like(q, np.nan)
    y[:1] = right(q, k, v, scale)[3][:1]
    return True, True, True, y
