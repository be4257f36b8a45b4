"""Frames and the index of a pack."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from rehydrator.core.digest import frame_digest
from rehydrator.core.errors import DigestMismatch, HostileInput
from rehydrator.core.pack import (
    CHUNK,
    DATA,
    STORED,
    ZSTD,
    Frame,
    decode_frame,
    decode_index,
    encode_frame,
    encode_index,
    join_planes,
    split_planes,
)

TEXT = b"the same again and again, " * 400
NOISE = random.Random(1).randbytes(8000)


def frame(
    plain: bytes, planes: int = 1, kind: int = DATA, start: int = 0, offset: int = 0
) -> tuple[Frame, bytes]:
    codec, stored = encode_frame(plain, 3, planes)
    return Frame(kind, codec, planes, start, offset, len(stored), len(plain), frame_digest(stored)), stored


@pytest.mark.parametrize("planes", [1, 2, 4, 8])
@pytest.mark.parametrize("plain", [TEXT, NOISE, bytes(8)])
def test_frames_read_back(plain: bytes, planes: int) -> None:
    """Any bytes in any planes; noise is stored as it is."""
    made, stored = frame(plain, planes)
    assert decode_frame(made, stored, "pack") == plain
    assert made.codec == (STORED if len(stored) == len(plain) else ZSTD)
    assert join_planes(split_planes(plain, planes), planes) == plain


def test_damaged_frame() -> None:
    """The digest is checked before anything is decoded; a lying index is refused after."""
    made, stored = frame(TEXT)
    with pytest.raises(DigestMismatch, match="pack: frame at 0"):
        decode_frame(made, stored[:-1], "pack")
    for plain in (len(TEXT) - 1, len(TEXT) + 1, 1):
        with pytest.raises(HostileInput, match="pack"):
            decode_frame(replace(made, plain=plain), stored, "pack")
    with pytest.raises(HostileInput, match="pack"):
        decode_frame(replace(made, codec=STORED), stored, "pack")


FRAMES = [frame(TEXT)[0], frame(NOISE, kind=CHUNK, start=len(TEXT), offset=frame(TEXT)[0].stored)[0]]


def test_index_reads_back() -> None:
    """An index of data and chunk frames is what it was made from."""
    assert decode_index(encode_index(FRAMES), "pack") == FRAMES
    assert decode_index(encode_index([]), "pack") == []


@pytest.mark.parametrize(
    "change",
    [
        {"kind": 2},
        {"codec": 2},
        {"planes": 3},
        {"planes": 0},
        {"plain": 0},
        {"plain": 1 << 31},
        {"stored": 0},
        {"stored": 1 << 31},
        {"offset": 1},
        {"kind": CHUNK, "planes": 2},
        {"kind": CHUNK, "plain": 1 << 25},
    ],
)
def test_index_that_lies(change: dict[str, Any]) -> None:
    """Unknown kinds, sizes beyond the limits, gaps and overlaps are refused."""
    with pytest.raises(HostileInput, match="pack"):
        decode_index(encode_index([replace(FRAMES[0], **change)]), "pack")


def test_index_cut_short() -> None:
    """No prefix of an index and nothing longer is an index."""
    data = encode_index(FRAMES)
    for wrong in [*(data[:kept] for kept in range(len(data))), data + b"\0", b"x" + data[1:]]:
        with pytest.raises(HostileInput, match="pack"):
            decode_index(wrong, "pack")
