"""The state of each thread: whether operations are recorded, who observes them, and which part of the model runs."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np


class Observer(NamedTuple):
    """Functions to call for each forward, backward and module that runs (see autograd.observe), or None."""

    on_forward: Callable | None = None
    on_backward: Callable | None = None
    on_module: Callable | None = None
    before_forward: Callable | None = None
    before_backward: Callable | None = None


class _State(threading.local):
    grad_enabled = True
    scope = ""
    observers: tuple[Observer, ...] = ()
    quiet = False  # True while NumPy's warnings are off


state = _State()


def observe_in_all_threads(observer: Observer) -> None:
    """Let an observer see what every thread runs, until the program ends; threads that observe already are left out."""
    _State.observers = (*_State.observers, observer)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence NumPy's warnings until the block ends: infinity and NaN are ordinary results, as in PyTorch.

    Every operation runs within one. A Module opens one for all that it calls, because each costs a microsecond.
    """
    before, state.quiet = state.quiet, True
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        state.quiet = before


class set_grad_enabled:
    """Record operations, or do not, from this call on; as a context or a decorator, until it ends.

    `set_grad_enabled(False)` alone holds until the next call; `with set_grad_enabled(training):` to the block's end.
    """

    def __init__(self, mode: bool):
        self.mode, self.before = bool(mode), state.grad_enabled
        state.grad_enabled = self.mode

    def __enter__(self) -> None:
        state.grad_enabled = self.mode

    def __exit__(self, *error: Any) -> None:
        state.grad_enabled = self.before

    def __call__(self, function: Callable) -> Callable:
        state.grad_enabled = self.before  # a decorator is active only while the function runs
        return _decorated(function, lambda: set_grad_enabled(self.mode))


class _Mode:
    """A context that sets the mode of its thread and restores the one before; it may be entered again and again."""

    mode: bool

    def __new__(cls, function: Callable | None = None) -> Any:
        if function is None:
            return super().__new__(cls)
        return _decorated(function, cls)  # @no_grad without parentheses

    def __init__(self) -> None:
        self.before: list[bool] = []

    def __enter__(self) -> None:
        self.before.append(state.grad_enabled)
        state.grad_enabled = self.mode

    def __exit__(self, *error: Any) -> None:
        state.grad_enabled = self.before.pop()

    def __call__(self, function: Callable) -> Callable:
        return _decorated(function, type(self))


class no_grad(_Mode):
    """Record no operations within this context (or decorated function), so nothing is kept for a backward."""

    mode = False


class enable_grad(_Mode):
    """Record operations within this context (or decorated function), even inside a no_grad."""

    mode = True


def inference_mode(mode: bool = True) -> Any:
    """PyTorch's name for no_grad; with mode=False it changes nothing. The results are ordinary tensors."""
    if callable(mode):  # @inference_mode without parentheses
        return _decorated(mode, no_grad)
    return no_grad() if mode else set_grad_enabled(state.grad_enabled)


def _decorated(function: Callable, mode: Callable[[], Any]) -> Callable:
    """Run the function in a new context for each call, so that threads do not share one."""
    if not inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def run(*args: Any, **settings: Any) -> Any:
            with mode():
                return function(*args, **settings)

        return run

    @functools.wraps(function)
    def steps(*args: Any, **settings: Any) -> Iterator[Any]:
        """Run a generator so that it is in the mode while it works, but its user is not."""
        generator = function(*args, **settings)
        sent = None
        try:
            while True:
                try:
                    with mode():
                        value = generator.send(sent)
                except StopIteration as end:
                    return end.value
                sent = yield value
        finally:
            generator.close()

    return steps


def is_grad_enabled() -> bool:
    """True if operations are recorded on this thread."""
    return state.grad_enabled


def enter_scope(name: str) -> str:
    """Name the part of the model that runs from here on, such as `h.3.attn`; returns the name before.

    Nodes keep it for errors and tables. Module.__call__ enters its own name and returns to the one before.
    """
    before = state.scope
    state.scope = name
    return before
