"""Holes in files, and blocks without holes."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

# Linux, include/uapi/linux/falloc.h: FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE.
_PUNCH = 0x01 | 0x02


def punch(descriptor: int, offset: int, length: int) -> bool:
    """Make bytes of a file zero by giving their blocks back; False where the file system cannot."""
    fallocate = _fallocate()
    return fallocate is not None and fallocate(descriptor, _PUNCH, offset, length) == 0


def allocate(descriptor: int, length: int) -> None:
    """Give a new file its size and its blocks before they are written in any order; a file system
    that cannot gives them while they are written. Measured: docs/decisions/016."""
    fallocate = _fallocate()
    if fallocate is not None and length:
        # posix_fallocate() would write a byte of each block where there is no such call.
        fallocate(descriptor, 0, 0, length)


@cache
def _fallocate() -> Any:
    try:
        found = ctypes.CDLL(None).fallocate64
    except (OSError, AttributeError):
        return None
    found.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return found
