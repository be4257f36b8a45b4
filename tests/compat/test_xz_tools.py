"""What xz writes, of Debian 12 and with the liblzma of sid, is given back byte for byte."""

from __future__ import annotations

import random
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from rehydrator.codecs import lzma2
from rehydrator.core.reader import BytesReader
from rehydrator.formats import xz
from tests import xz_files
from tests.compat import sid

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
DICE = random.Random(21)
WORDS = [DICE.randbytes(DICE.randrange(2, 12)) for _ in range(3000)]
TEXT = b"".join(DICE.choice(WORDS) for _ in range(150_000))
# Text, bytes that no encoder makes smaller, and zeros, as a disk has them.
DISK = TEXT + DICE.randbytes(200_000) + bytes(MIB) + TEXT[:100_000]

XZ = ["/usr/bin/xz"]


def of_sid() -> list[str]:
    """Debian 12's xz with sid's liblzma, which has the encoder."""
    linker = sid.program("xz")[:-1]
    return [*linker, *XZ]


def packed(plain: bytes, *options: str, program: list[str] | None = None) -> bytes:
    words = [*(program or XZ), *options, "--stdout"]
    return subprocess.run(words, check=True, input=plain, capture_output=True, timeout=300).stdout


def blocks_of(data: bytes, plain: bytes) -> list[tuple[xz.Block, bytes, bytes]]:
    """Every block with its data and its plain bytes; the container is rendered exactly."""
    container = xz.read(BytesReader(data))
    parts = {**dict(xz_files.render(container))}
    parts |= {at: data[at : at + size] for at, size in xz_files.data_and_checks(container)}
    assert b"".join(parts[at] for at in sorted(parts)) == data
    assert container.plain_size == len(plain)
    found, here = [], 0
    for block in container.blocks:
        stored = data[block.data_at : block.data_at + block.data_size]
        found.append((block, stored, plain[here : here + block.plain_size]))
        here += block.plain_size
    return found


def check_again(data: bytes, plain: bytes, level: int, *, extreme: bool = False) -> list[xz.Block]:
    """Each block is decoded, and encoded again as `level` does; the container's blocks."""
    every = blocks_of(data, plain)
    for block, stored, content in every:
        params = lzma2.preset(level, block.shape.dict_size, extreme=extreme)
        assert lzma2.decode(stored, block.shape.dict_size, len(content)) == content
        assert lzma2.encode(content, dict(params)) == stored
    return [block for block, _, _ in every]


PROGRAMS = [pytest.param(lambda: XZ, id="5.4"), pytest.param(of_sid, id="sid")]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("extreme", [False, True], ids=["", "e"])
@pytest.mark.parametrize("level", range(9))
def test_levels(level: int, extreme: bool, program: Callable[[], list[str]]) -> None:
    """-0 to -8 and -0e to -8e, one thread: one block without sizes, the level's dictionary;
    the level is found from the first bytes, before any other that differs."""
    data = packed(DISK, f"-{level}{'e' * extreme}", "-T1", program=program())
    (block,) = check_again(data, DISK, level, extreme=extreme)
    stored = data[block.data_at : block.data_at + block.data_size]
    assert not block.shape.has_data_size
    assert block.shape.dict_size == lzma2.PRESET_DICT[level]
    found = lzma2.find(DISK[: -MIB // 2], stored[:600_000], block.shape.dict_size)
    assert lzma2.preset(level, block.shape.dict_size, extreme=extreme) in found


def test_level_nine() -> None:
    """-9 with its dictionary of 64 MiB: found first, and encoded again."""
    data = packed(DISK, "-9", "-T1")
    (block,) = check_again(data, DISK, 9)
    stored = data[block.data_at : block.data_at + block.data_size]
    found = lzma2.find(DISK, stored, block.shape.dict_size, whole=True)
    assert found[0] == lzma2.preset(9, 64 * MIB)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("check", ["none", "crc32", "crc64", "sha256"])
@pytest.mark.parametrize("threads", ["-T1", "-T2", "-T+1"])
def test_threads_and_checks(threads: str, check: str, program: Callable[[], list[str]]) -> None:
    """Blocks of --block-size: independent ones, with sizes in their headers from several
    threads (-T+1 as well), without from one; every check has its place."""
    options = ["-6", threads, "--block-size=1MiB", f"--check={check}"]
    data = packed(DISK, *options, program=program())
    blocks = check_again(data, DISK, 6)
    assert len(blocks) == -(-len(DISK) // MIB)
    several = threads != "-T1"
    assert {(b.shape.has_data_size, b.shape.has_plain_size) for b in blocks} == {(several, several)}
    assert xz.read(BytesReader(data)).streams[0].check_name == check


@pytest.mark.parametrize("program", PROGRAMS)
def test_block_size_of_threads(program: Callable[[], list[str]]) -> None:
    """The multi-threaded block is 3 dictionaries, and 1 MiB at least."""
    small = check_again(packed(DISK, "-0", "-T2", program=program()), DISK, 0)
    assert [block.plain_size for block in small[:-1]] == [MIB] * (len(small) - 1)
    long = DISK + TEXT[:900_000]
    large = check_again(packed(long, "-1", "-T2", program=program()), long, 1)
    assert [block.plain_size for block in large] == [3 * MIB, len(long) - 3 * MIB]


@pytest.mark.parametrize("program", PROGRAMS)
def test_incompressible_blocks(program: Callable[[], list[str]]) -> None:
    """A multi-threaded block that outgrows its bound is stored in chunks of 64 KiB, with a
    dictionary of 4 KiB in its header (measured with -0: at 28 MiB of noise, not at 12); one
    thread writes chunks of the encoder."""
    noise = random.Random(3).randbytes(28 * MIB)
    data = packed(noise + TEXT, "-0", "-T2", "--block-size=28MiB", program=program())
    (first, stored, plain), (second, _, _) = blocks_of(data, noise + TEXT)
    assert first.shape.dict_size == lzma2.MIN_DICT
    assert second.shape.dict_size == lzma2.PRESET_DICT[0]
    assert lzma2.encode(plain, dict(lzma2.STORED)) == stored
    assert lzma2.find(plain[:MIB], stored[:MIB], first.shape.dict_size)[0] == lzma2.STORED
    check_again(packed(noise[:MIB], "-0", "-T1", program=program()), noise[:MIB], 0)


def test_block_list() -> None:
    """Blocks of different sizes."""
    data = packed(DISK, "-2", "-T2", "--block-list=100KiB,1MiB,0")
    sizes = [block.plain_size for block in check_again(data, DISK, 2)]
    assert sizes == [100 << 10, MIB, len(DISK) - MIB - (100 << 10)]


@pytest.mark.parametrize("threads", ["-T1", "-T2"])
def test_empty(threads: str) -> None:
    """Nothing at all: a stream without blocks."""
    assert check_again(packed(b"", threads), b"", 6) == []


def test_streams() -> None:
    """Streams of several runs in a row, with padding, which `xz -l` reads as we do."""
    data = (
        packed(TEXT, "-1") + bytes(512) + packed(b"") + packed(TEXT, "-1", "-T2", "--check=sha256") + bytes(4)
    )
    check_again(data, TEXT + TEXT, 1)
    assert subprocess.run([*XZ, "-dc"], check=True, input=data, capture_output=True).stdout == TEXT + TEXT
    assert [stream.padding for stream in xz.read(BytesReader(data)).streams] == [512, 0, 4]


def test_filters_are_not_ours() -> None:
    """A chain with a BCJ filter is read and rendered, and says that it is more than LZMA2."""
    data = packed(TEXT, "--x86", "--lzma2=preset=6")
    ((block, _, _),) = blocks_of(data, TEXT)
    assert [each.name for each in block.shape.filters] == ["x86", "lzma2"]
    assert not block.shape.is_plain_lzma2


def test_a_dictionary_that_the_header_cannot_say() -> None:
    """The header rounds a dictionary up to 2^n or 2^n + 2^(n-1), the encoder used the exact one:
    5 MiB, where a memory limit shrank it. A prefix does not tell; the proof on the whole does."""
    plain = TEXT[:300_000] + DICE.randbytes(5 * MIB) + TEXT[:300_000]
    data = packed(plain, "-7", "-T1", "--memlimit-compress=66MiB")
    ((block, stored, _),) = blocks_of(data, plain)
    assert block.shape.dict_size == 6 * MIB
    found = lzma2.find(plain[: 4 * MIB], stored, block.shape.dict_size)
    assert lzma2.preset(7, 6 * MIB) in found
    proven = [
        size
        for size in lzma2.dict_sizes(6 * MIB)
        if lzma2.prove([plain], [stored], dict(lzma2.preset(7, size)))
    ]
    assert proven == [5 * MIB]


def test_a_dictionary_of_no_whole_number() -> None:
    """Known exception: --lzma2=dict= with a size that is not in the header and not of whole
    MiB. The whole block proves that nothing is found."""
    plain = TEXT[:300_000] + DICE.randbytes(2200 << 10) + TEXT[:300_000]
    data = packed(plain, "--lzma2=preset=6,dict=2100KiB")
    ((block, stored, _),) = blocks_of(data, plain)
    sizes = lzma2.dict_sizes(block.shape.dict_size)
    assert sizes == [3 * MIB]
    assert lzma2.find(plain, stored, sizes[0], whole=True) == []


def test_lag_of_the_encoder() -> None:
    """What the encoder has written of a prefix are the first bytes of what it writes of the
    whole, at every length, and it never lags behind by more than a chunk and a look-ahead."""
    whole = lzma2.encode(DISK, dict(lzma2.preset(6, 8 * MIB)))
    compressor = lzma2._compressor(dict(lzma2.preset(6, 8 * MIB)))
    written = b""
    lags = []
    for at in range(0, len(DISK), 50_000):
        written += compressor.compress(DISK[at : at + 50_000])
        known = lzma2_plain_size(written)
        lags.append(min(at + 50_000, len(DISK)) - known)
        assert whole.startswith(written)
    assert max(lags) <= 2 * MIB + (64 << 10)


def lzma2_plain_size(data: bytes) -> int:
    """Plain bytes of the whole chunks that LZMA2 data hold."""
    at = size = 0
    while at < len(data):
        control, low = data[at], int.from_bytes(data[at + 1 : at + 3], "big") + 1
        if control < 0x80:
            at, size = at + 3 + low, size + low
        else:
            header = 6 if control >= 0xC0 else 5
            at, size = (
                at + header + int.from_bytes(data[at + 3 : at + 5], "big") + 1,
                size + low + ((control & 31) << 16),
            )
    return size


@pytest.mark.parametrize("level", range(10))
@pytest.mark.parametrize("extreme", [False, True], ids=["", "e"])
def test_memory(level: int, extreme: bool) -> None:
    """Memory of the encoder, within a tenth (and 1 MiB) of what xz says that it takes."""
    words = [*XZ, "-vv", "-T1", f"-{level}{'e' * extreme}", "--stdout"]
    said = subprocess.run(words, check=True, input=b"", capture_output=True, text=False).stderr.decode()
    found = re.search(r"([0-9,]+) MiB of memory is required", said)
    assert found, said
    expected = int(found[1].replace(",", "")) * MIB
    params = dict(lzma2.preset(level, lzma2.PRESET_DICT[level], extreme=extreme))
    assert abs(lzma2.memory(params) - expected) <= expected // 10 + MIB


def test_known_answer_of_the_program() -> None:
    """The answer that the known-answer test wants is that of xz itself, 5.4 and sid's."""
    for program in (XZ, of_sid()):
        data = packed(lzma2.sample(), "-6", "-T1", program=program)
        check_again(data, lzma2.sample(), 6)


def test_sid_is_another_library() -> None:
    """The second program in these tests really runs another liblzma."""
    said = subprocess.run([*of_sid(), "--version"], check=True, capture_output=True, text=True).stdout
    assert f"liblzma {sid.library_version('liblzma')}" in said
    assert "liblzma 5.4." not in said


def test_the_version_is_that_of_the_library() -> None:
    """What `version` says is what Debian's xz says of its library."""
    said = subprocess.run([*XZ, "--version"], check=True, capture_output=True, text=True).stdout
    assert lzma2.version() in said.splitlines()
