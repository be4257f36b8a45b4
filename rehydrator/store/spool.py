"""Bytes that are read again while they are still being written: in memory while they are few,
then in a file without a name."""

from __future__ import annotations

import errno
import os
import tempfile
from typing import TYPE_CHECKING

from rehydrator.core.errors import LimitExceeded, RehydratorError

if TYPE_CHECKING:
    from pathlib import Path

# There may be hundreds of spools.
_IN_MEMORY = 512 << 10

# What is kept in memory nevertheless where nothing can be written: containers that are read-only.
_IN_MEMORY_ALONE = 64 << 20
_READ_ONLY = {errno.EROFS, errno.EACCES}


class Spool:
    """Appended by one thread, read by any. A file that it needs lies in `directory` (None: where
    the system keeps temporary files), and is gone with the spool, whatever happens."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._held: bytearray | None = bytearray()
        self._file = -1
        self.size = 0

    def append(self, data: bytes) -> None:
        """Add bytes at the end.

        Raises:
            LimitExceeded: the disk is full.
            RehydratorError: nothing can be written there.
        """
        if self._held is not None and self.size + len(data) > _IN_MEMORY:
            self._move()
        if self._held is not None:
            self._held += data
        else:
            self._write(data)
        self.size += len(data)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes that were appended."""
        held = self._held
        if held is not None:
            return bytes(held[offset : offset + length])
        return os.pread(self._file, length, offset)

    def close(self) -> None:
        """Give memory and disk back."""
        self._held = None
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _move(self) -> None:
        assert self._held is not None
        try:
            with tempfile.TemporaryFile(dir=self._directory, buffering=0) as file:
                self._file = os.dup(file.fileno())
        except OSError as error:
            if error.errno not in _READ_ONLY or len(self._held) > _IN_MEMORY_ALONE:
                raise self._explained(error) from None
            return
        self._write(bytes(self._held))
        self._held = None

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError as error:
            raise self._explained(error) from None

    def _explained(self, error: OSError) -> RehydratorError:
        """What to do where bytes cannot be kept."""
        said = (
            f"{self._directory or 'temporary files'}: {error.strerror}, while encoded bytes were kept there"
        )
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            return LimitExceeded(f"{said}; free some space, or name another place with --tmpdir")
        return RehydratorError(f"{said}; name another place with --tmpdir")

    def __del__(self) -> None:
        self.close()
