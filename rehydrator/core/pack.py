"""Pack files: independently decodable frames, and the index that names each one's digest.

    pack  = frame* | index
    index = "RHPKIDX1" | count u32 | 0 u32 | record*        (64-byte records, little endian)

A *data* frame holds bytes of the pack's space; a *chunk* frame holds one recipe chunk. The
index is found through bundle.json, which pins its place and its digest, so that one frame
can be checked and decoded without reading the rest (bundle/FORMAT.md, section 5).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from backports import zstd

from rehydrator.core.digest import frame_digest
from rehydrator.core.errors import DigestMismatch, HostileInput
from rehydrator.core.recipe import MAX_CHUNK
from rehydrator.core.zstd_decoder import decompress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rehydrator.core.zstd_decoder import Prefix

DATA: Final = 0
CHUNK: Final = 1

STORED: Final = 0
ZSTD: Final = 1
ZSTD_BEHIND: Final = 2
"""Zstd, with the plain bytes of the pack's first data frame in front as what it can refer to."""

MAX_FRAME = 64 << 20
MAX_PREFIX = 16 << 20  # a reader holds it for as long as it reads a pack
MAX_FRAMES = 1 << 19  # of all packs; each costs a reader 300 bytes of memory
INDEX_MAGIC = b"RHPKIDX1"
_DICTIONARY_MAGIC = bytes.fromhex("37a430ec")

_HEADER = struct.Struct("<8sII")
_RECORD = struct.Struct("<BBBBIQQII32s")
INDEX_HEADER, INDEX_RECORD = _HEADER.size, _RECORD.size
assert INDEX_RECORD == 64


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a pack.

    `start` is where its plain bytes begin: in the pack's space (data), or in the recipe's
    output (chunk). `offset` and `stored` place it in the file; `plain` is its decoded size.
    `planes` > 1 means that the plain bytes were split into that many byte planes before
    compression, as tables of integers are.
    """

    kind: int
    codec: int
    planes: int
    start: int
    offset: int
    stored: int
    plain: int
    digest: bytes


def encode_index(frames: Sequence[Frame]) -> bytes:
    """The index of a pack."""
    records = (
        _RECORD.pack(f.kind, f.codec, f.planes, 0, 0, f.start, f.offset, f.stored, f.plain, f.digest)
        for f in frames
    )
    return _HEADER.pack(INDEX_MAGIC, len(frames), 0) + b"".join(records)


def decode_index(data: bytes, what: str) -> list[Frame]:
    """The frames of an index whose digest was checked already.

    Raises:
        HostileInput: anything that encode_index does not write.
    """
    if len(data) < _HEADER.size:
        raise HostileInput(f"{what}: index cut short")
    magic, count, zero = _HEADER.unpack_from(data)
    if magic != INDEX_MAGIC or zero or len(data) != _HEADER.size + count * _RECORD.size:
        raise HostileInput(f"{what}: not a pack index")
    frames: list[Frame] = []
    first: Frame | None = None
    here = 0
    for record in _RECORD.iter_unpack(data[_HEADER.size :]):
        kind, codec, planes, zero1, zero2, start, offset, stored, plain, digest = record
        if kind > CHUNK or codec > ZSTD_BEHIND or planes not in (1, 2, 4, 8) or zero1 or zero2:
            raise HostileInput(f"{what}: unknown frame kind {kind}, codec {codec}, planes {planes}")
        if codec == ZSTD_BEHIND and (kind != DATA or not first or not _is_prefix(first)):
            raise HostileInput(f"{what}: a frame at {offset} with a prefix, and there is none")
        if not 0 < plain <= MAX_FRAME or not 0 < stored <= MAX_FRAME or plain % planes:
            raise HostileInput(f"{what}: a frame of {stored} bytes that decodes to {plain}")
        if kind == CHUNK and (plain > MAX_CHUNK or planes != 1):
            raise HostileInput(f"{what}: a recipe chunk of {plain} bytes in {planes} planes")
        if offset != here:
            raise HostileInput(f"{what}: a frame at {offset}, where {here} is next")
        here += stored
        frames.append(Frame(kind, codec, planes, start, offset, stored, plain, digest))
        if first is None and kind == DATA:
            first = frames[-1]
    return frames


def prefix_of(frames: Sequence[Frame]) -> Frame | None:
    """The frame whose plain bytes other frames of its pack may refer to: the first data frame,
    where that needs none itself and has no more than MAX_PREFIX."""
    first = next((frame for frame in frames if frame.kind == DATA), None)
    return first if first and _is_prefix(first) else None


def _is_prefix(first: Frame) -> bool:
    return first.codec != ZSTD_BEHIND and first.planes == 1 and first.plain <= MAX_PREFIX


def encode_frame(
    plain: bytes, level: int, planes: int = 1, prefix: Prefix | None = None
) -> tuple[int, bytes]:
    """(codec, stored bytes) of a frame: zstd, behind a prefix if there is one, or as it is where
    zstd does not gain."""
    split = split_planes(plain, planes)
    if prefix is None:
        packed = zstd.compress(split, options=frame_options(level, len(plain)))
    else:
        options = frame_options(_behind(level), len(prefix) + len(plain))
        packed = zstd.compress(split, options=options, zstd_dict=prefix.dictionary.as_digested_dict)
    if len(packed) >= len(split):
        return STORED, split
    return ZSTD_BEHIND if prefix else ZSTD, packed


def _behind(level: int) -> int:
    """The level for frames behind a prefix, which is digested once for all of them. Measured on the os
    release: level 19 without a prefix 178.6 MB in 203 s of processor time; behind one of 16 MiB, level
    18 167.7 in 219 and level 19 166.7 in 301 (docs/decisions/017)."""
    return 18 if level == 19 else level


def can_be_prefix(plain: bytes) -> bool:
    """Whether frames can be encoded behind these bytes: the encoder would take some for a
    dictionary with tables (RFC 8878, section 5)."""
    return len(plain) <= MAX_PREFIX and not plain.startswith(_DICTIONARY_MAGIC)


def frame_options(level: int, size: int) -> dict[int, int]:
    """Zstd's parameters for a frame of `size` bytes, a prefix included: the window covers it, and
    long-distance matching is on from 4 MiB (with a prefix: docs/decisions/007; in plain frames of
    16 MiB at level 19 it changes 0.004 % of the size, measured).
    """
    parameter = zstd.CompressionParameter
    window = max(10, min(27, (max(size, 1) - 1).bit_length()))
    options: dict[int, int] = {
        parameter.compression_level: level,
        parameter.window_log: window,
        parameter.content_size_flag: 1,
        parameter.checksum_flag: 0,
        parameter.dict_id_flag: 0,
    }
    if size >= 4 << 20:
        options[parameter.enable_long_distance_matching] = 1
    return options


def decode_frame(frame: Frame, stored: bytes, what: str, prefix: Callable[[], Prefix] | None = None) -> bytes:
    """The plain bytes of a frame, after its digest was checked; `prefix` gives what it stands
    behind, and is asked where it does.

    Raises:
        DigestMismatch: `stored` is not what the index pins.
        HostileInput: it does not decode to exactly `frame.plain` bytes.
    """
    if frame_digest(stored) != frame.digest:
        raise DigestMismatch(f"{what}: frame at {frame.offset} is damaged (its digest differs)")
    before = prefix() if prefix and frame.codec == ZSTD_BEHIND else None
    plain = stored if frame.codec == STORED else decompress(stored, frame.plain, what, before)
    if len(plain) != frame.plain:
        raise HostileInput(
            f"{what}: frame at {frame.offset} decodes to {len(plain)} bytes, not {frame.plain}"
        )
    return join_planes(plain, frame.planes)


def split_planes(plain: bytes, planes: int) -> bytes:
    """Byte 0 of every integer, then byte 1 of every integer, …"""
    return plain if planes == 1 else b"".join(plain[p::planes] for p in range(planes))


def join_planes(split: bytes, planes: int) -> bytes:
    """The inverse of split_planes."""
    if planes == 1:
        return split
    each = len(split) // planes
    plain = bytearray(len(split))
    for plane in range(planes):
        plain[plane::planes] = split[plane * each : (plane + 1) * each]
    return bytes(plain)
