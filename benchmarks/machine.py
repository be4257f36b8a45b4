"""What the figures were taken on."""

from __future__ import annotations

import gzip
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.measure import NEWER as ROOT_OF_NEWER
from benchmarks.peers import NEWER, PACKAGES
from rehydrator import __version__

_LIBRARIES = ("backports.zstd", "zlib-ng", "cryptography", "numpy", "xxhash")


def machine() -> dict[str, str]:
    """Processor, memory, kernel, distribution; no names of the machine."""
    processor = _field("/proc/cpuinfo", "model name", ":")
    flags = _field("/proc/cpuinfo", "flags", ":").split()
    return {
        "processor": f"{processor or platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        f"{'with' if 'sha_ni' in flags else 'without'} SHA extensions",
        "memory": f"{physical_memory() / (1 << 30):.1f} GiB",
        "kernel": platform.release(),
        "distribution": _field("/etc/os-release", "PRETTY_NAME", "=").strip('"'),
    }


def physical_memory() -> int:
    """Bytes that the kernel has."""
    return int(_field("/proc/meminfo", "MemTotal", ":").split()[0]) << 10


def tools() -> dict[str, str]:
    """Versions of everything that was measured."""
    found = {package: _package(package) for package in sorted(set(PACKAGES) - set(NEWER))}
    found |= {f"{package} (Debian sid)": _newer(package) for package in NEWER}
    found |= {"rehydrator": f"{__version__}, commit {_commit()}", "Python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def _field(path: str, name: str, separator: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(separator)
        if key.strip() == name:
            return value.strip()
    return "0"


def _package(name: str) -> str:
    query = ["dpkg-query", "--show", "--showformat=${Version}", name]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout or "not installed"


def _newer(package: str) -> str:
    """The version of what scripts/sid-root unpacked; its changelog begins "desync (1.0.4-1) unstable"."""
    try:
        with gzip.open(ROOT_OF_NEWER / f"usr/share/doc/{package}/changelog.Debian.gz", "rt") as changes:
            return changes.readline().partition("(")[2].partition(")")[0]
    except OSError:
        return "not unpacked"


def _commit() -> str:
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
