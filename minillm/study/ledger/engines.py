"""Claims about engines and dtypes: one step is the same by every pair of functions."""

from __future__ import annotations

import shutil
from typing import Any

from minillm.device import check_device
from minillm.engine import engine
from minillm.errors import DeviceError
from minillm.study.ledger.claim import DoesNotApply, Measured
from minillm.study.ledger.rounding import Outcome, bound_of, compared
from minillm.study.ledger.steps import trained
from minillm.study.ledger.subject import Subject


def fast_is_plain(subject: Subject) -> Measured:
    """A step of the fast pairs against one of the plain pairs, with equal dropout masks."""
    return _compared(subject, _in_engine(subject, "fast"))


def kernels_are_plain(subject: Subject) -> Measured:
    """A step of the kernels against one of the plain pairs: on a GPU if there is one, else in the emulator."""
    try:
        check_device("cuda")
    except DeviceError:
        if shutil.which("g++") is None:
            raise DoesNotApply(
                "there is no GPU, and g++, which compiles kernels for the emulator, is missing"
            ) from None
        return _compared(subject, _in_engine(subject, "emulate"), "emulated")
    return _compared(subject, _in_engine(subject, "auto", "cuda"), "on a GPU")


def _in_engine(subject: Subject, name: str, device: str = "cpu") -> Outcome:
    model = subject.model().to(device)
    with engine(name):
        return trained(subject.training, model, device=device)


def _compared(subject: Subject, found: Outcome, remark: str = "") -> Measured:
    difference, where = compared(found, _in_engine(subject, "plain"))
    return Measured(difference, subject.bound, ", ".join(filter(None, [where, remark])))


def float32_is_near(subject: Subject) -> Measured:
    """A step in float32 against one in float64."""
    found: Any = trained(subject.training, subject.model("float32"))
    difference, where = compared(found, subject.reference)
    return Measured(difference, bound_of(subject.size, subject.sensitivity, "float32"), where)
