"""What a model takes, before it is built: parameters, memory of a training step, operations a token, KV cache.

Parameters, matrix products and cache follow from shapes. What a step keeps for its backward does not: it is whatever
each operation's `Saved` says, arrays that several operations share counted once. So nothing is written down here a
second time. The model's own training step is run, hollow (`hollow`): every array is taken, and hardly one is filled.
Memory that nobody touches is an address range and no more, so a step of a billion weights takes a moment and little
memory. Three blocks are enough: the first, the last, of which XLNet reads one stream only, and one that stands for the
L - 2 between them.

**Activations**, in numbers per token and block, for C channels (GPT-2, whose MLP has 4C; no dropout):

    ln_1        C    its input, a sum of the residual stream; mean and rstd, 2
    attn.qkv    C    its input, the norm
    attention  3C    q, k and v, one array; and C, the output, which is the input of attn.proj too; lse, H
    ln_2        C    its input; mean and rstd, 2
    mlp.fc      C    its input, the norm
    gelu       4C    the slope, in the place of its input
    mlp.proj   4C    its input

together 16C + H + 4, or 64C bytes in float32 and 32C in bfloat16. Korthikanti et al. 2022 (arXiv:2205.05198, equation
1) count 34C + 5 H T bytes for 16 bits with PyTorch's kernels of that time. The parts differ: H T numbers go where
attention keeps its weights, none here; a dropout mask has a byte for each number, and none here, for it is made again.
A Llama with H heads, G key heads of size D and an MLP of F channels: C each for the inputs of two norms, of qkv, and
of gate and up (one array); C + 2GD for the product qkv, of which v is a part that keeps the whole; C + GD for q and k,
turned, beside their tables of angles; C for attention's output; 2F for the slopes of the gated unit, F for the input
of down. Before and after the blocks there are ids, the last norm, and the logits: V numbers a token, which the
backward overwrites.

**The peak** is reached early in the backward: everything is still kept, and the first gradients come on top. It is
measured on three blocks, and what the other blocks keep is added. It is that of a CPU with the threads at hand,
whose scratch memory, a few times `backend.CACHE_BYTES` each, may or may not be there at the same moment. Gradients of
weights have their own memory (optim.py). With bfloat16, arrays of float16 stand in, which NumPy has arithmetic for;
kernels on a GPU keep inputs where formulas keep slopes, as many numbers.

**The step** is that of the model's own objective (`training_batch`): the next token, tokens that are hidden, for XLNet
an order that is drawn, with both streams, or a target for each source, which is as long. A step's T tokens of BART are
those of the target; what the T tokens of the source take counts with them.

**Operations.** A matrix product of (M, K) and (K, N) has 2MKN. Forward plus backward of N weights make 6N a token
(Kaplan et al. 2020, arXiv:2001.08361, section 2.1: without the tables of tokens and positions), and attention 12 L C T
more (Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B). The count here is of the products that are really
made: with the output layer; for causal attention of few keys beyond the diagonal; and with the scores a second time.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import pkgutil
import re
import sys
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minillm import autograd, backend, gguf, hub, models, random
from minillm.autograd import Node, Op, Tensor
from minillm.backend import Array
from minillm.data.permutation import permute_tokens
from minillm.errors import InputError, did_you_mean
from minillm.kernels import use_kernels
from minillm.models.llama import Llama
from minillm.nn import Decoder, Module, uninitialized
from minillm.profile import Shapes
from minillm.training.run import Run

LONGEST = 2048  # tokens of a sequence, unless more are asked for
UNLIMITED = 512  # the same for a model without a longest one
LABELLED = 0.15  # share of the tokens that an encoder is asked for (Devlin et al. 2018, section 3.1)
DTYPES = {"float32": np.float32, "float64": np.float64, "bfloat16": np.float16}  # the last stands in, of the same size
OF_TEXTS = ("classes", "starts", "ends")  # arguments of losses that have one number for each text
TABLES = {"wte": "token table", "wpe": "position table", "wse": "sentence table"}
PARTS = {**TABLES, "attn": "attention", "cross": "attention", "mlp": "MLP", "lm_head": "output layer"}


class Amount(NamedTuple):
    """Of numbers, bytes or operations: in each block, and in the whole model."""

    block: float
    total: float


class Kept(NamedTuple):
    """Arrays that the backward needs: their part of the model, the layer and operation, and their names there."""

    part: str
    operation: str
    names: str


@dataclass(frozen=True)
class Description:
    """What a model takes: its parameters, and a training step on `batch_size` sequences of `context` tokens."""

    name: str
    config: Any
    batch_size: int
    context: int
    dtype: str
    parameters: dict[str, Amount]  # numbers, by part; tied ones once
    kept: dict[Kept, Amount]  # bytes
    peak: float  # bytes of activations and their gradients, where they are most
    forward: dict[str, Amount]  # operations of the matrix products, by part
    backward: dict[str, Amount]
    cache_token: int  # bytes of keys and values for one token of one sequence; 0 where nothing is generated
    cache_source: int  # the same for one token of the source of one target; 0 for a model without sources

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return np.dtype(DTYPES[self.dtype]).itemsize

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.batch_size * self.context

    @property
    def num_parameters(self) -> int:
        """Tied ones once."""
        return int(total(self.parameters))

    @property
    def weight_bytes(self) -> int:
        """Of the weights; their gradients take as many."""
        return self.num_parameters * self.itemsize

    @property
    def moment_bytes(self) -> int:
        """Of AdamW's two moments, which have 32 bits or more."""
        return self.num_parameters * 2 * max(4, self.itemsize)

    @property
    def master_bytes(self) -> int:
        """Of the float32 copies of weights of fewer bits."""
        return self.num_parameters * 4 if self.itemsize < 4 else 0

    @property
    def activation_bytes(self) -> int:
        """What a forward leaves for its backward."""
        return int(total(self.kept))

    @property
    def step_bytes(self) -> int:
        """The most that a training step holds at once."""
        return 2 * self.weight_bytes + self.moment_bytes + self.master_bytes + int(self.peak)

    @property
    def flops_per_token(self) -> float:
        """Of the matrix products, forward and backward."""
        return (total(self.forward) + total(self.backward)) / self.tokens

    @property
    def kaplan_parameters(self) -> int:
        """N of the 6N rule: without the tables, and without an output layer of its own."""
        left_out = {*TABLES.values(), PARTS["lm_head"]}
        return int(sum(amount.total for part, amount in self.parameters.items() if part not in left_out))


def total(amounts: Mapping[Any, Amount]) -> float:
    """Of all parts together."""
    return sum(amount.total for amount in amounts.values())


def describe(
    name: str | Path, batch_size: int | None = None, context: int | None = None, dtype: str | None = None
) -> Description:
    """What a model takes, of which `name` is a preset, a folder with config.json, a .gguf or a run directory.

    `context` is the model's own by default, but at most `LONGEST`; batch size and dtype are a run's own, or 1 and
    float32. Of files only configurations are read.
    Memory: some activations of a block. Not for several threads at once: it replaces functions of the engine.
    Raises: InputError for an unknown name, a size below 1, more tokens than the model has positions for, or a dtype
    that is not in `DTYPES`; what reading a configuration raises.
    """
    kind, config, run = opened(name)
    batch_size = run.get("batch_size", 1) if batch_size is None else batch_size
    positions = getattr(config, "context", None)  # None: as many as there are tokens
    context = min(positions or UNLIMITED, LONGEST) if context is None else context
    dtype = run.get("dtype", "float32") if dtype is None else dtype
    if batch_size < 1 or not 1 <= context <= (positions or context):
        raise InputError(
            f"describe: batch_size is {batch_size} and context is {context}; give 1 or more"
            f"{f', and a context of {positions} at most' if positions else ''}"
        )
    if dtype not in DTYPES:
        raise InputError(f"describe: dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
    stacks = Stacks({name: number for name, number in vars(config).items() if name.endswith("layers")})
    model = hub.built(name, lambda config: empty_model(kind, config, DTYPES[dtype]), replace(config, **stacks.cut))
    step = hollow_step(model, batch_size, context)
    kept = stacks.gathered((row(*key), key[0], size) for key, size in step.kept.items())
    return Description(
        str(name),
        config,
        batch_size,
        context,
        dtype,
        stacks.by_part({path: parameter.numel() for path, parameter in model.named_parameters()}),
        kept,
        step.peak + total(kept) - sum(step.kept.values()),
        stacks.by_part(step.forward),
        stacks.by_part(step.backward),
        *cache_bytes(model, config),
    )


def cache_bytes(model: Any, config: Any) -> tuple[int, int]:
    """Of a token, and of a token of the source, the keys and values in all blocks: `model` has fewer than those."""
    layers, source = getattr(config, "decoder_layers", None) or config.layers, 0
    if hasattr(model, "conditioned"):
        with hollow(Seen()):
            model = model.conditioned(np.zeros((1, 1), np.int64))
        source = sum(array.data.nbytes for array in model.memory[-1])
    if not isinstance(model, Decoder):
        return 0, 0
    cache = model.new_cache()[-1]
    return (cache.keys.nbytes + cache.values.nbytes) // config.context * layers, source * layers


# --- which model ---------------------------------------------------------------------------------------------------


def presets() -> dict[str, tuple[type[Module], Any]]:
    """Of every preset in minillm/models the class and the configuration.

    A name that several files have is told apart by the file's: `gpt2-nano`, `bert-nano`.
    """
    classes = {file: next(iter(names.values())) for file, names in reversed(hub.FAMILIES.values())}
    files = sorted(module.name for module in pkgutil.iter_modules(models.__path__))
    modules = {file: importlib.import_module(f"minillm.models.{file}") for file in files if file in classes}
    times = Counter(name for module in modules.values() for name in module.PRESETS)
    return {
        name if times[name] == 1 else f"{file}-{name}": (getattr(module, classes[file]), config)
        for file, module in modules.items()
        for name, config in module.PRESETS.items()
    }


def opened(name: str | Path) -> tuple[Callable[[Any], Any], Any, dict[str, Any]]:
    """The class and the configuration of a model; of a run also its batch size and dtype."""
    known, path = presets(), Path(name)
    if str(name) in known:
        return *known[str(name)], {}
    if not path.exists():
        raise InputError(
            f"describe: {name} is no preset, and no folder or file with a configuration{did_you_mean(str(name), known)}"
        )
    if path.suffix == ".gguf":
        return Llama, gguf.read_config(path), {}
    values = hub.read_config(path)
    if "model_type" in values or "architectures" in values:
        found = hub.described(path)
        return found.kind, found.config, {}
    run = Run.open(path if path.is_dir() else path.parent)
    config = replace(run.config.model, vocab_size=run.tokenizer.vocab_size)
    part_of_batch = -(-run.config.batch_size // run.config.micro_batches)
    return known["gpt2"][0], config, {"batch_size": part_of_batch, "dtype": run.config.dtype}


def empty_model(kind: Callable[[Any], Module], config: Any, dtype: Any) -> Module:
    """A model without numbers; its gradients, which have memory of their own, are one number for each parameter."""
    with uninitialized():
        model = kind(config)
    for parameter in model.parameters():
        if parameter.dtype != dtype:
            parameter.data = np.empty(parameter.shape, dtype)
        strides = (0,) * parameter.ndim
        parameter.grad_buffer = np.lib.stride_tricks.as_strided(np.zeros(1, dtype), parameter.shape, strides)
    return model


# --- a training step without its work ------------------------------------------------------------------------------


class Step(NamedTuple):
    """What was seen of a step; layers by their paths."""

    kept: dict[tuple[str, str, str], int]  # bytes, by layer, operation and names of arrays
    peak: int  # bytes
    forward: Counter[str]  # operations of the matrix products, by layer
    backward: Counter[str]


def training_batch(model: Any, batch_size: int, context: int) -> dict[str, Array]:
    """What the model's loss takes, or its forward if it has no loss, of ids that are all 0."""
    parameters = inspect.signature(loss_of(model)).parameters
    names = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
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
    run_op, run_parts = Op._run, backend.parallel
    attention: Any = importlib.import_module("minillm.ops.attention")
    query_blocks = attention._query_blocks

    def noted_op(op: Op, arrays: list, settings: dict) -> tuple:
        layer = autograd.enter_scope("")
        autograd.enter_scope(layer)
        seen.flops = 0.0
        (out, saved), backward = run_op(op, arrays, settings)
        seen.forward[layer] += 2 * product_of_scores(saved) or seen.flops  # type: ignore[assignment]  # floats
        seen.saved.append((layer, op.name, saved))
        return (out, saved), functools.partial(noted_backward, layer, backward)

    def noted_backward(layer: str, backward: Callable, dout: Any, saved: Any, *into: Any) -> Any:
        seen.flops = 0.0
        result = backward(dout, saved, *into)
        seen.backward[layer] += 5 * product_of_scores(saved) or seen.flops  # type: ignore[assignment]
        return result

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
    with warnings.catch_warnings(), use_kernels("off"), swapped(stand_ins):
        warnings.simplefilter("ignore", RuntimeWarning)  # of what the memory happens to hold
        Op._run = noted_op  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            Op._run = run_op  # type: ignore[method-assign]


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


# --- from layers to parts and blocks -------------------------------------------------------------------------------


class Stacks:
    """The blocks of a model: how many there are, by the names of fields such as `layers` and `encoder_layers`."""

    def __init__(self, numbers: dict[str, int]):
        self.numbers = numbers
        self.cut = {name: min(3, number) for name, number in numbers.items()}  # so many are looked at

    def times(self, layer: str) -> int:
        """How many blocks of the whole model a layer stands for; 0 where it is not in the middle of those looked at."""
        stack, number, _ = split(layer)
        field = next((name for name in self.numbers if stack.startswith(name.removesuffix("layers").rstrip("_"))), "")
        middle = (self.cut[field] - 1) // 2 if field else None
        return 1 + self.numbers[field] - self.cut[field] if field and number == middle else 0

    def gathered(self, sizes: Iterable[tuple[Any, str, float]]) -> dict[Any, Amount]:
        """Of (key, layer, size) the sizes by key; the middle block stands for all between the first and the last."""
        amounts: dict[Any, Amount] = {}
        for key, layer, size in sizes:
            times = self.times(layer)
            block, all_blocks = amounts.get(key, (0, 0))
            amounts[key] = Amount(block + bool(times) * size, all_blocks + (times or 1) * size)
        return amounts

    def by_part(self, sizes: Mapping[str, float]) -> dict[str, Amount]:
        """Sizes of layers by part of the model."""
        return self.gathered((part(layer), layer, size) for layer, size in sizes.items())


def split(layer: str) -> tuple[str, int | None, str]:
    """The stack, the number of the block, None for a layer in no block, and the path within: ("h", 3, "attn.qkv")."""
    match = re.match(r"(.*?)\.(\d+)(?:\.|$)", layer)
    return (match[1], int(match[2]), layer[match.end() :]) if match else ("", None, layer)


def part(layer: str) -> str:
    """The part of the model that a layer or parameter belongs to."""
    _, number, rest = split(layer)
    first = re.sub(r"^(encoder|decoder)\.", "", rest).partition(".")[0]
    if re.match(r"ln|norm", first):
        return "norms"
    return PARTS.get(first, "heads, loss" if number is None else "others")


def row(layer: str, operation: str, names: str) -> Kept:
    """Where arrays are listed."""
    return Kept(part(layer), f"{split(layer)[2]} {operation}".strip(), names)


# --- as tables -----------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """Texts to print."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def tables(found: Description) -> Iterator[Table]:
    """Parameters, what is kept for the backward, the memory of a step, and the operations of a token."""
    step = f"a step of {found.batch_size} x {found.context} tokens in {found.dtype}"
    rows: list[tuple[str, ...]] = [
        (name, f"{n.block:,.0f}", f"{n.total:,.0f}", in_bytes(n.total * found.itemsize))
        for name, n in with_sum(found.parameters)
    ]
    columns: tuple[str, ...] = ("part", "in a block", "in all", f"in {found.dtype}")
    yield Table(f"{found.name}: parameters", columns, rows)

    one = found.tokens * found.itemsize * found.config.channels
    kept = {key: found.kept[key] for key in sorted(found.kept, key=lambda key: key.part)}
    rows = [
        (*key, f"{n.block / one:.2f} C" if n.block else "", in_bytes(n.block), in_bytes(n.total))
        for key, n in with_sum(kept, Kept("all", "", ""))
    ]
    columns = ("part", "operation", "arrays", "in a block, a token", "in a block", "in all")
    yield Table(f"kept for the backward by {step}; C is {found.config.channels} numbers", columns, rows)

    held = {
        "weights": found.weight_bytes,
        "gradients of weights": found.weight_bytes,
        "float32 copies of weights": found.master_bytes,
        "AdamW's two moments": found.moment_bytes,
        "kept for the backward": found.activation_bytes,
        "more at the peak": int(found.peak) - found.activation_bytes,
        "at the peak": found.step_bytes,
        "KV cache, for each token": found.cache_token,
    }
    if found.cache_token:
        longest = found.batch_size * found.config.context
        held["KV cache, for each token of a source"] = found.cache_source
        both = "of target and source" if found.cache_source else "tokens"
        size = (found.cache_token + found.cache_source) * longest
        held[f"KV cache, {found.batch_size} x {found.config.context} {both}"] = size
    yield Table(f"memory of {step}", ("", "bytes"), [(name, in_bytes(size)) for name, size in held.items() if size])

    names = dict.fromkeys([*found.forward, *found.backward])
    products = {name: [way.get(name, Amount(0, 0)).total for way in (found.forward, found.backward)] for name in names}
    products["all"] = [sum(column) for column in zip(*products.values(), strict=True)]
    rows = [(name, *(f"{n / found.tokens:,.0f}" for n in both)) for name, both in products.items() if any(both)]
    yield Table(f"operations of the matrix products, a token of {step}", ("part", "forward", "backward"), rows)


def rules(found: Description) -> Iterator[str]:
    """The count of operations beside the rules of thumb."""
    rule, exact = 6 * found.kaplan_parameters, found.flops_per_token
    layers = sum(number for name, number in vars(found.config).items() if name.endswith("layers"))
    attention = 12 * layers * found.config.channels * found.context
    yield f"counted, forward and backward: {exact:.4g} operations a token"
    number = f"N = {found.kaplan_parameters:,} without tables"
    yield f"6N (Kaplan et al. 2020), {number}: {rule:.4g}, {rule / exact:.2f} of it"
    yield f"6N + 12 L C T (PaLM 2022, appendix B): {rule + attention:.4g}, {(rule + attention) / exact:.2f} of it"


def with_sum(amounts: Mapping[Any, Amount], name: Any = "all") -> Iterator[tuple[Any, Amount]]:
    """The amounts, and after them their sum."""
    yield from amounts.items()
    yield name, Amount(sum(amount.block for amount in amounts.values()), total(amounts))


def in_bytes(size: float) -> str:
    """12.3 MB: three digits, in powers of 1000."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        del units[0]
    return f"{size:.3g} {units[0]}"
