"""Whether the aims are met, by the figures of a run. Nothing is measured here."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from benchmarks.base import CASES, GIB
from benchmarks.figures import (
    KIB,
    MIB,
    added,
    again,
    exact,
    good,
    memory,
    really_added,
    rounds,
    sized,
    span,
    spread,
    timed,
    who,
    words,
)
from benchmarks.obtaining import PIPE
from benchmarks.peers import REHYDRATOR
from benchmarks.plain import CONVERT, PIPELINE, SHA256SUM
from rehydrator.variants.derivations import load_derivations

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.figures import Results, Step

_STAMPED, _CONVERTED = 16 * KIB, 64 * KIB
_MEMORY = 300 * MIB
_READ = 0.15  # processor seconds
_STARTUP = 0.25
_SAME = 1.25  # times; memory of builds differs by this much with the moment at which threads meet


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
    return [
        *_total(results),
        *_siblings(results),
        *_building(results),
        *_speed(results),
        *_whole(results),
        *_reading(results),
        *_memory(results),
        *_startup(results),
        *_scale_memory(results),
        *_scale_time(results),
    ]


def _total(results: Results) -> list[Aim]:
    steps = results["steps"]
    ratio = steps["build"]["stored"] / steps["floor"]["stored"]
    measured = f"{ratio:.4f} ({steps['build']['stored']:,} to {steps['floor']['stored']:,} bytes)"
    level = results["settings"]["level"]
    wanted = f"all that is stored, at most `zstd -{level} --long=27` of the canonical qcow2"
    return [Aim(wanted, measured, ratio <= 1)]


def _siblings(results: Results) -> list[Aim]:
    """What was not built without is taken for its account and as much more as a checked one showed."""
    checked = [(really_added(results, each), added(results, each)) for each in results["files"]]
    more = max((really - accounted for really, accounted in checked if really is not None), default=0)
    found = []
    for limit, what in (
        (_STAMPED, "a sibling that differs by its stamp"),
        (_CONVERTED, "a VMDK, OVA, VHDX, `-c` qcow2 or tar sibling"),
    ):
        adds = {
            each["name"]: really_added(results, each) or added(results, each) + more
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


def _ratio(wanted: str, ours: Sequence[Step], theirs: Sequence[Step], limit: float) -> list[Aim]:
    """An aim as a ratio of medians; none where the run has only one of the two."""
    if not ours or not theirs:
        return []
    wanted = f"{wanted}: at most {limit} times"
    if not good(ours) or not good(theirs) or not exact(ours):
        return [Aim(wanted, words([*ours, *theirs]) or "other bytes came back", met=False)]
    ratio = span(ours).median / span(theirs).median
    return [Aim(wanted, f"{ratio:.2f}: {timed(span(ours))} to {timed(span(theirs))} s", ratio <= limit)]


def _building(results: Results) -> list[Aim]:
    level = results["settings"]["level"]
    return _ratio(
        f"building the release, proof included, to `zstd -{level} --long=27 -T0` of the canonical qcow2",
        again(results, "build"),
        again(results, "floor"),
        1.5,
    )


def _speed(results: Results) -> list[Aim]:
    found = []
    for platform, plain, what, limit in (
        ("openstack", PIPELINE, "`zstd -dc | tee | sha256sum`", 0.5),
        ("azure", SHA256SUM, "`sha256sum` of that file", 0.5),
        ("aws", CONVERT, "`qemu-img convert` to the same format", 0.7),
    ):
        ours = rounds(results, f"obtain/{platform}/{REHYDRATOR}")
        theirs = rounds(results, f"obtain/{platform}/{plain}")
        found += _ratio(f"{platform} to a file, to {what}", ours, theirs, limit)
    return found


def _whole(results: Results) -> list[Aim]:
    """Each round's single runs are added up, and these sums compared with the runs of everything."""
    names = [each["name"] for each in results["files"]]
    single = [rounds(results, f"single/{name}") for name in names]
    count = min(map(len, single), default=0)
    sums = [_summed([steps[number] for steps in single]) for number in range(count)]
    what = "all image forms of the release, to the sum of the single runs"
    return _ratio(what, rounds(results, f"all/{REHYDRATOR}"), sums, 0.8)


def _summed(steps: Sequence[Step]) -> Step:
    return {"wall": sum(step["wall"] for step in steps), "failed": words(steps)}


def _reading(results: Results) -> list[Aim]:
    steps = rounds(results, f"read/{REHYDRATOR}")
    if not steps:
        return []
    wanted = f"a cold read of 1 MiB, reader open: at most {1000 * _READ:.0f} ms of processor time"
    if not good(steps) or not exact(steps):
        return [Aim(wanted, words(steps) or "other bytes came back", met=False)]
    found = spread([read["cpu"] for step in steps for read in step["reads"]])
    measured = f"at most {1000 * found.most:.0f} ms, median {1000 * found.median:.0f} ms"
    return [Aim(wanted, measured, found.most <= _READ)]


def _memory(results: Results) -> list[Aim]:
    back = {
        f"{platform} {'to a pipe' if suffix else 'to a file'}": rounds(
            results, f"obtain/{platform}/{REHYDRATOR}{suffix}"
        )
        for platform in CASES
        for suffix in ("", PIPE)
    }
    back["everything"] = rounds(results, f"all/{REHYDRATOR}")
    back["reading 1 MiB"] = rounds(results, f"read/{REHYDRATOR}")
    for name in who(results, "single"):
        back[name] = rounds(results, f"single/{name}")
    found = _within("getting anything back", {key: value for key, value in back.items() if value}, _MEMORY)
    build = {"the release": again(results, "build")}
    return found + _within("building the release", build, 2 * GIB)


def _within(what: str, tasks: dict[str, list[Step]], limit: int) -> list[Aim]:
    if not tasks:
        return []
    most = max(tasks, key=lambda name: memory(tasks[name]))
    failed = words([step for steps in tasks.values() for step in steps])
    highest = memory(tasks[most])
    measured = failed or f"at most {highest / MIB:,.0f} MiB, {most}"
    return [Aim(f"{what}: at most {limit // MIB:,} MiB of memory", measured, not failed and highest <= limit)]


def _startup(results: Results) -> list[Aim]:
    found = []
    for verb in who(results, "startup"):
        steps = rounds(results, f"startup/{verb}")
        cpu = span(steps, "cpu")
        wanted = f"`{verb}`: at most {_STARTUP} s of processor time"
        found.append(Aim(wanted, words(steps) or f"{timed(cpu)} s", good(steps) and cpu.median <= _STARTUP))
    return found


def disk_builds(results: Results) -> dict[tuple[int, int], Step]:
    """Builds of the task `scale` by data (MB) and virtual size (GiB)."""
    found = {}
    for key, step in results["steps"].items():
        if key.startswith("scale/disk/") and key.endswith("/build"):
            _, _, data, virtual, _ = key.split("/")
            found[int(data), int(virtual)] = step
    return found


def file_builds(results: Results) -> dict[int, Step]:
    """The same by number of files."""
    return {
        int(key.split("/")[2]): step
        for key, step in results["steps"].items()
        if key.startswith("scale/files/")
    }


def _scale_memory(results: Results) -> list[Aim]:
    builds = disk_builds(results)
    if len(builds) < 2:
        return []
    wanted = f"memory of the build does not grow with the image: at most {_SAME} times"
    if failed := words(list(builds.values())):
        return [Aim(wanted, failed, met=False)]
    smallest, highest = min(builds), max(builds, key=lambda key: builds[key]["memory"])
    ratio = builds[highest]["memory"] / builds[smallest]["memory"]
    measured = f"{ratio:.2f}: {_of(builds, highest)} to {_of(builds, smallest)}"
    return [Aim(wanted, measured, ratio <= _SAME)]


def _of(builds: dict[tuple[int, int], Step], key: tuple[int, int]) -> str:
    return f"{builds[key]['memory'] / MIB:,.0f} MiB ({key[0]:,} MB in {key[1]} GiB)"


def _scale_time(results: Results) -> list[Aim]:
    found = []
    builds = {key: step["wall"] for key, step in disk_builds(results).items() if not step["failed"]}
    for virtual in sorted({virtual for _, virtual in builds}):
        points = sorted((data, wall) for (data, each), wall in builds.items() if each == virtual)
        found += _proportional(f"data in a disk of {virtual} GiB", points)
    files = {count: step["wall"] for count, step in file_builds(results).items() if not step["failed"]}
    return found + _steady(sorted(files.items()))


def _proportional(what: str, points: Sequence[tuple[int, float]]) -> list[Aim]:
    """A MB of the most data takes no longer than one of the least."""
    if len(points) < 2:
        return []
    wanted = f"build time grows linearly with {what}: seconds a MB at most {_SAME} times those of the least"
    (least, start), (most, end) = points[0], points[-1]
    ratio = (end / most) / (start / least)
    walls = ", ".join(f"{count:,} MB {wall:.1f} s" for count, wall in points)
    return [Aim(wanted, f"{ratio:.2f}: {walls}", ratio <= _SAME)]


def _steady(points: Sequence[tuple[int, float]]) -> list[Aim]:
    """The last file takes no longer than the second: the first is the canonical one."""
    if len(points) < 3:
        return []
    wanted = f"build time grows linearly with files: the last ones at most {_SAME} times the second"
    slopes = [(end - start) / (after - before) for (before, start), (after, end) in pairwise(points)]
    walls = ", ".join(f"{count:,} {wall:.1f} s" for count, wall in points)
    if slopes[0] <= 0:
        return [Aim(wanted, f"the second took no time that could be told: {walls}", slopes[-1] <= 0)]
    ratio = slopes[-1] / slopes[0]
    return [Aim(wanted, f"{ratio:.2f}: {walls}", ratio <= _SAME)]
