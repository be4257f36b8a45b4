"""The .xz container is read and rendered exactly, or refused; LZMA2 is encoded and bounded."""

from __future__ import annotations

import hashlib
import lzma
import random
import re
import zlib
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rehydrator.codecs import lzma2
from rehydrator.core.errors import HostileInput, LimitExceeded, Unexplained
from rehydrator.core.reader import BytesReader
from rehydrator.formats import xz
from tests import xz_files

DICE = random.Random(4)
WORDS = [DICE.randbytes(DICE.randrange(2, 12)) for _ in range(500)]
TEXT = b"".join(DICE.choice(WORDS) for _ in range(40_000))
SMALL = TEXT[:5000]
DICT = xz.Filter(xz.LZMA2, bytes((16,)))  # 1 MiB
FAST = dict(lzma2.preset(1, lzma2.MIB))


def joined(container: xz.Container, contents: dict[int, bytes]) -> bytes:
    """The file of a container, with the data and checks at their offsets."""
    parts = {**dict(xz_files.render(container)), **contents}
    return b"".join(parts[at] for at in sorted(parts))


def made(blocks: list[bytes], shape: xz.Shape) -> bytes:
    """A stream of `blocks` with CRC32, written by `render` and the encoder alone."""
    at = xz.HEADER_SIZE
    placed: list[xz.Block] = []
    contents: dict[int, bytes] = {}
    for plain in blocks:
        data = lzma2.encode(plain, FAST)
        block = xz.Block(at, shape, len(data), len(plain), 4)
        contents |= {block.data_at: data, block.check_at: zlib.crc32(plain).to_bytes(4, "little")}
        placed.append(block)
        at = block.end
    return joined(xz.Container(0, (xz.Stream(0, 1, tuple(placed), 0),)), contents)


def again(data: bytes) -> bytes:
    """A file, rendered from what was read of it, its data and checks taken from it."""
    container = xz.read(BytesReader(data))
    spans = xz_files.data_and_checks(container)
    return joined(container, {at: data[at : at + length] for at, length in spans})


def refused(data: bytes) -> str:
    with pytest.raises(Unexplained) as caught:
        xz.read(BytesReader(data))
    return str(caught.value)


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")


ONE = lzma.compress(SMALL)
EMPTY = lzma.compress(b"")
SHAPES = [
    xz.Shape(size, stored, plain, (DICT,))
    for size in (16, 20, 28)
    for stored in (False, True)
    for plain in (False, True)
]
THREE = made([SMALL, b"x", TEXT[5000:9001]], xz.Shape(20, True, True, (DICT,)))


@pytest.mark.parametrize(
    "shape", SHAPES, ids=lambda s: f"{s.header_size}-{s.has_data_size}-{s.has_plain_size}"
)
def test_written_from_nothing(shape: xz.Shape) -> None:
    """A stream that render and the encoder wrote is decoded by liblzma and read back as it was
    meant, with every shape of block header."""
    blocks = [SMALL, b"x", TEXT[5000:9001]]
    data = made(blocks, shape)
    container = xz.read(BytesReader(data))
    assert lzma.decompress(data) == b"".join(blocks)
    assert [(block.shape, block.plain_size) for block in container.blocks] == [
        (shape, len(b)) for b in blocks
    ]
    assert again(data) == data


@pytest.mark.parametrize("check", [lzma.CHECK_NONE, lzma.CHECK_CRC32, lzma.CHECK_CRC64, lzma.CHECK_SHA256])
def test_checks(check: int) -> None:
    """Every check has its place and its name."""
    data = lzma.compress(SMALL, check=check)
    stream = xz.read(BytesReader(data)).streams[0]
    names = {0: "none", 1: "crc32", 4: "crc64", 10: "sha256"}
    assert stream.check_name == names[check]
    if check == lzma.CHECK_SHA256:
        at = stream.blocks[0].check_at
        assert data[at : at + 32] == hashlib.sha256(SMALL).digest()
    assert again(data) == data


def test_streams_and_padding() -> None:
    """Several streams, an empty one among them, with padding between and behind."""
    data = ONE + bytes(8) + EMPTY + THREE + bytes(5000)
    container = xz.read(BytesReader(data))
    found = [(stream.at, len(stream.blocks), stream.padding) for stream in container.streams]
    second = len(ONE) + 8
    assert found == [(0, 1, 8), (second, 0, 0), (second + len(EMPTY), 3, 5000)]
    assert container.plain_size == 2 * 5000 + 1 + 4001
    assert again(data) == data


def test_filters() -> None:
    """A chain with a delta and an x86 filter is named and rendered, and is not plain LZMA2."""
    chain = [
        {"id": lzma.FILTER_DELTA, "dist": 4},
        {"id": lzma.FILTER_X86},
        {"id": lzma.FILTER_LZMA2, "preset": 3},
    ]
    data = lzma.compress(SMALL, filters=chain)
    shape = xz.read(BytesReader(data)).blocks[0].shape
    assert [each.name for each in shape.filters] == ["delta", "x86", "lzma2"]
    assert not shape.is_plain_lzma2
    assert again(data) == data


@pytest.mark.parametrize(
    ("bits", "size"), [(0, 4096), (1, 6144), (18, 2 << 20), (28, 64 << 20), (40, (1 << 32) - 1)]
)
def test_dictionary_size(bits: int, size: int) -> None:
    """The dictionary's size is 2^n or 2^n + 2^(n-1), and 4 GiB - 1 at the end (5.3.1)."""
    shape = xz.Shape(12, False, False, (xz.Filter(xz.LZMA2, bytes((bits,))),))
    assert shape.dict_size == size


FIRST = xz.HEADER_SIZE


def with_header(fields: bytes) -> bytes:
    """ONE, with the fields of its block header (12 bytes) replaced and its CRC32 made good."""
    header = fields.ljust(8, b"\0")
    return patched(ONE, FIRST, header + crc(header))


def with_index(index: bytes) -> bytes:
    """ONE with another index, whose CRC32 and footer are made good."""
    at = xz_files.index_at(xz.read(BytesReader(ONE)).streams[0])
    index += bytes(-len(index) % 4)
    index += crc(index)
    fields = (len(index) // 4 - 1).to_bytes(4, "little") + ONE[-4:-2]
    return ONE[:at] + index + crc(fields) + fields + b"YZ"


BLOCK = xz.read(BytesReader(ONE)).blocks[0]
UNPADDED, PLAIN = xz_files.encode_vli(xz_files.unpadded_size(BLOCK)), xz_files.encode_vli(BLOCK.plain_size)

REFUSED = {
    "another file": (b"not an xz file at all", "another magic"),
    "header only": (ONE[:12], "the stream footer"),
    "no footer": (ONE[:-2], "another magic"),
    "trailing bytes": (ONE + b"more", "trailing bytes"),
    "odd padding": (ONE + bytes(3), "no multiple of 4"),
    "much padding": (ONE + bytes(xz.MAX_PADDING + 4), "zero bytes before"),
    "much padding in all": ((EMPTY + bytes(xz.MAX_PADDING // 2)) * 3, "zero bytes behind streams"),
    "second half": (b"\xfd7zXZ\0" + ONE[40:], "begin before the file"),
    "footer flipped": (patched(ONE, len(ONE) - 5, b"\xff"), "a wrong CRC32"),
    "header flags": (patched(ONE, 7, b"\1"), "is not that of its footer"),
    "block header flipped": (patched(ONE, FIRST + 2, b"\xff"), "a wrong CRC32"),
    "a block that is an index": (patched(ONE, FIRST, b"\0"), "is an index"),
    "reserved flags": (with_header(b"\2\4\x21\1\x16"), "unknown flags"),
    "unknown filter": (with_header(b"\2\0\x22\1\x16"), "an unknown filter 0x22"),
    "delta alone": (with_header(b"\2\0\x03\1\x16"), "the filter chain delta"),
    "lzma2 without dictionary": (with_header(b"\2\0\x21\0"), "LZMA2 properties"),
    "dictionary of 41 bits": (with_header(b"\2\0\x21\1\x29"), "LZMA2 properties 29"),
    "filter leaves the header": (with_header(b"\2\0\x21\x70"), "too short"),
    "block header padding": (with_header(b"\2\0\x21\1\x16\0\0\1"), "unknown fields"),
    "data size lies": (with_header(b"\2\x40\1\x21\1\x16"), "not as many data"),
    "plain size lies": (with_header(b"\2\x80\1\x21\1\x16"), "not as many plain bytes"),
    "index too long a block": (
        with_index(b"\0\1" + xz_files.encode_vli(1 << 62) + PLAIN),
        "begin before the file",
    ),
    "index too short a block": (with_index(b"\0\1\x10" + PLAIN), "is not that of its footer"),
    "index of many": (with_index(b"\0" + xz_files.encode_vli(1 << 40)), "blocks; at most"),
    "index cut": (with_index(b"\0\3" + UNPADDED + PLAIN), "too short"),
    "index of 64 bits": (with_index(b"\0" + b"\xff" * 10), "more than 63 bits"),
    "index not minimal": (with_index(b"\0\x81\0" + UNPADDED + PLAIN), "leading zeros"),
    "index with more": (with_index(b"\0\1" + UNPADDED + PLAIN + bytes(8)), "bytes behind its blocks"),
    "index marker": (with_index(b"\1\1" + UNPADDED + PLAIN), "does not begin with a zero byte"),
    "too many streams": (EMPTY * (xz.MAX_STREAMS + 1), "streams"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    """What is malformed is declined, and the message says what and where."""
    data, reason = REFUSED[name]
    assert reason in refused(data)


def test_good_patches() -> None:
    """The helpers that make bad files make a good one from good fields: REFUSED tests what it says."""
    assert with_header(ONE[FIRST : FIRST + 5]) == ONE
    assert with_index(b"\0\1" + UNPADDED + PLAIN) == ONE


def test_many_blocks() -> None:
    """An index may not be larger than the number of blocks that is read; it is not even read."""
    fields = (1 << 24).to_bytes(4, "little") + ONE[-4:-2]
    data = ONE[:-12] + crc(fields) + fields + b"YZ"
    assert "is too large" in refused(data)


@settings(deadline=None)
@given(st.integers(0, len(THREE) - 1))
def test_truncated(length: int) -> None:
    """A file cut anywhere is refused."""
    refused(THREE[:length])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 1 << 20)), min_size=1, max_size=6))
def test_mutated(changes: list[tuple[int, int]]) -> None:
    """With any bytes changed, a file is refused, or rendered exactly as it now is."""
    data = bytearray(ONE + bytes(4) + THREE)
    for value, at in changes:
        data[at % len(data)] = value
    with suppress(HostileInput):
        assert again(bytes(data)) == bytes(data)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_noise_behind_the_magic(noise: bytes) -> None:
    """Noise is refused."""
    refused(b"\xfd7zXZ\0" + noise)


@given(st.integers(0, xz.MAX_VLI))
def test_vli(number: int) -> None:
    """A variable-length integer is read as it was written."""
    assert xz._Fields(xz_files.encode_vli(number), "a test").vli() == number


# ---- the encoder ----


@pytest.mark.parametrize("level", range(7))
@pytest.mark.parametrize("extreme", [False, True])
def test_encoder_is_that_of_the_library(level: int, extreme: bool) -> None:
    """Data of a block that the library's .xz writer made are encoded again, in any pieces."""
    data = lzma.compress(TEXT, preset=level | (lzma.PRESET_EXTREME if extreme else 0))
    block = xz.read(BytesReader(data)).blocks[0]
    packed = data[block.data_at : block.data_at + block.data_size]
    params = lzma2.preset(level, block.shape.dict_size, extreme=extreme)
    pieces = [TEXT[:1], TEXT[1:70_000], b"", TEXT[70_000:]]
    assert block.shape.dict_size == lzma2.PRESET_DICT[level]
    assert lzma2.encode(TEXT, dict(params)) == packed
    assert b"".join(lzma2.encode_pieces(pieces, dict(params))) == packed
    assert params in lzma2.find(TEXT, packed, block.shape.dict_size, whole=True)
    assert lzma2.decode(packed, block.shape.dict_size, len(TEXT)) == TEXT


def test_levels_alike() -> None:
    """Levels that find holds to be one encoder give the same bytes, the others do not."""
    groups = lzma2._alike(lzma2.MIB)
    answers = [{lzma2.known_answer(dict(params)) for params in group} for group in groups]
    assert [len(answer) for answer in answers] == [1] * 9
    assert sum(map(len, groups)) == 20
    assert len(set.union(*answers)) >= 8


def test_find_likeliest_first() -> None:
    """With the dictionary of -9, -9 comes first; with that of -6, -6."""
    assert lzma2._alike(64 * lzma2.MIB)[0] == [lzma2.preset(k, 64 * lzma2.MIB) for k in (9, 8, 7, 6)]
    assert lzma2._alike(8 * lzma2.MIB)[0][0] == lzma2.preset(6, 8 * lzma2.MIB)


@pytest.mark.parametrize(
    ("stated", "sizes"),
    [(4096, [4096]), (1 << 20, [1 << 20]), (4 << 20, [4 << 20]), (6 << 20, [6 << 20, 5 << 20])],
)
def test_dictionaries_of_one_header(stated: int, sizes: list[int]) -> None:
    """The dictionaries that a header of 6 MiB may stand for are 6 and 5 MiB: 4 has its own."""
    assert lzma2.dict_sizes(stated) == sizes
    assert lzma2.dict_sizes(64 << 20) == [size << 20 for size in range(64, 48, -1)]


def test_stored() -> None:
    """Stored chunks of 64 KiB: encoded in any pieces, found, decoded."""
    plain = random.Random(1).randbytes(200_000)
    data = lzma2.encode(plain, dict(lzma2.STORED))
    assert data[:3] == b"\1\xff\xff"
    assert len(data) == 200_000 + 4 * 3 + 1
    assert b"".join(lzma2.encode_pieces([plain[:7], plain[7:]], dict(lzma2.STORED))) == data
    assert lzma2.find(plain, data, 4096, whole=True) == [lzma2.STORED]
    assert lzma2.decode(data, 4096, 200_000) == plain
    assert lzma2.encode(b"", dict(lzma2.STORED)) == lzma2.encode(b"", FAST) == b"\0"


def test_nothing_found() -> None:
    """Data of other plain bytes, and a prefix too short to compare anything: nothing is found."""
    data = lzma2.encode(TEXT, FAST)
    assert lzma2.find(TEXT[1:], data, lzma2.MIB) == []
    assert lzma2.find(TEXT[:1000], data, lzma2.MIB) == []
    assert lzma2.find(TEXT, data[:-1], lzma2.MIB, whole=True) == []
    assert lzma2.find(TEXT, data + b"\0", lzma2.MIB, whole=True) == []


def test_prove() -> None:
    """The proof takes both sides in pieces, and fails for a byte more, less or other."""
    data = lzma2.encode(TEXT, FAST)
    pieces = [data[:5], data[5:70_000], data[70_000:]]
    assert lzma2.prove([TEXT[:9], TEXT[9:]], pieces, FAST)
    assert not lzma2.prove([TEXT], [*pieces, b"\0"], FAST)
    assert not lzma2.prove([TEXT], [data[:-1]], FAST)
    assert not lzma2.prove([TEXT], [patched(data, 9999, b"\0\0")], FAST)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"stored": 2},
        {"preset": 6, "extreme": 0},
        {"preset": 10, "extreme": 0, "dict_size": 4096},
        {"preset": 6, "extreme": 2, "dict_size": 4096},
        {"preset": 6, "extreme": 0, "dict_size": 4095},
        {"preset": 6, "extreme": 0, "dict_size": 1 << 32},
        {"preset": 6, "extreme": 0, "dict_size": 4096, "lc": 3},
    ],
)
def test_parameters_out_of_range(params: dict[str, int]) -> None:
    """Parameters that there are not are refused before the library sees them."""
    with pytest.raises(HostileInput, match=r"LZMA2 (parameters|dictionary)"):
        lzma2.encode(b"", params)


def test_decoder_is_bounded() -> None:
    """A bomb is stopped at the size that was promised; short, long and broken data are refused."""
    bomb = lzma2.encode(bytes(30 * lzma2.MIB), FAST)
    pieces = lzma2.decode_pieces([bomb], lzma2.MIB, 3 * lzma2.MIB)
    assert [len(next(pieces)) for _ in range(3)] == [lzma2.MIB] * 3
    with pytest.raises(HostileInput, match="more than 3145728 bytes"):
        next(pieces)
    data = lzma2.encode(SMALL, FAST)
    for broken, size, why in [
        (data[:-1], 5000, "cut short"),
        (data + b"\0", 5000, "behind the end"),
        (data, 5001, "not of 5001"),
        (b"\x03" + data, 5000, "not LZMA2 data"),
        (b"", 0, "cut short"),
        (b"\0", -1, "block of -1"),
    ]:
        with pytest.raises(HostileInput, match=why):
            lzma2.decode(broken, lzma2.MIB, size)
    assert lzma2.decode(b"\0", lzma2.MIB, 0) == b""


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 1 << 16)), min_size=1, max_size=4))
def test_decoder_mutated(changes: list[tuple[int, int]]) -> None:
    """With any bytes changed, data are refused, or decode to the promised number of bytes."""
    data = bytearray(lzma2.encode(SMALL, FAST))
    for value, at in changes:
        data[at % len(data)] = value
    with suppress(HostileInput):
        assert len(lzma2.decode(bytes(data), lzma2.MIB, 5000)) == 5000


def test_memory_is_limited() -> None:
    """A header that asks for the largest dictionary costs no memory: the trial declines it. The
    decoder takes no more than the plain bytes need, whatever the header asks for."""
    data = lzma2.encode(SMALL, FAST)
    with pytest.raises(LimitExceeded, match="MiB of memory"):
        lzma2.find(SMALL, data, lzma2.MAX_DICT)
    with pytest.raises(LimitExceeded, match="674 MiB of memory"):
        lzma2.find(SMALL, data, 64 * lzma2.MIB, most=673 * lzma2.MIB)
    with pytest.raises(HostileInput, match="dictionary of 4294967295"):
        lzma2.find(SMALL, data, (1 << 32) - 1)
    assert lzma2.decode(data, (1 << 32) - 1, 5000) == SMALL


def test_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the library gets no memory, the error says how much it takes."""

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(lzma, "LZMACompressor", full)
    monkeypatch.setattr(lzma, "LZMADecompressor", full)
    with pytest.raises(LimitExceeded, match="encoder: it takes 674 MiB"):
        lzma2.encode(b"", dict(lzma2.preset(9, 64 * lzma2.MIB)))
    with pytest.raises(LimitExceeded, match="decoder: it takes 64 MiB"):
        lzma2.decode(b"\0", 64 * lzma2.MIB, 1 << 40)


def test_known_answer() -> None:
    """An answer stays the same and differs by parameters."""
    answer = lzma2.known_answer(FAST)
    assert len(lzma2.sample()) == 256 << 10
    assert hashlib.sha256(lzma2.encode(lzma2.sample(), FAST)).hexdigest() == answer
    assert lzma2.known_answer(dict(lzma2.preset(9, lzma2.MIB))) != answer


def test_the_library_is_told_by_its_answer_where_it_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A liblzma inside of the interpreter has no name to look up: the known answer stands for it."""

    class Inside:
        def __init__(self, _name: str) -> None: ...

    assert re.fullmatch(r"liblzma \d+\.\d+\.\d+(alpha|beta)?", lzma2.version())
    monkeypatch.setattr("ctypes.CDLL", Inside)
    answer = lzma2.known_answer(dict(lzma2.preset(6, lzma2.MIB)))
    assert lzma2.version() == f"liblzma with the known answer {answer[:12]}"
