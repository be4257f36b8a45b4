"""Files and directories as readers."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Protocol

from rehydrator.core.errors import HostileInput, NotInBundle
from rehydrator.core.reader import check_span

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rehydrator.core.reader import Reader


class Files(Protocol):
    """Named files of a bundle, wherever they lie: a directory, the layers of an image."""

    def open(self, name: str) -> Reader:
        """The file `name`, such as "bundle.json" or "packs/0.pack".

        Raises:
            NotInBundle: there is none.
        """
        ...

    def names(self) -> list[str]:
        """All names, sorted."""
        ...


class FileReader:
    """A regular file, opened once and read with pread."""

    def __init__(self, path: Path) -> None:
        """Raises HostileInput for anything but a regular file, OSError as open() does."""
        self.path, self._fd = path, -1
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise HostileInput(f"{path}: not a regular file")
        self.status = status
        self.size = status.st_size

    def pread(self, offset: int, length: int) -> bytes:
        check_span(offset, length, self.size, str(self.path))
        data = os.pread(self._fd, length, offset)
        if len(data) == length:
            return data
        return self._pread_on(data, offset, length)

    def data_spans(self) -> Iterator[tuple[int, int]]:
        """Where the file has blocks; the whole where the filesystem does not tell."""
        offset = 0
        while offset < self.size:
            try:
                start = os.lseek(self._fd, offset, os.SEEK_DATA)
                end = os.lseek(self._fd, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                start, end = offset, self.size
            yield start, end - start
            offset = end

    def close(self) -> None:
        """Close the file, once and for all."""
        if self._fd >= 0:
            descriptor, self._fd = self._fd, -1
            os.close(descriptor)

    def __del__(self) -> None:
        # A bundle may have more files than a process may have open; most are read once.
        self.close()

    def _pread_on(self, data: bytes, offset: int, length: int) -> bytes:
        """Linux reads at most 2,147,479,552 bytes a call, and a file can shrink."""
        parts = [data]
        held = len(data)
        while held < length:
            part = os.pread(self._fd, length - held, offset + held)
            if not part:
                raise HostileInput(f"{self.path}: shrank while it was read")
            parts.append(part)
            held += len(part)
        return b"".join(parts)


class DirectoryFiles:
    """The files of a directory, by their path below it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, name: str) -> Reader:
        if name.startswith("/") or any(part in {"", ".", ".."} for part in name.split("/")):
            raise HostileInput(f"{self.root}: unsafe name {name!r:.80}")
        try:
            return FileReader(self.root / name)
        except FileNotFoundError:
            raise NotInBundle(f"{self.root}: no file {name}") from None

    def names(self) -> list[str]:
        found = (path for path in self.root.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.root).as_posix() for path in found)
