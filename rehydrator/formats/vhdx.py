"""VHDX, dynamic and fixed.

    identifier | header | header | region table | region table      the first MiB
    log, metadata, BAT, payload blocks                              anywhere, at whole MiB

The BAT has an entry for every payload block and, after each chunk of them, one for a sector
bitmap block, which only differencing disks use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rehydrator.core.ops import Copy
from rehydrator.formats import c_vhdx as c
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

    Entries = np.ndarray[Any, np.dtype[np.uint64]]


class _Disk(NamedTuple):
    """What the metadata says; in bytes."""

    size: int
    block: int
    sector: int

    @property
    def blocks(self) -> int:
        return -(-self.size // self.block)

    @property
    def entries(self) -> int:
        """Entries of the BAT of a disk without a parent (2.5)."""
        return self.blocks + (self.blocks - 1) // c.chunk_ratio(self.sector, self.block)


def recognise(file: Reader) -> bool:
    """The signature at byte 0."""
    return file.size >= len(c.SIGNATURE) and file.pread(0, len(c.SIGNATURE)) == c.SIGNATURE


def explain(file: Reader, each: Each = map) -> Explanation:
    """A dynamic or fixed disk.

    Raises:
        Unexplained: a dirty log, a parent, something unknown that is required, or a
            malformed file.
    """
    header = read_active_header(file)
    require(header.version == c.VERSION, f"version {header.version}")
    require(header.log_id == c.NO_LOG, "a dirty log, which must be replayed first")
    regions = read_regions(file)
    disk = _disk(file, regions[c.METADATA])
    table = _read_table(file, regions[c.BAT], disk)
    extents = list(_blocks(file, table, disk))
    ops = OpsBuilder(file.size)
    add_runs(ops, regions[c.BAT].offset, table, "little")
    for extent in extents:
        ops.add(extent.file, Copy(extent.length, GUEST, extent.guest))
    guest = GuestReader(file, disk.size, present(file, extents))
    facts = {"block size": str(disk.block), "blocks": str(len(extents))}
    return Explanation("vhdx", guest, ops.finish(), facts=facts)


def read_active_header(file: Reader) -> c.Header:
    """The header with the higher sequence number, of those whose checksum is good (2.2.2)."""
    copies = (refuse_short(file, at, c.HEADER_SIZE, "a header") for at in c.HEADERS_AT)
    good = [copy for copy in copies if is_good(copy, c.HEADER_SIGNATURE)]
    require(bool(good), "no header with a good checksum")
    headers = [c.Header._make(c.HEADER.unpack_from(copy)) for copy in good]
    same = len(headers) == 2 and headers[0].sequence == headers[1].sequence
    require(not same or good[0] == good[1], "two headers with one sequence number")
    return max(headers, key=lambda header: header.sequence)


def is_good(structure: bytes, signature: bytes) -> bool:
    stored = int.from_bytes(structure[c.CHECKSUM_AT : c.CHECKSUM_AT + 4], "little")
    return structure.startswith(signature) and stored == c.checksum(structure)


def read_regions(file: Reader) -> dict[bytes, c.Region]:
    """The BAT and metadata regions, from the first region table whose checksum is good (2.2.3)."""
    copies = (refuse_short(file, at, c.REGIONS_SIZE, "a region table") for at in c.REGIONS_AT)
    table = next((copy for copy in copies if is_good(copy, c.REGIONS_SIGNATURE)), None)
    require(table is not None, "no region table with a good checksum")
    assert table is not None
    count = c.REGIONS.unpack_from(table)[2]
    require(count <= c.MAX_ENTRIES, f"{count} regions")
    regions: dict[bytes, c.Region] = {}
    for index in range(count):
        region = c.Region._make(c.REGION.unpack_from(table, c.REGIONS.size + index * c.REGION.size))
        known = region.id in (c.BAT, c.METADATA)
        require(known or not region.required & c.REQUIRED_REGION, f"an unknown region {region.id.hex()}")
        require(region.id not in regions, f"two regions {region.id.hex()}")
        regions[region.id] = region
    for wanted, name in ((c.BAT, "BAT"), (c.METADATA, "metadata")):
        require(wanted in regions, f"no {name} region")
        _check_region(file, regions[wanted], name)
    _require_apart(regions[c.BAT], regions[c.METADATA])
    return regions


def _check_region(file: Reader, region: c.Region, name: str) -> None:
    aligned = not region.offset % c.MIB and not region.length % c.MIB
    require(aligned and region.offset >= c.MIB, f"the {name} region is not at whole MiB")
    require(region.offset + region.length <= file.size, f"the {name} region lies outside of the file")


def _require_apart(one: c.Region, two: c.Region) -> None:
    apart = one.offset + one.length <= two.offset or two.offset + two.length <= one.offset
    require(apart, "two regions overlap")


def _disk(file: Reader, region: c.Region) -> _Disk:
    items = read_items(file, region)
    parameters = _item(file, region, items, c.FILE_PARAMETERS, 8)
    block, flags = parameters & 0xFFFFFFFF, parameters >> 32
    require(not flags & c.HAS_PARENT, "a differencing disk, whose parent is another file")
    size = _item(file, region, items, c.VIRTUAL_DISK_SIZE, 8)
    sector = _item(file, region, items, c.LOGICAL_SECTOR_SIZE, 4)
    in_range = c.MIN_BLOCK <= block <= c.MAX_BLOCK
    require(in_range and not block & (block - 1), f"a block size of {block} bytes")
    require(sector in (512, 4096), f"a logical sector size of {sector} bytes")
    require(0 < size <= c.MAX_DISK and not size % sector, f"a disk of {size} bytes")
    return _Disk(size, block, sector)


def read_items(file: Reader, region: c.Region) -> dict[bytes, c.Item]:
    table = refuse_short(file, region.offset, c.ITEMS_SIZE, "the metadata table")
    signature, count = c.ITEMS.unpack_from(table)
    require(signature == c.ITEMS_SIGNATURE, "no metadata table")
    require(count <= c.MAX_ENTRIES, f"{count} metadata items")
    items: dict[bytes, c.Item] = {}
    for index in range(count):
        item = c.Item._make(c.ITEM.unpack_from(table, c.ITEMS.size + index * c.ITEM.size))
        known = item.id in c.KNOWN_ITEMS or not item.flags & c.REQUIRED_ITEM
        require(item.id != c.PARENT_LOCATOR, "a parent locator")
        require(known, f"an unknown metadata item {item.id.hex()}")
        require(item.id not in items, f"two metadata items {item.id.hex()}")
        items[item.id] = item
    return items


def _item(file: Reader, region: c.Region, items: dict[bytes, c.Item], wanted: bytes, length: int) -> int:
    """The integer in a metadata item of `length` bytes."""
    require(wanted in items, f"no metadata item {wanted.hex()}")
    item = items[wanted]
    inside = c.ITEMS_SIZE <= item.offset <= region.length - length
    require(inside and item.length == length, f"the metadata item {wanted.hex()} lies outside")
    return int.from_bytes(refuse_short(file, region.offset + item.offset, length, "metadata"), "little")


def _read_table(file: Reader, region: c.Region, disk: _Disk) -> Entries:
    require(disk.entries <= MAX_EXTENTS, f"a BAT of {disk.entries} entries")
    require(8 * disk.entries <= region.length, f"{disk.size} bytes do not fit the BAT")
    raw = refuse_short(file, region.offset, 8 * disk.entries, "the BAT")
    return np.frombuffer(raw, "<u8").astype(np.uint64)


def _blocks(file: Reader, table: Entries, disk: _Disk) -> Iterator[Extent]:
    """Where each payload block that is fully present lies; the last is cut at the disk's end."""
    numbers = np.arange(disk.blocks, dtype=np.int64)
    entries = table[numbers + numbers // c.chunk_ratio(disk.sector, disk.block)]
    states = entries & np.uint64(c.STATE_MASK)
    unknown = ~np.isin(states, (*c.READ_AS_ZERO, c.PRESENT))
    require(not unknown.any(), f"a block of state {states[unknown][:1].tolist()}")
    numbers = numbers[states == c.PRESENT]
    megabytes = (entries[states == c.PRESENT] >> np.uint64(20)).astype(np.int64)
    require(bool((megabytes > 0).all()), "a block lies in the headers")
    require(bool((megabytes <= file.size // c.MIB).all()), "a block lies outside of the file")
    starts = megabytes * c.MIB
    lengths = np.minimum(disk.block, disk.size - numbers * disk.block)
    refuse_overlaps(starts, starts + lengths, file.size)
    for number, start, length in zip(numbers.tolist(), starts.tolist(), lengths.tolist(), strict=True):
        yield Extent(number * disk.block, length, start)
