"""The right ranks meet, the wrong ones are told why, strangers stay out, and all ranks learn of a failure."""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import re
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minillm.errors import InputError, MinillmError, ParallelError
from minillm.parallel import rendezvous
from minillm.parallel.peer import listen
from minillm.parallel.place import Place, first_host, world_size
from minillm.parallel.rendezvous import MAGIC, join

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29500",
    "MINILLM_TOKEN": "secret",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "6",
    "SLURM_LOCALID": "2",
    "SLURM_JOB_NODELIST": "gpu[007-009,012],cpu1",
    "SLURM_JOB_ID": "123456",
    "MINILLM_TOKEN": "secret",
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def no_end(status):
    raise AssertionError(f"the process would have been ended with status {status}")


def place_of(rank, size, port, **changes):
    return Place(**{**dict(rank=rank, size=size, port=port, token="secret", timeout=20.0), **changes})


def together(calls):
    """The result of each function, or the MinillmError that it raises, when all of them run at the same time."""

    def outcome(call):
        try:
            return call()
        except MinillmError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(60) for future in [pool.submit(outcome, call) for call in calls]]


def meet(size, end=no_end, **changes):
    port = free_port()
    return together([lambda r=r: join(place_of(r, size, port, **changes), end=end) for r in range(size)])


def end_all(jobs):
    together([job.close for job in jobs])


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def settled(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "nothing happened within 10 s"
        time.sleep(0.01)


# --- the environment -----------------------------------------------------------------------------------------------


def test_places_of_launchers():
    assert Place.from_environment(TORCHRUN) == Place(3, 8, 1, "node7", 29500, "secret", 300.0)
    assert Place.from_environment(SLURM) == Place(5, 6, 2, "gpu007", 20000 + 123456 % 10000, "secret", 300.0)
    own = Place.from_environment({**TORCHRUN, "MINILLM_TIMEOUT": "7.5", "MINILLM_LISTEN": "10.0.0.1"})
    assert (own.timeout, own.listen) == (7.5, "10.0.0.1")
    one_a_pod = {name: value for name, value in TORCHRUN.items() if name != "LOCAL_RANK"}
    assert Place.from_environment(one_a_pod).local_rank == 0
    # torchrun listens at MASTER_PORT itself
    assert Place.from_environment({**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "True"}).port == 29501
    # ranks that another launcher starts within a job of Slurm
    assert Place.from_environment({**SLURM, **TORCHRUN}).rank == 3
    assert Place.from_environment({**SLURM, "MASTER_ADDR": "here", "MASTER_PORT": "9"}).address == "here"
    assert "secret" not in repr(Place.from_environment(TORCHRUN))


def test_world_size():
    assert [world_size(environment) for environment in ({}, TORCHRUN, SLURM, {"SLURM_NTASKS": "4"})] == [1, 8, 6, 1]
    with pytest.raises(InputError, match="WORLD_SIZE is 'many'"):
        world_size({"WORLD_SIZE": "many"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("a", "a"),
        ("a1,b2", "a1"),
        ("gpu[7-9]", "gpu7"),
        ("gpu[007,009]", "gpu007"),
        ("r[01-04]n[10,12-13],x", "r01n10"),
        ("n[3-4].cluster.org,m", "n3.cluster.org"),
        ("my-node-[1,2]", "my-node-1"),
    ],
)
def test_first_host(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": None}, "RANK is not set"),
        ({"MASTER_ADDR": None, "MASTER_PORT": None}, "MASTER_ADDR, MASTER_PORT are not set; start with"),
        ({"RANK": "8"}, "RANK is '8'; set it to a number from 0 to 7"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"RANK": "²"}, "RANK is '²'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x'"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT is '70000'; set it to a number from 1 to 65535"),
        ({"MINILLM_TOKEN": None}, r"export MINILLM_TOKEN=\$\(openssl rand -hex 16\)"),
        ({"MINILLM_TOKEN": ""}, "MINILLM_TOKEN is not set"),
        ({"MINILLM_TIMEOUT": "soon"}, "MINILLM_TIMEOUT is 'soon'"),
        ({"MINILLM_TIMEOUT": "nan"}, "MINILLM_TIMEOUT is 'nan'"),
    ],
)
def test_wrong_environments(changes, message):
    environment = {name: value for name, value in {**TORCHRUN, **changes}.items() if value is not None}
    with pytest.raises(InputError, match=message):
        Place.from_environment(environment)


def test_without_a_launcher():
    with pytest.raises(InputError, match="RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not set; start with `minillm"):
        Place.from_environment({})


# --- meeting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5])
def test_ranks_meet_share_and_agree(size):
    jobs = meet(size)
    assert [job.rank for job in jobs] == list(range(size))
    for value in (b"", b"\x00name", os.urandom(128)):
        shared = together([lambda job=job, value=value: job.share(b"other" if job.rank else value) for job in jobs])
        assert shared == [value] * size
    assert together([lambda job=job: job.agree("data", "x" * 500) for job in jobs]) == [None] * size
    for job in jobs:
        job.check()
    assert together([job.close for job in jobs]) == [None] * size


def test_rank_0_may_come_last():
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(join, place_of(1, 2, port))
        time.sleep(0.3)
        jobs = [join(place_of(0, 2, port)), first.result(20)]
    end_all(jobs)


def test_ranks_that_differ_are_named():
    jobs = meet(4)
    errors = together([lambda j=j: j.agree("data", "b" if j.rank == 2 else "a", "use one text") for j in jobs])
    texts = {str(error) for error in errors}
    assert texts == {"agree: the ranks differ: data b on rank 2; but data a on ranks 0, 1 and 3; use one text"}
    # long values are told apart though they begin alike
    long = ["x" * 1000, "x" * 1000, "x" * 1000, "x" * 999 + "y"]
    errors = together([lambda j=j: j.agree("settings", long[j.rank]) for j in jobs])
    assert all(re.search("on rank 3; but .* on ranks 0, 1 and 2", str(error)) for error in errors)
    # and that was all: they may go on
    assert together([lambda j=j: j.agree("data", "same") for j in jobs]) == [None] * 4
    end_all(jobs)


def test_ranks_that_do_different_things_are_named():
    jobs = meet(2)
    errors = together([lambda: jobs[0].agree("model", "1"), lambda: jobs[1].agree("data", "1")])
    assert all("data 1 on rank 1; but model 1 on rank 0" in str(error) for error in errors)
    errors = together([lambda: jobs[0].share(b"x"), lambda: jobs[1].agree("data", "1")])
    assert "verdict: rank 0 does something else (share)" in str(errors[1])
    jobs[1].fail(errors[1])
    settled(lambda: jobs[0].failure)
    with pytest.raises(ParallelError, match="rank 0 does something else"):
        jobs[0].check()
    jobs[0].fail("over")


def test_too_much_to_share():
    jobs = meet(2)
    with pytest.raises(InputError, match="a message holds 65536"):
        jobs[0].share(bytes(40000))
    end_all(jobs)


def test_a_missing_rank_is_named():
    port = free_port()
    errors = together([lambda r=r: join(place_of(r, 5, port, timeout=1.0), end=no_end) for r in (0, 2, 3)])
    assert len({str(error) for error in errors}) == 1
    assert str(errors[0]).startswith("rendezvous: ranks 1 and 4 did not come within 1 s; see whether they were started")


def test_rank_0_is_missing():
    port = free_port()
    with pytest.raises(ParallelError, match=rf"rank 1 found no rank 0 at 127.0.0.1:{port} within 0.3 s .*MASTER_ADDR"):
        join(place_of(1, 2, port, timeout=0.3))


def test_a_wrong_world_size_is_told_to_all():
    port = free_port()
    places = [place_of(0, 3, port), place_of(1, 3, port), place_of(2, 4, port)]
    errors = together([lambda place=place: join(place, end=no_end) for place in places])
    assert {str(error) for error in errors} == {
        "rendezvous: rank 2 has WORLD_SIZE=4, but rank 0 has 3; start all alike"
    }


def test_a_rank_that_comes_twice_is_told_to_all():
    port = free_port()
    places = [place_of(rank, 3, port) for rank in (0, 1, 1)]
    errors = together([lambda place=place: join(place, end=no_end) for place in places])
    assert {str(error) for error in errors} == {
        "rendezvous: two processes say that they are rank 1; give each its own RANK"
    }


def test_who_comes_too_late_is_told_and_nobody_else():
    port = free_port()
    jobs = together([lambda r=r: join(place_of(r, 2, port), end=no_end) for r in range(2)])
    with pytest.raises(ParallelError, match="two processes say that they are rank 1"):
        join(place_of(1, 2, port), end=no_end)
    with pytest.raises(ParallelError, match="rank 1 has WORLD_SIZE=3"):
        join(place_of(1, 3, port), end=no_end)
    assert together([lambda j=j: j.share(b"on") for j in jobs]) == [b"on", b"on"]
    end_all(jobs)


# --- the port ------------------------------------------------------------------------------------------------------


def test_a_port_in_use():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ParallelError, match=f"rank 0 cannot listen at 127.0.0.1:{port} .*in use.*set MASTER_PORT"):
            join(place_of(0, 2, port))


def test_an_address_of_another_machine():
    with pytest.raises(ParallelError, match=r"cannot listen at 192.0.2.1:1234 .*MINILLM_LISTEN"):
        join(place_of(0, 2, 1234, address="192.0.2.1"))
    with pytest.raises(ParallelError, match=r"cannot listen at no.such.name.invalid"):
        listen(place_of(0, 2, 1234, address="no.such.name.invalid"))


def test_rank_0_listens_on_one_interface_only():
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(join, place_of(0, 2, port, address="elsewhere.invalid", listen="127.0.0.1"))
        settled(lambda: answers(port) or waiting.done())
        for other in ("127.0.0.2", "127.9.9.9"):  # this machine, too
            with socket.socket() as probe:
                assert probe.connect_ex((other, port)) != 0
        job = join(place_of(1, 2, port))
        end_all([job, waiting.result(20)])


@contextlib.contextmanager
def answering(answer):
    """A server that is none of ours: `answer(connection)` for each that connects."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(10)

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, contextlib.suppress(OSError):
                        answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def reflecting(connection):
    """Sends back what a rank proves, in the hope that it takes its own proof for that of rank 0."""
    connection.sendall(MAGIC + bytes(32))
    got = connection.recv(72, socket.MSG_WAITALL)
    connection.sendall(got[40:])
    time.sleep(0.2)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda c: c.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
            "does not answer as rank 0 does",
        ),
        (lambda c: c.sendall(b"x"), "does not answer as rank 0 does"),
        (lambda c: time.sleep(1.0), r"does not answer as rank 0 does \(timed out\)"),
        (lambda c: c.sendall(MAGIC + bytes(64)), r"does not answer as rank 0 does \(it has another token\)"),
        (lambda c: None, r"found no rank 0 at 127.0.0.1:\d+ within 1 s \(it has no room\)"),
        (reflecting, r"does not answer as rank 0 does \(it has another token\)"),
    ],
    ids=["http", "short", "silent", "liar", "busy", "mirror"],
)
def test_something_else_listens(answer, message, monkeypatch):
    monkeypatch.setattr(rendezvous, "HANDSHAKE", 0.5)
    with answering(answer) as port, pytest.raises(ParallelError, match=message):
        join(place_of(1, 2, port, timeout=1.0))


def test_only_who_knows_the_token_comes_in():
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(join, place_of(0, 2, port))
        for token in ("x", "Secret", "secret "):
            with pytest.raises(ParallelError, match="it has another token"):
                join(place_of(1, 2, port, token=token))
        with pytest.raises(InputError, match="MINILLM_TOKEN is not set"):
            join(place_of(1, 2, port, token=""))
        job = join(place_of(1, 2, port))
        end_all([job, waiting.result(20)])


def test_refused_connections_are_counted():
    port = free_port()
    places = [place_of(0, 2, port, timeout=1.0), place_of(1, 2, port, token="other")]
    errors = together([lambda place=place: join(place) for place in places])
    assert "rank 1 did not come within 1 s, and 1 connections had another MINILLM_TOKEN" in str(errors[0])


def test_a_proof_cannot_be_used_twice():
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(join, place_of(0, 2, port))

        def proof(connection, nonce=None):
            settled_nonce = connection.recv(len(MAGIC) + 32, socket.MSG_WAITALL)[len(MAGIC) :]
            who = struct.pack(">II", 1, 2)
            return (
                bytes(32) + who + hmac.digest(b"secret", b"rank" + (nonce or settled_nonce) + bytes(32) + who, "sha256")
            )

        settled(lambda: answers(port))
        with socket.create_connection(("127.0.0.1", port)) as first:
            heard = proof(first)  # the right one, for this connection; it is not sent
        for sent in (heard, proof, heard[:40] + bytes(32)):
            with socket.create_connection(("127.0.0.1", port)) as second:
                second.sendall(proof(second, bytes(32)) if callable(sent) else sent)
                second.settimeout(5)
                second.recv(len(MAGIC) + 32, socket.MSG_WAITALL)
                with contextlib.suppress(ConnectionResetError):
                    assert second.recv(1) == b""
        assert not waiting.done()
        end_all([join(place_of(1, 2, port)), waiting.result(20)])


@pytest.fixture(scope="module")
def running_port():
    """A job of two ranks, and the port at which rank 0 still listens."""
    port = free_port()
    jobs = together([lambda r=r: join(place_of(r, 2, port), end=no_end) for r in range(2)])
    yield port, jobs
    assert together([job.close for job in jobs]) == [None, None]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), abort=st.booleans(), wait=st.booleans())
def test_bad_bytes_end_their_connection_alone(running_port, data, abort, wait):
    port, jobs = running_port
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.settimeout(10)
        if wait:
            stranger.recv(len(MAGIC) + 32, socket.MSG_WAITALL)
        with contextlib.suppress(ConnectionError):
            stranger.sendall(data)
            if abort:  # a reset, not an end
                stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif wait:
                stranger.shutdown(socket.SHUT_WR)
                assert stranger.recv(1) == b""
    for job in jobs:
        job.check()
    assert together([lambda j=j: j.share(data) for j in jobs]) == [data, data]


def test_bad_bytes_do_not_keep_ranks_from_meeting(rng):
    port = free_port()
    stop = threading.Event()

    def pester():
        while not stop.is_set():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as stranger:
                stranger.sendall(rng.bytes(int(rng.integers(0, 200))))

    thread = threading.Thread(target=pester)
    thread.start()
    try:
        jobs = together([lambda r=r: join(place_of(r, 3, port), end=no_end) for r in range(3)])
        assert together([lambda j=j: j.share(b"x") for j in jobs]) == [b"x"] * 3
        end_all(jobs)
    finally:
        stop.set()
        thread.join()


def test_silent_connections_do_not_keep_ranks_from_meeting(monkeypatch):
    monkeypatch.setattr(rendezvous, "HANDSHAKE", 1.0)
    monkeypatch.setattr(rendezvous, "STRANGERS", 4)
    port = free_port()
    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as open_ones:
        waiting = pool.submit(join, place_of(0, 2, port))
        settled(lambda: answers(port))
        for _ in range(20):
            open_ones.enter_context(socket.create_connection(("127.0.0.1", port)))
        end_all([join(place_of(1, 2, port)), waiting.result(20)])


@pytest.mark.parametrize(
    "frame",
    [
        (1 << 31).to_bytes(4, "big"),
        b"\x00\x00\x00\x02[]",
        b"\x00\x00\x00\x02{}",
        b"\x00\x00\x00\x03\xff{}",
        b"\x00\x00\x00\x04" + b"[" * 4,
        b"\x00\x00\xff\xff" + b"[" * 0xFFFF,
        b"\x00\x00\x00\x11" + json.dumps({"kind": "failed"}).encode(),
    ],
)
def test_a_rank_that_sends_no_message_has_failed(frame):
    jobs = meet(3)
    jobs[1]._peers[0].connection.sendall(frame)
    for job in (jobs[0], jobs[2]):
        settled(lambda job=job: job.failure is not None)
        with pytest.raises(ParallelError, match="rank 1 failed"):
            job.check()
    for job in jobs:
        job.fail("over")


# --- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("culprit", [0, 1, 3])
def test_a_rank_that_raises_is_known_to_all(culprit):
    jobs = meet(4)
    called = [threading.Event() for _ in jobs]
    for job, event in zip(jobs, called, strict=True):
        job.on_failure(event.set)
    with pytest.raises(KeyError), jobs[culprit]:
        raise KeyError("the\ncause")
    for job, event in zip(jobs, called, strict=True):
        if job.rank == culprit:
            job.check()  # it has an error of its own
            assert not event.is_set()
            continue
        assert event.wait(10)
        with pytest.raises(
            ParallelError, match=rf"^rank {culprit} failed: KeyError: 'the\\ncause'; see what it printed"
        ):
            job.check()
        again = threading.Event()
        job.on_failure(again.set)
        assert again.is_set()
        for call in (job.share, lambda job=job: job.agree("data", "1"), job.close):
            with pytest.raises(ParallelError, match=rf"^rank {culprit} failed: KeyError"):
                call()


@pytest.mark.parametrize("culprit", [0, 2])
def test_a_rank_that_ends_without_a_word_is_known_to_all(culprit):
    jobs = meet(3)
    jobs[culprit]._closed = True  # it says nothing any more
    for peer in jobs[culprit]._peers.values():  # as the system does when a process is killed
        peer.connection.shutdown(socket.SHUT_RDWR)
    for job in jobs:
        if job.rank != culprit:
            settled(lambda job=job: job.failure is not None)
            with pytest.raises(
                ParallelError, match=f"rank {culprit} failed: it ended without a message, as a killed process"
            ):
                job.check()
    for job in jobs:
        job.fail("over")


def test_the_first_failure_counts():
    jobs = meet(3)
    jobs[2].fail(ValueError("first"))
    settled(lambda: all(job.failure for job in jobs))
    jobs[1].fail("second")
    assert {job.failure for job in jobs} == {
        "rank 2 failed: ValueError: first; see what it printed, and start all ranks again"
    }
    assert [job.is_cause for job in jobs] == [False, False, True]
    jobs[0].fail("over")


def test_a_rank_that_waits_is_woken():
    jobs = meet(3)
    calls = [lambda: jobs[0].agree("data", "1"), lambda: jobs[1].share(), lambda: jobs[2].fail("it burns")]
    errors = together(calls)
    assert all(str(error).startswith("rank 2 failed: it burns") for error in errors[:2])
    for job in jobs:
        job.fail("over")


def test_a_rank_that_says_nothing_is_named():
    jobs = meet(2, timeout=0.5)
    with pytest.raises(ParallelError, match=r"agree: rank 1 said nothing for 0.5 s"):
        jobs[0].agree("data", "1")
    jobs[1].close()
    settled(lambda: 1 in jobs[0]._left)
    with pytest.raises(ParallelError, match="agree: rank 1 has left the job"):
        jobs[0].agree("data", "1")
    jobs[0].close()


def test_a_goodbye_is_no_failure():
    jobs = meet(3)
    jobs[2].close()
    settled(lambda: 2 in jobs[0]._left)
    jobs[0].check()
    jobs[1].check()
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(jobs[0].close)
        time.sleep(0.2)
        assert not closing.done()  # rank 0 waits, to tell rank 2 of what happens to rank 1
        jobs[1].close()
        assert closing.result(10) is None
    assert [job.failure for job in jobs] == [None] * 3
    for job in jobs:
        job.close()  # once more does nothing


def test_a_failure_while_rank_0_waits_for_the_end():
    jobs = meet(2)
    errors = together([jobs[0].close, lambda: jobs[1].fail("at the end")])
    assert str(errors[0]).startswith("rank 1 failed: at the end")


def test_rank_0_does_not_wait_for_ever():
    jobs = meet(2, timeout=0.3)
    with pytest.raises(ParallelError, match=r"close: rank 0 waited 0.3 s for rank 1 to end"):
        jobs[0].close()
    jobs[1].fail("over")


def test_a_rank_that_does_not_come_is_ended(monkeypatch, capfd):
    monkeypatch.setattr(rendezvous, "GRACE", 0.3)
    statuses = []
    jobs = meet(3, end=statuses.append)
    jobs[1].fail("it burns")
    settled(lambda: jobs[0].failure and jobs[2].failure)
    jobs[0].fail("this one came")
    settled(lambda: statuses)
    time.sleep(0.3)
    assert statuses == [rendezvous.OTHER_FAILED]
    assert capfd.readouterr().err.strip() == f"rank 2: {jobs[1].failure}"
    jobs[2].fail("over")


def test_all_connections_are_closed():
    before, threads = len(os.listdir("/proc/self/fd")), set(threading.enumerate())
    for _ in range(3):
        end_all(meet(3))
        jobs = meet(3)
        jobs[1].fail("it burns")
        for job in jobs:
            job.fail("over")
    settled(lambda: len(os.listdir("/proc/self/fd")) <= before)
    settled(lambda: not [one for one in set(threading.enumerate()) - threads if one.name.startswith("minillm")])
