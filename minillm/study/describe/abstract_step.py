"""A training step that takes its usual memory but hardly computes: what it keeps, its peak and its FLOPs."""

from __future__ import annotations

import contextlib
import inspect
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from minillm import backend, random
from minillm.autograd import Backward, Forward, Node, Tensor, observe
from minillm.backend import Array, Product, observe_products, product_flops
from minillm.data.permutation import permute_tokens
from minillm.device import is_on_gpu
from minillm.engine import engine
from minillm.fast.attention import Saved, query_blocks
from minillm.ops import OPS

LABELLED = 0.15  # share of the tokens that an encoder is asked for (Devlin et al. 2018, section 3.1)
OF_TEXTS = ("classes", "starts", "ends")  # arguments of losses that have one number for each text


class Step(NamedTuple):
    """The bytes and FLOPs of a step; layers by their paths."""

    kept: dict[tuple[str, str, str], int]  # bytes, by layer, operation and names of arrays
    peak: int  # bytes
    forward: Counter[str]  # FLOPs of the matrix products, by layer
    backward: Counter[str]


def training_batch(model: Any, batch_size: int, context: int) -> dict[str, Array]:
    """The arguments of the model's loss, or of its forward if it has no loss; all ids are 0."""
    parameters = inspect.signature(loss_of(model)).parameters
    names = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    ids = np.zeros((batch_size, context), np.int64)
    if "labels" in names and "target_mapping" in parameters:
        drawn = permute_tokens(ids, reuse_len=model.config.reuse_len, generator=random.Generator())
        return drawn._asdict()
    arrays = {name: np.zeros_like(ids[:, 0] if name in OF_TEXTS else ids) for name in names}
    if "labels" in names:
        arrays["labels"].reshape(-1)[max(1, round(LABELLED * ids.size)) :] = -100
    return arrays


def loss_of(model: Any) -> Callable[..., Any]:
    """The model's loss, or its forward if it has no loss."""
    return model.loss if hasattr(model, "loss") else model.forward


def abstract_step(model: Any, batch_size: int, context: int) -> Step:
    """Run forward and backward of one batch with their usual memory, but hardly compute (backend.abstract).

    The gradients of the weights have memory of their own, and are one number for each here; those that a model had
    before come back, as its optimiser may still add to them.
    """
    batch = training_batch(model, batch_size, context)
    given = {id(owner(x)) for x in (*batch.values(), *model.state_dict().values())}
    notes, was_tracing, stream = Notes(), tracemalloc.is_tracing(), random.default.state()
    for op in OPS:
        op.pair("fast")  # loaded now: the memory of an import is not the step's
    np.random.default_rng  # noqa: B018 NumPy loads its random numbers when they are first asked for
    if not was_tracing:
        tracemalloc.start()
    try:
        with (
            gradients_apart(model),
            abstract_engine(),
            observe(notes.after_forward, notes.after_backward),
            observe_products(notes.products),
        ):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            loss = loss_of(model)(**batch)
            kept = notes.kept(loss, given)
            notes.saved.clear()
            loss.backward(np.zeros_like(loss.data))
            peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        random.default.set_state(stream)  # dropout has moved it
        if not was_tracing:
            tracemalloc.stop()
    return Step(kept, peak, notes.forward, notes.backward)


@contextlib.contextmanager
def gradients_apart(model: Any) -> Iterator[None]:
    """Let backward write the gradients of a model elsewhere within this context, to one number for each weight."""
    parameters = list(model.parameters())
    before = [(parameter.grad, parameter.grad_buffer) for parameter in parameters]
    for parameter in parameters:
        parameter.grad = parameter.grad_buffer = None
        if isinstance(parameter.data, np.ndarray):
            one = np.zeros(1, parameter.dtype)
            parameter.grad_buffer = np.lib.stride_tricks.as_strided(one, parameter.shape, (0,) * parameter.ndim)
    try:
        yield
    finally:
        for parameter, (grad, buffer) in zip(parameters, before, strict=True):
            parameter.grad, parameter.grad_buffer = grad, buffer


@contextlib.contextmanager
def abstract_engine() -> Iterator[None]:
    """Run fast pairs within this context, which take their usual memory but hardly compute."""
    with engine("fast"), backend.abstract():
        yield


class Notes:
    """The notes that the observers of an abstract step take."""

    def __init__(self) -> None:
        self.saved: list[tuple[str, str, Any]] = []  # layer, operation, and what it keeps
        self.forward: Counter[str] = Counter()  # FLOPs by layer
        self.backward: Counter[str] = Counter()
        self.flops = 0.0  # of the products since the last operation ended

    def products(self, products: tuple[Product, ...]) -> None:
        """Count products before they are made, or left out."""
        self.flops += sum(product_flops(product.a.shape, product.b.shape) for product in products)

    def after_forward(self, call: Forward) -> None:
        """Note what an operation keeps; attention's forward makes two products with the scores."""
        self.forward[call.scope] += 2 * product_of_scores(call.saved) or self.flops  # type: ignore[assignment]
        if call.node is not None:  # what no gradient goes through is freed at once
            self.saved.append((call.scope, call.op.name, call.saved))
        self.flops = 0.0

    def after_backward(self, call: Backward) -> None:
        """Note the products of a backward; attention's makes five with the scores."""
        self.backward[call.scope] += 5 * product_of_scores(call.node.saved) or self.flops  # type: ignore[assignment]
        self.flops = 0.0

    def kept(self, loss: Tensor, given: set[int]) -> dict[tuple[str, str, str], int]:
        """Bytes of the arrays that a backward needs, without those given; a shared one counts where first kept."""
        needed, counted = {id(node.saved) for node in nodes(loss)}, set(given)
        sizes: Counter[tuple[str, str, str]] = Counter()
        for layer, operation, saved in self.saved:
            new: dict[int, tuple[int, list[str]]] = {}  # bytes, and the names that show them
            for name, array in arrays_of(saved) if id(saved) in needed else ():
                memory = owner(array)
                if id(memory) not in counted:
                    new.setdefault(id(memory), (memory.nbytes, []))[1].append(name)
            for size, names in new.values():
                sizes[layer, operation, ", ".join(names)] += size
            counted |= new.keys()
        return sizes


def nodes(tensor: Tensor) -> Iterator[Node]:
    """The operations that led to a tensor."""
    stack = [tensor.node]
    found = set(stack)
    while stack:
        node = stack.pop()
        assert node is not None
        yield node
        parents = {edge[0] for edge in node.edges if edge is not None and isinstance(edge[0], Node)} - found
        found |= parents
        stack += parents


def arrays_of(saved: Any, name: str = "") -> Iterator[tuple[str, Array]]:
    """Every array that an operation keeps, with its name there."""
    if isinstance(saved, np.ndarray) or is_on_gpu(saved):
        yield name, saved
    elif isinstance(saved, (tuple, list)):
        for inside, value in zip(getattr(saved, "_fields", [name] * len(saved)), saved, strict=True):
            yield from arrays_of(value, inside)


def owner(array: Array) -> Array:
    """The array whose memory this one shows."""
    while isinstance(array.base, np.ndarray) or is_on_gpu(array.base):
        array = array.base
    return array


def product_of_scores(saved: Any) -> float:
    """FLOPs of one product with the scores that attention looks at; 0 for another operation.

    An abstract step runs only one of attention's blocks, so its products are counted from shapes.
    """
    if not isinstance(saved, Saved):
        return 0.0
    (batch, heads, queries, head_size), keys = saved.q.shape, saved.k.shape[2]
    blocks = query_blocks(queries, keys, saved.causal)
    scores = sum((rows.stop - rows.start) * visible for rows, visible in blocks)
    return 2.0 * batch * heads * scores * head_size
