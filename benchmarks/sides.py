"""Child processes that take turns, one of minillm and one of PyTorch, for the benchmarks that compare them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from typing import Any

THREADS = 2


def settings(side: str) -> contextlib.AbstractContextManager[None]:
    """The settings in which a child process works: for minillm those that `minillm train` makes, else none."""
    if side != "minillm":
        return contextlib.nullcontext()
    from minillm.tuning import own_choice, tuned_process

    return tuned_process(own_choice(THREADS).cutting)


class Side:
    """A child process, `script --serve ...`, that works when it is told to, and answers with a line of JSON."""

    def __init__(self, script: str, *arguments: str):
        environment = {**os.environ, "MINILLM_THREADS": str(THREADS), "OMP_NUM_THREADS": str(THREADS)}
        self.process = subprocess.Popen(
            [sys.executable, script, "--serve", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, order: Any) -> dict[str, Any]:
        """Hand over an order (a number of repeats), wait, and return the answer."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()
