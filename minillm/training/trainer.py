"""Training a language model: `train` is the whole loop, and the functions that it calls follow below it.

By default the operations run their fast pairs (fast/*.py). Set MINILLM_ENGINE=plain to step through the formulas of
ops/*.py instead.

A step is a function of the settings, the step number and the state in the checkpoint (weights, moments, the place in
the random stream), so a run that was stopped and resumed gives the same weights, bit for bit, as one that was not.

The model is an object with the methods of `WholeModel`, below, in one process, and a parallel/mesh.py `ParallelModel`,
which has the same methods, where several ranks train it together. Each rank then calls `train` with the same settings
and computes its part; rank 0 alone reads and writes the run directory, and shows what happens.
"""

from __future__ import annotations

import dataclasses
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
from minillm.data import Batches
from minillm.device import Uploads, check_device
from minillm.errors import InputError
from minillm.generate import generate
from minillm.grad_mode import quiet
from minillm.models.gpt2 import GPT2
from minillm.nn import Decoder
from minillm.optim import SGD, AdamW, Optimizer, cosine_schedule, decay_groups, wsd_schedule
from minillm.parallel.communicator import Alone, Communicator, broadcast_bytes
from minillm.parallel.mesh import Mesh, ParallelModel, parse_layers
from minillm.parallel.recompute import recompute
from minillm.tokenizers import Tokenizer
from minillm.training import speed
from minillm.training.config import TrainConfig
from minillm.training.corpus import Corpus, load_corpus_on_all, make_batches
from minillm.training.display import Display, NoDisplay
from minillm.training.history import learning_rate_of_format_1
from minillm.training.run import Run, check_free
from minillm.training.saving import State, restore, save
from minillm.training.stop import StopRequest
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
    run, corpus, model, optimizer, state, choice = prepare(config, resume, world)
    batches, validation = make_batches(corpus, config)
    uploads = Uploads(config.device)
    leads = world.rank == 0
    display = Display(run, model.num_parameters(), corpus, state, config, progress) if leads else NoDisplay()
    with tuned_process(choice.cutting), StopRequest() as stop, quiet(), display:
        last = state.step >= config.steps
        while not last:
            started = time.perf_counter()
            ids, targets = uploads(*batches.batch(state.step))  # (B, T) each
            loss = model.forward_backward(ids, targets, config.micro_batches)  # ()
            optimizer.lr = learning_rate(config, state.step)
            grad_norm = optimizer.clip_grad_norm(config.clip)
            loss, grad_norm = float(loss), float(grad_norm)  # the only synchronisation point of a step
            stopping = stop.requested_of_any(world)
            check_finite(config, state.step + 1, {"loss": loss, "norm of the gradient": grad_norm})
            optimizer.step()
            model.sync_parameters()
            seconds = time.perf_counter() - started
            state = state.after_step(ids.size, seconds)

            last = state.step == config.steps or stopping
            val_loss = None
            if last or state.step % config.eval_every == 0:
                val_loss = evaluate(model, validation, config.eval_batches)
                check_finite(config, state.step, {"validation loss": val_loss})  # before the checkpoint is replaced
                state = state.after_validation(val_loss)
            record = {
                "step": state.step,
                "loss": loss,
                "val_loss": val_loss,
                "lr": optimizer.lr,
                "grad_norm": grad_norm,
                "tokens": state.tokens,
                "tokens_per_s": ids.size / seconds,
                "seconds": state.seconds,
            }
            display.step(record)
            if val_loss is not None:
                save(run, model, optimizer, corpus, state)
            if config.sample_every and (last or state.step % config.sample_every == 0):
                show_sample(display, model, corpus, config, state.step)
        display.finish(state, interrupted=state.step < config.steps)
    return run


# --- a step --------------------------------------------------------------------------------------------------------


def accumulate_gradients(model: Decoder, ids: Any, targets: Any, micro_batches: int = 1) -> Any:
    """Run the batch in parts, add the gradient of its mean loss to the parameters, and return the loss.

    Each part contributes the sum of its token losses divided by the number of tokens of the whole batch, so that
    every token counts alike, however the tokens are spread over the parts. Targets of -100 do not count.
    On a GPU the loss is an array without dimensions, and nobody waits for it before `float(loss)`.
    Shapes: ids and targets (B, T); result ().
    """
    counted = np.maximum((targets != -100).sum(), 1).astype(np.float32)  # (), the number of targets that count
    total: Any = 0.0
    for part_ids, part_targets in zip(
        np.array_split(ids, micro_batches), np.array_split(targets, micro_batches), strict=True
    ):
        loss = model.loss(part_ids, part_targets, reduction="sum") / counted  # ()
        loss.backward()
        total = total + loss.data.astype(np.float64)
    return total


class WholeModel:
    """A model that one process trains. `ParallelModel` has the same methods for a model that is divided over ranks.

    weight_decay: of the matrices; see `decay_groups`. layers: numbers of the blocks that are computed again in the
    backward (parallel/recompute.py).
    """

    def __init__(self, model: Decoder, weight_decay: float = 0.1, layers: Iterable[int] = ()):
        recompute(model, layers)
        self.model = model
        self.groups = decay_groups(model.parameters(), weight_decay)

    def num_parameters(self) -> int:
        """The number of weights of the model."""
        return self.model.num_parameters()

    def attach(self, optimizer: Optimizer) -> None:
        """Prepare the optimiser that was built from `groups`: in one process there is nothing to do."""

    def forward_backward(self, ids: Any, targets: Any, micro_batches: int = 1) -> Any:
        """Replace the gradients by those of the mean loss of a batch; returns the loss."""
        self.model.zero_grad()
        return accumulate_gradients(self.model, ids, targets, micro_batches)

    def sync_parameters(self) -> None:
        """After the optimiser's step: in one process, nobody else has to hear of it."""

    def losses(self, batches: Iterable[tuple[Array, Array]]) -> list[float]:
        """The mean loss of each batch, without gradients or dropout."""
        self.model.eval()
        with no_grad():
            losses = [self.model.loss(ids, targets).item() for ids, targets in batches]
        self.model.train()
        return losses

    def gather(self) -> Decoder | None:
        """The whole model."""
        return self.model

    def state_dict(self) -> dict[str, Array] | None:
        """Every parameter by its name."""
        return self.model.state_dict()

    def optimizer_state_dict(self, optimizer: Optimizer) -> dict[str, Array] | None:
        """The optimiser's moments and counts of steps, by name."""
        return optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Take the parameters from what `state_dict` returned."""
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
                f"a lower --lr (now {config.lr}) or a longer --warmup (now {config.warmup})"
            )


def evaluate(model: WholeModel | ParallelModel, batches: Batches, count: int) -> float:
    """The mean validation loss over `count` batches spread evenly over the text, without dropout."""
    losses = model.losses(batches.evaluation_batches(count))
    return sum(losses) / len(losses)


def show_sample(display: Any, model: Any, corpus: Corpus, config: TrainConfig, step: int) -> None:
    """Show how the model continues some validation text; all ranks bring it together, and rank 0 samples."""
    whole = model.gather()
    if whole is not None:
        display.sample(*sample(whole, corpus, config, step))


def sample(model: Decoder, corpus: Corpus, config: TrainConfig, step: int) -> tuple[str, str]:
    """Some validation text, and how the model continues it."""
    prompt = np.asarray(corpus.validation[:16]).tolist()
    ids = list(generate(model, prompt, config.sample_tokens, temperature=0.8, top_k=50, seed=config.seed + step))
    return corpus.tokenizer.decode(prompt), corpus.tokenizer.decode(ids)


# --- before the first step -----------------------------------------------------------------------------------------


class Prepared(NamedTuple):
    """Everything that the loop works on."""

    run: Run
    corpus: Corpus
    model: WholeModel | ParallelModel
    optimizer: Optimizer
    state: State
    choice: Choice


def prepare(config: TrainConfig, resume: Path | None, world: Communicator) -> Prepared:
    """Load the text, build the model and its optimiser, restore them from `resume`, and make the run directory.

    Everything is checked before anything is written. Rank 0 opens or makes the directory; the others hear its path.
    """
    leads = world.rank == 0
    check_device(config.device)
    if leads and resume is None and config.out is not None:
        check_free(config.out)
    run = Run.open(resume) if leads and resume else None
    corpus = load_corpus_on_all(config, run.tokenizer if run else None, world)
    make_batches(corpus, config)  # raises where the text is too short
    if not resume:
        choice = speed.choose(config, world, lambda: throwaway_step(config, corpus))
    random.manual_seed(config.seed)
    model = divide(make_model(config, corpus.tokenizer), config, world)
    optimizer = make_optimizer(config, model.groups)
    model.attach(optimizer)
    state = State()
    if resume:
        state = restore(run, model, optimizer, corpus, world)
        choice = speed.choose_again(config, world, state.choice, state.ranks)
        if config.steps < state.step:
            raise InputError(
                f"train: steps is {config.steps}, but {resume} has done {state.step} already; give --steps above that"
            )
        if run:
            run.keep_settings(config)
            run.forget_metrics_after(state.step)
    elif leads:
        run = Run.create(config, corpus.tokenizer)
    folder = broadcast_bytes(world, os.fsencode(run.folder) if run else b"")
    run = run or Run(Path(os.fsdecode(folder)), config, corpus.tokenizer)
    state = state._replace(choice=choice.to_json(), ranks=world.size)
    return Prepared(run, corpus, model, optimizer, state, choice)


def throwaway_step(config: TrainConfig, corpus: Corpus) -> Callable[[], None]:
    """A function that trains a model of its own by a step, again and again on the first batch, at a rate of 0."""
    model = divide(make_model(config, corpus.tokenizer), config, Alone())
    optimizer = make_optimizer(config, model.groups)
    model.attach(optimizer)
    optimizer.lr = 0.0
    ids, targets = make_batches(corpus, config)[0].batch(0)

    def step() -> None:
        model.forward_backward(ids, targets, config.micro_batches)
        optimizer.clip_grad_norm(config.clip)
        optimizer.step()

    return step


def build(config: TrainConfig, tokenizer: Tokenizer) -> tuple[GPT2, Optimizer]:
    """The model and its optimiser, in one process."""
    model = make_model(config, tokenizer)
    return model, make_optimizer(config, decay_groups(model.parameters(), config.weight_decay))


def make_model(config: TrainConfig, tokenizer: Tokenizer) -> GPT2:
    """The model, with its vocabulary from the tokenizer."""
    model = GPT2(dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size))
    return model.to(config.device, config.dtype)


def make_optimizer(config: TrainConfig, groups: list[dict[str, Any]]) -> Optimizer:
    """The optimiser of the settings."""
    if config.optimizer == "sgd":
        return SGD(groups, config.lr, momentum=0.9)
    return AdamW(groups, config.lr, betas=(config.beta1, config.beta2))


def divide(model: GPT2, config: TrainConfig, world: Communicator) -> WholeModel | ParallelModel:
    """The model as these ranks train it together, divided as the settings say.

    Raises: InputError for a division that does not fit these ranks or this model.
    """
    layers = parse_layers(config.recompute, config.model.layers)
    mesh = Mesh(world, config.dp, config.tp, config.pp)
    if not isinstance(world, Alone):
        return ParallelModel(model, mesh, config.weight_decay, config.zero, config.pipeline, layers)
    if config.zero:
        raise InputError(f"train: --zero {config.zero} divides what several ranks keep; start them with --nproc")
    return WholeModel(model, config.weight_decay, layers)
