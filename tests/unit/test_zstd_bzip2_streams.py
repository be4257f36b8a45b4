"""Encoders of zstd frames and bzip2 streams: exact, found by trial, and closed to nonsense."""

from __future__ import annotations

import bz2
import random

import pytest
from backports import zstd as library

from rehydrator.codecs import streams, zstd_streams
from rehydrator.core.errors import HostileInput
from rehydrator.core.reader import BytesReader
from rehydrator.formats import containers

MIB = 1 << 20
DICE = random.Random(48)
WORDS = [DICE.randbytes(DICE.randrange(2, 9)).hex().encode() for _ in range(2000)]
TEXT = b" ".join(DICE.choice(WORDS) for _ in range(100_000))


def hints_of(data: bytes) -> dict[str, int]:
    (part,) = containers.read(BytesReader(data), "x", 64 * MIB, lambda _: None).parts
    return dict(part.hints)


def written(params: streams.Params, plain: bytes, piece: int = MIB) -> bytes:
    chunks = (plain[at : at + piece] for at in range(0, len(plain), piece))
    return b"".join(streams.encoder("zstd.stream", dict(params)).encode(chunks))


@pytest.mark.parametrize("level", [-7, 1, 3, 9, 16])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("sized", [False, True])
def test_zstd_frames_decode_however_the_input_is_cut(level: int, workers: int, sized: bool) -> None:
    """The bytes depend on the parameters alone, and the level is found in them."""
    params = zstd_streams.params(level, size=len(TEXT) if sized else None, workers=workers)
    data = written(params, TEXT)
    assert library.decompress(data) == TEXT
    assert written(params, TEXT, 999) == written(params, TEXT, 200_000) == data
    hits = streams.find("zstd", TEXT, data, hints_of(data), whole=True)
    if level == -7:
        assert hits == []
    else:
        assert written(hits[0].params, TEXT) == data


@pytest.mark.parametrize("size", [0, 1, 128 << 10, 256 << 10])
def test_the_end_of_a_zstd_frame(size: int) -> None:
    """Whole blocks that came without a size are followed by an empty one; hints tell."""
    piped = written(zstd_streams.params(3, size=None, workers=0), TEXT[:size])
    file = written(zstd_streams.params(3, size=size, workers=0), TEXT[:size])
    assert hints_of(piped)["empty_end"] == (size % (128 << 10) == 0)
    assert hints_of(file)["empty_end"] == (size == 0)
    for data in (piped, file):
        (hit,) = streams.find("zstd", TEXT[:size], data, hints_of(data), whole=True)
        assert written(hit.params, TEXT[:size]) == data


def test_a_sample_has_a_size_of_its_own() -> None:
    """An encoder that is told a file's size refuses a sample of it, but for its own parameters."""
    sized, piped = (dict(zstd_streams.params(3, size=size)) for size in (len(TEXT), None))
    with pytest.raises(HostileInput, match="Src size is incorrect"):
        written(tuple(sized.items()), TEXT[:200_000])
    for params in (sized, piped):
        assert (
            library.decompress(written(streams.of_sample("zstd.stream", params, 200_000), TEXT[:200_000]))
            == (TEXT[:200_000])
        )
    assert streams.of_sample("bzip2", {"level": 9}, 200_000) == (("level", 9),)
    assert streams.of_sample("zstd.program", piped, 200_000) == tuple(sorted(piped.items()))


def test_a_disk_that_begins_with_zeros() -> None:
    """The first blocks tell nothing; later ones do."""
    plain = bytes(MIB) + TEXT
    data = written(zstd_streams.params(5, size=None), plain)
    hits = streams.find("zstd", plain[: MIB + 400_000], data, hints_of(data), whole=False)
    assert dict(hits[0].params)["level"] == 5


def test_nothing_is_found_in_what_nobody_wrote() -> None:
    """A frame with other blocks has no encoder, and no family no hits."""
    data = bytearray(written(zstd_streams.params(3, size=None), TEXT))
    hints = hints_of(bytes(data))
    data[200:400] = DICE.randbytes(200)
    for whole in (False, True):
        assert streams.find("zstd", TEXT, bytes(data), hints, whole=whole) == []
    assert streams.find("zstd", TEXT, bytes(data), {}, whole=True) == []


@pytest.mark.parametrize(
    "change",
    [
        {"level": 23},
        {"window_log": 9},
        {"window_log": 32},
        {"workers": 2},
        {"rsyncable": 1, "workers": 0},
        {"size_mib": 1, "content_size": 0},
        {"size_rest": MIB},
        {"other": 1},
    ],
)
def test_zstd_parameters_that_there_are_not(change: dict[str, int]) -> None:
    """Refused before anything is allocated."""
    params = {**dict(zstd_streams.params(3, size=5)), **change}
    with pytest.raises(HostileInput, match="does not have"):
        streams.encoder("zstd.stream", params)


@pytest.mark.parametrize("size", [len(TEXT) - 1, len(TEXT) + 1])
def test_another_size_than_the_header_says(size: int) -> None:
    """An encoder that was promised another size refuses at the end."""
    for workers in (0, 1):
        with pytest.raises(HostileInput, match="not the bytes that the zstd frame was to hold"):
            written(zstd_streams.params(3, size=size, workers=workers), TEXT)


def test_zstd_memory_grows_with_what_is_asked_for() -> None:
    """More with threads, with --long and at higher levels; no more than twice a small input."""

    def needed(level: int, plain: int | None = None, **others: int) -> int:
        params = zstd_streams.params(level, size=None, **others)
        return streams.memory("zstd.stream", dict(params), plain)

    assert needed(3, workers=0) < needed(3) < needed(19) < needed(22)
    assert needed(3, workers=0) < needed(3, workers=0, long=1, window_log=27)
    assert needed(3, plain=MIB) < 16 * MIB < needed(3)


def test_zstd_in_words() -> None:
    """As the program's options."""
    params = dict(zstd_streams.params(22, size=None, long=1, window_log=30, checksum=0))
    expected = "libzstd, as zstd -22 --ultra -T1 --long=30 --no-check"
    assert streams.described("zstd.stream", params) == expected
    fast = dict(zstd_streams.params(-5, size=None, workers=0))
    assert streams.described("zstd.program", fast) == "zstd --fast=5 --single-thread"
    assert streams.version("zstd.stream").startswith("zstd 1.")


@pytest.mark.parametrize("level", range(1, 10))
def test_bzip2_levels(level: int) -> None:
    """Every level is the header's, proven by the whole; a prefix is compared as far as it goes."""
    data = bz2.compress(TEXT, level)
    hints = hints_of(data)
    for plain, whole in ((TEXT, True), (TEXT[:600_000], False), (TEXT[:10], False)):
        (hit,) = streams.find("bzip2", plain, data, hints, whole=whole)
        assert (hit.codec, hit.params) == ("bzip2", (("level", level),))
    made = streams.encoder("bzip2", {"level": level}).encode([TEXT[:5], TEXT[5:]])
    assert b"".join(made) == data


def test_bzip2_of_another_encoder() -> None:
    """Blocks cut elsewhere are not libbz2's, which the whole tells, and a prefix of two blocks."""
    data = bytearray(bz2.compress(TEXT, 1))
    data[50_000] ^= 1
    hints = {"level": 1}
    assert streams.find("bzip2", TEXT, bytes(data), hints, whole=True) == []
    data[30] ^= 1
    assert streams.find("bzip2", TEXT[:300_000], bytes(data), hints, whole=False) == []
    assert streams.find("bzip2", TEXT, bytes(data), {}, whole=True) == []
    with pytest.raises(HostileInput):
        streams.encoder("bzip2", {"level": 0})
    assert streams.memory("bzip2", {"level": 9}) == 7_600_000
    assert streams.described("bzip2", {"level": 9}) == "bzip2 -9"
