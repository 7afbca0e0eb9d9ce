"""Modules around modules: a way to add to what a layer computes without changing the layer or its parameters' names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minillm.nn import Module, ModuleList


class Wrapper(Module):
    """A module around another one. A subclass says what `forward` adds; all else is that of the module inside.

    Parameters keep their names, because the module inside stands at the same path.
    """

    def __init__(self, module: Module):
        self.module = module
        self.name, self.training = module.name, module.training

    def named_children(self) -> Iterator[tuple[str, Any]]:
        return self.module.named_children()

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        yield prefix, self
        yield from self.module.named_modules(prefix)

    def __getattr__(self, name: str) -> Any:
        if name == "module":  # while a copy is being made, there is none yet
            raise AttributeError(name)
        return getattr(self.module, name)


def unwrap(module: Any) -> Any:
    """The module inside all wrappers."""
    while isinstance(module, Wrapper):
        module = module.module
    return module


def replace(model: Module, path: str, new: Module) -> None:
    """Put another module at a path, such as `h.3.attn.qkv`."""
    _replaced(model, path.split("."), new)


def _replaced(owner: Any, steps: list[str], new: Module) -> Any:
    """The owner with another module at the end of these steps; a tuple cannot be changed, so it is made anew."""
    if not steps:
        return new
    inside, step = unwrap(owner), steps[0]
    if not isinstance(inside, (list, tuple, dict, ModuleList)):
        vars(inside)[step] = _replaced(vars(inside)[step], steps[1:], new)
        return owner
    key: Any = step if isinstance(inside, dict) else int(step)
    changed = _replaced(inside[key], steps[1:], new)
    if isinstance(inside, tuple):
        return (*inside[:key], changed, *inside[key + 1 :])
    inside[key] = changed
    return owner
