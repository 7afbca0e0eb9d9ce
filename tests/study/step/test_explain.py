"""Where a number comes from, its central difference, the residual stream, and gradients in words."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

from minillm.autograd import Tensor
from minillm.errors import InputError
from minillm.study.step.checks import LossChecker, check_number
from minillm.study.step.environment import names_before
from minillm.study.step.explain import explain
from minillm.study.step.lens import lens_lines, read_gradients
from minillm.study.step.residual import residual_stream
from minillm.study.step.trace import ParameterStop, trace_backward
from tests.study.step.models import cached, traced

NAMES = "exp sqrt tanh log maximum minimum abs sin cos log1p expm1 clip square multiply add subtract divide negative"
FUNCTIONS = {name: getattr(np, name) for name in NAMES.split()}


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma", "bert", "roberta", "distilbert", "xlnet", "bart"])
def test_the_text_of_an_explanation_is_the_number(family):
    """The elements that an explanation names, computed by its own text, give the number again."""
    trace, draw, told = cached(family), np.random.default_rng(0), []
    seen = set()
    for stop in (*trace.of_kind("forward"), *trace.of_kind("backward")):
        if (stop.kind, stop.op) in seen:
            continue
        seen.add((stop.kind, stop.op))
        for line in stop.lines:
            for name, array in line.made.items():
                if line.text.startswith("def ") or array.size == 0 or array.dtype.kind != "f":
                    continue
                place = tuple(int(draw.integers(size)) for size in array.shape)
                found = explain(trace, stop, name, place, line)
                assert found.value == array[place]
                if not np.isfinite(found.value):
                    continue
                if found.terms and not re.search(r"mean\(", line.text) and found.text.count("(") == 0:
                    total = sum(term.value for term in found.terms)
                    sizes = sum(abs(term.value) for term in found.terms)
                    assert abs(total - found.value) <= 1e-5 * sizes + 1e-12, (stop.title, line.text)
                text = found.text
                told.append(bool(text) and "<" not in text)
                names = names_before(stop, line)
                calls = any(
                    one.name in line.text for one in stop.lines if one.depth
                )  # then the names may be a helper's
                if told[-1] and line.depth == 0 and not calls:
                    value = eval(text, {**names[0], **FUNCTIONS}, names[1])
                    assert float(value) == pytest.approx(found.value, rel=1e-3, abs=1e-6), (stop.title, line.text, text)
    assert np.mean(told) > (0.95 if family == "gpt2" else 0.99), "all but random numbers, which dropout draws"


def test_a_matrix_product_names_the_row_and_the_column():
    trace = cached("gpt2")
    stop = trace.find("linear backward in h.0.mlp.fc")
    x, dy = trace.stops[stop.partner].inputs[0].array, stop.inputs[0].array
    found = explain(trace, stop, "dweight", (5, 3))
    assert len(found.terms) == x.shape[0] * x.shape[1]
    assert found.terms[0].text == "dy_rows[0, 5] * x_rows[0, 3]"
    assert [term.value for term in found.terms] == pytest.approx(
        (dy[..., 5] * x[..., 3]).reshape(-1).tolist(), rel=1e-6
    )
    assert {(read.name, read.place) for read in found.reads[:2]} == {("dy_rows", (0, 5)), ("x_rows", (0, 3))}
    assert "the sum of 12 terms" in "\n".join(found.lines())


def test_the_gradient_of_a_softmax_is_shown_with_its_numbers():
    trace = cached("gpt2")
    stop = trace.find("attention backward in h.1.attn")
    found = explain(trace, stop, "ds", (1, 0, 4, 2))
    assert found.text == "p[1, 0, 4, 2] * (dp[1, 0, 4, 2] - delta[1, 0, 4, 0])"
    numbers = re.fullmatch(r"(\S+) \* \((\S+) - (\S+)\)", found.numbers)
    p, dp, delta = map(float, numbers.groups())
    assert p * (dp - delta) == pytest.approx(found.value, rel=1e-3)


def test_a_gradient_on_the_residual_stream_and_of_a_tied_table_is_a_sum():
    trace = cached("gpt2")
    stop = next(stop for stop in trace.of_kind("backward") if len(stop.waited[0]) == 2)
    found = explain(trace, stop, "dy", (1, 2, 3))
    assert len(found.terms) == 2
    assert sum(term.value for term in found.terms) == pytest.approx(found.value, rel=1e-6)
    table = explain(trace, trace.parameters["wte.weight"], "grad", (4, 3))
    assert [
        trace.stops[sent.stop].op in term.text
        for sent, term in zip(trace.parameters["wte.weight"].waited[0], table.terms, strict=True)
    ] == [True, True]
    rows = explain(
        trace, trace.find("embedding backward in wte"), "dweight", (int(trace.stops[0].outputs[0].array[0, 1]), 2)
    )
    assert rows.terms
    assert rows.terms[0].text.startswith("dy[0, ")


def test_moved_numbers_and_helpers_are_followed():
    trace = cached("gpt2")
    split = explain(trace, trace.find("split backward"), "dx", (0, 3, 13))
    assert split.text == "parts[1][0, 3, 1]"
    weight = explain(trace, trace.find("attention forward"), "p", (0, 1, 5, 2))
    assert weight.text == "e[0, 1, 5, 2] / total[0, 1, 5, 0]"
    update = explain(trace, trace.parameters["wpe.weight"], "w_t", (1, 2))
    assert "m_hat[1, 2]" in update.text


@pytest.mark.parametrize(
    ("family", "stop", "name", "place", "text"),
    [
        ("gpt2", "split forward", "pieces[1]", (1, 2, 3), "x[1, 2, 15]"),
        ("gpt2", "split backward", "arrived", (1, 2, 3), "dy[0][1, 2, 3]"),
        ("llama", "rope forward", "x2", (1, 0, 2, 1), "x[1, 0, 2, 3]"),
        ("llama", "rope backward", "dy1", (1, 0, 2, 1), "dy[1, 0, 2, 1]"),
        ("llama", "swiglu forward", "h", (0, 1, 2), "maximum(x[0, 1, 2], -FAR) * s[0, 1, 2]"),
        ("gpt2", "cross_entropy forward", "w", (3,), "1"),
        ("xlnet", "where forward", "y", (0, 0), None),
        ("xlnet", "getitem backward", "dx", (0, 0, 0), None),
    ],
)
def test_lines_of_many_kinds_are_followed(family, stop, name, place, text):
    trace = cached(family)
    stop = trace.find(stop)
    line = next(line for line in stop.lines if name in line.made and not line.text.startswith("def "))
    place = tuple(place) if text else (0,) * line.made[name].ndim
    found = explain(trace, stop, name, place, line)
    assert found.text == text if text else found.text and "<" not in found.text, found


def test_a_stored_element_is_that_of_the_value_and_others_stay():
    x = Tensor(np.arange(6.0), requires_grad=True)
    trace = trace_backward(lambda: (x[1:5:2] * 3.0).sum())
    stop = trace.find("getitem backward")
    line = next(line for line in stop.lines if line.text.startswith("dx[key]"))
    assert explain(trace, stop, "dx", (3,), line).text == "dy[1]"
    assert explain(trace, stop, "dx", (2,), line).text == "dx[2]"


def test_what_is_not_there_cannot_be_explained():
    trace = cached("gpt2")
    stop = trace.find("layernorm backward")
    for name, place, reason in [
        ("dz", (0,), "no line of"),
        ("dx", (0,), "is no index"),
        ("dx", (9, 0, 0), "is no index"),
    ]:
        with pytest.raises(InputError, match=reason):
            explain(trace, stop, name, place)
    with pytest.raises(InputError, match="left out"):
        explain(traced("gpt2", largest=20), traced("gpt2", largest=20).find("layernorm backward"), "dx", (0, 0, 0))


@pytest.mark.parametrize("family", ["gpt2", "gemma", "xlnet"])
def test_every_gradient_agrees_with_its_difference(family):
    trace, draw = cached(family), np.random.default_rng(0)
    checked = set()
    for stop in trace.of_kind("backward"):
        for value, given in zip(stop.outputs, trace.stops[stop.partner].call.inputs, strict=True):
            if value.array is None or value.array.size == 0 or (stop.op, value.name) in checked:
                continue
            if not isinstance(given, np.ndarray):
                with pytest.raises(InputError, match="which is no array"):
                    check_number(trace, stop, value.name, (0,) * value.array.ndim)
                continue
            checked.add((stop.op, value.name))
            place = np.unravel_index(int(np.abs(value.array).argmax()), value.shape)
            found = check_number(trace, stop, value.name, place)
            assert found.agrees, f"{stop.title}: {found}"
    assert len(checked) > 15
    checker = LossChecker(trace)
    for name, stop in trace.parameters.items():
        places = [np.unravel_index(int(np.abs(stop.grad).argmax()), stop.grad.shape)]
        places.append(tuple(int(draw.integers(size)) for size in stop.grad.shape))
        for place in places:
            if np.abs(stop.grad).max() > 1e-6:  # the bias of keys has the gradient 0, and rounding
                assert checker.check(name, place).agrees, f"{name}: {checker.check(name, place)}"


def test_a_wrong_gradient_does_not_agree():
    def backward(dy, saved):
        x, weight, has_bias = saved
        rows, dys = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        return dy @ weight, 2 * dys.T @ rows, dys.sum(0) if has_bias else None

    trace = traced("gpt2", mutations={"linear": backward})
    stop = trace.find("linear backward in h.1.mlp.proj")
    place = np.unravel_index(int(np.abs(stop.value("dweight").array).argmax()), stop.value("dweight").shape)
    wrong = check_number(trace, stop, "dweight", place)
    assert not wrong.agrees
    assert "THEY DIFFER" in str(wrong)
    assert wrong.analytic == pytest.approx(2 * wrong.numeric, rel=1e-3)
    assert not check_number(trace, trace.parameters["h.1.mlp.proj.weight"], "grad", place).agrees
    assert check_number(trace, stop, "dx", (0, 0, 0)).agrees
    for where, name in [(stop, "dz"), (trace.stops[1], "y"), (trace.parameters["wpe.weight"], "w")]:
        with pytest.raises(InputError, match="check_number"):
            check_number(trace, where, name, (0, 0))


def test_the_residual_stream_adds_up():
    trace = cached("gpt2")
    found = residual_stream(trace)
    assert [one.scope for one in found] == ["wpe", "h.0.attn", "h.0.mlp", "h.1.attn", "h.1.mlp"]
    for before, after in pairwise(found[1:]):  # a dropout follows the first
        assert after.stream == before.total
    for one in found[1:]:
        stop = trace.stops[one.stop]
        x, y = (value.array.astype(float) for value in stop.inputs)
        assert (one.stream, one.branch) == pytest.approx((np.linalg.norm(x), np.linalg.norm(y)))
        assert one.along == one.gradient, "a sum hands its gradient on as it is"
        norm = next(
            s
            for s in trace.of_kind("backward")
            if s.op == "layernorm" and trace.stops[s.partner].inputs[0].stop == stop.inputs[0].stop
        )
        assert one.through == pytest.approx(np.linalg.norm(norm.outputs[0].array.astype(float)))
    assert len(residual_stream(traced("llama"))) == 4


def test_gradients_of_mlps_name_the_tokens_that_they_are_near_to():
    """Of a table with the vector of a gradient in it, the nearest token is that one."""
    trace = traced("gpt2")
    found = read_gradients(trace, lambda number: f"t{number}")
    assert {(one.layer, one.kind) for one in found} == {
        (f"h.{i}.mlp.{name}", kind) for i in (0, 1) for name, kind in (("fc", "imprint"), ("proj", "shift"))
    }
    stop = trace.find("linear backward in h.1.mlp.proj")
    shift = next(one for one in found if one.layer == "h.1.mlp.proj")
    x, dy = trace.stops[stop.partner].inputs[0].array, stop.inputs[0].array
    sizes = np.linalg.norm(x, axis=-1) * np.linalg.norm(dy, axis=-1)
    assert shift.place == np.unravel_index(int(sizes.argmax()), sizes.shape)
    embedding = trace.find("embedding forward in wte").inputs[0]
    table = embedding.array.copy()
    table[7] = -3 * dy[shift.place]
    embedding.array = table
    again = next(one for one in read_gradients(trace, lambda number: f"t{number}") if one.layer == "h.1.mlp.proj")
    word, cosine = again.nearest[0]
    assert (word, cosine) == ("t7", pytest.approx(1, abs=1e-5))
    assert any("h.1.mlp.proj shift" in line for line in lens_lines(found))
    assert isinstance(trace.stops[-1], ParameterStop)
    with pytest.raises(InputError, match="no MLP"):
        lens_lines([])
