"""Containers of any bytes, damaged anyhow: their content, or a reason; never more, never long."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import time
import zipfile
from typing import TYPE_CHECKING

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from rehydrator.core.errors import HostileInput, LimitExceeded
from rehydrator.core.reader import BytesReader
from rehydrator.formats import containers

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 1 << 20
CASES = 1000
WORDS = b"some words and more of them, "


def zipped(plain: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = b"a comment"
        archive.writestr(zipfile.ZipInfo("disk"), plain, compress_type=zipfile.ZIP_DEFLATED)
    return out.getvalue()


def in_a_row(pack: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda plain: pack(plain[:100]) + pack(plain[100:])


WRITERS: dict[str, Callable[[bytes], bytes]] = {
    "xz": in_a_row(lzma.compress),
    "gzip": in_a_row(lambda plain: gzip.compress(plain, mtime=0)),
    "zstd": in_a_row(zstd.compress),
    "bzip2": in_a_row(bz2.compress),
    "zip": zipped,
}


def read(data: bytes) -> bytes | None:
    """The plain bytes, or None where it is refused; the limit holds either way."""
    taken = bytearray()
    try:
        layout = containers.read(BytesReader(data), "fuzzed", LIMIT, taken.extend)
    except (HostileInput, LimitExceeded):
        layout = None
    assert len(taken) <= LIMIT
    return None if layout is None else bytes(taken)


def damaged(data: bytes, dice: random.Random) -> bytes:
    """Bits flipped, bytes made large, cut short, a piece repeated or taken out."""
    at, end = sorted(dice.choices(range(len(data) + 1), k=2))
    match dice.randrange(5):
        case 0:
            number = int.from_bytes(data, "little")
            for _ in range(dice.randint(1, 4)):
                number ^= 1 << dice.randrange(8 * len(data))
            return number.to_bytes(len(data), "little")
        case 1:
            size = min(dice.choice((1, 2, 4, 8)), len(data) - at)
            return data[:at] + b"\xff" * size + data[at + size :]
        case 2:
            return data[:at]
        case 3:
            return data[:end] + data[at:]
        case _:
            return data[:at] + data[end:]


@pytest.mark.parametrize("name", WRITERS)
def test_damage(name: str) -> None:
    """A thousand damaged files: refused or read within the limit, and soon; what no longer has
    the length that it had is refused in most cases."""
    dice = random.Random(49)
    plain = WORDS * 40 + bytes(3000) + dice.randbytes(300)
    data = WRITERS[name](plain)
    assert read(data) == plain
    begin = time.process_time()
    results = [read(damaged(data, dice)) for _ in range(CASES)]
    assert time.process_time() - begin < 30
    assert results.count(None) > CASES // 2
    assert len([one for one in results if one is not None and len(one) > 4 * len(plain)]) == 0


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=40, deadline=None)
@given(plain=st.binary(max_size=400), times=st.integers(0, 60))
def test_any_content(name: str, plain: bytes, times: int) -> None:
    """What was packed comes out, and the parts tile it."""
    assert read(WRITERS[name](plain * times)) == plain * times


@settings(max_examples=300, deadline=None)
@given(
    begin=st.sampled_from(
        [lzma.compress(b"")[:12], b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"BZh91AY&SY", b"PK\3\4"]
    ),
    rest=st.binary(max_size=200),
)
def test_noise_behind_a_magic_number(begin: bytes, rest: bytes) -> None:
    """Nothing but a refusal comes of it, or (a frame of raw blocks) bytes within the limit."""
    read(begin + rest)


@pytest.mark.parametrize("name", WRITERS)
def test_bombs(name: str) -> None:
    """256 MiB of zeros in 20 KB to 1.2 MB: stopped at the limit, at once."""
    layer = zeros(name)
    begin = time.process_time()
    assert read(layer) is None
    assert time.process_time() - begin < 10


def zeros(name: str) -> bytes:
    """256 MiB of zeros, by an encoder that is fast at it."""
    piece = bytes(1 << 20)
    if name == "zip":
        out = io.BytesIO()
        with (
            zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open("disk", "w") as member,
        ):
            for _ in range(256):
                member.write(piece)
        return out.getvalue()
    packers = {
        "xz": lambda plain: lzma.compress(plain, preset=0),
        "gzip": lambda plain: gzip.compress(plain, 1, mtime=0),
        "zstd": lambda plain: zstd.compress(plain, 1),
        "bzip2": lambda plain: bz2.compress(plain, 1),
    }
    return packers[name](piece) * 256
