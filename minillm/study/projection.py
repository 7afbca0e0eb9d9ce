"""The time of a step, and the memory of a rank, on a machine given by a few numbers: from a laptop to a cluster.

**A message** of N bytes takes alpha + N / beta seconds: a latency, and a bandwidth. A ring of n ranks, each with an
array of N bytes, makes n - 1 steps of N / n bytes for a reduce_scatter or an all_gather, and an all_reduce is both:

    reduce_scatter, all_gather   T(N, n) = (n - 1) (alpha + N / (n beta))       all_reduce   2 T

(Patarasuk, Yuan 2009, "Bandwidth optimal all-reduce algorithms", section 2). A group of n = g q ranks, g in each of q
nodes, scatters within the nodes and then, each rank with its N / g bytes, between them; gathers go the other way:

    T(N, n) = T_node(N, g) + T_network(N / g, q)

**A micro-batch** of N tokens, on stage s with L_s of the L blocks, needs for forward and backward

    compute   (L_s F + [last stage] F_out) N / (tp flops) + overhead L_s / L        a third of it the forward
    memory    12 (L_s K + [last stage] K_out) N / traffic, where a forward leaves K bytes a token for its backward
    sums      4 L_s all_reduces over tp of N C numbers, 6 L_s with recomputation, 1 for the embedding, 1 for the logits,
              and 2 for the loss, of N and of 2 N numbers

where F is the number of FLOPs of a block's products for a token, and K what is kept (study/describe). Each number kept
is written, read, and read again in the backward, which writes and reads its gradient; numbers that are not kept, such
as the summands of the residual stream, make it 12 where kernels are not fused (a fit: study/plan/gpus.py). All-reduces
of tensor parallelism block what follows, so they are added (Shoeybi et al. 2019, arXiv:1909.08053, section 3).
Recomputation adds a forward.

**A step** of m micro-batches on p stages takes m + p - 1 times as long as the slowest stage needs for one, so that of
its time (p - 1) / (m + p - 1) is the bubble (Narayanan et al. 2021, arXiv:2104.04473, section 2.2.1), and 2 (p - 1)
messages between stages as the pipeline fills and empties; the others go on while stages compute.

**Data parallel.** The sums of gradients go on while the backward of the last micro-batch does. What shows is the root's
sum, which comes last, or what is more than the backward's time. ZeRO 1 and 2 gather parameters after the update, and
nothing hides it; ZeRO 2 sums the blocks in each micro-batch. ZeRO 3 gathers the blocks while those before them compute,
in forward and backward: what shows is what takes longer than they (Rajbhandari et al. 2020, arXiv:1910.02054, section
7; overlap as in Rasley et al. 2020, DeepSpeed, and here zero.py).

**Memory.** A rank holds the bytes of `parallel_report.kept_bytes`, and activations: those that study/describe counts,
of which the parts between the two ends of a pair of matrices are cut by tp; stage s has those of min(m, p - s)
micro-batches. With recomputation a micro-batch leaves a block's input alone, and one block has all. On top comes the
gradient of the residual stream, which begins while everything is still kept.

**Ranks that share cores** (a laptop): nothing is hidden, as no core is idle, and all ranks' work, over the cores, is
the least that a step takes. With more ranks than cores a pipeline's bubble costs nothing: another stage computes in it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from minillm.errors import InputError
from minillm.parallel.communicator import bounds
from minillm.study.describe import describe_config
from minillm.study.describe.description import Kept
from minillm.study.describe.lookup import look_up
from minillm.study.describe.tables import Table, in_bytes
from minillm.study.parallel_report import (
    Division,
    Place,
    Shapes,
    divisors,
    kept_bytes,
    shapes_of,
    stage_of,
)

TOUCHED = 12  # times that as many bytes as are kept for a backward go to memory or come from there
ROWS = (1, 2, 4, 8, 16, 32)  # sequences of a micro-batch that are tried
WHOLE = ("attn.qkv ", "attn rope", "mlp.fc ", "mlp.gate ", "mlp.up ")  # operations whose inputs every rank has whole


class Link(NamedTuple):
    """Between two ranks: seconds of a message of no bytes, and bytes a second."""

    latency: float
    bandwidth: float


class Machine(NamedTuple):
    """The machine that a training runs on. Bandwidths are those of a rank."""

    flops: float  # operations of matrix products a second, as a rank reaches them
    node: Link
    network: Link
    per_node: int  # ranks
    memory: float = float("inf")  # bytes of a rank
    overhead: float = 0.0  # seconds of a micro-batch's way through the whole model that no product takes
    update: float = 0.0  # seconds that the optimiser takes for a number
    traffic: float = float("inf")  # bytes a second between a rank and its memory, for what is not a matrix product
    cores: int = 0  # that all ranks share; 0: each has its own, and others for what it sends


class Work(NamedTuple):
    """The FLOPs and bytes that a model needs for one token."""

    shapes: Shapes
    context: int
    itemsize: int
    block_flops: float  # forward and backward
    outer_flops: float
    block_kept: tuple[float, float]  # bytes that a forward leaves, in every rank whole, and cut by tp
    outer_kept: tuple[float, float]

    @property
    def flops(self) -> float:
        """FLOPs of the whole model."""
        return self.shapes.layers * self.block_flops + self.outer_flops

    def message(self, tokens: float) -> float:
        """Bytes of the residual stream of `tokens` tokens."""
        return tokens * self.shapes.channels * self.itemsize


def work_of(name: str | Path, context: int | None = None, dtype: str = "bfloat16") -> Work:
    """The work of a preset, or of another model that `describe` takes.

    Raises: InputError for what describe does not know, or a model that cannot be divided.
    """
    kind, config, _ = look_up(name)
    return work_of_config(str(name), kind, config, context, dtype)


@functools.lru_cache(maxsize=64)  # a step of billions of weights takes seconds to describe
def work_of_config(
    name: str, kind: Callable[[Any], Any], config: Any, context: int | None = None, dtype: str = "bfloat16"
) -> Work:
    """The work of the model of class `kind` that a configuration means."""
    shapes = shapes_of(kind, config)
    found = describe_config(name, kind, config, 1, context, dtype)
    blocks, alls = (
        sum(getattr(amount, field) for way in (found.forward, found.backward) for amount in way.values())
        for field in ("block", "total")
    )
    kept = {
        cut: [
            sum(getattr(amount, field) for key, amount in found.kept.items() if _is_cut(key) == cut) / found.tokens
            for field in ("block", "total")
        ]
        for cut in (False, True)
    }
    (whole, all_whole), (parts, all_parts), layers = kept[False], kept[True], shapes.layers
    return Work(
        shapes,
        found.context,
        found.itemsize,
        blocks / found.tokens,
        (alls - layers * blocks) / found.tokens,
        (whole, parts),
        (all_whole - layers * whole, all_parts - layers * parts),
    )


def _is_cut(key: Kept) -> bool:
    """Tell whether tensor parallelism cuts these arrays: those of heads, of MLP channels, of the vocabulary."""
    if key.part in ("attention", "MLP"):
        return not key.operation.startswith(WHOLE)
    return key.names == "logits"


# --- messages --------------------------------------------------------------------------------------------------------


def scatter_seconds(machine: Machine, size: float, ranks: int, stride: int = 1) -> float:
    """Seconds of a reduce_scatter or an all_gather of `size` bytes between ranks whose numbers are `stride` apart."""
    near = max(1, min(ranks, machine.per_node // stride))
    far = -(-ranks // near)
    (a, b), (c, d) = machine.node, machine.network
    return (near - 1) * (a + size / (near * b)) + (far - 1) * (c + size / (near * far * d))


def message_seconds(machine: Machine, size: float, stride: int, ranks: int) -> float:
    """Seconds of a message to the rank that is `stride` further, for the slowest pair of `ranks` ranks."""
    link = machine.node if stride * ranks <= machine.per_node else machine.network
    return link.latency + size / link.bandwidth


# --- a step ----------------------------------------------------------------------------------------------------------


class Seconds(NamedTuple):
    """The parts of a step's time, in seconds."""

    compute: float
    tensor: float = 0.0  # sums of tensor parallelism
    bubble: float = 0.0  # a stage waits, or sends what nothing hides
    data: float = 0.0  # of sums and gathers of data parallel what nothing hides
    update: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return sum(self)


def step_seconds(work: Work, division: Division, machine: Machine, batch: int) -> Seconds:
    """The time of a step of `batch` sequences; see the formulas on top of this file."""
    dp, tp, pp, m = division.dp, division.tp, division.pp, division.micro_batches
    tokens = -(-batch // (m * dp)) * work.context
    edges = bounds(work.shapes.layers, pp)
    passes = [_pass_seconds(work, division, machine, tokens, edges[s + 1] - edges[s], s) for s in range(pp)]
    slowest = max(range(pp), key=lambda s: sum(passes[s]))
    forward, backward, tensor = passes[slowest]
    compute, bubble = m * (forward + backward), (pp - 1) * (forward + backward + tensor)
    sending = 2 * (pp - 1) * message_seconds(machine, work.message(tokens), dp * tp, pp) if pp > 1 else 0.0
    stages = [stage_of(work.shapes, division, Place(s, 0, 0)) for s in {0, slowest, pp - 1}]
    data = max(_data_seconds(work, stage, division, machine, forward, backward) for stage in stages)
    kept = max(stage.size for stage in stages) / (dp if division.zero else 1)
    update = kept * machine.update
    if machine.cores:
        busy = m * dp * tp * sum(forward + backward for forward, backward, _ in passes) / machine.cores
        if busy > compute + bubble:
            compute, bubble = busy, 0.0
        update *= max(1.0, division.ranks / machine.cores)
    return Seconds(compute, m * tensor, bubble + sending, data, update)


def _pass_seconds(
    work: Work, division: Division, machine: Machine, tokens: int, layers: int, stage: int
) -> tuple[float, float, float]:
    """Seconds of a micro-batch's forward, its backward, and their all-reduces, on a stage of `layers` blocks."""
    is_first, is_last = stage == 0, stage == division.pp - 1
    block, outer = (
        tokens * (flops / (division.tp * machine.flops) + TOUCHED * (whole + cut / division.tp) / machine.traffic)
        for flops, (whole, cut) in (
            (work.block_flops, work.block_kept),
            (work.outer_flops, work.outer_kept),
        )
    )
    blocks = layers * (block + machine.overhead / work.shapes.layers)
    outside = is_last * outer
    forward = (blocks + outside) / 3
    backward = 2 * forward + (blocks / 3 if division.recompute else 0.0)
    if division.tp == 1:
        return forward, backward, 0.0
    sizes = (work.message(tokens), 4 * tokens, 8 * tokens)  # of the stream; in the loss a maximum, and two sums
    stream, *loss = (2 * scatter_seconds(machine, size, division.tp) for size in sizes)
    sums = layers * (6 if division.recompute else 4) + is_first + is_last
    return forward, backward, sums * stream + is_last * sum(loss)


def _data_seconds(
    work: Work, stage: Any, division: Division, machine: Machine, forward: float, backward: float
) -> float:
    """Communication time of a data-parallel group that is not hidden by compute."""
    if division.dp == 1:
        return 0.0
    block, root = (
        scatter_seconds(machine, row.size * work.itemsize, division.dp, division.tp)
        for row in (stage.block, stage.root)
    )
    blocks, m = stage.layers * block, division.micro_batches

    def beside(sending: float, computing: float) -> float:
        return sending if machine.cores else max(0.0, sending - computing)

    if division.zero == 0:
        return beside(2 * blocks, backward) + 2 * root
    if division.zero == 1:
        return beside(blocks, backward) + root + blocks + root
    if division.zero == 2:
        return m * beside(blocks, backward) + root + blocks + root
    gathers = max(0, stage.layers - 2) * block  # two blocks are there still, from the pass before
    return m * (beside(gathers, forward) + beside(gathers + blocks, backward)) + 2 * root


def rank_bytes(work: Work, division: Division, batch: int) -> float:
    """Bytes at the peak of the rank that holds most: its lasting arrays and its activations."""
    tokens = -(-batch // (division.micro_batches * division.dp)) * work.context
    edges = bounds(work.shapes.layers, division.pp)
    block, outer = (whole + cut / division.tp for whole, cut in (work.block_kept, work.outer_kept))

    def held(s: int) -> float:
        layers, alive = edges[s + 1] - edges[s], min(division.micro_batches, division.pp - s)
        in_block = work.message(1) if division.recompute else block
        kept = alive * layers * in_block + block * division.recompute + outer * (s == division.pp - 1)
        own = kept_bytes(work.shapes, division, work.itemsize, s * division.dp * division.tp)
        return sum(own.values()) + (kept + work.message(1)) * tokens

    return max(map(held, {0, division.pp - 1}))  # the first has most layers, and most alive; the last the logits


# --- a cluster -------------------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """A way to divide a training over a cluster, and what comes of it."""

    division: Division
    rows: int  # sequences of a rank's micro-batch
    seconds: Seconds
    bytes: float
    tokens: int  # in a step
    efficiency: float  # tokens a second and GPU, beside those of one GPU alone that had the memory


def settings(work: Work, machine: Machine, gpus: int, batch: int, heads: Iterable[int]) -> list[Setting]:
    """The settings that fit in memory, fastest first: the best one for each dp, tp, pp, ZeRO stage and recomputation.

    tp stays within a node and divides `heads`, the sizes that are cut; each micro-batch has as many sequences, 1 to 32.
    """
    best: dict[Division, Setting] = {}
    for setting in tried(work, machine, gpus, batch, heads):
        way = setting.division._replace(micro_batches=1)
        if setting.bytes <= machine.memory and (way not in best or setting.seconds.total < best[way].seconds.total):
            best[way] = setting
    return sorted(best.values(), key=lambda setting: setting.seconds.total)


def tried(work: Work, machine: Machine, gpus: int, batch: int, heads: Iterable[int]) -> Iterator[Setting]:
    """Every setting that the engine has for so many GPUs, also those that need too much memory."""
    for division in ways(work, min(machine.per_node, gpus), gpus, heads):
        for rows in ROWS:
            if batch % (division.dp * rows):
                continue
            given = division._replace(micro_batches=batch // (division.dp * rows))
            seconds = step_seconds(work, given, machine, batch)
            tokens = batch * work.context
            alone = tokens * work.flops / machine.flops
            efficiency = alone / (given.ranks * seconds.total)
            yield Setting(given, rows, seconds, rank_bytes(work, given, batch), tokens, efficiency)


def ways(work: Work, per_node: int, gpus: int, heads: Iterable[int]) -> Iterator[Division]:
    """Every dp x tp x pp of so many GPUs, with each ZeRO stage that it can have, with and without recomputation."""
    sizes = (per_node, *heads)
    for tp in divisors(gpus):
        for pp in divisors(gpus // tp) if all(size % tp == 0 for size in sizes) else ():
            dp = gpus // (tp * pp)
            for stage in range(4 if pp == 1 else 2) if dp > 1 else (0,):
                if pp <= work.shapes.layers:
                    yield from (Division(dp, tp, pp, stage, 1, recompute) for recompute in (False, True))


GPU_SETTINGS = (
    *("flops", "mfu", "memory", "memory_bandwidth", "gpus_per_node"),
    *("link_bandwidth", "network_bandwidth", "latency"),
)
MOVED = (
    28  # bytes that AdamW reads and writes for a number in bfloat16: gradient, master, two moments; all but the first
)


def gpu_machine(
    flops: float,
    mfu: float,
    memory: float,
    memory_bandwidth: float,
    gpus_per_node: int,
    link_bandwidth: float,
    network_bandwidth: float,
    latency: float,
) -> Machine:
    """A cluster of GPUs: a GPU's peak FLOP/s, the share `mfu` of it that is reached, its memory, and its links.

    Raises: InputError for a number that is not above 0.
    """
    for name, value in locals().items():
        if not value > 0:
            raise InputError(f"parallel-report: {name} is {value}; give a number above 0")
    node, network = Link(latency, link_bandwidth), Link(latency, network_bandwidth)
    return Machine(flops * mfu, node, network, gpus_per_node, memory, update=MOVED / memory_bandwidth)


def projection_tables(name: str, machine: Machine, gpus: int, batch: int, context: int | None) -> Iterator[Table]:
    """Tables of the best settings on `gpus` GPUs, and of the best one on fewer GPUs.

    Raises: InputError where nothing fits, or for a model that cannot be divided.
    """
    if min(gpus, batch) < 1:
        raise InputError(f"parallel-report: --gpus is {gpus} and --batch-size {batch}; give 1 or more")
    kind, config, _ = look_up(name)
    shapes_of(kind, config)  # raises for a model that cannot be divided
    work = work_of(name, min(config.context, 4096) if context is None else context)
    heads = cut_sizes(config)
    found = settings(work, machine, gpus, batch, heads)
    if not found:
        raise InputError(
            f"parallel-report: no setting of {gpus} GPUs trains {name} on {batch} sequences of {work.context} tokens "
            f"in {in_bytes(machine.memory)} a GPU; give --memory, --gpus, or a --batch-size that more GPUs divide"
        )
    step = f"{name}, bfloat16, a step of {batch} x {work.context} tokens"
    columns = ("setting", "micro-batches", "step", "tensor", "bubble", "data", "a GPU holds", "tokens/s", "efficiency")
    yield Table(f"{step} on {gpus} GPUs: the fastest settings that fit", columns, [_row(one) for one in found[:12]])
    rows = []
    for count in _powers_below(gpus):
        best = settings(work, machine, count, batch, heads)[:1]
        rows += [(f"{count:,}", *_row(best[0]))] if best else [(f"{count:,}", "none fits", *[""] * 8)]
    rows.append((f"{gpus:,}", *_row(found[0])))
    yield Table(f"{step}: the fastest on fewer GPUs", ("GPUs", *columns), rows)


def cut_sizes(config: Any) -> tuple[int, ...]:
    """The sizes of a configuration that tensor parallelism divides: heads, heads of keys, channels of the MLP."""
    return (
        config.heads,
        getattr(config, "kv_heads", config.heads),
        getattr(config, "size_of_mlp", 0) or config.hidden,
    )


def _powers_below(most: int) -> list[int]:
    return [1 << i for i in range(most.bit_length()) if 1 << i < most]


def _row(found: Setting) -> tuple[str, ...]:
    seconds, total = found.seconds, found.seconds.total
    shares = (f"{part / total:.0%}" for part in (seconds.tensor, seconds.bubble, seconds.data))
    count = f"{found.division.micro_batches} x {found.rows}"
    rate = f"{found.tokens / total:,.0f}"
    name = found.division.name
    return name, count, f"{total:.3g} s", *shares, in_bytes(found.bytes), rate, f"{found.efficiency:.0%}"
