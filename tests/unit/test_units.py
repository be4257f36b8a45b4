"""Encoded units: which encoder made them, and how tables and positions follow from sizes."""

from __future__ import annotations

import random
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from zlib_ng import zlib_ng

from rehydrator.codecs import candidates
from rehydrator.core.errors import HostileInput, Unexplained
from rehydrator.core.ops import Encode, EncodeRule, Framing, OffsetRule, Offsets, Rules, Series, Term
from rehydrator.core.reader import BytesReader
from rehydrator.engine import Machine, OpsSpace, ReaderSpace, Space
from rehydrator.formats.explanation import FILE, GUEST, SIZES, OpsBuilder, Packed
from rehydrator.formats.units import UnitRows, reproduce

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rehydrator.formats.explanation import Each

UNIT = 4096
SECTORS = OffsetRule(0, 4, "little", 0, (Term("start", 9, 0),))
# qcow2's: bit 62, position, and the sectors that the data touches beyond its first.
QCOW2 = OffsetRule(
    0, 8, "big", 1 << 62, (Term("start", 0, 0), Term("last", 9, 54), Term("start", 9, 54, negative=True))
)
PARAMS = (("level", 6), ("memlevel", 8), ("wbits", 15))


def text(count: int, seed: int = 5) -> bytes:
    """Data that levels and libraries compress differently."""
    dice = random.Random(seed)
    words = [dice.randbytes(dice.randrange(3, 12)) for _ in range(200)]
    return b"".join(dice.choice(words) for _ in range(count * UNIT // 4))[: count * UNIT]


def units_of(streams: Sequence[bytes]) -> tuple[list[Packed], bytes]:
    units, file = [], bytearray()
    for number, stream in enumerate(streams):
        units.append(Packed(number * UNIT, UNIT, len(file), len(stream)))
        file += stream
    return units, bytes(file)


def found(
    guest: bytes, streams: Sequence[bytes], each: Each = map
) -> tuple[list[tuple[str, object]], list[int]]:
    units, file = units_of(streams)
    result = reproduce(
        "zlib",
        units,
        lambda unit: guest[unit.guest : unit.guest + UNIT],
        lambda unit: file[unit.file : unit.file + unit.stored],
        each,
    )
    return [(name, params) for name, params in result.encoders], result.chosen


def blocks(guest: bytes) -> list[bytes]:
    return [guest[at : at + UNIT] for at in range(0, len(guest), UNIT)]


def test_one_encoder_is_found_and_gives_every_unit() -> None:
    """Units of zlib level 6 have one encoder, whichever way the work is mapped."""
    guest = text(300)
    streams = [zlib.compress(block, 6) for block in blocks(guest)]
    expected = ([("zlib", PARAMS)], [0] * 300)
    assert found(guest, streams) == expected
    with ThreadPoolExecutor(2) as pool:
        assert found(guest, streams, pool.map) == expected


def test_trivial_units_do_not_hide_the_level() -> None:
    """A unit of one byte repeated looks alike from several levels; the level that gives the
    others is taken for all, so that runs stay whole."""
    guest = b"".join(b"\7" * UNIT if k % 2 else block for k, block in enumerate(blocks(text(40))))
    streams = [zlib.compress(block, 9) for block in blocks(guest)]
    encoders, chosen = found(guest, streams)
    assert encoders == [("zlib", (("level", 9), ("memlevel", 8), ("wbits", 15)))]
    assert chosen == [0] * 40


def test_trivial_samples_do_not_split_runs() -> None:
    """All 16 samples look alike from two levels: the level that is found for the rest later
    takes them over."""
    count = 16 * 10 + 1 - 10
    sampled = {k * (count - 1) // 15 for k in range(16)}
    guest = b"".join(b"\7" * UNIT if k in sampled else block for k, block in enumerate(blocks(text(count))))
    encoders, chosen = found(guest, [zlib.compress(block, 9) for block in blocks(guest)])
    assert encoders == [("zlib", (("level", 9), ("memlevel", 8), ("wbits", 15)))]
    assert chosen == [0] * count


def test_zlib_ng_is_told_from_zlib() -> None:
    """The same level of the two libraries gives other bytes."""
    guest = text(20)
    encoders, chosen = found(guest, [zlib_ng.compress(block, 6) for block in blocks(guest)])
    assert encoders == [("zlib-ng", PARAMS)]
    assert chosen == [0] * 20


def test_a_stretch_that_no_sample_met_is_found_in_a_later_round() -> None:
    """Two units of another level between the samples get their own encoder."""
    guest = text(400)
    streams = [zlib.compress(block, 1 if k in {10, 11} else 6) for k, block in enumerate(blocks(guest))]
    encoders, chosen = found(guest, streams)
    assert [dict(params)["level"] for _, params in encoders] == [6, 1]  # type: ignore[call-overload]
    assert chosen == [1 if k in {10, 11} else 0 for k in range(400)]


def test_what_no_encoder_gives_is_minus_one() -> None:
    """Level 6 with a strategy that is not tried; one unit of zlib's among them is still found."""
    guest = text(40)
    odd = [zlib.compressobj(6, zlib.DEFLATED, 15, 8, zlib.Z_HUFFMAN_ONLY) for _ in range(40)]
    streams = [item.compress(block) + item.flush() for item, block in zip(odd, blocks(guest), strict=True)]
    assert found(guest, streams) == ([], [-1] * 40)
    streams[0] = zlib.compress(guest[:UNIT], 6)
    assert found(guest, streams) == ([("zlib", PARAMS)], [0] + [-1] * 39)


def test_a_damaged_unit_is_reported_even_where_no_encoder_is_known() -> None:
    """What `plain` raises for any one unit comes out."""
    units, _ = units_of([b"x"] * 100)

    def plain(unit: Packed) -> bytes:
        if unit.guest == 77 * UNIT:
            raise HostileInput("damaged")
        return bytes(UNIT)

    with pytest.raises(HostileInput, match="damaged"):
        reproduce("zlib", units, plain, lambda _: b"x", map)


def test_work_is_queued_in_windows() -> None:
    """No call of `each` gets more than 128 pieces of work, however many units there are."""
    seen: list[int] = []

    def each(work, items):  # type: ignore[no-untyped-def]
        items = list(items)
        seen.append(len(items))
        return map(work, items)

    block = text(1)
    packed = zlib.compress(block, 1)
    units = [Packed(0, UNIT, 0, len(packed))] * 9000
    assert reproduce("zlib", units, lambda _: block, lambda _: packed, each).chosen == [0] * 9000
    assert max(seen) == 128
    assert sum(seen) == -(-9000 // 32)


def test_no_units_need_no_encoder() -> None:
    """An empty disk."""
    assert found(b"", []) == ([], [])
    rows = UnitRows([], [], [], UNIT, 512)
    assert (rows.table_bytes, list(rows.encodes([]))) == (b"", [])
    assert [type(op) for _, op in rows.offsets(SECTORS, 0, 0, 0, bytes(400))] == [Series]


def sectors(stream: bytes) -> bytes:
    return stream + bytes(-len(stream) % 512)


def lay_out(order: Sequence[int], sizes: Sequence[int], gaps: dict[int, int]) -> tuple[list[int], list[int]]:
    """File offsets of units written in `order`, with `gaps[k]` bytes before the k-th, and the end."""
    starts, here = [], 1 << 16
    for number, size in enumerate(sizes):
        here += gaps.get(number, 0)
        starts.append(here)
        here += size
    return starts, [*starts[1:], here]


def check_tables(
    order: Sequence[int], gaps: dict[int, int], capacity: int, rule: OffsetRule
) -> list[Offsets]:
    """Positions of units in guest order come back from the ops; returns the Offsets."""
    dice = random.Random(3)
    sizes = [512 * dice.randrange(1, 9) for _ in order]
    starts, _ = lay_out(order, sizes, gaps)
    rows = UnitRows([k * UNIT for k in order], starts, sizes, UNIT, 512)
    entries = [0] * capacity
    for guest, start, size in zip(order, starts, sizes, strict=True):
        value = (
            start >> 9
            if rule is SECTORS
            else 1 << 62 | start | ((start + size - 1) // 512 - start // 512) << 54
        )
        entries[guest] = value
    raw = np.array(entries, f"{'<' if rule.endian == 'little' else '>'}u{rule.width}").tobytes()
    builder = OpsBuilder(len(raw))
    placed = list(rows.offsets(rule, 0, 0, 0, raw))
    for at, op in placed:
        builder.add(at, op)
    machine = Machine(
        {
            FILE: ReaderSpace(BytesReader(raw)),
            SIZES: ReaderSpace(BytesReader(rows.table_bytes)),
            3: OpsSpace(builder.finish()),
        },
        Rules((rows.table,), (rule,)),
    )
    assert machine.read(3, 0, len(raw)) == raw
    return [op for _, op in placed if isinstance(op, Offsets)]


@pytest.mark.parametrize("rule", [SECTORS, QCOW2])
def test_fragments_in_guest_order_are_one_op(rule: OffsetRule) -> None:
    """3,000 fragments with holes between them are one row: one op for their whole table."""
    order = [k for k in range(9000) if k % 3]
    assert len(check_tables(order, {}, 9000, rule)) == 1


@pytest.mark.parametrize("rule", [SECTORS, QCOW2])
def test_gaps_and_large_holes_start_new_rows(rule: OffsetRule) -> None:
    """A gap in the file, a hole of over 4,096 units, and a step back in the guest."""
    order = [*range(100, 200), *range(5000, 5100), *range(50)]
    assert len(check_tables(order, {40: 512}, 6000, rule)) == 4


def test_shuffled_units_have_no_offsets_worth_an_op() -> None:
    """Rows of one unit are left to the caller: an op costs more than the entries do."""
    order = random.Random(4).sample(range(500), 500)
    assert check_tables(order, {}, 500, SECTORS) == []


def test_interleaved_rows_keep_their_entries_apart() -> None:
    """A row whose holes another row fills: every entry is still right."""
    order = [*range(0, 300, 2), *range(1, 300, 2)]
    check_tables(order, {}, 300, SECTORS)
    check_tables([*range(0, 300, 2), *range(21, 40, 2)], {}, 300, SECTORS)


def test_size_tables_stay_in_proportion() -> None:
    """Holes that would make a table of far more entries than units start new rows instead."""
    for step, entries in ((1, 5000), (2, 9999), (200, 199 * 5000 + 4801), (300, 5000), (4097, 5000)):
        guests = [k * step * UNIT for k in range(5000)]
        rows = UnitRows(guests, [k * 512 for k in range(5000)], [512] * 5000, UNIT, 512)
        assert len(rows.table_bytes) == entries
        assert len(list(rows.encodes([0] * 5000))) == (1 if entries > 5000 or step == 1 else 5000)


def test_a_foreign_entry_is_left_to_the_caller() -> None:
    """Entries that the rule does not predict split the table, and nothing else."""
    sizes = [512] * 100
    rows = UnitRows([k * UNIT for k in range(100)], [k * 512 for k in range(100)], sizes, UNIT, 512)
    raw = np.arange(100, dtype="<u4")
    raw[40] = 1
    placed = list(rows.offsets(SECTORS, 7, 1000, 0, raw.tobytes()))
    assert placed == [(1000, Offsets(160, 7, 0, 0)), (1164, Offsets(236, 7, 41, 41 * 512))]


def test_encodes_give_the_units_back() -> None:
    """Encode ops over holes, a change of encoder and a unit that no encoder gives."""
    guest = text(60)
    kept = [k for k in range(60) if k % 5]
    levels = [6 if k < 30 else 1 for k in kept]
    streams = [
        sectors(zlib.compress(guest[k * UNIT : (k + 1) * UNIT], level))
        for k, level in zip(kept, levels, strict=True)
    ]
    chosen = [0 if level == 6 else 1 for level in levels]
    chosen[20] = -1
    sizes = [len(stream) for stream in streams]
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    rows = UnitRows([k * UNIT for k in kept], starts, sizes, UNIT, 512)
    file = b"".join(streams)
    builder = OpsBuilder(len(file))
    ops = list(rows.encodes(chosen))
    assert [type(op) for _, op in ops] == [Encode] * 3
    for at, op in ops:
        builder.add(at, op)
    rules = Rules((rows.table,), (), tuple(_rule(level) for level in (6, 1)))
    spaces: dict[int, Space] = {
        GUEST: ReaderSpace(BytesReader(guest)),
        FILE: ReaderSpace(BytesReader(file)),
        SIZES: ReaderSpace(BytesReader(rows.table_bytes)),
        3: OpsSpace(builder.finish()),
    }
    machine = Machine(spaces, rules)
    assert machine.read(3, 0, len(file)) == file
    for offset in range(0, len(file), 977):
        assert machine.read(3, offset, min(700, len(file) - offset)) == file[offset : offset + 700]


def _rule(level: int) -> EncodeRule:
    params = (("level", level), ("memlevel", 8), ("wbits", 15))
    return EncodeRule("zlib", params, GUEST, UNIT, 0, Framing(align=512))


def test_sizes_are_as_narrow_as_they_can_be() -> None:
    """One byte for grains in sectors, two for bytes below 64 KiB, four above."""
    assert UnitRows([0], [0], [255 * 512], UNIT, 512).table.width == 1
    assert UnitRows([0], [0], [256 * 512], UNIT, 512).table.width == 2
    assert UnitRows([0], [0], [65535], UNIT, 1).table.width == 2
    assert UnitRows([0], [0], [65536], UNIT, 1).table.width == 4


def test_units_that_make_no_sense_are_refused() -> None:
    """Units that overlap, go backwards, are empty, or are no multiple of the scale."""
    for starts, sizes in (([0, 511], [512, 512]), ([512, 0], [512, 512]), ([0], [0]), ([0], [700])):
        with pytest.raises(Unexplained):
            UnitRows([k * UNIT for k in range(len(starts))], starts, sizes, UNIT, 512)


def test_the_likeliest_candidates_come_first() -> None:
    """qemu's own parameters are tried before anything else, of both libraries."""
    assert candidates("zlib")[:2] == [("zlib", PARAMS), ("zlib-ng", PARAMS)]
    window = (("level", 6), ("memlevel", 9), ("wbits", -12))
    assert candidates("deflate12")[:2] == [("zlib", window), ("zlib-ng", window)]
