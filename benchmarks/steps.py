"""Measured steps, each kept as soon as it is done: an interrupted run goes on behind it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from benchmarks.measure import ROOT, measure

if TYPE_CHECKING:
    from pathlib import Path

_DIRECTORIES = ("stored", "prepared", "scratch")


class Steps:
    """A run's work directory: `release` is what is measured, `stored/` what tools store,
    `prepared/` what steps share, `scratch/` what may be thrown away at any time."""

    results: dict[str, Any]

    def __init__(self, release: Path, work: Path, timeout: float) -> None:
        self._release, self._work, self._timeout = release, work, timeout
        self._kept = work / "results.json"
        self._code = _code_digest()
        for name in _DIRECTORIES:
            (work / name).mkdir(parents=True, exist_ok=True)
        link = work / "release"
        link.unlink(missing_ok=True)
        link.symlink_to(release.resolve())

    def clean(self) -> None:
        """Leave nothing of the run but what was written elsewhere."""
        for name in _DIRECTORIES:
            shutil.rmtree(self._work / name)
        (self._work / "release").unlink()
        self._kept.unlink()

    def _found(self) -> dict[str, Any]:
        """The results of an earlier run that was interrupted."""
        found: dict[str, Any] = json.loads(self._kept.read_text()) if self._kept.exists() else {}
        return found

    def _step(self, key: str, script: str, of: str = "", keep: str = "") -> dict[str, Any]:
        """Measure a script; `of` is what else its result depends on.

        `keep` is a directory below stored/; the bytes that it grows by are part of the result.
        """
        print(f"{key} ...", end=" ", file=sys.stderr, flush=True)
        place = self._work / "stored" / keep
        before = size(place) if keep else 0
        os.sync()  # what the step before wrote or removed is not written in this one's time
        taken = measure(script, self._work, self._timeout)
        done: dict[str, Any] = {
            "script": script,
            "of": of,
            **asdict(taken),
            "failed": self._public(taken.failed),
        }
        if keep:
            done["stored"] = size(place) - before
        print(f"{taken.wall:.1f} s, {taken.memory >> 20} MiB {done['failed']}", file=sys.stderr)
        return done

    def _public(self, said: str) -> str:
        """What a tool said, without paths of this machine."""
        for path in (self._work.resolve(), self._release.resolve(), ROOT):
            said = said.replace(f"{path}/", "")
        return said

    def _record(self, key: str, done: dict[str, Any]) -> None:
        self.results["steps"][key] = {name: value for name, value in done.items() if name != "stdout"}
        scratch = self._kept.with_suffix(".new")
        scratch.write_text(json.dumps(self.results, indent=1) + "\n")
        scratch.replace(self._kept)

    def _is_done(self, key: str, script: str, needs: str, of: str = "") -> bool:
        """Whether a step was measured and what it made is still there."""
        done = self.results["steps"].get(key)
        same = bool(done) and done["script"] == script and done["of"] == of
        return same and (bool(done["failed"]) or (self._work / needs).exists())

    def _fresh(self, name: str) -> None:
        shutil.rmtree(self._work / name, ignore_errors=True)
        (self._work / name).mkdir(parents=True)

    def _make(self, script: str) -> None:
        """Something that is needed and not measured."""
        if said := measure(script, self._work, self._timeout).failed:
            sys.exit(f"{script}\n{said}")


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size(directory: Path) -> int:
    """Bytes of all files below a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _code_digest() -> str:
    """Changes whenever the program does: its own figures are then taken anew."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "rehydrator").rglob("*.py")):
        digest.update(os.fsencode(path.relative_to(ROOT)) + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
