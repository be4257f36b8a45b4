"""Make the golden vectors: `python bundle/vectors/make.py [DIRECTORY]`, by default where this lies.

    good/NAME/       bundles that every reader reads: bundle.json says what must come out
    broken/NAME/     bundles that every reader refuses; broken.json says with which exit code, and why

What must come out is computed here from FORMAT.md with other means than the engine's. Zstd
frames are written by hand or stand here in hexadecimal, because zstd's versions differ.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import struct
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backports import zstd
from zlib_ng import zlib_ng

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rehydrator.core.ops import Copy, Decode, Encode, Offsets, Op, Series, zeros  # noqa: E402
from rehydrator.core.recipe import encode_chunk  # noqa: E402
from tests.fips180 import chaining_value  # noqa: E402
from tests.vectors import making as register  # noqa: E402
from tests.vectors import published  # noqa: E402
from tests.vectors.draft import Draft, canonical, pin_pack, write_tree  # noqa: E402
from tests.vectors.making import BROKEN, PACK, Making, change_ops, put, zstd_raw  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from rehydrator.core.ops import Endian
    from tests.vectors.making import Tree

FOXES = b"".join(b"The quick brown fox %d jumps over the lazy dog. " % (k * 7919 % 1000) for k in range(100))
FOXES_ZSTD = bytes.fromhex(
    "28b52ffd601612050900c61332196037b4010f253d94f450622e82e036457677ef0ca840101407360026002600"
    "75a2db5a856676673ca6a6a2aeedfd0340400a47b311348e21513913c305722811876571e8642087f3c0402683"
    "c320282c92634804029a94eadbaadb2da6f34acb96be478ac62c53f37d519fa8e6f55fb4e6bc3ab4ca235ccd5c"
    "bd6f6676fd4cf130d134addfd51fe9ecaa225bbb3c3ccc4aa55d7d2ee16d65bb4f0bd1d24ebdc707de57daf9aa"
    "90724df3f6f095645f4bd7f067e8bc556bd16e4785a6dab4d4bbc57aea6efa571464a81120407effcfb09d0312"
    "f83f41e00481dff50770ef2f7cebf14cf903b6fd836f47f2b1fdeff8ff0056b6ffe05f4376ee9fb9ddc77a3fcb"
    "87ed7ed1bf0fb0b273e2ffcddc677fb2e8599fdfc73461cc4b40aa02"
)
ALPHABET = bytes(range(256)) * 4
NEWS = b"".join(b"line %03d of what is new\n" % k for k in range(20)) + ALPHABET[100:700] + b"end"
NEWS_ZSTD = bytes.fromhex(  # with ALPHABET as the prefix
    "28b52ffd603b03c50200f4026c696e6520303030206f662077686174206973206e65770a313233343536373839"
    "3130313233343536373839656e6417a840f6fabf01c0a352071066846fc48dddffcf06b901120afe4a3af287c2"
    "23668a30c0822603"
)


def zstd_bomb(stated: int, blocks: int) -> bytes:
    """A frame that states `stated` bytes, with a window of 128 KiB and as many blocks of it."""
    header = b"\x28\xb5\x2f\xfd\x80" + bytes([7 << 3]) + struct.pack("<I", stated)
    block = (131072 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = (131072 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    return header + block * (blocks - 1) + last


def zstd_run(size: int) -> bytes:
    """A frame of `size` zeros: blocks of one byte that is repeated (RFC 8878, section 3.1.1.2)."""
    sizes = [131072] * (size // 131072) + [size % 131072]
    blocks = [
        (each << 3 | 1 << 1 | (k == len(sizes) - 1)).to_bytes(3, "little") for k, each in enumerate(sizes)
    ]
    return b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", size) + b"\0".join(blocks) + b"\0"


# --- good


def literals() -> Draft:
    """Frames of every kind, copies across them, two chunks."""
    making = Making()
    table = b"".join(struct.pack("<I", k * k) for k in range(300))
    parts = [FOXES, b"stored as it is. " * 9, bytes(range(200)), table]
    making.data(parts[0], 1, FOXES_ZSTD)
    making.data(parts[1])
    making.data(parts[2], 1, zstd_raw(parts[2]))
    making.data(parts[3], planes=4)
    plain = b"".join(parts)
    one: list[Op] = [Copy(5000, 0, 10), zeros(777), Copy(1, 0, 0)]
    two: list[Op] = [Copy(len(plain) - 4321, 0, 4321), Copy(9, 0, 4)]
    content = plain[10:5010] + bytes(777) + plain[:1] + plain[4321:] + plain[4:13]
    making.artifact("literals.raw", making.recipe([0], one, two), content, sparse=True, virtual_size=8192)
    return making.draft()


def prefixed() -> Draft:
    """A frame behind the pack's first, others and a chunk in between."""
    making = Making()
    making.data(ALPHABET)
    making.data(FOXES, 1, FOXES_ZSTD)
    making.recipe([0], [Copy(9, 0, 0)])
    making.data(NEWS, 2, NEWS_ZSTD)
    content = NEWS[50:] + FOXES[:70] + ALPHABET[3:40]
    ends = [len(ALPHABET), len(ALPHABET) + len(FOXES)]
    ops: list[Op] = [Copy(len(NEWS) - 50, 0, ends[1] + 50), Copy(70, 0, ends[0]), Copy(37, 0, 3)]
    making.artifact("prefixed.raw", making.recipe([0], ops), content)
    return making.draft()


ENDIANS: tuple[Endian, Endian] = ("little", "big")


def series() -> Draft:
    """Every width and endianness, steps of either sign, wrapping."""
    making = Making()
    ops: list[Op] = []
    content = b""
    for width in (1, 2, 4, 8):
        for endian in ENDIANS:
            for first, step in ((3, 5), ((1 << 8 * width) - 2, 1), (1, -1), (7, 0), (0, 0)):
                values = [(first + k * step) % (1 << 8 * width) for k in range(9)]
                content += b"".join(value.to_bytes(width, endian) for value in values)
                ops.append(Series(9 * width, first, step, width, endian))
    making.data(b"unused")
    making.artifact("series.raw", making.recipe([], ops), content)
    return making.draft()


UNIT = 512


def guest() -> bytes:
    """4.5 units of bytes that deflate well, and the same way in all versions."""
    return (b"guest bytes " * 64)[:UNIT] * 2 + bytes(range(256)) * 2 + bytes(UNIT) + b"half a unit.." * 20


def units(codec: str, params: dict[str, int], pack: Callable[[bytes], bytes]) -> Draft:
    """Encoded units with headers, padding, units that are not stored, and tables of positions."""
    making = Making()
    disk = guest()
    at = making.data(disk)
    source = making.recipe([0], [Copy(len(disk), 0, at)])
    header = b"GRAN" + bytes(8) + b"\xff\xff" + bytes(2)
    sizes, made, grain, cluster = b"", b"", b"", b""
    start = 1 << 16
    for k in range(-(-len(disk) // UNIT)):
        plain = disk[k * UNIT : (k + 1) * UNIT].ljust(UNIT, b"\0")
        packed = pack(plain)
        unit = (
            b"GRAN" + struct.pack("<Q", k * UNIT >> 9) + b"\xff\xff" + struct.pack(">H", len(packed)) + packed
        )
        unit += bytes(-len(unit) % 64)
        if not any(plain):
            unit = b""
        sizes += struct.pack("<H", len(unit) // 64)
        end = start + len(unit)
        sectors = (end - 1) // 512 - start // 512
        grain += struct.pack("<I", start >> 6 if unit else 0)
        cluster += struct.pack(">Q", 1 << 62 | sectors << 54 | start if unit else 0)
        made += unit
        start = end
    count = len(sizes) // 2
    table = making.recipe([0], [Copy(len(sizes), 0, making.data(sizes, planes=2))])
    making.rules["tables"] = [{"space": table, "width": 2, "scale": 64}]
    quantity = {"right": 0, "left": 0, "negative": False}
    whole_start = {**quantity, "quantity": "start"}
    last_sector = {**quantity, "quantity": "last", "right": 9, "left": 54}
    less_first = {**quantity, "quantity": "start", "right": 9, "left": 54, "negative": True}
    making.rules["offsets"] = [
        {"table": 0, "width": 4, "endian": "little", "constant": 0, "terms": [{**whole_start, "right": 6}]},
        {
            "table": 0,
            "width": 8,
            "endian": "big",
            "constant": 1 << 62,
            "terms": [whole_start, last_sector, less_first],
        },
    ]
    fields = [
        {"at": 4, "width": 4, "endian": "little", "quantity": "source", "shift": 9},
        {"at": 14, "width": 2, "endian": "big", "quantity": "length", "shift": 0},
    ]
    framing = {"header": header.hex(), "align": 64, "fields": fields}
    making.rules["encodes"] = [
        {"codec": codec, "params": params, "input": source, "unit": UNIT, "table": 0, "framing": framing}
    ]
    making.answer(codec, params, (at, UNIT), pack(disk[:UNIT]))
    ops: list[Op] = [
        Offsets(len(grain), 0, 0, 1 << 16),
        Offsets(len(cluster) - 8, 1, 1, (1 << 16) + 64 * sizes[0]),
        Encode(len(made), 0, 0, 0, count),
        Encode(64 * sizes[2], 0, UNIT, 1, 1),
    ]
    second = slice(64 * sizes[0], 64 * (sizes[0] + sizes[2]))
    space = making.recipe([source, table], ops)
    making.artifact("units.vmdk", space, grain + cluster[8:] + made + made[second])
    return making.draft()


def units_zlib() -> Draft:
    """As VMDK has them: zlib streams."""
    params = {"level": 6, "memlevel": 8, "wbits": 15}
    return units("zlib", params, lambda plain: zlib.compress(plain, 6))


def units_zlib_ng() -> Draft:
    """As qcow2 has them: raw deflate with a small window."""
    params = {"level": 6, "memlevel": 9, "wbits": -12}

    def pack(plain: bytes) -> bytes:
        packer = zlib_ng.compressobj(6, zlib.DEFLATED, -12, 9)
        return bytes(packer.compress(plain) + packer.flush())

    return units("zlib-ng", params, pack)


def units_zstd() -> Draft:
    """Zstd units."""
    return units("zstd", {"level": 3}, lambda plain: zstd.compress(plain, 3))


def decodes(foxes: bytes = FOXES_ZSTD) -> Draft:
    """Zlib, zstd, and zstd with a prefix."""
    making = Making()
    deflated = bytes.fromhex("78da") + zlib.compress(FOXES, 9)[2:]
    places = [making.data(data) for data in (deflated, foxes, NEWS_ZSTD, ALPHABET)]
    params = {"level": 9, "memlevel": 8, "wbits": 15}
    prefix = making.recipe([0], [Copy(len(ALPHABET), 0, places[3])])
    making.rules["decodes"] = [
        {"codec": "zlib", "params": params, "input": 0, "prefix": None},
        {"codec": "zstd", "params": {}, "input": 0},
        {"codec": "zstd", "params": {}, "input": 0, "prefix": prefix},
    ]
    ops: list[Op] = [
        Decode(len(FOXES), 0, places[0], len(deflated)),
        Decode(len(FOXES), 1, places[1], len(foxes)),
        Decode(len(NEWS), 2, places[2], len(NEWS_ZSTD), 0, len(ALPHABET)),
    ]
    making.artifact("decodes.raw", making.recipe([0, prefix], ops), FOXES + FOXES + NEWS)
    return making.draft()


def releases() -> Draft:
    """Two releases, an empty artifact, a published form, keys and files of the future."""
    making = Making()
    making.data(FOXES)
    making.artifact("foxes.raw", 0, FOXES)
    making.artifact("empty.raw", making.recipe([]), b"", future={"deep": [[["er"]]]})
    published = {"name": "foxes.raw.xz", "size": 300, "sha256": "0" * 64}
    making.artifacts[0]["forms"]["published"] = published
    making.artifacts[0]["forms"]["image"]["states"] = ["room for hash states"]
    draft = making.draft()
    second = copy.deepcopy(draft.document["releases"][0])
    second["release"] = "2"
    second["document"] = {"file": "streams/second.json"}
    for artifact in second["artifacts"]:
        artifact["arch"] = "aarch64"
    draft.document["releases"].append(second)
    draft.documents["streams/second.json"] = "é ü \u2028\n".encode()
    draft.document |= {"of the future": True, "é\u2028\U0001f600": '"\\\b\t\n\f\r\x1f\x7f/'}
    draft.others = {"signatures/0123456789abcdef.sig": b"any", "signatures/README": b"", "new/file": b""}
    return draft


def chained() -> Draft:
    """Chaining values at multiples of 64, between two other runs of bytes, one of them within zeros."""
    making = Making()
    at = making.data(FOXES)
    ops: list[Op] = [Copy(1000, 0, at), zeros(3000), Copy(3000, 0, at + 77)]
    content = FOXES[:1000] + bytes(3000) + FOXES[77:3077]
    space = making.recipe([0], ops)
    making.artifact("chained.raw", space, content)
    places = (64, 1984, 4032, 6976)
    records = b"".join(struct.pack("<Q", place) + chaining_value(content[:place]) for place in places)
    chain = {"space": 0, "offset": making.data(b"before" + records + b"behind") + 6, "count": len(places)}
    making.artifacts[0]["forms"]["image"]["chain"] = chain
    return making.draft()


def plain_digests(draft: Draft) -> list[bytes]:
    """What the pack's `plain` is to have: for each data frame, of FORMAT.md's own definition."""
    frames = [(frame.start, frame.plain) for frame in draft.packs[PACK] if frame.kind == 0]
    table = b"".join(struct.pack("<I", k * k) for k in range(300))
    space = FOXES + b"stored as it is. " * 9 + bytes(range(200)) + table
    return [
        hashlib.blake2b(space[start : start + size], digest_size=32).digest()[:16] for start, size in frames
    ]


def at_hand() -> Draft:
    """The frames' plain bytes have digests: stored, zstd, and in planes."""
    draft = literals()
    draft.document["packs"][0]["plain"] = b"".join(plain_digests(draft)).hex()
    return draft


def at_hand_wrong() -> Draft:
    """More digests than frames, and those of others: nothing that a reader may rely on, or refuse."""
    draft = literals()
    draft.document["packs"][0]["plain"] = (b"".join(plain_digests(draft)[::-1]) + bytes(160)).hex()
    return draft


GOOD = (
    literals,
    prefixed,
    chained,
    at_hand,
    at_hand_wrong,
    series,
    units_zlib,
    units_zlib_ng,
    units_zstd,
    decodes,
    releases,
    *published.GOOD,
)


# --- broken: each changes a good bundle; "sealed" means that all digests are computed anew


def instead(data: bytes) -> Callable[[bytes], bytes]:
    """A change to `data`, whatever was there."""
    return lambda _: data


def broken(code: int, why: str, base: Callable[[], Draft] = units_zlib) -> Callable[[Any], Any]:
    """Enter a function that damages a draft."""
    return register.broken(code, why, base)


def document(code: int, name: str, why: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Enter a change of bundle.json's value."""
    register.document(code, name, why, change, units_zlib)


def text(name: str, why: str, change: Callable[[bytes], bytes]) -> None:
    """Enter a change of bundle.json's bytes."""

    def damage(draft: Draft) -> Tree:
        tree = draft.tree()
        changed = change(tree["bundle.json"])
        assert changed != tree["bundle.json"]
        return tree | {"bundle.json": changed}

    damage.__name__ = name
    broken(8, why)(damage)


def ops(name: str, why: str, change: Callable[[list[Any]], list[Op]]) -> None:
    """Enter a change of the last recipe's ops; the declared size stays."""

    def damage(draft: Draft) -> None:
        change_ops(draft, change)

    damage.__name__ = name
    broken(8, why)(damage)


def chunk_bytes(name: str, why: str, change: Callable[[bytes], bytes]) -> None:
    """Enter a change of the last chunk's bytes."""

    def damage(draft: Draft) -> None:
        chunk = draft.packs[PACK][-1]
        chunk.stored = change(chunk.stored)
        chunk.plain = len(chunk.stored)

    damage.__name__ = name
    broken(8, why)(damage)


@broken(5, "the last byte of a pack is missing")
def truncated_pack(draft: Draft) -> Tree:
    tree = draft.tree()
    return tree | {PACK: tree[PACK][:-1]}


@broken(5, "a bit of a frame is flipped")
def altered_frame(draft: Draft) -> Tree:
    tree = draft.tree()
    return tree | {PACK: bytes([tree[PACK][0] ^ 1]) + tree[PACK][1:]}


@broken(5, "a bit of the index is flipped")
def altered_index(draft: Draft) -> Tree:
    tree = draft.tree()
    return tree | {PACK: tree[PACK][:-1] + bytes([tree[PACK][-1] ^ 1])}


@broken(5, "a pack is not there")
def missing_pack(draft: Draft) -> Tree:
    tree = draft.tree()
    del tree[PACK]
    return tree


@broken(5, "bundle.json states another digest of the index")
def index_digest_wrong(draft: Draft) -> Tree:
    tree = draft.tree()
    draft.document["packs"][0]["index"]["digest"] = "0" * 64
    return tree | {"bundle.json": canonical(draft.document)}


@broken(5, "the index states another digest of a frame; sealed")
def frame_digest_wrong(draft: Draft) -> None:
    draft.packs[PACK][0].digest = bytes(32)


def index_change(name: str, why: str, **change: Any) -> None:
    """Enter a change of the first frame's record, sealed."""

    def damage(draft: Draft) -> None:
        for key, value in change.items():
            setattr(draft.packs[PACK][0], key, value)

    damage.__name__ = name
    broken(8, why)(damage)


index_change("frame_unknown_kind", "a frame of kind 2", kind=2)
index_change("frame_unknown_codec", "a frame of codec 3", codec=3)
index_change("prefix_missing", "the first frame stands behind a prefix", codec=2)
index_change("frame_planes", "three planes", planes=3)
index_change("frame_reserved", "a reserved byte is not 0", zero=1)
index_change("frame_out_of_place", "a frame at 1, where 0 is next", offset=1)
index_change("frame_start", "the first data frame begins at 1", start=1)
index_change("frame_plain_size", "a frame of another plain size", plain=len(guest()) + 1)
index_change("frame_of_nothing", "a frame of no plain bytes", plain=0)
index_change("frame_above_limit", "a frame of 64 MiB and one byte", plain=(1 << 26) + 1)


@broken(8, "a frame states a window of 256 MiB", literals)
def frame_window(draft: Draft) -> None:
    plain = draft.packs[PACK][0].stored
    header = b"\x28\xb5\x2f\xfd\x80" + bytes([(28 - 10) << 3]) + struct.pack("<I", len(plain))
    stored = header + (len(plain) << 3 | 1).to_bytes(3, "little") + plain
    draft.packs[PACK][0].codec, draft.packs[PACK][0].stored = 1, stored


@broken(8, "a chunk stands behind a prefix", prefixed)
def prefix_of_a_chunk(draft: Draft) -> None:
    draft.packs[PACK][2].codec = 2


@broken(8, "a frame stands behind one in planes", prefixed)
def prefix_in_planes(draft: Draft) -> None:
    draft.packs[PACK][0].planes = 4


@broken(8, "a frame stands behind one that stands behind it", prefixed)
def prefix_of_a_prefix(draft: Draft) -> None:
    draft.packs[PACK][0].codec = 2


@broken(8, "a frame stands behind one of 16 MiB and one byte", prefixed)
def prefix_too_large(draft: Draft) -> None:
    more = (1 << 24) + 1 - len(ALPHABET)
    first = draft.packs[PACK][0]
    first.codec, first.stored, first.plain = 1, zstd_run((1 << 24) + 1), (1 << 24) + 1
    for frame in draft.packs[PACK][1:]:
        frame.start += more if frame.kind == 0 else 0
    draft.document["spaces"][0]["size"] += more


@broken(8, "frames stand behind a prefix, and the pack does not say so", prefixed)
def prefix_not_stated(draft: Draft) -> None:
    del draft.document["packs"][0]["prefix"]


@broken(8, "a pack with a prefix, and requires does not name it", prefixed)
def prefix_not_required(draft: Draft) -> None:
    draft.document["requires"] = []


@broken(5, "another prefix than the one that a frame was made behind; sealed", prefixed)
def prefix_of_another(draft: Draft) -> None:
    draft.packs[PACK][0].stored = ALPHABET[1:] + ALPHABET[:1]


@broken(8, "bytes of the pack are in no frame")
def gap_in_pack(draft: Draft) -> Tree:
    tree = draft.tree()
    stated = draft.document["packs"][0]
    at = stated["index"]["offset"]
    data = tree[PACK][:at] + b"gap" + tree[PACK][at:]
    pin_pack(stated, data, at + 3)
    return tree | {PACK: data, "bundle.json": canonical(draft.document)}


def first_frame(name: str, why: str, stored: bytes) -> None:
    """Enter another first frame of the literals, sealed."""

    def damage(draft: Draft) -> None:
        draft.packs[PACK][0].stored = stored

    damage.__name__ = name
    broken(8, why, literals)(damage)


first_frame("zstd_bomb_states_more", "a zstd frame states 128 MiB", zstd_bomb(1 << 27, 1024))
first_frame(
    "zstd_bomb_holds_more", "a zstd frame states its size and holds 128 MiB", zstd_bomb(len(FOXES), 1024)
)
first_frame("zstd_states_nothing", "a zstd frame states no size", bytes.fromhex("28b52ffd0038010000"))
first_frame("zstd_bytes_behind", "a byte behind a zstd frame", FOXES_ZSTD + b"\0")
first_frame("zstd_two_frames", "two zstd frames", zstd_raw(FOXES[:10]) + zstd_raw(FOXES[10:]))
first_frame("zstd_garbage", "no zstd frame", b"no zstd frame")
first_frame("zstd_cut_short", "a zstd frame that is cut short", FOXES_ZSTD[:-9])

chunk_bytes("chunk_trailing_bytes", "a byte behind the last column", lambda data: data + b"\0")
chunk_bytes("chunk_cut_short", "the last column is cut short", lambda data: data[:-1])
chunk_bytes("chunk_without_ops", "a chunk of 0 ops", instead(bytes(11)))
chunk_bytes("chunk_too_many_ops", "a chunk of 4,097 ops", lambda data: b"\x01\x10\0\0" + data[4:])
chunk_bytes("op_unknown", "an op of kind 7", lambda data: data[:5] + b"\x07" + data[6:])
chunk_bytes("op_of_no_bytes", "ops of length 0", instead(b"\x01\0\0\0\x01\x01" + bytes(6)))
chunk_bytes(
    "op_unused_operand",
    "a Copy with a third operand",
    instead(b"\x01\0\0\0" + b"\x01\x01\x01\x09\0\0" + b"\x01\x07" + bytes(2)),
)
chunk_bytes(
    "op_negative_offset",
    "a Copy from -1",
    instead(b"\x01\0\0\0" + b"\x01\x01\x01\x09\0" + b"\x01\x01" + bytes(3)),
)
chunk_bytes(
    "op_series_of_width_3",
    "a series of 3-byte integers",
    instead(b"\x01\0\0\0" + b"\x01\x02\x01\x09\x01\x03" + bytes(4)),
)

ops("op_space_above", "an op names a space above its own", lambda o: [Copy(o[0].length, 9, 0), *o[1:]])
ops("op_space_itself", "an op names its own space", lambda o: [Copy(o[0].length, 3, 0), *o[1:]])
ops("op_rule_missing", "an op names a rule that does not exist", lambda o: [*o[:3], Encode(64, 1, 0, 1, 1)])
ops("offset_outside", "a Copy leaves its space", lambda o: [Copy(o[0].length, 1, 1 << 40), *o[1:]])
ops("recipe_short", "a recipe makes less than its space's size", lambda o: o[:-1])
ops("recipe_long", "a recipe makes more than its space's size", lambda o: [*o, zeros(1)])
ops(
    "units_do_not_add_up",
    "an Encode's sizes are not its length",
    lambda o: [o[0], o[1], Encode(o[2].length, 0, 0, 0, 4), o[3]],
)
ops(
    "units_outside_of_table",
    "an Encode of more units than the table has",
    lambda o: [o[0], o[1], Encode(o[2].length, 0, 0, 0, 6), o[3]],
)
ops(
    "units_of_another_size",
    "a unit does not encode to the size in its table",
    lambda o: [*o[:3], Encode(o[3].length, 0, 1024, 1, 1)],
)
ops(
    "positions_outside_of_table",
    "Offsets of more units than the table has",
    lambda o: [Offsets(o[0].length, 0, 1, 1 << 16), *o[1:]],
)
ops(
    "header_without_room",
    "a unit's source does not fit its header",
    lambda o: [*o[:3], Encode(o[3].length, 0, 1 << 50, 1, 1)],
)


def table_of(entries: int, odd: int) -> Callable[[Draft], None]:
    """Cut the recipe of the size table."""

    def damage(draft: Draft) -> None:
        size = 2 * entries + odd
        draft.document["spaces"][2]["size"] = size
        chunk = draft.packs[PACK][3]
        chunk.stored = encode_chunk([Copy(size, 0, len(guest()))])
        chunk.plain = len(chunk.stored)

    damage.__name__ = "table_odd" if odd else "table_short"
    return damage


broken(8, "the size table has an entry less than an Encode needs")(table_of(4, 0))
broken(8, "the size table's bytes are no multiple of its width")(table_of(4, 1))


def rule(kind: str, key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda top: top["rules"][kind][0].__setitem__(key, value)


def image(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda top: top["releases"][0]["artifacts"][0]["forms"]["image"].__setitem__(key, value)


def twice(top: dict[str, Any]) -> None:
    artifacts = top["releases"][0]["artifacts"]
    artifacts.append(copy.deepcopy(artifacts[0]))


def no_framing_room(top: dict[str, Any]) -> None:
    top["rules"]["encodes"][0]["framing"]["fields"][0]["at"] = 13


document(8, "unknown_version", "version 2", put("version", 2))
document(8, "version_true", "version true, which some languages take for 1", put("version", True))
document(8, "unknown_requires", "requires a feature of the future", put("requires", ["time travel"]))
document(8, "another_format", "another format's name", put("format", "other"))
document(
    8, "file_dotdot", "a document's file leaves the bundle", put("releases", 0, "document", "file", "../x")
)
document(8, "file_nested_dotdot", "a pack's file leaves packs/", put("packs", 0, "file", "packs/../0.pack"))
document(8, "file_absolute", "a pack's file is absolute", put("packs", 0, "file", "/packs/0.pack"))
document(8, "name_slash", "an artifact's name has a slash", image("name", "a/b"))
document(8, "name_control", "an artifact's name has a control character", image("name", "a\x1b[2Jb"))
document(8, "name_c1_control", "an artifact's name has a control character of C1", image("name", "a\x9bb"))
document(8, "name_dotdot", "an artifact's name is ..", image("name", ".."))
document(8, "name_too_long", "an artifact's name has 256 bytes", image("name", "é" * 128))
document(8, "name_empty", "an artifact has no name", image("name", ""))
document(8, "two_of_one_name", "two artifacts have one name", twice)
document(8, "image_without_space", "an image form has no space", image("space", None))
document(8, "image_space_missing", "an image form names a space that does not exist", image("space", 9))
document(8, "image_of_another_size", "an image form and its space differ in size", image("size", 1))
document(8, "image_more_data", "an image form has more data than bytes", image("data", 1 << 20))
document(5, "image_digest_wrong", "an image form states another SHA-256", image("sha256", "0" * 64))
document(8, "digest_upper_case", "a digest in upper case", image("sha256", "A" * 64))
document(
    8, "mode_setuid", "a mode with the set-user-id bit", put("releases", 0, "artifacts", 0, "mode", 0o4755)
)
document(8, "number_negative", "a negative size", put("spaces", 0, "size", -1))
document(8, "number_too_large", "a size above 2^60", put("spaces", 0, "size", (1 << 60) + 1))
document(8, "number_is_true", "a number is true", put("spaces", 0, "pack", True))
document(8, "key_missing", "a space without a size", lambda top: top["spaces"][0].pop("size"))
document(8, "space_pack_missing", "a space of a pack that does not exist", put("spaces", 0, "pack", 1))
document(
    8, "space_wrong_size", "a pack's space has more bytes than its frames", put("spaces", 0, "size", 9999)
)
document(
    8, "how_cost_text", "a cost that is no number", put("releases", 0, "artifacts", 0, "how", "cost", "x")
)
document(
    8,
    "how_tried_text",
    "tried rungs that are a text",
    put("releases", 0, "artifacts", 0, "how", "tried", "x"),
)
document(
    8,
    "how_published_text",
    "what is shown of a published form is a text",
    put("releases", 0, "artifacts", 0, "how", "published", {"bytes": "x"}),
)
document(8, "inputs_not_lower", "a space stands on itself", put("spaces", 1, "inputs", [0, 1]))
document(8, "inputs_descend", "inputs do not ascend", put("spaces", 3, "inputs", [2, 1]))
document(8, "inputs_incomplete", "ops name a space not among the inputs", put("spaces", 3, "inputs", [1]))
document(
    8, "chunks_outside", "chunks behind the last frame", put("spaces", 3, "chunks", {"first": 9, "count": 1})
)
document(
    8, "chunks_are_data", "chunks that are data frames", put("spaces", 3, "chunks", {"first": 0, "count": 1})
)
document(
    8, "chunks_of_another", "chunks of another recipe", put("spaces", 3, "chunks", {"first": 1, "count": 1})
)
document(8, "index_not_at_end", "an index that ends before its file", put("packs", 0, "index", "offset", 1))
document(8, "table_width", "a size table of 3-byte integers", rule("tables", "width", 3))
document(8, "table_space_missing", "a size table in no space", rule("tables", "space", 9))
document(8, "table_missing", "a rule names a size table that does not exist", rule("offsets", "table", 1))
document(8, "unit_of_nothing", "units of no bytes", rule("encodes", "unit", 0))
document(8, "unit_above_limit", "units of 8 MiB and a byte", rule("encodes", "unit", (1 << 23) + 1))
document(
    8,
    "header_not_hex",
    "a header with a space between digits",
    put("rules", "encodes", 0, "framing", "header", "4752 414e"),
)
document(8, "field_outside", "a field that leaves its header", no_framing_room)
document(8, "align_of_nothing", "an alignment of 0", put("rules", "encodes", 0, "framing", "align", 0))
document(8, "codec_unknown", "a codec of the future", rule("encodes", "codec", "lzfuture"))
document(
    8,
    "parameter_unknown",
    "a parameter of the future",
    lambda top: [
        each["params"].__setitem__("strategy", 1)
        for each in (top["rules"]["encodes"][0], top["known_answers"][0])
    ],
)
document(8, "no_known_answer", "an encoder without a known answer", put("known_answers", []))
document(
    10,
    "known_answer_wrong",
    "a known answer that no library here gives",
    put("known_answers", 0, "sha256", "0" * 64),
)
document(
    8,
    "known_answer_outside",
    "a known answer about bytes outside of a space",
    put("known_answers", 0, "plain", "offset", 1 << 30),
)
document(
    8, "known_answer_empty", "a known answer about no bytes", put("known_answers", 0, "plain", "length", 0)
)


def chain(name: str, why: str, key: str, value: Any) -> None:
    """Enter a change of where chaining values lie."""
    change = put("releases", 0, "artifacts", 0, "forms", "image", "chain", key, value)
    register.document(8, f"chain_{name}", why, change, chained)


def plain(name: str, why: str, value: Any) -> None:
    """Enter another `plain` of the pack."""
    register.document(8, f"plain_{name}", why, put("packs", 0, "plain", value), at_hand)


plain("odd", "digests of plain bytes whose last digit is missing", "0" * 127)
plain("half", "half a digest of plain bytes", "0" * 48)
plain("not_hex", "a digest of plain bytes that is not hexadecimal", "0" * 31 + "g")
plain("upper_case", "a digest of plain bytes in capitals", "0" * 31 + "A")
plain("line_feed", "digests of plain bytes with a line feed behind them", "0" * 32 + "\n")
plain("empty", "no digest of plain bytes", "")
plain("list", "digests of plain bytes in a list", ["0" * 32])

chain("of_nothing", "no chaining values", "count", 0)
chain("of_129", "129 chaining values", "count", 129)
chain("outside", "chaining values that end a byte behind their space", "offset", len(FOXES) + 13)
chain("beyond", "chaining values from an offset of 2^60", "offset", 1 << 60)
chain("in_a_recipe", "chaining values in the space of a recipe", "space", 1)
chain("space_missing", "chaining values in a space that does not exist", "space", 9)
chain("offset_text", "chaining values from a text", "offset", "0")
chain("count_true", "a count that is true", "count", True)
chain("offset_missing", "chaining values from nowhere", "offset", None)


def stacked(top: dict[str, Any]) -> None:
    for _ in range(16):
        top["spaces"].append({**top["spaces"][-1], "inputs": [len(top["spaces"]) - 1]})


document(8, "spaces_too_deep", "spaces that stand 19 deep", stacked)

text("json_duplicate_key", "a key stands twice", lambda data: b'{"format":"rehydrator-bundle",' + data[1:])
text("json_white_space", "white space between values", lambda data: data.replace(b",", b", ", 1))
text("json_no_line_feed", "no line feed at the end", lambda data: data[:-1])
text("json_bytes_behind", "bytes behind the line feed", lambda data: data + b"{}")
text("json_keys_not_sorted", "keys not sorted", lambda data: b'{"zz":1,' + data[1:])
text("json_escape", "an escape that is not needed", lambda data: data.replace(b'"disk"', b'"\\u0064isk"'))
text("json_byte_order_mark", "a byte order mark", lambda data: b"\xef\xbb\xbf" + data)
text("json_not_utf8", "bytes that are not UTF-8", lambda data: data.replace(b'"disk"', b'"dis\xff"'))
text("json_float", "a version of 1.0", lambda data: data.replace(b'"version":1', b'"version":1.0'))
text("json_exponent", "a version of 1e0", lambda data: data.replace(b'"version":1', b'"version":1e0'))
text("json_minus_zero", "an integer of -0", lambda data: data.replace(b'{"format"', b'{"a":-0,"format"'))
text("json_nan", "NaN", lambda data: data.replace(b'"version":1', b'"version":NaN'))
text(
    "json_huge_number",
    "an integer of 5,000 digits",
    lambda data: data.replace(b'"mode":420', b'"mode":' + b"9" * 5000),
)
text("json_long_number", "an integer of 21 digits", lambda data: b'{"a":' + b"1" * 21 + b"," + data[1:])
text("json_surrogate", "an unpaired surrogate", lambda data: data.replace(b'"disk"', b'"dis\\ud800"'))
text(
    "json_deep_nesting",
    "lists 5,000 deep",
    lambda data: b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"," + data[1:],
)
text("json_depth_33", "lists to depth 33", lambda data: b'{"a":' + b"[" * 32 + b"]" * 32 + b"," + data[1:])
text("json_not_an_object", "a list", lambda data: b"[" + data[:-1] + b"]\n")
text("json_cut_short", "half of bundle.json", lambda data: data[: len(data) // 2])
text("json_empty", "an empty bundle.json", instead(b""))


@broken(8, "a Decode whose stream has bytes behind it", decodes)
def decode_bytes_behind(draft: Draft) -> None:
    change_ops(draft, lambda o: [replace(o[0], stored=o[0].stored + 1), *o[1:]])


@broken(8, "a Decode whose stream is cut short", decodes)
def decode_cut_short(draft: Draft) -> None:
    change_ops(draft, lambda o: [replace(o[0], stored=o[0].stored - 1), *o[1:]])


def unsized() -> Draft:
    block = (len(FOXES) << 3 | 1).to_bytes(3, "little") + FOXES
    return decodes(b"\x28\xb5\x2f\xfd\0" + bytes([7 << 3]) + block)


@broken(8, "a Decode of a zstd frame that states no size", unsized)
def decode_zstd_states_nothing(_: Draft) -> None:
    pass


@broken(8, "a Decode with a prefix that is not the one it was made with", decodes)
def decode_prefix_missing(draft: Draft) -> None:
    del draft.document["rules"]["decodes"][2]["prefix"]


def main(directory: Path) -> None:
    """Write all vectors below `directory`."""
    for name in ("good", "broken"):
        shutil.rmtree(directory / name, ignore_errors=True)
    for make in GOOD:
        write_tree(directory / "good" / make.__name__.replace("_", "-"), make().tree())
    stated = {}
    for name, (code, why, made) in sorted(BROKEN.items()):
        write_tree(directory / "broken" / name, made())
        stated[name] = {"exit": code, "why": why}
    (directory / "broken.json").write_text(json.dumps(stated, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent).resolve())
