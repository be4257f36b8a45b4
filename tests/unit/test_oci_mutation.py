"""Images damaged in random places: every end is a right answer or an error of ours."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from backports import zstd

from rehydrator.core.errors import RehydratorError
from rehydrator.oci.reference import parse, verify_blobs
from tests.unit.test_oci_image import BASE, build, docker_archive, handmade, put, read_all, rewrite

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROUNDS = 60


def damaged(data: bytes, dice: random.Random) -> bytes:
    """One bit, one byte of evil reputation, a cut, a hole or an insertion, near the start half
    of the time, where the headers are.
    """
    at = dice.randrange(len(data) if dice.random() < 0.5 else min(len(data), 2000))
    return dice.choice(
        [
            data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :],
            data[:at] + dice.choice([b"\0", b"\xff", b"9", b"/", b"\x80"]) + data[at + 1 :],
            data[:at],
            data[:at] + data[at + dice.randrange(1, 600) :],
            data[:at] + bytes(dice.randrange(1, 600)) + data[at:],
        ]
    )


def change(layout: Path, part: str, fields: dict[str, object]) -> None:
    """Set fields of the manifest ("."), of its configuration or of its only layer."""

    def edit(manifest: dict[str, Any]) -> None:
        {".": manifest, "config": manifest["config"], "layer": manifest["layers"][0]}[part].update(fields)

    rewrite(layout, edit)


def outcome(text: str, tmp_path: Path) -> str:
    """What became of reading and verifying; anything but our errors goes through."""
    try:
        read_all(text, tmp_path)
        verify_blobs(parse(text), tmp_path)
    except RehydratorError:
        return "refused"
    return "read"


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
def test_damaged_archives(tmp_path: Path, transport: str) -> None:
    """An archive damaged anywhere is refused, or the damage was in bytes that mean nothing."""
    whole = tmp_path / "whole"
    if transport == "oci-archive":
        build(tmp_path, f"oci-archive:{whole}:v1")
    else:
        docker_archive(whole)
    dice = random.Random(transport)
    found = []
    for _ in range(ROUNDS):
        (tmp_path / "hurt").write_bytes(damaged(whole.read_bytes(), dice))
        found.append(outcome(f"{transport}:{tmp_path}/hurt", tmp_path))
    assert set(found) <= {"read", "refused"}
    assert found.count("refused") > ROUNDS // 2
    assert not list(tmp_path.glob("rehydrator-*"))


@pytest.mark.parametrize("packing", ["tar", "gzip", "zstd"])
def test_damaged_layers_with_right_digests(tmp_path: Path, packing: str) -> None:
    """Damage reaches the parsers of layers when every digest above is recomputed."""
    packers: dict[str, Callable[[bytes], bytes]] = {
        "tar": bytes,
        "gzip": gzip.compress,
        "zstd": zstd.compress,
    }
    pack = packers[packing]
    dice = random.Random(packing)
    found = []
    for _ in range(ROUNDS):
        layout = tmp_path / "image"
        handmade(layout, [pack(BASE)])
        layer = damaged(pack(BASE), dice)
        change(layout, "layer", put(layout, layer))
        found.append(outcome(f"oci:{layout}", tmp_path))
        shutil.rmtree(layout)
    assert set(found) <= {"read", "refused"}
    assert found.count("refused") > ROUNDS // 4


def test_damaged_documents_with_right_digests(tmp_path: Path) -> None:
    """Any value of a manifest replaced by one of another type or size is refused or harmless."""
    layout = tmp_path / "image"
    handmade(layout, [BASE])
    index = json.loads((layout / "index.json").read_bytes())
    values: list[object] = [None, True, -1, 0, 1 << 70, "", "\ud800", "sha256:", [], {}, [[]], {"": {}}]
    found = []
    places = [(".", key) for key in ("schemaVersion", "mediaType", "config", "layers", "annotations")]
    places += [(part, key) for part in ("config", "layer") for key in ("mediaType", "digest", "size")]
    for part, key in places:
        for value in values:
            change(layout, part, {key: value})
            found.append(outcome(f"oci:{layout}", tmp_path))
            (layout / "index.json").write_text(json.dumps(index))
    assert set(found) <= {"read", "refused"}
    assert found.count("refused") > len(found) // 2
