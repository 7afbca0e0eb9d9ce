"""Names that are not there: the error says what to write, and what it says is right."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest

import minillm
from minillm import hints, nn, ops
from minillm.autograd import Parameter, Tensor, tensor
from minillm.errors import MinillmError, NoSuchNameError

X = np.array([[0.25, 0.5], [0.75, 0.125]], np.float32)
Y = np.array([[1.5, 0.5], [0.25, 2.0]], np.float32)
NEEDS_MORE = re.compile(r"\b(sin|cos|sign|abs)\(")


def evaluated(expression: str, requires_grad: bool = False):
    x, y = tensor(X, requires_grad=requires_grad), tensor(Y)
    names = {"x": x, "y": y, "a": np.arange(4.0), "i": np.array([0, 1]), "n": 0.5}
    return eval(expression, {"np": np, "minillm": minillm, "ops": ops, **names})


@pytest.mark.parametrize("name", hints.EXPRESSIONS)
def test_every_expression_can_be_written(name):
    expression = hints.EXPRESSIONS[name]
    if NEEDS_MORE.search(expression) and not hasattr(Tensor, "sin"):
        pytest.skip("needs an operation that is not here")
    result = evaluated(expression)
    if "numpy()" not in expression and isinstance(result, Tensor) and result.dtype == np.float32:
        evaluated(expression, requires_grad=True)  # and where there is a gradient too


def test_no_hint_stands_for_what_is_here():
    here = {name for name in {**hints.EXPRESSIONS, **hints.FUNCTIONS} if name in ops.__all__}
    here -= {"where"}  # the function takes three arguments, PyTorch's method two
    assert not here, f"take out of minillm/hints.py, as they are here by now: {', '.join(sorted(here))}"


# Where PyTorch's function of x, or of x and y, has one value, the expression has it.
AS_IN_PYTORCH = """
    short char byte type_as is_floating_point is_nonzero dim ndimension nelement element_size itemsize nbytes
    is_contiguous H mH adjoint argwhere positive negative multiply divide true_divide subtract greater greater_equal
    less less_equal not_equal tan sinh cosh xlogy hypot fmod fmax fmin nan_to_num nansum nanmean diff dist sgn frac
    inner kron float_power deg2rad rad2deg isposinf isneginf fliplr flipud copysign sinc is_same_size cov
""".split()


@pytest.mark.oracle
@pytest.mark.parametrize("name", AS_IN_PYTORCH)
def test_expressions_have_pytorchs_values(name):
    torch = pytest.importorskip("torch")
    expression = hints.EXPRESSIONS.get(name)
    if expression is None:  # it is an operation by now
        pytest.skip(f"{name} is here")
    if NEEDS_MORE.search(expression) and not hasattr(Tensor, "sin"):
        pytest.skip("needs an operation that is not here")
    x, y = torch.tensor(X), torch.tensor(Y)
    theirs = getattr(x, name, None)
    takes_two = re.search(r"\by\b", expression) is not None and name not in ("positive",)
    if name == "is_nonzero":
        theirs, x = x[:1, :1].is_nonzero, None
    if name == "dist":
        takes_two = True
    wanted = theirs if not callable(theirs) else theirs(y) if takes_two else theirs()
    if name == "diff":
        wanted = x.diff(dim=0)
    wanted = wanted.numpy() if isinstance(wanted, torch.Tensor) else wanted
    found = evaluated(expression)
    found = found.numpy() if isinstance(found, Tensor) else found
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_tensor_says_what_to_write():
    x = tensor(X)
    for name, text in [
        ("type_as", "Tensor has no `type_as`; write x.to(y.dtype)"),
        ("astype", "Tensor has no `astype`; write x.to('float32')"),
        ("sofmax", "Tensor has no `sofmax`; the nearest names are softmax, "),
        ("index_put_", "Tensor has no `index_put_`; write x[i] = y under minillm.no_grad()"),
        ("softmax_", "Tensor has no `softmax_`; nothing is changed in place under this name: write x = x.softmax(...)"),
        ("arctan", "Tensor has no `arctan`; write np.arctan(x.numpy()), which has no gradient"),
        ("to_sparse_csr", "Tensor has no `to_sparse_csr`; all tensors are dense"),
        ("qqqqqq", "Tensor has no `qqqqqq`; dir(minillm.Tensor) lists those that there are"),
    ]:
        with pytest.raises(NoSuchNameError) as caught:
            getattr(x, name)
        assert str(caught.value).startswith(text)
        assert isinstance(caught.value, AttributeError)
        assert isinstance(caught.value, MinillmError)
    with pytest.raises(NoSuchNameError, match="Parameter has no `astype`"):
        Parameter(X.copy()).astype(float)


def test_asking_is_still_possible_and_cheap():
    x = tensor(X)
    assert not hasattr(x, "foo")
    assert getattr(x, "foo", 5) == 5
    assert not hasattr(x, "__array_interface__")
    assert not hasattr(x, "_private")
    with pytest.raises(AttributeError):  # a typing error in an assignment is one still
        x.gard = 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("scaled_dot_product_attention", r"write minillm.ops.attention\(q, k, v, causal=...\)"),
        ("nll_loss", "write minillm.ops.cross_entropy"),
        ("conv2d", "there are no convolutions"),
        ("lstm", "there are no recurrent layers"),
        ("softmaxx", "the nearest names are softmax"),
        ("functional", "write minillm.ops"),
        ("zero_", r"it is a method: write x.zero_\(...\)"),
        ("cumulative_trapezoid", r"dir\(minillm.ops\) lists"),
        ("arcsinh", r"write np.arcsinh\(x.numpy\(\)\)"),
    ],
)
def test_modules_say_what_to_write(name, text):
    for module in (minillm, ops):
        with pytest.raises(NoSuchNameError, match=rf"{module.__name__} has no `{name}`; {text}"):
            getattr(module, name)
        assert not hasattr(module, name)


def test_files_are_there_when_they_are_named():
    code = (
        "import minillm\n"
        "model = minillm.nn.Linear(2, 3)\n"
        "minillm.optim.SGD(model.parameters(), lr=0.1)\n"
        "print(minillm.testing.__name__, hasattr(minillm, 'nothing_like_it'), hasattr(minillm, '__wrapped__'))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["minillm.testing", "False", "False"]


def test_layers_find_their_attributes_without_hints():
    assert [name for name, _ in nn.Linear(2, 3).named_parameters()] == ["weight", "bias"]


@pytest.mark.oracle
def test_every_name_of_pytorch_has_an_answer():
    """Every public method of torch.Tensor and function of torch and torch.nn.functional: there, or with a sentence."""
    torch = pytest.importorskip("torch")
    x, vague = tensor(X), {}
    functional = torch.nn.functional
    for owner, ours in ((torch.Tensor, x), (torch, minillm), (functional, ops)):
        names = [n for n in dir(owner) if not n.startswith("_") and n[0].islower()]
        for name in names:
            try:
                getattr(ours, name)
            except NoSuchNameError as error:
                sentence = str(error)
                assert f"has no `{name}`; " in sentence
                if "lists those that there are" in sentence:
                    vague.setdefault(ours if ours is not x else "tensor", []).append(name)
    assert len(vague["tensor"]) < 100  # rare ones: special functions, storages
    assert len(vague[ops]) < 40
