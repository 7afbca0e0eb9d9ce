"""`memory(loss)`: the bytes that the graph of a loss keeps for its backward, by operation and by layer.

An operation keeps arrays for its backward (its `Saved`). An array counts where it is first kept: the input of one
operation is often the output of another, and views share the memory of the array that they show. What the caller holds
anyway, the leaves of the graph and a model's weights, does not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from minillm.autograd import Node, Tensor
from minillm.errors import InputError
from minillm.nn import Module
from minillm.study.describe.abstract_step import abstract_step, arrays_of, owner
from minillm.study.questions.probe import probes
from minillm.study.questions.text import aligned, bytes_text
from minillm.study.questions.walk import all_leaves, operations


class Kept(NamedTuple):
    """The arrays that one operation keeps, and that no earlier one does."""

    layer: str
    operation: str
    names: str  # of the arrays, in the operation's `Saved`
    bytes: int
    described: int | None = None  # bytes by `minillm describe`, for all calls of this kind together


class Memory(NamedTuple):
    """The memory that a graph keeps; `print` shows it by layer and operation."""

    rows: tuple[Kept, ...]
    described: int | None  # bytes in all, by `minillm describe`; None where no model was given

    @property
    def total(self) -> int:
        """All bytes that the graph keeps."""
        return sum(row.bytes for row in self.rows)

    def by_layer(self, depth: int | None = None) -> dict[str, int]:
        """The bytes of each layer; with `depth`, of the modules with so many parts in their path, such as `h.0`."""
        sizes: Counter[str] = Counter()
        for row in self.rows:
            parts = row.layer.split(".")
            sizes[".".join(parts if depth is None else parts[:depth])] += row.bytes
        return dict(sizes)

    def __repr__(self) -> str:
        head = ["layer", "operation", "arrays", "bytes"]
        rows = [[row.layer or "-", row.operation, row.names, f"{row.bytes:,}"] for row in self.rows]
        if self.described is not None:
            head.append("described")
            for cells, row in zip(rows, self.rows, strict=True):
                cells.append("-" if row.described is None else f"{row.described:,}")
        told = f"in all {bytes_text(self.total)} ({self.total:,} bytes)"
        if self.described is not None:
            told += f"; minillm describe counts {bytes_text(self.described)} ({self.described:,} bytes)"
        return f"{aligned(head, rows, right=(3, 4))}\n{told}"


def memory(loss: Tensor, model: Module | None = None) -> Memory:
    """The bytes that the graph of a loss keeps for its backward: rows by operation, in the order of the forward.

    model: the model of the loss, for a comparison with what `minillm describe` counts for a batch of this shape; its
    frozen weights are then known too, and do not count. The comparison is for the fast pairs, and for batches that
    describe assumes: all tokens are there, and BART's source is as long as its target.
    Raises: GraphError for a loss without a graph, InputError for a model whose tokens are not in the graph.
    """
    nodes = operations("memory", loss)
    given = {id(owner(leaf.data)) for leaf in all_leaves(nodes)}
    if model is not None:
        given |= {id(owner(array)) for array in model.state_dict().values()}
    rows = [row for node in nodes for row in kept_by(node, given)]
    if model is None:
        return Memory(tuple(rows), None)
    looked = dict(probes)
    try:
        step = abstract_step(model, *_batch_of(nodes))
    finally:  # this step computes no numbers, and probes in the model's forward have looked at it
        probes.clear()
        probes.update(looked)
    merged: Counter[tuple[str, str, str]] = Counter()
    for row in rows:
        merged[row[:3]] += row.bytes
    compared = [Kept(*key, size, step.kept.get(key)) for key, size in merged.items()]
    compared += [Kept(*key, 0, size) for key, size in step.kept.items() if key not in merged]
    return Memory(tuple(compared), sum(step.kept.values()))


def kept_by(node: Node, counted: set[int]) -> Iterator[Kept]:
    """The arrays that a node keeps and nobody has counted; each is counted now."""
    new: dict[int, tuple[int, list[str]]] = {}
    for name, array in arrays_of(node.saved):
        memory = owner(array)
        if id(memory) not in counted:
            new.setdefault(id(memory), (memory.nbytes, []))[1].append(name)
    counted.update(new)
    for size, names in new.values():
        yield Kept(node.scope, node.op.name, ", ".join(names), size)


def _batch_of(nodes: list[Node]) -> tuple[int, int]:
    """The batch size and the length of the texts: the shape of what the first table of tokens gave."""
    for node in nodes:
        if node.op.name == "embedding" and len(node.output_shapes[0]) == 3:
            batch_size, context, _ = node.output_shapes[0]
            return batch_size, context
    raise InputError("memory: no table of tokens led to this loss; leave model= out")
