"""Many ranks on one machine: `python benchmarks/parallel.py [--out benchmarks/results/parallel.md]`.

It makes tables of the bytes sent and the memory kept, measured and by formula, for 2 and 4 ranks; of the time of a step
in every way of dividing it, measured and predicted by minillm/study/this_machine.py from constants that the same run
measures; and of the speed of data parallel in two processes, of one thread each, beside one process of two threads.

The last is measured in one pair of processes: in each round the first trains alone, on two threads, while the second
waits; then both train together, on one each. Alone it trains in the way of cutting that is the fastest for it, as in
`minillm train`. A ratio is the median over rounds of (alone) / (together): above 1, two processes are faster. `--sleep`
slows the hand-over between threads by so many microseconds, as in train_cpu.py.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from minillm import backend
from minillm.backend import cut_by
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.optim import AdamW
from minillm.parallel.launch import launch
from minillm.parallel.mesh import Mesh, ParallelModel
from minillm.parallel.objective import next_token_batch
from minillm.study.this_machine import measured_run, time_table, told
from minillm.training.config import preset
from minillm.training.whole_model import accumulate_gradients
from minillm.tuning import BLAS_AWAKE, fastest_way, own_choice, own_threads, tuned_process, ways_of_cutting

CONFIGS = {  # model and batch: those of the presets, without dropout
    "nano": (GPT2Config.preset("nano"), 8),
    "shakespeare-char-cpu (tiny)": (GPT2Config.preset("tiny"), preset("shakespeare-char-cpu").batch_size),
    "default": (GPT2Config(1024, context=128, layers=4, heads=4, channels=128), preset("default").batch_size),
    "baby": (GPT2Config.preset("baby"), 8),
}
STEPS = {"nano": 20, "baby": 1}  # a round; others 5


def compare(communicator, config, batch, rounds, steps, sleep):
    """Seconds of a step in each round: of one process on two threads, and of two processes."""
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (batch, config.context + 1))
    x, y = ids[:, :-1], ids[:, 1:]
    alone = GPT2(config)
    alone_optimizer = AdamW(alone.parameters(), 1e-3)
    together = ParallelModel(GPT2(config), Mesh(communicator))
    optimizer = AdamW(together.groups, 1e-3)
    together.attach(optimizer)

    def train_alone():
        alone_optimizer.zero_grad()
        accumulate_gradients(alone, next_token_batch(x, y), 1)
        alone_optimizer.clip_grad_norm(1.0)
        alone_optimizer.step()

    def train_together():
        together.forward_backward(next_token_batch(x, y))
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
        together.sync_parameters()

    def timed(function):
        communicator.barrier()
        time.sleep(BLAS_AWAKE)
        start = time.perf_counter()
        for _ in range(steps):
            function()
        communicator.barrier()
        return (time.perf_counter() - start) / steps

    backend.wake_up_delay = 1e-6 * sleep
    alone_way = own_threads(1)
    if communicator.rank == 0:
        own = own_choice(communicator.size)
        with tuned_process(own.cutting):
            alone_way = fastest_way(train_alone, ways_of_cutting(own), rounds=8).cutting
    found = []
    with tuned_process():
        for _ in range(1 + rounds):  # the first to warm up
            with cut_by(alone_way):
                one = timed(train_alone if communicator.rank == 0 else lambda: None)
            with cut_by(own_threads(1)):
                found.append((one, timed(train_together)))
    return found[1:]


def speed_table(names, rounds, sleep):
    """The table of two processes beside one, as lines of Markdown."""
    yield "| configuration | one process ms | two processes ms | two beside one |"
    yield "|---|---|---|---|"
    for name in names:
        config, batch = CONFIGS[name]
        times = launch(compare, 2, config, batch, rounds, STEPS.get(name, 5), sleep)[0]
        one, two = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
        ratios = [a / b for a, b in times]
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        yield f"| {name} | {one:.1f} | {two:.1f} | **{statistics.median(ratios):.2f}** {spread} |"


def markdown(table):
    """A table as lines of Markdown."""
    lines = [f"## {table.title}", "", f"| {' | '.join(table.columns)} |", "|---" * len(table.columns) + "|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in table.rows), ""]


def report(arguments):
    """The whole report, as lines of Markdown."""
    yield "# Many ranks on one machine"
    yield ""
    yield (
        f"`python benchmarks/parallel.py`: Python {sys.version.split()[0]}, NumPy {np.__version__}, "
        "ranks of one thread; medians."
    )
    yield ""
    for nproc in arguments.nproc:
        run = measured_run(arguments.model, nproc, arguments.batch_size, steps=arguments.steps)
        for table in run.exact:
            yield from markdown(table)
        yield from markdown(time_table(f"{arguments.model}, {nproc} ranks", run))
        yield f"Predicted with what short runs in between found: {told(run.machine)}."
        yield ""
    yield "## Data parallel in two processes of one thread, beside one process of two"
    yield ""
    yield f"{arguments.rounds} interleaved rounds, medians (lowest to highest); above 1, two processes are faster."
    yield ""
    yield from speed_table(arguments.configs, arguments.rounds, arguments.sleep)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--nproc", nargs="*", type=int, default=[2, 4])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--configs", nargs="*", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--sleep", type=float, default=0.0, help="us that a woken thread sleeps first")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="write the tables to this Markdown file too")
    arguments = parser.parse_args()
    lines = []
    for line in report(arguments):
        print(line, flush=True)
        lines.append(line)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
