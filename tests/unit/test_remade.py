"""What the cache loses and somebody wants again is made a second time and then kept."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from rehydrator import streaming
from rehydrator.core.errors import LimitExceeded
from rehydrator.core.ops import Copy, Decode, DecodeRule, Op, Rules
from rehydrator.core.reader import BytesReader
from rehydrator.engine import Cache, Machine, OpsSpace, ReaderSpace, Space
from rehydrator.store.spool import Spool
from rehydrator.streaming import MemorySpool, Remade, Streams

if TYPE_CHECKING:
    from pathlib import Path


class FullSpool(MemorySpool):
    """A spool on a disk with room for ten bytes."""

    def append(self, data: bytes) -> None:
        if self.size + len(data) > 10:
            raise LimitExceeded("no space left")
        super().append(data)


def asked(remade: Remade, names: list[int], length: int = 6) -> list[int]:
    """Ask for values by number, as the engine does without a cache; which of them were made."""
    made: list[int] = []
    for name in names:
        expected = bytes([name]) * length
        kept = remade.read(name, 0, length)
        if kept is None:
            made.append(name)
            remade.add(name, expected)
        assert kept in (None, expected)
    return made


def test_nothing_is_made_three_times() -> None:
    """The first time is for the cache alone; the second goes into the spool."""
    spools: list[MemorySpool] = []

    def spool() -> MemorySpool:
        spools.append(MemorySpool())
        return spools[-1]

    assert asked(Remade(spool), [1, 2, 1, 1, 3, 2, 1, 2], 3) == [1, 2, 1, 3, 2]
    assert [each.read(0, each.size) for each in spools] == [b"\1\1\1\2\2\2"]


def test_spans_are_read_alone() -> None:
    """Of a large block, the bytes of one small file."""
    remade = Remade(MemorySpool)
    for value in (b"first", b"second"):
        remade.add(value, value)
        remade.add(value, value)
    assert remade.read(b"second", 2, 3) == b"con"
    assert remade.read(b"third", 0, 1) is None


@pytest.mark.parametrize(("spool", "limit"), [(MemorySpool, 10), (FullSpool, 1 << 20)])
def test_without_room_a_value_is_made_again(spool: type[MemorySpool], limit: int) -> None:
    """A limit and a full disk are no errors: what is kept stays kept."""
    assert asked(Remade(spool, limit), [1, 2] * 4) == [1, 2, 1, 2, 2, 2]


def test_places_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many values there are, few are remembered."""
    monkeypatch.setattr(streaming, "_REMADE", 3)
    numbers = list(range(6))
    assert asked(Remade(MemorySpool), numbers * 3) == [*numbers, *numbers, 3, 4, 5]


def machine(made: Streams | None) -> tuple[Machine, list[int]]:
    """Eight blocks of noise as they lie in `stored`; a cache for two; and the offsets that are read."""
    from backports import zstd

    plain = [bytes(range(number, number + 200)) * 100 for number in range(8)]
    packed = [zstd.compress(each) for each in plain]
    starts = [sum(map(len, packed[:number])) for number in range(8)]
    reads: list[int] = []

    class Counted(BytesReader):
        def pread(self, offset: int, length: int) -> bytes:
            reads.append(offset)
            return super().pread(offset, length)

    blocks = [Decode(20_000, 0, at, len(data)) for at, data in zip(starts, packed, strict=True)]
    order: list[Op] = [Copy(100, 1, 20_000 * (k % 8) + k) for k in range(64)]
    spaces: dict[int, Space] = {
        0: ReaderSpace(Counted(b"".join(packed))),
        1: OpsSpace(blocks),
        2: OpsSpace(order),
    }
    rules = Rules(decodes=(DecodeRule("zstd.frame", (), 0),))
    return Machine(spaces, rules, Cache(50_000), made=made), reads


@pytest.mark.parametrize(("spooled", "times"), [(False, 8), (True, 2)])
def test_blocks_decode_twice_at_most(spooled: bool, times: int) -> None:
    """Of a space whose order is not that of its blocks; where there is a place for a spool."""
    engine, reads = machine(Streams(MemorySpool) if spooled else None)
    expected = b"".join((bytes(range(k % 8, k % 8 + 200)) * 100)[k : k + 100] for k in range(64))
    assert engine.read(2, 0, 6400) == expected
    assert len(reads) == 8 * times


def test_a_place_that_is_read_only(tmp_path: Path) -> None:
    """Where there is nowhere to keep values, in a container that nobody may write in for one, they
    are made each time, and no image fails for that."""
    remade = Remade(lambda: Spool(tmp_path / "nowhere"))
    assert asked(remade, [1, 1, 1, 1, 2, 2], 600_000) == [1, 1, 1, 1, 2, 2]


def test_threads_find_the_same() -> None:
    """Many at once, each value kept in its own place."""
    remade = Remade(MemorySpool)
    errors: list[AssertionError] = []

    def work() -> None:
        try:
            asked(remade, [*range(200)] * 4, 50)
        except AssertionError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
