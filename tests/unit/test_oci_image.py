"""Images written, and read back through references, layouts and layers; hostile ones too."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import shutil
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
from backports import zstd

from rehydrator import host
from rehydrator.core.errors import (
    DigestMismatch,
    HostileInput,
    LimitExceeded,
    NotInBundle,
    RehydratorError,
    ToolMissing,
    UsageError,
)
from rehydrator.oci import image as images
from rehydrator.oci import layers
from rehydrator.oci import layout as layout_module
from rehydrator.oci.documents import LAYER, LAYER_GZIP, MANIFEST, Descriptor, Platform
from rehydrator.oci.image import LayerFile, Options, write_image
from rehydrator.oci.reference import (
    Reference,
    open_bundle,
    open_image,
    open_staged,
    parse,
    stage,
    verify_blobs,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rehydrator.oci.layout import Staging

PACK = bytes(range(256)) * 700
CONTENT = {"bundle.json": b'{"a":1}\n', "packs/0.pack": PACK, "packs/1.pack": b""}


def groups_in(folder: Path, content: dict[str, bytes] = CONTENT) -> list[list[LayerFile]]:
    """One layer of packs, one of the rest."""
    made: dict[bool, list[LayerFile]] = {True: [], False: []}
    for name, data in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        made[name.startswith("packs/")].append(LayerFile(f"bundle/{name}", path))
    return [group for group in made.values() if group]


def build(tmp_path: Path, text: str, options: Options | None = None, runtime: str = "") -> Descriptor:
    """Stage and publish the standard image at a reference."""
    groups = groups_in(tmp_path / "in")
    with stage(parse(text)) as staging:
        if runtime:
            with open_image(parse(runtime), tmp_path) as base:
                made = write_image(staging, base, groups, options or Options())
        else:
            made = write_image(staging, None, groups, options or Options())
        staging.seal(made)
        staging.publish()
    return made


def read_all(text: str, tmp_path: Path) -> dict[str, bytes]:
    with open_bundle(parse(text), tmp_path) as files:
        readers = {name: files.open(name) for name in files.names()}
        return {name: reader.pread(0, reader.size) for name, reader in readers.items()}


def blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def put(layout: Path, data: bytes) -> dict[str, Any]:
    """Add a blob to a layout by hand; returns digest and size."""
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    blob(layout, digest).parent.mkdir(parents=True, exist_ok=True)
    blob(layout, digest).write_bytes(data)
    return {"digest": digest, "size": len(data)}


def put_json(layout: Path, value: object) -> dict[str, Any]:
    return put(layout, json.dumps(value).encode())


def handmade(layout: Path, blobs: Sequence[bytes], created_by: Sequence[str] = ()) -> None:
    """A layout with layers as given, as another tool might write it."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{number:064x}" for number in range(len(blobs))]},
        "history": [{"created_by": text} for text in created_by],
    }
    manifest = {
        "schemaVersion": 2,
        "config": put_json(layout, config) | {"mediaType": "application/vnd.oci.image.config.v1+json"},
        "layers": [put(layout, data) | {"mediaType": LAYER} for data in blobs],
    }
    write_index(layout, [put_json(layout, manifest) | {"mediaType": MANIFEST}])


def write_index(layout: Path, entries: list[dict[str, Any]]) -> None:
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))


def rewrite(layout: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest of a layout with every digest above it recomputed."""
    index = json.loads((layout / "index.json").read_bytes())
    entry = index["manifests"][0]
    manifest = json.loads(blob(layout, entry["digest"]).read_bytes())
    edit(manifest)
    write_index(layout, [entry | put_json(layout, manifest)])


def tar_of(**members: bytes | tuple[bytes, str]) -> bytes:
    """A tar of files, or (type, target) pairs; "__" stands for a slash, "DOT" for a dot."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, value in members.items():
            info = tarfile.TarInfo(name.replace("__", "/").replace("DOT", "."))
            data = b""
            if isinstance(value, tuple):
                info.type, info.linkname = value
            else:
                info.size, data = len(value), value
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


BASE = tar_of(bundle__bundleDOTjson=b"{}", bundle__a__x=b"x", bundle__a__y=b"y", etc__passwd=b"root")


# ---- writing


@pytest.mark.parametrize("text", ["oci:{}/image:v1", "oci:{}/image", "oci-archive:{}/image.tar:v1"])
def test_what_was_built_is_read(tmp_path: Path, text: str) -> None:
    """Every file of the bundle comes back, from a directory and from an archive."""
    build(tmp_path, text.format(tmp_path))
    assert read_all(text.format(tmp_path), tmp_path) == CONTENT


def test_the_same_inputs_give_the_same_digest(tmp_path: Path) -> None:
    """Twice, in another place, with files given in another order and touched in between."""
    first = build(tmp_path, f"oci:{tmp_path}/one:v1", Options(labels={"b": "1", "a": "2"}))
    with stage(parse(f"oci-archive:{tmp_path}/two.tar:v1")) as staging:
        again = [list(reversed(group)) for group in groups_in(tmp_path / "elsewhere")]
        second = write_image(staging, None, again, Options(labels={"a": "2", "b": "1"}))
    assert second == first


def test_two_archives_are_the_same_bytes(tmp_path: Path) -> None:
    """An oci-archive as a whole is reproducible."""
    for name in ("one.tar", "two.tar"):
        build(tmp_path, f"oci-archive:{tmp_path}/{name}:v1")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_the_digest_does_not_drift(tmp_path: Path) -> None:
    """The bytes of an image are ours: a known input has a known digest."""
    made = build(tmp_path, f"oci:{tmp_path}/image:v1", Options(created=86400, annotations={"k": "v"}))
    assert made.digest == "sha256:e2e782a97d0ec18d0a862a19909c43f8462b45bb7eed7d339be0ffadb11c2e5a"


def test_documents(tmp_path: Path) -> None:
    """Platform, time, labels, annotations, diff ids and history are where tools look for them."""
    options = Options(86400, Platform("arm64", "linux", "v8"), {"l": "1"}, {"a": "2"})
    made = build(tmp_path, f"oci:{tmp_path}/image", options)
    manifest = json.loads(blob(tmp_path / "image", made.digest).read_bytes())
    config = json.loads(blob(tmp_path / "image", manifest["config"]["digest"]).read_bytes())
    plain = [
        gzip.decompress(blob(tmp_path / "image", item["digest"]).read_bytes()) for item in manifest["layers"]
    ]
    assert manifest["annotations"] == {"a": "2"}
    assert [item["mediaType"] for item in manifest["layers"]] == [LAYER_GZIP] * 2
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in plain]
    assert config["created"] == "1970-01-02T00:00:00Z"
    assert (config["architecture"], config["os"], config["variant"]) == ("arm64", "linux", "v8")
    assert config["config"] == {"Labels": {"l": "1"}}
    assert [item["created_by"] for item in config["history"]] == ["rehydrator build"] * 2


def test_layers_hold_directories_once(tmp_path: Path) -> None:
    """Each layer names the directories above its files, before them, and is sorted."""
    made = build(tmp_path, f"oci:{tmp_path}/image")
    manifest = json.loads(blob(tmp_path / "image", made.digest).read_bytes())
    names = []
    for item in manifest["layers"]:
        with tarfile.open(blob(tmp_path / "image", item["digest"])) as archive:
            names.append(archive.getnames())
    assert names == [
        ["bundle", "bundle/packs", "bundle/packs/0.pack", "bundle/packs/1.pack"],
        ["bundle", "bundle/bundle.json"],
    ]


def runtime_layout(layout: Path, created_by: Sequence[str] = ("debian",)) -> None:
    handmade(layout, [gzip.compress(tar_of(bin__sh=b"#!"), 9, mtime=0)], created_by)


def test_the_runtime_comes_first_and_unchanged(tmp_path: Path) -> None:
    """Its layers keep their bytes, its entrypoint stays, ours come behind."""
    runtime_layout(tmp_path / "runtime")

    def configure(manifest: dict[str, Any]) -> None:
        config = json.loads(blob(tmp_path / "runtime", manifest["config"]["digest"]).read_bytes())
        config["config"] = {"Entrypoint": ["rehydrator"], "Labels": {"base": "yes"}}
        manifest["config"] |= put_json(tmp_path / "runtime", config)
        manifest["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip"

    rewrite(tmp_path / "runtime", configure)
    build(tmp_path, f"oci:{tmp_path}/image", Options(labels={"l": "1"}), f"oci:{tmp_path}/runtime")
    with (
        open_image(parse(f"oci:{tmp_path}/runtime"), tmp_path) as base,
        open_image(parse(f"oci:{tmp_path}/image"), tmp_path) as made,
    ):
        assert made.layers[0].digest == base.layers[0].digest
        assert made.layers[0].media_type == LAYER_GZIP
        assert made.config.created_by() == ["debian", "rehydrator build", "rehydrator build"]
        assert made.config.document["config"] == {
            "Entrypoint": ["rehydrator"],
            "Labels": {"base": "yes", "l": "1"},
        }
    assert read_all(f"oci:{tmp_path}/image", tmp_path) == CONTENT


def test_a_runtime_without_history(tmp_path: Path) -> None:
    """The history still has one entry for each layer, so that our layers are found by it."""
    runtime_layout(tmp_path / "runtime", ())
    build(tmp_path, f"oci:{tmp_path}/image", None, f"oci:{tmp_path}/runtime")
    with open_image(parse(f"oci:{tmp_path}/image"), tmp_path) as made:
        assert made.config.created_by() == ["runtime", "rehydrator build", "rehydrator build"]


def test_a_damaged_runtime_is_refused(tmp_path: Path) -> None:
    """A runtime layer whose bytes changed is not copied."""
    runtime_layout(tmp_path / "runtime")
    index = json.loads((tmp_path / "runtime/index.json").read_bytes())
    manifest = json.loads(blob(tmp_path / "runtime", index["manifests"][0]["digest"]).read_bytes())
    path = blob(tmp_path / "runtime", manifest["layers"][0]["digest"])
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(HostileInput, match=f"{path.name}: damaged"):
        build(tmp_path, f"oci:{tmp_path}/image", None, f"oci:{tmp_path}/runtime")
    assert not (tmp_path / "image").exists()


def test_text_that_is_not_unicode(tmp_path: Path) -> None:
    """A lone surrogate in a runtime's label, or in the index to be kept, is refused."""
    runtime_layout(tmp_path / "runtime")

    def configure(manifest: dict[str, Any]) -> None:
        config = json.loads(blob(tmp_path / "runtime", manifest["config"]["digest"]).read_bytes())
        config["config"] = {"Labels": {"base": "\ud800"}}
        manifest["config"] |= put_json(tmp_path / "runtime", config)

    rewrite(tmp_path / "runtime", configure)
    with pytest.raises(HostileInput, match="surrogates not allowed"):
        build(tmp_path, f"oci:{tmp_path}/image", None, f"oci:{tmp_path}/runtime")
    index = json.loads((tmp_path / "runtime/index.json").read_bytes())
    write_index(tmp_path / "runtime", [index["manifests"][0] | {"annotations": {"a": "\ud800"}}])
    with pytest.raises(HostileInput, match="surrogates not allowed"):
        stage(parse(f"oci:{tmp_path}/runtime:v2"))


def test_a_runtime_for_another_platform(tmp_path: Path) -> None:
    """Asking for a platform that the runtime is not for is a mistake."""
    runtime_layout(tmp_path / "runtime")
    with pytest.raises(UsageError, match="linux/amd64, not linux/arm64"):
        build(
            tmp_path,
            f"oci:{tmp_path}/image",
            Options(platform=Platform("arm64", "linux")),
            f"oci:{tmp_path}/runtime",
        )


def test_large_groups_are_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No layer holds more than the limit; a file above it is refused by name."""
    monkeypatch.setattr(images, "MAX_PAYLOAD", len(PACK))
    groups = groups_in(tmp_path / "in", {"packs/0": PACK, "packs/1": PACK, "packs/2": b"x"})
    with stage(parse(f"oci:{tmp_path}/image")) as staging:
        write_image(staging, None, groups, Options())
        assert len(list((staging.directory / "blobs/sha256").iterdir())) == 3 + 2
        with pytest.raises(LimitExceeded, match="big"):
            write_image(staging, None, groups_in(tmp_path / "in", {"packs/big": PACK + b"x"}), Options())


def test_the_number_of_layers_is_bounded(tmp_path: Path) -> None:
    """101 groups are refused before anything is written."""
    groups = [[item] for item in groups_in(tmp_path / "in", {f"packs/{n}": b"" for n in range(101)})[0]]
    with (
        stage(parse(f"oci:{tmp_path}/image")) as staging,
        pytest.raises(LimitExceeded, match="101 layers, above the limit of 100"),
    ):
        write_image(staging, None, groups, Options())


def test_two_files_of_one_name(tmp_path: Path) -> None:
    """They are refused, by name."""
    groups = groups_in(tmp_path / "in")
    with (
        stage(parse(f"oci:{tmp_path}/image")) as staging,
        pytest.raises(UsageError, match=r"two files claim the name bundle/bundle\.json"),
    ):
        write_image(staging, None, [*groups, groups[1]], Options())


# ---- staging


def sealed(staging: Staging, tmp_path: Path) -> None:
    staging.seal(write_image(staging, None, groups_in(tmp_path / "in"), Options()))


@pytest.mark.parametrize("text", ["oci:{}/image:v1", "oci-archive:{}/image:v1"])
def test_staged_is_readable_and_no_image(tmp_path: Path, text: str) -> None:
    """Before publish() the bundle can be read and proven, and nothing looks like an image."""
    with stage(parse(text.format(tmp_path))) as staging:
        sealed(staging, tmp_path)
        with open_staged(staging.directory, tmp_path) as files:
            assert files.open("packs/0.pack").pread(256, 256) == PACK[:256]
        assert not list(tmp_path.rglob("index.json"))
        assert not (tmp_path / "image").is_file()


@pytest.mark.parametrize("text", ["oci:{}/image:v1", "oci-archive:{}/image:v1"])
def test_what_is_not_published_is_gone(tmp_path: Path, text: str) -> None:
    """An interruption leaves no file, no directory."""
    reference = parse(text.format(tmp_path))

    def interrupted() -> None:
        with stage(reference) as staging:
            sealed(staging, tmp_path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_half_a_publication_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If publish() fails before the index is in place, a layout that it made is gone."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    staging = stage(parse(f"oci:{tmp_path}/image:v1"))
    sealed(staging, tmp_path)
    monkeypatch.setattr(layout_module, "_write_durably", full)
    with pytest.raises(OSError, match="No space left"), staging:
        staging.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("text", ["oci:{}/image:v1", "oci-archive:{}/image:v1"])
def test_nothing_is_left_beside_the_image(tmp_path: Path, text: str) -> None:
    """After publish() no temporary file is left."""
    build(tmp_path, text.format(tmp_path))
    assert not list(tmp_path.rglob(".rehydrator*"))
    assert not list(tmp_path.rglob("staged.json"))


def test_an_unsealed_staging_cannot_be_read(tmp_path: Path) -> None:
    """Reading it back before seal() is a clear error."""
    with (
        stage(parse(f"oci:{tmp_path}/image")) as staging,
        pytest.raises(RehydratorError, match="no image is staged here"),
        open_staged(staging.directory, tmp_path),
    ):
        raise AssertionError


@pytest.mark.parametrize("text", ["oci:{}/image:v1", "oci-archive:{}/image:v1"])
def test_killed_builds_are_cleaned_up(tmp_path: Path, text: str) -> None:
    """What a killed build left is removed by the next; what a living one stages is not."""
    build(tmp_path, f"oci:{tmp_path}/image:v0") if text.startswith("oci:") else None
    living = stage(parse(text.format(tmp_path)))
    dead = living.directory.parent / ".rehydrator-stage-dead"
    dead.mkdir()
    with stage(parse(text.format(tmp_path))):
        assert living.directory.exists()
        assert not dead.exists()
    living.discard()


def test_tags(tmp_path: Path) -> None:
    """A new tag is added to a layout, the same tag is replaced, the others are kept."""
    reference = f"oci:{tmp_path}/image"
    one = build(tmp_path, f"{reference}:one")
    build(tmp_path, f"{reference}:two")
    two = build(tmp_path, f"{reference}:two", Options(created=1))
    found = {}
    for tag in ("one", "two"):
        with open_image(parse(f"{reference}:{tag}"), tmp_path) as image:
            found[tag] = image.documents[0].digest
    assert found == {"one": one.digest, "two": two.digest}
    with pytest.raises(UsageError, match="several images, choose one by its tag: one, two"):
        read_all(reference, tmp_path)
    with pytest.raises(NotInBundle, match="no image three; there is one, two"):
        read_all(f"{reference}:three", tmp_path)


def test_a_directory_of_something_else_is_kept(tmp_path: Path) -> None:
    """A build does not turn a directory of other files into a layout."""
    (tmp_path / "image").mkdir()
    (tmp_path / "image/thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not an OCI layout"):
        stage(parse(f"oci:{tmp_path}/image"))
    assert [path.name for path in (tmp_path / "image").iterdir()] == ["thesis.txt"]


def test_a_broken_index_is_not_replaced(tmp_path: Path) -> None:
    """A layout whose index cannot be read is refused before anything is staged."""
    build(tmp_path, f"oci:{tmp_path}/image:v1")
    (tmp_path / "image/index.json").write_text("{")
    with pytest.raises(HostileInput, match=r"index\.json: not valid JSON"):
        stage(parse(f"oci:{tmp_path}/image:v2"))
    assert sorted(path.name for path in (tmp_path / "image").iterdir()) == [
        "blobs",
        "index.json",
        "oci-layout",
    ]


# ---- references


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("oci:a/b", Reference("oci", "a/b")),
        ("oci:/a/b:v1", Reference("oci", "/a/b", "v1")),
        ("oci:a:quay.io/x/y:v1", Reference("oci", "a", "quay.io/x/y:v1")),
        ("oci-archive:a.tar:v1", Reference("oci-archive", "a.tar", "v1")),
        ("dir:a:b", Reference("dir", "a:b")),
        ("docker-archive:a.tar", Reference("docker-archive", "a.tar")),
        ("docker://h:5000/r:v1", Reference("docker", "h:5000/r:v1")),
        ("containers-storage:localhost/x:v1", Reference("containers-storage", "localhost/x:v1")),
    ],
)
def test_spellings(text: str, expected: Reference) -> None:
    """References are spelt as skopeo spells them, and print as they were spelt."""
    assert parse(text) == expected
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "oci",
        "oci:",
        "oci::v1",
        "oci:a:",
        "oci:a:-v",
        "oci:a:v 1",
        "oci:a\n:v",
        "docker:x",
        "docker://",
        "docker://a b",
        "/a/b",
        "OCI:a",
        "http://h/r",
        "containers-storage:",
    ],
)
def test_bad_spellings(text: str) -> None:
    """Anything else is a usage error that says how to spell one."""
    with pytest.raises(UsageError, match=r"spell it|comes a path"):
        parse(text)


@pytest.mark.parametrize("text", ["dir:x", "docker://h/r", "containers-storage:x", "docker-archive:x"])
def test_builds_go_to_layouts(text: str) -> None:
    """Only OCI layouts can be written."""
    with pytest.raises(UsageError, match="builds are written to"):
        stage(parse(text))


def test_the_parent_of_a_target_must_exist(tmp_path: Path) -> None:
    """The message names the directory."""
    with pytest.raises(UsageError, match=r"there is no directory .*/nowhere"):
        stage(parse(f"oci:{tmp_path}/nowhere/image"))


@pytest.mark.parametrize("transport", ["oci", "oci-archive", "dir", "docker-archive"])
def test_nothing_there(tmp_path: Path, transport: str) -> None:
    """A path that does not exist is named."""
    with pytest.raises(NotInBundle, match=r"there is no .*/nothing"):
        read_all(f"{transport}:{tmp_path}/nothing", tmp_path)


def test_a_bare_bundle(tmp_path: Path) -> None:
    """dir: of a directory with a bundle.json is the bundle itself, and has no blobs."""
    groups_in(tmp_path / "in")
    assert read_all(f"dir:{tmp_path}/in", tmp_path) == CONTENT
    assert verify_blobs(parse(f"dir:{tmp_path}/in"), tmp_path) == []


def test_a_missing_program_is_named_with_its_package() -> None:
    """The message says what to install."""
    with pytest.raises(
        ToolMissing, match=r"no-such-program is not installed .*apt-get install no-such-program"
    ):
        host.find("no-such-program")


# ---- layers of other tools


@pytest.mark.parametrize(
    "pack",
    [
        lambda data: data,
        lambda data: gzip.compress(data, 1),
        lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]),
        lambda data: gzip.compress(data, 0),
        lambda data: zstd.compress(data, 3),
        lambda data: zstd.compress(data[:700]) + zstd.compress(data[700:]),
    ],
    ids=["tar", "gzip", "gzip members", "gzip level 0", "zstd", "zstd frames"],
)
def test_recompressed_layers(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """Whatever another tool compressed a layer with, the files come back."""
    large = tar_of(bundle__bundleDOTjson=b"{}", other=bytes(5 << 20), bundle__p=PACK)
    handmade(tmp_path / "image", [pack(large)])
    assert read_all(f"oci:{tmp_path}/image", tmp_path) == {"bundle.json": b"{}", "p": PACK}


def test_scratch_files_go_away(tmp_path: Path) -> None:
    """What was decompressed is removed when the bundle is closed."""
    handmade(tmp_path / "image", [gzip.compress(BASE)])
    read_all(f"oci:{tmp_path}/image", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["image"]


@pytest.mark.parametrize(
    ("upper", "expected"),
    [
        (tar_of(bundle__a__x=b"new"), {"a/x": b"new", "a/y": b"y"}),
        (tar_of(bundle__a__DOTwhDOTx=b""), {"a/y": b"y"}),
        (tar_of(bundle__DOTwhDOTa=b""), {}),
        (tar_of(bundle__a__DOTwhDOTDOTwhDOTDOTopq=b""), {}),
        (tar_of(bundle__a__z=b"z", bundle__a__DOTwhDOTDOTwhDOTDOTopq=b""), {"a/z": b"z"}),
        (tar_of(bundle__a=b"file"), {"a": b"file"}),
        (tar_of(etc__shadow=b"", bundle2__a__x=b"no"), {"a/x": b"x", "a/y": b"y"}),
    ],
    ids=[
        "replace",
        "whiteout",
        "whiteout of a directory",
        "opaque",
        "opaque and new",
        "file for directory",
        "beside",
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["tar", "gzip"])
def test_upper_layers(
    tmp_path: Path, upper: bytes, expected: dict[str, bytes], pack: Callable[[bytes], bytes]
) -> None:
    """Later layers override and hide files as when the image is mounted."""
    handmade(tmp_path / "image", [pack(BASE), pack(upper)])
    assert read_all(f"oci:{tmp_path}/image", tmp_path) == {"bundle.json": b"{}"} | expected


def test_a_removed_bundle_is_no_bundle(tmp_path: Path) -> None:
    """After a whiteout of the whole directory the image holds no bundle."""
    handmade(tmp_path / "image", [BASE, tar_of(DOTwhDOTbundle=b"")])
    with pytest.raises(NotInBundle, match="holds no bundle"):
        read_all(f"oci:{tmp_path}/image", tmp_path)


@pytest.mark.parametrize(
    "member",
    [
        {"bundle__a__x": (tarfile.SYMTYPE, "/etc/passwd")},
        {"bundle__a__x": (tarfile.LNKTYPE, "etc/passwd")},
        {"bundle": (tarfile.SYMTYPE, "/etc")},
        {"bundle__dev": (tarfile.CHRTYPE, "")},
        {"bundle__DOTDOT__x": b""},
        {"__bundle__x": b""},
    ],
)
def test_hostile_members(tmp_path: Path, member: dict[str, bytes | tuple[bytes, str]]) -> None:
    """Links and devices in the bundle, and unsafe names, are refused with layer and name."""
    handmade(tmp_path / "image", [BASE, tar_of(**member)])
    with pytest.raises(HostileInput, match=r"layer sha256:.*(is a|unsafe name)"):
        read_all(f"oci:{tmp_path}/image", tmp_path)


def test_links_elsewhere_do_no_harm(tmp_path: Path) -> None:
    """A root filesystem has links and devices; they are passed over."""
    root = tar_of(bin=(tarfile.SYMTYPE, "usr/bin"), dev__null=(tarfile.CHRTYPE, ""))
    handmade(tmp_path / "image", [gzip.compress(root), BASE])
    assert "bundle.json" in read_all(f"oci:{tmp_path}/image", tmp_path)


def test_the_runtime_is_not_read(tmp_path: Path) -> None:
    """Layers below the first that the history marks as ours are not opened."""
    handmade(tmp_path / "image", [b"no tar at all", BASE], ["debian", "rehydrator build"])
    assert "bundle.json" in read_all(f"oci:{tmp_path}/image", tmp_path)


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress], ids=["gzip", "zstd"])
@pytest.mark.parametrize("cut", [1, 9, 40])
def test_truncated_compression(tmp_path: Path, pack: Callable[[bytes], bytes], cut: int) -> None:
    """A layer that ends too early is refused, even where all members were there."""
    handmade(tmp_path / "image", [pack(BASE)[:-cut]])
    with pytest.raises(HostileInput, match=r"layer sha256:.*(cut short|ends in the middle|damaged)"):
        read_all(f"oci:{tmp_path}/image", tmp_path)


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress], ids=["gzip", "zstd"])
def test_damaged_compression(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """Bytes that do not decompress are refused, not a traceback."""
    data = bytearray(pack(BASE))
    data[12:40] = bytes(28)
    handmade(tmp_path / "image", [bytes(data)])
    with pytest.raises(HostileInput, match="layer sha256:"):
        read_all(f"oci:{tmp_path}/image", tmp_path)


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress], ids=["gzip", "zstd"])
def test_decompression_bombs(
    tmp_path: Path, pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer that decompresses to far more than it stores is given up early."""
    monkeypatch.setattr(layers, "_SLACK", 1 << 20)
    handmade(tmp_path / "image", [pack(tar_of(bundle__bundleDOTjson=b"{}", bundle__big=bytes(8 << 20)))])
    with pytest.raises(LimitExceeded, match="decompresses to more than"):
        read_all(f"oci:{tmp_path}/image", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["image"]


def docker_archive(path: Path, **more: object) -> None:
    """What `podman save` writes: plain layers, and a manifest.json of its own kind."""
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(BASE).hexdigest()}"]},
        }
    ).encode()
    item = {"Config": "c.json", "RepoTags": ["localhost/x:v1"], "Layers": ["l.tar"]} | more
    path.write_bytes(
        tar_of(
            cDOTjson=config,
            lDOTtar=BASE,
            old__layerDOTtar=(tarfile.SYMTYPE, "../l.tar"),
            manifestDOTjson=json.dumps([item]).encode(),
        )
    )


def test_docker_archive(tmp_path: Path) -> None:
    """Its layers are read where they lie, by the name of the image or without; they verify."""
    docker_archive(tmp_path / "a.tar")
    expected = {"bundle.json": b"{}", "a/x": b"x", "a/y": b"y"}
    assert read_all(f"docker-archive:{tmp_path}/a.tar", tmp_path) == expected
    assert read_all(f"docker-archive:{tmp_path}/a.tar:localhost/x:v1", tmp_path) == expected
    assert len(verify_blobs(parse(f"docker-archive:{tmp_path}/a.tar"), tmp_path)) == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"Layers": ["l.tar", "l.tar"]}, "2 layers, the configuration names 1"),
        ({"Layers": ["../../etc/passwd"]}, "passwd is missing"),
        ({"Layers": ["old/layer.tar"]}, "is missing"),
        ({"Layers": None}, "no configuration or no layers"),
        ({"Config": 7}, "no configuration or no layers"),
        ({"Config": "l.tar"}, "not valid JSON"),
    ],
)
def test_hostile_docker_archives(tmp_path: Path, more: dict[str, object], said: str) -> None:
    """A manifest.json that lies is refused with the reason."""
    docker_archive(tmp_path / "a.tar", **more)
    with pytest.raises(HostileInput, match=said):
        read_all(f"docker-archive:{tmp_path}/a.tar", tmp_path)


def test_an_unknown_name_in_a_docker_archive(tmp_path: Path) -> None:
    """It is not in there."""
    docker_archive(tmp_path / "a.tar")
    with pytest.raises(NotInBundle, match="names no image other"):
        read_all(f"docker-archive:{tmp_path}/a.tar:other", tmp_path)


# ---- hostile layouts


@pytest.fixture(name="layout")
def fixture_layout(tmp_path: Path) -> Path:
    handmade(tmp_path / "image", [BASE])
    return tmp_path / "image"


def set_layer(**fields: object) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["layers"][0].update(fields)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (set_layer(size=3), "10240 bytes, not 3"),
        (set_layer(size=-1), "no valid size"),
        (set_layer(size=True), "no valid size"),
        (set_layer(size=1.5), "not an integer"),
        (set_layer(size=10**30), "more than 20 digits"),
        (set_layer(digest="sha256:../../x"), "not a SHA-256 digest"),
        (set_layer(digest="sha512:" + "0" * 128), "not a SHA-256 digest"),
        (set_layer(digest=None), "not a SHA-256 digest"),
        (set_layer(digest="sha256:" + "0" * 64), "0{64} is missing"),
        (set_layer(mediaType=7), "not a string"),
        (lambda m: m.update(layers={}), "not a list"),
        (lambda m: m.update(layers=[7]), "not an object"),
        (lambda m: m.update(layers=[]), "names 1 layers, the manifest 0"),
        (lambda m: m.update(layers=m["layers"] * 501), "501 layers, above the limit"),
        (lambda m: m.update(manifests=[]), "not an image manifest"),
        (lambda m: m.pop("config"), "not an image manifest"),
        (lambda m: m.update(schemaVersion=1), "schema version 1"),
        (lambda m: m.update(mediaType="application/vnd.oci.image.index.v1+json"), "calls itself"),
        (lambda m: m.update(annotations={"pad": "x" * (4 << 20)}), "above the limit of 4194304"),
        (lambda m: m["config"].update(size=5 << 20), "above the limit of 4194304"),
    ],
)
def test_hostile_manifests(
    layout: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], None], said: str
) -> None:
    """A manifest whose digest fits and whose content lies is refused with the reason."""
    rewrite(layout, edit)
    with pytest.raises(HostileInput, match=said):
        read_all(f"oci:{layout}", tmp_path)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (b"", "not valid JSON"),
        (b"[]", "not an object"),
        (b'{"schemaVersion":2,"manifests":[],"manifests":[]}', "stands twice"),
        (b'{"schemaVersion":2,"manifests":[],"layers":[]}', "not an image index"),
        (b'{"schemaVersion":2}', "not an image index"),
        (b'{"schemaVersion":2,"manifests":' + b"[" * 9000 + b"]" * 9000 + b"}", "nested|not valid"),
        (b" " * ((4 << 20) + 1), "above the limit of 4194304"),
    ],
)
def test_hostile_indexes(layout: Path, tmp_path: Path, index: bytes, said: str) -> None:
    """An index.json that is no index is refused with the reason."""
    (layout / "index.json").write_bytes(index)
    with pytest.raises(HostileInput, match=said):
        read_all(f"oci:{layout}", tmp_path)


def test_a_manifest_said_to_be_an_index(layout: Path, tmp_path: Path) -> None:
    """What a document is must agree with its descriptor, both ways."""
    entry = json.loads((layout / "index.json").read_bytes())["manifests"][0]
    for wrong in ("application/vnd.oci.image.index.v1+json", "text/plain"):
        write_index(layout, [entry | {"mediaType": wrong}])
        with pytest.raises(HostileInput, match=r"not an image index|yet said to be 'text/plain'"):
            read_all(f"oci:{layout}", tmp_path)


def test_an_altered_manifest(layout: Path, tmp_path: Path) -> None:
    """Manifest and configuration are checked against their digests."""
    entry = json.loads((layout / "index.json").read_bytes())["manifests"][0]
    path = blob(layout, entry["digest"])
    path.write_bytes(path.read_bytes().replace(b'"schemaVersion": 2', b'"schemaVersion":2 '))
    with pytest.raises(DigestMismatch, match=f"{path.name}: damaged"):
        read_all(f"oci:{layout}", tmp_path)


def nested_index(layout: Path, *architectures: str) -> None:
    """An index of indexed platforms, as a multi-arch image is; all are the same image."""
    entry = json.loads((layout / "index.json").read_bytes())["manifests"][0]
    children = [entry | {"platform": {"architecture": name, "os": "linux"}} for name in architectures]
    inner = put_json(layout, {"schemaVersion": 2, "manifests": children})
    write_index(layout, [inner | {"mediaType": "application/vnd.oci.image.index.v1+json"}])


def test_platforms(layout: Path, tmp_path: Path) -> None:
    """Of several platforms the asked one is taken, the host's, or none with a list."""
    nested_index(layout, "s390x", "riscv64")
    with open_bundle(parse(f"oci:{layout}"), tmp_path, "s390x") as files:
        assert files.open("bundle.json").size == 2
    with (
        pytest.raises(NotInBundle, match="no image for arm; there is riscv64, s390x"),
        open_bundle(parse(f"oci:{layout}"), tmp_path, "arm"),
    ):
        raise AssertionError
    with pytest.raises(UsageError, match="--runtime-arch: riscv64, s390x"):
        read_all(f"oci:{layout}", tmp_path)


def test_the_only_platform(layout: Path, tmp_path: Path) -> None:
    """The only platform is taken, whatever the host is."""
    nested_index(layout, "s390x")
    assert "bundle.json" in read_all(f"oci:{layout}", tmp_path)


def test_endless_indexes(layout: Path, tmp_path: Path) -> None:
    """Indexes in indexes end at a limit."""
    for _ in range(5):
        entry = json.loads((layout / "index.json").read_bytes())["manifests"][0]
        inner = put_json(layout, {"schemaVersion": 2, "manifests": [entry]})
        write_index(layout, [inner | {"mediaType": "application/vnd.oci.image.index.v1+json"}])
    with pytest.raises(HostileInput, match="not an image manifest"):
        read_all(f"oci:{layout}", tmp_path)


def test_a_blob_that_is_no_file(layout: Path, tmp_path: Path) -> None:
    """A directory, or a pipe that would block, in place of a blob is refused."""
    digest = hashlib.sha256(BASE).hexdigest()
    path = blob(layout, f"sha256:{digest}")
    path.unlink()
    path.mkdir()
    with pytest.raises(HostileInput, match=f"{digest}.*not a regular file"):
        read_all(f"oci:{layout}", tmp_path)


def test_a_short_blob_of_ours(tmp_path: Path) -> None:
    """A layer of stored gzip that was cut short is named."""
    build(tmp_path, f"oci:{tmp_path}/image")
    path = max((tmp_path / "image/blobs/sha256").iterdir(), key=lambda item: item.stat().st_size)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(HostileInput, match=f"layer sha256:{path.name}: .* bytes, not"):
        read_all(f"oci:{tmp_path}/image", tmp_path)


def test_a_damaged_block_of_ours(tmp_path: Path) -> None:
    """A damaged block header is named when a read passes it."""
    build(tmp_path, f"oci:{tmp_path}/image")
    path = max((tmp_path / "image/blobs/sha256").iterdir(), key=lambda item: item.stat().st_size)
    data = bytearray(path.read_bytes())
    data[10 + 65540] = 9
    path.write_bytes(data)
    with open_bundle(parse(f"oci:{tmp_path}/image"), tmp_path) as files:
        assert files.open("packs/0.pack").pread(0, 256) == PACK[:256]
        with pytest.raises(HostileInput, match=f"layer sha256:{path.name}: damaged at byte 65550"):
            files.open("packs/0.pack").pread(70000, 1)


@pytest.mark.parametrize("text", ["oci:{}/image", "oci-archive:{}/image"])
def test_verify_blobs(tmp_path: Path, text: str) -> None:
    """Every blob is read: one altered byte anywhere in a layer is found, and the blob named."""
    reference = parse(text.format(tmp_path))
    build(tmp_path, str(reference))
    checked = verify_blobs(reference, tmp_path)
    assert len(checked) == 4
    layer = checked[2]
    path = blob(tmp_path / "image", layer.digest) if (tmp_path / "image").is_dir() else tmp_path / "image"
    data = path.read_bytes()
    at = data.index(PACK[:4096]) + 77
    path.write_bytes(data[:at] + b"!" + data[at + 1 :])
    with pytest.raises(DigestMismatch, match=f"{layer.digest}: damaged"):
        verify_blobs(reference, tmp_path)


def test_an_archive_cut_short(tmp_path: Path) -> None:
    """It is refused, wherever it ends."""
    build(tmp_path, f"oci-archive:{tmp_path}/image")
    data = (tmp_path / "image").read_bytes()
    for size in range(0, len(data) - 1024, 9973):
        (tmp_path / "image").write_bytes(data[:size])
        with pytest.raises(HostileInput):
            read_all(f"oci-archive:{tmp_path}/image", tmp_path)


def test_skopeo_dir(tmp_path: Path) -> None:
    """A dir: as skopeo writes it has blobs by bare digest; a missing one is named."""
    made = build(tmp_path, f"oci:{tmp_path}/image")
    shutil.copytree(tmp_path / "image/blobs/sha256", tmp_path / "dir")
    (tmp_path / "dir" / made.hex).rename(tmp_path / "dir/manifest.json")
    assert read_all(f"dir:{tmp_path}/dir", tmp_path) == CONTENT
    layer = verify_blobs(parse(f"dir:{tmp_path}/dir"), tmp_path)[1]
    (tmp_path / "dir" / layer.hex).unlink()
    with pytest.raises(HostileInput, match=f"{layer.hex} is missing"):
        read_all(f"dir:{tmp_path}/dir", tmp_path)


def test_a_directory_that_is_neither(tmp_path: Path) -> None:
    """A dir: without bundle.json and manifest.json says what it misses."""
    with pytest.raises(NotInBundle, match=r"neither bundle\.json nor an image's manifest\.json"):
        read_all(f"dir:{tmp_path}", tmp_path)
