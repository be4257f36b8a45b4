"""Outputs are made side by side or in order, by any number of workers; all of them are checked."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rehydrator.bundle import chain, making
from rehydrator.bundle.making import Making, make_in_order, make_side_by_side
from rehydrator.bundle.rehydrate import FileSink
from rehydrator.codecs import sha256
from rehydrator.core.errors import DigestMismatch, HostileInput, RehydratorError
from rehydrator.core.ops import Copy, Op, Series, zeros
from rehydrator.core.reader import BytesReader
from rehydrator.engine import ReaderSpace, Zeros
from tests.memory_bundle import Image, MemoryBundle, boundaries_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from rehydrator.engine import Piece

BLOCK = 4096
WORDS = random.Random(8).randbytes(70_000)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 4 KiB, not of 4 MiB."""
    monkeypatch.setattr(making, "BLOCK", BLOCK)


def nothing(*_: object) -> None:
    """No progress to show, nothing to write."""


# --- who makes what


@given(count=st.integers(0, 60), workers=st.integers(1, 9), data=st.data())
@settings(max_examples=40, deadline=None)
def test_each_task_once(count: int, workers: int, data: st.DataObject) -> None:
    """In whatever order workers come, each task is handed out once, and a worker goes through its row
    to the end."""
    runs = making._Runs(count, workers)
    handed: list[int] = []
    busy = set(range(workers))
    while busy:
        worker = data.draw(st.sampled_from(sorted(busy)))
        low, high = runs._rows[worker]
        task = runs.next(worker)
        if task is None:
            busy.discard(worker)
        else:
            handed.append(task)
            assert low in {task, high}
    assert sorted(handed) == list(range(count))


def test_rows_at_the_same_pace() -> None:
    """Workers that are equally fast go through a row each."""
    runs = making._Runs(12, 3)
    rounds = [[runs.next(worker) for worker in range(3)] for _ in range(5)]
    assert rounds == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11], [None] * 3]


def test_who_has_none_left_takes_half() -> None:
    """Of the longest row, its second half."""
    runs = making._Runs(12, 3)
    assert [runs.next(2) for _ in range(4)] == [8, 9, 10, 11]
    assert [runs.next(1) for _ in range(1)] == [4]
    # Row 0 has four left, row 1 three.
    assert [runs.next(2) for _ in range(2)] == [2, 3]
    assert [runs.next(2) for _ in range(3)] == [6, 7, 1]
    assert [runs.next(0), runs.next(0)] == [0, 5]
    assert [runs.next(worker) for worker in range(3)] == [None] * 3


def test_a_slow_worker_holds_nobody_up() -> None:
    """All tasks but the one that a worker is at are done by the others meanwhile."""
    runs, done, all_but_one = making._Runs(40, 4), list[int](), threading.Event()
    lock = threading.Lock()

    def work(worker: int) -> None:
        while (task := runs.next(worker)) is not None:
            if task == 0:
                assert all_but_one.wait(30)
            with lock:
                done.append(task)
                if len(done) == 39:
                    all_but_one.set()

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(done) == list(range(40))
    assert done[-1] == 0


# --- any recipe, any boundaries, any workers


def content_of(ops: Sequence[Op]) -> bytes:
    """What ops make, without the engine."""
    made = bytearray()
    for op in ops:
        if isinstance(op, Copy):
            made += WORDS[op.offset : op.offset + op.length]
        elif isinstance(op, Series):
            steps = ((op.first + k * op.step) % 256 for k in range(op.length))
            made += bytes(op.length) if not op.first and not op.step else bytes(steps)
    return bytes(made)


OP = st.one_of(
    st.builds(zeros, st.integers(1, 30_000)),
    st.builds(Copy, st.integers(1, 20_000), st.just(0), st.integers(0, 50_000)),
    st.builds(
        Series,
        st.integers(1, 300),
        st.integers(0, 255),
        st.integers(0, 9),
        st.just(1),
        st.just("little"),
    ),
)
RECIPE = st.lists(OP, min_size=1, max_size=12)
PLACES = st.sets(st.integers(1, 2000), max_size=12)


def image_of(ops: list[Op], places: set[int], name: str = "disk.raw") -> Image:
    content = content_of(ops)
    inside = sorted(64 * place for place in places if 64 * place < len(content))
    return Image(name, ops, content, boundaries_at(content, inside))


def bundle_of(*images: Image) -> MemoryBundle:
    return MemoryBundle([ReaderSpace(BytesReader(WORDS))], images)


class Flipped:
    """A source with a bit of one byte flipped."""

    def __init__(self, source: making.Source, place: int) -> None:
        self._source, self._place = source, place

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        data = bytearray()
        for piece in self._source.pieces(offset, length):
            data += bytes(piece.length) if isinstance(piece, Zeros) else piece
        if offset <= self._place < offset + length:
            data[self._place - offset] ^= 4
        yield memoryview(data)


@given(ops=RECIPE, places=PLACES, workers=st.integers(1, 8), sparse=st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_image_side_by_side(ops: list[Op], places: set[int], workers: int, sparse: bool) -> None:
    """Parts in any order by up to eight workers are exactly the file, with holes and without."""
    image = image_of(ops, places)
    bundle = bundle_of(image)
    finished: list[bytes] = []
    descriptor = os.memfd_create("image")
    try:
        sink = FileSink(descriptor, len(image.content), sparse)

        def finish() -> None:
            os.ftruncate(descriptor, len(image.content))
            finished.append(os.pread(descriptor, len(image.content) + 1, 0))

        each = making.making(bundle, bundle.images[0], sink, finish)
        assert len(each.segments) == len(image.boundaries) + 1
        done: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(making, "BLOCK", BLOCK)
            make_side_by_side([each], workers, done.append)
    finally:
        os.close(descriptor)
    assert (each.error, finished) == (None, [image.content])
    assert sum(done) == len(image.content)


@given(ops=RECIPE, places=PLACES, workers=st.integers(1, 8), place=st.integers(0, 1 << 20))
@settings(max_examples=60, deadline=None)
def test_one_wrong_bit(ops: list[Op], places: set[int], workers: int, place: int) -> None:
    """Wherever it is, it fails the output, side by side and in order; nothing is finished, and of what
    is written in order the end is missing."""
    image = image_of(ops, places)
    bundle = bundle_of(image)
    finished: list[bool] = []
    each = making.making(bundle, bundle.images[0], finish=lambda: finished.append(True))
    wrong = replace(each, source=Flipped(each.source, place % len(image.content)))
    written: list[int] = []

    def write(_: int, pieces: list[Piece]) -> None:
        written.extend(piece.length if isinstance(piece, Zeros) else len(piece) for piece in pieces)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "BLOCK", BLOCK)
        make_side_by_side([wrong], workers, nothing)
        assert (type(wrong.error), finished) == (DigestMismatch, [])
        with pytest.raises(DigestMismatch, match=r"disk\.raw"):
            make_in_order(wrong, write, workers, 8 * BLOCK, nothing)
        assert sum(written) < len(image.content)
        written.clear()
        make_in_order(each, write, workers, 8 * BLOCK, nothing)
        assert sum(written) == len(image.content)


@given(ops=RECIPE, places=PLACES, workers=st.integers(1, 8), ahead=st.integers(0, 20 * BLOCK))
@settings(max_examples=60, deadline=None)
def test_any_image_in_order(ops: list[Op], places: set[int], workers: int, ahead: int) -> None:
    """What is written in order is exactly the file, however little may wait."""
    image = image_of(ops, places)
    bundle = bundle_of(image)
    written = bytearray()

    def write(offset: int, pieces: list[Piece]) -> None:
        assert offset == len(written)
        for piece in pieces:
            written.extend(bytes(piece.length) if isinstance(piece, Zeros) else piece)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "BLOCK", BLOCK)
        done: list[int] = []
        make_in_order(making.making(bundle, bundle.images[0]), write, workers, ahead, done.append)
    assert written == image.content
    assert sum(done) == len(image.content)


@pytest.mark.parametrize("in_order", [True, False])
def test_an_empty_file(in_order: bool) -> None:
    """No bytes, and they have a digest."""
    good, bad = (
        bundle_of(Image("empty", [], b"", digest=digest)) for digest in ("", hashlib.sha256(b"x").hexdigest())
    )
    finished: list[str] = []

    def attempt(bundle: MemoryBundle) -> Exception | None:
        each = making.making(bundle, bundle.images[0], finish=lambda: finished.append("done"))
        if not in_order:
            make_side_by_side([each], 3, nothing)
            return each.error
        try:
            make_in_order(each, nothing, 3, 0, nothing)
        except RehydratorError as error:
            return error
        return None

    assert attempt(good) is None
    assert isinstance(attempt(bad), DigestMismatch)
    assert finished == ([] if in_order else ["done"])


def test_parts_without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no library gives chaining values, those of a bundle are not even read, and an image is one
    part."""
    image = image_of([Copy(20_000, 0, 0)], {5, 9})
    bundle = bundle_of(image)
    form = bundle.images[0].form
    assert [part.length for part in making.segments_of(bundle, form)] == [320, 256, 20_000 - 576]
    sha256._library.cache_clear()
    monkeypatch.setattr(sha256, "_library", lambda: None)
    monkeypatch.setattr(bundle, "boundaries", None)
    assert making.segments_of(bundle, form) == chain.segments((), 20_000)
    each = making.making(bundle, bundle.images[0])
    make_side_by_side([each], 3, nothing)
    assert each.error is None
    make_in_order(each, nothing, 3, BLOCK, nothing)


def test_records_that_are_malformed() -> None:
    """A bundle whose chaining values are out of order is refused as hostile."""
    image = image_of([Copy(20_000, 0, 0)], {5, 9})
    bundle = bundle_of(replace(image, boundaries=image.boundaries[::-1]))
    with pytest.raises(HostileInput, match=r"disk\.raw"):
        making.making(bundle, bundle.images[0])


# --- several outputs


def test_one_that_is_wrong_stops_no_other(small_blocks: None) -> None:
    """Of three, the first has a wrong byte, the second names what is not there; the third is finished."""
    images = [
        image_of([Copy(50_000, 0, 5)], {100, 300}, "wrong"),
        replace(image_of([Copy(50_000, 0, 0)], {100, 300}, "hostile"), ops=[Copy(50_000, 0, 1 << 40)]),
        image_of([zeros(9), Copy(50_000, 0, 9)], {99, 310, 400}, "good"),
    ]
    bundle = bundle_of(*images)
    finished: list[str] = []

    def opened(number: int) -> Making:
        output = bundle.images[number]
        return making.making(bundle, output, finish=lambda: finished.append(output.form.name))

    wrong, hostile, good = map(opened, range(3))
    wrong.source = Flipped(wrong.source, 30_000)
    for workers in (1, 3):
        finished.clear()
        every = [replace(each) for each in (wrong, hostile, good)]
        make_side_by_side(every, workers, nothing)
        assert [type(each.error) for each in every] == [DigestMismatch, HostileInput, type(None)]
        assert finished == ["good"]


def test_a_damaged_recipe_stops_no_other(small_blocks: None) -> None:
    """One whose recipe cannot even be read, when outputs are put in order, fails alone."""
    bundle = bundle_of(*(image_of([Copy(9000, 0, at)], {50}, str(at)) for at in (1, 2)))

    class Damaged:
        size, streams = 9000, ()

        def op_at(self, offset: int) -> tuple[Op, int]:
            raise DigestMismatch("packs/0.pack: a frame is damaged")

        def ops(self) -> Iterator[Op]:
            raise DigestMismatch("packs/0.pack: a frame is damaged")

        def pieces(self, *_: object) -> Iterator[Piece]:
            raise DigestMismatch("packs/0.pack: a frame is damaged")

    spaces = bundle.machine.spaces
    assert isinstance(spaces, dict)
    spaces[1] = Damaged()
    both = [making.making(bundle, output) for output in bundle.images]
    make_side_by_side(both, 2, nothing)
    assert [type(each.error) for each in both] == [DigestMismatch, type(None)]


def test_an_error_of_the_disk_is_kept(small_blocks: None) -> None:
    """An OSError of one sink, or of what ends its file, is that output's alone."""
    bundle = bundle_of(*(image_of([Copy(30_000, 0, at)], {50, 200, 400}, str(at)) for at in (1, 2, 3)))

    class Full:
        def write(self, offset: int, pieces: Sequence[Piece]) -> None:
            raise OSError(28, "No space left on device")

    def fail() -> None:
        raise OSError(5, "Input/output error")

    ends = [(Full(), nothing), (None, fail), (None, nothing)]
    every = [making.making(bundle, each, *end) for each, end in zip(bundle.images, ends, strict=True)]
    make_side_by_side(every, 4, nothing)
    assert [each.error.errno if isinstance(each.error, OSError) else 0 for each in every] == [28, 5, 0]


def test_an_error_that_nobody_expects(small_blocks: None) -> None:
    """It is not swallowed, and ends the others."""
    bundle = bundle_of(image_of([Copy(60_000, 0, 0)], set(range(20, 900, 20))))

    class Broken:
        def pieces(self, offset: int, length: int) -> Iterator[Piece]:
            raise ZeroDivisionError

    each = replace(making.making(bundle, bundle.images[0]), source=Broken())
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        make_side_by_side([each], 3, nothing)
    assert threading.active_count() <= before


# --- in order: what is held, what is done at once


class Counted:
    """A source that counts the blocks that are made and not written."""

    def __init__(self, source: making.Source) -> None:
        self._source, self._lock = source, threading.Lock()
        self.live = self.most = self.made = 0

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        with self._lock:
            self.live, self.made = self.live + length, self.made + length
            self.most = max(self.most, self.live)
        yield from self._source.pieces(offset, length)

    def write(self, _: int, pieces: list[Piece]) -> None:
        """The writer, and it is slow."""
        time.sleep(0.004)
        with self._lock:
            self.live -= sum(piece.length if isinstance(piece, Zeros) else len(piece) for piece in pieces)


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("ahead", [0, 8 * BLOCK])
def test_a_slow_writer(small_blocks: None, workers: int, ahead: int) -> None:
    """No more is made ahead of it than was asked for, and a block."""
    ops: list[Op] = [Copy(60_000, 0, k) for k in range(4)]
    bundle = bundle_of(image_of(ops, {100, 1000, 2000}))
    each = making.making(bundle, bundle.images[0])
    counted = Counted(each.source)
    make_in_order(replace(each, source=counted), counted.write, workers, ahead, nothing)
    assert (counted.live, counted.made) == (0, 240_000)
    # The one that is written, and the one that went beyond.
    assert counted.most <= ahead + 2 * BLOCK


class Slow:
    """A source that takes a moment for a block, and counts how many are made at once."""

    def __init__(self, source: making.Source) -> None:
        self._source, self._lock = source, threading.Lock()
        self.running = self.most = 0

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(0.002)
        yield from self._source.pieces(offset, length)
        with self._lock:
            self.running -= 1


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_so_many_are_at_work(small_blocks: None, workers: int) -> None:
    """Threads that wait for nobody are as many as were asked for, and no more."""
    bundle = bundle_of(image_of([Copy(60_000, 0, 0)], {100, 300}))
    each = making.making(bundle, bundle.images[0])
    slow = Slow(each.source)
    make_in_order(replace(each, source=slow), nothing, workers, 16 * BLOCK, nothing)
    assert slow.most == workers


def test_all_are_at_work_where_encoders_are(small_blocks: None) -> None:
    """Who waits for an encoder keeps nobody from what it is fed with."""
    bundle = bundle_of(image_of([Copy(60_000, 0, 0)], {100, 300}))
    each = making.making(bundle, bundle.images[0])
    slow = Slow(each.source)
    make_in_order(replace(each, source=slow), nothing, 1, 16 * BLOCK, nothing, encoded=True)
    assert slow.most > 2


def test_parts_are_hashed_at_once(small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of zeros, that are made in no time, several parts are hashed at once, each by one worker at a time.
    (20 blocks a part, and 12 of data that may wait, as of 10 GiB.)"""
    count, part = 12, 20 * BLOCK
    content = bytes(count * part)
    places = range(part, len(content), part)
    bundle = bundle_of(Image("x", [zeros(len(content))], content, boundaries_at(content, places)))
    lock, running, most = threading.Lock(), set[int](), [0]
    hash_pieces = making.hash_pieces

    def hashed(check: chain.SegmentHash, pieces: Sequence[Piece]) -> None:
        with lock:
            assert id(check) not in running
            running.add(id(check))
            most[0] = max(most[0], len(running))
        time.sleep(0.002)
        hash_pieces(check, pieces)
        with lock:
            running.discard(id(check))

    monkeypatch.setattr(making, "hash_pieces", hashed)
    make_in_order(making.making(bundle, bundle.images[0]), nothing, 4, 12 * BLOCK, nothing)
    assert most[0] in {3, 4}


def test_ten_gibibytes_of_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take no memory, however many blocks wait."""
    size, part = 10 << 30, 80 << 20
    known = tuple(chain.Boundary(at, bytes(32)) for at in range(part, size, part))
    monkeypatch.setattr(making, "_check", nothing)
    monkeypatch.setattr(making, "hash_pieces", nothing)
    each = Making(bundle_of(image_of([zeros(1)], set())).images[0], All(size), chain.segments(known, size))
    written: list[int] = []
    tracemalloc.start()
    try:
        make_in_order(each, lambda _, pieces: written.append(pieces[0][0]), 4, 48 << 20, nothing)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(written) == size
    assert peak < 4 << 20


class All:
    """Nothing but zeros."""

    def __init__(self, size: int) -> None:
        self.size = size

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        yield Zeros(length)


@pytest.mark.parametrize("bad", [0, 1, 2])
@pytest.mark.parametrize("workers", [1, 8])
def test_nothing_behind_a_wrong_part(small_blocks: None, bad: int, workers: int) -> None:
    """Behind a part that is wrong nothing is written, and of the last one not its last block."""
    part = 5 * BLOCK
    content = WORDS[: 3 * part - 100]
    image = Image("x", [Copy(len(content), 0, 0)], content, boundaries_at(content, (part, 2 * part)))
    bundle = bundle_of(image)
    each = making.making(bundle, bundle.images[0])
    wrong = replace(each, source=Flipped(each.source, bad * part + 3))
    written: list[int] = []
    with pytest.raises(DigestMismatch):
        make_in_order(wrong, lambda offset, _: written.append(offset), workers, 9 * BLOCK, nothing)
    count = 14 if bad == 2 else 5 * (bad + 1)
    assert written == [BLOCK * number for number in range(count)]


@pytest.mark.parametrize("where", ["source", "writer"])
def test_an_error_in_the_middle(small_blocks: None, where: str) -> None:
    """It ends everything at once, and no thread is left."""
    bundle = bundle_of(image_of([Copy(60_000, 0, k) for k in range(4)], {100, 1000, 2000}))
    each = making.making(bundle, bundle.images[0])
    made: list[int] = []

    def fail_at(offset: int) -> None:
        made.append(offset)
        if offset >= 20 * BLOCK:
            raise HostileInput("a span outside of its space")

    class Failing:
        def pieces(self, offset: int, length: int) -> Iterator[Piece]:
            if where == "source":
                fail_at(offset)
            yield from each.source.pieces(offset, length)

    def write(offset: int, _: list[Piece]) -> None:
        if where == "writer":
            fail_at(offset)

    before = threading.active_count()
    with pytest.raises(HostileInput):
        make_in_order(replace(each, source=Failing()), write, 4, 4 * BLOCK, nothing)
    assert is_soon(lambda: threading.active_count() <= before)
    assert max(made) <= 26 * BLOCK


def is_soon(met: Callable[[], bool]) -> bool:
    """Whether it is so within seconds."""
    deadline = time.monotonic() + 20
    while not met() and time.monotonic() < deadline:
        time.sleep(0.01)
    return met()


def test_holes_of_several_workers(tmp_path: Path) -> None:
    """Zeros stay holes, whoever writes around them."""
    mib = 1 << 20
    ops: list[Op] = [Copy(5000, 0, 0), zeros(7 * mib), Copy(5000, 0, 0), zeros(5 * mib)]
    content = content_of(ops)
    bundle = bundle_of(Image("x", ops, content, boundaries_at(content, range(mib, 12 * mib, mib))))
    with (tmp_path / "x").open("w+b") as file:
        sink = FileSink(file.fileno(), len(content), True)
        each = making.making(bundle, bundle.images[0], sink, lambda: sink.finish(bundle.images[0].artifact))
        make_side_by_side([each], 4, nothing)
        assert each.error is None
        assert os.fstat(file.fileno()).st_blocks * 512 < mib
    assert (tmp_path / "x").read_bytes() == content
