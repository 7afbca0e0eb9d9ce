"""The calls of NCCL, made through the real cupy.cuda.nccl on a stand-in for the library; and that stand-in itself."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minillm
from minillm import cuda, device
from minillm.engine import engine
from minillm.errors import DeviceError, DtypeError, InputError, ParallelError, ShapeError
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.optim import AdamW
from minillm.parallel.communicator import Communicator, Trace, bounds, bytes_sent
from minillm.parallel.mesh import Mesh, ParallelModel
from minillm.parallel.nccl import connect
from minillm.parallel.objective import NEXT_TOKENS, next_token_batch
from minillm.parallel.place import Place
from minillm.parallel.rendezvous import join
from tests.parallel.nccl_ranks import over_nccl

SIZES = (1, 7, 12345, 50_001)  # one, odd ones, and more than a slot of the stand-in holds
NUMBERS = ("float32", "float64", "bfloat16", "int32", "int64", "uint8")


@pytest.fixture(scope="session")
def nccl_ranks(ranks: Callable[..., Any]) -> Callable[[int], Any]:
    return over_nccl(ranks)


def numbers(rank: int, size: int, dtype: str) -> np.ndarray:
    """The array of rank `rank`, which every rank can compute."""
    import ml_dtypes

    values = np.random.default_rng([rank, size]).uniform(0, 60, size)
    return values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def reduced(n: int, size: int, dtype: str, op: str) -> np.ndarray:
    """In the order of the ranks, in float32 at least."""
    parts = [numbers(rank, size, dtype) for rank in range(n)]
    if op == "max":
        return np.max(parts, axis=0)
    total = parts[0].astype(np.float32) if dtype == "bfloat16" else parts[0]
    for part in parts[1:]:
        total = total + part.astype(total.dtype)
    return (total / total.dtype.type(n) if op == "mean" else total).astype(parts[0].dtype)


def equal(result: np.ndarray, expected: np.ndarray, *told: object) -> None:
    assert result.dtype == expected.dtype, told
    assert result.shape == expected.shape, told
    assert result.tobytes() == expected.tobytes(), told


# ---- collectives ----------------------------------------------------------------------------------------------------


def reduce_all_ways(communicator: Communicator) -> None:
    n, me = communicator.size, communicator.rank
    for dtype in NUMBERS:
        for op in ("sum", "mean", "max"):
            for size in SIZES:
                told, expected = (dtype, op, size), reduced(n, size, dtype, op)
                array = numbers(me, size, dtype)
                communicator.all_reduce(array, op).wait()
                equal(array, expected, "all_reduce", *told)

                array, root = numbers(me, size, dtype), size % n
                communicator.reduce(array, root, op).wait()
                equal(array, expected if me == root else numbers(me, size, dtype), "reduce", *told)

                whole = reduced(n, size * n, dtype, op).reshape(n, size)
                array = numbers(me, size * n, dtype)
                out = np.empty(size, array.dtype)
                communicator.reduce_scatter(array, out, op).wait()
                equal(out, whole[me], "reduce_scatter", *told)
                equal(array, numbers(me, size * n, dtype), "what was given stays as it is")
                part = array.reshape(n, size)[me]
                communicator.reduce_scatter(array, part, op).wait()
                equal(part, whole[me], "reduce_scatter in place", *told)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_reductions_are_numpys_bit_by_bit(nccl_ranks: Any, n: int) -> None:
    nccl_ranks(n).run(reduce_all_ways)


def move_all_ways(communicator: Communicator) -> None:
    n, me = communicator.size, communicator.rank
    for dtype in (*NUMBERS, "bool", "uint16", "float16", "complex128"):
        for size in SIZES:
            everyone = np.array([numbers(rank, size, dtype) for rank in range(n)])
            out = np.zeros_like(everyone)
            communicator.all_gather(everyone[me].copy(), out).wait()
            equal(out, everyone, "all_gather", dtype, size)
            out[...] = 0
            out[me] = everyone[me]
            communicator.all_gather(out[me], out).wait()
            equal(out, everyone, "all_gather in place", dtype, size)
            for root in range(n):
                array = everyone[me].copy()
                communicator.broadcast(array, root).wait()
                equal(array, everyone[root], "broadcast", dtype, size, root)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_gathered_and_broadcast_arrays_are_those_of_the_ranks(nccl_ranks: Any, n: int) -> None:
    nccl_ranks(n).run(move_all_ways)


def small_things(communicator: Communicator) -> Any:
    empty = np.empty(0, np.float32)
    communicator.all_reduce(empty).wait()
    communicator.all_gather(empty, empty).wait()
    communicator.barrier()
    communicator.check()
    mixed = np.arange(6.0).reshape(2, 3)
    communicator.all_reduce(mixed).wait()
    found = communicator.sum_of(1, communicator.rank + 0.5), communicator.max_of(-communicator.rank, 1e300)
    return found, mixed[1].tolist()


def test_numbers_barriers_and_empty_arrays(nccl_ranks: Any) -> None:
    assert nccl_ranks(3).run(small_things) == [(([3.0, 4.5], [0.0, 1e300]), [9.0, 12.0, 15.0])] * 3


def go_on_meanwhile(communicator: Communicator) -> None:
    sums, me = np.full(100_000, 1.0 + communicator.rank), communicator.rank
    word = np.zeros(1)
    if me == 0:
        works = [communicator.all_reduce(sums) for _ in range(3)]  # rank 1 comes to these when it has the word
        communicator.send(np.ones(1), 1).wait()
    else:
        communicator.recv(word, 0).wait()
        works = [communicator.all_reduce(sums) for _ in range(3)]
    works[-1].wait()
    assert (sums == 12).all()
    assert word[0] == me


def test_an_operation_goes_on_while_its_rank_does_other_things(nccl_ranks: Any) -> None:
    nccl_ranks(2).run(go_on_meanwhile)


# ---- send and recv --------------------------------------------------------------------------------------------------


def exchange(communicator: Communicator, receive_first: bool) -> None:
    """Everybody sends two messages to both neighbours, and receives two of each: pieces, odd lengths, in order."""
    n, me = communicator.size, communicator.rank
    sizes, dtypes = (30_011, 3), ("float32", "bfloat16")
    neighbours = sorted({(me + 1) % n, (me - 1) % n})
    got = {(peer, i): np.empty_like(numbers(0, sizes[i], dtypes[i])) for peer in neighbours for i in range(2)}

    def receive() -> list[Any]:
        return [communicator.recv(got[peer, i], peer) for i in range(2) for peer in neighbours]

    works = receive() if receive_first else []
    for i in range(2):
        works += [communicator.send(numbers(me, sizes[i], dtypes[i]), peer) for peer in neighbours]
    works += [] if receive_first else receive()
    for work in reversed(works):
        work.wait()
    for (peer, i), array in got.items():
        equal(array, numbers(peer, sizes[i], dtypes[i]), peer, i)


@pytest.mark.parametrize("receive_first", [False, True])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_neighbours_send_and_receive_at_once(nccl_ranks: Any, n: int, receive_first: bool) -> None:
    nccl_ranks(n).run(exchange, receive_first, timeout=20)


def pipeline(communicator: Communicator) -> list[float]:
    """1F1B as pipelines do it: activations down, gradients up; what comes next is awaited before this one is sent."""
    n, me, count = communicator.size, communicator.rank, 8
    down = [np.zeros(20_000, np.float32) for _ in range(count)]
    up = [np.zeros(20_000, np.float32) for _ in range(count)]
    warm, works, coming, back = min(n - 1 - me, count), [], {}, {}
    order = [("F", i) for i in range(warm)]
    order += [step for i in range(count - warm) for step in (("F", warm + i), ("B", i))]
    order += [("B", i) for i in range(count - warm, count)]

    def ask(kind: str, i: int) -> None:
        if i < count and kind == "F" and me > 0 and i not in coming:
            coming[i] = communicator.recv(down[i], me - 1)
        if i < count and kind == "B" and me < n - 1 and i not in back:
            back[i] = communicator.recv(up[i], me + 1)

    for place, (kind, i) in enumerate(order):
        for later in order[place : place + 4]:  # far ahead: a recv must not hold up the sends that follow
            ask(*later)
        if kind == "F":
            if me > 0:
                coming[i].wait()
            if me < n - 1:
                works.append(communicator.send(down[i] + 10 * me + i + 1, me + 1))
        else:
            if me < n - 1:
                back[i].wait()
            if me > 0:
                works.append(communicator.send(up[i] + 100 * me, me - 1))
    for work in works:
        work.wait()
    return [float(down[i][-1]) for i in range(count)] + [float(up[i][0]) for i in range(count)]


@pytest.mark.parametrize("n", [2, 4])
def test_a_pipeline_does_not_come_to_a_stop(nccl_ranks: Any, n: int) -> None:
    for me, found in enumerate(nccl_ranks(n).run(pipeline, timeout=20)):
        assert found[:8] == [sum(10 * j + i + 1 for j in range(me)) for i in range(8)]
        assert found[8:] == [100 * sum(range(me + 1, n))] * 8


def far(communicator: Communicator) -> float:
    array = np.full(9, 3.5 + communicator.rank)
    if communicator.rank == 0:
        communicator.send(array, 2).wait()
    elif communicator.rank == 2:
        communicator.recv(array, 0).wait()
    return float(array[-1])


def test_ranks_that_are_no_neighbours_can_send(nccl_ranks: Any) -> None:
    assert nccl_ranks(4).run(far) == [3.5, 4.5, 3.5, 6.5]


# ---- groups ---------------------------------------------------------------------------------------------------------


def groups(communicator: Communicator) -> Any:
    """Rows and columns of a 2 x 2 mesh, the columns in reverse; a group within a group; and one by itself."""
    me = communicator.rank
    rows, columns = communicator.split(me // 2), communicator.split(-5 + 12 * (me % 2), key=-me)
    one = np.array([10.0**me])
    by_row, by_column, by_all = one.copy(), one.copy(), one.copy()
    works = [rows.all_reduce(by_row), communicator.all_reduce(by_all), columns.all_reduce(by_column)]
    for work in reversed(works):
        work.wait()
    word = np.zeros(1)
    if columns.rank == 0:
        columns.send(one, 1).wait()
    else:
        columns.recv(word, 0).wait()
    three = communicator.split(int(me == 2))
    inner = three.split(0, key=-three.rank) if three.size > 1 else three.split(3)
    gathered = np.zeros(inner.size)
    inner.all_gather(one, gathered).wait()
    inner.check()
    told = [(group.rank, group.ranks) for group in (rows, columns, three, inner)]
    for group in (inner, three, columns, rows):
        group.close()
    return told, by_row[0], by_column[0], by_all[0], word[0], gathered.tolist()


def test_groups_of_groups(nccl_ranks: Any) -> None:
    found = nccl_ranks(4).run(groups)
    assert [told for told, *_ in found] == [
        [(0, (0, 1)), (1, (2, 0)), (0, (0, 1, 3)), (2, (3, 1, 0))],
        [(1, (0, 1)), (1, (3, 1)), (1, (0, 1, 3)), (1, (3, 1, 0))],
        [(0, (2, 3)), (0, (2, 0)), (0, (2,)), (0, (2,))],
        [(1, (2, 3)), (0, (3, 1)), (2, (0, 1, 3)), (0, (3, 1, 0))],
    ]
    assert [sums for _, *sums, _ in found] == [
        [11, 101, 1111, 100],
        [11, 1010, 1111, 1000],
        [1100, 101, 1111, 0],
        [1100, 1010, 1111, 0],
    ]
    assert [gathered for *_, gathered in found] == [[1000, 10, 1], [1000, 10, 1], [100], [1000, 10, 1]]


def one_rank_splits(communicator: Communicator) -> Any:
    group, array = communicator.split(7), np.arange(3.0)
    group.all_reduce(array).wait()
    group.close()
    return type(group).__name__, group.ranks, array.tolist(), communicator.sum_of(2)


def test_a_job_of_one_rank_keeps_to_nccl(nccl_ranks: Any) -> None:
    assert nccl_ranks(1).run(one_rank_splits) == [("NcclCommunicator", (0,), [0.0, 1.0, 2.0], [2.0])]


# ---- the trace ------------------------------------------------------------------------------------------------------


def traced(communicator: Communicator, size: int) -> list[Any]:
    communicator.trace = Trace()
    n, array = communicator.size, np.ones(size, np.float32)
    parts = np.ones((n, size), np.float32)
    works = [
        communicator.all_reduce(array, what="a"),
        communicator.reduce_scatter(parts, parts[communicator.rank].copy(), what="b"),
        communicator.all_gather(array.copy(), parts, what="c"),
        communicator.broadcast(array, 1, what="d"),
        communicator.reduce(array, 1, what="e"),
    ]
    works += [communicator.send(array, 1, what="f")] if communicator.rank == 0 else []
    works += [communicator.recv(array, 0, what="f")] if communicator.rank == 1 else []
    pair = communicator.split(communicator.rank % 2)
    for work in works:
        work.wait()
    pair.all_reduce(array, what="g").wait()
    pair.close()
    return communicator.trace.messages


def test_the_trace_has_a_rings_bytes(nccl_ranks: Any) -> None:
    size = 1002  # not divisible by 4
    messages = [message for found in nccl_ranks(4).run(traced, size) for message in found]
    sent = bytes_sent(messages)
    edges, total = bounds(size, 4), 4 * size
    for rank in range(4):
        right = (rank + 1) % 4
        part = 4 * (edges[right + 1] - edges[right])
        assert sent[rank, "a"] == 2 * (total - part)
        assert sent[rank, "b"] == sent[rank, "c"] == 3 * total
        assert sent[rank, "d"] == (0 if right == 1 else total)
        assert sent[rank, "e"] == (0 if rank == 1 else total)
        assert sent[rank, "f"] == (total if rank == 0 else 0)
        assert sent[rank, "g"] == total
    neighbours = {(m.source, m.target) for m in messages if m.what == "a"}
    assert neighbours == {(0, 1), (1, 2), (2, 3), (3, 0)}
    assert {(m.source, m.target) for m in messages if m.what == "g"} == {(0, 2), (2, 0), (1, 3), (3, 1)}
    assert sum(sent[rank, "a"] for rank in range(4)) == 2 * 3 * total


# ---- what must not be called ----------------------------------------------------------------------------------------


class Distorted:
    """An NCCL communicator whose calls come with other arguments."""

    def __init__(self, comm: Any, name: str, change: dict[int, Any]):
        self.comm, self.name, self.change = comm, name, change

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.comm, name)
        if name != self.name:
            return call

        def distorted(*args: Any) -> Any:
            values = list(args)
            for place, value in self.change.items():
                values[place] = values[value[0]] if isinstance(value, tuple) else value
            return call(*values)

        return distorted


# Of each call: which argument becomes what; (i,) is what stands at place i. On every rank, or on rank 1 alone.
WRONG_CALLS = {
    "count of one rank": ("all_reduce", "allReduce", {2: 5}, [1]),
    "type of one rank": ("all_reduce", "allReduce", {3: 2}, [1]),
    "operation of one rank": ("all_reduce", "allReduce", {4: 2}, [1]),
    "type is the count": ("all_reduce", "allReduce", {3: (2,)}, [0, 1]),
    "no such type": ("all_reduce", "allReduce", {3: 10}, [0, 1]),
    "no such operation": ("all_reduce", "allReduce", {4: 5}, [0, 1]),
    "no stream": ("all_reduce", "allReduce", {5: (2,)}, [0, 1]),
    "null to read": ("all_reduce", "allReduce", {0: 0}, [0, 1]),
    "null to write": ("all_reduce", "allReduce", {1: 0}, [0, 1]),
    "count for a pointer": ("all_gather", "allGather", {0: (2,), 2: 4}, [0, 1]),
    "part is the whole": ("gather_in_place", "allGather", {0: (1,)}, [1]),
    "part is the first": ("scatter_in_place", "reduceScatter", {1: (0,)}, [1]),
    "root of one rank": ("broadcast", "broadcast", {4: 1}, [1]),
    "root of a reduction": ("reduce", "reduce", {5: 7}, [0, 1]),
    "its own peer": ("send", "send", {3: 0}, [0]),
    "no such peer": ("send", "send", {3: 2}, [0]),
    "less sent": ("send", "send", {1: 20}, [0]),
    "less expected": ("send", "recv", {1: 20}, [1]),
}


def call_wrongly(communicator: Communicator, wrong: str) -> str:
    operation, name, change, where = WRONG_CALLS[wrong]
    array, whole, me = np.ones(11, np.float32), np.ones((2, 11), np.float32), communicator.rank
    if me in where:
        for line in (communicator.line, *communicator.lanes.values()):  # type: ignore[attr-defined]
            line.comm = Distorted(line.comm, name, change)
    calls = {
        "all_reduce": lambda: communicator.all_reduce(array),
        "all_gather": lambda: communicator.all_gather(array, whole),
        "gather_in_place": lambda: communicator.all_gather(whole[me], whole),
        "scatter_in_place": lambda: communicator.reduce_scatter(whole, whole[me]),
        "broadcast": lambda: communicator.broadcast(array, 0),
        "reduce": lambda: communicator.reduce(array, 0),
        "send": lambda: communicator.send(array, 1) if me == 0 else communicator.recv(array, 0),
    }
    try:
        calls[operation]().wait()
    except ParallelError as error:
        return str(error)
    finally:
        communicator.abort()  # type: ignore[attr-defined]
    return ""


@pytest.mark.parametrize("wrong", WRONG_CALLS)
def test_wrong_calls_are_refused(nccl_ranks: Any, wrong: str) -> None:
    pool, alone = nccl_ranks(2), wrong in ("part is the whole", "part is the first", "its own peer", "no such peer")
    outcomes = pool.outcomes(call_wrongly, wrong, timeout=10) if not alone else pool.run(refused_at_once, wrong)
    told = [told for told in outcomes if told]
    assert len(told) >= (1 if alone or wrong.startswith("less") else 2), outcomes
    assert all("invalid" in message for message in told), outcomes


def refused_at_once(communicator: Communicator, wrong: str) -> str:
    """Calls that are refused on one rank without the others."""
    return call_wrongly(communicator, wrong) if communicator.rank in WRONG_CALLS[wrong][-1] else ""


def test_what_is_right_is_not_refused(nccl_ranks: Any) -> None:
    for operation, name, *_ in WRONG_CALLS.values():
        assert nccl_ranks(2).run(call_rightly, operation, name) == ["", ""]


def call_rightly(communicator: Communicator, operation: str, name: str) -> str:
    WRONG_CALLS["nothing"] = (operation, name, {}, [0, 1])
    return call_wrongly(communicator, "nothing")


def mistakes(communicator: Communicator) -> None:
    array = np.ones(4)
    with pytest.raises(DtypeError, match="NCCL reduces no complex128"):
        communicator.all_reduce(array.astype(complex))
    with pytest.raises(InputError, match="op is 'median'"):
        communicator.all_reduce(array, "median")
    with pytest.raises(InputError, match="no rank 2"):
        communicator.send(array, 2)
    with pytest.raises(InputError, match="rank 1 is this one" if communicator.rank else "rank 0 is this one"):
        communicator.send(array, communicator.rank)
    with pytest.raises(ShapeError, match="not contiguous"):
        communicator.all_reduce(array[::2])
    with pytest.raises(ShapeError, match="2 parts of 4"):
        communicator.all_gather(array, np.ones(4))


def test_mistakes_of_the_caller(nccl_ranks: Any) -> None:
    nccl_ranks(2).run(mistakes)


def test_without_nccl_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match="pip install nvidia-nccl-cu13"):
        connect(None, None)  # type: ignore[arg-type]


def test_a_cupy_without_the_library_is_told_apart(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy warns, and gives a module with nothing in it."""
    nccl = importlib.import_module("cupy.cuda.nccl")
    monkeypatch.setattr(nccl, "available", False)
    with pytest.raises(DeviceError, match=r"libnccl.so.2 is not there\); pip install nvidia-nccl-cu13"):
        connect(LoneJob(), 0)


# ---- groups of calls, in the stand-in alone -------------------------------------------------------------------------


def grouped(communicator: Communicator) -> None:
    """On one communicator, where one after another would wait for ever: to all others at once, and from them."""
    from cupy.cuda import nccl

    n, me, comm = communicator.size, communicator.rank, communicator.line.comm  # type: ignore[attr-defined]
    given = [numbers(10 * me + to, 9_999, "float64") for to in range(n)]
    got = [np.zeros(9_999) for _ in range(n)]
    total, events = np.full(5, 1.0 + me, np.float32), np.zeros(2 * n - 1, np.int32)
    streams = iter(range(events.ctypes.data, events.ctypes.data + events.nbytes, 4))
    nccl.groupStart()
    for other in range(n):
        if other != me:
            comm.send(given[other].ctypes.data, 9_999, nccl.NCCL_FLOAT64, other, next(streams))
            comm.recv(got[other].ctypes.data, 9_999, nccl.NCCL_FLOAT64, other, next(streams))
    comm.allReduce(total.ctypes.data, total.ctypes.data, 5, nccl.NCCL_FLOAT32, nccl.NCCL_SUM, next(streams))
    assert not events.any()
    nccl.groupEnd()
    while not events.all():
        comm.check_async_error()
        time.sleep(1e-3)
    for other in set(range(n)) - {me}:
        equal(got[other], numbers(10 * other + me, 9_999, "float64"), other)
    assert (total == n * (n + 1) / 2).all()
    assert (comm.size(), comm.rank_id()) == (n, me)


def test_calls_of_one_group_go_on_together(nccl_ranks: Any) -> None:
    nccl_ranks(3).run(grouped, timeout=20)


# ---- on a GPU: streams and events, on the stand-in for CuPy ----------------------------------------------------------


class LoneJob:
    """A job of two, seen from rank 0."""

    rank, size, failed = 0, 2, False

    def share(self, value: bytes) -> bytes:
        return value

    def check(self) -> None:
        if self.failed:
            raise ParallelError("rank 1 failed")

    def on_failure(self, callback: Callable[[], None]) -> None:
        self.callback = callback


def forget_gpu() -> None:
    """Reset what device.py found out, because it does not hold for another CuPy."""
    for known in (device._check_cuda, cuda.get_kernel, cuda.kernel._gpu_module):
        known.cache_clear()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in for CuPy, whose NCCL knows one rank of two, where the other always brings the same."""
    others = [name for name in sys.modules if name.partition(".")[0] == "cupy"]
    for name in others:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "standin"))
    cupy = importlib.import_module("cupy")
    forget_gpu()
    yield cupy
    forget_gpu()
    for name in [name for name in sys.modules if name.partition(".")[0] == "cupy"]:
        del sys.modules[name]


def test_events_keep_the_order_of_streams(gpu: Any) -> None:
    """Streams here hold their work back until something waits for it; a missing event leaves NaN or an old number."""
    communicator = connect(LoneJob(), 0)
    stream, seen, waits = gpu.cuda.Stream(non_blocking=True), [], gpu.synchronizations
    with stream:
        array = gpu.empty(4)
        array.set(np.full(4, 3.0), stream=stream)
        work = communicator.all_reduce(array)
        work.wait()
        stream.enqueue(lambda: seen.append(array._host.tolist()))
    assert seen == []  # nobody has waited yet
    assert gpu.synchronizations == waits
    communicator.line.stream.record().synchronize()  # NCCL's stream is the first that can go on
    stream.record().synchronize()
    assert seen == [[6.0] * 4]  # set, then reduced, then seen
    communicator.close()


def test_each_lane_has_a_stream_and_an_operation_keeps_its_arrays(gpu: Any) -> None:
    communicator = connect(LoneJob(), 0)
    lines = communicator.party.lines
    assert len({line.stream.ptr for line in lines}) == 3
    before = len(gpu._allocated)
    communicator.recv(gpu.empty(5), 1)
    communicator.send(gpu.empty(5), 1)
    assert len(gpu._allocated) == before + 2  # nobody else may have this memory
    gpu.cuda.deviceSynchronize()
    communicator.recv(gpu.empty(5), 1).wait()
    communicator.send(gpu.empty(5), 1).wait()
    assert len(gpu._allocated) == before
    communicator.barrier()
    assert communicator.sum_of(1.5, 2) == [3.0, 4.0]
    communicator.close()


def test_on_a_gpu_a_failure_of_the_job_aborts_and_is_told(gpu: Any) -> None:
    job = LoneJob()
    communicator = connect(job, 0)
    work = communicator.all_reduce(gpu.empty(4))
    job.failed = True
    job.callback()
    assert all(line.comm.aborted for line in (communicator.line, *communicator.lanes.values()))
    for call in (work.wait, communicator.barrier, communicator.check, lambda: communicator.sum_of(1.0)):
        with pytest.raises(ParallelError, match="rank 1 failed"):
            call()
    communicator.close()


@pytest.mark.parametrize("call", ["barrier", "sum_of", "split"])
def test_what_comes_of_an_aborted_operation_is_not_used(gpu: Any, call: str) -> None:
    job = LoneJob()
    communicator = connect(job, 0)
    communicator.line.stream.enqueue(lambda: setattr(job, "failed", True))  # while the host waits for numbers
    with pytest.raises(ParallelError, match="rank 1 failed"):
        getattr(communicator, call)(*[0] * (call != "barrier"))


DIVISIONS: dict[str, dict[str, Any]] = {
    "dp2 float32": {},
    "zero1 bfloat16": dict(zero=1),
    "zero2 float32": dict(zero=2),
    "zero3 recompute bfloat16": dict(zero=3, layers=(0, 2)),
    "tp2 float32": dict(tp=2),
    "tp2 zero1 recompute bfloat16": dict(tp=2, zero=1, layers=(1,)),
    "pp2 float32": dict(pp=2),
    "pp2 gpipe zero1 bfloat16": dict(pp=2, schedule="gpipe", zero=1),
}


@pytest.mark.parametrize("division", DIVISIONS)
def test_on_a_gpu_the_host_waits_for_nothing_in_a_step(gpu: Any, division: str) -> None:
    """Nor does a NumPy array meet one of the GPU. One rank of two; what the other would send is made up."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed, and compiles the kernels")
    settings = dict(DIVISIONS[division])
    communicator = connect(LoneJob(), 0)
    mesh = Mesh(communicator, tp=settings.pop("tp", 1), pp=settings.pop("pp", 1))
    minillm.manual_seed(1)
    model = GPT2(GPT2Config(33, context=8, layers=3, heads=2, channels=32, dropout=0.1))
    model.to("cuda", division.split()[-1])
    parallel = ParallelModel(model, mesh, **settings)
    optimizer = AdamW(parallel.groups, 1e-3)
    parallel.attach(optimizer)
    batch = np.random.default_rng(1).integers(0, 33, (4, 8))
    counts = NEXT_TOKENS.counts(next_token_batch(batch, batch))  # before the batch goes to the GPU, as in the loop
    ids = gpu.asarray(batch)

    def step() -> tuple[Any, Any]:
        loss = parallel.forward_backward(next_token_batch(ids, ids), 2, NEXT_TOKENS, counts)
        norm = optimizer.clip_grad_norm(1.0)
        optimizer.step()
        parallel.sync_parameters()
        return loss, norm

    step()  # a pipeline asks once how many random numbers each stage takes
    waits = gpu.synchronizations
    loss, norm = step()
    assert gpu.synchronizations == waits
    assert np.isfinite([float(loss), float(norm)]).all()
    with engine("fast"):
        assert np.isfinite(step()[1])
    communicator.close()


# ---- ranks that fail ------------------------------------------------------------------------------------------------


def late(communicator: Communicator) -> str:
    communicator.party.timeout = 0.6  # type: ignore[attr-defined]
    if communicator.rank == 2:
        time.sleep(3)
        return ""
    with pytest.raises(ParallelError) as caught:
        communicator.all_reduce(np.ones(3)).wait()
    with pytest.raises(ParallelError):
        communicator.barrier()
    return str(caught.value)


def test_an_operation_waits_no_longer_than_the_timeout(nccl_ranks: Any) -> None:
    for rank, told in enumerate(nccl_ranks(3).run(late)[:2]):
        assert told.startswith(f"all_reduce: rank {rank} waited 0.6 s for the others of ranks 0, 1, 2; ")


def fail(communicator: Communicator, how: str) -> None:
    me, array = communicator.rank, np.ones(100_000)
    communicator.barrier()
    if me == 1 and how == "raises":
        time.sleep(0.2)
        raise ValueError("enough")
    if me == 1:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    if me == 0:
        communicator.all_reduce(array).wait()
    elif me == 2:
        communicator.recv(array, 1).wait()
    else:
        communicator.sum_of(1.0)


@pytest.mark.parametrize("how", ["raises", "is killed"])
def test_when_a_rank_fails_the_others_end_with_the_jobs_error(nccl_ranks: Any, how: str) -> None:
    start = time.monotonic()
    outcomes = nccl_ranks(4).outcomes(fail, how)
    assert time.monotonic() - start < 10
    for rank in (0, 2, 3):
        assert isinstance(outcomes[rank].error, ParallelError)
        assert str(outcomes[rank].error) == "rank 1 failed"


def by_rendezvous(communicator: Communicator, faulty: int) -> str:
    """Meet over TCP as ranks in training do, with NCCL's name for the group from rank 0; then a rank may raise."""
    listener = socket.create_server(("127.0.0.1", 0)) if communicator.rank == 0 else None
    (port,) = communicator.max_of(listener.getsockname()[1] if listener else 0)
    place = Place(communicator.rank, communicator.size, port=int(port), token="a secret", timeout=20)
    try:
        with join(place, listener, end=lambda status: None) as job:
            met, array = connect(job, None), np.full(4, 1.0 + communicator.rank)
            met.all_reduce(array).wait()
            assert (array == 6).all()
            if communicator.rank == faulty:
                raise ValueError("enough")
            if faulty >= 0:
                met.barrier()
            met.close()
    except ValueError:
        met.abort()
    except ParallelError as error:
        return str(error)
    return ""


def test_ranks_meet_over_tcp_and_hear_of_failures(nccl_ranks: Any) -> None:
    assert nccl_ranks(3).run(by_rendezvous, -1) == ["", "", ""]
    told = nccl_ranks(3).run(by_rendezvous, 1)
    assert told[1] == ""
    for message in (told[0], told[2]):
        assert "rank 1" in message
        assert "enough" in message


def test_after_a_failure_there_is_nothing_left(nccl_ranks: Any) -> None:
    nccl_ranks(4).run(small_things)
    if os.path.isdir("/dev/shm"):
        assert [name for name in os.listdir("/dev/shm") if name.startswith("minillm-nccl")] == []
