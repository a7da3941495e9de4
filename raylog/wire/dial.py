"""Connecting with a deadline that a caller may cut short."""

import errno
import os
import select
import socket
import threading
import time

from raylog.errors import Cancelled, DeadlineExceeded, Unavailable

LOOK_S = 0.1  # how late a wait sees that it was cancelled


def wait_ready(poll: select.poll, deadline: float, cancel: threading.Event | None, what: str) -> None:
    """Waits until `poll` has something. Raises `DeadlineExceeded` at `deadline` (`time.monotonic`), `Cancelled`."""
    while True:
        left_s = deadline - time.monotonic()
        if poll.poll(max(0.0, min(left_s, LOOK_S)) * 1000):
            return
        if cancel is not None and cancel.is_set():
            raise Cancelled(f"{what}: cancelled")
        if left_s <= 0:
            raise DeadlineExceeded(f"{what}: no answer in time")


def dial(host: str, port: int, deadline: float, cancel: threading.Event | None, what: str) -> socket.socket:
    """A connection to the first address of `host` that accepts it; `what` is there for error messages. Raises
    `Unavailable`, `DeadlineExceeded`, `Cancelled`."""
    what = f"{what}: cannot connect"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Unavailable(f"{what}: {error}") from None
    refused = Unavailable(f"{what}: no address")
    for family, kind, protocol, _, address in found:
        connection = socket.socket(family, kind, protocol)
        try:
            _connect(connection, address, deadline, cancel, what)
            return connection
        except Unavailable as error:
            connection.close()
            if isinstance(error, DeadlineExceeded):
                raise
            refused = error
        except BaseException:
            connection.close()
            raise
    raise refused


def _connect(
    connection: socket.socket, address: tuple[object, ...], deadline: float, cancel: threading.Event | None, what: str
) -> None:
    connection.setblocking(False)
    status = connection.connect_ex(address)
    if status == errno.EINPROGRESS:
        poll = select.poll()
        poll.register(connection, select.POLLOUT)
        wait_ready(poll, deadline, cancel, what)
        status = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if status:
        raise Unavailable(f"{what}: {os.strerror(status)}; is raylog up there?")
