"""`minillm data report`: count a corpus, and write its data card as JSON and as a page."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from minillm.corpus.report.card import make_card
from minillm.corpus.report.counts import CountChunk, Counts, Settings, sizes_of
from minillm.corpus.report.folder import CorpusFolder
from minillm.corpus.report.page import page_of
from minillm.corpus.stage import map_chunks
from minillm.errors import InputError
from minillm.files import check_folder_of, writing

PAGE = "data_card.html"


def report(folder: Path, out: Path | None = None, processes: int = 1, seed: int = 0) -> Path:
    """Write the data card of a corpus: a page, and a JSON of the same name beside it; returns where the page is.

    folder: what `minillm data build` has written. out: the page, data_card.html in the folder by default.
    seed: of the samples that are shown.
    Raises: InputError where the folder has no documents, the seed is negative, or the card cannot be written.
    """
    folder, out = Path(folder), Path(folder, PAGE) if out is None else Path(out)
    if not folder.is_dir():
        raise InputError(f"data report: {folder} is no folder; give the one that `minillm data build` has written")
    if out.suffix not in (".html", ".htm"):
        raise InputError(f"data report: --out is {out}; give a name that ends in .html, and the JSON lies beside it")
    if seed < 0:
        raise InputError(f"data report: seed is {seed}; give a whole number of 0 or more")
    check_folder_of("data report", "--out", out)
    corpus = CorpusFolder(folder)
    settings = Settings(corpus.tokenizer, seed)
    counts = Counts(settings)
    for found in map_chunks(CountChunk(settings), corpus.documents, processes, title="report"):
        counts.merge(found)
    splits = {name: sum(map_chunks(sizes_of, [path], processes), Counter()) for name, path in corpus.splits.items()}
    card = make_card(counts, corpus, splits)
    page = page_of(card)
    for path, text in (out.with_suffix(".json"), json.dumps(card, indent=1) + "\n"), (out, page):
        with writing("data report", path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    return out
