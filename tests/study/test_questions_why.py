"""`study.why`: every cause is planted, and its own sentence and remedy are the answer."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

import minillm
from minillm import nn, ops, study
from minillm.autograd import Parameter, Tensor, no_grad
from minillm.errors import DtypeError
from minillm.lora import LoraConfig, add_lora
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.optim import SGD

IDS = np.random.default_rng(0).integers(0, 9, (2, 6))


@pytest.fixture(params=["plain", "fast"], autouse=True)
def mode(request):
    with minillm.engine(request.param):
        yield request.param


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return Tensor(np.random.default_rng(seed).normal(size=shape), requires_grad=True)


def names(tensor: Tensor, loss: Tensor | None = None) -> list[str]:
    return [cause.name for cause in study.why(tensor, loss).causes]


def only(tensor: Tensor, loss: Tensor | None = None):
    [cause] = study.why(tensor, loss).causes
    return cause


def gpt2() -> GPT2:
    minillm.manual_seed(0)
    return GPT2(GPT2Config(vocab_size=13, context=6, layers=2, heads=2, channels=8))


# --- None ----------------------------------------------------------------------------------------------------------


def test_whole_numbers():
    cause = only(Tensor(np.arange(3)))
    assert cause.name == "whole numbers"
    assert "int64" in cause.sentence
    assert "dtype=float32" in cause.remedy


def test_requires_grad_is_false():
    x = Tensor(np.ones(3))
    assert only(x).name == "requires_grad is False"
    assert only(x, (x * leaf(3)).sum()).name == "requires_grad is False"
    assert "requires_grad=True" in only(x).remedy


def test_frozen_by_hand_and_by_lora():
    model = gpt2()
    model.h[0].requires_grad_(False)
    weight = model.h[0].mlp.fc.weight
    assert only(weight).name == "frozen"
    assert only(weight, model.loss(IDS, IDS)).name == "frozen"
    model = add_lora(gpt2(), LoraConfig(rank=2))
    cause = only(model.h[0].mlp.fc.weight, model.loss(IDS, IDS))
    assert cause.name == "frozen by LoRA"
    assert "h.0.attn.qkv.lora.c_attn" in cause.sentence


def test_intermediate():
    x = leaf(3)
    y = x * 2
    loss = (y * y).sum()
    assert names(y, loss) == ["intermediate"]
    loss.backward()
    cause = only(y)
    assert cause.name == "intermediate"
    assert "mul made it" in cause.sentence
    assert "retain_grad()" in cause.remedy


def test_an_intermediate_that_is_kept_is_asked_as_a_leaf():
    y = (leaf(3) * 2).retain_grad()
    loss = (y * y).sum()
    assert names(y, loss) == ["no backward yet"]
    loss.backward(keep_graph=True)
    assert names(y, loss) == ["as it should be"]


def test_no_backward_yet_and_cleared():
    x = leaf(3)
    assert only(x).name == "no backward yet"
    loss = (x * x).sum()
    assert only(x, loss).name == "no backward yet"
    loss.backward()
    x.grad = None
    assert "zero_grad()" in only(x).sentence


def test_unused():
    x, other = leaf(3), leaf(2)
    cause = only(x, (other * 2).sum())
    assert cause.name == "unused in the loss"
    assert "leaf (2,)" in cause.sentence
    cause = only(x, (other * Tensor(np.ones(2))).sum())
    assert "input 1 of mul" in cause.sentence


@pytest.mark.parametrize("of", [lambda x: x, lambda x: x * 3], ids=["leaf", "intermediate"])
def test_detached(of):
    x, other = leaf(3), leaf(3, seed=1)
    y = of(x)
    twin = y.detach()
    assert only(twin).name == "detached"
    assert only(twin * 2).name == "detached", "what is made of it too"
    cause = study.why(y, (twin * other).sum()).causes[-1]
    assert cause.name == "detached"
    assert "input 0 of mul" in cause.sentence
    again = y.detach().requires_grad_()
    assert study.why(y, (again * other).sum()).causes[-1].name == "detached"


@pytest.mark.parametrize(
    ("cut", "held"),
    [
        (lambda x: Tensor(x.data), "its memory"),
        (lambda x: Tensor(x.numpy()[:2]), "its memory"),
        (lambda x: Tensor(x.numpy().copy()), "a copy of its numbers"),
        (lambda x: minillm.tensor(x.detach().numpy(), requires_grad=True), "a copy of its numbers"),
    ],
    ids=["data", "view", "copy", "tensor"],
)
def test_cut_by_numpy(cut, held):
    x, other = leaf(3, 4), leaf(4, seed=1)
    cause = only(x, (cut(x) * other).sum())
    assert cause.name == "cut by NumPy"
    assert held in cause.sentence
    assert "operations of minillm" in cause.remedy


def test_no_grad():
    model = gpt2()
    with no_grad():
        loss = model.loss(IDS, IDS)
        cause = only(model.wte.weight, loss)
        assert cause.name == "no_grad"
        assert "at this moment" in cause.sentence
    cause = only(model.wte.weight, loss)
    assert cause.name == "no_grad"
    assert "at this moment" not in cause.sentence
    assert "outside of no_grad()" in cause.remedy


def test_released():
    x = leaf(3)
    loss = (x * x).sum()
    loss.backward()
    cause = only(x, loss)
    assert cause.name == "released"
    assert "keep_graph=True" in cause.remedy


def test_a_weight_that_moved_since():
    x = Parameter(np.ones(3))
    loss = (x * x).sum()
    (x * 1.0).sum().backward()
    SGD([x], lr=0.1).step()
    cause = only(x, loss)
    assert cause.name == "backward fails"
    assert "updated by the optimiser" in cause.sentence


def test_the_loss_is_a_leaf():
    x = leaf(3)
    assert only(x, leaf(1)).name == "no operation"
    assert only(x, Tensor(np.ones(()))).name == "requires_grad is False"


# --- zero ----------------------------------------------------------------------------------------------------------


def test_ignored_targets():
    x = leaf(4, 5)
    cause = only(x, ops.cross_entropy(x, np.full(4, -100)))
    assert cause.name == "ignored targets"
    assert "every target of cross_entropy" in cause.sentence
    cause = only(x, ops.cross_entropy(x, np.array([1, -100, -100, 2])))
    assert cause.name == "ignored targets"
    assert "2 of 4 targets" in cause.sentence


def test_rows_of_an_embedding():
    table = leaf(6, 3)
    loss = (ops.embedding(np.array([0, 1, 1, 2]), table, padding_idx=2) * leaf(4, 3)).sum()
    assert names(table, loss) == ["padding", "ids that do not occur"]
    assert "3 of 6 rows" in study.why(table, loss).causes[1].sentence
    loss = (ops.embedding(np.array([2, 2]), table, padding_idx=2) * leaf(2, 3)).sum()
    assert only(table, loss).name == "padding"
    assert "every id" in only(table, loss).sentence


def test_dead_relu():
    x, weight = Tensor(np.abs(np.random.default_rng(0).normal(size=(4, 3)))), leaf(5, 3)
    weight.data[...] = -abs(weight.data)
    loss = (ops.relu(ops.linear(x, weight)) * leaf(4, 5)).sum()
    cause = only(weight, loss)
    assert cause.name == "dead relu"
    assert "leaky_relu" in cause.remedy
    weight.data[2] *= -1
    loss = (ops.relu(ops.linear(x, weight)) * leaf(4, 5)).sum()
    cause = only(weight, loss)
    assert cause.name == "dead relu"
    assert "4 of 5 units" in cause.sentence


@pytest.mark.parametrize("op", [ops.softmax, ops.sigmoid, ops.tanh], ids=["softmax", "sigmoid", "tanh"])
def test_saturated(op):
    x = Tensor(np.array([[-2000.0, 2000.0, -3000.0]]), requires_grad=True)
    cause = only(x, (op(x) * leaf(1, 3)).sum())
    assert cause.name == "saturated"
    assert op.__name__ in cause.sentence


def test_the_sum_of_a_softmax():
    x = Tensor(np.zeros((2, 4)), requires_grad=True)
    cause = only(x, ops.softmax(x).sum())
    assert cause.name == "the sum is constant"
    assert "weigh the outputs" in cause.remedy


def test_multiplied_by_zero():
    x = leaf(3)
    assert only(x, (x * Tensor(np.zeros(3))).sum()).name == "multiplied by zero"
    assert only(x, (x * 0.0).sum()).name == "multiplied by zero"
    cause = only(x, ops.linear(x, Tensor(np.zeros((2, 3)), requires_grad=True)).sum())
    assert cause.name == "multiplied by zero"
    assert "weight" in cause.sentence


def test_lora_begins_at_zero():
    model = add_lora(gpt2(), LoraConfig(rank=2))
    loss = model.loss(IDS, IDS)
    a, b = (dict(model.named_parameters())[f"h.1.attn.qkv.lora.c_attn.{name}"] for name in "AB")
    cause = only(a, loss)
    assert cause.name == "LoRA begins at zero"
    assert "nothing" in cause.remedy
    assert names(b, loss) == ["no backward yet"]


def test_dropped():
    x = leaf(2)
    for seed in range(20):
        minillm.manual_seed(seed)
        y = ops.dropout(x, 0.9)
        if not y.data.any():
            break
    assert only(x, (y * leaf(2)).sum()).name == "dropped"


@pytest.mark.parametrize("op", [ops.round, ops.floor, ops.sign], ids=["round", "floor", "sign"])
def test_a_step_function(op):
    x = leaf(3)
    assert only(x, (op(x) * leaf(3, seed=1)).sum()).name == "a step function"


def test_not_chosen():
    x = leaf(3)
    assert only(x, (ops.clip(x, 10, 20) * leaf(3)).sum()).name == "not chosen"
    assert only(x, (ops.where(np.zeros(3, bool), x, 1.0) * leaf(3)).sum()).name == "not chosen"


def test_cancelled():
    x = leaf(3)
    assert only(x, (x - x).sum()).name == "cancelled"


def test_underflow():
    x = Tensor(np.full(3, 1e-25, np.float32), requires_grad=True)
    cause = only(x, (x * np.float32(1e-25) * np.float32(1e-20) * np.float32(1e-2)).sum())
    assert cause.name == "underflow"
    assert "float32" in cause.sentence


def test_the_loss_is_at_its_end():
    x = Tensor(np.array([[5000.0, 0.0, 0.0]]), requires_grad=True)
    assert only(x, ops.cross_entropy(x, np.array([0]))).name == "the loss is at its end"


def test_an_own_operation_without_a_slope():
    from minillm.autograd import Op

    flat = Op("flat", lambda x: (x * 0 + 1, x.shape), lambda dy, shape: (np.zeros(shape),))
    x = leaf(3)
    cause = only(x, flat(x).sum())
    assert cause.name == "ends here"
    assert "flat -> (3,)" in cause.sentence


@pytest.mark.parametrize("saved", [None, np.ones(3), 2, (0, 1.0)], ids=str)
def test_whatever_an_own_operation_saves(saved):
    from minillm.autograd import Op

    own = Op("own", lambda x: (x * 0 + 1, saved), lambda dy, saved: (np.zeros(3),))
    x = leaf(3)
    assert only(x, own(x).sum()).name == "ends here"
    assert only(x, ops.relu(x.sum() ** 2)).name == "no backward yet"


def test_elements_that_were_not_selected():
    x = leaf(5, 2)
    cause = only(x, (x[1:3] * leaf(2, 2)).sum())
    assert cause.name == "in part zero"
    assert "3 of 5 rows" in cause.sentence


# --- large ---------------------------------------------------------------------------------------------------------


def test_scaled_loss():
    x = leaf(3)
    cause = only(x, ((x * x).sum() * 1024.0))
    assert cause.name == "scaled loss"
    assert "1024 times" in cause.sentence


def test_summed_loss():
    x = leaf(400, 5)
    x.data[...] *= 100
    found = names(x, ops.cross_entropy(x * 30.0, np.zeros(400, int), reduction="sum"))
    assert "summed loss" in found
    y = leaf(900)
    assert names(y, (y * y * 20.0).sum())[0] == "summed loss"


def test_amplified():
    x = Tensor(np.array([1e-4, 1.0]), requires_grad=True)
    cause = only(x, (1.0 / x).mean())
    assert cause.name == "amplified"
    assert "div" in cause.sentence
    assert "eps" in cause.remedy


@pytest.mark.parametrize(("scale", "name"), [(1.6, "grows on the way"), (0.05, "vanishes on the way")])
def test_step_by_step(scale, name):
    rng = np.random.default_rng(0)
    x = h = leaf(4, 16)
    for _ in range(12):
        h = ops.linear(h, Tensor(rng.normal(size=(16, 16)) * scale / 2, requires_grad=True))
    cause = only(x, (h * leaf(4, 16, seed=1)).mean())
    assert cause.name == name
    assert "13 operations" in cause.sentence or "14 operations" in cause.sentence
    assert "at linear" in cause.sentence
    assert "normalise between layers" in cause.remedy


def test_accumulated():
    x = leaf(3)
    for _ in range(3):
        (x * x).sum().backward()
    cause = only(x, (x * x).sum())
    assert cause.name == "accumulated"
    assert "3 times" in cause.sentence
    assert "zero_grad()" in cause.remedy


def test_scaled_after_backward_and_of_another_loss():
    x = leaf(3)
    loss = (x * x).sum()
    loss.backward(keep_graph=True)
    x.grad *= 0.25
    assert only(x, loss).name == "scaled"
    (x * leaf(3, seed=3)).sum().backward()
    assert only(x, loss).name == "of another loss"


def test_not_finite():
    x = Tensor(np.zeros(2), requires_grad=True)
    loss = ops.sqrt(x).sum()
    loss.backward(keep_graph=True)
    assert only(x).name == "not finite"
    assert "nonfinite()" in study.why(x, loss).causes[-1].remedy


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite(value):
    """Nothing is said of gradients, whatever they are; but a tensor that is not in the loss is told so."""
    x, loss_of = leaf(3), lambda x: (x * np.array([1.0, value, 2.0])).sum() + ops.relu(x - 100.0).sum()
    loss = loss_of(x)
    cause = only(x, loss)
    assert cause.name == "not finite"
    assert cause.sentence.startswith(f"the loss is {loss.item()}")
    assert "nonfinite()" in cause.remedy
    assert only(leaf(2), loss).name == "unused in the loss"
    loss.backward(keep_graph=True)
    assert only(x, loss).name == "not finite"


def test_a_finite_loss_whose_gradient_is_not():
    x = Tensor(np.zeros(2), requires_grad=True)
    loss = ops.sqrt(x).sum()
    assert "no backward yet" not in names(x, loss)
    assert study.why(x, loss).causes[-1].name == "not finite"
    y = leaf(2)
    loss = (y * y).sum()
    y.grad = np.array([np.inf, 1.0])
    assert only(y, loss).name == "of another loss"


# --- what it leaves as it was --------------------------------------------------------------------------------------


def test_a_right_gradient_is_called_so():
    x = leaf(3)
    loss = (x * x).sum()
    loss.backward(keep_graph=True)
    assert only(x, loss).name == "as it should be"
    assert only(x).name == "a loss is needed"


def test_asking_changes_nothing():
    """A model's cross-entropy lets a graph have one backward: asking does not use it up."""
    model, other = gpt2(), gpt2()
    loss = model.loss(IDS, IDS)
    assert study.why(model.h[0].mlp.fc.weight, loss).causes[0].name == "no backward yet"
    assert model.h[0].mlp.fc.weight.grad is None
    loss.backward()
    other.loss(IDS, IDS).backward()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        np.testing.assert_array_equal(one.grad, two.grad)


def test_asking_keeps_nothing_alive():
    x = leaf(3)
    loss = (x * x).sum()
    study.why(x, loss)
    reference = weakref.ref(loss)
    del loss
    assert reference() is None


def test_the_answer_reads_as_text():
    layer = nn.Linear(3, 2)
    layer.assign_names()
    text = str(study.why(layer.weight))
    assert text.splitlines()[0] == "why: weight (2, 3), whose gradient is None"
    assert text.splitlines()[1].startswith("  no backward yet: ")
    layer.weight.grad = np.zeros((2, 3), np.float32)
    assert "is 0 everywhere" in str(study.why(layer.weight))


def test_what_is_no_tensor_is_refused():
    with pytest.raises(DtypeError, match="why: tensor is a ndarray; give a tensor"):
        study.why(np.ones(3))
    with pytest.raises(DtypeError, match="why: loss is a float"):
        study.why(leaf(3), 1.0)
