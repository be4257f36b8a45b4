"""`python -m benchmarks`: measure, say which aims are met, write the document. See README.md."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from benchmarks import published, published_document
from benchmarks.comparison import Comparison, Options
from benchmarks.document import Results, aims, markdown
from benchmarks.measure import ROOT
from benchmarks.peers import PEERS, REHYDRATOR
from tests.corpus.small import make_small

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
    whole = options.corpus == "os" and not arguments.quick and not options.only
    _write(comparison.results, ROOT / "docs" if whole else options.work, _COMPARISON)
    if not options.only and not arguments.keep:
        comparison.clean()


def _parser() -> argparse.ArgumentParser:
    names = (REHYDRATOR, *(peer.name for peer in PEERS))
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--corpus", choices=("small", "os"), default="os")
    parser.add_argument("--quick", action="store_true", help="zstd -3, one round, no 100 GiB disk")
    parser.add_argument("--only", metavar="NAMES", default="", help=f"a,b,c of {', '.join(names)}")
    parser.add_argument("--rounds", type=int, default=None, help="of getting files back (3)")
    parser.add_argument("--huge", type=int, metavar="GIB", help="size of the large raw disk (100); 0: none")
    parser.add_argument("--timeout", type=float, default=7200, help="seconds for a step (7200)")
    parser.add_argument("--keep", action="store_true", help="keep what was stored in build/bench")
    parser.add_argument(
        "--published", type=Path, metavar="DIR", help="measure this release's files as they are published"
    )
    parser.add_argument("--name", default="", help="of the release, with --published (its directory's)")
    parser.add_argument("--packed-level", type=int, default=0, help="of its xz, gzip and zip (upstream's)")
    parser.add_argument("--more", default="", metavar="OPTIONS", help="for its build, as one word")
    parser.add_argument("--to-docs", action="store_true", help="its section goes to docs/")
    parser.add_argument(
        "--document", type=Path, metavar="DIR", help="only write DIR/benchmarks.md from its benchmarks.json"
    )
    return parser


def _options(arguments: argparse.Namespace) -> Options:
    quick = arguments.quick
    release = ROOT / "build/corpus" / arguments.corpus
    if arguments.corpus == "small" and not release.exists():
        make_small(release, megabytes=24)
    return Options(
        release,
        ROOT / "build/bench" / (arguments.corpus + ("-quick" if quick else "")),
        arguments.corpus,
        level=3 if quick else 19,
        rounds=arguments.rounds or (1 if quick else 3),
        huge=arguments.huge if arguments.huge is not None else (0 if quick else 100),
        timeout=arguments.timeout,
        only=tuple(filter(None, arguments.only.split(","))),
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
    """The text, from whichever results lie in the directory."""
    parts, found = [], []
    for name, text, judged in (
        (_COMPARISON, markdown, aims),
        (_PUBLISHED, published_document.section, published_document.aims),
    ):
        if (directory / name).exists():
            results = json.loads((directory / name).read_text())
            parts.append(text(results))
            found += judged(results)
    (directory / "benchmarks.md").write_text("\n".join(parts))
    for aim in found:
        print(aim)
    print(f"written: {directory / 'benchmarks.md'}")


if __name__ == "__main__":
    main()
