"""What `koa` can do: the public methods are its commands, their docstrings the help."""

import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic_core import to_jsonable_python
from typer import BadParameter

from .. import client
from ..client import PeerRefused, Service
from ..contracts import FrameView, Page, Status, Submitted, utcnow
from ..errors import DependencyDown, KoaError, NotFound
from ..ids import normal_path
from ..reports import Kept, NightReport
from . import words as w
from .campaign import Campaigns
from .get import Get
from .many import groups
from .night import Night, answer, read
from .products import Products
from .why import sentence, unknown


class Koa:
    """The verbs; a frame is named by frame_id, KOAID, path or file name."""

    def __init__(self, archive: client.Koa) -> None:
        self._monitor, self._preparer = archive.monitor, archive.preparer
        self.archive, self.ingestor = archive, archive.ingestor
        self.campaigns, self.products = Campaigns(archive.preparer), Products(archive)

    def submit(
        self, path: w.Announced, instrument: w.Instrument = None, source: w.Source = None,
        why: w.Why = "",
    ) -> Submitted:  # fmt: skip
        """Have a file archived that nobody announced.

        Name its instrument or source if the path does not tell. Exit code 1 if it is ignored.
        """
        return self.archive.submit(path, instrument=instrument, source=source, why=why)

    def status(self, name: w.Frame, level: w.OfLevel = 0) -> FrameView:
        """Show a frame with its findings, timeline and products.

        A KOAID is that of the raw frame, with --level that of its reduced set.
        """
        if "/" not in name:
            where = f"/v1/frames/{quote(name)}"
            for peer in (self.ingestor, self._preparer):  # which knows it even if that is away
                with suppress(DependencyDown):
                    return peer.call(FrameView, "GET", where, level=level or None)
        query: dict[str, Any] = {"path": normal_path(name)} if "/" in name else {"name": name}
        if frame := next(self.archive.frames(limit=1, level=level or None, **query), None):
            return frame
        raise NotFound(f"no frame has the {''.join(query)} {name}", code="unknown_frame")

    def why(self, name: w.Frame, level: w.OfLevel = 0) -> dict[str, Any]:
        """Tell in one sentence where a frame is and what to do.

        Of a path that has no frame it tells what the monitor heard of it.
        """
        try:
            frame = self.status(name, level)
        except NotFound:
            if "/" not in name:
                raise
            path = normal_path(name)
            page, sources = self.triggers(path=path), self.sources()
            return {"frame": None, "why": unknown(path, page["items"], sources)}
        peer = self._owner(frame)
        holds = [] if frame.status.is_end else self._holds(peer, frame.instrument)
        return {"frame": frame, "why": sentence(frame, peer.name, holds, utcnow())}

    def list_(self, limit: w.Limit = 100, **filters: Any) -> Iterator[FrameView]:
        """List frames, the newest first; options select."""
        return self.archive.frames(limit or None, **filters)

    def get(
        self, names: w.Frames = None, into: w.Into = Path(), products: w.Products = None,
        parallel: w.Parallel = 4, level: w.OfLevel = 0, **filters: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """Download frames by name, or all that options select.

        Repeat it to go on where it broke off: parts of files are gone on with, and what is
        here already is checked by its SHA-256 and not fetched again. Nothing is overwritten:
        another file of the same name is renamed to NAME.DIGEST.old, and told. Sets of reduced
        products (--level 1, 2) lie in a directory each, lev1/KOAID/v1. Of a selection
        what is not archived or not open to you is left out, and counted. Exit code 1 if
        something that was asked for could not be had.
        """
        if bool(names) == any(value is not None for value in filters.values()):
            raise BadParameter("name frames, or say by options which ones")
        task = Get(self.archive, products, into, parallel)
        found = [self.status(name, level) for name in names or ()]
        select = partial(self.archive.frames, level=level, **filters)
        return task.run((lambda: found) if names else select, named=bool(names))

    def triggers(self, source: w.Source = None, path: w.Heard = None) -> Any:
        """List the last 100 broadcasts and what became of each."""
        return self._monitor.json("GET", "/v1/triggers", source=source, path=path)

    def sources(self) -> Any:
        """List the keyword sources and their state."""
        return self._monitor.json("GET", "/v1/sources")

    def canary(self, seconds: w.Seconds = 60.0) -> FrameView:
        """Send a frame of our own through the whole system.

        Exit code 1 if it is not available in time; why, is told.
        """
        sent = self._monitor.call(Submitted, "POST", "/v1/canary")
        until, frame = utcnow() + timedelta(seconds=seconds), None
        while utcnow() < until:
            with suppress(DependencyDown):  # it is not known yet: 404
                frame = self.archive.frame(str(sent.frame_id))
            if frame and frame.status is Status.COMPLETE:
                return frame
            time.sleep(0.1)
        told = self.why(str(sent.frame_id))
        raise KoaError(f"not available within {seconds:g} s: {told['why']}", code="canary_late")

    def scrub(self, now: w.Now = None, why: w.Why = "") -> Any:
        """Show how far archived objects were read again.

        All versions, those that are due (last read before `since`), and damaged objects.
        """
        if now is None:
            return self.ingestor.json("GET", "/v1/scrub")
        return self.ingestor.order("scrub", koaid=None if now == "all" else now, why=why)

    def parked(self, all_: w.All = False) -> Any:
        """List what waits for an operator, in groups that failed alike."""
        found = list(self.archive.frames(status=Status.ERROR))
        page = self.ingestor.call(Page[FrameView], "GET", "/v1/parked")
        found += [frame for frame in page.items if frame.status is not Status.ERROR]
        return found if all_ else groups(found)

    def retry(
        self, name: w.FrameOrMany = None, fingerprint: w.Fingerprint = None, why: w.Why = ""
    ) -> Any:
        """Try an ERROR or INVALID frame again, or a group."""
        if bool(name) == bool(fingerprint):
            raise BadParameter("name one frame, or say by options which ones")
        if name:
            return self._order(name, "retry", why=why)
        where, tried = f"parked/{quote(fingerprint or '')}/retry", list[dict[str, Any]]()
        for peer in (self._preparer, self.ingestor):
            tried.append({"service": peer.name} | peer.order(where, why=why))
        if not any(row["retried"] for row in tried):
            raise NotFound(f"nothing that is parked has the fingerprint {fingerprint}")
        return tried

    def release(self, name: w.Frame, waive: w.Codes, why: w.Why) -> Any:
        """Let a frame pass in spite of findings that are waived."""
        return self._order(name, "release", waive=waive, why=why)

    def reprocess(
        self, name: w.Frame, why: w.Why = "", progid: w.Progid = None, fraction: w.Fraction = None
    ) -> Any:
        """Make a frame's products anew; for many, `koa campaign`.

        They become a new version; the old ones stay.
        """
        return self._order(name, "reprocess", why=why, progid=progid, fraction=fraction)

    def night(
        self, date: w.Date, html: w.Html = None, verify: w.Verify = None, saved: w.From = None
    ) -> dict[str, Any]:
        """Report a night; hold a directory against it.

        With --verify the exit code is 1 if a FITS file is amiss.
        """
        return answer(read(saved, date) if saved else self._night(date), html, verify)

    def _night(self, date: str) -> Night:
        ask, where = self.ingestor.call, f"/v1/nights/{quote(date)}"
        cursor: str | None = ""
        told = Night(report=ask(NightReport, "GET", where), manifest=[])
        while cursor is not None:
            page = ask(Page[Kept], "GET", f"{where}/manifest", cursor=cursor)
            told["manifest"], cursor = told["manifest"] + page.items, page.next
        return told

    def audit(self, target: w.Target = None) -> Any:
        """List what operators did, at all services."""
        rows = list[dict[str, Any]]()
        for peer in (self._monitor, self._preparer, self.ingestor):
            try:
                found = peer.json("GET", "/v1/audit", target=target)
            except DependencyDown as down:
                found = [{"at": to_jsonable_python(utcnow()), "why": str(down)}]
            rows += [{"service": peer.name} | row for row in found]
        return sorted(rows, key=lambda row: row["at"], reverse=True)

    def accept(self, name: w.Frame, as_: w.As, why: w.Why) -> Any:
        """Decide about a frame whose KOAID is taken.

        `version`: it is the same exposure, rewritten; it becomes the next version.
        `padded`: it is another one; its KOAID gets two digits of fraction, as in 32798.08.
        """
        frame_id = self.status(name).frame_id
        try:
            return self._order(frame_id, "accept", why=why, **{"as": as_})
        except PeerRefused as refusal:
            if refusal.code != "needs_reprocess":
                raise
        return self.reprocess(frame_id, why, fraction="padded")

    def pause(self, name: w.Switch, why: w.Why = "") -> Any:
        """Hold back a keyword source or an instrument.

        Nothing is lost: broadcasts of a source wait at the monitor, frames of an instrument
        at the preparer.
        """
        return self._switch(name, "pause", why)

    def resume(self, name: w.Switch, why: w.Why = "") -> Any:
        """Let a paused source or instrument go on."""
        return self._switch(name, "resume", why)

    def retention(self, dry_run: w.Dry = False, why: w.Why = "") -> Any:
        """Delete what the policies say, now; --dry-run only lists it."""
        if dry_run:
            return self.ingestor.json("GET", "/v1/retention")
        return self.ingestor.order("retention", why=why)

    def deletable(self, instrument: w.Instrument = None) -> Any:
        """List the raw files that the summit may delete, oldest first."""
        every, cursor = list[Any](), ""
        while True:
            more = {"instrument": instrument, "cursor": cursor or None}
            page = self.ingestor.json("GET", "/v1/deletable", **more)
            every, cursor = every + page["items"], page["next"]
            if not cursor:
                return every

    def _switch(self, name: str, verb: str, why: str) -> Any:
        """Ask who is likely to know the name, then the other; if neither does, tell the first's."""
        peers = [(self._monitor, "sources"), (self._preparer, "instruments")]
        told = list[DependencyDown | PeerRefused]()
        for peer, kind in peers[:: -1 if name.isupper() else 1]:
            try:
                return peer.order(f"{kind}/{quote(name, safe='')}/{verb}", why=why)
            except (DependencyDown, PeerRefused) as fault:
                told.append(fault)
                if getattr(fault, "code", "") not in ("unknown_source", "unknown_instrument"):
                    break
        raise told[0]

    def _order(self, name: str, verb: str, **options: Any) -> Any:
        frame = self.status(name)
        where = {"retry": self._owner(frame), "accept": self.ingestor}
        peer = where.get(verb, self._preparer)
        return {"service": peer.name} | peer.order(f"frames/{frame.frame_id}/{verb}", **options)

    def _owner(self, frame: FrameView) -> Service:
        """Return who has a frame: the ingestor once it was handed it, else the preparer."""
        begun = frame.timeline.ingest_start or frame.step in ("claim", "promote")
        handed = frame.status is Status.TRANSFERRED and frame.timeline.notified
        return self.ingestor if begun or handed else self._preparer

    def _holds(self, peer: Service, instrument: str) -> list[str]:
        """Return what holds a waiting frame back: what is down, or a pause."""
        try:
            state = peer.json("GET", "/readyz", verbose="")
        except DependencyDown as down:  # an observer is not told
            return [] if getattr(down, "status", 0) in (401, 403) else [str(down)]
        found = [f"{k} is down ({v})" for k, v in state["circuits"].items() if v != "closed"]
        if instrument in (held := state.get("held", {})):
            found.append(f"{instrument} is paused {held[instrument]} (`koa resume {instrument}`)")
        return found
