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
# is seen.
WHOLE = 10_000
LEAST = 40


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
    shows."""

    kind: str
    at: int
    width: int
    text: str


def drawn(parts: Iterable[Part], label: str, kind: str = "bar") -> Markup:
    """A bar; `label` is for who does not see it."""
    shown = [_rect(part, element("title", part.text)) for part in parts]
    return element("svg", *shown, class_=kind, role="img", aria_label=label)


def _rect(part: Part, *inside: Markup) -> Markup:
    x, width = (f"{place / 100}%" for place in (part.at, part.width))
    return element("rect", *inside, class_=part.kind, x=x, width=width, height="100%")


def shares(counts: Mapping[str, int], meanings: Mapping[str, str]) -> Markup:
    """A bar of the parts that there are, as wide as they are, but none invisible."""
    whole = sum(counts.values())
    present = {name: count for name, count in counts.items() if count}
    widths = {name: max(count * WHOLE // whole, LEAST) for name, count in present.items()}
    if widths:
        widths[max(widths, key=lambda name: widths[name])] += WHOLE - sum(widths.values())
    said = {name: f"{meanings[name]}: {percent(count, whole)}" for name, count in present.items()}
    parts, at = [], 0
    for name, width in widths.items():
        parts.append(Part(name, at, width, f"{said[name]}, {digits(present[name])} bytes"))
        at += width
    return drawn(parts, "; ".join(said.values()) or "no bytes")


def lengths(counts: Mapping[str, int], meanings: Mapping[str, str], most: int) -> Markup:
    """A bar as long as the sum of its parts, where the longest one is `most`."""
    parts, at = [], 0
    for name, count in counts.items():
        width = count * WHOLE // max(most, 1)
        width = max(width, LEAST) if count and not at else width
        parts.append(Part(name, at, width, f"{meanings[name]}: {digits(count)} bytes"))
        at += width
    return drawn(parts, "; ".join(part.text for part in parts))


def legend(meanings: Mapping[str, str]) -> Markup:
    """What the colours of bars mean."""
    return element(
        "ul",
        *(
            element("li", element("svg", _rect(Part(name, 0, WHOLE, "")), aria_hidden="true"), text)
            for name, text in meanings.items()
        ),
        class_="legend",
    )


def bars(heads: Sequence[str], rows: Iterable[Markup]) -> Markup:
    """Rows of bars below their headings: name, bar, numbers."""
    name, bar, *numbers = heads
    head = element(
        "li",
        element("span", name, class_="name head"),
        element("span", bar, class_="head"),
        *(element("span", each, class_="number head") for each in numbers),
    )
    return element("ul", head, *rows, class_="bars")


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


def more(summary: str, inside: Markup) -> Markup:
    """What is shown when it is asked for."""
    return element("details", element("summary", summary), inside)


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> Markup:
    """A table in a box that scrolls for itself, also by keys; behind `words` columns are numbers."""

    def kind(column: int) -> str | None:
        return "number" if column >= words else "wide" if column else None

    head = element("tr", *(element("th", text, scope="col", class_=kind(n)) for n, text in enumerate(heads)))
    body = [
        element(
            "tr",
            element("th", cells[0], scope="row"),
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
