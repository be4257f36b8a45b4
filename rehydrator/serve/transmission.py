"""The second phase of an NBD connection: requests and replies.

Whichever thread waits for the client takes its next request, lets another one wait, makes the
answer and sends it; a connection has as many threads as it has requests under way, up to a limit.
So nothing is handed from thread to thread, replies come in any order, and a client that does not
read its replies stops its own threads alone.

An answer is made and sent in blocks. A thread holds one block, so that what one connection takes
is bounded, and making needs a slot, which all connections share: that bounds the decoders.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from rehydrator.core.errors import HostileInput, RehydratorError
from rehydrator.engine import Zeros, join
from rehydrator.serve import c_nbd as nbd
from rehydrator.serve.images import ALIGNMENT
from rehydrator.serve.link import GoneError
from rehydrator.serve.negotiation import MAX_REQUEST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from rehydrator.engine import Piece
    from rehydrator.serve.link import Buffer, Link
    from rehydrator.serve.negotiation import Chosen

# Bytes that are made and sent in one go, and the longest read that "don't fragment" may ask for.
# Measured: 1 MiB takes as much processor time.
BLOCK: Final = 256 << 10

# Threads of one connection. QEMU has 16 requests under way and nbdcopy 64; with 4, 8 or 16 threads
# they take equally long on two cores (measured).
THREADS: Final = 8

_SECTOR: Final = 512

# Descriptors of one reply; a client asks again for the rest.
_MOST_DESCRIPTORS: Final = 4096

_WRITES: Final = (nbd.CMD_WRITE, nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES)
_FLAGS: Final = {nbd.CMD_READ: nbd.CMD_FLAG_DF, nbd.CMD_BLOCK_STATUS: nbd.CMD_FLAG_REQ_ONE}


class Slots:
    """Who may make bytes: `jobs` threads at once, which wait in a row. A client has no more than
    that in the row, so that one who asks for much waits for his own."""

    def __init__(self, jobs: int) -> None:
        self._jobs, self._all = jobs, threading.BoundedSemaphore(jobs)

    def of_client(self) -> Callable[[], AbstractContextManager[object]]:
        """What a client's threads take one of."""
        own = threading.BoundedSemaphore(self._jobs)

        @contextmanager
        def taken() -> Iterator[None]:
            with own, self._all:
                yield

        return taken


class Request(NamedTuple):
    """What a client wants."""

    flags: int
    kind: int
    cookie: int
    offset: int
    length: int


class Failure(Exception):
    """A request that is answered with an error; `at` is the byte where a read failed."""

    def __init__(self, error: int, message: str, at: int | None = None) -> None:
        super().__init__(message)
        self.error, self.at = error, at


class Transmission:
    """Serves one client until it leaves. A `slot` is taken while bytes are made, and `complain` told
    what cannot be made."""

    def __init__(
        self,
        link: Link,
        chosen: Chosen,
        slot: Callable[[], AbstractContextManager[object]],
        complain: Callable[[str], None],
    ) -> None:
        self._link, self._structured, self._allocation = link, chosen.structured, chosen.allocation
        self._name, self._image = chosen.export.name, chosen.export.image
        self._slot, self._complain = slot, complain
        self._receiving, self._sending = threading.Lock(), threading.Lock()
        self._counting = threading.Lock()
        self._threads = self._waiting = self._makers = 0
        self._ended = False
        self._over = threading.Event()

    def run(self) -> None:
        """Serve; returns when all threads are done with the client."""
        self._threads = 1
        self._work()
        self._over.wait()

    @property
    def idle_since(self) -> float:
        """When the client was last served (seconds of the monotonic clock): now, while bytes are made
        for it. Replies that it does not take are no service."""
        with self._counting:
            return time.monotonic() if self._makers else self._link.moved

    def _work(self) -> None:
        try:
            while (request := self._next()) is not None:
                self._answer(request)
        except Exception as error:  # noqa: BLE001 - a defect of ours is this connection's end alone
            if not isinstance(error, OSError | HostileInput):  # gone, or lying
                self._complain(f"{self._name}: {type(error).__name__}: {error}")
            self._ended = True
            self._link.close()
        finally:
            with self._counting:
                self._threads -= 1
                if not self._threads:
                    self._over.set()

    def _next(self) -> Request | None:
        with self._counting:
            self._waiting += 1
        with self._receiving:
            # It has ended for everybody, unless a whole request arrives.
            ended, self._ended = self._ended, True
            request = None if ended else self._receive()
            self._ended = request is None
            with self._counting:
                self._waiting -= 1
        if request is not None:
            self._let_another_wait()
        return request

    def _let_another_wait(self) -> None:
        with self._counting:
            if self._waiting or self._threads >= THREADS:
                return
            self._threads += 1
        try:
            threading.Thread(target=self._work, daemon=True).start()
        except RuntimeError:  # no more threads: those that there are take turns
            with self._counting:
                self._threads -= 1

    def _receive(self) -> Request | None:
        try:
            magic, *fields = nbd.REQUEST.unpack(self._link.read(nbd.REQUEST.size))
        except GoneError:
            return None
        request = Request(*fields)
        if magic != nbd.REQUEST_MAGIC:
            raise HostileInput("NBD client: what should be a request is none")
        if request.kind == nbd.CMD_DISC:
            return None
        if request.kind == nbd.CMD_WRITE:
            if request.length > MAX_REQUEST:
                raise HostileInput(f"NBD client: a request with {request.length} bytes")
            self._link.skip(request.length)
        return request

    def _answer(self, request: Request) -> None:
        try:
            self._check(request)
            if request.kind == nbd.CMD_BLOCK_STATUS:
                self._block_status(request)
            elif self._structured:
                self._read(request)
            else:
                self._read_simply(request)
        except Failure as failure:
            self._fail(request, failure)

    def _check(self, request: Request) -> None:
        if request.kind in _WRITES:
            raise Failure(nbd.EPERM, "images are read-only")
        if request.kind not in _FLAGS:
            raise Failure(nbd.EINVAL, f"no such request as {request.kind}")
        if request.flags & ~_FLAGS[request.kind]:
            raise Failure(nbd.EINVAL, f"flags {request.flags:#x} do not go with this request")
        if request.offset + request.length > self._image.size:
            raise Failure(nbd.EINVAL, f"the image ends at {self._image.size}")
        if request.kind == nbd.CMD_READ:
            self._check_read(request)
        elif not self._allocation or not request.length:
            raise Failure(nbd.EINVAL, "base:allocation was not selected" if request.length else "no bytes")

    def _check_read(self, request: Request) -> None:
        if request.length > MAX_REQUEST:
            raise Failure(nbd.EINVAL, f"at most {MAX_REQUEST} bytes at a time")
        if request.flags & nbd.CMD_FLAG_DF:
            if not self._structured:
                raise Failure(nbd.EINVAL, "structured replies were not agreed on")
            if request.length > BLOCK:
                raise Failure(nbd.EOVERFLOW, f"at most {BLOCK} bytes in one fragment")

    def _read(self, request: Request) -> None:
        end, fragments = request.offset + request.length, not request.flags & nbd.CMD_FLAG_DF
        if not request.length:
            self._send([_chunk(request, nbd.REPLY_NONE, 0)])
        for at in range(request.offset, end, BLOCK):
            size = min(BLOCK, end - at)
            pieces = self._made(at, size)
            if not fragments:
                pieces = [memoryview(join(iter(pieces)))]
            self._send(_content(request.cookie, at, pieces, last=at + size == end))

    def _read_simply(self, request: Request) -> None:
        """Without structured replies, nothing can be said of an error behind the first block."""
        end, sent = request.offset + request.length, False
        header = nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, request.cookie)
        first = join(iter(self._made(request.offset, min(BLOCK, request.length))))
        with self._sending:
            self._link.send([header, first])
            try:
                for at in range(request.offset + BLOCK, end, BLOCK):
                    sent = True
                    self._link.send([join(iter(self._made(at, min(BLOCK, end - at))))])
            except Failure as failure:
                assert sent
                raise HostileInput(str(failure)) from None

    def _block_status(self, request: Request) -> None:
        most = 1 if request.flags & nbd.CMD_FLAG_REQ_ONE else _MOST_DESCRIPTORS
        with self._making(request.offset):
            runs = self._image.zero_runs(request.offset, request.length)
            descriptors = list(_descriptors(runs, request, most))
        payload = nbd.CONTEXT.pack(1) + b"".join(descriptors)
        self._send([_chunk(request, nbd.REPLY_BLOCK_STATUS, len(payload)), payload])

    def _made(self, offset: int, length: int) -> list[Piece]:
        with self._making(offset):
            return list(self._image.pieces(offset, length))

    @contextmanager
    def _making(self, offset: int) -> Iterator[None]:
        """Holds a slot, and turns what goes wrong into the answer that the client gets."""
        try:
            with self._counted(), self._slot():
                yield
        except MemoryError:
            self._complain(f"{self._name}: out of memory at {offset}")
            raise Failure(nbd.ENOMEM, "out of memory", offset) from None
        except Exception as error:  # noqa: BLE001 - a defect of ours is this request's end alone
            known = isinstance(error, RehydratorError | OSError)
            self._complain(f"{self._name}: {error if known else f'{type(error).__name__}: {error}'}")
            # What the system says may name paths of this machine, which are nobody's business.
            message = str(error) if isinstance(error, RehydratorError) else "it cannot be read"
            raise Failure(nbd.EIO, message, offset) from None

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._counting:
            self._makers += 1
        try:
            yield
        finally:
            with self._counting:
                self._makers -= 1

    def _send(self, buffers: list[Buffer]) -> None:
        with self._sending:
            self._link.send(buffers)

    def _fail(self, request: Request, failure: Failure) -> None:
        if not self._structured:
            self._send([nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, failure.error, request.cookie)])
            return
        message = str(failure).encode(errors="replace")[: nbd.MAX_STRING]
        message = message.decode(errors="ignore").encode()  # whole characters
        payload = nbd.ERROR.pack(failure.error, len(message)) + message
        kind = nbd.REPLY_ERROR
        if failure.at is not None and request.kind == nbd.CMD_READ:
            kind, payload = nbd.REPLY_ERROR_OFFSET, payload + failure.at.to_bytes(8, "big")
        self._send([_chunk(request, kind, len(payload)), payload])


def _chunk(request: Request, kind: int, length: int) -> bytes:
    """The header of a reply's only, or last, chunk."""
    return nbd.CHUNK.pack(nbd.STRUCTURED_REPLY_MAGIC, nbd.REPLY_FLAG_DONE, kind, request.cookie, length)


def _content(cookie: int, at: int, pieces: list[Piece], *, last: bool) -> list[Buffer]:
    """Pieces as chunks of data and of holes."""
    buffers: list[Buffer] = []
    runs = list(_runs(at, pieces))
    for number, (length, data) in enumerate(runs):
        flags = nbd.REPLY_FLAG_DONE if last and number == len(runs) - 1 else 0
        magic = nbd.STRUCTURED_REPLY_MAGIC
        if data:
            kind = nbd.REPLY_OFFSET_DATA
            buffers += [nbd.DATA_CHUNK.pack(magic, flags, kind, cookie, 8 + length, at), *data]
        else:
            kind = nbd.REPLY_OFFSET_HOLE
            buffers.append(nbd.HOLE_CHUNK.pack(magic, flags, kind, cookie, 12, at, length))
        at += length
    return buffers


def _runs(at: int, pieces: list[Piece]) -> Iterator[tuple[int, list[Buffer]]]:
    """Pieces in a row that are data, and runs of zeros (without data) that are worth a chunk: of
    whole sectors, as the protocol wishes."""
    data: list[Buffer] = []
    for piece in pieces:
        length = piece.length if isinstance(piece, Zeros) else len(piece)
        head, tail = -at % _SECTOR, (at + length) % _SECTOR
        at += length
        if not isinstance(piece, Zeros):
            data.append(piece)
        elif length < ALIGNMENT:
            data.append(bytes(length))
        else:
            data += [bytes(head)] if head else []
            if data:
                yield sum(map(len, data)), data
            yield length - head - tail, []
            data = [bytes(tail)] if tail else []
    if data:
        yield sum(map(len, data)), data


def _descriptors(runs: Iterator[tuple[int, int]], request: Request, most: int) -> Iterator[bytes]:
    """What lies in the range that a request names, in order; the first `most` of it."""
    here, end = request.offset, request.offset + request.length
    for start, stop in runs:
        for until, state in ((start, nbd.STATE_DATA), (stop, nbd.STATE_HOLE_ZERO)):
            if here < until and most:
                yield nbd.DESCRIPTOR.pack(until - here, state)
                here, most = until, most - 1
        if not most:
            return
    if here < end and most:
        yield nbd.DESCRIPTOR.pack(end - here, nbd.STATE_DATA)
