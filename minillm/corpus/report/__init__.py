"""The data card of a corpus: what is in it, what was dropped and why, as JSON and as a page (`minillm data report`)."""

from __future__ import annotations

from minillm.corpus.report.report import report

__all__ = ["report"]
