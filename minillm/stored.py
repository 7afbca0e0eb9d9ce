"""Find arrays in safetensors files, and read each from its place, a piece at a time.

A safetensors file is eight bytes with the length of a JSON header, the header (dtype, shape and place of each array),
and the arrays one after the other. Weights are read from their place into the parameter's memory, so that
loading takes the memory of the weights and little more.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minillm.backend import Array
from minillm.dtypes import as_dtype
from minillm.errors import CheckpointError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # in BERT's first files
PIECE = 1 << 22  # bytes that are read and converted at a time


class Stored(NamedTuple):
    """The place of an array in a file."""

    path: Path
    offset: int  # in bytes, from the file's start
    dtype: np.dtype
    shape: tuple[int, ...]

    def rows(self, start: int, stop: int) -> Stored:
        """The place of some of its rows."""
        offset = self.offset + start * math.prod(self.shape[1:]) * self.dtype.itemsize
        return self._replace(offset=offset, shape=(stop - start, *self.shape[1:]))


def are_same(a: Stored, b: Stored) -> bool:
    """True if two arrays in files are equal; a few rows are compared at a time."""
    if a.shape != b.shape:
        return False
    rows = a.shape[0] if a.shape else 1
    step = max(1, PIECE // max(1, math.prod(a.shape[1:]) * 4))
    for start in range(0, rows, step):
        first, second = (_rows(one, start, min(start + step, rows)) for one in (a, b))
        if not np.array_equal(first, second, equal_nan=True):
            return False
    return True


def _rows(source: Stored, start: int, stop: int) -> Array:
    """Read some rows of an array in a file, as float64 if it has that dtype, else as float32."""
    piece = source.rows(start, stop)
    array = np.empty(piece.shape, np.float64 if source.dtype == np.float64 else np.float32)
    read(piece, array, False)
    return array


def read_json(path: Path) -> dict[str, Any]:
    """The values in a JSON file. Raises: CheckpointError if it is missing or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))  # some editors put a byte order mark in front
    except FileNotFoundError:
        raise CheckpointError(f"load: {path} is not there; give a folder with {CONFIG} and {WEIGHTS}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"load: {path} is damaged ({error}); get it again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"load: {path} holds a {type(values).__name__}, expected an object; get it again")
    return values


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    unfinished.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def stored_arrays(path: Path) -> dict[str, Stored]:
    """Find every array of a file, or of a folder's single file or shards."""
    if path.suffix == ".safetensors":
        return _header(path)
    if (path / INDEX).exists() and not (path / WEIGHTS).exists():
        weight_map = read_json(path / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise CheckpointError(f"load: {path / INDEX} has no weight_map; get it again")
        stored: dict[str, Stored] = {}
        for file in sorted(set(weight_map.values())):
            if Path(file).name != file:
                raise CheckpointError(f"load: {path / INDEX} names {file!r}, which is not in its folder")
            stored |= _header(path / file)
        return stored
    return _header(path / WEIGHTS)


def metadata_of(path: Path) -> dict[str, str]:
    """The texts that a safetensors file carries beside its arrays."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header.get("__metadata__") or {}


def _header(path: Path) -> dict[str, Stored]:
    """Find the arrays in a safetensors file, after the library has checked places, shapes and the file's length."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"), open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise CheckpointError(f"load: {path} is not there; give a folder with {CONFIG} and {WEIGHTS}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"load: {path} is cut short or not a safetensors file ({error}); get it again") from None
    stored = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        for old, new in OLD_NAMES.items():
            name = name.replace(old, new)
        dtype = (
            as_dtype(DTYPES[entry["dtype"]]) if entry["dtype"] in DTYPES else np.dtype(np.void)
        )  # an unsupported dtype
        stored[name] = Stored(path, 8 + length + entry["data_offsets"][0], dtype, tuple(entry["shape"]))
    return stored


def read(source: Stored, target: Array, transposed: bool) -> None:
    """Fill an array from its place in a file."""
    if source.dtype.kind == "V" and source.dtype.name != "bfloat16":
        raise CheckpointError(f"load: {source.path} has weights of a dtype other than {', '.join(DTYPES)}")
    view = target.T if transposed else target
    rows = view.reshape(1) if view.ndim == 0 else view
    row_bytes = source.dtype.itemsize * math.prod(rows.shape[1:])
    step = max(1, PIECE // max(1, row_bytes))
    with open(source.path, "rb") as file:
        file.seek(source.offset)
        for start in range(0, len(rows), step):
            piece = rows[start : start + step]
            if piece.dtype == source.dtype and piece.flags.c_contiguous:
                if file.readinto(piece.reshape(-1).view(np.uint8)) != piece.nbytes:  # type: ignore[arg-type]
                    raise CheckpointError(f"load: {source.path} is cut short; get it again")
                continue
            count = piece.size
            raw = np.fromfile(file, source.dtype, count)
            if raw.size != count:
                raise CheckpointError(f"load: {source.path} is cut short; get it again")
            piece[...] = raw.reshape(piece.shape)
