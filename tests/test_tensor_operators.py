"""Comparisons, logic, remainders, in-place changes and dtypes of tensors, with PyTorch's values."""

from __future__ import annotations

import copy
import operator
import subprocess
import sys

import numpy as np
import pytest

import minillm
from minillm import ops
from minillm.autograd import Parameter, Tensor, no_grad, tensor
from minillm.errors import DtypeError, GraphError, InputError, ShapeError
from minillm.optim import SGD

COMPARISONS = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "ge": operator.ge,
    "lt": operator.lt,
    "le": operator.le,
}
AWKWARD = np.array([-np.inf, -2.5, -1.0, -0.0, 0.0, 1.0, 2.5, np.inf, np.nan], np.float32)


# --- comparisons and logic -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons_are_elementwise_on_every_way(name):
    compare, x, y = COMPARISONS[name], AWKWARD[:, None], AWKWARD[None]
    expected = compare(x, y)
    assert expected.any()
    assert not expected.all()
    a, b = tensor(x, requires_grad=True), tensor(y)
    for found in (compare(a, b), compare(a, y), getattr(ops, name)(x, b), getattr(a, name)(b)):
        assert type(found) is Tensor
        assert found.dtype == bool
        assert not found.requires_grad
        np.testing.assert_array_equal(found.data, expected)
    np.testing.assert_array_equal(compare(x, b).data, expected)  # an array on the left asks the tensor
    np.testing.assert_array_equal(compare(tensor(AWKWARD), 1).data, compare(AWKWARD, 1))
    np.testing.assert_array_equal(compare(1.0, tensor(AWKWARD)).data, compare(1.0, AWKWARD))
    np.testing.assert_array_equal(compare(tensor([1, 2, 3]), 2).data, compare(np.array([1, 2, 3]), 2))


def test_equality_chooses_indexes_and_counts():
    x, y = tensor([0.0, 1.0, 2.0]), tensor([1, 2, 3])
    np.testing.assert_array_equal(ops.where(x == 0, 10.0, x).data, [10, 1, 2])
    np.testing.assert_array_equal(y[y == 2].data, [2])
    assert (y == tensor([1, 0, 3])).sum().item() == 2
    assert 2.0 in x
    assert 5 not in y
    assert tensor(1.0) in x


def test_whether_two_tensors_are_one_is_a_matter_of_is():
    x = tensor([1.0, 2.0])
    twin = tensor([1.0, 2.0])
    assert len({x, twin, x}) == 2
    assert {x: 1}[x] == 1
    assert hash(x) == object.__hash__(x)
    assert x in [x, twin]  # Python asks `is` first
    with pytest.raises(ShapeError, match=r"bool: a tensor of shape \(2,\) is neither true nor false.*any\(\)"):
        _ = twin in [x]


def test_what_is_no_number_equals_no_tensor():
    x = tensor([1.0, 2.0])
    assert (x == None) is False  # noqa: E711
    assert (x != "a") is True
    assert (x == object()) is False
    with pytest.raises(TypeError, match="not supported between"):
        _ = x < None
    with pytest.raises(DtypeError, match="eq: an operand is None"):
        ops.eq(x, None)


@pytest.mark.parametrize("function", [ops.eq, ops.logical_or, ops.isclose])
def test_shapes_that_do_not_broadcast_are_named(function):
    with pytest.raises(ShapeError, match=rf"{function.__name__}: shapes \(2,\) and \(3,\) do not broadcast"):
        function(tensor([1.0, 2.0]), tensor([1.0, 2.0, 3.0]))


def test_arithmetic_of_shapes_that_do_not_broadcast_too():
    with pytest.raises(ShapeError, match=r"add: the shapes \(2,\) and \(3,\) do not broadcast"):
        tensor([1.0, 2.0]) + tensor([1.0, 2.0, 3.0])


def test_logic_of_booleans_and_bits_of_whole_numbers():
    a, b = np.array([True, True, False, False]), np.array([True, False, True, False])
    x, y = tensor(a), tensor(b)
    for symbol in (operator.and_, operator.or_, operator.xor):
        for found in (symbol(x, y), symbol(a, y), symbol(x, b)):
            np.testing.assert_array_equal(found.data, symbol(a, b))
        np.testing.assert_array_equal(symbol(x, True).data, symbol(a, True))
        np.testing.assert_array_equal(symbol(tensor([12, 10]), 6).data, symbol(np.array([12, 10]), 6))
    np.testing.assert_array_equal((~x).data, ~a)
    np.testing.assert_array_equal((~tensor([0, 5, -3])).data, [-1, -6, 2])
    with pytest.raises(DtypeError, match=r"&: an operand has dtype float32; give booleans.*\(x > 0\) & \(y > 0\)"):
        tensor([1.0]) & tensor([True])
    with pytest.raises(DtypeError, match="~: the operand has dtype float32"):
        ~tensor([1.0])
    u, v = np.array([0.0, 2, 0, -1]), np.array([3.0, 0, 0, np.nan])
    for name in ("logical_and", "logical_or", "logical_xor"):
        np.testing.assert_array_equal(getattr(tensor(u), name)(v).data, getattr(np, name)(u, v))
    np.testing.assert_array_equal(tensor(u).logical_not().data, [True, False, True, False])


def test_any_all_and_kinds_of_numbers():
    array = np.array([[0.0, 1.0], [np.nan, 2.0], [0.0, 0.0]])
    x = tensor(array)
    for name in ("any", "all"):
        numpys, ours = getattr(np, name), getattr(ops, name)
        for axis in (None, 0, 1, -1, (0, 1)):
            np.testing.assert_array_equal(ours(x, axis).data, numpys(array, axis))
        np.testing.assert_array_equal(ours(x, dim=1, keepdim=True).data, numpys(array, 1, keepdims=True))
        assert ours(tensor(np.zeros((0,)))).item() == numpys(np.zeros(0))
        with pytest.raises(ShapeError, match=f"{name}: axis 5 is out of range"):
            ours(x, 5)
    for name in ("isnan", "isinf", "isfinite"):
        np.testing.assert_array_equal(getattr(tensor(AWKWARD), name)().data, getattr(np, name)(AWKWARD))
        np.testing.assert_array_equal(getattr(tensor([1, 2]), name)().data, [name == "isfinite"] * 2)


@pytest.mark.parametrize("equal_nan", [False, True])
def test_close_and_equal(equal_nan):
    x = np.array([1.0, 1.0, 1e-9, np.inf, np.inf, -np.inf, np.nan, 1e300])
    y = np.array([1.0 + 1e-6, 1.1, 0.0, np.inf, 5.0, np.inf, np.nan, -1e300])
    expected = [True, False, True, True, False, False, equal_nan, False]
    np.testing.assert_array_equal(ops.isclose(tensor(x), y, equal_nan=equal_nan).data, expected)
    assert ops.allclose(tensor(x[:1]), y[:1])
    assert not ops.allclose(tensor(x), y)
    assert ops.equal(tensor(x[:6]), x[:6])
    assert not ops.equal(tensor(x), x)  # NaN equals nothing
    assert not ops.equal(tensor([[1.0]]), tensor([1.0]))  # another shape


@pytest.mark.oracle
def test_comparisons_and_logic_are_pytorchs():
    torch = pytest.importorskip("torch")
    numbers = [AWKWARD, np.array([-3, -1, 0, 1, 2, 3, 2**24 + 1, 5, 7]), AWKWARD.astype(np.float64), AWKWARD > 0]
    for a in numbers:
        for b in [*numbers, 1, 0.1, True]:
            theirs = torch.tensor(a), torch.tensor(b) if isinstance(b, np.ndarray) else b
            for name in [*COMPARISONS, "logical_and", "logical_or", "logical_xor", "isclose"]:
                if name in ("isclose",) and (not isinstance(b, np.ndarray) or a.dtype != b.dtype or a.dtype == bool):
                    continue
                if name.startswith("logical") and not isinstance(b, np.ndarray):
                    continue
                found, wanted = getattr(ops, name)(tensor(a), b), getattr(torch, name)(*theirs)
                np.testing.assert_array_equal(found.data, wanted.numpy(), err_msg=f"{name} {a.dtype} {b!r}")


# --- remainders ----------------------------------------------------------------------------------------------------


def test_remainders_have_pythons_sign_and_a_gradient():
    x, y = tensor([7.5, -7.5, 7.5, -7.5], requires_grad=True), tensor([2.0, 2.0, -2.0, -2.0], requires_grad=True)
    rest, whole = x % y, x // y
    np.testing.assert_array_equal(rest.data, [1.5, 0.5, -0.5, -1.5])
    np.testing.assert_array_equal(whole.data, [3, -4, -4, 3])
    assert not whole.requires_grad
    rest.backward(np.array([1.0, 10, 100, 1000]))
    np.testing.assert_array_equal(x.grad, [1, 10, 100, 1000])
    np.testing.assert_array_equal(y.grad, [-3, 40, 400, -3000])
    np.testing.assert_array_equal((10 % tensor([3, 4])).data, [1, 2])
    np.testing.assert_array_equal((np.array([9, 10]) // tensor([3, 4])).data, [3, 2])
    assert (7 // tensor([2.0])).dtype == np.float32


def test_remainders_of_zero():
    assert np.isnan((tensor([1.0]) % 0).item())
    assert (tensor([1.0]) // 0).item() == np.inf
    assert np.isnan((tensor([0.0]) // 0).item())
    for function in (ops.remainder, ops.floor_divide):
        with pytest.raises(InputError, match=f"{function.__name__}: whole numbers are divided by 0"):
            function(tensor([1, 2]), tensor([1, 0]))


@pytest.mark.oracle
def test_remainders_are_pytorchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    for dtype in (np.float32, np.float64):
        a, b = rng.normal(size=(5, 3)).astype(dtype) * 10, rng.normal(size=3).astype(dtype)
        x, y = tensor(a, requires_grad=True), tensor(b, requires_grad=True)
        s, t = torch.tensor(a, requires_grad=True), torch.tensor(b, requires_grad=True)
        u = rng.normal(size=(5, 3)).astype(dtype)
        (x % y).backward(u)
        torch.remainder(s, t).backward(torch.tensor(u))
        np.testing.assert_allclose((x % y).data, torch.remainder(s, t).detach().numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(x.grad, s.grad.numpy(), rtol=1e-6)
        np.testing.assert_allclose(y.grad, t.grad.numpy(), rtol=1e-5)
        np.testing.assert_array_equal((x // y).data, torch.floor_divide(s, t).detach().numpy())


# --- dtypes --------------------------------------------------------------------------------------------------------

OPERANDS = {
    "float32": np.array([1.5, 2.5], np.float32),
    "float64": np.array([1.5, 2.5]),
    "float16": np.array([1.5, 2.5], np.float16),
    "int64": np.array([1, 2]),
    "int32": np.array([1, 2], np.int32),
    "int8": np.array([1, 2], np.int8),
    "uint8": np.array([1, 2], np.uint8),
    "bool": np.array([True, True]),
    "float64 ()": np.array(2.0),
    "float32 ()": np.array(2.0, np.float32),
    "int64 ()": np.array(2),
}
NUMBERS = {"2": 2, "0.5": 0.5, "True": True, "np.float64": np.float64(0.5), "np.int64": np.int64(2)}
ARITHMETIC = {
    "+": operator.add,
    "*": operator.mul,
    "/": operator.truediv,
    "**": operator.pow,
    "//": operator.floordiv,
    "%": operator.mod,
}


@pytest.mark.oracle
@pytest.mark.parametrize("left", OPERANDS)
@pytest.mark.parametrize("symbol", ARITHMETIC)
def test_dtypes_of_arithmetic_are_pytorchs(symbol, left):
    torch = pytest.importorskip("torch")
    function, a = ARITHMETIC[symbol], OPERANDS[left]
    pairs = [(name, b, torch.tensor(b)) for name, b in OPERANDS.items()] + [(n, b, b) for n, b in NUMBERS.items()]
    for name, b, theirs in pairs:
        ours = tensor(b) if isinstance(b, np.ndarray) else b
        for one, other in (
            ((tensor(a), ours), (torch.tensor(a), theirs)),
            ((ours, tensor(a)), (theirs, torch.tensor(a))),
        ):
            if isinstance(other[0], np.generic):
                other = (other[0].item(), other[1])  # PyTorch lets NumPy answer here
            try:
                wanted = function(*other)
            except RuntimeError:  # of booleans
                continue
            if symbol == "**" and wanted.dtype == torch.bool:  # int8 in NumPy, and 1 either way
                continue
            found = function(*one)
            assert str(wanted.dtype) == f"torch.{found.dtype}", (name, symbol)
            np.testing.assert_allclose(found.data, wanted.numpy(), rtol=1e-3)


@pytest.mark.parametrize("symbol", ["+", "-", "*", "/", "**", "%", "//"])
def test_float32_stays_float32_and_so_do_gradients(symbol):
    function = {**ARITHMETIC, "-": operator.sub}[symbol]
    whole = [2, True, 0.5, np.float64(0.5), np.int64(2), [1, 2], [0.5, 2.0], np.array([1, 2]), tensor([1, 2])]
    for other in [
        *whole,
        np.array([True, True]),
        tensor([True, True]),
        np.array([1, 2], np.uint8),
        np.array(2.5),
        tensor(np.array(2.5)),
    ]:
        for first in (True, False):
            x = tensor([1.5, 2.5], requires_grad=True)
            y = function(x, other) if first else function(other, x)
            assert type(y) is Tensor
            assert y.dtype == np.float32, other
            if y.requires_grad:
                y.sum().backward()
                assert x.grad.dtype == np.float32


def test_a_float64_number_gets_its_gradient_in_float64():
    x, scale = tensor([1.5, 2.5], requires_grad=True), tensor(np.array(3.0), requires_grad=True)
    y = x * scale
    y.sum().backward()
    assert (y.dtype, x.grad.dtype, scale.grad.dtype) == (np.float32, np.float32, np.float64)
    assert scale.grad == 4


def test_a_gradient_has_the_dtype_of_its_tensor_on_the_way_too():
    x, y = tensor([1.5, 2.5], requires_grad=True), tensor(np.array([1.0, 2.0]), requires_grad=True)
    h = (x * 2).retain_grad()
    (h * y).sum().backward()
    assert (h.grad.dtype, x.grad.dtype, y.grad.dtype) == (np.float32, np.float32, np.float64)


@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "tanh", "sigmoid"])
@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.bool_])
def test_functions_of_whole_numbers_are_float32(name, dtype):
    x = np.array([1, 1, 1], dtype)
    found = getattr(tensor(x), name)()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.data, getattr(ops, name)(tensor(x.astype(np.float32))).data)


def test_division_of_whole_numbers_is_float32():
    x = tensor([1, 2])
    for quotient in (x / tensor([2, 4]), x / 2, 2 / x, x / np.array([2, 4], np.int8), tensor([True, False]) / 2):
        assert quotient.dtype == np.float32
    np.testing.assert_array_equal((x / tensor([2, 4])).data, [0.5, 0.5])


def test_joined_tensors_take_the_floating_dtype():
    x, ids = tensor([1.5], requires_grad=True), tensor([2])
    assert ops.concat([x, ids]).dtype == ops.stack([ids, x]).dtype == np.float32
    assert ops.where(np.array([True]), x, ids).dtype == np.float32
    assert (tensor([[1.0]]) @ tensor([[2]])).dtype == np.float32
    ops.concat([x * 2, ids]).sum().backward()
    assert x.grad == [2]


@pytest.mark.parametrize("wrong", [None, "a", 1j, object(), np.array(["a"])])
def test_what_is_no_number_is_refused_by_name(wrong):
    for function in (lambda x: x + wrong, lambda x: wrong * x, lambda x: ops.div(x, wrong), lambda x: x @ [wrong]):
        with pytest.raises(DtypeError, match=r"(add|mul|div|matmul): an operand is|tensor: data has dtype"):
            function(tensor([1.0]))


# --- whole numbers have no gradient --------------------------------------------------------------------------------


def test_a_whole_number_never_requires_a_gradient():
    x = tensor([1.5, 2.5], requires_grad=True)
    for target in (int, "int64", bool, np.uint8):
        whole = x.to(target)
        assert not whole.requires_grad
        assert whole.is_leaf
        assert not whole.to("float32").requires_grad
    ids = tensor([1, 2])
    with pytest.raises(DtypeError, match="requires_grad_: dtype int64 cannot have a gradient"):
        ids.requires_grad = True
    with pytest.raises(DtypeError, match="to: parameters of dtype int64 cannot be trained"):
        minillm.nn.Linear(2, 3).to(np.int64)
    assert not ids.requires_grad
    y = x * 2
    with pytest.raises(GraphError, match="only a leaf can be changed"):
        y.requires_grad = False


# --- in place ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda a: Parameter(a), lambda a: Tensor(a, requires_grad=True)])
def test_gradient_descent_by_hand(make):
    start = np.array([1.0, 2.0, 3.0], np.float32)
    p = make(start.copy())
    memory, same = p.data, p
    for as_tensor in (False, True):
        p.grad = None
        (p * p).sum().backward()
        before = p.data.copy()
        with no_grad():
            p -= 0.1 * (Tensor(p.grad) if as_tensor else p.grad)
        np.testing.assert_allclose(p.data, before * 0.8, rtol=1e-6)
    assert p is same
    assert p.data is memory
    assert p.requires_grad
    assert p.is_leaf


def test_in_place_changes_reach_the_optimisers_flat_buffer():
    p, q = Parameter(np.ones(3, np.float32)), Parameter(np.ones((2, 2), np.float32))
    optimizer = SGD([p, q], lr=1.0)
    with no_grad():
        p *= 3
        q[0] = 5.0
    np.testing.assert_array_equal(optimizer.groups[0].data[:3], 3)
    (p.sum() + q.sum()).backward()
    optimizer.step()
    np.testing.assert_array_equal(p.data, 2)
    np.testing.assert_array_equal(q.data, [[4, 4], [0, 0]])


IN_PLACE = {
    "add_": (lambda x: x.add_(np.array([1.0, 2.0])), [2, 6]),
    "add_ alpha": (lambda x: x.add_(np.array([1.0, 2.0]), alpha=-0.5), [0.5, 3]),
    "sub_ alpha": (lambda x: x.sub_(1, alpha=2), [-1, 2]),
    "mul_": (lambda x: x.mul_(3), [3, 12]),
    "div_": (lambda x: x.div_(2), [0.5, 2]),
    "pow_": (lambda x: x.pow_(2), [1, 16]),
    "neg_": (lambda x: x.neg_(), [-1, -4]),
    "sqrt_": (lambda x: x.sqrt_(), [1, 2]),
    "clip_": (lambda x: x.clip_(2, 3), [2, 3]),
    "zero_": (lambda x: x.zero_(), [0, 0]),
    "fill_": (lambda x: x.fill_(7), [7, 7]),
    "copy_": (lambda x: x.copy_(np.array([8.0, 9.0])), [8, 9]),
    "copy_ of one": (lambda x: x.copy_(tensor(5)), [5, 5]),
    "+=": (lambda x: operator.iadd(x, 1), [2, 5]),
    "-=": (lambda x: operator.isub(x, tensor([1.0, 2.0])), [0, 2]),
    "*=": (lambda x: operator.imul(x, np.float64(2)), [2, 8]),
    "/=": (lambda x: operator.itruediv(x, 2), [0.5, 2]),
    "**=": (lambda x: operator.ipow(x, 2), [1, 16]),
    "//=": (lambda x: operator.ifloordiv(x, 3), [0, 1]),
    "%=": (lambda x: operator.imod(x, 3), [1, 1]),
    "[0] =": (lambda x: operator.setitem(x, 0, 9), [9, 4]),
    "[mask] =": (lambda x: operator.setitem(x, x > 2, tensor(0.0)), [1, 0]),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_every_change_in_place(name):
    change, expected = IN_PLACE[name]
    memory = np.array([1.0, 4.0], np.float32)
    p = Tensor(memory, requires_grad=True)
    y = p * p
    with pytest.raises(GraphError, match=r"put this under 'with minillm.no_grad\(\):'"):
        change(p)
    np.testing.assert_array_equal(memory, [1, 4])
    with no_grad():
        result = change(p)
    assert result is p or result is None
    assert p.data is memory
    np.testing.assert_array_equal(memory, expected)
    assert p.dtype == np.float32
    with pytest.raises(GraphError, match=r"was updated by the optimiser after mul.*or was changed in place"):
        y.sum().backward()
    (p * 3).sum().backward()
    np.testing.assert_array_equal(p.grad, [3, 3])


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_result_is_not_changed_in_place(name):
    change, _ = IN_PLACE[name]
    x = tensor([1.0, 4.0], requires_grad=True)
    y = x * 1
    with pytest.raises(GraphError, match=r"an operation made this tensor.*write"):
        change(y)
    with no_grad(), pytest.raises(GraphError, match="an operation made this tensor"):
        change(y)
    for shared in (y.detach(), y.detach().reshape(2, 1).reshape(2)):
        with pytest.raises(GraphError, match="shares its memory with one that an operation made"):
            change(shared)
    with no_grad():
        view = y[:]
        with pytest.raises(GraphError, match="shares its memory"):
            change(view)
    np.testing.assert_array_equal(y.data, [1, 4])


def test_what_needs_no_gradient_is_changed_anywhere():
    x = tensor([1.0, 2.0])
    memory, other = x.data, x
    x += 1
    x[0] = 10
    assert other is x
    np.testing.assert_array_equal(memory, [10, 3])
    w = tensor([1.0, 1.0], requires_grad=True)
    with pytest.raises(GraphError, match=r"\+=: a value that needs a gradient.*write x = x \+ y"):
        x += w
    with pytest.raises(GraphError, match="elements cannot be assigned: a value that needs a gradient"):
        x[0] = w[0]
    total = x + w  # what the error says
    total.sum().backward()
    np.testing.assert_array_equal(w.grad, [1, 1])


def test_a_constant_that_changed_after_its_use_is_found_out():
    x, w = tensor([1.0, 2.0]), tensor([1.0, 1.0], requires_grad=True)
    y = w * x
    x += 1
    with pytest.raises(GraphError, match=r"input 1 of mul.*was changed in place"):
        y.sum().backward()
    x.zero_()
    (w * x).sum().backward()
    np.testing.assert_array_equal(w.grad, [0, 0])


def test_views_and_detached_twins_share_the_version():
    p = Parameter(np.arange(6.0).reshape(2, 3))
    for change in (
        lambda: p.detach().mul_(2),
        lambda: p[1:].zero_(),
        lambda: p.reshape(6).fill_(1),
        lambda: p.T.copy_(np.ones((3, 2))),
    ):
        y, before = (p * p).sum(), p.version
        with no_grad():
            change()
        assert p.version == before + 1
        with pytest.raises(GraphError, match="or was changed in place"):
            y.backward()
    np.testing.assert_array_equal(p.data, 1)
    with no_grad():
        fresh, before = p * 1, p.version
        fresh += 1  # memory of its own
    assert p.version == before


def test_loaded_weights_end_the_graph_of_those_before():
    layer = minillm.nn.Linear(2, 3)
    y = layer(tensor(np.ones((1, 2), np.float32))).sum()
    layer.load_state_dict({name: array * 2 for name, array in layer.state_dict().items()})
    with pytest.raises(GraphError, match="run the forward again"):
        y.backward()


def test_values_must_fit_in_place():
    x, ids = tensor([1.0, 2.0]), tensor([1, 2])
    with pytest.raises(ShapeError, match=r"\+=: the result has shape \(3, 2\), and the tensor \(2,\)"):
        x += np.ones((3, 2))
    with pytest.raises(ShapeError, match=r"values of shape \(3,\) do not fit the shape \(2,\)"):
        x.copy_([1, 2, 3])
    with pytest.raises(DtypeError, match=r"/=: values of dtype float32 do not fit a tensor of int64"):
        ids /= 2
    with pytest.raises(DtypeError, match="do not fit a tensor of int64"):
        ids[0] = 0.5
    with pytest.raises(ShapeError, match=r"fill_: the value has shape \(2,\)"):
        x.fill_([1, 2])
    ids += 1
    ids[ids == 2] = 7
    np.testing.assert_array_equal(ids.data, [7, 3])


def test_a_comparison_in_place_keeps_the_dtype():
    x = tensor([1.0, 2.0])
    x.gt_(1)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x.data, [0, 1])


def test_weights_drawn_in_place():
    p = Parameter(np.zeros(10000, np.float32))
    minillm.manual_seed(3)
    with no_grad():
        first = p.normal_(2.0, 0.5).data.copy()
        assert abs(first.mean() - 2) < 0.03
        assert abs(first.std() - 0.5) < 0.02
        p.uniform_(-1, 3)
    assert -1 <= p.data.min() < -0.9
    assert 2.9 < p.data.max() <= 3
    minillm.manual_seed(3)
    with no_grad():
        np.testing.assert_array_equal(p.normal_(2.0, 0.5).data, first)
    with pytest.raises(GraphError, match="normal_: a leaf that requires a gradient"):
        p.normal_()
    with pytest.raises(DtypeError, match="uniform_: the tensor has dtype int64"):
        tensor([1]).uniform_()


# --- reading -------------------------------------------------------------------------------------------------------


def test_transposes_sizes_lists_and_numbers():
    array = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
    x = tensor(array, requires_grad=True)
    np.testing.assert_array_equal(x.T.data, array.T)
    np.testing.assert_array_equal(x.mT.data, array.swapaxes(1, 2))
    u = np.random.default_rng(0).normal(size=(4, 3, 2))
    x.T.backward(u)
    np.testing.assert_array_equal(x.grad, u.T.astype(np.float32))
    assert x.size() == (2, 3, 4)
    assert (x.size(0), x.size(-1)) == (2, 4)
    assert x.tolist() == array.tolist()
    assert tensor(1.5).tolist() == 1.5
    assert type(tensor([1]).tolist()[0]) is int
    assert (int(tensor(3.9)), int(tensor([2])), float(tensor([[2.5]]))) == (3, 2, 2.5)
    assert [10, 20, 30][tensor(1)] == 20
    assert list(range(tensor(3))) == [0, 1, 2]
    assert +x is x
    with pytest.raises(ShapeError, match="size: axis 3 is out of range"):
        x.size(3)


def test_formats():
    assert f"{tensor(1.23456):.2f}" == "1.23"
    assert f"{tensor(7)}" == "7"
    assert f"{tensor([1.0])}" == str(tensor([1.0]))
    with pytest.raises(
        DtypeError, match=r"format: a tensor of shape \(2,\) is not a number for '.2f'; write x.item\(\)"
    ):
        format(tensor([1.0, 2.0]), ".2f")


def test_iteration_passes_gradients():
    x = tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    first, second = x
    (first * 2 + second * second).sum().backward()
    np.testing.assert_array_equal(x.grad, [[2, 2], [6, 8]])
    assert len(list(iter(x))) == 2


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda: len(tensor(1.0)), DtypeError, r"len: a tensor of shape \(\) has no length"),
        (lambda: list(tensor(1.0)), DtypeError, r"iter: a tensor of shape \(\) cannot be iterated over"),
        (lambda: tensor(np.zeros(0)).item(), ShapeError, r"item: the tensor has shape \(0,\).*tolist"),
        (lambda: float(tensor([1.0, 2.0])), ShapeError, r"float: the tensor has shape \(2,\)"),
        (lambda: int(tensor(np.zeros(0))), ShapeError, r"int: the tensor has shape \(0,\)"),
        (lambda: bool(tensor(np.zeros(0))), ShapeError, r"bool: a tensor of shape \(0,\)"),
        (lambda: [1, 2][tensor(1.0)], DtypeError, r"index: a tensor of shape \(\) and dtype float32 is not an index"),
        (lambda: [1, 2][tensor([0, 1])], DtypeError, r"index: a tensor of shape \(2,\)"),
        (lambda: tensor([1.0, 2.0])[tensor([0.0])], DtypeError, "getitem: an index has dtype float32"),
    ],
)
def test_reading_what_is_not_there_says_so(function, error, message):
    with pytest.raises(error, match=message):
        function()


def test_copies_of_leaves_are_leaves_and_results_have_none():
    p = Parameter(np.ones(2, np.float32), name="w")
    p.grad = np.ones(2, np.float32)
    twin = copy.deepcopy(p)
    assert type(twin) is Parameter
    assert twin.name == "w"
    assert twin.requires_grad
    with no_grad():
        twin += 1
    np.testing.assert_array_equal(p.data, 1)
    assert p.version == 0
    with pytest.raises(GraphError, match=r"deepcopy: an operation made this tensor.*detach\(\)"):
        copy.deepcopy(p * 2)


def test_an_op_called_by_a_module_itself():
    code = (
        "import numpy as np\nimport minillm\nfrom minillm.ops.arithmetic import MUL\n"
        "x = minillm.tensor([2.0], requires_grad=True)\n"
        "y = MUL(x, x)\n"
        "y.backward()\nprint(x.grad, y.node.location())\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[4.] <string>:5"
