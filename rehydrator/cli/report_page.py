"""The page that `report` writes: its numbers as HTML, tables and SVG. It has no script, and its
policy forbids scripts and the network."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

from rehydrator.cli.common import human
from rehydrator.cli.report_map import maps
from rehydrator.cli.report_markup import (
    LEAST,
    WHOLE,
    Markup,
    Part,
    bars,
    counted,
    digits,
    drawn,
    element,
    escaped,
    facts,
    joined,
    legend,
    lengths,
    more,
    percent,
    row,
    section,
    shares,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

MEANINGS = {
    "canonical": "of the canonical disk",
    "file": "of another file",
    "encoded": "encoded again",
    "decoded": "decoded from what is stored encoded",
    "own": "stored for it alone",
    "tables": "computed tables",
    "zeros": "runs of zeros",
}
_PARTS = {"data": "data", "recipes": "recipes", "index": "index"}
_TIMES = {"time": "image", "time2": "as published"}
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
    streams = ", ".join(each["stream"] for each in bundle["releases"]) or "none"
    signed = ", ".join(bundle["signatures"]) or "nobody"
    said = f"Where the bytes and seconds of this bundle go. Stream: {streams}. Signed by: {signed}. "
    return element("p", said, "bundle.json: ", element("code", f"sha256:{bundle['sha256']}"))


def _tiles(totals: dict[str, int]) -> Markup:
    images, stored = totals["images"], totals["stored"]
    tiles = [
        (counted(totals["files"], "file"), f"{human(totals['data'])} of data outside of zeros"),
        (human(totals["published"]), "as they are published"),
        (human(images), "as images"),
        (human(stored), f"stored, 1/{images // stored if stored else 0} of the images"),
        (human(totals["added"]), "of that for one file each"),
        (human(totals["shared"]), "for several: canonical disks and what they stand on"),
    ]
    shown = [element("li", element("strong", big), element("span", small)) for big, small in tiles]
    return element("ul", *shown, class_="tiles")


def _origins(found: dict[str, Any]) -> Markup:
    """The bars of classes, and the same as a table."""
    rows, cells = [], []
    for name, counts, adds, kind in _rows(found):
        size = sum(counts.values())
        numbers = {"Size": human(size), "Adds": "" if adds is None else f"+{human(adds)}"}
        rows.append(row(name, shares(counts, MEANINGS), numbers, kind))
        cells.append([name, *(digits(counts[each]) for each in found["classes"]), digits(size)])
    heads = ["File", *found["classes"], "Sum"]
    return section(
        "origins",
        "Where the bytes of each file come from",
        "Each bar is one file, whatever its size. A part that would be too thin to see is drawn wider; the "
        "table has every byte. A second, thinner bar is the compressed file as it was published.",
        legend(MEANINGS),
        bars(["File", "Where its bytes come from", "Size", "Adds"], rows),
        more("The same as a table, in bytes", table("Bytes by origin; rows add up.", heads, cells)),
    )


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
    """What is stored, the largest first."""
    packs = sorted(found["packs"], key=lambda pack: -pack["size"])
    most = max((pack["size"] for pack in packs), default=1)
    rows, cells = [], []
    for pack in packs:
        name = _kept_for(pack["kept_for"], found)
        bar = lengths({part: pack[part] for part in _PARTS}, _PARTS, most)
        rows.append(row(name, bar, {"Stored": human(pack["size"]), "Plain": human(pack["plain"])}))
        sizes = [digits(pack[key]) for key in ("data", "recipes", "index", "size", "plain", "frames")]
        cells.append([pack["file"], name, *sizes])
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
        legend(_PARTS),
        bars(["Kept for", "Bytes stored, compared with the largest pack", "Stored", "Plain"], rows),
        more("The same as a table, in bytes", table("Packs and other files.", heads, cells, words=2)),
    )


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
        f"Estimated for one file alone and {counted(found['threads'], 'thread')}, by the speeds of encoders "
        "on the author's machine: they tell seconds from minutes, and no more. Memory is that of encoders, "
        "beside the program's own.",
        legend(_TIMES),
        bars(
            ["File", "Seconds, compared with the longest", "Time", "Memory"],
            [_time(kind, form, longest) for kind, form in forms],
        ),
    )


def _time(kind: str, form: dict[str, Any], longest: float) -> Markup:
    time = f"{form['seconds']:.1f} s"
    width = max(int(form["seconds"] * WHOLE / (longest or 1)), LEAST)
    colour, style = ("time", "name") if kind == "image" else ("time2", "name beside")
    bar = drawn([Part(colour, 0, width, f"about {time}")], f"about {time}")
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
        yield "Takes", f"about {form['seconds']:.1f} s{memory}"
    else:
        yield "Not given back", "no encoder gives its bytes; the bundle knows its digest"
    for each in form["encoders"]:
        here = "" if each["here"] == each["made_by"] else f"; here: {each['here'] or 'not installed'}"
        yield "Encoded by", f"{each['encoder']} ({each['made_by']}{here})"
    for name, count in (form.get("origins") or {}).items():
        if count:
            yield MEANINGS[name].capitalize(), f"{digits(count)} bytes ({percent(count, form['size'])})"
