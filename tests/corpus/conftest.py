"""Every test of the pipeline needs its packages (the extra `data`); where one is missing, all of them are skipped."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGES = ("resiliparse", "fastwarc", "ftfy", "py3langid", "zstandard")
MISSING = [name for name in PACKAGES if find_spec(name) is None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if MISSING:
        skip = pytest.mark.skip(reason=f'{", ".join(MISSING)} is not installed; pip install ".[data]"')
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(skip)
