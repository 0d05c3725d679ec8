"""What a night's numbers mean: values in, values out."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

from koa_shared.contracts import Inventory, Status, Timeline
from koa_shared.reports import InstrumentNight, Latency, NightReport, Slow, TypeTotal, Verdict

MINUTE = 60.0  # s, the objective of the system
BIN, EPOCH = timedelta(minutes=10), datetime(1970, 1, 1, tzinfo=UTC)  # 144 dots a night
STATES: dict[str, str] = {
    Status.COMPLETE: "archived", Status.INVALID: "invalid", Status.DUPLICATE: "duplicate",
    Status.ERROR: "parked", "MISSING": "missing",
}  # fmt: skip
WORSE = list(Verdict).index
Key = tuple[str, int]  # instrument, level


class Group(NamedTuple):
    """Frames that are alike; what is hidden is None.

    With the status MISSING: archived science frames of which no set of this level came.
    """

    instrument: str
    level: int
    status: str
    type: str | None
    frames: int
    found: int = 0
    exposure: float | None = None
    bytes: int = 0
    pipeline: str | None = None  # of levels above 0


class Moment(NamedTuple):
    """When a frame was acquired, and its latency if it counts (as the objective counts)."""

    instrument: str
    level: int
    acquired: datetime
    seconds: float | None


def latency(values: Iterable[float | None], at: datetime | None = None) -> Latency | None:
    """Return percentiles, each a latency that was measured; None without any."""
    ordered = sorted(round(value, 3) for value in values if value is not None)
    if not ordered:
        return None
    # The smallest that this share of them does not exceed.
    p50, p90, p99 = (ordered[math.ceil(n * len(ordered)) - 1] for n in (0.5, 0.9, 0.99))
    within = sum(value <= MINUTE for value in ordered)
    return Latency(
        at=at, frames=len(ordered), within_minute=within, p50=p50, p90=p90, p99=p99, max=ordered[-1]
    )


def slowest(row: dict[str, Any]) -> Slow:
    """Name a slow frame and the longest step of its timeline."""
    timeline = Timeline.model_validate(row.pop("timeline"))
    points = [(name, at) for name, at in timeline if at is not None]
    hops = [((t - s).total_seconds(), f"{a} to {b}") for (a, s), (b, t) in pairwise(points)]
    seconds, hop = max(hops, default=(0.0, "-"))
    total = timeline.latency_seconds or 0.0
    return Slow(**row, latency_seconds=total, hop=hop, hop_seconds=seconds)


def judge(n: Counter[str], *, over: bool, compared: bool) -> tuple[Verdict, list[str]]:
    """Return the verdict about counts of frames, and its reasons as sentences."""
    lacks = Verdict.INCOMPLETE if over else Verdict.UNFINISHED
    reasons = (
        (Verdict.INCOMPLETE, "Invalid, the file is at fault and not archived", n["invalid"]),
        (Verdict.INCOMPLETE, "Parked until an operator decides (koa parked)", n["parked"]),
        (Verdict.INCOMPLETE, "Gaps in the frame numbers on the disks", n["gaps"]),
        (lacks, "Science frames of which no set of products came", n["missing"]),
        (Verdict.UNFINISHED, "Still on their way", n["unfinished"]),
        (Verdict.UNFINISHED, "On the disks and not taken on yet", n["untaken"]),
        (Verdict.UNFINISHED, "Taken on and not in the catalogue", n["untold"]),
        (Verdict.UNFINISHED, "The UT date is not over", not over),
        (Verdict.UNPROVEN, "The disks were not compared after the last frame", not compared),
        (Verdict.COMPLETE, "Found on the disks, no keyword had told of them", n["found"]),
    )
    told = [f"{n['archived'] + n['duplicate']} of {n['announced']} are in the archive."]
    told += [text + (f": {c}." if c is not True else ".") for _, text, c in reasons if c]
    return max((word for word, _, c in reasons if c), key=WORSE, default=Verdict.COMPLETE), told


def instrument_night(
    key: Key, groups: list[Group], moments: list[Moment], seen: Inventory | None, *, over: bool
) -> InstrumentNight:
    """Add up what one instrument has of one level; of levels above 0 no disk tells."""
    n, hours = Counter[str](), Counter(moment.acquired.hour for moment in moments)
    for group in groups:
        n[STATES.get(group.status, "unfinished")] += group.frames
        n["found"] += group.found
    states = {name: n[name] for name in (*STATES.values(), "unfinished")}
    n["announced"] = sum(states.values()) - n["missing"]
    last = max((m.acquired for m in moments), default=None)
    if seen:
        n["gaps"], n["untaken"] = len(seen.frame_gaps), seen.on_disk - seen.announced
        n["untold"] = max(0, seen.announced - n["announced"])  # its events wait, or are lost
    compared = key[1] > 0 or last is None or bool(seen and seen.at and seen.at > last)
    verdict, reasons = judge(n, over=over, compared=compared)
    kept = [group for group in groups if group.status == Status.COMPLETE]
    exposures = [g.exposure for g in kept if g.exposure is not None]
    types = [
        TypeTotal(type=g.type, frames=g.frames, exposure_seconds=g.exposure, bytes=g.bytes)
        for g in sorted(kept, key=lambda g: -g.frames)
        if not key[1]
    ]
    return InstrumentNight(
        instrument=key[0], level=key[1], announced=n["announced"], **states, found=n["found"],
        bytes=sum(group.bytes for group in kept), types=types, inventory=seen, gaps=n["gaps"],
        exposure_seconds=sum(exposures) if exposures else None, verdict=verdict, reasons=reasons,
        pipelines=sorted({g.pipeline for g in groups if g.pipeline}),
        latency=latency(m.seconds for m in moments), hours=[hours[hour] for hour in range(24)],
    )  # fmt: skip


def report(
    groups: list[Group], moments: list[Moment], seen: dict[str, Inventory], night: str,
    now: datetime,
) -> NightReport:  # fmt: skip
    """Return a night's report, without its worst frames and findings."""
    mine, when = defaultdict[Key, list[Group]](list), defaultdict[Key, list[Moment]](list)
    bins = defaultdict[datetime, list[float | None]](list)
    for group in groups:
        mine[group.instrument, group.level].append(group)
    for moment in moments:
        when[moment.instrument, moment.level].append(moment)
        if not moment.level:
            bins[moment.acquired - (moment.acquired - EPOCH) % BIN].append(moment.seconds)
    told = {(name, 0) for name, inventory in seen.items() if inventory.on_disk}
    over = night < now.date().isoformat()
    rows = [
        instrument_night(key, mine[key], when[key], None if key[1] else seen.get(key[0]), over=over)
        for key in sorted({*mine, *told})
    ]
    amiss = [row for row in rows if row.verdict is not Verdict.COMPLETE]
    reasons = [f"{r.instrument}, level {r.level}: {' '.join(r.reasons)}" for r in amiss]
    raw = [row.verdict for row in rows if not row.level]  # no set makes a night incomplete
    good = "All that was announced is archived." if raw else "No raw frame was announced."
    plot = [one for at in sorted(bins) if (one := latency(bins[at], at))]
    return NightReport(
        night=night, made=now, reasons=reasons or [good], instruments=rows, worst=[], findings=[],
        verdict=max(raw, key=WORSE, default=Verdict.UNPROVEN), latencies=plot,
    )  # fmt: skip
