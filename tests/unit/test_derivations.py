"""The table of derivations, and platforms.yaml."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rehydrator.core.errors import UsageError
from rehydrator.variants.derivations import Console, load_derivations, load_platforms, parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

X86_64 = (
    "aliyun applehv aws azure azurestack digitalocean exoscale gcp hetzner hyperv ibmcloud kubevirt "
    "metal nutanix openstack oraclecloud proxmoxve qemu virtualbox vmware vultr"
)


def written(directory: Path, text: str) -> Path:
    path = directory / "more.yaml"
    path.write_text(text)
    return path


def test_platforms_of_x86_64() -> None:
    """The shipped table makes the 21 platforms of the architecture, and metal's 4k disk."""
    table = load_derivations()
    made = sorted(n for n, d in table.items() if "x86_64" in d.arches and "x86_64" not in d.needs)
    assert made == sorted([*X86_64.split(), "metal4k"])


def test_converters_of_coreos() -> None:
    """Arguments, sizes and wrappers are coreos-assembler's."""
    table = load_derivations()
    assert table["aws"].arguments == ("-c", "-o", "adapter_type=lsilogic,compat6,subformat=streamOptimized")
    assert (table["ibmcloud"].size, table["metal"].size, table["aws"].size) == (100 << 30, None, 10 << 30)
    assert (table["gcp"].wrap, table["gcp"].compress, table["gcp"].extension) == ("gcp-tar", "gzip9", "tar")
    assert table["azure"].extension == "vhd"


def test_what_cannot_be_done_has_a_reason() -> None:
    """Every platform of s390x says that it needs zipl or genprotimg; metal4k has a base of its own."""
    reasons = {n: d.needs["s390x"] for n, d in load_derivations().items() if "s390x" in d.arches}
    assert reasons.pop("qemu-secex").startswith("genprotimg")
    assert [name for name, why in reasons.items() if not why.startswith("zipl")] == []
    assert [name for name, each in load_derivations().items() if each.sectors == 4096] == ["metal4k"]


def test_a_new_platform_is_a_stanza(tmp_path: Path) -> None:
    """A user's file adds a platform, changes members of another and takes one away."""
    more = written(
        tmp_path,
        "cloud-size: 64M\nplatforms:\n  moon: {format: qcow2, compress: zstd, stamp: 'ds={platform}'}\n"
        "  aws: {compress: null, size: 1G}\n  vultr: null\n",
    )
    table = load_derivations(more)
    assert (table["moon"].size, table["moon"].compress, table["moon"].stamp) == (
        64 << 20,
        "zstd",
        "ds={platform}",
    )
    assert (table["aws"].format, table["aws"].compress, table["aws"].size) == ("vmdk", "none", 1 << 30)
    assert "vultr" not in table


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "a mapping is expected here, this is list"),
        ("platforms: {moon: {format: floppy}}", "platforms.moon: format: Input should be 'raw'"),
        ("platforms: {moon: {compress: xz}}", "platforms.moon: format: Field required"),
        ("platforms: {moon: {format: raw, colour: red}}", "platforms.moon: colour: Extra inputs"),
        ("platforms: {moon: {format: raw, size: 10X}}", "platforms.moon: size: '10X' is no size"),
        ("platforms: {moon: {format: raw, size: 1000}}", "no multiple of 512"),
        ("platforms: {Moon: {format: raw}}", "platforms.Moon"),
        ("platforms: {moon: {format: raw, arguments: ['--object', 'x']}}", "arguments: '--object x': -c, -W"),
        ("platforms: {moon: {format: raw, arguments: [x.raw]}}", "arguments: 'x.raw'"),
        (
            "platforms: {moon: {format: raw, arguments: [-o, backing_file=x]}}",
            "arguments: '-o backing_file=x'",
        ),
        ("platforms: {moon: {format: raw, files: {'/etc/../x': ''}}}", "platforms.moon: files"),
        ("platforms: {moon: {format: raw, stamp: 'a b'}}", "platforms.moon: stamp"),
        ("platforms: {moon: {format: vmdk, wrap: ova}}", "platforms.moon: template: an ova needs"),
        ("platforms: 3", "platforms: Input should be a valid dictionary"),
        ("a: 1\na: 2", "line 2: 'a' stands twice"),
        ("cloud-size: [", "not YAML"),
        ("x: &a [1]\n" + "".join(f"y{n}: *a\n" for n in range(101)), "more than 100 aliases"),
        ("[" * 100_000, "not YAML"),
        ("\x00", "not YAML"),
    ],
)
def test_bad_derivations(tmp_path: Path, text: str, said: str) -> None:
    """The message names file, stanza and member."""
    with pytest.raises(UsageError) as raised:
        load_derivations(written(tmp_path, text))
    assert str(raised.value).startswith(str(tmp_path / "more.yaml"))
    assert said in str(raised.value)


def test_platforms_yaml(tmp_path: Path) -> None:
    """fedora-coreos-config's format: architecture, platform, two lists that may be missing."""
    path = written(
        tmp_path,
        "x86_64:\n  aws:\n    grub_commands:\n      - serial\n    kernel_arguments:\n      - console=tty0\n"
        "  azure:\n    kernel_arguments: [a=b]\n  gcp: {}\naarch64:\n  aws: {}\n",
    )
    found = load_platforms(path, "x86_64")
    expected: Mapping[str, Console] = {
        "aws": Console(("console=tty0",), ("serial",)),
        "azure": Console(("a=b",)),
        "gcp": Console(),
    }
    assert found.platforms == expected
    assert load_platforms(path, "s390x").platforms == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- x", "a mapping is expected here"),
        ("x64: {}", "'x64' is no architecture"),
        ("x86_64: [aws]", "x86_64: a mapping is expected"),
        ("x86_64: {aws: [serial]}", "x86_64.aws: a mapping"),
        ("x86_64: {aws: {kernel_arguments: console=tty0}}", "x86_64.aws: kernel_arguments"),
        ("x86_64: {aws: {kernel_arguments: ['a b']}}", "x86_64.aws: kernel_arguments.0"),
        ('x86_64: {aws: {grub_commands: ["a\\nb"]}}', "x86_64.aws: grub_commands.0"),
    ],
)
def test_bad_platforms_yaml(tmp_path: Path, text: str, said: str) -> None:
    """The message names file and place."""
    with pytest.raises(UsageError) as raised:
        load_platforms(written(tmp_path, text), "x86_64")
    assert str(raised.value).startswith(str(tmp_path / "more.yaml"))
    assert said in str(raised.value)


def test_missing_and_large_files(tmp_path: Path) -> None:
    """A file that is not there, and one that nobody would write, are usage errors."""
    with pytest.raises(UsageError, match="cannot be read"):
        load_platforms(tmp_path / "none", "x86_64")
    with pytest.raises(UsageError, match="more than 4194304 bytes"):
        load_platforms(written(tmp_path, " " * (5 << 20)), "x86_64")


def test_sizes() -> None:
    """Sizes are binary, as qemu-img's."""
    assert [parse_size(size, "") for size in ("512", "64K", "16M", "10G", 1024)] == [
        512,
        65536,
        16 << 20,
        10 << 30,
        1024,
    ]
