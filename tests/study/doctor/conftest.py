"""The data of all tests here, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.study.doctor.made import write_data


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("doctor")
    write_data(path)
    return path
