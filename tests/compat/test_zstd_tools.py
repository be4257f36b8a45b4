"""What zstd writes, of Debian 12 and of sid, from files and pipes, is given back byte for byte."""

from __future__ import annotations

import random
import struct
import subprocess
from functools import cache
from typing import TYPE_CHECKING

import pytest

from rehydrator.codecs import zstd_streams as streams
from rehydrator.codecs.stream_encoder import Hit, first_difference
from rehydrator.core.reader import BytesReader
from rehydrator.formats import containers
from rehydrator.host.filters import run_filter
from tests.compat import sid

if TYPE_CHECKING:
    from pathlib import Path

    from rehydrator.formats.streams import Part

KIB, MIB = 1 << 10, 1 << 20
OLD = ["/usr/bin/zstd"]


@cache
def plain() -> bytes:
    """5 MiB and some: words, records, noise, zeros, and words again, which --long finds."""
    dice = random.Random(47)
    words = [dice.randbytes(dice.randrange(2, 9)).hex().encode() for _ in range(3000)]
    text = b" ".join(dice.choice(words) for _ in range(260_000))[: 2 * MIB]
    records = b"".join(struct.pack("<IHH", k, k * 7 % 65536, dice.randrange(9)) for k in range(60_000))
    return (text[:MIB] + records + dice.randbytes(300 * KIB) + bytes(300 * KIB) + text + text)[
        : 5 * MIB + 777
    ]


def made(options: str, given: bytes, *, program: list[str], file: Path | None = None) -> bytes:
    """What the program writes of a pipe, or of a file where one is named."""
    words = [*program, "-q", "-c", *options.split()]
    if file is None:
        return subprocess.run(words, check=True, input=given, capture_output=True, timeout=300).stdout
    file.write_bytes(given)
    return subprocess.run([*words, file], check=True, capture_output=True, timeout=300).stdout


def only_part(data: bytes, given: bytes) -> Part:
    """The only frame; what is read is what was given."""
    taken = bytearray()
    layout = containers.read(BytesReader(data), "a frame", 64 * MIB, taken.extend)
    assert taken == given
    (part,) = layout.parts
    assert (0, len(data), "zstd") == (part.at, part.packed, part.family)
    return part


def found(data: bytes, given: bytes, prefix: int | None = None) -> Hit:
    """The first guess that the whole proves, found from a prefix of the plain bytes or from all."""
    hints = only_part(data, given).hints
    hits = streams.ZSTD.find(given[:prefix], data, hints, whole=prefix is None, run=run_filter)
    assert len(hits) <= (1 if prefix is None else 8)
    proven = [hit for hit in hits if reproduces(hit, data, given)]
    assert proven, f"no encoder found: {hits}"
    return proven[0]


def reproduces(hit: Hit, data: bytes, given: bytes) -> bool:
    codec = {each.id: each for each in streams.ZSTD.codecs}[hit.codec]
    params = codec.checked(dict(hit.params))
    chunks = [given[at : at + 100_001] for at in range(0, len(given), 100_001)]
    return first_difference(codec.encode(dict(params), chunks, run_filter), [data]) is None


WHOLE_BLOCKS = 4 * MIB


@pytest.mark.parametrize("size", [0, 1, 3000, 100_000, 300_000, WHOLE_BLOCKS, None])
@pytest.mark.parametrize("options", ["", "-1", "-9", "--fast=3", "-3 --single-thread", "-1 --single-thread"])
@pytest.mark.parametrize("pipe", [False, True], ids=["file", "pipe"])
def test_programs_of_the_librarys_version(tmp_path: Path, options: str, size: int | None, pipe: bool) -> None:
    """sid's zstd is of the library's version: the library writes its bytes, from a file (the size
    is in the header) and from a pipe (it is not, and whole blocks are followed by an empty one)."""
    given = plain()[:size]
    data = made(options, given, program=sid.program("zstd"), file=None if pipe else tmp_path / "disk")
    part = only_part(data, given)
    level = next((int(word[1:]) for word in options.split() if word[1:].isdigit()), 3)
    level = -3 if "fast" in options else level
    expected = streams.params(
        level,
        size=len(given) if part.hints["content_size"] else None,
        workers=int("single" not in options),
        end=part.hints["content_size"] & (1 - part.hints["empty_end"]),
    )
    assert part.hints["content_size"] == (not pipe or not given)
    assert b"".join(streams.LIBZSTD.encode(dict(expected), [given], None)) == data


@pytest.mark.parametrize(
    "options",
    [
        "-3",
        "-10",
        "-1",
        "-3 --single-thread",
        "-9 --single-thread",
        "-3 --long",
        "-5 --long=24",
        "-3 --no-check",
    ],
)
@pytest.mark.parametrize("pipe", [False, True], ids=["file", "pipe"])
def test_the_encoder_is_found_from_a_prefix(tmp_path: Path, options: str, pipe: bool) -> None:
    """2 MiB are enough to tell the level and --long, with threads and without."""
    data = made(options, plain(), program=sid.program("zstd"), file=None if pipe else tmp_path / "disk")
    hit = found(data, plain(), 2 * MIB)
    assert hit.codec == "zstd.stream"
    said = streams.LIBZSTD.described(dict(hit.params))
    level, *others = options.split()
    assert said.startswith(f"libzstd, as zstd {level} ")
    # A file that fits into the window has no trace of the window's size.
    assert all(other.split("=")[0] in said for other in others if other != "--single-thread")


@pytest.mark.parametrize("options", ["-19", "--ultra -22"])
def test_slow_levels(tmp_path: Path, options: str) -> None:
    """The best levels, of 300 KiB: proven by all of it."""
    given = plain()[: 300 * KIB]
    data = made(options, given, program=sid.program("zstd"), file=tmp_path / "disk")
    assert found(data, given).codec == "zstd.stream"


def test_rsyncable(tmp_path: Path) -> None:
    """--rsyncable is found, behind what is likelier."""
    given = plain() * 3
    data = made("-1 --rsyncable", given, program=sid.program("zstd"), file=tmp_path / "disk")
    hit = found(data, given)
    assert dict(hit.params)["rsyncable"] == 1


def test_threads_do_not_matter(tmp_path: Path) -> None:
    """-T1, -T2, -T4 and -T0 write the same, which is not what --single-thread writes."""
    every = {
        made(f"-1 {threads}", plain(), program=sid.program("zstd"), file=tmp_path / "disk")
        for threads in ("-T1", "-T2", "-T4", "-T0")
    }
    assert len(every) == 1
    assert (
        made("-1 --single-thread", plain(), program=sid.program("zstd"), file=tmp_path / "disk") not in every
    )


@pytest.mark.parametrize("options", ["-3", "-1 --single-thread", "-10", "-1 -T2 --no-check"])
@pytest.mark.parametrize("pipe", [False, True], ids=["file", "pipe"])
@pytest.mark.parametrize("size", [300_000, WHOLE_BLOCKS, None])
def test_programs_of_another_version(tmp_path: Path, options: str, pipe: bool, size: int | None) -> None:
    """Debian 12's zstd is not of the library's version: the library does not write its bytes, and
    the program itself does, from a pipe, whatever it was that it read."""
    given = plain()[:size]
    data = made(options, given, program=OLD, file=None if pipe else tmp_path / "disk")
    hit = found(data, given)
    hints = only_part(data, given).hints
    by_library = streams.ZSTD.find(given, data, hints, whole=True, run=None)
    # Both versions write the same of some small inputs.
    same = size == 300_000 and bool(by_library)
    assert (hit.codec, by_library) == (("zstd.stream", [hit]) if same else ("zstd.program", []))


def test_another_version_is_found_from_a_prefix(tmp_path: Path) -> None:
    """2 MiB of a file tell that the program wrote it, though its header says more than a pipe's."""
    data = made("-10", plain(), program=OLD, file=tmp_path / "disk")
    assert found(data, plain(), 2 * MIB).codec == "zstd.program"


def test_frames_of_pzstd() -> None:
    """pzstd announces frames by skippable ones, and each frame is a part."""
    given = plain() * 3
    words = [*sid.program("zstd")[:-1], str(sid.ROOT / "usr/bin/pzstd"), "-q", "-c", "-p", "2", "-1"]
    data = subprocess.run(words, check=True, input=given, capture_output=True, timeout=300).stdout
    taken = bytearray()
    layout = containers.read(BytesReader(data), "pzstd", 64 * MIB, taken.extend)
    assert taken == given
    assert len(layout.parts) > 1
    assert layout.facts["skippable frames"] == str(len(layout.parts))


def test_versions_are_told() -> None:
    """The library's and the program's own, of which the second is Debian 12's."""
    assert streams.LIBZSTD.version(None) == f"zstd {sid_version()}"
    assert streams.PROGRAM.version(run_filter) == "zstd 1.5.4 (program)"


def sid_version() -> str:
    said = subprocess.run(
        [*sid.program("zstd"), "--version"], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    return said.split(" v")[1].split(",")[0]
