"""The filesystems of a raw disk, and what an editor of guests must be able to do with them.

Filesystems are recognised by their magic numbers: ext2/3/4 53 EF at 1024+56 (kernel
Documentation/filesystems/ext4/super.rst), XFS "XFSB" at 0 (XFS Algorithms & Data Structures,
superblocks), btrfs "_BHRfS_M" at 64 KiB+64 (btrfs on-disk format, superblock).
"""

from __future__ import annotations

import json
import os
import stat
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rehydrator import host
from rehydrator.core.errors import HostileInput

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SECTOR = 512
TIMEOUT = 120.0
_MAX_PARTITIONS = 256
_GPT_SIGNATURE = b"EFI PART"
BIG_SECTOR = 4096
# UEFI 2.10, 5.3.2, table 5.5: signature, revision, size of this header, its CRC-32, then (skipped)
# where it and the other copy lie and what may be used; first block, number and size of the entries,
# their CRC-32. Table 5.6: of an entry type, identifier, first and last block, the rest is skipped.
_GPT_HEADER = struct.Struct("<8s4sII52xQIII")
_GPT_ENTRY = struct.Struct("<16s16sQQ")
_SUPERBLOCK = 1024

_INCOMPAT_NEEDS_RECOVERY = 0x4
_INCOMPAT_JOURNAL_DEVICE = 0x8
_INCOMPAT_64BIT = 0x80
_INCOMPAT_INLINE_DATA = 0x8000
_STATE_CLEAN = 1
_STATE_ERRORS = 2


@dataclass(frozen=True, slots=True)
class Volume:
    """A filesystem on a disk; offset and size in bytes, partition 0 is a disk without a table."""

    partition: int
    offset: int
    size: int
    kind: str

    def __str__(self) -> str:
        place = f"partition {self.partition}" if self.partition else "the whole disk"
        return f"{place} ({self.kind})"


@dataclass(frozen=True, slots=True)
class Entry:
    """What a directory holds under a name: kind is file, folder, link or other; size in bytes."""

    kind: str
    size: int


class Backend(Protocol):
    """One way of editing; paths are absolute within a volume and have no symlinks in them."""

    def opens(self, volume: Volume) -> bool:
        """Whether this way knows the volume's kind of filesystem."""
        ...

    def entries(self, volume: Volume, folder: str) -> dict[str, Entry]:
        """What a directory of the base holds, by name, without . and .."""
        ...

    def target(self, volume: Volume, path: str) -> str:
        """Where a symlink of the base points."""
        ...

    def read(self, volume: Volume, path: str) -> bytes:
        """A regular file of the base."""
        ...

    def prepare(self, volumes: list[Volume]) -> None:
        """Refuse, before anything is edited, what cannot be: these volumes will be written."""
        ...

    def write(self, disk: Path, files: Mapping[Volume, Mapping[str, bytes]]) -> None:
        """Replace or create files on one disk."""
        ...


@dataclass(frozen=True, slots=True)
class Superblock:
    """What an ext filesystem says of itself; block size and free bytes."""

    block: int
    free: int
    obstacle: str


def read_at(path: Path, offset: int, length: int) -> bytes:
    """Bytes of a file, fewer where it ends."""
    with path.open("rb") as file:
        return os.pread(file.fileno(), length, offset)


def volumes_of(base: Path) -> list[Volume]:
    """The filesystems on a raw disk, in the order of its partition table.

    Raises:
        HostileInput: it is no regular file, has neither a table nor a filesystem, or a table
            that reaches beyond the file.
    """
    status = base.stat()
    if not stat.S_ISREG(status.st_mode) or not status.st_size or status.st_size % SECTOR:
        raise HostileInput(
            f"{base}: not a raw disk in a regular file of whole {SECTOR}-byte sectors; "
            "convert it with qemu-img convert -O raw"
        )
    found = _partitions(base, status.st_size)
    spans = found if found is not None else [(0, 0, status.st_size)]
    kinds = [(number, at, size, _kind(base, at, size)) for number, at, size in spans]
    volumes = [Volume(number, at, size, kind) for number, at, size, kind in kinds if kind]
    if not volumes:
        what = "no filesystem that is known (ext, xfs, btrfs)"
        table = "no partition table and " if found is None else "a partition table, but "
        raise HostileInput(f"{base}: {table}{what}; is it really a raw disk of an installed system?")
    return volumes


def _partitions(base: Path, size: int) -> list[tuple[int, int, int]] | None:
    """Number, offset and size in bytes of each partition; None where there is no table."""
    found = _big_table(base) if sector_size(base) == BIG_SECTOR else _listed(base)
    if found is None:
        return None
    if len(found) > _MAX_PARTITIONS:
        raise HostileInput(f"{base}: more than {_MAX_PARTITIONS} partitions")
    for number, at, length in found:
        if at < SECTOR or length <= 0 or at + length > size:
            raise HostileInput(
                f"{base}: partition {number} (bytes {at}+{length}) lies outside of the file's {size} bytes; "
                "the disk was cut short or its table is damaged"
            )
    return found


def sector_size(base: Path) -> int:
    """The bytes of a sector as the partition table of a raw disk counts them: 4,096 where it has a
    GPT in the second sector of that size, else 512."""
    big = read_at(base, BIG_SECTOR, 8) == _GPT_SIGNATURE and read_at(base, SECTOR, 8) != _GPT_SIGNATURE
    return BIG_SECTOR if big else SECTOR


def _big_table(base: Path) -> list[tuple[int, int, int]]:
    """Partitions of a GPT for sectors of 4,096 bytes, of which sfdisk 2.38 does not know in files."""
    head = read_at(base, BIG_SECTOR, BIG_SECTOR).ljust(BIG_SECTOR, b"\0")
    _, _, size, crc, first, count, length, entries_crc = _GPT_HEADER.unpack_from(head)
    sound = _GPT_HEADER.size <= size <= BIG_SECTOR and length in {128, 256, 512} and count <= _MAX_PARTITIONS
    # The CRC of the header is made with zeros in its own place.
    if not sound or zlib.crc32(head[:16] + bytes(4) + head[20:size]) != crc:
        raise HostileInput(f"{base}: the GPT for sectors of {BIG_SECTOR} bytes is damaged")
    at = first * BIG_SECTOR
    table = read_at(base, at, count * length) if at < base.stat().st_size else b""
    if len(table) < count * length or zlib.crc32(table) != entries_crc:
        raise HostileInput(f"{base}: the entries of the GPT for sectors of {BIG_SECTOR} bytes are damaged")
    found = [_GPT_ENTRY.unpack_from(table, number * length) for number in range(count)]
    return [
        (number, start * BIG_SECTOR, (end - start + 1) * BIG_SECTOR)
        for number, (kind, _, start, end) in enumerate(found, 1)
        if any(kind)
    ]


def _listed(base: Path) -> list[tuple[int, int, int]] | None:
    """What sfdisk says of a disk with sectors of 512 bytes."""
    done = host.run(["sfdisk", "--json", str(base.absolute())], TIMEOUT)
    if done.status:
        if "does not contain a recognized partition table" in done.said:
            return None
        raise HostileInput(f"{base}: reading its partition table: {done.said}")
    try:
        # It names the file, whose path may be no UTF-8.
        table = json.loads(done.stdout.decode(errors="replace"))["partitiontable"]
        listed = table.get("partitions", [])[: _MAX_PARTITIONS + 1]
        return [_partition(each, number) for number, each in enumerate(listed, 1)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HostileInput(f"{base}: sfdisk describes its partition table strangely: {error}") from None


def _partition(each: Any, position: int) -> tuple[int, int, int]:
    node = str(each["node"])
    digits = node[len(node.rstrip("0123456789")) :]
    number = int(digits[-3:]) if digits else position
    return number, int(each["start"]) * SECTOR, int(each["size"]) * SECTOR


def _kind(base: Path, offset: int, size: int) -> str:
    if size < 64 << 10:
        return ""
    head = read_at(base, offset, _SUPERBLOCK * 2)
    if head[_SUPERBLOCK + 56 : _SUPERBLOCK + 58] == b"\x53\xef":
        (incompat,) = struct.unpack_from("<I", head, _SUPERBLOCK + 96)
        return "" if incompat & _INCOMPAT_JOURNAL_DEVICE else "ext"
    if head[:4] == b"XFSB":
        return "xfs"
    return "btrfs" if read_at(base, offset + 0x10040, 8) == b"_BHRfS_M" else ""


def superblock(base: Path, volume: Volume) -> Superblock:
    """An ext filesystem's superblock; `obstacle` says why it cannot be written as it lies.

    Raises:
        HostileInput: it is larger than its partition, or has impossible values.
    """
    head = read_at(base, volume.offset + _SUPERBLOCK, _SUPERBLOCK)
    low, free, log_block = struct.unpack_from("<I4xI8xI", head, 4)[:3]
    (state,) = struct.unpack_from("<H", head, 58)
    (incompat,) = struct.unpack_from("<I", head, 96)
    if incompat & _INCOMPAT_64BIT:
        high, high_free = struct.unpack_from("<I4xI", head, 0x150)
        low, free = low | high << 32, free | high_free << 32
    if log_block > 6:
        raise HostileInput(f"{base}: {volume}: impossible block size in its superblock")
    block = 1024 << log_block
    if not 0 < low * block <= volume.size or free > low:
        raise HostileInput(
            f"{base}: {volume}: its superblock says {low} blocks of {block} bytes, {free} of them free, "
            f"in a partition of {volume.size} bytes; the disk was cut short or is damaged"
        )
    return Superblock(block, free * block, _obstacle(incompat, state))


def _obstacle(incompat: int, state: int) -> str:
    if incompat & _INCOMPAT_NEEDS_RECOVERY:
        return "its journal needs recovery (it was not unmounted)"
    if incompat & _INCOMPAT_INLINE_DATA:
        # debugfs 1.47.0 reads back something else than the empty file that it wrote (measured).
        return "it keeps small files in inodes (inline_data), which debugfs gets wrong"
    if not state & _STATE_CLEAN or state & _STATE_ERRORS:
        return "it is not marked clean"
    return ""
