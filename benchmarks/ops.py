"""Every operation beside PyTorch's, forward and backward: `python benchmarks/ops.py [--out benchmarks/results/ops.md]`.

The shapes are those of the baby model (6 layers, 6 heads, 384 channels, 8 x 256 tokens, 65 ids). Each side is a process
of its own with 2 threads; the two take turns, A B A B, in running an operation some times. A ratio is the median over
rounds of (PyTorch's time) / (minillm's time): above 1, minillm is faster. The backward includes the work of the engine:
the walk over the graph, and adding up gradients.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from sides import THREADS, Side, settings

B, T, C, H, V = 8, 256, 384, 6, 65
ROWS = (B, T, C)
HEADS = (B, H, T, C // H)

# name: the shapes of its floating inputs, which all get a gradient. The functions are in `ours` and `theirs`.
SHAPES = {
    "add": [ROWS, ROWS],
    "mul": [ROWS, ROWS],
    "div": [ROWS, ROWS],
    "exp": [ROWS],
    "tanh": [ROWS],
    "sigmoid": [ROWS],
    "relu": [ROWS],
    "sum": [ROWS],
    "mean": [ROWS],
    "amax": [ROWS],
    "transpose": [HEADS],
    "concat": [ROWS, ROWS],
    "split": [(B, T, 3 * C)],
    "getitem": [ROWS],
    "matmul": [(B * T, C), (C, C)],
    "linear": [ROWS, (4 * C, C), (4 * C,)],
    "embedding": [(V, C)],
    "softmax": [(B, H, T, T)],
    "log_softmax": [(B, H, T, T)],
    "layer_norm": [ROWS, (C,), (C,)],
    "add_layer_norm": [ROWS, ROWS, (C,), (C,)],
    "rms_norm": [ROWS, (C,)],
    "gelu": [(B, T, 4 * C)],
    "gelu_tanh": [(B, T, 4 * C)],
    "gelu_tanh_bias": [(B, T, 4 * C), (4 * C,)],
    "silu": [(B, T, 4 * C)],
    "swiglu": [(B, T, 4 * C), (B, T, 4 * C)],
    "rope": [HEADS],
    "dropout": [ROWS],
    "attention": [HEADS, HEADS, HEADS],
    "attention_full": [HEADS, HEADS, HEADS],
    "cross_entropy": [(B * T, V)],
}


def ours(name):
    """The operation of minillm: a function from tensors to one or several."""
    import numpy as np

    from minillm import ops

    rng = np.random.default_rng(0)
    ids = rng.integers(0, V, (B, T))
    table = ops.rope_table(T, C // H)
    functions = {
        "sum": lambda x: x.sum(-1),
        "mean": lambda x: x.mean(-1),
        "amax": lambda x: x.amax(-1),
        "transpose": lambda x: x.transpose(1, 2).reshape(B, T, C),
        "concat": lambda x, y: ops.concat([x, y], dim=-1),
        "split": lambda x: x.split(C, dim=-1),
        "getitem": lambda x: x[:, 1:],
        "embedding": lambda weight: ops.embedding(ids, weight),
        "gelu_tanh": lambda x: ops.gelu(x, "tanh"),
        "gelu_tanh_bias": lambda x, bias: ops.bias_gelu(x, bias, "tanh"),
        "rope": lambda x: ops.rope(x, *table),
        "dropout": lambda x: ops.dropout(x, 0.1),
        "attention": lambda q, k, v: ops.attention(q, k, v, causal=True),
        "attention_full": ops.attention,
        "cross_entropy": lambda logits: ops.cross_entropy(logits, ids.reshape(-1)),
    }
    return functions.get(name) or getattr(ops, name)


def theirs(name):
    """The same operation of PyTorch."""
    import torch
    import torch.nn.functional as F

    ids = torch.randint(0, V, (B, T))
    angle = torch.outer(torch.arange(T), 10000.0 ** (-torch.arange(0, C // H, 2) / (C // H)))
    cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)

    def rope(x):  # as transformers' Llama does it
        half = x.shape[-1] // 2
        return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin

    def add_layer_norm(x, y, weight, bias):
        total = x + y
        return total, F.layer_norm(total, (C,), weight, bias)

    functions = {
        "sum": lambda x: x.sum(-1),
        "mean": lambda x: x.mean(-1),
        "amax": lambda x: x.amax(-1),
        "transpose": lambda x: x.transpose(1, 2).reshape(B, T, C),
        "concat": lambda x, y: torch.cat([x, y], -1),
        "split": lambda x: x.split(C, dim=-1),
        "getitem": lambda x: x[:, 1:],
        "linear": F.linear,
        "embedding": lambda weight: F.embedding(ids, weight),
        "softmax": lambda x: F.softmax(x, -1),
        "log_softmax": lambda x: F.log_softmax(x, -1),
        "layer_norm": lambda x, weight, bias: F.layer_norm(x, (C,), weight, bias),
        "add_layer_norm": add_layer_norm,
        "rms_norm": lambda x, weight: F.rms_norm(x, (C,), weight, 1e-6),
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "gelu_tanh_bias": lambda x, bias: F.gelu(x + bias, approximate="tanh"),
        "silu": F.silu,
        "swiglu": lambda gate, up: F.silu(gate) * up,
        "rope": rope,
        "dropout": lambda x: F.dropout(x, 0.1),
        "attention": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "attention_full": F.scaled_dot_product_attention,
        "cross_entropy": lambda logits: F.cross_entropy(logits, ids.reshape(-1)),
    }
    return functions.get(name) or getattr(torch, name)


def runner(side, name):
    """A function that runs the operation once and returns the seconds of its forward and of its backward."""
    import numpy as np

    rng = np.random.default_rng(0)
    arrays = [rng.uniform(0.5, 2, shape).astype(np.float32) for shape in SHAPES[name]]
    if side == "minillm":
        import minillm

        function = ours(name)
        leaves = [minillm.tensor(x, requires_grad=True) for x in arrays]
        outs = function(*leaves)
        cotangents = [np.ones(y.shape, np.float32) for y in (outs if isinstance(outs, tuple) else (outs,))]
    else:
        import torch

        torch.set_num_threads(THREADS)
        function = theirs(name)
        leaves = [torch.from_numpy(x).requires_grad_() for x in arrays]
        outs = function(*leaves)
        cotangents = [torch.ones_like(y) for y in (outs if isinstance(outs, tuple) else (outs,))]

    def run():
        for leaf in leaves:
            leaf.grad = None
        start = time.perf_counter()
        outs = function(*leaves)
        middle = time.perf_counter()
        if isinstance(outs, tuple):  # minillm has one root for a backward, so that both get a sum
            sum((y * c).sum() for y, c in zip(outs, cotangents, strict=True)).backward()
        else:
            outs.backward(*cotangents)
        return middle - start, time.perf_counter() - middle

    return run


def serve(side, name):
    """The child process: for each line read, run the operation so many times and print the medians."""
    with settings(side):
        run = runner(side, name)
        for line in sys.stdin:
            times = [run() for _ in range(int(line))]
            forward, backward = (statistics.median(part) for part in zip(*times, strict=True))
            print(json.dumps({"forward": forward, "backward": backward}), flush=True)


def measure(name, rounds, repeats):
    """Medians of the interleaved rounds of one operation, in seconds, and the ratios."""
    sides = {side: Side(__file__, side, name) for side in ("minillm", "torch")}
    for side in sides.values():
        side.run(3)  # warm up
    results = {key: [] for key in sides}
    for _ in range(rounds):
        for key, side in sides.items():
            results[key].append(side.run(repeats))
    for side in sides.values():
        side.close()
    row = {"op": name}
    for part in ("forward", "backward"):
        mine, other = ([r[part] for r in results[key]] for key in ("minillm", "torch"))
        row[part] = statistics.median(mine), statistics.median(other)
        row[f"{part} ratio"] = statistics.median(b / a for a, b in zip(mine, other, strict=True))
    both = ([r["forward"] + r["backward"] for r in results[key]] for key in ("minillm", "torch"))
    row["ratio"] = statistics.median(b / a for a, b in zip(*both, strict=True))
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--ops", nargs="+", default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file too")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(*arguments.serve)
        return
    import numpy
    import torch

    lines = [
        "# Every operation beside PyTorch's",
        "",
        f"`python benchmarks/ops.py`: Python {sys.version.split()[0]}, NumPy {numpy.__version__}, PyTorch "
        f"{torch.__version__}, {THREADS} threads each, {arguments.rounds} interleaved rounds, medians, at the shapes "
        "of the baby model. Speed is PyTorch's time over minillm's: above 1, minillm is faster.",
        "",
        "| operation | forward ms, minillm / PyTorch | backward ms | forward | backward | both |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for name in arguments.ops:
        r = measure(name, arguments.rounds, arguments.repeats)
        times = [" / ".join(f"{1e3 * x:.2f}" for x in r[part]) for part in ("forward", "backward")]
        ratios = f"{r['forward ratio']:.2f} | {r['backward ratio']:.2f} | **{r['ratio']:.2f}**"
        row = f"| {name} | {times[0]} | {times[1]} | {ratios} |"
        print(row, flush=True)
        lines.append(row)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
