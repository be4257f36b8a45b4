"""A second reader of bundles, written from bundle/FORMAT.md alone: short and slow.

It imports nothing of `rehydrator`. `python second_reader.py DIRECTORY` checks every digest of
a bare bundle directory, regenerates every form of every artifact and prints its SHA-256.
"""

from __future__ import annotations

import bz2
import hashlib
import json
import lzma
import os
import re
import struct
import subprocess
import sys
import zlib
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Iterator

NUMBER, LIST = 1 << 60, 1 << 16
MEBI = 1 << 20
TEXT = r"(?s).*"
NAME = r"[^/\x00-\x1f\x7f-\x9f]{1,255}"
WORD = r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}"
HEX64 = r"[0-9a-f]{64}"
ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}
ESCAPES |= {chr(n): f"\\u{n:04x}" for n in range(32) if chr(n) not in ESCAPES}


class Refusal(Exception):
    """Section 2: a class of refusal and its exit code."""

    code = 1


class Damaged(Refusal):
    code = 5


class Malformed(Refusal):
    code = 8


class Library(Refusal):
    code = 10


def need(condition: object, why: str) -> None:
    if not condition:
        raise Malformed(why)


# --- section 3: canonical JSON


def parse(data: bytes) -> Any:
    need(len(data) <= 16 * MEBI, "bundle.json is too large")
    need(sum(data.count(byte) for byte in (b",", b"[", b"{")) <= 1 << 20, "too many values")
    try:
        value = json.loads(data.decode())
        same = (canonical(value, 1) + "\n").encode() == data
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}") from None
    need(same, "not canonical")
    return value


def canonical(value: Any, depth: int) -> str:
    need(depth <= 32, "too deep")
    if isinstance(value, dict):
        inner = (f"{canonical(k, depth)}:{canonical(value[k], depth + 1)}" for k in sorted(value))
        return "{" + ",".join(inner) + "}"
    if isinstance(value, list):
        return "[" + ",".join(canonical(item, depth + 1) for item in value) + "]"
    if isinstance(value, str):
        return '"' + "".join(ESCAPES.get(letter, letter) for letter in value) + '"'
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    need(isinstance(value, int) and len(str(value)) <= 20, "not a small integer")
    return str(value)


# --- section 4: bundle.json. A shape is a dict of keys (a trailing ? is optional), [shape, most],
# a highest number, a tuple of choices, a pattern, or the type bool or dict; {"*": shape} is any key.

FILE = {"size": NUMBER, "sha256": HEX64}
PACK = FILE | {
    "file": r"packs/[A-Za-z0-9][A-Za-z0-9._-]{0,200}",
    "index": {"offset": NUMBER, "length": NUMBER, "digest": HEX64},
    "plain?": r"([0-9a-f]{32}){1,65536}",
    "prefix?": bool,
}
SPACE = {"pack": LIST, "size": NUMBER, "chunks?": {"first": NUMBER, "count": NUMBER}, "inputs?": [LIST, LIST]}
SPACE |= {"streams?": [LIST, LIST]}
TERM = {"quantity": ("start", "last", "size"), "right": 63, "left": 63, "negative": bool}
INTEGER = {"width": (1, 2, 4, 8), "endian": ("little", "big")}
FIELD = INTEGER | {"at": 4096, "quantity": ("source", "length"), "shift": 63}
FRAMING = {"header": r"([0-9a-f]{2}){0,4096}", "align": MEBI, "fields": [FIELD, 8]}
CODEC = {"codec": WORD, "params": dict}
RULES = {
    "tables": [{"space": LIST, "width": (1, 2, 4), "scale": 1 << 23}, LIST],
    "offsets": [INTEGER | {"table": LIST, "constant": (1 << 64) - 1, "terms": [TERM, 8]}, LIST],
    "encodes": [CODEC | {"input": LIST, "unit": 1 << 23, "table": LIST, "framing": FRAMING}, LIST],
    "decodes": [CODEC | {"input": LIST, "prefix?": LIST}, LIST],
    "streams?": [CODEC | {"input": LIST}, LIST],
}
PLAIN = {"space": LIST, "offset": NUMBER, "length": 1 << 23}
TRIED = {"rung": TEXT, "why": TEXT}
HOW = {"rung?": TEXT, "format?": TEXT, "cost?": NUMBER, "tried?": [TRIED, LIST], "bytes?": {"*": NUMBER}}
HOW |= {"facts?": {"*": TEXT}, "encoders?": {"*": TEXT}}
HOW |= {"published?": HOW}
FORM = {"name": NAME, "size": NUMBER, "sha256": HEX64, "data?": NUMBER, "space?": LIST}
FORM |= {"chain?": {"space": LIST, "offset": NUMBER, "count": 128}}
ARTIFACT = {"platform": NAME, "format": NAME, "arch": WORD, "role": WORD, "mtime": 1 << 40, "mode": 0o777}
ARTIFACT |= {"sparse": bool, "virtual_size": NUMBER, "canonical": bool, "how": HOW}
ARTIFACT |= {"forms": {"image": FORM, "published?": FORM, "signature?": FORM}}
DOCUMENT = FILE | {"file": r"streams/[A-Za-z0-9][A-Za-z0-9._-]{0,200}", "size": 32 * MEBI}
RELEASE = {"name": NAME, "stream": NAME, "release": NAME, "document": DOCUMENT, "artifacts": [ARTIFACT, LIST]}
MANIFEST = {
    "packs": [PACK, 1 << 13],
    "spaces": [SPACE, LIST],
    "rules": RULES,
    "known_answers": [CODEC | {"library": NAME, "plain": PLAIN, "sha256": HEX64}, LIST],
    "releases": [RELEASE, LIST],
}


def fits(value: Any, shape: Any, where: str) -> None:
    if shape in (bool, dict):
        need(type(value) is shape, where)
    elif isinstance(shape, int):
        need(type(value) is int and 0 <= value <= shape, where)
    elif isinstance(shape, str):
        need(isinstance(value, str) and re.fullmatch(shape, value), where)
    elif isinstance(shape, tuple):
        need(type(value) in (int, str) and value in shape, where)
    elif isinstance(shape, list):
        need(isinstance(value, list) and len(value) <= shape[1], where)
        for item in value:
            fits(item, shape[0], where)
    else:
        need(isinstance(value, dict), where)
        for item in value.values() if "*" in shape else ():
            fits(item, shape["*"], where)
        for key, inner in shape.items():
            name = key.rstrip("?")
            if key == "*":
                continue
            if name == key or value.get(name) is not None:
                fits(value.get(name), inner, f"{where}.{name}")


def check(top: Any) -> None:
    need(isinstance(top, dict) and top.get("format") == "rehydrator-bundle", "not a bundle")
    need(type(top.get("version")) is int and top["version"] == 1, "unknown version")
    requires = top.get("requires")
    need(isinstance(requires, list), "requires")
    need(all(each in ("streams", "prefix") for each in requires), "requires what is not known")
    fits(top, MANIFEST, "bundle.json")
    packs, spaces, rules = top["packs"], top["spaces"], top["rules"]
    streams = rules.get("streams") or []
    need(not streams or "streams" in requires, "stream rules that are not required")
    behind = any(pack.get("prefix") for pack in packs)
    need(not behind or "prefix" in requires, "prefixes that are not required")
    files = [each["file"] for each in packs] + [each["document"]["file"] for each in top["releases"]]
    need(len(set(files)) == len(files), "a file stands twice")
    for pack in packs:
        need(pack["index"]["offset"] + pack["index"]["length"] == pack["size"], "index not at the end")
    records = sum(pack["index"]["length"] - 16 for pack in packs) // 64
    need(records <= 1 << 19, "too many frames")
    depths: list[int] = []
    for number, space in enumerate(spaces):
        inputs = (space.get("inputs") or []) if space.get("chunks") else []
        need(not space.get("chunks") or isinstance(space.get("inputs"), list), "no inputs")
        need(space["pack"] < len(packs), "no such pack")
        need(all(each < number for each in inputs), "an input that is not lower")
        named = (space.get("streams") or []) if space.get("chunks") else []
        need(all(each < len(streams) for each in named), "no such stream rule")
        need(all(low < high for row in (inputs, named) for low, high in pairwise(row)), "do not ascend")
        depths.append(1 + max((depths[each] for each in inputs), default=0))
        need(depths[-1] <= 16, "too deep")
    for rule in rules["encodes"] + rules["decodes"] + streams:
        need(rule["input"] < len(spaces) and (rule.get("prefix") or 0) < len(spaces), "no such space")
    for rule in rules["encodes"]:
        framing = rule["framing"]
        size = len(framing["header"]) // 2
        need(rule["unit"] and framing["align"], "a unit or alignment of nothing")
        need(all(each["at"] + each["width"] <= size for each in framing["fields"]), "no room for a field")
    need(all(table["space"] < len(spaces) for table in rules["tables"]), "no such space")
    for rule in rules["offsets"] + rules["encodes"]:
        need(rule["table"] < len(rules["tables"]), "no such table")
    for each in rules["encodes"] + rules["decodes"] + streams + top["known_answers"]:
        need(all(type(v) is int and abs(v) < 1 << 32 for v in each["params"].values()), "bad parameter")
    for answer in top["known_answers"]:
        plain = answer["plain"]
        need(plain["length"] and plain["space"] < len(spaces), "known answer about nothing")
        need(plain["offset"] + plain["length"] <= spaces[plain["space"]]["size"], "known answer outside")
    artifacts = [each for release in top["releases"] for each in release["artifacts"]]
    forms = [(each["arch"], kind, form) for each in artifacts for kind, form in forms_of(each)]
    for _, kind, form in forms:
        need(form["name"] not in {".", ".."} and len(form["name"].encode()) <= 255, "bad file name")
        need((form.get("data") or 0) <= form["size"], "more data than bytes")
        if form.get("space") is None:
            need(kind == "published", "no recipe")
        else:
            need(form["space"] < len(spaces), "no such space")
            need(spaces[form["space"]]["size"] == form["size"], "recipe of another size")
        check_chain(form.get("chain"), spaces)
    names = [(form["name"], arch) for arch, _, form in forms]
    need(len(set(names)) == len(names), "two forms of one name")


def check_chain(chain: dict[str, int] | None, spaces: list[dict[str, Any]]) -> None:
    """Where chaining values lie; this reader hashes in sequence, and does not look at them."""
    if chain is not None:
        need(chain["count"] and chain["space"] < len(spaces), "no chaining values")
        space = spaces[chain["space"]]
        need(not space.get("chunks"), "chaining values in a recipe")
        need(chain["offset"] + 40 * chain["count"] <= space["size"], "chaining values outside")


def forms_of(artifact: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    kinds = ("image", "published", "signature")
    return [(kind, form) for kind in kinds if (form := artifact["forms"].get(kind)) is not None]


# --- sections 5 and 6: frames and chunks


class Frame(NamedTuple):
    kind: int
    codec: int
    planes: int
    start: int
    offset: int
    stored: int
    plain: int
    digest: bytes


def index_frames(index: bytes, end: int) -> list[Frame]:
    need(len(index) >= 16 and index[:8] == b"RHPKIDX1" and index[12:16] == bytes(4), "not an index")
    need(len(index) == 16 + 64 * int.from_bytes(index[8:12], "little"), "index of another length")
    frames: list[Frame] = []
    first: Frame | None = None
    here = 0
    for record in struct.iter_unpack("<BBB5sQQII32s", index[16:]):
        frame = Frame(*record[:3], *record[4:])
        need(record[3] == bytes(5) and frame.kind < 2 and frame.codec < 3, "unknown kind or codec")
        if frame.codec == 2:
            fit = first is not None and first.codec < 2 and first.planes == 1 and first.plain <= 1 << 24
            need(fit and not frame.kind, "a prefix that there is not")
        need(frame.planes in ((1,) if frame.kind else (1, 2, 4, 8)), "planes")
        need(frame.offset == here and 0 < frame.stored <= 1 << 26, "frames do not follow each other")
        need(0 < frame.plain <= (229411 if frame.kind else 1 << 26), "plain size")
        need(frame.plain % frame.planes == 0, "planes")
        here += frame.stored
        frames.append(frame)
        first = frame if first is None and not frame.kind else first
    need(here == end, "bytes outside of frames")
    return frames


def unzstd(stored: bytes, size: int, prefix: bytes = b"") -> bytes:
    reference = zstd.ZstdDict(prefix, is_raw=True).as_prefix if prefix else None
    options = {int(zstd.DecompressionParameter.window_log_max): 27}
    try:
        need(zstd.get_frame_info(stored).decompressed_size == size, "content size")
        window = 0 if stored[4] & 32 else (8 + stored[5] % 8) << (stored[5] // 8 + 7)
        need(window <= 1 << 27, "a window above the limit")
        decoder = zstd.ZstdDecompressor(zstd_dict=reference, options=options)
        plain = decoder.decompress(stored, size + 1)
    except (zstd.ZstdError, ValueError) as error:
        raise Malformed(f"zstd: {error}") from None
    need(len(plain) == size and decoder.eof and not decoder.unused_data, "not one zstd frame")
    return plain


def unzigzag(value: int) -> int:
    return -(value + 1) // 2 if value & 1 else value // 2


def chunk_ops(data: bytes) -> list[tuple[int, ...]]:
    """(kind, length, where, …): Copy offset; Series first, step; Offsets index, first;
    Encode offset, index, count; Decode offset, stored, prefix_offset, prefix_length;
    Stream offset, plain."""
    count = int.from_bytes(data[:4], "little")
    need(len(data) > 4 and 0 < count <= 4096, "count of ops")
    columns, at = [], 4
    for _ in range(7):
        width = data[at] if at < len(data) else 3
        need(width in (0, 1, 2, 4, 8) and at + 1 + width * count <= len(data), "column")
        planes = [data[at + 1 + p * count : at + 1 + (p + 1) * count] for p in range(width)]
        columns.append([sum(plane[k] << 8 * p for p, plane in enumerate(planes)) for k in range(count)])
        at += 1 + width * count
    need(at == len(data), "bytes behind the last column")
    ends: dict[tuple[int, int], int] = {}
    return [one_op(ends, row) for row in zip(*columns, strict=True)]


def one_op(ends: dict[tuple[int, int], int], row: tuple[int, ...]) -> tuple[int, ...]:
    kind, length, where, a, b, c, d = row
    need(length and 1 <= kind <= 6, "kind or length")
    need(not (kind == 1 and b) and not (kind in {1, 2, 3, 6} and (c or d)), "unused operand")
    if kind == 2:
        need(where >> 4 < 2 and where & 15 in (1, 2, 4, 8) and length % (where & 15) == 0, "series")
        return kind, length, where, a, unzigzag(b)
    value = ends.get((kind, where), 0) + unzigzag(b if kind == 3 else a)
    need(0 <= value < 1 << 63, "operand")
    ends[kind, where] = value + {1: length, 5: b, 6: b}.get(kind, 0)
    need(kind != 4 or not d, "unused operand")
    return kind, length, where, value, *{1: (), 3: (a,), 4: (b, c), 5: (b, c, d), 6: (b,)}[kind]


# --- section 8: codecs


def encode(codec: str, params: dict[str, int], plain: bytes) -> bytes:
    if codec == "zstd":
        need(params.keys() == {"level"} and 1 <= params["level"] <= 22, "zstd parameters")
        return zstd.compress(plain, params["level"])
    deflate = deflate_library(codec)
    check_deflate(params)
    packer = deflate.compressobj(params["level"], zlib.DEFLATED, params["wbits"], params["memlevel"])
    packed: bytes = packer.compress(plain) + packer.flush()
    return packed


def deflate_library(codec: str) -> Any:
    need(codec in {"zlib", "zlib-ng"}, "unknown codec")
    if codec == "zlib":
        return zlib
    from zlib_ng import zlib_ng

    return zlib_ng


def check_deflate(params: dict[str, int]) -> None:
    need(params.keys() == {"level", "memlevel", "wbits"}, "deflate parameters")
    need(0 <= params["level"] <= 9 and 1 <= params["memlevel"] <= 9, "deflate parameters")
    need(9 <= abs(params["wbits"]) <= 15, "deflate parameters")


def decode(codec: str, params: dict[str, int], stored: bytes, size: int) -> bytes:
    if codec == "zstd":
        return unzstd(stored, size)
    if codec in {"zlib", "zlib-ng"}:
        check_deflate(params)
        return unpacked(zlib.decompressobj(params["wbits"]), stored, size, False)
    need(codec in {"xz", "zstd.frame", "deflate", "lz4", "lzma1"}, "unknown codec")
    need(set(params) <= {"prefix"} and params.get("prefix", 0) in (0, 1), "block parameters")
    prefix = params.get("prefix") == 1
    if codec == "xz":
        return unpacked(lzma.LZMADecompressor(lzma.FORMAT_XZ, 64 * MEBI), stored, size, prefix)
    stored = stored.lstrip(b"\0")
    if codec == "lz4":
        return unlz4(stored, size, prefix)
    if codec == "lzma1":
        return unlzma1(stored, size)
    options = {int(zstd.DecompressionParameter.window_log_max): 24}
    decoder = zlib.decompressobj(-15) if codec == "deflate" else zstd.ZstdDecompressor(options=options)
    return unpacked(decoder, stored, size, prefix)


def unpacked(decoder: Any, stored: bytes, size: int, prefix: bool) -> bytes:
    try:
        plain: bytes = decoder.decompress(stored, size if prefix else size + 1)
    except (zlib.error, lzma.LZMAError, zstd.ZstdError) as error:
        raise Malformed(f"decoding: {error}") from None
    need(len(plain) == size and (prefix or (decoder.eof and not decoder.unused_data)), "not one stream")
    return plain


def unlzma1(stored: bytes, size: int) -> bytes:
    need(stored, "nothing to decode")
    lp, lc = divmod((255 - stored[0]) % 45, 9)
    chain = {"id": lzma.FILTER_LZMA1, "lc": lc, "lp": lp, "pb": (255 - stored[0]) // 45}
    try:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[chain | {"dict_size": max(size, 4096)}])
    except (lzma.LZMAError, ValueError) as error:
        raise Malformed(f"lzma1: {error}") from None
    return unpacked(decoder, b"\0" + stored[1:], size, True)


def unlz4(stored: bytes, size: int, prefix: bool) -> bytes:
    """Sequences of literals and matches; the last one has no match."""
    made, left = bytearray(), iter(stored)
    try:
        while len(made) <= size:
            token = next(left)
            literals = lz4_length(token >> 4, left)
            literals = min(literals, size - len(made)) if prefix else literals
            taken = bytes(islice(left, literals))
            need(len(taken) == literals, "lz4: cut short")
            made += taken
            low = next(left, None)
            if low is None or (prefix and len(made) == size):
                break
            distance = low + 256 * next(left)
            need(0 < distance <= len(made), "lz4: before the beginning")
            match = 4 + lz4_length(token & 15, left)
            for _ in range(min(match, size - len(made) + (not prefix))):
                made.append(made[-distance])
    except StopIteration:
        raise Malformed("lz4: cut short") from None
    need(len(made) == size, "lz4: another size")
    return bytes(made)


def lz4_length(length: int, left: Iterator[int]) -> int:
    more = 255 if length == 15 else 0
    while more == 255:
        more = next(left)
        length += more
    return length


# Stream codecs: the highest and lowest value of each parameter.
FLAG, LEVEL, PIECE = (0, 1), (0, 9), (1, 64 * MEBI)
STREAM_CODECS = {
    "deflate.zlib": {"level": LEVEL, "memlevel": (1, 9)},
    "deflate.zlib-ng": {"level": LEVEL, "memlevel": (1, 9), "piece": PIECE},
    "deflate.isal": {"level": (0, 3), "memlevel": (1, 9), "piece": PIECE},
    "deflate.libdeflate": {"level": (0, 12)},
    "deflate.gzip": {"level": (1, 9), "rsyncable": FLAG},
    "deflate.pigz": {"level": LEVEL, "independent": FLAG, "rsyncable": FLAG},
    "deflate.zip": {"level": (1, 9)},
    "bzip2": {"level": (1, 9)},
    "lzma2": {"preset": LEVEL, "extreme": FLAG, "dict_size": (4096, 1536 * MEBI)},
    "unit.zlib": {"level": (1, 9), "ng": FLAG, "strategy": (0, 4), "wbits": (9, 15)},
    "unit.xz": {"bcj": LEVEL, "dict_size": (4096, MEBI), "lc": (0, 4), "lp": (0, 4), "pb": (0, 4)},
    "unit.zstd": {"level": (1, 22), "library": (10_000, 999_999)},
    "unit.lz4": {"level": (0, 12)},
}


def stream(codec: str, params: dict[str, int], plain: bytes) -> bytes:
    if codec in {"zstd.stream", "zstd.program"}:
        raise Library(f"{codec} is beyond this reader")
    need(codec in STREAM_CODECS, "unknown stream codec")
    if (codec, params) == ("lzma2", {"stored": 1}):
        return lzma2_stored(plain)
    ranges = STREAM_CODECS[codec]
    need(params.keys() == ranges.keys(), "stream parameters")
    need(all(low <= params[key] <= high for key, (low, high) in ranges.items()), "stream parameters")
    try:
        if codec == "lzma2":
            preset = params["preset"] | params["extreme"] * lzma.PRESET_EXTREME
            chain = [{"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": params["dict_size"]}]
            return lzma.compress(plain, lzma.FORMAT_RAW, filters=chain)
        if codec == "bzip2":
            return bz2.compress(plain, params["level"])
        return unit(codec, params, plain) if codec[:5] == "unit." else deflated(codec, params, plain)
    except (ImportError, FileNotFoundError) as error:
        raise Library(f"{codec}: {error}") from None


def lzma2_stored(plain: bytes) -> bytes:
    parts = [plain[at : at + 65536] for at in range(0, len(plain), 65536)]
    heads = (bytes([1 if k == 0 else 2]) + (len(part) - 1).to_bytes(2, "big") for k, part in enumerate(parts))
    return b"".join(head + part for head, part in zip(heads, parts, strict=True)) + b"\0"


def unit(codec: str, params: dict[str, int], plain: bytes) -> bytes:
    need(len(plain) <= MEBI, "a unit above the limit")
    if codec == "unit.xz":
        return xz_unit(params, plain)
    level = params["level"]
    if codec == "unit.zlib":
        deflate = deflate_library("zlib-ng" if params["ng"] else "zlib")
        packer = deflate.compressobj(level, zlib.DEFLATED, params["wbits"], 8, params["strategy"])
        return bytes(packer.compress(plain) + packer.flush())
    if codec == "unit.zstd":
        major, minor, release = zstd.zstd_version_info
        if params["library"] != major * 10_000 + minor * 100 + release:
            raise Library(f"zstd {params['library']}")
        return zstd.compress(plain, level)
    from lz4 import block

    if not level:
        raise Library("LZ4_compress_default")
    return bytes(block.compress(plain, mode="high_compression", compression=level, store_size=False))


def xz_unit(params: dict[str, int], plain: bytes) -> bytes:
    """The .xz File Format 1.2: header, one block, index, footer."""
    bcj, size = params["bcj"], params["dict_size"]
    stated = {(2 | byte & 1) << byte // 2 + 11: byte for byte in range(20)}
    need(bcj not in {1, 2, 3} and params["lc"] + params["lp"] <= 4 and size in stated, "xz parameters")
    chain = [{"id": bcj}] * bool(bcj)
    chain += [{"id": lzma.FILTER_LZMA2, "preset": 6} | {k: v for k, v in params.items() if k != "bcj"}]
    data = lzma.compress(plain, lzma.FORMAT_RAW, filters=chain)
    filters = bytes([bcj, 0] * bool(bcj) + [0x21, 1, stated[size]])
    most = xz_number(len(plain) + 3 * -(-len(plain) // 65536) + 1)
    room = 2 + len(most + xz_number(len(plain)) + filters)
    room += -room % 4
    header = bytes([room // 4, 0xC0 | bool(bcj)]) + xz_number(len(data)) + xz_number(len(plain)) + filters
    block = xz_summed(header.ljust(room, b"\0")) + data
    index = b"\0\1" + xz_number(len(block) + 4) + xz_number(len(plain))
    index = xz_summed(index + bytes(-len(index) % 4))
    footer = struct.pack("<I", len(index) // 4 - 1) + b"\0\1"
    check = struct.pack("<I", zlib.crc32(plain))
    begin = b"\xfd7zXZ\0" + xz_summed(b"\0\1")
    end = index + struct.pack("<I", zlib.crc32(footer)) + footer + b"YZ"
    return begin + block + bytes(-len(block) % 4) + check + end


def xz_summed(data: bytes) -> bytes:
    return data + struct.pack("<I", zlib.crc32(data))


def xz_number(value: int) -> bytes:
    more = value >> 7
    return bytes([value & 127 | (more > 0) << 7]) + (xz_number(more) if more else b"")


def deflated(codec: str, params: dict[str, int], plain: bytes) -> bytes:
    level = f"-{params['level']}"
    if codec == "deflate.gzip":
        return filtered(["gzip", "-c", "-n", level, *["--rsyncable"] * params["rsyncable"]], plain)[10:-8]
    if codec == "deflate.pigz":
        flags = ["-i"] * params["independent"] + ["-R"] * params["rsyncable"]
        return filtered(["pigz", "-c", "-n", "-p", "1", level, *flags], plain)[10:-8]
    if codec == "deflate.zip":
        archive = filtered(["zip", "-q", "-X", level, "-", "-"], plain)
        names = struct.unpack("<HH", archive[26:30])
        inflate = zlib.decompressobj(-15)
        inflate.decompress(archive[30 + sum(names) :])
        return archive[30 + sum(names) : -len(inflate.unused_data)]
    if codec == "deflate.libdeflate":
        import deflate

        return bytes(deflate.deflate_compress(plain, params["level"]))
    if codec == "deflate.zlib":
        module: Any = zlib
    elif codec == "deflate.zlib-ng":
        from zlib_ng import zlib_ng as module
    else:
        from isal import isal_zlib as module
    packer = module.compressobj(params["level"], zlib.DEFLATED, -15, params["memlevel"])
    piece = params.get("piece") or len(plain) or 1
    made = [packer.compress(plain[at : at + piece]) for at in range(0, len(plain), piece)]
    return b"".join(made) + bytes(packer.flush())


def filtered(argv: list[str], plain: bytes) -> bytes:
    options = {"GZIP", "PIGZ", "ZIP", "ZIPOPT"}
    environment = {key: value for key, value in os.environ.items() if key not in options}
    done = subprocess.run(argv, input=plain, capture_output=True, check=False, env=environment)
    need(done.returncode == 0, f"{argv[0]} failed")
    return done.stdout


# --- section 7: spaces and ops


class Bundle:
    """A bare bundle directory. Everything is kept in memory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.top = parse((root / "bundle.json").read_bytes())
        check(self.top)
        self.packs = [self.pinned(pack) for pack in self.top["packs"]]
        self.documents = [self.pinned(release["document"]) for release in self.top["releases"]]
        self.spaces, self.rules = self.top["spaces"], self.top["rules"]
        self.frames = lru_cache(None)(self.frames)  # type: ignore[method-assign]
        self.plain = lru_cache(None)(self.plain)  # type: ignore[method-assign]
        self.rows = lru_cache(None)(self.rows)  # type: ignore[method-assign]
        self.ends = lru_cache(None)(self.ends)  # type: ignore[method-assign]
        self.stream = lru_cache(None)(self.stream)  # type: ignore[method-assign]

    def pinned(self, stated: dict[str, Any]) -> bytes:
        try:
            data: bytes = (self.root / stated["file"]).read_bytes()
        except FileNotFoundError:
            raise Damaged(f"{stated['file']} is missing") from None
        if (len(data), hashlib.sha256(data).hexdigest()) != (stated["size"], stated["sha256"]):
            raise Damaged(f"{stated['file']}: another size or SHA-256")
        return data

    def frames(self, pack: int) -> list[Frame]:
        place = self.top["packs"][pack]["index"]
        index = self.packs[pack][place["offset"] :]
        if hashlib.blake2b(index, digest_size=32).hexdigest() != place["digest"]:
            raise Damaged(f"index of pack {pack}")
        frames = index_frames(index, place["offset"])
        behind = any(frame.codec == 2 for frame in frames)
        need(not behind or self.top["packs"][pack].get("prefix"), "a prefix that is not stated")
        return frames

    def prefix(self, pack: int, frame: Frame) -> bytes:
        kinds = [each.kind for each in self.frames(pack)]
        return self.plain(pack, kinds.index(0)) if frame.codec == 2 else b""

    def plain(self, pack: int, number: int) -> bytes:
        frame = self.frames(pack)[number]
        stored = self.packs[pack][frame.offset : frame.offset + frame.stored]
        if hashlib.blake2b(stored, digest_size=32).digest() != frame.digest:
            raise Damaged(f"frame {number} of pack {pack}")
        split = unzstd(stored, frame.plain, self.prefix(pack, frame)) if frame.codec else stored
        need(len(split) == frame.plain, "a frame of another size")
        each = frame.plain // frame.planes
        made = bytearray(frame.plain)
        for plane in range(frame.planes):
            made[plane :: frame.planes] = split[plane * each : (plane + 1) * each]
        return bytes(made)

    def rows(self, number: int) -> tuple[list[int], list[tuple[int, ...]]]:
        """Where each row of a space begins, and the rows: ops, or (0, frame)."""
        space = self.spaces[number]
        pack, frames = space["pack"], self.frames(space["pack"])
        if not space.get("chunks"):
            picked = [k for k, frame in enumerate(frames) if frame.kind == 0]
            starts = list(accumulate((frames[k].plain for k in picked), initial=0))
            need([frames[k].start for k in picked] == starts[:-1], "data frames do not follow each other")
            need(starts[-1] == space["size"], "another size")
            return starts, [(0, k) for k in picked]
        first, count = space["chunks"]["first"], space["chunks"]["count"]
        need(first + count <= len(frames) and (count > 0) == (space["size"] > 0), "no such chunks")
        ops: list[tuple[int, ...]] = []
        here = 0
        for k in range(first, first + count):
            need(frames[k].kind == 1 and frames[k].start == here, "chunks do not follow each other")
            more = chunk_ops(self.plain(pack, k))
            here += sum(op[1] for op in more)
            ops += more
        need(here == space["size"], "another size")
        need(all(self.named(op) <= set(space["inputs"]) for op in ops), "a space not among the inputs")
        streams = {op[2] for op in ops if op[0] == 6}
        need(streams <= set(space.get("streams") or []), "a stream rule that the space does not list")
        return list(accumulate((op[1] for op in ops), initial=0)), ops

    def named(self, op: tuple[int, ...]) -> set[int]:
        kind, _, where, *_ = op
        if kind in {1, 2}:
            return {where} if kind == 1 else set()
        rules = self.rules.get({3: "offsets", 4: "encodes", 5: "decodes", 6: "streams"}[kind]) or []
        need(where < len(rules), "no such rule")
        rule = rules[where]
        found = {rule["input"]} if kind > 3 else set()
        found |= {self.rules["tables"][rule["table"]]["space"]} if kind < 5 else set()
        return found | ({rule["prefix"]} if rule.get("prefix") is not None else set())

    def read(self, space: int, offset: int, length: int) -> bytes:
        need(offset + length <= self.spaces[space]["size"], "a span outside of its space")
        starts, rows = self.rows(space)
        made = []
        at = bisect_right(starts, offset) - 1
        while length:
            skip = offset - starts[at]
            take = min(length, starts[at + 1] - offset)
            if rows[at][0]:
                made.append(self.run(rows[at], skip, take))
            else:
                made.append(self.plain(self.spaces[space]["pack"], rows[at][1])[skip : skip + take])
            offset, length, at = offset + take, length - take, at + 1
        return b"".join(made)

    def run(self, op: tuple[int, ...], skip: int, take: int) -> bytes:
        """Bytes [skip, skip+take) of what an op makes."""
        kind, _, where, *rest = op
        if kind == 1:
            return self.read(where, rest[0] + skip, take)
        if kind == 2:
            first, step = rest
            if not first and not step:
                return bytes(take)
            width, endian = where & 15, ("little", "big")[where >> 4]
            return integers(lambda k: first + k * step, width, endian, skip, take)
        if kind == 3:
            return self.offsets(self.rules["offsets"][where], op, skip, take)
        if kind == 4:
            return self.encode(self.rules["encodes"][where], op, skip, take)
        if kind == 6:
            return self.stream(op)[skip : skip + take]
        return self.decode(self.rules["decodes"][where], op)[skip : skip + take]

    def ends(self, number: int) -> list[int]:
        table = self.rules["tables"][number]
        size, width = self.spaces[table["space"]]["size"], table["width"]
        need(size % width == 0 and size // width <= 1 << 22, "size of a table")
        data = self.read(table["space"], 0, size)
        entries = (int.from_bytes(data[k : k + width], "little") for k in range(0, size, width))
        ends = list(accumulate((entry * table["scale"] for entry in entries), initial=0))
        need(ends[-1] <= NUMBER, "sum of a table")
        return ends

    def offsets(self, rule: Any, op: tuple[int, ...], skip: int, take: int) -> bytes:
        _, length, _, index, first = op
        ends, width = self.ends(rule["table"]), rule["width"]
        need(length % width == 0 and index + length // width < len(ends), "positions outside of the table")

        def value(k: int) -> int:
            start, end = (first + ends[index + k + j] - ends[index] for j in (0, 1))
            of = {"start": start, "last": end - 1, "size": end - start}
            terms = [(-1 if t["negative"] else 1, of[t["quantity"]], t) for t in rule["terms"]]
            total = sum(sign * ((q >> t["right"]) << t["left"]) for sign, q, t in terms)
            return int(rule["constant"] + total) if end > start else 0

        return integers(value, width, rule["endian"], skip, take)

    def encode(self, rule: Any, op: tuple[int, ...], skip: int, take: int) -> bytes:
        _, length, _, offset, index, count = op
        ends = self.ends(rule["table"])
        need(count and index + count < len(ends), "units outside of the table")
        base = ends[index]
        need(ends[index + count] - base == length, "units do not add up")
        made = b""
        first = None
        for k in range(max(0, bisect_right(ends, base + skip) - 1 - index), count):
            start, end = ends[index + k] - base, ends[index + k + 1] - base
            if start >= skip + take:
                break
            first = start if first is None else first
            made += self.unit(rule, offset + k * rule["unit"], end - start) if end > start else b""
        return made[skip - (first or 0) :][:take]

    def unit(self, rule: Any, offset: int, size: int) -> bytes:
        inside = max(0, min(rule["unit"], self.spaces[rule["input"]]["size"] - offset))
        plain = self.read(rule["input"], offset, inside) if inside else b""
        packed = encode(rule["codec"], rule["params"], plain.ljust(rule["unit"], b"\0"))
        header = bytearray.fromhex(rule["framing"]["header"])
        for field in rule["framing"]["fields"]:
            value = offset >> field["shift"] if field["quantity"] == "source" else len(packed)
            need(value < 1 << 8 * field["width"], "no room in a header")
            at, width = field["at"], field["width"]
            header[at : at + width] = value.to_bytes(width, field["endian"])
        made = bytes(header) + packed
        made += bytes(-len(made) % rule["framing"]["align"])
        need(len(made) == size, "a unit of another size")
        return made

    def decode(self, rule: Any, op: tuple[int, ...]) -> bytes:
        _, length, _, offset, stored, prefix_at, prefix_length = op
        need(length <= 1 << 26 and stored <= 1 << 26 and prefix_length <= 1 << 27, "a Decode above the limit")
        data = self.read(rule["input"], offset, stored)
        if not prefix_length:
            return decode(rule["codec"], rule["params"], data, length)
        need(rule["codec"] == "zstd" and rule.get("prefix") is not None, "no prefix")
        return unzstd(data, length, self.read(rule["prefix"], prefix_at, prefix_length))

    def stream(self, op: tuple[int, ...]) -> bytes:
        _, length, where, offset, plain = op
        rule = self.rules["streams"][where]
        made = stream(rule["codec"], rule["params"], self.read(rule["input"], offset, plain))
        need(len(made) == length, "a stream of another size")
        return made

    # --- whole forms

    def check_encoders(self, space: int) -> None:
        reach, left = set(), [space]
        while left:
            number = left.pop()
            if number not in reach:
                reach.add(number)
                left += self.spaces[number].get("inputs") or []
        tables = [table["space"] in reach for table in self.rules["tables"]]
        needed = [rule for rule in self.rules["encodes"] if tables[rule["table"]]]
        numbers = {each for space in reach for each in self.spaces[space].get("streams") or []}
        needed += [self.rules["streams"][number] for number in numbers]
        for rule in needed:
            same = [
                each
                for each in self.top["known_answers"]
                if (each["codec"], each["params"]) == (rule["codec"], rule["params"])
            ]
            need(same, "no known answer for an encoder")
            for answer in same:
                plain = self.read(*(answer["plain"][key] for key in ("space", "offset", "length")))
                encoder = encode if rule in self.rules["encodes"] else stream
                made = encoder(answer["codec"], answer["params"], plain)
                if hashlib.sha256(made).hexdigest() != answer["sha256"]:
                    raise Library(f"needs {answer['library']}")

    def outputs(self) -> list[dict[str, Any]]:
        """Every form that has a recipe."""
        artifacts = [each for release in self.top["releases"] for each in release["artifacts"]]
        forms = [form for artifact in artifacts for _, form in forms_of(artifact)]
        return [form for form in forms if form.get("space") is not None]

    def made(self, form: dict[str, Any]) -> Iterator[bytes]:
        """A form in pieces; Damaged at the end if its SHA-256 is another."""
        self.check_encoders(form["space"])
        state = hashlib.sha256()
        for offset in range(0, form["size"], MEBI):
            piece = self.read(form["space"], offset, min(MEBI, form["size"] - offset))
            state.update(piece)
            yield piece
        if state.hexdigest() != form["sha256"]:
            raise Damaged(f"{form['name']}: another SHA-256")


def integers(value: Any, width: int, endian: Any, skip: int, take: int) -> bytes:
    low, high = skip // width, -(-(skip + take) // width)
    made: bytes = b"".join((value(k) % (1 << 8 * width)).to_bytes(width, endian) for k in range(low, high))
    return made[skip - low * width :][:take]


def main(directory: str) -> int:
    try:
        bundle = Bundle(Path(directory))
        for form in bundle.outputs():
            for _ in bundle.made(form):
                pass
            print(form["sha256"], form["name"])
    except Refusal as error:
        print(f"refused: {error}", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
