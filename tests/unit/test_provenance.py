"""Where bytes come from: every class and every column of a map as if each byte were followed by
itself, over random recipes; what others copy; and lies."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from rehydrator.bundle import provenance
from rehydrator.bundle.manifest import (
    Artifact,
    Form,
    Manifest,
    Pack,
    PackSpace,
    RecipeSpace,
    Release,
    StoredFile,
)
from rehydrator.bundle.provenance import CLASSES, Owner, Provenance, canonical_disks, pack_owners
from rehydrator.bundle.reader import spaces_of
from rehydrator.core.errors import HostileInput, LimitExceeded
from rehydrator.core.ops import (
    Copy,
    Decode,
    DecodeRule,
    Encode,
    EncodeRule,
    OffsetRule,
    Offsets,
    Rules,
    Series,
    SizeTable,
    Stream,
    StreamRule,
    is_zeros,
    zeros,
)
from rehydrator.core.reader import BytesReader
from rehydrator.engine import Machine, OpsSpace, ReaderSpace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rehydrator.core.ops import Op
    from rehydrator.engine import Space

DIGEST = "0" * 64
UNIT = 16


@dataclass
class Drawn:
    """A bundle that is made up: per space its bytes (of a pack) or ops, its pack, and what that was
    written for, as the one who draws it knows it."""

    spaces: list[bytes | list[Op]] = field(default_factory=list)
    packs: list[int] = field(default_factory=list)
    owners: list[Owner] = field(default_factory=list)
    rules: Rules = field(default_factory=Rules)
    artifacts: list[Artifact] = field(default_factory=list)

    def size(self, space: int) -> int:
        made = self.spaces[space]
        return len(made) if isinstance(made, bytes) else sum(op.length for op in made)

    def add(self, made: bytes | list[Op], pack: int) -> int:
        self.spaces.append(made)
        self.packs.append(pack)
        return len(self.spaces) - 1

    def add_file(self, space: int, virtual_size: int = 0) -> None:
        name = f"file{len(self.artifacts)}"
        image = Form(name, self.size(space), DIGEST, space)
        facts = ("qemu", "x86_64", "raw", "disk", image, None, 0, 0o644, False)
        self.artifacts.append(Artifact(*facts, virtual_size, virtual_size > 0))

    def owner(self, space: int) -> Owner:
        return self.owners[self.packs[space]]

    def forms(self) -> set[int | None]:
        return {each.image.space for each in self.artifacts}

    def manifest(self) -> Manifest:
        packs = tuple(
            Pack(StoredFile(f"packs/{n}", 1, DIGEST), 0, 1, DIGEST) for n in range(len(self.owners))
        )
        spaces: list[PackSpace | RecipeSpace] = []
        for number, made in enumerate(self.spaces):
            if isinstance(made, bytes):
                spaces.append(PackSpace(self.packs[number], len(made)))
            else:
                inputs = {each for op in made for each in spaces_of(op, self.rules)}
                size = self.size(number)
                spaces.append(RecipeSpace(self.packs[number], 0, 1, size, tuple(sorted(inputs))))
        release = Release("n", "s", "r", StoredFile("streams/s", 1, DIGEST), tuple(self.artifacts))
        return Manifest(packs, tuple(spaces), self.rules, (), (release,))

    def machine(self) -> Machine:
        spaces: dict[int, Space] = {
            number: ReaderSpace(BytesReader(made)) if isinstance(made, bytes) else OpsSpace(made)
            for number, made in enumerate(self.spaces)
        }
        return Machine(spaces, self.rules)

    def provenance(self) -> Provenance:
        return Provenance(self.manifest(), self.machine())


def drawn(seed: int) -> Drawn:
    """Groups of spaces as a build writes them: a disk and what is shared first or in between,
    files after it; each on anything below."""
    random_ = random.Random(seed)
    made = Drawn(rules=Rules(tables=(SizeTable(0, 1, 1),), offsets=(OffsetRule(0, 1, "little", 0, ()),)))
    # A table of unit sizes, holes among them, in the first pack, and a recipe that nobody needs.
    made.add(bytes(random_.choice((0, 0, 3, 7)) for _ in range(30)), 0)
    made.add([Copy(30, 0, 0)], 0)
    made.owners.append(Owner("shared", 0))
    disks: list[int] = []
    for kind in ["shared", "disk", "file", *random_.choices(["file", "file", "shared", "disk"], k=4)]:
        pack = len(made.owners)
        made.owners.append(Owner("shared", pack))
        made.add(random_.randbytes(random_.randint(30, 90)), pack)
        for _ in range(random_.randint(1, 3)):
            made.add([_op(random_, made) for _ in range(random_.randint(1, 8))], pack)
        top = len(made.spaces) - 1
        if kind == "disk":
            disks.append(top)
            made.owners[pack] = Owner("disk", top)
            # Of a size that nothing else has, and its artifact comes after it.
            made.spaces[top] = _sized(made.spaces[top], 2000 + top)
            top = made.add([Copy(9, top, 100), zeros(8), Copy(50, top, 90)], len(made.owners))
            made.owners.append(Owner("file", len(made.artifacts)))
            made.add_file(top, made.size(disks[-1]))
        elif kind == "file":
            made.owners[pack] = Owner("file", len(made.artifacts))
            made.add_file(top)
    return made


def _sized(ops: bytes | list[Op], size: int) -> list[Op]:
    assert isinstance(ops, list)
    return [*ops, zeros(size - sum(op.length for op in ops))]


def _op(random_: random.Random, made: Drawn) -> Op:
    """Any op over the spaces so far, and a rule for it."""
    space = random_.randrange(len(made.spaces))
    size = made.size(space)
    offset = random_.randrange(size)
    length = random_.randint(1, size - offset)
    rules = made.rules
    match random_.choice(
        ("copy", "copy", "copy", "zeros", "series", "offsets", "encode", "decode", "stream")
    ):
        case "copy":
            return Copy(length, space, offset)
        case "zeros":
            return zeros(length)
        case "series":
            return Series(8, 1, random_.randint(0, 3), 4, "big")
        case "offsets":
            return Offsets(random_.randint(1, 9), 0, 2, 0)
        case "encode":
            rule = EncodeRule("zlib", (), space, UNIT, 0)
            made.rules = Rules(
                rules.tables, rules.offsets, (*rules.encodes, rule), rules.decodes, rules.streams
            )
            return _encode(random_, made, offset)
        case "decode":
            rule_ = DecodeRule("zstd", (), space, random_.choice((None, 0)))
            made.rules = Rules(
                rules.tables, rules.offsets, rules.encodes, (*rules.decodes, rule_), rules.streams
            )
            return Decode(random_.randint(1, 99), len(rules.decodes), offset, length)
        case _:
            stream = StreamRule("lzma2", (), space)
            streams = (*rules.streams, stream)
            made.rules = Rules(rules.tables, rules.offsets, rules.encodes, rules.decodes, streams)
            return Stream(random_.randint(1, 99), len(rules.streams), offset, length)


def _encode(random_: random.Random, made: Drawn, offset: int) -> Op:
    table = made.spaces[0]
    index = random_.randrange(10)
    count = random_.randint(1, 20)
    length = sum(table[index : index + count])  # type: ignore[arg-type]
    return Encode(length, len(made.rules.encodes) - 1, offset, index, count) if length else zeros(1)


def labels(made: Drawn, disks: Sequence[int], space: int) -> list[str]:
    """The class of every byte of a space, followed by itself."""
    ops = made.spaces[space]
    if isinstance(ops, bytes):
        return ["own"] * len(ops)
    found: list[str] = []
    for op in ops:
        if isinstance(op, Copy):
            below = labels(made, disks, op.space)[op.offset : op.offset + op.length]
            found += [crossed(made, disks, made.owner(space), op.space, label) for label in below]
            continue
        label = "encoded" if isinstance(op, Encode | Stream) else "zeros" if is_zeros(op) else "tables"
        if isinstance(op, Decode):
            rule = made.rules.decodes[op.rule]
            label = "decoded"
            if rule.prefix is not None:
                label = crossed(made, disks, made.owner(space), rule.input, "own")
        found += [label] * op.length
    return found


def crossed(made: Drawn, disks: Sequence[int], reader: Owner, space: int, label: str) -> str:
    """What a byte of `space` is to whoever reads it."""
    owner = made.owner(space)
    if space in disks:
        return "zeros" if label == "zeros" else "canonical"
    if owner == reader:
        return label
    if space in made.forms():
        return "zeros" if label == "zeros" else "file"
    if label == "own":
        return "canonical" if owner.kind == "disk" else "file"
    return label


def sources(made: Drawn, disk: int, space: int, low: int, high: int) -> set[int]:
    """The bytes of a disk that [low, high) of a space is made of, followed one by one."""
    ops = made.spaces[space]
    if space == disk:
        return set(range(low, high))
    if isinstance(ops, bytes):
        return set()
    found: set[int] = set()
    here = 0
    for op in ops:
        start, stop = max(low, here) - here, min(high, here + op.length) - here
        if start < stop:
            for below, at in _bytes_of(made, op, start, stop):
                found |= sources(made, disk, below, at, at + 1)
        here += op.length
    return found


def _bytes_of(made: Drawn, op: Op, start: int, stop: int) -> list[tuple[int, int]]:
    if isinstance(op, Copy):
        return [(op.space, at) for at in range(op.offset + start, op.offset + stop)]
    if isinstance(op, Stream):
        return [(made.rules.streams[op.rule].input, at) for at in range(op.offset, op.offset + op.plain)]
    if isinstance(op, Decode):
        return [(made.rules.decodes[op.rule].input, at) for at in range(op.offset, op.offset + op.stored)]
    if not isinstance(op, Encode):
        return []
    table, space, here, found = made.spaces[0], made.rules.encodes[op.rule].input, 0, []
    for unit in range(op.count):
        size = table[op.index + unit]
        assert isinstance(size, int)
        if size and here < stop and here + size > start:
            first = op.offset + unit * UNIT
            found += [(space, at) for at in range(first, min(first + UNIT, made.size(space)))]
        here += size
    return found


SEEDS = range(24)


@pytest.mark.parametrize("seed", SEEDS)
def test_classes_of_random_recipes(seed: int) -> None:
    """The classes of every file and every disk are those of its bytes, each followed by itself,
    and sum to its size; so are those of any span of a disk."""
    made = drawn(seed)
    found = made.provenance()
    disks = list(found.disks)
    assert set(disks) == {owner.number for owner in made.owners if owner.kind == "disk"}
    assert found.packs == made.owners
    for place, artifact in enumerate(made.artifacts):
        space = artifact.image.space
        assert space is not None
        followed = labels(made, disks, space)
        expected = Counter(crossed(made, disks, Owner("file", place), space, each) for each in followed)
        counts = found.of_form(place, space)
        assert {name: count for name, count in counts.items() if count} == expected
        assert sum(counts.values()) == artifact.image.size
    random_ = random.Random(seed)
    for disk in disks:
        followed = labels(made, disks, disk)
        low, high = sorted(random_.randrange(len(followed) + 1) for _ in range(2))
        assert found.of_disk(disk) == dict.fromkeys(CLASSES, 0) | Counter(followed)
        assert found.of_span(disk, low, high) == dict.fromkeys(CLASSES, 0) | Counter(followed[low:high])


@pytest.mark.parametrize("seed", SEEDS)
def test_map_of_random_recipes(seed: int) -> None:
    """A map's columns tile the disk, and each file's row counts the data of every column that the
    file is made of, through copies, encoders and decoders."""
    made = drawn(seed)
    found = made.provenance()
    for disk in found.disks:
        shown = found.disk_map(disk, 40)
        ops = made.spaces[disk]
        assert isinstance(ops, list)
        data = [not is_zeros(op) for op in ops for _ in range(op.length)]
        edges = [0, *(column.end for column in shown.columns)]
        assert [column.start for column in shown.columns] == edges[:-1]
        assert edges[-1] == made.size(disk)
        expected = {}
        for place, artifact in enumerate(made.artifacts):
            assert artifact.image.space is not None
            read = sources(made, disk, artifact.image.space, 0, artifact.image.size)
            spans = [range(column.start, column.end) for column in shown.columns]
            counts = tuple(sum(data[at] for at in span if at in read) for span in spans)
            if any(counts):
                expected[place] = counts
        assert {place: row.read for row in shown.rows for place in row.files} == expected
        assert [column.data for column in shown.columns] == [
            sum(data[column.start : column.end]) for column in shown.columns
        ]
        for column in shown.columns:
            assert sum(column.origins.values()) == column.end - column.start


def simple(disk: list[Op], file: list[Op], pack: int = 100) -> Drawn:
    """A disk in pack 0, and a canonical file of it in pack 1."""
    made = Drawn(owners=[Owner("disk", 1), Owner("file", 0)])
    made.add(bytes(range(pack)), 0)
    made.add(disk, 0)
    made.add_file(made.add(file, 1), made.size(1))
    return made


def test_long_runs_of_zeros_are_folded() -> None:
    """A run of zeros of 10 GiB is one column, so that the data before and behind it is seen; a
    short one is not."""
    disk: list[Op] = [Copy(64, 0, 0), zeros(1), Copy(35, 0, 64), zeros(10 << 30), Copy(10, 0, 0)]
    size = sum(op.length for op in disk)
    shown = simple(disk, [Copy(size, 1, 0)]).provenance().disk_map(1, 11)
    folded = [(column.start, column.end) for column in shown.columns if column.hole]
    assert folded == [(100, 100 + (10 << 30))]
    assert [column.end - column.start for column in shown.columns] == [10] * 10 + [10 << 30, 10]


def test_disk_of_zeros() -> None:
    """A disk of zeros alone is one column, and nobody reads data of it."""
    made = simple([zeros(1 << 40)], [Copy(1 << 40, 1, 0)])
    shown = made.provenance().disk_map(1, 512)
    assert [(column.start, column.end, column.hole) for column in shown.columns] == [(0, 1 << 40, True)]
    assert shown.rows == ()
    assert made.provenance().of_form(0, 2)["zeros"] == 1 << 40


def test_files_that_read_the_same_are_one_row() -> None:
    """Two files that copy the same bytes share a row of a map."""
    made = simple([Copy(100, 0, 0)], [Copy(100, 1, 0)])
    made.owners.append(Owner("file", 1))
    made.add_file(made.add([zeros(5), Copy(100, 1, 0)], 2))
    assert [row.files for row in made.provenance().disk_map(1, 10).rows] == [(0, 1)]


def test_pack_without_recipes() -> None:
    """The first of several packs has no recipe in it, and was written for what reads it."""
    made = Drawn(owners=[Owner("file", 0)] * 2)
    made.add(bytes(50), 0)
    made.add(bytes(50), 1)
    made.add_file(made.add([Copy(50, 0, 0), Copy(50, 1, 0)], 1))
    assert pack_owners(made.manifest(), ()) == [Owner("file", 0)] * 2
    assert made.provenance().of_form(0, 2)["own"] == 100


def test_canonical_as_published() -> None:
    """Where a compressed file is what is stored, its disk stands above its image, in its pack: the
    file's own bytes are the compressed ones, its image is decoded, and a sibling's are canonical."""
    made = Drawn(owners=[Owner("file", 0), Owner("file", 1)])
    made.rules = Rules(decodes=(DecodeRule("xz", (), 1),))
    made.add(bytes(60), 0)
    published = made.add([Copy(60, 0, 0)], 0)
    image = made.add([Decode(100, 0, 0, 60)], 0)
    disk = made.add([zeros(5), Copy(95, image, 5)], 0)
    made.add_file(image, 100)
    made.artifacts[0] = replace(made.artifacts[0], published=Form("f.xz", 60, DIGEST, published))
    made.add_file(made.add([Copy(50, disk, 0)], 1))
    found = made.provenance()
    assert (found.disks, found.packs) == ({disk: 0}, made.owners)
    assert found.of_form(0, published)["own"] == 60
    assert found.of_form(0, image)["decoded"] == found.of_disk(disk)["decoded"] + 5 == 100
    assert found.of_form(1, disk + 1)["canonical"] == 45
    assert [row.files for row in found.disk_map(disk, 10).rows] == [(1,)]


def test_pack_of_nothing() -> None:
    """A file that is a disk that is stored already has an empty pack, and that is what it adds."""
    made = simple([Copy(100, 0, 0)], [zeros(3), Copy(100, 1, 0)])
    made.owners.append(Owner("file", 1))
    made.add(b"", 2)
    made.add_file(1)
    assert pack_owners(made.manifest(), [1]) == made.owners
    assert made.provenance().of_form(1, 1)["canonical"] == 100


def test_no_canonical_disk() -> None:
    """A bundle of files that are no disks has no map."""
    made = Drawn(owners=[Owner("file", 0)])
    made.add(bytes(50), 0)
    made.add_file(made.add([Copy(50, 0, 0)], 0))
    assert canonical_disks(made.manifest()) == {}
    assert made.provenance().disks == {}


def test_copy_from_outside() -> None:
    """A copy that leaves its space is refused, though nobody ever reads it."""
    with pytest.raises(HostileInput, match="space 0: bytes 90\\+20 lie outside of its 100 bytes"):
        simple([Copy(20, 0, 90)], [Copy(5, 1, 0)]).provenance()


def test_units_outside_of_their_table() -> None:
    """So is an encoded unit that its table does not have."""
    made = simple([Copy(100, 0, 0)], [Encode(3, 0, 0, 200, 9)])
    made.rules = Rules(tables=(SizeTable(0, 1, 1),), encodes=(EncodeRule("zlib", (), 1, UNIT, 0),))
    with pytest.raises(HostileInput, match="units 200\\+9 lie outside"):
        made.provenance().disk_map(1, 10)


def test_too_many_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes of more ops than may be held are refused before they are held."""
    monkeypatch.setattr(provenance, "MAX_OPS", 4)
    assert simple([Copy(9, 0, 0)] * 2, [Copy(1, 1, 0)] * 2).provenance().disks == {1: 0}
    with pytest.raises(LimitExceeded, match="more than 4 ops"):
        simple([Copy(9, 0, 0)] * 2, [Copy(1, 1, 0)] * 3).provenance()


def test_too_many_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """So is a file that is made of a disk in more pieces than a map can take."""
    monkeypatch.setattr(provenance, "_MAX_SPANS", 2)
    with pytest.raises(LimitExceeded, match="space 2 is made of more than 2 spans"):
        simple([Copy(100, 0, 0)], [Copy(1, 1, 5)] * 3).provenance().disk_map(1, 10)
