"""Codecs: the encoders' own bytes, limits of the decoders, and the search for an encoder."""

from __future__ import annotations

import random
import zlib
from hashlib import sha256

import pytest
from zlib_ng import zlib_ng

from rehydrator import codecs
from rehydrator.codecs import CODECS, Params, candidates, codec, find
from rehydrator.core.digest import sha256_hex
from rehydrator.core.errors import HostileInput


def _text(size: int) -> bytes:
    """Words in random order, the same on every machine: matches at every distance, so that
    levels and libraries differ."""
    stream = b"".join(sha256(k.to_bytes(2, "big")).digest() for k in range(2000))
    words = [stream[at : at + 3 + stream[at] % 9] for at in range(0, 3600, 12)]
    picks = int.from_bytes(stream[4000:], "big")
    out = bytearray()
    while len(out) < size:
        picks, word = divmod(picks, 300)
        out += words[word]
    return bytes(out[:size])


PLAIN = _text(1 << 16)
ZLIB6: Params = (("level", 6), ("memlevel", 8), ("wbits", 15))
QCOW2: Params = (("level", 6), ("memlevel", 9), ("wbits", -12))
ZSTD3: Params = (("level", 3),)
PARAMS = {"zlib": ZLIB6, "zlib-ng": ZLIB6, "zstd": ZSTD3}

# (codec, parameters) -> library version that the digest is of, SHA-256 of the encoded PLAIN.
KNOWN = {
    ("zlib", ZLIB6): ("zlib 1.2.13", "0686806a44d46035048e10442891d7813e4a03377ad5a877773c72cfa81e6ca5"),
    ("zlib", QCOW2): ("zlib 1.2.13", "467f278cf00b764941e1e3ab8d61892649d755d72cef7ff12b54f876b4a87ec5"),
    ("zlib-ng", ZLIB6): ("zlib-ng 2.3.3", "9f7b7c0dc33ab91f4a1455f97e53f896019703beaf8ec02a5e39d65b2f270857"),
    ("zlib-ng", QCOW2): ("zlib-ng 2.3.3", "dd827a12bd9ef57503e1fc906992c8516aa47ca7b872f7918881b1d29b3a96e5"),
    ("zstd", ZSTD3): ("zstd 1.5.7", "e45940548d60c52d693a6112be2dfb708d462b6eabd4c356f65a3b7eaaf5c252"),
}


@pytest.mark.parametrize(("name", "params"), KNOWN)
def test_known_answers(name: str, params: Params) -> None:
    """The encoded bytes of one library version, pinned; of another version, the round trip."""
    packed = CODECS[name].encode(PLAIN, dict(params))
    version, digest = KNOWN[name, params]
    if CODECS[name].version() == version:
        assert sha256_hex(packed) == digest
    assert CODECS[name].decode(packed, dict(params), len(PLAIN)) == PLAIN


def test_the_text_tells_levels_and_libraries_apart() -> None:
    """Levels 6, 9 and 1 of both libraries; otherwise the known answers would say little."""
    packed = {CODECS[name].encode(PLAIN, dict(params)) for name, params in candidates("zlib")[:6]}
    assert len(packed) == 6


@pytest.mark.parametrize("name", CODECS)
def test_the_same_input_gives_the_same_bytes(name: str) -> None:
    """Twice in one process, and for every size down to nothing."""
    for size in (0, 1, 100, 65536):
        params = dict(PARAMS[name])
        packed = CODECS[name].encode(PLAIN[:size], params)
        assert CODECS[name].encode(PLAIN[:size], params) == packed
        assert CODECS[name].decode(packed, params, size) == PLAIN[:size]


@pytest.mark.parametrize("name", CODECS)
def test_a_bomb_stops_at_its_limit(name: str) -> None:
    """64 MiB of zeros that claim to be 64 KiB; the decoder never makes more than it may."""
    params = dict(PARAMS[name])
    packed = CODECS[name].encode(bytes(64 << 20), params)
    with pytest.raises(HostileInput, match="more than 65536 bytes"):
        CODECS[name].decode(packed, params, 65536)


@pytest.mark.parametrize("name", CODECS)
def test_sizes_must_be_exact(name: str) -> None:
    """One byte more, one byte less, a stream cut short, no stream."""
    params = dict(PARAMS[name])
    packed = CODECS[name].encode(PLAIN, params)
    for wrong, size in (
        (packed, len(PLAIN) + 1),
        (packed, len(PLAIN) - 1),
        (packed[:-1], len(PLAIN)),
        (b"", 0),
        (b"\xff" * 100, 10),
    ):
        with pytest.raises(HostileInput):
            CODECS[name].decode(wrong, params, size)


@pytest.mark.parametrize("name", CODECS)
def test_unpack_says_where_a_stream_ends(name: str) -> None:
    """Bytes behind it are ignored and counted: a descriptor may count whole sectors."""
    params = dict(PARAMS[name])
    packed = CODECS[name].encode(PLAIN, params)
    assert CODECS[name].unpack(packed + b"behind", params, len(PLAIN)) == (PLAIN, len(packed))
    assert CODECS[name].decode(packed + bytes(512), params, len(PLAIN)) == PLAIN


def test_raw_deflate_has_no_header() -> None:
    """windowBits below zero: what qcow2 stores, which zlib itself inflates."""
    packed = codec("zlib").encode(PLAIN, dict(QCOW2))
    assert zlib.decompress(packed, -12) == PLAIN
    assert codec("zlib-ng").decode(packed, dict(QCOW2), len(PLAIN)) == PLAIN


@pytest.mark.parametrize("name", ["zlib", "zlib-ng"])
@pytest.mark.parametrize(
    "change",
    [
        ("level", 10),
        ("level", -1),
        ("memlevel", 0),
        ("memlevel", 10),
        ("wbits", 16),
        ("wbits", 31),
        ("wbits", 8),
        ("wbits", 0),
        ("wbits", -16),
    ],
)
def test_deflate_parameters_are_checked(name: str, change: tuple[str, int]) -> None:
    """Parameters come from recipes: anything out of range is refused, both ways."""
    params = dict(ZLIB6) | dict([change])
    with pytest.raises(HostileInput, match="out of range"):
        codec(name).encode(b"x", params)
    with pytest.raises(HostileInput, match="out of range"):
        codec(name).decode(b"x", params, 1)
    del params[change[0]]
    with pytest.raises(HostileInput, match="out of range"):
        codec(name).encode(b"x", params)


@pytest.mark.parametrize("params", [{}, {"level": 0}, {"level": 23}, {"level": -5}])
def test_zstd_parameters_are_checked(params: dict[str, int]) -> None:
    """Levels 1 to 22."""
    with pytest.raises(HostileInput, match="out of range"):
        codec("zstd").encode(b"x", params)


def test_an_unknown_codec_is_refused() -> None:
    """With the names that exist."""
    with pytest.raises(HostileInput, match="unknown codec 'lzma'; this version has zlib, zlib-ng, zstd"):
        codec("lzma")


def test_versions_name_the_library() -> None:
    """They go into bundles and into messages."""
    assert codec("zlib").version() == f"zlib {zlib.ZLIB_RUNTIME_VERSION}"
    assert codec("zlib-ng").version() == f"zlib-ng {zlib_ng.ZLIBNG_RUNTIME_VERSION}"
    assert codec("zstd").version().startswith("zstd 1.")


def test_candidates_rank_by_likelihood() -> None:
    """qemu's own parameters first, of both libraries; none for a family that nobody has."""
    assert candidates("zlib")[:2] == [("zlib", ZLIB6), ("zlib-ng", ZLIB6)]
    assert candidates("deflate12")[:2] == [("zlib", QCOW2), ("zlib-ng", QCOW2)]
    assert candidates("zstd")[0] == ("zstd", ZSTD3)
    assert candidates("lzma") == []


def _samples(*encoders: tuple[str, Params]) -> list[tuple[bytes, bytes]]:
    dice = random.Random(4)
    samples = []
    for name, params in encoders:
        at = dice.randrange(1 << 15)
        plain = PLAIN[at : at + (1 << 14)]
        samples.append((plain, CODECS[name].encode(plain, dict(params))))
    return samples


def test_find_names_every_candidate() -> None:
    """Whatever of the candidates made a sample, find says so."""
    for family in ("zlib", "deflate12", "zstd"):
        for encoder in candidates(family):
            samples = _samples(encoder, encoder)
            (name, params), *others = find(family, samples)
            assert others == []
            assert all(CODECS[name].encode(plain, dict(params)) == packed for plain, packed in samples)


def test_find_ranks_by_samples_and_keeps_the_fewest() -> None:
    """The encoder of most samples first, and nothing that the others explain already."""
    level9: Params = (("level", 9), ("memlevel", 8), ("wbits", 15))
    trivial = (b"\7" * 4096, CODECS["zlib"].encode(b"\7" * 4096, dict(level9)))
    zlib9, ng6 = ("zlib", level9), ("zlib-ng", ZLIB6)
    assert find("zlib", [trivial, *_samples(zlib9, zlib9)]) == [zlib9]
    assert find("zlib", _samples(ng6, zlib9, zlib9)) == [zlib9, ng6]


def test_find_finds_nothing_where_nothing_fits() -> None:
    """Foreign bytes, and no samples at all."""
    assert find("zlib", [(PLAIN, b"foreign")]) == []
    assert find("zlib", []) == []


def test_what_was_encoded_is_not_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal plain bytes are encoded once by an encoder, whatever they are compared with; the
    oldest answers make room."""
    encoded = []
    real = codecs.CODECS["zlib"].encode

    class Counted:
        def encode(self, plain: bytes, params: dict[str, int]) -> bytes:
            encoded.append(plain)
            return real(plain, params)

    monkeypatch.setitem(codecs.CODECS, "zlib", Counted())
    params = (("level", 6), ("memlevel", 8), ("wbits", 15))
    given = codecs._Given(most=2)
    packed = real(b"one" * 99, dict(params))
    for plain in (b"one" * 99, b"one" * 99, b"two", b"three", b"one" * 99):
        assert (given.digest("zlib", params, plain) == codecs._digest(packed)) is (plain == b"one" * 99)
    assert encoded == [b"one" * 99, b"two", b"three", b"one" * 99]
