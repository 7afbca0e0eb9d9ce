"""Checkpoints: weights, optimiser moments and everything else that a run needs to continue, in one safetensors file.

The file is written under another name and renamed in one step, so a kill at any moment leaves the old file or the new
one, never half of either. Arrays are named `model.<parameter>` and `optimizer.<moment>.<parameter>`; the rest of the
state (step, random stream, best loss) is JSON in the file's header. Nothing is pickled. Each array and the header have
a checksum (checksums.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from minillm.backend import Array
from minillm.checksums import checksums_in, crc32
from minillm.device import to_host
from minillm.dtypes import as_dtype
from minillm.errors import CheckpointError
from minillm.files import check_is_file
from minillm.stored import check_weights_are_numbers, write_arrays


class Checkpoint(NamedTuple):
    """The content of a file: arrays for `load_state_dict` of a model and an optimiser, and the state of the run."""

    model: dict[str, Array]
    optimizer: dict[str, Array]
    state: dict[str, Any]


def save_checkpoint(path: Path, model: Any, optimizer: Any, state: dict[str, Any]) -> None:
    """Write a checkpoint to `path`, replacing an existing one completely or not at all.

    model, optimizer: objects with a `state_dict` method, or such dicts.
    Raises: CheckpointError if it cannot be written, as on a full disk; the old one is then untouched.
    """
    arrays = {
        f"{part}.{name}": to_host(array)
        for part, source in (("model", model), ("optimizer", optimizer))
        for name, array in (source if isinstance(source, Mapping) else source.state_dict()).items()
    }
    write_arrays("save_checkpoint", path, arrays, {"minillm": json.dumps(state)})


def load_checkpoint(path: Path, moments: bool = True) -> Checkpoint:
    """Read a checkpoint.

    moments: read the optimiser's arrays too.
    Raises: CheckpointError for a file that is missing, damaged, or not a checkpoint, and for weights that are NaN or
        infinite; it names the file, and the array if one is at fault.
    """
    from safetensors import SafetensorError, safe_open

    check_is_file("load_checkpoint", path, CheckpointError)
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            kinds = {name: (one.get_dtype(), one.get_shape()) for name, one in slices.items()}
            sums = checksums_in(kinds, metadata) or {}
            if any(kind == "BF16" for kind, _ in kinds.values()):
                as_dtype("bfloat16")  # registers the name with NumPy
            arrays = {name: file.get_tensor(name) for name in kinds if moments or name.startswith("model.")}
        state = json.loads(metadata["minillm"])
        if not isinstance(state, dict):
            raise ValueError("the state of the run is no JSON object")
    except FileNotFoundError:
        raise CheckpointError(
            f"load_checkpoint: {path} is not there; give a run directory that has saved once"
        ) from None
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"load_checkpoint: {path} is damaged or not a minillm checkpoint ({error}); "
            "use another checkpoint of the run"
        ) from None
    parts: dict[str, dict[str, Array]] = {"model": {}, "optimizer": {}}
    for name, array in arrays.items():
        if name in sums and crc32(array) != sums[name]:
            raise CheckpointError(
                f"load_checkpoint: {path} is damaged: the array {name} does not have its checksum; "
                "use another checkpoint of the run"
            )
        part, _, key = name.partition(".")
        parts.setdefault(part, {})[key] = array
        if part == "model" and array.dtype.name in ("float64", "float32", "float16", "bfloat16"):
            check_weights_are_numbers(f"load_checkpoint: {path}", key, array)
    return Checkpoint(parts["model"], parts["optimizer"], state)
