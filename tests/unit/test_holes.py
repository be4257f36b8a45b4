"""Bytes of a file are given back, or the caller is told that they have to be written."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rehydrator.store import holes
from rehydrator.store.holes import punch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 256 << 10


@pytest.fixture
def full(tmp_path: Path) -> Iterator[int]:
    """A file without a zero in it."""
    path = tmp_path / "full"
    path.write_bytes(b"\xff" * SIZE)
    descriptor = os.open(path, os.O_RDWR)
    os.fsync(descriptor)
    yield descriptor
    os.close(descriptor)


def blocks(descriptor: int) -> int:
    """Bytes that a file takes on its disk."""
    return os.fstat(descriptor).st_blocks * 512


def test_blocks_are_given_back(full: int) -> None:
    """What was punched is zero and takes no room; the rest and the size stay."""
    before = blocks(full)
    assert punch(full, 64 << 10, 128 << 10)
    os.fsync(full)
    assert before - blocks(full) == 128 << 10
    ends = b"\xff" * (64 << 10)
    assert os.pread(full, SIZE + 1, 0) == ends + bytes(128 << 10) + ends


@given(start=st.integers(0, SIZE - 1), length=st.integers(1, SIZE))
@settings(max_examples=40, deadline=None)
def test_any_bytes(start: int, length: int) -> None:
    """They need not be whole blocks; beyond the end of the file nothing grows."""
    descriptor = os.memfd_create("full")
    try:
        os.write(descriptor, b"\xff" * SIZE)
        assert punch(descriptor, start, length)
        inside = min(length, SIZE - start)
        expected = b"\xff" * start + bytes(inside) + b"\xff" * (SIZE - start - inside)
        assert os.pread(descriptor, 2 * SIZE, 0) == expected
    finally:
        os.close(descriptor)


def test_refused() -> None:
    """A pipe, a file that is open for reading, no bytes, and none before the file: False, and no error."""
    for descriptor in os.pipe():
        assert not punch(descriptor, 0, 4096)
        os.close(descriptor)
    reading = os.open(__file__, os.O_RDONLY)
    assert not punch(reading, 0, 4096)
    os.close(reading)
    there = os.memfd_create("full")
    assert [punch(there, 0, 0), punch(there, -1, 4096), punch(there, 0, 4096)] == [False, False, True]
    os.close(there)


def test_a_library_that_has_no_such_call(full: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is punched there, and it is said."""

    class Without:
        def __init__(self, _: None) -> None: ...

    monkeypatch.setattr(ctypes, "CDLL", Without)
    holes._fallocate.cache_clear()
    try:
        assert not punch(full, 0, 4096)
        assert os.pread(full, 4096, 0) == b"\xff" * 4096
    finally:
        holes._fallocate.cache_clear()
