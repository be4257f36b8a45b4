"""The maps on the page of `report`: strips of a canonical disk, one for files that read the same."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from rehydrator.cli.common import human
from rehydrator.cli.report_markup import (
    FULL,
    LEAST,
    WHOLE,
    Markup,
    Part,
    bars,
    chart,
    digits,
    drawn,
    element,
    legend,
    more,
    percent,
    row,
    section,
    table,
    tick,
)
from rehydrator.metadata.names import image_format

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_SHARES = {
    "all": "all of the data there",
    "nearly": "99 % or more, but not all",
    "most": "half or more",
    "some": "less than half",
    "none": "nothing",
    "fold": "no data: a run of zeros, long ones folded",
}

# Where across a strip a run of zeros is drawn, in per cent.
_BANDS = {"fold": (40, 20)}

# One stamped column of hundreds would not be seen: these get a least width, and are drawn last.
_SMALL = frozenset({"nearly", "most", "some"})

# Columns that a folded run of zeros is wide; ticks below a map, and folds that are named there.
_FOLD = 4
_TICKS = 8
_NAMED = 5

# Files that are named beside their strip; more of them are named below the map.
_FEW = 2

_ABOUT = (
    "A strip is the disk from its beginning to its end, for files that read the same of it, as it is, "
    "encoded or decoded. Those that read 99 % of it or more, all but a platform's stamp for example, "
    "share a strip, which shows the least that they read. What a file has otherwise it does not read. The "
    "scale is not even: where there is data, a column is the same number of bytes, and a long run of zeros "
    "is folded to a short line, whatever its length; the longest are named below the map."
)


class _Run(NamedTuple):
    """Columns that look alike: [first, end), and what a pointer over them shows."""

    kind: str
    first: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class _Group:
    """Files of one strip: what each reads in bytes, the least that they read of each column, and
    how it looks."""

    files: tuple[int, ...]
    sums: tuple[int, ...]
    read: tuple[int, ...]
    kinds: tuple[str, ...]


def maps(found: dict[str, Any], meanings: Mapping[str, str]) -> Markup:
    """The maps of all canonical disks; `meanings` are those of the classes of bytes."""
    shown = [each for disk in found["maps"] for each in _disk_map(disk, found, meanings)]
    none = [element("p", "There is no canonical disk in this bundle.")]
    return section("map", "Which files share what of the canonical disk", _ABOUT, *(shown or none))


def _disk_map(disk: dict[str, Any], found: dict[str, Any], meanings: Mapping[str, str]) -> list[Markup]:
    about, columns = found["disks"][disk["disk"] - 1], disk["columns"]
    labels = _labels(found["files"])
    places, data = _places(columns), sum(column[3] for column in columns)
    groups = _groups(disk, data)
    sources = _sources(disk, found["classes"], meanings)
    strips = [_strip("The disk itself", sources, places, "")]
    strips += [
        _strip(_name(each, labels), _read(columns, each), places, _in_words(data, each)) for each in groups
    ]
    strips.append(element("li", element("span", class_="name"), _axis(columns, places)))
    size = f"{human(about['size'])}, {human(data)} of data"
    return [
        chart(
            element("h3", f"Canonical disk {disk['disk']}, {about['arch']}: {size}"),
            *_legends(sources, groups, meanings),
            bars(["Files", "Where the disk has what they read", "Reads"], strips, "bars maps"),
        ),
        *_named(groups, labels),
        *_without(disk, about["file"], labels),
        more("The same as tables", *_tables(columns, groups, labels, data)),
    ]


def _labels(files: Sequence[dict[str, Any]]) -> list[str]:
    """Each file in two words; three, where there are several architectures."""
    several = len({file["arch"] for file in files}) > 1
    labels = []
    for file in files:
        kind = file["role"] if file["format"] == "pxe" else image_format(file["format"])
        labels.append(f"{file['platform']} {kind}" + (f" {file['arch']}" if several else ""))
    return labels


def _groups(disk: dict[str, Any], data: int) -> list[_Group]:
    """Files by how their strips look; who reads most is first."""
    held = [column[3] for column in disk["columns"]]
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for each in disk["rows"]:
        alike.setdefault(_look(held, each["read"]), []).append(each)
    groups = []
    for rows in alike.values():
        sums = sorted((place, sum(each["read"])) for each in rows for place in each["files"])
        read = tuple(min(counts) for counts in zip(*(each["read"] for each in rows), strict=True))
        files = tuple(place for place, _ in sums)
        groups.append(_Group(files, tuple(count for _, count in sums), read, tuple(map(_share, held, read))))
    return sorted(groups, key=lambda each: (data - max(each.sums), each.files))


def _look(held: Sequence[int], read: Sequence[int]) -> tuple[str, ...]:
    """The colours of a strip; one alone, where nearly all is read of the disk as a whole."""
    whole = _share(sum(held), sum(read))
    return (whole,) if whole == "nearly" else tuple(map(_share, held, read))


def _legends(sources: Sequence[_Run], groups: Sequence[_Group], meanings: Mapping[str, str]) -> list[Markup]:
    """What the colours mean that there are."""
    classes, shares = {run.kind for run in sources}, {kind for each in groups for kind in each.kinds}
    return [
        element("p", "First strip, where most of the disk's own data comes from:"),
        legend({name: text for name, text in meanings.items() if name in classes}),
        element("p", "Other strips, the share of the data there that is read, from strong to faint:"),
        legend({name: text for name, text in _SHARES.items() if name in shares | {"fold"} & classes}, _BANDS),
    ]


def _name(group: _Group, labels: Sequence[str]) -> str:
    count = len(group.files)
    return ", ".join(labels[place] for place in group.files) if count <= _FEW else f"{count} files"


def _named(groups: Iterable[_Group], labels: Sequence[str]) -> list[Markup]:
    """The files of strips that only count them."""
    large = [each for each in groups if len(each.files) > _FEW]
    return [
        element("p", f"The {len(each.files)} files: {', '.join(labels[place] for place in each.files)}.")
        for each in large
    ]


def _without(disk: dict[str, Any], own: int, labels: Sequence[str]) -> list[Markup]:
    """Who reads nothing of a disk; its own file may be what it is decoded from."""
    readers = {own, *(place for each in disk["rows"] for place in each["files"])}
    others = [label for place, label in enumerate(labels) if place not in readers]
    return [element("p", f"Nothing of it is read by: {', '.join(others)}.")] if others else []


def _places(columns: Sequence[Sequence[int]]) -> list[int]:
    """Where each column begins in a strip, and the end."""
    places, total = [0], 0
    for column in columns:
        total += _FOLD if column[2] else 1
        places.append(total)
    return [place * WHOLE // total if total else 0 for place in places]


def _sources(disk: dict[str, Any], classes: Sequence[str], meanings: Mapping[str, str]) -> list[_Run]:
    """The class that most of each column's data is of."""
    kinds = []
    for column, counts in zip(disk["columns"], disk["origins"], strict=True):
        named = dict(zip(classes, counts, strict=True)) | {"zeros": 0}
        most = max(named, key=lambda name: named[name])
        kinds.append("fold" if column[2] or not named[most] else most)
    said = {**{name: f"mostly {text}" for name, text in meanings.items()}, "fold": "no data"}
    return [_Run(kind, first, end, said[kind]) for kind, first, end in _alike(kinds)]


def _read(columns: Sequence[Sequence[int]], group: _Group) -> list[_Run]:
    """What is read, in runs of columns of one colour."""
    runs, least = [], "at least " if len(set(group.sums)) > 1 else ""
    for kind, first, end in _alike(group.kinds):
        held, count = sum(column[3] for column in columns[first:end]), sum(group.read[first:end])
        text = f"{digits(count)} of {digits(held)} bytes of data ({percent(count, held)})"
        runs.append(_Run(kind, first, end, f"{least}{text}" if held else "no data"))
    return runs


def _share(held: int, read: int) -> str:
    """The colour of a column of which `read` of `held` bytes are read."""
    if not held:
        return "fold"
    if read in {0, held}:
        return "all" if read else "none"
    if read * 100 >= held * 99:
        return "nearly"
    return "most" if read * 2 >= held else "some"


def _in_words(held: int, group: _Group) -> str:
    """How much of a disk's data the files of a group read."""
    least, most = min(group.sums), max(group.sums)
    if least == held:
        return "all"
    if held * 99 <= least * 100:
        return f"all but {_between(human(held - most), human(held - least))}"
    return _between(percent(least, held), percent(most, held))


def _between(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _alike(kinds: Iterable[str]) -> list[tuple[str, int, int]]:
    """Neighbours that are alike as (kind, first, end)."""
    runs, at = [], 0
    for kind, same in groupby(kinds):
        end = at + len(list(same))
        runs.append((kind, at, end))
        at = end
    return runs


def _tables(
    columns: Sequence[Sequence[int]], groups: Sequence[_Group], labels: Sequence[str], data: int
) -> list[Markup]:
    """What each file reads; and for each strip where it does not read all."""
    sums = [
        [labels[place], digits(read), digits(data - read), percent(read, data)]
        for each in groups
        for place, read in zip(each.files, each.sums, strict=True)
    ]
    tables = [table("Bytes of the disk's data.", ["File", "Read", "Not read", "Share"], sums)]
    for each in groups:
        cells = _partly(columns, each)
        if cells:
            least = " at least" if len(set(each.sums)) > 1 else ""
            heads = ["From byte", "To byte", "Data there", f"Read{least}", "Share"]
            tables.append(table(f"Where not all is read by: {_name(each, labels)}.", heads, cells, words=0))
    return tables


def _partly(columns: Sequence[Sequence[int]], group: _Group) -> list[list[str]]:
    """Runs of which a strip's files do not read all."""
    cells = []
    for kind, first, end in _alike(group.kinds):
        if kind not in {"all", "fold"}:
            held, count = sum(column[3] for column in columns[first:end]), sum(group.read[first:end])
            ends = digits(columns[first][0]), digits(columns[end - 1][1] - 1)
            cells.append([*ends, digits(held), digits(count), percent(count, held)])
    return cells


def _strip(name: str, runs: Iterable[_Run], places: Sequence[int], share: str) -> Markup:
    parts = []
    for run in sorted(runs, key=lambda run: run.kind in _SMALL):
        width = max(places[run.end] - places[run.first], LEAST if run.kind in _SMALL else 0)
        at = min(places[run.first], WHOLE - width)
        parts.append(Part(run.kind, at, width, run.text, _BANDS.get(run.kind, FULL)))
    label = f"{name}: {share or 'the table of bytes by origin has its sums'}"
    return row(name, drawn(parts, label, "strip"), {"Reads": share})


def _axis(columns: Sequence[Sequence[int]], places: Sequence[int]) -> Markup:
    """Positions on the disk below a map, every other one only where there is room; and below them
    the lengths of the longest folds."""
    folds = [
        element("g", *tick(f"{human(length)} of zeros", at, 1), class_="minor" if number > 1 else None)
        for number, (at, length) in enumerate(_folds(columns, places))
    ]
    marks: list[Markup] = []
    following = 0
    for column, at in zip(columns, places[:-1], strict=True):
        if following <= at < WHOLE - WHOLE // _TICKS:
            kind = "minor" if len(marks) % 2 else None
            marks.append(element("g", *tick(human(column[0]), at), class_=kind))
            following = at + WHOLE // _TICKS
    size = columns[-1][1] if columns else 0
    marks += tick(human(size), WHOLE)
    # Lines of folds are long, and must not strike out a position.
    return element("svg", *folds, *marks, class_="axis", aria_hidden="true")


def _folds(columns: Sequence[Sequence[int]], places: Sequence[int]) -> list[tuple[int, int]]:
    """The middles of the longest folds and their lengths, so far apart that their names fit."""
    folds = [
        ((low + high) // 2, column[1] - column[0])
        for column, low, high in zip(columns, places[:-1], places[1:], strict=True)
        if column[2]
    ]
    chosen: list[tuple[int, int]] = []
    for at, length in sorted(folds, key=lambda fold: -fold[1]):
        if all(abs(at - other) > WHOLE // _NAMED for other, _ in chosen):
            chosen.append((at, length))
    return chosen
