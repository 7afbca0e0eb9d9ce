"""The base of all optimisers: parameters in groups, flat buffers, clipping, the step, and saved state.

An optimiser replaces each `parameter.data` by a view into a flat buffer when it is built (flat.py). A subclass has a
formula (see adamw.py), which updates the weights of one parameter, or of a piece of one. The engine says how a step
applies it (see `minillm.engine`):

    plain   the formula, parameter by parameter
    fast    in chunks that stay in the CPU's cache, on several threads; by `fast_update`, which overwrites its arguments
    cuda    one launch for a whole buffer; the factor that clips gradients goes from kernel to kernel without the host

For parameters with fewer than 32 bits, the optimiser keeps float32 copies, the masters. It updates the masters and
rounds them into the parameters. Without masters a bfloat16 weight would not change by an update below 2^-9 of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from minillm import backend
from minillm.backend import Array
from minillm.cuda.global_norm import norm_and_clip_factor
from minillm.device import like
from minillm.engine import rooms_for, uses_kernel
from minillm.errors import CheckpointError, InputError, did_you_mean
from minillm.optim.clip import factor_for, sum_of_squares
from minillm.optim.flat import FlatGroup, chunks
from minillm.optim.groups import check_member, listed
from minillm.tensor import Tensor


class Optimizer:
    """The base class of AdamW, Adam and SGD. A subclass has `moment_names` and `update`, its formula.

    parameters: a list of parameters, or of groups such as {"params": [...], "lr": 0.1}, with options of their own.
    param_groups: these groups, as dicts that hold every option; a change, such as
        `optimizer.param_groups[0]["lr"] = 0.01`, holds from the next step on.
    steps: the number of calls of `step`. A parameter without a gradient takes no part in a step: it is neither moved
        nor decayed, and its moments and its own count of steps stay.
    Raises: InputError for objects that are not parameters, for no parameters, for one that is given twice, and for an
        unknown option.
    """

    moment_names: tuple[str, ...] = ()
    fast_update: Callable[..., None] | None = None  # computes `update`, and overwrites w and the moments
    kernel = ""  # name of kernels/<kernel>.cu, or empty
    cuda_update: Callable[..., None]  # launches that kernel
    add_over_ranks: Callable[[Array], None] | None = None  # in parallel training: adds up one number of all ranks

    def __init__(self, parameters: Iterable[Any], lr: float, **options: Any):
        self.defaults = {"lr": lr, **options}
        self.check_options(self.defaults)
        self.steps = 0
        self.clip_factor: Any = 1.0  # multiplies all gradients at the next step; an array (1,) where a kernel made it
        self.param_groups: list[dict[str, Any]] = []
        self.groups: list[FlatGroup] = []
        given = listed(type(self).__name__, parameters)
        if not any(isinstance(member, dict) for member in given):
            given = [{"params": given}]
        groups: list[dict[str, Any]] = []
        for group in given:  # all groups are checked before the first is laid out
            groups.append(self._checked(group, groups))
        if not any(group["params"] for group in groups):
            raise InputError(f"{type(self).__name__}: there are no parameters to optimise; pass model.parameters()")
        for group in groups:
            self._lay_out(group)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Add a group {"params": [...], ...}, to be moved from the next step on.

        Raises: InputError as the constructor does.
        """
        self._lay_out(self._checked(group, self.param_groups))

    def _lay_out(self, group: dict[str, Any]) -> None:
        """Put the parameters of a checked group into flat buffers, one for each dtype and device."""
        flat = group.pop("flat", None)
        alike: dict[Any, list[Any]] = {}
        for parameter in group["params"]:
            alike.setdefault((parameter.dtype, parameter.device), []).append(parameter)
        self.param_groups.append(group)
        self.groups += [FlatGroup(members, group, self.moment_names, flat) for members in alike.values()]

    def _checked(self, group: Any, others: list[dict[str, Any]]) -> dict[str, Any]:
        """The group with every option filled in; its parameters are leaves, and in no other group."""
        name = type(self).__name__
        if not isinstance(group, dict) or "params" not in group:
            problem = "lacks 'params'" if isinstance(group, dict) else f"is a {type(group).__name__}"
            raise InputError(f'{name}: a group {problem}; give each as {{"params": [...]}}, with options beside')
        for key in group.keys() - self.defaults.keys() - {"params", "flat"}:
            raise InputError(f"{name}: a group has no option {key!r}{did_you_mean(key, self.defaults)}")
        single = isinstance(group["params"], Tensor)
        members = [group["params"]] if single else listed(name, group["params"])
        seen = {id(member) for other in others for member in other["params"]}
        for member in members:
            check_member(name, member)
            if id(member) in seen:
                raise InputError(f"{name}: a parameter is given twice; give each once, in one group")
            seen.add(id(member))
        checked = {**self.defaults, **group, "params": members}
        self.check_options(checked)
        return checked

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise InputError for an option out of range."""
        self._check_least(options, "lr", "a learning rate of 0 or more")
        self._check_least(options, "weight_decay", "0 or more")

    def _check_least(self, options: Mapping[str, Any], name: str, advice: str) -> None:
        """Raise InputError if an option is below 0 or NaN; the advice says what to give."""
        if name in options and not options[name] >= 0:
            raise InputError(f"{type(self).__name__}: {name} is {options[name]}; give {advice}")

    @property
    def lr(self) -> float:
        """The learning rate of all groups; setting it sets the rate of each.

        Raises: InputError if it is read while the groups have different rates.
        """
        rates = {group["lr"] for group in self.param_groups}
        if len(rates) > 1:
            raise InputError(
                f"{type(self).__name__}: the groups have learning rates {', '.join(map(str, sorted(rates)))}; read "
                'optimizer.param_groups[0]["lr"]'
            )
        return rates.pop()

    @lr.setter
    def lr(self, lr: float) -> None:
        for group in self.param_groups:
            group["lr"] = lr

    def parameters(self) -> Iterator[Any]:
        """All parameters, group by group."""
        for group in self.groups:
            yield from group.parameters

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set all gradients to None, so that the next backward overwrites the buffers instead of adding to them.

        set_to_none: if False, gradients become 0 instead, and a step moves and decays their parameters.
        """
        for parameter in self.parameters():
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad[...] = 0

    def clip_grad_norm(self, max_norm: float) -> Any:
        """This method does not change the gradients: the next step scales them by min(1, max_norm / norm).

        Returns: the norm of all gradients together, before it is limited.

        The step multiplies by `self.clip_factor` as it reads the gradients, so that clipping needs no pass of its own.
        `optim.clip_grad_norm_` changes the gradients instead. On a GPU the norm is an array of one number, and the host
        waits for it only at `float(norm)`. A norm that is infinite or NaN makes weights NaN at the next step, as in
        PyTorch; check it before the step.
        Source: Pascanu, Mikolov, Bengio 2013, arXiv:1211.5063, algorithm 1.
        """
        accumulators = {group.masters.dtype for group in self.groups}
        if len(accumulators) == 1 and all(uses_kernel("global_norm", group.grad) for group in self.groups):
            gradients = [gradient for group in self.groups for gradient in group.gradients_in_norm(whole=True)]
            norms, self.clip_factor = norm_and_clip_factor(
                gradients, max_norm, self.groups[0].masters, self.add_over_ranks
            )
            return norms[0]
        squares = np.array([sum(sum_of_squares(group.gradients_in_norm(whole=False)) for group in self.groups)])
        if self.add_over_ranks is not None:
            squares = like(squares, self.groups[0].grad)
            self.add_over_ranks(squares)
        norm = math.sqrt(squares[0])
        self.clip_factor = factor_for(norm, max_norm)
        return norm

    def step(self) -> None:
        """Move every parameter that has a gradient."""
        work = [(group, group.spans()) for group in self.groups]  # all are checked before the first is moved
        self.steps += 1
        for group, spans in work:
            options = {name: group.options[name] for name in self.defaults}
            if self.kernel and uses_kernel(self.kernel, group.data):
                for span, steps in spans:
                    self.cuda_update(*group.parts(span), self.clip_factor, t=steps + 1, **options)
            elif "fast" in rooms_for(group.data):
                self._step_in_chunks(group, spans, options)
            else:
                for number, steps in group.moving():
                    self._move(self.update, *group.parts_of(number), t=steps + 1, **options)
            group.count_step()
        self.clip_factor = 1.0

    def _step_in_chunks(self, group: FlatGroup, spans: list[tuple[slice, int]], options: dict[str, Any]) -> None:
        """Move the parameters of a group in chunks of its flat buffers, on all threads where that is worth it."""
        pieces = [(chunk, steps + 1) for span, steps in spans for chunk in chunks(span)]
        formula = self.fast_update or self.update

        def run(start: int, stop: int) -> None:
            for chunk, t in pieces[start:stop]:
                self._move(formula, *group.parts(chunk), t=t, **options)

        if group.data.nbytes < backend.cutting.parallel_bytes:
            run(0, len(pieces))
        else:
            backend.parallel(run, len(pieces))

    def _move(
        self, formula: Callable, data: Array, grad: Array, masters: Array, *moments: Array, t: int, **options: Any
    ) -> None:
        """Apply the formula to arrays of one shape that belong together, and write its results into them."""
        rounded = masters.dtype != data.dtype  # otherwise they are one array
        if rounded:
            changed = masters.astype(data.dtype) != data  # by load_state_dict, or by hand, since the last step
            np.copyto(masters, data.astype(masters.dtype), where=changed)
            grad = grad.astype(masters.dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # an infinite or NaN gradient makes such weights
            g = grad if self.clip_factor == 1 else grad * self.clip_factor
            results = formula(masters, g, *moments, t=t, **options)
        if results is not None:
            for array, result in zip((masters, *moments), results, strict=True):
                array[...] = result
        if rounded:
            data[...] = masters.astype(data.dtype)

    def update(self, *arguments: Any, **options: Any) -> tuple[Array, ...]:
        """The formula `update(w, g, *moments, t, **options)`: new weights and moments from weights w and gradient g.

        t counts the gradients of the parameter, this one included; `options` are those of its group. The arrays have
        the shape of the parameter, or are a piece of it; they are not to be written to.
        """
        raise TypeError(f"{type(self).__name__}: an Optimizer needs an update method")

    def state_dict(self) -> dict[str, Array]:
        """`steps`, and each moment of each parameter as `<moment>.<parameter name>`: references, not copies.

        `step.<parameter name>` is there for a parameter that had no gradient at some steps, and so has made fewer.
        """
        state = {"steps": np.array(self.steps, np.int64)}
        for group, number, key in self._named():
            if group.steps[number] != self.steps:
                state[f"step.{key}"] = np.array(group.steps[number], np.int64)
        return state | dict(self._named_moments())

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy the state into the optimiser, all of it or nothing.

        Raises: CheckpointError that lists every entry that does not fit.
        """
        own = dict(self._named_moments())
        optional = {"steps", *(f"step.{key}" for _, _, key in self._named())}
        wrong = [f"missing {key}" for key in own if key not in state]
        wrong += [f"unexpected {key}" for key in state if key not in own and key not in optional]
        wrong += [
            f"{key} has shape {np.shape(state[key])}, expected {moment.shape}"
            for key, moment in own.items()
            if key in state and np.shape(state[key]) != moment.shape
        ]
        if wrong or "steps" not in state:
            raise CheckpointError(
                f"{type(self).__name__}: the optimiser state does not fit: {'; '.join(wrong) or 'no steps'}"
            )
        self.steps = int(state["steps"])
        for group, number, key in self._named():
            group.steps[number] = int(state.get(f"step.{key}", self.steps))
        for key, moment in own.items():
            moment[...] = like(np.asarray(state[key]), moment)

    def _named(self) -> Iterator[tuple[FlatGroup, int, str]]:
        """Each parameter's group, number in the group, and name (or its place, if it has no name)."""
        for place, group in enumerate(self.groups):
            for number, parameter in enumerate(group.parameters):
                yield group, number, getattr(parameter, "name", "") or f"{place}.{number}"

    def _named_moments(self) -> Iterator[tuple[str, Array]]:
        """Each moment of each parameter as `exp_avg.h.0.ln_1.weight`, in the shape of the parameter."""
        for group, number, key in self._named():
            masters = {} if group.masters is group.data else {"master": group.masters}
            for name, flat in (group.moments | masters).items():
                yield f"{name}.{key}", group.view(flat, number)
