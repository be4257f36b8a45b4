"""Makes qcow2 files that qemu-img does not make: any block map, versions 2 and 3, all cluster
sizes, compressed clusters at odd bytes by any encoder, allocated zeros, leaked clusters.
"""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from backports import zstd

from rehydrator.formats import c_qcow2 as c

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Collection


def deflate(plain: bytes, level: int = -1, memlevel: int = 9) -> bytes:
    """As qemu does: raw deflate, a window of 4 KiB, memLevel 9."""
    encoder = zlib.compressobj(level, zlib.DEFLATED, -12, memlevel)
    return encoder.compress(plain) + encoder.flush()


def zstandard(plain: bytes, level: int = 3) -> bytes:
    """One zstd frame."""
    return zstd.compress(plain, level)


@dataclass(frozen=True)
class Recipe:
    """How an image is to be made. Clusters are named by their number in the guest.

    `shuffle` orders tables and clusters at random; otherwise they lie as qemu-img convert
    lays them. `odd` is how many bytes are left free before each row of compressed clusters.
    """

    version: int = 3
    cluster_bits: int = 16
    refcount_order: int = 4
    compressed: Collection[int] = ()
    encode: Callable[[bytes], bytes] = deflate
    compression_type: int = c.DEFLATE
    zero_plain: Collection[int] = ()
    zero_allocated: Collection[int] = ()
    preallocated: bool = False
    leaked: int = 0
    shuffle: random.Random | None = None
    odd: int = 0


class Item(NamedTuple):
    """Something with a place of its own: "l1", "l2", "data", "zero", "packed" or "leaked"."""

    kind: str
    number: int
    content: bytes


@dataclass
class Layout:
    """Where things lie: places by (kind, number), and the whole file."""

    file: bytearray = field(default_factory=bytearray)
    places: dict[tuple[str, int], int] = field(default_factory=dict)
    sizes: dict[tuple[str, int], int] = field(default_factory=dict)


def image(guest: bytes, recipe: Recipe | None = None) -> bytes:
    """An image of the disk `guest`, with consistent refcounts."""
    return bytes(layout(guest, recipe).file)


def layout(guest: bytes, recipe: Recipe | None = None) -> Layout:
    """The same, with the places of everything, for tests that damage it."""
    recipe = recipe or Recipe()
    made = _place(_items(guest, recipe), recipe)
    _fill_tables(made, len(guest), recipe)
    _add_refcounts(made, len(guest), recipe)
    return made


def patched(data: bytes, at: int, new: bytes) -> bytes:
    """The bytes with `new` written at `at`."""
    return data[:at] + new + data[at + len(new) :]


def _items(guest: bytes, recipe: Recipe) -> list[Item]:
    cluster = 1 << recipe.cluster_bits
    covered = cluster * cluster // 8  # guest bytes of one L2 table
    items = [Item("leaked", number, b"\xa5" * cluster) for number in range(recipe.leaked)]
    tables: set[int] = set()
    for number in range(-(-len(guest) // cluster)):
        block = guest[number * cluster : (number + 1) * cluster].ljust(cluster, b"\0")
        item = _item(number, block, recipe)
        if (item or number in recipe.zero_plain) and number * cluster // covered not in tables:
            tables.add(number * cluster // covered)
            items.append(Item("l2", number * cluster // covered, bytes(cluster)))
        items += [item] if item else []
    if recipe.shuffle:
        recipe.shuffle.shuffle(items)
    return [Item("l1", 0, bytes(8 * -(-len(guest) // covered))), *items]


def _item(number: int, block: bytes, recipe: Recipe) -> Item | None:
    if number in recipe.zero_plain:
        return None
    if number in recipe.zero_allocated:
        return Item("zero", number, b"stale".ljust(len(block), b"\xee"))
    stored = recipe.encode(block) if number in recipe.compressed else block
    if len(stored) < len(block):  # what does not become smaller is not compressed, as with qemu
        return Item("packed", number, stored)
    return Item("data", number, block) if any(block) or recipe.preallocated else None


def _place(items: list[Item], recipe: Recipe) -> Layout:
    cluster = 1 << recipe.cluster_bits
    made = Layout(bytearray(cluster))
    shared = recipe.refcount_order >= 4  # narrower refcounts cannot count the units of a cluster
    before = ""
    for item in items:
        if item.kind != "packed" or before != "packed" or not shared:
            made.file += bytes(-len(made.file) % cluster)
            made.file += bytes(recipe.odd if item.kind == "packed" else 0)
        made.places[item.kind, item.number] = len(made.file)
        made.sizes[item.kind, item.number] = len(item.content)
        made.file += item.content
        before = item.kind
    made.file += bytes(-len(made.file) % cluster)
    return made


def _fill_tables(made: Layout, size: int, recipe: Recipe) -> None:
    entries = (1 << recipe.cluster_bits) // 8
    for (kind, number), place in made.places.items():
        if kind == "l2":
            _put(made, made.places["l1", 0] + 8 * number, c.COPIED | place)
        elif kind in {"data", "zero", "packed"}:
            table = made.places["l2", number // entries]
            _put(made, table + 8 * (number % entries), _entry(kind, place, made.sizes[kind, number], recipe))
    for number in recipe.zero_plain:
        _put(made, made.places["l2", number // entries] + 8 * (number % entries), c.ALL_ZEROS)


def _entry(kind: str, place: int, size: int, recipe: Recipe) -> int:
    if kind != "packed":
        return c.COPIED | place | (c.ALL_ZEROS if kind == "zero" else 0)
    sectors = (place + size - 1) // c.SECTOR - place // c.SECTOR
    return c.COMPRESSED | place | sectors << c.compressed_offset_bits(recipe.cluster_bits)


def _put(made: Layout, at: int, value: int) -> None:
    made.file[at : at + 8] = value.to_bytes(8, "big")


def _add_refcounts(made: Layout, size: int, recipe: Recipe) -> None:
    """Refcount blocks and their table, behind everything else; then the header."""
    cluster, bits = 1 << recipe.cluster_bits, 1 << recipe.refcount_order
    per_block = cluster * 8 // bits
    used = len(made.file) // cluster
    blocks = tables = 1
    while (used + blocks + tables) > blocks * per_block or blocks > tables * cluster // 8:
        blocks = -(-(used + blocks + tables) // per_block)
        tables = -(-blocks // (cluster // 8))
    counts = _counts(made, cluster) + Counter(range(used, used + blocks + tables))
    first = len(made.file)
    for number in range(blocks):
        made.places["block", number] = len(made.file)
        made.file += _block([counts[k] for k in range(number * per_block, (number + 1) * per_block)], bits)
    made.places["reftable", 0] = len(made.file)
    entries = [first + number * cluster for number in range(blocks)]
    made.file += b"".join(entry.to_bytes(8, "big") for entry in entries).ljust(tables * cluster, b"\0")
    head = header(size, recipe, made.places["l1", 0], made.sizes["l1", 0] // 8)
    head = head._replace(refcount_table_offset=made.places["reftable", 0], refcount_table_clusters=tables)
    raw = pack_header(head, recipe)
    made.file[: len(raw)] = raw


def _counts(made: Layout, cluster: int) -> Counter[int]:
    counts: Counter[int] = Counter({0: 1})
    for key, place in made.places.items():
        last = place + max(made.sizes[key], 1) - 1
        counts.update(range(place // cluster, last // cluster + 1))
    return counts


def _block(counts: list[int], bits: int) -> bytes:
    if bits >= 8:
        return b"".join(count.to_bytes(bits // 8, "big") for count in counts)
    # "Refcount block entry": "the least significant bit first" in each byte.
    per_byte = 8 // bits
    groups = (counts[k : k + per_byte] for k in range(0, len(counts), per_byte))
    return bytes(sum(count << (bits * k) for k, count in enumerate(group)) for group in groups)


def header(size: int, recipe: Recipe, l1_offset: int, l1_size: int) -> c.Header:
    """Bytes 0 to 71, without the refcount table."""
    fields = (c.MAGIC, recipe.version, 0, 0, recipe.cluster_bits, size, 0, l1_size, l1_offset, 0, 0, 0, 0)
    return c.Header._make(fields)


def pack_header(head: c.Header, recipe: Recipe) -> bytes:
    """The header's bytes, with what version 3 adds."""
    if recipe.version == 2:
        return c.HEADER.pack(*head)
    bit = c.COMPRESSION_TYPE_BIT if recipe.compression_type else 0
    more = c.HeaderV3(incompatible_features=bit, refcount_order=recipe.refcount_order, header_length=112)
    return c.HEADER.pack(*head) + c.HEADER_V3.pack(*more) + bytes([recipe.compression_type]) + bytes(7)
