"""What a form costs whoever asks for it: encoders, their memory, and about how many seconds.

The work of a space is summed up once, op by op: data is read, hashed and written, zeros are only
hashed, and units and streams are encoded from their plain bytes. Threads share the work, but for
one stream, and for the digest of a form that has no chaining values.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from rehydrator.codecs import sha256, streams
from rehydrator.core.errors import HostileInput, Interrupted, RehydratorError
from rehydrator.core.ops import Copy, Encode, Stream, is_zeros
from rehydrator.engine import Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rehydrator.bundle.manifest import Form, Output
    from rehydrator.bundle.reader import Bundle
    from rehydrator.core.ops import Op

_T = TypeVar("_T")

# MB of a disk's data that one thread encodes in a second, by codec and level: what the author's
# machine does with an operating system, all else that it takes included. Measured are deflate 6
# and 9 and zstd 15; the others tell minutes from seconds, and no more.
_SPEEDS = {
    "lzma2": (22, 16, 10, 7, 4, 3, 2.6, 2.5, 2.4, 2.4),
    "deflate": (300, 70, 65, 60, 50, 42, 35, 28, 14, 7.5),
    "zstd": (150, 250, 200, 150, 130, 80, 60, 50, 40, 35, 30, 25, 20, 15, 10, 6.5, 5, 4, 3, 2.5),
    "bzip2": (10,),
    "lz4": (300, 80, 70, 60, 50, 45, 40, 35, 30, 25, 20, 12, 10),
}
_ALIASES = {"xz": "lzma2", "zlib": "deflate", "zlib-ng": "deflate"}
_PRESET = 6
_SLOWEST = (10,)
_MEGA = 1e6

# The same of zeros, before an encoder and without one, and of data without one (measured: a 10 GiB
# disk with 0.7 GB of data); and what one thread hashes.
_ENCODED_ZEROS, _ZEROS, _PLAIN, _HASHED = 150.0, 1700.0, 230.0, 300.0

# Smaller forms without chaining values are made by one thread.
_SMALL = 16 << 20

# A recipe may copy a space of a million streams a million times.
_MOST_STREAMS = 1 << 20

# Ops that are summed up: 48 bytes each. What is in a space that would be more is counted as data.
_MOST_OPS = 1 << 20


@dataclass(frozen=True, slots=True)
class Estimate:
    """`memory` in bytes, of all encoders that run at once; `seconds` with the threads asked for."""

    encoders: tuple[str, ...]
    memory: int
    seconds: float


class Work(NamedTuple):
    """Of some bytes: seconds of one thread, and how many of the bytes are runs of zeros."""

    seconds: float
    zeros: float


_NONE = Work(0.0, 0.0)


class _Sums:
    """Where the ops of a space begin; each one's work per byte or what it copies; and the work in
    front of it, less what the copied space has in front of the copied bytes."""

    def __init__(self) -> None:
        self.starts = array("q")
        self.seconds, self.zeros = array("d"), array("d")
        self.each: list[Work | tuple[int, int]] = []

    def add(self, start: int, before: Work, each: Work | tuple[int, int]) -> None:
        self.starts.append(start)
        self.seconds.append(before.seconds)
        self.zeros.append(before.zeros)
        self.each.append(each)


class Estimator:
    """The costs of a bundle's forms; what they stand on is read once."""

    def __init__(self, bundle: Bundle, jobs: int) -> None:
        """`jobs` counts threads."""
        self._bundle, self._jobs = bundle, jobs
        self._machine, self._rules = bundle.machine, bundle.manifest.rules
        self._spaces: dict[int, _Sums | None] = {}
        self._units: dict[int, Work] = {}
        self._ops = 0

    def estimate(self, output: Output) -> Estimate:
        """What it takes to make an output here.

        Raises:
            HostileInput: a malformed recipe.
        """
        from rehydrator.bundle.rehydrate import encoding

        form = output.form
        if form.space is None:
            return Estimate((), 0, 0.0)
        need = encoding(self._bundle, [output], self._jobs)
        self._sum_up_all(form.space)
        work = self._before(form.space, form.size)
        longest, total, parts, memory = 0.0, 0.0, 0, 0
        for op in islice(self._machine.streams_of(form.space), _MOST_STREAMS):
            rule = _rule(self._rules.streams, op.rule)
            seconds = self._stream(op)
            longest, total, parts = max(longest, seconds), total + seconds, parts + 1
            memory = max(memory, streams.memory(rule.codec, dict(rule.params), op.plain))
        at_once = max(1, min(need.at_once, parts))
        seconds = max(
            work.seconds / self._threads(form), longest, total / at_once, self._in_sequence(form, work)
        )
        # What no op of the form itself names is encoded below it: its space bounds it.
        return Estimate(need.names, (memory or need.memory) * at_once, round(seconds, 1))

    def _threads(self, form: Form) -> int:
        alone = form.chain is None and form.size <= _SMALL
        return 1 if alone else self._jobs

    @staticmethod
    def _in_sequence(form: Form, work: Work) -> float:
        """Seconds of what one thread hashes, whatever the others do."""
        if form.chain is not None and sha256.is_available():
            return 0.0
        zeros = min(work.zeros, form.size)
        return ((form.size - zeros) / _HASHED + zeros / _ZEROS) / _MEGA

    def _before(self, space: int, end: int) -> Work:
        """The work of the bytes [0, end) of a space; copies go down, space by space."""
        seconds = zeros = 0.0
        while end and (sums := self._spaces.get(space)) is not None and sums.starts:
            at = bisect_right(sums.starts, end - 1) - 1
            seconds, zeros = seconds + sums.seconds[at], zeros + sums.zeros[at]
            end, each = end - sums.starts[at], sums.each[at]
            if isinstance(each, Work):
                return Work(seconds + each.seconds * end, zeros + each.zeros * end)
            space, end = each[0], end + each[1]
        return Work(seconds + end / _PLAIN / _MEGA, zeros)

    def _span(self, space: int, offset: int, length: int) -> Work:
        """Spans that lie outside of their space are refused when they are read, not here."""
        high, low = self._before(space, offset + length), self._before(space, offset)
        return Work(max(high.seconds - low.seconds, 0.0), max(high.zeros - low.zeros, 0.0))

    def _sum_up_all(self, space: int) -> None:
        """The sums of all recipes that a space stands on, the lowest first; None for a space that is
        stored, or has too many ops."""
        for number in sorted(self._bundle.manifest.reach(space)):
            if number not in self._spaces:
                self._spaces[number] = self._sum_up(number)

    def _sum_up(self, number: int) -> _Sums | None:
        target = self._machine.space(number)
        if not isinstance(target, Recipe):
            return None
        sums, here, total = _Sums(), 0, _NONE
        for op in target.ops():
            self._ops += 1
            if self._ops > _MOST_OPS:
                return None
            if isinstance(op, Copy):
                low, high = (self._before(op.space, end) for end in (op.offset, op.offset + op.length))
                base = Work(total.seconds - low.seconds, total.zeros - low.zeros)
                sums.add(here, base, (op.space, op.offset))
                total = Work(base.seconds + high.seconds, base.zeros + high.zeros)
            else:
                each = self._each(op)
                sums.add(here, total, each)
                total = Work(total.seconds + each.seconds * op.length, total.zeros + each.zeros * op.length)
            here += op.length
        return sums

    def _each(self, op: Op) -> Work:
        """The work of one byte that an op other than Copy makes."""
        if is_zeros(op):
            return Work(1 / _ZEROS / _MEGA, 1.0)
        if isinstance(op, Encode):
            return self._unit(op.rule)
        if isinstance(op, Stream):
            return Work(self._stream(op) / max(op.length, 1), 0.0)
        return Work(1 / _PLAIN / _MEGA, 0.0)

    def _unit(self, number: int) -> Work:
        """The work of one byte of an encode rule's units: as they are in all of its size table."""
        if number not in self._units:
            rule = _rule(self._rules.encodes, number)
            ends = self._machine.unit_ends(rule.table)
            stored = sum(low < high for low, high in pairwise(ends))
            plain = stored * rule.unit / (ends[-1] or 1)
            speed = _speed(rule.codec, dict(rule.params))
            self._units[number] = Work(plain / speed / _MEGA, 0.0)
        return self._units[number]

    def _stream(self, op: Stream) -> float:
        """Seconds of one thread that encodes it."""
        rule = _rule(self._rules.streams, op.rule)
        zeros = min(self._span(rule.input, op.offset, op.plain).zeros, op.plain)
        speed = _speed(rule.codec, dict(rule.params))
        return ((op.plain - zeros) / speed + zeros / _ENCODED_ZEROS) / _MEGA


def encoders(bundle: Bundle, form: Form) -> list[dict[str, str]]:
    """The stream encoders of a form: in words, the version that made its known answer, and the
    version here ("" where there is none)."""
    manifest = bundle.manifest
    reach = manifest.reach(form.space) if form.space is not None else set()
    numbers = sorted({number for each in reach for number in manifest.streams_of(each)})
    found = {(manifest.rules.streams[n].codec, manifest.rules.streams[n].params) for n in numbers}
    known = {(each.codec, each.params): each.library for each in manifest.known_answers}
    return [
        {
            "encoder": streams.described(codec, dict(params)),
            "made_by": known.get((codec, params), ""),
            "here": _version(bundle, codec),
        }
        for codec, params in sorted(found)
    ]


def _version(bundle: Bundle, codec: str) -> str:
    try:
        return streams.version(codec, bundle.run)
    except Interrupted:
        raise
    except RehydratorError:  # not installed, or a program of that name that is another
        return ""


def _rule(rules: Sequence[_T], number: int) -> _T:
    if not 0 <= number < len(rules):
        raise HostileInput(f"an op names rule {number}, which does not exist")
    return rules[number]


def _speed(codec: str, params: Mapping[str, int]) -> float:
    """MB of data a second: `unit.zstd` and `zstd`, `deflate.gzip` and `deflate` are one each."""
    family, _, kind = codec.partition(".")
    name = kind if family == "unit" else family
    speeds = _SPEEDS.get(_ALIASES.get(name, name), _SLOWEST)
    level = params.get("level", params.get("preset", _PRESET if name == "xz" else 0))
    return speeds[min(max(level, 0), len(speeds) - 1)]
