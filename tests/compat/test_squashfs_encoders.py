"""Every block that mksquashfs of Debian 12, of 13 and of sid compressed is given back by the libraries
that this Python has, and zstd's by the one of its version."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest

from rehydrator.core.reader import BytesReader
from rehydrator.formats import live, squashfs
from tests.compat import sid

GENERATIONS = ("bookworm", "trixie", "sid")
OPTIONS = (
    "-comp gzip",
    "-comp gzip -Xcompression-level 1 -Xwindow-size 8 -b 1M",
    "-comp gzip -Xstrategy default,filtered,huffman_only,run_length_encoded,fixed",
    "-comp xz",
    "-comp xz -b 1M -Xdict-size 75%",
    "-comp xz -Xbcj x86,arm,powerpc",
    "-comp lz4",
    "-comp lz4 -Xhc -b 1M",
)
ZSTD = tuple(f"-comp zstd -Xcompression-level {level}" for level in (1, 3, 5, 15, 19, 22))
# What Debian 12 has; the other two are asked.
ZSTD_HERE = 10504


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text and programs, some MiB of what a root file system has; small files share blocks."""
    root = tmp_path_factory.mktemp("tree")
    shutil.copytree(
        Path(asyncio.__file__).parent, root / "asyncio", ignore=shutil.ignore_patterns("__pycache__")
    )
    for program in ("bash", "mksquashfs"):
        shutil.copy(Path(shutil.which(program) or program).resolve(), root)
    return root


@pytest.fixture(scope="module", params=GENERATIONS)
def generation(request: pytest.FixtureRequest) -> str:
    """A suite whose tools are unpacked."""
    if request.param != "bookworm":
        script = sid.ROOT.parents[1] / "scripts/sid-root"
        subprocess.run([script, sid.ROOT.parent / request.param, request.param], check=True)
    return str(request.param)


def made(generation: str, tree: Path, folder: Path, options: str) -> bytes:
    """The tree by that suite's mksquashfs."""
    words = ["mksquashfs"]
    if generation != "bookworm":
        words = sid.program("mksquashfs", sid.ROOT.parent / generation)
    image = folder / "root.squashfs"
    command = [*words, str(tree), str(image), "-quiet", "-no-progress", "-processors", "2", *options.split()]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return image.read_bytes()


def zstd_of(generation: str) -> int:
    """The ZSTD_VERSION_NUMBER of a suite's libzstd, by the name of its file."""
    if generation == "bookworm":
        return ZSTD_HERE
    found = (sid.ROOT.parent / generation).glob("usr/lib/*-linux-gnu/libzstd.so.*.*.*")
    (version,) = {tuple(map(int, path.name.split(".")[2:])) for path in found}
    return version[0] * 10000 + version[1] * 100 + version[2]


def counted(image: bytes) -> str:
    packed = sum(bool(block.codec) for block in squashfs.read(BytesReader(image)).blocks)
    return f"{packed} of {packed} blocks"


@pytest.mark.parametrize("options", OPTIONS)
def test_every_block_is_given_back(generation: str, tree: Path, tmp_path: Path, options: str) -> None:
    """zlib, liblzma and liblz4 write what they wrote in other versions."""
    image = made(generation, tree, tmp_path, options)
    assert live.explain_squashfs(BytesReader(image)).facts["encoded again"] == counted(image)


@pytest.mark.parametrize("options", ZSTD)
def test_zstd_of_a_version_gives_every_block_of_it(
    generation: str, tree: Path, tmp_path: Path, options: str
) -> None:
    """Of libraries that give all of them the first is taken: that of the version, or one alike."""
    image = made(generation, tree, tmp_path, options)
    explanation = live.explain_squashfs(BytesReader(image))
    assert explanation.facts["encoded again"] == counted(image)
    alike = {ZSTD_HERE, zstd_of(generation)} if options.endswith(" 1") else {zstd_of(generation)}
    assert {dict(rule.params)["library"] for rule in explanation.rules.streams} <= alike
