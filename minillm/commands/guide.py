"""`minillm guide`: read the guide in the terminal."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from minillm.options import Positional, read

HOW_TO_READ = """
minillm guide 1, or minillm guide NAME, shows a chapter; minillm guide 1 | less, page by page.

In a chapter, blocks of Python belong into one file or notebook, one below the other; one folder serves the commands of
all chapters. What stands behind # is a comment: `prints` says what comes out, and `tested with` how a test shortens
the command. (zsh takes comments after `setopt interactive_comments`.)
"""


@dataclass(frozen=True)
class Guide:
    """Show the guide's chapters, or one of them: from the chain rule to training on several GPUs."""

    chapter: Positional[str | None] = None
    """Number or name of a chapter, such as 5 or attention; without, the list of them."""


def guide(arguments: list[str]) -> None:
    """Print the list of chapters, or a chapter: laid out in a terminal, as Markdown elsewhere."""
    from rich.console import Console
    from rich.markdown import Markdown

    from minillm.guide import chapter, chapters

    given = read(Guide, "guide", arguments)
    if given.chapter is None:
        for one in chapters():
            print(f"{one.number:3}  {one.name:<12} {one.title.partition('. ')[2] or one.title}")
        print(HOW_TO_READ.rstrip())
        return
    found = chapter(given.chapter)
    console = Console()
    if console.is_terminal:
        console.print(Markdown(with_whole_links(found.text, found.path.parent)))
    else:
        print(found.text, end="")


def with_whole_links(text: str, folder: Path) -> str:
    """The Markdown with links that a terminal can open: the whole paths of files, no link where there is no file."""

    def whole(match: re.Match[str]) -> str:
        label, target = match.groups()
        if "://" in target:
            return match[0]
        path = (folder / target).resolve()
        return f"[{label}]({path.as_uri()})" if path.exists() else label

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", whole, text)
