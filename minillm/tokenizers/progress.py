"""A progress bar for the training of tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Report = Callable[[int, int], None]  # called with the number of steps done, and the number of all steps
Step = TypeVar("Step")


@contextmanager
def progress_bar(title: str, shown: bool) -> Iterator[Report]:
    """A bar on standard error, if that is a terminal; the function that it yields moves it."""
    if not shown:
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=max(1, total))


def with_progress(steps: Iterable[Step], total: int, title: str, shown: bool) -> Iterator[Step]:
    """The steps, while a bar shows how many of `total` have been taken."""
    with progress_bar(title, shown) as report:
        for done, step in enumerate(steps, start=1):
            yield step
            report(done, total)
