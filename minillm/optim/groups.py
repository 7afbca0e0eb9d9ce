"""The arguments of an optimiser: parameters, or groups of parameters with options of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from minillm.autograd import Parameter, Tensor
from minillm.errors import InputError


def decay_groups(parameters: Iterable[Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimiser: matrices with weight decay; biases and normalisation weights (vectors) without.

    Frozen parameters are in neither: they get no gradient, and need no moments.
    """
    members = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in members if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in members if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def listed(function: str, parameters: Any) -> list[Any]:
    """Parameters or groups as a list.

    Raises: InputError for an object that is no collection of them, and for a set, whose order differs from run to run.
    """
    advice = "give a list of parameters, such as model.parameters()"
    if hasattr(parameters, "parameters"):
        found = "a model"
    elif isinstance(parameters, (set, frozenset)):
        found, advice = "a set, which has no order", "give a list, so that every run has the same order"
    elif isinstance(parameters, Tensor):
        found, advice = "one tensor", "put it into a list"
    elif isinstance(parameters, (Mapping, str)) or not isinstance(parameters, Iterable):
        found = f"a {type(parameters).__name__}"
    else:
        return list(parameters)
    raise InputError(f"{function}: the parameters are {found}; {advice}")


def check_member(function: str, member: Any) -> None:
    """Raise InputError for an object that an optimiser cannot move: it moves leaves of floating point."""
    if isinstance(member, tuple):
        raise InputError(f"{function}: the parameters come with names; pass model.parameters(), which has none")
    if not isinstance(member, Tensor):
        raise InputError(f"{function}: a {type(member).__name__} is among the parameters; give tensors only")
    if member.node is not None:
        raise InputError(
            f"{function}: the tensor of shape {member.shape} is not a leaf: it was made by {member.node.describe()}; "
            "give the leaves that it was made from, or its detach()"
        )
    if member.dtype.kind in "iub":
        raise InputError(f"{function}: a tensor of {member.dtype} has no gradient; give floating-point parameters")
