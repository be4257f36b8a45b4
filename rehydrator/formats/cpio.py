"""cpio archives as the kernel takes them: where every member's bytes lie.

    member    header | name, zero bytes | padding to 4 | data | padding to 4
    header    "070701" (newc) or "070702" (crc) | 13 numbers of 8 hexadecimal digits
    archive   member … | the member "TRAILER!!!"

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst. The trailer may be
missing. Numbers of padding count from the archive's beginning, which the kernel wants at a
multiple of 4. Nothing but regular files has content here; nothing is ever created.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from rehydrator.formats.explanation import refuse_short, require
from rehydrator.formats.filesystem import MAX_FILES, MAX_PATH, MAX_PATHS, Block, Content, FileSystem, Piece

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rehydrator.core.reader import Reader

MAGICS: Final = (b"070701", b"070702")
MAGIC_SIZE: Final = 6
HEADER_SIZE: Final = 110
TRAILER: Final = b"TRAILER!!!"
ALIGNMENT: Final = 4

_DIGITS: Final = b"0123456789abcdefABCDEF"
_FIELDS: Final = range(MAGIC_SIZE, HEADER_SIZE, 8)
_KIND, _REGULAR = 0o170000, 0o100000


class Header(NamedTuple):
    """The numbers of a header, in the order that they have there."""

    inode: int
    mode: int
    uid: int
    gid: int
    links: int
    mtime: int
    size: int
    major: int
    minor: int
    device_major: int
    device_minor: int
    name_size: int
    check: int


@dataclass(frozen=True, slots=True)
class Member:
    """A member whose header is at byte `at` of the file, and its `size` bytes of data at `data`.

    `path` is the name as stored, up to its first zero byte. `link` is the same for names of one
    file (device and inode), None where a file has one name only. `check` is the sum of the
    data's bytes modulo 2^32 that "070702" states, None otherwise; it is not verified.
    """

    path: bytes
    mode: int
    link: tuple[int, int, int] | None
    at: int
    data: int
    size: int
    check: int | None

    @property
    def is_regular(self) -> bool:
        return self.mode & _KIND == _REGULAR


@dataclass(frozen=True, slots=True)
class Archive:
    """The archive in bytes [offset, end) of the file: its members in order, without the trailer."""

    offset: int
    end: int
    members: tuple[Member, ...]
    trailer: bool


def recognise(file: Reader, at: int = 0) -> bool:
    """One of the two magic numbers at `at`."""
    return at + HEADER_SIZE <= file.size and file.pread(at, MAGIC_SIZE) in MAGICS


def read(file: Reader, at: int = 0) -> Archive:
    """The archive that begins at `at`; only headers and names are read. It ends with the trailer
    and its padding, else with the last member that another header does not follow.

    Raises:
        Unexplained: no archive, cut short, malformed, or beyond a limit.
    """
    members: list[Member] = []
    here, paths = at, 0
    while not members or recognise(file, here):
        member, end = _member(file, at, here)
        here = min(end, file.size)
        if member.path == TRAILER:
            return Archive(at, here, tuple(members), trailer=True)
        require(len(members) < MAX_FILES, f"more than {MAX_FILES} members")
        paths += len(member.path)
        require(paths <= MAX_PATHS, f"more than {MAX_PATHS} bytes of paths")
        members.append(member)
    return Archive(at, here, tuple(members), trailer=False)


def read_files(file: Reader, at: int = 0) -> FileSystem:
    """The byte map of the archive's regular files; block offsets are those of the file.

    Of hard links, the first name has the bytes, whichever member holds them. Paths may come
    again, as the kernel takes it: then the last is the file.

    Raises:
        Unexplained: as `read`.
    """
    archive = read(file, at)
    blocks: list[Block] = []
    contents = tuple(_contents(archive, blocks))
    magic = file.pread(at, MAGIC_SIZE).decode()
    facts = {"magic": magic, "members": str(len(archive.members))}
    facts["trailer"] = "yes" if archive.trailer else "no"
    return FileSystem("cpio", archive.end - at, tuple(blocks), contents, facts)


def _member(file: Reader, start: int, at: int) -> tuple[Member, int]:
    """The member at `at` of the archive that begins at `start`; and where its padding ends."""
    raw = refuse_short(file, at, HEADER_SIZE, "a cpio header")
    require(raw[:MAGIC_SIZE] in MAGICS, f"no cpio header at {at}")
    digits = not raw[MAGIC_SIZE:].strip(_DIGITS)
    require(digits, f"the cpio header at {at} has a number that is none")
    header = Header(*(int(raw[k : k + 8], 16) for k in _FIELDS))
    fair = 0 < header.name_size <= MAX_PATH
    require(fair, f"the cpio header at {at} has a name of {header.name_size} bytes")
    name = refuse_short(file, at + HEADER_SIZE, header.name_size, "a cpio name")
    require(not name[-1], f"the name of the cpio header at {at} has no end")
    data = _padded(start, at + HEADER_SIZE + header.name_size)
    end = data + header.size
    # The padding of the last member, without data, may be cut off.
    require(not header.size or end <= file.size, f"the cpio member at {at} ends behind the end of the file")
    link = (header.major, header.minor, header.inode) if header.links > 1 else None
    check = header.check if raw.startswith(MAGICS[1]) else None
    path = name[: name.index(0)]
    return Member(path, header.mode, link, at, data, header.size, check), _padded(start, end)


def _padded(start: int, at: int) -> int:
    return at + (start - at) % ALIGNMENT


def _contents(archive: Archive, blocks: list[Block]) -> Iterator[Content]:
    regular = [member for member in archive.members if member.is_regular]
    names: dict[tuple[int, int, int], bytes] = {}
    filled = {member.link for member in regular if member.link is not None and member.size}
    for member in regular:
        again = member.link in names
        path = member.path if member.link is None else names.setdefault(member.link, member.path)
        # Of the names of one file, one has its data; they are empty if none has.
        if member.size or not (again or member.link in filled):
            yield _content(_from_root(path), member, blocks)


def _content(path: bytes, member: Member, blocks: list[Block]) -> Content:
    if not member.size:
        return Content(path, 0, ())
    blocks.append(Block(member.data, member.size, member.size))
    return Content(path, member.size, (Piece(0, member.size, len(blocks) - 1, 0),))


def _from_root(path: bytes) -> bytes:
    while path.startswith((b"./", b"/")):
        path = path[path.index(b"/") + 1 :]
    return path
