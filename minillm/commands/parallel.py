"""`minillm parallel-report` and `minillm pipeline-picture`: what dividing a training costs, measured and by formula."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from minillm.commands.common import print_tables
from minillm.errors import InputError
from minillm.files import check_folder_of
from minillm.options import Positional, read


@dataclass(frozen=True)
class ParallelReport:
    """Report bytes, memory and time of each way of dividing a training: measured here, and projected to a cluster."""

    model: Positional[str] = "gpt2-xl"
    """Model to train on the cluster: a preset such as llama-2-7b, a folder with config.json, or a .gguf."""
    nproc: int = 4
    """Ranks on this machine, on which a small model is trained in every way; 0 for none."""
    small: str = "tiny"
    """Preset of the small model."""
    small_batch_size: int = 8
    """Sequences of the small model's batch."""
    gpus: int = 1024
    """GPUs of the cluster."""
    gpus_per_node: int = 8
    """GPUs of a machine."""
    batch_size: int = 1024
    """Sequences of a step on the cluster."""
    context: int | None = None
    """Tokens per sequence; the model's own by default, but 4096 at most."""
    flops: float = field(default=989e12, metadata={"unit": "FLOP/s"})
    """Peak FLOP/s of a GPU in bfloat16, as its maker names it."""
    mfu: float = 0.5
    """Share of the peak that a GPU reaches alone."""
    memory: float = field(default=80e9, metadata={"unit": "bytes"})
    """Bytes of a GPU's memory."""
    memory_bandwidth: float = field(default=3.35e12, metadata={"unit": "bytes a second"})
    """Bytes a second of a GPU's memory."""
    link_bandwidth: float = field(default=450e9, metadata={"unit": "bytes a second"})
    """Bytes a second between the GPUs of a machine, each way."""
    network_bandwidth: float = field(default=50e9, metadata={"unit": "bytes a second"})
    """Bytes a second of a GPU to other machines, each way."""
    latency: float = 5e-6
    """Seconds of a message without content."""


def parallel_report(arguments: list[str]) -> None:
    """Print bytes, memory and time of each way of dividing a training, here and on a cluster."""
    from minillm.study import projection, this_machine

    given = read(ParallelReport, "parallel-report", arguments)
    if given.small_batch_size < 1:
        raise InputError(f"parallel-report: the small batch has {given.small_batch_size} sequences; give 1 or more")
    if given.nproc < 0:
        raise InputError(f"parallel-report: {given.nproc} ranks cannot be started; give 0 or more")
    machine = projection.gpu_machine(**{name: getattr(given, name) for name in projection.GPU_SETTINGS})
    tables = list(projection.projection_tables(given.model, machine, given.gpus, given.batch_size, given.context))
    if given.nproc:
        run = this_machine.measured_run(given.small, given.nproc, given.small_batch_size)
        print_tables([*run.exact, this_machine.time_table(given.small, run)], 130)
        print(f"predicted with what a short run found: {this_machine.told(run.machine)}")
    print_tables(tables, 130)


@dataclass(frozen=True)
class PipelinePicture:
    """Draw when each stage of a pipeline computes and when it waits, measured on processes of this machine."""

    stages: int = 4
    """Processes; each has a stage of a small GPT."""
    micro_batches: int = 8
    """Parts of the batch, which follow one another through the stages."""
    schedule: Literal["1f1b", "gpipe"] = "1f1b"
    """Order in which a stage does forwards and backwards."""
    out: Path = Path("pipeline.png")
    """Picture to write, a PNG."""


def pipeline_picture(arguments: list[str]) -> None:
    """Measure and draw a pipeline's schedule."""
    from minillm.study.picture import draw, measure

    given = read(PipelinePicture, "pipeline-picture", arguments)
    if given.out.suffix.lower() != ".png":
        raise InputError(f"pipeline-picture: --out is {given.out}; give the name of a file that ends in .png")
    check_folder_of("pipeline-picture", "--out", given.out)
    measured = measure(given.stages, given.micro_batches, given.schedule)
    draw(measured, given.out)
    print(f"{measured.title()}; a step takes {1e3 * measured.seconds():.0f} ms: {given.out}")
