"""`study.nonfinite`: the first operation, and line, that makes a NaN or an infinity; no alarm where none is made."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest

import minillm
from minillm import ops, random, study
from minillm.autograd import Op, Tensor, no_grad
from minillm.grad_mode import state
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.study.describe.abstract_step import abstract_step, loss_of, training_batch
from minillm.study.questions.nonfinite import NonFiniteError
from tests.models.test_families import FAMILIES

IDS = np.random.default_rng(0).integers(0, 13, (2, 6))


def leaf(*values: float) -> Tensor:
    return Tensor(np.array(values, float), requires_grad=True)


def report_of(function, mode: str = "plain") -> str:
    with minillm.engine(mode), pytest.raises(NonFiniteError) as raised, study.nonfinite():
        function()
    return str(raised.value)


def gpt2() -> GPT2:
    minillm.manual_seed(0)
    return GPT2(GPT2Config(vocab_size=13, context=6, layers=3, heads=2, channels=8))


FORWARDS = {
    "log": (lambda: ops.log(leaf(1, 0, 2)), "an infinity", "y = np.log(x)", "small eps"),
    "negative": (lambda: ops.log(leaf(1, -1)), "NaN", "y = np.log(x)", "small eps"),
    "exp": (lambda: ops.exp(leaf(1, 1000)), "an infinity", "y = np.exp(x)", "subtract the largest"),
    "div": (lambda: leaf(1, 2) / leaf(1, 0), "an infinity", "np.divide(a, b)", "divisor is 0"),
    "sqrt": (lambda: ops.sqrt(leaf(-4.0)), "NaN", "np.sqrt(x)", "ops.clip"),
    "softmax": (lambda: ops.softmax(leaf(1, 2) + Tensor(np.full(2, -np.inf))), "NaN", "np.exp(x - x.max", "mask hides"),
    "mul": (lambda: leaf(0, 1) * Tensor(np.array([np.inf, 1])), "NaN", "np.multiply(a, b)", "ops.where"),
}
BACKWARDS = {
    "sqrt": (lambda: ops.sqrt(leaf(0, 1)).sum(), "an infinity", "dx = dy / (2 * saved.y)", r"(x + eps).sqrt()"),
    "log1p": (lambda: (ops.log1p(leaf(-1 + 1e-16, 1)) * 1e300).sum(), "an infinity", "dx = dy / (1 + saved.x)", "eps"),
    "pow": (lambda: (leaf(0, 1) ** 0.5).sum(), "an infinity", "np.power(a", "small eps to x"),
    "div": (
        lambda: ops.where(np.array([False, True]), leaf(1, 1) / leaf(1e-200, 1), 0.0).sum(),
        "NaN",
        "db = ",
        "mend y first",
    ),
}


@pytest.mark.parametrize("mode", ["plain", "fast"])
@pytest.mark.parametrize("case", FORWARDS)
def test_a_forward_is_found_with_its_line(case, mode):
    function, new, line, advice = FORWARDS[case]
    text = report_of(function, mode)
    op = {"negative": "log"}.get(case, case)
    assert text.startswith(f"nonfinite: the forward of {op} made {new}\n")
    assert "test_questions_nonfinite.py" in text
    assert re.search(rf"  line +ops/\w+.py:\d+  .*{re.escape(line)}", text)
    assert advice in text.splitlines()[-1]
    assert "input 0" in text


@pytest.mark.parametrize("case", BACKWARDS)
def test_a_backward_is_found_with_its_line(case):
    function, new, line, advice = BACKWARDS[case]
    text = report_of(lambda: function().backward())
    assert text.startswith(f"nonfinite: the backward of {case} made {new}\n")
    assert re.search(rf"  line +ops/\w+.py:\d+  .*{re.escape(line)}", text)
    assert advice in text.splitlines()[-1]
    assert "dout" in text
    assert "saved." in text


def test_the_line_is_the_one_in_the_file():
    text = report_of(lambda: ops.softmax(leaf(1, 2) + Tensor(np.full(2, -np.inf))))
    name, number, shown = re.search(r"ops/(softmax.py):(\d+)  (.*)", text).groups()
    with open(f"{os.path.dirname(ops.__file__)}/{name}", encoding="utf-8") as file:
        assert file.read().splitlines()[int(number) - 1].strip() == shown


@pytest.mark.parametrize(
    ("mode", "told"), [("plain", r"line +ops/linear.py:\d+  dx = "), ("fast", "MINILLM_ENGINE=plain gives the line")]
)
def test_in_a_model_the_layer_is_named(mode, told):
    model = gpt2()
    model.h[1].ln_2.weight.data[3] = 1e38
    model.h[1].mlp.fc.weight.data[...] = 1e5
    text = report_of(lambda: model.loss(IDS, IDS), mode)
    assert "the forward of linear made" in text
    assert "h.1.mlp.fc, called at layers.py" in text
    model = gpt2()
    model.h[1].mlp.proj.weight.data[...] = 1e20

    def backward():
        loss = model.loss(IDS, IDS)
        loss.backward(np.float32(1e30))

    text = report_of(backward, mode)
    assert "the backward of" in text
    assert re.search(told, text)


def test_a_weight_that_is_broken_already_is_named():
    model = gpt2()
    model.h[2].attn.proj.weight.data[0, 0] = np.nan
    text = report_of(lambda: model.loss(IDS, IDS), "auto")
    assert "the parameter h.2.attn.proj.weight is not finite before linear reads it" in text
    assert "lower the learning rate" in text
    text = report_of(lambda: ops.exp(Tensor(np.array([np.nan, 1]))))
    assert "input 0 of exp holds NaN, and no operation that was checked made it" in text
    text = report_of(lambda: ops.exp(leaf(1, 2)).backward(np.array([1, np.nan])))
    assert "the gradient that reached the backward of exp holds NaN" in text


def test_without_a_graph_the_caller_is_named():
    with no_grad():
        text = report_of(lambda: ops.log(leaf(0.0)))
    assert re.search(r"called at test_questions_nonfinite.py:\d+", text)


def test_an_own_operation_is_found_with_its_line():
    def own_forward(x):
        halves = x / 2
        y = 1 / (halves - 1)
        return y, None

    own = Op("own", own_forward, lambda dy, saved: (dy,))
    text = report_of(lambda: own(leaf(2, 4)))
    assert "the forward of own made an infinity" in text
    assert "y = 1 / (halves - 1)" in text
    assert "first is inf at (0,)" in text


def test_an_own_operation_without_lines():
    class Forward:
        def __call__(self, x):
            return x / 0, None

    text = report_of(lambda: Op("own", Forward(), lambda dy, saved: (dy,))(leaf(2, 4)))
    assert "has no lines of Python to watch" in text


def test_a_mask_of_infinities_is_no_alarm():
    x = leaf(1, 2, 3)
    with study.nonfinite():
        masked = ops.where(np.array([True, False, True]), x, -np.inf)
        (ops.softmax(masked) * leaf(1, 2, 3)).sum().backward()
        ops.softmax(x + Tensor(np.array([0, -np.inf, 0]))).sum().backward()
    assert np.isfinite(x.grad).all()


@pytest.mark.parametrize("mode", ["plain", "fast"])
@pytest.mark.parametrize("family", FAMILIES)
def test_healthy_models_give_no_alarm(family, mode):
    minillm.manual_seed(0)
    model = FAMILIES[family].model(FAMILIES[family].small)
    batch = training_batch(model, 2, 6)
    with minillm.engine(mode), study.nonfinite():
        loss_of(model)(**batch).backward()


def test_what_is_watched_stays_the_same_and_the_random_stream_too():
    def gradients(context) -> list:
        minillm.manual_seed(1)
        x = Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
        with context:
            ops.dropout(ops.tanh(x), 0.5).sum().backward()
        return [x.grad, random.default.state()]

    import contextlib

    (a, place), (b, other) = gradients(contextlib.nullcontext()), gradients(study.nonfinite())
    np.testing.assert_array_equal(a, b)
    assert place == other


def test_nothing_is_checked_outside_and_describe_is_left_alone():
    assert state.observers == ()
    with study.nonfinite():
        abstract_step(gpt2(), 2, 4)  # its arrays hold whatever was in memory
    ops.log(leaf(0.0))
    assert state.observers == ()


def run(code: str, check: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "MINILLM_CHECK": check}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_the_environment_checks_every_thread():
    code = """
import threading, numpy as np, minillm
def work():
    try: minillm.log(minillm.tensor([0.0]))
    except FloatingPointError as error: print(str(error).splitlines()[0])
work()
thread = threading.Thread(target=work); thread.start(); thread.join()
"""
    shown = run(code, "finite")
    assert shown.stdout.splitlines() == ["nonfinite: the forward of log made an infinity"] * 2, shown.stderr
    shown = run("import minillm", "finit")
    assert "MINILLM_CHECK is 'finit', which checks nothing; set MINILLM_CHECK=finite" in shown.stderr


def test_a_training_that_fails_is_explained(tmp_path):
    words = ["train", "--preset", "nano", "--steps", "4", "--lr", "1e30", "--clip", "1e9", "--warmup", "0"]
    words += ["--threads", "1", "--out", str(tmp_path / "run"), "--eval-every", "4", "--sample-every", "0"]
    code = f"import sys; from minillm.cli import main; sys.exit(main({words!r}))"
    shown = run(code, "finite")
    assert shown.returncode != 0
    assert "train: the forward of" in shown.stderr + shown.stdout
    shown = run(code.replace("/run", "/other"), "")
    assert "which the forward of layernorm of h.0.ln_1 made first" in shown.stderr


def test_other_threads_are_not_checked_by_the_context():
    results = []
    with study.nonfinite():
        thread = threading.Thread(target=lambda: results.append(ops.log(leaf(0.0))))
        thread.start()
        thread.join()
    assert len(results) == 1


def test_every_remedy_belongs_to_an_operation():
    from minillm.study.questions import remedies

    names = {op.name for op in ops.OPS}
    assert set(remedies.FORWARD) | set(remedies.BACKWARD) <= names | {"to"}
