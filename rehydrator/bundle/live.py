"""The live root file system of a release: it holds the operating system a second time, and the
disks may be derived from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rehydrator.bundle import contents
from rehydrator.core.errors import Unexplained
from rehydrator.core.reader import WindowReader
from rehydrator.formats.embedded import embedded

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rehydrator.core.reader import Reader
    from rehydrator.formats.filesystem import FileSystem

FILE_SYSTEMS = frozenset(each.name for each in contents.FILE_SYSTEMS)

# A smaller one holds no operating system.
_WORTH = 4 << 20


class Live(NamedTuple):
    """A file system that begins at byte `offset` of a file; `owner` is whose file that is."""

    owner: str
    file: Reader
    offset: int
    system: FileSystem

    def window(self) -> WindowReader:
        """The file system alone."""
        return WindowReader(self.file, self.offset, self.system.size, self.system.kind)


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
