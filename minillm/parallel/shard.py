"""Which part of a parameter a rank has: `shard` takes it from the whole, `unshard` puts it back."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from minillm.backend import Array
from minillm.errors import ShapeError
from minillm.nn import Module


class Shard(NamedTuple):
    """The rows (axis 0) or columns (axis 1) of a whole parameter that a rank has: runs of them, joined in this order.

    A weight that holds queries, keys and values, one below the other, is divided in three runs, one of each.
    """

    axis: int
    runs: tuple[tuple[int, int], ...]  # each from its first index up to, but without, its second
    size: int  # of the axis in the whole parameter


def shard_specs(model: Module) -> dict[str, Shard | None]:
    """The shard of each parameter by name, or None for a parameter that every rank has whole."""
    specs: dict[str, Shard] = {}
    for path, module in model.named_modules():
        for name, spec in vars(module).get("shards", {}).items():
            specs[f"{path}.{name}" if path else name] = spec
    return {name: specs.get(name) for name, _ in model.named_parameters()}


def shard(spec: Shard | None, whole: Array) -> Array:
    """This rank's part of a whole parameter, gradient or moment: a copy, or `whole` itself where spec is None.

    Raises: ShapeError if the whole has another size.
    """
    if spec is None:
        return whole
    _check_whole("shard", spec, whole)
    runs = [whole[(slice(None),) * spec.axis + (slice(*run),)] for run in spec.runs]
    return np.concatenate(runs, axis=spec.axis)


def unshard(spec: Shard | None, whole: Array, part: Array) -> None:
    """Write a rank's part to its places in the whole; the parts of all ranks fill it.

    Raises: ShapeError if the whole or the part has another size.
    """
    if spec is None:
        whole[...] = part
        return
    _check_whole("unshard", spec, whole)
    edges = list(itertools.accumulate((stop - first for first, stop in spec.runs), initial=0))
    if part.shape[spec.axis] != edges[-1]:
        raise ShapeError(
            f"unshard: axis {spec.axis} of the part has size {part.shape[spec.axis]}, but the shard's runs have "
            f"{edges[-1]} in all; give the part that `shard` returned for this spec"
        )
    before = (slice(None),) * spec.axis
    for run, place in zip(spec.runs, itertools.pairwise(edges), strict=True):
        whole[(*before, slice(*run))] = part[(*before, slice(*place))]


def _check_whole(function: str, spec: Shard, whole: Array) -> None:
    if whole.shape[spec.axis] != spec.size:
        raise ShapeError(
            f"{function}: axis {spec.axis} has size {whole.shape[spec.axis]}, but the whole parameter has {spec.size}; "
            "give the whole parameter"
        )


def add_part(wholes: dict[str, Array], name: str, part: Array, spec: Shard | None) -> None:
    """Put a rank's part of an array into the whole one, which is made when its first part comes."""
    if name not in wholes:
        shape = list(part.shape)
        if spec is not None:
            shape[spec.axis] = spec.size
        wholes[name] = np.zeros(shape, part.dtype)
    unshard(spec, wholes[name], part)
