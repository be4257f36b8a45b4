"""An NBD client that sends what it is told, byte for byte, and says what came back."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from rehydrator.engine import Zeros

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence

    from rehydrator.engine import Piece

FIXED, NO_ZEROES = 1, 2


class Option(NamedTuple):
    """A reply to an option."""

    kind: int
    data: bytes


class Chunk(NamedTuple):
    """A chunk of a structured reply."""

    flags: int
    kind: int
    cookie: int
    payload: bytes


class Client:
    """One connection. Numbers are the protocol's own, so that a test does not repeat our names."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(20)

    def send(self, layout: str, *values: int) -> None:
        self.socket.sendall(struct.pack(layout, *values))

    def read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            got = self.socket.recv(length - len(data))
            assert got, f"the server left after {data!r}"
            data += got
        return data

    def left(self) -> bool:
        """Whether the server has closed the connection."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def greet(self, flags: int = FIXED | NO_ZEROES) -> None:
        assert struct.pack(">QQH", 0x4E42444D41474943, 0x49484156454F5054, 3) == self.read(18)
        self.send(">I", flags)

    def option(self, number: int, data: bytes = b"") -> list[Option]:
        """All replies to an option."""
        self.ask(number, data)
        replies: list[Option] = []
        while not replies or replies[-1].kind in {2, 3, 4}:
            magic, option, kind, length = struct.unpack(">QIII", self.read(20))
            assert (0x3E889045565A9, number) == (magic, option)
            replies.append(Option(kind, self.read(length)))
        return replies

    def ask(self, number: int, data: bytes = b"") -> None:
        self.socket.sendall(struct.pack(">QII", 0x49484156454F5054, number, len(data)) + data)

    def export_name(self, name: bytes = b"") -> tuple[int, int]:
        """Choose in the old way: size and flags."""
        self.ask(1, name)
        size, flags = struct.unpack(">QH", self.read(10))
        return size, flags

    def go(self, name: bytes = b"", *, structured: bool = True, allocation: bool = True) -> int:
        """Choose; the flags."""
        self.greet()
        if structured:
            assert self.option(8) == [Option(1, b"")]
        if allocation and structured:
            assert self.option(10, context_data(name))[-1] == Option(1, b"")
        infos = self.option(7, go_data(name))
        assert infos[-1] == Option(1, b"")
        flags = struct.unpack(">HQH", infos[0].data)[2]
        assert isinstance(flags, int)
        return flags

    def request(self, kind: int, offset: int, length: int, *, flags: int = 0, cookie: int = 7) -> None:
        self.send(">IHHQQI", 0x25609513, flags, kind, cookie, offset, length)

    def simple(self) -> tuple[int, int]:
        """Error and cookie of a simple reply."""
        magic, error, cookie = struct.unpack(">IIQ", self.read(16))
        assert magic == 0x67446698
        return error, cookie

    def chunk(self) -> Chunk:
        magic, flags, kind, cookie, length = struct.unpack(">IHHQI", self.read(20))
        assert magic == 0x668E33EF
        return Chunk(flags, kind, cookie, self.read(length))

    def chunks(self) -> list[Chunk]:
        """A structured reply, when no other one is under way."""
        found = [self.chunk()]
        while not found[-1].flags & 1:
            found.append(self.chunk())
        assert len({each.cookie for each in found}) == 1
        return found

    def pread(self, offset: int, length: int) -> bytes:
        """Read, with structured replies, and see that the chunks tile what was asked for."""
        self.request(0, offset, length)
        parts, here = [], offset
        for _, kind, _, payload in self.chunks():
            (at,) = struct.unpack_from(">Q", payload)
            assert at == here
            parts.append(payload[8:] if kind == 1 else bytes(struct.unpack_from(">I", payload, 8)[0]))
            assert kind in {1, 2}
            here += len(parts[-1])
        return b"".join(parts)

    def status(self, offset: int, length: int, flags: int = 0) -> list[tuple[int, int]]:
        """Descriptors (length, state) of a range."""
        self.request(7, offset, length, flags=flags)
        [(_, kind, _, payload)] = self.chunks()
        assert (kind, payload[:4]) == (5, b"\0\0\0\1")
        return list(struct.iter_unpack(">II", payload[4:]))

    def error(self) -> tuple[int, str]:
        """The error that a structured reply ends with, and its message."""
        flags, kind, _, payload = self.chunks()[-1]
        assert flags & 1
        assert kind in {0x8001, 0x8002}
        error, length = struct.unpack_from(">IH", payload)
        return error, payload[6 : 6 + length].decode()


def go_data(name: bytes, *wanted: int) -> bytes:
    return struct.pack(f">I{len(name)}sH{len(wanted)}H", len(name), name, len(wanted), *wanted)


def context_data(name: bytes = b"", *queries: bytes) -> bytes:
    data = struct.pack(f">I{len(name)}sI", len(name), name, len(queries or (b"base:allocation",)))
    return data + b"".join(struct.pack(">I", len(q)) + q for q in queries or (b"base:allocation",))


class MemoryImage:
    """An image of bytes in memory; `before` is called with the offset of what is read."""

    def __init__(
        self,
        data: bytes,
        zeros: Sequence[tuple[int, int]] = (),
        before: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.data, self.zeros, self.before = data, zeros, before
        self.size = len(data)

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        self.before(offset)
        here = offset
        for start, end in self.zero_runs(offset, length):
            if here < start:
                yield memoryview(self.data)[here:start]
            yield Zeros(end - start)
            here = end
        if here < offset + length:
            yield memoryview(self.data)[here : offset + length]

    def zero_runs(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        for start, end in self.zeros:
            low, high = max(start, offset), min(end, offset + length)
            if low < high:
                yield low, high
