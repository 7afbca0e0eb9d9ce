"""ZeRO: data parallel in which no two ranks keep the same numbers (Rajbhandari et al. 2020, arXiv:1910.02054).

Data-parallel ranks all keep parameters, gradients and the optimiser's state, and all make the same update. Here rank i
of n keeps the i-th part of each unit's row, and updates that alone:

    stage 1   the optimiser's state is divided
    stage 2   and the gradients
    stage 3   and the parameters

For P bytes of parameters in float32, AdamW, on n ranks, a rank keeps (figure 1 of the paper, there for 16 bits)

                   parameters   gradients   two moments
    no ZeRO            P            P           2P
    stage 1            P            P           2P/n
    stage 2            P            P/n         2P/n
    stage 3            P/n          P/n         2P/n

**Stages 1 and 2.** Gradients are summed by a reduce_scatter, which leaves each rank the sum of its part, in place of an
all_reduce; after the update an all_gather gives everybody all parameters. An all_reduce is these two, so the bytes a
rank sends are the same, 2 (n - 1) / n P. From stage 2 on, the backward writes a block's gradients into one of two rows
that the blocks use in turn, and only this rank's part of the sum is kept. With m micro-batches each of them is
followed by a reduce_scatter of the blocks: (n - 1) / n (2 R + (m + 1) L B) for L blocks of B bytes and a root of R.

**Stage 3.** A block's parameters are gathered before its forward, and again before its backward, while the block
before it computes; they lie in one of two rows that the blocks use in turn. Operations keep references to weights for
their backward: these point into the row, which has the same numbers again by then. The root's row is its own, and is
gathered once a step. A gather is left out where the row still has the unit's parameters: a backward begins with the
last two blocks, and the next forward with the first two, of which the rows are full. So with L blocks of B bytes, a
root of R, and m micro-batches

    all_gather         (n - 1) / n (R + (min(L, 2) + 2 m max(0, L - 2)) B)
    reduce_scatter     (n - 1) / n (R + m L B)

at most 3 (n - 1) / n P for m = 1, or 1.5 times data parallel, as the paper has it (section 7). A block is gathered by
all ranks together, so all must compute the same blocks; in the other stages one may skip what its rows do not need.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from minillm.errors import InputError
from minillm.nn import Module
from minillm.parallel.communicator import Communicator, Work
from minillm.parallel.data_parallel import DataParallel, Unit


def step_bytes(stage: int, root: int, block: int, layers: int, ranks: int, micro_batches: int = 1) -> dict[str, int]:
    """Bytes that a rank sends in a step, for a root of `root` bytes and `layers` blocks of `block`; n divides each."""
    sums, gathers = layers, layers
    if stage > 1:
        sums *= micro_batches
    if stage == 3:
        gathers = min(layers, 2) + 2 * micro_batches * max(0, layers - 2)
    return {
        "gradients": (ranks - 1) * (root + sums * block) // ranks,
        "parameters": (ranks - 1) * (root + gathers * block) // ranks,
    }


class Rows:
    """Two rows of memory that the blocks use in turn: block i uses row i % 2."""

    def __init__(self, blocks: list[Unit]):
        largest = max((unit.size for unit in blocks), default=0)
        like = blocks[0].parameters[0].data if blocks else np.empty(0)
        self.rows = [np.zeros_like(like, shape=largest) for _ in range(2)]
        self.users: list[Unit | None] = [None, None]

    @property
    def nbytes(self) -> int:
        """Bytes of both rows."""
        return sum(row.nbytes for row in self.rows)


class ZeRO(DataParallel):
    """Data parallel in which each rank keeps a part. It is used as DataParallel is; `stage` is 1, 2 or 3."""

    def __init__(self, model: Module, communicator: Communicator, groups: Iterable[Mapping[str, Any]], stage: int = 1):
        if stage not in (1, 2, 3):
            raise InputError(f"ZeRO: stage is {stage}; choose 1, 2 or 3")
        self.stage = stage
        self.gathering: dict[int, Work] = {}  # by the number of the block
        super().__init__(model, communicator, groups)
        self.numbers = {id(unit): number for number, unit in enumerate(self.blocks)}
        self.grad_rows = Rows(self.blocks if stage >= 2 else [])
        self.data_rows = Rows(self.blocks if stage == 3 else [])
        if stage == 3:
            for number, unit in enumerate(self.blocks):
                unit.use_data(self.data_rows.rows[number % 2])

    def lay_out(self, unit: Unit) -> None:
        size = unit.size // self.communicator.size
        unit.mine = slice(self.communicator.rank * size, (self.communicator.rank + 1) * size)
        row = unit.row_of({p.name: p.data for p in unit.parameters}, unit.parameters[0].data)
        if self.stage < 3 or unit.name == "":
            unit.use_data(row)
        if self.stage == 1:
            unit.use_grad(np.zeros_like(row))
        unit.keep(
            row[unit.mine].copy() if self.stage == 3 else row[unit.mine],
            np.zeros_like(row, shape=size) if self.stage > 1 else unit.grad[unit.mine],
        )

    # --- gradients ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        super().begin()
        if self.stage == 1:
            return
        for unit in reversed(self.blocks):
            if unit.grad is not None:  # of the micro-batch before: its input needed no gradient
                self._sum(unit)
            unit.summed = False
        if self.root is not None and self.root.grad is None:
            self.root.use_grad(np.empty_like(self.root.parameters[0].data, shape=self.root.size))

    def before_backward(self, unit: Unit) -> None:
        if self.stage == 3:
            self._gather(unit, ahead=-1)
        if self.stage > 1:
            for other in reversed(self.blocks[self.numbers[id(unit)] + 1 :]):
                if other.calls == 0 and other.grad is None:  # this rank has skipped it; other ranks may not have
                    self._sum(other)
            self._lend_grad(unit)

    def _sum_complete(self) -> None:
        if self.stage == 1:
            super()._sum_complete()

    def passed(self, unit: Unit) -> None:
        super().passed(unit)
        if self.stage > 1 and unit.calls == 0:
            self._sum(unit)

    def _lend_grad(self, unit: Unit) -> None:
        """Give a block one of the two rows for its gradients, after those of the block before have been summed.

        A block that was computed several times gets a row of its own, until all its backwards have been walked.
        """
        if unit.work is not None:  # of the micro-batch before
            self.end_sum(unit)
        if unit.grad is not None:
            return
        unit.check_nothing_came_late()
        if unit.calls > 1:
            unit.use_grad(np.empty_like(self.grad_rows.rows[0], shape=unit.size))
            return
        turn = self.numbers[id(unit)] % 2
        before = self.grad_rows.users[turn]
        if before is not None:
            if before.work is None:
                self._sum(before)
            self.end_sum(before)
        self.grad_rows.users[turn] = unit
        unit.use_grad(self.grad_rows.rows[turn])

    def start_sum(self, unit: Unit) -> None:
        if unit.work is not None or unit.grad is None:  # a block that no gradient has reached in this micro-batch
            self._lend_grad(unit)
        row = unit.complete_gradients()
        unit.work = self.communicator.reduce_scatter(row, row[unit.mine], what="gradients")

    def end_sum(self, unit: Unit) -> None:
        unit.work.wait()
        unit.work = None
        if self.stage == 1:
            return
        mine = unit.grad[unit.mine]
        if unit.has_sum:  # a micro-batch before has been here
            unit.kept_grad += mine
        else:
            unit.kept_grad[...] = mine
        unit.grad, unit.has_sum = None, True
        self.grad_rows.users = [None if user is unit else user for user in self.grad_rows.users]

    # --- parameters --------------------------------------------------------------------------------------------------

    def before_forward(self, unit: Unit) -> None:
        if self.stage == 3:
            self._gather(unit, ahead=1)

    def _gather(self, unit: Unit, ahead: int) -> None:
        """Wait for the parameters of a block, and start to gather those of the next one."""
        number = self.numbers[id(unit)]
        self._start_gather(number)
        if (work := self.gathering.pop(number, None)) is not None:
            work.wait()
        if 0 <= number + ahead < len(self.blocks):
            self._start_gather(number + ahead)

    def _start_gather(self, number: int) -> None:
        unit = self.blocks[number]
        if self.data_rows.users[number % 2] is not unit:
            self.data_rows.users[number % 2] = unit
            row = self.data_rows.rows[number % 2][: unit.size]
            self.gathering[number] = self.communicator.all_gather(unit.kept_data, row, what="parameters")

    def sync_parameters(self) -> None:
        super().sync_parameters()
        if self.stage == 3:
            self.data_rows.users = [None, None]
            shared = [self.root] if self.root else []
        else:
            shared = list(self.units.values())
        works = [self.communicator.all_gather(unit.kept_data, unit.data, what="parameters") for unit in shared]
        for work in works:
            work.wait()

    def memory(self) -> dict[str, int]:
        kept = super().memory()
        whole = sum(unit.data.nbytes for unit in self.units.values() if self.stage < 3)
        working = self.grad_rows.nbytes + self.data_rows.nbytes
        if self.root is not None:
            working += (self.root.kept_data.nbytes * self.communicator.size) * ((self.stage > 1) + (self.stage == 3))
        grads = sum(unit.grad.nbytes for unit in self.units.values()) if self.stage == 1 else kept["gradients"]
        return {"parameters": whole or kept["parameters"], "gradients": grads, "working": working}
