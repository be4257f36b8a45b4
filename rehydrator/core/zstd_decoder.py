"""Zstd frames, decoded into memory of their size."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from backports import zstd

from rehydrator.core.errors import HostileInput

if TYPE_CHECKING:
    from collections.abc import Callable

    Decode = Callable[[bytes, int, "Prefix | None"], bytes]

# Of the largest prefix and frame.
_WINDOW_BITS: Final = 27

# What is smaller is not worth the start of ctypes, which takes milliseconds.
_LARGE: Final = 256 << 10


class Prefix:
    """Plain bytes that frames can refer to as if they stood in front of them."""

    def __init__(self, plain: bytes) -> None:
        self.plain = plain

    def __len__(self) -> int:
        return len(self.plain)

    @cached_property
    def dictionary(self) -> zstd.ZstdDict:
        """The same for backports.zstd, which takes a copy."""
        return zstd.ZstdDict(self.plain, is_raw=True)


def decompress(stored: bytes, size: int, what: str, prefix: Prefix | None = None) -> bytes:
    """Decode exactly one zstd frame of exactly `size` bytes; more is never made.

    Raises:
        HostileInput: malformed, of another size, or with bytes behind it.
    """
    try:
        declared = zstd.get_frame_info(stored).decompressed_size
        if declared != size or zstd.get_frame_size(stored) != len(stored):
            raise HostileInput(f"{what}: a zstd frame that does not hold exactly {size} bytes")
        if _window(stored) > 1 << _WINDOW_BITS:
            raise HostileInput(f"{what}: a zstd frame with a window above {1 << _WINDOW_BITS} bytes")
        plain = _way(size, prefix)(stored, size, prefix)
    except (zstd.ZstdError, ValueError) as error:
        raise HostileInput(f"{what}: not a zstd frame: {error}") from None
    if len(plain) != size:
        raise HostileInput(f"{what}: a zstd frame that does not hold exactly {size} bytes")
    return plain


def _window(stored: bytes) -> int:
    """The window that a frame states; 0 where it is the content (RFC 8878, sections 3.1.1.1.1 and
    3.1.1.1.2)."""
    if stored[4] & 0x20:  # Single_Segment_flag
        return 0
    exponent, mantissa = stored[5] >> 3, stored[5] & 7
    return (8 + mantissa) << (10 + exponent - 3)


def _way(size: int, prefix: Prefix | None) -> Decode:
    if size < _LARGE and not prefix:
        return in_blocks
    try:
        from rehydrator.core import zstd_library
    except (ImportError, AttributeError):  # no ctypes, or another Python than CPython
        return in_blocks
    return zstd_library.decoder() or in_blocks


def in_blocks(stored: bytes, size: int, prefix: Prefix | None) -> bytes:
    """By backports.zstd alone: through a window of its own into blocks that grow, joined at the end."""
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_BITS}
    decoder = zstd.ZstdDecompressor(zstd_dict=referred(prefix), options=options)
    plain = decoder.decompress(stored, size + 1)
    return plain if decoder.eof else b""


def referred(prefix: Prefix | None) -> Any:
    """A prefix as backports.zstd takes it."""
    return prefix.dictionary.as_prefix if prefix else None
