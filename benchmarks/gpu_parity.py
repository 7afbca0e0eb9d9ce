"""Is every kernel right? Against the same formula in float64 NumPy, and against differences of its own values.

A kernel of a narrow dtype cannot equal float64, and how far off it may be depends on the formula. So two errors are
measured on the same rounded inputs: the kernel's, and that of NumPy with the formula in that dtype (for bfloat16: in
float32, rounded once at the end). A forward may be twice as wrong as NumPy, a gradient three times, both by their root
mean square and, less strictly as it is a matter of luck, by their largest number. Where NumPy happens to be wrong by
next to nothing, a kernel may have the errors of one rounding; of few numbers, which again is luck, or in float64, whose
functions are right to half of the last place in NumPy and to one or two in CUDA, those of some more. float64 is
compared with NumPy's longdouble.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gpu_launch as launch
import numpy as np
from gpu_cases import OPERATIONS, Case
from gpu_job import Job, verdict

from minillm import ops
from minillm.autograd import Parameter, Tensor
from minillm.backend import Array
from minillm.cuda import launch_counts
from minillm.cuda.launch import sum_rows
from minillm.cuda.source import instances, kernel_files
from minillm.device import to_host
from minillm.dtypes import as_dtype
from minillm.engine import engine
from minillm.optim import AdamW

DTYPES = ("float64", "float32", "bfloat16")
ROUNDING = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-9}  # half of the last place
FORWARD, GRADIENT = 2, 3  # how many times as wrong as NumPy


# ---- the comparison -------------------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """Root mean square errors, relative to the exact values, and the worse error by what is allowed: 1 still passes."""

    error: float
    numpys: float
    of_allowed: float


NOT_EVEN_NEAR = Comparison(np.inf, 0.0, np.inf)


def compare(received: Array, exact: Array, numpys: Array, factor: float) -> Comparison:
    """Compare host arrays: a kernel's result, the exact one, and NumPy's in the dtype of the kernel."""
    rounding = ROUNDING[received.dtype.name]
    if received.shape != exact.shape:
        return NOT_EVEN_NEAR
    wide = np.result_type(exact.dtype, np.float64)
    received, exact, numpys = (np.asarray(x, wide) for x in (received, exact, numpys))
    finite = np.isfinite(exact)
    if not np.array_equal(received[~finite], exact[~finite]) or not np.isfinite(received[finite]).all():
        return NOT_EVEN_NEAR
    exact, errors = exact[finite], [x[finite] - exact[finite] for x in (received, numpys)]
    (error, usual), (largest, usually_largest) = ([norm(e) / (norm(exact) or 1) for e in errors] for norm in (rms, top))
    least = rounding * (4 if rounding == ROUNDING["float64"] else 2 if exact.size < 100 else 0.5)
    of_allowed = max(error / max(usual, least), largest / max(usually_largest, rounding) / 2) / factor
    return Comparison(error, usual, of_allowed)


def rms(x: Array) -> float:
    return float(np.sqrt(np.square(x).mean())) if x.size else 0.0


def top(x: Array) -> float:
    return float(np.abs(x).max(initial=0))


# ---- what is checked ------------------------------------------------------------------------------------------------


class Trial(NamedTuple):
    """A launch that has been made, and the formula that gives the same outputs; gradients come after the forwards."""

    kernel: str
    case: str
    received: list[Array] | Exception  # on the device
    formula: Callable  # of arrays on the host
    arguments: list[Array]  # on the host
    forwards: int = 1
    unfused: Callable | None = None  # the formula for bfloat16, where a program without this kernel rounds more often


# ---- operations: forward and every gradient -------------------------------------------------------------------------


def run(case: Case, arguments: list[Array], douts: list[Array], mode: str) -> list[Array]:
    """The values and, for a cotangent of each, the gradients."""
    with engine(mode):
        leaves = [Tensor(x, requires_grad=True) for x in arguments[: case.leaves]]
        values = case.fn(*leaves, *arguments[case.leaves :])
        values = values if isinstance(values, tuple) else (values,)
        if len(douts) == 1:
            values[0].backward(douts[0])
        elif douts:
            functools.reduce(ops.add, ((y * dout).sum() for y, dout in zip(values, douts, strict=True))).backward()
    return [*(y.data for y in values), *(leaf.grad for leaf in leaves if douts)]


def operation_trials(name: str, job: Job, dtype: np.dtype, rng: np.random.Generator) -> Iterator[Trial]:
    """Every case with its arrays in order, and unless they are large with their memory transposed, too."""
    for case in OPERATIONS[name](job.small or dtype == np.float64):  # longdouble is slow, and double kernels all alike
        drawn = case.draw(rng)
        arguments = [rounded(x, dtype, of_tensor=i < case.leaves) for i, x in enumerate(drawn)]
        wide = [x.astype(np.float64) if x.dtype.kind not in "iub" else x for x in arguments]
        shapes = [np.shape(y) for y in run(case, wide, [], "plain")]
        douts = [np.asarray(rng.standard_normal(shape)).astype(np.float32).astype(dtype) for shape in shapes]
        formula = functools.partial(by_formula, case, len(shapes))
        for view in (False, True) if arguments[0].ndim > 1 and arguments[0].size < 100_000 else (False,):
            try:
                placed = [transposed(job, x) if view else job.cupy.asarray(x) for x in arguments]
                poison(job)
                received = run(case, placed, [job.cupy.asarray(dout) for dout in douts], "require")
            except Exception as error:  # the other cases can still be right
                received = error
            what = case.name + ", transposed" * view
            yield Trial(name, what, received, formula, [*arguments, *douts], len(shapes), case.unfused)


def by_formula(case: Case, values: int, *arrays: Array) -> list[Array]:
    """Values and gradients by the formula in NumPy; after the arguments come the cotangents, one for each value."""
    return run(case, [*arrays[:-values]], [*arrays[-values:]], "fast")


def rounded(x: Array, dtype: np.dtype, of_tensor: bool) -> Array:
    """As kernels take it: tables that are no tensors stay in float32 at least, and integers are what they are."""
    if x.dtype.kind in "iub":
        return x
    return x.astype(np.float32).astype(dtype if of_tensor else np.promote_types(dtype, np.float32))


def transposed(job: Job, x: Array) -> Array:
    """The array on the device, its last two axes exchanged in memory."""
    if x.ndim < 2:
        return job.cupy.asarray(x)
    return job.cupy.asarray(np.ascontiguousarray(x.swapaxes(-1, -2))).swapaxes(-1, -2)


def poison(job: Job) -> None:
    """Fill the memory that is handed out next with NaN, so that an element that no thread writes shows."""
    job.cupy.get_default_memory_pool().free_all_blocks()
    job.cupy.full(job.size(1 << 26, 1 << 10), 0xFF, np.uint8)


# ---- kernels that no operation launches -----------------------------------------------------------------------------


def drawn(job: Job, rng: np.random.Generator, dtype: np.dtype, *shapes: Any) -> tuple[list[Array], list[Array]]:
    """Normal numbers, on the host and on the device, whose next memory is poisoned."""
    host = [rng.standard_normal(shape).astype(np.float32).astype(dtype) for shape in shapes]
    device = [job.cupy.asarray(x) for x in host]
    poison(job)
    return host, device


def column_sums_trials(job: Job, dtype: np.dtype, rng: np.random.Generator) -> Iterator[Trial]:
    for shape in [(1, 1), (17, 31), (129, 100), (1023, 3), *([] if job.small else [(16384, 3072)])]:
        (x,), (on_device,) = drawn(job, rng, dtype, shape)
        yield Trial("column_sums", str(shape), [sum_rows(on_device, dtype)], lambda x: [x.sum(axis=0)], [x])


def cross_entropy_trials(job: Job, dtype: np.dtype, rng: np.random.Generator) -> Iterator[Trial]:
    """The loss, with its gradient written over the logits."""
    for shape in [(7, 17), (5, 1023), (3, 64), *([] if job.small else [(33, 50257)])]:
        (logits,), (over,) = drawn(job, rng, dtype, shape)
        targets = rng.integers(0, shape[1], len(logits))
        targets[2] = -100
        dloss = np.where(targets == -100, 0, rng.standard_normal(len(logits))).astype(launch.accumulator(logits))
        loss = launch.cross_entropy_in_place(over, job.cupy.asarray(targets), job.cupy.asarray(dloss))

        def formula(logits, dloss, targets=targets):
            x = Tensor(logits, requires_grad=True)
            with engine("fast"):
                loss = ops.cross_entropy(x, targets, reduction="none")
                loss.backward(dloss)
            return [loss.data, x.grad]

        yield Trial("cross_entropy in place", str(shape), [loss, over], formula, [logits, dloss])


def optimiser_trials(job: Job, dtype: np.dtype, rng: np.random.Generator) -> Iterator[Trial]:
    """Clipping and two steps of AdamW; a bfloat16 parameter is its master, rounded."""
    settings = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
    max_norm = 0.5

    def formula(w, *gradients):
        m, v, (b1, b2), lr = 0 * w, 0 * w, settings["betas"], settings["lr"]
        for step, g in enumerate(gradients, start=1):
            norm = np.sqrt(np.square(g).sum())
            g = g * np.minimum(1, max_norm / norm)
            m, v = m + (1 - b1) * (g - m), v + (1 - b2) * (g * g - v)
            change = lr / (1 - b1**step) * m / (np.sqrt(v) / np.sqrt(1 - b2**step) + settings["eps"])
            w = w * (1 - lr * settings["weight_decay"]) - change
        return [norm, w, m, v]

    for n in (1, 17, 1023, *([] if job.small else [5_000_003])):
        w, *gradients = (rng.standard_normal(n).astype(np.float32).astype(dtype) for _ in range(3))
        poison(job)
        parameter = Parameter(job.cupy.asarray(w), "w")
        optimizer = AdamW([parameter], **settings)
        with engine("require"):
            for gradient in gradients:
                parameter.grad = job.cupy.asarray(gradient)
                norm = optimizer.clip_grad_norm(max_norm)
                optimizer.step()
        state = optimizer.state_dict()
        masters = state.get("master.w", parameter.data)
        received = [norm, masters, state["exp_avg.w"], state["exp_avg_sq.w"]]
        yield Trial("adamw and its clipping", str(n), received, formula, [w, *gradients], forwards=4)
        yield Trial("adamw's weights", str(n), [parameter.data], lambda w: [w], [to_host(masters)])


def decode_trials(job: Job, dtype: np.dtype, rng: np.random.Generator) -> Iterator[Trial]:
    for d, group in ((32, 1), (64, 3), (96, 2), (128, 4)):
        lengths = np.array([1, 17, 130, 0, 63] if job.small else [1, 17, 130, 0, 1000], np.int32)
        cache = (len(lengths), 2, int(lengths.max()) + 9, d)
        host, device = drawn(job, rng, dtype, (len(lengths), 2 * group, d), cache, cache)

        def formula(q, k, v, lengths=lengths, group=group):
            out = np.zeros_like(q)
            for b, length in enumerate(lengths):
                for h in range(q.shape[1] if length else 0):
                    s = k[b, h // group, :length] @ q[b, h] * q.dtype.type(0.3)
                    p = np.exp(s - s.max())
                    out[b, h] = p @ v[b, h // group, :length] / p.sum()
            return [out]

        for chunk in (16, 64):
            out = launch.decode_attention(*device, job.cupy.asarray(lengths), int(lengths.max()), 0.3, chunk)
            yield Trial("decode attention", f"D {d}, {group} heads on one, chunk {chunk}", [out], formula, host)
    for count in (1, 2, 4, 8):
        for outputs, inner in [(1, 1), (17, 1023), (130, 768), *([] if job.small else [(3072, 768)])]:
            host, (x, weight) = drawn(job, rng, dtype, (count, inner), (outputs, inner))
            name = f"{count} rows, {outputs} x {inner}"
            yield Trial("gemv", name, [launch.gemv(x, weight)], lambda x, weight: [x @ weight.T], host)


def level_trials(job: Job, dtype: np.dtype, rng: np.random.Generator) -> Iterator[Trial]:
    """Of one dtype each: float32 but for the tensor cores."""

    def softmax(x):
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        return [e / np.cumsum(e, axis=-1)[:, -1:]]  # added up as level 1 does, and not as NumPy does, in pairs

    def product(a, b):
        c = np.zeros((len(a), b.shape[1]), a.dtype)
        for k in range(a.shape[1]):  # again in the order of the levels
            c += a[:, k, None] * b[k]
        return [c]

    def attention(q, k, v):
        s = np.where(np.tri(q.shape[1], dtype=bool), q @ k.swapaxes(1, 2) * q.dtype.type(0.2), -np.inf)
        e = np.exp(s - s.max(axis=-1, keepdims=True))
        return [e / e.sum(axis=-1, keepdims=True) @ v]

    def unfused(q, k, v):
        s = np.where(np.tri(q.shape[1], dtype=bool), q @ k.swapaxes(1, 2) * q.dtype.type(0.2), -np.inf)
        p = np.exp(s - s.max(axis=-1, keepdims=True))
        return [p.astype(dtype).astype(p.dtype) @ v / p.sum(axis=-1, keepdims=True)]

    def of_dtype(*levels: str) -> list[str]:
        return [name for name in levels if name.endswith("tensor_cores") == (dtype.name == "bfloat16")]

    if dtype == np.float64:
        return
    for level in of_dtype(*launch.SOFTMAX_LEVELS):
        for columns in (128, 1024, 2048) if level == "softmax_4_registers" else (1, 17, 1023):
            host, device = drawn(job, rng, dtype, (13, columns))
            yield Trial(level, f"13 x {columns}", [launch.softmax_level(level, *device)], softmax, host)
    for level in of_dtype(*launch.MATMUL_LEVELS):
        for M, N, K in [(17, 24, 40), (129, 136, 64), *([] if job.small else [(513, 1000, 520)])]:
            host, device = drawn(job, rng, dtype, (M, K), (K, N))
            yield Trial(level, f"{M} x {N} x {K}", [launch.matmul_level(level, *device)], product, host)
    for level in of_dtype(*launch.ATTENTION_LEVELS):
        for tokens in (1, 65) if job.small else (1, 65, 300):
            host, device = drawn(job, rng, dtype, *[(2, tokens, 64)] * 3)
            out = launch.attention_level(level, *device, 0.2)
            yield Trial(level, f"{tokens} tokens", [out], attention, host, 1, unfused)


OTHERS: dict[str, Callable[[Job, np.dtype, np.random.Generator], Iterator[Trial]]] = {
    "column_sums": column_sums_trials,
    "cross_entropy_in_place": cross_entropy_trials,
    "optimiser": optimiser_trials,
    "decode": decode_trials,
    "levels": level_trials,
}


# ---- the sections ---------------------------------------------------------------------------------------------------

# Each in a process of its own, side by side; attention has by far the most to compile.
PARTS = (*(f"attention-{dtype}" for dtype in DTYPES), *(name for name in OPERATIONS if name != "attention"), *OTHERS)
COLUMNS = ("error", "NumPy's", "of allowed")


def parity(job: Job, part: str) -> None:
    """The kernels of one operation, or of one family that no operation launches, in every dtype."""
    name, _, only = part.partition("-")
    columns = "kernel", "dtype", "checks", *COLUMNS, *(f"{column}, gradients" for column in COLUMNS), "verdict"
    table = job.table("Kernels against NumPy in float64", *columns)
    for dtype in [only] if only else DTYPES:
        arguments = job, as_dtype(dtype), np.random.default_rng(0)
        trials = OTHERS[name](*arguments) if name in OTHERS else operation_trials(name, *arguments)
        found: dict[str, list[tuple[int, Comparison]]] = {}
        with np.errstate(all="ignore"):
            for trial in until_an_error(name, trials):
                found.setdefault(trial.kernel, []).extend(examine(job, trial, dtype))
        for kernel, comparisons in found.items():
            cells: list[Any] = []
            for wanted in (FORWARD, GRADIENT):
                of_kind = [comparison for factor, comparison in comparisons if factor == wanted]
                cells += max(of_kind, key=lambda c: c.of_allowed, default=(None, None, None))
            passed = all(comparison.of_allowed <= 1 for _, comparison in comparisons)
            table.row(kernel, dtype, len(comparisons), *cells, verdict(passed))
        job.results["launched"] = sorted(launch_counts())
        job.save()


def until_an_error(name: str, trials: Iterator[Trial]) -> Iterator[Trial]:
    """The trials; and where making one raises, that as the last, so that the other dtypes get their turn."""
    try:
        yield from trials
    except Exception as error:
        yield Trial(name, "and what follows", error, lambda: [], [])


def examine(job: Job, trial: Trial, dtype: str) -> Iterator[tuple[int, Comparison]]:
    """Each output of a trial, as a forward or a gradient; those that are wrong get a row of their own."""

    def wrong(*cells: Any) -> None:
        columns = "kernel", "dtype", "case", "output", *COLUMNS
        job.table("Wrong results", *columns).row(trial.kernel, dtype, trial.case, *cells)

    if isinstance(trial.received, Exception):
        wrong(f"{type(trial.received).__name__}: {trial.received}", None, None, None)
        yield FORWARD, NOT_EVEN_NEAR
        return
    wide, wider = (np.float64, np.longdouble) if dtype == "float64" else (np.float32, np.float64)
    usual_formula = trial.unfused if trial.unfused and dtype == "bfloat16" else trial.formula
    exact, usual = (
        formula(*[x if x.dtype.kind in "iub" else x.astype(t) for x in trial.arguments])
        for formula, t in ((trial.formula, wider), (usual_formula, wide))
    )
    for i, (y, right, numpys) in enumerate(zip(trial.received, exact, usual, strict=True)):
        received, factor = to_host(y), FORWARD if i < trial.forwards else GRADIENT
        comparison = compare(received, np.asarray(right), np.asarray(numpys).astype(received.dtype), factor)
        if not comparison.of_allowed <= 1:
            wrong(i, *comparison)
        yield factor, comparison


def coverage(launched: set[str]) -> tuple[int, list[str]]:
    """How many kernel instances there are, and those that were not launched."""
    existing = [name for file in kernel_files() for name in instances(file)]
    return len(existing), sorted(set(existing) - launched)


def without_cases() -> list[str]:
    """Operations that have kernels, and no case above."""
    return sorted(op.name for op in ops.OPS if op.pair("cuda") and op.name not in OPERATIONS)


GRADIENT_PARTS = tuple(OPERATIONS)
TOLERANCE = 1e-6


def gradients(job: Job, part: str) -> None:
    """<u, J v> by a central difference of the operation in float64 on the device, against <g, v> of its backward."""
    columns = "operation", "checks", "error", "of allowed", "verdict"
    table = job.table("Gradients of the double kernels against differences of their values", *columns)
    rng, errors = np.random.default_rng(0), []
    for case in OPERATIONS[part](True):
        arguments = case.draw(rng)
        errors += [directional_error(job, case, arguments, leaf, rng) for leaf in range(case.leaves)]
    error, of_allowed = (max(column) for column in zip(*errors, strict=True))
    table.row(part, len(errors), error, of_allowed, verdict(of_allowed <= 1))


def directional_error(
    job: Job, case: Case, arguments: list[Array], leaf: int, rng: np.random.Generator
) -> tuple[float, float]:
    """How far apart the two are for one argument, by the typical size of <g, v>, and by what is allowed.

    Allowed are TOLERANCE of that size, and what rounding alone does to a difference.
    """

    def run_at(x: Array, douts: list[Array]) -> list[Array]:
        placed = [job.cupy.asarray(a) for a in (*arguments[:leaf], x, *arguments[leaf + 1 :])]
        return [*map(to_host, run(case, placed, [job.cupy.asarray(u) for u in douts], "require"))]

    x = arguments[leaf]
    step = float(np.finfo(float).eps * max(1.0, np.abs(x).max(initial=0))) ** (1 / 3)
    v = rng.uniform(0.5, 1.5, x.shape) * rng.choice([-1.0, 1.0], x.shape)
    above, below = (run_at(x + sign * step * v, []) for sign in (1, -1))
    douts = [np.asarray(rng.standard_normal(y.shape)) for y in above]
    gradient = run_at(x, douts)[len(douts) + leaf]
    terms = [(u * (a - b) / (2 * step), u * a) for u, a, b in zip(douts, above, below, strict=True)]
    moved, claimed = sum(np.sum(term) for term, _ in terms), gradient * v
    rounding = 32 * np.finfo(float).eps * sum(np.linalg.norm(size) for _, size in terms) / step
    error, scale = abs(moved - claimed.sum()), np.linalg.norm(claimed) or 1.0
    return error / scale, error / (TOLERANCE * scale + rounding)


def nccl(job: Job) -> None:
    """The collectives of a communicator with one rank give back what went in: the calls, their counts and dtypes."""
    if job.nccl is None:
        return
    nccl, stream = job.nccl, job.cupy.cuda.Stream.null
    communicator = nccl.NcclCommunicator(1, nccl.get_unique_id(), 0)
    table = job.table(f"NCCL {nccl.get_version()} with one rank", "collective", "dtype", "verdict")
    for dtype, code in (("float32", nccl.NCCL_FLOAT32), ("bfloat16", nccl.NCCL_BFLOAT16)):
        x = job.random((1023,), as_dtype(dtype))
        for name, after in {
            "allReduce": (x.size, code, nccl.NCCL_SUM),
            "reduceScatter": (x.size, code, nccl.NCCL_SUM),
            "allGather": (x.size, code),
            "broadcast": (x.size, code, 0),
        }.items():
            y = job.cupy.zeros(x.shape, x.dtype)
            getattr(communicator, name)(x.data.ptr, y.data.ptr, *after, stream.ptr)
            table.row(name, dtype, verdict(np.array_equal(to_host(x), to_host(y))))
    communicator.destroy()
