"""Task: the same on one processor and on two.

cores/TASK/N/ROUND    TASK is a platform, all or build; N processors, by taskset
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

from benchmarks import peers
from benchmarks.base import pinned
from benchmarks.obtaining import Obtaining

PLATFORMS = ("openstack", "azure", "aws")
COUNTS = (1, 2)
PREDICTED = (4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Amdahl:
    """Seconds as s + p/n of n processors (Amdahl 1967), from those of one and of two.

    The serial share s/(s+p) = 2 T(2)/T(1) - 1 is the experimentally determined serial fraction of
    Karp and Flatt (CACM 33, 1990, page 539) for two processors. Noise can put it outside of 0 to 1;
    then the nearer end is taken, which for 0 promises as many times the speed as there are processors.
    """

    one: float
    two: float

    @property
    def share(self) -> float:
        """The serial share of the work on one processor."""
        return min(1.0, max(0.0, 2 * self.two / self.one - 1))

    def seconds(self, processors: int) -> float:
        """What the model says for so many processors."""
        return self.one * (self.share + (1 - self.share) / processors)


class Cores(Obtaining):
    """Rehydrator with fewer processors than there are."""

    def _cores(self) -> None:
        allowed = len(os.sched_getaffinity(0))
        for number in range(self._options.rounds):
            for count in (each for each in COUNTS if each <= allowed):
                for platform in PLATFORMS:
                    if file := self._case(platform):
                        script = pinned(count, self._fill(peers.REHYDRATE, file))
                        self._obtain(f"cores/{platform}/{count}/{number}", peers.REHYDRATOR, script, file)
                script = pinned(count, peers.REHYDRATE_ALL)
                self._everything(f"cores/all/{count}/{number}", peers.REHYDRATOR, script, self._files)
        for count in (each for each in COUNTS if each <= allowed):
            self._build_on(count)

    def _build_on(self, count: int) -> None:
        key, level = f"cores/build/{count}/0", self._options.scale_level
        script = pinned(count, self._fill(peers.BUILD, level=level))
        script = script.replace("stored/rehydrator", "stored/cores")
        if not self._is_done(key, script, ".", self._code):
            self._fresh("stored/cores")
            self._record(key, self._step(key, script, self._code, keep="cores"))
            shutil.rmtree(self._work / "stored/cores")
