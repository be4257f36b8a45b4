"""The live root file system of a release: it holds the operating system a second time, and the
disks may be derived from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

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
_SAMPLE, _SAMPLES = 16 << 20, 4


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
    """About how many bytes a disk takes when it is stored whole, by a few of its frames; pages
    that stand more than once are stored once."""
    stretches = [found.pages[at : at + _SAMPLE // PAGE] for at in _spread(len(found.pages))]
    samples = [b"".join(guest.pread(int(page) * PAGE, PAGE) for page in pages) for pages in stretches]
    packed = sum(each(lambda sample: len(zstd.compress(sample, level)), samples))
    unique = len(set(found.hashes.tolist())) * PAGE
    return unique * packed // max(sum(map(len, samples)), 1)


def _spread(pages: int) -> list[int]:
    """Where a few samples begin, evenly over all pages."""
    step = max(pages // _SAMPLES, _SAMPLE // PAGE)
    return list(range(0, max(pages - _SAMPLE // PAGE, 0) + 1, step))


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
