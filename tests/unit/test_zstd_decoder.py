"""Zstd frames in one call, and by backports.zstd alone: the same bytes, the same refusals."""

from __future__ import annotations

import random

import pytest
from backports import zstd

from rehydrator.core import zstd_decoder, zstd_library
from rehydrator.core.errors import HostileInput
from rehydrator.core.zstd_decoder import Prefix, decompress

TEXT = b"the same again and again, " * 400
NOISE = random.Random(1).randbytes(8000)
LEVEL: dict[int, int] = {zstd.CompressionParameter.compression_level: 19}


@pytest.fixture(params=["one call", "blocks"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs with the library's own functions, and without them."""
    if request.param == "blocks":
        monkeypatch.setattr(zstd_library, "decoder", lambda: None)
    else:
        assert zstd_library.decoder() is not None
    monkeypatch.setattr(zstd_decoder, "_LARGE", 0)


pytestmark = pytest.mark.usefixtures("_way")


@pytest.mark.parametrize("plain", [b"", b"x", TEXT, NOISE, bytes(1 << 20), NOISE * 3000])
def test_what_was_compressed_comes_back(plain: bytes) -> None:
    """Of any size, nothing and more than a block among them."""
    assert decompress(zstd.compress(plain), len(plain), "pack") == plain


def test_behind_a_prefix() -> None:
    """A frame refers to the prefix that it was made with; with another one, or with none, it is
    refused or comes to other bytes, which a digest tells."""
    prefix = Prefix(NOISE)
    packed = zstd.compress(NOISE[100:] + TEXT, options=LEVEL, zstd_dict=prefix.dictionary.as_prefix)
    assert len(packed) < 200
    assert decompress(packed, len(NOISE) - 100 + len(TEXT), "pack", prefix) == NOISE[100:] + TEXT
    for wrong in (None, Prefix(NOISE[:50]), Prefix(TEXT)):
        try:
            made = decompress(packed, len(NOISE) - 100 + len(TEXT), "pack", wrong)
        except HostileInput:
            continue
        assert made != NOISE[100:] + TEXT


def test_a_prefix_that_looks_like_a_dictionary() -> None:
    """It is raw content, whatever its first bytes are."""
    prefix = Prefix(bytes.fromhex("37a430ec") + NOISE)
    packed = zstd.compress(NOISE, zstd_dict=prefix.dictionary.as_prefix)
    assert decompress(packed, len(NOISE), "pack", prefix) == NOISE


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"\x28\xb5\x2f\xfd",
        zstd.compress(TEXT) + b"\0",
        zstd.compress(TEXT) * 2,
        zstd.compress(TEXT)[:-1],
        zstd.compress(TEXT + b"!"),
        zstd.compress(TEXT[1:]),
        zstd.compress(bytes(1 << 26)),
        NOISE,
    ],
)
def test_not_exactly_one_frame(stored: bytes) -> None:
    """One frame of the stated size and nothing else; a bomb is not unpacked."""
    with pytest.raises(HostileInput, match="pack"):
        decompress(stored, len(TEXT), "pack")


@pytest.mark.parametrize("seed", range(40))
def test_damaged_frames(seed: int) -> None:
    """Any byte of a frame may be another: what comes is of the size, or it is refused."""
    dice = random.Random(seed)
    stored = bytearray(zstd.compress(TEXT + NOISE))
    stored[dice.randrange(len(stored))] ^= 1 << dice.randrange(8)
    try:
        made = decompress(bytes(stored), len(TEXT + NOISE), "pack")
    except HostileInput:
        return
    assert len(made) == len(TEXT + NOISE)


def test_a_frame_that_states_more_than_it_holds() -> None:
    """A size in the header that the blocks do not come to."""
    honest = zstd.compress(b"abc", options={zstd.CompressionParameter.checksum_flag: 0})
    assert honest[5] == 3
    lying = honest[:5] + b"\x04" + honest[6:]
    with pytest.raises(HostileInput, match="pack"):
        decompress(lying, 4, "pack")
