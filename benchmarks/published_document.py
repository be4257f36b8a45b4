"""From the results of a run over published files: whether the aims are met, and the section of the
document. Nothing is measured here."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.document import KIB, MIB, Aim, Results, Step, sized, table
from benchmarks.published import FORMS, artifact, encoders_of

if TYPE_CHECKING:
    from collections.abc import Iterable

_RATIO = 1.20  # of all that is stored to the operating system once
_WALL = 1.10  # of the published form's seconds to the original program's
_ADDS = MIB  # what a file may add that does not hold the operating system
_MEDIA = 256 * KIB  # what an ISO may add to rootfs, kernel and initramfs
_ORIGINALS = (".xz", ".gz")
_TOOLS = ("rehydrator", "rsync", "xz-utils", "gzip", "zip", "zstd", "qemu-utils")


def aims(results: Results) -> list[Aim]:
    """Every aim that this run has the figures for."""
    return [*_exact(results), *_totals_aims(results), *_adds_aims(results), *_wall(results)]


def _exact(results: Results) -> list[Aim]:
    count = len(results["files"])
    found = []
    for form in FORMS:
        good = sum(_is_exact(results, each, form) for each in results["files"])
        found.append(Aim(f"all files exact in {form} form", f"{good} of {count}", good == count))
    return found


def _totals_aims(results: Results) -> list[Aim]:
    """The kernel and the initramfs are there once, whatever the rest is derived from."""
    inside = {**results, "files": [each for each in results["files"] if artifact(results, each["name"])]}
    beyond = _stored(results) - _sizes(inside, "live-kernel", "live-initramfs")
    found = []
    for what, once in _once(results):
        if once:
            measured = f"{beyond / once:.3f} ({beyond:,} to {once:,} bytes)"
            wanted = f"all that is stored beyond kernel and initramfs, at most {_RATIO:.2f} times {what}"
            found.append(Aim(wanted, measured, beyond <= _RATIO * once))
    return found


def _once(results: Results) -> list[tuple[str, int]]:
    level = results["settings"]["level"]
    return [
        ("the live root file system", _sizes(results, "live-rootfs")),
        (f"the canonical qcow2 alone (`zstd -{level} --long=27`)", results["steps"]["floor"]["stored"]),
    ]


def _adds_aims(results: Results) -> list[Aim]:
    adds = {each["name"]: _adds(results, each) for each in results["files"] if not _holds_os(results, each)}
    found = []
    if adds:
        most = max(adds, key=lambda name: adds[name])
        measured = f"at most {sized(adds[most])}, {most}"
        wanted = f"no file adds more than {_ADDS // KIB:,} KiB, except those that hold the operating system"
        found.append(Aim(wanted, measured, adds[most] <= _ADDS))
    isos = {each["name"]: _adds(results, each) for each in results["files"] if each["format"] == "iso"}
    if isos and _sizes(results, "live-rootfs"):
        wanted = f"an ISO beside the PXE files adds at most {_MEDIA // KIB} KiB"
        found.append(Aim(wanted, sized(max(isos.values())), max(isos.values()) <= _MEDIA))
    return found


def _holds_os(results: Results, each: dict[str, Any]) -> bool:
    """The canonical disk and the live media: each has the system, or its kernel, in its own way."""
    told = artifact(results, each["name"])
    return bool(told.get("canonical")) or each["format"] in {"iso", "pxe"}


def _wall(results: Results) -> list[Aim]:
    found = []
    for suffix in _ORIGINALS:
        ratios = {
            each["name"]: ratio
            for each in results["files"]
            if each["suffix"] == suffix and (ratio := _ratio(results, each)) is not None
        }
        if ratios:
            most = max(ratios, key=lambda name: ratios[name])
            wanted = (
                f"{suffix} forms within {_WALL} times the wall time of the original program, same threads"
            )
            met = ratios[most] <= _WALL
            found.append(Aim(wanted, f"at most {ratios[most]:.2f}, {most}", met))
    return found


# Figures out of the steps


def _step(results: Results, key: str) -> Step:
    """A step that worked, or nothing."""
    found: Step = results["steps"].get(key) or {}
    return {} if found.get("failed") else found


def _back(results: Results, each: dict[str, Any], form: str) -> Step:
    """How a form came back; where the published file is the image, that is one."""
    own = form if each["name"] != each["image"] else "published"
    return _step(results, f"{own}/{each['name']}")


def _is_exact(results: Results, each: dict[str, Any], form: str) -> bool:
    return bool(_back(results, each, form).get("exact"))


def _stored(results: Results) -> int:
    return int(results["steps"]["build"]["stored"])


def _stored_2021(results: Results) -> int:
    return sum(step.get("stored", 0) for key, step in results["steps"].items() if key.startswith("2021/"))


def _sizes(results: Results, *words: str) -> int:
    named = [each for each in results["files"] if any(word in each["name"] for word in words)]
    return sum(each["size"] for each in named)


def _adds(results: Results, each: dict[str, Any]) -> int:
    """Bytes that a file adds in all its forms, by the bundle's own account."""
    return int((artifact(results, each["name"]).get("how") or {}).get("cost") or 0)


def _kept(results: Results, each: dict[str, Any]) -> int:
    """Of the published form, bytes that no encoder gives."""
    published = (artifact(results, each["name"]).get("how") or {}).get("published") or {}
    return int((published.get("bytes") or {}).get("kept") or 0)


def _ratio(results: Results, each: dict[str, Any]) -> float | None:
    """Seconds of the published form to those of the program that wrote it, over the same bytes."""
    original = _seconds(results, f"original/{each['name']}/")
    own = _seconds(results, f"same/{each['name']}/") or _back(results, each, "published").get("wall")
    return float(own) / original if own and original else None


def _seconds(results: Results, prefix: str) -> float | None:
    """The median of those rounds that gave the published bytes; None without any."""
    rounds = [_step(results, key) for key in results["steps"] if key.startswith(prefix)]
    return float(median(good)) if (good := [step["wall"] for step in rounds if step.get("exact")]) else None


def _share(results: Results, each: dict[str, Any]) -> float | None:
    """What of the published form's processor time our encoder takes."""
    encoder, whole = (_step(results, f"{key}/{each['name']}") for key in ("encoder", "published"))
    return min(1.0, encoder["cpu"] / whole["cpu"]) if encoder and whole.get("cpu") else None


# The section


def section(results: Results) -> str:
    """Everything below one heading of the second level."""
    parts = [
        _opening(results),
        table(
            ("aim", "measured", ""),
            ((aim.wanted, aim.measured, "met" if aim.met else "**not met**") for aim in aims(results)),
        ),
        "### All of it",
        _totals_text(results),
        table(("", "bytes", "rehydrator's to that"), _totals(results)),
        "### Each file: exact, and what it adds",
        _files_text(),
        table(
            (
                "file",
                "bytes",
                "published",
                "image",
                "adds",
                "kept",
                "2021 adds",
                "2021 back",
            ),
            (_file_row(results, each) for each in results["files"]),
        ),
        "### Each file: seconds and memory",
        _times_text(results),
        table(
            ("file", "image", "MiB", "published", "MiB", "encoders", "share", "program", "ratio", "2021"),
            (_time_row(results, each) for each in results["files"]),
        ),
        "### In one run",
        table(("", "seconds", "CPU seconds", "peak MiB"), _whole_rows(results)),
        _failures(results),
        _encoders(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _opening(results: Results) -> str:
    settings, machine = results["settings"], results["machine"]
    more = f" {settings['more']}" if settings["more"] else ""
    versions = ", ".join(f"{tool} {results['tools'][tool]}" for tool in _TOOLS)
    return (
        "## Files as published\n\n"
        f"Written by `scripts/bench --published`, {results['taken']}; not edited by hand. One run over "
        f"the {len(results['files'])} published files of the *{settings['corpus']}* release, on "
        f"{machine['processor']}; {versions}; `rehydrator build --level {settings['level']}{more}`. "
        "What comes back is compared with the release's own files, and with what xz, gzip and unzip make "
        "of them. Memory and seconds are as above."
    )


def _totals_text(results: Results) -> str:
    return (
        "The method of 2021, reproduced (`benchmarks/predecessor.py`): everything decompressed, the "
        "canonical qcow2 with zstd -10, an rsync batch with zstd -7 for each other disk, kernel, initramfs "
        "and root file system whole, the ISO as a batch against the root file system. Neither counts a "
        "container's runtime."
    )


def _totals(results: Results) -> Iterable[list[str]]:
    files, ours = results["files"], _stored(results)
    largest = max(files, key=lambda each: each["size"])
    rows = [
        ("**rehydrator**, all files of the OCI layout", ours),
        ("the published files", sum(each["size"] for each in files)),
        (f"the largest of them, `{largest['name']}`", largest["size"]),
        ("the method of 2021", _stored_2021(results)),
        *_once(results),
    ]
    return [[what, f"{count:,}", f"{ours / count:.3f}"] for what, count in rows if count]


def _files_text() -> str:
    return (
        "Bytes as published. *published* and *image*: whether exactly these bytes came back. *adds*: "
        "recipes, and bytes that no other file has, of all forms together, by the bundle's own account; "
        "what several share is in nobody's. *kept*: bytes of the compressed file that no encoder gives. "
        "*2021 adds* is the batch or copy, *2021 back* whether the decompressed bytes came back; the "
        "published bytes of compressed files that method cannot give back."
    )


def _file_row(results: Results, each: dict[str, Any]) -> list[str]:
    back = results["steps"].get(f"2021/back/{each['name']}")
    base = each["name"] == results["canonical"]
    key = "2021/start" if base else f"2021/add/{each['name']}"
    added = _step(results, key)
    return [
        f"`{each['name']}`",
        f"{each['size']:,}",
        *("exact" if _is_exact(results, each, form) else "**no**" for form in ("published", "image")),
        f"{_adds(results, each):,}",
        f"{_kept(results, each):,}" if each["image"] != each["name"] else "",
        f"{added['stored']:,}" if added else "failed",
        "exact" if base or (back and back.get("exact")) else "no",
    ]


def _times_text(results: Results) -> str:
    return (
        "Seconds and peak memory to get a form back, verified. *encoders*: our encoders alone over the same "
        "bytes, from a file; *share*: their processor time to that of the published form. *program*: the one "
        "that compressed the file, over the same bytes; *ratio*: ours to its, with its threads (gzip and "
        f"zip have one, xz and zstd {results['settings']['threads']}), in turn in this run, the median of "
        f"{results['settings']['rounds']} for the first file of each compression. A program that does not "
        "write the published bytes here is not compared. *2021*: the base decompressed, and the file from "
        "it, hashed."
    )


def _time_row(results: Results, each: dict[str, Any]) -> list[str]:
    share, ratio = _share(results, each), _ratio(results, each)
    original = _seconds(results, f"original/{each['name']}/")
    base, encoder = _step(results, "2021/base"), _step(results, f"encoder/{each['name']}")
    back = (
        {"wall": 0.0} if each["name"] == results["canonical"] else _step(results, f"2021/back/{each['name']}")
    )
    cells = [f"`{each['name']}`"]
    for form in FORMS:
        step = _back(results, each, form) if form == "published" or each["name"] != each["image"] else {}
        cells += [f"{step['wall']:.2f}", f"{step['memory'] / MIB:,.0f}"] if step else ["", ""]
    return [
        *cells,
        f"{encoder['wall']:.2f}" if encoder else "",
        "" if share is None else f"{share:.0%}",
        "" if original is None else f"{original:.2f}",
        "" if ratio is None else f"{ratio:.2f}",
        f"{base['wall'] + back['wall']:.2f}" if base and back else "failed",
    ]


def _whole_rows(results: Results) -> Iterable[list[str]]:
    steps = results["steps"]
    rows = [("rehydrator build, with proof", [steps["build"]])]
    rows += [
        (f"rehydrator, everything, {form} form", [steps[f"all/{form}"]])
        for form in FORMS
        if f"all/{form}" in steps
    ]
    for what, prefixes in (
        ("2021, storing (decompressing not counted)", ("2021/start", "2021/add/")),
        ("2021, everything, decompressed", ("2021/base", "2021/back/")),
    ):
        rows.append((what, [step for key, step in steps.items() if key.startswith(prefixes)]))
    return [
        [
            what,
            f"{sum(step['wall'] for step in found):,.1f}",
            f"{sum(step['cpu'] for step in found):,.1f}",
            f"{max(step['memory'] for step in found) / MIB:,.0f}",
        ]
        for what, found in rows
        if found
    ]


def _failures(results: Results) -> str:
    failed = [(key, step["failed"]) for key, step in results["steps"].items() if step["failed"]]
    lines = "\n".join(f"- `{key}`: {words}" for key, words in failed)
    return f"Failed:\n\n{lines}" if lines else ""


def _encoders(results: Results) -> str:
    found = [(each["name"], one) for each in results["files"] for one in encoders_of(results, each["name"])]
    rows = [[f"`{name}`", one["encoder"], one["made_by"]] for name, one in found]
    return f"### Encoders found\n\n{table(('file', 'encoder', 'version'), rows)}" if rows else ""
