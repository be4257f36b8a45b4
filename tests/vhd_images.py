"""Makes VHD files that qemu-img does not make: shuffled blocks, other block sizes, bitmaps."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from rehydrator.formats import c_vhd as c

if TYPE_CHECKING:
    from collections.abc import Callable

NOWHERE = 0xFFFFFFFFFFFFFFFF


def footer(size: int, disk_type: int, data_offset: int = NOWHERE, version: int = c.VERSION) -> bytes:
    """A hard disk footer with a good checksum."""
    fields = c.Footer(
        cookie=c.FOOTER_COOKIE,
        features=2,
        version=version,
        data_offset=data_offset,
        timestamp=700_000_000,
        creator_application=b"qem2",
        creator_version=0x00050003,
        creator_host=b"Wi2k",
        original_size=size,
        current_size=size,
        cylinders=1,
        heads=4,
        sectors=17,
        disk_type=disk_type,
        checksum=0,
        unique_id=bytes(range(16)),
        saved_state=0,
    )
    return seal(c.FOOTER.pack(*fields), c.FOOTER_CHECKSUM)


def header(table_offset: int, entries: int, block_size: int) -> bytes:
    """A dynamic disk header with a good checksum."""
    fields = c.Header(
        c.HEADER_COOKIE, NOWHERE, table_offset, c.VERSION, entries, block_size, 0, b"", 0, b"", b""
    )
    return seal(c.HEADER.pack(*fields), c.HEADER_CHECKSUM)


def seal(structure: bytes, at: int) -> bytes:
    """The structure with its checksum made good."""
    return structure[:at] + c.checksum(structure, at).to_bytes(4, "big") + structure[at + 4 :]


def fixed(guest: bytes) -> bytes:
    """A fixed disk."""
    return guest + footer(len(guest), c.FIXED)


def dynamic(
    guest: bytes,
    block_size: int = 2 << 20,
    *,
    seed: int | None = None,
    bitmap: Callable[[int], bytes] = lambda size: b"\xff" * size,
    spare: int = 0,
    gap: int = 0,
    disk_type: int = c.DYNAMIC,
) -> bytes:
    """A dynamic disk: blocks of zeros are left out; `seed` shuffles the order of the others.

    `bitmap` makes each block's sector bitmap, `spare` adds unused table entries, `gap` puts
    that many bytes of rubbish before every block.
    """
    blocks = -(-len(guest) // block_size)
    order = [k for k in range(blocks) if any(guest[k * block_size : (k + 1) * block_size])]
    if seed is not None:
        random.Random(seed).shuffle(order)
    table_offset = 512 + c.HEADER.size
    table = [c.UNUSED] * (-(-(blocks + spare) // 128) * 128)
    body = b""
    start = table_offset + 4 * len(table)
    for number in order:
        body += b"\xaa" * gap
        table[number] = (start + len(body)) // 512
        data = guest[number * block_size : (number + 1) * block_size].ljust(block_size, b"\0")
        body += bitmap(c.bitmap_size(block_size)) + data
    foot = footer(len(guest), disk_type, 512)
    bat = b"".join(entry.to_bytes(4, "big") for entry in table)
    return foot + header(table_offset, blocks + spare, block_size) + bat + body + foot
