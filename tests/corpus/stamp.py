"""What makes a disk that of one platform: the boot loader entry, console.cfg and platforms.json."""

from __future__ import annotations

import json
from dataclasses import dataclass

from tests.corpus.platforms import PLATFORMS

ENTRY = "/loader/entries/ostree-1-demo.conf"
CONSOLE = "/grub2/console.cfg"
TABLE = "/coreos/platforms.json"
_SERIAL = "serial --speed=115200\nterminal_input serial console\nterminal_output serial console\n"


@dataclass(frozen=True)
class BootFiles:
    """Where kernel and initramfs lie on /boot, and the kernel arguments of every platform."""

    kernel: str
    initramfs: str
    arguments: str
    version: str

    def entry(self, platform: str = "") -> str:
        """The Boot Loader Specification entry; the raw disk has no platform yet."""
        stamp = ""
        if platform:
            stamp = " " + " ".join(
                (f"ignition.platform.id={platform}", *PLATFORMS[platform].kernel_arguments)
            )
        return (
            f"title Demo {self.version} (ostree:0)\nversion 1\noptions {self.arguments}{stamp}\n"
            f"linux {self.kernel}\ninitrd {self.initramfs}\n"
        )

    def console(self, platform: str = "") -> str:
        """The part of GRUB's configuration that the platform decides."""
        serial = _SERIAL if platform and PLATFORMS[platform].kernel_arguments else ""
        return f"{serial}set platform={platform or 'metal'}\n"

    def grub(self) -> str:
        """Debian's GRUB does not read entries, so its menu takes the platform from console.cfg."""
        return (
            f"set timeout=0\nset default=0\nsource $prefix/console.cfg\nmenuentry 'Demo {self.version}' {{\n"
            f"  linux {self.kernel} {self.arguments} ignition.platform.id=$platform "
            f"console=tty0 console=ttyS0,115200n8\n  initrd {self.initramfs}\n}}\n"
        )

    def tree(self) -> dict[str, str]:
        """The text files of /boot on the raw disk, by path."""
        return {
            ENTRY: self.entry(),
            CONSOLE: self.console(),
            TABLE: _table(),
            "/grub2/grub.cfg": self.grub(),
        }

    def stamped(self, platform: str) -> dict[str, str]:
        """The files that differ on the disk of `platform`."""
        return {ENTRY: self.entry(platform), CONSOLE: self.console(platform), TABLE: _table()}


def _table() -> str:
    arguments = {name: platform.kernel_arguments for name, platform in PLATFORMS.items()}
    return json.dumps({"x86_64": arguments}, indent=2, sort_keys=True) + "\n"
