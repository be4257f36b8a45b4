"""Layout of VHDX files: Microsoft, [MS-VHDX] "Virtual Hard Disk v2 (VHDX) File Format",
section 2. All integers are little endian.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple
from uuid import UUID

from rehydrator.core.digest import crc32c

MIB: Final = 1 << 20

# 2.2.1 File Type Identifier, at byte 0.
SIGNATURE: Final = b"vhdxfile"

# 2.2.2 Headers: two of 4 KiB; the one with the higher sequence number counts.
HEADERS_AT: Final = (64 << 10, 128 << 10)
HEADER_SIZE: Final = 4 << 10
HEADER: Final = struct.Struct("<4sIQ16s16s16sHHIQ")
HEADER_SIGNATURE: Final = b"head"
VERSION: Final = 1
NO_LOG: Final = bytes(16)

# 2.2.3 Region Table: two copies of 64 KiB.
REGIONS_AT: Final = (192 << 10, 256 << 10)
REGIONS_SIZE: Final = 64 << 10
REGIONS: Final = struct.Struct("<4sIII")
REGIONS_SIGNATURE: Final = b"regi"
REGION: Final = struct.Struct("<16sQII")
MAX_ENTRIES: Final = 2047
REQUIRED_REGION: Final = 1
BAT: Final = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08").bytes_le
METADATA: Final = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le

# 2.6.1 Metadata Table: 64 KiB, the items behind it.
ITEMS_SIZE: Final = 64 << 10
ITEMS: Final = struct.Struct("<8s2xH20x")
ITEMS_SIGNATURE: Final = b"metadata"
ITEM: Final = struct.Struct("<16sIII4x")
REQUIRED_ITEM: Final = 4
FILE_PARAMETERS: Final = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
VIRTUAL_DISK_SIZE: Final = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
LOGICAL_SECTOR_SIZE: Final = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f").bytes_le
PHYSICAL_SECTOR_SIZE: Final = UUID("cda348c7-445d-4471-9cc9-e9885251c556").bytes_le
PAGE_83_DATA: Final = UUID("beca12ab-b2e6-4523-93ef-c309e000c746").bytes_le
PARENT_LOCATOR: Final = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le
KNOWN_ITEMS: Final = frozenset(
    (FILE_PARAMETERS, VIRTUAL_DISK_SIZE, LOGICAL_SECTOR_SIZE, PHYSICAL_SECTOR_SIZE, PAGE_83_DATA)
)
HAS_PARENT: Final = 2

MIN_BLOCK: Final = MIB
MAX_BLOCK: Final = 256 * MIB
MAX_DISK: Final = 64 << 40

# 2.5.1 BAT Entry: state in bits 0-2, offset in MiB from bit 20 on.
STATE_MASK: Final = 7
NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, UNMAPPED_OLD, PRESENT, PARTIAL = 0, 1, 2, 3, 5, 6, 7
# Qemu reads state 5, which drafts of the format called unmapped, as zeros too.
READ_AS_ZERO: Final = (NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, UNMAPPED_OLD)

CHECKSUM_AT: Final = 4


class Header(NamedTuple):
    """A header; offsets and sizes in bytes."""

    signature: bytes
    checksum: int
    sequence: int
    file_write_id: bytes
    data_write_id: bytes
    log_id: bytes
    log_version: int
    version: int
    log_length: int
    log_offset: int


class Region(NamedTuple):
    """An entry of the region table."""

    id: bytes
    offset: int
    length: int
    required: int


class Item(NamedTuple):
    """An entry of the metadata table; the offset counts from the region's beginning."""

    id: bytes
    offset: int
    length: int
    flags: int


def chunk_ratio(sector_size: int, block_size: int) -> int:
    """Payload entries of the BAT before each sector bitmap entry (2.5)."""
    return (sector_size << 23) // block_size


def checksum(structure: bytes) -> int:
    """CRC-32C of a header or a region table, its own checksum field taken as zero."""
    return crc32c(structure[:CHECKSUM_AT] + bytes(4) + structure[CHECKSUM_AT + 4 :])
