"""A number with the noun that fits it: 1 record, 2 records."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """`1 record`, `1,024 records`; `many` is the plural where it is more than an s: counted(2, "box", "boxes")."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
