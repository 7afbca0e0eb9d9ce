"""Parallel training on one GPU: a group of one rank, in which every operation is still a call of NCCL.

With one rank the result of each operation is its input, so a training through it must equal that of one process. This
does not show that sums of several ranks are right: tests/parallel shows it on CPUs, with the same calls to a stand-in
for NCCL.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib.util
import os
import pickle
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from gpu_job import Job, verdict
from gpu_training import BETAS, DECAY, LEARNING_RATE, MAX_NORM, gpt2, our_step, random_batches

import minillm
from minillm import random
from minillm.device import to_host
from minillm.dtypes import as_dtype
from minillm.engine import engine
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.optim import AdamW
from minillm.parallel.communicator import Communicator
from minillm.parallel.mesh import Mesh, ParallelModel
from minillm.parallel.nccl import connect
from minillm.parallel.objective import next_token_batch

# Of a loss or a norm. The norm is summed unit by unit, so in another order than without ranks, and its last bit moves
# weights; in bfloat16 ZeRO from stage 2 on rounds the sum of two micro-batches that a matrix product adds in float32.
ALLOWED = {"float32": 1e-6, "bfloat16": 2.0**-8}


class OneRank:
    """A job of one rank; see nccl.Job."""

    rank, size = 0, 1

    def share(self, value: bytes) -> bytes:
        return value

    def check(self) -> None:
        return None

    def on_failure(self, callback: Callable[..., None]) -> None:
        return None


def ranks(job: Job, part: str) -> None:
    """Run one of PARTS through a communicator of one rank."""
    if job.nccl is None:
        return
    communicator = connect(OneRank(), 0)
    with engine("fast" if job.dry else "require"):  # the emulator would take minutes
        PARTS[part](job, communicator)
    communicator.close()


# ---- operations -----------------------------------------------------------------------------------------------------


def operations(job: Job, communicator: Communicator) -> None:
    """Check every operation bit by bit; the memory that it writes to was full of NaN."""
    table = job.table("One rank's operations", "operation", "dtype", "sizes", "verdict")
    sizes = 1, 1023, job.size(5_000_011, 4099)
    for dtype in ("float32", "float64", "bfloat16"):
        passed: dict[str, bool] = {}
        for size in sizes:
            x = job.random((size,), as_dtype(dtype))
            for name, result in results(job, communicator, x):
                passed[name] = passed.get(name, True) and to_host(result).tobytes() == to_host(x).tobytes()
        for name, right in passed.items():
            table.row(name, dtype, len(sizes), verdict(right))
    communicator.barrier()
    table.row("barrier", None, None, verdict(True))
    table.row("sum_of", "float64", None, verdict(communicator.sum_of(0.1, -1e300) == [0.1, -1e300]))
    table.row("max_of", "float64", None, verdict(communicator.max_of(-2.5, 1e-300) == [-2.5, 1e-300]))


def results(job: Job, communicator: Communicator, x: Any) -> Iterator[tuple[str, Any]]:
    """The name and the result of each operation on x; with one rank the result is x."""
    nothing = np.full_like(x, np.nan)
    for op in ("sum", "mean", "max"):
        y = x.copy()
        communicator.all_reduce(y, op).wait()
        yield f"all_reduce {op}", y
        y = x.copy()
        communicator.reduce(y, 0, op).wait()
        yield f"reduce {op}", y
        y, out = x.copy(), nothing.copy()
        communicator.reduce_scatter(y, out, op).wait()
        yield f"reduce_scatter {op}", out
        communicator.reduce_scatter(y, y, op).wait()
        yield f"reduce_scatter {op}, in place", y
    y, out = x.copy(), nothing.copy()
    communicator.all_gather(y, out).wait()
    yield "all_gather", out
    communicator.all_gather(y, y).wait()
    yield "all_gather, in place", y
    communicator.broadcast(y, 0).wait()
    yield "broadcast", y
    group, out = communicator.split(3), nothing.copy()
    group.all_gather(x, out).wait()
    yield "split", out
    group.close()

    late, out = nothing.copy(), nothing.copy()
    long = job.random((job.size(1 << 27, 256),), np.float32)
    for _ in range(4):
        long += 1  # keeps the GPU busy, so that an operation that does not wait for what is before it finds NaN
    late[...] = x
    communicator.all_gather(late, out).wait()
    yield "in the order of streams", out.copy()


# ---- steps ----------------------------------------------------------------------------------------------------------


class Steps(NamedTuple):
    """The results of some steps of training."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Any]


class Training:
    """A small GPT-2 with its optimiser, on a mesh or not; the n-th step is the same in every one."""

    def __init__(self, job: Job, dtype: str, mesh: Mesh | None = None, zero: int = 0, recomputed: bool = False):
        size = {"vocab_size": 33, "context": 12, "heads": 1, "channels": 32} if job.dry else {}
        self.config = GPT2Config(**({"vocab_size": 65, "context": 64, "heads": 2, "channels": 64} | size), layers=3)
        self.config = dataclasses.replace(self.config, dropout=0.1)
        minillm.manual_seed(0)
        model, layers = GPT2(self.config).to("cuda", dtype), range(self.config.layers) if recomputed else ()
        whole = quiet_trainer(job).WholeModel
        self.model = ParallelModel(model, mesh, DECAY, zero, layers=layers) if mesh else whole(model, DECAY, layers)
        self.optimizer = AdamW(self.model.groups, lr=LEARNING_RATE, betas=BETAS, eps=1e-6)
        self.model.attach(self.optimizer)
        self.batches = [tuple(map(job.cupy.asarray, pair)) for pair in random_batches(self.config, 4)]

    def steps(self, count: int) -> Steps:
        """Take so many steps, each in two micro-batches."""
        losses, norms = [], []
        for _ in range(count):
            ids, targets = self.batches[self.optimizer.steps % 4]
            loss = self.model.forward_backward(next_token_batch(ids, targets), 2)
            norm = self.optimizer.clip_grad_norm(MAX_NORM)
            self.optimizer.step()
            self.model.sync_parameters()
            losses.append(float(loss))
            norms.append(float(norm))
        return Steps(losses, norms, self.state()[0])

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The weights and the optimiser's state, on the host."""
        given, moments = self.model.state_dict(), self.model.optimizer_state_dict(self.optimizer)
        assert given is not None
        assert moments is not None
        weights, moments = ({name: to_host(array) for name, array in arrays.items()} for arrays in (given, moments))
        return weights, moments


def steps(job: Job, communicator: Communicator) -> None:
    """Compare each way of dividing weights and moments, with and without recompute, with a training without ranks."""
    count = job.size(20, 3)
    title = f"{count} steps of a small GPT-2 on a mesh of one rank, beside the same without ranks"
    columns = "dtype", "ZeRO", "recompute", "losses differ by", "norms differ by", "allowed", "state", "verdict"
    table, mesh = job.table(title, *columns), Mesh(communicator)
    for dtype, allowed in ALLOWED.items():
        alone = Training(job, dtype)
        expected, names = alone.steps(count), tuple(map(sorted, alone.state()))
        for zero in range(4):
            for recomputed in (False, True):
                training = Training(job, dtype, mesh, zero, recomputed)
                found = training.steps(count)
                loss, norm = apart(found.losses, expected.losses), apart(found.norms, expected.norms)
                kept = tuple(map(sorted, training.state())) == names and goes_on(job, dtype, mesh, zero, training)
                right = max(loss, norm) <= allowed and kept
                table.row(dtype, zero, recomputed, loss, norm, allowed, verdict(kept), verdict(right))
    job.note("state: another model that takes the state dicts gives them back, and goes on, bit by bit")


def goes_on(job: Job, dtype: str, mesh: Mesh, zero: int, training: Training) -> bool:
    """Check that another model and optimiser, loaded with this state, have it, and make the same next step."""
    weights, moments = training.state()
    place, other = random.default.state(), Training(job, dtype, mesh, zero)
    other.steps(1)
    other.model.load_state_dict(weights)
    other.model.load_optimizer_state_dict(other.optimizer, moments)
    for before, after in zip((weights, moments), other.state(), strict=True):
        if {n: a.tobytes() for n, a in before.items()} != {n: a.tobytes() for n, a in after.items()}:
            return False
    outcomes = []
    for each in (training, other):
        random.default.set_state(place)
        outcomes.append(each.steps(1))
    return outcomes[0][:2] == outcomes[1][:2]


def apart(found: list[float], expected: list[float]) -> float:
    """The largest difference relative to the expected value; infinite where a value is not a number."""
    differences = [abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True)]
    return max(d if np.isfinite(d) else np.inf for d in differences)


# ---- the whole trainer ----------------------------------------------------------------------------------------------


class Quiet:
    """A display for the trainer that needs no rich; it interrupts after step `stop_after`, like Ctrl-C."""

    stop_after = -1

    def __init__(self, *_: Any):
        return None

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def step(self, record: dict[str, Any], seconds: float) -> None:
        if record["step"] == Quiet.stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    def sample(self, *_: object, **__: object) -> None:
        return None

    def asks_to_try_again(self, reason: str) -> bool:
        return False

    finish = say = trouble = sample


def quiet_trainer(job: Job) -> Any:
    """minillm.training.trainer, which shows and draws nothing; where packages are missing, something stands in.

    A machine with a GPU may have CuPy and little else; what is replaced has nothing to do with the GPU.
    """
    name = "minillm.training.display"
    sys.modules.setdefault(name, SimpleNamespace(Display=Quiet, NoDisplay=Quiet))  # type: ignore[arg-type]
    from minillm.training import prepare, run, saving, trainer

    trainer.Display = Quiet  # type: ignore[assignment, misc]
    missing = [package for package in ("threadpoolctl", "safetensors") if importlib.util.find_spec(package) is None]
    if "threadpoolctl" in missing:
        trainer.tuned_process = prepare.tuned_process = contextlib.nullcontext  # type: ignore[assignment, misc]
    if "safetensors" in missing:
        saving.save_checkpoint = run.save_checkpoint = save_pickle  # type: ignore[assignment]
        run.load_checkpoint = load_pickle
    if missing:
        job.note(f"the trainer ran without {' and '.join(missing)}, which are not installed")
    return trainer


def save_pickle(path: Path, model: Any, optimizer: Any, state: Any) -> None:
    """Save a checkpoint like checkpoint.save_checkpoint, without safetensors."""
    model, optimizer = ({name: to_host(array) for name, array in arrays.items()} for arrays in (model, optimizer))
    path.write_bytes(pickle.dumps((model, optimizer, state)))


def load_pickle(path: Path, moments: bool = True) -> Any:
    """The inverse of save_pickle."""
    from minillm.checkpoint import Checkpoint

    return Checkpoint(*pickle.loads(path.read_bytes()))


def trainer(job: Job, communicator: Communicator) -> None:
    """Compare `train` through the communicator, stopped and resumed, with `train` without one."""
    train, stop = quiet_trainer(job).train, job.size(11, 3)
    from minillm.training.config import TrainConfig

    columns = "dtype", "ZeRO", "resumed", "losses", "differ by", "allowed", "verdict"
    table = job.table("The whole trainer: each loss, validation loss and norm beside those without ranks", *columns)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text("To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer.\n" * 60)
        model = GPT2Config(context=16, layers=2, heads=1, channels=32, dropout=0.1)
        settings: dict[str, Any] = dict(data=str(text), tokenizer="char", model=model, batch_size=6, micro_batches=2)
        settings |= dict(steps=job.size(20, 5), warmup=2, eval_every=job.size(5, 2), eval_batches=2, sample_every=0)
        for dtype, allowed in ALLOWED.items():
            config = TrainConfig(**settings, device="cuda", dtype=dtype)  # type: ignore[arg-type]

            def run(name: str, zero: int = 0, config: TrainConfig = config, **given: Any) -> Any:
                out = Path(folder, f"{config.dtype}-{name}")
                return train(dataclasses.replace(config, out=out, zero=zero), **given)

            expected = numbers(run("alone"))
            for zero, resumed in ((0, "no"), (0, "on the rank"), (3, "on the rank"), (2, "without ranks")):
                Quiet.stop_after = -1 if resumed == "no" else stop
                found = run(f"{zero}-{resumed}", zero, communicator=communicator)
                Quiet.stop_after = -1
                stopped_at = len(found.metrics())
                if resumed != "no":
                    here = resumed == "on the rank"
                    given = {"communicator": communicator} if here else {}
                    found = run("", zero if here else 0, resume=found.folder, **given)
                difference = apart(numbers(found), expected)
                right = difference <= allowed and stopped_at == (config.steps if resumed == "no" else stop + 1)
                table.row(dtype, zero, resumed, len(found.metrics()), difference, allowed, verdict(right))


def numbers(run: Any) -> list[float]:
    """All numbers that a run notes in its metrics, step by step."""
    return [r[name] for r in run.metrics() for name in ("loss", "grad_norm", "val_loss") if r[name] is not None]


# ---- what it costs --------------------------------------------------------------------------------------------------


def overlap(job: Job, communicator: Communicator) -> None:
    """Time steps of GPT-2 124M with and without gradients that go through NCCL during the backward, in turn."""
    config, batch = gpt2(job)
    sides = {
        "without": our_step(config, "cuda", "bfloat16", batch, job),
        "with": ranks_step(config, batch, job, communicator),
    }
    for step in sides.values():
        for _ in range(job.size(3, 1)):
            step()
    cuda, rounds = job.cupy.cuda, job.size(20, 2)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            start, end = cuda.Event(), cuda.Event()
            start.record()
            sides[name]()
            end.record()
            end.synchronize()
            times[name].append(cuda.get_elapsed_time(start, end))
        gc.collect()
    ratios = sorted(a / b for a, b in zip(times["with"], times["without"], strict=True))
    columns = "ms without ranks", "ms with one rank", "median ratio", "quartiles of the ratio"
    title = f"A step of GPT-2 124M in bfloat16, {batch} x {config.context} tokens, gradients by NCCL"
    table = job.table(title, *columns)
    middle = f"{ratios[rounds // 4]:.3f} to {ratios[-1 - rounds // 4]:.3f}"
    shown = [statistics.median(times["without"]), statistics.median(times["with"]), statistics.median(ratios)]
    table.row(*map(job.measured, shown), job.measured(middle))  # type: ignore[arg-type]


def ranks_step(config: GPT2Config, batch: int, job: Job, communicator: Communicator) -> Callable[[], Any]:
    """gpu_training.our_step, on a mesh of one rank."""
    minillm.manual_seed(0)
    model = GPT2(config).to("cuda", "bfloat16")
    parallel = ParallelModel(model, Mesh(communicator), DECAY)
    optimizer = AdamW(parallel.groups, lr=LEARNING_RATE, betas=BETAS)
    parallel.attach(optimizer)
    batches = [tuple(map(job.cupy.asarray, pair)) for pair in random_batches(config, batch)]

    def step() -> Any:
        batches.append(batches.pop(0))
        loss = parallel.forward_backward(next_token_batch(*batches[-1]))
        optimizer.clip_grad_norm(MAX_NORM)
        optimizer.step()
        parallel.sync_parameters()
        return loss

    return step


PARTS = {"operations": operations, "steps": steps, "trainer": trainer, "overlap": overlap}
