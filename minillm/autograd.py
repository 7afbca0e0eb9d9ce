"""Operations: each is a pair of plain functions on arrays, and running one leaves a node for the backward walk.

`forward(*arrays, **settings)` returns the output and what its backward needs (`saved`); `backward(dout, saved)` returns
the gradient of every input. Neither knows of tensors, so both run on arrays in a REPL, and a breakpoint in a backward
shows arrays under the derivation's names, with three frames between it and your line:

    layernorm_backward  <-  node_backward  <-  run_backward  <-  Tensor.backward  <-  your line

The graph is made of nodes. Its edges lead from a node to the nodes that made its inputs, not to tensors: an
intermediate array that no backward needs is freed as soon as the forward has used it. Only a leaf (a parameter, or
any tensor with requires_grad that no operation made) is held by its edge, because that is where gradients end up. How
the graph is walked is in backward.py, what a tensor is in tensor.py, which pair of functions runs in engine.py.

A node keeps references to the arrays that its backward reads. It copies index arrays, boolean arrays and plain NumPy
arrays. The engine detects a tensor changed in place, and a parameter that the optimiser updated, and refuses the
backward. It cannot detect a write into `x.data` (or into `x.numpy()`, or the array that a `Tensor(array)` was made of)
between forward and backward: don't.

To see what happens, without changing it, there is `observe`.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import numpy as np

from minillm import module_hints
from minillm.backend import Array
from minillm.backward import Backward, Hook, Node, run_backward
from minillm.device import device_of, is_on_gpu
from minillm.engine import Pair, find_pair, rooms_for, takes_into, uses_kernel
from minillm.errors import DeviceError, GraphError, MinillmError, ShapeError
from minillm.grad_mode import (
    Observer,
    enable_grad,
    enter_scope,
    inference_mode,
    is_grad_enabled,
    no_grad,
    quiet,
    set_grad_enabled,
    state,
)
from minillm.leaves import Into
from minillm.tensor import Parameter, Tensor, refuse_second_order, tensor

__all__ = [
    "Backward",
    "Forward",
    "Hook",
    "Into",
    "Node",
    "Op",
    "Parameter",
    "Tensor",
    "enable_grad",
    "enter_scope",
    "grad",
    "inference_mode",
    "is_grad_enabled",
    "no_grad",
    "observe",
    "set_grad_enabled",
    "snapshot",
    "tensor",
]


class Op:
    """A differentiable operation: a name, a forward and a backward.

    forward(*arrays, **settings) -> (output array or tuple of them, saved)
    backward(dout, saved) -> one gradient for each input of forward, or None where there is none

    With several outputs, `dout` is a tuple with None for an output that reached no gradient. A backward never writes
    into `dout`. With `aliases`, a returned gradient may share memory with dout or with another returned gradient (as in
    `add`), so the engine must not add into it. Example: add returns dy twice; the engine then allocates a sum instead
    of adding in place.

    An operation that is written in `<package>/ops/` has two more pairs where there are files of its name:
    `<package>/fast/<name>.py` for the CPU, `<package>/cuda/<name>.py` to launch kernels. Each holds `forward` and
    `backward` with the signatures above; a forward returns NotImplemented for what it does not do, and then the next
    pair is asked. `pairs` holds what was found. A backward may take a third argument, `into` (see
    engine.Pair); it is known by that name, or by writes_into=True.
    """

    __slots__ = ("aliases", "backward", "forward", "name", "pairs", "writes_into")

    def __init__(
        self, name: str, forward: Callable, backward: Callable, *, aliases: bool = False, writes_into: bool = False
    ):
        self.name = name
        self.forward = forward
        self.backward = backward
        self.aliases = aliases
        self.writes_into = writes_into or takes_into(backward)
        self.pairs: dict[str, Pair | None] = {}

    def __repr__(self) -> str:
        return f"Op({self.name})"

    def pair(self, room: str) -> Pair | None:
        """The pair of a room, "fast" or "cuda", looked for when it is first asked for; None where there is none."""
        if room not in self.pairs:
            self.pairs[room] = find_pair(room, self.name, self.forward, self.backward)
        return self.pairs[room]

    def __call__(self, *inputs: Any, **settings: Any) -> Any:
        """Run forward on the inputs' arrays; record a node if a gradient could be asked for.

        Called by the public function of the op, whose caller's line the node remembers.
        """
        arrays, edges, shapes, recorded, fixed = [], [], [], False, False
        for x in inputs:
            if isinstance(x, Tensor):
                arrays.append(x.data)
                shapes.append(x.data.shape)
                if x._requires_grad:
                    recorded = True
                    edges.append(x._edge() if x.node is None else (x.node, x.index))
                else:
                    fixed = True
                    edges.append(None)
            else:
                arrays.append(x)
                edges.append(None)
                shapes.append(None)
                fixed = fixed or type(x) not in _NO_ARRAYS
        recorded = recorded and state.grad_enabled
        constants = _kept(inputs, arrays) if recorded and fixed else ()
        observers = state.observers
        started = _announced(observers, self, arrays, settings) if observers else 0.0
        if state.quiet:
            (out, saved), backward, writes_into = self._run(arrays, settings)
        else:
            with quiet():
                (out, saved), backward, writes_into = self._run(arrays, settings)
        node = None
        if recorded:
            try:
                frame = sys._getframe(2)  # of whoever called the public function
            except ValueError:
                frame = sys._getframe(1)  # a module that calls the Op itself
            if frame.f_globals.get("__name__", "")[:11] in ("minillm.ops", "importlib._"):
                frame = _caller(sys._getframe(1))
            where = frame.f_code, frame.f_lasti  # only the code and the position: a kept frame would pin its arrays
            node = Node(self, backward, writes_into, saved, tuple(edges), tuple(shapes), constants, out, where)
        if observers:
            outs = out if type(out) is tuple else (out,)
            call = Forward(self, arrays, settings, outs, saved, node, time.perf_counter() - started)
            for observer in observers:
                if observer.on_forward is not None:
                    observer.on_forward(call)
        if node is None:
            return tuple([_result(y, inputs) for y in out]) if type(out) is tuple else _result(out, inputs)
        if type(out) is tuple:
            return tuple([Tensor._made_by(node, index, y) for index, y in enumerate(out)])
        return Tensor._made_by(node, 0, out)

    def _run(self, arrays: list, settings: dict) -> tuple[tuple, Callable, bool]:
        """The forward's result, by the first pair that takes these arrays, and the backward that belongs to it."""
        first = arrays[0]
        if type(first) is not np.ndarray:  # 2 / x, or on a GPU
            first = next((x for x in arrays if hasattr(x, "dtype")), first)
        result: Any = NotImplemented
        backward, writes_into, pairs = self.backward, self.writes_into, self.pairs
        try:
            for room in rooms_for(first):
                pair = pairs[room] if room in pairs else self.pair(room)
                if pair is None or (room == "cuda" and not uses_kernel(pair.kernel, first)):
                    continue
                result = pair.forward(*arrays, **settings)
                if result is not NotImplemented:
                    backward, writes_into = pair.backward, pair.writes_into
                    break
                if room == "cuda":
                    uses_kernel(pair.kernel, first, refused="these shapes or settings")  # raises if it is required
            if result is NotImplemented:
                result = self.forward(*arrays, **settings)
                if hasattr(first, "dtype") and first.dtype.kind == "V":  # bfloat16, whose kind is void for NumPy
                    result = _rounded(result, arrays, settings)
        except (TypeError, ValueError) as error:
            explained = self._explained(error, arrays)
            if explained is None:
                raise
            raise explained from None
        return result, backward, writes_into

    def _explained(self, error: Exception, arrays: list) -> MinillmError | None:
        """An error of NumPy or CuPy about devices or shapes with the operation's name; None for any other error."""
        if isinstance(error, MinillmError):
            return None
        if isinstance(error, TypeError):
            places = sorted({device_of(x) for x in arrays if hasattr(x, "shape") and x.shape})
            if len(places) < 2:  # otherwise CuPy only says that it does not support the type
                return None
            return DeviceError(
                f"{self.name}: the inputs are on {' and '.join(places)}; move them to one device with .to(...)"
            )
        if "broadcast" not in str(error):
            return None
        shapes = " and ".join(str(x.shape) for x in arrays if hasattr(x, "shape"))
        return ShapeError(f"{self.name}: the shapes {shapes} do not broadcast")


def _rounded(result: tuple, arrays: list, settings: dict) -> tuple:
    """The result of a forward on bfloat16, rounded to it: NumPy computes bfloat16 beside numbers in float32.

    Among arrays of other dtypes, or with a setting `dtype`, the result stays as it is. The walk rounds gradients
    likewise (see backward.py).
    """
    dtypes = {x.dtype for x in arrays if hasattr(x, "dtype") and x.dtype.kind in "fV"}
    if len(dtypes) > 1 or "dtype" in settings:
        return result
    (out, saved), [dtype] = result, dtypes
    outs = [y.astype(dtype) if y.dtype.kind == "f" else y for y in (out if type(out) is tuple else (out,))]
    return (tuple(outs) if type(out) is tuple else outs[0]), saved


def _caller(frame: FrameType) -> FrameType:
    """The first frame outside of the operations, from the public function's on; a module's own, if it is one."""
    while frame.f_back is not None and frame.f_code.co_name != "<module>":
        frame = frame.f_back
        if not frame.f_globals.get("__name__", "").startswith("minillm.ops"):
            break
    return frame


_NO_ARRAYS = (float, int, type(None))  # what an operation may be given besides tensors and arrays


def _is_frozen(array: Any) -> bool:
    """True if neither an array nor the arrays it is a view of can be written to."""
    while type(array) is np.ndarray and not array.flags.writeable:
        if array.base is None:
            return True
        array = array.base
    return False


def snapshot(array: Array) -> Array:
    """A copy of an array for a backward, whatever becomes of the original; stretched axes stay stretched."""
    if _is_frozen(array):
        return array
    if 0 not in array.strides:
        return array.copy()
    stretched = [stride == 0 and size > 1 for size, stride in zip(array.shape, array.strides, strict=True)]
    small = array[tuple([slice(0, 1) if one else slice(None) for one in stretched])]
    return np.broadcast_to(small.copy(), array.shape)


def _kept(inputs: tuple, arrays: list) -> list:
    """Copy index, boolean and plain NumPy arrays; return the versions of the tensors that need no gradient."""
    constants = []
    for position, x in enumerate(inputs):
        if isinstance(x, Tensor):
            if not x._requires_grad and x.data.dtype.kind in "iub":
                arrays[position] = snapshot(x.data)
            elif not x._requires_grad:
                version = x._shared_version()
                constants.append((version, version.number, position))
        elif isinstance(x, np.ndarray) or is_on_gpu(x):
            arrays[position] = snapshot(x)
    return constants


def _result(data: Any, inputs: tuple) -> Tensor:
    """An output that nothing was recorded for; a view of an input shares its version, as it shares its memory."""
    out = Tensor(data)
    for x in inputs:
        if isinstance(x, Tensor) and (x._cut is not None or x._requires_grad):
            out._cut = x._cut or "no_grad"
    owner = getattr(out.data, "base", None)
    if owner is not None:
        for x in inputs:
            if isinstance(x, Tensor) and (x.data is owner or getattr(x.data, "base", None) is owner):
                out._version = x._shared_version()
    return out


# --- watching ------------------------------------------------------------------------------------------------------


class Forward:
    """A finished forward: its operation, inputs (arrays), settings, outputs, saved arrays, and seconds.

    `node` is what the backward will walk through, or None where nothing was recorded.
    """

    __slots__ = ("inputs", "node", "op", "outputs", "saved", "scope", "seconds", "settings")

    def __init__(self, op, inputs, settings, outputs, saved, node, seconds):
        self.op: Op = op
        self.inputs: list = inputs
        self.settings: dict = settings
        self.outputs: tuple = outputs
        self.saved: Any = saved
        self.node: Node | None = node
        self.scope: str = state.scope
        self.seconds: float = seconds


def _announced(observers: tuple[Observer, ...], op: Op, arrays: list, settings: dict) -> float:
    """Tell the observers that a forward is about to run; returns the time at which it begins."""
    for observer in observers:
        if observer.before_forward is not None:
            observer.before_forward(op, arrays, settings)
    return time.perf_counter()


@contextlib.contextmanager
def observe(
    on_forward: Callable[[Forward], Any] | None = None,
    on_backward: Callable[[Backward], Any] | None = None,
    on_module: Callable[[Any, tuple, Any], Any] | None = None,
    before_forward: Callable[[Op, list, dict], Any] | None = None,
    before_backward: Callable[[Node, list], Any] | None = None,
) -> Iterator[None]:
    """Call these functions for what this thread runs until the block ends; nothing is changed by being watched.

    on_forward(call): after each operation's forward; `call` has op, inputs, settings, outputs, saved, node, scope and
    seconds (see Forward).
    on_backward(call): after each operation's backward; `call` has node, op, scope, douts, dinputs and seconds (see
    Backward); `call.node.saved` is still there.
    on_module(module, inputs, output): after each module's forward, those inside before those around them; inputs given
    by name follow the others.
    before_forward(op, inputs, settings) and before_backward(node, douts): before each of them runs; `node.backward` is
    the function that will run.

    The arrays of a call are those of the step, which may write into them when the function has returned: the engine
    adds later gradients to `dinputs`, and cross_entropy(overwrite=True) takes the memory of the logits. Copy what is to
    be kept. While somebody observes backwards, gradients of weights are made apart and then added, so that `dinputs`
    has them.

    Observers that are entered later are called later. A function that raises ends the step with its error.
    """
    observer = Observer(on_forward, on_backward, on_module, before_forward, before_backward)
    state.observers = (*state.observers, observer)
    try:
        yield
    finally:
        state.observers = tuple([one for one in state.observers if one is not observer])


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple:
    """The gradients of the outputs (of their sum, each times its grad_outputs) with respect to the inputs, as arrays.

    Inputs may be leaves or intermediate tensors. No tensor's `grad` changes. The graph is released, from the outputs
    down to the inputs, unless retain_graph=True.
    Raises: GraphError where no gradient was asked for, and for an input that no output depends on, unless
    allow_unused=True gives None for it.
    """
    refuse_second_order("grad", create_graph)
    roots = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    leaves = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    several = isinstance(grad_outputs, (tuple, list))
    given = list(grad_outputs) if several else [grad_outputs] * (len(roots) if grad_outputs is None else 1)
    if len(given) != len(roots):
        raise ShapeError(f"grad: {len(given)} grad_outputs are given for {len(roots)} outputs; give one for each")
    for x in (*roots, *leaves):
        x._check_needs_gradient("grad")
    keys = [id(x) if x.node is None else (x.node, x.index) for x in leaves]
    wanted: dict[Any, Array | None] = dict.fromkeys(keys)
    cotangents = [(y, y._cotangent("grad", dy)) for y, dy in zip(roots, given, strict=True)]
    with quiet():
        run_backward(cotangents, bool(retain_graph), wanted)
    for position, key in enumerate(keys):
        if wanted[key] is None and not allow_unused:
            raise GraphError(
                f"grad: no output depends on input {position}; leave it out, or get None for it with allow_unused=True"
            )
    return tuple(wanted[key] for key in keys)


def __getattr__(name: str) -> Any:
    raise module_hints.missing_part(name, "minillm.autograd", __all__, ())
