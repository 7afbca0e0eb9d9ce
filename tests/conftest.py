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

# How long an example takes says nothing on a shared machine. CI draws more of them.
settings.register_profile("shared machine", deadline=None, max_examples=200 if os.environ.get("CI") else 100)
settings.load_profile("shared machine")

HERE = Path(__file__).parent
LEFT_OUT = pytest.StashKey[int]()  # the number of slow tests that do not run

# Folders and files that take minutes together: they compile kernels, start processes or train models. What they test
# in the engine is tested by others too; `pytest -m slow` runs them, and so does naming one of them or its folder.
SLOW = (
    "commands/test_cli_streams.py",
    "commands/test_convert.py",
    "commands/test_finetune_translate.py",
    "evaluation/test_harness.py",
    "exercises/test_kernels.py",
    "exercises/test_ranks.py",
    "kernels",
    "models/test_more_heads.py",
    "study/doctor/test_planted.py",
    "study/ledger/test_faults.py",
    "study/plan/test_search.py",
    "test_guide.py",
    "training/test_answers_on_a_device.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that download a model, and slow ones, run when they are asked for; a name in tests/ asks for slow ones."""
    slow_paths = {HERE / name for name in SLOW}
    named = any(HERE in (config.invocation_params.dir / argument).resolve().parents for argument in config.args)
    for item in items:
        if not slow_paths.isdisjoint((item.path, *item.path.parents)):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("real") and "real" not in config.option.markexpr:
            item.add_marker(pytest.mark.skip(reason="downloads a model; run with pytest -m real"))
        if item.get_closest_marker("slow") and not (named or config.option.markexpr):
            item.add_marker(pytest.mark.skip(reason='slow; run with pytest -m slow, or all with -m "slow or not slow"'))
            config.stash[LEFT_OUT] = config.stash.get(LEFT_OUT, 0) + 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how many slow tests were left out, and how to run them."""
    if left_out := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{left_out} slow tests were left out; run them with: pytest -m slow")


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
