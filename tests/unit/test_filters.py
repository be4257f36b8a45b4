"""Programs as filters: streaming both ways, with limits, and ended whenever their reader is."""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from rehydrator import host
from rehydrator.core.errors import RehydratorError, ToolMissing
from rehydrator.host import filters
from rehydrator.host.filters import run_filter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KIB, MIB = 1 << 10, 1 << 20


def shell(script: str, *chunks: bytes) -> list[bytes]:
    return list(run_filter(["sh", "-c", script], chunks))


def endless() -> Iterator[bytes]:
    while True:
        yield bytes(64 * KIB)


def running() -> int:
    """How many programs the door to programs knows."""
    return len(host._running)


def test_everything_is_passed_on_however_it_is_cut() -> None:
    """Empty chunks, small ones and one that is larger than all pipes come out as they went in."""
    chunks = [b"", b"x", bytes(range(256)) * 20_000, b"", b"end"]
    assert b"".join(chunks) == b"".join(run_filter(["cat"], chunks))


def test_pieces_are_neither_small_nor_large() -> None:
    """All pieces but the last have 64 KiB to 1 MiB and a bit."""
    sizes = [len(piece) for piece in run_filter(["cat"], [b"x" * 999] * 5000)]
    assert sum(sizes) == 999 * 5000
    assert min(sizes[:-1]) >= 64 * KIB
    assert max(sizes) <= MIB + 64 * KIB


def test_nothing_in_and_nothing_out() -> None:
    """No input is an end of input, and no output is none."""
    assert [] == list(run_filter(["cat"], []))  # noqa: SIM300
    assert gzip.decompress(b"".join(run_filter(["gzip", "-c"], []))) == b""


def test_input_is_taken_as_the_program_takes_it() -> None:
    """The reader decides how far it goes: an endless input gives what was read of it, and is not
    read far ahead; closing ends the program."""
    given: list[int] = []

    def counted() -> Iterator[bytes]:
        for chunk in endless():
            given.append(len(chunk))
            yield chunk

    flow = run_filter(["cat"], counted())
    assert bytes(64 * KIB) == next(flow)[: 64 * KIB]
    assert running() == 1
    flow.close()  # type: ignore[attr-defined]
    assert running() == 0
    assert sum(given) < 8 * MIB


def test_an_error_of_the_input_is_the_filters() -> None:
    """Whoever gives the bytes may fail: that comes out, and the program is ended."""

    def broken() -> Iterator[bytes]:
        yield bytes(MIB)
        raise ValueError("the disk is gone")

    with pytest.raises(ValueError, match="the disk is gone"):
        list(run_filter(["cat"], broken()))
    assert running() == 0


def test_a_failure_is_told_with_the_end_of_stderr() -> None:
    """The exit code, and the last of what it said, however much that was."""
    with pytest.raises(RehydratorError, match=r"^sh: failed with exit code 3: (?s:.{900,1000})no good$"):
        shell("yes complaint | head -c 300000 >&2; echo no good >&2; cat; exit 3", bytes(MIB))


def test_a_program_that_stops_listening_has_failed() -> None:
    """What it did not take is not in what it wrote, whatever its exit code."""
    with pytest.raises(RehydratorError, match="ended before it had taken all"):
        list(run_filter(["head", "-c", "10"], [bytes(MIB)] * 8))


def test_a_program_that_stands_still_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither reading nor writing for the time limit is an error; being slow to ask is not."""
    monkeypatch.setattr(filters, "STALL", 1.0)
    started = time.monotonic()
    with pytest.raises(RehydratorError, match="stood still for 1 seconds"):
        shell("sleep 60", bytes(4 * MIB))
    with pytest.raises(RehydratorError, match="did not end within 1 seconds"):
        shell("exec >&- 2>&-; cat; sleep 60")
    assert time.monotonic() - started < 30

    def slow() -> Iterator[bytes]:
        time.sleep(1.5)
        yield b"late"

    flow = run_filter(["cat"], slow())
    assert b"late" == next(flow)  # noqa: SIM300
    time.sleep(1.5)
    assert list(flow) == []


def test_a_program_that_leaves_something_running() -> None:
    """Its pipes are held by another: that is told, and not waited for."""
    started = time.monotonic()
    with pytest.raises(RehydratorError, match="left something running"):
        shell("sleep 60 & exit 0")
    assert time.monotonic() - started < 30


def test_it_writes_no_files(tmp_path: Path) -> None:
    """A filter that writes into a file is ended by the signal for that, and the file stays empty."""
    with pytest.raises(RehydratorError, match=r"signal 25|exit code 153"):
        shell(f"read line; echo written >{tmp_path}/file", b"go\n")
    assert (tmp_path / "file").read_bytes() == b""


def test_its_memory_is_limited() -> None:
    """One that wants a gibibyte does not get it."""
    code = "import sys; sys.stdin.read(); bytearray(1 << 30)"
    with pytest.raises(RehydratorError, match="MemoryError"):
        list(run_filter([sys.executable, "-c", code], []))


def test_options_in_the_environment_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the arguments decide what gzip, pigz and zip write."""
    programs = [["gzip", "-nc"], ["pigz", "-nc"], ["zip", "-q", "-X", "-", "-"]]
    plain = bytes(range(256)) * 400
    before = [len(b"".join(run_filter(argv, [plain]))) for argv in programs]
    for name in ("GZIP", "PIGZ", "ZIPOPT", "ZIP"):
        monkeypatch.setenv(name, "-1" if name != "ZIP" else "-0")
    assert before == [len(b"".join(run_filter(argv, [plain]))) for argv in programs]


def test_what_is_missing_is_named() -> None:
    """The error of a program that is not installed names it and the package."""
    with pytest.raises(ToolMissing, match="no-such-program is not installed"):
        list(run_filter(["no-such-program"], []))


def test_an_interrupt_ends_it() -> None:
    """stop_all() from another thread ends a filter that runs, and what it left is Interrupted.
    In a process of its own, because nothing is started after that."""
    code = """
import itertools, threading
from rehydrator import host
from rehydrator.core.errors import Interrupted
from rehydrator.host.filters import run_filter
threading.Timer(0.5, host.stop_all).start()
try:
    for piece in run_filter(["cat"], itertools.repeat(bytes(1 << 16))):
        pass
except Interrupted:
    print("interrupted", len(host._running))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("interrupted 0\n", "", 0)


def test_filters_of_several_threads_do_not_meet() -> None:
    """Each has its own program and its own bytes."""
    results: dict[int, bytes] = {}

    def one(number: int) -> None:
        results[number] = b"".join(run_filter(["cat"], [bytes([number]) * MIB] * 3))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: bytes([number]) * 3 * MIB for number in range(4)} == results
