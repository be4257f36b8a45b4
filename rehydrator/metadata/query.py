"""One file, or one cloud image, of a stream document: what a request without details means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rehydrator.core.errors import NotInBundle, UsageError
from rehydrator.metadata.names import image_format

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from rehydrator.metadata.document import Document, File

# Where a platform has several formats, the 512-byte raw disk; of those the first.
_PREFERRED = ("raw.xz", "raw.gz", "raw.zst", "raw")
# What names a cloud image: an identifier, a name, or a URL.
IMAGE_FIELDS = ("image", "name", "url")
DISK = "disk"
# Names in a message; a document of today has 32 regions.
_MOST_LISTED = 64


def choose_arch(known: Iterable[str], arch: str | None, host_arch: Callable[[], str], what: str) -> str:
    """The architecture that was named, else the only one, else the host's.

    Raises:
        NotInBundle: it is not there.
        UsageError: there are several, and the host's is none of them.
    """
    arches = sorted(set(known))
    if arch is not None:
        return _present(arch, arches, f"no {what} for architecture {arch!r}")
    if len(arches) == 1:
        return arches[0]
    if not arches:
        raise NotInBundle(f"no {what} in this document")
    host = host_arch()
    if host not in arches:
        raise UsageError(f"name an architecture with --arch; there are {_listed(arches)}")
    return host


def choose_file(
    document: Document,
    arch: str | None,
    platform: str,
    key: str | None,
    role: str | None,
    host_arch: Callable[[], str],
) -> File:
    """The file of a platform that a request means; a format is named with or without its outer
    compression, the role is the disk unless another is named.

    Raises:
        NotInBundle: there is none; lists what there is.
        UsageError: several architectures or formats, and no way to choose.
    """
    of_platform = [file for file in document.files if file.key.platform == platform]
    if not of_platform:
        known = _listed({file.key.platform for file in document.files})
        raise NotInBundle(f"no platform {platform!r} in this document; it has {known}")
    arch = choose_arch((file.key.arch for file in of_platform), arch, host_arch, f"{platform} file")
    here = [file for file in of_platform if file.key.arch == arch]
    key = _choose_format({file.key.format for file in here}, key, f"{platform} for {arch}")
    roles = {file.key.role: file for file in here if file.key.format == key}
    role = DISK if role is None else role
    hint = "" if DISK in roles else " (name one with --role)"
    return roles[_present(role, roles, f"no role {role!r} of {platform} {key} for {arch}", hint)]


def choose_image(
    document: Document, arch: str | None, name: str, region: str | None, host_arch: Callable[[], str]
) -> tuple[str, dict[str, Any]]:
    """The architecture and the members of a cloud image; of its only region, where none is named.

    Raises:
        NotInBundle: there is none; lists what there is.
        UsageError: several architectures or regions, and no way to choose.
    """
    by_arch = images(document)
    having = {each: clouds for each, clouds in by_arch.items() if name in clouds}
    if not having:
        known = _listed({cloud for clouds in by_arch.values() for cloud in clouds})
        raise NotInBundle(f"no {name!r} image in this document; it has {known}")
    arch = choose_arch(having, arch, host_arch, f"{name} image")
    image = having[arch][name]
    regions = image.get("regions")
    if not isinstance(regions, dict):
        if region is not None:
            raise NotInBundle(f"the {name} image has no regions; leave --region out")
        return arch, image
    if region is not None:
        _present(region, regions, f"no {name} image in region {region!r}")
    elif len(regions) == 1:
        [region] = regions
    else:
        raise UsageError(f"name a region of the {name} image with --region: {_listed(regions)}")
    found = regions[region]
    return arch, found if isinstance(found, dict) else {}


def images(document: Document) -> dict[str, dict[str, dict[str, Any]]]:
    """The cloud images by architecture and cloud; what is no object is passed over."""
    found = {}
    for arch, each in document.value["architectures"].items():
        clouds = each.get("images")
        if isinstance(clouds, dict):
            found[arch] = {cloud: image for cloud, image in clouds.items() if isinstance(image, dict)}
    return found


def field(members: Mapping[str, Any], name: str, what: str) -> str | float:
    """A member that is one value: text or a number.

    Raises:
        NotInBundle: it is missing, empty, null or no single value; lists those that are there.
    """
    values = {key: value for key, value in members.items() if _is_value(value)}
    found: str | float = values[_present(name, values, f"no {name!r} of {what}")]
    return found


def _is_value(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""


def _choose_format(known: set[str], key: str | None, what: str) -> str:
    if key is not None:
        bare = sorted(each for each in known if image_format(each) == key)
        if key not in known and len(bare) == 1:
            return bare[0]
        return _present(key, known, f"no format {key!r} of {what}")
    if len(known) == 1:
        return next(iter(known))
    preferred = next((each for each in _PREFERRED if each in known), None)
    if preferred is None:
        raise UsageError(f"{what} has several formats; name one with --format: {_listed(known)}")
    return preferred


def _present(name: str, known: Iterable[str], missing: str, hint: str = "") -> str:
    if name not in known:
        raise NotInBundle(f"{missing}; there is {_listed(known)}{hint}")
    return name


def _listed(names: Iterable[str]) -> str:
    found = sorted(names)
    more = f" and {len(found) - _MOST_LISTED} more" if len(found) > _MOST_LISTED else ""
    return (", ".join(found[:_MOST_LISTED]) or "none") + more
