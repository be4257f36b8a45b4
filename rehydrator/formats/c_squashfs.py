"""Layout of squashfs 4.0: Linux, Documentation/filesystems/squashfs.rst, and the structures of
fs/squashfs/squashfs_fs.h. All integers are little endian.

    superblock | compressor options | data and fragment blocks | inodes | directories |
    fragment table | export table | id table | extended attributes
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

# Superblock, at byte 0.
MAGIC: Final = b"hsqs"
SUPERBLOCK: Final = struct.Struct("<4sIIIIHHHHHHQQQQQQQQ")
VERSION: Final = (4, 0)
MIN_BLOCK, MAX_BLOCK = 4 << 10, 1 << 20
OPTIONS_FLAG: Final = 1 << 10

LZO: Final = "lzo"
COMPRESSORS: Final = {1: "gzip", 2: "lzma", 3: LZO, 4: "xz", 5: "lz4", 6: "zstd"}
CODECS: Final = {"gzip": "zlib", "xz": "xz", "lz4": "lz4", "zstd": "zstd"}
# Options of the compressors, a metadata block behind the superblock: names, and their layout.
OPTIONS: Final = {
    "gzip": (struct.Struct("<IHH"), ("level", "window", "strategies")),
    "xz": (struct.Struct("<II"), ("dictionary", "filters")),
    "lz4": (struct.Struct("<II"), ("version", "flags")),
    "zstd": (struct.Struct("<I"), ("level",)),
}

# Metadata: blocks of 8 KiB; before each, its stored length and whether it lies as it is.
METADATA_SIZE: Final = 8 << 10
METADATA_HEADER: Final = 2
METADATA_PLAIN: Final = 1 << 15

# Data blocks: stored length, and whether they lie as they are; zero is a hole.
DATA_PLAIN: Final = 1 << 24
POINTER: Final = struct.Struct("<Q")

# Inodes: the common beginning, then by kind; the extended kind is the basic one plus 7.
INODE: Final = struct.Struct("<HHHHII")
EXTENDED: Final = 7
DIRECTORY, FILE, SYMLINK, SOCKET = 1, 2, 3, 7
DIRECTORY_BODY: Final = struct.Struct("<IIHHI")
LONG_DIRECTORY_BODY: Final = struct.Struct("<IIIIHHI")
FILE_BODY: Final = struct.Struct("<IIII")
LONG_FILE_BODY: Final = struct.Struct("<QQQIIII")
WORD: Final = struct.Struct("<I")
NO_FRAGMENT: Final = 0xFFFFFFFF

# Directories: headers of runs of entries, whose inodes lie in one metadata block.
RUN: Final = struct.Struct("<III")
MAX_RUN: Final = 256
ENTRY: Final = struct.Struct("<HhHH")
MAX_NAME: Final = 256
# An inode's size of a directory counts 3 bytes for "." and "..", which are not there.
DOTS: Final = 3

FRAGMENT: Final = struct.Struct("<QII")
ID: Final = struct.Struct("<I")


class Superblock(NamedTuple):
    """The superblock; offsets and sizes in bytes."""

    magic: bytes
    inodes: int
    time: int
    block: int
    fragments: int
    compressor: int
    block_log: int
    flags: int
    ids: int
    major: int
    minor: int
    root: int
    size: int
    ids_at: int
    attributes_at: int
    inodes_at: int
    directories_at: int
    fragments_at: int
    exports_at: int


class Inode(NamedTuple):
    """What all inodes begin with; `kind` is 1 to 14."""

    kind: int
    mode: int
    uid: int
    gid: int
    time: int
    number: int


class Listing(NamedTuple):
    """Where a directory's entries lie: a metadata block, a place in it, and a length in bytes."""

    block: int
    offset: int
    size: int


class File(NamedTuple):
    """A file's blocks begin at `start`; its last bytes may lie in a fragment block."""

    start: int
    size: int
    fragment: int
    offset: int


class Entry(NamedTuple):
    """A directory's entry: the inode's metadata block and its place there, kind and number."""

    name: bytes
    block: int
    offset: int
    kind: int
    number: int
