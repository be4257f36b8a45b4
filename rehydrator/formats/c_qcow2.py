"""Layout of qcow2 images, versions 2 and 3: QEMU, docs/interop/qcow2.txt. All integers are
big endian, all offsets are bytes from the beginning of the file.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

MAGIC: Final = b"QFI\xfb"
SECTOR: Final = 512
ENTRY: Final = 8  # bytes of an entry of the L1, L2 and refcount tables

MIN_CLUSTER_BITS: Final = 9
MAX_CLUSTER_BITS: Final = 21  # "qemu as of today has an implementation limit of 2 MB"
MAX_L1_SIZE: Final = 32 << 20  # bytes; QCOW_MAX_L1_SIZE of block/qcow2.h
MAX_REFTABLE_SIZE: Final = 8 << 20  # bytes; QCOW_MAX_REFTABLE_SIZE
MAX_REFCOUNT_ORDER: Final = 6

# "Header": 72 bytes in both versions, 32 more in version 3, then fields that header_length covers.
HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQ")
HEADER_V3: Final = struct.Struct(">QQQII")
COMPRESSION_TYPE: Final = 104  # "Additional fields": one byte, then seven of padding
assert HEADER.size == 72
assert HEADER.size + HEADER_V3.size == COMPRESSION_TYPE


class Header(NamedTuple):
    """Bytes 0 to 71. `size` is the disk's size in bytes, `l1_size` counts entries."""

    magic: bytes
    version: int
    backing_file_offset: int
    backing_file_size: int
    cluster_bits: int
    size: int
    crypt_method: int
    l1_size: int
    l1_table_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    nb_snapshots: int
    snapshots_offset: int


class HeaderV3(NamedTuple):
    """Bytes 72 to 103; version 2 behaves as the defaults say."""

    incompatible_features: int = 0
    compatible_features: int = 0
    autoclear_features: int = 0
    refcount_order: int = 4
    header_length: int = 72


# "incompatible_features"
DIRTY: Final = 1 << 0
CORRUPT: Final = 1 << 1
EXTERNAL_DATA_FILE: Final = 1 << 2
COMPRESSION_TYPE_BIT: Final = 1 << 3
EXTENDED_L2: Final = 1 << 4
FEATURE_NAMES: Final = {
    DIRTY: "refcounts are dirty",
    CORRUPT: "the image is marked corrupt",
    EXTERNAL_DATA_FILE: "an external data file",
    EXTENDED_L2: "extended L2 entries",
}

# "compression_type"
DEFLATE: Final = 0
ZSTD: Final = 1

# "L1 table entry", "L2 table entry", "Refcount table entry"
COPIED: Final = 1 << 63
COMPRESSED: Final = 1 << 62
ALL_ZEROS: Final = 1 << 0  # version 3
OFFSET_MASK: Final = 0x00FFFFFFFFFFFE00  # bits 9 to 55
L1_RESERVED: Final = 0x7F000000000001FF
L2_RESERVED: Final = 0x3F000000000001FE
REFTABLE_OFFSET_MASK: Final = 0xFFFFFFFFFFFFFE00
REFTABLE_RESERVED: Final = 0x1FF


def compressed_offset_bits(cluster_bits: int) -> int:
    """How many bits hold the host offset; above them stands the number of additional 512-byte
    sectors. ("Compressed Clusters Descriptor": x)"""
    return 62 - (cluster_bits - 8)
