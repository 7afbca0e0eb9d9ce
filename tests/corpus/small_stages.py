"""Stages for the tests of stage.py, small enough to know what they must write; run as a program, one of them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minillm.corpus import stage as stages
from minillm.corpus.document import Document, open_lines
from minillm.corpus.stage import Stage, run_stage


@dataclass
class Upper(Stage):
    """Writes texts in capitals and drops those of odd length; may be slow, fail, lose documents, or die."""

    seconds: float = 0  # a chunk takes
    fails: str = ""  # the id of a document at which it raises
    dies: str = ""  # the id of one at which it is ended
    loses: str = ""  # the id of one that it leaves out
    factor: int = 1
    name = "upper"

    def settings(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def apply(self, documents: list[Document]) -> Iterable[Document]:
        time.sleep(self.seconds)
        for document in documents:
            if document.id == self.fails:
                raise ZeroDivisionError("division by zero")
            if document.id == self.dies:
                os.kill(os.getpid(), signal.SIGKILL)
            if document.dropped is None:
                document.text = document.text.upper() * self.factor
                if len(document.text) % 2:
                    document.dropped = f"odd: {len(document.text)} characters"
            if document.id != self.loses:
                yield document


def write_corpus(path: Path, count: int = 400, seed: int = 0) -> list[Document]:
    """Documents of random lengths, with characters of several bytes, one of which an earlier stage dropped."""
    rng = np.random.default_rng(seed)
    words = ["Haus", "Bäume", "die Straße", "中文", "🎉", "a\nb", "\u2028", '"quoted"', "end"]
    made = []
    for number in range(count):
        text = " ".join(rng.choice(words, rng.integers(0, 60)))
        made.append(Document(text, f"a.txt:{number}", source=f"s{number % 3}", info={"number": number}))
    if count > 7:
        made[7].dropped = "earlier: a reason"
    with open_lines(path, "wb") as lines:
        for document in made:
            lines.write(document.to_line())
    return made


if __name__ == "__main__":
    stages.CHUNK_BYTES = 4000
    source, out, processes, seconds = sys.argv[1:5]
    print(*sorted(run_stage(Upper(float(seconds)), [Path(source)], Path(out), int(processes)).items()))
