"""`minillm kernels`: compile the CUDA kernels and print the resources that each takes."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Column, Table

from minillm.options import Positional, read


@dataclass(frozen=True)
class Kernels:
    """Compile the CUDA kernels (no GPU needed) and print what each takes on each architecture."""

    files: Positional[tuple[str, ...]] = ()
    """Files in kernels/, such as softmax.cu; all by default."""


def kernels(arguments: list[str]) -> None:
    """Compile all kernels, or those named, and print what they take."""
    from minillm.cuda.nvrtc import ARCHITECTURES, compile_table

    given = read(Kernels, "kernels", arguments)
    rows = compile_table(given.files or None)
    found = {(row.kernel, row.architecture): row for row in rows}
    name = Column("kernel", no_wrap=True)
    table = Table(name, *ARCHITECTURES, caption="registers per thread / bytes of shared memory; red: bytes spilled")
    for kernel in dict.fromkeys(row.kernel for row in rows):
        cells = []
        for row in (found.get((kernel, architecture)) for architecture in ARCHITECTURES):
            spilled = row.spills + row.stack if row else 0
            cells.append(f"[red]{spilled}[/red]" if spilled else f"{row.registers} / {row.shared}" if row else "-")
        table.add_row(kernel, *cells)
    Console(width=max(Console().width, 130)).print(table)
