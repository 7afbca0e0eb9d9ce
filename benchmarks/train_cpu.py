"""A training step beside PyTorch's: `python benchmarks/train_cpu.py [--out benchmarks/results/train_cpu.md]`.

Both sides do the same work in one process tree: forward, backward, clipping to norm 1, AdamW (PyTorch's fused one), on
the same data, both on 2 threads. Each side is a process of its own that runs a few steps when told to, and the two
are told in turn, A B A B, so that a change in the machine's speed meets both. The ratio is the median over rounds
of (PyTorch's time per step) / (minillm's time per step): above 1, minillm is faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from sides import THREADS, Side

CONFIGS = {  # vocabulary, context, layers, heads, channels, batch
    "tiny": (65, 64, 4, 4, 128, 12),
    "baby": (65, 256, 6, 6, 384, 8),
    "gpt2": (50257, 64, 12, 12, 768, 4),
}
STEPS = {"tiny": 20, "baby": 2, "gpt2": 2}  # per round


def data(name):
    import numpy as np

    vocab, context, *_, batch = CONFIGS[name]
    rng = np.random.default_rng(0)
    return rng.integers(0, vocab, (batch, context)), rng.integers(0, vocab, (batch, context))


def minillm_step(name):
    """A function that does one training step and returns the loss."""
    from minillm import backend
    from minillm.models.gpt2 import GPT2, GPT2Config
    from minillm.optim import AdamW

    backend.threads = THREADS
    backend.tuned_process().__enter__()  # for the life of the process
    vocab, context, layers, heads, channels, _ = CONFIGS[name]
    model = GPT2(GPT2Config(vocab, context, layers, heads, channels))
    optimizer = AdamW(model.parameters(), lr=3e-4)
    ids, targets = data(name)

    def step():
        optimizer.zero_grad()
        loss = model.loss(ids, targets)
        loss.backward()
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
        return loss.item()

    return step


def torch_step(name):
    """The same in PyTorch, written as its users write it."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.set_num_threads(THREADS)
    vocab, context, layers, heads, channels, _ = CONFIGS[name]

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
            self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
            self.fc, self.out = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

        def forward(self, x):
            B, T, C = x.shape
            q, k, v = (y.view(B, T, heads, C // heads).transpose(1, 2) for y in self.qkv(self.ln_1(x)).split(C, dim=-1))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.proj(y.transpose(1, 2).reshape(B, T, C))
            return x + self.out(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(vocab, channels), nn.Embedding(context, channels)
            nn.init.normal_(self.wte.weight, std=0.02)
            self.h = nn.Sequential(*(Block() for _ in range(layers)))
            self.ln_f = nn.LayerNorm(channels)

        def forward(self, ids, targets):
            x = self.h(self.wte(ids) + self.wpe.weight[: ids.shape[1]])
            logits = F.linear(self.ln_f(x), self.wte.weight)
            return F.cross_entropy(logits.view(-1, vocab), targets.view(-1))

    model = GPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    ids, targets = (torch.from_numpy(x) for x in data(name))

    def step():
        optimizer.zero_grad()
        loss = model(ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def serve(side, name):
    """The child process: for each line read, run that many steps and print the seconds per step."""
    import resource

    step = {"minillm": minillm_step, "torch": torch_step}[side](name)
    for line in sys.stdin:
        count = int(line)
        start = time.perf_counter()
        for _ in range(count):
            loss = step()
        seconds = (time.perf_counter() - start) / count
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "loss": loss, "peak_mb": peak}), flush=True)


def measure(name, rounds):
    """Interleaved rounds of one configuration: the medians and the median ratio."""
    sides = {side: Side(__file__, side, name) for side in ("minillm", "torch")}
    for side in sides.values():
        side.run(max(2, STEPS[name] // 4))  # warm up
    results = {key: [] for key in sides}
    for _ in range(rounds):
        for key, side in sides.items():
            results[key].append(side.run(STEPS[name]))
    for side in sides.values():
        side.close()
    seconds = {key: [r["seconds"] for r in value] for key, value in results.items()}
    ratios = [theirs / ours for ours, theirs in zip(seconds["minillm"], seconds["torch"], strict=True)]
    return {
        "config": name,
        "minillm_ms": 1e3 * statistics.median(seconds["minillm"]),
        "torch_ms": 1e3 * statistics.median(seconds["torch"]),
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "minillm_mb": results["minillm"][-1]["peak_mb"],
        "torch_mb": results["torch"][-1]["peak_mb"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file too")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(*arguments.serve)
        return
    import numpy
    import torch

    lines = [
        "# A training step on the CPU, beside PyTorch",
        "",
        f"`python benchmarks/train_cpu.py`: Python {sys.version.split()[0]}, NumPy {numpy.__version__}, PyTorch "
        f"{torch.__version__} eager, {THREADS} threads each, {arguments.rounds} interleaved rounds, medians. "
        "Speed is PyTorch's time over minillm's, round by round: above 1, minillm is faster.",
        "",
        "| configuration | minillm ms | PyTorch ms | speed | lowest to highest | peak MB, minillm / PyTorch |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for name in arguments.configs:
        r = measure(name, arguments.rounds)
        row = (
            f"| {name} | {r['minillm_ms']:.1f} | {r['torch_ms']:.1f} | **{r['ratio']:.2f}** | "
            f"{r['low']:.2f} to {r['high']:.2f} | {r['minillm_mb']:.0f} / {r['torch_mb']:.0f} |"
        )
        print(row, flush=True)
        lines.append(row)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
