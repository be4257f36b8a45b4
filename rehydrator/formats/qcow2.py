"""qcow2, versions 2 and 3: guest clusters behind two levels of tables, some compressed.

    header | extensions | refcount table | refcount blocks | L1 | (L2 | clusters)*

in any order behind the header; whatever no table refers to is left as it is. The tables of
an image that was written in order are arithmetic. Compressed clusters lie at any byte, and
their L2 entries follow from where they begin and how long they are.

Terms and checks follow QEMU's docs/interop/qcow2.txt. What qemu reads beyond the end of the
file is zero (block/io.c), so that mapped clusters are cut to the file.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rehydrator.codecs import codec
from rehydrator.core.errors import HostileInput, Unexplained
from rehydrator.core.ops import Copy, EncodeRule, OffsetRule, Rules, Term
from rehydrator.formats import c_qcow2 as c
from rehydrator.formats.explanation import (
    GUEST,
    MAX_EXTENTS,
    Explanation,
    Extent,
    GuestReader,
    OpsBuilder,
    Packed,
    refuse_short,
    require,
)
from rehydrator.formats.runs import add_runs, present
from rehydrator.formats.units import MAX_UNITS, UnitRows, reproduce

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rehydrator.codecs import Params
    from rehydrator.core.reader import Reader
    from rehydrator.formats.explanation import Each

Integers = np.ndarray[Any, np.dtype[np.int64]]
Unsigned = np.ndarray[Any, np.dtype[np.uint64]]

# Entries of all L2 tables together: 128 MiB, or 1 TiB of mapped clusters of 64 KiB.
_MAX_L2_ENTRIES = 16 << 20
# Bytes of all refcount blocks together: 4 TiB of clusters of 64 KiB with 16-bit refcounts.
_MAX_REFCOUNTS = 128 << 20
_BATCH = 64  # compressed clusters in one piece of work


class _Compression(NamedTuple):
    """How compressed clusters are read: codec and parameters, and the family of encoders."""

    name: str
    codec: str
    params: Params
    family: str


# "Compressed Clusters": deflate without zlib header in a 4 KiB window, or one zstd frame.
_COMPRESSIONS = {
    c.DEFLATE: _Compression("zlib", "zlib", (("level", 6), ("memlevel", 9), ("wbits", -12)), "deflate12"),
    c.ZSTD: _Compression("zstd", "zstd", (("level", 3),), "zstd"),
}


class _Image(NamedTuple):
    """What the header says, checked. Sizes and offsets in bytes."""

    version: int
    size: int
    cluster_bits: int
    l1_offset: int
    l1_size: int
    reftable_offset: int
    reftable_clusters: int
    refcount_order: int
    compression: _Compression

    @property
    def cluster(self) -> int:
        return 1 << self.cluster_bits

    @property
    def l2_entries(self) -> int:
        return self.cluster // c.ENTRY

    @property
    def l1_clusters(self) -> int:
        return -(-self.l1_size // self.l2_entries)

    @property
    def guest_clusters(self) -> int:
        return -(-self.size // self.cluster)


class _Tables(NamedTuple):
    """L2 tables: index in the L1 table, place in the file, and a row of entries for each."""

    indexes: Integers
    places: Integers
    entries: Unsigned


class _Runs(NamedTuple):
    """Clusters that follow each other in the guest and in the file; all in bytes."""

    guests: Integers
    places: Integers
    lengths: Integers


class _Mapped(NamedTuple):
    """What the L2 tables refer to: runs of data, runs that are allocated and read as zeros,
    and compressed clusters by guest and file offset, with the bytes each may take."""

    data: _Runs
    zeros: _Runs
    compressed: _Runs


def recognise(file: Reader) -> bool:
    """The magic of qcow, whatever its version."""
    return file.size >= len(c.MAGIC) and file.pread(0, len(c.MAGIC)) == c.MAGIC


def explain(file: Reader, each: Each = map) -> Explanation:
    """An image without relatives: no backing file, data file, snapshots or encryption.

    Raises:
        Unexplained: any of those, a feature that is not known, or a malformed image.
    """
    image = _read_header(file)
    l1 = _read_table(file, image.l1_offset, image.l1_size, "the L1 table")
    tables = _read_l2_tables(file, image, l1)
    mapped = _map_clusters(file, image, tables)
    units = _find_units(file, image, mapped.compressed, each)
    ops = OpsBuilder(file.size)
    for offset, clusters in ((0, 1), (image.l1_offset, image.l1_clusters)):
        add_runs(ops, offset, _read_padded(file, offset, clusters * image.cluster), "big")
    blocks = _add_refcounts(ops, file, image)
    _refuse_overlaps(image, tables, mapped, units, blocks)
    extents = _cut_to_disk(file, image, mapped.data)
    for extent in extents:
        ops.add(extent.file, Copy(extent.length, GUEST, extent.guest))
    rules, sizes = _add_units(ops, file, image, units, tables, each)
    guest = GuestReader(file, image.size, [*present(file, extents), *units], _decoder(image))
    return Explanation("qcow2", guest, ops.finish(), rules, sizes, _facts(image, len(units)))


def _facts(image: _Image, compressed: int) -> dict[str, str]:
    facts = {"version": str(image.version), "cluster size": str(image.cluster)}
    if compressed:
        facts["compression"] = image.compression.name
        facts["compressed clusters"] = str(compressed)
    return facts


# The header


def _read_header(file: Reader) -> _Image:
    head = c.Header._make(c.HEADER.unpack(refuse_short(file, 0, c.HEADER.size, "the header")))
    require(head.magic == c.MAGIC, "no qcow2 magic")
    require(head.version in {2, 3}, f"version {head.version}")
    require(not head.backing_file_offset, "a backing file, which is another file")
    require(not head.crypt_method, f"encrypted, method {head.crypt_method}")
    require(not head.nb_snapshots, f"{head.nb_snapshots} internal snapshots")
    bits = head.cluster_bits
    require(c.MIN_CLUSTER_BITS <= bits <= c.MAX_CLUSTER_BITS, f"clusters of 2^{bits} bytes")
    more = _read_features(file, head)
    image = _Image(
        version=head.version,
        size=head.size,
        cluster_bits=bits,
        l1_offset=head.l1_table_offset,
        l1_size=head.l1_size,
        reftable_offset=head.refcount_table_offset,
        reftable_clusters=head.refcount_table_clusters,
        refcount_order=more.refcount_order,
        compression=_read_compression(file, more),
    )
    _check_sizes(image)
    return image


def _read_features(file: Reader, head: c.Header) -> c.HeaderV3:
    if head.version == 2:
        return c.HeaderV3()
    data = refuse_short(file, c.HEADER.size, c.HEADER_V3.size, "the header")
    more = c.HeaderV3._make(c.HEADER_V3.unpack(data))
    for bit, name in c.FEATURE_NAMES.items():
        require(not more.incompatible_features & bit, name)
    unknown = more.incompatible_features & ~c.COMPRESSION_TYPE_BIT
    require(not unknown, f"unknown incompatible features {unknown:#x}")
    length = more.header_length
    require(c.COMPRESSION_TYPE <= length <= 1 << head.cluster_bits, f"a header of {length} bytes")
    require(more.refcount_order <= c.MAX_REFCOUNT_ORDER, f"refcounts of 2^{more.refcount_order} bits")
    return more


def _read_compression(file: Reader, more: c.HeaderV3) -> _Compression:
    kind = c.DEFLATE
    if more.header_length > c.COMPRESSION_TYPE:
        kind = refuse_short(file, c.COMPRESSION_TYPE, 1, "the compression type")[0]
    marked = bool(more.incompatible_features & c.COMPRESSION_TYPE_BIT)
    require(kind in _COMPRESSIONS, f"compression type {kind}")
    require(marked == (kind != c.DEFLATE), "the compression type contradicts its feature bit")
    return _COMPRESSIONS[kind]


def _check_sizes(image: _Image) -> None:
    require(image.size > 0, "a disk of no bytes")
    require(image.l1_size * c.ENTRY <= c.MAX_L1_SIZE, f"an L1 table of {image.l1_size} entries")
    needed = -(-image.guest_clusters // image.l2_entries)
    require(image.l1_size >= needed, f"{image.size} bytes do not fit {image.l1_size} L1 entries")
    table = image.reftable_clusters << image.cluster_bits
    require(0 < table <= c.MAX_REFTABLE_SIZE, f"a refcount table of {table} bytes")
    for offset in (image.l1_offset, image.reftable_offset):
        require(offset % image.cluster == 0, f"a table at {offset}, between two clusters")


# Tables


def _read_table(file: Reader, offset: int, count: int, what: str) -> Unsigned:
    data = refuse_short(file, offset, count * c.ENTRY, what)
    return np.frombuffer(data, ">u8").astype(np.uint64)


def _read_padded(file: Reader, offset: int, length: int) -> Unsigned:
    """What stands at `offset`, with the padding behind it, as far as the file goes."""
    length = min(length, file.size - offset)
    return _read_table(file, offset, length // c.ENTRY, "a table")


def _places(image: _Image, entries: Unsigned, mask: int, what: str) -> Integers:
    """The file offsets in table entries, cluster by cluster."""
    places = entries & np.uint64(mask)
    aligned = not (places & np.uint64(image.cluster - 1)).any()
    require(aligned and not (places >> np.uint64(63)).any(), f"{what} between two clusters")
    return np.asarray(places, np.int64)


def _read_l2_tables(file: Reader, image: _Image, l1: Unsigned) -> _Tables:
    require(not (l1 & np.uint64(c.L1_RESERVED)).any(), "reserved bits in the L1 table")
    places = _places(image, l1, c.OFFSET_MASK, "an L2 table")
    indexes = np.flatnonzero(places).astype(np.int64)
    places = places[indexes]
    require(len(np.unique(places)) == len(places), "an L2 table that stands for two parts of the disk")
    count = len(places) * image.l2_entries
    require(count <= _MAX_L2_ENTRIES, f"more than {_MAX_L2_ENTRIES} L2 entries")
    entries = np.empty((len(places), image.l2_entries), np.uint64)
    for row, place in enumerate(places.tolist()):
        entries[row] = _read_table(file, place, image.l2_entries, "an L2 table")
    return _Tables(indexes, places, entries)


def _add_refcounts(ops: OpsBuilder, file: Reader, image: _Image) -> Integers:
    """Ops for the refcount table and its blocks; returns where the blocks lie."""
    count = image.reftable_clusters * image.l2_entries
    table = _read_table(file, image.reftable_offset, count, "the refcount table")
    require(not (table & np.uint64(c.REFTABLE_RESERVED)).any(), "reserved bits in the refcount table")
    places = _places(image, table, c.REFTABLE_OFFSET_MASK, "a refcount block")
    places = np.asarray(places[places != 0], np.int64)
    require(len(np.unique(places)) == len(places), "a refcount block that stands for two parts of the file")
    total = len(places) * image.cluster
    require(total <= _MAX_REFCOUNTS, f"refcount blocks of {total} bytes")
    add_runs(ops, image.reftable_offset, table, "big")
    width = max(1, (1 << image.refcount_order) // 8)
    for place in places.tolist():
        block = refuse_short(file, place, image.cluster, "a refcount block")
        add_runs(ops, place, np.frombuffer(block, f">u{width}").astype(f"u{width}"), "big")
    return places


# Clusters


def _map_clusters(file: Reader, image: _Image, tables: _Tables) -> _Mapped:
    flat = tables.entries.reshape(-1)
    used = np.flatnonzero(flat)
    entries = flat[used]
    per_table = image.l2_entries
    numbers = tables.indexes[used // per_table] * per_table + used % per_table
    inside = numbers < image.guest_clusters
    numbers, entries = numbers[inside], entries[inside]
    packed = (entries & np.uint64(c.COMPRESSED)) != 0
    data, zeros = _standard_runs(image, numbers[~packed], entries[~packed])
    compressed = _descriptors(file, image, numbers[packed], entries[packed])
    require(len(data.guests) + len(zeros.guests) <= MAX_EXTENTS, f"more than {MAX_EXTENTS} fragments")
    return _Mapped(data, zeros, compressed)


def _standard_runs(image: _Image, numbers: Integers, entries: Unsigned) -> tuple[_Runs, _Runs]:
    """Runs of data and of allocated clusters with the zero flag. ("Standard Cluster Descriptor")"""
    reserved = c.L2_RESERVED | (c.ALL_ZEROS if image.version == 2 else 0)
    require(not (entries & np.uint64(reserved)).any(), "reserved bits in an L2 table")
    places = _places(image, entries, c.OFFSET_MASK, "a cluster")
    zero = (entries & np.uint64(c.ALL_ZEROS)) != 0
    data = (places != 0) & ~zero
    empty = (places != 0) & zero
    runs = _runs(numbers[data], places[data], image.cluster)
    return runs, _runs(numbers[empty], places[empty], image.cluster)


def _runs(numbers: Integers, places: Integers, cluster: int) -> _Runs:
    """Join clusters that follow each other both in the guest and in the file."""
    apart = (np.diff(numbers) != 1) | (np.diff(places) != cluster)
    firsts = np.flatnonzero(np.append(True, apart))[: len(numbers)]
    lengths = np.diff(np.append(firsts, len(numbers))) * cluster
    return _Runs(numbers[firsts] * cluster, places[firsts], lengths)


def _cut_to_disk(file: Reader, image: _Image, runs: _Runs) -> list[Extent]:
    """Runs as extents, as far as the disk goes and the file goes."""
    room = np.minimum(image.size - runs.guests, file.size - runs.places)
    lengths = np.minimum(runs.lengths, room)
    kept = lengths > 0
    rows = zip(runs.guests[kept].tolist(), lengths[kept].tolist(), runs.places[kept].tolist(), strict=True)
    return [Extent(guest, length, place) for guest, length, place in rows]


def _refuse_overlaps(
    image: _Image, tables: _Tables, mapped: _Mapped, units: Sequence[Packed], blocks: Integers
) -> None:
    """Unexplained where two structures share a byte: nothing is known of who wrote last."""
    header = (0, image.cluster)
    l1 = (image.l1_offset, image.l1_clusters * image.cluster)
    reftable = (image.reftable_offset, image.reftable_clusters * image.cluster)
    single = np.array([header, l1, reftable, *((unit.file, unit.stored) for unit in units)], np.int64)
    whole = np.concatenate((tables.places, blocks))
    starts = np.concatenate((single[:, 0], whole, mapped.data.places, mapped.zeros.places))
    lengths = (single[:, 1], np.full(len(whole), image.cluster), mapped.data.lengths, mapped.zeros.lengths)
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], (starts + np.concatenate(lengths))[order]
    wrong = np.flatnonzero(starts[1:] < ends[:-1])
    if len(wrong):
        raise Unexplained(f"two structures claim the byte at {starts[wrong[0] + 1]}")


# Compressed clusters


def _descriptors(file: Reader, image: _Image, numbers: Integers, entries: Unsigned) -> _Runs:
    """Compressed clusters in file order; the length is what a stream may take at most: up to
    the end of its last sector, of the file, or to where the next stream begins."""
    require(not (entries & np.uint64(c.COPIED)).any(), "a compressed cluster that is marked copied")
    require(len(entries) <= MAX_UNITS, f"more than {MAX_UNITS} compressed clusters")
    bits = c.compressed_offset_bits(image.cluster_bits)
    starts = (entries & np.uint64((1 << bits) - 1)).astype(np.int64)
    sectors = ((entries & np.uint64(c.COMPRESSED - 1)) >> np.uint64(bits)).astype(np.int64) + 1
    ends = np.minimum((starts // c.SECTOR + sectors) * c.SECTOR, file.size)
    order = np.argsort(starts, kind="stable")
    guests, starts, ends = numbers[order] * image.cluster, starts[order], ends[order]
    ends = np.minimum(ends, np.append(starts[1:], file.size))
    require(bool((starts < ends).all()), "a compressed cluster of no bytes, or outside of the file")
    return _Runs(guests, starts, ends - starts)


def _find_units(file: Reader, image: _Image, compressed: _Runs, each: Each) -> list[Packed]:
    """Compressed clusters with their true lengths, which only decoding tells."""
    room = np.minimum(image.size - compressed.guests, image.cluster)
    rows = zip(*(part.tolist() for part in (compressed.guests, room, *compressed[1:])), strict=True)
    units = [Packed(*row) for row in rows]
    unpack, params = codec(image.compression.codec).unpack, dict(image.compression.params)

    def one(unit: Packed) -> Packed:
        try:
            plain, stored = unpack(file.pread(unit.file, unit.stored), params, image.cluster)
        except HostileInput as error:
            raise Unexplained(f"the compressed cluster at {unit.file}: {error}") from None
        require(len(plain) == image.cluster, f"a compressed cluster of {len(plain)} bytes at {unit.file}")
        return Packed(unit.guest, unit.length, unit.file, stored)

    batches = [units[k : k + _BATCH] for k in range(0, len(units), _BATCH)]
    return [unit for batch in each(lambda batch: [one(unit) for unit in batch], batches) for unit in batch]


def _decoder(image: _Image) -> Callable[[Packed, bytes], bytes]:
    decode, params = codec(image.compression.codec).decode, dict(image.compression.params)
    return lambda _, packed: decode(packed, params, image.cluster)


def _add_units(
    ops: OpsBuilder, file: Reader, image: _Image, units: Sequence[Packed], tables: _Tables, each: Each
) -> tuple[Rules, bytes]:
    """Ops for the L2 tables and for the compressed clusters that an encoder gives back."""
    if not units:
        for place, entries in zip(tables.places.tolist(), tables.entries, strict=True):
            add_runs(ops, place, entries, "big")
        return Rules(), b""
    made = reproduce(
        image.compression.family, units, _plain(file, image), lambda u: file.pread(u.file, u.stored), each
    )
    columns = ((u.guest for u in units), (u.file for u in units), (u.stored for u in units))
    rows = UnitRows(*columns, image.cluster, 1)
    for at, op in rows.encodes(made.chosen):
        ops.add(at, op)
    rule = _offset_rule(image)
    for index, place, entries in zip(*(part.tolist() for part in tables[:2]), tables.entries, strict=True):
        _add_l2_table(ops, place, entries, rows, rule, index * image.l2_entries * image.cluster)
    encodes = (EncodeRule(name, params, GUEST, image.cluster, 0) for name, params in made.encoders)
    return Rules((rows.table,), (rule,), tuple(encodes)), rows.table_bytes


def _plain(file: Reader, image: _Image) -> Callable[[Packed], bytes]:
    """What the encoder was fed; behind the disk's end, qemu continues with zeros."""
    decode = _decoder(image)

    def plain(unit: Packed) -> bytes:
        whole = decode(unit, file.pread(unit.file, unit.stored))
        return whole[: unit.length].ljust(image.cluster, b"\0")

    return plain


def _offset_rule(image: _Image) -> OffsetRule:
    """Bit 62, the offset, and how many sectors the stream touches beyond its first.
    ("Compressed Clusters Descriptor")"""
    bits = c.compressed_offset_bits(image.cluster_bits)
    sector = c.SECTOR.bit_length() - 1
    terms = (Term("start", 0, 0), Term("last", sector, bits), Term("start", sector, bits, negative=True))
    return OffsetRule(0, c.ENTRY, "big", c.COMPRESSED, terms)


def _add_l2_table(
    ops: OpsBuilder, place: int, entries: Unsigned, rows: UnitRows, rule: OffsetRule, guest: int
) -> None:
    """Entries of compressed clusters as positions, what lies between as arithmetic runs."""
    placed = list(rows.offsets(rule, 0, place, guest, entries.astype(">u8").tobytes()))
    for at, op in placed:
        ops.add(at, op)
    spans = [((at - place) // c.ENTRY, (at - place + op.length) // c.ENTRY) for at, op in placed]
    for (_, low), (high, _) in pairwise([(0, 0), *spans, (len(entries), len(entries))]):
        add_runs(ops, place + low * c.ENTRY, entries[low:high], "big")
