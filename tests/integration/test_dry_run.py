"""rehydrate --dry-run: what a run would do is said, with its exit code, and nothing is done."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.conftest import NAME, names_in, sha256

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Made, User

METAL, AZURE = NAME.format("metal", "raw"), NAME.format("azure", "vhd")
FILES = ["--file", METAL, "--file", AZURE]


def words_for(image: Path, place: str) -> str:
    size = image.stat().st_size
    return (
        f"{image.name}: would be written to {place}, {size / (1 << 20):.1f} MiB ({size} bytes), "
        f"sha256 {sha256(image)}\n"
    )


def test_files(user: User, made: Made) -> None:
    """What is there is told from what would be written and from what is in the way; the directory is not
    made; a run then does just that."""
    ask = ["rehydrate", "out", *FILES, "--bundle", made.reference]
    expected = "".join(words_for(made.images[name], f"out/{name}") for name in (METAL, AZURE))
    assert user.run(*ask, "--dry-run").err == expected
    assert not (user.home / "out").exists()
    user.run(*ask[:4], "--bundle", made.reference)
    (user.home / "out" / AZURE).write_bytes(b"mine")
    ran = user.run(*ask, "--dry-run", code=3)
    assert ran.err == (
        f"{METAL}: present, sha256 verified\n"
        f"rehydrator: out/{AZURE} exists and is another file; --overwrite replaces it\n"
    )
    assert (user.home / "out" / AZURE).read_bytes() == b"mine"
    assert user.run(*ask, code=3).code == 3
    report = json.loads(user.run(*ask, "--dry-run", "--overwrite", "--json").out)
    assert [each["status"] for each in report] == ["present", "would be written"]
    assert report[1]["to"] == f"out/{AZURE}"
    assert [each["sha256"] for each in report] == [sha256(made.images[name]) for name in (METAL, AZURE)]
    assert (user.home / "out" / AZURE).read_bytes() == b"mine"


def test_a_pipe(user: User, made: Made) -> None:
    """Standard output gets nothing."""
    ran = user.run("rehydrate", "-", "--file", AZURE, "--bundle", made.reference, "--dry-run")
    assert (ran.out, ran.err) == (b"", words_for(made.images[AZURE], "standard output"))


def test_what_cannot_be(user: User, made: Made) -> None:
    """No room is 9, and no directory to make one in is 2, as they would be."""
    more = [*FILES[:2], "--no-sparse", "--bundle", made.reference, "--dry-run"]
    assert "no such directory; make it first" in user.run("rehydrate", "a/b", *more, code=2).err
    (user.home / "out").mkdir()
    script = 'mount -t tmpfs -o size=64k none out && "$@"'
    ran = user.run("rehydrate", "out", *more, wrapper=["unshare", "-m", "sh", "-c", script, "sh"], code=9)
    assert f"{METAL} needs {made.images[METAL].stat().st_size} bytes and 65536 are free" in ran.err


@pytest.mark.parametrize("size", [0, -512])
def test_a_disk(user: User, made: Made, size: int) -> None:
    """What would be asked is said, and not asked; a disk that is too small is 9."""
    image, file = made.images[METAL], user.home / "disk"
    file.write_bytes(b"\xee" * (image.stat().st_size + size))
    before = sha256(file)
    done = subprocess.run(["losetup", "-f", "--show", file], check=True, capture_output=True, text=True)
    node = done.stdout.strip()
    try:
        ask = ["rehydrate", node, "--file", METAL, "--bundle", made.reference, "--dry-run"]
        ran = user.run(*ask, code=9 if size else 0)
    finally:
        subprocess.run(["losetup", "-d", node], check=True)
    if size:
        assert "name a larger disk" in ran.err
    else:
        first, _, second = ran.err.partition("\n")
        assert (first.startswith(f"{node}: "), first.endswith("; everything on it is lost.")) == (True, True)
        assert second == words_for(image, node)
    assert sha256(file) == before


def test_in_place(user: User, made: Made) -> None:
    """How much is right is said, and a file that has nothing of the image is 2."""
    old = user.home / "old.raw"
    old.write_bytes(made.images[METAL].read_bytes() + b"more")
    before = sha256(old)
    ask = ["rehydrate", "out", "--file", METAL, "--bundle", made.reference, "--dry-run", "--in-place"]
    size = f"{made.images[METAL].stat().st_size / (1 << 20):.1f} MiB"
    expected = f"{METAL}: would be made of old.raw; {size} of {size} are right already\n"
    assert user.run(*ask, "old.raw").err == expected
    [report] = json.loads(user.run(*ask, "old.raw", "--json").out)
    assert (report["status"], report["right_before"]) == ("would be updated", report["size"])
    assert (sha256(old), (user.home / "out").exists()) == (before, False)
    (user.home / "thesis.pdf").write_bytes(b"words" * 9999)
    assert "nothing in thesis.pdf is of" in user.run(*ask, "thesis.pdf", code=2).err
    assert names_in(user.home) == ["old.raw", "thesis.pdf", "tmp"]
