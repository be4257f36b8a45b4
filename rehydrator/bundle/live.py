"""The live root file system of a release: it holds the operating system a second time, and the
disks may be derived from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from backports import zstd

from rehydrator.bundle import contents
from rehydrator.bundle.survey import PAGE
from rehydrator.core.errors import Unexplained
from rehydrator.core.reader import WindowReader
from rehydrator.formats import live
from rehydrator.formats.embedded import embedded
from rehydrator.formats.explanation import moved

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rehydrator.bundle.survey import Survey
    from rehydrator.core.reader import Reader
    from rehydrator.formats.explanation import Each, Explanation
    from rehydrator.formats.filesystem import FileSystem

FILE_SYSTEMS = frozenset(each.name for each in contents.FILE_SYSTEMS)

# A smaller one holds no operating system.
_WORTH = 4 << 20

# As large as the frames that a disk is stored in.
_FRAME, _SAMPLES = 16 << 20, 4
_QUICK = 1


class Live(NamedTuple):
    """A file system that begins at byte `offset` of a file; `owner` is whose file that is."""

    owner: str
    file: Reader
    offset: int
    system: FileSystem

    def window(self) -> WindowReader:
        """The file system alone."""
        return WindowReader(self.file, self.offset, self.system.size, self.system.kind)

    def explain(self, each: Each) -> Explanation:
        """The owner's file, made from the files in the file system; every block is encoded again.

        Raises:
            Unexplained: no encoder here gives its blocks.
        """
        if self.system.kind != "squashfs":
            raise Unexplained(f"blocks of {self.system.kind} are not encoded again")
        return moved(live.explain_squashfs(self.window(), each), self.offset, self.file.size)


def compressed_size(guest: Reader, found: Survey, level: int, each: Each) -> int:
    """About how many bytes a disk takes when it is stored whole: all of it compressed quickly, times
    what `level` gains on a few frames. Pages that stand more than once are stored once.

    A few frames alone tell little: of the os release they said 273 MB where it took 180.
    """
    unique = found.pages[np.sort(np.unique(found.hashes, return_index=True)[1])]
    frames = [unique[at : at + _FRAME // PAGE] for at in range(0, len(unique), _FRAME // PAGE)]

    def packed(frame: np.ndarray[Any, Any], at_level: int) -> int:
        return len(zstd.compress(b"".join(guest.pread(int(page) * PAGE, PAGE) for page in frame), at_level))

    quickly = list(each(lambda frame: packed(frame, _QUICK), frames))
    # What compresses badly gains little: frames are sampled among their like.
    order = sorted(range(len(frames)), key=quickly.__getitem__)
    groups = [order[len(order) * k // _SAMPLES : len(order) * (k + 1) // _SAMPLES] for k in range(_SAMPLES)]
    groups = [group for group in groups if group]
    middles = [group[len(group) // 2] for group in groups]
    well = list(each(lambda number: packed(frames[number], level), middles))
    sizes = (
        sum(quickly[number] for number in group) * size // quickly[middle]
        for group, middle, size in zip(groups, middles, well, strict=True)
    )
    return sum(sizes)


def find(files: Iterable[tuple[str, Reader]]) -> tuple[Live | None, list[tuple[str, str]]]:
    """The largest file system in some files, in the smallest file that has it; and what was
    declined, as (file, reason)."""
    found: list[Live] = []
    declined: list[tuple[str, str]] = []
    for name, file in files:
        for each in embedded(file, limit=0):
            if each.kind in FILE_SYSTEMS and each.length >= _WORTH:
                window = WindowReader(file, each.offset, each.length, each.kind)
                try:
                    found.append(Live(name, file, each.offset, contents.read(window)))
                except Unexplained as error:
                    declined.append((name, str(error)))
    best = max(found, key=lambda live: (live.system.size, -live.file.size), default=None)
    return best, declined
