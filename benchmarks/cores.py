"""Task: the same on one processor and on two.

cores/TASK/N/ROUND       TASK is a platform, all or build; N processors, by taskset
cores/control/N/ROUND    N runs at the same time, that have one thread each and nothing to do with each other
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

# What two processors must be worth at least for anything to be said.
_LEAST_WORTH = 1.1


@dataclass(frozen=True)
class Amdahl:
    """Seconds as s + p/w of processors that are worth w times one (Amdahl 1967), from those of one and
    of two.

    `worth` is what two are worth: less than 2 where they share a core, a cache or a clock. With 2 the
    serial share s/(s+p) is the experimentally determined serial fraction of Karp and Flatt (CACM 33,
    1990, page 539), 2 T(2)/T(1) - 1. Noise can put it outside of 0 to 1; then the nearer end is taken.
    More processors are taken to be worth as much more as there are pairs of them.
    """

    one: float
    two: float
    worth: float = 2.0

    @property
    def share(self) -> float:
        """The serial share of the work on one processor."""
        least = 1 / max(self.worth, _LEAST_WORTH)
        return min(1.0, max(0.0, (self.two / self.one - least) / (1 - least)))

    def seconds(self, processors: int) -> float:
        """What the model says for so many processors."""
        worth = max(self.worth, _LEAST_WORTH) * processors / 2 if processors > 1 else 1
        return self.one * (self.share + (1 - self.share) / worth)


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
                self._control(count, number)
                script = pinned(count, peers.REHYDRATE_ALL)
                self._everything(f"cores/all/{count}/{number}", peers.REHYDRATOR, script, self._files)
        for count in (each for each in COUNTS if each <= allowed):
            self._build_on(count)

    def _control(self, count: int, number: int) -> None:
        file = self._case("aws")
        if file is None:
            return
        alone = f"{self._fill(peers.TO_PIPE, file)} --jobs 1 > /dev/null"
        beside = f"{alone} &\nother=$!\n" * (count - 1) + alone + "\nwait $other" * (count - 1)
        key, script = f"cores/control/{count}/{number}", pinned(count, beside)
        if not self._is_done(key, script, ".", self._code):
            self._record(key, self._step(key, script, self._code))

    def _build_on(self, count: int) -> None:
        key, level = f"cores/build/{count}/0", self._options.scale_level
        script = pinned(count, self._fill(peers.BUILD, level=level))
        script = script.replace("stored/rehydrator", "stored/cores")
        if not self._is_done(key, script, ".", self._code):
            self._fresh("stored/cores")
            self._record(key, self._step(key, script, self._code, keep="cores"))
            shutil.rmtree(self._work / "stored/cores")
