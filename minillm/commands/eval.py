"""`minillm eval`: measure a model on a file, each number with its interval and its denominator."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from minillm.commands.common import print_tables
from minillm.data.records import Records, read_records
from minillm.data.sources import read_texts
from minillm.errors import InputError
from minillm.evaluation.generation import STOP, exact, exercise_of
from minillm.evaluation.intervals import Measure
from minillm.evaluation.left_to_right import is_masked
from minillm.evaluation.likelihood import BATCH_TOKENS, Progress
from minillm.evaluation.multiple_choice import multiple_choice, question_of
from minillm.evaluation.perplexity import Perplexity, perplexity, pseudo_perplexity
from minillm.options import Positional, read
from minillm.resolver import OpenedModel, open_model


@dataclass(frozen=True)
class Eval:
    """Measure a model on a file: perplexity and bits per byte, multiple choice, written answers."""

    model: Positional[Path]
    """A run directory, a folder with config.json and tokenizer.json, a .gguf file or a LoRA adapter."""
    data: str
    """Texts for perplexity (a file, a folder, a glob pattern, .jsonl); else a .jsonl or .json file with records."""
    task: Literal["perplexity", "choices", "exact"] = "perplexity"
    """What to measure: `perplexity` (for BERT and its relatives pseudo-perplexity), `choices`, or `exact` answers."""
    out: Path | None = None
    """JSON file to write, with every number and what the model chose or wrote."""
    field: str | None = None
    """Name of the text in .jsonl files, for perplexity; "text" by default."""
    limit: int | None = None
    """Measure the first so many documents or records only."""
    window: int | None = None
    """Perplexity: tokens that the model is given at once; by default its context."""
    stride: int | None = None
    """Perplexity: tokens that each window after the first scores; by default as many as the window has."""
    max_tokens: int = 32
    """Exact answers: the longest that the model writes."""
    stop: str | None = None
    """Exact answers: an answer ends before this text; by default at the end of its line."""
    batch_tokens: int = BATCH_TOKENS
    """Tokens that are computed together."""
    seed: int = 0
    """Seed of the intervals that are bootstrapped."""
    device: str = "cpu"
    """Where to compute: `cpu`, `cuda` or `cuda:1`."""


@dataclass(frozen=True)
class Report:
    """What a task found: measures, counts to state beside them, and one JSON object for each document or record."""

    measures: dict[str, Measure]
    counts: dict[str, Any]
    notes: list[str]  # sentences for the person
    items: list[dict[str, Any]]


def eval(arguments: list[str]) -> None:
    """Print the measures of a model as a table; write them, with what they were made of, as JSON."""
    given = read(Eval, "eval", arguments)
    for name in ("limit", "batch_tokens", "max_tokens"):
        if (value := getattr(given, name)) is not None and value < 1:
            raise InputError(f"eval: {name} is {value}; give 1 or more")
    if given.out is not None and not given.out.parent.is_dir():
        raise InputError(f"eval: the folder of --out {given.out} is not there; make it, or give another path")
    opened = open_model(given.model, device=given.device)
    task: Callable[[OpenedModel, Eval], Report] = {"perplexity": _perplexity, "choices": _choices, "exact": _exact}[
        given.task
    ]
    report = task(opened, given)
    rows = [[name, *_shown(measure)] for name, measure in report.measures.items()]
    columns = [given.task, "value", "95% interval", "std. error", "of", "interval from"]
    print_tables([(f"{given.model} on {given.data}", columns, rows)])
    print(*report.notes, sep="\n")
    if given.out is not None:
        settings = {name: value for name, value in vars(given).items() if name not in ("model", "data", "task", "out")}
        content = {
            "model": str(given.model),
            "data": given.data,
            "task": given.task,
            "settings": settings,
            "measures": {name: measure.as_json() for name, measure in report.measures.items()},
            "counts": report.counts,
            "items": report.items,
        }
        given.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"written: {given.out}")


def _shown(measure: Measure) -> list[str]:
    """The cells of a measure in the table."""
    unit = f"{measure.denominator:,.0f} {measure.unit}"
    if measure.low is None or measure.high is None or measure.stderr is None:
        return [_number(measure.value), "-", "-", unit, "one item has none"]
    interval = f"{_number(measure.low)} to {_number(measure.high)}"
    source = f"{measure.method}, {measure.items:,} {measure.item}s"
    return [_number(measure.value), interval, _number(measure.stderr), unit, source]


def _number(value: float) -> str:
    """Four decimals, or four digits of a number that is large."""
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3e}"


@contextmanager
def _progress(what: str) -> Iterator[Progress]:
    """A line on a terminal that shows how many are done; it is gone at the end."""
    console = Console(stderr=True)
    columns = (TextColumn(what), MofNCompleteColumn(), BarColumn(bar_width=24), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        line = bar.add_task("", total=None)
        yield lambda done, total: bar.update(line, completed=done, total=total)


# --- tasks ---------------------------------------------------------------------------------------------------------


def _perplexity(opened: OpenedModel, given: Eval) -> Report:
    tokenizer = opened.needed_tokenizer("eval")
    documents = list(read_texts(given.data, given.field))[: given.limit]
    masked = is_masked(opened.model)
    if masked and (given.window or given.stride):
        raise InputError(
            f"eval: a {type(opened.model).__name__} has no --window or --stride: each token is hidden once, with all "
            "others in sight; leave them out"
        )
    with _progress("window") as progress:
        if masked:
            found = pseudo_perplexity(
                opened.model, tokenizer, documents, given.seed, given.batch_tokens, progress=progress
            )
        else:
            found = perplexity(
                opened.model,
                tokenizer,
                documents,
                window=given.window,
                stride=given.stride,
                seed=given.seed,
                batch_tokens=given.batch_tokens,
                progress=progress,
            )
    counts = {name: getattr(found, name) for name in ("nats", "documents", "ids", "words", "bytes")}
    counts |= {"unknown_ids": found.unknown_ids, "changed_documents": found.changed_documents}
    items = [{"nats": nats, "ids": ids} for nats, ids in found.each]
    return Report(found.measures, counts, list(_about(found, masked)), items)


def _about(found: Perplexity, masked: bool) -> Iterator[str]:
    yield (
        f"documents: {found.documents:,}, each scored apart; ids: {found.ids:,}; words: {found.words:,}; bytes: "
        f"{found.bytes:,}; nats: {found.nats:,.2f}"
    )
    if masked:
        yield "each token was hidden once, with all others in sight: compare this with no model of the next token"
    if found.unknown_ids:
        yield f"{found.unknown_ids:,} ids are the unknown token, so these numbers are better than the truth"
    if found.changed_documents:
        yield (
            f"{found.changed_documents:,} documents are not what their ids spell, since the tokenizer changes text or "
            "loses some, so numbers per byte or word cannot be compared with other models"
        )


def _choices(opened: OpenedModel, given: Eval) -> Report:
    tokenizer = opened.needed_tokenizer("eval")
    records = read_records(given.data, question_of)
    questions = records.items[: given.limit]
    with _progress("choice") as progress:
        found = multiple_choice(opened.model, tokenizer, questions, batch_tokens=given.batch_tokens, progress=progress)
    choices = sum(len(question.choices) for question in questions)
    counts = {"questions": len(questions), "choices": choices, "ids": found.ids, "cut_contexts": found.cut_contexts}
    notes = [f"{len(questions):,} questions with {choices:,} choices, {found.ids:,} ids scored"]
    if found.cut_contexts:
        notes.append(f"{found.cut_contexts:,} choices lost the beginning of their question: the context is too short")
    items = [
        {"line": line, "answer": question.answer, **chosen._asdict()}
        for line, question, chosen in zip(records.lines, questions, found.chosen, strict=False)
    ]
    return Report(found.measures, counts | _left_out(records), notes + _problems(records), items)


def _exact(opened: OpenedModel, given: Eval) -> Report:
    tokenizer = opened.needed_tokenizer("eval")
    records = read_records(given.data, exercise_of)
    exercises = records.items[: given.limit]
    with _progress("answer") as progress:
        found = exact(
            opened.model,
            tokenizer,
            exercises,
            given.max_tokens,
            [STOP if given.stop is None else given.stop],
            given.seed,
            given.batch_tokens,
            progress,
        )
    notes = [f"{len(exercises):,} greedy answers of at most {given.max_tokens} tokens"]
    if found.cut_prompts:
        notes.append(f"{found.cut_prompts:,} prompts lost their beginning: the context is too short")
    items = [
        {"line": line, "prompt": exercise.prompt, "written": written, "answers": list(exercise.answers)}
        for line, exercise, written in zip(records.lines, exercises, found.written, strict=False)
    ]
    counts = {"answers": len(exercises), "cut_prompts": found.cut_prompts}
    return Report(found.measures, counts | _left_out(records), notes + _problems(records), items)


def _left_out(records: Records[Any]) -> dict[str, Any]:
    return {"left_out": len(records.problems), "problems": records.problems}


def _problems(records: Records[Any]) -> list[str]:
    return [records.summary()] if records.problems else []
