"""`table(loss)`: every operation that led to a loss, as a table."""

from __future__ import annotations

from typing import NamedTuple

from minillm.autograd import Node, Tensor
from minillm.counted import counted
from minillm.study.describe.abstract_step import owner
from minillm.study.questions.memory import kept_by
from minillm.study.questions.text import aligned, bytes_text
from minillm.study.questions.walk import all_leaves, leaves, name_of, operations, shapes_of


class Row(NamedTuple):
    """An operation of a graph."""

    op: str
    scope: str  # the layer that ran it
    where: str  # the line that called it, as file.py:76
    inputs: tuple[tuple[int, ...] | None, ...]  # shapes; None for an input that is no tensor
    outputs: tuple[tuple[int, ...], ...]  # shapes
    bytes: int  # that it keeps for its backward, and no operation before it
    parameters: tuple[str, ...]  # names of the leaves that it gives a gradient to
    node: Node


class Table(NamedTuple):
    """The operations of a graph in the order of the forward; backward visits them in the opposite order."""

    rows: tuple[Row, ...]

    def __repr__(self) -> str:
        head = ["", "operation", "layer", "called at", "inputs", "output", "keeps", "gives a gradient to"]
        rows = [
            [
                str(number),
                row.op,
                row.scope or "-",
                row.where,
                " ".join("-" if shape is None else str(shape) for shape in row.inputs),
                shapes_of(row.node),
                bytes_text(row.bytes) if row.bytes else "-",
                ", ".join(row.parameters) or "-",
            ]
            for number, row in enumerate(self.rows)
        ]
        kept = sum(row.bytes for row in self.rows)
        names = {name for row in self.rows for name in row.parameters}
        keep = counted(len(rows), "operation keeps", "operations keep")
        given = counted(len(names), "leaf its gradient", "leaves theirs")
        told = f"{keep} {bytes_text(kept)} for the backward, which gives {given}"
        return f"{aligned(head, rows, right=(0, 6))}\n{told}"


def table(loss: Tensor) -> Table:
    """Every operation that led to a loss: its layer, the line that called it, shapes, what it keeps, its parameters.

    Bytes count as in `memory`: an array that several operations keep counts at the first. `rows[i].node` is the node
    itself, with its `saved` and its `backward`.
    Raises: GraphError for a loss without a graph, or whose graph a backward has released.
    """
    nodes = operations("table", loss)
    counted = {id(owner(leaf.data)) for leaf in all_leaves(nodes)}
    return Table(
        tuple(
            Row(
                node.op.name,
                node.scope,
                node.location(),
                node.input_shapes,
                node.output_shapes,
                sum(kept.bytes for kept in kept_by(node, counted)),
                tuple(dict.fromkeys(name_of(leaf) for leaf in leaves(node))),
                node,
            )
            for node in nodes
        )
    )
