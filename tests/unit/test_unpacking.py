"""What is compressed inside of files is taken apart for disks, and costs little where there is none."""

from __future__ import annotations

import gzip
import io
import resource
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rehydrator.bundle.builder import Builder, BuildOptions
from rehydrator.bundle.recovery import Recovery
from rehydrator.cli.common import run_filter

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMBERS = 150


class Quiet:
    def note(self, text: str) -> None:
        pass

    def phase(self, title: str, total: int) -> None:
        pass

    def advance(self, steps: int, detail: str = "") -> None:
        pass


@pytest.fixture
def few_files() -> Iterator[None]:
    """No more open files than half as many as there are members."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = len(list(Path("/proc/self/fd").iterdir())) + MEMBERS // 2
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("few_files")
def test_a_tree_of_compressed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tar of compressed manual pages is no disk: no encoder is looked for around any of them,
    they are not all open, and nothing of them is left."""
    release, work = tmp_path / "release", tmp_path / "work"
    release.mkdir()
    work.mkdir()
    with tarfile.open(release / "tree.tar", "w") as tree:
        for number in range(MEMBERS):
            page = gzip.compress(b"manual page %d\n" % number * 20, 9, mtime=0)
            member = tarfile.TarInfo(f"{number}.gz")
            member.size = len(page)
            tree.addfile(member, io.BytesIO(page))
    searched: list[object] = []
    monkeypatch.setattr(Recovery, "begin", lambda *given: searched.append(given))
    built = Builder(BuildOptions(release, work, run=run_filter, level=1), Quiet()).build()
    [artifact] = built.manifest.artifacts()
    assert artifact.how["tried"][0]["why"] == "tar: no member is a disk"
    assert (searched, list((work / "images").iterdir())) == ([], [])
