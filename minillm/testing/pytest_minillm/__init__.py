"""A pytest plug-in: `check_gradients` as a fixture, for the tests of operations of one's own.

    def test_my_op(check_gradients):
        check_gradients(my_op, np.random.default_rng(0).normal(size=(3, 4)))

It takes what `minillm.testing.check_gradients` takes, and returns what that returns. A wrong gradient fails the test
with a report in place of a traceback: which argument, which element, the number of the backward beside that of a
central difference, the relative error, and the cause where it is certain, such as a factor, a transposition, or a sum
over a broadcast axis that is missing.

Installing minillm makes the plug-in known to pytest (entry point `pytest11` in pyproject.toml), as `pytest_minillm`, a
package beside minillm: so pytest, which loads it before all else, does not import minillm, nor NumPy, before a test
asks for the fixture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def check_gradients() -> Callable[..., Any]:
    """minillm.testing.check_gradients, whose report is the failure of the test."""
    from minillm.testing import GradientError
    from minillm.testing import check_gradients as check

    def checked(fn: Callable, *arrays: Any, **settings: Any) -> Any:
        __tracebackhide__ = True
        try:
            return check(fn, *arrays, **settings)
        except GradientError as error:
            notes = getattr(error, "__notes__", [])
            report = "\n".join([str(error), *notes])
        pytest.fail(report)

    return checked
