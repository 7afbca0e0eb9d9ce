"""Check every file of a run, a model or a corpus: `verify(path)` says of each what it is and whether it is whole.

What minillm wrote has checksums (checksums.py, data/shard_file.py), so any changed bit is found, and the file and the
array, the block of ids or the line that it is in are named. Files of other programs have none: of these, sizes, names
and types are checked, and that every weight is a number of a size that a weight can have.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from minillm.beside import is_run, load_tokenizer
from minillm.checksums import CHECKSUMS, crc32
from minillm.counted import counted
from minillm.data.shard_file import open_shard
from minillm.errors import InputError, MinillmError
from minillm.resolver import open_model
from minillm.stored import CONFIG, INDEX, check, read_json, stored_arrays

if TYPE_CHECKING:
    from minillm.training.run import Run

Verdict = Literal["whole", "no checksums", "damaged"]


class Verified(NamedTuple):
    """A file, the verdict on it, and what was checked, or what is wrong with it."""

    path: Path
    verdict: Verdict
    told: str


def verify(path: str | Path) -> list[Verified]:
    """Check a file, or all files of a folder that minillm knows: a run, a model, shards, outputs of `minillm data`.

    Raises: InputError for a path that is not there, or with nothing to check.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"verify: {path} is not there; give a run, a model, a shard, or a folder with such files")
    found = list(_folder(path) if path.is_dir() else _file(path))
    if not found:
        raise InputError(f"verify: {path} has no file that can be checked; give a run, a model, or a shard")
    return found


def _folder(folder: Path) -> Iterator[Verified]:
    if is_run(folder):
        yield from _run(folder)
    elif (folder / INDEX).is_file():
        yield _told(folder / INDEX, lambda: _index(folder))
    if (folder / CHECKSUMS).is_file():
        yield from _listed(folder)
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            yield from () if path.name == "tokenizer" and is_run(folder) else _folder(path)
        elif path.is_file() and not path.name.startswith("."):
            yield from _file(path)


def _file(path: Path) -> Iterator[Verified]:
    if path.suffix == ".safetensors":
        yield _told(path, lambda: _arrays(path))
    elif path.suffix == ".bin" and path.stat().st_size:
        yield _told(path, lambda: _shard(path))
    elif path.suffix == ".gguf":
        yield _told(path, lambda: _gguf(path))
    elif path.name.endswith((".jsonl.zst", ".jsonl.gz")):
        yield _told(path, lambda: _documents(path))
    elif path.name == "tokenizer.json":
        yield _told(path, lambda: _tokenizer(path))


def _told(path: Path, checked: Callable[[], tuple[Verdict, str]]) -> Verified:
    """The verdict of a check on a file; an error that it raises means damage."""
    with warnings.catch_warnings(record=True) as noticed:
        warnings.simplefilter("always")
        try:
            verdict, told = checked()
        except (MinillmError, OSError) as error:
            return Verified(path, "damaged", str(error))
    return Verified(path, verdict, "; ".join([told, *(str(one.message) for one in noticed)]))


def _run(folder: Path) -> Iterator[Verified]:
    """The settings, the tokenizer and the lines of a run; its arrays follow as those of any folder."""
    from minillm.training.run import Run

    try:
        run = Run.open(folder)
    except MinillmError as error:
        yield Verified(folder / CONFIG, "damaged", str(error))
        return
    sealed: Verdict = "whole" if run.id else "no checksums"
    yield Verified(folder / CONFIG, sealed, "the settings, and the tokenizer that belongs to them")
    damaged = run.damaged_lines()
    for name, records in (("metrics.jsonl", run.metrics()), ("watch.jsonl", run.watched())):
        lines = [number for file, number in damaged if file == name]
        if lines:
            shown = ", ".join(map(str, lines[:10])) + (", ..." if len(lines) > 10 else "")
            yield Verified(
                folder / name, "damaged", f"{counted(len(lines), 'line')} not as written, or of another run: {shown}"
            )
        elif records:
            yield Verified(folder / name, sealed, f"{counted(len(records), 'line')}")
    for path in (run.checkpoint("last"), run.checkpoint("best"), run.kept):
        if path.is_file():
            yield _told(path, lambda path=path: _state(run, path))  # type: ignore[misc]


def _state(run: Run, path: Path) -> tuple[Verdict, str]:
    """The state of a run in a checkpoint, the run that it belongs to, and whether the metrics reach that far."""
    state = run.read_checkpoint(path).state
    if path.stem == "last" and (missing := run.missing_lines(state["step"])):
        raise InputError(f"verify: metrics.jsonl lacks {counted(missing, 'step')} of the {state['step']} before {path}")
    return "whole" if "run" in state else "no checksums", f"the state of step {state.get('step')}"


def _arrays(path: Path) -> tuple[Verdict, str]:
    stored = stored_arrays(path)
    for array in stored.values():
        check(array)
    unchecked = sum(array.checksum is None for array in stored.values())
    numbers = sum(math.prod(array.shape) for array in stored.values())
    told = f"{counted(len(stored), 'array')}, {counted(numbers, 'number')}"
    return ("no checksums", f"{told}: sizes and numbers were checked") if unchecked else ("whole", told)


def _index(folder: Path) -> tuple[Verdict, str]:
    """The index of shards, which must name all arrays that there are, each in its file."""
    weight_map = read_json(folder / INDEX).get("weight_map")
    stored = stored_arrays(folder)
    if {name: array.path.name for name, array in stored.items()} != weight_map:
        raise InputError(f"verify: {folder / INDEX} does not name the arrays that its files hold; get it again")
    return "no checksums", f"names {counted(len(stored), 'array')}, which are where it says"


def _shard(path: Path) -> tuple[Verdict, str]:
    shard = open_shard(path)
    largest = max(
        (int(np.asarray(shard.ids[at : at + (1 << 20)]).max()) for at in range(0, len(shard.ids), 1 << 20)), default=-1
    )
    if largest >= shard.vocab_size:
        raise InputError(f"verify: {path} has the id {largest}, but a vocabulary of {shard.vocab_size}; write it again")
    return "whole" if shard.version > 1 else "no checksums", f"{counted(len(shard.ids), 'token id')}"


def _gguf(path: Path) -> tuple[Verdict, str]:
    model = open_model(path).model
    return "no checksums", f"{counted(model.num_parameters(), 'weight')}: names, shapes and numbers were checked"


def _documents(path: Path) -> tuple[Verdict, str]:
    from minillm.corpus.document import has_checksums, read_documents

    told = f"{counted(sum(1 for _ in read_documents(path)), 'document')}, all of which can be read"
    return ("whole" if has_checksums(path) else "no checksums"), told


def _tokenizer(path: Path) -> tuple[Verdict, str]:
    return "no checksums", f"a vocabulary of {counted(load_tokenizer(path.parent).vocab_size, 'token')}"


def _listed(folder: Path) -> Iterator[Verified]:
    """The files beside an export's weights, by its list of their checksums."""
    for name, expected in read_json(folder / CHECKSUMS).items():
        path = folder / Path(name).name
        if not path.is_file():
            yield Verified(path, "damaged", f"{CHECKSUMS} names it, and it is not there; convert the model again")
        elif crc32(path.read_bytes()) != expected:
            yield Verified(path, "damaged", f"it does not have its checksum by {CHECKSUMS}; convert the model again")
        else:
            yield Verified(path, "whole", "as it was written")


def as_json(found: list[Verified]) -> str:
    """The verdicts as a JSON text, a file an object."""
    return json.dumps([one._asdict() | {"path": str(one.path)} for one in found], indent=2)
