"""An exported stop is a program that repeats its numbers, in a process of its own, and notices a changed one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minillm.errors import InputError
from minillm.study.step.export import export
from tests.study.step.models import cached, traced

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("family", ["gpt2", "llama", "roberta", "bart", "xlnet"])
def test_every_stop_repeats_its_numbers(family, tmp_path):
    trace = cached(family)
    seen = set()
    for stop in trace.stops:
        if stop.kind in ("tokens", "loss") or (stop.kind, stop.op, stop.scope[:3]) in seen:
            continue
        seen.add((stop.kind, stop.op, stop.scope[:3]))
        source, _ = export(trace, stop, tmp_path)
        exec(compile(source.read_text("utf-8"), str(source), "exec"), {"__file__": str(source), "__name__": "alone"})
    assert len(seen) > 30


@pytest.mark.parametrize(
    "title", ["layernorm backward in h.1.ln_1", "attention forward in h.0.attn", "AdamW update in wte"]
)
def test_a_program_runs_alone_and_notices_another_number(title, tmp_path):
    trace = cached("gpt2")
    source, arrays = export(trace, trace.find(title), tmp_path)
    run = lambda: subprocess.run(  # noqa: E731
        [sys.executable, source.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    first = run()
    assert first.returncode == 0, first.stderr
    assert "the same numbers" in first.stdout
    data = dict(np.load(arrays))
    name = next(name for name in data if name.startswith("expected_"))
    data[name].reshape(-1)[0] += 1e-6
    np.savez(arrays, **data)
    second = run()
    assert second.returncode == 1
    assert "Arrays are not equal" in second.stderr


def test_what_cannot_be_exported_says_why(tmp_path):
    trace = traced("gpt2")
    for stop, reason in [(trace.stops[0], "runs no function"), (traced("gpt2", largest=50).stops[1], "left out")]:
        with pytest.raises(InputError, match=reason):
            export(trace, stop, tmp_path)
    stop = trace.find("layernorm backward")
    stop.partner = None
    with pytest.raises(InputError, match="was not traced"):
        export(trace, stop, tmp_path)
