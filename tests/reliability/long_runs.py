"""Long runs: memory, file handles, threads and speed stay what they were.

One training of 20,000 steps; 1,000 trainings that start and stop in one process; 200 starts of two ranks by one
launcher process. What is counted as a fault: more than 1 MB of growth after the beginning, a file handle or a thread
that stays, a line of metrics.jsonl that is missing. `--count` is the number of the short trainings.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from minillm.models.gpt2 import GPT2Config
from minillm.training import TrainConfig, train
from tests.reliability.row import Row

ROOT = Path(__file__).parents[2]
ROOM = 1_000_000  # bytes of growth that are none


class Kept(NamedTuple):
    """The resources that a process holds."""

    memory: int  # bytes that are its own and in memory
    files: int
    threads: int

    @classmethod
    def now(cls) -> Kept:
        gc.collect()
        memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return cls(memory, len(os.listdir("/proc/self/fd")), threading.active_count())

    @classmethod
    def least(cls) -> Kept:
        """The least of several looks: a file that is open while a line or a checkpoint is written does not stay."""
        looks = []
        for _ in range(10):
            looks.append(cls.now())
            time.sleep(0.01)
        return cls(*map(min, zip(*looks, strict=True)))

    def faults_since(self, before: Kept) -> int:
        """Number of the resources of which there is more than before."""
        grown = self.memory - before.memory > ROOM
        return grown + (self.files > before.files) + (self.threads > before.threads)

    def told_since(self, before: Kept) -> str:
        return (
            f"memory {before.memory / 1e6:.1f} MB, then {self.memory / 1e6:.1f}; file handles {before.files}, then "
            f"{self.files}; threads {before.threads}, then {self.threads}"
        )


def measure(count: int) -> list[Row]:
    """The table's rows, each in a process of its own, so that what one leaves does not count for the next."""
    rows = []
    for name, size in (("many_steps", 20 * count), ("many_cycles", count), ("many_launches", max(3, count // 5))):
        call = f"json.dumps(long_runs.{name}({size}))"
        program = f"import json; from tests.reliability import long_runs; print({call})"
        found = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment(), check=True
        )
        rows.append(Row(*json.loads(found.stdout.splitlines()[-1])))
    return rows


def environment() -> dict[str, str]:
    """One thread each, so that a thread that is made late is not taken for one that stays."""
    return {**os.environ, "MINILLM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def settings(folder: Path, out: str, steps: int) -> TrainConfig:
    """A model of some thousand weights."""
    data = folder / "text.txt"
    if not data.exists():
        data.write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(300)))
    return TrainConfig(
        data=str(data),
        out=folder / out,
        tokenizer="char",
        model=GPT2Config(vocab_size=256, context=8, layers=1, heads=2, channels=16, dropout=0.1),
        steps=steps,
        batch_size=4,
        warmup=1,
        eval_every=max(1, steps // 4),
        eval_batches=1,
        sample_every=0,
        threads=1,
    )


def many_steps(steps: int) -> Row:
    """One training; its resources are looked at after a tenth of the steps, and at its end, by its own metrics."""
    with tempfile.TemporaryDirectory(prefix="minillm-long-") as name:
        folder = Path(name)
        config = settings(folder, "run", steps)
        looks: list[Kept] = []
        stop = threading.Event()

        def watch() -> None:
            done = position = 0
            while not stop.wait(0.05):
                file = folder / "run/metrics.jsonl"
                if file.exists():
                    with open(file, "rb") as opened:  # only what is new, so that looking costs the same all along
                        opened.seek(position)
                        new = opened.read()
                    position, done = position + len(new), done + new.count(b"\n")
                if done >= (steps // 10 if not looks else steps * 99 // 100):
                    looks.append(Kept.least())
                    if len(looks) == 2:
                        return

        watcher = threading.Thread(target=watch)
        watcher.start()
        train(config, progress=False)
        stop.set()
        watcher.join()
        lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    missing = len(set(range(1, steps + 1)) ^ {line["step"] for line in lines}) + len(lines) - len({*map(str, lines)})
    part = max(1, min(1000, steps // 10))
    times = [line["seconds"] for line in lines]
    first, last = (times[2 * part] - times[part]) / part, (times[-1] - times[-1 - part]) / part
    first_median = statistics.median(line["tokens_per_s"] for line in lines[part : 2 * part])
    last_median = statistics.median(line["tokens_per_s"] for line in lines[-part:])
    told = (
        f"{looks[1].told_since(looks[0])}; {len(lines):,} lines of metrics; speed of the last {part:,} steps beside "
        f"the second {part:,}: {first / last:.3f} by mean, {last_median / first_median:.3f} by median"
    )
    return Row("steps of one training", steps, looks[1].faults_since(looks[0]) + missing, told)


def many_cycles(count: int) -> Row:
    """Trainings of three steps that begin and end in one process; those of the first tenth warm it up."""
    warm = max(2, count // 10)
    missing = 0
    with tempfile.TemporaryDirectory(prefix="minillm-long-") as name:
        folder = Path(name)
        for number in range(count):
            if number == warm:
                before = Kept.now()
            with _silent():
                run = train(settings(folder, f"run{number}", 3), progress=False)
            missing += [line["step"] for line in run.metrics()] != [1, 2, 3]
        after = Kept.now()
    told = after.told_since(before)
    return Row("trainings that start and stop in one process", count, after.faults_since(before) + missing, told)


def many_launches(count: int) -> Row:
    """Starts of two ranks by one process, each time for a few steps of a training."""
    from minillm.parallel.launch import launch

    warm = max(1, count // 10)
    missing = 0
    with tempfile.TemporaryDirectory(prefix="minillm-long-") as name:
        folder = Path(name)
        for number in range(count):
            if number == warm:
                before = Kept.now()
            launch(train_on_ranks, 2, folder, f"run{number}")
            missing += (folder / f"run{number}/metrics.jsonl").read_text().count("\n") != 3
        after = Kept.now()
    told = after.told_since(before)
    return Row("starts of two ranks by one process", count, after.faults_since(before) + missing, told)


def train_on_ranks(communicator, folder: Path, out: str) -> None:
    with _silent():
        train(settings(folder, out, 3), communicator=communicator, progress=False)


class _silent:
    """Without what a training shows, which is not looked at here."""

    def __enter__(self) -> None:
        self.before, sys.stdout = sys.stdout, open(os.devnull, "w")

    def __exit__(self, *_: object) -> None:
        sys.stdout.close()
        sys.stdout = self.before
