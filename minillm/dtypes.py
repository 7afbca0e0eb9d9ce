"""Dtypes by their names: those of NumPy, and bfloat16, which the package ml_dtypes adds to NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from minillm.device import is_device
from minillm.errors import DtypeError


def device_and_dtype(targets: tuple[Any, ...]) -> tuple[str | None, np.dtype | None]:
    """The device and the dtype among the arguments of `to("cuda", "bfloat16")`, in any order; None where none is."""
    device, dtype = None, None
    for target in targets:
        if is_device(target):
            device = target
        else:
            try:
                dtype = as_dtype(target or "nothing")  # NumPy would take None for float64
            except TypeError:
                raise DtypeError(
                    f"to: {target!r} is neither a device nor a dtype; give 'cpu', 'cuda' or 'cuda:1', 'float32' or "
                    "'bfloat16'"
                ) from None
    return device, dtype


def as_dtype(dtype: Any) -> np.dtype:
    """The dtype of a name or a type, including "bfloat16", which the package ml_dtypes adds to NumPy."""
    if not isinstance(dtype, str) or dtype != "bfloat16":
        try:
            return np.dtype(dtype)
        except TypeError:
            raise DtypeError(
                f"dtype: {dtype!r} is not a dtype; give one such as 'float32', np.int64 or 'bfloat16'"
            ) from None
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        raise DtypeError("dtype: NumPy has bfloat16 from ml_dtypes, which is missing; pip install ml_dtypes") from None
    return np.dtype(bfloat16)
