"""kernels/embedding.cu, emulated, against the formulas of minillm/ops/embedding.py.

A look-up is exact. A gradient may be as wrong as three times the same sums made in its dtype, row after row; for
bfloat16, made in float32 and rounded once.
"""

from __future__ import annotations

import numpy as np
import pytest

from minillm import cuda
from minillm.autograd import Into, Tensor
from minillm.cuda import Kernel, get_kernel, launch_counts
from minillm.cuda.source import C_TYPES
from minillm.engine import engine
from minillm.ops.embedding import EMBEDDING, Saved, embedding
from minillm.study import gradcheck

pytestmark = pytest.mark.usefixtures("_compiler")
COLUMNS = (1, 17, 64, 257, 509, 1023)  # odd, prime, whole and broken 16 bytes, more than a warp takes at once
ROUNDING = {"float32": 2**-24, "float64": 2**-53, "bfloat16": 2**-9}
TABLE = 23


@pytest.fixture(params=["float32", "float64", "bfloat16"])
def dtype(request) -> np.dtype:
    return request.getfixturevalue("bfloat16") if request.param == "bfloat16" else np.dtype(request.param)


def common_and_rare(rng: np.random.Generator, count: int) -> np.ndarray:
    """Ids as in a text: one is everywhere, most are seldom, and some (17 and beyond) never."""
    return np.where(rng.random(count) < 0.5, 3, rng.integers(0, 17, count))


def forward(table, ids, blocks=None, warps=8, kernel: Kernel | None = None) -> np.ndarray:
    y = np.full((ids.size, table.shape[1]), np.nan, table.dtype)
    kernel = kernel or get_kernel("embedding.cu", "embedding_forward", table.dtype)
    sizes = (np.int64(len(table)), np.int64(ids.size), np.int32(table.shape[1]))
    kernel(blocks or -(-ids.size // warps), 32 * warps, (table, ids, y, *sizes))
    return y


def backward(dy, ids, dtable, warps=8, kernel: Kernel | None = None) -> np.ndarray:
    """The table's gradient, added to dtable."""
    order, columns = np.argsort(ids, kind="stable"), dy.shape[1]
    kernel = kernel or get_kernel("embedding.cu", "embedding_backward", dy.dtype)
    grid = (-(-ids.size // warps), -(-columns * dy.itemsize // 512))
    sizes = (np.int64(len(dtable)), np.int64(ids.size), np.int32(columns))
    kernel(grid, 32 * warps, (dy, ids[order], order, dtable, *sizes))
    return dtable


def summed(dy, ids, dtable, dtype) -> np.ndarray:
    result = dtable.astype(dtype)
    for i, row in zip(ids.reshape(-1).tolist(), dy.astype(dtype).reshape(-1, dy.shape[-1]), strict=True):
        result[i] += row
    return result


def rms(x) -> float:
    return float(np.sqrt(np.square(x.astype(np.longdouble)).mean()))


def check(received, dy, ids, dtable) -> None:
    expected = summed(dy, ids, dtable, np.longdouble)
    by_numpy = summed(dy, ids, dtable, np.promote_types(dy.dtype, np.float32)).astype(dy.dtype)
    allowed = 3 * max(rms(by_numpy - expected), rms(expected) * ROUNDING[dy.dtype.name] / 2)
    assert rms(received - expected) <= allowed
    untouched = ~np.isin(np.arange(len(dtable)), ids)
    np.testing.assert_array_equal(received[untouched], dtable[untouched])


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("count", [1, 33, 101])
def test_forward(warp_order, rng, dtype, count, columns):
    table, ids = rng.standard_normal((TABLE, columns)).astype(dtype), common_and_rare(rng, count)
    for options in ({}, {"blocks": 2}, {"warps": 1}):
        np.testing.assert_array_equal(forward(table, ids, **options), table[ids])


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("count", [1, 33, 257])
def test_backward(warp_order, rng, dtype, count, columns):
    dy, ids = rng.standard_normal((count, columns)).astype(dtype), common_and_rare(rng, count)
    for dtable in (np.zeros((TABLE, columns), dtype), rng.standard_normal((TABLE, columns)).astype(dtype)):
        check(backward(dy, ids, dtable.copy()), dy, ids, dtable)


@pytest.mark.parametrize("length", [31, 32, 33, 64, 65, 129])
def test_runs_that_end_where_a_warp_does(rng, length):
    dy, dtable = rng.standard_normal((2 * length + 3, 40)), np.zeros((TABLE, 40))
    for ids in (
        np.repeat([5, 9], [length, length + 3]),
        np.repeat([0, 7, 22], [3, length, length]),
        np.full(len(dy), 6),
    ):
        ids = rng.permutation(ids)
        check(backward(dy, ids, dtable.copy()), dy, ids, dtable)


def test_every_id_once_and_the_same_id_always(rng, dtype):
    dy = rng.standard_normal((TABLE, 96)).astype(dtype)
    dtable, ids = np.zeros((TABLE, 96), dtype), rng.permutation(TABLE)
    np.testing.assert_array_equal(backward(dy, ids, dtable.copy())[ids], dy)
    ids[:] = 4
    check(backward(dy, ids, dtable.copy()), dy, ids, dtable)


def test_arrays_that_do_not_start_at_16_bytes(rng, dtype):
    def shifted(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array.reshape(-1)[:1], array.reshape(-1)])[1:].reshape(array.shape)

    table, dy = (rng.standard_normal((TABLE, 64)).astype(dtype) for _ in range(2))
    ids, dtable = common_and_rare(rng, TABLE), np.zeros((TABLE, 64), dtype)
    np.testing.assert_array_equal(forward(shifted(table), ids), table[ids])
    aligned = backward(dy, ids, dtable.copy())
    np.testing.assert_array_equal(backward(shifted(dy), ids, dtable.copy()), aligned)
    np.testing.assert_array_equal(backward(dy, ids, shifted(dtable)), aligned)


def test_a_long_sum_loses_nothing_to_bfloat16(rng, bfloat16):
    dy, ids = np.ones((1000, 32), bfloat16), np.zeros(1000, np.int64)
    total = backward(dy, ids, np.zeros((1, 32), bfloat16))
    np.testing.assert_array_equal(total, np.full((1, 32), 1000, bfloat16))  # one by one, it would stop at 256


def test_order_changes_no_bit(rng, dtype):
    dy, ids = rng.standard_normal((200, 75)).astype(dtype), common_and_rare(rng, 200)
    expected = backward(dy, ids, np.zeros((TABLE, 75), dtype))
    for seed in range(4):
        with cuda.emulation(order="random", seed=seed):
            np.testing.assert_array_equal(backward(dy, ids, np.zeros((TABLE, 75), dtype), warps=1 + seed), expected)


# ---- the operation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("into", [None, "write", "add", "add, not contiguous"])
def test_the_pair_of_the_operation(rng, dtype, into):
    table, dy = rng.standard_normal((TABLE, 50)).astype(dtype), rng.standard_normal((4, 5, 50)).astype(dtype)
    ids = common_and_rare(rng, 20).reshape(4, 5).astype(np.int32)
    there = rng.standard_normal((TABLE, 50)).astype(dtype)
    destination = None
    if into:
        array = np.asfortranarray(there) if into == "add, not contiguous" else there.copy()
        destination = Into(array, add=into != "write")
    before = launch_counts()
    y, saved = EMBEDDING.pair("cuda").forward(table, ids)
    dtable, none = EMBEDDING.pair("cuda").backward(
        dy.transpose(1, 0, 2), Saved(ids.T.astype(np.int64), saved.shape), (destination, None)
    )
    c_type = C_TYPES[dtype.name]
    assert launch_counts() - before == {f"embedding_{name}<{c_type}>": 1 for name in ("forward", "backward")}
    np.testing.assert_array_equal(y, table[ids])
    assert none is None
    assert dtable is array if into else dtable.dtype == dtype
    right = there.copy() if into and into != "write" else np.zeros_like(there)
    check(dtable, dy.reshape(20, 50), ids.reshape(20), right)


def test_the_operation_runs_the_kernels(rng):
    table, ids = rng.standard_normal((TABLE, 33)).astype(np.float32), common_and_rare(rng, 12).reshape(3, 4)
    results = []
    for policy in ("plain", "require"):
        before = launch_counts()
        with engine(policy):
            weight = Tensor(table, requires_grad=True)
            y = embedding(ids, weight) + embedding(ids[0], weight)  # twice: the second gradient is added to the first
            (y * y).sum().backward()
        launched = launch_counts() - before
        results.append((y.data, weight.grad))
    assert launched == {"embedding_forward<float>": 2, "embedding_backward<float>": 2}
    for one, other in zip(*results, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_gradient_checks_of_the_operation():
    with engine("emulate"):
        before = launch_counts()
        reports = [result.report for result in gradcheck.run_cases(["embedding"])]
    assert len(reports) > 8
    assert not any(reports), "\n".join(filter(None, reports))
    assert (launch_counts() - before)["embedding_backward<double>"] > 8


# ---- planted faults --------------------------------------------------------------------------------------------------


def test_ids_that_the_table_does_not_have(rng, dtype):
    """They are not read, wherever they point: NaN forward, nothing backward."""
    table, ids = rng.standard_normal((5, 33)).astype(dtype), np.array([4, -1, 0, 5, 2**40, 3, -(2**40)])
    known = (ids >= 0) & (ids < 5)
    y = forward(table, ids).astype(np.float64)
    np.testing.assert_array_equal(y[known], table[ids[known]].astype(np.float64))
    assert np.isnan(y[~known]).all()
    dtable = backward(np.ones((7, 33), dtype), ids, np.zeros((5, 33), dtype))
    assert dtable.astype(float).sum(axis=1).tolist() == [33, 0, 0, 33, 33]


FORWARD, BACKWARD = "embedding_forward<float>", "embedding_backward<float>"
PLACE, RUN_BEGINS = "blockIdx.x * warps_of_block + threadIdx.x / WARP_SIZE;", "(place > 0 && sorted_ids[place]"
SHUFFLE, SUM = "__shfl_sync(FULL_WARP, position, k)", "        A sum[COUNT] = {};"
FAULTS = {
    "the same position for all warps": (FORWARD, PLACE, "blockIdx.x;"),
    "the position for the id": (FORWARD, "T, 1>(table + id * columns", "T, 1>(table + n * columns"),
    "a row half copied": (FORWARD, "i += WARP_SIZE * COUNT) store", "i += 2 * WARP_SIZE * COUNT) store"),
    "each place begins a run": (BACKWARD, RUN_BEGINS, "(false && sorted_ids[place]"),
    "the first place begins no run": (BACKWARD, RUN_BEGINS, "(place == 0 || sorted_ids[place]"),
    "a run of at most 32": (BACKWARD, "found == WARP_SIZE; p +=", "p == place; p +="),
    "runs flow into each other": (BACKWARD, "&& sorted_ids[p + lane] == sorted_ids[place]", ""),
    "the last of the run left out": (BACKWARD, "k < found; k++", "k < found - 1; k++"),
    "places for positions": (BACKWARD, "in_run ? order[p + lane] : 0", "in_run ? p + lane : 0"),
    "always the first of the batch": (BACKWARD, SHUFFLE, SHUFFLE.replace("k)", "0)")),
    "what was there forgotten": (BACKWARD, "T(A(total[c]) + A(of_run[c]))", "T(A(of_run[c]))"),
    "every block the first columns": (BACKWARD, "blockIdx.y * WARP_SIZE", "0 * WARP_SIZE"),
    "columns of the next row": (BACKWARD, "stop = min(first + WARP_SIZE * VECTOR<T>, columns)", "stop = first + 128"),
    "lanes without a column leave the shuffle": (BACKWARD, SUM, f"{SUM} if (column >= stop) return;"),
}


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_a_planted_fault_is_caught(mutated, rng, fault):
    table, dy = rng.standard_normal((TABLE, 150)).astype(np.float32), rng.standard_normal((100, 150)).astype(np.float32)
    ids = common_and_rare(rng, 100)
    faulty: dict[str, Kernel] = {}
    if fault:
        instance, old, new = FAULTS[fault]
        faulty[instance] = mutated(f"embedding {fault}", "embedding.cu", old, new, "embedding.cu", instance)
    try:
        y = forward(table, ids, kernel=faulty.get(FORWARD))
        dtable = backward(dy, ids, table.copy(), kernel=faulty.get(BACKWARD))
        right = np.array_equal(y, table[ids]) and np.allclose(dtable, summed(dy, ids, table, np.float64), atol=1e-4)
    except cuda.KernelError:
        right = False
    assert right == (fault is None)
