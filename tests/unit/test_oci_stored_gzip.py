"""gzip with stored blocks: what is written, and reading it anywhere."""

from __future__ import annotations

import gzip
import hashlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rehydrator.core.errors import HostileInput
from rehydrator.core.reader import BytesReader
from rehydrator.oci.stored_gzip import BLOCK, StoredGzipReader, StoredGzipWriter, blob_size, is_stored

SIZES = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 77]


def plain_bytes(size: int) -> bytes:
    """Bytes without a period that divides the block size."""
    unit = hashlib.sha256(b"unit").digest() + b"odd"
    return (unit * (size // len(unit) + 1))[:size]


def pack(plain: bytes, step: int = 1 << 20) -> bytes:
    made = bytearray()
    writer = StoredGzipWriter(made.extend)
    for at in range(0, len(plain), step):
        writer.write(plain[at : at + step])
    writer.close()
    return bytes(made)


@pytest.mark.parametrize("size", SIZES)
def test_any_gunzip_reads_it(size: int) -> None:
    """The blob is gzip: the standard library gives back the plain bytes."""
    assert gzip.decompress(pack(plain_bytes(size))) == plain_bytes(size)


@pytest.mark.parametrize("size", SIZES)
def test_size_is_arithmetic(size: int) -> None:
    """The blob's size follows from the plain size, and the reader's size from the blob's."""
    blob = pack(plain_bytes(size))
    assert len(blob) == blob_size(size)
    assert StoredGzipReader(BytesReader(blob), "blob").size == size


@given(step=st.integers(1, 3 * BLOCK))
def test_the_steps_of_writing_do_not_show(step: int) -> None:
    """However the plain bytes are cut for writing, the blob is the same."""
    plain = plain_bytes(4 * BLOCK)
    step = max(step, 999)
    assert pack(plain, step) == pack(plain)


def test_known_bytes() -> None:
    """Header, one last block and trailer, spelt out: the format does not drift."""
    crc = zlib.crc32(b"ab").to_bytes(4, "little").hex()
    assert pack(b"ab").hex() == "1f8b08000000000000ff" + "010200fdff" + "6162" + crc + "02000000"


@given(st.data())
def test_random_access_equals_the_plain_bytes(data: st.DataObject) -> None:
    """Any span read by arithmetic is that span of the plain bytes."""
    size = data.draw(st.sampled_from(SIZES))
    offset = data.draw(st.integers(0, size))
    length = data.draw(st.integers(0, size - offset))
    reader = StoredGzipReader(BytesReader(pack(plain_bytes(size))), "blob")
    assert reader.pread(offset, length) == plain_bytes(size)[offset : offset + length]


def test_digest_of_the_plain_bytes() -> None:
    """The writer knows the SHA-256 of what went in (a layer's diff id)."""
    writer = StoredGzipWriter(bytearray().extend)
    writer.write(b"abc")
    assert writer.plain_sha256 == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("byte", range(5))
def test_a_damaged_block_header_is_refused(block: int, byte: int) -> None:
    """A read that passes a damaged block header fails and says where."""
    blob = bytearray(pack(plain_bytes(2 * BLOCK + 9)))
    at = 10 + block * (BLOCK + 5)
    blob[at + byte] ^= 4
    reader = StoredGzipReader(BytesReader(bytes(blob)), "layer sha256:1234")
    with pytest.raises(HostileInput, match=f"layer sha256:1234: damaged at byte {at}"):
        reader.pread(0, reader.size)
    with pytest.raises(HostileInput, match=f"damaged at byte {at}"):
        reader.pread(block * BLOCK + 3, 1)


def test_a_span_beyond_the_end_is_refused() -> None:
    """Reading past the plain bytes is an error, not a short answer."""
    with pytest.raises(HostileInput, match="outside"):
        StoredGzipReader(BytesReader(pack(b"abc")), "blob").pread(2, 2)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cut", [1, 8, 13])
def test_a_blob_cut_short_is_not_ours(size: int, cut: int) -> None:
    """Without its end, a blob is not taken for stored gzip, and the reader refuses it."""
    blob = BytesReader(pack(plain_bytes(size))[:-cut])
    assert not is_stored(blob)
    with pytest.raises(HostileInput):
        StoredGzipReader(blob, "blob")


@pytest.mark.parametrize("data", [b"", b"\x1f\x8b\x08", bytes(100), gzip.compress(plain_bytes(70000), 6)])
def test_other_bytes_are_not_ours(data: bytes) -> None:
    """Nothing, too little, zeros and really compressed gzip are told apart."""
    assert not is_stored(BytesReader(data))


def test_is_stored() -> None:
    """What the writer made is recognised."""
    assert [is_stored(BytesReader(pack(plain_bytes(size)))) for size in SIZES] == [True] * len(SIZES)
