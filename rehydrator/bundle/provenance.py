"""Where the bytes of a bundle's files come from.

Every byte of a form belongs to one class, so that the classes of a form sum to its size:

    canonical   data of a disk that is stored, or derived from live media, for all files
    file        bytes that another file brought
    encoded     what an encoder makes again, from whatever it reads (Encode, Stream)
    decoded     what something stored encoded decodes to: blocks of a file system, an .xz
    own         stored for this file alone: literals, residue
    tables      computed: series that are not zero, offsets of units
    zeros       runs of zeros, also where they are copied

A copy goes down to what the copied bytes are, until it meets a border: a canonical disk, or
another file. What is own there is no longer own here. Everything is known by sums over ops, each
read once; bytes of artifacts are never made.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from rehydrator.bundle.manifest import RecipeSpace
from rehydrator.core.errors import HostileInput, LimitExceeded
from rehydrator.core.ops import Copy, Decode, Encode, Stream, is_zeros
from rehydrator.core.reader import check_span
from rehydrator.engine import Recipe

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from rehydrator.bundle.manifest import Artifact, Manifest
    from rehydrator.core.ops import Op
    from rehydrator.engine import Machine

CLASSES = ("canonical", "file", "encoded", "decoded", "own", "tables", "zeros")
_CANONICAL, _FILE, _ENCODED, _DECODED, _OWN, _TABLES, _ZEROS = range(len(CLASSES))
_COPIED = -1

# What the classes of a space are to whoever copies from it.
_View = tuple[int, ...]
_SAME: _View = tuple(range(len(CLASSES)))
_OF_CANONICAL: _View = (_CANONICAL,) * _ZEROS + (_ZEROS,)
_OF_FILE: _View = (_FILE,) * _ZEROS + (_ZEROS,)

# An op that others copy from costs 45 to 80 bytes here: 160 MiB at most.
MAX_OPS = 1 << 21

# Spans of one space that one file reads, and units of encode rules that are looked at.
_MAX_SPANS = 1 << 20
_MAX_UNITS = 1 << 26

# Runs of zeros that are one column of a disk's map: so many, each at least that part of its data.
_FOLDED, _FOLDED_PART = 32, 64

Span = tuple[int, int]


class Owner(NamedTuple):
    """What stored bytes were stored for: the file of that place in the manifest, the canonical
    disk in that space, or, for a pack of that number, several at once."""

    kind: Literal["file", "disk", "shared"]
    number: int


@dataclass(frozen=True, slots=True)
class Column:
    """The bytes [start, end) of a disk; `data` of them are outside of its runs of zeros, and
    `origins` tells their classes. `hole`: a long run of zeros, one column whatever its length."""

    start: int
    end: int
    hole: bool
    data: int
    origins: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Row:
    """Places in the manifest of files that read the same of a disk, and the bytes of each
    column's data that they read."""

    files: tuple[int, ...]
    read: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DiskMap:
    """Which files read what of a canonical disk."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def canonical_disks(manifest: Manifest) -> dict[int, int]:
    """Spaces of the guest disks that are stored, and the place of the artifact of each.

    The manifest does not name them: such a disk is the uppermost recipe of `virtual_size` bytes
    that a canonical artifact's image stands on, or, where the image is what is stored, that stands
    on the image and was written with it.
    """
    disks: dict[int, int] = {}
    for place, artifact in enumerate(manifest.artifacts()):
        if artifact.canonical and artifact.virtual_size and artifact.image.space is not None:
            found = [
                number
                for number in _around(manifest, artifact.image.space)
                if isinstance(manifest.spaces[number], RecipeSpace)
                and manifest.spaces[number].size == artifact.virtual_size
            ]
            if found:
                disks.setdefault(max(found), place)
    return disks


def _around(manifest: Manifest, image: int) -> set[int]:
    """The spaces that an image stands on, and those of its pack that stand on it."""
    pack = manifest.spaces[image].pack
    return manifest.reach(image) | {n for n in _above(manifest, image) if manifest.spaces[n].pack == pack}


def _above(manifest: Manifest, space: int) -> list[int]:
    """The spaces that stand on a space, the uppermost first, itself last."""
    above = {space}
    for number in range(space + 1, len(manifest.spaces)):
        if not above.isdisjoint(_inputs(manifest, number)):
            above.add(number)
    return sorted(above, reverse=True)


def _inputs(manifest: Manifest, number: int) -> tuple[int, ...]:
    space = manifest.spaces[number]
    return space.inputs if isinstance(space, RecipeSpace) else ()


def pack_owners(manifest: Manifest, disks: Collection[int]) -> list[Owner]:
    """What each pack was written for: that whose recipe lies in it. A pack without recipes is
    the first one of a disk or file of several packs, and goes with the recipe that reads it; or
    nobody reads it, because a file had nothing to add, and goes with one that has no other."""
    owners: dict[int, Owner] = {}
    for place, artifact in enumerate(manifest.artifacts()):
        for form in artifact.forms():
            if form.space is not None and form.space not in disks:
                owners.setdefault(manifest.spaces[form.space].pack, Owner("file", place))
    for disk in disks:
        owners.setdefault(manifest.spaces[disk].pack, Owner("disk", disk))
    recipes = [space for space in manifest.spaces if isinstance(space, RecipeSpace)]
    own = {space.pack for space in recipes}
    for space in recipes:
        for below in (manifest.spaces[number].pack for number in space.inputs):
            if below not in own:
                owners.setdefault(below, owners.get(space.pack, Owner("shared", space.pack)))
    found = set(owners.values())
    places = range(len(manifest.artifacts()))
    homeless = iter([place for place in places if Owner("file", place) not in found])
    for number in range(len(manifest.packs)):
        if number not in owners:
            mine = None if number in own else next(homeless, None)
            owners[number] = Owner("shared", number) if mine is None else Owner("file", mine)
    return [owners[number] for number in range(len(manifest.packs))]


class _Index:
    """The classes of every beginning [0, x) of a recipe's space: per op where it begins, its
    class or what it copies, and per class the sum in front of it, less what the copied space has
    in front of the copied bytes; so one lookup per space gives any span."""

    def __init__(self) -> None:
        self.starts, self.kinds = array("q"), array("b")
        self.spaces, self.offsets = array("q"), array("q")
        self.sums: dict[int, array[int]] = {}

    def add(self, start: int, kind: int, before: list[int], copied: Copy | None) -> None:
        for number, value in enumerate(before):
            if value and number not in self.sums:
                self.sums[number] = array("q", bytes(8 * len(self.starts)))
        for number, sums in self.sums.items():
            sums.append(before[number])
        self.starts.append(start)
        self.kinds.append(kind)
        self.spaces.append(copied.space if copied else 0)
        self.offsets.append(copied.offset if copied else 0)


class Provenance:
    """The classes of every space of a bundle, and what its files read of canonical disks."""

    def __init__(self, manifest: Manifest, machine: Machine) -> None:
        """Reads the ops of every recipe that a form or a disk stands on, once.

        Raises:
            HostileInput: a malformed recipe.
            LimitExceeded: more than MAX_OPS ops.
        """
        self.manifest, self._machine = manifest, machine
        self.disks = canonical_disks(manifest)
        self.packs = pack_owners(manifest, self.disks)
        forms = [form for artifact in manifest.artifacts() for form in artifact.forms()]
        self._forms = {form.space for form in forms if form.space is not None}
        self._indexes: dict[int, _Index] = {}
        self._totals: dict[int, list[int]] = {}
        self._ops = self._units_seen = 0
        self._walk()

    def owner(self, space: int) -> Owner:
        """What a space was written for."""
        return self.packs[self.manifest.spaces[space].pack]

    def of_form(self, place: int, space: int) -> dict[str, int]:
        """The classes of the form in `space` of the artifact at `place`, in bytes."""
        return _named(_seen(self._total(space), self._view(Owner("file", place), space)))

    def of_disk(self, disk: int) -> dict[str, int]:
        """The classes of a canonical disk itself, in bytes."""
        return _named(self._total(disk))

    def of_span(self, space: int, start: int, end: int) -> dict[str, int]:
        """The classes of the bytes [start, end) of a space that others copy from, or a disk."""
        pairs = zip(self._before(space, end), self._before(space, start), strict=True)
        return _named([high - low for high, low in pairs])

    def disk_map(self, disk: int, columns: int) -> DiskMap:
        """Which files read what of a canonical disk, in about so many columns.

        Bytes that only help to decode (prefixes) are not counted: the file has others there.

        Raises:
            LimitExceeded: files read it in too many pieces.
        """
        size = self._machine.space(disk).size
        data = _data_spans(self._recipe(disk).ops())
        places = _columns(data, size, columns)
        held = _in_columns(data, places)
        shown = tuple(
            Column(start, end, hole, count, self.of_span(disk, start, end))
            for (start, end, hole), count in zip(places, held, strict=True)
        )
        above = _above(self.manifest, disk)
        rows: dict[tuple[int, ...], list[int]] = {}
        for place, artifact in enumerate(self.manifest.artifacts()):
            read = tuple(_in_columns(_common(self._reads(artifact, disk, above), data), places))
            if any(read):
                rows.setdefault(read, []).append(place)
        return DiskMap(shown, tuple(Row(tuple(files), read) for read, files in rows.items()))

    def _recipe(self, number: int) -> Recipe:
        space = self._machine.space(number)
        if not isinstance(space, Recipe):
            raise HostileInput(f"space {number} is no recipe")
        return space

    def _walk(self) -> None:
        copied = set(self.disks)
        wanted = copied | self._forms
        for number in range(len(self.manifest.spaces) - 1, -1, -1):
            if number in wanted:
                copied.update(_inputs(self.manifest, number))
                wanted.update(_inputs(self.manifest, number))
        for number in sorted(wanted):
            if isinstance(self.manifest.spaces[number], RecipeSpace):
                index = _Index() if number in copied else None
                self._totals[number] = self._sum_up(number, index)
                if index:
                    self._indexes[number] = index

    def _sum_up(self, number: int, index: _Index | None) -> list[int]:
        """The classes of a space; `index` gets all its ops."""
        total, here, owner = [0] * len(CLASSES), 0, self.owner(number)
        for op in self._recipe(number).ops():
            self._ops += 1
            if self._ops > MAX_OPS:
                raise LimitExceeded(f"the bundle's recipes have more than {MAX_OPS} ops: too many to report")
            if isinstance(op, Copy):
                check_span(op.offset, op.length, self.manifest.spaces[op.space].size, f"space {op.space}")
                view = self._view(owner, op.space)
                low = _seen(self._before(op.space, op.offset), view)
                high = _seen(self._before(op.space, op.offset + op.length), view)
                if index:
                    index.add(here, _COPIED, [a - b for a, b in zip(total, low, strict=True)], op)
                total = [a + b - c for a, b, c in zip(total, high, low, strict=True)]
            else:
                kind = self._kind(op, owner)
                if index:
                    index.add(here, kind, total, None)
                total[kind] += op.length
            here += op.length
        return total

    def _kind(self, op: Op, owner: Owner) -> int:
        """The class of what an op other than Copy makes."""
        if is_zeros(op):
            return _ZEROS
        if isinstance(op, Encode | Stream):
            return _ENCODED
        if not isinstance(op, Decode):
            return _TABLES
        rule = self._machine.rules.decodes[op.rule]
        # What is coded against a prefix is residue, stored as it could be stored smallest.
        return _DECODED if rule.prefix is None else self._view(owner, rule.input)[_OWN]

    def _view(self, reader: Owner, space: int) -> _View:
        """What the classes of `space` are to `reader`."""
        owner = self.owner(space)
        if space in self.disks:
            return _OF_CANONICAL
        if owner == reader:
            return _SAME
        if space in self._forms:
            return _OF_FILE
        mine = _CANONICAL if owner.kind == "disk" else _FILE
        return tuple(mine if number == _OWN else number for number in _SAME)

    def _total(self, space: int) -> list[int]:
        if space in self._totals:
            return self._totals[space]
        return self._before(space, self.manifest.spaces[space].size)

    def _before(self, space: int, end: int) -> list[int]:
        """The classes of the bytes [0, end) of a space."""
        total, view = [0] * len(CLASSES), _SAME
        while (index := self._indexes.get(space)) is not None and end:
            at = bisect_right(index.starts, end - 1) - 1
            for number, sums in index.sums.items():
                total[view[number]] += sums[at]
            end -= index.starts[at]
            if index.kinds[at] != _COPIED:
                total[view[index.kinds[at]]] += end
                return total
            below = self._view(self.owner(space), index.spaces[at])
            view = tuple(view[number] for number in below)
            space, end = index.spaces[at], end + index.offsets[at]
        total[view[_OWN]] += end
        return total

    def _reads(self, artifact: Artifact, disk: int, above: Sequence[int]) -> list[Span]:
        """The spans of a disk that an artifact's image consists of."""
        assert artifact.image.space is not None
        wanted: dict[int, list[Span]] = {artifact.image.space: [(0, artifact.image.size)]}
        for number in above[:-1]:
            if number in wanted:
                for space, spans in self._needed(number, _merged(wanted[number])).items():
                    wanted.setdefault(space, []).extend(spans)
        return _merged(wanted.get(disk, []))

    def _needed(self, number: int, wanted: Sequence[Span]) -> dict[int, list[Span]]:
        """The spans of other spaces that the wanted spans of a recipe's space are made of."""
        found: dict[int, list[Span]] = {}
        here = place = count = 0
        for op in self._recipe(number).ops():
            stop = here + op.length
            while place < len(wanted) and wanted[place][0] < stop:
                low, high = max(wanted[place][0], here), min(wanted[place][1], stop)
                for space, start, end in self._sources(op, low - here, high - here):
                    found.setdefault(space, []).append((start, end))
                    count += 1
                if count > _MAX_SPANS:
                    raise LimitExceeded(f"space {number} is made of more than {_MAX_SPANS} spans of others")
                if wanted[place][1] > stop:
                    break
                place += 1
            here = stop
        return found

    def _sources(self, op: Op, low: int, high: int) -> Iterator[tuple[int, int, int]]:
        """Spans (space, start, end) that the bytes [low, high) of an op are made from."""
        if isinstance(op, Copy):
            yield op.space, op.offset + low, op.offset + high
        elif isinstance(op, Stream):
            yield self._machine.rules.streams[op.rule].input, op.offset, op.offset + op.plain
        elif isinstance(op, Decode):
            yield self._machine.rules.decodes[op.rule].input, op.offset, op.offset + op.stored
        elif isinstance(op, Encode):
            yield from self._units(op, low, high)

    def _units(self, op: Encode, low: int, high: int) -> Iterator[tuple[int, int, int]]:
        """The plain bytes of the units that lie in [low, high) of an op, those of size 0 left out."""
        rule = self._machine.rules.encodes[op.rule]
        ends, size = self._machine.unit_ends(rule.table), self._machine.space(rule.input).size
        last = op.index + op.count
        if last >= len(ends):
            raise HostileInput(f"units {op.index}+{op.count} lie outside of their size table")
        base = ends[op.index]
        unit = bisect_right(ends, base + low, op.index, last) - 1
        while unit < last and ends[unit] - base < high:
            first = unit
            while unit < last and ends[unit] < ends[unit + 1] and ends[unit] - base < high:
                unit += 1
            self._units_seen += unit - first + 1
            if self._units_seen > _MAX_UNITS:
                raise LimitExceeded(f"files read more than {_MAX_UNITS} units of the canonical disks")
            start, stop = (op.offset + (each - op.index) * rule.unit for each in (first, unit))
            if start < min(stop, size):
                yield rule.input, start, min(stop, size)
            # The next unit that is stored: holes in between may be millions.
            unit = max(unit, bisect_right(ends, ends[unit], unit, last + 1) - 1)


def _seen(counts: Sequence[int], view: _View) -> list[int]:
    """Classes as whoever copies sees them."""
    seen = [0] * len(CLASSES)
    for number, count in enumerate(counts):
        seen[view[number]] += count
    return seen


def _named(counts: Sequence[int]) -> dict[str, int]:
    return dict(zip(CLASSES, counts, strict=True))


def _merged(spans: list[Span]) -> list[Span]:
    """The same bytes as disjoint ascending spans."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        elif start < end:
            merged.append((start, end))
    return merged


def _data_spans(ops: Iterable[Op]) -> list[Span]:
    """Where a recipe makes something else than runs of zeros."""
    spans: list[Span] = []
    here = 0
    for op in ops:
        if not is_zeros(op):
            if spans and spans[-1][1] == here:
                spans[-1] = (spans[-1][0], here + op.length)
            else:
                spans.append((here, here + op.length))
        here += op.length
    return spans


def _common(left: Sequence[Span], right: Sequence[Span]) -> list[Span]:
    """What two rows of disjoint ascending spans have in common."""
    common, one, other = [], 0, 0
    while one < len(left) and other < len(right):
        start, end = max(left[one][0], right[other][0]), min(left[one][1], right[other][1])
        if start < end:
            common.append((start, end))
        if left[one][1] < right[other][1]:
            one += 1
        else:
            other += 1
    return common


def _columns(data: Sequence[Span], size: int, count: int) -> list[tuple[int, int, bool]]:
    """[0, size) in columns of equal width (start, end, False), at most `count` and one for each
    stretch; and each long run of zeros between them, (start, end, True)."""
    holes = _holes(data, size)
    width = max(1, -(-(size - sum(high - low for low, high in holes)) // count))
    columns, here = [], 0
    for low, high in [*holes, (size, size)]:
        columns += [(at, min(at + width, low), False) for at in range(here, low, width)]
        columns += [(low, high, True)] if low < high else []
        here = high
    return columns


def _holes(data: Sequence[Span], size: int) -> list[Span]:
    """The longest runs of zeros beside the data, ascending."""
    edges = [0, *(edge for span in data for edge in span), size]
    least = sum(end - start for start, end in data) // _FOLDED_PART + 1
    gaps = [(low, high) for low, high in zip(edges[::2], edges[1::2], strict=True) if high - low >= least]
    return sorted(sorted(gaps, key=lambda gap: gap[0] - gap[1])[:_FOLDED])


def _in_columns(spans: Sequence[Span], columns: Sequence[tuple[int, int, bool]]) -> list[int]:
    """The bytes of disjoint ascending spans in each column."""
    counts, column = [0] * len(columns), 0
    for start, end in spans:
        while columns[column][1] <= start:
            column += 1
        at = column
        while at < len(columns) and columns[at][0] < end:
            counts[at] += min(end, columns[at][1]) - max(start, columns[at][0])
            at += 1
    return counts
