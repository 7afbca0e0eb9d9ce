"""Ranks find each other, and each of them learns when another has failed.

Rank 0 listens at MASTER_ADDR:MASTER_PORT, on that interface alone, and every other rank connects to it. Each side
proves to the other that it knows MINILLM_TOKEN, which never travels (challenge and response, HMAC-SHA256, RFC 2104):

    rank 0 -> r    magic, a                               a and b are nonces: 32 random bytes each
    r -> rank 0    b, r, n, HMAC(token, "rank", a, b, r, n)
    rank 0 -> r    HMAC(token, "root", a, b)              the labels keep one proof from serving as the other

All of this has a fixed length and a time limit, so anything else that connects to the port ends its own connection and
nothing more. Later messages are not encrypted, and neither are gradients: the network between ranks is trusted.

The connections stay open for as long as the job runs, and carry frames: four bytes of length, and a JSON object.
They show who is alive. A rank that raises says so; the end of a connection shows that a rank was killed, unanswered
keep-alives that a machine was lost. Rank 0 tells all others, and if rank 0 dies, all see it themselves. A rank that
still computes five seconds after it was told is ended, so that no process is left behind.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import hmac
import os
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from minillm.errors import InputError, MinillmError, ParallelError
from minillm.parallel.peer import Peer, connect, listen, read
from minillm.parallel.place import NO_TOKEN, Place

MAGIC = b"minillm\x01"
HANDSHAKE = 5.0  # seconds that a connection has to prove that it is a rank
GRACE = 5.0  # seconds that a rank has to end by itself, after another has failed
ROOT_FIRST = 1.0  # seconds that another rank leaves rank 0 to tell of an error that both may have
OTHER_FAILED = 3  # exit status of a rank that ended because another failed
KILLED = "it ended without a message, as a killed process does"
STRANGERS = 64  # connections that may be in the handshake at once, in addition to those of the ranks


def join(place: Place, listener: socket.socket | None = None, end: Callable[[int], Any] = os._exit) -> Job:
    """Meet the other ranks; returns when all have come.

    listener: for rank 0, a socket that is bound already. end: called with an exit status where this process must end.

    Raises: ParallelError, on every rank that can know of it, if a rank is missing after `place.timeout`, two ranks have
    one number or different world sizes, the port is in use, or a token is wrong.
    """
    job = Job(place, end)
    if place.size > 1:
        if not place.token:
            raise InputError(NO_TOKEN)
        try:
            job._gather(listener or listen(place)) if place.rank == 0 else job._reach()
        except BaseException as error:
            job.fail(error)
            raise
    return job


class Job:
    """All ranks that were started together, seen from one of them; every rank makes the same calls of share and agree.

    `with join(place) as job:` tells the others of an exception that leaves the block; otherwise it says goodbye.
    """

    def __init__(self, place: Place, end: Callable[[int], Any] = os._exit):
        self.place, self.rank, self.size = place, place.rank, place.size
        self.failure: str | None = None  # one sentence: which rank failed, and why
        self.is_cause = False  # whether it was this rank
        self._end = end
        self._peers: dict[int, Peer] = {}  # rank 0 has all others, the others have rank 0
        self._mail: dict[int, collections.deque[dict[str, Any]]] = collections.defaultdict(collections.deque)
        self._left: set[int] = set()  # who said goodbye
        self._changed = threading.Condition(threading.RLock())  # guards all of this
        self._callbacks: list[Callable[[], Any]] = []
        self._complete = self._closed = False
        self._listener: socket.socket | None = None
        self._told: set[int] = set()  # who came when it was too late
        self._unknown = 0  # connections that did not know the token

    # --- what ranks do together --------------------------------------------------------------------------------------

    def share(self, value: bytes = b"") -> bytes:
        """Returns the value of rank 0 on every rank; it may have some thousand bytes."""
        self.check()
        if self.rank:
            return bytes.fromhex(self._take(0, "share")["value"])
        for peer in self._peers.values():
            peer.send(kind="share", value=value.hex())
        self.check()
        return value

    def agree(self, what: str, value: str, advice: str = "start all ranks with the same") -> None:
        """Return if every rank passes the same value. what: the name of the value, such as `data`.

        Raises: ParallelError, on all ranks, that names the ranks that differ.
        """
        self.check()
        value = value if len(value) <= 200 else f"{value[:100]}... {hashlib.sha256(value.encode()).hexdigest()[:16]}"
        if self.rank:
            self._peers[0].send(kind="agree", what=what, value=value)
            verdict = self._take(0, "verdict")["text"]
        else:
            said = {0: (what, value)}
            for rank in range(1, self.size):
                message = self._take(rank, "agree")
                said[rank] = message["what"], message["value"]
            verdict = _disagreement(said, advice)
            for peer in self._peers.values():
                peer.send(kind="verdict", text=verdict)
        if verdict:
            raise ParallelError(verdict)

    # --- whether a rank has failed -----------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise ParallelError if another rank has failed."""
        if (told := self.told()) is not None:
            raise ParallelError(told)

    def told(self) -> str | None:
        """The sentence about another rank that has failed, if one has."""
        return None if self.is_cause else self.failure

    def on_failure(self, callback: Callable[[], Any]) -> None:
        """Call this, on another thread, as soon as another rank has failed; at once if one has."""
        with self._changed:
            if self.failure is None:
                self._callbacks.append(callback)
                return
        if not self.is_cause:
            callback()

    def fail(self, cause: BaseException | str) -> None:
        """Tell the others that this rank has failed, unless another has before it, and leave the job.

        A ParallelError names the rank that is the cause itself. A wrong setting is found by all ranks at one time, so
        the others let rank 0 tell of it first.
        """
        with self._changed:
            if self.rank and isinstance(cause, MinillmError) and not isinstance(cause, ParallelError):
                self._changed.wait_for(lambda: self.failure is not None or self._closed, ROOT_FIRST)
            if self._closed:
                return
            if first := self.failure is None:
                self.is_cause = True
                self.failure = str(cause) if isinstance(cause, ParallelError) else _failed(self.rank, describe(cause))
            self._closed = True
            self._changed.notify_all()
        if first:
            for peer in self._peers.values():
                peer.send(kind="failed", text=self.failure)
        self._hang_up()

    def close(self) -> None:
        """Say goodbye; rank 0 waits until all others have, because it tells them of failures.

        Raises: ParallelError if another rank has failed.
        """
        with self._changed:
            if self._closed:
                return
            if self.rank == 0:
                others = set(self._peers)
                self._changed.wait_for(lambda: self.failure is not None or others <= self._left, self.place.timeout)
                late = sorted(others - self._left)
            self._closed = True
        if self.failure is None:
            for peer in self._peers.values():
                peer.send(kind="bye")
        self._hang_up()
        self.check()
        if self.rank == 0 and late:
            raise ParallelError(
                f"close: rank 0 waited {self.place.timeout:g} s for {_ranks(late)} to end; see what they are doing"
            )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.close()
        else:
            self.fail(error)

    # --- rank 0 ------------------------------------------------------------------------------------------------------

    def _gather(self, listener: socket.socket) -> None:
        """Listen until all other ranks have come."""
        self._listener = listener
        listener.listen(max(128, self.size))
        threading.Thread(target=self._accept, args=(listener,), name="minillm-rendezvous", daemon=True).start()
        with self._changed:
            everyone = set(range(1, self.size))
            self._changed.wait_for(lambda: self.failure or everyone <= set(self._peers), self.place.timeout)
            if self.failure:  # who comes within the next seconds is told, too
                self._changed.wait_for(lambda: everyone <= self._told | set(self._peers), GRACE - 1.0)
            self.check()
            if missing := sorted(everyone - set(self._peers)):
                refused = f", and {self._unknown} connections had another MINILLM_TOKEN" if self._unknown else ""
                raise ParallelError(
                    f"rendezvous: {_ranks(missing)} did not come within {self.place.timeout:g} s{refused}; see whether "
                    "they were started and can reach rank 0, or wait longer with MINILLM_TIMEOUT"
                )
            self._complete = True
        for peer in self._peers.values():
            peer.send(kind="welcome")

    def _accept(self, listener: socket.socket) -> None:
        """Handle each connection on a thread of its own, so that none can keep the others waiting."""
        greetings = threading.Semaphore(STRANGERS + self.size)
        while not self._closed:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed, or no more files may be opened now
                time.sleep(0.05)
                continue
            if greetings.acquire(blocking=False):
                threading.Thread(target=self._greet, args=(connection, greetings), daemon=True).start()
            else:
                connection.close()

    def _greet(self, connection: socket.socket, greetings: threading.Semaphore) -> None:
        """Let a connection prove that it is a rank of this job, or close it."""
        try:
            deadline = time.monotonic() + HANDSHAKE
            connection.settimeout(HANDSHAKE)
            nonce = secrets.token_bytes(32)
            connection.sendall(MAGIC + nonce)
            theirs, who, proof = struct.unpack("32s8s32s", read(connection, 72, deadline))
            rank, size = struct.unpack(">II", who)
            if not hmac.compare_digest(proof, self._proof(b"rank", nonce, theirs, who)):
                self._unknown += 1
                raise ConnectionError("unknown")
            connection.sendall(self._proof(b"root", nonce, theirs))
        except OSError:
            connection.close()
            return
        finally:
            greetings.release()
        self._admit(rank, size, Peer(connection))

    def _admit(self, rank: int, size: int, peer: Peer) -> None:
        """Add the peer to the job, or tell it why not; before the job is complete a refusal ends it."""
        with self._changed:
            if size != self.size:
                refusal = f"rank {rank} has WORLD_SIZE={size}, but rank 0 has {self.size}; start all alike"
            elif not 0 < rank < size or rank in self._peers:
                refusal = f"two processes say that they are rank {rank}; give each its own RANK"
            else:
                refusal = self.failure or ""
            if not refusal:
                self._add(rank, peer)
        if refusal:
            refusal = refusal if self.failure else f"rendezvous: {refusal}"
            peer.send(kind="failed", text=refusal)
            peer.close()
            if not self._complete:
                self._failed(refusal)
                with self._changed:
                    self._told.add(rank)
                    self._changed.notify_all()

    # --- the other ranks ---------------------------------------------------------------------------------------------

    def _reach(self) -> None:
        """Connect to rank 0, which may not have started yet, and wait until all ranks have come."""
        place, deadline = self.place, time.monotonic() + self.place.timeout
        where = f"{place.address}:{place.port}"
        while True:
            try:
                started = time.monotonic()
                connection = connect(place, HANDSHAKE)
                break
            except OSError as error:  # not there yet, or has no room now
                if time.monotonic() > deadline:
                    raise ParallelError(
                        f"rendezvous: rank {place.rank} found no rank 0 at {where} within {place.timeout:g} s "
                        f"({error}); see whether it runs, and set MASTER_ADDR and MASTER_PORT to where it does"
                    ) from None
            time.sleep(0.05)
        try:
            self._prove(connection, started + HANDSHAKE)
        except (OSError, ValueError) as error:
            connection.close()
            raise ParallelError(
                f"rendezvous: what listens at {where} does not answer as rank 0 does ({error}); give rank 0 a port of "
                "its own with MASTER_PORT, and all ranks the same MINILLM_TOKEN"
            ) from None
        with self._changed:
            self._add(0, Peer(connection))
        self._take(0, "welcome", place.timeout + HANDSHAKE)  # longer than rank 0, who knows which rank is missing

    def _prove(self, connection: socket.socket, deadline: float) -> None:
        """Prove that this rank knows the token, and check that rank 0 does."""
        hello = read(connection, len(MAGIC) + 32, deadline)
        if not hello.startswith(MAGIC):
            raise ValueError("another protocol")
        nonce, mine, who = hello[len(MAGIC) :], secrets.token_bytes(32), struct.pack(">II", self.rank, self.size)
        connection.sendall(mine + who + self._proof(b"rank", nonce, mine, who))
        try:
            proof = read(connection, 32, deadline)
        except ConnectionError:
            raise ValueError("it has another token") from None
        if not hmac.compare_digest(proof, self._proof(b"root", nonce, mine)):
            raise ValueError("it has another token")

    # --- what both do ------------------------------------------------------------------------------------------------

    def _proof(self, *parts: bytes) -> bytes:
        return hmac.digest(self.place.token.encode(), b"".join(parts), "sha256")

    def _add(self, rank: int, peer: Peer) -> None:
        self._peers[rank] = peer
        peer.reader = threading.Thread(target=self._listen, args=(rank, peer), name=f"minillm-{rank}", daemon=True)
        peer.reader.start()
        self._changed.notify_all()

    def _listen(self, rank: int, peer: Peer) -> None:
        """Read the messages of a rank until its connection ends."""
        try:
            while True:
                message = peer.receive()
                if message["kind"] == "failed":
                    self._failed(str(message["text"]))
                    continue
                with self._changed:
                    if message["kind"] == "bye":
                        self._left.add(rank)
                    else:
                        self._mail[rank].append(message)
                    self._changed.notify_all()
        except (OSError, ValueError, KeyError, RecursionError):  # it ended, or says what no rank says
            if rank not in self._left:
                self._failed(_failed(rank, KILLED))
        peer.close()

    def _failed(self, failure: str) -> None:
        """Note that another rank has failed, tell the others, and end this rank if it does not end by itself."""
        with self._changed:
            if self.failure is not None or self._closed:
                return
            self.failure = failure
            callbacks, self._callbacks = self._callbacks, []
            for peer in self._peers.values() if self.rank == 0 else ():
                peer.send(kind="failed", text=failure)  # before the main thread, which waits for this, can hang up
            self._changed.notify_all()
        timer = threading.Timer(GRACE, self._end_if_stuck)
        timer.daemon = True
        timer.start()
        for callback in callbacks:
            with contextlib.suppress(Exception):  # the failure is what counts, and it is told
                callback()

    def _end_if_stuck(self) -> None:
        """End this process if its main thread has not noticed that the job has failed."""
        if not self._closed:
            prefix = f"rank {self.rank}: " if self.rank else ""
            print(f"{prefix}{self.failure}", file=sys.__stderr__, flush=True)
            self._end(OTHER_FAILED)

    def _take(self, rank: int, kind: str, timeout: float | None = None) -> dict[str, Any]:
        """The next message of a rank."""
        timeout = self.place.timeout if timeout is None else timeout
        with self._changed:
            mail = self._mail[rank]
            self._changed.wait_for(lambda: mail or self.failure is not None or rank in self._left, timeout)
            if not mail:
                self.check()
                left = "has left the job" if rank in self._left else f"said nothing for {timeout:g} s"
                raise ParallelError(f"{kind}: rank {rank} {left}; every rank must run the same program")
            message = mail.popleft()
        if message["kind"] != kind:
            raise ParallelError(
                f"{kind}: rank {rank} does something else ({message['kind']}); every rank must run the same program"
            )
        return message

    def _hang_up(self) -> None:
        """Close the connections after the others have read the last messages, which would be lost otherwise."""
        self._closed = True
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            self._listener.close()
        deadline = time.monotonic() + 2.0
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.connection.shutdown(socket.SHUT_WR)
        for peer in self._peers.values():
            if peer.reader is not None:
                peer.reader.join(max(0.0, deadline - time.monotonic()))
            peer.close()


def describe(error: BaseException | str) -> str:
    """An exception in one line, to be sent to other ranks."""
    name = "" if isinstance(error, str | MinillmError) else type(error).__name__
    return ": ".join(part for part in (name, " ".join(str(error).split())[:1000]) if part)


def _failed(rank: int, cause: str) -> str:
    return f"rank {rank} failed: {cause}; see what it printed, and start all ranks again"


def _ranks(ranks: list[int]) -> str:
    """`rank 2`, or `ranks 0, 1 and 3`."""
    names = [str(rank) for rank in ranks]
    return f"rank {names[0]}" if len(names) == 1 else f"ranks {', '.join(names[:-1])} and {names[-1]}"


def _disagreement(said: dict[int, tuple[str, str]], advice: str) -> str:
    """A sentence with the values of the ranks that differ from most ranks; empty if all are equal."""
    groups: dict[tuple[str, str], list[int]] = {}
    for rank, answer in sorted(said.items()):
        groups.setdefault(answer, []).append(rank)
    if len(groups) == 1:
        return ""
    most = max(groups, key=lambda answer: len(groups[answer]))  # of several, the one that rank 0 is in, or the first
    others = (f"{what} {value} on {_ranks(groups[what, value])}" for what, value in groups if (what, value) != most)
    return f"agree: the ranks differ: {'; '.join(others)}; but {' '.join(most)} on {_ranks(groups[most])}; {advice}"
