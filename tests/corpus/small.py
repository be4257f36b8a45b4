"""The small release: seconds, no root, no network, no loop mounts."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.corpus import boot
from tests.corpus.boot_files import BootFiles
from tests.corpus.content import choose_files, copy_files, kernel_like
from tests.corpus.disk import MIB, Disk
from tests.corpus.release import DEFAULT, Release, live_files, make_variants

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_XFS_LEAST = 304  # MiB; mkfs.xfs 6.1 refuses filesystems below 300
_OSTREE = "/ostree/demo-5891b5b522d5df08"


@dataclass(frozen=True)
class _Kernel:
    """Kernel and initramfs, and where the copies for /boot come from."""

    image: Path
    initramfs: Path


def make_small(
    directory: Path,
    platforms: Sequence[str] = DEFAULT,
    *,
    megabytes: int = 64,
    filesystem: str = "ext4",
    arch: str = "x86_64",
    seed: int = 0,
    cloud_mib: int = 1024,
    bootable: bool = False,
    live: bool = True,
    iso: bool = False,
    compressed: bool = False,
    document: bool = False,
    files: Mapping[str, str] | None = None,
    editor: str = "auto",
) -> list[Path]:
    """Make the release in `directory` and list its files; `files` of the guest are on every disk.

    `megabytes` of real files fill the root filesystem. With `bootable` the disks start the machine's
    own kernel through GRUB and print `boot.MARKER`. `live` adds kernel and initramfs, `iso` an ISO.
    With `document` stream.json stays, which names the disks.
    """
    directory.mkdir(parents=True, exist_ok=True)
    release = Release(directory, cloud_mib * MIB, arch=arch, compress=compressed, editor=editor)
    with tempfile.TemporaryDirectory(prefix=".work-", dir=directory) as name:
        work = Path(name)
        chosen = choose_files(megabytes * MIB, seed)
        kernel = _kernel(work, chosen, megabytes, filesystem, bootable=bootable)
        texts = BootFiles(
            f"{_OSTREE}/vmlinuz",
            f"{_OSTREE}/initramfs.img",
            f"rw root=UUID=demo ostree={_OSTREE}/0 panic=10",
            release.version,
        )
        base = _base_disk(work, chosen, kernel, texts, megabytes, filesystem, seed, bootable=bootable)
        made = make_variants(base.path, release, platforms, files)
        if not document:
            (directory / "stream.json").unlink()
        if live:
            made += live_files(release, kernel.image, kernel.initramfs, iso=iso)
    return made


def _kernel(work: Path, chosen: list[Path], megabytes: int, filesystem: str, *, bootable: bool) -> _Kernel:
    kernel = _Kernel(work / "vmlinuz", work / "initramfs.img")
    if bootable:
        image, modules = boot.newest_kernel()
        shutil.copyfile(image, kernel.image)
        kernel.initramfs.write_bytes(boot.boot_initramfs(modules, filesystem))
    else:
        size = megabytes * MIB // 16
        kernel.image.write_bytes(kernel_like(chosen, size))
        kernel.initramfs.write_bytes(kernel_like(chosen[::-1], 2 * size)[512:])
    return kernel


def _base_disk(
    work: Path,
    chosen: list[Path],
    kernel: _Kernel,
    files: BootFiles,
    megabytes: int,
    filesystem: str,
    seed: int,
    *,
    bootable: bool,
) -> Disk:
    """The disk that no platform owns yet."""
    loaded = (kernel.image.stat().st_size + kernel.initramfs.stat().st_size) // MIB
    root_size = max(megabytes * 3 // 2 + 16, _XFS_LEAST if filesystem == "xfs" else 0)
    disk = Disk(work / "base.raw", {"EFI-SYSTEM": 16, "boot": loaded * 5 // 4 + 12, "root": root_size}, seed)
    disk.make_efi({"EFI/demo/shim.efi": chosen[0], "EFI/BOOT/BOOTX64.EFI": chosen[-1]})
    disk.make_ext4("boot", _boot_tree(work / "boot", kernel, files))
    make_root = disk.make_xfs if filesystem == "xfs" else disk.make_ext4
    make_root("root", _root_tree(work / "root", chosen))
    if bootable:
        disk.embed_grub()
    return disk


def _boot_tree(tree: Path, kernel: _Kernel, files: BootFiles) -> Path:
    for inside, text in files.tree().items():
        target = tree / inside[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    for inside, source in ((files.kernel, kernel.image), (files.initramfs, kernel.initramfs)):
        target = tree / inside[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return tree


def _root_tree(tree: Path, chosen: list[Path]) -> Path:
    copy_files(chosen, tree)
    manifest = tree / boot.MANIFEST
    manifest.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for file in chosen[:: len(chosen) // 50 + 1]:
        inside = file.relative_to("/")
        lines.append(f"{hashlib.sha256((tree / inside).read_bytes()).hexdigest()}  {inside}\n")
    manifest.write_text("".join(lines))
    return tree
