"""The subject of the ledger: a model with its weights, and a small batch of its data, as `minillm train` would make it.

The task of the model's family (training/tasks) makes the batch and says what the loss is. A model that has no such
task, such as one with a head for classes, is checked with its own loss on random labels. Weights of a preset are
random, and biases and norms are moved away from their zeros and ones, which would hide a term that is left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import shlex
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from minillm import random
from minillm.autograd import Tensor
from minillm.backend import Array
from minillm.data import read_text
from minillm.errors import InputError, did_you_mean
from minillm.parallel.objective import Batch, Objective
from minillm.resolver import OpenedModel, find, open_model, presets
from minillm.study.ledger.rounding import Outcome, Size, bound_of, sensitivity_of, size_of
from minillm.study.ledger.steps import PARTS, STEPS, Training, trained
from minillm.tokenizers import CharacterTokenizer, Tokenizer
from minillm.training.config import CONFIGS, OBJECTIVES, PRESETS, TrainConfig, preset
from minillm.training.corpus import train_tokenizer
from minillm.training.tasks import task_class
from minillm.training.tasks.families import SPECIAL_TOKENS, special_tokens

ROWS = 5  # examples of the batch: neither two ranks nor three micro-batches get equal numbers of them
LENGTHS = (16, 96)  # tokens of each, at least and at most
FLOPS = 5e10  # FLOPs of a step, by which a length between these is chosen: some seconds of a CPU
TEXT = 100_000  # characters of the data that are read


class Subject:
    """The model that the claims are about, and how it is trained.

    command: the words that repeat the check. config: the settings of a training of this model, or None where
    `minillm train` cannot train it on a text. opened: the model's files, unless it is a preset.
    """

    def __init__(
        self,
        command: str,
        folder: Path,
        model: Any,
        objective: Objective,
        batch: Batch,
        config: TrainConfig | None,
        tokenizer: Tokenizer,
        opened: OpenedModel | None = None,
    ):
        self.command, self.folder, self.config, self.tokenizer, self.opened = command, folder, config, tokenizer, opened
        np.savez(folder / "weights.npz", **model.state_dict())
        weights = str(folder / "weights.npz")
        self.start = Training(type(model), model.config, weights, objective, batch)

    @property
    def name(self) -> str:
        """The name of the model's class."""
        return getattr(self.start.kind, "__name__", str(self.start.kind))

    @property
    def text(self) -> str:
        """The text of the batch, one example behind the other."""
        ids = next(array for array in self.batch.values() if array.ndim == 2 and array.dtype.kind in "iu")
        return self.tokenizer.decode([i for i in ids.reshape(-1).tolist() if 0 <= i < self.tokenizer.vocab_size])

    @property
    def batch(self) -> Batch:
        """The batch of every step."""
        return self.start.batch

    def model(self, dtype: str = "float64") -> Any:
        """The model, made anew for each claim, so that none sees what another has done to it."""
        return self.start.model(dtype)

    @cached_property
    def training(self) -> Training:
        """The training whose steps are compared.

        AdamW divides a gradient by its own size, which makes rounding as large as any other gradient where the true
        one is 0. So eps is the largest element of the gradient: an update then has the rounding error of the gradient.
        The norm is clipped to half of what it is, so that clipping has something to do.
        """
        model = self.model()
        self.start.loss(model).backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        largest = max(float(np.abs(array).max()) for array in gradients)
        norm = math.sqrt(sum(float(np.vdot(array, array)) for array in gradients))
        return self.start._replace(eps=largest, clip=norm / 2)

    @cached_property
    def size(self) -> Size:
        """The size of a step, for bounds."""
        model = self.model()
        tokens = sum(array.size for array in self.batch.values() if array.ndim == 2)
        return size_of(model, self.start.loss(model), tokens)

    @cached_property
    def reference(self) -> Outcome:
        """The outcome of one step in float64 in the engine that is chosen."""
        return trained(self.training, self.model())

    @cached_property
    def bound(self) -> float:
        """The bound of differences from `reference`."""
        return bound_of(self.size, self.sensitivity)

    @cached_property
    def sensitivity(self) -> float:
        """The factor by which rounding errors grow in one step; see rounding.py."""
        return sensitivity_of(lambda model: trained(self.training, model), self.model(), self.reference)

    @cached_property
    def two_steps(self) -> tuple[Outcome, float]:
        """The outcome of two steps in two micro-batches each, without the gradient, and the bound of differences."""

        def steps(model: Any) -> Outcome:
            outcome = trained(self.training, model, STEPS, PARTS)
            del outcome["gradient of"]  # ranks have it in parts
            return outcome

        expected = steps(self.model())
        sensitivity = sensitivity_of(steps, self.model(), expected)
        return expected, bound_of(self.size, sensitivity, steps=STEPS)


class OwnLoss(Objective):
    """The loss of a model that no task trains on a text: that of its own `loss`, each label counting alike.

    A model without a loss is multiplied by fixed random numbers, the same for each example, and summed.
    """

    def __init__(self, labels: tuple[str, ...]):
        self.labels = labels

    def counts(self, batch: Batch) -> dict[str, float]:
        """The number of labels, or of examples."""
        return {"loss": float(sum(batch[name].size for name in self.labels) or len(next(iter(batch.values()))))}

    def sums(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """The sum of the losses."""
        if self.labels:
            return {"loss": model.loss(**batch, reduction="sum")}
        output = model(**batch)
        outputs = [one for one in (output if isinstance(output, tuple) else (output,)) if isinstance(one, Tensor)]
        rng = np.random.default_rng(0)
        factors = [rng.normal(size=one.shape[1:]).astype(one.dtype) for one in outputs]
        return {"loss": sum((one * factor).sum() for one, factor in zip(outputs, factors, strict=True))}  # type: ignore[dict-item]


@contextlib.contextmanager
def open_subject(model: str | None, preset_name: str, data: str | None) -> Iterator[Subject]:
    """Open the model that is named, or else make that of a preset, with a batch of the data.

    data: a text as for `minillm train --data`; None for that of the run, or for the text that every Python carries.
    Raises: as `open_model` and the tasks; InputError for data that cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="minillm-check-") as name:
        folder = Path(name)
        if model is None and preset_name not in presets():
            raise InputError(f"check: {preset_name} is no preset{did_you_mean(preset_name, presets())}")
        chosen = model or preset_name
        is_preset = model is None or find(model, "check").kind == "preset"
        yield _of_preset(chosen, data, folder) if is_preset and chosen in PRESETS else _of_model(chosen, data, folder)


def _of_preset(name: str, data: str | None, folder: Path) -> Subject:
    """The model of a preset, with the tokenizer that its training would make."""
    config = preset(name)
    if config.objective != OBJECTIVES[config.architecture]:  # pairs of texts are not in a text
        config = config.with_model(config.architecture, OBJECTIVES[config.architecture])
    config = _small(config, data or config.data, folder)
    tokenizer = train_tokenizer(config, read_text(config.data), _special(config.architecture))
    task = task_class(config.objective)(config, tokenizer)
    with random.using(random.Generator(config.seed)):
        model = _moved(task.make_model(config, task.tokenizer))
    return Subject(_command(f"--preset {name}", data), folder, model, task, task.batch(0), config, tokenizer)


def _of_model(name: str, data: str | None, folder: Path) -> Subject:
    """The model that a path or a name means, with its tokenizer; one that has none gets one of characters."""
    opened = open_model(name, random=True)
    model, run = opened.model, opened.run
    architecture = type(model).__module__.rpartition(".")[2]
    if architecture not in CONFIGS:
        raise InputError(f"check: {name} is a {architecture}; give a {', '.join(CONFIGS)}")
    given = TrainConfig() if run is None else run.config  # its text
    config = TrainConfig().with_model(architecture, OBJECTIVES[architecture])
    config = dataclasses.replace(config, model=model.config, init=name, field=None if data else given.field)
    if architecture == "bert" and type(model).__name__ != "BertForPreTraining":
        config = dataclasses.replace(config, task=dataclasses.replace(config.task, next_sentence=False))
    config = _small(config, data or given.data, folder, model.num_parameters())
    if opened.place.kind == "preset":
        model = _moved(model)
    tokenizer = opened.tokenizer or _characters(config, _special(architecture) or [])
    command, task_kind = _command(shlex.quote(name), data), task_class(config.objective)
    if task_kind.model_class(config) is type(model):
        task = task_kind(config, tokenizer)
        return Subject(command, folder, model, task, task.batch(0), config, tokenizer, opened)
    batch, labels = labelled_batch(model, np.array(tokenizer.encode(read_text(config.data))), config.task.length)
    return Subject(command, folder, model, OwnLoss(labels), batch, None, tokenizer, opened)


def _command(model: str, data: str | None) -> str:
    return f"minillm check {model}" + ("" if data is None else f" --data {shlex.quote(data)}")


def _special(architecture: str) -> list[str] | None:
    return special_tokens(architecture) if architecture in SPECIAL_TOKENS else None


def _small(config: TrainConfig, data: str, folder: Path, weights: int = 1) -> TrainConfig:
    """The settings with a small batch, and with the first characters of the data, in a file, as its text."""
    if data == "builtin" or not list(Path(data).glob("train_*.bin")):  # such a folder has tokens, and is read in place
        text = read_text(data, config.field)[:TEXT]
        (folder / "text.txt").write_text(text, encoding="utf-8")
        data = str(folder / "text.txt")
    least, most = LENGTHS
    length = int(min(max(least, FLOPS / (6 * weights * ROWS)), most))  # 6 FLOPs for each token and weight
    length = min(length, getattr(config.model, "context", None) or length)
    task = dataclasses.replace(config.task, length=length)
    return dataclasses.replace(config, data=data, field=None, batch_size=ROWS, micro_batches=1, task=task)


def _characters(config: TrainConfig, special: list[str]) -> Tokenizer:
    """A tokenizer of characters for a model that has none; those that it has no id for are left out of the text."""
    text = read_text(config.data)
    commonest = Counter(text).most_common(max(1, config.model.vocab_size - len(special)))
    known = {character for character, _ in commonest}
    kept = "".join(character for character in text if character in known)
    Path(config.data).write_text(kept, encoding="utf-8")
    return CharacterTokenizer.train(kept, special)


def _moved(model: Any) -> Any:
    """The model, whose biases and norms are moved at random."""
    rng = np.random.default_rng(0)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim == 1:
            parameter.data += 0.05 * rng.standard_normal(parameter.shape, np.float32)
    return model


def labelled_batch(model: Any, ids: Array, length: int) -> tuple[Batch, tuple[str, ...]]:
    """The arguments of a model's loss, or of its forward if it has none, and the names of those that are labels."""
    rng, config = np.random.default_rng(0), model.config
    starts = rng.integers(0, max(1, len(ids) - length), ROWS)
    tokens = ids[starts[:, None] + np.arange(length)]  # (B, T)
    classes: Array = rng.integers(0, config.labels, ROWS) if hasattr(config, "labels") else starts
    problem = getattr(config, "problem_type", None)
    if problem == "multi_label_classification":
        classes = rng.integers(0, 2, (ROWS, config.labels)).astype(np.float64)
    elif problem == "regression" or (problem is None and getattr(config, "labels", 2) == 1):
        classes = rng.normal(size=(ROWS, config.labels))
    texts = dict.fromkeys(("ids", "source", "target_in"), tokens)
    labels = {
        "labels": rng.integers(0, getattr(config, "labels", 2), tokens.shape),
        "classes": classes,
        "starts": rng.integers(0, length, ROWS),
        "ends": rng.integers(0, length, ROWS),
    }
    function = model.loss if hasattr(model, "loss") else model.forward
    parameters = inspect.signature(function).parameters.values()
    needed = [one.name for one in parameters if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    batch = {name: (texts | labels)[name] for name in needed}
    return batch, tuple(name for name in needed if name in labels)
