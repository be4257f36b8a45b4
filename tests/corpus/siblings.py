"""The files of a release, made from one raw disk that no platform owns yet."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.corpus.platforms import PLATFORMS, Release, publish, run, virtual_size

if TYPE_CHECKING:
    from collections.abc import Callable


def make_sibling(base: Path, platform: str, release: Release, stamp: Callable[[Path, str], None]) -> Path:
    """Copy the disk, grow it (the backup partition table stays where it was), stamp it, convert it."""
    with tempfile.TemporaryDirectory(dir=base.parent) as name:
        disk = Path(name, "disk")
        run("cp", "--sparse=always", base, disk)
        run("truncate", "-s", str(virtual_size(PLATFORMS[platform], release, base.stat().st_size)), disk)
        stamp(disk, platform)
        return publish(disk, platform, release)


def live_files(release: Release, kernel: Path, initramfs: Path, *, iso: bool) -> list[Path]:
    """The kernel, the initramfs with a stamp appended, and the ISO that holds both."""
    image, memory = release.path("live-kernel", ""), release.path("live-initramfs", "img")
    shutil.copyfile(kernel, image)
    memory.write_bytes(initramfs.read_bytes() + bytes(512) + f"live {release.version}\n".encode())
    return [image, memory, _iso(release, image, memory)] if iso else [image, memory]


def _iso(release: Release, kernel: Path, initramfs: Path) -> Path:
    target = release.path("live-iso", "iso")
    inside = ["/images/pxeboot/vmlinuz", str(kernel), "/images/pxeboot/initrd.img", str(initramfs)]
    graft = [f"{name}={file}" for name, file in zip(inside[::2], inside[1::2], strict=True)]
    run(
        "xorriso", "-as", "mkisofs", "-quiet", "-V", "demo", "-R", "-J", "-graft-points", "-o", target, *graft
    )
    return target
