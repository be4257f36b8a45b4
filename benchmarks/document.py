"""From the results of a run: whether the aims are met, and the document. Nothing is measured here."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.comparison import CASES, GIB, LARGE, OPENSSL, PIPELINE, TO_PIPE
from benchmarks.peers import PEERS, REHYDRATOR, Peer
from rehydrator.variants.derivations import load_derivations

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

KIB, MIB = 1 << 10, 1 << 20

_STAMPED, _CONVERTED = 16 * KIB, 64 * KIB
_TITLES = {
    PIPELINE: "`zstd -dc | tee | sha256sum` (the canonical qcow2)",
    OPENSSL: "the same with `openssl dgst -sha256`",
    REHYDRATOR: "**rehydrator**",
    TO_PIPE: "**rehydrator**, to standard output",
} | {peer.name: peer.title for peer in PEERS}

Results = dict[str, Any]
Step = dict[str, Any]


@dataclass(frozen=True)
class Aim:
    """What the project wants and what was measured."""

    wanted: str
    measured: str
    met: bool

    def __str__(self) -> str:
        return f"{'met' if self.met else 'NOT MET'}: {self.wanted}: {self.measured}"


def aims(results: Results) -> list[Aim]:
    """Every aim that this run has the figures for."""
    if "build" not in results["steps"]:
        return []
    return [*_total(results), *_siblings(results), *_speed(results), *_memory(results)]


def _total(results: Results) -> list[Aim]:
    steps = results["steps"]
    ratio = steps["build"]["stored"] / steps["floor"]["stored"]
    measured = f"{ratio:.4f} ({steps['build']['stored']:,} to {steps['floor']['stored']:,} bytes)"
    level = results["settings"]["level"]
    wanted = f"all that is stored, at most 1.08 times `zstd -{level} --long=27` of the canonical qcow2"
    return [Aim(wanted, measured, ratio <= 1.08)]


def _siblings(results: Results) -> list[Aim]:
    """What was not built without is taken for its account and as much more as a checked one showed."""
    checked = [(_really_adds(results, each), _adds(results, each)) for each in results["files"]]
    more = max((really - accounted for really, accounted in checked if really is not None), default=0)
    found = []
    for limit, what in (
        (_STAMPED, "a sibling that differs by its stamp"),
        (_CONVERTED, "a VMDK, OVA, VHDX, `-c` qcow2 or tar sibling"),
    ):
        adds = {
            each["name"]: _really_adds(results, each) or _adds(results, each) + more
            for each in results["files"]
            if each["name"] != results["canonical"] and _limit(each["platform"]) == limit
        }
        if adds:
            most = max(adds, key=lambda name: adds[name])
            measured = f"at most {sized(adds[most])}, {most}"
            found.append(Aim(f"{what} adds at most {limit // KIB} KiB", measured, adds[most] <= limit))
    return found


def _limit(platform: str) -> int | None:
    """The aim for a platform's file; none for what is not a disk of the release."""
    how = load_derivations().get(platform)
    if how is None:
        return None
    converted = "-c" in how.arguments or how.wrap or how.format == "vhdx"
    return _CONVERTED if converted else _STAMPED


def _speed(results: Results) -> list[Aim]:
    ours, plain = _rounds(results, CASES[0], REHYDRATOR), _rounds(results, CASES[0], PIPELINE)
    wanted = f"{CASES[0]} not slower than `zstd -dc canonical.zst | tee out | sha256sum`"
    if not _good(ours) or not _good(plain):
        return [Aim(wanted, _words([*ours, *plain]) or "not measured", met=False)]
    ratio = _median(ours) / _median(plain)
    measured = f"{ratio:.2f} ({_median(ours):.2f} to {_median(plain):.2f} seconds)"
    return [Aim(wanted, measured, ratio <= 1)]


def _memory(results: Results) -> list[Aim]:
    huge = results["huge"]
    limits = [
        ("build", "building the release", 2 * GIB),
        ("huge/build", f"building with a raw disk of {huge} GiB", 2 * GIB),
        (f"obtain/azure/{REHYDRATOR}/", "rehydrating azure", GIB // 2),
        (f"obtain/{LARGE}/{REHYDRATOR}/", f"rehydrating {LARGE}", GIB // 2),
        ("huge/rehydrate", f"rehydrating a raw disk of {huge} GiB", GIB // 2),
    ]
    found = []
    for key, what, limit in limits:
        if steps := [step for name, step in results["steps"].items() if name.startswith(key)]:
            failed, memory = _words(steps), max(step["memory"] for step in steps)
            wanted = f"{what} within {limit // MIB:,} MiB of memory"
            found.append(Aim(wanted, failed or f"{memory / MIB:,.0f} MiB", not failed and memory <= limit))
    return found


# Figures out of the steps


def _adds(results: Results, file: dict[str, Any]) -> int:
    return int(results["steps"]["build"]["adds"][file["name"]])


def _really_adds(results: Results, file: dict[str, Any]) -> int | None:
    """What the bundle shrank by when it was built without this file."""
    without = results["steps"].get(f"without/{file['name']}")
    if without is None or without["failed"]:
        return None
    return int(results["steps"]["build"]["stored"] - without["stored"])


def _stored(results: Results, peer: Peer) -> list[Step]:
    """All steps that made what this tool stores; the floor first, where it builds on that."""
    steps = results["steps"]
    own = [step for key, step in steps.items() if key.startswith(f"store/{peer.name}/")]
    return [steps["floor"], *own] if peer.on_floor else own


def _measured(results: Results) -> list[Peer]:
    return [peer for peer in PEERS if f"store/{peer.name}/start" in results["steps"]]


def _rounds(results: Results, platform: str, who: str) -> list[Step]:
    prefix = f"obtain/{platform}/{who}/"
    return [step for key, step in results["steps"].items() if key.startswith(prefix)]


def _good(rounds: Sequence[Step]) -> bool:
    return bool(rounds) and not any(step["failed"] for step in rounds)


def _words(steps: Sequence[Step]) -> str:
    """What those that failed said."""
    return "; ".join(dict.fromkeys(step["failed"] for step in steps if step["failed"]))


def _median(rounds: Sequence[Step]) -> float:
    return float(median(step["wall"] for step in rounds))


# The document


def sized(count: int) -> str:
    """Bytes and KiB."""
    return f"{count:,} ({count / KIB:,.1f} KiB)"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    lines = [list(head), ["---", *["---:"] * (len(head) - 1)], *map(list, rows)]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def markdown(results: Results) -> str:
    """The whole document."""
    sections = [
        _opening(results),
        "## Aims",
        table(
            ("aim", "measured", ""),
            ((aim.wanted, aim.measured, "met" if aim.met else "**not met**") for aim in aims(results)),
        ),
        "## Stored, and the time it took",
        _stored_text(results),
        table(("tool", "bytes stored", "to floor", "seconds", "CPU seconds", "peak MiB"), _totals(results)),
        "## What each sibling adds",
        _adds_text(results),
        _adds_table(results),
        "## Back, verified",
        _back_text(results),
        *(_back_table(results, platform) for platform in (*CASES, LARGE)),
        _huge_text(results),
        "## What was run",
        _commands(results),
        "## Machine and versions",
        table(("", ""), [*results["machine"].items(), *results["tools"].items()]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _opening(results: Results) -> str:
    files = results["files"]
    apparent, allocated = (sum(each[key] for each in files) for key in ("size", "allocated"))
    return (
        "# The measured comparison\n\n"
        f"Written by `make bench` from `benchmarks.json`, {results['taken']}; not edited by hand. "
        f"One run over the *{results['settings']['corpus']}* release: {len(files)} files of "
        f"{apparent:,} bytes, {allocated:,} of them on disk. The canonical file is "
        f"`{results['canonical']}`. Seconds are wall-clock seconds; ratios are between figures of this "
        "run. Memory is that of all processes together, at its highest, looked at every 50 ms; a single "
        "process's own record counts where it is larger; "
        "25 MiB and less may be the measuring program's. Input files were in the page cache."
    )


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
        f"compress by itself; the chunk stores take all files, the canonical one first. {ours}"
    )


def _totals(results: Results) -> list[list[str]]:
    steps = results["steps"]
    rows = [_total_row(results, "floor: the canonical qcow2 alone", [steps["floor"]])]
    if "build" in steps:
        rows.append(_total_row(results, _TITLES[REHYDRATOR], [steps["build"]]))
    return rows + [_total_row(results, peer.title, _stored(results, peer)) for peer in _measured(results)]


def _total_row(results: Results, title: str, steps: Sequence[Step]) -> list[str]:
    stored, failed = sum(step["stored"] for step in steps), sum(bool(step["failed"]) for step in steps)
    floor = results["steps"]["floor"]["stored"]
    return [
        title,
        f"{stored:,}" + (f" without the {failed} that failed" if failed else ""),
        f"{stored / floor:.3f}",
        f"{sum(step['wall'] for step in steps):,.1f}",
        f"{sum(step['cpu'] for step in steps):,.1f}",
        f"{max(step['memory'] for step in steps) / MIB:,.0f}",
    ]


def _adds_text(results: Results) -> str:
    checked = [each for each in results["files"] if _really_adds(results, each) is not None]
    text = (
        "Bytes (KiB) that a sibling adds to what is stored: rehydrator's own account (the recipe, and the "
        "bytes that no other file has); the size of the delta; the growth of a chunk store as the files "
        "are added in this order."
    )
    really = "; ".join(
        f"{each['name']} {sized(_really_adds(results, each) or 0)}, accounted {sized(_adds(results, each))}"
        for each in checked
    )
    if not checked:
        return text
    return (
        f"{text} Checked by building the release without the file, which counts its layer and its entries "
        f"in the manifests too: {really}. The aims are judged by that, for other files by the account and "
        "the larger of these differences."
    )


def _adds_table(results: Results) -> str:
    ours, measured = "build" in results["steps"], _measured(results)
    head = ["file", "size", *(["**rehydrator**"] if ours else []), *(peer.title for peer in measured)]
    rows = []
    for each in results["files"]:
        if each["name"] != results["canonical"]:
            deltas = [results["steps"][f"store/{peer.name}/{each['name']}"] for peer in measured]
            cells = [f"**{sized(_adds(results, each))}**"] if ours else []
            cells += ["failed" if step["failed"] else sized(step["stored"]) for step in deltas]
            rows.append([f"`{each['name']}`", f"{each['size']:,}", *cells])
    return table(head, rows) + _failures(results, "store/")


def _failures(results: Results, prefix: str) -> str:
    """What failed, in the tool's own words."""
    steps = results["steps"].items()
    failed = [(key, step["failed"]) for key, step in steps if key.startswith(prefix) and step["failed"]]
    lines = [f"- `{key}`: {words}" for key, words in failed]
    return "\n\nFailed:\n\n" + "\n".join(lines) if lines else ""


def _back_text(results: Results) -> str:
    return (
        "Seconds to get a file back from nothing but what is stored, with its SHA-256 verified: median of "
        f"{results['settings']['rounds']} rounds, least and most, in turn. Rehydrator verifies, calls "
        "fsync and renames; the delta tools decompress the canonical qcow2 first, then write through "
        "`tee` into `sha256sum`, with holes where the original has them; casync writes the file, which "
        "is then hashed. sha256sum is that of coreutils, which may not use the processor's SHA extensions."
    )


def _back_table(results: Results, platform: str) -> str:
    prefix = f"obtain/{platform}/"
    who = dict.fromkeys(key.split("/")[2] for key in results["steps"] if key.startswith(prefix))
    if not who:
        return ""
    ours = _rounds(results, platform, REHYDRATOR)
    if platform in CASES:
        who |= dict.fromkeys(peer.name for peer in _measured(results))  # also who could not store it
    rows = [_back_row(_TITLES[name], _rounds(results, platform, name), ours) for name in who]
    head = ("tool", "seconds", "least", "most", "to rehydrator", "CPU seconds", "peak MiB")
    name = next(each["name"] for each in results["files"] if each["platform"] == platform)
    return f"### {platform}: `{name}`\n\n" + table(head, rows) + _failures(results, prefix)


def _back_row(title: str, rounds: Sequence[Step], ours: Sequence[Step]) -> list[str]:
    if not _good(rounds):
        return [title, "failed" if rounds else "not stored", "", "", "", "", ""]
    walls = [step["wall"] for step in rounds]
    return [
        title,
        f"{_median(rounds):.2f}",
        f"{min(walls):.2f}",
        f"{max(walls):.2f}",
        f"{_median(rounds) / _median(ours):.2f}" if _good(ours) else "",
        f"{median(step['cpu'] for step in rounds):.2f}",
        f"{max(step['memory'] for step in rounds) / MIB:,.0f}",
    ]


def _huge_text(results: Results) -> str:
    steps = results["steps"]
    if "huge/rehydrate" not in steps:
        return ""
    rows = [
        [
            what,
            step["failed"] or f"{step['wall']:,.1f}",
            f"{step['cpu']:,.1f}",
            f"{step['memory'] / MIB:,.0f}",
        ]
        for what, step in (("build, with proof", steps["huge/build"]), ("rehydrate", steps["huge/rehydrate"]))
    ]
    return (
        f"### A raw disk of {results['huge']} GiB\n\nThe canonical disk as a raw file, grown with a hole, "
        "in a release of its own beside the canonical qcow2; most of the time is SHA-256 of zeros.\n\n"
        + table(("", "seconds", "CPU seconds", "peak MiB"), rows)
    )


def _commands(results: Results) -> str:
    steps = results["steps"]
    name = next(each["name"] for each in results["files"] if each["platform"] == CASES[0])
    wanted = [("floor", "the floor"), ("build", "rehydrator")]
    wanted += [(f"obtain/{CASES[0]}/{who}/0", "") for who in (REHYDRATOR, TO_PIPE, PIPELINE)]
    for peer in _measured(results):
        wanted += [(f"store/{peer.name}/{part}", f"{peer.title}: {part}") for part in ("start", name)]
        wanted.append((f"obtain/{CASES[0]}/{peer.name}/0", f"{peer.title}: back"))
    text = "\n\n".join(
        (f"# {title}\n" if title else "") + steps[key]["script"]
        for key, title in wanted
        if key in steps and steps[key]["script"]
    )
    return f"For {CASES[0]}:\n\n```sh\n{text}\n```"
