"""Any block map: what qemu-img never writes is explained like what it writes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rehydrator.core.ops import Copy, Encode
from rehydrator.core.reader import BytesReader
from rehydrator.formats import c_qcow2 as c
from rehydrator.formats import qcow2
from rehydrator.formats.explanation import GUEST
from tests import qcow2_images as make
from tests.qcow2_images import Recipe
from tests.suites.explained import check_explanation

if TYPE_CHECKING:
    from collections.abc import Callable

QUICKLY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
WORDS = [random.Random(8).randbytes(3 + k % 9) for k in range(200)]
KINDS = ("hole", "text", "noise", "same")


def cluster_of(kind: str, size: int, dice: random.Random) -> bytes:
    if kind == "text":
        return b"".join(dice.choices(WORDS, k=size // 3))[:size]
    return {"hole": bytes(size), "noise": dice.randbytes(size), "same": b"\7" * size}[kind]


@st.composite
def disks(draw: st.DrawFn, bits: int) -> bytes:
    """A disk of up to 60 clusters of several kinds, the last one perhaps not whole."""
    dice = random.Random(draw(st.integers(0, 1000)))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=60 if bits < 16 else 8))
    whole = b"".join(cluster_of(kind, 1 << bits, dice) for kind in kinds)
    return whole[: len(whole) - 512 * draw(st.integers(0, (1 << bits) // 512 - 1))]


@st.composite
def images(draw: st.DrawFn) -> tuple[bytes, Recipe]:
    """A disk, and how its image is to be made."""
    bits = draw(st.sampled_from((9, 9, 10, 12, 16)))
    guest = draw(disks(bits))
    numbers = range(-(-len(guest) >> bits))
    version = draw(st.sampled_from((2, 3)))
    zstd = version == 3 and draw(st.booleans())
    holes = [k for k in numbers if not any(guest[k << bits : (k + 1) << bits])]
    flagged = draw(st.sets(st.sampled_from(holes))) if holes and version == 3 else set()
    allocated = {k for k in flagged if draw(st.booleans())}
    recipe = Recipe(
        version=version,
        cluster_bits=bits,
        refcount_order=draw(st.integers(0, 6)) if version == 3 else 4,
        compressed=draw(st.sets(st.sampled_from(numbers))),
        encode=make.zstandard if zstd else draw(st.sampled_from(ENCODERS)),
        compression_type=c.ZSTD if zstd else c.DEFLATE,
        zero_plain=flagged - allocated,
        zero_allocated=allocated,
        preallocated=draw(st.booleans()),
        leaked=draw(st.integers(0, 3)),
        shuffle=random.Random(draw(st.integers(0, 1000))) if draw(st.booleans()) else None,
        odd=draw(st.integers(0, 511)),
    )
    return guest, recipe


def by_level(level: int, memlevel: int) -> Callable[[bytes], bytes]:
    return lambda plain: make.deflate(plain, level, memlevel)


def changing(plain: bytes) -> bytes:
    """An encoder that changes its level, and is sometimes one that nobody knows."""
    return make.deflate(plain, 1 + plain[0] % 9, 9 if plain[1] % 4 else 1)


ENCODERS = (make.deflate, by_level(9, 9), by_level(1, 8), by_level(6, 1), changing)


@QUICKLY
@given(images())
def test_every_image_is_given_back(made: tuple[bytes, Recipe]) -> None:
    """The ops give the file, the guest reader gives the disk, whatever the map."""
    guest, recipe = made
    file = BytesReader(make.image(guest, recipe))
    check_explanation(qcow2.explain(file), file, guest)


@QUICKLY
@given(images())
def test_guest_copies_say_where_the_generator_put_them(made: tuple[bytes, Recipe]) -> None:
    """Every standard cluster is a copy from its own place in the guest, and only those are."""
    guest, recipe = made
    layout = make.layout(guest, recipe)
    explanation = qcow2.explain(BytesReader(bytes(layout.file)))
    size = 1 << recipe.cluster_bits
    expected = {
        (place, number * size, min(size, len(guest) - number * size))
        for (kind, number), place in layout.places.items()
        if kind == "data"
    }
    actual, at = set(), 0
    for op in explanation.ops:
        if isinstance(op, Copy) and op.space == GUEST:
            actual |= {(at + k, op.offset + k, min(size, op.length - k)) for k in range(0, op.length, size)}
        at += op.length
    assert actual == expected


@QUICKLY
@given(disks(12), st.integers(0, 1000), st.integers(0, 511))
def test_qemus_encoder_is_found_in_any_order(guest: bytes, seed: int, odd: int) -> None:
    """Compressed clusters in shuffled order are all encoded again."""
    numbers = range(-(-len(guest) // 4096))
    recipe = Recipe(cluster_bits=12, compressed=numbers, shuffle=random.Random(seed), odd=odd)
    made = make.layout(guest, recipe)
    file = BytesReader(bytes(made.file))
    explanation = qcow2.explain(file)
    check_explanation(explanation, file, guest)
    packed = sum(size for (kind, _), size in made.sizes.items() if kind == "packed")
    assert sum(op.length for op in explanation.ops if isinstance(op, Encode)) == packed
