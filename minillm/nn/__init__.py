"""Layers: objects that hold parameters and call operations.

In reading order: module.py (Module, how parameters are found), layers.py (Linear, the norms, MLP, ...), attention.py
(SelfAttention, the cache of keys and values), decoder.py (what every model of the next token has), containers.py,
initial.py (first weights), tree.py (`print(model)`).
"""

from __future__ import annotations

from typing import Any

from minillm import module_hints, ops
from minillm.autograd import Parameter
from minillm.nn.attention import CrossAttention, KVCache, SelfAttention, join_heads, split_heads
from minillm.nn.containers import ModuleList, Sequential
from minillm.nn.decoder import Decoder
from minillm.nn.initial import normal_, uniform_, uninitialized
from minillm.nn.layers import (
    ACTIVATIONS,
    GELU,
    MLP,
    CrossEntropyLoss,
    Dropout,
    Embedding,
    Identity,
    LayerNorm,
    Linear,
    MSELoss,
    ReLU,
    RMSNorm,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from minillm.nn.module import Module

__all__ = [
    "ACTIVATIONS",
    "GELU",
    "MLP",
    "CrossAttention",
    "CrossEntropyLoss",
    "Decoder",
    "Dropout",
    "Embedding",
    "Identity",
    "KVCache",
    "LayerNorm",
    "Linear",
    "MSELoss",
    "Module",
    "ModuleList",
    "Parameter",
    "RMSNorm",
    "ReLU",
    "SelfAttention",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "join_heads",
    "normal_",
    "split_heads",
    "uniform_",
    "uninitialized",
]


def __getattr__(name: str) -> Any:
    known = [one for one, value in globals().items() if isinstance(value, type) and issubclass(value, Module)]
    raise module_hints.missing_part(name, "minillm.nn", known, ops.__all__)
