"""Live media as CoreOS publishes them: kernel, initramfs, root filesystem, and the ISO that holds the three.

    live-rootfs     cpio: root.squashfs or root.erofs, whose first byte is byte 124; etc/coreos-live-rootfs
    live-initramfs  the disk's initramfs, and behind it a cpio of gzip -9 that knows the digests of the rootfs
    live-iso        images/pxeboot/{vmlinuz,initrd.img,rootfs.img}, slots for Ignition and the minimal ISO,
                    ISOLINUX and an EFI system partition; it starts from CD and from USB

Made twice, they are the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from tests.compat import sid
from tests.corpus.content import newc, write_newc
from tests.corpus.programs import run
from tests.corpus.release import EPOCH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.corpus.release import Release

_DIRECTORY, _REGULAR = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644
_PIECE = 2 << 20  # of the rootfs; the initramfs checks one after the other while it arrives
_MIB = 1 << 20
_SECTOR = 512
_IGNITION_SLOT, _MINISO_SLOT, _KARGS_SLOT = 256 << 10, 16 << 10, 1024
_NAMESPACE = UUID("00000000-0000-4000-a000-000000000002")
_MBR = "/usr/lib/ISOLINUX/isohdpfx.bin"
_ISOLINUX = ("/usr/lib/ISOLINUX/isolinux.bin", "/usr/lib/syslinux/modules/bios/ldlinux.c32")
_KERNEL_ARGUMENTS = "ignition.firstboot ignition.platform.id=metal"
# What a program has from the environment: the time, and nothing that contradicts an option.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
_WITH_TIME = {**_ENVIRONMENT, "SOURCE_DATE_EPOCH": str(EPOCH)}


@dataclass(frozen=True)
class Live:
    """What live media are made of: the kernel and initramfs of the disk, an EFI program, and the tree of
    the root filesystem; `owned` where the tree has the owners that the files are to have, not root."""

    kernel: Path
    initramfs: Path
    efi: Path
    tree: Path | None = None
    owned: bool = False


def live_files(release: Release, live: Live, *, rootfs: str | None, iso: bool) -> list[Path]:
    """Make kernel, initramfs, rootfs ("squashfs", "erofs" or None) and ISO of a release; list them."""
    kernel, initramfs = release.path("live-kernel", ""), release.path("live-initramfs", "img")
    shutil.copyfile(live.kernel, kernel)
    made = [kernel, initramfs]
    with tempfile.TemporaryDirectory(prefix=".work-", dir=release.directory) as name:
        work = Path(name)
        if rootfs:
            made.append(_rootfs(release, live, rootfs, work))
        _initramfs(release, live.initramfs, made[2:], initramfs)
        if iso:
            made.append(_iso(release, live, made, work / "iso"))
    return made


def make_rootfs(kind: str, tree: Path, target: Path, *, owned: bool) -> None:
    """Pack a tree as Fedora CoreOS does: squashfs of zstd, or EROFS of LZMA with fragments and clusters
    of 1 MiB (sid's mkfs.erofs, since Debian 12's has no LZMA)."""
    when = str(EPOCH)
    if kind == "squashfs":
        options = ["-comp", "zstd", "-Xcompression-level", "15", "-processors", "2"]
        options += ["-mkfs-time", when, "-all-time", when, "-noappend", "-quiet", "-no-progress"]
        options += [] if owned else ["-all-root"]
        run("mksquashfs", tree, target, *options, env=_ENVIRONMENT)
        return
    options = [f"-T{when}", f"-U{uuid5(_NAMESPACE, 'erofs')}", "-zlzma,6", "-Efragments", "-C1048576"]
    options += [] if owned else ["--all-root"]
    run(*sid.program("mkfs.erofs"), "--quiet", *options, target, tree, env=_ENVIRONMENT)


def _rootfs(release: Release, live: Live, kind: str, work: Path) -> Path:
    assert live.tree
    target, image, stamp = release.path("live-rootfs", "img"), work / f"root.{kind}", work / "stamp"
    make_rootfs(kind, live.tree, image, owned=live.owned)
    stamp.write_text(f"{release.name} {release.version}\n")
    members = {
        image.name: (_REGULAR, image),
        "etc": (_DIRECTORY, work),
        "etc/coreos-live-rootfs": (_REGULAR, stamp),
    }
    write_newc(target, members, EPOCH)
    image.unlink()
    return target


def _initramfs(release: Release, disks: Path, rootfs: list[Path], target: Path) -> None:
    """The disk's, and a second archive at a multiple of 4."""
    members = {"etc": (_DIRECTORY, b"")}
    members["etc/coreos-live-initramfs"] = (_REGULAR, f"{release.name} {release.version}\n".encode())
    for path in rootfs:
        members["etc/coreos-live-want-rootfs"] = (_REGULAR, "".join(_digests(path)).encode())
    data = disks.read_bytes()
    more = target.with_name(f".{target.name}.more")
    more.write_bytes(newc(members, EPOCH))
    packed = gzip_program(more, 9)
    more.unlink()
    target.write_bytes(data + bytes(-len(data) % 4) + packed)


def gzip_program(path: Path, level: int) -> bytes:
    """A file as GNU gzip packs it, without its name; the file is replaced by the packed one."""
    run("gzip", "-n", f"-{level}", path)
    packed = path.with_name(f"{path.name}.gz")
    data = packed.read_bytes()
    assert gzip.decompress(data)
    packed.rename(path)
    return data


def _digests(path: Path) -> Iterator[str]:
    yield f"sha256 {_PIECE}\n"
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield f"{hashlib.sha256(piece).hexdigest()}\n"


def _iso(release: Release, live: Live, made: list[Path], tree: Path) -> Path:
    target = release.path("live-iso", "iso")
    pxe = tree / "images/pxeboot"
    pxe.mkdir(parents=True)
    for name, path in zip(("vmlinuz", "initrd.img", "rootfs.img"), made, strict=False):
        os.link(path, pxe / name)
    _slots(tree)
    _efi_image(tree / "images/efiboot.img", live.efi)
    _isolinux(tree)
    for path in (tree, *tree.rglob("*")):
        os.utime(path, (EPOCH, EPOCH))
    volume = f"{release.name}-{release.version}"
    command = [
        "xorriso",
        "-as",
        "mkisofs",
        "-quiet",
        "-V",
        volume,
        "-volset",
        volume,
        "-r",
        "-J",
        "-joliet-long",
    ]
    command += ["-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat", "-no-emul-boot"]
    command += ["-boot-load-size", "4", "-boot-info-table", "-isohybrid-mbr", _MBR]
    command += ["-eltorito-alt-boot", "-e", "images/efiboot.img", "-no-emul-boot", "-isohybrid-gpt-basdat"]
    run(*command, "-o", target, tree, env=_WITH_TIME)
    for path in made:
        os.utime(path)
    return target


def _slots(tree: Path) -> None:
    """What coreos-installer fills in: an Ignition config, a table of the minimal ISO, kernel arguments."""
    (tree / "images/ignition.img").write_bytes(bytes(_IGNITION_SLOT))
    (tree / "coreos").mkdir()
    (tree / "coreos/miniso.dat").write_bytes(bytes(_MINISO_SLOT))
    (tree / "coreos/igninfo.json").write_text(json.dumps({"file": "images/ignition.img"}) + "\n")
    (tree / "coreos/features.json").write_text(json.dumps({"installer-config": True}) + "\n")


def _isolinux(tree: Path) -> None:
    folder = tree / "isolinux"
    folder.mkdir()
    for source in _ISOLINUX:
        shutil.copy(source, folder)
    start = (
        "serial 0 115200\ndefault linux\nprompt 0\nlabel linux\n  kernel /images/pxeboot/vmlinuz\n  append "
        "initrd=/images/pxeboot/initrd.img,/images/pxeboot/rootfs.img,/images/ignition.img "
    )
    text = start + _KERNEL_ARGUMENTS + " " + "#" * _KARGS_SLOT + "\n"
    (folder / "isolinux.cfg").write_text(text)
    file = {"path": "isolinux/isolinux.cfg", "offset": len(start), "end": "#"}
    size = len(_KERNEL_ARGUMENTS) + 1 + _KARGS_SLOT
    document = {"default": _KERNEL_ARGUMENTS, "files": [file], "size": size}
    (tree / "coreos/kargs.json").write_text(json.dumps(document) + "\n")


def _efi_image(target: Path, program: Path) -> None:
    """A FAT filesystem with the program that EFI machines start."""
    sectors = (program.stat().st_size // _MIB + 2) * _MIB // _SECTOR
    serial = uuid5(_NAMESPACE, "efiboot").hex[:8]
    copy = shutil.copy(program, target.with_name("BOOTX64.EFI"))
    os.utime(copy, (EPOCH, EPOCH))
    run(
        "mformat", "-i", target, "-C", "-T", str(sectors), "-N", serial, "-v", "EFIBOOT", "::", env=_WITH_TIME
    )
    run("mmd", "-i", target, "::EFI", "::EFI/BOOT", env=_WITH_TIME)
    run("mcopy", "-m", "-i", target, copy, "::EFI/BOOT/BOOTX64.EFI", env=_WITH_TIME)
    Path(copy).unlink()
