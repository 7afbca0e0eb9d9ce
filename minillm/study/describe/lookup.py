"""The model that a name means: a preset, a folder with config.json, a .gguf or a run directory."""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minillm import gguf, hub, models, pretrained
from minillm.errors import InputError, did_you_mean
from minillm.models.llama import Llama
from minillm.nn import Module, uninitialized
from minillm.training.run import Run


def presets() -> dict[str, tuple[type[Module], Any]]:
    """The class and the configuration of every preset in minillm/models.

    A name that several files have is told apart by the file's: `gpt2-nano`, `bert-nano`.
    """
    classes = {file: next(iter(names.values())) for file, names in reversed(pretrained.FAMILIES.values())}
    files = sorted(module.name for module in pkgutil.iter_modules(models.__path__))
    modules = {file: importlib.import_module(f"minillm.models.{file}") for file in files if file in classes}
    times = Counter(name for module in modules.values() for name in module.PRESETS)
    return {
        name if times[name] == 1 else f"{file}-{name}": (getattr(module, classes[file]), config)
        for file, module in modules.items()
        for name, config in module.PRESETS.items()
    }


def look_up(name: str | Path) -> tuple[Callable[[Any], Any], Any, dict[str, Any]]:
    """The class and the configuration of a model; of a run also its batch size and dtype."""
    known, path = presets(), Path(name)
    if str(name) in known:
        return *known[str(name)], {}
    if not path.exists():
        raise InputError(
            f"describe: {name} is no preset, and no folder or file with a configuration{did_you_mean(str(name), known)}"
        )
    if path.suffix == ".gguf":
        return Llama, gguf.read_config(path), {}
    values = hub.read_config(path)
    if "model_type" in values or "architectures" in values:
        found = hub.described(path)
        return found.kind, found.config, {}
    run = Run.open(path if path.is_dir() else path.parent)
    config = replace(run.config.model, vocab_size=run.tokenizer.vocab_size)
    part_of_batch = -(-run.config.batch_size // run.config.micro_batches)
    return known["gpt2"][0], config, {"batch_size": part_of_batch, "dtype": run.config.dtype}


def empty_model(kind: Callable[[Any], Module], config: Any, dtype: Any) -> Module:
    """A model without numbers; its gradients, which have memory of their own, are one number for each parameter."""
    with uninitialized():
        model = kind(config)
    for parameter in model.parameters():
        if parameter.dtype != dtype:
            parameter.data = np.empty(parameter.shape, dtype)
        strides = (0,) * parameter.ndim
        parameter.grad_buffer = np.lib.stride_tricks.as_strided(np.zeros(1, dtype), parameter.shape, strides)
    return model
