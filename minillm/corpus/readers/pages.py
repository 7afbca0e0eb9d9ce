"""The main text of a page of HTML, and what the page says about itself. Runs in a helper process (guard.py)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

DECLARED = re.compile(
    rb"""<(?:meta|\?xml)[^>]{0,200}?(?:charset|encoding)\s*=\s*["']?\s*([a-zA-Z0-9_:.-]{2,40})""", re.I
)
HEAD = 4096  # bytes in which browsers look for the encoding (1024, and as much more as careless pages need)
LONGEST_NOTE = 1000  # characters of a title, an address or a licence
LICENCES = "[rel~=license], a[href*='//creativecommons.org/licenses/'], a[href*='//creativecommons.org/publicdomain/']"


def declared_encoding(data: bytes) -> str | None:
    """The encoding that a page names in its head."""
    found = DECLARED.search(data[:HEAD])
    return found[1].decode() if found else None


def main_text(html: str) -> dict[str, Any]:
    """The text of a page without menus, headers and advertisements, and its title, url, language and licence.

    resiliparse finds the main text, with lists and paragraphs as they are and without the alternative texts of
    pictures. Comments of readers are left out where their block is called so.
    """
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    tree = HTMLTree.parse(html)
    found = {name: value.strip()[:LONGEST_NOTE] for name, value in _notes(tree) if value and value.strip()}
    return {**found, "text": extract_plain_text(tree, main_content=True, alt_texts=False)}


def _notes(tree: Any) -> Iterator[tuple[str, str | None]]:
    """Yield what the page says about itself."""
    yield "title", tree.title
    if tree.document is None:
        return

    def attribute(selector: str, name: str) -> str | None:
        element = tree.document.query_selector(selector)
        return None if element is None else element.getattr(name)

    yield "declared_language", attribute("html[lang]", "lang")
    yield "url", attribute("link[rel=canonical]", "href") or attribute("meta[property='og:url']", "content")
    yield (
        "licence",
        attribute(LICENCES, "href") or attribute("meta[name='license'], meta[name='dcterms.license']", "content"),
    )
