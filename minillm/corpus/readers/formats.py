"""The formats that are read, by the endings of names, and how each is cut into pieces.

| file                    | pieces                                                           | documents           |
|-------------------------|------------------------------------------------------------------|---------------------|
| .txt, .md               | the file; if it is over 4 MB, about 256 KB up to an empty line   | one a piece         |
| .jsonl                  | whole lines, about a megabyte                                    | one a line          |
| .json, .csv, .tsv       | records, written as lines of JSON (records.py)                   | one a record or row |
| .parquet                | rows of a row group (parquet.py)                                 | one a row           |
| .html, .htm, .xhtml     | the file                                                         | its main text       |
| .warc                   | a page in it (warc.py)                                           | its main text       |
| .gz, .zst, .zip, .tar   | those of what is in it (archives.py)                             |                     |

Nothing that a file holds stops the run.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace

from minillm.corpus.readers.archives import tar_pieces, zip_pieces
from minillm.corpus.readers.parquet import parquet_pieces
from minillm.corpus.readers.pieces import Found, Opened, Piece, line_pieces, page_pieces, text_pieces
from minillm.corpus.readers.records import csv_pieces, json_pieces
from minillm.corpus.readers.skipped import Skip, Skipped
from minillm.corpus.readers.sources import RawFile
from minillm.corpus.readers.streams import Budget, gunzipped, unzstandard
from minillm.corpus.readers.warc import warc_pieces

ADVICE = {  # for formats that are common and not read here
    ".pdf": "a PDF says where letters stand on a page, not what the text is; write it to .txt with pdftotext "
    "(poppler), or a scan with ocrmypdf",
    ".docx .doc .odt .rtf .epub": "write it to .txt or .html first, such as with pandoc or LibreOffice",
    ".pptx .ppt .xlsx .xls .ods": "write it to .txt or .csv first, such as with LibreOffice",
    ".bz2 .xz .7z .rar": "unpack it first; .gz, .zst, .zip and .tar are read as they are",
    ".xml": "write its text to .txt or .jsonl first; there is no rule that fits all XML",
    ".arrow .feather": "write it as .parquet or .jsonl first",
}


def pieces_of_file(raw: RawFile, text_field: str) -> Iterator[tuple[Found, int]]:
    """The pieces of a file on disk, each with the number of the file's bytes that are read with it."""
    place = Skipped(raw.name, "", "", "")
    try:
        status = os.stat(raw.path)
        if not stat.S_ISREG(status.st_mode):  # a pipe would wait for ever
            raise Skip("unsupported", "it is a device, a pipe or a socket; give a file")
        with open(raw.path, "rb") as file:
            info = {"licence": raw.source.licence} if raw.source.licence else {}
            budget = Budget(status.st_size)
            opened = Opened(
                raw.source.name, raw.name, raw.path.name, file, budget, text_field, info, file, inner=pieces
            )
            for piece in pieces(opened):
                yield piece, file.tell()
    except Skip as skip:
        yield place._replace(kind=skip.kind, why=skip.why), 0
    except OSError as error:
        yield place._replace(kind="damaged", why=f"it cannot be read ({error.strerror or error})"), 0


def pieces(opened: Opened) -> Iterator[Found]:
    """The pieces of an open file. What stops its reader is the last of them, a Skipped that says after which place."""
    last, none = "", True
    try:
        for piece in _reader(opened.reads_as)(opened):
            none = False
            if isinstance(piece, Piece):
                last = f"after {piece.last}" if piece.file == opened.name else ""
            yield piece
        if none:
            raise Skip("empty", "there is no record in it")
    except Skip as skip:
        yield opened.skipped(last, skip)


def _reader(name: str) -> Callable[[Opened], Iterator[Found]]:
    """The function that reads files of this name. Raises: Skip where there is none."""
    ending = _ending(name)
    if ending in READERS:
        return READERS[ending]
    for endings, advice in ADVICE.items():
        if ending in endings.split():
            raise Skip("unsupported", advice)
    raise Skip("unsupported", f"{ending or 'a name without an ending'} is not read; there are {' '.join(READERS)}")


def _ending(name: str) -> str:
    return os.path.splitext(name.lower())[1]


def _decompressed_pieces(opened: Opened) -> Iterator[Found]:
    """The pieces of what a .gz or .zst holds, which has the name without that ending."""
    name, ending = opened.reads_as[: -len(_ending(opened.reads_as))], _ending(opened.reads_as)
    if ending == ".zst":
        stream = unzstandard(opened.stream, opened.budget, opened.name)
    else:
        stream = gunzipped(opened.stream, opened.budget)
    name = f"{name}.tar" if ending == ".tgz" else name
    yield from opened.inner(replace(opened, reads_as=name, stream=stream, file=None))


READERS: dict[str, Callable[[Opened], Iterator[Found]]] = {
    **dict.fromkeys((".txt", ".text", ".md", ".markdown"), text_pieces),
    **dict.fromkeys((".jsonl", ".ndjson"), line_pieces),
    ".json": json_pieces,
    **dict.fromkeys((".csv", ".tsv"), csv_pieces),
    ".parquet": parquet_pieces,
    **dict.fromkeys((".html", ".htm", ".xhtml"), page_pieces),
    ".warc": warc_pieces,
    **dict.fromkeys((".gz", ".tgz", ".zst"), _decompressed_pieces),
    ".zip": zip_pieces,
    ".tar": tar_pieces,
}
