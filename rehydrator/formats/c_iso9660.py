"""Layout of ISO 9660 volumes: ECMA-119 (4th edition), SUSP 1.12, RRIP 1.12, El Torito 1.0, Joliet.

    system area (16 sectors) | volume descriptors | path tables | directories | files | …

Numbers that stand twice, first little then big endian, are "both-endian" (ECMA-119, 7.2.3 and
7.3.3); what is not said otherwise is little endian.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

# ECMA-119, 6.1.2 and 6.2.1: logical sectors, of which the first 16 are the system area.
SECTOR: Final = 2048
SYSTEM_AREA: Final = 16 * SECTOR
BLOCK_SIZES: Final = (512, 1024, 2048)

# Volume descriptors (8.1): type, standard identifier, version.
DESCRIPTOR: Final = struct.Struct("<B5sB")
IDENTIFIER: Final = b"CD001"
BOOT_RECORD, PRIMARY, SUPPLEMENTARY, TERMINATOR = 0, 1, 2, 255
# A supplementary descriptor of version 2 is an enhanced one (8.5.3).
ENHANCED_VERSION: Final = 2

# Fields of primary and supplementary descriptors (8.4 and 8.5), from byte 0 of the sector.
VOLUME_ID: Final = slice(40, 72)
SPACE_SIZE: Final = 80
ESCAPES: Final = slice(88, 120)
SET_SIZE: Final = 120
SEQUENCE_NUMBER: Final = 124
BLOCK_SIZE: Final = 128
ROOT: Final = slice(156, 190)
PREPARER: Final = slice(446, 574)
APPLICATION: Final = slice(574, 702)

# Joliet, "SVD Escape Sequences field": UCS-2 of level 1, 2 and 3.
JOLIET_ESCAPES: Final = (b"%/@", b"%/C", b"%/E")

BOTH_SHORT: Final = struct.Struct("<H"), struct.Struct(">H")
BOTH_LONG: Final = struct.Struct("<I"), struct.Struct(">I")

# Directory records (9.1): up to the identifier, which a zero byte follows where its length is even.
RECORD_MIN: Final = 33
ATTRIBUTE_LENGTH, EXTENT, DATA_LENGTH = 1, 2, 10
FLAGS, UNIT_SIZE, GAP_SIZE, VOLUME, NAME_LENGTH, NAME = 25, 26, 27, 28, 32, 33
# 9.1.6
DIRECTORY_FLAG, ASSOCIATED_FLAG, MULTI_EXTENT_FLAG = 0x02, 0x04, 0x80
# 7.6.2: the directory itself, and its parent.
SELF, PARENT = b"\0", b"\1"

# System use entries (SUSP 4.1): signature, length, version.
ENTRY_HEADER: Final = 4
# SUSP 5.1: block, offset and length of the continuation area, both-endian.
CONTINUATION, CONTINUATION_SIZE = b"CE", 28
# SUSP 5.3: check bytes, and how many bytes to skip in each record.
INDICATOR, INDICATOR_SIZE = b"SP", 7
INDICATOR_CHECK: Final = b"\xbe\xef"
STOP: Final = b"ST"  # SUSP 5.4
EXTENSION, EXTENSION_SIZE = b"ER", 8  # SUSP 5.5

# RRIP 4.1.1: the mode is the first field.
POSIX, POSIX_SIZE = b"PX", 12
MODE_KIND, MODE_REGULAR = 0o170000, 0o100000
SYMLINK, DEVICE = b"SL", b"PN"  # 4.1.2, 4.1.3
# RRIP 4.1.4: flags, then bytes of the name.
ALTERNATE_NAME, ALTERNATE_NAME_SIZE = b"NM", 5
NAME_CURRENT, NAME_PARENT = 0x02, 0x04
# RRIP 4.1.5: relocated directories; where one really is, and that one is listed elsewhere.
CHILD_LINK, CHILD_LINK_SIZE = b"CL", 12
RELOCATED: Final = b"RE"
SPARSE: Final = b"SF"  # RRIP 4.1.7
# zisofs: the stored bytes are compressed ones.
ZISOFS: Final = b"ZF"

# El Torito 1.0, figure 7: the boot record; the catalogue's place in sectors.
EL_TORITO: Final = b"EL TORITO SPECIFICATION"
BOOT_SYSTEM: Final = slice(7, 39)
CATALOGUE_AT: Final = 71
# Figures 2 to 5: entries of 32 bytes.
BOOT_ENTRY: Final = 32
VALIDATION: Final = struct.Struct("<BBH24sHBB")
VALIDATION_ID: Final = 1
VALIDATION_KEY: Final = (0x55, 0xAA)
IMAGE: Final = struct.Struct("<BBHBBHI20s")
BOOTABLE, NOT_BOOTABLE = 0x88, 0x00
SECTION: Final = struct.Struct("<BBH28s")
MORE_SECTIONS, LAST_SECTION = 0x90, 0x91
EXTENSION_ID: Final = 0x44
EXTENSION_FOLLOWS: Final = 0x20  # bit 5 of the media type, and of an extension's flags
PLATFORMS: Final = {0: "BIOS", 1: "PowerPC", 2: "Mac", 0xEF: "UEFI"}
# Figure 3, bits 0 to 3 of the media type: sizes of the floppies; hard disks say their own.
FLOPPIES: Final = {1: 1200 << 10, 2: 1440 << 10, 3: 2880 << 10}
HARD_DISK: Final = 4

# Tables of partitions, in units of 512 bytes (UEFI 2.10, tables 5.1, 5.5 and 5.6).
UNIT: Final = 512
MBR_ENTRIES: Final = range(446, 510, 16)
MBR_ENTRY: Final = struct.Struct("<B3sB3sII")
MBR_SIGNATURE: Final = b"\x55\xaa"
GPT_SIGNATURE: Final = b"EFI PART"
GPT_TABLE: Final = struct.Struct("<QII")  # its place, entries, bytes of each
GPT_TABLE_AT: Final = 72
GPT_ENTRY: Final = struct.Struct("<16s16sQQQ72s")
# Inside Macintosh: Devices, "Partition map".
APM_SIGNATURE: Final = b"PM"


class Descriptor(NamedTuple):
    """A primary, supplementary or enhanced volume descriptor; `tree` is "", "Joliet", "Enhanced"
    or "Supplementary"; `space` is in bytes, `raw` the whole descriptor."""

    tree: str
    space: int
    block: int
    set_size: int
    sequence: int
    raw: bytes


class Record(NamedTuple):
    """A directory record: `size` bytes at `offset` of the file, both in bytes. `at` is where the
    record itself lies, `extra` its system use field."""

    at: int
    offset: int
    size: int
    flags: int
    name: bytes
    extra: bytes


class Image(NamedTuple):
    """A boot image: `size` bytes at `offset` as the catalogue has it; `media` without flags."""

    number: int
    platform: str
    media: int
    offset: int
    size: int
