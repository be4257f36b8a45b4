"""Zstandard. Decoding is stable for ever; encoding only for one library version and level
(measured: 1.5.4 and 1.5.7 share no 64 KiB frame at level 3), so the known-answer test decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backports import zstd

from rehydrator.core.errors import HostileInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Params = tuple[tuple[str, int], ...]


class Zstd:
    """The zstd library at hand."""

    id = "zstd"

    def version(self) -> str:
        return f"zstd {zstd.zstd_version}"

    def candidates(self, family: str) -> Sequence[Params]:
        return [(("level", level),) for level in (3, 1, 9, 19)] if family == "zstd" else ()

    def encode(self, plain: bytes, params: Mapping[str, int]) -> bytes:
        return zstd.compress(plain, _level(params))

    def decode(self, packed: bytes, params: Mapping[str, int], size: int) -> bytes:
        """Bytes behind the frame are ignored, as qemu does: a qcow2 descriptor counts sectors."""
        plain, _ = self.unpack(packed, params, size)
        if len(plain) != size:
            raise HostileInput(f"a zstd frame of {len(plain)} bytes, not of {size}")
        return plain

    def unpack(self, packed: bytes, params: Mapping[str, int], limit: int) -> tuple[bytes, int]:
        decompressor = zstd.ZstdDecompressor()
        try:
            plain = decompressor.decompress(packed, limit + 1)
        except zstd.ZstdError as error:
            raise HostileInput(f"not a zstd frame: {error}") from None
        if len(plain) > limit:
            raise HostileInput(f"a zstd frame of more than {limit} bytes")
        if not decompressor.eof:
            raise HostileInput("a zstd frame that is cut short")
        return plain, len(packed) - len(decompressor.unused_data)


def _level(params: Mapping[str, int]) -> int:
    level = params.get("level")
    if level is None or len(params) != 1 or not 1 <= level <= 22:
        raise HostileInput(f"zstd parameters out of range: {dict(params)}")
    return level


ZSTD = Zstd()
