"""Disks of any size with any amount of real data, for the task `scale`.

    python -m benchmarks.disks SOURCE TARGET DATA VIRTUAL [STAMP]

SOURCE is a raw disk with holes; TARGET becomes another, VIRTUAL bytes large, with DATA bytes of the
source's pages in runs of 1 MiB, spread evenly. Where the source has less, its bytes are taken again,
each exclusive-or the number of the repetition: as compressible as before, and equal to nothing.
STAMP is written into one page, as siblings differ.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

RUN = 1 << 20
_PAGE = 4096
_ZERO = bytes(_PAGE)


def make(source: Path, target: Path, data: int, virtual: int, stamp: str = "") -> None:
    """Write the disk, its holes as holes."""
    runs = max(1, data // RUN)
    step = virtual // runs // _PAGE * _PAGE
    if step < RUN:
        sys.exit(f"{data} bytes of data do not fit a disk of {virtual}")
    with target.open("wb") as disk:
        disk.truncate(virtual)
        made = _runs(source)
        for number in range(runs):
            disk.seek(number * step)
            disk.write(next(made))
        disk.seek(0)
        disk.write(stamp.encode())


def _runs(source: Path) -> Iterator[bytes]:
    """Runs of pages that are not zero, without end."""
    gathered, repetition = bytearray(), 0
    while True:
        other, before = bytes(byte ^ repetition % 256 for byte in range(256)), repetition
        with source.open("rb") as file:
            for page in _pages(file):
                repetition = before + 1
                gathered += page.translate(other)
                if len(gathered) >= RUN:
                    yield bytes(gathered[:RUN])
                    del gathered[:RUN]
        if repetition == before:
            sys.exit(f"{source} holds nothing but zeros")


def _pages(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(RUN):
        if block.count(0) != len(block):
            for at in range(0, len(block), _PAGE):
                page = block[at : at + _PAGE]
                if page != _ZERO[: len(page)]:
                    yield page


def main(source: str, target: str, data: str, virtual: str, stamp: str = "") -> None:
    """Make one disk."""
    make(Path(source), Path(target), int(data), int(virtual), stamp)


if __name__ == "__main__":
    main(*sys.argv[1:])
