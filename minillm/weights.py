"""The mapping between the arrays of a file and the parameters of a model: names, rows and shapes.

Every format has a table from our names of parameters to its own, with {i} for the number of the block. If a format has
several arrays for one matrix here (queries, keys and values), the table has several names, whose rows are joined in
ours. `pieces` applies a table to a model: hub.py reads the pieces from Hugging Face's files, pretrained.py
writes them there, and gguf.py reads them from a .gguf file. `check_weights` compares them with what a file holds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minillm.backend import Array
from minillm.errors import CheckpointError, InputError, MinillmError

Names = Mapping[str, str | tuple[str, ...]]


class Piece(NamedTuple):
    """An array of a file, and the rows of a parameter that it fills."""

    parameter: str  # our name
    rows: Array  # a view of the parameter
    name: str  # in the file
    shape: tuple[int, ...]  # in the file
    transposed: bool  # True if the file has the matrix as (in, out)


def pieces(
    model: Any,
    names: Names,
    rows_in_file: Callable[[Any, str], Sequence[int] | None] | None = None,
    transposed: Collection[str] = (),
    shape_in_file: Callable[[Any, str, tuple[int, ...]], tuple[int, ...]] | None = None,
) -> list[Piece]:
    """The pieces of every parameter of a model, in the order of the parameters.

    rows_in_file: a function of a configuration and a parameter's name that returns the number of rows of each array;
        None if all have the same number.
    transposed: names in the table whose matrix is (in, out) in the file.
    shape_in_file: a function of a configuration, a name and our shape that returns the shape in the file.
    """
    found = []
    for name, parameter in model.named_parameters():
        start, is_transposed = 0, general_name(name) in transposed
        parts = rows_in_file(model.config, name) if rows_in_file else None
        for theirs, count in names_in_file(names, name, len(parameter.data), parts):
            rows = parameter.data[start : start + count]
            shape = rows.shape[::-1] if is_transposed else rows.shape
            shape = shape_in_file(model.config, name, shape) if shape_in_file else shape
            found.append(Piece(name, rows, theirs, shape, is_transposed))
            start += count
    return found


def names_in_file(names: Names, name: str, rows: int, parts: Sequence[int] | None = None) -> list[tuple[str, int]]:
    """The names in the file for a parameter of `rows` rows, each with its number of rows.

    parts: the number of rows of each name; None for the same number each.
    """
    theirs = names[general_name(name)]
    theirs = (theirs,) if isinstance(theirs, str) else theirs
    parts = [rows] if len(theirs) == 1 else parts or [rows // len(theirs)] * len(theirs)
    number = next((part for part in name.split(".") if part.isdigit()), "")
    return [(one.format(i=number), count) for one, count in zip(theirs, parts, strict=True)]


def general_name(name: str) -> str:
    """A parameter's name in the form of the tables, with {i} for the block's number."""
    return ".".join("{i}" if part.isdigit() else part for part in name.split("."))


def check_weights(
    path: str | Path,
    configuration: str,
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    ignored: Iterable[str] = (),
) -> None:
    """Compare the arrays of a file with those that a model needs, both as shapes by name.

    configuration: the part of the file that describes the model, for errors; ignored: endings of names to skip.
    Raises: CheckpointError that lists every array that is missing, unexpected or of another shape.
    """
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [
        f"{name} has shape {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    problems += [f"unexpected {name}" for name in found if name not in expected and not name.endswith(tuple(ignored))]
    if problems:
        raise CheckpointError(
            f"load: the weights in {path} do not fit its {configuration}: {'; '.join(problems)}; get the files again, "
            "or those of one model"
        )


def build_model(path: str | Path, kind: Callable[[Any], Any], config: Any) -> Any:
    """Build the model of a configuration that was read from a file.

    Raises: InputError for sizes that do not fit into memory.
    """
    try:
        return kind(config)
    except MinillmError:
        raise
    except (MemoryError, OverflowError, ValueError) as error:
        raise InputError(
            f"load: the model that the configuration of {path} describes does not fit into memory ({error}); "
            "check its sizes"
        ) from None
