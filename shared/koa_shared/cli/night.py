"""A night's report for people: as text, as a page to print; and a directory held against it."""

import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from math import log10
from pathlib import Path
from string import Template
from typing import Any

from ..reports import InstrumentNight, Kept, NightReport

STATES = ("archived", "invalid", "duplicate", "parked", "unfinished")
MINUTE = 60.0  # s, the objective
PAGE = Template((Path(__file__).parents[1] / "data" / "night.html").read_text())


def size(count: int) -> str:
    """Return bytes as people read them, in powers of 1000."""
    value, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 1000 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def verify(kept: Sequence[Kept], directory: Path) -> dict[str, Any]:
    """Hold the files under a directory against a manifest; `wrong` counts what is amiss."""
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    wanted, found = {entry.name: entry for entry in kept}, {path.name for path in files}
    here = [path for path in files if path.name in wanted]
    differing = [str(p.relative_to(directory)) for p in here if not is_same(p, wanted[p.name])]
    extra = [p for p in files if p.name.endswith(".fits") and p.name not in wanted]
    told: dict[str, Any] = {
        "files": len(kept), "missing": sorted(wanted.keys() - found), "differing": differing,
        "extra": [str(p.relative_to(directory)) for p in extra],
        "size_only": sum(entry.sha256 is None for entry in kept if entry.name in found),
    }  # fmt: skip
    return told | {"wrong": sum(len(told[name]) for name in ("missing", "differing", "extra"))}


def is_same(path: Path, entry: Kept) -> bool:
    """Tell whether a file has the size, and the SHA-256 if that is told, of its entry."""
    if path.stat().st_size != entry.size:
        return False
    with path.open("rb") as file:
        return entry.sha256 in (None, hashlib.file_digest(file, "sha256").hexdigest())


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table of HTML; numbers stand right."""

    def cell(value: Any) -> str:
        kind = ' class="n"' if isinstance(value, int | float) else ""
        return f"<td{kind}>{'-' if value is None else escape(str(value))}</td>"

    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>\n" for row in rows)
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    empty = f'<tr><td colspan="{len(heads)}">none</td></tr>'
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body or empty}</tbody></table>"


def latency_plot(report: NightReport) -> str:
    """Draw each ten minutes from median to slowest, 0.1 s to 1,000 s in powers of ten."""

    def y(seconds: float) -> float:
        return 170 - 40 * (log10(min(max(seconds, 0.1), 1000.0)) + 1)

    lines = [
        f'<line class="{"minute" if s == MINUTE else "grid"}" x1="50" x2="670" '
        f'y1="{y(s):.1f}" y2="{y(s):.1f}"/><text x="44" y="{y(s) + 4:.1f}" '
        f'text-anchor="end">{s:g} s</text>'
        for s in (0.1, 1.0, 10.0, MINUTE, 1000.0)
    ]
    lines += [
        f'<text x="{50 + 620 * h / 24:.0f}" y="188" text-anchor="middle">{h:02}</text>'
        for h in range(0, 25, 2)
    ]
    for row in report.latencies:
        x = 50 + 620 * (row.at.hour * 60 + row.at.minute + 5) / 1440
        lines.append(
            f'<line class="span" x1="{x:.1f}" x2="{x:.1f}" y1="{y(row.p50):.1f}" '
            f'y2="{y(row.max):.1f}"/><circle cx="{x:.1f}" cy="{y(row.p50):.1f}" r="2.4"/>'
        )
    return f'<svg viewBox="0 0 690 192" role="img">{"".join(lines)}</svg>'


def hours_plot(rows: Sequence[InstrumentNight]) -> str:
    """Draw a row of bars for each instrument: frames acquired in each hour UT."""
    out, most = list[str](), max((max(row.hours) for row in rows), default=0) or 1
    for n, row in enumerate(rows):
        base = 34 * (n + 1) - 4
        out.append(f'<text x="0" y="{base}">{escape(_name(row))}</text>')
        out.append(f'<line class="grid" x1="110" x2="670" y1="{base}" y2="{base}"/>')
        for hour, count in enumerate(row.hours):
            high = 24 * count / most
            x = 110 + 560 * hour / 24
            out.append(f'<rect x="{x:.1f}" y="{base - high:.1f}" width="20" height="{high:.1f}"/>')
            if count:
                out.append(f'<text x="{x + 10:.1f}" y="{base - high - 1:.1f}" class="c">{count}')
                out.append("</text>")
    low = 34 * len(rows) + 12
    ticks = (
        f'<text x="{110 + 560 * h / 24:.0f}" y="{low}" class="c">{h:02}</text>'
        for h in range(0, 25, 2)
    )
    return f'<svg viewBox="0 0 690 {low + 4}" role="img">{"".join([*out, *ticks])}</svg>'


def states_plot(rows: Sequence[InstrumentNight]) -> str:
    """Draw a bar for each instrument, divided by state."""
    out = list[str]()
    for n, row in enumerate(rows):
        x = 110.0
        out.append(f'<text x="0" y="{22 * n + 13}">{escape(_name(row))}</text>')
        for state in STATES:
            width = 560 * getattr(row, state) / (row.announced or 1)
            out.append(f'<rect class="{state}" x="{x:.1f}" y="{22 * n + 2}" ')
            out.append(f'width="{width:.1f}" height="15"/>')
            x += width
    return f'<svg viewBox="0 0 690 {22 * len(rows) + 4}" role="img">{"".join(out)}</svg>'


def _name(row: InstrumentNight) -> str:
    return row.instrument if row.level == 0 else f"{row.instrument} lev{row.level}"


def counts(report: NightReport) -> list[tuple[Any, ...]]:
    """Return a row for each instrument and level."""
    return [
        (r.instrument, r.level, r.announced, *(getattr(r, state) for state in STATES), r.found,
         size(r.bytes), r.exposure_seconds, *(
             (r.latency.p50, r.latency.p90, r.latency.p99, r.latency.max,
              f"{r.latency.within_minute} of {r.latency.frames}") if r.latency else (None,) * 5
         ))
        for r in report.instruments
    ]  # fmt: skip


COUNTS = (
    "instrument", "level", "announced", *STATES, "found", "raw size", "exposed s", "p50 s",
    "p90 s", "p99 s", "max s", "in a minute",
)  # fmt: skip


def page(report: NightReport, kept: Sequence[Kept]) -> str:
    """Return the report as one HTML page that needs nothing else."""
    rows = report.instruments
    kinds = [
        (_name(r), t.type or "not told", t.frames, t.exposure_seconds, size(t.bytes))
        for r in rows
        for t in r.types
    ]
    disks = [
        (r.instrument, s.at and f"{s.at:%H:%M:%S}", s.on_disk, s.announced, s.gaps,
         ", ".join(g.rpartition("/")[2] for g in s.frame_gaps) or None)
        for r in rows
        if (s := r.inventory)
    ]  # fmt: skip
    slow = [
        (s.koaid or s.frame_id, s.instrument, s.latency_seconds, s.hop, s.hop_seconds)
        for s in report.worst
    ]
    news = [
        (f.instrument, f.code, f.frames, f.week, "" if f.week else "new") for f in report.findings
    ]
    files = [(k.koaid, k.version, k.size, k.sha256) for k in kept]
    return PAGE.substitute(
        night=report.night, made=f"{report.made:%Y-%m-%d %H:%M:%S}", verdict=report.verdict,
        reasons="".join(f"<li>{escape(reason)}</li>" for reason in report.reasons),
        counts=table(COUNTS, counts(report)), states=states_plot(rows), hours=hours_plot(rows),
        latencies=latency_plot(report),
        slow=table(("frame", "instrument", "latency s", "slowest step", "s"), slow),
        kinds=table(("instrument", "type", "frames", "exposed s", "raw size"), kinds),
        disks=table(("instrument", "read at", "on disk", "announced", "gaps", "missing"), disks),
        findings=table(("instrument", "code", "frames", "week before", ""), news),
        files=table(("KOAID", "version", "bytes", "SHA-256"), files),
    )  # fmt: skip


def words(report: NightReport) -> str:
    """Return the report for a terminal."""
    lines = [f"{report.night}  {report.verdict.upper()}", *(f"  {r}" for r in report.reasons)]
    cells = [COUNTS, *(["-" if v is None else str(v) for v in row] for row in counts(report))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    lines += [
        f"slow  {s.latency_seconds:g} s  {s.koaid or s.frame_id}  {s.hop} {s.hop_seconds:g} s"
        for s in report.worst[:3]
    ]
    new = (f for f in report.findings if not f.week)
    return "\n".join([*lines, *(f"new   {f.code}  {f.instrument}  {f.frames} frames" for f in new)])
