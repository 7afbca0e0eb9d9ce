"""The parts of a model that layers belong to, and the sizes of all blocks from the few that were run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from minillm.study.describe.description import PARTS, Amount, Kept


class Stacks:
    """The blocks of a model: how many there are, by the names of fields such as `layers` and `encoder_layers`."""

    def __init__(self, numbers: dict[str, int], most: float = 3):
        self.numbers = numbers
        self.cut = {name: int(min(most, number)) for name, number in numbers.items()}  # so many are looked at

    def times(self, layer: str) -> int:
        """The number of the model's blocks that a layer stands for; 0 if it is not in the middle of those looked at."""
        stack, number, _ = split(layer)
        field = next((name for name in self.numbers if stack.startswith(name.removesuffix("layers").rstrip("_"))), "")
        middle = (self.cut[field] - 1) // 2 if field else None
        return 1 + self.numbers[field] - self.cut[field] if field and number == middle else 0

    def gathered(self, sizes: Iterable[tuple[Any, str, float]]) -> dict[Any, Amount]:
        """Add up triples (key, layer, size) by key; the middle block stands for all between the first and last."""
        amounts: dict[Any, Amount] = {}
        for key, layer, size in sizes:
            times = self.times(layer)
            block, all_blocks = amounts.get(key, (0, 0))
            amounts[key] = Amount(block + bool(times) * size, all_blocks + (times or 1) * size)
        return amounts

    def by_part(self, sizes: Mapping[str, float]) -> dict[str, Amount]:
        """Sizes of layers by part of the model."""
        return self.gathered((part(layer), layer, size) for layer, size in sizes.items())


def split(layer: str) -> tuple[str, int | None, str]:
    """The stack, the number of the block, None for a layer in no block, and the path within: ("h", 3, "attn.qkv")."""
    match = re.match(r"(.*?)\.(\d+)(?:\.|$)", layer)
    return (match[1], int(match[2]), layer[match.end() :]) if match else ("", None, layer)


def part(layer: str) -> str:
    """The part of the model that a layer or parameter belongs to."""
    _, number, rest = split(layer)
    if "lora" in layer.split("."):
        return "adapters"
    first = re.sub(r"^(encoder|decoder)\.", "", rest).partition(".")[0]
    if re.match(r"ln|norm", first):
        return "norms"
    return PARTS.get(first, "heads, loss" if number is None else "others")


def row(layer: str, operation: str, names: str) -> Kept:
    """The row of the table in which arrays are listed."""
    return Kept(part(layer), f"{split(layer)[2]} {operation}".strip(), names)
