"""Which artifacts a request names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rehydrator.bundle.manifest import Output
from rehydrator.core.errors import NotInBundle, UsageError
from rehydrator.metadata.names import image_format

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rehydrator.bundle.manifest import Artifact

DISK = "disk"
IMAGE, PUBLISHED = "image", "published"

# `--disk metal` alone is the 512-byte raw disk, whatever else the platform publishes.
_PREFERRED_FORMATS = ("raw",)


class Selection:
    """Resolves platforms, formats and file names against the artifacts of a bundle."""

    def __init__(
        self,
        artifacts: Sequence[Artifact],
        arch: str | None,
        formats: Sequence[str],
        host_arch: Callable[[], str],
    ) -> None:
        self._artifacts, self._formats = artifacts, formats
        self._arch, self._host_arch = arch, host_arch
        if arch and arch not in self._arches():
            raise NotInBundle(f"no architecture {arch!r} in this bundle; it has {_listed(self._arches())}")

    def resolve(self, disks: Sequence[str], every: bool, live: Sequence[str] = ()) -> list[Artifact]:
        """The named artifacts, in the order of the request, each once; `live` are the format
        keys "iso" and "pxe"."""
        chosen = [each for platform in disks for each in self._disk(platform, alone=len(disks) == 1)]
        for key in live:
            chosen += self._live(key)
        if every:
            chosen += [each for each in self._artifacts if not self._arch or each.arch == self._arch]
        return list({id(artifact): artifact for artifact in chosen}.values())

    def _disk(self, platform: str, *, alone: bool) -> list[Artifact]:
        disks = [each for each in self._artifacts if each.role == DISK]
        of_platform = [each for each in disks if each.platform == platform]
        if not of_platform:
            known = _listed({each.platform for each in disks})
            raise NotInBundle(f"no disk for platform {platform!r} in this bundle; it has {known}")
        arch = self._choose_arch(of_platform)
        here = [each for each in of_platform if each.arch == arch]
        if not here:
            known = _listed({each.arch for each in of_platform})
            raise NotInBundle(f"no {platform} disk for {arch}; this bundle has {known}")
        if self._formats:
            return self._of_formats(platform, here, alone)
        return self._without_format(platform, here)

    def _live(self, key: str) -> list[Artifact]:
        found = [each for each in self._artifacts if each.format == key]
        if not found:
            raise NotInBundle(
                f"no {key} in this bundle; it has {_listed({a.format for a in self._artifacts})}"
            )
        arch = self._choose_arch(found)
        here = [each for each in found if each.arch == arch]
        if not here:
            raise NotInBundle(f"no {key} for {arch}; this bundle has {_listed({a.arch for a in found})}")
        return here

    def _choose_arch(self, among: Sequence[Artifact]) -> str:
        arches = {each.arch for each in among}
        if self._arch:
            return self._arch
        if len(arches) == 1:
            return next(iter(arches))
        host = self._host_arch()
        if host in arches:
            return host
        raise UsageError(f"name an architecture with --arch; there are {_listed(arches)}")

    def _without_format(self, platform: str, here: Sequence[Artifact]) -> list[Artifact]:
        """A platform's only disk, or the one that is preferred."""
        preferred = [each for each in here if _format_keys(each) & set(_PREFERRED_FORMATS)]
        for found in (here, preferred):
            if len(found) == 1:
                return list(found)
        _refuse_twins(platform, here)
        raise UsageError(f"{platform} has several formats; name one with --format: {_formats_of(here)}")

    def _of_formats(self, platform: str, here: Sequence[Artifact], alone: bool) -> list[Artifact]:
        """A platform's disks of the formats that were named. Where several platforms were, one
        that has a single disk gives that: the formats were meant for the others."""
        wanted = [each for each in here if _format_keys(each) & set(self._formats)]
        _refuse_twins(platform, wanted)
        if not wanted and (alone or len(here) > 1):
            named = _listed(self._formats)
            raise NotInBundle(f"no {platform} disk of format {named}; it has {_formats_of(here)}")
        return wanted or list(here)

    def named(self, name: str, form: str) -> list[Output]:
        """The file of that name; with `form`, that form of the artifact that it belongs to."""
        here = self._named_here(name)
        if len(here) > 1:
            arches = _listed({each.artifact.arch for each in here})
            raise UsageError(f"{name}: name an architecture with --arch; {arches}")
        [found] = here
        return _outputs(found.artifact, form) if form else here

    def _named_here(self, name: str) -> list[Output]:
        every = [Output(each, form) for each in self._artifacts for form in each.forms()]
        here = [
            each
            for each in every
            if each.form.name == name and (not self._arch or each.artifact.arch == self._arch)
        ]
        if here and all(each.form.space is None for each in here):
            image = here[0].artifact.image.name
            raise NotInBundle(f"{name}: the bundle has only its digest; {image} is there as --form image")
        if not here:
            known = _listed(each.form.name for each in every if each.form.space is not None)
            raise NotInBundle(f"no file {name!r} in this bundle; it has {known}")
        return here

    def _arches(self) -> set[str]:
        return {each.arch for each in self._artifacts}


def _format_keys(artifact: Artifact) -> set[str]:
    """A format's key as published ("raw.xz") and without its outer compression ("raw")."""
    return {artifact.format, image_format(artifact.format)}


def _refuse_twins(platform: str, among: Sequence[Artifact]) -> None:
    """Raise UsageError where no format can tell two of the disks apart."""
    if len({each.format for each in among}) < len(among):
        names = _listed(each.image.name for each in among)
        raise UsageError(f"{platform} has several disks of one format; name one with --file: {names}")


def _formats_of(artifacts: Sequence[Artifact]) -> str:
    return _listed({each.format for each in artifacts})


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def select(
    artifacts: Sequence[Artifact],
    *,
    disks: Sequence[str],
    names: Sequence[str],
    iso: bool,
    pxe: bool,
    every: bool,
    arch: str | None,
    formats: Sequence[str],
    host_arch: Callable[[], str],
    form: str = "",
) -> list[Output]:
    """The outputs that a request names, in its order, each once; `form` is "image", "published",
    or "" for images and what names name.

    Raises:
        NotInBundle: an unknown platform, architecture, format or file; lists what exists.
        UsageError: several architectures or formats, and no way to choose.
    """
    selection = Selection(artifacts, arch, formats, host_arch)
    live = [key for key, asked in (("iso", iso), ("pxe", pxe)) if asked]
    chosen = [
        output
        for artifact in selection.resolve(disks, every, live)
        for output in _outputs(artifact, form or IMAGE)
    ]
    chosen += [output for name in names for output in selection.named(name, form)]
    return list({(id(output.artifact), output.form.name): output for output in chosen}.values())


def _outputs(artifact: Artifact, form: str) -> list[Output]:
    """The image, or the file as published and its signature."""
    if form == IMAGE:
        return [Output(artifact, artifact.image)]
    beside = [artifact.signature] if artifact.signature else []
    return [Output(artifact, each) for each in (artifact.as_published, *beside)]
