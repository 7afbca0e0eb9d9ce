"""Sequential, ModuleList, the small layers that only call an operation, and freezing."""

from __future__ import annotations

import numpy as np
import pytest

import minillm
from minillm import nn, ops
from minillm.autograd import Tensor
from minillm.errors import DtypeError


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU(), nn.Dropout(0.5)), nn.Linear(3, 2, bias=False))


def test_a_sequential_runs_its_modules_in_order(rng):
    model = network().eval()
    x = Tensor(rng.normal(size=(5, 4)).astype(np.float32))
    expected = np.maximum(x.numpy() @ model[0].weight.data.T + model[0].bias.data, 0) @ model[2].weight.data.T
    np.testing.assert_allclose(model(x).numpy(), expected, rtol=1e-5)
    assert np.abs(expected).max() > 0


def test_names_are_places_and_the_state_round_trips():
    model, other = network(), network()
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight"]
    other.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(other[2].weight.data, model[2].weight.data)
    assert not model.eval()[1][1].training
    assert [type(module).__name__ for module in model.modules()] == [
        *("Sequential", "Linear", "Sequential", "ReLU", "Dropout", "Linear")
    ]
    assert len(list(model.children())) == len(model) == 3


def test_a_module_list_gives_the_keys_of_a_plain_list():
    class Model(nn.Module):
        def __init__(self, layers):
            self.layers = layers
            self.head = nn.Linear(2, 2)
            self.assign_names()

    layers = [nn.Linear(2, 2), nn.LayerNorm(2)]
    listed = Model(nn.ModuleList(layers[:1]).append(layers[1]))
    assert list(listed.state_dict()) == list(Model(layers).state_dict())
    assert listed.layers[-1] is layers[1]
    assert list(listed.layers) == layers == listed.layers[:]
    listed.layers[0] = other = nn.Identity()
    assert next(iter(listed.layers)) is other
    assert listed.layers.extend([nn.GELU()])[2].forward is not None
    assert len(listed.layers) == 3


def test_what_is_no_module_is_refused():
    with pytest.raises(DtypeError, match=r"Sequential: element 1 is .* is not a Module"):
        nn.Sequential(nn.Linear(2, 2), ops.relu)
    with pytest.raises(DtypeError, match="ModuleList: element 0 is 3"):
        nn.ModuleList().append(3)


@pytest.mark.parametrize(
    ("layer", "operation"),
    [
        (nn.ReLU(), ops.relu),
        (nn.GELU(), ops.gelu),
        (nn.GELU("tanh"), lambda x: ops.gelu(x, "tanh")),
        (nn.SiLU(), ops.silu),
        (nn.Tanh(), ops.tanh),
        (nn.Sigmoid(), ops.sigmoid),
        (nn.Softmax(dim=0), lambda x: ops.softmax(x, 0)),
        (nn.Identity(), lambda x: x),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_that_only_call_an_operation(layer, operation, rng):
    x = Tensor(rng.normal(size=(3, 4)))
    np.testing.assert_array_equal(layer(x).numpy(), operation(x).numpy())
    assert layer.parameters() == []


def test_losses_as_layers(rng):
    logits, targets = Tensor(rng.normal(size=(3, 4))), np.array([0, -1, 2])
    settings = dict(weight=np.array([1.0, 2, 3, 4]), ignore_index=-1, label_smoothing=0.1, reduction="sum")
    assert (
        nn.CrossEntropyLoss(**settings)(logits, targets).item() == ops.cross_entropy(logits, targets, **settings).item()
    )
    assert nn.MSELoss("sum")(logits, logits * 2).item() == pytest.approx((logits.numpy() ** 2).sum())


def test_layers_without_weights_of_their_own(rng):
    layer, x = nn.LayerNorm(4, elementwise_affine=False), Tensor(rng.normal(size=(3, 4)))
    assert layer.parameters() == []
    np.testing.assert_array_equal(layer(x).numpy(), ops.layer_norm(x).numpy())


def test_padding_of_an_embedding():
    layer = nn.Embedding(5, 3, padding_idx=2)
    assert not layer.weight.data[2].any()
    assert layer.weight.data[1].any()
    layer(np.array([2, 1])).sum().backward()
    np.testing.assert_array_equal(layer.weight.grad, np.eye(5)[1][:, None] * np.ones(3))


def test_frozen_parameters_get_no_gradient(rng):
    model = network().eval()
    assert model[0].requires_grad_(False) is model[0]
    x = minillm.tensor(rng.normal(size=(5, 4)).astype(np.float32))
    model(x).sum().backward()
    assert model[0].weight.grad is None
    assert model[2].weight.grad is not None
    model.requires_grad_()
    model(x).sum().backward()
    assert model[0].weight.grad is not None


def test_gradients_may_be_filled_with_zeros(rng):
    model = network()
    model(Tensor(rng.normal(size=(5, 4)).astype(np.float32))).sum().backward()
    gradient = model[0].weight.grad
    model.zero_grad(set_to_none=False)
    assert model[0].weight.grad is gradient
    assert not gradient.any()
    model.zero_grad()
    assert model[0].weight.grad is None


def test_apply_reaches_every_module_those_below_first():
    seen = []
    model = network()
    assert model.apply(lambda module: seen.append(type(module).__name__)) is model
    assert seen == ["Linear", "ReLU", "Dropout", "Sequential", "Linear", "Sequential"]
