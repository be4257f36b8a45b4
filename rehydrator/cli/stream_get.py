"""`stream get`: one value of a stream document, for scripts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from rehydrator.cli.common import host_arch, json_option
from rehydrator.cli.stream import Source, source_options
from rehydrator.core.errors import UsageError

if TYPE_CHECKING:
    from rehydrator.metadata.document import Document

FIELDS = (
    "location",
    "name",
    "sha256",
    "uncompressed-sha256",
    "signature",
    "release",
    "size",
    "uncompressed-size",
)


@click.command("get", short_help="Print one value of a stream document.")
@click.argument("arguments", metavar="[SRC] [FIELD]", nargs=-1)
@source_options
@click.option("--arch", help="Default: the only architecture, else this machine's.")
@click.option("--platform", metavar="P", help="Which platform's file.")
@click.option(
    "--format", "format_key", metavar="F", help="Default: the only one, else the 512-byte raw disk."
)
@click.option("--role", help="disk (the default), kernel, initramfs or rootfs.")
@click.option("--image", metavar="CLOUD", help="A cloud's image instead of a file: aws, gcp, …")
@click.option("--region", help="The image's region. Default: the only one.")
@json_option
def command(
    arguments: tuple[str, ...],
    arch: str | None,
    platform: str | None,
    format_key: str | None,
    role: str | None,
    image: str | None,
    region: str | None,
    as_json: bool,
    **where: Any,
) -> None:
    """Print one FIELD of a file that the stream document SRC names, and a newline.

    FIELD is location (the default), name, sha256, uncompressed-sha256, signature, release, size,
    uncompressed-size, or any other member. Exit 4 and a list of what there is, where it is
    missing or empty. A SRC that is called as a field is spelt ./sha256. With --json it is FIELD's
    value in JSON, without FIELD all members of the file.
    """
    source, name = _sorted_out(arguments, where["bundle_reference"])
    if (platform is None) == (image is None):
        raise UsageError("name a file with --platform, or a cloud's image with --image")
    if platform is None and (format_key, role) != (None, None):
        raise UsageError("--format and --role go with --platform")
    if image is None and region is not None:
        raise UsageError("--region goes with --image")
    document = Source(source, **where).parse()
    if image is not None:
        found = _image(document, arch, image, region)
    else:
        assert platform is not None
        found = _file(document, arch, platform, format_key, role)
    if as_json and name is None:
        click.echo(json.dumps(found.members, indent=2))
    else:
        value = found.value(name)
        # UTF-8 whatever the locale: it is the document's value.
        click.echo(json.dumps(value) if as_json else str(value).encode())


@dataclass(frozen=True, slots=True)
class _Found:
    """The members of a file or an image, as the document has them; what else is known of it, the
    field that is meant where none is named, and what messages call it."""

    members: dict[str, Any]
    known: dict[str, str]
    usual: str
    what: str

    def value(self, name: str | None) -> str | float:
        from rehydrator.metadata import query

        return query.field(self.known | self.members, self.usual if name is None else name, self.what)


def _image(document: Document, arch: str | None, image: str, region: str | None) -> _Found:
    from rehydrator.metadata import query

    arch, members = query.choose_image(document, arch, image, region, host_arch)
    usual = next((each for each in query.IMAGE_FIELDS if members.get(each)), "image")
    return _Found(members, {}, usual, f"the {image} image for {arch}")


def _file(document: Document, arch: str | None, platform: str, key: str | None, role: str | None) -> _Found:
    from rehydrator.metadata import query

    file = query.choose_file(document, arch, platform, key, role, host_arch)
    known = {"name": file.name, "release": file.release}
    return _Found(document.members(file.key), known, "location", str(file.key))


def _sorted_out(arguments: tuple[str, ...], bundle: str | None) -> tuple[str | None, str | None]:
    """SRC and FIELD. One argument is the field where a bundle is named, or where it is one."""
    if len(arguments) > 2:
        raise UsageError("more than SRC and FIELD")
    if len(arguments) == 2:
        return arguments[0], arguments[1]
    [only] = arguments or [None]
    return (None, only) if bundle or only in FIELDS else (only, None)
