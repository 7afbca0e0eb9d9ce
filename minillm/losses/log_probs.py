"""Log-probabilities of answers: how likely a model finds a text, given what stands before it.

With logits (T, V) of a sequence, and targets (T,), the ids that follow each of its tokens:

    log p_t = log softmax(logits_t / temperature)[target_t]          log p(answer) = sum of log p_t over the answer

Targets of -100 belong to no answer, and add 0. The end token of an answer belongs to it. Whoever makes the targets
shifts the ids by one; nothing here shifts them again.

The temperature divides the logits, not the log-probabilities: dividing these would not give probabilities whose sum
is 1. An answer that was sampled at a temperature is as likely as it was only at the same temperature.
"""

from __future__ import annotations

from typing import Any

from minillm import ops
from minillm.autograd import Tensor
from minillm.backend import Array, as_array
from minillm.device import like
from minillm.errors import InputError

NO_ANSWER = -100  # target of a token that belongs to no answer


def token_log_probs(logits: Tensor, targets: Any, temperature: float = 1.0, overwrite: bool = False) -> Tensor:
    """The log-probability of each target, and 0 where a target is -100; in float32, or float64 if the logits are.

    Shapes: logits (..., T, V); targets (..., T), ids or -100; result (..., T).
    Units: nats.
    overwrite: the backward may write over the logits (over their copy, if they were converted), as in cross_entropy.
    Raises: InputError for a temperature that is not above 0, or an id outside of the vocabulary.
    """
    if not temperature > 0:
        raise InputError(f"token_log_probs: temperature is {temperature}; give a number above 0")
    if logits.dtype.itemsize < 4:
        logits = logits.float()  # in 16 bits a log-probability has two or three digits
    if temperature != 1:
        logits = logits / temperature
    return -ops.cross_entropy(
        logits, targets, ignore_index=NO_ANSWER, reduction="none", overwrite=overwrite, dim=logits.ndim - 1
    )


def sequence_log_probs(logits: Tensor, targets: Any, temperature: float = 1.0, overwrite: bool = False) -> Tensor:
    """The log-probability of each answer: the sum of those of its tokens.

    Shapes: logits (..., T, V); targets (..., T), ids or -100; result (...). The rest is as in `token_log_probs`.
    """
    return token_log_probs(logits, targets, temperature, overwrite).sum(-1)


def answer_lengths(targets: Any) -> Array:
    """The number of tokens of each answer, the end token included: targets (..., T) that are not -100; result (...)."""
    targets = targets.data if isinstance(targets, Tensor) else as_array(targets)
    return (targets != NO_ANSWER).sum(-1)


def constant_beside(x: Any, tensor: Tensor) -> Array:
    """x as an array without a gradient, in the dtype of the tensor and on its device."""
    x = x.data if isinstance(x, Tensor) else as_array(x)
    return like(x, tensor.data).astype(tensor.dtype, copy=False)
