"""LoRA: a frozen layer with a low-rank update, forward and backward.

A linear layer y = x W^T is frozen, and two thin matrices beside it are trained:

    y = x W^T + (alpha / r) x A^T B^T

with W (out, in), A (r, in), B (out, r). A new adapter has B = 0, so that the model computes what it did before.
Write y, and the gradients with respect to A, B and x, without making an array of the size of W.
"""

from __future__ import annotations

from minillm.exercises.exercise import Exercise
from minillm.ops.add_low_rank import add_low_rank_backward, add_low_rank_forward
from minillm.ops.linear import linear_forward


def lora(x, w, a, b, alpha, dy):
    """Return y (N, out), da (r, in), db (out, r), dx (N, in).

    x is (N, in), w is (out, in), a is (r, in), b is (out, r), dy is (N, out), and alpha is a number.
    """
    raise NotImplementedError("replace this line")


def right(x, w, a, b, alpha, dy):
    frozen, _ = linear_forward(x, w, None)
    y, saved = add_low_rank_forward(frozen, x, a, b, scale=alpha / a.shape[0], start=0, overwrite=False)
    through_w, dx, da, db = add_low_rank_backward(dy, saved)
    return y, da, db, dx + through_w @ w


def cases(rng):
    for N, inside, out, r, alpha in ((2, 3, 3, 3, 3.0), (4, 3, 5, 2, 6.0), (3, 6, 4, 4, 1.0)):
        x, dy, w = rng.normal(size=(N, inside)), rng.normal(size=(N, out)), rng.normal(size=(out, inside))
        yield dict(x=x, w=w, a=rng.normal(size=(r, inside)), b=rng.normal(size=(out, r)), alpha=alpha, dy=dy)
    yield dict(x=x, w=w, a=rng.normal(size=(2, 6)), b=rng.normal(size=(4, 2)) * 0, alpha=4.0, dy=dy)


EXERCISE = Exercise(
    starter=lora,
    returns="y da db dx",
    right=right,
    cases=cases,
    hints=(
        "Call h = x A^T, an array (N, r). Then y = x W^T + s h B^T, with s = alpha / r: two matrix products on top.",
        "Go back: db and the gradient of h from dy; then da from the gradient of h.",
        "x is used twice, by the frozen layer and by the adapter. A frozen weight gets no gradient, but x still does.",
        "The factor s is in the way from y to all that the adapter has: once in da, in db, and in its part of dx.",
    ),
    read="minillm/ops/add_low_rank.py",
)


def computed(x, w, a, b, dy, forward, to_a, to_b, to_x):
    """The results with a factor of its own in each place."""
    return x @ w.T + forward * x @ a.T @ b.T, to_a * (dy @ b).T @ x, to_b * dy.T @ (x @ a.T), dy @ w + to_x * dy @ b @ a


@EXERCISE.mistake("The factor alpha / r is missing from y.")
def forward_without_the_factor(x, w, a, b, alpha, dy):
    s = alpha / len(a)
    return computed(x, w, a, b, dy, 1, s, s, s)


@EXERCISE.mistake("The factor of the update is alpha alone; it is divided by r, the number of rows of A.")
def not_divided_by_the_rank(x, w, a, b, alpha, dy):
    return computed(x, w, a, b, dy, alpha, alpha, alpha, alpha)


@EXERCISE.mistake("The gradients lack the factor alpha / r, which stands before the adapter in the forward.")
def gradients_without_the_factor(x, w, a, b, alpha, dy):
    return computed(x, w, a, b, dy, alpha / len(a), 1, 1, 1)


@EXERCISE.mistake("The factor alpha / r is there twice in da: perhaps once in the gradient of h, and once more.")
def factor_twice(x, w, a, b, alpha, dy):
    s = alpha / len(a)
    return computed(x, w, a, b, dy, s, s**2, s, s)


@EXERCISE.mistake("dx has the adapter's part alone; the frozen layer passes the gradient on to x, too.")
def frozen_layer_passes_nothing(x, w, a, b, alpha, dy):
    y, da, db, dx = right(x, w, a, b, alpha, dy)
    return y, da, db, dx - dy @ w


@EXERCISE.mistake("dx has the frozen layer's part alone; x goes through the adapter, too.")
def adapter_passes_nothing(x, w, a, b, alpha, dy):
    s = alpha / len(a)
    return computed(x, w, a, b, dy, s, s, s, 0)


@EXERCISE.mistake("y is the update alone; it is added to what the frozen layer gives.")
def frozen_output_forgotten(x, w, a, b, alpha, dy):
    y, da, db, dx = right(x, w, a, b, alpha, dy)
    return y - x @ w.T, da, db, dx


@EXERCISE.mistake("In y, A and B are not transposed: a row of x is multiplied by each row of A.")
def not_transposed(x, w, a, b, alpha, dy):
    _, da, db, dx = right(x, w, a, b, alpha, dy)
    return x @ w.T + alpha / len(a) * x @ a @ b, da, db, dx


@EXERCISE.mistake("da is made as if B were not there; dy reaches A through B.")
def da_without_b(x, w, a, b, alpha, dy):
    y, _, db, dx = right(x, w, a, b, alpha, dy)
    return y, alpha / len(a) * dy.T[: len(a)] @ x, db, dx


@EXERCISE.mistake("db is made from x; B is multiplied by x A^T, so it needs that.")
def db_from_x(x, w, a, b, alpha, dy):
    y, da, _, dx = right(x, w, a, b, alpha, dy)
    return y, da, alpha / len(a) * dy.T @ x, dx
