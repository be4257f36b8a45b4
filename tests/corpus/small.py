"""The small release: seconds, no root, no network, no loop mounts."""

from __future__ import annotations

import hashlib
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.corpus import boot
from tests.corpus.boot_files import BootFiles
from tests.corpus.content import choose_files, copy_files, kernel_like, newc
from tests.corpus.disk import BIG_SECTOR, MIB, SECTOR, Disk
from tests.corpus.live import Live, gzip_program, live_files
from tests.corpus.release import DEFAULT, Release, make_variants

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_XFS_LEAST = 304  # MiB; mkfs.xfs 6.1 refuses filesystems below 300
_FOLDER, _REGULAR = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644
_OSTREE = "/ostree/demo-5891b5b522d5df08"


@dataclass(frozen=True)
class _Trees:
    """What the file systems hold; programs of EFI are files, too."""

    boot: Path
    root: Path
    chosen: list[Path]


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
    rootfs: str | None = None,
    four_k: bool = False,
    compressed: bool = False,
    level: int = 0,
    tools: Sequence[Path] = (),
    document: bool = False,
    files: Mapping[str, str] | None = None,
    editor: str = "auto",
) -> list[Path]:
    """Make the release in `directory` and list its files; `files` of the guest are on every disk.

    `megabytes` of real files fill the root filesystem. With `bootable` the disks start the machine's
    own kernel through GRUB and print `boot.MARKER`. `live` adds kernel and initramfs, `rootfs` the root
    filesystem ("squashfs" or "erofs"), `iso` an ISO of what is there; `four_k` adds metal4k. The outer
    compression has `level`, 0 for upstream's. The platforms are made in turn by this machine's programs and
    by those of each folder of `tools` (tests/corpus/tools.py). With `document` stream.json
    stays, which names the disks.
    """
    directory.mkdir(parents=True, exist_ok=True)
    release = Release(directory, cloud_mib * MIB, arch=arch, compress=compressed, level=level, editor=editor)
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
        trees = _Trees(_boot_tree(work / "boot", kernel, texts), _root_tree(work / "root", chosen), chosen)
        base = _base_disk(work / "base.raw", trees, megabytes, filesystem, seed)
        if bootable:
            base.embed_grub()
        large = (
            _base_disk(work / "base4k.raw", trees, megabytes, filesystem, seed, BIG_SECTOR)
            if four_k
            else None
        )
        wanted = [*platforms, "metal4k"] if large else platforms
        turns = [None, *tools]
        made = []
        for number, folder in enumerate(turns[: len(wanted)]):
            group = wanted[number :: len(turns)]
            made += make_variants(base.path, release, group, files, large.path if large else None, folder)
        if not document:
            (directory / "stream.json").unlink()
        if live:
            media = Live(kernel.image, kernel.initramfs, chosen[-1], trees.root)
            made += live_files(release, media, rootfs=rootfs, iso=iso)
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
        kernel.initramfs.write_bytes(_early() + _packed(work / "initramfs.cpio", chosen[::-1], 5 * size))
    return kernel


def _early() -> bytes:
    """The archive with microcode that stands before the compressed one, as dracut makes it."""
    folder = "kernel/x86/microcode"
    members = {"early_cpio": (_REGULAR, b"1\n")}
    members |= {str(path): (_FOLDER, b"") for path in (*reversed(Path(folder).parents), Path(folder))[1:]}
    members[f"{folder}/AuthenticAMD.bin"] = (_REGULAR, b"microcode of nobody's processor " * 512)
    data = newc(members)
    return data + bytes(-len(data) % 512)


def _packed(work: Path, files: list[Path], size: int) -> bytes:
    """About `size` bytes of files in a cpio, by gzip."""
    members = {}
    for file in files:
        members[file.name] = (_REGULAR, file.read_bytes())
        size -= file.stat().st_size
        if size < 0:
            break
    work.write_bytes(newc(members))
    return gzip_program(work, 9)


def _base_disk(
    path: Path, trees: _Trees, megabytes: int, filesystem: str, seed: int, sector: int = SECTOR
) -> Disk:
    """The disk that no platform owns yet."""
    loaded = sum(path.stat().st_size for path in trees.boot.rglob("*") if path.is_file()) // MIB
    root_size = max(megabytes * 3 // 2 + 16, _XFS_LEAST if filesystem == "xfs" else 0)
    sizes = {"EFI-SYSTEM": 16, "boot": loaded * 5 // 4 + 12, "root": root_size}
    disk = Disk(path, sizes, seed, sector)
    disk.make_efi({"EFI/demo/shim.efi": trees.chosen[0], "EFI/BOOT/BOOTX64.EFI": trees.chosen[-1]})
    disk.make_ext4("boot", trees.boot)
    make_root = disk.make_xfs if filesystem == "xfs" else disk.make_ext4
    make_root("root", trees.root)
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
