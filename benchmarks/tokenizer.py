"""How fast the tokenizers train and encode, beside tiktoken where it is installed: prints a table and keeps it.

    python benchmarks/tokenizer.py [--data PATH]

PATH is a folder with tinyshakespeare.txt and other English texts (by default ../shared/data), or one UTF-8 text file.
Where a folder has less than 10 MB of English, it is repeated to make 10 MB, which is easier than fresh text: no word of
the repetition is new. So the table has the text without repetition too.

Every figure is the median of five runs; runs of ours and of tiktoken take turns, so that both meet the same noise, and
"ours / tiktoken" is the median of the ratios. "First" is the first time that a new tokenizer sees the text, "again" the
second, when ours remembers the ids of most words. GPT-2 rows need gpt2_vocab.json and gpt2_merges.txt in the folder.
"""

from __future__ import annotations

import argparse
import gzip
import os
import platform
import tracemalloc
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from minillm.errors import InputError
from minillm.tokenizers import BPETokenizer
from minillm.tokenizers.bpe import PRETOKEN, settled_pretokens

ROOT = Path(__file__).parents[1]
RUNS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    data = parser.parse_args().data
    texts = read_texts(data)
    lines = [
        "# Tokenizers",
        "",
        f"`python benchmarks/tokenizer.py`, Python {platform.python_version()}, {os.cpu_count()} cores, one used. "
        f"Median of {RUNS} runs; MB are millions of UTF-8 bytes, rates are MB/s, and memory is what training allocates "
        "at its peak, beside the text.",
        "",
        *table(training_rows(texts), "text", "MB", "different pretokens", "tokens learnt", "seconds", "memory, MB"),
        "",
        *table(
            encoding_rows(data, texts),
            *("text", "vocabulary", "first: ours", "tiktoken", "ours / tiktoken"),
            *("again: ours", "tiktoken", "ours / tiktoken"),
        ),
    ]
    print("\n".join(lines))
    (ROOT / "benchmarks" / "results" / "tokenizer.md").write_text("\n".join([*lines, ""]), encoding="utf-8")


def training_rows(texts: dict[str, str]) -> list[list[str]]:
    rows = []
    for name, text in texts.items():
        different = len(set(chain.from_iterable(settled_pretokens(text, more=False)[0])))
        for size in (1000, 8000):
            seconds = median(clock(BPETokenizer.train, text, size)[0] for _ in range(RUNS))
            tracemalloc.start()
            BPETokenizer.train(text, size)
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            rows.append(
                [name, f"{megabytes(text):.1f}", f"{different:,}", f"{size:,}", f"{seconds:.2f}", f"{most / 1e6:.0f}"]
            )
    return rows


def encoding_rows(data: Path, texts: dict[str, str]) -> list[list[str]]:
    rows = []
    for name, text in texts.items():
        tokenizers = {"8,000": BPETokenizer.train(text, 8000)}
        if (data / "gpt2_vocab.json").is_file():
            tokenizers["GPT-2"] = BPETokenizer.from_gpt2_files(data / "gpt2_vocab.json", data / "gpt2_merges.txt")
        for vocabulary, tokenizer in tokenizers.items():
            seconds = []  # ours first and again, theirs first and again
            for _ in range(RUNS):
                ours = BPETokenizer(tokenizer.vocab, tokenizer.merges, tokenizer.special_tokens).encode
                theirs = tiktoken_encode(tokenizer)
                (first, ids), (again, _) = clock(ours, text), clock(ours, text)
                seconds.append((first, again, float("nan"), float("nan")))
                if theirs:
                    (their_first, their_ids), (their_again, _) = clock(theirs, text), clock(theirs, text)
                    assert ids == their_ids, f"{name}: the ids differ from tiktoken's"
                    seconds[-1] = first, again, their_first, their_again
            row = [name, vocabulary]
            for ours_at, theirs_at in ((0, 2), (1, 3)):
                row += [f"{megabytes(text) / median(run[i] for run in seconds):.1f}" for i in (ours_at, theirs_at)]
                row.append(f"{median(run[theirs_at] / run[ours_at] for run in seconds):.2f}")
            rows.append(row)
    return rows


def tiktoken_encode(tokenizer: BPETokenizer) -> Callable[[str], list[int]] | None:
    """A new encoder of tiktoken's with the same vocabulary, or None where it is not installed."""
    try:
        import tiktoken
    except ImportError:
        return None
    encoding = tiktoken.Encoding(
        "same", pat_str=PRETOKEN.pattern, mergeable_ranks=tokenizer.vocab, special_tokens=tokenizer.special_tokens
    )
    return encoding.encode_ordinary


def read_texts(data: Path) -> dict[str, str]:
    if data.is_file():
        return {data.name: data.read_text(encoding="utf-8")}
    shakespeare = data / "tinyshakespeare.txt"
    if not shakespeare.is_file():
        raise InputError(f"benchmarks/tokenizer.py: {data} has no tinyshakespeare.txt; give another --data")
    english = [shakespeare, *sorted([*data.glob("*.en.gz"), *data.glob("*-data.json"), *data.glob("rt-polarity.*")])]
    texts = {"tinyshakespeare": read_text(shakespeare), "all English": "\n".join(map(read_text, english))}
    if (size := len(texts["all English"])) < 10_000_000:
        texts["the same, repeated"] = (texts["all English"] * (10_000_000 // size + 1))[:10_000_000]
    return texts


def read_text(path: Path) -> str:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return content.decode("latin-1" if path.name.startswith("rt-polarity") else "utf-8")


def clock(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = perf_counter()
    result = function(*arguments)
    return perf_counter() - start, result


def megabytes(text: str) -> float:
    return len(text.encode()) / 1e6


def table(rows: list[list[str]], *head: str) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (list(head), ["---"] * len(head), *rows)]


if __name__ == "__main__":
    main()
