"""`stream show`: what a stream document names, as a table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from rehydrator.cli import printable
from rehydrator.cli.common import json_option, table
from rehydrator.cli.stream import Source, source_options
from rehydrator.core.errors import NotInBundle

if TYPE_CHECKING:
    from rehydrator.metadata.document import Document, File


@click.command("show", short_help="List what a stream document names.")
@click.argument("source", metavar="[SRC]", required=False)
@source_options
@click.option("--arch", help="Only this architecture.")
@click.option("--images", "with_images", is_flag=True, help="Images that lie in clouds, too.")
@json_option
def command(arch: str | None, with_images: bool, as_json: bool, **where: Any) -> None:
    """List the files that the stream document SRC names."""
    document = Source(**where).parse()
    files = [file for file in document.files if arch in {None, file.key.arch}]
    images = [each for each in cloud_images(document) if arch in {None, each["arch"]}]
    if arch and not files and not images:
        there = {file.key.arch for file in document.files} | {each["arch"] for each in cloud_images(document)}
        known = ", ".join(sorted(there)) or "none"
        raise NotInBundle(f"no architecture {arch!r} in this document; it has {known}")
    if as_json:
        listed = {"stream": document.stream, "files": [_listed(file) for file in files]}
        click.echo(json.dumps(listed | ({"images": images} if with_images else {}), indent=2))
        return
    rows = [["ARCH", "PLATFORM", "FORMAT", "ROLE", "RELEASE", "NAME"]]
    rows += [[*file.key, file.release, file.name] for file in files]
    click.echo(printable(table(rows, set())))
    if with_images:
        rows = [["ARCH", "CLOUD", "REGION", "RELEASE", "IMAGE"]]
        rows += [list(each.values()) for each in images]
        click.echo("\n" + printable(table(rows, set())))


def cloud_images(document: Document) -> list[dict[str, str]]:
    """The cloud images, one for each region where there are regions."""
    from rehydrator.metadata.query import IMAGE_FIELDS, images

    found = []
    for arch, clouds in images(document).items():
        for cloud, image in clouds.items():
            regions = image.get("regions")
            copies = regions if isinstance(regions, dict) else {"": image}
            for region, each in copies.items():
                if isinstance(each, dict):
                    name = next((str(each[name]) for name in IMAGE_FIELDS if each.get(name)), "")
                    release = str(each.get("release") or "")
                    found.append(
                        {"arch": arch, "cloud": cloud, "region": region, "release": release, "image": name}
                    )
    return found


def _listed(file: File) -> dict[str, Any]:
    return {
        **file.key._asdict(),
        "release": file.release,
        "name": file.name,
        "location": file.location,
        "signature": file.signature,
        "sha256": file.sha256,
        "uncompressed_sha256": file.uncompressed_sha256,
        "size": file.size,
        "uncompressed_size": file.uncompressed_size,
    }
