"""Editing a copy of a filesystem and bringing what changed into a qcow2 overlay."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rehydrator import host
from rehydrator.core.errors import Interrupted, LimitExceeded, RehydratorError
from rehydrator.host.guest_volumes import TIMEOUT, Volume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PAGE = 4096
_STEP = 256 * PAGE
# Each run is an argument of qemu-io, of up to 64 bytes; Linux takes 2 MiB of arguments.
_MAX_RUNS = 4096


def data_spans(path: Path, offset: int, size: int) -> Iterator[tuple[int, int]]:
    """Spans (offset, length) of a file within [offset, offset+size) that may hold anything but
    zeros; all of it where the filesystem underneath does not tell.
    """
    end = offset + size
    with path.open("rb") as file:
        while offset < end:
            try:
                start = os.lseek(file.fileno(), offset, os.SEEK_DATA)
                stop = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                start, stop = offset, end
            if start >= end:
                return
            yield start, min(stop, end) - start
            offset = stop


def sparse_copy(source: Path, offset: int, size: int, target: Path) -> None:
    """Copy part of a file into a new file; holes stay holes.

    Raises:
        LimitExceeded: there is no room for it.
    """
    try:
        with source.open("rb") as read, target.open("wb") as write:
            write.truncate(size)
            for start, length in data_spans(source, offset, size):
                _copy_span(read.fileno(), write.fileno(), start, length, start - offset)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise LimitExceeded(
            f"{target.parent}: no room for a copy of a filesystem of {size} bytes; "
            "free some, or name another place with --tmpdir"
        ) from None


def _copy_span(read: int, write: int, start: int, length: int, at: int) -> None:
    for done in range(0, length, _STEP):
        data = os.pread(read, min(_STEP, length - done), start + done)
        if os.pwrite(write, data, at + done) != min(_STEP, length - done):
            raise RehydratorError(f"a disk shrank while it was copied, at byte {start + done}")


def changed_runs(old: Path, new: Path) -> Iterator[tuple[int, bytes]]:
    """Runs of pages (offset, bytes) in which two files of one size differ."""
    size = old.stat().st_size
    run, parts = 0, b""
    with old.open("rb") as before, new.open("rb") as after:
        for at in _steps(old, new, size):
            was = os.pread(before.fileno(), _STEP, at)
            is_now = os.pread(after.fileno(), _STEP, at)
            if was == is_now:
                continue
            for page in range(0, len(is_now), PAGE):
                data = is_now[page : page + PAGE]
                if data == was[page : page + PAGE]:
                    continue
                if parts and run + len(parts) != at + page:
                    yield run, parts
                    parts = b""
                run, parts = (run, parts + data) if parts else (at + page, data)
    if parts:
        yield run, parts


def _steps(old: Path, new: Path, size: int) -> list[int]:
    """Where there may be a difference: the steps that touch data of either file."""
    touched: set[int] = set()
    for path in (old, new):
        for start, length in data_spans(path, 0, size):
            touched.update(range(start // _STEP * _STEP, start + length, _STEP))
    return sorted(touched)


def write_runs(disk: Path, runs: list[tuple[int, bytes]], work: Path) -> None:
    """Write runs of bytes (offset on the disk, bytes) into a qcow2 overlay.

    Raises:
        RehydratorError: qemu-io did not write them all.
        LimitExceeded: there are absurdly many.
    """
    if len(runs) > _MAX_RUNS:
        raise LimitExceeded(f"{disk}: editing changed {len(runs)} places, more than {_MAX_RUNS}")
    commands = []
    for number, (at, data) in enumerate(runs):
        (work / f"run-{number}").write_bytes(data)
        commands += ["-c", f"write -s run-{number} {at} {len(data)}"]
    if not commands:
        return
    done = host.run(["qemu-io", "-f", "qcow2", *commands, str(disk.absolute())], TIMEOUT, cwd=work)
    wrote = [f"wrote {len(data)}/{len(data)} bytes at offset {at}" for at, data in runs]
    said = done.stdout.decode(errors="replace")
    if done.status or [line for line in said.splitlines() if line.startswith("wrote ")] != wrote:
        words = f"{done.said}\n{said}"[-500:].strip()
        raise RehydratorError(f"{disk}: writing the edited pages into it with qemu-io: {words}")


class Copies:
    """Filesystems of a base, copied out of it:

        base ──once──▶ pristine ──per disk──▶ edited
                           └─ pages that differ ─┴──▶ overlay (qemu-io)

    Programs run in `work` and are given names relative to it, which have no characters that any
    of them stumbles over.
    """

    def __init__(self, base: Path, work: Path) -> None:
        self._base, self._work = base, work
        self._pristine: dict[Volume, Path] = {}
        self._lock = threading.Lock()

    def name(self, path: Path) -> str:
        """What a program that runs in `work` calls a file there."""
        return str(path.relative_to(self._work))

    def pristine(self, volume: Volume) -> Path:
        """A copy of the base's filesystem, made when it is first needed."""
        with self._lock:
            if volume not in self._pristine:
                copy = self._work / f"pristine-{volume.partition}"
                sparse_copy(self._base, volume.offset, volume.size, copy)
                self._pristine[volume] = copy
            return self._pristine[volume]

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A directory within `work` that is gone at the end."""
        with tempfile.TemporaryDirectory(dir=self._work, prefix="edit-") as folder:
            yield Path(folder)

    def edit(
        self,
        disk: Path,
        files: Mapping[Volume, Mapping[str, bytes]],
        edit: Callable[[Volume, str, Mapping[str, bytes], Path], None],
    ) -> None:
        """Call `edit` with volume, name of a copy of it, its files, and a directory for temporary
        files; then write what changed into the overlay.
        """
        runs: list[tuple[int, bytes]] = []
        with self.folder() as folder:
            for volume, contents in files.items():
                pristine, edited = self.pristine(volume), folder / "edited"
                sparse_copy(pristine, 0, volume.size, edited)
                try:
                    edit(volume, self.name(edited), contents, folder)
                except Interrupted:
                    raise
                except RehydratorError as error:
                    raise type(error)(f"{disk}: {volume}: {error}") from None
                runs += [(volume.offset + at, data) for at, data in changed_runs(pristine, edited)]
            write_runs(disk, runs, folder)


def check_ext(image: str, work: Path, env: Mapping[str, str] | None = None) -> str:
    """What e2fsck finds wrong with an ext filesystem, in words; empty where nothing is."""
    done = host.run(["e2fsck", "-fn", image], TIMEOUT, cwd=work, env=env)
    lines = done.stdout.decode(errors="replace").splitlines()
    found = [line for line in lines if line and not line.startswith(("Pass ", "Fix"))]
    return "; ".join(found)[:500] or f"status {done.status}" if done.status else ""
