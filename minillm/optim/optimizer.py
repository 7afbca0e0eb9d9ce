"""Optimisers.

An optimiser gathers its parameters into flat buffers (flat.py), and its rule runs over these in chunks. Where kernels
are used (see `minillm.engine`), an update is one launch for a whole buffer, and the clip factor goes from the
norm's kernel to the update's without the host.

Parameters of fewer bits than float32 have masters: the optimiser moves float32 numbers, and the parameters are these,
rounded, because a bfloat16 is not changed by an update of less than 2^-9 of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from minillm import backend
from minillm.autograd import Tensor
from minillm.backend import Array
from minillm.cuda import get_kernel
from minillm.device import like
from minillm.engine import uses_kernel
from minillm.errors import CheckpointError, InputError, did_you_mean
from minillm.optim.clip import clip_factor_of, norm_and_factor_cuda, sum_of_squares_of
from minillm.optim.flat import FlatGroup, chunks
from minillm.optim.groups import check_member, listed


class Optimizer:
    """What AdamW and SGD share: groups, flat buffers, clipping, and the walk over chunks.

    parameters: a list of parameters, or of groups such as {"params": [...], "lr": 0.1}, with options of their own.
    param_groups: these groups, as dicts that hold every option; a change, such as
        `optimizer.param_groups[0]["lr"] = 0.01`, holds from the next step on.
    steps: the number of calls of `step`. A parameter without a gradient takes no part in a step: it is neither moved
        nor decayed, its moments stay, and its own count of steps too.
    Raises: InputError for what are no parameters, none or one twice, and for an option that there is not.
    """

    moment_names: tuple[str, ...] = ()
    kernel = ""  # of kernels/<kernel>.cu, which `update_cuda` launches, where there is one
    add_over_ranks: Callable[[Array], None] | None = None  # where others have gradients too: sums a number with theirs

    def __init__(self, parameters: Iterable[Any], lr: float, **options: Any):
        self.defaults = {"lr": lr, **options}
        self.check_options(self.defaults)
        self.steps = 0
        self.clip_factor: Any = 1.0  # or an array of one number, made by a kernel
        self.param_groups: list[dict[str, Any]] = []
        self.groups: list[FlatGroup] = []
        given = listed(type(self).__name__, parameters)
        if not any(isinstance(member, dict) for member in given):
            given = [{"params": given}]
        groups: list[dict[str, Any]] = []
        for group in given:  # all are checked before the first is laid out
            groups.append(self._checked(group, groups))
        if not any(group["params"] for group in groups):
            raise InputError(f"{type(self).__name__}: there are no parameters to optimise; pass model.parameters()")
        for group in groups:
            self._lay_out(group)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Add a group {"params": [...], ...} whose parameters are moved from the next step on.

        Raises: InputError as for a group that is given at the start.
        """
        self._lay_out(self._checked(group, self.param_groups))

    def _lay_out(self, group: dict[str, Any]) -> None:
        flat = group.pop("flat", None)
        alike: dict[Any, list[Any]] = {}
        for parameter in group["params"]:
            alike.setdefault((parameter.dtype, parameter.device), []).append(parameter)
        self.param_groups.append(group)
        self.groups += [FlatGroup(members, group, self.moment_names, flat) for members in alike.values()]

    def _checked(self, group: Any, others: list[dict[str, Any]]) -> dict[str, Any]:
        """A group with every option, whose parameters are leaves and in no other group."""
        name = type(self).__name__
        if not isinstance(group, dict) or "params" not in group:
            told = "lacks 'params'" if isinstance(group, dict) else f"is a {type(group).__name__}"
            raise InputError(f'{name}: a group {told}; give each as {{"params": [...]}}, with options beside')
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
        if name in options and not options[name] >= 0:
            raise InputError(f"{type(self).__name__}: {name} is {options[name]}; give {advice}")

    @property
    def lr(self) -> float:
        """The learning rate of all groups; setting it sets that of each.

        Raises: InputError where it is read and groups have different ones.
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
        """Forget all gradients, so that the next backward writes over the buffers.

        set_to_none: if False, gradients become 0 instead, and a step moves and decays their parameters.
        """
        for parameter in self.parameters():
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad[...] = 0

    def clip_grad_norm(self, max_norm: float) -> Any:
        """Have the next step scale all gradients by min(1, max_norm / norm); returns that norm.

        The scaling is part of the update, so it costs no pass of its own. The gradients themselves stay as they are.
        On a GPU the norm is an array of one number, and nobody waits for it before `float(norm)`. A norm that is not a
        number makes the next step's weights NaN, as in PyTorch: look at it before the step.
        Source: Pascanu, Mikolov, Bengio 2013, arXiv:1211.5063, algorithm 1.
        """
        accumulators = {group.masters.dtype for group in self.groups}
        if len(accumulators) == 1 and all(uses_kernel("global_norm", group.grad) for group in self.groups):
            gradients = [gradient for group in self.groups for gradient in group.counted_gradients(whole=True)]
            norm, self.clip_factor = norm_and_factor_cuda(
                gradients, max_norm, self.groups[0].masters, self.add_over_ranks
            )
            return norm[0]
        squares = np.array([sum(sum_of_squares_of(group.counted_gradients()) for group in self.groups)])
        if self.add_over_ranks is not None:
            squares = like(squares, self.groups[0].grad)
            self.add_over_ranks(squares)
        norm = math.sqrt(squares[0])
        self.clip_factor = clip_factor_of(norm, max_norm)
        return norm

    def step(self) -> None:
        """Move every parameter that has a gradient."""
        work = [(group, group.spans()) for group in self.groups]  # all are checked before the first is moved
        self.steps += 1
        for group, spans in work:
            options = {name: group.options[name] for name in self.defaults}
            if self.kernel and uses_kernel(self.kernel, group.data):
                for span, steps in spans:
                    self.update_cuda(*group.parts(span), steps=steps + 1, **options)
            else:
                pieces = [(chunk, steps + 1) for span, steps in spans for chunk in chunks(span)]

                def update(start, stop, group=group, pieces=pieces, options=options):
                    with np.errstate(over="ignore", invalid="ignore"):  # a gradient that is no number passes on
                        for chunk, steps in pieces[start:stop]:
                            self._update_masters(*group.parts(chunk), steps=steps, **options)

                if group.data.nbytes < backend.PARALLEL_BYTES:
                    update(0, len(pieces))
                else:
                    backend.parallel(update, len(pieces))
            group.count_step()
        self.clip_factor = 1.0

    def update(self, data: Array, grad: Array, *moments: Array, **options: Any) -> None:
        """The rule, on one chunk; writes data and moments, and leaves grad as it is.

        options: those of the group, and `steps`: for all parameters of the chunk it is their step of that number.
        """
        raise TypeError(f"{type(self).__name__}: an Optimizer needs an update method")

    def update_cuda(self, data: Array, grad: Array, masters: Array, *moments: Array, **options: Any) -> None:
        """The rule by a kernel; writes data too, where it is not masters itself."""
        raise TypeError(f"{type(self).__name__}: there is no kernel for this optimiser")

    def _update_masters(self, data: Array, grad: Array, masters: Array, *moments: Array, **options: Any) -> None:
        if masters.dtype == data.dtype:  # then they are one
            self.update(data, grad, *moments, **options)
        else:
            written_to = masters.astype(data.dtype) != data  # since the last step, as load_state_dict does
            np.copyto(masters, data.astype(masters.dtype), where=written_to)
            self.update(masters, grad.astype(masters.dtype), *moments, **options)
            data[...] = masters.astype(data.dtype)

    def state_dict(self) -> dict[str, Array]:
        """`steps`, and each moment of each parameter as `<moment>.<parameter name>`: references, not copies.

        A parameter that has made another number of steps, as it had no gradient at some, has it as `step.<name>`.
        """
        state = {"steps": np.array(self.steps, np.int64)}
        for group, number, key in self._named():
            if group.steps[number] != self.steps:
                state[f"step.{key}"] = np.array(group.steps[number], np.int64)
        return state | dict(self._named_moments())

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy the state in, all of it or none; CheckpointError lists every entry that does not fit."""
        own = dict(self._named_moments())
        may_be = {"steps", *(f"step.{key}" for _, _, key in self._named())}
        wrong = [f"missing {key}" for key in own if key not in state]
        wrong += [f"unexpected {key}" for key in state if key not in own and key not in may_be]
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
        """Each parameter, as its group and its number in it, with its name, or its place where it has none."""
        for place, group in enumerate(self.groups):
            for number, parameter in enumerate(group.parameters):
                yield group, number, getattr(parameter, "name", "") or f"{place}.{number}"

    def _named_moments(self) -> Iterator[tuple[str, Array]]:
        for group, number, key in self._named():
            masters = {} if group.masters is group.data else {"master": group.masters}
            for name, flat in (group.moments | masters).items():
                yield f"{name}.{key}", group.view(flat, number)


class AdamW(Optimizer):
    """Adam with decoupled weight decay.

    With gradient g, the t-th that a parameter gets, and b1, b2 = betas:

        m = b1 m + (1 - b1) g          v = b2 v + (1 - b2) g^2
        w = w (1 - lr weight_decay) - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

    `parameters` is a list of parameters, or of groups {"params": [...], "weight_decay": ...} as in PyTorch.
    Memory: two numbers per parameter beside the gradient.
    Source: Loshchilov, Hutter 2017, arXiv:1711.05101, algorithm 2 (with the decay scaled by lr, as in PyTorch).
    """

    moment_names = ("exp_avg", "exp_avg_sq")
    kernel = "adamw"

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        super().__init__(parameters, lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def check_options(self, options):
        super().check_options(options)
        self._check_least(options, "eps", "0 or more")
        betas = options["betas"]
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise InputError(f"{type(self).__name__}: betas are {betas}; give two numbers of at least 0 and below 1")

    def update(self, data, grad, m, v, *, steps, lr, betas, eps, weight_decay):
        g = grad if self.clip_factor == 1 else grad * self.clip_factor
        change = _adam_change(g, m, v, steps, lr, betas, eps)
        if weight_decay:
            data *= 1 - lr * weight_decay
        data -= change

    def update_cuda(self, data, grad, masters, m, v, *, steps, lr, betas, eps, weight_decay):
        beta1, beta2 = betas
        factor = self.clip_factor
        if isinstance(factor, float):
            factor = np.full_like(masters, factor, shape=1)
        shared = (
            *(1 - beta1, 1 - beta2, 1 / math.sqrt(1 - beta2**steps), eps),
            *(lr / (1 - beta1**steps), 1 - lr * weight_decay),
        )
        blocks = min(2048, -(-data.size // 1024))  # of 256 threads, each with 16 bytes or more
        arguments = (data, grad, masters, m, v, factor, np.int64(data.size), *map(masters.dtype.type, shared))
        get_kernel("adamw.cu", "adamw", data.dtype)(blocks, 256, arguments)


class Adam(AdamW):
    """Adam, in which weight decay is part of the gradient: g + weight_decay w takes the place of g.

    So a weight is decayed less the larger its gradients are, which is why AdamW decays it apart (see there for the
    formula, which is the same otherwise). Memory: two numbers per parameter beside the gradient.
    Source: Kingma, Ba 2014, arXiv:1412.6980, algorithm 1.
    """

    kernel = ""

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(parameters, lr, betas, eps, weight_decay)

    def update(self, data, grad, m, v, *, steps, lr, betas, eps, weight_decay):
        g = grad if self.clip_factor == 1 else grad * self.clip_factor
        if weight_decay:
            g = g + weight_decay * data
        data -= _adam_change(g, m, v, steps, lr, betas, eps)


def _adam_change(g, m, v, steps, lr, betas, eps):
    """Bring m and v up to date with gradient g, and return lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)."""
    beta1, beta2 = betas
    change = g - m
    change *= 1 - beta1
    m += change  # m + (1 - b1)(g - m)
    np.multiply(g, g, out=change)
    change -= v
    change *= 1 - beta2
    v += change
    np.sqrt(v, out=change)
    change *= 1 / math.sqrt(1 - beta2**steps)
    change += eps
    np.divide(m, change, out=change)
    change *= lr / (1 - beta1**steps)
    return change


class SGD(Optimizer):
    """Gradient descent with momentum: b = momentum b + g + weight_decay w, then w = w - lr b, as in PyTorch.

    b begins as 0, so that the first gradient of a parameter is its first b. Memory: one number per parameter beside
    the gradient.
    """

    moment_names = ("momentum",)

    def __init__(self, parameters, lr=1e-3, momentum=0.0, weight_decay=0.0):
        super().__init__(parameters, lr, momentum=momentum, weight_decay=weight_decay)

    def check_options(self, options):
        super().check_options(options)
        self._check_least(options, "momentum", "0 or more")

    def update(self, data, grad, buffer, *, steps, lr, momentum, weight_decay):
        buffer *= momentum
        buffer += grad if self.clip_factor == 1 else grad * self.clip_factor
        if weight_decay:
            buffer += weight_decay * data
        data -= lr * buffer
