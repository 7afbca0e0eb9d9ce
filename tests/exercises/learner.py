"""Files as a learner would have them: right ones, and one with each listed mistake."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

from minillm.exercises import ORDER, exercise_named
from minillm.exercises.exercise import Exercise, Mistake

ANSWERS = Path(__file__).parent / "answers"
EXERCISES = [exercise_named(name) for name in ORDER]
PYTHON = [exercise for exercise in EXERCISES if exercise.suffix == ".py"]
KERNELS = [exercise for exercise in EXERCISES if exercise.suffix == ".cu"]


def answer(exercise: Exercise) -> Path:
    """A right answer, written without the engine."""
    return ANSWERS / exercise.file_name


def with_mistake(exercise: Exercise, mistake: Mistake, folder: Path) -> Path:
    """A file in which the function to write is one of the listed mistakes: the text of the exercise, and its name."""
    module = importlib.import_module(exercise.starter.__module__)
    path = folder / f"{mistake.function.__name__}.py"
    name = f"\n\n{exercise.starter.__name__} = {mistake.function.__name__}\n"
    path.write_text(inspect.getsource(module) + name, encoding="utf-8")
    return path


def called(exercises: list[Exercise]) -> dict:
    """The arguments of parametrize for these exercises."""
    return dict(argnames="exercise", argvalues=exercises, ids=[exercise.name for exercise in exercises])
