"""The gradient of a matrix product, where one matrix serves a whole batch.

The forward is y = a @ b, with a (B, M, K), b (K, N) and y (B, M, N): every item of the batch is multiplied by the
same matrix b. Given dy, the gradient of the loss with respect to y, write those with respect to a and b.
"""

from __future__ import annotations

from minillm.exercises.exercise import Exercise
from minillm.ops.matmul import Saved
from minillm.ops.matmul import matmul_backward as engine_backward


def matmul_backward(dy, a, b):
    """Return da (B, M, K) and db (K, N); dy is (B, M, N), a is (B, M, K), b is (K, N)."""
    raise NotImplementedError("replace this line")


def right(dy, a, b):
    return engine_backward(dy, Saved(a, b))


def cases(rng):
    for B, M, K, N in ((1, 3, 3, 3), (2, 3, 3, 3), (3, 4, 2, 5), (2, 1, 4, 3), (4, 5, 1, 1)):
        yield dict(dy=rng.normal(size=(B, M, N)), a=rng.normal(size=(B, M, K)), b=rng.normal(size=(K, N)))


EXERCISE = Exercise(
    starter=matmul_backward,
    returns="da db",
    right=right,
    cases=cases,
    hints=(
        "Write one element out: y[m, n] is the sum over k of a[m, k] b[k, n]. Which y does a[m, k] reach?",
        "The element a[m, k] reaches y[m, n] for every n, with the slope b[k, n]. Its gradient is a sum over n.",
        "Such sums are matrix products of dy with the other matrix. The shapes say which one must be transposed.",
        "The matrix b is used by every item of the batch, so its gradient is the sum over the items.",
    ),
    read="minillm/ops/matmul.py",
)


def turned(x):
    return x.swapaxes(-1, -2)


@EXERCISE.mistake("In da, b is not transposed. The sum goes over the columns of y, which are the columns of b.")
def b_not_transposed(dy, a, b):
    return dy @ b, (turned(a) @ dy).sum(axis=0)


@EXERCISE.mistake("In db, a is not transposed. The sum goes over the rows of y, which are the rows of a.")
def a_not_transposed(dy, a, b):
    return dy @ b.T, (a @ dy).sum(axis=0)


@EXERCISE.mistake("db comes out transposed: an element db[k, n] collects a[m, k] dy[m, n] over the rows m.")
def db_transposed(dy, a, b):
    return dy @ b.T, (turned(dy) @ a).sum(axis=0)


@EXERCISE.mistake("db still has the axis of the batch. Every item used the same b, so the gradients are added up.")
def batch_not_summed(dy, a, b):
    return dy @ b.T, turned(a) @ dy


@EXERCISE.mistake("db is the mean over the batch. Each item used b in full, so the gradients are added up.")
def batch_averaged(dy, a, b):
    return dy @ b.T, (turned(a) @ dy).mean(axis=0)


@EXERCISE.mistake("db has the first item of the batch alone; every item used b.")
def first_item_alone(dy, a, b):
    return dy @ b.T, a[0].T @ dy[0]


@EXERCISE.mistake("da is an elementwise product; each element of a reaches a whole row of y.")
def elementwise(dy, a, b):
    return dy * b.T, (turned(a) @ dy).sum(axis=0)
