"""An explanation is compared with its file before it is taken."""

from __future__ import annotations

import pytest

from rehydrator.bundle.prediction import check_prediction
from rehydrator.core.errors import Unexplained
from rehydrator.core.ops import Copy, Op, Series, zeros
from rehydrator.core.reader import BytesReader
from rehydrator.formats.explanation import FILE, GUEST, Explanation, Extent, GuestReader

MIB = 1 << 20
FILE_BYTES = b"head" + bytes(3 * MIB) + b"guest" * 600_000 + bytes(2 * MIB) + b"tail"
DISK = FILE_BYTES[4:-4]


def explained(ops: list[Op], extents: list[Extent]) -> Explanation:
    """An explanation of FILE_BYTES."""
    return Explanation("test", GuestReader(BytesReader(FILE_BYTES), len(DISK), extents), ops)


def right() -> list[Op]:
    """Ops that give FILE_BYTES."""
    return [Copy(4, FILE, 0), Copy(len(DISK), GUEST, 0), Copy(4, FILE, len(FILE_BYTES) - 4)]


GUEST_EXTENTS = [Extent(3 * MIB, 3_000_000, 3 * MIB + 4)]


def test_right() -> None:
    """What gives the file back is taken."""
    check_prediction(explained(right(), GUEST_EXTENTS), BytesReader(FILE_BYTES))


@pytest.mark.parametrize(
    "extents",
    [
        [Extent(3 * MIB, 3_000_000, 3 * MIB + 5)],
        [Extent(3 * MIB, 2_999_999, 3 * MIB + 4)],
        [*GUEST_EXTENTS, Extent(len(DISK) - 10, 5, 3 * MIB + 4)],
        [],
    ],
    ids=["elsewhere", "short", "data where the file has none", "no data where the file has some"],
)
def test_wrong_guest(extents: list[Extent]) -> None:
    """A guest disk that differs from the file is not taken, wherever the difference lies."""
    with pytest.raises(Unexplained):
        check_prediction(explained(right(), extents), BytesReader(FILE_BYTES))


@pytest.mark.parametrize(
    "ops",
    [
        [*right()[:2], Series(4, 1, 1, 1, "little")],
        [Copy(4, FILE, 0), zeros(len(FILE_BYTES) - 8), Copy(4, FILE, len(FILE_BYTES) - 4)],
        right()[:2],
        [*right(), Copy(1, FILE, 0)],
        [*right(), zeros(1)],
    ],
    ids=["wrong numbers", "zeros over data", "too short", "too long", "beyond the end"],
)
def test_wrong_ops(ops: list[Op]) -> None:
    """Ops that do not give the file's bytes, all of them, are not taken."""
    with pytest.raises(Unexplained):
        check_prediction(explained(ops, GUEST_EXTENTS), BytesReader(FILE_BYTES))
