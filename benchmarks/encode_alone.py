"""The stream encoders of a published file, and nothing else: what of a run is theirs.

    python -m benchmarks.encode_alone BUNDLE NAME PLAIN

PLAIN is the file without its compression. What is encoded is thrown away; it has the right length, or
this fails.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from rehydrator.cli.common import opened
from rehydrator.codecs import streams
from rehydrator.host.filters import run_filter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rehydrator.core.ops import Stream, StreamRule

_PIECE = 1 << 20


def main(reference: str, name: str, plain: str) -> None:
    """Encode, with as many threads as there are cores."""
    with opened(reference, None, None, None) as bundle:
        space = next(each.form.space for each in bundle.manifest.outputs() if each.form.name == name)
        assert space is not None  # outputs() are what there is
        found, rules = list(bundle.machine.streams_of(space)), bundle.manifest.rules.streams
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        made = list(pool.map(lambda op: _encoded(op, rules[op.rule], Path(plain)), found))
    if made != [op.length for op in found] or not made:
        sys.exit(f"{name}: {sum(made)} bytes in {len(made)} streams are not what it has")


def _encoded(op: Stream, rule: StreamRule, plain: Path) -> int:
    encoder = streams.encoder(rule.codec, dict(rule.params), run_filter)
    return sum(len(piece) for piece in encoder.encode(_pieces(plain, op.offset, op.plain)))


def _pieces(path: Path, offset: int, length: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        while piece := file.read(min(_PIECE, length)):
            length -= len(piece)
            yield piece


if __name__ == "__main__":
    main(*sys.argv[1:])
