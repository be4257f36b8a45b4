"""Packs are written in order, whatever the threads, and a reader finds everything again."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from rehydrator.bundle import packing
from rehydrator.bundle.manifest import MANIFEST, Manifest, PackSpace, RecipeSpace, encode
from rehydrator.bundle.packing import Ledger, PackWriter
from rehydrator.bundle.reader import Bundle
from rehydrator.core.errors import HostileInput
from rehydrator.core.ops import MAX_OPS_PER_CHUNK, Copy, DecodeRule, Op, Stream, StreamRule, zeros
from rehydrator.store.files import DirectoryFiles

if TYPE_CHECKING:
    from pathlib import Path

DATA = random.Random(2).randbytes(50_000) + bytes(9000) + b"text " * 4000
FRAME = 4096


def opened(root: Path, ledger: Ledger) -> Bundle:
    """A bundle of the ledger's packs and spaces, without artifacts."""
    packs = tuple(pack for pack in ledger.packs if pack)
    spaces = tuple(space for space in ledger.spaces if space)
    (root / MANIFEST).write_bytes(encode(Manifest(packs, spaces, ledger.rules(), (), ())))
    return Bundle(DirectoryFiles(root))


def write(root: Path, jobs: int) -> tuple[Ledger, int]:
    """DATA in odd pieces, a frame of its own, and a recipe that puts DATA together."""
    (root / "packs").mkdir(parents=True)
    ledger, dice = Ledger(), random.Random(3)
    with ThreadPoolExecutor(jobs) as pool:
        writer = PackWriter(root, ledger, 3, pool, 2 * jobs, FRAME)
        ops: list[Op] = []
        at = 0
        while at < len(DATA):
            part = DATA[at : at + dice.choice([1, 100, 4095, 4096, 10_000])]
            ops += [Copy(length, space, offset) for space, offset, length in writer.append(part)]
            at += len(part)
        space, offset = writer.append_frame(DATA[:800], 8)
        ops += [zeros(5), Copy(800, space, offset)]
        made = writer.add_recipe(ops)
        writer.finish()
        writer.close()
    return ledger, made


@pytest.mark.parametrize("max_pack", [1 << 20, 3 * FRAME, FRAME + 1])
def test_everything_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_pack: int) -> None:
    """Pieces across frames and across packs, byte planes, and the recipe over them read back."""
    monkeypatch.setattr(packing, "MAX_PACK", max_pack)
    ledger, made = write(tmp_path, 2)
    bundle = opened(tmp_path, ledger)
    whole = DATA + bytes(5) + DATA[:800]
    assert bundle.machine.read(made, 0, len(whole)) == whole
    assert (len(ledger.packs) > 1) is (max_pack < len(DATA))
    plain = [space.size for space in ledger.spaces if isinstance(space, PackSpace)]
    assert sum(plain) == len(DATA) + 800
    assert max(plain) <= max_pack


def test_threads_change_nothing(tmp_path: Path) -> None:
    """One thread and eight write the same bytes."""
    first, second = tmp_path / "1", tmp_path / "8"
    assert write(first, 1)[0].packs == write(second, 8)[0].packs
    assert (first / "packs/0.pack").read_bytes() == (second / "packs/0.pack").read_bytes()


def test_recipes(tmp_path: Path) -> None:
    """Long recipes are cut into chunks, an empty one is a space of no bytes, inputs ascend."""
    (tmp_path / "packs").mkdir()
    ledger = Ledger()
    with ThreadPoolExecutor(1) as pool:
        writer = PackWriter(tmp_path, ledger, 1, pool, 2)
        [(space, _, _)] = writer.append(b"ab")
        long = writer.add_recipe([Copy(1, space, number % 2) for number in range(MAX_OPS_PER_CHUNK + 1)])
        empty = writer.add_recipe([])
        both = writer.add_recipe([Copy(2, long, 1), Copy(1, space, 0)])
        writer.finish()
    bundle = opened(tmp_path, ledger)
    assert bundle.machine.read(both, 0, 3) == b"baa"
    assert bundle.machine.read(empty, 0, 0) == b""
    found = [each for each in ledger.spaces if isinstance(each, RecipeSpace)]
    assert [(each.count, each.inputs) for each in found] == [(2, (space,)), (0, ()), (1, (space, long))]


def test_a_recipe_lists_its_streams(tmp_path: Path) -> None:
    """A recipe's space has the numbers of the stream rules that its ops name, ascending, each once,
    and their inputs; what is copied from it has none of its own."""
    (tmp_path / "packs").mkdir()
    ledger = Ledger()
    with ThreadPoolExecutor(1) as pool:
        writer = PackWriter(tmp_path, ledger, 1, pool, 2)
        [(space, _, _)] = writer.append(b"plain bytes")
        plain = writer.add_recipe([Copy(11, space, 0)])
        rules = [StreamRule("lzma2", (("stored", 1),), each) for each in (space, plain, plain)]
        first, second, same = map(ledger.stream_rule, rules)
        ops = [Stream(15, second, 0, 11), Stream(7, first, 4, 3), Stream(15, same, 0, 11)]
        packed = writer.add_recipe(ops)
        copied = writer.add_recipe([Copy(30, packed, 7)])
        writer.finish()
    bundle = opened(tmp_path, ledger)
    assert (first, second, same) == (0, 1, 1)
    assert list(map(bundle.manifest.streams_of, (plain, packed, copied))) == [(), (0, 1), ()]
    assert bundle.manifest.reach(packed) == {space, plain, packed}
    whole = b"\1\0\x0aplain bytes\0"
    assert bundle.machine.read(packed, 0, 37) == whole + b"\1\0\2n b\0" + whole
    assert bundle.machine.read(copied, 0, 30) == (whole + b"\1\0\2n b\0" + whole)[7:]
    assert list(bundle.machine.streams_of(copied)) == ops


def test_a_stream_that_is_not_listed(tmp_path: Path) -> None:
    """A space whose ops name a stream rule that it does not list gives nothing."""
    (tmp_path / "packs").mkdir()
    ledger = Ledger()
    with ThreadPoolExecutor(1) as pool:
        writer = PackWriter(tmp_path, ledger, 1, pool, 2)
        [(space, _, _)] = writer.append(b"plain bytes")
        rule = ledger.stream_rule(StreamRule("lzma2", (("stored", 1),), space))
        packed = writer.add_recipe([Stream(15, rule, 0, 11)])
        writer.finish()
    stated = ledger.spaces[packed]
    assert isinstance(stated, RecipeSpace)
    ledger.spaces[packed] = replace(stated, streams=())
    with pytest.raises(HostileInput, match="names a stream not among its own"):
        opened(tmp_path, ledger).machine.read(packed, 0, 1)


def test_decode_rules_are_kept_once() -> None:
    """A rule that is known already keeps its number."""
    ledger, rule = Ledger(), DecodeRule("zstd", (), 1, 2)
    assert [
        ledger.decode_rule(rule),
        ledger.decode_rule(DecodeRule("zstd", (), 1)),
        ledger.decode_rule(rule),
    ] == [
        0,
        1,
        0,
    ]
