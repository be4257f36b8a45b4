"""The engine: evaluates recipes. It knows five ops and no disk format.

A `Machine` holds the spaces of a bundle (or of one explanation) by number and gives any span
of any of them as pieces: views of decoded frames, and runs of zeros that are never made.

    pieces(space, offset, length)   what a span consists of, without joining it
    reader(space)                   a Reader over a space

Memory: decoded frames and Decode results share one least-recently-used cache of a fixed
number of bytes; a piece keeps its frame alive only as long as the caller holds it.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from rehydrator.codecs import codec
from rehydrator.core.errors import HostileInput
from rehydrator.core.ops import Copy, Encode, Offsets, Series, is_zeros
from rehydrator.core.pack import MAX_FRAME, decompress
from rehydrator.core.reader import check_span
from rehydrator.core.recipe import output_offsets, unpack_integers

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

    from rehydrator.core.ops import Decode, EncodeRule, Framing, Op, Rules
    from rehydrator.core.reader import Reader

T = TypeVar("T")

DEFAULT_CACHE = 96 << 20
_MAX_TABLE = 256 << 20


class Zeros(NamedTuple):
    """A run of zero bytes."""

    length: int


Piece = memoryview | Zeros


class Space(Protocol):
    """What the machine needs of a space; `pieces` may ask the machine for lower spaces."""

    @property
    def size(self) -> int: ...

    def pieces(self, machine: Machine, offset: int, length: int) -> Iterator[Piece]: ...


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
        return self._make(key, entry, make) if mine else entry.result()

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
            self._held += len(value)
            self._evict()
        return value

    def _evict(self) -> None:
        for key in list(self._entries):
            if self._held <= self._limit:
                return
            entry = self._entries[key]
            if entry.done():
                del self._entries[key]
                self._held -= len(entry.result())


class Machine:
    """Spaces by number, the rules of their recipes, and one cache."""

    def __init__(self, spaces: Mapping[int, Space], rules: Rules, cache: Cache | None = None) -> None:
        self.spaces, self.rules = spaces, rules
        self.cache = cache or Cache(DEFAULT_CACHE)
        self._ends: dict[int, list[int]] = {}

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
            return iter((memoryview(_series(op, offset, length)),))
        if isinstance(op, Offsets):
            return iter((memoryview(self._offsets(op, offset, length)),))
        if isinstance(op, Encode):
            return self._encode(op, offset, length)
        return iter((memoryview(self._decode(op))[offset : offset + length],))

    def unit_ends(self, table: int) -> list[int]:
        """Where each unit of a size table ends when they lie in a row: 0, then running sums."""
        if table not in self._ends:
            if not 0 <= table < len(self.rules.tables):
                raise HostileInput(f"a rule names size table {table}, which does not exist")
            sizes = self.rules.tables[table]
            total = self.space(sizes.space).size
            if total > _MAX_TABLE or total % sizes.width:
                raise HostileInput(f"size table {table}: {total} bytes")
            values = unpack_integers(self.read(sizes.space, 0, total), sizes.width)
            self._ends[table] = list(accumulate((v * sizes.scale for v in values), initial=0))
        return self._ends[table]

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
            unit += 1

    def encode_unit(self, number: int, offset: int, size: int) -> bytes:
        """One framed unit of encode rule `number`, whose plain bytes begin at `offset`.

        Raises:
            HostileInput: it does not come to exactly `size` bytes.
        """
        rule = _rule(self.rules.encodes, number)
        key = ("unit", number, offset, size)
        return self.cache.get(key, lambda: self._framed(rule, offset, size))

    def _framed(self, rule: EncodeRule, offset: int, size: int) -> bytes:
        source = self.space(rule.input)
        inside = max(0, min(rule.unit, source.size - offset))
        plain = self.read(rule.input, offset, inside).ljust(rule.unit, b"\0") if inside else bytes(rule.unit)
        packed = codec(rule.codec).encode(plain, dict(rule.params))
        made = frame_unit(rule.framing, offset, packed)
        if len(made) != size:
            library = codec(rule.codec).version()
            raise HostileInput(f"a unit at {offset} encodes to {len(made)} bytes, not {size}, with {library}")
        return made

    def _decode(self, op: Decode) -> bytes:
        rule = _rule(self.rules.decodes, op.rule)
        if op.length > MAX_FRAME or op.stored > MAX_FRAME or op.prefix_length > 2 * MAX_FRAME:
            raise HostileInput(f"a decoded unit of {op.length} bytes is above the limit")
        key = ("decode", op.rule, op.offset, op.length, op.prefix_offset)

        def make() -> bytes:
            stored = self.read(rule.input, op.offset, op.stored)
            if not op.prefix_length:
                return codec(rule.codec).decode(stored, dict(rule.params), op.length)
            if rule.prefix is None or rule.codec != "zstd":
                raise HostileInput(f"{rule.codec} has no prefix")
            prefix = self.read(rule.prefix, op.prefix_offset, op.prefix_length)
            return decompress(stored, op.length, "residue", prefix)

        return self.cache.get(key, make)


def frame_unit(framing: Framing, source: int, packed: bytes) -> bytes:
    """Header with its fields written in, encoded bytes, zeros up to the alignment."""
    header = bytearray(framing.header)
    for item in framing.fields:
        value = (source >> item.shift) if item.quantity == "source" else len(packed)
        header[item.at : item.at + item.width] = value.to_bytes(item.width, item.endian)
    made = bytes(header) + packed
    return made + bytes(-len(made) % framing.align)


def _rule(rules: Sequence[T], number: int) -> T:
    if not 0 <= number < len(rules):
        raise HostileInput(f"an op names rule {number}, which does not exist")
    return rules[number]


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

    def pieces(self, machine: Machine, offset: int, length: int) -> Iterator[Piece]:
        return run_ops(machine, self._ops, self._starts, offset, length)


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
    end = offset + length
    index = bisect_right(starts, offset) - 1
    while offset < end:
        stop = min(end, starts[index + 1])
        yield from machine.run(ops[index], offset - starts[index], stop - offset)
        offset, index = stop, index + 1


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


def join(pieces: Iterator[Piece]) -> bytes:
    """The bytes of some pieces."""
    return b"".join(bytes(p.length) if isinstance(p, Zeros) else p for p in pieces)
