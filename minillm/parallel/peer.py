"""The connections between ranks: messages of a known length over TCP, and the sockets they begin with.

A message is a frame: four bytes of length, and a JSON object.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from typing import Any

from minillm.errors import InputError, ParallelError
from minillm.parallel.place import Place

LIMIT = 1 << 16  # bytes of a frame


class Peer:
    """The connection to another rank."""

    reader: threading.Thread | None = None

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self.sending = threading.Lock()
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # A machine that is gone is noticed in 4 + 4 seconds, whether somebody sends to it or not.
        for name, value in (("KEEPIDLE", 4), ("KEEPINTVL", 1), ("KEEPCNT", 4), ("USER_TIMEOUT", 8000)):
            if hasattr(socket, f"TCP_{name}"):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{name}"), value)

    def send(self, **message: Any) -> None:
        """Send a message; the thread that listens notices if the other rank has ended."""
        frame = json.dumps(message).encode()
        if len(frame) > LIMIT:
            raise InputError(f"{message['kind']}: {len(frame)} bytes are too many; a message holds {LIMIT}")
        with self.sending, contextlib.suppress(OSError):
            self.connection.sendall(len(frame).to_bytes(4, "big") + frame)

    def receive(self) -> dict[str, Any]:
        """The next message. Raises: OSError at the end, ValueError for bytes that are not a message."""
        length = int.from_bytes(read(self.connection, 4), "big")
        if length > LIMIT:
            raise ValueError("longer than any message")
        message = json.loads(read(self.connection, length))
        if not isinstance(message, dict):
            raise ValueError("not a message")
        return message

    def close(self) -> None:
        """End the connection, and the wait of another thread for it."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


def connect(place: Place, timeout: float) -> socket.socket:
    """A connection to rank 0 from which a first byte can be read.

    Raises: OSError where nobody answers yet and the caller should try again.
    """
    connection = socket.create_connection((place.address, place.port), timeout)
    try:
        if connection.getsockname() == connection.getpeername():  # so TCP meets itself, where nobody listens
            raise ConnectionError("nobody listens")
        with contextlib.suppress(TimeoutError):  # what connects and is silent is not rank 0, as _prove will say
            if not connection.recv(1, socket.MSG_PEEK):
                raise ConnectionError("it has no room")
    except OSError:
        connection.close()
        raise
    return connection


def listen(place: Place) -> socket.socket:
    """A socket bound to the one interface where rank 0 listens.

    Raises: ParallelError if the port is in use, or the address is not one of this machine.
    """
    address = place.listen or place.address
    listener = None
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(address, place.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen()  # two sockets may be bound to one port, but one alone listens
        return listener
    except OSError as error:
        if listener is not None:
            listener.close()
        raise ParallelError(
            f"rendezvous: rank 0 cannot listen at {address}:{place.port} ({error.strerror or error}); set MASTER_PORT "
            "to a port that is free, and MASTER_ADDR to an address of the machine of rank 0 (or MINILLM_LISTEN, if it "
            "has another for itself)"
        ) from None


def read(connection: socket.socket, count: int, deadline: float | None = None) -> bytes:
    """Read `count` bytes. Raises: OSError if the connection ends, or the deadline passes."""
    data = bytearray()
    while len(data) < count:
        if deadline is not None:
            connection.settimeout(max(1e-3, deadline - time.monotonic()))
        piece = connection.recv(count - len(data))
        if not piece:
            raise ConnectionError("it ended")
        data += piece
    return bytes(data)
