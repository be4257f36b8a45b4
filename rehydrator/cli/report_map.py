"""The maps on the page of `report`: strips of a canonical disk, one for files that read the same."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from rehydrator.cli.common import human
from rehydrator.cli.report_markup import (
    LEAST,
    WHOLE,
    Markup,
    Part,
    digits,
    drawn,
    element,
    legend,
    more,
    percent,
    row,
    section,
    table,
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

# One stamped column of hundreds would not be seen: these get a least width, and are drawn last.
_SMALL = frozenset({"nearly", "most", "some"})

# Columns that a folded run of zeros is wide; ticks below a map.
_FOLD = 3
_TICKS = 8

_ABOUT = (
    "A strip is the disk from its beginning to its end, for files that read the same of it, as it is, "
    "encoded or decoded. Its colour is the share of the data there that they read. What a file has "
    "otherwise, such as a platform's stamp or zeros of its own, it does not read."
)


class _Run(NamedTuple):
    """Columns that look alike: [first, end), and what a pointer over them shows."""

    kind: str
    first: int
    end: int
    text: str


def maps(found: dict[str, Any], meanings: Mapping[str, str]) -> Markup:
    """The maps of all canonical disks; `meanings` are those of the classes of bytes."""
    shown = [each for disk in found["maps"] for each in _disk_map(disk, found, meanings)]
    legends = [
        element("p", "First strip, where most of the disk's own data comes from:"),
        legend({name: text for name, text in meanings.items() if name != "zeros"}),
        element("p", "Other strips, the share that is read:"),
        legend(_SHARES),
    ]
    none = [element("p", "There is no canonical disk in this bundle.")]
    inside = [*legends, *shown] if shown else none
    return section("map", "Which files share what of the canonical disk", _ABOUT, *inside)


def _disk_map(disk: dict[str, Any], found: dict[str, Any], meanings: Mapping[str, str]) -> list[Markup]:
    about, columns = found["disks"][disk["disk"] - 1], disk["columns"]
    labels = _labels(found["files"])
    places, data = _places(columns), sum(column[3] for column in columns)
    strips = [_strip("The disk itself", _sources(disk, found["classes"], meanings), places, "")]
    cells = []
    for each in disk["rows"]:
        name, runs = _group(each["files"], labels), _read(columns, each["read"])
        strips.append(_strip(name, runs, places, _in_words(data, sum(each["read"]))))
        cells += [[name, *words] for words in _described(columns, runs)]
    strips.append(element("li", element("span", class_="name"), _axis(columns, places)))
    size = f"{human(about['size'])}, {human(data)} of data"
    heads = ["Files", "Bytes of the disk", "What they read"]
    return [
        element("h3", f"Canonical disk {disk['disk']}, {about['arch']}: {size}"),
        element("ul", *strips, class_="bars maps"),
        *_without(disk, about["file"], labels),
        more("The same as a table", table("What is read of each part of the disk.", heads, cells, words=3)),
    ]


def _labels(files: Sequence[dict[str, Any]]) -> list[str]:
    """Each file in two words; three, where there are several architectures."""
    several = len({file["arch"] for file in files}) > 1
    labels = []
    for file in files:
        kind = file["role"] if file["format"] == "pxe" else image_format(file["format"])
        labels.append(f"{file['platform']} {kind}" + (f" {file['arch']}" if several else ""))
    return labels


def _group(places: Sequence[int], labels: Sequence[str]) -> str:
    shown = ", ".join(labels[place] for place in places)
    return shown if len(places) == 1 else f"{len(places)} files: {shown}"


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


def _read(columns: Sequence[Sequence[int]], read: Sequence[int]) -> list[_Run]:
    """What is read, in runs of columns of one colour."""
    kinds = [_share(column[3], count) for column, count in zip(columns, read, strict=True)]
    runs = []
    for kind, first, end in _alike(kinds):
        held, count = sum(column[3] for column in columns[first:end]), sum(read[first:end])
        text = f"reads {digits(count)} of {digits(held)} bytes of data ({percent(count, held)})"
        runs.append(_Run(kind, first, end, text if held else "no data"))
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


def _in_words(held: int, read: int) -> str:
    if held * 99 < read * 100 < held * 100:
        return f"all but {human(held - read)}"
    return "all" if read == held else percent(read, held)


def _alike(kinds: Iterable[str]) -> list[tuple[str, int, int]]:
    """Neighbours that are alike as (kind, first, end)."""
    runs, at = [], 0
    for kind, same in groupby(kinds):
        end = at + len(list(same))
        runs.append((kind, at, end))
        at = end
    return runs


def _described(columns: Sequence[Sequence[int]], runs: Iterable[_Run]) -> list[tuple[str, str]]:
    return [
        (f"{digits(columns[run.first][0])} to {digits(columns[run.end - 1][1] - 1)}", run.text)
        for run in runs
        if run.kind != "fold"
    ]


def _strip(name: str, runs: Iterable[_Run], places: Sequence[int], share: str) -> Markup:
    parts = []
    for run in sorted(runs, key=lambda run: run.kind in _SMALL):
        width = max(places[run.end] - places[run.first], LEAST if run.kind in _SMALL else 0)
        parts.append(Part(run.kind, min(places[run.first], WHOLE - width), width, run.text))
    label = f"{name}: {share or 'the table of bytes by origin has its sums'}"
    return row(name, drawn(parts, label, "strip"), {"Read:": share})


def _axis(columns: Sequence[Sequence[int]], places: Sequence[int]) -> Markup:
    """Positions on the disk below a map; every other one only where there is room."""
    marks: list[Markup] = []
    following = 0
    for column, at in zip(columns, places[:-1], strict=True):
        if following <= at < WHOLE - WHOLE // _TICKS:
            kind = "minor" if len(marks) % 2 else None
            marks.append(element("g", *_tick(column[0], f"{at / 100}%", first=not at), class_=kind))
            following = at + WHOLE // _TICKS
    size = columns[-1][1] if columns else 0
    end = element("text", human(size), x="100%", y="1.1rem", text_anchor="end")
    return element("svg", *marks, end, class_="axis", aria_hidden="true")


def _tick(position: int, at: str, *, first: bool) -> tuple[Markup, Markup]:
    line = element("line", x1=at, x2=at, y1="0", y2="4")
    anchor = None if first else "middle"
    return line, element("text", human(position), x=at, y="1.1rem", text_anchor=anchor)
