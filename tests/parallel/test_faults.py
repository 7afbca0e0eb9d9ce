"""A failure of one rank ends all ranks within 10 s, with an error that names the rank and the cause."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import re
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from minillm.errors import MinillmError, ParallelError
from minillm.parallel import rendezvous, segments
from minillm.parallel.launch import run_rank

FORK = multiprocessing.get_context("forkserver")  # a process that has imported everything, and forks the ranks
FORK.set_forkserver_preload(["pytest", "numpy", "minillm.parallel.launch", "minillm.training.trainer"])
END = 10.0  # seconds in which every rank must have ended


class Ended(NamedTuple):
    """The end of a rank: its exit status (-9 after SIGKILL), and what it printed as errors."""

    status: int
    error: str


class Started:
    """Ranks of one job that run `function(communicator, *args)`; `changes`: what a rank's environment has otherwise."""

    def __init__(self, folder, function, size, *args, timeout=30.0, port=None, changes=None, only=None):
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        only = range(size) if only is None else only
        self.files = [Path(tempfile.mkdtemp(dir=folder)) / str(rank) for rank in only]
        self.processes = []
        for rank, file in zip(only, self.files, strict=True):
            environment = {
                "RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port or listener.getsockname()[1]),
                "MINILLM_TOKEN": "secret",
                "MINILLM_TIMEOUT": str(timeout),
                **(changes or {}).get(rank, {}),
            }
            given = listener if rank == 0 and port is None else None
            process = FORK.Process(target=rank_process, args=(environment, given, file, function, args))
            process.start()
            self.processes.append(process)
        listener.close()

    def kill(self, rank):
        """SIGKILL; whether the rank was still there."""
        there = self.processes[rank].exitcode is None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.processes[rank].pid, signal.SIGKILL)
        return there

    def wait(self, seconds=END):
        """Wait for the end of all ranks; one that has not ended after so many seconds fails the test."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        stuck = [i for i, process in enumerate(self.processes) if process.exitcode is None]
        pids = [process.pid for process in self.processes]
        for i in stuck:
            self.processes[i].kill()
            self.processes[i].join()
        found = [
            Ended(process.exitcode, file.read_text() if file.exists() else "")
            for process, file in zip(self.processes, self.files, strict=True)
        ]
        for process in self.processes:
            process.close()
        assert not stuck, f"ranks {stuck} did not end within {seconds} s: {found}"
        assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
        return found


def rank_process(environment, listener, file, function, args):
    """The main function of a process of `Started`: it does what the command line does."""
    os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), 2)
    os.environ.update(environment)
    if listener is not None:
        os.environ["MINILLM_LISTENER"] = str(listener.detach())
    try:
        run_rank(lambda communicator: function(communicator, *args))
    except MinillmError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def steps(communicator, fault=None, at=3, culprit=1, count=1 << 30):
    """Something like training: in each step a sum, a gathering, a ring, and a sum in a smaller group."""
    rank, size = communicator.rank, communicator.size
    pair = communicator.split(rank % 2)
    gradients, weights, pipe = np.ones(300_000), np.ones(size * 1000, np.float32), np.ones(1000)
    for step in range(count):
        if step == at and rank == culprit and fault is not None:
            fault(communicator)
        work = communicator.all_reduce(gradients, "mean")
        sending = communicator.send(pipe, (rank + 1) % size)
        communicator.recv(np.empty(1000), (rank - 1) % size).wait()
        sending.wait()
        work.wait()
        communicator.all_gather(weights[rank * 1000 : (rank + 1) * 1000].copy(), weights).wait()
        pair.all_reduce(np.ones(10)).wait()
        if step == at and rank != culprit and fault is computes:
            time.sleep(100)


def raises(communicator):
    raise ValueError("a bad\nbatch")


def raises_ours(communicator):
    raise MinillmError("train: the loss is nan; take a lower --lr")


def leaves(communicator):
    sys.exit(7)


def is_killed(communicator):
    os.kill(os.getpid(), signal.SIGKILL)


def ends_the_process(communicator):
    os._exit(0)


def is_interrupted(communicator):
    raise KeyboardInterrupt


def calls_another(communicator):
    communicator.barrier()


def calls_another_size(communicator):
    communicator.all_reduce(np.ones(299_999)).wait()


def calls_another_dtype(communicator):
    communicator.all_reduce(np.ones(600_000, np.float32)).wait()


def calls_another_root(communicator):
    communicator.broadcast(np.ones(10), root=1).wait()


def sends_another_size(communicator):
    communicator.send(np.ones(999), 0).wait()


def sleeps(communicator):
    time.sleep(100)


def computes(communicator):
    """The others do, when this one fails."""
    raise ValueError("while they compute")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("culprit", [0, 1])
@pytest.mark.parametrize(
    ("fault", "status", "cause"),
    [
        (raises, 1, "failed: ValueError: a bad batch; see what it printed"),
        (raises_ours, 2, "failed: train: the loss is nan; take a lower --lr; see what it printed"),
        (leaves, 7, "failed: SystemExit: 7"),
        (is_interrupted, None, "failed: KeyboardInterrupt"),
        (is_killed, -9, "failed: it ended without a message, as a killed process does"),
        (ends_the_process, 0, "failed: it ended without a message"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_rank_that_fails(tmp_path, culprit, fault, status, cause):
    found = Started(tmp_path, steps, 3, fault, 3, culprit).wait()
    assert found[culprit].status == status or status is None
    for rank, one in enumerate(found):
        if rank != culprit:
            prefix = f"rank {rank}: " if rank else ""
            assert one.status == rendezvous.OTHER_FAILED
            assert one.error.startswith(f"{prefix}rank {culprit} {cause}")
            assert one.error.count("\n") == 1  # one error, and no more


def test_the_rank_that_fails_shows_where(tmp_path):
    found = Started(tmp_path, steps, 2, raises, 3, 1).wait()
    assert all(line.startswith("rank 1: ") for line in found[1].error.splitlines())
    assert 'raise ValueError("a bad\\nbatch")' in found[1].error
    found = Started(tmp_path, steps, 2, raises_ours, 3, 1).wait()
    assert found[1].error == "rank 1: train: the loss is nan; take a lower --lr\n"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            calls_another,
            "all_reduce: the ranks do not do the same: rank 0 calls all_reduce of 2400000 bytes; rank 1 calls barrier; "
            "rank 2 calls all_reduce of 2400000 bytes",
        ),
        (calls_another_size, "rank 1 calls all_reduce of 2399992 bytes"),
        (calls_another_dtype, "the ranks do not do the same"),
        (calls_another_root, "rank 1 calls broadcast of 80 bytes"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_ranks_that_do_different_things(tmp_path, fault, message):
    for one in Started(tmp_path, steps, 3, fault).wait():
        assert one.status in (1, 2, rendezvous.OTHER_FAILED)
        assert message.partition(": ")[2] in one.error or message in one.error
        assert one.error.count("\n") == 1


def test_a_message_of_another_size(tmp_path):
    for one in Started(tmp_path, steps, 3, sends_another_size, 3, 2).wait():
        assert "recv: rank 2 sends 7992 bytes, but rank 0 expects 8000" in one.error


def test_a_collective_waits_no_longer_than_its_timeout(tmp_path):
    found = Started(tmp_path, steps, 4, sleeps, 3, 2, timeout=1.5).wait()
    for rank in (0, 1, 3):
        assert re.search(r"waited 1.5 s for ranks? 2", found[rank].error), found
        assert "have arrived" in found[rank].error
    assert found[2].status == rendezvous.OTHER_FAILED  # it slept on, and was ended
    assert "waited 1.5 s" in found[2].error


def test_ranks_that_compute_on_are_ended(tmp_path):
    found = Started(tmp_path, steps, 3, computes, 3, 1).wait()
    for rank in (0, 2):
        assert found[rank].status == rendezvous.OTHER_FAILED
        assert "rank 1 failed: ValueError: while they compute" in found[rank].error
        assert found[rank].error.count("\n") == 1


# --- while they meet -----------------------------------------------------------------------------------------------


def test_a_wrong_world_size(tmp_path):
    for one in Started(tmp_path, steps, 3, changes={2: {"WORLD_SIZE": "4"}}).wait():
        assert one.status == 2
        assert "rendezvous: rank 2 has WORLD_SIZE=4, but rank 0 has 3; start all alike" in one.error


def test_a_rendezvous_that_never_completes(tmp_path):
    found = Started(tmp_path, steps, 4, timeout=1.5, only=(0, 1, 3)).wait()
    for one in found:
        assert one.status == 2
    assert "rendezvous: rank 2 did not come within 1.5 s" in found[0].error


def test_a_port_in_use(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        found = Started(tmp_path, steps, 3, port=port).wait()
    assert [one.status for one in found] == [2, 2, 2]
    assert f"rank 0 cannot listen at 127.0.0.1:{port}" in found[0].error
    assert f"what listens at 127.0.0.1:{port} does not answer as rank 0 does" in found[1].error


def steps_until(communicator, file):
    """Goes on until there is such a file, and writes another when it has begun."""
    steps(communicator, count=2)
    file.with_suffix(f".{communicator.rank}").touch()
    while not communicator.max_of(float(file.exists()))[0]:
        steps(communicator, count=2)


def test_another_job_at_the_port(tmp_path):
    """Two jobs with one port: the second ends, the first does not notice."""
    port, stop = free_port(), tmp_path / "stop"
    first = Started(tmp_path, steps_until, 2, stop, port=port)
    while not stop.with_suffix(".0").exists():
        time.sleep(0.05)
    second = Started(tmp_path, steps, 2, port=port, changes={rank: {"MINILLM_TOKEN": "other"} for rank in range(2)})
    found = second.wait()
    assert f"rank 0 cannot listen at 127.0.0.1:{port}" in found[0].error
    assert "it has another token" in found[1].error
    stop.touch()
    assert first.wait() == [Ended(0, ""), Ended(0, "")]


# --- killed at random moments --------------------------------------------------------------------------------------


def shared_memory_names():
    return {name for name in os.listdir("/dev/shm") if name.startswith("psm_")} if os.path.isdir("/dev/shm") else set()


def test_killed_50_times_at_random_moments(tmp_path):
    draw, before = random.Random(), shared_memory_names()
    seed = draw.randrange(1 << 30)
    draw.seed(seed)
    statuses = []
    for _ in range(5):
        jobs = []
        for _ in range(10):
            moment = time.monotonic() + draw.random() ** 3  # about half of them while the ranks meet, or split
            jobs.append((Started(tmp_path, steps, 3, timeout=5.0), draw.randrange(3), moment))
        for job, rank, moment in sorted(jobs, key=lambda one: one[2]):
            time.sleep(max(0.0, moment - time.monotonic()))
            assert job.kill(rank), job.wait()
        for job, killed, _ in jobs:
            found = job.wait()
            assert found[killed].status == -9, (seed, found)
            causes = [f"rank {killed} failed: it ended without a message", f"rank {killed} did not come within 5 s"]
            if killed == 0:
                causes += ["found no rank 0 at", "does not answer as rank 0 does"]
            for one in found[:killed] + found[killed + 1 :]:
                assert one.status in (2, rendezvous.OTHER_FAILED), (seed, killed, found)
                assert one.error.count("\n") == 1, (seed, killed, found)
                assert any(cause in one.error for cause in causes), (seed, killed, found)
                statuses.append(one.status)
    assert set(statuses) == {2, rendezvous.OTHER_FAILED}, seed  # some were told while they met, some in a step
    assert shared_memory_names() <= before


class ToldLater:
    """A job in which it takes a moment until a rank is known to have failed."""

    def __init__(self):
        self.asked = 0

    def check(self):
        self.asked += 1
        if self.asked == 3:
            raise ParallelError("rank 0 failed: it ended without a message")


def test_memory_that_ended_with_its_owner_is_laid_to_that():
    """A rank is killed between telling the name of its memory and the others' opening it."""
    with pytest.raises(ParallelError, match="rank 0 failed"):
        segments.attach_to(1, 0, "/proc/1/fd/no-such", ToldLater())
