"""Programs that make the corpus."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def run(*command: str | Path, env: Mapping[str, str] | None = None) -> str:
    """Run a program and give its output; a failure carries what the program said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise RuntimeError(
            f"{command[0]} ended with {done.returncode}: {' '.join(map(str, command))}\n"
            f"{done.stdout}{done.stderr}"
        )
    return done.stdout + done.stderr
