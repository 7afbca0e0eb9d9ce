"""The pytest plug-in: a person's wrong backward fails the test with a report of the wrong number and its cause."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from minillm.testing import pytest_minillm

ROOT = Path(__file__).parents[1]

TESTS = """
import numpy as np
import pytest
from minillm.autograd import Op

RNG = np.random.default_rng(0)


def scale_forward(x, weight):
    return x * weight, (x, weight)


def summed(dy, saved):
    x, weight = saved
    return dy * weight, (dy * x).sum(axis=0)


def doubled(dy, saved):
    dx, dweight = summed(dy, saved)
    return 2 * dx, dweight


def not_summed(dy, saved):
    x, weight = saved
    return dy * weight, dy * x


def transposed(dy, saved):
    dx, dweight = summed(dy, saved)
    return dx.T.copy(), dweight


def of_another_sign(dy, saved):
    dx, dweight = summed(dy, saved)
    return dx, -dweight


def one_element(dy, saved):
    dx, dweight = summed(dy, saved)
    dx = dx.copy()
    dx[2, 1] += 1.5
    return dx, dweight


@pytest.mark.parametrize("backward", [summed, doubled, not_summed, transposed, of_another_sign, one_element])
def test_scale(check_gradients, backward):
    own = Op("scale", scale_forward, backward)
    check = check_gradients(lambda x, weight: own(x, weight), RNG.normal(size=(3, 3)), RNG.normal(size=3))
    assert check.elements == 12


def test_settings_are_passed_on(check_gradients):
    own = Op("scale", scale_forward, summed)
    assert check_gradients(own, RNG.normal(size=(3, 3)), RNG.normal(size=3), variants=False).variants == ()


def test_other_errors_stay_what_they_are(check_gradients):
    with pytest.raises(ZeroDivisionError):
        check_gradients(lambda x: 1 / 0, RNG.normal(size=3))
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("own")
    (folder / "test_own.py").write_text(TESTS, encoding="utf-8")
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "minillm.testing.pytest_minillm",
        "-q",
        "--color=no",
        "test_own.py",
    ]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True).stdout


def report(output: str, name: str) -> str:
    """The part of the output about one test."""
    return output.split(f"test_scale[{name}] ")[1].split("\n____")[0]


def test_right_gradients_pass_and_wrong_ones_fail(output):
    assert "5 failed, 3 passed" in output, output


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("doubled", ["argument 0 (x)", "off by the constant factor 2", "relative error 5.0e-01"]),
        ("not_summed", ["input 1", "a missing sum over the broadcast axes"]),
        ("transposed", ["argument 0 (x)", "axes 0 and 1 are transposed"]),
        ("of_another_sign", ["argument 1 (weight)", "the sign is flipped", "relative error 2.0e+00"]),
        ("one_element", ["worst at index (2, 1) of shape (3, 3)", "1 of 9 elements"]),
    ],
)
def test_the_failure_is_a_report(output, name, told):
    text = report(output, name)
    for one in told:
        assert one in text
    if name != "not_summed":
        assert "(central differences)" in text
        assert "(backward)" in text


def test_the_failure_shows_the_line_of_the_test_and_no_inside_of_minillm(output):
    text = report(output, "doubled")
    assert ">       check = check_gradients(" in text or ">   " in text
    assert "minillm/testing" not in text.replace("minillm.testing", "")
    assert "def _check_given" not in text


def test_pytest_knows_it_once_minillm_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["entry-points"]["pytest11"] == {"minillm": "pytest_minillm"}
    settings = project["tool"]["setuptools"]
    assert "pytest_minillm" in settings["packages"]
    folder = ROOT / settings["package-dir"]["pytest_minillm"]
    assert folder / "__init__.py" == Path(pytest_minillm.__file__)
    code = f"import sys; sys.path.insert(0, {str(folder.parent)!r}); import pytest_minillm; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pytest_minillm" in shown.stdout.split()
    assert not {"minillm", "numpy"} & set(shown.stdout.split()), "pytest would run an installed copy, not the checkout"
