"""Streams: encoded once, from the beginning, read from anywhere while they grow."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
import time
from typing import TYPE_CHECKING

import pytest

from rehydrator.core.errors import HostileInput, Interrupted, LimitExceeded, RehydratorError
from rehydrator.store.spool import Spool
from rehydrator.streaming import _MOST_HELD, Gate, MemorySpool, Streams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BYTES = bytes(range(256)) * 40
PIECES = [BYTES[at : at + 1000] for at in range(0, len(BYTES), 1000)]


def give() -> Iterator[bytes]:
    yield from PIECES


def test_a_span_is_read_from_anywhere() -> None:
    """The bytes of a span do not depend on which span was read before."""
    streams = Streams(MemorySpool)
    spans = [(9000, 1240), (0, 10), (0, len(BYTES)), (5, 5000)]
    read = [streams.read("one", len(BYTES), give, *span) for span in spans]
    assert read == [BYTES[at : at + length] for at, length in spans]


def test_a_stream_is_made_once() -> None:
    """Who asks for a stream that there is does not start another."""
    begun = []

    def make() -> Iterator[bytes]:
        begun.append(1)
        yield from PIECES

    streams = Streams(MemorySpool)
    for at in range(0, 10000, 1000):
        streams.read("one", len(BYTES), make, at, 100)
    assert len(begun) == 1


def test_bytes_are_there_before_the_end() -> None:
    """A reader of the first bytes does not wait for the last."""
    go_on = threading.Event()

    def make() -> Iterator[bytes]:
        yield PIECES[0]
        assert go_on.wait(30)
        yield from PIECES[1:]

    streams = Streams(MemorySpool)
    assert streams.read("one", len(BYTES), make, 0, 500) == BYTES[:500]
    go_on.set()
    assert streams.read("one", len(BYTES), make, 10000, 240) == BYTES[10000:]


@pytest.mark.parametrize("size", [len(BYTES) - 1, len(BYTES) + 1])
def test_another_length_is_refused(size: int) -> None:
    """A stream that is not as long as it should be is malformed, too long or too short."""
    with pytest.raises(HostileInput, match="encodes to"):
        Streams(MemorySpool).read("one", size, give, size - 1, 1)


def test_an_error_reaches_every_reader() -> None:
    """What the encoder raises is raised by each read, also by those that come later."""

    def make() -> Iterator[bytes]:
        yield PIECES[0]
        raise LimitExceeded("no memory")

    streams = Streams(MemorySpool)
    for _ in range(2):
        with pytest.raises(LimitExceeded, match="no memory"):
            streams.read("one", len(BYTES), make, 5000, 10)


def test_stopping_ends_the_work() -> None:
    """After stop(), a stream that goes on for ever ends, and its reader is told."""
    first = threading.Event()

    def make() -> Iterator[bytes]:
        while True:
            yield b"x"
            first.set()

    streams = Streams(MemorySpool)
    found: list[BaseException] = []

    def read() -> None:
        try:
            streams.read("one", 1 << 40, make, (1 << 40) - 1, 1)
        except Interrupted as error:
            found.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    assert first.wait(30)
    streams.stop()
    reader.join(30)
    assert len(found) == 1


def test_few_streams_run_ahead() -> None:
    """At most so many as were asked for are under way, and twice as many wait to be read."""
    lock, running, most = threading.Lock(), [0], [0]
    begun = []

    def maker(number: int) -> Callable[[], Iterator[bytes]]:
        def make() -> Iterator[bytes]:
            with lock:
                begun.append(number)
                running[0] += 1
                most[0] = max(most[0], running[0])
            yield from PIECES
            with lock:
                running[0] -= 1

        return make

    makers = [maker(number) for number in range(12)]
    streams = Streams(MemorySpool)
    end = streams.ahead([(number, len(BYTES), make) for number, make in enumerate(makers)], 2)
    for number, make in enumerate(makers):
        assert streams.read(number, len(BYTES), make, 0, len(BYTES)) == BYTES
    end()
    assert (sorted(begun), most[0] <= 3) == (list(range(12)), True)


def test_old_streams_give_way() -> None:
    """Above the limit the streams that were used longest ago are made again when they are read."""
    begun = []

    def make() -> Iterator[bytes]:
        begun.append(1)
        yield from PIECES

    streams = Streams(MemorySpool, limit=2 * len(BYTES))
    for name in ("one", "two", "three", "three", "one"):
        streams.read(name, len(BYTES), make, len(BYTES) - 1, 1)
    assert len(begun) == 4


def test_what_was_made_ahead_stays() -> None:
    """A stream that was begun before anybody asked gives way to none; those do that were read."""
    begun: list[str] = []
    ended = threading.Event()

    def maker(name: str) -> Callable[[], Iterator[bytes]]:
        def make() -> Iterator[bytes]:
            begun.append(name)
            yield from PIECES
            if name == "ahead":
                ended.set()

        return make

    streams = Streams(MemorySpool, limit=2 * len(BYTES))
    end = streams.ahead([("ahead", len(BYTES), maker("ahead"))], 1)
    assert ended.wait(30)
    while not streams._streams["ahead"].done:
        time.sleep(0.01)
    for name in ("one", "two", "ahead"):
        assert streams.read(name, len(BYTES), maker(name), len(BYTES) - 1, 1) == BYTES[-1:]
        while not streams._streams[name].done:
            time.sleep(0.01)
    end()
    assert begun == ["ahead", "one", "two"]


def test_few_files_are_open() -> None:
    """However short they are, at most so many streams are held."""
    streams = Streams(MemorySpool)
    for number in range(600):
        assert streams.read(number, len(BYTES), give, 5, 3) == BYTES[5:8]
    assert len(streams._streams) <= _MOST_HELD + 1


def test_no_thread_for_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no more threads, every reader is told, and none waits for ever."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    streams = Streams(MemorySpool)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    for _ in range(2):
        with pytest.raises(LimitExceeded, match="--jobs"):
            streams.read("one", len(BYTES), give, 0, 1)


def test_few_encoders_at_once() -> None:
    """However little memory they need, only so many run at a time."""
    gate, entered = Gate(1 << 60, most=2), threading.Semaphore(0)
    leave = threading.Event()

    def run() -> None:
        with gate.room(1):
            entered.release()
            assert leave.wait(30)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert [entered.acquire(timeout=30), entered.acquire(timeout=30)] == [True, True]
    assert not entered.acquire(timeout=0.2)
    leave.set()
    assert entered.acquire(timeout=30)
    for thread in threads:
        thread.join(30)


@pytest.mark.parametrize("count", [1, 9])
def test_a_spool_keeps_what_it_got(tmp_path: Path, count: int) -> None:
    """A spool gives its bytes from memory or from a file, and leaves no file behind."""
    spool = Spool(tmp_path)
    for _ in range(count):
        spool.append(BYTES * 60)
    whole = BYTES * 60 * count
    assert (spool.size, spool.read(100_000, 400_000)) == (len(whole), whole[100_000:500_000])
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_a_spool_without_room_says_where(tmp_path: Path) -> None:
    """A directory that cannot take the bytes, or where nothing can be written, is named."""
    spool = Spool(tmp_path)
    spool._file, spool._held = os.open("/dev/full", os.O_WRONLY), None
    with pytest.raises(LimitExceeded, match=f"{tmp_path}: No space left.*--tmpdir"):
        spool.append(b"x")
    spool = Spool(tmp_path / "gone")
    with pytest.raises(RehydratorError, match=r"gone: No such file.*--tmpdir"):
        spool.append(bytes(5 << 20))


def test_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container that is read-only, what is not much is kept in memory; more is refused."""

    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    spool = Spool()
    piece = bytes(range(256)) * (4 << 12)
    for _ in range(17):
        spool.append(piece)
    assert (spool.size, spool.read(5 << 20, 300)) == (17 * len(piece), piece[:300])
    with pytest.raises(RehydratorError, match="--tmpdir"):
        spool.append(piece)
