"""What a container, or a service, may take of this machine: limits of control groups.

v2: https://docs.kernel.org/admin-guide/cgroup-v2.html ("CPU Interface Files", "Memory Interface
Files"); v1: https://docs.kernel.org/scheduler/sched-bwc.html and
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html. Which group a process is in:
/proc/self/cgroup (cgroups(7)), and where groups are to be seen: /proc/self/mountinfo (proc(5)).

A group's limits hold for those below it, so all from ours up to the highest one that can be seen
count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Groups one in the other; real ones have ten.
_DEEPEST = 64


def cpus(root: str = "") -> int:
    """Processors that its quota amounts to, rounded up; 0 where there is none. `root` stands for the
    root directory."""
    shares = [_share(place, version) for place, version in _groups("cpu", root)]
    return min((each for each in shares if each), default=0)


def memory_left(root: str = "") -> int:
    """Bytes that it may still take, at least 1; 0 where there is no limit."""
    left = [_left(place, version) for place, version in _groups("memory", root)]
    return min((each for each in left if each), default=0)


def first_number(file: str, word: str = "") -> int:
    """The number behind `word` in a file of the kernel, in bytes; 0 where there is none."""
    line = next((line for line in _lines(file) if line.startswith(word)), "")
    parts = line.removeprefix(word).split()
    if not parts or not parts[0].isdigit():
        return 0
    return int(parts[0]) * (1024 if parts[1:] == ["kB"] else 1)


def _share(place: str, version: int) -> int:
    """What says "max" or -1 is no number, and no limit."""
    if version == 1:
        quota, period = first_number(f"{place}/cpu.cfs_quota_us"), first_number(f"{place}/cpu.cfs_period_us")
    else:
        quota = first_number(f"{place}/cpu.max")
        words = next(iter(_lines(f"{place}/cpu.max")), "").split()
        period = int(words[1]) if len(words) == 2 and words[1].isdigit() else 0
    return -(-quota // period) if quota and period else 0


def _left(place: str, version: int) -> int:
    """v1 says a number beyond all memory where there is no limit, which limits nothing."""
    limit, used, cached = (first_number(f"{place}/{file}", word) for file, word in _MEMORY[version])
    # Pages of files that were read count as used until somebody needs the room.
    return max(limit - max(used - cached, 0), 1) if limit else 0


_MEMORY = {
    1: (
        ("memory.limit_in_bytes", ""),
        ("memory.usage_in_bytes", ""),
        ("memory.stat", "total_inactive_file "),
    ),
    2: (("memory.max", ""), ("memory.current", ""), ("memory.stat", "inactive_file ")),
}


def _groups(controller: str, root: str) -> Iterator[tuple[str, int]]:
    """Directories of the groups that we are in, and their version, the lowest first."""
    for line in _lines(f"{root}/proc/self/cgroup"):
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controller not in (controllers or controller).split(","):
            continue
        for top, seen in _mounted(controller if controllers else "", root):
            version = 1 if controllers else 2
            parts = _below(group, top).split("/")[:_DEEPEST]
            for count in range(len(parts), 0, -1):
                yield root + seen + "/".join(parts[:count]), version


def _mounted(controller: str, root: str) -> Iterator[tuple[str, str]]:
    """Where groups of a controller ("": v2) are to be seen: the highest one, and its directory."""
    for line in _lines(f"{root}/proc/self/mountinfo"):
        before, _, behind = line.partition(" - ")
        fields, kinds = before.split(), behind.split()
        if len(fields) < 5 or len(kinds) < 3:
            continue
        if kinds[0] == ("cgroup" if controller else "cgroup2") and (
            not controller or controller in kinds[2].split(",")
        ):
            yield fields[3].rstrip("/"), fields[4].rstrip("/")


def _below(group: str, top: str) -> str:
    """The path of a group below the highest one that is to be seen, as "" or "/a/b". In a container
    that sees its own group alone, that is ours."""
    group = group.rstrip("/")
    within = group == top or group.startswith(f"{top}/")
    return group.removeprefix(top) if within and ".." not in group.split("/") else ""


def _lines(file: str) -> list[str]:
    try:
        with open(file, encoding="ascii", errors="replace") as text:  # noqa: PTH123 - pathlib is not worth its import here
            return text.read(1 << 20).splitlines()
    except OSError:
        return []
