"""Arithmetic problems, made here, whose answers a program can check: for reinforcement learning from a reward.

    {"prompt": "48+7=", "completion": "55"}

`make_problems` makes different problems, always the same ones for a seed; `write_problems` writes them as records of a
prompt and its completion, from which a model can learn first (`minillm finetune sft`), and be rewarded then
(`minillm finetune grpo`). A reward compares what a model has written with the answer, and is 1 or 0; NaN would say
that the answer could not be judged.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minillm.errors import InputError, did_you_mean

OPERATIONS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class Problem(NamedTuple):
    """A text, and what should follow it."""

    prompt: str  # such as "48+7="
    answer: str  # "55"


def make_problems(count: int, digits: int = 2, operations: str = "+", seed: int = 0) -> list[Problem]:
    """Different problems in random order, whose numbers have up to `digits` digits; the same ones for the same seed.

    Raises: InputError for more problems than there are, or an unknown operation.
    """
    if not 1 <= digits <= 8 or not operations:
        raise InputError(f"make_problems: digits is {digits} and operations {operations!r}; give 1 to 8, and '+'")
    for one in operations:
        if one not in OPERATIONS:
            raise InputError(f"make_problems: there is no operation {one!r}{did_you_mean(one, OPERATIONS)}")
    numbers, kinds = 10**digits, len(operations)
    total = numbers * numbers * kinds
    if not 0 <= count <= total:
        raise InputError(f"make_problems: there are {total} different problems, not {count}; give more digits")
    chosen = np.random.default_rng(seed).choice(total, count, replace=False)  # (count,), a number for each problem
    return [_problem(int(one), numbers, operations) for one in chosen]


def _problem(number: int, numbers: int, operations: str) -> Problem:
    """The problem with this number among all whose operands are below `numbers`."""
    kind, place = divmod(number, numbers * numbers)
    (a, b), sign = divmod(place, numbers), operations[kind]
    return Problem(f"{a}{sign}{b}=", str(OPERATIONS[sign](a, b)))


def write_problems(path: str | Path, problems: Sequence[Problem]) -> None:
    """Write the problems as a .jsonl file of prompts and completions."""
    lines = _lines(problems)
    Path(path).write_text("".join(lines), encoding="utf-8")


def _lines(problems: Sequence[Problem]) -> Iterator[str]:
    for prompt, answer in problems:
        yield json.dumps({"prompt": prompt, "completion": answer}) + "\n"


# --- rewards -------------------------------------------------------------------------------------------------------


def exact_reward(answer: str, written: str) -> float:
    """1 if the text is the answer, but for white space around it."""
    return float(written.strip() == answer.strip())


def number_reward(answer: str, written: str) -> float:
    """1 if the last number in the text is the last one in the answer, as in "so there are 55 left."; else 0.

    An answer without a number cannot be judged: NaN.
    """
    wanted, found = NUMBER.findall(answer.replace(",", "")), NUMBER.findall(written.replace(",", ""))
    if not wanted:
        return float("nan")
    return float(bool(found) and float(found[-1]) == float(wanted[-1]))


REWARDS: dict[str, Callable[[str, str], float]] = {"exact": exact_reward, "number": number_reward}
