"""A short training in two processes: `minillm train` starts it at step 20, to tell whether two would be faster."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from typing import Any

import numpy as np

from minillm.parallel.communicator import Communicator
from minillm.parallel.launch import launch
from minillm.parallel.objective import next_token_batch
from minillm.training.config import TrainConfig
from minillm.training.prepare import divide, make_optimizer
from minillm.training.tasks import task_class
from minillm.tuning import tuned_process


def main() -> None:
    """The program that speed.py starts: settings come in, and the seconds of a step go out."""
    print(max(launch(train_for_a_while, 2, json.load(sys.stdin), timeout=30)))


def train_for_a_while(world: Communicator, settings: dict[str, Any], seconds: float = 2.0) -> float:
    """The median seconds of a step on random tokens; every rank calls it."""
    config = dataclasses.replace(TrainConfig.from_json(settings), dp=None, threads=None)
    model = divide(task_class(config.objective).model_class(config)(config.model), config, world)
    optimizer = make_optimizer(config, model.groups)
    model.attach(optimizer)
    shape = (2, config.batch_size, config.task.length or config.model.context)
    batch = next_token_batch(*np.random.default_rng(0).integers(0, config.model.vocab_size, shape))

    def step() -> float:
        world.barrier()
        start = time.perf_counter()
        model.forward_backward(batch, config.micro_batches)
        optimizer.clip_grad_norm(config.clip)
        optimizer.step()
        model.sync_parameters()
        return time.perf_counter() - start

    with tuned_process():
        warm_up = [step() for _ in range(3)]
        count = min(max(int(seconds / world.max_of(warm_up[-1])[0]), 3), 20)
        return statistics.median(step() for _ in range(count))
