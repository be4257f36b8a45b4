"""Decoders for blocks: those of read-only file systems, and .xz. Nothing here encodes.

    xz            a whole .xz container, as squashfs has them (any filters, one stream)
    zstd.frame    a zstd frame, which need not state its size, as squashfs and EROFS have them
    deflate       raw deflate (RFC 1951), as EROFS has it
    lz4           a block, not a frame (LZ4 Block Format Description)
    lzma1         MicroLZMA (liblzma, lzma_microlzma_decoder)
    lzma2         the data of an .xz block, with the dictionary that its header states

What is decoded is bounded before it is made. Zero bytes before a stream are padding, but for
xz: EROFS fills its physical clusters up from the front, and none of these streams begins with
one (deflate may, but mkfs.erofs' does not, and Linux skips them too: z_erofs_fixup_insize).
"""

from __future__ import annotations

import lzma
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from backports import zstd

from rehydrator.codecs import codec, lzma2
from rehydrator.core.errors import HostileInput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# The largest block of squashfs is 1 MiB, and no encoder's dictionary is worth more than its block.
XZ_MEMORY: Final = 64 << 20
# Of zstd: as much as the largest physical cluster of EROFS needs, 12 MiB.
_WINDOW_BITS: Final = 24
# liblzma takes no smaller dictionary.
_MIN_DICTIONARY: Final = 4096

_LZ4_MORE: Final = 15
_LZ4_MIN_MATCH: Final = 4


def decode(name: str, packed: bytes, params: Mapping[str, int], size: int) -> bytes:
    """Exactly `size` plain bytes of the block that `packed` is, by a decoder of this module or by
    an encoder's own.

    With the parameter `prefix`, 1, of this module's they are the first of a block that may hold
    more, and what comes behind them is not looked at.

    Raises:
        HostileInput: broken, of another size, with bytes behind it, or unknown parameters.
    """
    used = len(packed)
    if name == "lzma2":
        if set(params) != {"dict_size"}:
            raise HostileInput(f"parameters that {name} does not have: {dict(params)}")
        return lzma2.decode(packed, params["dict_size"], size)
    if name in _DECODERS:
        plain = unpack(name, packed, size, prefix=_is_prefix(name, params))
    else:
        plain, used = codec(name).unpack(packed, params, size)
    if len(plain) != size or used != len(packed):
        raise HostileInput(f"{len(packed)} bytes of {name} do not decode to exactly {size}")
    return plain


def _is_prefix(name: str, params: Mapping[str, int]) -> bool:
    if not set(params) <= {"prefix"} or params.get("prefix", 0) not in (0, 1):
        raise HostileInput(f"parameters that {name} does not have: {dict(params)}")
    return bool(params.get("prefix"))


def unpack(name: str, packed: bytes, limit: int, *, prefix: bool = False) -> bytes:
    """The plain bytes, `limit` at most, of the block that `packed` is; of a `prefix` the first
    `limit`. MicroLZMA has no end mark: it is always read as a prefix.

    Raises:
        HostileInput: broken, cut short, of more than `limit` bytes, or with bytes behind it.
    """
    if limit < 1:
        raise HostileInput(f"a block of {limit} bytes")
    return _DECODERS[name](packed if name == "xz" else packed.lstrip(b"\0"), limit, prefix)


def _xz(packed: bytes, limit: int, prefix: bool) -> bytes:
    return _streamed("xz", lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY), packed, limit, prefix)


def _zstd(packed: bytes, limit: int, prefix: bool) -> bytes:
    options = {int(zstd.DecompressionParameter.window_log_max): _WINDOW_BITS}
    return _streamed("zstd", zstd.ZstdDecompressor(options=options), packed, limit, prefix)


def _deflate(packed: bytes, limit: int, prefix: bool) -> bytes:
    return _streamed("deflate", zlib.decompressobj(-15), packed, limit, prefix)


def _streamed(name: str, decompressor: Any, packed: bytes, limit: int, prefix: bool) -> bytes:
    """By a decompressor of the standard library's shape; of zstd, as backports.zstd has it."""
    try:
        plain: bytes = decompressor.decompress(packed, limit if prefix else limit + 1)
    except (lzma.LZMAError, zlib.error, zstd.ZstdError) as error:
        raise HostileInput(f"not a stream of {name}: {error}") from None
    if len(plain) > limit:
        raise HostileInput(f"a stream of {name} that holds more than {limit} bytes")
    if not prefix and not decompressor.eof:
        raise HostileInput(f"a stream of {name} that is cut short")
    if not prefix and decompressor.unused_data:
        raise HostileInput(f"bytes behind the end of a stream of {name}")
    return plain


def _micro_lzma(packed: bytes, limit: int, prefix: bool) -> bytes:
    """Raw LZMA1 whose first byte, which is always zero, is replaced by the inverted properties.
    It has no end mark, so that only a stream that is too short is noticed."""
    properties = ~packed[0] & 0xFF if packed else 0xFF
    settings = {
        "id": lzma.FILTER_LZMA1,
        "dict_size": max(limit, _MIN_DICTIONARY),
        "lc": properties % 9,
        "lp": properties // 9 % 5,
        "pb": properties // 45,
    }
    try:
        stream = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[settings])
        return stream.decompress(b"\0" + packed[1:], limit)
    except (lzma.LZMAError, ValueError) as error:
        raise HostileInput(f"not a MicroLZMA stream: {error}") from None


def _lz4(packed: bytes, limit: int, prefix: bool) -> bytes:
    """By the lz4 package where it is installed: 70 to 300 times as fast (measured on shared
    libraries: 632 MB/s in blocks of 128 KiB and 2,284 in 1 MiB, against 9 and 7). It cannot
    decode a prefix, and refuses some last matches; what it does not decode, Python decides."""
    if not prefix:
        with suppress(ImportError):
            from lz4 import block

            with suppress(block.LZ4BlockError, ValueError):
                plain: bytes = block.decompress(packed, uncompressed_size=limit)
                return plain
    return unpack_lz4(packed, limit, prefix=prefix)


def unpack_lz4(packed: bytes, limit: int, *, prefix: bool = False) -> bytes:
    """LZ4 in Python: token, literal length, literals, offset, match length.

    Raises:
        HostileInput: it is cut short, points before its beginning, or holds more than `limit`.
    """
    plain, at = bytearray(), 0
    while at < len(packed):
        token, at = packed[at], at + 1
        length = token >> 4
        if length == _LZ4_MORE:
            length, at = _lz4_length(packed, at)
        if prefix:
            length = min(length, limit - len(plain))
        _refuse_lz4(at + length > len(packed) or len(plain) + length > limit, limit)
        plain += packed[at : at + length]
        at += length
        if at == len(packed) or (prefix and len(plain) == limit):
            return bytes(plain)
        distance, at = int.from_bytes(packed[at : at + 2], "little"), at + 2
        length = (token & _LZ4_MORE) + _LZ4_MIN_MATCH
        if length == _LZ4_MORE + _LZ4_MIN_MATCH:
            more, at = _lz4_length(packed, at)
            length = more + _LZ4_MIN_MATCH
        if prefix:
            length = min(length, limit - len(plain))
        start = len(plain) - distance
        _refuse_lz4(not 0 <= start < len(plain) or len(plain) + length > limit, limit)
        match = plain[start : start + length]
        # A match may reach into itself: then it repeats.
        plain += match if len(match) == length else (match * -(-length // distance))[:length]
    raise HostileInput("an LZ4 block is cut short")


def _refuse_lz4(wrong: bool, limit: int) -> None:
    if wrong:
        raise HostileInput(f"not an LZ4 block of at most {limit} bytes")


def _lz4_length(packed: bytes, at: int) -> tuple[int, int]:
    """A length of 15 and more, which goes on in bytes until one is not 255; and what follows."""
    length = _LZ4_MORE
    while at < len(packed):
        length, at = length + packed[at], at + 1
        if packed[at - 1] != 255:
            return length, at
    raise HostileInput("an LZ4 block is cut short")


_DECODERS: Final[dict[str, Callable[[bytes, int, bool], bytes]]] = {
    "xz": _xz,
    "zstd.frame": _zstd,
    "deflate": _deflate,
    "lz4": _lz4,
    "lzma1": _micro_lzma,
}
