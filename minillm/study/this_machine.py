"""Measure this machine, train a small model on ranks in every way there is, and compare each step with its prediction.

projection.py has the formulas.
"""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from minillm.errors import InputError
from minillm.optim import AdamW
from minillm.parallel.communicator import Communicator
from minillm.parallel.objective import next_token_batch
from minillm.study.describe.lookup import look_up
from minillm.study.describe.tables import Table, in_bytes
from minillm.study.parallel_report import Division, Measured, Place, divisions, exact_tables, measure, stage_of
from minillm.study.projection import Link, Machine, Seconds, Work, step_seconds, work_of
from minillm.training.whole_model import accumulate_gradients
from minillm.tuning import tuned_process


class Constants(NamedTuple):
    """Seconds measured on a rank: forward and backward of few and of many sequences, an update, all-reduces."""

    few: float
    many: float
    update: float
    small_sum: float  # an all_reduce of SMALL bytes
    large_sum: float


SMALL, LARGE = 1 << 12, 1 << 22


def constants(
    communicator: Communicator, kind: Any, config: Any, rows: tuple[int, int], context: int, repeats: int = 3
) -> Constants:
    """Measure what `machine_of` needs: as many ranks as there are cores train by themselves, at the same time."""
    few = many = update = 0.0
    communicator.barrier()
    if communicator.rank < core_count():
        model = kind(config)
        optimizer = AdamW(model.parameters(), 1e-3)
        ids = np.random.default_rng(0).integers(0, config.vocab_size, (rows[1], context + 1))

        def train(count: int) -> None:
            optimizer.zero_grad()
            accumulate_gradients(model, next_token_batch(ids[:count, :-1], ids[:count, 1:]), 1)

        def move() -> None:
            optimizer.clip_grad_norm(1.0)
            optimizer.step()

        few, many, update = medians([lambda: train(rows[0]), lambda: train(rows[1]), move], repeats)
    communicator.barrier()
    arrays = [np.zeros(size // 4, np.float32) for size in (SMALL, LARGE)]

    def add_up(array: np.ndarray) -> None:
        communicator.all_reduce(array).wait()

    sums = [functools.partial(add_up, array) for array in arrays]
    return Constants(few, many, update, *medians(sums, 2 * repeats))


def medians(functions: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Median seconds of each function, called in turn, after one call of each to warm up."""
    seconds: list[list[float]] = [[] for _ in functions]
    for number in range(1 + repeats):
        for function, times in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            if number:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def core_count() -> int:
    """Number of usable CPU cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_of(work: Work, measured: list[Constants], rows: tuple[int, int]) -> Machine:
    """The machine whose ranks have measured `Constants`.

    A pass takes overhead + F N / flops, a line through two points; an all_reduce 2 (n - 1) (alpha + size / (n beta)).
    """
    n = len(measured)
    trained = [one for one in measured if one.many]
    few, many, update = (statistics.median(getattr(one, name) for one in trained) for name in ("few", "many", "update"))
    slope = max(many - few, 0.1 * many) / ((rows[1] - rows[0]) * work.context)
    overhead = max(0.0, many - slope * rows[1] * work.context)
    small, large = (statistics.median(getattr(one, name) for one in measured) for name in ("small_sum", "large_sum"))
    bandwidth = 2 * (n - 1) / n * (LARGE - SMALL) / max(large - small, 1e-9) if n > 1 else float("inf")
    latency = max(0.0, small / (2 * (n - 1)) - SMALL / (n * bandwidth)) if n > 1 else 0.0
    numbers = stage_of(work.shapes, Division(), Place(0, 0, 0)).size
    link = Link(latency, bandwidth)
    return Machine(work.flops / slope, link, link, n, overhead=overhead, update=update / numbers, cores=len(trained))


def few_and_many(batch: int) -> tuple[int, int]:
    """Two numbers of sequences to measure; the time of other numbers lies on the line through both."""
    return max(1, batch // 4), max(2, batch)


def train_and_measure(
    communicator: Communicator, kind: Any, config: Any, given: list[Division], batch: int, context: int, steps: int
) -> tuple[Constants, list[Measured]]:
    """Measure the machine's constants and every division; each rank calls this."""
    times, measured = [], []
    with tuned_process():  # as the trainer has it
        for division in given:  # both in turn, so that a change in the machine's speed meets both
            times.append(constants(communicator, kind, config, few_and_many(batch), context))
            measured.append(measure(communicator, kind, config, division, batch, context, steps))
    return Constants(*map(statistics.median, zip(*times, strict=True))), measured


class Run(NamedTuple):
    """The result of `measured_run`: bytes, and for each division the seconds of a step, measured and predicted."""

    exact: list[Table]
    machine: Machine
    times: list[tuple[Division, float, Seconds]]


def measured_run(name: str, nproc: int, batch: int, context: int | None = None, steps: int = 5) -> Run:
    """Train a small model on CPU ranks in every way there is, and compare with the formulas.

    Raises: InputError for a model that cannot be divided; what `launch` raises.
    """
    from minillm.parallel.launch import check_nproc, launch

    check_nproc(nproc)
    if batch < 1:
        raise InputError(f"parallel-report: the small batch has {batch} sequences; give 1 or more")
    kind, config, _ = look_up(name)
    config = replace(config, dropout=0.0) if hasattr(config, "dropout") else config
    work = work_of(name, context, "float32")
    heads = min(config.heads, getattr(config, "kv_heads", config.heads))
    given = divisions(nproc, work.shapes, heads, min(4, batch))
    outcomes = launch(train_and_measure, nproc, kind, config, given, batch, work.context, steps)
    measured = [outcome[1] for outcome in outcomes]
    machine = machine_of(work, [outcome[0] for outcome in outcomes], few_and_many(batch))
    times = [
        (division, max(rank[i].seconds for rank in measured), step_seconds(work, division, machine, batch))
        for i, division in enumerate(given)
    ]
    return Run(exact_tables(name, work.shapes, given, measured, batch, work.context), machine, times)


def time_table(name: str, run: Run) -> Table:
    """Measured and predicted seconds side by side."""
    rows = []
    for division, seconds, predicted in run.times:
        parts = (f"{1e3 * part:.1f}" for part in predicted)
        ratio = predicted.total / seconds
        rows.append((division.name, f"{1e3 * seconds:.1f}", f"{1e3 * predicted.total:.1f}", f"{ratio:.2f}", *parts))
    columns = ("division", "measured ms", "predicted ms", "ratio", "compute", "tensor", "bubble", "data", "update")
    return Table(f"{name}: seconds of a step on this machine, measured and predicted", columns, rows)


def told(machine: Machine) -> str:
    """The constants of a machine as one line of text."""
    latency, bandwidth = machine.node
    return (
        f"{machine.flops / 1e9:.1f} GFLOP/s a rank, {1e3 * machine.overhead:.2f} ms a micro-batch beside its products, "
        f"{1e9 * machine.update:.2f} ns a number to update, latency {1e6 * latency:.0f} us, "
        f"{in_bytes(bandwidth)}/s between ranks, shared by {machine.cores} at a time"
    )
