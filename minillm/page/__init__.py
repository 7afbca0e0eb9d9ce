"""A page of HTML that is one file without a network: a frame, a style, a script, and data.

Its Content-Security-Policy lets nothing be loaded, and allows only the page's own script and style, by their hashes. So
a text that slipped into the page as HTML could still run nothing. theme.css holds the colours and letters that all
pages share, and make.js makes elements out of text that is never read as HTML.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable
from importlib.resources import files
from importlib.resources.abc import Traversable


def assemble(package: str, frame: str, styles: Iterable[str], scripts: Iterable[str], title: str, **data: str) -> str:
    """The text of a page.

    package: where the page's own files lie; frame, styles and scripts are their names.
    title: any text. data: for every other place of the frame, such as @DOCUMENT@, text that has no `<` and no `&`.
    """
    folder, shared = files(package), files(__package__)
    script = joined([shared / "make.js", *(folder / name for name in scripts)])
    script = f'"use strict";\n(async () => {{\n{script}\n}})();\n'
    style = joined([shared / "theme.css", *(folder / name for name in styles)])
    parts = {"TITLE": html.escape(title), "POLICY": policy(script, style), "STYLE": style, "SCRIPT": script, **data}
    # All places are filled in one pass, so that a title such as "@POLICY@" stays a title.
    return re.sub("@([A-Z]+)@", lambda place: parts[place[1]], (folder / frame).read_text(encoding="utf-8"))


def joined(parts: Iterable[Traversable]) -> str:
    """The texts of files, one behind the other."""
    return "".join(part.read_text(encoding="utf-8") for part in parts)


def policy(script: str, style: str) -> str:
    """The Content-Security-Policy: nothing is loaded, and no other script or style than these runs."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style)]
    return (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
