"""`minillm gradcheck`: check the gradients of operations."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rich.console import Console
from rich.table import Column, Table

from minillm.counted import counted
from minillm.options import Positional, read

REPORTS = 2  # of one pair that are printed whole: the others mostly say the same


@dataclass(frozen=True)
class Gradcheck:
    """Check every operation's backward against differences of its forward, in float64, and at other inputs."""

    ops: Positional[tuple[str, ...]] = ()
    """Names of operations, such as layernorm or layer_norm; all by default."""


def gradcheck(arguments: list[str]) -> None:
    """Check the gradients of all operations, or of those named."""
    from minillm.study.gradcheck import run_cases

    given = read(Gradcheck, "gradcheck", arguments)
    results = run_cases(given.ops or None)
    caption = "variants: other layouts, values and sizes, and float32; 29 of 30: one does not apply to the operation"
    columns = Column("operation", no_wrap=True), Column("pair", no_wrap=True), "case", "elements", "worst error"
    table = Table(*columns, "variants", Column("result", no_wrap=True), caption=caption)
    failed = [result for result in results if not result.passed]
    for result in [result for result in results if result.passed] + failed:
        tried = f"{result.variants - result.skipped} of {result.variants}" if result.variants else ""
        numbers = (str(result.elements), f"{result.error:.1e}") if result.passed else ("", "")
        verdict = "[green]ok[/green]" if result.passed else "[red]FAILED[/red]"
        table.add_row(result.op, result.engine, result.case, *numbers, tried, verdict)
    console = Console()
    console.print(table)
    reported: dict[tuple[str, str], int] = Counter()
    for result in failed:
        pair = result.op, result.engine
        reported[pair] += 1
        if reported[pair] <= REPORTS:
            console.print(f"\n{result.op}, {result.engine} pair, case {result.case}:", markup=False, style="bold")
            console.print(result.report, markup=False)
    for (op, engine), count in reported.items():
        if count > REPORTS:
            more = counted(
                count - REPORTS, f"more case of {op}, {engine} pair, fails", f"more cases of {op}, {engine} pair, fail"
            )
            console.print(f"{more}; the table has them")
    console.print(f"{len(results) - len(failed)} of {len(results)} checks passed")
    if failed:
        raise SystemExit(1)
