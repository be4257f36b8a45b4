"""Chaining values: where a build records them, how they are stored, and that none of them is trusted."""

from __future__ import annotations

import hashlib
import random
import struct
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rehydrator.bundle import chain
from rehydrator.bundle.chain import Boundary, Recorder, Segment, SegmentHash, decode, encode, segments
from rehydrator.codecs import sha256
from rehydrator.codecs.sha256 import INITIAL, Sha256
from rehydrator.core.errors import HostileInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MIB = 1 << 20
DATA = random.Random(9).randbytes(300_000)


def state_of(data: bytes) -> bytes:
    hasher = Sha256()
    hasher.update(data)
    return hasher.state()


def boundaries_at(data: bytes, places: Iterable[int]) -> tuple[Boundary, ...]:
    return tuple(Boundary(place, state_of(data[:place])) for place in places)


@pytest.fixture
def in_sequence(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without a library for chaining values."""
    sha256._library.cache_clear()
    monkeypatch.setattr(sha256, "_NAMES", ())
    monkeypatch.setattr(sha256, "_of_hashlib", lambda: "libnothing.so.0")
    assert not sha256.is_available()
    yield
    sha256._library.cache_clear()


# --- what is recorded

SMALL_STEP = 1024


@settings(max_examples=60, deadline=None)
@given(
    runs=st.lists(
        st.tuples(st.integers(1, 40_000), st.booleans(), st.integers(1, 9000)), min_size=1, max_size=12
    )
)
def test_recorded(runs: list[tuple[int, bool, int]]) -> None:
    """However data, zeros and blocks lie: the digest is that of the whole, every value that of all
    bytes before it, and no part costs much more than another."""
    digest, found, whole, costs = record(runs)
    assert digest == hashlib.sha256(whole).hexdigest()
    assert found == boundaries_at(whole, [each.offset for each in found])
    ends = [0, *(each.offset for each in found), len(whole)]
    assert len(found) <= 128
    assert all(low < high for low, high in pairwise(ends))
    assert [end % SMALL_STEP for end in ends[:-1]] == [0] * len(ends[:-1])
    parts = [sum(costs[low:high]) for low, high in pairwise(ends)]
    least = max(sum(costs) / 128, 4 * SMALL_STEP)
    # Costs of blocks are rounded down once a step.
    assert all(least - 50 <= part for part in parts[:-1])
    assert all(part <= least + 4 * SMALL_STEP + 50 for part in parts)


def record(runs: list[tuple[int, bool, int]]) -> tuple[str, tuple[Boundary, ...], bytes, list[int]]:
    """Runs of data and zeros, recorded in blocks of given sizes: digest, values, the bytes, and what
    each of them costs (data 4, zeros 1)."""
    whole, costs = bytearray(), list[int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain, "STEP", SMALL_STEP)
        recorder = Recorder()
        for length, is_zeros, size in runs:
            run = bytes(length) if is_zeros else DATA[:length]
            for at in range(0, length, size):
                block = run[at : at + size]
                recorder.update(memoryview(block), 0 if is_zeros else len(block))
            whole += run
            costs += [1 if is_zeros else 4] * length
        return recorder.hexdigest(), recorder.boundaries(), bytes(whole), costs


@pytest.mark.parametrize(
    ("size", "data", "expected"),
    [
        (0, 0, []),
        (63, 63, []),
        # Sixteen MiB of zeros cost what four of data do.
        (4 * MIB, 4 * MIB, []),
        (4 * MIB + 1, 4 * MIB, [4]),
        (8 * MIB, 8 * MIB, [4]),
        (17 * MIB, 0, [16]),
        (30 * MIB, 12 * MIB, [4, 8, 12, 28]),
    ],
)
def test_places(size: int, data: int, expected: list[int]) -> None:
    """In a file of `data` bytes and zeros behind them, values lie at multiples of 4 MiB, none at the
    beginning, none at the end, and none where a part would not be worth it."""
    recorder = Recorder()
    for at in range(0, size, MIB // 2):
        length = min(MIB // 2, size - at)
        recorder.update(bytes(length), length if at < data else 0)
    assert [each.offset // MIB for each in recorder.boundaries()] == expected


def test_no_more_than_128() -> None:
    """A file of a thousand steps has as many values as there may be, or a few less, at equal distances."""
    _, found, whole, _ = record([(len(DATA), False, 9000)] * 4)
    assert 100 < len(found) <= 128
    ends = [0, *(each.offset for each in found), len(whole)]
    assert {high - low for low, high in pairwise(ends[:-1])} == {10 * SMALL_STEP}
    assert ends[-1] - ends[-2] <= 10 * SMALL_STEP


def test_nothing_recorded_without_a_library(in_sequence: None) -> None:
    """Without a library the digest is right, and there are no values."""
    digest, found, whole, _ = record([(40_000, False, 5000), (9000, True, 500)])
    assert (digest, found) == (hashlib.sha256(whole).hexdigest(), ())


# --- how it is stored


@settings(max_examples=60, deadline=None)
@given(places=st.sets(st.integers(1, 4000), max_size=128).map(sorted), more=st.integers(1, 1 << 50))
def test_round_trip(places: list[int], more: int) -> None:
    """Records of 40 bytes: the offset, little endian, and the value."""
    known = tuple(Boundary(64 * place, random.Random(place).randbytes(32)) for place in places)
    data = encode(known)
    expected = b"".join(struct.pack("<Q", each.offset) + each.state for each in known)
    assert data == expected
    assert decode(data, 64 * 4000 + more, "a") == known


@pytest.mark.parametrize(
    "offsets",
    [
        [0],
        [1],
        [63],
        [65],
        [1000],
        [1024],
        [(1 << 64) - 64],
        [64, 64],
        [128, 64],
        [64, 128, 127],
        [64, 192, 128, 256],
    ],
)
def test_hostile_records(offsets: list[int]) -> None:
    """At 0, within a block, at the end of a file of 1,000 bytes or beyond it, twice, out of order."""
    data = b"".join(struct.pack("<Q", offset) + bytes(32) for offset in offsets)
    with pytest.raises(HostileInput, match=r"disk\.raw.*out of order"):
        decode(data, 1000, "disk.raw")


# --- how it is checked


def test_parts() -> None:
    """They follow each other from the standard's value on; the last one has none behind it."""
    known = (Boundary(64, b"a" * 32), Boundary(192, b"b" * 32))
    assert segments(known, 200) == [
        Segment(0, 64, INITIAL, b"a" * 32),
        Segment(64, 128, b"a" * 32, b"b" * 32),
        Segment(192, 8, b"b" * 32, b""),
    ]
    assert segments((), 0) == [Segment(0, 0, INITIAL, b"")]


def wrong(parts: list[Segment], data: bytes, digest: str) -> list[int]:
    """The numbers of those parts that are wrong."""
    found = []
    for number, part in enumerate(parts):
        check = SegmentHash(part)
        check.update(memoryview(data)[part.offset : part.offset + part.length])
        if check.finish(digest):
            found.append(number)
    return found


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 20_000),
    places=st.sets(st.integers(1, 312), max_size=20),
    at=st.integers(0, 1 << 20),
    bit=st.integers(0, 7),
)
def test_one_bit(size: int, places: set[int], at: int, bit: int) -> None:
    """An exact file passes in all its parts; with one bit flipped that part fails, and no other."""
    inside = sorted(64 * place for place in places if 64 * place < size)
    parts = segments(boundaries_at(DATA[:size], inside), size)
    digest = hashlib.sha256(DATA[:size]).hexdigest()
    assert wrong(parts, DATA[:size], digest) == []
    flipped = bytearray(DATA[:size])
    flipped[at % size] ^= 1 << bit
    hit = sum(place <= at % size for place in inside)
    assert wrong(parts, bytes(flipped), digest) == [hit]


@settings(max_examples=60, deadline=None)
@given(
    places=st.sets(st.integers(1, 150), min_size=1, max_size=20).map(sorted),
    which=st.integers(0, 19),
    bit=st.integers(0, 255),
)
def test_one_wrong_value(places: list[int], which: int, bit: int) -> None:
    """A wrong value makes an exact file fail, before it and behind it."""
    data, which = DATA[:10_000], which % len(places)
    known = list(boundaries_at(data, [64 * place for place in places]))
    state = int.from_bytes(known[which].state, "big") ^ 1 << bit
    known[which] = replace(known[which], state=state.to_bytes(32, "big"))
    assert wrong(segments(known, len(data)), data, hashlib.sha256(data).hexdigest()) == [which, which + 1]


def test_values_of_another_file() -> None:
    """All values of another file, and its bytes: every part fits, but for the digest."""
    data, other = DATA[:10_000], DATA[20_000:30_000]
    parts = segments(boundaries_at(other, [640, 6400]), len(other))
    assert wrong(parts, other, hashlib.sha256(data).hexdigest()) == [2]


def test_what_came_out() -> None:
    """A wrong part tells what it came to: the value, or the digest."""
    one, other = segments(boundaries_at(DATA[:128], [64]), 128)
    check = SegmentHash(one)
    check.update(bytes(64))
    assert check.finish("") == state_of(bytes(64)).hex()
    check = SegmentHash(replace(other, before=state_of(bytes(64))))
    check.update(bytes(64))
    assert check.finish("") == hashlib.sha256(bytes(128)).hexdigest()


def test_the_whole_without_a_library(in_sequence: None) -> None:
    """A file as one part is checked by hashlib where there is nothing else."""
    assert wrong(segments((), 5000), DATA[:5000], hashlib.sha256(DATA[:5000]).hexdigest()) == []
    assert wrong(segments((), 5000), DATA[:5000], "0" * 64) == [0]
