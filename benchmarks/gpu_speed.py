"""Measure the kernels that memory bounds, and the levels from naive to fast."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gpu_launch as launch
import numpy as np
from gpu_clock import Clock, clocks, free, matrix_rate
from gpu_job import Job

from minillm import ops
from minillm.autograd import Parameter, Tensor
from minillm.backend import Array
from minillm.cuda.launch import sum_rows
from minillm.dtypes import as_dtype
from minillm.engine import engine
from minillm.optim import AdamW

# ---- kernels that memory bounds -------------------------------------------------------------------------------------


class Timed(NamedTuple):
    """A kernel at one size: the bytes that it has to move, and what draws a set of arrays and returns its launch."""

    name: str
    nbytes: float
    prepare: Callable[[], Callable[[], Any]]


def both_ways(
    name: str, fn: Callable, make: Callable[[], tuple], moved: tuple[float, float], leaves: int
) -> Iterator[Timed]:
    """An operation's kernels, forward and backward, as the engine launches them; the first `leaves` get a gradient."""

    def call(requires_grad: bool) -> Callable[[], Tensor]:
        arrays = make()
        tensors = [Tensor(x, requires_grad=requires_grad) for x in arrays[:leaves]]
        return lambda: fn(*tensors, *arrays[leaves:])

    def backward() -> Callable[[], Any]:
        y = call(requires_grad=True)()
        node, douts = (y[0].node, tuple(part.data for part in y)) if isinstance(y, tuple) else (y.node, y.data)
        return lambda: node.backward(douts, node.saved)  # its own value is as good a cotangent as any

    yield Timed(f"{name} forward", moved[0], lambda: call(requires_grad=False))
    yield Timed(f"{name} backward", moved[1], backward)


def memory_bound(job: Job, dtype: np.dtype) -> Iterator[Timed]:
    """The kernels at GPT-2's sizes for 16 x 1024 tokens, with the bytes as each kernel's header counts them."""
    full, dry = (16 * 1024, 768, 50304, 124_000_000), (32, 64, 96, 3000)
    tokens, channels, classes, parameters = dry if job.dry else full
    size, exact = dtype.itemsize, np.promote_types(dtype, np.float32)
    cupy, hidden, heads, d = job.cupy, 4 * channels, channels // 64, 64
    x_bytes, hidden_bytes, logits_bytes = (tokens * columns * size for columns in (channels, hidden, classes))

    def draw(*shapes: tuple[int, ...]) -> tuple[Array, ...]:
        return tuple(job.random(shape, dtype) for shape in shapes)

    x, wide, logits, vector = (tokens, channels), (tokens, hidden), (tokens, classes), (channels,)
    moved = 2 * logits_bytes, 3 * logits_bytes
    yield from both_ways("softmax", ops.softmax, lambda: draw(logits), moved, 1)
    moved = 2 * x_bytes, 3 * x_bytes
    yield from both_ways("layernorm", ops.layer_norm, lambda: draw(x, vector, vector), moved, 3)
    yield from both_ways("rmsnorm", ops.rms_norm, lambda: draw(x, vector), moved, 2)
    moved = 4 * x_bytes, 4 * x_bytes
    yield from both_ways("add + layernorm", ops.add_layer_norm, lambda: draw(x, x, vector, vector), moved, 4)
    moved, bias = (2 * hidden_bytes, 3 * hidden_bytes), (hidden,)
    gelu = functools.partial(ops.gelu, approximate="tanh")
    yield from both_ways("gelu (tanh)", gelu, lambda: draw(wide), moved, 1)
    with_bias = lambda x, bias: ops.bias_gelu(x, bias, "tanh")  # noqa: E731
    yield from both_ways("bias + gelu (tanh)", with_bias, lambda: draw(wide, bias), moved, 2)
    yield from both_ways("gelu (erf)", ops.gelu, lambda: draw(wide), moved, 1)
    yield from both_ways("silu", ops.silu, lambda: draw(wide), moved, 1)
    moved = 3 * hidden_bytes, 5 * hidden_bytes
    yield from both_ways("swiglu", ops.swiglu, lambda: draw(wide, wide), moved, 2)
    yield Timed("column sums", hidden_bytes, lambda: _one(lambda a: sum_rows(a, dtype), draw(wide)))
    of_heads, moved = (16, heads, tokens // 16, d), (2 * x_bytes, 2 * x_bytes)
    tables = [cupy.asarray(table.astype(exact)) for table in ops.rope_table(tokens // 16, d)]
    yield from both_ways("rope", ops.rope, lambda: (*draw(of_heads), *tables), moved, 1)
    yield from both_ways("dropout", lambda x: ops.dropout(x, 0.1), lambda: draw(x), moved, 1)
    ids = np.random.default_rng(0).integers(0, classes, tokens)
    named, on_device = len(np.unique(ids)) * channels * size, cupy.asarray(ids)  # rows of the table: read, or changed
    moved = named + x_bytes, x_bytes + 2 * named
    look_up = lambda weight, ids: ops.embedding(ids, weight)  # noqa: E731
    yield from both_ways("embedding", look_up, lambda: (*draw((classes, channels)), on_device), moved, 1)
    moved = logits_bytes, 2 * logits_bytes
    yield from both_ways("cross_entropy", ops.cross_entropy, lambda: (*draw(logits), on_device), moved, 1)

    def in_place() -> Callable[[], Any]:
        (over,), dloss = draw(logits), job.random((tokens,), exact, positive=True)
        return lambda: launch.cross_entropy_in_place(over, on_device, dloss)

    yield Timed("cross_entropy, gradient in place", 2 * logits_bytes, in_place)

    def optimizer() -> AdamW:
        parameter = Parameter(*draw((parameters,)))
        optimizer = AdamW([parameter])
        (parameter.grad,) = draw((parameters,))
        return optimizer

    yield Timed("adamw", parameters * (28 if dtype == exact else 30), lambda: optimizer().step)
    yield Timed("global norm", parameters * size, lambda: functools.partial(optimizer().clip_grad_norm, 1.0))
    for outputs, inner in ((hidden, channels), (channels, hidden), (classes, channels)):
        shapes = (1, inner), (outputs, inner)
        yield Timed(f"gemv {outputs} x {inner}", outputs * inner * size, lambda s=shapes: _one(launch.gemv, draw(*s)))
    length = job.size(1024, 64)
    lengths, cache = cupy.asarray(np.full(8, length, np.int32)), (8, heads, length, d)

    def decode() -> Callable[[], Any]:
        q, k, v = draw((8, heads, d), cache, cache)
        return lambda: launch.decode_attention(q, k, v, lengths, length, d**-0.5, chunk=128)

    yield Timed(f"decode attention, 8 x {length} keys", 2 * math.prod(cache) * size, decode)


def _one(function: Callable, arrays: tuple) -> Callable[[], Any]:
    return lambda: function(*arrays)


def kernels(job: Job, part: str) -> None:
    """Measure every kernel that memory bounds, in one dtype: its bandwidth beside that of a copy."""
    clock, dtype = Clock(job), as_dtype(part)
    title = "Kernels that memory bounds, at GPT-2's sizes"
    table = job.table(title, "kernel", "dtype", "MB", "us", "spread", "GB/s", "of copy bandwidth")
    for timed in memory_bound(job, dtype):
        if not job.in_time(1, f"{timed.name} in {part} and what follows"):
            break
        try:
            with engine("require"):
                launches = [timed.prepare() for _ in range(clock.sets(int(timed.nbytes)))]
                milliseconds, spread = clock.time(launches, f"{timed.name} in {part}")
            del launches
        except Exception as error:  # the other kernels still have times
            job.note(f"{timed.name} in {part}: {type(error).__name__}: {error}")
            continue
        rate = timed.nbytes / milliseconds / 1e-3
        numbers = (1e3 * milliseconds, spread, rate / 1e9, rate / clock.copy_rate)
        table.row(timed.name, part, timed.nbytes / 1e6, *map(job.measured, numbers))
        free(job)
    job.note(f"clocks right after, {part}: {clocks()}")


# ---- the levels -----------------------------------------------------------------------------------------------------


def levels(job: Job) -> None:
    """Measure each level from naive to fast, at one size."""
    clock = Clock(job)
    table = job.table("The levels, from naive to fast", *("level", "us", "spread", "rate", "unit", "of", "ceiling"))
    cublas = {dtype: matrix_rate(clock, dtype) for dtype in ("float32", "bfloat16")}
    free(job)
    rows, n = job.size(98304, 8), job.size(4096, 128)
    heads, tokens, d = job.size(96, 1), job.size(1024, 64), 64

    def measure(
        level: str, function: Callable, shapes: list[tuple[int, ...]], bytes_moved: float, flops: float
    ) -> None:
        if not job.in_time(2, level):
            return
        dtype = "bfloat16" if level.endswith("tensor_cores") else "float32"
        arrays = [job.random(shape, as_dtype(dtype)) for shape in shapes]
        milliseconds, spread = clock.time([lambda: function(level, *arrays)], level)
        work, unit, ceiling = (flops, "TFLOP/s", cublas[dtype]) if flops else (bytes_moved, "GB/s", clock.copy_rate)
        rate = work / milliseconds / 1e-3
        in_unit = rate / {"TFLOP/s": 1e12, "GB/s": 1e9}[unit]
        numbers = map(job.measured, (1e3 * milliseconds, spread, in_unit))
        table.row(level, *numbers, unit, job.measured(rate / ceiling), f"cuBLAS, {dtype}" if flops else "a copy")
        free(job)

    for level in launch.SOFTMAX_LEVELS:
        measure(level, launch.softmax_level, [(rows, 1024)], 8 * rows * 1024, 0)
    for level in launch.MATMUL_LEVELS:
        measure(level, launch.matmul_level, [(n, n), (n, n)], 0, 2 * n**3)
    scaled = functools.partial(launch.attention_level, scale=d**-0.5)
    for level in launch.ATTENTION_LEVELS:
        measure(level, scaled, [(heads, tokens, d)] * 3, 0, 4 * heads * tokens**2 * d / 2)
