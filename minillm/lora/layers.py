"""Adapters, and what puts them around a layer: y = x W^T + bias becomes y + s drop(x) A^T B^T (ops/add_low_rank.py).

The layer inside stays at its path and keeps its names, so the weights of a model are called as before. The matrices of
an adapter are beside them, under the last part of the name that Hugging Face gives to the layer:

    h.0.attn.qkv.weight                 frozen
    h.0.attn.qkv.lora.q_proj.A          (r, in), trained
    h.0.attn.qkv.lora.q_proj.B          (out, r), trained
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from minillm import ops
from minillm.autograd import Parameter, Tensor
from minillm.backend import Array
from minillm.device import like
from minillm.lora.places import Place
from minillm.nn import Module, normal_, uniform_
from minillm.parallel.wrapper import Wrapper


class Adapter(Module):
    """The matrices A (r, in) and B (out, r) of one layer, and the factor s; for a table of V rows, in is V."""

    def __init__(self, place: Place, weight: Array, rank: int, scale: float, dropout: float):
        out, inside = place.shape[::-1] if place.is_table else place.shape
        self.A = Parameter(np.zeros_like(weight, shape=(rank, inside), order="C"))
        self.B = Parameter(np.zeros_like(weight, shape=(out, rank), order="C"))
        self.place, self.scale, self.dropout = place, scale, dropout
        first = np.zeros(self.A.shape if not place.is_table else self.B.shape, np.float32)
        if place.is_table:  # as in PEFT: A starts as zeros, B from N(0, 1)
            normal_(first, 1.0)
            self.B.data[...] = like(first, weight)
        else:
            uniform_(1 / math.sqrt(inside) if inside else 0.0, first)
            self.A.data[...] = like(first, weight)

    def forward(self, y: Tensor, x: Any) -> Tensor:
        """y with the update: x is the input of the linear layer, or the ids of the table. Nothing else may read y."""
        if self.place.is_table:
            h = ops.embedding(x, self.A.transpose(0, 1))  # (..., r)
            return y + ops.linear(h, self.B) * self.scale
        dropped = ops.dropout(x, self.dropout, self.training)
        return ops.add_low_rank(y, dropped, self.A, self.B, self.scale, self.place.start, overwrite=True)

    def change(self) -> Array:
        """The change of the layer's weight, s B A, in its shape and in float32 at least."""
        dtype = np.promote_types(self.A.dtype, np.float32)
        change = self.scale * (self.B.data.astype(dtype) @ self.A.data.astype(dtype))
        return change.T if self.place.is_table else change

    def extra_repr(self) -> str:
        return f"{self.place.name}, scale={self.scale:g}" + f", dropout={self.dropout:g}" * bool(self.dropout)


class Lora(Wrapper):
    """Base of what LoRA puts around a module; `on` is False while the model computes what it did before."""

    def __init__(self, module: Module):
        super().__init__(module)
        self.on = True

    def switch(self, on: bool) -> None:
        """Use what is trained, or what was there before."""
        self.on = on


class Adapted(Lora):
    """A linear layer or a table with adapters for all its rows, or for some of them each."""

    def __init__(self, module: Module, adapters: dict[str, Adapter]):
        super().__init__(module)
        self.lora = adapters

    def named_children(self) -> Iterator[tuple[str, Any]]:
        yield from self.module.named_children()
        yield from ((f"lora.{name}", adapter) for name, adapter in self.lora.items())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        yield from super().named_modules(prefix)
        for name, adapter in self.lora.items():
            yield from adapter.named_modules(f"{prefix}.lora.{name}" if prefix else f"lora.{name}")

    def forward(self, x: Any) -> Tensor:
        y = self.module(x)
        for adapter in self.lora.values() if self.on else ():
            y = adapter(y, x)
        return y


class Whole(Lora):
    """A module that is trained as a whole. The one before is kept, for when adapters are off."""

    def __init__(self, module: Module):
        super().__init__(module)
        self.before = copy.deepcopy(module).requires_grad_(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def switch(self, on: bool) -> None:
        """Exchange the module and the one before, whose arrays follow to the device and dtype of the trained ones."""
        if on == self.on:
            return
        for one, other in zip(self.module.parameters(), self.before.parameters(), strict=True):
            other.data = like(other.data.astype(one.dtype, copy=False), one.data)
        self.module, self.before, self.on = self.before, self.module, on
