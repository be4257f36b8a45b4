"""Task: what the build takes as disks and releases grow.

scale/disk/DATA/VIRTUAL/build    a qcow2 and a raw file of one disk; DATA in MB, VIRTUAL in GiB
scale/disk/DATA/VIRTUAL/back     the raw file back
scale/files/N/build              N siblings, each with a page of its own
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from benchmarks.base import GIB, Base
from benchmarks.steps import sha256

if TYPE_CHECKING:
    from pathlib import Path

_RELEASE, _STORED = "prepared/scale", "stored/scale"
_SOURCE = "prepared/scale-source.raw"
_NAME = "scale-1-{platform}.x86_64.{extension}"
_BACK = f"rehydrator rehydrate scratch/back --bundle oci:{_STORED}:bench --disk metal"
_MB = 1_000_000


class Scale(Base):
    """Builds of releases that are made for it."""

    def _scale(self) -> None:
        options = self._options
        for data in options.scale_data:
            for virtual in options.scale_virtual:
                self._disk(data, virtual)
        for count in options.scale_files:
            self._siblings(count)
        self._fresh(_RELEASE)
        (self._work / _SOURCE).unlink(missing_ok=True)

    def _disk(self, data: int, virtual: int) -> None:
        place, build = f"scale/disk/{data}/{virtual}", self._build_script()
        keys = [f"{place}/build", f"{place}/back"]
        if self._is_done(keys[0], build, ".", self._code) and self._is_done(keys[1], _BACK, ".", self._code):
            return
        self._fresh(_RELEASE)
        raw = self._raw(data, virtual * GIB, _NAME.format(platform="metal", extension="raw"))
        canonical = f"{_RELEASE}/{_NAME.format(platform='qemu', extension='qcow2')}"
        self._make(f"qemu-img convert -q -f raw -O qcow2 {raw} {canonical}")
        self._fresh(_STORED)
        self._record(keys[0], self._step(keys[0], build, self._code, keep="scale"))
        self._fresh("scratch")
        done = self._step(keys[1], _BACK, self._code)
        if not done["failed"]:
            back = self._work / "scratch/back" / _NAME.format(platform="metal", extension="raw")
            done["exact"] = sha256(back) == sha256(self._work / raw)
        self._record(keys[1], done)
        self._fresh("scratch")
        self._fresh(_STORED)

    def _siblings(self, count: int) -> None:
        key, script = f"scale/files/{count}/build", self._build_script()
        if self._is_done(key, script, ".", self._code):
            return
        self._fresh(_RELEASE)
        data, virtual = min(self._options.scale_data), min(self._options.scale_virtual)
        for number in range(count):
            platform = f"p{number}" if number else "qemu"
            raw = self._raw(data, virtual * GIB, "scratch.raw", hashlib.sha256(platform.encode()).hexdigest())
            name = _NAME.format(platform=platform, extension="qcow2")
            self._make(f"qemu-img convert -q -f raw -O qcow2 {raw} {_RELEASE}/{name}\nrm {raw}")
        self._fresh(_STORED)
        self._record(key, self._step(key, script, self._code, keep="scale"))
        self._fresh(_STORED)

    def _build_script(self) -> str:
        level = self._options.scale_level
        return f"rehydrator build {_RELEASE} -o oci:{_STORED}:bench --runtime none --level {level}"

    def _raw(self, data: int, virtual: int, name: str, stamp: str = "") -> str:
        """A disk in the release that is being made; its path in the work directory."""
        source = self._source()
        target = f"{_RELEASE}/{name}"
        self._make(
            f"ours benchmarks.disks {source.relative_to(self._work)} {target} {data * _MB} {virtual} {stamp}"
        )
        return target

    def _source(self) -> Path:
        """The canonical disk as a raw file with holes."""
        path = self._work / _SOURCE
        if not path.exists():
            self._make(self._fill(f"qemu-img convert -q -O raw {{canonical}} {_SOURCE}"))
        return path
