"""Plots as SVG by hand: horizontal bars with spread, and lines. No network, no fonts of its own;
text stays text; colours that the colour-blind tell apart, for light and for dark pages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_WIDTH, _LABELS, _VALUES = 920, 350, 140  # of the picture; of the columns beside the bars
_TOP, _ROW, _BAR, _AXIS = 52, 26, 14, 40
_CHARACTER = 6.6  # width of one at 12 pixels, at most on average

# Okabe and Ito's colours (2008); each with another for dark pages where it would not be seen.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DARK = ("#4aa8e0", "#f08a45", "#2fc79c", "#e0a0c4", "#f0b83a", "#8fd0f5")
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 4", "10 4")


@dataclass(frozen=True)
class Span:
    """A median, and the least and the most of the rounds."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class Bar:
    """One row; `spans` belong to the names of the series, None where nothing was measured. `strong`:
    what the reader looks for; `note` stands behind the value."""

    label: str
    spans: tuple[Span | None, ...]
    strong: bool = False
    note: str = ""


@dataclass(frozen=True)
class Line:
    """One series of points (x, y), with what was `predicted` rather than measured behind them."""

    name: str
    points: tuple[tuple[float, float], ...]
    predicted: tuple[tuple[float, float], ...] = ()


def bars(
    title: str,
    unit: str,
    rows: Sequence[Bar],
    text: Callable[[float], str],
    series: Sequence[str] = ("",),
) -> str:
    """Rows of bars from zero; from a power of ten on a logarithmic axis, where the values lie apart."""
    spans = [span for row in rows for span in row.spans if span]
    scale = _scale([span.median for span in spans], max(span.most for span in spans), _LABELS, _plot_end())
    bottom = _TOP + sum(map(_height, rows))
    parts = _grid(scale, _TOP - 6, bottom, text)
    top = _TOP
    for row in rows:
        parts += _row(row, top, scale, text)
        top += _height(row)
    parts.append(_said(f"{unit}{', logarithmic' if scale.log else ''}", _LABELS, bottom + 30, "faint"))
    if len(series) > 1:
        parts += _bar_legend(series)
    return _picture(title, bottom + _AXIS, parts)


def lines(
    title: str,
    x_title: str,
    y_title: str,
    series: Sequence[Line],
    text: Callable[[float], str],
    marks: Sequence[float] = (),
) -> str:
    """Points joined by lines; predictions are hollow and dashed. `marks`: where both axes have labels,
    if they are logarithmic."""
    points = [point for line in series for point in (*line.points, *line.predicted)]
    left, right, top, bottom = 90, _WIDTH - 260, _TOP, _TOP + 300
    across = _scale([x for x, _ in points], max(x for x, _ in points), left, right, marks)
    up = _scale([y for _, y in points], max(y for _, y in points) * 1.05, bottom, top, marks)
    parts = _grid(across, top, bottom, _short)
    parts += _levels(up, left, right, text)
    for number, line in enumerate(series):
        parts += _line(number, line, across, up)
        parts += _line_legend(number, line.name, right + 24, top + 10 + 22 * number)
    parts.append(_said(f"{x_title}{', logarithmic' if across.log else ''}", left, bottom + 36, "faint"))
    parts.append(_said(f"{y_title}{', logarithmic' if up.log else ''}", left - 60, top - 12, "faint"))
    return _picture(title, bottom + 50, parts)


# Axes


@dataclass(frozen=True)
class _Scale:
    """From values to pixels, `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    marks: Sequence[float] = ()

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log10(max(value, self.low) / self.low) / math.log10(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Where the axis has labels: powers of ten, or steps of 1, 2 or 5 times one."""
        if self.log and self.marks:
            return [mark for mark in self.marks if self.low <= mark <= self.high]
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            step = max(1, (last - first) // 6)
            return [10.0**power for power in range(first, last + 1, step)]
        step = 10 ** math.floor(math.log10(self.high / 5))
        step *= next(times for times in (1, 2, 5, 10) if self.high / (step * times) <= 6)
        return [step * number for number in range(math.floor(self.high / step + 1e-9) + 1)]


_APART = 30  # times the least value, from which an axis is logarithmic


def _scale(
    values: Sequence[float], most: float, start: float, end: float, marks: Sequence[float] = ()
) -> _Scale:
    positive = [value for value in values if value > 0]
    most = most if most > 0 else 1.0
    if positive and most / min(positive) > _APART:
        low = 10.0 ** math.floor(math.log10(min(positive)) - 0.01)  # the least bar can be seen, too
        return _Scale(min(positive) if marks else low, most, start, end, True, marks)
    return _Scale(0, most, start, end, log=False)


def _plot_end() -> int:
    return _WIDTH - _VALUES


def _grid(scale: _Scale, top: float, bottom: float, text: Callable[[float], str]) -> list[str]:
    parts = []
    for tick in scale.ticks():
        x = scale(tick)
        parts.append(f'<path class="grid" d="M{x} {top}V{bottom}"/>')
        parts.append(_said(text(tick), x, bottom + 15, "faint", "middle"))
    return parts


def _levels(scale: _Scale, left: float, right: float, text: Callable[[float], str]) -> list[str]:
    parts = []
    for tick in scale.ticks():
        y = scale(tick)
        parts.append(f'<path class="grid" d="M{left} {y}H{right}"/>')
        parts.append(_said(text(tick), left - 8, y + 4, "faint", "end"))
    return parts


# Marks


def _height(row: Bar) -> int:
    """Of a row: as many bars as reach down to the last one that there is."""
    last = max((number for number, span in enumerate(row.spans) if span), default=0)
    return _ROW + last * _BAR


def _row(row: Bar, top: float, scale: _Scale, text: Callable[[float], str]) -> list[str]:
    label = _said(_cut(row.label), _LABELS - 10, top + 12, "strong" if row.strong else "", "end")
    parts = [label]
    for number, span in enumerate(row.spans):
        if span:
            parts += _bar(row, span, number, top + number * _BAR, scale, text)
    if not any(row.spans):
        parts.append(_said(row.note or "not measured", _LABELS + 6, top + 12, "faint"))
    return parts


def _bar(
    row: Bar, span: Span, number: int, top: float, scale: _Scale, text: Callable[[float], str]
) -> list[str]:
    x, kind = scale(span.median), "ours" if row.strong else "theirs"
    least, most, middle = scale(span.least), scale(span.most), top + _BAR / 2
    width = max(1.0, round(x - _LABELS, 1))
    form = f'x="{_LABELS}" y="{top + 1}" width="{width}" height="{_BAR - 2}"'
    parts = [f'<rect class="{kind}{" second" if number else ""}" {form}/>']
    if most > least:
        parts.append(
            f'<path class="spread" d="M{least} {middle}H{most}M{least} {middle - 4}V{middle + 4}'
            f'M{most} {middle - 4}V{middle + 4}"/>'
        )
    note = f" {row.note}" if row.note else ""
    parts.append(_said(f"{text(span.median)}{note}", max(x, most) + 6, top + 11))
    return parts


def _line(number: int, line: Line, across: _Scale, up: _Scale) -> list[str]:
    found = [(across(x), up(y)) for x, y in line.points]
    beyond = [(across(x), up(y)) for x, y in line.predicted]
    parts = [_path(found, f"line line{number}", _DASHES[number % len(_DASHES)])]
    if beyond:
        parts.append(_path([*found[-1:], *beyond], f"line line{number} predicted", "2 4"))
    parts += [f'<circle class="dot{number}" cx="{x}" cy="{y}" r="3.5"/>' for x, y in found]
    return parts + [f'<circle class="line{number} hollow" cx="{x}" cy="{y}" r="3.5"/>' for x, y in beyond]


def _path(points: Sequence[tuple[float, float]], kind: str, dashes: str) -> str:
    d = "M" + "L".join(f"{x} {y}" for x, y in points)
    return f'<path class="{kind}" d="{d}"' + (f' stroke-dasharray="{dashes}"' if dashes else "") + "/>"


def _line_legend(number: int, name: str, x: float, y: float) -> list[str]:
    dashes = _DASHES[number % len(_DASHES)]
    return [_path([(x, y), (x + 26, y)], f"line line{number}", dashes), _said(_cut(name, 30), x + 34, y + 4)]


def _bar_legend(series: Sequence[str]) -> list[str]:
    parts, x = [], float(_LABELS)
    for number, name in enumerate(series):
        parts.append(
            f'<rect class="theirs{" second" if number else ""}" x="{x}" y="31" width="12" height="10"/>'
        )
        parts.append(_said(name, x + 18, 40, "faint"))
        x += 40 + len(name) * _CHARACTER
    return parts


# The picture


def _said(text: str, x: float, y: float, kind: str = "", anchor: str = "") -> str:
    about = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text x="{round(x, 1)}" y="{round(y, 1)}"{about}>{escape(text)}</text>'


def _cut(label: str, most: int = 0) -> str:
    """A label without the marks of Markdown, that fits its column."""
    plain = label.replace("`", "").replace("**", "")
    limit = most or int((_LABELS - 16) / _CHARACTER)
    return plain if len(plain) <= limit else f"{plain[: limit - 1]}…"


def _short(value: float) -> str:
    return f"{value:,.10g}"


def _picture(title: str, height: float, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    heading = f'<text class="title" x="16" y="24">{escape(_cut(title, 120))}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:g}" width="{_WIDTH}" '
        f'height="{height:g}" role="img">\n<title>{escape(_cut(title, 120))}</title>\n<style>\n{_style()}\n'
        f'</style>\n<rect class="ground" width="{_WIDTH}" height="{height:g}"/>\n{heading}\n{body}\n</svg>\n'
    )


def _style() -> str:
    light = _rules("#ffffff", "#1f2328", "#57606a", "#d8dee4", "#8c959f", _COLOURS)
    dark = _rules("#0d1117", "#e6edf3", "#9ea7b3", "#30363d", "#6e7681", _DARK)
    return (
        "text{font:12px system-ui,'DejaVu Sans',Arial,sans-serif}.title{font-size:14px;font-weight:600}"
        ".strong{font-weight:700}.grid,.spread,.line{fill:none}.spread{stroke-width:1.4}"
        ".line{stroke-width:2}.second{opacity:.55}.hollow{stroke-width:2}"
        f"\n{light}\n@media (prefers-color-scheme: dark){{{dark}}}"
    )


def _rules(ground: str, ink: str, faint: str, grid: str, theirs: str, colours: Sequence[str]) -> str:
    rules = (
        f".ground{{fill:{ground}}}text{{fill:{ink}}}.faint{{fill:{faint}}}.grid{{stroke:{grid}}}"
        f".spread{{stroke:{ink}}}.theirs{{fill:{theirs}}}.ours{{fill:{colours[0]}}}.hollow{{fill:{ground}}}"
    )
    for number, colour in enumerate(colours):
        rules += f".line{number}{{stroke:{colour}}}.dot{number}{{fill:{colour}}}"
    return rules
