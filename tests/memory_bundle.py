"""A bundle without files: images made by ops over spaces in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rehydrator.bundle import chain
from rehydrator.bundle.chain import Boundary
from rehydrator.bundle.manifest import Artifact, Chain, Form, Manifest, Output, PackSpace, RecipeSpace
from rehydrator.bundle.reader import Bundle
from rehydrator.codecs.sha256 import Sha256
from rehydrator.core.ops import Rules
from rehydrator.core.reader import BytesReader
from rehydrator.engine import Machine, OpsSpace, ReaderSpace

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rehydrator.core.ops import Op
    from rehydrator.engine import Cache, Space


def boundaries_at(content: bytes, places: Iterable[int]) -> tuple[Boundary, ...]:
    """The chaining values of `content` at ascending places."""
    hasher, here, found = Sha256(), 0, []
    for place in places:
        hasher.update(content[here:place])
        found.append(Boundary(place, hasher.state()))
        here = place
    return tuple(found)


@dataclass(frozen=True)
class Image:
    """What a recipe is to make, and the chaining values that the bundle has of it."""

    name: str
    ops: Sequence[Op]
    content: bytes
    boundaries: tuple[Boundary, ...] = ()
    digest: str = ""


class MemoryBundle(Bundle):
    """Gives images; `spaces` have the numbers from 0 on, the images those behind them."""

    def __init__(
        self,
        spaces: Sequence[Space],
        images: Sequence[Image],
        rules: Rules | None = None,
        cache: Cache | None = None,
    ) -> None:
        records = b"".join(chain.encode(image.boundaries) for image in images)
        given = (*spaces, *(OpsSpace(image.ops) for image in images), ReaderSpace(BytesReader(records)))
        rules = rules or Rules()
        self.machine = Machine(dict(enumerate(given)), rules, cache)
        pinned = [
            RecipeSpace(0, 0, 1, space.size, tuple(range(number)), tuple(sorted(space.streams)))
            if isinstance(space, OpsSpace)
            else PackSpace(0, space.size)
            for number, space in enumerate(given)
        ]
        self.manifest = Manifest((), tuple(pinned), rules, (), ())
        self.images: list[Output] = []
        at = 0
        for number, image in enumerate(images, len(spaces)):
            count = len(image.boundaries)
            self.images.append(_output(image, number, Chain(len(given) - 1, at, count) if count else None))
            at += 40 * count

    def check_encoders(self, space: int) -> None:
        """Those at hand are taken."""


def _output(image: Image, space: int, placed: Chain | None) -> Output:
    digest = image.digest or hashlib.sha256(image.content).hexdigest()
    form = Form(image.name, len(image.content), digest, space, len(image.content), placed)
    facts = ("qemu", "x86_64", "raw", "disk")
    return Output(Artifact(*facts, form, None, 1_600_000_000, 0o640, True, 0, False), form)
