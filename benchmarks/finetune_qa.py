"""Questions about who says a line in Shakespeare, the part of finetune.py that finds answers in texts; see `qa`.

No questions that people wrote come with this project, so these are made by a rule from a real text: a context is a few
speeches in a row, a question is `Who says "a line of one of them"?`, and the answer is the name above that speech.
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

WORDS = 90  # of a context, at most
SPEAKERS = 3  # different ones in a context, at least
QUESTIONS = 3  # for a context, at most


class Speech(NamedTuple):
    """A speaker and what is said."""

    name: str
    text: str

    def lines(self) -> list[str]:
        """The lines that are long enough to be told from others."""
        return [line for line in self.text.splitlines() if len(line.split()) >= 5]


def speeches(text: str) -> list[Speech]:
    """The speeches of plays in which a name and a colon stand above each."""
    found = re.findall(r"^([A-Z][A-Za-z ]+):\n(.+?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    return [Speech(*one) for one in found]


def make_questions(text: str, seed: int = 0) -> dict[str, Any]:
    """SQuAD's JSON with questions about consecutive speeches, no speech in two contexts."""
    rng, left, paragraphs = np.random.default_rng(seed), speeches(text), []
    while left:
        taken = 1
        while taken < len(left) and sum(len(one.text.split()) for one in left[: taken + 1]) <= WORDS:
            taken += 1
        here, left = left[:taken], left[taken:]
        if len({one.name for one in here}) >= SPEAKERS:
            paragraphs.append(paragraph(here, rng, len(paragraphs)))
    return {"version": "1.1", "data": [{"title": "Shakespeare", "paragraphs": paragraphs}]}


def paragraph(here: list[Speech], rng: np.random.Generator, number: int) -> dict[str, Any]:
    """A context with its questions: each about a line of another speech."""
    parts = [f"{one.name}: {one.text}" for one in here]
    starts = np.cumsum([0, *(len(part) + 1 for part in parts)])
    questions = []
    for place in rng.permutation(len(here))[:QUESTIONS]:
        lines = here[place].lines()
        if lines:
            asked = f'Who says "{lines[rng.integers(len(lines))]}"?'
            answer = {"text": here[place].name, "answer_start": int(starts[place])}
            questions.append({"id": f"{number}-{place}", "question": asked, "answers": [answer]})
    return {"context": "\n".join(parts), "qas": questions}


def qa(data: Path, work: Path, run: Callable[..., Any], draw: Callable[..., None], folder: Path, quick: bool) -> str:
    """Lines of Markdown: exact match and F1 of two models, and of the guess that the first speaker says every line."""
    from finetune_classify import minilm, steps, weights

    made = work / "who-says-it.json"
    questions = make_questions((data / "tinyshakespeare.txt").read_text(encoding="utf-8"))
    made.write_text(json.dumps(questions), encoding="utf-8")
    asked = [question for one in questions["data"][0]["paragraphs"] for question in one["qas"]]
    first, count = asked[0], len(asked)
    words = ["--data", str(made), "--length", "192", "--max-question", "32", "--sample-every", "0"]
    words += ["--eval-batches", "20"]
    given = {
        "BERT of 2 blocks, 128 channels, from random weights": ["bert-tiny", *steps(600, 100, quick)],
        "MiniLM (all-MiniLM-L6-v2)": [str(minilm()), "--lr", "2e-4", *steps(240, 60, quick)],
    }
    rows, runs = [guess(made)], {}
    for name, (model, *options) in given.items():
        tuned = runs[name] = run(work / f"qa-{Path(model).name}", "finetune", "qa", model, *words, *options)
        took = f"{tuned.minutes:.1f} | {tuned.cpu_minutes:.1f} | {tuned.memory / 2**20:,.0f} MiB"
        rows.append(f"| {name} | {weights(tuned.folder):,} | {took} | {shown(held_out(tuned.folder, made))} |")
    draw(folder / "finetune_qa.png", runs, "nats per question")
    return "\n".join(
        [
            f"{count:,} questions by a rule from tinyshakespeare.txt, such as `{first['question']}`; the answer is the "
            f"name above the line, in a context of at least {SPEAKERS} speakers. A tenth of the contexts is held out.",
            "",
            "| model | weights | minutes | of a core | memory | exact match, 95% interval | F1 |",
            "|---|" + "---|" * 6,
            *rows,
            "",
            *(f"`{tuned.command}`  " for tuned in runs.values()),
            "",
            "![losses](finetune_qa.png)",
        ]
    )


def held_out(folder: Path, made: Path) -> dict[str, Any]:
    """What `minillm eval` measures on the questions that the training of a run held out."""
    out = folder / "held_out.json"
    words = ["eval", str(folder), "--data", str(made), "--held-out", "0.1", "--out", str(out)]
    subprocess.run([sys.executable, "-m", "minillm", *words], check=True, stdout=subprocess.DEVNULL)
    return json.loads(out.read_text(encoding="utf-8"))["measures"]


def guess(made: Path) -> str:
    """The row of a rule that needs no model: the first speaker of the context says every line."""
    from minillm.data.squad import read_squad
    from minillm.evaluation.squad import squad_scores
    from minillm.training.tasks.qa import divide

    questions = divide(read_squad(made), 0.1)[1]
    said = [question.context.partition(":")[0] for question in questions]
    found = squad_scores(said, [question.texts for question in questions])
    measures = {name: dataclasses.asdict(measure) for name, measure in found.items()}
    return f"| always the first speaker | - | - | - | - | {shown(measures)} |"


def shown(measures: dict[str, Any]) -> str:
    """Two cells: the share of exact answers with its interval, and F1."""
    exact, f1 = measures["exact_match"], measures["f1"]
    return f"**{exact['value']:.1%}**, {exact['low']:.1%} to {exact['high']:.1%} | {f1['value']:.1%}"
