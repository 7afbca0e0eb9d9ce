"""Pages in a WARC, the format of web archives: the responses of servers, and the texts of a .wet.

A page is text/html, application/xhtml+xml or text/plain, and was sent with a status of 200 to 299. Everything else,
such as pictures and pages that were not found, is counted. What is read needs fastwarc (the extra `data`).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

from minillm.corpus.readers.packages import check_package
from minillm.corpus.readers.pieces import LONGEST_PAGE, Found, Opened
from minillm.corpus.readers.skipped import Skip

CHUNK = re.compile(rb"[0-9a-fA-F]{1,8}[^\r\n]{0,80}\r?\n")  # the length of a part of a page
PAGES = ("text/html", "application/xhtml+xml")


def warc_pieces(opened: Opened) -> Iterator[Found]:
    """The pages of a .warc."""
    for number, record in enumerate(_records(opened), 1):
        url = _text(record.headers.get("WARC-Target-URI"))
        try:
            kind, charset = _type_of(record)
            data = _payload(record)
        except Skip as skip:
            yield opened.skipped(f"record {number}", Skip(skip.kind, f"{skip.why}, {url}" if url else skip.why))
            continue
        info = {"url": url} if url else {}
        if kind in PAGES:
            yield opened.piece("page", "record", number, data, encoding=charset, info=info)
        else:
            yield opened.piece("text", "record", number, data, encoding=charset, info=info)


def _records(opened: Opened) -> Iterator[Any]:
    check_package("fastwarc", "a .warc")
    from fastwarc.warc import ArchiveIterator, conversion, response

    records = _guarded(lambda: ArchiveIterator(_Stream(opened.stream), response | conversion))
    while (record := _guarded(lambda: next(records, None))) is not None:
        yield record


def _type_of(record: Any) -> tuple[str, str | None]:
    """The media type of a page and the encoding that its header names. Raises: Skip where it is none to read."""
    if record.is_http:
        status = _guarded(lambda: record.http_headers.status_code)
        kind, charset = _guarded(lambda: (record.http_content_type, record.http_charset))
        if status is None or not 200 <= status < 300:
            raise Skip("status", f"the server answered {status}")
    else:
        kind, charset = record.headers.get("Content-Type"), "utf-8"
    kind = (kind or "").partition(";")[0].strip().lower()
    if kind not in (*PAGES, "text/plain"):
        raise Skip("unsupported", f"it is {kind[:60] or 'of no known type'}")
    return kind, charset


def _payload(record: Any) -> bytes:
    """The bytes of a page. (fastwarc would decode them on the way, but ends the archive where that fails.)"""
    from fastwarc.stream_io import BrotliReader, ChunkedReader, GzipReader

    data = _whole(record.reader)
    if not record.is_http:
        return data
    sent = [(record.http_headers.get(name) or "").strip().lower() for name in ("Transfer-Encoding", "Content-Encoding")]
    if sent[0] == "chunked" and CHUNK.match(data):  # many archives keep the header of what they have decoded
        data = _whole(ChunkedReader(io.BytesIO(data)))
    if sent[1] in ("gzip", "x-gzip") and data.startswith(b"\x1f\x8b"):
        data = _whole(GzipReader(io.BytesIO(data)))
    elif sent[1] == "br":
        data = _whole(BrotliReader(io.BytesIO(data)))
    return data


def _whole(reader: Any) -> bytes:
    """All bytes of a reader of fastwarc. Raises: Skip where there are too many, or they cannot be decoded."""
    parts: list[bytes] = []
    size = 0
    while data := _guarded(lambda: reader.read(1 << 20)):
        parts.append(data)
        size += len(data)
        if size > LONGEST_PAGE:
            raise Skip("too_large", f"it has more than {LONGEST_PAGE:,} bytes")
    return b"".join(parts)


class _Stream:
    """A stream as fastwarc reads it, at its own pace."""

    def __init__(self, stream: Any):
        self._stream, self._at = stream, 0

    def read(self, size: int = 1 << 16) -> bytes:
        data = self._stream.read(size)
        self._at += len(data)
        return data

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        raise OSError("a stream is read forwards")

    def close(self) -> None:
        pass


def _guarded(call: Any) -> Any:
    """The result of a call of fastwarc, whose errors, also those that are no Exception, are a reason to skip."""
    try:
        return call()
    except (Skip, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        if isinstance(cause := error.__cause__ or error.__context__, Skip):  # from the stream below
            raise cause from None
        raise Skip("damaged", f"the archive cannot be read here ({str(error)[:200]})") from None


def _text(value: str | None) -> str:
    return (value or "")[:2000].strip("<> ")
