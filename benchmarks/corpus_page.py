"""A picture of the data card's page, for the README: `python benchmarks/corpus_page.py`.

It writes benchmarks/results/data_card.png, and data_card_dropped.png with what the rules dropped. The corpus is built
on the spot, by all stages, from texts that are at hand: the topics of Python's help, the Markdown files of this
project, English and German captions of ../shared/data where they are there, and some of the topics again with other
words and with lines that are no prose, so that every part has something to show. It needs Chromium and selenium
(`pip install ".[browser,data]"`).
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

sys.path.insert(0, str(Path(__file__).parents[1]))

from minillm.corpus.build import build
from minillm.corpus.config import read_config
from minillm.corpus.report import report
from tests.browser import Browser, browsers

ROOT = Path(__file__).parents[1]
CONFIG = """
[[sources]]
path = "{raw}/help.jsonl"
name = "Python's help"
licence = "PSF-2.0"
[[sources]]
path = "{raw}/copies.jsonl"
name = "copies"
[[sources]]
path = "{root}/minillm/**/*.md"
name = "guide"
{captions}
[clean]
rules = ["language", "gopher_repetition", "gopher_quality", "fineweb", "word_lists"]
[dedup]
[split]
[shards]
vocab_size = 2048
"""
CAPTIONS = '[[sources]]\npath = "{raw}/captions-{language}.jsonl"\nname = "captions, {language}"\n'
CAPTIONS_A_DOCUMENT = 12
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with the data")
    data = parser.parse_args().data
    with tempfile.TemporaryDirectory() as place:
        raw, corpus = Path(place, "raw"), Path(place, "help-and-captions")
        raw.mkdir()
        captions = write_raw(raw, data)
        config = Path(place, "corpus.toml")
        config.write_text(CONFIG.format(raw=raw, root=ROOT, captions=captions))
        build(read_config(config), corpus, processes=2)
        page = report(corpus)
        for browser in browsers():
            picture(browser, page, "composition", "light", RESULTS / "data_card.png")
            picture(browser, page, "rules", "dark", RESULTS / "data_card_dropped.png")


def write_raw(raw: Path, data: Path) -> str:
    """Write the raw files; returns the part of the configuration that names the captions."""
    texts = [topics[name] for name in sorted(topics)]
    write(raw / "help.jsonl", texts, "https://docs.python.org/3/reference")
    write(raw / "copies.jsonl", list(copies(texts)), "https://mirror.example/python")
    found = ""
    for language in "en", "de":
        path = data / f"multi30k.train.{language}.gz"
        if path.is_file():
            lines = gzip.decompress(path.read_bytes()).decode().splitlines()[:6000]
            chunks = [lines[i : i + CAPTIONS_A_DOCUMENT] for i in range(0, len(lines), CAPTIONS_A_DOCUMENT)]
            write(
                raw / f"captions-{language}.jsonl", [" ".join(chunk) for chunk in chunks], f"https://{language}.example"
            )
            found += CAPTIONS.format(raw=raw, language=language)
    return found


def write(path: Path, texts: list[str], address: str) -> None:
    records = ({"text": text, "url": f"{address}/{number}"} for number, text in enumerate(texts))
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def copies(texts: list[str]) -> list[str]:
    """Texts again: some with a few other words, some as a menu, some cut short."""
    draw = random.Random(0)
    found = []
    for text in draw.choices(texts, k=120):
        words = text.split(" ")
        for _ in range(draw.randrange(max(1, len(words) // 200))):
            words[draw.randrange(len(words))] = draw.choice(["thing", "value", "word"])
        kind = draw.random()
        found.append(
            " ".join(words)
            if kind < 0.7
            else "Home | News | Log in\n" * draw.randrange(5, 40)
            if kind < 0.85
            else text[:90]
        )
    return found


def picture(browser: Browser, page: Path, part: str, scheme: str, out: Path) -> None:
    """Write a picture of the page from a part on, with the samples of its first rule open."""
    browser.look(prefers_color_scheme=scheme)
    metrics = dict(width=1280, height=1500, deviceScaleFactor=1, mobile=False)
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.open(page)
    browser.run("document.querySelector('details.rule').open = true")
    if part != "composition":
        browser.run("document.getElementById(arguments[0]).scrollIntoView()", part)
    browser.driver.save_screenshot(str(out))
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
