"""The settings of the optimiser and the length of the training, against the weights and the data that they meet."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from minillm.study.doctor.case import Case
from minillm.study.doctor.finding import Finding

REACH, LOST = 2.5, 30.0  # times the size of what a layer computes, by which a step may move it; and is lost
USUAL = 1e-3  # of a weight's size, which a step of AdamW usually moves it
WAY = 0.5  # of a weight's size, which all steps together must be able to move it in a new model
MOMENTUM = 10.0  # times its size, to which momentum 0.9 adds up a step
DECAY = 0.1  # a usual weight decay; where it forgets, the learning rate is to blame
FORGETS = 200  # steps, after which weight decay may have undone what a step has taught
DROPOUT = 0.5  # the largest probability that is in use (Srivastava et al. 2014)
REPEATS = 40  # epochs after which more of them teach nothing, by Muennighoff et al. 2023
SEVERAL = 4  # epochs that teach as much as new data


def learning_rate(case: Case) -> Iterator[Finding]:
    """Compare the step of AdamW, about lr for each weight, with the weights.

    In its first steps AdamW moves each weight by about lr, whatever the gradient. A matrix whose weights have the root
    mean square r is then changed by a share lr/r a step; 1e-3 is usual. What it computes changes by more: the signs of
    a gradient of few directions agree, so the step has a spectral norm of up to lr sqrt(n m), and a random matrix of
    r (sqrt(n) + sqrt(m)) (Yang et al. 2023, arXiv:2310.17813). The medians over the matrices count. Measured: a narrow
    model, for which the step is 14 times the norm, trains as well as with a rate of 1/100; one of 42 times does not.
    """
    config = case.config
    if config.lr == 0:
        yield Finding(
            "error",
            "learning-rate",
            "the learning rate is 0, so no weight ever changes",
            "give --lr, such as 1e-3 for a small model and 3e-4 for a large one",
            "lr in metrics.jsonl",
        )
    if config.lr == 0 or config.optimizer != "adamw":
        return
    matrices = [one.data for one in case.trained_parameters().values() if one.ndim == 2 and one.data.any()]
    if not matrices:
        return
    sizes = [float(np.sqrt(np.mean(np.square(one, dtype=np.float64)))) for one in matrices]
    roots = [math.sqrt(one.shape[0] * one.shape[1]) / sum(map(math.sqrt, one.shape)) for one in matrices]
    size = float(np.median(sizes))
    share = config.lr / size
    reach = float(np.median([config.lr / own * root for own, root in zip(sizes, roots, strict=True)]))
    if reach > REACH:
        yield Finding(
            "error" if reach > LOST else "warning",
            "learning-rate",
            f"lr={config.lr:g} moves a weight of the usual size {size:.2g} by {share:.0%} in each of the first steps, "
            f"and what a layer computes by up to {reach:.0f} times its size: the training "
            + ("will diverge, or learn next to nothing" if reach > LOST else "may diverge"),
            f"give --lr {0.05 * size:.1g} or so, and a warmup; `minillm doctor ... --lr-range` measures it",
            "lr and grad_norm in metrics.jsonl",
        )
    elif share < 1e-7 or (not case.trained and share < USUAL and share * config.steps < WAY):
        told = "nothing will change" if share < 1e-7 else "a new model hardly learns"
        yield Finding(
            "warning",
            "learning-rate",
            f"lr={config.lr:g} moves a weight of the usual size {size:.2g} by {share:.1e} of it in a step, and so "
            f"by {share * config.steps:.1e} at most in all {config.steps} steps: {told}",
            f"give --lr {(0.01 if case.trained else 0.05) * size:.1g} or so; `minillm doctor ... --lr-range` measures "
            "it",
            "lr in metrics.jsonl",
        )


def sgd_rate(case: Case) -> Iterator[Finding]:
    """Compare the steps of SGD, lr times the clipped gradient and ten times that by momentum, with all weights."""
    config, own = case.config, [one for one in case.trained_parameters().values() if one.grad is not None]
    length, norm = (
        float(np.sqrt(sum(np.square(one, dtype=np.float64).sum() for one in arrays)))
        for arrays in ([one.data for one in own], [one.grad for one in own])
    )
    share = config.lr * min(norm, config.clip) * MOMENTUM / max(length, 1e-12)
    if config.optimizer == "sgd" and share > 1:
        yield Finding(
            "error",
            "learning-rate",
            f"lr={config.lr:g} of SGD moves all weights together by {share:.3g} times their size in ten steps: the "
            "training will diverge",
            f"give --lr {config.lr / share / 100:.1g} or so; `minillm doctor ... --lr-range` measures it",
            "lr and grad_norm in metrics.jsonl",
        )


def shrinking(case: Case) -> Iterator[Finding]:
    """Find weight decay and dropout that are so strong that nothing learned remains.

    A step of AdamW or SGD multiplies the matrices by 1 - lr weight_decay, so its own trace is gone after some
    1/(lr weight_decay) steps (Wang and Aitchison 2024, arXiv:2405.13698); usual settings give thousands.
    """
    config = case.config
    share = config.lr * config.weight_decay
    if config.weight_decay > DECAY and share * FORGETS > 1 and share * config.steps > 1:
        yield Finding(
            "warning",
            "weight-decay",
            f"lr={config.lr:g} and weight_decay={config.weight_decay:g} shrink every matrix by {share:.1%} a step, so "
            f"what a step has taught is forgotten after {1 / share:.0f} of them",
            "give --weight-decay 0.1, which is usual",
            "python: the norm of a weight before and after some steps",
        )
    dropout = getattr(case.model.config, "dropout", 0.0)
    if dropout > DROPOUT:
        yield Finding(
            "warning",
            "dropout",
            f"dropout={dropout:g} zeroes {dropout:.0%} of the numbers of every layer in training: too little is left "
            "to predict from",
            "give --dropout 0.1, or 0 where the text is read only once",
            "val_loss in metrics.jsonl, which is far below the training loss",
        )


def epochs(case: Case) -> Iterator[Finding]:
    """Count how often the training reads its data.

    Source: Muennighoff et al. 2023 (arXiv:2305.16264): up to 4 epochs are nearly as good as new data, and after 40
    nothing more is gained.
    """
    rows, of_data = case.config.batch_size, examples_of(case.task)
    if of_data is None or case.task.samples:
        return
    times = case.config.steps * rows / max(1, of_data)
    if times > REPEATS:
        yield Finding(
            "warning",
            "epochs",
            f"{case.config.steps} steps of {rows} rows read the {of_data:,} rows of the data {times:,.0f} times; after "
            f"{REPEATS} times nothing more is gained, and the model learns them by heart",
            f"give more data, fewer --steps ({max(1, math.ceil(SEVERAL * of_data / rows))} are {SEVERAL} times), or "
            "--patience",
            "val_loss in metrics.jsonl, which rises again",
        )


def examples_of(task: Any) -> int | None:
    """The number of rows that an epoch of the training data has; None where it is not known."""
    if hasattr(task, "batches"):
        return int(task.batches.windows_per_epoch)
    for name in ("learned", "rows"):
        found = getattr(task, name, None)
        if found is not None:
            return len(found[0]) if name == "rows" else len(found)
    return None
