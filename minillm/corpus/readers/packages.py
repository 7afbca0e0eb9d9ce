"""Packages of the extras, which are imported by the functions that need them."""

from __future__ import annotations

import functools
import importlib.util

from minillm.errors import InputError


@functools.cache
def check_package(package: str, what: str, extra: str = "data") -> None:
    """Raise InputError where a package is missing; `what` is what needs it."""
    if importlib.util.find_spec(package) is None:
        raise InputError(f'extract: {what} needs {package}; pip install ".[{extra}]"')
