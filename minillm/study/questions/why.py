"""`why(x, loss)`: the reason why the gradient of x is None, zero, in part zero, or so large, and what to do.

    print(minillm.study.why(model.h[0].mlp.fc.weight, loss))      # before loss.backward()

Without a loss, the tensor alone is looked at. With one whose graph is still there, its gradient is computed once more,
without a change of any `grad`, and watched on its way: paths.py finds where it ends, or grows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from minillm.autograd import Node, Parameter, Tensor
from minillm.backend import Array
from minillm.device import to_host
from minillm.errors import DtypeError, GraphError
from minillm.grad_mode import is_grad_enabled
from minillm.study.describe.abstract_step import arrays_of, owner
from minillm.study.questions.causes import Cause
from minillm.study.questions.paths import causes_on_the_way
from minillm.study.questions.statistics import Statistics
from minillm.study.questions.walk import all_leaves, name_of, operations


class Answer(NamedTuple):
    """The causes that were found, the most certain first; `print` shows each with what to do."""

    question: str
    causes: tuple[Cause, ...]

    def __repr__(self) -> str:
        lines = [self.question]
        for cause in self.causes:
            lines += [f"  {cause.name}: {cause.sentence}", f"      {cause.remedy}"]
        return "\n".join(lines)


def why(tensor: Tensor, loss: Tensor | None = None) -> Answer:
    """The reason why `tensor.grad` is None, zero, in part zero, or large, with what to do about it.

    loss: the tensor that backward begins at, before backward has released its graph (or after
    `backward(keep_graph=True)`).
    Raises: DtypeError for what is no tensor.
    """
    for name, value in {"tensor": tensor, "loss": loss}.items():
        if not isinstance(value, Tensor) and not (name == "loss" and value is None):
            raise DtypeError(f"why: {name} is a {type(value).__name__}; give a tensor")
    grad = _grad_of(tensor)
    return Answer(f"why: {_named(tensor)}, {_state(grad)}", tuple(_causes(tensor, grad, loss)))


def _grad_of(tensor: Tensor) -> Array | None:
    """The gradient, without the warning that reading an intermediate's gives."""
    grad = None if _is_not_kept(tensor) else tensor.grad
    return None if grad is None else to_host(grad)


def _is_not_kept(tensor: Tensor) -> bool:
    """True for an intermediate tensor whose gradient backward does not keep."""
    node = tensor.node
    return node is not None and not any(kept() is tensor for _, kept in node.watchers or ())


def _named(tensor: Tensor) -> str:
    if isinstance(tensor, Parameter) and tensor.name:
        return f"{tensor.name} {tensor.shape}"
    if tensor.node is not None:
        return f"the output {tensor.shape} of {tensor.node.op.name} at {tensor.node.location()}"
    return f"a leaf {tensor.shape}"


def _state(grad: Array | None) -> str:
    if grad is None:
        return "whose gradient is None"
    if not grad.any():
        return "whose gradient is 0 everywhere"
    return f"whose gradient is {Statistics.of(grad)}"


def _causes(tensor: Tensor, grad: Array | None, loss: Tensor | None) -> Iterator[Cause]:
    own = _without_gradient(tensor, loss)
    if own is not None:
        yield own
        return
    if tensor.node is not None and _is_not_kept(tensor):
        yield Cause(
            "intermediate",
            f"{tensor.node.op.name} made it, and backward keeps the gradients of leaves only",
            "call retain_grad() on it before backward, or read the grad of a leaf",
        )
    if loss is None:
        yield from _alone(tensor, grad)
        return
    ended = _ended(loss)
    if ended is not None:
        yield ended
        return
    nodes = operations("why", loss)
    if not _is_in(tensor, nodes):
        yield _left_out(tensor, loss, nodes)
        return
    if not np.isfinite(to_host(loss.data)).all():
        told = loss.item() if loss.numel() == 1 else Statistics.of(loss.data)
        yield _not_finite(f"the loss is {told}, so that its gradient says nothing")
        return
    try:
        found, fresh = causes_on_the_way(tensor, loss, nodes)
    except GraphError as error:
        yield Cause("backward fails", str(error), "run the forward again, and ask before anything is changed")
        return
    yield from found
    yield from _compared(tensor, grad, fresh, bool(found))


# --- the tensor alone ----------------------------------------------------------------------------------------------


def _without_gradient(tensor: Tensor, loss: Tensor | None) -> Cause | None:
    """The cause of a tensor that never gets a gradient, whatever is computed of it."""
    if tensor.requires_grad:
        return None
    if tensor.dtype.kind in "iub":
        return Cause(
            "whole numbers",
            f"it holds {tensor.dtype} numbers, and only floating-point numbers have gradients",
            "make it with dtype=float32, or ask for the gradient of the table that these numbers index",
        )
    if tensor._cut == "detach":
        return Cause("detached", "detach() made it, or what it was made of: gradients stop there", "leave detach() out")
    if tensor._cut == "no_grad":
        return Cause(
            "no_grad",
            "an operation made it while nothing was recorded, within no_grad() or inference_mode()",
            "compute it outside of no_grad()",
        )
    if not isinstance(tensor, Parameter):
        return Cause(
            "requires_grad is False",
            "it is a leaf that asks for no gradient, or was made of such: a Tensor of a NumPy array has no history",
            "make it with requires_grad=True, or keep to operations on tensors from the leaf to here",
        )
    trained = [] if loss is None or _ended(loss) else [name_of(leaf) for leaf in all_leaves(operations("why", loss))]
    adapters = [name for name in trained if ".lora." in f".{name}"]
    if adapters:
        return Cause(
            "frozen by LoRA",
            f"add_lora froze all weights of the model; adapters such as {adapters[0]} learn in their place",
            "ask for the gradient of an adapter, or train the whole model without LoRA",
        )
    return Cause(
        "frozen",
        "its requires_grad is False: requires_grad_(False) froze it, or add_lora, which leaves adapters to learn",
        "call requires_grad_() on it, before the optimiser is built",
    )


def _alone(tensor: Tensor, grad: Array | None) -> Iterator[Cause]:
    """The answer where no loss is given."""
    ask = "run the forward, and ask why(tensor, loss) before loss.backward()"
    if grad is None and not _is_not_kept(tensor):
        yield Cause(
            "no backward yet",
            "no backward has reached it since it was made, or since zero_grad() cleared its gradient",
            f"call loss.backward(); if it is None after that, {ask}",
        )
    elif grad is not None and not np.isfinite(grad).all():
        yield _not_finite("an operation made a NaN or an infinity on the way")
    elif grad is not None:
        yield Cause("a loss is needed", "the way of a gradient can be followed from the loss only", ask)


def _not_finite(sentence: str) -> Cause:
    return Cause(
        "not finite",
        sentence,
        "run forward and backward within minillm.study.nonfinite(), which names the operation and the line",
    )


# --- the loss ------------------------------------------------------------------------------------------------------


def _ended(loss: Tensor) -> Cause | None:
    """The cause of a loss that no backward can begin at."""
    if not loss.requires_grad:
        found = _without_gradient(loss, None)
        assert found is not None
        off = "" if is_grad_enabled() else "; nothing is recorded at this moment either"
        return found._replace(sentence=f"the loss has no graph: {found.sentence}{off}")
    if loss.node is not None and loss.node.edges is None:
        return Cause(
            "released",
            f"a backward has released the graph of {loss.node.describe()}",
            "run the forward again and ask before backward, or call loss.backward(keep_graph=True)",
        )
    if loss.node is None:
        return Cause("no operation", "the loss is a leaf itself, and nothing led to it", "give what was computed last")
    return None


def _is_in(tensor: Tensor, nodes: list[Node]) -> bool:
    if tensor.node is not None:
        return tensor.node in set(nodes)
    return any(leaf is tensor for leaf in all_leaves(nodes))


def _left_out(tensor: Tensor, loss: Tensor, nodes: list[Node]) -> Cause:
    """The cause of a tensor that the loss does not depend on."""
    for leaf in all_leaves(nodes):
        if leaf._version is not None and leaf._version is tensor._version:
            return Cause(
                "detached",
                f"the loss uses another leaf with its numbers, {name_of(leaf)}, which detach() made",
                "leave detach() out, or ask for the gradient of that leaf",
            )
    for node in nodes:
        for version, _, position in node.constants:
            if version is tensor._version:
                return Cause(
                    "detached",
                    f"input {position} of {node.describe()} is its detach(), where gradients stop",
                    "use the tensor itself there",
                )
    for node in nodes:
        held = _holds(tensor, node)
        if held:
            return Cause(
                "cut by NumPy",
                f"{node.describe()} reads {held}, which is no part of its history: a Tensor made of its array",
                "use the tensor itself, and operations of minillm in place of NumPy's",
            )
    return _unused(tensor, nodes)


def _holds(tensor: Tensor, node: Node) -> str:
    """The form in which a node keeps a tensor that it was not given: `its memory`, `a copy of its numbers`, or ""."""
    mine, data = owner(tensor.data), tensor.data
    for _, array in [*arrays_of(node.saved), *((("leaf", edge[0].data)) for edge in node.edges if _is_leaf(edge))]:
        if owner(array) is mine:
            return "its memory"
        alike = array.dtype == data.dtype and array.shape == data.shape and bool((array == data).all())
        if alike and data.size and data.min() != data.max():
            return "a copy of its numbers"
    return ""


def _is_leaf(edge: tuple | None) -> bool:
    return edge is not None and not isinstance(edge[0], Node)


def _unused(tensor: Tensor, nodes: list[Node]) -> Cause:
    leaves = [name_of(leaf) for leaf in all_leaves(nodes)]
    cuts = [
        f"input {position} of {node.describe()}"
        for node in nodes
        for position, (edge, shape) in enumerate(zip(node.edges, node.input_shapes, strict=True))
        if edge is None and shape is not None
    ]
    told = f"no operation leads from it to the loss, whose leaves are {', '.join(leaves[:4])}"
    told += f" and {len(leaves) - 4} more" if len(leaves) > 4 else ""
    remedy = "use it in the forward"
    if cuts:
        told += f"; without history there: {', '.join(cuts[:3])}"
        remedy += "; if one of these inputs was computed of it, compute that with operations on tensors, not on arrays"
    return Cause("unused in the loss", told, remedy)


# --- the gradient that is there ------------------------------------------------------------------------------------


def _compared(tensor: Tensor, grad: Array | None, fresh: Array | None, explained: bool) -> Iterator[Cause]:
    """The relation of the gradient that is there to that of this loss."""
    if fresh is None:
        return
    told = f"this loss gives it a gradient of {Statistics.of(fresh)}"
    if not np.isfinite(fresh).all():
        yield _not_finite(f"{told}: an operation made a NaN or an infinity on the way")
        return
    if grad is None:
        if not _is_not_kept(tensor) and not explained:
            yield Cause("no backward yet", f"{told}; no backward has brought it yet", "call loss.backward()")
        return
    square = float(np.vdot(fresh, fresh))
    factor = float(np.vdot(fresh, grad)) / square if square and np.isfinite(grad).all() else 0.0
    if square and np.allclose(grad, factor * fresh, rtol=1e-4, atol=1e-6 * float(abs(fresh).max())):
        times = round(factor)
        if times >= 2 and abs(factor - times) < 1e-3:
            yield Cause(
                "accumulated",
                f"it is {times} times the gradient of this loss: backward adds to what is there",
                "call zero_grad() before each backward",
            )
        elif abs(factor - 1) > 1e-3:
            yield Cause(
                "scaled",
                f"it is {factor:.4g} times the gradient of this loss: it was scaled after backward, as by clipping",
                "ask before the gradient is changed",
            )
        elif not explained:
            yield Cause("as it should be", told, "nothing is wrong with it")
    elif (grad != fresh).any():
        yield Cause(
            "of another loss",
            f"{told}, which is not what is there: it is of another loss, or adds to it",
            "call zero_grad() before backward, and ask for the loss that it belongs to",
        )
    elif not explained:
        yield Cause("as it should be", told, "nothing is wrong with it")
