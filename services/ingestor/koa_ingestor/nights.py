"""What a night's numbers mean: values in, values out."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

from koa_shared.contracts import Status, Time, Timeline
from koa_shared.reports import (
    InstrumentNight,
    Inventory,
    Latencies,
    Latency,
    NightReport,
    Slow,
    TypeTotal,
    Verdict,
)

MINUTE = 60.0  # s, the objective of the system
BIN = timedelta(minutes=10)  # of the plot: 144 a night, whatever there is of frames
STATES = {
    Status.COMPLETE: "archived", Status.INVALID: "invalid", Status.DUPLICATE: "duplicate",
    Status.ERROR: "parked",
}  # fmt: skip
WORST = (Verdict.INCOMPLETE, Verdict.UNFINISHED, Verdict.UNPROVEN)  # which word wins
Key = tuple[str, int]  # instrument, level


class Group(NamedTuple):
    """Frames that are alike; `type` and `exposure` are None where they are hidden."""

    instrument: str
    level: int
    status: str
    type: str | None
    found: bool
    frames: int
    exposure: float | None
    bytes: int


class Moment(NamedTuple):
    """When a frame was acquired, and its latency if it counts (as the objective counts)."""

    instrument: str
    level: int
    acquired: datetime
    latency: float | None


def rank(ordered: Sequence[float], share: float) -> float:
    """Return a percentile of ordered values: the smallest that `share` of them do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def latency(values: Iterable[float]) -> Latency | None:
    """Return the percentiles of latencies in seconds, None without any."""
    if not (ordered := sorted(values)):
        return None
    told = {f"p{n}": round(rank(ordered, n / 100), 3) for n in (50, 90, 99)}
    within = sum(value <= MINUTE for value in ordered)
    last = round(ordered[-1], 3)
    return Latency(frames=len(ordered), within_minute=within, max=last, **told)


def over_the_night(moments: Iterable[Moment]) -> list[Latencies]:
    """Return the latencies of each ten minutes in which frames were acquired."""
    bins = defaultdict[datetime, list[float]](list)
    for _, _, at, seconds in moments:
        if seconds is not None:
            minute = at.minute - at.minute % (BIN.seconds // 60)
            bins[at.replace(minute=minute, second=0, microsecond=0)].append(seconds)
    return [
        Latencies(
            at=at, frames=len(some), p50=round(rank(sorted(some), 0.5), 3), max=round(max(some), 3)
        )
        for at, some in sorted(bins.items())
    ]


def slowest(row: dict[str, Any]) -> Slow:
    """Name a slow frame and the longest step of its timeline."""
    timeline = Timeline.model_validate(row["timeline"])
    points = [(name, at) for name, at in timeline if at is not None]
    hops = [((t - s).total_seconds(), f"{a} to {b}") for (a, s), (b, t) in pairwise(points)]
    seconds, hop = max(hops, default=(0.0, "-"))
    whose = {name: row[name] for name in ("frame_id", "koaid", "instrument")}
    total = timeline.latency_seconds or 0.0
    return Slow(**whose, latency_seconds=total, hop=hop, hop_seconds=seconds)


def types(groups: Iterable[Group]) -> list[TypeTotal]:
    """Return archived frames by image type, the most frequent first."""
    found = defaultdict[str | None, list[Group]](list)
    for group in groups:
        found[group.type].append(group)
    totals = [
        TypeTotal(
            type=kind, frames=sum(g.frames for g in some), bytes=sum(g.bytes for g in some),
            exposure_seconds=exposure(some),
        )
        for kind, some in found.items()
    ]  # fmt: skip
    return sorted(totals, key=lambda total: -total.frames)


def exposure(groups: Iterable[Group]) -> float | None:
    """Return the seconds exposed, None if the caller sees of none how long."""
    known = [group.exposure for group in groups if group.exposure is not None]
    return round(sum(known), 3) if known else None


def judge(n: dict[str, int], seen: Inventory | None, last: datetime | None, *, over: bool) -> Any:
    """Return the verdict about an instrument's night, and its reasons as sentences.

    `n` are the counts by state; `last` is when its last frame was acquired.  Of levels
    above 0 nothing is told of disks: `seen` and `last` are None.
    """
    kept = n["archived"] + n["duplicate"]
    told = [f"{kept} of {n['announced']} frames are in the archive."]
    wrong = {
        "invalid": f"{n['invalid']} invalid: the files are at fault and are not archived.",
        "parked": f"{n['parked']} parked: an operator has to look (`koa parked`).",
    }
    bad, wait, unproven = [text for state, text in wrong.items() if n[state]], [], []
    if n["unfinished"]:
        wait.append(f"{n['unfinished']} still on their way.")
    if not over:
        wait.append("The UT date is not over.")
    if seen and seen.on_disk > seen.announced:
        bad.append(f"{seen.on_disk - seen.announced} on the disk that nobody announced.")
    if seen and seen.gaps:
        bad.append(f"{seen.gaps} gaps in the frame numbers on the disk.")
    if last and (seen is None or seen.at is None or seen.at < last):
        unproven.append("The disks were not compared with the ledger after the last frame.")
    if n["found"]:
        told.append(f"{n['found']} were found on the disk by a rescan, without an announcement.")
    words = [w for w, why in zip(WORST, (bad, wait, unproven), strict=True) if why]
    return (words or [Verdict.COMPLETE])[0], [*told, *bad, *wait, *unproven]


def instrument_night(
    key: Key, groups: list[Group], moments: list[Moment], seen: Inventory | None, *, over: bool
) -> InstrumentNight:
    """Add up what one instrument has of one level."""
    counts = Counter[str]()
    for group in groups:
        counts[STATES.get(Status(group.status), "unfinished")] += group.frames
    counts["announced"] = counts.total()
    counts["found"] = sum(group.frames for group in groups if group.found)
    states = {n: counts[n] for n in ("announced", *STATES.values(), "unfinished", "found")}
    last = max((m.acquired for m in moments), default=None) if key[1] == 0 else None
    verdict, reasons = judge(states, seen, last, over=over)
    hours = Counter(moment.acquired.hour for moment in moments)
    kept = [group for group in groups if group.status == Status.COMPLETE]
    return InstrumentNight(
        instrument=key[0], level=key[1], **states, verdict=verdict, reasons=reasons,
        bytes=sum(group.bytes for group in kept), exposure_seconds=exposure(kept),
        types=types(kept), hours=[hours[hour] for hour in range(24)], inventory=seen,
        latency=latency(m.latency for m in moments if m.latency is not None),
    )  # fmt: skip


def report(
    groups: list[Group], moments: list[Moment], seen: dict[str, Inventory], night: str, now: Time
) -> NightReport:
    """Return a night's report, without its worst frames and findings."""
    mine, when = defaultdict[Key, list[Group]](list), defaultdict[Key, list[Moment]](list)
    for group in groups:
        mine[group.instrument, group.level].append(group)
    for moment in moments:
        when[moment.instrument, moment.level].append(moment)
    told = {(name, 0) for name, inventory in seen.items() if inventory.on_disk}
    over = night < now.date().isoformat()
    rows = [
        instrument_night(key, mine[key], when[key], None if key[1] else seen.get(key[0]), over=over)
        for key in sorted({*mine, *told})
    ]
    words = {row.verdict for row in rows}
    verdict = next((word for word in WORST if word in words), Verdict.COMPLETE)
    reasons = [
        f"{row.instrument}, level {row.level}: {' '.join(row.reasons)}"
        for row in rows
        if row.verdict is not Verdict.COMPLETE
    ]
    if not rows:
        verdict, reasons = Verdict.UNPROVEN, ["Nothing was announced in this night."]
    return NightReport(
        night=night, made=now, verdict=verdict, instruments=rows, worst=[], findings=[],
        reasons=reasons or ["Everything that was announced or lay on the disks is archived."],
        latencies=over_the_night(moments),
    )  # fmt: skip
