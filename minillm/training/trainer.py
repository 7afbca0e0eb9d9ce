"""Training a language model: `train` is the whole loop, to be read from top to bottom.

A step is a function of the settings, the step number and the state in the checkpoint (weights, moments, the place in
the random stream), so a run that was stopped and resumed gives the same weights, bit for bit, as one that was not.

With a communicator of several ranks, each of them calls `train` with the same settings. All of them compute; rank 0
alone reads and writes the run directory, and shows what happens. The model is divided by parallel/mesh.py, and every
`if parallel` below is where that changes something.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import threading
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minillm import random
from minillm.autograd import no_grad
from minillm.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from minillm.data import Batches, Tokens, open_tokens, read_text, split_text
from minillm.device import Uploads, check_device
from minillm.errors import CheckpointError, InputError
from minillm.generate import generate, quiet
from minillm.models.gpt2 import GPT2
from minillm.nn import uninitialized
from minillm.optim import SGD, AdamW, Optimizer, cosine_schedule, decay_groups, wsd_schedule
from minillm.parallel.communicator import Alone, Communicator, agree, broadcast_arrays, broadcast_bytes
from minillm.parallel.mesh import Mesh, ParallelModel, parse_layers
from minillm.parallel.recompute import recompute
from minillm.tokenizers import BPETokenizer, CharacterTokenizer, Tokenizer
from minillm.training.config import TrainConfig
from minillm.training.display import Display
from minillm.training.history import learning_rate_of_format_1
from minillm.training.run import Run, check_free
from minillm.tuning import tuned_process


class Corpus(NamedTuple):
    """The tokenizer and both parts of the data; the fingerprint tells one corpus from another."""

    tokenizer: Tokenizer
    train: Tokens | np.ndarray
    validation: Tokens | np.ndarray

    def fingerprint(self) -> str:
        """The numbers of tokens, the tokenizer, and a checksum of the first million tokens of each part."""
        checksum = 0
        for tokens in (self.train, self.validation):
            checksum = zlib.crc32(np.asarray(tokens[: 1 << 20], np.uint32).tobytes(), checksum)
        return f"{len(self.train)}+{len(self.validation)}-{self.tokenizer.fingerprint()}-{checksum:08x}"


class State(NamedTuple):
    """Where a run stands, beside weights and moments."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_step: int = 0


def train(config: TrainConfig, resume: Path | None = None, communicator: Communicator | None = None) -> Run:
    """Train a model from the start, or continue the run at `resume` with these settings; returns the finished run.

    Ctrl-C (or SIGTERM) ends the step at hand, saves, and says how to go on; a second one ends at once.

    Raises: InputError or CheckpointError for settings, data or a run that cannot be used, before anything is written;
    InputError when the loss stops being a number; ParallelError when another rank fails, or has other settings or text.
    """
    world = communicator or Alone()
    leads = world.rank == 0  # the rank that reads and writes the run directory
    check_device(config.device)
    if leads and resume is None and config.out is not None:
        check_free(config.out)
    run = Run.open(resume) if leads and resume else None
    corpus = load_corpus_on_all(config, run.tokenizer if run else None, world)
    train_batches, validation = make_batches(corpus, config)
    random.manual_seed(config.seed)
    model = make_model(config, corpus.tokenizer)
    weights = model.num_parameters()
    parallel = divide(model, config, world)
    optimizer = make_optimizer(config, parallel.groups if parallel else decay_groups_of(model, config))
    state = State()
    if parallel:
        parallel.attach(optimizer)
    if resume:
        state = restore(run, model, optimizer, corpus, parallel, world)
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

    uploads = Uploads(config.device)
    shown = Display(run, weights, corpus, state, config) if leads else contextlib.nullcontext()
    with tuned_process(), StopRequest() as stop, quiet(), shown as display:
        last = state.step >= config.steps
        while not last:
            started = time.perf_counter()
            ids, targets = uploads(*train_batches.batch(state.step))
            optimizer.lr = learning_rate(config, state.step)
            if parallel:
                loss = parallel.accumulate_gradients(ids, targets, config.micro_batches)
            else:
                optimizer.zero_grad()
                loss = accumulate_gradients(model, ids, targets, config.micro_batches)
            grad_norm = optimizer.clip_grad_norm(config.clip)
            loss, grad_norm = float(loss), float(grad_norm)  # here, and nowhere else in a step, a GPU is waited for,
            stopping = stop.requested_of_any(world)  # and the other ranks
            check_finite(config, state.step + 1, {"loss": loss, "norm of the gradient": grad_norm})
            optimizer.step()
            if parallel:
                parallel.publish()
            seconds = time.perf_counter() - started
            state = state._replace(step=state.step + 1, tokens=state.tokens + ids.size, seconds=state.seconds + seconds)

            last = state.step == config.steps or stopping
            val_loss = None
            if last or state.step % config.eval_every == 0:
                val_loss = evaluate(parallel or model, validation, config.eval_batches)
                check_finite(config, state.step, {"validation loss": val_loss})  # or the checkpoint would be lost
                if val_loss < state.best_loss:
                    state = state._replace(best_loss=val_loss, best_step=state.step)
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
            if display:
                run.add_metrics(record)
                display.step(record)
            if val_loss is not None:
                save(run, model, optimizer, corpus, state, parallel)
            if config.sample_every and (last or state.step % config.sample_every == 0):
                whole = whole_model(parallel, config, corpus) if parallel else model
                if display and whole:
                    display.sample(*sample(whole, corpus, config, state.step))
        if display:
            run.plot()
            display.finish(state, interrupted=state.step < config.steps)
    return run


# --- a step --------------------------------------------------------------------------------------------------------


def accumulate_gradients(model: GPT2, ids: Any, targets: Any, micro_batches: int = 1) -> Any:
    """Add the gradient of the mean loss of a batch to the parameters, computed in parts; returns the loss.

    On a GPU the loss is an array without dimensions, and nobody waits for it before `float(loss)`.

    Each part contributes the sum of its token losses over the number of tokens of the whole batch, so that tokens
    count alike however they are spread over the parts; targets of -100 do not count.
    """
    counted = np.maximum((targets != -100).sum(), 1).astype(np.float32)
    total: Any = 0.0
    for part_ids, part_targets in zip(
        np.array_split(ids, micro_batches), np.array_split(targets, micro_batches), strict=True
    ):
        loss = model.loss(part_ids, part_targets, reduction="sum") / counted
        loss.backward()
        total = total + loss.data.astype(np.float64)
    return total


def check_finite(config: TrainConfig, step: int, values: dict[str, float]) -> None:
    """Raise InputError for a value that is no number, with what to do about it."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise InputError(
                f"train: at step {step} the {name} is {value}, as happens when steps are too large; train again with "
                f"a lower --lr (now {config.lr}) or a longer --warmup (now {config.warmup})"
            )


def evaluate(model: GPT2 | ParallelModel, batches: Batches, count: int) -> float:
    """The mean validation loss over `count` batches spread evenly over the text, without dropout."""
    if isinstance(model, ParallelModel):
        losses = model.losses(batches.evaluation_batches(count))
    else:
        model.eval()
        with no_grad():
            losses = [model.loss(ids, targets).item() for ids, targets in batches.evaluation_batches(count)]
        model.train()
    return sum(losses) / len(losses)


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of a step, counted from 0: lr after the warmup, min_lr at the last, `steps` - 1."""
    if config.format == 1:
        return learning_rate_of_format_1(config, step)
    shape: dict[str, Any] = dict(peak=config.lr, floor=config.min_lr, warmup=config.warmup, total=config.steps)
    if config.schedule == "wsd":
        return wsd_schedule(step, **shape, decay=config.decay_steps)
    return cosine_schedule(step, **shape)


def sample(model: GPT2, corpus: Corpus, config: TrainConfig, step: int) -> tuple[str, str]:
    """Some validation text, and how the model continues it."""
    prompt = np.asarray(corpus.validation[:16]).tolist()
    ids = list(generate(model, prompt, config.sample_tokens, temperature=0.8, top_k=50, seed=config.seed + step))
    return corpus.tokenizer.decode(prompt), corpus.tokenizer.decode(ids)


# --- before the first step -----------------------------------------------------------------------------------------


def load_corpus(config: TrainConfig, tokenizer: Tokenizer | None = None) -> Corpus:
    """Read, split and encode the text; train a tokenizer on the training part if none is given.

    A folder with `train_*.bin` and `validation_*.bin` holds tokens already; it needs the tokenizer that made them.
    """
    if tokenizer is None and config.tokenizer not in ("bpe", "char"):
        try:
            tokenizer = Tokenizer.load(config.tokenizer)
        except InputError as error:
            raise InputError(f"{error}, or a tokenizer of bpe or char, which is trained here") from None
    folder = Path(config.data)
    if config.data != "builtin" and (shards := sorted(folder.glob("train_*.bin"))):
        if tokenizer is None:
            raise InputError(f"train: {folder} holds tokens; say whose with --tokenizer FOLDER")
        validation_shards = sorted(folder.glob("validation_*.bin"))
        if not validation_shards:
            raise InputError(
                f"train: {folder} has train_*.bin, but no validation_*.bin; make both with `minillm tokenizer encode`"
            )
        if config.field is not None:
            raise InputError(
                f"train: field={config.field!r} is for .jsonl files, but {folder} holds tokens; leave it out"
            )
        fingerprint = tokenizer.fingerprint()
        return Corpus(tokenizer, open_tokens(shards, fingerprint), open_tokens(validation_shards, fingerprint))
    text, validation_text = split_text(read_text(config.data, config.field), config.validation_fraction)
    if tokenizer is None and config.tokenizer == "char":
        tokenizer = CharacterTokenizer.train(text + validation_text)
    elif tokenizer is None:
        tokenizer = BPETokenizer.train(text, config.model.vocab_size, progress=True)
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    return Corpus(
        tokenizer, np.array(tokenizer.encode(text), dtype), np.array(tokenizer.encode(validation_text), dtype)
    )


def load_corpus_on_all(config: TrainConfig, tokenizer: Tokenizer | None, world: Communicator) -> Corpus:
    """load_corpus on every rank; a tokenizer is trained on rank 0 and sent to the others.

    Raises: ParallelError that names the ranks with other settings or another text.
    """
    settings = {name: value for name, value in config.to_json().items() if name not in ("out", "device")}
    agree(world, "settings", json.dumps(settings), "start all ranks with the same options")
    if world.rank == 0:
        corpus = load_corpus(config, tokenizer)
        broadcast_bytes(world, json.dumps(corpus.tokenizer.to_json()).encode())
    else:
        corpus = load_corpus(config, Tokenizer.from_json(json.loads(broadcast_bytes(world))))
    agree(world, "text", corpus.fingerprint(), "give all ranks the same --data")
    return corpus


def make_batches(corpus: Corpus, config: TrainConfig) -> tuple[Batches, Batches]:
    """The batches of both parts of the corpus."""
    context = config.model.context
    for part, tokens in (("training", corpus.train), ("validation", corpus.validation)):
        if len(tokens) <= context:
            raise InputError(
                f"train: the {part} text has {len(tokens)} tokens, but a context of {context} needs at least "
                f"{context + 1}; give more text, a smaller --context, or another --validation-fraction"
            )
    return (
        Batches(corpus.train, config.batch_size, context, config.seed, to_the_end=config.format > 1),
        Batches(corpus.validation, config.batch_size, context, config.seed, shuffle=False),
    )


def build(config: TrainConfig, tokenizer: Tokenizer) -> tuple[GPT2, Optimizer]:
    """The model and its optimiser, in one process."""
    model = make_model(config, tokenizer)
    return model, make_optimizer(config, decay_groups_of(model, config))


def make_model(config: TrainConfig, tokenizer: Tokenizer) -> GPT2:
    """The model, with its vocabulary from the tokenizer."""
    model = GPT2(dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size))
    return model.to(config.device, config.dtype)


def decay_groups_of(model: GPT2, config: TrainConfig) -> list[dict[str, Any]]:
    """What the optimiser of one process gets."""
    return decay_groups(model.parameters(), config.weight_decay)


def make_optimizer(config: TrainConfig, groups: list[dict[str, Any]]) -> Optimizer:
    """The optimiser of the settings."""
    if config.optimizer == "sgd":
        return SGD(groups, config.lr, momentum=0.9)
    return AdamW(groups, config.lr, betas=(config.beta1, config.beta2))


def divide(model: GPT2, config: TrainConfig, world: Communicator) -> ParallelModel | None:
    """The model in parts, as the settings say; None without other ranks, but blocks may be computed again.

    Raises: InputError for a division that is not one of these ranks or this model.
    """
    layers = parse_layers(config.recompute, config.model.layers)
    mesh = Mesh(world, config.dp, config.tp, config.pp)
    if isinstance(world, Alone):
        if config.zero:
            raise InputError(f"train: --zero {config.zero} divides what several ranks keep; start them with --nproc")
        recompute(model, layers)
        return None
    return ParallelModel(model, mesh, config.weight_decay, config.zero, config.pipeline, layers)


def whole_model(parallel: ParallelModel, config: TrainConfig, corpus: Corpus) -> GPT2 | None:
    """The model of one process with the weights of now, on rank 0; None on the others, which take part."""
    weights = parallel.state_dict()
    if weights is None:
        return None
    with uninitialized():
        model = make_model(config, corpus.tokenizer)
    model.load_state_dict(weights)
    return model


# --- stopping and going on -----------------------------------------------------------------------------------------


def save(
    run: Run,
    model: GPT2,
    optimizer: Optimizer,
    corpus: Corpus,
    state: State,
    parallel: ParallelModel | None = None,
) -> None:
    """Write the last checkpoint, which is the best one too if no validation loss was lower.

    The best one first: a run that is killed between the two goes on from the last one before, and comes here again.
    A divided model is brought together on rank 0, which writes what one process would.
    """
    weights = parallel.state_dict() if parallel else model.state_dict()
    moments = parallel.optimizer_state_dict(optimizer) if parallel else optimizer.state_dict()
    if weights is None or moments is None:
        return
    content = {**state._asdict(), "random": random.default.state(), "corpus": corpus.fingerprint()}
    last, best = run.checkpoint("last"), run.checkpoint("best")
    if state.best_step < state.step:
        save_checkpoint(last, weights, moments, content)
        return
    save_checkpoint(best, weights, moments, content)
    unfinished = last.with_suffix(".tmp")
    unfinished.unlink(missing_ok=True)
    try:
        os.link(best, unfinished)  # a checkpoint is replaced, never written to, so two names may share one file
    except OSError:
        shutil.copyfile(best, unfinished)
    os.replace(unfinished, last)


def restore(
    run: Run | None,
    model: GPT2,
    optimizer: Optimizer,
    corpus: Corpus,
    parallel: ParallelModel | None = None,
    world: Communicator | None = None,
) -> State:
    """Load the last checkpoint of a run, which rank 0 reads, into model and optimiser, however they are divided.

    Raises: CheckpointError if the data, the tokenizer or the model's shape is not what the run was saved with.
    """
    checkpoint = read_last(run, corpus) if run else Checkpoint({}, {}, {})
    if parallel and world:
        content = json.loads(broadcast_bytes(world, json.dumps(checkpoint.state).encode()))
        weights, moments = (broadcast_arrays(world, arrays) for arrays in (checkpoint.model, checkpoint.optimizer))
        parallel.load_state_dict(weights)
        parallel.load_optimizer_state_dict(optimizer, moments)
    else:
        content = checkpoint.state
        model.load_state_dict(checkpoint.model)
        optimizer.load_state_dict(checkpoint.optimizer)
    random.default.set_state(content["random"])
    for unfinished in run.folder.rglob("*.tmp") if run else ():  # left by a kill in the middle of a save
        unfinished.unlink()
    return State(**{name: content[name] for name in State._fields})


def read_last(run: Run, corpus: Corpus) -> Checkpoint:
    """The last checkpoint of a run that `train` saved with this corpus.

    Raises: CheckpointError for any other.
    """
    checkpoint = load_checkpoint(run.checkpoint("last"))
    content = checkpoint.state
    if missing := {"corpus", "random", *State._fields} - content.keys():
        raise CheckpointError(
            f"train: {run.checkpoint('last')} lacks {', '.join(sorted(missing))}, so `minillm train` did not write it; "
            "resume a run that it did"
        )
    if content["corpus"] != corpus.fingerprint():
        raise CheckpointError(
            f"train: the text or tokenizer of {run.folder} has changed since it was saved ({content['corpus']}, now "
            f"{corpus.fingerprint()}); put the old text back, or start a new run"
        )
    return checkpoint


class StopRequest:
    """While entered, Ctrl-C and SIGTERM set `requested` instead of raising; a second Ctrl-C raises."""

    requested = False

    def requested_of_any(self, world: Communicator) -> bool:
        """Whether it is set on any rank: all ranks must end after the same step."""
        return self.requested if world.size == 1 else world.max_of(float(self.requested))[0] > 0

    def __enter__(self) -> StopRequest:
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.before.items():
            with contextlib.suppress(TypeError):  # a handler that was not set from Python
                signal.signal(number, handler)
