"""The graph that operations leave behind, and the backward walk through it: nodes in reverse, gradients to the leaves.

Reverse mode, in one paragraph. Let L be the scalar at the end and dX short for dL/dX. A node computed y = f(x1, x2).
Let J_i be the Jacobian of y with respect to x_i. The chain rule gives dx_i = J_i^T dy: the walk maps dy to all dx_i. If
x1 went into several operations, dx1 is the sum of what each returns, so a node may run only when every one of its
consumers has (a topological order). The order is found by counting consumers, without recursion, so depth is limited by
memory alone. The core of it, for nodes that have one output and are given in the order in which they ran:

    gradient = {root: dL_droot}
    for node in reversed(nodes):
        dy = gradient.pop(node, None)
        if dy is None:
            continue  # L does not depend on it
        for x, dx in zip(node.inputs, node.backward(dy, node.saved)):
            gradient[x] = gradient[x] + dx if x in gradient else dx

`run_backward` below elaborates it: it finds the order, frees what is used up, adds in place where nobody else holds the
array, and delivers to the leaves' `grad`. One line, in `node_backward`, calls every operation's backward: a breakpoint
there with the condition `node.scope == "h.0.ln_2"` stops at any of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any

from minillm import backend
from minillm.backend import Array
from minillm.errors import GraphError, ShapeError
from minillm.grad_mode import state
from minillm.leaves import Into, accumulate, add_to_leaf, claim, deliver, lock, release, store_claimed

Op = Any  # an autograd.Op
Tensor = Any  # an autograd.Tensor, which is built on this file


class Version:
    """The number of in-place writes to an array, shared by every tensor that shares the array."""

    __slots__ = ("number",)

    def __init__(self, number: int = 0) -> None:
        self.number = number


FROZEN = -1  # the version of an array that a graph may need and that nobody may write to


class Node:
    """An operation that was run: the arrays for its backward, the destinations of its gradients, and its origin.

    `edges[i]` says where the gradient of input i goes: None (nowhere), `(node, output index)`, or `(leaf, version)`
    with the version that the leaf had in the forward. `constants` are the versions of tensors that need no gradient
    but whose arrays the backward may read: `(version, its number in the forward, input)`.
    """

    __slots__ = (
        "backward",
        "bfloat16",
        "constants",
        "edges",
        "hooks",
        "input_shapes",
        "multiple_outputs",
        "op",
        "output_shapes",
        "saved",
        "scope",
        "watchers",
        "where",
        "writes_into",
    )

    def __init__(self, op, backward, writes_into, saved, edges, input_shapes, constants, outputs, where):
        self.op: Op = op
        self.backward: Callable = backward
        self.writes_into: bool = writes_into
        self.saved: Any = saved
        self.edges: Any = edges  # None once a backward has used and released the node
        self.input_shapes: tuple = input_shapes
        self.constants: list = constants
        self.multiple_outputs: bool = type(outputs) is tuple
        self.output_shapes: tuple = tuple([y.shape for y in outputs]) if self.multiple_outputs else (outputs.shape,)
        dtype = outputs[0].dtype if self.multiple_outputs else outputs.dtype
        self.bfloat16: Any = dtype if dtype.kind == "V" else None  # the dtype of the outputs, if it is that
        self.where: tuple[CodeType, int] = where
        self.scope: str = state.scope
        self.watchers: list | None = None  # (output index, weak reference to a tensor with retain_grad)
        self.hooks: list | None = None  # (output index, function of the gradient)

    def location(self) -> str:
        """`file.py:76`, the line that called the operation; worked out only when asked for."""
        code, position = self.where
        line = next((p[0] for i, p in enumerate(code.co_positions()) if i == position // 2), None)
        return f"{code.co_filename.rsplit('/', 1)[-1]}:{line or code.co_firstlineno}"

    def describe(self) -> str:
        """`layernorm -> (8, 256, 768) at gpt2.py:76 in h.3.ln_1`, for errors and tables."""
        shapes = ", ".join(map(str, self.output_shapes))
        return f"{self.op.name} -> {shapes} at {self.location()}" + (f" in {self.scope}" if self.scope else "")

    def __repr__(self) -> str:
        return f"Node({self.describe()})"


class Backward:
    """A finished backward: its node, the gradients that reached it, those that it returned, and its seconds.

    `douts` has one gradient per output, None for an output that no gradient reached; `dinputs` one per input.
    """

    __slots__ = ("dinputs", "douts", "node", "op", "scope", "seconds")

    def __init__(self, node: Node, douts: list, dinputs: tuple, seconds: float):
        self.node = node
        self.op: Op = node.op
        self.scope = node.scope
        self.douts = douts
        self.dinputs = dinputs
        self.seconds = seconds


class Hook:
    """The result of register_hook: `remove()` ends the hook."""

    def __init__(self, hooks: list, entry: tuple[int, Callable]):
        self._hooks, self._entry = hooks, entry
        hooks.append(entry)

    def remove(self) -> None:
        """End the hook; a second time does nothing."""
        self._hooks[:] = [entry for entry in self._hooks if entry is not self._entry]


# --- the walk ------------------------------------------------------------------------------------------------------


def run_backward(roots: list[tuple[Tensor, Array]], keep_graph: bool, wanted: dict | None = None) -> None:
    """Send the gradients of the roots through the graph; each leaf gets its own into `grad`.

    wanted: instead, only these get a gradient, and no `grad` changes: its keys are `id(leaf)` or (node, output index),
    and its values become the gradients, or stay None where there is none. Nothing below them runs or is released.
    """
    late: dict[int, tuple[Tensor, tuple]] = {}  # leaves whose hooks, or whose caller, need the complete gradient
    # For each node, per output: the gradient so far, and whether the engine may add into that array.
    arrived: dict[Node, list] = {}
    for root, gradient in roots:
        if root.node is None:
            deliver(root, gradient, False, late, wanted)
        else:
            slots = arrived.setdefault(root.node, [None] * len(root.node.output_shapes))
            slots[root.index] = accumulate(slots[root.index], gradient, False)
    waiting = _count_consumers(arrived)
    needed = None if wanted is None else _leading_to(wanted, waiting, arrived)
    ready = [node for node in arrived if waiting[node] == 0]
    while ready:
        node = ready.pop()
        douts = [None if slot is None else slot[0] for slot in arrived.pop(node, ())]
        if douts and (node.hooks is not None or node.watchers is not None or wanted is not None):
            _shown(node, douts, wanted)
        if needed is not None and node not in needed:
            continue
        dinputs = node_backward(node, douts, wanted)
        owned = not node.op.aliases
        for edge, dinput in zip(node.edges, dinputs, strict=True):
            if edge is None:
                continue
            target, number = edge
            if not isinstance(target, Node):
                if dinput is not None:
                    deliver(target, dinput, owned, late, wanted)
                continue
            if dinput is not None:
                if target.bfloat16 is not None and dinput.dtype != target.bfloat16:  # NumPy computed it in float32
                    dinput = dinput.astype(target.bfloat16)
                slots = arrived.setdefault(target, [None] * len(target.output_shapes))
                slots[number] = accumulate(slots[number], dinput, owned)
            waiting[target] -= 1
            if waiting[target] == 0:
                ready.append(target)
        if not keep_graph:
            node.saved = node.edges = None
        del douts, dinputs, dinput  # the arrays of this node must not live on while the next one runs
    for leaf, (gradient, owned) in late.values():
        for _, hook in leaf.hooks or ():
            gradient, owned = _hooked(hook, gradient), False
        if wanted is None:
            add_to_leaf(leaf, gradient, owned)
        else:
            wanted[id(leaf)] = backend.as_array(gradient).astype(leaf.dtype, copy=not owned)


def _count_consumers(roots: Iterable[Node]) -> dict[Node, int]:
    """Count the gradients that each node must wait for, among the nodes that lead to the roots."""
    counts = dict.fromkeys(roots, 0)
    stack = list(counts)
    while stack:
        node = stack.pop()
        if node.edges is None:
            raise GraphError(
                f"backward: the graph of {node.describe()} was released by an earlier backward; "
                "run the forward again, or call the first backward with keep_graph=True"
            )
        for edge in node.edges:
            if edge is not None and isinstance(edge[0], Node):
                parent = edge[0]
                if parent in counts:
                    counts[parent] += 1
                else:
                    counts[parent] = 1
                    stack.append(parent)
    return counts


def _leading_to(wanted: dict, counts: dict[Node, int], roots: Iterable[Node]) -> set[Node]:
    """The nodes whose backward must run for the wanted gradients."""
    left, ready, order = dict(counts), [node for node in roots if counts[node] == 0], []
    while ready:
        order.append(node := ready.pop())
        for edge in node.edges:
            if edge is not None and isinstance(edge[0], Node):
                left[edge[0]] -= 1
                if left[edge[0]] == 0:
                    ready.append(edge[0])
    outputs = {key[0] for key in wanted if isinstance(key, tuple)}
    needed: set[Node] = set()
    for node in reversed(order):  # inputs before what uses them
        for edge in node.edges:
            if edge is not None and (id(edge[0]) in wanted or edge[0] in outputs or edge[0] in needed):
                needed.add(node)
                break
    return needed


def _shown(node: Node, douts: list, wanted: dict | None) -> None:
    """Show the whole gradients of a node's outputs to hooks, which may replace them, and to those who keep them."""
    for index, hook in node.hooks or ():
        if douts[index] is not None:
            douts[index] = _hooked(hook, douts[index])
    for index, reference in node.watchers or ():
        watched = reference()
        if watched is not None and douts[index] is not None:
            with lock:
                watched.grad = douts[index].copy() if watched.grad is None else watched.grad + douts[index]
    for index, dout in enumerate(douts):
        if dout is not None and wanted is not None and (node, index) in wanted:
            wanted[node, index] = backend.as_array(dout).copy()


def _hooked(hook: Callable, gradient: Array) -> Array:
    """Apply a hook to a copy of a gradient, because the array may be another tensor's gradient too."""
    result = hook(gradient.copy())
    if result is None:
        return gradient
    result = backend.as_array(result)
    if result.shape != gradient.shape:
        raise ShapeError(
            f"register_hook: the hook returned a gradient of shape {result.shape} for one of shape {gradient.shape}; "
            "return one of the same shape, or None to leave it as it is"
        )
    return result.astype(gradient.dtype, copy=False)


def node_backward(node: Node, douts: list, wanted: dict | None) -> Any:
    """The gradients of a node's inputs, checked; an error says which operation of the forward it belongs to.

    Gradients that the operation wrote into leaves are there when this returns, and None in the list.
    """
    edges = node.edges
    for dout in douts:
        if dout is not None:
            break
    else:  # No gradient reached this node. The nodes of its inputs must still be told that it is done.
        return [None] * len(edges)
    _check_versions(node)
    observers = state.observers
    dout = tuple(douts) if node.multiple_outputs else douts[0]
    claimed: list[int] = []  # inputs
    try:
        arguments: tuple = (dout, node.saved)
        if node.writes_into:
            into: list[Into | None] = [None] * len(edges)
            seen = observers and any(one.on_backward is not None for one in observers)  # alone, and not in a sum
            if wanted is None and (not seen or backend.is_abstract()):
                leaves = [None if edge is None or isinstance(edge[0], Node) else edge[0] for edge in edges]
                claim(leaves, claimed, into)
            arguments = (dout, node.saved, tuple(into))
        started = _announced(observers, node, douts) if observers else 0.0
        dinputs = node.backward(*arguments)  # the line that calls every backward
        if type(dinputs) is not tuple or len(dinputs) != len(edges):
            raise GraphError(
                f"backward of {node.op.name}: returned {dinputs if type(dinputs) is not tuple else len(dinputs)} for "
                f"{len(edges)} inputs; return a tuple with one gradient (or None) per input of its forward"
            )
        for position, (edge, shape, dinput) in enumerate(zip(edges, node.input_shapes, dinputs, strict=True)):
            if edge is not None and dinput is not None and dinput.shape != shape:
                raise ShapeError(
                    f"backward of {node.op.name}: the gradient of input {position} has shape {dinput.shape}, but the "
                    f"input has shape {shape}; sum over the broadcast axes"
                )
        seconds = time.perf_counter() - started if observers else 0.0
        if claimed:
            dinputs = store_claimed(leaves, claimed, into, dinputs, not node.op.aliases)
    except Exception as error:
        error.add_note(f"in the backward of {node.describe()}")
        raise
    finally:
        if claimed:
            release(leaves, claimed)
    if observers:
        call = Backward(node, douts, dinputs, seconds)
        for observer in observers:
            if observer.on_backward is not None:
                observer.on_backward(call)
    return dinputs


def _announced(observers: tuple, node: Node, douts: list) -> float:
    """Tell the observers that a backward is about to run; returns the time at which it begins."""
    for observer in observers:
        if observer.before_backward is not None:
            observer.before_backward(node, douts)
    return time.perf_counter()


def _check_versions(node: Node) -> None:
    """Raise GraphError if an array that the node's backward reads was written to in place since the forward."""
    for edge in node.edges:
        if edge is not None and not isinstance(edge[0], Node) and edge[0]._version.number != edge[1]:
            raise GraphError(
                f"backward: {edge[0]!r} was updated by the optimiser after {node.describe()} used it, or was changed "
                "in place; call backward before step, or run the forward again"
            )
    for version, number, position in node.constants:
        if version.number != number:
            raise GraphError(
                f"backward: input {position} of {node.describe()} was changed in place after it was used; call "
                "backward before that, or write x = x + ... for x += ..."
            )
