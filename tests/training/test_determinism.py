"""One seed gives the same bytes in other processes, on more threads, under other hash seeds and Pythons."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import hashlib, sys
import numpy as np
import minillm
from minillm import data, optim
from minillm.models.gpt2 import GPT2, GPT2Config

ids = np.random.default_rng(0).integers(0, 61, 4000)
batches = data.Batches(ids, batch_size=4, context=16, seed=1337)
minillm.manual_seed(1337)
model = GPT2(GPT2Config(vocab_size=61, context=16, layers=2, heads=2, channels=32, dropout=0.1))
optimizer = optim.AdamW(optim.decay_groups(model.parameters(), 0.1))
for step in range(5):
    optimizer.zero_grad()
    model.loss(*batches.batch(step)).backward()
    optimizer.clip_grad_norm(1.0)
    optimizer.step()
digest = hashlib.sha256()
for name, array in model.state_dict().items():
    digest.update(name.encode() + array.tobytes())
print(digest.hexdigest(), np.__version__, "%d.%d" % sys.version_info[:2])
"""


def trained(python: str = sys.executable, **environment: str) -> tuple[str, str, str]:
    """The digest of the weights after five steps in a fresh process, NumPy's version and Python's."""
    one = {"MINILLM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [python, "-W", "ignore", "-c", PROGRAM]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **one, **environment}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    digest, numpy, version = found.stdout.split()
    return digest, numpy, version


def test_two_processes_hash_seeds_and_threads() -> None:
    """These products are too small for the BLAS to share, and our own cutting changes no bit."""
    expected = trained(PYTHONHASHSEED="0")
    for environment in ({"PYTHONHASHSEED": "0"}, {"PYTHONHASHSEED": "12345"}, {"MINILLM_THREADS": "3"}):
        assert trained(**environment) == expected, environment
    assert trained(PYTHONHASHSEED="0")[0] != ""
    assert len(expected[0]) == 64


@pytest.mark.slow
def test_other_pythons() -> None:
    """Each Python from 3.11 to 3.14 that is here with the NumPy of this one; the reason says which were left out."""
    expected, numpy, here = trained()
    tried, left_out = [], []
    for version in ("3.11", "3.12", "3.13", "3.14"):
        python = os.environ.get(f"MINILLM_PYTHON_{version.replace('.', '_')}") or shutil.which(f"python{version}")
        if version == here or python is None:
            left_out += [] if version == here else [f"{version} is not here"]
            continue
        probe = subprocess.run(
            [python, "-c", "import numpy, regex; print(numpy.__version__)"], capture_output=True, text=True
        )
        if probe.stdout.strip() != numpy:
            left_out.append(f"{version} has {probe.stdout.strip() or 'no NumPy or regex'}, not NumPy {numpy}")
            continue
        assert trained(python) == (expected, numpy, version)
        tried.append(version)
    if not tried:
        pytest.skip(f"only Python {here} could be tried: {'; '.join(left_out)}")
    print(f"equal on Python {here} and {', '.join(tried)}; left out: {'; '.join(left_out) or 'none'}")
