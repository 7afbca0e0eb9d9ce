"""Training a model: `train` is the whole loop, and the functions that it calls follow below it.

What differs between trainings is a task (tasks/task.py): the data, the loss, what is measured and what is shown.

By default the operations run their fast pairs (fast/*.py). Set MINILLM_ENGINE=plain to step through the formulas of
ops/*.py instead.

A step is a function of the settings, the step number and the state in the checkpoint (weights, moments, the place in
the random stream), so a run that was stopped and resumed gives the same weights, bit for bit, as one that was not.

The model is an object with the methods of `WholeModel`, below, in one process, and a parallel/mesh.py `ParallelModel`,
which has the same methods, where several ranks train it together. Each rank then calls `train` with the same settings
and computes its part; rank 0 alone reads and writes the run directory, and shows what happens.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minillm import random
from minillm.autograd import no_grad
from minillm.backend import Array
from minillm.device import Uploads, check_device, to_device
from minillm.errors import InputError
from minillm.grad_mode import quiet
from minillm.lora import above_width, add_lora, is_lora, load_lora_state_dict, lora_state_dict
from minillm.nn import Module
from minillm.optim import SGD, AdamW, Optimizer, cosine_schedule, decay_groups, wsd_schedule
from minillm.parallel.communicator import Alone, Communicator, agree, broadcast_arrays, broadcast_bytes
from minillm.parallel.data_parallel import model_blocks
from minillm.parallel.mesh import Mesh, ParallelModel
from minillm.parallel.objective import NEXT_TOKENS, Batch, Objective, add_measures, loss_of_rows, micro_batches_of
from minillm.parallel.recompute import parse_layers, recompute
from minillm.resolver import open_model, open_start
from minillm.tokenizers import Tokenizer
from minillm.training import speed
from minillm.training.config import TrainConfig
from minillm.training.display import Display, NoDisplay
from minillm.training.history import learning_rate_of_format_1
from minillm.training.run import Run, check_free
from minillm.training.saving import State, kept_arrays, restore, save
from minillm.training.stop import StopRequest
from minillm.training.tasks import task_class
from minillm.training.tasks.task import Task
from minillm.training.watch import Watch
from minillm.tuning import Choice, tuned_process


def train(
    config: TrainConfig, resume: Path | None = None, communicator: Communicator | None = None, progress: bool = True
) -> Run:
    """Train a model from the start, or continue the run at `resume` with these settings; returns the finished run.

    Ctrl-C (or SIGTERM) ends the step at hand, saves, and says how to go on; a second one ends at once. `progress` shows
    a live line if the output is a terminal.

    Raises: InputError or CheckpointError for settings, data or a run that cannot be used, before anything is written;
    InputError when the loss stops being a number; ParallelError when another rank fails, or has other settings or text.
    """
    world = communicator or Alone()
    run, task, model, optimizer, state, choice, sentences = prepare(config, resume, world)
    uploads = Uploads(config.device)
    watched = Watch(model.model, config.watch, run.add_watched).step
    display = display_of(run, task, model, state, config, progress, sentences) if world.rank == 0 else NoDisplay()
    with tuned_process(choice.cutting), StopRequest() as stop, quiet(), display:
        if task.measured_first and state.step == 0:
            look_first(display, model, task, config)
        last = state.step >= config.steps or state.has_no_hope(config.patience)
        while not last:
            started = time.perf_counter()
            batch = batch_on_all(task, model, state.step, world)
            counts, tokens = task.counts(batch), task.tokens(batch)
            on_device = dict(zip(batch, uploads(*batch.values()), strict=True))
            with watched(state.step + 1):
                loss = model.forward_backward(on_device, config.micro_batches, task, counts)  # ()
                optimizer.lr = learning_rate(config, state.step)
                grad_norm = optimizer.clip_grad_norm(config.clip)
                loss, grad_norm = float(loss), float(grad_norm)  # the only synchronisation point of a step
                stopping = stop.requested_of_any(world)
                check_finite(config, state.step + 1, {"loss": loss, "norm of the gradient": grad_norm})
                optimizer.step()
                model.sync_parameters()
            seconds = time.perf_counter() - started
            state = state.after_step(tokens, seconds)

            last = state.step == config.steps or stopping
            measured: dict[str, Any] = {"val_loss": None}
            if last or state.step % config.eval_every == 0:
                measured = evaluate(model, task, config.eval_batches, config.device)
                check_finite(config, state.step, {"validation loss": measured["val_loss"]})  # before it is saved
                state = state.after_validation(measured["val_loss"])
                last = last or state.has_no_hope(config.patience)
            record = {
                "step": state.step,
                "loss": loss,
                **measured,
                "lr": optimizer.lr,
                "grad_norm": grad_norm,
                "tokens": state.tokens,
                "tokens_per_s": tokens / seconds,
                "seconds": state.seconds,
                **task.notes(),
            }
            display.step(record, seconds)
            if measured["val_loss"] is not None:
                save(run, model, optimizer, task, state)
            if config.sample_every and (last or state.step % config.sample_every == 0):
                show_preview(display, model, task, state.step)
        display.finish(state, stopped=state.step < config.steps)
    return run


# --- a step --------------------------------------------------------------------------------------------------------


def accumulate_gradients(
    model: Any,
    batch: Batch,
    micro_batches: int = 1,
    objective: Objective = NEXT_TOKENS,
    counts: dict[str, float] | None = None,
) -> Any:
    """Run the batch in parts, add the gradient of its loss to the parameters, and return the loss.

    Each part contributes the sums of its targets divided by the counts of the whole batch, so that every target counts
    alike, however they are spread over the parts. counts: of the whole batch, where they are known already.
    On a GPU the loss is an array without dimensions, and nobody waits for it before `float(loss)`.
    """
    counts = objective.counts(batch) if counts is None else counts
    total: Any = 0.0
    for part in micro_batches_of(batch, micro_batches):
        loss = loss_of_rows(objective, model, part, counts)  # ()
        loss.backward()
        total = total + loss.data.astype(np.float64)
    return total


class WholeModel:
    """A model that one process trains. `ParallelModel` has the same methods for a model that is divided over ranks.

    weight_decay: of the matrices; see `decay_groups`. layers: numbers of the blocks that are computed again in the
    backward (parallel/recompute.py).
    """

    def __init__(self, model: Module, weight_decay: float = 0.1, layers: Iterable[int] = ()):
        recompute(model, layers)
        self.model = model
        self.groups = decay_groups(model.parameters(), weight_decay)

    def num_parameters(self) -> int:
        """The number of weights of the model."""
        return self.model.num_parameters()

    def attach(self, optimizer: Optimizer) -> None:
        """Prepare the optimiser that was built from `groups`: in one process there is nothing to do."""

    def forward_backward(
        self,
        batch: Batch,
        micro_batches: int = 1,
        objective: Objective = NEXT_TOKENS,
        counts: dict[str, float] | None = None,
    ) -> Any:
        """Replace the gradients by those of the loss of a batch; returns the loss."""
        self.model.zero_grad()
        return accumulate_gradients(self.model, batch, micro_batches, objective, counts)

    def sync_parameters(self) -> None:
        """After the optimiser's step: in one process, nobody else has to hear of it."""

    def measures(self, batches: Iterable[Batch], objective: Objective = NEXT_TOKENS) -> dict[str, tuple[float, float]]:
        """The objective's measures, (sum, count) each, over all batches, without gradients or dropout."""
        total: dict[str, tuple[float, float]] = {}
        self.model.eval()
        with no_grad():
            for batch in batches:
                add_measures(total, objective.measures(self.model, batch).items())
        self.model.train()
        return total

    def gather(self) -> Any:
        """The whole model."""
        return self.model

    def state_dict(self) -> dict[str, Array] | None:
        """Every parameter by its name; of a model with adapters, what is trained alone."""
        return lora_state_dict(self.model) if is_lora(self.model) else self.model.state_dict()

    def optimizer_state_dict(self, optimizer: Optimizer) -> dict[str, Array] | None:
        """The optimiser's moments and counts of steps, by name."""
        return optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Take the parameters from what `state_dict` returned."""
        if is_lora(self.model):
            load_lora_state_dict(self.model, state)
        else:
            self.model.load_state_dict(state)

    def load_optimizer_state_dict(self, optimizer: Optimizer, state: Mapping[str, Array]) -> None:
        """Take the optimiser's state from what `optimizer_state_dict` returned."""
        optimizer.load_state_dict(state)


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of a step; step 0 is the first.

    The rate rises to lr over the warmup, then falls to min_lr at step `steps` - 1. Where the schedule is wsd and
    decay_steps is 0, it stays at lr; a training of one step has lr too.
    """
    if config.format == 1:
        return learning_rate_of_format_1(config, step)
    shape: dict[str, Any] = dict(peak=config.lr, floor=config.min_lr, warmup=config.warmup, total=config.steps)
    if config.schedule == "wsd":
        return wsd_schedule(step, **shape, decay=config.decay_steps)
    return cosine_schedule(step, **shape)


def check_finite(config: TrainConfig, step: int, values: dict[str, float]) -> None:
    """Raise InputError for a value that is infinite or not a number, with what to do about it."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise InputError(
                f"train: at step {step} the {name} is {value}, as happens when steps are too large; train again with "
                f"a lower --lr (now {config.lr}) or a longer --warmup (now {config.warmup}); with MINILLM_CHECK=finite "
                "in the environment, the error names the first operation that makes such a number"
            )


def batch_on_all(task: Task, model: WholeModel | ParallelModel, step: int, world: Communicator) -> Batch:
    """The batch of a step, on every rank; one that the model makes itself is made on rank 0."""
    if not task.samples:
        return task.batch(step)
    whole, batch = model.gather(), {}
    if whole is not None:
        batch = task.batch(step, whole.eval())
        whole.train()
    return broadcast_arrays(world, batch)


def evaluate(model: WholeModel | ParallelModel, task: Task, count: int, device: str = "cpu") -> dict[str, Any]:
    """The measures of a validation for metrics.jsonl: `val_` and the name of each measure, over `count` batches.

    val_loss is the sum of the terms of the loss, each a mean over all its targets; val_bits_per_byte is the same for
    the text, where the loss is that of its tokens.
    """
    batches = list(task.evaluation_batches(count))
    terms = task.counts(batches[0])
    found = model.measures(
        ({name: to_device(array, device) for name, array in batch.items()} for batch in batches), task
    )
    means = {f"val_{name}": value / number if number else 0.0 for name, (value, number) in found.items()}
    loss = sum(means[f"val_{name}"] for name in terms)
    measured = {"val_loss": loss, **means}
    if task.bytes_per_token is not None:
        measured["val_bits_per_byte"] = loss / (math.log(2) * task.bytes_per_token)
    return measured


def display_of(
    run: Run, task: Task, model: Any, state: State, config: TrainConfig, live: bool, sentences: Iterable[str]
) -> Display:
    """The display of rank 0, after it has shown these sentences; see Display."""
    trained = sum(x.size for x in lora_state_dict(model.model).values()) if config.lora else 0
    display = Display(run, model.num_parameters(), task, state, config, live, trained)
    for sentence in sentences:
        display.say(sentence)
    return display


def look_first(display: Any, model: WholeModel | ParallelModel, task: Task, config: TrainConfig) -> None:
    """A validation and a preview before the first step."""
    display.first(evaluate(model, task, config.eval_batches, config.device))
    if config.sample_every:
        show_preview(display, model, task, 0)


def show_preview(display: Any, model: WholeModel | ParallelModel, task: Task, step: int) -> None:
    """Show what the model does with some data; all ranks bring it together, and rank 0 uses it."""
    whole = model.gather()
    if whole is not None:
        whole.eval()
        for given, answered in task.preview(whole, step):
            display.sample(given, answered)
        whole.train()


# --- before the first step -----------------------------------------------------------------------------------------


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
        sentences += [] if goes_on else [left_out]
        del opened  # whose memory is free now
    adapt(whole, config)
    sentences += [above_width(whole)] if config.lora else []
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
    elif run:
        run.go_on(config, -1, kept)
    elif leads:
        run = Run.create(config, task.tokenizer, kept)
    folder = broadcast_bytes(world, os.fsencode(run.folder) if run else b"")
    run = run or Run(Path(os.fsdecode(folder)), config, task.tokenizer)
    state = state._replace(choice=choice.to_json(), ranks=world.size)
    return Prepared(run, task, model, optimizer, state, choice, list(filter(None, sentences)))


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
