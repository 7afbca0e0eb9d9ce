"""How work is cut: every range is covered once, threads and blocks change nothing, errors come through."""

from __future__ import annotations

import gc
import os
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm import backend, ops, random
from minillm.autograd import Tensor
from minillm.backend import Cutting
from minillm.fast import attention as fast_attention
from minillm.fast import silu as fast_silu
from minillm.study.cases import CASES
from minillm.study.gradcheck import run_cases


@pytest.fixture
def three_threads(monkeypatch):
    monkeypatch.setattr(backend, "cutting", backend.cutting._replace(threads=3))


@pytest.fixture
def finely_cut(monkeypatch):
    """Blocks and threads on arrays of a few elements: a block is a row or two, everything goes to the pool."""
    monkeypatch.setattr(backend, "CACHE_BYTES", 64)
    monkeypatch.setattr(backend, "cutting", Cutting(2, 1, parallel_bytes=0, parallel_flops=0))
    monkeypatch.setattr(fast_attention, "QUERY_BLOCK", 2)
    monkeypatch.setattr(fast_attention, "SCORE_BYTES", 64)


# --- parallel ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1, 5))
def test_ranges_cover_everything_once(count, threads):
    before, backend.cutting = backend.cutting, backend.cutting._replace(threads=threads)
    try:
        ranges = []
        backend.parallel(lambda start, stop: ranges.append((start, stop)), count)
    finally:
        backend.cutting = before
    ranges.sort()
    assert [i for start, stop in ranges for i in range(start, stop)] == list(range(count))
    assert len(ranges) == max(1, min(threads, count))
    lengths = [stop - start for start, stop in ranges]
    assert max(lengths) - min(lengths) <= 1


def test_every_range_has_a_thread_and_the_caller_takes_one(three_threads):
    together = threading.Barrier(3, timeout=10)
    seen = []

    def work(start, stop):
        together.wait()  # passes only if three threads are here at once
        seen.append(threading.get_ident())

    backend.parallel(work, 3)
    assert len(set(seen)) == 3
    assert threading.get_ident() in seen


def test_parallel_waits_for_all(three_threads):
    done = []
    slow = threading.Event()

    def work(start, stop):
        if start == 0:
            slow.set()
        else:
            assert slow.wait(10)
        done.append(start)

    backend.parallel(work, 3)
    assert sorted(done) == [0, 1, 2]


@pytest.mark.parametrize("failing", [{0}, {1}, {2}, {1, 2}, {0, 1, 2}])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_exception_in_any_range_surfaces_after_all_have_ended(three_threads, failing, kind):
    ended = []

    def work(start, stop):
        try:
            if start in failing:
                raise kind(f"from {start}")
        finally:
            ended.append(start)

    with pytest.raises(kind, match=r"from [012]") as caught:
        backend.parallel(work, 3)
    assert sorted(ended) == [0, 1, 2]
    if 0 in failing:
        assert str(caught.value) == "from 0"
    ranges = []
    backend.parallel(lambda start, stop: ranges.append(start), 3)  # the pool works on
    assert sorted(ranges) == [0, 1, 2]


def test_an_exception_in_a_worker_surfaces_through_an_operation(finely_cut, monkeypatch):
    def fails_off_the_main_thread(x, y, slope):
        if threading.current_thread() is not threading.main_thread():
            raise FloatingPointError("in a worker")

    monkeypatch.setattr(fast_silu, "value_and_slope", fails_off_the_main_thread)
    with pytest.raises(FloatingPointError, match="in a worker"):
        ops.silu(Tensor(np.ones((4, 4))))


def test_parallel_within_parallel_runs_inline(three_threads):
    seen = []

    def inner(start, stop):
        seen.append((threading.get_ident(), start, stop))

    def outer(start, stop):
        before = len([one for one in seen if one[0] == threading.get_ident()])
        backend.parallel(inner, 7)
        mine = [one for one in seen if one[0] == threading.get_ident()]
        assert mine[before:] == [(threading.get_ident(), 0, 7)]

    backend.parallel(outer, 3)
    assert len(seen) == 3


def test_a_second_caller_does_not_wait_for_the_pool(three_threads):
    entered, leave, ranges = threading.Event(), threading.Event(), []

    def hold(start, stop):
        entered.set()
        assert leave.wait(10)

    holder = threading.Thread(target=backend.parallel, args=(hold, 3))
    holder.start()
    try:
        assert entered.wait(10)
        backend.parallel(lambda start, stop: ranges.append((start, stop)), 5)
    finally:
        leave.set()
        holder.join()
    assert ranges == [(0, 5)]


def test_workers_keep_nothing_alive(three_threads):
    gc.disable()
    try:
        array = np.ones(10)
        reference = weakref.ref(array)
        backend.parallel(lambda start, stop, array=array: array.sum(), 3)
        del array
        assert reference() is None
    finally:
        gc.enable()


def test_one_thread_stays_on_the_calling_thread(monkeypatch):
    monkeypatch.setattr(backend, "cutting", backend.cutting._replace(threads=1))
    seen = []
    backend.parallel(lambda start, stop: seen.append((start, stop, threading.get_ident())), 9)
    assert seen == [(0, 9, threading.get_ident())]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_makes_its_own_threads(three_threads):
    backend.parallel(lambda start, stop: None, 3)  # the parent's pool exists
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            ranges = []
            backend.parallel(lambda start, stop: ranges.append(start), 3)
            os.write(write, bytes(sorted(ranges)))
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() == bytes([0, 1, 2])
    os.waitpid(child, 0)


# --- row blocks ----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 50), st.integers(0, 500), st.integers(1, 3), st.sampled_from([64, 1000]), st.booleans())
def test_blocks_cover_all_rows_once_and_fit_the_cache(rows, row_bytes, threads, cache, always_parallel):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "cutting", backend.cutting._replace(threads=threads))
        patch.setattr(backend, "CACHE_BYTES", cache)
        patch.setattr(backend, "cutting", backend.cutting._replace(parallel_bytes=0 if always_parallel else 10**9))
        blocks = []
        backend.row_blocks(blocks.append, np.empty((rows, row_bytes), np.uint8))
    blocks.sort(key=lambda block: block.start)
    assert [i for block in blocks for i in range(rows)[block]] == list(range(rows))
    for block in blocks:
        assert (block.stop - block.start) * row_bytes <= max(cache, row_bytes)


def test_small_arrays_stay_on_the_calling_thread(three_threads):
    seen = set()
    backend.row_blocks(lambda rows: seen.add(threading.get_ident()), np.empty((100, 8), np.uint8))
    assert seen == {threading.get_ident()}


def test_large_arrays_use_every_thread(three_threads):
    together = threading.Barrier(3, timeout=10)
    first = threading.local()

    def block(rows):
        if not hasattr(first, "seen"):
            first.seen = True
            together.wait()

    backend.row_blocks(block, np.empty((3000, backend.cutting.parallel_bytes // 1000), np.uint8))


@pytest.mark.parametrize("shape", [(1,), (7,), (1, 1), (3, 65), (2, 0, 4), (0, 3), (2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_row_max(shape, dtype, rng):
    x = rng.normal(size=shape).astype(dtype)
    x[x > 1] = np.inf
    np.testing.assert_array_equal(backend.row_max(x), x.max(axis=-1, keepdims=True))
    x.reshape(-1)[::3] = np.nan
    np.testing.assert_array_equal(backend.row_max(x), x.max(axis=-1, keepdims=True))
    if min(shape):
        np.testing.assert_array_equal(backend.row_max(x.T), x.T.max(axis=-1, keepdims=True))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rows", [0, 1, 7, 64])
def test_sums_over_blocks_are_the_sums(rows, threads, monkeypatch, rng):
    monkeypatch.setattr(backend, "cutting", backend.cutting._replace(threads=threads))
    monkeypatch.setattr(backend, "CACHE_BYTES", 64)
    monkeypatch.setattr(backend, "cutting", backend.cutting._replace(parallel_bytes=0))
    x = rng.normal(size=(rows, 5))

    def sums(block):
        return x[block].sum(axis=0), (x[block] ** 2).sum(axis=0)

    first, second = backend.sum_over_blocks(sums, x)
    np.testing.assert_allclose(first, x.sum(axis=0), atol=1e-13)
    np.testing.assert_allclose(second, (x**2).sum(axis=0), atol=1e-13)
    again = backend.sum_over_blocks(sums, x)
    np.testing.assert_array_equal(again[0], first)  # always in the order of the rows


@pytest.mark.parametrize("shape", [(1300, 100), (700, 300), (7, 50_000), (3000, 333)])
def test_sums_over_blocks_are_the_same_bits_however_work_is_cut(shape, monkeypatch, rng):
    """On 520 KB to 4 MB, around every size at which something changes."""
    x = rng.normal(size=shape).astype(np.float32)
    results = []
    for cutting in (Cutting(1), Cutting(2), Cutting(3, 1), Cutting(2, 2, 10**9), Cutting(5, 1, 0, 0)):
        monkeypatch.setattr(backend, "cutting", cutting)
        results.append(backend.sum_over_blocks(lambda rows: (x[rows].sum(axis=0, dtype=np.float32),), x)[0])
    for result in results:
        np.testing.assert_array_equal(result, results[0])
    np.testing.assert_allclose(results[0], x.sum(axis=0, dtype=np.float64), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("size", "count"),
    [(0, 1), (1, 1), (512 * 1024 - 1, 1), (512 * 1024, 2), (1536 * 1024, 2), (1536 * 1024 + 1, 4), (10 << 20, 16)],
)
def test_the_size_of_an_array_says_in_how_many_blocks_it_is_summed(size, count):
    assert backend.sum_blocks(size) == count


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((), (1, 1)),
        ((3,), (1, 3)),
        ((2, 3), (2, 3)),
        ((2, 3, 4), (6, 4)),
        ((0, 3), (0, 3)),
        ((2, 3, 0), (6, 0)),
        ((0,), (1, 0)),
    ],
)
def test_as_rows(shape, expected):
    x = np.zeros(shape)
    rows = backend.as_rows(x)
    assert rows.shape == expected
    if x.size:
        rows[...] = 1
        assert x.sum() == x.size  # a view


def test_as_rows_copies_what_no_view_can_show():
    x = np.arange(24.0).reshape(4, 3, 2).transpose(1, 0, 2)
    np.testing.assert_array_equal(backend.as_rows(x), x.copy().reshape(12, 2))


# --- matrix products -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shapes",
    [((7, 3), (3, 5)), ((2, 3), (3, 50)), ((50, 3), (3, 2)), ((1, 1), (1, 1)), ((0, 3), (3, 2)), ((2, 0), (0, 3))],
)
@pytest.mark.parametrize("given_out", [False, True])
def test_matmul_cut_over_threads(shapes, given_out, finely_cut, rng):
    a, b = (rng.normal(size=shape) for shape in shapes)
    out = np.full((a.shape[0], b.shape[1]), np.nan) if given_out else None
    bias, start = rng.normal(size=b.shape[1]), rng.normal(size=(a.shape[0], b.shape[1]))
    total = start.copy()
    products = [
        backend.Product(a, b, out),
        backend.Product(b.T, a.T),
        backend.Product(a, b, bias=bias),
        backend.Product(b.T, a.T, bias=start[:, 0]),
        backend.Product(a, b, total, add=True),
    ]
    results = backend.matmuls(*products)
    expected = [a @ b, (a @ b).T, a @ b + bias, (a @ b).T + start[:, 0], start + a @ b]
    for result, right in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, right, rtol=1e-13, atol=1e-13)
    assert out is None or results[0] is out
    assert results[4] is total
    np.testing.assert_allclose(backend.matmul(a, b), a @ b, rtol=1e-13, atol=1e-13)


def test_matmul_keeps_and_promotes_dtypes(finely_cut):
    single, double = np.ones((2, 3), np.float32), np.ones((3, 2))
    assert backend.matmul(single, single.T).dtype == np.float32
    assert backend.matmul(single, double).dtype == np.float64


def test_matmul_is_left_whole_while_the_blas_has_its_threads(monkeypatch, rng):
    monkeypatch.setattr(backend, "cutting", backend.cutting._replace(parallel_flops=0))
    monkeypatch.setattr(backend, "parallel", None)  # calling it would fail
    a = rng.normal(size=(4, 4))
    np.testing.assert_array_equal(backend.matmul(a, a), a @ a)
    monkeypatch.setattr(backend, "cutting", backend.cutting._replace(blas_threads=1, parallel_flops=1e9))
    np.testing.assert_array_equal(backend.matmul(a, a), a @ a)


# --- operations on threads and in blocks ---------------------------------------------------------------------------


def results_of(case) -> list[np.ndarray]:
    arrays = case.make_arrays(np.random.default_rng(0))
    inputs = [Tensor(x, requires_grad=True) if x.dtype.kind == "f" else x for x in arrays]
    outs = case.fn(*inputs)
    outs = outs if isinstance(outs, tuple) else (outs,)
    for i, out in enumerate(outs):
        if out.requires_grad:
            out.backward(np.random.default_rng(i).normal(size=out.shape), keep_graph=True)
    return [*(out.data for out in outs), *(x.grad for x in inputs if isinstance(x, Tensor) and x.grad is not None)]


@pytest.mark.parametrize("op", [op.name for op in ops.OPS])
def test_threads_and_blocks_change_nothing(op, request):
    place = random.default.state()
    cases = [case for case in CASES if case.op == op]
    assert cases, f"write a row for {op} in minillm/study/cases/"
    whole = [results_of(case) for case in cases]
    request.getfixturevalue("finely_cut")
    for case, expected in zip(cases, whole, strict=True):
        for a, b in zip(results_of(case), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12, err_msg=case.name)
    random.default.set_state(place)


CUT = {
    *("gelu", "bias_gelu", "silu", "swiglu", "softmax", "log_softmax", "layernorm", "rmsnorm", "cross_entropy"),
    *("linear", "matmul", "attention", "dropout"),
}


@pytest.mark.parametrize("op", sorted(CUT))
def test_gradients_hold_in_blocks_and_on_threads(op, finely_cut, monkeypatch):
    calls, right = [], backend._share

    def counted(function, count):
        calls.append(count)
        right(function, count)

    monkeypatch.setattr(backend, "_share", counted)
    for result in run_cases([op]):
        assert result.passed, f"{result.case}: {result.report}"
    assert max(calls) > 1 or op == "dropout"  # whose chunk is larger than any case


def test_dropout_on_threads(monkeypatch, rng):
    x = rng.normal(size=(50, 1000))
    results = []
    for threads in (1, 2):
        monkeypatch.setattr(backend, "cutting", backend.cutting._replace(threads=threads, parallel_bytes=0))
        random.manual_seed(3)
        leaf = Tensor(x, requires_grad=True)
        y = ops.dropout(leaf, 0.3)
        y.backward(np.ones(x.shape))
        results.append((y.data, leaf.grad))
    np.testing.assert_array_equal(results[0], results[1])


# --- the number of threads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "expected"), [("1", 1), ("7", 7)])
def test_the_environment_sets_the_number_of_threads(value, expected, monkeypatch):
    monkeypatch.setenv("MINILLM_THREADS", value)
    assert backend.thread_count() == expected


def test_by_default_there_is_one_thread_for_each_core(monkeypatch):
    monkeypatch.delenv("MINILLM_THREADS", raising=False)
    assert 1 <= backend.thread_count() <= os.cpu_count()


@pytest.mark.parametrize("value", ["0", "-1", "two", "", "1.5"])
def test_a_number_of_threads_that_is_none(value, monkeypatch):
    monkeypatch.setenv("MINILLM_THREADS", value)
    with pytest.warns(UserWarning, match=f"MINILLM_THREADS is '{value}'; set it to a number of threads, 1 or more"):
        assert 1 <= backend.thread_count() <= os.cpu_count()


# --- abstract work, and products observed --------------------------------------------------------------------------


def test_abstract_work_takes_its_memory_and_does_a_block(finely_cut):
    x = np.zeros((40, 16), np.float32)  # a row is a block
    rows, parts = [], []
    with backend.abstract():
        backend.row_blocks(rows.append, x)
        backend.parallel(lambda start, stop: parts.append((start, stop)), 40)
        assert backend.blocks_to_run([1, 2, 3]) == [3]
    assert sorted(block.start for block in rows) == [0, 20]  # the first of each thread
    assert sorted(parts) == [(0, 1), (1, 2)]
    assert backend.blocks_to_run([1, 2, 3]) == [1, 2, 3]


def test_abstract_products_have_their_shapes_and_are_not_made(rng):
    a, b, stack = rng.normal(size=(5, 3)), rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(2, 1, 3, 7))
    out = np.full((5, 4), 7.0)
    with backend.abstract():
        alone, written, added = backend.matmuls(
            backend.Product(a, b), backend.Product(a, b, out), backend.Product(a, b, out, add=True)
        )
        stacked = backend.matmul(np.ones((4, 5, 3), np.float32), stack)
    assert (alone.shape, alone.dtype) == ((5, 4), np.float64)
    assert (stacked.shape, stacked.dtype) == ((2, 4, 5, 7), np.float64)
    assert written is out
    assert added is out
    assert (out == 7).all()
    np.testing.assert_allclose(backend.matmul(a, b), a @ b)


def test_threads_that_are_handed_work_are_abstract_and_others_are_not(three_threads, rng):
    a = np.full((2, 3), np.nan)
    made, elsewhere = [], []

    def other_thread():
        elsewhere.append(backend.blocks_to_run([1, 2]))

    with backend.abstract():
        backend.parallel(lambda start, stop: made.append(backend.blocks_to_run([1, 2])), 3)
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
    assert made == [[2]] * 3
    assert elsewhere == [[1, 2]]
    assert np.isnan(backend.matmul(a, a.T)).all()


def test_observed_products_are_those_of_each_call(rng):
    a, b = rng.normal(size=(5, 3)), rng.normal(size=(3, 4))
    seen, inner = [], []
    with backend.observe_products(lambda products: seen.append([(p.a.shape, p.b.shape, p.add) for p in products])):
        backend.matmul(a, b)
        with (
            backend.observe_products(lambda products: inner.append(len(products))),
            pytest.raises(ValueError, match="mis"),
        ):
            backend.matmuls(backend.Product(b, a, np.zeros((3, 3)), add=True), backend.Product(a, b))
        backend.matmul(b.T, a.T)
    backend.matmul(a, b)
    product = ((5, 3), (3, 4), False)
    assert seen == [[product], [((3, 4), (5, 3), True), product], [((4, 3), (3, 5), False)]]
    assert inner == [2]
    assert backend.product_flops((5, 1, 2, 3), (4, 3, 7)) == 2 * 5 * 4 * 2 * 3 * 7


def test_the_blas_has_one_thread_wherever_ours_work():
    """NumPy's test of a BLAS under threads (numpy#29391, numpy#31618), with the products that minillm hands out."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(2, 20_000)).T  # not contiguous
    radial, a, w = rng.normal(size=(20_000, 4)), rng.normal(size=(2, 2)), rng.normal(size=(4, 2))
    expected = points @ a + radial @ w
    found, seen = {}, set()

    def run(start, stop):
        seen.update(library.num_threads for library in backend._blas_libraries())
        for number in range(start, stop):
            found[number] = points @ a + radial @ w

    before = [library.num_threads for library in backend._blas_libraries()]
    with backend.cut_by(backend.Cutting(threads=4)):
        for _ in range(5):
            backend.parallel(run, 12)
            assert sorted(found) == list(range(12))
            assert all(np.allclose(result, expected, rtol=1e-12, atol=1e-12) for result in found.values())
            found.clear()
    assert seen <= {1}
    assert [library.num_threads for library in backend._blas_libraries()] == before
