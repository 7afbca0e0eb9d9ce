"""Optimisers, gradient clipping, and learning-rate schedules, under PyTorch's names.

In reading order: adamw.py and sgd.py have the formulas, optimizer.py the step that applies them, flat.py the memory
that they work on, groups.py the parameters and options that an optimiser takes, clip.py the norm of the gradients, and
lr_scheduler.py the learning rates: as functions of the step, and as objects that set the rates of an optimiser.
"""

from typing import Any

from minillm import module_hints
from minillm.optim import lr_scheduler
from minillm.optim.adamw import Adam, AdamW
from minillm.optim.clip import clip_grad_norm_
from minillm.optim.flat import ALIGN, FlatGroup
from minillm.optim.groups import decay_groups
from minillm.optim.lr_scheduler import cosine_schedule, wsd_schedule
from minillm.optim.optimizer import Optimizer
from minillm.optim.sgd import SGD

__all__ = [
    "ALIGN",
    "SGD",
    "Adam",
    "AdamW",
    "FlatGroup",
    "Optimizer",
    "clip_grad_norm_",
    "cosine_schedule",
    "decay_groups",
    "lr_scheduler",
    "wsd_schedule",
]


def __getattr__(name: str) -> Any:
    raise module_hints.missing_part(name, "minillm.optim", __all__, ())
