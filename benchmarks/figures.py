"""Figures out of the steps of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.base import once_more
from benchmarks.peers import PEERS, Peer
from benchmarks.plots import Span

if TYPE_CHECKING:
    from collections.abc import Iterable

KIB, MIB = 1 << 10, 1 << 20

Results = dict[str, Any]
Step = dict[str, Any]


def rounds(results: Results, prefix: str) -> list[Step]:
    """The rounds of a step whose key ends in their number."""
    return [
        step
        for key, step in results["steps"].items()
        if key.startswith(f"{prefix}/") and key.removeprefix(f"{prefix}/").isdigit()
    ]


def again(results: Results, key: str) -> list[Step]:
    """A step of storing, of every round."""
    steps = results["steps"]
    found: list[Step] = []
    while (step := steps.get(once_more(key, len(found)))) is not None:
        found.append(step)
    return found


def good(steps: Sequence[Step]) -> bool:
    """All of them worked."""
    return bool(steps) and not any(step["failed"] for step in steps)


def words(steps: Sequence[Step]) -> str:
    """What those that failed said."""
    return "; ".join(dict.fromkeys(step["failed"] for step in steps if step["failed"]))


def exact(steps: Sequence[Step]) -> bool:
    """The bytes of the release came back; a step that knows nothing of that is taken for exact."""
    return all(step.get("exact", True) for step in steps)


def span(steps: Iterable[Step], what: str = "wall") -> Span:
    """Median, least and most."""
    return spread([step[what] for step in steps])


def spread(values: Sequence[float]) -> Span:
    """The same of plain numbers."""
    return Span(float(median(values)), min(values), max(values))


def memory(steps: Iterable[Step]) -> int:
    """The highest peak, bytes."""
    return max(int(step["memory"]) for step in steps)


def added(results: Results, file: Step) -> int:
    """What a file adds to the bundle by its own account."""
    return int(results["steps"]["build"]["adds"][file["name"]])


def really_added(results: Results, file: Step) -> int | None:
    """What the bundle shrank by when it was built without this file."""
    without = results["steps"].get(f"without/{file['name']}")
    if without is None or without["failed"]:
        return None
    return int(results["steps"]["build"]["stored"] - without["stored"])


def stored_by(results: Results, peer: Peer, number: int = 0) -> list[Step]:
    """All steps that made what this tool stores; the floor first, where it builds on that."""
    steps, place = results["steps"], once_more(f"store/{peer.name}/", number)
    own = [step for key, step in steps.items() if key.startswith(place)]
    floor = steps.get(once_more("floor", number), steps["floor"])
    return [floor, *own] if peer.on_floor else own


def rounds_stored(results: Results, peer: Peer) -> list[list[Step]]:
    """The same for each round that was finished."""
    count = len(again(results, f"store/{peer.name}/start"))
    found = [stored_by(results, peer, number) for number in range(count)]
    return [steps for steps in found if len(steps) == len(found[0])]


def measured(results: Results) -> list[Peer]:
    """Peers that stored the release, or tried."""
    return [peer for peer in PEERS if f"store/{peer.name}/start" in results["steps"]]


def peer_of(who: str) -> Peer | None:
    """The peer of this name, if it is one."""
    return next((peer for peer in PEERS if peer.name == who), None)


def who(results: Results, prefix: str) -> list[str]:
    """Whom there are rounds of, `prefix/WHO/ROUND`."""
    keys = (key.removeprefix(f"{prefix}/") for key in results["steps"] if key.startswith(f"{prefix}/"))
    return list(dict.fromkeys(key.rpartition("/")[0] for key in keys))


def sized(count: int) -> str:
    """Bytes and KiB."""
    return f"{count:,} ({count / KIB:,.1f} KiB)"


def timed(found: Span) -> str:
    """Seconds, with their spread where there is one."""
    places = 3 if found.median < 1 else 2
    if found.least == found.most:
        return f"{found.median:,.{places}f}"
    return f"{found.median:,.{places}f} ({found.least:,.{places}f} to {found.most:,.{places}f})"


Text = Callable[[float], str]


def seconds_text(value: float) -> str:
    """Seconds for a plot."""
    if value >= 100 or value == 0:
        return f"{value:,.0f} s"
    return f"{value:.3g} s" if value >= 1 else f"{value:.2g} s"


def bytes_text(value: float) -> str:
    """Decimal units, as sizes on disk are given."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.0f} B"
