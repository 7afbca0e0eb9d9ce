"""The stepper's page: one small file, whose numbers, formulas, checks and sums are those of Python."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillm.commands.step import settings_of, starting_point
from minillm.errors import InputError
from minillm.study.describe.abstract_step import loss_of
from minillm.study.step.checks import check_number
from minillm.study.step.compare import compare_traces
from minillm.study.step.page import document_of, write_page
from minillm.study.step.residual import residual_stream
from minillm.study.step.setup import prepare
from minillm.study.step.store import Store
from minillm.study.step.trace import StepTrace, Stop, trace_step
from minillm.study.step.vocabulary import vocabulary_stops
from tests.browser import Browser, check_policy, plain
from tests.study.step.models import small_batch, small_model, traced
from tests.study.step.pages import line_of, place_of, stop_of


def part(page: Path, name: str) -> Any:
    """A part of a page's data, unpacked."""
    [text] = re.findall(rf'id="{name}">([^<]*)<', page.read_text(encoding="utf-8"))
    return zlib.decompress(base64.b64decode(text))


# --- the file ------------------------------------------------------------------------------------------------------


def test_the_page_is_one_file_that_loads_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    check_policy(text)
    assert not re.search(r"""<link|<iframe|<img|\bsrc=|@import|https?://(?!www\.w3\.org/2000/svg)""", text)


@pytest.mark.parametrize("preset", ["nano", "llama-nano", "bert-nano", "roberta-nano", "xlnet-nano", "bart-nano"])
def test_the_page_of_a_nano_preset_is_small(preset: str, tmp_path: Path) -> None:
    trace = prepare(settings_of(starting_point(["--preset", preset]))).trace()
    page = write_page(trace, tmp_path / "step.html")
    assert page.stat().st_size < 5_000_000
    document = json.loads(part(page, "document"))
    assert len(document["stops"]) == len(trace.stops)
    assert document["checks"].keys() >= trace.parameters.keys()
    assert all(one["agrees"] for check in document["checks"].values() for one in check["elements"])
    assert document["residual"]


def test_a_page_needs_a_folder(trace: StepTrace, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^step: there is no folder .*nowhere; make it, or choose another --out$"):
        write_page(trace, tmp_path / "nowhere" / "step.html")


def test_every_line_of_the_trace_is_in_the_document(trace: StepTrace) -> None:
    store = Store()
    document = document_of(trace, store)
    for stop, shown in zip(trace.stops, document["stops"], strict=True):
        assert [line.number for line in stop.lines] == [line["number"] for line in shown["lines"]]
        for line, entry in zip(stop.lines, shown["lines"], strict=True):
            assert {name: store.number(array) for name, array in line.made.items()} == entry["made"]


# --- numbers -------------------------------------------------------------------------------------------------------


def test_every_number_is_that_of_python(browser: Browser, page: Path, trace: StepTrace) -> None:
    browser.open(page)
    document = browser.run("return stepper.document")
    shown: dict[int, list[str]] = {}
    compared = 0
    for stop, entry in zip(trace.stops, document["stops"], strict=True):
        for line, made in zip(stop.lines, entry["lines"], strict=True):
            for name, array in line.made.items():
                number = made["made"][name]
                if number not in shown:
                    shown[number] = browser.run("return stepper.texts(arguments[0])", number)
                texts = [plain(text) for text in shown[number]]
                if array.dtype == bool:
                    assert texts == [str(one) for one in array.ravel().tolist()]
                else:
                    np.testing.assert_array_equal(np.array(texts, np.float64).astype(array.dtype), array.ravel())
                compared += array.size
    assert compared > 20_000


def test_the_tables_show_the_numbers_around_the_cursor(browser: Browser, page: Path, trace: StepTrace) -> None:
    stop, line = place_of(trace, "backward", "layernorm", "dx")
    dx = stop.lines[line].made["dx"]
    browser.open(page, f"#{stop.index}.{line}:dx[1,4,9]")
    browser.press("z")
    try:
        cells = browser.run(
            "return [...document.querySelectorAll('figure[data-name=dx] td')].slice(1)"
            ".map((one) => [+one.dataset.flat, one.dataset.value, one.textContent])"
        )
    finally:
        browser.press("z")
    assert len(cells) == 6 * 8
    for flat, value, short in cells:
        assert np.float32(plain(value)) == dx.ravel()[flat]
        assert float(plain(short)) == pytest.approx(dx.ravel()[flat], rel=6e-3)


def test_statistics_are_those_of_the_array(browser: Browser, page: Path, trace: StepTrace) -> None:
    stop, line = place_of(trace, "forward", "attention", "s")
    s = stop.lines[line].made["s"]
    browser.open(page, f"#{stop.index}.{line}")
    stats = browser.text("figure[data-name=s] .stats")
    finite = s[np.isfinite(s)]
    assert f"{s.size - finite.size} not finite" in stats
    for name, value in ("mean", finite.mean()), ("std", finite.std()):
        [shown] = re.findall(rf"{name} (\S+)", stats)
        assert float(shown) == pytest.approx(float(value), rel=6e-3)
    assert "(2, 2, 6, 6)" in browser.text("figure[data-name=s] figcaption")


def test_formulas_give_the_numbers_of_their_lines(browser: Browser, page: Path, trace: StepTrace) -> None:
    browser.open(page)
    draw = np.random.default_rng(0)
    explained, others = 0, set()
    for stop in trace.stops:
        for number, line in enumerate(stop.lines):
            for name, array in line.made.items():
                flats = draw.integers(0, array.size, 4).tolist() if array.size else []
                found = browser.run("return stepper.evaluate(...arguments)", stop.index, number, name, flats)
                if found is None:
                    others.add((line.name, line.text))
                    continue
                expected = array.ravel()[flats].astype(np.float64)
                scale = np.abs(array, where=np.isfinite(array), out=np.zeros(array.shape)).max(initial=0)
                values = [np.inf if one == "Infinity" else -np.inf if one is None else one for one in found]
                where = f"{line.text} makes {name}"
                np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5 * scale, err_msg=where)
                explained += 1
    assert explained > 300
    # what has no formula is made by another function, whose own lines stand before, or is read from `saved`
    called = {text for _, text in others if not text.startswith("def ") and "saved" not in text}
    assert [text for text in called if not re.search(r"(= |else |^return )(?!np\.)[\w.]+\(|\bfor\b|key\]", text)] == []


# --- an element ----------------------------------------------------------------------------------------------------


def test_a_weight_gradient_lights_the_columns_that_made_it(browser: Browser, page: Path, trace: StepTrace) -> None:
    stop, line = place_of(trace, "backward", "linear", "dweight", "h.0.attn.qkv")
    made = stop.lines[line].made["dweight"]
    i, j = 7, 5
    browser.open(page, f"#{stop.index}.{line}:dweight[{i},{j}]")
    lit = {one["name"]: one["lit"] for one in browser.run("return stepper.lit()")}
    rows, (outputs, inputs) = 12, made.shape
    assert lit["dy_rows"] == [n * outputs + i for n in range(rows)]
    assert lit["x_rows"] == [n * inputs + j for n in range(rows)]
    assert np.float32(browser.text("[data-fact=value]")) == made[i, j]
    assert float(browser.text("[data-fact=evaluated]").removeprefix("= ")) == pytest.approx(made[i, j], rel=1e-4)
    assert len(browser.texts(".terms tbody tr")) == rows
    assert "12 terms" in browser.text(".terms caption")


def test_a_softmax_gradient_shows_its_formula_with_numbers(browser: Browser, page: Path, trace: StepTrace) -> None:
    stop, line = place_of(trace, "backward", "attention", "ds")
    made = {name: array for one in stop.lines if one.depth == 0 for name, array in one.made.items()}
    place = (1, 0, 4, 2)
    browser.open(page, f"#{stop.index}.{line}:ds[{','.join(map(str, place))}]")
    symbols, numbers, _ = browser.texts(".formula span")
    assert symbols == "ds = p · (dp - delta)"
    shown = [float(one) for one in re.findall(r"-?\d[\d.e-]*", numbers)]
    delta = made["delta"][1, 0, 4, 0]
    assert shown == pytest.approx([made["p"][place], made["dp"][place], delta], rel=1e-3)
    assert "forward" in browser.text(".chosen-element dl")  # s itself, of which this is the gradient
    assert "“'” “\"”" not in browser.text(".chosen-element h3")  # the tokens are those of row 1
    assert "“'” “␣”" not in browser.text(".chosen-element h3")
    assert "“'”" in browser.text(".chosen-element h3")


def test_each_row_of_a_batch_has_its_own_tokens(browser: Browser, page: Path) -> None:
    """The heat map of ids (B, T) is a matrix for each row: the tokens above the first are not those of the others."""
    browser.open(page, "#0:ids[1,0]")
    assert "“a”" in browser.text(".chosen-element h3")
    browser.press("z")
    try:
        captions = browser.texts("figure[data-name=ids] caption")
        heads = browser.texts("figure[data-name=ids] thead th")
    finally:
        browser.press("z")
    assert captions == ["ids[1, 0:6]"]
    assert [head.partition(" ")[2] for head in heads] == ["a", "␣", "", "&amp;", "'", '"']


def test_ids_of_the_vocabulary_have_their_tokens(browser: Browser, tmp_path: Path) -> None:
    trace = prepare(settings_of(starting_point(["nano"])), "the cat sat").trace()
    number = trace.vocabulary.index("q")
    size = len(trace.vocabulary)
    stop, line = place_of(trace, "forward", "cross_entropy", "logits")
    assert stop.lines[line].made["logits"].shape[-1] == size
    browser.open(write_page(trace, tmp_path / "step.html"), f"#{stop.index}.{line}:logits[0,2,{number}]")
    assert browser.text(".chosen-element h3") == f"logits[0, 2, {number}]  “e” “q”"
    stop, line = place_of(trace, "backward", "embedding", "dweight", "wte")
    browser.go(f"#{stop.index}.{line}:dweight[{number},3]")
    assert browser.text(".chosen-element h3") == f"dweight[{number}, 3]  “q”"
    update = trace.parameters["wte.weight"]
    browser.go(f"#{update.index}:g[{number},1]")
    assert browser.text(".chosen-element h3") == f"g[{number}, 1]  “q”"
    assert browser.console() == []


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma", "bert", "distilbert", "roberta", "bart", "xlnet"])
def test_what_has_to_do_with_the_vocabulary_is_known(family: str) -> None:
    model = small_model(family)
    tokens = {name: [] for name in ("ids", "source", "target")}
    trace = traced(family, tokens=tokens)
    found = vocabulary_stops(trace)
    assert set(found.values()) == {model.config.vocab_size}
    told = {trace.stops[index].title for index in found}
    assert any(title.startswith("cross_entropy backward") for title in told)
    assert any(title.startswith("AdamW update in wte.weight") or "wte" in title for title in told)
    assert not any(".mlp" in title or ".attn" in title or "wpe" in title for title in told)


def test_a_sum_of_gradients_shows_who_sent_what(browser: Browser, page: Path, trace: StepTrace) -> None:
    stop = next(one for one in trace.of_kind("backward") if one.waited and len(one.waited[0]) == 2)
    browser.open(page, f"#{stop.index}")
    why = browser.text(".why")
    assert "2 consumers had to run first" in why
    links = browser.run("return [...document.querySelectorAll('.why a')].map((one) => one.getAttribute('href'))")
    assert links == [f"#{sent.stop}" for sent in stop.waited[0]]
    browser.run("document.querySelector('.sum canvas').focus()")
    browser.press("arrow_right", "arrow_right")
    terms = [sent.array.ravel()[1] for sent in stop.waited[0]]
    assert np.float32(browser.text("[data-fact=sum]")) == stop.inputs[0].array.ravel()[1]
    shown = browser.text(".formula span").removesuffix(" =").replace(" - ", " + -").split(" + ")
    assert [float(one) for one in shown] == pytest.approx(terms, rel=1e-5)


def test_a_number_is_checked_on_the_page(browser: Browser, page: Path, trace: StepTrace) -> None:
    stop, line = place_of(trace, "backward", "linear", "dweight", "h.0.mlp.fc")
    gradient = stop.lines[line].made["dweight"]
    index = np.unravel_index(int(np.abs(gradient).argmax()), gradient.shape)
    browser.open(page, f"#{stop.index}.{line}:dweight[{index[0]},{index[1]}]")
    browser.press("c")
    check = check_number(trace, stop, "dweight", index)
    assert float(browser.text("[data-check=gradient]")) == pytest.approx(check.analytic, rel=1e-6)
    assert float(browser.text("[data-check='central difference']")) == pytest.approx(check.numeric, rel=1e-5)
    assert browser.text("[data-check=verdict]").startswith("They agree")
    places = [[row, column] for row in range(gradient.shape[0]) for column in range(gradient.shape[1])]
    row, column = next(place for place in places if place not in checked(browser, stop))
    browser.go(f"#{stop.index}.{line}:dweight[{row},{column}]")
    browser.press("c")
    assert "The page is offline" in browser.text(".check")
    assert "check_number(trace" in browser.text(".check code")


def checked(browser: Browser, stop: Stop) -> list[list[int]]:
    found = browser.run("return stepper.document.checks[arguments[0]].elements", f"{stop.index}:dweight")
    return [one["index"] for one in found]


def test_a_wrong_backward_is_told_by_the_check(browser: Browser, comparison, tmp_path: Path) -> None:
    stop = stop_of(comparison.b, "backward", "swiglu")
    browser.open(write_page(comparison.b, tmp_path / "wrong.html"), f"#{stop.index}")
    records = browser.run("return stepper.document.checks[arguments[0]].elements", f"{stop.index}:dup")
    assert records
    assert not max(records, key=lambda one: abs(one["analytic"]))["agrees"]


def test_a_parameter_goes_through_the_step(browser: Browser, page: Path, trace: StepTrace) -> None:
    stop = trace.parameters["h.1.mlp.fc.weight"]
    line = line_of(stop, "m_hat")
    browser.open(page, f"#{stop.index}.{line}:m_hat[3,4]")
    expected = {
        "value": stop.before,
        "gradient": stop.grad,
        "exp_avg after": stop.moments_after["exp_avg"],
        "exp_avg_sq after": stop.moments_after["exp_avg_sq"],
        "update": stop.update,
        "new value": stop.after,
    }
    for name, array in expected.items():
        assert np.float32(browser.text(f"[data-through='{name}']")) == array[3, 4]
    assert expected["new value"][3, 4] != expected["value"][3, 4]


def test_bars_show_what_each_block_adds(browser: Browser, page: Path, trace: StepTrace) -> None:
    stream = residual_stream(trace)
    browser.open(page, f"#{stream[1].stop}")
    assert browser.run("return document.querySelector('.residual').open")
    for kind in ("branch", "through", "along"):
        shown = [float(one) for one in browser.texts(f"[data-residual={kind}] td:last-child")]
        assert shown == pytest.approx([getattr(one, kind) for one in stream], rel=6e-3)
    assert browser.texts("[data-residual=branch] a") == [one.scope for one in stream]


# --- a comparison --------------------------------------------------------------------------------------------------


def test_a_comparison_marks_the_first_line_that_differs(browser: Browser, comparison, tmp_path: Path) -> None:
    page = write_page(comparison.a, tmp_path / "compare.html", compare=comparison)
    browser.open(page)
    assert "right beside wrong" in browser.text("#banner")
    browser.press("f")
    first = comparison.first
    assert browser.place().startswith(f"#{first.stops[0]}")
    stop = comparison.a.stops[first.stops[0]]
    assert (stop.kind, stop.op) == ("backward", "swiglu")
    assert browser.text(".compared h3") == "beside it: wrong"
    apart = browser.run("return document.querySelectorAll('.compared canvas').length")
    assert apart >= 2
    assert browser.texts("#graph .differs")
    before = trace_before(comparison)
    browser.go(f"#{before}")
    assert browser.console() == []


def trace_before(comparison) -> int:
    """A stop before the first that differs."""
    return comparison.first.stops[0] - 1


def test_engines_without_lines_stand_beside_each_other(browser: Browser, trace: StepTrace, tmp_path: Path) -> None:
    other = traced("llama", engine="fast")
    comparison = compare_traces(traced("llama"), other, titles=("plain", "fast"))
    page = write_page(comparison.a, tmp_path / "engines.html", compare=comparison)
    stop = stop_of(comparison.a, "forward", "rmsnorm")
    browser.open(page, f"#{stop.index}.{len(stop.lines) - 1}")
    assert "plain beside fast" in browser.text("#banner")
    assert browser.texts(".compared figcaption b") == ["y", "difference of y"]
    browser.open(write_page(other, tmp_path / "fast.html"), f"#{stop_of(other, 'backward', 'rmsnorm').index}")
    assert "dweight" in browser.texts("#arrays figcaption b")
    assert browser.console() == []


def test_a_step_with_nan_can_be_looked_at(browser: Browser, tmp_path: Path) -> None:
    model = small_model("llama")
    model.h[0].mlp.down.weight.data[0, 0] = np.nan
    batch = small_batch(model)
    trace = trace_step(model, lambda one: loss_of(one)(**batch), batch=batch)
    page = write_page(trace, tmp_path / "nan.html")
    stop = next(one for one in trace.of_kind("forward") if one.scope == "h.0.mlp.down")
    browser.open(page, f"#{stop.index}.{line_of(stop, 'y')}:y[0,0,0]")
    assert browser.text("[data-fact=value]") == "nan"
    assert "12 not finite" in browser.text("figure[data-name=y] .stats")
    assert "loss not finite" in browser.text("#summary")
    assert browser.console() == []


def test_gradients_are_read_in_words(browser: Browser, tmp_path: Path) -> None:
    trace = prepare(settings_of(starting_point(["--preset", "nano"])), "the cat sat").trace()
    reading = next(one for one in trace.readings if one.layer == "h.0.mlp.fc")
    stop = stop_of(trace, "backward", "linear", "h.0.mlp.fc")
    browser.open(write_page(trace, tmp_path / "words.html"), f"#{stop.index}")
    words = [token for token, _ in reading.nearest]
    shown = browser.texts(".words tr:first-child .token")
    assert [one.replace("␣", " ").replace("⏎", "\n") for one in shown] == words
    assert "input" in browser.text(".words p")
