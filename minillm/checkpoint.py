"""Checkpoints: weights, optimiser moments and everything else that a run needs to continue, in one safetensors file.

The file is written under another name and renamed in one step, so a kill at any moment leaves the old file or the new
one, never half of either. Arrays are named `model.<parameter>` and `optimizer.<moment>.<parameter>`; the rest of
the state (step, random stream, best loss) is JSON in the file's header. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from minillm.backend import Array
from minillm.device import to_host
from minillm.dtypes import as_dtype
from minillm.errors import CheckpointError


class Checkpoint(NamedTuple):
    """The content of a file: arrays for `load_state_dict` of a model and an optimiser, and the state of the run."""

    model: dict[str, Array]
    optimizer: dict[str, Array]
    state: dict[str, Any]


def save_checkpoint(path: Path, model: Any, optimizer: Any, state: dict[str, Any]) -> None:
    """Write a checkpoint to `path`, replacing an existing one completely or not at all.

    model, optimizer: objects with a `state_dict` method, or such dicts.
    Raises: CheckpointError or OSError if it cannot be written, as on a full disk; the old one is then untouched.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    arrays = {
        f"{part}.{name}": to_host(array)
        for part, source in (("model", model), ("optimizer", optimizer))
        for name, array in (source if isinstance(source, Mapping) else source.state_dict()).items()
    }
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        save_file(arrays, unfinished, metadata={"minillm": json.dumps(state)})
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())  # the name must not reach the disk before the bytes do
        os.replace(unfinished, path)
    except SafetensorError as error:  # save_file wraps errors of the system in it
        raise CheckpointError(f"save_checkpoint: cannot write {path} ({error}); make room") from None
    finally:
        unfinished.unlink(missing_ok=True)


def load_checkpoint(path: Path, moments: bool = True) -> Checkpoint:
    """Read a checkpoint.

    moments: read the optimiser's arrays too.
    Raises: CheckpointError for a file that is missing, damaged, or not a checkpoint.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            names = [name for name in file.keys() if moments or name.startswith("model.")]  # noqa: SIM118
            if any(file.get_slice(name).get_dtype() == "BF16" for name in names):
                as_dtype("bfloat16")  # registers the name with NumPy
            arrays = {name: file.get_tensor(name) for name in names}
        state = json.loads(metadata["minillm"])
    except FileNotFoundError:
        raise CheckpointError(
            f"load_checkpoint: {path} is not there; give a run directory that has saved once"
        ) from None
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"load_checkpoint: {path} is damaged or not a minillm checkpoint ({error}); "
            "use another checkpoint of the run"
        ) from None
    parts: dict[str, dict[str, Array]] = {"model": {}, "optimizer": {}}
    for name, array in arrays.items():
        part, _, key = name.partition(".")
        parts.setdefault(part, {})[key] = array
    return Checkpoint(parts["model"], parts["optimizer"], state)
