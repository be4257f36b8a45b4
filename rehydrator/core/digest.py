"""Digests. SHA-256 names whole files, as everybody else does; BLAKE2b-256 names the
frames inside a pack, because hashlib computes it at twice the speed where the processor
has no SHA extensions (docs/decisions/003-frame-digest.md). CRC-32C is a checksum of file formats.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

from rehydrator.core.errors import HostileInput

if TYPE_CHECKING:
    from typing_extensions import Buffer

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")

FRAME_DIGEST_SIZE = 32


def parse_sha256(text: object, where: str) -> str:
    """Return `text` if it is 64 lower-case hexadecimal digits.

    Raises:
        HostileInput: it is anything else.
    """
    if not isinstance(text, str) or not _SHA256.match(text):
        raise HostileInput(f"{where}: not a SHA-256 digest: {text!r:.80}")
    return text


def sha256_hex(data: Buffer) -> str:
    """SHA-256 of `data` in lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def frame_digest(data: Buffer) -> bytes:
    """BLAKE2b with 32 bytes of output (`b2sum -l 256`)."""
    return hashlib.blake2b(data, digest_size=FRAME_DIGEST_SIZE).digest()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli; RFC 3720, appendix B.4)."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _CRC32C[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def _crc32c_of_byte(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


_CRC32C: Final = tuple(_crc32c_of_byte(value) for value in range(256))
