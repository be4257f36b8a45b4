"""The document of a run. Nothing is measured here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.aims import Aim, aims, disk_builds, file_builds
from benchmarks.base import CASES
from benchmarks.cores import Amdahl
from benchmarks.figures import (
    KIB,
    MIB,
    Results,
    Step,
    added,
    again,
    exact,
    good,
    measured,
    memory,
    peer_of,
    really_added,
    rounds,
    sized,
    span,
    spread,
    timed,
    who,
)
from benchmarks.obtaining import PIPE
from benchmarks.peers import REHYDRATOR
from benchmarks.pictures import TITLES, back_names, level_rows, models, stored_rows, worth_of_two
from benchmarks.plain import PLAIN

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

# What published_document.py takes from here.
__all__ = ["KIB", "MIB", "Aim", "Results", "Step", "markdown", "sized", "table"]

# A file has SHA-256 states at no more than 128 boundaries.
_SEGMENTS = 129


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    lines = [list(head), ["---", *["---:"] * (len(head) - 1)], *map(list, rows)]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def markdown(results: Results, plots: Collection[str] = ()) -> str:
    """The whole document; `plots` are the names of the pictures that lie in benchmarks/ beside it."""

    def plot(name: str, what: str) -> str:
        return f"![{what}](benchmarks/{name}.svg)" if name in plots else ""

    judged = aims(results)
    sections = [
        _opening(results),
        "## Aims" if judged else "",
        _aims_table(judged) if judged else "",
        "## Stored, and the time it took",
        _stored_text(results),
        plot("stored", "bytes stored by each tool"),
        plot("store-seconds", "seconds that each tool takes to store the release"),
        _totals(results),
        "## One more sibling",
        _adds_text(results),
        plot("added", "bytes that a sibling adds, by tool"),
        _adds_table(results),
        _one_more(results),
        "## Back, verified",
        _back_text(results),
        *(
            part
            for platform in CASES
            for part in (
                plot(f"back-{platform}", f"seconds to get {platform} back, by tool"),
                _back_table(results, platform),
            )
        ),
        *_memory_section(plot("memory", "peak memory by tool")),
        *_all_section(results, plot("all", "seconds to get everything back, by tool")),
        *_read_section(results, plot("read", "seconds to read 1 MiB, by tool")),
        *_startup_section(results),
        *_cores_section(results, plot("cores", "speed-up with processors")),
        *_levels_section(results, plot("levels", "seconds and bytes by level")),
        *_scale_section(
            results,
            [
                plot("scale-data", "build time by data"),
                plot("scale-memory", "build memory by data"),
                plot("scale-files", "build time by number of files"),
            ],
        ),
        "## What was run",
        _commands(results),
        "## Machine and versions",
        table(("", ""), [*results["machine"].items(), *results["tools"].items()]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _aims_table(judged: Sequence[Aim]) -> str:
    rows = ((aim.wanted, aim.measured, "met" if aim.met else "**missed**") for aim in judged)
    return table(("aim", "measured", ""), rows)


def _opening(results: Results) -> str:
    files, settings = results["files"], results["settings"]
    apparent, allocated = (sum(each[key] for each in files) for key in ("size", "allocated"))
    return (
        "# The measured comparison\n\n"
        f"Written by `make bench` from `benchmarks.json`, {results['taken']}; not edited by hand. "
        f"One run over the *{settings['corpus']}* release: {len(files)} files of "
        f"{apparent:,} bytes, {allocated:,} of them on disk. The canonical file is "
        f"`{results['canonical']}`. Seconds are wall-clock seconds, medians with the least and the most of "
        f"the rounds: {settings['rounds']} of getting files back, {settings.get('store_rounds', 1)} of "
        "storing; whiskers in the plots are the same. Ratios are between figures of this "
        "run. Memory is that of all processes together, at its highest, looked at every 50 ms; a single "
        "process's own record counts where it is larger. Input files were in the page cache unless said "
        "otherwise. Every file that came back was compared with the release's own digest: *not exact* "
        "marks a tool that gave other bytes."
    )


# Storing


def _stored_text(results: Results) -> str:
    level, bundle = results["settings"]["level"], results["steps"].get("build", {}).get("bundle")
    ours = (
        "Rehydrator's bytes are all files of the OCI layout, without a runtime (`--runtime none`)"
        + (f"; of these, {bundle:,} are the bundle itself. " if bundle else ". ")
        + "Its seconds include the proof, which regenerates every file from the finished bundle."
    )
    return (
        f"The floor is `zstd -{level} --long=27 -T0` of the canonical qcow2 alone. The delta tools store "
        "that and a delta for each sibling, zstd-compressed at the same level where the tool does not "
        "compress by itself; ostree and the method of 2021 store the canonical file in their own way; the "
        "chunk stores take all files, the canonical one first. bsdiff needs 17 times the canonical file in "
        f"memory and may have {results['settings'].get('memory', 8)} GiB of address space, and "
        f"{results['settings'].get('patience', 1800):,} seconds of a processor for a file. {ours}"
    )


def _totals(results: Results) -> str:
    rows = [_total_row(results, label, found) for _, label, found in stored_rows(results)]
    head = ("tool", "bytes stored", "to floor", "seconds", "CPU seconds", "peak MiB")
    return table(head, rows) + _failures(results, "store/")


def _total_row(results: Results, title: str, found: Sequence[Sequence[Step]]) -> list[str]:
    steps = found[0]
    stored, failed = sum(step["stored"] for step in steps), sum(bool(step["failed"]) for step in steps)
    return [
        title,
        f"{stored:,}" + (f" without the {failed} that failed" if failed else ""),
        f"{stored / results['steps']['floor']['stored']:.3f}",
        timed(spread([sum(step["wall"] for step in each) for each in found])),
        f"{sum(step['cpu'] for step in steps):,.1f}",
        f"{max(memory(each) for each in found) / MIB:,.0f}",
    ]


def _adds_text(results: Results) -> str:
    text = (
        "Bytes (KiB) that a sibling adds to what is stored: rehydrator's own account (the recipe, and the "
        "bytes that no other file has); the size of the delta; the growth of a chunk store as the files "
        "are added in this order."
    )
    really = [
        f"{each['name']} {sized(found)}, accounted {sized(added(results, each))}"
        for each in results["files"]
        if (found := really_added(results, each)) is not None
    ]
    if not really:
        return text
    return (
        f"{text} Checked by building the release without the file, which counts its layer and its entries "
        f"in the manifests too: {'; '.join(really)}. The aims are judged by that, for other files by the "
        "account and the larger of these differences."
    )


def _adds_table(results: Results) -> str:
    ours, found = "build" in results["steps"], measured(results)
    head = ["file", "size", *(["**rehydrator**"] if ours else []), *(peer.title for peer in found)]
    rows = []
    for each in results["files"]:
        if each["name"] != results["canonical"]:
            deltas = [results["steps"].get(f"store/{peer.name}/{each['name']}") for peer in found]
            cells = [f"**{sized(added(results, each))}**"] if ours else []
            cells += [_added_cell(step) for step in deltas]
            rows.append([f"`{each['name']}`", f"{each['size']:,}", *cells])
    return table(head, rows) if rows else ""


def _added_cell(step: Step | None) -> str:
    if step is None:
        return ""
    return "failed" if step["failed"] else sized(step["stored"])


def _one_more(results: Results) -> str:
    """Seconds and memory of adding one; rehydrator builds the release again."""
    file = next((each for each in results["files"] if each["platform"] == CASES[0]), None)
    rows = []
    if file and (builds := again(results, "build")):
        rows.append(["**rehydrator**, the whole release built", *_took(builds)])
    for peer in measured(results) if file else []:
        steps = again(results, f"store/{peer.name}/{file['name']}") if file else []
        if steps:
            rows.append([peer.title, *(_took(steps) if good(steps) else ["failed", "", ""])])
    if len(rows) < 2:
        return ""
    text = f"What it takes to add {CASES[0]} to what is stored already; a bundle is built again as a whole."
    return f"{text}\n\n{table(('tool', 'seconds', 'CPU seconds', 'peak MiB'), rows)}"


def _took(steps: Sequence[Step]) -> list[str]:
    cpu = span(steps, "cpu").median
    return [timed(span(steps)), f"{cpu:,.2f}", f"{memory(steps) / MIB:,.0f}"]


def _failures(results: Results, prefix: str) -> str:
    """What failed, in the tool's own words."""
    steps = results["steps"].items()
    failed = [(key, step["failed"]) for key, step in steps if key.startswith(prefix) and step["failed"]]
    lines = [f"- `{key}`: {said}" for key, said in failed]
    return "\n\nFailed:\n\n" + "\n".join(lines) if lines else ""


# Getting files back


def _back_text(results: Results) -> str:
    return (
        "Seconds to get a file back from nothing but what is stored, with its SHA-256 verified, in turn. "
        "Rehydrator verifies, calls fsync and renames; the delta tools decompress the canonical qcow2 "
        "first, then write through `tee` into `sha256sum`, with holes where the original has them; those "
        "that write the file themselves are followed by `sha256sum`. *to a pipe*: rehydrator's reader "
        "keeps the bytes in a file, the peers' is `sha256sum`; a peer that can only write a file writes "
        "it first. Plain tools do the final step alone, from a file that is there already: they are what "
        "it costs at least; `qemu-img convert` starts from a qcow2 of the same disk. sha256sum is that of "
        "coreutils, which may not use the processor's SHA extensions; openssl does."
    )


def _back_table(results: Results, platform: str) -> str:
    names = back_names(results, platform)
    if not names:
        return ""
    ours = rounds(results, f"obtain/{platform}/{REHYDRATOR}")
    rows = []
    for name in names:
        for suffix, where in (("", ""), (PIPE, ", to a pipe")):
            steps = rounds(results, f"obtain/{platform}/{name}{suffix}")
            if steps or (not suffix and peer_of(name)):
                rows.append(_back_row(TITLES[name] + where, steps, ours))
    head = ("tool", "seconds", "to rehydrator", "CPU seconds", "peak MiB", "")
    name = next(each["name"] for each in results["files"] if each["platform"] == platform)
    return f"### {platform}: `{name}`\n\n" + table(head, rows) + _failures(results, f"obtain/{platform}/")


def _back_row(title: str, steps: Sequence[Step], ours: Sequence[Step]) -> list[str]:
    if not good(steps):
        return [title, "failed" if steps else "not stored", "", "", "", ""]
    ratio = f"{span(steps).median / span(ours).median:.2f}" if good(ours) else ""
    seconds, *rest = _took(steps)
    return [title, seconds, ratio, *rest, "" if exact(steps) else "**not exact**"]


def _memory_section(plot: str) -> list[str]:
    return (
        ["### Memory", "Over all files that a tool gave back, to a file and to a pipe.", plot] if plot else []
    )


def _all_section(results: Results, plot: str) -> list[str]:
    rows = [_all_row(results, name) for name in who(results, "all")]
    if not rows:
        return []
    names = [each["name"] for each in results["files"]]
    single = [rounds(results, f"single/{name}") for name in names]
    if all(map(good, single)) and single:
        total = sum(span(steps).median for steps in single)
        cpu = sum(span(steps, "cpu").median for steps in single)
        highest = f"{max(map(memory, single)) / MIB:,.0f}"
        count = f"{len(names)}"
        rows.insert(
            1,
            ["**rehydrator**, each in a run of its own", f"{total:,.2f}", f"{cpu:,.2f}", highest, count, ""],
        )
    text = (
        "Every image of the release into one directory, each verified. Peers decompress the canonical file "
        "once, and their files are removed when they were hashed; what they could not store is left out."
    )
    head = ("tool", "seconds", "CPU seconds", "peak MiB", "files", "")
    return ["### Everything", text, plot, table(head, rows) + _failures(results, "all/")]


def _all_row(results: Results, name: str) -> list[str]:
    steps = rounds(results, f"all/{name}")
    files, wrong = f"{steps[0].get('files', '')}", steps[0].get("wrong", ())
    took = _took(steps) if good(steps) else ["failed", "", ""]
    note = f"**not exact**: {len(wrong)}" if wrong and good(steps) else ""
    return [TITLES[name], *took, files, note]


def _read_section(results: Results, plot: str) -> list[str]:
    names = who(results, "read")
    if not names:
        return []
    rows = []
    for name in names:
        steps = rounds(results, f"read/{name}")
        if name == REHYDRATOR and good(steps):
            rows += [_open_row(steps, anywhere=False), _open_row(steps, anywhere=True)]
        else:
            took = _took(steps) if good(steps) else ["failed", "", ""]
            rows.append([TITLES[name], *took, _mark(steps)])
    text = (
        "One MiB of the largest image (azure's, as large as its disk), at a random place where it has data; "
        "for rehydrator's open reader as many places anywhere in it, most of which are holes. What is "
        "stored was dropped from the page cache before each read, and nothing was decoded. A tool that "
        "cannot read a range gives the file back as far as the range's end."
    )
    head = ("tool", "seconds", "CPU seconds", "peak MiB", "")
    return ["### 1 MiB, cold", text, plot, table(head, rows) + _failures(results, "read/")]


def _open_row(steps: Sequence[Step], *, anywhere: bool) -> list[str]:
    """Reads with a reader that was open."""
    reads = [read for step in steps for read in step["reads"] if read["anywhere"] is anywhere]
    wall, cpu = (spread([read[what] for read in reads]) for what in ("wall", "cpu"))
    where = ", anywhere" if anywhere else ""
    title = f"**rehydrator**, reader open, {len(reads)} reads{where}"
    return [title, timed(wall), timed(cpu), f"{memory(steps) / MIB:,.0f}", _mark(steps)]


def _mark(steps: Sequence[Step]) -> str:
    return "" if exact(steps) else "**not exact**"


def _startup_section(results: Results) -> list[str]:
    verbs = who(results, "startup")
    if not verbs:
        return []
    rows = []
    for verb in verbs:
        steps = rounds(results, f"startup/{verb}")
        took = [timed(span(steps)), timed(span(steps, "cpu")), f"{memory(steps) / MIB:,.0f}"]
        rows.append([f"`{verb}`", *(took if good(steps) else ["failed", "", ""])])
    return ["### Start-up", table(("", "seconds", "CPU seconds", "peak MiB"), rows)]


# Cores, levels, scale


def _cores_section(results: Results, plot: str) -> list[str]:
    found = models(results)
    if not found:
        return []
    rows = []
    for task, (one, two, model) in found.items():
        ends = spread([Amdahl(*each, model.worth).share for each in _extremes(one, two)])
        rows.append(
            [
                task,
                timed(span(one)),
                timed(span(two)),
                f"{model.one / model.two:.2f}",
                f"{model.share:.0%} ({ends.least:.0%} to {ends.most:.0%})",
                *(f"{model.seconds(count):,.2f}" for count in (8, 64)),
            ]
        )
    text = (
        "The same task on one and on two processors (`taskset`), rehydrator alone; *build* at level "
        f"{results['settings'].get('scale_level', 3)}. "
        f"{_worth(results)} The serial share is Amdahl's, from "
        "T(2) = T(1)·(share + (1 - share)/w); with w = 2 it would be the experimentally determined serial "
        "fraction of Karp and Flatt (1990). In brackets is what the extremes of the rounds give. The "
        "prediction is T(n) = T(1)·(share + (1 - share)/(n·w/2)). It knows nothing of a disk's or the "
        "memory's limit, nor of clocks that fall when many cores work; it is an upper bound of the speed. An "
        f"image has at most {_SEGMENTS} segments that can be made apart. Where the share is 0, the noise of "
        "the rounds is all that the prediction rests on."
    )
    head = ("task", "1: seconds", "2: seconds", "speed-up", "serial share", "8: predicted", "64: predicted")
    return ["## Processors", text, plot, table(head, rows)]


def _worth(results: Results) -> str:
    if "cores/control/2/0" not in results["steps"]:
        return "Two processors are taken to be worth w = 2 times one."
    return (
        f"Two processors of this machine are worth w = {worth_of_two(results):.2f} times one: so much "
        "more is done in a time by two runs with one thread each that have nothing to do with each other "
        "(aws to /dev/null)."
    )


def _extremes(one: Sequence[Step], two: Sequence[Step]) -> list[tuple[float, float]]:
    first, second = span(one), span(two)
    return [(first.most, second.least), (first.median, second.median), (first.least, second.most)]


def _levels_section(results: Results, plot: str) -> list[str]:
    rows = []
    for level, floor, build in level_rows(results):
        cells = [f"{level}"]
        for step in (build, floor):
            cells += [f"{step['wall']:,.1f}", f"{step['stored']:,}"] if step else ["", ""]
        rows.append(cells)
    if not rows:
        return []
    text = "`rehydrator build --level` of the release, proof included, beside zstd of the canonical qcow2."
    head = ("level", "build: seconds", "bytes", "zstd: seconds", "bytes")
    return ["## Levels", text, plot, table(head, rows) + _failures(results, "level/")]


def _scale_section(results: Results, plots: Sequence[str]) -> list[str]:
    disks, files = disk_builds(results), file_builds(results)
    if not disks and not files:
        return []
    level = results["settings"].get("scale_level", 3)
    text = (
        f"`rehydrator build --level {level}`, with proof, of releases made for it: the canonical disk's own "
        "pages, spread evenly over a disk of the size, and taken again, made different, where it has too "
        "few; a qcow2 and a raw file of that. *raw back* is the raw file rehydrated; most of it is SHA-256 "
        "of zeros. Below, siblings of one disk that differ in a page."
    )
    parts = ["## Scale", text]
    if disks:
        rows = [_disk_row(results, key, disks[key]) for key in sorted(disks)]
        head = (
            "MB of data",
            "GiB",
            "build: seconds",
            "peak MiB",
            "bytes",
            "raw back: seconds",
            "peak MiB",
            "",
        )
        parts += [*plots[:2], table(head, rows)]
    if files:
        rows = [
            [f"{count}", f"{step['wall']:,.1f}", f"{memory([step]) / MIB:,.0f}", f"{step['stored']:,}"]
            for count, step in sorted(files.items())
        ]
        parts += [plots[2], table(("files", "build: seconds", "peak MiB", "bytes"), rows)]
    return [*parts, _failures(results, "scale/").strip()]


def _disk_row(results: Results, key: tuple[int, int], build: Step) -> list[str]:
    back = results["steps"].get(f"scale/disk/{key[0]}/{key[1]}/back")
    ours = [f"{build['wall']:,.1f}", f"{memory([build]) / MIB:,.0f}", f"{build['stored']:,}"]
    theirs = [f"{back['wall']:,.1f}", f"{memory([back]) / MIB:,.0f}", _mark([back])] if back else ["", "", ""]
    return [f"{key[0]:,}", f"{key[1]}", *ours, *theirs]


# What was run


def _commands(results: Results) -> str:
    steps = results["steps"]
    name = next((each["name"] for each in results["files"] if each["platform"] == CASES[0]), "")
    wanted = [("floor", "the floor"), ("build", "rehydrator")]
    wanted += [(f"obtain/{CASES[0]}/{each}/0", "") for each in (REHYDRATOR, REHYDRATOR + PIPE)]
    wanted += [(f"obtain/{CASES[0]}/{row.name}/0", row.title.replace("`", "")) for row in PLAIN]
    wanted += [("obtain/aws/qemu-img/0", ""), (f"all/{REHYDRATOR}/0", "everything")]
    for peer in measured(results):
        wanted += [(f"store/{peer.name}/{part}", f"{peer.title}: {part}") for part in ("start", name)]
        wanted.append((f"obtain/{CASES[0]}/{peer.name}/0", f"{peer.title}: back"))
    text = "\n\n".join(
        (f"# {title}\n" if title else "") + steps[key]["script"]
        for key, title in wanted
        if key in steps and steps[key]["script"]
    )
    return f"For {CASES[0]}:\n\n```sh\n{text}\n```"
