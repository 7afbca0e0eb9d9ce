"""The choice of the pair of functions that computes an operation: plain, fast on a CPU, or launching kernels.

Each operation has up to three pairs with the same signatures (see Op in autograd.py). The last two are found by the
operation's name:

    ops/           plain   the formula, line by line as it is derived: what a person reads and a debugger stops in
    fast/NAME.py   fast    works on blocks of rows, on several threads, and reuses memory
    cuda/NAME.py   cuda    launches kernels/NAME.cu, or the file that its KERNEL names, on a GPU or in the emulator

The plain pair is in ops/NAME.py, or with its family: `add` is in ops/arithmetic.py. An operation without a fast pair
runs the plain one.

A node keeps the backward that belongs to the forward that ran, so each pair may save what it likes, and the engine may
be changed between a forward and its backward.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from minillm import backend
from minillm.cuda.kernel import kernel_dtypes
from minillm.cuda.source import KernelError
from minillm.device import Array, is_on_gpu
from minillm.errors import InputError, did_you_mean

# The rooms whose pairs are tried before the plain one: on arrays of the CPU, and on those of a GPU.
ENGINES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plain": ((), ()),
    "auto": (("fast",), ("cuda",)),
    "fast": (("fast",), ()),
    "emulate": (("cuda", "fast"), ("cuda",)),
    "require": (("cuda", "fast"), ("cuda",)),
}
BEFORE = {"off": "fast"}  # what MINILLM_KERNELS and use_kernels called an engine before


class Pair(NamedTuple):
    """A forward and its backward.

    `writes_into`: the backward takes a third argument, `into`, a tuple of `Into | None` per input, and may fill and
    return `into[i].array`. It saves a pass over every weight gradient.
    `kernel`: the file of kernels that the pair launches, `kernels/<kernel>.cu`.
    """

    forward: Callable
    backward: Callable
    writes_into: bool = False
    kernel: str = ""


def _of_environment() -> str:
    """The engine that MINILLM_ENGINE names, or MINILLM_KERNELS, its name before.

    An unknown name gives a warning and "auto": nobody can catch an error here, while minillm is imported.
    """
    before = os.environ.get("MINILLM_KERNELS")
    variable = "MINILLM_KERNELS" if before and "MINILLM_ENGINE" not in os.environ else "MINILLM_ENGINE"
    given = os.environ.get(variable) or "auto"
    name = BEFORE.get(given, given) if variable == "MINILLM_KERNELS" else given
    if name not in ENGINES:
        message = f"{variable} is {given!r}, which is not an engine{did_you_mean(given, ENGINES)}; using auto"
        warnings.warn(message, stacklevel=2)
        return "auto"
    if variable == "MINILLM_KERNELS":
        warnings.warn(f"MINILLM_KERNELS is now MINILLM_ENGINE; set MINILLM_ENGINE={name}", FutureWarning, stacklevel=2)
    return name


_first_engine = _of_environment()
_entered: list[list[str]] = []  # the names of engines that were entered and are not left yet, each in a list of its own
_engine = _first_engine  # the one that runs operations now
_rooms = ENGINES[_engine]
backend.keep_to_one_thread(_engine == "plain")


def current_engine() -> str:
    """The name of the engine that runs operations now (see `engine`)."""
    return _engine


@contextlib.contextmanager
def engine(name: str) -> Iterator[None]:
    """Choose the engine, for all threads, until the block ends; MINILLM_ENGINE sets the one to begin with.

    - "plain": the formulas as they are derived, for reading and stepping through; this library's
      own threads rest (a BLAS may still use its own).
    - "auto": the fast pairs for arrays on the CPU, kernels for arrays on a GPU; formulas where there is neither.
    - "fast": like "auto", without kernels.
    - "emulate": like "auto", and on NumPy arrays the kernels are emulated.
    - "require": like "emulate", and an operation that has kernels but cannot use them raises KernelError.

    Raises: InputError for another name.
    """
    if name not in ENGINES:
        raise InputError(f"engine: {name!r} is not an engine{did_you_mean(name, ENGINES)}")
    entered = [name]
    _entered.append(entered)
    _use_last()
    try:
        yield
    finally:
        _entered[:] = [one for one in _entered if one is not entered]  # another thread may have entered one meanwhile
        _use_last()


def _use_last() -> None:
    """Use the engine that was entered last and is not left yet, or the one to begin with."""
    global _engine, _rooms
    _engine = _entered[-1][0] if _entered else _first_engine
    _rooms = ENGINES[_engine]
    backend.keep_to_one_thread(_engine == "plain")


def rooms_for(array: Any) -> tuple[str, ...]:
    """The rooms whose pairs are tried, in this order, before the plain pair."""
    return _rooms[0] if type(array) is np.ndarray or not is_on_gpu(array) else _rooms[1]


def uses_kernel(kernel: str, array: Array, refused: str = "") -> bool:
    """True if kernels of `kernels/<kernel>.cu` run on this array; otherwise a formula does.

    `refused` says why the kernels cannot take these arguments, for reasons other than the dtype: "head size 48".
    Raises: KernelError under "require", where the answer would be no.
    """
    if "cuda" not in rooms_for(array):
        return False
    dtype, known = array.dtype.name, kernel_dtypes(kernel)
    if not refused and dtype not in known:
        refused = f"{dtype} (there are kernels for: {', '.join(sorted(known)) or 'nothing'})"
    if refused and _engine == "require":
        raise KernelError(f'{kernel}: no kernel for {refused}; engine("auto") would compute it by the formula')
    return not refused


def find_pair(room: str, name: str, forward: Callable, backward: Callable) -> Pair | None:
    """The pair of `<package>/<room>/<name>.py`, beside `<package>/ops/`, where the plain forward is written."""
    home = getattr(forward, "__module__", "")
    package, ops, _ = f".{home}".rpartition(".ops.")
    if not ops or getattr(backward, "__module__", "") != home:  # one that is written elsewhere has the plain pair alone
        return None
    module = f"{package}.{room}.{name}"[1:]
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the file is there, and something that it imports is not
        return None
    if not hasattr(found, "backward"):
        return None
    return Pair(found.forward, found.backward, takes_into(found.backward), getattr(found, "KERNEL", name))


def takes_into(backward: Callable) -> bool:
    """True if a backward has the parameter `into`, so that it can write gradients to their destination (see Pair)."""
    code = getattr(backward, "__code__", None)
    return code is not None and "into" in code.co_varnames[: code.co_argcount]
