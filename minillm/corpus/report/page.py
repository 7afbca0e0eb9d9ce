"""The data card as a page of HTML: one file that loads nothing, in which all text from data stays text.

page.html is the body, page.css the style, and the script consists of

    page_text.js      writes numbers, and shows text from data, with marks for characters that cannot be seen
    page_charts.js    tables, bars and histograms
    page_parts.js     the parts of the page, one for each part of the card
    page.js           puts them together

The card is in the page as JSON of ASCII alone, in which no `<` and no `&` is left, so nothing in it can end its
element.
"""

from __future__ import annotations

import json
from typing import Any

from minillm.page import assemble

SCRIPTS = "page_text.js", "page_charts.js", "page_parts.js", "page.js"


def page_of(card: dict[str, Any]) -> str:
    """The text of the page of a card."""
    title = f"Data card of {card['title']}".encode("utf-8", "replace").decode()
    return assemble(__package__, "page.html", ["page.css"], SCRIPTS, title, CARD=json_for_html(card))


def json_for_html(value: Any) -> str:
    """JSON that may stand within an element of HTML."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
