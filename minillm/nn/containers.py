"""Modules that hold other modules: a list of them, and a chain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from minillm.errors import DtypeError
from minillm.nn.module import Module, find_children


class ModuleList(Module):
    """A list of modules, each named by its index. A plain list serves as well: a Module looks into its lists."""

    def __init__(self, modules: Iterable[Module] = ()):
        self.members = _checked_modules(type(self).__name__, modules)

    def named_children(self) -> Iterator[tuple[str, Any]]:
        yield from find_children(enumerate(self.members))

    def append(self, module: Module) -> ModuleList:
        """Add a module at the end; returns the list."""
        return self.extend([module])

    def extend(self, modules: Iterable[Module]) -> ModuleList:
        """Add modules at the end; returns the list."""
        self.members += _checked_modules(type(self).__name__, modules)
        return self

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Module]:
        return iter(self.members)

    def __getitem__(self, place: int | slice) -> Any:
        return self.members[place]

    def __setitem__(self, place: int, module: Module) -> None:
        (self.members[place],) = _checked_modules(type(self).__name__, [module])


class Sequential(ModuleList):
    """Modules that run one after the other, each on the output of the one before.

    A module is named by its index, so the weight of the first has the path `0.weight`, as in PyTorch.
    """

    def __init__(self, *modules: Module):
        super().__init__(modules)

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x


def _checked_modules(owner: str, modules: Iterable[Any]) -> list[Module]:
    """The modules as a list. Raises: DtypeError for anything that is not a Module, such as a function."""
    checked = list(modules)
    for place, module in enumerate(checked):
        if not isinstance(module, Module):
            raise DtypeError(
                f"{owner}: element {place} is {module!r}, which is not a Module; give layers such as "
                "nn.Linear(4, 4) or nn.GELU()"
            )
    return checked
