"""The step that is traced: a model, an optimiser, and a batch, as `minillm train` and `minillm finetune` have them.

A text becomes the batch of a task that reads text (the next token, hidden tokens, ...); every other task, and any with
--data, makes its first batch from its records, by training/tasks.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minillm import random
from minillm.autograd import Tensor
from minillm.counted import counted
from minillm.data import read_text
from minillm.errors import InputError
from minillm.optim import Optimizer, decay_groups
from minillm.parallel.objective import Batch, loss_of_rows, next_token_batch
from minillm.resolver import OpenedModel, open_model
from minillm.study.step.lens import read_gradients
from minillm.study.step.records import StepTrace
from minillm.study.step.trace import trace_step
from minillm.tokenizers import Tokenizer
from minillm.training.config import TrainConfig
from minillm.training.prepare import adapt, make_model, make_optimizer
from minillm.training.tasks import task_class
from minillm.training.tasks.families import STEPS, stream
from minillm.training.tasks.task import Task

TEXT = "A gradient points uphill."
READ_TEXT = ("causal", "masked", "permutation", "denoising")  # tasks that one text is enough for
FOR_TOKENIZER = 40_000  # letters of Python's help texts that a tokenizer is trained on, beside the text
LONGEST = 64  # tokens of a text
TRIES = 1000  # draws of what is hidden, until something is
SPACE = "\u2581"  # a piece of SentencePiece that is a space alone, which decodes to nothing
IDS = ("ids", "source", "target", "targets", "labels", "text")  # arrays of a batch that hold ids


class PreparedStep(NamedTuple):
    """A step that can be run."""

    config: TrainConfig
    task: Task
    model: Any
    optimizer: Optimizer
    batch: Batch
    notes: list[str]

    def loss(self, model: Any) -> Tensor:
        """The task's loss of the batch."""
        return loss_of_rows(self.task, model, self.batch, self.task.counts(self.batch))

    def trace(self, **options: Any) -> StepTrace:
        """Run the step once, and return all of it; see `trace_step` for the options."""
        words = Words(self.task.tokenizer)
        trace = trace_step(
            self.model,
            self.loss,
            self.optimizer,
            clip=self.config.clip,
            batch=self.batch,
            tokens=words.of_batch(self.batch),
            seed=self.config.seed,
            **options,
        )
        trace.notes[:0] = self.notes
        trace.readings = read_gradients(trace, words)
        trace.vocabulary = [words(number) for number in range(self.task.tokenizer.vocab_size)]
        return trace


def prepare(config: TrainConfig, text: str | None = None) -> PreparedStep:
    """The first step of a training with these settings, on one text or on the task's data.

    Raises: InputError for a task that reads records and gets none, and for whatever a training would refuse.
    """
    opened = open_model(config.init) if config.init is not None else None
    tokenizer = opened.needed_tokenizer("step") if opened else None
    reads_text = config.objective in READ_TEXT and config.data == "builtin"
    if text is not None and not reads_text:
        raise InputError(f"step: --text is for {', '.join(READ_TEXT)} without --data; leave one of them out")
    if config.data == "builtin" and config.objective not in (*READ_TEXT, "grpo"):
        raise InputError(f"step: the task {config.objective} reads records; give --data records.jsonl")
    notes: list[str] = []
    if reads_text:
        if text is None:
            text = TEXT
            notes.append(f"the text is {TEXT!r}; --text gives another")
        task = _task_of_text(config, text, tokenizer)
        config, batch = task.config, _batch_of_text(task, text, notes)
    else:
        task, batch = task_class(config.objective)(config, tokenizer), {}
    model, optimizer = _build(config, task, opened)
    if not reads_text:
        batch = task.batch(0, model.eval()) if task.samples else task.batch(0)
    return PreparedStep(config, task, model.train(), optimizer, batch, notes)


def _build(config: TrainConfig, task: Task, opened: OpenedModel | None) -> tuple[Any, Optimizer]:
    """The model as training begins with it, and its optimiser."""
    random.manual_seed(config.seed)
    model = make_model(config, task.tokenizer)
    if opened is not None:
        task.start_from(model, opened)
    adapt(model, config)
    task.begin(model, {})
    return model, make_optimizer(config, decay_groups(model.parameters(), config.weight_decay))


def _task_of_text(config: TrainConfig, text: str, tokenizer: Tokenizer | None) -> Task:
    """A task that reads this text; a tokenizer that is trained has seen more than that."""
    if getattr(config.task, "next_sentence", False):  # one text has no text that follows
        config = dataclasses.replace(config, task=dataclasses.replace(config.task, next_sentence=False))
    if getattr(config.task, "length", 0) is None and (getattr(config.model, "context", None) or LONGEST + 1) > LONGEST:
        config = dataclasses.replace(config, task=dataclasses.replace(config.task, length=LONGEST))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "text.txt")
        path.write_text(f"{text}\n\n{read_text('builtin')[:FOR_TOKENIZER]}", encoding="utf-8")
        task = task_class(config.objective)(dataclasses.replace(config, data=str(path)), tokenizer)
    task.config = config
    return task


def _batch_of_text(task: Any, text: str, notes: list[str]) -> Batch:
    """A row: the text, or its beginning, as the task reads it."""
    ids = np.array(task.tokenizer.encode(text), np.int64)
    causal = task.config.objective == "causal"
    room = (task.options.length or task.config.model.context) + 1 if causal else task.room
    if len(ids) < 2:
        raise InputError(f"step: the text {text!r} has {counted(len(ids), 'token')}; give a longer one")
    if len(ids) > room:
        notes.append(f"the text has {len(ids):,} tokens, of which the first {room:,} are used")
    window = ids[None, :room]
    if causal:
        return next_token_batch(window[:, :-1], window[:, 1:])
    for number in range(TRIES):
        batch = task.hide(window, stream(task.config.seed, STEPS, number))
        if all(task.counts(batch).values()):
            return batch
    raise InputError(f"step: nothing of the text {text!r} was hidden in {TRIES} draws; give a longer one")


class Words:
    """The text of each token of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.known = {-100: ""} | {number: token for token, number in tokenizer.special_tokens.items()}

    def __call__(self, number: int) -> str:
        if number not in self.known:
            known = 0 <= number < self.tokenizer.vocab_size
            text = self.tokenizer.decode([number]) if known else f"<{number}>"
            self.known[number] = text or SPACE
        return self.known[number]

    def of_batch(self, batch: Batch) -> dict[str, list[list[str]]]:
        """For each array of ids in a batch, row by row, the text of each token; nothing for -100."""
        return {
            name: [list(map(self, row)) for row in array.reshape(-1, array.shape[-1]).tolist()]
            for name, array in batch.items()
            if name in IDS and array.ndim >= 2 and array.dtype.kind in "iu"
        }
