"""The page that `report` writes: its numbers as HTML, tables and SVG. It has no script, and its
policy forbids scripts and the network."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib.resources import files
from math import log2
from string import Template
from typing import TYPE_CHECKING, Any

from rehydrator.cli.common import human
from rehydrator.cli.info import SHORTEST, about_seconds
from rehydrator.cli.report_map import maps
from rehydrator.cli.report_markup import (
    LEAST,
    WHOLE,
    WIDENED,
    Markup,
    Part,
    bars,
    chart,
    counted,
    digits,
    drawn,
    element,
    escaped,
    facts,
    is_widened,
    joined,
    legend,
    more,
    percent,
    row,
    section,
    shares,
    table,
    tick,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MEANINGS = {
    "canonical": "of the canonical disk",
    "file": "of another file",
    "encoded": "encoded again",
    "decoded": "decoded from what is stored encoded",
    "own": "stored for it alone",
    "tables": "computed tables",
    "zeros": "runs of zeros",
}
_LOW = "half as high: less than 0.4 %, drawn wider than it is"
_TIMES = {"time": "image", "time2": "as published"}
# Marks of a logarithmic scale are so many powers of two apart.
_STEP = 4

_FORMS = {"image": "Image", "published": "As published", "signature": "Signature"}
_LINKS = {
    "origins": "Where bytes come from",
    "map": "Map of the disk",
    "added": "What is stored",
    "seconds": "Seconds",
    "files": "Files",
}


def page(found: dict[str, Any]) -> str:
    """The whole page about what `report` found."""
    template = files("rehydrator.cli").joinpath("report.html").read_text(encoding="utf-8")
    style = template.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    title = _title(found)
    return Template(template).substitute(
        policy=escape(policy), title=escaped(title), body=_body(found, title)
    )


def _title(found: dict[str, Any]) -> str:
    releases = [f"{each['name']} {each['release']}" for each in found["bundle"]["releases"]]
    return ", ".join(releases) or "A bundle without releases"


def _body(found: dict[str, Any], title: str) -> Markup:
    links = [element("a", text, href=f"#{to}") for to, text in _LINKS.items()]
    navigation = element("nav", *links, aria_label="Parts of this page")
    parts = [_tiles(found["totals"]), _origins(found), maps(found, MEANINGS)]
    parts += [_stored(found), _seconds(found), _files(found)]
    return joined(
        [
            element("header", element("h1", title), _about(found), navigation),
            element("main", *parts),
            element("footer", f"Written by rehydrator {found['rehydrator']} report."),
        ]
    )


def _about(found: dict[str, Any]) -> Markup:
    bundle = found["bundle"]
    named = [
        ("Stream", ", ".join(each["stream"] for each in bundle["releases"]) or "none"),
        ("Signed by", ", ".join(bundle["signatures"]) or "nobody"),
        ("bundle.json", element("code", f"sha256:{bundle['sha256']}")),
    ]
    return joined([element("p", "Where the bytes and seconds of this bundle go."), facts(named)])


def _tiles(totals: dict[str, int]) -> Markup:
    stored = max(totals["stored"], 1)
    published, images = (f"1/{max(totals[key] // stored, 1)}" for key in ("published", "images"))
    tiles = [
        (counted(totals["files"], "file"), f"{human(totals['data'])} of data outside of zeros"),
        (human(totals["published"]), "as they are published"),
        (human(totals["images"]), "as images"),
        (human(totals["stored"]), f"stored: {published} of what is published, {images} of the images"),
        (human(totals["shared"]), "of that is shared: canonical disks and what they stand on"),
        (human(totals["added"]), "of that only one file needs"),
    ]
    shown = [element("li", element("strong", big), element("span", small)) for big, small in tiles]
    return element("ul", *shown, class_="tiles")


def _origins(found: dict[str, Any]) -> Markup:
    """The bars of classes, and the same as a table."""
    rows, cells, thinner = [], [], ""
    for name, counts, adds, kind in _rows(found):
        size = sum(counts.values())
        numbers = {"Size": human(size), "Adds": "" if adds is None else f"+{human(adds)}"}
        rows.append(row(name, shares(counts, MEANINGS), numbers, kind))
        cells.append([name, *(digits(counts[each]) for each in found["classes"]), digits(size)])
        if kind != "name":
            thinner = " A second, thinner bar is the compressed file as it was published."
    heads = ["File", *(MEANINGS[each].capitalize() for each in found["classes"]), "Sum"]
    return section(
        "origins",
        "Where the bytes of each file come from",
        f"Each bar is one file, whatever its size.{thinner}",
        chart(_legend_of(found), bars(["File", "Where its bytes come from", "Size", "Adds"], rows)),
        more("The same as a table, in bytes", table("Bytes by origin; rows add up.", heads, cells)),
    )


def _legend_of(found: dict[str, Any]) -> Markup:
    """The classes that there are, and what a low part is where there is one."""
    present: set[str] = set()
    low = False
    for _, counts, *_ in _rows(found):
        whole = sum(counts.values())
        present |= {name for name, count in counts.items() if count}
        low = low or any(is_widened(count, whole) for count in counts.values())
    shown = {name: text for name, text in MEANINGS.items() if name in present}
    return legend(shown | ({"low": _LOW} if low else {}), {"low": WIDENED})


def _rows(found: dict[str, Any]) -> Iterator[tuple[str, dict[str, int], int | None, str]]:
    """What has a bar: its name, its classes, what it adds, and how it is shown."""
    for number, disk in enumerate(found["disks"], 1):
        of = found["files"][disk["file"]]["file"]
        name = joined([element("strong", f"Canonical disk {number}"), f", of {of}"])
        yield name, disk["origins"], disk["adds"] or None, "name"
    for each in found["files"]:
        image, published = each["forms"]["image"], each["forms"].get("published", {})
        yield image["name"], image["origins"], each["adds"], "name"
        if "origins" in published:
            yield published["name"], published["origins"], None, "name beside"


def _stored(found: dict[str, Any]) -> Markup:
    """What is stored: what files share in words, what each adds as bars, the largest first."""
    packs = sorted(found["packs"], key=lambda pack: -pack["size"])
    cells = []
    for pack in packs:
        sizes = [digits(pack[key]) for key in ("data", "recipes", "index", "size", "plain", "frames")]
        cells.append([pack["file"], _kept_for(pack["kept_for"], found), *sizes])
    for name, what, key in (
        ("streams/", "stream documents", "documents"),
        ("bundle.json", "the manifest", "manifest"),
        ("Sum", "", "stored"),
    ):
        cells.append([name, what, "", "", "", digits(found["totals"][key]), "", ""])
    heads = ["Pack", "Kept for", "Data", "Recipes", "Index", "Stored", "Plain", "Frames"]
    return section(
        "added",
        "What is stored",
        "A file adds its packs to the bundle and nothing else. What several files stand on has packs of its "
        "own.",
        *(element("p", _shared(pack, found)) for pack in packs if pack["kept_for"]["kind"] != "file"),
        *_added([pack for pack in packs if pack["kept_for"]["kind"] == "file"], found),
        more("The same as a table, in bytes", table("Packs and other files.", heads, cells, words=2)),
    )


def _shared(pack: dict[str, Any], found: dict[str, Any]) -> Markup:
    """One pack that several files stand on, in a sentence."""
    share = percent(pack["size"], found["totals"]["stored"])
    takes = (
        f" takes {human(pack['size'])}, {share} of all that is stored, for {human(pack['plain'])} of data."
    )
    return joined([element("strong", _kept_for(pack["kept_for"], found)), takes])


def _added(packs: Sequence[dict[str, Any]], found: dict[str, Any]) -> list[Markup]:
    """Bars of what files add, on a logarithmic scale: most add some KiB, a few a thousand times that."""
    if not packs:
        return []
    powers = [max(pack["size"], 1).bit_length() - 1 for pack in packs]
    low, high = min(powers) // _STEP * _STEP, max(powers) // _STEP * _STEP + _STEP
    rows = []
    for pack in packs:
        width = int((log2(max(pack["size"], 1)) - low) * WHOLE / (high - low))
        text = f"{digits(pack['size'])} bytes"
        bar = drawn([Part("data", 0, max(width, LEAST), text)], text)
        numbers = {"Stored": human(pack["size"]), "Plain": human(pack["plain"])}
        rows.append(row(_kept_for(pack["kept_for"], found), bar, numbers))
    marks = range(low, high + 1, _STEP)
    ticks = [mark for at in marks for mark in tick(human(2**at), (at - low) * WHOLE // (high - low))]
    axis = element("svg", *ticks, class_="axis one", aria_hidden="true")
    rows.append(element("li", element("span", class_="name"), axis))
    return [
        chart(
            element(
                "p", "What each file adds, on a logarithmic scale: ", f"a mark is {2**_STEP} times the last."
            ),
            bars(["Kept for", "Bytes stored", "Stored", "Plain"], rows),
        )
    ]


def _kept_for(owner: dict[str, Any], found: dict[str, Any]) -> str:
    if owner["kind"] == "file":
        return str(found["files"][owner["file"]]["file"])
    return f"Canonical disk {owner['disk']}" if owner["kind"] == "disk" else "several files"


def _seconds(found: dict[str, Any]) -> Markup:
    """About how long each form takes, and the memory of its encoders."""
    forms = [
        (kind, form)
        for each in found["files"]
        for kind, form in each["forms"].items()
        if form["available"] and kind != "signature"
    ]
    longest = max((form["seconds"] for _, form in forms), default=0)
    return section(
        "seconds",
        "About how long each takes",
        f"Estimated for one file alone and {counted(found['threads'], 'thread')}, by what data, zeros and "
        "encoders take on the author's machine: they tell seconds from minutes, and no more. Memory is that "
        "of encoders, beside the program's own.",
        chart(
            legend(
                {each: text for each, text in _TIMES.items() if each in {_colour(kind) for kind, _ in forms}}
            ),
            bars(
                ["File", "Seconds, compared with the longest", "Time", "Memory"],
                [_time(kind, form, longest) for kind, form in forms],
            ),
        ),
    )


def _colour(kind: str) -> str:
    return "time" if kind == "image" else "time2"


def _time(kind: str, form: dict[str, Any], longest: float) -> Markup:
    seconds = form["seconds"]
    time = f"{seconds:.1f} s" if seconds >= SHORTEST else f"< {SHORTEST} s"
    width = max(int(seconds * WHOLE / (longest or 1)), LEAST)
    style = "name" if kind == "image" else "name beside"
    bar = drawn([Part(_colour(kind), 0, width, about_seconds(seconds))], about_seconds(seconds))
    memory = human(form["memory"]) if form["memory"] else ""
    return row(form["name"], bar, {"Time": time, "Memory": memory}, style)


def _files(found: dict[str, Any]) -> Markup:
    return section(
        "files",
        "Files",
        "How each is stored and why, its forms with their digests, and the encoders that they need.",
        *(_file(each) for each in found["files"]),
    )


def _file(each: dict[str, Any]) -> Markup:
    short = f"{human(each['size'])}, {_rung(each['how'])}, adds {human(each['adds'])}"
    forms = [_form(kind, form) for kind, form in each["forms"].items()]
    return element(
        "details",
        element("summary", element("strong", each["file"]), " ", element("span", short, class_="soft")),
        element("div", facts(_choice(each)), *forms),
        class_="file",
    )


def _choice(each: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a file is, the rung that it took and why, and what was found of it."""
    how = each["how"]
    yield "Platform", f"{each['platform']}, {each['arch']}, {each['role']}, {each['format']}"
    if each["virtual_size"]:
        yield "Guest disk", f"{digits(each['virtual_size'])} bytes"
    yield "Stored as", _rung(how) + (", its disk is canonical" if each["canonical"] else "")
    for tried in how.get("tried") or ():
        yield f"Not {tried['rung']}", tried["why"]
    yield "Adds", f"{digits(each['adds'])} bytes"
    yield from sorted((how.get("facts") or {}).items())
    for name, version in sorted((how.get("encoders") or {}).items()):
        yield f"Encoder {name}", version
    published = how.get("published") or {}
    for name, text in sorted((published.get("encoders") or {}).items()):
        yield f"Published by {name}", text
    for name, count in sorted((published.get("bytes") or {}).items()):
        yield f"Published, {name}", f"{digits(count)} bytes"


def _rung(how: dict[str, Any]) -> str:
    rung = str(how.get("rung") or "stored")
    return f"{rung} ({how['format']})" if how.get("format") else rung


def _form(kind: str, form: dict[str, Any]) -> Markup:
    return joined([element("h3", _FORMS[kind]), facts(_about_form(form))])


def _about_form(form: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "Name", form["name"]
    yield "Size", f"{digits(form['size'])} bytes"
    yield "SHA-256", element("code", form["sha256"])
    if form["available"]:
        memory = f", {human(form['memory'])} of memory for encoders" if form["memory"] else ""
        yield "Takes", f"{about_seconds(form['seconds'])}{memory}"
    else:
        yield "Not given back", "no encoder gives its bytes; the bundle knows its digest"
    for each in form["encoders"]:
        here = "" if each["here"] == each["made_by"] else f"; here: {each['here'] or 'not installed'}"
        yield "Encoded by", f"{each['encoder']} ({each['made_by']}{here})"
    for name, count in (form.get("origins") or {}).items():
        if count:
            yield MEANINGS[name].capitalize(), f"{digits(count)} bytes ({percent(count, form['size'])})"
