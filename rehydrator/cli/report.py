"""`report`: where the bytes and seconds of a bundle go, as one page to look at or as JSON."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rehydrator import __version__
from rehydrator.cli.common import (
    all_cores,
    bundle_option,
    json_option,
    key_option,
    opened,
    reference_argument,
    tmpdir_option,
)
from rehydrator.core.errors import UsageError

if TYPE_CHECKING:
    from rehydrator.bundle.estimate import Estimator
    from rehydrator.bundle.provenance import Owner, Provenance
    from rehydrator.bundle.reader import Bundle

_COLUMNS = 512

# Disks that get a map: a release has one for each architecture and sector size. A bundle may
# state thousands, each with all its files.
_MAPS = 16


@click.command("report", short_help="Write a page that shows where bytes and seconds go.")
@reference_argument
@bundle_option
@key_option
@tmpdir_option
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path, allow_dash=True),
    metavar="FILE",
    help="Where the page goes; - is standard output, the default where that is no terminal.",
)
@json_option
def command(
    reference: str | None,
    bundle_reference: str | None,
    key: Path | None,
    tmpdir: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Write one self-contained HTML page about a bundle: where the bytes of each file come from,
    what each adds, how it is stored and why, what it costs to have, and which files share what of
    the canonical disk. It needs no network. With --json the same numbers for programs.
    """
    from rehydrator.cli.stream_rewrite import write_whole

    if output is None and not as_json and sys.stdout.isatty():
        raise UsageError("name the page with -o FILE (- for standard output), or ask for --json")
    with opened(bundle_reference, reference, key, tmpdir) as bundle:
        found = report(bundle)
    if as_json:
        text = json.dumps(found, indent=2) + "\n"
    else:
        from rehydrator.cli.report_page import page

        text = page(found)
    # UTF-8 whatever the locale: the page says so.
    if output is None or str(output) == "-":
        click.echo(text.encode(), nl=False)
    else:
        write_whole(output, text.encode())


def report(bundle: Bundle) -> dict[str, Any]:
    """All that the page shows; sizes in bytes, times in seconds.

    Raises:
        HostileInput: a malformed recipe.
        DigestMismatch: the index of a pack, or a recipe, is damaged.
        LimitExceeded: recipes of too many ops.
    """
    from rehydrator.bundle.estimate import Estimator
    from rehydrator.bundle.provenance import CLASSES, Provenance

    provenance = Provenance(bundle.manifest, bundle.machine)
    artifacts = bundle.manifest.artifacts()
    packs = _packs(bundle, provenance)
    costs = Estimator(bundle, all_cores())
    files = [_file(bundle, provenance, costs, place) for place in range(len(artifacts))]
    return {
        "rehydrator": __version__,
        "threads": all_cores(),
        "classes": list(CLASSES),
        "bundle": {
            "releases": [
                {"name": each.name, "release": each.release, "stream": each.stream}
                for each in bundle.manifest.releases
            ],
            "sha256": hashlib.sha256(bundle.signed_bytes).hexdigest(),
            "signatures": sorted(bundle.signatures()),
        },
        "totals": _totals(bundle, packs, files),
        "disks": [_disk(provenance, disk) for disk in provenance.disks],
        "files": files,
        "packs": packs,
        "maps": [_map(provenance, disk) for disk in list(provenance.disks)[:_MAPS]],
    }


def _totals(bundle: Bundle, packs: list[dict[str, Any]], files: list[dict[str, Any]]) -> dict[str, int]:
    """Sums. Stored is what files add, what is shared, documents and bundle.json, and nothing else."""
    artifacts = bundle.manifest.artifacts()
    documents = sum(release.document.size for release in bundle.manifest.releases)
    in_packs, added = sum(each["size"] for each in packs), sum(each["adds"] for each in files)
    return {
        "files": len(artifacts),
        "published": sum(each.as_published.size for each in artifacts),
        "images": sum(each.image.size for each in artifacts),
        "data": sum(each.image.data for each in artifacts),
        "stored": in_packs + documents + len(bundle.signed_bytes),
        "added": added,
        "shared": in_packs - added,
        "documents": documents,
        "manifest": len(bundle.signed_bytes),
    }


def _packs(bundle: Bundle, provenance: Provenance) -> list[dict[str, Any]]:
    """Every pack: its bytes by what they are, which add up, and what it was written for."""
    from rehydrator.core.pack import CHUNK, DATA

    found = []
    for number, (pack, opened_pack) in enumerate(zip(bundle.manifest.packs, bundle.packs(), strict=True)):
        frames = opened_pack.frames()
        found.append(
            {
                "file": pack.stored.file,
                "size": pack.stored.size,
                "data": sum(frame.stored for frame in frames if frame.kind == DATA),
                "recipes": sum(frame.stored for frame in frames if frame.kind == CHUNK),
                "index": pack.index_length,
                "plain": sum(frame.plain for frame in frames if frame.kind == DATA),
                "frames": len(frames),
                "sha256": pack.stored.sha256,
                "kept_for": _kept_for(provenance, provenance.packs[number]),
            }
        )
    return found


def _kept_for(provenance: Provenance, owner: Owner) -> dict[str, Any]:
    if owner.kind == "file":
        return {"kind": "file", "file": owner.number}
    if owner.kind == "disk":
        return {"kind": "disk", "disk": list(provenance.disks).index(owner.number) + 1}
    return {"kind": "shared"}


def _adds(provenance: Provenance, owner: Owner) -> int:
    packs = zip(provenance.manifest.packs, provenance.packs, strict=True)
    return sum(pack.stored.size for pack, each in packs if each == owner)


def _disk(provenance: Provenance, disk: int) -> dict[str, Any]:
    from rehydrator.bundle.provenance import Owner

    place = provenance.disks[disk]
    return {
        "file": place,
        "arch": provenance.manifest.artifacts()[place].arch,
        "size": provenance.manifest.spaces[disk].size,
        "adds": _adds(provenance, Owner("disk", disk)),
        "origins": provenance.of_disk(disk),
    }


def _file(bundle: Bundle, provenance: Provenance, costs: Estimator, place: int) -> dict[str, Any]:
    from rehydrator.bundle.provenance import Owner
    from rehydrator.cli.info import forms_of

    artifact = provenance.manifest.artifacts()[place]
    forms = forms_of(bundle, artifact, costs)
    kinds = {"image": artifact.image, "published": artifact.published, "signature": artifact.signature}
    for kind, form in kinds.items():
        if form is not None and form.space is not None:
            forms[kind]["origins"] = provenance.of_form(place, form.space)
    return {
        "file": artifact.image.name,
        "platform": artifact.platform,
        "arch": artifact.arch,
        "format": artifact.format,
        "role": artifact.role,
        "size": artifact.image.size,
        "virtual_size": artifact.virtual_size,
        "canonical": artifact.canonical,
        "adds": _adds(provenance, Owner("file", place)),
        "forms": forms,
        "how": artifact.how,
    }


def _map(provenance: Provenance, disk: int) -> dict[str, Any]:
    """A map: columns as [start, end, folded, bytes of data] with their origins, and for groups of
    files that read the same, by their places, how much of each column's data they read."""
    found = provenance.disk_map(disk, _COLUMNS)
    return {
        "disk": list(provenance.disks).index(disk) + 1,
        "columns": [[each.start, each.end, each.hole, each.data] for each in found.columns],
        "origins": [list(each.origins.values()) for each in found.columns],
        "rows": [{"files": list(row.files), "read": list(row.read)} for row in found.rows],
    }
