"""Zip files of one member are read as streams; everything else is refused, saying what it has."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import zipfile
import zlib
from typing import TYPE_CHECKING

import pytest

from rehydrator.bundle import zipped
from rehydrator.core.errors import HostileInput

if TYPE_CHECKING:
    from pathlib import Path

NAME = "d-1-hyperv.x86_64.vhdx"
WHAT = f"{NAME}.zip"
PLAIN = random.Random(5).randbytes(20_000) + bytes(5 << 20) + b"end"


def pack(*members: tuple[str, bytes], comment: bytes = b"", method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.comment = comment
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data, compress_type=method)
    return out.getvalue()


def read(data: bytes, what: str = WHAT) -> bytes:
    with zipped.open_member(io.BytesIO(data), what) as stream:
        return stream.read()


def refused(data: bytes) -> str:
    with pytest.raises(HostileInput) as caught:
        read(data)
    assert str(caught.value).startswith(f"{WHAT}: ")
    return str(caught.value)


@pytest.mark.parametrize("options", ["-9j", "-1j", "-0j", "-9jX", "-9j -fz", "-9j -fd"])
def test_info_zip(tmp_path: Path, options: str) -> None:
    """What the `zip` program writes: deflated, stored, with zip64 sizes, with a data descriptor."""
    (tmp_path / NAME).write_bytes(PLAIN)
    subprocess.run(["zip", "-q", *options.split(), WHAT, NAME], cwd=tmp_path, check=True)
    assert read((tmp_path / WHAT).read_bytes()) == PLAIN


@pytest.mark.parametrize("plain", [b"", b"x", PLAIN])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_python_zipfile(plain: bytes, method: int) -> None:
    """What Python writes, to a file and, with a data descriptor, to a pipe; zip64 sizes included."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    out = Pipe()
    with zipfile.ZipFile(out, "w", method) as archive, archive.open(NAME, "w", force_zip64=True) as member:
        member.write(plain)
    for data in (out.getvalue(), pack((NAME, plain), method=method)):
        assert read(data) == plain


def test_a_member_is_read_in_any_pieces() -> None:
    """Pieces of any length add up; nothing comes behind the end."""
    with zipped.open_member(io.BytesIO(pack((NAME, PLAIN))), WHAT) as stream:
        pieces = [stream.read(length) for length in (1, 70_000, 3, 6 << 20, 9, 9)]
    assert b"".join(pieces) == PLAIN
    assert pieces[4:] == [b"", b""]


def test_other_contents() -> None:
    """Several members, none, another name, a path, a directory and a link: it says what it has."""
    two = pack((NAME, PLAIN), ("readme", b""))
    assert f"it holds '{NAME}', 'readme', not one file called '{NAME}'" in refused(two)
    assert "'0', '1', '2' and 7 more" in refused(pack(*((str(number), b"") for number in range(10))))
    assert "it has no files" in refused(pack())
    assert "'other.vhdx'" in refused(pack(("other.vhdx", PLAIN)))
    assert f"'../{NAME}'" in refused(pack((f"../{NAME}", PLAIN)))
    assert f"'{NAME}/'" in refused(pack((f"{NAME}/", b"")))
    link = zipfile.ZipInfo(NAME)
    link.external_attr, link.create_system = 0o120777 << 16, 3
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(link, b"/etc/passwd")
    assert "no regular file (mode 120777)" in refused(out.getvalue())


def test_encrypted(tmp_path: Path) -> None:
    """A password is not asked for."""
    (tmp_path / NAME).write_bytes(PLAIN)
    subprocess.run(["zip", "-qjP", "secret", WHAT, NAME], cwd=tmp_path, check=True)
    assert "encrypted" in refused((tmp_path / WHAT).read_bytes())


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods(method: int) -> None:
    """Deflate is what zip files of disks have."""
    assert f"compression method {method}" in refused(pack((NAME, PLAIN), method=method))


def test_bytes_that_belong_to_nothing() -> None:
    """Before, behind, a comment, and between the member and the directory."""
    data = pack((NAME, PLAIN))
    assert "comment" in refused(pack((NAME, PLAIN), comment=b"hello"))
    assert "behind it" in refused(data + b"x")
    assert "bytes around it" in refused(b"x" + data)
    offset = struct.unpack_from("<L", data, len(data) - 6)[0]
    moved = data[:-6] + struct.pack("<L", offset + 3) + data[-2:]
    assert "3 bytes between" in refused(moved[:offset] + b"xxx" + moved[offset:])
    one = data[:offset] + data[offset:-22] + b"x" + data[-22:]
    length = struct.unpack_from("<L", data, len(data) - 10)[0] + 1
    assert "behind the last entry" in refused(one[:-10] + struct.pack("<L", length) + one[-6:])


def test_cut_short() -> None:
    """At any place, the bytes of a zip file's beginning are no zip file."""
    data = pack((NAME, b"text" * 9))
    for length in range(len(data)):
        refused(data[:length])


def test_lying_headers() -> None:
    """Sizes and CRC are checked against what comes out, the local header against the central one."""
    data = pack((NAME, PLAIN))
    central = struct.unpack_from("<L", data, len(data) - 6)[0]

    def changed(at: int, value: bytes) -> bytes:
        return data[:at] + value + data[at + len(value) :]

    size = struct.unpack_from("<L", data, central + 24)[0]
    assert "length or CRC" in refused(changed(central + 24, struct.pack("<L", size - 1)))
    assert "length or CRC" in refused(changed(central + 24, struct.pack("<L", size + 1)))
    assert "length or CRC" in refused(changed(central + 16, b"\0\0\0\0"))
    assert "zip64 extra field" in refused(changed(central + 24, b"\xff" * 4))
    assert "two headers differ" in refused(changed(30, b"D"))
    assert "two headers differ" in refused(changed(8, b"\0"))
    assert "two headers differ" in refused(changed(central + 42, b"\1"))
    assert "several parts" in refused(changed(len(data) - 18, b"\1"))
    assert "end record says" in refused(changed(len(data) - 10, b"\xff" * 8))


def test_a_bomb_stops_at_the_size_that_it_tells() -> None:
    """A member that makes more than its header says is refused on the way."""
    data = pack((NAME, bytes(64 << 20)))
    central = struct.unpack_from("<L", data, len(data) - 6)[0]
    lying = data[: central + 24] + struct.pack("<L", 9 << 20) + data[central + 28 :]
    with zipped.open_member(io.BytesIO(lying), WHAT) as stream:
        assert stream.read(8 << 20) == bytes(8 << 20)
        with pytest.raises(HostileInput, match="length or CRC"):
            stream.read(4 << 20)


def test_damage_anywhere() -> None:
    """Every bit of a small zip file flipped: refused, or the very same bytes (a time, an attribute)."""
    data = pack((NAME, b"some text " * 9))
    outcomes = set()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert read(bytes(damaged)) == b"some text " * 9
            outcomes.add("same")
        except (HostileInput, EOFError, zlib.error):
            outcomes.add("refused")
    assert outcomes == {"same", "refused"}
