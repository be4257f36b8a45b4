"""The plots of a run, by name. Nothing is measured here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.aims import disk_builds, file_builds
from benchmarks.base import CASES
from benchmarks.cores import PLATFORMS, PREDICTED, Amdahl
from benchmarks.figures import (
    MIB,
    added,
    again,
    bytes_text,
    exact,
    good,
    measured,
    really_added,
    rounds,
    rounds_stored,
    seconds_text,
    span,
    spread,
    who,
)
from benchmarks.obtaining import PIPE
from benchmarks.peers import PEERS, REHYDRATOR
from benchmarks.plain import PLAIN
from benchmarks.plots import Bar, Line, Span, bars, lines
from benchmarks.reading import COMMAND

if TYPE_CHECKING:
    from benchmarks.figures import Results, Step, Text

TITLES = {
    REHYDRATOR: "**rehydrator**",
    COMMAND: "**rehydrator**, the whole command",
    **{peer.name: peer.title for peer in PEERS},
    **{row.name: row.title for row in PLAIN},
}
OURS = (REHYDRATOR, COMMAND)
FLOOR = "floor: `zstd` of the canonical qcow2 alone"


def pictures(results: Results) -> dict[str, str]:
    """SVG by name; a picture that the run has no figures for is left out."""
    made = {
        "stored": _stored(results, "stored", "Stored, the whole release", bytes_text),
        "store-seconds": _stored(results, "wall", "Storing the whole release", seconds_text),
        "added": _added(results),
        **{f"back-{platform}": _back(results, platform) for platform in CASES},
        "memory": _memory(results),
        "all": _all(results),
        "read": _read(results),
        "cores": _cores(results),
        "levels": _levels(results),
        "scale-data": _scale_data(results),
        "scale-memory": _scale_memory(results),
        "scale-files": _scale_files(results),
    }
    return {name: svg for name, svg in made.items() if svg}


def stored_rows(results: Results) -> list[tuple[str, str, list[list[Step]]]]:
    """Who stored the release, under which title, and the steps of each round."""
    found = [("floor", FLOOR, [[step] for step in again(results, "floor")])]
    if builds := again(results, "build"):
        found.append((REHYDRATOR, TITLES[REHYDRATOR], [[step] for step in builds]))
    return found + [(peer.name, peer.title, rounds_stored(results, peer)) for peer in measured(results)]


def _stored(results: Results, what: str, title: str, text: Text) -> str:
    rows = []
    for name, label, found in stored_rows(results):
        sums = [float(sum(step[what] for step in steps)) for steps in found]
        failed = sum(bool(step["failed"]) for step in found[0])
        note = f"({failed} failed)" if failed else ""
        rows.append(Bar(label, (spread(sums),), name in OURS, note))
    return bars(title, "bytes" if what == "stored" else "seconds", rows, text)


def _added(results: Results) -> str:
    files = [
        each for each in results["files"] if each["platform"] in {"openstack", "aws"} and measured(results)
    ]
    if "build" not in results["steps"] or not files:
        return ""
    ours = Bar(TITLES[REHYDRATOR], tuple(_exactly(_adds(results, each)) for each in files), strong=True)
    rows = [ours]
    for peer in measured(results):
        steps = [results["steps"].get(f"store/{peer.name}/{each['name']}") for each in files]
        spans = tuple(_exactly(step["stored"]) if step and not step["failed"] else None for step in steps)
        rows.append(Bar(peer.title, spans, note="" if any(spans) else "failed"))
    names = [each["platform"] for each in files]
    return bars("What one sibling adds to what is stored", "bytes", rows, bytes_text, names)


def _adds(results: Results, file: Step) -> int:
    return really_added(results, file) or added(results, file)


def _exactly(value: float) -> Span:
    return Span(value, value, value)


def back_names(results: Results, platform: str) -> list[str]:
    """Who gave a platform's file back, or could have: rehydrator first, then plain tools, then peers."""
    found = [name.removesuffix(PIPE) for name in who(results, f"obtain/{platform}")]
    if not found:
        return []
    order = [REHYDRATOR, *(row.name for row in PLAIN), *(peer.name for peer in PEERS)]
    known = {*found, *(peer.name for peer in measured(results))}
    return [name for name in order if name in known]


def _back(results: Results, platform: str) -> str:
    rows = []
    for name in back_names(results, platform):
        both = [rounds(results, f"obtain/{platform}/{name}{suffix}") for suffix in ("", PIPE)]
        spans = tuple(span(steps) if good(steps) else None for steps in both)
        note = "" if exact([*both[0], *both[1]]) else "not exact"
        missing = "failed" if any(both) else "not stored"
        rows.append(Bar(TITLES[name], spans, name in OURS, note if any(spans) else missing))
    if not any(any(row.spans) for row in rows):
        return ""
    return bars(f"{platform}, back and verified", "seconds", rows, seconds_text, ("to a file", "to a pipe"))


def _memory(results: Results) -> str:
    """Every tool's highest peak, over all files that it gave back."""
    rows = []
    for name in [REHYDRATOR, *(peer.name for peer in measured(results))]:
        steps = [
            step
            for platform in CASES
            for suffix in ("", PIPE)
            for step in rounds(results, f"obtain/{platform}/{name}{suffix}")
            if not step["failed"]
        ]
        if steps:
            peaks = [step["memory"] / MIB for step in steps]
            found = Span(max(peaks), min(peaks), max(peaks))
            rows.append(Bar(TITLES[name], (found,), name in OURS))
    title = "Peak memory of getting a file back: the highest, and the range"
    return bars(title, "MiB", rows, lambda value: f"{value:,.4g}") if rows else ""


def _all(results: Results) -> str:
    rows = []
    for name in who(results, "all"):
        steps = rounds(results, f"all/{name}")
        found = span(steps) if good(steps) else None
        count = f"{steps[0]['files']} of {len(results['files'])} files"
        note = "" if steps[0]["files"] == len(results["files"]) else count
        note += "" if exact(steps) else f" ({len(steps[0]['wrong'])} not exact)"
        rows.append(Bar(TITLES[name], (found,), name in OURS, note.strip() if found else "failed"))
    return bars("Every file of the release back, verified", "seconds", rows, seconds_text) if rows else ""


def _read(results: Results) -> str:
    rows = []
    for name in who(results, "read"):
        steps = rounds(results, f"read/{name}")
        if not good(steps):
            rows.append(Bar(TITLES[name], (None,), name in OURS, "failed"))
        elif name == REHYDRATOR:
            walls = spread([read["wall"] for step in steps for read in step["reads"] if not read["anywhere"]])
            rows.append(Bar("**rehydrator**, reader open", (walls,), strong=True))
        else:
            note = "" if exact(steps) else "not exact"
            rows.append(Bar(TITLES[name], (span(steps),), name in OURS, note))
    title = "1 MiB at a random place of a large image, cold"
    return bars(title, "seconds", rows, seconds_text) if rows else ""


def models(results: Results) -> dict[str, tuple[list[Step], list[Step], Amdahl]]:
    """For each task of `cores`: its rounds on one processor, on two, and the model of both."""
    found = {}
    worth = worth_of_two(results)
    for task in (*PLATFORMS, "all", "build"):
        one, two = (rounds(results, f"cores/{task}/{count}") for count in (1, 2))
        if good(one) and good(two):
            found[task] = (one, two, Amdahl(span(one).median, span(two).median, worth))
    return found


def worth_of_two(results: Results) -> float:
    """What two processors do in the time of one, by two runs that share nothing; 2 where that was not
    measured."""
    one, two = (rounds(results, f"cores/control/{count}") for count in (1, 2))
    return 2 * span(one).median / span(two).median if good(one) and good(two) else 2.0


def _cores(results: Results) -> str:
    series = []
    for task, (_, _, model) in models(results).items():
        points = ((1.0, 1.0), (2.0, model.one / model.two))
        beyond = tuple((float(count), model.one / model.seconds(count)) for count in PREDICTED)
        series.append(Line(task, points, beyond))
    title = "Speed-up with processors: measured at 1 and 2, predicted (dotted) beyond"
    if not series:
        return ""
    return lines(title, "processors", "times", series, lambda value: f"{value:.3g}", (1, 2, *PREDICTED))


def level_rows(results: Results) -> list[tuple[int, Step | None, Step | None]]:
    """Level, floor and build of it; what failed or was not measured is left out."""
    steps, own = results["steps"], results["settings"]["level"]
    found = {own: (steps.get("floor"), steps.get("build"))}
    for key in steps:
        if key.startswith("level/"):
            level = int(key.split("/")[1])
            found[level] = (steps.get(f"level/{level}/floor"), steps.get(f"level/{level}/build"))
    rows = [(level, *found[level]) for level in sorted(found)]
    return rows if len(rows) > 1 else []


def _levels(results: Results) -> str:
    rows = level_rows(results)
    if not rows:
        return ""
    series = []
    for title, steps in (
        ("rehydrator build", [build for _, _, build in rows]),
        ("zstd of the canonical qcow2", [floor for _, floor, _ in rows]),
    ):
        points = tuple((step["wall"], step["stored"] / 1e6) for step in steps if step and not step["failed"])
        series.append(Line(title, points))
    levels = ", ".join(str(row[0]) for row in rows)
    title = f"Levels {levels}: seconds and bytes"
    return lines(title, "seconds", "MB stored", series, lambda value: f"{value:,.4g}")


def _scale_data(results: Results) -> str:
    return _by_virtual(results, "wall", "Build time by data in the disk", "seconds", seconds_text)


def _scale_memory(results: Results) -> str:
    title = "Peak memory of the build by data in the disk"
    return _by_virtual(results, "memory", title, "MiB", lambda value: f"{value / MIB:,.4g}")


def _by_virtual(results: Results, what: str, title: str, unit: str, text: Text) -> str:
    builds = disk_builds(results)
    series = []
    for virtual in sorted({each for _, each in builds}):
        at = sorted((data, step[what]) for (data, each), step in builds.items() if each == virtual)
        series.append(Line(f"disk of {virtual} GiB", tuple((float(data), float(y)) for data, y in at)))
    return lines(title, "MB of data", unit, series, text) if series else ""


def _scale_files(results: Results) -> str:
    builds = file_builds(results)
    points = tuple((float(count), float(builds[count]["wall"])) for count in sorted(builds))
    line = [Line("rehydrator build", points)]
    title = "Build time by number of files"
    return lines(title, "files", "seconds", line, seconds_text) if points else ""
