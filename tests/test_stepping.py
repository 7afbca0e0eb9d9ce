"""Every backward can be stopped in: the guide's recipes under pdb, and for each operation what a debugger would show.

In the plain engine a backward runs at most three frames below `loss.backward()`, in one frame of its own: no function
inside it, no helper that hides a line, and each line of the derivation leaves a name behind.
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minillm
from minillm import autograd, backward, nn, ops, random
from minillm.guide import chapter
from minillm.study.cases import CASES

ROOT = Path(__file__).parents[1]
GUIDE = chapter("seeing").text.replace("\\\n", "")
RECIPES = re.findall(r"^(?:MINILLM_ENGINE=plain )?(python -m pdb .*?)(?:  #.*)?$", GUIDE, re.MULTILINE)
FRAMES_BETWEEN = 3


@pytest.fixture(autouse=True)
def plain():
    """The plain engine; the dropout cases restart the default stream, which is put back."""
    place = random.default.state()
    with minillm.engine("plain"):
        yield
    random.default.set_state(place)


def session(recipe: str, commands: list[str], folder: Path) -> list[str]:
    """What pdb prints after each command, the last word of a session that begins as the guide says."""
    arguments = re.findall(r'"[^"]*"|\S+', recipe)[1:]
    environment = {**os.environ, "MINILLM_ENGINE": "plain", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, *(argument.strip('"') for argument in arguments)],
        input="\n".join([*commands, "quit"]) + "\n",
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        timeout=300,
    )
    return result.stdout.split("(Pdb) ")[1:-1]


def test_the_recipe_stops_in_layernorms_backward(tmp_path):
    recipe = next(recipe for recipe in RECIPES if "layernorm_backward" in recipe)
    ready = ["where", "p dy.shape, norm.shape, rstd.shape, weight.shape"]
    lines = ["next"] * 5 + ["p sorted(locals())", "p dbias.shape, dweight.shape, dnorm.shape"]
    where, *printed = session(recipe, ["next", *ready, *lines], tmp_path)[1:]
    functions = re.findall(r"^[> ] .*\(\d+\)(\w+)\(", where, re.MULTILINE)
    assert functions[-1] == "layernorm_backward"
    between = functions[functions.index("backward") :]
    assert between[0] == "backward"
    assert len(between) - 1 <= FRAMES_BETWEEN, between  # Tensor.backward and what it calls
    batch, time, channels = map(int, re.findall(r"\d+", printed[0])[:3])
    whole, row = (batch, time, channels), (batch, time, 1)
    assert printed[0].strip() == f"({whole}, {whole}, {row}, {(channels,)})"
    assert {"dy", "norm", "rstd", "weight", "dbias", "dweight", "dnorm"} <= set(re.findall(r"'(\w+)'", printed[-2]))
    assert printed[-1].strip() == f"({(channels,)}, {(channels,)}, {whole})"


def test_one_breakpoint_with_a_condition_stops_at_any_backward(tmp_path):
    recipe = next(recipe for recipe in RECIPES if "node.scope" in recipe)
    scope = re.search(r"node\.scope == '([\w.]+)'", recipe)[1]
    lines = inspect.getsource(backward).splitlines()
    line = next(number for number, text in enumerate(lines, 1) if "dinputs = node.backward(*arguments)" in text)
    assert re.search(r"`until (\d+)` and `step`", GUIDE)[1] == str(line)
    printed = session(recipe, ["p node.scope, node.op", f"until {line}", "step", "where"], tmp_path)
    assert re.search(r"> .*ops/(add_)?layernorm\.py\(\d+\)(add_)?layernorm_backward", printed[-1])
    assert re.fullmatch(rf"\('{scope}', Op\((add_)?layernorm\)\)", printed[0].strip())


def stopped_in(op, case) -> list[tuple[int, list[str], list[str]]]:
    """For each backward of an operation that a case runs: frames up to Tensor.backward, names at first and at last."""
    found: list[tuple[int, list[str], list[str]]] = []
    code = op.backward.__code__

    def trace(frame, event, _):
        if frame.f_code is not code:
            return None
        depth, above = 0, frame.f_back
        while above is not None and above.f_code is not autograd.Tensor.backward.__code__:
            depth, above = depth + 1, above.f_back
        first = sorted(frame.f_locals)

        def at_line(frame, event, _):
            if event == "return":
                found.append((depth + 1, first, sorted(frame.f_locals)))
            return at_line

        return at_line

    arrays = case.make_arrays(np.random.default_rng(0))
    inputs = [minillm.tensor(x, requires_grad=True) if x.dtype.kind == "f" else minillm.tensor(x) for x in arrays]
    y = case.fn(*inputs)
    outputs = [one for one in (y if isinstance(y, (tuple, list)) else (y,)) if one.requires_grad]
    loss = sum(((one * one).sum() for one in outputs[1:]), (outputs[0] * outputs[0]).sum())
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        loss.backward()
    finally:
        sys.settrace(before)
    return found


@pytest.mark.parametrize("op", ops.OPS, ids=lambda op: op.name)
def test_every_backward_runs_in_one_frame_with_its_names(op):
    case = next(case for case in CASES if case.op == op.name)
    stops = stopped_in(op, case)
    assert stops, f"no backward of {op.name} ran in the case {case.name}"
    given, *_ = inspect.signature(op.backward).parameters
    assert re.fullmatch(r"d[a-z_]+", given), f"{op.name}: the gradient of the output is called {given}"
    assert given not in ("dout", "d_out"), f"{op.name}: call the gradient of the output y dy"
    inner = [one for one in op.backward.__code__.co_consts if inspect.iscode(one) and one.co_name not in COMPREHENSIONS]
    assert not inner, f"{op.name}: a function inside of the backward hides its lines from a debugger"
    for frames, first, last in stops:
        assert frames <= FRAMES_BETWEEN
        assert {given, "saved"} <= set(first)
        assert len(last) >= len(first)


COMPREHENSIONS = ("<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>")


def test_a_condition_on_the_scope_finds_every_operation_of_a_model():
    """`node.scope` and `node.op`, which the condition of a breakpoint reads, name each operation of a layer."""
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    model.assign_names()
    seen = []
    with autograd.observe(on_backward=lambda call: seen.append((call.scope, call.op.name))):
        model(minillm.tensor(np.ones((2, 4)))).sum().backward()
    assert seen == [("", "sum"), ("1", "layernorm"), ("0", "linear")]
