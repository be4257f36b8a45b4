"""An initramfs is divided into its archives, and what is embedded in containers is found."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import subprocess
from collections import Counter

import pytest
from backports import zstd

from rehydrator.core.errors import HostileInput, LimitExceeded, RehydratorError, Unexplained
from rehydrator.core.reader import BytesReader
from rehydrator.formats import embedded, initramfs
from rehydrator.formats.decoding import Meter
from rehydrator.formats.embedded import Embedded
from rehydrator.formats.initramfs import Segment
from tests import iso_images
from tests.cpio_images import TRAILER, member

NOISE = random.Random(2).randbytes(4_000)
ARCHIVE = member(b"init", b"#!/bin/sh\n" * 500) + member(b"noise", NOISE) + TRAILER
MICROCODE = member(b"kernel/x86/microcode/GenuineIntel.bin", NOISE[:2048]) + TRAILER


def lz4_legacy(*blocks: bytes) -> bytes:
    """Blocks of literals alone."""
    out = bytes.fromhex("02214c18")
    for block in blocks:
        more = len(block) - 15
        packed = b"\xf0" + b"\xff" * (more // 255) + bytes([more % 255]) + block
        out += len(packed).to_bytes(4, "little") + packed
    return out


PACKED = {
    "gzip": gzip.compress(ARCHIVE, mtime=0),
    "xz": lzma.compress(ARCHIVE, check=lzma.CHECK_CRC32, preset=0),
    "zstd": zstd.compress(ARCHIVE),
    "bzip2": bz2.compress(ARCHIVE, 1),
    "lzma": lzma.compress(ARCHIVE, lzma.FORMAT_ALONE, preset=1),
    "lz4": lz4_legacy(ARCHIVE, ARCHIVE),
    "cpio": ARCHIVE,
}


def rows(raw: bytes) -> list[tuple[int, int, str]]:
    return [(one.offset, one.length, one.kind) for one in initramfs.segments(BytesReader(raw))]


def refused(raw: bytes) -> str:
    with pytest.raises(Unexplained) as caught:
        rows(raw)
    return str(caught.value)


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("padding", [0, 1, 4, 512])
def test_every_kind_is_divided(kind: str, padding: int) -> None:
    """Microcode, zeros, an archive of the kind, zeros, an appended archive, zeros."""
    body, last = PACKED[kind], PACKED["gzip"]
    gap = bytes(512 - len(MICROCODE) % 512)
    raw = MICROCODE + gap + body + bytes(padding) + last + bytes(padding)
    begin = len(MICROCODE) + len(gap)
    assert rows(raw) == [
        (0, len(MICROCODE), "cpio"),
        (begin, len(body), kind),
        (begin + len(body) + padding, len(last), "gzip"),
    ]


def test_members_streams_and_frames_are_segments() -> None:
    """Each of several in a row is one."""
    for kind in ("gzip", "xz", "zstd", "bzip2", "lz4"):
        size = len(PACKED[kind])
        assert rows(PACKED[kind] * 3) == [(k * size, size, kind) for k in range(3)]


def test_nothing_and_zeros_have_no_segment() -> None:
    """Neither is an error."""
    assert rows(b"") == rows(bytes(3 << 20)) == []


def test_a_gzip_header_with_a_name() -> None:
    """Its end is found."""
    out = io.BytesIO()
    with gzip.GzipFile("root.cpio", "wb", 9, out, 1) as target:
        target.write(ARCHIVE)
    assert rows(out.getvalue()) == [(0, len(out.getvalue()), "gzip")]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\x7fELF", "neither a cpio archive nor a compressed one at 0"),
        (ARCHIVE + b"junk", f"nor a compressed one at {len(ARCHIVE)}"),
        (PACKED["lz4"] + b"\xff", f"nor a compressed one at {len(PACKED['lz4'])}"),
    ],
)
def test_what_is_no_archive(raw: bytes, message: str) -> None:
    """It has the place."""
    assert message in refused(raw)


def test_rows_before_what_is_no_archive() -> None:
    """Come first."""
    found = initramfs.segments(BytesReader(ARCHIVE + b"junk"))
    assert next(found) == Segment(0, len(ARCHIVE), "cpio")
    with pytest.raises(Unexplained):
        next(found)


@pytest.mark.parametrize("kind", PACKED)
def test_truncations(kind: str) -> None:
    """A stream that is cut short is refused; of LZ4, one that is cut between blocks is shorter."""
    body = PACKED[kind]
    whole = len(lz4_legacy(ARCHIVE))
    for length in range(10, len(body) - 4, 197):
        if (kind, length) != ("lz4", whole):
            assert refused(body[:length])


def test_bombs_stop_at_the_limit() -> None:
    """A few KB that decode to 16 MiB, twice."""
    for pack in (gzip.compress, lzma.compress, zstd.compress, bz2.compress):
        bomb = pack(bytes(16 << 20))
        with pytest.raises(LimitExceeded):
            list(initramfs.segments(BytesReader(bomb * 2), Meter(25 << 20, len)))


def test_too_many_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused."""
    monkeypatch.setattr(initramfs, "MAX_SEGMENTS", 3)
    assert "more than 3 archives" in refused(PACKED["gzip"] * 4)
    assert len(rows(PACKED["gzip"] * 3)) == 3


def test_lz4_blocks_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame of ever more blocks is refused."""
    monkeypatch.setattr(initramfs, "_MAX_LZ4_BLOCKS", 3)
    assert "more than 3 blocks" in refused(lz4_legacy(*[ARCHIVE] * 4))


def test_the_beginning_of_a_stream() -> None:
    """Whatever comes behind it; none of what cannot be decoded here."""
    for kind, body in PACKED.items():
        expected = b"" if kind in ("cpio", "lz4") else ARCHIVE[:3000]
        assert initramfs.beginning(BytesReader(bytes(5) + body + NOISE), 5, 3000) == expected


def test_mutations() -> None:
    """Any bytes changed: divided, or refused; nothing else."""
    raw = MICROCODE + b"".join(body + bytes(8) for body in PACKED.values())
    dice, outcomes = random.Random(3), Counter[str]()
    for _ in range(1000):
        damaged = bytearray(raw)
        for _ in range(dice.randint(1, 4)):
            damaged[dice.randrange(len(raw))] = dice.randrange(256)
        file = BytesReader(bytes(damaged))
        try:
            found = list(initramfs.segments(file, Meter(1 << 20, len)))
            outcomes["good"] += 1
            assert all(one.offset + one.length <= len(raw) for one in found)
        except (HostileInput, LimitExceeded):
            outcomes["refused"] += 1
        embedded.embedded(file, 1 << 20)
    assert outcomes["refused"] > 100


@pytest.fixture(scope="module")
def systems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A squashfs and an EROFS, padded to 4 KiB as their makers leave them."""
    folder = tmp_path_factory.mktemp("systems")
    (folder / "root").mkdir()
    (folder / "root" / "file").write_bytes(NOISE)
    for command in (
        ["mksquashfs", "root", "squashfs", "-quiet", "-no-progress"],
        ["mkfs.erofs", "erofs", "root"],
    ):
        subprocess.run(command, check=True, cwd=folder, capture_output=True)
    return {name: (folder / name).read_bytes() for name in ("squashfs", "erofs")}


def squashfs_size(image: bytes) -> int:
    return int.from_bytes(image[40:48], "little")


def test_a_file_system_is_found_in_itself(systems: dict[str, bytes]) -> None:
    """Of its own size, without padding."""
    image = systems["squashfs"]
    expected = [Embedded(0, squashfs_size(image), "squashfs", b"")]
    assert embedded.embedded(BytesReader(image)) == expected
    assert embedded.embedded(BytesReader(systems["erofs"])) == [
        Embedded(0, len(systems["erofs"]), "erofs", b"")
    ]


def test_a_root_filesystem_in_a_cpio_archive(systems: dict[str, bytes]) -> None:
    """Fedora CoreOS: the live root filesystem is a member of an archive, as it lies."""
    raw = member(b"etc/version", b"42\n") + member(b"root.squashfs", systems["squashfs"]) + TRAILER
    at = raw.index(b"hsqs")
    assert embedded.embedded(BytesReader(raw)) == [
        Embedded(0, len(raw), "cpio", b""),
        Embedded(at, squashfs_size(systems["squashfs"]), "squashfs", b"root.squashfs"),
    ]


def test_everything_in_an_iso(systems: dict[str, bytes]) -> None:
    """Files of an ISO, and what lies in them; compressed archives, but not compressed anything."""
    rootfs = member(b"root.erofs", systems["erofs"]) + TRAILER
    initrd = MICROCODE + bytes(4) + PACKED["gzip"] + bytes(4) + PACKED["zstd"] + bytes(4) + PACKED["lz4"]
    module = lzma.compress(b"\x7fELF" + NOISE)
    tree: dict[bytes, iso_images.Node] = {
        b"IMAGES": {b"ROOTFS.IMG;1": rootfs, b"INITRD.IMG;1": initrd, b"MODULE.XZ;1": module},
        b"LIVE.SQUASHFS;1": systems["squashfs"],
    }
    made = iso_images.make(tree)
    at = {path.removesuffix(b";1"): place for path, place in made.places.items()}
    first = at[b"IMAGES/INITRD.IMG"]
    expected = [
        (first, len(MICROCODE), "cpio", b"IMAGES/INITRD.IMG"),
        (first + len(MICROCODE) + 4, len(PACKED["gzip"]), "gzip", b"IMAGES/INITRD.IMG"),
        (first + len(MICROCODE) + len(PACKED["gzip"]) + 8, len(PACKED["zstd"]), "zstd", b"IMAGES/INITRD.IMG"),
        (at[b"IMAGES/ROOTFS.IMG"], len(rootfs), "cpio", b"IMAGES/ROOTFS.IMG"),
        (made.image.index(systems["erofs"]), len(systems["erofs"]), "erofs", b"IMAGES/ROOTFS.IMG/root.erofs"),
        (at[b"LIVE.SQUASHFS"], squashfs_size(systems["squashfs"]), "squashfs", b"LIVE.SQUASHFS"),
    ]
    found = embedded.embedded(BytesReader(made.image))
    assert [(one.offset, one.length, one.kind, one.path) for one in found] == sorted(expected)


def test_containers_within_each_other(systems: dict[str, bytes]) -> None:
    """A few levels deep, and no further."""
    raw = systems["squashfs"]
    for _ in range(embedded.MAX_DEPTH):
        raw = member(b"in", raw) + TRAILER
    assert [one.kind for one in embedded.embedded(BytesReader(raw))] == ["cpio"] * 4 + ["squashfs"]
    raw = member(b"in", raw) + TRAILER
    assert [one.kind for one in embedded.embedded(BytesReader(raw))] == ["cpio"] * 5


def test_a_compressed_disk_is_worth_a_look() -> None:
    """An installer's disk image."""
    disk = gzip.compress(bytes(510) + b"\x55\xaa" + NOISE)
    raw = member(b"disk.img.gz", disk) + TRAILER
    assert [one.path for one in embedded.embedded(BytesReader(raw))] == [b"", b"disk.img.gz"]


def test_what_is_damaged_is_left_out(systems: dict[str, bytes]) -> None:
    """The rest is found all the same, and nothing is raised."""
    broken = systems["squashfs"][:4] + b"\xff" * 92
    raw = member(b"a", broken) + member(b"b", systems["squashfs"]) + TRAILER + b"junk" + ARCHIVE
    assert [one.path for one in embedded.embedded(BytesReader(raw))] == [b"", b"b"]


def test_limits_of_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond them is not found, which is no error."""
    raw = member(b"a", PACKED["gzip"]) + member(b"b", PACKED["xz"]) + TRAILER
    assert len(embedded.embedded(BytesReader(raw))) == 3
    assert len(embedded.embedded(BytesReader(raw), limit=len(ARCHIVE))) == 2
    monkeypatch.setattr(embedded, "MAX_LOOKS", 2)
    assert len(embedded.embedded(BytesReader(raw))) == 2
    monkeypatch.setattr(embedded, "MAX_FOUND", 1)
    assert len(embedded.embedded(BytesReader(raw))) == 1


def test_compatible_with_errors_of_this_package() -> None:
    """No reader raises anything else for noise."""
    dice = random.Random(8)
    for _ in range(300):
        raw = dice.choice(
            [b"070701", b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"(\xb5/\xfd", b"]\0\0"]
        ) + dice.randbytes(500)
        try:
            rows(raw)
        except RehydratorError:
            continue
        raise AssertionError(raw)
