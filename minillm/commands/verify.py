"""`minillm verify`: whether the files of a run, a model or a corpus are as they were written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from minillm.counted import counted
from minillm.options import Positional, read


@dataclass(frozen=True)
class Verify:
    """Check all files of a run, a model or a corpus for damage; exit status 1 if there is some."""

    path: Positional[Path]
    """A run directory, a model's folder or file, a token shard, or a folder with such files."""
    json: bool = False
    """Print JSON."""


def verify(arguments: list[str]) -> None:
    """Print the verdict on each file."""
    from minillm.verify import as_json
    from minillm.verify import verify as verified

    given = read(Verify, "verify", arguments)
    found = verified(given.path)
    if given.json:
        print(as_json(found))
    else:
        for one in found:
            print(f"{one.verdict:<12}  {one.path}: {one.told}")
        counts = Counter(one.verdict for one in found)
        unchecked = f", {counts['no checksums']} without checksums" if counts["no checksums"] else ""
        print(f"{counted(len(found), 'check')}: {counts['whole']} whole{unchecked}, {counts['damaged']} damaged")
    if any(one.verdict == "damaged" for one in found):
        raise SystemExit(1)
