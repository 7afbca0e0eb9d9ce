"""The model that a name means, without its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minillm.lora import LoraConfig, add_lora
from minillm.nn import Module, uninitialized
from minillm.resolver import described


def look_up(name: str | Path) -> tuple[Callable[[Any], Any], Any, dict[str, Any]]:
    """The class and the configuration of a model; of a run also its batch size, dtype and adapters."""
    _, kind, config, run = described(name, "describe")
    if run is None:
        return kind, config, {}
    part_of_batch = -(-run.config.batch_size // run.config.micro_batches)
    return kind, config, {"batch_size": part_of_batch, "dtype": run.config.dtype, "lora": run.config.lora}


def empty_model(kind: Callable[[Any], Module], config: Any, dtype: Any, lora: LoraConfig | None = None) -> Module:
    """A model without numbers."""
    with uninitialized():
        model = kind(config)
        if lora is not None:
            add_lora(model, lora)
    for parameter in model.parameters():
        if parameter.dtype != dtype:
            parameter.data = np.empty(parameter.shape, dtype)
    return model
