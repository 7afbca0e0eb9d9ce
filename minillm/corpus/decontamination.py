"""The stage `decontaminate`: training documents that hold the texts of evaluation files are dropped, or cut.

A model that has learned the questions and answers of a test is not measured by it. A document is contaminated if it has
n words in a row (13 by default) from a record of an evaluation file. Words are those of words.py, so case, punctuation
and accents do not matter; numbers do, since "what is 17 + 25" is another question than "what is 3 + 4".

**Short answers.** An answer of fewer than n words has no n-gram, and would never be found. So each answer is joined
with its question: the n-grams of the question, those of the answer, and those that begin in one and end in the other
are all looked for. A pair that has fewer than n words even then cannot be checked, whatever the training text holds.
Such pairs are counted and shown, with examples: on the standard error, and in the record of the stage, from which the
data card has them.

**One hit drops the document.** The reason names the file and the record, and quotes the words. With `cut`, GPT-3's
method, the words go instead, with so many characters on each side; what is left are pieces, of which those under 200
characters go too, and a document in more than 10 pieces is dropped after all. GPT-3 made a document of each piece; here
they stay one, with an empty line between them.

Contexts of questions are not looked for by default: they are often public texts (SQuAD's are from Wikipedia), which a
training corpus may well hold, while the questions and answers are what is measured.

n-grams are compared by 64-bit hashes. With 10^6 n-grams of evaluation files, one in 10^13 n-grams of training text is
expected to be mistaken for one of them.

Source: Brown et al., "Language Models are Few-Shot Learners" (2020), appendix C; the janitor of lm-evaluation-harness.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from minillm.corpus.document import Document
from minillm.corpus.evaluation_files import find_files, read_evaluated
from minillm.corpus.stage import Stage
from minillm.corpus.words import Words, ngram_hashes, word_hashes, words_with_places
from minillm.errors import InputError

INDEX = "decontaminate.index"  # the folder with the stage's files, beside its output
SHORTEST_PIECE = 200  # characters of a piece that stays, with `cut`
MOST_PIECES = 10
EXAMPLES = 5  # of what cannot be checked, for each file
LARGEST_TABLE = 26  # bits: a byte for each of so many hashes, 64 MiB, in every worker process


@dataclass(frozen=True)
class Decontaminate:
    """Drop documents that hold the texts of evaluation files."""

    against: str = ""
    """Files to measure models on, folders or patterns, with commas between: SQuAD's .json, records (.jsonl), .txt."""
    ngram: int = 13
    """Words in a row that a document and a record of these files must share."""
    cut: int | None = field(default=None, metadata={"alone": 200})
    """Cut these words out, with so many characters on each side, instead of dropping the document."""
    contexts: bool = False
    """Look for the contexts of questions too, not for questions and answers alone."""

    def __post_init__(self) -> None:
        for name, least in (("ngram", 1), ("cut", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise InputError(f"decontaminate: {name} is {value}; give {least} or more")


class DecontaminateStage(Stage):
    """Drops or cuts documents with n-grams of evaluation files; info["contaminated_by"] names the file and the record.

    A document that is cut has info["cut_characters"].
    """

    name = "decontaminate"

    def __init__(self, options: Decontaminate):
        patterns = [pattern.strip() for pattern in options.against.split(",") if pattern.strip()]
        if not patterns:
            raise InputError("decontaminate: against names no file; give the files that you measure models on")
        self.options = options
        self.files = find_files(patterns)
        self.folder: Path | None = None

    def settings(self) -> dict[str, Any]:
        """The options, and what was read of each evaluation file: so the record of the stage says what was checked."""
        return dataclasses.asdict(self.options) | {"read": Evaluation(self.files, self.options).report}

    def prepare(self, inputs: Sequence[Path], folder: Path, processes: int) -> None:
        """Write the n-grams of the evaluation files, and say what cannot be checked."""
        self.folder = folder / INDEX
        self.folder.mkdir(exist_ok=True)
        evaluation = Evaluation(self.files, self.options)
        evaluation.write(self.folder)
        for line in report_lines(evaluation.report, self.options.ngram):
            print(line, file=sys.stderr)

    def apply(self, documents: list[Document]) -> Iterable[Document]:
        """The documents of a chunk, without what evaluation files hold."""
        assert self.folder is not None, "prepare comes first"
        index = _opened(self.folder, (self.folder / "names.json").stat().st_mtime_ns)
        kept = [document for document in documents if document.dropped is None]
        words = word_hashes([document.text for document in kept], "kept")
        for number, hits in index.hits(words, self.options.ngram):
            self._mark(kept[number], hits, index)
        return documents

    def _mark(self, document: Document, hits: list[tuple[int, int]], index: Index) -> None:
        """Drop or cut a document; hits: the first word of each n-gram that was found, and whose it is."""
        file, record = index.names[hits[0][1]]
        document.info["contaminated_by"] = {"file": file, "record": record}
        quote, spans = _places(document.text, [word for word, _ in hits], self.options.ngram)
        reason = f"contamination: {self.options.ngram} words of {file}, {record}: {quote!r}"
        if self.options.cut is None:
            document.dropped = reason
            return
        pieces = pieces_around(document.text, spans, self.options.cut)
        if not 0 < len(pieces) <= MOST_PIECES:
            document.dropped = f"{reason}; cutting such words out leaves {len(pieces)} pieces"
            return
        before = len(document.text)
        document.text = "\n\n".join(pieces)
        document.info["cut_characters"] = before - len(document.text)


def _places(text: str, firsts: list[int], n: int) -> tuple[str, list[tuple[int, int]]]:
    """The first n-gram in words, and the characters that each spans; firsts: the numbers of their first words."""
    quote, starts, ends = [], {}, {}
    wanted, last = {*firsts}, {first + n - 1 for first in firsts}
    for number, word in enumerate(words_with_places(text, "kept")):
        if firsts[0] <= number < firsts[0] + n:
            quote.append(word.word)
        if number in wanted:
            starts[number] = word.start
        if number in last:
            ends[number - n + 1] = word.end
        if number == firsts[-1] + n - 1:
            break
    return " ".join(quote), [(starts[first], ends[first]) for first in firsts if first in ends]


def pieces_around(text: str, spans: Sequence[tuple[int, int]], margin: int) -> list[str]:
    """The pieces of a text that are left without these spans, in order, and `margin` characters on each side."""
    pieces, start = [], 0
    for first, last in spans:
        pieces.append(text[start : max(first - margin, start)])
        start = max(start, last + margin)
    pieces.append(text[start:])
    return [piece.strip() for piece in pieces if len(piece.strip()) >= SHORTEST_PIECE]


# --- the n-grams of evaluation files ------------------------------------------------------------------------------


class Evaluation:
    """The n-grams of evaluation files; `report` has for each file what was read, and what cannot be checked.

    ngrams (G,): their numbers, sorted. owners (G,): the record of each, names[owners[place]].
    """

    def __init__(self, files: Sequence[Path], options: Decontaminate):
        grams, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint32)]
        self.names: list[tuple[str, str]] = []
        self.report: list[dict[str, Any]] = []
        for path in files:
            records, problems = read_evaluated(path, options.contexts)
            numbers = np.repeat(np.arange(len(records)), [len(record.pairs) for record in records])
            pairs = [pair for record in records for pair in record.pairs]
            words = word_hashes([f"{question}\n{answer}" for question, answer in pairs], "kept")
            of_pairs = [ngram_hashes(words.hashes[a:b], options.ngram) for a, b in pairwise(words.ends.tolist())]
            counts = np.array([len(of_pair) for of_pair in of_pairs])
            grams += of_pairs
            owners.append(np.repeat(numbers + len(self.names), counts).astype(np.uint32))
            self.names += [(record.file, record.place) for record in records]
            short = [(records[numbers[place]].place, *pairs[place]) for place in np.flatnonzero(counts == 0)]
            checked = {records[number].place for number in numbers[counts > 0].tolist()}
            digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
            read = {"file": str(path), "digest": digest, "records": len(records), "ngrams": int(counts.sum())}
            left_out = {"left_out": len(problems), "why": problems[:EXAMPLES]}
            self.report.append(read | left_out | _unchecked(short, checked))
        self.ngrams, firsts = np.unique(np.concatenate(grams), return_index=True)
        self.owners = np.concatenate(owners)[firsts]

    def write(self, folder: Path) -> None:
        """Write the files that an Index reads."""
        self.ngrams.astype("<u8").tofile(folder / "ngrams")
        self.owners.astype("<u4").tofile(folder / "owners")
        (folder / "names.json").write_text(json.dumps(self.names), encoding="utf-8")


def _unchecked(short: Sequence[tuple[str, str, str]], checked: Container[str]) -> dict[str, Any]:
    """The numbers of records, and of answers of other records, that cannot be checked, with examples.

    short: the place, question and answer of each pair without an n-gram. checked: the places of records that have one.
    """
    nowhere = [pair for pair in short if pair[0] not in checked]
    partly = [pair for pair in short if pair[0] in checked]
    return {
        "unchecked_records": len({place for place, _, _ in nowhere}),
        "unchecked_answers": len(partly),
        "examples": [
            {"record": place, "question": question[:200], "answer": answer[:200]}
            for place, question, answer in (nowhere + partly)[:EXAMPLES]
        ],
    }


def report_lines(report: Sequence[dict[str, Any]], n: int) -> Iterator[str]:
    """Sentences about each evaluation file: how much of it is looked for, and what cannot be."""
    for one in report:
        yield f"decontaminate: {one['file']}: {one['records']:,} records, {one['ngrams']:,} runs of {n} words"
        if one["left_out"]:
            yield f"  {one['left_out']:,} records cannot be read, the first is {one['why'][0]}"
        if one["unchecked_records"] or one["unchecked_answers"]:
            yield (
                f"  cannot be checked, with fewer than {n} words in question and answer together: "
                f"{one['unchecked_records']:,} records, and {one['unchecked_answers']:,} answers of others"
            )
        for example in one["examples"]:
            yield f"    {example['record']}: {example['question'][:60]!r} {example['answer'][:60]!r}"


@functools.lru_cache(1)
def _opened(folder: Path, written: int) -> Index:
    return Index(folder)


class Index:
    """The n-grams of evaluation files, and the record that each is from: names[owners[place]]."""

    def __init__(self, folder: Path):
        self.ngrams = np.fromfile(folder / "ngrams", "<u8")
        self.owners = np.fromfile(folder / "owners", "<u4")
        self.names = [(file, record) for file, record in json.loads((folder / "names.json").read_text("utf-8"))]
        # Most n-grams of a text are in no file. A table of their first bits says so faster than a search.
        bits = min(LARGEST_TABLE, max(8, (16 * len(self.ngrams)).bit_length()))
        self.shift = np.uint64(64 - bits)
        self.possible = np.zeros(1 << bits, bool)
        self.possible[self.ngrams >> self.shift] = True

    def hits(self, words: Words, n: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Each text that has n-grams of the files, with the first word and the owner of each of them."""
        grams = ngram_hashes(words.hashes, n)
        places = np.flatnonzero(self.possible[grams >> self.shift])
        found = np.minimum(np.searchsorted(self.ngrams, grams[places]), len(self.ngrams) - 1)
        texts = np.searchsorted(words.ends, places, side="right") - 1
        real = (self.ngrams[found] == grams[places]) & (places + n <= words.ends[texts + 1])
        places, found, texts = places[real], found[real], texts[real]
        for text in np.unique(texts).tolist():
            start, end = np.searchsorted(texts, [text, text + 1])
            firsts = (places[start:end] - words.ends[text]).tolist()
            yield text, list(zip(firsts, self.owners[found[start:end]].tolist(), strict=True))
