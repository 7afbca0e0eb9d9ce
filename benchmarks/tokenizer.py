"""How fast the tokenizers train and encode, beside tiktoken where it is installed: prints a table and keeps it.

    python benchmarks/tokenizer.py [--data PATH]

PATH is a folder with tinyshakespeare.txt and other English texts (by default ../shared/data), or one UTF-8 text file.
Every figure is the median of five runs; runs of ours and of tiktoken take turns, so that both meet the same noise.
"First" is the first time that a tokenizer sees the text, "again" the second, when it remembers the ids of most words.
GPT-2 rows need gpt2_vocab.json and gpt2_merges.txt in the folder.
"""

from __future__ import annotations

import argparse
import gzip
import os
import platform
from collections.abc import Callable
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
        f"Median of {RUNS} runs; MB are millions of UTF-8 bytes.",
        "",
        *table(training_rows(texts), "text", "MB", "different pretokens", "tokens learnt", "seconds"),
        "",
        *table(
            encoding_rows(data, texts), "text", "vocabulary", "MB/s, first", "again", "tiktoken", "first / tiktoken"
        ),
    ]
    print("\n".join(lines))
    (ROOT / "benchmarks" / "results" / "tokenizer.md").write_text("\n".join([*lines, ""]), encoding="utf-8")


def training_rows(texts: dict[str, str]) -> list[list[str]]:
    rows = []
    for name, text in texts.items():
        different = len(set(settled_pretokens(text, more=False)[0]))
        for size in (1000, 8000):
            seconds = median(clock(BPETokenizer.train, text, size)[0] for _ in range(RUNS))
            rows.append([name, f"{megabytes(text):.1f}", f"{different:,}", f"{size:,}", f"{seconds:.2f}"])
    return rows


def encoding_rows(data: Path, texts: dict[str, str]) -> list[list[str]]:
    rows = []
    for name, text in texts.items():
        tokenizers = {"1,000": BPETokenizer.train(text, 1000)}
        if (data / "gpt2_vocab.json").is_file():
            tokenizers["GPT-2"] = BPETokenizer.from_gpt2_files(data / "gpt2_vocab.json", data / "gpt2_merges.txt")
        for vocabulary, tokenizer in tokenizers.items():
            theirs = tiktoken_encode(tokenizer)
            seconds: list[tuple[float, ...]] = []
            for _ in range(RUNS):
                fresh = BPETokenizer(tokenizer.vocab, tokenizer.merges, tokenizer.special_tokens)
                first, ids = clock(fresh.encode, text)
                again, _ = clock(fresh.encode, text)
                other, other_ids = clock(theirs, text) if theirs else (float("nan"), ids)
                assert ids == other_ids, f"{name}: the ids differ from tiktoken's"
                seconds.append((first, again, other))
            first, again, other = (megabytes(text) / median(column) for column in zip(*seconds, strict=True))
            rows.append([name, vocabulary, *(f"{rate:.1f}" for rate in (first, again, other)), f"{first / other:.2f}"])
    return rows


def tiktoken_encode(tokenizer: BPETokenizer) -> Callable[[str], list[int]] | None:
    """tiktoken's encoder with the same vocabulary, or None where it is not installed."""
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
    return {"tinyshakespeare": read_text(shakespeare), "all English": "\n".join(map(read_text, english))}


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
