"""`python -m benchmarks`: measure, say which aims are met, write the document. See README.md."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import published, published_document
from benchmarks.aims import aims
from benchmarks.base import TASKS, Options
from benchmarks.comparison import Comparison
from benchmarks.document import Results, markdown
from benchmarks.measure import ROOT
from benchmarks.peers import PEERS, REHYDRATOR
from benchmarks.pictures import pictures
from benchmarks.plain import PLAIN
from tests.corpus.small import make_small

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_COMPARISON, _PUBLISHED = "benchmarks.json", "benchmarks-published.json"


def main() -> None:
    """Run what is not done yet; the document of a whole *os* run goes to docs/."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if arguments.document:
        _document(arguments.document)
        return
    if arguments.published:
        _published(arguments)
        return
    options = _options(arguments)
    comparison = Comparison(options)
    comparison.run()
    whole = options.corpus == "os" and not arguments.quick and not options.only and options.tasks == TASKS
    _write(comparison.results, ROOT / "docs" if whole or arguments.to_docs else options.work, _COMPARISON)
    if whole and not arguments.keep and not options.minutes:
        comparison.clean()


def _parser() -> argparse.ArgumentParser:
    names = (REHYDRATOR, *(peer.name for peer in PEERS), *(row.name for row in PLAIN))
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    add = parser.add_argument
    add("--corpus", choices=("small", "os"), default="os")
    add("--release", type=Path, metavar="DIR", help="another release of image files")
    add("--quick", action="store_true", help="zstd -3, one round, small scale")
    add("--tasks", type=_names(TASKS), default=TASKS, metavar="NAMES", help=f"a,b,c of {', '.join(TASKS)}")
    add("--only", type=_names(names), default=(), metavar="NAMES", help=f"a,b,c of {', '.join(names)}")
    add("--rounds", type=int, default=None, help="of getting files back (3)")
    add("--store-rounds", type=int, default=1, help="of storing (1)")
    add("--minutes", type=float, default=0, help="begin no step after so many; the next run goes on")
    add("--timeout", type=float, default=7200, help="seconds for a step (7200)")
    add("--memory", type=int, default=8, metavar="GIB", help="that bsdiff may have (8)")
    add(
        "--levels",
        type=_numbers,
        metavar="N,N",
        help="of the table of levels (1,3,9,15; --level 19 is there)",
    )
    add("--scale-data", type=_numbers, metavar="MB,MB", help="data of the disks (600,2500)")
    add("--scale-virtual", type=_numbers, metavar="GIB,GIB", help="sizes of the disks (4,10,100)")
    add("--scale-files", type=_numbers, metavar="N,N", help="numbers of siblings (1,2,4,8)")
    add("--scale-level", type=int, default=3, help="of zstd, for these and for builds on fewer cores (3)")
    add("--keep", action="store_true", help="keep what was stored in build/bench")
    add("--published", type=Path, metavar="DIR", help="measure this release's files as they are published")
    add("--name", default="", help="of the release, with --published or --release (its directory's)")
    add("--packed-level", type=int, default=0, help="of its xz, gzip and zip (upstream's)")
    add("--more", default="", metavar="OPTIONS", help="for its build, as one word")
    add("--to-docs", action="store_true", help="the document goes to docs/, whatever was run")
    add("--document", type=Path, metavar="DIR", help="only write DIR/benchmarks.md from its benchmarks.json")
    return parser


def _names(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def names(text: str) -> tuple[str, ...]:
        wanted = tuple(filter(None, text.split(",")))
        for name in wanted:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(known)}")
        return wanted

    return names


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(",") if word)


def _options(arguments: argparse.Namespace) -> Options:
    quick, corpus = arguments.quick, arguments.corpus
    release = ROOT / "build/corpus" / corpus
    if arguments.release:
        release = arguments.release
        corpus = arguments.name or release.resolve().name
    elif corpus == "small" and not release.exists():
        make_small(release, megabytes=24, iso=True)

    def chosen(name: str, usual: tuple[int, ...], small: tuple[int, ...]) -> tuple[int, ...]:
        given: tuple[int, ...] | None = getattr(arguments, name)
        return (small if quick else usual) if given is None else given

    return Options(
        release,
        ROOT / "build/bench" / (corpus + ("-quick" if quick else "")),
        corpus,
        level=3 if quick else 19,
        rounds=arguments.rounds or (1 if quick else 3),
        timeout=arguments.timeout,
        tasks=tuple(task for task in TASKS if task in arguments.tasks),
        only=arguments.only,
        store_rounds=arguments.store_rounds,
        levels=chosen("levels", (1, 3, 9, 15), (1,)),
        scale_data=chosen("scale_data", (600, 2500), (5, 20)),
        scale_virtual=chosen("scale_virtual", (4, 10, 100), (1, 2)),
        scale_files=chosen("scale_files", (1, 2, 4, 8), (1, 2, 3)),
        scale_level=arguments.scale_level,
        packed=0 if quick else 6,
        memory=arguments.memory,
        patience=1 if quick else 1800,
        minutes=arguments.minutes,
    )


def _published(arguments: argparse.Namespace) -> None:
    release, quick = arguments.published, arguments.quick
    name = arguments.name or release.resolve().name
    options = published.Options(
        release,
        ROOT / "build/bench" / f"published-{name}{'-quick' if quick else ''}",
        name,
        level=3 if quick else 19,
        packed_level=arguments.packed_level,
        more=arguments.more,
        rounds=arguments.rounds or (1 if quick else 3),
        timeout=arguments.timeout,
    )
    run = published.Published(options)
    run.run()
    _write(run.results, ROOT / "docs" if arguments.to_docs else options.work, _PUBLISHED)
    if not arguments.keep:
        run.clean()


def _write(results: Results, directory: Path, name: str) -> None:
    (directory / name).write_text(json.dumps(results, indent=1) + "\n")
    _document(directory)


def _document(directory: Path) -> None:
    """The text and the pictures, from whichever results lie in the directory."""
    parts, found = [], []
    for name, text, judged in (
        (_COMPARISON, _compared, aims),
        (_PUBLISHED, lambda results, _: published_document.section(results), published_document.aims),
    ):
        if (directory / name).exists():
            results = json.loads((directory / name).read_text())
            parts.append(text(results, directory))
            found += judged(results)
    (directory / "benchmarks.md").write_text("\n".join(parts))
    for aim in found:
        print(aim)
    print(f"written: {directory / 'benchmarks.md'}")


def _compared(results: Results, directory: Path) -> str:
    """The document of a comparison; its pictures go to benchmarks/ beside it."""
    made = pictures(results)
    place = directory / "benchmarks"
    place.mkdir(exist_ok=True)
    for old in place.glob("*.svg"):
        old.unlink()
    for name, svg in made.items():
        (place / f"{name}.svg").write_text(svg)
    return markdown(results, set(made))


if __name__ == "__main__":
    main()
