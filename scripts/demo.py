"""demo: make a small release, pack it into one signed bundle, give every image back, compare.

Prints a table: file, size, the bytes that it adds to the bundle, whether what came back is the same,
seconds. DEMO_MEGABYTES says how many real files the disks hold (64); DEMO_DIR keeps what is made.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.corpus.small import make_small  # noqa: E402 - found only now

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNTIME = Path(sys.prefix, "share/rehydrator/runtime")  # where `make image` puts it


def main() -> int:
    """The exit code: 0 when every file came back as it was."""
    with directory() as work:
        release, bundle = work / "release", f"oci:{work}/bundle:demo"
        say("making a release of real disk images")
        files = {path.name: path for path in make_small(release, megabytes=megabytes())}
        rehydrator("keygen", work / "demo", "--no-password")
        runtime = [] if RUNTIME.is_dir() else ["--runtime", "none"]
        started = time.monotonic()
        rehydrator("build", release, "-o", bundle, "--key", work / "demo.key", *runtime)
        say(f"built and proved in {time.monotonic() - started:.1f} seconds")
        key = ("--bundle", bundle, "--key", work / "demo.pub")
        info = json.loads(rehydrator("info", "--json", *key))
        came_back = json.loads(rehydrator("rehydrate", work / "back", "--all", "--json", *key))
        same = show(files, work / "back", info["artifacts"], {each["file"]: each for each in came_back})
        print(totals(files, info["bundle"]["bytes stored"]))
        return 0 if same else 1


def megabytes() -> int:
    """How many MiB of real files go into the disks."""
    return int(os.environ.get("DEMO_MEGABYTES", "64"))


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """A directory for this run; DEMO_DIR is kept, another is removed."""
    kept = os.environ.get("DEMO_DIR")
    if kept:
        Path(kept).mkdir(parents=True)
        yield Path(kept).resolve()
        return
    with tempfile.TemporaryDirectory(prefix="rehydrator-demo-") as made:
        yield Path(made)


def say(text: str) -> None:
    """Talk goes to stderr."""
    print(text, file=sys.stderr)


def rehydrator(*arguments: str | Path) -> str:
    """Show the command, run it, give its standard output; a failure ends the demo."""
    say("$ rehydrator " + " ".join(str(argument) for argument in arguments))
    program = [sys.executable, "-m", "rehydrator"]
    done = subprocess.run([*program, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"rehydrator {arguments[0]} ended with {done.returncode}\n{done.stdout}")
    return done.stdout


def show(
    files: dict[str, Path], back: Path, artifacts: list[dict[str, Any]], timed: dict[str, dict[str, Any]]
) -> bool:
    """Compare byte by byte and print the table; whether all are the same."""
    print(f"{'FILE':44} {'SIZE':>14} {'ADDS':>12}  {'DIGEST':6} {'DONE AT':>7}")
    costs = {each["file"]: each["how"]["cost"] for each in artifacts}
    verdicts = []
    for name, original in files.items():
        same = subprocess.run(["cmp", "--", original, back / name], check=False).returncode == 0
        same = same and timed[name]["status"] == "written"
        verdicts.append(same)
        size, seconds = original.stat().st_size, timed[name]["seconds"]
        print(f"{name:44} {size:14,} {costs[name]:12,}  {'ok' if same else 'WRONG':6} {seconds:7.2f}")
    return all(verdicts)


def totals(files: dict[str, Path], stored: int) -> str:
    """What all files take on disk, and what the bundle stores."""
    used = sum(path.stat().st_blocks * 512 for path in files.values())
    return (
        f"{len(files)} files take {used:,} bytes on disk; the bundle stores {stored:,} ({stored / used:.1%})"
    )


if __name__ == "__main__":
    sys.exit(main())
