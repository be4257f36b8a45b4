"""From a built tree to an image: sign, write the layers, prove in a fresh process, publish.

What is staged has no name that anybody would take for a bundle; it gets one only after a
fresh process, through the public reader, regenerated every artifact from it.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rehydrator import host
from rehydrator.bundle.proven import save
from rehydrator.bundle.reader import SIGNATURES
from rehydrator.core.digest import sha256_hex
from rehydrator.core.errors import DigestMismatch, LimitExceeded, RehydratorError, UsageError
from rehydrator.oci.documents import Platform
from rehydrator.oci.image import MAX_LAYERS, LayerFile, Options, write_image
from rehydrator.oci.reference import GO_ARCHITECTURES, open_image, stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rehydrator.bundle.builder import Built
    from rehydrator.bundle.proven import Comparison
    from rehydrator.oci.layout import Staging
    from rehydrator.oci.reference import Reference

# Ten layers are left to whoever builds upon a bundle.
_MAX_LAYERS = MAX_LAYERS - 10
# The last groups, metadata and signatures, share a layer with nobody.
_ALONE = 2
# The last second that RFC 3339 can write, in the year 9999.
_LAST_TIME = 253_402_300_799
_PROOF_SECONDS = 24 * 3600.0
_COMPARED = "compared.json"

# Runs this very package: `-m` alone would look into the current directory first, which may be
# somebody's release, and `-P` alone would miss a checkout that is not installed.
_PROVER = (
    "import sys; root = sys.argv.pop(1); root in sys.path or sys.path.insert(0, root); "
    "from rehydrator.cli import program; program()"
)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A published bundle: the image's digest, its own layers' bytes, and what the proof said."""

    digest: str
    stored: int
    key_id: str
    proof: dict[str, Any]


def seal(
    built: Built,
    target: Reference,
    runtime: Reference | None,
    sign: Callable[[bytes], tuple[str, bytes]] | None,
    jobs: int,
    tmpdir: Path,
    created: int = 0,
) -> Sealed:
    """Sign, stage, prove and publish; `created` is in seconds since 1970.

    Raises:
        DigestMismatch: an artifact was not regenerated exactly; nothing was published.
        LimitExceeded: the runtime has too many layers.
    """
    key_id = _sign(built, sign) if sign else ""
    groups = [*built.groups, [f"{SIGNATURES}{key_id}.sig"]] if key_id else built.groups
    with stage(target) as staging:
        digest = _write(staging, built, groups, runtime, tmpdir, created)
        proof = prove(staging.directory, jobs, tmpdir, built.compared)
        staging.publish()
    stored = sum((built.root / name).stat().st_size for group in groups for name in group)
    return Sealed(digest, stored, key_id, proof)


def creation_time() -> int:
    """The time that a new image bears, in seconds since 1970: SOURCE_DATE_EPOCH, or 0.

    Raises:
        UsageError: it is not such a number.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH") or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= _LAST_TIME):
        raise UsageError(f"SOURCE_DATE_EPOCH {text!r:.40}: not seconds since 1970 (0 to {_LAST_TIME})")
    return int(text)


def prove(staged: Path, jobs: int, tmpdir: Path, compared: Sequence[Comparison] = ()) -> dict[str, Any]:
    """Regenerate everything from a staged image in a fresh process; of streams whose encoder was
    `compared` with the published file, the plain bytes.

    Raises:
        DigestMismatch: something came out differently; names it.
        RehydratorError: the process failed.
    """
    package = Path(__file__).resolve().parents[2]
    argv = [sys.executable, "-P", "-c", _PROVER, str(package)]
    argv += ["verify", "--staged", str(staged), "--all", "--json"]
    argv += ["--jobs", str(jobs), "--tmpdir", str(tmpdir)]
    if compared:
        save(compared, tmpdir / _COMPARED)
        argv += ["--proven", str(tmpdir / _COMPARED)]
    done = host.run(argv, _PROOF_SECONDS, show=sys.stderr.isatty())
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise RehydratorError(f"the proof did not run: {done.said or done.status}") from None
    bad = [finding for finding in report["checked"] if not finding["ok"]]
    if bad or done.status:
        said = "; ".join(f"{finding['file']}: {finding['error']}" for finding in bad) or done.said
        raise DigestMismatch(f"the proof failed, nothing was published: {said}")
    return report


def _sign(built: Built, sign: Callable[[bytes], tuple[str, bytes]]) -> str:
    key_id, signature = sign(built.signed_bytes)
    (built.root / SIGNATURES).mkdir()
    (built.root / SIGNATURES / f"{key_id}.sig").write_bytes(signature)
    return key_id


def _write(
    staging: Staging,
    built: Built,
    groups: Sequence[Sequence[str]],
    runtime: Reference | None,
    tmpdir: Path,
    created: int,
) -> str:
    release = built.manifest.releases[0]
    labels = {
        "org.opencontainers.image.title": f"{release.name} {release.release}",
        "org.opencontainers.image.version": release.release,
        "io.rehydrator.stream": release.stream,
        "io.rehydrator.bundle.sha256": sha256_hex(built.signed_bytes),
    }
    if runtime is None:
        architecture = built.manifest.artifacts()[0].arch
        platform = Platform(GO_ARCHITECTURES.get(architecture, architecture), "linux")
        options = Options(created=created, platform=platform, labels=labels, annotations=labels)
        image = write_image(staging, None, _layers(built, groups, 0), options)
    else:
        options = Options(created=created, labels=labels, annotations=labels)
        with open_image(runtime, tmpdir) as base:
            image = write_image(staging, base, _layers(built, groups, len(base.layers)), options)
    staging.seal(image)
    return image.digest


def _layers(built: Built, groups: Sequence[Sequence[str]], taken: int) -> list[list[LayerFile]]:
    """A layer each, as long as there are few enough; else small neighbours share layers."""
    layers = [[LayerFile(f"bundle/{name}", built.root / name) for name in group] for group in groups if group]
    while len(layers) + taken > _MAX_LAYERS:
        if len(layers) < _ALONE + 2:
            raise LimitExceeded(f"the runtime image has {taken} layers; name another with --runtime")
        sizes = [sum(file.path.stat().st_size for file in layer) for layer in layers]
        at = min(range(len(layers) - _ALONE - 1), key=lambda number: sizes[number] + sizes[number + 1])
        layers[at : at + 2] = [layers[at] + layers[at + 1]]
    return layers
