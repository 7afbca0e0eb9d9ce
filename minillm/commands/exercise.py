"""`minillm exercise list`, `start`, `check` and `hint`.

The files of a learner lie in a folder, `exercises` by default, and progress.json beside them says what was passed and
how many hints were given. Nothing is kept anywhere else.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minillm.errors import InputError
from minillm.files import writing
from minillm.options import Positional, read

if TYPE_CHECKING:
    from minillm.exercises.exercise import Exercise
    from minillm.exercises.progress import Progress

FOLDER = Path("exercises")
WIDTH = 100


@dataclass(frozen=True)
class ExerciseList:
    """List the exercises, in the order in which they build on each other, with those that you have passed."""

    folder: Path = FOLDER
    """Folder of your files; what you have passed stands in its progress.json."""


def exercise_list(arguments: list[str]) -> None:
    """Print a line for each exercise."""
    from minillm.exercises import ORDER, exercise_named
    from minillm.exercises.progress import Progress

    given = read(ExerciseList, "exercise list", arguments)
    progress = Progress(given.folder)
    for number, name in enumerate(ORDER, 1):
        state = "passed" if progress.passed(name) else "begun" if name in progress.exercises else ""
        print(f"{number:>2}  {state:<6}  {name:<19} {exercise_named(name).title}")
    passed = sum(map(progress.passed, ORDER))
    print(f"{passed} of {len(ORDER)} passed; `minillm exercise start NAME` writes the file of one")


@dataclass(frozen=True)
class ExerciseStart:
    """Write the file of an exercise, with what is asked, the function to complete, and its shapes."""

    name: Positional[str | None] = None
    """An exercise that `minillm exercise list` names; the first that you have not passed by default."""
    folder: Path = FOLDER
    """Folder for the file."""


def exercise_start(arguments: list[str]) -> None:
    """Write the file of an exercise; a file that is there already is never written over."""
    from minillm.exercises import ORDER, exercise_named
    from minillm.exercises.progress import Progress

    given = read(ExerciseStart, "exercise start", arguments)
    progress = Progress(given.folder)
    exercise = exercise_named(next_after(None, progress) or ORDER[0] if given.name is None else given.name)
    path = given.folder / exercise.file_name
    if path.exists():
        raise InputError(
            f"exercise start: {path} exists already and is never written over; go on with it, or move it away"
        )
    with writing("exercise start", path) as unfinished:
        given.folder.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(exercise.text(path), encoding="utf-8")
    progress.of(exercise.name)
    progress.save(exercise.name)
    print(f"{exercise.title}: complete {path}, then run `minillm exercise check {path}`")
    print(f"(what you have passed is kept in {progress.path})")


@dataclass(frozen=True)
class ExerciseCheck:
    """Run your own file on the cases of its exercise; a usual mistake is answered by its own hint."""

    file: Positional[str | None] = None
    """Your file, or the name of the exercise; the last one that you worked on by default."""
    folder: Path = FOLDER
    """Folder of your files, where a name is looked for."""
    seconds: float | None = None
    """Time after which the check is stopped; 0 for no limit, as for a breakpoint() in your file."""


def exercise_check(arguments: list[str]) -> None:
    """Check a file; exit status 1 if it is not right yet."""
    from minillm.exercises.attempt import attempt
    from minillm.exercises.progress import Progress

    given = read(ExerciseCheck, "exercise check", arguments)
    exercise, path = chosen("exercise check", given.file, given.folder)
    if not path.is_file():
        raise InputError(f"exercise check: there is no file {path}; `minillm exercise start {exercise.name}` writes it")
    progress = Progress(path.parent)
    finding = attempt(exercise, path, exercise.seconds if given.seconds is None else given.seconds)
    record = progress.of(exercise.name)
    record["checks"] += 1
    record["passed"] = record["passed"] or finding.passed
    progress.save(exercise.name)
    if finding.passed:
        print(f"{exercise.name}: passed, all {len(exercise.all_cases())} cases")
        following = next_after(exercise.name, progress)
        print(f"Read next how the engine does it: {exercise.read}")
        print(f"The next exercise: minillm exercise start {following}" if following else "You have passed them all.")
        return
    print(f"{exercise.name}: not right yet")
    for line in finding.lines:
        print(textwrap.fill(line, WIDTH, initial_indent="  ", subsequent_indent="    "))
    if finding.hint:
        print(textwrap.fill(f"Hint ({finding.mistake}): {finding.hint}", WIDTH, subsequent_indent="  "))
    elif finding.case:
        print(f'Its inputs: from minillm.exercises import inputs_of; inputs_of("{exercise.name}", {finding.case})')
        print(f"For help: minillm exercise hint {exercise.name}")
    raise SystemExit(1)


@dataclass(frozen=True)
class ExerciseHint:
    """Print one more hint for an exercise; each call says a little more than the one before."""

    file: Positional[str | None] = None
    """Your file, or the name of the exercise; the last one that you worked on by default."""
    folder: Path = FOLDER
    """Folder of your files."""


def exercise_hint(arguments: list[str]) -> None:
    """Print the next hint of an exercise; after the last one, all of them."""
    from minillm.exercises.progress import Progress

    given = read(ExerciseHint, "exercise hint", arguments)
    exercise, path = chosen("exercise hint", given.file, given.folder)
    progress = Progress(path.parent)
    record = progress.of(exercise.name)
    count, told = len(exercise.hints), record["hints"]
    first, last = (told, told + 1) if told < count else (0, count)  # after the last one, all of them again
    record["hints"] = min(told + 1, count)
    progress.save(exercise.name)
    for number, hint in enumerate(exercise.hints[first:last], first + 1):
        print(textwrap.fill(f"Hint {number} of {count}: {hint}", WIDTH, subsequent_indent="  "))
    if told == count:
        print(f"There are no more hints. How the engine does it stands in {exercise.read}")


# --- which exercise is meant -----------------------------------------------------------------------------------------


def chosen(command: str, file: str | None, folder: Path) -> tuple[Exercise, Path]:
    """The exercise of a file, a name, or the last one worked on, and the file that belongs to it.

    A file says in its first lines which exercise it is for, so it may have any name.
    """
    from minillm.exercises import exercise_named
    from minillm.exercises.progress import Progress

    if file is None:
        file = Progress(folder).last
        if file is None:
            raise InputError(f"{command}: there is no exercise in {folder} yet; begin with `minillm exercise start`")
    path = Path(file)
    if not path.is_file():
        if path.suffix:
            raise InputError(f"{command}: there is no file {path}; `minillm exercise start NAME` writes one")
        exercise = exercise_named(file)
        return exercise, folder / exercise.file_name
    name = re.search(r"minillm exercise ([\w-]+):", path.read_text(encoding="utf-8", errors="replace"))
    try:
        return exercise_named(name[1] if name else path.stem), path
    except InputError:
        raise InputError(
            f"{command}: neither the name of {path} nor its text says for which exercise it is; "
            'let it begin with """minillm exercise NAME: ..."""'
        ) from None


def next_after(name: str | None, progress: Progress) -> str | None:
    """The first exercise behind this one, and then from the beginning, that is not passed; None if all are."""
    from minillm.exercises import ORDER

    place = ORDER.index(name) + 1 if name else 0
    return next((one for one in ORDER[place:] + ORDER[:place] if not progress.passed(one)), None)
