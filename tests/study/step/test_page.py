"""The stepper's page in a real browser: what it shows is what Python has, and a person can walk it by keys alone."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillm.commands.step import settings_of, starting_point
from minillm.errors import InputError
from minillm.ops.silu import silu_backward
from minillm.study.step.checks import check_number
from minillm.study.step.compare import compare_traces
from minillm.study.step.page import document_of, write_page
from minillm.study.step.residual import residual_stream
from minillm.study.step.setup import prepare
from minillm.study.step.store import Store
from minillm.study.step.trace import StepTrace, Stop
from tests.study.step.browser import Browser, browsers, plain
from tests.study.step.models import traced

TOKENS = {"ids": [["The", " cat", "<b>", "\n", "</script>", "ü"], ["a", " ", "", "&amp;", "'", '"']]}


@pytest.fixture(scope="module")
def browser():
    yield from browsers()


@pytest.fixture(scope="module")
def trace() -> StepTrace:
    return traced(tokens=TOKENS)


@pytest.fixture(scope="module")
def page(trace: StepTrace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(trace, tmp_path_factory.mktemp("page") / "step.html")


def wrong_swiglu(dy, saved):
    saved_gate, h, up = saved
    dup = 1.5 * dy * h
    dh = dy * up
    (dgate,) = silu_backward(dh, saved_gate)
    return dgate, dup


@pytest.fixture(scope="module")
def comparison():
    wrong = traced("llama", mutations={"swiglu": wrong_swiglu})
    return compare_traces(traced("llama"), wrong, titles=("right", "wrong"))


def part(page: Path, name: str) -> Any:
    """A part of a page's data, unpacked."""
    [text] = re.findall(rf'id="{name}">([^<]*)<', page.read_text(encoding="utf-8"))
    return zlib.decompress(base64.b64decode(text))


def stop_of(trace: StepTrace, kind: str, op: str, scope: str = "") -> Stop:
    """The first stop of a kind and an operation whose module begins with this."""
    return next(stop for stop in trace.of_kind(kind) if stop.op == op and stop.scope.startswith(scope))


def line_of(stop: Stop, name: str) -> int:
    """The number of the last line that makes an array of this name."""
    return max(i for i, line in enumerate(stop.lines) if name in line.made and line.depth == 0)


def place_of(trace: StepTrace, kind: str, op: str, name: str, scope: str = "") -> tuple[Stop, int]:
    stop = stop_of(trace, kind, op, scope)
    return stop, line_of(stop, name)


# --- the file ------------------------------------------------------------------------------------------------------


def test_the_page_is_one_file_that_loads_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; ")
    for tag, rule in ("script", "script-src"), ("style", "style-src"):
        [own] = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in policy
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


# --- walking -------------------------------------------------------------------------------------------------------


def test_keys_walk_forwards_and_backwards_in_time(browser: Browser, page: Path, trace: StepTrace) -> None:
    browser.open(page)
    browser.press("arrow_right")
    assert browser.place() == "#1"
    browser.press("arrow_right", "arrow_right")
    assert browser.place() == "#1.2"
    browser.press("arrow_left")
    assert browser.place() == "#1.1"
    browser.press("arrow_down", "arrow_down", "arrow_up")
    assert browser.place() == "#2"
    browser.press("l")
    loss = next(stop.index for stop in trace.stops if stop.kind == "loss")
    assert browser.place() == f"#{loss}"
    browser.press("arrow_right")
    assert trace.stops[loss + 1].kind == "backward"
    assert browser.place() == f"#{loss + 1}"
    browser.press("b")
    assert browser.place() == f"#{trace.stops[loss + 1].partner}"
    browser.press("n")
    browser.press("n")
    first = trace.of_kind("update")[0].index
    assert browser.place() == f"#{first + 1}"
    browser.press("p")
    assert browser.place() == f"#{first}"
    browser.press("end")
    assert browser.place() == f"#{len(trace.stops) - 1}"
    browser.press("arrow_down", "home", "arrow_up")
    assert browser.place() == "#0"
    browser.press("arrow_right", shift=True)
    browser.press("arrow_right", shift=True)
    assert trace.stops[int(browser.place()[1:])].scope != trace.stops[1].scope
    browser.press("arrow_left", shift=True)
    assert browser.console() == []


def test_every_place_has_a_link(browser: Browser, page: Path, trace: StepTrace) -> None:
    browser.open(page)
    for stop in trace.stops[::3]:  # a browser refuses several hundred moves in a few seconds
        browser.go(f"#{stop.index}")
        assert browser.run("return document.title").startswith(f"{stop.title} ·")
        if stop.lines:
            last = len(stop.lines) - 1
            browser.go(f"#{stop.index}.{last}")
            assert f"line {last + 1} of {last + 1}" in browser.text("#count") or last == 0
            now = browser.text("#sources .line.now .number")
            assert now == str(stop.lines[last].number)
    browser.driver.back()
    assert browser.console() == []


def test_forward_and_backward_stand_side_by_side(browser: Browser, page: Path, trace: StepTrace) -> None:
    browser.look()
    stop, line = place_of(trace, "backward", "layernorm", "through_mean")
    browser.open(page, f"#{stop.index}.{line}")
    assert [one.removesuffix("go there (b)") for one in browser.texts(".column h3")] == ["forward", "backward"]
    source = trace.sources[stop.function]
    shown = browser.texts(".column.here .line code")
    assert [one.strip() for one in shown] == [one.strip() for one in source.lines]
    boxes = browser.run(
        "return [...document.querySelectorAll('.column')].map((one) => one.getBoundingClientRect().top)"
    )
    assert boxes[0] == boxes[1]
    assert "Layer normalisation" in browser.text("#derivation summary")
    assert any("through_mean" in one for one in browser.texts("#derivation .now"))


def test_search_finds_layers_and_lines(browser: Browser, page: Path, trace: StepTrace) -> None:
    browser.open(page)
    browser.press("/")
    browser.press(*"layernorm backward h.1.ln_2")
    browser.press("enter")
    stop = stop_of(trace, "backward", "layernorm", "h.1.ln_2")
    assert browser.place() == f"#{stop.index}"
    browser.press("/")
    browser.press(*"delta = (p")
    browser.press("arrow_down", "arrow_up", "enter")
    found = trace.stops[int(browser.place()[1:].split(".")[0])]
    assert found.op == "attention"
    assert "delta" in browser.text("#sources .line.now")
    browser.press("/")
    browser.press("escape")
    browser.press("?")
    assert "next line" in browser.text("#keys")
    assert browser.run("return document.querySelector('#help').open")
    browser.press("escape")
    assert not browser.run("return document.querySelector('#help').open")


def test_the_page_works_by_keyboard_alone(browser: Browser, page: Path, trace: StepTrace) -> None:
    browser.open(page)
    browser.press("tab")
    assert browser.run("return document.activeElement.textContent") == "Skip to the source"
    browser.press("l", "arrow_down", "arrow_right", "arrow_right")
    browser.press("h")
    assert browser.run("return document.activeElement.tagName") == "CANVAS"
    label = browser.run("return document.activeElement.getAttribute('aria-label')")
    assert re.match(r"\w+, shape \(.*\), float32, mean .* Arrow keys move the cursor\.", label)
    browser.press("arrow_right", "arrow_right", "arrow_down")
    chosen = browser.place().split(":")[1]
    assert re.fullmatch(r"\w+\[[\d,]+\]", chosen)
    assert browser.text(".chosen-element h3").startswith(chosen.split("[")[0])
    browser.press("escape", "arrow_right")
    assert ":" not in browser.place()
    browser.press("g")
    assert browser.run("return document.activeElement.getAttribute('role')") == "treeitem"
    before = browser.run("return document.activeElement.dataset.row")
    browser.press("arrow_up")
    assert browser.run("return document.activeElement.dataset.row") != before
    browser.press("enter")
    assert browser.console() == []


def test_the_graph_folds_by_module_and_follows(browser: Browser, page: Path, trace: StepTrace) -> None:
    browser.open(page)
    folded = browser.texts("#graph [role=treeitem] .label")
    assert "▸ h.0" in folded
    assert "attention" not in folded
    stop = stop_of(trace, "backward", "attention", "h.1")
    browser.go(f"#{stop.index}")
    unfolded = browser.texts("#graph [role=treeitem] .label")
    assert "▾ h.1" in unfolded
    assert "▸ h.0" in unfolded
    assert browser.text("#graph [aria-current] .label") == "attention"
    assert browser.run("return document.querySelectorAll('#graph path.edge.marked').length") >= 2


def test_text_of_tokens_is_never_read_as_html(browser: Browser, page: Path) -> None:
    browser.open(page)
    shown = browser.texts(".tokens .token")
    assert shown == ["The", "␣cat", "<b>", "⏎", "</script>", "ü", "a", "␣", "", "&amp;", "'", '"']
    assert browser.run("return document.querySelectorAll('.token *').length") == 0


# --- how it looks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_every_kind_of_place_fits_the_window(
    browser: Browser, page: Path, trace: StepTrace, size: str, scheme: str
) -> None:
    browser.look(size, prefers_color_scheme=scheme)
    try:
        for kind, op, name in (
            ("forward", "attention", "p"),
            ("backward", "linear", "dweight"),
            ("update", "AdamW", "v_hat"),
        ):
            stop, line = place_of(trace, kind, op, name)
            browser.open(page, f"#{stop.index}.{line}")
            assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
            paper = browser.run("return getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", paper))) > 384) == (scheme == "light")
            colours = browser.run(
                "const c = document.querySelector('canvas');"
                "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
                "return new Set(Array.from({length: d.length / 4}, (_, i) => d.slice(4 * i, 4 * i + 3).join())).size"
            )
            assert colours > 10
        browser.open(page, "#0")
        browser.open(page, f"#{next(stop.index for stop in trace.stops if stop.kind == 'loss')}")
        assert browser.console() == []
    finally:
        browser.look()


def test_no_request_leaves_the_page(browser: Browser, page: Path) -> None:
    browser.driver.get_log("performance")
    browser.open(page, "#5.3")
    browser.press("arrow_right", "n", "l", "/")
    browser.press("escape")
    messages = [json.loads(entry["message"])["message"] for entry in browser.driver.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    assert [url.split("#")[0] for url in urls if url != "about:blank"] == [page.as_uri()]
    refused = browser.driver.execute_async_script(
        "const done = arguments[0]; fetch('https://example.org').then(() => done('sent'), () => done('refused'))"
    )
    assert refused == "refused"
    assert any("Content Security Policy" in message for message in browser.console())


def test_the_page_prints_what_stands_there(browser: Browser, page: Path, trace: StepTrace) -> None:
    stop, line = place_of(trace, "backward", "attention", "ds")
    browser.open(page, f"#{stop.index}.{line}")
    printed = base64.b64decode(browser.driver.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert printed.startswith(b"%PDF")
    assert len(printed) > 20_000
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dict(media="print"))
    try:
        assert browser.run("return getComputedStyle(document.querySelector('#graph')).display") == "none"
        assert browser.run("return getComputedStyle(document.querySelector('#arrays')).overflow") == "visible"
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dict(media=""))
    assert browser.console() == []


def test_reduced_motion_is_kept(browser: Browser, page: Path) -> None:
    moving = "return getComputedStyle(document.querySelector('button')).transitionDuration"
    try:
        browser.look(prefers_reduced_motion="reduce")
        browser.open(page)
        assert browser.run(moving) == "0s"
        browser.look(prefers_reduced_motion="no-preference")
        assert browser.run(moving) != "0s"
    finally:
        browser.look()


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
