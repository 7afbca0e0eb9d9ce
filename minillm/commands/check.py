"""`minillm check`: the ledger, claims about a model that are proved on it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from rich.console import Console
from rich.table import Column, Table

from minillm.commands.common import check_one_model
from minillm.options import Positional, read

STYLES = {"holds": "green", "fails": "red", "does not apply": "dim"}
PLURALS = {"holds": "hold", "fails": "fail", "does not apply": "do not apply"}
WIDTH = 110  # characters of the table, at least


@dataclass(frozen=True)
class Check:
    """Prove on a model and its data that all ways of computing it agree: engines, caches, files, processes."""

    model: Positional[str | None] = None
    """A run directory, a folder with config.json, a .safetensors, a .gguf, a LoRA adapter, or a preset's name."""
    preset: str = "nano"
    """Preset to check where no model is given; its weights are random."""
    data: str | None = None
    """Text to check on: a file, a folder, a glob pattern, a .jsonl; by default that of the run, or Python's help texts.
    The first 100,000 characters are read."""
    only: str | None = None
    """Name of one claim, to check it alone."""
    json: bool = False
    """Print the verdicts as JSON."""


def check(arguments: list[str]) -> None:
    """Print a table of claims; exit status 1 if one of them fails."""
    from minillm.study.ledger import CLAIMS, Verdict, check, open_subject

    given = read(Check, "check", arguments)
    check_one_model("check", given.model, arguments)
    console = Console(stderr=given.json)
    verdicts: list[Verdict] = []
    names = [given.only] if given.only else list(CLAIMS)
    with open_subject(given.model, given.preset, given.data) as subject, console.status("") as status:
        for number, name in enumerate(names, start=1):
            status.update(f"{number} of {len(names)}: {name}")
            verdicts += check(subject, name)
    if given.json:
        print(json.dumps([verdict._asdict() for verdict in verdicts], indent=2))
    else:
        print_table(verdicts)
    if any(verdict.verdict == "fails" for verdict in verdicts):
        raise SystemExit(1)


def print_table(verdicts: list) -> None:
    """Print the verdicts, and below the table why a claim fails or does not apply."""
    console = Console(width=max(Console().width, WIDTH))
    caption = (
        "relative to the largest number compared; a bound of 0 demands equal bits, others are what rounding explains"
    )
    columns = ("claim", "largest difference", "bound", Column("verdict", no_wrap=True), "repeats it")
    table = Table(*columns, caption=caption)
    for one in verdicts:
        numbers = ["" if x is None else "0" if x == 0 else f"{x:.1e}" for x in (one.difference, one.bound)]
        verdict = f"[{STYLES[one.verdict]}]{one.verdict}[/]"
        table.add_row(one.sentence, *numbers, verdict, one.command)
    console.print(table)
    for one in verdicts:
        if one.verdict != "holds":
            console.print(f"{one.claim} {one.verdict}: {one.remark}", markup=False, highlight=False)
    counts = {name: sum(one.verdict == name for one in verdicts) for name in STYLES}
    words = [f"{count} {name if count == 1 else PLURALS[name]}" for name, count in counts.items() if count]
    console.print(", ".join(words), highlight=False)
