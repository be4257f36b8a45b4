"""tar: the headers that we write, and the reader that trusts none."""

from __future__ import annotations

import io
import tarfile

import pytest

from rehydrator.core.errors import HostileInput
from rehydrator.core.reader import BytesReader
from rehydrator.oci import tarball
from rehydrator.oci.tarball import (
    END,
    directory_header,
    entries,
    file_header,
    padding,
    parents,
    regular_files,
)


def member(name: str, data: bytes) -> bytes:
    return file_header(name, len(data)) + data + padding(len(data))


def listed(data: bytes) -> dict[str, tuple[int, int]]:
    return regular_files(BytesReader(data), "a.tar")


def raw_header(name: bytes = b"f", kind: bytes = b"0", size: bytes = b"00000000000\0") -> bytes:
    """A header with fields as given and a right checksum."""
    block = bytearray(file_header("f", 0))
    block[0:100] = name.ljust(100, b"\0")
    block[124:136] = size
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def other_tar(tar_format: int, *members: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as archive:
        for info in members:
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    return out.getvalue()


def test_the_standard_library_reads_it() -> None:
    """Names, sizes, owners, modes and times are what tarfile reads."""
    data = directory_header("bundle") + file_header("bundle/a", 3, 7) + b"abc" + padding(3) + END
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = [(m.name, m.isdir(), m.size, m.mode, m.uid, m.gid, m.mtime) for m in archive]
    assert found == [("bundle", True, 0, 0o755, 0, 0, 0), ("bundle/a", False, 3, 0o644, 0, 0, 7)]


@pytest.mark.parametrize("name", ["n" * 101, "d/" * 80 + "f", "grüße", "x" * 93 + "grüße"])
def test_long_and_foreign_names_use_pax(name: str) -> None:
    """A name that ustar cannot hold comes back whole, here and from tarfile."""
    data = member(name, b"abc") + END
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == [name]
    assert list(listed(data)) == [name]


@pytest.mark.parametrize("size", [0, 1 << 33, (1 << 33) - 1, 1 << 40])
def test_sizes(size: int) -> None:
    """Sizes from 8 GiB on use pax; tarfile and entries() read the same size."""
    header = file_header("f", size)
    assert len(header) == (512 if size < 1 << 33 else 1536)
    with tarfile.open(fileobj=io.BytesIO(header)) as archive:
        first = archive.next()
    assert first is not None
    assert first.size == size
    entry = next(entries(BytesReader(header), "a.tar"))
    assert (entry.size, entry.offset) == (size, len(header))


def test_parents() -> None:
    """Every directory above the names stands once, before what is in it."""
    assert parents(["a/b/c", "a/b/d", "a/e", "f"]) == ["a", "a/b"]


def test_members_are_found_where_they_lie() -> None:
    """The reader gives offset and size of each regular file."""
    data = directory_header("d") + member("d/a", b"abc") + member("d/b", b"x" * 600) + END
    found = listed(data)
    assert {name: data[at : at + size] for name, (at, size) in found.items()} == {
        "d/a": b"abc",
        "d/b": b"x" * 600,
    }


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_others(tar_format: int) -> None:
    """Long names in ustar prefixes, GNU headers and pax headers are read; "./" is dropped."""
    info = tarfile.TarInfo("./" + "d" * 90 + "/" + "f" * 60)
    info.size = 5
    assert [size for _, size in listed(other_tar(tar_format, info)).values()] == [5]
    assert list(listed(other_tar(tar_format, info))) == ["d" * 90 + "/" + "f" * 60]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(kind: bytes) -> None:
    """A strict listing refuses them, by name."""
    info = tarfile.TarInfo("evil")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(HostileInput, match=r"'evil' is a (link|device)"):
        listed(other_tar(tarfile.USTAR_FORMAT, info))


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a/.."])
def test_unsafe_names_are_refused(name: str) -> None:
    """Absolute names and names that climb are refused, by name."""
    with pytest.raises(HostileInput, match="unsafe name"):
        listed(member(name, b"") + END)


def test_a_name_that_stands_twice_is_refused() -> None:
    """Two members of one name, however they are spelt."""
    with pytest.raises(HostileInput, match="'a/b' stands twice"):
        listed(member("a/b", b"1") + member("./a//b", b"2") + END)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "outside"),
        (member("a", b"abc"), "outside"),
        (member("a", b"abc")[:700], "outside"),
        (b"x" * 512 + END, "not a tar archive"),
        (b"b" + member("a", b"")[1:] + END, "checksum is wrong"),
        (raw_header(kind=b"S") + END, "unsupported type"),
        (raw_header(kind=b"2", size=b"00000000001\0") + END, "1 bytes of content"),
        (raw_header(size=b"0000000008x\0") + END, "octal"),
        (raw_header(size=b"\x80" + b"\x7f" * 11) + END, "a member of"),
        (raw_header(size=b"\xff" * 12) + END, "a member of"),
        (raw_header(kind=b"x", size=b"77777777777\0") + END, "extended header of"),
        (raw_header(kind=b"x", size=b"00000000012\0") + b"10 path=a\n".ljust(512, b"\0") + END, "ends after"),
        (raw_header(name=b"") + END, "unsafe name"),
    ],
)
def test_malformed_archives_are_refused(data: bytes, said: str) -> None:
    """Truncation, wrong sums, wild numbers and unknown types say what is wrong."""
    with pytest.raises(HostileInput, match=said):
        listed(data)


@pytest.mark.parametrize(
    "record",
    [b"6 a=b", b"0 path=a\n", b"99 path=a\n", b"path=a\n", b"10 path:a\n", b"22 GNU.sparse.major=1\n"],
)
def test_malformed_pax_headers_are_refused(record: bytes) -> None:
    """Record lengths that lie, records without a value, and sparse members."""
    size = b"%011o\0" % len(record)
    data = raw_header(kind=b"x", size=size) + record.ljust(512, b"\0") + member("f", b"") + END
    with pytest.raises(HostileInput, match=r"pax|sparse"):
        listed(data)


def test_the_number_of_members_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive of endless members ends with an error."""
    monkeypatch.setattr(tarball, "MAX_MEMBERS", 3)
    data = b"".join(member(str(k), b"") for k in range(4)) + END
    with pytest.raises(Exception, match="more than 3 members"):
        listed(data)
