"""Elementwise arithmetic, with NumPy's broadcasting.

For one element, every rule is the derivative of a line of school calculus times the gradient that came in:
y = f(x) gives dx = dy f'(x), written `dout * ...` below.

Broadcasting in reverse: if x of shape (C,) was stretched to (B, C), one element of x went into B elements of the
output, so its gradient is the sum over all B of them. `unbroadcast` does that for every stretched axis. A Python
number takes part in no gradient: its shape is None, and so is its gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Op, Tensor, tensor
from minillm.backend import Array, as_array, elementwise
from minillm.device import is_on_gpu, like
from minillm.errors import DtypeError
from minillm.sums import sum_over


class Shapes(NamedTuple):
    """The shapes of two operands: all that addition needs for its backward."""

    x: tuple[int, ...] | None
    y: tuple[int, ...] | None


class Operands(NamedTuple):
    """Two operands, each an array or a Python number."""

    x: Any
    y: Any


class Input(NamedTuple):
    """The input of a one-argument operation."""

    x: Array


class Output(NamedTuple):
    """The output, where the derivative is simplest in terms of it."""

    out: Array


def shape_of(x: Any) -> tuple[int, ...] | None:
    """The shape of an operand; None for a Python number."""
    return getattr(x, "shape", None)


def unbroadcast(gradient: Array, shape: tuple[int, ...] | None) -> Any:
    """Sum a gradient over the axes along which an operand of `shape` was stretched."""
    if shape is None or gradient.shape == shape:
        return None if shape is None else gradient
    leading = gradient.ndim - len(shape)
    stretched = tuple(leading + i for i, size in enumerate(shape) if size == 1 and gradient.shape[leading + i] != 1)
    total = sum_over(gradient, (*range(leading), *stretched))
    return total.astype(gradient.dtype, copy=False).reshape(shape)


def operand(x: Any, function: str = "operand") -> Any:
    """What a public function may be given, as a Tensor, an array or a Python number.

    A NumPy scalar becomes a Python number: np.float64(2) would turn a float32 tensor into float64. So do lists, whose
    floats are float32 as in `tensor`.
    Raises: DtypeError for what is no number.
    """
    if isinstance(x, Tensor) or type(x) in (float, int, bool):  # np.float64 is a float too, by inheritance
        return x
    array = tensor(x).data if isinstance(x, (list, tuple)) else as_array(x)
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise DtypeError(f"{function}: an operand is {x!r:.60} of type {type(x).__name__}; give numbers or tensors")
    return array.item() if array.ndim == 0 and not is_on_gpu(array) else array  # reading from a GPU would wait for it


def operands(x: Any, y: Any, function: str = "operand") -> tuple[Any, Any]:
    """Two operands in one dtype, of which one that is an array and no Tensor goes to where the other is."""
    if isinstance(x, Tensor):  # the two usual cases first
        if isinstance(y, Tensor):
            return (x, y) if x.data.dtype is y.data.dtype else in_one_dtype(x, y)
        if type(y) in (float, int) and x.data.dtype.kind == "f":
            return x, y
    x, y = operand(x, function), operand(y, function)
    if isinstance(x, Tensor) and isinstance(y, np.ndarray):
        y = like(y, x.data)
    elif isinstance(y, Tensor) and isinstance(x, np.ndarray):
        x = like(x, y.data)
    elif not hasattr(x, "dtype") and not hasattr(y, "dtype"):
        x, y = tensor(x), tensor(y)  # of two Python numbers NumPy would make float64
    return in_one_dtype(x, y)


def in_one_dtype(*operands: Any) -> tuple:
    """Operands (Tensors, arrays, Python numbers, None) in one dtype, by PyTorch's rule.

    The dtype is that of the arrays with dimensions. Those without dimensions, and then numbers, count only where they
    are of a higher kind (booleans, whole numbers, floats), so float32 stays float32 with 2.5, with an int64 array, and
    with a float64 of no dimensions; a Python float makes float32 of whole numbers. NumPy would make float64 of them.
    """
    arrays = [x for x in operands if hasattr(x, "dtype")]
    dtypes = {x.dtype for x in arrays}
    if len(dtypes) == 1 and (next(iter(dtypes)).kind not in "iub" or not any(type(x) is float for x in operands)):
        return operands
    if not dtypes:
        return operands
    wanted = _highest([x.dtype for x in arrays if x.ndim])
    for others in (
        [x.dtype for x in arrays if not x.ndim],
        [np.dtype(np.float32) for x in operands if type(x) is float],
    ):
        other = _highest(others)
        if wanted is None or (other is not None and _kind(other) > _kind(wanted)):
            wanted = other
    return tuple(_converted(x, wanted) if hasattr(x, "dtype") else x for x in operands)


def _kind(dtype: np.dtype) -> int:
    """0 for booleans, 1 for whole numbers, 2 for floats (bfloat16's kind is V, for void)."""
    return {"b": 0, "i": 1, "u": 1}.get(dtype.kind, 2)


def _is_bool(x: Any) -> bool:
    """Whether an operand is of booleans, which NumPy neither subtracts nor negates."""
    return x.dtype.kind == "b" if hasattr(x, "dtype") else isinstance(x, bool)


def _highest(dtypes: list[np.dtype]) -> np.dtype | None:
    """The dtype that holds those of the highest kind among these."""
    highest = max(map(_kind, dtypes), default=None)
    return np.result_type(*[dtype for dtype in dtypes if _kind(dtype) == highest]) if dtypes else None


def _converted(x: Any, dtype: Any) -> Any:
    if x.dtype == dtype:
        return x
    if isinstance(x, Tensor):
        return x.to(dtype) if x.requires_grad else Tensor(x.data.astype(dtype))
    return x.astype(dtype)


def floats(x: Any, function: str) -> Any:
    """An operand of a function that is not one of whole numbers: float32 instead of those."""
    x = operand(x, function)
    if not hasattr(x, "dtype"):
        return tensor(float(x))
    return _converted(x, np.dtype(np.float32)) if x.dtype.kind in "iub" else x


# --- x + y, x - y --------------------------------------------------------------------------------------------------


def add_forward(x, y):
    return elementwise(np.add, x, y), Shapes(shape_of(x), shape_of(y))


def add_backward(dout, saved):
    return unbroadcast(dout, saved.x), unbroadcast(dout, saved.y)


ADD = Op("add", add_forward, add_backward, aliases=True)


def add(x: Any, y: Any) -> Tensor:
    """x + y, elementwise with broadcasting."""
    return ADD(*operands(x, y, "add"))


def sub_forward(x, y):
    return elementwise(np.subtract, x, y), Shapes(shape_of(x), shape_of(y))


def sub_backward(dout, saved):
    dy = None if saved.y is None else unbroadcast(-dout, saved.y)
    return unbroadcast(dout, saved.x), dy


SUB = Op("sub", sub_forward, sub_backward, aliases=True)


def sub(x: Any, y: Any) -> Tensor:
    """x - y, elementwise with broadcasting."""
    x, y = operands(x, y, "sub")
    if _is_bool(x) and _is_bool(y):
        raise DtypeError("sub: both operands are booleans, which have no difference; write x ^ y, or x & ~y")
    return SUB(x, y)


def neg_forward(x):
    return np.negative(x), None


def neg_backward(dout, saved):
    return (-dout,)


NEG = Op("neg", neg_forward, neg_backward)


def neg(x: Any) -> Tensor:
    """-x, elementwise."""
    x = operand(x, "neg")
    if _is_bool(x):
        raise DtypeError("neg: the operand holds booleans, which have no negative; write ~x for not")
    return NEG(x)


# --- x y, x / y ----------------------------------------------------------------------------------------------------


def mul_forward(x, y):
    return elementwise(np.multiply, x, y), Operands(x, y)


def mul_backward(dout, saved):
    x, y = saved
    dx = None if shape_of(x) is None else unbroadcast(elementwise(np.multiply, dout, y), x.shape)
    dy = None if shape_of(y) is None else unbroadcast(elementwise(np.multiply, dout, x), y.shape)
    return dx, dy


MUL = Op("mul", mul_forward, mul_backward)


def mul(x: Any, y: Any) -> Tensor:
    """x y, elementwise with broadcasting."""
    return MUL(*operands(x, y, "mul"))


def div_forward(x, y):
    return elementwise(np.divide, x, y), Operands(x, y)


def div_backward(dout, saved):  # d(x/y) = dx / y - x dy / y^2; y^2 may overflow, or be 0, where x/y/y is a number
    x, y = saved
    dx = None if shape_of(x) is None else unbroadcast(dout / y, x.shape)
    dy = None if shape_of(y) is None else unbroadcast(-dout * (x / y / y), y.shape)
    return dx, dy


DIV = Op("div", div_forward, div_backward)


def div(x: Any, y: Any) -> Tensor:
    """x / y, elementwise with broadcasting; of two whole numbers it is float32."""
    x, y = operands(x, y, "div")
    if all(one.dtype.kind in "iub" for one in (x, y) if hasattr(one, "dtype")):
        x, y = (_converted(one, np.dtype(np.float32)) if hasattr(one, "dtype") else one for one in (x, y))
    return DIV(x, y)


# --- x^y -----------------------------------------------------------------------------------------------------------


def pow_forward(x, y):
    return np.power(x, y), Operands(x, y)


def pow_backward(dout, saved):
    """dx = y x^(y-1) and dy = x^y ln x, but 0 where the power is constant: dx for y = 0, dy for x = 0 and y >= 0."""
    x, y = saved
    dx = dy = None
    with np.errstate(all="ignore"):  # inf and NaN where none is defined: often a constant's
        if shape_of(x) is not None:
            if shape_of(y) is None:
                slope = y * np.power(x, y - 1) if y else np.zeros_like(x)
            else:
                slope = np.where(np.equal(y, 0), 0, y * np.power(x, np.subtract(y, 1, dtype=dout.dtype)))
            dx = unbroadcast(dout * slope.astype(dout.dtype, copy=False), x.shape)
        if shape_of(y) is not None:
            constant = np.logical_and(np.equal(x, 0), np.greater_equal(y, 0))
            slope = np.where(constant, 0, np.power(x, y) * np.log(x, dtype=dout.dtype))
            dy = unbroadcast(dout * slope.astype(dout.dtype, copy=False), y.shape)
    return dx, dy


POW = Op("pow", pow_forward, pow_backward)


def pow(x: Any, y: Any) -> Tensor:
    """x to the power y, elementwise with broadcasting; the gradient of y needs x >= 0."""
    return POW(*operands(x, y, "pow"))


# --- functions of one argument -------------------------------------------------------------------------------------


def exp_forward(x):
    out = elementwise(np.exp, x)
    return out, Output(out)


def exp_backward(dout, saved):
    return (elementwise(np.multiply, dout, saved.out),)


EXP = Op("exp", exp_forward, exp_backward)


def exp(x: Any) -> Tensor:
    """e to the power x, elementwise."""
    return EXP(floats(x, "exp"))


def log_forward(x):
    return elementwise(np.log, x), Input(x)


def log_backward(dout, saved):
    return (dout / saved.x,)


LOG = Op("log", log_forward, log_backward)


def log(x: Any) -> Tensor:
    """The natural logarithm, elementwise."""
    return LOG(floats(x, "log"))


def sqrt_forward(x):
    out = elementwise(np.sqrt, x)
    return out, Output(out)


def sqrt_backward(dout, saved):
    return (dout / (2 * saved.out),)


SQRT = Op("sqrt", sqrt_forward, sqrt_backward)


def sqrt(x: Any) -> Tensor:
    """The square root, elementwise."""
    return SQRT(floats(x, "sqrt"))


def tanh_forward(x):
    out = elementwise(np.tanh, x)
    return out, Output(out)


def tanh_backward(dout, saved):
    return (elementwise(_tanh_slope, saved.out, dout),)


def _tanh_slope(y: Array, dy: Array, out: Array | None = None) -> Array:
    """dy (1 - y^2)."""
    slope = np.multiply(y, y, out=out)
    return np.multiply(np.subtract(1, slope, out=out), dy, out=out)


TANH = Op("tanh", tanh_forward, tanh_backward)


def tanh(x: Any) -> Tensor:
    """The hyperbolic tangent, elementwise."""
    return TANH(floats(x, "tanh"))


def logistic(x: Array, out: Array | None = None) -> Array:
    """1 / (1 + e^-x) on arrays. Where e^-x overflows, below -88 for float32, the result is 0."""
    with np.errstate(over="ignore"):
        power = np.exp(-x)
    power += 1
    return np.divide(1, power, out=out)


def sigmoid_forward(x):
    out = elementwise(logistic, x)
    return out, Output(out)


def sigmoid_backward(dout, saved):
    return (elementwise(_sigmoid_slope, saved.out, dout),)


def _sigmoid_slope(y: Array, dy: Array, out: Array | None = None) -> Array:
    """dy y (1 - y)."""
    slope = np.subtract(1, y, out=out)
    return np.multiply(np.multiply(slope, y, out=out), dy, out=out)


SIGMOID = Op("sigmoid", sigmoid_forward, sigmoid_backward)


def sigmoid(x: Any) -> Tensor:
    """1 / (1 + e^-x), elementwise."""
    return SIGMOID(floats(x, "sigmoid"))


def relu_forward(x):
    return elementwise(_at_least_0, x), Input(x)


def _at_least_0(x: Array, out: Array | None = None) -> Array:
    return np.maximum(x, np.zeros_like(x), out=out)  # an array of zeros: NumPy takes three times as long for a number


def relu_backward(dout, saved):
    return (elementwise(_where_positive, saved.x, dout),)


def _where_positive(x: Array, dy: Array, out: Array | None = None) -> Array:
    return masked(dy, ~(x <= 0), out)  # not x > 0: a NaN, which relu lets through, lets its gradient through


RELU = Op("relu", relu_forward, relu_backward)


def relu(x: Any) -> Tensor:
    """max(x, 0), elementwise; the gradient at 0 is taken to be 0."""
    return RELU(operand(x, "relu"))


def masked(x: Array, mask: Array, out: Array | None = None) -> Array:
    """x where the mask holds, else 0, also for an infinite x: a product of bits, in a tenth of np.where's time."""
    bits = f"u{x.itemsize}"
    out = np.empty_like(x) if out is None else out
    np.multiply(x.view(bits), mask, out=out.view(bits))
    return out


# --- choices -------------------------------------------------------------------------------------------------------


class Choice(NamedTuple):
    """Which elements pass their gradient on, and the operands' shapes."""

    chosen: Array
    x: tuple[int, ...] | None
    y: tuple[int, ...] | None


def where_forward(condition, x, y):
    return np.where(condition, x, y), Choice(condition, shape_of(x), shape_of(y))


def where_backward(dout, saved):
    dx = None if saved.x is None else unbroadcast(masked(dout, saved.chosen), saved.x)
    dy = None if saved.y is None else unbroadcast(masked(dout, ~saved.chosen), saved.y)
    return None, dx, dy


WHERE = Op("where", where_forward, where_backward)


def where(condition: Any, x: Any, y: Any) -> Tensor:
    """x where the condition holds, else y, elementwise with broadcasting."""
    condition = condition.data if isinstance(condition, Tensor) else as_array(condition)
    x, y = operands(x, y, "where")
    for choice in (x, y):
        if isinstance(choice, Tensor):
            condition = like(condition, choice.data)
    return WHERE(condition.astype(bool, copy=False), x, y)


class Limited(NamedTuple):
    """What was limited, and its limits: arrays, numbers, or None for no limit."""

    x: Array
    low: Any
    high: Any


def clip_forward(x, low, high):
    return np.clip(x, low, high), Limited(x, low, high)


def clip_backward(dout, saved):
    """The gradient goes to whichever of the three is the output: x at its limits too, and the upper of two crossed."""
    x, low, high = saved
    within, below, above = np.ones_like(x, bool), np.zeros_like(x, bool), np.zeros_like(x, bool)
    if low is not None:
        within, below = within & (x >= low), x < low
    if high is not None:
        within, above = within & (x <= high), x > high
    if low is not None and high is not None:
        crossed = np.less(high, low)
        below, above = below & np.less(low, high), above | crossed
    reached = (within, x.shape), (below, shape_of(low)), (above, shape_of(high))
    return tuple(None if shape is None else unbroadcast(masked(dout, where), shape) for where, shape in reached)


CLIP = Op("clip", clip_forward, clip_backward)


def clip(x: Any, min: Any = None, max: Any = None) -> Tensor:
    """x limited to [min, max], each a number, a tensor that broadcasts against x, or None for no limit.

    The gradient goes to x where it is within, the limits included, else to the limit that it met.
    """
    x = x if isinstance(x, Tensor) else tensor(x)
    low, high = (None if limit is None else operands(x, limit)[1] for limit in (min, max))
    return CLIP(*in_one_dtype(x, low, high))


def clamp_min(x: Any, min: Any) -> Tensor:
    """x, but nowhere below min."""
    return clip(x, min)


def clamp_max(x: Any, max: Any) -> Tensor:
    """x, but nowhere above max."""
    return clip(x, None, max)
