"""Numbers as people write them: 7B, 1.5T, 125M; and numbers as people read them."""

from __future__ import annotations

import math
import re

from minillm.errors import InputError

UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
WORDS = {"thousand": "k", "million": "m", "billion": "b", "trillion": "t"}


def count(text: str, name: str, least: float, most: float) -> int:
    """The number that a text such as `7B` means; `name` is the option that it was given to.

    Raises: InputError for another text, or a number below `least` or above `most`.
    """
    found = re.fullmatch(r"([-+]?\d[\d_,]*\.?\d*(?:e[-+]?\d+)?)\s*([a-z]*)", text.strip().lower())
    unit = WORDS.get(found[2], found[2]) if found else ""
    if found is None or unit not in UNITS:
        raise InputError(f"plan: {name} is {text!r}; give a number such as 125M, 7B or 1.5T (K, M, B or T, or none)")
    value = float(found[1].replace(",", "").replace("_", "")) * UNITS[unit]
    if not least <= value <= most:
        raise InputError(f"plan: {name} is {text}; give {short(least)} to {short(most)}")
    return round(value)


def short(value: float) -> str:
    """7B, 2.5B, 124M: three digits and a unit."""
    if value < 0 or not math.isfinite(value):
        return f"{value:g}"
    for factor, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= 0.9995 * factor:
            return f"{three_digits(value / factor)}{unit}"
    return three_digits(value)


def three_digits(value: float) -> str:
    """12.3, 1,234: three digits at least."""
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """The time in the unit that a person would use: 42 seconds, 3.5 hours, 12 days, 2.4 years."""
    for unit, size in (("years", 365.25 * 86400), ("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 1.5 * size or (unit == "years" and seconds >= size):
            return f"{three_digits(seconds / size)} {unit}"
    return f"{three_digits(seconds)} seconds"
