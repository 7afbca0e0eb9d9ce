"""`minillm gradcheck`: check the gradients of operations."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Column, Table

from minillm.options import Positional, read


@dataclass(frozen=True)
class Gradcheck:
    """Check every operation's backward against differences of its forward, in float64, and at other inputs."""

    ops: Positional[tuple[str, ...]] = ()
    """Names of operations; all by default."""


def gradcheck(arguments: list[str]) -> None:
    """Check the gradients of all operations, or of those named."""
    from minillm.study.gradcheck import run_cases

    given = read(Gradcheck, "gradcheck", arguments)
    results = run_cases(given.ops or None)
    caption = "variants: other layouts, values, sizes, and float32, of which some operations do not take all"
    name = Column("operation", no_wrap=True)
    table = Table(name, "pair", "case", "elements", "worst error", "variants", "seconds", "", caption=caption)
    for result in results:
        tried = f"{result.variants - result.skipped} of {result.variants}" if result.variants else ""
        table.add_row(
            result.op,
            result.engine,
            result.case,
            str(result.elements),
            f"{result.error:.1e}",
            tried,
            f"{result.seconds:.2f}",
            "[green]ok[/green]" if result.passed else "[red]FAILED[/red]",
        )
    console = Console()
    console.print(table)
    failed = [result for result in results if not result.passed]
    for result in failed:
        console.print(result.report, markup=False)
    console.print(f"{len(results) - len(failed)} of {len(results)} checks passed")
    if failed:
        raise SystemExit(1)
