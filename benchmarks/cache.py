"""The page cache: what is read before a step, and what is dropped."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def warm(directory: Path) -> None:
    """Into the page cache, so that nobody's first round pays for the disk."""
    buffer = bytearray(1 << 20)
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def cold(directory: Path) -> None:
    """Out of the page cache, which any user may ask for with files of their own (posix_fadvise(2))."""
    for path in directory.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)  # what is not written yet stays
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)
