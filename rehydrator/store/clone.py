"""Blocks that two files share: file systems with copy on write (XFS, btrfs) store them once."""

from __future__ import annotations

import os
import struct
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# Linux, include/uapi/linux/fs.h: FICLONERANGE, _IOW(0x94, 13, struct file_clone_range), as most
# architectures have it; on the others (powerpc) no file is found that can be cloned.
_CLONE_RANGE = 0x4020940D

# struct file_clone_range: s64 src_fd, u64 src_offset, u64 src_length, u64 dest_offset.
_RANGE = struct.Struct("=qQQQ")

# Read back and compared at once; stays in the processor's cache.
_STEP = 256 << 10


def clone(source: int, there: int, target: int, here: int, length: int) -> bool:
    """Let `length` bytes at `here` of one file be the blocks at `there` of another (ioctl_ficlonerange(2));
    False where the file system cannot, and nothing has changed. All three are multiples of its block."""
    import fcntl

    try:
        fcntl.ioctl(target, _CLONE_RANGE, _RANGE.pack(source, there, length, here))
    except OSError:
        return False
    return True


def snapshot(descriptor: int, directory: Path) -> int:
    """A file without a name in `directory` that has all blocks of another, to be closed; -1 where the
    file system cannot. What is written to the other later is not in it."""
    try:
        with tempfile.TemporaryFile(dir=directory) as made:
            # A length of 0: up to the end.
            return os.dup(made.fileno()) if clone(descriptor, 0, made.fileno(), 0, 0) else -1
    except OSError:
        return -1


def block_of(directory: Path) -> int:
    """The bytes of a block that files of a directory can share; 0 where they can share none."""
    try:
        block = os.statvfs(directory).f_bsize
        with tempfile.TemporaryFile(dir=directory) as one, tempfile.TemporaryFile(dir=directory) as other:
            one.write(bytes(block))
            one.flush()
            return block if clone(one.fileno(), 0, other.fileno(), 0, block) else 0
    except (ImportError, OSError):
        return 0


def holds(descriptor: int, offset: int, data: memoryview) -> bool:
    """Whether a file has `data` at `offset`."""
    buffer = bytearray(min(_STEP, len(data)))
    for at in range(0, len(data), _STEP):
        part = data[at : at + _STEP]
        read = os.preadv(descriptor, [memoryview(buffer)[: len(part)]], offset + at)
        # Two views would be compared byte by byte.
        if read != len(part) or not buffer.startswith(part):
            return False
    return True
