"""Personal data is masked, and what only looks like it is not."""

from __future__ import annotations

import pytest

from minillm.corpus.document import Document
from minillm.corpus.rules.cleaning import Clean, clean_document, explain
from minillm.corpus.rules.page import Page
from minillm.corpus.rules.pii import MASKS, PII, mask_pii, masked_text
from minillm.errors import InputError

ALL = list(MASKS)
MASKED = [
    ("Write to max.mustermann+news@mail.example.co.uk, or call.", "Write to [EMAIL], or call."),
    ("<jürgen@müller.de>", "<[EMAIL]>"),
    ("mailto:o'neil@example.org.", "mailto:[EMAIL]."),
    ("from 8.8.8.8.", "from [IP]."),
    ("http://93.184.216.34:8080/x", "http://[IP]:8080/x"),
    ("Call (212) 555-0123 now", "Call [PHONE] now"),
    ("Call 212-555-0123, or 1-212-555-0123.", "Call [PHONE], or [PHONE]."),
    ("tel 212.555.0123", "tel [PHONE]"),
    ("+1 212 555 0123 or +12125550123", "[PHONE] or [PHONE]"),
    ("Tel.: +49 30 123456-78", "Tel.: [PHONE]"),
    ("Tel.: +49 (0)30 / 12 34 56", "Tel.: [PHONE]"),
    ("Tel. 0049 171 1234567", "Tel. [PHONE]"),
    ("Tel.: 030/1234567", "Tel.: [PHONE]"),
    ("Tel.: (030) 123 45 67,", "Tel.: [PHONE],"),
    ("Handy 0171-1234567", "Handy [PHONE]"),
    ("Handy 0171 123 45 67.", "Handy [PHONE]."),
    ("London: +44 20 7946 0018", "London: [PHONE]"),
    ("IBAN DE89 3704 0044 0532 0130 00", "IBAN [IBAN]"),
    ("DE89370400440532013000 EUR", "[IBAN] EUR"),
    ("GB82 WEST 1234 5698 7654 32 is it", "[IBAN] is it"),
    ("ES91 2100 0418 4502 0005 1332 BIC CAIXESBB", "[IBAN] BIC CAIXESBB"),
    ("NO93 8601 1117 947", "[IBAN]"),
    ("Card 4111 1111 1111 1111, valid", "Card [CARD], valid"),
    ("5500-0055-5555-5559", "[CARD]"),
    ("378282246310005", "[CARD]"),
]
LEFT = [
    "a @ b, @name, me@home, x@y.z, the code a@b",
    "192.168.0.1 and 10.0.0.1 and 127.0.0.1 and 192.0.2.7",
    "version 1.2.3.4.5 and 1.2.3 and 999.1.1.1 and 08.8.8.8",
    "on 2024-01-31, 31.01.2024, 01/31/2024, at 10:30",
    "it has 1234567 people, 1,234,567.89 dollars and 10 000 000 trees",
    "pi is 3.14159265358979 and more",
    "ISBN 978-0-306-40615-7 and 0-306-40615-2",
    "DE89370400440532013001 has wrong check digits, XX89370400440532013000 no country",
    "DE8937040044053201300 is too short",
    "4111 1111 1111 1112 has a wrong check digit",
    "clause 252.227-7013, from -3.140000 to +3.140000, Decimal('+35236450.6')",
    "order 20240131-0001, section 1.2-3.4, pages 100-200",
    "the years 1939-1945, 1914 - 1918 and 2001 2002 2003",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14",
    "scores 10-6 7-6 6-4, ratio 0.12 0.34",
    "TEST12 ABCD EFGH IJKL",
]


@pytest.mark.parametrize(("text", "masked"), MASKED)
def test_personal_data_is_masked(text: str, masked: str) -> None:
    found, counts = masked_text(text, ALL)
    assert found == masked
    assert sum(counts.values()) == masked.count("[")
    assert masked_text(found, ALL) == (found, {})  # a mask is no personal data


@pytest.mark.parametrize("text", LEFT)
def test_what_only_looks_like_personal_data_stays(text: str) -> None:
    assert masked_text(text, ALL) == (text, {})


def test_only_what_is_named_is_masked() -> None:
    text = "a@example.org 8.8.8.8 (212) 555-0123"
    assert masked_text(text, ["ip"]) == ("a@example.org [IP] (212) 555-0123", {"ip": 1})
    page = mask_pii(Page(text), PII(mask="email, phone"))
    assert page.text == "[EMAIL] 8.8.8.8 [PHONE]"
    assert page.facts == {"masked": {"email": 1, "phone": 1}}
    with pytest.raises(InputError, match="PII: mask is 'names'; choose from: email, iban, card, ip, phone"):
        PII(mask="names")


def test_a_dropped_document_is_masked_too() -> None:
    options = Clean(rules="gopher_quality, pii")
    found = clean_document(Document("Too short: a@example.org", "a:0"), options)
    assert found.dropped == "gopher_quality: 3 words, under 50"
    assert found.text == "Too short: [EMAIL]"
    assert clean_document(Document("a@example.org", "a:0"), Clean(rules="gopher_quality")).text == "a@example.org"


HOSTILE = [*"a a. a@ @a. 1 1. +1 AB12 0171- - @ é . [ [1".split(), "1 ", "+1 ", "(212) ", "AB12 CDEF ", "4111 ", ". "]


@pytest.mark.parametrize("part", HOSTILE)
def test_a_hostile_text_takes_no_longer_than_another(part: str) -> None:
    """A pattern whose time grew with the square of the text would be at this for an hour."""
    text = part * (300_000 // len(part)) + "@ 1234567"
    found, _ = masked_text(text, ALL)
    assert found.endswith("@ 1234567")
    assert explain(text, Clean(rules="c4, fineweb, gopher_quality, word_lists")).checks
