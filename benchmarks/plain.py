"""The final step with plain tools: what a verified file costs them that is at hand already.

Rows are shell text, as in peers.py, with {platform} and, for `qemu-img convert`, {format} and
{arguments} of the platform. What a row reads in prepared/plain/ was made before, in no one's time.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from benchmarks.peers import FLOOR
from rehydrator.variants.derivations import load_derivations

_DECODED = f"zstd -dcq --long=27 {FLOOR} | tee scratch/back"


@dataclass(frozen=True)
class Plain:
    """One command. `of` says what it gives: the `canonical` qcow2 or the wanted `file`; `verifies`:
    it says the SHA-256 itself. `cases`: platforms that it is measured for; none: all."""

    name: str
    title: str
    script: str
    prepare: str = ""
    of: str = "file"
    verifies: bool = False
    cases: tuple[str, ...] = ()

    def is_for(self, platform: str) -> bool:
        """Whether it is measured for a platform."""
        if self.name == CONVERT:
            return bool(conversion(platform))
        return not self.cases or platform in self.cases


PIPELINE, CONVERT, SHA256SUM = "pipeline", "qemu-img", "sha256sum"
_FIRST = ("openstack",)

PLAIN = (
    Plain(
        PIPELINE,
        "`zstd -dc | tee | sha256sum`, of the canonical qcow2",
        f"{_DECODED} | sha256sum",
        of="canonical",
        verifies=True,
        cases=_FIRST,
    ),
    Plain(
        "pipeline-openssl",
        "the same with `openssl dgst -sha256`",
        f"{_DECODED} | openssl dgst -sha256 -r",
        of="canonical",
        verifies=True,
        cases=_FIRST,
    ),
    Plain(
        "zstd",
        "`zstd -d` of the canonical qcow2, not verified",
        f"zstd -dq --long=27 {FLOOR} -o scratch/back",
        of="canonical",
        cases=_FIRST,
    ),
    Plain(
        "xz",
        "`xz -d -T0` of the canonical qcow2, not verified",
        "xz -dc -T0 prepared/plain/canonical.xz > scratch/back",
        prepare="xz -c -T0 -{packed} {canonical} > prepared/plain/canonical.xz",
        of="canonical",
        cases=_FIRST,
    ),
    Plain(
        CONVERT,
        "`qemu-img convert` to this format, not verified",
        "qemu-img convert -q -f qcow2 -O {format} {arguments} prepared/plain/{platform}.qcow2 scratch/back",
        prepare="qemu-img convert -q -f {format} -O qcow2 {file} prepared/plain/{platform}.qcow2",
    ),
    Plain("cp", "`cp` of the file", "cp {file} scratch/back"),
    Plain(SHA256SUM, "`sha256sum` of the file", "sha256sum {file}", verifies=True),
    Plain("openssl", "`openssl dgst -sha256` of the file", "openssl dgst -sha256 -r {file}", verifies=True),
)


def conversion(platform: str) -> dict[str, str]:
    """What `qemu-img convert` is told for a platform; nothing where its file is more than that."""
    how = load_derivations().get(platform)
    if how is None or how.wrap:
        return {}
    return {"format": how.format, "arguments": shlex.join(how.arguments)}
