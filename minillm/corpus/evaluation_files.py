"""The texts of evaluation files, which must not be learned: the files that `minillm eval` measures on, and plain text.

| file                        | a record is                                                                            |
|-----------------------------|----------------------------------------------------------------------------------------|
| .json in SQuAD's format     | a question with its answers; also its context, if contexts are asked for               |
| .jsonl, .json with an array | an object with a question, answers or choices, or a text, under any of the names below |
| .txt, .md                   | the whole file                                                                         |

All of these but SQuAD's may be compressed (.gz). A record becomes pairs of a question and an answer: one for each
answer or choice, also the wrong ones, since whoever copies a test copies these too.
"""

from __future__ import annotations

import glob
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minillm.data.records import read_records
from minillm.data.sources import read_texts
from minillm.data.squad import read_squad
from minillm.errors import InputError
from minillm.files import check_is_file

SUFFIXES = (".json", ".jsonl", ".txt", ".md")
QUESTIONS = ("instruction", "input", "question", "prompt", "problem", "ctx_a", "ctx_b", "premise", "source")
ANSWERS = (
    "choices",
    "endings",
    "answer",
    "answers",
    "output",
    "solution",
    "hypothesis",
    "target",
    "chosen",
    "rejected",
)
CONTEXTS = ("context", "passage", "article")
Pair = tuple[str, str]


class Record(NamedTuple):
    """A record of an evaluation file."""

    file: str
    place: str  # its id, or its line or number in the file
    pairs: tuple[Pair, ...]  # a question and an answer, either of which may be empty


def find_files(patterns: Sequence[str | Path]) -> list[Path]:
    """The files that are meant by these files, folders and glob patterns, in order, each once.

    Raises: InputError for one that means no file, or a file of another kind.
    """
    found: dict[Path, None] = {}
    for pattern in map(str, patterns):
        path = Path(pattern)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file() and _suffix(file) in SUFFIXES)
        else:
            files = [path] if path.is_file() else sorted(map(Path, glob.glob(pattern, recursive=True)))
        if not files:
            raise InputError(
                f"decontaminate: {pattern} is no file, folder or pattern with {', '.join(SUFFIXES)} files, seen from "
                f"{Path.cwd()}; give the files that you measure models on"
            )
        for file in files:
            if _suffix(file) not in SUFFIXES:
                raise InputError(f"decontaminate: {file} has another ending than {', '.join(SUFFIXES)}; convert it")
            found[file] = None
    return list(found)


def read_evaluated(path: Path, contexts: bool = False) -> tuple[list[Record], list[str]]:
    """The records of an evaluation file, and what is wrong with those that are left out.

    contexts: also the texts that questions are about, which are often public texts of their own, such as Wikipedia.
    Raises: InputError for a file that cannot be read, or has no record.
    """
    if _suffix(path) in (".txt", ".md"):
        return [Record(path.name, "the text", (("", "\n".join(read_texts(path))),))], []
    if _suffix(path) == ".json" and _is_squad(path):
        return list(_squad_records(path, contexts)), []
    records = read_records(path, lambda record: pairs_of(record, contexts))
    places = [f"{records.unit} {place}" for place in records.places]
    found = [Record(path.name, place, pairs) for place, pairs in zip(places, records.items, strict=True)]
    return found, records.problems


def pairs_of(record: Mapping[str, Any], contexts: bool = False) -> tuple[Pair, ...]:
    """The pairs of a record of a .jsonl file. Raises: InputError where it has none of the names above, and no text."""
    question = "\n".join(text for name in QUESTIONS for text in _texts(record.get(name)))
    question = question or "\n".join(_texts(record.get("ctx")))  # HellaSwag has it beside its parts
    answers = [text for name in ANSWERS for text in _texts(record.get(name))]
    alone = [text for name in ("text", *(CONTEXTS if contexts else ())) for text in _texts(record.get(name))]
    pairs = [(question, answer) for answer in answers] or ([(question, "")] if question else [])
    pairs += [("", text) for text in alone]
    if not pairs:
        names = ", ".join(record) or "none"
        raise InputError(
            f"no question, answer or text is among its fields ({names}); name them {QUESTIONS[2]}, answer or text"
        )
    return tuple(dict.fromkeys(pairs))


def _texts(value: Any) -> list[str]:
    """The texts in a value: one, a list of them, or objects with one or a list under "text"."""
    if isinstance(value, Mapping):
        return _texts(value.get("text"))
    if isinstance(value, list):
        return [text for one in value for text in _texts(one)]
    return [value] if isinstance(value, str) and value.strip() else []


def _squad_records(path: Path, contexts: bool) -> Iterator[Record]:
    for question in read_squad(path):
        pairs = [(question.question, answer) for answer in question.texts] or [(question.question, "")]
        pairs += [("", question.context)] if contexts else []
        yield Record(path.name, f"record {question.id}", tuple(dict.fromkeys(pairs)))


def _is_squad(path: Path) -> bool:
    """True for a JSON object with "data"; a file that is no JSON is left to those who say what is wrong with it."""
    check_is_file("data", path)
    data = path.read_bytes()
    try:
        content = json.loads(gzip.decompress(data) if path.suffix.lower() == ".gz" else data)
    except (OSError, EOFError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "data" in content


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix
