"""What there is of a machine, or of a container's part of it, on trees that imitate the kernel's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from rehydrator.bundle import cgroup
from rehydrator.bundle.memory import available_memory
from rehydrator.cli.common import all_cores

if TYPE_CHECKING:
    from pathlib import Path

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_CPU = "33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
V1_MEMORY = "35 30 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
V1 = V1_CPU + V1_MEMORY
V1_GROUPS = "9:name=systemd:/x\n4:memory:/m/a\n2:cpu,cpuacct:/c\n"
NO_LIMIT = "9223372036854771712\n"


def tree(root: Path, groups: str, mounts: str, files: dict[str, str], meminfo: str = "") -> str:
    """The kernel's files below a directory; `files` are those of groups."""
    texts = {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts, "proc/meminfo": meminfo}
    texts |= {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root)


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "expected"),
    [
        # In a container that sees its own group alone.
        ("0::/\n", V2, {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", V2, {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", V2, {"cpu.max": "10000 100000\n"}, 1),
        ("0::/\n", V2, {"cpu.max": "max 100000\n"}, 0),
        # In a service: its own group is below the mount's, and so are those that it is in.
        ("0::/a.slice/b\n", V2, {"cpu.max": "max 9\n", "a.slice/b/cpu.max": "300000 100000\n"}, 3),
        ("0::/a.slice/b\n", V2, {"a.slice/cpu.max": "30 10\n", "a.slice/b/cpu.max": "50 10\n"}, 3),
        ("0::/a.slice/b\n", V2, {"a.slice/other/cpu.max": "30 10\n"}, 0),
        # Mounted from the container's group, whose name is that on the machine.
        ("0::/docker/x/y\n", V2.replace(" / ", " /docker/x "), {"y/cpu.max": "40 10\n"}, 4),
        ("0::/docker/xyz\n", V2.replace(" / ", " /docker/x "), {"cpu.max": "40 10\n"}, 4),
        ("0::/../other\n", V2, {"cpu.max": "40 10\n"}, 4),
        # v1, where each controller has a tree; "no limit" is -1.
        (
            V1_GROUPS,
            V1,
            {"cpu,cpuacct/c/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/c/cpu.cfs_period_us": "9"},
            0,
        ),
        (
            V1_GROUPS,
            V1,
            {"cpu,cpuacct/c/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/c/cpu.cfs_period_us": "100000\n"},
            3,
        ),
        # Both, as systemd had them for years: the limits are v1's.
        (
            V1_GROUPS + "0::/c\n",
            V1 + V2.replace("/cgroup ", "/cgroup/unified "),
            {"cpu,cpuacct/cpu.cfs_quota_us": "20\n", "cpu,cpuacct/cpu.cfs_period_us": "10\n"},
            2,
        ),
        # Nonsense, and nothing.
        ("0::/\n", V2, {"cpu.max": "5 0\n"}, 0),
        ("0::/\n", V2, {"cpu.max": "5\n"}, 0),
        ("0::/\n", V2, {"cpu.max": ""}, 0),
        ("0::/\n", "x - y\n\n - \n", {"cpu.max": "40 10\n"}, 0),
        ("\n0\n0:cpu\n", V2 + V1, {}, 0),
    ],
)
def test_processors_of_a_group(
    tmp_path: Path, groups: str, mounts: str, files: dict[str, str], expected: int
) -> None:
    """The quota of a group, or of one that it is in, rounded up; 0 where nothing is limited."""
    assert expected == cgroup.cpus(tree(tmp_path, groups, mounts, files))


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "expected"),
    [
        ("0::/\n", V2, {"memory.max": "max\n", "memory.current": "100\n"}, 7 << 10),
        ("0::/\n", V2, {"memory.max": "5000\n", "memory.current": "1000\n"}, 4000),
        # A container that has read many files is full of their pages.
        ("0::/\n", V2, {"memory.max": "5000\n", "memory.current": "5000\n"}, 1),
        (
            "0::/\n",
            V2,
            {
                "memory.max": "5000\n",
                "memory.current": "5000\n",
                "memory.stat": "anon 9\ninactive_file 3000\n",
            },
            3000,
        ),
        ("0::/\n", V2, {"memory.max": "90000\n", "memory.current": "1000\n"}, 7 << 10),
        (
            "0::/a/b\n",
            V2,
            {"a/memory.max": "5000\n", "a/memory.current": "4500\n", "a/b/memory.max": "4000\n"},
            500,
        ),
        (
            V1_GROUPS,
            V1,
            {
                "memory/memory.limit_in_bytes": NO_LIMIT,
                "memory/m/a/memory.limit_in_bytes": "5000\n",
                "memory/m/a/memory.usage_in_bytes": "4000\n",
                "memory/m/a/memory.stat": "inactive_file 1\ntotal_inactive_file 2000\n",
            },
            3000,
        ),
        ("", "", {}, 7 << 10),
    ],
)
def test_memory_of_a_group(
    tmp_path: Path, groups: str, mounts: str, files: dict[str, str], expected: int
) -> None:
    """What the machine has, and no more than what is left to the group, and to those that it is in:
    a full one has none, but for the pages of files that it may drop."""
    meminfo = "MemTotal: 9 kB\nMemAvailable: 7 kB\n"
    assert expected == available_memory(tree(tmp_path, groups, mounts, files, meminfo))


def test_no_facts(tmp_path: Path) -> None:
    """Where the kernel says nothing, nothing is limited; a full group is, all the same."""
    assert (available_memory(str(tmp_path)), cgroup.cpus(str(tmp_path))) == (1 << 60, 0)
    files = {"memory.max": "5000\n", "memory.current": "1000\n"}
    assert available_memory(tree(tmp_path, "0::/\n", V2, files)) == 4000


@pytest.mark.parametrize(("cores", "quota", "expected"), [(8, 0, 8), (8, 3, 3), (2, 3, 2)])
def test_threads_by_default(monkeypatch: pytest.MonkeyPatch, cores: int, quota: int, expected: int) -> None:
    """Processors that we may run on, and no more than the quota amounts to."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(cgroup, "cpus", lambda: quota)
    assert expected == all_cores()
