"""The exercises in CUDA: the right kernel passes, and the kernel of each listed mistake gets its own hint.

All kernels of an exercise are compiled together, under names of their own, because compiling takes a second each.
"""

from __future__ import annotations

import re
from functools import partial

import pytest

from minillm.cuda import Kernel
from minillm.exercises import exercise_named
from minillm.exercises.attempt import attempt
from minillm.exercises.grade import examine, grade
from minillm.exercises.kernel_exercise import launched
from tests.exercises.learner import KERNELS, answer, called

BARRIER = "    __syncthreads();\n"
SUMS = "for (int i = 0; i < 64; i++) total += of_thread[i];"
# Of each mistake, what stands in its kernel in place of what stands in the right one.
SOFTMAX = {
    "barrier_missing": [(f"of_thread[t] = sum;\n{BARRIER}", "of_thread[t] = sum;\n")],
    "written_outside": [
        ("float largest =", "y[t] = 0;\n    float largest ="),
        ("for (int i = t; i < columns; i += 64) y[i]", "for (int i = t; i < columns || i < 64; i += 64) y[i]"),
    ],
    "overflows": [("x[i] - largest", "x[i]")],
    "first_columns_alone": [("i < columns; i += 64", "i < min(columns, 64); i += 64")],
    "sums_not_joined": [(SUMS, "total = sum;")],
    "warps_not_joined": [(SUMS, SUMS.replace("i = 0; i < 64", "i = t / 32 * 32; i < t / 32 * 32 + 32"))],
    "first_row_alone": [("blockIdx.x * columns", "0 * columns")],
    "maximum_from_zero": [("largest = lowest<float>()", "largest = 0")],
    "not_divided": [(" / total", "")],
}
ATTENTION = {
    "no_tiles": [
        ("    __shared__ float keys[TILE][D];\n    __shared__ float values[TILE][D];\n", ""),
        ("keys[j][d]", "k[head + (first + j) * D + d]"),
        ("values[j][d]", "v[head + (first + j) * D + d]"),
        ("keys[threadIdx.x][d] = own < tokens ? k[head + own * D + d] : 0;", ""),
        ("values[threadIdx.x][d] = own < tokens ? v[head + own * D + d] : 0;", ""),
    ],
    "barrier_missing": [("        __syncthreads();\n        for (int j", "        for (int j")],
    "returned_early": [("    float query[D]", "    if (i >= tokens) return;\n    float query[D]")],
    "written_outside": [("        if (i < tokens) y[", "        y[")],
    "never_rescaled": [("sum * factor", "sum"), ("out[d] * factor", "out[d]")],
    "output_not_rescaled": [("out[d] * factor", "out[d]")],
    "sum_not_rescaled": [("sum * factor", "sum")],
    "first_tile_alone": [("first < tokens; first += TILE", "first < min(tokens, TILE); first += TILE")],
    "missing_keys_counted": [("min(TILE, tokens - first)", "TILE")],
    "scale_forgotten": [(" * scale;", ";")],
    "not_divided": [(" / sum;", ";")],
    "maximum_from_zero": [("largest = lowest<float>()", "largest = 0")],
    "overflows": [("max(largest, score)", "0.0f"), ("largest = lowest<float>()", "largest = 0")],
    "first_head_alone": [("blockIdx.y * tokens", "0 * tokens")],
}
EDITS = {"cuda-softmax": SOFTMAX, "cuda-attention": ATTENTION}
MISTAKES = [
    pytest.param(exercise, mistake, id=f"{exercise.name}-{mistake.function.__name__}")
    for exercise in KERNELS
    for mistake in exercise.mistakes
]


def edited(text: str, edits: list[tuple[str, str]]) -> str:
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a file for each exercise that has a kernel for each of its mistakes."""
    folder = tmp_path_factory.mktemp("kernels")
    for exercise in KERNELS:
        begin, kernel = re.split(r"(?=__global__)", answer(exercise).read_text(encoding="utf-8"))
        names, texts = [], []
        for name, edits in EDITS[exercise.name].items():
            names.append(f"{exercise.kernel}_{name}")
            texts.append(
                edited(kernel.partition("// instances")[0], edits).replace(f" {exercise.kernel}(", f" {names[-1]}(")
            )
        (folder / exercise.file_name).write_text(f"{begin}{''.join(texts)}\n// instances: {', '.join(names)}\n")
    return folder


@pytest.mark.parametrize(**called(KERNELS))
def test_the_right_kernel_passes(exercise, compiler) -> None:
    finding = examine(exercise, answer(exercise))
    assert finding.passed, finding


@pytest.mark.parametrize(("exercise", "mistake"), MISTAKES)
def test_a_kernel_with_a_listed_mistake_gets_its_own_hint(exercise, mistake, folder, compiler) -> None:
    name = mistake.function.__name__
    kernel = Kernel(folder / exercise.file_name, f"{exercise.kernel}_{name}")
    code = "" if name == "no_tiles" else "__shared__"
    finding = grade(exercise, partial(exercise.starter, partial(launched, kernel), code))
    assert (finding.mistake, finding.hint) == (mistake.name, mistake.hint), finding.lines


def test_what_the_compiler_says_is_told_with_its_line(tmp_path, compiler) -> None:
    exercise = exercise_named("cuda-softmax")
    path = tmp_path / "mine.cu"
    path.write_text(answer(exercise).read_text().replace("blockIdx.x * columns", "blockIdx.x * colums"))
    finding = examine(exercise, path)
    assert not finding.passed
    assert finding.lines[0] == "mine.cu cannot be loaded"
    assert "mine.cu:6" in finding.lines[1]
    assert "colums" in finding.lines[1]
    assert str(tmp_path) not in finding.lines[1]


def test_a_kernel_without_end_is_stopped_soon_and_compiling_does_not_count(tmp_path, compiler) -> None:
    exercise = exercise_named("cuda-softmax")
    path = tmp_path / "mine.cu"
    text = answer(exercise).read_text()
    path.write_text(
        text.replace("float largest =", "volatile int turns = 1;\n    while (turns) {}\n    float largest =")
    )
    finding = attempt(exercise, path, 0.1)  # less than the compiler takes
    assert not finding.passed
    assert finding.lines[-1].startswith("still running after 0.1 seconds; does a loop never end?")
    assert exercise.seconds < exercise.compiling  # a loop is not given the compiler's time
    path.write_text(text.replace("float largest =", "float largest +="))
    assert attempt(exercise, path, 0.1).lines[0] == "mine.cu cannot be loaded"


def test_an_empty_kernel_is_a_wrong_one(tmp_path, compiler) -> None:
    exercise = exercise_named("cuda-softmax")
    path = tmp_path / "mine.cu"
    path.write_text(exercise.text(path))
    finding = examine(exercise, path)
    assert not finding.passed
    assert finding.lines[1].startswith("y[0, 0] is nan, but ")


def test_shared_memory_in_a_comment_does_not_count(tmp_path, compiler) -> None:
    exercise = exercise_named("cuda-attention")
    path = tmp_path / "mine.cu"
    text = edited(answer(exercise).read_text(), ATTENTION["no_tiles"])
    path.write_text(text.replace("constexpr", "// __shared__\n/* __shared__\n */ constexpr"))
    assert examine(exercise, path).mistake == "no tiles"
