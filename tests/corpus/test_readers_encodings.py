"""Bytes become the right text whatever their encoding, repairs mend what is broken, and right text stays as it is."""

# ruff: noqa: RUF001  (signs that look like others are what is tested)
from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.corpus.readers.encodings import MAYBE_MOJIBAKE, as_utf_8, cleaned, decode, one_line_end
from minillm.corpus.readers.skipped import Skip

pytest.importorskip("resiliparse")
pytest.importorskip("ftfy")

TEXTS = {  # by language, each with encodings in which such texts lie about
    "Die Straße ist schön, und die Bäume grünen. Über Größe läßt sich streiten.": ("cp1252", "latin-1", "iso8859-15"),
    "Müller kauft für 5 € Äpfel": ("cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"),
    "Grüße": ("cp1252", "utf-16", "utf-8-sig"),
    "L'été, Zoë a mangé des crêpes à la crème; où étais-tu, garçon?": ("cp1252", "latin-1"),
    "Привет, как дела? Сегодня хорошая погода.": ("cp1251", "koi8-r", "utf-16"),
    "Zażółć gęślą jaźń, proszę bardzo.": ("cp1250",),
    "こんにちは世界。今日は天気がいいですね。": ("shift_jis", "euc_jp", "utf-16"),
    "今天天气很好，我们去公园散步。": ("gb18030", "utf-16"),
}


@pytest.mark.parametrize(("text", "encoding"), [(text, one) for text, many in TEXTS.items() for one in many])
def test_the_encoding_is_found(text: str, encoding: str) -> None:
    assert cleaned(decode(text.encode(encoding))) == text


def test_the_encoding_of_a_long_text_with_few_umlauts_is_found() -> None:
    text = "Hier steht ein Satz ohne fremde Zeichen.\n" * 5000 + "Und ein schöner über Größe.\n" * 3
    assert decode(text.encode("cp1252")) == text


def test_german_captions_are_right_in_windows_1252(shared_data: Path) -> None:
    text = gzip.decompress((shared_data / "multi30k.val.de.gz").read_bytes()).decode()
    assert decode(text.encode("cp1252", "ignore")) == text.encode("cp1252", "ignore").decode("cp1252")
    wrong = [line for line in text.splitlines() if decode(line.encode("cp1252", "ignore")) != line]
    assert len(wrong) <= 0.01 * text.count("\n")  # a line alone says little about its encoding


def test_what_is_declared_counts_where_the_bytes_do_not_tell() -> None:
    assert decode("Kaffee für drei".encode("cp437"), "cp437") == "Kaffee für drei"
    assert decode("café".encode("cp1252"), "ISO-8859-1") == "café"
    assert decode("„zitiert“".encode("cp1252"), "latin-1") == "„zitiert“"  # as browsers read it
    assert decode("こんにちは".encode("iso2022_jp"), "iso-2022-jp") == "こんにちは"
    assert decode("grün".encode(), "latin-1") == "grün"  # the header is wrong
    assert decode("grün".encode("cp1252"), "utf-8") == "grün"
    assert decode("grün".encode("cp1252"), "no-such-encoding") == "grün"


def test_files_put_together_from_two_encodings() -> None:
    data = "schöne Bäume grünen; ".encode() * 3 + "Größe".encode("cp1252")
    assert decode(data) == "schöne Bäume grünen; " * 3 + "Größe"


@pytest.mark.parametrize(
    "data",
    [
        b"%PDF-1.7 \x80",
        b"\x89PNG\r\n\x1a\n",
        b"PK\x03\x04rest",
        gzip.compress(b"x"),
        b"\x7fELF\0\0",
        bytes(range(256)) * 20,
    ],
)
def test_what_is_no_text_is_refused(data: bytes) -> None:
    with pytest.raises(Skip) as skip:
        decode(data)
    assert skip.value.kind == "not_text"


def test_control_characters_go_and_line_ends_become_one() -> None:
    assert decode(b"a\0b") == "a\0b"
    assert cleaned("a\0b\x07c\x7f\ttab") == "abc\ttab"
    assert cleaned("a\r\nb\rc\x0bd\x0ce\u2028f\u2029g\x85h\n") == "a\nb\nc\nd\ne\nf\ng\nh\n"
    assert cleaned("\x1b[1;31mred\x1b[0m") == "red"
    assert cleaned("\ufeffa\ufeffb\uffff") == "ab"
    assert cleaned("\ud83d\ude00 \ud800 \udc00!") == "😀 \ufffd \ufffd!"
    assert cleaned("u\u0308ber") == "über"


@pytest.mark.parametrize(
    ("broken", "right"),
    [
        ("schÃ¶n", "schön"),
        ("Ã¼ber Ã„pfel", "über Äpfel"),
        ("â€œquoteâ€\x9d", "“quote”"),
        ("sÃ³", "só"),
        ("l’humanitÃ© &amp; sÃ³", "l’humanité &amp; só"),
        ("good line\nGrÃ¶ÃŸe", "good line\nGröße"),
    ],
)
def test_text_that_was_decoded_wrongly_is_repaired(broken: str, right: str) -> None:
    assert cleaned(broken) == right
    assert cleaned(broken, repair=False) != right


RIGHT = """Fußgängerübergänge: „einfach“ und ‚halb‘, »Guillemets« und «Ça»
MAÇÃ, São Paulo, PÃO, voilà à la carte, Ünlü, Bjørn Ångström, 1 µm, 20 °C, 5 €, naïve café
ﬁ and ﬂ are ligatures; ＦＵＬＬ width; &amp; &lt;b&gt; stay entities; a–b—c…; don’t “do” it
x² + y³ ≤ ½; 中文。日本語のテキスト。Русский текст — тире. Ελληνικά; עברית; العربية; 😀👩‍👩‍👧
if (a && b) { return "ok"; }\t# tab   three spaces  \n\n\n  indented"""


def test_right_text_stays_as_it_is(shared_data: Path) -> None:
    assert cleaned(RIGHT) == RIGHT
    for name in ("multi30k.train.de.gz", "multi30k.train.en.gz"):
        text = gzip.decompress((shared_data / name).read_bytes()).decode()
        changed = [(a, b) for a, b in zip(text.split("\n"), cleaned(text).split("\n"), strict=True) if a != b]
        assert [
            pair for pair in changed if not re.search("[\u0080-\u009f\ufeff\u00c2\u00c3\u0300-\u036f]", pair[0])
        ] == []


def test_marks_without_end_take_no_time_without_end() -> None:
    assert cleaned("a" + "\u0323\u0301" * 500_000 + "b") == "ạ" + "\u0323" * 14 + "\u0301" * 15 + "b"  # would be hours
    assert cleaned("a" + "\u0301" * 5) == "á" + "\u0301" * 4


@given(st.text(), st.sampled_from(["cp1252", "latin-1", "cp437", "utf-8"]))
def test_whatever_is_cleaned_can_be_written_and_is_clean_then(text: str, encoding: str) -> None:
    found = cleaned(text.encode("utf-8", "surrogatepass").decode(encoding, "replace"))
    assert found.encode().decode() == found
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", found)


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1))
def test_every_repairable_mojibake_is_looked_at(text: str) -> None:
    import ftfy

    broken = text.encode().decode("latin-1")
    if ftfy.fix_encoding(broken) != broken and not re.search("[\x00-\x1f]", text):
        assert MAYBE_MOJIBAKE.search(broken)


@given(st.lists(st.sampled_from(["a", "\r", "\n", "\r\n", "ü"])), st.integers(1, 5))
def test_line_ends_do_not_depend_on_blocks(parts: list[str], size: int) -> None:
    text = "".join(parts)
    for data, wide in ((text.encode(), False), (text.encode("utf-16"), True)):
        step = size * 2 if wide else size  # the mark is in the first block
        blocks = [data[at : at + step] for at in range(0, len(data), step)]
        found = b"".join(one_line_end(as_utf_8(blocks))).decode()
        assert found == text.replace("\r\n", "\n").replace("\r", "\n")
