"""Stream encoders by codec id: whole streams of compressed containers, made again in one pass.

A codec is one library or program that writes one family of streams ("deflate", "lzma2", ...);
its parameters are numbers, checked before anything is started, so that nothing that a bundle says
reaches a program as text. An encoder uses one thread. Which one made a stream is guessed by trial
on a prefix (`find`) and decided by comparing the whole (`prove`).

Adding a family is a module and a line in `FAMILIES`; codecs/stream_encoder.py has the protocols.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rehydrator.codecs import zstd_streams
from rehydrator.codecs.bzip2_streams import BZIP2
from rehydrator.codecs.deflate_streams import DEFLATE
from rehydrator.codecs.lzma2_streams import LZMA2
from rehydrator.codecs.stream_encoder import (
    Codec,
    Encoder,
    Encoding,
    Family,
    Filter,
    Hit,
    Params,
    first_difference,
)
from rehydrator.codecs.units import UNITS
from rehydrator.codecs.zstd_streams import ZSTD
from rehydrator.core.errors import HostileInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "FAMILIES",
    "Encoder",
    "Filter",
    "Hit",
    "Params",
    "codecs",
    "described",
    "encoder",
    "find",
    "first_difference",
    "memory",
    "of_sample",
    "prove",
    "version",
]

FAMILIES: Final[tuple[Family, ...]] = (DEFLATE, LZMA2, ZSTD, BZIP2, *UNITS)


def encoder(codec: str, params: Mapping[str, int], run: Filter | None = None) -> Encoder:
    """The encoder `codec` with these parameters; `run` runs the programs that some are.

    Raises:
        HostileInput: no such codec, or parameters that it does not have. What is not installed
            is found out when encoding begins.
    """
    found = _codec(codec)
    return Encoding(found, found.checked(params), run)


def find(
    family: str,
    plain: bytes,
    packed: bytes,
    hints: Mapping[str, int],
    *,
    whole: bool,
    run: Filter | None = None,
) -> list[Hit]:
    """The encoders that may have written a stream of this family that begins with `packed` and
    whose content begins with `plain`; best guess first.

    With `whole`, both are all of the stream, and a hit reproduces it. Otherwise a hit is a guess,
    which `prove` decides. `hints` are what headers say (rehydrator/formats/streams.py). A family
    that no encoder here writes has no hits; encoders that are not installed are passed over:
    `version` tells which of `codecs` those are.

    Raises:
        LimitExceeded: a trial would take too much memory.
        HostileInput: the hints make no sense.
    """
    for each in FAMILIES:
        if each.name == family:
            return each.find(plain, packed, hints, whole=whole, run=run)
    return []


def prove(encoder: Encoder, plain: Iterable[bytes], packed: Iterable[bytes]) -> int | None:
    """None where the encoder turns the plain bytes into exactly the packed ones; otherwise the
    first offset at which they differ, or at which the shorter ends. Both come in pieces of any
    size, and are taken no further than to the first difference."""
    return first_difference(encoder.encode(plain), packed)


def described(codec: str, params: Mapping[str, int]) -> str:
    """An encoder in words: `gzip -9 --rsyncable`, `xz -6`.

    Raises:
        HostileInput: as `encoder`.
    """
    found = _codec(codec)
    return found.described(dict(found.checked(params)))


def memory(codec: str, params: Mapping[str, int], plain: int | None = None) -> int:
    """Bytes of memory that encoding takes, about, a program's included, for a stream of `plain`
    bytes (None: of any length; it matters to deflate.libdeflate alone).

    Raises:
        HostileInput: as `encoder`.
    """
    found = _codec(codec)
    return found.memory(dict(found.checked(params)), plain)


def version(codec: str, run: Filter | None = None) -> str:
    """Name and version of the library or program: `gzip 1.12`, `liblzma 5.4.1`.

    Raises:
        HostileInput: no such codec.
        ToolMissing: it is not installed; names what to install.
    """
    return _codec(codec).version(run)


def of_sample(codec: str, params: Mapping[str, int], size: int) -> Params:
    """The parameters that a known answer of `size` plain bytes is made with.

    Raises:
        HostileInput: as `encoder`.
    """
    found = _codec(codec)
    fine = found.checked(params)
    return zstd_streams.of_sample(dict(fine), size) if found in ZSTD.codecs else fine


def codecs(family: str) -> tuple[str, ...]:
    """The codecs that write a family of streams."""
    return tuple(each.id for one in FAMILIES if one.name == family for each in one.codecs)


def _codec(name: str) -> Codec:
    known = {codec.id: codec for family in FAMILIES for codec in family.codecs}
    if name not in known:
        raise HostileInput(f"unknown stream codec {name!r:.40}; this version has {', '.join(known)}")
    return known[name]
