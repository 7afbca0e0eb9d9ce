"""Functions that several commands use: tables to print."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Column, Table


def print_tables(tables: Iterable[Any], width: int = 100) -> None:
    """Print tables, each `width` characters wide or more."""
    for title, columns, rows in tables:
        table = Table(columns[0], *(Column(name, justify="right") for name in columns[1:]), title=title)
        for row in rows:
            table.add_row(*row)
        Console(width=max(Console().width, width), markup=False, emoji=False).print(table)  # names may have brackets
