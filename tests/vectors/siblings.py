"""Small siblings of every format, by qemu-img and tar, from one disk of a few MiB."""

from __future__ import annotations

import gzip
import random
import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
_CONVERT = {
    "qemu.qcow2": ("-O", "qcow2"),
    "nutanix.qcow2": ("-c", "-O", "qcow2"),
    "aws.vmdk": ("-O", "vmdk", "-o", "subformat=streamOptimized"),
    "azure.vhd": ("-O", "vpc", "-o", "subformat=dynamic,force_size"),
    "hyperv.vhdx": ("-O", "vhdx"),
}


def disk_bytes(mebibytes: int, seed: int = 5) -> bytes:
    """A disk with text, random bytes, zeros and repeated pages."""
    dice = random.Random(seed)
    words = [dice.randbytes(dice.randrange(3, 9)).hex() for _ in range(400)]
    pages = []
    for _ in range(mebibytes * MIB // 65536):
        kind = dice.randrange(4)
        if kind == 0:
            pages.append(bytes(65536))
        elif kind == 1:
            pages.append(dice.randbytes(16384) + bytes(49152))
        else:
            pages.append(" ".join(dice.choices(words, k=9000)).encode()[:65536].ljust(65536, b"\n"))
    return b"".join(pages)


def make_siblings(directory: Path, mebibytes: int = 3) -> None:
    """One release: a raw disk, what qemu-img makes of it, an OVA, and a shifted copy."""
    directory.mkdir(parents=True)
    raw = directory / "metal.raw"
    raw.write_bytes(disk_bytes(mebibytes))
    for name, options in _CONVERT.items():
        stamped = _stamped(raw, directory / "stamped", name)
        _run("qemu-img", "convert", "-f", "raw", *options, stamped, directory / name)
    _ova(directory)
    stamped.unlink()
    data = raw.read_bytes()
    (directory / "shifted.bin").write_bytes(b"odd" + data[:MIB] + b"an insertion" + data[MIB : 2 * MIB])


def make_published(directory: Path, disk: bytes) -> None:
    """A disk in an .xz of two blocks, with a signature beside it, and a sibling in a .gz by zlib."""
    raw = directory / "packet.raw"
    raw.write_bytes(disk)
    _run("xz", "-0", "-T2", f"--block-size={len(disk) // 2}", raw)
    directory.joinpath("packet.raw.xz.sig").write_bytes(b"signed by upstream")
    sibling = disk[:-5000] + b"another end".ljust(5000, b".")
    directory.joinpath("gcp.raw.gz").write_bytes(gzip.compress(sibling, 6, mtime=1))


def _stamped(raw: Path, target: Path, name: str) -> Path:
    """The raw disk with a few bytes of its own."""
    shutil.copyfile(raw, target)
    with target.open("r+b") as file:
        file.seek(70_000)
        file.write(f"platform={name}".encode())
    return target


def _ova(directory: Path) -> None:
    work = directory / "work"
    work.mkdir()
    shutil.copyfile(directory / "aws.vmdk", work / "disk.vmdk")
    (work / "disk.ovf").write_text("<Envelope/>\n")
    _run("tar", "--format=ustar", "--mtime=@1", "-C", work, "-cf", directory / "vmware.ova", *_members())
    shutil.rmtree(work)


def _members() -> tuple[str, str]:
    return "disk.ovf", "disk.vmdk"


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)
