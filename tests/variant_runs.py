"""One small canonical disk, and `rehydrator variants` run on it, for the tests of the verb."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tests.conftest import User
from tests.corpus.release import PLATFORMS
from tests.guest_disks import MIB, GuestDisk, make_disk, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Ran

EPOCH = 1_750_000_000
CLOUD_MIB = 24
IBM_MIB = 26
X86_64 = sorted(
    [
        *("aliyun", "applehv", "aws", "azure", "azurestack", "digitalocean", "exoscale", "gcp", "hetzner"),
        *("hyperv", "ibmcloud", "kubevirt", "metal", "nutanix", "openstack", "oraclecloud", "proxmoxve"),
        *("qemu", "virtualbox", "vmware", "vultr"),
    ]
)
# Those that need no foreign tool.
AARCH64 = sorted(
    [
        *("aliyun", "applehv", "aws", "azure", "gcp", "hetzner", "hyperv", "kubevirt", "metal"),
        *("openstack", "oraclecloud", "proxmoxve", "qemu"),
    ]
)


@dataclass(frozen=True)
class Base:
    """A canonical disk of 23 MiB as raw and as qcow2, and small sizes for the platforms."""

    disk: GuestDisk
    qcow2: Path
    raw: Path
    derivations: Path

    def options(self, output: object, *, derivations: object = None) -> list[object]:
        """The options that every run needs."""
        table = derivations or self.derivations
        names = ["--name", "demo", "--stream", "stable", "--release", "1.0.0"]
        return ["-o", output, "--platforms", PLATFORMS, "--derivations", table, *names]


def make_base(folder: Path) -> Base:
    """Make the disk in `folder`."""
    disk = make_disk(folder)
    qcow2, raw = folder / "demo-base.x86_64.qcow2", folder / "demo-base.x86_64.raw"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk.base, qcow2)
    raw.symlink_to(disk.base)
    table = folder / "derivations.yaml"
    table.write_text(f"cloud-size: {CLOUD_MIB}M\nplatforms:\n  ibmcloud: {{size: {IBM_MIB * MIB}}}\n")
    return Base(disk, qcow2, raw, table)


@contextmanager
def everybodys(base: Base) -> Iterator[tuple[User, Base]]:
    """A home and a copy of the base that other users reach: every start of pytest closes pytest's own
    directory to them."""
    with TemporaryDirectory() as name:
        home = Path(name)
        home.chmod(0o777)
        user = User(home)
        user.tmp.chmod(0o777)
        copies = [Path(shutil.copy(path, home)) for path in (base.qcow2, base.derivations)]
        yield user, replace(base, qcow2=copies[0], derivations=copies[1])


def variants(
    user: User,
    base: Base,
    *more: object,
    platforms: str = "",
    source: object = None,
    output: object = "release",
    derivations: object = None,
    epoch: object = EPOCH,
    **run: Any,
) -> Ran:
    """Run the verb for some platforms (all, where none is named)."""
    env = {"SOURCE_DATE_EPOCH": str(epoch), **run.pop("env", {})}
    some = [word for platform in platforms.split() for word in ("--platform", platform)]
    options = base.options(output, derivations=derivations)
    return user.run("variants", source or base.qcow2, *options, *some, *more, env=env, **run)
