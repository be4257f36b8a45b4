"""The canonical disk of the os release: a Debian that boots, from the package archive of this machine;
needs root. `rehydrator variants` makes the release of it (scripts/corpus)."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.corpus.boot import MARKER
from tests.corpus.boot_files import BootFiles
from tests.corpus.disk import Disk
from tests.corpus.programs import run
from tests.corpus.release import Release, live_files

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
    """Make the canonical qcow2 and the live media in `directory` and list them, the canonical first;
    `root` is a tree to be used up."""
    directory.mkdir(parents=True, exist_ok=True)
    release = Release(directory)
    canonical = release.path("canonical", "qcow2")
    with tempfile.TemporaryDirectory(prefix=".work-", dir=directory) as name:
        work = Path(name)
        tree = root or _install(work / "root")
        base = Disk(work / "base.raw", {"EFI-SYSTEM": _EFI, "boot": _BOOT, "root": _root_size(tree)})
        files = _boot_files(tree, base, release)
        kernel, initramfs = (
            shutil.copy(tree / f"boot{file}", work) for file in (files.kernel, files.initramfs)
        )
        _fill(base, tree, files)
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", base.path, canonical)
        return [canonical, *live_files(release, Path(kernel), Path(initramfs), iso=True)]


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
    base.make_efi({"EFI/BOOT/BOOTX64.EFI": tree / "usr/lib/grub/x86_64-efi/monolithic/grubx64.efi"})
    base.make_ext4("boot", tree / "boot")
    shutil.rmtree(tree / "boot")
    (tree / "boot").mkdir()
    image = base.path.with_suffix(".xfs")
    base.format_xfs("root", image)
    with _mounted(image) as root:
        run("cp", "-a", f"{tree}/.", root)
    base.place("root", image)
    base.embed_grub()


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
def _mounted(image: Path) -> Iterator[Path]:
    """Mount a filesystem through a loop device."""
    with tempfile.TemporaryDirectory() as name:
        run("mount", "-o", "loop", image, name)
        try:
            yield Path(name)
        finally:
            run("umount", name)
