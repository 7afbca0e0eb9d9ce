"""The bytes that a rank sends in a step and keeps between steps, for each division of a training: computed, measured.

`step_bytes` and `kept_bytes` put together what the files beside this one say of themselves, for their product too. A
rank of a mesh dp x tp x pp is in part d of the batch, part t of each matrix, stage s of the pipeline. Its stage has
L_s of the L blocks; of each a row of U numbers, its parameters, cut by tp and each filled up to 16, the row filled up
so that 16 dp divides it; and R numbers in the root's row, 0 in a middle stage. It computes N_i tokens of micro-batch i,
m in all; k is the bytes of a number. A rank sends in a step

    data parallel    gradients             2 (dp - 1) / dp (L_s U + R) k
    ZeRO 1           gradients             half of that
                     parameters            the same
    ZeRO 2           gradients             (dp - 1) / dp (m L_s U + R) k
                     parameters            (dp - 1) / dp (L_s U + R) k
    ZeRO 3           gradients             as of stage 2
                     parameters            (dp - 1) / dp ((min(L, 2) + 2 m max(L - 2, 0)) U + R) k
    tensor parallel  activations           2 (tp - 1) / tp N_i C k (2 L_s, and 1 in the first stage)
                     activation gradients  2 (tp - 1) / tp N_i C k (2 L_s, and 1 in the last stage)
                     loss                  2 (tp - 1) / tp 3 N_i max(k, 4), in the last stage
    pipeline         activations           N_i C k, but for the last stage
                     gradients             N_i C k, but for the first; and the two stages with a tied table send it
                     loss                  8 (pp - 1), from the last

and of numbers of 8 bytes: the loss, and for each of its parameters whether it has a gradient, summed over dp; and the
square of the norm, summed over tp, over pp, and with ZeRO over dp. Recomputation makes the sums of the forward again.
The factor 2 (n - 1) / n is that of a ring, for numbers that n divides; otherwise part i of a sum, made by rank i, has a
number more or less, and `all_reduce_bytes` is exact: N + (n - 2) N_i of them.

A rank keeps, with AdamW, the table of the ZeRO paper (Rajbhandari et al. 2020, arXiv:1910.02054, figure 1), in which P
is (L_s U + R) k here, padding included, and a moment's bytes are those of float32 at least.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from minillm import random
from minillm.errors import InputError
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.models.llama import Llama, LlamaConfig
from minillm.optim import ALIGN, AdamW
from minillm.parallel import data_parallel, zero
from minillm.parallel.communicator import Communicator, Trace, bounds, bytes_sent
from minillm.parallel.mesh import Mesh, ParallelModel
from minillm.parallel.objective import next_token_batch
from minillm.parallel.pipeline import LAST_STAGE
from minillm.parallel.tensor_parallel import AXES, gpt2_table, llama_table
from minillm.study.describe.lookup import empty_model
from minillm.study.describe.tables import Table

TABLES = gpt2_table(GPT2Config()), llama_table(LlamaConfig())
CUT_AXES = {path.split(".")[-1]: AXES[how] for table in TABLES for path, (how, *_) in table.items() if how in AXES}
ROUNDING = 8  # bytes of a number that is summed beside the model: a loss, a norm


class Division(NamedTuple):
    """The way in which a training is divided."""

    dp: int = 1
    tp: int = 1
    pp: int = 1
    zero: int = 0
    micro_batches: int = 1
    recompute: bool = False  # whether every block is computed again in the backward

    @property
    def ranks(self) -> int:
        """Number of ranks of the whole job."""
        return self.dp * self.tp * self.pp

    @property
    def name(self) -> str:
        """The division as text, such as `dp 2 x tp 2, zero 1`."""
        sizes = {"dp": self.dp, "tp": self.tp, "pp": self.pp}
        found = " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "one process"
        return found + f", zero {self.zero}" * (self.zero > 0) + ", recompute" * self.recompute


class Place(NamedTuple):
    """The place of a rank in its mesh."""

    stage: int
    d: int
    t: int


def place(division: Division, rank: int) -> Place:
    """The place of a rank: rank = (stage dp + d) tp + t, as mesh.py counts."""
    rest, t = divmod(rank, division.tp)
    return Place(*divmod(rest, division.dp), t)


# --- how many numbers are where --------------------------------------------------------------------------------------


class Shapes(NamedTuple):
    """Shapes of a model's parameters, by name: in one block, before the blocks and after them."""

    block: dict[str, tuple[int, ...]]
    before: dict[str, tuple[int, ...]]
    after: dict[str, tuple[int, ...]]
    tied: str  # the one before that is the output layer too, or ""
    layers: int
    channels: int


def shapes_of(kind: Callable[[Any], Any], config: Any) -> Shapes:
    """The shapes of a GPT2 or a Llama, whose blocks are all alike; one block is built, without filling its arrays.

    Raises: InputError for another model.
    """
    if kind not in (GPT2, Llama):
        raise InputError(
            f"parallel-report: a {getattr(kind, '__name__', kind)} cannot be divided; give a GPT2 or a Llama"
        )
    model: Any = empty_model(kind, replace(config, layers=1), np.float32)
    parts: dict[str, dict[str, tuple[int, ...]]] = {"block": {}, "before": {}, "after": {}}
    for name, parameter in model.named_parameters():
        first = name.partition(".")[0]
        parts["block" if first == "h" else "after" if first in LAST_STAGE else "before"][name] = parameter.shape
    tied = [name for name, parameter in model.named_parameters() if parameter is model.output_weight]
    return Shapes(
        **parts, tied=tied[0] if tied[0] in parts["before"] else "", layers=config.layers, channels=config.channels
    )


def numbers_of(name: str, shape: tuple[int, ...], tp: int, t: int) -> int:
    """Number of elements of a parameter on rank t of a tensor-parallel group."""
    axis = CUT_AXES.get(name.split(".")[-2])
    if tp == 1 or axis is None or axis >= len(shape):
        return math.prod(shape)
    edges = bounds(shape[axis], tp)
    return math.prod(shape) // shape[axis] * (edges[t + 1] - edges[t])


class Row(NamedTuple):
    """Element counts of a unit (data_parallel.Unit): raw, padded per parameter, padded in total."""

    numbers: int
    used: int
    size: int


def row_of(shapes: Mapping[str, tuple[int, ...]], division: Division, t: int) -> Row:
    """The row in which parameters of these shapes lie; two groups, with and without weight decay, change nothing."""
    numbers = [numbers_of(name, shape, division.tp, t) for name, shape in shapes.items()]
    used = sum(_filled(count, ALIGN) for count in numbers)
    return Row(sum(numbers), used, _filled(used, ALIGN * division.dp))


def _filled(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


class Stage(NamedTuple):
    """The part of the model that a rank has."""

    layers: int
    block: Row
    root: Row
    parameters: int
    tied: int  # numbers of a table that another stage has too
    is_first: bool
    is_last: bool

    @property
    def size(self) -> int:
        """Elements of all rows, with their padding."""
        return self.layers * self.block.size + self.root.size

    @property
    def numbers(self) -> int:
        """Elements of all parameters."""
        return self.layers * self.block.numbers + self.root.numbers


def stage_of(shapes: Shapes, division: Division, at: Place) -> Stage:
    """The part of the model that the rank at a place has."""
    edges = bounds(shapes.layers, division.pp)
    is_first, is_last = at.stage == 0, at.stage == division.pp - 1
    tied = {shapes.tied: shapes.before[shapes.tied]} if shapes.tied else {}
    root = (shapes.before if is_first else {}) | (tied | shapes.after if is_last else {})
    shared = division.pp > 1 and (is_first or is_last)
    return Stage(
        edges[at.stage + 1] - edges[at.stage],
        row_of(shapes.block, division, at.t),
        row_of(root, division, at.t),
        (edges[at.stage + 1] - edges[at.stage]) * len(shapes.block) + len(root),
        sum(numbers_of(name, shape, division.tp, at.t) for name, shape in tied.items()) if shared else 0,
        is_first,
        is_last,
    )


def rows_of(division: Division, batch: int, d: int) -> list[int]:
    """Sequences of each micro-batch that part d of a batch has: one at least, if only to compute beside the others."""
    parts = bounds(batch, division.micro_batches)
    edges = [bounds(stop - first, division.dp) for first, stop in itertools.pairwise(parts)]
    return [max(1, edge[d + 1] - edge[d]) for edge in edges]


# --- formulas --------------------------------------------------------------------------------------------------------


def all_reduce_bytes(numbers: int, itemsize: int, ranks: int, rank: int) -> int:
    """Bytes that one rank of a group sends in an all_reduce: 2 (n - 1) / n of the array, where n divides its length."""
    edges = bounds(numbers, ranks)
    return itemsize * (numbers + (ranks - 2) * (edges[rank + 1] - edges[rank]))


def step_bytes(
    shapes: Shapes, division: Division, batch: int, context: int, itemsize: int = 4, rank: int = 0
) -> Counter[str]:
    """Bytes that a rank sends in a step, by kind of content: the formulas at the top of this file, exactly.

    batch, context: sequences of the whole batch, and tokens of each.
    """
    at = place(division, rank)
    stage = stage_of(shapes, division, at)
    tokens = [rows * context for rows in rows_of(division, batch, at.d)]
    sent: Counter[str] = Counter(_data_bytes(stage, division, itemsize))
    for count in tokens:
        sent.update(_tensor_bytes(stage, division, count, shapes.channels, itemsize, at.t))
        if not stage.is_last:
            sent["activations"] += count * shapes.channels * itemsize
        if not stage.is_first:
            sent["gradients"] += count * shapes.channels * itemsize
    if stage.is_last:
        sent["loss"] += ROUNDING * (division.pp - 1)
    sent["gradients"] += stage.tied * itemsize  # an all_reduce between two
    norm = [(division.tp, at.t), (division.pp, at.stage)] + [(division.dp, at.d)] * bool(division.zero)
    sent["numbers"] += sum(all_reduce_bytes(1, ROUNDING, n, i) for n, i in norm)
    sent["numbers"] += all_reduce_bytes(1 + stage.parameters, ROUNDING, division.dp, at.d)
    return +sent


def _data_bytes(stage: Stage, division: Division, itemsize: int) -> dict[str, int]:
    root, block = stage.root.size * itemsize, stage.block.size * itemsize
    if division.zero == 0:
        return data_parallel.step_bytes(root + stage.layers * block, division.dp)
    return zero.step_bytes(division.zero, root, block, stage.layers, division.dp, division.micro_batches)


def _tensor_bytes(
    stage: Stage, division: Division, tokens: int, channels: int, itemsize: int, t: int
) -> dict[str, int]:
    """Bytes of a micro-batch; `tensor_parallel.step_bytes` is their sum, for one stage and on average."""
    one = all_reduce_bytes(tokens * channels, itemsize, division.tp, t)
    loss = sum(all_reduce_bytes(count * tokens, max(4, itemsize), division.tp, t) for count in (1, 2))
    forwards = 2 if division.recompute else 1
    return {
        "activations": (2 * stage.layers * forwards + stage.is_first) * one,
        "activation gradients": (2 * stage.layers + stage.is_last) * one,
        "loss": loss * stage.is_last,
    }


def kept_bytes(shapes: Shapes, division: Division, itemsize: int = 4, rank: int = 0) -> dict[str, int]:
    """Bytes that a rank keeps from step to step: `parameters`, `gradients`, AdamW's `state`; and `working` rows.

    state: two moments of float32 at least, and float32 masters for parameters of fewer bits. working: of ZeRO 2 and 3,
    the rows that blocks use in turn, and the root's.
    """
    at = place(division, rank)
    stage, n = stage_of(shapes, division, at), division.dp
    whole, part, moved = stage.size, stage.size // n, 0
    for row, times in ((stage.block, stage.layers), (stage.root, 1)):
        size = row.size // n if division.zero else row.size
        first = at.d * size if division.zero else 0
        moved += times * (min(first + size, row.used) - min(first, row.used))  # no optimiser moves a row's last padding
    rows = 2 * stage.block.size * (stage.layers > 0)
    working = {2: rows + stage.root.size, 3: 2 * rows + 2 * stage.root.size}.get(division.zero, 0)
    return {
        "parameters": (part if division.zero == 3 else whole) * itemsize,
        "gradients": (part if division.zero >= 2 else whole) * itemsize,
        "state": moved * (2 * max(4, itemsize) + (4 if itemsize < 4 else 0)),
        "working": working * itemsize,
    }


def paper_bytes(parameters: float, division: Division) -> dict[str, float]:
    """The ZeRO paper's table for P bytes of parameters in float32 and AdamW: what a rank keeps, without padding."""
    n, z = division.dp, division.zero
    return {
        "parameters": parameters / (n if z == 3 else 1),
        "gradients": parameters / (n if z >= 2 else 1),
        "state": 2 * parameters / (n if z >= 1 else 1),
    }


# --- measured --------------------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """Measurements of a rank: bytes received in a step, by source and content; bytes kept; the median seconds."""

    received: Counter[tuple[int, str]]
    kept: dict[str, int]
    seconds: float


def measure(
    communicator: Communicator,
    kind: Callable[[Any], Any],
    config: Any,
    division: Division,
    batch: int,
    context: int,
    steps: int = 1,
    dtype: str = "float32",
) -> Measured:
    """Train a model on ranks, of which this is one: one step to warm up, and `steps` that are measured."""
    random.manual_seed(0)
    communicator.trace = trace = Trace()
    mesh = Mesh(communicator, division.dp, division.tp, division.pp)
    layers = range(config.layers) if division.recompute else ()
    parallel = ParallelModel(kind(config).to(dtype), mesh, 0.1, division.zero, layers=layers)
    optimizer = AdamW(parallel.groups, 1e-3)
    parallel.attach(optimizer)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (batch, context + 1))
    seconds = []
    for _ in range(1 + steps):
        communicator.barrier()
        trace.messages.clear()
        start = time.perf_counter()
        parallel.forward_backward(next_token_batch(ids[:, :-1], ids[:, 1:]), division.micro_batches)
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
        parallel.sync_parameters()
        seconds.append(time.perf_counter() - start)
    kept = parallel.data.memory()
    moments = [*optimizer.groups]
    kept["state"] = sum(moment.nbytes for group in moments for moment in group.moments.values())
    kept["state"] += sum(group.masters.nbytes for group in moments if group.masters is not group.data)
    received = bytes_sent(trace.messages)
    communicator.barrier()
    communicator.trace = None
    mesh.close()
    return Measured(received, kept, statistics.median(seconds[1:]))


def measure_all(
    communicator: Communicator, kind: Any, config: Any, divisions: Iterable[Division], *args: Any
) -> list[Measured]:
    """Measure the divisions one after another."""
    return [measure(communicator, kind, config, division, *args) for division in divisions]


def sent_by(rank: int, outcomes: Iterable[Measured]) -> Counter[str]:
    """Bytes that a rank sent, by content, from the messages that all ranks received."""
    sent: Counter[str] = Counter()
    for outcome in outcomes:
        sent.update({what: count for (source, what), count in outcome.received.items() if source == rank})
    return sent


def divisions(ranks: int, shapes: Shapes, heads: int, micro_batches: int = 4) -> list[Division]:
    """The ways to divide a training over so many ranks that differ in kind: each alone, and products."""
    found = [Division(dp=ranks, zero=stage) for stage in range(4)]
    for tp in divisors(ranks):
        for pp in divisors(ranks // tp):
            fits = heads % tp == 0 and pp <= shapes.layers and tp * pp > 1
            if fits:
                one = Division(ranks // tp // pp, tp, pp, micro_batches=micro_batches if pp > 1 else 1)
                found += [one, one._replace(zero=1)] if one.dp > 1 else [one]
    return list(dict.fromkeys(found))


def divisors(number: int) -> list[int]:
    """The numbers that divide a number, from 1 to itself."""
    return [i for i in range(1, number + 1) if number % i == 0]


KEPT = ("parameters", "gradients", "state")


def exact_tables(
    name: str, shapes: Shapes, given: list[Division], outcomes: list[list[Measured]], batch: int, context: int
) -> list[Table]:
    """Tables of bytes that ranks send and keep, measured and by formula. outcomes: the measurements of each rank."""
    sent_rows, kept_rows = [], []
    for number, division in enumerate(given):
        found, ranks = [rank[number] for rank in outcomes], range(division.ranks)
        sent = [(sent_by(rank, found), step_bytes(shapes, division, batch, context, 4, rank)) for rank in ranks]
        most = max(range(division.ranks), key=lambda rank: sum(sent[rank][0].values()))
        kinds = ", ".join(f"{what} {count:,}" for what, count in sent[most][0].items() if what != "numbers")
        sent_rows.append((division.name, *(f"{sum(one.values()):,}" for one in sent[most]), kinds, _verdict(sent)))
        kept = [(found[rank].kept, kept_bytes(shapes, division, 4, rank)) for rank in ranks]
        numbers = stage_of(shapes, division, place(division, 0)).numbers
        paper = sum(paper_bytes(4 * numbers, division).values())
        sums = (f"{sum(kept[0][i][name] for name in KEPT):,}" for i in (0, 1))
        each = (f"{kept[0][0][name]:,}" for name in (*KEPT, "working"))
        kept_rows.append((division.name, *each, *sums, f"{paper:,.0f}", _verdict(kept)))
    equal = "on every rank, by content"
    columns: tuple[str, ...] = ("division", "sent, measured", "by formula", "of which", equal)
    title = f"{name}: bytes that the rank which sends most sends in a step of {batch} x {context} tokens"
    sent_table = Table(title, columns, sent_rows)
    columns = ("division", *KEPT, "working", "the first three", "by formula", "ZeRO paper's, no padding", equal)
    return [sent_table, Table(f"{name}: bytes that rank 0 keeps from step to step, measured", columns, kept_rows)]


def _verdict(pairs: list[tuple[Any, Any]]) -> str:
    wrong = sum(dict(measured) != dict(formula) for measured, formula in pairs)
    return f"{wrong} ranks differ" if wrong else "equal"
