"""Streams that are being encoded: each is made once, from its beginning, by a thread of its own,
and spooled, so that whoever asks for bytes of it waits only until they are there.

    read      bytes of a stream; starts it where nobody has
    ahead     start streams before they are asked for, a bounded number at a time
    Room      memory for encoders, which wait for it

What was spooled stays until the spools together are above a limit: siblings in one release
share most of their `.xz` blocks.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from rehydrator.core.errors import HostileInput, Interrupted, LimitExceeded, RehydratorError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

DEFAULT_SPOOLED = 4 << 30

# Values whose places are known; each costs up to 400 bytes.
_REMADE = 1 << 16

# Each has a file of its own.
_MOST_HELD = 256

# Encoders that run at once, whatever little they need: each has threads of its own.
_MOST_RUNNING = 64

# A stream that nobody reads for so long does not exist; a reader looks up this often.
_WAKE = 1.0


class Gate:
    """Room for encoders' memory, in bytes; one that needs more than there is runs alone."""

    def __init__(self, room: int, most: int = _MOST_RUNNING) -> None:
        self._room, self._most = room, most
        self._taken = self._running = 0
        self._changed = threading.Condition()

    @contextmanager
    def room(self, memory: int) -> Iterator[None]:
        """So much memory, as soon as it is there."""
        with self._changed:
            self._changed.wait_for(lambda: self._fits(memory))
            self._taken += memory
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._taken -= memory
                self._running -= 1
                self._changed.notify_all()

    def _fits(self, memory: int) -> bool:
        return not self._running or (self._taken + memory <= self._room and self._running < self._most)


class Room:
    """Room for the encoders of one machine. `depths` says how many spaces each stands on, one above
    the other: an encoder may wait for others, whose input is of a smaller depth than its own. So
    each depth has a gate of its own, and nobody waits for room that he takes himself."""

    def __init__(self, memory: int, depths: Sequence[int]) -> None:
        self._depths = depths
        self._gates = {depth: Gate(memory) for depth in set(depths)}

    def take(self, space: int, memory: int) -> AbstractContextManager[None]:
        """Room for an encoder whose input is `space`."""
        return self._gates[self._depths[space]].room(memory)


class Spool(Protocol):
    """Where a stream's bytes are kept."""

    @property
    def size(self) -> int: ...

    def append(self, data: bytes) -> None: ...

    def read(self, offset: int, length: int) -> bytes: ...

    def close(self) -> None: ...


class MemorySpool:
    """Bytes in memory, for streams that are known to be short."""

    def __init__(self) -> None:
        self._held = bytearray()

    @property
    def size(self) -> int:
        return len(self._held)

    def append(self, data: bytes) -> None:
        self._held += data

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._held[offset : offset + length])

    def close(self) -> None:
        self._held.clear()


class Stream:
    """One stream: `length` bytes by `make`, which may give neither more nor fewer."""

    def __init__(self, length: int, make: Callable[[], Iterator[bytes]], spool: Spool) -> None:
        self.length, self._make, self._spool = length, make, spool
        self._grown = threading.Condition()
        self._error: BaseException | None = None
        self._stopped = False
        self.touched = False
        self.done = False

    def start(self) -> None:
        """Begin to encode."""
        try:
            threading.Thread(target=self._run, daemon=True).start()
        except RuntimeError as error:
            self._end(LimitExceeded(f"no thread for an encoder: {error}; fewer at a time: --jobs"))

    def stop(self) -> None:
        """No more bytes are wanted: who waits for some is told at once."""
        with self._grown:
            self._stopped = True
            self._grown.notify_all()

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the stream, as soon as they are there; HostileInput and what encoders raise."""
        self.touched = True
        with self._grown:
            while self._spool.size < offset + length and self._error is None and not self._stopped:
                self._grown.wait(_WAKE)
        if self._error is not None:
            raise self._error
        if self._stopped and not self.done:
            raise Interrupted("interrupted")
        return self._spool.read(offset, length)

    def _run(self) -> None:
        try:
            self._encode()
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever reads
            self._end(error)
        else:
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        with self._grown:
            self._error, self.done = error, True
            self._grown.notify_all()

    def _encode(self) -> None:
        pieces = self._make()
        try:
            for piece in pieces:
                if self._stopped:
                    raise Interrupted("interrupted")
                if self._spool.size + len(piece) > self.length:
                    raise HostileInput(f"a stream encodes to more than {self.length} bytes")
                with self._grown:
                    self._spool.append(piece)
                    self._grown.notify_all()
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
        if self._spool.size != self.length:
            raise HostileInput(f"a stream encodes to {self._spool.size} bytes, not {self.length}")


class Remade:
    """Values that are made a second time are kept in one spool: nothing is made three times.

    A guest disk has its files in another order than the root file system that it is derived from,
    whose blocks hold many small files each: the cache loses such a block before its next file.
    """

    def __init__(self, spool: Callable[[], Spool], limit: int = DEFAULT_SPOOLED) -> None:
        self._new, self._limit = spool, limit
        self._lock = threading.Lock()
        self._made: set[int] = set()
        self._places: dict[Hashable, int] = {}
        self._spool: Spool | None = None

    def read(self, key: Hashable, offset: int, length: int) -> bytes | None:
        """`length` bytes from `offset` of a value, if it is kept."""
        place = self._places.get(key)
        if place is None or self._spool is None:
            return None
        return self._spool.read(place + offset, length)

    def add(self, key: Hashable, value: bytes) -> None:
        """A value was made: it is kept if that is the second time."""
        with self._lock:
            if hash(key) in self._made:
                self._keep(key, value)
            elif len(self._made) < _REMADE:
                self._made.add(hash(key))

    def _keep(self, key: Hashable, value: bytes) -> None:
        self._spool = spool = self._spool or self._new()
        if key in self._places or len(self._places) >= _REMADE or spool.size + len(value) > self._limit:
            return
        at = spool.size
        try:
            spool.append(value)
        except (RehydratorError, OSError):  # no room, or a place that is read-only: it is made again
            self._limit = 0
        else:
            self._places[key] = at


class Streams:
    """The streams of one machine, by key."""

    def __init__(self, spool: Callable[[], Spool], limit: int = DEFAULT_SPOOLED) -> None:
        self.spool, self._limit = spool, limit
        self._lock = threading.Lock()
        self._streams: OrderedDict[Hashable, Stream] = OrderedDict()

    def read(
        self, key: Hashable, size: int, make: Callable[[], Iterator[bytes]], offset: int, length: int
    ) -> bytes:
        """`length` bytes from `offset` of the stream `key`, of `size` bytes in all."""
        return self._stream(key, size, make).read(offset, length)

    def ahead(
        self, wanted: Iterable[tuple[Hashable, int, Callable[[], Iterator[bytes]]]], most: int
    ) -> Callable[[], None]:
        """Keep `most` streams of a row under way, and at most twice as many that nobody reads
        yet; the result ends that."""
        ended = threading.Event()
        threading.Thread(target=self._run_ahead, args=(wanted, most, ended), daemon=True).start()
        return ended.set

    def stop(self) -> None:
        """End everything that is under way, and forget it: who asks again gets it anew."""
        with self._lock:
            for key, stream in list(self._streams.items()):
                if not stream.done:
                    stream.stop()
                    del self._streams[key]

    def _run_ahead(
        self,
        wanted: Iterable[tuple[Hashable, int, Callable[[], Iterator[bytes]]]],
        most: int,
        ended: threading.Event,
    ) -> None:
        begun: list[Stream] = []
        with suppress(Exception):  # whatever it is, whoever reads meets it too
            for key, size, make in wanted:
                while not self._has_room(begun, most):
                    if ended.wait(0.02):
                        return
                if ended.is_set():
                    return
                begun.append(self._stream(key, size, make))

    def _has_room(self, begun: list[Stream], most: int) -> bool:
        begun[:] = [stream for stream in begun if not (stream.done and stream.touched)]
        running = sum(not stream.done for stream in begun)
        return running < most and sum(not stream.touched for stream in begun) < 2 * most

    def _stream(self, key: Hashable, size: int, make: Callable[[], Iterator[bytes]]) -> Stream:
        with self._lock:
            held = self._streams.get(key)
            if held is not None:
                self._streams.move_to_end(key)
                return held
            self._make_room(size)
            made = self._streams[key] = Stream(size, make, self.spool())
        made.start()
        return made

    def _make_room(self, size: int) -> None:
        """Those go that were read, the longest ago first; then those that are about to be."""
        total = size + sum(stream.length for stream in self._streams.values())
        for key, stream in sorted(self._streams.items(), key=lambda held: not held[1].touched):
            if total <= self._limit and len(self._streams) < _MOST_HELD:
                return
            if stream.done:
                total -= stream.length
                del self._streams[key]
