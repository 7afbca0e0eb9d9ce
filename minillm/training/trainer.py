"""Training a model: `train` is the whole loop, and what it calls follows below it; what comes before is in prepare.py.

What differs between trainings is a task (tasks/task.py): the data, the loss, what is measured and what is shown.

By default the operations run their fast pairs (fast/*.py). Set MINILLM_ENGINE=plain to step through the formulas of
ops/*.py instead.

A step is a function of the settings, the step number and the state in the checkpoint (weights, moments, the place in
the random stream), so a run that was stopped and resumed gives the same weights, bit for bit, as one that was not.

The model is a whole_model.py `WholeModel` in one process, and a parallel/mesh.py `ParallelModel`, which has the same
methods, where several ranks train it together. Each rank then calls `train` with the same settings
and computes its part; rank 0 alone reads and writes the run directory, and shows what happens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minillm import random
from minillm.device import Uploads, to_device
from minillm.errors import CheckpointError, InputError
from minillm.grad_mode import quiet
from minillm.lora import lora_state_dict
from minillm.optim import cosine_schedule, wsd_schedule
from minillm.parallel.communicator import Alone, Communicator, broadcast_arrays
from minillm.parallel.mesh import ParallelModel
from minillm.parallel.objective import Batch
from minillm.training.config import TrainConfig
from minillm.training.display import Display, NoDisplay
from minillm.training.history import learning_rate_of_format_1
from minillm.training.nonfinite import Spikes, check_finite, maker, problem_of, stop_or_skip
from minillm.training.prepare import prepare
from minillm.training.run import Run
from minillm.training.saving import State, save
from minillm.training.stop import StopRequest
from minillm.training.tasks.task import Task
from minillm.training.watch import Watch
from minillm.training.whole_model import WholeModel
from minillm.tuning import tuned_process


def train(
    config: TrainConfig, resume: Path | None = None, communicator: Communicator | None = None, progress: bool = True
) -> Run:
    """Train a model from the start, or continue the run at `resume` with these settings; returns the finished run.

    Ctrl-C (or SIGTERM, or SIGHUP) ends the step at hand, saves, and says how to go on; a second one ends at once.
    `progress` shows a live line if the output is a terminal. Saving comes before showing, and a display that cannot
    write falls silent. Where a checkpoint, a picture or a line cannot be written, training goes on and says so.

    Raises: InputError or CheckpointError for settings, data or a run that cannot be used, before anything is written;
    InputError when a loss or gradient is not finite (see nonfinite.py); ParallelError when another rank fails, or has
    other settings or text; CheckpointError after the last step if it could not be saved.
    """
    world = communicator or Alone()
    run, task, model, optimizer, state, choice, sentences = prepare(config, resume, world)
    uploads = Uploads(config.device)
    watched = Watch(model.model, config.watch, run.add_watched).step
    spikes = Spikes(record["loss"] for record in run.metrics())  # those before the resumed step
    display = display_of(run, task, model, state, config, progress, sentences) if world.rank == 0 else NoDisplay()
    with run, tuned_process(choice.cutting), StopRequest(world.rank == 0) as stop, quiet(), display:
        if task.measured_first and state.step == 0:
            look_first(display, model, task, config)
        last, unsaved = state.step >= config.steps or state.has_no_hope(config.patience), ""
        while not last:
            started = time.perf_counter()
            batch = batch_on_all(task, model, state.step, world)
            counts, tokens = task.counts(batch), task.tokens(batch)
            on_device = dict(zip(batch, uploads(*batch.values()), strict=True))
            place, problem = random.default.state(), ""
            with watched(state.step + 1):
                loss = model.forward_backward(on_device, config.micro_batches, task, counts)  # ()
                optimizer.lr = learning_rate(config, state.step)
                grad_norm = optimizer.clip_grad_norm(config.clip)
                loss, grad_norm = float(loss), float(grad_norm)  # the only synchronisation point of a step
                stopping = stop.requested_of_any(world)
                if problem := problem_of(loss, grad_norm):
                    random.default.set_state(place)
                    made_by = maker(lambda: model.forward_backward(on_device, config.micro_batches, task, counts))  # noqa: B023
                    in_a_row = state.skipped_in_a_row + 1
                    problem = stop_or_skip(config, state.step + 1, problem, made_by, in_a_row)
                else:
                    optimizer.step()
                    model.sync_parameters()
            seconds = time.perf_counter() - started
            state = state.after_step(tokens, seconds, skipped=bool(problem))

            last = state.step == config.steps or stopping
            begun = {"step": state.step, "loss": None if problem else loss}
            learned: dict[str, Any] = {"lr": optimizer.lr, "grad_norm": None if problem else grad_norm}
            if problem:
                learned["skipped"] = problem
            elif (median := spikes.median_under(loss)) is not None:
                learned["spike_above"] = median
            learned |= {"tokens": state.tokens, "tokens_per_s": tokens / seconds, "seconds": state.seconds}
            learned |= task.notes()
            measured: dict[str, Any] = {"val_loss": None}
            if stopping:  # before a validation, which may be long
                line = {**begun, **measured, **learned}
                unsaved = save_or_tell(display, run, model, optimizer, task, state._replace(line=line))
            if last or state.step % config.eval_every == 0:
                measured = evaluate(model, task, config.eval_batches, config.device)
                check_finite(config, state.step, "validation loss", measured["val_loss"])  # before it is saved
                state = state.after_validation(measured["val_loss"])
                last = last or state.has_no_hope(config.patience)
            record = {**begun, **measured, **learned}
            if world.rank == 0:
                run.add_metrics(record)
            if measured["val_loss"] is not None:
                unsaved = save_or_tell(display, run, model, optimizer, task, state)
            display.step(record, seconds)
            if config.sample_every and (last or state.step % config.sample_every == 0):
                show_preview(display, model, task, state.step)
        while unsaved and world.size == 1 and display.asks_to_try_again(unsaved):
            unsaved = save_or_tell(display, run, model, optimizer, task, state)
        display.finish(state, stopped=state.step < config.steps)
    if unsaved:
        raise CheckpointError(f"train: step {state.step} is not saved: {unsaved}")
    return run


# --- a step --------------------------------------------------------------------------------------------------------


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


def save_or_tell(display: Any, run: Run, model: Any, optimizer: Any, task: Task, state: State) -> str:
    """Save a checkpoint. Returns nothing if it is saved, else the reason, which is shown. All ranks call this."""
    try:
        save(run, model, optimizer, task, state)
    except (CheckpointError, InputError) as error:
        display.trouble("checkpoint", f"{error}; training goes on, and saves again after the next validation")
        return str(error)
    return ""


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
