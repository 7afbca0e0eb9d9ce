"""The graph below a tensor, as the questions read it: its operations in order, its leaves, and their names."""

from __future__ import annotations

import linecache
from collections.abc import Iterator

from minillm.autograd import Node, Parameter, Tensor
from minillm.errors import DtypeError, GraphError


def operations(function: str, tensor: Tensor) -> list[Node]:
    """The operations that led to a tensor, each after those that made its inputs.

    Backward visits them in the opposite order. `function` is the name for errors.
    Raises: GraphError for a tensor without a graph, or whose graph a backward has released; DtypeError for no tensor.
    """
    if not isinstance(tensor, Tensor):
        raise DtypeError(f"{function}: loss is a {type(tensor).__name__}; give the tensor that backward begins at")
    if tensor.node is None:
        raise GraphError(
            f"{function}: no recorded operation made this tensor of shape {tensor.shape}; give a loss that was "
            "computed outside no_grad, from something with requires_grad=True"
        )
    consumers = _count_consumers(function, tensor.node)
    ready, order = [tensor.node], []
    while ready:  # the rule of backward.run_backward
        order.append(node := ready.pop())
        for parent in parents(node):
            consumers[parent] -= 1
            if consumers[parent] == 0:
                ready.append(parent)
    return order[::-1]


def _count_consumers(function: str, root: Node) -> dict[Node, int]:
    counts, stack = {root: 0}, [root]
    while stack:
        node = stack.pop()
        if node.edges is None:
            raise GraphError(
                f"{function}: a backward has released the graph of {node.describe()}; ask before loss.backward(), or "
                "call loss.backward(keep_graph=True)"
            )
        for parent in parents(node):
            if parent not in counts:
                counts[parent] = 0
                stack.append(parent)
            counts[parent] += 1
    return counts


def parents(node: Node) -> Iterator[Node]:
    """The operation that made each input of a node, once for every input."""
    yield from (edge[0] for edge in node.edges if edge is not None and isinstance(edge[0], Node))


def leaves(node: Node) -> Iterator[Tensor]:
    """The leaves among the inputs of a node that get a gradient."""
    yield from (edge[0] for edge in node.edges if edge is not None and not isinstance(edge[0], Node))


def all_leaves(nodes: list[Node]) -> list[Tensor]:
    """Every leaf of a graph that gets a gradient, once."""
    return list({id(leaf): leaf for node in nodes for leaf in leaves(node)}.values())


def name_of(leaf: Tensor) -> str:
    """The name of a parameter; `leaf (3, 4)` for a leaf without one."""
    return (leaf.name if isinstance(leaf, Parameter) else "") or f"leaf {leaf.shape}"


def shapes_of(node: Node) -> str:
    """The shapes of a node's outputs, such as `(2, 8)`."""
    return ", ".join(map(str, node.output_shapes))


def source_of(node: Node) -> str:
    """The line of code that called the operation, or nothing where its file cannot be read."""
    line = int(node.location().rpartition(":")[2])
    return linecache.getline(node.where[0].co_filename, line).strip()
