"""The editors that need a process of their own: libguestfs's appliance, and loop mounts."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rehydrator import host
from rehydrator.core.errors import HostileInput, Interrupted, LimitExceeded, RehydratorError, ToolMissing
from rehydrator.host.guest_pages import Copies, check_ext
from rehydrator.host.guest_volumes import TIMEOUT, Entry, Volume, sector_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_WORKER: Final = Path(__file__).with_name("guest_worker.py")
# Measured: 22 s under TCG on two cores with one disk; a busy machine may take some times that.
_LAUNCH_TIMEOUT: Final = 600.0
# KVM that works starts it in a few seconds.
_KVM_TIMEOUT: Final = 60.0
_CLOSE_TIMEOUT: Final = 60.0
# The largest honest reply is a file of 1 MiB in base64, or a directory of some thousand names.
_MAX_REPLY: Final = 16 << 20
_MAX_DRIVES: Final = 255
_APPLIANCE_PACKAGES: Final = "python3-guestfs libguestfs0 supermin linux-image-amd64 (or your kernel's)"
_SAID_LINES: Final = 12
_PYTHONS: Final = (sys.executable, "/usr/bin/python3")


class Worker:
    """A process that answers requests; one at a time, whichever thread asks."""

    def __init__(self, program: subprocess.Popen[bytes], said: Path, remedy: str) -> None:
        self._program, self._said, self._remedy = program, said, remedy
        self._rest = b""
        self._lock = threading.Lock()

    def ask(self, timeout: float = TIMEOUT, **request: Any) -> Any:
        """What the worker answers.

        Raises:
            LimitExceeded: a filesystem is full.
            RehydratorError: it could not, did not answer in time, or died.
        """
        with self._lock:
            reply = self._exchange(request, timeout)
        if "error" not in reply:
            return reply.get("value")
        # libguestfs goes on with six lines of advice.
        words = str(reply["error"]).partition("\nTo see full")[0].strip().rstrip(".")
        if reply.get("why") == "full":
            raise LimitExceeded(f"full: {words}; make this filesystem larger, or the files smaller")
        raise RehydratorError(f"{words}; {self._remedy}")

    def _exchange(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        stdin = self._program.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
            reply = json.loads(self._line(time.monotonic() + timeout, request["op"], timeout))
        except (OSError, ValueError):
            raise self._dead(request["op"]) from None
        if not isinstance(reply, dict):
            raise self._dead(request["op"])
        return reply

    def _line(self, deadline: float, op: str, timeout: float) -> bytes:
        stdout = self._program.stdout
        assert stdout is not None
        while b"\n" not in self._rest:
            ready, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self._program.kill()
                raise RehydratorError(
                    f"editing guests: the step {op!r} did not end within {timeout:g} seconds; {self._remedy}"
                )
            data = os.read(stdout.fileno(), 1 << 16)
            if not data or len(self._rest) > _MAX_REPLY:
                raise self._dead(op)
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _dead(self, op: str) -> RehydratorError:
        if host.stopped():
            return Interrupted("interrupted")
        self._program.kill()
        status = self._program.wait()
        said = self._said.read_bytes()[-4000:].decode(errors="replace").splitlines()[-_SAID_LINES:]
        words = "; it said: " + " / ".join(line for line in said if line.strip()) if said else ""
        return RehydratorError(
            f"editing guests: the worker process ended in the middle of {op!r} "
            f"(status {status}); {self._remedy}{words}"
        )


@contextmanager
def worker(argv: Sequence[str], work: Path, env: Mapping[str, str], remedy: str) -> Iterator[Worker]:
    """Start the worker, and see it end: it closes what it has open, or is killed."""
    said = work / "said"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with said.open("wb") as kept, ExitStack() as stack:
        # Who debugs libguestfs wants to see all that it says.
        stderr = None if os.environ.get("LIBGUESTFS_DEBUG") == "1" else kept
        program = stack.enter_context(host.started(argv, env=env, cwd=work, stderr=stderr, **pipes))
        asked = Worker(program, said, remedy)
        try:
            yield asked
            # Each write was flushed, so that no disk depends on how an appliance ends.
            with suppress(RehydratorError):
                asked.ask(_CLOSE_TIMEOUT, op="close")
        finally:
            # It ends the appliance when its stdin ends, which is quicker than what kills the
            # appliance of a worker that was killed.
            with suppress(OSError, subprocess.TimeoutExpired):
                if program.stdin is not None:
                    program.stdin.close()
                program.wait(2)


class _Asking:
    """Reading through a worker; what is read from is the subclass's matter."""

    def __init__(self, asked: Worker, base: Path) -> None:
        self._asked, self._base = asked, base

    def source(self, volume: Volume) -> str:
        """What the worker calls a volume of the base."""
        raise NotImplementedError

    def entries(self, volume: Volume, folder: str) -> dict[str, Entry]:
        found = self._ask("entries", volume, folder)
        try:
            return {str(name): Entry(str(kind), int(size)) for name, (kind, size) in found.items()}
        except (TypeError, ValueError, AttributeError):
            raise HostileInput(f"{self._base}: {volume}: {folder} cannot be listed") from None

    def target(self, volume: Volume, path: str) -> str:
        return str(self._ask("target", volume, path))

    def read(self, volume: Volume, path: str) -> bytes:
        return base64.b64decode(self._ask("read", volume, path))

    def prepare(self, volumes: list[Volume]) -> None:
        """Nothing: the kernel decides."""

    def _ask(self, op: str, volume: Volume, path: str) -> Any:
        try:
            return self._asked.ask(op=op, source=self.source(volume), kind=volume.kind, path=path)
        except Interrupted:
            raise
        except RehydratorError as error:
            raise type(error)(f"{self._base}: {volume}: reading {path}: {error}") from None

    def _write(self, source: str, volume: Volume, files: Mapping[str, bytes], epoch: int) -> None:
        contents = {path: base64.b64encode(data).decode() for path, data in files.items()}
        self._asked.ask(op="write", source=source, kind=volume.kind, files=contents, epoch=epoch)


class Guestfs(_Asking):
    """All disks in one appliance, which edits the overlays themselves."""

    def __init__(self, asked: Worker, base: Path, disks: Sequence[Path], epoch: int, timeout: float) -> None:
        super().__init__(asked, base)
        self._epoch = epoch
        self._labels = {disk: _letters(number) for number, disk in enumerate(disks)}
        drives = [_drive(base, base, "base", "raw")]
        drives += [_drive(base, disk, label, "qcow2") for disk, label in self._labels.items()]
        if len(drives) > _MAX_DRIVES:
            raise LimitExceeded(f"{len(disks)} disks are more than one appliance takes ({_MAX_DRIVES - 1})")
        asked.ask(timeout, op="open", drives=drives, epoch=epoch)

    def opens(self, volume: Volume) -> bool:
        # btrfs takes disks with the same identifier, which ours have, for parts of one filesystem.
        return volume.kind in {"ext", "xfs"}

    def source(self, volume: Volume) -> str:
        return _device("base", volume)

    def write(self, disk: Path, files: Mapping[Volume, Mapping[str, bytes]]) -> None:
        if disk not in self._labels:
            raise RehydratorError(f"{disk}: was not among the disks that the appliance was started with")
        for volume, contents in files.items():
            try:
                self._write(_device(self._labels[disk], volume), volume, contents, self._epoch)
            except Interrupted:
                raise
            except RehydratorError as error:
                raise type(error)(f"{disk}: {volume}: {error}") from None


class Mount(_Asking):
    """Copies of filesystems, loop-mounted in a mount namespace of their own."""

    def __init__(self, asked: Worker, base: Path, epoch: int, work: Path) -> None:
        super().__init__(asked, base)
        self._epoch, self._work = epoch, work
        self._copies = Copies(base, work)

    def opens(self, volume: Volume) -> bool:
        return True

    def source(self, volume: Volume) -> str:
        return self._copies.name(self._copies.pristine(volume))

    def write(self, disk: Path, files: Mapping[Volume, Mapping[str, bytes]]) -> None:
        self._copies.edit(disk, files, self._edit)

    def _edit(self, volume: Volume, image: str, contents: Mapping[str, bytes], folder: Path) -> None:
        self._write(image, volume, contents, self._epoch)
        said = check_ext(image, self._work) if volume.kind == "ext" else ""
        if said:
            raise RehydratorError(f"the edited filesystem is damaged, so this disk is not done: {said}")


def guestfs_python() -> str:
    """A Python that can import guestfs.

    Raises:
        ToolMissing: there is none.
    """
    for python in dict.fromkeys(_PYTHONS):
        with suppress(ToolMissing):
            if not host.run([python, "-I", "-c", "import guestfs"], TIMEOUT).status:
                return python
    raise ToolMissing(
        f"no Python here can import guestfs (on Debian: apt-get install {_APPLIANCE_PACKAGES}); "
        "or try --editor offline or mount"
    )


@contextmanager
def guestfs_backend(
    python: str,
    base: Path,
    disks: Sequence[Path],
    epoch: int,
    work: Path,
    kvm: bool,
    note: Callable[[str], None],
) -> Iterator[Guestfs]:
    """Launch the appliance with the base and all overlays. Where it does not start under KVM it is
    launched once more without: a boot sector may run where a whole system does not (seen).

    Raises:
        RehydratorError: it does not start.
    """
    remedy = "try --editor offline or mount, or look closer with LIBGUESTFS_DEBUG=1"
    failure = ""
    for with_kvm in (True, False) if kvm else (False,):
        note(f"launching libguestfs's appliance {'with' if with_kvm else 'without'} KVM")
        env = {
            "LIBGUESTFS_BACKEND": "direct",
            "LIBGUESTFS_BACKEND_SETTINGS": "" if with_kvm else "force_tcg",
            "LIBGUESTFS_TMPDIR": str(work.absolute()),
        }
        with worker([python, "-I", str(_WORKER), "guestfs"], work, env, remedy) as asked:
            try:
                backend = Guestfs(asked, base, disks, epoch, _KVM_TIMEOUT if with_kvm else _LAUNCH_TIMEOUT)
            except (Interrupted, LimitExceeded):
                raise
            except RehydratorError as error:
                failure = str(error)
                continue
            yield backend
            return
    raise RehydratorError(
        f"libguestfs's appliance does not start (on Debian it needs {_APPLIANCE_PACKAGES}): {failure}"
    )


@contextmanager
def mount_backend(base: Path, epoch: int, work: Path) -> Iterator[Mount]:
    """Start a worker in a mount namespace of its own: what it mounts dies with it.

    Raises:
        ToolMissing: we are not root, or programs are missing.
    """
    if os.geteuid():
        raise ToolMissing("--editor mount must be root; run as root, or try --editor offline or guestfs")
    for program in ("mount", "umount", "e2fsck"):
        host.find(program)
    argv = ["unshare", "--mount", "--propagation", "private", sys.executable, "-I", str(_WORKER), "mount"]
    with (
        tempfile.TemporaryDirectory(dir=work, prefix="mount-") as folder,
        worker(argv, Path(folder), {}, "try --editor offline or guestfs") as asked,
    ):
        yield Mount(asked, base, epoch, Path(folder))


def _drive(base: Path, disk: Path, label: str, format_name: str) -> dict[str, Any]:
    """What libguestfs's add_drive takes; it finds partitions by the sectors that their table counts."""
    options = {"format": format_name, "label": label, "readonly": disk == base}
    return {"path": str(disk.absolute()), "blocksize": sector_size(base), **options}


def _device(label: str, volume: Volume) -> str:
    return f"/dev/disk/guestfs/{label}{volume.partition or ''}"


def _letters(number: int) -> str:
    """A drive's label may only have letters."""
    return f"disk{chr(97 + number // 26 % 26)}{chr(97 + number % 26)}"
