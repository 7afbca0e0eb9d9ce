"""Starting ranks: `minillm train --nproc 4` from a shell, `launch(function, 4)` from Python, or any other launcher.

`run` starts one command once for each rank, in the environment that every launcher sets (see place.py), and `launch`
calls a function in fresh processes. Neither leaves a process behind: when a rank fails, the others are told and end by
themselves within seconds, and those that do not are killed. If the launcher itself is killed, the ranks notice that a
pipe has ended, and end too. Ranks other than 0 print nothing but their error.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from minillm.backend import core_count
from minillm.errors import InputError, MinillmError, ParallelError
from minillm.parallel.communicator import Alone, Communicator
from minillm.parallel.place import TIMEOUT, Place
from minillm.parallel.rendezvous import GRACE, KILLED, OTHER_FAILED, Job, describe, join
from minillm.parallel.segments import attach_to, create_segment
from minillm.parallel.shared_memory import SharedMemoryCommunicator
from minillm.parallel.stopping import stopping_signals

TOLD = GRACE + 1.0  # seconds that ranks have to end by themselves when one has failed
STOPPED = 2.0  # seconds after which a rank that stands still is told
TERMINATED = 1.5  # seconds that they have after SIGTERM, before SIGKILL


# --- in a rank -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def connect(place: Place, device: str = "cpu", listener: socket.socket | None = None) -> Iterator[Communicator]:
    """Meet the other ranks, and yield this rank's communicator: over shared memory on a CPU, over NCCL on GPUs.

        with connect(Place.from_environment()) as communicator:
            ...

    An exception that leaves the block is sent to all other ranks, whose next call of the communicator then raises.

    Raises: ParallelError where ranks do not meet, and for ranks of a CPU that are not on one machine.
    """
    with _member(place, device, listener) as (_, communicator):
        yield communicator


@contextlib.contextmanager
def _member(place: Place, device: str, listener: socket.socket | None) -> Iterator[tuple[Job, Communicator]]:
    with join(place, listener) as job:
        communicator = _communicator(job, device)
        yield job, communicator
        communicator.close()


def _communicator(job: Job, device: str) -> Communicator:
    job.agree("device", device.partition(":")[0])
    if device != "cpu":
        from minillm.parallel import nccl

        return nccl.connect(job, own_gpu(job.place), timeout=job.place.timeout)
    if job.size == 1:
        return Alone()
    job.agree("machine", _machine(), "ranks on CPUs share memory: start all on one machine, or use --device cuda")
    memory = create_segment(job.size) if job.rank == 0 else None
    try:
        name = job.share(memory.name.encode() if memory else b"").decode()
        if memory is None:
            memory = attach_to(job.rank, 0, name, job)
        job.agree("memory", name)  # all have it
    finally:
        if job.rank == 0 and memory is not None:
            memory.unlink()
    return SharedMemoryCommunicator(job.rank, tuple(range(job.size)), memory, job, job.place.timeout)


def own_gpu(place: Place) -> int:
    """Number of this rank's GPU among those that the process sees: 0 if the launcher shows each rank only its own."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return 0 if visible and "," not in visible else place.local_rank


def _machine() -> str:
    """A name of this machine that is its own until it restarts."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text()[:8] if boot.exists() else ''}".strip()


def run_rank(function: Callable[[Communicator], Any], device: str = "cpu", command: str = "train") -> None:
    """Call `function(communicator)` as one rank of a job, in the place that the environment gives.

    An exception is sent to the other ranks. A rank other than 0 prints nothing but its exception, after `rank 2: `.

    Raises: SystemExit if a rank other than 0 raised, with status OTHER_FAILED if another rank is the cause.
    """
    place = Place.from_environment()
    if "MINILLM_LIFELINE" in os.environ:
        end_with(int(os.environ["MINILLM_LIFELINE"]), place.rank)
    listener = socket.socket(fileno=int(os.environ["MINILLM_LISTENER"])) if "MINILLM_LISTENER" in os.environ else None
    job: Job | None = None
    try:
        with _silent() if place.rank else contextlib.nullcontext(), _member(place, device, listener) as (job, here):
            function(here)
    except BaseException as error:
        if job is not None and (told := job.told()) is not None:
            alone = "MINILLM_LIFELINE" not in os.environ or told.startswith(f"rank 0 failed: {KILLED}")
            if place.rank == 0 or alone:
                _print_error(place.rank, told)  # under our own launcher rank 0, if it lives, tells it for all
            raise SystemExit(OTHER_FAILED) from None
        if place.rank == 0 or isinstance(error, SystemExit):
            raise
        if isinstance(error, KeyboardInterrupt):
            raise SystemExit(130) from None
        if isinstance(error, MinillmError | OSError):
            _print_error(place.rank, str(error) if isinstance(error, MinillmError) else f"minillm {command}: {error}")
            raise SystemExit(2) from None
        _print_error(place.rank, traceback.format_exc())
        raise SystemExit(1) from None


def _print_error(rank: int, text: str) -> None:
    prefix = f"rank {rank}: " if rank else ""
    lines = "".join(f"{prefix}{line}\n" for line in text.splitlines())
    print(lines, end="", file=sys.__stderr__, flush=True)  # at once, so that the lines of two ranks stay apart


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def end_with(pipe: int, rank: int) -> None:
    """End this process when the other end of a pipe is closed, which happens however the launcher ends."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(pipe, 1):
                pass
        _print_error(rank, "the launcher has ended, and so does this rank")
        os._exit(OTHER_FAILED)

    threading.Thread(target=wait, name="minillm-launcher", daemon=True).start()


# --- in a launcher -------------------------------------------------------------------------------------------------


class Started(NamedTuple):
    """A rank as its launcher sees it."""

    pid: int
    poll: Callable[[], int | None]  # its exit status once it has ended, -9 if SIGKILL ended it


def run(arguments: Sequence[str], nproc: int, program: Sequence[str] = (sys.executable, "-m", "minillm")) -> int:
    """Start `minillm ARGUMENTS` as `nproc` ranks on this machine, and wait for them; returns the exit status.

    Ctrl-C and SIGTERM are handed on to every rank; the third one kills them. The exit status is 0 if all ranks succeed.
    Otherwise it is that of the rank that failed first: its own, or 128 plus the number of the signal that ended it.
    """
    check_nproc(nproc)
    token = secrets.token_hex(16)
    processes: list[subprocess.Popen] = []
    lifeline, ours = os.pipe()
    try:
        with _free_port() as listener:
            for rank in range(nproc):
                inherited = (lifeline, listener.fileno()) if rank == 0 else (lifeline,)
                environment = {
                    **os.environ,
                    "RANK": str(rank),
                    "WORLD_SIZE": str(nproc),
                    "LOCAL_RANK": str(rank),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(listener.getsockname()[1]),
                    "MINILLM_TOKEN": token,
                    "MINILLM_THREADS": threads_per_rank(nproc),
                    "MINILLM_LIFELINE": str(lifeline),
                    **({"MINILLM_LISTENER": str(listener.fileno())} if rank == 0 else {}),
                }
                environment.pop("TORCHELASTIC_USE_AGENT_STORE", None)
                processes.append(
                    subprocess.Popen(
                        [*program, *arguments],
                        env=environment,
                        pass_fds=inherited,
                        stdin=subprocess.DEVNULL,
                        process_group=0,  # or a terminal's Ctrl-C would come to it twice
                    )
                )
        ranks = [Started(process.pid, process.poll) for process in processes]
        with _handing_on(ranks):
            cause = _supervise(ranks)
    finally:
        _end([Started(process.pid, process.poll) for process in processes])
        os.close(lifeline)
        os.close(ours)
    if cause is None:
        return 0
    rank, status = cause
    if status not in (130, OTHER_FAILED):  # Ctrl-C, of which rank 0 has told, or a rank that ended without a message
        print(f"minillm {' '.join(arguments[:1])}: rank {rank} {ended(status)}; all ranks have ended", file=sys.stderr)
    return status if status >= 0 else 128 - status


def launch(function: Callable[..., Any], nproc: int, *args: Any, device: str = "cpu", timeout: float = TIMEOUT) -> list:
    """Call `function(communicator, *args)` on `nproc` fresh processes; returns what each rank returned.

        def total(communicator, x):
            array = np.full(3, x * communicator.rank)
            communicator.all_reduce(array).wait()
            return array

        launch(total, 4, 1.0)

    The function, its arguments and its results are pickled: the function must be one of a module that can be imported,
    and a script needs `if __name__ == "__main__":` around the call. timeout: seconds that ranks wait for each other.

    Raises: ParallelError that names the rank that failed, and the cause; its traceback is a note of the error.
    """
    check_nproc(nproc)
    context = multiprocessing.get_context("spawn")
    outcomes: dict[int, tuple[str, Any, str]] = {}
    pipes: list[Connection] = []
    processes: list[Any] = []

    def collect() -> None:
        for rank, pipe in enumerate(pipes):
            with contextlib.suppress(EOFError, OSError):
                if rank not in outcomes and pipe.poll():
                    outcomes[rank] = pipe.recv()

    token, before = secrets.token_hex(16), os.environ.get("MINILLM_THREADS")
    os.environ["MINILLM_THREADS"] = threads_per_rank(nproc)
    try:
        with _free_port() as listener:
            for rank in range(nproc):
                place = Place(rank, nproc, rank, "127.0.0.1", listener.getsockname()[1], token, timeout)
                pipe, theirs = context.Pipe()
                arguments = (place, listener if rank == 0 else None, theirs, device, function, args)
                process = context.Process(target=_call, args=arguments, name=f"rank {rank}", daemon=True)
                process.start()
                theirs.close()
                pipes.append(pipe)
                processes.append(process)
        cause = _supervise([_started(process) for process in processes], collect)
        collect()
    finally:
        if before is None:
            del os.environ["MINILLM_THREADS"]
        else:
            os.environ["MINILLM_THREADS"] = before
        _end([_started(process) for process in processes])
        for pipe in pipes:
            pipe.close()
    if cause is None:
        return [outcomes[rank][1] for rank in range(nproc)]
    rank, status = cause
    kind, text, trace = outcomes.get(rank, ("error", ended(status), ""))
    error = ParallelError(f"launch: rank {rank} {text}" if kind == "error" else f"launch: {text}")
    if trace:
        error.add_note(f"on rank {rank}: {trace}")
    raise error


def _call(
    place: Place,
    listener: socket.socket | None,
    pipe: Connection,
    device: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    """Run the function as one rank: the main function of each process that `launch` starts."""
    end_with(pipe.fileno(), place.rank)
    job: Job | None = None
    try:
        with _member(place, device, listener) as (job, communicator):
            result = function(communicator, *args)
        pipe.send(("result", result, ""))
    except BaseException as error:
        if job is not None and (told := job.told()) is not None:
            with contextlib.suppress(OSError):
                pipe.send(("sentence", told, ""))
            raise SystemExit(OTHER_FAILED) from None
        if isinstance(error, KeyboardInterrupt):
            raise SystemExit(130) from None
        text = str(error) if isinstance(error, ParallelError) else f"failed: {describe(error)}"
        kind = "sentence" if isinstance(error, ParallelError) else "error"
        with contextlib.suppress(OSError):
            pipe.send((kind, text, traceback.format_exc()))
        raise SystemExit(1) from None


def check_nproc(nproc: int) -> None:
    """Raise InputError for a number of ranks that cannot be started."""
    if nproc < 1:
        raise InputError(f"launch: {nproc} ranks cannot be started; give --nproc 1 or more")


def threads_per_rank(nproc: int) -> str:
    """MINILLM_THREADS for each rank: its value in the environment, or an equal share of the cores."""
    return os.environ.get("MINILLM_THREADS", str(max(1, core_count() // nproc)))


def ended(status: int) -> str:
    """A sentence for an exit status: `ended with exit status 3`, `was ended by SIGKILL`."""
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was ended by {name}{', as the system does when memory runs out' if name == 'SIGKILL' else ''}"


def _free_port() -> socket.socket:
    """A socket that holds a port for rank 0: a number that was chosen and released could be taken in between."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    return listener


def _started(process: Any) -> Started:
    return Started(process.pid, lambda: process.exitcode)


def _supervise(ranks: list[Started], tick: Callable[[], None] = lambda: None) -> tuple[int, int] | None:
    """Wait until all ranks have ended; returns the number and exit status of the rank that failed first, or None."""
    statuses: dict[int, int] = {}  # in the order in which they ended
    standing = Standing(ranks)
    while len(statuses) < len(ranks):
        tick()
        standing.look()
        for rank, process in enumerate(ranks):
            if rank not in statuses and (status := process.poll()) is not None:
                statuses[rank] = status
        if any(statuses.values()):
            break
        time.sleep(0.02)
    _await(ranks, TOLD, tick)
    for rank, process in enumerate(ranks):
        if (status := process.poll()) is not None:
            statuses.setdefault(rank, status)
    _end(ranks)
    bad = [(rank, status) for rank, status in statuses.items() if status]
    # A rank that was told of the failure may end before the one that failed.
    bad.sort(key=lambda one: 0 if one[1] < 0 else 2 if one[1] == OTHER_FAILED else 1)
    return bad[0] if bad else None


class Standing:
    """Tells which ranks have been stopped, by SIGSTOP or a debugger, and when they go on: the others only wait."""

    def __init__(self, ranks: list[Started]):
        self.ranks = ranks
        self.since: dict[int, float] = {}  # when a rank was first seen to be stopped
        self.told: set[int] = set()
        self.next = 0.0

    def look(self) -> None:
        """Look at each rank, twice a second."""
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + 0.5
        for rank, process in enumerate(self.ranks):
            if not is_stopped(process.pid):
                self.since.pop(rank, None)
                if rank in self.told:
                    self.told.remove(rank)
                    _print_error(0, f"launch: rank {rank} goes on")
            elif now - self.since.setdefault(rank, now) >= STOPPED and rank not in self.told:
                self.told.add(rank)
                _print_error(
                    0,
                    f"launch: rank {rank} (process {process.pid}) has been stopped, and the others wait for it; let it "
                    f"go on with `kill -CONT {process.pid}`, or end all ranks with Ctrl-C, three times",
                )


def is_stopped(pid: int) -> bool:
    """True if a process stands still, as after SIGSTOP or under a debugger; where /proc is not there, never."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):  # it has ended, or this is not Linux
        return False


def _await(ranks: list[Started], seconds: float, tick: Callable[[], None] = lambda: None) -> list[Started]:
    """Wait for all to end; those who have not."""
    deadline = time.monotonic() + seconds
    while left := [process for process in ranks if process.poll() is None]:
        if time.monotonic() > deadline:
            break
        tick()
        time.sleep(0.02)
    return left


def _end(ranks: list[Started]) -> None:
    """End all that have not."""
    for number, seconds in ((signal.SIGTERM, TERMINATED), (signal.SIGKILL, 5.0)):
        ranks = [process for process in ranks if process.poll() is None]
        _signal(ranks, number)
        ranks = _await(ranks, seconds)


def _signal(ranks: list[Started], number: int) -> None:
    for process in ranks:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)


@contextlib.contextmanager
def _handing_on(ranks: list[Started]) -> Iterator[None]:
    """While entered, the signals that stop a training go to every rank, which know what to do: save, and end."""
    times = 0

    def hand_on(number: int, frame: Any) -> None:
        nonlocal times
        times += number in (signal.SIGINT, signal.SIGTERM)  # a closed terminal sends SIGHUP more than once
        _signal(ranks, number if times < 3 else signal.SIGKILL)

    before = {}
    if threading.current_thread() is threading.main_thread():  # only there may handlers be set
        before = {number: signal.signal(number, hand_on) for number in stopping_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
