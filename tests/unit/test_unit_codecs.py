"""Units of file systems are encoded in one call, by encoders that are found on the unit itself."""

from __future__ import annotations

import lzma
import random
import sys
import zlib
from typing import TYPE_CHECKING

import pytest
from backports import zstd
from lz4 import block as lz4_block

from rehydrator.codecs import streams, units
from rehydrator.core.errors import HostileInput, LimitExceeded, ToolMissing
from rehydrator.core.reader import BytesReader
from rehydrator.formats import xz

if TYPE_CHECKING:
    from collections.abc import Mapping

DICE = random.Random(9)
WORDS = [DICE.randbytes(DICE.randint(2, 9)) for _ in range(400)]
PLAIN = b"".join(DICE.choices(WORDS, k=30_000))[: 128 << 10]
LIBRARY = next(iter(units.zstd_libraries()))

XZ = {"bcj": 0, "dict_size": 128 << 10, "lc": 3, "lp": 0, "pb": 2}
ZLIB = {"level": 9, "ng": 0, "strategy": 0, "wbits": 15}
ENCODERS: list[tuple[str, dict[str, int]]] = [
    ("unit.zlib", ZLIB),
    ("unit.zlib", ZLIB | {"level": 6, "wbits": 12, "strategy": 1}),
    ("unit.zlib", ZLIB | {"ng": 1}),
    ("unit.xz", XZ),
    ("unit.xz", XZ | {"bcj": 4, "dict_size": 96 << 10}),
    ("unit.xz", XZ | {"bcj": 7, "lc": 2, "lp": 2}),
    ("unit.zstd", {"level": 15, "library": LIBRARY}),
    ("unit.zstd", {"level": 3, "library": LIBRARY}),
    ("unit.lz4", {"level": 0}),
    ("unit.lz4", {"level": 12}),
]
HINTS: dict[str, int] = {"level": 15, "wbits": 15}


def encoded(codec: str, params: Mapping[str, int], *chunks: bytes) -> bytes:
    return b"".join(streams.encoder(codec, params).encode(chunks))


def decoded(codec: str, packed: bytes, size: int) -> bytes:
    if codec == "unit.lz4":
        plain: bytes = lz4_block.decompress(packed, uncompressed_size=size)
        return plain
    if codec == "unit.zstd":
        return zstd.decompress(packed)
    return zlib.decompress(packed) if codec == "unit.zlib" else lzma.decompress(packed)


def found(codec: str, plain: bytes, packed: bytes, hints: Mapping[str, int]) -> list[dict[str, int]]:
    return [dict(hit.params) for hit in streams.find(codec, plain, packed, hints, whole=True)]


@pytest.mark.parametrize(("codec", "params"), ENCODERS)
@pytest.mark.parametrize("size", [1, 4095, 65_546, len(PLAIN)])
def test_units_decode_to_their_plain_bytes(codec: str, params: dict[str, int], size: int) -> None:
    """Decoders that are not ours read what was encoded, however it came in pieces."""
    plain = PLAIN[:size]
    made = encoded(codec, params, plain[:700], b"", plain[700:])
    assert made == encoded(codec, params, plain)
    assert decoded(codec, made, size) == plain


@pytest.mark.parametrize(("codec", "params"), ENCODERS)
def test_the_encoder_of_a_unit_is_found(codec: str, params: dict[str, int]) -> None:
    """Among the hits is the encoder that wrote it, given the level that a file system states."""
    hints = {name: params[name] for name in HINTS if name in params} | {"strategies": 3}
    assert params in found(codec, PLAIN, encoded(codec, params, PLAIN), hints)


@pytest.mark.parametrize("codec", [family.name for family in units.UNITS])
def test_no_encoder_is_found_for_other_bytes(codec: str) -> None:
    """Neither for noise, nor for a beginning, nor for what is cut short."""
    params = next(params for name, params in ENCODERS if name == codec)
    made = encoded(codec, params, PLAIN)
    hints = HINTS | params
    assert found(codec, PLAIN, DICE.randbytes(500), hints) == []
    assert found(codec, PLAIN[:-1], made, hints) == []
    assert [found(codec, PLAIN[:500], made[:size], hints) for size in range(48)] == [[]] * 48
    assert streams.find(codec, PLAIN, made, hints, whole=False) == []
    assert streams.find(codec, bytes(units.MAX_UNIT + 1), made, hints, whole=True) == []


def test_xz_units_are_as_liblzma_writes_them_in_one_call() -> None:
    """One block, CRC32, both sizes in its header, and room for the largest packed size there."""
    made = encoded("unit.xz", XZ, bytes(5000))
    container = xz.read(BytesReader(made))
    (stream,), (block,) = container.streams, container.blocks
    sizes = (block.shape.has_data_size, block.shape.has_plain_size, block.plain_size)
    assert (stream.check, *sizes) == (1, True, True, 5000)
    # 2 bytes for 5,004, though the data are fewer than 128; 2 for 5,000; 3 for the filter; 2 before.
    assert (block.data_size < 128, block.shape.header_size) == (True, 12 + 4)


def test_other_versions_of_zstd_are_asked_for() -> None:
    """Units are made by the very version that is stated; the message says where it is to be had."""
    with pytest.raises(ToolMissing, match=r"zstd 1\.4\.8 is needed, and 1\.\d+\.\d+.* is here$"):
        encoded("unit.zstd", {"level": 3, "library": 10408}, PLAIN)


def test_the_package_of_a_version_of_zstd_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that a distribution of PyPI bundles is asked for by that."""
    monkeypatch.setattr(units, "zstd_libraries", lambda: {10507: zstd.compress})
    with pytest.raises(ToolMissing, match=r"zstd 1\.5\.4 .* 1\.5\.7 is here; zstandard==0\.20\.0 from PyPI"):
        encoded("unit.zstd", {"level": 3, "library": 10504}, PLAIN)


@pytest.mark.parametrize("number", units.zstd_libraries())
def test_every_zstd_library_writes_frames_in_one_call(number: int) -> None:
    """Of the packages' and of the system's: the size is stated, a checksum is not."""
    made = encoded("unit.zstd", {"level": 15, "library": number}, PLAIN)
    info = zstd.get_frame_info(made)
    assert (info.decompressed_size, made[4] & 4) == (len(PLAIN), 0)
    assert zstd.decompress(made) == PLAIN


@pytest.mark.parametrize(
    ("codec", "params", "module", "package"),
    [
        ("unit.lz4", {"level": 0}, "lz4.block", "lz4"),
        ("unit.zlib", ZLIB | {"ng": 1}, "zlib_ng.zlib_ng", "zlib-ng"),
    ],
)
def test_what_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, codec: str, params: dict[str, int], module: str, package: str
) -> None:
    """Without a package nothing is found of what it makes, and encoding says what to install."""
    made = encoded(codec, params, PLAIN)
    monkeypatch.setitem(sys.modules, module, None)
    assert found(codec, PLAIN, made, HINTS | params) == []
    with pytest.raises(ToolMissing, match=f"the Python package {package} is not installed"):
        encoded(codec, params, PLAIN)


@pytest.mark.parametrize(
    ("codec", "params"),
    [
        ("unit.zlib", ZLIB | {"level": 0}),
        ("unit.zlib", ZLIB | {"wbits": 8}),
        ("unit.zlib", ZLIB | {"strategy": 5}),
        ("unit.zlib", ZLIB | {"memlevel": 8}),
        ("unit.xz", XZ | {"bcj": 3}),
        ("unit.xz", XZ | {"bcj": 10}),
        ("unit.xz", XZ | {"dict_size": (128 << 10) + 1}),
        ("unit.xz", XZ | {"dict_size": 2 << 20}),
        ("unit.xz", XZ | {"lc": 3, "lp": 2}),
        ("unit.zstd", {"level": 23, "library": LIBRARY}),
        ("unit.zstd", {"level": 0, "library": LIBRARY}),
        ("unit.zstd", {"level": 3}),
        ("unit.lz4", {"level": 13}),
    ],
)
def test_unknown_parameters_are_refused(codec: str, params: dict[str, int]) -> None:
    """Before anything is encoded."""
    with pytest.raises(HostileInput):
        streams.encoder(codec, params)


def test_units_are_limited() -> None:
    """No unit is larger than the largest block of squashfs."""
    with pytest.raises(LimitExceeded, match="more than 1048576 bytes"):
        encoded("unit.zlib", ZLIB, bytes(units.MAX_UNIT), b"1")


@pytest.mark.parametrize(("codec", "params"), ENCODERS)
def test_memory_is_that_of_one_unit(codec: str, params: dict[str, int]) -> None:
    """However large the space that its units lie in is; a small unit takes no more than a large one."""
    largest = streams.memory(codec, params)
    assert streams.memory(codec, params, 10 << 30) == largest
    assert streams.memory(codec, params, 128 << 10) <= largest


@pytest.mark.parametrize(("codec", "params"), ENCODERS)
def test_units_say_what_they_take(codec: str, params: dict[str, int]) -> None:
    """Memory below 64 MiB, more than nothing; a name and the library's version."""
    assert 0 < streams.memory(codec, params, 1 << 20) < 64 << 20
    assert streams.described(codec, params).split()[0].strip(",") in {
        "xz",
        "zlib",
        "zlib-ng",
        "zstd",
        "lz4",
        "lz4hc",
    }
    assert any(part[0].isdigit() for part in streams.version(codec).split())
