"""Raw disks: the file is the guest disk.

A file counts as a raw disk when it is a whole number of 512-byte sectors and begins with a
master boot record signature (offset 510: 55 AA), or holds a GPT header behind the first
sector of 512 or of 4,096 bytes (UEFI 2.10, section 5.3.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rehydrator.core.ops import Copy
from rehydrator.core.reader import data_spans
from rehydrator.formats.explanation import GUEST, Explanation, Extent, GuestReader

if TYPE_CHECKING:
    from rehydrator.core.reader import Reader
    from rehydrator.formats.explanation import Each

SECTOR = 512
_MBR_SIGNATURE = b"\x55\xaa"
_GPT_SIGNATURE = b"EFI PART"


def recognise(file: Reader) -> bool:
    """A partitioned disk of whole sectors."""
    if file.size < SECTOR or file.size % SECTOR or _is_iso(file):
        return False
    if file.pread(0, SECTOR)[510:] == _MBR_SIGNATURE:
        return True
    return any(file.size >= 2 * sector and file.pread(sector, 8) == _GPT_SIGNATURE for sector in (512, 4096))


def explain(file: Reader, each: Each = map) -> Explanation:
    """Guest and file are the same bytes."""
    extents = [Extent(start, length, start) for start, length in data_spans(file)]
    guest = GuestReader(file, file.size, extents)
    return Explanation("raw", guest, [Copy(file.size, GUEST, 0)])


def _is_iso(file: Reader) -> bool:
    """An isohybrid image has all three signatures; it is no disk of ours (ECMA-119, 8.1)."""
    return file.size >= 0x8806 and file.pread(0x8001, 5) == b"CD001"
