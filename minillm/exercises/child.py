"""The process in which a learner's function runs, so that a loop without end or a crash ends nothing else.

`python -m minillm.exercises.child NAME FILE SECONDS ANSWER TRACE` writes the finding to the file ANSWER, as JSON. After
SECONDS, or after a crash, Python itself writes the lines that were running to the file TRACE, and the process ends.
A kernel is compiled first, for which there is time of its own.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from pathlib import Path

from minillm.exercises import exercise_named
from minillm.exercises.grade import error_lines, examine


def main(name: str, file: str, seconds: str, answer: str, trace: str) -> None:
    """Check one file; see the top of this one."""
    exercise = exercise_named(name)  # before the clock starts: a slow disk is no fault of the learner's
    with open(trace, "w") as lines:
        faulthandler.enable(lines)

        def allow(limit: float) -> None:
            if float(seconds) > 0:
                faulthandler.dump_traceback_later(limit, exit=True, file=lines)

        allow(float(seconds) + exercise.compiling)
        path = Path(file)
        sys.path.append(str(path.parent))  # for helpers of the learner's own
        try:
            finding = examine(exercise, path, lambda: allow(float(seconds)))
        except KeyboardInterrupt as error:  # Ctrl-C in a loop without end
            print("\n".join(error_lines(error, path)[:-1]), file=sys.stderr, flush=True)
            os._exit(130)
        sys.stdout.flush()
        Path(answer).write_text(json.dumps(finding._asdict()), encoding="utf-8")
        os._exit(0)  # threads of the learner may still be waiting


if __name__ == "__main__":
    main(*sys.argv[1:])
