"""Shared fixtures: the data that some tests read in place, a browser, and a seeded random generator."""

from __future__ import annotations

import os
import signal
from pathlib import Path

# One BLAS thread, set before NumPy loads it: on a busy machine, two threads wait for each other in every small product.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Programs that a test starts run the checkout too, as the tests do by pytest's `pythonpath`.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)

# A shell starts its background commands with Ctrl-C ignored, and so would be the programs that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pytest
from hypothesis import settings

from tests.browser import browsers

settings.register_profile("shared machine", deadline=None)  # how long an example takes says nothing there
settings.load_profile("shared machine")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that download a model, and slow ones, run when they are asked for; a file's name asks for slow ones."""
    named = any(".py" in argument for argument in config.invocation_params.args)
    for item in items:
        if item.get_closest_marker("real") and "real" not in config.option.markexpr:
            item.add_marker(pytest.mark.skip(reason="downloads a model; run with pytest -m real"))
        if item.get_closest_marker("slow") and not (named or config.option.markexpr):
            item.add_marker(pytest.mark.skip(reason='slow; run with pytest -m slow, or all with -m "slow or not slow"'))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real texts for tests; not part of the project, so tests that need it skip where it is absent."""
    here = Path(os.environ.get("MINILLM_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (here / "tinyshakespeare.txt").is_file():
        pytest.skip(f"no test data at {here}; set MINILLM_TEST_DATA to a folder with tinyshakespeare.txt")
    return here


@pytest.fixture(scope="session")
def browser():
    """A browser for the tests of pages, started once for all of them."""
    yield from browsers()


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed, so that a failure repeats."""
    return np.random.default_rng(1234)
