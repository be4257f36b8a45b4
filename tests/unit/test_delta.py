"""The delta: what it finds, what it leaves, and that bytes decide, not hashes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from rehydrator.core.ops import Copy, Op, Rules, Series, is_zeros, zeros
from rehydrator.core.reader import BytesReader, check_span
from rehydrator.delta import PageIndex, pages, rolling
from rehydrator.delta.match import CARRY, WINDOW, covered, joined
from rehydrator.delta.window import equal_runs
from rehydrator.engine import Machine, OpsSpace, ReaderSpace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rehydrator.core.reader import Reader

KIB, MIB = 1 << 10, 1 << 20
PAGE = 4096
BASE, OTHER, TARGET, OUT = 1, 2, 3, 4


class Sparse(BytesReader):
    """Bytes with spans of data that a test chooses."""

    def __init__(self, data: bytes, spans: Sequence[tuple[int, int]]) -> None:
        super().__init__(data)
        self._spans = spans

    def data_spans(self) -> Iterator[tuple[int, int]]:
        return iter(self._spans)


class Watched(BytesReader):
    """Remembers how much was asked for."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.largest = self.total = 0

    def pread(self, offset: int, length: int) -> bytes:
        self.largest, self.total = max(self.largest, length), self.total + length
        return super().pread(offset, length)


class Huge:
    """Zeros but for one page, as large as one likes."""

    def __init__(self, size: int, at: int, page: bytes) -> None:
        self.size, self._at, self._page = size, at, page

    def pread(self, offset: int, length: int) -> bytes:
        check_span(offset, length, self.size, "huge")
        made = bytearray(length)
        low, high = max(offset, self._at), min(offset + length, self._at + PAGE)
        if low < high:
            made[low - offset : high - offset] = self._page[low - self._at : high - self._at]
        return bytes(made)

    def data_spans(self) -> Iterator[tuple[int, int]]:
        yield self._at, PAGE


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that match nothing by chance."""
    return random.Random(seed).randbytes(size)


def index(*bases: bytes | Reader) -> PageIndex:
    """An index of spaces 1, 2, …"""
    made = PageIndex()
    for space, base in enumerate(bases, BASE):
        made.add(space, BytesReader(base) if isinstance(base, bytes) else base)
    return made


def explained(
    known: PageIndex, target: bytes | Reader, twin: int | None = BASE, *, rolling: bool = True
) -> list[Op]:
    """The ops, after proof that the engine makes the target from them."""
    file = BytesReader(target) if isinstance(target, bytes) else target
    ops = list(known.match(file, TARGET, twin, rolling))
    spaces = {space: ReaderSpace(reader) for space, reader in known.readers.items()}
    machine = Machine({**spaces, TARGET: ReaderSpace(file), OUT: OpsSpace(ops)}, Rules())
    assert sum(op.length for op in ops) == file.size
    assert all(op.length > 0 for op in ops)
    assert machine.read(OUT, 0, file.size) == file.pread(0, file.size)
    return ops


def literal(ops: list[Op]) -> int:
    """Bytes found nowhere."""
    return sum(op.length for op in ops if isinstance(op, Copy) and op.space == TARGET)


def test_identical_file_is_one_copy() -> None:
    """A file that its twin holds at the same offsets is one op, tail and zeros included."""
    disk = noise(MIB) + bytes(300 * KIB) + noise(2 * MIB + 10_001, 2)
    assert explained(index(disk), disk) == [Copy(len(disk), BASE, 0)]


def test_identical_file_needs_no_twin() -> None:
    """Without a hint, the index finds the same copy."""
    disk = noise(2 * MIB)
    assert explained(index(disk), disk, None) == [Copy(len(disk), BASE, 0)]


def test_empty_file_has_no_ops() -> None:
    """Nothing is made of nothing, whatever is indexed."""
    assert explained(index(noise(PAGE)), b"") == []
    assert explained(index(b""), b"") == []


def test_nothing_known_is_one_copy_of_the_target() -> None:
    """New data is one op from the unmatched space at its own offset."""
    new = noise(3 * MIB + 77)
    assert explained(index(noise(MIB, 5)), new) == [Copy(len(new), TARGET, 0)]
    assert explained(index(), new, None) == [Copy(len(new), TARGET, 0)]


def test_changed_pages_cost_themselves() -> None:
    """Ten pages overwritten are ten literals of a page."""
    disk = noise(4 * MIB)
    changed = bytearray(disk)
    for page in range(10):
        changed[page * 97 * PAGE : (page * 97 + 1) * PAGE] = noise(PAGE, 100 + page)
    ops = explained(index(disk), bytes(changed))
    assert literal(ops) <= 10 * PAGE
    assert len(ops) <= 20


def test_changed_bytes_cost_little_more_than_themselves() -> None:
    """Copies reach up to the byte that differs, though pages are 4 KiB."""
    disk = noise(2 * MIB)
    changed = bytearray(disk)
    for at in range(1000, len(disk), 100_000):
        changed[at] ^= 1
    ops = explained(index(disk), bytes(changed))
    assert literal(ops) == len(range(1000, len(disk), 100_000))


@pytest.mark.parametrize("shift", [512, 2048, PAGE, 1, 511, 4097])
def test_removed_beginning_is_one_copy(shift: int) -> None:
    """Data shifted by sectors or by odd amounts is found whole."""
    disk = noise(2 * MIB)
    assert explained(index(disk), disk[shift:]) == [Copy(len(disk) - shift, BASE, shift)]


@pytest.mark.parametrize("shift", [512, 2048, 1, 511])
def test_added_beginning_costs_itself(shift: int) -> None:
    """The same in the other direction: the literal is what was put in front."""
    disk, front = noise(2 * MIB), noise(shift, 9)
    expected = [Copy(shift, TARGET, 0), Copy(len(disk), BASE, 0)]
    assert explained(index(disk), front + disk) == expected


def test_without_rolling_only_sectors_are_found() -> None:
    """`rolling=False` finds a shift by 512, and leaves a shift by 1 alone."""
    disk = noise(MIB)
    assert explained(index(disk), disk[512:], None, rolling=False) == [Copy(len(disk) - 512, BASE, 512)]
    assert literal(explained(index(disk), disk[1:], None, rolling=False)) == len(disk) - 1


def test_odd_insertions_cost_themselves() -> None:
    """A thousand insertions of odd lengths cost their own bytes and hardly more."""
    dice, disk = random.Random(4), noise(16 * MIB)
    parts, here = [], 0
    for at in sorted(dice.sample(range(0, len(disk), PAGE * 4), 1000)):
        parts += [disk[here : at + 1], dice.randbytes(dice.randrange(1, 400) | 1)]
        here = at + 1
    target = b"".join([*parts, disk[here:]])
    inserted = sum(map(len, parts[1::2]))
    assert literal(explained(index(disk), target)) <= inserted + 64 * 1000


def test_shifted_file_with_edits_keeps_its_displacement() -> None:
    """Behind an edit the copy resumes at the byte after it, though no page is left whole there."""
    disk = noise(MIB)
    changed = bytearray(b"odd" + disk)
    for at in range(20_000, len(disk) - 1000, 3000):
        changed[at] ^= 0xFF
    edits = len(range(20_000, len(disk) - 1000, 3000))
    assert literal(explained(index(disk), bytes(changed))) == edits + 3


def test_moved_blocks_and_two_bases() -> None:
    """Each part is copied from the space that has it."""
    first, second = noise(MIB), noise(MIB, 2)
    half = MIB // 2
    target = second[half:] + first[:half] + second[:half]
    assert explained(index(first, second), target) == [
        Copy(half, OTHER, half),
        Copy(half, BASE, 0),
        Copy(half, OTHER, 0),
    ]


def test_shuffled_pages_cost_nothing() -> None:
    """Every page is found, also where the page before goes on by chance in its old place."""
    disk = noise(2 * MIB)
    parts = [disk[at : at + PAGE] for at in range(0, len(disk), PAGE)]
    random.Random(5).shuffle(parts)
    assert literal(explained(index(disk), b"".join(parts))) == 0


def test_first_place_of_a_page_wins() -> None:
    """A page known from an earlier space is not added again, and copies name the earlier one."""
    disk = noise(MIB)
    known = index(disk, noise(PAGE, 3) + disk)
    assert len(known) == MIB // PAGE + 1
    assert explained(known, noise(512, 4) + disk, None)[-1] == Copy(MIB, BASE, 0)


def test_the_twin_wins_over_earlier_spaces() -> None:
    """Where both hold the bytes, one copy of the twin is preferred."""
    disk = noise(MIB)
    assert explained(index(disk, disk), disk, OTHER) == [Copy(MIB, OTHER, 0)]


def test_zero_pages_are_not_indexed() -> None:
    """Zeros take no room in the index."""
    assert len(index(bytes(MIB) + noise(PAGE) + bytes(MIB))) == 1


def test_zeros_cost_nothing() -> None:
    """Zeros between new data are ops, down to runs of 512 bytes; shorter ones stay literal."""
    new = noise(5000).replace(b"\0", b"\1")
    target = new + bytes(512) + new[:100] + bytes(511) + new[:100] + bytes(200 * KIB)
    assert explained(index(), target, None) == [
        Copy(5000, TARGET, 0),
        zeros(512),
        Copy(711, TARGET, 5512),
        zeros(200 * KIB),
    ]


def test_copies_run_across_zeros() -> None:
    """Moved data with zero pages inside stays one copy."""
    disk = b"".join(noise(PAGE, seed) + bytes(PAGE) for seed in range(100))
    disk += noise(PAGE, 101)
    front = noise(512, 200)
    assert explained(index(disk), front + disk, None)[1:] == [Copy(len(disk), BASE, 0)]


def test_holes_are_zeros_and_odd_spans_are_rounded() -> None:
    """Outside of the data spans all is zero; spans may begin and end at any byte."""
    data = bytearray(MIB)
    data[70_001:70_100] = noise(99)
    data[700_003:790_001] = noise(89_998, 2)
    spans = [(70_001, 99), (700_003, 89_998)]
    target = Sparse(bytes(data), spans)
    ops = explained(index(Sparse(bytes(data), spans)), target)
    assert literal(ops) == 0
    assert list(covered(target)) == [(65536, 131072), (655360, 851968)]
    assert is_zeros(ops[0])
    assert is_zeros(ops[-1])


def test_index_rounds_spans_outwards() -> None:
    """A page is indexed whole though the span covers only its middle."""
    data = bytes(5000) + noise(10) + bytes(PAGE * 3)
    assert len(index(Sparse(data, [(5000, 10)]))) == 1


def test_zero_padded_tail_is_found() -> None:
    """A file of 10,000 bytes is one copy of a disk that holds it in zero-padded pages."""
    file = noise(10_000)
    disk = noise(MIB, 2) + file + bytes(-len(file) % PAGE) + noise(MIB, 3)
    assert explained(index(disk), file, None) == [Copy(10_000, BASE, MIB)]


def test_runs_go_on_from_window_to_window() -> None:
    """Changes around the window's edge cost no more than elsewhere."""
    disk = noise(3 * WINDOW)
    for at in (WINDOW - CARRY - 1, WINDOW - PAGE, WINDOW - 1, WINDOW, WINDOW + 5):
        target = disk[:at] + b"#" + disk[at:]
        assert literal(explained(index(disk), target)) == 1


def test_colliding_checksums_do_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a hash that is the same for every page, bytes are compared and stay right."""
    monkeypatch.setattr(pages, "xxh3_64_intdigest", lambda _: 7)
    disk, new = noise(16 * PAGE), noise(20 * PAGE, 2)
    known = index(disk)
    assert len(known) == 1
    assert literal(explained(known, new, None)) == len(new)
    assert literal(explained(known, new[:511] + disk, None)) == 511


def test_crafted_rolling_collision_gives_right_bytes() -> None:
    """A page with the rolling checksum of an indexed one is not taken for it."""
    pair = np.frombuffer(noise(PAGE) * 2, np.uint8).reshape(2, PAGE).copy()
    pair[:, COLLIDING] = colliding_bytes()
    sums = rolling.page_sums(pair)
    assert sums[0] == sums[1]
    assert rolling.SumSet(sums[:1]).positions(sums).tolist() == [0, 1]
    target = b"#" + pair[1].tobytes() + b"#"
    assert literal(explained(index(pair[0].tobytes()), target, None)) == len(target)


COLLIDING = [5, 1000, 2000, 3000, 4000, 4095]


def colliding_bytes() -> list[list[int]]:
    """Two sets of bytes for these places of a page that give it the same checksum."""
    tuples = np.random.default_rng(1).integers(0, 256, (400_000, len(COLLIDING)), dtype=np.uint8)
    tuples = np.unique(tuples, axis=0)
    sums = (tuples * rolling._POWERS[COLLIDING]).sum(axis=1, dtype=np.uint32)
    order = np.argsort(sums, kind="stable")
    first = int(np.flatnonzero(np.diff(sums[order]) == 0)[0])
    found: list[list[int]] = tuples[order[first : first + 2]].tolist()
    return found


def test_checksums_that_always_hit_waste_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data made to pass the checksums at every byte is hashed at 256 places a block at most."""
    known, new = index(noise(PAGE)), noise(MIB, 2)
    calls = 0

    def counting(page: bytes) -> int:
        nonlocal calls
        calls += 1
        return 0

    monkeypatch.setattr(pages, "xxh3_64_intdigest", counting)
    monkeypatch.setattr(rolling.SumSet, "positions", lambda _, sums: np.arange(len(sums)))
    assert literal(explained(known, new, None)) == len(new)
    assert calls <= MIB // PAGE + MIB // 512 + MIB // rolling.BLOCK * 256


def test_repeating_data_is_found_at_any_phase() -> None:
    """Where every byte has a candidate, a few are enough."""
    pattern = noise(24) * 2000
    disk = noise(PAGE, 2) + pattern + noise(PAGE, 3)
    target = noise(333, 4) + pattern[5:-100] + noise(333, 5) + pattern[7:-50]
    assert literal(explained(index(disk), target, None)) == 666


def test_rolling_sums_are_page_sums() -> None:
    """The checksum of a window is that of the page with the same bytes."""
    data = np.frombuffer(noise(PAGE + 999), np.uint8)
    rolled = rolling.rolling_sums(data)
    rows = np.stack([data[at : at + PAGE] for at in range(1000)])
    assert rolled.tolist() == rolling.page_sums(rows).tolist()


def test_sum_set_holds_its_members_and_few_others() -> None:
    """No member is missed; of other numbers, fewer than one in a hundred pass."""
    numbers = np.random.default_rng(1).integers(0, 1 << 32, 20_000, dtype=np.uint32)
    members = rolling.SumSet(numbers[:10_000])
    found = members.positions(numbers)
    assert found[:10_000].tolist() == list(range(10_000))
    assert len(found) < 10_100


def test_same_input_same_ops() -> None:
    """Ops depend on nothing but the bytes: spans of data and earlier calls do not matter."""
    disk = noise(MIB) + bytes(MIB) + noise(MIB, 2)
    target = disk[100:] + noise(1000, 3)
    known = index(disk)
    first = explained(known, target)
    assert explained(known, target) == first
    assert explained(index(Sparse(disk, [(0, MIB), (2 * MIB, MIB)])), target) == first


def test_target_and_base_are_read_in_bounded_blocks() -> None:
    """No read is larger than a window and its carry; twins are read once, and no more."""
    disk, target = Watched(noise(4 * MIB)), Watched(noise(4 * MIB))
    known = index(disk)
    disk.total = 0
    assert list(known.match(target, TARGET, BASE)) == [Copy(4 * MIB, BASE, 0)]
    assert max(disk.largest, target.largest) <= WINDOW + CARRY
    assert target.total == 4 * MIB
    assert disk.total <= 2 * 4 * MIB


def test_huge_sparse_target_is_not_read() -> None:
    """A disk of 100 TiB with one page of data is three ops at once."""
    page = noise(PAGE)
    target = Huge(100 << 40, (50 << 40) + 3 * PAGE, page)
    ops = list(index(page).match(target, TARGET, BASE))
    assert [op for op in ops if isinstance(op, Copy)] == [Copy(PAGE, BASE, 0)]
    assert len(ops) == 3
    assert sum(op.length for op in ops) == target.size


def test_base_beyond_every_limit_is_left_alone() -> None:
    """Data of a disk that claims 2^60 bytes is not indexed where places have no room for it."""
    page = noise(PAGE)
    assert len(index(Huge(1 << 60, 1 << 52, page))) == 0
    known = index(Huge(1 << 60, (1 << 52) - PAGE, page))
    assert explained(known, page, None) == [Copy(PAGE, BASE, (1 << 52) - PAGE)]


def test_page_costs_at_most_32_bytes() -> None:
    """The arrays of the index, checksum set included, come to 32 bytes a page at most."""
    known = index(noise(8 * MIB))
    count = len(known)
    arrays = (known._hashes, known._places, known._sums, known.sums._bits)
    assert sum(array.nbytes for array in arrays) <= 32 * count


def test_wrong_spaces_are_refused() -> None:
    """A space twice, and a twin that is not there, are the caller's mistakes."""
    known = index(noise(PAGE))
    with pytest.raises(ValueError, match="space 1"):
        known.add(BASE, BytesReader(b""))
    with pytest.raises(ValueError, match="space 5"):
        known.match(BytesReader(b"x"), TARGET, 5)


def test_equal_runs_are_as_long_as_can_be() -> None:
    """Runs reach to the byte on both sides, and shorter ones than asked for are left."""
    ours = bytearray(noise(1000))
    theirs = bytearray(ours)
    for at in (63, 128, 300, 363):
        theirs[at] ^= 1
    assert equal_runs(bytes(ours), bytes(theirs), 64) == [(64, 128), (129, 300), (364, 1000)]


def test_neighbours_are_joined() -> None:
    """Copies and zeros that go on are one op; empty ones vanish; other series stay."""
    ops: list[Op] = [
        Copy(5, 1, 0),
        zeros(0),
        Copy(6, 1, 5),
        zeros(3),
        zeros(4),
        Copy(1, 2, 11),
        Series(4, 1, 1, 1, "big"),
    ]
    expected = [Copy(11, 1, 0), zeros(7), Copy(1, 2, 11), Series(4, 1, 1, 1, "big")]
    assert list(joined(ops)) == expected
