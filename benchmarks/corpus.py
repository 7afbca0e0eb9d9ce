"""The data pipeline, measured: `python benchmarks/corpus.py speed|effect` writes benchmarks/results/corpus_*.md.

speed: `minillm data build` reads, cleans, deduplicates and divides 1,000 MB of text (corpus_text.py makes it) in two
processes. The memory is the most that all its processes have together. dedup.py has datatrove beside it.

effect: one small GPT-2 is trained for the same number of steps on a corpus as a crawl finds it, on the same without
near-duplicates, and on the same cleaned too; each with several seeds. All are measured in bits per byte on documents
that were held apart before the corpus was spoiled. One tokenizer, trained on the corpus as it was found, serves all.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from corpus_text import clean_documents, spoiled, write_corpus

RESULTS = Path(__file__).parent / "results"
PROCESSES = 2
HELD_OUT = 0.1  # of the documents of the effect's corpus
BATCH, CONTEXT = 16, 64  # rows and tokens of a training step


def run(arguments: list[str]) -> tuple[float, float]:
    """Run a program; returns its seconds, and the most MB that it and its children had together."""
    program = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    most, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            most[0] = max(most[0], sum(map(memory, family(program.pid))) / 1024)

    watcher = threading.Thread(target=watch)
    started = time.perf_counter()
    watcher.start()
    status = program.wait()
    seconds = time.perf_counter() - started
    ended.set()
    watcher.join()
    if status:
        raise SystemExit(f"{' '.join(arguments)} ended with status {status}")
    return seconds, most[0]


def family(root: int) -> list[int]:
    """A process and all below it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue  # it has ended
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def memory(process: int) -> int:
    """KB of a process, where what several share is divided among them."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)


# --- speed -----------------------------------------------------------------------------------------------------------


def speed(megabytes: float) -> None:
    """Measure each stage."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = folder / "raw.jsonl"
        count = write_corpus(raw, megabytes)
        rows = []
        stages = {
            "extract": ["extract", str(raw), "--out", str(folder / "extract.jsonl.zst")],
            "clean": ["clean", str(folder / "extract.jsonl.zst"), "--out", str(folder / "clean.jsonl.zst")],
            "dedup": ["dedup", str(folder / "clean.jsonl.zst"), "--out", str(folder / "dedup.jsonl.zst")],
            "split": ["split", str(folder / "dedup.jsonl.zst"), "--out", str(folder / "split")],
        }
        total = 0.0
        for stage, options in stages.items():
            seconds, most = run(["-m", "minillm", "data", *options, "--processes", str(PROCESSES)])
            total += seconds
            rows.append(f"| {stage} | {seconds:.0f} | {megabytes / seconds:.1f} | {most:.0f} |")
            print(rows[-1], flush=True)
        rows.append(f"| all | {total:.0f} | **{megabytes / total:.1f}** | |")
    lines = [
        "# The data pipeline: speed and memory",
        "",
        f"`python benchmarks/corpus.py speed --megabytes {megabytes:g}`, Python {platform.python_version()}, "
        f"{PROCESSES} processes on {os.cpu_count()} cores; {count:,} documents of made-up text.",
        "",
        "| stage | seconds | MB/s | most MB of memory, all processes |",
        "|---|---|---|---|",
        *rows,
    ]
    (RESULTS / "corpus_speed.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


# --- the effect ------------------------------------------------------------------------------------------------------


def effect(steps: int, seeds: list[int]) -> None:
    """Train on three versions of a corpus, and measure each model on clean text."""
    import minillm
    from minillm.backend import thread_count
    from minillm.corpus.document import read_documents
    from minillm.evaluation.perplexity import perplexity
    from minillm.models.gpt2 import GPT2Config
    from minillm.tokenizers import BPETokenizer
    from minillm.training import TrainConfig, train

    documents = clean_documents(0)
    held = documents[: int(HELD_OUT * len(documents))]
    found = spoiled(documents[len(held) :], 0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = folder / "raw.jsonl"
        raw.write_text("".join(json.dumps(document) + "\n" for document in found))
        for options in (
            ["extract", "raw.jsonl", "--out", "found.jsonl.zst"],
            ["dedup", "found.jsonl.zst", "--out", "unique.jsonl.zst"],
            ["clean", "unique.jsonl.zst", "--out", "clean.jsonl.zst"],
        ):
            subprocess.run([sys.executable, "-m", "minillm", "data", *options], check=True, cwd=folder)
        versions = {"as found": "found", "without duplicates": "unique", "and cleaned": "clean"}
        texts = {}
        for version, file in versions.items():
            kept = [one.text for one in read_documents(folder / f"{file}.jsonl.zst") if one.dropped is None]
            texts[version] = kept
            (folder / f"{file}.txt").write_text("\n\n".join(kept))
        tokenizer = BPETokenizer.train("\n\n".join(texts["as found"]), 2000)
        tokenizer.save(folder / "tokenizer")
        rows, bits = [], {}
        for version, file in versions.items():
            measured = []
            for seed in seeds:
                config = TrainConfig(
                    data=str(folder / f"{file}.txt"),
                    tokenizer=str(folder / "tokenizer"),
                    model=GPT2Config(2000, context=CONTEXT, layers=2, heads=2, channels=64),
                    batch_size=BATCH,
                    steps=steps,
                    eval_every=steps,
                    sample_every=0,
                    seed=seed,
                    out=folder / f"{file}{seed}",
                )
                trained = train(config, progress=False)
                model = minillm.load(trained.folder).eval()
                score = perplexity(model, trained.tokenizer, [one["text"] for one in held])
                measured.append(score.measures["bits_per_byte"].value)
            bits[version] = measured
            size = sum(len(text.encode()) for text in texts[version]) / 1e6
            deviation = statistics.stdev(measured) / math.sqrt(len(measured)) if len(measured) > 1 else 0.0
            rows.append(
                f"| {version} | {len(texts[version]):,} | {size:.2f} | {steps * BATCH * CONTEXT / 1e6:.2f} | "
                f"**{statistics.mean(measured):.3f}** +- {deviation:.3f} | {', '.join(f'{b:.3f}' for b in measured)} |"
            )
            print(rows[-1], flush=True)
    lines = [
        "# Clean data, measured",
        "",
        f"`python benchmarks/corpus.py effect --steps {steps}`, Python {platform.python_version()}, {thread_count()} "
        f"threads, seeds {', '.join(map(str, seeds))}. Bits per byte of {len(held)} documents that were held apart.",
        "",
        "| corpus | documents | MB | million tokens trained on | bits per byte, held out | each seed |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    (RESULTS / "corpus_effect.md").write_text("\n".join(lines) + "\n")
    picture(bits)


def picture(bits: dict[str, list[float]]) -> None:
    """Draw the bits per byte of each version: a dot for each seed, a line at the mean."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
    for place, measured in enumerate(bits.values()):
        axes.plot([place] * len(measured), measured, "o", color="tab:blue")
        axes.hlines(statistics.mean(measured), place - 0.2, place + 0.2, color="tab:blue")
    axes.set_xticks(range(len(bits)), list(bits))
    axes.set_ylabel("bits per byte, held out")
    figure.savefig(RESULTS / "corpus_effect.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "effect"])
    parser.add_argument("--megabytes", type=float, default=1000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    given = parser.parse_args()
    if given.what == "speed":
        speed(given.megabytes)
    else:
        effect(given.steps, given.seeds)


if __name__ == "__main__":
    main()
