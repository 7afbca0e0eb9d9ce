"""LoRA on a model: adapters are added, switched off for a while, merged into the weights, and taken out again."""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from minillm.backend import Array, as_array
from minillm.device import like, to_host
from minillm.errors import CheckpointError, InputError
from minillm.lora.config import LoraConfig
from minillm.lora.layers import Adapted, Adapter, Lora, Whole
from minillm.lora.places import Chosen, Names, choose, names_of
from minillm.nn import Linear, Module, uninitialized
from minillm.parallel.wrapper import replace


class Record:
    """The record that a model with adapters keeps of them.

    wrappers: the wrapped modules by their paths. needed: for each parameter from before, by name, whether it needed a
    gradient. merged: the adapted weights from before, by path, while adapters are merged; None while they are not.
    final: True if these were not kept.
    """

    final = False

    def __init__(self, config: LoraConfig, chosen: Chosen, wrappers: dict[str, Lora], names: Names):
        self.config, self.chosen, self.wrappers, self.names = config, chosen, wrappers, names
        self.needed: dict[str, bool] = {}
        self.merged: dict[str, Array] | None = None
        self.checksum: int | None = None  # of the frozen weights; see base_checksum

    @property
    def adapters(self) -> list[Adapter]:
        """Every adapter, in the order of the layers."""
        return [x for one in self.wrappers.values() if isinstance(one, Adapted) for x in one.lora.values()]


def add_lora(model: Module, config: LoraConfig | None = None) -> Any:
    """Put adapters on layers of a model and freeze all else; returns the model.

    At first the model computes what it did: B is 0. Only adapters, and modules that are trained whole, keep
    `requires_grad`; call this before the optimiser is built. A model whose output layer is the token table, with one of
    the two among the targets, gets an output layer of its own (`untie`).
    Memory: the adapters, r (in + out) elements each, and a copy of what is trained whole.
    Raises: InputError for targets that fit nothing, with the nearest names; for a table that is tied and cannot be
    untied; for a model that has adapters already.
    """
    config = config or LoraConfig()
    if is_lora(model):
        raise InputError("add_lora: the model has adapters already; merge them first, or load the model again")
    names = names_of(model)
    chosen = choose(config, model, names)
    if chosen.tied:
        if not names.can_untie:
            twin = next(place.twin for place in names.places.values() if place.name == chosen.tied[0])
            raise InputError(
                f"add_lora: {chosen.tied[0]} shares its weight with {twin} in every {type(model).__name__}, so a "
                "change of one alone cannot be merged; leave it out"
            )
        untie(model)
    needed = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(False)
    wrappers = _wrap(model, config, chosen)
    vars(model)["lora"] = Record(config, chosen, wrappers, names)
    vars(model)["lora"].needed = needed
    model.assign_names()
    return model


def _wrap(model: Module, config: LoraConfig, chosen: Chosen) -> dict[str, Lora]:
    layers, wrappers = dict(model.named_modules()), dict[str, Lora]()
    by_path: dict[str, dict[str, Adapter]] = {}
    for place in chosen.places:
        rank, scale = config.rank_of(place.name), config.scale_of(place.name)
        adapter = Adapter(place, layers[place.path].weight.data, rank, scale, config.dropout)
        adapter.training = layers[place.path].training  # a model in evaluation mode has no dropout
        by_path.setdefault(place.path, {})[place.name.rpartition(".")[2]] = adapter
    for path, adapters in by_path.items():
        wrappers[path] = Adapted(layers[path], adapters)
    for path in dict.fromkeys(name.rpartition(".")[0] for name in chosen.saved):
        if not path:
            raise InputError("add_lora: a parameter of the model itself cannot be saved as a module; leave it out")
        wrappers[path] = Whole(layers[path])
        layers[path].requires_grad_(True)
    for path, wrapper in wrappers.items():
        replace(model, path, wrapper)
    return wrappers


def untie(model: Any) -> None:
    """Give a model whose output layer is its token table an output layer of its own, with a copy of the table."""
    table = model.wte.weight
    with uninitialized():
        model.lm_head = Linear(table.shape[1], table.shape[0], bias=False)
    model.lm_head.weight.data = table.data.copy()
    model.config = dataclasses.replace(model.config, tied=False)
    model.assign_names()


def record_of(model: Module, function: str) -> Record:
    """The record of a model's adapters. Raises: InputError for a model without."""
    if "lora" not in vars(model):
        raise InputError(f"{function}: the model has no adapters; call add_lora or load_lora first")
    return vars(model)["lora"]


def is_lora(model: Module) -> bool:
    """True if a model has adapters that are not merged."""
    return "lora" in vars(model) and vars(model)["lora"].merged is None


def lora_state_dict(model: Module) -> dict[str, Array]:
    """The arrays of all adapters, and those that are trained whole, by their names here: references, not copies."""
    record_of(model, "lora_state_dict")
    return {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}


def load_lora_state_dict(model: Module, state: Mapping[str, Array]) -> None:
    """Copy arrays into what is trained: all of them, or none if any does not fit.

    Raises: CheckpointError that lists every missing and unexpected name and every wrong shape.
    """
    record_of(model, "load_lora_state_dict")
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    problems = [f"missing {name}" for name in own if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in own]
    problems += [
        f"{name} has shape {np.shape(state[name])}, expected {parameter.shape}"
        for name, parameter in own.items()
        if np.shape(state.get(name, parameter.data)) != parameter.shape
    ]
    if problems:
        raise CheckpointError(
            f"load_lora_state_dict: the adapters do not fit this {type(model).__name__}: {'; '.join(problems)}; give "
            "the settings that they were saved with"
        )
    for name, parameter in own.items():
        parameter.data[...] = like(as_array(state[name]), parameter.data)
        parameter.version += 1  # a backward through those before now raises


def base_checksum(model: Module) -> int:
    """A checksum of all frozen weights: adapters belong to these, and to no others. It is computed once."""
    record = record_of(model, "base_checksum")
    if record.checksum is None:
        record.checksum = 0
        for parameter in model.parameters():
            if not parameter.requires_grad:
                host = np.ascontiguousarray(to_host(parameter.data)).reshape(-1)
                host = host.astype(np.float32) if host.dtype == np.float64 else host
                record.checksum = zlib.crc32(host.view(np.uint8).data, record.checksum)
    return record.checksum


def frozen_checksum(model: Module) -> str:
    """The dtype of the frozen weights, and their checksum; an empty text for merged adapters whose weights are gone.

    Weights in float64 count in float32, so that a model has one checksum in both.
    """
    record = record_of(model, "frozen_checksum")
    if record.checksum is None and record.merged is not None:
        return ""
    dtype = str(next(iter(model.parameters())).dtype)
    return f"{'float32' if dtype == 'float64' else dtype}:{base_checksum(model):08x}"


def above_width(model: Module) -> str:
    """A sentence that names the adapters whose rank is above the width of their layer; an empty text for none."""
    record = record_of(model, "above_width")
    wide = [place for place in record.chosen.places if record.config.rank_of(place.name) > min(place.shape)]
    if not wide:
        return ""
    most, rank = min(wide[0].shape), record.config.rank_of(wide[0].name)
    return (
        f"{len(wide)} of {len(record.chosen.places)} adapters have a rank above the width of their layer, such as "
        f"{wide[0].name}: rank {most} can express every change of a layer of {wide[0].shape[0]} x {wide[0].shape[1]}, "
        f"and {rank} costs more"
    )


@contextlib.contextmanager
def adapters_off(model: Module) -> Iterator[None]:
    """Make the model compute what it did before it had adapters, until the block ends: the reference of DPO.

    Raises: InputError for a model without adapters, or with merged ones.
    """
    lora = record_of(model, "adapters_off")
    if lora.merged is not None:
        raise InputError("adapters_off: the adapters are merged into the weights; unmerge them first")
    wrappers = [wrapper for wrapper in lora.wrappers.values() if wrapper.on]  # none, within another such block
    for wrapper in wrappers:
        wrapper.switch(False)
    try:
        yield
    finally:
        for wrapper in wrappers:
            wrapper.switch(True)


def merge(model: Module, keep: bool = True) -> Any:
    """Add every adapter to its weight, W + s B A, and take the wrappers away: the model is a plain one again.

    Sums are made in float32 at least and rounded once to the dtype of the weights. What needed a gradient before
    adapters were added needs one again. Returns the model.
    keep: keep the weights from before, for `unmerge`.
    Memory: with `keep`, a copy of the adapted weights.
    Raises: InputError for a model without adapters, or with merged ones.
    """
    lora = record_of(model, "merge")
    if lora.merged is not None:
        raise InputError("merge: the adapters are merged already, and adding them twice would be wrong")
    lora.merged = {}
    for path, wrapper in lora.wrappers.items():
        layer = wrapper.module
        if isinstance(wrapper, Adapted):
            if keep:
                lora.merged[path] = layer.weight.data
            layer.weight.data = merged_weight(layer.weight.data, list(wrapper.lora.values()))
        replace(model, path, layer)
    lora.final = not keep
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(lora.needed.get(name, True))
    return model


def merged_weight(weight: Array, adapters: list[Adapter]) -> Array:
    """A new array: the weight with the changes of all adapters."""
    merged = weight.copy()
    for adapter in adapters:
        start, change = adapter.place.start, adapter.change()
        rows = slice(start, start + len(change))
        merged[rows] = (weight[rows].astype(change.dtype, copy=False) + change).astype(weight.dtype, copy=False)
    return merged


def unmerge(model: Module) -> Any:
    """Undo `merge`: the weights from before are back, bit for bit, and the adapters on top of them. Returns the model.

    Raises: InputError for a model whose adapters are not merged, or merged without keeping the weights from before.
    """
    lora = record_of(model, "unmerge")
    if lora.merged is None:
        raise InputError("unmerge: the adapters are not merged; call merge first")
    if lora.final:
        raise InputError("unmerge: the weights from before were not kept; call merge with keep=True, or load the model")
    model.requires_grad_(False)
    for path, wrapper in lora.wrappers.items():
        if isinstance(wrapper, Whole):
            wrapper.module.requires_grad_(True)
        if path in lora.merged:
            wrapper.module.weight.data = lora.merged[path]
        replace(model, path, wrapper)
    lora.merged = None
    return model
