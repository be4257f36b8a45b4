"""ISO 9660 is mapped exactly, or declined."""

from __future__ import annotations

import random
import struct
from collections import Counter

import pytest

from rehydrator.core.errors import HostileInput, Unexplained
from rehydrator.core.reader import BytesReader
from rehydrator.formats import iso9660
from rehydrator.formats.filesystem import Block, FileSystem, Piece, decode
from tests import iso_images as make
from tests.iso_images import SECTOR, Node, ce, nm, px

DICE = random.Random(9)
BIG, MIDDLE, SMALL = DICE.randbytes(70_001), DICE.randbytes(2048), b"small"
TREE: dict[bytes, Node] = {
    b"BIG.IMG;1": BIG,
    b"EMPTY.;1": b"",
    b"SUB": {b"MIDDLE.;1": MIDDLE, b"SUB2": {b"SMALL.TXT;1": SMALL}},
    b"MANY": {b"FILE%03d.;1" % k: bytes([k]) * k for k in range(200)},
}
PLAIN = {b"BIG.IMG": BIG, b"EMPTY": b"", b"SUB/MIDDLE": MIDDLE, b"SUB/SUB2/SMALL.TXT": SMALL}
PLAIN |= {b"MANY/FILE%03d" % k: bytes([k]) * k for k in range(200)}


def rebuilt(image: bytes, found: FileSystem | None = None) -> dict[bytes, bytes]:
    """Every file's bytes by its pieces, which must tile it."""
    file, files = BytesReader(image), {}
    found = found or iso9660.read(file)
    for content in found.contents:
        data = b""
        for piece in content.pieces:
            assert piece.at == len(data)
            plain = decode(file, found.blocks[piece.block])
            data += plain[piece.start : piece.start + piece.length]
        assert len(data) == content.size
        files[content.path] = data
    return files


def refused(image: bytes) -> str:
    with pytest.raises(Unexplained) as caught:
        iso9660.read(BytesReader(image))
    return str(caught.value)


def patched(image: bytes, at: int, new: bytes) -> bytes:
    return image[:at] + new + image[at + len(new) :]


def record_at(image: bytes, name: bytes, count: int = 1) -> int:
    """Where the directory record of this identifier begins."""
    assert image.count(bytes([len(name)]) + name) == count
    return image.index(bytes([len(name)]) + name) - 32


@pytest.mark.parametrize("block", [512, 1024, 2048])
def test_every_file_is_rebuilt(block: int) -> None:
    """In every size of logical blocks; directories of several sectors as well."""
    made = make.make(TREE, block=block)
    found = iso9660.read(BytesReader(made.image))
    assert rebuilt(made.image, found) == PLAIN
    assert (found.kind, found.size) == ("iso9660", len(made.image))
    facts = {key: found.facts[key] for key in ("volume", "names", "block size", "trees", "partition tables")}
    assert facts == {
        "volume": "VOLUME",
        "names": "ISO 9660",
        "block size": str(block),
        "trees": "primary",
        "partition tables": "none",
    }


def test_recognised_by_its_identifier() -> None:
    """And by nothing else; a short file is none."""
    image = make.make({}).image
    assert iso9660.recognise(BytesReader(image))
    assert not iso9660.recognise(BytesReader(image[: 17 * SECTOR - 1]))
    assert not iso9660.recognise(BytesReader(patched(image, 16 * SECTOR + 1, b"CD002")))


def test_a_root_without_files_has_no_contents() -> None:
    """No contents and no blocks."""
    found = iso9660.read(BytesReader(make.make({}).image))
    assert (found.contents, found.blocks) == ((), ())


def test_extents_in_a_row_are_one_block() -> None:
    """And apart they are several; the pieces tile the file."""
    parts = [BIG[:4096], BIG[4096:8192], b"end"]
    made = make.make({b"A.;1": parts, b"B.;1": MIDDLE})
    found = iso9660.read(BytesReader(made.image))
    assert found.contents[0].pieces == (Piece(0, 8195, 0, 0),)
    assert found.blocks[0] == Block(made.places[b"A.;1"], 8195, 8195)
    first = record_at(made.image, b"A.;1", 3)
    apart = patched(made.image, first + 10, make.both32(4000))
    assert rebuilt(apart)[b"A"] == BIG[:4000] + BIG[4096:8192] + b"end"


def test_a_chain_that_does_not_end() -> None:
    """A file whose last record says that more follows; and one that goes on as another file."""
    made = make.make({b"A.;1": [SMALL, SMALL], b"B.;1": MIDDLE})
    last = record_at(made.image, b"B.;1")
    assert "ends within a file's extents" in refused(patched(made.image, last + 25, b"\x80"))
    second = made.image.rindex(b"\x04A.;1") + 1
    assert "does not go on" in refused(patched(made.image, second, b"C.;1"))


def test_extended_attribute_records_come_before_the_bytes() -> None:
    """ECMA-119, 9.1.2: so many blocks of the extent are not the file's."""
    made = make.make({b"A.;1": MIDDLE + SMALL})
    at = record_at(made.image, b"A.;1")
    image = patched(patched(made.image, at + 1, b"\1"), at + 10, make.both32(len(SMALL)))
    assert rebuilt(image) == {b"A": SMALL}


def test_names_without_rock_ridge() -> None:
    """The version 1 and an empty extension are left out, other versions are not."""
    tree: dict[bytes, Node] = {b"A.;1": b"1", b"A.;2": b"2", b"B.C;1": b"3", b"D": b"4"}
    assert rebuilt(make.make(tree).image) == {b"A": b"1", b"A.;2": b"2", b"B.C": b"3", b"D": b"4"}


def test_two_files_of_one_path() -> None:
    """Paths are unique."""
    assert "of one path" in refused(make.make({b"A.;1": b"1", b"A;1": b"2"}).image)


def test_equal_extents_are_one_block() -> None:
    """Two names of one file are two contents of the same block."""
    made = make.make({b"A.;1": MIDDLE, b"B.;1": BIG[:2048]})
    at = record_at(made.image, b"B.;1")
    image = patched(made.image, at + 2, make.both32(made.places[b"A.;1"] // SECTOR))
    found = iso9660.read(BytesReader(image))
    assert [content.pieces for content in found.contents] == [(Piece(0, 2048, 0, 0),)] * 2
    shorter = patched(image, at + 10, make.both32(2047))
    assert "overlaps" in refused(shorter)


def test_joliet_counts_once() -> None:
    """A file of both trees is the primary's; one of Joliet alone is below "[Joliet]/"."""
    tree: dict[bytes, Node] = {b"A": MIDDLE, b"D": {b"B": SMALL}, b"E": b""}
    found = iso9660.read(BytesReader(image := make.make(tree, joliet={**tree, b"x y": BIG}).image))
    assert rebuilt(image, found) == {b"A": MIDDLE, b"D/B": SMALL, b"E": b"", b"[Joliet]/x y": BIG}
    assert len(found.blocks) == 3
    assert found.facts["trees"] == "primary, Joliet"


def test_joliet_names_are_utf_16() -> None:
    """Beyond UCS-2 as well; half a character is refused."""
    name = "\u20ac\U0001f4bf".encode()
    image = make.make({}, joliet={name: SMALL}).image
    assert rebuilt(image) == {b"[Joliet]/" + name: SMALL}
    at = record_at(image, name.decode().encode("utf-16-be"))
    assert "half a character" in refused(patched(image, at + 32, b"\5"))


def test_system_use_entries_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many records may share one area full of tiny entries."""
    extras = {**ROOT, **{name: nm(b"a", 1) * 20 for name in (b"A.;1", b"B.;1")}}
    image = make.make({b"A.;1": b"", b"B.;1": b""}, extras=extras).image
    monkeypatch.setattr(iso9660, "MAX_USES", 30)
    assert "more than 30 system use entries" in refused(image)


ROOT = {b".": make.SP}


def rocky(extra: bytes, tail: bytes = b"") -> bytes:
    """A file with this system use field."""
    return make.make({b"A.;1": SMALL}, extras={**ROOT, b"A.;1": extra}, tail=tail).image


def test_rock_ridge_names() -> None:
    """NM may come in parts; names of hosts do not matter, and without one the identifier counts."""
    assert rebuilt(rocky(px(0o100644) + nm(b"long ", 1) + nm(b"name"))) == {b"long name": SMALL}
    assert rebuilt(rocky(px(0o100644))) == {b"A": SMALL}
    assert rebuilt(rocky(nm(b"b"))) == {b"b": SMALL}


@pytest.mark.parametrize("name", [b"..", b"a/b", b"a\0b"])
def test_names_that_are_none(name: bytes) -> None:
    """Names that are no file's name are refused."""
    assert "has the name" in refused(rocky(nm(name)))


def test_what_is_no_regular_file() -> None:
    """Symbolic links, devices and sockets have no content."""
    assert rebuilt(rocky(px(0o120777) + nm(b"l"))) == {}
    assert rebuilt(rocky(make.entry(b"SL", b"\0\2\0"))) == {}
    assert rebuilt(rocky(px(0o020666))) == {}
    assert rebuilt(rocky(px(0o000644))) == {b"A": SMALL}


def test_without_an_indicator_there_is_no_rock_ridge() -> None:
    """SUSP 5.3: SP says that system use fields are to be read, and how many bytes to skip."""
    assert rebuilt(make.make({b"A.;1": SMALL}, extras={b"A.;1": nm(b"b")}).image) == {b"A": SMALL}
    skipping = {b".": make.entry(b"SP", b"\xbe\xef\3"), b"A.;1": b"xyz" + nm(b"b")}
    assert rebuilt(make.make({b"A.;1": SMALL}, extras=skipping).image) == {b"b": SMALL}


def test_continuation_areas() -> None:
    """The name goes on elsewhere, and on again."""
    place = make.make({b"A.;1": SMALL}, extras={**ROOT, b"A.;1": ce(0, 0, 0)}).places[b"[tail]"]
    more, rest = nm(b"cd", 1), nm(b"ef")
    far = ce(place // SECTOR, 700, len(rest))
    tail = (more + far).ljust(700, b"\xff") + rest
    image = rocky(nm(b"ab", 1) + ce(place // SECTOR, 0, len(more + far)), tail + bytes(60))
    moved = make.make({b"A.;1": SMALL}, extras={**ROOT, b"A.;1": nm(b"ab", 1) + ce(0, 0, 0)}).places
    assert moved[b"[tail]"] == place
    assert rebuilt(image) == {b"abcdef": SMALL}


def test_continuation_areas_in_a_circle() -> None:
    """An area that continues in itself is left after a while."""
    place = make.make({b"A.;1": SMALL}, extras={**ROOT, b"A.;1": ce(0, 0, 0)}).places[b"[tail]"]
    circle = ce(place // SECTOR, 0, 28)
    assert "more than 1024 continuation areas" in refused(rocky(circle, circle))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (ce(1 << 30, 0, 28), "lies outside of the file"),
        (b"CE\x0a\1" + bytes(6), "a continuation of 10 bytes"),
        (b"NM\xff\1\0a", "a system use entry of 255 bytes"),
        (b"NM\3\1\0a", "a system use entry of 3 bytes"),
        (make.entry(b"SF", make.both32(1) * 2 + b"\1"), "a sparse file"),
        (make.entry(b"PX", b"\1" + bytes(39)), "in the other"),
        (make.entry(b"CL", make.both32(0)), "no directory at 0"),
        (make.entry(b"CL", make.both32(1 << 31)), "outside of the file"),
    ],
)
def test_system_use_fields_that_lie(extra: bytes, message: str) -> None:
    """Refused, with the place."""
    assert message in refused(rocky(extra))


def test_zisofs_is_mapped_as_it_lies() -> None:
    """And told."""
    found = iso9660.read(BytesReader(rocky(make.entry(b"ZF", b"pz\4\x0f" + make.both32(99)))))
    assert found.contents[0].size == len(SMALL)
    assert found.facts["zisofs"] == "1 files, mapped as they lie"


def relocated() -> bytes:
    """A directory that is listed below another, and really is where CL points."""
    tree: dict[bytes, Node] = {b"A.;1": b"", b"MOVED": {b"DEEP": {b"F.;1": SMALL}}}
    extras = {
        **ROOT,
        b"MOVED/DEEP": make.entry(b"RE", b""),
        b"A.;1": make.entry(b"CL", make.both32(0)) + nm(b"a"),
    }
    place = make.make(tree, extras=extras).places[b"MOVED/DEEP"]
    extras[b"A.;1"] = make.entry(b"CL", make.both32(place // SECTOR)) + nm(b"a")
    return make.make(tree, extras=extras).image


def test_relocated_directories() -> None:
    """Listed where they were before."""
    assert rebuilt(relocated()) == {b"a/F": SMALL}


def test_directories_in_two_places() -> None:
    """A directory that is not marked as moved lies in two places; and so does one within itself."""
    image = relocated()
    assert "in two places" in refused(image.replace(b"RE\4\1", b"XX\4\1"))
    made = make.make({b"D": {b"E": {b"F.;1": SMALL}}})
    at = record_at(made.image, b"E")
    circle = patched(made.image, at + 2, make.both32(made.places[b"D"] // SECTOR))
    assert "the directory b'D/E' lies in two places" in refused(circle)


def test_directories_too_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many within each other as the limit has, and no more."""
    monkeypatch.setattr(iso9660, "MAX_DEPTH", 50)
    tree: dict[bytes, Node] = {b"F": SMALL}
    for _ in range(50):
        tree = {b"D": tree}
    assert rebuilt(make.make(tree).image) == {b"D/" * 50 + b"F": SMALL}
    assert "deeper than 50" in refused(make.make({b"D": tree}).image)


def test_paths_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """One path, and all of them together."""
    tree: dict[bytes, Node] = {b"F": SMALL}
    for _ in range(30):
        tree = {b"D" * 200: tree}
    assert "a path of" in refused(make.make(tree).image)
    monkeypatch.setattr(iso9660, "MAX_PATHS", 1000)
    assert "bytes of paths" in refused(make.make(TREE).image)


@pytest.mark.parametrize(
    ("limit", "message"),
    [("MAX_FILES", "directory entries"), ("MAX_BLOCKS", "extents"), ("MAX_METADATA", "of metadata")],
)
def test_limits(limit: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is enforced."""
    image = make.make(TREE).image
    monkeypatch.setattr(iso9660, limit, 100)
    assert message in refused(image)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (0, b"\x10", "crosses its sector"),
        (2, make.both32(1 << 30), "outside of the file"),
        (6, b"\1", "in one byte order and"),
        (10, make.both32(0xFFFFFFFF), "outside of the file"),
        (14, b"\1", "in one byte order and"),
        (26, b"\1", "interleaved"),
        (27, b"\1", "interleaved"),
        (30, b"\7", "in one byte order and"),
        (32, b"\0", "a name of 0 bytes"),
        (32, b"\xc8", "a name of 200 bytes"),
    ],
)
def test_records_that_lie(field: int, value: bytes, message: str) -> None:
    """The message has the place of the record."""
    made = make.make({b"A.;1": BIG, b"Z": {b"B.;1": SMALL}})
    at = record_at(made.image, b"A.;1")
    said = refused(patched(made.image, at + field, value))
    assert message in said
    assert any(
        str(place) in said
        for place in (at, at + field, at + 2, at + 10, at + 28, 1 << 41, made.places[b"A.;1"])
    )


def test_a_record_that_crosses_its_sector() -> None:
    """The last record of a sector, longer than the rest of it."""
    made = make.make(TREE)
    first = made.places[b"MANY"]
    at = last = first
    while made.image[at] and at < first + SECTOR:
        last, at = at, at + made.image[at]
    assert "crosses its sector" in refused(patched(made.image, last, bytes([first + SECTOR - last + 1])))


def test_other_volumes_of_a_set() -> None:
    """Files of a set's other volumes are not here."""
    made = make.make({b"A.;1": SMALL})
    image = patched(made.image, 16 * SECTOR + 120, make.both16(2))
    assert rebuilt(image) == {b"A": SMALL}
    at = record_at(image, b"A.;1")
    assert "of volume 2 of the set" in refused(patched(image, at + 28, make.both16(2)))


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"\xff", "no primary"),
        (0, b"\2", "no primary"),
        (128, make.both16(4096), "blocks of 4096 bytes"),
        (129, b"\0", "in one byte order"),
        (80, make.both32(1 << 20), "of which"),
        (156 + 25, b"\0", "the root is not a directory"),
        (156 + 2, make.both32(1 << 30), "outside of the file"),
        (SECTOR + 1, b"X", "no volume descriptor at"),
        (SECTOR, b"\3", "no volume descriptor at"),
    ],
)
def test_descriptors_that_lie(at: int, value: bytes, message: str) -> None:
    """Refused."""
    assert message in refused(patched(make.make({b"A.;1": SMALL}).image, 16 * SECTOR + at, value))


def test_a_boot_record_may_come_first() -> None:
    """Facts are those of the primary descriptor, wherever it stands."""
    image = make.make({b"A.;1": SMALL}, boot=make.catalogue(make.boot_entry(0, 0))).image
    first, second = image[16 * SECTOR : 17 * SECTOR], image[17 * SECTOR : 18 * SECTOR]
    found = iso9660.read(BytesReader(patched(image, 16 * SECTOR, second + first)))
    assert (found.facts["volume"], len(found.contents)) == ("VOLUME", 1)


def test_descriptors_without_end() -> None:
    """64 are enough for anybody."""
    image = make.make({}).image[: 16 * SECTOR] + b"\3CD001\1".ljust(SECTOR, b"\0") * 100
    assert "more than 64 volume descriptors" in refused(image)


def test_boot_images_that_are_no_file() -> None:
    """An image that is a file's extent is that file; another is a content of its own."""
    tree: dict[bytes, Node] = {b"BOOT.;1": MIDDLE + SMALL}
    boot = [make.boot_entry(0, 4), make.section(1), make.boot_entry(0, 8)]
    places = make.make(tree, boot=make.catalogue(*boot), tail=BIG).places
    boot[0] = make.boot_entry(places[b"BOOT.;1"] // SECTOR, 4)
    boot[2] = make.boot_entry(places[b"[tail]"] // SECTOR, 8)
    found = iso9660.read(BytesReader(image := make.make(tree, boot=make.catalogue(*boot), tail=BIG).image))
    assert rebuilt(image, found) == {b"BOOT": MIDDLE + SMALL, b"[El Torito]/2": BIG[:4096]}
    assert found.facts["boot image 1"] == f"BIOS, at {places[b'BOOT.;1']}"
    assert found.facts["boot image 2"] == f"UEFI, at {places[b'[tail]']}"


def booting(*entries: bytes, tail: bytes = bytes(8 << 20)) -> bytes:
    return make.make({}, boot=make.catalogue(*entries), tail=tail).image


TAIL = make.make({}, boot=make.catalogue(), tail=SMALL).places[b"[tail]"] // SECTOR


@pytest.mark.parametrize(("media", "size"), [(0, 512), (1, 1200 << 10), (2, 1440 << 10), (3, 2880 << 10)])
def test_sizes_of_boot_images(media: int, size: int) -> None:
    """Emulated floppies are whole, whatever is loaded of them."""
    found = iso9660.read(BytesReader(booting(make.boot_entry(TAIL, 1, media))))
    assert [(content.path, content.size) for content in found.contents] == [(b"[El Torito]/1", size)]


def test_size_of_an_emulated_hard_disk() -> None:
    """As far as its partition table says."""
    disk = bytearray(100 * 512)
    disk[446:462] = struct.pack("<B3sB3sII", 0x80, b"", 6, b"", 10, 90)
    disk[510:512] = b"\x55\xaa"
    found = iso9660.read(BytesReader(booting(make.boot_entry(TAIL, 1, 4), tail=bytes(disk))))
    assert found.contents[0].size == 100 * 512


def test_a_partition_has_the_size_of_its_image() -> None:
    """The catalogue says what is loaded; the MBR of a hybrid image, how large the image is."""
    image = booting(make.boot_entry(TAIL, 1))
    row = struct.pack("<B3sB3sII", 0, b"", 0xEF, b"", TAIL * 4, 4096)
    hybrid = patched(patched(image, 446, row), 510, b"\x55\xaa")
    found = iso9660.read(BytesReader(hybrid))
    assert [content.size for content in found.contents] == [2 << 20]
    assert found.facts["partition tables"] == "MBR"
    assert found.facts["partition 1"] == f"{2 << 20} bytes at {TAIL * SECTOR}"


def test_extensions_of_boot_entries() -> None:
    """Selection criteria may go on in further entries."""
    more = bytes([0x44, 0x20]).ljust(32, b"\0")
    last = bytes([0x44, 0]).ljust(32, b"\0")
    entries = (make.boot_entry(0, 0), make.section(1, last=False), make.boot_entry(TAIL, 1, 0x20), more, last)
    rest = (make.section(1), make.boot_entry(TAIL + 1, 1))
    found = iso9660.read(BytesReader(booting(*entries, *rest)))
    assert [content.path for content in found.contents] == [b"[El Torito]/2", b"[El Torito]/3"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([b"\x77".ljust(32, b"\0")], "image 1 of a boot catalogue: 0x77"),
        ([make.boot_entry(1 << 30, 1)], "outside of the file"),
        ([make.boot_entry(1 << 30, 1, 4)], "lies outside of the file"),
        ([make.boot_entry(TAIL, 1), make.section(1), b"\x77".ljust(32, b"\0")], "image 2 of a boot"),
        ([make.boot_entry(0, 0), make.section(1), make.boot_entry(TAIL, 1, 0x20)], "goes on nowhere"),
    ],
)
def test_boot_catalogues_that_lie(entries: list[bytes], message: str) -> None:
    """Refused."""
    assert message in refused(booting(*entries))


def test_a_boot_catalogue_elsewhere() -> None:
    """It must be in the file, and be one."""
    image = booting(make.boot_entry(TAIL, 1))
    assert "boot catalogue" in refused(patched(image, 17 * SECTOR + 71, struct.pack("<I", 1 << 30)))
    assert "does not begin as one" in refused(patched(image, 17 * SECTOR + 71, struct.pack("<I", 0)))


def test_sections_without_end() -> None:
    """A section of 65,535 images in a catalogue that is short."""
    image = make.make({}, boot=make.catalogue(make.boot_entry(0, 0), make.section(0xFFFF))).image
    assert "of a boot catalogue" in refused(image)


def test_path_tables_do_not_matter() -> None:
    """Directory records decide: no byte of the descriptor's path table fields is looked at."""
    image = make.make(TREE).image
    assert rebuilt(patched(image, 16 * SECTOR + 132, b"\xff" * 24)) == PLAIN


def outcome(image: bytes) -> str:
    """Read everything: "good", or "refused". Anything else is a failure."""
    try:
        rebuilt(image)
    except HostileInput:
        return "refused"
    return "good"


def fuzzed() -> bytes:
    extras = {**ROOT, b"A.;1": px(0o100644) + nm(b"abc"), b"D": px(0o040755) + nm(b"dir")}
    extras[b"A.;1"] += ce(40, 0, 60)
    tree: dict[bytes, Node] = {b"A.;1": [bytes(2048), SMALL], b"D": {b"E": {b"F.;1": SMALL}}}
    boot = make.catalogue(make.boot_entry(30, 4), make.section(1), make.boot_entry(31, 4))
    return make.make(
        tree, extras=extras, joliet={b"G": SMALL, b"A.;1": SMALL}, boot=boot, tail=bytes(30_000)
    ).image


def test_mutations() -> None:
    """One to three bytes changed where something stands: read, or refused; nothing else."""
    image, dice = fuzzed(), random.Random(5)
    assert outcome(image) == "good"
    places = [at for at, byte in enumerate(image) if byte and at >= 16 * SECTOR]
    outcomes: Counter[str] = Counter()
    for _ in range(1000):
        damaged = image
        for _ in range(dice.randint(1, 3)):
            at = dice.choice(places) + dice.choice((0, 0, 1))
            damaged = patched(damaged, at, bytes([dice.randrange(256)]))
        outcomes[outcome(damaged)] += 1
    assert outcomes["refused"] > 200
    assert outcomes["good"] > 50


def test_truncations() -> None:
    """No volume that is cut short is read."""
    image = fuzzed()
    assert {outcome(image[:length]) for length in range(0, len(image), 509)} == {"refused"}
