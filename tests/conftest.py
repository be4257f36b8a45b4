"""What the tests of the whole pipeline share: the program as a user runs it, one small release,
and one signed bundle of it."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rehydrator.bundle.rehydrate import to_directory
from rehydrator.core.errors import RehydratorError
from rehydrator.core.interrupts import INTERRUPTS
from tests.corpus.small import make_small

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rehydrator.bundle.manifest import Output
    from rehydrator.bundle.reader import Bundle
    from rehydrator.bundle.rehydrate import Options

ROOT = Path(__file__).parent.parent

# Who runs the tests in a shell's background hands an ignored SIGINT down to them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _signals_come_back() -> Iterator[None]:
    """The program takes the signals, also where a test runs it in its own process."""
    handlers = {number: signal.getsignal(number) for number in (*INTERRUPTS, signal.SIGALRM)}
    hook = sys.unraisablehook
    yield
    sys.unraisablehook = hook
    for number, handler in handlers.items():
        signal.signal(number, handler)


NAME = "demo-1.0.0-{}.x86_64.{}"
NOBODY = 65534


@dataclass(frozen=True)
class Ran:
    """How a run of the program ended."""

    code: int
    out: bytes
    err: str


class User:
    """Runs the program in a directory of its own, and looks after every run whether it left
    temporary files or ended in a traceback."""

    def __init__(self, home: Path) -> None:
        self.home, self.tmp = home, home / "tmp"
        self.tmp.mkdir()

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "rehydrator", *map(str, arguments)]

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        quiet = {key: value for key, value in os.environ.items() if not key.startswith("REHYDRATOR_")}
        return {**quiet, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.tmp), **(more or {})}

    def run(
        self,
        *arguments: object,
        code: int = 0,
        env: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
        stdin: bytes = b"",
    ) -> Ran:
        """Run the program to its end; fails unless it ends with `code`."""
        done = subprocess.run(
            [*wrapper, *self.command(*arguments)],
            cwd=self.home,
            env=self.environment(env),
            input=stdin,
            capture_output=True,
            check=False,
            timeout=120,
        )
        ran = Ran(done.returncode, done.stdout, done.stderr.decode())
        assert "Traceback" not in ran.err, ran.err
        assert code == ran.code, f"{arguments}: {ran.code}\n{ran.err}"
        assert leftovers(self.home) == []
        return ran


def leftovers(home: Path) -> list[str]:
    """Temporary files of the program below `home`, and everything in its temporary directory."""
    return sorted(
        str(path.relative_to(home))
        for path in home.rglob("*")
        if path.name.startswith((".rehydrator", "rehydrator-")) or home / "tmp" in path.parents
    )


def rehydrated(
    bundle: Bundle,
    output: Output,
    directory: Path,
    options: Options,
    progress: Callable[[int], object] = lambda _: None,
) -> bool:
    """Write one output; False where it was there already. Raises what it failed with."""
    ended: list[str | RehydratorError] = []
    to_directory(bundle, [output], directory, options, progress, lambda _, result: ended.append(result))
    [result] = ended
    if isinstance(result, RehydratorError):
        raise result
    return result == "written"


def names_in(directory: Path) -> list[str]:
    """What lies in a directory, sorted."""
    return sorted(path.name for path in directory.iterdir())


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Made:
    """A release directory, the images that rehydrate from it (by name), the bundle, the keys."""

    release: Path
    images: dict[str, Path]
    reference: str
    private: Path
    public: Path

    @property
    def layout(self) -> Path:
        return Path(self.reference.split(":")[1])

    def copy(self, target: Path) -> str:
        """A reference to a copy of the bundle that a test may damage."""
        shutil.copytree(self.layout, target)
        return f"oci:{target}:demo"


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Thirteen files: eight platforms' disks, one of them compressed, live media, and two names
    by no convention; modes and times that a umask and a clock would not give."""
    base = tmp_path_factory.mktemp("made")
    release, images = base / "release", base / "images"
    make_small(
        release, ("metal", "qemu", "openstack", "aws", "azure", "gcp", "vmware"), megabytes=3, cloud_mib=52
    )
    metal4k = release / NAME.format("metal4k", "raw")
    metal4k.write_bytes(bytes(4096) + b"EFI PART".ljust(4096, b"\0") + random.Random(4).randbytes(1 << 18))
    (release / NAME.format("live", "iso")).write_bytes(b"an ISO" * 3000)
    shutil.copy(release / NAME.format("openstack", "qcow2"), release / "box.old.qcow2")
    (release / "SHA256SUMS").write_bytes(b"")
    for number, path in enumerate(sorted(release.iterdir())):
        path.chmod(0o600 + number)
        os.utime(path, (1_500_000_000 + number, 1_600_000_000 + number))
    subprocess.run(["cp", "-a", "--sparse=always", release, images], check=True)
    subprocess.run(["xz", "-1", release / NAME.format("openstack", "qcow2")], check=True)
    (base / "home").mkdir()
    user = User(base / "home")
    user.run("keygen", base / "demo", "--no-password")
    reference = f"oci:{base / 'bundle'}:demo"
    user.run("build", release, "-o", reference, "--runtime", "none", "--level", 1, "--key", base / "demo.key")
    found = {path.name: path for path in sorted(images.iterdir())}
    return Made(release, found, reference, base / "demo.key", base / "demo.pub")
