"""minillm: a language-model engine from first principles, on NumPy.

import minillm
x = minillm.tensor([[1.0, 2.0]], requires_grad=True)
(x * x).sum().backward()
x.grad                                              # [[2., 4.]]

The functions of minillm.ops are here too, as in PyTorch: minillm.zeros, minillm.cat, minillm.einsum.
"""

import importlib
import importlib.util
import os
import warnings
from typing import Any

import numpy as np

from minillm import copies, nn, ops, optim
from minillm.autograd import (
    Parameter,
    Tensor,
    enable_grad,
    inference_mode,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
    tensor,
)
from minillm.beside import load_tokenizer
from minillm.engine import engine
from minillm.hints import missing_function
from minillm.ops import *  # noqa: F403
from minillm.random import manual_seed
from minillm.resolver import load
from minillm.version import __version__ as __version__

__all__ = [
    "Parameter",
    "Tensor",
    "enable_grad",
    "engine",
    "inference_mode",
    "is_grad_enabled",
    "load",
    "load_tokenizer",
    "manual_seed",
    "nn",
    "no_grad",
    "ops",
    "optim",
    "set_grad_enabled",
    "tensor",
]
copies.warn_of_another_copy()
if checked := os.environ.get("MINILLM_CHECK"):  # see study/questions/nonfinite.py
    if checked == "finite":
        importlib.import_module("minillm.study.questions.nonfinite").check_always()
    else:
        warnings.warn(f"MINILLM_CHECK is {checked!r}, which checks nothing; set MINILLM_CHECK=finite", stacklevel=2)

float16, float32, float64 = np.dtype("float16"), np.dtype("float32"), np.dtype("float64")
uint8, int32, int64, bool = np.dtype("uint8"), np.dtype("int32"), np.dtype("int64"), np.dtype("bool")
float, half, double, int, long = float32, float16, float64, int32, int64  # PyTorch's other names for these dtypes


MOVED = {"debug": "study.diff", "graph": "backward"}  # modules under their names before
MOVED |= {name: f"study.{name}" for name in ("describe", "gradcheck", "profile")}


def __getattr__(name: str) -> Any:
    """Load `minillm.testing` and the other modules when first named; for other names, raise an error with a hint."""
    if not name.startswith("_") and importlib.util.find_spec(f"minillm.{name}") is not None:
        return importlib.import_module(f"minillm.{name}")
    if name in MOVED:
        raise AttributeError(f"minillm.{name} is now minillm.{MOVED[name]}; import that")
    raise missing_function(name, "minillm", ops.__all__, Tensor)
