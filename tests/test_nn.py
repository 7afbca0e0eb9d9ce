"""Layers: the paths of their parameters, their state, and their results against naive loops and torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minillm
from minillm import Parameter, nn, ops
from minillm.autograd import Node, Tensor, enter_scope
from minillm.errors import CheckpointError, ShapeError


def in_float64(layer: nn.Module, rng: np.random.Generator) -> nn.Module:
    """The layer in float64 with random parameters, because weights of 1 and biases of 0 would hide a missing factor."""
    layer.to(np.float64)
    for parameter in layer.parameters():
        parameter.data[...] = rng.normal(size=parameter.shape)
    return layer


class Leaf(nn.Module):
    def __init__(self, value: float):
        self.weight = Parameter(np.full((2,), value, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Tree(nn.Module):
    """A module with parameters in all places where one may be."""

    def __init__(self) -> None:
        self.scale = Parameter(np.ones(3, np.float32))
        self.layers = [Leaf(1), Leaf(2)]
        self.pairs = [(Leaf(3), Leaf(4)), [Leaf(5)]]
        self.heads = {"lm": Leaf(6), "more": {"value": [Leaf(7)]}}
        self.loose = [Parameter(np.zeros(1, np.float32))]
        self.tied = self.layers[1].weight
        self.same = self.layers[0]
        self.config = {"layers": 2, "names": ["a", None]}
        self.nothing = None
        self.assign_names()


PATHS = [  # a module's own parameters come before those of its children, as in PyTorch
    "scale",
    "loose.0",
    "tied",
    "layers.0.weight",
    "pairs.0.0.weight",
    "pairs.0.1.weight",
    "pairs.1.0.weight",
    "heads.lm.weight",
    "heads.more.value.0.weight",
]


# Parameters and their paths


def test_every_parameter_is_found_once_under_its_path() -> None:
    tree = Tree()
    assert [name for name, _ in tree.named_parameters()] == PATHS
    assert tree.scale.name == "scale"
    assert tree.heads["more"]["value"][0].weight.name == "heads.more.value.0.weight"
    assert len(tree.parameters()) == len({id(parameter) for parameter in tree.parameters()}) == len(PATHS)
    assert tree.num_parameters() == 3 + 7 * 2 + 1


def test_the_order_of_parameters_is_that_of_the_attributes_and_a_tie_keeps_its_first_path() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            self.first = Leaf(1)
            self.second = Leaf(2)
            self.second.weight = self.first.weight
            self.third = Leaf(3)

    assert [name for name, _ in Model().named_parameters()] == ["first.weight", "third.weight"]
    assert [path for path, _ in Model().named_modules()] == ["", "first", "second", "third"]


def test_assigning_an_attribute_is_just_that() -> None:
    leaf = Leaf(1)
    leaf.weight = Parameter(np.zeros(5, np.float32))
    leaf.extra = nn.Linear(2, 2)
    assert [name for name, _ in leaf.named_parameters()] == ["weight", "extra.weight", "extra.bias"]
    del leaf.extra
    assert leaf.num_parameters() == 5


def test_a_module_without_forward_says_so() -> None:
    with pytest.raises(TypeError, match="Module: a Module needs a forward method"):
        nn.Module()(1)


# The state dict


def test_state_dict_holds_references_and_round_trips() -> None:
    tree, other = Tree(), Tree()
    for number, parameter in enumerate(other.parameters()):
        parameter.data[...] = number + 0.5
    state = tree.state_dict()
    assert set(state) == set(PATHS)
    assert state["tied"] is tree.layers[1].weight.data
    arrays = [parameter.data for parameter in tree.parameters()]
    tree.load_state_dict(other.state_dict())
    assert all(parameter.data is array for parameter, array in zip(tree.parameters(), arrays, strict=True))
    for name, array in other.state_dict().items():
        np.testing.assert_array_equal(state[name], array)
        assert not np.shares_memory(state[name], array)


def test_load_state_dict_lists_all_that_does_not_fit_and_changes_nothing() -> None:
    tree = Tree()
    before = {name: array.copy() for name, array in tree.state_dict().items()}
    state = {name: array + 1 for name, array in tree.state_dict().items()}
    del state["heads.lm.weight"], state["scale"]
    state["pairs.0.0.weight"] = np.zeros((2, 1), np.float32)
    state["loose.0"] = np.zeros((), np.float32)
    state["head.lm.weight"] = np.zeros(2, np.float32)
    with pytest.raises(CheckpointError) as raised:
        tree.load_state_dict(state)
    for part in (
        "load_state_dict: the weights do not fit Tree: ",
        "missing heads.lm.weight",
        "missing scale",
        "pairs.0.0.weight has shape (2, 1), expected (2,)",
        "loose.0 has shape (), expected (1,)",
        "unexpected head.lm.weight",
    ):
        assert str(raised.value).count(part) == 1
    for name, array in tree.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_load_state_dict_keeps_the_dtype_and_ties() -> None:
    tree = Tree()
    tree.load_state_dict({name: np.full(array.shape, 2.5, np.float64) for name, array in tree.state_dict().items()})
    assert all(parameter.dtype == np.float32 for parameter in tree.parameters())
    np.testing.assert_array_equal(tree.tied.data, [2.5, 2.5])
    assert tree.tied is tree.layers[1].weight


# Modes, dtypes, gradients, scopes


def test_train_and_eval_reach_every_module() -> None:
    tree = Tree()
    modules = [module for _, module in tree.named_modules()]
    assert len(modules) == 1 + 8  # the module with two paths is met on both
    assert all(module.training for module in modules)
    assert tree.eval() is tree
    assert not any(module.training for module in modules)
    assert tree.train() is tree
    assert all(module.training for module in modules)


def test_to_converts_every_parameter_and_forgets_gradients() -> None:
    tree = Tree()
    (tree.layers[0](minillm.tensor([1.0, 2.0])).sum() + tree.scale.sum()).backward()
    assert tree.to(np.float64) is tree
    for parameter in tree.parameters():
        assert parameter.dtype == np.float64
        assert parameter.grad is None
    assert tree.tied is tree.layers[1].weight
    out = tree.layers[0](minillm.tensor([1.0, 2.0], dtype=np.float64))
    out.sum().backward()
    assert out.dtype == tree.layers[0].weight.grad.dtype == np.float64


def test_zero_grad_forgets() -> None:
    leaf = Leaf(1)
    leaf(minillm.tensor([1.0, 2.0])).sum().backward()
    leaf.zero_grad()
    assert leaf.weight.grad is None


def nodes(out: Tensor) -> list[Node]:
    found, stack = [], [out.node]
    while stack:
        node = stack.pop()
        if isinstance(node, Node) and node not in found:
            found.append(node)
            stack += [edge[0] for edge in node.edges if edge is not None]
    return found


def test_nodes_carry_the_path_of_the_module_that_made_them() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            self.inner = [Leaf(1), Leaf(2)]
            self.assign_names()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner[1](self.inner[0](x).exp())

    out = Outer()(minillm.tensor([1.0, 2.0])).sum()
    assert [(node.op.name, node.scope) for node in nodes(out)] == [
        ("sum", ""),
        ("mul", "inner.1"),
        ("exp", ""),
        ("mul", "inner.0"),
    ]


def test_the_scope_returns_to_what_it_was_even_after_an_error() -> None:
    class Broken(nn.Module):
        name = "broken"

        def forward(self, x: Tensor) -> Tensor:
            raise ShapeError("planted")

    before = enter_scope("outside")
    try:
        with pytest.raises(ShapeError, match="planted"):
            Broken()(1)
        assert enter_scope("outside") == "outside"
    finally:
        enter_scope(before)


def test_an_error_in_a_backward_names_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(2, 2)
    layer.name = "h.3.proj"

    def broken(dout, saved, *into):
        raise ZeroDivisionError

    monkeypatch.setattr(ops.LINEAR, "backward", broken)
    with minillm.engine("plain"), pytest.raises(ZeroDivisionError) as raised:
        layer(minillm.tensor([[1.0, 2.0]])).sum().backward()
    assert "linear -> (1, 2) at layers.py:" in raised.value.__notes__[0]
    assert raised.value.__notes__[0].endswith("in h.3.proj")


# Results against naive NumPy


@given(st.integers(0, 3), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_linear(rows: int, inputs: int, outputs: int, bias: bool) -> None:
    rng = np.random.default_rng(0)
    layer = in_float64(nn.Linear(inputs, outputs, bias), rng)
    x = rng.normal(size=(2, rows, inputs))
    expected = np.zeros((2, rows, outputs))
    for n in np.ndindex(2, rows, outputs):
        expected[n] = sum(x[n[:2]][i] * layer.weight.data[n[2], i] for i in range(inputs))
        expected[n] += layer.bias.data[n[2]] if bias else 0
    np.testing.assert_allclose(layer(minillm.tensor(x)).data, expected, rtol=1e-12, atol=1e-12)
    assert (layer.bias is not None) == bias


def test_embedding(rng: np.random.Generator) -> None:
    layer = in_float64(nn.Embedding(7, 3), rng)
    ids = np.array([[0, 6, 6], [3, 0, 1]])
    expected = [[list(layer.weight.data[i]) for i in row] for row in ids.tolist()]
    np.testing.assert_array_equal(layer(ids).data, expected)
    np.testing.assert_array_equal(layer(minillm.tensor(ids)).data, expected)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(rng: np.random.Generator, bias: bool) -> None:
    layer = in_float64(nn.LayerNorm(5, eps=0.3, bias=bias), rng)
    x = rng.normal(3, 2, (2, 4, 5))
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.3) * layer.weight.data
    expected += layer.bias.data if bias else 0
    np.testing.assert_allclose(layer(minillm.tensor(x)).data, expected, rtol=1e-12, atol=1e-12)


def test_rms_norm(rng: np.random.Generator) -> None:
    layer = in_float64(nn.RMSNorm(5, eps=0.3), rng)
    x = rng.normal(3, 2, (2, 4, 5))
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.3) * layer.weight.data
    np.testing.assert_allclose(layer(minillm.tensor(x)).data, expected, rtol=1e-12)


def test_dropout_zeroes_a_share_and_scales_the_rest_only_while_training() -> None:
    layer = nn.Dropout(0.3)
    x = minillm.tensor(np.arange(1, 40001, dtype=np.float32))
    y = layer(x).data
    kept = y != 0
    assert 0.68 < kept.mean() < 0.72  # 9 standard deviations
    np.testing.assert_allclose(y[kept], x.data[kept] / 0.7, rtol=1e-6)
    assert (layer(x).data != y).any()
    np.testing.assert_array_equal(layer.eval()(x).data, x.data)
    np.testing.assert_array_equal(nn.Dropout(0.0)(x).data, x.data)


@given(st.integers(1, 3), st.integers(1, 7), st.integers(1, 3), st.integers(1, 4), st.booleans())
def test_causal_self_attention(B: int, T: int, heads: int, head_size: int, bias: bool) -> None:
    rng = np.random.default_rng(1)
    C = heads * head_size
    layer = in_float64(nn.SelfAttention(C, heads, bias=bias, causal=True), rng)
    x = rng.normal(size=(B, T, C))

    def project(part: nn.Linear, v: np.ndarray) -> np.ndarray:
        return part.weight.data @ v + (part.bias.data if bias else 0)

    expected = np.zeros((B, T, C))
    for b in range(B):
        for t in range(T):
            joined = []
            for h in range(heads):
                own = slice(h * head_size, (h + 1) * head_size)
                q, k, v = ([project(layer.qkv, x[b, s])[n * C : (n + 1) * C][own] for s in range(T)] for n in range(3))
                weights = np.array([math.exp(q[t] @ k[s] / math.sqrt(head_size)) for s in range(t + 1)])
                joined.append(sum(w * v[s] for s, w in enumerate(weights / weights.sum())))
            expected[b, t] = project(layer.proj, np.concatenate(joined))
    np.testing.assert_allclose(layer(minillm.tensor(x)).data, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_mlp(rng: np.random.Generator, bias: bool) -> None:
    layer = in_float64(nn.MLP(3, 5, bias=bias), rng)
    x = rng.normal(size=(2, 4, 3))
    hidden = x @ layer.fc.weight.data.T + (layer.fc.bias.data if bias else 0)
    hidden = 0.5 * hidden * (1 + np.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    expected = hidden @ layer.proj.weight.data.T + (layer.proj.bias.data if bias else 0)
    np.testing.assert_allclose(layer(minillm.tensor(x)).data, expected, rtol=1e-12, atol=1e-12)
    assert (layer.proj.bias is not None) == bias


@pytest.mark.parametrize("make", [lambda p: nn.SelfAttention(8, 2, p, p, causal=True), lambda p: nn.MLP(8, 16, p)])
def test_dropout_within_a_layer_is_off_in_eval(rng: np.random.Generator, make) -> None:
    minillm.manual_seed(0)
    layer = make(0.5)
    minillm.manual_seed(0)
    without = make(0.0)
    x = minillm.tensor(rng.normal(size=(2, 4, 8)).astype(np.float32))
    assert (layer(x).data != layer(x).data).any()
    np.testing.assert_array_equal(layer.eval()(x).data, without(x).data)
    minillm.manual_seed(3)
    first = layer.train()(x).data
    minillm.manual_seed(3)
    np.testing.assert_array_equal(layer(x).data, first)


def test_attention_weights_are_dropped_too() -> None:
    """With dropout of the attention weights alone, the result for a single token is sometimes zero."""
    layer = nn.SelfAttention(4, 4, attention_dropout=0.5, causal=True)
    layer.dropout.forward = lambda x: x  # no dropout after the projection
    layer.proj.weight.data[...] = np.eye(4)
    layer.proj.bias.data[...] = 0
    out = layer(minillm.tensor(np.ones((200, 1, 4), np.float32))).data
    assert 0.4 < (out == 0).mean() < 0.6


def test_heads_must_divide_channels() -> None:
    with pytest.raises(ShapeError, match=r"SelfAttention: channels=10 is not a multiple of heads=4"):
        nn.SelfAttention(10, 4)


# Initial weights


def test_initial_weights_have_pytorchs_distributions() -> None:
    minillm.manual_seed(5)
    linear = nn.Linear(400, 300)
    bound = 1 / math.sqrt(400)
    for values in (linear.weight.data, linear.bias.data):
        assert values.dtype == np.float32
        assert bound * 0.98 < values.max() <= bound
        assert -bound <= values.min() < -bound * 0.98
        assert abs(values.mean()) < 0.1 * bound
        assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    table = nn.Embedding(300, 400).weight.data
    assert table.dtype == np.float32
    assert abs(table.mean()) < 0.02
    assert table.std() == pytest.approx(1, rel=0.02)
    assert np.abs(table).max() > 3  # so it is not uniform


def test_the_seed_decides_the_initial_weights() -> None:
    def weights(seed: int) -> list[np.ndarray]:
        minillm.manual_seed(seed)
        return [nn.Linear(3, 4).weight.data, nn.Linear(3, 4).weight.data, nn.Embedding(3, 4).weight.data]

    first, again, other = weights(1), weights(1), weights(2)
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()
    assert (first[0] != first[1]).any()


# Against torch, with gradients


def compare_with_torch(layer: nn.Module, reference, x: np.ndarray, names: dict[str, str], call=None) -> None:
    """Check output, and gradients of input and parameters, against torch's, to 1e-12 in float64."""
    import torch

    reference = reference.double()
    theirs = dict(reference.named_parameters())
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            theirs[names[name]].copy_(torch.tensor(parameter.data))
    cotangent = np.random.default_rng(9).normal(size=layer(minillm.tensor(x)).shape)
    floating = x.dtype.kind == "f"
    inputs, reference_inputs = minillm.tensor(x, requires_grad=floating), torch.tensor(x, requires_grad=floating)
    out = layer(inputs)
    out.backward(cotangent)
    expected = (call or reference)(reference_inputs)
    expected.backward(torch.tensor(cotangent))
    np.testing.assert_allclose(out.data, expected.detach().numpy(), rtol=1e-12, atol=1e-12)
    if floating:
        np.testing.assert_allclose(inputs.grad, reference_inputs.grad.numpy(), rtol=1e-11, atol=1e-12)
    for name, parameter in layer.named_parameters():
        np.testing.assert_allclose(parameter.grad, theirs[names[name]].grad.numpy(), rtol=1e-11, atol=1e-12)


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["linear", "linear without bias", "layer norm", "rms norm", "embedding", "mlp"])
def test_layers_equal_torch(rng: np.random.Generator, kind: str) -> None:
    torch = pytest.importorskip("torch")
    x = rng.normal(1, 2, (3, 4, 6))
    same = {"weight": "weight", "bias": "bias"}
    if kind == "linear":
        compare_with_torch(in_float64(nn.Linear(6, 5), rng), torch.nn.Linear(6, 5), x, same)
    elif kind == "linear without bias":
        compare_with_torch(in_float64(nn.Linear(6, 5, bias=False), rng), torch.nn.Linear(6, 5, bias=False), x, same)
    elif kind == "layer norm":
        compare_with_torch(in_float64(nn.LayerNorm(6), rng), torch.nn.LayerNorm(6), x, same)
    elif kind == "rms norm":
        compare_with_torch(in_float64(nn.RMSNorm(6), rng), torch.nn.RMSNorm(6, eps=1e-6), x, same)
    elif kind == "embedding":
        ids = rng.integers(0, 9, (3, 4))
        compare_with_torch(in_float64(nn.Embedding(9, 6), rng), torch.nn.Embedding(9, 6), ids, same)
    else:
        reference = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.GELU("tanh"), torch.nn.Linear(8, 6))
        names = {"fc.weight": "0.weight", "fc.bias": "0.bias", "proj.weight": "2.weight", "proj.bias": "2.bias"}
        compare_with_torch(in_float64(nn.MLP(6, 8), rng), reference, x, names)


@pytest.mark.oracle
def test_causal_self_attention_equals_torch(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    reference = torch.nn.ModuleDict({"qkv": torch.nn.Linear(12, 36), "proj": torch.nn.Linear(12, 12)})

    def call(x):
        q, k, v = (part.view(2, 5, 3, 4).transpose(1, 2) for part in reference["qkv"](x).split(12, dim=-1))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return reference["proj"](y.transpose(1, 2).reshape(2, 5, 12))

    layer = in_float64(nn.SelfAttention(12, 3, causal=True), rng)
    names = {name: name for name, _ in layer.named_parameters()}
    compare_with_torch(layer, reference, rng.normal(size=(2, 5, 12)), names, call)
