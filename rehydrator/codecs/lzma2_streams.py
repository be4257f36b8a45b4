"""LZMA2 data of .xz blocks as a family of one stream codec; the work is done in `lzma2`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rehydrator.codecs import lzma2
from rehydrator.codecs.stream_encoder import Codec, Filter, Hit, Params

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


class Liblzma:
    """liblzma, with the parameters of one block."""

    id = "lzma2"

    def checked(self, params: Mapping[str, int]) -> Params:
        lzma2.memory(params)
        return tuple(sorted(params.items()))

    def encode(
        self, params: Mapping[str, int], chunks: Iterable[bytes], run: Filter | None
    ) -> Iterator[bytes]:
        return filter(None, lzma2.encode_pieces(chunks, params))

    def described(self, params: Mapping[str, int]) -> str:
        if "stored" in params:
            return "xz, stored"
        level, size = params["preset"], params["dict_size"]
        usual = size == lzma2.PRESET_DICT[level]
        return f"xz -{level}{'e' * params['extreme']}" + ("" if usual else f", dictionary of {size} bytes")

    def memory(self, params: Mapping[str, int], plain: int | None) -> int:
        return lzma2.memory(params)

    def version(self, run: Filter | None) -> str:
        return lzma2.version()


LIBLZMA: Final = Liblzma()


class Lzma2:
    """The family of raw LZMA2 streams."""

    name = "lzma2"
    codecs: tuple[Codec, ...] = (LIBLZMA,)

    def find(
        self, plain: bytes, packed: bytes, hints: Mapping[str, int], *, whole: bool, run: Filter | None
    ) -> list[Hit]:
        """Levels that cannot be told apart are all there, and agree as far as can be compared
        (`lzma2.find`), which is given as all of the sample. The dictionary is as "dict_size" of
        `hints` says; `lzma2.dict_sizes` has the others that it may stand for."""
        if "dict_size" not in hints:
            return []
        found = lzma2.find(plain, packed, hints["dict_size"], whole=whole)
        return [Hit(LIBLZMA.id, tuple(sorted(params)), len(packed)) for params in found]


LZMA2: Final = Lzma2()
