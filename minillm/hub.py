"""Load models from Hugging Face's files: config.json and model.safetensors, in one piece or in shards.

`load(folder)` builds the model that config.json describes and fills in its weights; it needs no torch. pretrained.py
lists the architectures and writes such files, and weights.py has the names and shapes of arrays.

Other values in the files, such as the ids that begin and end a text, stay with the model as `model.saved_with`, and
are written again; `model.eos_ids` of a decoder are the ids that end a text.

Weights are read from their place in the files into the parameter's memory, a piece at a time (stored.py), so that
loading takes the memory of the weights and little more. All names and shapes are checked before the first array is
read: a model is loaded whole or not at all.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from minillm.dtypes import as_dtype
from minillm.errors import CheckpointError, InputError
from minillm.nn import uninitialized
from minillm.pretrained import (
    FAMILIES,
    GENERATION,
    REFUSED,
    SavedWith,
    joined_names,
    keep,
    pieces_in_hugging_face,
)
from minillm.stored import CONFIG, Stored, are_same, check, read, read_json, stored_arrays
from minillm.weights import build_model, check_weights


class Described(NamedTuple):
    """The model that a config.json describes."""

    module: ModuleType  # the model's file
    kind: Callable[[Any], Any]  # its class there
    config: Any
    values: dict[str, Any]


def load(path: str | Path, dtype: Any = "float32") -> Any:
    """Load a model from a folder with config.json and model.safetensors (or its shards), or such a file.

    The model is in evaluation mode. Weights are converted to `dtype`.
    Memory: the weights, and a few megabytes.
    Raises: CheckpointError for files that are missing, cut short or of another kind, and one that lists every missing,
    unexpected and misshapen weight; InputError for an unsupported architecture, with the supported ones.
    """
    path = Path(path)
    folder = path.parent if path.suffix == ".safetensors" else path
    module, kind, config, values = described(folder / CONFIG)
    generation = read_json(folder / GENERATION) if (folder / GENERATION).exists() else {}
    stored = stored_arrays(path)
    config, stored = _untied(path, module, config, stored)
    _check_layers(path, config, stored)
    with uninitialized():
        model = build_model(path, kind, config)
        if as_dtype(dtype) != np.float32:
            with np.errstate(all="ignore"):  # memory that is not yet filled may hold any values
                model.to(dtype)
    _fill(path, model, module, stored)
    keep(model, SavedWith(values, generation))
    return model.eval()


def _fill(path: Path, model: Any, module: ModuleType, stored: dict[str, Stored]) -> None:
    """Check all names and shapes, then read every parameter from its place in the files."""
    found = {name: array.shape for name, array in stored.items()}
    pieces = [piece._replace(name=_found(piece.name, module, stored)) for piece in pieces_in_hugging_face(model)]
    expected = {piece.name: piece.shape for piece in pieces}
    for whole, names in joined_names(module, model.config).items():
        shapes = [expected.pop(name) for name in names]
        expected[whole] = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        edges = itertools.pairwise(itertools.accumulate((shape[0] for shape in shapes), initial=0))
        if found.get(whole) == expected[whole]:  # otherwise check_weights raises
            check(stored[whole])  # its parts have no checksums of their own
            stored |= {name: stored[whole].rows(*edge) for name, edge in zip(names, edges, strict=True)}
    check_weights(path, CONFIG, expected, found, getattr(module, "IGNORED", ()))
    for piece in pieces:
        read(stored[piece.name], piece.rows, piece.transposed)


def described(path: str | Path) -> Described:
    """The model that the config.json in a folder, or such a file, describes; no weight is read.

    Raises: CheckpointError for a file that is missing or damaged; InputError for an unsupported architecture, and for
    invalid values, with the file's name.
    """
    values, path = read_config(path), Path(path)
    file = path / CONFIG if path.is_dir() else path
    try:
        module, name = family(values)
        if values.get("quantization_config"):
            raise InputError("load: config.json has a quantization_config; get the weights as floats")
        return Described(module, getattr(module, name), module.config_from_hugging_face(values), values)
    except InputError as error:
        raise InputError(str(error).replace("load: config.json", f"load: {file}", 1)) from None


def _check_layers(path: Path, config: Any, stored: Mapping[str, Any]) -> None:
    """Raise CheckpointError if the configuration has more layers than the file has arrays, before building them."""
    for name, number in vars(config).items():
        if name.endswith("layers") and number > len(stored):
            raise CheckpointError(
                f"load: by its {CONFIG} {path} has {name}={number}, but there are {len(stored)} arrays; get the files "
                "again, or those of one model"
            )


def read_config(path: str | Path) -> dict[str, Any]:
    """The values of the config.json in a folder, or of such a file.

    Raises: CheckpointError for a file that is missing or damaged.
    """
    path = Path(path)
    return read_json(path / CONFIG if path.is_dir() else path)


def family(values: dict[str, Any]) -> tuple[ModuleType, str]:
    """The model file for the values of a config.json, and the name of the class in it.

    Raises: InputError for an unsupported architecture, with the supported ones.
    """
    kind, architectures = values.get("model_type"), values.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise InputError(f"load: config.json has architectures={architectures!r}; give a list of names")
    if not isinstance(kind, str | None):
        raise InputError(f"load: config.json has model_type={kind!r}; give a name, such as 'llama'")
    if kind in FAMILIES:
        file, classes = FAMILIES[kind]
        for architecture in architectures or [next(iter(classes))]:
            if architecture in classes:
                return importlib.import_module(f"minillm.models.{file}"), classes[architecture]
    if reason := next((REFUSED[name] for name in architectures if name in REFUSED), ""):
        raise InputError(f"load: {architectures[0]} cannot be loaded: {reason}")
    known = ", ".join(name for _, classes in FAMILIES.values() for name in classes)
    wanted = ", ".join(architectures) or f"model_type {kind!r}"
    raise InputError(f"load: there is no {wanted} here; what can be loaded: {known}")


def _untied(path: Path, module: ModuleType, config: Any, stored: dict[str, Stored]) -> tuple[Any, dict[str, Stored]]:
    """The configuration that matches the weights, and the arrays, if the files of a tied model hold a matrix twice.

    Two matrices that differ are not tied, whatever the configuration says (as in transformers); if the files hold only
    the copy, both parameters get its values.
    Raises: CheckpointError where they differ and the model here can only be tied.
    """
    if not getattr(config, "tied", True):
        return config, stored
    for copy, original in module.TIED.items():
        copy, original = _found(copy, module, stored), _found(original, module, stored)
        if copy not in stored or original == copy:
            continue
        if original not in stored:
            stored = {original if name == copy else name: array for name, array in stored.items()}
        elif not are_same(stored[copy], stored[original]):
            if not hasattr(config, "tied"):
                raise CheckpointError(
                    f"load: {path} has different values in {copy} and {original}, which its config.json ties "
                    f"(tie_word_embeddings), and a {type(config).__name__} is always tied; get the files again"
                )
            config = dataclasses.replace(config, tied=False)
    return config, stored


def _found(theirs: str, module: ModuleType, stored: dict[str, Stored]) -> str:
    """The name, or the name without the prefix if the files have that."""
    without = theirs.removeprefix(getattr(module, "PREFIX", ""))
    return without if theirs not in stored and without in stored else theirs
