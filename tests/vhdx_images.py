"""Makes VHDX files that qemu-img does not make: shuffled blocks, other states, what is refused."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from rehydrator.formats import c_vhdx as c

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BAT_AT = 3 * c.MIB
METADATA_AT = 2 * c.MIB
BLOCKS_AT = 4 * c.MIB
Items = dict[bytes, tuple[bytes, int]]


def seal(structure: bytes) -> bytes:
    """The header or region table with its checksum made good."""
    return structure[:4] + c.checksum(structure).to_bytes(4, "little") + structure[8:]


def header(sequence: int, log_id: bytes = c.NO_LOG, version: int = c.VERSION) -> bytes:
    """A header with a good checksum."""
    ids = random.Random(sequence).randbytes(32)
    fields = c.HEADER.pack(
        c.HEADER_SIGNATURE, 0, sequence, ids[:16], ids[16:], log_id, 0, version, c.MIB, c.MIB
    )
    return seal(fields.ljust(c.HEADER_SIZE, b"\0"))


def regions(entries: Sequence[tuple[bytes, int, int, int]]) -> bytes:
    """A region table with a good checksum."""
    packed = b"".join(c.REGION.pack(*entry) for entry in entries)
    head = c.REGIONS.pack(c.REGIONS_SIGNATURE, 0, len(entries), 0)
    return seal((head + packed).ljust(c.REGIONS_SIZE, b"\0"))


def default_regions(bat_length: int = c.MIB) -> list[tuple[bytes, int, int, int]]:
    """BAT and metadata."""
    return [(c.BAT, BAT_AT, bat_length, 1), (c.METADATA, METADATA_AT, c.MIB, 1)]


def default_items(size: int, block: int, sector: int = 512, flags: int = 0) -> Items:
    """What every disk has: (content, flags of the entry)."""
    return {
        c.FILE_PARAMETERS: (block.to_bytes(4, "little") + flags.to_bytes(4, "little"), 4),
        c.VIRTUAL_DISK_SIZE: (size.to_bytes(8, "little"), 6),
        c.PAGE_83_DATA: (bytes(range(16)), 6),
        c.LOGICAL_SECTOR_SIZE: (sector.to_bytes(4, "little"), 6),
        c.PHYSICAL_SECTOR_SIZE: ((4096).to_bytes(4, "little"), 6),
    }


def metadata(items: Items) -> bytes:
    """The metadata region."""
    table, body = b"", b""
    for name, (content, flags) in items.items():
        table += c.ITEM.pack(name, c.ITEMS_SIZE + len(body), len(content), flags)
        body += content
    head = c.ITEMS.pack(c.ITEMS_SIGNATURE, len(items)) + table
    return (head.ljust(c.ITEMS_SIZE, b"\0") + body).ljust(c.MIB, b"\0")


def assemble(
    items: Items,
    bat: Sequence[int],
    body: bytes,
    headers: tuple[bytes, bytes] | None = None,
    tables: tuple[bytes, bytes] | None = None,
) -> bytes:
    """A file of these structures; whatever is not given is good."""
    headers = headers or (header(7), header(8))
    tables = tables or (regions(default_regions()), regions(default_regions()))
    front = bytearray(BLOCKS_AT)
    front[:8] = c.SIGNATURE
    for at, structure in zip((*c.HEADERS_AT, *c.REGIONS_AT), (*headers, *tables), strict=True):
        front[at : at + len(structure)] = structure
    front[c.MIB : c.MIB + 4] = b"loge"  # a stale log entry
    front[METADATA_AT : METADATA_AT + c.MIB] = metadata(items)
    front[BAT_AT:BLOCKS_AT] = b"".join(entry.to_bytes(8, "little") for entry in bat).ljust(c.MIB, b"\0")
    return bytes(front) + body


def blocks(
    contents: Mapping[int, bytes],
    total: int,
    block: int,
    *,
    sector: int = 512,
    seed: int | None = None,
    empty: int = c.NOT_PRESENT,
) -> tuple[list[int], bytes]:
    """The BAT and the payload blocks of a disk of `total` blocks; `seed` shuffles their order."""
    ratio = c.chunk_ratio(sector, block)
    table = [empty] * total
    body = b""
    order = sorted(contents)
    if seed is not None:
        random.Random(seed).shuffle(order)
    for number in order:
        table[number] = (BLOCKS_AT + len(body)) | c.PRESENT
        body += contents[number].ljust(block, b"\0")
    for chunk in range((total - 1) // ratio, 0, -1):
        table.insert(chunk * ratio, 0)
    return table, body


def vhdx(
    guest: bytes,
    block: int = c.MIB,
    *,
    sector: int = 512,
    seed: int | None = None,
    empty: int = c.NOT_PRESENT,
    every: bool = False,
) -> bytes:
    """A whole disk; blocks of zeros are left out unless `every` is true, as in a fixed one."""
    parts = {k: guest[k * block : (k + 1) * block] for k in range(-(-len(guest) // block))}
    kept = {k: part for k, part in parts.items() if every or any(part)}
    bat, body = blocks(kept, len(parts), block, sector=sector, seed=seed, empty=empty)
    return assemble(default_items(len(guest), block, sector), bat, body)
