"""VHD files are explained, or declined with a reason."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from rehydrator.core.errors import Unexplained
from rehydrator.core.ops import Copy, Series
from rehydrator.core.reader import BytesReader
from rehydrator.formats import c_vhd as c
from rehydrator.formats import explain, vhd
from rehydrator.formats.explanation import FILE, GUEST
from tests import vhd_images as make
from tests.suites.explained import check_explanation, unexplained_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 64 << 10
DICE = random.Random(5)


def blocky(blocks: int, block: int = BLOCK, every: int = 1) -> bytes:
    """A guest disk whose every `every`-th block holds data."""
    return b"".join(DICE.randbytes(block) if k % every == 0 else bytes(block) for k in range(blocks))


def refused(data: bytes) -> str:
    with pytest.raises(Unexplained) as caught:
        vhd.explain(BytesReader(data))
    return str(caught.value)


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


class SparseBytes(BytesReader):
    """Bytes that say where they are not zero, by pages of 4,096."""

    def data_spans(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self.size, 4096):
            if any(self._data[start : start + 4096]):
                yield start, min(4096, self.size - start)


class HugeSparse:
    """A file of 10 GiB and a footer, of which one page is data."""

    size = (10 << 30) + 512

    def pread(self, offset: int, length: int) -> bytes:
        assert length < 1 << 20, "the virtual size was read"
        if offset == self.size - 512:
            return make.footer(self.size - 512, c.FIXED)
        return bytes(length)

    def data_spans(self) -> Iterator[tuple[int, int]]:
        yield 4 << 30, 4096
        yield self.size - 512, 512


def test_fixed_disk_is_the_guest_and_a_footer() -> None:
    """Only the 512 bytes of the footer are not given by a rule."""
    guest = blocky(3)
    file = BytesReader(make.fixed(guest))
    explained = vhd.explain(file)
    check_explanation(explained, file, guest)
    assert explained.ops == [Copy(len(guest), GUEST, 0), Copy(512, FILE, len(guest))]


def test_fixed_disk_of_a_sparse_file_costs_what_it_holds() -> None:
    """10 GiB with one page of data give one span, without reading the rest."""
    explained = vhd.explain(HugeSparse())
    assert explained.guest.size == 10 << 30
    assert list(explained.guest.data_spans()) == [(4 << 30, 4096)]


def test_fixed_disk_that_begins_like_a_dynamic_one() -> None:
    """The footer at the end decides: byte 0 of a fixed disk belongs to the guest."""
    guest = make.dynamic(blocky(2), BLOCK)
    file = BytesReader(make.fixed(guest))
    check_explanation(vhd.explain(file), file, guest)


@pytest.mark.parametrize("block", [512, 4096, BLOCK, 2 << 20])
def test_dynamic_disk(block: int) -> None:
    """Blocks of any size, in shuffled order, with holes."""
    guest = blocky(7, block, every=2)
    file = BytesReader(make.dynamic(guest, block, seed=block))
    explained = vhd.explain(file)
    check_explanation(explained, file, guest)
    assert explained.facts["block size"] == str(block)


def test_dynamic_disk_that_ends_inside_a_block() -> None:
    """The guest is as large as the footer says."""
    guest = blocky(3)[: 2 * BLOCK + 1536]
    file = BytesReader(make.dynamic(guest, BLOCK))
    check_explanation(vhd.explain(file), file, guest)


def test_block_table_in_order_is_a_series() -> None:
    """Footer twice, header, and nothing of the table or the bitmaps, is left unexplained."""
    guest = blocky(40, 4096)
    file = BytesReader(make.dynamic(guest, 4096, spare=60))
    explained = vhd.explain(file)
    check_explanation(explained, file, guest)
    assert unexplained_bytes(explained) == 512 + 1024 + 512
    assert Series(160, 4, 9, 4, "big") in explained.ops


def test_holes_of_the_block_table_are_a_series() -> None:
    """A table of 0xFFFFFFFF has step 0."""
    guest = bytes(100 * 4096)
    file = BytesReader(make.dynamic(guest, 4096))
    explained = vhd.explain(file)
    check_explanation(explained, file, guest)
    assert Series(512, c.UNUSED, 0, 4, "big") in explained.ops
    assert list(explained.guest.data_spans()) == []


def test_sector_bitmaps_of_all_kinds() -> None:
    """A bitmap is explained as far as it is regular, and changes no guest byte."""
    guest = blocky(6)
    for bitmap in (bytes, random.Random(1).randbytes, lambda n: b"\xff" * 100 + bytes(n - 100)):
        file = BytesReader(make.dynamic(guest, BLOCK, bitmap=bitmap))
        check_explanation(vhd.explain(file), file, guest)


def test_rubbish_between_blocks_stays() -> None:
    """What no structure claims is FILE."""
    guest = blocky(4)
    file = BytesReader(make.dynamic(guest, BLOCK, seed=3, gap=1024))
    explained = vhd.explain(file)
    check_explanation(explained, file, guest)
    assert unexplained_bytes(explained) >= 4 * 1024


def test_guest_spans_are_those_of_the_file() -> None:
    """A hole of the file inside an allocated block is a hole of the disk."""
    guest = bytes(4096) + b"x" * 4096 + bytes(BLOCK - 8192) + bytes(BLOCK) + b"y" * BLOCK
    file = SparseBytes(make.dynamic(guest, BLOCK))
    explained = vhd.explain(file)
    check_explanation(explained, file, guest)
    assert sum(length for _, length in explained.guest.data_spans()) <= 4 * 4096 + BLOCK


def test_lost_footer_is_replaced_by_its_copy() -> None:
    """A dynamic disk whose last sector is gone is read by the copy at byte 0."""
    guest = blocky(3)
    file = BytesReader(make.dynamic(guest, BLOCK)[:-512])
    assert vhd.recognise(file)
    check_explanation(vhd.explain(file), file, guest)


def test_recognised_through_the_table_of_formats() -> None:
    """VHD comes before raw, though its guest has a boot sector."""
    guest = bytes(510) + b"\x55\xaa" + bytes(512)
    assert explain(BytesReader(make.fixed(guest))).format == "vhd"


@pytest.mark.parametrize("data", [b"", b"conectix", bytes(512), make.footer(0, c.FIXED)[:-1]])
def test_other_files_are_not_recognised(data: bytes) -> None:
    """No footer, no VHD; and recognising never raises."""
    assert not vhd.recognise(BytesReader(data))


def test_wrong_checksum_is_not_recognised() -> None:
    """A footer is believed only with its checksum."""
    data = make.fixed(bytes(1024))
    assert not vhd.recognise(BytesReader(patched(data, len(data) - 400, b"\x01")))


def test_refusals() -> None:
    """Everything that is not understood is declined, with the reason."""
    guest = blocky(3)
    good = make.dynamic(guest, BLOCK)
    foot = make.footer(len(guest), c.DYNAMIC, 512)
    table = 1536

    def with_header(entries: int = 3, block: int = BLOCK, at: int = table) -> bytes:
        return patched(good, 512, make.header(at, entries, block))

    assert "differencing" in refused(make.dynamic(guest, BLOCK, disk_type=c.DIFFERENCING))
    assert "disk type 9" in refused(make.dynamic(guest, BLOCK, disk_type=9))
    assert "version" in refused(guest + make.footer(len(guest), c.FIXED, version=0x20000))
    assert "no bytes" in refused(make.fixed(b""))
    assert "outside" in refused(foot + good[512:-512] + make.footer(1, c.DYNAMIC, 1 << 62))
    assert "no dynamic header" in refused(patched(good, 512, b"cxsparsf"))
    assert "checksum" in refused(patched(good, 600, b"\x01"))
    assert "block size" in refused(with_header(block=3 * 512))
    assert "block size" in refused(with_header(block=0))
    assert "fit" in refused(with_header(entries=2))
    assert "entries" in refused(with_header(entries=0xFFFFFFFF))
    assert "block table" in refused(with_header(at=1 << 40))
    assert "block table" in refused(with_header(at=1537))
    assert "overlap" in refused(patched(good, table, good[table + 4 : table + 8]))
    assert "outside" in refused(patched(good, table, b"\x7f\0\0\0"))
    assert "outside" in refused(good[: len(good) // 2])


def mutated(data: bytes, tables: int, dice: random.Random) -> bytes:
    """Some bits flipped in the first `tables` bytes or in the footer; in half of the cases
    with good checksums, so that the damage reaches what lies behind them."""
    damaged = bytearray(data)
    for _ in range(dice.randrange(1, 4)):
        at = dice.choice((dice.randrange(tables), len(data) - 512 + dice.randrange(100)))
        damaged[at] ^= 1 << dice.randrange(8)
    if dice.random() < 0.5:
        for start in (0, len(data) - 512):
            damaged[start : start + 512] = make.seal(bytes(damaged[start : start + 512]), c.FOOTER_CHECKSUM)
        damaged[512:1536] = make.seal(bytes(damaged[512:1536]), c.HEADER_CHECKSUM)
    return bytes(damaged)


def test_damaged_headers_are_refused_or_explained_exactly() -> None:
    """300 flips: Unexplained or a right explanation, and nothing else."""
    dice = random.Random(9)
    data = make.dynamic(blocky(9, 4096, every=2), 4096, seed=2)
    outcomes = set()
    for _ in range(300):
        file = BytesReader(mutated(data, 1536 + 64, dice))
        try:
            explained = vhd.explain(file)
        except Unexplained:
            outcomes.add("refused")
        else:
            check_explanation(explained, file)
            outcomes.add("explained")
    assert outcomes == {"refused", "explained"}
