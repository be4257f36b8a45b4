"""VHDX files are explained, or declined with a reason."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from rehydrator.core.digest import crc32c
from rehydrator.core.errors import Unexplained
from rehydrator.core.ops import Series
from rehydrator.core.reader import BytesReader
from rehydrator.formats import c_vhdx as c
from rehydrator.formats import explain, vhdx
from tests import vhdx_images as make
from tests.suites.explained import check_explanation, unexplained_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

DICE = random.Random(13)
MIB = c.MIB


def blocky(blocks: int, block: int = MIB, every: int = 1) -> bytes:
    """A guest disk whose every `every`-th block holds data, at its beginning."""
    parts = (DICE.randbytes(5000) if k % every == 0 else b"" for k in range(blocks))
    return b"".join(part.ljust(block, b"\0") for part in parts)


GUEST = blocky(5, every=2)


class SparseBytes(BytesReader):
    """Bytes that say where they are not zero, by pages of 4,096."""

    def data_spans(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self.size, 4096):
            if any(self._data[start : start + 4096]):
                yield start, min(4096, self.size - start)


def refused(data: bytes) -> str:
    with pytest.raises(Unexplained) as caught:
        vhdx.explain(BytesReader(data))
    return str(caught.value)


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def built(
    items: make.Items | None = None,
    headers: tuple[bytes, bytes] | None = None,
    regions: list[tuple[bytes, int, int, int]] | None = None,
) -> bytes:
    """A good disk but for what is given."""
    contents = {k: GUEST[k * MIB : (k + 1) * MIB] for k in (0, 2, 4)}
    bat, body = make.blocks(contents, 5, MIB)
    tables = None if regions is None else (make.regions(regions), make.regions(regions))
    return make.assemble(items or make.default_items(len(GUEST), MIB), bat, body, headers, tables)


def test_crc32c() -> None:
    """The check value of the catalogue of CRCs, and RFC 3720's example of 32 zeros."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


@pytest.mark.parametrize("empty", c.READ_AS_ZERO)
def test_dynamic_disk_in_shuffled_order(empty: int) -> None:
    """Absent, undefined, zero and unmapped blocks read as zeros."""
    file = BytesReader(make.vhdx(GUEST, seed=4, empty=empty))
    explained = vhdx.explain(file)
    check_explanation(explained, file, GUEST)
    assert sum(length for _, length in explained.guest.data_spans()) == 3 * MIB


def test_disk_of_4k_sectors_that_ends_inside_a_block() -> None:
    """The guest is as large as the metadata says."""
    guest = blocky(3)[: 2 * MIB + 4096]
    file = BytesReader(make.vhdx(guest, sector=4096))
    check_explanation(vhdx.explain(file), file, guest)


def test_larger_blocks() -> None:
    """A block of 4 MiB."""
    guest = blocky(2, 4 * MIB)
    file = BytesReader(make.vhdx(guest, 4 * MIB))
    explained = explain(file)
    check_explanation(explained, file, guest)
    assert (explained.format, explained.facts["block size"]) == ("vhdx", str(4 * MIB))


def test_fixed_disk_of_a_sparse_file_costs_what_it_holds() -> None:
    """Every block is present, and most of them are holes of the file; the BAT is a series."""
    guest = blocky(12, every=5)
    file = SparseBytes(make.vhdx(guest, every=True))
    explained = vhdx.explain(file)
    check_explanation(explained, file, guest)
    assert sum(length for _, length in explained.guest.data_spans()) == 3 * 8192
    assert Series(12 * 8, make.BLOCKS_AT | c.PRESENT, MIB, 8, "little") in explained.ops
    assert unexplained_bytes(explained) == make.BLOCKS_AT - 12 * 8


def test_sector_bitmap_entries_stand_between_chunks() -> None:
    """From 4 GiB on, every 4,096th entry of the BAT belongs to no payload block."""
    total = 2 * 4096 + 3
    contents = {k: DICE.randbytes(4096) for k in (4095, 4096, 4097, 8191, 8192, 8194)}
    bat, body = make.blocks(contents, total, MIB, seed=8)
    assert len(bat) == total + 2
    file = BytesReader(make.assemble(make.default_items(total * MIB, MIB), bat, body))
    explained = vhdx.explain(file)
    check_explanation(explained, file)
    assert explained.guest.size == total * MIB
    for number, data in contents.items():
        assert explained.guest.pread(number * MIB - 8, 4104)[8:] == data
    covered = sum(length for _, length in explained.guest.data_spans())
    assert covered == len(contents) * MIB


@pytest.mark.parametrize("order", [0, 1])
def test_higher_sequence_number_counts(order: int) -> None:
    """A dirty log of the other header is history."""
    old, new = make.header(7, log_id=b"L" * 16), make.header(8)
    headers = (old, new) if order else (new, old)
    file = BytesReader(built(headers=headers))
    check_explanation(vhdx.explain(file), file, GUEST)


def test_damaged_header_is_not_believed() -> None:
    """Its twin speaks, whatever the sequence numbers say: here the twin has a dirty log."""
    damaged = patched(make.header(9), 100, b"\x01")
    file = BytesReader(built(headers=(damaged, make.header(8))))
    check_explanation(vhdx.explain(file), file, GUEST)
    assert "dirty log" in refused(built(headers=(damaged, make.header(8, log_id=b"L" * 16))))


def test_damaged_region_table_is_not_believed() -> None:
    """Its copy is read."""
    good = built()
    file = BytesReader(patched(good, c.REGIONS_AT[0] + 40, b"\xff"))
    check_explanation(vhdx.explain(file), file, GUEST)
    assert "region table" in refused(patched(patched(good, 192 << 10, b"x"), 256 << 10, b"x"))


def test_unknown_things_that_are_not_required_are_ignored() -> None:
    """A region and a metadata item of another program."""
    items = make.default_items(len(GUEST), MIB) | {b"?" * 16: (b"hello", 0)}
    regions = [*make.default_regions(), (b"!" * 16, 0, 0, 0)]
    file = BytesReader(built(items=items, regions=regions))
    check_explanation(vhdx.explain(file), file, GUEST)


@pytest.mark.parametrize("data", [b"", b"vhdxfil", b"x" * 4096])
def test_other_files_are_not_recognised(data: bytes) -> None:
    """Recognising never raises."""
    assert not vhdx.recognise(BytesReader(data))


def test_refusals_of_headers_and_regions() -> None:
    """Everything that is not understood is declined, with the reason."""
    bat, metadata = make.default_regions()
    bad = make.header(9)[:-1] + b"\x01"
    assert "a header" in refused(c.SIGNATURE)
    assert "good checksum" in refused(built(headers=(bad, bad)))
    assert "one sequence number" in refused(built(headers=(make.header(9), make.header(9, b"L" * 16))))
    assert "version 2" in refused(built(headers=(make.header(9, version=2), make.header(8))))
    assert "dirty log" in refused(built(headers=(make.header(9, b"L" * 16), make.header(8))))
    assert "no BAT" in refused(built(regions=[metadata]))
    assert "no metadata" in refused(built(regions=[bat]))
    assert "two regions" in refused(built(regions=[bat, bat]))
    assert "unknown region" in refused(built(regions=[bat, metadata, (b"!" * 16, 0, 0, 1)]))
    assert "whole MiB" in refused(built(regions=[(c.BAT, 0, MIB, 1), metadata]))
    assert "whole MiB" in refused(built(regions=[(c.BAT, make.BAT_AT + 512, MIB, 1), metadata]))
    assert "outside" in refused(built(regions=[(c.BAT, 1 << 60, MIB, 1), metadata]))
    assert "overlap" in refused(built(regions=[bat, (c.METADATA, make.BAT_AT, MIB, 1)]))
    crowded = make.seal(c.REGIONS.pack(b"regi", 0, 1 << 31, 0).ljust(c.REGIONS_SIZE, b"\0"))
    assert "regions" in refused(patched(patched(built(), c.REGIONS_AT[0], crowded), c.REGIONS_AT[1], crowded))


def test_refusals_of_metadata() -> None:
    """Parents, sizes that make no sense, and what is unknown and required."""
    good = make.default_items(len(GUEST), MIB)

    def with_items(**changes: int) -> str:
        options = {"size": len(GUEST), "block": MIB} | changes
        return refused(built(items=make.default_items(**options)))

    assert "differencing" in with_items(flags=c.HAS_PARENT)
    assert "block size" in with_items(block=3 * MIB)
    assert "block size" in with_items(block=512)
    assert "block size" in with_items(block=512 * MIB)
    assert "sector size" in with_items(sector=1000)
    assert "a disk of" in with_items(size=0)
    assert "a disk of" in with_items(size=513)
    assert "a disk of" in with_items(size=1 << 60)
    assert "entries" in with_items(size=64 << 40)
    assert "fit the BAT" in with_items(size=1 << 40)
    assert "unknown metadata item" in refused(built(items=good | {b"?" * 16: (b"", 4)}))
    assert "parent" in refused(built(items=good | {c.PARENT_LOCATOR: (b"", 0)}))
    assert "no metadata item" in refused(built(items={c.FILE_PARAMETERS: good[c.FILE_PARAMETERS]}))
    assert "lies outside" in refused(built(items=good | {c.VIRTUAL_DISK_SIZE: (b"1234", 6)}))
    table = patched(built(), make.METADATA_AT, b"x")
    assert "no metadata table" in refused(table)
    assert "items" in refused(patched(built(), make.METADATA_AT + 10, b"\xff\xff"))
    entry = make.METADATA_AT + c.ITEMS.size
    assert "lies outside" in refused(patched(built(), entry + 16, b"\xff\xff\xff\xff"))
    assert "two metadata items" in refused(patched(built(), entry + 32, built()[entry : entry + 16]))


def test_refusals_of_blocks() -> None:
    """Blocks outside of the file, in the headers, on top of each other, of states for parents."""
    good = built()

    def with_entry(value: int) -> str:
        return refused(patched(good, make.BAT_AT, value.to_bytes(8, "little")))

    assert "state [7]" in with_entry(make.BLOCKS_AT | c.PARTIAL)
    assert "state [4]" in with_entry(4)
    assert "in the headers" in with_entry(c.PRESENT)
    assert "outside" in with_entry(len(good) | c.PRESENT)
    assert "outside" in with_entry((1 << 64) - MIB | c.PRESENT)
    assert "overlap" in with_entry(make.BLOCKS_AT + 2 * MIB | c.PRESENT)
    assert "outside" in refused(good[:-1])


def mutated(data: bytes, dice: random.Random) -> bytes:
    """Bits flipped where structures are, in half of the cases with good checksums."""
    damaged = bytearray(data)
    table = make.METADATA_AT
    places = (*c.HEADERS_AT, *c.REGIONS_AT, table, table, table + c.ITEMS_SIZE, make.BAT_AT)
    for _ in range(dice.randrange(1, 4)):
        damaged[dice.choice(places) + dice.randrange(100)] ^= 1 << dice.randrange(8)
    if dice.random() < 0.5:
        for at, size in [(at, c.HEADER_SIZE) for at in c.HEADERS_AT] + [
            (at, c.REGIONS_SIZE) for at in c.REGIONS_AT
        ]:
            damaged[at : at + size] = make.seal(bytes(damaged[at : at + size]))
    return bytes(damaged)


def test_damaged_structures_are_refused_or_explained_exactly() -> None:
    """300 flips: Unexplained or a right explanation, and nothing else."""
    dice = random.Random(6)
    outcomes = set()
    good = built()
    for _ in range(300):
        file = BytesReader(mutated(good, dice))
        try:
            explained = vhdx.explain(file)
        except Unexplained:
            outcomes.add("refused")
        else:
            check_explanation(explained, file)
            outcomes.add("explained")
    assert outcomes == {"refused", "explained"}
