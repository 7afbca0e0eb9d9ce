"""What a check says: the hint of a mistake, the number that is wrong, or the line that failed."""

from __future__ import annotations

import re
import textwrap

import numpy as np
import pytest

from minillm.exercises import exercise_named
from minillm.exercises.attempt import attempt
from minillm.exercises.compare import described, difference, same
from minillm.exercises.grade import Finding, examine, grade
from tests.exercises.learner import answer

SOFTMAX, LAYERNORM = exercise_named("softmax-backward"), exercise_named("layernorm-backward")


def checked(tmp_path, text: str, exercise=SOFTMAX, how=examine) -> Finding:
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return how(exercise, path)


def test_a_wrong_number_is_told_with_its_index_and_the_right_one() -> None:
    def wrong_at_one_place(dp, p):
        dx = SOFTMAX.right(dp, p)
        if dx.shape == (3, 3):
            dx[2, 1] += 0.25
        return dx

    finding = grade(SOFTMAX, wrong_at_one_place)
    right = SOFTMAX.right(*SOFTMAX.all_cases()[2].values())[2, 1]
    assert finding == Finding(
        False,
        3,
        (
            "case 3 of 5: dp (3, 3), p (3, 3)",
            f"dx[2, 1] is {right + 0.25:.6g}, but {right:.6g} is right; 1 of 9 elements are wrong",
        ),
    )


def test_two_mistakes_in_two_results_are_told_one_after_the_other() -> None:
    def both(dy, norm, rstd, weight):
        rows = tuple(range(dy.ndim - 1))
        dnorm = dy * weight
        return rstd * dnorm, (dy * norm).mean(axis=rows), dy.mean(axis=rows)

    def one(dy, norm, rstd, weight):
        return LAYERNORM.right(dy, norm, rstd, weight)[0], *both(dy, norm, rstd, weight)[1:]

    assert grade(LAYERNORM, both).mistake == "statistics constant"
    finding = grade(LAYERNORM, one)
    assert finding.mistake == "parameters averaged"
    assert finding.lines[2:] == ("dx is right in this case", "dbias is wrong too")


def test_an_array_that_the_call_changed_is_found() -> None:
    def in_place(dp, p):
        dx = SOFTMAX.right(dp, p)
        dp[...] = dx
        return dp

    finding = grade(SOFTMAX, in_place)
    assert not finding.passed
    assert "the call changed dp" in finding.lines[1]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("def softmax_backward(dp, p):\n    dp * p", ["softmax_backward returns None; end it with `return dx`"]),
        ("def softmax_backward(dp, p):\n    return dq", ["line 2: return dq", "NameError: name 'dq' is not defined"]),
        (
            "def softmax_backward(dp):\n    return dp",
            ["TypeError: softmax_backward() takes 1 positional argument but 2 were given"],
        ),
        ("def softmax_backward(dp, p):\n    raise SystemExit(3)", ["line 2: raise SystemExit(3)", "SystemExit: 3"]),
        ("def softmax_backward(dp, p):\n    return dp.sum()", ["dx has shape (), but (3,) is right"]),
        ("def softmax_backward(dp, p):\n    return 'dx'", ["dx is 'dx', a str, but an array of shape (3,) is right"]),
    ],
)
def test_what_is_wrong_with_a_call(tmp_path, text, lines) -> None:
    finding = checked(tmp_path, text)
    assert not finding.passed
    assert finding.lines[0].startswith("case 1 of 5: dp [")
    for found, expected in zip(finding.lines[1:], lines, strict=True):
        assert found.startswith(expected)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            "def softmax(dp, p):\n    return 0",
            ["mine.py has no function softmax_backward; write `def softmax_backward(dp, p):`"],
        ),
        ("x = 1\ndef softmax_backward(dp, p:\n    pass", ["line 2: def softmax_backward(dp, p:", "SyntaxError: "]),
        (
            "import torsh",
            ["line 1: import torsh", "ModuleNotFoundError: No module named 'torsh'; the exercises need NumPy alone"],
        ),
        ("import sys\nsys.exit('bye')", ["line 2: sys.exit('bye')", "SystemExit: bye"]),
        ("x = 1 / 0", ["line 1: x = 1 / 0", "ZeroDivisionError: division by zero"]),
    ],
)
def test_a_file_that_cannot_be_loaded(tmp_path, text, lines) -> None:
    finding = checked(tmp_path, text)
    assert not finding.passed
    assert finding.lines[0] == "mine.py cannot be loaded"
    for found, expected in zip(finding.lines[1:], lines, strict=True):
        assert found.startswith(expected)


@pytest.mark.parametrize("result", ["dx, dx", "[1, 2, 3, 4]", "dx"])
def test_a_wrong_number_of_results(tmp_path, result) -> None:
    text = f"def layernorm_backward(dx, norm, rstd, weight):\n    return {result}"
    finding = checked(tmp_path, text, LAYERNORM)
    assert finding.lines[1].startswith("layernorm_backward returns ")
    assert finding.lines[1].endswith("; return 3: dx, dweight, dbias")


def test_an_exception_counts_only_for_a_mistake_that_was_right_before() -> None:
    exercise = exercise_named("matmul-backward")

    def square_alone(dy, a, b):
        da, db = exercise.right(dy, a, b)
        return da + np.zeros((3, 3)), db

    finding = grade(exercise, square_alone)  # a matrix that is not transposed fails there too, but not there alone
    assert finding.case == 3
    assert finding.mistake == ""
    assert finding.lines[1].startswith("ValueError: operands could not be broadcast")


def test_an_error_on_one_rank_is_told_with_its_line(tmp_path) -> None:
    text = "def ring_all_reduce(communicator, array):\n    communicator.send(array, communicator.rank + 1)\n"
    finding = checked(tmp_path, text, exercise_named("ring-all-reduce"))
    assert finding.lines[1:] == (
        "line 2: communicator.send(array, communicator.rank + 1)",
        "send: there is no rank 2 in a group of 2",
    )


# How people write these mistakes, other than the listed functions do.
AS_WRITTEN = [
    (
        "softmax-forward",
        "one maximum for all",
        "def softmax(x):\n    x = np.exp(x - np.max(x))\n    return x / np.sum(x, axis=-1)[..., None]",
    ),
    (
        "softmax-backward",
        "diagonal alone",
        "def softmax_backward(dp, p):\n    return dp * (p - p**2)",
    ),
    (
        "cross-entropy",
        "gradient not divided",
        """
        def cross_entropy(logits, targets):
            m = logits.max(1, keepdims=True)
            lse = m[:, 0] + np.log(np.exp(logits - m).sum(1))
            p = np.exp(logits - lse[:, None])
            rows = np.flatnonzero(targets >= 0)
            p[rows, targets[rows]] -= 1
            p[targets < 0] = 0
            losses = lse[rows] - logits[rows, targets[rows]]
            return losses.mean() if len(rows) else 0.0, p
        """,
    ),
    (
        "adamw-step",
        "eps inside the root",
        """
        def adamw_step(w, g, m, v, t, lr, betas, eps, weight_decay):
            b1, b2 = betas
            w = w - lr * weight_decay * w
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            return w - lr * (m / (1 - b1**t)) * (v / (1 - b2**t) + eps) ** -0.5, m, v
        """,
    ),
    (
        "bpe-merges",
        "word counts ignored",
        """
        def merges(words, count):
            words, out = [[bytes([b]) for b in w] for w in words], []
            for _ in range(count):
                seen = {}
                for w in words:
                    for pair in zip(w, w[1:]):
                        seen[pair] = seen.get(pair, 0) + 1
                if not seen:
                    break
                best = max(seen, key=lambda p: (seen[p], p))
                out.append(best)
                for w in words:
                    i = 0
                    while i + 1 < len(w):
                        if (w[i], w[i + 1]) == best:
                            w[i : i + 2] = [w[i] + w[i + 1]]
                        i += 1
            return out
        """,
    ),
    (
        "kv-cache",
        "prompt without a mask",
        """
        def attend(q, k, v, cache):
            cache["k"] = np.concatenate((cache["k"], k), 1) if cache else k.copy()
            cache["v"] = np.concatenate((cache["v"], v), 1) if "v" in cache else v.copy()
            s = np.einsum("hid,hjd->hij", q, cache["k"]) / np.sqrt(q.shape[2])
            p = np.exp(s - s.max(2, keepdims=True))
            return p / p.sum(2, keepdims=True) @ cache["v"]
        """,
    ),
    (
        "ring-all-reduce",
        "everybody waits",
        """
        def ring_all_reduce(communicator, array):
            n, r = communicator.size, communicator.rank
            total = array.copy()
            for i in range(n - 1):
                got = np.empty_like(array)
                communicator.recv(got, r - 1 if r else n - 1).wait()
                communicator.send(array, (r + 1) % n).wait()
                total += got
            array[:] = total
        """,
    ),
    (
        "learning-rate",
        "rises again",
        """
        def learning_rate(step, peak, floor, warmup, total):
            if step < warmup:
                return peak / warmup * (step + 1)
            angle = np.pi * (step - warmup) / (total - 1 - warmup)
            return float(floor + 0.5 * (peak - floor) * (1 + np.cos(angle)))
        """,
    ),
]


@pytest.mark.parametrize(("name", "mistake", "text"), AS_WRITTEN, ids=[name for name, *_ in AS_WRITTEN])
def test_a_mistake_is_recognised_however_it_is_written(tmp_path, name, mistake, text) -> None:
    finding = checked(tmp_path, f"import numpy as np\n{textwrap.dedent(text)}", exercise_named(name))
    assert finding.mistake == mistake, finding


# --- in a process of its own -----------------------------------------------------------------------------------------


def in_process(exercise, path, seconds=60.0) -> Finding:
    return attempt(exercise, path, seconds)


def test_a_process_finds_what_a_call_finds(tmp_path, capfd) -> None:
    exercise = exercise_named("embedding-backward")
    assert in_process(exercise, answer(exercise)) == Finding(True)
    text = """
        import numpy as np
        print("seen by the learner")
        def embedding_backward(dy, ids, rows, padding):
            table = np.zeros((rows, dy.shape[-1]))
            table[ids] += dy
            return table
        """
    finding = checked(tmp_path, text, exercise, in_process)
    assert finding.mistake == "last place wins"
    assert finding == checked(tmp_path, text, exercise)
    assert capfd.readouterr().out.startswith("seen by the learner\n")


def test_a_loop_without_end_is_stopped_and_told_with_its_line(tmp_path) -> None:
    text = "def softmax_backward(dp, p):\n    while True:\n        dp = dp + p\n"
    finding = checked(tmp_path, text, how=lambda exercise, path: in_process(exercise, path, 2.5))
    assert not finding.passed
    line, told = finding.lines
    assert line in ("line 2: while True:", "line 3: dp = dp + p")
    assert told.startswith("still running after 2.5 seconds; does a loop never end?")


def test_a_crash_is_told_with_its_line(tmp_path) -> None:
    text = "import ctypes\ndef softmax_backward(dp, p):\n    return ctypes.string_at(0)\n"
    finding = checked(tmp_path, text, how=in_process)
    assert finding.lines == (
        "line 3: return ctypes.string_at(0)",
        "the process crashed: Segmentation fault",
    )


def test_a_process_that_ends_by_itself(tmp_path) -> None:
    finding = checked(tmp_path, "import os\ndef softmax_backward(dp, p):\n    os._exit(7)\n", how=in_process)
    assert finding.lines == ("the process ended with status 7 before the check was done",)


def test_files_beside_the_learners_are_found_and_shadow_nothing(tmp_path) -> None:
    (tmp_path / "json.py").write_text("raise ValueError('not this one')")
    (tmp_path / "helpers.py").write_text("def through(dp, p):\n    return p * (dp - (p * dp).sum(-1, keepdims=True))\n")
    text = "import json, helpers\nsoftmax_backward = helpers.through\n"
    assert checked(tmp_path, text, how=in_process) == Finding(True)


# --- comparing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("observed", "expected", "text"),
    [
        (np.array([1.0, np.nan]), np.array([1.0, 2.0]), "y[1] is nan, but 2 is right; 1 of 2 elements are wrong"),
        (
            np.array([1.0, np.inf]),
            np.array([1.0, -np.inf]),
            "y[1] is inf, but -inf is right; 1 of 2 elements are wrong",
        ),
        (2.0, 3.0, "y is 2, but 3 is right"),
        (np.ones(1) + 1e-8, np.ones(1), "y[0] is 1.0000000099999999, but 1 is right"),
        (
            np.float32([0.1]),
            np.array([0.1]),
            "y is float32, but float64 is right: the numbers that came in are float64",
        ),
        ([1.0, 2.0], np.ones(2), "y is [1.0, 2.0], a list, but an array of shape (2,) is right"),
        (None, np.ones((2, 3)), "y is None, but an array of shape (2, 3) is right"),
        (np.float32([1]), np.array([1.0]), "y is float32, but float64 is right"),
        (np.ones((2, 1)), np.ones(2), "y has shape (2, 1), but (2,) is right"),
        ([(b"a", b"b")], [(b"a", b"c")], "y[0][1] is b'b', but b'c' is right"),
        ([1, 2], [1, 2, 3], "y has 2 elements, but 3 are right"),
        ([np.ones(2), np.ones(2)], [np.ones(2), np.zeros(2)], "y[1][0] is 1, but 0 is right; 2 of 2 elements"),
        (None, [1], "y is None, but [1] is right"),
        ("a ring", "more", "y is 'a ring', but 'more' is right"),
        (False, True, "y is False, but True is right"),
        (np.array([True]), np.array([False]), "y[0] is True, but False is right"),
    ],
)
def test_a_difference_in_words(observed, expected, text) -> None:
    assert not same(observed, expected, 1e-9)
    assert difference("y", observed, expected, 1e-9).startswith(text)


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        (np.array([1.0, np.nan, np.inf]), np.array([1 + 1e-11, np.nan, np.inf])),
        (np.array([1e-12, 1.0]), np.array([0.0, 1.0])),
        (np.float32([1.000001]), np.float32([1])),
        (3, np.float64(3)),
        ([[1, 2]], ((1, 2),)),
        ({"a": np.ones(2)}, {"a": np.ones(2)}),
        (np.array([1, 0]), np.array([True, False])),
    ],
)
def test_results_that_are_equal(observed, expected) -> None:
    assert same(observed, expected, 1e-9)


def test_inputs_in_words() -> None:
    inputs = dict(x=np.float32([[1, 2]]), ids=np.array([1, 2]), t=3, parts=[np.ones((2, 2)), [np.zeros(9)]], f=np.sum)
    assert described(inputs) == "x (1, 2) float32, ids [1, 2], t 3, parts [(2, 2), [(9,)]], f sum"


def test_an_interrupted_process_says_its_line_alone(tmp_path, capfd) -> None:
    """Ctrl-C in a loop without end shows no line of the program's own."""
    text = """
        import os, signal
        def softmax_backward(dp, p):
            os.kill(os.getpid(), signal.SIGINT)
            while True:
                pass
        """
    finding = checked(tmp_path, text, how=in_process)
    assert not finding.passed
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 1
    assert re.fullmatch(r"line \d+: (os.kill.*|while True:|pass)", told[0])
