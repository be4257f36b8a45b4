"""Layout of Virtual Hard Disk files: Microsoft, "Virtual Hard Disk Image Format
Specification", version 1.0, October 11, 2006. All integers are big endian.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

SECTOR: Final = 512
FOOTER_COOKIE: Final = b"conectix"
HEADER_COOKIE: Final = b"cxsparse"
VERSION: Final = 0x00010000
UNUSED: Final = 0xFFFFFFFF  # a BAT entry without a block

FIXED: Final = 2
DYNAMIC: Final = 3
DIFFERENCING: Final = 4

# "Hard Disk Footer Format": 512 bytes, at the end of every file and at byte 0 of dynamic ones.
FOOTER: Final = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427x")
FOOTER_CHECKSUM: Final = 64
assert FOOTER.size == SECTOR

# "Dynamic Disk Header Format": 1,024 bytes, where the footer's data offset points.
HEADER: Final = struct.Struct(">8sQQIIII16sI4x512s192s256x")
HEADER_CHECKSUM: Final = 36
assert HEADER.size == 1024


class Footer(NamedTuple):
    """Hard disk footer; sizes and offsets in bytes."""

    cookie: bytes
    features: int
    version: int
    data_offset: int
    timestamp: int
    creator_application: bytes
    creator_version: int
    creator_host: bytes
    original_size: int
    current_size: int
    cylinders: int
    heads: int
    sectors: int
    disk_type: int
    checksum: int
    unique_id: bytes
    saved_state: int


class Header(NamedTuple):
    """Dynamic disk header; sizes and offsets in bytes."""

    cookie: bytes
    data_offset: int
    table_offset: int
    version: int
    max_table_entries: int
    block_size: int
    checksum: int
    parent_id: bytes
    parent_timestamp: int
    parent_name: bytes
    parent_locators: bytes


def checksum(structure: bytes, at: int) -> int:
    """The one's complement of the sum of all bytes but the four of the checksum at `at`."""
    return ~(sum(structure) - sum(structure[at : at + 4])) & 0xFFFFFFFF


def bitmap_size(block_size: int) -> int:
    """Bytes of the sector bitmap before each block: a bit a sector, padded to a sector."""
    return -(-block_size // (SECTOR * 8 * SECTOR)) * SECTOR
