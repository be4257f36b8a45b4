"""The page that `report` writes: its numbers as HTML, tables and SVG.

Names in bundles come from anybody. Markup is made by `element` alone, which escapes every text
that is not markup yet; the page has no script, and its policy forbids scripts and the network.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib.resources import files
from itertools import groupby
from string import Template
from typing import TYPE_CHECKING, Any

from rehydrator.cli import printable
from rehydrator.cli.common import human
from rehydrator.metadata.names import image_format

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MEANINGS = {
    "canonical": "of the canonical disk",
    "file": "of another file",
    "encoded": "encoded again",
    "decoded": "decoded from what is stored encoded",
    "own": "stored for it alone",
    "tables": "computed tables",
    "zeros": "runs of zeros",
}
_SHARES = {
    "all": "all of the data there",
    "nearly": "99 % or more, but not all",
    "most": "half or more",
    "some": "less than half",
    "none": "nothing",
    "fold": "no data: a run of zeros, long ones folded",
}
_PARTS = {"data": "data", "recipes": "recipes", "index": "index"}

# Hundredths of a per cent of a bar that a part gets at least, so that it is seen.
_LEAST = 40
_WHOLE = 10_000

# Columns that a folded run of zeros is wide, in a map; ticks below it.
_FOLD = 3
_TICKS = 8


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, *children: str, **attributes: object) -> Markup:
    """An element; what is no Markup among its children and attributes is escaped. Attributes are
    spelt with _ for - and behind Python's own words; None leaves one out."""
    stated = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{stated}>{joined(children)}</{name}>")


def joined(parts: Iterable[str]) -> Markup:
    """Texts and markup in a row."""
    return Markup("".join(part if isinstance(part, Markup) else _escaped(part) for part in parts))


def _escaped(text: str) -> str:
    """Fit for a page: also what would turn the direction of writing is spelt out."""
    return escape(printable(text))


def page(found: dict[str, Any]) -> str:
    """The whole page."""
    template = files("rehydrator.cli").joinpath("report.html").read_text(encoding="utf-8")
    style = template.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    title = _title(found)
    body = element("header", element("h1", title), _about(found), _navigation())
    body = joined([body, element("main", *_sections(found)), _footer(found)])
    return Template(template).substitute(policy=escape(policy), title=_escaped(title), body=body)


def _sections(found: dict[str, Any]) -> list[Markup]:
    return [
        _tiles(found["totals"]),
        _origins(found),
        _maps(found),
        _added(found),
        _seconds(found),
        _files(found),
    ]


def _title(found: dict[str, Any]) -> str:
    releases = [f"{each['name']} {each['release']}" for each in found["bundle"]["releases"]]
    return ", ".join(releases) or "A bundle without releases"


def _about(found: dict[str, Any]) -> Markup:
    bundle = found["bundle"]
    streams = ", ".join(each["stream"] for each in bundle["releases"]) or "none"
    signed = ", ".join(bundle["signatures"]) or "nobody"
    said = f"Where the bytes and seconds of this bundle go. Stream: {streams}. Signed by: {signed}. "
    return element("p", said, "bundle.json: ", element("code", f"sha256:{bundle['sha256']}"))


def _navigation() -> Markup:
    links = {
        "origins": "Where bytes come from",
        "map": "Map of the disk",
        "added": "What is stored",
        "seconds": "Seconds",
        "files": "Files",
    }
    return element(
        "nav",
        *(element("a", text, href=f"#{to}") for to, text in links.items()),
        aria_label="Parts of this page",
    )


def _tiles(totals: dict[str, int]) -> Markup:
    images, stored = totals["images"], totals["stored"]
    tiles = [
        (_count(totals["files"], "file"), f"{human(totals['data'])} of data outside of zeros"),
        (human(totals["published"]), "as they are published"),
        (human(images), "as images"),
        (human(stored), f"stored, 1/{images // stored if stored else 0} of the images"),
        (human(totals["added"]), "of that for one file each"),
        (human(totals["shared"]), "for several: canonical disks and what they stand on"),
    ]
    return element(
        "ul", *(element("li", element("strong", big), element("span", small)) for big, small in tiles),
        class_="tiles",
    )  # fmt: skip


def _origins(found: dict[str, Any]) -> Markup:
    """The bars of classes, and the same as a table."""
    rows = [_head("File", "Where its bytes come from", "Size", "Adds")]
    table_rows = []
    for number, disk in enumerate(found["disks"], 1):
        name = joined([element("strong", f"Canonical disk {number}"), f", of {disk['of']}"])
        rows.append(_bar_row(name, disk["origins"], human(disk["size"]), human(disk["adds"])))
        table_rows.append((f"Canonical disk {number}", disk["origins"]))
    for each in found["files"]:
        for kind, form in each["forms"].items():
            if "origins" not in form or kind == "signature":
                continue
            table_rows.append((form["name"], form["origins"]))
            adds, style = (human(each["adds"]), "") if kind == "image" else ("", "beside")
            rows.append(_bar_row(form["name"], form["origins"], human(form["size"]), adds, style))
    classes = found["classes"]
    heads = ["File", *classes, "Sum"]
    cells = [
        [name, *(_digits(counts[each]) for each in classes), _digits(sum(counts.values()))]
        for name, counts in table_rows
    ]
    return element(
        "section",
        element("h2", "Where the bytes of each file come from", id="origins"),
        element(
            "p",
            "Each bar is one file, whatever its size. A part that would be too thin to see is drawn "
            "wider; the table has every byte. A second, thinner bar is the compressed file as it was "
            "published.",
        ),
        _legend(MEANINGS),
        element("ul", *rows, class_="bars"),
        _more("The same as a table, in bytes", _table("Bytes by origin; rows add up.", heads, cells)),
    )


def _head(*texts: str) -> Markup:
    """The headings above bars."""
    name, bar, *numbers = texts
    return element(
        "li",
        element("span", name, class_="name head"),
        element("span", bar, class_="head"),
        *(element("span", each, class_="number head") for each in numbers),
    )


def _number(text: str, label: str) -> Markup:
    """A number beside a bar; its label is shown where there is no room for a heading."""
    return element("span", text, class_="number", data_label=label if text else None)


def _bar_row(name: str, counts: dict[str, int], size: str, adds: str, kind: str = "") -> Markup:
    return element(
        "li",
        element("span", name, class_=f"name {kind}".strip()),
        _bar(counts, MEANINGS),
        _number(size, "Size"),
        _number(f"+{adds}" if adds else "", "Adds"),
    )


def _bar(counts: dict[str, int], meanings: dict[str, str]) -> Markup:
    """A bar of the parts that there are, as wide as they are, but none invisible."""
    whole = sum(counts.values())
    present = {name: count for name, count in counts.items() if count}
    widths = {name: max(count * _WHOLE // whole, _LEAST) for name, count in present.items()}
    said = [f"{meanings[name]}: {_percent(count, whole)}" for name, count in present.items()]
    if widths:
        widest = max(widths, key=lambda name: widths[name])
        widths[widest] += _WHOLE - sum(widths.values())
    parts, at = [], 0
    for (name, width), text in zip(widths.items(), said, strict=True):
        title = element("title", f"{text}, {_digits(present[name])} bytes")
        parts.append(_rect(name, at, width, title))
        at += width
    return element("svg", *parts, class_="bar", role="img", aria_label="; ".join(said) or "no bytes")


def _rect(kind: str, at: int, width: int, *inside: Markup) -> Markup:
    """A part of a bar, in hundredths of a per cent."""
    return element("rect", *inside, class_=kind, x=f"{at / 100}%", width=f"{width / 100}%", height="100%")


def _legend(meanings: dict[str, str]) -> Markup:
    return element(
        "ul",
        *(
            element("li", element("svg", _rect(name, 0, _WHOLE), aria_hidden="true"), text)
            for name, text in meanings.items()
        ),
        class_="legend",
    )


def _maps(found: dict[str, Any]) -> Markup:
    labels = {each["file"]: _label(each) for each in found["files"]}
    shown = [each for disk in found["maps"] for each in _disk_map(disk, found, labels)]
    legends = [
        element("p", "First strip, where most of the disk's own data comes from:"),
        _legend({name: text for name, text in MEANINGS.items() if name != "zeros"}),
        element("p", "Other strips, the share that is read:"),
        _legend(_SHARES),
    ]
    return element(
        "section",
        element("h2", "Which files share what of the canonical disk", id="map"),
        element(
            "p",
            "A strip is the disk from its beginning to its end, for files that read the same of it, as it "
            "is, encoded or decoded. Its colour is the share of the data there that they read. What a file "
            "has otherwise, such as a platform's stamp or zeros of its own, it does not read.",
        ),
        *([*legends] if shown else []),
        *(shown or [element("p", "There is no canonical disk in this bundle.")]),
    )


def _label(file: dict[str, Any]) -> str:
    """A file in two words."""
    kind = file["role"] if file["format"] == "pxe" else image_format(file["format"])
    return f"{file['platform']} {kind}"


def _disk_map(disk: dict[str, Any], found: dict[str, Any], labels: dict[str, str]) -> list[Markup]:
    about = found["disks"][disk["disk"] - 1]
    columns = disk["columns"]
    places = _places(columns)
    data = sum(column[3] for column in columns)
    strips = [_strip_row("The disk itself", _sources(disk, found["classes"]), places, "")]
    table_rows = []
    for row in disk["rows"]:
        name, read = _group(row["files"], labels), sum(row["read"])
        runs = _read_runs(columns, row["read"])
        strips.append(_strip_row(name, runs, places, _share_in_words(data, read)))
        table_rows += [[name, text, _SHARES[kind]] for kind, text in _described(columns, runs)]
    strips.append(element("li", element("span", class_="name"), _axis(columns, places)))
    readers = {name for row in disk["rows"] for name in row["files"]}
    others = [labels[each["file"]] for each in found["files"] if each["file"] not in readers]
    none = [element("p", f"Nothing of it is read by: {', '.join(others)}.")] if others else []
    heading = f"Canonical disk {disk['disk']}, {about['arch']}: {human(about['size'])}, {human(data)} of data"
    return [
        element("h3", heading),
        element("ul", *strips, class_="bars maps"),
        *none,
        _more(
            "The same as a table",
            _table("What is read, from byte to byte of the disk.", ["Files", "Bytes of the disk", "Read"],
                   table_rows, words=3),
        ),
    ]  # fmt: skip


def _group(names: Sequence[str], labels: dict[str, str]) -> str:
    shown = ", ".join(labels[name] for name in names)
    return shown if len(names) == 1 else f"{len(names)} files: {shown}"


def _places(columns: Sequence[Sequence[int]]) -> list[int]:
    """Where each column begins in a strip, in hundredths of a per cent, and the end."""
    places, total = [0], 0
    for column in columns:
        total += _FOLD if column[2] else 1
        places.append(total)
    return [place * _WHOLE // total if total else 0 for place in places]


# A run of columns that look alike: what they are, the first, the one behind the last, and words.
_Run = tuple[str, int, int, str]


def _sources(disk: dict[str, Any], classes: Sequence[str]) -> list[_Run]:
    """The class that most of each column's data is of."""
    kinds = []
    for column, counts in zip(disk["columns"], disk["origins"], strict=True):
        named = dict(zip(classes, counts, strict=True))
        named.pop("zeros")
        kinds.append(
            "fold" if column[2] or not any(named.values()) else max(named, key=lambda name: named[name])
        )
    said = {**{name: f"mostly {text}" for name, text in MEANINGS.items()}, "fold": "no data"}
    return [(kind, first, end, said[kind]) for kind, first, end in _runs(kinds)]


def _read_runs(columns: Sequence[Sequence[int]], read: Sequence[int]) -> list[_Run]:
    kinds = [_share(column[3], count) for column, count in zip(columns, read, strict=True)]
    found = []
    for kind, first, end in _runs(kinds):
        held = sum(column[3] for column in columns[first:end])
        count = sum(read[first:end])
        text = f"reads {_digits(count)} of {_digits(held)} bytes of data ({_percent(count, held)})"
        found.append((kind, first, end, text if held else "no data"))
    return found


def _share_in_words(held: int, read: int) -> str:
    if held * 99 < read * 100 < held * 100:
        return f"all but {human(held - read)}"
    return "all" if read == held else _percent(read, held)


def _share(held: int, read: int) -> str:
    """The colour of a column of which `read` of `held` bytes are read."""
    if not held:
        return "fold"
    if read >= held:
        return "all"
    if not read:
        return "none"
    if read * 100 >= held * 99:
        return "nearly"
    return "most" if read * 2 >= held else "some"


def _runs(kinds: Sequence[str]) -> list[tuple[str, int, int]]:
    """Neighbours that are alike as (kind, first, end)."""
    runs, at = [], 0
    for kind, same in groupby(kinds):
        end = at + len(list(same))
        runs.append((kind, at, end))
        at = end
    return runs


def _described(columns: Sequence[Sequence[int]], runs: Sequence[_Run]) -> list[tuple[str, str]]:
    return [
        (kind, f"{_digits(columns[first][0])} to {_digits(columns[end - 1][1] - 1)}: {text}")
        for kind, first, end, text in runs
        if kind != "fold"
    ]


def _strip_row(name: str, runs: Sequence[_Run], places: Sequence[int], share: str) -> Markup:
    parts = [
        _rect(kind, places[first], max(places[end] - places[first], _widths(kind)), element("title", text))
        for kind, first, end, text in sorted(runs, key=lambda run: _widths(run[0]))
    ]
    label = f"{name}: {share or 'see the table of bytes by origin'}"
    return element(
        "li",
        element("span", name, class_="name"),
        element("svg", *parts, class_="strip", role="img", aria_label=label),
        _number(share, "Read:"),
    )


def _widths(kind: str) -> int:
    """What a run gets at least, and is drawn above the others for: one stamped column of hundreds
    would not be seen."""
    return _LEAST if kind in {"nearly", "most", "some"} else 0


def _axis(columns: Sequence[Sequence[int]], places: Sequence[int]) -> Markup:
    """Positions on the disk below a map; every other one only where there is room."""
    marks: list[Markup] = []
    following = 0
    for number, column in enumerate(columns):
        at = places[number]
        if at >= following and at <= _WHOLE - _WHOLE // _TICKS // 2:
            kind = "minor" if len(marks) % 2 else None
            anchor = None if not number else "middle"
            tick = element("line", x1=f"{at / 100}%", x2=f"{at / 100}%", y1="0", y2="4")
            text = element("text", human(column[0]), x=f"{at / 100}%", y="1.1rem", text_anchor=anchor)
            marks.append(element("g", tick, text, class_=kind))
            following = at + _WHOLE // _TICKS
    size = columns[-1][1] if columns else 0
    end = element("text", human(size), x="100%", y="1.1rem", text_anchor="end")
    return element("svg", *marks, end, class_="axis", aria_hidden="true")


def _added(found: dict[str, Any]) -> Markup:
    """What is stored, the largest first."""
    totals, packs = found["totals"], sorted(found["packs"], key=lambda pack: -pack["size"])
    most = max((pack["size"] for pack in packs), default=1)
    rows = [_head("Kept for", "Bytes stored, compared with the largest pack", "Stored", "Plain")]
    cells = []
    for pack in packs:
        name = _kept_for(pack["kept_for"])
        rows.append(
            element(
                "li",
                element("span", name, class_="name"),
                _lengths({part: pack[part] for part in _PARTS}, most),
                _number(human(pack["size"]), "Stored"),
                _number(human(pack["plain"]), "Plain"),
            )
        )
        sizes = [_digits(pack[key]) for key in ("data", "recipes", "index", "size", "plain", "frames")]
        cells.append([pack["file"], name, *sizes])
    cells.append(["streams/…", "stream documents", "", "", "", _digits(totals["documents"]), "", ""])
    cells.append(["bundle.json", "the manifest", "", "", "", _digits(totals["manifest"]), "", ""])
    cells.append(["Sum", "", "", "", "", _digits(totals["stored"]), "", ""])
    heads = ["Pack", "Kept for", "Data", "Recipes", "Index", "Stored", "Plain", "Frames"]
    return element(
        "section",
        element("h2", "What is stored", id="added"),
        element(
            "p",
            "A file adds its packs to the bundle and nothing else. What several files stand on has packs "
            "of its own.",
        ),
        _legend(_PARTS),
        element("ul", *rows, class_="bars"),
        _more("The same as a table, in bytes", _table("Packs and other files.", heads, cells, words=2)),
    )


def _kept_for(owner: dict[str, Any]) -> str:
    if owner["kind"] == "file":
        return str(owner["file"])
    return f"Canonical disk {owner['disk']}" if owner["kind"] == "disk" else "several files"


def _lengths(counts: dict[str, int], most: int) -> Markup:
    """A bar whose length is its sum, against the longest one's."""
    parts, at = [], 0
    for name, count in counts.items():
        width = count * _WHOLE // max(most, 1)
        width = max(width, _LEAST) if count and not at else width
        parts.append(_rect(name, at, width, element("title", f"{_PARTS[name]}: {_digits(count)} bytes")))
        at += width
    label = "; ".join(f"{_PARTS[name]}: {_digits(count)} bytes" for name, count in counts.items())
    return element("svg", *parts, class_="bar", role="img", aria_label=label)


def _seconds(found: dict[str, Any]) -> Markup:
    """About how long each form takes, and the memory of its encoders."""
    forms = [
        (kind, form)
        for each in found["files"]
        for kind, form in each["forms"].items()
        if form["available"] and kind != "signature"
    ]
    longest = max((form["seconds"] for _, form in forms), default=0) or 1
    rows = [_head("File", "Estimated seconds, compared with the longest", "Time", "Memory")]
    for kind, form in forms:
        width = max(int(form["seconds"] * _WHOLE / longest), _LEAST)
        title = element("title", f"about {form['seconds']:.1f} s")
        label = f"about {form['seconds']:.1f} seconds"
        bar = element(
            "svg",
            _rect("time" if kind == "image" else "time2", 0, width, title),
            class_="bar", role="img", aria_label=label,
        )  # fmt: skip
        rows.append(
            element(
                "li",
                element("span", form["name"], class_="name" if kind == "image" else "name beside"),
                bar,
                _number(f"{form['seconds']:.1f} s", "Time"),
                _number(human(form["memory"]) if form["memory"] else "", "Memory"),
            )
        )
    return element(
        "section",
        element("h2", "About how long each takes", id="seconds"),
        element(
            "p",
            f"Estimated for one file alone and {_count(found['threads'], 'thread')}, by the speeds of "
            "encoders on the author's machine: they tell seconds from minutes, and no more. Memory is that "
            "of encoders, beside the program's own.",
        ),
        _legend({"time": "image", "time2": "as published"}),
        element("ul", *rows, class_="bars"),
    )


def _files(found: dict[str, Any]) -> Markup:
    return element(
        "section",
        element("h2", "Files", id="files"),
        element(
            "p", "How each is stored and why, its forms with their digests, and the encoders that they need."
        ),
        *(_file(each) for each in found["files"]),
    )


def _file(each: dict[str, Any]) -> Markup:
    how = each["how"]
    stored = _rung(how) + (", its disk is canonical" if each["canonical"] else "")
    facts = [
        ("Platform", f"{each['platform']}, {each['arch']}, {each['role']}, {each['format']}"),
        *([("Guest disk", f"{_digits(each['virtual_size'])} bytes")] if each["virtual_size"] else []),
        ("Stored as", stored),
        *((f"Not {tried['rung']}", tried["why"]) for tried in how.get("tried") or ()),
        ("Adds", f"{_digits(each['adds'])} bytes"),
        *sorted((how.get("facts") or {}).items()),
        *((f"Encoder {name}", version) for name, version in sorted((how.get("encoders") or {}).items())),
    ]
    published = how.get("published") or {}
    facts += [
        *((f"Published by {name}", text) for name, text in sorted((published.get("encoders") or {}).items())),
        *(
            (f"Published, {name}", f"{_digits(count)} bytes")
            for name, count in sorted((published.get("bytes") or {}).items())
        ),
    ]
    forms = [_form(kind, form) for kind, form in each["forms"].items()]
    short = f"{human(each['size'])}, {_rung(how)}, adds {human(each['adds'])}"
    return element(
        "details",
        element("summary", element("strong", each["file"]), " ", element("span", short, class_="soft")),
        element(
            "div",
            element("dl", *(joined([element("dt", name), element("dd", text)]) for name, text in facts)),
            *forms,
        ),
        class_="file",
    )


def _rung(how: dict[str, Any]) -> str:
    rung = str(how.get("rung") or "stored")
    return f"{rung} ({how['format']})" if how.get("format") else rung


def _form(kind: str, form: dict[str, Any]) -> Markup:
    facts = [("Name", form["name"]), ("Size", f"{_digits(form['size'])} bytes")]
    if form["available"]:
        memory = f", {human(form['memory'])} of memory for encoders" if form["memory"] else ""
        facts.append(("Takes", f"about {form['seconds']:.1f} s{memory}"))
    else:
        facts.append(("Not given back", "no encoder gives its bytes; the bundle knows its digest"))
    for each in form["encoders"]:
        here = "" if each["here"] == each["made_by"] else f"; here: {each['here'] or 'not installed'}"
        facts.append(("Encoded by", f"{each['encoder']} ({each['made_by']}{here})"))
    for name, count in (form.get("origins") or {}).items():
        if count:
            share = _percent(count, form["size"])
            facts.append((MEANINGS[name].capitalize(), f"{_digits(count)} bytes ({share})"))
    rows = [joined([element("dt", name), element("dd", text)]) for name, text in facts]
    digest = joined([element("dt", "SHA-256"), element("dd", element("code", form["sha256"]))])
    title = {"image": "Image", "published": "As published", "signature": "Signature"}[kind]
    return joined([element("h3", title), element("dl", *rows, digest)])


def _footer(found: dict[str, Any]) -> Markup:
    return element("footer", f"Written by rehydrator {found['rehydrator']} report.")


def _more(summary: str, inside: Markup) -> Markup:
    return element("details", element("summary", summary), inside)


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> Markup:
    """A table in a box that scrolls for itself, also by keys; behind `words` columns are numbers."""

    def kind(column: int) -> str | None:
        return "number" if column >= words else "wide" if words > 1 else None

    head = element("tr", *(element("th", text, scope="col", class_=kind(n)) for n, text in enumerate(heads)))
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", text, class_=kind(n)) for n, text in enumerate(row[1:], 1)),
        )
        for row in rows
    ]
    whole = element("table", element("caption", caption), element("thead", head), element("tbody", *body))
    return element("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _digits(count: int) -> str:
    return f"{count:,}"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _percent(part: int, whole: int) -> str:
    """A share that says 0 and 100 only where it is none or all."""
    if not whole or part in {0, whole}:
        return "100 %" if part and part == whole else "0 %"
    share = part * _WHOLE / whole
    if share < 1 or share > _WHOLE - 1:
        return "under 0.01 %" if share < 1 else "over 99.99 %"
    return f"{share / 100:.2f} %"
