"""The whole stream format as models: what the JSON Schema is made from, and what `stream
validate` says of a document, all of it at once.

Names and types are those of stream-metadata-go (stream/stream.go, stream/rhcos/rhcos.go); what
may be missing is what documents of some era leave out. Unknown members are let through. The
rules for files are those of `document`, which stops at the first that is broken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import GenerateJsonSchema

from rehydrator.metadata.document import LINE, NAME, TEXT, WORD, file_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic_core import core_schema

    from rehydrator.metadata.document import Document, File

SCHEMA_ID = "urn:rehydrator:stream-metadata:stream"

_HEX = re.compile(r"[0-9a-fA-F]{64}")

_Text = Annotated[str, Field(pattern=TEXT)]
_Name = Annotated[str, Field(pattern=NAME)]
_Word = Annotated[str, Field(pattern=WORD)]
_Line = Annotated[str, Field(pattern=LINE)]
_Size = Annotated[int, Field(ge=0, strict=True)]


def _location(location: str) -> str:
    file_name(location)
    return location


class _Model(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


class PublishedFile(_Model):
    """One published file. Its name is the basename of its location's path, whatever the format."""

    location: Annotated[_Line, AfterValidator(_location)] = Field(
        min_length=1, description="Where the file is: a URL; in a mirror that is read where it lies, a name."
    )
    signature: _Line | None = Field(
        None,
        description="URL of a detached binary GPG signature of the file as published. RHCOS has none: "
        "newer documents do not name one, older ones name what its server does not have.",
    )
    sha256: _Line | None = Field(None, description="SHA-256 of the file as published, in hexadecimal.")
    uncompressed_sha256: _Line | None = Field(
        None,
        alias="uncompressed-sha256",
        description="SHA-256 of the file without its outer compression (.xz, .gz, .zip).",
    )
    size: _Size | None = Field(
        None, description="Extension of rehydrator: bytes of the file as published. Upstream has no sizes."
    )
    uncompressed_size: _Size | None = Field(
        None,
        alias="uncompressed-size",
        description="Extension of rehydrator: bytes of the file without its outer compression.",
    )


class PlatformArtifacts(_Model):
    """What one platform publishes: its release, and files by format and role."""

    release: _Text | None = Field(
        None, description="The release these files are of. Platforms of one stream may differ."
    )
    formats: dict[_Name, dict[_Word, PublishedFile]] | None = Field(
        None,
        description="Format key (the file name's extension: qcow2.xz, 4k.raw.xz, pxe, ...), then role: "
        "disk, or kernel, initramfs and rootfs.",
    )


class RegionImage(_Model):
    """A cloud image in one region."""

    release: _Text | None = Field(None, description="The release the image is of.")
    image: str = Field(description="The cloud's identifier of the image.")


class ReplicatedImage(_Model):
    """A cloud image that has an identifier of its own in each region."""

    regions: dict[str, RegionImage] | None = Field(None, description="Region, then image.")


class GcpImage(_Model):
    """An image of Google Compute Engine."""

    release: _Text | None = Field(None, description="The release the image is of; early documents have none.")
    project: str = Field(description="The project that owns the image.")
    family: str | None = Field(None, description="The family whose newest image this was.")
    name: str = Field(description="The image's name.")


class RegionObject(_Model):
    """An object of a cloud's storage in one region."""

    release: _Text | None = Field(None, description="The release the object is of.")
    object: str = Field(description="The object's key in its bucket.")
    bucket: str = Field(description="The bucket.")
    url: str = Field(description="The object's URL.")


class ReplicatedObject(_Model):
    """A storage object that is copied to several regions."""

    regions: dict[str, RegionObject] | None = Field(None, description="Region, then object.")


class ContainerImage(_Model):
    """A disk in a container image (a KubeVirt containerDisk)."""

    release: _Text | None = Field(None, description="The release the image is of.")
    image: str = Field(description="The image by a tag, which moves on.")
    digest_ref: str | None = Field(
        None, alias="digest-ref", description="The image by its digest, which does not."
    )


class Images(_Model):
    """Images that lie in clouds already. They are not files: rehydrator keeps them and no more."""

    aliyun: ReplicatedImage | None = Field(None, description="Alibaba Cloud.")
    aws: ReplicatedImage | None = Field(None, description="Amazon machine images.")
    gcp: GcpImage | None = Field(None, description="Google Compute Engine.")
    ibmcloud: ReplicatedObject | None = Field(None, description="IBM Cloud object storage.")
    kubevirt: ContainerImage | None = Field(None, description="KubeVirt.")
    powervs: ReplicatedObject | None = Field(None, description="IBM Power Virtual Server.")


class AzureDisk(_Model):
    """A disk that can be copied into Azure."""

    release: _Text | None = Field(None, description="The release the disk is of.")
    url: str = Field(description="The disk's URL; it need not be kept there.")


class MarketplaceImage(_Model):
    """An offer of the Azure marketplace; its URN is publisher:offer:sku:version."""

    publisher: str
    offer: str
    sku: str
    version: str


class MarketplaceImages(_Model):
    """One offer for each generation of Hyper-V machines."""

    gen1: MarketplaceImage | None = Field(None, alias="hyperVGen1", description="First generation (BIOS).")
    gen2: MarketplaceImage | None = Field(None, alias="hyperVGen2", description="Second generation (UEFI).")


class AzureMarketplace(_Model):
    """Azure marketplace offers by the way they are paid."""

    no_purchase_plan: MarketplaceImages | None = Field(None, alias="no-purchase-plan", description="No plan.")
    ocp: MarketplaceImages | None = Field(None, description="OpenShift Container Platform.")
    opp: MarketplaceImages | None = Field(None, description="OpenShift Platform Plus.")
    oke: MarketplaceImages | None = Field(None, description="OpenShift Kubernetes Engine.")
    ocp_emea: MarketplaceImages | None = Field(None, alias="ocp-emea", description="The same, sold in EMEA.")
    opp_emea: MarketplaceImages | None = Field(None, alias="opp-emea", description="The same, sold in EMEA.")
    oke_emea: MarketplaceImages | None = Field(None, alias="oke-emea", description="The same, sold in EMEA.")


class Marketplace(_Model):
    """Offers of marketplaces."""

    azure: AzureMarketplace | None = Field(None, description="Microsoft Azure.")


class RhcosExtensions(_Model):
    """What RHCOS adds (stream/rhcos/rhcos.go)."""

    azure_disk: AzureDisk | None = Field(None, alias="azure-disk", description="A disk to copy.")
    aws_winli: ReplicatedImage | None = Field(
        None, alias="aws-winli", description="Amazon machine images with the Windows licence included."
    )
    marketplace: Marketplace | None = Field(None, description="Offers of marketplaces.")


class Architecture(_Model):
    """What one architecture has."""

    artifacts: dict[_Name, PlatformArtifacts] | None = Field(
        None, description="Platform (qemu, metal, aws, ...), then its files."
    )
    images: Images | None = Field(None, description="Images that lie in clouds already.")
    extensions: RhcosExtensions | None = Field(
        None, alias="rhel-coreos-extensions", description="What RHCOS adds."
    )


class Metadata(_Model):
    """About the document itself."""

    last_modified: str | None = Field(
        None, alias="last-modified", description="When the document was made (RFC 3339)."
    )
    generator: str | None = Field(None, description="The program that made it; early documents do not say.")


class Stream(_Model):
    """A stream document: the newest release of one stream, for all architectures and platforms."""

    stream: _Text = Field(description="The stream's name: stable, rhcos-4.11, rhel-9.6, ...")
    metadata: Metadata | None = Field(None, description="About the document itself.")
    architectures: dict[_Word, Architecture] = Field(
        description="Architecture, as RPM spells it: x86_64, aarch64, ppc64le, s390x."
    )


class _Generator(GenerateJsonSchema):
    """Keys that no pattern allows are refused, as the models do."""

    def dict_schema(self, schema: core_schema.DictSchema) -> dict[str, Any]:
        found = super().dict_schema(schema)
        if "patternProperties" in found:
            found["additionalProperties"] = False
        return found


def json_schema() -> dict[str, Any]:
    """The format as JSON Schema, draft 2020-12 (json-schema.org)."""
    made = Stream.model_json_schema(schema_generator=_Generator)
    head = {"$schema": _Generator.schema_dialect, "$id": SCHEMA_ID}
    return {**head, **made, "title": "CoreOS stream metadata"}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a document: where, and what."""

    place: str
    message: str


def problems(document: Any) -> list[Finding]:
    """Everything that is wrong with a document's value, in its order; none: all tools here read it."""
    try:
        Stream.model_validate(document)
    except ValidationError as error:
        return [_problem(each["loc"], each["type"], each["msg"]) for each in error.errors(include_url=False)]
    return []


_WORDS = {
    "missing": "is missing",
    "string_type": "is not a string",
    "int_type": "is not a number of bytes",
    "greater_than_equal": "is not a number of bytes",
    "dict_type": "is not an object",
    "model_type": "is not an object",
    "string_too_short": "is empty",
    "string_pattern_mismatch": "has characters, or a length, that it must not have",
}


def _problem(where: tuple[int | str, ...], kind: str, message: str) -> Finding:
    steps = [str(step) for step in where if step != "[key]"]
    if len(steps) > 1 and steps[0] == "architectures":
        del steps[0]
    said = _WORDS.get(kind, message.removeprefix("Value error, "))
    return Finding(".".join(steps) or "the document", f"the key {said}" if "[key]" in where else said)


def notices(document: Document) -> list[Finding]:
    """What installers need and this document lacks: files, a signature and a digest for each of
    them, digests that are some, locations of HTTPS (coreos-installer and openshift-install)."""
    if not document.files:
        what = "names no files; release.json, which lists them as media, is another kind of document"
        return [Finding("architectures", what)]
    return [found for file in document.files for found in _lacks(file)]


def _lacks(file: File) -> Iterator[Finding]:
    place = str(file.key)
    if not file.location.startswith("https://"):
        yield Finding(f"{place}.location", "is not an https URL")
    if not file.signature:
        yield Finding(f"{place}.signature", "is missing; coreos-installer needs it")
    if not file.sha256:
        yield Finding(f"{place}.sha256", "is missing; nothing says what the file must be")
    for name, digest in (("sha256", file.sha256), ("uncompressed-sha256", file.uncompressed_sha256)):
        if digest and not _HEX.fullmatch(digest):
            yield Finding(f"{place}.{name}", "is not 64 hexadecimal digits")
