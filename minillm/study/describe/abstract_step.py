"""A training step that takes its usual memory but hardly computes: what it keeps, its peak and its FLOPs."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from minillm import backend, random
from minillm.autograd import Backward, Forward, Node, Tensor, observe
from minillm.backend import Array
from minillm.data.permutation import permute_tokens
from minillm.engine import engine
from minillm.study.profile import Shapes

LABELLED = 0.15  # share of the tokens that an encoder is asked for (Devlin et al. 2018, section 3.1)
OF_TEXTS = ("classes", "starts", "ends")  # arguments of losses that have one number for each text


class Step(NamedTuple):
    """What was seen of a step; layers by their paths."""

    kept: dict[tuple[str, str, str], int]  # bytes, by layer, operation and names of arrays
    peak: int  # bytes
    forward: Counter[str]  # operations of the matrix products, by layer
    backward: Counter[str]


def training_batch(model: Any, batch_size: int, context: int) -> dict[str, Array]:
    """What the model's loss takes, or its forward if it has no loss, of ids that are all 0."""
    parameters = inspect.signature(loss_of(model)).parameters
    names = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    ids = np.zeros((batch_size, context), np.int64)
    if "labels" in names and "target_mapping" in parameters:
        drawn = permute_tokens(ids, reuse_len=model.config.reuse_len, generator=random.Generator())
        return drawn._asdict()
    arrays = {name: np.zeros_like(ids[:, 0] if name in OF_TEXTS else ids) for name in names}
    if "labels" in names:
        arrays["labels"].reshape(-1)[max(1, round(LABELLED * ids.size)) :] = -100
    return arrays


def loss_of(model: Any) -> Callable[..., Any]:
    """The loss, or what a model without one is called with."""
    return model.loss if hasattr(model, "loss") else model.forward


def hollow_step(model: Any, batch_size: int, context: int) -> Step:
    """Forward and backward of one batch, hollow."""
    batch = training_batch(model, batch_size, context)
    given = {id(owner(x)) for x in (*batch.values(), *model.state_dict().values())}
    seen, was_tracing, stream = Seen(), tracemalloc.is_tracing(), random.default.state()
    if not was_tracing:
        tracemalloc.start()
    try:
        with hollow(seen):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            loss = loss_of(model)(**batch)
            kept = seen.kept(loss, given)
            seen.saved.clear()
            loss.backward(np.zeros_like(loss.data))
            peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        random.default.set_state(stream)  # dropout has moved it
        if not was_tracing:
            tracemalloc.stop()
    return Step(kept, peak, seen.forward, seen.backward)


class Seen:
    """Notes on a hollow step."""

    def __init__(self) -> None:
        self.saved: list[tuple[str, str, Any]] = []  # layer, operation, and what it keeps
        self.forward: Counter[str] = Counter()
        self.backward: Counter[str] = Counter()
        self.flops = 0.0  # of the operation at hand

    def kept(self, loss: Tensor, given: set[int]) -> dict[tuple[str, str, str], int]:
        """Bytes of the arrays that a backward needs, beside those given; a shared one where it is kept first."""
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
    """Every array in what an operation keeps, with its name there."""
    if isinstance(saved, np.ndarray):
        yield name, saved
    elif isinstance(saved, (tuple, list)):
        for inside, value in zip(getattr(saved, "_fields", [name] * len(saved)), saved, strict=True):
            yield from arrays_of(value, inside)


def owner(array: Array) -> Array:
    """The array whose memory this one shows."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


@contextlib.contextmanager
def hollow(seen: Seen) -> Iterator[None]:
    """Within, operations take the memory that they always take, but fill little of it; what they do is noted.

    - A matrix product is not made.
    - Of a loop over row blocks each thread runs the first block, of parts that are handed to threads the first part.
    - Attention runs its last block of queries, the one with the most keys.
    """
    run_parts = backend.parallel
    attention: Any = importlib.import_module("minillm.ops.attention")
    query_blocks = attention._query_blocks

    def after_forward(call: Forward) -> None:
        seen.forward[call.scope] += 2 * product_of_scores(call.saved) or seen.flops  # type: ignore[assignment]  # floats
        seen.saved.append((call.scope, call.op.name, call.saved))
        seen.flops = 0.0

    def after_backward(call: Backward) -> None:
        seen.backward[call.scope] += 5 * product_of_scores(call.node.saved) or seen.flops  # type: ignore[assignment]
        seen.flops = 0.0

    def product_of_scores(saved: Any) -> float:
        """Operations of one product with the scores that attention looks at; 0 for another operation."""
        if not isinstance(saved, attention.Saved):
            return 0.0
        (batch, heads, queries, head_size), keys = saved.q.shape, saved.k.shape[2]
        scores = sum((rows.stop - rows.start) * seen for rows, seen in query_blocks(queries, keys, saved.causal))
        return 2.0 * batch * heads * scores * head_size

    def no_products(*products: backend.Product) -> list[Array]:
        outs = []
        for a, b, out, add, _ in products:
            seen.flops += Shapes(a.shape, b.shape, False, False, "").flops
            if out is None or add:  # what is added is made first
                stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
                made = np.empty((*stack, a.shape[-2], b.shape[-1]), np.result_type(a, b))
            outs.append(made if out is None else out)
        return outs

    def first_rows(formula: Callable, array: Array) -> None:
        block = max(1, backend.CACHE_BYTES // max(1, array[:1].nbytes))

        def first(start: int, stop: int) -> None:
            formula(slice(start, min(start + block, stop)))

        if array.nbytes < backend.PARALLEL_BYTES:
            first(0, len(array))
        else:
            run_parts(first, len(array))

    def first_parts(function: Callable, count: int) -> None:
        run_parts(function, min(count, backend.threads))

    def last_queries(*sizes: Any) -> Iterator[tuple[slice, int]]:
        yield list(query_blocks(*sizes))[-1]

    stand_ins: dict[Any, Callable] = {
        backend.matmuls: no_products,
        backend.row_blocks: first_rows,
        backend.parallel: first_parts,
        query_blocks: last_queries,
    }
    with warnings.catch_warnings(), engine("fast"), swapped(stand_ins):
        warnings.simplefilter("ignore", RuntimeWarning)  # of what the memory happens to hold
        with observe(after_forward, after_backward):
            yield


@contextlib.contextmanager
def swapped(stand_ins: Mapping[Any, Callable]) -> Iterator[None]:
    """Within, functions are replaced, under every name that a module of minillm has for them."""
    places = [
        (module, name, value)
        for key, module in list(sys.modules.items())
        if key.startswith("minillm.")
        for name, value in vars(module).items()
        if type(value) is type(swapped) and value in stand_ins
    ]
    try:
        for module, name, value in places:
            setattr(module, name, stand_ins[value])
        yield
    finally:
        for module, name, value in places:
            setattr(module, name, value)
