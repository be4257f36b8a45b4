"""Make a real release, `python -m tests.corpus small DIR`; or the canonical disk of one, `base DIR`,
another for large sectors, `four-k BASE_DIR`, and live media of it, `live BASE_DIR DIR`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.corpus.debian import make_base, make_four_k, make_live
from tests.corpus.release import DEFAULT
from tests.corpus.small import make_small
from tests.corpus.tools import make_tools

if TYPE_CHECKING:
    from collections.abc import Callable


ROOTFS = ("squashfs", "erofs")
_MAKERS: dict[str, Callable[..., list[Path]]] = {
    "small": make_small,
    "base": make_base,
    "four-k": make_four_k,
    "live": make_live,
    "tools": make_tools,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.corpus", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    small = kinds.add_parser("small", help="seconds, no root")
    small.add_argument("--megabytes", type=int, default=64, help="real files in the root filesystem")
    small.add_argument("--filesystem", choices=("ext4", "xfs"), default="ext4")
    small.add_argument("--arch", default="x86_64")
    small.add_argument("--seed", type=int, default=0)
    small.add_argument("--cloud-mib", type=int, default=1024, help="virtual size of most images")
    small.add_argument("--bootable", action="store_true", help="the machine's kernel, started by GRUB")
    small.add_argument("--iso", action="store_true")
    small.add_argument("--document", action="store_true", help="keep stream.json")
    small.add_argument("--platforms", type=lambda text: text.split(","), default=DEFAULT, help="a,b,c")
    small.add_argument("--compressed", action="store_true", help="as published: .xz, .gz, .zip")
    small.add_argument("--level", type=int, default=0, help="of the compression, 1 to 9; default: upstream's")
    small.add_argument("--rootfs", choices=ROOTFS, help="the live root filesystem, too")
    small.add_argument("--four-k", action="store_true", help="metal4k, too")
    base = kinds.add_parser("base", help="minutes, root: a Debian that boots")
    base.add_argument("--root", type=Path, help="a tree that mmdebstrap made before, to be used up")
    small.add_argument("--tools", type=Path, action="append", default=[], help="a folder that `tools` made")
    tools = kinds.add_parser("tools", help="programs that scripts/sid-root unpacked, for PATH")
    tools.add_argument("root", type=Path, help="where they were unpacked: build/sid")
    four_k = kinds.add_parser("four-k", help="half a minute, root: the same disk for large sectors")
    live = kinds.add_parser("live", help="minutes, root: live media of the base")
    live.add_argument("base", type=Path, metavar="BASE_DIR")
    live.add_argument("--rootfs", choices=ROOTFS, default="squashfs")
    for kind in (small, base, four_k, live, tools):
        kind.add_argument("directory", type=Path)
    return parser


def main() -> None:
    """Make what the arguments ask for; print size and name of every file."""
    options = vars(_parser().parse_args())
    start = time.monotonic()
    for path in _MAKERS[options.pop("kind")](**options):
        status = path.stat()
        print(f"{status.st_size:>14,} bytes {status.st_blocks * 512:>14,} on disk  {path.name}")
    print(f"{time.monotonic() - start:.1f} seconds")


if __name__ == "__main__":
    main()
