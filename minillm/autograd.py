"""The autograd engine: a Tensor remembers which operation made it, and `backward` walks those operations in reverse.

An operation is a pair of plain functions on arrays. `forward(*arrays, **settings)` returns the output and what its
backward needs (`saved`); `backward(dout, saved)` returns the gradient of every input. Neither knows of tensors, so
both run on arrays in a REPL, and a breakpoint in a backward shows arrays under their names, three frames deep:

    layernorm_backward  <-  Tensor.backward  <-  your line

The graph is made of nodes. Its edges lead from a node to the nodes that made its inputs, not to tensors: an
intermediate array that no backward needs is freed as soon as the forward has used it. Only a leaf (a parameter, or
any tensor with requires_grad that no operation made) is held by its edge, because that is where gradients end up.

Reverse mode, in one paragraph. Let L be the scalar at the end and dX short for dL/dX. A node computed y = f(x1, x2).
By the chain rule dx_i = (dy/dx_i)^T dy: `backward` maps dy to all dx_i. If x1 went into several operations, dx1 is
the sum of what each returns, so a node may run only when every one of its consumers has (a topological order). The
order is found by counting consumers, without recursion, so depth is limited by memory alone.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, NamedTuple

import numpy as np

from minillm import backend, kernels
from minillm.backend import Array
from minillm.device import check_device, device_of, is_on_gpu, like, to_device, to_host
from minillm.errors import DeviceError, DtypeError, GraphError, ShapeError


class _State(threading.local):
    grad_enabled = True
    scope = ""


_state = _State()


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Within this context (or under this decorator) operations record nothing, so nothing is kept for a backward."""
    before = _state.grad_enabled
    _state.grad_enabled = False
    try:
        yield
    finally:
        _state.grad_enabled = before


@contextlib.contextmanager
def enable_grad() -> Iterator[None]:
    """Within this context operations record what a backward needs, also inside a no_grad."""
    before = _state.grad_enabled
    _state.grad_enabled = True
    try:
        yield
    finally:
        _state.grad_enabled = before


def is_grad_enabled() -> bool:
    """Whether operations are recorded on this thread."""
    return _state.grad_enabled


def enter_scope(name: str) -> str:
    """Name the part of the model that runs from here on, such as `h.3.attn`; returns the name before.

    Nodes keep it for errors and tables. Module.__call__ enters its own name and returns to the one before.
    """
    before = _state.scope
    _state.scope = name
    return before


class Into(NamedTuple):
    """Where a leaf's gradient goes, for an operation that can write it there itself (see Op.writes_into).

    With `add` the array already holds a gradient to add to; without, its contents mean nothing and are overwritten.
    """

    array: Array
    add: bool


class Op:
    """A differentiable operation: a name, a forward and a backward.

    forward(*arrays, **settings) -> (output array or tuple of them, saved)
    backward(dout, saved) -> one gradient for each input of forward, or None where there is none

    With several outputs, `dout` is a tuple with None for an output that reached no gradient. A backward never writes
    into `dout`. Two flags tell the engine what a backward does with memory:

    - `aliases`: a returned gradient may share memory with dout or with another returned gradient (as in `add`), so
      the engine must not add into it.
    - `writes_into`: backward takes a third argument, a tuple of `Into | None` per input, and may fill and return
      `into[i].array`. It saves a pass over every weight gradient.

    `cuda` is a second pair with the same signatures that launches the kernels of `kernels/<kernel>.cu` (the op's name
    by default). Its forward returns NotImplemented for what the kernels do not do, and then the formula runs; see
    `kernels.use_kernels`.
    """

    __slots__ = ("aliases", "backward", "cuda", "forward", "kernel", "name", "writes_into")

    def __init__(
        self,
        name: str,
        forward: Callable,
        backward: Callable,
        *,
        cuda: tuple[Callable, Callable] | None = None,
        kernel: str | None = None,
        aliases: bool = False,
        writes_into: bool = False,
    ):
        self.name = name
        self.forward = forward
        self.backward = backward
        self.cuda = cuda
        self.kernel = kernel or name
        self.aliases = aliases
        self.writes_into = writes_into

    def __repr__(self) -> str:
        return f"Op({self.name})"

    def __call__(self, *inputs: Any, **settings: Any) -> Any:
        """Run forward on the inputs' arrays; record a node if a gradient could be asked for.

        Called by the public function of the op, whose caller's line the node remembers.
        """
        arrays, edges, shapes, recorded = [], [], [], False
        for x in inputs:
            if isinstance(x, Tensor):
                arrays.append(x.data)
                edges.append(x._edge() if x.requires_grad else None)
                shapes.append(x.data.shape)
                recorded |= x.requires_grad
            else:
                arrays.append(x)
                edges.append(None)
                shapes.append(None)
        with np.errstate(all="ignore"):  # infinity and NaN are values here, as in PyTorch, and no warnings
            (out, saved), backward = self._run(arrays, settings)
        several = type(out) is tuple
        if not (recorded and _state.grad_enabled):
            return tuple(map(Tensor, out)) if several else Tensor(out)
        caller = sys._getframe(2)  # only the code and the position: a kept frame would pin its local arrays
        output_shapes = tuple(y.shape for y in out) if several else (out.shape,)
        where = caller.f_code, caller.f_lasti
        node = Node(self, backward, saved, tuple(edges), tuple(shapes), output_shapes, several, where)
        if several:
            return tuple(Tensor._made_by(node, index, y) for index, y in enumerate(out))
        return Tensor._made_by(node, 0, out)

    def _run(self, arrays: list, settings: dict) -> tuple[tuple, Callable]:
        """The forward's result, by kernel or by formula, and the backward that belongs to it."""
        if self.cuda is not None and kernels.chosen(self.kernel, arrays[0]):
            result = self.cuda[0](*arrays, **settings)
            if result is not NotImplemented:
                return result, self.cuda[1]
            kernels.chosen(self.kernel, arrays[0], refused="these shapes or settings")  # raises if it is required
        try:
            return self.forward(*arrays, **settings), self.backward
        except TypeError:
            places = sorted({device_of(x) for x in arrays if hasattr(x, "shape") and x.shape})
            if len(places) > 1:  # CuPy only says that it does not support the type
                raise DeviceError(
                    f"{self.name}: the inputs are on {' and '.join(places)}; move them to one device with .to(...)"
                ) from None
            raise


class Node:
    """One operation that was run: what its backward needs, where its gradients go, and where it came from.

    `edges[i]` says where the gradient of input i goes: None (nowhere), `(node, output index)`, or `(leaf, version)`
    with the version that the leaf had in the forward.
    """

    __slots__ = (
        "backward",
        "edges",
        "input_shapes",
        "op",
        "output_shapes",
        "saved",
        "scope",
        "several",
        "watchers",
        "where",
    )

    def __init__(self, op, backward, saved, edges, input_shapes, output_shapes, several, where):
        self.op: Op = op
        self.backward: Callable = backward
        self.saved: Any = saved
        self.edges: Any = edges  # None once a backward has used and released the node
        self.input_shapes: tuple = input_shapes
        self.output_shapes: tuple = output_shapes
        self.several: bool = several
        self.where: tuple[CodeType, int] = where
        self.scope: str = _state.scope
        self.watchers: list = []  # (output index, weak reference to a tensor with retain_grad)

    def location(self) -> str:
        """`file.py:76`, the line that called the operation; worked out only when asked for."""
        code, position = self.where
        line = next((p[0] for i, p in enumerate(code.co_positions()) if i == position // 2), None)
        return f"{code.co_filename.rsplit('/', 1)[-1]}:{line or code.co_firstlineno}"

    def describe(self) -> str:
        """`layernorm -> (8, 256, 768) at gpt2.py:76 in h.3.ln_1`, for errors and tables."""
        shapes = ", ".join(map(str, self.output_shapes))
        return f"{self.op.name} -> {shapes} at {self.location()}" + (f" in {self.scope}" if self.scope else "")

    def __repr__(self) -> str:
        return f"Node({self.describe()})"


class Tensor:
    """An array with a gradient: `data` (a NumPy array), and `grad` (an array of the same shape) after a backward.

    Made from data by `minillm.tensor`, or by an operation. Arithmetic follows NumPy: broadcasting, slicing, float32
    stays float32. Operators and methods are attached in ops/__init__.py, one explicit table.
    """

    __slots__ = ("__weakref__", "data", "grad", "index", "node", "requires_grad")
    __array_ufunc__ = None  # so that `array * tensor` calls Tensor.__rmul__ instead of looping over elements

    # Attached by the table at the end of ops/__init__.py; declared here for type checkers and editors.
    __add__: Callable[..., Tensor]
    __radd__: Callable[..., Tensor]
    __sub__: Callable[..., Tensor]
    __rsub__: Callable[..., Tensor]
    __mul__: Callable[..., Tensor]
    __rmul__: Callable[..., Tensor]
    __truediv__: Callable[..., Tensor]
    __rtruediv__: Callable[..., Tensor]
    __pow__: Callable[..., Tensor]
    __rpow__: Callable[..., Tensor]
    __matmul__: Callable[..., Tensor]
    __rmatmul__: Callable[..., Tensor]
    __neg__: Callable[..., Tensor]
    __getitem__: Callable[..., Tensor]
    __gt__: Callable[..., Tensor]
    __ge__: Callable[..., Tensor]
    __lt__: Callable[..., Tensor]
    __le__: Callable[..., Tensor]
    exp: Callable[..., Tensor]
    log: Callable[..., Tensor]
    sqrt: Callable[..., Tensor]
    tanh: Callable[..., Tensor]
    sigmoid: Callable[..., Tensor]
    relu: Callable[..., Tensor]
    pow: Callable[..., Tensor]
    clip: Callable[..., Tensor]
    sum: Callable[..., Tensor]
    mean: Callable[..., Tensor]
    max: Callable[..., Tensor]
    matmul: Callable[..., Tensor]
    reshape: Callable[..., Tensor]
    transpose: Callable[..., Tensor]
    permute: Callable[..., Tensor]
    split: Callable[..., tuple]
    take: Callable[..., Tensor]
    broadcast_to: Callable[..., Tensor]
    to: Callable[..., Tensor]
    softmax: Callable[..., Tensor]
    log_softmax: Callable[..., Tensor]

    def __init__(self, data: Any, requires_grad: bool = False):
        self.data: Array = data if type(data) is np.ndarray else backend.as_array(data)
        self.grad: Array | None = None
        self.node: Node | None = None
        self.index = 0
        self.requires_grad = requires_grad
        if requires_grad and self.data.dtype.kind in "iub":  # bfloat16's kind is V, for void
            raise DtypeError(f"tensor: dtype {self.data.dtype} cannot have a gradient; convert to float32 or float64")

    @classmethod
    def _made_by(cls, node: Node, index: int, data: Any) -> Tensor:
        tensor = Tensor(data)
        tensor.node, tensor.index, tensor.requires_grad = node, index, True
        return tensor

    def _edge(self) -> tuple | None:
        if self.node is not None:
            return (self.node, self.index)
        return (self, self._version()) if self.requires_grad else None

    def _version(self) -> int:
        return 0

    def _grad_destination(self) -> Into | None:
        """Where an op may write this leaf's gradient: onto what is there already, or into memory kept for it."""
        return None if self.grad is None else Into(self.grad, add=True)

    # --- reading ---------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    def numel(self) -> int:
        """The number of elements."""
        return self.data.size

    @property
    def device(self) -> str:
        """Where the array is: "cpu" or "cuda:0"."""
        return device_of(self.data)

    def numpy(self) -> Array:
        """The array: itself, not a copy, from a CPU; a copy from a GPU, for which this waits."""
        return to_host(self.data)

    def item(self) -> float:
        """The value of a tensor with one element, as a Python number."""
        if self.data.size != 1:
            raise ShapeError(f"item: the tensor has shape {self.shape}, and only a tensor with one element has a value")
        return self.data.item()

    def detach(self) -> Tensor:
        """The same array without history: gradients stop here."""
        return Tensor(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __float__(self) -> float:
        return float(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __array__(self, dtype=None, copy=None) -> Array:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        history = f", {self.node.describe()}" if self.node else (", requires_grad=True" if self.requires_grad else "")
        values = np.array2string(self.numpy(), threshold=40, precision=4, prefix="tensor(")
        where = f", {self.device}" if is_on_gpu(self.data) else ""
        return f"tensor({values}, shape={self.shape}, {self.dtype}{where}{history})"

    def __setitem__(self, key, value):
        raise GraphError(
            "Tensor: elements cannot be assigned, because a backward may need the old ones; "
            "build a new tensor with minillm.ops.where, or write to tensor.data before the forward"
        )

    # --- gradients -------------------------------------------------------------------------------------------------

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Ask for, or refuse, a gradient of this leaf; returns the tensor."""
        if self.node is not None:
            raise GraphError("requires_grad_: an operation made this tensor; only a leaf can be changed, see detach()")
        if requires_grad and self.data.dtype.kind in "iub":
            raise DtypeError(f"requires_grad_: dtype {self.dtype} cannot have a gradient; use float32 or float64")
        self.requires_grad = requires_grad
        return self

    def retain_grad(self) -> Tensor:
        """Keep the gradient of this intermediate tensor in `.grad` too; returns the tensor."""
        if self.node is not None:
            self.node.watchers.append((self.index, weakref.ref(self)))
        return self

    def backward(self, gradient: Any = None, keep_graph: bool = False) -> None:
        """Add the gradient of this tensor with respect to every leaf into the leaf's `grad`.

        `gradient` is the cotangent dL/d(this), of this tensor's shape; it may be left out for a single element (1).
        The graph is released as it is used; `keep_graph=True` keeps it for another backward.

        Raises: GraphError on a second backward through a released graph, on a leaf that changed since the forward,
        and where no gradient was asked for; ShapeError if `gradient` is missing or of another shape.
        """
        if not self.requires_grad:
            raise GraphError(
                "backward: this tensor depends on nothing with requires_grad=True (or was made under no_grad); "
                "set requires_grad on an input, or compute it outside no_grad"
            )
        if gradient is None:
            if self.data.size != 1:
                raise ShapeError(
                    f"backward: the tensor has shape {self.shape}; reduce it to one value, or give gradient="
                )
            gradient = np.ones_like(self.data)
        else:
            gradient = backend.as_array(gradient.data if isinstance(gradient, Tensor) else gradient)
            gradient = like(gradient.astype(self.dtype, copy=False), self.data)
            if gradient.shape != self.shape:
                raise ShapeError(
                    f"backward: gradient has shape {gradient.shape}, but the tensor has shape {self.shape}"
                )
        if self.node is None:
            _add_to_leaf(self, gradient, owned=False)
        else:
            with np.errstate(all="ignore"):
                _run_backward(self.node, self.index, gradient, keep_graph)


class Parameter(Tensor):
    """A leaf that an optimiser moves: `name` (its key in the state dict) and `version` (how often it was moved).

    A node remembers the version of each parameter it used; a backward after the optimiser moved the parameter would
    mix old activations with new weights, so it raises instead.
    """

    __slots__ = ("grad_buffer", "name", "version")

    def __init__(self, data: Any, name: str = ""):
        super().__init__(data, requires_grad=True)
        self.name = name
        self.version = 0
        self.grad_buffer: Array | None = None  # memory that the optimiser keeps for the gradient; see optim.py

    def _version(self) -> int:
        return self.version

    def _grad_destination(self) -> Into | None:
        if self.grad is None and self.grad_buffer is not None:
            return Into(self.grad_buffer, add=False)
        return super()._grad_destination()

    def __repr__(self) -> str:
        return f"Parameter({self.name or 'unnamed'}, shape={self.shape}, {self.dtype})"


def tensor(data: Any, requires_grad: bool = False, dtype: Any = None, device: str = "cpu") -> Tensor:
    """A leaf tensor with a copy of `data`: a number, a list, or an array.

    As in PyTorch, Python floats become float32 and integers int64, while an array keeps its dtype.
    device: "cpu", "cuda" or "cuda:1". dtype: NumPy's, or "bfloat16".
    Raises: DtypeError for what are no numbers; DeviceError for a device that is not there.
    """
    check_device(device)
    if isinstance(data, Tensor):
        data = data.data
    if is_on_gpu(data):
        copy = data.astype(data.dtype if dtype is None else backend.as_dtype(dtype))
        return Tensor(to_device(copy, device), requires_grad)
    array = np.array(data, dtype=None if dtype is None else backend.as_dtype(dtype))
    if dtype is None and not isinstance(data, (np.ndarray, np.generic)) and array.dtype == np.float64:
        array = array.astype(np.float32)
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise DtypeError(f"tensor: data has dtype {array.dtype}; give numbers or booleans of one shape")
    return Tensor(to_device(array, device), requires_grad)


# --- the walk ------------------------------------------------------------------------------------------------------


def _count_consumers(root: Node) -> dict[Node, int]:
    """How many gradients each node must wait for, among the nodes that lead to the root."""
    counts = {root: 0}
    stack = [root]
    while stack:
        node = stack.pop()
        if node.edges is None:
            raise GraphError(
                f"backward: the graph of {node.describe()} was released by an earlier backward; "
                "run the forward again, or call the first backward with keep_graph=True"
            )
        for edge in node.edges:
            if edge is not None and isinstance(edge[0], Node):
                parent = edge[0]
                if parent in counts:
                    counts[parent] += 1
                else:
                    counts[parent] = 1
                    stack.append(parent)
    return counts


def _run_backward(root: Node, index: int, gradient: Array, keep_graph: bool) -> None:
    waiting = _count_consumers(root)
    # For each node, per output: the gradient so far, and whether the engine may add into that array.
    arrived: dict[Node, list] = {root: [None] * len(root.output_shapes)}
    arrived[root][index] = (gradient, False)
    ready = [root]
    while ready:
        node = ready.pop()
        douts = [None if slot is None else slot[0] for slot in arrived.pop(node, ())]
        for output, reference in node.watchers:
            watched = reference()
            if watched is not None and douts and douts[output] is not None:
                watched.grad = douts[output].copy() if watched.grad is None else watched.grad + douts[output]
        dinputs = _node_backward(node, douts)
        owned = not node.op.aliases
        for edge, dinput in zip(node.edges, dinputs, strict=True):
            if edge is None:
                continue
            target, number = edge
            if not isinstance(target, Node):
                if dinput is not None:
                    _add_to_leaf(target, dinput, owned)
                continue
            if dinput is not None:
                slots = arrived.setdefault(target, [None] * len(target.output_shapes))
                slots[number] = _accumulate(slots[number], dinput, owned)
            waiting[target] -= 1
            if waiting[target] == 0:
                ready.append(target)
        if not keep_graph:
            node.saved = node.edges = None
        del douts, dinputs, dinput  # the arrays of this node must not live on while the next one runs


def _node_backward(node: Node, douts: list) -> tuple:
    """The gradients of a node's inputs, checked; an error says which operation of the forward it belongs to."""
    edges = node.edges
    if all(dout is None for dout in douts):  # nothing reached this node, but its parents still wait for its word
        return (None,) * len(edges)
    for edge in edges:
        if edge is not None and isinstance(edge[0], Tensor) and edge[0]._version() != edge[1]:
            raise GraphError(
                f"backward: {edge[0]!r} was moved by the optimiser after "
                f"{node.describe()} used it; call backward before step, or run the forward again"
            )
    dout = tuple(douts) if node.several else douts[0]
    try:
        if node.op.writes_into:
            leaves = [edge[0] if edge is not None and isinstance(edge[0], Tensor) else None for edge in edges]
            # A leaf that is two inputs of one op gets its gradients added by the engine: it has only one buffer.
            into = tuple(
                leaf._grad_destination() if leaf is not None and leaves.count(leaf) == 1 else None for leaf in leaves
            )
            dinputs = node.backward(dout, node.saved, into)
        else:
            dinputs = node.backward(dout, node.saved)
        if type(dinputs) is not tuple or len(dinputs) != len(edges):
            raise GraphError(
                f"backward of {node.op.name}: returned {dinputs if type(dinputs) is not tuple else len(dinputs)} for "
                f"{len(edges)} inputs; return a tuple with one gradient (or None) per input of its forward"
            )
        for position, (edge, shape, dinput) in enumerate(zip(edges, node.input_shapes, dinputs, strict=True)):
            if edge is not None and dinput is not None and dinput.shape != shape:
                raise ShapeError(
                    f"backward of {node.op.name}: the gradient of input {position} has shape {dinput.shape}, but the "
                    f"input has shape {shape}; sum over the broadcast axes"
                )
    except Exception as error:
        error.add_note(f"in the backward of {node.describe()}")
        raise
    return dinputs


def _accumulate(slot: tuple | None, gradient: Array, owned: bool) -> tuple:
    """Add a gradient to those that arrived before, allocating only if neither array is the engine's to write to.

    `+=`, not `np.add(..., out=)`: NumPy hands out 0-d results as scalars, which no operation can write to.
    """
    if slot is None:
        return (gradient, owned)
    total, total_owned = slot
    if total_owned:
        total += gradient
        return (total, True)
    if owned:
        gradient += total
        return (gradient, True)
    return (total + gradient, True)


def _add_to_leaf(leaf: Tensor, gradient: Array, owned: bool) -> None:
    """Leaf gradients are the user's: they are never shared with another array."""
    if gradient is leaf.grad:  # the op wrote it there already
        return
    destination = leaf._grad_destination()
    if destination is None:
        gradient = backend.as_array(gradient)  # NumPy's results without dimensions are numbers, not arrays
        leaf.grad = gradient.astype(leaf.dtype, copy=not owned)
    elif destination.add:
        np.add(destination.array, gradient, out=destination.array)
    else:
        if gradient is not destination.array:
            destination.array[...] = gradient
        leaf.grad = destination.array
