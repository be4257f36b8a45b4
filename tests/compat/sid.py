"""Programs of Debian sid, from the tree that scripts/sid-root unpacks; run as any user.

Started through sid's own dynamic linker with sid's libraries, so that neither a chroot nor a
mount is needed and files keep their names.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2] / "build/sid"
POLICY = ROOT / "etc/containers/policy.json"


def program(name: str, root: Path = ROOT) -> list[str]:
    """The words that start a program of sid, or of what else scripts/sid-root unpacked in `root`."""
    linkers, libraries = (
        sorted(root.glob("usr/lib*/ld-linux*.so.?")),
        sorted(root.glob("usr/lib/*-linux-gnu")),
    )
    assert linkers, f"{root} holds no newer tools; scripts/sid-root unpacks them"
    return [str(linkers[0]), "--library-path", ":".join(map(str, libraries)), str(root / "usr/bin" / name)]


def run(name: str, *arguments: object) -> str:
    """Run a program of sid that must succeed; its standard output."""
    words = [*program(name), *map(str, arguments)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{name} {arguments}: {done.stderr}"
    return done.stdout


def library_version(name: str) -> str:
    """The version at the end of a library's file name: libzstd.so.1.5.7 has 1.5.7."""
    found = [path for path in ROOT.glob(f"usr/lib/*-linux-gnu/{name}.so.*") if not path.is_symlink()]
    assert len(found) == 1, found
    return found[0].name.removeprefix(f"{name}.so.")
