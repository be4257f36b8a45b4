"""The outer compression of published files, and the proof that it comes off again.

The options are coreos-assembler's, with two changes that make the bytes independent of the
machine, both measured:

    xz    never fewer than two threads: -T1 gives other bytes than -T2, -T3 and so on, which agree
    zip   -X: without it the archive has the time of the file's last access and its owner
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rehydrator.core.errors import DigestMismatch, UsageError
from rehydrator.variants import tools

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rehydrator.variants.tools import Measured


@dataclass(frozen=True, slots=True)
class Compressor:
    """How a file `NAME` becomes `NAME + suffix` and back. In the arguments, {level} (`level` is
    upstream's), {threads} and {source} are replaced; output is stdout."""

    suffix: str
    level: int
    pack: tuple[str, ...]
    unpack: tuple[str, ...]
    least_threads: int = 1


COMPRESSORS: Final = {
    "xz": Compressor(".xz", 9, ("xz", "-c{level}", "-T{threads}", "{source}"), ("xz", "-dc", "{source}"), 2),
    "gzip": Compressor(".gz", 6, ("gzip", "-{level}", "-c", "{source}"), ("gzip", "-dc", "{source}")),
    "gzip9": Compressor(
        ".gz", 9, ("gzip", "--no-name", "--stdout", "-{level}", "{source}"), ("gzip", "-dc", "{source}")
    ),
    "zstd": Compressor(
        ".zst",
        10,
        ("zstd", "-q", "-{level}", "-c", "-T{threads}", "{source}"),
        ("zstd", "-q", "-dc", "{source}"),
    ),
    "zip": Compressor(".zip", 9, ("zip", "-q", "-{level}jX", "-", "{source}"), ("unzip", "-p", "{source}")),
}


@dataclass(frozen=True, slots=True)
class Compressed:
    """A published file: as it was before compression, and as it is."""

    plain: Measured
    packed: Measured


def compress(
    method: str, source: Path, target: Path, threads: int, timeout: float, level: int = 0
) -> Compressed:
    """Write `target` from `source`, decompress it again and compare, each within `timeout`
    seconds. The caller has set the time of `source`, which gzip and zip keep beside its name.
    `level` is 1 to 9, or 0 for upstream's.

    Raises:
        UsageError: no such method.
        DigestMismatch: what comes out is not what went in; `target` is not written.
        LimitExceeded: the disk is full.
        RehydratorError: the program failed or did not end in time.
        ToolMissing: it is not installed.
    """
    compressor = _find(method)
    start = tools.absolute(source)
    with tools.new_file(target) as path:
        _settle(start)
        plain = tools.measure(start)
        with path.open("wb") as out:
            numbers = {"threads": max(threads, compressor.least_threads), "level": level or compressor.level}
            tools.run(_filled(compressor.pack, start, numbers), timeout, path, stdout=out)
        _prove(compressor, path, plain, timeout)
        packed = tools.measure(path)
    return Compressed(plain, packed)


def _settle(source: Path) -> None:
    """The mode, which zip keeps, is the same for everybody; the time is whole seconds, and not
    zero, of which gzip complains."""
    source.chmod(0o644)
    when = max(1, int(source.stat().st_mtime))
    os.utime(source, (when, when))


def _find(method: str) -> Compressor:
    if method not in COMPRESSORS:
        known = ", ".join(COMPRESSORS)
        raise UsageError(f"{method!r:.40} is not a compression; known are {known} and none")
    return COMPRESSORS[method]


def _filled(arguments: Sequence[str], source: Path, numbers: Mapping[str, int]) -> list[str]:
    """A path may hold braces itself."""
    return [str(source) if argument == "{source}" else argument.format_map(numbers) for argument in arguments]


def _prove(compressor: Compressor, path: Path, plain: Measured, timeout: float) -> None:
    """What is in the file, decompressed, is what was compressed."""
    found = tools.measure_output(_filled(compressor.unpack, path, {}), timeout, path)
    if found != plain:
        raise DigestMismatch(
            f"{path.name}: decompressed it has {found.size} bytes, SHA-256 {found.sha256}; "
            f"before compression it had {plain.size}, {plain.sha256}; "
            f"{compressor.pack[0]} or the memory of this machine is faulty"
        )
