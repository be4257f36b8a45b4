"""VHD: fixed disks (the guest disk, then a footer) and dynamic ones (blocks behind a table).

    fixed    guest disk | footer
    dynamic  footer copy | dynamic header | BAT | (sector bitmap | block)* | footer

A block is guest data throughout, whatever its sector bitmap says: so qemu reads it (measured
with 7.2: a cleared bitmap changes nothing), while the specification calls such sectors zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rehydrator.core.ops import Copy
from rehydrator.formats import c_vhd as c
from rehydrator.formats.explanation import (
    GUEST,
    MAX_EXTENTS,
    Explanation,
    Extent,
    GuestReader,
    OpsBuilder,
    refuse_short,
    require,
)
from rehydrator.formats.runs import add_runs, present, refuse_overlaps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rehydrator.core.reader import Reader
    from rehydrator.formats.explanation import Each

    Entries = np.ndarray[Any, np.dtype[np.uint32]]


def recognise(file: Reader) -> bool:
    """A footer with a good checksum at the end, or at byte 0 as dynamic disks have it."""
    return find_footer(file) is not None


def explain(file: Reader, each: Each = map) -> Explanation:
    """A fixed or dynamic disk.

    Raises:
        Unexplained: a differencing disk, an unknown version, or a malformed file.
    """
    footer = find_footer(file)
    require(footer is not None, "no footer with a good checksum")
    assert footer is not None
    require(footer.version == c.VERSION, f"version {footer.version:#x}")
    require(footer.disk_type != c.DIFFERENCING, "a differencing disk, whose parent is another file")
    if footer.disk_type == c.FIXED:
        return _explain_fixed(file)
    require(footer.disk_type == c.DYNAMIC, f"disk type {footer.disk_type}")
    return _explain_dynamic(file, footer)


def _explain_fixed(file: Reader) -> Explanation:
    size = file.size - c.FOOTER.size
    require(size > 0, "a disk of no bytes")
    ops = OpsBuilder(file.size)
    ops.add(0, Copy(size, GUEST, 0))
    guest = GuestReader(file, size, present(file, [Extent(0, size, 0)]))
    return Explanation("vhd", guest, ops.finish(), facts={"subformat": "fixed"})


def _explain_dynamic(file: Reader, footer: c.Footer) -> Explanation:
    header = _read_header(file, footer.data_offset)
    size, block = footer.current_size, header.block_size
    blocks = -(-size // block)
    require(0 < blocks <= header.max_table_entries, f"{size} bytes do not fit the block table")
    ops = OpsBuilder(file.size)
    table = _read_table(file, header)
    add_runs(ops, header.table_offset, table, "big")
    extents = list(_blocks(file, table[:blocks], block, size))
    for extent in extents:
        _add_block(ops, file, extent, c.bitmap_size(block))
    guest = GuestReader(file, size, present(file, extents))
    facts = {"subformat": "dynamic", "block size": str(block), "blocks": str(len(extents))}
    return Explanation("vhd", guest, ops.finish(), facts=facts)


def find_footer(file: Reader) -> c.Footer | None:
    """The footer at the end; its copy at byte 0 where the end has none, as after a crash.

    A good copy cannot speak for a fixed disk: there, byte 0 belongs to the guest.
    """
    if file.size < c.FOOTER.size:
        return None
    last = _parse_footer(file.pread(file.size - c.FOOTER.size, c.FOOTER.size))
    if last is not None:
        return last
    copy = _parse_footer(file.pread(0, c.FOOTER.size))
    return copy if copy is not None and copy.disk_type != c.FIXED else None


def _parse_footer(data: bytes) -> c.Footer | None:
    footer = c.Footer._make(c.FOOTER.unpack(data))
    good = footer.cookie == c.FOOTER_COOKIE and footer.checksum == c.checksum(data, c.FOOTER_CHECKSUM)
    return footer if good else None


def _read_header(file: Reader, offset: int) -> c.Header:
    data = refuse_short(file, offset, c.HEADER.size, "the dynamic header")
    header = c.Header._make(c.HEADER.unpack(data))
    require(header.cookie == c.HEADER_COOKIE, "no dynamic header where the footer points")
    require(header.checksum == c.checksum(data, c.HEADER_CHECKSUM), "the dynamic header's checksum is wrong")
    require(header.version == c.VERSION, f"dynamic header version {header.version:#x}")
    block = header.block_size
    require(block >= c.SECTOR and not block & (block - 1), f"a block size of {block} bytes")
    require(header.max_table_entries <= MAX_EXTENTS, f"{header.max_table_entries} table entries")
    require(header.table_offset % c.SECTOR == 0, f"a block table at byte {header.table_offset}")
    return header


def _read_table(file: Reader, header: c.Header) -> Entries:
    """The block allocation table with its padding to a whole sector, as far as the file goes."""
    exact = 4 * header.max_table_entries
    padded = -(-exact // c.SECTOR) * c.SECTOR
    length = padded if header.table_offset + padded <= file.size else exact
    raw = refuse_short(file, header.table_offset, length, "the block table")
    return np.frombuffer(raw, ">u4").astype(np.uint32)


def _blocks(file: Reader, table: Entries, block: int, size: int) -> Iterator[Extent]:
    """Where the data of each allocated block lies; the last is cut at the end of the disk."""
    numbers = np.flatnonzero(table != c.UNUSED)
    places = table[numbers].astype(np.int64) * c.SECTOR
    bitmap = c.bitmap_size(block)
    lengths = np.minimum(block, size - numbers * block)
    refuse_overlaps(places, places + bitmap + lengths, file.size)
    for number, place, length in zip(numbers.tolist(), places.tolist(), lengths.tolist(), strict=True):
        yield Extent(number * block, length, place + bitmap)


def _add_block(ops: OpsBuilder, file: Reader, extent: Extent, bitmap: int) -> None:
    place = extent.file - bitmap
    add_runs(ops, place, np.frombuffer(file.pread(place, bitmap), np.uint8), "big")
    ops.add(extent.file, Copy(extent.length, GUEST, extent.guest))
