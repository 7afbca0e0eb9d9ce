"""Training on the GPU: compare its losses with the CPU's and its speed with PyTorch's, and profile a step."""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gpu_clock import PEAKS, Clock, clocks, free, matrix_rate, name_of_gpu
from gpu_job import Job, verdict

import minillm
from minillm.engine import engine
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.optim import AdamW, decay_groups

LEARNING_RATE, DECAY, BETAS, MAX_NORM = 6e-4, 0.1, (0.9, 0.95), 1.0


def our_step(config: GPT2Config, device: str, dtype: str, batch: int, job: Job) -> Callable[[], Any]:
    """A function that does one training step on the next of four batches and returns the loss, still on the device."""
    minillm.manual_seed(0)
    model = GPT2(config).to(device, dtype)
    optimizer = AdamW(decay_groups(model.parameters(), DECAY), lr=LEARNING_RATE, betas=BETAS)
    place = (lambda x: x) if device == "cpu" else job.cupy.asarray
    batches = [(place(ids), place(targets)) for ids, targets in random_batches(config, batch)]

    def step() -> Any:
        batches.append(batches.pop(0))
        optimizer.zero_grad()
        loss = model.loss(*batches[-1])
        loss.backward()
        optimizer.clip_grad_norm(MAX_NORM)
        optimizer.step()
        return loss

    return step


def random_batches(config: GPT2Config, batch: int) -> list[Any]:
    """Four batches of (ids, targets)."""
    shape = (4, 2, batch, config.context)
    return list(np.random.default_rng(0).integers(0, min(config.vocab_size, 50257), shape))


# ---- the same losses ------------------------------------------------------------------------------------------------


def agreement(job: Job) -> None:
    """Compare the losses of a small GPT-2 on the CPU and on the GPU, with and without kernels."""
    size = {"vocab_size": 65, "context": 64, "heads": 2, "channels": 64}
    if job.dry:
        size = {"vocab_size": 33, "context": 12, "heads": 1, "channels": 32}
    config, batch, steps = GPT2Config(layers=2, **size), job.size(4, 2), job.size(20, 8)
    with engine("fast"):
        step = our_step(config, "cpu", "float32", batch, job)
        expected = [step().item() for _ in range(steps)]
    title = f"{steps} training steps of a small GPT-2: losses against those on the CPU"
    columns = "dtype", "kernels", "first loss", "last loss", "largest difference", "allowed", "verdict"
    table = job.table(title, *columns)
    memory = job.table("Memory between steps, bytes", "dtype", "kernels", "after a quarter", "at the end", "verdict")
    runs = ("float32", "require", 1e-4), ("float32", "plain", 1e-4), ("bfloat16", "require", 0.02)
    for dtype, kernels, allowed in runs:
        losses, used = [], []
        with engine(kernels):
            step = our_step(config, "cuda", dtype, batch, job)
            for _ in range(steps):
                losses.append(float(step().item()))
                gc.collect()
                used.append(job.cupy.get_default_memory_pool().used_bytes())
        by = expected if dtype == "bfloat16" else [1.0] * steps  # there a part of the loss, here the loss itself
        difference = max(abs(a - b) / c for a, b, c in zip(losses, expected, by, strict=True))
        table.row(dtype, kernels, losses[0], losses[-1], difference, allowed, verdict(difference <= allowed))
        memory.row(dtype, kernels, used[steps // 4 - 1], used[-1], verdict(used[steps // 4 - 1] == used[-1]))
    job.note(f"on the CPU, by formulas: from {expected[0]:.5f} to {expected[-1]:.5f}")


# ---- GPT-2 124M -----------------------------------------------------------------------------------------------------

COLUMNS = ("who", "tokens/s", "ms a step", "spread", "MFU", "peak memory, GB", "losses")
TITLE = "Training GPT-2 124M: bfloat16, AdamW, clipping, no dropout, {batch} x {context} tokens a step"


def gpt2(job: Job) -> tuple[GPT2Config, int]:
    """The configuration, and the number of sequences of a step."""
    if job.dry:
        return GPT2Config(vocab_size=64, context=16, layers=1, heads=1, channels=32), 2
    return GPT2Config(vocab_size=50304, context=1024), 32


def operations_of_token(config: GPT2Config) -> float:
    """FLOPs of a token, forward and backward: 6 for each weight in a matrix product, and for causal attention 6 L T C.

    Source: Chowdhery et al. 2022 (PaLM), appendix B, with the half of attention that causality leaves.
    """
    weights = config.layers * 12 * config.channels**2 + config.vocab_size * config.channels
    return 6 * weights + 6 * config.layers * config.context * config.channels


def training(job: Job) -> None:
    """Measure ours, then PyTorch's eager mode, with the memory freed in between."""
    config, batch = gpt2(job)
    with engine("require"):
        report_speed(job, "minillm", our_step(config, "cuda", "bfloat16", batch, job), our_peak(job))
    gc.collect()
    free(job)
    if job.torch is None:
        job.note("PyTorch is not installed: there is nothing beside ours")
    elif job.in_time(10, "PyTorch's eager mode"):
        report_speed(job, "PyTorch eager", torch_step(job), torch_peak(job))


def compiled(job: Job) -> None:
    """Measure PyTorch's compiled mode, in a section of its own, because compiling takes minutes."""
    if job.torch is None:
        job.note("PyTorch is not installed")
    else:
        report_speed(job, "PyTorch compiled", torch_step(job, compiled=True), torch_peak(job))


def our_peak(job: Job) -> Callable[[], float]:
    """Bytes that our allocator has taken from the device so far."""
    return job.cupy.get_default_memory_pool().total_bytes


def torch_peak(job: Job) -> Callable[[], float]:
    """Bytes that PyTorch's allocator has taken from the device so far."""
    return (lambda: 0.0) if job.dry else job.torch.cuda.max_memory_reserved


def report_speed(job: Job, who: str, step: Callable[[], Any], peak: Callable[[], float]) -> None:
    """Warm up, then time rounds of steps; a step includes what its host does, if the device waits for that."""
    config, batch = gpt2(job)
    first = step().item()
    for _ in range(job.size(4, 0)):
        step()
    cuda, rounds, steps = job.cupy.cuda, job.size(5, 1), job.size(4, 1)
    times = []
    for _ in range(rounds):
        start, end = cuda.Event(), cuda.Event()
        start.record()
        for _ in range(steps):
            loss = step()
        end.record()
        end.synchronize()
        times.append(cuda.get_elapsed_time(start, end) / steps)
    milliseconds, tokens = statistics.median(times), batch * config.context
    rate = tokens / milliseconds * 1e3
    spread = (max(times) - min(times)) / milliseconds
    memory, losses = peak() / 1e9, f"{first:.2f} to {loss.item():.2f}"
    utilisation = rate * operations_of_token(config) / peak_rate(job)
    table = job.table(TITLE.format(batch=batch, context=config.context), *COLUMNS)
    table.row(who, *map(job.measured, (rate, milliseconds, spread, utilisation, memory)), losses)
    job.note(f"clocks right after {who}: {clocks()}")


def peak_rate(job: Job) -> float:
    """FLOP/s at a utilisation of 1."""
    peak = PEAKS.get(name_of_gpu(job))
    if peak is None:
        peak = matrix_rate(Clock(job))
        job.note("MFU is by the measured rate of cuBLAS, because the datasheet of this GPU is not known here")
    else:
        job.note(f"MFU is by {peak / 1e12:.0f} TFLOP/s, dense bfloat16 in the datasheet")
    return peak


def torch_step(job: Job, compiled: bool = False) -> Callable[[], Any]:
    """A training step of the same model in PyTorch, written as its users write it."""
    torch = job.torch
    from torch import nn
    from torch.nn import functional as F

    config, batch = gpt2(job)
    device, C, heads = "cpu" if job.dry else "cuda", config.channels, config.heads

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(C), nn.LayerNorm(C)
            self.qkv, self.proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
            self.fc, self.out = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

        def forward(self, x: Any) -> Any:
            B, T, C = x.shape
            q, k, v = (y.view(B, T, heads, C // heads).transpose(1, 2) for y in self.qkv(self.ln_1(x)).split(C, dim=-1))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.proj(y.transpose(1, 2).reshape(B, T, C))
            return x + self.out(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.wpe = nn.Embedding(config.vocab_size, C), nn.Embedding(config.context, C)
            self.h = nn.Sequential(*(Block() for _ in range(config.layers)))
            self.ln_f = nn.LayerNorm(C)
            for parameter in self.parameters():
                if parameter.ndim == 2:
                    nn.init.normal_(parameter, std=0.02)

        def forward(self, ids: Any, targets: Any) -> Any:
            x = self.h(self.wte(ids) + self.wpe.weight[: ids.shape[1]])
            logits = F.linear(self.ln_f(x), self.wte.weight)
            return F.cross_entropy(logits.view(-1, config.vocab_size), targets.view(-1))

    torch.manual_seed(0)
    model = GPT().to(device, torch.bfloat16)
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=True)
    batches = [torch.from_numpy(x).to(device) for x in random_batches(config, batch)]
    if compiled:
        model = torch.compile(model, backend="eager" if job.dry else "inductor")

    def step() -> Any:
        batches.append(batches.pop(0))
        optimizer.zero_grad()
        loss = model(*batches[-1])
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()
        return loss

    return step


# ---- where the time goes --------------------------------------------------------------------------------------------


def profile(job: Job) -> None:
    """Profile three of our steps with PyTorch's profiler, which sees all kernels of the process, also CuPy's."""
    torch = job.torch
    if torch is None:
        job.note("the profiler is PyTorch's, which is not installed")
        return
    config, batch = gpt2(job)
    step, steps = our_step(config, "cuda", "bfloat16", batch, job), job.size(3, 1)
    for _ in range(steps):
        step()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        torch.cuda.init()
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(steps):
            loss = step()
        loss.item()  # the profiler does not wait for the device
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    tabulate(job, events, steps)


def tabulate(job: Job, events: list[dict[str, Any]], steps: int) -> None:
    """Fill a table with the kernels of a trace, the slowest first."""
    on_gpu = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    if not on_gpu:
        job.note("the profiler saw no kernels on a GPU")
        return
    time_of, count_of = by_kernel(on_gpu)
    began, ended = min(e["ts"] for e in on_gpu), max(e["ts"] + e["dur"] for e in on_gpu)
    total = sum(time_of.values())
    table = job.table("Where the time of our step goes", "kernel", "launches a step", "us a step", "share")
    for name, microseconds in time_of.most_common(25):
        table.row(name, count_of[name] / steps, microseconds / steps, microseconds / total)
    rest = len(time_of) - 25
    if rest > 0:
        others = total - sum(microseconds for _, microseconds in time_of.most_common(25))
        table.row(f"{rest} others", None, others / steps, others / total)
    launches, share = sum(count_of.values()) / steps, total / (ended - began)
    work = f"{total / steps / 1e3:.2f} ms of work, {share:.1%} of the time it takes"
    job.note(f"a step is {launches:.0f} launches and {work}")


def by_kernel(events: list[dict[str, Any]]) -> tuple[Counter, Counter]:
    """Microseconds and launches of each kernel, by its name without parameters."""
    times: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for event in events:
        name = event["name"].removeprefix("void ").partition("(")[0][:100]
        times[name] += event["dur"]
        counts[name] += 1
    return times, counts
