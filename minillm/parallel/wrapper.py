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
    *steps, last = path.split(".")
    owner: Any = unwrap(model)
    for step in steps:
        owner = unwrap(owner[_key(owner, step)] if _holds_items(owner) else getattr(owner, step))
    if _holds_items(owner):
        owner[_key(owner, last)] = new
    else:
        setattr(owner, last, new)


def _holds_items(owner: Any) -> bool:
    return isinstance(owner, (list, dict, ModuleList))


def _key(owner: Any, step: str) -> Any:
    return step if isinstance(owner, dict) else int(step)
