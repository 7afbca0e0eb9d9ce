"""A CUDA kernel for softmax, one block for a row.

y = softmax(x) along the rows of x (rows, columns), both arrays C-contiguous. The kernel is launched with one block
of 64 threads for each row. A row may be longer than 64 numbers, or shorter, so each thread takes the columns
threadIdx.x, threadIdx.x + 64, and so on. The threads find the largest number of the row together, and then the sum:
through an array in __shared__ memory, with __syncthreads() between writing and reading. Numbers may be as large as
1000.

It runs in the emulator, compiled by g++; no GPU is needed. The check runs the warps in three orders: a kernel in
which a barrier is missing gives different results. common.cuh has lowest<float>(), to begin a maximum with. Shared
memory holds NaN when a block begins; declare each of its arrays in a line of its own.
"""

from __future__ import annotations

import numpy as np

from minillm.exercises.kernel_exercise import KernelExercise
from minillm.ops.softmax import softmax_forward

THREADS = 64


def launch(run, code, x):
    """Launch the kernel on an array (rows, columns)."""
    rows, columns = x.shape
    return run(rows, THREADS, (x,), (np.int32(rows), np.int32(columns)))


def right(x):
    return True, True, softmax_forward(x, axis=-1)[0]


def cases(rng):
    for shape, offset in (((2, 64), 0), ((3, 130), 0), ((3, 5), 0), ((2, 70), -200), ((2, 70), 900)):
        yield dict(x=(rng.normal(0, 2, size=shape) + offset).astype(np.float32))


EXERCISE = KernelExercise(
    starter=launch,
    returns="same_in_every_order writes_inside y",
    right=right,
    cases=cases,
    kernel="softmax",
    declaration="""
__global__ void __launch_bounds__(64) softmax(const float* x, float* y, int rows, int columns) {
    // replace this line
}
""",
    hints=(
        "Let each thread find the largest of its own columns first, and put it into a __shared__ array of 64.",
        "After a barrier every thread can look through all 64; or halve the array step by step, with a barrier a step.",
        "The array is used a second time for the sums: a barrier stands between reading and writing again.",
        "The last loop writes e^(x - largest) / sum; every index, in all loops, is below `columns`.",
    ),
    read="kernels/levels/softmax_1_naive.cu, and the levels after it",
)


def exponentials(x):
    return np.exp(x - x.max(axis=-1, keepdims=True))


def sums(e, group):
    """For each column, the sum over the columns of one group of threads; `group` maps a thread to its group."""
    groups = group(np.arange(e.shape[-1]) % THREADS)
    return np.stack([e[:, groups == one].sum(axis=-1) for one in groups], axis=-1)


@EXERCISE.mistake(
    "The result depends on the order in which the threads run: somewhere a thread reads shared memory before another "
    "one has written it, or writes it before another one has read it. Put __syncthreads() between."
)
def barrier_missing(x):
    return False, True, x


@EXERCISE.mistake(
    "The kernel writes outside y: in a row that is shorter than the block, some threads have no column at all."
)
def written_outside(x):
    return True, x.shape[1] >= THREADS, right(x)[2]


@EXERCISE.mistake("The exponential overflows for large numbers; subtract the largest number of the row.")
def overflows(x):
    e = np.exp(x)
    return True, True, e / e.sum(axis=-1, keepdims=True)


@EXERCISE.mistake("Only the first 64 columns are computed; a thread goes on with column threadIdx.x + 64, and so on.")
def first_columns_alone(x):
    y = np.full_like(x, np.nan)
    y[:, :THREADS] = right(x[:, :THREADS])[2]
    return True, True, y


@EXERCISE.mistake("Each thread divides by the sum of its own columns; the sums of all threads have to be added up.")
def sums_not_joined(x):
    e = exponentials(x)
    return True, True, e / sums(e, lambda thread: thread)


@EXERCISE.mistake("Each warp has a sum of its own. A shuffle reaches 32 threads; the two warps need shared memory.")
def warps_not_joined(x):
    e = exponentials(x)
    return True, True, e / sums(e, lambda thread: thread // 32)


@EXERCISE.mistake("All blocks compute the first row; blockIdx.x says which row a block has.")
def first_row_alone(x):
    y = np.full_like(x, np.nan)
    y[0] = right(x)[2][0]
    return True, True, y


@EXERCISE.mistake("The maximum begins at 0, which is larger than every number of a negative row; begin with lowest.")
def maximum_from_zero(x):
    e = np.exp(x - np.maximum(x.max(axis=-1, keepdims=True), 0))
    return True, True, e / e.sum(axis=-1, keepdims=True)


@EXERCISE.mistake("The exponentials are not divided by their sum.")
def not_divided(x):
    return True, True, exponentials(x)
