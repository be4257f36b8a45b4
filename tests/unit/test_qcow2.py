"""qcow2 files are explained, or declined with a reason."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from rehydrator.core.errors import Unexplained
from rehydrator.core.ops import Copy, Encode, Offsets
from rehydrator.core.reader import BytesReader
from rehydrator.formats import c_qcow2 as c
from rehydrator.formats import explain, qcow2
from rehydrator.formats.explanation import FILE, GUEST
from tests import qcow2_images as make
from tests.qcow2_images import Recipe, patched
from tests.suites.explained import check_explanation, unexplained_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rehydrator.formats.explanation import Explanation

DICE = random.Random(5)
WORDS = [DICE.randbytes(DICE.randrange(3, 12)) for _ in range(200)]
# Places in the header: "Header" of docs/interop/qcow2.txt.
VERSION, BACKING, CLUSTER_BITS, SIZE, CRYPT, L1_SIZE, L1_OFFSET = 4, 8, 20, 24, 32, 36, 40
REFTABLE_OFFSET, REFTABLE_CLUSTERS, SNAPSHOTS, INCOMPATIBLE, ORDER, LENGTH = 48, 56, 60, 72, 96, 100


@pytest.fixture(autouse=True)
def _same_dice() -> None:
    """A test has the same data whether others run before it or not: some of 512 bytes do not shrink."""
    DICE.seed(7)


def text(length: int) -> bytes:
    """Data that compresses, and that encoders compress differently."""
    return b"".join(DICE.choice(WORDS) for _ in range(length // 4))[:length].ljust(length, b"-")


def disk(clusters: int, bits: int, empty: int = 5) -> bytes:
    """A disk of which every `empty`-th cluster is a hole."""
    size = 1 << bits
    return b"".join(bytes(size) if (k + 1) % empty == 0 else text(size) for k in range(clusters))


def explained(guest: bytes, recipe: Recipe) -> tuple[Explanation, bytes]:
    """The explanation of an image, after the checks that all must pass, and the image."""
    data = make.image(guest, recipe)
    file = BytesReader(data)
    explanation = qcow2.explain(file)
    check_explanation(explanation, file, guest)
    return explanation, data


def refused(data: bytes) -> str:
    with pytest.raises(Unexplained) as caught:
        qcow2.explain(BytesReader(data))
    return str(caught.value)


def number(value: int, width: int = 8) -> bytes:
    return value.to_bytes(width, "big")


def guest_copies(explanation: Explanation) -> list[Copy]:
    return [op for op in explanation.ops if isinstance(op, Copy) and op.space == GUEST]


class SparseBytes(BytesReader):
    """Bytes that say where they are not zero, by pages of 4,096."""

    def data_spans(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self.size, 4096):
            if any(self._data[start : start + 4096]):
                yield start, min(4096, self.size - start)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("bits", [9, 12, 16])
def test_clusters_are_copied_from_the_guest(version: int, bits: int) -> None:
    """Neighbours are one op: 39 clusters with eight holes are eight copies."""
    guest = disk(40, bits)
    explanation, _ = explained(guest, Recipe(version=version, cluster_bits=bits))
    expected = 32 << bits
    assert sum(op.length for op in guest_copies(explanation)) == expected
    tables = -(-40 * 8 >> bits) or 1
    assert len(guest_copies(explanation)) <= 8 + tables


def test_clusters_of_two_mebibytes() -> None:
    """The largest cluster size."""
    guest = disk(4, 21, empty=3)
    explanation, _ = explained(guest, Recipe(cluster_bits=21))
    assert guest_copies(explanation) == [Copy(4 << 20, GUEST, 0), Copy(2 << 20, GUEST, 6 << 20)]


def test_tables_in_order_cost_less_than_a_page() -> None:
    """Header, L1, L2, refcounts of an image written in order are runs, but for some bytes."""
    explanation, data = explained(disk(200, 12, empty=1000), Recipe(cluster_bits=12))
    assert len(data) > 200 << 12
    assert unexplained_bytes(explanation) < 1024
    assert len(explanation.ops) < 30


@pytest.mark.parametrize("order", range(7))
def test_refcounts_of_any_width(order: int) -> None:
    """From 1 bit to 64; constant runs cost nothing."""
    explanation, _ = explained(disk(64, 12, empty=100), Recipe(cluster_bits=12, refcount_order=order))
    assert unexplained_bytes(explanation) < 1024


def test_the_last_cluster_is_cut_to_the_disk() -> None:
    """A disk of 10.5 clusters; the padding of the last one is not guest data."""
    guest = disk(10, 12) + text(2048)
    explanation, _ = explained(guest, Recipe(cluster_bits=12))
    assert guest_copies(explanation)[-1].length % 4096 == 2048


def test_zero_clusters_read_as_zeros() -> None:
    """The zero flag hides what the file holds, which stays the file's own."""
    guest = bytearray(disk(12, 12, empty=100))
    for cluster in (3, 4, 7):
        guest[cluster << 12 : (cluster + 1) << 12] = bytes(4096)
    recipe = Recipe(cluster_bits=12, zero_plain=[3], zero_allocated=[4, 7])
    explanation, data = explained(bytes(guest), recipe)
    kept = b"".join(
        data[op.offset : op.offset + op.length]
        for op in explanation.ops
        if isinstance(op, Copy) and op.space == FILE
    )
    assert kept.count(b"stale") == 2


def test_leaked_clusters_stay_the_files_own() -> None:
    """What no table refers to is no guest data."""
    explanation, _ = explained(disk(9, 12), Recipe(cluster_bits=12, leaked=3))
    assert unexplained_bytes(explanation) >= 3 * 4096


def test_a_file_that_ends_early_reads_as_zeros() -> None:
    """Clusters that are mapped beyond the end of the file, and one that the end cuts."""
    guest = text(16 << 12)
    made = make.layout(guest, Recipe(cluster_bits=12))
    # Tables first, then data: cut away the last clusters by moving them beyond the end.
    data = bytes(made.file)
    entry = made.places["l2", 0] + 8 * 15
    data = patched(data, entry, number(c.COPIED | len(data) + (1 << 30)))
    half = len(data) & ~4095
    data = patched(data, entry - 8, number(c.COPIED | half)) + b"half" * 512
    explanation = qcow2.explain(BytesReader(data))
    expected = guest[: 14 << 12] + b"half" * 512 + bytes(2048 + 4096)
    check_explanation(explanation, BytesReader(data), expected)


def test_preallocated_clusters_that_are_holes_cost_nothing() -> None:
    """Mapped clusters that the file does not hold are a run of ops and no guest data."""
    guest = bytes(400 << 12) + text(4096) + bytes(99 << 12)
    data = make.image(guest, Recipe(cluster_bits=12, preallocated=True))
    file = SparseBytes(data)
    explanation = qcow2.explain(file)
    check_explanation(explanation, file, guest)
    assert list(explanation.guest.data_spans()) == [(400 << 12, 4096)]
    assert len(explanation.ops) < 30
    assert unexplained_bytes(explanation) < 1024


@pytest.mark.parametrize("odd", [0, 7])
@pytest.mark.parametrize("bits", [9, 12, 16])
def test_compressed_clusters_are_encoded_again(bits: int, odd: int) -> None:
    """One row of clusters is one Encode op and one Offsets op, at whatever byte it begins."""
    guest = disk(24, bits, empty=1000)
    recipe = Recipe(cluster_bits=bits, compressed=range(24), odd=odd)
    explanation, _ = explained(guest, recipe)
    encodes = [op for op in explanation.ops if isinstance(op, Encode)]
    assert [(op.offset, op.count) for op in encodes] == [(0, 24)]
    assert [op.length for op in explanation.ops if isinstance(op, Offsets)] == [24 * 8]
    params = (("level", 6), ("memlevel", 9), ("wbits", -12))
    assert [(rule.codec, rule.params) for rule in explanation.rules.encodes] == [("zlib", params)]


def test_zstd_clusters_are_encoded_again() -> None:
    """Compression type 1."""
    recipe = Recipe(
        cluster_bits=12, compressed=range(24), encode=make.zstandard, compression_type=c.ZSTD, odd=3
    )
    explanation, _ = explained(disk(24, 12, empty=1000), recipe)
    assert [(rule.codec, rule.params) for rule in explanation.rules.encodes] == [("zstd", (("level", 3),))]
    assert explanation.facts["compression"] == "zstd"


def test_the_last_compressed_cluster_is_continued_by_zeros() -> None:
    """A disk of 20.5 clusters: the encoder was fed a whole one."""
    explanation, _ = explained(disk(20, 12) + text(2048), Recipe(cluster_bits=12, compressed=range(1, 21)))
    assert sum(op.count for op in explanation.ops if isinstance(op, Encode)) == 20
    assert explanation.guest.size == (20 << 12) + 2048


def test_an_encoder_that_is_not_known_leaves_literals() -> None:
    """The guest is decoded all the same, and the L2 entries are still predicted."""
    recipe = Recipe(cluster_bits=12, compressed=range(20), encode=lambda plain: make.deflate(plain, 6, 2))
    explanation, _ = explained(disk(20, 12, empty=100), recipe)
    assert not explanation.rules.encodes
    assert not [op for op in explanation.ops if isinstance(op, Encode)]
    assert len([op for op in explanation.ops if isinstance(op, Offsets)]) == 1


def test_one_odd_cluster_among_many() -> None:
    """A unit that the encoder misses splits the row in two ops."""
    guest = disk(40, 12, empty=100)
    strange = guest[20 << 12 : 21 << 12]
    recipe = Recipe(
        cluster_bits=12,
        compressed=range(40),
        encode=lambda plain: make.deflate(plain, 6, 2 if plain == strange else 9),
    )
    explanation, _ = explained(guest, recipe)
    encodes = [op for op in explanation.ops if isinstance(op, Encode)]
    assert [(op.offset >> 12, op.count) for op in encodes] == [(0, 20), (21, 19)]


def test_compressed_and_plain_clusters_share_a_table() -> None:
    """As qemu-img -c writes what does not become smaller."""
    guest = disk(64, 12, empty=100)
    recipe = Recipe(cluster_bits=12, compressed=[*range(20), *range(40, 64)])
    explanation, _ = explained(guest, recipe)
    kinds = [type(op) for op in explanation.ops]
    assert kinds.count(Encode) == 2
    assert kinds.count(Offsets) == 2
    assert sum(op.length for op in guest_copies(explanation)) == 20 << 12
    assert unexplained_bytes(explanation) < 2 * 4096 + 1024  # padding behind the two rows


def test_other_sector_counts_are_kept_as_they_are() -> None:
    """A descriptor that claims one sector more than the stream touches is not predicted, and
    the stream is still found."""
    guest = disk(20, 12, empty=100)
    made = make.layout(guest, Recipe(cluster_bits=12, compressed=range(20)))
    at = made.places["l2", 0] + 8 * 10
    entry = int.from_bytes(made.file[at : at + 8], "big") + (1 << c.compressed_offset_bits(12))
    file = BytesReader(patched(bytes(made.file), at, number(entry)))
    explanation = qcow2.explain(file)
    check_explanation(explanation, file, guest)
    assert [op.length for op in explanation.ops if isinstance(op, Offsets)] == [80, 72]


def test_threads_do_not_change_the_outcome() -> None:
    """The same explanation with a pool's map."""
    data = make.image(disk(300, 9), Recipe(cluster_bits=9, compressed=range(100, 250)))
    alone = qcow2.explain(BytesReader(data))
    with ThreadPoolExecutor(2) as pool:
        together = qcow2.explain(BytesReader(data), pool.map)
    assert together.ops == alone.ops
    assert (together.rules, together.sizes) == (alone.rules, alone.sizes)


def test_a_shuffled_map_is_copies_and_short_table_stretches() -> None:
    """Every cluster comes from the guest, wherever it lies."""
    guest = disk(60, 12)
    shuffled, _ = explained(guest, Recipe(cluster_bits=12, shuffle=random.Random(3)))
    assert unexplained_bytes(shuffled) < 2048
    assert sum(op.length for op in guest_copies(shuffled)) == 48 << 12


def test_the_format_is_recognised_by_its_magic() -> None:
    """And found by the table of formats."""
    data = make.image(disk(3, 12), Recipe(cluster_bits=12))
    assert explain(BytesReader(data)).format == "qcow2"
    for other in (b"", b"QFI", bytes(4096), b"\0" + data):
        assert not qcow2.recognise(BytesReader(other))


GOOD = make.layout(disk(20, 12), Recipe(cluster_bits=12))
IMAGE = bytes(GOOD.file)
HEADERS = {
    "version 1": (VERSION, number(1, 4)),
    "version 4": (VERSION, number(4, 4)),
    "a backing file": (BACKING, number(512)),
    "clusters of 2^8 bytes": (CLUSTER_BITS, number(8, 4)),
    "clusters of 2^22 bytes": (CLUSTER_BITS, number(22, 4)),
    "clusters of 2^4294967295 bytes": (CLUSTER_BITS, number(2**32 - 1, 4)),
    "a disk of no bytes": (SIZE, number(0)),
    "do not fit 1 L1 entries": (SIZE, number(1 << 40)),
    "18446744073709551615 bytes do not fit": (SIZE, number(2**64 - 1)),
    "encrypted, method 2": (CRYPT, number(2, 4)),
    "an L1 table of 4194305 entries": (L1_SIZE, number(4194305, 4)),
    "do not fit 0 L1 entries": (L1_SIZE, number(0, 4)),
    "the L1 table at 36028797018963968 lies outside": (L1_OFFSET, number(1 << 55)),
    "a table at 4104, between two clusters": (L1_OFFSET, number(4104)),
    "the refcount table at 9223372036854775808 lies outside": (REFTABLE_OFFSET, number(1 << 63)),
    "a refcount table of 0 bytes": (REFTABLE_CLUSTERS, number(0, 4)),
    "a refcount table of 17592186040320 bytes": (REFTABLE_CLUSTERS, number(2**32 - 1, 4)),
    "1 internal snapshots": (SNAPSHOTS, number(1, 4)),
    "refcounts are dirty": (INCOMPATIBLE, number(1)),
    "marked corrupt": (INCOMPATIBLE, number(2)),
    "an external data file": (INCOMPATIBLE, number(4)),
    "the compression type contradicts": (INCOMPATIBLE, number(8)),
    "extended L2 entries": (INCOMPATIBLE, number(16)),
    "unknown incompatible features 0x20": (INCOMPATIBLE, number(32)),
    "unknown incompatible features 0x8000000000000000": (INCOMPATIBLE, number(1 << 63)),
    "refcounts of 2^7 bits": (ORDER, number(7, 4)),
    "a header of 96 bytes": (LENGTH, number(96, 4)),
    "a header of 4104 bytes": (LENGTH, number(4104, 4)),
    "compression type 2": (c.COMPRESSION_TYPE, b"\2"),
}


@pytest.mark.parametrize("why", HEADERS)
def test_headers_that_lie_or_need_more_are_declined(why: str) -> None:
    """One field of a good header is changed; the reason names it."""
    assert why in refused(patched(IMAGE, *HEADERS[why]))


def test_a_cut_header_is_declined() -> None:
    """At every length."""
    for length in (4, 20, 71, 72, 100, 104, 4095):
        assert refused(IMAGE[:length])


L1 = GOOD.places["l1", 0]
L2 = GOOD.places["l2", 0]
DATA = GOOD.places["data", 7]
REFTABLE = GOOD.places["reftable", 0]
END = len(IMAGE) & ~4095
TABLES = {
    "reserved bits in the L1 table": (L1, number(1 | L2)),
    "an L2 table between two clusters": (L1, number(L2 + 512)),
    f"an L2 table at {END + 4096} lies outside": (L1, number(END + 4096)),
    "reserved bits in an L2 table": (L2 + 8, number(2 | DATA)),
    "a cluster between two clusters": (L2 + 8, number(DATA + 512)),
    f"two structures claim the byte at {DATA}": (L2 + 8, number(c.COPIED | DATA)),
    f"two structures claim the byte at {L2}": (L2 + 8, number(c.COPIED | L2)),
    f"two structures claim the byte at {L1}": (L2 + 8, number(c.COPIED | L1)),
    f"two structures claim the byte at {REFTABLE}": (REFTABLE, number(REFTABLE)),
    "reserved bits in the refcount table": (REFTABLE, number(1)),
    "a refcount block between two clusters": (REFTABLE, number(512)),
    f"a refcount block at {END + 4096} lies outside": (REFTABLE, number(END + 4096)),
    "a compressed cluster that is marked copied": (L2 + 8, number(c.COPIED | c.COMPRESSED | DATA)),
    "a compressed cluster of no bytes, or outside": (L2 + 8, number(c.COMPRESSED | END + (1 << 40))),
    f"the compressed cluster at {DATA}": (L2 + 8, number(c.COMPRESSED | DATA)),
}


@pytest.mark.parametrize("why", TABLES)
def test_tables_that_lie_are_declined(why: str) -> None:
    """One entry of a good table is changed; the reason names it."""
    assert why in refused(patched(IMAGE, *TABLES[why]))


def crowded(entry: int, count: int) -> bytes:
    """`count` table entries that name one cluster of `entry` bytes after the other."""
    return b"".join(number(entry * (k + 1)) for k in range(count))


def test_tables_without_measure_are_declined_unread() -> None:
    """A sparse file of terabytes can hold them: they are counted before they are read."""
    made = make.layout(disk(20, 9), Recipe(cluster_bits=9))
    data = bytes(made.file).ljust(1 << 20, b"\0")
    many = patched(data, L1_SIZE, number(32769 * 8, 4) + number(1 << 20)) + crowded(512, 32769 * 8)
    assert "more than 16777216 L2 entries" in refused(many)
    many = patched(data, REFTABLE_OFFSET, number(1 << 20) + number(4097, 4)) + crowded(512, 4097 * 64)
    assert "refcount blocks of 134250496 bytes" in refused(many)


def test_a_table_that_two_entries_name_is_declined() -> None:
    """One L2 table for two parts of the disk, and one refcount block for two of the file."""
    made = make.layout(disk(100, 9), Recipe(cluster_bits=9))
    data, l1 = bytes(made.file), made.places["l1", 0]
    assert "an L2 table that stands for two" in refused(patched(data, l1, data[l1 + 8 : l1 + 16]))
    table = made.places["reftable", 0]
    twice = patched(data, table + 8, data[table : table + 8])
    assert "a refcount block that stands for two" in refused(twice)


def test_version_2_has_no_zero_flag() -> None:
    """Bit 0 of an L2 entry is reserved there."""
    made = make.layout(disk(20, 12), Recipe(version=2, cluster_bits=12))
    entry = number(c.COPIED | made.places["data", 1] | 1)
    assert "reserved bits in an L2 table" in refused(
        patched(bytes(made.file), made.places["l2", 0] + 8, entry)
    )


def test_two_compressed_clusters_at_one_place_are_declined() -> None:
    """Whether they begin together or the second inside of the first."""
    made = make.layout(disk(20, 12, empty=100), Recipe(cluster_bits=12, compressed=range(20)))
    l2, first = made.places["l2", 0], made.places["packed", 5]
    for place in (first, first + 1):
        assert refused(patched(bytes(made.file), l2 + 8 * 6, number(c.COMPRESSED | 3 << 58 | place)))


def test_a_compressed_cluster_of_another_size_is_declined() -> None:
    """Streams of less and of more than a cluster; more is never made."""
    for length in (100, 4095, 4097, 1 << 20):
        made = make.layout(bytes(4096), Recipe(cluster_bits=12, compressed=[0], encode=_zeros(length)))
        assert "compressed cluster" in refused(bytes(made.file))


def _zeros(length: int) -> Callable[[bytes], bytes]:
    """An encoder that makes a stream of `length` zeros, whatever it is given."""
    return lambda _: make.deflate(bytes(length))


def damaged(data: bytes, places: list[int], dice: random.Random) -> bytes:
    """The image with one to three bytes of its header and tables changed."""
    raw = bytearray(data)
    for _ in range(dice.randrange(1, 4)):
        raw[dice.choice(places)] = dice.choice((0, 1, 0x80, 0xFF, dice.randrange(256)))
    return bytes(raw)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(cluster_bits=9),
        Recipe(cluster_bits=12, version=2, shuffle=random.Random(1)),
        Recipe(cluster_bits=9, compressed=range(10, 50), odd=5),
        Recipe(cluster_bits=9, compressed=range(90), encode=make.zstandard, compression_type=c.ZSTD),
    ],
)
def test_damage_is_declined_or_explained(recipe: Recipe) -> None:
    """300 damaged images each: the reason, or an explanation that gives the damaged file."""
    made = make.layout(disk(90, recipe.cluster_bits), recipe)
    size = 1 << recipe.cluster_bits
    tables = [place for (kind, _), place in made.places.items() if kind in {"l1", "l2", "block", "reftable"}]
    places = [*range(112), *(place + k for place in tables for k in range(min(size, 400)))]
    dice = random.Random(9)
    outcomes = {"declined": 0, "explained": 0}
    for _ in range(300):
        file = BytesReader(damaged(bytes(made.file), places if dice.random() < 0.7 else [*range(112)], dice))
        if not qcow2.recognise(file):
            continue
        try:
            explanation = qcow2.explain(file)
        except Unexplained:
            outcomes["declined"] += 1
        else:
            check_explanation(explanation, file)
            outcomes["explained"] += 1
    assert min(outcomes.values()) > 30, outcomes
