"""What somebody who knows PyTorch types without a second thought: the same result, or a sentence, and never silence."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest

import minillm
from minillm import hints, nn, ops, optim, tensor
from minillm.autograd import Tensor
from minillm.errors import DtypeError, GraphError, NoSuchNameError, ShapeError

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(2, 3, 3)).astype(np.float32)


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y", "dtype"),
    [(1.0, 0.0, "float32"), (1, 2.5, "float32"), (1, 0, "int64"), (True, False, "bool"), (np.float64(1), 2, "float32")],
)
def test_where_between_two_numbers_has_a_tensors_dtype(x, y, dtype):
    out = ops.where(tensor(X) > 0, x, y)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out.data, np.where(X > 0, x, y))


def test_class_weights_of_a_smoothed_loss_may_be_refilled():
    weight, targets, gradients = np.array([0.5, 2.0, 1.0], np.float32), np.array([0, 2, 1]), []
    for refill in (False, True):
        for kind in (lambda w: w, Tensor):
            x, buffer = tensor(X, requires_grad=True), weight.copy()
            loss = ops.cross_entropy(x, targets, weight=kind(buffer), label_smoothing=0.3)
            buffer[...] = 7 if refill else buffer
            loss.backward()
            gradients.append(x.grad)
    for other in gradients[1:]:
        np.testing.assert_array_equal(other, gradients[0])


def test_to_takes_names_and_another_tensor():
    x = tensor(X, requires_grad=True)
    for y in (x.to(dtype="float64"), x.to(device="cpu", dtype=np.float64), x.to(tensor(np.zeros(2)))):
        assert y.dtype == np.float64
        assert y.requires_grad
    assert x.to(device="cpu") is x
    assert x.to(tensor(X)) is x
    with pytest.raises(DtypeError, match="dtype: 'foo' is not a dtype"):
        tensor(X, dtype="foo")


def test_diagonal_is_written_through_and_flip_repeat_and_tile_are_copies():
    x = tensor(np.zeros((3, 3), np.float32))
    x.diagonal().fill_(5)
    x.diagonal(1).add_(1)
    np.testing.assert_array_equal(x.data, [[5, 1, 0], [0, 5, 1], [0, 0, 5]])
    assert x.diagonal(9).shape == (0,)
    before = x.data.copy()
    for y in (x.flip(0), x.flip(dims=(0, 1)), x.repeat(1, 1), x.tile(1), x.repeat(1, 1, 1)):
        y += 1
    np.testing.assert_array_equal(x.data, before)
    np.testing.assert_array_equal(x.flip(dims=(0, 1)).data, before[::-1, ::-1])
    np.testing.assert_array_equal(x.repeat(1, 1, 1).data, before[None])


def test_a_diagonal_within_no_grad_shares_the_leafs_version():
    x = tensor(X, requires_grad=True)
    loss = (x * x).sum()
    with minillm.no_grad():
        x.diagonal().zero_()
    assert not x.data.diagonal().any()
    with pytest.raises(GraphError):
        loss.backward()


def test_a_stretched_tensor_says_why_it_cannot_be_written_to():
    x = tensor(X).expand(2, 3, 3)
    with pytest.raises(GraphError, match="add_: the tensor's memory cannot be written to"):
        x.add_(1)


def test_arange_by_name():
    np.testing.assert_array_equal(minillm.arange(end=3).data, [0, 1, 2])
    np.testing.assert_array_equal(minillm.arange(start=1, end=3).data, [1, 2])


# --- sentences -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x, b: b - b, DtypeError, "sub: both operands are booleans"),
        (lambda x, b: True - b, DtypeError, "sub: both operands are booleans"),
        (lambda x, b: -b, DtypeError, "neg: the operand holds booleans"),
        (lambda x, b: ops.layer_norm(x, (3,)), DtypeError, "layer_norm: weight is (3,) of type tuple"),
        (lambda x, b: ops.rms_norm(x, [3]), DtypeError, "rms_norm: weight is [3] of type list"),
        (lambda x, b: ops.linear(x, 3), DtypeError, "linear: weight is 3 of type int"),
        (lambda x, b: ops.embedding([0], [1]), DtypeError, "embedding: weight is [1] of type list"),
        (lambda x, b: ops.gelu(3.0), DtypeError, "gelu: x is 3.0 of type float"),
        (lambda x, b: x.flip(), ShapeError, "flip: no axis is given for the shape (3, 3)"),
        (lambda x, b: tensor([[1], [1, 2]]), ShapeError, "tensor: data is not an array of numbers"),
        (lambda x, b: minillm.arange(), ValueError, "arange: no number is given"),
    ],
)
def test_what_has_no_result_has_a_sentence(call, error, text):
    with pytest.raises(error, match=re.escape(text)):
        call(tensor(X), tensor(X > 0))


def test_a_difference_with_booleans_on_one_side_is_there():
    np.testing.assert_array_equal((1 - tensor(X > 0)).data, 1 - (X > 0))
    np.testing.assert_array_equal((tensor(X) - tensor(X > 0)).data, X - (X > 0))


# --- hints -----------------------------------------------------------------------------------------------------------


OF_ONE = (
    "transpose matrix_transpose ptp var std sort nansum nanmean norm linalg.norm copy nan_to_num fliplr flipud diff"
)
OF_TWO = "dot inner vdot vecdot outer hypot"
OF_A_LIST = "concatenate stack vstack hstack dstack column_stack"


@pytest.mark.parametrize("name", f"{OF_ONE} {OF_TWO} {OF_A_LIST}".split())
def test_numpys_function_and_what_to_write_for_it_agree(name):
    function = np.linalg.norm if "norm" in name else getattr(np, name)
    arguments = {"x": tensor(X, requires_grad=True), "y": tensor(Y, requires_grad=True), "minillm": minillm}
    arguments["tensors"] = [arguments["x"], arguments["y"]]
    found = eval(re.sub(r", or .*", "", hints.NUMPY[name]), arguments)
    wanted = function(X) if name in OF_ONE.split() else function(X, Y) if name in OF_TWO.split() else function([X, Y])
    assert found.requires_grad
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5)


def test_what_numpy_would_cut_a_gradient_with_is_refused():
    x = tensor(X, requires_grad=True)
    for name in ("unique", "sort", "median", "split", "repeat", "max"):
        with pytest.raises(GraphError, match=f"np.{name}: .* write x"):
            getattr(np, name)(*(x, 3) if name in ("split", "repeat") else (x,))


def test_a_name_that_is_an_attribute_is_called_so_and_a_trailing_underscore_leads_to_what_is_there():
    with pytest.raises(NoSuchNameError, match=re.escape("it is an attribute: write x.ndim")):
        _ = minillm.ndim
    with pytest.raises(NoSuchNameError, match=re.escape("write 'bfloat16'")):
        _ = minillm.bfloat16
    with pytest.raises(NoSuchNameError, match=re.escape("write ops.where(mask, n, x)")):
        _ = tensor(X).index_fill_


@pytest.mark.parametrize(
    ("owner", "name", "text"),
    [
        (nn, "Conv2d", "there are no convolutions"),
        (nn, "LSTM", "there are no recurrent layers"),
        (nn, "LeakyReLU", "write minillm.ops.leaky_relu"),
        (nn, "LogSoftmax", "write minillm.ops.log_softmax"),
        (nn, "BatchNorm1d", "write minillm.ops.layer_norm"),
        (nn, "functional", "write minillm.ops"),
        (nn, "Linaer", "the nearest names are Linear"),
        (optim, "RMSprop", "write minillm.optim.Adam"),
        (optim, "clip_grad_norm", "the nearest names are clip_grad_norm_"),
        (optim.lr_scheduler, "ExponentialLR", "write minillm.optim.lr_scheduler.LambdaLR"),
        (minillm.autograd, "Function", "write minillm.autograd.Op"),
        (nn.Linear(3, 2), "half", "Linear has no `half`; write model.to('float16')"),
        (nn.Linear(3, 2), "weigth", "the nearest names are weight"),
        (nn.Sequential(nn.Linear(3, 2)), "encoder_blocks", "its parameters are 0.weight, 0.bias"),
    ],
)
def test_layers_and_optimisers_say_what_to_write(owner, name, text):
    assert not hasattr(owner, name)
    with pytest.raises(NoSuchNameError, match=re.escape(text)):
        getattr(owner, name)


def test_a_module_can_be_copied_though_it_answers_for_missing_names():
    model = nn.Sequential(nn.Linear(3, 2), nn.GELU())
    twin = copy.deepcopy(model)
    np.testing.assert_array_equal(twin(tensor(X)).data, model(tensor(X)).data)
    with pytest.raises(AttributeError, match="_private"):
        _ = model._private
