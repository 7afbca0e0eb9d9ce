"""Bytes as text, whatever their encoding, and text without what no text should have.

The encoding of bytes is found in this order, and the first that fits is taken:

1. a byte order mark; without one, UTF-16 where every second byte of the beginning is zero;
2. UTF-8, if the bytes are valid UTF-8 (text in another encoding hardly ever is, whatever a header says);
3. UTF-8 with some bytes of Windows-1252 between, if more characters are valid than bytes are not: files that were put
   together from several;
4. what the HTTP header or the page itself declares; Latin-1 and ASCII mean Windows-1252, as in browsers;
5. what uchardet, Mozilla's detector, finds (in resiliparse); else Windows-1252.

For step 5, charset-normalizer was tried too: it takes sentences in German for cp1250 and a single word for cp1006, and
Russian in KOI8-R for Shift-JIS, all of which uchardet recognises (tests/corpus/test_readers_encodings.py).
"""

from __future__ import annotations

import codecs
import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from minillm.corpus.readers.packages import check_package
from minillm.corpus.readers.skipped import Skip

MARKS = (  # longer ones first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
IN_7_BITS = ("iso2022", "hz", "utf_7")  # encodings whose bytes are valid ASCII: only a declaration tells
SAMPLE = 1 << 16  # bytes that are looked at to find an encoding
NOT_TEXT = 0.05  # share of control characters and of bytes that fit no encoding, over which it is no text
FEW = 8  # so many are not yet a sign
MAGIC = {  # first bytes of files that are no text, whatever their name
    b"%PDF-": "a PDF",
    b"PK\x03\x04": "a .zip (or a .docx)",
    b"\x1f\x8b": "compressed with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstandard",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"\x7fELF": "a program",
    b"MZ\x90": "a program",
    b"Rar!": "a .rar",
    b"7z\xbc\xaf": "a .7z",
    b"\xd0\xcf\x11\xe0": "an Office document",
    b"SQLite format 3": "a database",
    b"PAR1": "a .parquet",
}
STRANGE = re.compile(  # what no text should have
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]"
)
CONTROLS = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffd]+")
TERMINAL = re.compile("\x1b\\[[0-9;?]*[A-Za-z]")  # colours and moves of a terminal
LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
MAYBE_MARKS = re.compile("[\u0300-\U0010ffff]{31}")  # finds few places in Latin text, and quickly
MAYBE_MOJIBAKE = re.compile("[^\x00-\x7f]{2}|[ÃÂ] ")  # two bytes of UTF-8, read as two characters


def _as_windows_1252(error: UnicodeError) -> tuple[str, int]:
    """Decode bytes that are no UTF-8 as Windows-1252, whose five undefined ones become U+FFFD."""
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("cp1252", "replace"), error.end


codecs.register_error("minillm-windows-1252", _as_windows_1252)


def decode(data: bytes, declared: str | None = None) -> str:
    """The text that the bytes stand for; `declared` is the encoding that a header names.

    Raises: Skip where they are no text.
    """
    for magic, what in MAGIC.items():
        if data.startswith(magic):
            raise Skip("not_text", f"its first bytes are those of {what}")
    text = _decoded(data, declared)
    check_is_text(text)
    return text


def decoded_lines(data: bytes, declared: str | None = None) -> Iterator[str]:
    """The lines that the bytes stand for; where not all is UTF-8, each is decoded alone: a bad one spoils no other."""
    try:
        yield from data.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        yield from (_decoded(line, declared) for line in data.split(b"\n"))


def check_is_text(text: str) -> None:
    """Raise Skip where too many characters are none that a text has."""
    if (strange := sum(map(len, CONTROLS.findall(text)))) > max(FEW, NOT_TEXT * len(text)):
        raise Skip("not_text", f"{strange:,} of {len(text):,} characters are control characters or fit no encoding")


def _decoded(data: bytes, declared: str | None) -> str:
    if marked := wide_encoding(data):
        name, begin = marked
        return data[begin:].decode(name, "replace")
    name = encoding_called(declared)
    if name.replace("-", "_").startswith(IN_7_BITS):
        return data.decode(name, "replace")
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return _not_quite_utf_8(data, name)


def _not_quite_utf_8(data: bytes, declared: str) -> str:
    found = data.decode("utf-8", "replace")
    wrong = found.count("\ufffd")
    if len(found) - len(found.encode("ascii", "ignore")) - wrong > wrong:
        return data.decode("utf-8", "minillm-windows-1252")
    for name in (declared, detected(data), "cp1252"):
        if name and not name.startswith("utf"):
            try:
                return data.decode(name)
            except (UnicodeDecodeError, LookupError):
                pass
    return data.decode("cp1252", "replace")


def wide_encoding(data: bytes) -> tuple[str, int] | None:
    """UTF-16 or UTF-32 and the length of the mark before the text, if these bytes begin such a text."""
    for mark, name in MARKS:
        if data.startswith(mark):
            return None if name == "utf-8" else (name, len(mark))
    head = data[:512]
    even, odd = head[0::2], head[1::2]
    for name, zeros, others in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if len(zeros) > 1 and zeros.count(0) > 0.6 * len(zeros) and others.count(0) < 0.1 * len(others):
            return name, 0
    return None


@functools.cache
def encoding_called(name: str | None) -> str:
    """Python's name of an encoding; empty for none and for one that is not known."""
    try:
        known = codecs.lookup((name or "").strip().strip("\"'")).name
    except (LookupError, ValueError):
        return ""
    return "cp1252" if known in ("iso8859-1", "ascii") else known


def detected(data: bytes) -> str:
    """The encoding of a text that is not UTF-8, as uchardet finds it; empty where it finds none."""
    check_package("resiliparse", "text that is not UTF-8")
    from resiliparse.parse.encoding import detect_encoding

    sample = data[:SAMPLE]
    if len(data) > SAMPLE:  # lines that tell something
        sample = b"\n".join(line for line in data[: 16 * SAMPLE].split(b"\n") if not line.isascii())[:SAMPLE] or sample
    return encoding_called(detect_encoding(sample, from_html_meta=False))


def as_utf_8(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Blocks of UTF-16 or UTF-32 as blocks of UTF-8, without a byte order mark; others as they are."""
    decoder = None
    for number, block in enumerate(blocks):
        if number == 0:
            if marked := wide_encoding(block):
                decoder = codecs.getincrementaldecoder(marked[0])("replace")
                block = block[marked[1] :]
            block = block.removeprefix(codecs.BOM_UTF8)
        yield block if decoder is None else decoder.decode(block).encode("utf-8", "replace")
    if decoder is not None:
        yield decoder.decode(b"", final=True).encode("utf-8", "replace")


def one_line_end(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Blocks with "\\n" for the line ends of Windows and of old Macs."""
    waiting = b""
    for block in blocks:
        block = waiting + block
        waiting = b""
        if b"\r" in block:
            if block.endswith(b"\r"):  # the "\n" may be the first byte of the next block
                block, waiting = block[:-1], b"\r"
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        yield block
    if waiting:
        yield b"\n"


def cleaned(text: str, repair: bool = True) -> str:
    """The text as it is trained on.

    - Line ends become "\\n": those of Windows and old Macs, form feeds, and Unicode's line separators.
    - Surrogate pairs become the character they stand for, half of one U+FFFD.
    - Control characters but tabs, and byte order marks within the text, go.
    - repair: text that was once decoded as what it was not ("schÃ¶n") becomes what it was ("schön"). ftfy recognises
      it by sequences that no language has, line by line, and its other repairs are off: quotes, ligatures, entities
      and full-width letters stay as the author wrote them.
    - Letters with accents become single characters where Unicode has them (the normal form NFC). Of more than 30 marks
      on one letter the first 30 stay, Unicode's stream-safe format: the time of NFC grows with the square of them.
    """
    if text.isascii() and not STRANGE.search(text):
        return text
    if repair and MAYBE_MOJIBAKE.search(text):
        text = "\n".join([line if line.isascii() else _repaired(line) for line in text.split("\n")])
    if STRANGE.search(text):
        text = TERMINAL.sub("", LINE_ENDS.sub("\n", text))
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        text = STRANGE.sub("", text)
    if MAYBE_MARKS.search(text):
        text = _too_many_marks().sub(r"\1", text)
    return unicodedata.normalize("NFC", text)


@functools.cache
def _too_many_marks() -> re.Pattern:
    """A letter's marks from the 31st on, behind the first 30."""
    marks = "".join(chr(code) for code in range(0x300, 0x1E94B) if unicodedata.combining(chr(code)))
    return re.compile(f"([{marks}]{{30}})[{marks}]+")


def _repaired(line: str) -> str:
    return _fix_text()(line) if MAYBE_MOJIBAKE.search(line) else line


@functools.cache
def _fix_text() -> Callable[[str], str]:
    check_package("ftfy", "to repair text that was decoded wrongly (--no-repair leaves it)")
    import ftfy

    off: dict[str, Any] = dict.fromkeys(
        (
            "unescape_html",
            "remove_terminal_escapes",
            "fix_latin_ligatures",
            "fix_character_width",
            "uncurl_quotes",
            "fix_line_breaks",
            "fix_surrogates",
            "remove_control_chars",
        ),
        False,
    )
    settings = ftfy.TextFixerConfig(**off, normalization=None, explain=False)
    return lambda line: ftfy.fix_text(line, settings)
