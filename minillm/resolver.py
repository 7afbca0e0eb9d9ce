"""The one answer to "which model?" for every function and command that is given a model.

    runs/mine                           a run directory of `minillm train` or `minillm finetune`: its best weights
    runs/mine/checkpoints/last.safetensors    a checkpoint of such a run
    a folder with config.json           Hugging Face's files, in one piece or in shards
    model.safetensors                   such a file, with config.json beside it
    model.gguf                          a file of llama.cpp, with configuration and tokenizer in it
    a folder with adapter_config.json   a LoRA adapter: its base model is opened too
    gpt2, llama-nano                    a preset: a configuration, whose weights are random

`find` says which of these a path is, `described` reads the configuration alone, and `open_model` builds the model with
its weights, and keeps beside it what its files say: the tokenizer, the ids that end a text, the chat template.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from minillm import hub
from minillm import random as drawing
from minillm.beside import chat_text_in, ids_of, is_run, learned_to_talk, load_tokenizer, template_of_run, with_ends
from minillm.checksums import KEY
from minillm.dtypes import as_dtype
from minillm.errors import CheckpointError, InputError, MinillmError, did_you_mean
from minillm.lora import add_lora, base_checksum, base_folder, load_lora, load_lora_state_dict, merge
from minillm.models.heads import take_body
from minillm.nn import uninitialized
from minillm.pretrained import FAMILIES, SavedWith, keep
from minillm.stored import CONFIG, INDEX, WEIGHTS
from minillm.weights import build_model

if TYPE_CHECKING:
    from minillm.chat_templates import ChatTemplate
    from minillm.checkpoint import Checkpoint
    from minillm.tokenizers import Tokenizer
    from minillm.training.run import Run

ADAPTER = "adapter_config.json"
KINDS = (
    f"a folder with {CONFIG} and {WEIGHTS}, such a .safetensors file, a .gguf file, a run directory of "
    "`minillm train`, a folder with a LoRA adapter, or a preset such as gpt2"
)


class Place(NamedTuple):
    """The place of a model, and its form."""

    kind: Literal["run", "folder", "safetensors", "gguf", "adapter", "preset"]
    path: Path  # of a preset: its name
    checkpoint: str | None = None  # of a run: the name of the checkpoint that was given


class Described(NamedTuple):
    """A model that is not built: its class and its configuration."""

    place: Place
    kind: Callable[[Any], Any]
    config: Any
    run: Run | None = None


class OpenedModel:
    """A model with its weights, in evaluation mode, and what its files say beside them.

    saved_with: the other values of its files; `model.eos_ids` of a decoder are the ids that end a text by these.
    run: the run that trained it, if it comes from one.
    """

    def __init__(self, place: Place, model: Any, run: Run | None = None, base: OpenedModel | None = None):
        self.place, self.model, self.run, self.base = place, model, run, base
        self.saved_with: SavedWith = vars(model).get("saved_with") or SavedWith({}, {})

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, read when it is first asked for; None if there is none that can be used."""
        return self._tokenizer[0]

    def needed_tokenizer(self, function: str) -> Tokenizer:
        """The model's tokenizer.

        Raises: InputError that says why there is none.
        """
        tokenizer, reason = self._tokenizer
        if tokenizer is None:
            raise InputError(f"{function}: {self.place.path} has no tokenizer to use: {reason}")
        return tokenizer

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The chat template that the model was trained with, by its run, its files or its tokenizer; else None."""
        from minillm.chat_jinja import template_of_jinja

        if self.tokenizer is None:
            return None
        return template_of_jinja(self.chat_text) or template_of_run(self.run, self.tokenizer)

    @cached_property
    def chat_text(self) -> str:
        """The chat template in the language of Jinja, for other programs: of the model's files or its run; or empty."""
        from minillm.chat_jinja import JINJA

        if self.run is not None:
            learned = template_of_run(self.run, self.run.tokenizer) if learned_to_talk(self.run) else None
            return "" if learned is None else JINJA[learned.name]
        if self.place.kind == "gguf":
            from minillm.gguf import read_field

            return read_field(self.place.path, "tokenizer.chat_template") or ""
        return chat_text_in(folder_of(self.place)) or ("" if self.base is None else self.base.chat_text)

    @cached_property
    def _tokenizer(self) -> tuple[Tokenizer | None, str]:
        """The tokenizer, or None and the reason."""
        if self.place.kind == "preset":
            return None, "it is a preset, whose weights are random; give a trained model"
        if self.run is not None:
            return with_ends(self.run, self.model), ""
        try:
            return load_tokenizer(self.place.path), ""
        except MinillmError as error:
            return (None, str(error)) if self.base is None else self.base._tokenizer


# Where a model is


def find(path: str | Path, function: str = "load") -> Place:
    """The place and the form of the model that `path` means; a path that exists comes before a preset of this name.

    Raises: InputError or CheckpointError that lists the forms, and says what is there instead.
    """
    name, path = str(path), Path(path)
    path = path.parent if path.name == CONFIG and path.is_file() else path
    found = _of_folder(path) if path.is_dir() else _of_file(path)
    if found is None and name in presets():
        found = Place("preset", Path(name))
    if found is None:
        raise _nothing_at(name, path, function)
    return found


def _nothing_at(name: str, path: Path, function: str) -> MinillmError:
    """The error for a path that means no model, with what is there."""
    if path.is_dir():
        files = sorted(file.name for file in path.iterdir())
        there = f"has {', '.join(files[:5])}{' and more' if len(files) > 5 else ''}" if files else "is empty"
        one = next((f"; to open that file, give {path / file}" for file in files if file.endswith(".gguf")), "")
        return CheckpointError(f"{function}: {path / CONFIG} is not there; give {KINDS}; the folder {there}{one}")
    if path.exists():
        return CheckpointError(f"{function}: {path} is a file of another kind; give {KINDS}")
    hint = "" if len(path.parts) > 1 else did_you_mean(name, presets())
    if function == "load" and "did you mean" not in hint:  # the names of all presets help those who may give one
        hint = ""
    return InputError(
        f"{function}: {name} is no preset, and no folder or file of this name is there; give {KINDS}{hint}"
    )


def _of_folder(folder: Path) -> Place | None:
    if is_run(folder):
        return Place("run", folder)
    if (folder / ADAPTER).is_file() and not (folder / WEIGHTS).exists() and not (folder / INDEX).exists():
        return Place("adapter", folder)
    return Place("folder", folder) if (folder / CONFIG).is_file() else None


def _of_file(path: Path) -> Place | None:
    """The place of a model's file by its name; if it is not there, its reader says so."""
    folder = path.parent
    if path.suffix == ".gguf":
        return Place("gguf", path)
    if path.suffix != ".safetensors":
        return None
    if folder.name == "checkpoints" and is_run(folder.parent):
        return Place("run", folder.parent, path.stem)
    is_adapter = path.name == "adapter_model.safetensors" and (folder / ADAPTER).is_file()
    return Place("adapter", folder) if is_adapter else Place("safetensors", path)


def folder_of(place: Place) -> Path:
    """The folder of a model's files."""
    return place.path.parent if place.kind in ("safetensors", "gguf") else place.path


def presets() -> dict[str, tuple[Callable[[Any], Any], Any]]:
    """The class and the configuration of every preset: those of `minillm train`, and the sizes in minillm/models."""
    from minillm.training.config import PRESETS, model_presets

    classes = {file: next(iter(names.values())) for file, names in reversed(FAMILIES.values())}
    shapes = model_presets() | {name: (config.architecture, config.model) for name, config in PRESETS.items()}
    return {
        name: (getattr(importlib.import_module(f"minillm.models.{file}"), classes[file]), shape)
        for name, (file, shape) in shapes.items()
    }


# Configurations


def described(path: str | Path, function: str = "load") -> Described:
    """The class and the configuration of the model that `path` means; no weight is read. A preset may be meant.

    Raises: as `find`; CheckpointError or InputError for a configuration that is damaged or not supported.
    """
    place = find(path, function)
    if place.kind == "preset":
        return Described(place, *presets()[str(place.path)])
    if place.kind == "run":
        return _described_run(place)
    if place.kind == "adapter":
        return described(base_folder(place.path), function)._replace(place=place)
    if place.kind == "gguf":
        from minillm.gguf import read_config
        from minillm.models.llama import Llama

        return Described(place, Llama, read_config(place.path))
    found = hub.described(place.path if place.kind == "folder" else place.path.parent)
    return Described(place, found.kind, found.config)


def _described_run(place: Place) -> Described:
    from minillm.training.run import Run
    from minillm.training.tasks import task_class

    run = Run.open(place.path)
    task = task_class(run.config.objective)
    return Described(place, task.model_class(run.config), task.shape(run.config, run.tokenizer), run)


# Models with their weights


def open_model(path: str | Path, dtype: Any = "float32", device: str = "cpu", *, random: bool = False) -> OpenedModel:
    """Open the model that `path` means, with its weights converted to `dtype`, on `device`, in evaluation mode.

    random: accept a preset, whose weights are random, as before a training.
    Memory: the weights, and a few megabytes; of a run, the weights twice.
    Raises: InputError for a name that is not there, or what is not supported here; CheckpointError for files that are
        none of the known forms, missing, cut short or do not fit.
    """
    place = find(path)
    if place.kind == "preset" and not random:
        raise InputError(
            f"load: {path} is a preset, which has a configuration and random weights; give the folder or the file of a "
            "trained model"
        )
    opened = _opened(place, dtype)
    if device != "cpu":
        opened.model.to(device)
    return opened


def load(path: str | Path, dtype: Any = "float32") -> Any:
    """Load a model, with its weights converted to `dtype`, in evaluation mode.

    path: a folder with config.json and model.safetensors (or its shards), such a file, a .gguf file, a run directory of
        `minillm train`, or a folder with a LoRA adapter.
    Raises: as `open_model`.
    """
    return open_model(path, dtype).model


def _opened(place: Place, dtype: Any) -> OpenedModel:
    if place.kind == "gguf":
        from minillm.gguf import load_gguf

        return OpenedModel(place, load_gguf(place.path, dtype))
    if place.kind in ("folder", "safetensors"):
        return OpenedModel(place, hub.load(place.path, dtype))
    if place.kind == "adapter":
        return _opened_adapter(place, dtype)
    if place.kind == "run":
        return _opened_run(place, dtype)
    _, kind, config, _ = described(place.path)
    with drawing.using(drawing.Generator(0)):  # the same weights whenever a preset is named
        model = build_model(place.path, kind, config)
    if as_dtype(dtype) != np.float32:
        model.to(dtype)
    return OpenedModel(place, model.eval())


def _opened_run(place: Place, dtype: Any) -> OpenedModel:
    _, kind, config, run = _described_run(place)
    assert run is not None
    checkpoint = _checkpoint(run, place.checkpoint)
    if run.config.lora is not None:
        model = _with_adapters(run, checkpoint, lambda: build_model(place.path, kind, config))
    else:
        with uninitialized():
            model = build_model(place.path, kind, config)
        model.load_state_dict(checkpoint.model)
    keep(model, ids_of(run))
    if as_dtype(dtype) != np.float32:
        model.to(dtype)
    return OpenedModel(place, model.eval(), run)


def open_start(path: str, folder: Path) -> OpenedModel:
    """Open the model whose weights are under the adapters of the run in `folder`.

    Raises: CheckpointError for a path that is not there, with what to do; else as `open_model`.
    """
    if not Path(path).exists():
        raise CheckpointError(
            f"load: {path}, whose weights are under the adapters of {folder}, is not there, seen from {Path.cwd()}; "
            f'put it back, or put its path in `init` of {folder / CONFIG} and take "{KEY}" out of that file'
        )
    return open_model(path)


def _checkpoint(run: Run, name: str | None) -> Checkpoint:
    """The checkpoint of this name, or the best one, or the last."""
    names = ("best", "last") if name is None else (name,)
    there = [name for name in names if run.checkpoint(name).exists()]
    return run.read_checkpoint(run.checkpoint((there or names)[0]), moments=False)


def _opened_adapter(place: Place, dtype: Any) -> OpenedModel:
    """The base model with the adapter merged into its weights, as a model of its own."""
    base = open_model(base_folder(place.path), dtype)
    model = merge(load_lora(base.model, place.path), keep=False)
    return OpenedModel(place, model.eval(), base=base)


def _with_adapters(run: Run, checkpoint: Checkpoint, build: Callable[[], Any]) -> Any:
    """The model of a run that trained adapters: that from which it started, with the adapters merged into it."""
    with drawing.using(drawing.Generator(run.config.seed)):  # as the run began
        model = build()
    if run.config.init is not None:
        start = open_start(run.config.init, run.folder).model
        if type(start) is type(model) and start.config == model.config:
            model.load_state_dict(start.state_dict())
        else:
            take_body(model, start)
    add_lora(model, run.config.lora)
    if checkpoint.state.get("base") != base_checksum(model):
        raise CheckpointError(
            f"load: the weights under the adapters of {run.folder} are not those that they were trained on; put "
            f"{run.config.init or 'the version of minillm that made them'} back as it was"
        )
    load_lora_state_dict(model, checkpoint.model)
    return merge(model, keep=False)
