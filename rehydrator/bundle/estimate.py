"""What a form costs whoever asks for it: encoders, their memory, and about how many seconds."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from rehydrator.codecs import streams
from rehydrator.core.errors import Interrupted, RehydratorError

if TYPE_CHECKING:
    from rehydrator.bundle.manifest import Form, Output
    from rehydrator.bundle.reader import Bundle

# MB of a disk's data that one thread encodes in a second, by codec and level: what the author's
# machine does with an operating system. They tell minutes from seconds, and no more.
_SPEEDS = {
    "lzma2": (22, 16, 10, 7, 4, 3, 2.6, 2.5, 2.4, 2.4),
    "deflate": (300, 60, 55, 45, 35, 30, 24, 20, 14, 12),
    "zstd": (150, 250, 200, 150, 130, 80, 60, 50, 40, 35, 30, 25, 20, 15, 10, 8, 6, 4, 3, 2.5),
    "bzip2": (10,),
    "unit": (30,),
}
_ZEROS_SPEED = 150.0
_PLAIN_SPEED = 300.0
_MEGA = 1e6

# A recipe may copy a space of a million streams a million times.
_MOST_STREAMS = 1 << 20


@dataclass(frozen=True, slots=True)
class Estimate:
    """`memory` in bytes, of all encoders that run at once; `seconds` with `jobs` threads."""

    encoders: tuple[str, ...]
    memory: int
    seconds: float


def estimate(bundle: Bundle, output: Output, jobs: int) -> Estimate:
    """What it takes to make an output here."""
    from rehydrator.bundle.rehydrate import encoding

    if output.form.space is None:
        return Estimate((), 0, 0.0)
    need = encoding(bundle, [output], jobs)
    longest, total, parts = 0.0, 0.0, 0
    share = _share_of_data(output)
    for op in islice(bundle.machine.streams_of(output.form.space), _MOST_STREAMS):
        rule = bundle.manifest.rules.streams[op.rule]
        seconds = _seconds(rule.codec, dict(rule.params), op.plain, share)
        longest, total, parts = max(longest, seconds), total + seconds, parts + 1
    at_once = min(need.at_once, max(parts, 1))
    seconds = max(longest, total / at_once) + output.form.size / _MEGA / _PLAIN_SPEED
    return Estimate(need.names, need.memory * at_once, round(seconds, 1))


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


def _share_of_data(output: Output) -> float:
    image = output.artifact.image
    return image.data / image.size if image.size else 0.0


def _seconds(codec: str, params: dict[str, int], plain: int, share: float) -> float:
    speeds = _SPEEDS.get(codec.split(".", maxsplit=1)[0], (10,))
    level = params.get("level", params.get("preset", 0))
    speed = speeds[min(max(level, 0), len(speeds) - 1)]
    data = plain * share
    return (data / speed + (plain - data) / _ZEROS_SPEED) / _MEGA
