"""Functions that several commands use: tables to print, and sentences about what was given twice or is too long."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from minillm.errors import InputError
from minillm.options import peek


def print_tables(tables: Iterable[Any], width: int = 100) -> None:
    """Print tables, each `width` characters wide or more."""
    for title, columns, rows in tables:
        table = Table(columns[0], *(Column(name, justify="right") for name in columns[1:]), title=title)
        for row in rows:
            table.add_row(*row)
        Console(width=max(Console().width, width), markup=False, emoji=False).print(table)  # names may have brackets


def check_one_model(command: str, name: str | None, arguments: list[str]) -> None:
    """Raise InputError if a command is given a model and, with --preset, a second one."""
    preset = peek(arguments, "--preset")
    if name is not None and preset is not None:
        raise InputError(f"{command}: {name} and --preset {preset} are two models; leave one of them out")


def tell_of_a_cut(command: str, what: str, tokens: int, context: int) -> None:
    """Say on the standard error that a prompt has more tokens than the model reads, and how many are left out."""
    if tokens > context:
        print(
            f"{command}: {what} has {tokens} tokens, but the context of the model is {context}: the first "
            f"{tokens - context} are left out",
            file=sys.stderr,
        )
