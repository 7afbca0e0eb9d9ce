"""Two copies of minillm on one machine: who works in the folder of one and runs the other is told so, once."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import minillm

CHECKOUT = Path(minillm.__file__).parents[1]
IMPORT = "import minillm; print(minillm.__file__)"


def run(folder: Path, command: list[str], path: Path = CHECKOUT) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "MINILLM_WARNED_OF_COPY"}
    environment |= {"PYTHONPATH": str(path), "PYTHONWARNINGS": "default"}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A folder that holds a copy of the package and of the kernels, as a wheel installs them."""
    folder = tmp_path_factory.mktemp("site")
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(CHECKOUT / "minillm", folder / "minillm", ignore=without)
    shutil.copytree(CHECKOUT / "kernels", folder / "minillm" / "_kernels", ignore=without)
    return folder


@pytest.fixture
def script(tmp_path) -> list[str]:
    """A program in another folder, so that the current one is not searched."""
    (tmp_path / "program.py").write_text(IMPORT)
    return [str(tmp_path / "program.py")]


def test_another_copy_in_the_current_folder_is_told_once_with_what_to_do(copy, script):
    result = run(CHECKOUT, script, path=copy)  # what a person does: edit the checkout, and run what is installed
    assert result.stdout.strip() == str(copy / "minillm" / "__init__.py")
    warning = f"minillm: the copy in {copy / 'minillm'} runs, not the one in {CHECKOUT / 'minillm'}"
    assert result.stderr.count(warning) == 1, result.stderr
    assert f"Run `pip install -e .` in {CHECKOUT}" in result.stderr
    assert "program.py:1: UserWarning" in result.stderr, "the line that imports it"


@pytest.mark.parametrize("command", [["-P", "-m", "minillm", "--version"], ["-P", "-c", "import minillm.cli"]])
def test_the_command_tells_it_too(copy, command):
    assert run(CHECKOUT, command, path=copy).stderr.count("edits there have no effect") == 1


def test_a_process_that_it_starts_does_not_tell_it_again(copy, tmp_path):
    (tmp_path / "parent.py").write_text(
        f"import subprocess, sys, minillm\nsubprocess.run([sys.executable, '-P', '-c', {IMPORT!r}], check=True)"
    )
    assert run(CHECKOUT, [str(tmp_path / "parent.py")], path=copy).stderr.count("edits there have no effect") == 1


def test_one_copy_is_no_matter_for_a_warning(copy, script, tmp_path):
    module = ["-m", "minillm", "--version"]
    for folder, command, path in [
        (CHECKOUT, script, CHECKOUT),  # the checkout itself, as in the tests or after pip install -e
        (CHECKOUT, module, copy),  # Python searches the current folder first, so that it is the checkout that runs
        (copy, script, copy),  # in the folder where it is installed
        (tmp_path, script, copy),  # a wheel, anywhere else
        (tmp_path, module, copy),
        (CHECKOUT / "tests", script, CHECKOUT),
    ]:
        result = run(folder, command, path)
        assert result.stderr == "", (folder, command, path)
        assert result.stdout


def test_a_folder_of_that_name_that_is_something_else(script, tmp_path):
    (tmp_path / "minillm").mkdir()
    (tmp_path / "minillm" / "notes.txt").write_text("mine")
    assert run(tmp_path, script).stderr == ""


def test_the_version_is_the_one_of_the_package(tmp_path):
    shown = run(tmp_path, ["-m", "minillm", "--version"]).stdout
    assert shown == f"minillm {minillm.__version__}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+", minillm.__version__)
