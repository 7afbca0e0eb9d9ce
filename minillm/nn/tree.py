"""The text of `print(model)`: one line a layer, with its settings, the shapes of its parameters and how many there are.

Equal layers in a row share one line, such as `h: 12 x Block`, and the layers below it are those of one of them. A
parameter that an earlier layer has too is shown by the path of that one, and counts there alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from minillm.autograd import Parameter


class Line(NamedTuple):
    """A line of the tree, for one layer or for `times` equal ones with so many elements each."""

    depth: int
    name: str  # empty for the module that is printed
    layer: str
    elements: int
    times: int = 1

    @property
    def text(self) -> str:
        """The left part of the line."""
        times = f"{self.times} x " if self.times > 1 else ""
        return f"{'  ' * self.depth}{f'{self.name}: ' if self.name else ''}{times}{self.layer}"

    @property
    def elements_text(self) -> str:
        """The right part of the line."""
        times = f"{self.times} x " if self.times > 1 else ""
        return f"{times}{self.elements:,}" if self.elements else ""


def tree(module: Any) -> str:
    """The lines of a module and of all modules below it."""
    lines = _lines(module, 0, "", "", {})
    width = max(len(line.text) for line in lines)
    column = max(len(line.elements_text) for line in lines)
    first, *rest = (f"{line.text:<{width}}  {line.elements_text:>{column}}".rstrip() for line in lines)
    return "\n".join([f"{first} parameters" if lines[0].elements else first, *rest])


def _lines(module: Any, depth: int, path: str, name: str, seen: dict[int, str]) -> list[Line]:
    """The module's own line, and those below it. seen: the path of each parameter so far, by its id."""
    shapes, elements, below = [], 0, []
    for child_name, child in module.named_children():
        child_path = f"{path}.{child_name}" if path else child_name
        if not isinstance(child, Parameter):
            below.append((child_name, child, child_path))
        elif id(child) in seen:
            shapes.append(f"{child_name} = {seen[id(child)]}")
        else:
            seen[id(child)] = child_path
            elements += child.numel()
            shapes.append(f"{child_name} {child.shape}")
    children = [_lines(child, depth + 1, child_path, child_name, seen) for child_name, child, child_path in below]
    elements += sum(lines[0].elements for lines in children)
    settings = module.extra_repr()
    layer = " ".join([type(module).__name__ + (f"({settings})" if settings else ""), ", ".join(shapes)]).rstrip()
    return [Line(depth, name, layer, elements), *_merged(children)]


def _merged(children: list[list[Line]]) -> list[Line]:
    """The lines of all children, equal neighbours in a list as one."""
    groups: list[list[list[Line]]] = []
    for child in children:
        if groups and _is_next(groups[-1][-1], child):
            groups[-1].append(child)
        else:
            groups.append([child])
    merged: list[Line] = []
    for group in groups:
        head, *below = group[0]
        if len(group) > 1:
            place, first = _split(head.name)
            last = _split(group[-1][0].name)[1]
            in_list = sum(_split(child[0].name)[0] == place for child in children)
            name = place if place and in_list == len(group) else f"{place}.{first}-{last}".lstrip(".")
            head = head._replace(name=name, times=len(group))
        merged += [head, *below]
    return merged


def _is_next(before: list[Line], after: list[Line]) -> bool:
    """True if two children are equal, and neighbours in one list."""
    (place, number), (after_place, after_number) = _split(before[0].name), _split(after[0].name)
    if not (number.isdigit() and after_number.isdigit() and int(after_number) == int(number) + 1):
        return False
    return (
        place == after_place and before[0]._replace(name="") == after[0]._replace(name="") and before[1:] == after[1:]
    )


def _split(name: str) -> tuple[str, str]:
    """The name of a list, and the number in it: `h.3` is ("h", "3")."""
    place, _, number = name.rpartition(".")
    return place, number
