"""A claim of the ledger: one sentence that numbers can prove wrong, and the verdict on it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from minillm.study.ledger.subject import Subject


class DoesNotApply(Exception):
    """A claim says nothing about this model; the text of the exception is the reason."""


class Measured(NamedTuple):
    """A difference between two computations that should agree, and the bound that rounding explains.

    Both are relative to the largest number that is compared; a bound of 0 demands equal bits.
    """

    difference: float
    bound: float
    remark: str = ""  # where the difference is largest, or what was compared


class Claim(NamedTuple):
    """A claim: the name for `--only`, the sentence, and the function that measures it on a model.

    shown_by: where it fails, the commands that show more, with {step} for `minillm step` of the model.
    """

    name: str
    sentence: str
    measure: Callable[[Subject], Measured]
    shown_by: str = ""


class Verdict(NamedTuple):
    """The outcome of one claim; difference and bound are None where it does not apply or where it raised an error."""

    claim: str
    sentence: str
    difference: float | None
    bound: float | None
    verdict: Literal["holds", "fails", "does not apply"]
    remark: str
    seconds: float
    command: str  # repeats this claim alone


def judge(claim: Claim, subject: Subject) -> Verdict:
    """Measure a claim.

    An error fails it. So does a bound of 1 or more: two numbers that differ by their own size would then pass.
    """
    start = time.perf_counter()
    difference = bound = None
    verdict: Literal["holds", "fails", "does not apply"] = "fails"
    try:
        difference, bound, remark = claim.measure(subject)
    except DoesNotApply as reason:
        verdict, remark = "does not apply", str(reason)
    except Exception as error:
        notes = getattr(error, "__notes__", [])
        remark = "\n".join([f"{type(error).__name__}: {error}", *notes])
    else:
        if not bound < 1:
            remark = f"rounding alone may move the result by {bound:.1g} of its size, so nothing can be said"
        elif math.isfinite(difference) and difference <= bound:
            verdict = "holds"
    if verdict == "fails" and claim.shown_by:
        remark += "; " + claim.shown_by.format(step=subject.command.replace("minillm check", "minillm step", 1))
    seconds = time.perf_counter() - start
    command = f"{subject.command} --only {claim.name}"
    return Verdict(claim.name, claim.sentence, difference, bound, verdict, remark, seconds, command)
