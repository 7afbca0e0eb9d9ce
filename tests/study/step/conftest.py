"""Pages of traced steps, made once for all tests of the stepper's page."""

from __future__ import annotations

from pathlib import Path

import pytest

from minillm.study.step.compare import compare_traces
from minillm.study.step.page import write_page
from minillm.study.step.trace import StepTrace
from tests.study.step.models import traced
from tests.study.step.pages import TOKENS, wrong_swiglu


@pytest.fixture(scope="session")
def trace() -> StepTrace:
    return traced(tokens=TOKENS)


@pytest.fixture(scope="session")
def page(trace: StepTrace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(trace, tmp_path_factory.mktemp("page") / "step.html")


@pytest.fixture(scope="session")
def comparison():
    wrong = traced("llama", mutations={"swiglu": wrong_swiglu})
    return compare_traces(traced("llama"), wrong, titles=("right", "wrong"))
