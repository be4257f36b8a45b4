"""The engine: evaluates recipes. It knows six ops and no disk format.

A `Machine` holds the spaces of a bundle (or of one explanation) by number and gives any span
of any of them as pieces: views of decoded frames, and runs of zeros that are never made.

    pieces(space, offset, length)   what a span consists of, without joining it
    reader(space)                   a Reader over a space

Memory: decoded frames and Decode results share one least-recently-used cache of a fixed
number of bytes; a piece keeps its frame alive only as long as the caller holds it.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar, runtime_checkable

from rehydrator.codecs import codec, streams
from rehydrator.codecs.blocks import decode as decode_block
from rehydrator.core.errors import HostileInput
from rehydrator.core.ops import Copy, Decode, Encode, Offsets, Series, Stream, is_zeros
from rehydrator.core.pack import MAX_FRAME
from rehydrator.core.reader import check_span
from rehydrator.core.recipe import output_offsets, unpack_integers
from rehydrator.core.zstd_decoder import Prefix, decompress
from rehydrator.streaming import MemorySpool, Remade, Streams

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from threading import Semaphore

    from rehydrator.codecs.streams import Filter
    from rehydrator.core.ops import (
        DecodeRule,
        EncodeRule,
        Framing,
        Op,
        Rules,
        SizeTable,
        StreamRule,
    )
    from rehydrator.core.reader import Reader
    from rehydrator.streaming import Room

T = TypeVar("T")

DEFAULT_CACHE = 96 << 20
_MAX_UNITS = 4 << 20
_TABLES_HELD = 4
_MAX_SUM = 1 << 60

# What an entry of the cache costs beside its bytes (a Future, measured: 1.1 KB).
_ENTRY = 2048

# Pieces below this are joined: a piece costs 200 bytes, and a hostile recipe may have one a byte.
_SMALL = 4096

# Bytes of a series that are made at once.
_STEP = 64 << 10

# Plain bytes of a block that is made in one go, and how many more are made ahead.
BLOCK = 4 << 20
_AHEAD = 3

# A stream of at most so many plain bytes is made whole, in memory.
SMALL_STREAM = 1 << 20

# Ops that are looked at to find what a place is made of.
_TRIED = 64

# Threads that make the plain bytes of one stream: encoders are slower than what feeds them.
_FEEDERS = 2


class Zeros(NamedTuple):
    """A run of zero bytes."""

    length: int


Piece = memoryview | Zeros


class Space(Protocol):
    """What the machine needs of a space; `pieces` may ask the machine for lower spaces."""

    @property
    def size(self) -> int: ...

    def pieces(self, machine: Machine, offset: int, length: int) -> Iterator[Piece]: ...


@runtime_checkable
class Recipe(Space, Protocol):
    """A space that ops make; `streams` are the numbers of the stream rules among them."""

    @property
    def streams(self) -> Collection[int]: ...

    def ops(self) -> Iterator[Op]:
        """All ops, in order."""
        ...

    def op_at(self, offset: int) -> tuple[Op, int]:
        """The op that makes the byte at `offset`, and where its output begins."""
        ...


class Known(Protocol):
    """Streams that were encoded before."""

    def find(
        self,
        codec: str,
        params: tuple[tuple[str, int], ...],
        plain: int,
        feed: Callable[[], Iterator[bytes]],
        /,
    ) -> Iterator[bytes] | None:
        """The stream of the `plain` bytes that `feed` gives, if it is known."""
        ...


_turn = threading.local()


@contextmanager
def turn(turns: Semaphore) -> Iterator[None]:
    """One of a few turns for what a thread does inside; while it waits for what another thread is
    making for the cache, another has its turn."""
    with turns:
        _turn.taken_from = turns
        try:
            yield
        finally:
            _turn.taken_from = None


def _patient(entry: Future[bytes]) -> bytes:
    """The result, when it is there."""
    turns: Semaphore | None = getattr(_turn, "taken_from", None)
    if turns is None or entry.done():
        return entry.result()
    turns.release()
    try:
        return entry.result()
    finally:
        turns.acquire()


class Cache:
    """Least-recently-used values by key, bounded in bytes; each is made once at a time."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, Future[bytes]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """The value of `key`, by `make` where it is not held; an error is not kept."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                mine = False
            else:
                entry = self._entries[key] = Future()
                mine = True
        return self._make(key, entry, make) if mine else _patient(entry)

    def _make(self, key: Hashable, entry: Future[bytes], make: Callable[[], bytes]) -> bytes:
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                self._entries.pop(key, None)
            entry.set_exception(error)
            raise
        entry.set_result(value)
        with self._lock:
            self._held += len(value) + _ENTRY
            self._evict()
        return value

    def _evict(self) -> None:
        gone = []
        for key, entry in self._entries.items():
            if self._held <= self._limit:
                break
            if entry.done():
                gone.append(key)
                self._held -= len(entry.result()) + _ENTRY
        for key in gone:
            del self._entries[key]


class _Placed(NamedTuple):
    """The streams of a space, in order, and where they begin."""

    starts: list[int]
    streams: list[Stream]

    def within(self, offset: int, length: int) -> Iterator[Stream]:
        """Those that have bytes in [offset, offset+length)."""
        first = max(bisect_right(self.starts, offset) - 1, 0)
        for index in range(first, bisect_left(self.starts, offset + length)):
            if self.starts[index] + self.streams[index].length > offset:
                yield self.streams[index]


class Machine:
    """Spaces by number, the rules of their recipes, and one cache."""

    def __init__(
        self,
        spaces: Mapping[int, Space],
        rules: Rules,
        cache: Cache | None = None,
        run: Filter | None = None,
        made: Streams | None = None,
        room: Room | None = None,
        known: Known | None = None,
    ) -> None:
        """`run` runs the programs that some streams need; `made` keeps what was encoded; `room` is
        what encoders wait for, if they do; `known` has streams that need not be encoded."""
        self.spaces, self.rules, self._run, self._room = spaces, rules, run, room
        self._known = known
        self.cache = cache or Cache(DEFAULT_CACHE)
        self.streams = made or Streams(MemorySpool)
        self._remade = Remade(made.spool) if made else None
        self._ends: OrderedDict[int, array[int]] = OrderedDict()
        self._lock = threading.Lock()

    def space(self, number: int) -> Space:
        """Space `number`; HostileInput where there is none."""
        if number not in self.spaces:
            raise HostileInput(f"a recipe names space {number}, which does not exist")
        return self.spaces[number]

    def pieces(self, space: int, offset: int, length: int) -> Iterator[Piece]:
        """The bytes [offset, offset+length) of a space, in order."""
        target = self.space(space)
        check_span(offset, length, target.size, f"space {space}")
        return target.pieces(self, offset, length)

    def read(self, space: int, offset: int, length: int) -> bytes:
        """The same, joined."""
        return join(self.pieces(space, offset, length))

    def reader(self, space: int) -> SpaceReader:
        """A Reader over a space."""
        return SpaceReader(self, space)

    def run(self, op: Op, offset: int, length: int) -> Iterator[Piece]:
        """The bytes [offset, offset+length) of one op's output."""
        if isinstance(op, Copy):
            return self.pieces(op.space, op.offset + offset, length)
        if is_zeros(op):
            return iter((Zeros(length),))
        if isinstance(op, Series):
            return _series_pieces(op, offset, length)
        if isinstance(op, Offsets):
            return iter((memoryview(self._offsets(op, offset, length)),))
        if isinstance(op, Encode):
            return self._encode(op, offset, length)
        if isinstance(op, Stream):
            return self._stream(op, offset, length)
        return iter((self._decoded(op, offset, length),))

    def unit_ends(self, table: int) -> array[int]:
        """Where each unit of a size table ends when they lie in a row: 0, then running sums.

        Raises:
            HostileInput: no such table, or more than it may hold.
        """
        with self._lock:
            held = self._ends.get(table)
            if held is not None:
                self._ends.move_to_end(table)
                return held
        made = self._sum_up(_rule(self.rules.tables, table))
        with self._lock:
            self._ends[table] = made
            if len(self._ends) > _TABLES_HELD:
                self._ends.popitem(last=False)
        return made

    def _sum_up(self, table: SizeTable) -> array[int]:
        total = self.space(table.space).size
        if total > _MAX_UNITS * table.width or total % table.width:
            raise HostileInput(f"a size table of {total} bytes")
        values = unpack_integers(self.read(table.space, 0, total), table.width)
        if sum(values) * table.scale > _MAX_SUM:
            raise HostileInput("a size table whose units are too large")
        return array("Q", accumulate((value * table.scale for value in values), initial=0))

    def _offsets(self, op: Offsets, offset: int, length: int) -> bytes:
        rule = _rule(self.rules.offsets, op.rule)
        ends = self.unit_ends(rule.table)
        low, high = offset // rule.width, -(-(offset + length) // rule.width)
        if op.index + op.length // rule.width >= len(ends) or op.length % rule.width:
            raise HostileInput(f"positions of units {op.index}+ lie outside of their size table")
        base = op.first - ends[op.index]
        modulus = 1 << (8 * rule.width)
        made = bytearray()
        for unit in range(op.index + low, op.index + high):
            start, end = ends[unit] + base, ends[unit + 1] + base
            if start == end:  # a unit that is not stored
                made += bytes(rule.width)
                continue
            of = {"start": start, "last": end - 1, "size": end - start}
            value = rule.constant
            for term in rule.terms:
                shifted = of[term.quantity] >> term.right << term.left
                value += -shifted if term.negative else shifted
            made += (value % modulus).to_bytes(rule.width, rule.endian)
        skip = offset - low * rule.width
        return bytes(made[skip : skip + length])

    def _encode(self, op: Encode, offset: int, length: int) -> Iterator[Piece]:
        rule = _rule(self.rules.encodes, op.rule)
        ends = self.unit_ends(rule.table)
        if op.count < 1 or op.index + op.count >= len(ends):
            raise HostileInput(f"units {op.index}+{op.count} lie outside of their size table")
        base = ends[op.index]
        if ends[op.index + op.count] - base != op.length:
            raise HostileInput(f"units {op.index}+{op.count} are not {op.length} bytes")
        end = offset + length
        unit = bisect_right(ends, base + offset, op.index, op.index + op.count) - 1
        while unit < op.index + op.count and ends[unit] - base < end:
            start, stop = ends[unit] - base, ends[unit + 1] - base
            if start < stop:
                made = self.encode_unit(op.rule, op.offset + (unit - op.index) * rule.unit, stop - start)
                yield memoryview(made)[max(offset - start, 0) : min(end, stop) - start]
            # The next unit that is stored: holes in between may be millions.
            unit = bisect_right(ends, ends[unit + 1], unit + 1, op.index + op.count + 1) - 1

    def encode_unit(self, number: int, offset: int, size: int) -> bytes:
        """One framed unit of encode rule `number`, whose plain bytes begin at `offset`.

        Raises:
            HostileInput: it does not come to exactly `size` bytes.
        """
        rule = _rule(self.rules.encodes, number)
        # Siblings have most of their units in common: what is copied from one place is encoded once.
        inside = max(0, min(rule.unit, self.space(rule.input).size - offset))
        key = ("packed", rule.codec, rule.params, rule.unit, inside, *self.origin(rule.input, offset, inside))
        packed = self.cache.get(key, lambda: self._packed(rule, offset, inside))
        made = frame_unit(rule.framing, offset, packed)
        if len(made) != size:
            library = codec(rule.codec).version()
            raise HostileInput(f"a unit at {offset} encodes to {len(made)} bytes, not {size}, with {library}")
        return made

    def _packed(self, rule: EncodeRule, offset: int, inside: int) -> bytes:
        plain = self.read(rule.input, offset, inside) if inside else b""
        return codec(rule.codec).encode(plain.ljust(rule.unit, b"\0"), dict(rule.params))

    def origin(self, space: int, offset: int, length: int) -> tuple[int, int]:
        """The lowest space, and the place in it, that a span is one copy of; where it is none, the
        span itself."""
        while length:
            target = self.space(space)
            if not isinstance(target, Recipe) or offset + length > target.size:
                break
            op, start = target.op_at(offset)
            if not isinstance(op, Copy) or start + op.length < offset + length:
                break
            space, offset = op.space, op.offset + offset - start
        return space, offset

    def copied(self, space: int, offset: int, length: int) -> Iterator[tuple[int, int, int, int]]:
        """Which bytes of a span are copies: (space, offset there, length, offset here) of the lowest
        spaces that they are copied from.

        Raises:
            HostileInput: a copy of bytes outside of their space.
        """
        target, end = self.space(space), offset + length
        check_span(offset, length, target.size, f"space {space}")
        if not isinstance(target, Recipe):
            yield space, offset, length, offset
            return
        while offset < end:
            op, start = target.op_at(offset)
            taken = min(end, start + op.length) - offset
            if isinstance(op, Copy):
                from_ = op.offset + offset - start
                for below, at, part, place in self.copied(op.space, from_, taken):
                    yield below, at, part, offset + place - from_
            offset += taken

    def home(self, space: int, offset: int) -> tuple[int, int]:
        """The lowest space, and about the place in it, that the bytes from `offset` on are made of.
        What has its home at one place costs the same frames."""
        for _ in range(_TRIED):
            target = self.space(space)
            if not isinstance(target, Recipe) or offset >= target.size:
                break
            op, start = target.op_at(offset)
            below = self._below(op, offset - start)
            if below is None:
                offset = start + op.length
            else:
                space, offset = below
        return space, offset

    def _below(self, op: Op, offset: int) -> tuple[int, int] | None:
        """What the byte at `offset` of an op is made of; None where nothing is read for it."""
        if isinstance(op, Copy):
            return op.space, op.offset + offset
        if isinstance(op, Encode):
            rule = _rule(self.rules.encodes, op.rule)
            ends = self.unit_ends(rule.table)
            if op.index + op.count >= len(ends):
                return None
            unit = bisect_right(ends, ends[op.index] + offset, op.index, op.index + op.count) - 1
            return rule.input, op.offset + (unit - op.index) * rule.unit
        if isinstance(op, Decode):
            return _rule(self.rules.decodes, op.rule).input, op.offset
        return None

    def _stream(self, op: Stream, offset: int, length: int) -> Iterator[Piece]:
        rule = _rule(self.rules.streams, op.rule)
        key = _stream_key(rule, op)
        if _is_small(op):
            yield view(self.cache.get(key, lambda: self._whole(rule, op)), offset, offset + length)
            return
        for at in range(offset, offset + length, SMALL_STREAM):
            size = min(SMALL_STREAM, offset + length - at)
            yield memoryview(self.streams.read(key, op.length, lambda: self._encoded(rule, op), at, size))

    def _whole(self, rule: StreamRule, op: Stream) -> bytes:
        made = bytearray()
        plain = self.read(rule.input, op.offset, op.plain)
        with self._taken(rule, op):
            for piece in self._encoder(rule).encode([plain]):
                made += piece
                if len(made) > op.length:
                    break
        if len(made) != op.length:
            raise HostileInput(f"{op.plain} bytes do not encode to exactly {op.length} by {rule.codec}")
        return bytes(made)

    def _encoded(self, rule: StreamRule, op: Stream) -> Iterator[bytes]:
        feed = partial(self._fed, rule, op)
        known = self._known.find(rule.codec, rule.params, op.plain, feed) if self._known else None
        if known is not None:
            yield from known
            return
        with self._taken(rule, op):
            yield from self._encoder(rule).encode(feed())

    def _fed(self, rule: StreamRule, op: Stream) -> Iterator[bytes]:
        """The plain bytes of a stream, block by block."""
        for pieces in blocks(self, rule.input, op.offset, op.plain, _FEEDERS):
            yield join(iter(pieces))

    def _taken(self, rule: StreamRule, op: Stream) -> AbstractContextManager[None]:
        """The memory of an encoder, while it runs."""
        memory = streams.memory(rule.codec, dict(rule.params), op.plain)
        return self._room.take(rule.input, memory) if self._room else nullcontext()

    def _encoder(self, rule: StreamRule) -> streams.Encoder:
        return streams.encoder(rule.codec, dict(rule.params), self._run)

    def streams_ahead(self, space: int, most: int) -> Callable[[], None]:
        """Begin to encode the streams of a space in order, `most` at a time; the result ends
        that. Streams that are small are not worth a thread."""

        def wanted() -> Iterator[tuple[Hashable, int, Callable[[], Iterator[bytes]]]]:
            for op in self.streams_of(space):
                rule = _rule(self.rules.streams, op.rule)
                if not _is_small(op):
                    yield _stream_key(rule, op), op.length, partial(self._encoded, rule, op)

        return self.streams.ahead(wanted(), most)

    def streams_of(self, space: int) -> Iterator[Stream]:
        """The streams that a space consists of, in order, also where they are copied from
        another space."""
        target = self.space(space)
        known: dict[int, _Placed] = {}
        for op in target.ops() if isinstance(target, Recipe) else ():
            if isinstance(op, Stream):
                yield op
            elif isinstance(op, Copy):
                if op.space not in known:
                    known[op.space] = self._placed(op.space)
                yield from known[op.space].within(op.offset, op.length)

    def _placed(self, space: int) -> _Placed:
        """The streams of a space, each with where it begins."""
        target, here, placed = self.space(space), 0, _Placed([], [])
        for op in target.ops() if isinstance(target, Recipe) and target.streams else ():
            if isinstance(op, Stream):
                placed.starts.append(here)
                placed.streams.append(op)
            here += op.length
        return placed

    def _decoded(self, op: Decode, offset: int, length: int) -> Piece:
        """A span of what an op decodes to; of a block that was decoded twice, out of the spool."""
        key = ("decode", op.rule, op.offset, op.stored, op.length, op.prefix_offset, op.prefix_length)
        kept = self._remade.read(key, offset, length) if self._remade else None
        if kept is not None:
            return memoryview(kept)
        return view(self.cache.get(key, lambda: self._decode(op, key)), offset, offset + length)

    def _decode(self, op: Decode, key: Hashable) -> bytes:
        rule = _rule(self.rules.decodes, op.rule)
        if op.length > MAX_FRAME or op.stored > MAX_FRAME or op.prefix_length > 2 * MAX_FRAME:
            raise HostileInput(f"a decoded unit of {op.length} bytes is above the limit")
        stored = self.read(rule.input, op.offset, op.stored)
        if rule.codec == "zstd":
            plain = decompress(stored, op.length, "residue", self._prefix(rule, op))
        elif op.prefix_length:
            raise HostileInput(f"{rule.codec} has no prefix")
        else:
            plain = decode_block(rule.codec, stored, dict(rule.params), op.length)
        if self._remade:
            self._remade.add(key, plain)
        return plain

    def _prefix(self, rule: DecodeRule, op: Decode) -> Prefix | None:
        if not op.prefix_length:
            return None
        if rule.prefix is None:
            raise HostileInput("a prefix, and no space that it comes from")
        return Prefix(self.read(rule.prefix, op.prefix_offset, op.prefix_length))


def _is_small(op: Stream) -> bool:
    return op.plain <= SMALL_STREAM and op.length <= 2 * SMALL_STREAM


def _stream_key(rule: StreamRule, op: Stream) -> Hashable:
    return "stream", rule.codec, rule.params, rule.input, op.offset, op.plain, op.length


def frame_unit(framing: Framing, source: int, packed: bytes) -> bytes:
    """Header with its fields written in, encoded bytes, zeros up to the alignment."""
    header = bytearray(framing.header)
    for item in framing.fields:
        value = (source >> item.shift) if item.quantity == "source" else len(packed)
        if value >> (8 * item.width):
            raise HostileInput(f"a unit's header has no room for {value}")
        header[item.at : item.at + item.width] = value.to_bytes(item.width, item.endian)
    made = bytes(header) + packed
    return made + bytes(-len(made) % framing.align)


def _rule(rules: Sequence[T], number: int) -> T:
    if not 0 <= number < len(rules):
        raise HostileInput(f"an op names rule {number}, which does not exist")
    return rules[number]


def _series_pieces(op: Series, offset: int, length: int) -> Iterator[Piece]:
    """In steps, because each integer is an object of 40 bytes until its step is joined."""
    end = offset + length
    for at in range(offset, end, _STEP):
        yield memoryview(_series(op, at, min(_STEP, end - at)))


def _series(op: Series, offset: int, length: int) -> bytes:
    low, high = offset // op.width, -(-(offset + length) // op.width)
    modulus = 1 << (8 * op.width)
    if not op.step:
        made = (op.first % modulus).to_bytes(op.width, op.endian) * (high - low)
    else:
        values = ((op.first + k * op.step) % modulus for k in range(low, high))
        made = b"".join(value.to_bytes(op.width, op.endian) for value in values)
    skip = offset - low * op.width
    return made[skip : skip + length]


class OpsSpace:
    """A space made by a list of ops in memory."""

    def __init__(self, ops: Sequence[Op]) -> None:
        self._ops, self._starts = ops, output_offsets(ops)
        self.size = self._starts[-1]

        self.streams = {op.rule for op in ops if isinstance(op, Stream)}

    def pieces(self, machine: Machine, offset: int, length: int) -> Iterator[Piece]:
        return run_ops(machine, self._ops, self._starts, offset, length)

    def ops(self) -> Iterator[Op]:
        """All ops, in order."""
        return iter(self._ops)

    def op_at(self, offset: int) -> tuple[Op, int]:
        """The op that makes the byte at `offset`, and where its output begins."""
        index = bisect_right(self._starts, offset) - 1
        return self._ops[index], self._starts[index]


class ReaderSpace:
    """A space that a Reader gives: a file, a disk."""

    def __init__(self, reader: Reader) -> None:
        self._reader, self.size = reader, reader.size

    def pieces(self, machine: Machine, offset: int, length: int) -> Iterator[Piece]:
        if length:
            yield memoryview(self._reader.pread(offset, length))


def run_ops(
    machine: Machine, ops: Sequence[Op], starts: Sequence[int], offset: int, length: int
) -> Iterator[Piece]:
    """The bytes [offset, offset+length) of a row of ops; `starts` are their output offsets."""
    return _coalesced(_run_each(machine, ops, starts, offset, length))


def _run_each(
    machine: Machine, ops: Sequence[Op], starts: Sequence[int], offset: int, length: int
) -> Iterator[Piece]:
    end = offset + length
    index = bisect_right(starts, offset) - 1
    while offset < end:
        stop = min(end, starts[index + 1])
        yield from machine.run(ops[index], offset - starts[index], stop - offset)
        offset, index = stop, index + 1


def _coalesced(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The same bytes, with small pieces in a row joined."""
    small = bytearray()
    for piece in pieces:
        length = piece.length if isinstance(piece, Zeros) else len(piece)
        if length < _SMALL:
            small += bytes(length) if isinstance(piece, Zeros) else piece
        if small and (length >= _SMALL or len(small) >= _SMALL):
            yield memoryview(small)
            small = bytearray()
        if length >= _SMALL:
            yield piece
    if small:
        yield memoryview(small)


def view(data: bytes, start: int, end: int) -> memoryview:
    """Bytes [start, end) of `data`; copied where they are so few that they must not keep all
    of it in memory. So what a caller holds is at most eight times what it asked for."""
    whole = memoryview(data)
    return whole[start:end] if (end - start) * 8 >= len(data) else memoryview(bytes(whole[start:end]))


@dataclass(frozen=True, slots=True)
class SpaceReader:
    """A Reader over one space of a machine."""

    machine: Machine
    space: int

    @property
    def size(self) -> int:
        return self.machine.space(self.space).size

    def pread(self, offset: int, length: int) -> bytes:
        return self.machine.read(self.space, offset, length)

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        """The same, not joined."""
        return self.machine.pieces(self.space, offset, length)


def blocks(machine: Machine, space: int, offset: int, length: int, workers: int) -> Iterator[list[Piece]]:
    """The pieces of a span of a space, block by block, in order; few blocks are made at once and
    few more wait, so that memory does not grow with the image."""
    end = offset + length
    waiting: deque[Future[list[Piece]]] = deque()

    def make(at: int) -> list[Piece]:
        return list(machine.pieces(space, at, min(BLOCK, end - at)))

    pool = ThreadPoolExecutor(workers)
    try:
        for at in range(offset, end, BLOCK):
            waiting.append(pool.submit(make, at))
            if len(waiting) > workers + _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BaseException:
        # One that is being made may wait for minutes, for a stream that only our caller can end.
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def join(pieces: Iterator[Piece]) -> bytes:
    """The bytes of some pieces."""
    return b"".join(bytes(p.length) if isinstance(p, Zeros) else p for p in _coalesced(pieces))
