"""What a block device is, as the kernel tells it, and why it must not be written to.

Everything is read from sysfs and procfs (kernel Documentation/ABI/stable/sysfs-block and
filesystems/proc.rst); nothing is opened but loop devices, to be asked for their files. What other
mount namespaces use is seen only when the device is opened exclusively
(block_device.open_for_writing).
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rehydrator.core.errors import LimitExceeded, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

# sysfs counts sizes in these, whatever the device's sectors are.
_UNIT: Final = 512
_LARGEST_SECTOR: Final = 64 << 10
_MANY: Final = 4
# Of a number of 64 bits.
_DIGITS: Final = 20
_LONGEST_MODEL: Final = 200
_KINDS: Final = (
    (stat.S_ISREG, "a regular file"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)
# Where a disk hangs, by a part of its path in sysfs; the first that fits.
_TRANSPORTS: Final = (
    ("/usb[0-9]+/", "usb"),
    ("/nvme", "nvme"),
    ("/mmc_host/", "mmc"),
    ("/session[0-9]+/", "iscsi"),
    ("/rport-", "fc"),
    ("/virtio[0-9]+/", "virtio"),
    ("/vbd-", "xen"),
    ("/vmbus", "hyper-v"),
    ("/ata[0-9]+/", "sata"),
    ("/end_device-", "sas"),
    ("/block/loop", "loop"),
    ("/block/dm-", "device mapper"),
    ("/block/md", "raid"),
    ("/virtual/", "virtual"),
)
_GPT: Final = b"EFI PART"
_SECTORS: Final = (512, 4096)
# How much of an image `misfit` wants to see.
BEGINNING: Final = 2 * _SECTORS[-1]


@dataclass(frozen=True, slots=True)
class Device:
    """A block device. `path` is what was named, `node` the same without symlinks; size and logical
    sector in bytes; `partitions` are names. It may be written to where `why_not` is empty."""

    path: Path
    size: int
    sector: int
    model: str
    transport: str
    whole: bool
    why_not: list[str]
    node: Path
    number: tuple[int, int] = (0, 0)
    partitions: list[str] = field(default_factory=list)
    # Of this disk since the system was started: another one in the same slot has another number.
    sequence: str = ""

    def __str__(self) -> str:
        return str(self.path) if self.path == self.node else f"{self.path} ({self.node})"


def inspect(path: Path) -> Device:
    """What the kernel says of the device `path`. What is no block device has size 0, and `why_not`
    says so.

    Raises:
        UsageError: there is nothing of that name, or it cannot be looked at.
    """
    try:
        status = path.stat()
        node = Path(os.path.realpath(path, strict=True))
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{path}: {said}; lsblk lists the disks that are there") from None
    if not stat.S_ISBLK(status.st_mode):
        kind = next((name for fits, name in _KINDS if fits(status.st_mode)), "something else")
        reason = f"it is {kind}, not a block device; lsblk lists the disks that are there"
        return Device(path, 0, 0, "", "", False, [reason], node)
    return described(path, node, status.st_rdev)


def described(
    path: Path, node: Path, number: int, sysfs: Path = Path("/sys"), proc: Path = Path("/proc")
) -> Device:
    """The device of that number (st_rdev), as sysfs and procfs under these directories tell."""
    major, minor = os.major(number), os.minor(number)
    folder = sysfs / "dev" / "block" / f"{major}:{minor}"
    whole = folder.is_dir() and not (folder / "partition").exists() and not _partition_by_mapper(folder)
    parts = _parts(folder) if whole else []
    sector = _sector(folder)
    size = _number(folder / "size") * _UNIT // (sector or 1) * sector
    reasons = _why_not(folder, node, size, sector) + _uses([folder, *parts], sysfs, proc)
    return Device(
        path,
        size,
        sector,
        _model(folder),
        _transport(folder),
        whole,
        reasons,
        node,
        (major, minor),
        [_name(part) for part in parts],
        _text(folder / "diskseq"),
    )


def is_there(device: Device) -> bool:
    """Whether the kernel still has it: not where it was unplugged."""
    major, minor = device.number
    return Path(f"/sys/dev/block/{major}:{minor}").exists()


def check(device: Device, size: int) -> None:
    """Refuse a device that cannot take an image of `size` bytes, before anybody is asked.

    Raises:
        UsageError: it must not be written to; all reasons are named.
        LimitExceeded: it is too small.
    """
    if device.why_not:
        raise UsageError(f"{device}: nothing was written: {'; '.join(device.why_not)}")
    if device.size < size:
        raise LimitExceeded(
            f"{device}: it has {_size(device.size)}, and the image needs {_size(size)}; name a larger disk"
        )


def misfit(device: Device, beginning: bytes) -> str:
    """Why an image that begins so (BEGINNING bytes of it) will not boot from the device; "" where
    nothing speaks against it. The header of a GPT is in the second sector (UEFI 2.10, 5.3.2), so an
    image is for sectors of one size."""
    made = next((each for each in _SECTORS if beginning[each : each + len(_GPT)] == _GPT), 0)
    if made and made != device.sector:
        return (
            f"the image is made for sectors of {made} bytes and {device} has {device.sector}: "
            "it will not boot from there"
        )
    if not made and device.sector != _UNIT and beginning[510:512] == b"\x55\xaa":
        return (
            f"the image has a partition table that counts in sectors, most likely of {_UNIT} bytes, "
            f"and {device} has {device.sector}: it will hardly boot from there"
        )
    return ""


def confirmation(device: Device, warnings: list[str] | None = None) -> list[str]:
    """The lines that a terminal user is asked before the device is written to; the answer is yes."""
    about = ", ".join(each for each in (device.model, device.transport, _listed(device.partitions)) if each)
    lines = [f"{device}: {_size(device.size)} {about or 'disk'}; everything on it is lost."]
    lines += [f"warning: {each}" for each in warnings or []]
    return [*lines, "Type yes to write it:"]


def _listed(partitions: list[str]) -> str:
    if not partitions:
        return "no partitions"
    more = ", …" if len(partitions) > _MANY else ""
    return f"{len(partitions)} partition{'s' * (len(partitions) > 1)} ({', '.join(partitions[:_MANY])}{more})"


def _size(size: int) -> str:
    """In the units of everything else that the program says, and exactly: disks are sold by the
    decimal ones."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << power:
            return f"{size / (1 << power):.1f} {unit} ({size} bytes)"
    return f"{size} bytes"


def _why_not(folder: Path, node: Path, size: int, sector: int) -> list[str]:
    """What speaks against a device by itself."""
    if not folder.is_dir():
        return [f"{folder} is missing, so that a disk cannot be told from a partition; mount sysfs there"]
    reasons = []
    if (folder / "partition").exists():
        disk = node.parent / _name(folder.resolve().parent)
        reasons.append(f"it is partition {_number(folder / 'partition')} of {disk}; name the whole disk")
    elif _partition_by_mapper(folder):
        reasons.append("it is a partition that kpartx made; name the whole disk")
    if _number(folder / "ro"):
        reasons.append("it is read-only; look for a switch at the card or stick, or blockdev --setrw")
    if not size:
        reasons.append("it has no medium (0 bytes); insert one")
    elif not _UNIT <= sector <= _LARGEST_SECTOR or sector & (sector - 1):
        reasons.append(f"it has sectors of {sector} bytes, which is no power of two up to {_LARGEST_SECTOR}")
    if _text(_queue(folder) / "zoned") == "host-managed":
        reasons.append("its zones must be written in order (host-managed); name another disk")
    return reasons


def _uses(folders: list[Path], sysfs: Path, proc: Path) -> list[str]:
    """Who uses a disk, or partitions of it."""
    names = {_text(folder / "dev"): _name(folder) for folder in folders}
    reasons = []
    for number, place in _mounts(proc):
        if number in names:
            reasons.append(f"{names[number]} is mounted at {place}; umount it first")
    swaps = [f"{names[each]} is used as swap; swapoff it first" for each in _swaps(proc) if each in names]
    held = [
        f"{_name(folder)} is held by {_held_by(sysfs, holder)}"
        for folder in folders
        for holder in sorted(_entries(folder / "holders"))
    ]
    loops = [
        f"{names[number]} is held by {_name(loop)}; losetup -d it first"
        for number, loop in _loops(sysfs)
        if number in names
    ]
    return [*reasons, *swaps, *held, *loops]


def _held_by(sysfs: Path, holder: str) -> str:
    """A holder, and how it lets go."""
    folder = sysfs / "class" / "block" / holder
    if (folder / "md").is_dir():
        return f"the RAID {_printable(holder)}; mdadm --stop it first"
    name, kind = _text(folder / "dm" / "name"), _text(folder / "dm" / "uuid").partition("-")[0]
    ways = {"LVM": "vgchange -an its volume group", "CRYPT": "cryptsetup close it"}
    return f"{name or _printable(holder)}; {ways.get(kind, 'dmsetup remove it')} first"


def _mounts(proc: Path) -> Iterator[tuple[str, str]]:
    """Device number and place of each mount of ours (proc_pid_mountinfo(5): the third field and the
    fifth). btrfs shows a number of its own there, so what the source field names counts as well."""
    for line in _lines(proc / "self" / "mountinfo"):
        fields, _, more = line.partition(" - ")
        known = fields.split(" ")
        if len(known) > 4:
            place = _printable(_unescaped(known[4]))
            source = _block_number(_unescaped(more.split(" ")[1])) if more.count(" ") else ""
            for number in {known[2], source} - {""}:
                yield number, place


def _swaps(proc: Path) -> Iterator[str]:
    """Device numbers of swap areas; files among them are on file systems that are mounted."""
    for line in _lines(proc / "swaps")[1:]:
        number = _block_number(_unescaped(line.split(" ")[0].split("\t")[0]))
        if number:
            yield number


def _loops(sysfs: Path) -> Iterator[tuple[str, Path]]:
    """Device numbers that loop devices stand on: the kernel does not take those for held."""
    for name in _entries(sysfs / "block"):
        if name.startswith("loop"):
            number = _block_number(_text(sysfs / "block" / name / "loop" / "backing_file"))
            if number:
                yield number, sysfs / "block" / name


# Linux, include/uapi/linux/loop.h: LOOP_GET_STATUS64, and struct loop_info64, whose first two
# numbers are the file's device and inode.
_LOOP_STATUS: Final = 0x4C05
_LOOP_INFO: Final = 232


def loops_on(status: os.stat_result, sysfs: Path = Path("/sys"), devices: Path = Path("/dev")) -> list[Path]:
    """The loop devices that stand on a file, by what the kernel says of each: the name of its file,
    which may be that of another mount namespace, and its number, which some file systems (btrfs,
    overlayfs) show otherwise than stat() does."""
    file = (status.st_dev, status.st_ino)
    names = sorted(name for name in _entries(sysfs / "block") if name.startswith("loop"))
    return [devices / name for name in names if file in _files_below(sysfs / "block" / name, devices / name)]


def _files_below(folder: Path, node: Path) -> Iterator[tuple[int, int]]:
    """Device and inode of the file that a loop device stands on, in two ways."""
    named = _text(folder / "loop" / "backing_file")
    if not named:
        return
    with suppress(OSError, ValueError):
        status = Path(named).stat()
        yield status.st_dev, status.st_ino
    info = _loop_info(node)
    if info:
        yield struct.unpack_from("=QQ", info)


def _loop_info(node: Path) -> bytes:
    """What LOOP_GET_STATUS64 says; nothing where the device cannot be opened."""
    info = bytearray(_LOOP_INFO)
    with suppress(OSError):
        descriptor = os.open(node, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.ioctl(descriptor, _LOOP_STATUS, info)
            return bytes(info)
        finally:
            os.close(descriptor)
    return b""


def _block_number(name: str) -> str:
    if name.startswith("/"):
        with suppress(OSError, ValueError):
            status = Path(name).stat()
            if stat.S_ISBLK(status.st_mode):
                return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return ""


def _unescaped(text: str) -> str:
    """Blanks and the like are three octal digits in procfs."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _parts(folder: Path) -> list[Path]:
    """The partitions of a disk, in their order."""
    found = [folder / name for name in _entries(folder) if (folder / name / "partition").exists()]
    return sorted(found, key=lambda part: (_number(part / "partition"), part.name))


def _partition_by_mapper(folder: Path) -> bool:
    """What kpartx makes is called partN-…"""
    return bool(re.match("part[0-9]+-", _text(folder / "dm" / "uuid")))


def _queue(folder: Path) -> Path:
    own = folder / "queue"
    return own if own.is_dir() else folder.resolve().parent / "queue"


def _sector(folder: Path) -> int:
    return _number(_queue(folder) / "logical_block_size")


def _transport(folder: Path) -> str:
    place = f"{folder.resolve()}/"
    return next((name for part, name in _TRANSPORTS if re.search(part, place)), "")


def _model(folder: Path) -> str:
    """What the maker calls it (SCSI, ATA, NVMe: vendor and model; SD cards: name), or what it is made
    of (loop: the file; device mapper: its name)."""
    disk = folder.resolve()
    if (folder / "partition").exists():
        disk = disk.parent
    made = f"{_text(disk / 'device' / 'vendor')} {_text(disk / 'device' / 'model')}".split()
    # ATA disks have no vendor of their own, virtio's is a number.
    words = " ".join(word for word in made if word != "ATA" and not word.startswith("0x"))
    others = (disk / "device" / "name", disk / "loop" / "backing_file", disk / "dm" / "name")
    return (words or next((text for text in map(_text, others) if text), ""))[:_LONGEST_MODEL]


def _name(folder: Path) -> str:
    """The kernel's name of a device; it writes ! for the / of a few."""
    return _printable(folder.resolve().name.replace("!", "/"))


def _number(path: Path) -> int:
    text = _text(path)
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS else 0


def _text(path: Path) -> str:
    """What a small file says, in one line; nothing where it is missing."""
    with suppress(OSError), path.open("rb") as file:
        return _printable(file.read(4096).decode(errors="replace").strip())
    return ""


def _lines(path: Path) -> list[str]:
    with suppress(OSError):
        return path.read_bytes().decode(errors="surrogateescape").splitlines()
    return []


def _entries(folder: Path) -> list[str]:
    with suppress(OSError):
        return [entry.name for entry in folder.iterdir()]
    return []


def _printable(text: str) -> str:
    """Whoever made a stick chose its name."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
