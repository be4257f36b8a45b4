"""Layout of hosted sparse extents: VMware, "Virtual Disk Format 1.1" technical note,
sections "Hosted Sparse Extents" and "Stream-Optimized Compressed Sparse Extents". All
integers are little endian; offsets and sizes are in sectors of 512 bytes unless said otherwise.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

SECTOR: Final = 512
MAGIC: Final = b"KDMV"
COWD_MAGIC: Final = b"COWD"  # "ESX Server Sparse Extents"
TEXT_MAGIC: Final = b"# Disk DescriptorFile"

# "Hosted Sparse Extent Header": SparseExtentHeader, packed.
HEADER: Final = struct.Struct("<4sIIQQQQIQQQB4sH433x")
assert HEADER.size == SECTOR

NEWLINES: Final = b"\n \r\n"  # spoilt by a transfer that treats the file as text
VERSIONS: Final = (1, 2, 3)
DEFLATE: Final = 1  # compressAlgorithm; 0 is none
GD_AT_END: Final = 0xFFFFFFFFFFFFFFFF  # gdOffset is in the footer, a copy of the header

NEWLINES_VALID: Final = 1 << 0
REDUNDANT_TABLE: Final = 1 << 1
ZEROED_GRAINS: Final = 1 << 2
COMPRESSED: Final = 1 << 16
MARKERS: Final = 1 << 17
KNOWN_FLAGS: Final = NEWLINES_VALID | REDUNDANT_TABLE | ZEROED_GRAINS | COMPRESSED | MARKERS

ENTRY: Final = 4  # bytes of an entry of a grain directory or a grain table
UNALLOCATED: Final = 0
ZEROED: Final = 1  # with ZEROED_GRAINS

# "Grain marker": the guest sector, the length in bytes of the data behind it, zlib data.
# "Other markers" have length 0, a type, and fill a sector of their own.
GRAIN_MARKER: Final = struct.Struct("<QI")
MARKER: Final = struct.Struct("<QII496x")
END_OF_STREAM: Final = 0
GRAIN_TABLE: Final = 1
GRAIN_DIRECTORY: Final = 2
FOOTER: Final = 3
assert MARKER.size == SECTOR

# A stream with a footer ends with: footer marker, footer, end-of-stream marker.
FOOTER_FROM_END: Final = 2 * SECTOR


class Header(NamedTuple):
    """SparseExtentHeader, in the order of the technical note."""

    magic: bytes
    version: int
    flags: int
    capacity: int
    grain_size: int
    descriptor_offset: int
    descriptor_size: int
    entries_per_table: int
    redundant_directory: int
    directory: int
    overhead: int
    unclean_shutdown: int
    newlines: bytes
    compression: int
