"""The small release is what its description says; it is made once, with 4 MiB of files, and once more
with live media and 4k disk."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import zlib
from typing import TYPE_CHECKING

import pytest

from rehydrator.variants.derivations import load_derivations
from tests.conftest import names_in, sha256
from tests.corpus.boot import MANIFEST
from tests.corpus.boot_files import ENTRY
from tests.corpus.live import Live, live_files
from tests.corpus.release import DEFAULT, Release
from tests.corpus.small import make_small

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
BOOT_OFFSET = 18 * MIB
CLOUD = 96 * MIB
CHECKED = ("qemu", "openstack", "ibmcloud", "nutanix", "aws", "hyperv")
DISKS = tuple(name for name in DEFAULT if name != "ibmcloud")  # its raw form has 100 GiB


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def file_of(directory: Path, platform: str) -> Path:
    return directory / f"demo-1.0.0-{platform}.x86_64.{load_derivations()[platform].extension}"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("small")
    make_small(directory, megabytes=4, cloud_mib=CLOUD // MIB)
    return directory


@pytest.fixture(scope="module")
def disks(release: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The raw disk inside of each file, taken out by qemu-img and tar."""
    work = tmp_path_factory.mktemp("disks")
    return {platform: raw_disk(file_of(release, platform), work / platform) for platform in DISKS}


def raw_disk(file: Path, work: Path) -> Path:
    work.mkdir()
    if file.suffix in {".ova", ".tar"}:
        run("tar", "-C", work, "-xf", file)
        file = next(work.glob("disk.*"))
    if file.suffix == ".raw":
        return file
    given = {".vhd": ["-f", "vpc"]}.get(file.suffix, [])
    run("qemu-img", "convert", *given, "-O", "raw", file, work / "guest")
    return work / "guest"


def pages(disk: Path) -> list[bytes]:
    data = disk.read_bytes()[:CLOUD].ljust(CLOUD, b"\0")
    return [data[at : at + 4096] for at in range(0, CLOUD, 4096)]


def test_files(release: Path) -> None:
    """The default release has a file of each platform, a kernel and an initramfs, and nothing else."""
    expected = {file_of(release, platform).name for platform in DEFAULT}
    expected |= {"demo-1.0.0-live-kernel.x86_64", "demo-1.0.0-live-initramfs.x86_64.img"}
    assert expected == {path.name for path in release.iterdir()}


@pytest.mark.parametrize("platform", CHECKED)
def test_check(release: Path, platform: str) -> None:
    """qemu-img finds no error in the image."""
    assert "No errors were found on the image." in run("qemu-img", "check", file_of(release, platform))


@pytest.mark.parametrize("platform", DISKS)
def test_stamp(disks: dict[str, Path], platform: str) -> None:
    """The boot loader entry inside the image names its platform, in a file system without errors."""
    boot = f"{disks[platform]}?offset={BOOT_OFFSET}"
    run("e2fsck", "-fn", boot)
    stamps = [word for word in run("debugfs", "-R", f"cat {ENTRY}", boot).split() if "platform.id" in word]
    assert [f"ignition.platform.id={platform}"] == stamps


@pytest.mark.parametrize("platform", [name for name in DISKS if name != "qemu"])
def test_siblings_differ_by_their_stamp(disks: dict[str, Path], platform: str) -> None:
    """Between one and sixteen pages of 4 KiB differ from qemu's disk."""
    differing = sum(a != b for a, b in zip(pages(disks["qemu"]), pages(disks[platform]), strict=True))
    assert differing in range(1, 17)


def test_sizes_that_differ(release: Path, disks: dict[str, Path]) -> None:
    """metal is not enlarged, the others have the cloud size, ibmcloud has 100 GiB."""
    assert disks["metal"].stat().st_size < CLOUD
    assert {CLOUD} == {disks[name].stat().st_size for name in DISKS if name != "metal"}
    assert f"({100 << 30} bytes)" in run("qemu-img", "info", file_of(release, "ibmcloud"))


# ---- live media and the 4k disk

LIVE = ("live-kernel.x86_64", "live-initramfs.x86_64.img", "live-rootfs.x86_64.img", "live-iso.x86_64.iso")
KERNEL, INITRAMFS, ROOTFS, ISO = (f"demo-1.0.0-{name}" for name in LIVE)
METAL, METAL4K = (f"demo-1.0.0-{name}.x86_64.raw" for name in ("metal", "metal4k"))
ROOT_AT = 124  # of root.squashfs in the cpio


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """metal, metal4k and all live media, published with the fastest compression."""
    directory = tmp_path_factory.mktemp("live")
    make_small(
        directory,
        ("metal",),
        megabytes=4,
        iso=True,
        rootfs="squashfs",
        four_k=True,
        compressed=True,
        level=1,
        document=True,
    )
    for name in (METAL, METAL4K):
        run("xz", "-dk", directory / f"{name}.xz")
    return directory


def squashfs(live: Path, target: Path) -> Path:
    """The squashfs inside of the rootfs."""
    data = (live / ROOTFS).read_bytes()
    target.write_bytes(data[ROOT_AT : ROOT_AT + int(data[54:62], 16)])
    return target


def test_published_names(live: Path) -> None:
    """Six files as CoreOS names them, and the document that has the disks."""
    expected = {KERNEL, INITRAMFS, ROOTFS, ISO, METAL, f"{METAL}.xz", METAL4K, f"{METAL4K}.xz", "stream.json"}
    assert set(names_in(live)) == expected
    document = json.loads((live / "stream.json").read_bytes())
    formats = document["architectures"]["x86_64"]["artifacts"]["metal"]["formats"]
    assert sorted(formats) == ["4k.raw.xz", "raw.xz"]


def test_rootfs(live: Path, tmp_path: Path) -> None:
    """A cpio whose first member is the squashfs, at byte 124; in it are the files of the disk, by the
    manifest, all of them root's."""
    with (live / ROOTFS).open("rb") as file:
        said = subprocess.run(["cpio", "-it", "--quiet"], stdin=file, check=True, capture_output=True)
    assert said.stdout.split() == [b"root.squashfs", b"etc", b"etc/coreos-live-rootfs"]
    image = squashfs(live, tmp_path / "image")
    assert "Compression zstd\n" in run("unsquashfs", "-s", image)
    run("unsquashfs", "-quiet", "-no-progress", "-d", tmp_path / "root", image)
    listed = (tmp_path / "root" / MANIFEST).read_text().splitlines()
    assert len(listed) > 20
    for line in listed:
        digest, path = line.split(maxsplit=1)
        assert sha256(tmp_path / "root" / path) == digest
    owners = {
        line.split()[1] for line in run("unsquashfs", "-lln", image).splitlines() if "squashfs-root" in line
    }
    assert owners == {"0/0"}


def test_initramfs(live: Path) -> None:
    """An early archive, uncompressed; the disk's own; and one by gzip -9 with the rootfs's digests."""
    data = (live / INITRAMFS).read_bytes()
    start = data.index(b"\x1f\x8b\x08")
    assert (data[:6], start % 512) == (b"070701", 0)
    assert b"kernel/x86/microcode/AuthenticAMD.bin\0" in data[:start]
    first = zlib.decompressobj(31)
    assert first.decompress(data[start:])[:6] == b"070701"
    second = gzip.decompress(first.unused_data.lstrip(b"\0"))
    rootfs = (live / ROOTFS).read_bytes()
    pieces = [rootfs[at : at + (2 << 20)] for at in range(0, len(rootfs), 2 << 20)]
    digests = "".join(f"{hashlib.sha256(piece).hexdigest()}\n" for piece in pieces)
    assert f"sha256 {2 << 20}\n{digests}".encode() in second


def test_iso(live: Path, tmp_path: Path) -> None:
    """The ISO has the three files' bytes, and starts BIOS and EFI machines from a CD and from a disk."""
    run("xorriso", "-osirrox", "on", "-indev", live / ISO, "-extract", "/", tmp_path / "iso")
    inside = tmp_path / "iso/images/pxeboot"
    for name, file in (("vmlinuz", KERNEL), ("initrd.img", INITRAMFS), ("rootfs.img", ROOTFS)):
        assert sha256(inside / name) == sha256(live / file)
    said = run("xorriso", "-indev", live / ISO, "-report_el_torito", "plain", "-report_system_area", "plain")
    started = [line.split()[6] for line in said.splitlines() if line.startswith("El Torito boot img")]
    assert started == ["BIOS", "UEFI"]
    assert "MBR isohybrid cyl-align-on GPT" in said
    assert "EFI/BOOT/BOOTX64.EFI" in run("mdir", "-b", "-/", "-i", tmp_path / "iso/images/efiboot.img")
    slot = json.loads((tmp_path / "iso/coreos/kargs.json").read_text())
    config = (tmp_path / "iso/isolinux/isolinux.cfg").read_bytes()
    [place] = slot["files"]
    found = config[place["offset"] : place["offset"] + slot["size"]].decode()
    assert found.rstrip("#").rstrip() == slot["default"]


def test_live_media_twice(live: Path, tmp_path: Path) -> None:
    """The same kernel, initramfs and tree are the same bytes, whatever their times are."""
    run("unsquashfs", "-quiet", "-no-progress", "-d", tmp_path / "root", squashfs(live, tmp_path / "image"))
    media = Live(live / KERNEL, live / INITRAMFS, live / KERNEL, tmp_path / "root")
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made.append(
            [
                sha256(path)
                for path in live_files(Release(tmp_path / name), media, rootfs="squashfs", iso=True)
            ]
        )
        run("find", tmp_path / "root", live / KERNEL, "-exec", "touch", "{}", "+")
    assert made[0] == made[1]
    assert made[0][2] == sha256(live / ROOTFS)


def test_four_k_disk(live: Path) -> None:
    """metal4k's partitions lie in sectors of 4,096 bytes, and its file systems are whole."""
    said = run("fdisk", "-b", "4096", "-l", live / METAL4K)
    assert "Disklabel type: gpt" in said
    lines = [line for line in said.splitlines() if line.startswith(str(live / METAL4K))]
    starts = [int(line.split()[1]) for line in lines]
    assert starts[:3] == [256, 512, 4608]
    boot, root = (f"{live / METAL4K}?offset={start * 4096}" for start in starts[2:])
    for part in (boot, root):
        run("e2fsck", "-fn", part)
    assert "Block size:               4096" in run("dumpe2fs", "-h", boot)
    assert "ignition.platform.id=metal4k" in run("debugfs", "-R", f"cat {ENTRY}", boot)
    assert "EFI/BOOT/BOOTX64.EFI" in run("mdir", "-b", "-/", "-i", f"{live / METAL4K}@@{512 * 4096}")


def test_four_k_disk_has_the_same_pages(live: Path) -> None:
    """Of the pages of metal's root file system nearly all are metal4k's, too."""
    first, second = (
        {data[at : at + 4096] for at in range(0, len(data), 4096)}
        for data in ((live / name).read_bytes() for name in (METAL, METAL4K))
    )
    assert len(first) > 1000
    assert len(second - first) < len(second) // 10
