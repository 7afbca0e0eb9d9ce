"""Optimisers, gradient clipping, and learning-rate schedules.

An optimiser gathers its parameters into flat buffers: `parameter.data` and `parameter.grad` become views into one
long array each. An update is then one pass over long arrays, in chunks that stay in cache, whatever the number of
parameters; a chunk's temporaries never reach memory. Where kernels are used (see `kernels.use_kernels`), it is one
launch for the whole of them, and the clip factor goes from the norm's kernel to the update's without the host.

Parameters of fewer bits than float32 have masters: the optimiser moves float32 numbers, and the parameters are these,
rounded, because a bfloat16 is not changed by an update of less than 2^-9 of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from minillm import backend, kernels
from minillm.autograd import Parameter
from minillm.backend import Array
from minillm.device import like
from minillm.errors import CheckpointError, GraphError, InputError, ShapeError, did_you_mean
from minillm.kernels import get_kernel
from minillm.sums import vecdot

SMALLEST_SUM = 1e-25  # of squares: beside it, those that float32 does not have are nothing
CHUNK = 65536  # elements updated at a time: four arrays of 256 KB
ALIGN = 16  # every parameter starts on a 64-byte cache line


class FlatGroup:
    """Parameters of one dtype and one set of options, laid out one after another in flat buffers.

    A single vector is flat already, and stays where it is: a part of a larger array, in parallel training.
    `counted`: the slices of `grad` that the norm is of; None: those with a gradient. In parallel training another rank
    may count what is here too.
    """

    counted: list[slice] | None = None

    def __init__(self, parameters: list[Parameter], options: dict[str, Any], moments: tuple[str, ...]):
        self.parameters = parameters
        self.options = options
        self.starts: list[int] = []
        size = 0
        for parameter in parameters:
            self.starts.append(size)
            size += -(-parameter.numel() // ALIGN) * ALIGN
        first = parameters[0].data
        accumulator = np.promote_types(first.dtype, np.float32)
        if len(parameters) == 1 and first.ndim == 1 and first.flags.c_contiguous:
            size, self.data = first.size, first
            self.grad = parameters[0].grad_buffer if parameters[0].grad_buffer is not None else np.zeros_like(first)
        else:
            self.data, self.grad = (np.zeros_like(first, shape=size, order="C") for _ in range(2))
        self.masters = self.data  # for fewer bits than float32 apart, and taken from the parameters at the first step
        if accumulator != first.dtype:
            self.masters = np.zeros_like(first, shape=size, dtype=accumulator, order="C")
        self.moments = {name: np.zeros_like(self.masters) for name in moments}
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

    def parts(self, part: slice) -> list[Array]:
        """That part of data, grad, masters and each moment."""
        return [flat[part] for flat in (self.data, self.grad, self.masters, *self.moments.values())]

    def chunks(self, length: int | None = CHUNK) -> list[slice]:
        """Slices of the flat buffers, at most `length` long, that cover every parameter with a gradient."""
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
            stop = min(start + -(-parameter.numel() // ALIGN) * ALIGN, self.grad.size)
            if spans and spans[-1][1] == start:
                spans[-1][1] = stop
            else:
                spans.append([start, stop])
        return _cut([slice(start, stop) for start, stop in spans], length)

    def counted_gradients(self, length: int | None = CHUNK) -> list[Array]:
        """The gradients that the norm is of, in pieces of at most `length`."""
        chunks = self.chunks(length) if self.counted is None else _cut(self.counted, length)
        return [self.grad[chunk] for chunk in chunks]


def _cut(spans: list[slice], length: int | None) -> list[slice]:
    if length is None:
        return spans
    return [slice(a, min(a + length, s.stop)) for s in spans for a in range(s.start, s.stop, length)]


class Optimizer:
    """What AdamW and SGD share: flat groups, clipping, and the walk over chunks."""

    moment_names: tuple[str, ...] = ()
    kernel = ""  # of kernels/<kernel>.cu, which `update_cuda` launches, where there is one
    add_over_ranks: Callable[[Array], None] | None = None  # where others have gradients too: sums a number with theirs

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
        self.clip_factor: Any = 1.0  # or an array of one number, made by a kernel
        self.groups: list[FlatGroup] = []
        for group in groups:
            alike: dict[Any, list[Parameter]] = {}
            for parameter in group.pop("params"):
                alike.setdefault((parameter.dtype, parameter.device), []).append(parameter)
            for key in group.keys() - options.keys():
                raise InputError(f"{type(self).__name__}: a group has no option {key!r}{did_you_mean(key, options)}")
            self.groups += [FlatGroup(members, group, self.moment_names) for members in alike.values()]

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, group by group."""
        for group in self.groups:
            yield from group.parameters

    def zero_grad(self) -> None:
        """Forget all gradients; the next backward writes over the buffers."""
        for parameter in self.parameters():
            parameter.grad = None

    def clip_grad_norm(self, max_norm: float) -> Any:
        """Have the next step scale all gradients by min(1, max_norm / norm); returns that norm.

        The scaling is part of the update, so it costs no pass of its own. The gradients themselves stay as they are.
        On a GPU the norm is an array of one number, and nobody waits for it before `float(norm)`. A norm that is not a
        number makes the next step's weights NaN, as in PyTorch: look at it before the step.
        Source: Pascanu, Mikolov, Bengio 2013, arXiv:1211.5063, algorithm 1.
        """
        accumulators = {group.masters.dtype for group in self.groups}
        if len(accumulators) == 1 and all(kernels.chosen("global_norm", group.grad) for group in self.groups):
            gradients = [gradient for group in self.groups for gradient in group.counted_gradients(length=None)]
            norm, self.clip_factor = _norm_and_factor_cuda(
                gradients, max_norm, self.groups[0].masters, self.add_over_ranks
            )
            return norm[0]
        squares = np.array([sum(_sum_of_squares(group.counted_gradients()) for group in self.groups)])
        if self.add_over_ranks is not None:
            squares = like(squares, self.groups[0].grad)
            self.add_over_ranks(squares)
        norm = math.sqrt(squares[0])
        self.clip_factor = _clip_factor(norm, max_norm)
        return norm

    def step(self) -> None:
        """Move every parameter that has a gradient."""
        self.steps += 1
        for group in self.groups:
            if self.kernel and kernels.chosen(self.kernel, group.data):
                for span in group.chunks(length=None):
                    self.update_cuda(*group.parts(span), **group.options)
            else:
                chunks = group.chunks()

                def update(start, stop, group=group, chunks=chunks):
                    with np.errstate(over="ignore", invalid="ignore"):  # a gradient that is no number passes on
                        for chunk in chunks[start:stop]:
                            self._update_masters(*group.parts(chunk), **group.options)

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
            moment[...] = like(np.asarray(state[key]), moment)

    def _named_moments(self) -> Iterator[tuple[str, Array]]:
        for number, group in enumerate(self.groups):
            for position, (parameter, start) in enumerate(zip(group.parameters, group.starts, strict=True)):
                masters = {} if group.masters is group.data else {"master": group.masters}
                for name, flat in (group.moments | masters).items():
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
    kernel = "adamw"

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

    def update_cuda(self, data, grad, masters, m, v, *, betas, eps, weight_decay):
        beta1, beta2 = betas
        factor = self.clip_factor
        if isinstance(factor, float):
            factor = np.full_like(masters, factor, shape=1)
        shared = (
            *(1 - beta1, 1 - beta2, 1 / math.sqrt(1 - beta2**self.steps), eps),
            *(self.lr / (1 - beta1**self.steps), 1 - self.lr * weight_decay),
        )
        blocks = min(2048, -(-data.size // 1024))  # of 256 threads, each with 16 bytes or more
        arguments = (data, grad, masters, m, v, factor, np.int64(data.size), *map(masters.dtype.type, shared))
        get_kernel("adamw.cu", "adamw", data.dtype)(blocks, 256, arguments)


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


def clip_grad_norm_(parameters: Iterable[Parameter], max_norm: float, *, error_if_nonfinite: bool = False) -> float:
    """Scale all gradients in place so that their global norm is at most max_norm; returns the norm before.

    For use without an optimiser; `Optimizer.clip_grad_norm` does the same without a pass of its own. As in PyTorch, one
    gradient that is NaN makes all of them NaN, and an infinite one becomes NaN and the others 0.
    Raises: InputError for such a norm, with `error_if_nonfinite`.
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = math.sqrt(_sum_of_squares([grad.reshape(-1) for grad in grads]))
    if error_if_nonfinite and not math.isfinite(norm):
        raise InputError(
            f"clip_grad_norm_: the norm of the gradients is {norm}; look for the operation that made it so"
        )
    factor = _clip_factor(norm, max_norm)
    if factor != 1:
        with np.errstate(invalid="ignore"):  # infinity times 0
            for grad in grads:
                grad *= factor
    return norm


def _clip_factor(norm: float, max_norm: float) -> float:
    """min(1, max_norm / norm), or NaN where the norm is."""
    return 1.0 if norm <= max_norm else max_norm / norm


def _norm_and_factor_cuda(
    gradients: list[Array], max_norm: float, wide: Array, add_over_ranks: Callable[[Array], None] | None = None
) -> tuple[Array, Array]:
    """The norm of all gradients together and the factor that clips it, arrays of one number each, by kernels."""
    blocks = [min(1024, -(-gradient.size // 4096)) for gradient in gradients]  # of the size alone: the order of the sum
    partials = np.empty_like(wide, shape=sum(blocks), dtype=np.float64)
    norm, factor = np.empty_like(wide, shape=(2, 1))
    first = 0
    for gradient, count in zip(gradients, blocks, strict=True):
        sum_of_squares = get_kernel("global_norm.cu", "sum_of_squares", gradient.dtype)
        sum_of_squares(count, 512, (gradient, partials[first : first + count], np.int64(gradient.size)))
        first += count
    if add_over_ranks is not None:
        partials = partials.sum(keepdims=True)
        add_over_ranks(partials)
    clip_factor = get_kernel("global_norm.cu", "clip_factor", norm.dtype)
    clip_factor(1, 512, (partials, np.int32(partials.size), norm.dtype.type(max_norm), norm, factor))
    return norm, factor


def _sum_of_squares(vectors: list[Array]) -> float:
    squares = [0.0] * len(vectors)  # summed in order afterwards, so that threads do not change the result

    def run(start, stop):
        with np.errstate(over="ignore", invalid="ignore"):
            for i in range(start, stop):
                squares[i] = _sum_of_squares_of_one(vectors[i])

    if sum(vector.nbytes for vector in vectors) < backend.PARALLEL_BYTES:
        run(0, len(vectors))
    else:
        backend.parallel(run, len(vectors))
    return math.fsum(squares)


def _sum_of_squares_of_one(vector: Array) -> float:
    """In float32 where the squares are numbers of float32: that of 1e20 is infinite there, and that of 1e-25 is 0."""
    wide = vector.astype(np.promote_types(vector.dtype, np.float32), copy=False)
    total = float(vecdot(wide, wide))
    if wide.dtype == np.float32 and wide.size and not SMALLEST_SUM < total < math.inf and (wide.max() or wide.min()):
        wide = wide.astype(np.float64)
        total = float(vecdot(wide, wide))
    return total


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
