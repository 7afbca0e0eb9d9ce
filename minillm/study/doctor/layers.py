"""The layers in the first step: numbers that are not finite, units that are dead, layers that say nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from minillm.study.doctor.case import Case
from minillm.study.doctor.finding import Finding

DEAD = 0.1  # share of a layer's units


def not_finite(case: Case) -> Iterator[Finding]:
    """Find weights, outputs and a loss that are infinite or not a number."""
    bad = [name for name, one in case.model.named_parameters() if not np.isfinite(one.data).all()]
    if bad:
        yield Finding(
            "error",
            "not-finite",
            f"{len(bad)} parameters hold an infinity or a NaN, the first of them {bad[0]}",
            "load the weights from an earlier checkpoint, and train with a lower learning rate",
            f"python: np.isfinite(dict(model.named_parameters())[{bad[0]!r}].data).mean()",
        )
    elif case.step.broken is not None:
        yield Finding(
            "error",
            "not-finite",
            f"the output of {case.step.broken} is not finite in the first step, and it is the first such layer",
            "look for a division by zero, a row that is masked whole, or weights that are too large in that layer",
            "MINILLM_ENGINE=plain python -m pdb ...: break in the layer's forward",
        )
    elif not np.isfinite(case.step.loss):
        yield Finding(
            "error",
            "not-finite",
            f"the loss of the first step is {case.step.loss}",
            "look at the logits: one that is infinite at a target gives this",
            "python: model.loss(...).item()",
        )


def dead_units(case: Case) -> Iterator[Finding]:
    """Find layers of which many units pass no gradient for any token: their slope is below 1e-3 everywhere.

    Of N independent tokens a new unit is dead with a chance of 2^-N, so that in a healthy layer hardly any is; a tenth
    of a layer is a choice between that and the ordinary few of trained ReLU networks.
    """
    for layer, alive in case.step.alive.items():
        share = float((~alive).mean())
        if share > DEAD:
            yield Finding(
                "error" if share > 0.9 else "warning",
                "dead-units",
                f"{share:.0%} of the {alive.size} units of {layer or 'the model'} are dead: their activation function "
                "is flat for every token of the batch, so that no gradient passes",
                "begin with smaller weights and biases of 0, lower the learning rate, or take GELU in place of ReLU",
                f"python: the output of {layer} for a batch, column by column",
            )


def constant_layers(case: Case) -> Iterator[Finding]:
    """Find layers whose output is one vector, whatever the token."""
    if case.step.constant:
        first = case.step.constant[0]
        yield Finding(
            "error",
            "constant-layer",
            f"{first} returns one vector for every token of the batch ({len(case.step.constant)} layers do): "
            "nothing of the text passes through it",
            "look for a weight of zeros, a normalisation over the wrong axis, or a position that is read for all",
            f"python: np.ptp(y.reshape(-1, y.shape[-1]), 0) of the output y of {first}",
        )
