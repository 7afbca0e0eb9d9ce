"""Before the first step of a training: load the data, build the model and its optimiser, and restore a run."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from minillm import random
from minillm.counted import counted
from minillm.device import check_device
from minillm.errors import InputError
from minillm.lora import above_width, add_lora
from minillm.optim import SGD, AdamW, Optimizer
from minillm.parallel.communicator import Alone, Communicator, agree, broadcast_bytes
from minillm.parallel.data_parallel import model_blocks
from minillm.parallel.mesh import Mesh, ParallelModel
from minillm.parallel.recompute import parse_layers
from minillm.resolver import open_model, open_start
from minillm.tokenizers import Tokenizer
from minillm.training import speed
from minillm.training.config import TrainConfig
from minillm.training.run import Run, check_free
from minillm.training.saving import State, kept_arrays, restore
from minillm.training.tasks import task_class
from minillm.training.tasks.task import Task
from minillm.training.whole_model import WholeModel
from minillm.tuning import Choice, tuned_process


class Prepared(NamedTuple):
    """Everything that the loop works on."""

    run: Run
    task: Task
    model: WholeModel | ParallelModel
    optimizer: Optimizer
    state: State
    choice: Choice
    sentences: list[str]  # for the person: what is not as it was asked for, or goes on in another way


def prepare(config: TrainConfig, resume: Path | None, world: Communicator) -> Prepared:
    """Load the data, build the model and its optimiser, restore them from `resume`, and make the run directory.

    Everything is checked before anything is written. Rank 0 opens or makes the directory; the others hear its path.
    A run that was stopped before it saved begins again.
    """
    leads = world.rank == 0
    check_device(config.device)
    if config.watch and world.size > 1:
        raise InputError(
            f"train: --watch {config.watch} looks at whole weights and gradients, which {world.size} ranks divide; "
            "give --watch None, or train in one process"
        )
    if leads and resume is None and config.out is not None:
        check_free(config.out)
    run = Run.open(resume) if leads and resume else None
    if run is None:
        return _prepare(config, resume, world, None)
    run.take_lock()
    try:
        return _prepare(config, resume, world, run)
    except BaseException:
        run.release()
        raise


def _prepare(config: TrainConfig, resume: Path | None, world: Communicator, run: Run | None) -> Prepared:
    """Do the work of `prepare`, after rank 0 has opened and locked the run that goes on."""
    leads = world.rank == 0
    goes_on = broadcast_bytes(world, b"yes" if run and run.latest() else b"") != b""
    sentences = remarks_on(config, run)
    opened = None
    if config.init is not None and (not goes_on or config.lora):  # a checkpoint of adapters has no other weights
        opened = open_start(config.init, resume) if resume else open_model(config.init)
    tokenizer = run.tokenizer if run else opened.needed_tokenizer("train") if opened else None
    task = task_on_all(config, tokenizer, world)
    if not goes_on:
        choice = speed.choose(config, world, None if task.samples else lambda: throwaway_step(config, task))
    random.manual_seed(config.seed)
    whole = make_model(config, task.tokenizer)
    if opened:
        left_out = task.start_from(whole, opened)
        sentences += [left_out] if left_out and not goes_on else []
        del opened  # whose memory is free now
    adapt(whole, config)
    too_wide = above_width(whole) if config.lora else ""
    sentences += [too_wide] if too_wide else []
    with contextlib.nullcontext() if goes_on else tuned_process(choice.cutting):
        kept = task.begin(whole, kept_arrays(run, world) if goes_on else {})
    model = divide(whole, config, world)
    optimizer = make_optimizer(config, model.groups)
    model.attach(optimizer)
    state = State()
    if goes_on:
        state = restore(run, model, optimizer, task, world)
        choice = speed.choose_again(config, world, state.choice, state.ranks)
        sentences += speed.remarks_on_change(state.choice, choice)
        if config.steps < state.step:
            raise InputError(
                f"train: steps is {config.steps}, but {resume} has done {state.step} already; give --steps above that"
            )
        if run:
            run.go_on(config, state.step)
            if state.line and state.step not in [record["step"] for record in run.metrics()[-1:]]:
                run.add_metrics(state.line)
            if missing := run.missing_lines(state.step):
                sentences.append(f"metrics.jsonl has no line of {counted(missing, 'step')} of the {state.step} so far")
    elif run:
        run.go_on(config, -1, kept)
    elif leads:
        run = Run.create(config, task.tokenizer, kept)
    folder = broadcast_bytes(world, os.fsencode(run.folder) if run else b"")
    run = run or Run(Path(os.fsdecode(folder)), config, task.tokenizer)
    state = state._replace(choice=choice.to_json(), ranks=world.size, line=None)
    return Prepared(run, task, model, optimizer, state, choice, sentences)


def remarks_on(config: TrainConfig, run: Run | None) -> list[str]:
    """Sentences for the person about settings that do little, and about a run that goes on in another way.

    run: the run that is resumed, on rank 0; None for a new one, and on the other ranks.
    """
    remarks = []
    if config.lr == 0:
        remarks.append("lr is 0, so the weights stay as they are")
    if run and run.latest() is None:
        remarks.append(f"{run.folder} was stopped before it saved for the first time; it begins again from step 0")
    elif run and run.latest() == run.checkpoint("best"):
        remarks.append(f"{run.folder} has no last checkpoint; it goes on from the best one")
    if run and (damaged := run.damaged_lines()):
        name, number = damaged[0]
        remarks.append(
            f"{counted(len(damaged), 'line')} of the metrics {'is' if len(damaged) == 1 else 'are'} damaged and left "
            f"out, the first of them line {number} of {name}; the file as it was is kept beside it"
        )
    return remarks


def task_on_all(config: TrainConfig, tokenizer: Tokenizer | None, world: Communicator) -> Task:
    """The task, on every rank; a tokenizer is trained on rank 0 and sent to the others.

    Raises: ParallelError that names the ranks with other settings or other data.
    """
    settings = {name: value for name, value in config.to_json().items() if name not in ("out", "device")}
    agree(world, "settings", json.dumps(settings), "start all ranks with the same options")
    kind = task_class(config.objective)
    if world.rank == 0:
        task = kind(config, tokenizer)
        broadcast_bytes(world, json.dumps(task.tokenizer.to_json()).encode())
    else:
        task = kind(config, Tokenizer.from_json(json.loads(broadcast_bytes(world))))
    agree(world, "text", task.fingerprint(), "give all ranks the same --data")
    return task


def throwaway_step(config: TrainConfig, task: Task) -> Callable[[], None]:
    """A function that trains a model of its own by a step, again and again on the first batch, at a rate of 0."""
    model = divide(adapt(make_model(config, task.tokenizer), config), config, Alone())
    optimizer = make_optimizer(config, model.groups)
    model.attach(optimizer)
    optimizer.lr = 0.0
    batch = task.batch(0)

    def step() -> None:
        model.forward_backward(batch, config.micro_batches, task)
        optimizer.clip_grad_norm(config.clip)
        optimizer.step()

    return step


def build(config: TrainConfig, tokenizer: Tokenizer) -> tuple[Any, Optimizer]:
    """The model and its optimiser, in one process."""
    model = adapt(make_model(config, tokenizer), config)
    return model, make_optimizer(config, WholeModel(model, config.weight_decay).groups)


def make_model(config: TrainConfig, tokenizer: Tokenizer) -> Any:
    """The model, which has its vocabulary from the tokenizer."""
    return task_class(config.objective).make_model(config, tokenizer).to(config.device, config.dtype)


def adapt(model: Any, config: TrainConfig) -> Any:
    """The model, with adapters if the settings ask for them: all else is frozen then."""
    return add_lora(model, config.lora) if config.lora else model


def make_optimizer(config: TrainConfig, groups: list[dict[str, Any]]) -> Optimizer:
    """The optimiser of the settings."""
    if config.optimizer == "sgd":
        return SGD(groups, config.lr, momentum=0.9)
    return AdamW(groups, config.lr, betas=(config.beta1, config.beta2))


def divide(model: Any, config: TrainConfig, world: Communicator) -> WholeModel | ParallelModel:
    """The model as these ranks train it together, divided as the settings say.

    Raises: InputError for a division that does not fit these ranks or this model.
    """
    layers = parse_layers(config.recompute, len(model_blocks(model)))
    mesh = Mesh(world, config.dp, config.tp, config.pp)
    if not isinstance(world, Alone):
        return ParallelModel(model, mesh, config.weight_decay, config.zero, config.pipeline, layers)
    if config.zero:
        raise InputError(f"train: --zero {config.zero} divides what several ranks keep; start them with --nproc")
    return WholeModel(model, config.weight_decay, layers)
