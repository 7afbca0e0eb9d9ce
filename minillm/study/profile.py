"""The time of a training step, operation by operation, and the share of it that matrix products take.

While `profiled(profile)` is entered, every operation's forward and backward is timed, and the shapes of all matrix
products are noted. Nothing of it is in the engine, so nothing is paid for it at other times.

The floor of a step is what its matrix products take alone: `Profile.products_alone` times each of them, at its own
shape, outside of the step. What a step takes beyond that goes to everything else, and to waiting.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from minillm import backend
from minillm.autograd import Backward, Forward, observe
from minillm.models.gpt2 import GPT2
from minillm.optim import AdamW
from minillm.study.describe import LONGEST, UNLIMITED
from minillm.study.describe.abstract_step import loss_of, training_batch


class Shapes(NamedTuple):
    """The shapes of a matrix product's two factors, and whether each is transposed in memory."""

    a: tuple[int, ...]
    b: tuple[int, ...]
    a_transposed: bool
    b_transposed: bool
    dtype: str


class Profile:
    """Times and products of some steps; every number that it gives is for one step."""

    def __init__(self) -> None:
        self.steps: list[float] = []  # seconds of each
        self.forward: Counter[str] = Counter()  # seconds of all steps, by operation
        self.backward: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.products: Counter[Shapes] = Counter()

    @property
    def seconds(self) -> float:
        """Seconds of a step, on average."""
        return sum(self.steps) / len(self.steps)

    @property
    def elsewhere(self) -> float:
        """Seconds outside of all operations: the walk of the engine, the optimiser, clipping."""
        return self.seconds - (self.forward.total() + self.backward.total()) / len(self.steps)

    @property
    def flops(self) -> float:
        """FLOPs of a step's matrix products."""
        return sum(
            count * backend.product_flops(product.a, product.b) for product, count in self.products.items()
        ) / len(self.steps)

    def rows(self) -> Iterator[tuple[str, float, float, float]]:
        """(operation, calls, seconds forward, seconds backward), the slowest first."""
        n = len(self.steps)
        for name in sorted(self.calls, key=lambda name: -self.forward[name] - self.backward[name]):
            yield name, self.calls[name] / n, self.forward[name] / n, self.backward[name] / n

    def products_alone(self, repeats: int = 5) -> float:
        """Seconds that the matrix products take outside of the step: each at its shape, the median of some runs."""
        total = 0.0
        for product, count in self.products.items():
            times = [_seconds(product) for _ in range(repeats)]
            total += count * statistics.median(times)
        return total / len(self.steps)


def _seconds(product: Shapes) -> float:
    """Seconds of one product; a stack is also tried on every thread at once, as attention does, and the less counts."""
    rng = np.random.default_rng(0)
    a, b = (
        rng.standard_normal((*shape[:-2], shape[-1], shape[-2]), np.float32).astype(product.dtype).swapaxes(-1, -2)
        if transposed
        else rng.standard_normal(shape, np.float32).astype(product.dtype)
        for shape, transposed in ((product.a, product.a_transposed), (product.b, product.b_transposed))
    )
    start = time.perf_counter()
    backend.matmul(a, b)
    alone = time.perf_counter() - start
    if a.ndim == b.ndim == 2:
        return alone
    start = time.perf_counter()
    backend.parallel(lambda first, last: backend.matmul(a, b), backend.cutting.threads)
    return min(alone, (time.perf_counter() - start) / backend.cutting.threads)


@contextlib.contextmanager
def profiled(profile: Profile) -> Iterator[None]:
    """Add what runs until the block ends to a profile, as one step."""

    def after_forward(call: Forward) -> None:
        profile.forward[call.op.name] += call.seconds  # type: ignore[assignment]  # a Counter of seconds
        profile.calls[call.op.name] += 1

    def after_backward(call: Backward) -> None:
        profile.backward[call.op.name] += call.seconds  # type: ignore[assignment]

    def before_products(products: tuple[backend.Product, ...]) -> None:
        for a, b, *_ in products:
            a_transposed, b_transposed = (x.strides[-1] != x.itemsize for x in (a, b))
            profile.products[Shapes(a.shape, b.shape, a_transposed, b_transposed, a.dtype.name)] += 1

    start = time.perf_counter()
    try:
        with observe(after_forward, after_backward), backend.observe_products(before_products):
            yield
    finally:
        profile.steps.append(time.perf_counter() - start)


def profile_training(config: Any, batch_size: int, repeats: int, warm_up: int = 2, kind: Any = GPT2) -> Profile:
    """Profile training steps of a model on random tokens: forward, backward, clipping, AdamW.

    kind: the class of the model. Sequences are as long as its context, but have at most LONGEST tokens.
    """
    model = kind(config)
    optimizer = AdamW(model.parameters())
    batch = training_batch(model, batch_size, min(getattr(config, "context", None) or UNLIMITED, LONGEST))
    draw = np.random.default_rng(0)
    for name in batch.keys() & {"ids", "source", "targets"}:
        batch[name][...] = draw.integers(0, config.vocab_size, batch[name].shape)
    profile = Profile()
    for step in range(warm_up + repeats):
        with profiled(profile) if step >= warm_up else contextlib.nullcontext():
            optimizer.zero_grad()
            loss = loss_of(model)(**batch)
            loss.backward(np.ones_like(loss.data))
            optimizer.clip_grad_norm(1.0)
            optimizer.step()
    return profile
