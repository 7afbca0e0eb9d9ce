"""A Tensor: an array, its gradient, and the operation that made it.

The data flows through operations (see Op in autograd.py), each of which leaves a node behind; `x.backward()` walks
these nodes in reverse (see backward.py). This file is about the use of a tensor: making it, reading it, asking for its
gradient.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minillm import backend, hints
from minillm.backend import Array
from minillm.backward import FROZEN, Hook, Node, Version, run_backward
from minillm.device import check_device, device_of, is_on_gpu, like, to_device, to_host
from minillm.dtypes import as_dtype
from minillm.errors import DtypeError, GraphError, MinillmError, ShapeError
from minillm.grad_mode import quiet, state
from minillm.leaves import Into
from minillm.methods import Methods


class Tensor(Methods):
    """An array with a gradient: `data` (a NumPy array), and `grad` (an array of the same shape) after a backward.

    Made from data by `minillm.tensor`, or by an operation. Arithmetic follows NumPy in broadcasting and slicing and
    PyTorch in dtypes: float32 stays float32 with Python numbers and whole numbers, and int / int is float32. `x == y`
    compares elements. `x += y` works in place, where nothing is recorded (see ops/inplace.py). Operators and methods
    are attached in ops/__init__.py: a loop makes each name declared in methods.py the function of that name, and
    tables add the operators and the methods that differ from it.
    """

    __slots__ = ("__weakref__", "_cut", "_requires_grad", "_version", "data", "grad", "hooks", "index", "node")
    __hash__ = object.__hash__  # by identity, though == compares elements: a set of tensors is a set of objects

    # Operators are attached at the end of ops/__init__.py, and declared here for type checkers and editors.
    __add__: Callable[..., Tensor]
    __radd__: Callable[..., Tensor]
    __sub__: Callable[..., Tensor]
    __rsub__: Callable[..., Tensor]
    __mul__: Callable[..., Tensor]
    __rmul__: Callable[..., Tensor]
    __truediv__: Callable[..., Tensor]
    __rtruediv__: Callable[..., Tensor]
    __floordiv__: Callable[..., Tensor]
    __rfloordiv__: Callable[..., Tensor]
    __mod__: Callable[..., Tensor]
    __rmod__: Callable[..., Tensor]
    __pow__: Callable[..., Tensor]
    __rpow__: Callable[..., Tensor]
    __matmul__: Callable[..., Tensor]
    __rmatmul__: Callable[..., Tensor]
    __neg__: Callable[..., Tensor]
    __pos__: Callable[..., Tensor]
    __abs__: Callable[..., Tensor]
    __invert__: Callable[..., Tensor]
    __and__: Callable[..., Tensor]
    __or__: Callable[..., Tensor]
    __xor__: Callable[..., Tensor]
    __gt__: Callable[..., Tensor]
    __ge__: Callable[..., Tensor]
    __lt__: Callable[..., Tensor]
    __le__: Callable[..., Tensor]
    __getitem__: Callable[..., Tensor]
    __setitem__: Callable[..., None]

    def __init__(self, data: Any, requires_grad: bool = False):
        self.data: Array = data if type(data) is np.ndarray else backend.as_array(data)
        self.grad: Array | None = None
        self.node: Node | None = None
        self.index = 0
        self.hooks: list | None = None
        self._version: Version | None = None
        self._cut: str | None = None  # what ended its history: "detach" or "no_grad", for study.why
        self._requires_grad = False
        if requires_grad:
            self._check_floating("tensor")
            self._requires_grad, self._version = True, Version()

    @classmethod
    def _made_by(cls, node: Node, index: int, data: Any) -> Tensor:
        tensor = object.__new__(Tensor)  # without __init__, which checks what is right here
        tensor.data = data if type(data) is np.ndarray else backend.as_array(data)
        tensor.hooks = tensor._version = tensor._cut = tensor.node = None
        tensor.index, tensor._requires_grad = index, tensor.data.dtype.kind not in "iub"  # bfloat16's is V, for void
        if tensor._requires_grad:
            tensor.node = node  # and no `grad`: see __getattr__
        else:
            tensor.grad = None
        return tensor

    def __getattr__(self, name: str) -> Any:
        """Python calls this for a name that is not there, such as the `grad` of an intermediate tensor."""
        if name == "grad" and self.node is not None:
            warnings.warn(
                f"grad: {self.node.op.name} made this tensor at {self.node.location()}, and backward keeps gradients "
                "of leaves only; call retain_grad() on it before backward, or read the grad of a leaf",
                stacklevel=2,
            )
            return None
        raise hints.missing_method(name, type(self))

    def _check_floating(self, function: str) -> None:
        if self.data.dtype.kind in "iub":
            raise DtypeError(f"{function}: dtype {self.dtype} cannot have a gradient; convert to float32 or float64")

    def _edge(self) -> tuple | None:
        if self.node is not None:
            return (self.node, self.index)
        return (self, self._shared_version().number) if self._requires_grad else None

    @property
    def version(self) -> int:
        """The number of in-place writes to the array, including updates by an optimiser."""
        return 0 if self._version is None else self._version.number

    @version.setter
    def version(self, number: int) -> None:
        (self._version or self._shared_version()).number = number

    def _shared_version(self) -> Version:
        """The version of the array, shared by all tensors that share the array."""
        if self._version is None:
            # Operations that used what an operation made may keep the array, and do not look at its version.
            self._version = Version(FROZEN if self.node is not None else 0)
        return self._version

    def _grad_destination(self) -> Into | None:
        """The memory into which an op may write or add this leaf's gradient, or None."""
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
        """The device of the array: "cpu" or "cuda:0"."""
        return device_of(self.data)

    def numpy(self) -> Array:
        """The array itself, not a copy, from a CPU; from a GPU a copy, which is waited for."""
        return to_host(self.data)

    def item(self) -> Any:
        """The value of a tensor with one element, as a Python number."""
        return self._only_value("item")

    def _only_value(self, function: str) -> Any:
        if self.data.size != 1:
            raise ShapeError(
                f"{function}: the tensor has shape {self.shape}, and only a tensor with one element has a value; "
                "write x.tolist(), or reduce it first"
            )
        value = self.data.item()
        return value if type(value) in (float, int, bool) else float(value)  # bfloat16's is NumPy's

    def tolist(self) -> Any:
        """The elements as Python numbers, in lists of lists; of a tensor without dimensions, the number."""
        array = self.numpy()
        return (array if array.dtype.kind in "fiub" else array.astype(np.float32)).tolist()

    def detach(self) -> Tensor:
        """A tensor of this array without its history: gradients stop here."""
        twin = Tensor(self.data)
        twin._version, twin._cut = self._shared_version(), "detach"
        return twin

    def __len__(self) -> int:
        if self.data.ndim == 0:
            raise DtypeError("len: a tensor of shape () has no length; it is one number, see item()")
        return len(self.data)

    def __iter__(self) -> Iterator[Tensor]:
        if self.data.ndim == 0:
            raise DtypeError("iter: a tensor of shape () cannot be iterated over; it is one number, see item()")
        return (self[i] for i in range(len(self.data)))

    def __float__(self) -> float:
        return float(self._only_value("float"))

    def __int__(self) -> int:
        return int(self._only_value("int"))

    def __index__(self) -> int:
        if self.data.dtype.kind not in "iub" or self.data.size != 1:
            raise DtypeError(
                f"index: a tensor of shape {self.shape} and dtype {self.dtype} is not an index; give one whole number, "
                "such as int(x)"
            )
        return int(self.data.item())

    def __bool__(self) -> bool:
        if self.data.size != 1:
            raise ShapeError(
                f"bool: a tensor of shape {self.shape} is neither true nor false, only a tensor with one element is; "
                "write x.any() or x.all(), and ~ & | for not, and, or"
            )
        return bool(self.data.item())

    def __format__(self, specification: str) -> str:
        if self.data.ndim == 0:
            return format(self.item(), specification)
        if specification:
            raise DtypeError(
                f"format: a tensor of shape {self.shape} is not a number for {specification!r}; write x.item() of one "
                "element, or leave the format out"
            )
        return str(self)

    def __array__(self, dtype=None, copy=None) -> Array:
        if self._requires_grad and state.grad_enabled:
            raise GraphError(
                "np.asarray: a tensor that needs a gradient would lose it as a NumPy array; write x.detach() or "
                "x.numpy() for its values, or minillm.ops.stack(tensors) to join tensors"
            )
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        history = f", {self.node.describe()}" if self.node else (", requires_grad=True" if self.requires_grad else "")
        values = np.array2string(self.numpy(), threshold=40, precision=4, prefix="tensor(")
        where = f", {self.device}" if is_on_gpu(self.data) else ""
        return f"tensor({values}, shape={self.shape}, {self.dtype}{where}{history})"

    def __deepcopy__(self, memo: dict) -> Tensor:
        if self.node is not None:
            raise GraphError(
                "deepcopy: an operation made this tensor, and a copy would have a graph of its own; copy x.detach()"
            )
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        for kind in type(self).__mro__:
            for name in set(kind.__dict__.get("__slots__", ())) - {"__weakref__", "_version", "hooks"}:
                object.__setattr__(twin, name, copy.deepcopy(getattr(self, name), memo))
        twin._version, twin.hooks = Version(), None
        return twin

    # --- gradients -------------------------------------------------------------------------------------------------

    @property
    def requires_grad(self) -> bool:
        """True if a backward gives this tensor, or those it was made of, a gradient; never for integers."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, requires_grad: bool) -> None:
        self.requires_grad_(requires_grad)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Ask for, or refuse, a gradient of this leaf; returns the tensor."""
        if self.node is not None:
            raise GraphError("requires_grad_: an operation made this tensor; only a leaf can be changed, see detach()")
        if requires_grad:
            self._check_floating("requires_grad_")
        self._requires_grad = bool(requires_grad)
        self._shared_version()
        return self

    @property
    def is_leaf(self) -> bool:
        """True if no recorded operation made this tensor; backward fills the `grad` of a leaf that requires one."""
        return self.node is None

    @property
    def grad_fn(self) -> Node | None:
        """The operation that made this tensor, under PyTorch's name; None for a leaf."""
        return self.node

    def retain_grad(self) -> Tensor:
        """Keep the gradient of this intermediate tensor in `.grad` too; returns the tensor."""
        self._check_needs_gradient("retain_grad")
        if self.node is not None:
            self.node.watchers = watchers = self.node.watchers or []
            if not any(reference() is self for _, reference in watchers):
                watchers.append((self.index, weakref.ref(self)))
                self.grad = None
        return self

    def register_hook(self, hook: Callable[[Array], Any]) -> Hook:
        """Call `hook(gradient)` when a backward has this tensor's whole gradient; what it returns takes its place.

        The gradient is an array (a copy), as `grad` is; None leaves it as it was. `remove()` of the result ends it.
        """
        self._check_needs_gradient("register_hook")
        owner: Any = self.node or self
        if owner.hooks is None:
            owner.hooks = []
        return Hook(owner.hooks, (self.index, hook))

    def _check_needs_gradient(self, function: str) -> None:
        if not self._requires_grad:
            raise GraphError(
                f"{function}: this tensor depends on nothing with requires_grad=True (or was made under no_grad); "
                "set requires_grad on an input, or compute it outside no_grad"
            )

    def backward(
        self,
        gradient: Any = None,
        keep_graph: bool = False,
        *,
        retain_graph: bool | None = None,
        create_graph: bool = False,
    ) -> None:
        """Add the gradient of this tensor with respect to every leaf into the leaf's `grad`.

        `gradient` is dL/d(this tensor), of its shape; it may be left out for a single element (1).
        The graph is released as it is used; `keep_graph=True`, or PyTorch's `retain_graph=True`, keeps it for another.

        Raises: GraphError on a second backward through a released graph, on a leaf that changed since the forward,
        and where no gradient was asked for; ShapeError if `gradient` is missing or of another shape.
        """
        refuse_second_order("backward", create_graph)
        self._check_needs_gradient("backward")
        keep_graph = keep_graph if retain_graph is None else retain_graph
        with quiet():
            run_backward([(self, self._cotangent("backward", gradient))], keep_graph)

    def _cotangent(self, function: str, gradient: Any) -> Array:
        """The cotangent dL/d(this tensor), of its shape: the gradient that a backward from here begins with."""
        if gradient is None:
            if self.data.size != 1:
                raise ShapeError(
                    f"{function}: the tensor has shape {self.shape}; reduce it to one value, or give gradient="
                )
            return np.ones_like(self.data)
        gradient = backend.as_array(gradient.data if isinstance(gradient, Tensor) else gradient)
        gradient = like(gradient.astype(self.dtype, copy=False), self.data)
        if gradient.shape != self.shape:
            raise ShapeError(f"{function}: gradient has shape {gradient.shape}, but the tensor has shape {self.shape}")
        return gradient


def refuse_second_order(function: str, create_graph: bool) -> None:
    """Raise GraphError where gradients of gradients are asked for."""
    if create_graph:
        raise GraphError(
            f"{function}: create_graph=True asks for gradients of gradients, which are not computed; leave it out, or "
            "use minillm.testing.hvp for the product of a Hessian and a vector"
        )


class Parameter(Tensor):
    """A leaf that an optimiser updates: `name` (its key in the state dict) and `version` (how often it was updated).

    A node remembers the version of each parameter it used; a backward after the optimiser updated the parameter would
    mix old activations with new weights, so it raises instead.
    """

    __slots__ = ("grad_buffer", "name")

    def __init__(self, data: Any, name: str = ""):
        super().__init__(data, requires_grad=True)
        self.name = name
        self.grad_buffer: Array | None = None  # memory that the optimiser keeps for the gradient; see optim/flat.py

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
    Raises: DtypeError for values that are not numbers; DeviceError for a device that this machine lacks.
    """
    check_device(device)
    if isinstance(data, Tensor):
        if data.requires_grad and state.grad_enabled:
            raise GraphError(
                "tensor: data needs a gradient, which a new leaf would cut off; give data.detach() for its values, or "
                "use data as it is"
            )
        data = data.data
    if is_on_gpu(data):
        copy = data.astype(data.dtype if dtype is None else as_dtype(dtype))
        return Tensor(to_device(copy, device), requires_grad)
    try:
        array = np.array(data, dtype=None if dtype is None else as_dtype(dtype))
    except ValueError as error:
        if isinstance(error, MinillmError):
            raise
        raise ShapeError(f"tensor: data is not an array of numbers, as lists in it differ in length: {error}") from None
    if dtype is None and not isinstance(data, (np.ndarray, np.generic)) and array.dtype == np.float64:
        array = array.astype(np.float32)
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise DtypeError(f"tensor: data has dtype {array.dtype}; give numbers or booleans of one shape")
    return Tensor(to_device(array, device), requires_grad)
