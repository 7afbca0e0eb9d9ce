"""The text of a training, as tokens: is there enough, is it varied, and is the validation part new?

Checks of copies compare pieces of about 64 bytes, which is 13 words: GPT-3's length for "the same text" (Brown et al.
2020, appendix C). At most a million tokens of each part are read.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minillm.errors import MinillmError
from minillm.study.doctor.case import Case
from minillm.study.doctor.finding import Finding

READ = 1 << 20  # tokens of a part that are looked at
PIECE = 64  # bytes of a piece that is compared
REPEATED = 0.3  # share of the text in copies; Gopher drops documents of that many (Rae et al. 2021, table A1)
SHARED = 0.3  # share of the validation text that the training text has
PACKED = 12  # times that zlib shortens a text of nothing but repetitions; English: 2.5 to 4
FEW = 20  # batches
LOOKED_AT = 1 << 16  # characters of the text in which a table is looked for
KINDS = {".csv": "a table", ".tsv": "a table", ".json": "JSON", ".html": "HTML", ".xml": "XML"}
ROWS, TABLE = 20, 0.95  # lines of a table, at least, and the share of them that have one number of separators
JSON = 400  # characters of text for each name of a field, at most
FIELD = re.compile(r'[{,]\s*("[^"\n]{1,40}"): ')
UNKNOWN = 0.01  # share of tokens
BROKEN = 0.001  # share of characters that come of a wrong encoding
BROKEN_TEXT = re.compile("\ufffd|[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac")  # U+FFFD; UTF-8 read as Latin-1


def text_data(case: Case) -> Iterator[Finding]:
    """Check the text of tasks that read one long text."""
    parts = parts_of(case.task)
    if parts is None:
        return
    train, validation = (np.asarray(part[:READ]).astype(np.int64) for part in parts)
    text = decoded(case.task.tokenizer, train)
    per_token = max(1e-3, len(text.encode("utf-8", "replace")) / max(1, len(train)))
    length = max(2, round(PIECE / per_token))
    yield from _size(case, len(parts[0]))
    constant = list(_constant(train, text))
    yield from constant
    if not constant:
        yield from _copies(train, validation, length)
        yield from _tables(text, Path(case.config.data).suffix.lower())
    yield from _characters(text)
    yield from _vocabulary(case, train)


def parts_of(task: Any) -> tuple[Any, Any] | None:
    """The tokens of the training part and of the validation part; None for data that is no long text."""
    if hasattr(task, "corpus"):
        return task.corpus.train, task.corpus.validation
    return tuple(task.tokens_of) if hasattr(task, "tokens_of") else None


def decoded(tokenizer: Any, ids: np.ndarray) -> str:
    """The text of ids; empty where the tokenizer does not know them."""
    try:
        return tokenizer.decode(ids)
    except MinillmError:
        return ""


def _size(case: Case, tokens: int) -> Iterator[Finding]:
    batch = sum(array.size for name, array in case.batch.items() if name in ("ids", "target"))
    if tokens < FEW * batch:
        yield Finding(
            "error" if tokens < 2 * batch else "warning",
            "tiny-data",
            f"the training text has {tokens:,} tokens, and a batch {batch:,}: {tokens / max(1, batch):.1f} batches are "
            "all there is",
            "give more text, or a smaller --batch-size, --context or model",
            "the first lines of `minillm train`",
        )


def _constant(train: np.ndarray, text: str) -> Iterator[Finding]:
    shares = np.bincount(train - train.min()) / len(train)
    if shares.max() == 1:
        yield Finding(
            "error",
            "one-token",
            f"the training text is one token, repeated {len(train):,} times: there is nothing to learn",
            "look at the file: is it padding, or the wrong one?",
            "python: the first thousand characters of the data",
        )
        return
    data = text.encode("utf-8", "replace")
    ratio = len(data) / max(1, len(zlib.compress(data))) if data else 1.0
    if shares.max() > 0.5 or ratio > PACKED:
        most = int(shares.argmax() + train.min())
        yield Finding(
            "error",
            "constant-text",
            f"the training text says the same again and again: zlib makes it {ratio:.0f} times shorter (English: 3 "
            f"times), and token {most} alone is {shares.max():.0%} of it",
            "look at the file: is it padding, a log, or one text copied?",
            "python: the first thousand characters of the data",
        )


def _tables(text: str, suffix: str) -> Iterator[Finding]:
    """Find text that is a table or JSON, whose commas and names of fields are learned with it.

    A table has one number of separators in nearly all of its lines; prose has not.
    """
    if suffix in KINDS:
        yield _not_prose(f"{KINDS[suffix]}, by the name of its file", text[:40])
        return
    lines = text[:LOOKED_AT].splitlines()[1:-1]
    for mark, name in ((",", "commas"), ("\t", "tabs"), (";", "semicolons"), ("|", "bars")):
        counts = [line.count(mark) for line in lines]
        usual = max(set(counts), key=counts.count, default=0)
        if len(lines) >= ROWS and usual and counts.count(usual) > TABLE * len(lines):
            yield _not_prose(f"a table: nearly every line has {usual} {name}", lines[len(lines) // 2])
            return
    fields = FIELD.findall(text[:LOOKED_AT])
    if len(fields) >= ROWS and len(fields) > len(text[:LOOKED_AT]) / JSON:
        yield _not_prose(f"JSON: the first {len(text[:LOOKED_AT]):,} characters name {len(fields)} fields", fields[0])


def _not_prose(what: str, example: str) -> Finding:
    return Finding(
        "warning",
        "not-prose",
        f"the training text looks like {what}, such as {example[:40]!r}: the model learns its marks and numbers too",
        'write the texts alone into a .jsonl, one {"text": ...} a line (--field names another field), unless this is '
        "meant",
        "the first lines of the data",
    )


def pieces(ids: np.ndarray, length: int, stride: int = 1) -> np.ndarray:
    """A number for each run of `length` ids, one at every `stride`-th place; equal runs have equal numbers."""
    if len(ids) < length:
        return np.zeros(0, np.uint64)
    draw = np.random.Generator(np.random.PCG64(7)).integers(1, 1 << 63, length, dtype=np.uint64) | np.uint64(1)
    mixed = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    total = np.zeros(len(ids) - length + 1, np.uint64)
    for place in range(length):
        total += mixed[place : len(ids) - length + 1 + place] * draw[place]
    return total[::stride]


def _copies(train: np.ndarray, validation: np.ndarray, length: int) -> Iterator[Finding]:
    """Find text that comes twice: in the training part, and in both parts."""
    own = pieces(train, length)
    if len(own):
        _, first, counts = np.unique(own, return_index=True, return_counts=True)
        repeated = (len(own) - len(first)) / len(own)
        if repeated > REPEATED:
            yield Finding(
                "warning",
                "duplicates",
                f"{repeated:.0%} of the training text is a copy of something before it ({length} tokens or more), one "
                f"piece comes {counts.max():,} times: copies are learned by heart",
                "drop documents that come twice before training (Lee et al. 2021, arXiv:2107.06499)",
                "`sort FILE | uniq -d` for texts with one document a line",
            )
    theirs = pieces(validation, length)
    if len(theirs) and len(own):
        shared = float(np.isin(theirs, own).mean())
        if shared > SHARED:
            yield Finding(
                "error" if shared > 0.5 else "warning",
                "validation-overlap",
                f"{shared:.0%} of the validation text stands in the training text too ({length} tokens or more at a "
                "time): the validation loss measures memory",
                "split by documents after dropping copies, so that none is on both sides",
                "python: is a line of the validation part in the training part?",
            )


def _characters(text: str) -> Iterator[Finding]:
    found = BROKEN_TEXT.findall(text)
    if text and len(found) > BROKEN * len(text):
        yield Finding(
            "warning",
            "wrong-encoding",
            f"{len(found):,} places of the text ({len(found) / len(text):.1%}) are what UTF-8 looks like when it is "
            f"read as another encoding, such as {found[0]!r}",
            "read the files in their own encoding, and write them as UTF-8",
            f"grep the data for {found[0]!r}",
        )


def _vocabulary(case: Case, train: np.ndarray) -> Iterator[Finding]:
    tokenizer = case.task.tokenizer
    unknown = tokenizer.unk_id
    share = float((train == unknown).mean()) if unknown is not None else 0.0
    if unknown is not None and share > UNKNOWN:
        yield Finding(
            "error" if share > 0.1 else "warning",
            "unknown-tokens",
            f"{share:.1%} of the training tokens are {tokenizer.decode([unknown])!r}, the token for what the "
            "tokenizer does not know",
            "train a tokenizer on this text (`minillm tokenizer train`), or take a byte-level BPE, which knows all",
            "`minillm tokenizer encode FOLDER` with a line of the text",
        )
    size = tokenizer.vocab_size
    used = len(np.unique(train))
    if not case.trained and used < 0.1 * size and len(train) > 20 * size:
        yield Finding(
            "warning",
            "unused-vocabulary",
            f"the training text uses {used:,} of {size:,} tokens; the others are never learned",
            "train a tokenizer of a fitting size on this text",
            "python: len(np.unique(tokens))",
        )


def token_ids(case: Case) -> Iterator[Finding]:
    """Find ids that the model has no row for, and a text that begins twice."""
    task, vocabulary = case.task, case.model.config.vocab_size
    everything = list(parts_of(task) or ())
    everything += [array for name, array in case.batch.items() if name in ("ids", "source")]
    for ids in everything:
        some = np.asarray(ids[:READ])
        if some.size and not 0 <= some.min() <= some.max() < vocabulary:
            wrong = int(some.max()) if some.max() >= vocabulary else int(some.min())
            yield Finding(
                "error",
                "ids-out-of-range",
                f"the data has the token id {wrong}, but the model has the ids 0 to {vocabulary - 1}",
                "encode the text with the tokenizer of this model, or give the model the vocabulary of the tokenizer",
                "python: tokens.max() beside model.config.vocab_size",
            )
            return
    begin = task.tokenizer.bos_id
    ids = case.batch.get("ids", case.batch.get("source"))
    if begin is not None and ids is not None and ids.shape[-1] > 1 and begin != task.tokenizer.pad_id:
        flat = ids.reshape(-1, ids.shape[-1])
        twice = float(((flat[:, 0] == begin) & (flat[:, 1] == begin)).mean())
        if twice > 0:
            yield Finding(
                "error",
                "doubled-begin",
                f"{twice:.0%} of the rows begin with two tokens {task.tokenizer.decode([begin])!r}: one by the "
                "template and one by the tokenizer",
                "encode a text that a template has rendered without special tokens",
                "python: batch['ids'][:, :2]",
            )


def padding_is_end(case: Case) -> Iterator[Finding]:
    """Tell of a padding token that is the one that ends a text: who masks by the id loses every end."""
    tokenizer = case.task.tokenizer
    if tokenizer.pad_id is not None and tokenizer.pad_id == tokenizer.eos_id and "lengths" in case.batch:
        yield Finding(
            "note",
            "padding-is-end",
            f"padding and the end of a text are one token, {tokenizer.decode([tokenizer.pad_id])!r} (id "
            f"{tokenizer.pad_id}); here padding is told by the lengths, so ends are learned",
            "give the tokenizer a padding token of its own before another program masks by the id",
            "python: tokenizer.pad_id, tokenizer.eos_id",
        )
