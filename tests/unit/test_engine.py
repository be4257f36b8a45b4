"""The engine evaluates the five ops, whole and at any span."""

from __future__ import annotations

import random
import zlib

import pytest

from rehydrator.core.errors import HostileInput
from rehydrator.core.ops import (
    Copy,
    Encode,
    EncodeRule,
    FrameField,
    Framing,
    OffsetRule,
    Offsets,
    Op,
    Rules,
    Series,
    SizeTable,
    Term,
    zeros,
)
from rehydrator.core.reader import BytesReader
from rehydrator.core.recipe import decode_chunk, encode_chunk
from rehydrator.engine import Machine, OpsSpace, ReaderSpace

UNIT = 4096
PLAIN = random.Random(3).randbytes(1000) * 20
SIZES = []
PACKED = b""
for _start in range(0, len(PLAIN), UNIT):
    _unit = zlib.compress(PLAIN[_start : _start + UNIT].ljust(UNIT, b"\0"), 6)
    _framed = (_start >> 9).to_bytes(8, "little") + len(_unit).to_bytes(4, "little") + _unit
    _framed += bytes(-len(_framed) % 512)
    SIZES.append(len(_framed) // 512)
    PACKED += _framed
RULES = Rules(
    tables=(SizeTable(1, 2, 512),),
    offsets=(
        OffsetRule(0, 4, "little", 0, (Term("start", 9, 0),)),
        OffsetRule(0, 8, "big", 1 << 62, (Term("start", 0, 0), Term("size", 9, 54))),
    ),
    encodes=(
        EncodeRule(
            "zlib",
            (("level", 6), ("memlevel", 8), ("wbits", 15)),
            0,
            UNIT,
            0,
            Framing(
                bytes(12),
                (FrameField(0, 8, "little", "source", 9), FrameField(8, 4, "little", "length")),
                512,
            ),
        ),
    ),
)
OPS: list[Op] = [
    zeros(100),
    Series(40, 5, 3, 4, "big"),
    Encode(len(PACKED), 0, 0, 0, len(SIZES)),
    Offsets(4 * len(SIZES), 0, 0, 140),
    Offsets(16, 1, 1, 1000),
    Copy(777, 0, 11),
]


def expected() -> bytes:
    """What OPS stand for, computed without the engine."""
    series = b"".join((5 + 3 * k).to_bytes(4, "big") for k in range(10))
    at, grains = 140, b""
    for size in SIZES:
        grains += (at >> 9).to_bytes(4, "little")
        at += size * 512
    second = (1 << 62) + 1000 + (SIZES[1] << 54)
    third = (1 << 62) + 1000 + SIZES[1] * 512 + (SIZES[2] << 54)
    descriptors = second.to_bytes(8, "big") + third.to_bytes(8, "big")
    return bytes(100) + series + PACKED + grains + descriptors + PLAIN[11:788]


def machine(rules: Rules = RULES) -> Machine:
    """Space 0 plain bytes, 1 sizes, 2 the ops."""
    sizes = b"".join(size.to_bytes(2, "little") for size in SIZES)
    return Machine(
        {0: ReaderSpace(BytesReader(PLAIN)), 1: ReaderSpace(BytesReader(sizes)), 2: OpsSpace(OPS)},
        rules,
    )


def test_whole() -> None:
    """All ops in a row give the expected bytes."""
    assert expected() == machine().read(2, 0, sum(op.length for op in OPS))


def test_any_span() -> None:
    """Random spans equal the same spans of the whole."""
    whole, under_test, dice = expected(), machine(), random.Random(1)
    for _ in range(300):
        offset = dice.randrange(len(whole))
        length = dice.randrange(len(whole) - offset)
        assert whole[offset : offset + length] == under_test.read(2, offset, length)


def test_chunk_round_trip() -> None:
    """A chunk decodes to the ops that it was made from."""
    assert decode_chunk(encode_chunk(OPS)) == OPS


@pytest.mark.parametrize("keep", range(0, 60, 7))
def test_chunk_cut_short(keep: int) -> None:
    """A chunk that is cut short is refused."""
    with pytest.raises(HostileInput):
        decode_chunk(encode_chunk(OPS)[:keep])


def test_span_outside() -> None:
    """A span that leaves its space is refused, not clipped."""
    with pytest.raises(HostileInput):
        machine().read(0, len(PLAIN) - 1, 2)
