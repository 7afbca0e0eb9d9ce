"""`minillm describe`: the size, memory, FLOPs and KV cache of a model that is not built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minillm.commands.common import print_tables
from minillm.lora import LoraConfig
from minillm.options import Positional, read


@dataclass(frozen=True)
class Describe:
    """Report size, memory, FLOPs and KV cache without building the model."""

    model: Positional[str]
    """A preset such as gpt2 or llama-2-7b, a folder with config.json, a .gguf, or a run directory."""
    batch_size: int | None = None
    """Sequences per step; a run's own, or 1, by default."""
    context: int | None = None
    """Tokens per sequence; the model's own by default, but 2048 at most."""
    dtype: Literal["float32", "float64", "bfloat16"] | None = None
    """Dtype of weights and activations; a run's own, or float32, by default."""
    lora: LoraConfig | None = None
    """Adapters that are trained in place of the weights; a run's own by default."""


def describe(arguments: list[str]) -> None:
    """Print the tables of a model, and the rules of thumb."""
    from minillm.study.describe import describe as described
    from minillm.study.describe.tables import rules, tables

    given = read(Describe, "describe", arguments)
    found = described(given.model, given.batch_size, given.context, given.dtype, given.lora)
    print_tables(tables(found))
    print(*rules(found), sep="\n")
