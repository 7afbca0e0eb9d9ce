"""Fixtures of the exercises' tests."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture
def compiler() -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed, and kernels in the emulator are compiled by it")
