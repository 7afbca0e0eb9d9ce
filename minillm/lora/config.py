"""The settings of LoRA, with PEFT's meaning, and where PEFT's file has the same things under other names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from minillm.errors import InputError

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoraConfig:
    """Which layers of a model get an adapter, and of what size; layers have Hugging Face's names here, as in PEFT.

    targets, exclude: names are given as a tuple, or in one text with commas; other texts are regular expressions.
    """

    no_options: ClassVar[tuple[str, ...]] = ("exclude", "modules_to_save", "layers_to_transform", "layers_pattern")

    rank: int = field(default=8, metadata={"name": "lora"})
    """Freeze the model, and train adapters of this rank r beside its layers: two matrices (r, in) and (out, r) each."""
    alpha: float | None = field(default=None, metadata={"name": "lora_alpha"})
    """Scale of the adapters: what they add is multiplied by alpha / rank; twice the rank unless given."""
    dropout: float = field(default=0.0, metadata={"name": "lora_dropout"})
    """Dropout probability of the adapters' inputs while training."""
    targets: str | tuple[str, ...] | None = field(default=None, metadata={"name": "lora_targets"})
    """Layers with an adapter, by Hugging Face's names: their last parts, such as q_proj,v_proj; a regular expression
    for whole names; or all-linear, all but the output layer. By default the family's: PEFT's choice, if it has one."""
    exclude: str | tuple[str, ...] = ()
    """Layers without one, though they are among the targets."""
    modules_to_save: tuple[str, ...] | None = None
    """Modules that are trained as a whole and saved with the adapters; by default the head of a model that classifies
    or finds answers."""
    layers_to_transform: tuple[int, ...] | None = None
    """Numbers of the blocks whose layers get an adapter; by default all blocks."""
    layers_pattern: str | tuple[str, ...] = ()
    """Name of the list of blocks, such as `layers`, for a model that has several; by default any."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    """Other ranks for some layers: {regular expression for the end of a name: rank}; the first that fits counts."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    """Other alphas for some layers."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (Kalajdzievski 2023, arXiv:2312.03732)."""

    def __post_init__(self):
        for name in ("targets", "exclude", "modules_to_save", "layers_to_transform", "layers_pattern"):
            value = getattr(self, name)
            if isinstance(value, list):  # as JSON has it
                value = tuple(value)
            elif isinstance(value, str) and value != ALL_LINEAR and re.fullmatch(r"[\w.,-]+", value):
                value = tuple(value.split(","))
            object.__setattr__(self, name, value)
        for name, rank in {"rank": self.rank, **self.rank_pattern}.items():
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
                raise InputError(f"LoraConfig: {name} is {rank!r}; give a whole number of 1 or more")
        for name, alpha in {"alpha": self.alpha, **self.alpha_pattern}.items():
            if alpha is not None and (
                isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < math.inf
            ):
                raise InputError(f"LoraConfig: {name} is {alpha!r}; give a number above 0")
        if not 0 <= self.dropout < 1:
            raise InputError(f"LoraConfig: dropout is {self.dropout}; give a probability of at least 0 and below 1")
        if self.targets == ():
            raise InputError("LoraConfig: targets is empty; give names of layers, or None for the family's own")
        if isinstance(self.targets, str) and self.layers_to_transform is not None:
            raise InputError(
                f"LoraConfig: targets={self.targets!r} is one expression, which layers_to_transform does not narrow; "
                "give names, or put the numbers into the expression"
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise InputError("LoraConfig: layers_pattern says where layers_to_transform counts; give that too")
        patterns = [self.targets, self.exclude, *self.rank_pattern, *self.alpha_pattern]
        for pattern in [one for one in patterns if isinstance(one, str)]:
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(f"LoraConfig: {pattern!r} is no regular expression ({error})") from None

    @property
    def is_alike_in_all_blocks(self) -> bool:
        """True if no setting tells one block of a model from another."""
        texts = [*((self.targets,) if isinstance(self.targets, str) else self.targets or ()), *self.rank_pattern]
        texts += [self.exclude] if isinstance(self.exclude, str) else self.exclude
        return self.layers_to_transform is None and not any(re.search(r"\d\\?\.|\[|\{", text) for text in texts)

    def rank_of(self, name: str) -> int:
        """The rank of the adapter of a layer."""
        return _pattern_of(self.rank_pattern, name, self.rank)

    def alpha_of(self, name: str) -> float:
        """The alpha of the adapter of a layer; where only the rank is given, twice the general rank."""
        return _pattern_of(self.alpha_pattern, name, 2.0 * self.rank if self.alpha is None else self.alpha)

    def scale_of(self, name: str) -> float:
        """The factor of the update of a layer."""
        rank = self.rank_of(name)
        return self.alpha_of(name) / (math.sqrt(rank) if self.rslora else rank)


def _pattern_of(patterns: Mapping[str, Any], name: str, otherwise: Any) -> Any:
    """The value of the first pattern that fits the end of a name."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), otherwise)
