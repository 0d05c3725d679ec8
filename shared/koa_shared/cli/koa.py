"""What `koa` can do: the public methods are its commands, their docstrings the help."""

import asyncio
import os
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import httpx
from pydantic import Field, RootModel
from pydantic_core import to_jsonable_python
from typer import Argument, BadParameter, Option

from ..client import Client, Ingestor, Monitor, PeerRefused, Preparer
from ..config import PeerUrl, Settings
from ..contracts import FrameView, Page, Status, Submission, Submitted, utcnow
from ..errors import DependencyDown, KoaError, NotFound
from ..ids import normal_path
from ..reports import Kept, NightReport
from .campaign import Campaigns, Keeping
from .many import groups
from .night import Night, answer, read
from .why import sentence, unknown
from .words import Fraction, Text, Why

Codes = Annotated[list[str], Option(help="A finding's code; may be repeated.")]
As = Annotated[Literal["version", "padded"], Option("--as")]
Name = Annotated[str | None, Argument()]
All = Annotated[bool, Option("--all", help="Each frame.")]
Html = Annotated[Path | None, Option(help="Write a page to print.", dir_okay=False)]
Verify = Annotated[Path | None, Option(help="Compare the FITS files under it.", exists=True)]
From = Annotated[Path | None, Option("--from", help="Read what --json printed.", exists=True)]


def _here(port: int) -> str:
    return f"http://127.0.0.1:{port + int(os.environ.get('PORT_OFFSET') or 0)}"


def _one(name: str | None, *many: Any) -> str | None:
    """Return the frame's name, None if options say which ones; it must be one or the other."""
    if bool(name) == any(many):
        raise BadParameter("name one frame, or say by options which ones")
    return name


class Peers(Settings):
    """Where the services are, and the token that is shown to them."""

    monitor_url: PeerUrl = Field(default_factory=lambda: _here(8001))
    preparer_url: PeerUrl = Field(default_factory=lambda: _here(8002))
    ingestor_url: PeerUrl = Field(default_factory=lambda: _here(8003))
    token_file: Path | None = None
    ca_file: Path | None = None


class Koa(Keeping):
    """The clients of the three services; a frame is named by ID, KOAID, path or file name."""

    def __init__(self, peers: Peers, http: httpx.AsyncClient) -> None:
        self._monitor = Monitor("monitor", peers.monitor_url, http)
        self._preparer = Preparer("preparer", peers.preparer_url, http)
        self.ingestor = Ingestor("ingestor", peers.ingestor_url, http)
        self.campaigns = Campaigns(self._preparer)

    async def submit(
        self, path: str, instrument: Text = None, source: Text = None, why: Why = ""
    ) -> Submitted:
        """Have a file archived that nobody announced; exit code 1 if it is ignored."""
        order = Submission(path=path, instrument=instrument, source=source, why=why)
        return await self._monitor.submit(order)

    async def status(self, name: str) -> FrameView:
        """Show a frame, the newest of its name, with findings, timeline and products."""
        if "/" not in name:
            for peer in (self.ingestor, self._preparer):  # which knows it even if that is away
                with suppress(DependencyDown):
                    return await peer.call(FrameView, "GET", f"/v1/frames/{quote(name)}")
        query = {"path": normal_path(name)} if "/" in name else {"name": name}
        page = await self.ingestor.frames(limit=1, **query)
        if not page.items:
            raise NotFound(f"no frame has the {''.join(query)} {name}", code="unknown_frame")
        return page.items[0]

    async def why(self, name: str) -> dict[str, Any]:
        """Tell in one sentence where a frame is (or why a path has none) and what to do."""
        try:
            frame = await self.status(name)
        except NotFound:
            if "/" not in name:
                raise
            path = normal_path(name)
            page, sources = await self.triggers(path=path), await self.sources()
            return {"frame": None, "why": unknown(path, page["items"], sources)}
        peer = self._owner(frame)
        holds = [] if frame.status.is_end else await self._holds(peer, frame.instrument)
        return {"frame": frame, "why": sentence(frame, peer.name, holds, utcnow())}

    async def triggers(self, source: Text = None, path: Text = None) -> Any:
        """List the last 100 broadcasts and what was decided about each."""
        return await self._monitor.json("GET", "/v1/triggers", source=source, path=path)

    async def sources(self) -> Any:
        """List the keyword sources and their state."""
        return await self._monitor.json("GET", "/v1/sources")

    async def canary(self, seconds: float = 60.0) -> FrameView:
        """Send a frame of our own through the system; exit code 1 if it takes longer."""
        sent = await self._monitor.call(Submitted, "POST", "/v1/canary")
        until, frame = utcnow() + timedelta(seconds=seconds), None
        while utcnow() < until:
            with suppress(DependencyDown):  # it is not known yet: 404
                frame = await self.ingestor.call(FrameView, "GET", f"/v1/frames/{sent.frame_id}")
            if frame and frame.status is Status.COMPLETE:
                return frame
            await asyncio.sleep(0.1)
        told = await self.why(str(sent.frame_id))
        raise KoaError(f"not available within {seconds:g} s: {told['why']}", code="canary_late")

    async def scrub(self, now: Text = None, why: Why = "") -> Any:
        """Show how far the scrubber is; `--now KOAID` or `--now all` has archived objects read."""
        if now is None:
            return await self.ingestor.json("GET", "/v1/scrub")
        order = {"koaid": None if now == "all" else now, "why": why}
        return await self.ingestor.json("POST", "/v1/scrub", body=RootModel[dict[str, Any]](order))

    async def parked(self, all_: All = False) -> Any:
        """List what waits for an operator: groups that failed alike, or (--all) the frames."""
        found = await self._every(status=Status.ERROR)
        page = await self.ingestor.call(Page[FrameView], "GET", "/v1/parked")
        found += [frame for frame in page.items if frame.status is not Status.ERROR]
        return found if all_ else groups(found)

    async def retry(self, name: Name = None, fingerprint: Text = None, why: Why = "") -> Any:
        """Try an ERROR or INVALID frame again where it ended, or all that failed alike."""
        if one := _one(name, fingerprint):
            return await self._order(one, "retry", why=why)
        where, tried = f"parked/{quote(fingerprint or '')}/retry", list[dict[str, Any]]()
        for peer in (self._preparer, self.ingestor):
            tried.append({"service": peer.name} | await peer.order(where, why=why))
        if not any(row["retried"] for row in tried):
            raise NotFound(f"nothing that is parked has the fingerprint {fingerprint}")
        return tried

    async def release(self, name: str, waive: Codes, why: Why) -> Any:
        """Let a frame pass in spite of the findings that are waived."""
        return await self._order(name, "release", waive=waive, why=why)

    async def reprocess(
        self, name: str, why: Why = "", progid: Text = None, fraction: Fraction = None
    ) -> Any:
        """Make a frame's products anew: a new version.  For many frames: `koa campaign`."""
        options = {"why": why, "progid": progid, "fraction": fraction}
        return await self._order(name, "reprocess", **options)

    async def _every(self, **filters: Any) -> list[FrameView]:
        """Return all frames that match."""
        page = await self.ingestor.frames(limit=1000, **filters)
        found = page.items
        while page.next:
            page = await self.ingestor.frames(limit=1000, cursor=page.next, **filters)
            found += page.items
        return found

    async def night(
        self, date: str, html: Html = None, verify: Verify = None, saved: From = None
    ) -> dict[str, Any]:
        """Report a night (a UT date); with --verify exit code 1 if a FITS file is amiss."""
        return answer(read(saved, date) if saved else await self._night(date), html, verify)

    async def _night(self, date: str) -> Night:
        ask, where = self.ingestor.call, f"/v1/nights/{quote(date)}"
        cursor: str | None = ""
        told = Night(report=await ask(NightReport, "GET", where), manifest=[])
        while cursor is not None:
            page = await ask(Page[Kept], "GET", f"{where}/manifest", cursor=cursor)
            told["manifest"], cursor = told["manifest"] + page.items, page.next
        return told

    async def audit(self, target: Text = None) -> Any:
        """List what operators did, at all services, newest first."""
        rows = list[dict[str, Any]]()
        for peer in (self._monitor, self._preparer, self.ingestor):
            try:
                found = await peer.json("GET", "/v1/audit", target=target)
            except DependencyDown as down:
                found = [{"at": to_jsonable_python(utcnow()), "why": str(down)}]
            rows += [{"service": peer.name} | row for row in found]
        return sorted(rows, key=lambda row: row["at"], reverse=True)

    async def accept(self, name: str, as_: As, why: Why) -> Any:
        """Decide a KOAID conflict: the same exposure (version) or another one (padded)."""
        frame_id = (await self.status(name)).frame_id
        try:
            return await self._order(frame_id, "accept", why=why, **{"as": as_})
        except PeerRefused as refusal:
            if refusal.code != "needs_reprocess":
                raise
        return await self.reprocess(frame_id, why, fraction="padded")

    async def pause(self, name: str, why: Why = "") -> Any:
        """Hold back a source of the monitor or (in capitals) an instrument of the preparer."""
        return await self._switch(name, "pause", why)

    async def resume(self, name: str, why: Why = "") -> Any:
        """Let go on what was paused."""
        return await self._switch(name, "resume", why)

    async def _switch(self, name: str, verb: str, why: str) -> Any:
        if name.isupper():
            return await self._preparer.order(f"instruments/{quote(name)}/{verb}", why=why)
        return await self._monitor.order(f"sources/{quote(name)}/{verb}", why=why)

    async def _order(self, name: str, verb: str, **options: Any) -> Any:
        frame = await self.status(name)
        where = {"retry": self._owner(frame), "accept": self.ingestor}
        peer = where.get(verb, self._preparer)
        return {"service": peer.name} | await peer.order(
            f"frames/{frame.frame_id}/{verb}", **options
        )

    def _owner(self, frame: FrameView) -> Client:
        """Return who has a frame: the ingestor once it was handed it, else the preparer."""
        begun = frame.timeline.ingest_start or frame.step in ("claim", "promote")
        handed = frame.status is Status.TRANSFERRED and frame.timeline.notified
        return self.ingestor if begun or handed else self._preparer

    async def _holds(self, peer: Client, instrument: str) -> list[str]:
        """Return what holds a waiting frame back: what is down, or a pause."""
        try:
            state = await peer.json("GET", "/readyz", verbose="")
        except DependencyDown as down:  # an observer is not told
            return [] if getattr(down, "status", 0) in (401, 403) else [str(down)]
        found = [f"{k} is down ({v})" for k, v in state["circuits"].items() if v != "closed"]
        if instrument in (held := state.get("held", {})):
            found.append(f"{instrument} is paused {held[instrument]} (`koa resume {instrument}`)")
        return found
