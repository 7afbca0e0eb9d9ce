"""`minillm plan` beside what others have published: `python benchmarks/plan.py [--out benchmarks/results/plan.md]`.

It predicts the speed of every training in minillm/study/plan/published.py, and writes how far each prediction is from
it; then the sentences of some plans, of 125 million, 3 and 7 billion parameters. It computes nothing but the work of
each model, in about a minute, and needs no GPU.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from minillm.study.plan import published
from minillm.study.projection import work_of_config

PLANS = (
    "--parameters 125M --gpu rtx4090",
    "--parameters 125M --gpus 0",
    "--parameters 3B --gpu a100 --gpus 8",
    "--parameters 7B --tokens 140B --gpu h100 --gpus 64 --language de",
    "--model llama-2-7b --tokens 2T --gpu a100 --gpus 1024",
)


def compared() -> list[str]:
    """A row for each published training."""
    rows, ratios = [], []
    for name, one in published.PUBLISHED.items():
        rate = published.predicted(one)
        if not one.fitted:
            ratios.append(rate / one.rate)
        fitted = "yes" if one.fitted else "no"
        rows.append(f"| {name} | {one.rate:,.0f} | {rate:,.0f} | {rate / one.rate:.2f} | {fitted} | {one.source} |")
    return [
        "| training | tokens/s a GPU, published | predicted | ratio | fitted | source |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        f"For the {len(ratios)} that nothing was fitted to, ratios are {min(ratios):.2f} to {max(ratios):.2f}, with a "
        f"median of {statistics.median(ratios):.2f}.",
    ]


def main() -> None:
    """Compare, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/plan.md"))
    options = parser.parse_args()
    work = work_of_config("gpt3", published.GPT2, published.GPT3_125M, 2048)
    flops = work.flops * published.GPT3_TOKENS
    lines = [
        "# What `minillm plan` predicts, beside what others have published",
        "",
        "`python benchmarks/plan.py`. Predictions are of steps; whole trainings contain failures and restarts too.",
        "",
        *compared(),
        "",
        f"GPT-3 125M on 300B tokens: {published.GPT3_FLOPS:.3g} FLOPs published (6 N D), {flops:.3g} counted, "
        f"attention included ({flops / published.GPT3_FLOPS:.2f} times as many).",
        "",
        "## Plans",
        "",
    ]
    for plan in PLANS:
        command = [sys.executable, "-m", "minillm", "plan", *plan.split()]
        sentence = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
        lines += [f"- `minillm plan {plan}`: {sentence}"]
    options.out.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
