"""Which pair of functions runs: the engine's choice, pairs found by name, and what a node remembers of it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import minillm
from minillm import backend, ops
from minillm.autograd import Op, Tensor, observe
from minillm.engine import ENGINES, current_engine, engine
from minillm.models.gpt2 import GPT2, GPT2Config

X = np.random.default_rng(0).normal(size=(3, 5))


def backward_of(op: Op, mode: str):
    """The backward that the node of this op remembers when it runs in an engine."""
    seen = []
    with engine(mode), observe(on_forward=seen.append):
        ops.linear(Tensor(X, requires_grad=True), Tensor(X, requires_grad=True))
    return next(call.node.backward for call in seen if call.op is op)


def test_each_engine_runs_its_pair():
    plain, fast = ops.LINEAR.backward, ops.LINEAR.pair("fast").backward
    assert plain is not fast
    assert backward_of(ops.LINEAR, "plain") is plain
    for mode in ("auto", "fast"):
        assert backward_of(ops.LINEAR, mode) is fast


def test_engines_nest_and_come_back():
    before = current_engine()
    with engine("plain"):
        with engine("fast"):
            assert current_engine() == "fast"
        assert current_engine() == "plain"
    assert current_engine() == before
    assert minillm.engine is engine


def test_a_backward_belongs_to_its_forward_whatever_the_engine_is_by_then():
    x, weight = Tensor(X, requires_grad=True), Tensor(X, requires_grad=True)
    with engine("plain"):
        y = ops.gelu(ops.linear(x, weight))
    with engine("fast"):
        y.backward(np.ones(y.shape))
        plain = x.grad.copy()
    x.grad = None
    with engine("fast"):
        y = ops.gelu(ops.linear(x, weight))
    with engine("plain"):
        y.backward(np.ones(y.shape))
    np.testing.assert_allclose(x.grad, plain, rtol=1e-12)


def test_engines_that_two_threads_enter_and_leave_in_turn_leave_none_behind():
    """A enters, B enters, A leaves, B leaves."""
    before, threads = current_engine(), backend.cutting.threads
    a, b = engine("plain"), engine("fast")
    a.__enter__()
    b.__enter__()
    a.__exit__(None, None, None)
    assert current_engine() == "fast"
    b.__exit__(None, None, None)
    assert (current_engine(), backend.cutting.threads) == (before, threads)


@pytest.mark.parametrize("mode", ["plain", "fast"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_stay_16_bits_and_sums_are_right(mode, dtype):
    """NumPy computes bfloat16 beside numbers in float32; results and gradients are rounded to it."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    model = GPT2(GPT2Config(vocab_size=11, context=4, layers=1, heads=2, channels=8)).to(dtype)
    seen = set()
    with engine(mode), observe(on_forward=lambda call: seen.update(str(y.dtype) for y in call.outputs)):
        loss = model(np.arange(8).reshape(2, 4)).sum()
        loss.backward()
        assert seen == {dtype}
        assert {str(parameter.grad.dtype) for parameter in model.parameters()} == {dtype}
        ones = Tensor(np.ones((1000, 3), model.wte.weight.dtype), requires_grad=True)
        row = Tensor(np.ones(3, ones.dtype), requires_grad=True)
        assert float(ones.sum()) == pytest.approx(3000, rel=0.01)
        assert float(ones.mean()) == 1
        (ones * row).sum().backward()
        assert row.grad.astype(float) == pytest.approx([1000] * 3, rel=0.01)


PACKAGE = {
    "ops/twice.py": """
        from minillm.autograd import Op
        def twice_forward(x):
            return 2 * x, None
        def twice_backward(dy, saved):
            return (2 * dy,)
        TWICE = Op("twice", twice_forward, twice_backward)
        """,
    "fast/twice.py": """
        def forward(x):
            return (NotImplemented if x.size == 1 else (x + x, "fast"))
        def backward(dy, saved):
            return (dy + dy,)
        """,
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of somebody else's with an operation in ops/ and its fast pair."""
    for name, text in PACKAGE.items():
        path = tmp_path / "others" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(line[8:] for line in text.splitlines()))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "others"
    for name in [name for name in sys.modules if name.partition(".")[0] == "others"]:
        del sys.modules[name]


def test_the_pair_of_another_package_is_found_by_name(package):
    from others.ops.twice import TWICE

    assert TWICE.pair("fast").backward.__module__ == "others.fast.twice"
    assert TWICE.pair("cuda") is None
    seen = []
    with observe(on_forward=seen.append):
        np.testing.assert_array_equal(TWICE(Tensor(X)).data, 2 * X)
        np.testing.assert_array_equal(TWICE(Tensor(X[:1, :1])).data, 2 * X[:1, :1])
    assert [call.saved for call in seen] == ["fast", None]  # the fast pair does not take a single element


def test_an_error_inside_a_pair_is_not_taken_for_a_missing_pair(package):
    (package / "fast" / "twice.py").write_text("import a_module_that_is_not_there\n")
    from others.ops.twice import TWICE

    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        TWICE(Tensor(X))


def test_a_backward_of_ones_own_is_not_replaced_by_a_fast_one():
    """Nor where the forward is ours: Op("softmax", ops.SOFTMAX.forward, mine)."""
    op = Op("softmax", ops.SOFTMAX.forward, lambda dy, saved: (7 * dy,))
    x = Tensor(X, requires_grad=True)
    op(x, axis=1).backward(np.ones_like(X))
    np.testing.assert_array_equal(x.grad, np.full_like(X, 7))


def test_an_operation_of_that_name_elsewhere_keeps_its_own_pair():
    """A person's own op may be called layernorm; the fast pair of ours is not its pair."""
    mine = Op("layernorm", lambda x: (x * 3, None), lambda dy, saved: (3 * dy,))
    x = Tensor(X, requires_grad=True)
    y = mine(x)
    y.backward(np.ones_like(X))
    np.testing.assert_array_equal(y.data, 3 * X)
    np.testing.assert_array_equal(x.grad, np.full_like(X, 3))


@pytest.mark.parametrize("name", ENGINES)
def test_the_environment_chooses(name):
    program = "import minillm.engine, sys; print(sys.modules['minillm.engine'].current_engine())"
    environment = {**os.environ, "MINILLM_ENGINE": name}
    environment.pop("MINILLM_KERNELS", None)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert result.stdout == f"{name}\n", result.stderr


def test_a_wrong_name_in_the_environment_is_named_without_a_traceback():
    environment = {**os.environ, "MINILLM_ENGINE": "plian"}
    program = [sys.executable, "-m", "minillm", "--version"]
    result = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert "MINILLM_ENGINE is 'plian'" in result.stderr
    assert "did you mean 'plain'?" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.returncode == 0
