"""VMDK: every dialect is explained to the byte, and everything else is declined with a reason."""

from __future__ import annotations

import random
import struct
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from zlib_ng import zlib_ng

from rehydrator import formats
from rehydrator.core.errors import HostileInput, Unexplained
from rehydrator.core.ops import Copy, Encode, Offsets
from rehydrator.core.reader import BytesReader
from rehydrator.core.recipe import encode_chunk
from rehydrator.formats import vmdk
from rehydrator.formats.explanation import FILE, Explanation
from tests.suites.explained import check_explanation
from tests.vmdk_images import (
    AT_END,
    QEMU,
    SPARSE,
    VMWARE,
    Dialect,
    descriptor,
    disk,
    stored_grains,
    write,
    zlib_level,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SECTOR = 512
DIALECTS = {
    "qemu": QEMU,
    "whole last grain": replace(QEMU, short_last=False),
    "one copy of the tables": replace(QEMU, redundant=False),
    "footer": VMWARE,
    "footer, zeroed grains": replace(VMWARE, zeroed=True),
    "sparse": SPARSE,
    "sparse, zeroed grains": replace(SPARSE, zeroed=True, version=2),
    "small grains": replace(QEMU, grain=16),
    "small grains, footer": replace(VMWARE, grain=16),
    "small tables": replace(VMWARE, grain=8, entries=64),
    "zlib level 1": replace(VMWARE, encode=zlib_level(1)),
    "zlib level 9": replace(QEMU, encode=zlib_level(9)),
    "zlib-ng": replace(QEMU, encode=lambda plain: zlib_ng.compress(plain, 6)),
}
GUEST = disk(3 << 20, seed=2)


def explained(file: bytes) -> Explanation:
    return vmdk.explain(BytesReader(file))


def kinds(explanation: Explanation) -> Counter[str]:
    return Counter(type(op).__name__ for op in explanation.ops)


def encoded(explanation: Explanation) -> str:
    return explanation.facts["grains encoded"]


def nonzero_unexplained(explanation: Explanation, file: bytes) -> int:
    spans = [op for op in explanation.ops if isinstance(op, Copy) and op.space == FILE]
    return sum(sum(map(bool, file[op.offset : op.offset + op.length])) for op in spans)


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("cut", [0, 5 * SECTOR])
def test_every_dialect_comes_back(name: str, cut: int) -> None:
    """Ascending grains, a disk of whole grains and one that ends inside of a grain: the ops
    give the file, the guest is right, and hardly a byte besides the descriptor is unexplained."""
    dialect, guest = DIALECTS[name], GUEST[: len(GUEST) - cut]
    file = write(guest, dialect)
    explanation = explained(file)
    check_explanation(explanation, BytesReader(file), guest)
    if dialect.encode:
        count = len(stored_grains(guest, dialect))
        assert encoded(explanation) == f"{count} of {count}"
    assert nonzero_unexplained(explanation, file) < 700


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_comes_back_with_shuffled_grains(name: str) -> None:
    """The same with the grains in random order."""
    dialect = DIALECTS[name]
    order = stored_grains(GUEST, dialect)
    random.Random(9).shuffle(order)
    file = write(GUEST, dialect, order)
    explanation = explained(file)
    check_explanation(explanation, BytesReader(file), GUEST)
    assert kinds(explanation)["Encode"] == 0 or encoded(explanation) == f"{len(order)} of {len(order)}"


def test_the_encoder_is_named() -> None:
    """Facts for `info` say what was found."""
    facts = explained(write(GUEST, replace(QEMU, encode=zlib_level(9)))).facts
    assert facts["encoder"] == f"zlib {zlib.ZLIB_RUNTIME_VERSION} level 9 memlevel 8 wbits 15"
    assert (facts["create type"], facts["grain size"]) == ("streamOptimized", "65536")


def test_a_fragmented_disk_needs_few_ops() -> None:
    """A disk of 16 MiB in some 1,000 fragments: one Encode and one Offsets for each copy of the
    tables, and 3 bytes of recipe and sizes for a grain."""
    guest = disk(16 << 20, seed=3, grain=4096)
    stored = stored_grains(guest, replace(QEMU, grain=8))
    fragments = sum(k + 1 not in stored for k in stored)
    explanation = explained(write(guest, replace(QEMU, grain=8)))
    assert (len(stored) > 2500, fragments > 900) == (True, True)
    assert kinds(explanation) == {"Encode": 1, "Offsets": 2, "Copy": 4, "Series": 2}
    assert len(encode_chunk(explanation.ops)) + len(explanation.sizes) < 3 * len(stored)


def test_both_libraries_in_one_file() -> None:
    """A file whose second half another library wrote: two rules, and still every grain."""

    def encode(plain: bytes) -> bytes:
        return zlib.compress(plain, 6) if plain[0] % 2 else zlib_ng.compress(plain, 6)

    file = write(GUEST, replace(QEMU, encode=encode))
    explanation = explained(file)
    check_explanation(explanation, BytesReader(file), GUEST)
    count = len(stored_grains(GUEST, QEMU))
    assert encoded(explanation) == f"{count} of {count}"
    assert {rule.codec for rule in explanation.rules.encodes} == {"zlib", "zlib-ng"}


def test_an_unknown_encoder_leaves_grains_but_explains_tables() -> None:
    """Grains that no encoder gives stay FILE; guest and tables are explained all the same."""

    def encode(plain: bytes) -> bytes:
        deflate = zlib.compressobj(6, zlib.DEFLATED, 15, 8, zlib.Z_HUFFMAN_ONLY)
        return deflate.compress(plain) + deflate.flush()

    file = write(GUEST, replace(QEMU, encode=encode))
    explanation = explained(file)
    check_explanation(explanation, BytesReader(file), GUEST)
    assert kinds(explanation)["Encode"] == 0
    assert kinds(explanation)["Offsets"] == 2
    assert explanation.facts["encoder"] == "none known"


def test_bytes_behind_the_disk_in_the_last_grain_are_kept() -> None:
    """A last grain that holds more than zeros behind the disk's end is no Encode of the guest:
    it stays FILE and the file still comes back."""
    guest = GUEST[:-1024] + b"x" * 512
    last = guest[len(guest) // QEMU.unit * QEMU.unit :].ljust(QEMU.unit, b"\0")

    def encode(plain: bytes) -> bytes:
        return zlib.compress(plain[:-512] + b"y" * 512 if plain == last else plain)

    file = write(guest, replace(QEMU, short_last=False, encode=encode))
    explanation = explained(file)
    check_explanation(explanation, BytesReader(file), guest)
    count = len(stored_grains(guest, QEMU))
    assert encoded(explanation) == f"{count - 1} of {count}"


def test_an_empty_disk() -> None:
    """No grain at all."""
    for dialect in (QEMU, VMWARE, SPARSE):
        file = write(bytes(1 << 20), dialect)
        explanation = explained(file)
        check_explanation(explanation, BytesReader(file), bytes(1 << 20))
        assert list(explanation.guest.data_spans()) == []


def test_bytes_behind_the_last_structure_are_file() -> None:
    """Some tools pad; with the tables in place nothing says that the file must end."""
    file = write(GUEST, QEMU) + b"trailer" * 100
    check_explanation(explained(file), BytesReader(file), GUEST)


def test_padding_that_is_not_zero_is_kept() -> None:
    """Bytes between the end of a grain's stream and its sector's end are part of the file."""
    file = patched(IN_PLACE, len(IN_PLACE) - 1, b"x")
    explanation = explained(file)
    check_explanation(explanation, BytesReader(file), GUEST)
    count = len(stored_grains(GUEST, QEMU))
    assert encoded(explanation) == f"{count - 1} of {count}"


def test_positions_that_the_sizes_do_not_give_are_file() -> None:
    """A redundant table that differs in one entry is split there, and nowhere else."""
    file = bytearray(write(GUEST, QEMU))
    at = 22 * SECTOR + 4 * stored_grains(GUEST, QEMU)[20]
    file[at : at + 4] = struct.pack("<I", 0x01020304)
    explanation = explained(bytes(file))
    check_explanation(explanation, BytesReader(bytes(file)), GUEST)
    assert sum(isinstance(op, Offsets) for op in explanation.ops) == 3


def test_the_format_table_finds_it() -> None:
    """recognise: sparse extents and descriptors, and nothing else."""
    assert formats.explain(BytesReader(write(GUEST, QEMU))).format == "vmdk"
    for begin, expected in (
        (b"KDMV", True),
        (b"# Disk DescriptorFile\n", True),
        (b"KDM", False),
        (b"", False),
    ):
        assert vmdk.recognise(BytesReader(begin)) is expected


def patched(file: bytes, at: int, value: bytes) -> bytes:
    return file[:at] + value + file[at + len(value) :]


def with_descriptor(old: bytes, new: bytes) -> bytes:
    """QEMU's file with a change in its descriptor."""
    file = write(GUEST, QEMU)
    text = file[SECTOR : 21 * SECTOR].replace(old, new)[: 20 * SECTOR].ljust(20 * SECTOR, b"\0")
    return patched(file, SECTOR, text)


def first_entry(file: bytes) -> int:
    """File offset of the first entry of the first grain table."""
    (gd,) = struct.unpack_from("<Q", file, 56)
    (table,) = struct.unpack_from("<I", file, gd * SECTOR)
    return int(table) * SECTOR


def grain_at(file: bytes) -> int:
    """File offset of the first grain."""
    (sector,) = struct.unpack_from("<I", file, first_entry(file))
    return int(sector) * SECTOR


def encoded_by(encode: Callable[[bytes], bytes]) -> bytes:
    return write(GUEST[:65536], replace(QEMU, encode=encode))


BOMB = zlib.compress(bytes(64 << 20))
IN_PLACE = write(GUEST, QEMU)
FOOTER = write(GUEST, VMWARE)
PLAIN = write(GUEST, SPARSE)
FIRST, GRAIN = first_entry(IN_PLACE), grain_at(IN_PLACE)
U32, U64 = struct.Struct("<I").pack, struct.Struct("<Q").pack
REFUSED = {
    "descriptor of data in other files": (descriptor(QEMU, 8, kind="twoGbMaxExtentSparse"), "other files"),
    "ESX extent": (b"COWD" + bytes(2044), "ESX"),
    "shorter than a header": (IN_PLACE[:100], "no sparse extent header"),
    "version 4": (patched(IN_PLACE, 4, U32(4)), "version 4"),
    "unknown flag": (patched(IN_PLACE, 8, U32(0x30083)), "unknown flags"),
    "no markers": (patched(IN_PLACE, 8, U32(0x10003)), "without markers"),
    "markers alone": (patched(IN_PLACE, 8, U32(0x20003)), "without compression"),
    "another compression": (patched(IN_PLACE, 77, b"\2\0"), "compression 2"),
    "compression without the flag": (patched(PLAIN, 77, b"\1\0"), "compression 1"),
    "newlines": (patched(IN_PLACE, 73, b"\n \n\n"), "newlines"),
    "no capacity": (patched(IN_PLACE, 12, U64(0)), "no capacity"),
    "huge capacity": (patched(IN_PLACE, 12, U64(1 << 60)), "capacity"),
    "capacity beyond the tables": (patched(IN_PLACE, 12, U64(1 << 32)), "grain table|directory|outside"),
    "no grain size": (patched(IN_PLACE, 20, U64(0)), "grains of 0"),
    "odd grain size": (patched(IN_PLACE, 20, U64(100)), "grains of 100"),
    "huge grain size": (patched(IN_PLACE, 20, U64(1 << 40)), "grains of"),
    "no table entries": (patched(IN_PLACE, 44, U32(0)), "0 entries"),
    "large tables": (patched(IN_PLACE, 44, U32(1024)), "1024 entries"),
    "no descriptor": (patched(IN_PLACE, 28, U64(0)), "no embedded descriptor"),
    "huge descriptor": (patched(IN_PLACE, 36, U64(1 << 40)), "descriptor of"),
    "descriptor outside": (patched(IN_PLACE, 28, U64(1 << 40)), "descriptor at"),
    "several files, sparse": (with_descriptor(b"streamOptimized", b"twoGbMaxExtentSparse"), "twoGb"),
    "several files, flat": (with_descriptor(b"streamOptimized", b"monolithicFlat"), "monolithicFlat"),
    "parent": (with_descriptor(b"parentCID=ffffffff", b"parentCID=12345678"), "parent disk"),
    "no parentCID": (with_descriptor(b"parentCID", b"parentXXX"), "parent disk"),
    "two extents": (with_descriptor(b"\nRW ", b'\nRW 8 SPARSE "a.vmdk"\nRW '), "instead of one"),
    "flat extent": (with_descriptor(b" SPARSE ", b" FLAT "), "instead of one"),
    "no directory": (patched(IN_PLACE, 56, U64(0)), "no grain directory"),
    "directory outside": (patched(IN_PLACE, 56, U64(1 << 50)), "grain directory at"),
    "redundant directory outside": (patched(IN_PLACE, 48, U64(1 << 50)), "grain directory at"),
    "table outside": (patched(IN_PLACE, 26 * SECTOR + SECTOR, U32(1 << 31)), "overlap|outside"),
    "two grains at one place": (
        patched(IN_PLACE, FIRST + 4, IN_PLACE[FIRST : FIRST + 4]),
        "overlap",
    ),
    "grain over the tables": (patched(IN_PLACE, FIRST, U32(22)), "overlap"),
    "grain outside": (patched(IN_PLACE, FIRST, U32(1 << 31)), "outside"),
    "grain at the end": (
        patched(IN_PLACE, FIRST, U32(len(IN_PLACE) // SECTOR - 1)),
        "says sector|cut short",
    ),
    "marker of another grain": (patched(IN_PLACE, GRAIN, U64(256)), "says sector 256"),
    "empty grain": (patched(IN_PLACE, GRAIN + 8, U32(0)), "0 encoded bytes"),
    "huge grain": (patched(IN_PLACE, GRAIN + 8, U32(1 << 31)), "2147483648 encoded bytes"),
    "grain behind the end": (IN_PLACE[:-SECTOR], "cut short"),
    "grain into the next": (patched(IN_PLACE, GRAIN + 8, U32(100_000)), "share bytes"),
    "grain of no zlib": (patched(IN_PLACE, GRAIN + 12, b"\0\0\0\0"), "not a deflate"),
    "grain above its size": (
        write(GUEST, replace(QEMU, encode=lambda plain: zlib.compress(plain + b"x"))),
        "more than 65536",
    ),
    "grain below its size": (
        write(GUEST, replace(QEMU, encode=lambda plain: zlib.compress(plain[:-1]))),
        "holds 65535",
    ),
    "bytes behind a stream": (
        write(GUEST, replace(QEMU, encode=lambda plain: zlib.compress(plain) + b"x")),
        "holds 65536",
    ),
    "bomb": (
        write(GUEST[:65536], replace(QEMU, encode=lambda _: zlib.compress(bytes(64 << 20)))),
        "more than 65536",
    ),
    "plain grain cut short": (PLAIN[:-SECTOR], "cut short"),
    "no footer": (IN_PLACE[:56] + U64(AT_END) + IN_PLACE[64:], "header and footer|footer"),
    "footer cut off": (FOOTER[:-SECTOR], "footer"),
    "footer that differs": (patched(FOOTER, len(FOOTER) - 1024 + 12, U64(8)), "differ"),
    "footer without a directory": (patched(FOOTER, len(FOOTER) - 1024 + 56, U64(AT_END)), "names no grain"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_declined(name: str) -> None:
    """Each with a reason, and through the table of formats with the format's name before it."""
    file, why = REFUSED[name]
    with pytest.raises(Unexplained, match=why):
        explained(file)
    with pytest.raises(Unexplained, match=f"^vmdk: .*({why})"):
        formats.explain(BytesReader(file))


@pytest.mark.parametrize("dialect", [QEMU, VMWARE, SPARSE])
def test_random_damage_is_declined_or_explained(dialect: Dialect) -> None:
    """300 files with damage in header, descriptor, tables, markers and what follows them:
    declined, or explained to the byte."""
    dialect = replace(dialect, grain=16)
    file = write(disk(1 << 19, seed=6, grain=8192), dialect)
    dice = random.Random(12)
    places = [*range(80), *range(SECTOR, SECTOR + 300)]
    if dialect.encode:
        places += [k for at in range(32 * SECTOR, len(file), SECTOR) for k in (*range(at, at + 16), at + 511)]
    if dialect.tables_at_end:
        places += range(len(file) - 3072, len(file))
    else:
        places += range(21 * SECTOR, grain_at(file))
    outcomes = Counter(damaged(file, dice.choices(places, k=dice.randrange(1, 4)), dice) for _ in range(300))
    assert min(outcomes["declined"], outcomes["explained"]) > 20


def damaged(file: bytes, places: list[int], dice: random.Random) -> str:
    changed = bytearray(file)
    for place in places:
        changed[place] ^= 1 << dice.randrange(8)
    reader = BytesReader(bytes(changed))
    try:
        explanation = vmdk.explain(reader)
    except Unexplained:
        return "declined"
    check_explanation(explanation, reader)
    return "explained"


def test_a_damaged_grain_is_never_left_for_the_guest_reader() -> None:
    """Once explained, every guest byte can be read."""
    file = bytearray(write(GUEST, QEMU))
    file[grain_at(bytes(file)) + 40] ^= 255
    with pytest.raises(HostileInput):
        explained(bytes(file))


@pytest.mark.parametrize("filler", [b"\n", b" ", b"a", b"RW ", b"1", b"a\n\n=", b"\r"])
def test_a_hostile_descriptor_takes_no_time(filler: bytes) -> None:
    """A megabyte of what a pattern could stumble over: the test ends."""
    file = patched(IN_PLACE, 36, U64(2048)) + filler * (1 << 20)
    file = patched(file, 28, U64(len(IN_PLACE) // SECTOR))
    with pytest.raises(Unexplained, match="create type ''"):
        explained(file)


def test_threads_change_nothing() -> None:
    """The explanation is the same whichever way the work is mapped."""
    file = write(GUEST, replace(VMWARE, grain=16))
    alone = explained(file)
    with ThreadPoolExecutor(4) as pool:
        together = vmdk.explain(BytesReader(file), pool.map)
    assert (together.ops, together.rules, together.sizes) == (alone.ops, alone.rules, alone.sizes)


def test_encodes_have_no_gap() -> None:
    """A disk in order is one Encode from the first grain to the last."""
    ops = explained(IN_PLACE).ops
    (op,) = [op for op in ops if isinstance(op, Encode)]
    assert op.length == len(IN_PLACE) - GRAIN
