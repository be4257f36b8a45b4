"""A second reader of bundles, written from bundle/FORMAT.md alone: short and slow.

It imports nothing of `rehydrator`. `python second_reader.py DIRECTORY` checks every digest of
a bare bundle directory, regenerates every artifact and prints its SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import sys
import zlib
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate, pairwise
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
}
SPACE = {"pack": LIST, "size": NUMBER, "chunks?": {"first": NUMBER, "count": NUMBER}, "inputs?": [LIST, LIST]}
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
}
PLAIN = {"space": LIST, "offset": NUMBER, "length": 1 << 23}
TRIED = {"rung": TEXT, "why": TEXT}
HOW = {"rung?": TEXT, "format?": TEXT, "cost?": NUMBER, "tried?": [TRIED, LIST], "bytes?": {"*": NUMBER}}
HOW |= {"facts?": {"*": TEXT}, "encoders?": {"*": TEXT}}
FORM = {"name": NAME, "size": NUMBER, "sha256": HEX64, "data?": NUMBER, "space?": LIST}
ARTIFACT = {"platform": NAME, "format": NAME, "arch": WORD, "role": WORD, "mtime": 1 << 40, "mode": 0o777}
ARTIFACT |= {"sparse": bool, "virtual_size": NUMBER, "canonical": bool, "how": HOW}
ARTIFACT |= {"forms": {"image": FORM, "published?": FORM}}
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
    need(top.get("requires") == [], "requires what is not known")
    fits(top, MANIFEST, "bundle.json")
    packs, spaces, rules = top["packs"], top["spaces"], top["rules"]
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
        need(all(low < high for low, high in pairwise(inputs)), "inputs do not ascend")
        depths.append(1 + max((depths[each] for each in inputs), default=0))
        need(depths[-1] <= 16, "too deep")
    for rule in rules["encodes"] + rules["decodes"]:
        need(rule["input"] < len(spaces) and (rule.get("prefix") or 0) < len(spaces), "no such space")
    for rule in rules["encodes"]:
        framing = rule["framing"]
        size = len(framing["header"]) // 2
        need(rule["unit"] and framing["align"], "a unit or alignment of nothing")
        need(all(each["at"] + each["width"] <= size for each in framing["fields"]), "no room for a field")
    need(all(table["space"] < len(spaces) for table in rules["tables"]), "no such space")
    for rule in rules["offsets"] + rules["encodes"]:
        need(rule["table"] < len(rules["tables"]), "no such table")
    for each in rules["encodes"] + rules["decodes"] + top["known_answers"]:
        need(all(type(v) is int and abs(v) < 1 << 32 for v in each["params"].values()), "bad parameter")
    for answer in top["known_answers"]:
        plain = answer["plain"]
        need(plain["length"] and plain["space"] < len(spaces), "known answer about nothing")
        need(plain["offset"] + plain["length"] <= spaces[plain["space"]]["size"], "known answer outside")
    artifacts = [each for release in top["releases"] for each in release["artifacts"]]
    for form in [form for each in artifacts for form in each["forms"].values() if form]:
        need(form["name"] not in {".", ".."} and len(form["name"].encode()) <= 255, "bad file name")
        need((form.get("data") or 0) <= form["size"], "more data than bytes")
    for image in [each["forms"]["image"] for each in artifacts]:
        need(type(image.get("space")) is int and image["space"] < len(spaces), "no recipe")
        need(spaces[image["space"]]["size"] == image["size"], "recipe of another size")
    names = [(each["forms"]["image"]["name"], each["arch"]) for each in artifacts]
    need(len(set(names)) == len(names), "two artifacts of one name")


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
    frames, here = [], 0
    for record in struct.iter_unpack("<BBB5sQQII32s", index[16:]):
        frame = Frame(*record[:3], *record[4:])
        need(record[3] == bytes(5) and frame.kind < 2 and frame.codec < 2, "unknown kind or codec")
        need(frame.planes in ((1,) if frame.kind else (1, 2, 4, 8)), "planes")
        need(frame.offset == here and 0 < frame.stored <= 1 << 26, "frames do not follow each other")
        need(0 < frame.plain <= (229411 if frame.kind else 1 << 26), "plain size")
        need(frame.plain % frame.planes == 0, "planes")
        here += frame.stored
        frames.append(frame)
    need(here == end, "bytes outside of frames")
    return frames


def unzstd(stored: bytes, size: int, prefix: bytes = b"") -> bytes:
    reference = zstd.ZstdDict(prefix, is_raw=True).as_prefix if prefix else None
    options = {int(zstd.DecompressionParameter.window_log_max): 27}
    try:
        need(zstd.get_frame_info(stored).decompressed_size == size, "content size")
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
    Encode offset, index, count; Decode offset, stored, prefix_offset, prefix_length."""
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
    need(length and 1 <= kind <= 5, "kind or length")
    need(not (kind == 1 and (b or c or d)) and not (kind in {2, 3} and (c or d)), "unused operand")
    if kind == 2:
        need(where >> 4 < 2 and where & 15 in (1, 2, 4, 8) and length % (where & 15) == 0, "series")
        return kind, length, where, a, unzigzag(b)
    value = ends.get((kind, where), 0) + unzigzag(b if kind == 3 else a)
    need(0 <= value < 1 << 63, "operand")
    ends[kind, where] = value + {1: length, 5: b}.get(kind, 0)
    need(kind != 4 or not d, "unused operand")
    return kind, length, where, value, *{1: (), 3: (a,), 4: (b, c), 5: (b, c, d)}[kind]


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
    deflate_library(codec)
    check_deflate(params)
    inflate = zlib.decompressobj(params["wbits"])
    try:
        plain = inflate.decompress(stored, size + 1)
    except zlib.error as error:
        raise Malformed(f"deflate: {error}") from None
    need(len(plain) == size and inflate.eof and not inflate.unused_data, "not one deflate stream")
    return plain


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
        return index_frames(index, place["offset"])

    def plain(self, pack: int, number: int) -> bytes:
        frame = self.frames(pack)[number]
        stored = self.packs[pack][frame.offset : frame.offset + frame.stored]
        if hashlib.blake2b(stored, digest_size=32).digest() != frame.digest:
            raise Damaged(f"frame {number} of pack {pack}")
        split = unzstd(stored, frame.plain) if frame.codec else stored
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
        return list(accumulate((op[1] for op in ops), initial=0)), ops

    def named(self, op: tuple[int, ...]) -> set[int]:
        kind, _, where, *_ = op
        if kind in {1, 2}:
            return {where} if kind == 1 else set()
        rules = self.rules[{3: "offsets", 4: "encodes", 5: "decodes"}[kind]]
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

    # --- whole artifacts

    def check_encoders(self, space: int) -> None:
        reach, left = set(), [space]
        while left:
            number = left.pop()
            if number not in reach:
                reach.add(number)
                left += self.spaces[number].get("inputs") or []
        tables = [table["space"] in reach for table in self.rules["tables"]]
        for rule in self.rules["encodes"]:
            if not tables[rule["table"]]:
                continue
            same = [
                each
                for each in self.top["known_answers"]
                if (each["codec"], each["params"]) == (rule["codec"], rule["params"])
            ]
            need(same, "no known answer for an encoder")
            for answer in same:
                plain = self.read(*(answer["plain"][key] for key in ("space", "offset", "length")))
                made = encode(answer["codec"], answer["params"], plain)
                if hashlib.sha256(made).hexdigest() != answer["sha256"]:
                    raise Library(f"needs {answer['library']}")

    def artifacts(self) -> list[dict[str, Any]]:
        """The image forms."""
        return [each["forms"]["image"] for release in self.top["releases"] for each in release["artifacts"]]

    def image(self, form: dict[str, Any]) -> Iterator[bytes]:
        """An image form in pieces; Damaged at the end if its SHA-256 is another."""
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
        for form in bundle.artifacts():
            for _ in bundle.image(form):
                pass
            print(form["sha256"], form["name"])
    except Refusal as error:
        print(f"refused: {error}", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
