"""Memory: what there is, and how rehydrating shares what it may take."""

from __future__ import annotations

# The program itself; and what a thread takes: a frame, its compressed bytes, a block of it.
BASE = 64 << 20
WORKER = 32 << 20
_LEAST = 300 << 20
_LEAST_CACHE = 32 << 20


def default_memory(jobs: int) -> int:
    """Bytes that rehydrating may take, unless somebody says otherwise: 300 MiB are enough for four
    threads."""
    wanted = (BASE + jobs * WORKER) * 3 // 2
    return max(_LEAST, min(wanted, available_memory() // 2))


def cache_size(memory: int) -> int:
    """Bytes of that for frames that were decoded."""
    return max(memory // 3, _LEAST_CACHE)


def available_memory() -> int:
    """Bytes that programs may still take on this machine, or in this container."""
    total, limit, used, cached = (_first_number(file, word) for file, word in _MEMORY_FACTS)
    # Pages of files that were read count as used until somebody needs the room.
    left = max(limit - max(used - cached, 0), 1) if limit else 0
    return min((each for each in (total, left) if each), default=1 << 60)


_MEMORY_FACTS = (
    ("/proc/meminfo", "MemAvailable:"),
    ("/sys/fs/cgroup/memory.max", ""),
    ("/sys/fs/cgroup/memory.current", ""),
    ("/sys/fs/cgroup/memory.stat", "inactive_file "),
)


def _first_number(file: str, word: str) -> int:
    """The number behind `word` in a file of the kernel, in bytes; 0 where there is none."""
    try:
        with open(file, encoding="ascii") as facts:  # noqa: PTH123 - pathlib is not worth its import here
            line = next((line for line in facts if line.startswith(word)), "")
    except (OSError, ValueError):
        return 0
    parts = line.removeprefix(word).split()
    if not parts or not parts[0].isdigit():
        return 0
    return int(parts[0]) * (1024 if parts[1:] == ["kB"] else 1)
