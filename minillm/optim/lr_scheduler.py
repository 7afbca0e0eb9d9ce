"""Learning-rate schedules: plain functions of the step, and objects that set the rates of an optimiser.

    scheduler = CosineAnnealingLR(optimizer, T_max=1000)
    for batch in batches:
        optimizer.zero_grad()
        model.loss(*batch).backward()
        optimizer.step()
        scheduler.step()                        # after the optimiser's step: the rate of the next one

The objects have PyTorch's names and give its rates; WarmupCosineLR and WarmupStableDecayLR, the usual schedules of
language models, are ours. Each computes a group's rate from the number of steps made and the rate that the group began
with, `initial_lr`. No rate depends on the one before, so a schedule can resume at any step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minillm import module_hints
from minillm.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from minillm.optim.optimizer import Optimizer


# --- plain functions: the learning rate of a step, from 0 to total - 1 -----------------------------------------------


def cosine_schedule(step: int, *, peak: float, floor: float, warmup: int, total: int) -> float:
    """Linear warmup over `warmup` steps to `peak`, then half a cosine down to `floor` at the last of `total` steps.

        step < warmup    peak (step + 1) / warmup
        then             floor + (peak - floor) (1 + cos(pi p)) / 2,   p = (step - warmup) / (total - 1 - warmup)

    Steps after the last have `floor`. A training of one step has `peak`.
    Raises: InputError where floor is above peak, or no step is left after the warmup.
    Source: Loshchilov, Hutter 2016, arXiv:1608.03983, equation 5, without restarts.
    """
    _check("cosine_schedule", peak, floor, warmup, total)
    if step < warmup:
        return peak * (step + 1) / warmup
    last = total - 1
    progress = 1.0 if step >= last > 0 else (step - warmup) / max(1, last - warmup)
    return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * min(1.0, progress)))


def wsd_schedule(step: int, *, peak: float, floor: float, warmup: int, total: int, decay: int) -> float:
    """Warmup, stable, decay: linear warmup to `peak`, constant, linear to `floor` over the last `decay` of all steps.

        step < warmup            peak (step + 1) / warmup
        step < total - decay     peak
        then                     peak - (peak - floor) (step + 1 - (total - decay)) / decay

    Steps after the last have `floor`. With decay=0 all steps after the warmup have `peak`.
    Raises: InputError where floor is above peak, or warmup and decay are more than all steps.
    Source: Hu et al. 2024, MiniCPM, arXiv:2404.06395, section 4.
    """
    _check("wsd_schedule", peak, floor, warmup, total, decay)
    if step < warmup:
        return peak * (step + 1) / warmup
    remaining = total - 1 - step
    return peak if remaining >= decay else floor + (peak - floor) * max(0, remaining) / max(1, decay)


def _check(function: str, peak: float, floor: float, warmup: int, total: int, decay: int = 0) -> None:
    """Raise InputError for numbers of steps or rates that do not fit each other."""
    if floor > peak:
        raise InputError(f"{function}: floor={floor} is above peak={peak}, so the rate would rise; give a lower floor")
    if total < 1 or warmup < 0 or decay < 0:
        raise InputError(
            f"{function}: total={total}, warmup={warmup}, decay={decay}; give a total of 1 or more, and 0 or "
            "more for the others"
        )
    if warmup >= total:
        raise InputError(
            f"{function}: warmup={warmup} leaves none of total={total} steps to reach floor={floor}; give a "
            "smaller warmup"
        )
    if decay and max(warmup, 1) + decay > total:  # a step before the decay has the peak
        raise InputError(
            f"{function}: warmup={warmup} and decay={decay} do not fit into total={total} steps; give a decay of "
            f"{total - max(warmup, 1)} at most"
        )


# --- objects that set the rates of an optimiser ----------------------------------------------------------------------


class LRScheduler:
    """The base class of all schedules. A subclass has `rate`, the rate of a group after a number of steps.

    last_epoch: the number of calls of `step`, under PyTorch's name.
    base_lrs: the rate that each group began with, which is also its `initial_lr`, where another schedule finds it.
    """

    def __init__(self, optimizer: Optimizer):
        groups = getattr(optimizer, "param_groups", None)
        if groups is None:
            raise InputError(
                f"{type(self).__name__}: optimizer is a {type(optimizer).__name__}; give an optimiser such as AdamW"
            )
        self.optimizer = optimizer
        self.base_lrs: list[float] = [group.setdefault("initial_lr", group["lr"]) for group in groups]
        self.last_epoch = 0
        self._set_rates()

    def rate(self, base: float, step: int, group: int) -> float:
        """The learning rate after `step` steps of group number `group`, which began with `base`."""
        raise TypeError(f"{type(self).__name__}: an LRScheduler needs a rate method")

    def step(self) -> None:
        """Set the rates of the next step; call it after each step of the optimiser."""
        self.last_epoch += 1
        self._set_rates()

    def get_last_lr(self) -> list[float]:
        """The present rate of each group."""
        return list(self._rates)

    def _set_rates(self) -> None:
        """Compute the rate of each group at this step, and set it."""
        groups = self.optimizer.param_groups[: len(self.base_lrs)]  # a group that was added later keeps its own rate
        self._rates = [self.rate(base, self.last_epoch, number) for number, base in enumerate(self.base_lrs)]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """The step, and the rates that the groups began with, in a form that JSON can hold."""
        return {"last_epoch": self.last_epoch, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state, and set the rates of its step.

        Raises: CheckpointError for a state with another number of groups.
        """
        if state.keys() != {"last_epoch", "base_lrs"} or len(state["base_lrs"]) != len(self.base_lrs):
            raise CheckpointError(
                f"{type(self).__name__}: the state has {', '.join(map(str, state)) or 'nothing'}; give last_epoch, and "
                f"base_lrs of {len(self.base_lrs)} groups"
            )
        self.last_epoch, self.base_lrs = int(state["last_epoch"]), [float(base) for base in state["base_lrs"]]
        self._set_rates()


class LambdaLR(LRScheduler):
    """The rate a group began with, times a function of the number of steps.

    lr_lambda: that function, or a list of one for each group.
    """

    def __init__(self, optimizer: Optimizer, lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]]):
        count = len(getattr(optimizer, "param_groups", ()))
        self.lr_lambdas = [lr_lambda] * count if callable(lr_lambda) else list(lr_lambda)
        if len(self.lr_lambdas) != count:
            raise InputError(f"LambdaLR: there are {len(self.lr_lambdas)} functions for {count} groups; give one each")
        super().__init__(optimizer)

    def rate(self, base: float, step: int, group: int) -> float:
        return base * self.lr_lambdas[group](step)


class StepLR(LRScheduler):
    """The rate a group began with, times `gamma` after every `step_size` steps."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1):
        if step_size < 1:
            raise InputError(f"StepLR: step_size is {step_size}; give 1 or more")
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer)

    def rate(self, base: float, step: int, group: int) -> float:
        return base * self.gamma ** (step // self.step_size)


class LinearLR(LRScheduler):
    """The rate a group began with, times a factor from `start_factor` to `end_factor`, reached after `total_iters`."""

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5
    ):
        if not 0 < start_factor <= 1 or not 0 <= end_factor <= 1:
            raise InputError(
                f"LinearLR: start_factor is {start_factor} and end_factor {end_factor}; give numbers up to 1: a "
                "start_factor above 0, and an end_factor of 0 or more"
            )
        if total_iters < 1:
            raise InputError(f"LinearLR: total_iters is {total_iters}; give 1 or more")
        self.start_factor, self.end_factor, self.total_iters = start_factor, end_factor, total_iters
        super().__init__(optimizer)

    def rate(self, base: float, step: int, group: int) -> float:
        share = min(step, self.total_iters) / self.total_iters
        return base * (self.start_factor + (self.end_factor - self.start_factor) * share)


class CosineAnnealingLR(LRScheduler):
    """Half a cosine from the rate a group began with down to `eta_min` in `T_max` steps, then up again, and so on.

        eta_min + (base - eta_min) (1 + cos(pi step / T_max)) / 2

    Source: Loshchilov, Hutter 2016, arXiv:1608.03983, equation 5.
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0):
        if T_max < 1:
            raise InputError(f"CosineAnnealingLR: T_max is {T_max}; give 1 or more")
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer)

    def rate(self, base: float, step: int, group: int) -> float:
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * step / self.T_max)) / 2


class WarmupCosineLR(LRScheduler):
    """`cosine_schedule`: warmup to the rate a group began with, then half a cosine to `min_lr` at the last step.

    warmup, total: numbers of steps; total is that of the whole training.
    Raises: InputError as cosine_schedule does.
    """

    def __init__(self, optimizer: Optimizer, warmup: int, total: int, min_lr: float = 0.0):
        self.warmup, self.total, self.min_lr = warmup, total, min_lr
        super().__init__(optimizer)

    def rate(self, base: float, step: int, group: int) -> float:
        return cosine_schedule(step, peak=base, floor=self.min_lr, warmup=self.warmup, total=self.total)


class WarmupStableDecayLR(LRScheduler):
    """`wsd_schedule`: warmup to the rate a group began with, constant, linear to `min_lr` over the last `decay` steps.

    warmup, total, decay: numbers of steps; total is that of the whole training.
    Raises: InputError as wsd_schedule does.
    """

    def __init__(self, optimizer: Optimizer, warmup: int, total: int, decay: int, min_lr: float = 0.0):
        self.warmup, self.total, self.decay, self.min_lr = warmup, total, decay, min_lr
        super().__init__(optimizer)

    def rate(self, base: float, step: int, group: int) -> float:
        shape: dict[str, Any] = dict(peak=base, floor=self.min_lr, warmup=self.warmup, total=self.total)
        return wsd_schedule(step, **shape, decay=self.decay)


def __getattr__(name: str) -> Any:
    known = [one for one, value in globals().items() if isinstance(value, type) and issubclass(value, LRScheduler)]
    raise module_hints.missing_part(name, "minillm.optim.lr_scheduler", known, ())
