"""`minillm exercise`: from the first file to the last hint, and what it never does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minillm.cli import main
from minillm.exercises import ORDER, exercise_named
from tests.exercises.learner import answer


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(capsys, *arguments: str, status: int = 0) -> str:
    """What a command prints; it ends with this status."""
    capsys.readouterr()
    if status:
        with pytest.raises(SystemExit) as raised:
            main(["exercise", *arguments])
        assert raised.value.code == status
    else:
        main(["exercise", *arguments])
    captured = capsys.readouterr()
    return captured.err if status == 2 else captured.out


def test_a_word_of_several_names_lists_them_all(here, capsys) -> None:
    told = printed(capsys, "start", "softmax", status=2)
    assert "did you mean one of: softmax-forward, softmax-backward, cuda-softmax?" in told
    assert "did you mean 'softmax-forward'?" in printed(capsys, "start", "softmax-forwards", status=2)
    assert "did you mean 'causal-mask'?" in printed(capsys, "start", "causal_masks", status=2)


def test_the_way_through_an_exercise(here, capsys) -> None:
    assert printed(capsys, "list").splitlines()[-1].startswith(f"0 of {len(ORDER)} passed")
    assert not (here / "exercises").exists()  # to look changes nothing
    told = printed(capsys, "start", "embedding-backward")
    path = here / "exercises" / "embedding_backward.py"
    assert "complete exercises/embedding_backward.py, then run `minillm exercise check exercises/emb" in told
    assert "kept in exercises/progress.json" in told
    assert sorted(path.parent.iterdir()) == [path, path.parent / "progress.json"]

    assert "this line is still to be replaced" in printed(capsys, "check", status=1)
    text = path.read_text(encoding="utf-8")
    assert "def embedding_backward(dy, ids, rows, padding=None):" in text
    wrong = "table = np.zeros((rows, dy.shape[-1]))\n    table[ids] = dy\n    return table"
    path.write_text(text.replace('raise NotImplementedError("replace this line")', wrong), encoding="utf-8")
    told = printed(capsys, "check", "exercises/embedding_backward.py", status=1)
    assert told.startswith("embedding-backward: not right yet\n  case 2 of 6: dy (4, 3), ids [1, 2, 1, 1], rows 4")
    hint = exercise_named("embedding-backward").mistakes[0].hint
    assert " ".join(f"Hint (last place wins): {hint}".split()) in " ".join(told.split())
    assert " begun " in printed(capsys, "list")

    path.write_text(answer(exercise_named("embedding-backward")).read_text(encoding="utf-8"), encoding="utf-8")
    assert printed(capsys, "check", "embedding-backward").splitlines() == [
        "embedding-backward: passed, all 6 cases",
        "Read next how the engine does it: minillm/ops/embedding.py",
        "The next exercise: minillm exercise start cross-entropy",
    ]
    assert f"1 of {len(ORDER)} passed" in printed(capsys, "list")
    kept = json.loads((path.parent / "progress.json").read_text(encoding="utf-8"))
    assert kept["exercises"]["embedding-backward"] == {"checks": 3, "hints": 0, "passed": True}


def test_a_wrong_number_says_how_to_get_the_inputs(here, capsys) -> None:
    printed(capsys, "start", "softmax-backward", "--folder", "mine")
    path = here / "mine" / "softmax_backward.py"
    path.write_text("def softmax_backward(dp, p):\n    return dp / 7\n", encoding="utf-8")
    told = printed(capsys, "check", "mine/softmax_backward.py", status=1)
    assert "dx[" in told
    assert " is right; 3 of 3 elements are wrong" in told
    assert 'inputs_of("softmax-backward", 1)' in told
    assert "minillm exercise hint softmax-backward" in told


def test_a_person_can_stop_in_the_own_file(here) -> None:
    (here / "softmax_backward.py").write_text("def softmax_backward(dp, p):\n    breakpoint()\n    return dp * p\n")
    command = [sys.executable, "-m", "minillm", "exercise", "check", "softmax_backward.py", "--seconds", "0"]
    result = subprocess.run(command, input="p dp.shape, p.shape\nc\n", capture_output=True, text=True, check=False)
    assert "(Pdb) ((3,), (3,))" in result.stdout
    assert "Hint (sum forgotten): This is the gradient of e^x alone" in result.stdout
    assert (result.returncode, result.stderr) == (1, "")


def test_a_file_says_itself_which_exercise_it_is_for(here, capsys) -> None:
    exercise = exercise_named("softmax-forward")
    text = answer(exercise).read_text(encoding="utf-8")
    (here / "other name.py").write_text(f'"""minillm exercise {exercise.name}: mine"""\n{text}', encoding="utf-8")
    assert printed(capsys, "check", "other name.py").startswith("softmax-forward: passed")


def test_hints_come_one_after_another(here, capsys) -> None:
    exercise = exercise_named("rope")
    hints = [" ".join(printed(capsys, "hint", "rope").split()) for _ in exercise.hints]
    assert hints == [f"Hint {i} of {len(hints)}: {hint}" for i, hint in enumerate(exercise.hints, 1)]
    last = printed(capsys, "hint")  # the last one that was worked on
    assert " ".join(last.split()).startswith(" ".join(hints))
    assert "There are no more hints. How the engine does it stands in minillm/ops/rope.py" in last


def test_a_persons_file_is_never_written_over(here, capsys) -> None:
    printed(capsys, "start")
    path = here / "exercises" / f"{ORDER[0].replace('-', '_')}.py"
    path.write_text("mine")
    told = printed(capsys, "start", ORDER[0], status=2)
    told_before, _, remedy = told.partition(" and is never written over; ")
    assert told_before == f"exercise start: exercises/{path.name} exists already"
    assert remedy == "go on with it, or move it away\n"
    assert path.read_text() == "mine"


def test_the_next_exercise_is_the_first_that_is_not_passed(here, capsys) -> None:
    (here / "exercises").mkdir()
    passed = {name: {"checks": 1, "hints": 0, "passed": True} for name in ORDER if name not in ("rope", "dpo-loss")}
    progress = {"last": "zero-step", "exercises": passed}
    (here / "exercises" / "progress.json").write_text(json.dumps(progress))
    assert "exercises/rope.py" in printed(capsys, "start")
    shutil.copy(answer(exercise_named("rope")), here / "exercises" / "rope.py")
    assert printed(capsys, "check").endswith("The next exercise: minillm exercise start dpo-loss\n")
    shutil.copy(answer(exercise_named("dpo-loss")), here / "exercises" / "dpo_loss.py")
    assert printed(capsys, "check", "dpo-loss").endswith("You have passed them all.\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["check"], "exercise check: there is no exercise in exercises yet; begin with `minillm exercise start`"),
        (["hint"], "exercise hint: there is no exercise in exercises yet; begin with `minillm exercise start`"),
        (
            ["check", "rope"],
            "exercise check: there is no file exercises/rope.py; `minillm exercise start rope` writes it",
        ),
        (["check", "mine.py"], "exercise check: there is no file mine.py; `minillm exercise start NAME` writes one"),
        (["start", "ropes"], "exercise start: there is no exercise 'ropes'; did you mean 'rope'?"),
        (
            ["list", "--folder", "broken"],
            "exercise list: broken/progress.json is damaged; delete it, which forgets the progress",
        ),
        (
            ["list", "rope"],
            "exercise list: 'rope' is more than was expected; `minillm exercise list --help` lists what",
        ),
    ],
)
def test_errors_are_one_sentence(here, capsys, arguments, told) -> None:
    (here / "broken").mkdir()
    (here / "broken" / "progress.json").write_text('{"last": "rope"}')
    found = printed(capsys, *arguments, status=2)
    assert found.startswith(told)
    assert found.count("\n") == 1


def test_a_folder_or_a_text_without_an_exercise_is_refused(here, capsys) -> None:
    (here / "notes.py").write_text("x = 1\n")
    told = printed(capsys, "check", "notes.py", status=2)
    assert told.startswith("exercise check: neither the name of notes.py nor its text says for which exercise it is")
