"""tar archives: headers whose bytes we decide, and a bounded reader that extracts nothing.

Written: ustar with owner 0:0, fixed modes, a given time; a pax header only where a name or a
size does not fit. Read: ustar, pax (path, size) and GNU long names, over any Reader.
Source of the fields: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from typing import Literal as OneOf

from rehydrator.core.errors import HostileInput, LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Protocol

    class Source(Protocol):
        """What the parser needs of a Reader: forward reads that fail at the end."""

        def pread(self, offset: int, length: int) -> bytes: ...


BLOCK = 512
END = bytes(2 * BLOCK)
MAX_MEMBERS = 1 << 20
MAX_EXTENDED = 1 << 20

_FILE_MODE, _DIRECTORY_MODE = 0o644, 0o755
_MAX_NAME = 100
_MAX_OCTAL_SIZE = 1 << 33
_MAX_SIZE = 1 << 62

Kind = OneOf["file", "directory", "link", "device"]
_KINDS: dict[bytes, Kind] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "link",
    b"2": "link",
    b"3": "device",
    b"4": "device",
    b"5": "directory",
    b"6": "device",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One member: its cleaned name, and where its bytes lie in the archive."""

    name: str
    kind: Kind
    offset: int
    size: int


# ---- writing


def file_header(name: str, size: int, mtime: int = 0) -> bytes:
    """The header block (or blocks) of a regular file."""
    return _member(name, size, mtime, _FILE_MODE, b"0")


def directory_header(name: str, mtime: int = 0) -> bytes:
    """The header of a directory."""
    return _member(name.rstrip("/") + "/", 0, mtime, _DIRECTORY_MODE, b"5")


def padding(size: int) -> bytes:
    """The zeros behind `size` bytes of content."""
    return bytes(-size % BLOCK)


def parents(names: Iterable[str]) -> list[str]:
    """Every directory above some names, each once, sorted."""
    found: set[str] = set()
    for name in names:
        parts = name.split("/")[:-1]
        found.update("/".join(parts[: k + 1]) for k in range(len(parts)))
    return sorted(found)


def _member(name: str, size: int, mtime: int, mode: int, kind: bytes) -> bytes:
    raw = name.encode()
    records = {}
    if len(raw) > _MAX_NAME or not name.isascii():
        records["path"] = name
    if size >= _MAX_OCTAL_SIZE:
        records["size"] = str(size)
    header = _header(raw[:_MAX_NAME], size if size < _MAX_OCTAL_SIZE else 0, mtime, mode, kind)
    if not records:
        return header
    body = b"".join(_pax_record(key, value) for key, value in sorted(records.items()))
    extended = _header(b"././@PaxHeader", len(body), mtime, _FILE_MODE, b"x")
    return extended + body + padding(len(body)) + header


def _header(name: bytes, size: int, mtime: int, mode: int, kind: bytes) -> bytes:
    block = bytearray(BLOCK)
    block[0 : len(name)] = name
    block[100:108] = b"%07o\0" % mode
    block[108:124] = b"%07o\0%07o\0" % (0, 0)
    block[124:136] = b"%011o\0" % size
    block[136:148] = b"%011o\0" % mtime
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[329:345] = b"%07o\0%07o\0" % (0, 0)
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _pax_record(key: str, value: str) -> bytes:
    """The record's length counts its own digits."""
    body = f" {key}={value}\n".encode()
    length = len(body)
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


# ---- reading


def entries(source: Source, what: str) -> Iterator[Entry]:
    """The members of an archive in order; `what` names it in messages.

    `source` is read forwards only, so it may be a stream. Names lose "./" and doubled slashes.

    Raises:
        HostileInput: malformed, truncated, or a name that is absolute or climbs.
        LimitExceeded: more members than the limit.
    """
    at = 0
    extended: dict[str, str] = {}
    for _ in range(MAX_MEMBERS):
        block = source.pread(at, BLOCK)
        at += BLOCK
        if not any(block):
            if extended:
                raise HostileInput(f"{what}: ends after an extended header")
            return
        _check_sum(block, what)
        size, flag = _size(block, what), block[156:157]
        if flag in b"xgLK":
            extended = _extended(source, at, size, flag, extended, what)
            at += size + -size % BLOCK
            continue
        entry = _entry(block, flag, at, size, extended, what)
        extended = {}
        yield entry
        at += entry.size + -entry.size % BLOCK
    raise LimitExceeded(f"{what}: more than {MAX_MEMBERS} members")


def regular_files(source: Source, what: str) -> dict[str, tuple[int, int]]:
    """Name -> (offset, size) of an archive that holds only regular files and directories.

    Raises:
        HostileInput: as entries(); a link or a device; a name that stands twice.
    """
    found: dict[str, tuple[int, int]] = {}
    for entry in entries(source, what):
        if entry.kind == "directory":
            continue
        if entry.kind != "file":
            raise HostileInput(f"{what}: {entry.name!r:.200} is a {entry.kind}, not a regular file")
        if entry.name in found:
            raise HostileInput(f"{what}: {entry.name!r:.200} stands twice")
        found[entry.name] = entry.offset, entry.size
    return found


def _entry(block: bytes, flag: bytes, at: int, size: int, extended: dict[str, str], what: str) -> Entry:
    raw = extended.get("path") or _ustar_name(block)
    kind = _KINDS.get(flag)
    if kind is None:
        raise HostileInput(f"{what}: {raw!r:.200} is of unsupported type {flag!r}")
    if kind == "file" and raw.endswith("/"):
        kind = "directory"  # as tar did before POSIX
    if "size" in extended:
        size = _decimal(extended["size"], what)
    if kind != "file" and size:
        raise HostileInput(f"{what}: {raw!r:.200} is a {kind} with {size} bytes of content")
    return Entry(_clean(raw, what), kind, at, size)


def _ustar_name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    # GNU tar keeps times where POSIX has the prefix; its magic ends in a space.
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode(errors="surrogateescape")


def _clean(name: str, what: str) -> str:
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\0" in name or not name:
        raise HostileInput(f"{what}: unsafe name {name!r:.200}")
    return "/".join(part for part in parts if part not in {"", "."})


def _check_sum(block: bytes, what: str) -> None:
    expected = sum(block) - sum(block[148:156]) + 8 * 0x20
    if _octal(block[148:156], what) != expected:
        raise HostileInput(f"{what}: not a tar archive, or damaged (a header's checksum is wrong)")


def _size(block: bytes, what: str) -> int:
    raw = block[124:136]
    if raw[0] & 0x80:  # GNU: binary, big-endian; a set 0x40 would make it negative
        value = int.from_bytes(raw, "big") & ((1 << 95) - 1)
        if value > _MAX_SIZE:
            raise HostileInput(f"{what}: a member of {value} bytes")
        return value
    return _octal(raw, what)


def _octal(raw: bytes, what: str) -> int:
    digits = raw.strip(b" \0")
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        raise HostileInput(f"{what}: not a tar archive, or damaged ({raw!r} is no octal number)")
    return int(digits, 8)


def _decimal(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= _MAX_SIZE):
        raise HostileInput(f"{what}: {text!r:.40} is no size")
    return int(text)


def _extended(
    source: Source, at: int, size: int, flag: bytes, before: dict[str, str], what: str
) -> dict[str, str]:
    """What an extended header says of the next member, added to what was said `before`."""
    if size > MAX_EXTENDED:
        raise HostileInput(f"{what}: an extended header of {size} bytes")
    body = source.pread(at, size)
    if flag == b"L":
        return before | {"path": body.split(b"\0", 1)[0].decode(errors="surrogateescape")}
    if flag == b"x":
        return before | _pax_records(body, what)
    if flag == b"g" and _pax_records(body, what):
        raise HostileInput(f"{what}: a global header that names or sizes members")
    return before  # link targets and comments are of no use here


def _pax_records(body: bytes, what: str) -> dict[str, str]:
    found = {}
    at = 0
    while at < len(body):
        digits = body[at : at + 9].split(b" ", 1)[0]
        length = int(digits) if digits.isdigit() else 0
        record = body[at : at + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals or len(record) != length or record[-1:] != b"\n":
            raise HostileInput(f"{what}: a malformed pax header")
        if key.startswith(b"GNU.sparse"):
            raise HostileInput(f"{what}: sparse members are not supported")
        if key in {b"path", b"size"}:
            found[key.decode()] = value.decode(errors="surrogateescape")
        at += length
    return found
