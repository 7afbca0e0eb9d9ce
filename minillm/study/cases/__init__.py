"""The gradient-check table: for every operation, the inputs that have broken backwards before.

A case is a function, and a recipe for its arrays. Every operation in `minillm.ops.OPS` has at least one; most have
many: operands stretched on either side, Python numbers, views that are not contiguous, axes of size 1, empty arrays,
numbers without axes, one tensor used twice, negative axes, and every setting of the operation.

To add a row for an operation, write it in the file of its kind: `arithmetic.py`, `reduce.py`, `shape.py` or
`layers.py`, in one of the functions that the file's `CASES` lists. `recipes.py` has `Case` and the recipes for arrays.
Functions that are made of several operations have rows too, under their own names: `losses.py`, and `heads.py` for the
heads of models.
"""

from minillm.study.cases import arithmetic, heads, layers, losses, reduce, shape
from minillm.study.cases.recipes import Case

__all__ = ["CASES", "Case"]

CASES: tuple[Case, ...] = (
    *(*arithmetic.CASES, *reduce.CASES, *shape.CASES, *layers.CASES),
    *(*losses.CASES, *heads.CASES),
)
