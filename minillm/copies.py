"""A warning where the current folder holds another copy of minillm than the one that runs.

In a checkout, after a plain `pip install .`, programs import the installed copy, and edits in the checkout do nothing:
the tests of a change would pass or fail without it.
"""

from __future__ import annotations

import os
import warnings

WARNED = "MINILLM_WARNED_OF_COPY"  # in the environment, so that the ranks that a process starts do not say it again


def warn_of_another_copy() -> None:
    """Warn if ./minillm is not the package that was imported. It costs one look at the current folder."""
    try:
        here, imported = os.path.abspath("minillm"), os.path.dirname(os.path.abspath(__file__))
        if WARNED in os.environ or not os.path.isfile(os.path.join(here, "autograd.py")):
            return
        if os.path.samefile(here, imported):
            return
    except OSError:  # the current folder was deleted, or cannot be read
        return
    os.environ[WARNED] = "1"
    warnings.warn(
        f"minillm: the copy in {imported} runs, not the one in {here}; edits there have no effect. "
        f"Run `pip install -e .` in {os.path.dirname(here)} to use that one, or work in another folder",
        stacklevel=3,
    )
