"""The comparison: its tasks, in order. Each step is kept as soon as it is done: an interrupted run goes
on behind it, and a run of other tasks adds to what is there."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

from benchmarks import peers
from benchmarks.base import OutOfTime
from benchmarks.cores import Cores
from benchmarks.reading import Reading
from benchmarks.scale import Scale
from benchmarks.steps import size
from benchmarks.storing import Storing

if TYPE_CHECKING:
    from collections.abc import Callable


class Comparison(Storing, Cores, Reading, Scale):
    """All tasks."""

    def run(self) -> None:
        """Every wanted step that is not done yet and that the time is there for."""
        self._check_space()
        tasks: dict[str, Callable[[], None]] = {
            "obtain": lambda: self._obtain_all(to_file=True, to_pipe="pipe" in self._options.tasks),
            "pipe": lambda: self._obtain_all(to_file=False, to_pipe=True),
            "all": self._obtain_release,
            "read": self._read_all,
            "startup": self._startup,
            "cores": self._cores,
            "levels": self._levels,
            "scale": self._scale,
        }
        if "obtain" in self._options.tasks:
            del tasks["pipe"]  # in turn with the others
        try:
            self._stored()
            for name, task in tasks.items():
                if name in self._options.tasks:
                    task()
        except OutOfTime:
            print("the time is over; the next run goes on from here", file=sys.stderr)

    def _stored(self) -> None:
        """What every other task needs: all that is stored, or the bundle alone."""
        if "store" in self._options.tasks:
            self._store_all()
            return
        self._floor()
        if self._wants(peers.REHYDRATOR):
            self._build()

    def _check_space(self) -> None:
        """Room for what tools store, and for one file as it comes back, its holes filled.

        Of the *os* release delta tools and chunk stores took 0.13 to 0.2 times what it has on
        disk, the method of 2021 and bsdiff, which does not fit, much less.
        """
        tools = len(self._peers()) + 1 if "store" in self._options.tasks else 1
        needed = max(2, tools) * sum(each.allocated for each in self._files) // 8
        needed += max((each.size for each in self._cases()), default=0)
        free = shutil.disk_usage(self._work).free + size(self._work / "stored")
        if free < needed:
            sys.exit(f"the comparison needs {needed >> 20:,} MiB of disk space; {free >> 20:,} MiB are free")
