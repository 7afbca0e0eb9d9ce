"""Causal attention in bfloat16, compared with PyTorch's flash kernels in speed and in accuracy."""

from __future__ import annotations

import contextlib
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from gpu_clock import Clock, clocks, free
from gpu_job import Job, verdict
from gpu_parity import FORWARD, GRADIENT, compare

from minillm import ops
from minillm.autograd import Tensor
from minillm.backend import Array
from minillm.device import to_host
from minillm.dtypes import as_dtype
from minillm.engine import engine

ROUNDS = 3  # of ours and theirs in turn


def attention(job: Job) -> None:
    """Time forward and backward for each head size and sequence length, always at 16384 tokens of 2048 channels."""
    clock, torch = Clock(job), job.torch
    if torch is None:
        job.note("PyTorch is not installed, so nothing stands beside ours")
    for d in (64, 128) if torch else ():
        attention_agrees(job, torch, d)
    table = job.table("Causal attention in bfloat16, TFLOP/s", "D", "T", "way", "ours", "PyTorch flash", "ratio")
    for d, tokens in itertools.product((64, 128), (32, 48) if job.dry else (1024, 4096, 16384)):
        if not job.in_time(3, f"attention at D = {d}, T = {tokens}, and what follows"):
            break
        shape = (job.size(16384, 96) // tokens, job.size(2048, 128) // d, tokens, d)
        ours, theirs = our_attention(job, shape), torch_attention(torch, shape, job.dry) if torch else {}
        forward = 4 * shape[0] * shape[1] * tokens**2 * d / 2  # two products, half of each masked
        for way, operations in (("forward", forward), ("backward", 2.5 * forward)):  # five products
            what = f"attention {way}, D {d}, T {tokens}"
            rates = in_turn(clock, {"our": ours[way], "PyTorch's": theirs.get(way)}, operations, what)
            numbers = *rates, rates[0] / rates[1] if rates[1] else None
            table.row(d, tokens, way, *(None if x is None else job.measured(x) for x in numbers))
        del ours, theirs
        free(job)
        if torch and torch.cuda.is_available():
            torch.cuda.empty_cache()
    job.note(f"clocks right after: {clocks()}")


def in_turn(clock: Clock, functions: dict[str, Callable | None], operations: float, what: str) -> list[float | None]:
    """TFLOP/s of each function: medians over rounds of A B A B, so that a change of the clocks meets both."""
    rates: dict[str, list[float]] = {who: [] for who in functions}
    for _ in range(1 if clock.job.dry else ROUNDS):
        for who, function in functions.items():
            if function:
                milliseconds, _ = clock.time([function] * 2, f"{who} {what}")
                rates[who].append(operations / milliseconds / 1e9)
    return [statistics.median(of_one) if of_one else None for of_one in rates.values()]


def our_attention(job: Job, shape: tuple[int, ...]) -> dict[str, Callable]:
    """A function that runs our attention as the engine launches it."""
    q, k, v, dout = (job.random(shape, as_dtype("bfloat16")) for _ in range(4))
    constants, leaves = ([Tensor(x, requires_grad=wanted) for x in (q, k, v)] for wanted in (False, True))
    with engine("require"):
        node = ops.attention(*leaves, causal=True).node
    return {
        "forward": lambda: ops.attention(*constants, causal=True).data,
        "backward": lambda: node.backward(dout, node.saved),
    }


def torch_attention(torch: Any, shape: tuple[int, ...], dry: bool) -> dict[str, Callable]:
    """A function that runs PyTorch's scaled_dot_product_attention with its flash kernels."""
    *leaves, dout = (torch.randn(shape, device="cpu" if dry else "cuda", dtype=torch.bfloat16) for _ in range(4))
    leaves = [x.requires_grad_() for x in leaves]

    def forward() -> Any:
        with only(torch, "FLASH_ATTENTION", dry):
            return torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=True)

    out = forward()
    return {"forward": forward, "backward": lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)}


def only(torch: Any, backend: str, dry: bool) -> Any:
    """Under this context PyTorch raises rather than use other kernels; a CPU has no choice."""
    if dry:
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(getattr(SDPBackend, backend))


def attention_agrees(job: Job, torch: Any, d: int) -> None:
    """Compare ours and the flash kernels in bfloat16 with PyTorch in float32; our error may be 2 or 3 times theirs."""
    tokens, heads, bfloat16 = job.size(1024, 48), job.size(8, 2), as_dtype("bfloat16")
    host = [np.random.default_rng(i).standard_normal((1, heads, tokens, d)).astype(bfloat16) for i in range(4)]
    leaves, dout = [Tensor(job.cupy.asarray(x), requires_grad=True) for x in host[:3]], job.cupy.asarray(host[3])
    with engine("require"):
        out = ops.attention(*leaves, causal=True)
        out.backward(dout)
    ours = [to_host(x) for x in (out.data, *(leaf.grad for leaf in leaves))]

    def by_torch(dtype: Any, backend: str) -> list[Array]:
        device = "cpu" if job.dry else "cuda"
        *leaves, dout = (torch.from_numpy(x.astype(np.float32)).to(device, dtype) for x in host)
        leaves = [x.requires_grad_() for x in leaves]
        with only(torch, backend, job.dry):
            y = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=True)
        return [x.detach().float().cpu().numpy() for x in (y, *torch.autograd.grad(y, leaves, dout))]

    columns = "D", "T", "what", "ours", "PyTorch flash", "of allowed", "verdict"
    table = job.table("Attention against PyTorch in float32: relative errors", *columns)
    exact, flash = by_torch(torch.float32, "MATH"), by_torch(torch.bfloat16, "FLASH_ATTENTION")
    for what, one, other, right in zip(("out", "dq", "dk", "dv"), ours, flash, exact, strict=True):
        comparison = compare(one, right, other.astype(bfloat16), FORWARD if what == "out" else GRADIENT)
        table.row(d, tokens, what, *comparison, verdict(comparison.of_allowed <= 1))
