"""What stamping makes of a boot partition's texts."""

from __future__ import annotations

import json
from fnmatch import fnmatch

import pytest

from rehydrator.core.errors import HostileInput
from rehydrator.variants.derivations import Console, Consoles, load_derivations
from rehydrator.variants.stamp import CONSOLE, GRUB, TABLE, read_boot, stamped, touches_boot

ENTRY = "/boot/loader.1/entries/ostree-1-fedora.conf"
OPTIONS = "options $ignition_firstboot rw root=UUID=1 ignition.platform.id=qemu console=tty0 console=ttyS0 x"
BASE_ENTRY = f"title Demo\nversion 1\n{OPTIONS}\nlinux /vmlinuz\n"
BASE_TABLE = {"qemu": {"kernel_arguments": ["console=tty0", "console=ttyS0"]}}
SERIAL = ("serial --speed=115200", "terminal_input serial console")
AWS = {"aws": Console(("console=ttyS0,115200n8",), SERIAL), "qemu": Console(("console=tty0",))}
DOCUMENT = {"aws": {"kernel_arguments": ["console=ttyS0,115200n8"]}}
WORDS = {"release": "1.0", "name": "demo", "arch": "x86_64"}


class Guest:
    """Files by path."""

    def __init__(self, files: dict[str, str | bytes]) -> None:
        self.files = {path: text.encode() if isinstance(text, str) else text for path, text in files.items()}

    def find(self, pattern: str) -> list[str]:
        return sorted(path for path in self.files if fnmatch(path, pattern))

    def read(self, path: str) -> bytes | None:
        return self.files.get(path)


def changed(
    files: dict[str, str | bytes], platform: str = "aws", consoles: Consoles | None = None
) -> dict[str, str]:
    """What stamping writes for a platform, as text."""
    boot = read_boot(Guest(files), "base.qcow2")
    found = stamped(
        boot, load_derivations()[platform], consoles or Consoles(AWS, DOCUMENT), WORDS, "base.qcow2"
    )
    return {path: data.decode() for path, data in found.items()}


def whole(**more: str | bytes) -> dict[str, str | bytes]:
    return {ENTRY: BASE_ENTRY, CONSOLE: "old\n", TABLE: json.dumps(BASE_TABLE), **more}


def test_entry() -> None:
    """The base's own platform goes with its arguments, the new one comes at the end; the rest stays."""
    assert changed(whole())[ENTRY] == (
        "title Demo\nversion 1\noptions $ignition_firstboot rw root=UUID=1 x "
        "ignition.platform.id=aws console=ttyS0,115200n8\nlinux /vmlinuz\n"
    )


def test_base_without_a_platform() -> None:
    """A base that is no platform's keeps all of its arguments."""
    entry = "options root=LABEL=root console=tty0\n"
    found = changed({ENTRY: entry, CONSOLE: ""}, "qemu")
    assert found[ENTRY] == "options root=LABEL=root console=tty0 ignition.platform.id=qemu console=tty0\n"


def test_every_entry() -> None:
    """All entries of the loader are stamped, and loader.1 is not seen again as loader."""
    second = ENTRY.replace("ostree-1", "ostree-2")
    found = changed(whole(**{second: BASE_ENTRY, ENTRY.replace("loader.1", "loader"): BASE_ENTRY}))
    assert sorted(path for path in found if path.endswith(".conf")) == [ENTRY, second]


def test_console_is_the_platforms() -> None:
    """console.cfg without marks is the platform's commands and nothing else."""
    assert changed(whole())[CONSOLE] == "serial --speed=115200\nterminal_input serial console\n"


@pytest.mark.parametrize("path", [CONSOLE, GRUB])
def test_console_between_marks(path: str) -> None:
    """Where console.cfg or grub.cfg has marks, just what stands between them changes."""
    files = {
        ENTRY: BASE_ENTRY,
        path: "a\n# CONSOLE-SETTINGS-START\nold\n# CONSOLE-SETTINGS-END\nb \\1\n",
    }
    found = changed(dict(files))
    middle = "\n".join(SERIAL)
    assert found[path] == f"a\n# CONSOLE-SETTINGS-START\n{middle}\n# CONSOLE-SETTINGS-END\nb \\1\n"


def test_console_goes_with_its_platform() -> None:
    """A platform without commands of its own loses those of the base."""
    marked = "# CONSOLE-SETTINGS-START\nserial\n# CONSOLE-SETTINGS-END\n"
    assert (
        changed(whole(**{CONSOLE: marked}), "metal")[CONSOLE]
        == "# CONSOLE-SETTINGS-START\n# CONSOLE-SETTINGS-END\n"
    )


def test_no_place_for_the_console() -> None:
    """Commands that no file could take are an error that names file and remedy."""
    with pytest.raises(HostileInput, match=r"base\.qcow2: .*neither /boot/grub2/console\.cfg nor"):
        changed({ENTRY: BASE_ENTRY})


def test_table() -> None:
    """platforms.json becomes the table of the architecture, and is left alone when it is that."""
    assert json.loads(changed(whole())[TABLE]) == DOCUMENT
    assert TABLE not in changed(whole(**{TABLE: json.dumps(DOCUMENT, indent=1)}))


def test_nothing_to_do() -> None:
    """A disk that is stamped already is not written again."""
    files = whole()
    once = {**files, **changed(files)}
    assert changed(once) == {}


def test_s390x_without_change_needs_no_boot_record() -> None:
    """A derivation without stamp, arguments and commands does not touch the boot loader."""
    from dataclasses import replace

    plain = replace(load_derivations()["vultr"], stamp="")
    assert touches_boot(plain, Consoles()) is False
    assert touches_boot(load_derivations()["vultr"], Consoles()) is True


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "this disk has none"),
        ({ENTRY: "title no options\n"}, f"this disk has {ENTRY}, without an `options` line"),
        ({ENTRY: b"options \xff\n"}, f"{ENTRY}: not UTF-8 text"),
        ({ENTRY: BASE_ENTRY, TABLE: "{"}, f"{TABLE}: not JSON"),
    ],
)
def test_bases_that_cannot_be_stamped(files: dict[str, str | bytes], said: str) -> None:
    """What a base lacks is said with the base's name."""
    with pytest.raises(HostileInput) as raised:
        changed(files)
    assert str(raised.value).startswith("base.qcow2: ")
    assert said in str(raised.value)


def test_files_of_the_guest() -> None:
    """Placeholders in a derivation's files become the platform's words; other braces stay."""
    from dataclasses import replace

    derivation = replace(
        load_derivations()["aws"],
        files={"/boot/grub2/platform.cfg": "set p={platform} {release} ${x} {kernel_arguments}\n"},
    )
    boot = read_boot(Guest(whole()), "base")
    found = stamped(boot, derivation, Consoles(AWS, {}), WORDS, "base")
    expected = b"set p=aws 1.0 ${x} console=ttyS0,115200n8\n"
    assert found["/boot/grub2/platform.cfg"] == expected
