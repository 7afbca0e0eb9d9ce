"""Collective operations with their backward: Megatron's f and g, and a gather.

f and g are each the other's backward (Shoeybi et al. 2019, "Megatron-LM", arXiv:1909.08053, section 3):

                             forward                     backward
    f = copy_to_ranks        nothing                     the sum of the ranks' gradients
    g = reduce_from_ranks    the sum of the ranks' x     nothing
"""

from __future__ import annotations

import itertools

import numpy as np

from minillm.autograd import Op, Tensor
from minillm.backend import Array
from minillm.errors import ShapeError
from minillm.parallel.communicator import Communicator, bounds


def copy_forward(x, *, communicator):
    return x, communicator


def copy_backward(dout, communicator):
    dx = dout.copy(order="C")
    communicator.all_reduce(dx, what="activation gradients").wait()
    return (dx,)


COPY = Op("copy_to_ranks", copy_forward, copy_backward)


def copy_to_ranks(x: Tensor, communicator: Communicator) -> Tensor:
    """f: x itself, which is the same on all ranks; the backward sums the gradients of what each rank made of it.

    Bytes: backward, an all_reduce of x.
    """
    return COPY(x, communicator=communicator)


def reduce_forward(x, inside, *, communicator, overwrite):
    y = x if overwrite and x.flags.c_contiguous else x.copy(order="C")
    if inside is not None:
        np.copyto(y, 0, where=~inside[..., None])  # y[~inside] = 0 would have a GPU's host wait to count them
    communicator.all_reduce(y, what="activations").wait()
    return y, inside


def reduce_backward(dout, inside):
    if inside is None:
        return dout, None
    dx = dout.copy()
    np.copyto(dx, 0, where=~inside[..., None])
    return dx, None


REDUCE = Op("reduce_from_ranks", reduce_forward, reduce_backward, aliases=True)


def reduce_from_ranks(
    x: Tensor, communicator: Communicator, inside: Array | None = None, overwrite: bool = False
) -> Tensor:
    """g: the sum of the ranks' x, the same on all ranks; the backward passes the gradient on as it is.

    inside: which rows of x count, boolean, in x's shape without its last axis; this rank's other rows add 0 to the sum.
    overwrite: write the sum into the memory of x, which nothing else may use afterwards.
    Bytes: forward, an all_reduce of x.
    """
    return REDUCE(x, inside, communicator=communicator, overwrite=overwrite)


def gather_forward(x, *, size, communicator):
    edges = bounds(size, communicator.size)
    widest = edges[1]
    mine = np.zeros_like(x, shape=(*x.shape[:-1], widest), order="C")  # all parts of an all_gather are of one size
    mine[..., : x.shape[-1]] = x
    parts = np.empty_like(mine, shape=(communicator.size, *mine.shape))
    communicator.all_gather(mine, parts, what="activations").wait()
    counts = [stop - first for first, stop in itertools.pairwise(edges)]
    whole = np.concatenate([part[..., :count] for part, count in zip(parts, counts, strict=True)], axis=-1)
    return whole, slice(edges[communicator.rank], edges[communicator.rank + 1])


def gather_backward(dout, mine):
    return (dout[..., mine],)


GATHER = Op("gather_from_ranks", gather_forward, gather_backward, aliases=True)


def gather_from_ranks(x: Tensor, communicator: Communicator, size: int) -> Tensor:
    """The ranks' x side by side along the last axis, `size` columns in all, divided as `communicator.bounds` says.

    The forward is an all_gather; the backward takes this rank's columns of the gradient, which is the same on all.
    Raises: ShapeError for an x of another number of columns.
    """
    first, stop = bounds(size, communicator.size)[communicator.rank : communicator.rank + 2]
    if x.shape[-1] != stop - first:
        raise ShapeError(
            f"gather_from_ranks: x has {x.shape[-1]} columns, but rank {communicator.rank} has {stop - first} of {size}"
        )
    return GATHER(x, size=size, communicator=communicator)
