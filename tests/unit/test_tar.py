"""Tar files that carry a disk are explained in place, or declined with a reason."""

from __future__ import annotations

import gzip
import io
import random
import re
import tarfile
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from rehydrator.core.errors import Unexplained
from rehydrator.core.ops import Copy, Op, Rules, Stream, StreamRule
from rehydrator.core.reader import BytesReader, WindowReader
from rehydrator.formats import c_tar as c
from rehydrator.formats import c_vhd, explain, tar
from rehydrator.formats.explanation import FILE, GUEST, LAYER, MAX_LAYERS, Unpacked
from rehydrator.store.files import FileReader
from tests import tar_images as make
from tests import vhd_images
from tests.suites.explained import check_explanation, check_guest, unexplained_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from rehydrator.core.reader import Reader

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


def nested(data: bytes, levels: int) -> bytes:
    for _ in range(levels):
        data = make.member(b"text") + make.member(data) + make.END
    return data


@pytest.mark.parametrize("around", range(tar.MAX_DEPTH))
@pytest.mark.parametrize("kind", ["raw", "vhd", "sparse"])
def test_tar_in_tar(kind: str, around: int) -> None:
    """A tar's disk is explained through every level, moved by the place of each."""
    guest = disk(300, every=2)
    if kind == "sparse":
        innermost = make.old_gnu(guest) + make.END
    else:
        member = guest if kind == "raw" else vhd_images.dynamic(guest, 4096, seed=1)
        innermost = make.member(member) + make.END
    file = BytesReader(nested(innermost, around))
    alone, explained = explain(BytesReader(innermost)), tar.explain(file)
    check_explanation(explained, file, guest)
    assert explained.format == "tar+" * around + alone.format
    assert unexplained_bytes(explained) == unexplained_bytes(alone) + file.size - len(innermost)


def test_tars_that_nest_too_deep() -> None:
    """One level more is declined, not followed; so are hundreds."""
    for levels in (tar.MAX_DEPTH + 1, 300):
        assert f"more than {tar.MAX_DEPTH} deep" in refused(nested(disk(4), levels))


def test_nested_tar_without_a_disk_stands_in_nobodys_way() -> None:
    """The disk beside it is the guest, though it is smaller; a damaged tar is left as well."""
    guest = disk(4)
    documents = make.member(b"text" * 5000) + make.END
    damaged = make.member(disk(100))[:-512]
    for other in (documents, damaged):
        file = BytesReader(make.member(other) + make.member(guest) + make.END)
        check_explanation(tar.explain(file), file, guest)
    assert "no member is a disk" in refused(make.member(documents) + make.END)
    assert "behind the end" in refused(make.member(damaged) + make.END)


def test_gzip_inside() -> None:
    """A compressed layer is taken apart by whoever can, wherever it stands, and explained in turn;
    where nobody can, there is no disk."""
    guest = disk(9)
    inner = make.member(guest) + make.END
    packed = gzip.compress(inner)
    rule = StreamRule("deflate.zlib", (("level", 9),), LAYER)
    ops: list[Op] = [
        Copy(10, FILE, 0),
        Stream(len(packed) - 18, 0, 0, len(inner)),
        Copy(8, FILE, len(packed) - 8),
    ]

    def unpack(file: Reader) -> Unpacked | None:
        is_packed = file.size >= len(packed) and file.pread(0, len(packed)) == packed
        plain = WindowReader(BytesReader(inner), 0, len(inner))
        return Unpacked("gzip", plain, ops, (rule,), {"gzip -9": "1.12"}) if is_packed else None

    layer = make.member(packed)
    for data, at in ((layer, 512), (make.member(layer + make.END), 1024)):
        file = BytesReader(data + make.END)
        found = explain(file, unpack=unpack)
        assert found.format == "tar+" * (at // 512) + "gzip+tar+raw"
        assert found.rules == Rules(streams=(rule,))
        assert [op for op in found.ops if isinstance(op, Stream)] == [ops[1]]
        assert sum(op.length for op in found.ops[: found.ops.index(ops[1])]) == at + 10
        assert [each.explanation.format for each in found.layers] == ["tar+raw"]
        assert found.guest.pread(0, found.guest.size) == guest
        with pytest.raises(Unexplained, match="no member is a disk"):
            explain(file)


def test_layers_have_a_limit() -> None:
    """Layers in layers end somewhere, also where each holds itself."""
    endless = WindowReader(BytesReader(bytes(7)), 0, 7)
    asked = []

    def unpack(file: Reader) -> Unpacked | None:
        asked.append(file)
        return Unpacked("gzip", endless, [Copy(7, FILE, 0)], (), {})

    with pytest.raises(Unexplained):
        explain(endless, unpack=unpack)
    assert len(asked) == MAX_LAYERS


def test_oci_archive() -> None:
    """An OCI layout as `--format=posix --sort=name` writes it, its members in any order, headers of
    times and extended attributes around them, sizes in pax records: the layer's disk is found."""
    guest = disk(200, every=3)
    dice = random.Random(3)
    for seed in range(20):
        image = vhd_images.dynamic(guest, 4096, seed=seed)
        attributes = {"mtime": "1.5", "SCHILY.xattr.user.x": "a\nb=c", "size": str(len(image))}
        lying = make.header(0, name=b"disk/x.vhd")
        parts = [
            make.header(0, b"5", name=b"disk/") + make.pax(attributes) + lying + make.padded(image),
            make.pax({"path": "b" * 200}) + make.member(b"text" * dice.randrange(99)),
        ]
        dice.shuffle(parts)
        layer = b"".join(parts) + make.END
        blobs = [
            make.pax({"size": str(len(layer)), "mtime": "1.25"}) + make.header(0) + make.padded(layer),
            make.member(b'{"imageLayoutVersion": "1.0.0"}', name=b"oci-layout"),
            make.member(b"{}" * dice.randrange(2000), name=b"index.json"),
            make.header(0, b"5", name=b"blobs/sha256/"),
        ]
        dice.shuffle(blobs)
        file = BytesReader(b"".join(blobs) + make.END + bytes(9216))
        explained = tar.explain(file)
        check_explanation(explained, file, guest)
        assert explained.format == "tar+tar+vhd"


def test_oci_archive_of_20_gib(tmp_path: Path) -> None:
    """Members over 8 GiB have their size in a pax record; only what is data is looked at."""
    size = 10 << 30
    inner, outer = tarfile.TarInfo("disk/disk.raw"), tarfile.TarInfo("blobs/sha256/0")
    inner.size = size
    head = inner.tobuf(tarfile.PAX_FORMAT)
    outer.size = len(head) + size + 1024
    above = outer.tobuf(tarfile.PAX_FORMAT)
    assert b"size=" in head
    assert b"size=" in above
    start = len(above) + len(head)
    with (tmp_path / "x.ociarchive").open("wb") as out:
        out.write(above + head + BOOT)
        out.seek(start + size - 512)
        out.write(b"end".ljust(512, b"\0"))
        out.truncate(start + size + 2048)
    with closing(FileReader(tmp_path / "x.ociarchive")) as file:
        explained = tar.explain(file)
        assert explained.ops == [Copy(start, FILE, 0), Copy(size, GUEST, 0), Copy(2048, FILE, start + size)]
        assert sum(length for _, length in explained.guest.data_spans()) < 64 << 10
        assert explained.guest.pread(size - 513, 4) == b"\0end"


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
