"""How fast near-duplicates are found, and how many of those that were planted, beside datatrove's own pipeline.

    pip install datatrove "xxhash<4" orjson tokenizers
    python benchmarks/dedup.py [--megabytes 100] [--data PATH]

Both read the same .jsonl with one process, have the same settings (5-word shingles, 25 bands of 8 rows, 64-bit hashes),
and write the documents that stay. datatrove gets words by `str.split`, which is much faster than its own tokenizers. It
takes candidates as they are; here they are verified. A tenth of the documents is a copy of another with a new start,
and their similarity is counted by Python's sets: of a twentieth, a tenth or a fifth of new words it is 0.9, 0.82, 0.66.

Without datatrove, the table has one row. It is also written to benchmarks/results/dedup.md.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import process_time
from typing import Any

from minillm.corpus.document import Document, read_documents
from minillm.corpus.duplicates import Dedup, DedupStage
from minillm.corpus.stage import run_stage

ROOT = Path(__file__).parents[1]
WORDS = 500  # of a document
SHARES = (0.05, 0.1, 0.2)  # of a copy's words that are new, at its beginning


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copies = write_corpus(folder / "corpus.jsonl", given.megabytes, given.data)
        lines = list(table_lines(compare(folder, copies)))
    print(*lines, sep="\n")
    about = f"`python benchmarks/dedup.py --megabytes {given.megabytes:g}` on {platform.machine()}, one process each."
    (ROOT / "benchmarks" / "results" / "dedup.md").write_text(
        "\n".join(["# Near-duplicates beside datatrove's", "", about, "", __doc__.split("\n\n")[2], "", *lines, ""])
    )


def write_corpus(path: Path, megabytes: float, data: Path, seed: int = 0) -> dict[str, float]:
    """Write documents of random words of real texts, and near-copies among them; the similarity of each by its id."""
    rng = random.Random(seed)
    words = (data / "tinyshakespeare.txt").read_text(encoding="utf-8").split()
    words += gzip.decompress((data / "multi30k.train.en.gz").read_bytes()).decode().split()
    copies: dict[str, float] = {}
    before: list[str] = []
    with open(path, "wb") as lines:
        for number in range(int(megabytes * 1e6)):
            own = rng.choices(words, k=WORDS)
            if number % 10 == 9:
                new = int(WORDS * SHARES[number // 10 % len(SHARES)])
                own[new:] = before[new:]
                copies[f"d{number}"] = similarity(own, before)
            before = own
            lines.write(Document(" ".join(own), f"d{number}", "benchmark").to_line())
            if lines.tell() >= megabytes * 1e6:
                break
    return copies


def similarity(one: list[str], other: list[str]) -> float:
    """The Jaccard similarity of the 5-grams of two texts."""
    first, second = ({tuple(words[place : place + 5]) for place in range(len(words) - 4)} for words in (one, other))
    return len(first & second) / len(first | second)


def ours(corpus: Path, folder: Path) -> set[str]:
    """Run the stage; returns the ids of the documents that it drops."""
    out = folder / "ours.jsonl"
    run_stage(DedupStage(Dedup()), [corpus], out, 1, progress=False)
    return {document.id for document in read_documents(out) if document.dropped}


def datatroves(corpus: Path, folder: Path) -> set[str]:
    """Run datatrove's four steps; returns the ids of the documents that it drops."""
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter
    from datatrove.pipeline.dedup import MinhashDedupSignature as Signature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Split(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return [text]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    config = MinhashConfig(5, 25, 8, hash_config=HashConfig(precision=64))
    signatures, buckets, removed, kept = (str(folder / name) for name in ("sigs", "buckets", "removed", "kept"))

    def reader() -> Any:
        return JsonlReader(str(corpus.parent), glob_pattern=corpus.name)

    def run(*steps: Any) -> None:
        documents: Any = None
        for step in steps:
            documents = step(documents, 0, 1)
        for _ in documents or ():
            pass

    Signature(signatures, config, Split()).run(reader()(None, 0, 1), 0, 1)
    for bucket in range(config.num_buckets):
        list(MinhashDedupBuckets(signatures, buckets, config=config).run(None, bucket, config.num_buckets) or ())
    list(MinhashDedupCluster(buckets, removed, config).run(None, 0, 1) or ())
    run(reader(), MinhashDedupFilter(removed), JsonlWriter(kept, compression=None))
    stay = {json.loads(line)["id"] for path in Path(kept).iterdir() for line in path.open(encoding="utf-8")}
    return {document.id for document in read_documents(corpus)} - stay


def compare(folder: Path, copies: dict[str, float]) -> Iterator[tuple[str, float, set[str], dict[str, float]]]:
    """The name, megabytes a second and dropped documents of each, and the planted copies."""
    corpus = folder / "corpus.jsonl"
    for name, run in (("minillm", ours), ("datatrove", datatroves)):
        start = process_time()
        try:
            dropped = run(corpus, folder)
        except ImportError as error:
            print(f"{name}: not measured ({error})")
            continue
        yield name, corpus.stat().st_size / 1e6 / (process_time() - start), dropped, copies


def table_lines(results: Iterator[tuple[str, float, set[str], dict[str, float]]]) -> Iterator[str]:
    """The results as a table in Markdown."""
    yield "| | MB a second of a core | copies of J >= 0.8 found | others dropped |"
    yield "|---|---|---|---|"
    for name, speed, dropped, copies in results:
        alike = {document for document, similar in copies.items() if similar >= 0.8}
        found = f"{len(dropped & alike):,} of {len(alike):,}"
        yield f"| {name} | {speed:.1f} | {found} | {len(dropped - alike):,} |"


if __name__ == "__main__":
    main()
