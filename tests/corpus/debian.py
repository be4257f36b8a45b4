"""The canonical disks of the os release: a Debian that boots, from the package archive of this machine,
and the same for sectors of 4,096 bytes; live media of it; needs root. `rehydrator variants` makes the
release of them (scripts/corpus)."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.corpus.boot import MARKER
from tests.corpus.boot_files import BootFiles
from tests.corpus.disk import BIG_SECTOR, MIB, SECTOR, Disk, Partition
from tests.corpus.live import Live, live_files
from tests.corpus.programs import run
from tests.corpus.release import Release

if TYPE_CHECKING:
    from collections.abc import Iterator

# About 650 MB once installed, near the release that measurements.md describes.
_PACKAGES = """
linux-image-cloud-amd64 systemd-sysv udev dbus cloud-init podman openssh-server python3
iproute2 iputils-ping isc-dhcp-client netbase ca-certificates curl less sudo locales
xfsprogs e2fsprogs grub-efi-amd64-bin
"""
_SOURCES = ("/etc/apt/sources.list", "/etc/apt/sources.list.d")
# The sizes of CoreOS; the root partition is estimated from the tree, with CoreOS's 35 percent to spare.
_EFI, _BOOT, _SPARE = 127, 384, 1.35
_EFI_PROGRAM = "EFI/BOOT/BOOTX64.EFI"

_UNIT = f"""[Unit]
Description=Say on the serial console that the system is up
After=systemd-user-sessions.service

[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo "{MARKER} $(cat /proc/cmdline)" >/dev/ttyS0'

[Install]
WantedBy=multi-user.target
"""


def make_base(directory: Path, *, root: Path | None = None) -> list[Path]:
    """Make the canonical qcow2 in `directory`; `root` is a tree to be used up."""
    directory.mkdir(parents=True, exist_ok=True)
    release = Release(directory)
    canonical = release.path("canonical", "qcow2")
    with _work(directory) as work:
        tree = root or _install(work / "root")
        base = Disk(work / "base.raw", {"EFI-SYSTEM": _EFI, "boot": _BOOT, "root": _root_size(tree)})
        files = _boot_files(tree, base, release)
        _fill(base, tree, files)
        return [_as_qcow2(base.path, canonical)]


def make_four_k(directory: Path) -> list[Path]:
    """Make the canonical disk for sectors of 4,096 bytes beside the other one, with the same files and
    identifiers; its file systems are new, since XFS and FAT know the size of sectors. It has no GRUB
    for BIOS, which cannot start from such disks."""
    release = Release(directory)
    with _work(directory) as work, _opened(release.path("canonical", "qcow2"), work) as base:
        sizes = {label: part.length // MIB for label, part in base.partitions.items() if label != "BIOS-BOOT"}
        disk = Disk(work / "base4k.raw", sizes, sector=BIG_SECTOR)
        disk.make_efi({_EFI_PROGRAM: base.efi})
        disk.make_ext4("boot", base.boot)
        _make_root(disk, base.root)
        return [_as_qcow2(disk.path, release.path("canonical4k", "qcow2"))]


def make_live(directory: Path, base: Path, *, rootfs: str) -> list[Path]:
    """Make the live media of the canonical disk in the directory `base`."""
    directory.mkdir(parents=True, exist_ok=True)
    with _work(directory) as work, _opened(Release(base).path("canonical", "qcow2"), work) as disk:
        (kernel,), (initramfs,) = (disk.boot.glob("vmlinuz-*"), disk.boot.glob("initrd.img-*"))
        live = Live(kernel, initramfs, disk.efi, disk.root, owned=True)
        return live_files(Release(directory), live, rootfs=rootfs, iso=True)


@dataclass(frozen=True)
class _Opened:
    """A canonical disk: its partitions, what is mounted of it, and its EFI program."""

    partitions: dict[str, Partition]
    root: Path
    boot: Path
    efi: Path


@contextlib.contextmanager
def _opened(canonical: Path, work: Path) -> Iterator[_Opened]:
    """Mount a canonical disk, which nothing changes."""
    raw, efi = work / "opened.raw", work / "opened.efi"
    run("qemu-img", "convert", "-O", "raw", canonical, raw)
    parts = {
        each["name"]: Partition(each["start"] * SECTOR, each["size"] * SECTOR)
        for each in json.loads(run("sfdisk", "--json", raw))["partitiontable"]["partitions"]
    }
    run("mcopy", "-m", "-i", f"{raw}@@{parts['EFI-SYSTEM'].offset}", f"::{_EFI_PROGRAM}", efi)
    with (
        _mounted(raw, f"ro,norecovery,nouuid,offset={parts['root'].offset}") as root,
        _mounted(raw, f"ro,noload,offset={parts['boot'].offset},sizelimit={parts['boot'].length}") as boot,
    ):
        yield _Opened(parts, root, boot, efi)


@contextlib.contextmanager
def _work(directory: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=".work-", dir=directory) as name:
        yield Path(name)


def _as_qcow2(raw: Path, target: Path) -> Path:
    """Under its name when it is whole."""
    made = raw.with_suffix(".qcow2")
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, made)
    return made.replace(target)


def _install(tree: Path) -> Path:
    """A Debian tree. The archive's release file may be past its date on a machine that stood still."""
    sources = [file for place in _SOURCES for file in _source_files(Path(place))]
    include = "--include=" + ",".join(_PACKAGES.split())
    expired = '--aptopt=Acquire::Check-Valid-Until "false"'
    run("mmdebstrap", "--variant=minbase", expired, include, "bookworm", tree, *sources)
    return tree


def _source_files(place: Path) -> list[Path]:
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    return [file for file in files if file.suffix in {".list", ".sources"} and file.is_file()]


def _root_size(tree: Path) -> int:
    """MiB."""
    return int(int(run("du", "-sm", "--exclude=./boot", tree).split()[0]) * _SPARE)


def _boot_files(tree: Path, base: Disk, release: Release) -> BootFiles:
    kernel = next((tree / "boot").glob("vmlinuz-*")).name
    initramfs = kernel.replace("vmlinuz", "initrd.img")
    # No data source is asked for: cloud-init would look for one for minutes.
    arguments = f"ro root=UUID={base.uuid('root')} cloud-init=disabled"
    return BootFiles(f"/{kernel}", f"/{initramfs}", arguments, release.version)


def _fill(base: Disk, tree: Path, files: BootFiles) -> None:
    """Configure the tree and put it into the partitions."""
    _write(tree / "boot", files.tree())
    _write(tree, _configuration(base))
    wanted = tree / "etc/systemd/system/multi-user.target.wants/say-up.service"
    wanted.symlink_to("../say-up.service")
    base.make_efi({_EFI_PROGRAM: tree / "usr/lib/grub/x86_64-efi/monolithic/grubx64.efi"})
    base.make_ext4("boot", tree / "boot")
    shutil.rmtree(tree / "boot")
    (tree / "boot").mkdir()
    _make_root(base, tree)
    base.embed_grub()


def _make_root(disk: Disk, tree: Path) -> None:
    image = disk.path.with_suffix(".xfs")
    disk.format_xfs("root", image)
    with _mounted(image, "nouuid") as root:
        run("cp", "-a", f"{tree}/.", root)
    disk.place("root", image)


def _configuration(base: Disk) -> dict[str, str]:
    mounts = (("root", "/ xfs defaults 0 0"), ("boot", "/boot ext4 defaults 0 2"))
    return {
        "/etc/fstab": "".join(f"UUID={base.uuid(label)} {how}\n" for label, how in mounts),
        "/etc/hostname": "demo\n",
        "/etc/systemd/system/say-up.service": _UNIT,
    }


def _write(tree: Path, files: dict[str, str]) -> None:
    for inside, text in files.items():
        target = tree / inside[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


@contextlib.contextmanager
def _mounted(image: Path, options: str = "rw") -> Iterator[Path]:
    """Mount a filesystem through a loop device."""
    with tempfile.TemporaryDirectory() as name:
        run("mount", "-o", f"loop,{options}", image, name)
        try:
            yield Path(name)
        finally:
            run("umount", name)
