"""One disk format into another with qemu-img, and what a given disk really is.

qemu-img opens whatever an image names: a parent, an external data file, other extents. So
the header of an image from elsewhere is looked at here before qemu-img is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rehydrator import host
from rehydrator.core import canonical_json
from rehydrator.core.errors import HostileInput, RehydratorError, UsageError
from rehydrator.formats import c_qcow2, c_vhd, c_vhdx, c_vmdk, vhd, vmdk
from rehydrator.store.files import FileReader
from rehydrator.variants import tools
from rehydrator.variants.identity import set_identity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rehydrator.core.canonical_json import Json
    from rehydrator.core.reader import Reader
    from rehydrator.variants.identity import Identity

KNOWN_FORMATS: Final = ("raw", "qcow2", "vmdk", "vpc", "vhdx")

_MAX_INFO: Final = 1 << 20
_MAX_DISK: Final = 1 << 50
_INFO_TIMEOUT: Final = 60.0
_SECTOR: Final = 512

_DECOMPRESS: Final = "decompress it first"
_RENAME: Final = "give its real format, or convert it with qemu-img"
_MOUNTED: Final = "give a disk image instead"

# (offset, bytes there, what it is, qemu-img's format or "", what to do); top to bottom.
_MAGICS: Final = (
    (0, c_qcow2.MAGIC, "a qcow2 image", "qcow2", _RENAME),
    (0, c_vmdk.MAGIC, "a VMDK", "vmdk", _RENAME),
    (0, c_vmdk.COWD_MAGIC, "an ESX VMDK", "", _RENAME),
    (0, c_vmdk.TEXT_MAGIC, "a VMDK descriptor, whose data is in other files", "", _RENAME),
    (0, c_vhdx.SIGNATURE, "a VHDX", "vhdx", _RENAME),
    (0, c_vhd.FOOTER_COOKIE, "a dynamic VHD", "vpc", _RENAME),
    (0, b"\xfd7zXZ\0", "xz-compressed data", "", f"{_DECOMPRESS}: xz -d"),
    (0, b"\x1f\x8b", "gzip-compressed data", "", f"{_DECOMPRESS}: gzip -d"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed data", "", f"{_DECOMPRESS}: zstd -d"),
    (0, b"BZh", "bzip2-compressed data", "", f"{_DECOMPRESS}: bzip2 -d"),
    (0, b"PK\x03\x04", "a zip archive", "", "unzip it first"),
    (257, b"ustar", "a tar archive", "", "take the disk out of it first: tar -x"),
    (32769, b"CD001", "an ISO 9660 image", "", _MOUNTED),
    (512, b"EFI PART", "a raw disk with a GPT", "raw", _RENAME),
    (4096, b"EFI PART", "a raw disk with a GPT, of sectors of 4,096 bytes", "raw", _RENAME),
    (510, b"\x55\xaa", "a raw disk with a boot sector", "raw", _RENAME),
)


@dataclass(frozen=True, slots=True)
class Disk:
    """What a disk image is: its virtual size in bytes, and more that qemu-img says."""

    virtual_size: int
    format: str
    facts: Mapping[str, str] = field(default_factory=dict)


def convert(
    source: Path,
    source_format: str,
    format_name: str,
    arguments: Sequence[str],
    target: Path,
    identity: Identity,
    timeout: float,
) -> None:
    """Write `target` as `qemu-img convert -f SOURCE_FORMAT -O FORMAT ARGUMENTS...` does, with
    the identifiers of `identity`. `source` is ours: it may be an overlay with a backing file.
    A VMDK names its own file, by `target`'s last part. At most `timeout` seconds.

    Raises:
        UsageError: a format that is not known.
        HostileInput: what was written is not what it should be.
        LimitExceeded: the disk is full.
        RehydratorError: qemu-img failed, crashed or did not end in time.
        ToolMissing: there is no qemu-img.
    """
    for name in (source_format, format_name):
        check_format(name)
    start = tools.absolute(source)
    with tools.new_file(target) as path:
        # "./" keeps a name with a colon from being a protocol of qemu's.
        argv = ["qemu-img", "convert", "-f", source_format, "-O", format_name]
        argv += [*arguments, str(start), f"./{path.name}"]
        tools.run(argv, timeout, path, path.parent)
        set_identity(path, format_name, identity)


def check_format(name: str) -> None:
    """Raise UsageError unless qemu-img's format `name` is one of KNOWN_FORMATS."""
    if name not in KNOWN_FORMATS:
        raise UsageError(f"{name!r:.40} is not a disk format; known are {', '.join(KNOWN_FORMATS)}")


def inspect(path: Path, format_name: str) -> Disk:
    """A disk image from elsewhere, checked: sound, and whole in this one file.

    Raises:
        UsageError: a format that is not known.
        HostileInput: it is not of that format (the message says what its first bytes look
            like), or encrypted, corrupt, dirty, or with a parent or data in another file.
        RehydratorError: it cannot be read, or qemu-img crashed over it.
        ToolMissing: there is no qemu-img.
    """
    check_format(format_name)
    start = tools.absolute(path)
    _check_header(start, path, format_name)
    argv = ["qemu-img", "info", "--output=json", "-f", format_name, str(start)]
    result = host.run(argv, _INFO_TIMEOUT)
    if result.status < 0:
        raise RehydratorError(f"{path}: qemu-img {tools.how_it_ended(result.status)}: {result.said}")
    if result.status:
        raise HostileInput(f"{path}: not a sound {format_name} image: {result.said}")
    if format_name == "qcow2":
        _check_clusters(start, path)
    return _disk(canonical_json.loads(result.stdout, f"{path}: qemu-img info", _MAX_INFO), path, format_name)


def _check_clusters(start: Path, path: Path) -> None:
    """Refuse a qcow2 image whose tables point beyond its end: measured, qemu-img 7.2 converts one
    that was cut short without a word, with zeros in place of what is gone."""
    result = host.run(["qemu-img", "check", "-f", "qcow2", str(start)], _INFO_TIMEOUT)
    # 3: clusters that nothing uses (qemu-img(1), check), which do no harm.
    if result.status not in {0, 3}:
        said = " ".join((result.said.splitlines() or [tools.how_it_ended(result.status)])[:1])
        raise HostileInput(
            f"{path}: damaged or cut short, so `qemu-img check` says: {said}; get it once more"
        )


def looks_like(file: Reader) -> tuple[str, str, str]:
    """What the first bytes of a file look like (and the last, which a fixed VHD has its own
    at), in words; qemu-img's format of it, "" if it is none; what to do with it."""
    for offset, magic, words, format_name, remedy in _MAGICS[:-3]:
        if _at(file, offset, len(magic)) == magic:
            return words, format_name, remedy
    if vhd.find_footer(file) is not None:
        return "a fixed VHD", "vpc", _RENAME
    for offset, magic, words, format_name, remedy in _MAGICS[-3:]:
        if _at(file, offset, len(magic)) == magic:
            return words, format_name, remedy
    begin = file.pread(0, min(8, file.size))
    return (f"nothing known ({begin.hex(' ')})" if begin else "an empty file"), "", _MOUNTED


def _at(file: Reader, offset: int, length: int) -> bytes:
    return file.pread(offset, length) if offset + length <= file.size else b""


def _check_header(start: Path, path: Path, format_name: str) -> None:
    """Refuse what is not `format_name` or reaches out of its own file, before qemu-img opens it."""
    try:
        file = FileReader(start)
    except OSError as error:
        raise RehydratorError(f"{path}: {error.strerror}") from None
    try:
        _check_looks(file, format_name)
        if format_name == "qcow2":
            _check_qcow2(file)
        if format_name == "raw":
            _check_raw(file)
        if format_name == "vmdk":
            vmdk.read_create_type(file, vmdk.read_header(file))
    except HostileInput as error:
        raise HostileInput(f"{path}: {error}") from None
    finally:
        file.close()


def _check_looks(file: Reader, format_name: str) -> None:
    """A raw disk may begin with anything that is not another kind of file."""
    words, found, remedy = looks_like(file)
    if found != format_name and not (format_name == "raw" and words.startswith("nothing")):
        raise HostileInput(f"not {format_name}: its first bytes look like {words}; {remedy}")


def _check_raw(file: Reader) -> None:
    if file.size % _SECTOR:
        raise HostileInput(f"{file.size} bytes are not whole {_SECTOR}-byte sectors; was it cut short?")


def _check_qcow2(file: Reader) -> None:
    """docs/interop/qcow2.txt, "Header"."""
    raw = _at(file, 0, c_qcow2.HEADER.size)
    if not raw:
        raise HostileInput(f"a qcow2 image of {file.size} bytes: cut short")
    header = c_qcow2.Header._make(c_qcow2.HEADER.unpack(raw))
    if header.backing_file_offset or header.backing_file_size:
        raise HostileInput("has a backing file; make it whole with `qemu-img convert -O qcow2`")
    if header.crypt_method:
        raise HostileInput("encrypted; decrypt it with `qemu-img convert` first")
    flags = int.from_bytes(_at(file, c_qcow2.HEADER.size, 8), "big") if header.version > 2 else 0
    for bit in (c_qcow2.DIRTY, c_qcow2.CORRUPT, c_qcow2.EXTERNAL_DATA_FILE):
        if flags & bit:
            raise HostileInput(f"{c_qcow2.FEATURE_NAMES[bit]}; see `qemu-img check` and `qemu-img convert`")


# Keys of qemu-img's answer that must be absent or false, and what they mean.
_REFUSED: Final = {
    "backing-filename": "has a backing file",
    "encrypted": "encrypted",
    "encrypt": "encrypted",
    "corrupt": "marked corrupt; see `qemu-img check`",
    "dirty-flag": "not closed properly; see `qemu-img check`",
    "data-file": "has its data in another file",
}


def _disk(answer: Json, path: Path, format_name: str) -> Disk:
    if not isinstance(answer, dict) or answer.get("format") != format_name:
        raise HostileInput(f"{path}: not a {format_name} image for qemu-img")
    specific = answer.get("format-specific", {})
    data = specific.get("data", {}) if isinstance(specific, dict) else {}
    facts = {**(data if isinstance(data, dict) else {}), **answer}
    for key, why in _REFUSED.items():
        if facts.get(key):
            raise HostileInput(f"{path}: {why}")
    size = answer.get("virtual-size")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= _MAX_DISK:
        raise HostileInput(f"{path}: a virtual disk of {size!r:.40} bytes")
    plain = {key: str(value) for key, value in facts.items() if isinstance(value, str | int)}
    return Disk(size, format_name, plain)
