"""The page in a real browser: a person walks it by keys alone, by links and by search, and it fits the window."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest

from minillm.study.step.trace import StepTrace
from tests.browser import Browser
from tests.study.step.pages import place_of, stop_of

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
    browser.press(*"attention backward")
    assert browser.text("#found li").startswith("attention backward in h.1.attn")
    browser.press("escape")
    assert not browser.run("return document.querySelector('#search').open")
    browser.press("/")
    assert browser.run("return document.querySelector('#search').open")
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
