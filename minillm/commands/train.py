"""`minillm train`: start a training run or continue one."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm.errors import InputError
from minillm.options import filled, options_of, peek, scan
from minillm.resolver import described
from minillm.training.config import CONFIGS, TrainConfig, preset
from minillm.training.tasks import task_class

if TYPE_CHECKING:
    from minillm.training.run import Run

CHANGEABLE_ON_RESUME = {
    *("progress", "device", "steps", "eval_every", "eval_batches", "patience", "sample_every", "sample_tokens"),
    "watch",
    *("threads", "nproc", "timeout", "trace", "dp", "tp", "pp", "zero", "pipeline", "recompute", "micro_batches"),
    "resume",
}


@dataclass(frozen=True)
class Train(TrainConfig):
    """Train a language model on a text."""

    resume: Path | None = None
    """Run directory to continue, or to begin again if it was stopped before it saved; only device, threads, steps,
    intervals, samples and ranks may change."""
    progress: bool = True
    """Draw a live line of progress if the output is a terminal; otherwise print a line for each validation."""
    nproc: int = 1
    """Ranks to start on this machine; other launchers set WORLD_SIZE, and this stays 1."""
    timeout: float | None = None
    """Seconds that ranks wait for each other before they say which is missing; 300 by default."""
    trace: Path | None = None
    """Folder for a record of every message between ranks, messages-RANK.jsonl: who sent what to whom, and when."""


def train(arguments: list[str]) -> None:
    """Train, or go on with a run: in this process, as one of several ranks, or by starting them."""
    from minillm.training.run import Run

    resume = peek(arguments, "--resume")  # it, or the preset, decides what holds where nothing was given
    before = Run.open(Path(resume)).config if resume else starting_point(arguments)
    if "--boundaries" in arguments and before.objective != "causal":
        raise InputError(
            f"train: --boundaries is for models of the next token (gpt2, llama, gemma), and the {before.architecture} "
            f"here learns by {before.objective}; leave it out, or give --model gpt2"
        )
    before = Train(**{field.name: getattr(before, field.name) for field in dataclasses.fields(before)})
    values = scan(Train, "train", arguments, before)
    if resume:
        check_steps(values.get(("steps",)), before, resume)
    given = filled(Train, "train", values, before)
    if resume:
        for field in dataclasses.fields(given):
            if field.name not in CHANGEABLE_ON_RESUME and getattr(given, field.name) != getattr(before, field.name):
                raise InputError(
                    f"train: {field.name} is {getattr(before, field.name)} in {resume} and cannot change when a run is "
                    "resumed; leave it out, or start a new run"
                )
        if ("threads",) not in values and "MINILLM_THREADS" in os.environ:
            given = dataclasses.replace(given, threads=None)  # the variable of today comes before what was stored
    else:
        check_effect("train", values, given)
    run_ranks("train", arguments, config_of(given), given)


def check_steps(steps: int | None, before: TrainConfig, resume: str) -> None:
    """Raise InputError if a resumed run is given so few steps that its schedule does not fit into them."""
    decay = before.decay_steps if before.schedule == "wsd" else 0
    least = max(before.warmup + 1, max(1, before.warmup) + decay)
    if steps is not None and before.format > 1 and steps < least:
        raise InputError(
            f"train: --steps is {steps}, but the schedule of {resume} has {before.warmup} steps of warmup, which do "
            f"not change when a run is resumed; give --steps {least} or more, or start a new run"
        )


def config_of(given: Train, **others: Any) -> TrainConfig:
    """The settings of a run among the options of a command, with others in their place."""
    settings = {field.name: getattr(given, field.name) for field in dataclasses.fields(TrainConfig)}
    return TrainConfig(**settings | others)


def run_ranks(command: str, arguments: list[str], config: TrainConfig, given: Train) -> Run | None:
    """Train: in this process, as one of several ranks, or by starting them with these words of a command.

    Returns the run, if this process alone has trained it.
    """
    from minillm.parallel import launch, place
    from minillm.parallel.communicator import Trace
    from minillm.training.trainer import train as run_training

    size = place.world_size()
    if given.timeout is not None and not 0 < given.timeout < 1e7:
        raise InputError(f"{command}: timeout is {given.timeout}; give a number of seconds above 0")
    for name in ("timeout", "trace"):
        if getattr(given, name) is not None and max(size, given.nproc) == 1 and "WORLD_SIZE" not in os.environ:
            raise InputError(f"{command}: --{name} is about ranks that wait for each other; start several with --nproc")
    if given.timeout is not None:
        os.environ["MINILLM_TIMEOUT"] = str(given.timeout)
    if max(size, given.nproc) > 1 and given.device.startswith("cuda:"):
        raise InputError(f"{command}: {given.device} is one GPU; give --device cuda, and each rank takes its own")
    if given.nproc != 1 and "WORLD_SIZE" not in os.environ:
        raise SystemExit(launch.run([*command.split(), *arguments], given.nproc))
    if given.nproc not in (1, size):
        raise InputError(
            f"{command}: --nproc is {given.nproc}, but a launcher has started {size} ranks; leave --nproc out"
        )
    if size > 1:

        def rank(here: Any) -> None:
            if given.trace:
                given.trace.mkdir(parents=True, exist_ok=True)
                here.trace = Trace(given.trace / f"messages-{here.rank}.jsonl")
            run_training(config, given.resume, communicator=here, progress=given.progress)

        launch.run_rank(rank, given.device)
        return None
    return run_training(config, given.resume, progress=given.progress)


def starting_point(arguments: list[str]) -> TrainConfig:
    """The settings that hold where nothing else is given: those of the preset, or of the model and the objective."""
    name = peek(arguments, "--preset")
    config = preset(name or "default")
    architecture, objective, init = (peek(arguments, name) for name in ("--model", "--objective", "--init"))
    if init is None:
        return config.with_model(architecture or config.architecture, objective)
    start = starting_model(init, "train")
    if architecture not in (None, start["architecture"]):
        raise InputError(f"train: {init} is a {start['architecture']}; leave --model {architecture} out")
    if name is not None and config.architecture != start["architecture"]:
        raise InputError(
            f"train: --preset {name} is for a {config.architecture}, but --init {init} is a {start['architecture']}; "
            "leave --preset out, or give one of this family"
        )
    return dataclasses.replace(config.with_model(start["architecture"], objective), **start)


def starting_model(path: str, command: str) -> dict[str, Any]:
    """The settings that say which model training starts from: its family, its configuration and its path.

    Raises: InputError for a preset, whose weights are random; as `described` for a path that means no model.
    """
    found = described(path, command)
    if found.place.kind == "preset":
        raise InputError(
            f"{command}: {path} is a preset, whose weights are random; train one first (`minillm train`), or give a "
            "trained model"
        )
    architecture = found.kind.__module__.rpartition(".")[2]  # type: ignore[attr-defined]
    if architecture not in CONFIGS:
        raise InputError(f"{command}: {path} is a {architecture}, which cannot be trained; give a {', '.join(CONFIGS)}")
    return {"architecture": architecture, "model": found.config, "init": path}


def check_effect(command: str, values: dict[tuple[str, ...], Any], given: TrainConfig) -> None:
    """Raise InputError for an option that was given and would do nothing beside the others."""
    if given.init is not None:
        for path in values:
            name = path[-1].replace("_", "-")
            if (path[0] == "model" and "dropout" not in name) or path == ("tokenizer",):
                raise InputError(
                    f"{command}: --{name} would change the model that --init {given.init} names, which keeps its shape "
                    "and its tokenizer; leave it out"
                )
    if ("model", "vocab_size") in values and given.tokenizer not in ("bpe", "wordpiece", "unigram"):
        whose = "of characters" if given.tokenizer == "char" else f"in {given.tokenizer}"
        raise InputError(
            f"{command}: --vocab-size does nothing here, as the tokenizer {whose} sets the size itself; leave it out, "
            "or give --tokenizer bpe, wordpiece or unigram"
        )
    needs: dict[tuple[str, ...], tuple[bool, str]] = {
        ("decay_steps",): (given.schedule == "wsd", "--schedule wsd"),
        ("beta1",): (given.optimizer == "adamw", "--optimizer adamw"),
        ("beta2",): (given.optimizer == "adamw", "--optimizer adamw"),
    }
    needs[("batch_size",)] = given.objective != "pairs", "--batch-tokens instead"
    needs |= {path: (("lora", "rank") in values, "--lora RANK") for path in values if path[0] == "lora"}
    needs |= {("task", name): need for name, need in task_class(given.objective).needs(given.task).items()}
    for path, (works, other) in needs.items():
        if path in values and not works:
            name = next(option.name for option in options_of(type(given), given) if option.path == path)
            raise InputError(f"{command}: {name} does nothing here; leave it out, or give {other}")
