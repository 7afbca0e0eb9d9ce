"""`study.table`, `study.memory` and `study.probe`: what they say of a graph is what the graph has."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import minillm
from minillm import ops, study
from minillm.autograd import Tensor, no_grad, observe
from minillm.errors import DtypeError, GraphError, InputError
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.models.llama import Llama
from minillm.models.llama_config import LlamaConfig
from minillm.optim import AdamW

IDS = np.random.default_rng(0).integers(0, 13, (3, 8))


def gpt2(**settings) -> GPT2:
    minillm.manual_seed(0)
    return GPT2(GPT2Config(**dict(vocab_size=13, context=8, layers=3, heads=2, channels=8) | settings))


def test_a_table_has_every_operation_in_the_order_in_which_backward_goes_back():
    model, backwards = gpt2(), []
    loss = model.loss(IDS, IDS)
    rows = study.table(loss).rows
    with observe(on_backward=backwards.append):
        loss.backward()
    assert [id(row.node) for row in rows] == [id(call.node) for call in backwards[::-1]]
    names = {name for row in rows for name in row.parameters}
    assert names == {name for name, _ in model.named_parameters()}


def test_a_row_says_where_and_what():
    x, weight = Tensor(np.ones((2, 3)), requires_grad=True), Tensor(np.ones((4, 3)), requires_grad=True)
    y = ops.linear(x, weight)
    loss = (y * 2).sum()
    linear, mul, _ = study.table(loss).rows
    assert (linear.op, linear.inputs, linear.outputs) == ("linear", ((2, 3), (4, 3), None), ((2, 4),))
    assert linear.where.startswith("test_questions_table.py:")
    assert linear.parameters == ("leaf (2, 3)", "leaf (4, 3)")
    assert linear.bytes == 0, "both arrays are leaves, which the caller holds"
    assert mul.op == "mul"
    text = str(study.table(loss))
    assert "3 operations keep" in text
    assert "linear" in text.splitlines()[2]


@pytest.mark.parametrize("ask", [study.table, study.memory, study.graph], ids=["table", "memory", "graph"])
def test_what_has_no_graph_is_refused_with_what_to_do(ask):
    x = Tensor(np.ones(3), requires_grad=True)
    with no_grad():
        y = x.sum()
    with pytest.raises(GraphError, match=r"outside no_grad"):
        ask(y)
    loss = x.sum()
    loss.backward()
    with pytest.raises(GraphError, match=r"released the graph of sum .*keep_graph=True"):
        ask(loss)
    with pytest.raises(DtypeError, match=r"loss is a float"):
        ask(1.0)


@pytest.mark.parametrize("mode", ["plain", "fast"])
def test_memory_is_the_arrays_that_die_with_the_graph(mode):
    """Python itself counts: what tracemalloc sees of NumPy's arrays falls by as much when the graph goes."""
    import gc
    import tracemalloc

    model = gpt2(channels=32, layers=2)
    with minillm.engine(mode):
        model.loss(IDS, IDS).backward()  # what is made once is made
        model.zero_grad()
        tracemalloc.start()
        try:
            loss = model.loss(IDS, IDS)
            counted = study.memory(loss).total
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            del loss
            gc.collect()
            freed = before - tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
    assert counted <= freed <= counted * 1.05 + 60_000, "nodes and tensors are a few hundred bytes each"
    assert counted > 100_000


MODELS = {
    "gpt2": lambda: gpt2(),
    "llama": lambda: Llama(
        LlamaConfig(vocab_size=13, context=8, layers=3, heads=4, kv_heads=2, channels=16, hidden=24)
    ),
}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_memory_is_what_describe_counts(family):
    model = MODELS[family]()
    found = study.memory(model.loss(IDS, IDS), model)
    assert found.described == found.total
    assert [row for row in found.rows if row.bytes != row.described] == []
    assert found.described == sum(found.by_layer(depth=1).values())
    assert set(found.by_layer(depth=2)) > {"h.0", "h.1", "h.2"}


def test_memory_differs_from_describe_where_more_is_kept():
    """The plain pair of gelu keeps an array more than the fast one, for which describe counts."""
    model = gpt2()
    with minillm.engine("plain"):
        found = study.memory(model.loss(IDS, IDS), model)
    assert found.total > found.described
    assert "minillm describe counts" in str(found)


def test_memory_leaves_gradients_buffers_and_probes_as_they_were():
    """The step that is counted computes no numbers: what it writes must not reach the model."""

    class Probed(GPT2):
        def loss(self, ids, targets):
            return study.probe(super().loss(ids, targets), "the loss")

    minillm.manual_seed(0)
    model = Probed(GPT2Config(vocab_size=13, context=8, layers=3, heads=2, channels=8))
    loss = model.loss(IDS, IDS)
    seen = study.probes["the loss"]
    study.memory(loss, model)
    assert study.probes["the loss"] is seen
    assert {parameter.grad is None for parameter in model.parameters()} == {True}
    AdamW(model.parameters(), lr=0.1)
    loss.backward()
    expected = [parameter.grad.copy() for parameter in model.parameters()]
    study.memory(model.loss(IDS, IDS), model)
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        np.testing.assert_array_equal(parameter.grad, grad)
        assert parameter.grad is parameter.grad_buffer
    study.probes.clear()


def test_memory_with_a_model_needs_its_tokens():
    x = Tensor(np.ones(3), requires_grad=True)
    with pytest.raises(InputError, match="no table of tokens"):
        study.memory(x.sum(), gpt2())


def test_an_array_that_two_operations_keep_counts_once():
    x = Tensor(np.ones((4, 5)), requires_grad=True)
    y = x * 2.0  # y is kept by both
    loss = (ops.exp(y) + y * y).sum()
    kept = [row for row in study.memory(loss).rows if row.bytes == y.data.nbytes]
    assert len(kept) == 2, "y, and exp(y)"


def test_a_probe_has_a_name_in_words():
    with pytest.raises(DtypeError, match="probe: name is a int; give a text"):
        study.probe(Tensor(np.ones(2)), 3)
    with pytest.raises(InputError, match="probe: name is empty"):
        study.probe(Tensor(np.ones(2)), "")


def test_a_probe_changes_nothing_and_sees_values_and_gradient(rng):
    data, weight = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    gradients = []
    study.probes.clear()
    for look in (lambda x: x, lambda x: study.probe(x, "middle")):
        x = Tensor(data, requires_grad=True)
        y = look(ops.tanh(x))
        (y * y * Tensor(weight)).sum().backward()
        gradients.append(x.grad)
    np.testing.assert_array_equal(*gradients)
    probe = study.probes["middle"]
    y = np.tanh(data)
    assert probe.value.mean == pytest.approx(y.mean())
    assert probe.value.std == pytest.approx(y.std())
    assert (probe.value.smallest, probe.value.largest) == (y.min(), y.max())
    dy = 2 * y * weight
    assert probe.gradient.rms == pytest.approx(np.sqrt((dy**2).mean())), "both uses of y are in it"
    assert probe.gradient.mean == pytest.approx(dy.mean())


def test_probes_count_and_begin_anew():
    study.probes.clear()
    assert "no probe has run" in str(study.probes)
    x = Tensor(np.array([0.0, np.nan, np.inf]), requires_grad=True)
    for _ in range(2):
        study.probe(x, "x")
    assert study.probes["x"].calls == 2
    assert study.probes["x"].gradient is None
    assert (study.probes["x"].value.nans, study.probes["x"].value.infinities, study.probes["x"].value.zeros) == (
        1,
        1,
        1,
    )
    assert "none yet" in str(study.probes)
    study.probe(np.ones(3), "an array")
    study.probes.clear()
    assert not study.probes
    with pytest.raises(DtypeError, match="probe: x is 3"):
        study.probe(3, "x")


def test_a_probe_passes_the_gradient_check(rng):
    from minillm.testing import check_gradients

    check_gradients(lambda x: ops.exp(study.probe(x * x, "x")), rng.normal(size=(2, 3)))


def test_statistics_neither_overflow_nor_need_elements():
    from minillm.study.questions.statistics import Statistics

    huge = Statistics.of(np.full(4, 1e300))
    assert huge.rms == pytest.approx(1e300)
    assert huge.std == 0
    empty = Statistics.of(np.zeros((0, 3)))
    assert (empty.size, empty.nans) == (0, 0)
    assert np.isnan(empty.mean)
    assert Statistics.of(np.array([True, False])).zeros == 1


def test_study_lists_its_questions_and_imports_none_before_it_is_asked():
    code = (
        "import sys, minillm.study; print('graph' in dir(minillm.study), 'minillm.study.questions' in sys.modules); "
        "minillm.study.graph, minillm.study.probe; print('minillm.study.questions' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["True", "False", "True"]
    with pytest.raises(AttributeError, match="nothing"):
        study.nothing  # noqa: B018
    code = "import minillm; print(callable(minillm.study.graph), minillm.study.diff.__name__)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["True", "minillm.study.diff"]
