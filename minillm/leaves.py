"""The gradients of leaves: where they are kept, and how several threads that meet in one leaf add to it.

A gradient is added to a leaf under one lock. An operation that writes a leaf's gradient itself (see engine.Pair) claims
the leaf while it does; where another thread holds the claim it makes an array of its own, which is added when the leaf
is free.
"""

from __future__ import annotations

import threading
from threading import get_ident
from typing import Any, NamedTuple

import numpy as np

from minillm import backend
from minillm.backend import Array

Tensor = Any  # an autograd.Tensor, which is built on this file


class Into(NamedTuple):
    """The destination of a leaf's gradient, for an operation that can write it there itself (see engine.Pair).

    With `add` the array already holds a gradient to add to; without, its contents mean nothing and are overwritten.
    """

    array: Array
    add: bool


def accumulate(slot: tuple | None, gradient: Array, owned: bool) -> tuple:
    """Add a gradient to those that arrived before, allocating only if neither array is the engine's to write to.

    `+=`, not `np.add(..., out=)`: NumPy hands out 0-d results as scalars, which no operation can write to.
    """
    if slot is None:
        return (gradient, owned)
    total, total_owned = slot
    if total_owned:
        total += gradient
        return (total, True)
    if owned:
        gradient += total
        return (gradient, True)
    return (total + gradient, True)


lock = threading.Lock()  # held while a leaf's grad changes
_free = threading.Condition(lock)  # told when leaves are released
_waiting = 0  # threads that wait for a leaf
_claims: dict[int, int] = {}  # id of a leaf whose gradient an operation is writing -> the thread that runs it


def claim(leaves: list[Tensor | None], claimed: list[int], into: list) -> None:
    """Reserve for this thread those leaves among a node's inputs that nobody writes to, and say where they are written.

    leaves: one per input, None where it is no leaf. A leaf that is two inputs gets its gradients added by the engine,
    as it has only one buffer; so does one with hooks.
    """
    with lock:
        for i, leaf in enumerate(leaves):
            if leaf is None or leaf.hooks is not None:
                continue
            if id(leaf) not in _claims:
                _claims[id(leaf)] = get_ident()
                claimed.append(i)
                into[i] = leaf._grad_destination()
            else:  # another thread's, or this one's as another input
                for other in claimed:
                    if leaves[other] is leaf:
                        into[other] = None


def store_claimed(leaves: list[Tensor | None], claimed: list[int], into: list, dinputs: tuple, owned: bool) -> list:
    """Store the gradients of claimed leaves; returns the others, with None in the place of each that is stored."""
    left = list(dinputs)
    with lock:
        for i in claimed:
            if into[i] is not None and left[i] is not None:
                store(leaves[i], left[i], owned)
                left[i] = None
    return left


def release(leaves: list[Tensor | None], claimed: list[int]) -> None:
    """End the claims on these leaves."""
    with lock:
        for i in claimed:
            del _claims[id(leaves[i])]
        if _waiting:
            _free.notify_all()


def deliver(leaf: Tensor, gradient: Array, owned: bool, late: dict, wanted: dict | None) -> None:
    """Add a gradient to a leaf now, or later, when all have come: for hooks, and for those who asked for it alone."""
    if leaf.data.dtype.kind == "V" and gradient.dtype != leaf.data.dtype:  # bfloat16, which NumPy computed in float32
        gradient, owned = gradient.astype(leaf.data.dtype), True
    if wanted is None and leaf.hooks is None:
        add_to_leaf(leaf, gradient, owned)
    elif wanted is None or id(leaf) in wanted:
        slot = late[id(leaf)][1] if id(leaf) in late else None
        late[id(leaf)] = leaf, accumulate(slot, gradient, owned)


def add_to_leaf(leaf: Tensor, gradient: Array, owned: bool) -> None:
    """Add a gradient to a leaf, as soon as no other thread writes there."""
    global _waiting
    with lock:
        while _claims and _claims.get(id(leaf), get_ident()) != get_ident():
            _waiting += 1
            _free.wait()
            _waiting -= 1
        store(leaf, gradient, owned)


def store(leaf: Tensor, gradient: Array, owned: bool) -> None:
    """Leaf gradients are the user's: they are never shared with another array."""
    if gradient is leaf.grad:  # the op wrote it there already
        return
    destination = leaf._grad_destination()
    if destination is None:
        gradient = backend.as_array(gradient)  # NumPy's results without dimensions are numbers, not arrays
        leaf.grad = gradient.astype(leaf.dtype, copy=not owned)
    elif destination.add:
        np.add(destination.array, gradient, out=destination.array)
    else:
        if gradient is not destination.array:
            destination.array[...] = gradient
        leaf.grad = destination.array
