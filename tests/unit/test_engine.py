"""The engine evaluates the six ops, whole and at any span."""

from __future__ import annotations

import random
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from rehydrator.codecs import streams
from rehydrator.core.errors import HostileInput, ToolMissing
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
    Stream,
    StreamRule,
    Term,
    zeros,
)
from rehydrator.core.reader import BytesReader
from rehydrator.core.recipe import decode_chunk, encode_chunk
from rehydrator.engine import Cache, Machine, OpsSpace, ReaderSpace, turn
from rehydrator.streaming import Room

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rehydrator.engine import Space

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


# --- streams

MIB = 1 << 20
LARGE = 2 * MIB + 12_345
DEFLATE = (("level", 1), ("memlevel", 8))
GZIP = (("level", 6), ("rsyncable", 0))
STREAM_RULES = Rules(streams=(StreamRule("deflate.zlib", DEFLATE, 0), StreamRule("deflate.gzip", GZIP, 0)))


def deflated(plain: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, -15, 8)
    return packer.compress(plain) + packer.flush()


def plain_space() -> OpsSpace:
    """More than 2 MiB of integers."""
    return OpsSpace([Series(LARGE // 4 * 4, 0, 7, 4, "little"), zeros(LARGE % 4)])


def plain_bytes() -> bytes:
    return b"".join((7 * k).to_bytes(4, "little") for k in range(LARGE // 4)) + bytes(LARGE % 4)


def stream_machine(*spaces: list[Op]) -> Machine:
    """Space 0 plain bytes, then the ops of each."""
    rows = {number: OpsSpace(ops) for number, ops in enumerate(spaces, 1)}
    return Machine({0: plain_space(), **rows}, STREAM_RULES)


@pytest.mark.parametrize(("offset", "plain"), [(0, LARGE), (5, 1000), (LARGE, 0), (9, MIB), (9, MIB + 1)])
def test_stream(offset: int, plain: int) -> None:
    """A stream is what the encoder makes of the plain bytes, at any span, large or small."""
    made = deflated(plain_bytes()[offset : offset + plain])
    under_test, dice = (
        stream_machine([zeros(3), Stream(len(made), 0, offset, plain), zeros(4)]),
        random.Random(2),
    )
    whole = bytes(3) + made + bytes(4)
    for _ in range(20):
        start = dice.randrange(len(whole))
        length = dice.randrange(len(whole) - start)
        assert whole[start : start + length] == under_test.read(1, start, length)
    assert whole == under_test.read(1, 0, len(whole))


@pytest.mark.parametrize("plain", [1000, LARGE])
@pytest.mark.parametrize("by", [-1, 1])
def test_stream_of_another_length(plain: int, by: int) -> None:
    """An encoder that gives more or fewer bytes than the op says is refused, and nothing is waited for."""
    length = len(deflated(plain_bytes()[:plain])) + by
    with pytest.raises(HostileInput, match="encode"):
        stream_machine([Stream(length, 0, 0, plain)]).read(1, 0, length)


@pytest.mark.parametrize(
    "op",
    [Stream(9, 2, 0, 9), Stream(9, 0, LARGE, 1), Stream(9, 0, 0, LARGE + 1), Stream(9, 0, 1 << 62, 1 << 62)],
)
def test_stream_of_nothing(op: Stream) -> None:
    """A rule that does not exist, and plain bytes outside of their space, are refused."""
    with pytest.raises(HostileInput):
        stream_machine([op]).read(1, 0, 9)


@pytest.mark.parametrize("plain", [1000, LARGE])
def test_program_that_is_not_run(plain: int) -> None:
    """Without a runner of programs, a stream of a program says what is missing."""
    with pytest.raises(ToolMissing, match="gzip"):
        stream_machine([Stream(99, 1, 0, plain)]).read(1, 0, 9)


class Counting:
    """An encoder that repeats its input and counts how often it is asked."""

    codec, params = "deflate.zlib", DEFLATE

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        self.calls += 1
        yield from chunks


@pytest.mark.parametrize("plain", [1000, LARGE])
def test_equal_streams_are_made_once(monkeypatch: pytest.MonkeyPatch, plain: int) -> None:
    """Siblings whose ops are equal share what was encoded; other plain bytes are encoded anew."""
    counting = Counting()
    monkeypatch.setattr(streams, "encoder", lambda *_: counting)
    under_test = stream_machine(
        [Stream(plain, 0, 0, plain)],
        [zeros(5), Stream(plain, 0, 0, plain)],
        [Stream(plain - 1, 0, 1, plain - 1)],
    )
    expected = plain_bytes()
    assert expected[:plain] == under_test.read(1, 0, plain)
    assert bytes(5) + expected[:plain] == under_test.read(2, 0, plain + 5)
    assert counting.calls == 1
    assert expected[1:plain] == under_test.read(3, 0, plain - 1)
    assert counting.calls == 2


def test_streams_of_a_space() -> None:
    """The streams of a space are found in order, also where a part of another is copied."""
    first, second, third = (Stream(10, 0, at, 3) for at in (0, 3, 6))
    under_test = stream_machine([first, zeros(5), second], [third, Copy(5, 1, 12), Copy(4, 0, 0)])
    assert list(under_test.streams_of(2)) == [third, second]
    assert list(under_test.streams_of(0)) == []


def test_streams_of_many_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A space that is copied from is gone through once, however many copies there are; parts of
    streams count, and streams beside the part do not."""
    rows = [Stream(10, 0, at, 3) for at in range(20)]
    under_test = stream_machine(
        [zeros(5), *rows], [Copy(1, 1, at) for at in range(205)], [Copy(25, 1, 30), Copy(5, 1, 0)]
    )
    asked: list[OpsSpace] = []
    ops = OpsSpace.ops

    def counted(space: OpsSpace) -> Iterator[Op]:
        asked.append(space)
        return ops(space)

    monkeypatch.setattr(OpsSpace, "ops", counted)
    assert list(under_test.streams_of(2)) == [row for row in rows for _ in range(10)]
    assert len(asked) == 2
    assert list(under_test.streams_of(3)) == rows[2:5]


def test_streams_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large streams of a space are begun before anybody asks, and asking does not begin them anew."""
    counting = Counting()
    monkeypatch.setattr(streams, "encoder", lambda *_: counting)
    ops: list[Op] = [Stream(MIB + k, 0, k, MIB + k) for k in range(1, 4)]
    under_test = stream_machine(ops)
    end = under_test.streams_ahead(1, 2)
    total = sum(op.length for op in ops)
    made = under_test.read(1, 0, total)
    end()
    assert made == b"".join(plain_bytes()[k : MIB + 2 * k] for k in range(1, 4))
    assert counting.calls == 3


class Slow(Counting):
    """The same, and how many did it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.lock, self.running, self.most = threading.Lock(), 0, 0

    def encode(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(0.01)
        yield from chunks
        with self.lock:
            self.running -= 1


@pytest.mark.parametrize("plain", [1000, MIB + 1])
def test_encoders_wait_for_memory(monkeypatch: pytest.MonkeyPatch, plain: int) -> None:
    """Of streams that are read at once, no more are encoded than memory is there for; also where
    a few bytes of each are asked for, and whoever reads goes on to the next."""
    slow = Slow()
    monkeypatch.setattr(streams, "encoder", lambda *_: slow)
    ops: list[Op] = [Stream(plain, 0, k, plain) for k in range(12)]
    spaces = {0: plain_space(), 1: OpsSpace(ops), 2: OpsSpace([Copy(1, 1, k * plain) for k in range(12)])}
    under_test = Machine(spaces, STREAM_RULES, room=Room(2, [1, 2, 3]))
    with ThreadPoolExecutor(4) as pool:
        read = [pool.submit(under_test.read, 2, k, 12 - k) for k in range(0, 12, 3)]
    whole = bytes(plain_bytes()[k] for k in range(12))
    assert [each.result() for each in read] == [whole[k:] for k in range(0, 12, 3)]
    assert slow.most == 1


def test_streams_of_streams_find_room() -> None:
    """One encoder that waits for another does not keep it from beginning, however little room
    there is."""
    inner = deflated(plain_bytes())
    large = 3 * MIB
    assert len(inner) < large
    made = deflated(inner + bytes(large - len(inner)))
    rules = Rules(streams=(*STREAM_RULES.streams, StreamRule("deflate.zlib", DEFLATE, 1)))
    spaces = {
        0: plain_space(),
        1: OpsSpace([Stream(len(inner), 0, 0, LARGE), zeros(large - len(inner))]),
        2: OpsSpace([Stream(len(made), 2, 0, large)]),
    }
    assert made == Machine(spaces, rules, room=Room(1, [1, 2, 3])).read(2, 0, len(made))


# --- what siblings have in common


GUEST_RULES = Rules(
    tables=(SizeTable(1, 2, 1),),
    encodes=tuple(
        EncodeRule("zlib", (("level", level), ("memlevel", 8), ("wbits", 15)), space, unit, 0, framing)
        for space, unit, framing, level in (
            (2, UNIT, Framing(), 6),
            (3, UNIT, Framing(b"GRAN", (), 512), 6),
            (4, UNIT, Framing(), 6),
            (2, UNIT // 2, Framing(), 6),
            (2, UNIT, Framing(), 1),
        )
    ),
)


def guests() -> dict[int, Space]:
    """Space 0 plain bytes; 1 sizes; 2 a copy of 0; 3 a copy of that behind a header; 4 the same disk
    with a byte of its own in its second unit, and cut short within its last one."""
    last = len(PLAIN) // UNIT * UNIT + 100
    return {
        0: ReaderSpace(BytesReader(PLAIN)),
        1: ReaderSpace(BytesReader(b"\0\2" * 16)),
        2: OpsSpace([Copy(len(PLAIN), 0, 0)]),
        3: OpsSpace([Copy(2 * UNIT, 2, 0), Copy(len(PLAIN) - 2 * UNIT, 2, 2 * UNIT)]),
        4: OpsSpace([Copy(UNIT + 5, 0, 0), Series(1, 9, 0, 1, "little"), Copy(last - UNIT - 6, 0, UNIT + 6)]),
    }


def zlib_unit(plain: bytes, level: int = 6) -> bytes:
    return zlib.compress(plain.ljust(UNIT, b"\0"), level)


def test_equal_units_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units that siblings copy from one place are encoded once, however they are framed; another byte,
    another length, another size of units and other parameters are encoded anew."""
    under_test = Machine(guests(), GUEST_RULES)
    asked: list[bytes] = []
    encode = under_test._packed

    def counted(rule: EncodeRule, offset: int, inside: int) -> bytes:
        asked.append(b"")
        return encode(rule, offset, inside)

    monkeypatch.setattr(under_test, "_packed", counted)

    def unit(rule: int, offset: int, expected: bytes) -> int:
        """Encode one, compare, and say how many encoders ran for it."""
        before = len(asked)
        assert under_test.encode_unit(rule, offset, len(expected)) == expected
        return len(asked) - before

    last = len(PLAIN) // UNIT * UNIT
    framed = b"GRAN" + zlib_unit(PLAIN[:UNIT])
    altered = PLAIN[UNIT : UNIT + 5] + b"\x09" + PLAIN[UNIT + 6 : 2 * UNIT]
    assert unit(0, 0, zlib_unit(PLAIN[:UNIT])) == 1
    assert unit(1, 0, framed + bytes(-len(framed) % 512)) == 0
    assert unit(2, 0, zlib_unit(PLAIN[:UNIT])) == 0
    assert unit(2, UNIT, zlib_unit(altered)) == 1
    assert unit(0, UNIT, zlib_unit(PLAIN[UNIT : 2 * UNIT])) == 1
    assert unit(0, last, zlib_unit(PLAIN[last:])) == 1
    assert unit(2, last, zlib_unit(PLAIN[last : last + 100])) == 1
    assert unit(3, 0, zlib.compress(PLAIN[: UNIT // 2], 6)) == 1
    assert unit(4, 0, zlib_unit(PLAIN[:UNIT], 1)) == 1
    assert unit(0, last + UNIT, zlib_unit(b"")) == 1
    assert unit(1, last + 3 * UNIT, (b"GRAN" + zlib_unit(b"")).ljust(512, b"\0")) == 1


@pytest.mark.parametrize("size", [1000, len(PLAIN)])
def test_units_outside_of_what_is_copied(size: int) -> None:
    """A unit whose plain bytes are copied from outside of a space is refused, as any such span is."""
    far = OpsSpace([Copy(UNIT, 2, 1 << 40)])
    under_test = Machine({**guests(), 4: far, 3: OpsSpace([Copy(UNIT, 2, len(PLAIN) - 9)])}, GUEST_RULES)
    for rule in (1, 2):
        with pytest.raises(HostileInput, match="outside"):
            under_test.encode_unit(rule, 0, size)


def test_origin() -> None:
    """The lowest space that a span is one copy of, and where; else the span itself."""
    under_test = Machine(guests(), GUEST_RULES)
    assert under_test.origin(3, 0, UNIT) == (0, 0)
    assert under_test.origin(3, 2 * UNIT + 7, 100) == (0, 2 * UNIT + 7)
    assert under_test.origin(3, 2 * UNIT - 1, 2) == (3, 2 * UNIT - 1)
    assert under_test.origin(4, UNIT, UNIT) == (4, UNIT)
    assert under_test.origin(4, UNIT + 6, 10) == (0, UNIT + 6)
    assert under_test.origin(4, UNIT + 5, 1) == (4, UNIT + 5)
    assert under_test.origin(0, 9, 9) == (0, 9)
    assert under_test.origin(3, 50, 0) == (3, 50)
    assert under_test.origin(3, len(PLAIN), 1) == (3, len(PLAIN))


def test_home() -> None:
    """What a place is made of: through copies and encoders, past what is made of nothing."""
    ends = [512 * k for k in range(17)]
    spaces = guests() | {
        5: OpsSpace([zeros(100), Series(8, 1, 1, 4, "big"), Encode(ends[4], 1, UNIT, 3, 4), zeros(9)]),
        6: OpsSpace([Copy(50, 5, 0), Copy(3000, 5, 100)]),
        7: OpsSpace([zeros(5)] * 200),
    }
    under_test = Machine(spaces, GUEST_RULES)
    assert under_test.home(5, 0) == (0, UNIT)
    assert under_test.home(5, 107 + 512) == (0, UNIT)
    assert under_test.home(5, 108 + 512) == (0, 2 * UNIT)
    assert under_test.home(5, 108 + 2047) == (0, 4 * UNIT)
    assert under_test.home(5, 108 + 2048) == (5, 108 + 2048 + 9)
    assert under_test.home(6, 10) == (0, UNIT)
    assert under_test.home(4, UNIT + 5) == (0, UNIT + 6)
    assert under_test.home(0, 77) == (0, 77)
    # As far as anybody looks.
    assert under_test.home(7, 0) == (7, 5 * 64)


@pytest.mark.parametrize(
    "op", [Encode(512, 1, 0, 99, 1), Encode(512, 1, 0, 0, 99), Copy(9, 2, 1 << 40), Copy(9, 2, len(PLAIN))]
)
def test_the_home_of_nonsense(op: Op) -> None:
    """It is only asked for to put things in order, so it is somewhere, whatever a recipe says."""
    under_test = Machine({**guests(), 5: OpsSpace([op, zeros(1)])}, GUEST_RULES)
    assert under_test.home(5, 0)[0] in {2, 5}


def test_who_waits_for_another_has_no_turn() -> None:
    """Of two turns one makes a value, and one would wait for it: a third thread has that one meanwhile,
    and who waited goes on only with a turn of his own."""
    cache, turns, may_end, others_ran = Cache(1 << 20), threading.Semaphore(2), threading.Event(), []

    def slow() -> bytes:
        assert may_end.wait(10)
        return b"made once"

    def get() -> tuple[bytes, int]:
        with turn(turns):
            return cache.get("key", slow), turns._value

    def other() -> None:
        with turn(turns):
            others_ran.append(may_end.is_set())

    with ThreadPoolExecutor(4) as pool:
        values = [pool.submit(get) for _ in range(3)]
        pool.submit(other).result(10)
        may_end.set()
        assert [value.result(10)[0] for value in values] == [b"made once"] * 3
    assert others_ran == [False]
    assert max(value.result()[1] for value in values) <= 1
    assert turns._value == 2


def test_a_turn_ends_with_an_error() -> None:
    """Whatever happens inside, and whoever waits for what fails."""
    cache, turns, started, may_end = (
        Cache(1 << 20),
        threading.Semaphore(1),
        threading.Event(),
        threading.Event(),
    )

    def failing() -> bytes:
        started.set()
        assert may_end.wait(10)
        raise HostileInput("wrong")

    def get() -> None:
        with turn(turns):
            cache.get("key", failing)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: cache.get("key", failing))
        assert started.wait(10)
        second = pool.submit(get)
        may_end.set()
        for each in (first, second):
            with pytest.raises(HostileInput):
                each.result(10)
    assert turns._value == 1
