"""Optimisers, gradient clipping, and learning-rate schedules.

An optimiser gathers its parameters into flat buffers: `parameter.data` and `parameter.grad` become views into one
long array each. An update is then one pass over long arrays, in chunks that stay in cache, whatever the number of
parameters; a chunk's temporaries never reach memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from minillm import backend
from minillm.autograd import Parameter
from minillm.backend import Array
from minillm.errors import CheckpointError, GraphError, InputError, ShapeError, did_you_mean

CHUNK = 65536  # elements updated at a time: four arrays of 256 KB
ALIGN = 16  # every parameter starts on a 64-byte cache line


class FlatGroup:
    """Parameters of one dtype and one set of options, laid out one after another in flat buffers."""

    def __init__(self, parameters: list[Parameter], options: dict[str, Any], moments: tuple[str, ...]):
        self.parameters = parameters
        self.options = options
        self.starts: list[int] = []
        size = 0
        for parameter in parameters:
            self.starts.append(size)
            size += -(-parameter.numel() // ALIGN) * ALIGN
        dtype = parameters[0].dtype if parameters else np.dtype(np.float32)
        self.data, self.grad = np.zeros(size, dtype), np.zeros(size, dtype)
        self.moments = {name: np.zeros(size, dtype) for name in moments}
        self.views = []
        for parameter, start in zip(parameters, self.starts, strict=True):
            view = self.view(self.data, parameter, start)
            view[...] = parameter.data
            parameter.data = view
            buffer = self.view(self.grad, parameter, start)
            parameter.grad_buffer = buffer
            if parameter.grad is not None:
                buffer[...] = parameter.grad
                parameter.grad = buffer
            self.views.append(view)

    @staticmethod
    def view(flat: Array, parameter: Parameter, start: int) -> Array:
        """The part of a flat buffer that belongs to a parameter, in its shape."""
        return flat[start : start + parameter.numel()].reshape(parameter.shape)

    def chunks(self) -> list[slice]:
        """Slices of the flat buffers, at most CHUNK long, that cover every parameter with a gradient."""
        spans: list[list[int]] = []
        for parameter, start, view in zip(self.parameters, self.starts, self.views, strict=True):
            if parameter.data is not view:
                raise GraphError(
                    f"step: the array of parameter {parameter.name} was replaced after the optimiser was built; "
                    "write into parameter.data[...], or build the optimiser after model.to()"
                )
            if parameter.grad is None:
                continue
            if parameter.grad is not parameter.grad_buffer:  # set by hand
                if np.shape(parameter.grad) != parameter.shape:
                    raise ShapeError(
                        f"step: the gradient of parameter {parameter.name} has shape {np.shape(parameter.grad)}, but "
                        f"the parameter has shape {parameter.shape}; give a gradient of that shape"
                    )
                buffer = self.view(self.grad, parameter, start)
                buffer[...] = parameter.grad
                parameter.grad = parameter.grad_buffer = buffer
            stop = start + -(-parameter.numel() // ALIGN) * ALIGN
            if spans and spans[-1][1] == start:
                spans[-1][1] = stop
            else:
                spans.append([start, stop])
        return [slice(a, min(a + CHUNK, stop)) for start, stop in spans for a in range(start, stop, CHUNK)]


class Optimizer:
    """What AdamW and SGD share: flat groups, clipping, and the walk over chunks."""

    moment_names: tuple[str, ...] = ()

    def __init__(self, parameters: Iterable[Any], lr: float, **options: Any):
        given = list(parameters)
        groups = given if given and isinstance(given[0], dict) else [{"params": given}]
        groups = [{**options, **group, "params": list(group["params"])} for group in groups]
        if not lr >= 0:
            raise InputError(f"{type(self).__name__}: lr is {lr}; give a learning rate of 0 or more")
        if not any(group["params"] for group in groups):
            raise InputError(f"{type(self).__name__}: there are no parameters to optimise; pass model.parameters()")
        ids = [id(parameter) for group in groups for parameter in group["params"]]
        if len(set(ids)) < len(ids):
            raise InputError(f"{type(self).__name__}: a parameter is given twice; give each once, in one group")
        self.lr = lr
        self.steps = 0
        self.clip_factor = 1.0
        self.groups: list[FlatGroup] = []
        for group in groups:
            by_dtype: dict[np.dtype, list[Parameter]] = {}
            for parameter in group.pop("params"):
                by_dtype.setdefault(parameter.dtype, []).append(parameter)
            for key in group.keys() - options.keys():
                raise InputError(f"{type(self).__name__}: a group has no option {key!r}{did_you_mean(key, options)}")
            self.groups += [FlatGroup(members, group, self.moment_names) for members in by_dtype.values()]

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, group by group."""
        for group in self.groups:
            yield from group.parameters

    def zero_grad(self) -> None:
        """Forget all gradients; the next backward writes over the buffers."""
        for parameter in self.parameters():
            parameter.grad = None

    def clip_grad_norm(self, max_norm: float) -> float:
        """Have the next step scale all gradients by min(1, max_norm / norm); returns that norm.

        The scaling is part of the update, so it costs no pass of its own. The gradients themselves stay as they are.
        Source: Pascanu, Mikolov, Bengio 2013, arXiv:1211.5063, algorithm 1.
        """
        norm = math.sqrt(sum(_sum_of_squares([group.grad[chunk] for chunk in group.chunks()]) for group in self.groups))
        self.clip_factor = min(1.0, max_norm / norm) if norm > 0 else 1.0
        return norm

    def step(self) -> None:
        """Move every parameter that has a gradient."""
        self.steps += 1
        for group in self.groups:
            chunks = group.chunks()

            def update(start, stop, group=group, chunks=chunks):
                for chunk in chunks[start:stop]:
                    self.update(
                        group.data[chunk],
                        group.grad[chunk],
                        *(group.moments[name][chunk] for name in self.moment_names),
                        **group.options,
                    )

            if group.data.nbytes < backend.PARALLEL_BYTES:
                update(0, len(chunks))
            else:
                backend.parallel(update, len(chunks))
            for parameter in group.parameters:
                if parameter.grad is not None:
                    parameter.version += 1
        self.clip_factor = 1.0

    def update(self, data: Array, grad: Array, *moments: Array, **options: Any) -> None:
        """The rule, on one chunk; writes data and moments, and leaves grad as it is."""
        raise TypeError(f"{type(self).__name__}: an Optimizer needs an update method")

    def state_dict(self) -> dict[str, Array]:
        """`steps`, and each moment of each parameter as `<moment>.<parameter name>`: references, not copies."""
        state = {"steps": np.array(self.steps, np.int64)}
        for key, moment in self._named_moments():
            state[key] = moment
        return state

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy the state in, all of it or none; CheckpointError lists every entry that does not fit."""
        own = dict(self._named_moments())
        wrong = [f"missing {key}" for key in own if key not in state]
        wrong += [f"unexpected {key}" for key in state if key not in own and key != "steps"]
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
        for key, moment in own.items():
            moment[...] = state[key]

    def _named_moments(self) -> Iterator[tuple[str, Array]]:
        for number, group in enumerate(self.groups):
            for position, (parameter, start) in enumerate(zip(group.parameters, group.starts, strict=True)):
                for name, flat in group.moments.items():
                    key = parameter.name or f"{number}.{position}"
                    yield f"{name}.{key}", group.view(flat, parameter, start)


class AdamW(Optimizer):
    """Adam with decoupled weight decay.

    With gradient g at step t, and b1, b2 = betas:

        m = b1 m + (1 - b1) g          v = b2 v + (1 - b2) g^2
        w = w (1 - lr weight_decay) - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

    `parameters` is a list of parameters, or of groups {"params": [...], "weight_decay": ...} as in PyTorch.
    Memory: two numbers per parameter beside the gradient.
    Source: Loshchilov, Hutter 2017, arXiv:1711.05101, algorithm 2 (with the decay scaled by lr, as in PyTorch).
    """

    moment_names = ("exp_avg", "exp_avg_sq")

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        if not all(0 <= beta < 1 for beta in betas):
            raise InputError(f"AdamW: betas are {betas}; give two numbers of at least 0 and below 1")
        super().__init__(parameters, lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, data, grad, m, v, *, betas, eps, weight_decay):
        beta1, beta2 = betas
        g = grad if self.clip_factor == 1 else grad * self.clip_factor
        change = g - m
        change *= 1 - beta1
        m += change  # m + (1 - b1)(g - m)
        np.multiply(g, g, out=change)
        change -= v
        change *= 1 - beta2
        v += change
        np.sqrt(v, out=change)
        change *= 1 / math.sqrt(1 - beta2**self.steps)
        change += eps
        np.divide(m, change, out=change)
        change *= self.lr / (1 - beta1**self.steps)
        if weight_decay:
            data *= 1 - self.lr * weight_decay
        data -= change


class SGD(Optimizer):
    """Gradient descent with momentum: b = momentum b + g + weight_decay w, then w = w - lr b, as in PyTorch.

    Memory: one number per parameter beside the gradient.
    """

    moment_names = ("momentum",)

    def __init__(self, parameters, lr=1e-3, momentum=0.0, weight_decay=0.0):
        super().__init__(parameters, lr, momentum=momentum, weight_decay=weight_decay)

    def update(self, data, grad, buffer, *, momentum, weight_decay):
        buffer *= momentum
        buffer += grad if self.clip_factor == 1 else grad * self.clip_factor
        if weight_decay:
            buffer += weight_decay * data
        data -= self.lr * buffer


def decay_groups(parameters: Iterable[Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimiser: matrices with weight decay; biases and normalisation weights (vectors) without."""
    members = list(parameters)
    groups = [
        {"params": [p for p in members if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in members if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def clip_grad_norm_(parameters: Iterable[Parameter], max_norm: float) -> float:
    """Scale all gradients in place so that their global norm is at most max_norm; returns the norm before.

    For use without an optimiser; `Optimizer.clip_grad_norm` does the same without a pass of its own.
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = math.sqrt(_sum_of_squares([grad.reshape(-1) for grad in grads]))
    if norm > max_norm:
        for grad in grads:
            grad *= max_norm / norm
    return norm


def _sum_of_squares(vectors: list[Array]) -> float:
    squares = [0.0] * len(vectors)  # summed in order afterwards, so that threads do not change the result

    def run(start, stop):
        for i in range(start, stop):
            squares[i] = float(np.dot(vectors[i], vectors[i]))

    if sum(vector.nbytes for vector in vectors) < backend.PARALLEL_BYTES:
        run(0, len(vectors))
    else:
        backend.parallel(run, len(vectors))
    return math.fsum(squares)


# --- schedules: the learning rate of a step (from 0), as plain functions -------------------------------------------


def cosine_schedule(step: int, *, peak: float, floor: float, warmup: int, total: int) -> float:
    """Linear warmup over `warmup` steps to `peak`, then half a cosine down to `floor` at step `total`.

    Source: Loshchilov, Hutter 2016, arXiv:1608.03983, equation 5, without restarts.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * progress))


def wsd_schedule(step: int, *, peak: float, floor: float, warmup: int, total: int, decay: int) -> float:
    """Warmup, stable, decay: linear warmup to `peak`, constant, linear down to `floor` over the last `decay` steps.

    Source: Hu et al. 2024, MiniCPM, arXiv:2404.06395, section 4.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    remaining = total - step
    return peak if remaining >= decay else floor + (peak - floor) * max(0, remaining) / max(1, decay)
