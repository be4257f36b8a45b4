"""Writes VMDK files in the dialects that real writers use, with the grains in any order.

Independent of the module under test: numbers are from VMware's "Virtual Disk Format 1.1".
"""

from __future__ import annotations

import random
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SECTOR = 512
AT_END = (1 << 64) - 1


def zlib_level(level: int) -> Callable[[bytes], bytes]:
    """An encoder of grains."""
    return lambda plain: zlib.compress(plain, level)


@dataclass(frozen=True)
class Dialect:
    """How a writer lays a VMDK out.

    `encode` makes grains (None: they lie as they are). `tables_at_end` puts the tables behind
    the grains, with markers and a footer. `redundant` writes both copies of the tables (never
    at the end). `short_last` ends the last grain's stream with the disk. `zeroed` marks zero
    grains in the tables instead of leaving them out.
    """

    encode: Callable[[bytes], bytes] | None = zlib_level(6)  # noqa: RUF009
    grain: int = 128  # sectors
    entries: int = 512
    tables_at_end: bool = False
    redundant: bool = True
    short_last: bool = False
    zeroed: bool = False
    version: int = 3
    name: str = "disk.vmdk"

    @property
    def unit(self) -> int:
        return self.grain * SECTOR


QEMU = Dialect(short_last=True)
VMWARE = Dialect(tables_at_end=True, redundant=False)
SPARSE = Dialect(encode=None, version=1)


def stored_grains(guest: bytes, dialect: Dialect) -> list[int]:
    """The numbers of the grains that are not all zero."""
    starts = range(0, len(guest), dialect.unit)
    return [number for number, at in enumerate(starts) if any(guest[at : at + dialect.unit])]


def write(guest: bytes, dialect: Dialect, order: Sequence[int] | None = None) -> bytes:
    """The file. `order` is a permutation of `stored_grains`; the default is ascending."""
    order = stored_grains(guest, dialect) if order is None else order
    return (_at_end if dialect.tables_at_end else _in_place)(guest, dialect, order)


def descriptor(dialect: Dialect, capacity: int, parent: str = "ffffffff", kind: str = "") -> bytes:
    """An embedded descriptor of 20 sectors."""
    kind = kind or ("streamOptimized" if dialect.encode else "monolithicSparse")
    text = (
        "# Disk DescriptorFile\nversion=1\nCID=0f0e0d0c\n"
        f'parentCID={parent}\ncreateType="{kind}"\n\n# Extent description\n'
        f'RW {capacity} SPARSE "{dialect.name}"\n\n# The Disk Data Base\n#DDB\n\n'
        'ddb.virtualHWVersion = "4"\nddb.adapterType = "lsilogic"\n'
    )
    return text.encode().ljust(20 * SECTOR, b"\0")


def header(dialect: Dialect, capacity: int, rgd: int, gd: int, overhead: int) -> bytes:
    """The sparse extent header; `rgd`, `gd` and `overhead` in sectors."""
    flags = 1 | (2 if rgd else 0) | (4 if dialect.zeroed else 0) | (0x30000 if dialect.encode else 0)
    fields = struct.pack(
        "<4sIIQQQQIQQQB4sH",
        *(b"KDMV", dialect.version, flags, capacity, dialect.grain, 1, 20, dialect.entries),
        *(rgd, gd, overhead, 0, b"\n \r\n", 1 if dialect.encode else 0),
    )
    return fields.ljust(SECTOR, b"\0")


def _geometry(guest: bytes, dialect: Dialect) -> tuple[int, int, int]:
    """(capacity, number of tables, sectors of a table)"""
    assert len(guest) % SECTOR == 0
    capacity = len(guest) // SECTOR
    return capacity, -(-capacity // (dialect.grain * dialect.entries)), -(-dialect.entries * 4 // SECTOR)


def _grain(guest: bytes, dialect: Dialect, number: int) -> bytes:
    plain = guest[number * dialect.unit : (number + 1) * dialect.unit]
    if not (dialect.short_last and dialect.encode):
        plain = plain.ljust(dialect.unit, b"\0")
    if dialect.encode:
        packed = dialect.encode(plain)
        plain = struct.pack("<QI", number * dialect.grain, len(packed)) + packed
    return _padded(plain)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % SECTOR)


def _entries(guest: bytes, dialect: Dialect, tables: int, stored: set[int]) -> list[int]:
    count = tables * dialect.entries
    zeroed = range(-(-len(guest) // dialect.unit)) if dialect.zeroed else range(0)
    return [1 if number in zeroed and number not in stored else 0 for number in range(count)]


def _in_place(guest: bytes, dialect: Dialect, order: Sequence[int]) -> bytes:
    """Header, descriptor, directory and tables (once or twice), grains."""
    capacity, tables, table_sectors = _geometry(guest, dialect)
    directory_sectors = -(-tables * 4 // SECTOR)
    copy = directory_sectors + tables * table_sectors
    rgd = 21 if dialect.redundant else 0
    gd = 21 + copy if dialect.redundant else 21
    overhead = -(-(gd + copy) // dialect.grain) * dialect.grain
    entries = _entries(guest, dialect, tables, set(order))
    grains = bytearray()
    for number in order:
        entries[number] = overhead + len(grains) // SECTOR
        grains += _grain(guest, dialect, number)
    out = header(dialect, capacity, rgd, gd, overhead) + descriptor(dialect, capacity)
    for at in (rgd, gd) if rgd else (gd,):
        starts = [at + directory_sectors + k * table_sectors for k in range(tables)]
        out += _padded(struct.pack(f"<{tables}I", *starts)) + _table_bytes(dialect, entries)
    return out.ljust(overhead * SECTOR, b"\0") + bytes(grains)


def _table_bytes(dialect: Dialect, entries: Sequence[int]) -> bytes:
    parts = (entries[at : at + dialect.entries] for at in range(0, len(entries), dialect.entries))
    return b"".join(_padded(struct.pack(f"<{len(part)}I", *part)) for part in parts)


def _marker(sectors: int, kind: int) -> bytes:
    return struct.pack("<QII", sectors, 0, kind).ljust(SECTOR, b"\0")


def _at_end(guest: bytes, dialect: Dialect, order: Sequence[int]) -> bytes:
    """Grains, each table behind the last of its grains, directory, footer, end of stream.
    A table without grains is not written."""
    capacity, tables, table_sectors = _geometry(guest, dialect)
    entries = _entries(guest, dialect, tables, set(order))
    last = {number // dialect.entries: place for place, number in enumerate(order)}
    out = bytearray(header(dialect, capacity, 0, AT_END, dialect.grain) + descriptor(dialect, capacity))
    out += bytes(dialect.grain * SECTOR - len(out) % (dialect.grain * SECTOR))
    starts = [0] * tables
    for place, number in enumerate(order):
        entries[number] = len(out) // SECTOR
        out += _grain(guest, dialect, number)
        table = number // dialect.entries
        if last[table] == place:
            out += _marker(table_sectors, 1)
            starts[table] = len(out) // SECTOR
            out += _table_bytes(dialect, entries[table * dialect.entries : (table + 1) * dialect.entries])
    directory = _padded(struct.pack(f"<{tables}I", *starts))
    out += _marker(len(directory) // SECTOR, 2)
    gd = len(out) // SECTOR
    out += directory + _marker(1, 3) + header(dialect, capacity, 0, gd, dialect.grain)
    return bytes(out) + bytes(SECTOR)


def disk(size: int, seed: int = 1, grain: int = 64 << 10) -> bytes:
    """A guest disk: compressible text, noise, bytes repeated, and stretches of zeros."""
    dice = random.Random(seed)
    words = [dice.randbytes(dice.randrange(3, 12)) for _ in range(200)]
    text = b"".join(dice.choice(words) for _ in range(grain // 4)).ljust(grain, b".")[:grain]
    out = bytearray()
    while len(out) < size:
        turn, kind = dice.randrange(grain), dice.random()
        if kind < 0.35:
            out += bytes(grain)
        elif kind < 0.45:
            out += bytes([dice.randrange(256)]) * grain
        elif kind < 0.5:
            out += dice.randbytes(grain)
        else:
            out += text[turn:] + text[:turn]
    out[0] = 1  # a disk that begins with data
    return bytes(out[:size])
