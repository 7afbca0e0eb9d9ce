"""Task: the base of all tasks; everything in which one training differs from another.

The loop (trainer.py) asks a task, in this order:

    task = task_class(config.objective)(config, tokenizer)     reads the data and checks all of it
    task.make_model(config, task.tokenizer)                    the model that it trains
    for step in ...:
        batch = task.batch(step)                               a function of (seed, step) alone
        task.counts(batch), task.sums(model, batch)            the loss; see parallel/objective.py
        task.measures(model, batch)                            of every batch of a validation
        task.preview(model, step)                              what is shown now and then

A file of this package imports nothing of the loop: `config` is a training/config.py TrainConfig, whose `task` holds the
task's own `Options`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from minillm.backend import Array
from minillm.device import to_device
from minillm.errors import InputError
from minillm.parallel.objective import Batch, Objective, rows_of
from minillm.pretrained import keep
from minillm.tokenizers import Tokenizer
from minillm.training.overfitting import COMPARED

__all__ = ["Batch", "Options", "Task", "Tokenizer"]


@dataclasses.dataclass(frozen=True)
class Options:
    """The settings of a task that has none."""


class Task(Objective):
    """A task: the objective of a training, and its data.

    name: the name in `TASKS`, which is the option --objective. Options: a frozen dataclass, whose fields are options of
    the command line. models: for each architecture (a file of minillm/models) the class in it that this task trains.
    samples: True if a batch is made by the model itself. measured_first: True if the model can do something before it
    is trained, so that a validation and a preview come before the first step. validated: what val_loss is, for people.
    """

    name: ClassVar[str]
    Options: ClassVar[type] = Options
    models: ClassVar[Mapping[str, str]] = {}
    samples: ClassVar[bool] = False
    measured_first: ClassVar[bool] = False
    validated: ClassVar[str] = COMPARED
    tokenizer: Tokenizer

    def __init__(self, config: Any, tokenizer: Tokenizer | None = None):
        """Read the data, make or take the tokenizer, and check all of it.

        tokenizer: of a run that goes on, of the model that training starts from, or of rank 0, which makes it for all
        ranks; None: `config` says which. A subclass sets `self.tokenizer`.
        Raises: InputError for data that cannot be used.
        """
        self.config, self.options = config, config.task

    @classmethod
    def needs(cls, options: Any) -> dict[str, tuple[bool, str]]:
        """For each of the task's options that counts only beside another: True if it does, and what it needs."""
        return {}

    def fingerprint(self) -> str:
        """A short text that differs for other data or another tokenizer; a resumed run must have the same."""
        raise NotImplementedError

    def summary(self) -> str:
        """A line about the data: how much there is, and what was left out and why."""
        raise NotImplementedError

    def batch(self, step: int, model: Any = None) -> Batch:
        """The batch of a step, counted from 0: a function of the seed and the step alone.

        model: the whole model in evaluation mode, where `samples` is True; the batch is then made on rank 0.
        """
        raise NotImplementedError

    def evaluation_batches(self, count: int) -> Iterator[Batch]:
        """At most `count` batches of the validation data, the same at every call."""
        raise NotImplementedError

    def preview(self, model: Any, step: int) -> Iterator[tuple[str, str]]:
        """Pairs to show of (what the model was given, what it answered)."""
        return iter(())

    def tokens(self, batch: Batch) -> int:
        """The number of tokens of a batch, for the speed."""
        return int(batch["ids"].size)

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes of text for each token of the validation data, where the loss is that of a text's tokens.

        The loss is then shown in bits per byte too.
        """
        return None

    def next_steps(self, folder: str) -> list[str]:
        """Lines that say what to do with a finished run; `folder` is quoted for a shell."""
        return []

    def notes(self) -> dict[str, float]:
        """The further measures of the step just taken that metrics.jsonl gets, on rank 0."""
        return {}

    def remark(self, record: Mapping[str, Any]) -> str:
        """The text shown behind the losses of a validation; `record` is its line of metrics.jsonl."""
        return ""

    def begin(self, model: Any, kept: Mapping[str, Array]) -> Mapping[str, Array]:
        """Called once before the first step, on every rank, with the whole model as training starts from it.

        Returns arrays that the run directory keeps, such as what a reference model says of the data. When a run is
        resumed, `kept` has them; the model then has no weights yet.
        """
        return {}

    def first_row(self) -> Batch:
        """The first example of the validation data on the device of the model, for a preview."""
        row = rows_of(next(self.evaluation_batches(1)), 0, 1)
        return {name: to_device(array, self.config.device) for name, array in row.items()}

    # --- the model ---------------------------------------------------------------------------------------------------

    @classmethod
    def check_model(cls, architecture: str) -> None:
        """Raise InputError for an architecture that this task cannot train."""
        if architecture not in cls.models:
            raise InputError(
                f"train: {cls.name} does not train a model of the family {architecture}; it trains "
                f"{', '.join(cls.models)}"
            )

    @classmethod
    def shape(cls, config: Any, tokenizer: Tokenizer) -> Any:
        """The configuration of the model: that of the settings, which a tokenizer that was made for it completes.

        A model that existed before keeps its own.
        Raises: InputError where it has fewer ids than the tokenizer.
        """
        if config.init is not None:
            if config.model.vocab_size < tokenizer.vocab_size:
                raise InputError(
                    f"train: {config.init} has {config.model.vocab_size} ids, but its tokenizer has "
                    f"{tokenizer.vocab_size}; give the model's own tokenizer"
                )
            return config.model
        return dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size)

    @classmethod
    def make_model(cls, config: Any, tokenizer: Tokenizer) -> Any:
        """A new model of these settings."""
        return cls.model_class(config)(cls.shape(config, tokenizer))

    @classmethod
    def start_from(cls, model: Any, opened: Any) -> str:
        """Give a new model the weights of an opened one (resolver.py), and what its files say beside them.

        A head that only one of them has begins anew, or is left out; a sentence that says so is returned, or "".
        Raises: InputError if the two have nothing in common.
        """
        own, given = model.state_dict(), opened.model.state_dict()
        shared = {name: array for name, array in given.items() if name in own and own[name].shape == array.shape}
        if not shared:
            raise InputError(
                f"train: {opened.place.path} has no weight of a {type(model).__name__}; give another model"
            )
        model.load_state_dict(own | shared if type(model) is not type(opened.model) else given)
        keep(model, opened.saved_with)
        return left_out_of(opened, model)

    @classmethod
    def model_class(cls, config: Any) -> Any:
        """The class of the model of these settings."""
        cls.check_model(config.architecture)
        return getattr(
            importlib.import_module(f"minillm.models.{config.architecture}"), cls.models[config.architecture]
        )


def left_out_of(opened: Any, model: Any) -> str:
    """A sentence that names the weights of an opened model which another model has no place for; "" for none."""
    own, given = model.state_dict(), opened.model.state_dict()
    left = [name for name, array in given.items() if name not in own or own[name].shape != array.shape]
    if not left:
        return ""
    layers = ", ".join(dict.fromkeys(name.rpartition(".")[0] or name for name in left))
    return (
        f"{opened.place.path} is a {type(opened.model).__name__}, whose {layers} has no place in a "
        f"{type(model).__name__} and is left out"
    )
