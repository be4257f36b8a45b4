"""Files that are made in one run share their blocks on the disk, where it can (XFS, btrfs).

Images of one release are mostly the same bytes. Those that have the same home (the same bytes of
a space that most of the files are made of) are written for one file; the others get that file's
blocks. That is a hint only: bytes are taken from a file that has no final name, so that nobody but
this run writes to it, and only when they were read back and are those in memory, which are hashed as
always.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right, insort
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from rehydrator.core.ops import Copy
from rehydrator.engine import Recipe
from rehydrator.store.clone import clone, holds, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from rehydrator.engine import Machine, SpaceReader

# Bytes in a row that are worth a look at another file: those that are taken have to be on the disk
# first, which may be waited for (measured: docs/decisions/016).
_LEAST = 256 << 10

# Ops that are looked at for one row of bytes, and runs that are remembered (300 bytes each).
_MOST_OPS = 4096
_MOST_RUNS = 1 << 15


@dataclass(eq=False, slots=True)
class _File:
    """A file that is being written, and how many are taking blocks of it."""

    descriptor: int
    users: int = 0
    is_private: bool = True


class _Run(NamedTuple):
    """Bytes of a space, and where in a file they lie."""

    start: int
    length: int
    file: _File
    offset: int


class _Found(NamedTuple):
    """Bytes at `here` of the file in hand that are at `there` of another."""

    here: int
    length: int
    file: _File
    there: int


class _Home(NamedTuple):
    """Bytes of a space, and where they belong."""

    space: int
    start: int
    length: int
    here: int


class Sharing:
    """What was written by one run so far, in blocks of `block` bytes. Bytes have their home in the first of
    the spaces `common` that copies lead to, or in the last of all."""

    def __init__(self, block: int, common: Collection[int], directory: Path) -> None:
        self.block, self.common, self._directory = block, common, directory
        self._snapshots: list[int] = []
        self._rows: dict[int, list[_Run]] = {}
        self._count = 0
        self._changed = threading.Condition()

    def sharer(self, descriptor: int, source: SpaceReader) -> Sharer:
        """Another file of the run, made of `source`."""
        return Sharer(self, _File(descriptor), source)

    def add(self, space: int, run: _Run) -> None:
        """Some bytes were written."""
        with self._changed:
            if run.file.is_private and self._count < _MOST_RUNS:
                insort(self._rows.setdefault(space, []), run, key=_start)
                self._count += 1

    def find(self, space: int, start: int, length: int, here: int) -> list[_Found]:
        """Which of the bytes [start, start+length) of a space, that belong at `here`, were written;
        whole blocks, in order."""
        found, done, end = list[_Found](), start, start + length
        with self._changed:
            row = self._rows.get(space, [])
            for index in range(max(bisect_right(row, start, key=_start) - 1, 0), len(row)):
                run = row[index]
                if run.start >= end:
                    break
                low, high = max(done, run.start), min(end, run.start + run.length)
                part = self._blocks(here + low - start, high - low, run.file, run.offset + low - run.start)
                if part is not None:
                    found.append(part)
                    done = high
        return found

    def _blocks(self, here: int, length: int, file: _File, there: int) -> _Found | None:
        """The whole blocks of some bytes, if they are blocks in both files, and enough."""
        skip = -here % self.block
        length = (length - skip) // self.block * self.block
        if (here - there) % self.block or length < _LEAST:
            return None
        return _Found(here + skip, length, file, there + skip)

    @contextmanager
    def lent(self, file: _File) -> Iterator[bool]:
        """A file that is not published meanwhile; False if it was."""
        with self._changed:
            is_private = file.is_private
            file.users += is_private
        try:
            yield is_private
        finally:
            with self._changed:
                file.users -= is_private
                self._changed.notify_all()

    def withdraw(self, file: _File) -> None:
        """Nothing is taken of a file from now on, but of a file without a name that has its blocks."""
        held = snapshot(file.descriptor, self._directory)
        with self._changed:
            file.is_private = False
            while file.users:
                self._changed.wait()
            if held >= 0:
                self._snapshots.append(held)
                file.descriptor, file.is_private = held, True
            else:
                self._forget(file)

    def _forget(self, file: _File) -> None:
        for space, row in self._rows.items():
            self._rows[space] = [run for run in row if run.file is not file]
        self._count = sum(map(len, self._rows.values()))

    def close(self) -> None:
        """Give back what was kept, when no file is written any more."""
        while self._snapshots:
            os.close(self._snapshots.pop())

    def end(self) -> None:
        """The file system would not, after all: no more is shared."""
        with self._changed:
            self._rows.clear()
            self._count = _MOST_RUNS


def _start(run: _Run) -> int:
    return run.start


class Sharer:
    """One file of a run that shares."""

    def __init__(self, sharing: Sharing, file: _File, source: SpaceReader) -> None:
        self._sharing, self._file, self._source = sharing, file, source

    def write(
        self, run: Sequence[memoryview], start: int, write: Callable[[list[memoryview], int], None]
    ) -> None:
        """Put bytes that follow each other at `start`: blocks of another file, and what is left by
        `write`. Any thread may call it, also while others do."""
        at, end, fresh = start, start + sum(map(len, run)), list[tuple[int, _Run]]()
        for space, home, length, place in self._homes(start, end):
            written = place
            for found in self._sharing.find(space, home, length, place):
                if self._take(found, _cut(run, found.here - start, found.length)):
                    write(_cut(run, at - start, found.here - at), at)
                    fresh.append(self._fresh(space, home - place, written, found.here))
                    at = written = found.here + found.length
            fresh.append(self._fresh(space, home - place, written, place + length))
        write(_cut(run, at - start, end - at), at)
        for space, each in fresh:
            if each.length >= _LEAST:
                self._sharing.add(space, each)

    def withdraw(self) -> None:
        """All of the file is written, and it is about to be published: others may change it then."""
        self._sharing.withdraw(self._file)

    def _homes(self, start: int, end: int) -> Iterator[_Home]:
        """What is long enough among some bytes."""
        if end - start >= _LEAST:
            machine, space = self._source.machine, self._source.space
            homes = _homes(machine, self._sharing.common, space, start, end - start, start)
            yield from (home for home in _joined(islice(homes, _MOST_OPS)) if home.length >= _LEAST)

    def _fresh(self, space: int, shift: int, here: int, end: int) -> tuple[int, _Run]:
        return space, _Run(here + shift, end - here, self._file, here)

    def _take(self, found: _Found, views: list[memoryview]) -> bool:
        with self._sharing.lent(found.file) as is_private:
            if not is_private or not _are_at(found.file.descriptor, found.there, views):
                return False
            done = clone(found.file.descriptor, found.there, self._file.descriptor, found.here, found.length)
        if not done:
            self._sharing.end()
        return done


def _homes(
    machine: Machine, common: Collection[int], space: int, start: int, length: int, here: int
) -> Iterator[_Home]:
    """Where copies lead to; what a space is made of in other ways has its home there."""
    target, end = machine.space(space), start + length
    if space in common or not isinstance(target, Recipe):
        yield _Home(space, start, length, here)
        return
    while start < end:
        op, begin = target.op_at(start)
        part = min(end, begin + op.length) - start
        if isinstance(op, Copy):
            yield from _homes(machine, common, op.space, op.offset + start - begin, part, here)
        else:
            yield _Home(space, start, part, here)
        start, here = start + part, here + part


def _joined(homes: Iterable[_Home]) -> Iterator[_Home]:
    """The same, neighbours as one."""
    last: _Home | None = None
    for home in homes:
        if last and (last.space, last.start + last.length) == (home.space, home.start):
            last = last._replace(length=last.length + home.length)
            continue
        if last:
            yield last
        last = home
    if last:
        yield last


def _are_at(descriptor: int, offset: int, views: list[memoryview]) -> bool:
    """Whether a file has these bytes."""
    for view in views:
        if not holds(descriptor, offset, view):
            return False
        offset += len(view)
    return True


def _cut(run: Sequence[memoryview], skip: int, length: int) -> list[memoryview]:
    """`length` bytes of a run, from `skip` on."""
    cut = []
    for view in run:
        part = view[skip : skip + length] if skip < len(view) else view[:0]
        if part:
            cut.append(part)
        skip, length = max(skip - len(view), 0), length - len(part)
        if not length:
            break
    return cut
