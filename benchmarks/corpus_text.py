"""Large and dirty corpora made from small clean texts, for the benchmarks of the data pipeline.

Documents are random sentences of real texts, so that two of them have next to nothing in common; then some are made
near-duplicates of others, and some are given what web pages have. Everything follows from the seed.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

DATA = Path(__file__).parents[1].parent / "shared" / "data"
SENTENCES = range(12, 61)  # of a document
PARAGRAPH = 6  # sentences
COOKIES = "We use cookies to improve your experience. By using this site you accept our cookie policy."
MENU = "Home | About | Contact | Login | Privacy policy | Terms of use"


def sentences(german: bool = True) -> dict[str, list[str]]:
    """The sentences of each source that is at hand."""
    found = {"python": _split("\n".join(topics[name] for name in sorted(topics)))}
    files = {
        "plays": [DATA / "tinyshakespeare.txt"],
        "reviews": [DATA / "rt-polarity.pos", DATA / "rt-polarity.neg"],
        "captions": [DATA / "multi30k.train.en.gz"],
        **({"german": [DATA / "multi30k.train.de.gz"]} if german else {}),
    }
    for source, paths in files.items():
        if all(path.exists() for path in paths):
            found[source] = [one for path in paths for one in _split(_text(path))]
    return found


def _text(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", "replace")


def _split(text: str) -> list[str]:
    parts = re.split(r"(?<=[.!?])\s+|\n{1,}", text)
    return [" ".join(part.split()) for part in parts if len(part.split()) >= 6]


def documents(seed: int, near: float = 0.1, exact: float = 0.05, dirty: float = 0.2) -> Iterator[dict[str, str]]:
    """Documents without end. near, exact, dirty: the shares of near-duplicates, copies, and pages with boilerplate."""
    draw = random.Random(seed)
    pool = sentences()
    names = sorted(pool)
    earlier: list[dict[str, str]] = []  # the last thousand, of which duplicates are made
    while True:
        kind = draw.random()
        if earlier and kind < exact:
            document = dict(draw.choice(earlier))
        elif earlier and kind < exact + near:
            document = dict(draw.choice(earlier))
            lines = document["text"].split(". ")
            for _ in range(max(1, len(lines) // 30)):
                lines[draw.randrange(len(lines))] = draw.choice(pool[document["source"]]).rstrip(".")
            document["text"] = ". ".join(lines)
        else:
            source = draw.choice(names)
            chosen = draw.choices(pool[source], k=draw.choice(SENTENCES))
            paragraphs = [" ".join(chosen[i : i + PARAGRAPH]) for i in range(0, len(chosen), PARAGRAPH)]
            if draw.random() < dirty:
                paragraphs = [MENU, COOKIES, *paragraphs, COOKIES]
            document = {"source": source, "text": "\n\n".join(paragraphs)}
            earlier.append(document)
            if len(earlier) > 1000:
                earlier[draw.randrange(1000)] = earlier.pop()
        yield document


def write_corpus(path: Path, megabytes: float, seed: int = 0) -> int:
    """Write so many megabytes of documents as .jsonl; returns their number."""
    size, number = 0, 0
    with path.open("wb") as file:
        for document in documents(seed):
            line = json.dumps(document, ensure_ascii=False).encode() + b"\n"
            size += file.write(line)
            number += 1
            if size >= megabytes * 1e6:
                return number
    raise AssertionError


# --- a small corpus whose clean part is known ------------------------------------------------------------------------

LETTERS = "abcdefghijklmnopqrstuvwxyz      0123456789{}<>/;="
OFFERS = "buy cheap watches online best price free shipping click here now discount".split()


def clean_documents(seed: int) -> list[dict[str, str]]:
    """English texts as documents of neighbouring sentences, in a random order; no sentence is in two of them."""
    draw = random.Random(seed)
    found = []
    for source, lines in sentences(german=False).items():
        lines, start = list(dict.fromkeys(lines)), 0
        while start < len(lines):
            size = draw.choice(range(10, 31))
            chosen, start = lines[start : start + size], start + size
            if sum(len(line.split()) for line in chosen) >= 60:
                found.append({"source": source, "text": "\n".join(chosen)})
    draw.shuffle(found)
    return found


def spoiled(documents: list[dict[str, str]], seed: int) -> list[dict[str, str]]:
    """The documents as a crawl finds them: half of all pages are copies, nearly copies, or not worth reading."""
    draw = random.Random(seed)
    german = sentences()["german"]
    found = list(documents)
    for document in draw.sample(documents, len(documents) // 10):  # one in ten is copied two to six times
        for _ in range(draw.randint(2, 6)):
            lines = document["text"].split("\n")
            if draw.random() < 0.7:  # most copies differ by a line
                lines[draw.randrange(len(lines))] = (
                    f"Posted on {draw.randint(1, 28)} May by user{draw.randint(1, 999)}."
                )
            found.append({**document, "text": "\n".join(lines)})
    for _ in range(len(documents) // 5):
        kind = draw.choice(("menu", "noise", "offer", "german"))
        if kind == "menu":
            text = "\n".join([MENU, *(f"- item {draw.randint(1, 999)}" for _ in range(40)), COOKIES, MENU])
        elif kind == "noise":
            text = "".join(draw.choices(LETTERS, k=1500))
        elif kind == "offer":
            text = "\n".join([" ".join(draw.choices(OFFERS, k=8))] * 25)
        else:
            text = "\n".join(draw.sample(german, 20))
        found.append({"source": "web", "text": text})
    draw.shuffle(found)
    return found
