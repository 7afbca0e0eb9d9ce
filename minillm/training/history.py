"""Rules of runs of format 1, so that such a run goes on exactly as it began.

Their schedules reached min_lr at step `steps`, one step after the last one. A wsd decay longer than what the warmup
leaves began below lr, and no rate was refused. Their batches (data/batches.py) never contained the last tokens of the
text.
"""

from __future__ import annotations

import math

from minillm.training.config import TrainConfig


def learning_rate_of_format_1(config: TrainConfig, step: int) -> float:
    """The learning rate of a step, counted from 0."""
    peak, floor, warmup, total = config.lr, config.min_lr, config.warmup, config.steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.schedule == "wsd":
        remaining, decay = total - step, config.decay_steps
        return peak if remaining >= decay else floor + (peak - floor) * max(0, remaining) / max(1, decay)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * progress))
