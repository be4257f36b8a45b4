"""The small release is what its description says; it is made once, with 4 MiB of files."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from rehydrator.variants.derivations import load_derivations
from tests.corpus.boot_files import ENTRY
from tests.corpus.release import DEFAULT
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
