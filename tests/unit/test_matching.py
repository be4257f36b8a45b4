"""Matches that are made ahead are those that would be made in their turn."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from rehydrator.bundle.matching import Matches, Wanted
from rehydrator.core.errors import HostileInput
from rehydrator.core.ops import Copy
from rehydrator.core.reader import BytesReader
from rehydrator.delta import PageIndex

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE, NOTHING = 4096, -1
DISK = random.Random(1).randbytes(40 * PAGE)
NEW = random.Random(2).randbytes(8 * PAGE)


class Disk(BytesReader):
    """A disk without holes."""

    def data_spans(self) -> Iterator[tuple[int, int]]:
        return iter([(0, self.size)])


class Counted(Disk):
    """A disk that knows how often its first byte was read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.begun = 0
        self.read = threading.Event()

    def pread(self, offset: int, length: int) -> bytes:
        if not offset:
            self.begun += 1
            self.read.set()
        return super().pread(offset, length)


def matches(pool: ThreadPoolExecutor, ahead: int = 2) -> Matches:
    made = Matches(PageIndex(), NOTHING, pool, ahead)
    made.add(0, BytesReader(DISK))
    return made


def siblings(count: int) -> list[Counted]:
    return [Counted(DISK[: 9 * PAGE] + bytes([number]) * PAGE + DISK[10 * PAGE :]) for number in range(count)]


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_the_same_as_in_turn(jobs: int) -> None:
    """Whatever the number of threads, each disk is read once, and at most `ahead` are held."""
    with ThreadPoolExecutor(jobs) as pool:
        made, disks = matches(pool, jobs), siblings(7)
        expected = [made.match(Wanted(disk, 0)) for disk in siblings(7)]
        made.plan(Wanted(disk, 0) for disk in disks)
        assert disks[0].read.wait(30)
        assert sum(disk.begun for disk in disks) <= jobs
        assert [made.match(Wanted(disk, 0)) for disk in disks] == expected
        assert [disk.begun for disk in disks] == [1] * 7


def test_what_was_learned_meanwhile_counts() -> None:
    """A space that is added after a match was begun is found nevertheless."""
    disk = Counted(NEW)
    with ThreadPoolExecutor(2) as pool:
        made = matches(pool)
        made.plan([Wanted(disk, 0)])
        assert disk.read.wait(30)
        made.add(1, BytesReader(NEW))
        assert made.match(Wanted(disk, 0)) == [Copy(len(NEW), 1, 0)]
    assert disk.begun == 2


def test_another_in_between() -> None:
    """What was not planned is matched at once, and what was planned is still there."""
    planned, other = siblings(2)
    with ThreadPoolExecutor(2) as pool:
        made = matches(pool)
        made.plan([Wanted(planned, 0)])
        made.match(Wanted(other, 0))
        made.match(Wanted(planned, 0))
    assert [planned.begun, other.begun] == [1, 1]


def test_errors_come_out_in_their_turn() -> None:
    """A disk that cannot be read spoils nobody else's match."""

    class Broken(Disk):
        def pread(self, offset: int, length: int) -> bytes:
            raise HostileInput("broken")

    good, bad = siblings(1)[0], Broken(DISK)
    with ThreadPoolExecutor(2) as pool:
        made = matches(pool)
        made.plan([Wanted(good, 0), Wanted(bad, 0)])
        assert made.match(Wanted(good, 0))[0] == Copy(9 * PAGE, 0, 0)
        with pytest.raises(HostileInput, match="broken"):
            made.match(Wanted(bad, 0))
