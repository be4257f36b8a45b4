"""What GNU tar writes, with the options that release pipelines use, is explained."""

from __future__ import annotations

import random
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from rehydrator.formats import explain, tar
from rehydrator.store.files import FileReader
from tests.suites.explained import check_explanation, unexplained_bytes

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
OWNER = ["--owner=0", "--group=0"]


def make_disk(path: Path, pieces: int, size: int = 8 * MIB, tail: bytes = b"end") -> bytes:
    """A sparse raw disk with a boot sector and `pieces` stretches of data; its bytes."""
    dice = random.Random(pieces)
    with path.open("wb") as out:
        out.truncate(size)
        out.write(bytes(510) + b"\x55\xaa")
        for piece in range(1, pieces):
            out.seek(piece * size // pieces // 4096 * 4096)
            out.write(dice.randbytes(dice.choice((512, 4096, 5000))))
        out.seek(size - len(tail))
        out.write(tail)
    return path.read_bytes()


def pack(directory: Path, *arguments: str) -> Path:
    """The tar of GNU tar, beside the directory that it reads."""
    target = directory.parent / "made.tar"
    command = ["tar", *OWNER, "-C", str(directory), "-f", str(target), *arguments]
    subprocess.run(command, check=True)
    return target


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The directory that is packed."""
    made = tmp_path / "content"
    made.mkdir()
    return made


@pytest.mark.parametrize("pieces", [1, 3, 4, 5, 24, 25, 26, 47, 300])
@pytest.mark.parametrize(
    "options", ["--format=oldgnu", "--format=posix", "--format=posix --sparse-version=0.1"]
)
def test_sparse_disk(folder: Path, options: str, pieces: int) -> None:
    """GCP's `tar -Sch --format=oldgnu`, with up to 4, up to 25 and more extents; PAX as well."""
    guest = make_disk(folder / "disk.raw", pieces)
    path = pack(folder, "-Sch", *options.split(), "disk.raw")
    with closing(FileReader(path)) as file:
        explained = explain(file)
        check_explanation(explained, file, guest)
        assert explained.format == "tar (sparse)+raw"
        assert unexplained_bytes(explained) <= 10240 + 1024 + 24 * (pieces + 4) + 1024
        spans = list(explained.guest.data_spans())
        assert sum(length for _, length in spans) <= 8192 * (pieces + 1)


def test_sparse_disk_of_20_gib(folder: Path) -> None:
    """Sizes and offsets beyond 8 GiB are in base 256; the tar stays as small as the data."""
    size = 20 << 30
    path = folder / "disk.raw"
    with path.open("wb") as out:
        out.truncate(size)
        out.write(bytes(510) + b"\x55\xaa")
        out.seek(size - 4096)
        out.write(b"z" * 4096)
    with closing(FileReader(pack(folder, "-Sch", "--format=oldgnu", "disk.raw"))) as file:
        explained = explain(file)
        check_explanation(explained, file)
        assert explained.guest.size == size
        assert explained.guest.pread(size - 4097, 4097) == b"\0" + b"z" * 4096


def test_disk_without_holes(folder: Path) -> None:
    """`--sparse` writes a plain member where there is nothing to leave out."""
    guest = bytes(510) + b"\x55\xaa" + random.Random(1).randbytes(MIB - 512)
    (folder / "disk.raw").write_bytes(guest)
    with closing(FileReader(pack(folder, "-Sch", "--format=oldgnu", "disk.raw"))) as file:
        explained = explain(file)
        check_explanation(explained, file, guest)
        assert explained.format == "tar+raw"


@pytest.mark.parametrize("flavour", ["ustar", "posix", "oldgnu", "gnu"])
def test_plain_disk_in_every_flavour(folder: Path, flavour: str) -> None:
    """With a long name, a directory, a link and a small file around it."""
    deep = folder / ("d" * 60)
    deep.mkdir()
    guest = make_disk(deep / ("n" * 30), 9)
    (folder / "a.txt").write_text("text")
    (folder / "b.txt").symlink_to("a.txt")
    path = pack(folder, "-c", f"--format={flavour}", "a.txt", "b.txt", deep.name)
    with closing(FileReader(path)) as file:
        explained = explain(file)
        check_explanation(explained, file, guest)
        assert explained.format == "tar+raw"
        assert unexplained_bytes(explained) == file.size - len(guest)


def test_v7_is_not_recognised(folder: Path) -> None:
    """It has no magic, and a checksum alone is too little to tell it from a disk."""
    make_disk(folder / "disk.raw", 2)
    with closing(FileReader(pack(folder, "-c", "--format=v7", "disk.raw"))) as file:
        assert not tar.recognise(file)


@pytest.mark.parametrize(
    ("disk_format", "options"),
    [
        ("vmdk", "subformat=streamOptimized,adapter_type=lsilogic,compat6"),
        ("vmdk", "subformat=streamOptimized"),
        ("qcow2", "compat=1.1"),
        ("vpc", "force_size"),
        ("vpc", "subformat=fixed,force_size"),
        ("vhdx", "block_size=1M"),
    ],
)
def test_ova(folder: Path, disk_format: str, options: str) -> None:
    """ustar, the description first, then the disk in any format: explained as the disk alone
    is, and the guest is the same."""
    guest = make_disk(folder.parent / "disk.raw", 20)
    disk = folder / "disk.img"
    command = ["qemu-img", "convert", "-f", "raw", "-O", disk_format, "-o", options]
    subprocess.run([*command, str(folder.parent / "disk.raw"), str(disk)], check=True)
    (folder / "coreos.ovf").write_text("<Envelope/>" * 500)
    path = pack(folder, "-ch", "--format=ustar", "coreos.ovf", "disk.img")
    with closing(FileReader(disk)) as alone, closing(FileReader(path)) as file:
        inner, outer = explain(alone), explain(file)
        check_explanation(outer, file, guest)
        assert outer.format == f"tar+{inner.format}"
        around = file.size - alone.size
        assert unexplained_bytes(outer) == unexplained_bytes(inner) + around


def test_oci_archive(folder: Path) -> None:
    """KubeVirt's: GNU tar's pax layer with /disk/X.qcow2, attributes kept and times of access and
    change left out, in the tar of an OCI layout; everything but the headers is explained."""
    guest = make_disk(folder.parent / "disk.raw", 40)
    (folder / "disk").mkdir()
    disk = folder / "disk" / "demo.qcow2"
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(folder.parent / "disk.raw"), str(disk)]
    subprocess.run(command, check=True)
    posix = ["--format=posix", "--pax-option=delete=atime,delete=ctime", "--sort=name"]
    layer = pack(folder, "-c", *posix, "--acls", "--xattrs", "--no-selinux", "--owner=107", "disk")
    layout = folder.parent / "layout"
    (layout / "blobs" / "sha256").mkdir(parents=True)
    layer.rename(layout / "blobs" / "sha256" / ("7" * 64))
    for name in ("oci-layout", "index.json", f"blobs/sha256/{'0' * 64}", f"blobs/sha256/{'9' * 64}"):
        (layout / name).write_text('{"some": "json"}')
    path = pack(layout, "-c", "--sort=name", "--mtime=@1600000000", ".")
    with closing(FileReader(disk)) as alone, closing(FileReader(path)) as file:
        inner, outer = explain(alone), explain(file)
        check_explanation(outer, file, guest)
        assert outer.format == "tar+tar+qcow2"
        assert unexplained_bytes(outer) == unexplained_bytes(inner) + file.size - alone.size
