"""A page of HTML that is one file without a network: a body, a style, a script, and data, in the frame page.html.

Its Content-Security-Policy lets nothing be loaded, and allows only the page's own script and style, by their hashes. So
a text that slipped into the page as HTML could still run nothing. theme.css holds the colours and letters that all
pages share, and make.js makes elements out of text that is never read as HTML.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable


def assemble(package: str, body: str, styles: Iterable[str], scripts: Iterable[str], title: str, **data: str) -> str:
    """The text of a page.

    package: where the page's own files lie; body, styles and scripts are their names.
    title: any text. data: for every place of the body, such as @DOCUMENT@, text that has no `<` and no `&`.
    """
    folder, shared = files(package), files(__package__)
    script = joined([shared / "make.js", *(folder / name for name in scripts)])
    script = f'"use strict";\n(async () => {{\n{script}\n}})();\n'
    style = joined([shared / "theme.css", *(folder / name for name in styles)])
    parts = {"TITLE": html.escape(title), "POLICY": policy(script, style), "STYLE": style, "SCRIPT": script}
    parts["BODY"] = filled((folder / body).read_text(encoding="utf-8"), data)
    return filled((shared / "page.html").read_text(encoding="utf-8"), parts)


def filled(frame: str, parts: Mapping[str, str]) -> str:
    """The frame with a part in every place such as @TITLE@. A part that has such a place itself keeps it as it is."""
    return re.sub("@([A-Z]+)@", lambda place: parts[place[1]], frame)


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
