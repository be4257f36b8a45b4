"""The steps of the comparison over files as they are published, each kept as soon as it is done.

floor                    zstd of the canonical qcow2 alone, decompressed
2021/start, /add/FILE    the method of 2021 (predecessor.py)
2021/base, /back/FILE    what it gives back: once the qcow2, then each file from that
build                    rehydrator's bundle of the whole release
image/FILE               a file back without its outer compression
published/FILE           as published
same/FILE/ROUND          as published, with as many threads as the program that compressed it
original/FILE/ROUND      that program, over the same decompressed file
encoder/FILE             our encoders alone, over the same
all/FORM                 everything back in one run
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from benchmarks import predecessor
from benchmarks.machine import machine, tools
from benchmarks.measure import measure
from benchmarks.steps import Steps, sha256, size
from rehydrator.metadata.names import SIGNATURE_SUFFIX, STREAM_DOCUMENT, image_name, outer_suffix, parse_name
from rehydrator.variants.compress import COMPRESSORS
from rehydrator.variants.derivations import load_derivations

if TYPE_CHECKING:
    from pathlib import Path

FORMS = ("image", "published")

_BUNDLE = "oci:stored/rehydrator:bench"
_BACK = f"rehydrator rehydrate scratch/back --bundle {_BUNDLE}"
_OPEN = {
    ".xz": "xz -dc",
    ".gz": "gzip -dc",
    ".zst": "zstd -dcq --long=31",
    ".bz2": "bzip2 -dc",
    ".zip": "unzip -p",
}
_METHODS = {".xz": "xz", ".gz": "gzip", ".zst": "zstd", ".zip": "zip"}
_SINGLE = ("gzip", "gzip9", "zip")  # programs of one thread


@dataclass(frozen=True)
class Options:
    """What the user asked for: `level` of packs, `packed_level` that the files were compressed with
    (0: upstream's), `more` options of build, `rounds` in turn with the original program for the
    first file of each compression (one for the others), `timeout` of a step in seconds."""

    release: Path
    work: Path
    corpus: str
    level: int
    packed_level: int
    more: str
    rounds: int
    timeout: float


@dataclass(frozen=True)
class File:
    """A published file, and what is in it: `plain` is the name without any compression (a .tar.gz
    is an image, but it has one), `suffix` the compression. Sizes in bytes."""

    name: str
    image: str
    plain: str
    suffix: str
    platform: str
    format: str
    size: int
    modified: int
    sha256: str
    plain_size: int
    plain_sha256: str

    @property
    def forms(self) -> dict[str, str]:
        """Name by form; one, where the published file is the image."""
        return (
            {"image": self.image, "published": self.name}
            if self.image != self.name
            else {"published": self.name}
        )

    def digest(self, form: str) -> str:
        """What must come back."""
        return self.plain_sha256 if form == "image" and self.image == self.plain else self.sha256


class Published(Steps):
    """One run; `results` is what the document is written from."""

    def __init__(self, options: Options) -> None:
        super().__init__(options.release, options.work, options.timeout)
        self._options, self._cores = options, len(os.sched_getaffinity(0))
        self.results = self._load()
        self._files = [File(**each) for each in self.results["files"]]
        self._canonical = next(each for each in self._files if each.name == self.results["canonical"])
        self._rootfs = next((each for each in self._files if "live-rootfs" in each.name), None)

    def run(self) -> None:
        """Every step that is not done yet."""
        self._check_space()
        self._store_alone()
        self._store_2021()
        self._obtain_2021()
        self._build()
        for file in self._files:
            self._obtain(file)
        for form in FORMS:
            self._obtain_all(form)

    # What is kept between runs

    def _load(self) -> dict[str, Any]:
        options = self._options
        settings = {
            "corpus": options.corpus,
            "level": options.level,
            "packed_level": options.packed_level,
            "more": options.more,
            "rounds": options.rounds,
            "threads": self._cores,
        }
        kept = self._found()
        known = {(each["name"], each["size"], each["modified"]): each for each in kept.get("files", ())}
        paths = [path for path in sorted(options.release.iterdir()) if _is_artifact(path)]
        files = [self._file(path, known) for path in paths]
        canonical = next((each.name for each in files if each.platform == "qemu"), None)
        if canonical is None:
            sys.exit("the release has no qemu image to measure against")
        start = {"settings": settings, "files": [asdict(each) for each in files], "canonical": canonical}
        if any(kept.get(key) != value for key, value in start.items()):
            kept = {**start, "steps": {}}
        taken = time.strftime("%Y-%m-%d", time.gmtime())
        return {**kept, "taken": taken, "machine": machine(), "tools": tools()}

    def _file(self, path: Path, known: dict[tuple[str, int, int], dict[str, Any]]) -> File:
        """A published file; it is decompressed where that was not done yet."""
        status = path.stat()
        suffix = outer_suffix(path.name) or (".gz" if path.name.endswith(".tar.gz") else "")
        plain = path.name.removesuffix(suffix)
        target = self._work / "prepared" / plain
        if not target.exists():
            self._decompress(path.name, suffix, plain)
        if found := known.get((path.name, status.st_size, status.st_mtime_ns)):
            return File(**found)
        named = parse_name(path.name)
        return File(
            path.name,
            image_name(path.name),
            plain,
            suffix,
            named.platform,
            named.format,
            status.st_size,
            status.st_mtime_ns,
            sha256(path),
            target.stat().st_size,
            sha256(target),
        )

    def _decompress(self, name: str, suffix: str, plain: str) -> None:
        print(f"decompressing {name} ...", file=sys.stderr)
        source, part = shlex.quote(f"release/{name}"), shlex.quote(f"scratch/{plain}")
        sparse = f"dd of={part} conv=sparse iflag=fullblock bs=64K status=none"
        opened = f"{_OPEN[suffix]} {source} | {sparse}" if suffix else f"cp --sparse=always {source} {part}"
        # gzip and zip keep the time of what they compress.
        self._make(f"{opened}\ntouch -r {source} {part}\nmv {part} {_prepared(plain)}")

    def _check_space(self) -> None:
        """Room for everything decompressed once more, for the largest with its holes filled, and for
        what the two containers may take."""
        plain = sum(path.stat().st_blocks * 512 for path in (self._work / "prepared").iterdir())
        packed = sum(file.size for file in self._files)
        needed = plain + packed + 2 * max(file.plain_size for file in self._files)
        free = shutil.disk_usage(self._work).free + size(self._work / "stored")
        if free < needed:
            sys.exit(f"the comparison needs {needed >> 20:,} MiB of disk space; {free >> 20:,} MiB are free")

    # Storing

    def _store_alone(self) -> None:
        target = "stored/floor/canonical.zst"
        plain = _prepared(self._canonical.plain)
        script = f"zstd -q -{self._options.level} --long=27 -T0 {plain} -o {target}"
        if not self._is_done("floor", script, target):
            self._fresh("stored/floor")
            self._record("floor", self._step("floor", script, keep="floor"))

    def _store_2021(self) -> None:
        base = _prepared(self._canonical.plain)
        home = self._work / predecessor.HOME
        scripts = {"2021/start": predecessor.START.format(base=base)}
        scripts |= {
            f"2021/add/{file.name}": self._filled(self._row(file).add, file) for file in self._others()
        }
        if all(self._is_done(key, script, predecessor.HOME) for key, script in scripts.items()):
            return
        self._fresh(predecessor.HOME)
        for key, script in scripts.items():
            self._fresh("scratch")
            self._record(key, self._step(key, script, keep=home.name))

    def _others(self) -> list[File]:
        return [file for file in self._files if file != self._canonical]

    def _row(self, file: File) -> predecessor.Row:
        named = parse_name(file.name)
        if named.format == "pxe":
            return predecessor.WHOLE
        if named.format == "iso" and self._rootfs:
            return predecessor.iso(shlex.quote(self._rootfs.plain))
        kinds = {".vmdk": predecessor.VMDK, ".ova": predecessor.OVA}
        return next((row for end, row in kinds.items() if file.plain.endswith(end)), predecessor.BATCH)

    def _filled(self, script: str, file: File) -> str:
        iso = file.format == "iso" and self._rootfs
        source = self._rootfs if iso and self._rootfs else self._canonical
        return script.format(
            plain=_prepared(file.plain), source=_prepared(source.plain), name=shlex.quote(file.plain)
        )

    def _obtain_2021(self) -> None:
        """Each file from a decompressed base, which is measured once."""
        scripts = {file.name: self._filled(self._row(file).back, file) for file in self._others()}
        keys = {f"2021/back/{name}": script for name, script in scripts.items()}
        if all(self._is_done(key, script, ".") for key, script in keys.items()):
            return
        self._fresh("scratch")
        self._record("2021/base", self._step("2021/base", f"{predecessor.BASE}\nsha256sum scratch/base"))
        for file in self._others():
            key = f"2021/back/{file.name}"
            done = self._step(key, scripts[file.name])
            # An inexact file is what this method gives, and no failure of the step.
            done["exact"] = not done["failed"] and done["stdout"].split()[0] == file.plain_sha256
            self._record(key, done)
            self._make("find scratch -mindepth 1 -maxdepth 1 ! -name base -exec rm -r {} +")
        self._fresh("scratch")

    def _build(self) -> None:
        options = self._options
        script = (
            f"rehydrator build release -o {_BUNDLE} --runtime none --level {options.level} {options.more}"
        ).strip()
        if self._is_done("build", script, "stored/rehydrator/index.json", self._code):
            return
        self._fresh("stored/rehydrator")
        done = self._step("build", script, self._code, keep="rehydrator")
        info = measure(f"rehydrator info --json --bundle {_BUNDLE}", self._work, 600)
        if done["failed"] or info.failed:
            sys.exit(f"the bundle was not built: {done['failed'] or info.failed}")
        done["told"] = json.loads(info.stdout)["artifacts"]
        self._record("build", done)

    # Getting files back

    def _obtain(self, file: File) -> None:
        for form, name in file.forms.items():
            command = f"{_BACK} --file {shlex.quote(name)} --form {form}"
            self._measured(f"{form}/{file.name}", command, {name: file.digest(form)})
        if file.suffix:
            self._compare(file)

    def _compare(self, file: File) -> None:
        """The program that compressed the file and we, in turn; and our encoder alone."""
        threads = self._threads(file)
        rounds = self._options.rounds if self._is_first(file) else 1
        for number in range(rounds):
            if threads != self._cores or rounds > 1:
                command = f"{_BACK} --file {shlex.quote(file.name)} --form published --jobs {threads}"
                self._measured(f"same/{file.name}/{number}", command, {file.name: file.sha256})
            if original := self._original(file, threads):
                self._packed(f"original/{file.name}/{number}", f"{original} > scratch/packed", file)
        if encoders_of(self.results, file.name):
            arguments = f"{_BUNDLE} {shlex.quote(file.name)} {_prepared(file.plain)}"
            key, script = f"encoder/{file.name}", f"encode_alone {arguments}"
            if not self._is_done(key, script, ".", self._code):
                self._record(key, self._step(key, script, self._code))

    def _is_first(self, file: File) -> bool:
        return file == next(each for each in self._files if each.suffix == file.suffix)

    def _threads(self, file: File) -> int:
        method = _method(file)
        return (
            1 if method in _SINGLE else max(self._cores, COMPRESSORS[method].least_threads if method else 1)
        )

    def _original(self, file: File, threads: int) -> str:
        method = _method(file)
        if not method:
            return ""
        compressor = COMPRESSORS[method]
        words = {
            "{source}": _prepared(file.plain),
            "{level}": str(self._options.packed_level or compressor.level),
            "{threads}": str(threads),
        }
        text = " ".join(compressor.pack)
        for word, value in words.items():
            text = text.replace(word, value)
        return text

    def _packed(self, key: str, script: str, file: File) -> None:
        if self._is_done(key, script, ".", self._code):
            return
        self._fresh("scratch")
        done = self._step(key, script, self._code)
        packed = self._work / "scratch/packed"
        done["exact"] = not done["failed"] and sha256(packed) == file.sha256
        self._record(key, done)
        self._fresh("scratch")

    def _obtain_all(self, form: str) -> None:
        wanted = {
            file.forms.get(form, file.name): file.digest(form if form in file.forms else "published")
            for file in self._files
        }
        self._measured(f"all/{form}", f"{_BACK} --all --form {form}", wanted)

    def _measured(self, key: str, script: str, wanted: dict[str, str]) -> None:
        """Rehydrate, and compare what came with the release's own digests, in no one's time."""
        if self._is_done(key, script, ".", self._code):
            return
        self._fresh("scratch")
        done = self._step(key, script, self._code)
        back = self._work / "scratch/back"
        wrong = [name for name, digest in wanted.items() if not _is(back / name, digest)]
        done["exact"] = len(wanted) - len(wrong)
        if wrong and not done["failed"]:
            done["failed"] = f"other bytes came back, or none: {', '.join(wrong)}"
        done["written"] = size(back) if back.exists() else 0
        self._record(key, done)
        self._fresh("scratch")


def artifact(results: dict[str, Any], name: str) -> dict[str, Any]:
    """What `info` tells of a published file."""
    for told in results["steps"]["build"]["told"]:
        if name in {told["file"], (told.get("published") or {}).get("file")}:
            return dict(told)
    return {}


def encoders_of(results: dict[str, Any], name: str) -> list[dict[str, str]]:
    """The encoders that `info` tells for the form as published: each in words, and its version."""
    forms = artifact(results, name).get("forms") or {}
    return list((forms.get("published") or forms.get("image") or {}).get("encoders") or ())


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def _is_artifact(path: Path) -> bool:
    return path.is_file() and path.name != STREAM_DOCUMENT and path.suffix != SIGNATURE_SUFFIX


def _prepared(plain: str) -> str:
    return shlex.quote(f"prepared/{plain}")


def _method(file: File) -> str:
    """The row of COMPRESSORS that wrote a file: its platform's, or what the suffix says."""
    how = load_derivations().get(file.platform)
    if how and how.compress in COMPRESSORS and COMPRESSORS[how.compress].suffix == file.suffix:
        return str(how.compress)
    return _METHODS.get(file.suffix, "")
