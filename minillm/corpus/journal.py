"""Output files that grow by chunks, and the record beside them, so that a run that was killed goes on where it was.

A chunk is appended to its files, which are called `*.part` until they are whole, and is on disk before the record says
so. The record, a small JSON file, is replaced by renaming. So whenever a run is killed, the record holds a number of
chunks and the lengths that the files had with these; the next run cuts the files there, and goes on. Both runs must
want the same: the record has a fingerprint of settings and inputs, and where that differs, the work begins again.

The record stays when the files are whole, with the counts and the settings of the stage, for later stages and reports.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from minillm.errors import InputError
from minillm.files import sync
from minillm.lock import Lock
from minillm.version import __version__

FORMAT = 1  # of records; another begins again
HEAD = 1 << 16  # bytes of an input that its identity looks at
NAMED = 100  # problems that a record names; all are counted


@dataclass
class Done:
    """A finished chunk: what each output file gets, and what is counted."""

    parts: Sequence[bytes]
    documents: Counter = field(default_factory=Counter)  # "kept", and by the rule that dropped them
    text_bytes: Counter = field(default_factory=Counter)  # bytes of their texts, and "read": of all that came undropped
    problems: list[str] = field(default_factory=list)  # lines, members or files that were skipped, each with its place


def identity_of(path: Path) -> dict[str, Any]:
    """The marks that tell an input file from another one: its name, size, time of change and first bytes."""
    with open(path, "rb") as file:
        begins = hashlib.blake2b(file.read(HEAD), digest_size=16).hexdigest()
    status = path.stat()
    return {"file": path.name, "bytes": status.st_size, "modified_ns": status.st_mtime_ns, "begins": begins}


def read_record(path: Path, stage: str) -> dict[str, Any] | None:
    """The record of this stage in a file; None where there is none, or one of something else."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("stage") == stage else None


class Journal:
    """The outputs of a stage and their record.

    chunks: how many are done. done: True if the outputs are whole.
    """

    def __init__(self, record: Path, outs: Sequence[Path], stage: str, wanted: Mapping[str, Any], say: bool = True):
        """Find out what an earlier run has done, cut its files to that, and be ready to append.

        wanted: all that the outputs depend on, as JSON. say: tell a person on the standard error where it goes on.
        Raises: InputError where an output exists and is not from this stage, or another process is writing it.
        """
        self.path, self.outs, self.stage = record, list(outs), stage
        self.files: list[FileIO] = []
        self.lock = Lock(
            record.with_name(f".{record.name}.lock"),
            lambda holder: (
                f"{stage}: {holder} is writing {record.parent} at the moment; wait for its end, or choose another --out"
            ),
        )
        try:
            self._begin(wanted, say)
        except BaseException:
            self.close()
            raise

    def _begin(self, wanted: Mapping[str, Any], say: bool) -> None:
        """Read the record, and open the outputs."""
        record, outs, stage = self.path, self.outs, self.stage
        self.parts = [path.with_name(f"{path.name}.part") for path in outs]
        wanted = {"format": FORMAT, "version": __version__, "stage": stage, **wanted}
        fingerprint = hashlib.blake2b(json.dumps(wanted, sort_keys=True).encode(), digest_size=16).hexdigest()
        before = read_record(record, stage)
        if before is None and (there := [path for path in outs if path.exists()]):
            raise InputError(
                f"{stage}: {there[0]} exists already, and no {record.name} beside it says that `{stage}` has written "
                "it; move it away, or choose another --out"
            )
        if before is not None and (reason := self._unusable(before, fingerprint)):
            if say:
                print(f"{stage}: {reason}; it begins again", file=sys.stderr)
            before = None
        if before is None:
            for path in (*self.outs, *self.parts):
                path.unlink(missing_ok=True)
            before = {"chunks": 0, "bytes": [0 for _ in outs], "done": False, "documents": {}, "text_bytes": {}}
            before |= {"problems": {"count": 0, "first": []}}
        self.state: dict[str, Any] = wanted | {"fingerprint": fingerprint} | before
        if not self.done:
            self._open(say)

    @property
    def chunks(self) -> int:
        """The number of chunks that are done."""
        return self.state["chunks"]

    @property
    def done(self) -> bool:
        """True if the outputs are whole."""
        return self.state["done"]

    def _unusable(self, before: dict[str, Any], fingerprint: str) -> str:
        """The reason why the run of this record cannot go on; empty if it can."""
        if before.get("fingerprint") != fingerprint or len(before["bytes"]) != len(self.outs):
            return f"settings or inputs are others than in {self.path}"
        sizes = [[path.stat().st_size if path.exists() else -1 for path in paths] for paths in (self.outs, self.parts)]
        for out, part, length, path in zip(*sizes, before["bytes"], self.outs, strict=True):
            if (out != length) if before["done"] else (max(out, part) < length):
                return f"{path} is not as {self.path} says"
        return ""

    def _open(self, say: bool) -> None:
        """Open the files to append to, cut to the lengths of the record."""
        self.path.parent.mkdir(parents=True, exist_ok=True)  # where there are no locks
        if self.chunks and say:
            print(f"{self.stage}: goes on after {self.chunks} chunks of {self.path}", file=sys.stderr)
        for out, part, length in zip(self.outs, self.parts, self.state["bytes"], strict=True):
            if out.exists():  # the run was killed between the last chunk and the end of the record
                os.replace(out, part)
            self.files.append(FileIO(part, "ab"))  # without a buffer, which would be written again by its end
            self.files[-1].truncate(length)
        self._save()

    def append(self, done: Done) -> None:
        """Write a chunk, and then that it is written."""
        for number, (file, part) in enumerate(zip(self.files, done.parts, strict=True)):
            left = memoryview(part)
            try:
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except OSError as error:
                raise self._cannot_write(self.parts[number], error) from None
            self.state["bytes"][number] += len(part)
        for name in ("documents", "text_bytes"):
            self.state[name] = dict(sorted((Counter(self.state[name]) + getattr(done, name)).items()))
        problems = self.state["problems"]
        problems["count"] += len(done.problems)
        problems["first"] += done.problems[: NAMED - len(problems["first"])]
        self.state["chunks"] += 1
        self._save()

    def finish(self) -> None:
        """Give the files their names, and write that they are whole."""
        for file in self.files:
            file.close()
        for out, part in zip(self.outs, self.parts, strict=True):
            os.replace(part, out)
        for folder in {out.parent for out in self.outs}:
            sync(folder)  # the names must be on the disk before the record says so
        self.state["done"] = True
        self._save()

    def close(self) -> None:
        """Close the files, whole or not, and let other processes write."""
        for file in self.files:
            file.close()
        self.lock.release()

    def _save(self) -> None:
        new = self.path.with_name(f"{self.path.name}.new")
        try:
            with open(new, "wb") as file:
                file.write(json.dumps(self.state, indent=1, ensure_ascii=True).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self.path)
        except OSError as error:
            raise self._cannot_write(self.path, error) from None

    def _cannot_write(self, path: Path, error: OSError) -> InputError:
        return InputError(
            f"{self.stage}: {path} cannot be written ({error.strerror}); make room, and give the same command again, "
            "which goes on from there"
        )
