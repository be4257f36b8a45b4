"""cpio archives are mapped exactly, or declined."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from rehydrator.core.errors import HostileInput, Unexplained
from rehydrator.core.reader import BytesReader
from rehydrator.formats import cpio
from rehydrator.formats.filesystem import Block, Content, Piece
from tests.cpio_images import TRAILER, member, padded

DATA = b"thirteen byte"
LINKED = {"ino": 7, "nlink": 2, "maj": 8, "min": 1}


def files(raw: bytes, at: int = 0) -> list[tuple[bytes, bytes]]:
    """Path and bytes of every content."""
    found = cpio.read_files(BytesReader(raw), at)
    spans = [(found.blocks[c.pieces[0].block].offset if c.pieces else 0, c.size) for c in found.contents]
    return [
        (c.path, raw[start : start + size]) for c, (start, size) in zip(found.contents, spans, strict=True)
    ]


def refused(raw: bytes) -> str:
    with pytest.raises(Unexplained) as caught:
        cpio.read_files(BytesReader(raw))
    return str(caught.value)


@pytest.mark.parametrize("at", [0, 4, 512, 3])
def test_members_and_the_end(at: int) -> None:
    """Offsets are those of the file, wherever the archive begins; the trailer's padding belongs to it."""
    body = member(b"a", DATA) + member(b"dir", b"", 0o040755) + member(b"b/c", b"") + TRAILER
    raw = b"\xff" * at + body + bytes(512)
    found = cpio.read(BytesReader(raw), at)
    assert (found.offset, found.end, found.trailer) == (at, at + len(body), True)
    rows = [(one.path, one.size, one.is_regular) for one in found.members]
    assert rows == [(b"a", 13, True), (b"dir", 0, False), (b"b/c", 0, True)]
    assert files(raw, at) == [(b"a", DATA), (b"b/c", b"")]


def test_the_byte_map() -> None:
    """One block for each member with data, as it lies; facts tell magic and trailer."""
    raw = member(b"a", DATA) + TRAILER
    found = cpio.read_files(BytesReader(raw))
    assert found.blocks == (Block(112, 13, 13),)
    assert found.contents == (Content(b"a", 13, (Piece(0, 13, 0, 0),)),)
    assert (found.kind, found.size) == ("cpio", len(raw))
    assert found.facts == {"magic": "070701", "members": "1", "trailer": "yes"}


def test_without_a_trailer() -> None:
    """The archive ends where no header follows, or with the file, padded or not."""
    body = member(b"a", DATA)
    for raw, end in (
        (body, len(body)),
        (body[:-3], len(body) - 3),
        (body + b"\x1f\x8b\x08\0" * 99, len(body)),
    ):
        found = cpio.read(BytesReader(raw))
        assert (found.end, found.trailer, len(found.members)) == (end, False, 1)


def test_sums_are_told() -> None:
    """The check of "070702" is read, not verified."""
    members = cpio.read(BytesReader(member(b"a", DATA, check=5) + member(b"b", DATA) + TRAILER)).members
    assert [one.check for one in members] == [5, None]


def test_what_is_no_regular_file_has_no_content() -> None:
    """Symbolic links and devices are kept as bytes, and never created."""
    raw = member(b"l", b"/etc/passwd", 0o120777) + member(b"null", b"", 0o020666, rmaj=1, rmin=3) + TRAILER
    assert files(raw) == []
    assert [one.size for one in cpio.read(BytesReader(raw)).members] == [11, 0]


def test_hard_links() -> None:
    """The first name has the bytes, be they with the first name or, as GNU cpio does it, the last."""
    first = member(b"a", DATA, **LINKED) + member(b"b", **LINKED)
    last = member(b"a", **LINKED) + member(b"b", DATA, **LINKED)
    none = member(b"a", **LINKED) + member(b"b", **LINKED)
    assert [files(raw + TRAILER) for raw in (first, last, none)] == [
        [(b"a", DATA)],
        [(b"a", DATA)],
        [(b"a", b"")],
    ]


def test_paths_begin_at_the_root() -> None:
    """What stands for the root is left out; names padded by zero bytes end at the first."""
    raw = member(b"./a", DATA) + member(b"/b", DATA) + member(b"c" + bytes(40), DATA) + TRAILER
    assert files(raw) == [(b"a", DATA), (b"b", DATA), (b"c", DATA)]


def test_an_empty_archive() -> None:
    """A trailer alone is an archive."""
    assert cpio.read(BytesReader(TRAILER)) == cpio.Archive(0, 124, (), trailer=True)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "a cpio header at 0 lies outside"),
        (b"070707" + bytes(200), "no cpio header at 0"),
        (member(b"a").replace(b"000081A4", b"+0x081A4"), "a number that is none"),
        (member(b"a").replace(b"000081A4", b"0000_1A4"), "a number that is none"),
        (member(b"a", namesize=0), "a name of 0 bytes"),
        (member(b"a", namesize=4097), "a name of 4097 bytes"),
        (member(b"a", namesize=99), "a cpio name at 110 lies outside"),
        (member(b"ab", namesize=2), "has no end"),
        (member(b"a", DATA, filesize=17), "ends behind the end"),
        (member(b"a", DATA, filesize=0xFFFFFFFF), "ends behind the end"),
        (padded(member(b"a", DATA)) + member(b"b", namesize=0) + TRAILER, "a name of 0 bytes"),
    ],
)
def test_headers_that_lie(raw: bytes, message: str) -> None:
    """Refused."""
    assert message in refused(raw)


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members and bytes of paths are limited."""
    raw = member(b"abcdef") * 5 + TRAILER
    monkeypatch.setattr(cpio, "MAX_FILES", 4)
    assert "more than 4 members" in refused(raw)
    monkeypatch.setattr(cpio, "MAX_FILES", 5)
    monkeypatch.setattr(cpio, "MAX_PATHS", 29)
    assert "more than 29 bytes of paths" in refused(raw)


def outcome(raw: bytes) -> str:
    """Read everything: "good", or "refused". Anything else is a failure."""
    try:
        assert all(len(data) <= len(raw) for _, data in files(raw))
    except HostileInput:
        return "refused"
    return "good"


def test_mutations() -> None:
    """Any bytes changed: read, or refused; nothing else."""
    raw = member(b"a", DATA * 3) + member(b"b", DATA, **LINKED) + member(b"c", **LINKED) + TRAILER
    dice, outcomes = random.Random(3), Counter[str]()
    for _ in range(1000):
        damaged = bytearray(raw)
        for _ in range(dice.randint(1, 3)):
            damaged[dice.randrange(len(raw))] = dice.choice((dice.randrange(256), *b"0fF7"))
        outcomes[outcome(bytes(damaged))] += 1
    assert min(outcomes["refused"], outcomes["good"]) > 100


def test_truncations() -> None:
    """An archive cut short within a member is refused; between members it has no trailer."""
    one = member(b"a", DATA)
    raw = one + one + TRAILER
    good = [length for length in range(len(raw)) if outcome(raw[:length]) == "good"]
    # The padding behind data, up to where the next header would be whole; that behind the trailer.
    assert good == [*range(125, 238), *range(253, 366), *range(len(raw) - 3, len(raw))]
