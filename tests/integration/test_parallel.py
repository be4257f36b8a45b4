"""A release of several images, given back in one pass: whole, interrupted at any moment, with little
memory, and where nothing gives chaining values."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import User, leftovers, names_in, sha256
from tests.integration.test_published import children, gone
from tests.vectors.siblings import disk_bytes, make_published, make_siblings

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB = 1 << 20


@dataclass(frozen=True)
class Large:
    """A release of eight images of one disk and of two in an outer compression; and the digests of
    all files that come back."""

    reference: str
    digests: dict[str, str]
    release: Path


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Large:
    work = tmp_path_factory.mktemp("parallel")
    release = work / "release"
    make_siblings(release, 20)
    make_published(release, disk_bytes(5, 7))
    home = work / "home"
    home.mkdir()
    reference = f"oci:{work}/bundle:large"
    User(home).run("build", release, "-o", reference, "--runtime", "none", "--level", 1)
    digests = {path.name: sha256(path) for path in release.iterdir()}
    (home / "images").mkdir()
    for name, unpack in (("packet.raw.xz", "xz"), ("gcp.raw.gz", "gzip")):
        with (home / "images" / name).with_suffix("").open("wb") as image:
            subprocess.run([unpack, "-dc", release / name], stdout=image, check=True)
    digests |= {path.name: sha256(path) for path in (home / "images").iterdir()}
    return Large(reference, digests, release)


@pytest.fixture
def target(user: User) -> Path:
    return user.home / "back"


# --- whole


def test_all_in_one_pass(user: User, large: Large, target: Path) -> None:
    """Everything comes back, however many threads there are, and is found there a second time."""
    ask = ["--all", "--form", "image", "--bundle", large.reference, "--json"]
    for jobs in (1, 5):
        directory = target.with_name(f"{target.name}{jobs}")
        report = json.loads(user.run("rehydrate", directory, *ask, "--jobs", jobs).out)
        assert {each["status"] for each in report} == {"written"}
        assert {name: sha256(directory / name) for name in names_in(directory)} == {
            each["file"]: large.digests[each["file"]] for each in report
        }
    report = json.loads(user.run("rehydrate", directory, *ask).out)
    assert {each["status"] for each in report} == {"present"}


def test_how_it_is_hashed(user: User, large: Large, target: Path) -> None:
    """--verbose says in how many parts each file is hashed, and by what."""
    ask = ["rehydrate", target, "--file", "metal.raw", "--file", "packet.raw.xz", "-v", "--jobs", 2]
    said = user.run(*ask, "--bundle", large.reference).err.splitlines()
    assert said[0].startswith("2 threads, 300.0 MiB of memory; SHA-256 by OpenSSL 3.")
    assert said[0].endswith("(chaining values)")
    assert [line for line in said if "hashed" in line] == [
        "metal.raw: hashed in 3 parts, side by side",
        "packet.raw.xz: hashed in sequence",
    ]


def test_how_a_pipe_is_hashed(user: User, large: Large) -> None:
    """What a pipe takes is made in order, and nothing else is said; so is what an encoder makes."""
    ask = ["rehydrate", "-", "--file", "metal.raw", "--file", "packet.raw.xz", "-v", "--jobs", 1]
    ask += ["--bundle", large.reference]
    said = user.run(*ask).err.splitlines()
    assert said[0].startswith("1 thread, 300.0 MiB of memory; ")
    assert said[1:] == [
        "metal.raw: hashed in 3 parts, as they come, in order",
        "packet.raw.xz: hashed in sequence",
    ]


def test_how_it_is_verified(user: User, large: Large) -> None:
    """`verify --verbose` says the same as `rehydrate`, of every form; without --all nothing is made."""
    said = user.run("verify", "--all", "-v", "--jobs", 2, "--memory", "256m", large.reference).err
    lines = said.splitlines()
    assert lines[0].startswith("2 threads, 256.0 MiB of memory; SHA-256 by OpenSSL 3.")
    assert {"metal.raw: hashed in 3 parts, side by side", "packet.raw.xz: hashed in sequence"} <= {*lines}
    assert {line.partition(": ")[0] for line in lines[1:]} >= large.digests.keys()
    assert len(user.run("verify", "-v", large.reference).err.splitlines()) == 1


@pytest.mark.parametrize("verb", ["rehydrate", "verify", "nbd"])
def test_what_cannot_be_used_is_said(user: User, large: Large, target: Path, verb: str) -> None:
    """Less memory than one thread needs, and more threads than memory is enough for, if they were
    asked for; no other output differs."""
    file = ["--file", "packet.raw.xz.sig"]
    asks: dict[str, list[object]] = {
        "rehydrate": [target, *file, "--bundle", large.reference],
        "verify": [large.reference],
        "nbd": [large.reference, "--file", "metal.raw", "--run", "true"],
    }

    def said(*options: object) -> list[str]:
        lines = user.run(verb, *asks[verb], *options).err.splitlines()
        return [line for line in lines if "memory" in line]

    least = "rehydrator: --memory is 1 B, and one thread needs 128.0 MiB: so much is used"
    assert said("--memory", "1", "--jobs", 1) == [least]
    assert said("--memory", "0", "--jobs", 1) == [least.replace("1 B", "0 B")]
    assert said("--memory", "300m", "--jobs", 64) == [
        "rehydrator: 300.0 MiB of memory are enough for 4 threads, not for --jobs 64; --memory gives more"
    ]
    assert said("--memory", "128m") == said("--memory", "300m", "--jobs", 4) == said() == []
    if verb != "nbd":
        assert said("--memory", "1", "--jobs", 1, "-v")[1].startswith("1 thread, 128.0 MiB of memory; ")


# --- interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("what", ["directory", "pipe", "verify"])
def test_interrupted_at_any_moment(
    user: User, large: Large, target: Path, number: signal.Signals, what: str
) -> None:
    """Within moments it ends with 130, or has ended before; what has a name is whole, nothing else is
    left, in DIR, in TMPDIR, or running."""
    asks: dict[str, list[object]] = {
        "directory": ["rehydrate", target, "--all", "--bundle", large.reference],
        "pipe": ["rehydrate", "-", "--all", "--form", "image", "--bundle", large.reference],
        "verify": ["verify", "--all", large.reference],
    }
    code, whole = interrupt(user, number, 1000, asks[what])
    assert code == 0
    dice, codes = random.Random(f"{number}{what}"), list[int]()
    for _ in range(5):
        shutil.rmtree(target, ignore_errors=True)
        code, spent = interrupt(user, number, dice.uniform(0.3, 0.9) * whole, asks[what])
        codes.append(code)
        assert spent < 1
        names = names_in(target) if target.exists() else []
        assert [name for name in names if sha256(target / name) != large.digests[name]] == []
        assert leftovers(user.home) == []
    assert {130} <= set(codes) <= {0, 130}


def interrupt(user: User, number: int, after: float, ask: Sequence[object]) -> tuple[int, float]:
    """Send a signal after so many seconds of a processor, which do not depend on what else runs here. How
    it ended, and the seconds since then; all of them where it ended before."""
    ran = subprocess.Popen(
        user.command(*ask),
        cwd=user.home,
        env=user.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    spent = cpu(ran.pid)
    while spent < after and not has_ended(ran.pid):
        time.sleep(0.005)
        spent = cpu(ran.pid)
    started = children(ran.pid)
    before = 0.0 if has_ended(ran.pid) else spent
    os.kill(ran.pid, number)
    sent = time.monotonic()
    assert ran.stderr is not None
    said = ran.stderr.read()
    while not has_ended(ran.pid):
        time.sleep(0.005)
    spent = cpu(ran.pid)
    assert time.monotonic() - sent < 30
    ran.communicate()
    assert b"Traceback" not in said
    assert gone(started)
    return ran.returncode, spent - before


def has_ended(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def cpu(pid: int) -> float:
    """Seconds of a processor that a process has taken, all its threads together (proc(5))."""
    facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(facts[11]) + int(facts[12])) / os.sysconf("SC_CLK_TCK")


# --- memory


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Large:
    """A disk with 75 MiB of random bytes in a file of 1 GiB, and the same compressed by qemu-img."""
    work = tmp_path_factory.mktemp("wide")
    release, dice = work / "release", random.Random(12)
    release.mkdir()
    raw = release / "metal.raw"
    with raw.open("wb") as file:
        for part in range(25):
            file.seek(part * 40 * MIB)
            file.write(dice.randbytes(3 * MIB) + b"text of a file, again and again. " * 32_000)
        file.truncate(1 << 30)
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", raw, release / "qemu.qcow2"], check=True
    )
    (work / "home").mkdir()
    reference = f"oci:{work}/bundle:wide"
    User(work / "home").run("build", release, "-o", reference, "--runtime", "none", "--level", 1)
    return Large(reference, {path.name: sha256(path) for path in release.iterdir()}, release)


# A process of its own: what a program has at most begins with what the process had that it was forked from.
MEASURE = """import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak(user: User, *arguments: object) -> int:
    """The most memory that a run takes, in bytes; it ends well."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *user.command(*arguments)],
        cwd=user.home,
        env=user.environment(),
        capture_output=True,
        check=True,
    )
    code, kibibytes = map(int, done.stdout.split())
    assert code == 0, done.stderr
    return kibibytes << 10


@pytest.mark.parametrize("what", ["all", "raw", "qcow2", "- raw", "- qcow2"])
@pytest.mark.parametrize(("memory", "jobs", "most"), [("128m", 16, 128), ("300m", 16, 300), ("1", 2, 128)])
def test_memory(user: User, wide: Large, target: Path, memory: str, jobs: int, most: int, what: str) -> None:
    """No more is taken than --memory says, with however many threads; and where that is less than the
    least that is needed, this least, by one thread."""
    names = {"raw": ["--file", "metal.raw"], "qcow2": ["--file", "qemu.qcow2"], "all": ["--all"]}
    options = ["--bundle", wide.reference, "--memory", memory, "--jobs", jobs]
    dest = "-" if what.startswith("-") else target
    taken = peak(user, "rehydrate", dest, *names[what.removeprefix("- ")], *options)
    assert taken < most * MIB
    found = {name: sha256(target / name) for name in (names_in(target) if dest is target else [])}
    assert found.items() <= wide.digests.items()
    assert len(found) == {"all": 2, "raw": 1, "qcow2": 1}.get(what, 0)


@pytest.mark.parametrize(("memory", "most"), [("128m", 128), ("300m", 300)])
def test_memory_of_a_verification(user: User, wide: Large, memory: str, most: int) -> None:
    """It is bounded as rehydrating is."""
    assert peak(user, "verify", "--all", wide.reference, "--memory", memory, "--jobs", 16) < most * MIB


@pytest.mark.parametrize("size", ["", "x", "-5", "1.5g", "5t", "12 m", "m", "\u0663m", "0x10", "+1g", "1mm"])
def test_memory_that_is_no_size(user: User, large: Large, target: Path, size: str) -> None:
    """Exit 2, one line that says how a size is written, and nothing is made."""
    ran = user.run("rehydrate", target, "--all", "--bundle", large.reference, "--memory", size, code=2)
    lines = [line for line in ran.err.splitlines() if "--memory" in line]
    assert [line.endswith("is no size; write 512m or 2g") for line in lines] == [True]
    assert not target.exists()


@pytest.mark.parametrize("size", ["536870912", "512m", "512M", "524288k", "512MiB", "1g", "512mb"])
def test_memory_as_it_is_written(user: User, large: Large, target: Path, size: str) -> None:
    """In bytes, or with a unit, as podman takes it; what is used is said."""
    ask = ["rehydrate", target, "--file", "packet.raw.xz.sig", "--bundle", large.reference, "-v"]
    said = user.run(*ask, "--memory", size, "--jobs", 3).err.splitlines()[0]
    assert said.startswith(f"3 threads, {'1.0 GiB' if size == '1g' else '512.0 MiB'} of memory; ")


# --- without chaining values

NO_LIBRARY = """import sys
from rehydrator.codecs import sha256
sha256._NAMES = ()
sha256._of_hashlib = lambda: "libnothing.so.0"
from rehydrator.cli import main
sys.exit(main())
"""


def test_without_a_library(user: User, large: Large, target: Path) -> None:
    """Where nothing gives chaining values a build records none, and rehydrating ignores those that there
    are; --verbose says so, and every byte is the same."""
    (user.home / "nowhere.py").write_text(NO_LIBRARY)

    def run(*arguments: object) -> str:
        done = subprocess.run(
            [sys.executable, "nowhere.py", *map(str, arguments)],
            cwd=user.home,
            env=user.environment(),
            capture_output=True,
            check=False,
        )
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
        return done.stderr.decode()

    said = run("rehydrate", target, "--all", "--form", "image", "-v", "--bundle", large.reference)
    assert "(hashlib alone, in sequence)" in said.splitlines()[0]
    assert "metal.raw: hashed in sequence" in said
    assert {name: sha256(target / name) for name in names_in(target)}.items() <= large.digests.items()
    assert len(names_in(target)) == 10
    release = user.home / "one"
    release.mkdir()
    shutil.copy(large.release / "metal.raw", release)
    run("build", release, "-o", "oci:out:x", "--runtime", "none", "--level", 1)
    assert (
        "metal.raw: hashed in sequence"
        in user.run("rehydrate", "two", "--all", "-v", "--bundle", "oci:out").err
    )
    assert sha256(user.home / "two" / "metal.raw") == large.digests["metal.raw"]
