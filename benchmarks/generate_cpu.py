"""Generating text beside transformers: `python benchmarks/generate_cpu.py [--out benchmarks/results/generate_cpu.md]`.

The model is a GPT-2 of the size of the smallest published one (124M, random weights, float32). Generation is greedy,
for one sequence, with a KV cache. Each side is a process of its own with 2 threads, and the two take turns, A B A B.
There are two figures: the time of the prompt alone (prefill), and the time of each token after it (that of 33 tokens
less that of one, divided by 32). transformers is called as its users call it, by `generate`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from sides import THREADS, Side

PROMPTS = (8, 512)
TOKENS = 32


def minillm_side():
    """A function (number of prompt tokens, number of new tokens) that generates the new ones."""
    from minillm.generate import generate
    from minillm.models.gpt2 import GPT2, GPT2Config

    model = GPT2(GPT2Config())
    return lambda prompt, count: list(generate(model, prompt, count, temperature=0))


def transformers_side():
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(THREADS)
    model = GPT2LMHeadModel(GPT2Config()).eval()

    def run(prompt, count):
        ids = torch.from_numpy(prompt)[None]
        model.generate(ids, min_new_tokens=count, max_new_tokens=count, do_sample=False, pad_token_id=0)

    return run


def serve(side):
    """The child process: for each line read, measure the seconds of a prompt alone and of each token after it."""
    import numpy as np

    rng = np.random.default_rng(0)
    run = {"minillm": minillm_side, "transformers": transformers_side}[side]()
    for line in sys.stdin:
        prompt = rng.integers(0, 50257, int(line))
        start = time.perf_counter()
        run(prompt, 1)
        middle = time.perf_counter()
        run(prompt, TOKENS + 1)
        first, all_of_them = middle - start, time.perf_counter() - middle
        print(json.dumps({"prefill": first, "token": (all_of_them - first) / TOKENS}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file too")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    import numpy
    import torch
    import transformers

    lines = [
        "# Generating text on the CPU, beside transformers",
        "",
        f"`python benchmarks/generate_cpu.py`: GPT-2 124M, batch 1, float32, Python {sys.version.split()[0]}, NumPy "
        f"{numpy.__version__}, PyTorch {torch.__version__}, transformers {transformers.__version__}, {THREADS} threads "
        f"each, {arguments.rounds} interleaved rounds, medians. Speed is transformers' time over minillm's.",
        "",
        "| prompt | what | minillm ms | transformers ms | speed | lowest to highest |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    sides = {side: Side(__file__, side) for side in ("minillm", "transformers")}
    for prompt in PROMPTS:
        for side in sides.values():
            side.run(prompt)  # warm up
        rounds = [{name: side.run(prompt) for name, side in sides.items()} for _ in range(arguments.rounds)]
        for what in ("prefill", "token"):
            ours, theirs = ([r[name][what] for r in rounds] for name in sides)
            ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
            times = " | ".join(f"{1e3 * statistics.median(side):.1f}" for side in (ours, theirs))
            speed = f"**{statistics.median(ratios):.2f}** | {min(ratios):.2f} to {max(ratios):.2f}"
            row = f"| {prompt} tokens | {what} | {times} | {speed} |"
            print(row, flush=True)
            lines.append(row)
    for side in sides.values():
        side.close()
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
