"""The data card in a real Chromium: its numbers are those of the JSON, and text from data stays text."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from minillm.corpus.document import Document
from minillm.corpus.report import report
from minillm.corpus.report.page import json_for_html
from tests.browser import Browser, check_policy
from tests.corpus.report_corpus import drawn_documents, whole_corpus, write_documents, write_record

DOCUMENTS = drawn_documents()
KEPT = [document for document in DOCUMENTS if not document.dropped]
ATTACKS = [
    "<script>hacked = 1</script>",
    "</script><script>hacked = 2</script>",
    "<!--<script>hacked = 3",
    "<img src=x onerror='hacked = 4'>",
    '"><svg onload=hacked=5>',
    "' autofocus onfocus='hacked = 6' x='",
    "</style><style>* {display: none !important}</style>",
    "}; body {display: none} @import 'https://evil.example/x.css'; .x{background:url(https://evil.example/y)}",
    "</title></head></pre></textarea><iframe src=javascript:parent.hacked=7>",
    "javascript:hacked=8//",
    "{{constructor.constructor('hacked=9')()}} ${hacked=10} @POLICY@ @SCRIPT@ @CARD@",
    "line\u2028separator\u2029 \0 nul \x1b[31m escape \x85",
    "\u202egnihtemos esrever\u202c \u2066isolate \u200f mark \ufeff",
    "__proto__",
    "constructor",
    "\ud800 lone \udfff",
    "e\u0301" + "\u0301" * 300,
    "]]>&lt;b&gt;&#60;b&#62;",
]


def cells(browser: Browser, table: str, key: str) -> list[str]:
    """The texts of a column of the table with this caption."""
    script = (
        "const found = [...document.querySelectorAll('table')].find((one) => one.caption.textContent === arguments[0]);"
        "return [...found.querySelectorAll(`[data-key='${arguments[1]}']`)].map((one) => one.textContent)"
    )
    return browser.run(script, table, key)


def number(text: str) -> int:
    return int(re.sub(r"[,≈ ]", "", text))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(whole_corpus(tmp_path_factory.mktemp("page") / "a corpus", DOCUMENTS))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page on which every text that comes from data is an attack."""
    folder = tmp_path_factory.mktemp("hostile") / "<img src=x onerror=hacked=11>@POLICY@"
    folder.mkdir()
    documents = []
    for i, attack in enumerate(ATTACKS):
        info = {"url": f"https://{attack}/", "licence": attack, "cluster": f"{attack} {i}", "masked": {attack: 1}}
        documents.append(Document(attack, f"{attack} {i}", attack, attack[:40], info=info))
        others = {"cluster": f"{attack} {i}", "duplicate_of": f"{attack} {i}", "url": attack}
        documents.append(Document(f"{attack} again", f"{attack} {i}b", attack, "en", f"{attack}: {attack}", others))
    documents.append(
        Document("W" * 1_000_000, "long", "s" * 100_000, "l" * 100_000, "r" * 100_000 + ": x", {"url": "u" * 10**6})
    )
    write_documents(folder / "clean.jsonl", documents)
    settings = {attack: attack for attack in ATTACKS if not attack.startswith("\ud800")}
    write_record(folder, "clean", ATTACKS, settings, problems={"count": 3, "first": ATTACKS}, version=ATTACKS[0])
    return report(folder)


# --- the file ------------------------------------------------------------------------------------------------------


def test_the_page_is_one_file_that_loads_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    check_policy(text)
    outside_data = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.DOTALL)
    assert not re.search(
        r"<link|<iframe|<img|\bsrc=|@import|https?://(?!www\.w3\.org/2000/svg)|innerHTML|eval\(", outside_data
    )


def test_the_data_of_the_page_is_the_json_beside_it(page: Path) -> None:
    [data] = re.findall(r'id="card">([^<]*)<', page.read_text(encoding="utf-8"))
    assert json.loads(data) == json.loads(page.with_suffix(".json").read_text())


@pytest.mark.parametrize("attack", ATTACKS)
def test_json_in_html_has_nothing_that_html_reads(attack: str) -> None:
    text = json_for_html({attack: [attack]})
    assert text.isascii()
    assert not set("<>&\0") & set(text)
    assert json.loads(text) == {attack: [attack]}


# --- numbers -------------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_json_and_of_a_count(browser: Browser, page: Path) -> None:
    browser.open(page)
    card = json.loads(page.with_suffix(".json").read_text())
    composition = card["composition"]
    words = sum(len(one.text.split()) for one in KEPT)
    exact = browser.run(
        "return Object.fromEntries([...document.querySelectorAll('[data-tile]')]"
        ".map((one) => [one.dataset.tile, one.dataset.exact]))"
    )
    assert number(exact["documents"]) == composition["kept"]["documents"] == len(KEPT)
    assert number(exact["words"]) == composition["kept"]["words"] == words
    assert number(exact["tokens"]) == composition["kept"]["tokens"] == card["vocabulary"]["tokens"]
    assert number(exact["bytes"]) == sum(len(one.text.encode()) for one in KEPT)
    for table, rows, key in ("By source", "sources", "source"), ("By language", "languages", "language"):
        names = cells(browser, table, key)
        assert names == [row[key] or "(none)" for row in composition[rows]]
        for column in "documents_read", "documents", "words", "tokens":
            assert list(map(number, cells(browser, table, column))) == [row[column] for row in composition[rows]]
        for name, kept in zip(names, cells(browser, table, "documents"), strict=True):
            assert number(kept) == sum((getattr(one, key) or "(none)") == name for one in KEPT)
    rules = card["preprocessing"]["rules"]
    dropped = {
        rule: number(text)
        for rule, text in zip(
            cells(browser, "Documents that each rule dropped", "rule"),
            cells(browser, "Documents that each rule dropped", "documents"),
            strict=True,
        )
    }
    assert dropped == {row["rule"]: row["documents"] for row in rules}
    assert dropped["gopher_quality"] == sum(one.rule == "gopher_quality" for one in DOCUMENTS)
    groups = {row["group"]: row for row in card["people"]["groups"]}
    table = "Words for groups of people in the kept text"
    shown = dict(zip(cells(browser, table, "group"), map(number, cells(browser, table, "occurrences")), strict=True))
    assert shown == {name: row["occurrences"] for name, row in groups.items()}
    assert shown["women"] > 0
    assert browser.console() == []


def test_every_part_of_the_card_is_on_the_page(browser: Browser, page: Path) -> None:
    browser.open(page)
    card = json.loads(page.with_suffix(".json").read_text())
    for rule in card["preprocessing"]["rules"]:
        shown = browser.run(
            "const rules = [...document.querySelectorAll('details.rule')];"
            "const found = rules.find((one) => one.dataset.rule === arguments[0]);"
            "return [...found.querySelectorAll('.sample')].map((one) => one.textContent)",
            rule["rule"],
        )
        assert len(shown) == len(rule["samples"]) > 0
        for sample, text in zip(rule["samples"], shown, strict=True):
            assert sample["why"] in text
            assert sample["text"] in text
            assert (
                sample["characters_left_out"] == 0
                or f"cut here; {sample['characters_left_out']:,} more character" in text
            )
    assert len(browser.texts(".beside")) == len(card["preprocessing"]["duplicates"]["examples"])
    assert {text.strip() for text in browser.texts(".beside mark")} <= {"and", "one", "more"}
    assert browser.texts(".beside mark")
    assert [text.split(" minillm")[0] for text in browser.texts("details.stage summary")] == [
        "extract",
        "dedup",
        "clean",
        "split",
    ]
    assert '"bands": 25' in browser.text("#stages")
    for row in card["files"]:
        assert row["sha256"] in browser.text("#stages")
    for limit in card["limits"]:
        assert limit in browser.text("#limits")
    for name in ("CC0", "host1.example", "Flesch 1948", "Amstad 1978", card["definitions"]["tokens_a_word"]):
        assert name in browser.text("#parts")


def test_a_histogram_has_bars_as_high_as_its_numbers(browser: Browser, page: Path) -> None:
    browser.open(page)
    bins = json.loads(page.with_suffix(".json").read_text())["composition"]["lengths"]["bins"]
    heights = browser.run(
        "return [...document.querySelector('#composition .histogram').querySelectorAll('rect')]"
        ".map((one) => [one.getAttribute('class'), +one.getAttribute('height'), one.textContent])"
    )
    most = max(row["documents"] + row["dropped_documents"] for row in bins)
    for kind, key in ("kept", "documents"), ("dropped", "dropped_documents"):
        shown = [(height, title) for one, height, title in heights if one == kind]
        assert [height for height, _ in shown] == pytest.approx([150 * row[key] / most for row in bins])
        assert [int(title.split(": ")[1].split()[0].replace(",", "")) for _, title in shown] == [
            row[key] for row in bins
        ]


# --- hostile documents ---------------------------------------------------------------------------------------------


def test_the_attacks_would_work_on_a_careless_page(browser: Browser, tmp_path: Path) -> None:
    careless = tmp_path / "careless.html"
    body = "".join(attack for attack in ATTACKS[:5] if "<!--" not in attack)
    careless.write_text(f"<!doctype html><meta charset=utf-8><body data-ready=yes>{body}", encoding="utf-8")
    browser.open(careless)
    assert browser.run("return globalThis.hacked") is not None
    browser.console()


def test_hostile_documents_execute_nothing(browser: Browser, hostile: Path) -> None:
    browser.driver.get_log("performance")
    browser.console()
    browser.open(hostile)
    browser.run("for (const one of document.querySelectorAll('details')) one.open = true")
    assert browser.run("return globalThis.hacked") is None
    assert browser.console() == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.driver.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    assert [url for url in urls if url != "about:blank"] == [hostile.as_uri()]
    assert browser.run("return document.querySelectorAll('img, iframe, textarea, link, object, form').length") == 0
    assert browser.run("return [document.scripts.length, document.querySelectorAll('style').length]") == [2, 1]
    assert (
        browser.run(
            "return [...document.querySelectorAll('*')].flatMap((one) => [...one.attributes])"
            ".filter(({name, value}) => name.startsWith('on') || name === 'style' || /^\\s*javascript:/i.test(value)"
            " && name !== 'data-rule').length"
        )
        == 0
    )
    links = browser.run("return [...document.querySelectorAll('[href]')].map((one) => one.getAttribute('href'))")
    assert all(re.fullmatch(r"#[a-z]+", link) for link in links)
    assert browser.run("return Object.keys(Object.prototype).length") == 0


def test_hostile_documents_are_shown_as_text(browser: Browser, hostile: Path) -> None:
    browser.open(hostile)
    assert browser.run("return document.title") == "Data card of <img src=x onerror=hacked=11>@POLICY@"
    assert browser.run("return getComputedStyle(document.body).display") != "none"
    rules = cells(browser, "Documents that each rule dropped", "rule")
    sources = cells(browser, "By source", "source")
    samples = browser.texts(".sample pre")
    unseen = "[\\0-\\x08\\x0b-\\x1f\\x7f-\\x9f\u200b\u200e-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
    for attack in ATTACKS:
        shown = "".join(f"U+{ord(one):04X}" if re.match(unseen, one) else one for one in attack)
        cut = shown[:80]
        assert any(text.startswith(cut) for text in sources), attack
        assert any(text.startswith(cut.partition(":")[0]) for text in rules), attack
        assert any(cut in text for text in samples), attack
    for code in ("U+0000", "U+202E", "U+2028", "U+001B", "U+D800"):
        assert code in browser.texts(".unseen")
    text = browser.text("body")
    assert not re.search(
        "[\u202a-\u202e\u2066-\u2069\0\u2028]", re.sub(r"(?s)<[^>]*>", "", text.partition('{"format"')[0])
    )


def test_long_words_are_cut_and_break_no_line(browser: Browser, hostile: Path) -> None:
    assert hostile.stat().st_size < 1_500_000
    for size in "desktop", "phone":
        browser.look(size)
        try:
            browser.open(hostile)
            browser.run("for (const one of document.querySelectorAll('details')) one.open = true")
            assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
        finally:
            browser.look()
    assert any("cut here; 999,400 more characters" in text for text in browser.texts(".cut"))
    assert max(map(len, cells(browser, "By source", "source"))) < 400


# --- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("documents", [[], [Document("", "0")], [Document("one", "0", dropped="r: 1 word, under 50")]])
def test_the_page_works_with_hardly_any_document(browser: Browser, tmp_path: Path, documents: list[Document]) -> None:
    write_documents(tmp_path / "clean.jsonl", documents)
    browser.open(report(tmp_path))
    exact = browser.run("return document.querySelector('[data-tile=documents]').dataset.exact")
    assert number(exact) == sum(not one.dropped for one in documents)
    assert "NaN" not in browser.text("#parts")
    assert "undefined" not in browser.text("#parts")
    assert len(browser.texts("section")) == 10
    assert browser.console() == []


def test_the_page_works_with_five_thousand_clusters(browser: Browser, tmp_path: Path) -> None:
    documents: list[Document] = []
    for i in range(5000):
        first = f"file:{i}"
        documents.append(Document(f"text number {i}", first, "s", info={"cluster": first}))
        for j in range(1 + (i == 77) * 30 + (i % 5 == 0)):
            info = {"cluster": first, "duplicate_of": first}
            documents.append(
                Document(f"text number {i}", f"{first} {j}", "s", None, f"exact_duplicate: of {first}", info)
            )
    write_documents(tmp_path / "dedup.jsonl", documents)
    page = report(tmp_path)
    assert page.stat().st_size < 400_000
    browser.open(page)
    sizes = cells(browser, "Clusters by their number of documents", "clusters")
    assert sum(map(number, sizes)) == 5000
    assert list(map(number, sizes))[:2] == [3999, 1000]
    assert cells(browser, "The largest clusters", "first_words")[0] == "text number 77"
    assert cells(browser, "The largest clusters", "documents")[0] == "32"
    assert browser.console() == []


# --- looks ---------------------------------------------------------------------------------------------------------


def test_light_dark_and_phone(browser: Browser, page: Path) -> None:
    try:
        for size, scheme in [("desktop", "light"), ("desktop", "dark"), ("phone", "light"), ("phone", "dark")]:
            browser.look(size, prefers_color_scheme=scheme)
            browser.open(page)
            browser.run("for (const one of document.querySelectorAll('details')) one.open = true")
            assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
            paper = browser.run("return getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", paper))) > 384) == (scheme == "light")
        assert browser.console() == []
    finally:
        browser.look()


def test_the_page_prints_everything(browser: Browser, page: Path) -> None:
    browser.open(page)
    closed = "return [...document.querySelectorAll('details:not(.how):not([open])')].length"
    before = browser.run(closed)
    assert before > 5
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run(closed) == 0
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run(closed) == before
    printed = base64.b64decode(browser.driver.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert printed.startswith(b"%PDF")
    assert len(printed) > 50_000
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dict(media="print"))
    try:
        assert browser.run("return getComputedStyle(document.querySelector('nav')).display") == "none"
        assert browser.run("return getComputedStyle(document.querySelector('pre')).maxHeight") == "none"
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dict(media=""))


def test_a_keyboard_is_enough(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.press("tab")
    assert browser.run("return document.activeElement.className") == "skip"
    browser.press("enter")
    assert browser.run("return location.hash") == "#composition"
    browser.run("document.querySelector('#contents a[href=\"#rules\"]').focus()")
    browser.press("enter")
    assert browser.run("return location.hash") == "#rules"
    browser.run("document.querySelector('details.rule summary').focus()")
    browser.press("enter")
    assert browser.run("return document.querySelector('details.rule').open")
    browser.press("tab")
    assert browser.run("return document.activeElement.closest('details.rule') !== null")
    assert browser.run(
        "return [...document.querySelectorAll('.scroll')].every((one) => one.tabIndex === 0 && one.ariaLabel)"
    )


def test_numbers_have_their_definitions(browser: Browser, page: Path) -> None:
    browser.open(page)
    definitions: dict[str, Any] = json.loads(page.with_suffix(".json").read_text())["definitions"]
    headings = browser.run(
        "return [...document.querySelectorAll('thead th span, .tiles dt span')].map((one) => one.title)"
    )
    assert len(headings) > 40
    assert set(headings) <= set(definitions.values())
    for section in browser.run("return [...document.querySelectorAll('section')].map((one) => one.id)"):
        assert section == "limits" or browser.text(f"#{section} .how").startswith("How is this counted?")
