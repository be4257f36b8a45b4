"""Run a shell script and say what it took: seconds, processor seconds, memory of the process tree."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parent.parent

_SAMPLE = 0.05  # seconds between two looks at the process tree
_TIME = ("time", "--format=%M")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SAID = 300  # bytes of standard error that are kept

# Tools that scripts/sid-root unpacked, started through their own dynamic linker.
NEWER = ROOT / "build/peers"

# `rehydrator` is the checkout's own, run by the Python that runs the benchmark; so are our own programs.
_PROLOGUE = f"""set -e -o pipefail
ours() {{ PYTHONPATH='{ROOT}' '{sys.executable}' -m "$@"; }}
rehydrator() {{ ours rehydrator "$@"; }}
encode_alone() {{ ours benchmarks.encode_alone "$@"; }}
cold_read() {{ ours benchmarks.cold_read "$@"; }}
desync() {{ '{NEWER}'/usr/lib*/ld-linux*.so.? --library-path "$(echo '{NEWER}'/usr/lib/*-linux-gnu)" \
'{NEWER}/usr/bin/desync' "$@"; }}
"""


@dataclass(frozen=True)
class Measured:
    """What a script took. `failed` is its own last words, or why it was stopped; empty if it worked.

    `memory` is the larger of two: the largest resident set of one process (as time(1) has it from
    wait4; it is small itself, and a process begins with the mark of who started it), and the largest
    sum over all processes that were alive at once, looked at every 50 ms. Bytes.
    """

    wall: float
    cpu: float
    memory: int
    failed: str = ""
    stdout: str = ""


def measure(script: str, directory: Path, timeout: float) -> Measured:
    """Run a bash script in a directory; it and what it started are killed after `timeout` seconds.

    What earlier steps left to be written is written before, outside of the measured time.
    """
    os.sync()
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as said,
        tempfile.NamedTemporaryFile("r") as peak,
    ):
        started = time.monotonic()
        shell = subprocess.Popen(
            [*_TIME, f"--output={peak.name}", "bash", "-c", _PROLOGUE + script],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=said,
            start_new_session=True,
            env=_environment(directory),
        )
        with _Watch(shell.pid, timeout) as watch:
            _, status, usage = os.wait4(shell.pid, 0)
        wall = time.monotonic() - started
        shell.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        failed = _failed(watch.late, timeout, shell.returncode, _tail(said.fileno()))
        memory = max(_peak(peak.read()), watch.peak)
        cpu = usage.ru_utime + usage.ru_stime
        return Measured(round(wall, 3), round(cpu, 3), memory, failed, out.read().decode())


def _peak(told: str) -> int:
    """What time(1) wrote in its last line; nothing where it was killed."""
    last = told.split()[-1:]
    return int(last[0]) * 1024 if last and last[0].isdigit() else 0


def _environment(directory: Path) -> dict[str, str]:
    """Nothing asked, nothing kept outside of the work directory, messages in English."""
    return os.environ | {
        "LC_ALL": "C.UTF-8",
        "TMPDIR": str(directory),
        "BORG_BASE_DIR": str(directory / "prepared/borg"),
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        "RESTIC_PASSWORD": "none",  # restic encrypts whatever it stores
    }


def _tail(file: int) -> str:
    size = os.fstat(file).st_size
    lines = os.pread(file, _SAID, max(0, size - _SAID)).decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _failed(late: bool, timeout: float, code: int, said: str) -> str:
    if late:
        return f"stopped after {timeout:.0f} seconds"
    if code in {-signal.SIGKILL, 128 + signal.SIGKILL}:
        return "killed: out of memory, or of the processor seconds that it may have"
    return f"exit code {code}: {said}" if code else ""


class _Watch:
    """Looks at the tree of a process until it ends; kills its group when time is up."""

    def __init__(self, pid: int, timeout: float) -> None:
        self.peak = 0
        self.late = False
        self._pid = pid
        self._deadline = time.monotonic() + timeout
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)  # what the shell left behind

    def _look(self) -> None:
        while not self._done.wait(_SAMPLE):
            self.peak = max(self.peak, _resident(self._pid))
            if time.monotonic() > self._deadline and not self.late:
                self.late = True
                os.killpg(self._pid, signal.SIGKILL)


def _resident(pid: int) -> int:
    """Resident bytes of a process and all below it; what has just ended counts as nothing."""
    try:
        own = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
        tasks = Path(f"/proc/{pid}/task").iterdir()
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except (OSError, IndexError):
        return 0
    return own + sum(_resident(child) for child in children)
