"""Converters and compressors of another generation: programs that scripts/sid-root unpacked, under their
plain names in a folder for PATH."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from tests.compat import sid

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("gzip", "mksquashfs", "pigz", "qemu-img", "tar", "xz", "zip", "zstd")


def make_tools(directory: Path, root: Path) -> list[Path]:
    """Write a script for each program of the tree `root` into `directory`; list
    them."""
    directory.mkdir(parents=True, exist_ok=True)
    made = []
    for name in NAMES:
        script = directory / name
        words = shlex.join(sid.program(name, root.absolute()))
        # The linker would call itself by its own name, which gzip and xz look at.
        script.write_text(f'#!/bin/sh\nexec {words.replace(" ", f" --argv0 {name} ", 1)} "$@"\n')
        script.chmod(0o755)
        made.append(script)
    return made
