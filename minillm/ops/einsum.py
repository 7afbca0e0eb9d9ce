"""Sums of products by letters (Einstein's notation): `einsum("bik,bkj->bij", a, b)` is a product of stacks of matrices.

A letter names an axis, the same wherever it stands. The result has the letters after the arrow, and every element of
it is the sum, over all values of all other letters, of the product of one element from each operand:

    Y[out] = sum over all letters not in out of  X_1[in_1] X_2[in_2] ...

Backward. dY[out] takes part in dX_1[in_1] wherever the letters agree, times the other factors of that product:

    dX_1[in_1] = sum over all letters not in in_1 of  dY[out] X_2[in_2] ...

which is an einsum again. It needs every letter of in_1 in `out` or in another operand; so a letter that stands in one
operand alone is summed before, and one that an operand has twice is its diagonal, both by operations of their own.

Two factors are multiplied as stacks of matrices: with the axes in the order (shared and kept, kept of the left,
summed) and (shared and kept, summed, kept of the right), a matrix product sums over the middle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from minillm import backend
from minillm.autograd import Op, Tensor
from minillm.backend import Array
from minillm.errors import InputError, ShapeError
from minillm.ops.broadcast import broadcast_to
from minillm.ops.join import tensors_of
from minillm.ops.reduce import sum
from minillm.ops.triangle import diagonal

__all__ = ["einsum"]


class Saved(NamedTuple):
    """Everything that the forward keeps for the backward."""

    factors: tuple[Array, ...]
    letters: tuple[str, ...]  # of each factor, one for each of its axes
    out: str  # the letters of the result


def einsum_forward(*factors, letters, out):
    y = contract(factors, letters, out)  # (B, I, J) for "bik,bkj->bij"
    return y, Saved(factors, letters, out)


def einsum_backward(dy, saved):
    factors, letters, out = saved
    dfactors = []
    for i, own in enumerate(letters):
        others = [dy, *factors[:i], *factors[i + 1 :]]
        dfactors.append(contract(others, [out, *letters[:i], *letters[i + 1 :]], own))  # (B, I, K), then (B, K, J)
    return tuple(dfactors)


EINSUM = Op("einsum", einsum_forward, einsum_backward, aliases=True)


def contract(factors: Sequence[Array], letters: Sequence[str], out: str) -> Array:
    """The sum of products with the letters `out`, made from left to right.

    A letter is summed as soon as neither a later factor nor the result has it. None stands in one factor alone.
    """
    total, have = factors[0], letters[0]
    for i in range(1, len(factors)):
        needed = {*out}.union(*letters[i + 1 :])
        total, have = multiply(total, have, factors[i], letters[i], needed)
    return total.transpose([have.index(letter) for letter in out])


def multiply(a: Array, in_a: str, b: Array, in_b: str, needed: set[str]) -> tuple[Array, str]:
    """The product of two factors, summed over the letters of both that nothing needs; and its letters."""
    size = dict(zip(in_a + in_b, a.shape + b.shape, strict=True))
    shared = "".join(letter for letter in in_a if letter in in_b and letter in needed)
    summed = "".join(letter for letter in in_a if letter in in_b and letter not in needed)
    left = "".join(letter for letter in in_a if letter not in in_b)
    right = "".join(letter for letter in in_b if letter not in in_a)

    def stack(x: Array, have: str, rows: str, columns: str) -> Array:
        shape = [size[letter] for letter in shared]
        shape += [math.prod(size[letter] for letter in group) for group in (rows, columns)]
        return x.transpose([have.index(letter) for letter in shared + rows + columns]).reshape(shape)

    if summed:
        product = backend.matmul(stack(a, in_a, left, summed), stack(b, in_b, summed, right))
    else:
        product = stack(a, in_a, left, "") * stack(b, in_b, "", right)
    have = shared + left + right
    return product.reshape([size[letter] for letter in have]), have


# --- the notation --------------------------------------------------------------------------------------------------


def einsum(equation: str, *operands: Any) -> Tensor:
    """The sum of products that `equation` describes, such as "ij,jk->ik"; see the top of the file.

    Without an arrow the result has, in alphabetical order, the letters that stand once. `...` stands for any number
    of axes in front or between, which broadcast; so do axes of size 1. Spaces mean nothing.
    Raises: InputError for an equation that is none; ShapeError for operands that do not fit it.
    """
    if not isinstance(equation, str):
        raise InputError(f"einsum: the equation is a {type(equation).__name__}; give a text such as 'ij,jk->ik' first")
    given = operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    tensors = tensors_of("einsum", given)
    letters, out = _parse(equation, [x.ndim for x in tensors])
    sizes: dict[str, int] = {}
    for i, own in enumerate(letters):
        tensors[i], letters[i] = _without_repeats(tensors[i], own)
        for letter, size in zip(letters[i], tensors[i].shape, strict=True):
            known = sizes.get(letter, 1)
            if size not in (1, known) and known != 1:
                raise ShapeError(
                    f"einsum: {letter} has size {size} in operand {i}, but {known} before, in {equation!r}"
                )
            sizes[letter] = known if size == 1 else size
    for i, own in enumerate(letters):
        elsewhere = {*out}.union(*letters[:i], *letters[i + 1 :])
        lone = tuple(axis for axis, letter in enumerate(own) if letter not in elsewhere)
        tensors[i] = sum(tensors[i], lone) if lone else tensors[i]
        letters[i] = "".join(letter for letter in own if letter in elsewhere)
        wanted = tuple(sizes[letter] for letter in letters[i])
        tensors[i] = tensors[i] if tensors[i].shape == wanted else broadcast_to(tensors[i], wanted)
    return EINSUM(*tensors, letters=tuple(letters), out=out)


def _without_repeats(x: Tensor, letters: str) -> tuple[Tensor, str]:
    """The diagonal over the axes of a letter that stands twice."""
    for letter in dict.fromkeys(letters):
        while letters.count(letter) > 1:
            first = letters.index(letter)
            second = letters.index(letter, first + 1)
            if x.shape[first] != x.shape[second]:
                raise ShapeError(
                    f"einsum: {letter} stands for two axes of sizes {x.shape[first]} and {x.shape[second]}"
                )
            x = diagonal(x, 0, first, second)
            letters = letters[:first] + letters[first + 1 : second] + letters[second + 1 :] + letter
    return x, letters


def _parse(equation: str, ndims: list[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result, with Greek ones for the axes that `...` stands for."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ndims):
        raise InputError(f"einsum: {equation!r} names {len(terms)} operands, but {len(ndims)} were given")
    for term in [*terms, right]:
        named = term.replace("...", "", 1)
        if not (named.isascii() and (named.isalpha() or not named)):
            raise InputError(f"einsum: {term!r} in {equation!r} is neither letters nor '...'")
    longest = 0
    for i, (term, ndim) in enumerate(zip(terms, ndims, strict=True)):
        covered = ndim - len(term.replace("...", ""))
        if covered < 0 or (covered and "..." not in term):
            raise ShapeError(f"einsum: {term!r} in {equation!r} does not name the {ndim} axes of operand {i}")
        longest = max(longest, covered)
    greek = "".join(chr(ord("\N{GREEK CAPITAL LETTER ALPHA}") + i) for i in range(longest))
    letters = []
    for term, ndim in zip(terms, ndims, strict=True):
        covered = ndim - len(term.replace("...", ""))
        letters.append(term.replace("...", greek[longest - covered :]))
    if not arrow:
        once = sorted(letter for letter in set(left) - {",", "."} if left.count(letter) == 1)
        return letters, greek + "".join(once)
    out = right.replace("...", greek)
    for letter in out:
        if out.count(letter) > 1 or letter not in "".join(letters):
            where = "twice in" if out.count(letter) > 1 else "only in"
            raise InputError(f"einsum: {letter!r} stands {where} the result of {equation!r}")
    return letters, out
