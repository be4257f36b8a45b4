"""Bytes that go to the disk while the next ones are made."""

from __future__ import annotations

import ctypes
import os
import threading
from collections import deque
from contextlib import suppress
from functools import cache
from typing import Any

# Linux, include/uapi/linux/fs.h: SYNC_FILE_RANGE_WRITE.
_WRITE = 2

# Bytes that may still be on their way to the disk: pages that are cannot be dropped.
_UNDER_WAY = 64 << 20


class Dropped:
    """Spans of a file that leave the page cache once they are on the disk (dd's nocache). Where memory
    that was free costs something to take, as in many virtual machines, this is faster, too: measured
    in one, 680 MiB by two threads took 0.54 s instead of 1.9 to 2.4."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._spans: deque[tuple[int, int]] = deque()
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, offset: int, length: int) -> None:
        """A span was written, and is on its way (begin)."""
        with self._lock:
            self._spans.append((offset, length))
            self._bytes += length
            gone = []
            while self._bytes > _UNDER_WAY:
                gone.append(self._spans.popleft())
                self._bytes -= gone[-1][1]
        for span in gone:
            self._drop(*span)

    def finish(self) -> None:
        """All of it is on the disk."""
        self._drop(0, 0)

    def _drop(self, offset: int, length: int) -> None:
        with suppress(OSError, AttributeError):
            os.posix_fadvise(self._descriptor, offset, length, os.POSIX_FADV_DONTNEED)


def begin(descriptor: int, offset: int, length: int) -> None:
    """Let the system begin to write a span of a file, so that fsync() has little left to wait for.
    Measured, 680 MiB by two threads: 0.31 to 0.37 s with the fsync, 0.51 to 0.56 without this.
    Nothing is promised, and nothing happens where there is no such call."""
    sync = _sync_file_range()
    if sync is not None:
        sync(descriptor, offset, length, _WRITE)


@cache
def _sync_file_range() -> Any:
    try:
        found = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    found.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return found
