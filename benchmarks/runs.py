"""Whole training runs: `python benchmarks/runs.py [--data tinyshakespeare.txt]` writes benchmarks/results/runs.md.

It runs the default job (`minillm train`) and, where the text is at hand, nanoGPT's character-level Shakespeare example.
It notes the validation losses and the time of each, and the time of `import minillm`, and copies the loss curves beside
the table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def train(name, options):
    """Train in a process of its own; returns the run's row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / name
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "minillm", "train", *options, "--out", str(out)], check=True)
        wall = time.perf_counter() - started
        records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        config = json.loads((out / "config.json").read_text())
        shutil.copyfile(out / "loss.png", RESULTS / f"{name}.png")
    losses = {r["step"]: r["val_loss"] for r in records if r["val_loss"] is not None}
    best = min(losses, key=losses.get)
    last = records[-1]
    speed = statistics.median(r["tokens_per_s"] for r in records)
    command = " ".join(["minillm train", *(Path(o).name if o.startswith("/") else o for o in options)])
    return (
        f"| `{command}` | {last['step']} | {losses[last['step']]:.3f} | {losses[best]:.3f} at {best} | "
        f"{config['eval_batches']} | {last['seconds']:.0f} s | {wall:.0f} s | {speed:,.0f} |"
    )


def import_seconds():
    """The median time of `import minillm` in fresh interpreters, and that of `import numpy`, which it needs."""
    code = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"

    def once(module):
        run = subprocess.run([sys.executable, "-c", code.format(module)], capture_output=True, check=True)
        return float(run.stdout)

    pairs = [(once("minillm"), once("numpy")) for _ in range(11)]
    return [statistics.median(column) for column in zip(*pairs, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "tinyshakespeare.txt")
    arguments = parser.parse_args()
    ours, numpy = import_seconds()
    rows = [train("default", [])]
    if arguments.data.is_file():
        rows.append(train("shakespeare-char-cpu", ["--preset", "shakespeare-char-cpu", "--data", str(arguments.data)]))
    (RESULTS / "runs.md").write_text(
        "\n".join(
            [
                "# Training runs",
                "",
                f"`python benchmarks/runs.py`, Python {sys.version.split()[0]}. Losses are in nats per token, over the",
                "stated number of validation batches; tokens/s is the median over all steps, the time of steps alone",
                "and of the whole command (tokenizer, validation, samples and plot included).",
                "",
                "| command | steps | last validation loss | best | batches | steps take | command takes | tokens/s |",
                "|---|---|---|---|---|---|---|---|",
                *rows,
                "",
                f"`import minillm` takes {ours:.3f} s, of which `import numpy` {numpy:.3f} s (medians of 11).",
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
