"""Memory: what there is, and how rehydrating shares what it may take."""

from __future__ import annotations

from rehydrator.bundle import cgroup

# The program itself, with what frames stand behind; and what a thread takes: a frame, its compressed
# bytes, a block of it.
BASE = 64 << 20
WORKER = 32 << 20
_LEAST = 300 << 20
_LEAST_CACHE = 32 << 20

# What is taken however little was asked for: by one thread.
FLOOR = BASE + WORKER + _LEAST_CACHE


def default_memory(jobs: int) -> int:
    """Bytes that rehydrating may take, unless somebody says otherwise: 300 MiB are enough for four
    threads."""
    wanted = (BASE + jobs * WORKER) * 3 // 2
    return max(_LEAST, min(wanted, available_memory() // 2))


def cache_size(memory: int) -> int:
    """Bytes of that for frames that were decoded."""
    return max(memory // 3, _LEAST_CACHE)


def available_memory(root: str = "") -> int:
    """Bytes that programs may still take on this machine, or in this container. `root` stands for the
    root directory."""
    total = cgroup.first_number(f"{root}/proc/meminfo", "MemAvailable:")
    return min((each for each in (total, cgroup.memory_left(root)) if each), default=1 << 60)
