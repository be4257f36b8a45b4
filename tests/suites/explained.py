"""What every format module must pass: call `check_explanation` with a file's bytes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from rehydrator.core.ops import Copy
from rehydrator.core.reader import BytesReader
from rehydrator.engine import Machine, OpsSpace, ReaderSpace, Space
from rehydrator.formats.explanation import FILE, GUEST, SIZES

if TYPE_CHECKING:
    from rehydrator.core.reader import Reader
    from rehydrator.formats.explanation import Explanation

_OUT = 3


def evaluate(explanation: Explanation, file: Reader) -> Machine:
    """A machine whose space 3 is the file, made from the explanation."""
    spaces: dict[int, Space] = {
        GUEST: ReaderSpace(explanation.guest),
        FILE: ReaderSpace(file),
        SIZES: ReaderSpace(BytesReader(explanation.sizes)),
        _OUT: OpsSpace(explanation.ops),
    }
    return Machine(spaces, explanation.rules)


def unexplained_bytes(explanation: Explanation) -> int:
    """Bytes that no rule gives."""
    return sum(op.length for op in explanation.ops if isinstance(op, Copy) and op.space == FILE)


def check_explanation(explanation: Explanation, file: Reader, guest: bytes | None = None) -> None:
    """The ops give the file back, whole and at random places; the guest is `guest`;
    what lies outside of the guest's data spans is zero."""
    machine = evaluate(explanation, file)
    whole = file.pread(0, file.size)
    assert sum(op.length for op in explanation.ops) == file.size
    assert machine.read(_OUT, 0, file.size) == whole
    dice = random.Random(7)
    for _ in range(50):
        offset = dice.randrange(file.size)
        length = dice.randrange(min(file.size - offset, 200_000) + 1)
        assert machine.read(_OUT, offset, length) == whole[offset : offset + length]
    if guest is not None:
        check_guest(explanation, guest)


def check_guest(explanation: Explanation, guest: bytes) -> None:
    """The guest reader gives `guest`, at random places too, and its spans cover all data."""
    reader = explanation.guest
    assert reader.size == len(guest)
    assert reader.pread(0, reader.size) == guest
    covered = bytearray(len(guest))
    last = 0
    for offset, length in reader.data_spans():
        assert offset >= last
        last = offset + length
        covered[offset:last] = guest[offset:last]
    assert bytes(covered) == guest
    dice = random.Random(11)
    for _ in range(50):
        offset = dice.randrange(len(guest))
        length = dice.randrange(min(len(guest) - offset, 200_000) + 1)
        assert reader.pread(offset, length) == guest[offset : offset + length]
