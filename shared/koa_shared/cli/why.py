"""One sentence about a frame that a person understands at 3 a.m. (pure functions)."""

from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from ..contracts import FrameView, Link, Severity, Status

LONG = 300  # seconds; a frame takes two, what waits longer has a reason
# Faults at these steps are no rule's: there is nothing that a release could waive.
NO_RULE = {"read", "path", "structure", "identity", "prepare", "handover", "promote", "claim"}


def sentence(frame: FrameView, service: str, holds: list[str], now: datetime) -> str:
    """Return where a frame is, its last error, its next attempt, and what to do."""
    name = frame.koaid or PurePosixPath(frame.path or frame.frame_id).name
    title = f"{name}, level {frame.level}" if frame.level else name
    found = [f for f in frame.findings if f.severity is not Severity.WARNING]
    faults = {(f.code, f.step): f"{f.code} ({f.message or f.step})" for f in found}
    reasons = list(faults.values())
    match frame.status:
        case Status.COMPLETE:
            took = f"{frame.latency_seconds} s after it was written"
            text = f"version {frame.version} was available {took}; nothing to do"
            text += "".join(map(_product, frame.links if frame.level == 0 else ()))
            if damage := faults.get(("OBJECT_DAMAGED", "scrub")):
                mend = f"`koa reprocess {name}` makes a good version"
                mend = "a new reduction makes a good version" if frame.level else mend
                text = f"but its version {frame.version} is not served whole, {damage}; {mend}"
        case Status.DUPLICATE:
            text = "the same bytes are archived under this KOAID; nothing to do"
        case Status.INVALID | Status.ERROR:
            why = " and ".join(reasons) or frame.step
            text = f"it ended at the {service}, {why}; {advice(frame, dict(faults.keys()))}"
        case _:
            since = max((at for _, at in frame.timeline if at), default=now)
            waited = (now - since).total_seconds()
            parts = [f"it is at the {service} for {waited:.0f} s now"]
            parts += [f"last error {reason}" for reason in reasons[-1:]]
            parts += [f.message for f in frame.findings if f.code == "RAW_NOT_ARCHIVED"][-1:]
            text = "; ".join([*parts, outlook(frame, service, holds, long=waited > LONG)])
    return f"{title} is {frame.status}: {text}."


def _product(link: Link) -> str:
    more = "" if link.status is Status.COMPLETE else f" (`koa why {link.frame_id}`)"
    return f"; its level {link.level} by {link.pipeline or 'a pipeline'} is {link.status}{more}"


def outlook(frame: FrameView, service: str, holds: list[str], *, long: bool) -> str:
    """Return what a frame on its way waits for."""
    if frame.step == "refused":
        return f"once that is mended, `koa submit {frame.path}` announces it again"
    if holds:
        return f"held back because {' and '.join(holds)}"
    if frame.next_attempt_at:
        return f"the next attempt is at {frame.next_attempt_at:%H:%M:%S} UTC"
    return f"see the log of the {service}" if long else "nothing to do"


def advice(frame: FrameView, codes: dict[str, str]) -> str:
    """Return which order leaves INVALID or ERROR; `codes` are the faults', with their steps."""
    name = frame.frame_id
    if "DUPLICATE_KOAID" in codes:
        version = f"`koa accept {name} --as version --why ...` if it is this exposure rewritten"
        return f"{version}, `--as padded` if it is another one"
    if "FITS_NOT_FOUND" in codes:
        return f"once the file is there, `koa submit {frame.path}`"
    if not codes or NO_RULE.intersection(codes.values()):
        return f"once that is mended, `koa retry {name}`"
    waive = " ".join(f"--waive {code}" for code in codes)
    return f"`koa retry {name}` checks again, `koa release {name} {waive} --why ...` lets it pass"


def unknown(path: str, triggers: list[Any], sources: list[Any]) -> str:
    """Return why no frame has a path; `triggers` are its broadcasts, newest first."""
    if not triggers:
        away = sum(not source["connected"] for source in sources)
        text = f"nobody announced {path} ({away} of {len(sources)} sources are not connected)"
        return f"{text}; if the file is there, `koa submit {path}`."
    last = triggers[0]
    text = f"{last['source']} announced {path} at {last['heard']}"
    if last["frame_id"]:
        return f"{text}: `koa why {last['frame_id']}` tells more."
    for why in [s["paused_why"] for s in sources if s["name"] == last["source"] and s["paused"]]:
        return f"{text} but is paused {why}: `koa resume {last['source']}`."
    return f"{text}: {last['reason'] or 'the monitor looks for the file, nothing to do'}."
