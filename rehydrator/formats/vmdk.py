"""VMDK: single-file hosted sparse extents (c_vmdk names the source of the layout).

Explained are monolithicSparse (grains as they are) and streamOptimized (each grain a zlib
stream behind a grain marker), with the directory and its tables before the grains, as
qemu-img writes them, or behind them and found through the footer, as VMware does. Grains
may lie in any order. Every other kind of VMDK is declined.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rehydrator.codecs import codec
from rehydrator.core.errors import HostileInput, Unexplained
from rehydrator.core.ops import (
    Copy,
    EncodeRule,
    FrameField,
    Framing,
    OffsetRule,
    Rules,
    Term,
)
from rehydrator.formats import c_vmdk as c
from rehydrator.formats.explanation import (
    GUEST,
    Explanation,
    Extent,
    GuestReader,
    OpsBuilder,
    Packed,
    refuse_short,
    require,
)
from rehydrator.formats.runs import add_runs, present
from rehydrator.formats.units import MAX_UNITS, UnitRows, reproduce

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from rehydrator.core.reader import Reader
    from rehydrator.formats.explanation import Each
    from rehydrator.formats.units import Reproduced

MAX_DESCRIPTOR = 1 << 20
MAX_GRAIN = 16 << 20
MAX_TABLES = 1 << 16  # of 512 grains of 64 KiB: 2 TiB, the largest hosted sparse extent
_TABLES_AT_ONCE = 1024  # the prediction of one entry takes some 100 bytes of memory
_MAX_ENTRIES = 512  # per table: the technical note's number, and the most that qemu takes

# Deflate streams are decoded alike whatever wrote them.
_ANY_DEFLATE = {"level": 6, "memlevel": 8, "wbits": 15}

_GRAIN_OFFSETS = OffsetRule(0, c.ENTRY, "little", 0, (Term("start", 9, 0),))
_GRAIN_FRAMING = Framing(
    bytes(c.GRAIN_MARKER.size),
    (FrameField(0, 8, "little", "source", 9), FrameField(8, 4, "little", "length")),
    c.SECTOR,
)

_EXTENT = re.compile(r"^[ \t]*(?:RW|RDONLY|NOACCESS)[ \t]+\d+[ \t]+(\w+)", re.IGNORECASE | re.MULTILINE)
_ENTRY = re.compile(r"^[ \t]*(\w+)[ \t]*=[ \t]*\"?([^\"\r\n]*)", re.MULTILINE)


def recognise(file: Reader) -> bool:
    """A sparse extent, or a descriptor of other files (which `explain` declines)."""
    begin = file.pread(0, min(file.size, len(c.TEXT_MAGIC)))
    return begin[:4] in {c.MAGIC, c.COWD_MAGIC} or begin == c.TEXT_MAGIC


def explain(file: Reader, each: Each = map) -> Explanation:
    """Grains are guest bytes, as they are or encoded; tables follow from the grains' sizes.

    Raises:
        Unexplained: another kind of VMDK, or a damaged one.
    """
    header = read_header(file)
    kind = read_create_type(file, header)
    tables = _tables(file, header)
    grains = _grains(header, tables[0])
    _refuse_overlaps(file, header, tables, grains)
    try:
        return _explain(file, header, tables, grains, kind, each)
    except Unexplained:
        raise
    except HostileInput as error:
        raise Unexplained(str(error)) from None


class _Tables(NamedTuple):
    """One grain directory and its tables: `starts[k]` is the file offset of table k (0: there
    is none), and `entries` are those of all tables in a row, zero where there is no table."""

    at: int
    directory: NDArray[np.uint32]
    starts: NDArray[np.int64]
    entries: NDArray[np.uint32]


class _Grains(NamedTuple):
    """Allocated grains in the order of the file: first guest byte, first file byte."""

    guests: NDArray[np.int64]
    starts: NDArray[np.int64]


def read_header(file: Reader) -> c.Header:
    """The header, with the directory's place from the footer where it is there."""
    raw = refuse_short(file, 0, min(c.SECTOR, file.size), "header")
    require(raw[: len(c.TEXT_MAGIC)] != c.TEXT_MAGIC, "a descriptor of data in other files")
    require(raw[:4] != c.COWD_MAGIC, "an ESX sparse extent")
    require(len(raw) == c.SECTOR and raw[:4] == c.MAGIC, "no sparse extent header")
    header = c.Header._make(c.HEADER.unpack(raw))
    _check_header(header)
    if header.directory != c.GD_AT_END:
        return header
    at = file.size - c.FOOTER_FROM_END
    require(at > 0 and not at % c.SECTOR, "no footer at the end of the file")
    footer = c.Header._make(c.HEADER.unpack(refuse_short(file, at, c.SECTOR, "footer")))
    require(footer.directory != c.GD_AT_END, "a footer that names no grain directory")
    expected = header._replace(
        directory=footer.directory,
        redundant_directory=footer.redundant_directory,
        overhead=footer.overhead,
        unclean_shutdown=footer.unclean_shutdown,
    )
    require(footer == expected, "header and footer differ")
    return footer


def _check_header(header: c.Header) -> None:
    require(header.version in c.VERSIONS, f"version {header.version}")
    require(not header.flags & ~c.KNOWN_FLAGS, f"unknown flags {header.flags:#x}")
    compressed = bool(header.flags & c.COMPRESSED)
    require(
        compressed == bool(header.flags & c.MARKERS),
        "compressed grains without markers, or markers without compression",
    )
    require(header.compression == (c.DEFLATE if compressed else 0), f"compression {header.compression}")
    if header.flags & c.NEWLINES_VALID:
        require(header.newlines == c.NEWLINES, "newlines were converted: the file was sent as text")
    grain = header.grain_size
    require(
        grain >= 1 and not grain & (grain - 1) and grain * c.SECTOR <= MAX_GRAIN, f"grains of {grain} sectors"
    )
    require(1 <= header.entries_per_table <= _MAX_ENTRIES, f"{header.entries_per_table} entries in a table")
    require(header.capacity >= 1, "no capacity")
    tables = -(-header.capacity // (grain * header.entries_per_table))
    require(tables <= MAX_TABLES, f"a capacity of {header.capacity} sectors, above the limit")


def read_create_type(file: Reader, header: c.Header) -> str:
    """The create type that the embedded descriptor names ("Embedded Descriptor")."""
    offset, size = header.descriptor_offset * c.SECTOR, header.descriptor_size * c.SECTOR
    require(offset > 0 and size > 0, "no embedded descriptor: an extent of a disk of several files")
    require(size <= MAX_DESCRIPTOR, f"a descriptor of {size} bytes, above the limit")
    text = refuse_short(file, offset, size, "descriptor").partition(b"\0")[0].decode("latin-1")
    values = {key.lower(): value.strip() for key, value in _ENTRY.findall(text)}
    kind: str = values.get("createtype", "")
    require(kind in {"streamOptimized", "monolithicSparse"}, f"create type {kind!r:.40}")
    parent = values.get("parentcid", "")
    require(parent.lower() == "ffffffff", f"a parent disk: parentCID {parent!r:.20}")
    extents = [found.upper() for found in _EXTENT.findall(text)]
    require(extents == ["SPARSE"], f"extents {', '.join(extents)!r:.60} instead of one SPARSE")
    return kind


def _tables(file: Reader, header: c.Header) -> list[_Tables]:
    """The grain directory with its tables, and the redundant one where there is one."""
    places = [header.directory]
    if header.flags & c.REDUNDANT_TABLE and header.redundant_directory:
        places.append(header.redundant_directory)
    return [_read_tables(file, header, place * c.SECTOR) for place in places]


def _read_tables(file: Reader, header: c.Header, at: int) -> _Tables:
    require(at > 0, "no grain directory")
    per_table = header.entries_per_table
    count = -(-header.capacity // (header.grain_size * per_table))
    directory = np.frombuffer(refuse_short(file, at, count * c.ENTRY, "grain directory"), "<u4")
    starts = directory.astype(np.int64) * c.SECTOR
    parts = []
    for start, tables in _neighbours(starts, per_table * c.ENTRY):
        length = tables * per_table * c.ENTRY
        parts.append(refuse_short(file, start, length, "grain table") if start else bytes(length))
    return _Tables(at, directory, starts, np.frombuffer(b"".join(parts), "<u4"))


def _neighbours(starts: NDArray[np.int64], size: int) -> Iterator[tuple[int, int]]:
    """(file offset, count) of tables that follow each other in the file; offset 0: no tables."""
    joined = (starts[1:] == starts[:-1] + size) & (starts[:-1] > 0) | (starts[1:] == 0) & (starts[:-1] == 0)
    cuts = [0, *(np.flatnonzero(~joined) + 1).tolist(), len(starts)]
    for low, high in pairwise(cuts):
        yield int(starts[low]), high - low


def _grains(header: c.Header, tables: _Tables) -> _Grains:
    count = -(-header.capacity // header.grain_size)
    entries = tables.entries[:count]
    allocated = entries != c.UNALLOCATED
    if header.flags & c.ZEROED_GRAINS:
        allocated &= entries != c.ZEROED
    numbers = np.flatnonzero(allocated)
    require(len(numbers) <= MAX_UNITS, f"more than {MAX_UNITS} grains")
    starts = entries[numbers].astype(np.int64) * c.SECTOR
    order = np.argsort(starts, kind="stable")
    return _Grains(numbers[order] * (header.grain_size * c.SECTOR), starts[order])


def _refuse_overlaps(file: Reader, header: c.Header, tables: Sequence[_Tables], grains: _Grains) -> None:
    """No two structures may share a sector, or a table would be read as something else too."""
    least = c.SECTOR if header.flags & c.COMPRESSED else header.grain_size * c.SECTOR
    last = grains.starts[-1:]
    require(not (last >= file.size).any(), "a grain lies outside of the file")
    spans = [(np.array([0]), c.SECTOR)]
    spans.append((np.array([header.descriptor_offset * c.SECTOR]), header.descriptor_size * c.SECTOR))
    spans.append((grains.starts, least))
    for each in tables:
        spans.append((np.array([each.at]), len(each.directory) * c.ENTRY))
        spans.append((each.starts[each.starts > 0], header.entries_per_table * c.ENTRY))
    starts = np.concatenate([span for span, _ in spans])
    ends = np.concatenate([span + size for span, size in spans])
    order = np.argsort(starts, kind="stable")
    require(not (starts[order][1:] < ends[order][:-1]).any(), "grains, tables or descriptor overlap")


def _explain(
    file: Reader, header: c.Header, tables: Sequence[_Tables], grains: _Grains, kind: str, each: Each
) -> Explanation:
    facts = {"create type": kind, "grain size": str(header.grain_size * c.SECTOR)}
    ops = OpsBuilder(file.size)
    if header.flags & c.COMPRESSED:
        rows, guest, encodes, findings = _compressed(file, header, grains, ops, each)
        facts |= findings
    else:
        rows, guest = _plain(file, header, grains, ops)
        encodes = ()
    for copy in tables:
        _explain_tables(copy, rows, header, ops)
    rules = Rules((rows.table,), (_GRAIN_OFFSETS,), encodes)
    return Explanation("vmdk", guest, ops.finish(), rules, rows.table_bytes, facts)


def _explain_tables(tables: _Tables, rows: UnitRows, header: c.Header, ops: OpsBuilder) -> None:
    add_runs(ops, tables.at, tables.directory, "little")
    unit, per_table = header.grain_size * c.SECTOR, header.entries_per_table
    done = 0
    for start, count in _neighbours(tables.starts, per_table * c.ENTRY):
        for skipped in range(0, count if start else 0, _TABLES_AT_ONCE):
            first = (done + skipped) * per_table
            entries = tables.entries[first : first + min(_TABLES_AT_ONCE, count - skipped) * per_table]
            at = start + skipped * per_table * c.ENTRY
            for place, op in rows.offsets(_GRAIN_OFFSETS, 0, at, first * unit, entries.tobytes()):
                ops.add(place, op)
        done += count


def _plain(file: Reader, header: c.Header, grains: _Grains, ops: OpsBuilder) -> tuple[UnitRows, GuestReader]:
    """Grains as they lie."""
    unit, size = header.grain_size * c.SECTOR, header.capacity * c.SECTOR
    lengths = np.minimum(unit, size - grains.guests)
    extents = [
        Extent(*span)
        for span in zip(grains.guests.tolist(), lengths.tolist(), grains.starts.tolist(), strict=True)
    ]
    for extent in extents:
        require(extent.file + extent.length <= file.size, f"the grain at {extent.file} is cut short")
        ops.add(extent.file, Copy(extent.length, GUEST, extent.guest))
    rows = UnitRows(grains.guests, grains.starts, np.full(len(extents), unit), unit, c.SECTOR)
    return rows, GuestReader(file, size, present(file, extents))


def _compressed(
    file: Reader, header: c.Header, grains: _Grains, ops: OpsBuilder, each: Each
) -> tuple[UnitRows, GuestReader, tuple[EncodeRule, ...], dict[str, str]]:
    """Grains behind markers, each a zlib stream."""
    unit, size = header.grain_size * c.SECTOR, header.capacity * c.SECTOR
    units = [
        _marked(file, header, *at) for at in zip(grains.guests.tolist(), grains.starts.tolist(), strict=True)
    ]
    framed = [c.GRAIN_MARKER.size + _padded(one) for one in units]
    rows = UnitRows(grains.guests, grains.starts, framed, unit, c.SECTOR)

    def packed(one: Packed) -> bytes:
        """The stream; with the padding, and so like no encoder's, where that is not zero."""
        stored = file.pread(one.file, _padded(one))
        return stored if any(stored[one.stored :]) else stored[: one.stored]

    def plain(one: Packed) -> bytes:
        return _encoder_input(one, file.pread(one.file, one.stored), unit)

    found = reproduce("zlib", units, plain, packed, each)
    rules, chosen = _rules(units, found, plain, unit)
    for at, op in rows.encodes(chosen):
        ops.add(at, op)
    guest = GuestReader(file, size, units, lambda one, stored: _inflated(one, stored, unit)[: one.length])
    return rows, guest, rules, _findings(found)


def _rules(
    units: Sequence[Packed], found: Reproduced, plain: Callable[[Packed], bytes], unit: int
) -> tuple[tuple[EncodeRule, ...], list[int]]:
    """An encode rule for each encoder, and each grain's rule. Where the disk ends inside of a
    grain and that grain's stream ends with the disk (qemu does that), it has rules of its own."""
    lengths, chosen = [unit], list(found.chosen)
    for k, one in enumerate(units):
        if one.length < unit and chosen[k] >= 0 and len(plain(one)) < unit:
            lengths.append(one.length)
            chosen[k] += len(found.encoders)
    rules = tuple(
        EncodeRule(name, params, GUEST, length, 0, _GRAIN_FRAMING)
        for length in lengths
        for name, params in found.encoders
    )
    return rules, chosen


def _findings(found: Reproduced) -> dict[str, str]:
    spelt = [
        " ".join([codec(name).version(), *(f"{key} {value}" for key, value in params)])
        for name, params in found.encoders
    ]
    encoded = sum(k >= 0 for k in found.chosen)
    return {
        "encoder": ", ".join(spelt) or "none known",
        "grains encoded": f"{encoded} of {len(found.chosen)}",
    }


def _encoder_input(one: Packed, stored: bytes, unit: int) -> bytes:
    """What the encoder was fed: the grain's guest bytes, continued by zeros up to the whole
    grain unless the stream ends with the guest."""
    inflated = _inflated(one, stored, unit)
    return inflated if len(inflated) == one.length else inflated[: one.length].ljust(unit, b"\0")


def _inflated(one: Packed, stored: bytes, unit: int) -> bytes:
    try:
        plain, used = codec("zlib").unpack(stored, _ANY_DEFLATE, unit)
    except HostileInput as error:
        raise Unexplained(f"the grain at {one.file}: {error}") from None
    require(
        one.length <= len(plain) and used == one.stored, f"the grain at {one.file} holds {len(plain)} bytes"
    )
    return plain


def _marked(file: Reader, header: c.Header, guest: int, start: int) -> Packed:
    """The grain at `start`, whose marker must name the guest sector that the table names."""
    sector, stored = c.GRAIN_MARKER.unpack(refuse_short(file, start, c.GRAIN_MARKER.size, "grain marker"))
    require(sector * c.SECTOR == guest, f"the grain at {start} says sector {sector}, not {guest // c.SECTOR}")
    data = start + c.GRAIN_MARKER.size
    unit = header.grain_size * c.SECTOR
    # Twice the grain is far above deflate's worst case; the bound keeps reads small.
    require(0 < stored <= 2 * unit + c.SECTOR, f"the grain at {start} has {stored} encoded bytes")
    grain = Packed(guest, min(unit, header.capacity * c.SECTOR - guest), data, stored)
    require(data + _padded(grain) <= file.size, f"the grain at {start} is cut short")
    return grain


def _padded(grain: Packed) -> int:
    """Bytes from the grain's stream to the end of its last sector."""
    return -(-(c.GRAIN_MARKER.size + grain.stored) // c.SECTOR) * c.SECTOR - c.GRAIN_MARKER.size
