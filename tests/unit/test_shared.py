"""Files of one run: which bytes of another may be taken, and that nothing wrong is."""

from __future__ import annotations

import os
import random
import tempfile
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from rehydrator.bundle import shared
from rehydrator.bundle.shared import Sharer, Sharing
from rehydrator.core.ops import Copy, Op, Rules, zeros
from rehydrator.core.reader import BytesReader
from rehydrator.engine import Machine, OpsSpace, ReaderSpace
from rehydrator.store import clone
from rehydrator.store.clone import block_of, holds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOCK = 4096
MIB = 1 << 20
WORDS = random.Random(3).randbytes(MIB)
MIXED: list[Op] = [Copy(MIB // 2, 0, 0), Copy(1000, 0, 7), zeros(3096), Copy(MIB // 2, 0, MIB // 2)]


class Shared:
    """Two files; a clone is a copy here, and is remembered."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clones: list[tuple[int, int, int]] = []
        self.written: list[tuple[int, int]] = []
        self.is_possible = True
        self.sharing = Sharing(BLOCK, {0}, directory)
        self.machine = Machine({0: ReaderSpace(BytesReader(WORDS)), 1: OpsSpace(MIXED)}, Rules())
        self.files = [os.open(directory / str(number), os.O_RDWR | os.O_CREAT) for number in (0, 1)]
        monkeypatch.setattr(shared, "clone", self.clone)

    def clone(self, source: int, there: int, target: int, here: int, length: int) -> bool:
        if not self.is_possible:
            return False
        self.clones.append((there, here, length))
        return os.pwrite(target, os.pread(source, length, there), here) == length

    def sharer(self, number: int, space: int = 0) -> Sharer:
        return self.sharing.sharer(self.files[number], self.machine.reader(space))

    def put(self, number: int, sharer: Sharer, data: bytes, start: int = 0) -> None:
        """Give a sharer bytes, in views of 10,007."""

        def write(run: list[memoryview], at: int) -> None:
            if run:
                self.written.append((at, sum(map(len, run))))
                os.pwritev(self.files[number], run, at)

        views = [memoryview(data)[at : at + 10_007] for at in range(0, len(data), 10_007)]
        sharer.write(views, start, write)

    def content(self, number: int) -> bytes:
        return os.pread(self.files[number], 4 * MIB, 0)


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shared]:
    made = Shared(tmp_path, monkeypatch)
    yield made
    for descriptor in made.files:
        os.close(descriptor)


def test_what_another_file_has_is_not_written(two: Shared) -> None:
    """The second file of the same bytes gets all of them as blocks of the first."""
    for number in (0, 1):
        two.put(number, two.sharer(number), WORDS)
    assert two.clones == [(0, 0, MIB)]
    assert two.written == [(0, MIB)]
    assert two.content(1) == two.content(0) == WORDS


def test_short_and_shifted_bytes_are_written(two: Shared) -> None:
    """Only whole blocks that are blocks in both files are shared; the rest is written."""
    made = two.machine.read(1, 0, MIB + BLOCK)
    two.put(0, two.sharer(0), WORDS[: MIB - 1000])
    two.put(1, two.sharer(1, 1), made)
    assert two.clones == [(0, 0, MIB // 2), (MIB // 2, MIB // 2 + BLOCK, MIB // 2 - BLOCK)]
    assert two.written[1:] == [(MIB // 2, BLOCK), (MIB, BLOCK)]
    assert two.content(1) == made


def test_bytes_that_are_not_there(two: Shared) -> None:
    """What a file is said to have, and has not, is written: nothing is taken that was not compared."""
    two.put(0, two.sharer(0), WORDS)
    os.pwrite(two.files[0], b"\xff" if WORDS[700_000] != 255 else b"\0", 700_000)
    two.put(1, two.sharer(1), WORDS)
    assert two.clones == []
    assert two.content(1) == WORDS


def test_a_file_that_lost_its_end(two: Shared) -> None:
    """A file that is shorter than it was gives nothing."""
    two.put(0, two.sharer(0), WORDS)
    os.ftruncate(two.files[0], 5)
    two.put(1, two.sharer(1), WORDS)
    assert (two.clones, two.content(1)) == ([], WORDS)


def test_a_published_file_gives_nothing(two: Shared) -> None:
    """Others may write to a file that has its name; where there are no snapshots it is of no use then."""
    first = two.sharer(0)
    two.put(0, first, WORDS)
    first.withdraw()
    two.put(0, first, WORDS)
    two.put(1, two.sharer(1), WORDS)
    assert (two.clones, two.content(1)) == ([], WORDS)


def test_a_file_is_published_when_nobody_takes_of_it(two: Shared) -> None:
    """Who is taking blocks is waited for, and after that there are none to be had."""
    first = two.sharer(0)
    two.put(0, first, WORDS)
    with two.sharing.lent(first._file) as is_private:
        thread = threading.Thread(target=first.withdraw)
        thread.start()
        thread.join(0.2)
        assert (is_private, thread.is_alive()) == (True, True)
    thread.join(10)
    assert not thread.is_alive()
    with two.sharing.lent(first._file) as is_private:
        assert not is_private


def test_a_file_system_that_would_not(two: Shared) -> None:
    """One refusal ends all sharing, and costs no byte."""
    two.is_possible = False
    two.put(0, two.sharer(0), WORDS)
    two.put(1, two.sharer(1), WORDS)
    two.is_possible = True
    two.put(1, two.sharer(1), WORDS)
    assert (two.clones, two.content(1)) == ([], WORDS)


def test_what_is_remembered_is_bounded(two: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond the limit is written by everybody."""
    monkeypatch.setattr(shared, "_MOST_RUNS", 1)
    first, second = two.sharer(0), two.sharer(1)
    for sharer, number in ((first, 0), (second, 1)):
        for at in range(0, MIB, MIB // 2):
            two.put(number, sharer, WORDS[at : at + MIB // 2], at)
    assert two.clones == [(0, 0, MIB // 2)]
    assert two.content(1) == WORDS


def test_threads(two: Shared) -> None:
    """Whatever was written by then, two files written by eight threads have the right bytes."""
    places = [(number, at) for at in range(0, MIB, 128 << 10) for number in (0, 1)] * 4
    random.Random(8).shuffle(places)
    sharers = [two.sharer(number) for number in (0, 1)]

    def work(mine: list[tuple[int, int]]) -> None:
        for number, at in mine:
            two.put(number, sharers[number], WORDS[at : at + (128 << 10)], at)

    threads = [threading.Thread(target=work, args=(places[part::8],)) for part in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert two.content(0) == two.content(1) == WORDS


def test_holds(tmp_path: Path) -> None:
    """A file is compared to its last byte, however it is cut."""
    data = WORDS[:700_001]
    (tmp_path / "file").write_bytes(data)
    with (tmp_path / "file").open("rb") as file:
        number, view = file.fileno(), memoryview(data)
        assert holds(number, 0, view)
        assert holds(number, 3, view[3:])
        assert not holds(number, 0, view[1:])
        assert not holds(number, 1, view)
        for at in (0, 262_143, 262_144, 700_000):
            other = bytearray(data)
            other[at] ^= 1
            assert not holds(number, 0, memoryview(bytes(other)))


def test_a_place_where_nothing_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without the call, and a directory that is not there, are no error."""

    @contextmanager
    def refuse(**_: object) -> Iterator[None]:
        raise PermissionError
        yield

    assert block_of(tmp_path / "none") == 0
    monkeypatch.setattr(clone, "clone", lambda *_: False)
    assert block_of(tmp_path) == 0
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert block_of(tmp_path) == 0
