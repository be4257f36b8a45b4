"""Tar files that carry a disk are explained in place, or declined with a reason."""

from __future__ import annotations

import io
import random
import re
import tarfile

import pytest

from rehydrator.core.errors import Unexplained
from rehydrator.core.ops import Copy
from rehydrator.core.reader import BytesReader
from rehydrator.formats import c_tar as c
from rehydrator.formats import c_vhd, explain, tar
from rehydrator.formats.explanation import GUEST
from tests import tar_images as make
from tests import vhd_images
from tests.suites.explained import check_explanation, check_guest, unexplained_bytes

DICE = random.Random(21)
BOOT = bytes(510) + b"\x55\xaa"


def disk(sectors: int, every: int = 1) -> bytes:
    """A raw disk whose every `every`-th sector holds data."""
    rest = (DICE.randbytes(512) if k % every == 0 else bytes(512) for k in range(1, sectors))
    return BOOT + b"".join(rest)


def refused(data: bytes) -> str:
    with pytest.raises(Unexplained) as caught:
        tar.explain(BytesReader(data))
    return str(caught.value)


@pytest.mark.parametrize("flavour", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_raw_member_of_every_flavour(flavour: int) -> None:
    """Names too long for the header, times with fractions: only the headers are unexplained."""
    guest = disk(300)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=flavour) as archive:
        for name, data in (("description.ovf", b"<xml/>" * 99), ("d/" * 45 + "n" * 60, guest), ("z", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1.5 if flavour == tarfile.PAX_FORMAT else 1
            archive.addfile(info, io.BytesIO(data))
    file = BytesReader(out.getvalue())
    explained = explain(file)
    check_explanation(explained, file, guest)
    assert explained.format == "tar+raw"
    assert unexplained_bytes(explained) == file.size - len(guest)


def test_vhd_member_is_explained_in_its_place() -> None:
    """The member's own FILE bytes are moved to where they stand in the tar."""
    guest = disk(512, every=3)
    member = vhd_images.dynamic(guest, 4096, seed=1, gap=512)
    file = BytesReader(make.member(b"text") + make.member(member) + make.END)
    explained = tar.explain(file)
    check_explanation(explained, file, guest)
    assert explained.format == "tar+vhd"
    assert explained.facts["subformat"] == "dynamic"


def test_largest_disk_is_the_guest() -> None:
    """Other disks, before and after, stay as they are."""
    small, large = disk(10), disk(20)
    file = BytesReader(make.member(small) + make.member(large) + make.member(small) + make.END)
    explained = tar.explain(file)
    check_explanation(explained, file, large)


def test_next_disk_takes_over_from_one_that_is_declined() -> None:
    """A differencing VHD is no guest; the raw disk beside it is."""
    guest = disk(4)
    other = vhd_images.dynamic(disk(64), 4096, disk_type=c_vhd.DIFFERENCING)
    file = BytesReader(make.member(other) + make.member(guest) + make.END)
    check_explanation(tar.explain(file), file, guest)
    assert "differencing" in refused(make.member(other) + make.END)


def test_tar_in_tar_is_left() -> None:
    """Recursion goes one level deep."""
    inner = make.member(disk(4)) + make.END
    assert "no member is a disk" in refused(make.member(inner) + make.END)


@pytest.mark.parametrize("sectors", [2, 8, 50, 300])
@pytest.mark.parametrize("pack", [make.old_gnu, make.pax_01, make.pax_10])
def test_sparse_member(pack: object, sectors: int) -> None:
    """One extent, up to 4, up to 25, and more, in the three kinds of map."""
    guest = disk(sectors, every=2)
    assert callable(pack)
    file = BytesReader(pack(guest) + make.member(b"x") + make.END)
    explained = tar.explain(file)
    check_explanation(explained, file, guest)
    assert explained.format == "tar (sparse)+raw"
    copied = sum(op.length for op in explained.ops if isinstance(op, Copy) and op.space == GUEST)
    assert copied == sum(length for _, length in make.extents_of(guest))


def test_sparse_member_of_100_gib() -> None:
    """Offsets in base 256; nothing of the virtual size is made."""
    size = 100 << 30
    data = BOOT + b"end".ljust(512, b"\0")
    one = make.old_gnu(data, [(0, 1024)], binary=True)
    sparse = (
        b"\x80" + bytes(11) + b"\x80" + (512).to_bytes(11, "big") + b"\x80" + (size - 512).to_bytes(11, "big")
    )
    sparse += b"\x80" + (512).to_bytes(11, "big") + bytes(48) + b"\0" + b"\x80" + size.to_bytes(11, "big")
    head = make.header(1024, b"S", magic=make.GNU, sparse=sparse)
    file = BytesReader(head + one[512:] + make.END)
    explained = tar.explain(file)
    check_explanation(explained, file)
    assert explained.guest.size == size
    assert list(explained.guest.data_spans()) == [(0, 512), (size - 512, 512)]
    assert explained.guest.pread(size - 512, 3) == b"end"


def test_members_without_data_and_odd_ones() -> None:
    """Links and directories whose size field is not zero, global headers, base-256 sizes and
    signed checksums do not hide the disk."""
    guest = disk(9)
    data = (
        make.header(77, b"5", name=b"dir/")
        + make.header(88, b"1")
        + make.member(b"11 comment=\n"[:12], b"g")
        + make.member(b"y" * 1000, b"L", name=b"\xe9\xff", signed=True)
        + make.header(len(guest), b"7", binary=True)
        + guest
    )
    file = BytesReader(data)
    check_explanation(tar.explain(file), file, guest)


def test_pax_size_overrides_the_header() -> None:
    """As it must for files of 8 GiB and more."""
    guest = disk(5)
    data = make.pax({"size": str(len(guest)), "path": "a=b\nc"}) + make.header(0) + guest + make.END
    file = BytesReader(data)
    check_explanation(tar.explain(file), file, guest)


@pytest.mark.parametrize("data", [b"", b"ustar", bytes(512), make.header(0)[:-1], disk(3)])
def test_other_files_are_not_recognised(data: bytes) -> None:
    """Recognising never raises, and needs the magic."""
    assert not tar.recognise(BytesReader(data))


def test_wrong_checksum_is_not_recognised() -> None:
    """One changed byte, or a checksum that is no number."""
    block = make.header(0)
    assert tar.recognise(BytesReader(block))
    assert not tar.recognise(BytesReader(b"e" + block[1:]))
    assert not tar.recognise(BytesReader(block[:148] + b"99999999" + block[156:]))


def test_refusals() -> None:
    """Everything that is not understood is declined, with the reason."""
    guest = disk(9, every=2)
    good = make.old_gnu(guest)

    endless = bytes(504) + b"\1" + bytes(7)

    def sparse(*extents: tuple[int, int]) -> str:
        return refused(make.old_gnu(guest, extents))

    assert "no member is a disk" in refused(make.END)
    assert "no member is a disk" in refused(make.member(b"text") + make.END)
    assert "behind the end" in refused(make.member(guest)[:-512])
    assert "no header" in refused(make.member(guest) + b"x" * 512)
    assert "a header" in refused(make.member(guest) + b"x" * 100)
    assert "the number" in refused(make.seal(make.header(0)[:124] + b"-1".ljust(12) + make.header(0)[136:]))
    assert "the number" in refused(make.seal(make.header(0)[:124] + b"\xff" * 12 + make.header(0)[136:]))
    assert "more than" in refused(make.header(0) * (tar.MAX_MEMBERS + 1))
    assert "backwards" in sparse((1024, 512), (0, 512))
    assert "overlap" in sparse((0, 1024), (512, 512))
    assert "whole blocks" in sparse((0, 100), (512, 512))
    assert "its member" in sparse((len(guest), 512))
    assert "add up" in refused(make.seal(good[:124] + b"00000001000\0" + good[136:512]) + good[512:])
    assert "extension" in refused(make.seal(good[:482] + b"\1" + good[483:512]) + endless * 2)
    assert "bytes" in refused(make.seal(good[:483] + b"0" * 11 + good[494:512]) + good[512:])
    for records in (b"9 a=b\n", b"x a=b\n", b"6 a=bc", b"4 a\n", b"0 a=b\n", b"  "):
        assert re.search("pax header|number", refused(make.member(records, b"x")))
    whole = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "512"}
    for text in (b"", b"1\n", b"x\n" * 256, b"9" * 600, b"3\n1\n".ljust(512)):
        refused(make.pax(whole) + make.member(text) + make.END)
    assert "odd" in refused(make.pax({"GNU.sparse.map": "1,2,3", "GNU.sparse.size": "9"}) + make.member(b""))


def test_sparse_maps_of_another_version_are_left() -> None:
    """PAX 0.0 has a record a region; the packed bytes are no disk by themselves."""
    data = make.pax({"GNU.sparse.numblocks": "1", "GNU.sparse.offset": "0"}) + make.member(disk(4))
    assert "no member is a disk" in refused(data + make.END)


def mutated(data: bytes, headers: list[int], dice: random.Random) -> bytes:
    """Bits flipped in the headers, in half of the cases with good checksums."""
    damaged = bytearray(data)
    for _ in range(dice.randrange(1, 4)):
        damaged[dice.choice(headers) + dice.randrange(512)] ^= 1 << dice.randrange(8)
    if dice.random() < 0.5:
        for at in headers:
            if damaged[at + 257 : at + 262] == c.USTAR:
                damaged[at : at + 512] = make.seal(bytes(damaged[at : at + 512]))
    return bytes(damaged)


def test_damaged_headers_are_refused_or_explained_exactly() -> None:
    """300 flips for each kind of map: Unexplained or a right explanation, and nothing else."""
    dice = random.Random(4)
    guest = disk(90, every=2)
    outcomes = set()
    for pack, count in ((make.old_gnu, 4), (make.pax_01, 4), (make.pax_10, 4)):
        data = pack(guest) + make.member(disk(3)) + make.END
        for _ in range(300):
            file = BytesReader(mutated(data, [512 * k for k in range(count)], dice))
            try:
                explained = tar.explain(file)
            except Unexplained:
                outcomes.add("refused")
            else:
                check_explanation(explained, file)
                outcomes.add("explained")
    assert outcomes == {"refused", "explained"}


def test_guest_reader_of_a_member_is_random_access() -> None:
    """The guest of a member reads as the member does."""
    guest = disk(40)
    explained = tar.explain(BytesReader(make.member(b"first") + make.member(guest)))
    check_guest(explained, guest)
