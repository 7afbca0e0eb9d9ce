"""The causes of a gradient that ends or grows at an operation, with what to do about each.

Each explanation is checked on the arrays of the operation: "dead relu" is said only where no input is above 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Backward, Node
from minillm.backend import Array
from minillm.device import to_host
from minillm.study.describe.abstract_step import arrays_of
from minillm.study.questions.walk import name_of

PRODUCTS = ("mul", "matmul", "linear", "frozen_linear", "add_low_rank", "einsum")
NORMS = ("softmax", "log_softmax", "layernorm", "add_layernorm")
SATURATING = ("softmax", "log_softmax", "sigmoid", "tanh", "attention", "gelu", "silu", "erf", "softplus", "swiglu")
STEPS = ("floor", "ceil", "round", "trunc", "sign")
CHOICES = ("where", "maximum", "minimum", "clip", "amax", "amin")


class Cause(NamedTuple):
    """A cause, in a sentence, and what to do about it."""

    name: str
    sentence: str
    remedy: str


def _at(node: Node) -> str:
    return node.describe()


def _arrays(node: Node) -> dict[str, Array]:
    """The floating arrays that a node keeps, by their names."""
    return {name: to_host(array) for name, array in arrays_of(node.saved) if array.dtype.kind in "fV"}


# --- all of it is zero ---------------------------------------------------------------------------------------------


def cause_of_end(call: Backward, places: list[int]) -> Cause:
    """The cause of nothing but zeros leaving a backward towards the inputs at these places, where some arrive."""
    for explanation in ENDS:
        found = explanation(call, places)
        if found is not None:
            return found
    return Cause(
        "ends here",
        f"a gradient reaches {_at(call.node)}, and zeros leave it: its slope is 0 at these inputs",
        f"look at the inputs of {call.op.name}: print them with minillm.study.probe",
    )


def _ignored(call: Backward, places: list[int]) -> Cause | None:
    counted = _counted(call.node)
    if counted is None or counted.any():
        return None
    return Cause(
        "ignored targets",
        f"every target of {_at(call.node)} is ignore_index, so that the loss is 0 whatever the logits are",
        "give at least one target that counts; look at the labels of this batch",
    )


def _dead_relu(call: Backward, places: list[int]) -> Cause | None:
    if call.op.name != "relu":
        return None
    return Cause(
        "dead relu",
        f"no input of {_at(call.node)} is above 0 where a gradient arrives, and the slope of relu is 0 there",
        "lower the learning rate, give the layer before a smaller or positive bias, or use gelu or leaky_relu",
    )


def _multiplied_by_zero(call: Backward, places: list[int]) -> Cause | None:
    node = call.node
    if node.op.name not in PRODUCTS:
        return None
    names = [name_of(edge[0]) for i in places if (edge := node.edges[i]) is not None and not isinstance(edge[0], Node)]
    if node.op.name == "add_low_rank" and not _arrays(node)["b"].any():
        return Cause(
            "LoRA begins at zero",
            f"{' and '.join(names) or _at(node)} gets B^T dy, and B is 0 before the first step",
            "nothing: after the first step B is not 0 any more, and A gets its gradient",
        )
    zeros = [name for name, array in _arrays(node).items() if array.size and not array.any()]
    numbers = [value for value in node.saved if isinstance(value, (int, float)) and value == 0]
    if not zeros and not numbers:
        return None
    which = f"its {zeros[0]}" if zeros else "a factor"
    return Cause(
        "multiplied by zero",
        f"{_at(node)} multiplies by {which}, which is 0 everywhere",
        "look at where this factor comes from: weights that begin at 0, a mask, or a coefficient of the loss",
    )


def _constant_sum(call: Backward, places: list[int]) -> Cause | None:
    """A gradient that is one number along the axis of a softmax or a layer norm, whose outputs have a fixed sum."""
    if call.op.name not in NORMS or call.douts[0] is None:
        return None
    dout = to_host(call.douts[0])
    axis = getattr(call.node.saved, "axis", -1)
    if not np.allclose(dout, dout.mean(axis=axis, keepdims=True), rtol=1e-5):
        return None
    return Cause(
        "the sum is constant",
        f"all outputs of {_at(call.node)} get the same gradient, as from a sum, and their sum never changes",
        "weigh the outputs: a loss such as softmax(x).sum() is 1 for every x",
    )


def _saturated(call: Backward, places: list[int]) -> Cause | None:
    if call.op.name not in SATURATING:
        return None
    return Cause(
        "saturated",
        f"{_at(call.node)} is at an end of its range, where it is flat to the last digit",
        "make its inputs smaller: divide scores by the root of the head size, lower the rate, or normalise before it",
    )


def _certain(call: Backward, places: list[int]) -> Cause | None:
    if call.op.name != "cross_entropy":
        return None
    return Cause(
        "the loss is at its end",
        f"{_at(call.node)} gives every target the probability 1 to the last digit",
        "nothing is left to learn from this batch; look if the targets are in the input",
    )


def _padding(call: Backward, places: list[int]) -> Cause | None:
    if call.op.name != "embedding":
        return None
    return Cause(
        "padding",
        f"every id of {_at(call.node)} is padding_idx, whose row gets no gradient",
        "look at the ids of this batch, or leave padding_idx out",
    )


def _dropped(call: Backward, places: list[int]) -> Cause | None:
    if call.op.name != "dropout":
        return None
    return Cause("dropped", f"{_at(call.node)} drops every element", "lower its p, or call model.eval()")


def _flat(call: Backward, places: list[int]) -> Cause | None:
    if call.op.name not in STEPS:
        return None
    return Cause(
        "a step function",
        f"{_at(call.node)} is constant between its steps, so that its slope is 0",
        "leave it out of what is learned, or let the gradient pass: x + (round(x) - x).detach()",
    )


def _not_chosen(call: Backward, places: list[int]) -> Cause | None:
    if call.op.name not in CHOICES:
        return None
    return Cause(
        "not chosen",
        f"{_at(call.node)} takes none of its elements where a gradient arrives: the others, or a limit, are taken",
        "look at its condition or its limits",
    )


def _underflow(call: Backward, places: list[int]) -> Cause | None:
    dout = to_host(next(x for x in call.douts if x is not None))
    sizes = [float(np.abs(x).max(initial=0)) for x in _arrays(call.node).values()]
    numbers = call.node.saved if isinstance(call.node.saved, tuple) else ()
    sizes += [abs(float(x)) for x in numbers if isinstance(x, (float, np.floating))]
    factor = max([size for size in sizes if size < 1], default=1.0)
    if dout.dtype.kind != "f" or not 0 < float(abs(dout).max()) * factor < float(np.finfo(dout.dtype).tiny):
        return None
    return Cause(
        "underflow",
        f"the gradient that reaches {_at(call.node)} is at most {abs(dout).max():.1e}, and products of it round to 0 "
        f"in {dout.dtype}",
        "multiply the loss by a factor, and divide the gradients by it; or use float32 or bfloat16",
    )


ENDS: tuple[Callable[[Backward, list[int]], Cause | None], ...] = (
    _ignored,
    _underflow,
    _constant_sum,
    _dead_relu,
    _multiplied_by_zero,
    _saturated,
    _certain,
    _padding,
    _dropped,
    _flat,
    _not_chosen,
)


# --- some of it is zero --------------------------------------------------------------------------------------------


def _counted(node: Node) -> Array | None:
    """The share of each target of a cross-entropy in its loss; None for another operation."""
    if node.op.name != "cross_entropy":
        return None
    share = getattr(node.saved, "share", None)
    return to_host(node.saved.weight if share is None else share)


def causes_of_part(call: Backward, places: list[int]) -> list[Cause]:
    """The causes of zeros in a gradient that is not 0 everywhere."""
    found = []
    counted = _counted(call.node)
    if counted is not None and not counted.all():
        found.append(
            Cause(
                "ignored targets",
                f"{int((counted == 0).sum())} of {counted.size} targets of {_at(call.node)} are ignore_index, and "
                "what leads to them alone gets 0",
                "nothing, if these are padding or the prompt",
            )
        )
    if call.op.name == "relu":
        found += _dead_units(call)
    if call.op.name == "embedding":
        found += _rows_without_ids(call)
    return found


def _dead_units(call: Backward) -> list[Cause]:
    if call.dinputs[0].ndim == 0:
        return []
    dx, dy = call.dinputs[0].reshape(-1, call.dinputs[0].shape[-1]), call.douts[0]
    dead = int((~dx.any(axis=0) & dy.reshape(dx.shape).any(axis=0)).sum())
    if not dead:
        return []
    return [
        Cause(
            "dead relu",
            f"{dead} of {dx.shape[1]} units of {_at(call.node)} are at most 0 for all of the batch",
            "a few are usual; if they stay dead over many batches, lower the rate or use gelu or leaky_relu",
        )
    ]


def _rows_without_ids(call: Backward) -> list[Cause]:
    ids, (rows, _), padding = call.node.saved[:3] if len(call.node.saved) > 2 else (*call.node.saved[:2], None)
    found, used = [], np.unique(to_host(ids))
    if padding is not None and padding in used:
        told = f"row {padding} is padding_idx of {_at(call.node)}, whose gradient is 0 by definition"
        found.append(Cause("padding", told, "nothing; leave padding_idx out if this row is to learn"))
    if len(used) < rows:
        told = f"{rows - len(used)} of {rows} rows have an id that {_at(call.node)} was not given in this batch"
        found.append(Cause("ids that do not occur", told, "nothing: a row learns when its id occurs"))
    return found


# --- it grows ------------------------------------------------------------------------------------------------------


def cause_of_growth(call: Backward, growth: float) -> Cause:
    """The cause of an operation that makes a gradient larger by this factor."""
    node = call.node
    told = f"{_at(node)} makes the gradient {growth:.4g} times as large"
    counted = _counted(node)
    if (counted is not None and counted.size > 1 and counted.max() >= 1) or (
        node.op.name == "sum" and node.output_shapes[0] == ()
    ):
        return Cause(
            "summed loss",
            f"{told}: the loss is a sum over {call.dinputs[0].size if counted is None else counted.size} elements",
            'take the mean (reduction="mean"), so that the size does not depend on the batch',
        )
    if node.op.name in ("mul", "div") and node.output_shapes[0] == ():
        return Cause(
            "scaled loss", f"{told}: the loss is multiplied", "divide the gradients by the factor, or leave it out"
        )
    return Cause("amplified", told, GROWN.get(node.op.name, "look at its inputs, and at what it is multiplied by"))


GROWN: dict[str, Any] = {
    "div": "its divisor is small: add an eps",
    "sqrt": "its input is near 0, where a root is steep: add an eps",
    "log": "its input is near 0, where a logarithm is steep: add an eps",
    "exp": "its output is large: subtract a maximum first",
    "pow": "its slope is large here: limit the base",
    **dict.fromkeys(
        ["linear", "matmul", "frozen_linear"], "its weights or its inputs are large: normalise, or start smaller"
    ),
    **dict.fromkeys(
        ["layernorm", "rmsnorm", "add_layernorm"], "its input has hardly any spread: the slope is 1 over that"
    ),
}
