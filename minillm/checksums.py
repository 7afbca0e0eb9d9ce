"""Checksums of what minillm writes, so that damage is seen when it is read.

All are CRC-32, as in zlib and PNG: it misses no single flipped bit, no run of up to 32 damaged bits, and one in 2^32 of
other damages.

A .safetensors file has in its metadata, under `minillm.crc32`, the checksum of each array's bytes, and one of the
header: the names, types and shapes of the arrays, and the other metadata. A JSON file has its checksum under the key
`crc32`, and a line of metrics.jsonl too. Files that have a form of another program's, such as the config.json of an
exported model, are listed in a file beside them, checksums.json. Other programs ignore all of these. Files without
them are read as they are.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

KEY = "crc32"
METADATA_KEY = "minillm.crc32"
CHECKSUMS = "checksums.json"  # the CRC-32 of each file beside weights, which have theirs in them
Kinds = Mapping[str, tuple[str, list[int]]]  # the type and the shape of each array, as in the header


def crc32(data: Any, start: int = 0) -> int:
    """The CRC-32 of bytes or of an array's bytes, which goes on from that of the bytes before."""
    if isinstance(data, np.ndarray):
        data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    return zlib.crc32(data, start)


# --- .safetensors --------------------------------------------------------------------------------------------------


def sealed_metadata(arrays: Mapping[str, Any], kinds: Kinds, metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a file with these arrays, and their checksums."""
    sums = {"arrays": {name: crc32(array) for name, array in arrays.items()}, "header": _of_header(kinds, metadata)}
    return {**metadata, METADATA_KEY: json.dumps(sums)}


def checksums_in(kinds: Kinds, metadata: Mapping[str, str]) -> dict[str, int] | None:
    """The checksum of each array by a file's header; None if it has none.

    Raises: ValueError if the header is not as it was written.
    """
    if METADATA_KEY not in metadata:
        return None
    sums = json.loads(metadata[METADATA_KEY])
    if not isinstance(sums, dict) or sums.get("header") != _of_header(kinds, metadata):
        raise ValueError("the header does not have its checksum")
    if not isinstance(sums.get("arrays"), dict) or sums["arrays"].keys() != kinds.keys():
        raise ValueError("the header has no checksum for some array")
    return sums["arrays"]


def _of_header(kinds: Kinds, metadata: Mapping[str, str]) -> int:
    others = {key: value for key, value in metadata.items() if key != METADATA_KEY}
    content = [sorted((name, kind, list(shape)) for name, (kind, shape) in kinds.items()), others]
    return crc32(json.dumps(content, sort_keys=True).encode())


# --- JSON ----------------------------------------------------------------------------------------------------------


def sealed(values: Mapping[str, Any], owner: str = "") -> dict[str, Any]:
    """A JSON object with its checksum at its end; owner: a text that the reader has to know too."""
    return {**values, KEY: _of_json(values, owner)}


def unsealed(values: Mapping[str, Any], owner: str = "") -> dict[str, Any] | None:
    """The object without its checksum; None if this is wrong. An object without a checksum is taken as it is."""
    rest = {key: value for key, value in values.items() if key != KEY}
    return rest if KEY not in values or values[KEY] == _of_json(rest, owner) else None


def _of_json(values: Mapping[str, Any], owner: str) -> int:
    return crc32((json.dumps(values, sort_keys=True) + owner).encode())


# --- files that are listed beside them ------------------------------------------------------------------------------


def listing(paths: Iterable[Path]) -> dict[str, int]:
    """The content of the list for those of these files that are there."""
    return {path.name: crc32(path.read_bytes()) for path in paths if path.is_file()}


def check_listed(path: Path, content: bytes) -> None:
    """Raise ValueError if the list beside a file has another checksum than this content of the file."""
    try:
        listed = json.loads(path.with_name(CHECKSUMS).read_bytes())
    except (OSError, ValueError, RecursionError):  # there is none; `minillm verify` tells of one that is damaged
        return
    expected = listed.get(path.name) if isinstance(listed, dict) else None
    if isinstance(expected, int) and expected != crc32(content):  # lists of other programs have texts
        raise ValueError(
            f"it does not have its checksum by {CHECKSUMS}, which you remove if you changed the file yourself"
        )


def forget_list(path: Path) -> None:
    """Take away the list beside a file that is about to be written anew, for it would call the new content damaged."""
    if path.name != CHECKSUMS:
        path.with_name(CHECKSUMS).unlink(missing_ok=True)
