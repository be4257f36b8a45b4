"""What a format module says of a file.

An *explanation* is a recipe of the file over three symbolic spaces, and a reader of the disk
that the file holds:

    GUEST   the guest disk, by guest addresses
    FILE    the file itself: `Copy(n, FILE, here)` marks bytes that no rule gives
    SIZES   the sizes of encoded units, a table of little-endian integers
    LAYER   what a compressed part of the file holds, explained in turn; LAYER+1 the next one

The ops cover the file exactly and in order. The builder gives the symbolic spaces their
numbers, explains the FILE spans further (zeros, matches elsewhere, literals) and proves the
whole. An explanation is a prediction: nothing is trusted until the proof.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from rehydrator.core.errors import HostileInput, Unexplained
from rehydrator.core.ops import Copy, Op, Rules, StreamRule, is_zeros, zeros
from rehydrator.core.reader import check_span, data_spans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from rehydrator.core.reader import Reader, SparseReader

T = TypeVar("T")
R = TypeVar("R")

GUEST, FILE, SIZES, LAYER = 0, 1, 2, 3

# A compressed tar with a compressed layer in it is two; every level is unpacked for itself.
MAX_LAYERS = 4


class Each(Protocol):
    """`map`, or an executor's: how a format module runs slow work (encoders) side by side.
    Results come in order, so that the outcome does not depend on the number of threads."""

    def __call__(self, work: Callable[[T], R], items: Iterable[T], /) -> Iterable[R]: ...


MAX_EXTENTS = 4 << 20


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` guest bytes from `guest` lie in the file from `file` on, as they are."""

    guest: int
    length: int
    file: int


@dataclass(frozen=True, slots=True)
class Packed:
    """One encoded unit: guest bytes [guest, guest+length) are `stored` bytes at `file`."""

    guest: int
    length: int
    file: int
    stored: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """A file, explained. `format` names what was found, from the outside in: "tar+vmdk".

    `sizes` is the content of the SIZES space. `facts` are short findings for `info`
    ("cluster size": "65536").
    """

    format: str
    guest: SparseReader
    ops: Sequence[Op]
    rules: Rules = field(default_factory=Rules)
    sizes: bytes = b""
    facts: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True, slots=True)
class Layer:
    """The plain bytes of a compressed part, and what is known of them."""

    file: SparseReader
    explanation: Explanation


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A compressed file, taken apart: `ops` make it from FILE and, by `streams`, from `plain`,
    which is LAYER there. `encoders` names what was found, for `info`."""

    container: str
    plain: SparseReader
    ops: Sequence[Op]
    streams: tuple[StreamRule, ...]
    encoders: Mapping[str, str]


class NoDiskError(Unexplained):
    """The bytes are no disk of a known format."""


class Unpack(Protocol):
    """Takes compressed files apart: None where `file` is none of a known kind.

    Raises:
        Unexplained: it is one, and no encoder gives its bytes again.
        HostileInput: it is damaged.
    """

    def __call__(self, file: Reader, /) -> Unpacked | None: ...


class GuestReader:
    """The guest disk of a file: extents as they lie, packed units decoded, zeros elsewhere.

    `size` is the disk's size in bytes. Extents must be disjoint in guest addresses.
    """

    def __init__(
        self,
        file: Reader,
        size: int,
        extents: Iterable[Extent | Packed],
        decode: Callable[[Packed, bytes], bytes] | None = None,
    ) -> None:
        self._file, self.size, self._decode = file, size, decode
        self._extents = sorted(extents, key=lambda extent: extent.guest)
        self._starts = [extent.guest for extent in self._extents]
        self._last: tuple[int, bytes] = (-1, b"")
        self._check()

    def pread(self, offset: int, length: int) -> bytes:
        check_span(offset, length, self.size, "guest disk")
        parts, end = [], offset + length
        index = max(bisect_right(self._starts, offset) - 1, 0)
        while offset < end:
            extent = self._extents[index] if index < len(self._extents) else None
            if extent is None or extent.guest >= end:
                parts.append(bytes(end - offset))
                break
            if offset < extent.guest:
                parts.append(bytes(extent.guest - offset))
                offset = extent.guest
            stop = min(end, extent.guest + extent.length)
            if offset < stop:
                parts.append(self._read(index, extent, offset - extent.guest, stop - offset))
                offset = stop
            index += 1
        return b"".join(parts)

    def data_spans(self) -> Iterator[tuple[int, int]]:
        start = end = 0
        for extent in self._extents:
            low, high = extent.guest, min(extent.guest + extent.length, self.size)
            if low > end:
                if end > start:
                    yield start, end - start
                start = low
            end = max(end, high)
        if end > start:
            yield start, end - start

    def _read(self, index: int, extent: Extent | Packed, skip: int, length: int) -> bytes:
        if isinstance(extent, Extent):
            return self._file.pread(extent.file + skip, length)
        held, plain = self._last
        if held != index:
            assert self._decode is not None
            plain = self._decode(extent, self._file.pread(extent.file, extent.stored))
            self._last = index, plain
        return plain[skip : skip + length]

    def _check(self) -> None:
        if len(self._extents) > MAX_EXTENTS:
            raise Unexplained(f"more than {MAX_EXTENTS} extents")
        end = 0
        for extent in self._extents:
            stored = extent.stored if isinstance(extent, Packed) else extent.length
            if extent.guest < end:
                raise Unexplained(f"two extents hold the guest bytes at {extent.guest}")
            check_span(extent.file, stored, self._file.size, "file")
            end = extent.guest + extent.length


def moved(inner: Explanation, at: int, size: int) -> Explanation:
    """An explanation of the part of a file of `size` bytes that begins at `at`, as one of the
    file; what is not of the part is FILE.

    Raises:
        Unexplained: its rules read the file itself, whose place they do not know.
    """
    rules = inner.rules
    read = [table.space for table in rules.tables]
    read += [rule.input for rule in rules.encodes] + [rule.input for rule in rules.decodes]
    read += [rule.input for rule in rules.streams]
    read += [rule.prefix for rule in rules.decodes if rule.prefix is not None]
    require(FILE not in read, f"{inner.format}: its rules refer to the file itself")
    ops, here = OpsBuilder(size), at
    for op in inner.ops:
        is_file = isinstance(op, Copy) and op.space == FILE
        ops.add(here, replace(op, offset=op.offset + at) if is_file and isinstance(op, Copy) else op)
        here += op.length
    return replace(inner, ops=ops.finish())


class OpsBuilder:
    """Collects ops in file order: neighbours merge, and gaps become FILE copies.

    `add(at, op)` says that `op` makes the bytes of the file from `at` on; what lies between
    the ops is FILE. Ops may come in any order; `finish` sorts them, refuses overlaps, and
    covers the whole file.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._placed: list[tuple[int, Op]] = []

    def add(self, at: int, op: Op) -> None:
        """`op` makes [at, at + op.length)."""
        self._placed.append((at, op))

    def finish(self) -> list[Op]:
        """The ops that cover [0, size) exactly.

        Raises:
            Unexplained: two ops claim one byte, or one leaves the file.
        """
        ops: list[Op] = []
        here = 0
        for at, op in sorted(self._placed, key=lambda placed: placed[0]):
            if at < here:
                raise Unexplained(f"two structures claim the byte at {at}")
            append(ops, Copy(at - here, FILE, here))
            append(ops, op)
            here = at + op.length
        if here > self._size:
            raise Unexplained(f"a structure ends at {here}, behind the end of the file at {self._size}")
        append(ops, Copy(self._size - here, FILE, here))
        return ops


def append(ops: list[Op], op: Op) -> None:
    """Append an op, joined to the last one where it continues it; no empty ops."""
    if not op.length:
        return
    last = ops[-1] if ops else None
    if (
        isinstance(op, Copy)
        and isinstance(last, Copy)
        and last.space == op.space
        and last.offset + last.length == op.offset
    ):
        ops[-1] = Copy(last.length + op.length, op.space, last.offset)
    elif is_zero_pair(last, op):
        assert last is not None
        ops[-1] = zeros(last.length + op.length)
    else:
        ops.append(op)


def is_zero_pair(last: Op | None, op: Op) -> bool:
    """True for two runs of zeros."""
    return last is not None and is_zeros(last) and is_zeros(op)


def nonzero_bytes(reader: Reader, block: int = 1 << 20) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of every block that lies in the reader's data spans."""
    for offset, length in data_spans(reader):
        for start in range(offset, offset + length, block):
            yield start, reader.pread(start, min(block, offset + length - start))


def require(condition: bool, why: str) -> None:
    """Raise Unexplained(why) unless the condition holds."""
    if not condition:
        raise Unexplained(why)


def refuse_short(file: Reader, offset: int, length: int, what: str) -> bytes:
    """`length` bytes at `offset`; Unexplained, naming `what`, where the file ends before."""
    try:
        return file.pread(offset, length)
    except HostileInput:
        raise Unexplained(f"{what} at {offset} lies outside of the file") from None
