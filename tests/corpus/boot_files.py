"""The text files of /boot on the base, which belongs to no platform yet."""

from __future__ import annotations

from dataclasses import dataclass

ENTRY = "/loader/entries/ostree-1-demo.conf"
CONSOLE = "/grub2/console.cfg"


@dataclass(frozen=True)
class BootFiles:
    """Where kernel and initramfs lie on /boot, and the kernel arguments of every platform."""

    kernel: str
    initramfs: str
    arguments: str
    version: str

    def tree(self) -> dict[str, str]:
        """The files by path."""
        return {
            ENTRY: f"title Demo {self.version} (ostree:0)\nversion 1\noptions {self.arguments}\n"
            f"linux {self.kernel}\ninitrd {self.initramfs}\n",
            CONSOLE: "# CONSOLE-SETTINGS-START\n# CONSOLE-SETTINGS-END\n",
            "/grub2/grub.cfg": self._grub(),
        }

    def _grub(self) -> str:
        return (
            "set timeout=0\nset default=0\nset platform=metal\nset platform_arguments=\n"
            "source $prefix/console.cfg\n"
            "if test -f $prefix/platform.cfg; then source $prefix/platform.cfg; fi\n"
            f"menuentry 'Demo {self.version}' {{\n"
            f"  linux {self.kernel} {self.arguments} ignition.platform.id=$platform $platform_arguments "
            f"console=tty0 console=ttyS0,115200n8\n  initrd {self.initramfs}\n}}\n"
        )
