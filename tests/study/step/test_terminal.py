"""Scripted walks in the terminal: each command does what the help says, and a walked step is the step."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

import minillm
import minillm.study.step
from minillm import ops, study
from minillm.autograd import Op, Tensor
from minillm.study.describe.abstract_step import loss_of
from minillm.study.step.terminal import COMMANDS, HELP, Walk
from minillm.study.step.trace import StepTrace
from tests.study.step.models import small_batch, small_model, traced


def walked(*commands: str, mutations=None) -> tuple[str, StepTrace]:
    """What a walk through a step of a small GPT-2 prints, and its trace."""
    out = io.StringIO()
    walk = Walk(io.StringIO("\n".join([*commands, ""])), out)
    trace = traced("gpt2", on_line=walk.on_line, mutations=mutations)
    return out.getvalue(), trace


def answers(text: str) -> list[str]:
    """What was printed after each command."""
    return [part.strip() for part in text.split("(step) ")[1:]]


def test_a_walk_line_by_line_shows_the_arrays_that_lines_made():
    text, trace = walked("n", "n", "", "q")
    first, second, third, _ = answers(text)
    stop = trace.find("embedding forward in wte")
    assert first.splitlines()[0] == f"[{stop.index}] embedding forward in wte"
    assert first.splitlines()[1].startswith("embedding.py:")
    assert "def embedding_forward(weight, ids, *, padding_idx=None):" in first
    assert "weight  (11, 12) float32  mean" in first
    assert "y = weight[ids]" in second
    assert f"y  {stop.outputs[0].shape} float32  mean {stop.outputs[0].array.mean(dtype=float):.3g}" in second
    assert "return y, Saved" in third


def test_until_op_and_where():
    text, trace = walked("until h.1.ln_2", "op", "where", "until backward", "where", "u dweight", "q")
    norm, linear, where, loss, _, weight, _ = answers(text)
    assert "layernorm forward in h.1.ln_2" in norm
    assert "linear forward in h.1.mlp.fc" in linear
    stop = trace.find("linear forward in h.1.mlp.fc")
    assert where == f"stop {stop.index}: linear forward in h.1.mlp.fc"
    assert "cross_entropy backward" in loss
    assert "dweight = matmul(dy_rows.T, x_rows)" in weight
    assert "dweight  (11, 12) float32" in weight


def test_why_names_the_consumers_and_their_sum():
    text, trace = walked("until layernorm backward in h.1.ln_1", "op", "w", "q")
    reason = answers(text)[2].splitlines()
    stop = next(stop for stop in trace.of_kind("backward") if stop.op == "layernorm" and stop.scope == "h.1.ln_1")
    later = trace.stops[stop.index + 1]
    assert reason[0] == "dy is the sum of 2 gradients; its consumers have all run:"
    for sent, line in zip(later.waited[0], reason[1:3], strict=True):
        assert line.startswith(f"    from [{sent.stop}] {trace.stops[sent.stop].op} in ")
        assert line.endswith(f"{np.linalg.norm(sent.array.astype(float)):.6g}")
    assert reason[3] == f"    sum dy, norm {np.linalg.norm(later.inputs[0].array.astype(float)):.6g}"
    assert "only a backward" in answers(walked("n", "why", "q")[0])[1]


def test_print_takes_expressions_live_and_of_earlier_lines():
    text, trace = walked(
        "until layernorm backward", "n", "n", "n", "n", "n", "n", "p dweight + 0", "back", "p dbias", "p nothing", "q"
    )
    live, back, past, unknown, _ = answers(text)[7:]
    stop = trace.find("layernorm backward")
    made = {name: array for line in stop.lines for name, array in line.made.items()}
    assert live.startswith("dweight + 0  (12,) float32")
    numbers = np.array(live.split("[")[1].rstrip("]").split(), float)
    np.testing.assert_allclose(numbers, made["dweight"], atol=2e-5)
    assert "dweight = (dy * norm)" in back
    assert past.startswith("dbias  (12,) float32")
    assert unknown.startswith("NameError")


def test_names_of_an_earlier_line_have_the_saved_arrays():
    text, _ = walked("until layernorm backward", "n", "back", "p saved.norm.shape, saved.has_bias", "p dnorm", "q")
    assert answers(text)[3] == "((2, 6, 12), True)"
    assert answers(text)[4].startswith("NameError")


def test_back_goes_back_and_next_comes_again():
    text, _ = walked("n", "n", "back", "back", "back", "n", "n", "n", "q")
    first, second, *_ = answers(text)
    back = answers(text)[2:]
    assert back[0].endswith(first.splitlines()[-1].strip())
    assert back[1].startswith("[0] tokens")
    assert back[2] == "this is the first line"
    assert back[4] == second
    assert "return y, Saved" in back[5]


def nan_backward(dy, saved):
    x, weight, has_bias = saved
    dx = dy @ weight
    dweight = dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    dweight[0, 0] = np.nan
    return dx, dweight, dy.reshape(-1, dy.shape[-1]).sum(0) if has_bias else None


def test_break_on_nan_and_on_a_condition():
    text, _ = walked("break nan", "c", "p dweight[0, 0]", "q", mutations={"linear": nan_backward})
    listed, hit, value, _ = answers(text)
    assert listed == "breaks: nan"
    assert "break: nan" in hit
    assert "dweight[0, 0] = np.nan" in hit
    assert "1 NaN" in hit
    assert value.startswith("np.float32(nan)") or "nan" in value
    text, trace = walked("b dx.ndim == 4 and abs(dx).max() > 0", "c", "clear", "break", "c")
    stop = next(s for s in trace.of_kind("backward") if s.outputs[0].shape is not None and len(s.outputs[0].shape) == 4)
    assert f"[{stop.index}]" in answers(text)[1]
    assert answers(text)[3] == "breaks: none"
    assert len(answers(text)) == 5
    text, _ = walked("break inf", "c", "q")
    assert "s = np.where(visible" in answers(text)[1], "a causal mask is minus infinity"


def test_an_element_is_explained_and_checked():
    ask = (
        "explain dweight[3]",
        "check dweight[3]",
        "op",
        "back",
        "check dweight[3]",
        "check dz[0]",
        "explain dx",
        "explain dx[a]",
    )
    text, trace = walked("until layernorm backward", *["n"] * 6, *ask, "q")
    explained, early, _, _, checked, unknown, whole, wrong, _ = answers(text)[7:]
    stop = trace.find("layernorm backward in ln_f")
    assert explained.splitlines()[0].startswith(
        f"dweight[3] = {stop.value('dweight').array[3]:.6g}, by dweight = (dy * norm)"
    )
    assert "the sum of 12 terms" in explained
    assert early.startswith("check: layernorm backward in ln_f has not returned yet")
    assert checked.startswith("dweight[3] = ")
    assert checked.endswith("by differences: they agree")
    assert unknown.startswith("check: layernorm backward in ln_f returned no gradient 'dz'")
    assert whole.startswith("explain: dx has shape (2, 6, 12); [] is no index")
    assert "explain needs an element" in wrong


def test_list_shows_the_source_around_the_line():
    text, _ = walked("until layernorm backward", "n", "l", "q")
    lines = answers(text)[2].splitlines()
    [marked] = [line for line in lines if "->" in line]
    assert marked.split()[2:] == "norm, rstd, weight, has_bias = saved".split()
    assert len(lines) == 9


def test_help_has_every_command_and_wrong_ones_are_answered():
    assert all(command in HELP for command in COMMANDS)
    text, _ = walked("h", "nxt", "until", "q")
    assert answers(text)[0] == HELP
    assert "there is no command 'nxt'; did you mean 'next'?" in answers(text)[1]
    assert "until needs a name" in answers(text)[2]


def test_what_can_never_hold_is_said():
    text, _ = walked("print", "break x >", "break abs(", "b", "explain", "check [0]", "until nothing of this name")
    said = answers(text)
    assert "print needs a Python expression, such as: print dy.shape (invalid syntax)" in said[0]
    assert "break needs a Python expression, such as: break abs(dx).max() > 1 (invalid syntax)" in said[1]
    assert "break needs a Python expression" in said[2]
    assert said[3] == "breaks: none"
    assert "explain needs an element" in said[4]
    assert "check needs an element" in said[5]


def test_until_says_where_it_found_nothing():
    x = Tensor(np.ones(3), requires_grad=True)
    for commands, ended in {"until nowhere": True, "until mul": False, "until nowhere\nq": True, "q": False}.items():
        out = io.StringIO()
        study.step((x * 2.0).sum(), stdin=io.StringIO(f"{commands}\n"), stdout=out)
        assert ("the walk ended before anything called 'nowhere'" in out.getvalue()) == ended


def test_the_step_is_whole_after_quit_and_at_the_end_of_the_input():
    expected = traced("gpt2")
    for commands in (["q"], [], ["until h.0", "c"]):
        _, trace = walked(*commands)
        for name, stop in trace.parameters.items():
            np.testing.assert_array_equal(stop.after, expected.parameters[name].after)


def test_pdb_opens_in_the_function_that_runs_and_the_walk_goes_on_after_it():
    text, trace = walked(
        "until layernorm backward", "n", "pdb", "p 'norm' in dir(), dy.shape", "next", "p C", "c", *["q"] * 3
    )
    assert "(Pdb)" in text
    assert "(True, (2, 6, 12))" in text
    assert "(Pdb) 12" in text
    assert len(trace.of_kind("backward")) == len(traced("gpt2").of_kind("backward"))
    assert len(trace.find("layernorm backward").lines) == 11, "the lines after pdb are seen too"
    assert len(trace.of_kind("update")[-1].lines) > 5
    text, _ = walked("until layernorm backward", "n", "back", "pdb", "q")
    assert "has gone on" in answers(text)[3]


def test_step_stands_in_place_of_backward():
    """With a tensor, with a function, through the package, and with the gradients of an untraced backward."""
    model, out = small_model(), io.StringIO()
    batch = small_batch(model)
    model.eval()
    loss_of(model)(**batch).backward()
    expected = {name: x.grad for name, x in model.named_parameters()}
    for given in (loss_of(model)(**batch), lambda: loss_of(model)(**batch)):
        model.zero_grad()
        before = sys.gettrace()
        trace = minillm.study.step(given, stdin=io.StringIO("until backward\nn\nq\n"), stdout=out)
        assert sys.gettrace() is before
        for name, parameter in model.named_parameters():
            np.testing.assert_allclose(parameter.grad, expected[name], rtol=1e-3, atol=1e-5)
        assert len(trace.of_kind("backward")) > 30
        assert bool(trace.of_kind("forward")) == callable(given)
    assert "cross_entropy.py" in out.getvalue()


def test_step_takes_a_gradient_and_shows_ones_own_operation():
    def cube_forward(x):
        return x**3, x

    def cube_backward(dy, saved):
        slope = 3 * saved**2
        return (dy * slope,)

    x, out = Tensor(np.array([1.0, 2.0]), requires_grad=True), io.StringIO()
    y = Op("cube", cube_forward, cube_backward)(x)
    minillm.study.step(y, [1.0, 10.0], stdin=io.StringIO("n\nn\nw\n"), stdout=out)
    np.testing.assert_array_equal(x.grad, [3, 120])
    assert "slope  (2,) float64" in out.getvalue()
    assert "from the start of the walk, dL/dL" in out.getvalue()
    with pytest.raises(minillm.errors.InputError, match="return a tensor"):
        minillm.study.step(lambda: 3, stdin=io.StringIO(""), stdout=out)
    with minillm.no_grad(), pytest.raises(minillm.errors.GraphError, match="backward"):
        minillm.study.step(ops.sum(x), stdin=io.StringIO(""), stdout=out)
