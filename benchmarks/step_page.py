"""Pictures of the stepper's page, for the README and the guide: `python benchmarks/step_page.py`.

It writes benchmarks/results/step.png, an attention's backward at the line of the softmax with an element chosen, and
step_update.png, a weight through AdamW in dark colours. It needs Chromium and selenium (`pip install ".[browser]"`).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from minillm.commands.step import settings_of, starting_point
from minillm.study.step.page import write_page
from minillm.study.step.setup import prepare
from tests.browser import Browser, browsers

TEXT = "the cat sat on the mat"


def main() -> None:
    trace = prepare(settings_of(starting_point(["--preset", "nano"])), TEXT).trace()
    attention = next(stop for stop in trace.of_kind("backward") if stop.op == "attention")
    softmax = next(i for i, line in enumerate(attention.lines) if "ds" in line.made)
    weight = trace.parameters["h.0.mlp.fc.weight"]
    moments = next(i for i, line in enumerate(weight.lines) if "m_hat" in line.made)
    results = Path(__file__).parent / "results"
    with tempfile.TemporaryDirectory() as folder:
        page = write_page(trace, Path(folder, "step.html"))
        for browser in browsers():
            picture(browser, page, f"#{attention.index}.{softmax}:ds[0,1,5,3]", results / "step.png", "light")
            picture(browser, page, f"#{weight.index}.{moments}:m_hat[5,7]", results / "step_update.png", "dark")


def picture(browser: Browser, page: Path, place: str, out: Path, scheme: str) -> None:
    """Write a picture of a place of the page."""
    browser.look(prefers_color_scheme=scheme)
    browser.open(page, place)
    browser.driver.save_screenshot(str(out))
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
