"""Log-probabilities of answers by a model: what preference losses and reinforcement learning are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minillm import ops
from minillm.autograd import Tensor, no_grad
from minillm.backend import Array
from minillm.data.instructions import Example
from minillm.data.preferences import pad_examples
from minillm.device import like, to_host
from minillm.errors import InputError
from minillm.generate import evaluating
from minillm.losses import token_log_probs
from minillm.losses.log_probs import NO_ANSWER
from minillm.nn import Decoder, Module


class Scored(NamedTuple):
    """A model's numbers for some answers; 0 at tokens of no answer."""

    log_probs: Tensor  # (N, T), of each token, as in `token_log_probs`
    mean_logits: Array  # (N, T), over the vocabulary

    @property
    def answers(self) -> Tensor:
        """The log-probability of each answer, (N,)."""
        return self.log_probs.sum(-1)


def scored(model: Decoder, ids: Array, targets: Array, temperature: float = 1.0) -> Scored:
    """Score answers: ids and targets (N, T), the targets -100 at tokens of no answer; the output layer skips these."""
    weight = model.parameters()[0].data
    ids, targets = like(ids, weight), like(targets, weight)
    features = model.features(ids)  # (N, T, C)
    N, T, C = features.shape
    places = np.flatnonzero(targets.reshape(-1) != NO_ANSWER)  # (M,), the tokens before those of answers
    logits = model.logits(features.reshape(N * T, C).index_select(0, places))  # (M, V)
    log_probs = token_log_probs(logits, targets.reshape(-1)[places], temperature, overwrite=True)  # (M,)
    means = logits.data.mean(-1)  # (M,)
    everywhere = np.zeros_like(means, shape=N * T)
    everywhere[places] = means
    nothing = Tensor(np.zeros_like(log_probs.data, shape=N * T))
    placed = ops.index_add(nothing, 0, places, log_probs).reshape(N, T)
    return Scored(placed, everywhere.reshape(N, T))


def frozen_log_probs(model: Decoder, examples: Sequence[Example], batch_size: int) -> np.ndarray:
    """The log-probability of the answer of each example, (N,), float32, without gradients or dropout.

    Examples of like lengths are computed together, so that there is little padding.
    """
    order = np.argsort([len(example.ids) for example in examples], kind="stable")  # (N,)
    found = np.zeros(len(examples), np.float32)
    with evaluating(model), no_grad():
        for start in range(0, len(examples), batch_size):
            some = order[start : start + batch_size]
            ids, targets, _ = pad_examples([examples[number] for number in some])
            found[some] = to_host(scored(model, ids, targets).answers.data)
    return found


def check_apart(policy: Module, reference: Module) -> None:
    """Raise InputError if a weight of the policy and one of its reference share memory: training would change both.

    In loops of one's own; the tasks here compute what the reference says before the first step, or copy it.
    """
    theirs = dict(reference.named_parameters())
    for name, parameter in policy.named_parameters():
        if name in theirs and np.shares_memory(parameter.data, theirs[name].data):
            raise InputError(
                f"check_apart: {name} of the policy and of its reference share memory, so that the reference would be "
                "trained too; load the reference a second time"
            )
