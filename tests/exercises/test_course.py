"""Every exercise: its right answer passes, each listed mistake gets its own hint, and nothing gives the answer away."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from minillm.errors import InputError
from minillm.exercises import ORDER, exercise_named, inputs_of
from minillm.exercises.grade import agree, examine, grade, is_right
from tests.exercises.learner import EXERCISES, PYTHON, answer, called, with_mistake

ROOT = Path(__file__).parents[2]
MISTAKES = [
    pytest.param(exercise, mistake, id=f"{exercise.name}-{mistake.function.__name__}")
    for exercise in PYTHON
    for mistake in exercise.mistakes
]


def test_there_is_an_exercise_for_every_file_and_at_least_eighteen() -> None:
    files = {path.stem for path in (ROOT / "minillm/exercises/course").glob("*.py")} - {"__init__"}
    assert files == {name.replace("-", "_") for name in ORDER}
    assert len(ORDER) == len(set(ORDER)) >= 18
    assert [exercise.name for exercise in EXERCISES] == ORDER


@pytest.mark.parametrize(**called(PYTHON))
def test_a_right_answer_passes(exercise) -> None:
    finding = examine(exercise, answer(exercise))
    assert finding.passed, finding


@pytest.mark.parametrize(("exercise", "mistake"), MISTAKES)
def test_a_file_with_a_listed_mistake_gets_its_own_hint(exercise, mistake, tmp_path) -> None:
    finding = examine(exercise, with_mistake(exercise, mistake, tmp_path))
    assert not finding.passed
    assert (finding.mistake, finding.hint) == (mistake.name, mistake.hint)


@pytest.mark.parametrize(**called(EXERCISES))
def test_the_mistakes_differ_from_the_right_answer_and_from_each_other(exercise) -> None:
    assert len(exercise.mistakes) >= 5
    cases = exercise.all_cases()
    right = [exercise.outcome(exercise.right, inputs) for inputs in cases]
    assert all(outcome.error is None for outcome in right)
    made = {m.name: [exercise.outcome(m.function, inputs) for inputs in cases] for m in exercise.mistakes}
    assert len(made) == len({m.hint for m in exercise.mistakes}) == len(exercise.mistakes)
    names = exercise.returns.split()
    for mistake, outcomes in made.items():
        assert not all(is_right(exercise, a, b) for a, b in zip(outcomes, right, strict=True)), mistake
    for first, second in itertools.combinations(made, 2):
        pairs = zip(made[first], made[second], strict=True)
        alike = all(agree(exercise, name, a, b) for a, b in pairs for name in names)
        assert not alike, (first, second)


@pytest.mark.parametrize(**called(EXERCISES))
def test_the_cases_are_equal_in_every_check_and_have_no_gap(exercise) -> None:
    once, again = exercise.all_cases(), exercise.all_cases()
    assert len(once) >= 3
    for inputs, same_inputs in zip(once, again, strict=True):
        np.testing.assert_equal(inputs, same_inputs)
    np.testing.assert_equal(inputs_of(exercise.name, len(once)), once[-1])
    with pytest.raises(InputError, match=f"choose 1 to {len(once)}"):
        inputs_of(exercise.name, 0)


def changed(value, change):
    """The value with every array and number in it changed."""
    if isinstance(value, (list, tuple)):
        return type(value)(changed(part, change) for part in value)
    numeric = isinstance(value, (np.ndarray, float)) and np.asarray(value).dtype.kind == "f"
    return change(value) if numeric else value


CHANGES = {"0": lambda x: 0 * x, "size": lambda x: 1.001 * x, "shape": lambda x: np.asarray(x)[None]}
NUMBERS = [one for one in PYTHON if one.run.__name__ == "call" and one.name not in ("causal-mask", "bpe-merges")]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(**called(NUMBERS))
def test_a_result_that_is_a_little_wrong_does_not_pass(exercise, change) -> None:
    finding = grade(exercise, lambda *inputs: changed(exercise.right(*inputs), change))
    assert not finding.passed
    assert len(finding.lines) >= 2


@pytest.mark.parametrize(**called(EXERCISES))
def test_no_solution_is_shown(exercise) -> None:
    """No line of a right answer that computes something stands in what a learner gets to read."""
    shown = " ".join([exercise.text(Path("x")), *exercise.hints, *(mistake.hint for mistake in exercise.mistakes)])
    given = {line.strip() for line in exercise.text(Path("x")).splitlines()}
    lines = [line.strip() for line in answer(exercise).read_text(encoding="utf-8").splitlines()]
    told = [line for line in lines if line not in given and len(line) > 18 and line.removeprefix("return ") in shown]
    assert told == []


@pytest.mark.parametrize(**called(EXERCISES))
def test_what_a_learner_reads_is_complete(exercise) -> None:
    text = exercise.text(Path("exercises", exercise.file_name))
    assert f"minillm exercise {exercise.name}:" in text
    assert f"minillm exercise check exercises/{exercise.file_name}" in text
    assert exercise.title in text
    assert max(map(len, text.splitlines())) <= 120
    assert len(exercise.hints) >= 3
    for sentence in (*exercise.hints, *(mistake.hint for mistake in exercise.mistakes)):
        assert sentence[-1] in ".)?:"
        assert len(sentence) < 260
    assert (ROOT / exercise.read.partition(",")[0]).is_file()


@pytest.mark.parametrize(**called(PYTHON))
def test_the_file_of_an_exercise_is_not_right_before_it_is_written(exercise, tmp_path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(exercise.text(path), encoding="utf-8")
    finding = examine(exercise, path)
    assert not finding.passed
    assert not finding.mistake
    assert finding.lines[-2:] == (
        f'line {len(path.read_text().splitlines())}: raise NotImplementedError("replace this line")',
        "this line is still to be replaced by your own",
    )


def test_an_unknown_name_is_answered_by_the_nearest() -> None:
    assert exercise_named("kv_cache") is exercise_named("kv-cache")
    nearest = "there is no exercise 'softmax'; did you mean one of: softmax-forward, softmax-backward, cuda-softmax"
    with pytest.raises(InputError, match=nearest):
        exercise_named("softmax")


def test_the_divided_step_equals_that_of_one_process() -> None:
    """The right answer of zero-step is made of the ranks' own operations, so it is compared with a plain step here."""
    exercise = exercise_named("zero-step")
    for inputs in exercise.all_cases():
        found = exercise.outcome(exercise.right, inputs).outputs
        weights, state = inputs["weights"].copy(), 0
        for of_rank in inputs["gradients"]:
            gradient = of_rank.mean(axis=0)
            gradient = gradient * min(1, inputs["max_norm"] / np.linalg.norm(gradient))
            state = 0.9 * state + gradient
            weights -= 0.1 * state
        for of_rank in found["weights_of_rank"]:
            np.testing.assert_allclose(of_rank, weights)
        np.testing.assert_allclose(np.concatenate(found["state_of_rank"]), state)
        assert found["numbers_sent"] == "not more than needed"
