"""Arithmetic problems: right, different, the same for a seed; and what their rewards accept."""

from __future__ import annotations

import math

import pytest

from minillm.data.arithmetic import Problem, exact_reward, make_problems, number_reward, write_problems
from minillm.data.instructions import read_instructions
from minillm.errors import InputError


def test_problems_are_right_and_different() -> None:
    problems = make_problems(300, 1, "+-*")
    assert len({problem.prompt for problem in problems}) == 300  # all that there are
    for prompt, answer in problems:
        assert eval(prompt.removesuffix("=")) == int(answer)
    assert {"3-9=", "9*9=", "0+0="} <= {problem.prompt for problem in problems}


def test_a_seed_names_the_problems() -> None:
    assert make_problems(20, 3, seed=5) == make_problems(20, 3, seed=5)
    assert make_problems(20, 3, seed=5) != make_problems(20, 3, seed=6)


def test_they_are_read_as_prompts_and_completions(tmp_path) -> None:
    write_problems(tmp_path / "sums.jsonl", [Problem("1+2=", "3"), Problem("9-12=", "-3")])
    found = read_instructions(tmp_path / "sums.jsonl").items
    assert [[message.content for message in one.messages] for one in found] == [["1+2=", "3"], ["9-12=", "-3"]]
    assert all(one.raw for one in found)


def test_rewards() -> None:
    assert [exact_reward("55", text) for text in ("55", " 55\n", "155", "5", "", "55.")] == [1, 1, 0, 0, 0, 0]
    texts = ("55", "so 50 + 5 is 55.", "55 or 56", "no", "1,055", "55.0")
    assert [number_reward("#### 55", text) for text in texts] == [1, 1, 0, 0, 0, 1]
    assert number_reward("-3", "9-12=-3") == 1
    assert math.isnan(number_reward("fifty", "55"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((101, 1), "there are 100 different problems, not 101; give more digits"),
        ((5, 0), "digits is 0"),
        ((5, 9), "digits is 9 and operations '\\+'; give 1 to 8"),
        ((5, 1, "/"), "there is no operation '/'"),
    ],
)
def test_what_cannot_be_made_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=f"make_problems: {message}"):
        make_problems(*arguments)
