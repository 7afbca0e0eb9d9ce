"""`minillm diff`: the first layer in which two models differ."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minillm.errors import InputError
from minillm.options import Positional, read
from minillm.resolver import open_model


@dataclass(frozen=True)
class Diff:
    """Name the first layer in which two models differ, on the same input, and by how much."""

    a: Positional[Path]
    """A run directory, a folder with config.json, a .safetensors, a .gguf, a LoRA adapter or a preset."""
    b: Positional[Path]
    """The other model."""
    tolerance: float = 1e-5
    """Largest difference that passes, relative to the largest element of a layer's output."""
    tokens: int = 16
    """Length of the input, which is drawn at random."""


def diff(arguments: list[str]) -> None:
    """Print the layers of two models up to the first that differs; exit status 1 if one does."""
    from minillm.study.diff import differences

    given = read(Diff, "diff", arguments)
    for name, fits in (("tolerance", given.tolerance >= 0), ("tokens", given.tokens >= 1)):  # NaN fits nothing
        if not fits:
            raise InputError(f"diff: {name} is {getattr(given, name)}; give {int(name == 'tokens')} or more")
    a, b = (open_model(path, random=True).model for path in (given.a, given.b))
    tokens = min(given.tokens, *(getattr(model.config, "context", given.tokens) for model in (a, b)))
    size = min(a.config.vocab_size, b.config.vocab_size), (1, max(1, tokens))
    draw = np.random.default_rng(0)
    given_first = inspect.signature(a.forward).parameters.values()  # one array of ids, or a source and a target
    needed = [one for one in given_first if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    found = differences(a, b, *(draw.integers(0, *size) for _ in needed))
    for one in found:
        layer = one.layer or type(a).__name__
        if one.error > given.tolerance:
            shapes = "" if one.shapes[0] == one.shapes[1] else f", shapes {one.shapes[0]} and {one.shapes[1]}"
            print(f"{layer}: differs by {one.error:.1e} of its largest number{shapes}; all before it agree")
            raise SystemExit(1)
    print(f"all {len(found)} layers agree; the largest difference is {max(one.error for one in found):.1e}")
