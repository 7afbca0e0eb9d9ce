"""The fitting of a training to this machine: the way in which work is cut, and what the user is told at step 20.

A way of cutting is chosen before the first step, on a model that is thrown away, so that trying changes nothing of the
run; it is saved with every checkpoint and kept when the run is resumed. The last bits of a matrix product may depend
on it, so a run is the same, bit for bit, as another one with the same choice.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minillm.backend import core_count, thread_count
from minillm.counted import counted
from minillm.parallel.communicator import Communicator, broadcast_bytes
from minillm.training.config import TrainConfig
from minillm.tuning import Choice, fastest_way, own_choice, tuned_process, ways_of_cutting

STEPS_OF_A_ROUND = 250  # for every so many steps of a run, each way is tried for two: 4% of them, for five ways
FEWEST_ROUNDS, MOST_ROUNDS = 3, 15
TOLD_AT = 20  # the step at which a user is told how long the run will take
FORWARD = 1 / 3  # of a step's time that a batch of a validation takes
WORTH_A_TRY = 60.0  # seconds that must be left for two processes to be tried, which takes about five
FASTER = 1.05  # two processes are worth a word from this factor on


# --- before the first step -----------------------------------------------------------------------------------------


def choose(config: TrainConfig, world: Communicator, make_step: Callable[[], Callable[[], object]] | None) -> Choice:
    """The way of cutting for a new run.

    `make_step()` returns a function that trains a model, not the one of the run, by a step. It is called where there
    is something to choose: one process on a CPU with several threads, in a run that is long enough to repay it. None:
    nothing can be tried.
    """
    choice = own_choice(config.threads)
    rounds = min(MOST_ROUNDS, config.steps // STEPS_OF_A_ROUND)
    alone = world.size == 1 and config.device == "cpu" and config.threads is None
    if make_step is None or not (alone and choice.cutting.threads > 1 and rounds >= FEWEST_ROUNDS):
        return agreed(choice, world)
    with tuned_process(choice.cutting):
        return fastest_way(make_step(), ways_of_cutting(choice), rounds)


def choose_again(config: TrainConfig, world: Communicator, kept: dict[str, Any] | None, ranks: int) -> Choice:
    """The choice of a run that is resumed: the one it was saved with, on as many ranks.

    --threads changes it, and so does MINILLM_THREADS where the kept choice takes another number of threads.
    """
    choice = Choice.from_json(kept) if kept and ranks == world.size else None
    if choice is not None and not asks_for_others(config.threads, choice):
        return agreed(choice, world)
    return agreed(own_choice(config.threads), world)


def asks_for_others(threads: int | None, choice: Choice) -> bool:
    """True if --threads, or else MINILLM_THREADS, asks for other threads than a choice has.

    A way that was chosen among several may take fewer threads than the variable allows.
    """
    if threads is not None:
        return threads != choice.cutting.threads or bool(choice.seconds)
    if "MINILLM_THREADS" not in os.environ:
        return False
    allowed, taken = thread_count(), max(choice.cutting.threads, choice.cutting.blas_threads or 1)
    return taken > allowed or (taken < allowed and not choice.seconds)


def remarks_on_change(kept: dict[str, Any] | None, choice: Choice) -> list[str]:
    """A sentence for the person if a resumed run cuts its work in another way than before."""
    if kept is None or Choice.from_json(kept).cutting == choice.cutting:
        return []
    before = Choice.from_json(kept).name
    return [f"work is cut over {choice.name} now, and was over {before}: the last bits of the results may differ"]


def agreed(choice: Choice, world: Communicator) -> Choice:
    """The choice of rank 0, on every rank."""
    return Choice.from_json(json.loads(broadcast_bytes(world, json.dumps(choice.to_json()).encode())))


# --- at step 20 ----------------------------------------------------------------------------------------------------


def seconds_left(config: TrainConfig, step: int, seconds: float) -> float:
    """Seconds from `step` to the end of a run, validations included, where a step takes `seconds`."""
    validations = math.ceil(config.steps / config.eval_every) - step // config.eval_every
    return seconds * (config.steps - step + FORWARD * config.eval_batches * validations)


def forecast(
    config: TrainConfig,
    step: int,
    seconds: float,
    folder: str,
    two: Callable[[TrainConfig], float | None] | None = None,
) -> list[str]:
    """Lines for the user: how long the run will take, and whether two processes would be faster.

    seconds: of a step, the median of those so far. two: measures a step in two processes, where that is worth asking.
    """
    left = seconds_left(config, step, seconds)
    lines = [f"at {1e3 * seconds:.3g} ms a step, about {in_words(left)} to go"]
    if two is None or left < WORTH_A_TRY or config.batch_size < 2:
        return lines
    together = two(config)
    if together is not None and seconds > FASTER * together:
        lines.append(
            f"two processes would be {seconds / together:.2f} times as fast here, as a short try shows: about "
            f"{in_words(left * together / seconds)}; to use them, stop with Ctrl-C, and then"
        )
        lines.append(f"  minillm train --resume {folder} --nproc 2")
    return lines


def in_words(seconds: float) -> str:
    """A time as one says it: 45 seconds, 3 minutes, 2.5 hours."""
    if seconds < 90:
        return counted(round(seconds), "second")
    return f"{seconds / 60:.2g} minutes" if seconds < 5400 else f"{seconds / 3600:.2g} hours"


def seconds_in_two_processes(config: TrainConfig) -> float | None:
    """Seconds of a step in two processes, measured for some seconds while this one waits; None where it cannot be.

    They are started from a fresh interpreter, so that it does not matter what the main program of this one is.
    """
    if core_count() < 2:
        return None
    root = str(Path(__file__).parents[2])
    environment = {name: value for name, value in os.environ.items() if name != "MINILLM_THREADS"}
    environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])
    program = "from minillm.training.two_processes import main; main()"
    try:
        result = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(config.to_json()),
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            start_new_session=True,  # a Ctrl-C is for the training, which then stops after its step
        )
        return float(result.stdout)
    except (subprocess.SubprocessError, OSError, ValueError):
        return None  # only a piece of advice is lost
