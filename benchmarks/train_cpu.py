"""A training step beside PyTorch's: `python benchmarks/train_cpu.py [--out benchmarks/results/train_cpu.md]`.

Every side does the same work on the same data: forward, backward, clipping to norm 1, AdamW (PyTorch's fused one), on
2 threads. Each side is a process of its own that runs a few steps when it is told to. The sides take turns, A B C A B
C, so that a change in the machine's speed meets all. A ratio is the median over rounds of (PyTorch's time per step) /
(minillm's time per step): above 1, minillm is faster. The floor is the time of minillm's matrix products alone, at
their shapes and in the same process.

minillm cuts its work as `minillm train` does: it tries the ways of cutting (minillm/tuning.py) and keeps the fastest.

`--ways` measures every way, also those that were not chosen, and compares the choice with the best of them. With
`--sleep 0 50 100` it does so again with a sleep of so many microseconds before a woken thread begins, to play a machine
on which hand-overs between threads are slow. The system adds some 55 us to a sleep; the table shows the hand-over that
results.
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
    "micro": (65, 32, 2, 2, 64, 4),
    "tiny": (65, 64, 4, 4, 128, 12),
    "baby": (65, 256, 6, 6, 384, 8),
    "gpt2": (50257, 64, 12, 12, 768, 4),
    "llama": (4096, 256, 6, 6, 384, 8),  # RoPE, RMSNorm, SwiGLU, no biases
}
REST = 0.03  # seconds before each measurement
STEPS = {"micro": 100, "tiny": 20, "baby": 2, "gpt2": 2, "llama": 2}  # per round


def data(name):
    import numpy as np

    vocab, context, *_, batch = CONFIGS[name]
    rng = np.random.default_rng(0)
    return rng.integers(0, vocab, (batch, context)), rng.integers(0, vocab, (batch, context))


def minillm_step(name):
    """A function that does one training step and returns the loss."""
    from minillm.models.gpt2 import GPT2, GPT2Config
    from minillm.optim import AdamW

    vocab, context, layers, heads, channels, _ = CONFIGS[name]
    model = minillm_llama(name) if name == "llama" else GPT2(GPT2Config(vocab, context, layers, heads, channels))
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


def minillm_llama(name):
    """A Llama of minillm's layers and operations."""
    from minillm import ops
    from minillm.nn import Embedding, Linear, Module, RMSNorm

    vocab, context, layers, heads, channels, _ = CONFIGS[name]
    hidden, table = hidden_size(channels), ops.rope_table(context, channels // heads)

    class Block(Module):
        def __init__(self):
            self.ln_1, self.ln_2 = RMSNorm(channels), RMSNorm(channels)
            self.qkv, self.proj = Linear(channels, 3 * channels, bias=False), Linear(channels, channels, bias=False)
            self.gate, self.up = Linear(channels, hidden, bias=False), Linear(channels, hidden, bias=False)
            self.down = Linear(hidden, channels, bias=False)

        def forward(self, x):
            B, T, C = x.shape
            q, k, v = (
                y.reshape(B, T, heads, C // heads).transpose(1, 2) for y in self.qkv(self.ln_1(x)).split(C, dim=-1)
            )
            y = ops.attention(ops.rope(q, *table), ops.rope(k, *table), v, causal=True)
            x = x + self.proj(y.transpose(1, 2).reshape(B, T, C))
            h = self.ln_2(x)
            return x + self.down(ops.swiglu(self.gate(h), self.up(h)))

    class Llama(Module):
        def __init__(self):
            self.wte = Embedding(vocab, channels)
            self.wte.weight.data *= 0.02
            self.h = [Block() for _ in range(layers)]
            self.ln_f = RMSNorm(channels)

        def loss(self, ids, targets):
            x = self.wte(ids)
            for block in self.h:
                x = block(x)
            return ops.cross_entropy(ops.linear(self.ln_f(x), self.wte.weight), targets, overwrite=True)

    return Llama()


def hidden_size(channels):
    """Hidden size of SwiGLU, whose three matrices then have as many weights as a GPT's two of 4 C."""
    return 8 * channels // 3


def torch_step(name, compiled=False):
    """A training step in PyTorch, written as its users write it; the model may be compiled."""
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

    model = torch_llama(name) if name == "llama" else GPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    ids, targets = (torch.from_numpy(x) for x in data(name))
    compute = torch.compile(model) if compiled else model

    def step():
        optimizer.zero_grad()
        loss = compute(ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def torch_llama(name):
    """A Llama in PyTorch, with RoPE as transformers has it."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    vocab, context, layers, heads, channels, _ = CONFIGS[name]
    hidden, size = hidden_size(channels), channels // heads
    angle = torch.outer(torch.arange(context), 10000.0 ** (-torch.arange(0, size, 2) / size))
    cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)

    def rope(x):
        return x * cos + torch.cat((-x[..., size // 2 :], x[..., : size // 2]), dim=-1) * sin

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.ln_2 = nn.RMSNorm(channels, 1e-6), nn.RMSNorm(channels, 1e-6)
            self.qkv = nn.Linear(channels, 3 * channels, bias=False)
            self.proj = nn.Linear(channels, channels, bias=False)
            self.gate, self.up = (nn.Linear(channels, hidden, bias=False) for _ in range(2))
            self.down = nn.Linear(hidden, channels, bias=False)

        def forward(self, x):
            B, T, C = x.shape
            q, k, v = (y.view(B, T, heads, size).transpose(1, 2) for y in self.qkv(self.ln_1(x)).split(C, dim=-1))
            y = F.scaled_dot_product_attention(rope(q), rope(k), v, is_causal=True)
            x = x + self.proj(y.transpose(1, 2).reshape(B, T, C))
            h = self.ln_2(x)
            return x + self.down(F.silu(self.gate(h)) * self.up(h))

    class Llama(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte = nn.Embedding(vocab, channels)
            nn.init.normal_(self.wte.weight, std=0.02)
            self.h = nn.Sequential(*(Block() for _ in range(layers)))
            self.ln_f = nn.RMSNorm(channels, 1e-6)

        def forward(self, ids, targets):
            logits = F.linear(self.ln_f(self.h(self.wte(ids))), self.wte.weight)
            return F.cross_entropy(logits.view(-1, vocab), targets.view(-1))

    return Llama()


def products_alone(step):
    """Seconds of a step's matrix products alone."""
    from minillm.study.profile import Profile, profiled

    profile = Profile()
    with profiled(profile):
        step()
    return profile.products_alone()


def serve(side, name, sleep="0"):
    """The child process: for each line read, run that many steps and print their seconds; or answer a question.

    "floor" asks for the seconds of the matrix products alone, "ways" for the ways of cutting and the one that was
    chosen; "20 WAY" runs 20 steps in that way.
    """
    if side == "minillm":
        serve_minillm(name, float(sleep))
        return
    step = torch_step(name, compiled=side == "compiled")
    for line in sys.stdin:
        print(json.dumps(timed(step, int(line))), flush=True)


def serve_minillm(name, sleep):
    """The child process of minillm; `sleep` is in microseconds."""
    from minillm import backend, tuning

    backend.wake_up_delay = 1e-6 * sleep
    own = tuning.own_choice(THREADS)
    ways = tuning.ways_of_cutting(own)
    with tuning.tuned_process(own.cutting):
        step = minillm_step(name)
        step()
        choice = tuning.fastest_way(step, ways, rounds=8)  # as many as in a run of 2000 steps
        told = {"choice": choice.name, "ways": list(ways), "hand_over": tuning.measured_hand_over()}
        for line in sys.stdin:
            order, _, way = line.strip().partition(" ")
            with backend.cut_by(ways[way or choice.name]):
                if order == "ways":
                    answer = told
                else:
                    answer = {"floor": products_alone(step)} if order == "floor" else timed(step, int(order))
            print(json.dumps(answer), flush=True)


def timed(step, count):
    """Run so many steps: the seconds of each, the last loss, and the most memory that the process has used, in MB."""
    import resource

    time.sleep(REST)  # threads of a BLAS wait awake for so long, and keep a core busy
    step()
    start = time.perf_counter()
    for _ in range(count):
        loss = step()
    seconds = (time.perf_counter() - start) / count
    return {"seconds": seconds, "loss": loss, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def measure_ways(name, rounds, sleep):
    """Interleaved rounds of every way of cutting and of eager PyTorch: a row of the table."""
    ours = Side(__file__, "minillm", name, str(sleep))
    told = ours.run("ways")
    theirs = Side(__file__, "eager", name)  # only now: loading PyTorch would disturb the choice
    seconds = {way: [] for way in (*told["ways"], "eager")}
    theirs.run(STEPS[name])  # to warm up
    for _ in range(rounds):
        for way in told["ways"]:
            seconds[way].append(ours.run(f"{STEPS[name]} {way}")["seconds"])
        seconds["eager"].append(theirs.run(STEPS[name])["seconds"])
    for child in (ours, theirs):
        child.close()

    def ratio(other, way):
        return statistics.median(a / b for a, b in zip(seconds[other], seconds[way], strict=True))

    choice = told["choice"]
    best = min(told["ways"], key=lambda way: statistics.median(seconds[way]))
    each = "; ".join(f"{way} {1e3 * statistics.median(seconds[way]):.1f}" for way in told["ways"])
    beside = f"**{ratio(best, choice):.2f}** | **{ratio('eager', choice):.2f}**"
    return f"| {name} | {sleep} | {1e6 * told['hand_over']:.0f} | {choice} | {beside} | {each} |"


WAYS_HEADER = [
    "| configuration | sleep us | hand-over us | chosen | beside the best way | beside eager | each way, ms a step |",
    "|---|---|---|---|---|---|---|",
]


def measure(name, rounds, sides):
    """Interleaved rounds of one configuration: the medians, the ratios, and the floor's share of minillm's step."""
    children = {}
    for side in sides:  # one after the other: loading PyTorch would disturb minillm's choice of a way of cutting
        children[side] = Side(__file__, side, name)
        children[side].run(max(2, STEPS[name] // 4))  # warm up
    results = {side: [] for side in sides}
    floors = []
    for _ in range(rounds):
        for side, child in children.items():
            results[side].append(child.run(STEPS[name]))
        floors.append(children["minillm"].run("floor")["floor"])
    for child in children.values():
        child.close()
    seconds = {side: [r["seconds"] for r in value] for side, value in results.items()}
    ratios = {
        side: [theirs / ours for ours, theirs in zip(seconds["minillm"], seconds[side], strict=True)] for side in sides
    }
    shares = [floor / ours for floor, ours in zip(floors, seconds["minillm"], strict=True)]
    return {
        "ms": {side: 1e3 * statistics.median(seconds[side]) for side in sides},
        "ratio": {side: statistics.median(ratios[side]) for side in sides},
        "spread": {side: (min(ratios[side]), max(ratios[side])) for side in sides},
        "floor": statistics.median(shares),
        "peak_mb": {side: results[side][-1]["peak_mb"] for side in sides},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--compiled", action="store_true", help="beside torch.compile too, which takes minutes to compile"
    )
    parser.add_argument("--ways", action="store_true", help="measure every way of cutting")
    parser.add_argument("--sleep", nargs="+", type=int, default=[0], help="us that a woken thread sleeps, with --ways")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file too")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(*arguments.serve)
        return
    import numpy
    import torch

    versions = f"Python {sys.version.split()[0]}, NumPy {numpy.__version__}, PyTorch {torch.__version__}"
    measured = f"{versions}, {THREADS} threads each, {arguments.rounds} interleaved rounds, medians."
    if arguments.ways:
        lines = [
            "# Every way of cutting a training step, with hand-overs as they are and slowed",
            "",
            f"`python benchmarks/train_cpu.py --ways --sleep {' '.join(map(str, arguments.sleep))}`: {measured}",
            "Above 1, the chosen way is faster than the best of all ways, and minillm faster than eager PyTorch.",
            "",
            *WAYS_HEADER,
        ]
        print("\n".join(lines), flush=True)
        for name in arguments.configs:
            for sleep in arguments.sleep:
                lines.append(measure_ways(name, arguments.rounds, sleep))
                print(lines[-1], flush=True)
        finish(lines, arguments.out)
        return
    others = ["eager", "compiled"] if arguments.compiled else ["eager"]
    columns = [
        "configuration",
        "minillm ms",
        *(f"{side} ms" for side in others),
        *(f"beside {side}" for side in others),
    ]
    columns += ["products alone", f"peak MB, minillm / {' / '.join(others)}"]
    lines = [
        "# A training step on the CPU, beside PyTorch",
        "",
        f"`python benchmarks/train_cpu.py`: {measured} Speed is PyTorch's time over minillm's, round by "
        "round (lowest to highest): above 1, minillm is faster.",
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    print("\n".join(lines), flush=True)
    for name in arguments.configs:
        r = measure(name, arguments.rounds, ["minillm", *others])
        cells = [name, *(f"{r['ms'][side]:.1f}" for side in ["minillm", *others])]
        cells += ["**{:.2f}** ({:.2f} to {:.2f})".format(r["ratio"][side], *r["spread"][side]) for side in others]
        cells += [f"{r['floor']:.0%}", " / ".join(f"{r['peak_mb'][side]:.0f}" for side in ["minillm", *others])]
        print(f"| {' | '.join(cells)} |", flush=True)
        lines.append(f"| {' | '.join(cells)} |")
    finish(lines, arguments.out)


def finish(lines, out):
    """Write the table to a file too, if one was given."""
    if out:
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
