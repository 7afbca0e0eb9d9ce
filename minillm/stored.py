"""Write arrays to safetensors files, find them there, and read each from its place, a piece at a time.

A safetensors file is eight bytes with the length of a JSON header, the header (dtype, shape and place of each array),
and the arrays one after the other. Weights are read from their place into the parameter's memory, so that
loading takes the memory of the weights and little more. Each piece is checked on its way: the checksum of a file that
minillm wrote (checksums.py), and in any file that the weights are numbers of a size that weights can have.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minillm.backend import Array
from minillm.checksums import Kinds, check_listed, checksums_in, crc32, forget_list, sealed_metadata
from minillm.dtypes import as_dtype
from minillm.errors import CheckpointError
from minillm.files import check_is_file, writing

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# numpy's name of each type, as the header of a safetensors file calls it
KINDS = {theirs: ours for ours, theirs in DTYPES.items()} | {
    f"{sign}int{bits}": f"{'U' if sign else 'I'}{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
KINDS["bool"] = "BOOL"
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # in BERT's first files
PIECE = 1 << 22  # bytes that are read and converted at a time
LARGEST_WEIGHT = 65504  # the largest number in float16; no trained weight comes near it


class Stored(NamedTuple):
    """The place of an array in a file."""

    path: Path
    offset: int  # in bytes, from the file's start
    dtype: np.dtype
    shape: tuple[int, ...]
    name: str = ""
    checksum: int | None = None  # the CRC-32 of its bytes, if the file says it

    def rows(self, start: int, stop: int) -> Stored:
        """The place of some of its rows."""
        offset = self.offset + start * math.prod(self.shape[1:]) * self.dtype.itemsize
        return self._replace(offset=offset, shape=(stop - start, *self.shape[1:]), checksum=None)


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
    check_is_file("load", path, CheckpointError)
    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"load: {path} is damaged ({error}); get it again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"load: {path} holds a {type(values).__name__}, expected an object; get it again")
    return values


def read_text(path: Path) -> str:
    """The text of a file. Raises: CheckpointError if it is missing, damaged, or not as the list beside it says."""
    try:
        content = path.read_bytes()
        check_listed(path, content)
        return content.decode("utf-8-sig")  # some editors put a byte order mark in front
    except FileNotFoundError:
        raise CheckpointError(f"load: {path} is not there; give a folder with {CONFIG} and {WEIGHTS}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"load: {path} is damaged ({error}); get it again") from None


def write_json(function: str, path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all. Raises: CheckpointError in the name of `function` if it cannot be."""
    with writing(function, path, CheckpointError) as unfinished:
        forget_list(path)
        unfinished.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def write_arrays(function: str, path: Path, arrays: Mapping[str, Array], said: Mapping[str, str]) -> None:
    """Write a .safetensors file with its checksums, whole or not at all. said: texts that it carries beside its arrays.

    The arrays go to the file one after the other, so that no second copy of all of them is made. Those with the widest
    numbers come first, which keeps each at a multiple of its numbers' size.
    Raises: CheckpointError in the name of `function` if it cannot be written.
    """
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    kinds = {name: (KINDS[arrays[name].dtype.name], list(arrays[name].shape)) for name in names}
    header: dict[str, Any] = {"__metadata__": sealed_metadata(arrays, kinds, said)}
    end = 0
    for name, (kind, shape) in kinds.items():
        begin, end = end, end + arrays[name].nbytes
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with writing(function, path, CheckpointError) as unfinished, open(unfinished, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8))  # type: ignore[arg-type]


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


def kinds_of(header: Mapping[str, Any]) -> Kinds:
    """The type and the shape of each array in the header of a safetensors file."""
    return {name: (entry["dtype"], entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def _header(path: Path) -> dict[str, Stored]:
    """Find the arrays in a safetensors file, after the library has checked places, shapes and the file's length."""
    from safetensors import SafetensorError, safe_open

    check_is_file("load", path, CheckpointError)
    try:
        with safe_open(path, framework="np"), open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        sums = checksums_in(kinds_of(header), header.get("__metadata__") or {}) or {}
    except FileNotFoundError:
        raise CheckpointError(f"load: {path} is not there; give a folder with {CONFIG} and {WEIGHTS}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"load: {path} is damaged, cut short or not a safetensors file ({error}); get it again"
        ) from None
    stored = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        checksum = sums.get(name)
        for old, new in OLD_NAMES.items():
            name = name.replace(old, new)
        begin, end = entry["data_offsets"]
        size = (end - begin) // max(1, math.prod(entry["shape"]))
        # an unsupported dtype is bytes
        dtype = as_dtype(DTYPES[entry["dtype"]]) if entry["dtype"] in DTYPES else np.dtype(f"V{size}")
        stored[name] = Stored(path, 8 + length + begin, dtype, tuple(entry["shape"]), name, checksum)
    return stored


def check(source: Stored) -> None:
    """Read an array through, a piece at a time, and raise CheckpointError as `read` does; nothing is kept."""
    size, found = math.prod(source.shape), 0
    step = PIECE // max(1, source.dtype.itemsize)
    with open(source.path, "rb") as file:
        file.seek(source.offset)
        for start in range(0, size, step):
            piece = np.fromfile(file, source.dtype, min(step, size - start))
            if source.dtype.kind == "f" or source.dtype.name == "bfloat16":
                check_weights_are_numbers(f"load: {source.path}", source.name, piece)
            found = crc32(piece, found)
    check_sum(source, found)


def check_sum(source: Stored, found: int) -> None:
    """Raise CheckpointError if the bytes of an array do not have the checksum that the file says."""
    if source.checksum is not None and found != source.checksum:
        raise CheckpointError(
            f"load: {source.path} is damaged: the array {source.name} does not have its checksum; get it again"
        )


def read(source: Stored, target: Array, transposed: bool) -> None:
    """Fill an array from its place in a file, and check what is read.

    Raises: CheckpointError for an array that is cut short, does not have its checksum, or holds NaN or infinity; all
    name the file, and the last two the array.
    """
    if source.dtype.kind == "V" and source.dtype.name != "bfloat16":
        raise CheckpointError(f"load: {source.path} has weights of a dtype other than {', '.join(DTYPES)}")
    view = target.T if transposed else target
    rows = view.reshape(1) if view.ndim == 0 else view
    row_bytes = source.dtype.itemsize * math.prod(rows.shape[1:])
    step = max(1, PIECE // max(1, row_bytes))
    found = 0
    with open(source.path, "rb") as file:
        file.seek(source.offset)
        for start in range(0, len(rows), step):
            piece = rows[start : start + step]
            if piece.dtype == source.dtype and piece.flags.c_contiguous:
                if file.readinto(piece.reshape(-1).view(np.uint8)) != piece.nbytes:  # type: ignore[arg-type]
                    raise CheckpointError(f"load: {source.path} is cut short; get it again")
                raw = piece
            else:
                raw = np.fromfile(file, source.dtype, piece.size)
                if raw.size != piece.size:
                    raise CheckpointError(f"load: {source.path} is cut short; get it again")
                piece[...] = raw.reshape(piece.shape)
            check_weights_are_numbers(f"load: {source.path}", source.name, raw)
            found = crc32(raw, found) if source.checksum is not None else found
    check_sum(source, found)


def check_weights_are_numbers(where: str, name: str, weights: Array) -> None:
    """Look for weights that no training leaves in a good model. A warning tells of sizes beyond LARGEST_WEIGHT.

    Raises: CheckpointError for NaN or infinity.
    """
    row = weights.reshape(-1)
    with np.errstate(all="ignore"):
        row = row if row.dtype.kind == "f" and row.dtype.itemsize > 2 else row.astype(np.float32)
        if np.dot(row, row) < LARGEST_WEIGHT**2:  # one pass, which no larger number and no NaN gets through
            return
        size = np.abs(row)
    if not np.isfinite(size).all():
        bad = int((~np.isfinite(size)).sum())
        raise CheckpointError(
            f"{where} holds {bad} weights that are NaN or infinite in the array {name}; it is damaged, or its training "
            "diverged: get it again, or use an earlier one"
        )
    if size.max() > LARGEST_WEIGHT:
        warnings.warn(
            f"{where} has a weight of {size.max():.3g} in the array {name}, which is more than a trained weight can "
            "be; it may be damaged",
            stacklevel=2,
        )
