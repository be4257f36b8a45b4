"""Estimated seconds and memory, on recipes with the sizes of a release of 0.7 GB of data; no byte of
them is ever made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from rehydrator.bundle import estimate as estimated
from rehydrator.bundle.chain import Boundary
from rehydrator.bundle.estimate import Estimate, Estimator
from rehydrator.bundle.rehydrate import encoding
from rehydrator.core.errors import HostileInput
from rehydrator.core.ops import Copy, Encode, EncodeRule, Rules, SizeTable, Stream, StreamRule, zeros
from rehydrator.core.reader import BytesReader
from rehydrator.engine import OpsSpace, ReaderSpace
from tests.memory_bundle import Image, MemoryBundle

if TYPE_CHECKING:
    from rehydrator.core.ops import Op
    from rehydrator.engine import Space

DATA, DISK = 701_087_744, 10 << 30
GRAIN, GRAINS, HOLES, PACKED = 64 << 10, 10_200, 1_000, 25_600
UNIT, UNITS, UNIT_PACKED = 128 << 10, 5_096, 35_700

ENCODE = EncodeRule("zlib", (("level", 6), ("memlevel", 8), ("wbits", 15)), 2, GRAIN, 0)
STREAMS = (
    StreamRule("deflate.gzip", (("level", 9), ("rsyncable", 0)), 2),
    StreamRule("unit.zstd", (("level", 15), ("library", 10504)), 2),
)
RULES = Rules(tables=(SizeTable(1, 4, 1),), encodes=(ENCODE,), streams=STREAMS)
TABLE = b"".join(size.to_bytes(4, "little") for size in [PACKED] * GRAINS + [0] * HOLES)

# Seconds that each took with two threads on the author's machine; what each is made of, and whether
# it has chaining values.
MEASURED = {"openstack": 1.8, "azure": 4.5, "aws": 10.7, "rootfs": 53.0, "gcp": 94.0}
FORMS: dict[str, tuple[list[Op], bool]] = {
    "openstack": ([Copy(DATA, 2, 0), zeros(5 << 20)], True),
    "azure": ([Copy(DISK, 2, 0)], True),
    "aws": ([Encode(GRAINS * PACKED, 0, 0, 0, GRAINS + HOLES)], True),
    "rootfs": ([Stream(UNIT_PACKED, 1, k * UNIT, UNIT) for k in range(UNITS)], False),
    "gcp": ([Stream(253_330_866, 0, 0, DATA)], False),
}


@dataclass(frozen=True)
class Stored:
    """Bytes that nobody reads."""

    size: int

    def pread(self, offset: int, length: int) -> bytes:
        raise AssertionError("an estimate makes no byte")


def bundle(forms: dict[str, tuple[list[Op], bool]], rules: Rules = RULES) -> MemoryBundle:
    """Space 0 is stored, 1 is a size table, and 2 a disk of 10 GiB."""
    disk = OpsSpace([Copy(DATA, 0, 0), zeros(DISK - DATA)])
    spaces: list[Space] = [ReaderSpace(Stored(DATA)), ReaderSpace(BytesReader(TABLE)), disk]
    chained = (Boundary(4 << 20, bytes(32)), Boundary(8 << 20, bytes(32)))
    images = [Image(name, ops, b"", chained if chain else ()) for name, (ops, chain) in forms.items()]
    made = MemoryBundle(spaces, images, rules)
    made.images = [
        replace(each, form=replace(each.form, size=sum(op.length for op in ops)))
        for each, (ops, _) in zip(made.images, forms.values(), strict=True)
    ]
    return made


def estimates(
    forms: dict[str, tuple[list[Op], bool]], jobs: int = 2, rules: Rules = RULES
) -> dict[str, Estimate]:
    """What each is said to take."""
    made = bundle(forms, rules)
    costs = Estimator(made, jobs)
    return {each.form.name: costs.estimate(each) for each in made.images}


def test_seconds_are_those_that_were_measured() -> None:
    """Within a factor of three of what a release of these sizes took, and in the same order."""
    found = {name: each.seconds for name, each in estimates(FORMS).items()}
    assert sorted(found, key=lambda name: found[name]) == sorted(MEASURED, key=lambda name: MEASURED[name])
    assert {name: MEASURED[name] / 3 < found[name] < MEASURED[name] * 3 for name in found} == dict.fromkeys(
        MEASURED, True
    )


def test_threads_share_the_work_but_for_one_stream() -> None:
    """Four threads halve what two take, where nothing is in sequence; one stream is one thread's."""
    two, four = (estimates(FORMS, jobs) for jobs in (2, 4))
    halved = {"openstack", "azure", "aws", "rootfs"}
    ratios = {name: two[name].seconds / four[name].seconds for name in FORMS}
    assert {name for name, ratio in ratios.items() if 1.8 < ratio < 2.2} == halved
    assert ratios["gcp"] == 1


def test_what_has_no_chaining_values_is_hashed_by_one_thread() -> None:
    """However many threads there are; a small one is made by one."""
    whole: list[Op] = [Copy(DATA, 2, 0)]
    found = estimates({"with": (whole, True), "without": (whole, False)}, 64)
    assert (found["with"].seconds < 0.1, 2 < found["without"].seconds < 3) == (True, True)
    small: list[Op] = [Copy(16 << 20, 2, 0)]
    alone = estimates({"small": (small, False)}, 64)["small"].seconds
    assert alone == estimates({"small": (small, False)}, 1)["small"].seconds == 0.1


def test_zeros_cost_less_than_data() -> None:
    """Zeros of the disk are known as such through copies and where a stream encodes them."""
    hole, data = Copy(DATA, 2, DATA), Copy(DATA, 2, 0)
    found = estimates(
        {
            "hole": ([hole], True),
            "data": ([data], True),
            "parts": ([Copy(DATA // 2, 2, DATA // 2), Copy(DATA // 2, 2, DATA)], True),
            "packed hole": ([Stream(1 << 20, 0, DATA, DATA)], False),
        }
    )
    seconds = {name: each.seconds for name, each in found.items()}
    assert seconds["hole"] < seconds["parts"] < seconds["data"]
    assert seconds["packed hole"] == round(DATA / 150e6, 1)


def test_memory_of_units_is_that_of_their_own_size() -> None:
    """5,096 streams of 128 KiB in a space of 10 GiB take a few MiB each, and as many run at once as
    there are threads."""
    made = bundle(FORMS)
    rootfs = made.images[list(FORMS).index("rootfs")]
    found = Estimator(made, 2).estimate(rootfs)
    assert (found.memory, found.encoders) == (2 * (24 * UNIT + (512 << 10)), ("zstd 1.5.4 -15",))
    need = encoding(made, [rootfs], 2)
    assert (need.at_once, need.memory <= 25 << 20) == (2, True)


def test_what_is_too_much_to_sum_up_counts_as_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle of more ops than are kept has an estimate all the same."""
    monkeypatch.setattr(estimated, "_MOST_OPS", 1)
    assert estimates({"azure": FORMS["azure"]})["azure"].seconds == round(DISK / 230e6 / 2, 1)


def test_a_rule_that_is_not_there() -> None:
    """As hostile as it is to the engine."""
    with pytest.raises(HostileInput, match="rule 9"):
        estimates({"bad": ([Encode(1, 9, 0, 0, 1)], False)})
