"""Corpora for the tests of the data card, written as the stages would write them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minillm.corpus.document import Document, open_lines
from minillm.data.shards import write_shards
from minillm.tokenizers import BPETokenizer

ENGLISH = (
    "the women walked to the river and a man sold them bread for the black horse . They were happy ! It rained".split()
)
GERMAN = "die Frau ging zum Fluss und ein Mann verkaufte Brot für das Pferd . Sie waren glücklich ! Es regnete".split()
REASONS = "gopher_quality: {} words, under 50", "language: de with score 0.{}, under 0.65", "c4: a line has {{ ({})"


def write_documents(path: Path, documents: Iterable[Document]) -> Path:
    with open_lines(path, "wb") as lines:
        for document in documents:
            lines.write(document.to_line())
    return path


def drawn_documents(number: int = 400, seed: int = 0) -> list[Document]:
    """Documents of two languages and three sources, some dropped, some of them duplicates of an earlier one."""
    draw = random.Random(seed)
    documents: list[Document] = []
    for i in range(number):
        source = draw.choice(["books", "news", "Wikipedia, die freie"])
        language = draw.choice(["en", "en", "de", None])
        words = draw.choices(GERMAN if language == "de" else ENGLISH, k=draw.choice([3, 40, 150, 700]))
        document = Document(" ".join(words), f"{source}/file:{i}", source, language)
        if draw.random() < 0.6:
            document.info["url"] = f"https://www.host{draw.randrange(40) // 2}.example/page{i}"
        if draw.random() < 0.3:
            document.info["licence"] = draw.choice(["CC BY 4.0", "CC0"])
        if draw.random() < 0.25:
            document.dropped = draw.choice(REASONS).format(draw.randrange(50))
        elif documents and draw.random() < 0.25:
            mark_duplicate(document, draw.choice(documents))
        elif draw.random() < 0.3:
            document.info |= {"lines_removed": {"no end": 2, "javascript": 1}, "removed_lines": 3}
        documents.append(document)
    return documents


def mark_duplicate(document: Document, other: Document) -> None:
    """Mark a document as a near-duplicate, as the stage `dedup` does."""
    if "duplicate_of" not in other.info and other.dropped is None:
        document.text = f"{other.text} and one more"
        other.info["cluster"] = document.info["cluster"] = document.info["duplicate_of"] = other.id
        document.info["jaccard"] = 0.93
        document.dropped = f"near_duplicate: Jaccard 0.93 to {other.id}"


def write_record(folder: Path, stage: str, inputs: list[str], settings: dict[str, Any], **others: Any) -> None:
    record = {
        "format": 1,
        "version": "0.1.0",
        "stage": stage,
        "settings": settings,
        "inputs": [{"file": name, "bytes": 10, "modified_ns": 7, "begins": "00ff"} for name in inputs],
        "done": True,
        "documents": {"kept": 3, "gopher_quality": 1},
        "text_bytes": {"read": 100, "kept": 80, "gopher_quality": 20},
        "problems": {"count": 2, "first": ["raw/a.pdf: a PDF", "line 3 of raw/b.jsonl"]},
        **others,
    }
    (folder / f"{stage}.json").write_text(json.dumps(record))


def whole_corpus(folder: Path, documents: list[Document]) -> Path:
    """A folder with all that `data build` leaves: stages, records, splits, a tokenizer and shards."""
    folder.mkdir()
    write_documents(folder / "extract.jsonl.gz", [Document("other", "raw:0")])
    write_documents(folder / "dedup.jsonl.gz", [Document("other", "raw:0")])
    write_documents(folder / "clean.jsonl.gz", documents)
    write_record(folder, "extract", ["raw.txt"], {"seconds": 5.0})
    write_record(folder, "dedup", ["extract.jsonl.gz"], {"bands": 25, "rows": 8})
    write_record(folder, "clean", ["dedup.jsonl.gz"], {"gopher_quality": {"min_words": 50}})
    write_record(folder, "split", ["clean.jsonl.gz"], {"validation": 0.1})
    kept = [document for document in documents if not document.dropped]
    write_documents(folder / "train.jsonl.gz", kept[10:])
    write_documents(folder / "validation.jsonl.gz", kept[:10])
    tokenizer = BPETokenizer.train(" ".join(document.text for document in kept), 300)
    tokenizer.save(folder / "tokenizer")
    for name, part in ("train", kept[10:]), ("validation", kept[:10]):
        ids = [i for document in part for i in tokenizer.encode(document.text)]
        write_shards(folder, name, ids, tokenizer.vocab_size, tokenizer.fingerprint(), 5000)
    return folder
