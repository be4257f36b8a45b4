"""One client's connection: exact reads, and sends of several buffers that belong together."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    Buffer = bytes | bytearray | memoryview

# Buffers of one sendmsg(2); the kernel's own limit is 1024 (UIO_MAXIOV).
_BUFFERS: Final = 512
_SKIPPED: Final = 64 << 10


class GoneError(ConnectionError):
    """The client is not there any more."""


class Link:
    """A connected stream socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._deadline: float | None = None
        self.moved = time.monotonic()
        """When something was read to its end, or some of it sent."""

    def within(self, seconds: float | None) -> None:
        """All that is read or sent from now on has to be done within so many seconds."""
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._socket.settimeout(seconds)

    def read(self, length: int) -> bytes:
        """Exactly `length` bytes.

        Raises:
            GoneError: the client left.
            OSError: that, in the system's words, or it was too slow.
        """
        data = bytearray(length)
        self._fill(memoryview(data))
        self.moved = time.monotonic()
        return bytes(data)

    def skip(self, length: int) -> None:
        """Read so many bytes and forget them."""
        space = memoryview(bytearray(min(length, _SKIPPED)))
        while length:
            self._fill(space[: min(length, _SKIPPED)])
            length -= min(length, _SKIPPED)

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Send these bytes; nobody else may send meanwhile."""
        for at in range(0, len(buffers), _BUFFERS):
            self._send(list(buffers[at : at + _BUFFERS]))

    def close(self) -> None:
        """End it; who waits for the client in another thread gets GoneError."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def dispose(self) -> None:
        """Give the socket back to the system: nobody uses it any more."""
        self._socket.close()

    def _fill(self, space: memoryview) -> None:
        while space:
            self._in_time()
            got = self._socket.recv_into(space, 0, socket.MSG_WAITALL)
            if not got:
                raise GoneError("the client left")
            space = space[got:]

    def _send(self, buffers: list[Buffer]) -> None:
        self._in_time()
        sent = self._socket.sendmsg(buffers)
        self.moved = time.monotonic()
        while sent < sum(map(len, buffers)):
            while sent >= len(buffers[0]):
                sent -= len(buffers.pop(0))
            buffers[0] = memoryview(buffers[0])[sent:]
            self._in_time()
            sent = self._socket.sendmsg(buffers)
            self.moved = time.monotonic()

    def _in_time(self) -> None:
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the client is too slow")
            self._socket.settimeout(left)
