"""Masks for what identifies a person: e-mail and IP addresses, telephone, bank account and card numbers.

Sources: FineWeb and Dolma mask e-mail and public IPv4 addresses by regular expressions (datatrove's formatters/pii.py);
Dolma telephone numbers of the USA. Account and card numbers are ours: they carry check digits, so few others are taken
for them.

Not found, among others: names, postal addresses, dates of birth, identity card and social security numbers, IPv6
addresses, e-mail addresses in disguise ("max at example dot com"), telephone numbers without a country code that are
written in another way than those of the USA, Canada and Germany, and of these numbers without any separator. Taken for
something that they are not: a version number with four parts ("8.0.1.2") is an IPv4 address, and some numbers with the
right form and check digit are no card's.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from minillm.corpus.rules.language import names_in
from minillm.corpus.rules.page import Limits, Page
from minillm.errors import InputError

# Every pattern begins where no longer match could begin, and has bounded parts, so that its time is linear in the text.
EMAIL = re.compile(r"(?<![\w.%+'-])[\w.%+'-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])")
IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\w)")
IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?!\w)")
CARD = re.compile(r"(?<![\w.-])[3-6]\d{3}(?:[ -]?\d){9,15}(?![\w-])")
PHONE = re.compile(
    r"(?<![\w+.,/-])(?:"
    r"(?:\+|00)[1-9](?:[ ./()-]{0,3}\d){6,14}"  # with a country code
    r"|(?:1[ .-])?(?:\([2-9]\d\d\) ?[2-9]\d\d[ .-]|[2-9]\d\d([ .-])[2-9]\d\d\1)\d{4}"  # USA, Canada: (212) 555-0123
    r"|(?:\(0[1-9]\d{1,4}\) ?|0[1-9]\d{1,4}(?: ?[/-] ?| ))\d(?:[ -]?\d){4,9}"  # Germany: 030/123 45 67
    r")(?![\w/]|[.,-]\d)"
)
NUMBER = re.compile(r"\d[\d ()./-]{5,}\d")  # all but e-mail addresses have such a part, and most texts have none
IBAN_LENGTHS = dict(
    AD=24, AE=23, AT=20, BE=16, BG=22, CH=21, CY=28, CZ=24, DE=22, DK=18, EE=20, ES=24, FI=18, FR=27, GB=22, GR=27,
    HR=21, HU=28, IE=22, IL=23, IS=26, IT=27, LI=21, LT=20, LU=20, LV=21, MC=27, MT=31, NL=18, NO=15, PL=28, PT=25,
    RO=24, RS=22, SA=24, SE=24, SI=19, SK=24, SM=27, TR=26, UA=29,
)  # fmt: skip


@dataclass(frozen=True)
class PII(Limits):
    """The settings of pii."""

    mask: str = "email, ip, phone, iban, card"
    """Kinds of personal data that the rule pii masks."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask", ", ".join(names_in(self.mask)))
        for name in names_in(self.mask):
            if name not in MASKS:
                raise InputError(f"PII: mask is {name!r}; choose from: {', '.join(MASKS)}")


def mask_pii(page: Page, limits: PII) -> Page:
    """Replace what identifies a person by a fixed word in brackets, such as [EMAIL]; drops nothing.

    SOURCE: FineWeb and Dolma, see above. THRESHOLDS: IPv4 addresses that are public (`ipaddress.is_global`); telephone
    numbers of 7 to 15 digits; IBANs with the right length and check digits; card numbers with Luhn's check digit.
    """
    text, masked = masked_text(page.text, names_in(limits.mask))
    if not masked:
        return page
    return page.with_text(text, masked=dict(masked))


def masked_text(text: str, names: list[str]) -> tuple[str, Counter[str]]:
    """The text with what `names` says masked, and how often each was."""
    masked: Counter[str] = Counter()
    numbers = NUMBER.search(text) is not None
    for name, (pattern, mask) in MASKS.items():
        if name not in names or not ("@" in text if name == "email" else numbers):
            continue

        def replace(match: re.Match[str], name: str = name, mask: Callable[[str], str | None] = mask) -> str:
            replaced = mask(match[0])
            masked[name] += replaced is not None
            return match[0] if replaced is None else replaced

        text = pattern.sub(replace, text)
    return text, +masked


def _mask_ip(found: str) -> str | None:
    try:
        return "[IP]" if ipaddress.ip_address(found).is_global else None
    except ValueError:  # over 255, or with a leading zero
        return None


def _mask_phone(found: str) -> str | None:
    decimal = re.fullmatch(r"\+\d+\.\d+", found)
    return "[PHONE]" if found.count("(") == found.count(")") and not decimal else None


def _mask_card(found: str) -> str | None:
    """Luhn's check: every second digit from the right counts twice, less 9 if that is over 9; the sum ends with 0."""
    digits = [int(digit) for digit in reversed(found) if digit.isdigit()]
    total = sum(digits[::2]) + sum(2 * digit - 9 * (digit > 4) for digit in digits[1::2])
    return "[CARD]" if total % 10 == 0 else None


def _mask_iban(found: str) -> str | None:
    """ISO 7064: with the first four signs at the end and letters as numbers from 10 on, the rest of 97 is 1.

    The pattern may run on into a word behind the number, which stays.
    """
    length = IBAN_LENGTHS.get(found[:2], 0)
    places = [place for place, sign in enumerate(found) if sign != " "]
    if not 0 < length <= len(places):
        return None
    end = places[length - 1] + 1
    rest = found[end:]
    number = found[:end].replace(" ", "")
    if rest[:1].isalnum() or int("".join(str(int(sign, 36)) for sign in number[4:] + number[:4])) % 97 != 1:
        return None
    return "[IBAN]" + rest


MASKS: dict[str, tuple[re.Pattern[str], Callable[[str], str | None]]] = {  # in this order
    "email": (EMAIL, lambda found: "[EMAIL]"),
    "iban": (IBAN, _mask_iban),
    "card": (CARD, _mask_card),
    "ip": (IPV4, _mask_ip),
    "phone": (PHONE, _mask_phone),
}
