"""Containers as real programs write them: told by content, read whole, each part where it lies."""

from __future__ import annotations

import random
import subprocess
from functools import cache
from typing import TYPE_CHECKING

import pytest

from rehydrator.codecs import streams
from rehydrator.core.reader import BytesReader
from rehydrator.formats import containers

if TYPE_CHECKING:
    from pathlib import Path

    from rehydrator.formats.streams import Layout

MIB = 1 << 20
NAME = "disk.raw"


@cache
def plain() -> bytes:
    """2.5 MiB: words, noise and zeros."""
    dice = random.Random(50)
    words = [dice.randbytes(dice.randrange(2, 9)).hex().encode() for _ in range(3000)]
    text = b" ".join(dice.choice(words) for _ in range(160_000))[:MIB]
    return text + dice.randbytes(300_000) + bytes(MIB) + text[:200_000]


def read(data: bytes, expected: bytes, name: str = "a file") -> Layout:
    taken = bytearray()
    layout = containers.read(BytesReader(data), name, 16 * MIB, taken.extend)
    assert taken == expected
    assert sum(part.plain for part in layout.parts) == len(expected)
    return layout


def piped(*argv: str) -> bytes:
    return subprocess.run(argv, check=True, input=plain(), capture_output=True, timeout=300).stdout


@pytest.mark.parametrize(
    ("container", "argv"),
    [
        ("xz", "xz -c"),
        ("xz", "xz -1 -T2 --block-size=1MiB --check=sha256 -c"),
        ("xz", "xz --check=crc32 -0 -c"),
        ("xz", "xz --check=none -0 -c"),
        ("xz", "xz --x86 --lzma2=preset=1 -c"),
        ("gzip", "gzip -9 -c"),
        ("gzip", "gzip --rsyncable -c"),
        ("gzip", "pigz -c"),
        ("zstd", "zstd -q -c"),
        ("zstd", "zstd -q -c -10 --long"),
        ("bzip2", "bzip2 -c"),
        ("bzip2", "bzip2 -1 -c"),
        ("bzip2", "pbzip2 -c -p2"),
        ("xz", "7zz a -txz -mx1 -si -so disk"),
        ("gzip", "7zz a -tgzip -mx1 -si -so disk"),
        ("bzip2", "7zz a -tbzip2 -mx1 -si -so disk"),
    ],
)
def test_programs_in_a_pipe(container: str, argv: str) -> None:
    """What xz, gzip, pigz, zstd, bzip2, pbzip2 and 7-Zip write is read, with its checksums."""
    assert read(piped(*argv.split()), plain()).container == container


@pytest.mark.parametrize("options", ["-9j", "-1j", "-0j", "-9jX", "-9j -fz", "-9j -fd", "-j -z"])
def test_info_zip(tmp_path: Path, options: str) -> None:
    """zip: deflated, stored, with zip64 sizes, with a data descriptor, with a comment; the same
    bytes as unzip has."""
    (tmp_path / NAME).write_bytes(plain())
    archive = tmp_path / f"{NAME}.zip"
    words = ["zip", "-q", *options.split(), archive.name, NAME]
    subprocess.run(words, cwd=tmp_path, check=True, input=b"a comment\n", capture_output=True)
    layout = read(archive.read_bytes(), plain(), archive.name)
    assert [part.family for part in layout.parts] == ["" if "-0j" in options else "deflate"]
    unzipped = subprocess.run(["unzip", "-p", archive], check=True, capture_output=True).stdout
    assert unzipped == plain()


@pytest.mark.parametrize("method", ["Deflate", "Copy"])
def test_zip_of_7zip(tmp_path: Path, method: str) -> None:
    """7-Zip's own zip files."""
    (tmp_path / NAME).write_bytes(plain())
    archive = tmp_path / f"{NAME}.zip"
    words = ["7zz", "a", "-tzip", f"-mm={method}", "-mx1", archive.name, NAME]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    assert read(archive.read_bytes(), plain(), archive.name).facts["name"] == NAME


@pytest.mark.parametrize("level", range(1, 10))
def test_bzip2_is_written_again(level: int) -> None:
    """The library writes what the program wrote, at every level."""
    data = piped("bzip2", f"-{level}", "-c")
    (part,) = read(data, plain()).parts
    (hit,) = streams.find("bzip2", plain(), data, part.hints, whole=True)
    assert hit.params == (("level", level),)


def test_streams_of_pbzip2_are_written_again() -> None:
    """pbzip2's streams hold 900 kB each, and each is libbz2's."""
    data = piped("pbzip2", "-9", "-c", "-p2")
    layout = read(data, plain())
    assert len(layout.parts) == 3
    for part in layout.parts:
        content = plain()[part.plain_at : part.plain_at + part.plain]
        stream = data[part.at : part.at + part.packed]
        assert streams.find("bzip2", content, stream, part.hints, whole=True)
