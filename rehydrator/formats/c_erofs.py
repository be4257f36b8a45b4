"""Layout of EROFS: Linux, Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h, zmap.c.
All integers are little endian.

    block                as large as the superblock says; addresses count blocks
    nid                  an inode's number: 32 byte units from the metadata area on
    logical cluster      a unit of a compressed file, often a block; one index entry each
    physical cluster     the stored bytes that some neighbouring clusters decode from
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from rehydrator.core.errors import Unexplained
from rehydrator.formats.explanation import require

if TYPE_CHECKING:
    from collections.abc import Iterator

SUPER_AT: Final = 1024
SUPER: Final = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ")
MAGIC: Final = 0xE0F5E1E2
CHECKSUM_AT: Final = 4
MIN_BLOCK_BITS, MAX_BLOCK_BITS = 9, 16

# feature_compat and feature_incompat.
SUPER_CHECKSUM: Final = 1
ZERO_PADDING: Final = 1
COMPRESSION_CONFIGS: Final = 2
FRAGMENTS: Final = 0x20
KNOWN_FEATURES: Final = 0x7F
FEATURE_NAMES: Final = {0x80: "48-bit addresses", 0x100: "a metadata box"}

COMPACT: Final = struct.Struct("<HHHHIII12x")
EXTENDED: Final = struct.Struct("<HHHHQI")
EXTENDED_SIZE: Final = 64
FLAT, FULL, INLINE, PACKED, CHUNKS = range(5)
XATTR_HEADER: Final = 12
NID_UNIT: Final = 32
TYPE_MASK, DIRECTORY, REGULAR = 0o170000, 0o040000, 0o100000

DIRENT: Final = struct.Struct("<QHBx")

CHUNK_BITS: Final = 0x1F
CHUNK_INDEXES: Final = 0x20
CHUNK_INDEX: Final = struct.Struct("<HHI")
HOLE: Final = 0xFFFFFFFF

# z_erofs_map_header: the first word is the offset of the tail in the packed inode, or its upper
# half the size of the tail behind the index.
MAP: Final = struct.Struct("<IHBB")
TWO_BYTES: Final = 1  # in a compact index; in a full one, encoded extents
BIG_1, BIG_2, TAIL_INLINE, INTERLACED, FRAGMENT = 2, 4, 8, 0x10, 0x20
KNOWN_ADVICE: Final = 0x3F
ALL_FRAGMENT: Final = 1 << 63

CODECS: Final = ("lz4", "lzma1", "deflate", "zstd")
MAX_STORED: Final = 1 << 20
MAX_PLAIN: Final = 12 << 20

PLAIN, HEAD1, NONHEAD, HEAD2 = range(4)
COUNT: Final = 1 << 11  # a NONHEAD entry holds the physical cluster's blocks, not a distance
PREFIX: Final = 1 << 15  # more bytes decode from the physical cluster than this extent takes
ENTRY: Final = struct.Struct("<HHI")


class Super(NamedTuple):
    """The superblock; addresses in blocks."""

    magic: int
    checksum: int
    compat: int
    block_bits: int
    slots: int
    root: int
    inodes: int
    epoch: int
    nanoseconds: int
    blocks: int
    meta: int
    xattrs: int
    uuid: bytes
    name: bytes
    incompat: int
    algorithms: int
    devices: int
    device_slot: int
    directory_bits: int
    prefixes: int
    prefix_start: int
    packed: int

    @property
    def block(self) -> int:
        """Bytes of a block."""
        return 1 << self.block_bits


class Inode(NamedTuple):
    """An inode: `start` is its union (a block, a chunk format), `end` where its map or its
    inline bytes begin, as bytes of the file."""

    layout: int
    mode: int
    size: int
    start: int
    end: int


class Cluster(NamedTuple):
    """An index entry. `skip` bytes into the logical cluster the extent begins; `block` is where
    its physical cluster lies. Of NONHEAD only `blocks` counts: 0, or the physical cluster's."""

    kind: int
    skip: int
    block: int
    blocks: int
    prefix: bool


def full_index(raw: bytes) -> Iterator[Cluster]:
    """The entries of a full index (z_erofs_lcluster_index), 8 bytes each."""
    return (_full(advise, skip, word) for advise, skip, word in ENTRY.iter_unpack(raw))


def _full(advise: int, skip: int, word: int) -> Cluster:
    if advise & 3 != NONHEAD:
        return Cluster(advise & 3, skip, word, 0, bool(advise & PREFIX))
    distance = word & 0xFFFF
    return Cluster(NONHEAD, 0, 0, distance & ~COUNT if distance & COUNT else 0, False)


def compact_packs(at: int, count: int, two: bool) -> list[tuple[int, int]]:
    """How `count` entries from byte `at` on are packed: (packs, entries per pack).

    Pairs of 8 bytes up to a multiple of 32 bytes, then sixteens of 32 bytes if `two`, then pairs.
    """
    first = -at % 32 // 4
    sixteens = (count - first) // 16 if two and first < count else 0
    if not sixteens:
        return [(-(-count // 2), 2)]
    return [(first // 2, 2), (sixteens, 16), (-(-(count - first - 16 * sixteens) // 2), 2)]


def pack_size(entries: int) -> int:
    """Bytes of a pack of so many entries."""
    return 8 if entries == 2 else 32


def compact_pack(raw: bytes, entries: int, cluster_bits: int, big: bool) -> Iterator[Cluster]:
    """The entries of one pack: each the low bits of a value and a kind, then, in the pack's last
    4 bytes, the block from which the pack's physical clusters lie in a row."""
    low, width = max(cluster_bits, 12), (len(raw) - 4) * 8 // entries
    bits, block = int.from_bytes(raw[:-4], "little"), int.from_bytes(raw[-4:], "little")
    values = [bits >> (width * index) & ((1 << low + 2) - 1) for index in range(entries)]
    kinds = [value >> low for value in values]
    values = [value & ((1 << low) - 1) for value in values]
    block += 0 if big else 1
    for index, (kind, value) in enumerate(zip(kinds, values, strict=True)):
        counted = kind == NONHEAD and bool(value & COUNT)
        if kind != NONHEAD:
            yield Cluster(kind, value, block, 0, False)
            follows = values[index + 1] & COUNT if index + 1 < entries else 0
            block += 0 if follows and kinds[index + 1] == NONHEAD and big else 1
            continue
        # The last entry's value is a distance forwards, unless it is a count.
        if counted and not big:
            raise Unexplained("a count of blocks in a file of small physical clusters")
        require(not counted or not index or kinds[index - 1] != NONHEAD, "a misplaced count of blocks")
        blocks = value & ~COUNT if counted else 0
        block += blocks
        yield Cluster(NONHEAD, 0, 0, blocks, False)
