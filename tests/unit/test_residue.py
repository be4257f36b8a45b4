"""What nothing explains is stored against its neighbourhood, and comes back exactly."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from rehydrator.bundle.packing import Ledger, PackWriter
from rehydrator.bundle.residue import Residue
from rehydrator.core.ops import Copy, Decode, Op, zeros
from rehydrator.core.reader import BytesReader
from tests.unit.test_packing import opened

if TYPE_CHECKING:
    from pathlib import Path

UNMATCHED = -1
BASE = random.Random(4).randbytes(400_000)


def settle(root: Path, target: bytes, ops: list[Op]) -> tuple[bytes, int, list[Op]]:
    """Store BASE, settle `ops` of `target` against it; what comes back, its cost, the ops."""
    (root / "packs").mkdir()
    ledger = Ledger()
    with ThreadPoolExecutor(2) as pool:
        writer = PackWriter(root, ledger, 1, pool, 4)
        [(space, _, _)] = writer.append(BASE)
        assert space == 0
        writer.finish()
        writer = PackWriter(root, ledger, 1, pool, 4)
        settled = Residue(ledger, writer, {space: BytesReader(BASE)}).settle(
            ops, BytesReader(target), UNMATCHED
        )
        made = writer.add_recipe(settled)
        packs = writer.finish()
    bundle = opened(root, ledger)
    whole = bundle.machine.read(made, 0, bundle.machine.space(made).size)
    return whole, sum(pack.stored.size for pack in packs), settled


def test_changed_pages_cost_their_change(tmp_path: Path) -> None:
    """A page that differs by a few bytes from its neighbourhood costs about those, not a page."""
    target = bytearray(BASE)
    ops: list[Op] = []
    for at in range(0, 400_000, 40_000):
        target[at + 10_000 : at + 10_008] = b"changed!"
        ops += [Copy(8192, 0, at), Copy(4096, UNMATCHED, at + 8192), Copy(27_712, 0, at + 12_288)]
    whole, cost, settled = settle(tmp_path, bytes(target), ops)
    assert whole == target
    assert cost < 2500
    assert not [op for op in settled if isinstance(op, Copy) and op.space == UNMATCHED]
    assert not [op for op in settled if isinstance(op, Decode)]


@pytest.mark.parametrize("length", [1, 4096, 300_000, (4 << 20) + 5])
def test_without_a_neighbour(tmp_path: Path, length: int) -> None:
    """Bytes beside nothing, or too many for a neighbourhood, are plain literals."""
    target = random.Random(length).randbytes(length)
    whole, cost, _ = settle(tmp_path, target, [zeros(3), Copy(length, UNMATCHED, 0), zeros(2)])
    assert whole == bytes(3) + target + bytes(2)
    assert length < cost < length + 2000


def test_neighbours_at_the_edges(tmp_path: Path) -> None:
    """Neighbourhoods are clipped at both ends of their space; gaps may meet."""
    target = BASE[:5000] + b"new" * 1000 + BASE[-6000:] + b"tail" * 100
    ops: list[Op] = [
        Copy(5000, 0, 0),
        Copy(1500, UNMATCHED, 5000),
        Copy(1500, UNMATCHED, 6500),
        Copy(6000, 0, len(BASE) - 6000),
        Copy(400, UNMATCHED, 14_000),
    ]
    whole, cost, _ = settle(tmp_path, target, ops)
    assert whole == target
    assert cost < 1500


def test_nothing_to_settle(tmp_path: Path) -> None:
    """Ops without unmatched bytes stay as they are."""
    whole, _, settled = settle(tmp_path, b"", [Copy(100, 0, 7), zeros(4)])
    assert (whole, len(settled)) == (BASE[7:107] + bytes(4), 2)
