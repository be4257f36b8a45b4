"""What the page of `report` is made of: elements, bars, legends, tables, and numbers in words.

Names in bundles come from anybody. Markup is made by `element` alone, which escapes every text
that is not markup yet.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, NamedTuple

from rehydrator.cli import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# A bar is so many hundredths of a per cent long, and a part of it gets at least so many that it
# is seen. Where across a bar a part is drawn, and how high, in per cent: all of it, and one that was
# widened so.
WHOLE = 10_000
LEAST = 40
FULL = (0, 100)
WIDENED = (55, 45)


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, *children: str, **attributes: object) -> Markup:
    """An element; what is no Markup among its children and attributes is escaped. Attributes are
    spelt with _ for - and behind Python's own words; None leaves one out."""
    stated = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{stated}>{joined(children)}</{name}>")


def joined(parts: Iterable[str]) -> Markup:
    """Texts and markup in a row."""
    return Markup("".join(part if isinstance(part, Markup) else escaped(part) for part in parts))


def escaped(text: str) -> Markup:
    """Fit for a page: also what would turn the direction of writing is spelt out."""
    return Markup(escape(printable(text)))


class Part(NamedTuple):
    """A part of a bar: its class, where it begins and how long it is, and what a pointer over it
    shows; `band` is where it begins across the bar, and how high it is."""

    kind: str
    at: int
    width: int
    text: str
    band: tuple[int, int] = FULL


def drawn(parts: Iterable[Part], label: str, kind: str = "bar") -> Markup:
    """A bar; `label` is for who does not see it."""
    shown = [_rect(part, element("title", part.text)) for part in parts]
    return element("svg", *shown, class_=kind, role="img", aria_label=label)


def _rect(part: Part, *inside: Markup) -> Markup:
    x, width = (f"{place / 100}%" for place in (part.at, part.width))
    y, height = (f"{place}%" for place in part.band)
    start = None if part.band == FULL else y
    return element("rect", *inside, class_=part.kind, x=x, y=start, width=width, height=height)


def is_widened(count: int, whole: int) -> bool:
    """Whether a part is drawn wider than it is, because it would not be seen."""
    return 0 < count * WHOLE < LEAST * whole


def shares(counts: Mapping[str, int], meanings: Mapping[str, str]) -> Markup:
    """A bar of the parts that there are, as wide as they are, but none invisible: those that were
    widened are lower."""
    whole = sum(counts.values())
    present = {name: count for name, count in counts.items() if count}
    widths = {name: max(count * WHOLE // whole, LEAST) for name, count in present.items()}
    if widths:
        widths[max(widths, key=lambda name: widths[name])] += WHOLE - sum(widths.values())
    said = {name: f"{meanings[name]}: {percent(count, whole)}" for name, count in present.items()}
    parts, at = [], 0
    for name, width in widths.items():
        band = WIDENED if is_widened(present[name], whole) else FULL
        parts.append(Part(name, at, width, f"{said[name]}, {digits(present[name])} bytes", band))
        at += width
    return drawn(parts, "; ".join(said.values()) or "no bytes")


def legend(meanings: Mapping[str, str], bands: Mapping[str, tuple[int, int]] | None = None) -> Markup:
    """What the colours of bars mean; `bands` has those that are not as high as a bar."""
    bands = bands or {}
    swatches = {name: _rect(Part(name, 0, WHOLE, "", bands.get(name, FULL))) for name in meanings}
    return element(
        "ul",
        *(
            element("li", element("svg", swatches[name], aria_hidden="true"), text)
            for name, text in meanings.items()
        ),
        class_="legend",
    )


def chart(*inside: Markup) -> Markup:
    """A legend and what it explains, on one page of a print where they fit."""
    return element("div", *inside, class_="chart")


def tick(text: str, place: int, line: int = 0) -> tuple[Markup, Markup]:
    """A mark on an axis, and its text in that line below it."""
    at = f"{place / 100}%"
    edge = WHOLE // 12
    anchor = "start" if place < edge else "end" if place > WHOLE - edge else "middle"
    mark = element("line", x1=at, x2=at, y1="0", y2="4" if not line else f"{line}.2rem")
    return mark, element("text", text, x=at, y=f"{line + 1}.1rem", text_anchor=anchor)


def bars(heads: Sequence[str], rows: Iterable[Markup], kind: str = "bars") -> Markup:
    """Rows of bars below their headings: name, bar, numbers."""
    name, bar, *numbers = heads
    head = element(
        "li",
        element("span", name, class_="name head"),
        element("span", bar, class_="head"),
        *(element("span", each, class_="number head") for each in numbers),
    )
    return element("ul", head, *rows, class_=kind)


def row(name: str, bar: Markup, numbers: Mapping[str, str], kind: str = "name") -> Markup:
    """A bar with its name and numbers, whose labels show where there is no room for headings."""
    return element(
        "li",
        element("span", name, class_=kind),
        bar,
        *(
            element("span", text, class_="number", data_label=label if text else None)
            for label, text in numbers.items()
        ),
    )


def section(name: str, heading: str, text: str, *inside: Markup) -> Markup:
    """A part of the page."""
    return element("section", element("h2", heading, id=name), element("p", text), *inside)


def more(summary: str, *inside: Markup) -> Markup:
    """What is shown when it is asked for."""
    return element("details", element("summary", summary), *inside)


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> Markup:
    """A table in a box that scrolls for itself, also by keys; behind `words` columns are numbers."""

    def kind(column: int) -> str | None:
        return "number" if column >= words else "wide" if column else None

    head = element("tr", *(element("th", text, scope="col", class_=kind(n)) for n, text in enumerate(heads)))
    body = [
        element(
            "tr",
            element("th", cells[0], scope="row", class_=kind(0)),
            *(element("td", text, class_=kind(n)) for n, text in enumerate(cells[1:], 1)),
        )
        for cells in rows
    ]
    parts = element("caption", caption), element("thead", head), element("tbody", *body)
    whole = element("table", *parts)
    return element("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def facts(pairs: Iterable[tuple[str, str]]) -> Markup:
    """Names and what they stand for."""
    return element("dl", *(joined([element("dt", name), element("dd", text)]) for name, text in pairs))


def digits(count: int) -> str:
    """A number in full."""
    return f"{count:,}"


def counted(count: int, what: str) -> str:
    """So many of something."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def percent(part: int, whole: int) -> str:
    """A share that says 0 and 100 only where it is none or all."""
    if not whole or part in {0, whole}:
        return "100 %" if part else "0 %"
    share = part * WHOLE / whole
    if share < 1 or share > WHOLE - 1:
        return "under 0.01 %" if share < 1 else "over 99.99 %"
    return f"{share / 100:.2f} %"
