"""AdamW: a step of the optimiser.

AdamW keeps two running means for each weight: m of its gradient g, and v of its square. With betas = (b1, b2),

    m becomes b1 m + (1 - b1) g           v becomes b2 v + (1 - b2) g^2

Both begin at 0, so in the first steps they are too small; they are corrected for that before they are used. The
weight moves by lr times the corrected m, divided by the square root of the corrected v plus eps. Besides, the weight
itself shrinks by the share lr weight_decay of its old value: this decay does not go through m and v.
"""

from __future__ import annotations

import numpy as np

from minillm.exercises.exercise import Exercise
from minillm.optim.adamw import adam_update, adamw_update


def adamw_step(w, g, m, v, t, lr, betas, eps, weight_decay):
    """Return the new w, m and v, in new arrays.

    w, g, m and v are arrays of one shape. t is the number of this step, and 1 for the first one.
    """
    raise NotImplementedError("replace this line")


def right(w, g, m, v, t, lr, betas, eps, weight_decay):
    return adamw_update(w, g, m, v, t=t, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def cases(rng):
    w, g = rng.normal(size=(2, 4))
    yield dict(w=w, g=g, m=0 * w, v=0 * w, t=1, lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)
    for t, lr, eps, decay in ((2, 0.05, 1e-8, 0.0), (3, 0.1, 1e-2, 0.0), (10, 0.3, 1e-2, 0.2)):
        w, g, m, v = rng.normal(size=(4, 2, 3))
        yield dict(w=w, g=g, m=m, v=v**2, t=t, lr=lr, betas=(0.9, 0.95), eps=eps, weight_decay=decay)


EXERCISE = Exercise(
    starter=adamw_step,
    returns="w m v",
    right=right,
    cases=cases,
    hints=(
        "If all gradients so far were equal to g, what would m be after t steps? A geometric series.",
        "It would be (1 - b1^t) g. So what must m be divided by? The same holds for v, with b2.",
        "The corrected means are used for this step only; m and v are kept as they are.",
        "The decay takes the old weight: it is a factor before w, and g does not know of it.",
    ),
    read="minillm/optim/adamw.py",
)


def step(w, m, v, t, lr, betas, eps, decay):
    """The weight after a step with these means."""
    m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
    return (1 - lr * decay) * w - lr * m_hat / (np.sqrt(v_hat) + eps)


def means(g, m, v, betas):
    return betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2


@EXERCISE.mistake("m and v are used as they are; in the first steps they are too small, because they began at 0.")
def not_corrected(w, g, m, v, t, lr, betas, eps, weight_decay):
    m, v = means(g, m, v, betas)
    return (1 - lr * weight_decay) * w - lr * m / (np.sqrt(v) + eps), m, v


@EXERCISE.mistake("eps is inside the square root; it is added to the root.")
def eps_inside_the_root(w, g, m, v, t, lr, betas, eps, weight_decay):
    m, v = means(g, m, v, betas)
    m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
    return (1 - lr * weight_decay) * w - lr * m_hat / np.sqrt(v_hat + eps), m, v


@EXERCISE.mistake("The decay goes through the gradient, as in Adam with L2; in AdamW it acts on the weight alone.")
def decay_in_the_gradient(w, g, m, v, t, lr, betas, eps, weight_decay):
    return adam_update(w, g, m, v, t=t, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


@EXERCISE.mistake("The decay is not multiplied by lr.")
def decay_without_the_rate(w, g, m, v, t, lr, betas, eps, weight_decay):
    return right(w, g, m, v, t, lr, betas, eps, weight_decay / lr)


@EXERCISE.mistake("The decay is applied to the weight after its step; it takes the old weight.")
def decay_after_the_step(w, g, m, v, t, lr, betas, eps, weight_decay):
    w, m, v = right(w, g, m, v, t, lr, betas, eps, 0.0)
    return (1 - lr * weight_decay) * w, m, v


@EXERCISE.mistake("The decay has the wrong sign: the weight grows.")
def decay_makes_it_grow(w, g, m, v, t, lr, betas, eps, weight_decay):
    return right(w, g, m, v, t, lr, betas, eps, -weight_decay)


@EXERCISE.mistake("The corrected means are returned as m and v, and would be corrected again in the next step.")
def corrected_means_kept(w, g, m, v, t, lr, betas, eps, weight_decay):
    w, m, v = right(w, g, m, v, t, lr, betas, eps, weight_decay)
    return w, m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)


@EXERCISE.mistake("Steps are counted from 0 in the correction; t is 1 in the first step already.")
def counted_from_zero(w, g, m, v, t, lr, betas, eps, weight_decay):
    m, v = means(g, m, v, betas)
    return step(w, m, v, t + 1, lr, betas, eps, weight_decay), m, v


@EXERCISE.mistake("v is a running mean of the gradient; it is one of its square.")
def gradient_not_squared(w, g, m, v, t, lr, betas, eps, weight_decay):
    m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * abs(g)
    return step(w, m, v, t, lr, betas, eps, weight_decay), m, v


@EXERCISE.mistake("The step goes uphill: subtract it from the weight.")
def uphill(w, g, m, v, t, lr, betas, eps, weight_decay):
    down, m, v = right(w, g, m, v, t, lr, betas, eps, 0.0)
    return 2 * w - down - lr * weight_decay * w, m, v


@EXERCISE.mistake("The square root is missing: the step is divided by the root of v, not by v.")
def root_forgotten(w, g, m, v, t, lr, betas, eps, weight_decay):
    m, v = means(g, m, v, betas)
    return step(w, m, v**2 / (1 - betas[1] ** t), t, lr, betas, eps, weight_decay), m, v


@EXERCISE.mistake("The old means are used for the step; the new ones, with this gradient in them, belong there.")
def old_means_used(w, g, m, v, t, lr, betas, eps, weight_decay):
    return step(w, m, v, t, lr, betas, eps, weight_decay), *means(g, m, v, betas)
