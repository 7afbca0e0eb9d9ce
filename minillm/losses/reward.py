"""The loss of a reward model, which gives an answer a score: the better of two answers should get the higher one.

By the model of Bradley and Terry, the chosen answer is preferred with probability sigmoid(R_w - R_l), so

    loss = -log sigmoid(R_w - R_l - margin) + c (R_w + R_l)^2

The margin says by how much it is better, if that is known. Only the difference of two scores matters to the first
term; the second, with a small c, keeps their sum near 0.

Derivatives without margin: with p = sigmoid(R_l - R_w), dR_w = -p + 2 c (R_w + R_l) and dR_l = p + 2 c (R_w + R_l).
Where all scores are 0, the loss is ln 2 = 0.6931, and the derivatives are -1/2 and 1/2.

Sources: Bradley and Terry 1952; Ouyang et al. 2022 (arXiv:2203.02155), equation 1; the margin: Touvron et al. 2023
(arXiv:2307.09288), equation 2; the second term: Eisenstein et al. 2023 (arXiv:2312.09244).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minillm import ops
from minillm.autograd import Tensor
from minillm.errors import InputError, check_shapes
from minillm.losses.log_probs import constant_beside


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, margin: Any = None, centering: float = 0.0) -> Tensor:
    """The loss of each pair, -log sigmoid(chosen - rejected - margin) + centering (chosen + rejected)^2.

    Shapes: the scores chosen and rejected (B,), margin (B,) or None for 0; result (B,).
    Units: nats.
    Raises: ShapeError; InputError for a negative `centering`.
    """
    if not 0 <= centering < np.inf:
        raise InputError(f"bradley_terry_loss: centering is {centering}; give 0 or a small positive number")
    check_shapes("bradley_terry_loss", chosen=("B", chosen), rejected=("B", rejected))
    difference = chosen - rejected  # (B,)
    if margin is not None:
        check_shapes("bradley_terry_loss", chosen=("B", chosen), margin=("B", margin))
        difference = difference - constant_beside(margin, difference)
    loss = -ops.logsigmoid(difference)
    return loss + centering * (chosen + rejected) ** 2 if centering else loss
