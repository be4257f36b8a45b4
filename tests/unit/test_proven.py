"""Streams that a build has compared with the published file are not encoded again by its proof."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from rehydrator.bundle.proven import Comparison, Proven, hasher, save
from rehydrator.core.errors import HostileInput
from rehydrator.core.ops import Rules, Stream, StreamRule
from rehydrator.core.reader import BytesReader
from rehydrator.engine import SMALL_STREAM, Machine, OpsSpace, ReaderSpace, Space

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PLAIN = random.Random(6).randbytes(SMALL_STREAM + 5)
PACKED = b"what an encoder made " * 99_999
PARAMS = (("dict_size", 1 << 20), ("extreme", 0), ("preset", 0))


def feed() -> Iterator[bytes]:
    for at in range(0, len(PLAIN), 300_000):
        yield PLAIN[at : at + 300_000]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The published file, and what was compared with it."""
    file = tmp_path / "x.raw.xz"
    file.write_bytes(b"head" + PACKED + b"tail")
    state = hasher()
    state.update(PLAIN)
    place = str(file), 4, len(PACKED)
    save([Comparison("lzma2", PARAMS, len(PLAIN), state.hexdigest(), *place)], tmp_path / "compared")
    return file


def test_what_was_compared_is_known(published: Path) -> None:
    """The same bytes through the same encoder are what lies in the published file."""
    found = Proven(published.parent / "compared").find("lzma2", PARAMS, len(PLAIN), feed)
    assert found is not None
    assert b"".join(found) == PACKED


def test_everything_else_is_not(published: Path) -> None:
    """Other bytes, another encoder, other parameters; where no such length was, none are read."""
    known = Proven(published.parent / "compared")

    def refuse() -> Iterator[bytes]:
        raise AssertionError("read for nothing")

    assert known.find("lzma2", PARAMS, len(PLAIN), lambda: iter([PLAIN[:-1], b"!"])) is None
    assert known.find("lzma2", PARAMS, len(PLAIN) - 1, refuse) is None
    assert known.find("bzip2", PARAMS, len(PLAIN), refuse) is None
    assert known.find("lzma2", PARAMS[:-1], len(PLAIN), refuse) is None


def test_a_file_that_became_shorter(published: Path) -> None:
    """The published file is what it was, or the proof fails."""
    published.write_bytes(published.read_bytes()[:1000])
    found = Proven(published.parent / "compared").find("lzma2", PARAMS, len(PLAIN), feed)
    assert found is not None
    with pytest.raises(HostileInput, match=r"x\.raw\.xz: became shorter"):
        list(found)


def test_the_engine_asks_first(published: Path) -> None:
    """A machine that knows a stream gives it without its encoder; otherwise it encodes, and what
    comes out has to be as long as the recipe says."""
    rules = Rules(streams=(StreamRule("lzma2", PARAMS, 0),))
    for plain, made in ((PLAIN, PACKED), (PLAIN[::-1], None)):
        spaces: dict[int, Space] = {
            0: ReaderSpace(BytesReader(plain)),
            1: OpsSpace([Stream(len(PACKED), 0, 0, len(plain))]),
        }
        known = Proven(published.parent / "compared")
        machine = Machine(spaces, rules, known=known)
        if made:
            assert machine.read(1, 0, len(PACKED)) == made
        else:
            with pytest.raises(HostileInput, match="encodes to"):
                machine.read(1, 0, len(PACKED))
