"""Recipe chunks: what is written reads back, and everything else is refused."""

from __future__ import annotations

import random

import pytest

from rehydrator.core.errors import HostileInput
from rehydrator.core.ops import MAX_OPS_PER_CHUNK, Copy, Decode, Encode, Offsets, Op, Series, Stream, zeros
from rehydrator.core.recipe import MAX_CHUNK, MAX_VALUE, decode_chunk, encode_chunk, output_offsets

BIG = MAX_VALUE >> 1


def random_op(dice: random.Random) -> Op:
    number = dice.choice([0, 1, 255, 256, 65_536, 1 << 40, BIG >> 1])
    length = dice.choice([1, 8, 4096, 1 << 33])
    ops: list[Op] = [
        Copy(length, number & 0xFFFF, number),
        zeros(length),
        Series(8 * length, number, -number, 8, "big"),
        Series(2 * length, 7, -1, 2, "little"),
        Offsets(length, 3, number, BIG - number),
        Encode(length, 2, number, 5, 6),
        Decode(length, 1, number, 77, 5, number),
        Stream(length, 4, number, BIG >> 1),
    ]
    return dice.choice(ops)


def test_any_ops_read_back() -> None:
    """Chunks of any ops, with the largest operands, decode to what they were made from."""
    dice = random.Random(5)
    for count in (1, 2, 50, MAX_OPS_PER_CHUNK):
        ops = [random_op(dice) for _ in range(count)]
        data = encode_chunk(ops)
        assert len(data) <= MAX_CHUNK
        assert decode_chunk(data) == ops


def test_offsets() -> None:
    """The n-th op begins where the ones before it end."""
    assert output_offsets([zeros(5), Copy(7, 0, 0)]) == [0, 5, 12]


@pytest.mark.parametrize("ops", [[], [zeros(1)] * (MAX_OPS_PER_CHUNK + 1), [Copy(1, 0, 1 << 64)]])
def test_not_written(ops: list[Op]) -> None:
    """No op, too many, and operands beyond 63 bits are the writer's error."""
    with pytest.raises(ValueError, match=r"ops|64 bits"):
        encode_chunk(ops)


def test_any_damage_is_refused_or_harmless() -> None:
    """Every single damaged byte gives other ops, or HostileInput, and nothing else."""
    ops = [random_op(random.Random(seed)) for seed in range(12)]
    data = encode_chunk(ops)
    for at in range(len(data)):
        for bit in (1, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[at] ^= bit
            try:
                found = decode_chunk(bytes(damaged))
            except HostileInput:
                continue
            assert found != ops
            assert all(op.length > 0 for op in found)


def test_streams_in_a_row_cost_their_lengths() -> None:
    """Streams of neighbouring plain bytes differ in the lengths that they make, and in nothing else."""
    ops = [Stream(1000 + k % 7, 3, k << 20, 1 << 20) for k in range(100)]
    count, column = 4, 1 + 100
    begin = count + column + (1 + 2 * 100)  # kind; length of two bytes
    where = begin + column
    data = encode_chunk(ops)
    assert decode_chunk(data) == ops
    assert data[begin:where] == b"\1" + b"\3" * 100
    assert data[where : where + 1] == b"\0"  # no distance from the one before
    assert data[where + 1 :] == b"\4" + (bytes(200) + b"\x10" * 100 + bytes(100)) + bytes(2)


def test_a_stream_has_two_operands() -> None:
    """A third and a fourth are refused."""
    row = b"\1\0\0\0" + b"\1\6" + b"\1\7" + bytes(1) + b"\1\2" + b"\1\5"
    assert decode_chunk(row + bytes(2)) == [Stream(7, 0, 1, 5)]
    for more in (b"\1\1" + bytes(1), bytes(1) + b"\1\1"):
        with pytest.raises(HostileInput, match="operand"):
            decode_chunk(row + more)


@pytest.mark.parametrize("data", [b"", b"\0\0\0", b"\xff\xff\xff\xff", encode_chunk([zeros(9)]) + b"\0"])
def test_refused(data: bytes) -> None:
    """Cut short, a count that lies, bytes behind the end."""
    with pytest.raises(HostileInput):
        decode_chunk(data)
