"""The claim about LoRA: adapters compute the same beside a weight and merged into it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minillm.errors import InputError
from minillm.lora import LoraConfig, add_lora, merge, unmerge
from minillm.lora.config import ALL_LINEAR
from minillm.study.ledger.claim import Measured
from minillm.study.ledger.files import outputs
from minillm.study.ledger.rounding import bound_of, compared, kept, sensitivity_of
from minillm.study.ledger.subject import Subject

RANK = 4


def merged_is_unmerged(subject: Subject) -> Measured:
    """Outputs before and after `merge` of adapters with random matrices; after `unmerge`, every bit is as before."""
    model = subject.model().eval()
    before, plain = kept(model.state_dict()), outputs(subject, model)
    _with_adapters(model)
    beside = outputs(subject, model)
    if not compared(plain, beside)[0] > subject.bound:
        raise InputError("lora: adapters with random matrices do not change the output")
    difference, where = compared(outputs(subject, merge(model)), beside)
    after = kept(unmerge(model).state_dict())
    changed = [name for name, array in before.items() if name not in after or (after[name] != array).any()]
    if changed:
        return Measured(math.inf, 0.0, f"{changed[0]} after `unmerge` is not what it was before the adapters")
    model.requires_grad_(True)  # so that all weights are moved
    sensitivity = sensitivity_of(lambda model: outputs(subject, model), model, beside)
    return Measured(difference, bound_of(subject.size, sensitivity), where)


def _with_adapters(model: Any) -> None:
    """Add adapters. B is 0 at first, and a merge of nothing would prove nothing, so both matrices are random."""
    try:
        add_lora(model, LoraConfig(rank=RANK))
    except InputError:  # a family without targets of its own
        add_lora(model, LoraConfig(rank=RANK, targets=ALL_LINEAR))
    rng = np.random.default_rng(0)
    for name, parameter in model.named_parameters():
        if ".lora." in name:  # a head that is trained whole keeps its weights
            parameter.data = parameter.data + rng.normal(0, 0.05, parameter.shape)
