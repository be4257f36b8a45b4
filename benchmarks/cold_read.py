"""Read ranges of a file from a bundle, each with a reader that was just opened.

    python -m benchmarks.cold_read BUNDLE NAME LENGTH DIRECTORY OFFSET...

Nothing is decoded before a read, and what DIRECTORY holds is out of the page cache. Prints JSON: for
each offset seconds, processor seconds of all threads and the SHA-256 of what was read; `open` is what
opening took, processor seconds.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.cache import cold
from rehydrator.cli.common import opened


def main(reference: str, name: str, length: str, directory: str, *offsets: str) -> None:
    """Print what each read took."""
    reads = [read(reference, name, int(length), Path(directory), int(each)) for each in offsets]
    print(json.dumps(reads))


def read(reference: str, name: str, length: int, directory: Path, offset: int) -> dict[str, Any]:
    """One read, cold."""
    cold(directory)
    before = time.process_time()
    with opened(reference, None, None, None) as bundle:
        output = next(each for each in bundle.manifest.outputs() if each.form.name == name)
        reader = bundle.open_form(output.artifact, output.form)
        ready, began = time.process_time(), time.monotonic()
        data = reader.pread(offset, length)
        cpu, wall = time.process_time() - ready, time.monotonic() - began
    return {
        "offset": offset,
        "open": round(ready - before, 4),
        "cpu": round(cpu, 4),
        "wall": round(wall, 4),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
