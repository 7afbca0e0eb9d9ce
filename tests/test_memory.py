"""Memory: a step of training leaves nothing behind, and needs no garbage collector to do so."""

from __future__ import annotations

import contextlib
import gc
import tracemalloc
from collections.abc import Iterator

import numpy as np

import minillm
from minillm import no_grad
from minillm.autograd import Node, Tensor
from minillm.data import Batches
from minillm.generate import generate
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.optim import AdamW, decay_groups
from minillm.parallel.objective import next_token_batch
from minillm.training.whole_model import WholeModel, accumulate_gradients


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """The garbage collector off, and nothing left for it to find from before."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def live() -> tuple[int, int]:
    """How many tensors and graph nodes there are."""
    found = gc.get_objects()
    return sum(issubclass(type(x), Tensor) for x in found), sum(type(x) is Node for x in found)


class Training:
    """A tiny training with dropout, gradient accumulation and clipping."""

    def __init__(self) -> None:
        minillm.manual_seed(0)
        self.model = GPT2(GPT2Config(vocab_size=17, context=8, layers=1, heads=2, channels=16, dropout=0.1))
        self.optimizer = AdamW(decay_groups(self.model.parameters(), 0.1), 1e-3)
        self.batches = Batches(np.random.default_rng(0).integers(0, 17, 5000), 4, 8, seed=0)

    def step(self, number: int) -> float:
        ids, targets = self.batches.batch(number)
        self.optimizer.zero_grad()
        loss = accumulate_gradients(self.model, next_token_batch(ids, targets), 2)
        self.optimizer.clip_grad_norm(1.0)
        self.optimizer.step()
        return loss


@collector_off()
def test_tensors_and_memory_are_flat_over_200_steps() -> None:
    training = Training()
    counts, objects, used, peaks = [], [], [], []
    tracemalloc.start()
    try:
        for number in range(200):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            training.step(number)
            if number in (19, 79, 139, 199):
                peaks.append(tracemalloc.get_traced_memory()[1] - before)
                assert gc.collect() == 0  # it finds nothing, but empties the interpreter's lists of spare tuples
                used.append(tracemalloc.get_traced_memory()[0])
                counts.append(live())
                objects.append(len(gc.get_objects()))
    finally:
        tracemalloc.stop()
    assert len(set(counts)) == 1
    assert counts[0][1] == 0
    assert max(objects) - objects[0] < 20, objects  # fewer is no leak: some are no longer tracked
    # One array of the smallest activation, kept at each step, would be 180 times 2 KB. NumPy keeps a few small blocks.
    assert max(used) - min(used) < 60_000, used
    assert 40_000 < max(peaks) < 1.2 * min(peaks), peaks


@collector_off()
def test_a_step_makes_no_cycles() -> None:
    training = Training()
    for number in range(3):
        training.step(number)
        assert gc.collect() == 0


@collector_off()
def test_evaluation_and_generation_leave_nothing() -> None:
    training = Training()
    before = live()
    batches = (next_token_batch(*batch) for batch in training.batches.evaluation_batches(3))
    WholeModel(training.model).measures(batches)
    del batches
    list(generate(training.model, [1, 2], 10))
    assert live() == before
    assert gc.collect() == 0


@collector_off()
def test_a_loss_without_a_backward_is_freed_with_its_graph() -> None:
    training = Training()
    before = live()
    loss = training.model.loss(*training.batches.batch(0))
    assert live()[1] > 20
    del loss
    assert live() == before
    with no_grad():
        kept = training.model.loss(*training.batches.batch(0))
    assert live() == (before[0] + 1, before[1])
    assert kept.node is None
    assert gc.collect() == 0


@collector_off()
def test_a_kept_loss_keeps_no_arrays_once_the_backward_has_run() -> None:
    training = Training()

    def bytes_of_arrays() -> int:
        arrays = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
        return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([arrays]).traces)

    losses = []
    tracemalloc.start()
    try:
        training.step(0)
        before = bytes_of_arrays()
        for number in range(10):
            loss = training.model.loss(*training.batches.batch(number))
            held = bytes_of_arrays() - before
            assert held > 20_000
            training.optimizer.zero_grad()
            loss.backward()
            losses.append(loss)
            del loss
        assert bytes_of_arrays() - before < 100 * len(losses)  # the number itself, and the ids of the last batch
    finally:
        tracemalloc.stop()


@collector_off()
def test_the_test_itself_sees_a_leak() -> None:
    """A loss that is added up as a tensor, the classic leak: every step's graph hangs on the sum."""
    training = Training()
    total, counts = minillm.tensor(0.0), []
    for number in range(3):
        total = total + training.model.loss(*training.batches.batch(number))
        counts.append(live()[1])
    assert counts[0] < counts[1] < counts[2]
