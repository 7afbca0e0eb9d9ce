"""The gradient-check table passes and is complete; and what it checks holds for inputs drawn at random too."""

from __future__ import annotations

import collections
import math
import sys
import warnings

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import minillm
from minillm import losses, ops, random
from minillm.autograd import Op, Tensor
from minillm.errors import InputError
from minillm.grad_mode import quiet
from minillm.models import bart, bert, distilbert, heads, roberta, xlnet
from minillm.study.cases import CASES, Case
from minillm.study.cases.recipes import VIEWS, apart, apart_from_each_other, normal, positive
from minillm.study.gradcheck import run_case, run_cases, without_a_row
from minillm.testing import GradientError, check_gradients

WITH_ROWS = {case.op for case in CASES}
NAMES = [op.name for op in ops.OPS if op.name in WITH_ROWS]  # test_every_op_has_a_row tells of the others
BY_NAME = {op.name: op for op in ops.OPS}
COMPOSED = sorted(WITH_ROWS - BY_NAME.keys())  # functions made of operations


@pytest.fixture
def plain():
    """The plain engine, where the backward of an Op is the one that runs."""
    with minillm.engine("plain"):
        yield


@pytest.fixture(autouse=True)
def stream():
    """The dropout cases restart the default stream; leave it as it was."""
    place = random.default.state()
    yield
    random.default.set_state(place)


# --- the table -----------------------------------------------------------------------------------------------------


PAIRS = [("plain", name) for name in NAMES + COMPOSED]
PAIRS += [("fast", name) for name in NAMES if BY_NAME[name].pair("fast")] + [("fast", name) for name in COMPOSED]


@pytest.mark.parametrize(("engine", "op"), PAIRS)
def test_every_case_passes(engine, op):
    """With variants of the arguments in every case; `minillm gradcheck` tries them in some."""
    with minillm.engine(engine):
        results = [run_case(case) for case in CASES if case.op == op]
    assert sum(result.variants - result.skipped for result in results) > 20
    for result in results:
        assert result.passed, f"{result.case}: {result.report}"
        assert result.error <= 1e-6
        assert result.seconds > 0
    assert sum(result.elements for result in results) > 0


def test_every_op_has_a_row():
    missing = [op for op in ops.OPS if op.name not in WITH_ROWS]
    assert not missing, "\n".join(str(without_a_row(op).report) for op in missing)
    files = (losses, heads, bert, roberta, distilbert, xlnet, bart)
    names = {name.removesuffix("Simple") for file in files for name in vars(file)}
    assert {*COMPOSED} <= names, {*COMPOSED} - names


def test_every_loss_of_pairs_has_a_row():
    assert {case.name for case in CASES if case.op == "preference_loss"} == {*losses.PREFERENCE_LOSSES}


def test_every_op_that_the_modules_define_is_in_the_list():
    defined = {
        value.name: value
        for name, module in list(sys.modules.items())  # ops.gelu is a function and hides its module
        if name.startswith("minillm.ops.")
        for value in vars(module).values()
        if isinstance(value, Op)
    }
    defined.pop("to", None)  # it moves and computes nothing; see tests/ops/test_shape.py
    defined.pop("vocabulary_cross_entropy", None)  # it needs ranks; see tests/parallel/test_tensor_parallel.py
    missing = [f"{op.name.upper()} ({op.name})" for name, op in defined.items() if BY_NAME.get(name) is not op]
    assert not missing, f"add to OPS in minillm/ops/__init__.py: {', '.join(missing)}"
    assert len(BY_NAME) == len(ops.OPS)


def test_every_case_runs_its_op():
    for case in (case for case in CASES if case.op in BY_NAME):
        nodes = graph_of(case)
        assert case.op in {node.op.name for node in nodes}, f"{case.op}, {case.name}"


def test_every_case_has_its_own_name():
    assert not [key for key, n in collections.Counter((case.op, case.name) for case in CASES).items() if n > 1]


def test_every_op_is_checked_on_views():
    for op in NAMES:
        kinds = {view for view in VIEWS for case in CASES if case.op == op and view in case.name}
        assert kinds == set(VIEWS), f"in minillm/study/cases/, yield from in_views for {op} too"


def test_views_are_what_they_say():
    x = np.arange(12.0).reshape(3, 4)
    for name, view in VIEWS.items():
        np.testing.assert_array_equal(view(x), x)
        assert not view(x).flags.c_contiguous, name
    assert VIEWS["reversed in memory"](x).strides[-1] < 0
    assert VIEWS["every other element"](x).strides[-1] == 16


@pytest.mark.usefixtures("plain")
def test_a_wrong_backward_fails_its_cases_and_no_other(monkeypatch):
    right = BY_NAME["tanh"].backward
    monkeypatch.setattr(BY_NAME["tanh"], "backward", lambda dout, saved: (-right(dout, saved)[0],))
    results = {result.case: result for result in run_cases(["tanh", "exp"]) if result.op == "tanh"}
    assert not results["matrix"].passed
    assert "the sign is flipped" in results["matrix"].report
    assert results["matrix"].report.startswith("GradientError: check_gradients:")
    assert results["matrix"].error == math.inf
    assert results["empty"].passed
    assert all(result.passed for result in run_cases(["exp"]))


@pytest.mark.usefixtures("plain")
def test_variants_are_tried_in_three_functions_of_each_operation():
    results = run_cases(["exp", "rope"])
    with_variants = [result.case for result in results if result.variants]
    assert with_variants[:1] == ["matrix"]
    assert len(with_variants) == 4  # exp is one function
    assert all(0 <= result.skipped < result.variants for result in results if result.variants)


def test_an_operation_without_a_row_fails_and_says_what_to_write(monkeypatch):
    planted = Op("planted", lambda x, weight, *, axis=0: (x, None), lambda dout, saved: (dout,))
    monkeypatch.setattr(ops, "OPS", (*ops.OPS, planted))
    [result] = run_cases(["planted"])
    assert not result.passed
    assert (
        "the table has no row for planted; write one in the file of its kind in minillm/study/cases/" in result.report
    )
    line = '    yield Case("planted", "matrix", lambda x, weight: ops.planted(x, weight), normal((3, 4), (3, 4)))'
    assert result.report.splitlines()[1] == line


def test_an_exception_in_a_case_is_a_result():
    result = run_case(Case("tanh", "broken", lambda x: 1 // 0, normal((2,))))
    assert not result.passed
    assert result.report == "ZeroDivisionError: integer division or modulo by zero"


def test_notes_of_the_engine_are_in_the_report():
    planted = Op("planted", lambda x: (x * 1, None), lambda dout, saved: 1 / 0)
    result = run_case(Case("planted", "broken", lambda x: planted(x), normal((2,))))
    assert "in the backward of planted -> (2,)" in result.report


def test_names_choose_and_unknown_names_are_refused():
    assert {result.op for result in run_cases(["exp", "rope"])} == {"exp", "rope"}
    with pytest.raises(InputError, match="gradcheck: there is no operation 'sofmax'; did you mean 'softmax'"):
        run_cases(["exp", "sofmax"])


def test_the_default_stream_goes_on_as_if_nothing_had_run():
    minillm.manual_seed(5)
    random.default.reserve(1000)
    before = random.default.state()
    run_cases(["dropout"])
    assert random.default.state() == before


# --- what the engine relies on, for every case ---------------------------------------------------------------------


def graph_of(case, dtype=np.float64) -> list:
    """All nodes of a case's graph, from the outputs to the inputs."""
    arrays = case.make_arrays(np.random.default_rng(0))
    inputs = [Tensor(x.astype(dtype), requires_grad=True) if x.dtype.kind == "f" else x for x in arrays]
    outs = case.fn(*inputs)
    nodes, stack = [], [y.node for y in (outs if isinstance(outs, tuple) else (outs,)) if y.node is not None]
    while stack:
        node = stack.pop()
        if node not in nodes:
            nodes.append(node)
            stack += [edge[0] for edge in node.edges if edge is not None and not isinstance(edge[0], Tensor)]
    return nodes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("engine", "op"), PAIRS)
def test_dtypes_stay(engine, op, dtype):
    """float32 stays float32, float64 stays float64: every output, every gradient of every backward, every leaf."""
    with minillm.engine(engine):
        check_dtypes(op, dtype)


def check_dtypes(op, dtype):
    rng = np.random.default_rng(0)
    gradients_seen = 0
    for case in CASES:
        if case.op != op:
            continue
        arrays = [x.astype(dtype) if x.dtype.kind == "f" else x for x in case.make_arrays(rng)]
        inputs = [Tensor(x, requires_grad=True) if x.dtype.kind == "f" else x for x in arrays]
        outs = case.fn(*inputs)
        outs = outs if isinstance(outs, tuple) else (outs,)
        for out in outs:
            assert out.dtype == dtype, f"output of {case.name}"
        for out in outs:
            out.backward(rng.normal(size=out.shape), keep_graph=True)
        for x in inputs:
            if isinstance(x, Tensor) and x.grad is not None:
                assert type(x.grad) is np.ndarray
                assert x.grad.dtype == dtype, f"gradient of {case.name}"
                gradients_seen += 1
        for node in graph_of(case, dtype):
            dout = tuple(rng.normal(size=shape).astype(dtype) for shape in node.output_shapes)
            with quiet():  # as the engine calls it
                gradients = node.backward(dout if node.multiple_outputs else dout[0], node.saved)
            for edge, gradient in zip(node.edges, gradients, strict=True):
                assert edge is None or gradient.dtype == dtype, f"{node.op.name} in {case.name}"
    assert gradients_seen > 3


def write_into(dout):
    for one in dout if isinstance(dout, tuple) else (dout,):
        if one is not None:
            one *= 1.0


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("op", NAMES)
def test_a_backward_that_wrote_into_dout_would_be_found(op, monkeypatch):
    """The cases hand every backward a read-only dout; here each op in turn tries to write into it."""
    right = BY_NAME[op].backward

    def writes(dout, saved, *into):
        write_into(dout)
        return right(dout, saved, *into)

    monkeypatch.setattr(BY_NAME[op], "backward", writes)
    for result in run_cases([op]):
        assert "writes into dout" in result.report, result.case


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("op", [name for name in NAMES if BY_NAME[name].aliases])
def test_aliases_is_declared_only_where_gradients_share_memory(op, monkeypatch):
    """Without the flag, the audit of memory in some case must object."""
    monkeypatch.setattr(BY_NAME[op], "aliases", False)
    reports = [result.report for result in run_cases([op]) if not result.passed]
    assert reports
    assert all("declare the Op with aliases=True" in report for report in reports)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("op", [name for name in NAMES if not BY_NAME[name].aliases])
def test_a_gradient_that_shared_memory_would_be_found(op, monkeypatch):
    """Hand out the same gradient buffer as the op saved: the audit must object in every case with a gradient."""
    right_forward, right_backward = BY_NAME[op].forward, BY_NAME[op].backward
    kept: list = []

    def forward(*inputs, **settings):
        out, saved = right_forward(*inputs, **settings)
        return out, (saved, kept)

    def backward(dout, saved, *into):
        gradients = right_backward(dout, saved[0], *into)
        kept[:] = [g for g in gradients if g is not None]
        return gradients

    monkeypatch.setattr(BY_NAME[op], "forward", forward)
    monkeypatch.setattr(BY_NAME[op], "backward", backward)
    reports = [result.report or "" for result in run_cases([op])]
    caught = ["shares memory with what the forward saved" in report for report in reports]
    assert sum(caught) > len(caught) / 2  # not in cases whose arrays are empty, or have no axes


# --- drawn at random -----------------------------------------------------------------------------------------------

seeds = st.integers(0, 2**32 - 1)
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)
full_shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=3)
sizes = st.integers(0, 4)
LAYOUTS = [lambda x: x, *VIEWS.values()]


@st.composite
def drawn(draw, wanted, recipe=normal):
    """Arrays of these shapes, from one of the recipes of the table, each in a layout of its own."""
    arrays = recipe(*wanted)(np.random.default_rng(draw(seeds)))
    return [draw(st.sampled_from(LAYOUTS))(x) if x.ndim else x for x in arrays]


def one_operand(fn, recipe=normal):
    @st.composite
    def strategy(draw):
        return fn, draw(drawn([draw(shapes)], recipe))

    return strategy()


@st.composite
def with_bias(draw, fn):
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4))
    return fn, draw(drawn([shape, shape[-1:]]))


def two_operands(fn, recipe=normal):
    @st.composite
    def strategy(draw):
        wanted = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, min_side=0, max_dims=3, max_side=3))
        return fn, draw(drawn(wanted.input_shapes, recipe))

    return strategy()


@st.composite
def where_inputs(draw):
    wanted = draw(hnp.mutually_broadcastable_shapes(num_shapes=3, min_side=0, max_dims=3, max_side=3)).input_shapes
    condition = draw(hnp.arrays(bool, wanted[0]))
    return lambda x, y: ops.where(condition, x, y), draw(drawn(wanted[1:]))


@st.composite
def some_axes(draw, ndim):
    axes = draw(st.lists(st.integers(0, ndim - 1), unique=True, max_size=ndim))
    axes = tuple(axis - ndim * draw(st.booleans()) for axis in axes)
    return draw(st.sampled_from([None, axes, axes[0]] if axes else [None]))


def reduction(fn, recipe=apart):
    @st.composite
    def strategy(draw):
        shape = draw(full_shapes)
        axis, keep = draw(some_axes(len(shape))), draw(st.booleans())
        return lambda x: fn(x, axis, keep), draw(drawn([shape], recipe))

    return strategy()


@st.composite
def matmul_inputs(draw):
    signature = "(m?,k),(k,n?)->(m?,n?)"
    wanted = draw(hnp.mutually_broadcastable_shapes(signature=signature, min_side=0, max_side=3, max_dims=2))
    return lambda a, b: a @ b, draw(drawn(wanted.input_shapes))


@st.composite
def reshape_inputs(draw):
    shape = draw(shapes)
    wanted = draw(st.permutations(shape)) + [1] * draw(st.integers(0, 2))
    if draw(st.booleans()) and 0 not in wanted and wanted:
        wanted[draw(st.integers(0, len(wanted) - 1))] = -1
    return lambda x: x.reshape(*wanted), draw(drawn([shape]))


@st.composite
def transpose_inputs(draw):
    shape = draw(shapes)
    order = draw(st.permutations(range(len(shape))))
    return lambda x: x.permute(tuple(order)), draw(drawn([shape]))


@st.composite
def getitem_inputs(draw):
    shape = draw(full_shapes)
    key = draw(
        st.one_of(
            hnp.basic_indices(shape, allow_newaxis=True),
            hnp.integer_array_indices(
                shape, result_shape=hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3)
            ),
            hnp.arrays(bool, shape[: draw(st.integers(1, len(shape)))]),
        )
    )
    return lambda x: x[key], draw(drawn([shape]))


@st.composite
def index_select_inputs(draw):
    shape = draw(full_shapes)
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    ids = hnp.arrays(
        int, hnp.array_shapes(min_dims=0, max_dims=2, min_side=0), elements=st.integers(0, shape[axis] - 1)
    )
    index = draw(ids)
    return lambda x: x.index_select(axis, index), draw(drawn([shape]))


@st.composite
def placed_inputs(draw, fn, inputs, distinct=False):
    """An axis and an index of x's number of axes, no larger than x but along that axis; `fn(x, axis, index, y)`."""
    shape = draw(full_shapes)
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    index_shape = [draw(st.integers(0, n)) for n in shape]
    size = shape[axis]
    index_shape[axis] = draw(st.integers(0, size if distinct else 4))
    rng = np.random.default_rng(draw(seeds))
    index = rng.integers(0, size, index_shape)
    if distinct:
        orders = np.argsort(
            rng.random([size if i == axis % len(shape) else n for i, n in enumerate(index_shape)]), axis
        )
        index = np.take(orders, range(index_shape[axis]), axis)
    return lambda x, *y: fn(x, axis, index, *y), draw(drawn([shape, index.shape][:inputs]))


@st.composite
def einsum_inputs(draw):
    letters = "abcd"
    count = draw(st.integers(1, 3))
    terms = ["".join(draw(st.lists(st.sampled_from(letters), max_size=3))) for _ in range(count)]
    used = sorted(set("".join(terms)))
    out = "".join(draw(st.permutations(used))[: draw(st.integers(0, len(used)))])
    size = {letter: draw(sizes) for letter in letters}
    wanted = [tuple(size[letter] for letter in term) for term in terms]
    return lambda *xs: ops.einsum(f"{','.join(terms)}->{out}", *xs), draw(drawn(wanted))


@st.composite
def clip_inputs(draw):
    wanted = draw(hnp.mutually_broadcastable_shapes(num_shapes=3, min_side=0, max_dims=3, max_side=2)).input_shapes
    return ops.clip, list(apart_from_each_other(*wanted)(np.random.default_rng(draw(seeds))))


@st.composite
def two_apart(draw, fn):
    wanted = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, min_side=0, max_dims=3, max_side=3)).input_shapes
    recipe = apart_from_each_other(*wanted)
    return fn, list(recipe(np.random.default_rng(draw(seeds))))


@st.composite
def roll_inputs(draw):
    shape = draw(full_shapes)
    axes = draw(st.lists(st.integers(-len(shape), len(shape) - 1), max_size=3))
    shifts = [draw(st.integers(-5, 5)) for _ in axes]
    return lambda x: x.roll(shifts, axes), draw(drawn([shape]))


@st.composite
def pad_inputs(draw):
    shape = draw(full_shapes)
    widths = [draw(st.integers(-(n // 2), 3)) for n in reversed(shape) for _ in range(2)]
    widths = widths[: 2 * draw(st.integers(0, len(shape)))]
    return lambda x: ops.pad(x, widths, value=1.5), draw(drawn([shape]))


@st.composite
def triangle_inputs(draw, fn):
    shape, k = draw(hnp.array_shapes(min_dims=2, max_dims=3, min_side=0, max_side=3)), draw(st.integers(-3, 3))
    return lambda x: fn(x, k), draw(drawn([shape]))


@st.composite
def concat_inputs(draw):
    shape = list(draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3)))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    lengths = draw(st.lists(sizes, min_size=1, max_size=3))
    wanted = [tuple(n if i == axis % len(shape) else size for i, size in enumerate(shape)) for n in lengths]
    return lambda *xs: ops.concat(xs, axis), draw(drawn(wanted))


@st.composite
def stack_inputs(draw):
    shape = draw(shapes)
    axis = draw(st.integers(-len(shape) - 1, len(shape)))
    return lambda *xs: ops.stack(xs, axis), draw(drawn([shape] * draw(st.integers(1, 3))))


@st.composite
def split_inputs(draw):
    lengths = draw(st.lists(sizes, min_size=1, max_size=4))
    shape = list(draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3)))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    shape[axis] = sum(lengths)
    cut = draw(st.one_of(st.just(lengths), st.integers(1, 3)))
    used = draw(st.integers(1, len(lengths)))
    return lambda x: x.split(cut, axis)[:used], draw(drawn([tuple(shape)]))


@st.composite
def broadcast_inputs(draw):
    wanted = draw(hnp.mutually_broadcastable_shapes(num_shapes=1, base_shape=draw(shapes), min_side=0, max_side=3))
    return lambda x: x.broadcast_to(wanted.result_shape), draw(drawn(wanted.input_shapes))


def over_an_axis(fn):
    @st.composite
    def strategy(draw):
        shape = draw(full_shapes)
        axis = draw(st.integers(-len(shape), len(shape) - 1))
        return lambda x: fn(x, axis), draw(drawn([shape]))

    return strategy()


@st.composite
def norm_inputs(draw, fn, vectors, large=1, least=1):
    lead, channels = draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3)), draw(st.integers(least, 5))
    eps = draw(st.floats(0.1, 2))
    return lambda *inputs: fn(*inputs, eps=eps), draw(drawn([(*lead, channels)] * large + [(channels,)] * vectors))


@st.composite
def linear_inputs(draw):
    lead, inner, outer = (
        draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3)),
        draw(sizes),
        draw(sizes),
    )
    bias = [(outer,)] * draw(st.integers(0, 1))
    return lambda x, weight, bias=None: ops.linear(x, weight, bias), draw(
        drawn([(*lead, inner), (outer, inner), *bias])
    )


def frozen(linear):
    """The same layer with a weight and a bias that need no gradient."""
    fn, (x, *weights) = linear
    return lambda x: fn(x, *weights), [x]


@st.composite
def low_rank_inputs(draw):
    lead = draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3))
    inner, outer, rank, start, after = (draw(sizes) for _ in range(5))
    shapes = [(*lead, start + outer + after), (*lead, inner), (rank, inner), (outer, rank)]
    return lambda y, x, a, b: ops.add_low_rank(y, x, a, b, 0.5, start), draw(drawn(shapes))


@st.composite
def embedding_inputs(draw):
    rows, channels = draw(st.integers(1, 4)), draw(sizes)
    ids = draw(hnp.arrays(int, hnp.array_shapes(min_dims=0, max_dims=2, min_side=0), elements=st.integers(0, rows - 1)))
    return lambda weight: ops.embedding(ids, weight), draw(drawn([(rows, channels)]))


@st.composite
def rope_inputs(draw):
    lead, length = draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=2)), draw(sizes)
    pairs, start = draw(st.integers(1, 3)), draw(st.integers(0, 1000))
    tables = ops.rope_table(length, 2 * pairs, start=start)
    layout = draw(st.sampled_from(["half", "interleaved"]))
    return lambda x: ops.rope(x, *tables, layout), draw(drawn([(*lead, length, 2 * pairs)]))


@st.composite
def dropout_inputs(draw):
    seed, p = draw(seeds), draw(st.floats(1e-6, 0.95))

    def fn(x):
        minillm.manual_seed(seed)
        return ops.dropout(x, p)

    return fn, draw(drawn([draw(shapes)]))


@st.composite
def attention_inputs(draw):
    batch, groups, per_group = draw(st.integers(0, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    queries, keys, channels = draw(sizes), draw(sizes), draw(st.integers(1, 3))
    causal, seed = draw(st.booleans()), draw(seeds)
    p = draw(st.sampled_from([0.0, 0.3]))
    scale = draw(st.sampled_from([None, 0.7]))
    full = (batch, groups * per_group, queries, keys)
    mask_shape = tuple(draw(st.sampled_from([1, size])) for size in full)[draw(st.integers(0, 3)) :]
    visible = np.random.default_rng(seed).random(mask_shape) < 0.7
    bias = np.random.default_rng(seed).normal(size=mask_shape)
    mask = draw(st.sampled_from([None, visible, bias, np.where(visible, bias, -np.inf)]))

    def fn(q, k, v):
        minillm.manual_seed(seed)
        return ops.attention(q, k, v, causal, mask, scale=scale, dropout_p=p)

    kv = (batch, groups, keys, channels)
    return fn, draw(drawn([(batch, groups * per_group, queries, channels), kv, kv]))


@st.composite
def cross_entropy_inputs(draw):
    lead, classes = draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4)), draw(st.integers(1, 5))
    targets = draw(hnp.arrays(int, lead, elements=st.one_of(st.just(-1), st.integers(0, classes - 1))))
    settings = {
        "ignore_index": -1,
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])),
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
    }
    return lambda logits: ops.cross_entropy(logits, targets, **settings, dim=-1), draw(drawn([(*lead, classes)]))


DRAWN = {
    "add": two_operands(lambda x, y: x + y),
    "sub": two_operands(lambda x, y: x - y),
    "mul": two_operands(lambda x, y: x * y),
    "div": two_operands(lambda x, y: x / y, positive),
    "pow": two_operands(lambda x, y: x**y, positive),
    "remainder": two_operands(lambda x, y: (3.5 + 0.1 * x) % (1 + 0.01 * y), positive),  # quotients of 3.4 to 3.7
    "neg": one_operand(ops.neg),
    "exp": one_operand(ops.exp),
    "log": one_operand(ops.log, positive),
    "sqrt": one_operand(ops.sqrt, positive),
    "tanh": one_operand(ops.tanh),
    "sigmoid": one_operand(ops.sigmoid),
    "relu": one_operand(ops.relu, apart),
    "where": where_inputs(),
    "clip": st.one_of(one_operand(lambda x: x.clip(-0.4, 0.3), apart), clip_inputs()),
    "abs": one_operand(ops.abs, apart),
    **{name: one_operand(getattr(ops, name), apart) for name in ("sign", "floor", "ceil", "round", "trunc")},
    **{name: one_operand(getattr(ops, name)) for name in ("sin", "cos", "expm1", "erf", "softplus")},
    **{name: one_operand(getattr(ops, name), positive) for name in ("log2", "log10", "log1p")},
    "maximum": two_apart(ops.maximum),
    "minimum": two_apart(ops.minimum),
    "prod": reduction(ops.prod, positive),
    "cumsum": over_an_axis(ops.cumsum),
    "cumprod": over_an_axis(ops.cumprod),
    "var": reduction(lambda x, axis, keep: ops.var(x, axis, correction=0, keepdim=keep)),
    "std": reduction(lambda x, axis, keep: ops.std(ops.concat([x, x + 1]), axis, correction=0, keepdim=keep)),
    "norm": reduction(lambda x, axis, keep: ops.norm(x, 3, axis, keep)),
    "logsumexp": reduction(ops.logsumexp),
    "einsum": einsum_inputs(),
    "gather": placed_inputs(ops.gather, 1),
    "scatter": placed_inputs(ops.scatter, 2, distinct=True),
    "scatter_add": placed_inputs(ops.scatter_add, 2),
    "clone": one_operand(ops.clone),
    "roll": roll_inputs(),
    "pad": pad_inputs(),
    "tril": triangle_inputs(ops.tril),
    "triu": triangle_inputs(ops.triu),
    "sum": reduction(ops.sum),
    "mean": reduction(ops.mean),
    "amax": reduction(ops.amax),
    "amin": reduction(ops.amin),
    "matmul": matmul_inputs(),
    "reshape": reshape_inputs(),
    "transpose": transpose_inputs(),
    "getitem": getitem_inputs(),
    "index_select": index_select_inputs(),
    "concat": concat_inputs(),
    "stack": stack_inputs(),
    "split": split_inputs(),
    "broadcast": broadcast_inputs(),
    "gelu": st.one_of(
        one_operand(ops.gelu),
        one_operand(lambda x: ops.gelu(x, "tanh")),
    ),
    "bias_gelu": st.one_of(with_bias(ops.bias_gelu), with_bias(lambda x, bias: ops.bias_gelu(x, bias, "tanh"))),
    "silu": one_operand(ops.silu),
    "swiglu": shapes.flatmap(lambda shape: drawn([shape, shape])).map(lambda arrays: (ops.swiglu, arrays)),
    "rope": rope_inputs(),
    "linear": linear_inputs(),
    "frozen_linear": linear_inputs().map(frozen),
    "add_low_rank": low_rank_inputs(),
    "embedding": embedding_inputs(),
    "softmax": over_an_axis(ops.softmax),
    "log_softmax": over_an_axis(ops.log_softmax),
    "layernorm": st.integers(1, 2).flatmap(lambda vectors: norm_inputs(ops.layer_norm, vectors)),
    "add_layernorm": st.integers(1, 2).flatmap(lambda vectors: norm_inputs(ops.add_layer_norm, vectors, large=2)),
    # A row of one number has the RMS norm 1 or -1, and a gradient whose terms cancel: float32 leaves their rounding.
    "rmsnorm": norm_inputs(ops.rms_norm, 1, least=2),
    "dropout": dropout_inputs(),
    "attention": attention_inputs(),
    "cross_entropy": cross_entropy_inputs(),
}


def test_every_op_is_drawn():
    missing = sorted(set(NAMES) - set(DRAWN))
    assert not missing, f"add to DRAWN in tests/study/test_gradcheck.py a recipe for: {', '.join(missing)}"
    assert set(DRAWN) == set(NAMES)


@pytest.mark.parametrize("op", DRAWN)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_gradients_of_drawn_inputs(op, data):
    fn, arrays = data.draw(DRAWN[op])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_gradients(fn, *arrays)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("op", ["add", "matmul", "softmax", "attention"])
def test_drawn_inputs_find_a_planted_fault(op, monkeypatch):
    right = BY_NAME[op].backward

    def wrong(dout, saved):
        first, *rest = right(dout, saved)
        return (first * 1.01, *rest)

    monkeypatch.setattr(BY_NAME[op], "backward", wrong)

    @settings(max_examples=50, deadline=None, database=None, phases=[Phase.generate])
    @given(DRAWN[op])
    def check(drawn):
        check_gradients(drawn[0], *drawn[1])

    with pytest.raises((GradientError, ExceptionGroup)):
        check()
