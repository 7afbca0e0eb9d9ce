"""Exercises: a learner's own functions, checked so that each usual mistake is answered by its own hint.

`minillm exercise` is the way to them; exercise.py says what an exercise is, and course/ has one in each file.
"""

from __future__ import annotations

import importlib
from typing import Any

from minillm.errors import InputError, did_you_mean
from minillm.exercises.exercise import Exercise

ORDER = """
chain-rule unbroadcast matmul-backward softmax-forward softmax-backward layernorm-backward gelu-backward
embedding-backward cross-entropy causal-mask attention-forward attention-backward rope kv-cache sampling
adamw-step learning-rate accumulate-and-clip bpe-merges lora-backward dpo-loss ring-all-reduce zero-step
cuda-softmax cuda-attention
""".split()


def exercise_named(name: str) -> Exercise:
    """The exercise of a name, such as softmax-backward.

    Raises: InputError for a name that no exercise has.
    """
    known = name.replace("_", "-")
    if known not in ORDER:
        raise InputError(f"exercise: there is no exercise {name!r}{did_you_mean(known, ORDER)}")
    return importlib.import_module(f"minillm.exercises.course.{known.replace('-', '_')}").EXERCISE


def inputs_of(name: str, case: int) -> dict[str, Any]:
    """The arguments of a case, counted from 1 as a check does, to try a function on them by hand."""
    cases = exercise_named(name).all_cases()
    if not 1 <= case <= len(cases):
        raise InputError(f"inputs_of: {name} has no case {case}; choose 1 to {len(cases)}")
    return cases[case - 1]
