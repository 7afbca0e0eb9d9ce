"""The arguments of a public function: Tensors, arrays, lists and Python numbers, and the dtype in which it computes.

Dtypes follow PyTorch's rule, so float32 stays float32 beside Python numbers and whole numbers; NumPy would make float64
of some of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minillm.autograd import Tensor, tensor
from minillm.backend import as_array
from minillm.device import is_on_gpu, like
from minillm.errors import DtypeError


def floats(x: Any, function: str) -> Tensor:
    """The operand of a function whose results are fractions, as a Tensor: float32 where it holds whole numbers."""
    x = operand(x, function)
    if not isinstance(x, Tensor):
        x = Tensor(x) if hasattr(x, "dtype") else tensor(float(x))
    return _converted(x, np.dtype(np.float32)) if x.dtype.kind in "iub" else x


def is_number(x: Any) -> bool:
    """True if an operand is a Python number: it has no shape, and gets no gradient."""
    return not hasattr(x, "shape")


def is_boolean(x: Any) -> bool:
    """True if an operand holds booleans, which NumPy neither subtracts nor negates."""
    return isinstance(x, bool) if is_number(x) else x.dtype.kind == "b"


def operand(x: Any, function: str = "operand") -> Any:
    """An operand as a Tensor, an array or a Python number.

    A NumPy scalar becomes a Python number: np.float64(2) would turn a float32 tensor into float64. A list becomes an
    array whose floats are float32, as in `tensor`.
    Raises: DtypeError for what holds no numbers.
    """
    if isinstance(x, Tensor) or type(x) in (float, int, bool):  # np.float64 is a float too, by inheritance
        return x
    array = tensor(x).data if isinstance(x, (list, tuple)) else as_array(x)
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise DtypeError(f"{function}: an operand is {x!r:.60} of type {type(x).__name__}; give numbers or tensors")
    return array.item() if array.ndim == 0 and not is_on_gpu(array) else array  # reading from a GPU would wait for it


def operands(x: Any, y: Any, function: str = "operand") -> tuple[Any, Any]:
    """Two operands in one dtype; an array is moved to the device of the Tensor that it meets."""
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
    elif is_number(x) and is_number(y):
        x, y = tensor(x), tensor(y)  # of two Python numbers NumPy would make float64
    return in_one_dtype(x, y)


def in_one_dtype(*operands: Any) -> tuple:
    """Operands (Tensors, arrays, Python numbers, None) in one dtype, by PyTorch's rule.

    The dtype is that of the arrays with dimensions. Those without dimensions, and then numbers, count only where they
    are of a higher kind (booleans, whole numbers, floats), so float32 stays float32 with 2.5, with an int64 array, and
    with a float64 of no dimensions; a Python float makes float32 of whole numbers.
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


def in_float32(*operands: Any) -> tuple:
    """Operands with whole numbers and booleans converted to float32."""
    wanted = np.dtype(np.float32)
    return tuple(_converted(x, wanted) if hasattr(x, "dtype") and _kind(x.dtype) < 2 else x for x in operands)


def _kind(dtype: np.dtype) -> int:
    """0 for booleans, 1 for whole numbers, 2 for floats (bfloat16's kind is V, for void)."""
    return {"b": 0, "i": 1, "u": 1}.get(dtype.kind, 2)


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
