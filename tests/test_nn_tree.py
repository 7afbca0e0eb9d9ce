"""`print(model)`: the tree of layers with their settings, the shapes of their parameters and their elements."""

from __future__ import annotations

import re

import numpy as np
import pytest

from minillm import Parameter, nn
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.models.xlnet import XLNetConfig, XLNetLMHeadModel
from minillm.nn import Module

GPT = """\
GPT2                                             32,416 parameters
  wte: Embedding weight (256, 32)                 8,192
  wpe: Embedding weight (8, 32)                     256
  drop: Dropout(p=0.1)
  h: 2 x Block                               2 x 11,968
    ln_1: LayerNorm(eps=1e-05) weight (32,)          32
    attn: SelfAttention(heads=2, causal)          4,096
      qkv: Linear weight (96, 32)                 3,072
      proj: Linear weight (32, 32)                1,024
      dropout: Dropout(p=0.1)
    ln_2: LayerNorm(eps=1e-05) weight (32,)          32
    mlp: MLP(relu)                                7,808
      fc: Linear weight (122, 32)                 3,904
      proj: Linear weight (32, 122)               3,904
      dropout: Dropout(p=0.1)
  ln_f: LayerNorm(eps=1e-05) weight (32,)            32"""


def test_a_model_shows_its_layers_shapes_and_counts() -> None:
    config = GPT2Config(256, 8, layers=2, heads=2, channels=32, dropout=0.1, bias=False, hidden=122, activation="relu")
    assert repr(GPT2(config)) == str(GPT2(config)) == GPT


def numbers(text: str) -> list[int]:
    """The elements in each line: those of one layer times the number of layers."""
    found = [re.search(r"(?:(\d+) x )?([\d,]+)(?: parameters)?$", line) for line in text.splitlines()]
    return [int(match[1] or 1) * int(match[2].replace(",", "")) for match in found if match]


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_the_counts_add_up(layers: int) -> None:
    model = XLNetLMHeadModel(XLNetConfig(19, layers=layers, heads=2, channels=8, hidden=20))
    text = repr(model)
    assert numbers(text)[0] == model.num_parameters()
    top = [line for line in text.splitlines() if re.match(r"  \w", line)]
    own = model.bias.numel() + model.mask_emb.numel()
    assert sum(numbers("\n".join(top))) + own == model.num_parameters()
    assert text.startswith("XLNetLMHeadModel mask_emb (8,), bias (19,)")
    assert ("h: " if layers > 1 else "h.0: Block") in text
    assert text.count("Block") == 1


def test_only_equal_neighbours_share_a_line() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(3, 3), nn.ReLU(), nn.ReLU(), nn.Linear(2, 3))
    assert [line.split("  ")[1] for line in repr(model).splitlines()[1:]] == [
        "0-1: 2 x Linear weight (3, 2), bias (3,)",
        "2: Linear weight (3, 3), bias (3,)",
        "3-4: 2 x ReLU",
        "5: Linear weight (3, 2), bias (3,)",
    ]

    class Lists(Module):
        def __init__(self) -> None:
            self.a = [nn.Dropout(0.1), nn.Dropout(0.1), nn.Dropout(0.2)]
            self.b = [nn.Dropout(0.2)]
            self.c = {"x": nn.Dropout(0.2), "y": nn.Dropout(0.2)}

    assert repr(Lists()).splitlines() == [
        "Lists",
        "  a.0-1: 2 x Dropout(p=0.1)",
        "  a.2: Dropout(p=0.2)",
        "  b.0: Dropout(p=0.2)",
        "  c.x: Dropout(p=0.2)",
        "  c.y: Dropout(p=0.2)",
    ]


def test_a_shared_parameter_counts_once_and_names_the_layer_that_has_it() -> None:
    class Tied(Module):
        def __init__(self) -> None:
            self.table = nn.Embedding(5, 4)
            self.head = nn.Linear(4, 5)
            self.head.weight = self.table.weight

    model = Tied()
    assert repr(model).splitlines() == [
        "Tied                                             25 parameters",
        "  table: Embedding weight (5, 4)                 20",
        "  head: Linear weight = table.weight, bias (5,)   5",
    ]
    assert numbers(repr(model))[0] == model.num_parameters() == 25


def test_a_module_of_a_person_may_show_settings_and_needs_none() -> None:
    class Scale(Module):
        def __init__(self) -> None:
            self.by = Parameter(np.ones((2, 3), np.float32))

        def extra_repr(self) -> str:
            return "by a matrix"

    assert repr(Scale()) == "Scale(by a matrix) by (2, 3)  6 parameters"
    assert repr(Module()) == "Module"
    assert repr(nn.ModuleList()) == "ModuleList"
    assert "Dropout(p=0.25)" in f"{nn.Sequential(nn.Dropout(0.25))}"
