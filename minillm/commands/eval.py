"""`minillm eval`: measure a model on a file, each number with its interval and its denominator."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from minillm.commands.common import print_tables
from minillm.counted import counted
from minillm.data.labelled import read_labelled
from minillm.data.records import Records, read_records
from minillm.data.sources import read_texts
from minillm.data.squad import read_squad
from minillm.errors import InputError
from minillm.evaluation.bleu import bleu
from minillm.evaluation.classification import classification_scores
from minillm.evaluation.generation import STOP, exact, exercise_of
from minillm.evaluation.heads import LENGTH, answer_questions, classify, family_of, longest
from minillm.evaluation.intervals import Measure
from minillm.evaluation.left_to_right import is_masked
from minillm.evaluation.likelihood import BATCH_TOKENS, Progress, prefix_id
from minillm.evaluation.multiple_choice import multiple_choice, question_of
from minillm.evaluation.perplexity import Perplexity, perplexity, pseudo_perplexity
from minillm.evaluation.squad import squad_scores
from minillm.files import check_folder_of, writing
from minillm.models.bart import Bart
from minillm.models.heads import QuestionAnswering, SequenceClassification
from minillm.models.labels import names_of_labels
from minillm.options import Positional, read
from minillm.resolver import OpenedModel, open_model
from minillm.training.tasks.pairs import PairsOptions, read_pairs, translate
from minillm.training.tasks.qa import QAOptions, divide

ANSWER = 32  # tokens of the longest exact answer, by default
ONLY = {  # the tasks that an option is for, where it is not for all
    "field": ("perplexity", "classify"),
    "targets": ("translate",),
    "label": ("classify",),
    "held_out": ("classify", "qa"),
    "window": ("perplexity",),
    "stride": ("perplexity",),
    "max_tokens": ("exact", "translate"),
    "stop": ("exact",),
}


@dataclass(frozen=True)
class Eval:
    """Measure a model on a file: bits per byte, multiple choice, written answers, classes, spans, translations."""

    model: Positional[Path]
    """A run directory, a folder with config.json and tokenizer.json, a .gguf file or a LoRA adapter."""
    data: str
    """Texts for perplexity (file, folder, pattern, .jsonl); else labelled texts, SQuAD's .json, or records (.jsonl)."""
    task: Literal["perplexity", "choices", "exact", "classify", "qa", "translate"] | None = None
    """What to measure; by default perplexity (of BERT and its relatives pseudo-perplexity), or what a head is for."""
    out: Path | None = None
    """JSON file to write, with every number and what the model chose or wrote."""
    field: str | None = None
    """Name of the text in .jsonl files, for perplexity; "text" by default."""
    targets: str | None = None
    """Translate: file with the target of each line of --data; without it, --data is a .jsonl with source and target."""
    label: str = "label"
    """Name of the field or column with the class, for classify; --field names that of the text."""
    held_out: float | None = None
    """Classify, qa: measure only the texts that training with this --validation-fraction holds out, such as 0.1."""
    limit: int | None = None
    """Measure the first so many documents or records only."""
    window: int | None = None
    """Perplexity: tokens that the model is given at once; by default its context."""
    stride: int | None = None
    """Perplexity: tokens that each window after the first scores; by default as many as the window has."""
    max_tokens: int | None = None
    """Longest answer or translation that is written; by default 32, or twice the source and 10."""
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
    """The results of a task: measures, counts to state beside them, and one JSON object for each document or record."""

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
    if given.out is not None:
        check_folder_of("eval", "--out", given.out)
    if given.held_out is not None and not 0 < given.held_out < 1:
        raise InputError(f"eval: held_out is {given.held_out}; give a share between 0 and 1, such as 0.1")
    opened = open_model(given.model, device=given.device)
    task = given.task or _task_of(opened.model)
    for name, tasks in ONLY.items():
        if task not in tasks and getattr(given, name) != getattr(Eval, name):
            option, others = name.replace("_", "-"), " or ".join(tasks)
            raise InputError(f"eval: --{option} does nothing for {task}; leave it out, or give --task {others}")
    report = TASKS[task](opened, given)
    rows = [[name, *_shown(measure)] for name, measure in report.measures.items()]
    columns = [task, "value", "95% interval", "std. error", "divided by", "drawn from"]
    print_tables([(f"{given.model} on {given.data}", columns, rows)])
    print(*report.notes, *_methods(report.measures), sep="\n")
    if given.out is not None:
        settings = {name: value for name, value in vars(given).items() if name not in ("model", "data", "task", "out")}
        content = {
            "model": str(given.model),
            "data": given.data,
            "task": task,
            "settings": settings,
            "measures": {name: measure.as_json() for name, measure in report.measures.items()},
            "counts": report.counts,
            "items": report.items,
        }
        with writing("eval", given.out) as unfinished:
            unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"written: {given.out}")


def _task_of(model: Any) -> str:
    """The task that a model's head is for."""
    if isinstance(model, SequenceClassification):
        return "classify"
    return "qa" if isinstance(model, QuestionAnswering) else "perplexity"


def _shown(measure: Measure) -> list[str]:
    """The cells of a measure in the table."""
    unit = f"{measure.denominator:,.0f} {measure.unit}"
    if measure.low is None or measure.high is None or measure.stderr is None:
        return [_number(measure.value), "-", "-", unit, f"1 {measure.item}"]
    interval = f"{_number(measure.low)} to {_number(measure.high)}"
    return [_number(measure.value), interval, _number(measure.stderr), unit, f"{measure.items:,} {measure.item}s"]


def _methods(measures: Mapping[str, Measure]) -> Iterator[str]:
    """The methods by which the intervals were made."""
    methods = {measure.method for measure in measures.values()}
    if "wilson" in methods:
        yield "intervals of shares are Wilson's"
    if "bootstrap" in methods:
        others = "others" if "wilson" in methods else "intervals"
        yield f"{others} are bootstrapped: drawn again from the blocks, documents or questions, 1,000 times"


def _number(value: float) -> str:
    """Four decimals, or four digits of a number that is large."""
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"


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
    return Report(found.measures, counts, list(_about(found, masked, prefix_id(opened.model, tokenizer))), items)


def _about(found: Perplexity, masked: bool, prefix: int | None) -> Iterator[str]:
    yield (
        f"documents: {found.documents:,}, each scored apart; ids: {found.ids:,}; words: {found.words:,}; bytes: "
        f"{found.bytes:,}; nats: {found.nats:,.2f}"
    )
    if masked:
        yield "each token was hidden once, with all others in sight: compare this with no model of the next token"
    elif prefix is None:
        yield "no token begins a text for this tokenizer, so the first id of each document has the probability 1 / V"
    if found.unknown_ids:
        unknown = counted(found.unknown_ids, "id is", "ids are")
        yield f"{unknown} the unknown token, so these numbers are better than the truth"
    if found.changed_documents:
        yield (
            f"{counted(found.changed_documents, 'document is', 'documents are')} not what the ids spell, since the "
            "tokenizer changes text or loses some, so numbers per byte or word cannot be compared with other models"
        )


def _choices(opened: OpenedModel, given: Eval) -> Report:
    tokenizer = opened.needed_tokenizer("eval")
    records = read_records(given.data, question_of)
    questions = records.items[: given.limit]
    with _progress("choice") as progress:
        found = multiple_choice(opened.model, tokenizer, questions, batch_tokens=given.batch_tokens, progress=progress)
    choices = sum(len(question.choices) for question in questions)
    counts = {"questions": len(questions), "choices": choices, "ids": found.ids, "cut_contexts": found.cut_contexts}
    notes = [
        f"{counted(len(questions), 'question')} with {counted(choices, 'choice')}, {counted(found.ids, 'id')} scored"
    ]
    if found.cut_contexts:
        notes.append(
            f"{counted(found.cut_contexts, 'choice')} lost the beginning of the question: the context is too short"
        )
    items = [
        {records.unit: place, "answer": question.answer, **chosen._asdict()}
        for place, question, chosen in zip(records.places, questions, found.chosen, strict=False)
    ]
    return Report(found.measures, counts | _left_out(records), notes + _problems(records), items)


def _exact(opened: OpenedModel, given: Eval) -> Report:
    tokenizer = opened.needed_tokenizer("eval")
    records = read_records(given.data, exercise_of)
    exercises, most = records.items[: given.limit], given.max_tokens or ANSWER
    with _progress("answer") as progress:
        found = exact(
            opened.model,
            tokenizer,
            exercises,
            most,
            [STOP if given.stop is None else given.stop],
            given.seed,
            given.batch_tokens,
            progress,
        )
    notes = [f"{counted(len(exercises), 'greedy answer')} of at most {counted(most, 'token')}"]
    if found.cut_prompts:
        notes.append(f"{counted(found.cut_prompts, 'prompt')} lost the beginning: the context is too short")
    items = [
        {records.unit: place, "prompt": exercise.prompt, "written": written, "answers": list(exercise.answers)}
        for place, exercise, written in zip(records.places, exercises, found.written, strict=False)
    ]
    counts = {"answers": len(exercises), "cut_prompts": found.cut_prompts}
    return Report(found.measures, counts | _left_out(records), notes + _problems(records), items)


def _classify(opened: OpenedModel, given: Eval) -> Report:
    tokenizer, model = opened.needed_tokenizer("eval"), opened.model
    if not isinstance(model, SequenceClassification):
        raise InputError(f"eval: a {type(model).__name__} has no head for classes; give a model of finetune classify")
    if model.config.labels < 2:
        raise InputError(
            f"eval: this {type(model).__name__} gives a text one number, a reward, which has no right value; its "
            "accuracy on pairs of answers stands in the metrics of its training"
        )
    data = read_labelled(given.data, given.field or "text", given.label)
    examples = (data.examples if given.held_out is None else data.split(given.held_out)[1])[: given.limit]
    names = names_of_labels(model.config)
    if unknown := sorted({example.label for example in examples} - {*names}):
        raise InputError(
            f"eval: {given.data} has classes that the model lacks ({', '.join(unknown)}; it has {', '.join(names)}); "
            "rename them, or give the model that was trained for them"
        )
    length = longest(model.config, getattr(opened.run.config.task, "max_length", None) if opened.run else None, LENGTH)
    shares = classify(model, tokenizer, [example.text for example in examples], length)
    said, right = shares.argmax(axis=-1), np.array([names.index(example.label) for example in examples])
    items = [
        {"text": example.text, "label": example.label, "said": names[number], "probability": float(share[number])}
        for example, number, share in zip(examples, said.tolist(), shares, strict=True)
    ]
    most = np.bincount(right).max() / len(right)
    notes = [
        f"{counted(len(examples), 'text')}, read up to {length} tokens; the most frequent class is right for "
        f"{most:.1%}",
        *data.notes,
        *_learned(opened, given),
    ]
    measures = classification_scores(said, right, names, given.seed)
    return Report(measures, {"texts": len(examples), "most_frequent": float(most)}, notes, items)


def _qa(opened: OpenedModel, given: Eval) -> Report:
    tokenizer, model = opened.needed_tokenizer("eval"), opened.model
    if not isinstance(model, QuestionAnswering):
        raise InputError(f"eval: a {type(model).__name__} has no head for answers; give a model of finetune qa")
    questions = read_squad(given.data)
    questions = (questions if given.held_out is None else divide(questions, given.held_out)[1])[: given.limit]
    trained = opened.run.config.task if opened.run else None
    settings = trained if isinstance(trained, QAOptions) else QAOptions()
    windows = settings.windows(questions, tokenizer, family_of(model), model.config)
    found = answer_questions(model, tokenizer, windows)
    if not found:
        raise InputError(f"eval: no question of {given.data} can be asked; {windows.summary()}")
    measures = squad_scores([answer.text for _, answer in found], [question.texts for question, _ in found], given.seed)
    items = [
        {"id": question.id, "question": question.question, "said": answer.text, "answers": list(question.texts)}
        for question, answer in found
    ]
    counts = {"questions": len(found), "left_out": len(questions) - len(found), "windows": len(windows.windows)}
    return Report(measures, counts, [windows.summary(), *_learned(opened, given)], items)


def _translate(opened: OpenedModel, given: Eval) -> Report:
    tokenizer, model = opened.needed_tokenizer("eval"), opened.model
    if not isinstance(model, Bart):
        raise InputError(f"eval: a {type(model).__name__} does not translate; give an encoder-decoder, such as a BART")
    pairs = read_pairs(SimpleNamespace(data=given.data, task=PairsOptions(targets=given.targets)))[: given.limit]
    texts, references = (list(side) for side in zip(*pairs, strict=True))
    sources = [tokenizer.build_inputs_with_special_tokens(tokenizer.encode(text)) for text in texts]
    if empty := [number for number, ids in enumerate(sources) if not ids]:
        raise InputError(f"eval: source {empty[0]} of {given.data} is empty; leave it out")
    room = model.config.context
    cut = sum(len(ids) > room for ids in sources)
    written = translate(model, tokenizer, [[*ids[: room - 1], ids[-1]] for ids in sources], given.max_tokens)
    measures = {"bleu": bleu(written, references, given.seed)}
    items = [
        {"source": source, "written": text, "target": target}
        for source, text, target in zip(texts, written, references, strict=True)
    ]
    many = counted(len(pairs), "source")
    notes = [f"{many}, written greedily; BLEU of 13a tokens, mixed case, 0 to 100, all texts together"]
    if cut:
        notes.append(f"{counted(cut, 'source was', 'sources were')} cut to the model's context of {room} tokens")
    return Report(measures, {"pairs": len(pairs), "cut_sources": cut}, notes + _learned(opened, given), items)


def _learned(opened: OpenedModel, given: Eval) -> list[str]:
    """A warning if a run is measured on what it has learned."""
    if opened.run is None or given.held_out is not None:
        return []
    config = opened.run.config
    if Path(config.data).resolve() != Path(given.data).resolve():
        return []
    if isinstance(opened.model, Bart):
        return ["the run has learned most of this file: give pairs that it has not seen"]
    share = config.validation_fraction
    return [f"the run has learned most of this file: --held-out {share:g} measures what it held out alone"]


TASKS: dict[str, Callable[[OpenedModel, Eval], Report]] = {
    "perplexity": _perplexity,
    "choices": _choices,
    "exact": _exact,
    "classify": _classify,
    "qa": _qa,
    "translate": _translate,
}


def _left_out(records: Records[Any]) -> dict[str, Any]:
    return {"left_out": len(records.problems), "problems": records.problems}


def _problems(records: Records[Any]) -> list[str]:
    return [records.summary()] if records.problems else []
