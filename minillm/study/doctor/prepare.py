"""Build the task and the model of a training's settings, as `minillm train` does, and write nothing."""

from __future__ import annotations

from typing import Any

from minillm import random
from minillm.resolver import open_model
from minillm.training.config import TrainConfig
from minillm.training.prepare import adapt, make_model
from minillm.training.run import Run
from minillm.training.tasks import task_class


def case_of(config: TrainConfig, run: Run | None = None, new: bool = False) -> tuple[Any, Any, bool]:
    """The task, the model before the first step, and whether its weights are trained ones; the arguments of `examine`.

    run: take the tokenizer of this run, and its weights, unless they are to be new.
    Raises: as `train` does before its first step.
    """
    opened = open_model(run.folder) if run and not new else open_model(config.init) if config.init else None
    tokenizer = run.tokenizer if run else opened.needed_tokenizer("doctor") if opened else None
    task = task_class(config.objective)(config, tokenizer)
    if run and not new:
        assert opened is not None
        return task, opened.model, True
    random.manual_seed(config.seed)
    model = make_model(config, task.tokenizer)
    if opened:
        task.start_from(model, opened)
    return task, adapt(model, config), opened is not None
