"""Frame size: compression ratio against the latency of a random read.

    python benchmarks/frame_size.py IMAGE [LEVEL] [MEBIBYTES]

Compresses the non-zero pages of the image's guest disk (the first MEBIBYTES of them) in
frames of several sizes, with the parameters that packs use, and reads 1 MiB at random places.
"""

from __future__ import annotations

import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from backports import zstd

from rehydrator.bundle.survey import nonzero_pages
from rehydrator.core.pack import encode_frame, frame_options
from rehydrator.formats import explain
from rehydrator.store.files import FileReader

SIZES = (1, 4, 8, 16, 32, 64)
READS = 20
_MAGIC = b"\x28\xb5\x2f\xfd"


def pages(image: Path, limit: int) -> bytes:
    """The disk's pages that are not zero, at most `limit` bytes."""
    made = bytearray()
    for _, data in nonzero_pages(explain(FileReader(image)).guest):
        made += data
        if len(made) >= limit:
            break
    return bytes(made)


def frames(plain: bytes, size: int, level: int) -> list[bytes]:
    """The frames' bytes, as packs store them."""
    parts = [plain[at : at + size] for at in range(0, len(plain), size)]
    with ThreadPoolExecutor(2) as pool:
        return [stored for _, stored in pool.map(lambda part: encode_frame(part, level), parts)]


def latency(stored: list[bytes]) -> float:
    """Median milliseconds to have 1 MiB from a random place: one frame decoded."""
    dice, times = random.Random(5), []
    for _ in range(READS):
        frame = dice.choice(stored[:-1] or stored)
        begin = time.thread_time()
        if frame.startswith(_MAGIC):
            zstd.decompress(frame)
        times.append(1000 * (time.thread_time() - begin))
    return median(times)


def main(image: str, level: str = "19", mebibytes: str = "192") -> None:
    """Print the table."""
    plain = pages(Path(image), int(mebibytes) << 20)
    options = frame_options(int(level), len(plain))
    options[zstd.CompressionParameter.window_log] = 27
    whole = len(zstd.compress(plain, options=options))
    print(f"{len(plain)} bytes of pages; one stream, level {level}, 128 MiB window: {whole} bytes")
    print("frame MiB | bytes | ratio to one stream | CPU ms for a random MiB")
    for size in SIZES:
        stored = frames(plain, size << 20, int(level))
        total = sum(map(len, stored))
        print(f"{size} | {total} | {total / whole:.3f} | {latency(stored):.1f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
