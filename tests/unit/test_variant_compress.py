"""The table of compressors, and what happens when one fails or lies."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from rehydrator.core.errors import DigestMismatch, LimitExceeded, RehydratorError, ToolMissing, UsageError
from rehydrator.variants.compress import COMPRESSORS, Compressed, compress
from rehydrator.variants.tools import Measured, measure, measure_output
from tests.conftest import names_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DATA = b"data" * 1000


@pytest.fixture(name="xz")
def fixture_xz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts shell scripts in the place of xz: what it does to compress and to decompress."""

    def write(pack: str, unpack: str) -> None:
        program = tmp_path / "bin" / "xz"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\nfor last; do :; done\ncase $1 in -dc) {unpack};; *) {pack};; esac\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")

    return write


@pytest.fixture(name="source")
def fixture_source(tmp_path: Path) -> Path:
    path = tmp_path / "here" / "disk.raw"
    path.parent.mkdir()
    path.write_bytes(DATA)
    return path


def test_table() -> None:
    """The names that derivations use, what they add to a name, and the options of coreos-assembler."""
    numbers = {"threads": "N", "source": "FILE"}
    found = {
        name: (each.suffix, " ".join(each.pack).format(level=each.level, **numbers))
        for name, each in COMPRESSORS.items()
    }
    assert found == {
        "xz": (".xz", "xz -c9 -TN FILE"),
        "gzip": (".gz", "gzip -6 -c FILE"),
        "gzip9": (".gz", "gzip --no-name --stdout -9 FILE"),
        "zstd": (".zst", "zstd -q -10 -c -TN FILE"),
        "zip": (".zip", "zip -q -9jX - FILE"),
    }


@pytest.mark.parametrize(("threads", "used"), [(1, 2), (2, 2), (7, 7)])
def test_threads_of_xz(
    threads: int, used: int, source: Path, tmp_path: Path, xz: Callable[[str, str], None]
) -> None:
    """Never one thread, whose bytes are others'."""
    xz(f'echo "$@" > {tmp_path}/called; cat $last', "cat $last")
    made = compress("xz", source, source.with_name("disk.raw.xz"), threads, 5)
    assert (tmp_path / "called").read_text().split() == ["-c9", f"-T{used}", str(source)]
    same = Measured(len(DATA), hashlib.sha256(DATA).hexdigest())
    assert made == Compressed(same, same)


@pytest.mark.parametrize(
    ("pack", "unpack", "error", "why"),
    [
        ("cat $last", "echo other", DigestMismatch, "decompressed it has 6 bytes"),
        ("cat $last", "cat $last; echo more", DigestMismatch, "4005 bytes"),
        ("echo x", "cat $last; echo 'corrupt data' >&2; exit 1", RehydratorError, "xz ended with 1: corrupt"),
        ("echo oops >&2; exit 3", "cat $last", RehydratorError, "disk.raw.xz: xz ended with 3: oops"),
        ("echo x; kill -SEGV $$", "cat $last", RehydratorError, "xz was killed by SIGSEGV"),
        ("exec sleep 60", "cat $last", RehydratorError, "did not end within"),
        ("cat $last", "cat $last; exec sleep 60", RehydratorError, "did not end within"),
        ("echo 'No space left on device' >&2; exit 1", "cat $last", LimitExceeded, "no space in"),
    ],
)
def test_failures(
    pack: str,
    unpack: str,
    error: type[RehydratorError],
    why: str,
    source: Path,
    xz: Callable[[str, str], None],
) -> None:
    """Whatever goes wrong: it is told, the source stays, nothing has the final name."""
    xz(pack, unpack)
    with pytest.raises(RehydratorError) as caught:
        compress("xz", source, source.with_name("disk.raw.xz"), 2, 0.5)
    assert type(caught.value) is error
    assert why in str(caught.value)
    assert names_in(source.parent) == ["disk.raw"]
    assert source.read_bytes() == DATA


def test_environment_of_the_user(
    source: Path, tmp_path: Path, xz: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options that compressors and tar take from the environment do not reach them."""
    for name in ("XZ_OPT", "XZ_DEFAULTS", "GZIP", "TAR_OPTIONS", "ZIPOPT", "ZIP"):
        monkeypatch.setenv(name, "--bad")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    xz(f"env > {tmp_path}/env; cat $last", "cat $last")
    compress("xz", source, source.with_name("disk.raw.xz"), 2, 5)
    lines = (tmp_path / "env").read_text().splitlines()
    assert [line for line in lines if "--bad" in line] == []
    assert "TZ=UTC" in lines


def test_unknown_method(source: Path) -> None:
    """The message lists the known ones."""
    with pytest.raises(UsageError, match="'lzo' is not a compression; known are xz, gzip, gzip9, zstd, zip"):
        compress("lzo", source, source.with_name("x"), 1, 5)


def test_no_program(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the program and its package; nothing is written."""
    monkeypatch.setattr("rehydrator.host._SYSTEM_PATH", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolMissing, match=r"xz is not installed .*xz-utils"):
        compress("xz", source, source.with_name("x"), 1, 5)
    with pytest.raises(ToolMissing, match="xz is not installed"):
        measure_output(["xz", "-dc"], 5, source)
    assert names_in(source.parent) == ["disk.raw"]


@pytest.mark.parametrize("size", [0, 1, 4096, (1 << 20) + 5])
def test_measure_with_holes(size: int, tmp_path: Path) -> None:
    """Holes count as zeros: before data, behind it, and as the whole file."""
    path = tmp_path / "disk"
    with path.open("wb") as out:
        out.truncate(size)
    assert measure(path) == Measured(size, hashlib.sha256(bytes(size)).hexdigest())
    with path.open("r+b") as out:
        out.seek(3 << 20)
        out.write(b"data")
        out.truncate(5 << 20)
    expected = bytes(3 << 20) + b"data" + bytes((2 << 20) - 4)
    assert measure(path) == Measured(5 << 20, hashlib.sha256(expected).hexdigest())
