"""Numbers and tables as text."""

from __future__ import annotations

from collections.abc import Sequence

from minillm.counted import counted


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A table as text; the columns with the numbers in `right` are aligned at the right."""
    lines = [columns, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    shown = [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([shown[0], "  ".join("-" * width for width in widths), *shown[1:]])


def bytes_text(count: float) -> str:
    """A number of bytes with its unit, such as `1.5 MB`."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return counted(round(count), "byte") if unit == "bytes" else f"{count:,.1f} {unit}"
