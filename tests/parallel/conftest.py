"""The `ranks` fixture: functions run on several ranks, which are processes that stay for the whole session.

    def add(communicator, x):
        array = np.full(3, x + communicator.rank)
        communicator.all_reduce(array).wait()
        return array

    def test_add(ranks):
        assert [r.tolist() for r in ranks(2).run(add, 1.0)] == [[3, 3, 3]] * 2

Each run has a fresh SharedMemoryCommunicator. What a rank raises comes back with its traceback, and the other ranks
end their collectives at once; a rank that hangs is asked where it is, and killed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib.util
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest

from minillm.errors import ParallelError

if (root := str(Path(__file__).parents[2])) not in sys.path:
    sys.path.append(root)  # new processes have it too, and find this file by its name

SPAWN = multiprocessing.get_context("spawn")
COLLECTIVE = 30.0  # seconds that a collective waits for other ranks
RUN = 60.0  # seconds that a whole run may take


class RankError(AssertionError):
    """An error on a rank of a test, with the traceback of that rank."""


class FirstFailure:
    """The Watch of a test's ranks: the number of the first rank that raised, where all can see it."""

    def __init__(self, rank: int, failed: Any):
        self.rank, self.failed = rank, failed

    def report(self) -> None:
        with self.failed.get_lock():
            if self.failed.value < 0:
                self.failed.value = self.rank

    def check(self) -> None:
        if self.failed.value not in (-1, self.rank):
            raise ParallelError(f"rank {self.failed.value} failed")


class Pool:
    """`n` processes that wait for work; see the text on top of this file."""

    def __init__(self, n: int, environment: dict[str, str]):
        self.n = n
        self.failed = SPAWN.Value("i", -1)
        self.connections: list[Connection] = []
        self.processes: list[Any] = []
        self.dumps = [tempfile.NamedTemporaryFile(prefix="rank") for _ in range(n)]  # noqa: SIM115
        with environment_of({"MINILLM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **environment}):
            for rank in range(n):
                ours, theirs = SPAWN.Pipe()
                arguments = (rank, n, theirs, self.failed, self.dumps[rank].name)
                process = SPAWN.Process(target=serve, args=arguments, daemon=True, name=f"rank{rank}")
                process.start()
                theirs.close()
                self.connections.append(ours)
                self.processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = RUN) -> list[Any]:
        """The result of `function(communicator, *args)` on each rank.

        Raises: RankError with the traceback of the first rank that raised, died or hung.
        """
        outcomes = self.outcomes(function, *args, timeout=timeout)
        errors = {rank: outcome for rank, outcome in enumerate(outcomes) if isinstance(outcome, RankError)}
        if errors:
            raise errors.get(self.failed.value, next(iter(errors.values())))
        return outcomes

    def outcomes(self, function: Callable[..., Any], *args: Any, timeout: float = RUN) -> list[Any]:
        """The result of `function(communicator, *args)` on each rank, or a RankError whose `error` was raised there."""
        from minillm.parallel.segments import create_segment

        self.failed.value = -1
        memory = create_segment(self.n)
        try:
            module = sys.modules[function.__module__]
            where = (module.__name__, module.__file__, memory.name, min(COLLECTIVE, timeout / 2))
            message = pickle.dumps((where, pickle.dumps((function, args))))
            for connection in self.connections:
                connection.send_bytes(message)
            return self._collect(time.monotonic() + timeout)
        finally:
            memory.unlink()
            memory.close()

    def _collect(self, deadline: float) -> list[Any]:
        outcomes: dict[int, Any] = {}
        broken = False
        while len(outcomes) < self.n:
            waiting = {self.connections[rank]: rank for rank in range(self.n) if rank not in outcomes}
            ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
            for connection in ready:
                rank = waiting[connection]  # type: ignore[index]
                try:
                    outcomes[rank] = pickle.loads(connection.recv_bytes())  # type: ignore[union-attr]
                except (EOFError, OSError):
                    self.processes[rank].join(5)
                    outcomes[rank] = RankError(f"rank {rank} died: exit status {self.processes[rank].exitcode}")
                    broken = True
                    with self.failed.get_lock():
                        self.failed.value = rank if self.failed.value < 0 else self.failed.value
            if not ready:
                broken = True
                for rank in waiting.values():
                    outcomes[rank] = RankError(f"rank {rank} hung:\n{self._where(rank)}")
        if broken:
            self.close()
        return [outcomes[rank] for rank in range(self.n)]

    def _where(self, rank: int) -> str:
        """The stacks of all threads of a rank."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.processes[rank].pid, signal.SIGUSR1)
            time.sleep(0.5)
        return Path(self.dumps[rank].name).read_text() or "(it does not answer)"

    closed = False

    def close(self) -> None:
        """End the processes."""
        self.closed = True
        for connection in self.connections:
            connection.close()
        for process in self.processes:
            process.join(1)
            process.kill()
            process.join()
            process.close()
        for dump in self.dumps:
            dump.close()


@contextlib.contextmanager
def environment_of(values: dict[str, str]) -> Iterator[None]:
    """Set these environment variables while processes are started."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def serve(rank: int, n: int, connection: Connection, failed: Any, dump: str) -> None:
    """The main function of a process: it runs functions until its pipe ends."""
    from minillm.parallel.segments import attach_segment
    from minillm.parallel.shared_memory import SharedMemoryCommunicator

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, whose end ends this one
    dump_file = open(dump, "w")  # noqa: SIM115
    faulthandler.register(signal.SIGUSR1, dump_file, all_threads=True)
    watch = FirstFailure(rank, failed)
    while True:
        try:
            (module, file, name, timeout), pickled = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        communicator = None
        try:
            communicator = SharedMemoryCommunicator(rank, tuple(range(n)), attach_segment(name), watch, timeout)
            load(module, file)
            function, args = pickle.loads(pickled)
            outcome = pickle.dumps(function(communicator, *args))
        except BaseException as error:  # the test shows it
            watch.report()
            outcome = pickle.dumps(told(rank, error))
        if communicator is not None:
            with contextlib.suppress(Exception):
                communicator.close()
            communicator = function = args = None
        try:
            connection.send_bytes(outcome)
        except OSError:
            return


def told(rank: int, error: BaseException) -> RankError:
    """A RankError with the traceback, and the error itself where it can be sent."""
    found = RankError(f"on rank {rank}:\n{''.join(traceback.format_exception(error))}")
    try:
        pickle.loads(pickle.dumps(error))
        found.error = error.with_traceback(None)  # type: ignore[attr-defined]
    except Exception:
        found.error = None  # type: ignore[attr-defined]
    return found


def load(module: str, file: str | None) -> None:
    """Import a test module by its file, under the name that pytest gave it."""
    if module not in sys.modules and file is not None:
        spec = importlib.util.spec_from_file_location(module, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[module] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[module])
        except BaseException:
            del sys.modules[module]
            raise


@pytest.fixture(scope="session")
def ranks() -> Iterator[Callable[..., Pool]]:
    """`ranks(n)` gives the pool of n ranks, `ranks(n, NAME="value")` one with that in its environment."""
    pools: dict[Any, Pool] = {}

    def pool(n: int, **environment: str) -> Pool:
        key = (n, *sorted(environment.items()))
        if key not in pools or pools[key].closed:
            pools[key] = Pool(n, environment)
        return pools[key]

    yield pool
    for one in pools.values():
        if not one.closed:
            one.close()
