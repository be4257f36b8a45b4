"""The codec of bzip2 streams: libbz2, as the program bzip2 and Python use it.

Facts (measured; bzip2 1.0.8 of Debian 12 and of sid): the library writes the program's bytes at
every level, however the input is cut into pieces; the level is in the header. pbzip2 writes such
a stream for every 900 kB of level 9 (a part each). lbzip2 has an encoder of its own.
"""

from __future__ import annotations

import bz2
from typing import TYPE_CHECKING, Final

from rehydrator.codecs.stream_encoder import Codec, Filter, Hit, Params, agreed, checked, cut

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_RANGES: Final = {"level": range(1, 10)}
_PIECE: Final = 1 << 20
MIN_AGREED: Final = 64
"""Bytes: fewer in common are no hit, unless they are all."""

# bzip2(1): 400 kB and eight times the block, which is of 100 kB for each level.
_MEMORY, _MEMORY_OF_LEVEL = 400_000, 800_000


class Libbz2:
    """The bzip2 library at hand."""

    id = "bzip2"

    def checked(self, params: Mapping[str, int]) -> Params:
        return checked(self.id, params, _RANGES)

    def encode(
        self, params: Mapping[str, int], chunks: Iterable[bytes], run: Filter | None
    ) -> Iterator[bytes]:
        compressor = bz2.BZ2Compressor(params["level"])
        yield from filter(None, map(compressor.compress, cut(chunks, _PIECE)))
        yield compressor.flush()

    def described(self, params: Mapping[str, int]) -> str:
        return f"bzip2 -{params['level']}"

    def memory(self, params: Mapping[str, int], plain: int | None) -> int:
        return _MEMORY + _MEMORY_OF_LEVEL * params["level"]

    def version(self, run: Filter | None) -> str:
        # The format and its only encoder are those of 1.0 since 2000; Python tells no version.
        return "libbz2 1.0"


LIBBZ2: Final = Libbz2()


class Bzip2:
    """The family of bzip2 streams."""

    name = "bzip2"
    codecs: tuple[Codec, ...] = (LIBBZ2,)

    def find(
        self, plain: bytes, packed: bytes, hints: Mapping[str, int], *, whole: bool, run: Filter | None
    ) -> list[Hit]:
        """Blocks are written when they are full, 900 kB of `plain` at level 9: with less, nothing
        but the header is compared, and the level in it is the guess."""
        if "level" not in hints:
            return []
        params = LIBBZ2.checked({"level": hints["level"]})
        if whole:
            same = agreed(LIBBZ2.encode(dict(params), [plain], None), packed)
            return [Hit(LIBBZ2.id, params, same)] if same == len(packed) else []
        compressor = bz2.BZ2Compressor(hints["level"])
        made = b"".join(map(compressor.compress, cut([plain], _PIECE)))[: len(packed)]
        same = agreed(iter([made]), packed)
        return [Hit(LIBBZ2.id, params, same)] if same >= min(len(made), MIN_AGREED) else []


BZIP2: Final = Bzip2()
