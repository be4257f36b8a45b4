"""One of our stream encoders over a whole file, and nothing else: what of a run is the encoder's.

    python -m benchmarks.encode_alone CODEC PARAMETERS PLAIN > PACKED

PARAMETERS is a JSON object. One stream in one thread, whatever blocks the published file has: their
headers are nothing beside the time that the bytes take.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rehydrator.codecs import streams
from rehydrator.host.filters import run_filter

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE = 1 << 20


def main(codec: str, parameters: str, plain: str) -> None:
    """Encode."""
    encoder = streams.encoder(codec, json.loads(parameters), run_filter)
    for piece in encoder.encode(_pieces(Path(plain))):
        sys.stdout.buffer.write(piece)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


if __name__ == "__main__":
    main(*sys.argv[1:])
