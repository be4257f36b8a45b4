"""gzip whose deflate stream is stored blocks, so that a layer is both reproducible (no
compressor decides its bytes) and a file that can be read anywhere without decoding it.

    blob    = header[10] | block* | crc32 u32 | plain size mod 2^32 u32      (RFC 1952, section 2.3)
    block   = last u8 | length u16 | ~length u16 | plain bytes[length]       (RFC 1951, section 3.2.4)

Every block is 65,535 bytes but the last, so plain byte p lies at 10 + p//65535*65540 + 5 + p%65535.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import TYPE_CHECKING

from rehydrator.core.errors import HostileInput
from rehydrator.core.reader import check_span

if TYPE_CHECKING:
    from collections.abc import Callable

    from rehydrator.core.reader import Reader

# Magic, deflate, no flags, time 0, no hint about the level, system "unknown" (RFC 1952, 2.3.1).
HEADER = bytes.fromhex("1f8b08000000000000ff")
BLOCK = 65535
_FRAME = BLOCK + 5
_TRAILER = struct.Struct("<II")
_BLOCK_HEADER = struct.Struct("<BHH")


class StoredGzipWriter:
    """Writes plain bytes as stored gzip to `write`; `plain_sha256` covers the plain bytes."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._pending = bytearray()
        self._crc = 0
        self._size = 0
        self._digest = hashlib.sha256()
        write(HEADER)

    def write(self, data: bytes | memoryview) -> None:
        self._crc = zlib.crc32(data, self._crc)
        self._digest.update(data)
        self._size += len(data)
        self._pending += data
        # The block that may turn out to be the last one is held back: it needs the flag.
        whole = (len(self._pending) - 1) // BLOCK if self._pending else 0
        if whole > 0:
            self._flush(whole)

    def close(self) -> None:
        """Write the last block and the trailer."""
        self._write(_block_header(len(self._pending), last=True) + self._pending)
        self._write(_TRAILER.pack(self._crc, self._size & 0xFFFFFFFF))

    @property
    def plain_sha256(self) -> str:
        """In hexadecimal, of what was written so far."""
        return self._digest.hexdigest()

    def _flush(self, blocks: int) -> None:
        header = _block_header(BLOCK, last=False)
        starts = range(0, blocks * BLOCK, BLOCK)
        self._write(b"".join(part for at in starts for part in (header, self._pending[at : at + BLOCK])))
        del self._pending[: blocks * BLOCK]


def blob_size(plain: int) -> int:
    """The size of `plain` bytes written by StoredGzipWriter."""
    return len(HEADER) + plain + 5 * max(1, -(-plain // BLOCK)) + _TRAILER.size


def is_stored(blob: Reader) -> bool:
    """True if a blob's ends look as StoredGzipWriter leaves them; costs two short reads."""
    size = _plain_size(blob.size)
    if size is None:
        return False
    start = blob.pread(0, len(HEADER) + 5)
    _, recorded = _TRAILER.unpack(blob.pread(blob.size - _TRAILER.size, _TRAILER.size))
    expected = HEADER + _block_header(min(size, BLOCK), last=size <= BLOCK)
    return start == expected and recorded == size & 0xFFFFFFFF


class StoredGzipReader:
    """The plain bytes of a stored gzip blob, by arithmetic.

    The header of every block that a read passes is checked; the bytes themselves are not,
    because the files inside are pinned by bundle.json.
    """

    def __init__(self, blob: Reader, what: str) -> None:
        """`what` names the blob in messages.

        Raises:
            HostileInput: not gzip with stored blocks as this module writes them.
        """
        size = _plain_size(blob.size)
        if size is None or not is_stored(blob):
            raise HostileInput(f"{what}: not a gzip file of stored blocks, or damaged")
        self._blob, self._what = blob, what
        self.size: int = size

    def pread(self, offset: int, length: int) -> bytes:
        check_span(offset, length, self.size, self._what)
        if not length:
            return b""
        first, skip = divmod(offset, BLOCK)
        last, end = divmod(offset + length - 1, BLOCK)
        if skip:
            self._check(first, self._blob.pread(_start(first), 5))
        low = _start(first) + (5 + skip if skip else 0)
        raw = self._blob.pread(low, _start(last) + 5 + end + 1 - low)
        return self._strip(raw, first, skip)

    def _strip(self, raw: bytes, block: int, skip: int) -> bytes:
        """The plain bytes of `raw`, which begins at byte `skip` of `block` (0: at its header)."""
        view = memoryview(raw)
        parts = []
        at = 0
        if skip:
            parts.append(view[: BLOCK - skip])
            at, block = BLOCK - skip, block + 1
        while at < len(raw):
            self._check(block, raw[at : at + 5])
            parts.append(view[at + 5 : at + _FRAME])
            at, block = at + _FRAME, block + 1
        return b"".join(parts)

    def _check(self, block: int, header: bytes) -> None:
        left = self.size - block * BLOCK
        if header != _block_header(min(left, BLOCK), last=left <= BLOCK):
            raise HostileInput(f"{self._what}: damaged at byte {_start(block)} (not the expected block)")


def _start(block: int) -> int:
    return len(HEADER) + block * _FRAME


def _block_header(length: int, *, last: bool) -> bytes:
    return _BLOCK_HEADER.pack(last, length, length ^ 0xFFFF)


def _plain_size(size: int) -> int | None:
    """The number of plain bytes in a blob of `size` bytes; None where no such blob exists."""
    framed = size - len(HEADER) - _TRAILER.size
    blocks = -(-framed // _FRAME)
    plain = framed - 5 * blocks
    if framed < 5 or blob_size(max(plain, 0)) != size:
        return None
    return plain
